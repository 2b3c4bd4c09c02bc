"""The per-token pool as what is served."""

import math
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Self

from multiref.decoding.bench import Bench
from multiref.decoding.drawing import APPROXIMATE
from multiref.decoding.request import check_memory
from multiref.decoding.streaming import Drawn, Spelt, open_pool, read_tokens, spell_tokens
from multiref.models.lockstep import cache_bytes
from multiref.models.sampling import decode_behind, encode_prompts
from multiref.references.collection import References
from multiref.references.local import LocalReference
from multiref.regularizers import Regularizer
from multiref.serving.asked import Asked, BadRequest
from multiref.serving.served import Answer, Finished, Piece, Stopped, Told, mistakes

Ids = tuple[int, ...]
WINDOW = 6  # tokens before one, behind which it is spelt


class TokenPool:
    """The references pooled and renormalised at each token: approximate, another distribution than the optimum.

    The models take turns by the step: requests side by side advance together, each a token at a time.

    Args:
        most: tokens that one answer may have.
    """

    about = "the references' pool, token by token (approximate: another distribution than the optimum)"

    def __init__(self, refs: References, regularizer: Regularizer, *, most: int = 256) -> None:
        self.refs, self.regularizer, self.most, self._turn, self._stack = refs, regularizer, most, threading.Lock(), ExitStack()
        self._aside = 0

    def __enter__(self) -> Self:
        self.bench: Bench = self._stack.enter_context(open_pool(self.refs, self.regularizer))
        limits = [each.max_length for each in self.bench.scorer.opened.values() if isinstance(each, LocalReference)]
        self.context = min((limit for limit in limits if limit is not None), default=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answer(self, asked: Asked, stop: threading.Event) -> Answer:
        """Drawn as the request says; log-probabilities are of the pool as it is: temperature 1, nothing cut."""
        with self._turn:
            contexts = [self._context(prompt) for prompt in asked.prompts]
        new = [self._new_tokens(asked, context) for context in contexts]
        generator = self.bench.generator(secrets.randbits(63) if asked.seed is None else asked.seed)
        written = 0
        for place, (prompt, context, longest) in enumerate(zip(asked.prompts, contexts, new)):
            begun, first = Piece(0, ""), place * asked.n
            if asked.echo:
                with self._turn:
                    begun = self._echo(asked, prompt, context)
                for choice in range(first, first + asked.n):
                    yield replace(begun, choice=choice, finish=None if longest else "length")
            if longest:
                with self._set_aside(asked.n, len(context) + longest):
                    spelt = spell_tokens(
                        self.bench,
                        context,
                        asked.generation(longest),
                        rows=asked.n,
                        generator=generator,
                        top=asked.top or 0,
                        stops=asked.stops,
                        turn=partial(self._step, stop),
                    )
                    for each in spelt:
                        written += len(each.text.ids) if each.finish else 0
                        yield Piece(first + each.row, each.piece, self._tell(asked, each, len(begun.text)), each.finish)
        yield Finished(sum(map(len, contexts)), written, {"approximate": APPROXIMATE})

    @contextmanager
    def _step(self, stop: threading.Event) -> Iterator[None]:
        """One step of the models at a time, and none once `stop` is set."""
        with self._turn:
            if stop.is_set():
                raise Stopped
            with mistakes():
                yield

    @contextmanager
    def _set_aside(self, rows: int, length: int) -> Iterator[None]:
        """The memory of an answer's caches: answers side by side do not take it twice. ArgumentError where it is not there."""
        with self._turn:
            check_memory(self.bench.models, rows, length, more=self._aside)
            self._aside += (needed := cache_bytes(self.bench.models, rows, length))
        try:
            yield
        finally:
            with self._turn:
                self._aside -= needed

    def _context(self, prompt: Any) -> Ids:
        if isinstance(prompt, tuple) and isinstance(prompt[0], int):
            if max(prompt) >= (size := len(self.bench.tokenizer)):
                raise BadRequest(
                    f"prompt: token {max(prompt)} is none of {size:,}. Send ids of the first reference's tokenizer.", "prompt"
                )
            return prompt
        (context,) = encode_prompts(self.bench.tokenizer, [prompt])
        return context

    def _new_tokens(self, asked: Asked, context: Ids) -> int:
        room = self.most if self.context is None else min(self.most, self.context - len(context))
        wanted = asked.length(max(1, room), self.most)
        if self.context is not None and len(context) + wanted > self.context:
            raise BadRequest(
                f"The prompt's {len(context)} tokens and {wanted} new ones are more than the context of {self.context}.",
                "messages" if asked.chat else "prompt", code="context_length_exceeded",
            )  # fmt: skip
        return wanted

    def _tell(self, asked: Asked, spelt: Spelt, before: int) -> tuple[Told, ...]:
        """The tokens of a piece; those beyond a stop string, which is not shown either, are left out."""
        if asked.top is None:
            return ()
        text = spelt.text
        first = len(text.ids) - len(spelt.drawn)
        ids, start = [*text.context, *text.ids], len(text.context) + first
        return tuple(
            self._told(asked, ids, start + place, each, before + offset)
            for place, (each, offset) in enumerate(zip(spelt.drawn, text.lengths[first:]))
            if not (text.stopped and offset > len(text.shown))
        )

    def _echo(self, asked: Asked, prompt: Any, context: Ids) -> Piece:
        """The prompt as the begin of an answer. Its tokens spell it one after another."""
        text = prompt if isinstance(prompt, str) else _added(self.bench.tokenizer, context, 0, len(context))
        if asked.top is None:
            return Piece(0, text)
        known = read_tokens(self.bench, context, asked.top) if len(context) > 1 else []
        drawn = [Drawn(0, context[0], math.nan), *known]
        told = [self._told(asked, context, place, each, 0) for place, each in enumerate(drawn)]
        offsets, base, first = [0], 0, 0
        for place in range(1, len(context) + 1):
            added = _added(self.bench.tokenizer, context, first, place)
            offsets.append(base + len(added.rstrip("�")))  # every part of a character begins where it does
            if not added.endswith("�"):
                base, first = offsets[-1], place
        return Piece(0, text, tuple(replace(each, offset=at) for each, at in zip(told, offsets)))

    def _told(self, asked: Asked, ids: Any, place: int, drawn: Drawn, offset: int) -> Told:
        def called(index: int) -> str:
            before = ids[max(0, place - WINDOW) : place]
            return f"token_id:{index}" if asked.as_ids else _spelt(self.bench.tokenizer, [*before, index], len(before))

        top: dict[str, float] = {}
        likeliest, own = dict(drawn.top), called(drawn.token)
        if likeliest and not asked.chat:  # there the drawn one is told beside the likeliest
            likeliest.setdefault(drawn.token, drawn.logp)
        for index, logp in likeliest.items():
            name = called(index)
            other = name in top or (name == own and index != drawn.token)  # the name is the drawn one's
            if logp > -math.inf:
                top[f"token_id:{index}" if other else name] = logp
        return Told(own, drawn.logp if math.isfinite(drawn.logp) else None, offset, top)


def _spelt(tokenizer: Any, ids: Any, place: int) -> str:
    """What a token adds to the text of the few before it; one that adds nothing, as a special one, by its name."""
    return _added(tokenizer, ids, place, place + 1) or str(tokenizer.decode([ids[place]]))


def _added(tokenizer: Any, ids: Any, place: int, end: int) -> str:
    """What the tokens from one place to another add to the text of the few before them; special ones nothing."""
    return decode_behind(tokenizer, [tuple(ids[max(0, place - WINDOW) : place])], [tuple(ids[place:end])], 1)[0]
