"""A language model and its tokenizer from a folder or hub id, with an adapter or quantised if asked."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from multiref.errors import ArgumentError, ModelError
from multiref.models.spec import DTYPES, ModelSpec


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer, and the name under which it was asked for."""

    model: Any
    tokenizer: Any
    name: str


def best_device() -> torch.device:
    """CUDA if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def load(
    what: str | os.PathLike[str] | ModelSpec,
    *,
    device: str | torch.device | None = None,
) -> LanguageModel:
    """Loads a model for scoring, sampling or training.

    Args:
        what: a `ModelSpec`, or its path alone: a model folder, an adapter folder (its base is loaded too), or a hub id
            (downloaded as transformers does). A quantised base trains through an adapter.
        device: None takes `best_device()`; "auto" spreads the layers over all devices.

    Only safetensors are read, never pickle. Errors: ModelError saying what is missing; ArgumentError for an unknown option.
    """
    asked = ModelSpec.of(what)
    spec = on_base(asked)
    kind = as_dtype(spec.dtype or "float32")
    spread = device == "auto"
    place = torch.device(device) if device is not None and not spread else best_device()
    tokenizer = load_tokenizer(spec)
    quantized = _quantization_options(spec.quantization, place, kind)
    options = _source(spec) | {"dtype": kind, "use_safetensors": True, **quantized}
    if spec.attention is not None:
        options["attn_implementation"] = spec.attention
    if spread:
        options["device_map"] = "auto"
    model = _loaded(_classes(spec.path)[1], spec.path, **options)
    if spec.adapter is not None:
        model = put_adapter(model, spec.adapter)
    if "device_map" not in options:
        model = model.to(place)
    if spec.quantization == "int8" and place.type == "cpu":
        model = _dynamic_int8(model)
    if spec.quantization == "int4" and place.type == "cpu":
        _never_repacked(model)
    return LanguageModel(model.eval(), tokenizer, asked.path)


def as_dtype(dtype: str) -> torch.dtype:
    """ "float32" → torch.float32, and so on. Errors: ArgumentError for what is none of `DTYPES`."""
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    kind: torch.dtype = getattr(torch, dtype)
    return kind


def on_base(spec: ModelSpec) -> ModelSpec:
    """The same with base and adapter apart: an adapter's folder given as the model names its base itself."""
    file = Path(spec.path) / "adapter_config.json"
    if spec.adapter is not None or not file.is_file():
        return spec
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{spec.path} is an adapter that does not name its base model; give the base, and this folder as adapter."
        )
    return replace(spec, path=str(base), adapter=spec.path)


def local_folder(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """The folder itself, or the hub's snapshot of the safetensors, configuration and tokenizer on this machine."""
    if Path(path_or_id).is_dir():
        return Path(path_or_id)
    import huggingface_hub

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(str(path_or_id), revision=revision, allow_patterns=wanted))
    except Exception as error:  # offline, unknown, gated, …: the hub's own errors say which
        raise ModelError(_explain(str(path_or_id), error)) from error


def load_tokenizer(what: str | os.PathLike[str] | ModelSpec) -> Any:
    """The tokenizer alone."""
    import transformers

    spec = ModelSpec.of(what)
    return _loaded(transformers.AutoTokenizer, spec.path, **_source(spec))


def load_config(what: str | os.PathLike[str] | ModelSpec) -> Any:
    """The configuration alone."""
    spec = ModelSpec.of(what)
    return _loaded(_classes(spec.path)[0], spec.path, **_source(spec))


def _source(spec: ModelSpec) -> dict[str, Any]:
    return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}


def _classes(path: str) -> tuple[Any, Any]:
    """Which class reads the configuration, and which the model: transformers' automatic ones, or our own table or product of
    experts."""
    import transformers

    config = Path(path) / "config.json"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    if '"multiref_tabular"' in text:
        from multiref.models.tabular import Tabular, TabularConfig

        return TabularConfig, Tabular
    if '"multiref_product"' in text:
        from multiref.models.product import Product, ProductConfig

        return ProductConfig, Product
    return transformers.AutoConfig, transformers.AutoModelForCausalLM


def _loaded(kind: Any, path: str, **options: Any) -> Any:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # reading weights takes a moment; ours are the bars that count texts
    try:
        return kind.from_pretrained(path, **options)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, safetensors' own, …: all mean the same here
        raise ModelError(_explain(path, error)) from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _quantization_options(quantization: str | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    if quantization is None or (quantization == "int8" and device.type == "cpu"):
        return {}
    if device.type not in ("cuda", "cpu"):
        raise ModelError(f"quantization {quantization!r} needs a CUDA device or the CPU, found {device.type}; load without it.")
    import importlib.util

    import transformers

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {quantization!r} needs the package bitsandbytes; install it, or load without it.")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = transformers.BitsAndBytesConfig(**(four if quantization == "int4" else {"load_in_8bit": True}))
    return {"quantization_config": config, "device_map": {"": device}}


def _never_repacked(model: Any) -> None:
    """On some processors bitsandbytes repacks 4-bit layers in their first evaluation pass, and rounds their scales to bfloat16
    for good."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _dynamic_int8(model: Any) -> Any:
    """Linear layers but the head to int8, activations quantised as they come (so a score may depend on what is beside it)."""
    import warnings

    head = model.get_output_embeddings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear and module is not head}
        spec = dict.fromkeys(names, torch.ao.quantization.default_dynamic_qconfig)
        return torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8)


def put_adapter(model: Any, adapter: str, name: str = "default") -> Any:
    """The model with this PEFT adapter on it under this name, beside those that a `PeftModel` has already."""
    import peft

    try:
        if not isinstance(model, peft.PeftModel):
            return peft.PeftModel.from_pretrained(model, adapter, adapter_name=name)
        model.load_adapter(adapter, adapter_name=name)
        return model
    except Exception as error:  # peft passes on whatever the files provoke
        raise ModelError(f"The adapter {adapter} cannot be put on this model: {error}") from error


def _explain(path: str, error: Exception) -> str:
    folder = Path(path)
    if folder.is_dir():
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        if not list(folder.glob("*.safetensors")):
            missing.append("*.safetensors (pickled weights are not read)")
        lack = (
            f" Missing: {', '.join(missing)}."
            if missing
            else " Its files are all there, so one of them is damaged or unsuited."
        )
        return f"The model folder {path} cannot be loaded.{lack} ({type(error).__name__}: {error})"
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        return f"There is no model folder {path}; expected one, or a hub id such as owner/name."
    why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"No model folder {path}, and it could not be had from the hub either. ({why})"
