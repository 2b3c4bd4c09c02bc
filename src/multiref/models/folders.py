"""Where a model's files are: a folder on this machine, or a hub id's snapshot. Both pass one check before anything reads them,
and what other people's readers then throw becomes one error (`reading`)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from multiref.errors import ModelError, MultirefError
from multiref.models.folder_files import Contents, check_files

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


def contents(folder: Path) -> Contents:
    """What the check of the folder has found."""
    return check_files(folder)


@cache
def _snapshot(hub_id: str, revision: str | None, weights: bool, code: bool) -> str:
    """One request and no second try: where the hub does not answer, what its cache has is taken."""
    import huggingface_hub

    wanted = [*_TEXT, *(["*.safetensors"] if weights else []), *(["*.py"] if code else [])]
    return str(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=wanted))


def may_be_hub_id(path: str) -> bool:
    """Whether this can be a hub id, name or owner/name, rather than a path."""
    return not (Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1)


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
    if folder.is_dir() and isinstance(error, ImportError):
        return f"The model folder {path} needs a package that is not installed, or a device that is not here. ({_why(error)})"
    if folder.is_dir() and (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"):
        return f"The model folder {path} does not fit into memory. ({_why(error)})"
    if folder.is_dir():
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        if not list(folder.glob("*.safetensors")):
            missing.append("*.safetensors (pickled weights are not read)")
        lack = f"Missing: {', '.join(missing)}." if missing else "Its files are all there, so one is damaged or unsuited."
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
