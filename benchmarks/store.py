"""Opening a large store and joining it to a data set: `python benchmarks/store.py [--pairs 1000000] [--references 4]`.

Makes a synthetic store once (in a temporary folder, or --folder), then measures in a process of its own,
so that the peak of memory is
that of opening and joining alone. Mark: 1,000,000 pairs × 4 references in under 10 s and 1 GiB.

`--join`: pairs that are on disk, joined with their scores as training does it, and read in batches; beside it the same join
with everything in memory, as it was until 2026-11-30. Both must give the same bits. Memory of a pair is what the process has
at its peak above that of 10,000 pairs. Mark: at most 100 bytes at 1,000,000 pairs, however many references there are.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record
from sides import peak_mib, run_side

FEW = 10_000
KINDS = ("logps", "lengths", "truncated", "digests")


def text(number: int) -> tuple[str, str, str]:
    return f"question number {number}", f"the good answer to {number}", f"the bad answer to {number}"


def make(folder: Path, pairs: int, references: int) -> None:
    """A store as `References.score` would leave it, with random scores; and the data set as Parquet."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from multiref.references.keys import content_keys
    from multiref.references.plan import shard_size_for
    from multiref.references.store import Rows, Store

    prompts, chosen, rejected = zip(*map(text, range(pairs)), strict=True)
    keys = np.concatenate([content_keys(prompts, chosen), content_keys(prompts, rejected)])
    random = np.random.default_rng(0)
    store = Store(folder / "scores")
    for number in range(references):
        address = store.register({"kind": "synthetic", "number": number}, name=f"ref{number}", location=f"<synthetic {number}>")
        order = random.permutation(len(keys))
        for start in range(0, len(keys), shard_size_for(len(keys))):
            at = order[start : start + shard_size_for(len(keys))]
            n = len(at)
            store.append(address, Rows(keys[at], -random.gamma(50, 2, n), np.full(n, 55, np.int32), np.zeros(n, bool)))
    store.manifest()
    pq.write_table(pa.table({"prompt": prompts, "chosen": chosen, "rejected": rejected}), folder / "pairs.parquet")


def measure(folder: Path, references: int) -> dict[str, float]:
    """Open, verify checksums, compute the data's content keys, join: chosen and rejected [K, P]."""
    import pyarrow.parquet as pq

    from multiref.references.stored import read_scores

    baseline = peak_mib()
    start, worked = time.perf_counter(), time.process_time()
    table = pq.read_table(folder / "pairs.parquet")
    scores = read_scores(folder / "scores", [f"ref{number}" for number in range(references)])
    opened = time.perf_counter() - start
    prompts = table["prompt"].to_pylist()
    chosen, rejected = (scores.of(prompts, table[side].to_pylist()) for side in ("chosen", "rejected"))
    total = time.perf_counter() - start
    assert chosen.shape == rejected.shape == (references, table.num_rows)
    return {
        "opened_s": opened,
        "total_s": total,
        "cpu_s": time.process_time() - worked,
        "peak_gib": peak_mib() / 1024,
        "imports_gib": baseline / 1024,
    }


