"""The column that says by how much a pair's chosen side should lead: read from every format, zero where it is not there,
refused where it is no number."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from multiref.data import read_pairs
from multiref.errors import DataError

ROWS = [
    {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5},
    {"prompt": "a", "chosen": "c", "rejected": "d", "margin": None},
]


def test_margins_are_read_from_json_lines_and_parquet(tmp_path):
    lines, table = tmp_path / "pairs.jsonl", tmp_path / "pairs.parquet"
    lines.write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS) + '{"chosen": "x y", "rejected": "x z"}\n', encoding="utf-8"
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    assert [pair.margin for pair in read_pairs(lines)] == [0.5, 0.0, 0.0]
    assert [pair.margin for pair in read_pairs(table)] == [0.5, 0.0]


@pytest.mark.parametrize("margin", ["1", True, float("nan")])
def test_a_margin_that_is_no_number_is_refused_with_its_row(tmp_path, margin):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[0], "margin": margin}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: `margin`"):
        read_pairs(path)
