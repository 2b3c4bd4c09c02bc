"""Who a reference is: everything that its scores depend on beside the row's own content. Scores are stored under it.

The content key is the row's (messages, tools, arguments for the template), so that one key joins K tokenizers. What
tokenisation adds to it, and the model that computes, are here. A program is named by what it does: a tokenizer by the ids of
fixed texts beside its rules, a chat template by how it writes a fixed conversation today beside its source.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from multiref.errors import MultirefWarning
from multiref.models.adapters import on_base, read_adapter_config
from multiref.models.chat import Chat, dates_of, template_of
from multiref.models.fingerprint import (
    config_fingerprint,
    file_weights_fingerprint,
    model_state_fingerprint,
    model_weights_fingerprint,
    text_digest,
    tokenizer_fingerprint,
)
from multiref.models.folders import check_files, local_folder, read_object
from multiref.models.spec import ModelSpec, Tokenisation

SCORING_VERSION = 2  # rises whenever the same model and text would get another number or another identity

_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "Which."}},
            "required": ["word"],
        },
    },
}
_WITH_PROGRAMS = ("config.json", "tokenizer_config.json")
_TURNS: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
)


def text_identity(kind: str, tokenizer: Any, tokenisation: Tokenisation) -> dict[str, Any]:
    """The part of an identity that says how text becomes tokens; None for the tokenizer where the server has it.

    A template that writes the date is another one each day: so says `written`, and one warning that names the remedy.
    """
    named = {"kind": kind, "scoring_version": SCORING_VERSION, **tokenisation.identity()}
    if tokenizer is None:
        return {**named, "tokenizer": None, "chat_template": None, "written": None}
    template = template_of(tokenizer)
    source = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    if template is not None:
        _warn_of_dates(tokenizer, tokenisation)
    chat = Chat.of(tokenizer, (), tokenisation)
    return {
        **named,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "chat_template": text_digest(source) if template is not None else None,
        "written": text_digest(json.dumps(write_probe(tokenizer, tokenisation))) if template is not None else None,
        **({"unended": True} if template is not None and not chat.closes() else {}),
        **({"reopens": chat.reopening()} if template is not None and chat.reopening() else {}),
    }


def say_of_templates(tokenizers: Mapping[str, Any], prompts: Iterable[Any]) -> str | None:
    """Where conversations are written by different chat templates: who has which. None where they are not."""
    groups: dict[str, list[str]] = {}
    for name, tokenizer in tokenizers.items():
        if tokenizer is not None:
            groups.setdefault(json.dumps(template_of(tokenizer), sort_keys=True), []).append(name)
    if len(groups) < 2 or all(isinstance(prompt, str) for prompt in prompts):
        return None
    who = " | ".join(", ".join(map(repr, names)) for names in groups.values())
    return f"Conversations are written by different chat templates ({who}): each scores them as its own template writes them."


def write_probe(tokenizer: Any, tokenisation: Tokenisation) -> list[str | None]:
    """A fixed conversation as the template writes it today: with and without system message, tools, answer; None where it
    refuses."""
    written: list[str | None] = []
    for tools in ((), (_TOOL,)):
        chat = Chat(tokenizer, dict(tokenisation.chat_template_kwargs), tools)
        for turns in (_TURNS, _TURNS[1:]):
            written += [chat.tried(turns), chat.tried(turns[:-1], add_generation_prompt=True)]
    return written


def file_identity(spec: ModelSpec) -> dict[str, Any]:
    """What computes, of a model in files: weights, configuration, adapter, the attention asked for, the folder's own code.
    Where the base is an adapter itself, its weights are all of these."""
    adapter = None
    if spec.adapter is not None:
        where = local_folder(spec.adapter)
        weights = file_weights_fingerprint(where, "adapter_model*.safetensors")
        adapter = [weights, config_fingerprint(read_adapter_config(where))]
    below = on_base(replace(spec, adapter=None))
    if below.adapter is not None:
        base = file_identity(below)
        return {**base, "weights": base, "config": None, "adapter": adapter}
    folder = local_folder(spec.path, revision=spec.revision, code=spec.trust_remote_code)
    code = [file for each in _programs(folder) for file in sorted(each.glob("*.py"))] if spec.trust_remote_code else []
    return {
        "weights": file_weights_fingerprint(folder),
        "config": config_fingerprint(check_files(folder).config),
        "adapter": adapter,
        "attention": spec.attention,
        "code": text_digest("\0".join(file.read_text(encoding="utf-8") for file in code)) if code else None,
    }


def _programs(folder: Path) -> list[Path]:
    """Where the programs are that a model's folder runs: in it, and where its `auto_map` names another place ("place--module.
    Class")."""
    maps = [read_object(file).get("auto_map") for file in map(folder.joinpath, _WITH_PROGRAMS) if file.is_file()]
    named = [name for each in maps for name in tree_leaves(each) if isinstance(name, str) and "--" in name]
    places = dict.fromkeys(name.partition("--")[0] for name in named)
    return [folder, *(local_folder(place, weights=False, code=True) for place in places)]


def memory_identity(model: torch.nn.Module) -> dict[str, Any]:
    """What computes, of a model in memory, as it is now: weights, configuration, and what its modules hold beside weights
    (which adapters are active, disabled or merged, their scaling, numbers that were changed after loading)."""
    config: Any = model.config
    adapters = {name: config_fingerprint(each.to_dict()) for name, each in getattr(model, "peft_config", {}).items()}
    return {
        "weights": model_weights_fingerprint(model),
        "config": config_fingerprint(config.to_dict()),
        "adapter": adapters or None,
        "attention": str(getattr(config, "_attn_implementation", None)),
        "state": model_state_fingerprint(model),
    }


_warned: set[tuple[str, str]] = set()


def _warn_of_dates(tokenizer: Any, tokenisation: Tokenisation) -> None:
    """Once for a template and its arguments, where it writes the date."""
    found = dates_of(tokenizer, tokenisation, partial(write_probe, tokenizer))
    if found is None:
        return
    name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
    options: Mapping[str, Any] = tokenisation.chat_template_kwargs
    if (key := (str(template_of(tokenizer)), json.dumps(dict(options), sort_keys=True, default=str))) in _warned:
        return
    _warned.add(key)
    remedy = f"chat_template_kwargs={{{found!r}: '26 Jul 2024'}}" if found else "a template that writes no date"
    warnings.warn(
        f"The chat template of {name} writes today's date, so that scores are others tomorrow and are stored under another "
        f"identity each day. To fix the date, give {remedy}, the same for policy and references (in Tokenisation, "
        "`tokenisation` of a run, or --chat-template-kwargs).",
        MultirefWarning,
        stacklevel=3,
    )
