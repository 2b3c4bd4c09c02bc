"""Checkpoints of an online run: everything that the next step depends on, written in one move, without pickle."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from multiref.errors import OutputError
from multiref.training.plain import dump_plain, read_plain

__all__ = ["last_checkpoint", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path:
    """`folder`/checkpoint-<step>: trainable weights (safetensors), optimizer, random generators, state. Whole or not at all; the last `keep` stay."""
    target = folder / f"checkpoint-{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".checkpoint."))
    except OSError as error:
        raise OutputError(f"checkpoints: cannot write into {folder}: {error.strerror or error}.") from None
    try:
        save_file(_trainable(model), temporary / "model.safetensors")
        (temporary / "optimizer.safetensors").write_bytes(dump_plain(optimizer.state_dict()))
        (temporary / "generators.safetensors").write_bytes(dump_plain(_generators()))
        version, internal, gauss = random.getstate()
        everything = {"step": step, **state, "python_random": [version, list(internal), gauss]}
        (temporary / "state.json").write_text(json.dumps(everything), encoding="utf-8")
        os.chmod(temporary, 0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in _all(folder)[:-keep] if keep > 0 else []:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts weights, optimizer and generators back, and returns the state. OutputError for a folder that is no checkpoint of this model."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        weights = load_file(path / "model.safetensors")
        moments = read_plain(path / "optimizer.safetensors")
        generators = read_plain(path / "generators.safetensors")
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"{path} is no whole checkpoint: {error}. Remove it, and go on from the one before.") from None
    own = dict(model.named_parameters())
    missing = [name for name, value in _trainable(model).items() if name not in weights or weights[name].shape != value.shape]
    if missing:
        raise OutputError(
            f"{path} does not fit this model: {missing[0]} is not in it, or has another shape. Resume with the model of that run."
        )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    optimizer.load_state_dict(moments)
    torch.set_rng_state(generators["cpu"])
    if torch.cuda.is_available() and "cuda" in generators:
        torch.cuda.set_rng_state_all(generators["cuda"])
    version, internal, gauss = state.pop("python_random")
    random.setstate((version, tuple(internal), gauss))
    return state


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole one."""
    found = _all(folder)
    return found[-1] if found else None


def _all(folder: Path) -> list[Path]:
    whole = [path for path in folder.glob("checkpoint-*") if (path / "state.json").is_file()]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def _trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _generators() -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states
