"""Files of rows: JSON Lines, a JSON list, CSV (each plain or packed), Parquet."""

import contextlib
import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from multiref._files import MIB, PACKED, SHORTEST, Unpacked, check_unpacked, decode, open_file, read_lines
from multiref._json import parse_items, parse_json
from multiref.data.pairs import EPSILON
from multiref.errors import DataError, MultirefWarning

Rows: TypeAlias = Iterator[tuple[str, Any]]  # ("pairs.jsonl:12", counted from 1; what stands there)
Numbered: TypeAlias = Iterator[tuple[int, Any]]
Wanted: TypeAlias = Callable[[Sequence[str]], Sequence[str]]  # a file's columns → those that are read
LARGEST = 8192 * MIB
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
EXPECTED = (
    "a file of rows (.jsonl, .json, .csv, .tsv, each also .gz, .zst or .bz2; .parquet), a folder of such, or a data set's name"
)
_BLANK = b" \t\r\n\xef\xbb\xbf"


def is_rows(name: str) -> str | None:
    """The kind of file, by its name; None for what is none of ours."""
    low = name.lower()
    plain = low.removesuffix(next(filter(low.endswith, PACKED), ""))
    kind = next((ending for ending in (*ENDINGS, ".ndjson") if plain.endswith(ending)), None)
    return None if kind == ".parquet" and plain != low else kind


def file_rows(path: Path, largest: int = LARGEST, wanted: Wanted = list) -> Rows:
    """The rows of a file, in its order: memory for one at a time (of a JSON list for its text).

    A compressed file may unpack to 50 times its size (64 MiB in any case), a row may have 16 MiB, and JSON 64 levels.
    Errors: DataError naming file and row (blank lines count, so that it is the line in an editor).
    """
    kind = is_rows(path.name)
    if kind is None:
        open_file(path, EXPECTED, largest=largest).close()  # a folder, or nothing at all, is said first
        raise DataError(f"{path}: unknown kind of file; expected {EXPECTED}.")
    if kind == ".parquet":
        rows = _parquet_rows(path, largest, wanted)
    elif kind in (".csv", ".tsv"):
        rows = _csv_rows(path, largest, "\t" if kind == ".tsv" else ",")
    else:
        rows = (_json_rows if kind == ".json" else _json_lines)(path, largest)
    return ((f"{path.name}:{number}", row) for number, row in rows)


