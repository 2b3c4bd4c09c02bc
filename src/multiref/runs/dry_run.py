"""What a run would do, found out without training: data, models, vocabularies, memory, time."""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from multiref.data import Pair
from multiref.errors import ModelError
from multiref.models import context_of, encode_many
from multiref.models.loading import count_parameters, load_config, load_tokenizer
from multiref.references.scores import same_vocabulary
from multiref.runs.base import BaseRun, PooledRun
from multiref.runs.iterative import IterativeRun
from multiref.runs.online import RolloutRun
from multiref.runs.pairs import PairsRun

_SAMPLE = 64  # pairs whose tokens are counted
_BECOMES = {"drop": "left out", "error": "refused"}


@dataclass
class Look:
    """lines: for people. facts: for programs."""

    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, line: str, value: Any) -> None:
        self.lines.append(f"{name:<12}{line}")
        self.facts[name] = value


def dry_run(run: BaseRun) -> Look:
    """Reads the data, and of each model its configuration and tokenizer; no weights.

    Raises: what the run itself would raise for these; ModelError for tokenizers that cannot be used together.
    """
    found = Look()
    found.add("task", f"{run.task}, into {run.output}", run.task)
    run.ready()
    pairs, number = _data(run, found)
    references = run.references if isinstance(run, PooledRun) else []
    models = {"policy": run.model} | {each.name: each.model for each in references if each.model is not None}
    tokenizers = {name: load_tokenizer(spec) for name, spec in models.items()}
    counts = {}
    for name, spec in models.items():
        counts[name] = count = count_parameters(spec)
        size = "unknown size" if count is None else f"{count / 1e6:,.4g} M parameters"
        context = context_of(load_config(spec))
        words = len(tokenizers[name].get_vocab())
        found.add(name, f"{spec.path}: {size}, vocabulary {words:,}, context {context or 'unknown'}", {
            "path": spec.path, "parameters": counts[name], "vocabulary": words, "context": context})  # fmt: skip
    try:
        same_vocabulary(list(tokenizers), [each.get_vocab() for each in tokenizers.values()])
        shared = True
    except ModelError:
        shared = False
    said = "the same everywhere" if shared else "not the same: sums of completions can be pooled, single tokens cannot"
    found.add("vocabulary", said, shared)
    _price(run, found, counts["policy"], sum(count or 0 for count in counts.values()), pairs, number, tokenizers["policy"])
    return found


def _data(run: BaseRun, found: Look) -> tuple[list[Pair], int]:
    """(some pairs, how many there are); of prompts only how many."""
    if isinstance(run, PairsRun):
        train, held_out = run.read(None, found.lines.append)
        found.add("data", f"{run.data.path}: {len(train):,} pairs, {len(held_out):,} held out",
                  {"pairs": len(train), "held_out": len(held_out)})  # fmt: skip
        return [train[place] for place in sorted({i * len(train) // _SAMPLE for i in range(_SAMPLE)})], len(train)
    rows = run.rows() if isinstance(run, RolloutRun | IterativeRun) else []
    found.add("data", f"{len(rows):,} prompts", {"prompts": len(rows)})
    return [], len(rows)


def _price(run: BaseRun, found: Look, own: int | None, total: int, pairs: list[Pair], number: int, tokenizer: Any) -> None:
    """Memory from the number of parameters; time from a matrix product on this machine: right to a factor of a few."""
    if (memory := run.memory()) is not None:
        found.add("memory", memory[1], memory[0])
    if own is None or not isinstance(run, PairsRun) or not pairs:
        return
    lengths, limit = _lengths(run, pairs, tokenizer)
    rows, mean = number * len(lengths) / len(pairs), sum(lengths) / max(len(lengths), 1)
    given = run.training.given()
    steps = given.get("max_steps", -1)
    batch = given.get("per_device_train_batch_size", 8) * given.get("gradient_accumulation_steps", 1)
    seen = 2 * steps * batch if steps and steps > 0 else rows * given.get("num_train_epochs", 3)
    work = (6 * own * seen + 2 * (total - own) * rows) * mean  # forward and backward; each reference once
    seconds = work / _speed()
    said = f"{mean:.0f} tokens a row"
    if (left := 1 - len(lengths) / (2 * len(pairs))) > 0:
        said += f"; about {left:.0%} of the pairs are longer than {limit} tokens and {_BECOMES[run.too_long]}"
    found.add("time", f"about {span(seconds)} on this machine, to a factor of a few ({said})", round(seconds, 1))


def _lengths(run: PairsRun, pairs: list[Pair], tokenizer: Any) -> tuple[list[int], int | None]:
    """(tokens of each row that is trained on, two a pair; the most there may be)."""
    limit = run.tokenisation.within(context_of(load_config(run.model))).max_length
    items = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    whole = encode_many(tokenizer, items, replace(run.tokenisation, max_length=None), origins=[pair.origin for pair in pairs])
    sides = [[len(each.prompt_ids) + len(ids) for ids in each.completions] for each in whole]
    most = max(map(max, sides)) if limit is None else limit
    return [min(n, most) for both in sides if run.too_long == "keep" or max(both) <= most for n in both], limit


def _speed() -> float:
    """Floating-point operations a second of a product of matrices here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.randn(512, 512, device=device)
    product = matrix @ matrix
    began = time.perf_counter()
    for _ in range(8):
        product = matrix @ product / 512
    float(product.sum())
    return 8 * 2 * 512**3 / (time.perf_counter() - began) / 3  # a model reaches a third of it


def span(seconds: float) -> str:
    """So long, in the unit that suits it."""
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
