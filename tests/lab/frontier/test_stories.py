"""The sampled task on tiny random models: openings, pairs, labels, and numbers that come with their errors."""

import json

import pytest
import torch

from multiref.errors import DataError
from multiref.evaluation import sample_each
from multiref.models import Generation
from multiref_lab.frontier.grid import Cell
from multiref_lab.frontier.settings import Offline, Stories
from multiref_lab.frontier.stories import StoriesBench
from multiref_lab.openings import read_openings
from tests.conftest import make_llama


@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tmp_path_factory):
    """A policy that is also the first reference, another model as the second, 24 stories, a lexicon."""
    folder = tmp_path_factory.mktemp("stories")
    for seed, name in enumerate(("policy", "other")):
        make_llama(len(tiny_tokenizer), seed=seed, std=0.1).save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    (folder / "stories.jsonl").write_text(
        "".join(json.dumps({"text": f"the dog {n} sat on a log and then it was happy"}) + "\n" for n in range(24))
    )
    (folder / "words.txt").write_text("".join(f"{letter}\t{value}\n" for value, letter in enumerate("abcdefgh", -3)))
    return folder


@pytest.fixture(scope="module")
def bench(folder):
    task = Stories(
        "policy",
        {"self": "policy", "other": "other"},
        "stories.jsonl",
        "words.txt",
        pairs=[16],
        prompt_words=3,
        new_tokens=5,
        held_out=6,
        samples=8,
        offline=Offline(2, 8, 1e-3),
    )
    return StoriesBench(task, folder)


def test_kl_from_samples_carries_its_error(bench):
    """The untouched policy against itself: KL 0 with error 0.
    Against the other model: positive by more than 4 of its own standard errors."""
    numbers = bench.measure(bench.policy.model, 0)
    assert abs(numbers["kl/self"]) < 1e-4 and numbers["kl/self±"] < 1e-4
    assert numbers["kl/other"] > 4 * numbers["kl/other±"] > 0
    assert {name for name in numbers if not name.endswith("±")} == {name[:-1] for name in numbers if name.endswith("±")}


def test_unfinished_are_those_that_were_cut(bench):
    """The share that a sampler itself says were cut, of the same draws; five tokens are enough for some only."""
    generation = Generation(5)
    held, model = bench._split(4)[0], bench.policy
    rollouts = sample_each(model, held, generation, group=8, seed=104_729 * 4)
    cut = [1 - sum(rollout.ended) / 8 for rollout in rollouts]
    assert 0 < sum(cut) < len(cut)
    assert bench.measure(model.model, 4)["unfinished"] == pytest.approx(sum(cut) / len(cut))


def test_a_seeds_held_out_openings_are_none_of_its_training_openings(bench):
    held, training = bench._split(3)
    assert len(held) == 6 and not set(held) & set(training) and len(held) + len(training) == 24
    assert bench._split(4)[0] != held
    assert {pair.prompt for pair in bench.pairs(16, 3)} <= set(training)


def test_labels_follow_bradley_terry_in_the_lexicons_reward(bench):
    """Over 40 seeds: the summed (reward of chosen − rejected) equals its expectation Σ |d| tanh(|d|/2) within 4 standard
    errors."""
    found = [bench._rewards([pair.chosen, pair.rejected]) for seed in range(40) for pair in bench.pairs(16, seed)]
    d = torch.tensor([a - b for a, b in found], dtype=torch.float64)
    expected, variance = (d.abs() * (d.abs() / 2).tanh()).sum(), (d**2 * (1 - (d / 2).tanh() ** 2)).sum()
    assert float(variance) > 10
    assert abs(float(d.sum() - expected)) < 4 * float(variance) ** 0.5


def test_a_cell_is_trained_and_the_same_twice(bench):
    cell = Cell("stories", "offline", "exact", 0.5, 0.1, 16, 0)
    first = bench.train(cell)
    assert first == bench.train(cell) and first != bench.measure(bench.policy.model, 0)


def test_openings_that_are_too_few_or_broken_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="24 different openings"):
        StoriesBench(Stories("policy", {"a": "policy", "b": "other"}, "stories.jsonl", "words.txt", prompt_words=3), folder)
    (tmp_path / "broken.jsonl").write_text('{"text": "a b c"}\n{"words": 1}\n')
    with pytest.raises(DataError, match=r"broken\.jsonl:2"):
        read_openings(tmp_path / "broken.jsonl", 1)
