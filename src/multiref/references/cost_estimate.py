"""What a run would cost, before it is started: measured here on some of the job, or reckoned for another cluster from what
makers say of their devices, and never run."""

import heapq
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import numpy as np

from multiref._made import Made
from multiref.errors import ArgumentError
from multiref.models.loading import count_parameters
from multiref.references.audits import agree_on_layout
from multiref.references.engines import Engine, LocalEngine
from multiref.references.plan import Block, Blocks, Texts, plan, shard_size_for
from multiref.references.resolve import Opener
from multiref.references.store import Store

EXTRAPOLATED = "extrapolated, never run"
GIB = 2**30

# Chosen from what was measured on two cores of an AMD EPYC, and taken for every machine.
SHARE = 0.5  # of the peak of matrix products that scoring reaches (benchmarks/cost.py; 0.35 to 0.84 by size and texts)
PLANNING = 60e-6  # seconds of the driver a completion, once: reading, keys, plan; of benchmarks/scale.py, and
STORING = 45e-6  # these for each reference, its block, its shard; divided between the two as a profile was
# What is assumed.
START = 20.0  # seconds: a worker comes up, with torch and transformers
READING, HASHING = 1e9, 1e9  # bytes of weights a second: from disk onto the device; into a fingerprint
PASS = 32768  # tokens of one forward pass on an accelerator: for each the weights are read once
ROOM = 1.2  # bytes of a device for each of weights: activations, logits
CHARACTERS = 4  # of a token, where there is no tokenizer to ask


@dataclass(frozen=True)
class Device:
    """A maker's figures: FLOP/s of dense bfloat16 products, bytes/s and bytes of its memory."""

    flops: float
    bandwidth: float
    memory: int
    source: str


DEVICES = {
    "A10": Device(125e12, 0.6e12, 24 * GIB, "NVIDIA A10 data sheet"),
    "A100-40": Device(312e12, 1.555e12, 40 * GIB, "NVIDIA A100 data sheet"),
    "A100": Device(312e12, 2.039e12, 80 * GIB, "NVIDIA A100 data sheet, SXM"),
    "B200": Device(2250e12, 8e12, 180 * GIB, "NVIDIA DGX B200 data sheet, one of 8, dense"),
    "H100": Device(989e12, 3.35e12, 80 * GIB, "NVIDIA H100 data sheet, SXM, dense"),
    "H200": Device(989e12, 4.8e12, 141 * GIB, "NVIDIA H200 data sheet, SXM, dense"),
    "L4": Device(121e12, 0.3e12, 24 * GIB, "NVIDIA L4 data sheet, dense"),
    "L40S": Device(362e12, 0.864e12, 48 * GIB, "NVIDIA L40S data sheet, dense"),
    "MI300X": Device(1307e12, 5.3e12, 192 * GIB, "AMD Instinct MI300X data sheet, dense"),
}


@dataclass(frozen=True)
class Cluster:
    """`count` devices of one kind; of the kind "local", this machine with so many workers."""

    count: int
    kind: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """'64xH100', '2xlocal'. ArgumentError for another form, and for a device that is not in the table."""
        found = re.fullmatch(r"\s*([1-9]\d{0,6})\s*[x×]\s*(\S+)\s*", text)
        known = ["local", *DEVICES]
        kind = found and next((each for each in known if each.lower() == found[2].lower()), None)
        if found is None or kind is None:
            raise ArgumentError(f"cluster {text!r}: expected COUNTxDEVICE, such as 64xH100; known: {', '.join(known)}.")
        return cls(int(found[1]), kind)

    @property
    def local(self) -> bool:
        return self.kind == "local"

    def engine(self) -> Engine:
        """The engine of so many workers here."""
        if self.count == 1:
            return LocalEngine()
        from multiref.references.engines.ray import RayEngine

        return RayEngine(workers=self.count)

    def __str__(self) -> str:
        return f"{self.count}x{self.kind}"


