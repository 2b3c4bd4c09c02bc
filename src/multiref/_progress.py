"""How far a long job is: told to whoever watches (the command line draws a bar), to nobody in a script."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Watch = Callable[[str, int, int], None]  # what is done, how much of it, of how much
_watching: ContextVar[Watch | None] = ContextVar("watching", default=None)


def tell(what: str, done: int, of: int) -> None:
    """`done` of `of` are done: steps, prompts, completions. `of` 0: of how many is not known; (1, 1) ends it, −1 leaves it."""
    if (watch := _watching.get()) is not None:
        watch(what, done, of)


def rest() -> None:
    """From now until something is told, a person is waited for: nothing is shown over what is typed, or to a server's log."""
    tell("", 0, 0)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """One thing of which nobody knows how far it is: the time gone by is shown."""
    tell(what, 0, 0)
    try:
        yield
    finally:
        tell(what, -1, 0)


def each_told(items: Iterable[Item], what: str, of: int) -> Iterator[Item]:
    """The items, each told before it is worked on, and the end, or that they were left."""
    try:
        for done, item in enumerate(items):
            tell(what, done, of)
            yield item
        tell(what, of, of)
    except GeneratorExit:
        tell(what, -1, of)
        raise


@contextmanager
def watched_by(watch: Watch | None) -> Iterator[None]:
    """Until the end, `watch` is told; None: nobody is."""
    token = _watching.set(watch)
    try:
        yield
    finally:
        _watching.reset(token)


@contextmanager
def part_of(what: str, before: int, of: int) -> Iterator[None]:
    """What is told inside counts on from `before`, as a part of `what`; it counts the same things."""
    outer = _watching.get()
    with watched_by(outer and (lambda _, done, __: outer(what, before + max(done, 0), of))):
        yield
