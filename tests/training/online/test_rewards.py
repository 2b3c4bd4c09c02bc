"""Rewards: a reward model against its own forward pass, several with weights, and completions that are odd."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import multiref as mr
from multiref.errors import ArgumentError, ModelError, MultirefWarning
from multiref.references.rollouts import Rollout
from multiref.training.online import Reward, RewardModel
from multiref.training.online.rewards import as_rewards, total_reward
from tests.conftest import make_tokenizer
from tests.training.online.tables import make_trainer, random_table


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A folder as TRL's RewardTrainer leaves it, its model, its tokenizer."""
    tokenizer, folder = make_tokenizer(chat=True), tmp_path_factory.mktemp("judge")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_a_reward_model_is_its_logit_on_prompt_and_completion(judge):
    """Three texts of different length in batches of two, against each alone, without padding;
    a conversation through the template."""
    folder, model, tokenizer = judge
    prompts, completions = (
        ["the cat", "Once upon a time there was", "two"],
        [" sat", " a little dog named Max.", " plus three is five"],
    )
    found = RewardModel(str(folder), batch=2)(prompts, completions)
    with torch.no_grad():
        truth = [float(model(torch.tensor([tokenizer(p + c)["input_ids"]])).logits[0, 0]) for p, c in zip(prompts, completions)]
    assert found == pytest.approx(truth, abs=1e-4) and max(truth) - min(truth) > 0.05
    asked, said = [{"role": "user", "content": "is it raining?"}], [{"role": "assistant", "content": "yes"}]
    with torch.no_grad():
        text = tokenizer.apply_chat_template([*asked, *said], tokenize=False)
        chat = float(model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, 0])
    assert RewardModel(str(folder))([asked], [said]) == pytest.approx([chat], abs=1e-4)
    with pytest.raises(ModelError, match="cannot be loaded"):
        RewardModel(str(folder / "nowhere"))


def test_several_rewards_add_up_with_their_weights():
    """2 · length − ½ · the column's number, by hand; a function that names no columns gets none."""
    rewards = [
        Reward(lambda completions, prompts: [len(c) for c in completions], "length", 2.0),
        Reward(lambda completions, n, **_: n, "n", -0.5),
    ]
    total, each = total_reward(rewards, ["a", "b"], ["xx", "yyy"], {"n": [1.0, 10.0]})
    assert total.tolist() == [2 * 2 - 0.5, 2 * 3 - 5.0] and each["length"].tolist() == [2.0, 3.0]
    trainer = make_trainer(
        random_table(1),
        [random_table(1)],
        mr.ReverseKL(),
        steps=1,
        rewards={
            "one": Reward(lambda completions, prompts: [1.0] * len(completions), weight=3.0),
            "two": lambda completions, **_: [2.0] * len(completions),
        },
    )
    line = trainer.train()[0]
    assert (line["reward"], line["rewards/one/mean"], line["rewards/two/mean"]) == pytest.approx((5.0, 1.0, 2.0))
    with pytest.raises(ArgumentError, match="two are called"):
        as_rewards([Reward(len, "a"), Reward(len, "a")])


def trainer_with(change):
    """A trainer whose sampler's completions are changed on the way."""
    policy = random_table(1)
    trainer = make_trainer(
        policy,
        [random_table(1), random_table(2)],
        mr.ReverseKL(),
        steps=1,
        rewards=lambda completions, **_: [0.0] * len(completions),
    )
    inner, tokenizer = trainer.sampler, copy.copy(trainer.tokenizer)
    tokenizer.eos_token = "y0"
    trainer.tokenizer = tokenizer
    trainer.sampler = lambda *arguments: [change(rollout) for rollout in inner(*arguments)]
    return trainer


def test_completions_of_no_token_are_refused():
    def emptied(r):
        return Rollout(r.prompt, r.completions, r.prompt_ids, ((), *r.completion_ids[1:]), r.ended)

    with pytest.raises(ArgumentError, match="some of no token"):
        trainer_with(emptied).train()


def test_completions_that_are_all_empty_text_are_said():
    """A policy that ends at once: its one token, the end, is a completion; that its text is empty is worth a warning."""

    def ended(r):
        return Rollout(r.prompt, ("",) * 4, r.prompt_ids, ((0,),) * 4, (True,) * 4)

    with pytest.warns(MultirefWarning, match="empty text"):
        trainer_with(ended).train()


def test_completions_that_are_all_truncated_are_said():
    with pytest.warns(MultirefWarning, match="cut at max_new_tokens = 3: none ended"):
        trainer_with(lambda r: Rollout(r.prompt, r.completions, r.prompt_ids, r.completion_ids, (False,) * 4)).train()
