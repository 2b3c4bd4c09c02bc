"""Prompts that are read once for all their completions: the completions are those of prompts read once each."""

import pytest
import torch

from multiref.training.online import rollout
from tests.conftest import make_gpt2, make_llama, make_tokenizer


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_a_prompt_read_once_gives_the_same_completions(make, monkeypatch):
    """Rotary and learned positions, prompts of several lengths (the short ones padded), float64, one seed: ids for ids, with the cache repeated and without."""
    tokenizer = make_tokenizer()
    model = make(len(tokenizer)).double()
    prompts = ["the cat", "a dog sat on the mat and", "Once"]

    def drawn():
        torch.manual_seed(0)
        return [r.completion_ids for r in rollout.sample(model, tokenizer, prompts, group=5, max_new_tokens=9)]

    read = []
    once = rollout._prompts_once
    monkeypatch.setattr(rollout, "_prompts_once", lambda *given: read.append(once(*given)) or read[-1])
    found = drawn()
    assert "past_key_values" in read[0], "this model can"
    monkeypatch.setattr(rollout, "_prompts_once", lambda *given: {})
    assert found == drawn()
