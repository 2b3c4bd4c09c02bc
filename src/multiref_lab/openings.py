"""Prompts from a file of texts: how each of them begins."""

import json
from pathlib import Path

from multiref.errors import DataError


def read_openings(path: str | Path, words: int, *, longer_than: int = 0) -> list[str]:
    """The first `words` words of each text that has more than `longer_than`, each opening once.

    A .jsonl has a text a line, under `prompt` or `text`; a .txt has one a paragraph.

    Raises:
        DataError: a file that cannot be read, a row without text.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected .jsonl with `prompt` or `text`, or .txt.") from None
    if path.suffix == ".txt":
        texts = content.split("\n\n")
    else:
        texts = [_text(f"{path.name}:{row}", line) for row, line in enumerate(content.split("\n"), 1) if line.strip()]
    split = [text.split() for text in texts]
    return list(dict.fromkeys(" ".join(text[:words]) for text in split if len(text) > longer_than))


def _text(where: str, line: str) -> str:
    try:
        row = json.loads(line)
        return str(row.get("prompt") or row["text"])
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise DataError(f"{where}: found {line[:60]!r}, expected a JSON object with `prompt` or `text`.") from None
