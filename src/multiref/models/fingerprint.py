"""What a score depends on, as short digests: weights by content, configuration and tokenizer by meaning.

Weights: every tensor of every safetensors file is hashed whole (SHA-256 over its bytes, with name, dtype and shape), nothing is
sampled. The digest does not depend on how tensors are spread over files, on file names or on the folder. Within one process a
file's digests are kept under (path, size, modification time, inode), so that a model is read once; a file rewritten in place
with all four unchanged would not be noticed by the running process, and is by the next one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from multiref.errors import ModelError

__all__ = [
    "config_fingerprint",
    "file_weights_fingerprint",
    "model_weights_fingerprint",
    "text_digest",
    "tokenizer_fingerprint",
]

# Keys of config.json on which no log-probability depends (the dtype is part of an identity on its own).
_NO_MATTER = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures", "id2label", "label2id",
              "problem_type", "return_dict", "output_hidden_states", "output_attentions", "gradient_checkpointing", "base_model_name_or_path",
              "revision", "inference_mode", "auto_mapping", "parent_library", "peft_version"}  # fmt: skip
_FILES: dict[tuple[str, int, int, int], list[tuple[str, str]]] = {}


def text_digest(text: str) -> str:
    """SHA-256 of a text, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """Digest of a configuration without the keys that cannot move a score (paths, versions, output switches)."""
    kept = {key: value for key, value in config.items() if key not in _NO_MATTER}
    return text_digest(json.dumps(kept, sort_keys=True, default=sorted_or_str))


def sorted_or_str(value: Any) -> Any:
    """Sets have no order of their own."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)


def file_weights_fingerprint(folder: str | Path, pattern: str = "*.safetensors") -> str:
    """Digest of all tensors in a folder's safetensors files. Errors: ModelError for none, or for a damaged one."""
    files = sorted(Path(folder).glob(pattern))
    if not files:
        raise ModelError(f"{folder} has no {pattern} file; expected safetensors weights (pickled weights are not read).")
    return _combine(entry for file in files for entry in _file_digests(file))


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
        data = raw.contiguous().flatten().view(torch.uint8).numpy()
        entries.append((name, f"{raw.dtype} {list(raw.shape)} {hashlib.sha256(data.tobytes()).hexdigest()}"))
    return _combine(entries)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of what turns text into ids: the tokenizer's own model, special tokens and their ids; the chat template is apart."""
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)
        rules.pop("padding", None)
    else:  # a tokenizer in Python: its vocabulary and how it was made
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "options": str(tokenizer.init_kwargs)}
    return text_digest(json.dumps([special, rules], sort_keys=True))


def _combine(entries: Iterable[tuple[str, str]]) -> str:
    return text_digest("\n".join(f"{name} {digest}" for name, digest in sorted(entries)))


def _file_digests(path: Path) -> list[tuple[str, str]]:
    """(name, "dtype shape sha256") of each tensor in a safetensors file."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _FILES:
        try:
            _FILES[key] = _read_digests(path)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ModelError(f"{path} is no whole safetensors file ({error}); copy or download it again.") from None
    return _FILES[key]


def _read_digests(path: Path) -> list[tuple[str, str]]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header_size = int.from_bytes(data[:8], "little")
        if header_size > len(data) - 8:
            raise ValueError("its header is longer than the file")
        header = json.loads(data[8 : 8 + header_size])
        header.pop("__metadata__", None)
        view = memoryview(data)

        def digest(item: tuple[str, dict[str, Any]]) -> tuple[str, str]:
            name, entry = item
            start, stop = (8 + header_size + offset for offset in entry["data_offsets"])
            if stop > len(data):
                raise ValueError("it is shorter than its header says")
            with view[start:stop] as part:
                return name, f"{entry['dtype']} {entry['shape']} {hashlib.sha256(part).hexdigest()}"

        try:
            with ThreadPoolExecutor() as pool:  # hashing lets other threads run
                return list(pool.map(digest, header.items()))
        finally:
            view.release()
