"""Which rows share a forward pass: the one place where a token budget cuts a step, for pairs and for rollouts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from multiref.errors import ArgumentError
from multiref.models import token_budget_batches

__all__ = ["cut_into_microbatches"]


def cut_into_microbatches(
    lengths: Sequence[int], token_budget: int | None, *, at_least: int = 1, routes: Sequence[Hashable] | None = None
) -> list[list[int]]:
    """Indices into `lengths`, cut into forward passes of rows × longest row ≤ token_budget, longest first;
    never fewer than `at_least`.

    A row above the budget is a pass of its own. None: one pass. Every rank must make as many passes, hence `at_least`.

    Args:
        routes: [rows]: only rows of the same route go together.
    """
    budget = max(1, len(lengths) * max(lengths, default=1)) if token_budget is None else token_budget
    members: dict[Hashable, list[int]] = {}
    for row in range(len(lengths)):
        members.setdefault(routes[row] if routes is not None else None, []).append(row)
    groups = [
        [rows[i] for i in part]
        for rows in members.values()
        for part in token_budget_batches([lengths[row] for row in rows], budget)
    ]
    while len(groups) < at_least:
        widest = max(range(len(groups)), key=lambda g: len(groups[g]))
        group = groups[widest]
        if len(group) == 1:
            raise ArgumentError(f"{len(lengths)} rows cannot be cut into {at_least} passes.")
        groups[widest : widest + 1] = [group[: len(group) // 2], group[len(group) // 2 :]]
    return groups
