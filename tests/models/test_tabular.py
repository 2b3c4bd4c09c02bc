"""The table: its sequence probabilities are those of its tokens, it can be any distribution, and what trains, trains on it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiref.errors import ArgumentError
from multiref.models import Tabular, Tokenisation, completion_logps, encode, score_completions, tabular_tokenizer
from multiref.models.encoding import Encoded


def all_answers(model: Tabular) -> list[Encoded]:
    """Every answer to every prompt, as ids."""
    answers = tuple(map(tuple, model.answers().tolist()))
    size = model.config.answer_tokens
    return [Encoded((size + x,), answers, (False,) * len(answers)) for x in range(model.config.prompts)]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_table_is_any_distribution(size, length, prompts, seed):
    """assign(log q) then log π = log q, both as enumerated and as scored token by token through the model's forward."""
    model = Tabular(size, length, prompts)
    logps = 5 * torch.randn(prompts, size**length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logps = logps.log_softmax(-1)
    assert torch.allclose(model.sequence_logps().exp().sum(-1), torch.ones(prompts, dtype=torch.float64))
    model.assign(logps)
    assert torch.allclose(model.sequence_logps(), logps, atol=1e-12)
    assert torch.allclose(score_completions(model, all_answers(model)).view(prompts, -1), logps, atol=1e-12)


def test_zero_mass_and_unnormalised_masses():
    model = Tabular(2, 2)
    logps = torch.tensor([-torch.inf, -torch.inf, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(model.assign(logps).sequence_logps().exp(), torch.tensor([[0.0, 0.0, 0.5, 0.5]], dtype=torch.float64))
    assert not model.table.isnan().any()


def test_gradient_of_a_sequence_is_that_of_its_tokens():
    model = Tabular(3, 3, 2)
    model.assign(torch.randn(2, 27, dtype=torch.float64))
    weights = torch.randn(54, dtype=torch.float64)
    (completion_logps(model, all_answers(model)) * weights).sum().backward()
    found = model.table.grad.clone()
    model.zero_grad()
    (model.sequence_logps().flatten() * weights).sum().backward()
    assert torch.allclose(found, model.table.grad, atol=1e-12)


def test_left_padding_and_generation():
    """Sampling 20,000 answers finds the probabilities of the table to three standard errors of the largest."""
    torch.manual_seed(0)
    model = Tabular(2, 2, 2).assign(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]).log())
    pad = model.config.pad_token_id
    ids = torch.tensor([[pad, 2], [pad, 3]]).repeat(10_000, 1)
    out = model.generate(ids, attention_mask=(ids != pad).long(), max_new_tokens=2, do_sample=True, top_k=0)
    answer = 2 * out[:, 2] + out[:, 3]
    for x, expected in enumerate([[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]]):
        found = torch.bincount(answer[x::2], minlength=4) / 10_000
        assert (found - torch.tensor(expected)).abs().max() < 3 * 0.005


def test_saved_and_loaded(tmp_path):
    model = Tabular(3, 2, 2).assign(torch.randn(2, 9))
    model.save_pretrained(tmp_path)
    again = Tabular.from_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert again.table.dtype == torch.float64 and torch.equal(again.table, model.table)
    assert again.config.answer_tokens == 3 and again.config.vocab_size == model.config.vocab_size == 6


def test_text_of_a_table():
    model = Tabular(12, 2, 11)
    tokenizer = tabular_tokenizer(model)
    item = encode(tokenizer, "x10", ["y11y0", "y3y4"], Tokenisation(end=False))
    assert item == Encoded((12 + 10,), ((11, 0), (3, 4)), (False, False))
    assert encode(tokenizer, "", ["y0"], Tokenisation(end=False)).prompt_ids == (12,)  # prompt 0 is the start token
    assert tokenizer.decode([22, 11, 0]) == "x10y11y0"


def test_it_trains_in_a_transformers_trainer(tmp_path):
    """Maximum likelihood on the 2 answers of 4 that occur, 3 to 1: the table ends at 3/4 and 1/4."""
    from transformers import Trainer, TrainingArguments

    rows = [[2, 0, 1]] * 3 + [[2, 1, 1]]
    data = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows]
    model = Tabular(2, 2)
    args = TrainingArguments(
        tmp_path, max_steps=80, learning_rate=0.3, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        save_strategy="no",
        logging_strategy="no", disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    collate = lambda items: {key: torch.tensor([item[key] for item in items]) for key in items[0]}  # noqa: E731
    Trainer(model, args, train_dataset=data, data_collator=collate).train()
    assert torch.allclose(model.sequence_logps().exp()[0], torch.tensor([0, 0.75, 0, 0.25], dtype=torch.float64), atol=0.02)


def test_sizes_that_cannot_be():
    for arguments in ((0, 1), (2, 0), (2, None), (2, 1, 0)):
        with pytest.raises(ArgumentError, match=r"positive"):
            Tabular(*arguments)
