"""What scoring would take on other machines: reckoned from what makers say of their devices, and never run."""

import math
import re
from dataclasses import dataclass
from typing import Self

from multiref.errors import ArgumentError
from multiref.references.engines import Engine, LocalEngine

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


@dataclass(frozen=True)
class Work:
    """What is to be scored under one reference: completions in shards, tokens (of each prompt once, and of completions)."""

    completions: int
    shards: int
    tokens: float


def reckon(work: Work, parameters: float, cluster: Cluster) -> dict[str, float]:
    """Seconds of one reference's turn on a cluster, by what they go to.

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
    computing = 2 * parameters * work.tokens / (SHARE * device.flops)
    passing = work.tokens / PASS * weights / device.bandwidth
    rounds = math.ceil(work.shards / workers) / max(work.shards, 1)
    scoring = max(max(computing, passing) * rounds, work.completions * STORING)
    # the weights are read by the worker that audits the layout and then by all
    return {"start": 2 * START, "load": weights / HASHING + 2 * weights / READING, "score": scoring} if work.completions else {}


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
