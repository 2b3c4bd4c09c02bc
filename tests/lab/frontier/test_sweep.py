"""The sweep around the rules: which cells, what is kept, what is measured, what is said."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import multiref as mr
from multiref.cli import app
from multiref.errors import MultirefError
from multiref.evaluation import inspect
from multiref_lab.demo.yardstick import Answers, Yardstick
from multiref_lab.experiment import Record
from multiref_lab.frontier import findings, tables
from multiref_lab.frontier.ends import multi_dpo_optimum
from multiref_lab.frontier.findings import Findings
from multiref_lab.frontier.generated import GeneratedBench
from multiref_lab.frontier.grid import Cell, cells
from multiref_lab.frontier.settings import FrontierSettings, Generated, Stories
from multiref_lab.frontier.sweep import Training, sweep
from tests.lab.frontier.conftest import TASK, Told

STORIES = Stories("policy", {"a": "a", "b": "b"}, "stories", "lexicon")


def test_no_run_is_made_twice_and_single_references_do_not_depend_on_the_weight():
    """3 rules × 3 weights + 2 single references, 5 seeds: 55 runs, the ends of all three curves among them once."""
    offline = FrontierSettings(generated=Generated())
    assert len(cells(offline)) == len(set(cells(offline))) == 55
    assert sum(cell.rule == "single" for cell in cells(offline)) == 10
    online = cells(FrontierSettings(training="online", generated=Generated()))
    assert len(online) == 65  # the authors' recipe is trained at its ends too
    assert {cell.weight for cell in online if cell.rule == "authors"} == {0.0, 0.25, 0.5, 0.75, 1.0}
    inside = FrontierSettings(weights=[0.5], generated=Generated())
    assert {cell.rule for cell in cells(inside) if cell.weight in (0, 1)} == {"single"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weights": [1.2]}, "weights.0\\n.*less than or equal to 1"),
        ({"weights": [0.5, 0.5]}, "twice"),
        ({"rules": ["mrpo"]}, "expected exact among them"),
        ({"rules": ["exact", "authors"]}, "multi-dpo"),
        ({"training": "both"}, "'offline' or 'online'"),
        ({"seeds": 0}, "greater than or equal to 1"),
        ({"generated": None}, "no task"),
        ({"training": "online", "stories": STORIES}, "offline only"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        FrontierSettings(**{"generated": Generated(), **given})


def test_stories_have_two_references():
    with pytest.raises(ValueError, match="at least 2 items"):
        Stories("policy", {"a": "a"}, "stories", "lexicon")


# ---- what is measured ----


def test_numbers_of_a_policy_give_j_at_every_weight(bench, settings):
    """J is linear in α: from reward and two KL the findings give what `exact.value` computes from all 529 probabilities,
    for any policy and weight."""
    log_policy = torch.randn(
        bench.answers.reward.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).log_softmax(-1)
    numbers = bench.measure(log_policy)
    every = cells(settings)
    found = Findings(Training(settings), tuple(Record(cell, numbers, 0.0) for cell in every))
    plane = found.planes[0]
    for weight in (0.0, 0.3, 1.0):
        value = mr.exact.value(
            log_policy, bench.answers.reward, bench.answers.ref_logps, mr.ReverseKL((weight, 1 - weight)), beta=plane.beta
        )
        assert found.trained(plane, "mrpo", 0.5).values("J", at=weight)[0] == pytest.approx(float(value.mean()), abs=1e-10)
    assert numbers["entropy"] == pytest.approx(float(-(log_policy.exp() * log_policy).sum(1).mean()))


def test_the_reward_missed_is_that_of_the_demos_bisection(bench, settings, cache):
    """The curve of exact optima, interpolated, against `Yardstick.best_reward`, which solves for the β of that price;
    at π* itself nothing is missed."""
    asked = mr.ReverseKL((0.3, 0.7))
    yardstick = Yardstick(Answers.of(bench.world, bench.problems, scale=TASK.scale), asked, 1.0)
    mixed = torch.logaddexp(yardstick.optimum.log_policy, bench.answers.ref_logps[0]) - math.log(2)
    for log_policy, expected in ((yardstick.optimum.log_policy, 0.0), (mixed, None)):
        numbers = bench.measure(log_policy)
        found = Findings(Training(settings, cache), tuple(Record(cell, numbers, 0.0) for cell in cells(settings)))
        (missed, _) = found.trained(found.planes[0], "exact", 0.5).missed(at=0.3)
        price = 0.3 * numbers["kl/adder"] + 0.7 * numbers["kl/picker"]
        best = yardstick.best_reward(price) - numbers["reward"] if expected is None else expected
        assert missed == pytest.approx(best, abs=1e-3) and (expected == 0 or missed > 0.01)


def test_distinct_answers_are_the_expected_number_among_eight(bench):
    """20,000 draws of eight: the mean number of different answers is within 5 standard errors of the formula."""
    logits = torch.full(bench.answers.reward.shape, -torch.inf, dtype=torch.float64)
    logits[:, :5] = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0], dtype=torch.float64)
    log_policy = logits.log_softmax(-1)
    draws = torch.multinomial(
        log_policy[0].exp(), 160_000, replacement=True, generator=torch.Generator().manual_seed(0)
    ).reshape(-1, 8)
    counts = torch.stack([(draws == answer).any(1) for answer in range(5)]).sum(0).double()
    assert abs(bench.measure(log_policy)["distinct"] - float(counts.mean())) < 5 * float(counts.std()) / 20_000**0.5


def test_pairs_are_measured_by_the_loss_that_trains(bench):
    """The loss on enumerated pairs equals −log σ(β Δ) computed from the texts, for the untouched base model, at α = 0.3."""
    shared = bench.shared(64, 0)
    found = shared.train.measure(bench.world.base, Cell("generated", "offline", "exact", 0.3, 1.0, 64, 0), "train")
    losses, margins, problems = [], [], shared.train.problems
    laws, ref_laws = bench.world.logps(bench.world.base, problems), bench.world.ref_logps(problems)
    for pair in shared.pairs:
        (place,) = [i for i, problem in enumerate(problems) if problem.prompt == pair.prompt]
        at = [bench.world.answers.index(side) for side in (pair.chosen, pair.rejected)]
        policy, refs = laws[place, at], ref_laws[:, place, at]
        score = policy - (0.3 * refs[0] + 0.7 * refs[1])
        margins.append(float(score[0] - score[1]))
        losses.append(float(-torch.nn.functional.logsigmoid(score[0] - score[1])))
    assert found["loss/train"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert found["margin/train"] == pytest.approx(sum(margins) / len(margins), abs=1e-6)
    assert found["ranked/train"] == pytest.approx(sum(margin > 0 for margin in margins) / len(margins))
    train, test = ({problem.prompt for problem in part.problems} for part in (shared.train, shared.test))
    assert train != test and len(test) > len(train)


def test_the_inspection_shown_is_that_of_the_first_seeds_pairs(bench):
    first, second = (bench.shared(64, seed) for seed in (0, 1))
    shown, *others = (
        str(found.verdict) for found in (bench.inspection(64), *(inspect(s.pairs, s.scores) for s in (first, second)))
    )
    assert shown == others[0] != others[1]


def test_ends_are_means_over_all_prompts_but_multi_dpos(bench, settings, cache, monkeypatch):
    """Multi-DPO's own optimum is found on the first `FEW` prompts alone; every other end is closed and takes them all."""
    monkeypatch.setattr(findings, "FEW", 2)
    numbers = bench.measure(bench.answers.ref_logps[0])
    found = Findings(Training(settings, cache), tuple(Record(cell, numbers, 0.0) for cell in cells(settings)))
    (plane,), answers, weights = found.planes, bench.answers, (0.5, 0.5)
    ends = {"exact": mr.ReverseKL(weights), "mrpo": mr.PooledKL(weights, order=-1)}
    laws = {rule: mr.exact.solve(answers.reward, answers.ref_logps, each, beta=1.0).policy for rule, each in ends.items()}
    laws["multi-dpo"] = multi_dpo_optimum(answers.reward[:2], answers.ref_logps[:, :2], weights, beta=1.0).exp()
    for rule, law in laws.items():
        expected = float((law * answers.reward[: len(law)]).sum(-1).mean())
        assert len(law) == (2 if rule == "multi-dpo" else 6)
        assert found.end(plane, rule, 0.5).reward == pytest.approx(expected, abs=1e-9), rule


