"""What an outer step costs, as ratios to an online DPO step with equal rollouts and labels: `python benchmarks/bilevel.py`.

One small transformer (64 prompts, 6 tokens, 4 long), 64 prompts × 4 rollouts, 128 labels a step, single loop; processor time, steps
interleaved, median of the ratios. Marks: E3 at most 1.2, E2 at most 2.2.
"""

import argparse
import statistics
import time

from multiref.lab.bilevel.language import enumerable_world
from multiref.training.bilevel import Bilevel, OnlineDPO, Plan, State


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int, default=96)
    arguments = parser.parse_args()
    task = enumerable_world(1, width=arguments.width).task
    plan = Plan(labels=[128], steps=1, batch=128, prompts=64, rollouts=4)
    contestants = [OnlineDPO(), Bilevel("U1", loop="single")]
    contestants += [Bilevel("U0", estimator, loop="single", perturbed_steps=1) for estimator in ("E3", "E2", "E1", "CG")]  # type: ignore[arg-type]
    states = [State.begin(task, seed=0, learning_rate=1e-3, reward_rate=1e-3) for _ in contestants]
    spent: list[list[float]] = [[] for _ in contestants]
    for step in range(arguments.steps + 3):
        for method, state, times in zip(contestants, states, spent):
            began = time.process_time()
            method.round(task, state, 128, plan)
            if step >= 3:
                times.append(time.process_time() - began)
    for method, times in zip(contestants, spent):
        ratio = statistics.median(a / b for a, b in zip(times, spent[0]))
        print(f"{method.name:22s} {1000 * statistics.median(times):8.1f} ms of processor a step   {ratio:5.2f} × online DPO")


if __name__ == "__main__":
    main()
