"""What a run would cost, before it is started: measured here on some of the job, or reckoned for another cluster."""

import heapq
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from multiref._made import Made
from multiref.errors import ArgumentError
from multiref.models.size import count_parameters
from multiref.references.audits import agree_on_layout
from multiref.references.clusters import (
    CHARACTERS,
    EXTRAPOLATED,
    PLANNING,
    STORING,
    Cluster,
    Work,
    assumptions,
    reckon,
)
from multiref.references.engines import Engine
from multiref.references.plan import Block, Blocks, Texts, plan, shard_size_for
from multiref.references.resolve import Opener
from multiref.references.store import Store

BYTES_PER_SCORE, BYTES_PER_SHARD = 36, 1200  # a key, a float64, an int32, a bit, a digest, Parquet's pages; and its footer
MEASURED = "measured here"
SAMPLE = 256  # completions that are encoded to count tokens
_FIRST, _MOST, _PIECE, _SECONDS = 4, 512, 3.0, 9.0  # completions of the first pieces and of any; seconds of a piece, and of all


@dataclass(frozen=True)
class CostEstimate:
    """One reference's part of a run: completions wanted, stored already and missing; shards, bytes; tokens of completions;
    seconds by what they go to; and how these are known (`MEASURED` or `EXTRAPOLATED`).
    parameters: of a model that was reckoned with."""

    name: str
    wanted: int
    stored: int
    missing: int
    shards: int
    tokens: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)
    basis: str = MEASURED
    parameters: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the whole turn."""
        return sum(self.parts.values())

    @property
    def bytes(self) -> int:
        """That the store grows by."""
        return self.missing * BYTES_PER_SCORE + self.shards * BYTES_PER_SHARD


@dataclass(frozen=True)
class Forecast:
    """A whole run. planning: seconds until the first reference's turn."""

    cluster: Cluster
    references: Sequence[CostEstimate]
    planning: float

    @property
    def seconds(self) -> float:
        return self.planning + sum(each.seconds for each in self.references)

    @property
    def basis(self) -> str:
        return MEASURED if self.cluster.local else EXTRAPOLATED

    @property
    def assumptions(self) -> list[str]:
        """What is taken for granted, a line each."""
        if self.cluster.local:
            return [f"text scored for {_SECONDS:.0f} s stands for all of it, and the machine stays as busy as it was"]
        return assumptions(self.cluster, max((each.parameters for each in self.references), default=0.0))

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        references = [{**asdict(each), "seconds": each.seconds, "bytes": each.bytes} for each in self.references]
        own = {"cluster": str(self.cluster), "basis": self.basis, "planning": self.planning, "seconds": self.seconds}
        return {**own, "references": references, "assumptions": self.assumptions}


def measure_cost(name: str, opener: Opener, blocks: Blocks, missing: Blocks, engine: Engine, *, since: float) -> CostEstimate:
    """Does what the run would do, in a store that goes: opens, audits, starts the workers, and scores pieces of the missing
    blocks for a few seconds. Within 15 % on one and two workers of this machine, as long as it is as busy as now
    (benchmarks/cost.py). since: when its turn began."""
    left, wanted = missing.completions, len(blocks.keys)
    counted = CostEstimate(name, wanted, wanted - left, left, len(missing))
    if not left:
        return counted
    workers = getattr(engine, "count", lambda blocks: 1)(_Pieces.MANY)
    reference = opener()
    with TemporaryDirectory(prefix="multiref-", ignore_cleanup_errors=True) as folder:
        address = Store.address(reference.identity())
        opener.audit = agree_on_layout(opener, address, blocks, Store(folder), engine, False)
    audited, whole, timed = time.perf_counter(), missing.size(), 0
    pieces, done = _Pieces(missing, workers), list[tuple[float, int, int]]()  # when, its characters, its tokens
    with closing(engine.run(opener, pieces)) as results:
        for index, scored in results:
            now = time.perf_counter()
            done.append((now, pieces.characters.pop(index), int(scored.lengths.sum())))
            if len(done) <= 2 * workers:  # the first of each worker loads the model; the second says how large others are to be
                began = now
                continue
            timed += done[-1][1]
            pieces.resize((now - began) / (len(done) - 2 * workers) * workers)
            if (now - began > _SECONDS or timed > whole) and len(done) >= 4 * workers:
                break
    speed = timed / (done[-1][0] - began)  # characters a second, of all workers
    tokens = round(whole * sum(each[2] for each in done) / max(1, sum(each[1] for each in done)))
    started = done[workers - 1][0] - audited - sum(each[1] for each in done[:workers]) / speed
    parts = {
        "open, audit": audited - since,
        "start": max(0.0, started),
        "score": _makespan(missing.block_sizes(), workers) * workers / speed,
        "store": left * STORING,
    }
    return replace(counted, tokens=tokens, parts=parts)