def reckon(completions: int, shards: int, tokens: float, parameters: float, cluster: Cluster) -> dict[str, float]:
    """Seconds of one reference's turn on a cluster, by what they go to. tokens: of each prompt once, and of completions.

    Scoring: 2 · parameters · tokens FLOP at `SHARE` of the peak, at least the time in which each pass reads the weights; shards
    in as many rounds as the workers need; at least what the driver needs to make them. ArgumentError where the model does not
    fit the cluster.
    """
    device, weights = DEVICES[cluster.kind], 2 * parameters
    each = math.ceil(ROOM * weights / device.memory)  # devices of a worker: its layers are spread, one works at a time
    workers = cluster.count // each
    if not workers:
        raise ArgumentError(
            f"cluster {cluster}: {parameters / 1e9:.3g} B parameters in bfloat16 need {each} devices of "
            f"{device.memory / GIB:.0f} GiB; found {cluster.count}. Take more, or a larger kind."
        )
    computing = 2 * parameters * tokens / (SHARE * device.flops)
    passing = tokens / PASS * weights / device.bandwidth
    rounds = math.ceil(shards / workers) / max(shards, 1)
    scoring = max(max(computing, passing) * rounds, completions * STORING)
    # the weights are read by the worker that audits the layout and then by all
    return {"start": 2 * START, "load": weights / HASHING + 2 * weights / READING, "score": scoring} if completions else {}


def assumptions(cluster: Cluster, parameters: float) -> list[str]:
    """What `reckon` takes for granted, a line each."""
    device = DEVICES[cluster.kind]
    each = math.ceil(ROOM * 2 * parameters / device.memory)
    return [
        f"{cluster.kind}: {device.flops / 1e12:,.0f} TFLOP/s in bfloat16, {device.bandwidth / 1e12:.3g} TB/s, "
        f"{device.memory / GIB:.0f} GiB ({device.source}); {each} a worker",
        f"{SHARE:.0%} of that peak is reached, as on the processor where it was measured; each prompt is computed once; passes "
        f"of {PASS:,} tokens",
        f"a worker starts in {START:.0f} s, twice for each reference (audit, scoring); weights are read at "
        f"{READING / 1e9:g} GB/s on all workers at once, and hashed at {HASHING / 1e9:g} GB/s",
        f"the driver takes {PLANNING * 1e6:.0f} µs a completion to read and plan, and {STORING * 1e6:.0f} µs for each "
        "reference to hand out and store",
    ]


# ---- measured here, or reckoned ----

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
    audited, whole, timed, spent = time.perf_counter(), missing.size(), 0, 0.0
    pieces, done, up = _Pieces(missing, workers), list[tuple[int, int]](), list[tuple[float, int]]()
    with closing(engine.run(opener, pieces)) as results:
        for index, scored in results:
            characters, seconds = pieces.end(index)
            done.append((characters, int(scored.lengths.sum())))
            if index < workers:  # the first of each worker loads the model
                up.append((time.perf_counter(), characters))
                continue
            pieces.resize(seconds)
            if index >= 2 * workers:  # the second of each said how large others are to be
                timed, spent = timed + characters, spent + seconds
            enough = timed > whole or time.perf_counter() - up[-1][0] > _SECONDS
            if enough and len(up) == workers and len(done) >= 4 * workers:
                break
    speed = workers * timed / spent  # characters a second
    tokens = round(whole * sum(each[1] for each in done) / max(1, sum(each[0] for each in done)))
    started = up[-1][0] - audited - up[-1][1] * workers / speed
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
    scale = (pairs or texts.rows) / texts.rows
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
    parts = reckon(left, shards, scale * sum(tokens), parameters, cluster)
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
    is told by then."""

    MANY: ClassVar = 100_000

    def __init__(self, blocks: Blocks, workers: int) -> None:
        self._blocks, self._limit, self._at = blocks, _FIRST, dict[int, int]()
        self._under_way: dict[int, tuple[int, float]] = {}  # characters, and since when
        self._stride = max(1, len(blocks) // (8 * workers))

    def __len__(self) -> int:
        return self.MANY

    def made(self, place: int) -> Block:
        number = place * self._stride % len(self._blocks)
        block, start = self._blocks[number], self._at.get(number, 0)
        piece = _cut(block, start, self._limit)
        self._at[number] = (start + len(piece.items)) % len(block.items)
        self._under_way[place] = piece.size(), time.perf_counter()
        return piece

    def end(self, place: int) -> tuple[int, float]:
        """A piece's characters, and the seconds that it took."""
        characters, began = self._under_way.pop(place)
        return characters, time.perf_counter() - began

    def resize(self, seconds: float) -> None:
        """A piece took so long: the next are to take `_PIECE`."""
        self._limit = int(np.clip(self._limit * _PIECE / max(seconds, 1e-9), self._limit / 4, 4 * self._limit + 1))
        self._limit = max(_FIRST, min(_MOST, self._limit))


def _makespan(sizes: np.ndarray, workers: int) -> float:
    """Until the last is done, where each worker takes the next when it is free; in units of size."""
    free = [0.0] * workers
    for size in sizes.tolist():
        heapq.heapreplace(free, free[0] + size)
    return max(free)
