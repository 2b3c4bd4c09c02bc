"""The versions that a result depends on, read from package metadata (nothing heavy is imported)."""

import contextlib
import functools
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

PACKAGES = ("multiref", "torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "pyarrow", "safetensors")


@functools.cache  # a run tells them to its folder, its card and its page
def versions() -> Mapping[str, str]:
    """Python and the installed version of each of these packages; one that is absent is left out."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return MappingProxyType(found)
