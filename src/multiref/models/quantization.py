"""Weights in int8 or int4, by torch on the CPU or by bitsandbytes; a quantisation that changes nothing is refused."""

import warnings
from importlib.util import find_spec
from typing import Any

import torch

from multiref.errors import ModelError


def check_known(settings: Any, path: str) -> str:
    """The method of a `quantization_config`. ModelError for one that transformers does not know."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    fields = settings if isinstance(settings, dict) else settings.to_dict() if hasattr(settings, "to_dict") else {}
    bits = fields.get("load_in_8bit") or fields.get("load_in_4bit")
    method = fields.get("quant_method") or ("bitsandbytes" if bits else None)
    method = getattr(method, "value", method)
    if not isinstance(method, str) or (method != "bitsandbytes" and method not in KNOWN):
        raise ModelError(
            f"{path} says that the weights are quantised by {method!r:.80}, which this transformers does not read; expected "
            f"quant_method to be one of {', '.join(sorted(map(str, KNOWN)))}. Take the weights unquantised."
        )
    return method


def check_asked(config: Any, asked: str | None, path: str) -> None:
    """ModelError where a quantisation is asked for on top of the weights' own."""
    own = getattr(config, "quantization_config", None)
    if own is not None and asked is not None:
        raise ModelError(f"{path} is quantised already ({check_known(own, path)}); leave out quantization: {asked}.")


def quantization_options(quantization: str | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given. ModelError where the device or the package is not there."""
    if quantization is None or (quantization == "int8" and device.type == "cpu"):
        return {}
    if device.type not in ("cuda", "cpu"):
        raise ModelError(f"quantization {quantization!r} needs a CUDA device or the CPU, found {device.type}; load without it.")
    import transformers

    if find_spec("bitsandbytes") is None:
        raise ModelError(f"quantization {quantization!r} needs the package bitsandbytes; install it, or load without it.")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    config = transformers.BitsAndBytesConfig(**(four if quantization == "int4" else {"load_in_8bit": True}))
    return {"quantization_config": config, "device_map": {"": device}}


def quantize(model: Any, quantization: str, device: torch.device, path: str) -> Any:
    """The loaded model with what is left to do: int8 on a CPU is done here, int4 was done on the way. ModelError where no layer
    was quantised."""
    here = quantization == "int8" and device.type == "cpu"
    model = _dynamic_int8(model) if here else model
    made = "quantized.dynamic" if here else "bitsandbytes"
    if not any(made in type(module).__module__ for module in model.modules()):
        raise ModelError(
            f"{path}: {quantization} quantises linear layers, and this model has none but its head (as GPT-2, whose layers are "
            "of another kind): nothing would be quantised. Leave quantization out."
        )
    # on some processors bitsandbytes repacks 4-bit layers in their first evaluation pass, and rounds their scales to bfloat16
    for module in model.modules() if device.type == "cpu" else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _dynamic_int8(model: Any) -> Any:
    """Linear layers but the head to int8, activations quantised as they come (so a score may depend on what is beside it)."""
    head = model.get_output_embeddings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear and module is not head}
        spec = dict.fromkeys(names, torch.ao.quantization.default_dynamic_qconfig)
        return torch.ao.quantization.quantize_dynamic(model, spec, dtype=torch.qint8)