def reckon_cost(name: str, opener: Opener, blocks: Blocks, missing: Blocks, cluster: Cluster, scale: float) -> CostEstimate:
    """The same for another cluster, from the model's configuration and tokenizer. scale: how many times as many pairs there
    will be."""
    reference: Any = opener()
    parameters = count_parameters(reference.spec) if hasattr(reference, "spec") else None
    if parameters is None:
        raise ArgumentError(
            f"{name!r} is no model folder or hub id whose size can be told; for a cluster say it: --parameters 7B."
        )
    completions = prompts = 0.0
    if missing:
        sample = _cut(missing[0], 0, SAMPLE)  # blocks are in the order of hashes: the first is as good as a random one
        encoded, share = reference.encode(sample.items), missing.size() / max(1, sample.size())
        completions = share * sum(len(ids) for each in encoded for ids in each.completions)
        prompts = share * sum(len(each.prompt_ids) for each in encoded)
    return _reckoned(
        name, len(blocks.keys), missing, tokens=(prompts, completions), parameters=parameters, cluster=cluster, scale=scale
    )


def imagine_costs(
    data: Iterable[Any], names: Sequence[str], parameters: float, cluster: str, *, shard_size: int | None, pairs: int | None
) -> Forecast:
    """The same for models of one size that are not here: `CHARACTERS` are a token. pairs: so many, of which `data` are some."""
    kind, texts = Cluster.parse(cluster), Texts(data)
    if kind.local:
        raise ArgumentError(f"cluster {cluster}: what is measured here needs the models; give references.")
    if not len(texts):
        raise ArgumentError("There is nothing to score: the data has no rows. Expected at least one pair.")
    blocks = plan(texts, shard_size=shard_size)
    both = blocks.size() / CHARACTERS
    completions = float(texts.characters[blocks.text].sum()) / CHARACTERS
    scale = (pairs or len(texts) / texts.stride) * texts.stride / len(texts)
    one = partial(_reckoned, tokens=(both - completions, completions), parameters=parameters, cluster=kind, scale=scale)
    found = [one(name, len(blocks.keys), blocks) for name in names]
    return Forecast(kind, found, PLANNING * found[0].wanted)


def _reckoned(
    name: str,
    wanted: int,
    missing: Blocks,
    *,
    tokens: tuple[float, float],
    parameters: float,
    cluster: Cluster,
    scale: float,
) -> CostEstimate:
    """tokens: of prompts, each once, and of completions."""
    left = round(scale * missing.completions)
    shards = len(missing) if scale == 1 else math.ceil(left / shard_size_for(left))
    parts = reckon(Work(left, shards, scale * sum(tokens)), parameters, cluster)
    wanted = round(scale * wanted)
    return CostEstimate(name, wanted, wanted - left, left, shards, round(scale * tokens[1]), parts, EXTRAPOLATED, parameters)


def _cut(block: Block, start: int, most: int) -> Block:
    """Items of a block from one on, with about so many completions, at least one item."""
    items = list(block.items[start : start + 1])
    for item in block.items[start + 1 :]:
        if sum(len(each.completions) for each in items) >= most:
            break
        items.append(item)
    return Block(tuple(items), block.keys[: sum(len(each.completions) for each in items)])


class _Pieces(Made[Block]):
    """Pieces of blocks, far more than are asked for, from blocks all over the job: each made when it is asked for, as large as
    is told by then. characters: of those that are under way, by index."""

    MANY: ClassVar = 100_000

    def __init__(self, blocks: Blocks, workers: int) -> None:
        self._blocks, self._limit, self._at = blocks, _FIRST, dict[int, int]()
        self._stride = max(1, len(blocks) // (8 * workers))
        self.characters: dict[int, int] = {}

    def __len__(self) -> int:
        return self.MANY

    def made(self, place: int) -> Block:
        number = place * self._stride % len(self._blocks)
        block, start = self._blocks[number], self._at.get(number, 0)
        piece = _cut(block, start, self._limit)
        self._at[number] = (start + len(piece.items)) % len(block.items)
        self.characters[place] = piece.size()
        return piece

    def resize(self, seconds: float) -> None:
        """Pieces took so long on average: the next are to take `_PIECE`."""
        self._limit = int(np.clip(self._limit * _PIECE / max(seconds, 1e-9), self._limit / 4, 4 * self._limit + 1))
        self._limit = max(_FIRST, min(_MOST, self._limit))


def _makespan(sizes: np.ndarray, workers: int) -> float:
    """Until the last is done, where each worker takes the next when it is free; in units of size."""
    free = [0.0] * workers
    for size in sizes.tolist():
        heapq.heapreplace(free, free[0] + size)
    return max(free)
