"""Every run writes a report; what its figures look like is not what these tests are about."""

import pytest


@pytest.fixture
def drawn():
    """A test that asks for it has its figures drawn."""


@pytest.fixture(autouse=True)
def figures(request):
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("undrawn")
