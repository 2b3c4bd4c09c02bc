"""What a run says while it works: a listener that tells how far it is, and one that also counts."""

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property

from multiref._progress import part_of, tell
from multiref.errors import MultirefWarning
from multiref.report.shown import visible


class Listener:
    """Told what happens. It tells whoever watches (`multiref._progress`) how many completions of a reference's turn are scored.
    Counts are of completions and of tokens (of the reference's own tokenizer)."""

    done = total = 0

    @cached_property
    def stack(self) -> ExitStack:
        """What is open while a reference has its turn. (Made at first use: a subclass need not call our `__init__`.)"""
        return ExitStack()

    def begin(self, name: str, *, completions: int, stored: int) -> None:
        """A reference's turn: how many completions are wanted, and how many of them are stored already."""
        self.done, self.total = 0, completions - stored
        self._count(name)

    def advance(self, name: str, *, completions: int, tokens: int) -> None:
        """A shard was scored and stored."""
        self.done += completions
        self._count(name)

    def end(self, name: str) -> None:
        """The reference's turn is over."""
        self.stack.close()

    def audited(self, name: str, summary: str, share: float) -> None:
        """In which layout a reference scored, what that was found on, and which share of its turn the audit took."""

    def notice(self, message: str) -> None:
        """Something the user should know: a damaged shard, a model that changed in its place, truncated texts."""
        warnings.warn(message, MultirefWarning, stacklevel=4)

    def _count(self, name: str) -> None:
        """From here on the model's own count, a batch at a time, goes on from what is done."""
        self.stack.close()
        if not self.total:
            return
        tell(f"scoring under {name}", self.done, self.total)
        self.stack.enter_context(part_of(f"scoring under {name}", self.done, self.total))


class Tally(Listener):
    """Also counts, for a line at the end: tokens, tokens per second, completions that were there already.

    say: how people are told of layouts (a line each); notices go to standard error.
    """

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say
        self.summaries: dict[str, str] = {}

    def begin(self, name: str, *, completions: int, stored: int) -> None:
        super().begin(name, completions=completions, stored=stored)
        self.stored, self.tokens, self.since, self.seconds = stored, 0, time.monotonic(), 0.0

    def advance(self, name: str, *, completions: int, tokens: int) -> None:
        super().advance(name, completions=completions, tokens=tokens)
        self.tokens += tokens
        self.seconds = time.monotonic() - self.since

    def end(self, name: str) -> None:
        super().end(name)
        rate = f", {self.tokens / self.seconds:,.0f}/s" if self.seconds else ""
        counts = f"{self.done:,} scored, {self.stored:,} already there"
        self.summaries[name] = f"{self.tokens:,} completion tokens{rate}; {counts}"

    def audited(self, name: str, summary: str, share: float) -> None:
        self.say(f"{name}: {summary} ({share:.1%} of its turn)")

    def notice(self, message: str) -> None:
        print(f"Note: {visible(message)}", file=sys.stderr)
