"""Token ids of pairs that are held on disk: on disk too, beside them, and read row by row."""

import os
import tempfile
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import IO, Any, Self

import numpy as np

from multiref._made import Made
from multiref.data.spooled import SpooledPairs
from multiref.errors import OutputError
from multiref.models import Encoded


class EncodedRows(Made[Encoded]):
    """P encoded pairs in a file without a name, or those at some places of it. In memory are where each begins [P + 1], how
    long its row is [P], and which sides were cut [P, 2]."""

    def __init__(self, file: IO[bytes], starts: np.ndarray, lengths: np.ndarray, truncated: np.ndarray, at: np.ndarray) -> None:
        self._file, self._starts, self._lengths, self._truncated, self._at = file, starts, lengths, truncated, at

    @classmethod
    def write(cls, encoded: Iterable[Encoded], pairs: SpooledPairs) -> Self:
        """As many as there are pairs. OutputError where the folder of the pairs takes no more."""
        count = len(pairs)
        starts, lengths, truncated = np.zeros(count + 1, np.int64), np.zeros(count, np.int32), np.zeros((count, 2), bool)
        try:
            file = tempfile.TemporaryFile(dir=pairs.folder)  # noqa: SIM115
            for row, item in enumerate(encoded):
                parts = (item.prompt_ids, *item.contexts, *item.completions)
                ids = np.array([len(parts), *map(len, parts), *(i for part in parts for i in part)], np.int32)
                file.write(ids.tobytes())
                starts[row + 1] = starts[row] + ids.nbytes
                lengths[row] = len(item.prompt_ids) + sum(map(len, item.completions))
                truncated[row] = item.truncated
            file.flush()
        except OSError as error:
            raise OutputError(
                f"cannot write token ids into {pairs.folder}: {error.strerror or error}. Free some space."
            ) from error
        return cls(file, starts, lengths, truncated, np.arange(count, dtype=np.int32 if count < 2**31 else np.int64))

    def __len__(self) -> int:
        return len(self._at)

    def stretch(self, places: range) -> "EncodedRows":
        return self.take(np.arange(places.start, places.stop, places.step))

    def made(self, place: int) -> Encoded:
        row = int(self._at[place])
        start, end = self._starts[row : row + 2].tolist()
        ids = np.frombuffer(os.pread(self._file.fileno(), end - start, start), np.int32).tolist()
        count = ids[0]
        ends = accumulate(ids[1 : 1 + count], initial=1 + count)
        prompt, *parts = (tuple(ids[low:high]) for low, high in pairwise(ends))
        cut = tuple(self._truncated[row].tolist())
        return Encoded(prompt, tuple(parts[-len(cut) :]), cut, tuple(parts[: -len(cut)]))

    def take(self, at: Any) -> "EncodedRows":
        """The rows at these places, of the same file."""
        return EncodedRows(self._file, self._starts, self._lengths, self._truncated, self._at[at])

    @property
    def row_lengths(self) -> np.ndarray:
        """[P] tokens of each pair's row: the prompt once, both completions."""
        return self._lengths.take(self._at)

    @property
    def truncated(self) -> np.ndarray:
        """[P, 2] bool: which sides were cut."""
        return self._truncated.take(self._at, axis=0)
