"""Where a model's files are: a folder on this machine, or a hub id's snapshot; and what they are, before transformers reads
them: kinds and sizes, JSON, links between files, the headers of safetensors, and numbers that ask for a model far larger than
the weights that are there. What other people's readers then throw becomes one error (`reading`)."""

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from multiref._files import MIB, decode, open_file, unusable_name
from multiref._json import parse_json
from multiref.errors import ModelError, MultirefError
from multiref.models.quantization import check_known

Shape = tuple[Any, ...]  # dtype's name, then sizes

_OBJECTS = re.compile(
    r"((generation_|adapter_|tokenizer_|processor_|preprocessor_|quantize_)?config|tokenizer|special_tokens_map|added_tokens|vocab"
    r"|tekken|chat_template|.*\.index)\.json"
)
_OTHERS = re.compile(r".*\.(safetensors|jinja|txt|model|tiktoken|spm|bpe|codes|py)")
_LARGEST = {".safetensors": 2**63, ".jinja": MIB}  # else 512 MiB: a vocabulary of a million tokens has 50
_COUNTS = re.compile(r"(layers?|blocks?|experts?|depths?|num_labels)$")
_GROUP_AGAIN = re.compile(r"(?<!\\)\)[+*{]")  # (a+)+ takes for ever on what it does not match
_REPEATED = re.compile(r"[*+{]|(?<![(*+}])\?")
_FEW_REPEATED = 8
_PART = r"model-\d+-of-\d+\.safetensors"  # which transformers reads by an index; behind "shard-…-" without
_GROWTH = 1000
_FEW = 4096
_TEXT = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def local_folder(path_or_id: str | Path, *, revision: str | None = None, weights: bool = True, code: bool = False) -> Path:
    """The folder itself, or the hub's snapshot of the safetensors, configuration and tokenizer on this machine; checked.

    Args:
        weights, code: whether a snapshot needs the safetensors, and the program that comes with the model.

    Errors: ModelError for what is no folder and no hub id, cannot be had from the hub, or has a file that cannot be meant.
    """
    path = str(path_or_id)
    if not os.path.isdir(path):
        if os.path.lexists(path):
            raise ModelError(
                f"{path} is no folder (but a file, a pipe, or a link that leads nowhere); expected a model's folder."
            )
        if not may_be_hub_id(path):
            raise ModelError(f"There is no model folder {path}; expected one, or a hub id such as owner/name.")
        with reading(path):  # offline, unknown, gated, …: the hub's own errors say which
            path = _snapshot(path, revision, weights, code)
    check_files(Path(path))
    return Path(path)


@cache
def _snapshot(hub_id: str, revision: str | None, weights: bool, code: bool) -> str:
    """One request and no second try: where the hub does not answer, what its cache has is taken."""
    import huggingface_hub

    wanted = [*_TEXT, *(["*.safetensors"] if weights else []), *(["*.py"] if code else [])]
    return str(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=wanted))


def may_be_hub_id(path: str) -> bool:
    """Whether this can be a hub id, name or owner/name, rather than a path."""
    return not (Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1)


def first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


@contextmanager
def reading(path: str | os.PathLike[str], *, says: str = "") -> Iterator[None]:
    """What transformers, safetensors, tokenizers, PEFT or the hub throw inside is a ModelError that names the path, theirs
    chained. Only calls of theirs stand inside: a fault of ours keeps its traceback.

    Args:
        says: how the message begins; "": what `explain` finds.
    """
    try:
        yield
    except (MultirefError, Warning):
        raise
    except BaseException as error:  # a panic of the tokenizers, which are written in Rust, is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{says} ({_why(error)})" if says else explain(str(path), error)) from error


