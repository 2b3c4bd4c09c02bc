"""PEFT adapters: which base they name, their own tokenizer, and one put on a model whole."""

import copy
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from multiref._files import read_text
from multiref.errors import ModelError, MultirefWarning
from multiref.models.checkpoint import check_numbers, is_whole
from multiref.models.folders import check_files, file_shapes, first_three, local_folder, no_larger_than, read_object, reading
from multiref.models.forward import probed
from multiref.models.spec import ModelSpec

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "*.spm")


def on_base(spec: ModelSpec) -> ModelSpec:
    """The same with base and adapter apart: an adapter's folder given as the model names its base itself.

    A base that is an adapter itself stays one: `load` merges it into its own base.
    """
    if spec.adapter is not None:
        return spec
    folder = adapter_folder(spec.path, spec.revision)
    if folder is None:
        return spec
    config = read_adapter_config(folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"{spec.path} is an adapter that does not name its base model; give the base, and this folder as adapter."
        )
    _check_bases(folder)
    here = Path(spec.path).is_dir()
    adapter = spec.path if here else str(local_folder(spec.path, revision=spec.revision))
    revision = config.get("revision") or (spec.revision if here else None)
    return replace(spec, path=_found(str(base), folder), adapter=adapter, revision=revision)


def _check_bases(folder: Path) -> None:
    """ModelError where adapters name each other as their bases."""
    seen: list[Path] = []
    while (folder / _CONFIG).is_file():
        if folder.resolve() in seen:
            raise ModelError(f"{folder / _CONFIG}: the base that it names leads back to it; expected a model at the end.")
        seen.append(folder.resolve())
        if not (base := read_adapter_config(folder).get("base_model_name_or_path")):
            break
        folder = Path(_found(str(base), folder))


def adapter_folder(path: str, revision: str | None = None) -> Path | None:
    """The folder (of a hub id: its snapshot) if it is an adapter, else None."""
    folder = local_folder(path, revision=revision, weights=False)
    return folder if (folder / _CONFIG).is_file() else None


def read_adapter_config(folder: Path) -> dict[str, Any]:
    return read_object(folder / _CONFIG)


def check_base(path: str, adapter: str) -> None:
    """A warning where the adapter names another base than the one it is put on; ModelError where it was trained on another
    adapter, which that base lacks."""
    folder = adapter_folder(adapter)
    named = str(read_adapter_config(folder).get("base_model_name_or_path") or "") if folder else ""
    if folder and (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
        warnings.warn(
            f"{adapter} holds an adapter and a whole model besides. The adapter on its base ({path}) is taken; where the whole "
            f"model is meant, remove {_CONFIG}.",
            MultirefWarning,
            stacklevel=2,
        )
    under = folder / named if folder and named and (folder / named / _CONFIG).is_file() else Path(named)
    if (under / _CONFIG).is_file() and under.resolve() != Path(path).resolve():
        raise ModelError(
            f"The adapter {adapter} was trained on top of another one ({under}), which {path} lacks. Give its folder as the "
            "model: it loads its base and both."
        )
    if named and Path(named).name != Path(path).name and Path(named).resolve() != Path(path).resolve():
        warnings.warn(
            f"The adapter {adapter} was trained on {named}, and is put on {path}. Their weights fit; whether they are the same "
            "model is not known.",
            MultirefWarning,
            stacklevel=2,
        )


def put_adapter(model: Any, adapter: str, name: str = "default") -> Any:
    """The model with this PEFT adapter on it under this name, beside those that a `PeftModel` has already.

    Errors: ModelError where a weight of the file has no place or another shape, or the file lacks one; where one is NaN; where
        the adapter puts tokens of its own before the text (prompt tuning), since scores are of the text alone.
    """
    import peft

    folder = local_folder(adapter)
    config = _trusted_config(folder, adapter)
    begins = getattr(config, "init_lora_weights", None)
    refused = f"The adapter {adapter} cannot be put on this model."
    draws = isinstance(begins, str) and begins not in ("gaussian", "orthogonal")  # such as PiSSA: on another base
    twin: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):  # what PEFT draws is overwritten by the file
        bare = not isinstance(model, peft.PeftModel)
        if bare:
            _make_room(model, folder)
        with reading(adapter, says=refused), no_larger_than(check_files(folder), adapter):
            if bare and draws:
                other = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder))
                twin = {key: weight.detach() for key, weight in other.named_parameters() if ".base_layer." in key}
            if bare and hasattr(model, "hf_device_map"):  # with hooks, which it takes off and puts on again
                model = peft.PeftModel.from_pretrained(model, str(folder), adapter_name=name)
            elif bare:
                kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, peft.PeftModel)
                config.inference_mode = True
                model = kind(model, config, adapter_name=name)
            report = model.load_adapter(str(folder), adapter_name=name)
    held = dict(model.named_parameters(remove_duplicate=False))
    if drawn := [key for key, weight in twin.items() if not torch.allclose(weight, held[key], rtol=1e-2, atol=1e-4)]:
        raise ModelError(
            f"The adapter {adapter} was trained on a change of its base ({begins}) that is drawn at random, anew at each load, "
            f"and that its file does not hold: {first_three(drawn)}. Save it as a plain LoRA (PEFT's "
            "path_initial_model_for_weight_conversion), or merged into its base."
        )
    _check_fit(model, adapter, folder, name, report)
    check_numbers(load_file(folder / _WEIGHTS).items(), adapter)  # VB-LoRA makes infinities of its file's numbers
    return model


