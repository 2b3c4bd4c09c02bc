"""Step time of preference training: multiref's `PreferenceTrainer` against TRL's `DPOTrainer`.
Same model, pairs, batches, loss, optimizer, run.

    python benchmarks/preference.py [--steps 7] [--batch 8] [--threads 2] [--device cpu] [--dtype float32] [--size 20M]
    python benchmarks/preference.py --size 135M --case gsm8k --batch 4 --steps 3 [--lora 8] [--model FOLDER] [--repeats 0]
    python benchmarks/preference.py --size 135M --rankings 4 --batch 6 --steps 3       six pairs of four completions of a prompt

Each side runs in a process of its own, so that peak memory is its own. Reference log-probabilities are precomputed on both
sides (TRL reads ours through `integrations.trl`), and TRL also runs as it comes, with its reference in memory (under LoRA the
base without the adapter). No gradient checkpointing, logistic loss, AdamW, the same pairs in the same order; the loss curves
must agree to 1e-4. Processor time is printed too: on a busy machine, with --threads 1, it is the fair figure. A step is what
`transformers.Trainer` does between on_step_begin and on_step_end; the first is left out.
"Bare" is the matrix products of a step counted from its shapes (prompt shared, nothing recomputed, head on completion tokens)
at the peak that is measured in the same run: twice those of the forward pass under LoRA, three times in full training.
Then K = 8 against K = 1: steps of both in turn in one process, the median of the paired ratios with its quartiles.
Needs the extra `trl`.
"""

import argparse
import copy
import itertools
import json
import statistics
import tempfile
import time

from record import machine, record
from scoring import SIZES, build, make_pairs, matmul_peak, shape_of, useful_flops
from sides import peak_mib, run_side


def scores_of(pairs, k: int, seed: int = 0):
    """K references' scores: what a reference of about 10 nats a token would say; their values do not matter to the time."""
    import torch

    from multiref.references.scores import SequenceScores, content_keys

    texts = dict.fromkeys((row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected"))
    prompts, sides = zip(*texts)
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


def pairs_of(args) -> list[dict[str, str]]:
    """Those of all steps; of rankings every pair of a prompt's completions, the better one first."""
    vocabulary, count = shape_of(args)["vocab_size"], args.batch * args.steps
    if not args.rankings:
        return make_pairs(args.case, count, vocabulary)
    rows = make_pairs(args.case, count * args.rankings, vocabulary)
    groups = [rows[k : k + args.rankings] for k in range(0, len(rows), args.rankings)]
    found = (
        {"prompt": group[0]["prompt"], "chosen": better["chosen"], "rejected": worse["chosen"]}
        for group in groups
        for better, worse in itertools.combinations(group, 2)
    )
    return list(itertools.islice(found, count))


def trainer_of(side: str, args, k: int, folder: str, timer, pairs):
    """One side's trainer, its model built."""
    import multiref as mr

    model, tokenizer = build(args, "float32" if args.device == "cpu" else None)
    model.train()
    if args.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=args.lora, lora_dropout=0.0, target_modules="all-linear"))
    scores = scores_of(pairs, k)
    if side == "multiref":
        from transformers import TrainingArguments

        options = {"regularizer": mr.ReverseKL(), "beta": 0.1, "scores": scores, "token_budget": args.token_budget or None}
        given = {"args": TrainingArguments(**settings(args, folder)), "train_dataset": pairs, "processing_class": tokenizer}
        return mr.training.PreferenceTrainer(model, **options, **given, callbacks=[timer])
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from multiref.integrations.trl import ReferenceColumnsDPOTrainer, with_reference_columns

    stored = side == "trl"
    options = {"precompute_ref_log_probs": stored, "max_length": None, "gradient_checkpointing": False, "beta": 0.1}
    given = {"args": DPOConfig(**settings(args, folder), **options), "processing_class": tokenizer, "callbacks": [timer]}
    data = Dataset.from_list(pairs)
    if stored:
        data = with_reference_columns(data, scores, mr.ReverseKL())
        return ReferenceColumnsDPOTrainer(model, train_dataset=data, **given)
    frozen = None if args.lora else copy.deepcopy(model)  # one that was made in memory TRL cannot load again
    return DPOTrainer(model, frozen, train_dataset=data, **given)


def run(side: str, args, k: int) -> dict:
    """Losses, seconds a step, tokens a step and peak memory before training of one side."""
    pairs, timer = pairs_of(args), clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(side, args, k, folder, timer, pairs)
        before = peak_mib()
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    tokens = sum(len(f"{row['prompt']} {row['chosen']} {row['rejected']}".split()) for row in pairs) / args.steps
    return {"losses": losses, "seconds": timer.seconds, "cpu": timer.cpu, "tokens": tokens, "before": before}


