"""Scores are joined to data by content, never by position."""

import numpy as np
import pytest
import torch

from multiref.data import Pair
from multiref.errors import ArgumentError, StoreError, VocabularyMismatch
from multiref.references.scores import SequenceScores, TokenScores, content_keys, same_vocabulary

PAIRS = [Pair(f"p{n}", f"c{n}", f"r{n}") for n in range(7)]


def scores_of(pairs, *, shuffle=0, names=("a", "b")):
    """log π of text number n under reference k is −(n + 100 k)."""
    texts = [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)]
    order = np.random.default_rng(shuffle).permutation(len(texts))
    values = torch.tensor([[-(float(n) + 100 * k) for n in order] for k in range(len(names))], dtype=torch.float64)
    keys = content_keys([texts[n][0] for n in order], [texts[n][1] for n in order])
    return SequenceScores(
        names, keys, values, torch.ones_like(values, dtype=torch.int64), torch.zeros_like(values, dtype=torch.bool)
    )


@pytest.mark.parametrize("shuffle", range(3))
def test_pairs_find_their_scores_whatever_the_order(shuffle):
    scores = scores_of(PAIRS, shuffle=shuffle)
    chosen, rejected = scores.of_pairs(PAIRS[::-1])
    assert chosen.tolist() == [[-2.0 * n for n in range(6, -1, -1)], [-2.0 * n - 100 for n in range(6, -1, -1)]]
    assert rejected.tolist() == [[-2.0 * n - 1 for n in range(6, -1, -1)], [-2.0 * n - 101 for n in range(6, -1, -1)]]


def test_a_missing_score_is_named():
    with pytest.raises(
        StoreError, match=r"1 of 16 completions .* row 8, prompt 'p0', completion 'changed'.*Score this data first"
    ):
        scores_of(PAIRS).of_pairs([*PAIRS, Pair("p0", "c0", "changed")][::1])


def test_select_reorders_and_refuses_unknown_names():
    scores = scores_of(PAIRS)
    assert torch.equal(scores.select(["b", "a"]).logps, scores.logps[[1, 0]])
    with pytest.raises(ArgumentError, match=r"'z'.*'a', 'b'"):
        scores.select(["z"])


def test_impossible_scores_are_refused():
    good = scores_of(PAIRS)
    parts = {"keys": good.keys, "logps": good.logps, "lengths": good.lengths, "truncated": good.truncated}
    with pytest.raises(ArgumentError, match="Two references are called 'a'"):
        SequenceScores(("a", "a"), **parts)
    with pytest.raises(ArgumentError, match=r"logps has shape \(2, 13\); expected \[K, N\] = \(2, 14\)"):
        SequenceScores(("a", "b"), **{**parts, "logps": good.logps[:, 1:]})
    with pytest.raises(ArgumentError, match="occurs twice"):
        SequenceScores(("a", "b"), **{**parts, "keys": np.concatenate([good.keys[:-1], good.keys[:1]])})


def test_token_scores_sum_over_each_completion():
    tokens = torch.tensor([[-1.0, -2.0, -4.0, -8.0, -16.0]])
    scores = TokenScores(("a",), content_keys("xyz", "xyz"), torch.tensor([0, 2, 2, 5]), tokens)
    assert scores.summed().tolist() == [[-3.0, 0.0, -28.0]]
    tokens[0, 1] = -torch.inf  # a token that is forbidden; those behind it were NaN
    assert scores.summed().tolist() == [[-torch.inf, 0.0, -28.0]]
    with pytest.raises(ArgumentError, match=r"expected \[K, T\] = \(1, 4\)"):
        TokenScores(("a",), content_keys("xyz", "xyz"), torch.tensor([0, 2, 2, 4]), tokens)


def test_vocabularies_of_equal_size_need_not_be_the_same():
    base = {"<s>": 0, "a": 1, "b": 2}
    same_vocabulary(["x", "y"], [base, dict(reversed(base.items()))])
    with pytest.raises(VocabularyMismatch, match=r"'x' and 'z'.*id 1 is 'a' in the first and 'c'"):
        same_vocabulary(["x", "y", "z"], [base, base, {"<s>": 0, "c": 1, "b": 2}])
    with pytest.raises(VocabularyMismatch, match=r"id 3 is None .* '<pad>'"):
        same_vocabulary(["x", "y"], [base, {**base, "<pad>": 3}])
