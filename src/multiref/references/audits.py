"""In which layout a reference scores a job: audited on rows of the whole job, kept beside its scores, obeyed by all workers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from multiref.errors import MultirefWarning, StoreError
from multiref.models.audit import Audit
from multiref.models.batching import LAYOUTS, Span
from multiref.models.encoding import Encoded
from multiref.models.witness import beyond_rounding
from multiref.references.engines import Engine, LocalEngine
from multiref.references.keys import KeyIndex
from multiref.references.plan import Block, Blocks
from multiref.references.protocol import Item, Reference
from multiref.references.resolve import Opener
from multiref.references.store import Damage, Store

CHECKED = 8  # stored rows that are encoded, or scored, again, to compare


def agree_on_layout(
    open_reference: Callable[[], Reference],
    address: str,
    blocks: Blocks,
    keeper: Store,
    engine: Engine,
    everything: bool,
) -> Audit | None:
    """The audit that stands for this job; None for a reference that lays out no rows (a server).

    What the store knows is obeyed where it covers the job's rows. Else rows of the whole job are audited, whatever is stored
    of it already. The weaker of the two layouts stands; the stronger is refuted, and shards scored in it do not count any more.
    """
    reference: Any = open_reference()
    if not hasattr(reference, "audit"):
        return None
    chosen = list(blocks) if everything else blocks.telling()
    encoded = [each for block in chosen for each in reference.encode(block.items)]
    asked = Span.around(encoded)
    versions, record = _versions(), keeper.record("audits", address)
    before, told, compared = _read(record) if record else (None, asked, [])
    if before and not everything and record["versions"] == versions and asked in told:
        return replace(before, seconds=0.0)
    audit = getattr(engine, "audit", LocalEngine().audit)(open_reference, [block.items for block in chosen], everything)
    keys = _keys_of(audit, chosen, encoded)
    if before:
        asked, keys = asked.joined(told), sorted({*keys, *compared})
        weaker = max(before.layout, audit.layout, key=LAYOUTS.index)
        audit = replace(audit, layout=weaker, head=audit.head and before.head, span=audit.span.joined(before.span))
    refuted = list(LAYOUTS[: LAYOUTS.index(audit.layout)]) if record else []
    note = {"audit": audit.record(), "asked": asdict(asked), "keys": keys, "refuted": refuted, "versions": versions}
    keeper.keep("audits", address, note)
    return audit


def _read(record: Mapping[str, Any]) -> tuple[Audit, Span, list[str]]:
    """The audit, the rows that it was asked for, and the keys that it compared. StoreError for another version's record."""
    try:
        return Audit.read(record["audit"]), Span(**record["asked"]), list(map(str, record["keys"]))
    except (LookupError, TypeError, ValueError) as error:
        raise StoreError(
            f"A record in audits/ is of another version ({error}). Remove it: the reference is audited anew."
        ) from error


def changed_scores(opener: Opener, address: str, blocks: Blocks, keeper: Store, engine: Engine) -> str | None:
    """Scores the longest of some stored rows again where torch or transformers are other versions than when they were audited:
    a sentence where the numbers have become others by more than rounding."""
    record = keeper.record("audits", address) if hasattr(opener(), "audit") else None
    if not record or record["versions"] == _versions():
        return None
    opener.audit, index, kept = _read(record)[0], KeyIndex(blocks.keys), dict[int, float]()
    for part in keeper.parts(address):
        if isinstance(part, Damage):
            continue
        places = index.locate(part.keys)
        some = np.flatnonzero(places >= 0)
        some = some[np.argsort(-part.lengths[some], kind="stable")][:CHECKED]
        kept = dict(zip(places[some].tolist(), part.logps[some].tolist()))
        if kept:
            break
    again = blocks.without(~np.isin(np.arange(len(blocks.keys)), list(kept)))
    unit = torch.finfo(getattr(torch, str(opener().identity().get("dtype")), torch.bfloat16)).eps
    with closing(engine.run(opener, again)) as results:
        for place, scored in results if kept else ():
            before = torch.tensor([kept[each] for each in again[place].places.tolist()])
            _, worst = beyond_rounding(scored.logps, before, scored.lengths, unit)
            if worst is not None:
                was, now = (
                    ", ".join(f"{name} {number}" for name, number in each.items()) for each in (record["versions"], _versions())
                )
                return (
                    f"was scored with {was}, and with {now} a completion of {int(scored.lengths[worst])} tokens has "
                    f"{float(scored.logps[worst]):.6g} nats for {float(before[worst]):.6g}."
                )
    return None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers")}


def changed_tokens(reference: Any, texts: Mapping[bytes, tuple[Any, Any]], digests: Mapping[bytes, int]) -> str | None:
    """Encodes stored rows again: a sentence where one has become other token ids than those that were scored."""
    for key, (prompt, completion) in texts.items():
        with warnings.catch_warnings():  # said when they were scored
            warnings.simplefilter("ignore", MultirefWarning)
            (encoded,) = reference.encode([Item(prompt, (completion,))])
        if digests[key] and encoded.digest(0) != digests[key]:
            return (
                f"was scored on other token ids than its tokenizer and template give today (the completion {completion!r:.60} "
                f"of the prompt {prompt!r:.60})."
            )
    return None


def _keys_of(audit: Audit, blocks: Sequence[Block], encoded: Sequence[Encoded]) -> list[str]:
    """Content keys of the completions that were compared."""
    digests = [each.digest(i) for each in encoded for i in range(len(each.completions))]
    at = np.isin(np.array(digests, np.uint64), np.array(audit.rows, np.uint64))
    keys = [key for block in blocks for key in block.keys]
    return sorted({keys[i].hex() for i in np.flatnonzero(at)})
