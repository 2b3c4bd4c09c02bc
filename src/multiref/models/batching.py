"""Which rows go through the model together: batches by token budget, after sorting by length."""

from collections.abc import Sequence

from multiref.errors import ArgumentError


def token_budget_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices into `lengths`, grouped so that (rows in a batch) × (longest row) ≤ token_budget; longest rows first.

    A row longer than the budget is a batch of its own. Ties keep their order, so that the same lengths give the same batches.
    The longest come first: what does not fit the memory fails at once, not after hours.
    """
    if token_budget < 1:
        raise ArgumentError(f"token_budget is {token_budget}; expected at least 1.")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
