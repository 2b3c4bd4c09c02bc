"""A judge of two completions as the reward of online training: the policy plays against its own group."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from multiref.errors import ArgumentError
from multiref.training.checks import check_whole, read_chances
from multiref.training.online.methods import GRPO, Method, Reinforce

Judge = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], Sequence[float]]


def judge_by_reward(reward: Callable[..., Sequence[float]], *, temperature: float = 1.0) -> Judge:
    """reward(prompts, completions) → numbers as a judge: Bradley–Terry, σ((r(first) − r(second))/temperature)."""

    def judge(prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float]:
        margins = [a - b for a, b in zip(reward(prompts, first), reward(prompts, second), strict=True)]
        chances: list[float] = torch.sigmoid(torch.tensor(margins, dtype=torch.float64) / temperature).tolist()
        return chances

    judge.reward, judge.temperature = reward, temperature  # type: ignore[attr-defined]
    return judge


class WinRate:
    r"""Each completion's share of wins within its group of G: trained on, the policy ends at `exact.nash`.

        R_i = (½ + Σ_{j≠i} P(y_i ≻ y_j)) / G

    **Divided by G, not by G − 1.** Under a leave-one-out baseline the other completions' rewards depend on y_i too: they lose
    where it wins. The expected advantage of R is Pπ(y_i) up to a constant; the plain mean over the G − 1 others would have
    G/(G − 1) of it, and play the game at strength β (G − 1)/G (DERIVED, docs/theory.md 11).

    Costs G(G − 1)/2 comparisons a prompt, times `votes`, twice with `both_orders`. Equal completions are ½ and are not asked.

    Args:
        judge: (prompts, first completions, second completions) → chances in [0, 1] that the first is preferred; 1, 0 and ½ for
            labels and ties. `FunctionOracle` takes the same function.
        group: the method's.
        both_orders: ask in both orders and average, against a judge that favours a place.
        votes: how often a noisy judge is asked; the answers are averaged.

    Raises, when called: ArgumentError for answers that are not one number in [0, 1] each, or prompts not in groups.

    Reference: DERIVED; the game is that of arXiv 2602.23116, with K references.
    """

    def __init__(self, judge: Judge, *, group: int, both_orders: bool = False, votes: int = 1) -> None:
        self.judge, self.group, self.both_orders, self.votes = judge, group, both_orders, votes
        self.__name__ = "win_rate"
        check_whole(self, 2, "group")
        check_whole(self, 1, "votes")

    @staticmethod
    def check_baseline(method: Method) -> None:
        """ArgumentError for a method whose baseline is not leave-one-out over its group."""
        if isinstance(method, Reinforce) or (isinstance(method, GRPO) and method.standardise):
            raise ArgumentError(
                f"WinRate: found {method!r}, expected a leave-one-out baseline over the group: RLOO, or GRPO without "
                "standardise. Another baseline, or a division by the deviation, plays another game."
            )

    def check_method(self, method: Method) -> None:
        """ArgumentError for a method whose group is another one, or whose baseline is not leave-one-out over it."""
        self.check_baseline(method)
        if method.group != self.group:
            raise ArgumentError(f"WinRate: group is {self.group}, the method's is {method.group}; give both the same.")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N prompts, each `group` times in a row, and their completions → N shares of wins."""
        size, n = self.group, len(completions)
        if n % size or any(prompts[i] != prompts[i - i % size] for i in range(n)):
            raise ArgumentError(
                f"WinRate: found {n} completions whose prompts do not come {size} in a row; expected groups of {size}. "
                "(evaluate_online takes samples = group.)"
            )
        shares = [0.5] * n
        pairs = [(i, j) for i in range(n) for j in range(i + 1, i - i % size + size)]
        asked = [pair for pair in pairs if completions[pair[0]] != completions[pair[1]]]
        chances = dict(zip(asked, self._chances(prompts, completions, asked)))
        for i, j in pairs:
            chance = chances.get((i, j), 0.5)
            shares[i] += chance
            shares[j] += 1 - chance
        return [share / size for share in shares]

    def _chances(self, prompts: Sequence[Any], completions: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> list[float]:
        orders = [(1.0, pairs)] * self.votes
        if self.both_orders:
            orders = orders + [(-1.0, [(j, i) for i, j in pairs])] * self.votes
        total = [0.0] * len(pairs)
        for sign, ordered in orders if pairs else ():
            first, second = ([completions[pair[side]] for pair in ordered] for side in (0, 1))
            answers = read_chances(self.judge([prompts[i] for i, _ in ordered], first, second), len(ordered), "WinRate")
            total = [t + (a if sign > 0 else 1 - a) for t, a in zip(total, answers)]
        return [t / len(orders) for t in total]
