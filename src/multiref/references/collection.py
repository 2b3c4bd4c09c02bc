"""`References`: K frozen models under their names, and one call that scores with all of them, once, into a store."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property, partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from multiref.errors import ArgumentError, ModelError
from multiref.models.forward import LOGITS_BUDGET
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.references.audits import CHECKED, agree_on_layout, changed_tokens, set_aside
from multiref.references.cost_estimate import CostEstimate, estimate_cost
from multiref.references.engines import Engine
from multiref.references.engines import engine as engine_named
from multiref.references.identity import say_of_templates
from multiref.references.keys import KeyIndex, content_keys, unique_keys
from multiref.references.plan import Block, plan, wanted
from multiref.references.progress import Listener
from multiref.references.protocol import Reference, Scored
from multiref.references.resolve import Opener, location
from multiref.references.scores import SequenceScores, check_names
from multiref.references.store import Rows, Store
from multiref.references.store.shards import ABOVE


class References:
    """K references by name.

        refs = References({"base": "path-or-hub-id", "math": {"model": "path", "adapter": "path"}, "mine": an_object})
        scores = refs.score(pairs, store="scores/")

    Args:
        references: name → a model folder or hub id; a `ModelSpec`; the URL of a completion server; a mapping of arguments (see
            `resolve.Opener`); or an object with `identity()` and `score(items)`. A list of (name, reference) does too.
        tokenisation: what is scored, of every reference that is opened here.
        dtype, device, token_budget, logits_budget: as of `LocalReference`, for those on this machine.

    One reference is in memory at a time, unless they are objects that are there already. Errors:
        `ArgumentError` for two references
    with one name; `ModelError` for one that cannot be opened.
    """

    def __init__(
        self,
        references: Mapping[str, Any] | Iterable[tuple[str, Any]],
        *,
        tokenisation: Tokenisation = TOKENISATION,
        dtype: str = "auto",
        device: str | torch.device | None = None,
        token_budget: int | None = None,
        logits_budget: int = LOGITS_BUDGET,
    ) -> None:
        named = list(references.items()) if isinstance(references, Mapping) else list(references)
        check_names([name for name, _ in named])
        self.named = dict(named)
        here = {"dtype": dtype, "device": device, "token_budget": token_budget, "logits_budget": logits_budget}
        self._identities: dict[str, Mapping[str, Any]] = {}
        self._opener = partial(Opener, tokenisation=tokenisation, here=here)

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the rows of every score."""
        return tuple(self.named)

    def __repr__(self) -> str:
        return f"References({', '.join(f'{name}={location(what)}' for name, what in self.named.items())})"

    def open(self, name: str) -> Reference:
        """The reference of this name, opened."""
        return self._opener(self.named[name])()

    def score(
        self,
        data: Iterable[Any],
        *,
        store: str | os.PathLike[str] | Store | None = None,
        engine: str | Engine = "local",
        progress: Listener | None = None,
        shard_size: int | None = None,
        audit: str = "some",
    ) -> SequenceScores:
        """Every completion of `data` under every reference: what is stored is read, what is missing is scored and stored.

        Args:
            data: pairs, rows of TRL's preference format, or (prompt, completion) tuples.
            store: a folder (made if it is not there) or a `Store`; None keeps nothing.
            engine: "local", "ray", or an engine with settings of its own.
            progress: told what happens; None is silent, notices being Python warnings.
            shard_size: completions per shard, about; None: 1/64 of the job, between 256 and 8,192.
                A killed run loses at most the open shard, and a run of the same job ends with the same bits.
            audit: how many rows are also scored alone, plainly, before the first is stored, to find the layout that gives the
                same: "some", a few that tell most, for at most a fiftieth of the time of large jobs; or "all".

        Returns: the unique completions of `data` in the order of their content keys, [K, N].
        """
        if audit not in ("some", "all"):
            raise ArgumentError(f"audit is {audit!r}; expected 'some' or 'all'.")
        listener = progress or Listener()
        job = _Job(data, shard_size)
        with _kept(store) as keeper:
            columns = [self._one(name, job, keeper, engine_named(engine), listener, audit == "all") for name in self.names]
            keeper.manifest()
        tokenizers = {name: getattr(self.open(name), "tokenizer", None) for name in self.names}
        if (differing := say_of_templates(tokenizers, (prompt for prompt, _ in job.texts))) is not None:
            listener.notice(differing)
        return SequenceScores(
            self.names,
            job.keys,
            torch.stack([torch.from_numpy(rows.logps) for rows in columns]),
            torch.stack([torch.from_numpy(rows.lengths.astype(np.int64)) for rows in columns]),
            torch.stack([torch.from_numpy(rows.truncated) for rows in columns]),
            np.stack([rows.digests for rows in columns]),
            tuple(self._identities[name] for name in self.names),
        )

    def estimate_cost(
        self,
        data: Iterable[Any],
        *,
        store: str | os.PathLike[str] | Store | None = None,
        shard_size: int | None = None,
        measure: bool = True,
    ) -> list[CostEstimate]:
        """What `score` would do with the same arguments, per reference. Nothing is written;
        with `measure`, a few completions are timed."""
        job = _Job(data, shard_size)
        estimates = []
        with _kept(store) as keeper:
            for name in self.names:
                reference = self.open(name)
                blocks = job.missing(keeper.read(keeper.address(reference.identity()))[0].keys)
                estimates.append(estimate_cost(name, reference, wanted=len(job.keys), blocks=blocks, measure=measure))
                getattr(reference, "release", lambda: None)()
        return estimates

    def _one(self, name: str, job: "_Job", keeper: Store, engine: Engine, listener: Listener, everything: bool) -> Rows:
        """One reference's turn: its rows for the job's keys, in their order."""
        start = time.perf_counter()
        opener = self._opener(self.named[name])
        reference = opener()
        where = location(self.named[name])
        address, identity = _introduce(name, reference, where, keeper, listener)
        self._identities[name] = {**identity, "location": where}
        rows = _read(name, reference, address, job, keeper, listener)
        parts: list[Rows] = []
        halved: list[int] = []
        with ExitStack() as stack:  # whatever happens, workers are let go and the model is released
            stack.callback(getattr(reference, "release", lambda: None))
            stack.callback(getattr(reference, "obey", lambda audit: None), None)
            if everything or job.missing(rows.keys):
                stack.enter_context(keeper.alone(address, waiting=listener.notice))
                opener.audit = agree_on_layout(opener, address, job.blocks, keeper, engine, everything)
                rows = _read(name, reference, address, job, keeper, listener)  # less what the audit refuted
            missing, layout = job.missing(rows.keys), opener.audit.layout if opener.audit else ""
            stored = len(job.keys) - sum(map(len, missing))
            listener.begin(name, completions=len(job.keys), stored=stored, characters=sum(block.size() for block in missing))
            results = stack.enter_context(closing(engine.run(opener, missing))) if missing else ()
            for index, scored in results:
                part = _as_rows(name, missing[index], scored)
                keeper.append(address, part, layout=layout, halved=scored.halved)
                halved.append(scored.halved)
                parts.append(part)
                listener.advance(name, completions=len(part), tokens=int(part.lengths.sum()), characters=missing[index].size())
        if any(halved):
            listener.notice(
                f"{name!r}: memory ran out in {sum(map(bool, halved))} of {len(halved)} blocks, which were scored again with "
                f"fewer tokens in a pass ({min(filter(None, halved))} at least); by rounding their scores may be others."
            )
        if opener.audit:
            listener.audited(name, opener.audit.summary(), opener.audit.seconds / (time.perf_counter() - start))
        rows = Rows.concatenate([rows, *parts])
        at = KeyIndex(rows.keys).locate(job.keys)
        if (at < 0).any():
            raise ModelError(
                f"The engine handed back no score for {int((at < 0).sum()):,} of {len(at):,} completions under {name!r}; "
                f"expected all."
            )
        rows = rows.take(at)
        if rows.truncated.any():
            listener.notice(
                f"{int(rows.truncated.sum()):,} of {len(rows):,} texts did not fit {name!r} and are marked as truncated in its "
                f"scores."
            )
        listener.end(name)
        return rows


