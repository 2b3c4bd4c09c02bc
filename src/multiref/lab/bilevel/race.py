"""Every online method on enumerable transformer worlds under one budget of labels: `python -m multiref.lab.bilevel.race --out race.json`."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiref._files import write_whole
from multiref.lab.bilevel.language import enumerable_world
from multiref.training.bilevel import GSHF, SAIL, XPO, Bilevel, Iterative, OfflineDPO, OnlineDPO, Plan, TwoStage, train

__all__ = ["AUDIT", "CONTESTANTS", "plan_for", "race", "setting"]

AUDIT: tuple[Any, ...] = (Bilevel("U1"), Bilevel("U0", "E3"), Bilevel("U3", "E3"), Bilevel("U2", "E3"))
CONTESTANTS: tuple[Any, ...] = (
    *AUDIT,
    Iterative(),
    OnlineDPO(),
    GSHF(),
    TwoStage(),
    XPO(),
    OfflineDPO(),
    SAIL("PR"),
    Bilevel("U0", "E2", perturbed_steps=3),
    Bilevel("U0", "E1", sigma=0.3, perturbed_steps=3),
    Bilevel("U0", "CG"),
    Bilevel("U1", loop="single"),
    Bilevel("U1", loop="momentum"),
    SAIL("PP"),
    SAIL("DP"),
)
_ROUNDS = 80


def plan_for(method: Any, labels: int, work: int) -> Plan:
    """80 rounds of equally many labels and `work` policy steps in all, for every method; rates chosen once, on world 0 at β = ½.

    Methods that fit the policy to labels take a tenth of the rate of those that improve it on a reward (at the same rate they overfit).
    """
    counts = [round(labels * (k + 1) / _ROUNDS) for k in range(_ROUNDS)]
    marks = sorted({counts[k] for k in (1, 3, 7, 15, 23, 31, 47, 63, 79)})
    on_reward = isinstance(method, Bilevel | Iterative | GSHF | TwoStage)
    plan = Plan(
        labels=counts,
        steps=max(1, work // _ROUNDS),
        prompts=32,
        rollouts=4,
        batch=64,
        reward_steps=20,
        reward_batch=16_384,
        learning_rate=1e-2 if on_reward else 1e-3,
        final_rate=0.1,
        reward_rate=0.1 if isinstance(method, Bilevel) else 0.05,
        measure_at=marks,
    )
    if isinstance(method, Bilevel) and method.loop != "double":  # one policy step an outer step: more and smaller outer steps
        many = min(8 * _ROUNDS, labels // 8)
        counts = [round(labels * (k + 1) / many) for k in range(many)]
        plan = replace(
            plan,
            labels=counts,
            reward_decay=80.0,
            reward_rate=0.03,
            measure_at=[next(c for c in counts if c >= m) for m in marks],
        )
    return plan


def setting(beta: float, seen: int, world: int) -> str:
    """The key under which a setting's histories are kept."""
    return f"beta={beta:g} seen={seen} world={world}"


def race(
    contestants=CONTESTANTS,
    *,
    beta: float,
    seen: int,
    world: int,
    seeds: int,
    labels: int,
    work: int,
    out: Path | None,
    say=print,
    **sizes: int,
) -> dict[str, Any]:
    """Histories by setting and method; with `out`, kept after each method, and what is there already is not run again; `sizes` as of
    `enumerable_world`."""
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    here = found.setdefault(setting(beta, seen, world), {})
    made = enumerable_world(seeds, beta=beta, seen=seen, world_seed=world, **sizes)  # type: ignore[arg-type]
    for method in contestants:
        if method.name in here:
            continue
        _, history = train(made.task, method, plan_for(method, labels, work))
        here[method.name] = _kept(history.lines)
        if out is not None:
            write_whole(out, json.dumps(found))
        say(_line(setting(beta, seen, world), method.name, here[method.name]))
    return found


def _kept(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measured lines, with processor seconds summed up to them and numbers cut to what they mean."""
    kept, processor = [], 0.0
    for line in lines:
        processor += line.pop("processor", 0.0)
        if "gap" in line:
            short = {
                key: [float(f"{v:.5g}") for v in value] if isinstance(value, list) else value for key, value in line.items()
            }
            kept.append({**short, "processor": round(processor, 2)})
    return kept


def _line(where: str, name: str, lines: list[dict[str, Any]]) -> str:
    first = sum(lines[0]["gap"])
    shares = "  ".join(f"{line['labels']}: {sum(line['gap']) / first:.3f}" for line in lines[1:])
    return f"{where} {name:28s} {lines[-1]['processor']:5.0f} s  {shares}"


def main() -> None:
    """Runs settings one after another and prints, for each method, the gap over labels as a share of the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--work", type=int, default=960)
    parser.add_argument("--beta", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seen", type=int, nargs="+", default=[8], help="features that the reward model has, of 8")
    parser.add_argument("--world", type=int, nargs="+", default=[0])
    parser.add_argument("--audit", action="store_true", help="only the four upper objectives")
    parser.add_argument("--only", nargs="+", default=None, help="names of methods, as the race prints them")
    given = parser.parse_args()
    chosen = [m for m in (AUDIT if given.audit else CONTESTANTS) if given.only is None or m.name in given.only]
    for world in given.world:
        for seen in given.seen:
            for beta in given.beta:
                race(
                    chosen,
                    beta=beta,
                    seen=seen,
                    world=world,
                    seeds=given.seeds,
                    labels=given.labels,
                    work=given.work,
                    out=given.out,
                    say=lambda text: print(text, flush=True),
                )


if __name__ == "__main__":
    main()
