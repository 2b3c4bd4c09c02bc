"""Which pairs go together. An optimizer step always holds the same number of pairs, drawn at random;
inside a step they are sorted by length. And which rows share a forward pass, for pairs and for rollouts.

Batches filled up to a token budget would weigh a pair by the length of its neighbours (a step of few long pairs counts each of
them more). So the budget never decides *which* pairs make a step, only into how many passes a micro-batch is cut
(`cut_into_microbatches`), and the loss is averaged over the pairs of the whole step.
"""

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from torch.utils.data import Sampler

from multiref.errors import ArgumentError
from multiref.models import Encoded, token_budget_batches
from multiref.models.batching import ROW_LIMIT


@dataclass(eq=False)
class StepBatches(Sampler[list[int]]):
    """Micro-batches of one rank: lists of indices, as many on every rank, in an order that (seed, epoch) decides.

    A step takes `per_device × accumulation × world` pairs, the last one of an epoch what is left (or drops it).
    The pairs of a step are sorted by length and dealt so that micro-batches are homogeneous and ranks balanced.
    Where a rank would have nothing to do it gets a pair that fills without counting, index −1 − i.

    Args:
        lengths: [P] tokens of each pair.
        shuffle: a new random order in each epoch; otherwise the order of the data, also within a step.
    """

    lengths: "Sequence[int] | np.ndarray"
    per_device: int
    _: KW_ONLY
    accumulation: int = 1
    world: int = 1
    rank: int = 0
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    epoch: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.per_device < 1 or self.accumulation < 1:
            raise ArgumentError(f"batch: expected at least one pair a batch, found {self.per_device} × {self.accumulation}.")
        if self.drop_last and len(self.lengths) < self.per_step:
            raise ArgumentError(
                f"dataloader_drop_last leaves nothing of {len(self.lengths)} pairs at {self.per_step} a step; use smaller "
                "batches or keep the last one."
            )

    @property
    def per_step(self) -> int:
        """Pairs of an optimizer step."""
        return self.per_device * self.accumulation * self.world

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.lengths), self.per_step)
        return whole * self.accumulation + (0 if self.drop_last else -(-rest // (self.per_device * self.world)))

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.arange(len(self.lengths))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
            order = torch.randperm(len(order), generator=generator)
        for start in range(0, len(order), self.per_step):
            step = order[start : start + self.per_step].tolist()
            if len(step) < self.per_step and self.drop_last:
                return
            if self.shuffle:
                step.sort(key=lambda i: -self.lengths[i])
            count = -(-len(step) // (self.per_device * self.world))
            for a, b in itertools.pairwise(len(step) * c // count for c in range(count + 1)):
                yield step[a:b][self.rank :: self.world] or [-1 - step[b - 1]]  # this rank's share


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
            raise ArgumentError(
                f"{len(lengths)} rows cannot be cut into {at_least} passes. "
                "Expected at least one row for each pass: give larger batches, or fewer processes."
            )
        groups[widest : widest + 1] = [group[: len(group) // 2], group[len(group) // 2 :]]
    return groups


@dataclass
class _Row:
    """One prompt's row: which pairs it has, and its different completions in the order in which they came."""

    prompt: tuple[int, ...]
    length: int
    members: list[int] = field(default_factory=list)
    completions: dict[tuple[int, ...], bool] = field(default_factory=dict)  # ids → whether they were cut


def merge_pairs(encoded: Sequence[Encoded]) -> tuple[list[Encoded], list[list[int]], list[int]]:
    """Pairs of one prompt as one row with each different completion once: six pairs of four completions are a row of four.

    A row takes pairs up to 2,048 tokens. Returns the rows; which pairs each has; and for every completion of `encoded`, in
    order, its place among the completions of the rows.
    """
    rows: list[_Row] = []
    open_rows: dict[tuple[int, ...], _Row] = {}
    for index, item in enumerate(encoded):
        new = dict.fromkeys(item.completions)
        row = None if item.contexts else open_rows.get(item.prompt_ids)
        more = sum(len(ids) for ids in new if row is None or ids not in row.completions)
        if row is None or row.length + more > ROW_LIMIT:
            row, more = _Row(item.prompt_ids, len(item.prompt_ids)), sum(map(len, new))
            rows.append(row)
            if not item.contexts:
                open_rows[item.prompt_ids] = row
        row.members.append(index)
        row.length += more
        row.completions |= dict(zip(item.completions, item.truncated))
    merged = [
        encoded[row.members[0]]
        if len(row.members) == 1
        else Encoded(row.prompt, tuple(row.completions), tuple(row.completions.values()))
        for row in rows
    ]
    starts = itertools.accumulate((len(item.completions) for item in merged), initial=0)
    found: dict[int, list[int]] = {}
    for start, row, item in zip(starts, rows, merged):
        at = {ids: start + place for place, ids in enumerate(item.completions)}
        alone = list(range(start, start + len(item.completions)))
        found |= {i: alone if len(row.members) == 1 else [at[ids] for ids in encoded[i].completions] for i in row.members}
    return merged, [row.members for row in rows], [place for index in range(len(encoded)) for place in found[index]]
