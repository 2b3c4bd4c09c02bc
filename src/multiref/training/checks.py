"""What arguments of every trainer are asked: one of a few words, at least so much."""

import dataclasses
import inspect
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, get_args

import xxhash

from multiref._awaited import wait_for
from multiref.errors import ArgumentError, MultirefError, MultirefNotice


def check_choice(name: str, found: object, known: Any) -> None:
    """ArgumentError unless `found` is one of `known`: some words, or a `Literal` of them."""
    words = get_args(known) or tuple(known)
    if found not in words:
        raise ArgumentError(f"{name}: found {found!r}, expected one of {', '.join(map(str, words))}.")


def check_seed(seed: Any) -> None:
    """ArgumentError unless the random generators that we use (torch's, numpy's) all take the seed."""
    whole = isinstance(seed, Integral)
    if not whole or not 0 <= seed < 2**32:
        raise ArgumentError(f"seed: expected a whole number from 0 to 4294967295, found {seed}.")


def check_at_least(values: object, least: int, *names: str) -> None:
    """ArgumentError for the first of these attributes of `values` that is less, or no finite number."""
    for name in names:
        found = getattr(values, name)
        is_number = isinstance(found, Real) and not isinstance(found, bool)
        if not is_number or not least <= found < math.inf:
            raise ArgumentError(f"{name}: expected a number, at least {least}, found {found!r}.")


def check_whole(values: object, least: int, *names: str) -> None:
    """The same of whole numbers; one that is written as a float becomes what it means."""
    check_at_least(values, least, *names)
    for name in names:
        if int(found := getattr(values, name)) != found:
            raise ArgumentError(f"{name}: expected a whole number, found {found!r}.")
        object.__setattr__(values, name, int(found))


def say_idle(values: Any, beside: Iterable[tuple[str, bool, str]], *, standing: Mapping[str, Any] = {}) -> None:
    """A MultirefNotice for every field of a dataclass that something else switches off, if it is not as it stands by itself.
    beside: (field, whether it is switched off, why). standing: values that it has not from the user."""
    defaults = {field.name: field.default for field in dataclasses.fields(values)}
    for name, idle, why in beside:
        if idle and (found := getattr(values, name)) not in (defaults[name], standing.get(name), None, {}):
            warnings.warn(f"{name}: {found!r} has no effect: {why}.", MultirefNotice, stacklevel=4)


def stated(value: object) -> str:
    """A choice as it prints, without places in memory: the same in another process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def digest_of(values: Iterable[object]) -> str:
    """Of how they print, one after the other."""
    found = xxhash.xxh3_128()
    for value in values:
        found.update(str(value).encode())
    return found.hexdigest()


def check_same(was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ArgumentError for the first setting that a checkpoint was written under and that is another one now."""
    for name, value in now.items():
        if name in was and was[name] != value:
            raise ArgumentError(
                f"{name}: the checkpoint was written under {was[name]!r:.120}, found {value!r:.120}. Resume under the same, or "
                "begin anew in another folder."
            )


def read_chances(answers: Iterable[Any], count: int, who: str, error: type[MultirefError] = ArgumentError) -> list[float]:
    """What a judge said of `count` pairs, as chances that the first is preferred; `error` unless they are numbers in [0, 1]."""
    try:
        found = list(wait_for(answers) if inspect.isawaitable(answers) else answers)
    except TypeError as problem:
        raise error(f"{who}: found {answers!r:.80} ({problem}); expected {count} answers, one for each pair.") from problem
    if len(found) != count:
        raise error(f"{who}: {len(found)} answers to {count} pairs; expected one each.")
    for place, answer in enumerate(found):
        try:
            found[place] = math.nan if isinstance(answer, str) else float(answer)
        except (TypeError, ValueError):
            found[place] = math.nan
        if not 0 <= found[place] <= 1:
            raise error(
                f"{who}: pair {place} is answered {answer!r}, which is neither side; expected the chance, in [0, 1], that the "
                "first is preferred: 1, 0, or a probability between (½ for a tie)."
            )
    return found
