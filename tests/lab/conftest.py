"""A world made in a second: a thin model, a few steps. It is bad at everything, which no identity minds."""

from pathlib import Path

import pytest

from multiref_lab.demo import WorldSettings

TINY = WorldSettings(base_steps=12, specialist_steps=12, batch=32, hidden=16, layers=1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is kept."""
    return tmp_path_factory.mktemp("worlds")
