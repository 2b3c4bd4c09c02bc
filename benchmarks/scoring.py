"""Reference scores of preference pairs: multiref against TRL's DPOTrainer precompute. Same model, pairs, dtype, machine, run.

    python benchmarks/scoring.py [--pairs 96] [--threads 2] [--device cpu] [--dtype float32] [--size 20M]
    python benchmarks/scoring.py --size 135M --pairs 12 [--model FOLDER] [--case gsm8k]
    python benchmarks/scoring.py --size 135M --pairs 12 --case adapter     LoRA of rank 8 on the base, against the base alone

Each side runs in a process of its own, one after the other, so that peak memory is its own.
TRL: `_precompute_ref_logps` alone, at batch size 8, its tokenisation not counted.
multiref: text to scores, its tokenisation and its audit of the rows counted. Both must give the same sums.
Cases: HH-style pairs (mean 150 prompt and 55 completion tokens), pairs without a prompt and of mixed length, pairs as long as
GSM8K's in a chat template, and, for memory only (--case memory), a vocabulary of 128,000. Needs the extra `trl`.
In bfloat16 both peaks are measured, and the ratio of ours in both precisions stands beside theirs.
"""

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from typing import Any

from record import machine, record
from sides import peak_mib, run_side

SIZES = {  # as LlamaConfig has them; 135M is SmolLM2's shape
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 1000},
    "20M": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 688},
    "135M": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "0.5B": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "1.5B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 6144},
}  # fmt: skip
MARKS = {"20M": {"hh": 11, "prompt-free": 6}, "135M": {"hh": 4, "gsm8k": 3.5}}  # against TRL
SHARE = {"135M": 0.8}  # of the measured matrix-product peak


def shape_of(args: argparse.Namespace) -> dict[str, Any]:
    """The size's shape: half as many key heads as heads and a vocabulary of 32,000 where nothing else is said."""
    shape = {"vocab_size": 32000, "num_key_value_heads": SIZES[args.size]["num_attention_heads"] // 2, **SIZES[args.size]}
    return shape | ({"vocab_size": args.vocabulary} if args.vocabulary else {})


def build(args: argparse.Namespace, dtype: str | None = None) -> tuple[Any, Any]:
    """A Llama (the folder --model; else random weights of --size) and a tokenizer of whole words "w0" …, so that text and ids
    are the same thing to both sides."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    shape = shape_of(args)
    size = shape["vocab_size"]
    words = {f"w{k}": k for k in range(size - 3)} | {"<s>": size - 3, "</s>": size - 2, "<pad>": size - 1}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    ids = {"bos_token_id": size - 3, "eos_token_id": size - 2, "pad_token_id": size - 1}
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model)
        model.config.update(ids)
        model.generation_config.update(**ids)
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, **ids, max_position_embeddings=2048))
    return model.to(device=args.device, dtype=getattr(torch, dtype or args.dtype)).eval(), tokenizer


def make_pairs(case: str, count: int, vocabulary: int) -> list[dict[str, str]]:
    """Rows of random words whose lengths are drawn as in real data: long tails, fixed seed."""
    rng = random.Random(0)

    def text(mean: float, least: int, most: int) -> str:
        length = min(most, max(least, round(rng.lognormvariate(0, 0.7) * mean / 1.278)))  # 1.278 = mean of that lognormal
        return " " + " ".join(f"w{rng.randrange(vocabulary - 3)}" for _ in range(length))

    if case in ("gsm8k", "adapter"):
        rows = [(text(90, 40, 250), text(80, 20, 250), text(80, 20, 250)) for _ in range(count)]
        return [{"prompt": "<s>" + prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in rows]
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


def with_adapter(model: Any, tokenizer: Any, folder: str, rank: int = 8) -> tuple[Any, Any]:
    """The model saved as a base, and two references over it: bare, and under an adapter on all its linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from multiref.models import ModelSpec
    from multiref.references import LocalReference

    model.save_pretrained(f"{folder}/base")
    tokenizer.save_pretrained(f"{folder}/base")
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.01)
    adapted.save_pretrained(f"{folder}/adapter")
    dtype = str(model.dtype).removeprefix("torch.")
    specs = ModelSpec(f"{folder}/base"), ModelSpec(f"{folder}/base", adapter=f"{folder}/adapter")
    return tuple(LocalReference(spec, dtype=dtype) for spec in specs)  # type: ignore[return-value]


def adapter_against_base(args: argparse.Namespace) -> list[float]:
    """Paired ratios of processor time, the reference with the adapter over the bare one, in turn over the same pairs."""
    from multiref.references.protocol import Item

    model, tokenizer = build(args)
    items = [Item(row["prompt"], (row["chosen"], row["rejected"])) for row in make_pairs(args.case, args.pairs, 1000)]
    found: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder:
        pair = with_adapter(model, tokenizer, folder)
        for repeat in range(args.repeats + 2):  # the first two load, put on and audit
            clocks: list[tuple[float, float]] = []
            for reference in pair:
                with Clock(args.device, clocks):
                    reference.score(items)
            found += [[cpu for _, cpu in clocks]] if repeat > 1 else []
    return [worn / bare for bare, worn in found]


def child(args: argparse.Namespace) -> None:
    """One side of one case, as JSON on the last line."""
    import torch

    torch.set_num_threads(args.threads)
    if args.case == "adapter":
        print(json.dumps({"ratios": adapter_against_base(args)}))
        return
    model, tokenizer = build(args)
    pairs = make_pairs(args.case, args.pairs, shape_of(args)["vocab_size"])
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


