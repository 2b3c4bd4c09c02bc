"""What docs/distillation.md says of TRL's distillation, on the installed TRL."""

import pytest
import torch

from multiref.models import encode
from multiref.training.online.vocabulary import vocabulary_terms
from tests.conftest import make_llama, make_tokenizer

trl = pytest.importorskip("trl")


def test_with_one_teacher_its_divergence_of_each_token_is_ours():
    """TRL's loss at beta 1 and temperature 1, from hidden states and heads, against per_token_reverse_kl's terms."""
    module = pytest.importorskip("trl.trainer.distillation_trainer")
    tokenizer = make_tokenizer()
    student, teacher = (make_llama(len(tokenizer), seed=seed, std=0.3).eval() for seed in (0, 1))
    item = encode(tokenizer, "the cat", [" sat on the mat"])
    ids = [*item.prompt_ids, *item.completions[0]]
    first, last = len(item.prompt_ids) - 1, len(ids) - 1
    states = [model.model(torch.tensor([ids])).last_hidden_state[:, first:last] for model in (student, teacher)]
    heads = [model.lm_head.weight for model in (student, teacher)]
    theirs, _, count = module._chunked_divergence_loss(*states, *heads, torch.ones(1, last - first), beta=1.0)
    _, divergences, _ = vocabulary_terms(student, [teacher], [item])
    assert int(count) == len(divergences)
    assert float(theirs.detach()) == pytest.approx(float(divergences.detach().mean()), rel=1e-5)
    assert float(theirs.detach()) > 0.01


def test_it_takes_one_teacher_of_one_vocabulary_size():
    """The rows of the table that would change if TRL learnt more."""
    import inspect

    taken = inspect.signature(trl.DistillationTrainer.__init__).parameters
    assert "teacher_model" in taken and not any("teachers" in name or "weights" in name for name in taken)
    settings = {
        field: getattr(trl.DistillationConfig(output_dir="out", use_cpu=True, bf16=False), field) for field in ("beta",)
    }
    assert settings == {"beta": 1.0}
