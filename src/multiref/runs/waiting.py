"""What the main process does alone or first while the others wait, for as long as it takes: a collective would time out."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from multiref.errors import ModelError

PAUSE = 0.5  # seconds between looks
_calls = itertools.count()


@contextmanager
def main_first(what: str, *, others_first: bool = False) -> Iterator[None]:
    """The others wait before they come through until the main process has, looking into the store by which they met; with
    `others_first` they come through at once and wait at the end. Every process calls it, in the same order.

    Errors: on the others, ModelError where the main process failed.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        yield
        return
    store = distributed.distributed_c10d._get_default_store()
    key = f"multiref/{next(_calls)}/{what}"
    if distributed.get_rank() > 0:
        if others_first:
            yield
        while not store.check([key]):
            time.sleep(PAUSE)
        done = store.get(key) == b"done"
        store.add(f"{key}/seen", 1)
        if not done:
            raise ModelError("The main process could not finish; its own message says why.")
        if not others_first:
            yield
        return
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        store.set(key, outcome)
        until = time.monotonic() + 60  # the store may live in this process: let them see it
        while store.add(f"{key}/seen", 0) < distributed.get_world_size() - 1 and time.monotonic() < until:
            time.sleep(PAUSE)
