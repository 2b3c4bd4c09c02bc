"""`multiref solve` prints the closed form, and refuses what is no problem."""

import json
import math

import pytest
from typer.testing import CliRunner

from multiref.cli import app

PROBLEM = {"reward": [0.0, 1.0, 0.0], "references": {"base": [0.7, 0.2, 0.1], "math": [0.1, 0.2, 0.7]}, "beta": 1.0}


def run(problem, *options):
    return CliRunner().invoke(app, ["solve", "-", *options], input=problem if isinstance(problem, str) else json.dumps(problem))


def test_the_geometric_pool_tilted():
    """√(0.7·0.1), 0.2 e, √(0.1·0.7), normalised; J* = log of their sum at β = 1."""
    masses = [math.sqrt(0.07), 0.2 * math.e, math.sqrt(0.07)]
    found = json.loads(run(PROBLEM, "--json").stdout)
    for log_p, mass in zip(found["log_policy"], masses):
        assert math.exp(log_p) == pytest.approx(mass / sum(masses), abs=1e-14)
    assert found["value"] == pytest.approx(math.log(sum(masses)), abs=1e-14)


def test_weights_by_name_put_all_on_one_reference():
    """At a vertex: the textbook tilt of that reference."""
    found = json.loads(run({**PROBLEM, "weights": {"math": 1.0}}, "--json").stdout)
    assert math.exp(found["log_policy"][1]) == pytest.approx(0.2 * math.e / (0.2 * math.e + 0.8), abs=1e-14)


def test_the_table_shows_the_optimum():
    shown = run({**PROBLEM, "regularizer": "ForwardKL"}).stdout
    assert "ForwardKL" in shown and "value J*" in shown


@pytest.mark.parametrize(
    "problem, says",
    [
        ("{", "not valid JSON"),
        ("[]", "reward and references"),
        ({**PROBLEM, "betta": 1}, "beta"),
        ({**PROBLEM, "regularizer": "KL"}, "ReverseKL"),
        ({**PROBLEM, "references": {"base": [0.7, 0.2, 0.2], "math": [0.1, 0.2, 0.7]}}, "'base'"),
        ({**PROBLEM, "references": {"base": [0.7, 0.3]}}, "'base'"),
        ({**PROBLEM, "weights": [0.5, 0.6]}, "weights"),
        ({**PROBLEM, "beta": 0}, "beta"),
        ({**PROBLEM, "beta": "big"}, "beta"),
        ({**PROBLEM, "weights": {"mth": 1.0}}, "'mth'"),
        ({**PROBLEM, "reward": ["a", 1, 2]}, "reward[0]: found 'a' (text), expected a number"),
        ({**PROBLEM, "references": [[0.7, "x", 0.3], [0.1, 0.2, 0.7]]}, "'x' (text), expected a number"),
        ({**PROBLEM, "beta": True}, "beta"),
        ({**PROBLEM, "references": {"a": [1.0, 0.0, 0.0], "b": [0.0, 0.0, 1.0]}}, "veto"),
    ],
)
def test_what_is_no_problem_is_one_message_and_exit_code_2(problem, says):
    result = run(problem)
    assert result.exit_code == 2
    assert says in result.stderr and "Error:" in result.stderr and "Traceback" not in result.stderr
