"""What an outer step costs, as ratios to an online DPO step with equal rollouts and labels: `python benchmarks/bilevel.py`.

One small transformer (64 prompts, 6 tokens, 4 long), 64 prompts × 4 rollouts, 128 labels a step, single loop;
processor time, the methods taking turns, median of the paired ratios.
Marks: covariance at most 1.2, shared rollouts at most 2.2.
An online DPO step here labels 128 fresh pairs, draws as many rollouts as the others (256 completions),
and takes one gradient step on 128 pairs.
"""

import argparse
import statistics
import time

import torch
from record import record

from multiref.training.iterative import Bilevel, OnlineDPO, Plan, State
from multiref_lab.races import enumerable_world
from multiref_lab.toys import Size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = enumerable_world(1, Size(width=given.width)).task
    plan = Plan(labels=[128], steps=1, batch=128, prompts=64, rollouts=4)
    contestants = [
        OnlineDPO(),
        Bilevel("stop_gradient", loop="single"),
        *[
            Bilevel("likelihood", e, loop="single", perturbed_steps=1)
            for e in ("covariance", "shared_rollouts", "two_policies", "conjugate_gradient")
        ],
        Bilevel("likelihood", "covariance", loop="momentum"),
        Bilevel("win_rate", "covariance", loop="single", pairs=2),
    ]
    states = [State.begin(task, seed=0, learning_rate=1e-3, reward_rate=1e-3) for _ in contestants]
    spent: list[list[float]] = [[] for _ in contestants]
    for step in range(given.steps + 3):
        for method, state, times in zip(contestants, states, spent):
            began = time.process_time()
            method.round(task, state, 128, plan)
            if step >= 3:
                times.append(time.process_time() - began)
    marks = {"bilevel likelihood covariance, single loop": 1.2, "bilevel likelihood shared rollouts, single loop": 2.2}
    for method, times in zip(contestants, spent):
        ratio = statistics.median(a / b for a, b in zip(times, spent[0]))
        ms = round(1000 * statistics.median(times), 1)
        record(method.name, ratio, against="an online DPO step", at_most=marks.get(method.name), processor_ms_a_step=ms)


if __name__ == "__main__":
    main()
