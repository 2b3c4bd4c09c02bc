"""Rows of TRL's preference format, in every file that holds them, and every row that cannot be one."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from multiref._files import write_whole
from multiref.data import Pair, as_pair, read_pairs
from multiref.errors import DataError, MultirefWarning
from multiref.references import Store

ROWS = [{"prompt": f"q{k}", "chosen": f" yes {k}", "rejected": f" no {k}"} for k in range(3)]
SYSTEM, USER, YES, NO = (
    {"role": "system", "content": "s"},
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "yes"},
    {"role": "assistant", "content": "no"},
)


def write(folder, name, rows=ROWS):
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(rows) if name == "list.json" else lines, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "list.json", "lines.json", "a.parquet"])
def test_every_format_gives_the_same_pairs(tmp_path, name):
    path = write(tmp_path, name)
    expected = [Pair(row["prompt"], row["chosen"], row["rejected"], f"{name}:{k}") for k, row in enumerate(ROWS, 1)]
    assert read_pairs(path) == expected
    assert read_pairs(path, limit=2) == expected[:2]


def test_conversations_in_parquet_and_jsonl_agree(tmp_path):
    rows = [{"prompt": [USER], "chosen": [YES], "rejected": [NO]}]
    for name in ("a.parquet", "a.jsonl"):
        (pair,) = read_pairs(write(tmp_path, name, rows))
        assert (pair.prompt, pair.chosen, pair.rejected) == ((USER,), (YES,), (NO,))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # TRL's extract_prompt: the longest common beginning, a space before the difference belonging to the completions
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, ("The sky is", " blue.", " green.")),
        ({"chosen": "abc", "rejected": "abd"}, ("ab", "c", "d")),
        ({"chosen": "yes", "rejected": "no"}, ("", "yes", "no")),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, ((USER,), (YES,), (NO,))),
        ({"prompt": None, "chosen": [USER, YES], "rejected": [USER, NO]}, ((USER,), (YES,), (NO,))),
        ({"prompt": "?", "chosen": [USER, YES], "rejected": [USER, NO]}, ((USER,), (YES,), (NO,))),
        ({"prompt": [USER], "chosen": [{**YES, "name": "x"}], "rejected": [NO]}, ((USER,), ({**YES, "name": "x"},), (NO,))),
        ({"prompt": [{**USER, "name": None}], "chosen": [YES], "rejected": [NO]}, ((USER,), (YES,), (NO,))),
        # a string before messages is what the user said, unless what both sides have in common says it
        ({"prompt": "2+2?", "chosen": [YES], "rejected": [NO]}, (({"role": "user", "content": "2+2?"},), (YES,), (NO,))),
        ({"prompt": " ?\r\n", "chosen": [USER, YES], "rejected": [USER, NO]}, ((USER,), (YES,), (NO,))),
        (
            {
                "prompt": "?",
                "chosen": [{"role": "system", "content": "s"}, YES],
                "rejected": [{"role": "system", "content": "s"}, NO],
            },
            (({"role": "system", "content": "s"}, USER), (YES,), (NO,)),
        ),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, ("", "a", "b")),
    ],
)
def test_implicit_and_conversational_prompts(row, expected):
    pair = as_pair(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == expected
    assert as_pair(pair) is pair


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "rejected": "a"}, ["no `chosen`", "prompt, rejected"]),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, ["the same"]),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, ["`rejected` is empty"]),
        ({"prompt": "q", "chosen": " \n", "rejected": "a"}, ["`chosen` is empty"]),
        ({"chosen": "abc", "rejected": "abcd"}, ["`chosen` is empty", "both sides share"]),
        ({"prompt": "q", "chosen": True, "rejected": "a"}, ["`chosen` is True", "bool"]),
        ({"prompt": 3, "chosen": "b", "rejected": "a"}, ["`prompt` is 3"]),
        ({"prompt": "q", "chosen": [YES], "rejected": "a"}, ["one of chosen and rejected is a string"]),
        ({"prompt": [USER], "chosen": "b", "rejected": "a"}, ["the prompt is a list of messages"]),
        ({"prompt": "Say.", "chosen": [USER, YES], "rejected": [USER, NO]}, ["no message of the user", "another question"]),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e39}, ["`margin` is 1e+39", "at most 1e38"]),
        ({"prompt": [USER], "chosen": [{"role": "assistant"}], "rejected": [NO]}, ["`chosen[0]`", "content"]),
        ({"prompt": [USER], "chosen": [{"role": "assistant", "content": ""}], "rejected": [NO]}, ["`chosen` is empty"]),
        ([1, 2], ["found list"]),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    with pytest.raises(DataError) as error:
        as_pair(row, origin="pairs.jsonl:12")
    assert all(word in str(error.value) for word in ["pairs.jsonl:12", *words])
    path = write(tmp_path, "rows.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=r"rows.jsonl:2"):
        read_pairs(path)


def test_bad_files(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + b'\n{"prompt": "\xff"}\n')
    (tmp_path / "broken.jsonl").write_text(json.dumps(ROWS[0]) + '\n\n{"prompt": ')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "no.parquet").write_text("nothing of the kind")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 99)[:40])
    (tmp_path / "folder").mkdir()
    (tmp_path / "pairs.xls").write_text("a,b")
    for name, words in {
        "bytes.jsonl": r"bytes.jsonl:2: byte 13 .*UTF-8",
        "broken.jsonl": r"broken.jsonl:3: not valid JSON",
        "empty.jsonl": "no rows",
        "no.parquet": "no readable Parquet",
        "cut.jsonl.gz": "cannot be read",
        "pairs.xls": "unknown kind of file",
        "absent.jsonl": "does not exist",
        "folder": "a folder without any of",
    }.items():
        with pytest.raises(DataError, match=words):
            read_pairs(tmp_path / name)


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode())
    assert read_pairs(tmp_path / "bom.jsonl")[0].prompt == "q0"


@pytest.mark.shared
def test_real_files(shared):
    """The uniform files read whole; the traps that data-and-models.md names are errors with their row."""
    data = shared / "data"
    assert len(read_pairs(data / "gsm8k" / "pairs.jsonl")) == 1168
    assert len(read_pairs(data / "qa-feedback" / "pairs.jsonl")) == 2080
    assert len(read_pairs(data / "hh-rlhf" / "harmless-base-test.jsonl.gz", limit=50)) == 50
    with pytest.raises(DataError, match=r"pairs.jsonl:\d+: .*(empty|bool)"):
        read_pairs(data / "pandalm" / "pairs.jsonl")


def test_the_home_folder_is_written_as_people_write_it(tmp_path, monkeypatch):
    """What is read, and what is made: no folder called "~" beside it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert [pair.chosen for pair in read_pairs("~/pairs.jsonl")] == ["b"]
    assert Store("~/scores").folder == tmp_path / "home" / "scores"
    assert write_whole("~/out/a.txt", "a") == tmp_path / "home" / "out" / "a.txt"
    assert not (tmp_path / "~").exists()


