"""Which rows go through the model together: what shares a row, and batches by token budget after sorting by length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from multiref.errors import ArgumentError
from multiref.models.encoding import Encoded
from multiref.models.rows import row_length

Layout = Literal["shared", "batched", "alone"]  # a prompt once for its completions; rows side by side; one row a pass
LAYOUTS: tuple[Layout, ...] = ("shared", "batched", "alone")  # the fastest first
ROW_LIMIT = 2048  # attention grows with the square of a row: completions beyond this start another row with the prompt again
# rows that must fit into a pass for company to be worth its padding, and an audit of what long rows do beside others
FEWEST = 4


@dataclass(frozen=True)
class Batch:
    """One forward pass: items whose completions share a row each, or have one each; and where their scores go, item by item."""

    shared: bool
    items: tuple[Encoded, ...]
    places: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self.items) if self.shared else sum(len(item.completions) for item in self.items)


@dataclass(frozen=True)
class Span:
    """What rows are like. longest: tokens of context and completion of the longest; widest: completions of the widest group
    that shares a row; company, shortest: tokens of the longest and of the shortest row that has another beside it."""

    longest: int = 0
    widest: int = 1
    company: int = 0
    shortest: int = 2**62

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> "Span":
        longest, beside = 0, [0, 2**62]
        for batch in batches:
            lengths = [sequence_length(item, i) for item in batch.items for i in range(len(item.completions))]
            longest = max(longest, *lengths, 0)
            if batch.rows > 1:
                beside = [max(beside[0], *lengths), min(beside[1], *lengths)]
        widest = max((len(item.completions) for batch in batches if batch.shared for item in batch.items), default=1)
        return cls(longest, widest, *beside)

    @classmethod
    def around(cls, encoded: Sequence[Encoded]) -> "Span":
        """Of all rows of these items, however they may be laid out."""
        lengths = [sequence_length(item, i) for item in encoded for i in range(len(item.completions))]
        return cls(max(lengths), max(len(item.completions) for item in encoded), max(lengths), min(lengths))

    def __contains__(self, other: "Span") -> bool:
        return (
            other.longest <= self.longest
            and other.widest <= self.widest
            and other.company <= self.company
            and (not other.company or other.shortest >= self.shortest)
        )

    def joined(self, other: "Span") -> "Span":
        """All that is in one of the two."""
        return Span(
            max(self.longest, other.longest),
            max(self.widest, other.widest),
            max(self.company, other.company),
            min(self.shortest, other.shortest),
        )


def sequence_length(item: Encoded, index: int) -> int:
    """Tokens of the context and of completion `index`."""
    return len(item.context(index)) + len(item.completions[index])


def side_by_side(encoded: Sequence[Encoded], room: int) -> list[Encoded]:
    """Two rows like the shortest of these, and two of at most `room` tokens like the longest, cut: one completion each."""
    rows = [(item.context(i), ids) for item in encoded for i, ids in enumerate(item.completions)]
    shortest, *_, (context, ids) = 2 * sorted(rows, key=lambda row: len(row[0]) + len(row[1]))
    held = min(len(context), max(room - 1, 1))
    cut = context[:held], ids[: max(room - held, 1)]
    return [Encoded(before, (behind,), (False,)) for before, behind in 2 * [shortest, cut]]


def part_of(item: Encoded, indices: Sequence[int]) -> Encoded:
    """The same prompt with these of its completions."""
    return Encoded(
        item.prompt_ids,
        tuple(item.completions[i] for i in indices),
        tuple(item.truncated[i] for i in indices),
        tuple(item.contexts[i] for i in indices) if item.contexts else (),
    )


def plan_batches(
    encoded: Sequence[Encoded], layout: Layout, token_budget: int, *, within: Span | None = None, always: bool = False
) -> list[Batch]:
    """The forward passes over `encoded`, the longest rows first in each kind. Batches depend on these items alone.
    A row of more than a quarter of the budget has a pass of its own.

    within: what the layout was found right for; a longer row is scored alone, and one of a length that was not tried beside
        another has a pass of its own.
    always: every item is a row of one kind of batch, whatever sharing saves it and however long it is (training: one pass a
        batch).
    """
    units: dict[Layout, list[tuple[Encoded, tuple[int, ...]]]] = {"shared": [], "batched": [], "alone": []}
    first = 0
    always = always and layout == "shared" and any(len(item.completions) > 1 for item in encoded)
    for item in encoded:
        for kind, group in _units(item, layout, within, always):
            units[kind].append((part_of(item, group), tuple(first + i for i in group)))
        first += len(item.completions)
    batches = []
    for kind in LAYOUTS:
        lengths = [row_length(part, shared=kind == "shared") for part, _ in units[kind]]
        company = [
            kind != "alone" and (always or FEWEST * length <= token_budget) and _sociable(part, within)
            for (part, _), length in zip(units[kind], lengths)
        ]
        for sociable in (False, True):
            some = [n for n, each in enumerate(company) if each == sociable]
            for indices in token_budget_batches([lengths[n] for n in some], token_budget if sociable else 1):
                parts, places = zip(*(units[kind][some[i]] for i in indices))
                batches.append(Batch(kind == "shared", parts, places))
    return batches


def _units(item: Encoded, layout: Layout, within: Span | None, always: bool) -> Iterator[tuple[Layout, tuple[int, ...]]]:
    """What stays together: completions with a shared prompt where that saves something, one completion elsewhere."""
    everything = range(len(item.completions))
    if always:
        yield "shared", tuple(everything)
        return
    fits = [i for i in everything if within is None or sequence_length(item, i) <= within.longest]
    taken: set[int] = set()
    if layout == "shared" and _worth_sharing(item):
        for group in _groups(item, fits, len(item.completions) if within is None else within.widest):
            if len(group) > 1:
                taken.update(group)
                yield "shared", group
    for i in everything:
        if i not in taken:
            yield ("alone" if layout == "alone" or i not in fits else "batched"), (i,)


def _sociable(item: Encoded, within: Span | None) -> bool:
    """Whether rows of such lengths were tried beside others."""
    lengths = (sequence_length(item, i) for i in range(len(item.completions)))
    return within is None or all(within.shortest <= length <= within.company for length in lengths)


def _worth_sharing(item: Encoded) -> bool:
    """Whether sharing leaves out at least a tenth of the tokens; a mask of its own costs more attention than that saves
    below."""
    saved = len(item.prompt_ids) * (len(item.completions) - 1)
    return not item.contexts and saved > 0.1 * (saved + len(item.prompt_ids) + sum(map(len, item.completions)))


def _groups(item: Encoded, indices: Sequence[int], widest: int) -> Iterator[tuple[int, ...]]:
    group: list[int] = []
    length = len(item.prompt_ids)
    for index in indices:
        if group and (length + len(item.completions[index]) > ROW_LIMIT or len(group) == widest):
            yield tuple(group)
            group, length = [], len(item.prompt_ids)
        group.append(index)
        length += len(item.completions[index])
    if group:
        yield tuple(group)


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
