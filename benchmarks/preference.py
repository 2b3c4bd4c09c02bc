"""Step time of preference training: multiref's `PreferenceTrainer` against TRL's `DPOTrainer`.
Same model, pairs, batches, loss, optimizer, run.

    python benchmarks/preference.py [--steps 7] [--batch 8] [--threads 2] [--device cpu] [--dtype float32] [--size 20M]

Each side runs in a process of its own, so that peak memory is its own. Reference log-probabilities are precomputed on both
sides (TRL reads ours through `integrations.trl`), no gradient checkpointing, logistic loss, AdamW,
the same pairs in the same order; the loss curves must agree to 1e-4. Processor time is printed too:
on a busy machine, with --threads 1, it is the fair figure. A step is what `transformers.Trainer` does between on_step_begin and
on_step_end; the first is left out. HH-style pairs: lognormal lengths, mean 150 prompt and 54 completion tokens.
Then K = 8 against K = 1: steps of both in turn in one process, the median of the paired ratios with its quartiles.
Needs the extra `trl`.
"""

import argparse
import json
import statistics
import tempfile
import time

from record import machine, record
from scoring import SIZES, build, make_pairs
from sides import peak_mib, run_side


def scores_of(pairs, k: int, seed: int = 0):
    """K references' scores: what a reference of about 10 nats a token would say; their values do not matter to the time."""
    import torch

    from multiref.references.scores import SequenceScores, content_keys

    prompts = [row["prompt"] for row in pairs for _ in range(2)]
    sides = [row[side] for row in pairs for side in ("chosen", "rejected")]
    lengths = torch.tensor([[len(side.split()) + 1 for side in sides]] * k)
    noise = torch.randn(k, len(sides), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logps = -10.4 * lengths + 2 * noise
    names = tuple(f"reference {n}" for n in range(k))
    return SequenceScores(names, content_keys(prompts, sides), logps, lengths, torch.zeros_like(lengths, dtype=torch.bool))


def clock():
    """A callback that keeps the seconds of every step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.seconds, self.cpu = [], []

        def now(self):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

        def on_step_begin(self, *_, **__):
            self.start, self.work = self.now(), time.process_time()

        def on_step_end(self, *_, **__):
            self.seconds.append(self.now() - self.start)
            self.cpu.append(time.process_time() - self.work)

    return Clock()


def settings(args, folder: str) -> dict:
    half = args.dtype == "bfloat16"
    return {
        "output_dir": folder, "per_device_train_batch_size": args.batch, "max_steps": args.steps, "learning_rate": 1e-4,
        "report_to": "none",
        "use_cpu": args.device == "cpu", "bf16": half, "save_strategy": "no", "logging_strategy": "steps", "logging_steps": 1,
        "disable_tqdm": True,
        "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "max_grad_norm": 1.0, "seed": 0,
    }  # fmt: skip


def run(side: str, args, k: int) -> dict:
    """Losses, seconds a step and tokens a step of one side."""
    import multiref as mr

    model, tokenizer = build(args.vocabulary, args.size, "float32" if args.device == "cpu" else args.dtype, args.device)
    model.train()
    pairs = make_pairs("hh", args.batch * args.steps, args.vocabulary)
    scores, timer = scores_of(pairs, k), clock()
    with tempfile.TemporaryDirectory() as folder:
        if side == "trl":
            from datasets import Dataset
            from trl import DPOConfig

            from multiref.integrations.trl import ReferenceColumnsDPOTrainer, with_reference_columns

            options = {"precompute_ref_log_probs": True, "max_length": None, "gradient_checkpointing": False, "beta": 0.1}
            config = DPOConfig(**settings(args, folder), **options)
            data = with_reference_columns(Dataset.from_list(pairs), scores, mr.ReverseKL())
            trainer = ReferenceColumnsDPOTrainer(
                model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[timer]
            )
        else:
            from transformers import TrainingArguments

            trainer = mr.training.PreferenceTrainer(
                model, regularizer=mr.ReverseKL(), beta=0.1, scores=scores, args=TrainingArguments(**settings(args, folder)),
                train_dataset=pairs,
                processing_class=tokenizer, token_budget=args.token_budget or None, callbacks=[timer],
            )  # fmt: skip
        before = peak_mib()
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    tokens = sum(len(f"{row['prompt']} {row['chosen']} {row['rejected']}".split()) for row in pairs) / args.steps
    return {"losses": losses, "seconds": timer.seconds, "cpu": timer.cpu, "tokens": tokens, "before": before}


def against_one(args) -> list[float]:
    """Paired ratios of step times, K = 8 over K = 1: whole runs in turn, step by step."""
    ratios = []
    for repeat in range(args.repeats):
        order = (1, 8) if repeat % 2 == 0 else (8, 1)
        seconds = {k: run("multiref", args, k)["cpu" if args.device == "cpu" else "seconds"] for k in order}
        ratios += [b / a for a, b in zip(seconds[1][1:], seconds[8][1:])]
    return ratios


def child(args) -> None:
    import torch

    torch.set_num_threads(args.threads)
    if args.side == "k":
        print(json.dumps({"ratios": against_one(args)}))
        return
    result = run(args.side, args, 1)
    result["peak"] = peak_mib()
    result["grown"] = result["peak"] - result.pop("before")
    result["device"] = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else None
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", default="20M", choices=list(SIZES))
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--token-budget", type=int, default=1024, help="of one pass; 0: the whole micro-batch")
    parser.add_argument("--repeats", type=int, default=4, help="pairs of runs for K = 8 against K = 1; 0: leave it out")
    parser.add_argument("--side", choices=["trl", "multiref", "k"])
    args = parser.parse_args()
    if args.side:
        child(args)
        return
    print(f"{machine()}; {args.threads} threads, {args.device} {args.dtype}, Llama {args.size}, batch {args.batch}")
    found = {name: run_side(__file__, name, args) for name in ("trl", "multiref")}
    for name, result in found.items():
        step = statistics.median(result["seconds"][1:])
        memory = f"peak {result['peak']:.0f} MiB, {result['grown']:.0f} of it in training"
        memory += f", device {result['device']:.0f} MiB" if result["device"] is not None else ""
        work = statistics.median(result["cpu"][1:])
        print(
            f"{name:9} {step:7.3f} s a step, {work:.3f} s of processor time, {result['tokens'] / step:8.0f} tokens/s, {memory}"
        )
    ratios = [a / b for a, b in zip(found["trl"]["seconds"][1:], found["multiref"]["seconds"][1:])]
    worked = [a / b for a, b in zip(found["trl"]["cpu"][1:], found["multiref"]["cpu"][1:])]
    apart = max(abs(a - b) for a, b in zip(found["trl"]["losses"], found["multiref"]["losses"]))
    peaks = {f"{name}_peak_mib": round(result["peak"]) for name, result in found.items()}
    case = f"a step of {args.batch} pairs, {args.size}, {args.device}"
    record(case, statistics.median(ratios), against="ours (TRL's DPO)", at_least=4, losses_differ_by=apart, **peaks)
    record(f"{case}, processor time", statistics.median(worked), against="ours (TRL's DPO)", losses_differ_by=apart)
    print(f"losses {', '.join(f'{loss:.4f}' for loss in found['multiref']['losses'])}")
    if args.repeats:
        low, middle, high = statistics.quantiles(run_side(__file__, "k", args)["ratios"], n=4)
        record("K = 8, paired steps", middle, against="K = 1", at_most=1.1, quartiles=[round(low, 4), round(high, 4)])


if __name__ == "__main__":
    main()