def explain(path: str, error: BaseException) -> str:
    """One line on why a model cannot be loaded: what the folder lacks, or what the reader of its files said."""
    folder = Path(path)
    if "trust_remote_code" in str(error):
        return f"{path} brings a program of its own, without which it cannot be read; it is not run without trust_remote_code."
    if folder.is_dir() and "tiktoken" in str(error) and list(folder.glob("*.model")) and find_spec("sentencepiece") is None:
        return f"The tokenizer of {path} is a SentencePiece model, for which the package sentencepiece is needed. Install it."
    if folder.is_dir() and isinstance(error, ImportError):
        return f"The model folder {path} needs a package that is not installed, or a device that is not here. ({_why(error)})"
    if folder.is_dir() and (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
        return f"The model folder {path} does not fit into memory. ({_why(error)})"
    if folder.is_dir():
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        held, index = {path.name for path in folder.glob("*.safetensors")}, folder / "model.safetensors.index.json"
        if not held:
            missing.append("*.safetensors (pickled weights are not read)")
        elif index.is_file():
            missing += sorted(set(read_object(index).get("weight_map", {}).values()) - held)
        elif "model.safetensors" not in held:
            missing.append("model.safetensors" + ".index.json" * any(name.startswith("model-") for name in held))
        fault = "its program may be for another transformers" if list(folder.glob("*.py")) else "one is damaged or unsuited"
        lack = f"Missing: {', '.join(missing)}." if missing else f"Its files are all there, so {fault}."
        return f"The model folder {path} cannot be loaded. {lack} ({_why(error)})"
    from huggingface_hub import constants

    asked = "not asked, for HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "asked"
    return (
        f"No model folder {path}, and it could not be had from the hub ({constants.ENDPOINT}, {asked}), nor is it in the cache "
        f"{constants.HF_HUB_CACHE}. Give a folder; or fill that cache where there is a network (`hf download {path}`), and set "
        f"HF_HUB_OFFLINE=1 here. ({_why(error)})"
    )


def _why(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:300]}"


# ---- what the files are ----


@dataclass(frozen=True)
class Contents:
    """config: of config.json, {} where there is none; shapes: of every tensor in the safetensors."""

    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]

    @property
    def elements(self) -> int:
        """Numbers that the files hold at most: a quantised one takes a bit or more."""
        size = (lambda shape: prod(shape[1:]) * 32) if self.config.get("quantization_config") else lambda shape: prod(shape[1:])
        return sum(map(size, self.shapes.values()))


def check_files(folder: Path) -> Contents:
    """What the folder holds. Looked at once in a process, and again where a file is another.

    Errors: ModelError that names the file: one that transformers would read and that is no regular file, is too large, is no
        JSON object of one reading or no whole safetensors; an index that leads out of the folder or to pickles; a quantisation
        that transformers does not know; more layers, experts, labels or ranks than the weights could be of.
    """
    names = [entry for part in (folder, folder / "additional_chat_templates") for entry in _entries(part)]
    return _check(folder, tuple(names))


def file_shapes(folder: Path) -> dict[str, Shape]:
    """Key → (dtype's name, *shape) as the files' headers say; empty for what is no folder."""
    return dict(check_files(folder).shapes) if folder.is_dir() else {}


