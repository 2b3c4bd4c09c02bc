"""The world: cached by all that it depends on, its answers enumerated exactly."""

import dataclasses
from itertools import product

import pytest
import torch

from multiref.errors import ModelError, OutputError
from multiref.models import Tokenisation, completion_logps, encode
from multiref_lab.demo import corpus
from multiref_lab.demo.authors import REFERENCES
from multiref_lab.demo.world import folder_of, make
from tests.lab.conftest import TINY


def test_every_answer_is_enumerated_and_their_probabilities_sum_to_one(tiny_world) -> None:  # type: ignore[no-untyped-def]
    problems = tiny_world.problems(7, 0)
    for model in (tiny_world.base, *tiny_world.references.values()):
        logps = tiny_world.logps(model, problems)
        assert logps.dtype == torch.float64 and logps.shape == (7, len(tiny_world.vocabulary) ** 2)
        assert (logps.exp().sum(1) - 1).abs().max() < 1e-12
    assert len(tiny_world.answers) <= 1000 and len(set(tiny_world.answers)) == len(tiny_world.answers)


def test_enumeration_agrees_with_scoring_each_answer_as_text(tiny_world) -> None:  # type: ignore[no-untyped-def]
    """Brute force: every answer as text through `encode` and `completion_logps`, in the order of `answers`.
    Float32 model: 1e-5 nats."""
    (problem,) = tiny_world.problems(1, 5)
    model, tokenizer = tiny_world.references["adder"], tiny_world.tokenizer
    with torch.inference_mode():
        one_by_one = completion_logps(model, [encode(tokenizer, problem.prompt, tiny_world.answers, Tokenisation(end=False))])
    assert torch.allclose(tiny_world.logps(model, [problem])[0], one_by_one, atol=1e-5, rtol=0)


def test_enumeration_agrees_with_plain_forward_passes(tiny_world) -> None:  # type: ignore[no-untyped-def]
    """The whole sequence in one pass, without the memory of the prompt, for a few answers of prompts that differ."""
    problems, size = tiny_world.problems(3, 6), len(tiny_world.vocabulary)
    exact = tiny_world.logps(tiny_world.base, problems).view(3, size, size)
    for row, (a, b) in product(range(3), [(1, 1), (4, 7), (size - 1, 0), (0, 5)]):
        ids = torch.tensor([[*tiny_world.tokenizer(problems[row].prompt)["input_ids"], a, b]])
        with torch.no_grad():
            logits = tiny_world.base(input_ids=ids).logits[0].double().log_softmax(-1)
        assert float(exact[row, a, b]) == pytest.approx(float(logits[-3, a] + logits[-2, b]), abs=1e-5)


def test_rewards_of_all_answers_are_the_reward_of_their_texts(tiny_world) -> None:  # type: ignore[no-untyped-def]
    problems = tiny_world.problems(4, 1)
    table = tiny_world.rewards(problems)
    for row, problem in enumerate(problems):
        assert table[row].tolist() == [tiny_world.reward(problem.prompt, text) for text in tiny_world.answers]
    assert table.sum(1).tolist() == [2.0 * len(tiny_world.vocabulary)] * 4, "each right digit stands in V answers"


def test_problems_are_different_balanced_reproducible_and_held_apart(tiny_world) -> None:  # type: ignore[no-untyped-def]
    train, held = tiny_world.problems(101, 0), tiny_world.problems(100, 0, held_out=True)
    assert len({p.prompt for p in train}) == 101 and sum(p.skill == "total" for p in train) == 51
    assert tiny_world.problems(101, 0) == train != tiny_world.problems(101, 1)
    assert {(p.first, p.second) for p in train}.isdisjoint({(p.first, p.second) for p in held})
    assert [p.skill for p in train[:4]] == ["total", "top", "total", "top"], "any beginning is balanced"


def test_a_second_call_trains_nothing_and_finds_the_same_models(tiny_world, cache) -> None:  # type: ignore[no-untyped-def]
    def forbid(what: str, done: int, of: int) -> None:
        raise AssertionError("trained again")

    again = make(cache, TINY, progress=forbid)
    problems = again.problems(3, 0)
    assert again.folder == tiny_world.folder
    assert torch.equal(again.ref_logps(problems), tiny_world.ref_logps(problems))
    assert tuple(again.references) == REFERENCES


def test_the_folder_moves_with_settings_code_and_versions(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    before = folder_of(TINY)
    assert folder_of(dataclasses.replace(TINY, own=corpus.Habit(0.02, 0.05))) != before
    assert folder_of(dataclasses.replace(TINY, seed=1)) != before
    monkeypatch.setattr("multiref_lab.experiment.fingerprint", lambda module: "other code")
    assert folder_of(TINY) != before


def test_training_leaves_nothing_half_made_when_it_is_interrupted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    def stop(what: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, TINY, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_unwritable_cache_is_one_clear_error(tmp_path, tiny_world) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / tiny_world.folder.name
    folder.mkdir()
    (folder / "world.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged; remove that folder"):
        make(tmp_path, TINY)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"cannot write .*file.*choose another place"):
        make(tmp_path / "file", TINY)


def test_specialists_begin_as_the_base_and_learn_their_own_habit(tiny_world) -> None:  # type: ignore[no-untyped-def]
    """Even after a dozen steps digits have taken mass from the other words (uniform:
    100 of V² answers), and the three models differ."""
    problems = tiny_world.problems(20, 2)
    digits = torch.tensor([all(word.isdigit() for word in text.split()) for text in tiny_world.answers])
    base = tiny_world.logps(tiny_world.base, problems)
    adder, picker = tiny_world.ref_logps(problems)
    assert float(adder[:, digits].exp().sum(1).mean()) > 1.5 * 100 / len(tiny_world.answers)
    assert not torch.allclose(base, adder) and not torch.allclose(adder, picker)
