"""The experiment as a folder: what is there is not measured again, half a record is; the page; a real model's features;
the command; refusals."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from multiref.cli import app
from multiref.errors import ArgumentError, ConfigError, DataError, OutputError
from multiref.report import Measure
from multiref.report.figures import Plot, canvas
from multiref_lab import stability
from multiref_lab.stability import (
    Axis,
    Cell,
    Given,
    LinearSettings,
    Measuring,
    axes,
    experiment,
    measure_linear,
    read_prompts,
    write,
)
from multiref_lab.stability import page as experiment_page
from multiref_lab.stability.sample import draw
from tests.report.test_page import read

SMALL = LinearSettings(samples=24, dimension=2, seeds=3, completions=4, replaced=2, left_out=2, fresh=6, ascent_steps=4)


THREE = tuple(replace(SMALL, samples=n) for n in (24, 48, 96))


def axis(world="linear", settings=THREE, name="samples"):
    return Axis(world, name, "preference pairs n", "samples", tuple(Cell(world, s) for s in settings))


def of(folder, *chosen, **given):
    return experiment(folder, chosen, Measuring(**given))


def test_a_killed_experiment_goes_on_where_it_stopped(tmp_path, monkeypatch):
    measured, original = [], Measuring.__call__

    def counting(self, cell):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(cell.name)
        return original(self, cell)

    monkeypatch.setattr(Measuring, "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        of(tmp_path, axis()).run()
    monkeypatch.setattr(Measuring, "__call__", original)
    cut = of(tmp_path, axis())
    assert cut.missing == [axis().cells[2]]
    path = cut.path(axis().cells[0])
    before = path.read_bytes()
    cut.run()
    assert not cut.missing and path.read_bytes() == before
    path.write_text(path.read_text()[:100], encoding="utf-8")  # half a record
    assert len(of(tmp_path, axis()).missing) == 1
    cut.run()
    again = json.loads(path.read_text())
    assert again["found"] == json.loads(before)["found"]  # the same settings measure the same numbers
    other = axis(settings=(replace(SMALL, seed=1),))
    assert len(of(tmp_path, other).missing) == 1  # records of other settings are not taken for these
    features = axis("features")
    assert len({of(tmp_path, features, source=source).path(features.cells[0]) for source in ("", "models", "others")}) == 3
    assert not list(tmp_path.rglob(".*"))


def test_two_axes_share_a_cell(tmp_path):
    assert len(of(tmp_path, axis(), axis(name="twin")).cells) == 3
    base = [cell for a in axes(["linear", "features", "transformer"]) for cell in a.cells]
    assert len(set(base)) == len({cell.name for cell in base})  # a name stands for one cell


def test_sizes_are_doubled_and_shares_rise_from_none():
    """On every axis; where the dimension grows with the data it is a sixteenth of it."""
    for each in axes(["linear", "features", "transformer"]):
        if each.logarithmic:
            assert [after / before for before, after in itertools.pairwise(each.x)] == [2.0] * (len(each.x) - 1), each.title
        else:
            steps = [after - before for before, after in itertools.pairwise(each.x)]
            assert each.x[0] == 0 and min(steps) > 0 and max(steps) <= 2 * min(steps) + 1e-9, each.title
        if each.name == "proportional":
            assert [cell.settings.samples / cell.settings.dimension for cell in each.cells] == [16.0] * len(each.cells)


def test_the_page_says_what_the_records_say(tmp_path, monkeypatch):
    """All figures are drawn by one function; three of them are looked at."""
    pictured, drawn = ("replace-tv", "replace-value", "regret"), experiment_page._picture

    def some(axis, lines, ylabel, stem, **kind):
        return drawn(axis, lines, ylabel, stem, **kind) if stem.name.endswith(pictured) else ()

    monkeypatch.setattr(experiment_page, "_picture", some)
    records = of(tmp_path, axis()).run()
    page = write([axis()], records, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    entries = {(e["method"], e["measure"]): e for e in results["axes"]}
    expected = Measure.of(records[axis().cells[1]].found["ppo/2"]["replace/tv"])
    found = entries["ppo/2", "replace/tv"]
    assert found["x"] == [24, 48, 96] and found["mean"][1] == expected.mean and found["error"][1] == expected.error
    first = Measure.of(records[axis().cells[0]].found["ppo/2"]["replace/tv"])
    reader = read(page.read_text(encoding="utf-8"))
    (row,) = [row for row in reader.rows if row[:2] == ["ppo/2", "replace/tv"]]
    assert row[2] == f"{first.mean:.3g} ± {first.error:.1g}" and row[4].startswith(f"{found['slope'][0]:+.2f} [")
    for name in pictured:
        assert (tmp_path / "figures" / f"linear-samples-{name}.png").stat().st_size > 5000


def test_given_features_are_dealt_and_the_part_outside_the_class_is_outside():
    generator = torch.Generator().manual_seed(0)
    given = Given(
        torch.randn(120, 4, 5, generator=generator, dtype=torch.float64),
        torch.randn(2, 120, 4, generator=generator, dtype=torch.float64).log_softmax(-1),
    )
    sample = draw(replace(SMALL, curved=0.4), given)
    assert sample.prompts.features.shape == (3, 26, 4, 2) and sample.fresh.features.shape == (3, 6, 4, 2)
    seen = torch.cat((sample.prompts.features, sample.fresh.features), 1)[0, :, 0, 0]
    assert len(seen.unique()) == 32  # every prompt once: fresh ones are fresh
    whole = draw(replace(SMALL, samples=100, curved=1.0), given)
    x, y = whole.prompts.features.flatten(1, 2)[0], whole.prompts.reward.flatten(1)[0]
    fitted = x @ torch.linalg.lstsq(x, y).solution
    assert fitted.var() < 0.1 * y.var()
    inside = draw(replace(SMALL, samples=100), given)
    x, y = inside.prompts.features.flatten(1, 2)[0], inside.prompts.reward.flatten(1)[0]
    torch.testing.assert_close(x @ torch.linalg.lstsq(x, y).solution, y, rtol=0, atol=1e-9)
    with pytest.raises(ArgumentError, match="232 different prompts are needed, found 120"):
        draw(replace(SMALL, samples=224), given)
    with pytest.raises(ArgumentError, match="all 5 directions"):
        draw(replace(SMALL, dimension=5, curved=0.5), given)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"samples": 0}, "samples: found 0"),
        ({"samples": 4}, "expected at least 5 samples"),
        ({"noise": 0.5}, r"noise: found 0\.5"),
        ({"noise": -0.1}, r"noise: found -0\.1"),
        ({"curved": 1.5}, r"curved: found 1\.5"),
        ({"beta": 0.0}, "beta: found 0"),
        ({"seeds": 0}, "seeds: found 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ArgumentError, match=words):
        measure_linear(replace(SMALL, **change))


def test_files_that_cannot_be_read_or_written_are_refused(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "a b c d"}\n{"prompt": "a b e"}\n{"text": "a b c f"}\n', encoding="utf-8")
    assert read_prompts(tmp_path / "texts.jsonl", 2, words=3) == ["a b c", "a b e"]
    with pytest.raises(DataError, match="found 2 different prompts, expected at least 3"):
        read_prompts(tmp_path / "texts.jsonl", 3, words=3)
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"texts\.jsonl:2"):
        read_prompts(tmp_path / "texts.jsonl", 1)
    (tmp_path / "texts.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"texts\.txt has none\.$"):
        read_prompts(tmp_path / "texts.txt", 1)
    with pytest.raises(ArgumentError, match="world: found 'moon'"):
        axes(["moon"])
    for world in ("linear", "features", "transformer"):
        with pytest.raises(ArgumentError, match="seeds: found 0"):
            axes([world], seeds=0)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot write"):
        of(tmp_path / "file", axis(settings=(SMALL,))).run()


def test_the_command_resumes_and_refuses(tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr("multiref_lab.stability.axes", lambda worlds, **_: [axis()])
    monkeypatch.setattr(Plot, "figure", lambda *_: canvas()[0])  # figures have their own test
    command = ["stability", "--world", "linear", "--out", str(tmp_path)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0 and "linear-samples (24 to 96)" in first.output and "3 cells, 0 of them" in first.output
    monkeypatch.setattr(Measuring, "__call__", None)  # would fail if called
    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0 and "3 cells, 3 of them" in second.output
    assert "multiref stability --world linear --seed 0" in (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = [text[text.index("linear-samples (24") : text.index("Figures:")] for text in (first.output, second.output)]
    assert shown[0] == shown[1]
    refused = CliRunner().invoke(app, ["stability", "--world", "features", "--out", str(tmp_path)])
    assert refused.exit_code == 2 and "found no --model, --reference, --prompts" in refused.stderr
    for own in (["--reference", "b"], ["--world", "linear", "--model", "a"]):  # of a world that is not asked for, or in part
        refused = CliRunner().invoke(app, ["stability", *own, "--out", str(tmp_path)])
        assert refused.exit_code == 2 and "--model" in refused.stderr
    help_text = CliRunner().invoke(app, ["stability", "--help"])
    assert help_text.exit_code == 0 and "Example" in help_text.output


@pytest.mark.slow
def test_the_quick_form_of_the_default_runs(tmp_path):
    ran = CliRunner().invoke(app, ["stability", "--quick", "--out", str(tmp_path)])
    assert ran.exit_code == 0 and (tmp_path / "results.json").exists()


@pytest.mark.shared
def test_real_models_give_a_world_and_it_is_kept(shared, tmp_path):
    """Reference laws are the models' own scores up to one temperature; a second call reads what the first made."""
    paths = [str(shared / "models" / name) for name in ("stories260K", "stories260K-shakespeare")]
    texts = shared / "data" / "tinystories" / "stories.jsonl"
    given, source = stability.kept_given(tmp_path, *paths, texts, 12)
    assert given.states.shape == (12, 8, 48) and given.ref_logps.shape == (2, 12, 8)
    torch.testing.assert_close(given.ref_logps.exp().sum(-1), torch.ones(2, 12, dtype=torch.float64))
    again, same = stability.kept_given(tmp_path, *paths, texts, 12)
    assert source == same and torch.equal(again.states, given.states) and len(list(tmp_path.glob("given-*"))) == 1
    spread = (given.ref_logps - given.ref_logps.mean(-1, keepdim=True)).square().mean()
    assert spread.item() == pytest.approx(1, abs=1e-9)
    found = measure_linear(replace(SMALL, samples=4, replaced=1, left_out=1), given)
    assert all(v > 0 for v in found["dpo/2"]["replace/tv"])


def test_the_page_opens_with_the_least_and_the_most_that_a_pair_moves():
    """At the axis's end, whatever the order of the methods; of the other measures nothing."""
    values = {"ppo/2": 0.25, "dpo/1": 0.0625, "rloo/1": 0.125}
    found = [experiment_page.Entry(method, "replace/tv", [[1.0], [moved]], None) for method, moved in values.items()]
    found.append(experiment_page.Entry("gibbs/1", "regret", [[1.0], [0.001]], None))
    said = experiment_page._answer(SimpleNamespace(label="preference pairs n", x=(64, 4096)), found)
    assert said.startswith("Where preference pairs n is 4,096, one replaced pair moves DPO (K = 1), by 0.0625 and")
    assert "reward model, PPO (K = 2), by 0.25 in total variation: the least and the most of 3 methods" in said