# ---- resuming ----


@pytest.mark.slow
def test_a_cut_sweep_goes_on_and_ends_with_the_same_records(settings, cache, tmp_path, monkeypatch):
    """Killed in its fifth run, then damaged: the second call trains what is missing or broken, nothing else,
    and the numbers are those of an uncut sweep."""
    whole = sweep(Training(settings, cache), tmp_path / "whole", Told(), workers=1)
    train, made = GeneratedBench.train, []

    def counted(bench, cell):
        if len(made) == 4 and not (tmp_path / "cut" / "again").exists():
            raise KeyboardInterrupt
        made.append(cell)
        return train(bench, cell)

    monkeypatch.setattr(GeneratedBench, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(Training(settings, cache), tmp_path / "cut", Told(), workers=1)
    files = sorted((tmp_path / "cut" / "records").glob("*.json"))
    assert len(files) == 4
    files[0].write_text(files[0].read_text()[:50])
    (tmp_path / "cut" / "again").mkdir()
    made.clear()
    told = Told()
    again = sweep(Training(settings, cache), tmp_path / "cut", told, workers=1)
    assert len(made) == 10 - 4 + 1 and told.steps[-1] == ("runs", 10, 10)
    assert [(r.cell, r.found) for r in again] == [(r.cell, r.found) for r in whole]
    made.clear()
    sweep(Training(settings, cache), tmp_path / "cut", Told(), workers=1)
    assert not made
    other = dataclasses.replace(settings, seeds=1, generated=dataclasses.replace(TASK, scale=1.0))
    sweep(Training(other, cache), tmp_path / "cut", Told(), workers=1)
    assert len(made) == 5  # other settings, other records


@pytest.mark.slow
def test_two_workers_leave_the_records_of_one(settings, cache, tmp_path):
    one, two = (sweep(Training(settings, cache), tmp_path / str(n), Told(), workers=n) for n in (1, 2))
    assert [(r.cell, r.found) for r in one] == [(r.cell, r.found) for r in two]


# ---- what is said ----


def made_up(settings: FrontierSettings, j: dict[str, list[float]]) -> Findings:
    """Findings with J = reward of these values (KL zero), by rule and seed."""
    records = []
    for cell in cells(settings):
        numbers = {"reward": j[cell.rule][cell.seed], "kl/adder": 0.0, "kl/picker": 0.0, "entropy": 1.0, "distinct": 2.0}
        records.append(Record(cell, numbers, 1.0))
    return Findings(Training(settings), tuple(records))


def test_a_rival_that_wins_is_said_to_win(settings, bench, monkeypatch):
    monkeypatch.setattr(Findings, "enumerated", lambda self, task: False)
    found = made_up(settings, {"exact": [1.0, 1.1], "mrpo": [1.2, 1.3], "multi-dpo": [0.5, 0.6], "single": [0.0, 3.0]})
    said = tables.sentences(found, found.planes[0])
    assert "MRPO's pool: J_α is HIGHER than the exact rule's (+0.200 ± 0.000)" in said[0]
    assert "Multi-DPO: J_α is lower than the exact rule's (−0.500 ± 0.000)" in said[1]
    assert "adder alone: J_α is not told apart" in said[2]
    assert "Of 4 comparisons" in (told := tables.answer(found)) and "lower in 1, higher in 1 and not told apart in 2" in told


def config(folder: Path, **more: object) -> Path:
    path = folder / "sweep.yaml"
    task = {**dataclasses.asdict(TASK), **more}
    path.write_text(json.dumps({"seeds": 2, "weights": [0.5], "generated": task, "full": {"weights": [0.25, 0.5]}}))
    return path


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["frontier", *map(str, arguments)], env={"MULTIREF_SHARED": ""})


