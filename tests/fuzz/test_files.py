"""The door for files: what is no file, too large, a bomb, or JSON of two readings is one error, fast and in little memory."""

import gzip
import json
import os
import stat
import time
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from multiref._files import write_whole
from multiref._json import parse_json
from multiref.data import read_pairs
from multiref.data.files import file_rows
from multiref.errors import DataError, OutputError

SPACES, BLANK = b" " * 2**20, (b" " * 65535 + b"\n") * 2**4
ROW = b'{"prompt": "q", "chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"])
def test_a_pipe_a_device_and_a_folder_are_refused_unopened(tmp_path, name):
    """To open a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is a pipe; expected a file of rows"):
        read_pairs(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a device"):
        read_pairs(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_pairs(tmp_path / name)


@pytest.mark.parametrize("name", ["a" * 300 + ".jsonl", "a\0b.jsonl", "\ud800.jsonl"])
def test_a_name_that_no_file_can_have(tmp_path, name):
    with pytest.raises(DataError, match="no file or data set can have this name"):
        read_pairs(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in ("a.jsonl.gz", "a.json.gz") for content in (SPACES, BLANK)] + [("a.jsonl.zst", SPACES)],
    ids=range(5),
)
def test_a_bomb_stops_at_the_limit(tmp_path, name, content):
    """80 MiB of spaces in one line, of blank lines: stopped where the ratio says, in little memory."""
    packed = gzip.compress(content, 9) if name.endswith(".gz") else pyarrow.compress(content, "zstd", asbytes=True)
    (tmp_path / name).write_bytes(packed * 80)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"unpack to more than 64 MiB|the row has more than 16 MiB"):
            read_pairs(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


def test_a_dictionary_bomb_in_parquet_stops_before_it_is_written_out(tmp_path):
    """A text of a megabyte stands once in the file and in 10⁴ rows."""
    text = "x" * 10**6
    side = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 10**4, pyarrow.int32()), [text])
    table = pyarrow.table({"chosen": side, "rejected": ["b"] * 10**4})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", dictionary_pagesize_limit=2**30, compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10**5
    with pytest.raises(DataError, match="unpack to more than 64 MiB"):
        read_pairs(tmp_path / "a.parquet")


def test_a_parquet_of_many_rows_of_nothing_stops(tmp_path):
    """Two million rows without a value are a few kilobytes."""
    empty = pyarrow.nulls(2 * 10**6, pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"chosen": empty, "rejected": empty}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="10,000 of 10,000 rows cannot be used"):
        read_pairs(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"unpack to more than 1 MiB"):
        for _ in file_rows(tmp_path / "a.parquet", largest=2**20):
            pass


def test_what_is_written_to_a_device_does_not_take_its_place(tmp_path):
    """As root, a rename onto /dev/full would leave a file there. A pipe stands for it: read, and with nobody who reads it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(pipe, "abc")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "abc")
        assert os.read(reader, 9) == b"abc" and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


def test_the_size_is_an_argument(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(ROW * 100)
    assert len(read_pairs(tmp_path / "a.jsonl", largest=10**4)) == 100
    with pytest.raises(DataError, match=r"at most 1,000 bytes \(largest=1000\)"):
        read_pairs(tmp_path / "a.jsonl", largest=1000)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b'{"chosen": "a", "rejected": "b", "chosen": "c"}', r"a.jsonl:2: .*'chosen' stands twice"),
        (b'{"chosen": "a", "rejected": "b", "x": ' + b"[" * 10**6, "a.jsonl:2: .*more than 64 deep"),
        (b'{"chosen": "a", "rejected": "b", "margin": ' + b"9" * 5000 + b"}", "5,000 digits"),
        (b'{"chosen": "a", "rejected": "b", "margin": 1e999}', "beyond a float"),
        (b'{"chosen": "a", "rejected": "b", "margin": NaN}', "`margin` is nan"),
        (rb'{"chosen": "a\ud800", "rejected": "b"}', "half of a character"),
        (b'{"chosen": "a\0", "rejected": "b"}', "not valid JSON"),
        (b'{"chosen": "\xff", "rejected": "b"}', "byte 13 of the row is not UTF-8"),
    ],
)
def test_json_that_cannot_be_meant_is_named_by_row(tmp_path, row, said):
    (tmp_path / "a.jsonl").write_bytes(ROW + row + b"\n")
    with pytest.raises(DataError, match=said):
        read_pairs(tmp_path / "a.jsonl")


@pytest.mark.parametrize("text", ["[1]", "[{}{}]", "[,{}]", "[[]]", "[{}", "[{},]", "[{}] x", '[{}, "b"]', "[", "[]]"])
def test_a_list_that_is_none_of_rows(tmp_path, text):
    row = ROW.decode().strip()
    (tmp_path / "a.json").write_text(text.replace("{}", row))
    with pytest.raises(DataError, match=r"a.json: not valid JSON after row \d"):
        read_pairs(tmp_path / "a.json")


def test_a_string_that_never_ends_is_read_once():
    """Behind more brackets than are counted at a glance: if each of its 60,000 quotes were tried as the begin of another
    string, that would take half a minute, and a server's loop would stand still."""
    begun = time.process_time()
    with pytest.raises(DataError, match="not valid JSON"):
        parse_json("[" + "[]," * 20 + '"' + '\\"' * 60_000, "the body", depth=16)
    assert time.process_time() - begun < 1


def test_brackets_and_quotes_in_texts_are_no_structure(tmp_path):
    rows = [{"prompt": 'a "]}{[' * 50, "chosen": "\\", "rejected": '\\"['}] * 3
    for indent in (None, 2):
        (tmp_path / "a.json").write_text("\ufeff \n" + json.dumps(rows, indent=indent), encoding="utf-8")
        assert [pair.chosen for pair in read_pairs(tmp_path / "a.json")] == ["\\"] * 3


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_said(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_text(ROW.decode(), encoding=encoding)
    with pytest.raises(DataError, match="UTF-16 or UTF-32"):
        read_pairs(tmp_path / "a.jsonl")
