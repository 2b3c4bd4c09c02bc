"""`multiref sweep`: re-weighted samples of K policies follow the exact merge; runs that cannot be merged are refused."""

import json
import math

import pytest
import torch
import yaml
from typer.testing import CliRunner

import multiref as mr
from multiref.cli import app
from multiref.errors import ConfigError, EmptyPoolError
from multiref.evaluation import sample_each
from multiref.models import Generation, LanguageModel
from multiref.runs.sweeping import Samples, SweepSettings, draw_samples, weight_grid
from tests.conftest import make_llama


def test_the_grid_has_its_ends():
    assert weight_grid(2, 3) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    assert weight_grid(3, 9)[:3] == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]


@pytest.fixture
def runs(tmp_path, tiny_tokenizer):
    """Two finished runs as `multiref train` leaves them, as far as a sweep reads them."""
    for seed, name in enumerate(("one", "two")):
        folder = tmp_path / name
        make_llama(len(tiny_tokenizer), seed=seed, std=0.1).save_pretrained(folder / "model")
        tiny_tokenizer.save_pretrained(folder / "model")
        reference = {"name": name, "model": "m", "weight": None}
        config = {
            "format": 2,
            "task": "preference",
            "references": [reference],
            "beta": 0.1,
            "data": {"path": "p"},
            "regularizer": {"kind": "ReverseKL"},
            "objective": {"kind": "preference"},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "the cat", "chosen": " sat", "rejected": " on"}) + "\n")
    return tmp_path


def test_a_reward_sees_what_is_written_behind_the_prompt(runs, tiny_tokenizer):
    """The completions' texts as every other verb has them: with the space that a decoder drops where a text begins."""
    model, seen = LanguageModel(make_llama(len(tiny_tokenizer), std=0.1), tiny_tokenizer, "one"), []

    def look(prompts, completions):
        seen.extend(completions)
        return [0.0] * len(completions)

    settings = SweepSettings(samples=40, max_new_tokens=3)
    draw_samples(["one", "two"], [model, model], [{"prompt": "the cat"}], settings, look)
    drawn = [sample_each(model, ["the cat"], Generation(3), group=40, seed=seed) for seed in (0, 104_729)]
    assert seen == [text for each in drawn for text in each[0].completions] and any(text[:1] == " " for text in seen)


def invoke(folder, *options):
    return CliRunner().invoke(app, ["sweep", *(str(folder / n) for n in ("one", "two")), "--prompts",
        str(folder / "pairs.jsonl"), "--out", str(folder / "out"), *options])  # fmt: skip


def test_a_sweep_writes_its_curve(runs):
    result = invoke(runs, "--points", "3", "--samples", "6", "--max-new-tokens", "5")
    assert result.exit_code == 0, result.output
    points = json.loads((runs / "out" / "sweep.json").read_text())["points"]
    assert [p["weights"]["one"] for p in points] == [0.0, 0.5, 1.0]
    assert all(0.999 <= p["ess"] <= 12.001 and 0.999 <= p["tokens"] <= 5.001 for p in points)


def test_references_that_each_run_calls_alike_are_two(runs):
    """Weights by name were those of the last one alone."""
    file = runs / "two" / "config.yaml"
    file.write_text(file.read_text().replace("name: two", "name: one"))
    result = invoke(runs, "--points", "2", "--samples", "2", "--max-new-tokens", "2")
    assert result.exit_code == 0, result.output
    points = json.loads((runs / "out" / "sweep.json").read_text())["points"]
    first, second = (f"one of {runs / name}" for name in ("one", "two"))
    assert [p["weights"] for p in points] == [{first: 0, second: 1}, {first: 1, second: 0}]


def test_each_point_reports_the_reward_of_the_optimum():
    """Two tables of 12 and a reward that a table looks up: over 40,000 samples E_π*[r] and J = β log Z of the exact solver to 5
    errors, at both ends and inside; without β the exact merge."""
    generator = torch.Generator().manual_seed(3)
    tables = torch.randn(2, 12, generator=generator, dtype=torch.float64).log_softmax(-1)
    values = torch.randn(12, generator=generator, dtype=torch.float64)
    drawn = torch.cat([torch.multinomial(t.exp(), 20_000, replacement=True, generator=generator) for t in tables])
    samples = Samples(
        ("one", "two"), tables[:, drawn][:, None], torch.ones(1, 40_000).double(), {"reward": values[drawn][None]}
    )
    for weights in ((0.0, 1.0), (0.3, 0.7), (1.0, 0.0)):
        for beta in (None, 2.0, 0.5):
            row = samples.point(weights, beta)
            solved = mr.exact.solve(values, tables, mr.ReverseKL(weights), beta=beta or 1e9)
            merged = solved.policy
            expected = float((merged * values).sum())
            spread = float((merged * values**2).sum() - expected**2) ** 0.5
            assert abs(row["reward"] - expected) < 5 * spread / row["ess"] ** 0.5
            if beta is not None:
                assert abs(row["J"] - float(solved.value)) < 5 * beta / row["ess"] ** 0.5


