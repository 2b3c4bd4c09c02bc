"""The columns that references add to a dataset of TRL's, and its rows as pairs."""

from typing import Any

from multiref.data import Pair, as_pair

COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
DIGESTS = ("ref_chosen_digests", "ref_rejected_digests")  # by reference, which token ids were scored: `Encoded.digest`
CONVENTION = "ref_convention"  # JSON of what policy and references must agree on: the end token, the join
ALPHA = "ref_alpha"  # which divergence's pool the references are: 1 reverse KL, 0 forward KL
GIVEN = "ref_texts"  # prompt, chosen, rejected where they are strings, to which TRL adds an end
TEXTS = ("prompt", "chosen", "rejected", "system", "tools", "chat_template_kwargs")


def pairs_of(dataset: Any, what: str) -> list[Pair]:
    """A dataset's rows as pairs, their texts and what belongs to them."""
    if GIVEN in dataset.column_names:
        return [Pair(p, c, r, f"{what} {number}") for number, (p, c, r) in enumerate(dataset[GIVEN], 1)]
    texts = dataset.select_columns([name for name in TEXTS if name in dataset.column_names])
    return [as_pair(row, origin=f"{what} {number}") for number, row in enumerate(texts, 1)]
