"""The folder of a store: what is there, under which reference, and whether it is sound."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiref._files import MIB, as_path, read_text
from multiref._json import parse_json
from multiref._locks import alone
from multiref._progress import each_told
from multiref._sealed import is_sealed, seal
from multiref.errors import MultirefError, StoreError
from multiref.references.store import atomic, manifest, shards
from multiref.references.store.shards import Rows

_RECORDS = {  # what is kept, and what happens once it is gone
    "audits": ("the record of a reference's audit", "the reference is audited anew"),
    "precisions": ("the precision chosen for a model", "it is chosen anew"),
}


@dataclass(frozen=True)
class Damage:
    """A file of the store that is not as it was written: its path and what is wrong with it, in a sentence."""

    path: Path
    what: str

    def __str__(self) -> str:
        return self.what


class Store:
    """A folder of scores. Several processes may read and write it at once; nothing that is in it is ever changed.

        store = Store("scores/")
        identity = store.register(reference.identity(), name="base", location="…")
        rows, damage = store.read(identity)
        store.append(identity, rows)

    Every public method raises `StoreError`, and leaves the store as it was, when the folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], *, create: bool = True):
        self.folder = as_path(folder)
        try:
            found, there = (self.folder / "shards").is_dir(), "is no store of scores (it has no folder `shards`)"
            there = there if self.folder.is_dir() else "is no folder" if self.folder.exists() else "does not exist"
        except OSError as error:  # a name that is too long, say
            found, there = False, f"cannot be read ({error.strerror})"
        if not create and not found:
            raise StoreError(f"{self.folder} {there}. Expected the folder given to `multiref score --store`.")

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    # -- references ------------------------------------------------------------------------------------------------

    @staticmethod
    def address(identity: Mapping[str, Any]) -> str:
        """Identity → 32 hex digits: the folder of a reference's shards. blake2b-128 of its canonical JSON;
        nothing else enters."""
        text = json.dumps(_plain(identity), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def register(self, identity: Mapping[str, Any], *, name: str, location: str) -> str:
        """Note who a reference is, under which name and from where it was used; returns its address.

        Name and location are for people (`ls`, and to notice a model that changed in its place); no score depends on them.
        """
        address = self.address(identity)
        note = self.folder / "references" / f"{address}.json"
        before = self.references().get(address, {"seen": []})["seen"]
        seen = {
            what: text.encode(errors="backslashreplace").decode() for what, text in (("name", name), ("location", location))
        }
        if seen not in before or _note(note) is None:
            known = {"identity": _plain(identity), "seen": [*(each for each in before if each != seen), seen]}
            try:
                atomic.write(note, (json.dumps(known, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode())
            except StoreError:
                if not note.exists():  # a name that could not be noted is no loss where scores are only read
                    raise
        return address

    def references(self) -> dict[str, dict[str, Any]]:
        """Address → {"identity": {…}, "seen": [{"name", "location"}, …]} of every reference noted here."""
        notes = {}
        for path in sorted((self.folder / "references").glob("*.json")):
            if (note := _note(path)) is not None:  # notes are for people; `verify` reports them, reading scores needs them not
                notes[path.stem] = note
        for folder in sorted((self.folder / "shards").glob("*/")):
            notes.setdefault(folder.name, {"identity": {}, "seen": []})  # a lost note loses no score
        return notes

    def names(self) -> dict[str, str]:
        """Address → the name under which each reference was used last; the beginning of its address where none is noted."""
        return {a: note["seen"][-1]["name"] if note["seen"] else a[:8] for a, note in self.references().items()}

    def predecessors(self, address: str, *, location: str) -> dict[str, dict[str, Any]]:
        """References with other content that were used from this location, if this one was not yet:
        the model there has changed."""
        here = {
            other: note
            for other, note in self.references().items()
            if any(seen["location"] == location for seen in note["seen"])
        }
        return {} if address in here else here

    def named(self, name: str) -> str:
        """The address of the reference that was used under this name, or whose address begins with it."""
        notes = self.references()
        found = [address for address, note in notes.items() if any(seen["name"] == name for seen in note["seen"])]
        found = found or [address for address in notes if len(name) >= 4 and address.startswith(name)]
        if len(found) == 1:
            return found[0]
        there = (
            ", ".join(f"{'/'.join(sorted({s['name'] for s in n['seen']})) or '?'} ({a[:8]})" for a, n in notes.items())
            or "none"
        )
        problem = f"{len(found)} references are called {name!r}" if found else f"no reference is called {name!r}"
        raise StoreError(f"In {self.folder} {problem}; there are: {there}. Name one by the beginning of its address.")

    # -- scores ----------------------------------------------------------------------------------------------------

    def shards(self, address: str) -> list[Path]:
        """The shards of one reference, in a fixed order."""
        return sorted((self.folder / "shards" / address).glob("*.parquet"))

    def read(self, address: str) -> tuple[Rows, list[Damage]]:
        """All sound scores of one reference, and the shards that are damaged (left where they are, not read).

        A completion may occur twice if two processes scored it at once; the first in the order of the shards counts, always.
        """
        parts = list(each_told(self.parts(address), "reading the store", len(self.shards(address))))
        return Rows.concatenate([part for part in parts if isinstance(part, Rows)]), [p for p in parts if isinstance(p, Damage)]

    def parts(self, address: str) -> Iterator[Rows | Damage]:
        """The same shard by shard, in their order, with a few in memory at a time."""
        refuted, workers = self.record("audits", address).get("refuted", []), min(8, os.cpu_count() or 1)
        ahead: deque[Future[Rows | Damage]] = deque()
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for path in self.shards(address):
                ahead.append(pool.submit(_attempt, path, address, refuted))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def sound(self, address: str) -> Rows:
        """All scores of one reference. `StoreError` where a shard is damaged."""
        return Rows.concatenate(list(self.sound_parts(address)))

    def sound_parts(self, address: str) -> Iterator[Rows]:
        """The same shard by shard; the error comes last, for it says how many are damaged."""
        damage = list[Damage]()
        for part in each_told(self.parts(address), "reading the store", len(self.shards(address))):
            if isinstance(part, Damage):
                damage.append(part)
            else:
                yield part
        if damage:
            raise StoreError(f"{damage[0]} ({len(damage)} damaged in all; `multiref store verify` lists them.)")

    def append(self, address: str, rows: Rows, *, layout: str = "", halved: int = 0) -> Path:
        """Add a shard, whose rows were laid out so in the model. Atomic; the same rows twice are one file."""
        content = shards.encode(rows, address, layout, halved)
        path = self.folder / "shards" / address / f"{hashlib.sha256(content).hexdigest()}.parquet"
        if not shards.sound(path):
            atomic.write(path, content)
        return path

    def record(self, room: str, address: str) -> dict[str, Any]:
        """What is kept of a reference beside its scores; empty where nothing is.

        "audits": what was found of its layout; "refuted" are layouts whose shards do not count any more. "precisions": what
        `dtype: auto` became for the model with this address (of an identity without a dtype), and why.
        """
        what, again = _RECORDS[room]
        path = self.folder / room / f"{address}.json"
        if not os.path.lexists(path):
            return {}
        text = read_text(path, f"{what}. Remove it: {again}", largest=256 * MIB, error=StoreError)
        record = parse_json(text, str(path), error=StoreError, constants=True, expected=f"Remove it: {again}.")
        if not is_sealed(record) or (room == "audits" and not isinstance(record.get("refuted"), list)):
            raise StoreError(f"{path}, {what}, has changed since it was written. Remove it: {again}.")
        return dict(record)

    def keep(self, room: str, address: str, record: Mapping[str, Any]) -> None:
        """Keep it, so that whoever goes on scores in the same way."""
        text = json.dumps(seal(record), ensure_ascii=False, indent=1, sort_keys=True)
        atomic.write(self.folder / room / f"{address}.json", (text + "\n").encode())

    @contextmanager
    def alone(self, address: str, *, waiting: Callable[[str], None]) -> Iterator[None]:
        """Score under this reference while no other process does: who comes second waits (`waiting` is told for whom), and is
        to read again. StoreError, now rather than after an hour of work, where nothing can be written here."""
        with ExitStack() as held:
            try:
                held.enter_context(alone(self.folder / "shards" / f".{address}.lock", waiting=waiting))
            except OSError as error:
                raise StoreError(atomic.unwritable(self.folder, error)) from error
            yield

    # -- looking after it ------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, dict[str, Any]]:
        """Shard → {"rows", "bytes"}, brought in line with what is there."""
        return manifest.rebuild(self.folder)

    def verify(self) -> list[Damage]:
        """Read everything, compare every checksum, and name what is damaged, lost or unreadable. Empty: the store is sound."""
        changed = "was changed, or is no note of a reference: it does not say who has the address in its name."
        notes = sorted((self.folder / "references").glob("*.json"))
        damage = [Damage(note, f"{note} {changed} Scoring again rewrites it.") for note in notes if _note(note) is None]
        for address in self.references():
            try:
                damage += self.read(address)[1]
            except StoreError as error:
                damage.append(Damage(self.folder / "audits" / f"{address}.json", str(error)))
        for path in sorted((self.folder / "precisions").glob("*.json")):
            try:
                self.record("precisions", path.stem)
            except StoreError as error:
                damage.append(Damage(path, str(error)))
        for name in manifest.read(self.folder):
            path = self.folder / "shards" / name
            if not path.exists():
                damage.append(
                    Damage(path, f"The shard {path} is listed in the manifest but is gone. Score the same data again.")
                )
        return damage

    def quarantine(self, damage: Damage) -> Path:
        """Move a damaged file out of the way (to `damaged/`), for whoever wants to look at it; returns where it is now."""
        target = self.folder / "damaged" / damage.path.name
        try:
            target.parent.mkdir(exist_ok=True)
            os.replace(damage.path, target)
        except FileNotFoundError:
            return target  # another process was quicker
        except OSError as error:
            raise StoreError(atomic.unwritable(target, error)) from error
        return target


def _note(path: Path) -> dict[str, Any] | None:
    """Who has an address, and as what it was used; None for a file that does not say it of the address in its name."""
    try:
        found = parse_json(read_text(path, "the note of a reference", largest=64 * MIB, error=StoreError), str(path))
        identity, names = dict(found["identity"]), ("name", "location")
        seen = [{what: str(each[what]) for what in names} for each in found["seen"]]
        return {"identity": identity, "seen": seen} if Store.address(identity) == path.stem else None
    except (MultirefError, LookupError, TypeError, ValueError):
        return None


def _attempt(path: Path, address: str, refuted: Collection[str]) -> Rows | Damage:
    try:
        return shards.read(path, address, refuted)
    except StoreError as error:
        return Damage(path, str(error))


def _plain(identity: Mapping[str, Any]) -> Any:
    """The identity as JSON holds it (tuples become lists), so that a note read back is the note written."""
    try:
        return json.loads(json.dumps(identity, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"The identity of this reference cannot be written as JSON ({error}); expected a mapping of plain values."
        ) from error
