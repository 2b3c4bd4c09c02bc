"""How scoring grows: time and memory against the number of pairs, references, tokens of a completion, and the vocabulary.

    python benchmarks/growth.py [--size 20M] [--threads 1] [--device cpu] [--quick] [--picture docs/figures/growth.svg]

Per axis the others stay at 16 pairs, one reference, prompts and completions of 64 tokens, a vocabulary of 8,000. Time is
processor time on a CPU (it does not see who else is on the machine) and the clock's elsewhere, audit included, the best of
--repeats; memory is what scoring adds to the peak. The exponent b of time ~ xᵇ is the slope over the last two values, where
what does not grow counts least. One line of results per axis; the mark is b ≤ 1.3 (attention alone has 2 in the length).
"""

import argparse
import ctypes
import gc
import math
import sys
import time
from pathlib import Path

from record import machine, record
from scoring import SIZES, build
from sides import peak_mib

AXES = {
    "pairs": (16, 32, 64),
    "references": (1, 2, 4),
    "tokens of a completion": (64, 128, 256),
    "vocabulary": (8000, 32000, 128000),
}
USUAL = {"pairs": 16, "references": 1, "tokens of a completion": 64, "vocabulary": 8000}


def measure(args: argparse.Namespace, setting: dict[str, int]) -> tuple[float, float]:
    """(seconds, MiB added to the peak) of one score of pairs of one length."""
    import torch

    from multiref.models import LanguageModel
    from multiref.references import References

    pairs, count, length, vocabulary = setting.values()
    args.vocabulary = vocabulary
    draw = torch.randint(vocabulary - 3, (pairs, 3, length), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [[" ".join(f"w{token}" for token in part) for part in row] for row in draw]
    data = [{"prompt": f"<s> {a}", "chosen": f" {b}", "rejected": f" {c}"} for a, b, c in rows]
    seconds, grown = [], []
    for _ in range(args.repeats):
        made = [LanguageModel(*build(args), f"random Llama {k}") for k in range(count)]  # none was audited yet
        for k, each in enumerate(made):  # equal weights would be scored once
            next(each.model.parameters()).data.add_(1e-4 * k)
        references = References({each.name: each for each in made})
        before = reset_peak(args.device)
        began = time.process_time() if args.device == "cpu" else time.perf_counter()
        references.score(data)
        seconds.append((time.process_time() if args.device == "cpu" else time.perf_counter()) - began)
        grown.append(peak(args.device) - before)
    return min(seconds), min(grown)


def reset_peak(device: str) -> float:
    """MiB in use now, from which the next peak counts; what was freed goes back to the system first."""
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak(device: str) -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else peak_mib()


def slope(values: tuple[int, ...], measured: list[float]) -> float:
    """b of measured ~ xᵇ between the last two."""
    last, before = max(measured[-1], 1e-9), max(measured[-2], 1e-9)
    return math.log(last / before) / math.log(values[-1] / values[-2])


def draw_picture(found: dict[str, list[tuple[float, float]]], axes: dict[str, tuple[int, ...]], path: Path) -> None:
    """Time (lines) and memory added (dashes) against what grows, both as multiples of their smallest."""
    from multiref.report.figures import GREY, MARKERS, PALETTE, canvas, finish, svg

    figure, panel = canvas(6.4, 4.4)
    panel.plot((1, 64), (1, 64), color=GREY, linewidth=1, label="in proportion")
    for number, (name, values) in enumerate(axes.items()):
        seconds, grown = zip(*found[name])
        times = [value / values[0] for value in values]
        style = {"color": PALETTE[number], "marker": MARKERS[number], "markersize": 5}
        panel.plot(times, [each / seconds[0] for each in seconds], linewidth=1.6, label=name, **style)
        panel.plot(times, [max(each, 1) / max(grown[0], 1) for each in grown], linewidth=1, linestyle="--", **style)
    title = "Scoring: time (lines) and memory added (dashes)"
    finish(figure, panel, "how many times the smallest", "times", title, log_x=True, log_y=True)
    path.write_bytes(svg(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="20M", choices=list(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two values of each axis")
    parser.add_argument("--picture", type=Path, help="where the figure goes")
    args = parser.parse_args()
    args.model = None
    import torch

    torch.set_num_threads(args.threads)
    print(f"{machine()}; {args.threads} threads, {args.device} {args.dtype}, Llama {args.size}", flush=True)
    axes = {name: values[:2] if args.quick else values for name, values in AXES.items()}
    measure(args, USUAL)  # what is loaded and warmed up once
    found = {}
    for name, values in axes.items():
        found[name] = [measure(args, USUAL | {name: value}) for value in values]
        seconds, grown = (list(column) for column in zip(*found[name]))
        figures = {"values": values, "seconds": [round(s, 3) for s in seconds], "mib": [round(m) for m in grown]}
        figures["memory_exponent"] = round(slope(values, grown), 2)
        record(f"exponent of time in {name}, {args.size}", slope(values, seconds), against="", at_most=1.3, **figures)
    if args.picture:
        draw_picture(found, axes, args.picture)


if __name__ == "__main__":
    main()
