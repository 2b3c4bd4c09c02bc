"""Prompts, and the texts that follow them, from the files that settings name."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from multiref._files import MIB, read_lines, read_text
from multiref._json import parse_json
from multiref.data import Text, as_prompt
from multiref.data.gsm8k import prompts, read_gsm8k
from multiref.errors import ConfigError, DataError
from multiref.runs.sentences import nearest
from multiref.runs.strict import Strict

Row = dict[str, Any]
LARGEST = 1024 * MIB


class Prompts(Strict):
    """A source of prompts.

    kind: text (.jsonl with `prompt` or `text` a line, or .txt with one text a blank-line paragraph) or gsm8k (a file or hub
    id).
    words: the prompt is only the first so many, and the rest the text that follows it;
    of gsm8k, question and solution are one text then.
    pieces: paragraphs of a .txt are joined to pieces of at least so many characters, stretches of a longer text that do not
    end.
    style: of gsm8k, chat or plain. split: of a hub data set. skip, limit: so many are left out at the start,
    and at most so many taken.
    weights: {reference: weight} for these prompts: routing.
    """

    SHORT: ClassVar = "path"

    path: str
    kind: Literal["text", "gsm8k"] = "text"
    words: int | None = Field(default=None, gt=0)
    pieces: int | None = Field(default=None, gt=0)
    style: Literal["chat", "plain"] = "chat"
    split: str = "train"
    skip: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, gt=0)
    weights: dict[str, float] | None = None

    def rows(self, references: Sequence[str] = ()) -> list[Row]:
        """Rows with `prompt`, and where they are known `text` (with `unfinished` where it does not end), `answer`, `weights`.

        Raises: DataError for a file that cannot be read, ConfigError where nothing is left of it or a name is no reference's.
        """
        rows = (
            self._problems() if self.kind == "gsm8k" else [self._split(text, self.pieces is not None) for text in self._texts()]
        )
        if not rows:
            raise ConfigError(f"prompts: {self.path} has none beyond the {self.skip} that are skipped; make skip smaller.")
        if self.weights is None:
            return rows
        if unknown := [name for name in self.weights if name not in references]:
            raise ConfigError(f"prompts.weights: {unknown[0]!r} is no reference{nearest(unknown[0], references)}")
        return [{**row, "weights": [self.weights.get(name, 0.0) for name in references]} for row in rows]

    @property
    def _end(self) -> int | None:
        return None if self.limit is None else self.skip + self.limit

    def _problems(self) -> list[Row]:
        problems = read_gsm8k(self.path, split=self.split, limit=self._end)[self.skip :]
        if self.words is not None:
            return [self._split(f"{problem.question}\n{problem.solution}") for problem in problems]
        return [{**row, "text": problem.solution} for row, problem in zip(prompts(problems, style=self.style), problems)]

    def _texts(self) -> list[Text]:
        path, expected = Path(self.path), ".jsonl with `prompt` or `text`, or .txt"
        texts: list[Text] = []
        if path.suffix == ".txt":
            parts = [part.strip() for part in read_text(path, expected, largest=LARGEST).split("\n\n") if part.strip()]
            texts += parts if self.pieces is None else _joined(parts, self.pieces)
        else:
            for number, line in islice(read_lines(path, expected, largest=LARGEST), self._end):
                where = f"{path.name}:{number}"
                row = parse_json(line, where, constants=True)
                text = row.get("text") if isinstance(row, dict) else None
                if isinstance(row, dict) and row.get("prompt"):
                    text = as_prompt(row, origin=where)
                if not text or not isinstance(text, str | tuple):
                    raise DataError(f"{where}: expected a JSON object with `prompt` or `text`.")
                texts.append(text)
        return texts[self.skip : self._end]

    def _split(self, text: Text, unfinished: bool = False) -> Row:
        """The first words as prompt, the rest as the text that follows it; a conversation is a prompt as it stands."""
        if self.words is None or not isinstance(text, str):
            return {"prompt": text}
        parts = text.split(" ")
        prompt, rest = " ".join(parts[: self.words]), " ".join(parts[self.words :])
        return {"prompt": prompt, "text": " " + rest, "unfinished": unfinished} if rest else {"prompt": prompt}


def _joined(paragraphs: list[str], characters: int) -> list[str]:
    """Paragraphs one after the other, cut into pieces as soon as they have so many characters; a shorter rest is dropped."""
    pieces, here = [], ""
    for paragraph in paragraphs:
        here = f"{here}\n\n{paragraph}" if here else paragraph
        if len(here) >= characters:
            pieces.append(here)
            here = ""
    return pieces
