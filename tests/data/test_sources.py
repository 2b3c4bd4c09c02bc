"""Rows from wherever they are kept: the same pairs from each place."""

import bz2
import datetime
import gzip
import http.server
import json
import threading
import warnings
import zipfile
from typing import Any

import datasets
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value

from multiref.data import Conversation, read, read_pairs
from multiref.data.urls import show
from multiref.errors import ArgumentError, DataError, MultirefNotice, MultirefWarning
from multiref.runs.prompts import Prompts

ROWS = [{"prompt": f"q{k}", "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(12)]
EXPECTED = [(row["prompt"], row["chosen"], row["rejected"]) for row in ROWS]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(source: Any, **options: Any) -> list[Any]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in read_pairs(source, **options)]


def test_folders_data_sets_and_urls_have_the_same_pairs(tmp_path: Any) -> None:
    (tmp_path / "shards").mkdir()
    for number in (0, 1, 2, 10, 11):  # the tenth shard comes after the second
        part = (
            ROWS[number : number + 1] if number > 9 else ROWS[3 * number : 3 * number + 3] + (ROWS[9:10] if number == 2 else [])
        )
        (tmp_path / "shards" / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(lines(part).encode()))
    (tmp_path / "shards" / "README.md").write_text("# not rows")
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "".join(",".join(row) + "\n" for row in EXPECTED))
    (tmp_path / "a.tsv").write_text("prompt\tchosen\trejected\n" + "".join("\t".join(row) + "\n" for row in EXPECTED))
    (tmp_path / "spread.csv").write_text("prompt;chosen;rejected\n" + "".join(";".join(row) + "\n" for row in EXPECTED))
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(lines(ROWS[:5]).encode()) + bz2.compress(lines(ROWS[5:]).encode()))
    (tmp_path / "a.json.zst").write_bytes(pyarrow.compress(json.dumps(ROWS).encode(), "zstd", asbytes=True))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("in/a.jsonl", lines(ROWS))
    assert texts(f"zip://in/a.jsonl::file://{tmp_path}/a.zip") == texts(f"zip://in::file://{tmp_path}/a.zip") == EXPECTED
    for name in ("a.jsonl.bz2", "a.json.zst", "shards", "a.csv", "a.tsv", "spread.csv", "a.jsonl", "saved"):
        assert texts(tmp_path / name) == EXPECTED, name
    assert (
        texts(tmp_path / "splits", split="train")
        == texts(data)
        == texts(ROWS)
        == texts(f"file://{tmp_path}/a.jsonl")
        == EXPECTED
    )
    for source, count in (("splits", 2), ("shards", 4), ("a.csv", 4)):
        part = "test" if source == "splits" else "[:25%]" if source == "a.csv" else "[8:]"
        assert len(texts(tmp_path / source, split=part)) == (1 if source == "splits" else 3 if source == "a.csv" else count)
    with pytest.raises(DataError, match="splits has the splits train, test; say which one"):
        read_pairs(tmp_path / "splits")


def test_files_that_say_that_there_are_more(tmp_path: Any) -> None:
    """A copy that was cut off read as the whole, and a data set saved over another as both."""
    name, text = "train-{:05}-of-{:05}.jsonl", lines(ROWS[:3])
    (tmp_path / name.format(0, 2)).write_text(text)
    with pytest.warns(MultirefWarning, match=r"has 1 of 2 files train-…-of-00002\.jsonl: only their rows"):
        assert len(texts(tmp_path)) == 3
    assert len(texts(tmp_path / name.format(0, 2))) == 3  # which was asked for alone
    (tmp_path / name.format(1, 2)).write_text(text)
    assert len(texts(tmp_path)) == 6
    (tmp_path / name.format(0, 1)).write_text(text)
    with pytest.raises(DataError, match=r"of two data sets \(-of-00001, -of-00002\)"):
        texts(tmp_path)
    with pytest.raises(DataError, match=r"of two data sets"):
        texts(f"file://{tmp_path}")


def test_a_url_is_shown_with_its_port_and_without_its_password() -> None:
    assert show("https://me:secret@Host:9000/a.jsonl?token=secret") == "https://Host:9000/a.jsonl"


