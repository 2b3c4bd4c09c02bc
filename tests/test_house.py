"""The front door and the walls: what is public, what imports what, and what `import multiref` may cost."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import multiref as mr
from multiref import _moved

ROOT = Path(__file__).parent.parent

PUBLIC = [
    "AlphaDivergence",
    "FDivergence",
    "ForwardKL",
    "PooledKL",
    "References",
    "Regularizer",
    "ReverseKL",
    "bounds",
    "data",
    "decoding",
    "divergences",
    "errors",
    "evaluation",
    "exact",
    "integrations",
    "losses",
    "models",
    "pools",
    "references",
    "report",
    "run",
    "training",
    "weighting",
]


def test_public_names_are_these_and_all_of_them_resolve():
    assert sorted(mr.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(mr, name) is not None


def test_what_a_room_needs_of_the_ground_is_public():
    assert "expectation" in mr.divergences.__all__ and "write_whole" in mr.report.__all__
    assert {"check_beta", "check_weights"} <= set(__import__("multiref.regularizers", fromlist=["x"]).__all__)


@pytest.mark.parametrize(("old", "new"), _moved.MOVED.items())
def test_an_old_import_raises_with_the_new_name(old, new):
    assert find_spec(new) is not None
    parent, _, name = old.rpartition(".")
    for statement in (f"import {old}", f"from {old}.deeper import thing", f"from {parent} import {name}"):
        with pytest.raises(ImportError, match=rf"is now {new}:"):
            exec(statement, {})


def test_an_old_name_at_the_root_raises_with_the_new_one():
    with pytest.raises(AttributeError, match="is now multiref_lab:"):
        _ = mr.lab
    with pytest.raises(AttributeError, match="nothing"):
        _ = mr.nothing


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


HEAVY = ("matplotlib", "numpy", "pyarrow", "torch", "transformers")


def loaded_after(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter has loaded after this code."""
    program = f"{code}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()


@pytest.mark.parametrize(
    "code", ["import multiref", "import multiref.cli", "import multiref.report.figures", "import multiref.errors"]
)
def test_what_answers_at_once_loads_nothing_heavy(code):
    assert loaded_after(code) == []


def test_the_quiet_half_loads_no_model_code():
    assert set(loaded_after("import multiref as mr; mr.ReverseKL(); mr.exact, mr.losses")) <= {"torch", "numpy"}


def test_doctests_of_the_quiet_half():
    """The examples in the docstrings print what they say."""
    import doctest

    import multiref.exact._solve
    import multiref.pools
    import multiref.regularizers._alpha
    import multiref.regularizers._f_divergence as f_divergence

    for module in (multiref.pools, multiref.regularizers._alpha, f_divergence, multiref.exact._solve):
        result = doctest.testmod(module)
        assert result.attempted > 0 and result.failed == 0, module.__name__
