"""Sharing a prompt and splitting off the head are tried before they are used; what does not honour them is scored plainly, and
says so."""

import logging

import pytest
import torch
from transformers import LlamaForCausalLM

from multiref.errors import ModelError
from multiref.models import score_completions
from multiref.models.architecture import layout_of
from multiref.models.logps import forward_logps
from tests.conftest import make_gpt2, make_llama
from tests.models.naive import naive_logps
from tests.models.test_logps import VOCABULARY, make_cohere, make_gemma2, random_batch


class NoPositions(LlamaForCausalLM):
    """A model that counts positions by itself."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class NoMask(LlamaForCausalLM):
    """A model that attends to everything before, whatever it is told."""

    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, **kwargs)


class Raises(LlamaForCausalLM):
    """A model that accepts two-dimensional masks only."""

    def forward(self, *args, attention_mask=None, **kwargs):
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("attention_mask must be [batch, length]")
        return super().forward(*args, attention_mask=attention_mask, **kwargs)


def of(kind):
    return kind(make_llama(VOCABULARY).config).eval()


@pytest.mark.parametrize("kind", [NoPositions, NoMask, Raises])
def test_models_that_cannot_share_a_prompt_are_found_out(kind, caplog):
    model = of(kind)
    with caplog.at_level(logging.WARNING, logger="multiref"):
        layout = layout_of(model, forward_logps)
    assert layout.head and not layout.shared_prompt
    assert "prompts are not shared" in caplog.text and kind.__name__ in caplog.text
    batch = random_batch()
    assert torch.allclose(score_completions(model, batch), naive_logps(model, batch), atol=1e-4)


def test_models_that_can_are_trusted_silently(caplog):
    for model in (
        make_llama(VOCABULARY),
        make_gpt2(VOCABULARY),
        make_llama(VOCABULARY).bfloat16(),
        make_llama(VOCABULARY, std=0.02),
    ):
        layout = layout_of(model, forward_logps)
        assert layout.head and layout.shared_prompt and layout.vocabulary == VOCABULARY
    assert not caplog.records


def test_logits_that_are_changed_after_the_head_are_computed_whole():
    assert not layout_of(make_cohere(), forward_logps).head
    squashed = layout_of(make_gemma2(), forward_logps)
    assert not squashed.head and not squashed.shared_prompt and "slides" in squashed.why


def test_the_trial_leaves_the_mode_alone_and_runs_once(monkeypatch):
    model, calls = make_llama(VOCABULARY).train(), []
    original = model.forward
    monkeypatch.setattr(model, "forward", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    layout_of(model, forward_logps)
    tried = len(calls)
    layout_of(model, forward_logps)
    assert model.training and len(calls) == tried > 0
    assert all(p.grad is None for p in model.parameters())


def test_no_causal_language_model():
    from transformers import LlamaForSequenceClassification, T5Config, T5ForConditionalGeneration

    t5 = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ModelError, match=r"encoder-decoder"):
        layout_of(T5ForConditionalGeneration(t5), forward_logps)
    with pytest.raises(ModelError, match=r"logits of shape"):
        layout_of(LlamaForSequenceClassification(make_llama(VOCABULARY).config), forward_logps)
