"""Where a model's files are: a folder on this machine, or a hub id's snapshot; and what a folder lacks."""

from pathlib import Path

from multiref.errors import ModelError


def local_folder(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """The folder itself, or the hub's snapshot of the safetensors, configuration and tokenizer on this machine."""
    if Path(path_or_id).is_dir():
        return Path(path_or_id)
    import huggingface_hub

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(str(path_or_id), revision=revision, allow_patterns=wanted))
    except Exception as error:  # offline, unknown, gated, …: the hub's own errors say which
        raise ModelError(explain(str(path_or_id), error)) from error


def may_be_hub_id(path: str) -> bool:
    """Whether this can be a hub id, name or owner/name, rather than a path."""
    return not (Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1)


def explain(path: str, error: Exception) -> str:
    """One line on why a model cannot be loaded: what the folder lacks, or what the reader of its files said."""
    why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    folder = Path(path)
    if folder.is_dir() and isinstance(error, ImportError):
        return f"The model folder {path} needs a package that is not installed, or a device that is not here. ({why})"
    if folder.is_dir():
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        if not list(folder.glob("*.safetensors")):
            missing.append("*.safetensors (pickled weights are not read)")
        lack = f"Missing: {', '.join(missing)}." if missing else "Its files are all there, so one is damaged or unsuited."
        return f"The model folder {path} cannot be loaded. {lack} ({why})"
    if not may_be_hub_id(path):
        return f"There is no model folder {path}; expected one, or a hub id such as owner/name."
    return f"No model folder {path}, and it could not be had from the hub either. ({why})"
