"""Nested lists, dictionaries, numbers and tensors as one safetensors file: what an optimizer's state is, without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from multiref.errors import ArgumentError

__all__ = ["dump_plain", "read_plain"]

_STRUCTURE = "structure"


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
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
