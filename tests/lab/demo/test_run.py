"""A whole demo in miniature. Nothing is learned in a dozen steps; every identity holds all the same."""

import dataclasses
import json
from pathlib import Path

import pytest

from multiref.errors import OutputError
from multiref.report import Measure
from multiref_lab.demo import page, tables
from multiref_lab.demo.preferences import PairLaw
from multiref_lab.demo.run import Findings, run
from multiref_lab.demo.settings import EXACT, FULL
from tests.lab.conftest import TINY
from tests.report.test_page import read

SETTINGS = dataclasses.replace(
    FULL,
    seeds=2,
    law=PairLaw(prompts=12, pairs_per_prompt=2),
    epochs=1,
    pairs_per_step=8,
    held_out_prompts=6,
    curve_points=3,
    world=TINY,
)


class Told:
    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.steps: list[str] = []

    def phase(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def progress(self, what: str, done: int, of: int) -> None:
        assert 0 < done <= of
        self.steps.append(what)


@pytest.fixture(scope="module")
def done(cache, tmp_path_factory) -> tuple[Findings, Path, Told]:  # type: ignore[no-untyped-def]
    output, told = tmp_path_factory.mktemp("demo"), Told()
    findings = run(SETTINGS, output, cache, told)
    page.write(findings, output)
    return findings, output, told


def everything(findings: Findings) -> list[dict[str, float]]:
    return (
        [r["numbers"] for runs in findings.runs.values() for r in runs]
        + list(findings.given.values())
        + list(findings.ends.values())
    )


def test_regret_is_beta_times_kl_in_every_number_reported(done) -> None:  # type: ignore[no-untyped-def]
    """J* − J(π) = β KL(π‖π*) for whatever policy: trained, given, or the optimum of another rule."""
    findings, *_ = done
    best = findings.given["π* (exact optimum)"]["J"]
    for numbers in everything(findings):
        assert best - numbers["J"] == pytest.approx(SETTINGS.beta * numbers["gap"], abs=1e-10)
        assert numbers["J"] == pytest.approx(numbers["reward"] - SETTINGS.beta * numbers["price"], abs=1e-10)
        assert numbers["price"] == pytest.approx(0.7 * numbers["kl/adder"] + 0.3 * numbers["kl/picker"], abs=1e-10)
        assert numbers["price"] >= findings.disagreement - 1e-12
        assert numbers["gap"] > -1e-12


def test_own_numbers_agree_with_the_common_ones_where_the_rules_agree(done) -> None:  # type: ignore[no-untyped-def]
    """The exact rule's own objective is the yardstick; 'adder alone' asks for E[r] − β KL(π‖adder)."""
    findings, *_ = done
    for trained in findings.runs[EXACT]:
        assert trained["numbers"]["own/J"] == pytest.approx(trained["numbers"]["J"], abs=1e-12)
        assert trained["numbers"]["own/regret"] == pytest.approx(SETTINGS.beta * trained["numbers"]["gap"], abs=1e-10)
    for name in ("adder", "picker"):
        for trained in findings.runs[f"{name} alone"]:
            own = trained["numbers"]["reward"] - SETTINGS.beta * trained["numbers"][f"kl/{name}"]
            assert trained["numbers"]["own/J"] == pytest.approx(own, abs=1e-10)
    assert findings.ends[EXACT]["gap"] == pytest.approx(0, abs=1e-10)


def test_every_run_starts_at_the_base_model_and_seeds_differ(done) -> None:  # type: ignore[no-untyped-def]
    findings, *_ = done
    starts = {round(r["curve"][0]["gap"], 12) for runs in findings.runs.values() for r in runs}
    assert starts == {round(findings.given["base model, untouched"]["gap"], 12)}, "all six held-out prompts are on the stretch"
    assert [point["pairs"] for point in findings.runs[EXACT][0]["curve"]] == [0, 8, 16, 24]
    for runs in findings.runs.values():
        assert runs[0]["numbers"]["J"] != runs[1]["numbers"]["J"]
        assert runs[0]["curve"][-1]["gap"] == pytest.approx(runs[0]["numbers"]["gap"], abs=1e-10), (
            "the last point is the finished policy"
        )


def test_a_second_run_reuses_what_is_finished_and_remakes_what_is_not(done, cache) -> None:  # type: ignore[no-untyped-def]
    findings, output, _ = done
    again = Told()
    assert run(SETTINGS, output, cache, again) == findings and again.steps == []
    lost, broken, *_ = sorted((output / "records").glob("*seed1-*.json"))
    lost.unlink()
    broken.write_text(broken.read_text()[:50])
    repaired = Told()
    redone = run(SETTINGS, output, cache, repaired)
    assert len(set(repaired.steps)) == 2
    for rule, runs in redone.runs.items():
        for old, new in zip(findings.runs[rule], runs, strict=True):
            assert new["numbers"] == pytest.approx(old["numbers"], abs=1e-4)


@pytest.mark.slow
def test_other_settings_leave_other_records_and_the_number_of_seeds_does_not_matter(done, cache):
    """A second number of seeds trains nothing that is there; another β trains everything."""
    _, output, _ = done
    told, before = Told(), set((output / "records").iterdir())
    run(dataclasses.replace(SETTINGS, seeds=1), output, cache, told)
    assert told.steps == []
    run(dataclasses.replace(SETTINGS, seeds=1, beta=1.0), output, cache, told)
    assert len(set(told.steps)) == len(set((output / "records").iterdir()) - before) == 5


def test_page_and_tables_say_what_was_measured(done) -> None:  # type: ignore[no-untyped-def]
    """The page parses; its tables hold the means and errors of the stored numbers, row by row; it embeds the four figures."""
    findings, output, _ = done
    reader = read((output / "report.html").read_text(encoding="utf-8"))
    rows = {row[0]: row for row in reader.rows if row}
    for rule, runs in findings.runs.items():
        found = Measure.of([r["numbers"]["J"] for r in runs])
        common, *others = [row for row in reader.rows if row and row[0] == rule and len(row) > 3]
        assert common[1] == found.text() and "±" in common[1]
        formula = next(each.formula for each in findings.rules if each.name == rule)
        (own,) = [row for row in others if row[1] == formula]
        assert own[5] == Measure(findings.ends[rule]["J"]).text()
    assert rows["π* (exact optimum)"][2] == "0.000"
    assert len([tag for tag, _ in reader.tags if tag == "svg"]) == 4
    assert sorted(path.suffix for path in (output / "figures").iterdir()) == [".png"] * 4 + [".svg"] * 4
    text = " ".join("".join(reader.text).split())
    for needed in (
        "J(π) = E_π[r(x, y)] − β Σ_k w_k KL(π(·|x) ‖ π_k(·|x))",
        "β = 2",
        "A seed changes prompts",
        "transformers",
        "held_out_prompts",
    ):
        assert needed in text
    assert tables.answer(findings) in text


def test_rules_are_said_to_be_lower_higher_or_not_told_apart(done) -> None:  # type: ignore[no-untyped-def]
    """Numbers made up: +1, −1, and ±1 by seed, against the exact rule."""
    findings, *_ = done
    moves = {
        "forward KL, both": (1.0, 1.01),
        "MRPO's pool, both": (-1.0, -1.01),
        "adder alone": (1.0, -1.0),
        "picker alone": (0.0, 0.0),
    }
    runs = {EXACT: findings.runs[EXACT]}
    for rule, shifts in moves.items():
        runs[rule] = [
            r | {"numbers": r["numbers"] | {"J": e["numbers"]["J"] + shift}}
            for r, e, shift in zip(findings.runs[rule], findings.runs[EXACT], shifts, strict=True)
        ]
    moved = dataclasses.replace(findings, runs=runs)
    higher, lower, *noise = (row[1:3] for row in tables.against_table(moved).rows)
    assert higher == ["+1.005 ± 0.005", "HIGHER"] and lower == ["−1.005 ± 0.005", "lower"]
    assert [told for _, told in noise] == ["no: within noise"] * 2
    assert "the nearest other rule (forward KL, both) ends HIGHER in J by 1.005 ± 0.005." in tables.answer(moved)


def test_an_output_that_cannot_be_written_is_refused_before_any_work(cache, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("x")
    told = Told()
    with pytest.raises(OutputError, match="cannot write into"):
        run(SETTINGS, tmp_path / "file" / "demo", cache, told)
    assert told.sentences == []


def test_results_are_plain_json(done) -> None:  # type: ignore[no-untyped-def]
    _, output, _ = done
    files = list((output / "records").iterdir())
    assert len(files) >= 10 and all(path.suffix == ".json" for path in files)
    loaded = json.loads(files[0].read_text(encoding="utf-8"))
    assert loaded.keys() == {"cell", "found", "seconds", "sum"} and loaded["found"].keys() == {"numbers", "curve"}
