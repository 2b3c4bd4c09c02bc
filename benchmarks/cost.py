"""What `multiref score --dry-run` foretells, against what the run takes: `python benchmarks/cost.py [--pairs 240]`.

A random Llama of 20 M parameters and HH-style pairs, on one and on two workers of this machine (two: Ray, one thread each). For
each, a process foretells and another one runs: the ratio of the two is to be within 15 %. Also the share of the peak of matrix
products that scoring reaches here, which is what other machines are reckoned with. Needs Ray for two workers.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record
from scoring import SIZES, build, make_pairs, matmul_peak, shape_of, useful_flops
from sides import run_side


def prepare(folder: Path, given: argparse.Namespace) -> None:
    model, tokenizer = build(given)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = make_pairs("hh", given.pairs, shape_of(given)["vocab_size"])
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def side(given: argparse.Namespace) -> dict[str, Any]:
    """Foretells, or runs: seconds, and of the forecast its parts."""
    import torch

    from multiref.data import read_pairs
    from multiref.references import References

    if given.clock == "processor":  # of this process: who else is on the machine is then not seen
        time.perf_counter = time.process_time
    torch.set_num_threads(given.threads)
    pairs = read_pairs(str(given.folder / "pairs.jsonl"))
    references = References({"model": str(given.folder / "model")})
    if given.side == "foretell":
        found = references.estimate_cost(pairs, f"{given.workers}xlocal")
        return {"seconds": found.seconds, "parts": dict(found.references[0].parts)}
    start = time.perf_counter()
    engine: Any = "local"
    if given.workers > 1:
        from multiref.references.engines.ray import RayEngine

        engine = RayEngine(workers=given.workers)
    with tempfile.TemporaryDirectory() as store:
        references.score(pairs, store=store, engine=engine)
    return {"seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--size", default="20M", choices=list(SIZES))
    parser.add_argument("--workers", type=int, help="only so many")
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="processor: of one worker")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["foretell", "run"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        found = side(given)
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()  # what it says comes before the last line
        print(json.dumps(found))
        return
    counts = (
        [1]
        if given.clock == "processor"
        else [given.workers]
        if given.workers
        else [1, 2]
        if importlib.util.find_spec("ray")
        else [1]
    )
    plain = argparse.Namespace(**vars(given), model=None, vocabulary=None, dtype="float32", device="cpu")  # as `scoring` has it
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary), plain)
        shape = shape_of(plain)
        flops = useful_flops(make_pairs("hh", given.pairs, shape["vocab_size"]), shape)
        for workers in counts:
            told, took = (run_side(__file__, name, given, folder=temporary, workers=workers) for name in ("foretell", "run"))
            ratio = told["seconds"] / took["seconds"]
            peaks = matmul_peak(plain)
            peak = peaks[given.clock == "processor"]
            share = flops / told["parts"]["score"] / workers / peak
            figures = {
                "foretold": round(told["seconds"], 1),
                "took": round(took["seconds"], 1),
                "foretold_over_took": round(ratio, 3),
            }
            figures |= {part: round(seconds, 2) for part, seconds in told["parts"].items()}
            figures |= {"share_of_peak": round(share, 2)}
            case = f"{workers} local worker{'s' * (workers > 1)}, {given.pairs} pairs: {given.clock} time foretold"
            record(case, max(ratio, 1 / ratio), against="the time it took", at_most=1.15, **figures)


if __name__ == "__main__":
    main()
