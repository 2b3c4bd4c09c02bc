"""One base model held once, under any number of adapters: loaded when first needed, freed when nobody is left who needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from multiref.errors import ModelError
from multiref.models.loading import LanguageModel, load

__all__ = ["SharedBase"]

_bases: WeakValueDictionary[tuple[Any, ...], SharedBase] = WeakValueDictionary()


class SharedBase:
    """A model as `load` loads it, and adapters put on it one at a time.

    `SharedBase.of(...)` with equal arguments gives the same object as long as somebody holds it. Who will use it says `claim`,
    and `release` when done; with the last one the weights go.
    """

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self.path, self.options = path, options
        self._users: WeakSet[Any] = WeakSet()
        self._loaded: LanguageModel | None = None
        self._adapters: dict[str, str] = {}
        self._peft: Any = None

    @classmethod
    def of(cls, path: str, **options: Any) -> SharedBase:
        key = (path, *sorted((name, str(value)) for name, value in options.items()))
        base = _bases.get(key)
        if base is None:
            base = _bases[key] = cls(path, options)
        return base

    def claim(self, user: Any) -> None:
        self._users.add(user)

    def release(self, user: Any) -> None:
        self._users.discard(user)
        if not self._users:
            self._loaded, self._peft, self._adapters = None, None, {}
            _empty_cache()

    def language_model(self) -> LanguageModel:
        if self._loaded is None:
            self._loaded = load(self.path, **self.options)
        return self._loaded

    @contextmanager
    def with_adapter(self, adapter: str | None) -> Iterator[Any]:
        """The model with this adapter on it, or bare."""
        model = self.language_model().model
        if adapter is None and self._peft is None:
            yield model
        elif adapter is None:
            with self._peft.disable_adapter():
                yield self._peft
        else:
            self._put_on(model, adapter)
            yield self._peft

    def _put_on(self, model: Any, adapter: str) -> None:
        import peft

        if adapter not in self._adapters:
            name = f"adapter{len(self._adapters)}"
            try:
                if self._peft is None:
                    self._peft = peft.PeftModel.from_pretrained(model, adapter, adapter_name=name)
                else:
                    self._peft.load_adapter(adapter, adapter_name=name)
            except Exception as error:  # peft passes on whatever the files provoke
                raise ModelError(f"The adapter {adapter} cannot be put on {self.path}: {error}") from error
            self._adapters[adapter] = name
        self._peft.set_adapter(self._adapters[adapter])
        self._peft.eval()


def _empty_cache() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
