"""What a model says of rows: plainly, one sequence at a time, and laid out as they will run. The audit compares the two, on few
rows, and those in which a layout that is wrong shows most."""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]  # accelerate brings it
import torch
from torch import Tensor, nn

from multiref.models.architecture import left_as_it_was, turn
from multiref.models.batching import Batch, sequence_length
from multiref.models.encoding import Encoded
from multiref.models.forward import Plain, device_of, forward_logps, plain_logps
from multiref.models.rows import lay_out

T = TypeVar("T")
Scores = dict[tuple[Batch, bool], list[Tensor]]
_FEW = 64  # completions: up to so many six rows are compared, beyond them three, or one in 240


class NoCopy(Exception):
    """Why there is no copy of a model in another dtype."""


class Witness:
    """A model (the one that scores, or a copy in a wider dtype) and what it says, asked once.

    most: tokens of a long completion that are compared, evenly spread from its first to its last; None: all.
    """

    def __init__(self, model: Any, logits_budget: int, most: int | None = None) -> None:
        self.model, self.logits_budget, self.most = model, logits_budget, most
        self.told: dict[Encoded, Plain] = {}
        self.planned: Scores = {}
        self.took: dict[tuple[Batch, bool], float] = {}
        self.stateful = False

    def widened(self, dtype: torch.dtype) -> "Witness":
        """The same model in another dtype. NoCopy where memory does not hold it, or what it has of its own forbids it."""
        parameters = list(self.model.parameters())
        if is_sharded(self.model):
            raise NoCopy("the model is sharded")
        need = dtype.itemsize * sum(each.numel() for each in parameters)
        if len({each.device for each in parameters}) > 1 or 1.5 * need > free_memory(device_of(self.model)):
            raise NoCopy("no memory")
        try:
            with turn(self.model):  # no thread has its head replaced
                made = copy.deepcopy(self.model)
            return Witness(made.to(dtype), self.logits_budget, self.most)
        except torch.OutOfMemoryError:
            raise NoCopy("no memory") from None
        except Exception as error:  # quantised weights, hooks that cannot be copied
            raise NoCopy(f"no copy in another dtype ({type(error).__name__})") from error

    def plain(self, each: Encoded) -> Plain:
        if each not in self.told:
            self.told[each] = self.fresh(each)
        return self.told[each]

    def fresh(self, each: Encoded) -> Plain:
        return self._alone(each.context(0) + each.completions[0], each.completions[0], len(each.context(0)) - 1)

    def with_other_end(self, each: Encoded) -> Tensor:
        """Log-probabilities of the first half of the completion, the inputs behind it being others."""
        context, ids = each.context(0), each.completions[0]
        half = (len(ids) - 1) // 2
        known = sorted({*context, *ids})
        known = known if len(known) > 1 else [*known, known[0] - 1 if known[0] else 1]
        other = tuple(known[(known.index(token) + 1) % len(known)] for token in ids[half:])
        row, labels, first = context + ids[:half] + other, ids[: half + 1], len(context) - 1
        at = tuple(range(half + 1)) if self.plain(each).of_head else None
        return self._rested(lambda: plain_logps(self.model, row, labels, first, at=at)).logps

    def in_batch(self, batch: Batch, head: bool, vocabulary: int) -> list[Tensor]:
        """Token log-probabilities of each completion of a batch, as it runs."""
        if (batch, head) not in self.planned:
            start = time.perf_counter()
            logps = self._in_one_pass(batch.items, shared=batch.shared, head=head, vocabulary=vocabulary)
            self.planned[batch, head] = list(logps.split([len(ids) for item in batch.items for ids in item.completions]))
            self.took[batch, head] = time.perf_counter() - start
        return self.planned[batch, head]

    def padded(self, each: Encoded, width: int, head: bool, vocabulary: int) -> Tensor:
        """As beside a row of this width."""
        return self._in_one_pass([each], shared=False, width=width, head=head, vocabulary=vocabulary)

    def spread(self, each: Encoded) -> Tensor:
        """How far padding alone moves each token: the most of two widths."""
        plain = self.plain(each)
        padded = [self.padded(each, length_of(each) + more, False, plain.vocabulary) for more in (8, 61)]
        return torch.stack([difference(*plain.beside(one)) for one in padded]).amax(0)

    def _alone(self, row: tuple[int, ...], labels: tuple[int, ...], first: int) -> Plain:
        known = next(iter(self.told.values()), None)
        at = None
        if known is not None and known.of_head and len(row) * known.vocabulary > self.logits_budget // 4:
            count = len(labels) if self.most is None else min(len(labels), self.most)
            at = tuple(dict.fromkeys(round(i * (len(labels) - 1) / max(1, count - 1)) for i in range(count)))
        return self._rested(lambda: plain_logps(self.model, row, labels, first, at=at))

    def _in_one_pass(self, items: Sequence[Encoded], *, shared: bool, width: int = 0, **how: Any) -> Tensor:
        rows = lay_out(items, shared=shared, width=width, device=device_of(self.model))
        return self._rested(lambda: forward_logps(self.model, rows, budget=self.logits_budget, **how)).cpu()

    def _rested(self, run: Callable[[], T]) -> T:
        with left_as_it_was(self.model) as changed:
            result = run()
        self.stateful |= any(changed)
        return result


