"""The store of scores: a folder of Parquet shards, content-addressed and append-only, so that nothing is ever scored twice.

A score is filed under (identity of the reference, content of prompt and completion). Layout:
`shards/<identity>/<sha256>.parquet`, `references/<identity>.json`, and `manifest.json`, which can be rebuilt from the shards.
Never pickle.
"""

from multiref.references.store.folder import Damage, Store
from multiref.references.store.shards import Rows

__all__ = ["Damage", "Rows", "Store"]
