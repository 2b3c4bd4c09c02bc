"""Labels under local differential privacy: each flipped at random, once, and everything that would give it back left out.

The mark that private labels carry is a column, `privacy_epsilon`: it stays with a row through shards, filters and conversions.
"""

from __future__ import annotations

import json
import math
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiref._files import write_whole
from multiref._made import Made
from multiref.data.pairs import EPSILON, Pair, as_pair
from multiref.data.text import Conversation, Text
from multiref.errors import ArgumentError, DataError

if TYPE_CHECKING:
    import torch

_KEPT = frozenset(("prompt", "chosen", "rejected", "system", "tools", "chat_template_kwargs", EPSILON))
_OF_A_MESSAGE = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking"))


@dataclass(frozen=True)
class PrivatePairs(Made[Pair]):
    """Pairs whose labels went through randomised response; which text stands as chosen is the flipped label, and nothing else.

    Attributes:
        epsilon: ε of one label. k labels of one person cost kε together.
        flip_rate: 1/(1 + e^ε), the chance that a label is the other one.
        dropped: names of what the rows had beside prompt and texts, and has no more.
        most_labels: of one and the same pair; such a pair's preference is spent that many times.
        simulation: whether a seeded generator flipped: then anyone with the seed has the labels, and nothing is private.
    """

    pairs: tuple[Pair, ...]
    epsilon: float
    dropped: tuple[str, ...] = ()
    most_labels: int = 1
    simulation: bool = False

    @property
    def flip_rate(self) -> float:
        """1/(1 + e^ε)."""
        return 1 / (1 + math.exp(self.epsilon))

    def made(self, place: int) -> Pair:
        return self.pairs[place]

    def __len__(self) -> int:
        return len(self.pairs)

    def write(self, path: str | Path) -> Path:
        """The rows as JSON lines, each with its ε in the column `privacy_epsilon`: labels are flipped once and stored, so that
        epochs and restarts cost nothing, and who reads them knows.

        Raises:
            OutputError: a path that cannot be written.
        """
        return write_whole(path, "".join(json.dumps(_row(pair), ensure_ascii=False) + "\n" for pair in self.pairs))

    def __str__(self) -> str:
        lines = [
            f"{len(self.pairs):,} pairs, labels ε-private at ε = {self.epsilon:g}: each is flipped with probability "
            f"{self.flip_rate:.4f}. Texts are not protected.",
            f"  dropped: {', '.join(self.dropped) or 'nothing'}",
        ]
        if self.most_labels > 1:
            lines.append(f"  one pair has {self.most_labels} labels: they cost {self.most_labels} ε together")
        if self.simulation:
            lines.append(
                "  SIMULATION: a seeded generator flipped the labels; whoever has the seed has them. Nothing is private."
            )
        return "\n".join(lines)


def privatise(
    pairs: Iterable[Mapping[str, object] | Pair], epsilon: float, *, generator: torch.Generator | None = None
) -> PrivatePairs:
    r"""Flip each label with probability 1/(1 + e^ε), once, and keep prompt, two texts and flipped label alone.

        P(output | label)/P(output | other label) ≤ e^ε       (randomised response, Warner 1965)

    Every other column is dropped, by name: a margin, ratings or the row's place in another file would give the label back.
    So would the original file, and a store of scores keyed by its chosen and rejected texts: delete both.
    Labels are protected; prompts and texts are not.

    Args:
        pairs: rows as `read_pairs` takes them, or `Pair`s.
        epsilon: ε > 0, of one label.
        generator: None draws from the operating system. A generator can be repeated, so its result is a *simulation*,
            and says so.

    Raises:
        ArgumentError: ε not positive, pairs that are privatised already, also where they were read back from a file (labels
            would be flipped twice, and ε would be wrong).
        DataError: rows that are no pairs.
    """
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < math.inf:
        raise ArgumentError(f"epsilon: expected a positive, finite privacy budget, found {epsilon!r}.")
    dropped: Counter[str] = Counter()
    kept = [_bare(row, number, dropped) for number, row in enumerate(pairs, 1)]
    rate = 1 / (1 + math.exp(epsilon))
    if generator is None:
        system = secrets.SystemRandom()
        flips = [system.random() < rate for _ in kept]
    else:
        import torch  # reading data does not wait for it

        flips = (torch.rand(len(kept), generator=generator, dtype=torch.float64) < rate).tolist()
    marked = [replace(p, epsilon=float(epsilon)) for p in kept]
    made = tuple(replace(p, chosen=p.rejected, rejected=p.chosen) if flip else p for p, flip in zip(marked, flips))
    same = Counter(repr((p.prompt, sorted((repr(p.chosen), repr(p.rejected))))) for p in kept)
    return PrivatePairs(made, float(epsilon), tuple(sorted(dropped)), max(same.values(), default=1), generator is not None)


