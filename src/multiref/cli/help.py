"""`--help` as plain text for a terminal of 80 columns: grouped verbs, options with their types in plain words."""

import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GROUPS = {
    "Start": ("init", "demo", "real", "doctor", "data"),
    "Use": ("score", "store", "inspect", "train", "sweep", "decode", "serve", "evaluate"),
    "Theory": ("solve", "bound", "verify", "stability", "frontier"),
}
_WORDS = {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH"}
_KEPT = "For every verb"  # the heading of what all of them have
COMMON = ("as_json", "quiet", "verbose", "help")


def verbs_help(verbs: Mapping[str, str], usage: str, about: str, options: Sequence[tuple[str, str]]) -> str:
    """The root's help. verbs: name → one line."""
    grouped = {name: [verb for verb in names if verb in verbs] for name, names in GROUPS.items()}
    rest = [verb for verb in verbs if not any(verb in names for names in grouped.values())]
    parts = [f"Usage: {usage}", _paragraphs(about)]
    for name, names in {**grouped, "More": rest}.items():
        if names:
            parts.append(f"{name}\n" + _columns([(verb, verbs[verb].rstrip(".")) for verb in names], 11))
    return "\n\n".join([*parts, "Options\n" + _columns(options, 20)]) + "\n"


def verb_help(command: Any, name: str) -> str:
    """A verb's help, from its parameters and the docstring of its function."""
    arguments = [each for each in command.params if not each.opts[0].startswith("-")]
    options = [each for each in command.params if each.opts[0].startswith("-")]
    own = [each for each in options if each.name not in COMMON]
    common = [each for each in options if each.name in COMMON]
    needed = " ".join(f"{max(each.opts, key=len)} …" for each in own if each.required)
    named = " ".join((each.name.upper() if each.required else f"[{each.name.upper()}]") + ("…" if each.nargs < 0 else "")
                     for each in arguments)  # fmt: skip
    usage = " ".join(filter(None, (name, named, needed, "[OPTIONS]")))
    parts = [f"Usage: {usage}", _paragraphs(command.help or "")]
    if rows := [(each.name.upper(), getattr(each, "help", "") or "") for each in arguments]:
        parts.append(_columns(rows, 12))
    for title, group in (("Options", own), (_KEPT, [*common])):
        rows = [(_shown(each), _said(each)) for each in group]
        if title == _KEPT:
            rows.append(("-h, --help", "Show this and stop."))
        if rows:
            parts.append(f"{title}\n" + _columns(rows, min(26, max(len(left) for left, _ in rows) + 2)))
    return "\n\n".join(filter(None, parts)) + "\n"


def group_help(command: Any, name: str) -> str:
    """The help of a verb that has verbs."""
    rows = [(each.name, (each.help or "").strip().partition("\n\n")[0].replace("\n", " ").partition(". ")[0].rstrip("."))
            for each in command.commands.values()]  # fmt: skip
    parts = [f"Usage: {name} VERB …", _paragraphs(command.help or ""), "Verbs\n" + _columns(rows, 10)]
    return "\n\n".join([*parts, f"Help of one of them: {name} VERB --help"]) + "\n"


def _shown(option: Any) -> str:
    """-r, --reference TEXT; a switch has no type."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f"/{option.secondary_opts[0]}"
    return names if option.is_flag else f"{names} {_word(option.type_descriptor.annotation)}"


def _word(hint: Any) -> str:
    """What a value is, in one word; a choice by its names."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, list, tuple):
        return next((_word(each) for each in typing.get_args(hint) if each is not type(None)), "TEXT")
    return "CHOICE" if typing.get_origin(hint) is typing.Literal else _WORDS.get(hint, "TEXT")


def _said(option: Any) -> str:
    said = (option.help or "").strip()
    hint = option.type_descriptor.annotation
    if typing.get_origin(hint) is typing.Literal:
        said = f"{', '.join(typing.get_args(hint))}. {said}"
    default = option.default
    notes = ["required"] if option.required else []
    if not isinstance(default, bool) and default not in (None, "", (), []) and option.show_default and not callable(default):
        notes.append(f"default {default}")
    if option.multiple and "epeat" not in said and "nce per" not in said:
        notes.append("repeatable")
    return f"{said} [{'; '.join(notes)}]" if notes else said


def _width() -> int:
    return max(50, min(shutil.get_terminal_size((80, 24)).columns, 100))


def _paragraphs(text: str) -> str:
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(part.split()), _width(), break_on_hyphens=False, break_long_words=False)
                       for part in parts)  # fmt: skip


def _columns(rows: Sequence[tuple[str, str]], left: int) -> str:
    """Names at the left, what they are beside them; a long name has a line of its own."""
    lines, wrapper = [], textwrap.TextWrapper(_width(), "", " " * (left + 2), break_on_hyphens=False, break_long_words=False)
    for name, said in rows:
        if len(name) > left - 1:
            lines.append(f"  {name}")
            name = ""
        wrapper.initial_indent = f"  {name:<{left}}"
        lines += wrapper.wrap(said) or [f"  {name}"]
    return "\n".join(lines)
