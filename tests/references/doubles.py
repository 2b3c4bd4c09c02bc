"""Honest doubles of a reference: instant, deterministic, and with the one vice of real models that matters to the store."""

import hashlib
import os
import time
from pathlib import Path

import torch

from multiref.errors import ModelError
from multiref.references.keys import content_key
from multiref.references.protocol import Scored


class Companion:
    """A reference whose score depends a little on the company a text is scored in, as float32 scores depend on the batch.

    log π(y) = −10 u(y) − 1e-9 u(all texts of the call), u(·) in [0, 1) from a hash. So two runs agree to the bit only if they
    scored the same texts together. `log` (a file) gets one line per completion scored, so that work done by another process can
    be counted.
    """

    def __init__(self, name="companion", *, log=None, pause=0.0):
        self.name, self.log, self.pause = name, log, pause
        self.calls = []

    def identity(self):
        return {"kind": "companion", "name": self.name}

    def score(self, items):
        texts = [content_key(item.prompt, completion) for item in items for completion in item.completions]
        self.calls.append(list(items))
        time.sleep(self.pause)
        company = self._unit(b"".join(texts))
        logps = [-10 * self._unit(text) - 1e-9 * company for text in texts]
        if self.log:
            with Path(self.log).open("a") as file:
                file.writelines(f"{text.hex()}\n" for text in texts)
        return Scored(
            torch.tensor(logps, dtype=torch.float64),
            torch.tensor([1 + text[0] % 30 for text in texts]),
            torch.tensor([text[1] == 0 for text in texts]),
        )

    def scored(self):
        """How many completions this object has scored."""
        return sum(len(item.completions) for items in self.calls for item in items)

    def _unit(self, raw):
        return int.from_bytes(hashlib.sha256(self.name.encode() + raw).digest()[:6], "big") / 2**48


class Traced(Companion):
    """A companion that writes down which process scored: one line per block in `<log>.<process id>`."""

    def score(self, items):
        with open(f"{self.log}.{os.getpid()}", "a") as file:
            file.write(f"{len(items)}\n")
        return super().score(items)


class Refusing(Companion):
    """Raises one of our errors."""

    def score(self, items):
        raise ModelError("no such weights")


class Dying(Companion):
    """Takes its process with it."""

    def score(self, items):
        os._exit(1)


def pairs(count, *, start=0):
    """`count` different pairs; every third prompt has a second pair, so that prompts are shared."""
    from multiref.data import Pair

    return [Pair(f"prompt {n - (n % 3 == 1)}", f"chosen {n}", f"rejected {n}") for n in range(start, start + count)]
