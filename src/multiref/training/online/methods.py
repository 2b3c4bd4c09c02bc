"""Policy-gradient methods as small values: group, baseline, ratio, clipping, how tokens are averaged.
What they may change beside the variance, they say."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multiref.errors import ArgumentError
from multiref.training.checks import check_choice, check_whole

NORMALISATIONS = {
    "sum": "a completion's tokens are summed: the gradient of the objective",
    "dr_grpo": "a completion's tokens are summed and divided by a constant: the gradient of the objective up to that constant",
    "completion_mean": "each completion's tokens are averaged: long ones count less per token, no gradient of the objective",
    "token_mean": "the tokens of the batch are averaged: prompts with long completions count more",
}


def leave_one_out(returns: Tensor, *, axis: int = 1) -> Tensor:
    """[P, G, *T] → [P, G, *T]: R_i − mean of the other G − 1 of its prompt (at the same token, where returns are to-go).
    axis: of G.

    Unbiased, for the others say nothing about completion i. It is G/(G − 1) times R_i − mean over all G:
    with the group mean instead, the reward (and a penalty in it) shrinks by (G − 1)/G while a penalty in the loss does not,
    so that β would silently become β G/(G − 1).

    Reference: RLOO, arXiv 2402.14740; the remark on β is DERIVED.
    """
    size = returns.shape[axis]
    if size < 2:
        raise ArgumentError(f"group: a leave-one-out baseline needs at least 2 completions of a prompt, found {size}.")
    return (returns - returns.mean(axis, keepdim=True)) * size / (size - 1)


def standardised(returns: Tensor, epsilon: float = 1e-4) -> Tensor:
    """[P, G, *T] → [P, G, *T]: (R_i − mean)/(standard deviation + ε) over the group: GRPO's usual habit.

    β then means β σ_x, σ_x the deviation of the group: with the penalty in the loss that is another optimum per prompt,
    and for small β none but the greedy policy; with the penalty in the reward the noise grows
    without bound as the optimum is neared, where all returns are equal.

    Reference: arXiv 2402.03300 for the rule; its optimum DERIVED (docs/theory.md 6).
    """
    centred = returns - returns.mean(1, keepdim=True)
    return centred / (returns.std(1, keepdim=True) + epsilon)


@dataclass(frozen=True)
class Method:
    """Abstract.

    Args:
        group: completions of each prompt.
        updates: optimizer steps on each batch of completions. More than one is off-policy and weighted by ratio.
        clip: ε of PPO's clipped ratio, no gradient beyond 1 ± ε in the direction of the advantage; None: not clipped, unbiased.
    """

    group: int = 4
    updates: int = 1
    clip: float | None = None

    ratio: ClassVar[str] = "completion"
    normalisation = "sum"

    def __post_init__(self) -> None:
        least = 1 if isinstance(self, Reinforce) else 2
        check_whole(self, least, "group")
        check_whole(self, 1, "updates")
        if self.clip is not None and not self.clip > 0:
            raise ArgumentError(f"clip: expected a number above 0, or None, found {self.clip!r}.")
        check_choice("normalisation", self.normalisation, NORMALISATIONS)

    def advantages(self, returns: Tensor) -> Tensor:
        """[P, G, *T] → [P, G, *T]."""
        return leave_one_out(returns)

    def notes(self) -> list[str]:
        """What this method does to the objective, one line each; empty where it leaves it alone."""
        if self.clip is None or self.updates == 1:
            return []
        return [f"ratios are clipped at {self.clip}: updates after the first of a batch are biased towards staying close"]


@dataclass(frozen=True)
class RLOO(Method):
    """Leave-one-out baseline, one ratio π/π_old a completion. Unbiased, on- and off-policy, while `clip` is None."""


@dataclass(frozen=True)
class Reinforce(Method):
    """REINFORCE with the mean return of all other completions of the pass as baseline; works with one completion a prompt."""

    group: int = 1

    def advantages(self, returns: Tensor) -> Tensor:
        """[P, G, *T] → [P, G, *T]: each return less the mean of all others of the pass; of a single one the return itself."""
        flat = returns.flatten(0, 1)[None]
        return (leave_one_out(flat) if flat.shape[1] > 1 else flat)[0].reshape(returns.shape)


@dataclass(frozen=True)
class GRPO(Method):
    """A ratio at each token, clipped, advantages of the group.

    Defaults are those of Dr. GRPO (arXiv 2503.20783), no division by the standard deviation nor by the length,
    with the leave-one-out factor G/(G − 1). `standardise=True` and `normalisation="completion_mean"` are the habits of the
    first GRPO; see `standardised` for what they do to the optimum.
    """

    group: int = 8
    clip: float | None = 0.2
    standardise: bool = False
    normalisation: str = "dr_grpo"

    ratio: ClassVar[str] = "token"

    def advantages(self, returns: Tensor) -> Tensor:
        """[P, G, *T] → [P, G, *T]: each return less the mean of its group's others, or standardised in its group."""
        return standardised(returns) if self.standardise else leave_one_out(returns)

    def notes(self) -> list[str]:
        lines = super().notes()
        if self.standardise:
            lines.append(
                "advantages are divided by each group's standard deviation: β means β · deviation, another for every prompt; "
                "with the penalty in the loss and β small the only fixed point is the greedy policy, with it in the reward the "
                "noise grows as the optimum is neared"
            )
        if self.normalisation not in ("sum", "dr_grpo"):
            lines.append(NORMALISATIONS[self.normalisation])
        if self.updates > 1:
            lines.append("ratios are of single tokens: after the first update of a batch the gradient is approximate")
        return lines
