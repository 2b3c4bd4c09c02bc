"""`References`: K frozen models under their names, and one call that scores with all of them, once, into a store."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
import torch

from multiref._progress import watched_by
from multiref.data import read
from multiref.errors import ArgumentError, ModelError
from multiref.models.forward import LOGITS_BUDGET
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.references.audits import CHECKED, agree_on_layout, changed_scores, changed_tokens
from multiref.references.cost_estimate import PLANNING, Cluster, CostEstimate, Forecast, measure_cost, reckon_cost
from multiref.references.engines import Engine
from multiref.references.engines import engine as engine_named
from multiref.references.identity import say_of_templates
from multiref.references.keys import KeyIndex
from multiref.references.local import LocalReference
from multiref.references.plan import Block, Blocks, Texts, plan
from multiref.references.progress import Listener
from multiref.references.protocol import Reference, Scored
from multiref.references.resolve import Opener, location
from multiref.references.scores import SequenceScores, check_names
from multiref.references.store import Damage, Rows, Store
from multiref.references.store.shards import ABOVE
from multiref.references.stored import join


class References:
    """K references by name.

        refs = References({"base": "path-or-hub-id", "math": {"model": "path", "adapter": "path"}, "mine": an_object})
        scores = refs.score(pairs, store="scores/")

    Args:
        references: name → a model folder or hub id; a `ModelSpec`; the URL of a completion server; a mapping of arguments (see
            `resolve.Opener`); or an object with `identity()` and `score(items)`. A list of (name, reference) does too.
        tokenisation: what is scored, of every reference that is opened here.
        dtype, device, token_budget, logits_budget: as of `LocalReference`, for those on this machine.

    One reference is in memory at a time, unless they are objects that are there already. Errors: `ArgumentError` for two
    references with one name; `ModelError` for one that cannot be opened.
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
        rows = references.items() if isinstance(references, Mapping) else references
        named = list(rows) if isinstance(rows, Iterable) else [references]
        if not all(isinstance(each, tuple) and len(each) == 2 for each in named):
            raise ArgumentError("references: expected {name: path, hub id, URL or object}, found a list without names.")
        check_names([name for name, _ in named])
        self.named = dict(named)
        here = {"dtype": dtype, "device": device, "token_budget": token_budget, "logits_budget": logits_budget}
        self._identities: dict[str, Mapping[str, Any]] = {}
        self._tokenizers: dict[str, Any] = {}
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

    def local(self) -> list[LocalReference]:
        """Those that are models on this machine, opened. ArgumentError where none is: texts are encoded and drawn with one."""
        found = [each for each in map(self.open, self.names) if isinstance(each, LocalReference)]
        if not found:
            raise ArgumentError(
                "references: none is a model on this machine, and completions are drawn from one. "
                "Give a folder or a hub id beside the servers."
            )
        return found

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
            data: pairs, rows of TRL's preference format, or (prompt, completion) tuples; or where pairs are (a file, a folder,
                a URL, a hub id: see `read_pairs`), which are then held on disk, in the store.
            store: a folder (made if it is not there) or a `Store`; None keeps nothing.
            engine: "local", "ray", or an engine with settings of its own.
            progress: told what happens; None: whoever watches is, notices being Python warnings.
            shard_size: completions per shard, about; None: 1/64 of the job, between 256 and 8,192.
                A killed run loses at most the open shard, and a run of the same job ends with the same bits.
            audit: how many rows are also scored alone, plainly, before the first is stored, to find the layout that gives the
                same: "some", a few that tell most, for at most a fiftieth of the time of large jobs; or "all".

        Returns: the unique completions of `data` in the order of their content keys, [K, N].
        """
        if audit not in ("some", "all"):
            raise ArgumentError(f"audit is {audit!r}; expected 'some' or 'all'.")
        listener = progress or Listener()
        with _kept(store) as keeper:
            texts = Texts(_spooled(data, keeper.folder))
            blocks = _planned(texts, shard_size)
            addresses = [self._one(name, blocks, keeper, engine_named(engine), listener, audit == "all") for name in self.names]
            keeper.manifest()
            if (differing := say_of_templates(self._tokenizers, (prompt for prompt, _ in texts))) is not None:
                listener.notice(differing)
            keys = blocks.keys
            del texts, blocks
            with watched_by(None):  # scoring is what was told of
                return join(keeper, dict(zip(self.names, addresses)), [self._identities[name] for name in self.names], keys)

    def estimate_cost(
        self,
        data: Iterable[Any],
        cluster: str = "1xlocal",
        *,
        store: str | os.PathLike[str] | Store | None = None,
        shard_size: int | None = None,
        engine: str | Engine | None = None,
        pairs: int | None = None,
    ) -> Forecast:
        """What `score` would take. Nothing is stored.

        Args:
            cluster: "2xlocal": so many workers on this machine, on which some of the job is done and timed; "64xH100": reckoned
                from the maker's figures (`cost_estimate.DEVICES`), and never run.
            engine: what is timed; None: as `cluster` says.
            pairs: for another cluster: so many, of which `data` are some; None: these.
            data, store, shard_size: as of `score`.

        Errors: ArgumentError for an unknown cluster, one that a model does not fit, or `pairs` on this machine.
        """
        kind, began = Cluster.parse(cluster), time.perf_counter()
        if kind.local and pairs is not None:
            raise ArgumentError("pairs is for another cluster: what is measured on this machine is the data as they are.")
        with _kept(store) as keeper:
            texts = Texts(_spooled(data, gettempdir()))
            blocks, found = _planned(texts, shard_size), list[CostEstimate]()
            planning = time.perf_counter() - began
            for name in self.names:
                opener, opening = self._opener(self.named[name]), time.perf_counter()
                opener.settle(keeper)
                missing = _missing(opener, blocks, keeper)
                if kind.local:
                    timed = engine_named(engine or kind.engine())
                    found.append(measure_cost(name, opener, blocks, missing, timed, since=opening))
                else:
                    found.append(reckon_cost(name, opener, blocks, missing, kind, (pairs or texts.rows) / texts.rows))
                getattr(opener.opened, "release", lambda: None)()
        return Forecast(kind, found, planning if kind.local else PLANNING * found[0].wanted)

    def _one(self, name: str, blocks: Blocks, keeper: Store, engine: Engine, listener: Listener, everything: bool) -> str:
        """One reference's turn: what is not stored is scored and stored. → its address there."""
        start, row = time.perf_counter(), _Row(len(blocks.keys))
        opener = self._opener(self.named[name])
        opener.settle(keeper, say=listener.notice)
        reference = opener()
        where = location(self.named[name])
        address, identity = _introduce(name, reference, where, keeper, listener)
        self._identities[name] = {**identity, "location": where}
        self._tokenizers[name] = getattr(reference, "tokenizer", None)
        _read(name, reference, address, blocks, row, keeper, listener)
        halved: list[int] = []
        with ExitStack() as stack:  # whatever happens, workers are let go and the model is released
            stack.callback(getattr(reference, "release", lambda: None))
            stack.callback(getattr(reference, "obey", lambda audit: None), None)
            if everything or not row.there.all():
                stack.enter_context(keeper.alone(address, waiting=listener.notice))
                if why := changed_scores(opener, address, blocks, keeper, engine):
                    _set_aside(name, why, address, keeper, listener)
                opener.audit = agree_on_layout(opener, address, blocks, keeper, engine, everything)
                _read(name, reference, address, blocks, row, keeper, listener)  # less what the audit refuted
            missing, layout = blocks.without(row.there), opener.audit.layout if opener.audit else ""
            stored = len(blocks.keys) - missing.completions
            listener.begin(name, completions=len(blocks.keys), stored=stored)
            results = stack.enter_context(closing(engine.run(opener, missing))) if missing else ()
            for index, scored in results:
                block = missing[index]
                part = _as_rows(name, block, scored)
                keeper.append(address, part, layout=layout, halved=scored.halved)
                halved.append(scored.halved)
                row.fill(block.places, part)
                listener.advance(name, completions=len(part), tokens=int(part.lengths.sum()))
                del block, part, scored  # before the next one is made
        if any(halved):
            listener.notice(
                f"{name!r}: memory ran out in {sum(map(bool, halved))} of {len(halved)} blocks, which were scored again with "
                f"fewer tokens in a pass ({min(filter(None, halved))} at least); by rounding their scores may be others."
            )
        if opener.audit:
            listener.audited(name, opener.audit.summary(), opener.audit.seconds / (time.perf_counter() - start))
        if not row.there.all():
            raise ModelError(
                f"The engine handed back no score for {int((~row.there).sum()):,} of {len(row.there):,} completions under "
                f"{name!r}; expected all."
            )
        if row.truncated.any():
            listener.notice(
                f"{int(row.truncated.sum()):,} of {len(row.there):,} texts did not fit {name!r} and are marked as truncated in "
                "its scores."
            )
        listener.end(name)
        return address


