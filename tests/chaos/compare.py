"""Two folders, bit for bit, but for times: clocks, and what is said of them."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from multiref.training.checkpoint import read_plain

CLOCKS = re.compile(r"wall|processor|seconds|runtime|_per_second|since|^sum$|timing")
IGNORED = {"timing.json", "stages.json", "sums.json"}
_SECTION = re.compile(r"<summary><h2>Time</h2></summary>.*?</table>", re.DOTALL)
_TIME = re.compile(r"\d+(\.\d+)? ?(s|ms|min|seconds)\b|\d\d\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?")


def difference(one: Path, other: Path) -> str | None:
    """The first file that differs, and how; None where all agree."""
    ours, theirs = _files(one), _files(other)
    newest = max((name.split("/")[1] for name in ours if name.startswith("checkpoints/c")), key=_step, default="")
    for name in sorted(ours.keys() ^ theirs.keys()):
        if name.startswith("checkpoints/c") and newest not in name:
            continue  # a kill came after the newest was there and before this one was removed, and no later one was due
        return f"{name} is only in {'the first' if name in ours else 'the second'}"
    both = sorted(ours.keys() & theirs.keys())
    return next((name for name in both if _content(ours[name], one) != _content(theirs[name], other)), None)


def _step(name: str) -> int:
    return int(name.rpartition("-")[2]) if name.rpartition("-")[2].isdigit() else -1


def _files(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in IGNORED
        and path.suffix not in (".part", ".lock")
        and "damaged" not in path.parts
        and not any(re.fullmatch(r"\..+\.\w{8}", part) for part in path.relative_to(folder).parts)  # a killed process's own
    }


def _content(path: Path, folder: Path) -> Any:
    """What is compared of a file."""
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [_timeless(json.loads(line.replace(str(folder), "OUT"))) for line in lines]
    if path.name == "state.safetensors":
        state = _timeless(read_plain(path))
        if "counts" in state.get("state", {}):
            state["state"]["counts"] = state["state"]["counts"][:2]  # the third is the wall clock
        state.get("generators", {}).pop("python", None)  # each process begins with another, and nothing draws from it
        return str(_plain(state))
    if path.suffix in (".pt", ".pth"):
        return str(_plain(torch.load(path, weights_only=False)))
    if path.suffix in (".html", ".md", ".yaml", ".svg"):
        text = _SECTION.sub("", path.read_text()).replace(str(folder), "OUT").replace(f"…/{folder.name}", "OUT")
        return _TIME.sub("", text)
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if not CLOCKS.search(str(key))}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else repr(value)