def test_j_is_low_by_the_variance_of_the_weights_over_twice_the_draws():
    """E Ẑ = Z, so by Jensen J = β log Ẑ is low: by β χ²/(2N) to first order, χ² the relative variance of the weights over the
    mixture that was drawn from. 4,000 prompts of 256 draws: the prediction is 0.040, the error 0.003."""
    generator = torch.Generator().manual_seed(3)
    tables = (1.5 * torch.randn(2, 40, generator=generator, dtype=torch.float64)).log_softmax(-1)
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    many, beta, weights = (4000, 128), 0.3, (0.5, 0.5)
    drawn = torch.cat([torch.multinomial(t.exp(), 512_000, True, generator=generator).view(many) for t in tables], 1)
    row = Samples(("a", "b"), tables[:, drawn], torch.ones(4000, 256).double(), {"reward": values[drawn]}).point(weights, beta)
    optimum = float(mr.exact.solve(values, tables, mr.ReverseKL(weights), beta=beta).value)
    mixture = tables.exp().mean(0)
    relative = ((tables.mean(0) + values / beta).exp() / mixture) * math.exp(-optimum / beta)  # w/Z, of mean 1
    low = beta * (float(mixture @ relative.square()) - 1) / (2 * 256)
    assert abs(row["J"] - (optimum - low)) < 3 * row["J_error"] < low / 3


def test_references_that_exclude_each_other_are_one_error():
    """Each forbids what the other draws: at a vertex there is a curve, between them no point of it (it was NaN)."""
    logps = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]], dtype=torch.float64)
    samples = Samples(("a", "b"), logps, torch.tensor([[1.0, 3.0]]).double(), {})
    assert samples.point((1.0, 0.0))["tokens"] == 1.0
    with pytest.raises(EmptyPoolError, match=r"weights 0.5, 0.5: no completion of some prompt has mass"):
        samples.point((0.5, 0.5))


def test_a_strength_beyond_floats_is_one_error():
    samples = Samples(("a",), torch.zeros(1, 1, 4).double(), torch.ones(1, 4).double(), {"reward": torch.ones(1, 4).double()})
    with pytest.raises(ConfigError, match="is no finite number"):
        samples.point((1.0,), 1e-320)


def call_without_training(folder, *options):
    named = [f"--reference={name}={folder / name / 'model'}" for name in ("one", "two")]
    given = ["sweep", "--without-training", *named, "--prompts", str(folder / "pairs.jsonl"), "--out", str(folder / "curve")]
    return CliRunner().invoke(app, [*given, "--max-new-tokens", "4", *options])


def test_the_curve_without_training(runs, drawn):
    """One set of draws at every β and weights; a small β is grey; a trained run stands beside at its own β and weights, with
    the J of its samples (here the run is the reference itself: J = its reward)."""
    small = ("--points", "3", "--samples", "20", "--reward", "length=3")
    done = call_without_training(runs, *small, "--beta", "100", "--beta", "0.01", str(runs / "one"))
    assert done.exit_code == 0, done.output
    found = json.loads((runs / "curve" / "sweep.json").read_text())
    assert [(p["beta"], p["weights"]["one"]) for p in found["points"]] == [(b, w) for b in (100, 0.01) for w in (0, 0.5, 1)]
    assert not any(p["grey"] for p in found["points"][:3]) and found["points"][4]["grey"] and "grey" in done.output
    (run,) = found["runs"]
    assert run["beta"] == 0.1 and run["weights"] == {"one": 1.0, "two": 0.0} and run["J"] == pytest.approx(run["reward"])
    assert (runs / "curve" / "sweep.png").stat().st_size > 1000
    escorts = call_without_training(runs, "--points", "2", "--samples", "20")
    assert escorts.exit_code == 0 and "reward" not in escorts.output and "J" in escorts.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--beta", "0", "--reward", "length=3"), "positive"),
        (("--beta", "1"), "--beta: expected with --reward only"),
        (("--reference", "one=x"), "each name once"),
        (("{two}",), "is none"),
        (("--out", "{pairs}/x"), "cannot write into"),
    ],
    ids=["beta", "idle", "twice", "other", "out"],
)
def test_a_curve_that_cannot_be_drawn(options, words, runs):
    if options[0] == "{two}":
        config = yaml.safe_load((runs / "two" / "config.yaml").read_text())
        config["references"][0]["name"] = "three"
        (runs / "two" / "config.yaml").write_text(yaml.safe_dump(config))
        options, words = (str(runs / "two"),), "'three' is none"
    result = call_without_training(runs, *(each.replace("{pairs}", str(runs / "pairs.jsonl")) for each in options))
    assert (
        result.exit_code == 2
        and "samples of each" not in result.output
        and words in " ".join(result.output.split())
        and result.output.count("Error") == 1
    )


