"""A language model and its tokenizer from a folder or hub id, with an adapter or quantised if asked."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from multiref.errors import ArgumentError, ModelError, MultirefWarning
from multiref.models.adapters import adapter_folder, check_base, merged, on_base, own_tokenizer, put_adapter
from multiref.models.checkpoint import check_program, load_whole
from multiref.models.encoding import as_tokenizer
from multiref.models.folders import check_files, local_folder, read_object, reading
from multiref.models.quantization import check_asked, quantization_options, quantize
from multiref.models.spec import DTYPES, ModelSpec

# digits in a row, capitals, accents, spaces in a row, other scripts, marks, line ends
_PROBE = "In 2023 the cat's  naïve NAMES,\n\n\tx_1=65*41; (日本) don't"


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, its tokenizer (of a processor that is given: its tokenizer), and the name
    under which it was asked for."""

    model: Any
    tokenizer: Any
    name: str

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", as_tokenizer(self.tokenizer))


def best_device() -> torch.device:
    """CUDA if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def as_device(device: str | torch.device | None) -> torch.device:
    """A device that this machine has and that holds numbers; None: `best_device()`. ArgumentError for another."""
    if device is None:
        return best_device()
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).item()  # one that is not there, or "meta", fails here
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        raise ArgumentError(f"device: {str(device)!r} cannot be used here ({why}); expected cpu, cuda, cuda:1, mps.") from error
    return place


def load(what: str | os.PathLike[str] | ModelSpec, *, device: str | torch.device | None = None) -> LanguageModel:
    """Loads a model for scoring, sampling or training.

    Args:
        what: a `ModelSpec`, or its path alone: a model folder, an adapter folder (its base is loaded too), or a hub id
            (downloaded as transformers does). A quantised base trains through an adapter. Of an adapter on an adapter the
            first is merged into its base.
        device: None takes `best_device()`; "auto" spreads the layers over all devices.

    Only safetensors are read, never pickle. Errors: ModelError saying what is missing, in the folder or of the weights, or that
        this is no causal language model; ArgumentError for an unknown option.
    """
    asked = ModelSpec.of(what)
    spec = on_base(asked)
    kind = as_dtype(spec.dtype or "float32")
    spread = device == "auto"
    place = as_device(None if spread else device)
    tokenizer = load_tokenizer(spec)
    if spec.adapter is not None and adapter_folder(spec.path, spec.revision):
        model = load_merged(replace(spec, adapter=None), device=device).model
    else:
        config = load_config(spec)
        reader = _causal_class(config, spec)
        check_asked(config, spec.quantization, spec.path)
        options = {"dtype": kind, **quantization_options(spec.quantization, place, kind)}
        if spec.attention is not None:
            options["attn_implementation"] = spec.attention
        if spread:
            options["device_map"] = "auto"
        model, _ = load_whole(reader, spec, **options)
    if spec.adapter is not None:
        check_base(spec.path, spec.adapter)
        model = put_adapter(model, spec.adapter)
    if not (spread or hasattr(model, "hf_device_map")):
        model = model.to(place)
    if spec.quantization is not None:
        model = quantize(model, spec.quantization, place, spec.path)
    return LanguageModel(model.eval(), tokenizer, asked.path)


def load_merged(spec: ModelSpec, *, device: str | torch.device | None = None) -> LanguageModel:
    """As `load`, but if the path is an adapter, it is merged into its base, so that another one can be put on top.

    Errors: ModelError for a quantised base, whose weights an adapter cannot be merged into without loss.
    """
    loaded = load(spec, device=device)
    if not hasattr(loaded.model, "merge_and_unload"):
        return loaded
    if spec.quantization is not None:
        raise ModelError(
            f"{spec.path} is an adapter with another one on top; merging it into a base in {spec.quantization} would round it "
            "away. Load without quantization, or merge and save it first."
        )
    return replace(loaded, model=merged(loaded.model, loaded.name))


def as_dtype(dtype: str) -> torch.dtype:
    """ "float32" → torch.float32, and so on. Errors: ArgumentError for what is none of `DTYPES`."""
    if dtype not in DTYPES:
        only = " (auto is for references, which are only scored)" if dtype == "auto" else ""
        raise ArgumentError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}{only}.")
    kind: torch.dtype = getattr(torch, dtype)
    return kind


def load_tokenizer(what: str | os.PathLike[str] | ModelSpec) -> Any:
    """The tokenizer alone: an adapter's own where its folder has one, and its own chat template; else its base's."""
    spec = on_base(ModelSpec.of(what))
    if spec.adapter is not None:
        folder, template = own_tokenizer(spec.adapter)
        if folder is not None:
            return _read(transformers.AutoTokenizer, replace(spec, path=folder), config=load_config(spec))
        tokenizer = load_tokenizer(replace(spec, adapter=None))
        tokenizer.chat_template = template or tokenizer.chat_template
        return tokenizer
    tokenizer = _read(transformers.AutoTokenizer, spec)
    if not tokenizer.chat_template and (old := _folder(spec) / "chat_template.json").is_file():  # as older processors have it
        tokenizer.chat_template = read_object(old).get("chat_template")
    return tokenizer


def load_config(what: str | os.PathLike[str] | ModelSpec) -> Any:
    """The configuration alone; an adapter's is its base's."""
    spec = on_base(replace(ModelSpec.of(what), adapter=None))
    return load_config(spec) if spec.adapter is not None else _read(_classes(spec)[0], spec)


def _folder(spec: ModelSpec) -> Path:
    return local_folder(spec.path, revision=spec.revision, weights=False, code=spec.trust_remote_code)


def _classes(spec: ModelSpec) -> tuple[Any, Any]:
    """Which class reads the configuration, and which the model: transformers' automatic ones, or our own table or product of
    experts."""
    kind = check_files(_folder(spec)).config.get("model_type")
    if kind == "multiref_tabular":
        from multiref.models.tabular import Tabular, TabularConfig

        return TabularConfig, Tabular
    if kind == "multiref_product":
        from multiref.models.product import Product, ProductConfig

        return ProductConfig, Product
    return transformers.AutoConfig, transformers.AutoModelForCausalLM


def _read(kind: Any, spec: ModelSpec, **options: Any) -> Any:
    """A configuration or tokenizer, under the name by which it was asked for."""
    folder = _folder(spec)
    settings = read_object(file) if (file := folder / "tokenizer_config.json").is_file() else {}
    with reading(spec.path):
        made = kind.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **options)
        if hasattr(made, "decode"):
            own = type(made).__module__.startswith("transformers.models.")
            if own and settings.get("tokenizer_class") == "TokenizersBackend":  # the model type's class was taken all the same
                made = transformers.TokenizersBackend.from_pretrained(folder)
            made.decode(made("a b")["input_ids"])  # what its settings make impossible shows at the first text
    if hasattr(made, "decode"):
        as_tokenizer(made)
        for said in _differences(made, folder, settings):
            warnings.warn(f"{spec.path}: {said}", MultirefWarning, stacklevel=3)
        check_program(settings.get("auto_map"), "AutoTokenizer", made, spec)
    made.name_or_path = spec.path
    return made


def _differences(tokenizer: Any, folder: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """What of a tokenizer is otherwise than its files say. Beside a tokenizer.json transformers 5 reads no flag of start and
    end tokens; some classes build rules of their own around a file's vocabulary (5.0 to 5.8 read all of Granite so); and of a
    SentencePiece model alone most classes of 5.23 leave out the space that belongs before a text."""
    from tokenizers import Tokenizer

    kind, file = type(tokenizer).__name__, folder / "tokenizer.json"
    if file.is_file():
        ids, plain = (tokenizer("a b", add_special_tokens=put)["input_ids"] for put in (True, False))
        does = {
            "add_bos_token": ids[:1] == [tokenizer.bos_token_id],
            "add_eos_token": ids[-1:] == [tokenizer.eos_token_id],
            "add_prefix_space": str(tokenizer.convert_ids_to_tokens(plain[:1] or [0])[0]).startswith(("Ġ", "▁")),
        }
        for flag in [flag for flag, done in does.items() if settings.get(flag) is not None and settings[flag] != done]:
            yield (
                f"tokenizer_config.json says {flag}: {settings[flag]}, and the {kind} does otherwise: since version 5 "
                "transformers goes by tokenizer.json alone. Mend the one that is wrong; under version 4 the flags of start and "
                "end tokens held for Llama's, Gemma's and Cohere's classes (as of DeepSeek's models)."
            )
    listed = {each["content"]: int(at) for at, each in (settings.get("added_tokens_decoder") or {}).items()}
    if (old := folder / "added_tokens.json").is_file():
        listed = read_object(old) | listed
    if moved := [(token, at) for token, at in listed.items() if tokenizer.convert_tokens_to_ids(token) != at]:
        token, at = moved[0]
        yield (
            f"the files give the token {token!r} the id {at}, and the {kind} gives it {tokenizer.convert_tokens_to_ids(token)} "
            f"({len(moved)} such tokens): tokenizer.json lacks it, or has it elsewhere, and the model learnt one. "
            "Take all files of the tokenizer from where the model came from."
        )
    with suppress(Exception):  # a vocabulary without some of these letters, and no token for what is unknown
        own = Tokenizer.from_file(str(file))
        own.no_truncation()
        own.no_padding()
        end, texts = tokenizer.eos_token, [_PROBE]
        if end in {each.content for each in own.get_added_tokens_decoder().values()}:
            texts.append(f" a{end} b\n{end}\nc")  # behind which some put a space in front again
        for text in texts:
            written = own.encode(text, add_special_tokens=False).ids
            read = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            if read != written:
                yield (
                    f"{kind} gives other token ids than tokenizer.json itself ({read[:4]} and {written[:4]} for "
                    f"{text[:11]!r}…): transformers builds this class's own rules around the file's vocabulary. Write "
                    '"tokenizer_class": "TokenizersBackend" into tokenizer_config.json, if the model was trained with the file.'
                )
                break
    with suppress(Exception):  # no such model, or one of another kind
        from sentencepiece import SentencePieceProcessor

        models, text = [] if file.is_file() else sorted(folder.glob("*.model")), _PROBE.encode("ascii", "ignore").decode()
        pieces = SentencePieceProcessor(model_file=str(models[0]))
        cut, known = pieces.encode(text, out_type=str), pieces.unk_id() not in pieces.encode(text)
        mine = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        if known and mine != cut:
            yield (
                f"there is no tokenizer.json, and the {kind} that transformers makes of {models[0].name} cuts {text[:11]!r}… "
                f"as {mine[:4]}, SentencePiece as {cut[:4]}. Take that file from where the model came from."
            )


def _causal_class(config: Any, spec: ModelSpec) -> Any:
    """Which class reads the weights. ModelError unless the configuration says that it is a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = getattr(config, "architectures", None) or []
    found = f"{spec.path} is {', '.join(named) or 'a model'} of type {config.model_type}"
    expected = "expected a causal language model (…ForCausalLM), which predicts each token from those before it."
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{found}, an encoder-decoder; {expected}")
    if spec.trust_remote_code or config.model_type.startswith("multiref_"):
        return _classes(spec)[1]
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # the decoder of a larger model, saved alone, names its class only
        own = [getattr(transformers, name, None) for name in named if name.endswith("ForCausalLM")]
        if not own or own[0] is None:
            raise ModelError(f"{found}; {expected}")
        return own[0]
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    fine = ("ForCausalLM", "ForConditionalGeneration")  # the latter with towers beside its decoder
    if named and not any(name in causal or "For" not in name or name.endswith(fine) for name in named):
        raise ModelError(f"{found}; {expected}")
    return _classes(spec)[1]


def count_parameters(what: str | os.PathLike[str] | ModelSpec) -> int | None:
    """Of a model folder or hub id, from its configuration alone; None where that does not say."""
    spec = on_base(ModelSpec.of(what))
    try:
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(load_config(spec))
        return int(sum(parameter.numel() for parameter in model.parameters()))
    except Exception:  # what cannot be built like this says so when it is loaded, or is of our own kinds
        return None