@pytest.mark.slow
def test_the_command_leaves_a_page_figures_and_numbers(cache, tmp_path):
    options = ("--config", config(tmp_path), "--cache", cache, "--output", tmp_path / "out", "--workers", 1)
    result = invoke(*options, "--set", "seeds=1")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Multi-DPO" in text and "multiref inspect" in text and "<script" not in text
    (plane,) = json.loads((tmp_path / "out" / "results.json").read_text())["planes"]
    rows = {(row["rule"], row["weight"]): row for row in plane["rows"]}
    assert len(rows) == 9 and rows["exact", 0.5]["best_J"] >= rows["exact", 0.5]["seeds"]["J"][0]
    assert rows["mrpo", 1.0]["seeds"] == rows["exact", 1.0]["seeds"]
    assert len(list((tmp_path / "out" / "figures").glob("*.png"))) == 4
    full = invoke(*options, "--set", "seeds=1", "--full")
    assert full.exit_code == 0 and len(list((tmp_path / "out" / "records").glob("*.json"))) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("weigths=[0.5]", "did you mean `weights`"),
        ("generated.beta=2", "generated.beta"),
        ("seeds=many", "--set seeds=…: seeds: found"),
        ("seeds=0", "seeds: found 0 (number), expected at least 1"),
        ("weights=[1.2]", "expected at most 1"),
        ("rules=[mrpo]", "exact"),
    ],
)
def test_mistakes_in_the_file_are_named(change, words, tmp_path):
    result = invoke("--config", config(tmp_path), "--set", change)
    assert result.exit_code == 2 and words in result.output