def singles_of(item: Encoded) -> list[Encoded]:
    """Each completion by itself, with its own context."""
    return [Encoded(item.context(i), (ids,), (item.truncated[i],)) for i, ids in enumerate(item.completions)]


def length_of(each: Encoded) -> int:
    return sequence_length(each, 0)


def difference(one: Tensor, other: Tensor) -> Tensor:
    """|one − other|, zero where both exclude a token alike."""
    one, other = one.double(), other.double()
    return torch.where(one == other, 0.0, (one - other).abs())


def largest_gap(one: Tensor, other: Tensor) -> float:
    return float(difference(one, other).max()) if len(one) else 0.0


def rms_gap(one: Tensor, other: Tensor) -> float:
    return float(difference(one, other).square().mean().sqrt())


def dtype_of(model: nn.Module) -> torch.dtype:
    """The narrowest floating dtype among the parameters."""
    kinds = {each.dtype for each in model.parameters() if each.is_floating_point()}
    return min(kinds, key=lambda kind: kind.itemsize, default=torch.float32)


def is_sharded(model: nn.Module) -> bool:
    """Whether a pass is made by all ranks together (FSDP2, DeepSpeed's third stage)."""
    return any(hasattr(each, "ds_id") or type(each).__name__ == "DTensor" for each in model.parameters())


def free_memory(device: torch.device) -> int:
    """Bytes that this device could give."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


# ---- which rows ----


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
    """Completions, those first that tell most. Of a shared row the last one of two tokens: the others are before it, and a
    first token has the prompt alone before it wherever it lies."""

    def telling(row: Sequence[Encoded]) -> Encoded:
        return next((each for each in reversed(row) if len(each.completions[0]) > 1), row[-1])

    def worth(row: Sequence[Encoded]) -> tuple[bool, int]:
        return any(len(each.completions[0]) > 1 for each in row[1:]), len(row)

    rows = [(batch, [singles_of(item) for item in batch.items]) for batch in batches]
    each_row = [row for _, members in rows for row in members]
    longest, widest = max(each_row, key=lambda row: max(map(length_of, row))), max(each_row, key=worth)
    beside = [members if batch.shared else [[e] for row in members for e in row] for batch, members in rows if batch.rows > 1]
    yield max(reversed(longest), key=length_of)
    if any(batch.shared for batch in batches):
        yield telling(widest)
    if beside:
        company = max(beside, key=lambda members: max(length_of(row[-1]) for row in members))
        spread = max(beside, key=lambda members: length_of(members[0][-1]) - length_of(members[-1][-1]))
        yield company[min(1, len(company) - 1)][-1]
        yield spread[-1][-1]
        yield company[0][-1]
        yield company[-1][-1]
    yield telling(widest)
    yield telling(longest)


def beyond_rounding(logps: Tensor, others: Tensor, lengths: Tensor, unit: float) -> tuple[Tensor, int | None]:
    """[N] of completions of [N] tokens under one model, computed twice → how far apart they are a token; and the place of the
    worst of those that are further apart than rounding:

        16 ε min(1, max(4, |log π| / T) / 2√T) a token, and 1e-4 in any case

    for T tokens in a format with unit ε: what each token is off by grows with the size of its logits and half cancels in the
    sum. (Measured in bfloat16 and float16, trained and random models, likely and unlikely texts of 5 to 200 tokens: at most a
    third of it.)
    """
    tokens, others = lengths.cpu().clamp_min(1).double(), others.double().cpu()
    each = (logps.double().cpu() - others).abs() / tokens
    size = (others.abs() / tokens).clamp_min(4) / (2 * tokens.sqrt())
    over = each / (16 * unit * size.clamp_max(1)).clamp_min(1e-4)
    return each, None if bool((over <= 1).all()) else int(over.nan_to_num(torch.inf).argmax())
