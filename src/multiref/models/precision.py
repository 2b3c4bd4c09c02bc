"""`dtype: auto` on a processor: bfloat16 where it is at least 1.2 times as fast as float32, measured; and what it costs."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch

from multiref.errors import ArgumentError
from multiref.models.encoding import Encoded, context_of
from multiref.models.loading import best_device, load
from multiref.models.logps import score_completions
from multiref.models.spec import ModelSpec

FASTER, _REPEATS, _ROWS, _TOKENS = 1.2, 3, 8, 128


@dataclass(frozen=True)
class Precision:
    """What was chosen, and why.

    dtype: "float32" or "bfloat16". ratio: seconds in float32 over seconds in bfloat16, medians of three; NaN where nothing was
    measured. nats: the largest difference that bfloat16 made to a completion of `tokens` tokens.
    """

    dtype: str
    ratio: float = math.nan
    nats: float = math.nan
    tokens: int = 0

    def __str__(self) -> str:
        if math.isnan(self.ratio):
            return f"{self.dtype}, as on every accelerator; nothing was measured"
        return (
            f"{self.dtype}: here bfloat16 is {self.ratio:.2f} times as fast as float32 ({FASTER:g} is asked for), and moves a "
            f"completion of {self.tokens} tokens by up to {self.nats:.2g} nats"
        )


@cache
def choose_precision(spec: ModelSpec, *, clock: Callable[[], float] = time.perf_counter) -> Precision:
    """Loads the model once in each precision and scores the same random ids three times in each, in turn.

    On an accelerator bfloat16, unmeasured. ArgumentError for a quantised model, which has no such choice.
    """
    if spec.quantization is not None:
        raise ArgumentError(f"dtype: auto is between float32 and bfloat16; found quantization {spec.quantization} beside it.")
    if best_device().type != "cpu":
        return Precision("bfloat16")
    models = {dtype: load(replace(spec, dtype=dtype), device="cpu").model for dtype in ("float32", "bfloat16")}
    plain = models["float32"]
    tokens = min(_TOKENS, (context_of(plain.config) or 2 * _TOKENS) - 1)
    ids = torch.randint(plain.config.vocab_size, (_ROWS, tokens + 1), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [Encoded(tuple(row[:1]), (tuple(row[1:]),), (False,)) for row in ids]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    logps = {name: score_completions(model, rows, layout="batched") for name, model in models.items()}  # and warmed up
    for _ in range(_REPEATS):
        for name, model in models.items():
            began = clock()
            score_completions(model, rows, layout="batched")
            seconds[name].append(clock() - began)
    ratio = statistics.median(seconds["float32"]) / max(statistics.median(seconds["bfloat16"]), 1e-12)
    nats = float((logps["float32"] - logps["bfloat16"]).abs().max())
    return Precision("bfloat16" if ratio >= FASTER else "float32", ratio, nats, tokens)