def test_percents_are_those_of_datasets() -> None:
    rows = [{"prompt": str(n), "chosen": "a", "rejected": "b"} for n in range(1050)]
    data = datasets.Dataset.from_list(rows)
    for low, high in ((0, 1), (1, 2), (33, 34), (50, 99), (99, 100), (-10, 100), (20, -7)):
        wanted = datasets.ReadInstruction("all", from_=low, to=high, unit="%").to_absolute({"all": len(data)})[0]
        found = read_pairs(rows, split=f"[{low}%:{high}%]")
        assert (found[0].prompt, found[-1].prompt) == (str(wanted.from_), str(wanted.to - 1)), (low, high)


def test_a_folder_at_a_url_is_read_file_by_file(tmp_path: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    whole = ROWS[:5], ROWS[5:9], ROWS[9:]
    for number, rows in zip((2, 9, 10), whole):  # the ninth shard comes before the tenth
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"{number}.parquet"))
        memory.pipe(f"/pairs/day={number}/part.parquet", (tmp_path / f"{number}.parquet").read_bytes())
    memory.pipe("/pairs/_SUCCESS", b"")
    memory.pipe("/splits/train-0.jsonl", lines(ROWS).encode())
    memory.pipe("/splits/test-0.jsonl", lines(ROWS[:2]).encode())
    for where in ("memory://pairs/", "memory://pairs", "memory://pairs/*/part.parquet", f"file://{tmp_path}"):
        told: list[str] = []
        found = read(where, say=told.append, spool=tmp_path / "spool")
        assert [(p.prompt, p.chosen, p.rejected) for p in found.pairs] == EXPECTED and "Reading 3 files" in told[0]
        assert found.pairs[5].origin.endswith(".parquet:1")
    assert texts("memory://splits", split="train") == EXPECTED and len(texts("memory://splits", split="test")) == 2
    for wrong, said in (("memory://splits", "several splits"), ("memory://none/", "nothing there"), ("nosuch://x/", "listed")):
        with pytest.raises(DataError, match=said):
            texts(wrong)


def test_tables_in_memory_are_rows() -> None:
    """Also where a data set gives arrays or tables; the index that pandas writes into a CSV is no column of ours."""
    import pandas

    rows, one = [dict(zip(("prompt", "chosen", "rejected"), "qab"))] * 2, [("q", "a", "b")] * 2
    found = Dataset.from_list(rows)
    for table in (
        pandas.DataFrame(rows),
        pyarrow.Table.from_pylist(rows),
        *map(found.with_format, ("pandas", "arrow", "numpy")),
    ):
        assert texts(table) == one


def test_arrays_in_a_table_are_lists(tmp_path: Any) -> None:
    """As pandas gives lists that it reads from Parquet; and Arrow's maps are objects. Names of columns that are no text are
    named in an error."""
    import pandas
    import pyarrow.parquet as pq

    talk = [("conversations", [{"from": "human", "value": "q"}]), ("chosen", [{"from": "gpt", "value": "a"}])]
    said = {name: ({"role": role, "content": content},) for name, role, content in
            (("prompt", "user", "q"), ("chosen", "assistant", "a"), ("rejected", "assistant", "b"))}  # fmt: skip
    maps = pyarrow.list_(pyarrow.map_(pyarrow.string(), pyarrow.string()))
    tables = {
        "ranks": pyarrow.table({"prompt": ["q"], "responses": [["b", "a"]], "rank": [[2, 1]]}),
        "talk": pyarrow.table({**{name: [value] for name, value in talk}, "rejected": [[{"from": "gpt", "value": "b"}]]}),
        "maps": pyarrow.table({name: pyarrow.array([[list(turn.items()) for turn in turns]], maps) for name, turns in
                               said.items()}),
    }  # fmt: skip
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        right = [("q", "a", "b")] if name == "ranks" else [tuple(said.values())]
        assert texts(tmp_path / f"{name}.parquet") == right == texts(pandas.read_parquet(tmp_path / f"{name}.parquet"))
    with pytest.raises(DataError, match=r"no `chosen`.*found \('x', 'prompt'\), 3"):
        read_pairs([{("x", "prompt"): "q", 3: "a"}])


