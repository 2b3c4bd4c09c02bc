"""The engine of one process: one block after another, in order."""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol

from multiref.references.plan import Block
from multiref.references.protocol import Reference, Scored

__all__ = ["Engine", "LocalEngine"]


class Engine(Protocol):
    """Scores blocks. Blocks come back in any order, each exactly once, as soon as they are done;
    `close()` lets the workers go."""

    def run(
        self, open_reference: Callable[[], Reference], blocks: Sequence[Block]
    ) -> Generator[tuple[int, Scored], None, None]:
        """→ (index of the block, its scores), …"""
        ...


class LocalEngine:
    """Scores in this process, and holds one reference while it does."""

    def run(
        self, open_reference: Callable[[], Reference], blocks: Sequence[Block]
    ) -> Generator[tuple[int, Scored], None, None]:
        reference = open_reference()
        for index, block in enumerate(blocks):
            yield index, reference.score(block.items)
