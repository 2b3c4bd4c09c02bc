"""What a type checker and an editor see of `import multiref as mr`: real types, from the stubs that the wheel brings.

A line that must be an error carries `type: ignore`; strict mypy complains of an ignore that ignores nothing, so a name that has
silently become `Any` fails the test as well as one that has gone.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_packaging import installed, wheel  # noqa: F401  (fixtures)

ROOT = Path(__file__).parent.parent

SCRIPT = """
import torch

import multiref as mr

refs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).double().log()
rule = mr.ReverseKL([0.25, 0.75])
best: mr.exact.Solution = mr.exact.solve(torch.zeros(3).double(), refs, rule, beta=0.5)
least: torch.Tensor = mr.divergences.disagreement(refs, rule.weights)
pairs: list[mr.data.Pair] = mr.data.read_pairs("pairs.jsonl", limit=10)
scores: mr.references.SequenceScores = mr.References({"base": "a", "math": "b"}).score(pairs, store="scores/")
found: mr.evaluation.Inspection = mr.evaluation.inspect(pairs, scores)
limit: float = mr.bounds.reverse_kl_suboptimality(samples=1e4, beta=0.1, coverage=4, reward_max=1, class_size=9).value
mr.report.write_page("page.html", "A page", mr.report.Prose(str(found.verdict), f"{limit:g}"))

best.no_such_name  # type: ignore[attr-defined]
mr.no_such_room  # type: ignore[attr-defined]
mr.ReverseKL(weight=[0.5, 0.5])  # type: ignore[call-arg]
mr.References({"base": "a"}, no_such_argument=1)  # type: ignore[call-arg]
mr.bounds.no_such_bound(samples=1e4)  # type: ignore[attr-defined]
mr.report.write_page(1, "A page")  # type: ignore[arg-type]
"""

# what stands on transformers, whose types only the slow test reads
TRAINING = """
trainer.no_such_name  # type: ignore[attr-defined]
mr.training.PreferenceTrainer(policy.model, regularizer=rule, beta=0.1, scores=scores, other=1)  # type: ignore[call-arg]
"""


def examples(page: Path) -> str:
    """The Python examples of a page, one after another."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


def check(source: str, folder: Path, *options: str | Path, **environment: str) -> None:
    """mypy --strict on this text, as a user without any configuration has it."""
    (folder / "script.py").write_text(source, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--cache-dir",
        folder / "cache",
        *options,
        "script.py",
    ]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_front_door_has_types(tmp_path):
    """Without the packages that we depend on (seconds instead of a minute), so only our own names are checked."""
    check(
        SCRIPT,
        tmp_path,
        "--no-site-packages",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        MYPYPATH=str(ROOT / "src"),
    )


@pytest.mark.slow
def test_a_users_script_and_the_readme_are_strictly_typed_against_the_wheel(installed, tmp_path):  # noqa: F811
    check(SCRIPT + examples(ROOT / "README.md") + TRAINING, tmp_path, "--python-executable", installed / "python")
