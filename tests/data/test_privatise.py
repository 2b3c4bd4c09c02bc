"""`privatise`: what is kept, at which rate labels flip, and that nothing else gives them back."""

import json
import math

import pytest
import torch

from multiref.data import Pair, PrivatePairs, privatise, read_pairs
from multiref.data.privacy import check_marks
from multiref.errors import ArgumentError, DataError

ROWS = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad", "margin": 2.0, "score_chosen": 9} for i in range(4000)]


def flips(made):
    return sum(pair.chosen == "bad" for pair in made) / len(made)


@pytest.mark.parametrize("epsilon", [0.25, 1.0, 3.0])
def test_labels_flip_at_the_rate_that_epsilon_says(epsilon):
    """Within four standard deviations, from the operating system and from a generator; likelihood ratio e^ε."""
    rate = 1 / (1 + math.exp(epsilon))
    assert math.log((1 - rate) / rate) == pytest.approx(epsilon)
    for generator in (None, torch.Generator().manual_seed(0)):
        made = privatise(ROWS, epsilon, generator=generator)
        assert made.flip_rate == pytest.approx(rate) and made.epsilon == epsilon
        assert abs(flips(made) - rate) < 4 * math.sqrt(rate * (1 - rate) / len(ROWS))
        assert made.simulation == (generator is not None) == ("SIMULATION" in str(made))


def test_every_other_column_is_dropped_by_name():
    made = privatise([*ROWS[:3], Pair("p", "a", "b", origin="file:3", margin=1.0)], 1.0)
    assert made.dropped == ("margin", "origin", "score_chosen")
    assert all(pair.margin == 0 and pair.origin == "" for pair in made)
    talk = {"role": "assistant", "content": "yes", "rating": 5}
    rows = [
        {"prompt": [{"role": "user", "content": "?"}], "chosen": [talk], "rejected": [{**talk, "content": "no", "rating": 1}]}
    ]
    made = privatise(rows, 1.0)
    assert made.dropped == ("message.rating",) and "rating" not in repr(tuple(made))


def test_seeded_twice_is_the_same_and_the_system_is_not():
    seeded = [[p.chosen for p in privatise(ROWS, 1.0, generator=torch.Generator().manual_seed(1))] for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert [p.chosen for p in privatise(ROWS, 1.0)] != [p.chosen for p in privatise(ROWS, 1.0)]


def test_it_is_written_once_and_reads_back(tmp_path):
    ask, yes, no = ({"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "é"), ("assistant", "no")))
    rows = [*ROWS[:5], {"prompt": [ask], "tools": [{"type": "function"}], "chosen": [yes], "rejected": [no]}]
    made = privatise(rows, 0.5)
    path = made.write(tmp_path / "private.jsonl")
    back = read_pairs(path)
    assert [(p.prompt, p.chosen, p.rejected) for p in back] == [(p.prompt, p.chosen, p.rejected) for p in made]
    assert set(json.loads(path.read_text(encoding="utf-8").splitlines()[0])) == {
        "prompt", "chosen", "rejected", "privacy_epsilon"
    }  # fmt: skip
    assert len(made) == 6 and made[0] == made.pairs[0] and isinstance(made, PrivatePairs)


def test_several_labels_of_one_pair_are_said():
    same = [ROWS[0], ROWS[0], {**ROWS[0], "chosen": "bad", "rejected": "good"}, ROWS[1]]
    made = privatise(same, 1.0)
    assert made.most_labels == 3 and "3 ε" in str(made) and privatise([], 1.0).most_labels == 1


@pytest.mark.parametrize("epsilon", [0, -1.0, math.inf, math.nan, "1", True], ids=repr)
def test_a_budget_that_is_none_is_refused(epsilon):
    with pytest.raises(ArgumentError, match="epsilon"):
        privatise(ROWS[:1], epsilon)


def test_privatised_twice_is_refused():
    with pytest.raises(ArgumentError, match=r"private already, at ε = 1"):
        privatise(privatise(ROWS[:2], 1.0), 1.0)
    with pytest.raises(DataError):
        privatise([{"prompt": "p", "chosen": "a"}], 1.0)


def test_what_was_written_is_known_to_be_private_when_it_is_read(tmp_path):
    """The column stays through files of other kinds; such pairs are not flipped again, and a loss must know their ε."""
    datasets = pytest.importorskip("datasets")
    path = privatise(ROWS[:6], 0.5).write(tmp_path / "private.jsonl")
    datasets.Dataset.from_json(str(path)).to_parquet(tmp_path / "private.parquet")
    datasets.Dataset.from_json(str(path)).to_csv(tmp_path / "private.csv")
    for name in ("private.jsonl", "private.parquet", "private.csv"):
        back = read_pairs(tmp_path / name)
        assert {pair.epsilon for pair in back} == {0.5}
        with pytest.raises(ArgumentError, match=rf"{name}:[12].*private already, at ε = 0.5"):
            privatise(back, 1.0)
    assert {pair.epsilon for pair in read_pairs(ROWS[:2])} == {None}
    check_marks(back, 0.5, "it")
    with pytest.raises(DataError, match=r"takes labels as they stand.*privacy: \{epsilon: 0.5\}"):
        check_marks(back, None, "it")
    with pytest.raises(DataError, match="the loss is for ε = 1"):
        check_marks(back, 1.0, "it")
    mixed = [*back, Pair("p", "a", "b", "file:7")]
    with pytest.raises(DataError, match="file:7: its label is not marked"):
        check_marks(mixed, 0.5, "it")
    check_marks(mixed, 0.5, "it", all_private=False)
    for wrong in (0, -1.0, math.inf, "1", True):
        with pytest.raises(DataError, match=r"privacy_epsilon.*positive ε"):
            read_pairs([{**ROWS[0], "privacy_epsilon": wrong}])
