"""The front door and the walls: what is public, what imports what, and what `import multiref` may cost."""

import subprocess
import sys
from pathlib import Path

import pytest

import multiref as mr

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "AlphaDivergence", "ForwardKL", "PooledKL", "References", "Regularizer", "ReverseKL",
    "bounds", "data", "divergences", "errors", "evaluation", "exact", "integrations", "losses", "models", "pools", "references", "report",
    "training", "weighting",
}  # fmt: skip


def test_public_names_are_these_and_all_of_them_resolve():
    assert set(mr.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(mr, name) is not None


@pytest.mark.parametrize("room", ["pools", "divergences", "losses", "exact", "errors"])
def test_every_public_function_of_the_quiet_half_says_what_it_does(room):
    module = getattr(mr, room)
    names = getattr(module, "__all__", [n for n in vars(module) if n[0].isupper()])
    assert names
    for name in names:
        assert getattr(module, name).__doc__, f"{room}.{name} has no docstring"


def test_imports_point_down():
    """The contracts of the house (pyproject.toml, tool.importlinter), so that `make test` alone notices a wall broken."""
    found = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stdout


def test_the_quiet_half_loads_no_model_code():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, multiref as mr; mr.ReverseKL(); print([m for m in ('transformers', 'pyarrow', 'matplotlib') if m in sys.modules])"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert loaded.stdout.strip() == "[]"


def test_doctests_of_the_quiet_half():
    """The examples in the docstrings print what they say."""
    import doctest

    import multiref.exact._solve
    import multiref.pools
    import multiref.regularizers

    for module in (multiref.pools, multiref.regularizers, multiref.exact._solve):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0, module.__name__
