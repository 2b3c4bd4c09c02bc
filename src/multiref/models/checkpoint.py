"""A checkpoint is loaded whole or not at all: its keys against what the model has."""

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig

from multiref._progress import doing
from multiref.errors import ModelError, MultirefWarning
from multiref.models.buffers import fill_buffers
from multiref.models.folders import Shape, check_files, figures, file_shapes, first_three, local_folder, no_larger_than, reading
from multiref.models.forward import probed
from multiref.models.spec import ModelSpec

# what wrappers of a training loop put into keys; weights under such a name are weights of this model that would be lost
_WRAPPERS = {"_orig_mod", "module", "base_model", "_fsdp_wrapped_module", "_forward_module", "_checkpoint_wrapped_module"}
# tables that are computed, and were saved by older versions
_BUFFERS = re.compile(
    r"(^|\.)(\w*inv_freq|freqs(_cis)?|\w*(cos|sin)_cached|masked_bias|causal_mask|position_ids|alibi(_slopes)?)$"
)
# modules beside the one that scores, by the names that they have everywhere: heads of other tasks, other senses, prediction
# further ahead
_BESIDE = r"vision|visual|image|video|audio|speech|modal|projector|merger|connector|resampler|perceiver|mtp|nextn"
_ELSEWHERE = re.compile(rf"(heads?(\.|$)|score|classif|cls|qa_outputs|pool|value|reward|{_BESIDE})", re.I)
_EIGHT_BITS = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}  # what the formats hold at most
_AHEAD = re.compile(r"(^|\.)(eh_proj|e_?norm|h_?norm|shared_head|mtp\w*|nextn\w*)(\.|$)")  # a layer that predicts further ahead


def load_whole(kind: Any, what: str | ModelSpec, *, creates: Sequence[str] = (), **options: Any) -> tuple[Any, list[str]]:
    """The one door to weights: the model that `kind.from_pretrained` gives, and which of its weights the task creates.

    Args:
        what: the model; keys that its `allow_keys` match may be missing, misshapen or without a place.
        creates: patterns (`fnmatch`) of weights that are new where the checkpoint lacks them: a head that is to be trained.

    Errors: ModelError for a folder that cannot be read, describes a model far larger than its weights, or one that cannot
        compute; where a weight is missing, NaN or has another shape; where the checkpoint holds weights of this model for which
        its configuration has no place. What else it holds (vision towers, heads of other tasks) is one warning.
    """
    spec = ModelSpec.of(what)
    path, state = spec.path, torch.get_rng_state()
    folder = local_folder(path, revision=spec.revision, code=spec.trust_remote_code)
    options |= {"trust_remote_code": spec.trust_remote_code, "use_safetensors": True}
    _forget_programs(kind)
    if spec.trust_remote_code and (said := check_files(folder).config).get("auto_map"):
        with reading(path):
            options["config"] = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        # transformers 5 moves some of it (`rope_theta`), and a program for version 4 would take a default of its own
        for name in [each for each in said if not hasattr(options["config"], each)]:
            setattr(options["config"], name, said[name])
    model, report = _read(kind, folder, path, options)
    check_program(check_files(folder).config.get("auto_map"), kind.__name__, model, spec)
    model.name_or_path = model.config._name_or_path = path
    fill_buffers(model, path)
    if options.get("dtype") == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # transformers' grouped product of experts knows no float64
    missing = sorted(key for key in report["missing_keys"] if not _meant(key, spec.allow_keys))
    created = [key for key in missing if _meant(key, creates)]
    _check_there(model, [key for key in missing if key not in created], report, spec)
    _check_strays(model, [key for key in report["unexpected_keys"] if not _meant(key, spec.allow_keys)], folder, path, creates)
    if not (created or spec.allow_keys) and not torch.equal(state, torch.get_rng_state()):
        _same_again(model, kind, folder, options)
    if check_files(folder).config.get("quantization_config") is None:
        _check_kinds(model, file_shapes(folder), report["unexpected_keys"], path)
        _check_taken(model, folder, path)
    else:
        _check_scales(file_shapes(folder), path)
    for said_otherwise in _said_otherwise(model, folder):
        warnings.warn(f"{path}: {said_otherwise}", MultirefWarning, stacklevel=3)
    check_numbers(model.named_parameters(), path)
    _try_a_pass(model, path)
    return model, created


