"""The prompts of an online run, and the texts that follow them, from the files that its settings name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from multiref.runs.settings_online import Prompts
from multiref.runs.config import nearest
from multiref.errors import ConfigError, DataError

__all__ = ["rows_of"]


def rows_of(source: Prompts, names: list[str]) -> list[dict[str, Any]]:
    """Rows with `prompt`, and where they are known `text` (with `unfinished` where it does not end), `answer`, `weights`. DataError, ConfigError by name."""
    if source.kind == "gsm8k":
        rows = _problems(source)
    elif source.kind == "text":
        rows = [_split(text, source.words, unfinished=source.pieces is not None) for text in _texts(source)]
    else:
        raise ConfigError(f"prompts.kind: found {source.kind!r}, expected text or gsm8k.")
    if not rows:
        raise ConfigError(f"prompts: {source.path} has none beyond the {source.skip} that are skipped; make skip smaller.")
    if source.weights is not None:
        unknown = [name for name in source.weights if name not in names]
        if unknown:
            raise ConfigError(f"prompts.weights: {unknown[0]!r} is no reference{nearest(str(unknown[0]), names)}.")
        each = [float(source.weights.get(name, 0.0)) for name in names]
        rows = [{**row, "weights": each} for row in rows]
    return rows


def _problems(source: Prompts) -> list[dict[str, Any]]:
    from multiref.data.gsm8k import prompts, read_gsm8k

    problems = read_gsm8k(source.path, split=source.split, limit=_end(source))[source.skip :]
    if source.words is not None:
        return [_split(f"{problem.question}\n{problem.solution}", source.words) for problem in problems]
    return [{**row, "text": problem.solution} for row, problem in zip(prompts(problems, style=source.style), problems)]


def _texts(source: Prompts) -> list[str]:
    path = Path(source.path)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected .jsonl with `prompt` or `text`, or .txt.") from None
    texts: list[str] = []
    if path.suffix == ".txt":
        texts = [part.strip() for part in content.split("\n\n") if part.strip()]
        texts = texts if source.pieces is None else _joined(texts, source.pieces)
    else:
        for number, line in enumerate(content.splitlines(), 1):
            try:
                row = json.loads(line)
                texts.append(row.get("prompt") or row["text"])
            except (ValueError, KeyError, AttributeError):
                raise DataError(f"{path.name}:{number}: expected a JSON object with `prompt` or `text`.") from None
            if len(texts) == _end(source):
                break
    return texts[source.skip : _end(source)]


def _joined(paragraphs: list[str], characters: int) -> list[str]:
    """Paragraphs one after the other, cut into pieces as soon as they have so many characters; a shorter rest is dropped."""
    pieces, here = [], ""
    for paragraph in paragraphs:
        here = f"{here}\n\n{paragraph}" if here else paragraph
        if len(here) >= characters:
            pieces.append(here)
            here = ""
    return pieces


def _end(source: Prompts) -> int | None:
    return None if source.limit is None else source.skip + source.limit


def _split(text: str, words: int | None, *, unfinished: bool = False) -> dict[str, Any]:
    """The first words as prompt, the rest as the text that follows it."""
    if words is None:
        return {"prompt": text}
    parts = text.split(" ")
    rest = " ".join(parts[words:])
    row: dict[str, Any] = {"prompt": " ".join(parts[:words])}
    return {**row, "text": " " + rest, "unfinished": unfinished} if rest else row
