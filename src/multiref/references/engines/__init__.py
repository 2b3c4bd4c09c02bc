"""Where the work runs: `local` in this process, `ray` on as many workers as there are. The same blocks, the same shards, the
same bits.

An engine takes a way to open a reference and a list of blocks, and hands back each block with its scores;
the caller stores them.
"""

from multiref.references.engines.local import Engine, LocalEngine

__all__ = ["Engine", "LocalEngine", "engine"]


def engine(name: "str | Engine") -> Engine:
    """'local' or 'ray' → the engine with its default settings; an engine is returned as it is."""
    if not isinstance(name, str):
        return name
    if name == "local":
        return LocalEngine()
    if name == "ray":
        from multiref.references.engines.ray import RayEngine

        return RayEngine()
    from multiref.errors import ArgumentError

    raise ArgumentError(f"There is no engine {name!r}; there are 'local' and 'ray'.")
