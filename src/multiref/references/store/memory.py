"""A store that lives as long as the call: what `score` uses when it is given none."""

from collections.abc import Mapping
from typing import Any

from multiref.references.store.folder import Damage, Store
from multiref.references.store.shards import Rows

__all__ = ["MemoryStore"]


class MemoryStore:
    """The part of `Store` that scoring needs, in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Rows]] = {}

    def check_writable(self) -> None:
        """It always is."""

    @staticmethod
    def address(identity: Mapping[str, Any]) -> str:
        return Store.address(identity)

    def register(self, identity: Mapping[str, Any], *, name: str, location: str) -> str:
        return Store.address(identity)

    def predecessors(self, address: str, *, location: str) -> dict[str, dict[str, Any]]:
        return {}

    def read(self, address: str) -> tuple[Rows, list[Damage]]:
        return Rows.concatenate(self.rows.get(address, [])), []

    def quarantine(self, damage: Damage) -> None:
        """Nothing here is ever damaged."""

    def append(self, address: str, rows: Rows) -> None:
        self.rows.setdefault(address, []).append(rows)

    def manifest(self) -> dict[str, dict[str, Any]]:
        return {}