def join(folder: Path, pairs: int, references: int, *, on_disk: bool) -> dict[str, Any]:
    """Seconds, peak memory and a hash of what all pairs are joined with, in batches of 250 that are spread over them."""
    import numpy as np
    import torch

    from multiref.data import Pair
    from multiref.data.spooled import SpooledPairs
    from multiref.references.keys import KeyIndex, side_keys
    from multiref.references.stored import read_scores

    held = SpooledPairs.write((Pair(*text(number)) for number in range(pairs)), folder)
    names, baseline, start = [f"ref{number}" for number in range(references)], peak_mib(), time.perf_counter()
    order, digest = np.random.default_rng(1).permutation(pairs), hashlib.sha256()
    if on_disk:
        scores = read_scores(folder / "scores", names)
        columns = torch.from_numpy(scores.pair_columns(held))
    else:
        keys, found = _in_memory(folder, names)
        at = torch.from_numpy(KeyIndex(keys).locate(side_keys(held).reshape(-1)).reshape(-1, 2).astype(np.int64))
        joined = {what: torch.from_numpy(values)[:, at] for what, values in found.items()}
    for part in np.array_split(order, -(-pairs // 250)):
        for what in KINDS:
            rows = scores.at(what, columns[part]) if on_disk else joined[what][:, part]
            digest.update(rows.numpy().tobytes())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mib": peak_mib(), "baseline_mib": baseline, "digest": digest.hexdigest()}


def _in_memory(folder: Path, names: list[str]) -> tuple[Any, dict[str, Any]]:
    import numpy as np

    from multiref.references.keys import KeyIndex
    from multiref.references.store import Store

    store = Store(folder / "scores")
    for k, name in enumerate(names):
        rows = store.sound(store.named(name))
        if k == 0:
            index = KeyIndex(rows.keys)
            keys = rows.keys[index.order[~index.repeated]]
            kinds = zip(KINDS, (np.float64, np.int64, bool, np.int64))
            found = {what: np.empty((len(names), len(keys)), kind) for what, kind in kinds}
        at = KeyIndex(rows.keys).locate(keys)
        for what, values in found.items():
            values[k] = getattr(rows, what)[at]
    return keys, found


def compare_joins(given: argparse.Namespace, folder: Path) -> bool:
    """Memory of a pair on each side; whether the mark is met, with the same bits."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for pairs in (FEW, given.pairs):
        if not (folder / str(pairs) / "pairs.parquet").exists():
            make(folder / str(pairs), pairs, given.references)
        for side in ("join", "memory"):
            found[pairs, side] = run_side(__file__, side, given, folder=folder / str(pairs), pairs=pairs, join=None)
    above = {
        side: (found[given.pairs, side]["peak_mib"] - found[FEW, side]["peak_mib"]) * 2**20 / (given.pairs - FEW)
        for side in ("join", "memory")
    }
    many = found[given.pairs, "join"], found[given.pairs, "memory"]
    figures = {"bytes_a_pair": round(above["join"], 1), "in_memory": round(above["memory"], 1)}
    figures |= {"seconds": round(many[0]["seconds"], 1), "seconds_in_memory": round(many[1]["seconds"], 1)}
    case = f"{given.pairs:,} pairs joined with {given.references} references: memory a pair above {FEW:,}"
    record(case, above["join"] / 100, against="100 bytes", at_most=1, **figures)
    print(f"{above['join']:.0f} bytes a pair, in memory {above['memory']:.0f}")
    return many[0]["digest"] == many[1]["digest"] and above["join"] <= 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--join", action="store_true", default=None, help="the join of training, on disk and in memory")
    parser.add_argument("--side", choices=["measure", "join", "memory"], help="only measure a folder that was made before")
    given = parser.parse_args()
    if given.side in ("join", "memory"):
        print(json.dumps(join(given.folder, given.pairs, given.references, on_disk=given.side == "join")))
        return
    if given.side:
        print(json.dumps(measure(given.folder, given.references)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if given.join:
            sys.exit(0 if compare_joins(given, folder) else 1)
        if not (folder / "pairs.parquet").exists():
            make(folder, given.pairs, given.references)
        found = run_side(__file__, "measure", given, folder=folder)
    case, kept = f"{given.pairs:,} pairs under {given.references} references", {key: round(n, 2) for key, n in found.items()}
    record(f"{case}: seconds", found["total_s"] / 10, against="10 s to open and join", at_most=1, **kept)
    record(f"{case}: memory", found["peak_gib"], against="1 GiB", at_most=1, **kept)
    sys.exit(0 if found["total_s"] < 10 and found["peak_gib"] < 1 else 1)


if __name__ == "__main__":
    main()
