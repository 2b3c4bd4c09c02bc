"""The model card that goes with trained weights: Markdown under the YAML head that model hubs read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from multiref.report.installed import versions
from multiref.report.shown import public

# Markdown's marks, what it would make a link of, and what makes a list or a rule of a line
_MARKS = re.compile(r"[\\`*_\[\]<>|#&~$!@{}]|:(?=//)|(?<=[wW]{3})\.|^[-+=]|(?<=\d)[.)](?=\s|$)")


@dataclass(frozen=True)
class ModelCard:
    """What was trained, against what, on what, with which result.

    `references` maps each name to (where it came from, its weight as text), empty for what has none, `beta` None then;
    `metrics` are plain numbers, reported as given; `limits` are sentences on what the numbers do not show, `checks` on what
    was looked at.
    Every value is shown as text: nothing in it is read as Markdown markup, or names a path of this machine.
    """

    title: str
    base_model: str
    objective: str
    formula: str
    references: Mapping[str, tuple[str, str]]
    beta: float | None
    data: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    limits: Sequence[str] = ()
    checks: Sequence[str] = ()

    def markdown(self) -> str:
        """The whole card."""
        head = {
            "library_name": "transformers",
            "base_model": " ".join(public(self.base_model).split()).removeprefix("…/"),
            "tags": ["multiref", "preference-learning", "multi-reference"],
        }
        strength = "" if self.beta is None else f", β = {self.beta:g}"
        references = [(name, source, weight) for name, (source, weight) in self.references.items()]
        sections = {
            "Objective": f"{_plain(self.objective)}{strength}\n\n{_fenced(self.formula)}",
            "References": _rows(("name", "source", "weight"), references),
            "Metrics": _rows(("metric", "value"), [(name, f"{value:.6g}") for name, value in self.metrics.items()]),
            "Limits": "\n".join(f"- {_plain(line)}" for line in self.limits),
            "Checks": "\n".join(f"- {_plain(line)}" for line in self.checks),
            "Settings": _fenced(_yaml(_safe(self.settings))) if self.settings else "",
            "Versions": _rows(("package", "version"), sorted(versions().items())),
        }
        trained = f"Trained with `multiref` from {_code(self.base_model)} on {_code(self.data)}."
        parts = [f"---\n{_yaml(head)}---", f"# {_plain(self.title)}", trained]
        parts += [f"## {name}\n\n{body}" for name, body in sections.items() if body]
        return "\n\n".join(parts) + "\n"


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _plain(text: str) -> str:
    """One line in which Markdown's and HTML's marks are only characters."""
    return _MARKS.sub(r"\\\g<0>", " ".join(public(text).split()))


def _code(text: str) -> str:
    return f"`{' '.join(public(text).split()).replace('`', chr(39))}`"


def _fenced(text: str) -> str:
    text, fence = public(text), "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}"


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; nothing where it would have no rows."""
    if not rows:
        return ""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _safe(value: object) -> object:
    """Only what plain YAML knows; anything else becomes its text."""
    if isinstance(value, Mapping):
        return {public(key): _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else public(value)
