"""The adapter of a policy: a new one, one that is trained further, or a new one on top of another; and its folder, complete."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from multiref.errors import ModelError
from multiref.models import LanguageModel, ModelSpec
from multiref.models.adapters import merged, on_base, read_adapter_config
from multiref.models.folders import local_folder

MARK = "multiref_reward"  # in a reward model's config.json: how texts were encoded, so that they are encoded so again
FIRST = "first_adapter"  # in an adapter's folder: the one that was merged into its base
_CONFIG = "adapter_config.json"


def with_trained_adapter(
    loaded: LanguageModel, spec: ModelSpec, options: Mapping[str, Any] | None, with_lora: Callable[..., Any]
) -> Any:
    """What is trained of a model as it was loaded from `spec`: all of it, the adapter that it came with, or a new adapter.

    An adapter that it came with is trained whole, with its biases and `modules_to_save`: what is saved of it. A new one on top
    of it finds it merged into the base, and names it as its base (see `complete_folder`).

    Args:
        options: of the new adapter; None: no new one. with_lora: (model, options) → the model with it.

    Errors: ModelError for a quantised base that an adapter would be merged into.
    """
    model = loaded.model
    if not hasattr(model, "peft_config"):
        if options is not None:
            model = with_lora(model, options)
            model.active_peft_config.revision = spec.revision  # of the base, for whoever loads the adapter
        return model
    if options is None:
        _train_what_is_saved(model)
        trained = (weight for name, weight in model.named_parameters() if model.active_adapter in name.split("."))
        if not all(bool(weight.isfinite().all()) for weight in trained):
            raise ModelError(
                f"{spec.adapter or spec.path}: weights that would be trained are no numbers once loaded, as of a VB-LoRA of "
                "which only the largest were saved. Save it whole, or train a new adapter on it (lora)."
            )
        return model
    split = on_base(spec)
    if split.quantization is not None:
        raise ModelError(
            f"{split.adapter} is an adapter, and a new one is to be trained on top; merging it into a base in "
            f"{split.quantization} would round it away. Train it further (no `lora`), or load without quantization."
        )
    base = merged(model, str(split.adapter))
    base.name_or_path = _absolute(split.path)
    worn = with_lora(base, options)
    worn.active_peft_config.base_model_name_or_path = _absolute(str(split.adapter))
    return worn


def save_whole(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
    """Weights and tokenizer, as transformers and PEFT save them, in a folder that loads alone and from anywhere. An adapter of
    another name than PEFT's own "default" stands in it as that would."""
    model.save_pretrained(folder, **options)
    for inner in (folder / name for name in options.get("selected_adapters", ()) if (folder / name).is_dir()):
        for file in inner.iterdir():
            file.replace(folder / file.name)
        inner.rmdir()
    tokenizer.save_pretrained(folder)
    complete_folder(folder, model)


def complete_folder(folder: Path, model: Any, *, checkpoint: bool = False) -> None:
    """An adapter's folder as it was saved: its base becomes an absolute path (or stays a hub id); an adapter under it is copied
    into it, with the base that it was put on. Not into a checkpoint: transformers resumes from the folders that it finds in it.
    What a reward model's configuration says of its texts stands in a file of its own, for its base's does not say it.
    """
    if not (folder / _CONFIG).is_file():
        return
    if (said := getattr(model.config, MARK, None)) is not None:
        (folder / f"{MARK}.json").write_text(json.dumps(said, sort_keys=True), encoding="utf-8")
    named = str(_rewrite(folder).get("base_model_name_or_path") or "")
    if named == FIRST or not Path(named).is_dir():
        return
    if checkpoint or not (Path(named) / _CONFIG).is_file():
        _rewrite(folder, base_model_name_or_path=_absolute(named))
        return
    first, inner = local_folder(named), folder / FIRST
    inner.mkdir(exist_ok=True)
    for file in (_CONFIG, "adapter_model.safetensors"):
        shutil.copyfile(first / file, inner / file)
    _rewrite(inner, base_model_name_or_path=_absolute(str(model.get_base_model().name_or_path)))
    _rewrite(folder, base_model_name_or_path=FIRST)


def _train_what_is_saved(model: Any) -> None:
    """Gradients for the parameters that PEFT saves, and for no other."""
    import peft

    saved = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    places = {value.data_ptr() for value in saved.values()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.data_ptr() in places)


def _absolute(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def _rewrite(folder: Path, **changes: Any) -> dict[str, Any]:
    """PEFT holds sets, which it lists in another order in each process; one order makes one file of one run."""
    config = {**read_adapter_config(folder), **changes}
    texts = {key: value for key, value in config.items() if isinstance(value, list) and all(isinstance(v, str) for v in value)}
    lists = {key: sorted(value) for key, value in texts.items()}
    (folder / _CONFIG).write_text(json.dumps({**config, **lists}, indent=2, sort_keys=True), encoding="utf-8")
    return config
