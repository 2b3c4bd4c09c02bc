"""What a run says while it works: a listener with four calls, silent as it stands, and one that draws a bar."""

import time
import warnings
from contextlib import ExitStack
from typing import Any

from multiref._progress import part_of, tell
from multiref.errors import MultirefWarning


class Listener:
    """Told what happens; as it stands it says nothing but notices. Counts are of completions, tokens (of the reference's own
    tokenizer) and characters of text."""

    def begin(self, name: str, *, completions: int, stored: int, characters: int) -> None:
        """A reference's turn: how many completions are wanted, how many of them are stored already, and the text left to
        score."""

    def advance(self, name: str, *, completions: int, tokens: int, characters: int) -> None:
        """A shard was scored and stored."""

    def end(self, name: str) -> None:
        """The reference's turn is over."""

    def audited(self, name: str, summary: str, share: float) -> None:
        """In which layout a reference scored, what that was found on, and which share of its turn the audit took."""

    def notice(self, message: str) -> None:
        """Something the user should know: a damaged shard, a model that changed in its place, truncated texts."""
        warnings.warn(message, MultirefWarning, stacklevel=4)


class Told(Listener):
    """Tells whoever watches (`multiref._progress`) how many completions of a reference's turn are scored."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self.stack = ExitStack()

    def begin(self, name: str, *, completions: int, stored: int, characters: int) -> None:
        self.done, self.total = 0, completions - stored
        self._count(name)

    def advance(self, name: str, *, completions: int, tokens: int, characters: int) -> None:
        self.done += completions
        self._count(name)

    def end(self, name: str) -> None:
        self.stack.close()

    def _count(self, name: str) -> None:
        """From here on the model's own count, a batch at a time, goes on from what is done."""
        self.stack.close()
        tell(f"scoring under {name}", self.done, self.total)
        self.stack.enter_context(part_of(f"scoring under {name}", self.done, self.total))


class Bar(Listener):
    """A rich progress bar per reference: tokens so far and tokens per second, what was there already, time left.

    The time left follows the share of the text that is done; the number of tokens is known only once the text is tokenised.
    """

    def __init__(self, console: Any = None):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = console or Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[done]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.tasks: dict[str, Any] = {}
        self.tallies: dict[str, dict[str, float]] = {}

    def __enter__(self) -> "Bar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, name: str, *, completions: int, stored: int, characters: int) -> None:
        self.tallies[name] = {
            "completions": completions,
            "stored": stored,
            "scored": 0,
            "tokens": 0,
            "since": time.monotonic(),
            "seconds": 0.0,
        }
        note = f"{stored:,} of {completions:,} already there" if stored else f"0 of {completions:,} completions"
        self.tasks[name] = self.bar.add_task(name, total=max(characters, 1), completed=0 if characters else 1, done=note)

    def advance(self, name: str, *, completions: int, tokens: int, characters: int) -> None:
        tally = self.tallies[name]
        tally["scored"] += completions
        tally["tokens"] += tokens
        tally["seconds"] = time.monotonic() - tally["since"]
        self.bar.update(self.tasks[name], advance=characters, done=self._rate(name))

    def end(self, name: str) -> None:
        self.bar.update(self.tasks[name], done=self._rate(name))

    def audited(self, name: str, summary: str, share: float) -> None:
        self.console.print(f"{name}: {summary} ({share:.1%} of its turn)", style="dim", markup=False, highlight=False)

    def notice(self, message: str) -> None:
        self.console.print(f"Note: {message}", style="yellow", markup=False, highlight=False)

    def summary(self, name: str) -> str:
        """One line: tokens, tokens per second, completions scored now and before."""
        tally = self.tallies[name]
        return f"{self._rate(name)}; {tally['scored']:,.0f} scored, {tally['stored']:,.0f} already there"

    def _rate(self, name: str) -> str:
        """What fits beside a bar in 80 columns."""
        tally = self.tallies[name]
        rate = f", {tally['tokens'] / tally['seconds']:,.0f}/s" if tally["seconds"] > 0 else ""
        return f"{tally['tokens']:,.0f} completion tokens{rate}"
