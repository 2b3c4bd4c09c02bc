"""Policies under one yardstick by sampling, with error bars over prompts: where completions cannot be enumerated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref._logspace import check_weights
from multiref.errors import ArgumentError
from multiref.evaluation.compare import Comparison
from multiref.models import completion_logps
from multiref.models.encoding import Encoded, encode_many
from multiref.references.scores import same_vocabulary

__all__ = ["compare_samples", "drawn", "scored"]


@torch.inference_mode()
def compare_samples(
    policies: Mapping[str, Any],
    references: Mapping[str, Any],
    prompts: Sequence[Any],
    reward: Callable[[Any, str], float],
    *,
    weights: Any = None,
    beta: float,
    samples: int = 4,
    max_new_tokens: int = 128,
    correct: Callable[[Any, str], float] | None = None,
    seed: int = 0,
) -> Comparison:
    r"""Estimates of each policy from its own samples at temperature 1, one value a prompt, the same prompts for every policy.

        J = E_π[ r − β Σ_k w_k (log π − log π_k) ],     KL(π‖π_k) = E_π[log π − log π_k]      (k1, unbiased)

    The yardstick is reverse KL at `weights`. The KL is that of the first `max_new_tokens` tokens: a completion that has not ended by then is
    one outcome, "begins so", and its share is the metric `unfinished`. Several policies of one method (seeds) are several calls.

    Args:
        policies, references: name → `LanguageModel`, all with one vocabulary (VocabularyMismatch otherwise; token ids are scored, not text).
        reward, correct: (prompt, decoded completion) → number.
        samples: completions a prompt; their average is that prompt's value.

    A prompt's errors are independent of another's, so the error over prompts holds whatever `samples` is.
    """
    if samples < 1 or not prompts or not policies or not references:
        raise ArgumentError("compare_samples: expected at least one policy, reference, prompt and sample.")
    models = {**policies, **{f"reference {name}": each for name, each in references.items()}}
    same_vocabulary(list(models), [each.tokenizer.get_vocab() for each in models.values()])
    w = check_weights(weights, len(references)).double()
    columns: dict[str, list[list[float]]] = {}
    for policy in policies.values():
        figures = _of_policy(policy, references, prompts, reward, w, beta, samples, max_new_tokens, correct, seed)
        for metric, values in figures.items():
            columns.setdefault(metric, []).append(values)
    return Comparison(
        tuple(policies), "prompt", {metric: torch.tensor(rows, dtype=torch.float64) for metric, rows in columns.items()}
    )


def _of_policy(
    policy: Any,
    references: Mapping[str, Any],
    prompts: Sequence[Any],
    reward: Any,
    w: Tensor,
    beta: float,
    samples: int,
    limit: int,
    correct: Any,
    seed: int,
) -> dict[str, list[float]]:
    """metric → one value a prompt."""
    draws = [drawn(policy, prompt, samples, limit, seed + 7_919 * n) for n, prompt in enumerate(prompts)]
    items = [Encoded(context, completions, (False,) * samples) for context, completions in draws]
    logps = {name: scored(model.model, items) for name, model in {"": policy, **references}.items()}  # [prompts, samples] each
    end = policy.tokenizer.eos_token_id
    text = [[policy.tokenizer.decode(ids, skip_special_tokens=True) for ids in completions] for _, completions in draws]
    rewards = torch.tensor([[reward(prompt, t) for t in row] for prompt, row in zip(prompts, text)], dtype=torch.float64)
    gaps = torch.stack([logps[""] - logps[name] for name in references])
    figures = {"J": rewards - beta * (w[:, None, None] * gaps).sum(0), "reward": rewards}
    figures |= {f"KL(π‖{name})": gap for name, gap in zip(references, gaps)}
    figures["unfinished"] = torch.tensor([[float(ids[-1] != end) for ids in completions] for _, completions in draws])
    if correct is not None:
        figures["accuracy"] = torch.tensor([[correct(p, t) for t in row] for p, row in zip(prompts, text)], dtype=torch.float64)
    return {metric: values.double().mean(-1).tolist() for metric, values in figures.items()}


def drawn(policy: Any, prompt: Any, samples: int, limit: int, seed: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The context's ids and `samples` completions drawn from π, cut after the end token."""
    context = encode_many(policy.tokenizer, [(prompt, ())])[0].prompt_ids
    device = next(policy.model.parameters()).device
    ids = torch.tensor([context], device=device).expand(samples, -1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            repetition_penalty=1.0, num_beams=1, eos_token_id=policy.tokenizer.eos_token_id,
            pad_token_id=policy.tokenizer.eos_token_id,
        )  # fmt: skip
    completions = []
    for row in out[:, len(context) :].tolist():
        stop = row.index(policy.tokenizer.eos_token_id) + 1 if policy.tokenizer.eos_token_id in row else len(row)
        completions.append(tuple(row[:stop]))
    return context, tuple(completions)


@torch.inference_mode()
def scored(model: Any, items: Sequence[Encoded]) -> Tensor:
    """[prompts, samples] log-probabilities, as many samples of every prompt."""
    return torch.stack([completion_logps(model, [item]) for item in items]).cpu()
