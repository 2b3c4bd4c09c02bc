"""Which rows an audit compares: few, and those in which a layout that is wrong shows most."""

from collections.abc import Iterator, Sequence

from multiref.models.batching import Batch
from multiref.models.encoding import Encoded
from multiref.models.witness import length_of, singles_of

_FEW = 64  # completions: up to so many six rows are compared, beyond them three, or one in 240


def picked(batches: Sequence[Batch], *, everything: bool = False) -> list[Encoded]:
    """Single completions, in the order of what they are good for; among them the shortest, which costs least."""
    every = [each for batch in batches for item in batch.items for each in singles_of(item) if each.completions[0]]
    few = 6 if not is_large(batches) else min(16, max(3, len(every) // 240))
    count = len(every) if everything else min(len(every), few)
    shortest = min(every, key=length_of)
    best = [each for each in _by_worth(batches) if each.completions[0]]
    chosen = list(dict.fromkeys([*best[:2], shortest, *best[2:]]))[:count]
    if len(chosen) < count:
        chosen = list(dict.fromkeys([*chosen, *sorted(every, key=lambda each: each.digest(0))]))[:count]
    return list(dict.fromkeys([*chosen, shortest]))


def changeable(picks: Sequence[Encoded], *, many: bool) -> Encoded:
    """Whose end is changed to see whether a model is causal. The longest completion, for of one token little is left to change;
    of many rows the shortest one that will do."""
    enough = [each for each in picks if len(each.completions[0]) >= 8]
    return min(enough, key=length_of) if enough and many else max(picks, key=lambda each: len(each.completions[0]))


def is_large(batches: Sequence[Batch]) -> bool:
    """Whether a job is so large that an audit must be cheap beside it."""
    return sum(len(places) for batch in batches for places in batch.places) > _FEW


def _by_worth(batches: Sequence[Batch]) -> Iterator[Encoded]:
    """Completions, those first that tell most. Of a shared row the last completion: the others are before it."""
    rows = [(batch, [singles_of(item) for item in batch.items]) for batch in batches]
    each_row = [row for _, members in rows for row in members]
    longest = max(each_row, key=lambda row: max(map(length_of, row)))
    beside = [members if batch.shared else [[e] for row in members for e in row] for batch, members in rows if batch.rows > 1]
    yield max(longest, key=length_of)
    if beside:
        company = max(beside, key=lambda members: max(length_of(row[-1]) for row in members))
        spread = max(beside, key=lambda members: length_of(members[0][-1]) - length_of(members[-1][-1]))
        yield company[min(1, len(company) - 1)][-1]
        yield spread[-1][-1]
        yield company[0][-1]
        yield company[-1][-1]
    yield max(each_row, key=len)[-1]
    yield longest[-1]
