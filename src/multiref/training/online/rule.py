"""How a policy is updated: from which completions, by which estimator, at which strength;
and what a run of it optimises, in words."""

from __future__ import annotations

from dataclasses import dataclass, field

from multiref.regularizers import Regularizer
from multiref.training.online.arguments import AdaptiveBeta
from multiref.training.online.methods import RLOO, Method
from multiref.training.online.penalty import Penalty
from multiref.training.online.warm_up import Sampler, WarmUp

__all__ = ["Rule", "describe"]


@dataclass(frozen=True)
class Rule:
    """The parts of an update that are a choice.

    Attributes:
        method: `RLOO(group=4)`, `Reinforce()`, `GRPO(…)`.
        penalty: a `Penalty`, its name, or None for an exact rule: "reference_samples" for forward KL where all vocabularies
            agree, else "reward", whose noise vanishes at the optimum, where all returns of a prompt are equal ("reward_to_go"
            has less early on, and keeps it).
        adaptive_beta: β that seeks a KL; None: β stays.
        sampler: (model, tokenizer, prompts) → rollouts, to sample elsewhere, such as a `ServerSampler`;
            they have to be samples of the policy at temperature 1, or to carry the log-probabilities they were sampled with
            (`Rollout.sampled_logps`), by whose ratio they are then weighted.
        warm_up: the first steps under another penalty, at states of given texts. Without a reward only.
    """

    method: Method = field(default_factory=RLOO)
    penalty: Penalty | str | None = None
    adaptive_beta: AdaptiveBeta | None = None
    sampler: Sampler | None = None
    warm_up: WarmUp | None = None


def describe(method: Method, penalty: Penalty, regularizer: Regularizer, beta: float) -> str:
    """What a run optimises, in a few lines for its start and its log."""
    lines = [
        f"{type(method).__name__}, group {method.group}; penalty {type(penalty).__name__} of β = {beta:g} times "
        f"{regularizer.formula}.",
        f"Optimum of this rule: {penalty.optimum}.",
    ]
    if not penalty.exact:
        lines.append("This is not the optimum of the regularizer as stated; the exact rule is the penalty `reward`.")
    return "\n".join(lines + [f"Note: {note}." for note in method.notes()])