def _csv_rows(path: Path, largest: int, separator: str) -> Numbered:
    """A header, then rows of text; an empty cell is not there."""
    number = 1
    csv.field_size_limit(16 * MIB)
    lines = read_lines(path, EXPECTED, largest=largest)
    try:
        first = next((line for _, line in lines), "")
        if separator == "," and "," not in first:
            separator = max(",;\t", key=first.count)  # as some spreadsheets save it
        reader = csv.reader(chain([first], (line for _, line in lines)), delimiter=separator, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if header[:1] == [""]:
            header[0] = "Unnamed: 0"  # pandas' index, under the name that it has when pandas reads it
        if len(set(header)) < len(header) or "" in header:
            raise DataError(f"{path.name}:1: the header has a column twice, or one without a name; expected names.")
        while True:
            number = reader.line_num + 1
            if (cells := next(reader, None)) is None:
                return
            if not cells:
                continue
            held = "\t".join(cells).split("\n") if separator == "\t" else []
            if len(held) > 1 and {line.count("\t") for line in held} == {len(header) - 1} != {0}:
                raise DataError(
                    f"{path.name}:{number}: a quote is open over {len(held)} lines that have {len(header)} cells each, as rows "
                    "have. Double a quote that is part of a text (and put quotes around that text), or give .jsonl."
                )
            if len(cells) != len(header):
                raise DataError(f"{path.name}:{number}: {len(cells)} cells; expected {len(header)}, as the header has.")
            found: dict[str, Any] = dict(zip(header, cells))
            for name in {"margin", EPSILON} & found.keys():
                with contextlib.suppress(ValueError, TypeError):  # what is no number is refused by name, later
                    found[name] = float(found[name])
            yield number, {name: cell for name, cell in found.items() if cell != ""}
    except csv.Error as wrong:
        raise DataError(
            f"{path.name}:{number}: no row of CSV ({wrong}); expected quotes around texts with {separator!r}."
        ) from wrong


def _json_lines(path: Path, largest: int) -> Numbered:
    for number, line in read_lines(path, EXPECTED, largest=largest):
        if line.strip():
            yield number, parse_json(line, f"{path.name}:{number}", constants=True)


def _json_rows(path: Path, largest: int) -> Numbered:
    """A list, whose text is held as a whole (at most 2 GiB of it), or JSON Lines under the name .json."""
    with Unpacked(path, EXPECTED, largest=largest) as file:
        first = next((part for part in iter(lambda: file.take(MIB), b"") if part.strip(_BLANK)), b"").lstrip(_BLANK)
    if not first.startswith(b"["):
        yield from _json_lines(path, largest)
        return
    expected = f"{EXPECTED}; a list of at most 2,048 MiB, or rows one a line"
    with Unpacked(path, expected, largest=min(largest, 2048 * MIB)) as file:
        text = decode(file.rest(), path.name, first=True)
    yield from enumerate(parse_items(text, path.name), 1)


def _parquet_rows(path: Path, largest: int, wanted: Wanted) -> Numbered:
    """A text that stands in many rows is held once: text is read as a dictionary, and counted before it is written out."""
    import pyarrow
    import pyarrow.parquet

    number = unpacked = 0
    with open_file(path, EXPECTED, largest=largest) as opened:
        packed = path.stat().st_size
        try:
            file = pyarrow.parquet.ParquetFile(opened, page_checksum_verification=True)
            names = file.schema_arrow.names
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise DataError(
                    f"{path} has {len(names)} columns, and {twice[0]!r} is the name of two; expected one of a name."
                )
            read, named = list(wanted(names)), with_label_names(_features(file.schema_arrow.metadata))
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            check_unpacked(sum(max(0, group.total_byte_size) for group in groups), packed, path, largest=largest)
            texts = _text_columns(file.schema, read)
            opened.seek(0)
            file = pyarrow.parquet.ParquetFile(opened, read_dictionary=texts, page_checksum_verification=True)
            for batch in file.iter_batches(batch_size=1024, columns=read):
                unpacked += max(sum(map(_written_out, batch.columns)), SHORTEST * batch.num_rows)
                check_unpacked(unpacked, packed, path, largest=largest)
                for row in batch.to_pylist():
                    number += 1
                    yield number, named(row)
        except (GeneratorExit, DataError, MultirefWarning):
            raise
        except Exception as error:  # nothing but pyarrow runs here, which has a dozen kinds of them
            raise DataError(
                f"{path} is no readable Parquet file after row {number}: {error}. "
                "Write the file again, or give a whole copy of it."
            ) from error


def with_label_names(features: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Rows whose class labels are numbers → with the labels' names, which say what the numbers mean; −1, unknown, is None.

    features: of `datasets`, as its JSON: {column: {"_type": "ClassLabel", "names": […]}}."""
    labels = {name: each["names"] for name, each in features.items() if isinstance(each, Mapping) and each.get("names")}

    def named(row: dict[str, Any]) -> dict[str, Any]:
        for name, words in labels.items():
            if isinstance(number := row.get(name), int) and number < len(words):
                row[name] = words[number] if number >= 0 else None
        return row

    return named


def _features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """What `datasets` notes of a file's columns when it writes it; nothing where it did not."""
    with contextlib.suppress(DataError, LookupError, AttributeError, TypeError):
        found = parse_json((metadata or {}).get(b"huggingface", b"{}"), "huggingface")["info"]["features"]
        return found if isinstance(found, Mapping) else {}
    return {}


def _text_columns(schema: Any, wanted: list[str]) -> list[str]:
    """The columns of text in those that are wanted, nested ones by their path. (From the schema: asking a damaged file for what
    it says of a column's pages ends the process, in pyarrow 26.)"""
    columns = map(schema.column, range(len(schema)))
    return [each.path for each in columns if each.physical_type == "BYTE_ARRAY" and each.path.split(".")[0] in wanted]


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
