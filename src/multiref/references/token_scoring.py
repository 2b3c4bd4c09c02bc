"""Token by token: the scores that exist only where all references speak of the same tokens."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from multiref.errors import VocabularyMismatch
from multiref.references.collection import References
from multiref.references.keys import content_key
from multiref.references.local import local_reference
from multiref.references.plan import wanted
from multiref.references.protocol import Item
from multiref.references.scores import TokenScores, same_vocabulary

__all__ = ["token_scores"]


def token_scores(references: References, data: Iterable[Any]) -> TokenScores:
    """log π_k(y_t | x, y_<t) of every token of every completion of `data`, under every reference.

    The vocabularies are compared before anything is scored, and must be the same mapping from token to id.
    One reference is in memory at a time.

    Args:
        references: models on this machine.
        data: pairs, rows of TRL's preference format, or (prompt, completion) tuples; repeated ones count once, in order of
            first appearance.

    Errors: VocabularyMismatch naming the first token that differs, or a completion that two references cut into different
        tokens;
        ModelError for a reference that is no model on this machine.
    """
    opened = {name: local_reference(name, references.open(name)) for name in references.names}
    same_vocabulary(list(opened), [reference.vocabulary for reference in opened.values()])
    texts = {content_key(prompt, completion): (prompt, completion) for prompt, completion in wanted(data)}
    items = [Item(prompt, (completion,)) for prompt, completion in texts.values()]
    rows: list[torch.Tensor] = []
    first: tuple[str, list[tuple[int, ...]]] = ("", [])
    for name, reference in opened.items():
        encoded = reference.encode(items)
        ids, logps = [ids for item in encoded for ids in item.completions], reference.token_logps(encoded)
        reference.release()
        first = first if rows else (name, ids)
        _same_tokens(first, (name, ids), items)
        rows.append(torch.cat([torch.empty(0), *logps]).float())
    offsets = torch.tensor([0] + [len(ids) for ids in first[1]], dtype=torch.int64).cumsum(0)
    return TokenScores(tuple(opened), np.frombuffer(b"".join(texts), "V16"), offsets, torch.stack(rows))


def _same_tokens(
    first: tuple[str, list[tuple[int, ...]]], second: tuple[str, list[tuple[int, ...]]], items: list[Item]
) -> None:
    for item, one, other in zip(items, first[1], second[1]):
        if one != other:
            raise VocabularyMismatch(
                f"References {first[0]!r} and {second[0]!r} have one vocabulary but cut {str(item.completions[0])[:60]!r} into "
                f"different tokens "
                f"({list(one[:8])}… and {list(other[:8])}…): their tokenizers or chat templates differ. Use sequence-level "
                f"scores."
            )
