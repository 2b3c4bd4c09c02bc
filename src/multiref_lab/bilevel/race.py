"""Every online method on enumerable transformer worlds under one budget of labels: `python -m multiref_lab.bilevel.race --out race.json`."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from multiref._files import write_whole
from multiref.training.iterative import (
    GSHF,
    SAIL,
    XPO,
    Bilevel,
    Iterative,
    OfflineDPO,
    OnlineDPO,
    Plan,
    State,
    Task,
    TwoStage,
    improve,
    train,
)
from multiref_lab.bilevel.language import enumerable_world
from multiref_lab.toys import at

__all__ = ["AUDIT", "CONTESTANTS", "Entry", "KnownReward", "plan_for", "race", "setting"]


@dataclass(frozen=True)
class KnownReward:
    """Labels that nobody needs to buy: the same policy steps on the hidden reward itself. What it leaves is the optimisation's share, not the labels'."""

    name: str = "known reward"

    def round(self, task: Task, state: State, labels: int, plan: Plan) -> dict[str, float]:
        oracle: Any = task.oracle
        state.labels_used += labels
        improve(
            task,
            state,
            lambda x, y: at(oracle.reward, x, y, oracle.vocabulary),
            steps=plan.steps,
            prompts=plan.prompts,
            rollouts=plan.rollouts,
        )
        return {}


@dataclass(frozen=True)
class Entry:
    """A method with its classes: a policy that is a transformer or log-linear in the reward's features, a reward linear in those features or a transformer."""

    method: Any
    policy: Literal["transformer", "log-linear"] = "transformer"
    reward_model: Literal["features", "transformer"] = "features"

    @property
    def name(self) -> str:
        """As the table calls it."""
        known = "" if self.policy == "transformer" else ", log-linear policy"
        return self.method.name + known + ("" if self.reward_model == "features" else ", transformer reward")


AUDIT: tuple[Entry, ...] = tuple(
    Entry(m)
    for m in (
        Bilevel("stop_gradient"),
        Bilevel("likelihood", "covariance"),
        Bilevel("win_rate", "covariance"),
        Bilevel("debiased", "covariance"),
    )
)
_DIRECT = (OnlineDPO(), XPO(), OfflineDPO(), SAIL("PR"), SAIL("PP"), SAIL("DP"))
CONTESTANTS: tuple[Entry, ...] = (
    Entry(KnownReward()),
    *AUDIT,
    Entry(Bilevel("stop_gradient", outer="newton")),
    *(Entry(m) for m in (Iterative(), GSHF(), TwoStage(), *_DIRECT)),
    Entry(Iterative(), reward_model="transformer"),
    *(
        Entry(m, policy="log-linear")
        for m in (*_DIRECT, Iterative(), GSHF(), TwoStage(), Bilevel("stop_gradient", outer="newton"))
    ),
    Entry(Bilevel("stop_gradient", loop="single")),
    Entry(Bilevel("stop_gradient", loop="momentum")),
    Entry(Bilevel("likelihood", "shared_rollouts", perturbed_steps=3)),
    Entry(Bilevel("likelihood", "two_policies", sigma=0.3, perturbed_steps=3)),
    Entry(Bilevel("likelihood", "conjugate_gradient")),
)
_ROUNDS = 80


def plan_for(entry: Entry, labels: int, work: int) -> Plan:
    """80 rounds of equally many labels and `work` policy steps in all, for every method; rates and optimisers chosen on world 0 at β = ½, reported on others.

    A transformer that follows a reward takes Muon's steps on many rollouts: under Adam on few it, not the labels, is what limits every method. One
    that is fitted to labels takes a fraction of the rate: at ten times as much online DPO overfits, with either optimiser.
    """
    method = entry.method
    counts = [round(labels * (k + 1) / _ROUNDS) for k in range(_ROUNDS)]
    marks = sorted({counts[k] for k in (1, 3, 7, 15, 23, 31, 47, 63, 79)})
    on_reward = isinstance(method, KnownReward | Bilevel | Iterative | GSHF | TwoStage)
    follows = on_reward and entry.policy == "transformer"
    steps = max(1, work // _ROUNDS)
    plan = Plan(
        labels=counts,
        steps=steps,
        prompts=64,
        rollouts=16,
        batch=64,
        reward_steps=20,
        reward_batch=16_384,
        optimizer="muon" if follows else "adam",
        learning_rate=2e-2 if follows else 1e-2 if entry.policy == "log-linear" else 1e-4,
        final_rate=0.02,
        reward_rate=0.04 if isinstance(method, Bilevel) else 0.05,
        reward_decay=15.0,
        measure_at=marks,
    )
    if entry.reward_model == "transformer":  # fitted as the policies of DPO are
        plan = replace(plan, reward_steps=steps, reward_batch=64, reward_rate=2e-4)
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
    **sizes: Any,
) -> dict[str, Any]:
    """Histories by setting and method; with `out`, kept after each method, and what is there already is not run again; `sizes` as of
    `enumerable_world`."""
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    here = found.setdefault(setting(beta, seen, world), {})
    for entry in contestants:
        if entry.name in here:
            continue
        made = enumerable_world(
            seeds, beta=beta, seen=seen, world_seed=world, policy=entry.policy, reward_model=entry.reward_model, **sizes
        )
        _, history = train(made.task, entry.method, plan_for(entry, labels, work))
        here[entry.name] = _kept(history.lines)
        if out is not None:
            write_whole(out, json.dumps(found))
        say(_line(setting(beta, seen, world), entry.name, here[entry.name]))
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
    parser.add_argument("--work", type=int, default=2_000)
    parser.add_argument("--features", type=int, default=32, help="features that the reward is linear in")
    parser.add_argument("--width", type=int, default=64, help="of every transformer: policies, references, reward model")
    parser.add_argument("--beta", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seen", type=int, nargs="+", default=None, help="features that the reward model has; default: all")
    parser.add_argument("--world", type=int, nargs="+", default=[3], help="rates were chosen on world 0")
    parser.add_argument("--audit", action="store_true", help="only the four upper objectives")
    parser.add_argument("--only", nargs="+", default=None, help="names of methods, as the race prints them")
    given = parser.parse_args()
    chosen = [m for m in (AUDIT if given.audit else CONTESTANTS) if given.only is None or m.name in given.only]
    for world in given.world:
        for seen in given.seen or [given.features]:
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
                    dimension=given.features,
                    width=given.width,
                    say=lambda text: print(text, flush=True),
                )


if __name__ == "__main__":
    main()