def _entries(folder: Path) -> list[tuple[str, int, int, int]]:
    """(path, size, time, inode) of what has a name that is read."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(each for each in folder.iterdir() if _OBJECTS.fullmatch(each.name) or _OTHERS.fullmatch(each.name)):
        largest = 16 * MIB if path.name.endswith("config.json") else _LARGEST.get(path.suffix, 512 * MIB)
        with open_file(path, "a file of a model", largest=largest, error=ModelError) as file:
            known = os.fstat(file.fileno())
        found.append((str(path), known.st_size, known.st_mtime_ns, known.st_ino))
    return found


@lru_cache(maxsize=64)
def _check(folder: Path, entries: tuple[tuple[str, int, int, int], ...]) -> Contents:
    paths = [Path(path) for path, *_ in entries]
    objects = {path.name: read_object(path) for path in paths if _OBJECTS.fullmatch(path.name)}
    held = {path.name: _read_header(path) for path in paths if path.suffix == ".safetensors"}
    shapes = {key: shape for own in held.values() for key, shape in own.items()}
    for path in paths:
        if path.suffix == ".jinja":
            decode(_without_mark(path), str(path), first=True, error=ModelError)
        elif path.name.endswith(".index.json"):
            _check_index(objects[path.name], path)
    named = set(objects.get("model.safetensors.index.json", {}).get("weight_map", {}).values())
    parts, shards = ({name for name in held if re.fullmatch(kind + _PART, name)} for kind in ("", r"shard-\d+-"))
    sets = [sorted(each) for each in ({"model.safetensors"} & held.keys() - named, named or parts, shards) if each]
    if len(sets) > 1:
        raise ModelError(
            f"{folder} holds two sets of weights, with {sets[0][0]} and with {sets[1][0]}, as where a model was saved over "
            "another. Remove those that are not meant."
        )
    _check_once(folder, {name: own for name, own in held.items() if name in named})
    made = Contents(objects.get("config.json", {}), shapes)
    _check_config(made, folder / "config.json")
    _check_adapter(objects.get("adapter_config.json", {}), shapes, folder / "adapter_config.json")
    for part in ("normalizer", "decoder"):
        if (growth := _growth(objects.get("tokenizer.json", {}).get(part))) > _GROWTH:
            raise ModelError(
                f"{folder / 'tokenizer.json'}: the replacements of its {part} may make a text {growth:,.0f} times as long; "
                f"expected at most {_GROWTH:,} times. Take the file from where the model came from."
            )
    for key, value in objects.get("tokenizer_config.json", {}).items():
        if key.endswith("_file") and isinstance(value, str) and os.path.lexists(value) and not os.path.isfile(value):
            raise ModelError(f"{folder / 'tokenizer_config.json'}: {key} is {value!r}, which is no regular file.")
    return made


def _growth(rule: Any) -> float:
    """How many times as long the replacements of a normalizer or decoder, one after another, may make a text."""
    if not isinstance(rule, dict):
        return 1.0
    inner: list[Any] = next((rule[name] for name in ("normalizers", "decoders") if isinstance(rule.get(name), list)), [])
    content, pattern = rule.get("content"), rule.get("pattern")
    own = 1.0
    if rule.get("type") == "Replace" and isinstance(content, str):
        found = pattern.get("String") if isinstance(pattern, dict) else None
        own = len(content) / len(found) if isinstance(found, str) and found else len(content) + (found == "")
    return max(1.0, own) * prod(map(_growth, inner))


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Names of versions, NaN and Infinity are in files of transformers too."""
    expected = "Expected a JSON object; take the file from where the model came from."
    content = _without_mark(path)
    depth = 64 if len(content) < MIB else 10**9  # a large vocabulary: its parser ends where the stack does, without harm
    try:
        found = parse_json(content, str(path), error=ModelError, constants=True, depth=depth, expected=expected)
    except RecursionError as wrong:
        raise ModelError(f"{path}: lists and objects too deep. {expected}") from wrong
    if not isinstance(found, dict):
        raise ModelError(f"{path}: found a {type(found).__name__}. {expected}")
    return found


def _without_mark(path: Path) -> bytes:
    """The file's content. ModelError for a byte order mark: transformers reads no JSON behind one, and of a chat template it
    takes the mark as the first character of every conversation."""
    content = path.read_bytes()
    if content.startswith(b"\xef\xbb\xbf"):
        raise ModelError(f"{path} begins with a byte order mark, as Windows' editors write it; save it as UTF-8 without one.")
    return content


