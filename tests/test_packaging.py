"""The wheel and the sdist, built from this tree and installed beside nothing of it: what a user gets from an index."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import multiref
from multiref.cli import VERBS

ROOT = Path(__file__).parent.parent
LABORATORY = {"demo", "frontier", "real", "stability", "verify"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MULTIREF_SHARED")}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, folder: Path) -> Path:
    """A wheel or sdist of a copy of the tree, so that the tree stays as it was; the build's own needs are installed already."""
    tree = folder / "tree"
    if not tree.exists():
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "src", tree / "src", ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tree)
    run(sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder / "dist", tree, cwd=folder)
    (made,) = (folder / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` of an environment that holds the wheel; what the wheel depends on is read from where the tests run."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "venv" / "lib").glob("*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python.parent


def packaged(suffix: str) -> set[str]:
    return {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob(f"*{suffix}")}


def test_the_wheel_holds_both_packages_with_their_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"multiref/py.typed", "multiref_lab/py.typed"} <= names
    assert packaged(".py") <= names and packaged(".pyi") <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"multiref", "multiref_lab"}


def test_one_version_everywhere(wheel):
    """`multiref.__version__` is the source; the wheel's metadata follow it, the citation is kept in step by this test."""
    assert wheel.name.startswith(f"multiref-{multiref.__version__}-")
    assert f"version: {multiref.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_installed_wheel_runs(installed, tmp_path):
    """The package that is imported is the wheel's; every verb is listed, the laboratory's too; a small problem is solved."""
    where = run(installed / "python", "-c", "import multiref; print(multiref.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    listed = set(re.findall(r"^  (\w+) ", run(installed / "multiref", "--help", cwd=tmp_path), re.MULTILINE))
    assert listed >= set(VERBS) | LABORATORY
    problem = {"reward": [0.0, 1.0], "references": [[0.5, 0.5], [0.2, 0.8]], "weights": [0.5, 0.5], "beta": 1.0}
    (tmp_path / "problem.json").write_text(json.dumps(problem))
    assert "0.8446" in run(installed / "multiref", "solve", "problem.json", cwd=tmp_path)  # e·2/(1 + 2e): the pool is 1 : 2


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted([*VERBS, *LABORATORY]))
def test_every_verb_of_the_installed_wheel_answers_help(installed, verb, tmp_path):
    assert "Usage" in run(installed / "multiref", verb, "--help", cwd=tmp_path)


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    sdist = build("sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "again", tree, cwd=tmp_path)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