def refuse_virtual_tokens(policy: Any) -> None:
    """ModelError for a policy with an adapter that puts tokens of its own before the text."""
    config = getattr(policy, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        raise ModelError(
            f"The policy carries a {config.peft_type.value} adapter, which prepends virtual tokens; expected one that changes "
            "layers. Use LoRA."
        )


def _trusted_config(folder: Path, adapter: str) -> Any:
    """PEFT's configuration. ModelError where there is none, or the adapter is of a kind that is not put on models here; a
    warning for settings that this PEFT does not know."""
    import peft

    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise ModelError(
            f"The adapter {adapter} cannot be put on this model: expected a folder or hub id with {_CONFIG} and {_WEIGHTS} "
            "(pickled weights are not read)."
        )
    with reading(adapter, says=f"The adapter {adapter} cannot be put on this model."):
        config = peft.PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning:
        raise ModelError(
            f"The adapter {adapter} is {config.peft_type.value}, which puts tokens of its own before the text; expected one "
            "that changes weights, such as LoRA."
        )
    if others := getattr(config, "adapters", None):  # X-LoRA: no identity of this folder covers theirs
        raise ModelError(
            f"The adapter {adapter} mixes {len(others)} others that are elsewhere; expected one that holds its weights."
        )
    unknown = [key for key, value in read_adapter_config(folder).items() if value and not hasattr(config, key)]
    if unknown:  # PEFT says so too, in words that nobody reads
        warnings.warn(
            f"The adapter {adapter} has settings that this PEFT does not know ({first_three(unknown)}), and that it may "
            "have been trained with. Install a newer peft.",
            MultirefWarning,
            stacklevel=3,
        )
    if getattr(config, "target_parameters", None) and (config.auto_mapping or {}).get("unsloth_fixed"):
        warnings.warn(
            f"The adapter {adapter} changes experts and was trained by Unsloth, which until September 2026 kept their lora_B "
            "in another order than PEFT reads it: of such a file every expert gets parts of others. Ask for the version.",
            MultirefWarning,
            stacklevel=3,
        )
    return config


def _check_fit(model: Any, adapter: str, folder: Path, name: str, report: Any) -> None:
    """ModelError where, as PEFT reports it, a weight of the file has no place or the file lacks one; and where whole numbers of
    the file are weights, which PEFT would save as other than whole ones."""
    import peft

    whole = {key for key, (kind, *_) in file_shapes(folder).items() if key.startswith("base_model.") and is_whole(kind)}
    replaces = getattr(model.peft_config[name], "bias", "none") != "none"
    saved = peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False) if whole or replaces else {}
    if whole := {key for key in whole if key not in saved or saved[key].is_floating_point()}:  # others are places
        raise ModelError(
            f"The adapter {adapter} holds whole numbers as weights: {first_three(sorted(whole))}. Save it unquantised."
        )
    held = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(weight) for key, weight in held.items() if key not in set(report.missing_keys)}
    missing = [key for key in report.missing_keys if id(held.get(key)) not in filled]  # one may have several names
    lost = [key for key in report.unexpected_keys if not _is_repeated(folder, key)]
    if replaces:  # biases of the base, so PEFT misses none
        missing += [key for key in saved.keys() - file_shapes(folder).keys() if key.endswith(".bias")]
    if missing or lost:
        raise ModelError(
            f"The adapter {adapter} does not fit this model: {len(lost)} of its weights have no place and {len(missing)} that "
            f"it should have are missing: {first_three(sorted(lost) + sorted(missing))}. Give the base it was trained on, and "
            "an adapter saved without a wrapper's prefix."
        )
    said, moved = read_adapter_config(folder), set(getattr(model.peft_config[name], "target_parameters", None) or ())
    if moved - set(said.get("target_parameters") or ()) and (said.get("use_rslora") or said.get("alpha_pattern")):
        raise ModelError(
            f"The adapter {adapter} was trained on a model whose experts were layers of their own, as before transformers 5. "
            "PEFT would scale them otherwise than they were trained: of rsLoRA and alpha_pattern it keeps nothing there. Merge "
            "it into its base with the transformers that it was trained with, and give the merged model."
        )


