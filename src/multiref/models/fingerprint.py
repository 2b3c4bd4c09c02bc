"""What a score depends on, as short digests: weights by content, configuration and tokenizer by meaning.

Weights: every tensor of every safetensors file is hashed whole (SHA-256 over its bytes, with name, dtype and shape), nothing is
sampled. The digest does not depend on how tensors are spread over files, on file names or on the folder. Within one process a
file's digests are kept under (path, size, modification time, inode), so that a model is read once; a file rewritten in place
with all four unchanged would not be noticed by the running process, and is by the next one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from multiref.errors import ModelError

# Keys of config.json on which no log-probability depends (the dtype is part of an identity on its own).
_NO_MATTER = {
    "_name_or_path", "architectures", "auto_mapping", "base_model_name_or_path", "dtype", "gradient_checkpointing",
    "id2label", "inference_mode", "label2id", "output_attentions", "output_hidden_states", "parent_library",
    "peft_version", "problem_type", "return_dict", "revision", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


def text_digest(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """Digest of a configuration without the keys that cannot move a score (paths, versions, output switches)."""
    kept = {key: value for key, value in config.items() if key not in _NO_MATTER}
    plain = lambda value: sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)  # noqa: E731
    return text_digest(json.dumps(kept, sort_keys=True, default=plain))


def file_weights_fingerprint(folder: str | Path, pattern: str = "*.safetensors") -> str:
    """Digest of all tensors in a folder's safetensors files. Errors: ModelError for none, or for a damaged one."""
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise ModelError(f"{folder} has no {pattern} file; expected safetensors weights (pickled weights are not read).")
    stats = [(file.resolve(), file.stat()) for file in files]
    return _combine(entry for file, stat in stats for entry in _file_digests(file, stat.st_size, stat.st_mtime_ns, stat.st_ino))


def model_weights_fingerprint(model: torch.nn.Module) -> str:
    """Digest of a model in memory, from its parameters and buffers as they are now; weights that are tied count once."""
    seen: set[tuple[int, tuple[int, ...], torch.dtype]] = set()
    entries = []
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            entries.append((name, text_digest(repr(tensor))))
            continue
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        raw = tensor.detach().cpu()
        raw = raw.int_repr() if raw.is_quantized else raw
        entries.append((name, f"{raw.dtype} {list(raw.shape)} {_bytes_digest(raw)}"))
    return _combine(entries)


def model_state_fingerprint(model: torch.nn.Module) -> str:
    """Digest of what a model in memory computes with beside its state dict: buffers that are not saved (rotary frequencies),
    and every plain value that a module holds: scaling factors, active, disabled and merged adapters, window sizes."""
    entries = []
    for name, module in model.named_modules():
        adapters = {key: getattr(module, key) for key in _ADAPTERS if hasattr(module, key)}
        held = {key: value for key, value in vars(module).items() if key not in _NO_STATE and "cache" not in key} | adapters
        plain = {key: value for key, value in held.items() if _is_plain(value)}
        entries.append((name, f"{type(module).__name__} {json.dumps(plain, sort_keys=True, default=sorted)}"))
        saved = set(module._buffers) - module._non_persistent_buffers_set
        unsaved = ((key, buffer) for key, buffer in module.named_buffers(recurse=False) if key not in saved)
        entries += [(f"{name}.{key}", _bytes_digest(buffer.detach().cpu())) for key, buffer in unsaved]
    return _combine(entries)


_ADAPTERS = ("_active_adapter", "_disable_adapters", "merged_adapters")  # peft's; the class may hold them
# What a module holds that moves no score: torch's own, paths, devices, whether it trains.
_NO_STATE = vars(torch.nn.Module()).keys() | {
    "gradient_checkpointing", "hf_device_map", "name_or_path", "warnings_issued", "_is_hf_initialized", "_auto_class",
    "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "is_parallelizable",
}  # fmt: skip


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _ids(tokenizer: Any, text: str, put: bool) -> list[int] | str:
    """Or why it has none: a vocabulary without an unknown token refuses what it does not have."""
    try:
        return list(map(int, tokenizer(text, add_special_tokens=put)["input_ids"]))
    except Exception as error:  # `tokenizers` has no kind of its own
        return str(error)


_PROBES = ("a", " a  b\n", "Hello, world! 1234567 é 中文 ½ don't", "<s>a</s> <|im_end|>\n[INST]")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of what turns text into ids: the tokenizer's own model, added and special tokens and their ids, switches that it
    keeps beside them, and the ids of fixed texts with and without what it puts around them; the chat template is apart."""
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    switches = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "split_special_tokens", "do_lower_case")
    kept = {name: str(getattr(tokenizer, name, None)) for name in switches}
    probes = (*_PROBES, "x".join(special.values()))
    does = [_ids(tokenizer, text, put) for text in probes for put in (False, True)]
    added = {str(index): str(token) for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)
        rules.pop("padding", None)
    else:  # a tokenizer in Python: its vocabulary and how it was made
        options = {name: str(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(("_file", "_path"))}
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "options": options}
    return text_digest(json.dumps([special, added, kept, does, rules], sort_keys=True))


def _combine(entries: Iterable[tuple[str, str]]) -> str:
    return text_digest("\n".join(f"{name} {digest}" for name, digest in sorted(entries)))


@cache
def _file_digests(path: Path, size: int, modified: int, inode: int) -> list[tuple[str, str]]:
    """(name, "dtype shape sha256") of each tensor in a safetensors file; read again where one of the four is another."""

    def digest(name: str) -> tuple[str, str]:
        part = file.get_slice(name)
        return name, f"{part.get_dtype()} {part.get_shape()} {_bytes_digest(file.get_tensor(name))}"

    try:
        with safe_open(path, "pt") as file, ThreadPoolExecutor() as pool:  # hashing lets other threads run
            return list(pool.map(digest, file.keys()))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no whole safetensors file ({error}); copy or download it again.") from None


def _bytes_digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
