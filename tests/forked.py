"""A function in a process of its own, forked from this one: a new interpreter would need three seconds for torch alone."""

import contextlib
import os
from multiprocessing.context import ForkProcess


def start(function, *args, said=None, alone=True):
    """The process: its `pid`, `kill()`, `join()` and `exitcode`.

    said: a file for what it writes to stderr. alone: it ends with this process, and starts no processes of its own.
    """

    def child():
        if said:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        function(*args)

    process = ForkProcess(target=child, daemon=alone)
    process.start()
    return process


@contextlib.contextmanager
def ended(process):
    """Afterwards it runs no more, whatever happened."""
    try:
        yield process
    finally:
        process.kill()
        process.join()
