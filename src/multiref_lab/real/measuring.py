"""What a policy's answers are worth and how far it is from each reference, on held-out questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor

from multiref.models import LanguageModel, ModelSpec, Rollout, load
from multiref_lab.real.problems import Problem, correct


@dataclass(frozen=True)
class Measured:
    """A policy on held-out questions, [Q] each: their places among all, their kinds; how often the sampled answers are right
    and finished, their tokens; correctness of the greedy one (None: not asked).
    kls: KL(π‖π_k), nats an answer, [N] of the few questions on which it is measured."""

    places: Tensor
    kinds: tuple[str, ...]
    greedy: Tensor | None
    sampled: Tensor
    ended: Tensor
    tokens: Tensor
    kls: Mapping[str, Tensor]


def grade(problems: Sequence[Problem], rollouts: Sequence[Rollout]) -> Tensor:
    """[Q]: the share of a question's answers that are finished and right."""
    earned = [correct([problem.prompt] * len(r.ended), r.completions, r.ended) for problem, r in zip(problems, rollouts)]
    return torch.tensor([sum(each) / len(each) for each in earned], dtype=torch.float64)


def measure_kls(
    policy: LanguageModel, references: Mapping[str, Callable[[], LanguageModel]], rollouts: Sequence[Rollout]
) -> dict[str, Tensor]:
    r"""{reference: [N]}: Σ_t KL(π(·|s_t)‖π_k(·|s_t)) along each prompt's first answer y ~ π.

    Its mean over y is KL(π‖π_k) of whole answers, as that of Σ_t log π − log π_k at the drawn tokens is, with less noise.
    One reference is in memory at a time.
    """
    own = [next_token_logps(policy, each) for each in rollouts]
    found = {}
    for name, opened in references.items():
        reference = opened()
        theirs = (next_token_logps(reference, each) for each in rollouts)
        found[name] = torch.stack([(p.exp() * (p - q)).double().sum() for p, q in zip(own, theirs)])
    return found


@torch.no_grad()
def next_token_logps(model: LanguageModel, rollout: Rollout) -> Tensor:
    """[T, V]: log-probabilities at each token of the first completion."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids[0]]])
    network, asked = cast(Any, model.model), len(rollout.completion_ids[0]) + 1
    keep = {"logits_to_keep": asked} if "logits_to_keep" in signature(network.forward).parameters else {}
    logits: Tensor = network(input_ids=ids, use_cache=False, **keep).logits[0, -asked:-1]
    return logits.float().log_softmax(-1)


def load_merged(spec: ModelSpec) -> LanguageModel:
    """A model, its adapter in the weights: faster."""
    loaded = load(spec)
    whole: Any = loaded.model
    return replace(loaded, model=whole.merge_and_unload()) if hasattr(whole, "merge_and_unload") else loaded
