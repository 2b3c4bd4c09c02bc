"""Pairs on disk are the pairs that were written, and leave nothing behind."""

import json

import numpy as np
import pytest

from multiref.data import Conversation, Pair, Selection, read, read_pairs
from multiref.data.spooled import Joined, SpooledPairs, select
from multiref.errors import DataError, OutputError

CHAT = ({"role": "user", "content": "é", "b": 1, "a": None}, {"role": "user", "content": [{"type": "text", "text": "x"}]})
PAIRS = [
    Pair("a\nb", "c", "", "f.jsonl:3", 0.25),
    Pair(Conversation(CHAT, tools=[{"z": 1, "a": [2.5, True]}], chat_template_kwargs={"k": "v"}), CHAT[:1], CHAT[1:]),
    Pair(Conversation(CHAT), (), CHAT),
    Pair("half \ud800 of a character", "…", "x" * 5_000_000),
    *(Pair(f"p{n}", f"c{n}", f"r{n}") for n in range(600)),
]


def test_they_come_back_as_they_were_in_any_order(tmp_path):
    held = SpooledPairs.write(iter(PAIRS), tmp_path / "deep" / "er")
    assert len(held) == len(PAIRS) and list(held) == PAIRS and [held[i] for i in range(len(PAIRS))] == PAIRS
    for i in (1, 2):
        assert repr(held[i]) == repr(PAIRS[i])  # types, and the order of fields, which a template may write
    at = np.array([5, 0, 300, 5])
    assert list(held.take(at)) == list(select(PAIRS, at)) == [PAIRS[i] for i in at]
    assert list(held[-3:].take(np.array([1]))) == [PAIRS[-2]] and held[-1] == PAIRS[-1]
    both = Joined(held.take(at), PAIRS[:2])
    assert list(both) == both[:] == [*(PAIRS[i] for i in at), *PAIRS[:2]] and both[4] == PAIRS[0] and len(both) == 6
    assert not list((tmp_path / "deep" / "er").iterdir())
    with pytest.raises(IndexError):
        held[len(PAIRS)]


def test_reading_into_a_folder_reads_the_same_and_names_the_same_rows(tmp_path):
    rows = [{"prompt": "p", "chosen": f"c{n}", "rejected": "r"} for n in range(5)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + '\n\n{"prompt": "p", "chosen": "", "rejected": "r"}\n')
    for spool in (None, tmp_path / "store"):
        with pytest.raises(DataError, match=r"pairs\.jsonl:7: `chosen` is empty"):
            read(file, spool=spool)
        with pytest.warns(match="1 of 6 rows cannot be used"):
            found = read(file, Selection(bad_rows="skip"), spool=spool)
        assert list(found.pairs) == read_pairs(file, limit=5) and found.pairs[4].origin == "pairs.jsonl:5"
    with pytest.raises(OutputError, match=r"cannot write the pairs into .*pairs\.jsonl"):
        read(file, Selection(limit=5), spool=file)


def test_of_private_rows_that_are_skipped_only_the_place_is_written(tmp_path):
    file, skipped = tmp_path / "pairs.jsonl", tmp_path / "skipped.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", "chosen": c, "rejected": "r"}) + "\n" for c in ("secret", "r")))
    with pytest.warns(match="not shown"):
        found = read(file, Selection(bad_rows="skip"), skipped=skipped, withhold=True)
    assert len(found.pairs) == 1 and json.loads(skipped.read_text()).keys() == {"origin", "reason"}
    assert "same" not in skipped.read_text() and "pairs.jsonl:2" in skipped.read_text()
