"""The plan depends on the texts and the shard size, and on nothing else."""

import random

import numpy as np
import pytest

from multiref.data import Pair
from multiref.data.spooled import SpooledPairs
from multiref.errors import ArgumentError, DataError
from multiref.references.keys import content_key
from multiref.references.plan import TOGETHER, Block, plan, shard_size_for, wanted
from tests.references.doubles import pairs


def contents(blocks):
    return [[(item.prompt, item.completions) for item in block.items] for block in blocks]


def test_row_order_and_repeated_rows_change_nothing():
    rows = list(wanted(pairs(50)))
    expected = contents(plan(rows, shard_size=16))
    for seed in range(3):
        shuffled = rows + random.Random(seed).sample(rows, 20)
        random.Random(seed).shuffle(shuffled)
        assert contents(plan(shuffled, shard_size=16)) == expected


def test_every_completion_is_in_exactly_one_block_beside_its_own_key():
    rows = list(wanted(pairs(50)))
    seen = []
    for block in plan(rows, shard_size=16):
        texts = [(item.prompt, completion) for item in block.items for completion in item.completions]
        assert [content_key(*text) for text in texts] == list(block.keys)
        seen += texts
    assert sorted(seen) == sorted(set(rows))


def test_completions_of_a_prompt_stay_together_up_to_a_limit_and_an_empty_prompt_is_nothing_to_share():
    many = [("p", str(n)) for n in range(3 * TOGETHER - 1)] + [("", str(n)) for n in range(5)]
    sizes = {"p": [], "": []}
    for block in plan(many):
        for item in block.items:
            sizes[item.prompt].append(len(item.completions))
    assert sizes == {"p": [TOGETHER, TOGETHER, TOGETHER - 1], "": [1] * 5}


def test_blocks_are_about_as_large_as_asked():
    sizes = [len(block) for block in plan(wanted(pairs(200)), shard_size=32)]
    assert all(32 <= size < 32 + TOGETHER for size in sizes[:-1]) and 0 < sizes[-1] < 32 + TOGETHER
    assert [shard_size_for(n) for n in (10, 64_000, 10_000_000)] == [256, 1000, 8192]


def test_without_leaves_what_is_missing_in_place():
    rows = list(wanted(pairs(200)))
    blocks = plan(rows, shard_size=32)
    there = np.arange(len(blocks.keys)) % 3 == 1
    there[np.isin(blocks.keys, np.array(blocks[1].keys, "V16"))] = True  # a whole block
    left, have = blocks.without(there), set(blocks.keys[there].tolist())
    expected = [[key for key in block.keys if key not in have] for block in blocks]
    assert [list(block.keys) for block in left] == [keys for keys in expected if keys]
    for block in left:
        texts = [(item.prompt, completion) for item in block.items for completion in item.completions]
        assert [content_key(*text) for text in texts] == list(block.keys) == blocks.keys[block.places].tolist()
    assert left.completions == len(blocks.keys) - there.sum() and left.size() == sum(block.size() for block in left)
    assert len(blocks.without(there | True)) == blocks.without(there | True).size() == 0


def test_on_disk_they_are_planned_as_in_memory_and_the_telling_ones_are_those_of_a_plain_search(tmp_path):
    rows = [*pairs(300), *(Pair(f"prompt {n}", "a" * n, "b") for n in range(0, 40, 3)), Pair("", "x", "y"), Pair("", "x", "z")]
    blocks, others = plan(rows, shard_size=32), plan(SpooledPairs.write(rows, tmp_path), shard_size=32)
    assert contents(blocks) == contents(others) and not list(tmp_path.iterdir())
    sizes = [[Block((item,), ()).size() for item in block.items] for block in blocks]
    counts = [max(len(item.completions) for item in block.items) for block in blocks]
    spread = [max(each) / max(1, min(each)) for each in sizes]
    longest = list(map(max, sizes))
    at = dict.fromkeys([*(values.index(max(values)) for values in (longest, counts, spread)), 0])
    assert [block.keys for block in blocks.telling()] == [blocks[i].keys for i in at]


def test_rows_of_every_kind_are_understood_and_others_named():
    rows = [("p", "c"), {"prompt": "q", "chosen": "a", "rejected": "b"}, pairs(1)[0]]
    assert list(wanted(rows)) == [("p", "c"), ("q", "a"), ("q", "b"), ("prompt 0", "chosen 0"), ("prompt 0", "rejected 0")]
    with pytest.raises(DataError, match="row 2: found int"):
        list(wanted([("p", "c"), 3]))
    with pytest.raises(DataError, match=r"row 1: .*NoneType"):
        list(wanted([("p", None)]))
    with pytest.raises(ArgumentError, match="shard_size is 0"):
        plan([("p", "c")], shard_size=0)
