"""Every online method on one enumerable transformer world under one budget of labels: `python -m multiref.lab.bilevel.race --out race.json`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiref.lab.bilevel.language import EnumerableWorld, enumerable_world
from multiref.training.bilevel import GSHF, SAIL, XPO, Bilevel, Iterative, OfflineDPO, OnlineDPO, Plan, TwoStage, train

__all__ = ["CONTESTANTS", "geometric", "race", "run_one"]

CONTESTANTS: tuple[Any, ...] = (
    Iterative(),
    OnlineDPO(),
    Bilevel("U1"),
    Bilevel("U0", "E3"),
    Bilevel("U3", "E3"),
    OfflineDPO(),
    GSHF(),
    XPO(),
    TwoStage(),
    SAIL("PR"),
    Bilevel("U0", "E2"),
    Bilevel("U0", "E1", sigma=0.3),
    Bilevel("U2", "E3"),
    SAIL("PP"),
    SAIL("DP"),
)


def geometric(first: int, last: int, rounds: int) -> list[int]:
    """Cumulative counts, evenly spaced in log."""
    return sorted({round(first * (last / first) ** (k / (rounds - 1))) for k in range(rounds)})


def plans(labels: int, work: int) -> tuple[Plan, Plan]:
    """For iterative methods (geometric rounds) and for bilevel ones (many small rounds): the same policy steps, `work` · 16, in all."""
    iterative = geometric(max(64, labels // 64), labels, 10)
    outer = 80
    bilevel = [round(labels * (k + 1) / outer) for k in range(outer)]
    marks = [min(bilevel, key=lambda b, a=a: abs(b - a)) for a in iterative[::2]] + [bilevel[-1]]
    base = Plan(
        labels=iterative,
        steps=(16 * work) // 10,
        prompts=32,
        rollouts=4,
        batch=64,
        reward_steps=60,
        learning_rate=4e-3,
        reward_rate=3e-2,
    )
    return replace(base, measure_at=[*iterative[1::2], iterative[-1]]), replace(
        base, labels=bilevel, steps=(16 * work) // outer, measure_at=marks, reward_rate=0.1
    )


def run_one(world: EnumerableWorld, method: Any, *, labels: int, work: int) -> list[dict[str, Any]]:
    """A method's history on a world."""
    iterative, bilevel = plans(labels, work)
    plan = bilevel if isinstance(method, Bilevel) else iterative
    _, history = train(world.task, method, plan)
    return history.lines


def race(
    world: EnumerableWorld, contestants=CONTESTANTS, *, labels: int = 10_000, work: int = 60, out: Path | None = None
) -> dict[str, list]:
    """Histories by method; with `out`, kept after each method, and methods that are there already are not run again."""
    found: dict[str, list] = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    for method in contestants:
        if method.name in found:
            continue
        found[method.name] = run_one(world, method, labels=labels, work=work)
        if out is not None:
            scratch = out.with_name(out.name + ".part")
            scratch.write_text(json.dumps(found), encoding="utf-8")
            os.replace(scratch, out)
    return found


def main() -> None:
    """Runs the race and prints, for each method, the gap over labels as shares of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--work", type=int, default=60)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--seen", type=int, default=None, help="features that the reward model has, of 8")
    arguments = parser.parse_args()
    world = enumerable_world(arguments.seeds, beta=arguments.beta, seen=arguments.seen)
    for method in CONTESTANTS:
        lines = race(world, (method,), labels=arguments.labels, work=arguments.work, out=arguments.out)[method.name]
        first = lines[0]["gap"]
        shares = [
            (line["labels"], sum(g / f for g, f in zip(line["gap"], first)) / len(first)) for line in lines if "gap" in line
        ]
        print(
            f"{method.name:26s} {lines[-1]['wall']:6.0f} s  " + "  ".join(f"{n}: {share:.3f}" for n, share in shares),
            flush=True,
        )


if __name__ == "__main__":
    main()