def _bare(row: Mapping[str, object] | Pair, number: int, dropped: Counter[str]) -> Pair:
    """Prompt and two texts, without origin, margin, or fields of messages that no template reads."""
    pair = as_pair(row, origin=f"pair {number}")
    if pair.epsilon is not None:
        raise ArgumentError(
            f"{pair.origin or f'pair {number}'}: its label is private already, at ε = {pair.epsilon:g}; flipped twice it would "
            "carry another ε. Privatise the original pairs, once."
        )
    if isinstance(row, Mapping):
        dropped.update(name for name in row if name not in _KEPT)
    else:
        dropped.update(name for name, value in (("origin", row.origin), ("margin", row.margin)) if value)
    prompt, chosen, rejected = (_messages(text, dropped) for text in (pair.prompt, pair.chosen, pair.rejected))
    return Pair(prompt, chosen, rejected)


def _messages(text: Text, dropped: Counter[str]) -> Text:
    if isinstance(text, str):
        return text
    dropped.update(f"message.{field}" for message in text for field in message if field not in _OF_A_MESSAGE)
    made = tuple({field: value for field, value in message.items() if field in _OF_A_MESSAGE} for message in text)
    if isinstance(text, Conversation):
        return Conversation(made, tools=text.tools, chat_template_kwargs=text.chat_template_kwargs)
    return made


def _row(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, EPSILON: pair.epsilon}
    if isinstance(pair.prompt, Conversation):
        extras = {"tools": list(pair.prompt.tools), "chat_template_kwargs": pair.prompt.chat_template_kwargs}
        row |= {name: value for name, value in extras.items() if value}
    return row


def check_marks(pairs: Sequence[Pair], epsilon: float | None, source: str, *, all_private: bool = True) -> None:
    """DataError where labels are marked as private at another ε than the loss takes into account, naming the first such row.

    Args:
        epsilon: of the loss; None: it takes every label as it stands.
        all_private: refuse also unmarked labels among marked ones.
    """
    wrong = next((pair for pair in pairs if pair.epsilon not in (None, epsilon)), None)
    if wrong is not None:
        loss = "takes labels as they stand" if epsilon is None else f"is for ε = {epsilon:g}"
        raise DataError(
            f"{wrong.origin or source}: its label is private at ε = {wrong.epsilon:g} (column {EPSILON}), and the loss {loss}. "
            f"Write privacy: {{epsilon: {wrong.epsilon:g}}} in a run file; in Python take losses.randomised_response at this "
            "epsilon (RewardTrainer: privacy=…). To train on the flips as they are, remove the column."
        )
    plain = next((pair for pair in pairs if pair.epsilon is None), None)
    if all_private and plain is not None and any(pair.epsilon is not None for pair in pairs):
        raise DataError(
            f"{plain.origin or source}: its label is not marked as private, and others of {source} are; expected the column "
            f"{EPSILON} in every row, or in none."
        )
