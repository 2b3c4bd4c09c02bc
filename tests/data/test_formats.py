"""The same preferences in every format in which people keep them; and what cannot be read in one way only is refused."""

import json
from typing import Any

import pytest
from datasets import Dataset

from multiref.data import Pair, Selection, as_pairs, read, read_pairs
from multiref.errors import ArgumentError, DataError, MultirefNotice, MultirefWarning

SAID = ({"role": "user", "content": "q"},)
YES, NO = ({"role": "assistant", "content": "good"},), ({"role": "assistant", "content": "bad"},)


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in turns]


def texts(pairs: list[Pair]) -> list[tuple[Any, Any, Any]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


STRINGS = {
    "trl": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "implicit": {"chosen": "qgood", "rejected": "qbad"},
    "alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "question": {"question": "q", "chosen": "good", "rejected": "bad"},
    "a is better": {"prompt": "q", "response_a": "good", "response_b": "bad", "winner": "a"},
    "model_b": {"prompt": "q", "response_a": "bad", "response_b": "good", "winner": "model_b"},
    "counted": {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1},
    "numbered": {"input": "q", "output_1": "bad", "output_2": "good", "label": 2},
    "numbered as text": {"input": "q", "output1": "bad", "output2": "good", "label": "2"},
    "named": {"question": "q", "answer_first": "good", "answer_second": "bad", "preference": "answer_first"},
    "ultrafeedback": {"instruction": "q", "completions": [
        {"response": "fair", "overall_score": 5.0}, {"response": "bad", "overall_score": 1.0},
        {"response": "good", "overall_score": 8.5, "model": "m"}]},
    "scores beside": {"prompt": "q", "responses": ["bad", "good", "fair"], "scores": [0.1, 0.9, 0.5]},
    "ranks": {"prompt": "q", "answers": [{"answer": "bad", "rank": 3}, {"answer": "good", "rank": 1}]},
}  # fmt: skip
MESSAGES = {
    "trl": {"prompt": list(SAID), "chosen": list(YES), "rejected": list(NO)},
    "implicit": {"chosen": [*SAID, *YES], "rejected": [*SAID, *NO]},
    "prompt said again": {"prompt": list(SAID), "chosen": [*SAID, *YES], "rejected": [*SAID, *NO]},
    "ultrafeedback_binarized": {"prompt": "q", "chosen": [*SAID, *YES], "rejected": [*SAID, *NO]},
    "sharegpt": {"conversations": talk(("human", "q")),
                 "chosen": talk(("gpt", "good"))[0], "rejected": talk(("gpt", "bad"))[0]},
    "sharegpt sides": {"chosen": talk(("human", "q"), ("gpt", "good")), "rejected": talk(("human", "q"), ("gpt", "bad"))},
    "sharegpt and strings": {"conversations": talk(("human", "q")), "chosen": "good", "rejected": "bad"},
    "written out": {"prompt": json.dumps(SAID), "chosen": json.dumps(YES, indent=1), "rejected": json.dumps(NO)},
    "sharegpt written out": {"conversations": json.dumps(talk(("human", "q"))), "chosen": "good", "rejected": "bad"},
    "arena": {"conversation_a": [*SAID, *YES], "conversation_b": [*SAID, *NO], "winner": "model_a", "model_a": "x",
              "model_b": "y"},
}  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), [
    *(pytest.param(row, ("q", "good", "bad"), id=f"strings: {name}") for name, row in STRINGS.items()),
    *(pytest.param(row, (SAID, YES, NO), id=f"messages: {name}") for name, row in MESSAGES.items()),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore::multiref.errors.MultirefNotice")
def test_one_preference_in_every_format(row: dict[str, Any], expected: Any, tmp_path: Any) -> None:
    """From rows in memory, from JSON Lines and from Parquet alike; a row twice is two pairs."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row) + "\n") * 2)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row] * 2), tmp_path / "rows.parquet")
    for source in ([row, row], path, tmp_path / "rows.parquet"):
        assert texts(read_pairs(source)) == [expected] * 2
    assert texts(list(as_pairs([("row 1", row)], "rows"))) == [expected]


def test_columns_of_any_name(tmp_path: Any) -> None:
    rows = [{"instruction": f"q{k}", "response_a": "x", "response_b": "y", "winner": k % 3} for k in range(6)]
    columns = {"prompt": "instruction", "chosen": "response_a", "rejected": "response_b", "label": "winner"}
    told = read(rows, Selection(columns={**columns, "first": 1, "second": 2, "tie": 0}, bad_rows="skip"), say=lambda _: None)
    assert texts(told.pairs) == [(f"q{k}", *(("x", "y") if k % 3 == 1 else ("y", "x"))) for k in (1, 2, 4, 5)]
    assert list(told.bad) == ["row 1", "row 4"] and "a tie" in told.bad["row 1"]
    with pytest.raises(DataError, match=r"more than one way.*first: …, second: …"):  # 0, 1, 2: is 0 the tie, or 2?
        read_pairs(rows, columns=columns)
    with pytest.raises(DataError, match="row 1: no column 'answer' for chosen; found instruction"):
        read_pairs(rows, columns={"chosen": "answer"})
    with pytest.raises(ArgumentError, match="'chosn' is none of ours"):
        read_pairs(rows, columns={"chosn": "answer"})
    swapped = read_pairs(
        [{"bad": "a", "good": "b", "text": "q"}], columns={"prompt": "text", "chosen": "good", "rejected": "bad"}
    )
    assert texts(swapped) == [("q", "b", "a")]
    nested = [{"x": {"q": "q"}, "good": {"text": "a"}, "bad": {"text": "b"}, "say": {"who": k, "sure": True}} for k in (1, 2)]
    names = {"prompt": "x.q", "chosen": "good.text", "rejected": "bad.text"}
    Dataset.from_list(nested).to_parquet(str(tmp_path / "nested.parquet"))
    for source in (nested, tmp_path / "nested.parquet"):
        assert texts(read_pairs(source, columns=names)) == [("q", "a", "b")] * 2
        labelled = {**names, "label": "say.who", "first": 1, "second": 2}
        assert texts(read_pairs(source, columns=labelled)) == [("q", "a", "b"), ("q", "b", "a")]
    with pytest.raises(DataError, match=r"row 2: no column 'x.q' for prompt"):
        read_pairs([nested[0], {**nested[1], "x": {}}], columns=names)
    several = [{"q": "q", "said": [{"t": "a", "s": 1}, {"t": "b", "s": 2}]}]
    found = read_pairs(several, columns={"prompt": "q", "completions": "said.t", "scores": "said.s"})
    assert texts(found) == [("q", "b", "a")]
    margins = read_pairs([{"chosen": "a", "rejected": "b", "gap": "1.5"}], columns={"margin": "gap"})
    assert margins[0].margin == 1.5


def test_the_meaning_of_numbers_is_of_the_whole_data_set_and_is_not_guessed() -> None:
    """A first row with label 1 says nothing alone; 1 and 2 do, 0 and 1 do, for any limit; a lone 1 is refused."""

    def labelled(*labels: object) -> list[dict[str, object]]:
        return [{"prompt": "q", "response_a": "x", "response_b": "y", "label": label} for label in labels]

    def chosen(*labels: object, **options: Any) -> list[Any]:
        return [pair.chosen for pair in read_pairs(labelled(*labels), **options)]

    assert chosen(1, 2, 1.0) == ["x", "y", "x"]
    assert chosen(1, 1, 1, 2, limit=1) == ["x"]
    with pytest.warns(MultirefNotice, match="0 the first, 1 the second"):
        assert chosen(1, 1, 0, limit=1) == ["y"]
    for labels in ([1, 1], [0, 0], [0, 1, 2], [0.5, 1], [True, False], ["x", "y"], [3], ["a", "c"], [-1, 1]):
        with pytest.raises(DataError, match=r"columns: .label"):
            chosen(*labels)
    for true, false in ((True, False), ("true", "False")):  # as YAML and the command line have them
        assert chosen(True, "FALSE", columns={"first": true, "second": false}) == ["x", "y"]
    assert chosen("A", " b ", "Response_A") == ["x", "y", "x"]
    with pytest.raises(DataError, match="row 2: a tie"):
        chosen("a", "tie")
    with pytest.raises(DataError, match="row 2: no label"):
        chosen("a", None)
    shp = [{"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": label} for label in (1, 0)]
    assert [pair.chosen for pair in read_pairs(shp, columns={"prompt": "history"})] == ["x", "y"]
    ends = [{"input": "q", "output_1": "x", "output_2": "y", "label": label} for label in (1, 0)]
    with pytest.raises(DataError, match=r"columns: .label"):  # 0 is a tie, or the first
        read_pairs(ends)
    from_zero = [{"input": "q", "answer_0": "x", "answer_1": "y", "label": label} for label in (1, 0, 2)]
    with pytest.raises(DataError, match="row 3: a tie"):
        read_pairs(from_zero)
    assert [pair.chosen for pair in read_pairs(from_zero, limit=2)] == ["y", "x"]


def test_rankings_are_the_ends_or_all_pairs_and_their_margins_are_differences() -> None:
    row = STRINGS["scores beside"]
    (best,) = read_pairs([row])
    assert (best.chosen, best.rejected) == ("good", "bad") and best.margin == pytest.approx(0.8)
    every = read_pairs([row], rankings="all")
    assert [(p.chosen, p.rejected) for p in every] == [("good", "fair"), ("good", "bad"), ("fair", "bad")]
    assert [p.margin for p in every] == pytest.approx([0.4, 0.8, 0.4])
    assert read_pairs([STRINGS["ranks"]])[0].margin == 0  # ranks have no unit
    tied = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 1, 0]}
    assert [(p.chosen, p.rejected) for p in read_pairs([tied], rankings="all")] == [("a", "c"), ("b", "c")]
    for scores, words in (([1, 1, 1], "a tie"), ([1, 2], "3 answers and 2 scores"), ([1, None, 2], "`scores` is None")):
        with pytest.raises(DataError, match=f"row 1: .*{words}"):
            read_pairs([{**tied, "scores": scores}])


@pytest.mark.parametrize(("row", "words"), [
    ({"prompt": "q", "completion": "a", "label": True}, "unpaired data: one completion and whether it is good"),
    ({"messages": [*SAID, *YES]}, "unpaired data: one text"),
    ({"instruction": "q", "input": "", "output": "a"}, "unpaired data"),
    ({"text": "a"}, "unpaired data"),
    ({"prompt": "q"}, "no `chosen` and no `rejected`"),
    ({"prompt": "q", "response_a": "x", "response_b": "y"}, "no column that says which is better"),
    ({"prompt": "q", "responses": ["a", "b"]}, "without scores"),
    ({"prompt": "q", "answer_a": "x", "answer_b": "y", "reply_a": "x", "reply_b": "y", "label": 1}, "say which"),
], ids=range(8))  # fmt: skip
def test_what_is_unpaired_gets_what_would_be_needed(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{words}") as error:
        read_pairs([row])
    assert "A preference row needs two completions" in str(error.value) or "columns:" in str(error.value) or "score" in words


def test_json_text_of_messages_whatever_stands_first_in_them() -> None:
    """A conversation whose messages begin with another key, and a message alone; an answer that is an object stays text."""
    named = {"name": "ann", **SAID[0]}
    sides = {"chosen": json.dumps([named, *YES]), "rejected": json.dumps([named, *NO])}
    alone = {"prompt": json.dumps(SAID[0]), "chosen": json.dumps(YES[0]), "rejected": json.dumps(NO[0])}
    assert texts(read_pairs([sides])) == [((named,), YES, NO)] and texts(read_pairs([alone])) == [(SAID, YES, NO)]
    for text in ('{"role": "button", "content": 1}', '{"role": "user", "content": {{x}} }', '{"role": 1}', "[{'a': 1}]"):
        assert texts(read_pairs([{"prompt": "q", "chosen": text, "rejected": "bad"}])) == [("q", text, "bad")]
    with pytest.raises(DataError, match="as Python prints it"):
        read_pairs([{"prompt": "q", "chosen": str(YES[0]), "rejected": "bad"}])


def test_two_columns_of_one_name_and_half_a_character_are_refused(tmp_path: Any) -> None:
    """Of two columns either could be meant; half of a character has no bytes, so no file and no tokenizer has it."""
    import pyarrow.parquet

    twice = pyarrow.table([["q"], ["a"], ["b"], ["c"]], names=["prompt", "chosen", "rejected", "chosen"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice.parquet has 4 columns, and 'chosen' is the name of two"):
        read_pairs(tmp_path / "twice.parquet")
    for row in (
        {"prompt": "q\ud83d", "chosen": "a", "rejected": "b"},
        {**MESSAGES["trl"], "prompt": [{**SAID[0], "content": "\udc00"}]},
    ):
        with pytest.raises(DataError, match=r"row 1: `prompt.*` has half of a character in it"):
            read_pairs([row])
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    read([row, good], Selection(bad_rows="skip"), skipped=tmp_path / "skipped.jsonl", say=lambda _: None)
    assert json.loads((tmp_path / "skipped.jsonl").read_text())["row"] == row


def test_bad_rows_are_refused_by_name_or_skipped_and_written_down(tmp_path: Any) -> None:
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    bad = [{**good, "rejected": "a"}, {**good, "chosen": " "}, {**good, "chosen": None}, {**good, "rejected": "a"}]
    rows = [good, *bad, good]
    with pytest.raises(DataError, match=r"4 of 6 rows cannot be used: row 2: .* row 3: .* row 4: .*bad_rows: skip") as error:
        read_pairs(rows)
    assert "row 5" not in str(error.value)
    with pytest.warns(MultirefWarning, match="4 of 6 rows cannot be used"):
        assert len(read_pairs(rows, bad_rows="skip")) == 2
    told: list[str] = []
    found = read(rows, Selection(bad_rows="skip"), skipped=tmp_path / "skipped.jsonl", say=told.append)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == bad and all(line["reason"].startswith(line["origin"]) for line in lines)
    assert (len(found.pairs), len(found.bad), found.rows) == (2, 4, 6) and "skipped.jsonl" in told[0]
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        read_pairs([bad[0], bad[1]], bad_rows="skip")


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count", "kind"), [
    ("mt-bench-pairs/dataset.json", 200, "two answers .output_1, output_2. and a label .label. .1 the first, 2 the second"),
    ("dpo-demo/dpo_en_demo.json", 300, "conversations, chosen, rejected; conversations .ShareGPT."),
    ("hh-rlhf/harmless-base-test.jsonl.gz", 1704, "the prompt is what both begin with"),
], ids=["labels", "sharegpt", "implicit"])  # fmt: skip
@pytest.mark.filterwarnings("ignore::multiref.errors.MultirefNotice")
def test_real_data(shared: Any, name: str, count: int, kind: str) -> None:
    import re

    found = read(shared / "data" / name, Selection(bad_rows="skip"), say=lambda _: None)
    assert len(found.pairs) + len(found.bad) == count and re.search(kind, found.format), found.format
    assert len(found.bad) < 20


def test_a_row_without_the_prompt_that_others_have() -> None:
    """Its sides share no beginning, so its prompt would be empty. What both begin with is one still."""
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": None, "chosen": "r good", "rejected": "r bad"}]
    assert [pair.prompt for pair in read_pairs(rows)] == ["q", "r"]
    for lost in ({"prompt": None}, {}):
        with pytest.raises(DataError, match="row 3: no prompt, and other rows have one"):
            read_pairs([*rows, {**lost, "chosen": "good", "rejected": "bad"}])
    assert read_pairs([*rows, {"prompt": "", "chosen": "good", "rejected": "bad"}])[2].prompt == ""
    assert read_pairs([{"chosen": "good", "rejected": "bad"}])[0].prompt == ""


def test_no_part_of_a_prompt_is_lost_beside_another() -> None:
    """An instruction for all rows, and the question: one column alone would be half of the prompt."""
    sides = {"chosen": "good", "rejected": "bad"}
    both = {"instruction": "Answer briefly.", "question": "Two and two?"}
    for row, lost in (
        (both, "question"),
        ({"question": "q", "input": "x"}, "question"),
        ({"question": "q", "query": "r"}, "query"),
    ):
        with pytest.raises(DataError, match=f"row 1: `{lost}` would be lost beside (instruction|input|question);"):
            read_pairs([{**row, **sides}])
    assert read_pairs([{"instruction": "Answer: q", "question": "q", **sides}])[0].prompt == "Answer: q"
    with pytest.warns(MultirefNotice, match="columns that are not read: 'instruction', 'question'"):
        assert read_pairs([{"prompt": "p", **both, **sides}])[0].prompt == "p"


def test_a_function_call_of_sharegpt_is_the_assistant_s():
    """As LLaMA-Factory has it, JSON text; it was a turn of a role of that name, which no template was trained with."""
    talk = [{"from": "human", "value": "w?"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]
    sides = {side: {"from": "gpt", "value": side} for side in ("chosen", "rejected")}
    (pair,) = read_pairs([{"conversations": [*talk, {"from": "observation", "value": "r"}], **sides}])
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert pair.prompt[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert [message["role"] for message in pair.prompt] == ["user", "assistant", "tool"]
    talk[1]["value"] = "f(x=1)"
    with pytest.raises(DataError, match="the function_call 'f\\(x=1\\)'…"):
        read_pairs([{"conversations": talk, **sides}])
