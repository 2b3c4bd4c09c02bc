"""A function of one's own, a reward or a judge: in a Python file that a run's file names, run as it was when the run began."""

import hashlib
import sys
import types
from typing import Any, TypeVar

from pydantic import model_validator

from multiref._files import MIB, Unpacked
from multiref.errors import ConfigError
from multiref.runs.strict import Arguments
from multiref.training.online import Reward

_EXPECTED = "a Python file with the function"
T = TypeVar("T")


class OwnOrNamed(Arguments[T]):
    """What a file names by its kind, or takes from a Python file. What that holds is part of the settings, and so of the run's
    identity."""

    kind: str

    @model_validator(mode="before")
    @classmethod
    def _hashed(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("kind") != "python" or not isinstance(values.get("path"), str):
            return values
        try:
            found = file_hash(values["path"])
        except ConfigError as error:
            raise ValueError(f"path: {error}") from None
        if values.get("sha256") not in (None, found):
            raise ValueError(f"sha256: {values['path']} has changed: expected {values['sha256']}, found {found}.")
        return {**values, "sha256": found}


def file_hash(path: str) -> str:
    """SHA-256 of the file, in hex."""
    return hashlib.sha256(_content(path)).hexdigest()


def make_python_reward(path: str, name: str, weight: float = 1.0, sha256: str | None = None) -> list[Reward]:
    """The function `name` of the file: (prompts, completions, **columns of the prompts' rows) → a number for each one."""
    return [Reward(load_function(path, name, sha256), name, weight)]


def load_function(path: str, name: str, sha256: str | None = None) -> Any:
    """The function `name` of the file, which runs with your rights, and only because the run's file names it.

    Args:
        sha256: of the file, filled in by itself; a file that changed is another run.

    Raises:
        ConfigError: a file that changed, cannot be run, or has no such function.
    """
    content = _content(path)
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and sha256 != found:
        raise ConfigError(f"{path} has changed: its sha256 is {found[:12]}…, and was {sha256[:12]}… when the run was read.")
    module = types.ModuleType(f"multiref_own_{found[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # what a dataclass in it looks itself up by
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except Exception as wrong:
        sys.modules.pop(module.__name__)
        raise ConfigError(f"{path} cannot be run: {type(wrong).__name__}: {wrong}.") from wrong
    function: Any = getattr(module, name, None)
    if not callable(function):
        known = sorted(each for each, value in vars(module).items() if isinstance(value, types.FunctionType))
        raise ConfigError(f"{path} has no function {name!r}; found {', '.join(known) or 'none'}.")
    return function


def _content(path: str) -> bytes:
    with Unpacked(path, _EXPECTED, largest=4 * MIB, error=ConfigError) as file:
        return file.rest()