def test_pictures_sounds_and_times_that_nobody_reads_are_not_looked_at(tmp_path: Any) -> None:
    """They may be broken, or need a library that is not there."""
    held = {"shot": datasets.Image(), "sound": datasets.Audio()}
    data = Dataset.from_list([{**row, **{name: {"bytes": b"none", "path": None} for name in held}} for row in ROWS])
    data = data.add_column("at", [datetime.datetime(2020, 1, 1)] * len(ROWS))
    for name, kind in held.items():
        data = data.cast_column(name, kind)
    data.save_to_disk(str(tmp_path / "saved"))
    for source in (data, data.to_iterable_dataset(), tmp_path / "saved"):
        assert texts(source) == EXPECTED
    ranked = Dataset.from_dict({"prompt": ["q"], "responses": [["b", "a"]], "scores": [[1, 2]], "at": data["at"][:1]})
    assert texts(ranked.to_iterable_dataset()) == [("q", "a", "b")]


def test_the_names_of_class_labels_say_what_their_numbers_mean(tmp_path: Any) -> None:
    """0 is response_b here: by the numbers alone each pair would be turned round. Also in a Parquet file and a stream."""
    words = {name: Value("string") for name in ("prompt", "response_a", "response_b")}
    features = Features({**words, "label": ClassLabel(names=["response_b", "response_a"])})
    rows = [{"prompt": "q", "response_a": "a", "response_b": "b", "label": label} for label in (0, 1)]
    found = Dataset.from_list(rows, features=features)
    found.to_parquet(tmp_path / "a.parquet")
    for source in (found, tmp_path / "a.parquet"):
        assert texts(source) == [("q", "b", "a"), ("q", "a", "b")]
    with pytest.warns(MultirefNotice, match="streamed"):
        assert texts(found.to_iterable_dataset()) == [("q", "b", "a"), ("q", "a", "b")]
    with pytest.raises(DataError, match="the data set:1: no label"):
        read_pairs(Dataset.from_list([{**rows[0], "label": -1}, rows[1]], features=features))


def test_a_stream_that_breaks_off_is_named() -> None:
    def rows() -> Any:
        yield {"prompt": "q", "chosen": "a", "rejected": "b"}
        raise ConnectionError("gone")

    with pytest.warns(MultirefNotice), pytest.raises(DataError, match=r"after row 1: .*ConnectionError: gone"):
        read_pairs(IterableDataset.from_generator(rows))


def test_a_stream_is_spooled_first_and_that_is_said() -> None:
    told: list[str] = []
    stream = datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    found = read(stream, say=told.append)
    assert [(p.prompt, p.chosen, p.rejected) for p in found.pairs] == EXPECTED and "written to disk first" in told[0]
    assert found.pairs[2].origin.endswith(":3")


