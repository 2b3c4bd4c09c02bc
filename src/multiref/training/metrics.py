"""What a training run reports, from log-probabilities alone. Apart from the losses on purpose:
a metric never changes a gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from multiref._logspace import check_weights
from multiref.training.objectives import Objective, PairLogps, Preference


def reward_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """[B], [B] rewards → by the names that TRL's users read, [B] each; accuracy ½ at a tie."""
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (torch.sign(margin) + 1) / 2,
    }


@torch.no_grad()
def pair_metrics(objective: Objective, pairs: PairLogps, names: Sequence[str]) -> dict[str, Tensor]:
    """One value per pair, [B] each, under the names that TRL's users read.

    rewards/chosen, /rejected      implicit rewards of the whole completion
    rewards/margins, /accuracies   chosen − rejected; 1 where that is positive (½ at a tie)
    logps/chosen, /rejected        log π of the whole completion
    kl/<reference>                 log π − log π_k, averaged over the pair's two completions: the k1 estimator *on the data*,
                                   which is the reverse KL(π‖π_k) only where the completions are samples of π;
                                   on other data it is a log-ratio, and may be negative
    weights/<reference>            the weight in use
    log_ratio_clipped              share of the two completions whose implicit reward goes on with a constant slope (only where
                                   one can)
    """
    values = reward_metrics(*objective.rewards(pairs).unbind(-1))
    values |= {"logps/chosen": pairs.policy[:, 0], "logps/rejected": pairs.policy[:, 1]}
    margin, inner, shown = values["rewards/margins"], objective, pairs
    while hasattr(inner, "seen"):  # what weighs a pair is the inner one's, of what that is shown
        inner, shown = inner.seen(shown)
    weights = check_weights(inner.weights, len(names))
    for k, name in enumerate(names):
        values[f"kl/{name}"] = (pairs.policy - pairs.references[k]).mean(-1)
        values[f"weights/{name}"] = weights[k].to(margin).expand_as(margin)
    if isinstance(inner, Preference) and (beyond := inner.clipped(shown)) is not None:
        values["log_ratio_clipped"] = beyond.to(margin.dtype).mean(-1)
    return {name: value.detach() for name, value in values.items()}


def counted(values: Tensor, shares: Tensor) -> Tensor:
    """[*, B], [B] → [*]: their sum, each as it counts; what counts nothing is not looked at, be it infinite."""
    return torch.where(shares > 0, values * shares, 0.0).sum(-1)


class Averages:
    """Running averages over pairs, kept on the device and read when logged."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, values: dict[str, Tensor], shares: Tensor) -> None:
        """Values [B] of each name, and how much each pair counts, [B]."""
        for name, value in {"": torch.ones_like(shares), **values}.items():  # first how many pairs they are
            self._sums[name] = self._sums.get(name, 0) + counted(value, shares)

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The averages so far, over all ranks (`reduce` sums a tensor over them), and start again."""
        if not self._sums:
            return {}
        sums, self._sums = self._sums, {}
        totals = reduce(torch.stack(list(sums.values())))
        return {name: float(total / totals[0]) for name, total in zip(sums, totals) if name and totals[0] > 0}
