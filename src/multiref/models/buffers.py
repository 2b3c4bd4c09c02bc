"""What a model computes from its configuration and does not save (rotary tables, masks): as its class computes it, not as
loading leaves it.

transformers 5 builds a model without memory, then gives such buffers memory that nobody has written to. Only classes that know
of it fill them again. Code that comes with a model's folder usually does not, and would score with what was in that memory.
"""

import warnings
from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import PreTrainedModel

from multiref.errors import ModelError, MultirefWarning
from multiref.models.folders import first_three

_CLOSE: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-8, "equal_nan": True}  # the same table, computed in another dtype


def fill_buffers(model: Any, path: str) -> None:
    """Tensors that no file holds get the numbers that the class computes for the model's configuration, where they have others;
    one warning says which.

    Errors: ModelError where they are random numbers.
    """
    made = _others(model, path)
    again = _built(model, path) if made else {}
    if drawn := [name for name in made if not _same(again[name], made[name])]:
        raise ModelError(
            f"{path}: {first_three(drawn)} of {type(model).__name__} are random numbers, drawn anew at each load, and in no "
            "file. Make them persistent buffers in the model's code, and save it again."
        )
    for name, value in made.items():
        owner, _, own = name.rpartition(".")
        before = getattr(model.get_submodule(owner), own)
        setattr(model.get_submodule(owner), own, value.to(model.device if before.is_meta else before.device))
    if made:
        _warn(f"{_said(model, path, made)} They now hold what it computes.")


def check_buffers(model: nn.Module) -> None:
    """One warning where a model in memory holds others. transformers' own classes are taken to fill theirs."""
    inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if inner is None or type(inner).__module__.startswith(("transformers.", "multiref.")):
        return
    if made := _others(inner, "the model in memory"):
        remedy = "Load it by multiref.models.load, or pass its path, unless you changed them on purpose."
        _warn(f"{_said(inner, 'The model in memory', made)} {remedy}")


def _others(model: Any, path: str) -> dict[str, torch.Tensor]:
    """Of the tensors that no file holds those that the model's class computes otherwise, as it does."""
    held = _computed(model)
    made = _built(model, path) if held else {}
    return {name: made[name] for name in sorted(held.keys() & made.keys()) if not _same(held[name], made[name])}


def _said(model: Any, path: str, others: dict[str, torch.Tensor]) -> str:
    return (
        f"{path}: {first_three(list(others))} of {type(model).__name__} did not hold their numbers, which are in no file and "
        "which the model's code computes only when it is built; transformers 5 loads without that."
    )


def _warn(text: str) -> None:
    warnings.warn(text, MultirefWarning, stacklevel=5)


def _computed(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that are in no file, by name: buffers of that kind, and what is no buffer and has no memory."""
    return {
        f"{name}.{own}" if name else own: value
        for name, module in model.named_modules()
        for own, value in (module._buffers | vars(module)).items()
        if isinstance(value, torch.Tensor) and (own in module._non_persistent_buffers_set or own in vars(module))
    }


def _built(model: Any, path: str) -> dict[str, torch.Tensor]:
    """The same of a second model of its class and configuration, which holds no parameters; nothing where there can be none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(model.dtype)
    try:
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            torch.seed()
            return {name: value for name, value in _computed(type(model)(deepcopy(model.config))).items() if not value.is_meta}
    except Exception as error:  # whatever the model's code raises
        _warn(f"{path}: a second {type(model).__name__} cannot be built ({error}), so what its files do not hold is unchecked.")
        return {}
    finally:
        torch.set_default_dtype(before)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """In one dtype, the same numbers up to how they were rounded. What has no memory is never the same."""
    if one.is_meta or one.shape != other.shape:
        return False
    one, rounded = one.to(other.device, other.dtype), other.is_floating_point() or other.is_complex()
    return torch.equal(one, other) or (rounded and torch.allclose(one, other, **_CLOSE))
