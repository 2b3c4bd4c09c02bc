"""The versions that a result depends on, read from package metadata (nothing heavy is imported)."""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("multiref", "torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "pyarrow", "safetensors")


def versions() -> dict[str, str]:
    """Python and the installed version of each of these packages; one that is absent is left out."""
    return dict(_read())


@functools.cache  # a run tells them to its folder, its card and its page
def _read() -> dict[str, str]:
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
