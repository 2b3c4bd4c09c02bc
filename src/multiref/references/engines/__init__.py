"""Where the work runs: `local` in this process, `ray` on as many workers as there are. The same blocks, the same shards, the
same bits.

An engine takes a way to open a reference and a list of blocks, and hands back each block with its scores;
the caller stores them.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias, cast

from multiref.errors import ArgumentError
from multiref.models.audit import Audit
from multiref.references.plan import Block
from multiref.references.protocol import Item, Reference, Scored

__all__ = ["Engine", "LocalEngine", "Results", "engine"]

Results: TypeAlias = Generator[tuple[int, Scored], None, None]  # (index of the block, its scores), …


class Engine(Protocol):
    """Scores blocks. Blocks come back in any order, each exactly once, as soon as they are done;
    `close()` lets the workers go."""

    def run(self, open_reference: Callable[[], Reference], blocks: Sequence[Block]) -> Results:
        """Each block with its scores."""


class LocalEngine:
    """Scores in this process, and holds one reference while it does."""

    def run(self, open_reference: Callable[[], Reference], blocks: Sequence[Block]) -> Results:
        reference = open_reference()
        for index in range(len(blocks)):  # a block is made when it is asked for, and goes when it is scored
            yield index, reference.score(blocks[index].items)

    def audit(self, open_reference: Callable[[], Reference], blocks: Sequence[Sequence[Item]], everything: bool) -> Audit:
        """How rows of these blocks are laid out. An engine without this method has it done in the calling process."""
        reference: Any = open_reference()
        return cast(Audit, reference.audit(blocks, everything=everything))


def engine(name: "str | Engine") -> Engine:
    """'local' or 'ray' → the engine with its default settings; an engine is returned as it is."""
    if not isinstance(name, str):
        return name
    if name == "local":
        return LocalEngine()
    if name == "ray":
        from multiref.references.engines.ray import RayEngine

        return RayEngine()
    raise ArgumentError(f"There is no engine {name!r}; there are 'local' and 'ray'.")
