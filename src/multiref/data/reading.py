"""Files of preference pairs: JSON Lines (plain or gzipped), a JSON list, Parquet."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from multiref._files import MIB, Unpacked, as_path, check_unpacked, decode, open_file, read_lines
from multiref._json import parse_items, parse_json
from multiref.data.pairs import QUESTIONS, REFUSED, USED, Pair, as_pairs, list_unread
from multiref.errors import DataError, MultirefWarning

Rows: TypeAlias = Iterator[tuple[int, Any]]  # number of the row, counted from 1, and what stands there
LARGEST = 8192 * MIB
_EXPECTED = "a file of preference pairs (.jsonl, .jsonl.gz, .json, .json.gz or .parquet)"
_BLANK = b" \t\r\n\xef\xbb\xbf"


def read_pairs(path: str | Path, *, limit: int | None = None, largest: int = LARGEST) -> list[Pair]:
    """The pairs of a file, at most `limit` of them, in the order of the file.

    Formats by name: .jsonl, .jsonl.gz, .json (a list of rows, or rows one a line), .json.gz, .parquet;
    rows as `as_pair` takes them. `largest`: bytes of the file, and of what it unpacks to; a compressed file may unpack to 50
    times its size (64 MiB in any case), a row may have 16 MiB, and JSON 64 levels.
    Errors: DataError naming file and row (counted from 1; blank lines count, so that it is the line in an editor).
    """
    path = as_path(path)
    rows = ((f"{path.name}:{number}", row) for number, row in islice(_rows(path, largest), limit))
    pairs = list(as_pairs(rows, path.name))
    if not pairs and limit != 0:
        raise DataError(f"{path} has no rows; expected at least one preference pair.")
    return pairs


def _rows(path: Path, largest: int) -> Rows:
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(path, largest)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(path, largest)
    elif name.endswith((".json", ".json.gz")):
        yield from _json_rows(path, largest)
    else:
        open_file(path, _EXPECTED, largest=largest).close()  # a folder, or nothing at all, is said first
        raise DataError(f"{path}: unknown kind of file; expected {_EXPECTED}.")


def _json_lines(path: Path, largest: int) -> Rows:
    for number, line in read_lines(path, _EXPECTED, largest=largest):
        if line.strip():
            yield number, parse_json(line, f"{path.name}:{number}", constants=True)


def _json_rows(path: Path, largest: int) -> Rows:
    """A list, whose text is held as a whole (at most 2 GiB of it), or JSON Lines under the name .json."""
    with Unpacked(path, _EXPECTED, largest=largest) as file:
        first = next((part for part in iter(lambda: file.take(MIB), b"") if part.strip(_BLANK)), b"").lstrip(_BLANK)
    if not first.startswith(b"["):
        yield from _json_lines(path, largest)
        return
    with Unpacked(
        path, f"{_EXPECTED}; a list of at most 2,048 MiB, or rows one a line", largest=min(largest, 2048 * MIB)
    ) as file:
        text = decode(file.rest(), path.name, first=True)
    yield from enumerate(parse_items(text, path.name), 1)


def _parquet_rows(path: Path, largest: int) -> Rows:
    """A text that stands in many rows is held once: text is read as a dictionary, and counted before it is written out."""
    import pyarrow
    import pyarrow.parquet

    number = unpacked = 0
    with open_file(path, _EXPECTED, largest=largest) as opened:
        packed = path.stat().st_size
        try:
            file = pyarrow.parquet.ParquetFile(opened, page_checksum_verification=True)
            names = file.schema_arrow.names
            wanted = [name for name in names if name in USED or name in REFUSED or name in QUESTIONS]
            texts, claimed = _text_columns(file.metadata, wanted)
            check_unpacked(claimed, packed, path, largest=largest)
            list_unread(set(names) - set(wanted), path.name)
            opened.seek(0)
            file = pyarrow.parquet.ParquetFile(opened, read_dictionary=texts, page_checksum_verification=True)
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                unpacked += sum(map(_written_out, batch.columns))
                check_unpacked(unpacked, packed, path, largest=largest)
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (GeneratorExit, DataError, MultirefWarning):
            raise
        except Exception as error:  # nothing but pyarrow runs here, which has a dozen kinds of them
            raise DataError(f"{path} is no readable Parquet file after row {number}: {error}.") from error


def _text_columns(metadata: Any, wanted: list[str]) -> tuple[list[str], int]:
    """The columns of text in those that are wanted, nested ones by their path; and the bytes, unpacked, that it claims."""
    texts: dict[str, None] = {}
    claimed = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            if column.path_in_schema.split(".")[0] in wanted:
                claimed += max(0, column.total_uncompressed_size)
                if column.physical_type == "BYTE_ARRAY":
                    texts[column.path_in_schema] = None
    return list(texts), claimed


def _written_out(array: Any) -> int:
    """Bytes of an Arrow array once every text of a dictionary stands wherever it is used."""
    import pyarrow
    import pyarrow.compute

    if pyarrow.types.is_dictionary(array.type):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return int(pyarrow.compute.sum(lengths.take(array.indices).cast("int64")).as_py() or 0)
    if pyarrow.types.is_list(array.type) or pyarrow.types.is_large_list(array.type):
        return int(array.nbytes - array.values.nbytes) + _written_out(array.flatten())
    if pyarrow.types.is_struct(array.type):
        return sum(map(_written_out, array.flatten()))
    return int(array.nbytes)
