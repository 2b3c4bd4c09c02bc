"""Files of pairs read by Ray Data: each file by one task on whichever worker is free, through the same checks as here."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from multiref.data.files import Wanted, file_rows
from multiref.data.pairs import Pair
from multiref.data.spooled import COLUMNS, packed
from multiref.data.urls import fetch
from multiref.errors import ArgumentError, DataError, MultirefError

Convert: TypeAlias = Callable[[Iterable[tuple[str, Any]], set[str]], Iterator[Pair | None]]  # None: a row is over


def packed_on_ray(files: Sequence[str], convert: Convert, wanted: Wanted, largest: int, told: "Told") -> Iterator[list[str]]:
    """Rows of `SpooledPairs`, in the order of the files and of their rows, a batch of them here at a time.

    files: paths or URLs that the workers can open. convert, wanted: as reading here has them; they travel to the workers.
    told: is told how many rows there were, and which columns nobody read. Raises what a worker raises of ours.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ArgumentError("Reading on Ray needs Ray, which is not installed: pip install 'multiref[ray]'.") from None
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        rows = ray.data.from_items([{"file": each} for each in files], override_num_blocks=len(files))
        read = rows.flat_map(_Read(convert, wanted, largest))
        batches: Iterable[Any] = read.iter_batches(batch_size=256, batch_format="pyarrow")
        for batch in batches:
            for row in zip(*(batch.column(name).to_pylist() for name in COLUMNS)):
                if row[-1]:
                    yield list(row)
                else:
                    told(row[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(cause := _ours(error), MultirefError):
            raise cause from None
        raise DataError(
            f"Ray could not read the files: {str(error).strip().splitlines()[-1]}. "
            "Every worker must be able to open them: give a path or URL that all of them have, or --engine local."
        ) from error
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before


class Told:
    """What is found out beside the rows."""

    def __init__(self) -> None:
        self.rows, self.unread = 0, set[str]()

    def __call__(self, line: str) -> None:
        found = json.loads(line)
        self.rows += found["rows"]
        self.unread |= set(found["unread"])


class _Read:
    """A task: the packed pairs of one file, and a last row of which only the first column is there: what is to be told."""

    def __init__(self, convert: Convert, wanted: Wanted, largest: int) -> None:
        self.convert, self.wanted, self.largest = convert, wanted, largest

    def __call__(self, item: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        unread, count = set[str](), 0

        def wanted(names: Sequence[str]) -> Sequence[str]:
            kept = self.wanted(names)
            unread.update(set(names) - set(kept))
            return kept

        with TemporaryDirectory(prefix="multiref-") as folder:
            name = str(item["file"])
            path = fetch(name, Path(folder), self.largest, lambda _: None) if "://" in name else Path(name)
            for pair in self.convert(file_rows(path, self.largest, wanted), unread):
                if pair is None:
                    count += 1
                else:
                    yield dict(zip(COLUMNS, packed(pair)))
        told = json.dumps({"rows": count, "unread": sorted(unread)})
        yield dict(zip(COLUMNS, (told, *[""] * (len(COLUMNS) - 1))))


def _ours(error: BaseException) -> BaseException | None:
    """The error of ours below Ray's."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, MultirefError):
        found = getattr(found, "cause", None) or found.__cause__
    return found
