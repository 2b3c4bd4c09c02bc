"""What answers requests, and what an answer is made of: pieces of choices, one after another."""

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from multiref.errors import ModelError, MultirefError
from multiref.serving.asked import Asked


@dataclass(frozen=True)
class Told:
    """A token as it is spelt, its log-probability (None: there is none), where it begins in the choice's text, the likeliest
    ones."""

    token: str
    logp: float | None
    offset: int
    top: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """What is new of a choice. finish: "stop" or "length" with its last piece."""

    choice: int
    text: str
    tokens: tuple[Told, ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Finished:
    """The last word: tokens of prompts and completions, and what else is to be known."""

    prompt_tokens: int
    completion_tokens: int
    notes: Mapping[str, Any]


Answer = Generator[Piece | Finished, None, None]


class Served(Protocol):
    """`answer` checks what is asked before its first piece, and ends within a step of the models once `stop` is set."""

    @property
    def about(self) -> str:
        """What is served, in words."""
        ...

    def answer(self, asked: Asked, stop: threading.Event) -> Answer:
        """Pieces of every choice, then `Finished`. BadRequest for what it does not do."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


class Mistake(MultirefError):
    """Of what is served, not of what is asked: whoever asks learns only that there is one."""


@contextmanager
def mistakes(kind: type[MultirefError] = ModelError) -> Iterator[None]:
    """Within it an error of this kind is a `Mistake`: logits that are NaN, a reference elsewhere that does not answer."""
    try:
        yield
    except kind as error:
        raise Mistake(str(error)) from error


class Stopped(Exception):
    """Nobody waits for this any more."""