def _read(name: str, reference: Reference, address: str, job: "_Job", keeper: Store, listener: Listener) -> Rows:
    """What is stored of a reference and counts. What is damaged, refuted, or was other tokens is set aside, and said."""
    rows, damage = keeper.read(address)
    for damaged in damage:  # counts as missing
        listener.notice(f"{damaged} It was set aside as {keeper.quarantine(damaged)}.")
    stored = np.flatnonzero(KeyIndex(job.keys).locate(rows.keys) >= 0)
    some = rows.take(stored[:: max(1, len(stored) // CHECKED)][:CHECKED])
    if hasattr(reference, "encode") and some.digests.any():
        digests = dict(zip((bytes(key) for key in some.keys), some.digests.tolist()))
        if why := changed_tokens(reference, job.texts_of(digests), digests):
            count = set_aside(keeper, address, why)
            listener.notice(f"{name!r} {why} All its {count:,} shards were set aside (damaged/), and it is scored again.")
            return Rows.concatenate([])
    return rows


@contextmanager
def _kept(store: str | os.PathLike[str] | Store | None) -> Iterator[Store]:
    """Where scores are kept; None: a folder that lasts as long as the call."""
    if store is None:
        with TemporaryDirectory(prefix="multiref-", ignore_cleanup_errors=True) as folder:
            yield Store(folder)
    else:
        yield store if isinstance(store, Store) else Store(store)


class _Job:
    """The texts of one call: their unique keys, and (only if something is missing) the plan."""

    def __init__(self, data: Iterable[Any], shard_size: int | None):
        self.texts, self.shard_size = list(wanted(data)), shard_size
        if not self.texts:
            raise ArgumentError("There is nothing to score: the data has no rows. Expected at least one pair or completion.")
        self._keys = content_keys(*zip(*self.texts))
        self.keys = unique_keys(self._keys)

    def texts_of(self, keys: Iterable[bytes]) -> dict[bytes, tuple[Any, Any]]:
        """Key → (prompt, completion), for keys of this job."""
        wanted = list(keys)
        at = KeyIndex(self._keys).locate(np.frombuffer(b"".join(wanted), "V16"))
        return {key: self.texts[i] for key, i in zip(wanted, at.tolist())}

    @cached_property
    def blocks(self) -> list[Block]:
        return plan(self.texts, shard_size=self.shard_size)

    def missing(self, stored: np.ndarray) -> list[Block]:
        """The blocks, less what is stored. What remains of a block depends on the store only through these texts' own keys."""
        there = KeyIndex(stored).locate(self.keys) >= 0
        if there.all():
            return []
        have = frozenset(self.keys[there].tolist())
        left = (block.without(have) for block in self.blocks)
        return [block for block in left if len(block)]


def _introduce(name: str, reference: Reference, where: str, keeper: Store, listener: Listener) -> tuple[str, Mapping[str, Any]]:
    """Register a reference with the store, and say so if something else was once scored from the same place."""
    identity = reference.identity()
    address = keeper.address(identity)
    elsewhere = (
        {} if where.startswith("<") else keeper.predecessors(address, location=where)
    )  # objects have no place of their own
    for other, note in elsewhere.items():
        changed = sorted(
            key for key in identity.keys() | note["identity"].keys() if identity.get(key) != note["identity"].get(key)
        )
        listener.notice(
            f"What is at {where} ({name!r}) is not what was scored from there before ({other[:8]}): {', '.join(changed)} "
            f"changed. "
            f"It is scored anew as {address[:8]}; the old scores stay under {other[:8]}."
        )
    keeper.register(identity, name=name, location=where)
    return address, identity


def _as_rows(name: str, block: Block, scored: Scored) -> Rows:
    """A block's scores as rows to store, after checking that they can be scores at all."""
    logps, lengths, truncated = (
        np.asarray(part.detach().cpu().numpy()) for part in (scored.logps, scored.lengths, scored.truncated)
    )
    if not (logps.shape == lengths.shape == truncated.shape == (len(block),)):
        raise ModelError(
            f"Reference {name!r} gave {logps.shape} scores for {len(block)} completions; expected one each, in the order of "
            f"the items."
        )
    bad = np.flatnonzero(np.isnan(logps) | (logps > ABOVE) | (lengths < 0))
    if len(bad):
        at = int(bad[0])
        prompt = [item.prompt for item in block.items for _ in item.completions][at]
        raise ModelError(
            f"Reference {name!r} gave {float(logps[at])} over {int(lengths[at])} tokens for a completion of the prompt "
            f"{prompt!r:.80}; expected "
            "a log-probability, at most 0. Check the model's weights and dtype (float16 overflows to NaN)."
        )
    return Rows(
        np.frombuffer(b"".join(block.keys), "V16"),
        logps.astype(np.float64),
        lengths.astype(np.int32),
        truncated.astype(bool),
        np.zeros(len(block), np.uint64) if scored.digests is None else np.asarray(scored.digests, np.uint64),
    )
