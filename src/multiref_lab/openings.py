"""Prompts from a file of texts: how each of them begins."""

from pathlib import Path

from multiref.runs import Prompts


def read_openings(path: str | Path, words: int, *, longer_than: int = 0) -> list[str]:
    """The first `words` words of each text that has more than `longer_than`, each opening once; conversations are left out.

    Args:
        path: as a run's `prompts`: rows with `prompt` or `text`, or a .txt with an empty line between texts.

    Raises:
        DataError: a file that cannot be read, a row without text.
    """
    split = [row["prompt"].split() for row in Prompts(path=str(path)).rows() if isinstance(row["prompt"], str)]
    return list(dict.fromkeys(" ".join(text[:words]) for text in split if len(text) > longer_than))
