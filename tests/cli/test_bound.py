"""`multiref bound`, as a user types it."""

import math
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from multiref import bounds
from multiref.cli import app
from multiref.references import References
from multiref.references.stored import read_scores
from tests.references.doubles import Companion, pairs


def run(*arguments: str):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


QUANTITIES = ("--beta", "0.1", "--coverage", "4", "--reward-max", "1", "--class-size", "2000")


def test_bound_prints_the_value_and_solves(tmp_path):
    shown = run("bound", "reverse-kl-suboptimality", "--samples", "1e5", *QUANTITIES)
    expected = bounds.reverse_kl_suboptimality(samples=1e5, beta=0.1, coverage=4, reward_max=1, class_size=2000)
    assert shown.output.strip() == str(expected)
    figure = tmp_path / "bound.png"
    solved = run(
        "bound", "reverse-kl-suboptimality", *QUANTITIES, "--solve", "samples", "--target", "0.01", "--plot", str(figure)
    )
    printed = float(re.search(r"samples = (\S+)", solved.output).group(1).replace(",", ""))
    closed = 8 * 10 * 4 * math.e**2 * math.log(2000 / 0.05) / 0.01
    assert printed == pytest.approx(closed, rel=1e-5) and figure.stat().st_size > 5_000


def test_a_figure_is_a_png(tmp_path):
    refused = run("bound", "reverse-kl-suboptimality", "--samples", "1e5", *QUANTITIES, "--plot", str(tmp_path / "x.txt"))
    assert refused.exit_code == 2 and "ends in .png" in refused.output and not (tmp_path / "x.txt").exists()


def test_bound_explains_itself():
    listing = run("bound").output
    assert all(name in listing for name in bounds.statements())
    usage = run("bound", "stability-theorem-3").output
    assert "--sigma-min-other" in usage and "(default 0.05)" in usage


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("no-such-bound",), "expected the name of a statement"),
        (("maximum-likelihood", "--sample", "3"), "--samples"),
        (("maximum-likelihood", "--samples", "many"), "expected a number"),
        (("maximum-likelihood", "--samples"), "expected a number"),
        (("maximum-likelihood", "--samples", "10", "--reward-max", "1", "--class-size", "9", "--delta", "1"), "delta"),
        (("maximum-likelihood", "--samples", "10"), "no reward_max"),
        (("maximum-likelihood", "--samples", "10", "--samples", "20"), "'--samples', expected one of"),
        (("maximum-likelihood", "--samples", "10", "--target", "1"), "--target: expected with --solve only"),
        (("maximum-likelihood", "--samples", "10", "--weights", "1"), "--weights: expected with --from-scores only"),
        (("maximum-likelihood", "--plot", "x.png"), "--plot: expected with a statement and its quantities only"),
        (
            ("maximum-likelihood", "--samples", "9", "--reward-max", "1", "--solve", "class-size", "--target", "1e-9"),
            "class_size moves the bound only between",
        ),
        (("maximum-likelihood", "--reward-max", "1", "--class-size", "9", "--solve", "samples"), "--target"),
        (("interpolation-optimum", "--radius", "6", "--feature-norm", "1", "--residual", "0.1", "--plot", "x.png"), "--plot"),
    ],
)
def test_bound_refuses_with_one_message(arguments, words):
    result = run("bound", *arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") <= 2


class Short(Companion):
    """Says of its likeliest completions that they did not fit."""

    def score(self, items):
        scored = super().score(items)
        return replace(scored, truncated=scored.logps > -2)


@pytest.mark.filterwarnings("ignore:.*did not fit")
def test_a_store_fills_in_disagreement_and_coverage(tmp_path):
    """Two doubles score 40 pairs; completions that one of them truncated are left out of the estimate."""
    References({"a": Short("a"), "b": Companion("b")}).score(pairs(40), store=tmp_path)
    scores = read_scores(tmp_path)
    whole = ~scores.truncated.any(0)
    assert 0 < whole.sum() < len(scores)
    estimate = bounds.coverage_from_scores(scores.logps[:, whole], (0.25, 0.75))
    quantities = ("--samples", "1e6", "--beta", "1", "--reward-max", "1", "--class-size", "100")
    shown = run("bound", "reverse-kl-from-references", "--from-scores", str(tmp_path), "--weights", "0.25,0.75", *quantities)
    assert str(estimate) in shown.output and "a, b" in shown.output
    expected = bounds.reverse_kl_from_references(
        samples=1e6, beta=1, reward_max=1, class_size=100, disagreement=estimate.disagreement
    )
    assert str(expected) in shown.output
    covered = run("bound", "reverse-kl-suboptimality", "--from-scores", str(tmp_path), "--weights", "0.25,0.75", *quantities)
    assert (
        str(
            bounds.reverse_kl_suboptimality(
                samples=1e6, beta=1, reward_max=1, class_size=100, coverage=estimate.coverage_at_least
            )
        )
        in covered.output
    )
    for other in ("forward-kl-6-2", "two-stage"):  # of the arithmetic pool; another letter
        asked = run("bound", other, "--from-scores", str(tmp_path), *quantities[:2], *quantities[4:])
        assert asked.exit_code == 2 and "coverage" in asked.stderr
    assert "a bound that is computed from it is optimistic" in covered.output
    refused = run("bound", "--from-scores", str(tmp_path), "--weights", "0.25;0.75")
    assert refused.exit_code == 2 and "--weights" in refused.stderr
    References({"c": Companion("c")}).score(pairs(4), store=tmp_path / "one")
    assert "-0" not in run("bound", "--from-scores", str(tmp_path / "one")).output
    nothing = run("bound", "--from-scores", str(tmp_path / "absent"))
    assert nothing.exit_code == 2 and "absent" in nothing.stderr
