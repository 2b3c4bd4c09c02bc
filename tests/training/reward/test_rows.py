"""A batch of rewards is what each row has alone: padding is audited, and a model that it changes scores one row a pass.
The oracle is the model's own forward pass over one row."""

import logging

import pytest
import torch
from transformers import LlamaForSequenceClassification

from multiref.errors import ModelError, MultirefWarning
from multiref.models import ModelSpec, Tokenisation, load
from multiref.models.small import word_tokenizer
from multiref.training import RewardData, RewardTrainer
from multiref.training.dataset import collate
from multiref.training.online import RewardModel
from multiref.training.reward.model import open_reward_model
from multiref.training.reward.rows import rewards_of_rows, stands_padded
from tests.training.reward.test_reward_trainer import PAIRS, WORDS, small
from tests.training.world import arguments

ROWS = [(1, 2, 3), (4, 5, 6, 7, 8, 1, 2), (3, 3, 4, 5, 1), (8, 7)]


class Leaky(LlamaForSequenceClassification):
    """A row takes something of the row beside it."""

    def forward(self, input_ids=None, **kwargs):
        states = self.get_input_embeddings()(input_ids)
        self.config.pad_token_id = None if len(input_ids) == 1 else 0
        kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
        last = kwargs["attention_mask"].sum(1) - 1
        found = self.model(inputs_embeds=states + 0.5 * states.roll(1, 0) * (len(input_ids) > 1), **kwargs).last_hidden_state
        return type("Output", (), {"logits": self.score(found[torch.arange(len(last)), last])})()


class LongestRow(LlamaForSequenceClassification):
    """Positions are scaled by the longest row of the batch, where that is long."""

    def forward(self, input_ids=None, **kwargs):
        positions = torch.arange(input_ids.shape[1])[None] * (3 if input_ids.shape[1] > 5 else 1)
        return super().forward(input_ids=input_ids, position_ids=positions, **kwargs)


def of(kind, dtype=torch.float64):
    model = kind(small().config).to(dtype).eval()
    model.load_state_dict(small().state_dict())
    return model


@torch.no_grad()
def alone(model, rows):
    ones = [torch.ones(1, len(row), dtype=torch.long) for row in rows]  # without it odd positions are read as packed texts
    return torch.stack([model(torch.tensor([row]), attention_mask=one).logits[0, 0] for row, one in zip(rows, ones)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_right_model_is_padded_in_every_dtype(dtype, caplog):
    model = small(dtype=dtype).eval()
    assert stands_padded(model, ROWS, 0, batch=4) and not caplog.records
    torch.testing.assert_close(
        rewards_of_rows(model, ROWS, 0), alone(model, ROWS), atol=1e-5 if dtype.itemsize > 2 else 0.1, rtol=0
    )


@pytest.mark.parametrize("kind", [Leaky, LongestRow])
@pytest.mark.parametrize("zero", [False, True], ids=["trained", "new head"])
def test_a_reward_that_depends_on_its_neighbours_has_a_pass_of_its_own(kind, zero, caplog):
    model = of(kind)
    if zero:  # what every batch would agree on
        torch.nn.init.zeros_(model.score.weight)
    with caplog.at_level(logging.WARNING, logger="multiref"):
        assert torch.equal(rewards_of_rows(model, ROWS, 0), alone(model, ROWS))
    assert "depends on the rows beside it" in caplog.text and kind.__name__ in caplog.text
    assert bool((model.score.weight == 0).all()) == zero


def test_longer_rows_are_asked_about_again():
    model = of(LongestRow)
    assert stands_padded(model, [ROWS[0], ROWS[3]], 0, batch=2)
    assert not stands_padded(model, ROWS, 0, batch=2)


def test_rows_that_the_model_was_not_made_for():
    model = small().eval()
    with pytest.raises(ModelError, match=r"Token id 99 occurs in row 2.*embedding has"):
        rewards_of_rows(model, [(1, 2), (1, 99, 3)], 0)
    model.config.max_position_embeddings = 6
    with pytest.warns(MultirefWarning, match="context of 6 tokens, and a row has 7"):
        found = rewards_of_rows(model, ROWS, 0)
    torch.testing.assert_close(found, alone(model, ROWS), atol=1e-5, rtol=0)


def test_an_adapter_or_a_quantisation_is_not_left_out_in_silence(tiny_folder, tmp_path):
    import peft

    peft.get_peft_model(load(tiny_folder).model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    for what in (tmp_path, ModelSpec(tiny_folder, adapter=tmp_path), ModelSpec(tiny_folder, quantization="int8")):
        with pytest.raises(ModelError, match="expected whole weights"):
            open_reward_model(what)
    opened = open_reward_model(ModelSpec(tiny_folder, attention="eager"), device="cpu")
    assert opened.model.config._attn_implementation == "eager"


def test_the_trainer_and_the_reward_obey(tmp_path):
    model, tokenizer = of(LongestRow), word_tokenizer(WORDS)
    data = RewardData(PAIRS, tokenizer, tokenisation=Tokenisation(end=False))
    trainer = RewardTrainer(model, args=arguments(tmp_path), train_dataset=data, processing_class=tokenizer)
    trainer.examine(model)
    batch = collate([(data, i) for i in range(3)])["pairs"]
    torch.testing.assert_close(trainer._rewards(model, batch).detach(), alone(model, batch.rows), atol=1e-12, rtol=0)
    small().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    reward = RewardModel(str(tmp_path / "model"))
    reward.model = of(LongestRow, torch.float32)
    texts = ["w1 w2 w3 w4 w5 w6", "w1", "w2 w3"]
    expected = alone(reward.model, [reward.tokenizer("w0 " + text)["input_ids"] for text in texts])
    assert reward(["w0 "] * 3, texts) == pytest.approx(expected.tolist(), abs=1e-6)
