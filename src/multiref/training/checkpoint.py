"""What a run needs to go on: written whole or not at all, one file a checkpoint, without pickle; the last few stay.
A file is nested lists, dictionaries, numbers and tensors as safetensors: what an optimizer's state is."""

import json
import os
import random
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from multiref._files import TEMPORARY, flush_folder, write_whole
from multiref.errors import ArgumentError, OutputError
from multiref.training.checks import check_same
from multiref.training.sums import SUMS, damage, remove_old, write_sums

_FILE = "state.safetensors"
_STRUCTURE = "structure"


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> Path:
    """`folder`/checkpoint-<step>: trainable weights, optimizer, random generators, `state`. The last `keep` stay; 0: all."""
    generators: dict[str, Any] = {"cpu": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state_all()
    state = {
        **state,
        "step": step,
        "weights": {name: p for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "generators": generators,
    }
    return save_state(folder, step, state, keep=keep)


def save_state(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """`folder`/checkpoint-<step> with the state and its sums, in one step; the last `keep` stay, 0: all.
    OutputError where it cannot be written."""
    target, temporary = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}{TEMPORARY}"
    shutil.rmtree(temporary, ignore_errors=True)
    content = dump_plain(state)
    write_whole(temporary / _FILE, content)
    write_sums(temporary, known={_FILE: content})
    shutil.rmtree(target, ignore_errors=True)  # one that was left aside when the run went on from before it
    try:
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; choose a folder that can be written") from error
    flush_folder(folder)
    remove_old(folder, keep)
    return target


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Puts weights, optimizer and generators back, and returns the rest.
    OutputError for a folder that is no checkpoint of this model; ArgumentError for one of other `settings`, before."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    try:
        state = read_state(path)
        check_same(state.get("settings", {}), settings)
        weights, generators = state.pop("weights"), state.pop("generators")
        put_back((p, weights[name]) for name, p in own.items())
        optimizer.load_state_dict(state.pop("optimizer"))
    except (OutputError, ArgumentError):
        raise
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


def read_state(path: Path) -> dict[str, Any]:
    """What `save_state` was given. OutputError for a checkpoint whose sums do not agree, ValueError for another file."""
    if (path / SUMS).exists() and (problem := damage(path)):
        raise OutputError(f"{path} is damaged: {problem}; remove it and go on from the one before.")
    state: dict[str, Any] = read_plain(path / _FILE)
    return state


@torch.no_grad()
def put_back(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Each parameter gets its value; none does where a shape differs. ValueError then."""
    known = list(pairs)
    for parameter, value in known:
        if parameter.shape != value.shape:
            raise ValueError(f"a parameter of shape {tuple(value.shape)} where {tuple(parameter.shape)} is expected")
    for parameter, value in known:
        parameter.copy_(value)


def dump_plain(value: Any) -> bytes:
    """The bytes of a safetensors file: tensors as such, everything around them as JSON in its metadata.
    Keys and tuples keep their types.

    Raises:
        ArgumentError: something that is neither a tensor, a number, a text, None, nor a list, tuple or dictionary of those.
    """
    tensors: dict[str, Tensor] = {}

    def plain(part: Any) -> Any:
        if isinstance(part, Tensor):
            name = str(len(tensors))
            tensors[name] = part.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(part, dict):
            return {"dict": [[plain(key), plain(item)] for key, item in part.items()]}
        if isinstance(part, (list, tuple)):
            return {"tuple" if isinstance(part, tuple) else "list": [plain(item) for item in part]}
        if part is None or isinstance(part, (bool, int, float, str)):
            return part
        raise ArgumentError(f"found a {type(part).__name__} in a state; expected tensors, numbers, texts and lists of those.")

    structure = json.dumps(plain(value))
    return save(tensors or {"none": torch.zeros(0)}, metadata={_STRUCTURE: structure})


def read_plain(path: str | Path) -> Any:
    """What `dump_plain` was given; tensors on the CPU. ValueError for a file that is damaged or another one,
    OSError where there is none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            structure = (file.metadata() or {}).get(_STRUCTURE)
            if structure is None:
                raise ValueError(f"{path} holds tensors alone; expected a state written by multiref")
            # copies: kernels may sum otherwise what does not lie as torch lays it
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error

    def whole(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        (kind, inside), *_ = part.items()
        if kind == "tensor":
            return tensors[inside]
        if kind == "dict":
            return {whole(key): whole(item) for key, item in inside}
        return tuple(map(whole, inside)) if kind == "tuple" else list(map(whole, inside))

    return whole(json.loads(structure))
