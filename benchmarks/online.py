"""A step of online training with two more references against TRL's RLOO with one: same model, prompts, group and length, one run, alternating.

    python benchmarks/online.py --model path/to/stories260K --more path/to/stories260K-gsm8k path/to/stories-xs-280K --prompts path/to/stories.jsonl

Sampling, rewards, all scores, backward pass and optimizer step are inside the time. The mark: ours with K = 3 in at most 1.3 of TRL's with K = 1.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import trl

import multiref as mr
from multiref.models import load
from multiref.training.online import RLOO, OnlineArguments, OnlineTrainer


def reward(prompts, completions, **_):
    return [completion.count("e") / 10 for completion in completions]


def theirs(options, prompts, steps, folder):
    """Seconds a step. TRL samples while it prepares a batch, before its callbacks hear of the step: so the whole run is timed, and divided."""
    args = trl.RLOOConfig(
        output_dir=folder, beta=0.1, per_device_train_batch_size=options.prompts_per_step * options.group, num_generations=options.group,
        max_completion_length=options.tokens, max_steps=steps, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=1e-4,
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    trainer = trl.RLOOTrainer(options.model, reward_funcs=reward, args=args, train_dataset=data)
    start = time.perf_counter()
    trainer.train()
    return (time.perf_counter() - start) / steps, None


def ours(options, prompts, steps):
    loaded = load(options.model)
    references = {"initial": options.model, **{f"more{k}": path for k, path in enumerate(options.more)}}
    args = OnlineArguments(
        steps=steps,
        prompts_per_step=options.prompts_per_step,
        max_new_tokens=options.tokens,
        learning_rate=1e-4,
        token_budget=1 << 20,
    )
    trainer = OnlineTrainer(
        loaded.model, mr.ReverseKL(), beta=0.1, references=references, prompts=prompts, tokenizer=loaded.tokenizer, args=args, rewards=reward,
        method=RLOO(group=options.group), options={"dtype": "float32"},
    )  # fmt: skip
    trainer.scorer.completions(
        trainer._sample(loaded.model, loaded.tokenizer, prompts[:1])
    )  # opens the references, as TRL has at construction
    start = time.perf_counter()
    history = trainer.train()
    return (time.perf_counter() - start) / steps, [line["completions/mean_length"] for line in history]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--more", nargs="+", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--prompts-per-step", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()[:256]
    prompts = [" ".join(json.loads(line)["text"].split()[:16]) for line in lines]
    times = {"trl": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        theirs(options, prompts, 1, folder)  # warm
        ours(options, prompts, 1)
        for _ in range(options.repeats):
            seconds, _ = theirs(options, prompts, options.steps, folder)
            times["trl"].append(seconds)
            print(f"TRL {trl.__version__} RLOO, 1 reference: {seconds:.3f} s a step", flush=True)
            seconds, tokens = ours(options, prompts, options.steps)
            times["ours"].append(seconds)
            print(
                f"multiref, 1 + {len(options.more)} references: {seconds:.3f} s a step, {statistics.mean(tokens):.1f} tokens a completion",
                flush=True,
            )
    a, b = statistics.median(times["ours"]), statistics.median(times["trl"])
    print(f"median {a:.3f} s against {b:.3f} s: {a / b:.2f} of TRL's (mark: at most 1.3)")


if __name__ == "__main__":
    main()
