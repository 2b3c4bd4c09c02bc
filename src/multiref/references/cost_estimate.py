"""What a run would cost, before it is started."""

import time
from dataclasses import dataclass
from itertools import accumulate

from multiref.references.plan import Block, Blocks
from multiref.references.protocol import Item, Reference

BYTES_PER_SCORE, BYTES_PER_SHARD = 36, 1200  # a key, a float64, an int32, a bit, a digest, Parquet's pages; and its footer
SAMPLE = 16  # completions scored to measure speed; they are not stored


@dataclass(frozen=True)
class CostEstimate:
    """One reference's part of a run: completions wanted, stored already and missing; shards, bytes;
    and, if measured, tokens and seconds."""

    name: str
    wanted: int
    stored: int
    missing: int
    shards: int
    bytes: int
    tokens: int | None
    seconds: float | None


def estimate_cost(name: str, reference: Reference, *, wanted: int, blocks: Blocks, measure: bool) -> CostEstimate:
    """The cost of one reference. With `measure`, a few of the missing completions are scored twice and the second time is
    scaled up by the amount of text; an estimate, within a factor of two or so, since longer batches run faster per token."""
    missing = blocks.completions
    tokens = seconds = None
    if measure and missing:
        sample = _sample(blocks)
        reference.score(sample)  # loads the model and warms it up
        start = time.perf_counter()
        scored = reference.score(sample)
        share = blocks.size() / max(Block(tuple(sample), ()).size(), 1)
        tokens, seconds = round(int(scored.lengths.sum()) * share), (time.perf_counter() - start) * share
    elif measure:
        tokens, seconds = 0, 0.0
    size = missing * BYTES_PER_SCORE + len(blocks) * BYTES_PER_SHARD
    return CostEstimate(name, wanted, wanted - missing, missing, len(blocks), size, tokens, seconds)


def _sample(blocks: Blocks) -> list[Item]:
    """A few items from the first block; blocks are in the order of hashes, so the first is as good as a random one."""
    too_few = sum(total < SAMPLE for total in accumulate(len(item.completions) for item in blocks[0].items))
    return list(blocks[0].items[: too_few + 1])
