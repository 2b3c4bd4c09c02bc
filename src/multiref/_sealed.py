"""Plain values that say of themselves whether they are as they were written: an object with, under "sum", the sum of the
rest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its sum, as JSON holds it."""
    plain = json.loads(json.dumps(value))
    return {**plain, "sum": _sum(plain)}


def is_sealed(value: Any) -> bool:
    """Whether it is an object whose sum agrees."""
    return isinstance(value, dict) and value.get("sum") == _sum({key: value[key] for key in value if key != "sum"})


def _sum(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
