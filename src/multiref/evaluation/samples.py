"""Policies under one yardstick by sampling, with error bars over prompts: where completions cannot be enumerated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.decoding.request import check_strength, check_whole, flat_weights
from multiref.decoding.rewarding import Rewarding
from multiref.errors import ArgumentError
from multiref.evaluation.comparison import Comparison
from multiref.evaluation.contestants import Contestant, RewardFunction, draw_each
from multiref.evaluation.measures import MEASURED, measure_divergences, measure_texts
from multiref.models.encoding import Encoded
from multiref.models.loading import LanguageModel
from multiref.models.logps import score_completions
from multiref.models.sampling import Rollout
from multiref.models.spec import Generation
from multiref.references.rollouts import RolloutScorer
from multiref.references.scores import same_vocabulary

Judge = Callable[[Any, str], float]  # (prompt, decoded completion) → number


def compare_samples(
    policies: Mapping[str, LanguageModel | Contestant],
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

        J = E_π[ r − β Σ_k w_k (log π − log π_k) ],     KL(π‖π_k) = E_π[log π − log π_k]      (k1, unbiased; k3 beside it)

    and what `measure_texts` says of the completions; win rates are against the first policy. The yardstick is reverse KL at
    `weights`. The KL is that of the first `max_new_tokens` tokens: a completion that has not ended by then is one outcome,
    "begins so", and its share is the metric `unfinished`. A policy is judged as it is sampled: temperature and cuts are part of
    it. Several policies of one method (seeds) are several calls.

    Args:
        policies, references: by name, all with one vocabulary (VocabularyMismatch otherwise; token ids are scored, not text).
            Beside models: `Optimum` (π*), `BestOf` (NaN where log π is not known), `TokenPool`.
        generation: how every policy is sampled. beta: strength of the penalty in J. seed: of all draws.
        judges: name → function; "reward" is the r of J, others are averaged beside it. A text is judged once a prompt.
        samples: completions a prompt; their average is that prompt's value.

    A prompt's errors are independent of another's, so the error over prompts holds whatever `samples` is.
    """
    beta, samples = check_strength(beta), check_whole("samples", samples, 1)
    named = all(isinstance(each, Mapping) and each for each in (policies, references, judges)) and "reward" in judges
    if not named or isinstance(prompts, str) or not prompts:
        raise ArgumentError(
            "compare_samples: expected policies and references by name, a list of prompts, and a judge `reward`: at least one "
            "of each."
        )
    for name, one in policies.items():
        if not isinstance(one, (LanguageModel, Contestant)):
            raise ArgumentError(f"policies: {name!r} is {one!r}; expected a LanguageModel, Optimum, BestOf or TokenPool.")
    if taken := sorted(judges.keys() & set(MEASURED)):
        raise ArgumentError(f"judges: {taken[0]!r} is a metric of its own here; give the judge another name.")
    models = {name: one for name, one in policies.items() if isinstance(one, LanguageModel)}
    models |= {f"reference {name}": each for name, each in references.items()}
    same_vocabulary(list(models), [each.tokenizer.get_vocab() for each in models.values()])

    def judged(judge: Judge) -> RewardFunction:
        """A judge as a reward function."""
        return lambda prompts, completions: [judge(prompt, each) for prompt, each in zip(prompts, completions)]

    reward = [judged(judges["reward"])] * len(prompts)
    drawn = {name: draw_each(one, prompts, reward, generation, group=samples, seed=seed) for name, one in policies.items()}
    found = {
        judge: {
            name: torch.stack([Rewarding(judged(function), None, judge)(each.prompt, each.completions) for each in rollouts])
            for name, rollouts in drawn.items()
        }
        for judge, function in judges.items()
    }
    scorer = RolloutScorer(dict(references), next(iter(references.values())).tokenizer)
    w = flat_weights(weights, len(references))
    metrics = measure_divergences(drawn, found["reward"], scorer, w, beta)
    metrics |= {judge: torch.stack([each.mean(-1) for each in values.values()]) for judge, values in found.items()}
    return Comparison(tuple(policies), "prompt", metrics | measure_texts(drawn, found["reward"]))


def sample_each(
    policy: LanguageModel, prompts: Sequence[Any], generation: Generation, *, group: int, seed: int
) -> list[Rollout]:
    """`group` completions of each prompt, the n-th prompt's drawn from a seed of its own: they do not depend on the prompts
    beside it."""
    unasked: RewardFunction = lambda prompts, completions: [0.0] * len(completions)  # noqa: E731
    return draw_each(policy, prompts, [unasked] * len(prompts), generation, group=group, seed=seed)


def score_samples(model: LanguageModel, items: Sequence[Encoded]) -> Tensor:
    """[prompts, samples] float64: log π of each completion, as many of every prompt."""
    return score_completions(model.model, items).view(len(items), -1)