def test_splits_of_a_folder(tmp_path: Any) -> None:
    for name, rows in {
        "train-00000-of-00002": ROWS[:4],
        "train-00001-of-00002": ROWS[4:10],
        "test-00000-of-00001": ROWS[10:],
    }.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "data" / f"{name}.parquet"))
    assert texts(tmp_path, split="train") == EXPECTED[:10] and texts(tmp_path, split="test") == EXPECTED[10:]
    assert texts(tmp_path, split="train[10%:5]") == EXPECTED[1:5] and texts(tmp_path, split="train[-2:]") == EXPECTED[8:10]
    for split, words in (
        (None, "several splits .test, train."),
        ("dev", "no files of the split 'dev'"),
        ("a+b", "expected a name"),
    ):
        with pytest.raises(DataError, match=words):
            read_pairs(tmp_path, split=split)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: some\n  data_files:\n  - split: train\n    path: data/test-*\n---\n"
    )
    assert texts(tmp_path, name="some", split="train") == EXPECTED[10:]


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = {"/a.jsonl": lines(ROWS).encode(), "/big.jsonl": b" " * 10**6}.get(self.path.split("?")[0])
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_urls(tmp_path: Any) -> None:
    """Fetched whole, within the limit; a password or a token in the address is not shown."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert texts(f"{at}/a.jsonl?token=secret") == EXPECTED
        for url, words in {
            "/b.jsonl?token=secret": "404",
            "/a.exe": "unknown kind",
            "/big.jsonl": "more than 1,000 bytes",
        }.items():
            with pytest.raises(DataError, match=words) as error:
                read_pairs(at + url, largest=1000)
            assert "secret" not in str(error.value)
        with pytest.raises(DataError, match="cannot be fetched"):
            read_pairs("nonsense://a/b.jsonl")
    server.shutdown()
    server.server_close()


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, and where the hub does not answer: one attempt, and what was tried."""
    import huggingface_hub.constants as hub

    for offline, words in ((True, "HF_HUB_OFFLINE is set"), (False, "cannot be reached")):
        monkeypatch.setattr(hub, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(DataError, match=f"No file or folder nobody/nothing, .*{words}.*not cached") as error:
            read_pairs("nobody/nothing")
        assert "\n" not in str(error.value)
    assert hub.HF_HUB_OFFLINE is False


def test_prompts_from_the_same_places(tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    datasets.Dataset.from_list([{"instruction": "a b c", "output": "d"}]).save_to_disk(str(tmp_path / "saved"))
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    (tmp_path / "talk.jsonl").write_text(lines([{"conversations": talk}, {"chosen": "q yes", "rejected": "q no"}]))
    assert [row["prompt"] for row in Prompts(path=str(tmp_path / "a.jsonl"), skip=1, limit=2).rows()] == ["q1", "q2"]
    row = {"prompt": "a b", "text": " c", "unfinished": False, "output": "d"}
    assert Prompts(path=str(tmp_path / "saved"), words=2).rows() == [row]
    assert [row["prompt"] for row in Prompts(path=str(tmp_path / "talk.jsonl")).rows()] == [
        ({"role": "user", "content": "q"},),
        "q",
    ]


def test_decode_and_sweep_take_prompts_from_there_too(tmp_path: Any) -> None:
    """Rows are rows: the JSON of a line is no prompt. A text file has one a line, and only a line's end ends it."""
    from multiref.cli.decode import _read
    from multiref.runs.sweeping import SweepSettings, read_prompts

    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    (tmp_path / "a.txt").write_bytes("q0\u2028x\r\nq1\n".encode())
    assert [row["prompt"] for row in _read(str(tmp_path / "a.jsonl"), None, "train[:2]")] == ["q0", "q1"]
    assert [row["prompt"] for row in _read(str(tmp_path / "a.txt"), None, None)] == ["q0\u2028x", "q1"]
    assert [row["prompt"] for row in read_prompts(tmp_path / "a.jsonl", SweepSettings(split="[3:5]"))] == ["q3", "q4"]
    (tmp_path / "talk.jsonl").write_text(lines([{"prompt": [{"role": "user", "content": "q"}]}]))
    with pytest.raises(ArgumentError, match=r"talk.jsonl:1: a conversation"):
        list(_read(str(tmp_path / "talk.jsonl"), None, None))


@pytest.mark.parametrize(("text", "words"), [
    ("prompt,chosen,chosen\na,b,c\n", "a column twice"),
    ("prompt,chosen,rejected\na,b\n", "a.csv:2: 2 cells"),
    ('prompt,chosen,rejected\n"a,b,c\n', "a.csv:2: no row of CSV"),
    ("", "no rows"),
    ("prompt,chosen,rejected\n\"[{'role': 'user', 'content': 'q'}]\",a,b\n", "a.csv:2: .* as Python prints it"),
], ids=range(5))  # fmt: skip
def test_bad_csv(tmp_path: Any, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_pairs(tmp_path / "a.csv")


def test_quotes_that_would_join_rows_of_a_tsv(tmp_path: Any) -> None:
    """Written without quoting, a text may begin with one, and the next row's close it: two rows would be one pair. A quoted
    cell that has lines, or tabs, is one."""
    (tmp_path / "a.tsv").write_text('prompt\tchosen\trejected\nq0\t"Hi\tno\nq1\tyes"\tnah\n')
    with pytest.raises(DataError, match=r"a.tsv:2: a quote is open over 2 lines that have 3 cells each"):
        read_pairs(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_text('prompt\tchosen\trejected\nq0\t"a\tb\nc"\td\nq1\t"e\n\nf"\tg\n')
    assert texts(tmp_path / "a.tsv") == [("q0", "a\tb\nc", "d"), ("q1", "e\n\nf", "g")]


def test_prompts_keep_what_else_their_rows_say(tmp_path: Any) -> None:
    """Rewards are given the other columns; the template what belongs to a conversation; and what would be lost is refused,
    as of pairs."""
    talk, asks = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], {"chat_template_kwargs": {"x": 1}}
    (tmp_path / "a.jsonl").write_text(lines([
        {"prompt": "one two", "answer": "3", "label": 1, "chosen": "x", "rejected": "y", "weights": [1], "text": "z"},
        {"question": "r", "answer": "4"}, {"messages": talk, "id": "k", **asks},
    ]))  # fmt: skip
    first, second, third = Prompts(path=str(tmp_path / "a.jsonl"), words=1).rows()
    assert first == {"prompt": "one", "text": " two", "unfinished": False, "answer": "3", "label": 1}
    assert second == {"prompt": "r", "answer": "4"} and (third["prompt"], third["id"]) == (Conversation(talk[:1], **asks), "k")
    for row, words in (
        ({"messages": talk, "functions": [{"name": "f"}]}, "`functions` is not read"),
        ({"question": "q", "system_prompt": "s"}, "`system_prompt` is not read"),
        ({"text": "t", "images": ["x"]}, "`images` is not read"),
        ({"text": "t", "system": "s"}, "has `system`, which only a chat template can write"),
    ):
        (tmp_path / "b.jsonl").write_text(lines([row]))
        with pytest.raises(DataError, match=f"b.jsonl:1: .*{words}"):
            Prompts(path=str(tmp_path / "b.jsonl")).rows()


def test_a_file_of_one_column_may_have_semicolons(tmp_path: Any) -> None:
    """Nothing in its header separates, so the comma does, which such texts have quotes around."""
    (tmp_path / "one.csv").write_text('prompt\nfirst; then\n"a, b"\n')
    assert [row["prompt"] for row in Prompts(path=str(tmp_path / "one.csv")).rows()] == ["first; then", "a, b"]


def test_numbers_of_a_csv_as_pandas_writes_them(tmp_path: Any) -> None:
    """1e-05 and 1.0 are numbers; a label column with an empty cell has floats for whole numbers."""
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,margin\nq,a,b,1e-05\nr,a,b,2\ns,a,b,\n")
    assert [pair.margin for pair in read_pairs(tmp_path / "a.csv")] == [1e-05, 2.0, 0.0]
    (tmp_path / "i.csv").write_text(",prompt,chosen,rejected\n0,q,a,b\n")
    with pytest.warns(MultirefNotice, match="Unnamed: 0"):
        assert texts(tmp_path / "i.csv") == [("q", "a", "b")]
    (tmp_path / "b.csv").write_text("prompt,response_1,response_2,label\nq,a,b,1.0\nr,a,b,2.0\n")
    assert texts(tmp_path / "b.csv") == [("q", "a", "b"), ("r", "b", "a")]
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,margin\nq,a,b,much\n")
    with pytest.raises(DataError, match="`margin` is 'much', expected a finite number"):
        read_pairs(tmp_path / "a.csv")


def test_a_split_that_a_file_has_not_is_no_other_one(tmp_path: Any) -> None:
    """One file, and files whose names say nothing, are train: as test they would be the rows that were trained on."""
    (tmp_path / "rows").mkdir()
    for path in (tmp_path / "a.jsonl", tmp_path / "rows" / "part-0.jsonl"):
        path.write_text(lines(ROWS))
    for source in (tmp_path / "a.jsonl", tmp_path / "rows", f"file://{tmp_path}/rows"):
        assert len(texts(source, split="train[:5]")) == 5
        with pytest.raises(DataError, match="has no files of the split 'test'; found none"):
            texts(source, split="test")
    (tmp_path / "test.jsonl").write_text(lines(ROWS[:2]))
    assert texts(tmp_path / "test.jsonl", split="test") == EXPECTED[:2]
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "saved"))
    streamed = datasets.IterableDataset.from_generator(lambda: iter(ROWS))
    for whole in (ROWS, data, tmp_path / "saved", streamed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(texts(whole, split="train[:5]")) == 5
        with pytest.raises(DataError, match="has no split 'test'; it is 'train'"):
            texts(whole, split="test")
    cut = datasets.Dataset.from_list(ROWS, split=datasets.NamedSplit("test[:50%]"))
    assert texts(cut, split="test") == EXPECTED
    with pytest.raises(DataError, match="has no configurations"):
        texts(tmp_path / "a.jsonl", name="some")


def test_a_folder_of_everything_is_not_walked_through(tmp_path, monkeypatch):
    monkeypatch.setattr("multiref.data.sources.MOST", 5)
    for n in range(4):
        (tmp_path / f"{n}.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    assert len(read_pairs(tmp_path)) == 4
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "4.txt").touch()
    with pytest.raises(DataError, match="holds more than 5 files and folders"):
        read_pairs(tmp_path)
