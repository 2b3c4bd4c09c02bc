"""Files of preference pairs: JSON Lines (plain or gzipped), a JSON list, Parquet."""

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from multiref.data.pairs import QUESTIONS, REFUSED, USED, Pair, as_pairs, list_unread
from multiref.errors import DataError

Rows: TypeAlias = Iterator[tuple[int, Any]]  # number of the row, counted from 1, and what stands there


def read_pairs(path: str | Path, *, limit: int | None = None) -> list[Pair]:
    """The pairs of a file, at most `limit` of them, in the order of the file.

    Formats by name: .jsonl, .jsonl.gz, .json (a list of rows, or rows one a line), .json.gz, .parquet;
    rows as `as_pair` takes them.
    Errors: DataError naming file and row (counted from 1; blank lines count, so that it is the line in an editor).
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; expected a file of preference pairs (.jsonl, .jsonl.gz, .json or .parquet).")
    rows = ((f"{path.name}:{number}", row) for number, row in islice(_rows(path), limit))
    pairs = list(as_pairs(rows, path.name))
    if not pairs and limit != 0:
        raise DataError(f"{path} has no rows; expected at least one preference pair.")
    return pairs


def _rows(path: Path) -> Rows:
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(path)
    elif name.endswith((".json", ".json.gz")):
        yield from _json_rows(path)
    else:
        raise DataError(f"{path}: unknown kind of file; expected .jsonl, .jsonl.gz, .json, .json.gz or .parquet.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines one by one, so that `limit` does not read a large file to its end and a bad byte has a row."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name}:{number}: byte {error.start + 1} of the row is not UTF-8; save the file as UTF-8 and try again."
        ) from None
    except (OSError, EOFError) as error:  # a .gz that is none, or is cut off
        raise DataError(f"{path} cannot be read after row {number}: {error}.") from None


def _json_lines(path: Path) -> Rows:
    for number, line in _lines(path):
        if line.strip():
            yield number, _parse(line, f"{path.name}:{number}")


def _json_rows(path: Path) -> Rows:
    text = "".join(line for _, line in _lines(path))
    if text.lstrip()[:1] != "[":
        yield from _json_lines(path)  # JSON Lines under the name .json
        return
    yield from enumerate(_parse(text, path.name), 1)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error}).") from None


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        wanted = [name for name in file.schema_arrow.names if name in USED or name in REFUSED or name in QUESTIONS]
        list_unread(set(file.schema_arrow.names) - set(wanted), path.name)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}.") from None