def _read_header(path: Path) -> dict[str, Shape]:
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (it is no mapping)
            return {key: (each.get_dtype(), *each.get_shape()) for key, each in slices.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{path} is no whole safetensors file ({error}); copy or download it again.") from error


def _check_index(index: Mapping[str, Any], path: Path) -> None:
    files = index.get("weight_map", {})
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{path}: weight_map is none; expected the file's name of each weight.")
    safe = path.name.endswith(".safetensors.index.json")  # no other one is read
    for name in sorted(set(files.values())) if safe else ():
        if not name.endswith(".safetensors") or Path(name).name != name:
            raise ModelError(
                f"{path}: weight_map names {name!r:.80}; expected a safetensors file beside it (pickles are not read)."
            )


def _check_once(folder: Path, held: Mapping[str, Mapping[str, Shape]]) -> None:
    """ModelError where two files of an index hold one weight, and not the same numbers: it is not said which is meant."""
    first: dict[str, str] = {}
    for key, name in ((key, name) for name, keys in held.items() for key in keys):
        if first.setdefault(key, name) == name:
            continue
        with safe_open(folder / first[key], framework="pt") as one, safe_open(folder / name, framework="pt") as other:
            same = held[first[key]][key] == held[name][key] and bool((one.get_tensor(key) == other.get_tensor(key)).all())
        if not same:
            raise ModelError(
                f"{folder} holds two different weights {key} (in {first[key]} and {name}), as where a model was saved over "
                "another. Remove the file that is not meant, or save the model again."
            )


def _check_config(made: Contents, path: Path) -> None:
    config = made.config
    named = config.get("architectures")
    if not (named is None or (isinstance(named, list) and all(isinstance(name, str) for name in named))):
        raise ModelError(f"{path}: architectures is {named!r:.80}; expected a list of names.")
    if not isinstance(config.get("model_type", ""), str):
        raise ModelError(f"{path}: model_type is {config['model_type']!r:.80}; expected a name.")
    if not str(elsewhere := config.get("transformers_weights") or ".safetensors").endswith((".safetensors", ".index.json")):
        raise ModelError(f"{path}: transformers_weights is {elsewhere!r:.80}; expected safetensors (pickles are not read).")
    if (files := config.get("configuration_files")) not in (None, [], [path.name]):
        raise ModelError(
            f"{path}: configuration_files is {files!r:.80}, of which transformers would read one in place of this file, by its "
            "own version. Write what is meant into this one, and remove the key."
        )
    if config.get("quantization_config") is not None:
        check_known(config["quantization_config"], str(path))
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        _check_rotary(part, path)
    most = max(_FEW, len(made.shapes), *(size for shape in made.shapes.values() for size in shape[1:]), 0)
    for key, value in figures(config):
        if _COUNTS.search(key) and abs(value) > most:
            raise ModelError(f"{path}: {key} is {value:.4g}; the weights of this folder are of {most:,} at most.")


def _check_rotary(config: Mapping[str, Any], path: Path) -> None:
    """ModelError where transformers 5 would pass over a part of what a configuration says of its rotary embeddings: beside
    `rope_parameters`, its own, it takes nothing of `rope_theta`, and beside `rope_scaling` nothing of `rope_parameters`."""
    own, scaling, theta = (config.get(f"rope_{name}") or {} for name in ("parameters", "scaling", "theta"))
    if not (isinstance(own, dict) and isinstance(scaling, dict)):
        return
    taken = scaling.get("rope_theta", theta) if scaling else own.get("rope_theta", theta)
    passed_over = scaling and any(isinstance(each, dict) for each in own.values())
    if passed_over or own.get("rope_theta", taken) != taken or theta not in ({}, taken):
        raise ModelError(
            f"{path}: rope_parameters {own}, as transformers 5 writes it, stands beside {scaling or f'rope_theta {theta}'}, as "
            "version 4 did, and only a part would be read. Write all of it into rope_parameters, and remove the others."
        )


def _check_adapter(config: Mapping[str, Any], shapes: Mapping[str, Shape], path: Path) -> None:
    base = config.get("base_model_name_or_path") or ""
    if problem := unusable_name(base) if isinstance(base, str) else f"is {base!r:.80}":
        raise ModelError(f"{path}: base_model_name_or_path {problem}; expected a folder or hub id.")
    most = max(64, *(size for shape in shapes.values() for size in shape[1:]), 0)
    ranks = ("r", "rank_pattern", "layer_replication") if shapes else ()
    for key, value in figures({name: config[name] for name in ranks if name in config}):
        if not 0 <= value <= most:
            raise ModelError(f"{path}: {key} is {value:.4g}; the weights of this adapter are of {most:,} at most.")
    for name in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern", "modules_to_save"):
        found = config.get(name) or ()
        patterns = found if isinstance(found, list | dict) else [found]
        for each in filter(lambda pattern: isinstance(pattern, str), patterns):
            if _GROUP_AGAIN.search(each) or len(_REPEATED.findall(each)) > _FEW_REPEATED:
                raise ModelError(
                    f"{path}: {name} repeats a group, or more than {_FEW_REPEATED} times something, and may take for ever to "
                    f"match: {each:.80}. List the modules' names instead."
                )


def figures(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(key, number) at every depth; a number in a list has the list's key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from figures(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from figures(inner, key)
    elif isinstance(value, int | float):
        yield key, value


@contextmanager
def no_larger_than(made: Contents, path: str) -> Iterator[None]:
    """Within it no model is built that is far larger than these weights: what would be random would take the memory first.

    ModelError once this thread has put more parameters into modules than four times the tensors of the files, or more numbers
    than four times theirs, and some.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook as register

    here, count, numbers = threading.get_ident(), 0, 0

    def look(module: Any, name: str, parameter: Any) -> None:
        """Called for every parameter that a module registers."""
        nonlocal count, numbers
        if parameter is None or threading.get_ident() != here:
            return
        count, numbers = count + 1, numbers + (parameter.numel() if parameter.device.type == "meta" else 0)
        if count > 8 * len(made.shapes) + _FEW or numbers > 4 * made.elements + 2**26:
            raise ModelError(
                f"{path} describes a model that is far larger than its weights ({len(made.shapes):,} tensors): at {name} of a "
                f"{type(module).__name__} there are {count:,} of {numbers:,} numbers. Mend config.json, or save it whole."
            )

    hook = register(look)
    try:
        yield
    finally:
        hook.remove()
