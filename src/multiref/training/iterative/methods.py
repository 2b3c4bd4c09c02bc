"""Every method by name, as recipes and reports call them."""

from typing import Any

from multiref.errors import ConfigError
from multiref.training.iterative.bilevel import Bilevel
from multiref.training.iterative.direct import SAIL, XPO, OfflineDPO, OnlineDPO
from multiref.training.iterative.nash import Nash
from multiref.training.iterative.reward_then_policy import GSHF, Iterative, TwoStage

METHODS: dict[str, Any] = {
    "offline-dpo": OfflineDPO,
    "online-dpo": OnlineDPO,
    "xpo": XPO,
    "sail": SAIL,
    "iterative": Iterative,
    "gshf": GSHF,
    "two-stage": TwoStage,
    "nash": Nash,
    "bilevel": Bilevel,
}


def method_named(name: str, **options: Any) -> Any:
    """A method with its options.

    Raises:
        ConfigError: an unknown name or option.
    """
    if name not in METHODS:
        raise ConfigError(f"method: found {name!r}, expected one of {', '.join(METHODS)}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ConfigError(f"method {name}: {error}; see `multiref.training.iterative` for its options") from None