def test_an_interrupt_is_one_line_and_exit_code_130(cache, tmp_path, monkeypatch):
    """What becomes of workers is the engine's business (tests/lab/test_experiment.py)."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("multiref_lab.experiment.Experiment.run", interrupt)
    result = invoke("--config", config(tmp_path), "--cache", cache, "--output", tmp_path / "out")
    *waiting, last = result.stderr.splitlines()
    assert result.exit_code == 130 and last.startswith("Interrupted.")
    assert all(line.endswith(" so far") for line in waiting), "a busy machine says how long the verb has worked"


def test_full_without_a_full_grid_and_missing_models_are_named(tmp_path):
    path = tmp_path / "no.yaml"
    path.write_text("generated: {}\n")
    assert "has no `full:`" in invoke("--config", path, "--full").output
    path.write_text("stories: {policy: nowhere, references: {a: a, b: b}, stories: s, lexicon: l}\n")
    result = invoke("--config", path, "--output", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 2 and "stories.references: 'a'" in result.output and "--shared" in result.output
    path.write_text(path.read_text() + "generated: {}\n")
    result = invoke("--config", path, "--output", tmp_path / "out", "--cache", tmp_path / "cache", "--workers", 1)
    assert result.exit_code == 2 and "stories.references: 'a'" in result.output and not (tmp_path / "cache").exists()


def test_places_of_what_no_task_reads_are_refused(tmp_path):
    """A folder that the environment names for every sweep is no mistake."""
    path, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    path.write_text("stories: {policy: nowhere, references: {a: a, b: b}, stories: s, lexicon: l}\n")
    result = invoke("--config", path, "--output", tmp_path / "out", "--cache", tmp_path / "c")
    assert result.exit_code == 2 and "--cache: no task of" in result.output
    other.write_text("generated: {}\n")
    result = invoke("--config", other, "--output", tmp_path / "out", "--shared", tmp_path / "c")
    assert result.exit_code == 2 and "--shared: no task of" in result.output
    (tmp_path / "file").write_text("")
    given = ["frontier", "--config", str(other), "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "file" / "c")]
    result = CliRunner().invoke(app, given, env={"MULTIREF_SHARED": str(tmp_path)})
    assert result.exit_code == 2 and "cannot write" in result.output and "--shared" not in result.output


def test_help_has_an_example_and_the_recipes_are_settings(monkeypatch):
    assert "multiref frontier --config recipes/figure1-small.yaml" in " ".join(invoke("--help").output.split())
    from multiref_lab.cli.frontier import read_settings

    folder = Path(__file__).parents[3] / "recipes"
    one, two, three = (read_settings(folder / f"figure{name}-small.yaml", False, []) for name in ("1", "2", "-overfitting"))
    assert (len(cells(one)), len(cells(two)), len(cells(three))) == (55, 65, 100)
    assert set(read_settings(folder / "figure1-small.yaml", True, []).tasks) == {"generated", "stories"}
    assert len(cells(read_settings(folder / "figure2-small.yaml", True, []))) == 5 * 3 * (9 * 2 + 11 + 2)


def test_findings_of_a_page_are_written_whole_or_not_at_all(settings, cache, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MultirefError, match="cannot write"):
        sweep(Training(settings, cache), tmp_path / "file", Told(), workers=1)
