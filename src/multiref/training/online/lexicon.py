"""A reward from a list of words with values: what a completion says, added up."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from multiref.errors import DataError

__all__ = ["lexicon_reward"]


def lexicon_reward(path: str | Path) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """(prompts, completions) → Σ value(word) / √words, from a file of lines `word<tab>value[<tab>…]` (AFINN, VADER).

    Raises:
        DataError: a file that cannot be read, or a line without a number.
    """
    values: dict[str, float] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); expected a lexicon of lines word<tab>value") from None
    for row, line in enumerate(lines, start=1):
        parts = line.split("\t")
        if not line.strip():
            continue
        try:
            values[parts[0].strip().lower()] = float(parts[1])
        except (IndexError, ValueError):
            raise DataError(f"{path}:{row}: found {line[:60]!r}, expected word<tab>value") from None

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        words = [re.findall(r"[a-z']+", text.lower()) for text in completions]
        return [sum(values.get(word, 0.0) for word in each) / max(len(each), 1) ** 0.5 for each in words]

    return reward
