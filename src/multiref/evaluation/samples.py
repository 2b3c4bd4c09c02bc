"""Policies under one yardstick by sampling, with error bars over prompts: where completions cannot be enumerated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.evaluation.comparison import Comparison
from multiref.models.encoding import Encoded
from multiref.models.loading import LanguageModel
from multiref.models.sampling import Rollout, sample
from multiref.models.scoring import score_completions
from multiref.models.spec import Generation
from multiref.references.scores import same_vocabulary
from multiref.regularizers import check_weights

Judge = Callable[[Any, str], float]  # (prompt, decoded completion) → number


def compare_samples(
    policies: Mapping[str, LanguageModel],
    references: Mapping[str, LanguageModel],
    prompts: Sequence[Any],
    judges: Mapping[str, Judge],
    generation: Generation,
    *,
    weights: Any = None,
    beta: float,
    samples: int = 4,
    seed: int = 0,
) -> Comparison:
    r"""Estimates of each policy from its own samples, one value a prompt, the same prompts for every policy.

        J = E_π[ r − β Σ_k w_k (log π − log π_k) ],     KL(π‖π_k) = E_π[log π − log π_k]      (k1, unbiased)

    The yardstick is reverse KL at `weights`. The KL is that of the first `max_new_tokens` tokens:
    a completion that has not ended by then is one outcome, "begins so", and its share is the metric `unfinished`.
    Several policies of one method (seeds) are several calls.

    Args:
        policies, references: by name, all with one vocabulary (VocabularyMismatch otherwise; token ids are scored, not text).
        judges: name → function; "reward" is the r of J, others are averaged beside it.
        generation: at temperature 1 and with nothing cut, for the estimates are of π.
        samples: completions a prompt; their average is that prompt's value.

    A prompt's errors are independent of another's, so the error over prompts holds whatever `samples` is.
    """
    if samples < 1 or not prompts or not policies or not references or "reward" not in judges:
        raise ArgumentError(
            "compare_samples: expected at least one policy, reference, prompt and sample, and a judge `reward`."
        )
    if (generation.temperature, generation.top_k, generation.top_p, generation.min_new_tokens) != (1, 0, 1, 0):
        raise ArgumentError(f"compare_samples: expected samples of the policy as it is, found {generation}.")
    models = {**policies, **{f"reference {name}": each for name, each in references.items()}}
    same_vocabulary(list(models), [each.tokenizer.get_vocab() for each in models.values()])
    w = check_weights(weights, len(references)).double()
    columns: dict[str, list[Tensor]] = {}
    for policy in policies.values():
        rollouts = sample_each(policy, prompts, generation, group=samples, seed=seed)
        items = [rollout.encoded() for rollout in rollouts]
        own = score_samples(policy, items)
        gaps = torch.stack([own - score_samples(model, items) for model in references.values()])
        figures = {
            name: torch.tensor([[judge(r.prompt, text) for text in r.completions] for r in rollouts], dtype=torch.float64)
            for name, judge in judges.items()
        }
        figures = {"J": figures["reward"] - beta * (w[:, None, None] * gaps).sum(0), **figures}
        figures |= {f"KL(π‖{name})": gap for name, gap in zip(references, gaps)}
        figures["unfinished"] = 1 - torch.tensor([rollout.ended for rollout in rollouts], dtype=torch.float64)
        for metric, values in figures.items():
            columns.setdefault(metric, []).append(values.mean(-1))
    return Comparison(tuple(policies), "prompt", {metric: torch.stack(rows) for metric, rows in columns.items()})


def sample_each(
    policy: LanguageModel, prompts: Sequence[Any], generation: Generation, *, group: int, seed: int
) -> list[Rollout]:
    """`group` completions of each prompt, the n-th prompt's drawn from a seed of its own: they do not depend on the prompts
    beside it."""
    return [
        rollout
        for n, prompt in enumerate(prompts)
        for rollout in sample(
            policy.model,
            policy.tokenizer,
            [prompt],
            generation,
            group=group,
            generator=torch.Generator().manual_seed(seed + 7_919 * n),
        )
    ]


def score_samples(model: LanguageModel, items: Sequence[Encoded]) -> Tensor:
    """[prompts, samples] float64: log π of each completion, as many of every prompt."""
    return score_completions(model.model, items).view(len(items), -1)
