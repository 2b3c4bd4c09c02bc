"""Port of cases/scoring_lost_fields: everything that a row says reaches the score, or is refused or named."""

import json

import pytest

import multiref as mr
from multiref.data import Conversation, as_pair, read_pairs
from multiref.errors import DataError, MultirefNotice
from multiref.models import LanguageModel
from multiref.references import content_key
from tests.conftest import make_llama
from tests.models.templates import QWEN, byte_tokenizer

CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
USER = [{"role": "user", "content": "2+2?"}]


def says(content, **fields):
    return [{"role": "assistant", "content": content, **fields}]


def rows():
    """Rows that differ from the first in one field each."""
    first = {"prompt": USER, "chosen": says("ok"), "rejected": says("5")}
    yield first
    yield {**first, "prompt": "The capital of France?"}
    yield {**first, "chosen": says("ok", tool_calls=[CALL])}
    yield {**first, "chosen": says("ok", reasoning_content="two and two")}
    yield {**first, "system": "be brief"}
    yield {**first, "tools": json.dumps([TOOL])}
    yield {**first, "chat_template_kwargs": {"enable_thinking": False}}
    yield {**first, "chosen": says([{"type": "text", "text": "ok"}, {"type": "text", "text": "!"}])}


@pytest.mark.parametrize("kind", ["rows", "file"])
def test_every_field_reaches_the_score(kind, tmp_path):
    """Different rows, different scores and different keys, from rows and from a file alike."""
    tokenizer = byte_tokenizer(QWEN)
    references = mr.References({"r": LanguageModel(make_llama(len(tokenizer), context=512), tokenizer, "r")})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    data = read_pairs(tmp_path / "rows.jsonl") if kind == "file" else [as_pair(row) for row in rows()]
    scores = references.score(data)
    sums = [round(float(scores.of([pair.prompt], [pair.chosen])), 6) for pair in data]
    assert len(set(sums)) == len(data) == len({content_key(pair.prompt, pair.chosen) for pair in data})
    again = references.score(list(rows()))
    assert [round(float(again.of([pair.prompt], [pair.chosen])), 6) for pair in data] == sums


def test_a_string_before_messages_is_what_the_user_said():
    asked, whole = as_pair({"prompt": "2+2?", "chosen": says("4"), "rejected": says("5")}), [*USER, *says("4")]
    assert asked.prompt == tuple(USER) and asked.chosen == tuple(says("4"))
    pair = as_pair({"prompt": "2+2?", "chosen": whole, "rejected": [*USER, *says("5")]})
    assert (pair.prompt, pair.chosen) == (asked.prompt, asked.chosen)


def test_keys_are_the_row_s_own_and_plain_rows_keep_theirs():
    plain = ({"role": "user", "content": "hi"},)
    assert content_key(Conversation(plain), "x") == content_key(plain, "x")
    assert content_key(plain, "é").hex() == "ba1e2f5dbe598fd24d6a2e70f84703fe"
    tools, options = Conversation(plain, tools=[TOOL]), Conversation(plain, chat_template_kwargs={"a": 1})
    assert len({content_key(prompt, "x") for prompt in (plain, tools, options)}) == 3
    assert tools != Conversation(plain) == plain and Conversation(plain, tools=[TOOL]) == tools


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"images": ["x.png"]}, "`images` is not read"),
        ({"documents": [{"title": "t", "text": "x"}]}, "chat_template_kwargs"),
        ({"system": "be brief"}, "`system`, which only a chat template"),
        ({"tools": [TOOL]}, "`tools`, which only a chat template"),
        ({"prompt": None, "question": "2+2?"}, "`question`, which would be lost"),
    ],
)
def test_what_would_be_lost_is_refused(column, words, tmp_path):
    row = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    with pytest.raises(DataError, match=rf"row 3: .*{words}"):
        as_pair({**row, **column}, origin="row 3")
    as_pair({**row, "images": [], "system": None, "tools": "[]"})  # empty columns say nothing
    with pytest.raises(DataError, match="differ"):
        as_pair(
            {"prompt": [{"role": "system", "content": "a"}, *USER], "system": "b", "chosen": says("4"), "rejected": says("5")}
        )
    with pytest.raises(DataError, match="image"):
        as_pair({"prompt": USER, "chosen": says([{"type": "image", "url": "x"}]), "rejected": says("5")})


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_other_columns_are_listed_once(ending, tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"rows.{ending}"
    table = [{"prompt": f"{k}", "chosen": " a", "rejected": " b", "source": "web", "id": k} for k in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    with pytest.warns(MultirefNotice, match="columns that are not read: 'id', 'source'") as found:
        assert len(read_pairs(path)) == 3
    assert len(found) == 1
