"""Prompts, and the texts that follow them, from the files that settings name."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from multiref._files import MIB, read_text
from multiref.data.formats import PROMPTS
from multiref.data.gsm8k import prompts, read_gsm8k
from multiref.data.pairs import USED
from multiref.data.prompts import prompt_text
from multiref.data.sources import open_source
from multiref.errors import ConfigError, MultirefNotice
from multiref.runs.sentences import nearest
from multiref.runs.strict import Strict
from multiref.training.online.rewards import Reward, read_of

Row = dict[str, Any]
LARGEST = 1024 * MIB
# columns that the prompt is made of, sides of pairs, and what else has a name of ours
_OURS = {*USED, *PROMPTS, "messages", "text", "unfinished", "weights", "prompts", "completions", "completion_ids", "ended"}


class Prompts(Strict):
    """A source of prompts.

    path: a file, a folder of files or of `save_to_disk`, a URL, or the id of a hub data set.
    kind: text (rows with `prompt` or `text`, a conversation or a question, or pairs; or .txt with one text a blank-line
    paragraph) or gsm8k.
    words: the prompt is only the first so many, and the rest the text that follows it; of gsm8k, question and solution are one
    text then. pieces: paragraphs of a .txt are joined to pieces of at least so many characters, stretches of a longer text that
    do not end. style: of gsm8k, chat or plain. name, split: of a data set that has several ("train[:5%]"); of gsm8k, by
    default, main and train. skip, limit: so many are left out at the start, and at most so many taken.
    weights: {reference: weight} for these prompts: routing. Other columns of the rows (answer, label, …) go to the rewards.
    """

    SHORT: ClassVar = "path"

    path: str
    kind: Literal["text", "gsm8k"] = "text"
    words: int | None = Field(default=None, gt=0)
    pieces: int | None = Field(default=None, gt=0)
    style: Literal["chat", "plain"] = "chat"
    name: str | None = None
    split: str | None = None
    skip: int = Field(default=0, ge=0, le=2**62)
    limit: int | None = Field(default=None, gt=0, le=2**62)
    weights: dict[str, float] | None = None

    @model_validator(mode="after")
    def _read_as(self) -> Self:
        plain = self.kind == "text" and Path(self.path).suffix == ".txt"
        for key in ("name", "split") if plain else ("pieces",):
            if getattr(self, key) is not None:
                why = "a .txt has none" if plain else "of a .txt alone"
                raise ValueError(f"{key}: {why}, found {self.path}; leave it out.")
        return self

    def rows(self, references: Sequence[str] = ()) -> list[Row]:
        """Rows with `prompt`, and where they are known `text` (with `unfinished` where it does not end), `answer`, `weights`.

        Raises: DataError for a file that cannot be read, ConfigError where nothing is left of it or a name is no reference's.
        """
        rows = self._problems() if self.kind == "gsm8k" else self._asked()
        if not rows:
            skipped = f" beyond the {self.skip} that are skipped; make skip smaller" if self.skip else ""
            raise ConfigError(f"prompts: {self.path} has none{skipped}.")
        if self.weights is None:
            return rows
        if unknown := [name for name in self.weights if name not in references]:
            raise ConfigError(f"prompts.weights: {unknown[0]!r} is no reference{nearest(unknown[0], references)}")
        return [{**row, "weights": [self.weights.get(name, 0.0) for name in references]} for row in rows]

    @property
    def _end(self) -> int | None:
        return None if self.limit is None else self.skip + self.limit

    def _problems(self) -> list[Row]:
        problems = read_gsm8k(self.path, name=self.name, split=self.split, limit=self._end)[self.skip :]
        if self.words is not None:
            return [self._split({"prompt": f"{problem.question}\n{problem.solution}"}) for problem in problems]
        return [{**row, "text": problem.solution} for row, problem in zip(prompts(problems, style=self.style), problems)]

    def _asked(self) -> list[Row]:
        path, texts = Path(self.path), list[str]()
        if path.suffix == ".txt":
            whole = read_text(path, ".jsonl with `prompt` or `text`, or .txt", largest=LARGEST)
            parts = [part.strip() for part in whole.split("\n\n") if part.strip()]
            if len(parts) == 1 and self.pieces is None and (lines := parts[0].count("\n") + 1) > 1:
                warnings.warn(
                    f"prompts: {path.name} is one text of {lines:,} lines; expected an empty line between texts. "
                    "If each line is a prompt, put empty lines between them, or write .jsonl with `prompt`.",
                    MultirefNotice,
                    stacklevel=2,
                )
            texts += parts if self.pieces is None else _joined(parts, self.pieces)
            return [self._split({"prompt": text}, self.pieces is not None) for text in texts[self.skip : self._end]]
        rows = read_rows(self.path, name=self.name, split=self.split)
        return [self._split(row) for _, row in islice(rows, self.skip, self._end)]

    def _split(self, row: Row, unfinished: bool = False) -> Row:
        """The first words as prompt, the rest as the text that follows it; a conversation is a prompt as it stands."""
        if self.words is None or not isinstance(text := row["prompt"], str):
            return row
        parts = text.split(" ")
        prompt, rest = " ".join(parts[: self.words]), " ".join(parts[self.words :])
        return {**row, "prompt": prompt, **({"text": " " + rest, "unfinished": unfinished} if rest else {})}


def read_rows(path: str | Path, *, name: str | None = None, split: str | None = None) -> Iterator[tuple[str, Row]]:
    """(where it is from, its prompt and the columns that go to the rewards) of every row of a source."""
    with open_source(path, name=name, split=split) as opened:
        for where, row in opened():
            yield where, {"prompt": prompt_text(row, where), **{name: row[name] for name in row if name not in _OURS}}


def different(rows: Iterable[Row], rewards: Sequence[Reward]) -> Iterator[Row]:
    """Each row once: those of one prompt that no reward tells apart are one."""
    seen = set()
    for row in rows:
        read = repr([row["prompt"], *(sorted(read_of(reward.function, row, unread="_").items()) for reward in rewards)])
        if read not in seen:
            seen.add(read)
            yield row


def _joined(paragraphs: list[str], characters: int) -> list[str]:
    """Paragraphs one after the other, cut into pieces as soon as they have so many characters; a shorter rest is dropped."""
    pieces, here = [], ""
    for paragraph in paragraphs:
        here = f"{here}\n\n{paragraph}" if here else paragraph
        if len(here) >= characters:
            pieces.append(here)
            here = ""
    return pieces