class _Row:
    """What is to be known of one reference's scores of U completions, in the order of their keys: arrays [U], where `there`."""

    def __init__(self, completions: int) -> None:
        self.truncated, self.digests, self.there = (np.zeros(completions, kind) for kind in (bool, np.uint64, bool))

    def fill(self, places: np.ndarray, rows: Rows) -> None:
        self.truncated[places], self.digests[places], self.there[places] = rows.truncated, rows.digests, True

    def read(self, keeper: Store, address: str, keys: np.ndarray) -> list[Damage]:
        """Begin with what is stored; of a completion that is stored twice, the first. → what is damaged."""
        self.there[:] = False
        damage, index = list[Damage](), None
        for part in keeper.parts(address):
            if isinstance(part, Damage):
                damage.append(part)
                continue
            index = index or KeyIndex(keys)  # only where something is stored
            at = index.locate(part.keys)
            new = np.flatnonzero((at >= 0) & ~self.there[at])
            self.fill(at[new], part.take(new))
        return damage


def _read(name: str, reference: Reference, address: str, blocks: Blocks, row: _Row, keeper: Store, listener: Listener) -> None:
    """What is stored of a reference and counts. What is damaged, refuted, or was other tokens is set aside, and said."""
    for damaged in row.read(keeper, address, blocks.keys):  # counts as missing
        listener.notice(f"{damaged} It was set aside as {keeper.quarantine(damaged)}.")
    stored = np.flatnonzero(row.there & (row.digests != 0))
    some = stored[:: max(1, len(stored) // CHECKED)][:CHECKED].tolist()
    if some and hasattr(reference, "encode"):
        digests = {bytes(blocks.keys[at]): int(row.digests[at]) for at in some}
        if why := changed_tokens(reference, {bytes(blocks.keys[at]): blocks.text_of(at) for at in some}, digests):
            _set_aside(name, why, address, keeper, listener)
            row.there[:] = False


def _set_aside(name: str, why: str, address: str, keeper: Store, listener: Listener) -> None:
    """All shards of a reference go to `damaged/`."""
    shards = keeper.shards(address)
    for path in shards:
        keeper.quarantine(Damage(path, f"The shard {path} {why}"))
    listener.notice(f"{name!r} {why} All its {len(shards):,} shards were set aside (damaged/), and it is scored again.")


def _missing(opener: Opener, blocks: Blocks, keeper: Store) -> Blocks:
    """What is not stored of a reference."""
    row = _Row(len(blocks.keys))
    row.read(keeper, keeper.address(opener().identity()), blocks.keys)
    return blocks.without(row.there)


@contextmanager
def _kept(store: str | os.PathLike[str] | Store | None) -> Iterator[Store]:
    """Where scores are kept; None: a folder that lasts as long as the call."""
    if store is None:
        with TemporaryDirectory(prefix="multiref-", ignore_cleanup_errors=True) as folder:
            yield Store(folder)
    else:
        yield store if isinstance(store, Store) else Store(store)


def _spooled(data: Any, folder: str | os.PathLike[str]) -> Any:
    """The rows of a call: as they were given, or, where it was said where they are, held on disk in this folder."""
    return read(data, spool=folder).pairs if isinstance(data, str | os.PathLike) else data


def _planned(texts: Texts, shard_size: int | None) -> Blocks:
    if not len(texts):
        raise ArgumentError("There is nothing to score: the data has no rows. Expected at least one pair or completion.")
    return plan(texts, shard_size=shard_size)


def _introduce(name: str, reference: Reference, where: str, keeper: Store, listener: Listener) -> tuple[str, Mapping[str, Any]]:
    """Register a reference with the store, and say so if something else was once scored from the same place."""
    identity = reference.identity()
    address = keeper.address(identity)
    placed = not where.startswith("<")  # objects have no place of their own
    for other, note in keeper.predecessors(address, location=where).items() if placed else ():
        before = note["identity"]
        changed = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
        listener.notice(
            f"What is at {where} ({name!r}) is not what was scored from there before ({other[:8]}): {', '.join(changed)} "
            f"changed. It is scored anew as {address[:8]}; the old scores stay under {other[:8]}."
        )
    keeper.register(identity, name=name, location=where)
    return address, identity


def _as_rows(name: str, block: Block, scored: Scored) -> Rows:
    """A block's scores as rows to store, after checking that they can be scores at all."""
    parts = scored.logps, scored.lengths, scored.truncated
    logps, lengths, truncated = (np.asarray(part.detach().cpu().numpy()) for part in parts)
    if not (logps.shape == lengths.shape == truncated.shape == (len(block),)):
        raise ModelError(
            f"Reference {name!r} gave {logps.shape} scores for {len(block)} completions; expected one each, in their order."
        )
    bad = np.flatnonzero(np.isnan(logps) | (logps > ABOVE) | (lengths < 0))
    if len(bad):
        at = int(bad[0])
        prompt = [item.prompt for item in block.items for _ in item.completions][at]
        raise ModelError(
            f"Reference {name!r} gave {float(logps[at])} over {int(lengths[at])} tokens for a completion of the prompt "
            f"{prompt!r:.80}; expected a log-probability, at most 0. Check its weights and dtype (float16 overflows to NaN)."
        )
    return Rows(
        np.frombuffer(b"".join(block.keys), "V16"),
        logps.astype(np.float64),
        lengths.astype(np.int32),
        truncated.astype(bool),
        np.zeros(len(block), np.uint64) if scored.digests is None else np.asarray(scored.digests, np.uint64),
    )
