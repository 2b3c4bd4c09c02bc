"""Every run writes a report; what its figures look like is not what these tests are about."""

import pytest

from tests.runs.doing import make_two


@pytest.fixture
def drawn():
    """A test that asks for it has its figures drawn."""


@pytest.fixture(autouse=True)
def figures(request):
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("undrawn")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two small models with one tokenizer, "policy" and "other" → their folders, which tests only read."""
    return make_two(tmp_path_factory, std=0.2)