def bare_seconds(args, peak: float) -> float:
    """Of a step, the mean of those that are timed: the products at the measured peak; a ranking's completions once a step."""
    pairs, total = pairs_of(args)[args.batch :], 0.0
    for start in range(0, len(pairs), args.batch):
        prompts: dict[str, dict[str, None]] = {}
        for row in pairs[start : start + args.batch]:
            prompts.setdefault(row["prompt"], {}).update({row["chosen"]: None, row["rejected"]: None})
        total += sum(_group_flops(prompt, list(said), shape_of(args)) for prompt, said in prompts.items())
    return (2 if args.lora else 3) * total / peak / (args.steps - 1)


def _group_flops(prompt: str, said: list[str], shape) -> float:
    """`useful_flops` of one prompt and its completions, counted pair by pair without the prompts that are there already."""
    said = said + [""] * (len(said) % 2)
    rows = [{"prompt": prompt, "chosen": a, "rejected": b} for a, b in zip(said[::2], said[1::2])]
    alone = useful_flops([{"prompt": prompt, "chosen": "", "rejected": ""}], shape)
    empty = useful_flops([{"prompt": "", "chosen": "", "rejected": ""}], shape)
    return useful_flops(rows, shape) - (len(rows) - 1) * (alone - empty)


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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", default="20M", choices=list(SIZES))
    parser.add_argument("--case", default="hh", help="hh, prompt-free or gsm8k")
    parser.add_argument("--model", help="a folder of this size's shape; default: random weights")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--lora", type=int, default=0, help="rank, on all linear layers; 0: full training")
    parser.add_argument("--rankings", type=int, default=0, help="completions of a prompt, all pairs of which are in the data")
    parser.add_argument("--token-budget", type=int, default=1024, help="of one pass; 0: the whole micro-batch")
    parser.add_argument("--repeats", type=int, default=4, help="pairs of runs for K = 8 against K = 1; 0: leave it out")
    parser.add_argument("--side", choices=["trl", "trl-plain", "multiref", "k"])
    parser.add_argument("--only", help="one side alone, its figures printed")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.side:
        child(args)
        return
    peaks = matmul_peak(args, "float32" if args.device == "cpu" else None)
    print(f"{machine()}; {args.threads} threads, {args.device} {args.dtype}, Llama {args.size}, batch {args.batch}")
    print(f"matrix products: {peaks[0] / 1e9:.0f} GFLOP/s, {peaks[1] / 1e9:.0f} GFLOP per second of processor time", flush=True)
    found = {}
    for name in [args.only] if args.only else ["multiref", "trl", "trl-plain"]:
        found[name] = result = run_side(__file__, name, args, only=None)
        step, work = (statistics.median(result[key][1:]) for key in ("seconds", "cpu"))
        memory = f"peak {result['peak']:.0f} MiB, {result['grown']:.0f} of it in training"
        memory += f", device {result['device']:.0f} MiB" if result["device"] is not None else ""
        print(f"{name:9} {step:7.3f} s a step, {work:.3f} of the processor, {result['tokens'] / step:.0f} tokens/s, {memory}")
    kind = f"rankings of {args.rankings}, " if args.rankings else ""
    case = f"{args.batch} {args.case} pairs, {kind}{f'LoRA {args.lora}' if args.lora else 'full'}, {args.size}, {args.device}"
    large, ours = args.size == "135M", found.get("multiref")
    if ours is not None:
        for key, peak, label in zip(("seconds", "cpu"), peaks, ("", ", processor time")):
            over = statistics.mean(ours[key][1:]) / bare_seconds(args, peak)
            mark = (2 if args.lora else 1.6) if large and label and not args.rankings else None
            record(f"a step of {case}{label}", over, against="bare matrix products", at_most=mark)
    for name, peer, mark in (
        ("trl", "ours (TRL's DPO, stored references)", 3 if args.rankings else 3.3 if large else 4),
        ("trl-plain", "ours (TRL's DPO as it comes)", 4.5 if large and not args.rankings else None),
    ):
        if ours is not None and name in found:
            theirs = found[name]
            apart = max(abs(a - b) for a, b in zip(theirs["losses"], ours["losses"])) if name == "trl" else None
            peaks_of = {"multiref_peak_mib": round(ours["peak"]), "trl_peak_mib": round(theirs["peak"])}
            for key, label, least in (("seconds", "", None), ("cpu", ", processor time", mark)):
                ratio = statistics.median(a / b for a, b in zip(theirs[key][1:], ours[key][1:]))
                record(f"a step of {case}{label}", ratio, against=peer, at_least=least, losses_differ_by=apart, **peaks_of)
            if large:
                record(f"peak memory, {case}", ours["peak"] / theirs["peak"], against=peer[6:-1], at_most=0.5, **peaks_of)
    if args.repeats and not args.only:
        low, middle, high = statistics.quantiles(run_side(__file__, "k", args)["ratios"], n=4)
        record("K = 8, paired steps", middle, against="K = 1", at_most=1.1, quartiles=[round(low, 4), round(high, 4)])


if __name__ == "__main__":
    main()
