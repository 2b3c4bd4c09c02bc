"""Settings on their way into a model: plain values that know the line of every key, and what `--set` laid over it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from multiref._files import read_text
from multiref.errors import ConfigError
from multiref.runs.sentences import meant, sentence
from multiref.runs.yaml_values import DEPTH, SHORT, Place, Plain, at_home, kind_of, parse

T = TypeVar("T")
LARGEST = 2**17  # bytes of a run's file


class Document:
    """Attributes: values, as the file and `--set` give them; source, the file as messages name it."""

    def __init__(self, values: dict[str, Plain], source: str, lines: Mapping[Place, int] | None = None) -> None:
        self.values, self.source = values, source
        self._origins: dict[Place, str] = {place: f"{source}:{line}" for place, line in (lines or {}).items()}

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The document of a YAML file. ConfigError with file and line."""
        text = read_text(Path(path).expanduser(), "a YAML file of settings in UTF-8", largest=LARGEST, error=ConfigError)
        values, lines = parse(text, str(path))
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: found {kind_of(values)}, expected keys and values such as `beta: 0.1`.")
        return cls(values, str(path), lines)

    def set(self, assignments: Iterable[str]) -> Self:
        """Lay `a.b=c` over the values; c is YAML, a number in the path is a place in a list. Returns the document itself."""
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            if not equals or not key:
                raise ConfigError(f"--set {assignment}: expected key=value, such as --set training.learning_rate=1e-5.")
            if key.count(".") >= DEPTH:
                raise ConfigError(
                    f"--set {key[:40]}…: more than {DEPTH} keys deep; expected one such as training.learning_rate."
                )
            value, _ = parse(text, f"--set {key}=…")
            if f" {text}".partition(" #")[1] and text.lstrip()[:1] not in ("'", '"', "[", "{"):
                raise ConfigError(f"--set {assignment}: a # begins a comment; put quotes around the text: {json.dumps(text)}.")
            place = self._put(key.split("."), value, f"--set {assignment}")
            self._origins = {known: origin for known, origin in self._origins.items() if known[: len(place)] != place}
            self._origins[place] = f"--set {key}=…"
        return self

    def where(self, place: Place) -> str:
        """File and line of the key at a place (of the nearest one around it, where there is none),
        or the `--set` that gave it."""
        around = (place[:length] for length in range(len(place), 0, -1))
        made = (origin for known, origin in self._origins.items() if place and known[: len(place)] == place)  # by `--set`
        return next((self._origins[each] for each in around if each in self._origins), next(made, self.source))

    def validate(self, kind: type[T]) -> T:
        """The values as a model, a dataclass or a union of them; `~` is the home folder, and what YAML reads as another kind
        than the one that is expected there is what a person means (`meant`).
        ConfigError for the first value that does not fit, and where it stands."""
        self.values = at_home(self.values)
        try:
            return TypeAdapter(kind).validate_json(json.dumps(self.values))
        except ValidationError as error:
            if mended := meant(error, self.values):
                for place, value in mended:
                    self._put([str(part) for part in place], value, "")
                return self.validate(kind)
            place, said = sentence(error, self.values, kind)
            name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
            raise ConfigError(": ".join(filter(None, (self.where(place), name, said)))) from None

    def _put(self, path: list[str], value: Plain, assignment: str) -> Place:
        """Sets the value, and returns its place."""
        here: Plain = self.values
        place: list[str | int] = []
        for depth, part in enumerate(path):
            if isinstance(here, list):
                if not (part.isdecimal() and len(part) < 10) or int(part) >= len(here):
                    known = f"0 to {len(here) - 1}" if here else "an index of a list that is not empty"
                    raise ConfigError(f"{assignment}: {part!r} is no place in a list of {len(here)}; expected {known}.")
            elif not isinstance(here, dict):
                above = ".".join(path[:depth])
                raise ConfigError(
                    f"{assignment}: {above} is {here!r} there, which has no keys; set the whole of it, "
                    f"as --set '{above}={{…}}'."
                )
            key, held = (int(part), here[int(part)]) if isinstance(here, list) else (part, here.get(part))
            if depth == len(path) - 1:
                held = value
            elif isinstance(held, str):
                held = {SHORT: held}  # a text stands for one of its keys; which one, the model knows
            elif held is None:
                held = {}
            here[key] = held  # type: ignore[index]
            here = held
            place.append(key)
        return tuple(place)
