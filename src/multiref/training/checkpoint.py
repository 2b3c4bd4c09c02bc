"""What a run needs to go on: written whole or not at all, one file a checkpoint, without pickle; the last few stay."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiref._files import write_whole
from multiref.errors import OutputError
from multiref.training.plain import dump_plain, read_plain

__all__ = ["last_checkpoint", "load_checkpoint", "put_back", "save_checkpoint"]

_FILE = "state.safetensors"


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path:
    """`folder`/checkpoint-<step>: trainable weights, optimizer, random generators, `state`. The last `keep` stay; 0: all."""
    target = folder / f"checkpoint-{step}"
    whole = {
        **state,
        "step": step,
        "weights": {name: p for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "generators": _generators(),
    }
    write_whole(target / _FILE, dump_plain(whole))
    for old in _all(folder)[:-keep] if keep > 0 else []:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Puts weights, optimizer and generators back, and returns the rest.
    OutputError for a folder that is no checkpoint of this model."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    try:
        state: dict[str, Any] = read_plain(path / _FILE)
        weights, generators = state.pop("weights"), state.pop("generators")
        put_back((p, weights[name]) for name, p in own.items())
        optimizer.load_state_dict(state.pop("optimizer"))
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"{path} is no whole checkpoint of this model: {error}. Resume with the model of that run, or remove it and go on "
            "from the one before."
        ) from None
    torch.set_rng_state(generators["cpu"])
    if torch.cuda.is_available() and "cuda" in generators:
        torch.cuda.set_rng_state_all(generators["cuda"])
    random.setstate(generators["python"])
    return state


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole one."""
    return next(iter(reversed(_all(folder))), None)


@torch.no_grad()
def put_back(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Each parameter gets its value; none does where a shape differs. ValueError then."""
    known = list(pairs)
    for parameter, value in known:
        if parameter.shape != value.shape:
            raise ValueError(f"a parameter of shape {tuple(value.shape)} where {tuple(parameter.shape)} is expected")
    for parameter, value in known:
        parameter.copy_(value)


def _all(folder: Path) -> list[Path]:
    whole = [path for path in folder.glob("checkpoint-*") if (path / _FILE).is_file()]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def _generators() -> dict[str, Any]:
    states: dict[str, Any] = {"cpu": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states
