"""How many parameters a model has, before it is loaded."""

import os
from typing import Any

import torch

from multiref.models.adapters import on_base
from multiref.models.loading import load_config
from multiref.models.spec import ModelSpec


def count_parameters(what: str | os.PathLike[str] | ModelSpec) -> int | None:
    """Of a model folder or hub id, from its configuration alone; None where that does not say."""
    import transformers

    spec = on_base(ModelSpec.of(what))
    try:
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(load_config(spec))
        return int(sum(parameter.numel() for parameter in model.parameters()))
    except Exception:  # what cannot be built like this says so when it is loaded, or is of our own kinds
        return None