def test_rows_as_pandas_has_them():
    """Arrays of messages, numpy's numbers, NaN where nothing is: the same pair as the plain row."""
    import numpy as np

    from multiref.data import as_pair

    say = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    plain = {"prompt": say("user", "a"), "chosen": say("assistant", "b"), "rejected": say("assistant", "c")}
    arrays = {name: np.array(value, dtype=object) for name, value in plain.items()}
    odd = {"system": float("nan"), "chat_template_kwargs": {"think": np.bool_(False)}}
    assert as_pair({**arrays, **odd}) == as_pair({**plain, "chat_template_kwargs": {"think": False}})
    for column, words in (("system_prompt", "call it `system`"), ("functions", "give it as `tools`")):
        with pytest.raises(DataError, match=words):
            as_pair({**plain, column: "be brief"})


def test_a_conversation_in_a_column_that_is_not_read_is_not_lost():
    """Where the sides begin with nothing in common; with a prompt the column is listed with the others."""
    talk = [{"role": "user", "content": "two and two?"}]
    sides = {"chosen": [{"role": "assistant", "content": "4"}], "rejected": [{"role": "assistant", "content": "5"}]}
    for name in ("messages", "dialogue"):
        with pytest.raises(DataError, match=rf"x:1: no `prompt`, but a conversation in `{name}`"):
            as_pair({name: talk, **sides}, origin="x:1")
        assert as_pair({name: talk, "prompt": talk, **sides}).prompt == tuple(talk)


def test_sides_that_begin_with_the_whole_prompt_are_said():
    with pytest.warns(MultirefWarning, match="stands there twice"):
        as_pair({"prompt": "Where is Rome?", "chosen": "Where is Rome? In Italy.", "rejected": "Where is Rome? Here."})


def test_what_another_row_has_is_no_null_of_this_one(tmp_path):
    """Parquet gives every row the fields of all: arguments of calls, parameters of tools."""

    def row(**arguments):
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        properties = {name: {"type": "integer"} for name in arguments}
        tool = {"type": "function", "function": {"name": "add", "parameters": {"properties": properties}}}
        answer = {"role": "assistant", "content": "", "tool_calls": [call]}
        sides = {"chosen": [answer], "rejected": [{"role": "assistant", "content": "no"}]}
        return {"prompt": [{"role": "user", "content": "?"}], **sides, "tools": [tool]}

    rows = [row(x=1), row(y=2)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    for read, given in zip(read_pairs(tmp_path / "p.parquet"), rows):
        assert (read.prompt, read.chosen) == (as_pair(given).prompt, as_pair(given).chosen)
        assert "None" not in repr((read.prompt, read.chosen))


def test_sides_that_answer_different_questions_are_a_bad_row():
    """Each question was scored as the beginning of its answer; beside a common system message, too."""

    def turns(*words):
        return [{"role": role, "content": word} for role, word in zip(("system", "user", "assistant"), ("be brief", *words))]

    for start in (0, 1):
        row = {"chosen": turns("two?", "2")[start:], "rejected": turns("three?", "3")[start:]}
        with pytest.raises(DataError, match="x:1: chosen and rejected begin with different questions"):
            as_pair(row, origin="x:1")
        assert as_pair({**row, "rejected": turns("two?", "3")[start:]}).prompt == tuple(turns("two?")[start:])


def test_a_prompt_that_ends_in_the_answer_itself():
    """It was resumed: scored was the answer twice, 44."""
    talk = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "4"}]
    row = {"prompt": talk, "chosen": talk[1:], "rejected": [{"role": "assistant", "content": "5"}]}
    with pytest.raises(DataError, match="the prompt ends in `chosen` itself"):
        as_pair(row)
    begun = [talk[0], {"role": "assistant", "content": "It is "}]
    assert as_pair({**row, "prompt": begun}).prompt == tuple(begun)


def test_sides_that_name_columns():
    """The names were trained on."""
    row = {"prompt": "q", "response_1": "a", "response_2": "b", "chosen": "response_2", "rejected": "response_1"}
    with pytest.raises(DataError, match="are names of columns, 'response_2' and 'response_1'"):
        read_pairs([row])
