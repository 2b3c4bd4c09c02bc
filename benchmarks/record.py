"""One line per measured ratio in `results.jsonl`: what was compared, on which machine, with which versions.
`table.py` makes LOG.md's table of them.

Every benchmark writes through `record`, which also prints the ratio beside its mark.
A ratio of two times measured in one run is worth more than either time, so that is what is kept; seconds go into `figures`.
"""

import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
PACKAGES = ("multiref", "torch", "transformers", "trl", "numpy", "scipy", "cvxpy", "pyarrow")


def record(
    case: str, ratio: float, *, against: str, at_most: float | None = None, at_least: float | None = None, **figures: Any
) -> None:
    """Appends one ratio to `results.jsonl` and prints it; with a mark (`at_most` or `at_least`), whether it is met.
    Of a dry run (`--size tiny`) it prints alone."""
    mark = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}" if at_least is not None else None
    met = None if mark is None else (at_most is None or ratio <= at_most) and (at_least is None or ratio >= at_least)
    line = {
        "date": date.today().isoformat(),
        "benchmark": Path(sys.argv[0]).stem,
        "case": case,
        "ratio": round(ratio, 4),
        "against": against,
        "mark": mark,
        "met": met,
        "figures": figures,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }
    if "tiny" not in sys.argv:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    verdict = "" if mark is None else f"   mark: {mark}× {'met' if met else 'MISSED'}"
    print(f"{case:45} {ratio:10.2f} × {against}{verdict}", flush=True)


def machine() -> dict[str, Any]:
    """Processor, cores, how busy they are, and the GPU if there is one."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return {"processor": processor, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "gpu": _gpu()}


def versions() -> dict[str, str]:
    """Python and the packages that a ratio may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
