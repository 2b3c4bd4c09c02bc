"""How a policy is updated: from which completions, by which estimator, at which strength;
and what a run of it optimises, in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from multiref.errors import ArgumentError
from multiref.references.rollouts import Rollout
from multiref.regularizers import Regularizer
from multiref.training.checks import check_choice
from multiref.training.online.arguments import AdaptiveBeta
from multiref.training.online.methods import RLOO, Method
from multiref.training.online.penalty import Penalty

Sampler = Callable[[Any, Any, Sequence[Any]], list[Rollout]]


@dataclass(frozen=True)
class WarmUp:
    """For a student that is far from its teachers: the first `share` of the steps at states that `sampler` gives
    (`TextStates(texts, share=1.0, …)`), under `penalty`.

    Where a run ends is decided by what follows; this is where it starts from.
    At states of a text the student's own mistakes do not compound.

    Args:
        share: of the steps, from 0 to 1.
        penalty: "per_token_forward_kl", KL(ĝ_t‖π_t) to the pool ĝ_t renormalised at each state, or "per_token_reverse_kl".
            Others look at how likely the policy was to sample what it sees, and these states are not its samples.
    """

    share: float
    sampler: Sampler
    penalty: str = "per_token_forward_kl"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ArgumentError(f"warm_up: share: expected a number from 0 to 1, found {self.share}.")
        check_choice("warm_up: penalty", self.penalty, ("per_token_forward_kl", "per_token_reverse_kl"))

    def covers(self, step: int, steps: int) -> bool:
        """Whether this step, from 0, is one of the warm-up."""
        return step < round(self.share * steps)

    def describe(self, steps: int) -> str:
        """The line that a run prints of it."""
        return f"Warm-up: {round(self.share * steps)} of {steps} steps under {self.penalty}, at states of given texts."


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
