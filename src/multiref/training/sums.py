"""Which checkpoint is whole: the sums of its files, written once they all are, and compared before any of them is read; and
whether what `transformers.Trainer` pickles beside the weights is state (optimizer, schedule, random numbers), no program."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from zipfile import BadZipFile

import torch
import xxhash
from torch.serialization import get_unsafe_globals_in_checkpoint

from multiref._files import open_file, read_text, write_whole
from multiref._json import parse_json
from multiref.errors import OutputError

SUMS = "sums.json"
_NAME = re.compile(r"checkpoint-(\d{1,12})")
_RANK = re.compile(r"(?:rng_state_|rank_?|__)(\d+)\D")  # rng_state_1.pth, …_rank1.pt, __1_0.distcp: written by rank 1
_LARGEST = 2**50
_PICKLES = ("optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "pytorch_model*.bin", "adapter_model*.bin")
# numpy's state of random numbers, beside the tensors and plain values that `weights_only` takes
_ALLOWED = {
    "_codecs.encode", "numpy.ndarray", "numpy.dtype", "numpy.dtypes.UInt32DType", "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
}  # fmt: skip


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder; −1 of any other."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match and path.is_dir() else -1


def write_sums(folder: Path, *, rank: int = 0, world: int = 1, known: Mapping[str, bytes] = {}) -> None:
    """Called by every rank when it has written its files: each flushes and hashes its own, and rank 0 writes sums.json when
    all have, whole or not at all. known: file → its bytes, of those that were flushed already."""
    own = [path for path in _files(folder) if (rank if world == 1 else _rank(path, world)) == rank]
    found = {path.relative_to(folder).as_posix(): _sum(path, flush=True) for path in own if path.name not in known}
    found |= {name: [len(content), xxhash.xxh3_128_hexdigest(content)] for name, content in known.items()}
    if world > 1:
        gathered: list[dict[str, list[int | str]] | None] = [None] * world
        torch.distributed.all_gather_object(gathered, found)
        found = {name: value for part in gathered if part for name, value in part.items()}
    if rank == 0:
        write_whole(folder / SUMS, json.dumps(dict(sorted(found.items())), indent=0))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its sums; None where it is whole."""
    path = folder / SUMS
    if not path.exists():
        return "sums.json is missing: it was not written to its end"
    try:
        known = parse_json(read_text(path, "sums of a checkpoint", error=OutputError), SUMS, error=OutputError)
        if not isinstance(known, dict) or not known:
            return "sums.json holds no sums"
        for name in sorted(known.keys() ^ {path.relative_to(folder).as_posix() for path in _files(folder)}):
            return f"{name} is {'missing' if name in known else 'there, which was not saved with it'}"
        changed = (name for name in known if _sum(folder / name, like=known[name]) != known[name])
        return next((f"{name} has changed since it was written" for name in changed), None)
    except OutputError as error:
        return str(error)


def newest_whole(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """(the newest checkpoint whose sums agree, newer ones with what is wrong with them)."""
    bad: dict[Path, str] = {}
    for path in sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0), key=step_of, reverse=True):
        problem = damage(path)
        if problem is None:
            return path, bad
        bad[path] = problem
    return None, bad


def remove_old(folder: Path, keep: int | None, *, spared: Collection[Path] = ()) -> None:
    """The last `keep` checkpoints stay, and those that are spared; 0 or None: all."""
    known = sorted((path for path in folder.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)
    old = [path for path in known[:-1] if path not in spared]
    for path in old[: max(0, len(known) - keep)] if keep else []:
        shutil.rmtree(path, ignore_errors=True)


def set_aside(paths: Iterable[Path]) -> None:
    """Out of the way: what was never written to its end is removed, what changed since is kept under another name."""
    for path in paths:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            if (path / SUMS).exists():
                os.replace(path, aside)
            else:
                shutil.rmtree(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be moved away ({error.strerror}); remove it and start again.") from error


def _files(folder: Path) -> list[Path]:
    """Everything in a checkpoint but the sums and what systems leave (hidden files); an empty folder too."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(".")
        and path.name != SUMS
        and (path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    ]


def _rank(path: Path, world: int) -> int:
    match = _RANK.search(path.name)
    return int(match[1]) % world if match else 0


def _sum(path: Path, *, flush: bool = False, like: object = None) -> list[int | str]:
    """[bytes, XXH3 of 128 bits], of a file of another size than `like` no sum; OutputError for what is no file."""
    with open_file(path, "a file of a checkpoint", largest=_LARGEST, error=OutputError) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if isinstance(like, list) and like[:1] != [size]:
                return [size, ""]  # another one, however long it would take to read it
            if flush:
                os.fsync(file.fileno())
            return [size, hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()]
        except OSError as error:
            raise OutputError(
                f"{path} cannot be read ({error.strerror}); make it readable, or remove its checkpoint."
            ) from error


def check_pickled(checkpoint: Path) -> None:
    """OutputError for a file that Trainer would unpickle and that names anything else, before any of it is read: sums find
    damage, not malice."""
    for file in sorted(file for pattern in _PICKLES for file in checkpoint.glob(pattern)):
        try:
            names = set(get_unsafe_globals_in_checkpoint(str(file))) - _ALLOWED
        except (OSError, ValueError, RuntimeError, BadZipFile, EOFError) as error:
            raise OutputError(f"{file} is no state that a run writes ({error}); go on from another checkpoint.") from error
        if names:
            raise OutputError(
                f"{file} would run code when it is read ({', '.join(sorted(names)[:3])}); it is not read. Remove it."
            )
