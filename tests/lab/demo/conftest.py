"""The tiny world, loaded."""

import pytest

from multiref_lab.demo import World, make
from tests.lab.conftest import TINY


@pytest.fixture(scope="session")
def tiny_world(cache) -> World:
    return make(cache, TINY)
