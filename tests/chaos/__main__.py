"""`python -m tests.chaos [--verb NAME …] [--kills 10] [--row 10] [--seed 0]`: `make chaos`."""

import argparse
import gc
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.chaos.compare import difference
from tests.chaos.jobs import AGAIN, BEFORE, BESIDE, JOBS, NEEDS, make_world, shrink_experiments
from tests.chaos.kills import CODES, HOW, Outcome, problem, run, stratum


def main(given: list[str] | None = None) -> int:
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("--verb", action="append", choices=list(JOBS), help="only this one; repeatable")
    ask.add_argument("--kills", type=int, default=10, help="single kills of each verb")
    ask.add_argument("--row", type=int, default=10, help="kills of one run in a row")
    ask.add_argument("--seed", type=int, default=0)
    asked = ask.parse_args(given)
    import_everything()
    place = Path(tempfile.mkdtemp(prefix="chaos-")).resolve()
    make_world(place)
    shrink_experiments()
    failures = [failure for verb in asked.verb or JOBS for failure in chaos(verb, place, asked)]
    print(f"{len(failures)} differences", *(f"  {failure}" for failure in failures), sep="\n")
    if not failures:
        shutil.rmtree(place)
    return bool(failures)


def import_everything() -> None:
    """Once, so that a child begins at once; nothing that begins threads."""
    import torch

    torch.set_num_threads(1)
    ours = "cli.score cli.decode cli.serve serving.running runs.data_look runs.tasks runs.evaluating runs.sweeping"
    for name in (*ours.split(), "evaluation.inspection"):
        importlib.import_module(f"multiref.{name}")
    for name in ("demo.run", "frontier.sweep", "frontier.page", "stability.runs", "stability.page", "real.run", "real.page"):
        importlib.import_module(f"multiref_lab.{name}")
    from multiref.training.arguments import quiet

    quiet()
    gc.collect()
    gc.freeze()  # what is shared is not copied by a child's collector


def chaos(verb: str, place: Path, asked: argparse.Namespace) -> list[str]:
    """What went wrong with a verb: killed once at moments of every kind, and one run killed many times in a row."""
    os.chdir(place)
    beside, done = BESIDE.get(verb), CODES["SIGTERM"] if verb in BESIDE else 0
    hows = [how for how in HOW if how != "ENOSPC" or beside is None]  # who writes there is the client
    random, began, job, failures = Random(f"{asked.seed}-{verb}"), time.monotonic(), JOBS[verb], []
    for needed in NEEDS.get(verb, []):
        if run(needed, place, place / "log").code:
            return [f"{verb}: {' '.join(needed)}: {(place / 'log' / 'stderr').read_text()[-500:]}"]

    def fresh(name: str) -> Path:
        out = place / "out" / verb / name
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(place / "cache", ignore_errors=True)
        out.mkdir(parents=True)
        BEFORE.get(verb, bool)(out)
        return out

    def finish(out: Path, what: str) -> None:
        last = run(job(out), out, place / "log", beside=beside)
        if last.code not in (done, AGAIN.get(verb)) or "Traceback" in last.said:
            failures.append(f"{verb}, {what}: run again, exit code {last.code}: {last.said[-500:]}")
        elif found := difference(whole, out):
            failures.append(f"{verb}, {what}: {found} differs ({whole}, {out})")

    whole = fresh("whole")
    first = run(job(whole), whole, place / "log", beside=beside)
    if first.code != done:
        return [f"{verb}: exit code {first.code}: {first.said[-800:]}"]
    kinds: dict[str, list[int]] = {}
    for number, (_, path) in enumerate(first.writes, 1):
        kinds.setdefault(stratum(path), []).append(number)
    moments = [random.choice(kinds[kind]) for _ in range(asked.kills) for kind in kinds][: asked.kills]
    for number, at in enumerate(moments):
        how = hows[number % len(hows)]
        event, path = first.writes[at - 1]
        out, what = fresh(f"{number}-{how}"), f"{how} at {event} {path}"
        outcome = killed(job(out), out, place, at, how, first, random, beside)
        if wrong := problem(outcome, CODES[how], done):
            failures.append(f"{verb}, {what}: {wrong}")
        finish(out, what)
    if asked.row:
        out, what, seen = fresh("row"), f"{asked.row} kills in a row", []
        for _ in range(asked.row):
            at = random.randrange(min(3, len(first.writes)), 9 + len(first.writes) // 3)
            seen.append(run(job(out), out, place / "log", at=at, how="SIGKILL", beside=beside).code)
        finish(out, f"{what} ({seen.count(-9)} of them hit)")
    shown = ", ".join(f"{kind} {len(numbers)}" for kind, numbers in kinds.items())
    print(
        f"{verb}: {first.seconds:.1f} s undisturbed, writes: {shown}; {len(moments)} kills and {asked.row} in a row, "
        f"{len(failures)} failures, {time.monotonic() - began:.0f} s",
        *(f"  {failure}" for failure in failures),
        sep="\n",
        flush=True,
    )
    return failures


def killed(argv, out, place, at, how, first, random, beside) -> Outcome:
    """At a write; where other processes work (few writes are this one's), every other time at a random moment from outside."""
    if "--workers" in argv and how != "ENOSPC":
        return run(argv, out, place / "log", how=how, after=random.uniform(0.3, 0.9) * first.seconds)
    return run(argv, out, place / "log", at=at, how=how, beside=beside)


if __name__ == "__main__":
    sys.exit(main())
