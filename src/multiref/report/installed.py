"""The versions that a result depends on, read from package metadata (nothing heavy is imported)."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("multiref", "torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "pyarrow", "safetensors")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Python and the installed version of each package; one that is absent is left out."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
