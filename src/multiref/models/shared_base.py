"""One base model held once, under any number of adapters: loaded when first needed, freed when nobody is left who needs it."""

import gc
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import nn

from multiref.errors import ModelError
from multiref.models.adapters import apart, check_base, put_adapter
from multiref.models.fingerprint import config_fingerprint
from multiref.models.forward import probed
from multiref.models.loading import LanguageModel, load_merged
from multiref.models.spec import ModelSpec

_bases: "WeakValueDictionary[tuple[ModelSpec, str], SharedBase]" = WeakValueDictionary()

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SharedBase:
    """A model as `load` loads it, and adapters put on it one at a time.

    `SharedBase.of(...)` with equal arguments gives the same object as long as somebody holds it. Who will use it says `claim`,
    and `release` when done; with the last one the weights go. One that is given its model (`loaded`) keeps it.

    The adapter is merged into copies of the weights that it changes while it is on, so that it scores at the base's speed: in
    float32 and wider, on plain linear layers, where that gives the same logits; elsewhere it is computed beside them. The
    base's own bits come back after.

    An adapter that changes the base itself (its biases, its embeddings, its weights as PiSSA does), or that PEFT does not keep
    apart from the others, gets a copy of the base of its own, so that nobody else's scores move.
    """

    def __init__(self, spec: ModelSpec, device: str | torch.device | None, loaded: LanguageModel | None = None) -> None:
        self.spec, self.device, self._given, self._loaded = spec, device, loaded, loaded
        self._users: WeakSet[Any] = WeakSet()
        self._adapters: dict[str, str] = {}
        self._own: dict[str, Any] = {}
        self._unmerged: set[str] = set()
        self._peft: Any = None
        self._now: Any = None
        self._turn = threading.RLock()
        self._inside: list[str | None] = []

    @classmethod
    def of(cls, spec: ModelSpec, device: str | torch.device) -> "SharedBase":
        return _bases.setdefault((spec, str(device)), cls(spec, device))

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process it goes as its description, and with its model only if it was given that."""
        return SharedBase, (self.spec, self.device, self._given)

    def claim(self, user: Any) -> None:
        self._users.add(user)

    def release(self, user: Any, adapter: str | None = None) -> None:
        """The user is done; a copy of the base that its adapter has for itself goes at once."""
        self._users.discard(user)
        self._own.pop(adapter or "", None)
        if not self._users and self._given is None:
            self._own = {}
            self._drop()

    def language_model(self) -> LanguageModel:
        if self._loaded is None:
            self._loaded = load_merged(self.spec, device=self.device)
        return self._loaded

    @contextmanager
    def with_adapter(self, adapter: str | None) -> Iterator[Any]:
        """The model with this adapter on it, or bare. Other threads wait for their turn.

        Errors: ModelError where the same thread has another adapter on, whose scores would change.
        """
        with self._turn:
            if any(other != adapter for other in self._inside):
                raise ModelError(
                    f"{self.spec.path} is in use with {self._inside[-1] or 'no adapter'}, and {adapter or 'none'} is asked: "
                    "one base carries one adapter at a time. Score one after the other, or merge one into its base."
                )
            self._inside.append(adapter)
            try:
                if len(self._inside) > 1:
                    yield self._now
                else:
                    self._now = self._wearing(adapter)
                    merges = adapter in self._adapters and adapter not in self._unmerged
                    with _merged(self._now, self._adapters[str(adapter)]) if merges else nullcontext():
                        yield self._now
            finally:
                self._inside.pop()
                self._now = self._now if self._inside else None

    def _wearing(self, adapter: str | None) -> Any:
        if adapter is not None and adapter not in self._adapters and adapter not in self._own:
            self._put(adapter)
        if adapter in self._own:
            return self._own[adapter]
        if self._peft is None:
            return self.language_model().model
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(self._adapters[adapter])
        return self._peft.eval()

    def _put(self, adapter: str) -> None:
        check_base(self.spec.path, adapter)
        name, others = f"adapter{len(self._adapters)}x", self._peft is not None  # no name is part of another
        worn, together = self._put_on(adapter, name)
        if together:
            self._peft, self._adapters[adapter], before = worn, name, probed(worn.eval())
            with _merged(worn, name):
                if apart(worn, before):  # its code reads a layer's weight or bias beside calling the layer, as Jamba's
                    self._unmerged.add(adapter)
            return
        if others:  # what these left in its layers, or switched off, is no part of this adapter
            worn = None
            self._drop()
            worn, _ = self._put_on(adapter, name)
        worn.set_adapter(name)
        self._own[adapter] = worn.eval()
        self._drop()

    def _put_on(self, adapter: str, name: str) -> tuple[Any, bool]:
        """The model with this adapter on (None where it is refused beside others), and whether all else is as it was."""
        before, others = self._peft or self.language_model().model, self._peft is not None
        held = [*before.parameters(), *before.buffers()]
        marks, places = _marks(held), _places(before, held)
        try:
            worn = put_adapter(before, adapter, name)
        except BaseException as error:
            self._drop()  # with whatever was done to it
            if others and isinstance(error, ModelError):
                return None, False
            raise
        if _marks(held) != marks or _places(worn, held) != places:
            return worn, False
        kinds = [(each.peft_type, config_fingerprint(each.to_dict())) for each in worn.peft_config.values()]
        # layers of other kinds than LoRA's do not keep each adapter's settings apart
        alike = {"LORA" if kind == "LORA" else settings for kind, settings in kinds}
        return worn, len(alike) == 1 and _goes_off_and_on(worn, name)

    def _drop(self) -> None:
        self._loaded, self._peft, self._adapters = self._given, None, {}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _places(model: Any, held: list[torch.Tensor]) -> list[int]:
    """In how many places of the model each stands: none where it was replaced, more where its layer is run again."""
    named = (model.named_parameters, model.named_buffers)
    found = Counter(id(each) for those in named for _, each in those(remove_duplicate=False))
    return [found[id(each)] for each in held]


def _goes_off_and_on(worn: Any, name: str) -> bool:
    """Whether PEFT lets this adapter be switched as `_wearing` does."""
    switch = worn.base_model
    try:
        for turn in (switch.enable_adapter_layers, switch.disable_adapter_layers, switch.enable_adapter_layers):
            turn()
        worn.set_adapter(name)
    except (KeyError, ValueError, AttributeError, NotImplementedError):  # kinds of which one model wears one
        return False
    return True


@contextmanager
def _merged(model: Any, adapter: str) -> Iterator[None]:
    """W + s B A in place of W where that is what the adapter computes; on leaving, W itself. Narrow weights would round it
    away, and tied ones are another layer's too."""
    from peft.tuners.lora.layer import Linear, LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and adapter in module.scaling]
    owners = Counter(id(each) for module in model.modules() for each in module._parameters.values())
    plain = all(
        type(layer) is Linear
        and type(layer.get_base_layer()) is nn.Linear
        and layer.weight.dtype.itemsize >= 4
        and layer.weight.device.type != "meta"
        and owners[id(layer.weight)] == 1
        and adapter not in layer.lora_variant
        and not layer.lora_bias[adapter]
        and not layer.fan_in_fan_out
        for layer in layers
    )
    plain = plain and model.peft_config[adapter].peft_type == "LORA"
    held = [(layer, layer.weight.data) for layer in layers if plain]
    whole = []
    try:
        with torch.inference_mode(False), torch.no_grad():  # a third of the time of PEFT's `merge`
            for layer, weight in held:
                up, down = (each.get_parameter(f"{adapter}.weight").to(weight) for each in (layer.lora_B, layer.lora_A))
                whole.append(torch.addmm(weight, up, down, alpha=layer.scaling[adapter]))
    except RuntimeError:  # no memory for the copies
        held, whole = [], []
    try:
        for (layer, _), weight in zip(held, whole):
            layer.weight.data = weight
            layer.merged_adapters.append(adapter)
        yield
    finally:
        for layer, weight in held:
            layer.weight.data = weight
            layer.merged_adapters.clear()


def _marks(held: list[torch.Tensor]) -> list[tuple[torch.Size, int]]:
    """Each one's shape and the sum of its bits as whole numbers: in-place changes leave no other trace everywhere."""
    found = []
    for each in held:
        bits = each.detach().contiguous().view(_WHOLE[each.element_size()]) if each.device.type != "meta" else None
        found.append((each.shape, 0 if bits is None else int(bits.sum(dtype=torch.int64))))
    return found
