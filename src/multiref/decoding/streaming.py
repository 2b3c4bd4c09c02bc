"""The per-token pool, one token of each row at a time, and the text that these tokens spell."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from multiref.decoding.bench import Bench, opened
from multiref.decoding.request import Budget, Request, check_memory
from multiref.errors import ArgumentError, EmptyPoolError
from multiref.models.architecture import check_rows, run
from multiref.models.draws import bend, check_numbers, draw_one
from multiref.models.encoding import Encoded, Ids
from multiref.models.forward import uncached
from multiref.models.lockstep import Lockstep, at_rest
from multiref.models.sampling import decode_behind, encode_prompts
from multiref.models.spec import Generation
from multiref.pools import power_mean
from multiref.regularizers import Regularizer

_BLOCK = 2**24  # log-probabilities of a block of the prompt, of one model


@dataclass(frozen=True)
class Drawn:
    """A token of a row. logp: under the pool as it is, temperature 1 and nothing cut; top: likeliest tokens, with theirs.
    log_q: under what it was drawn from."""

    row: int
    token: int
    logp: float
    top: tuple[tuple[int, float], ...] = ()
    log_q: float = math.nan


def open_pool(refs: Any, regularizer: Regularizer) -> AbstractContextManager[Bench]:
    """The references, loaded, to be pooled token by token. VocabularyMismatch where they have not one vocabulary."""
    return opened(refs, Request(regularizer, None, 1.0, "token", "pool", 1, 1, Generation(1), False, None, Budget(), 0), True)


def draw_tokens(
    bench: Bench,
    context: Ids,
    generation: Generation,
    *,
    rows: int = 1,
    generator: torch.Generator,
    top: int = 0,
    closed: set[int] | None = None,
) -> Iterator[list[Drawn]]:
    """The next token of each open row, step by step, drawn from the pool renormalised at each token (another distribution than
    the escort, docs/decoding.md), at the temperature and within the cuts of `generation`.

    A row closes with an end token, which is the last it gives. closed: rows that the caller closes, before the next step.
    On an accelerator every eighth step is waited for, and the steps before it are given with it.
    Errors: ArgumentError before the first token, where context or caches do not fit; EmptyPoolError where nothing can follow.
    """
    new, models, closed = generation.max_new_tokens, bench.models, set() if closed is None else closed
    bench.scorer.check_context([context], new)
    replace(bench.request, generation=generation).check_ends(bench.ends)
    check_memory(models, rows, len(context) + new)
    with at_rest(models):
        step = Lockstep(models, context, rows, new)
    end = torch.tensor(bench.ends, dtype=torch.long, device=step.device)
    weights, order = bench.weights.to(step.device), bench.request.regularizer.order
    full = None if step.patience == 1 else True  # who has no weight is not here
    alive, token = list(range(rows)), torch.empty(0, 1, dtype=torch.long)
    held: list[tuple[Tensor, ...]] = []
    for t in range(new):
        with at_rest(models):
            if t:
                step.read(token[:, 0])
            mass = power_mean(step.logps(), weights, order, full)
            may = mass if t >= generation.min_new_tokens else mass.index_fill(-1, end, -torch.inf)
            pool = mass.log_softmax(-1)
            bent = bend(pool, generation, end, t)
            greedy = generation.temperature == 0
            token = bent.argmax(-1, keepdim=True) if greedy else draw_one(bent.softmax(-1), generator)
            held.append((may.amax(-1), *_seen(pool, bent.log_softmax(-1), token, top)))
        if t < new - 1 and t % step.patience != step.patience - 1:
            continue
        block = [torch.stack(each).tolist() for each in zip(*held)]
        for place, (most, *seen) in enumerate(zip(*block), t + 1 - len(held)):
            drawn = [each for each in _drawn(alive, *seen) if each.row not in closed]
            _check_mass((one for row, one in zip(alive, most) if row not in closed), f"After {place} tokens")
            if drawn:
                yield drawn
            closed |= {each.row for each in drawn if each.token in bench.ends}
        held.clear()
        kept = [place for place, row in enumerate(alive) if row not in closed]
        if not kept:
            return
        if len(kept) < len(alive):
            with at_rest(models):
                places = torch.tensor(kept, device=step.device)
                step.keep(places)
                token, alive = token[places], [alive[place] for place in kept]


@torch.inference_mode()
def read_tokens(bench: Bench, ids: Ids, top: int = 0, *, first: int = 1) -> list[Drawn]:
    """What the pool says of the tokens of a text from place `first` on (at least 1), each given those before it."""
    vocabulary = max(model.config.get_text_config().vocab_size for model in bench.models)
    check_memory(bench.models, 0, 0, more=4 * vocabulary * (len(ids) + 3) * (len(bench.models) + 1))
    for model in bench.models:
        check_rows(model, [Encoded(ids[:-1], (), ())])
    row = torch.tensor([ids])
    with at_rest(bench.models):
        each = [run(m, input_ids=row[:, :-1].to(m.device), **uncached(m)).logits[0, first - 1 :] for m in bench.models]
    width = min(logits.shape[-1] for logits in each)
    if max(ids[first:]) >= width:
        raise ArgumentError(
            f"Token {max(ids[first:])} is in the text, and the references predict tokens below {width}. "
            "Leave it out of the text: a tokenizer may have tokens that its model has not."
        )
    found: list[Drawn] = []
    size = max(1, _BLOCK // width)
    for start in range(0, len(each[0]), size):
        logits = [part[start : start + size, :width].to(each[0].device) for part in each]
        said = torch.stack([part.to(torch.promote_types(part.dtype, torch.float32)).log_softmax(-1) for part in logits])
        here = row[0, first + start : first + start + size, None].to(said.device)
        mass = power_mean(said, bench.weights.to(said.device), bench.request.regularizer.order)
        _check_mass(mass.amax(-1).tolist(), "Somewhere in this text")
        pool = mass.log_softmax(-1)
        found += _drawn([0] * len(here), *(each.tolist() for each in _seen(pool, pool, here, top)))
    return found


def _check_mass(most: Iterable[float], where: str) -> None:
    """The largest log-mass of a next token of each row: EmptyPoolError where none has any, ModelError for NaN."""
    least = min(most, key=lambda one: -math.inf if math.isnan(one) else one, default=0.0)
    check_numbers(torch.tensor(least))
    if least == -math.inf:
        raise EmptyPoolError(
            f"{where} nothing can follow: each token is forbidden, by some reference or by min_new_tokens. "
            "Leave a reference out, or give it weight 0."
        )


def _seen(pool: Tensor, q: Tensor, token: Tensor, top: int) -> tuple[Tensor, ...]:
    """Of each row: its token, log of pool and q there, the likeliest ones of the pool, and theirs."""
    best = pool.topk(min(top, pool.shape[-1]), -1)
    return (token[:, 0], *(law.gather(-1, token)[:, 0] for law in (pool, q)), best.indices, best.values)


def _drawn(rows: Sequence[int], *seen: Sequence[Any]) -> list[Drawn]:
    own = zip(rows, *seen)
    return [Drawn(row, index, logp, tuple(zip(likeliest, theirs)), log_q) for row, index, logp, log_q, likeliest, theirs in own]


@dataclass
class Transcript:
    """The text of one row as its tokens come, in pieces that stay: half a character waits for the rest, and what may be the
    begin of a stop string waits until it is none. The text ends before the first stop string.

    ids: so far. lengths: of the text before each token. stopped: whether a stop string was found.
    """

    tokenizer: Any
    context: Ids
    stops: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    shown: str = ""
    stopped: bool = False
    _text: str = ""

    def add(self, token: int) -> str:
        """The piece that is certain now, perhaps empty."""
        self.lengths.append(len(self._text.rstrip("�")))  # every part of a character begins where it does
        self.ids.append(token)
        (self._text,) = decode_behind(self.tokenizer, [self.context], [tuple(self.ids)], 1)
        sure = self._text.rstrip("�")  # perhaps half a character
        found = [place for place in map(sure.find, self.stops) if place >= 0]
        if found:
            self.stopped, self._text = True, self._text[: min(found)]
            return self.close()
        if sure != self._text:
            return ""
        waits = max((n for stop in self.stops for n in range(1, len(stop)) if self._text.endswith(stop[:n])), default=0)
        certain = self._text[: len(self._text) - waits]
        if not certain.startswith(self.shown):
            return ""
        piece, self.shown = certain[len(self.shown) :], certain
        return piece

    def close(self) -> str:
        """What waited; behind what a decoder has rewritten since it was shown, all from there on."""
        pairs = enumerate(zip(self.shown, self._text))
        same = next((place for place, (one, other) in pairs if one != other), min(len(self.shown), len(self._text)))
        piece, self.shown = self._text[same:], self._text
        return piece


@dataclass(frozen=True)
class Spelt:
    """What a step adds to the text of a row. piece: what is certain now, perhaps nothing; drawn: the tokens since the last
    one; finish: "stop" or "length" with the row's last piece."""

    row: int
    text: Transcript
    piece: str
    drawn: list[Drawn]
    finish: str | None