def apart(model: Any, before: torch.Tensor) -> float:
    """How far a model's logits are from those that it had before it was merged; 0 where that is rounding."""
    gap, unit = float((probed(model).double() - before).abs().max()), torch.finfo(next(model.parameters()).dtype).eps
    return 0.0 if gap <= max(1e-3, 16 * unit * float(before.abs().max())) else gap


@torch.no_grad()
def merged(model: Any, path: str) -> Any:
    """The base with its adapter merged in. ModelError where that is not the same model: a change of one end of a base whose
    embeddings are tied reaches the other, and a bias may have no place."""
    before = probed(model)
    with reading(path, says=f"The adapter {path} cannot be merged into its base, as another one on top of it needs."):
        whole = model.merge_and_unload()
    if gap := apart(whole, before):
        raise ModelError(
            f"The adapter {path} merged into its base is another model (logits differ by {gap:.2g}), as where it changes one "
            "end of a model whose embeddings are tied. Train it further instead, or untie the base and save it."
        )
    return whole


def _is_repeated(folder: Path, key: str) -> bool:
    """Whether the file has this weight under its plain name too: so PEFT writes embeddings that were resized and are among
    `modules_to_save`."""
    plain = key.replace(".modules_to_save", "")
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        return plain != key and plain in file.keys() and torch.equal(file.get_tensor(key), file.get_tensor(plain))  # noqa: SIM118


def own_tokenizer(adapter: str) -> tuple[str | None, str | None]:
    """(folder of a tokenizer, chat template) that an adapter brings, as its author trained it; None where it has none."""
    folder = local_folder(adapter, weights=False)
    if any(file for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        return str(folder), None
    template, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template.is_file():
        return None, read_text(template, "a chat template", error=ModelError)
    if config.is_file():
        return None, read_object(config).get("chat_template")
    return None, None


def _found(base: str, folder: Path) -> str:
    """Where the base is that an adapter names: an absolute path, a folder as seen from here or from the adapter's folder or one
    above it, or a hub id.

    Errors: ModelError where it is nowhere, or two different folders have this name.
    """
    name = Path(base).expanduser()
    if name.is_absolute():
        if not name.is_dir():
            raise ModelError(
                f"The adapter {folder} names its base {base}, which is no folder. Give the base's path, and this as adapter."
            )
        return str(name)
    home = folder.resolve()
    near = next((str(above / name) for above in (home, *home.parents) if _is_model(above / name)), None)
    if _is_model(name):
        if near is not None and not os.path.samefile(name, near):
            raise ModelError(
                f"The adapter {folder} names its base {base!r}, and there are two: {name.resolve()} (from the working folder) "
                f"and {near} (from the adapter's). Give the base's path, and the adapter's folder as adapter."
            )
        return base
    if near is not None:
        return near
    try:
        if _is_model(local_folder(base, weights=False)):
            return base
        why = "no model"
    except ModelError as error:
        why = str(error)
    raise ModelError(
        f"The adapter {folder} names its base {base!r}, which is no folder from {Path.cwd()} nor from {home} or a folder "
        f"above it, and no hub id that can be had ({why}). Give the base's path, and this as adapter."
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / _CONFIG).is_file()


def _make_room(model: Any, folder: Path) -> None:
    """An adapter that was trained with tokens added has whole embeddings of that size: the base gets as many rows.

    Errors: ModelError where the file has the rows of one end only, and the other end is not tied to it.
    """
    shapes = file_shapes(folder)
    names = {id(module): name for name, module in model.named_modules()}
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    sizes = []
    for end in ends:
        own = [s[1] for key, s in shapes.items() if f".{names[id(end)]}." in key and key.endswith("weight") and len(s) == 3]
        sizes.append(max((rows for rows in own if rows > len(end.weight)), default=0))
    if not any(sizes):
        return
    if min(sizes) < max(sizes) and ends[0].weight is not ends[-1].weight:
        raise ModelError(
            f"The adapter {folder} adds tokens ({max(sizes)} instead of {len(ends[0].weight)}) and brings the rows of one end "
            "only: the other's would be random. Save it with save_embedding_layers=True."
        )
    model.resize_token_embeddings(max(sizes), mean_resizing=False)