def _forget_programs(kind: Any) -> None:
    """transformers keeps the program that it first met for a class of configuration, and runs it for every later folder with
    that class, though the folder's own may be another."""
    known = getattr(getattr(kind, "_model_mapping", None), "_extra_content", {})
    for config in [each for each in known if each.__module__.startswith("transformers_modules.")]:
        del known[config]


def check_program(auto_map: Any, kind: str, made: Any, spec: ModelSpec) -> None:
    """Where the folder brings a program that was not run, since transformers has a class for this type: ModelError for a model
    whose class has another name, else a warning."""
    found = auto_map.get(kind) if isinstance(auto_map, dict) else auto_map
    named = [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, str)]
    if spec.trust_remote_code or not named:
        return
    said = (
        f"{spec.path} brings a program of its own ({', '.join(named)}), which is not run without trust_remote_code; "
        f"transformers takes its {type(made).__name__} instead."
    )
    if isinstance(made, nn.Module) and _letters(type(made).__name__) not in map(_letters, named):
        raise ModelError(f"{said} Set trust_remote_code; or remove auto_map from config.json, if they are the same model.")
    warnings.warn(f"{said} Set it, if they are not the same.", MultirefWarning, stacklevel=4)


def _letters(name: str) -> str:
    """Of a class, without its module: MPTForCausalLM and MptForCausalLM are one."""
    return "".join(filter(str.isalnum, name.rpartition(".")[2].lower()))


def _meant(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)


