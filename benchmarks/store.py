"""Opening a large store and joining it to a data set: `python benchmarks/store.py [--pairs 1000000] [--references 4]`.

Makes a synthetic store once (in a temporary folder, or --folder), then measures in a process of its own,
so that the peak of memory is
that of opening and joining alone. Mark: 1,000,000 pairs × 4 references in under 10 s and 1 GiB.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from record import record
from sides import peak_mib, run_side


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", choices=["measure"], help="only measure a folder that was made before")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.folder, given.references)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "pairs.parquet").exists():
            make(folder, given.pairs, given.references)
        found = run_side(__file__, "measure", given, folder=folder)
    case, kept = f"{given.pairs:,} pairs under {given.references} references", {key: round(n, 2) for key, n in found.items()}
    record(f"{case}: seconds", found["total_s"] / 10, against="10 s to open and join", at_most=1, **kept)
    record(f"{case}: memory", found["peak_gib"], against="1 GiB", at_most=1, **kept)
    sys.exit(0 if found["total_s"] < 10 and found["peak_gib"] < 1 else 1)


if __name__ == "__main__":
    main()
