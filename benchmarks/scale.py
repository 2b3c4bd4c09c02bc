"""Scoring many pairs: `python benchmarks/scale.py [--pairs 100000]`: memory a pair, minutes a million, and the same bits after
kills.

Each run is a process of its own: a file of synthetic pairs is scored under a reference that takes no time (a hash), so that
what is measured is reading, planning and storing. Mark: peak memory above that of 10,000 pairs at most 200 bytes a pair. Then
the job is killed on the way, three times, and run again: the scores must be the same bits. With `--engine ray` memory is that
of the driver, its two workers and the object store.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from record import record
from sides import peak_mib, run_side

FEW = 10_000


class Constant:
    """log π = −1 − a hash of the text and of the texts it was scored with: other blocks would be other bits."""

    def identity(self) -> dict[str, Any]:
        return {"kind": "constant"}

    def score(self, items: Any) -> Any:
        from multiref.references import Scored

        def texts() -> Iterator[str]:  # one at a time, for this memory is none of what is measured
            return (f"{item.prompt}\0{completion}" for item in items for completion in item.completions)

        company = sum(map(len, texts())) % 1009 / 1009
        logps = [-1 - int.from_bytes(hashlib.blake2b(t.encode(), digest_size=6).digest()) / 2**48 - company for t in texts()]
        ones = torch.ones(len(logps), dtype=torch.int64)
        return Scored(torch.tensor(logps, dtype=torch.float64), ones, ones < 0)


def write(folder: Path, pairs: int) -> Path:
    """The pairs: about 500 bytes each, two of a prompt in one of three."""
    path = folder / f"pairs-{pairs}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(pairs):
            prompt = f"Question {n - (n % 3 == 1)}: " + "what follows from this? " * 6
            row = {"prompt": prompt, "chosen": f"It is {n}. " * 10, "rejected": f"Nobody knows {n}. " * 10}
            file.write(json.dumps(row) + "\n")
    return path


def score(folder: Path, pairs: int, engine: str) -> dict[str, Any]:
    """Score the file into a store; seconds, peak memory, and a hash of the scores."""
    from multiref.references import References

    runner: Any = engine
    if engine == "ray":
        import ray

        from multiref.references.engines.ray import RayEngine

        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=256 * 2**20)
        runner = RayEngine(workers=2)
    imports = peak_mib()
    start = time.perf_counter()
    with _Together(engine == "ray") as together:
        scores = References({"constant": Constant()}).score(
            str(folder / f"pairs-{pairs}.jsonl"), store=folder / f"scores-{pairs}", engine=runner
        )
    seconds = time.perf_counter() - start
    peak = together.peak / 2**20 if together.there else peak_mib()
    digest = hashlib.sha256(scores.keys.tobytes() + scores.logps.numpy().tobytes()).hexdigest()
    return {"seconds": seconds, "peak_mib": peak, "imports_mib": imports, "digest": digest, "completions": len(scores)}


class _Together(threading.Thread):
    """Meanwhile, what the driver, Ray's workers and its object store hold, at most at any one time; a page of the store that
    the driver looks at is counted once. peak: bytes."""

    def __init__(self, there: bool) -> None:
        super().__init__(daemon=True)
        self.there, self.peak, self._done = there, 0, threading.Event()

    def __enter__(self) -> "_Together":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while self.there and not self._done.wait(0.05):
            self.peak = max(self.peak, self._driver() + self._workers() + self._store())

    def _driver(self) -> int:
        status = Path("/proc/self/status").read_text()
        held, stored = (int(status.split(f"{key}:")[1].split()[0]) for key in ("VmRSS", "RssShmem"))
        return 1024 * (held - stored)

    def _workers(self) -> int:
        total = 0
        for each in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if each.cmdline()[:1] and each.cmdline()[0].startswith("ray::"):
                    memory = each.memory_info()
                    total += memory.rss - memory.shared  # what is shared is the object store, and files
        return total

    def _store(self) -> int:
        room = os.statvfs("/dev/shm")
        return (room.f_blocks - room.f_bfree) * room.f_frsize


def kill_on_the_way(folder: Path, pairs: int, engine: str) -> int:
    """Begin the job and end it by SIGKILL once a few more shards are there; how many are there then."""
    command = [sys.executable, __file__, "--side", "score", "--pairs", str(pairs), "--folder", str(folder),
               "--engine", engine]  # fmt: skip
    store = folder / f"scores-{pairs}" / "shards"
    before = len(list(store.glob("*/*.parquet")))
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while job.poll() is None and len(list(store.glob("*/*.parquet"))) < before + 7:
        time.sleep(0.05)
    job.kill()
    job.wait()
    return len(list(store.glob("*/*.parquet")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=3, help="0: one whole run, and no second one")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="ray: two workers")
    parser.add_argument("--side", choices=["score"], help="one run, in this process")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(score(given.folder, given.pairs, given.engine)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = (Path(temporary) / name for name in ("whole", "killed"))
        found = {}
        for folder, pairs in ((whole, FEW), (whole, given.pairs), *[(killed, given.pairs)] * (given.kills > 0)):
            folder.mkdir(exist_ok=True)
            write(folder, pairs)
            if folder is killed:
                there = [kill_on_the_way(folder, pairs, given.engine) for _ in range(given.kills)]
                print(f"killed with {there} shards stored")
            found[folder, pairs] = run_side(__file__, "score", given, folder=folder, pairs=pairs)
    few, many, *again = found.values()
    above = (many["peak_mib"] - few["peak_mib"]) * 2**20 / (given.pairs - FEW)
    minutes = many["seconds"] / 60 * 1e6 / given.pairs
    figures = {"bytes_a_pair": round(above, 1), "minutes_a_million": round(minutes, 2), "peak_mib": round(many["peak_mib"])}
    where = "" if given.engine == "local" else ", Ray with its store"
    record(f"{given.pairs:,} pairs{where}: memory a pair above 10,000", above / 200, against="200 bytes", at_most=1, **figures)
    same = all(many["digest"] == each["digest"] for each in again)
    said = f"after {given.kills} kills {'the same' if same else 'OTHER'} bits" if again else "nothing was killed"
    print(f"{above:.0f} bytes a pair, {minutes:.1f} minutes a million; {said}")
    sys.exit(0 if same and above <= 200 else 1)


if __name__ == "__main__":
    main()