def _read(kind: Any, folder: Path, path: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers reports of its keys."""
    try:
        with doing(f"loading {path}"), reading(path), no_larger_than(check_files(folder), path), _without_report() as tables:
            made: tuple[Any, dict[str, Any]] = kind.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
            for pair in re.findall(r"to tie (\S+) to (\S+), but both", "\n".join(tables)):
                warnings.warn(
                    f"{path}: its config.json ties {' to '.join(pair)}, and the file has other numbers for each, which are "
                    "taken. Programs that go by config.json take one for both: set tie_word_embeddings to what was meant.",
                    MultirefWarning,
                    stacklevel=5,
                )
            return made
    except ModelError as error:
        torn = re.findall(r"^(\w\S+).*CONVERSION", "\n".join(tables), re.M)  # such as experts, of which one is not there
        if torn:
            raise ModelError(
                f"{path} does not hold a whole model: {first_three(torn)} cannot be put together from the weights of the file. "
                "Save the model whole, or mend config.json where it describes another model."
            ) from error
        raise


def _check_there(model: Any, lacking: list[str], report: Mapping[str, Any], spec: ModelSpec) -> None:
    """ModelError where weights are missing, or have another shape."""
    shapes = sorted((key, list(file), list(own)) for key, file, own in report["mismatched_keys"])
    misshapen = [f"{key} (file {file}, model {own})" for key, file, own in shapes if not _meant(key, spec.allow_keys)]
    if lacking or misshapen:
        instead = sorted(report["unexpected_keys"])
        raise ModelError(
            f"{spec.path} does not hold a whole {type(model).__name__}: {len(lacking)} weights are missing and "
            f"{len(misshapen)} have another shape: {first_three(misshapen + lacking)}. They would be random. "
            f"{f'The file has {instead[0]} and other keys instead. ' if instead else ''}Save the model whole, mend config.json "
            "where it describes another model than the weights, or name these keys in allow_keys."
        )


def _check_strays(model: Any, strays: Sequence[str], folder: Path, path: str, creates: Sequence[str]) -> None:
    """ModelError for weights that would be parameters of the modules that score; others are listed."""
    body = f"{getattr(model, 'base_model_prefix', '')}."
    own, shapes = model.state_dict().keys(), file_shapes(folder)
    others = sorted(shapes.keys() - own - set(strays))
    if twice := [key for key in others if {f"{body}{key}", key.removeprefix(body)} & own & shapes.keys()]:
        raise ModelError(
            f"{path} holds {len(twice)} weights twice, with {body!r} before their names and without: {first_three(twice)}. "
            "Which of the two is meant is not said. Save the model again, or remove those."
        )
    refused, listed = _sort(model, strays, folder)
    if refused:
        raise ModelError(
            f"{path} holds {len(refused)} weights for which its config.json leaves this {type(model).__name__} no place: "
            f"{first_three(sorted(refused))}. The model would score without them. Mend config.json (layers, biases, norms), "
            "save the weights without a wrapper's prefix, or name these keys in allow_keys."
        )
    listed += _passed_over(model, folder)
    if listed and not creates:
        groups = Counter(re.split(r"\.\d+(?:\.|$)", key)[0] for key in listed)
        named = [f"{name} ({count})" for name, count in sorted(groups.items())]
        warnings.warn(
            f"{path} holds {len(listed)} weights that a {type(model).__name__} does not use: {first_three(named)}.",
            MultirefWarning,
            stacklevel=4,
        )


def check_numbers(weights: Iterable[tuple[str, torch.Tensor]], path: str) -> None:
    """ModelError where a weight is NaN or infinite."""
    for name, weight in weights:
        if weight.is_floating_point() and weight.device.type != "meta" and not bool(torch.isfinite(weight).all()):
            raise ModelError(
                f"{path}: the weight {name} holds NaN or infinity; every score would be NaN. Take another checkpoint, or a "
                "dtype that holds its numbers (float16 ends at 65,504)."
            )


def is_whole(kind: str) -> bool:
    """Whether numbers of this kind (as safetensors call it) are whole: I8, U8, BOOL, …"""
    return kind.startswith(("I", "U", "BOOL"))


def _check_kinds(model: nn.Module, shapes: Mapping[str, Shape], unused: Iterable[str], path: str) -> None:
    """ModelError where quantised numbers of the file went into a weight without what scales them: whole ones; and those of
    eight bits that reach half of what their format holds, to which only a scale stretches a weight."""
    own, buffers, body = dict(model.named_parameters()), dict(model.named_buffers()), getattr(model, "base_model_prefix", "")
    for key in sorted(shapes.keys() - set(unused)):
        kind, *size = shapes[key]
        names = (key, f"{body}.{key}")
        weight = next((own[name] for name in names if name in own), None)
        lost = False
        if is_whole(kind) and not _is_mask(kind, *size):
            wanted = weight.is_floating_point() if weight is not None else key.endswith("weight")
            lost = wanted and not any(name in buffers for name in names)
        elif kind in _EIGHT_BITS:
            most = 0.0 if weight is None or weight.device.type == "meta" else float(weight.detach().abs().max())
            lost = most >= _EIGHT_BITS[kind] / 2
        if lost:
            raise ModelError(
                f"{path}: {key} holds {'whole' if is_whole(kind) else 'scaled'} numbers ({kind}), and config.json names no "
                "quantisation that says what they stand for: they would be taken as weights. Take the quantised model's own "
                "config.json, or save its weights as floating-point numbers."
            )


def _check_taken(model: nn.Module, folder: Path, path: str) -> None:
    """ModelError where a weight of a model whose code is none of transformers' is not as the file has it: transformers 5 lets
    such code begin anew with what it has just loaded (`_init_weights` of a module that has a buffer in no file). Of each weight
    64 rows are compared."""
    if type(model).__module__.startswith(("transformers.", "multiref.")):
        return
    own = {key: weight for key, weight in model.state_dict().items() if isinstance(weight, torch.Tensor) and weight.ndim}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for key in sorted(own.keys() & set(opened.keys())):
                part = opened.get_slice(key)
                alike = tuple(part.get_shape()) == own[key].shape and not own[key].is_meta
                if alike and not torch.equal(part[:64].to(own[key]), own[key][:64]):
                    raise ModelError(
                        f"{path}: {key} of this {type(model).__name__} is not what {file.name} holds: the model's code sets it "
                        "once more behind loading. Let its _init_weights leave alone what is loaded (torch.nn.init does)."
                    )


def _check_scales(shapes: Mapping[str, Shape], path: str) -> None:
    """ModelError for a weight that the file of a quantised model holds in eight bits, without a scale among its module's."""
    scaled = {key.rpartition(".")[0] for key in shapes if "scale" in key}
    for key, (kind, *_) in shapes.items():
        if kind.startswith("F8_") and "scale" not in key and key.rpartition(".")[0] not in scaled:
            raise ModelError(
                f"{path}: {key} holds numbers of eight bits, and their scale is missing. Save the quantised model "
                "whole, or its weights as floating-point numbers."
            )


def _said_otherwise(model: Any, folder: Path) -> Iterator[str]:
    """Where rotary frequencies have a base that config.json does not state (transformers gives sliding layers of Olmo 3 its
    own), or those of an old file, which are not read any more, have another one; and where config.json has a sliding window of
    Qwen's kind and does not say which layers it is of: versions of transformers have read that in three ways."""
    config, said, name = model.config.get_text_config(), check_files(folder).config, type(model).__name__
    bases = {number for key, number in figures(getattr(config, "rope_parameters", None)) if key == "rope_theta"}
    stated = {number for key, number in figures(said) if re.search("theta|emb_base|base_freq", key)}
    others = [f"config.json states {sorted(stated)}"] if stated and bases - stated else []
    unread = {key for key in file_shapes(folder).keys() - model.state_dict().keys() if key.endswith(".inv_freq")}
    tables = []
    for file in sorted(folder.glob("*.safetensors")) if bases and unread else ():
        with safe_open(file, framework="pt") as opened:
            tables += [opened.get_tensor(key).double() for key in sorted(unread.intersection(opened.keys()))]
    for table in [each for each in tables if each.numel() > 1][:1]:  # of one layer
        half = len(table) // 2  # the last ones are too small for float16
        base = float(table[0] / table[half]) ** (len(table) / half)
        if not any(abs(base - each) <= 0.1 * each for each in bases):
            others.append(f"the file holds a table of base {base:,.0f}, which is not read")
    for each in others:
        yield (
            f"rotary frequencies of this {name} get the bases {sorted(bases)}, and {each}. Write those that the model was "
            "trained with into rope_parameters of config.json."
        )
    said, kinds = said.get("text_config") or said, getattr(config, "layer_types", None)
    size, unsaid = said.get("sliding_window"), not said.get("layer_types") and said.get("use_sliding_window") is not False
    if size and unsaid and kinds and hasattr(config, "max_window_layers") and size < config.max_position_embeddings:
        slide = [place for place, kind in enumerate(kinds) if kind == "sliding_attention"]
        yield (
            f"config.json has sliding_window: {size}, and not for which layers. In this {name} it is for the layers {slide} of "
            f"{len(kinds)}. Write layer_types and use_sliding_window as it was trained."
        )


def _try_a_pass(model: Any, path: str) -> None:
    """A configuration may describe a model that can be built and cannot compute. ModelError where two tokens end in one's own
    words."""
    if any(weight.device.type == "meta" for weight in model.parameters()):
        return
    with reading(path):
        probed(model, 2)


def _same_again(model: nn.Module, kind: Any, path: Path, options: dict[str, Any]) -> None:
    """Loading drew random numbers, though every key was there: ModelError if a second load gives other weights."""
    with torch.random.fork_rng(devices=[]), _without_report():
        torch.manual_seed(1 + torch.initial_seed() % 2**31)
        again = kind.from_pretrained(path, **options).state_dict()
    held = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    differ = [key for key, value in held.items() if not torch.equal(value, again[key])]
    if differ:
        raise ModelError(
            f"{path}: {len(differ)} weights of {type(model).__name__} are random numbers, drawn anew at each load: "
            f"{first_three(differ)}. Save the model whole, or name these keys in allow_keys."
        )


def _sort(model: Any, keys: Iterable[str], folder: Path) -> tuple[list[str], list[str]]:
    """Which keys would be parameters of the modules that score, and which belong to something else.

    A key hangs on the deepest module of the model that its name leads to. Below the model's body it is a weight that the
    configuration left out; so is a layer beyond the last. On the model or its body it belongs to something else if that has
    layers of its own or a name that says so.
    """
    keys = sorted(keys)
    if not keys:
        return [], []
    modules = dict(model.named_modules())
    buffers = {name for name, _ in model.named_buffers()}
    body = getattr(model, "base_model_prefix", "")
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    shapes = file_shapes(folder)
    doubled = _doubled(keys, expected, shapes)

    def depth(place: tuple[str, str]) -> int:
        """A checkpoint of the body alone names its weights without the body: such a reading counts where it leads further."""
        return 0 if place[0] in ("", body) else 1 + place[0].count(".")

    places = {key: max((_place(name, modules) for name in (key, f"{body}.{key}")), key=depth) for key in keys}
    ahead = {_layer(*places[key]) for key in keys if _AHEAD.search(places[key][1])}
    refused: list[str] = []
    listed: list[str] = []
    for key, (owner, rest) in places.items():
        module, parts = modules[owner], rest.split(".")
        if {key, f"{owner}.{rest}"} & buffers or _BUFFERS.search(key) or _is_mask(*shapes.get(key, ("",))):
            continue
        if doubled or _WRAPPERS & set(key.split(".")):
            counts = True
        elif isinstance(module, nn.ModuleList) and parts[0].isdigit():
            counts = _layer(owner, rest) not in ahead
        elif owner not in ("", body):
            counts = re.search(_BESIDE, owner) is None
        else:
            counts = not (any(part.isdigit() for part in parts) or _ELSEWHERE.search(rest))
        (refused if counts else listed).append(key)
    return refused, listed


def _passed_over(model: Any, folder: Path) -> list[str]:
    """Layers behind the last that transformers leaves out in silence, by their number: in the model for which its list was made
    they predict further ahead. Those whose names say so are fine."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    modules = dict(model.named_modules())
    keys = [key for key in file_shapes(folder) if any(re.search(pattern, key) for pattern in patterns)]
    places = {key: _place(key, modules) for key in keys}
    ahead = {_layer(*place) for place in places.values() if _AHEAD.search(place[1])}
    layers = {key for key, (owner, rest) in places.items() if isinstance(modules[owner], nn.ModuleList) and rest[0].isdigit()}
    return sorted(key for key in layers if _layer(*places[key]) not in ahead)


def _is_mask(dtype: str, *shape: int) -> bool:
    """A table of who sees whom, as attention once saved it."""
    return dtype == "BOOL" or (shape[:2] == (1, 1) and len(shape) == 4 and shape[2] == shape[3])


def _place(key: str, modules: dict[str, nn.Module]) -> tuple[str, str]:
    """The deepest module to which this name leads, and the rest of the name."""
    parts = key.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        if ".".join(parts[:cut]) in modules:
            return ".".join(parts[:cut]), ".".join(parts[cut:])
    return "", key


def _layer(owner: str, rest: str) -> str:
    return f"{owner}.{rest.split('.')[0]}"


def _doubled(keys: Sequence[str], expected: dict[str, tuple[int, ...]], shapes: dict[str, tuple[Any, ...]]) -> bool:
    """Whether a prefix before the model's own names makes half of the model or more: a second set of its weights."""
    found: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        for cut in range(1, len(parts)):
            own = expected.get(".".join(parts[cut:]))
            if own is not None and shapes.get(key, (None, *own))[1:] == own:
                found[".".join(parts[:cut])] += 1
    return any(2 * count >= len(expected) for count in found.values())


@contextmanager
def _without_report() -> Iterator[list[str]]:
    """transformers' table of keys, and that ends are not tied, is not printed: what matters is said by us. Gives the texts."""
    from transformers.utils import logging as shown

    tables: list[str] = []

    def keeps(record: Any) -> bool:
        if table := re.search("LOAD REPORT|NOT tie", str(record.msg)) is not None:
            tables.append(re.sub(r"\x1b\[[\d;]*m", "", str(record.msg)))
        return not table and record.levelno >= shown_from

    bar = shown.is_progress_bar_enabled() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    logger = logging.getLogger("transformers.modeling_utils")
    before, shown_from = logger.level, logger.getEffectiveLevel()
    logger.setLevel(min(shown_from, logging.WARNING))  # else a quiet caller's table would not be written at all
    shown.disable_progress_bar()  # reading weights takes a moment; ours are the bars that count texts
    logger.addFilter(keeps)
    try:
        yield tables
    finally:
        logger.removeFilter(keeps)
        logger.setLevel(before)
        if bar:
            shown.enable_progress_bar()