OWN = """
def graded(prompts, completions, grade, ended, completion_ids):
    assert len(prompts) == len(completions) == len(ended) == len(completion_ids)
    return [float(each) for each in grade]
"""


@pytest.mark.parametrize("untrained", [False, True])
def test_a_reward_reads_the_columns_of_the_prompts_rows(untrained, runs):
    """Each row's own grade is its reward: of 3, 5 and 5 the mean over the two rows that differ is 4."""
    (runs / "own.py").write_text(OWN)
    rows = [{"prompt": "the cat", "grade": grade} for grade in (3, 5, 5)]
    (runs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--points", "2", "--samples", "2", "--max-new-tokens", "3", "--reward", f"python={runs / 'own.py'}:graded")
    done = call_without_training(runs, *options, str(runs / "one")) if untrained else invoke(runs, *options)
    assert done.exit_code == 0 and "for 2 prompts" in done.output, done.output
    found = json.loads((runs / ("curve" if untrained else "out") / "sweep.json").read_text())
    assert all(each["reward"] == pytest.approx(4.0) for each in [*found["points"], *(found["runs"] if untrained else [])])


def test_a_reward_that_does_not_apply_to_some_completions():
    """None is NaN in its own column: the mean where it applies, over the prompts that have one, not a NaN of them all."""
    nan, logps = math.nan, torch.zeros(1, 3, 4).double()
    values = torch.tensor([[1.0, 3.0, nan, nan], [nan] * 4, [5.0, 5.0, 5.0, 5.0]]).double()
    samples = Samples(("a",), logps, torch.ones(3, 4).double(), {"reward": values.nan_to_num(), "rewards/own": values})
    row = samples.point((1.0,))
    assert row["rewards/own"] == pytest.approx(3.5) and row["rewards/own_error"] == pytest.approx(1.5)
    none = Samples(("a",), logps, torch.ones(3, 4).double(), {"rewards/own": values * nan}).point((1.0,))
    assert none["rewards/own"] is None and "NaN" not in json.dumps(row | none)


def test_the_lexicon_reward_of_a_sweep_is_in_its_points(runs):
    (runs / "words.txt").write_text("sat\t3\non\t-1\n")
    (runs / "online.yaml").write_text(f"rewards: [{{kind: lexicon, path: {runs / 'words.txt'}}}, {{kind: length, target: 4}}]")
    small = ("--points", "2", "--samples", "4", "--max-new-tokens", "4")
    assert invoke(runs, *small, "--reward", f"lexicon={runs / 'words.txt'}").exit_code == 0
    points = json.loads((runs / "out" / "sweep.json").read_text())["points"]
    assert all(p["reward"] is not None and p["ess"] >= 0.999 for p in points)
    result = invoke(runs, *small, "--reward", str(runs / "online.yaml"))
    assert result.exit_code == 0 and "reward" in result.output
    for point in json.loads((runs / "out" / "sweep.json").read_text())["points"]:
        assert point["reward"] == pytest.approx(point["rewards/lexicon"] + point["rewards/length"])


def test_a_run_whose_strength_moved_has_no_place_beside_a_curve(runs):
    """Its file says the β that it began with, and J would be of that one."""
    file = runs / "one" / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "task": "online", "adaptive_beta": {"target": 1.0}}))
    result = call_without_training(runs, str(runs / "one"))
    assert result.exit_code == 2 and "trained with adaptive_beta" in " ".join(result.output.split())


@pytest.mark.parametrize("given", ["lexicon", "judge=somebody", "length=long", "none.yaml"])
def test_a_reward_that_is_none_is_refused_by_name(given, runs):
    result = invoke(runs, "--reward", given)
    assert result.exit_code == 2 and given in result.output and "expected" in result.output


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("beta", 0.2, "same reward"),
        ("regularizer", {"kind": "ForwardKL"}, "reverse KL only"),
        ("objective", {"kind": "preference", "loss": "ipo"}, "same reward"),
        ("privacy", {"epsilon": 1.0}, "same reward"),
    ],
)
def test_runs_that_cannot_be_merged_are_refused(key, value, words, runs):
    path = runs / "two" / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), key: value}))
    result = invoke(runs)
    assert result.exit_code == 2 and words in result.output
