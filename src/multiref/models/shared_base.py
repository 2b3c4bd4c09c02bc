"""One base model held once, under any number of adapters: loaded when first needed, freed when nobody is left who needs it."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from multiref.models.loading import LanguageModel, load, put_adapter
from multiref.models.spec import ModelSpec

_bases: "WeakValueDictionary[tuple[ModelSpec, str], SharedBase]" = WeakValueDictionary()


class SharedBase:
    """A model as `load` loads it, and adapters put on it one at a time.

    `SharedBase.of(...)` with equal arguments gives the same object as long as somebody holds it. Who will use it says `claim`,
    and `release` when done; with the last one the weights go. One that is given its model (`loaded`) keeps it.
    """

    def __init__(self, spec: ModelSpec, device: str | torch.device | None, loaded: LanguageModel | None = None) -> None:
        self.spec, self.device, self._given, self._loaded = spec, device, loaded, loaded
        self._users: WeakSet[Any] = WeakSet()
        self._adapters: dict[str, str] = {}
        self._peft: Any = None

    @classmethod
    def of(cls, spec: ModelSpec, device: str | torch.device) -> "SharedBase":
        return _bases.setdefault((spec, str(device)), cls(spec, device))

    def claim(self, user: Any) -> None:
        self._users.add(user)

    def release(self, user: Any) -> None:
        self._users.discard(user)
        if not self._users and self._given is None:
            self._loaded, self._peft, self._adapters = None, None, {}
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def language_model(self) -> LanguageModel:
        if self._loaded is None:
            self._loaded = load(self.spec, device=self.device)
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
            if adapter not in self._adapters:
                name = f"adapter{len(self._adapters)}"
                self._peft = put_adapter(model if self._peft is None else self._peft, adapter, name)
                self._adapters[adapter] = name
            self._peft.set_adapter(self._adapters[adapter])
            self._peft.eval()
            yield self._peft
