"""A policy's rewards on held-out prompts, with 95 % intervals over prompts; pass@k where a reward says right or wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from multiref.training.online.rewards import total_reward
from multiref.training.online.rollout import sample

__all__ = ["evaluate_online", "text_losses"]

Interval = tuple[float, float, float]


def evaluate_online(
    trainer: Any, rows: Sequence[Mapping[str, Any]], *, samples: int = 4, ks: Sequence[int] = (1,), seed: int = 0
) -> dict[str, Interval]:
    """{"reward": (mean, low, high), each reward's, "pass@k"} over prompts, `samples` completions each. The generators are left as they were found.

    pass@k is of the reward called `correctness`: right where it is above zero.
    """
    from multiref.data.gsm8k import pass_rate

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    rollouts = []
    size = trainer.args.prompts_per_step
    for start in range(0, len(rows), size):
        prompts = [row["prompt"] for row in rows[start : start + size]]
        rollouts += sample(
            trainer.model,
            trainer.tokenizer,
            prompts,
            group=samples,
            max_new_tokens=trainer.args.max_new_tokens,
            cache=trainer.args.cache,
        )
    torch.set_rng_state(state)
    names = sorted({name for row in rows for name in row} - {"prompt", "weights"})
    columns = {name: [row.get(name) for row in rows for _ in range(samples)] for name in names}
    prompts = [rollout.prompt for rollout in rollouts for _ in range(samples)]
    completions = [completion for rollout in rollouts for completion in rollout.completions]
    total, each = total_reward(trainer.rewards, prompts, completions, columns)
    figures = {"reward": _interval(total.reshape(-1, samples).mean(1))} if trainer.rewards else {}
    figures |= {f"rewards/{name}": _interval(values.reshape(-1, samples).mean(1)) for name, values in each.items()}
    if "correctness" in each:
        right = (each["correctness"].reshape(-1, samples) > 0).tolist()
        figures |= {f"pass@{k}": pass_rate(right, k) for k in ks if k <= samples}
    return figures


def text_losses(trainer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """{"student", and each reference}: nats per token of `text` after `prompt`, cut at the student's context, mean over rows with a 95 % interval."""
    from multiref.models import encode_many, score_tokens
    from multiref.training.online.rollout import prompt_ids

    context = getattr(trainer.model.config, "max_position_embeddings", None)
    lengths = map(len, prompt_ids(trainer.tokenizer, [row["prompt"] for row in rows]))
    items = [(row["prompt"], (row["text"],)) for row, length in zip(rows, lengths) if context is None or length < context]
    encoded = encode_many(trainer.tokenizer, items, max_length=context)
    models = {"student": trainer.model}
    with trainer.scorer.models() as references:
        models |= dict(zip(trainer.names, references))
        return {
            name: _interval(torch.stack([-x.double().mean() for x in score_tokens(model, encoded)]))
            for name, model in models.items()
        }


def _interval(values: torch.Tensor) -> Interval:
    mean = float(values.mean())
    error = 1.959964 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return mean, mean - error, mean + error