def matmul_peak(args: argparse.Namespace, dtype: str | None = None) -> tuple[float, float]:
    """FLOP/s of the best of a few square matrix products, by the wall and by processor time (over all threads)."""
    import torch

    torch.set_num_threads(args.threads)
    side = 2048 if args.device == "cpu" else 8192
    a = torch.randn(side, side, device=args.device).to(getattr(torch, dtype or args.dtype))
    clocks: list[tuple[float, float]] = []
    for _ in range(6):
        with Clock(args.device, clocks):
            a @ a
    wall, processor = (min(times) for times in zip(*clocks))
    return 2 * side**3 / wall, 2 * side**3 / processor


def useful_flops(pairs: list[dict[str, str]], shape: dict[str, Any]) -> float:
    """Matrix products that scoring cannot do without: each prompt once, each completion once, the head on completion tokens."""
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    narrow = 2 * hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]  # k and v
    body = layers * hidden * (2 * hidden + narrow + 3 * shape["intermediate_size"])
    total = 0.0
    for row in pairs:
        p, c, r = (len(row[key].split()) + (key != "prompt") for key in ("prompt", "chosen", "rejected"))
        attention = sum(2 * 2 * hidden * layers * n * (start + n / 2) for start, n in ((0, p), (p, c), (p, r)))
        total += 2 * body * (p + c + r) + 2 * hidden * shape["vocab_size"] * (c + r) + attention
    return total


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", choices=["trl", "multiref"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help="hh, prompt-free, gsm8k, adapter or memory; default: those of the size")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="best of")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", default="20M", choices=list(SIZES))
    parser.add_argument("--model", help="a folder of this size's shape; default: random weights")
    parser.add_argument("--alone", type=int, default=0, help="1: the share of the peak alone, without TRL")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--logits-budget", type=int, default=2**24)
    return parser.parse_args()


def matrix_units(device: str) -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware."""
    if device != "cpu":
        return True
    import torch

    ask = [getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("amx_tile", "avx512_bf16")]
    return any(each() for each in ask)


def compare(args: argparse.Namespace, case: str, peaks: tuple[float, float]) -> dict[str, Any]:
    """One case against TRL: its lines of results, and what ours found."""
    ours = run_side(__file__, "multiref", args, case=case)
    dtype = "" if args.dtype == "float32" else f"{args.dtype}, "
    shape, title = shape_of(args), f"{case} pairs, {args.size}, {dtype}{args.device}"
    pairs = make_pairs(case, args.pairs, shape["vocab_size"])
    flops, mark = useful_flops(pairs, shape), MARKS.get(args.size, {}).get(case)
    if not args.alone:
        theirs = run_side(__file__, "trl", args, case=case)
        figures = {
            "pairs_per_second": round(args.pairs / ours["seconds"], 1),
            "sums_differ_by": max(abs(a - b) for x, y in zip(ours["scores"], theirs["scores"]) for a, b in zip(x, y)),
            **{f"{who}_peak_mib": round(found["peak"]) for who, found in (("multiref", ours), ("trl", theirs))},
        }
        peer = "ours (TRL's precompute)"
        record(title, theirs["seconds"] / ours["seconds"], against=peer, **figures)
        record(f"{title}, processor time", theirs["cpu"] / ours["cpu"], against=peer, at_least=mark)
    for name, clock, peak in zip(("", ", processor time"), ("seconds", "cpu"), peaks):
        least = SHARE.get(args.size) if name and args.dtype == "float32" else None
        record(f"{title}{name}: share", flops / ours[clock] / peak, against="the matrix-product peak", at_least=least)
    return ours


def main() -> None:
    args = parse()
    if args.side:
        return child(args)
    peaks = matmul_peak(args)
    print(f"{machine()}; {args.threads} threads; {args.size} Llama, {args.dtype}, {args.device}; best of {args.repeats}")
    print(f"matrix products: {peaks[0] / 1e9:.0f} GFLOP/s, {peaks[1] / 1e9:.0f} GFLOP per second of processor time")
    print(f"matrix units for bfloat16: {'yes' if matrix_units(args.device) else 'no'}")
    if args.case == "adapter":
        ratio = statistics.median(run_side(__file__, "multiref", args)["ratios"])
        return record(f"adapter of rank 8, {args.size}, processor time", ratio, against="its base", at_most=1.05)
    for case in [args.case] if args.case else MARKS.get(args.size, {"hh": 0}):
        if case != "memory":
            ours = compare(args, case, peaks)
            if args.dtype == "bfloat16" and matrix_units(args.device):
                wide = run_side(__file__, "multiref", args, case=case, dtype="float32")["seconds"] / ours["seconds"]
                share = wide / (peaks[0] / matmul_peak(args, "float32")[0])
                record(f"{case}, {args.size}: bfloat16 over float32", share, against="their peaks' ratio", at_least=0.7)
    few = {"pairs": min(args.pairs, 24), "repeats": 1, "case": "hh"}
    for vocabulary in (32000, 128000) if args.case == "memory" or (args.size == "20M" and not args.case) else ():
        for budget in (2**22, 2**24):
            grown = run_side(__file__, "multiref", args, vocabulary=vocabulary, logits_budget=budget, **few)["grown"]
            print(f"vocabulary {vocabulary}, {budget * 4 / 2**20:.0f} MiB of logits allowed: scoring adds {grown:.0f} MiB")


if __name__ == "__main__":
    main()
