"""What a model has read, by the name that its version of transformers has for it: `past_key_values`, or `cache` since 5.24."""

import inspect
from collections.abc import Collection
from typing import Any

from multiref.models.architecture import unwrapped


def takes(model: Any) -> Collection[str]:
    """The names that the forward pass of the model has for its arguments, under wrappers and adapters."""
    inner = unwrapped(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return inspect.signature(inner.forward).parameters.keys()


def cache_argument(names: Collection[str], cache: Any) -> dict[str, Any]:
    """The argument that hands a cache to a model that `takes` these names; none for None."""
    return {} if cache is None else {"cache" if "cache" in names else "past_key_values": cache}


def cache_of(output: Any) -> Any:
    """The cache in a model's output, or None."""
    found = output.get("cache")
    return found if found is not None else output.get("past_key_values")
