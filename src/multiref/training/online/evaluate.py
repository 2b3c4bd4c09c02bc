"""A policy's rewards on held-out prompts, with 95 % intervals over prompts; pass@k where a reward says right or wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from multiref._logspace import check_weights, weighted_sum
from multiref._progress import each_told, tell
from multiref.data.gsm8k import pass_rate
from multiref.errors import ArgumentError
from multiref.models import Encoded, encode_many, score_tokens
from multiref.models.encoding import context_of
from multiref.models.sampling import end_ids
from multiref.references.rollouts import Rollout, RolloutScorer
from multiref.training.online.batch import sample
from multiref.training.online.checks import as_rows, asked
from multiref.training.online.disagreement_smc import estimate_disagreement
from multiref.training.online.loop import OnlineTrainer
from multiref.training.online.rewards import reward_rollouts

Interval = tuple[float, float, float]


def evaluate_online(
    trainer: OnlineTrainer, rows: Sequence[Any], *, samples: int = 4, ks: Sequence[int] = (1,), seed: int = 0
) -> dict[str, Interval]:
    """{"reward": (mean, low, high), each reward's, "pass@k"} over prompts, `samples` completions each.
    The generators are left as they were found. `rows`: texts, or mappings with `prompt`, as the trainer's own prompts.

    pass@k is of the reward called `correctness`: right where it is above zero.
    """
    rows = as_rows(rows)
    rollouts = _drawn(trainer, rows, samples, seed)
    total, each = reward_rollouts(trainer.rewards, rows, rollouts, samples)
    figures = {"reward": _interval(total.reshape(-1, samples).mean(1))} if trainer.rewards else {}
    tables = {name: values.reshape(-1, samples) for name, values in each.items()}
    means = {name: table.nanmean(1) for name, table in tables.items()}  # of the completions that a reward applies to
    figures |= {f"rewards/{name}": _interval(values[~values.isnan()]) for name, values in means.items()}
    if "correctness" in tables:
        table = tables["correctness"]
        right = (table[~table.isnan().any(1)] > 0).tolist()
        figures |= {f"pass@{k}": pass_rate(right, k) for k in ks if k <= samples}
    return figures


def text_losses(trainer: OnlineTrainer, rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """{"student", and each reference}: nats per token of `text` after `prompt`, cut at `max_new_tokens` as completions are;
    mean over rows, 95 % interval.

    A row whose text is `unfinished` is not scored on an end token. Prompts that leave no room in the student's context are left
    out.
    """
    context = context_of(trainer.model.config)
    encoded = [
        e for row in rows for e in _cut(trainer, row) if context is None or len(e.prompt_ids) + len(e.completions[0]) <= context
    ]
    if not encoded:
        raise ArgumentError(
            f"rows: the student's context of {context} tokens holds none of the {len(rows)}, prompt and text. "
            "Give shorter ones, or cut them with max_new_tokens."
        )
    models = {"student": trainer.model}
    with _scorer(trainer).models() as references:
        models |= dict(zip(trainer.names, references))
        return {
            name: _interval(torch.stack([-x.double().mean() for x in score_tokens(model, encoded)]))
            for name, model in models.items()
        }


def floors(trainer: OnlineTrainer, rows: Sequence[Mapping[str, Any]], *, particles: int, seed: int = 0) -> torch.Tensor:
    """[rows] float64: −log F of each prompt, of completions cut at `max_new_tokens`.
    It is the teachers' alone: the same before and after."""
    with _scorer(trainer).models() as models:
        found = [
            estimate_disagreement(
                models,
                trainer.tokenizer,
                asked([row["prompt"]], trainer.args.chat_template_kwargs)[0],
                new_tokens=trainer.args.max_new_tokens,
                weights=w,
                particles=particles,
                seed=seed + i,
                ends=end_ids(trainer.model, trainer.tokenizer),
            )
            for i, (row, w) in enumerate(zip(each_told(rows, "estimating floors", len(rows)), _weights(trainer, rows)))
        ]
    return torch.tensor([value for value, _ in found], dtype=torch.float64)


def floor_figures(
    trainer: OnlineTrainer, rows: Sequence[Mapping[str, Any]], floors: torch.Tensor, *, samples: int, seed: int = 0
) -> dict[str, Interval]:
    """{"kl": Σ_k w_k KL(π‖π_k) of whole completions cut at `max_new_tokens`, by sampling; "floor": −log F of the same;
    "kl/floor": their ratio}, 95 % intervals.

    Over prompts; that of the ratio from both, to first order; none where teachers agree (each prompt is routed to one). The
    student and its teachers share one vocabulary.
    """
    rollouts = _drawn(trainer, rows, samples, seed, scored=True)
    weights = torch.stack(_weights(trainer, rows), 1).repeat_interleave(samples, 1)
    own = torch.tensor([sum(logps) for rollout in rollouts for logps in rollout.sampled_logps or ()], dtype=torch.float64)
    with torch.no_grad():
        log_ratio = own - weighted_sum(_scorer(trainer).completions(rollouts), weights)
    kls = log_ratio.reshape(-1, samples).mean(1)
    found = {"kl": _interval(kls), "floor": _interval(floors)}
    if not floors.mean() > 0:
        return found
    ratio = float(kls.mean() / floors.mean())
    residual = (kls - ratio * floors) / floors.mean()  # the delta method of a ratio of means
    return found | {"kl/floor": _interval(residual, ratio)}


def _drawn(
    trainer: OnlineTrainer, rows: Sequence[Mapping[str, Any]], samples: int, seed: int, *, scored: bool = False
) -> list[Rollout]:
    """`samples` completions of each row's prompt, a step's prompts side by side; the generators are left as they were found."""
    args, rollouts = trainer.args, []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(rows), args.prompts_per_step):
            tell("sampling", start, len(rows))
            prompts = [row["prompt"] for row in rows[start : start + args.prompts_per_step]]
            drawn = sample(
                trainer.model, trainer.tokenizer, prompts, args.generation,
                group=samples, tokenisation=args.tokenisation, scored=scored,
            )  # fmt: skip
            rollouts += drawn
        tell("sampling", len(rows), len(rows))
    return rollouts


def sample_few(trainer: OnlineTrainer, rows: Sequence[Mapping[str, Any]], count: int = 8) -> list[Rollout]:
    """One completion each of at most `count` of the prompts, spread over them; the generators are left as they were found."""
    few = min(count, len(rows))
    return _drawn(trainer, [rows[i * len(rows) // few] for i in range(few)], 1, seed=0)


def _scorer(trainer: OnlineTrainer) -> RolloutScorer:
    if trainer.scorer is None:
        raise ArgumentError("beta is 0: this run has no references to compare with; give it a β above 0.")
    return trainer.scorer


def _weights(trainer: OnlineTrainer, rows: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
    """[K] of each row: its own where prompts are routed."""
    return [check_weights(row.get("weights", trainer.regularizer.weights), len(trainer.names)) for row in rows]


def _cut(trainer: OnlineTrainer, row: Mapping[str, Any]) -> list[Encoded]:
    tokenisation = replace(trainer.args.tokenisation, end=not row.get("unfinished", False))
    (item,) = encode_many(trainer.tokenizer, [(row["prompt"], (row["text"],))], tokenisation)
    ids = item.completions[0][: trainer.args.max_new_tokens]
    return [Encoded(item.prompt_ids, (ids,), (False,))] if ids else []


def _interval(values: torch.Tensor, mean: float | None = None) -> Interval:
    """95 % around their mean, or around what they are the deviations of."""
    mean = float(values.mean()) if mean is None else mean
    error = 1.959964 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return mean, mean - error, mean + error
