"""In which layout a reference scores a job: audited on rows of the whole job, kept beside its scores, obeyed by all workers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from multiref.errors import MultirefWarning, StoreError
from multiref.models.audit import Audit
from multiref.models.batching import LAYOUTS, Span
from multiref.models.encoding import Encoded
from multiref.references.engines import Engine, LocalEngine
from multiref.references.plan import Block, Blocks
from multiref.references.protocol import Item, Reference
from multiref.references.store import Damage, Store

CHECKED = 8  # stored rows that are encoded again, to compare


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
    versions = {name: version(name) for name in ("torch", "transformers")}
    record = keeper.audit(address)
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
    keeper.record_audit(address, note)
    return audit


def _read(record: Mapping[str, Any]) -> tuple[Audit, Span, list[str]]:
    """The audit, the rows that it was asked for, and the keys that it compared. StoreError for another version's record."""
    try:
        return Audit.read(record["audit"]), Span(**record["asked"]), list(map(str, record["keys"]))
    except (LookupError, TypeError, ValueError) as error:
        raise StoreError(
            f"A record in audits/ is of another version ({error}). Remove it: the reference is audited anew."
        ) from error


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


def set_aside(keeper: Store, address: str, why: str) -> int:
    """All shards of a reference go to `damaged/`; how many."""
    shards = keeper.shards(address)
    for path in shards:
        keeper.quarantine(Damage(path, f"The shard {path} {why}"))
    return len(shards)


def _keys_of(audit: Audit, blocks: Sequence[Block], encoded: Sequence[Encoded]) -> list[str]:
    """Content keys of the completions that were compared."""
    digests = [each.digest(i) for each in encoded for i in range(len(each.completions))]
    at = np.isin(np.array(digests, np.uint64), np.array(audit.rows, np.uint64))
    keys = [key for block in blocks for key in block.keys]
    return sorted({keys[i].hex() for i in np.flatnonzero(at)})
