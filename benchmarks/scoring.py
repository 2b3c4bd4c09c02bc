"""Reference scores of preference pairs: multiref against TRL's DPOTrainer precompute. Same model, pairs, dtype, machine, run.

    python benchmarks/scoring.py [--pairs 96] [--threads 2] [--device cpu] [--dtype float32] [--size 20M]

Each side runs in a process of its own, one after the other, so that peak memory is its own.
TRL: `_precompute_ref_logps` alone, at batch size 8, its tokenisation not counted.
multiref: text to scores, its tokenisation and its audit of the rows counted. Both must give the same sums.
Cases: HH-style pairs (mean 150 prompt and 55 completion tokens), pairs without a prompt and of mixed length, and,
for memory only, a vocabulary of 128,000. Needs the extra `trl`.
"""

import argparse
import copy
import json
import random
import tempfile
import time

from record import machine, record
from sides import peak_mib, run_side

SIZES = {  # hidden, layers, heads, intermediate
    "20M": (256, 6, 8, 688),
    "0.5B": (1024, 24, 16, 4096),
    "1.5B": (2048, 24, 16, 6144),
}


def build(vocabulary: int, size: str, dtype: str, device: str):
    """A random Llama and a tokenizer of whole words "w0" … so that text and ids are the same thing to both sides."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{k}": k for k in range(vocabulary - 3)} | {
        "<s>": vocabulary - 3,
        "</s>": vocabulary - 2,
        "<pad>": vocabulary - 1,
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    hidden, layers, heads, intermediate = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2, max_position_embeddings=2048, bos_token_id=vocabulary - 3, eos_token_id=vocabulary - 2,
        pad_token_id=vocabulary - 1,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(device=device, dtype=getattr(torch, dtype)).eval(), tokenizer


def make_pairs(case: str, count: int, vocabulary: int) -> list[dict[str, str]]:
    """Rows of random words whose lengths are drawn as in real data: long tails, fixed seed."""
    rng = random.Random(0)

    def text(mean: float, least: int, most: int) -> str:
        length = min(most, max(least, round(rng.lognormvariate(0, 0.7) * mean / 1.278)))  # 1.278 = mean of that lognormal
        return " " + " ".join(f"w{rng.randrange(vocabulary - 3)}" for _ in range(length))

    if case == "prompt-free":
        return [{"prompt": "<s>", "chosen": text(120, 8, 480), "rejected": text(120, 8, 480)} for _ in range(count)]
    return [
        {"prompt": "<s>" + text(150, 8, 600), "chosen": text(54, 4, 250), "rejected": text(54, 4, 250)} for _ in range(count)
    ]


def run_trl(pairs, model, tokenizer, device: str, repeats: int):
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    clocks: list[tuple[float, float]] = []
    original = DPOTrainer._precompute_ref_logps

    def timed(self, dataset, name, batch_size):
        with Clock(device, clocks):
            return original(self, dataset, name, batch_size)

    DPOTrainer._precompute_ref_logps = timed
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(
                output_dir=folder, precompute_ref_log_probs=True, precompute_ref_batch_size=8, per_device_train_batch_size=8,
                max_length=None,
                bf16=model.dtype == torch.bfloat16, report_to=[], use_cpu=device == "cpu", disable_tqdm=True,
                gradient_checkpointing=False, seed=repeat,
            )  # fmt: skip
            dataset = Dataset.from_list([{**row, "repeat": repeat} for row in pairs])
            trainer = DPOTrainer(model, args=args, train_dataset=dataset, processing_class=tokenizer)
            scores = [[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in trainer.train_dataset]
    return clocks, scores


def run_multiref(pairs, model, tokenizer, device: str, repeats: int, logits_budget: int):
    """Every repeat has a model that was never audited: what is clocked is what the first score of a job costs."""
    from multiref.models import encode_many, score_completions

    clocks: list[tuple[float, float]] = []
    for _ in range(repeats):
        model = copy.deepcopy(model)
        with Clock(device, clocks):
            encoded = encode_many(tokenizer, [(row["prompt"], (row["chosen"], row["rejected"])) for row in pairs])
            scores = score_completions(model, encoded, logits_budget=logits_budget).view(-1, 2).tolist()
    return clocks, scores


class Clock:
    """Appends (seconds by the wall, seconds of processor time over all threads).
    The second does not see who else is on the machine."""

    def __init__(self, device: str, clocks: list[tuple[float, float]]):
        self.device, self.clocks = device, clocks

    def __enter__(self) -> None:
        _synchronise(self.device)
        self.start = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        _synchronise(self.device)
        self.clocks.append((time.perf_counter() - self.start[0], time.process_time() - self.start[1]))


def _synchronise(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def child(args: argparse.Namespace) -> None:
    """One side of one case, as JSON on the last line."""
    import torch

    torch.set_num_threads(args.threads)
    model, tokenizer = build(args.vocabulary, args.size, args.dtype, args.device)
    pairs = make_pairs(args.case, args.pairs, args.vocabulary)
    if args.side == "trl":
        import trl.trainer.dpo_trainer  # noqa: F401  (imports are not the scoring's memory)
    before = peak_mib()
    if args.side == "trl":
        clocks, scores = run_trl(pairs, model, tokenizer, args.device, args.repeats)
    else:
        clocks, scores = run_multiref(pairs, model, tokenizer, args.device, args.repeats, args.logits_budget)
    peak = peak_mib()
    on_device = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else None
    wall, processor = (min(times) for times in zip(*clocks))
    found = {"seconds": wall, "cpu": processor, "scores": scores, "peak": peak, "grown": peak - before, "device": on_device}
    print(json.dumps(found))


def matmul_peak(args: argparse.Namespace) -> tuple[float, float]:
    """FLOP/s of the best of a few square matrix products, by the wall and by processor time (over all threads)."""
    import torch

    torch.set_num_threads(args.threads)
    a = torch.randn(2048 if args.device == "cpu" else 8192, device=args.device).expand(
        2048 if args.device == "cpu" else 8192, -1
    )
    a = (a + torch.randn_like(a)).to(getattr(torch, args.dtype)).contiguous()
    clocks: list[tuple[float, float]] = []
    for _ in range(6):
        with Clock(args.device, clocks):
            a @ a
    wall, processor = (min(times) for times in zip(*clocks))
    return 2 * len(a) ** 3 / wall, 2 * len(a) ** 3 / processor


def useful_flops(pairs, size: str, vocabulary: int) -> float:
    """Matrix products that scoring cannot do without: each prompt once, each completion once, the head on completion tokens."""
    hidden, layers, _, intermediate = SIZES[size]
    body = layers * (2 * hidden * hidden + hidden * hidden + 3 * hidden * intermediate)  # q, o; k, v at half the heads; MLP
    total = 0.0
    for row in pairs:
        p, c, r = (len(row[key].split()) + (key != "prompt") for key in ("prompt", "chosen", "rejected"))
        attention = sum(2 * 2 * hidden * layers * n * (start + n / 2) for start, n in ((0, p), (p, c), (p, r)))
        total += 2 * body * (p + c + r) + 2 * hidden * vocabulary * (c + r) + attention
    return total


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=["trl", "multiref"], help=argparse.SUPPRESS)
    parser.add_argument("--case", default="hh", help=argparse.SUPPRESS)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="best of")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", default="20M", choices=list(SIZES))
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--logits-budget", type=int, default=2**24)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.side:
        return child(args)
    peak, peak_by_processor = matmul_peak(args)
    print(f"{machine()}; {args.threads} threads; {args.size} Llama, {args.dtype}, {args.device}; best of {args.repeats}")
    print(f"matrix products: {peak / 1e9:.0f} GFLOP/s, {peak_by_processor / 1e9:.0f} GFLOP per second of processor time")
    for case, mark in (("hh", 8), ("prompt-free", 3)):
        ours, theirs = (run_side(__file__, name, args, case=case) for name in ("multiref", "trl"))
        pairs = make_pairs(case, args.pairs, args.vocabulary)
        error = max(abs(a - b) for x, y in zip(ours["scores"], theirs["scores"]) for a, b in zip(x, y))
        flops = useful_flops(pairs, args.size, args.vocabulary)
        figures = {
            "pairs_per_second": round(args.pairs / ours["seconds"], 1),
            "share_of_peak": round(flops / ours["seconds"] / peak, 2),
            "share_of_peak_by_processor": round(flops / ours["cpu"] / peak_by_processor, 2),
            "sums_differ_by": error,
            **{f"{who}_peak_mib": round(found["peak"]) for who, found in (("multiref", ours), ("trl", theirs))},
        }
        title, peer = f"{case} pairs, {args.size}, {args.device}", "ours (TRL's precompute)"
        record(title, theirs["seconds"] / ours["seconds"], against=peer, at_least=mark, **figures)
        record(f"{title}, processor time", theirs["cpu"] / ours["cpu"], against=peer)
    few = {"pairs": min(args.pairs, 24), "repeats": 1}
    for vocabulary in (32000, 128000):
        for budget in (2**22, 2**24):
            ours = run_side(__file__, "multiref", args, case="hh", vocabulary=vocabulary, logits_budget=budget, **few)
            print(
                f"vocabulary {vocabulary}, {budget * 4 / 2**20:.0f} MiB of logits allowed: scoring adds {ours['grown']:.0f} MiB"
            )


if __name__ == "__main__":
    main()