def spell_tokens(
    bench: Bench,
    context: Ids,
    generation: Generation,
    *,
    rows: int = 1,
    generator: torch.Generator,
    top: int = 0,
    stops: Sequence[str] = (),
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Spelt]:
    """`draw_tokens` as text, each row up to its first stop string, or the special token that one names, which no text shows.
    turn: entered for every step of the models."""
    named: dict[str, int] = getattr(bench.tokenizer, "get_added_vocab", dict)()  # Mistral's own tokenizers have none
    last = {*bench.ends, *(named[stop] for stop in stops if stop in named)}
    texts = [Transcript(bench.tokenizer, context, tuple(stops)) for _ in range(rows)]
    waiting: list[list[Drawn]] = [[] for _ in texts]
    closed: set[int] = set()
    steps = draw_tokens(bench, context, generation, rows=rows, generator=generator, top=top, closed=closed)
    while True:
        with turn():
            found = [(each, texts[each.row].add(each.token)) for each in next(steps, ())]
        if not found:
            return
        for each, piece in found:
            row, text = each.row, texts[each.row]
            waiting[row].append(each)
            finish = "length" if len(text.ids) == generation.max_new_tokens else None
            if text.stopped or each.token in last:
                finish = "stop"
                closed.add(row)
            if finish:
                piece += text.close()
            if piece or finish:
                yield Spelt(row, text, piece, waiting[row], finish)
                waiting[row] = []


def stream_tokens(
    prompt: Any,
    refs: Any,
    regularizer: Regularizer,
    max_new_tokens: int,
    *,
    min_new_tokens: int = 0,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """One completion of the per-token pool, piece by piece; a piece that is half a character waits for the rest.

    A reader that stops ends it within one token. say: told before the start what it may take, one step being timed for it.
    Approximate: not a draw of the escort (docs/decoding.md).
    """
    generation = Generation(max_new_tokens, min_new_tokens=min_new_tokens)
    with open_pool(refs, regularizer) as bench:
        (context,) = encode_prompts(bench.tokenizer, [prompt])
        if say is not None:
            bench.scorer.check_context([context], max_new_tokens)
            replace(bench.request, generation=generation).check_price(bench.models, [context], say)
        spelt = spell_tokens(bench, context, generation, generator=bench.generator(seed))
        yield from (each.piece for each in spelt if each.piece)
