"""What is asked of a model whatever its class: what its wrappers hold, its embedding, that a pass leaves it as it was, and its
cache, by the name that its version of transformers has for it: `past_key_values`, or `cache` since 5.24."""

import inspect
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError, ModelError
from multiref.models.encoding import Encoded

_turns: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_resting: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # modules that will train again → so many evaluate them
_modes = threading.Lock()
_PLAIN = (int, float, str, type(None), Tensor)


def unwrapped(model: Any) -> Any:
    """The model inside DistributedDataParallel and torch.compile."""
    while hasattr(model, "_orig_mod") or type(model).__name__ == "DistributedDataParallel":
        model = getattr(model, "_orig_mod", None) or model.module
    return model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode; when the last thread that wants that is done, each is in the mode in which it was."""
    with _modes:
        training = [module for module in model.modules() if module.training or module in _resting]
        _resting.update({module: _resting.get(module, 0) + 1 for module in training})
        model.eval()
    try:
        yield
    finally:
        with _modes:
            for module in training:
                _resting[module] -= 1
                if not _resting[module]:
                    del _resting[module]
                    module.training = True


def head_of(model: Any) -> Any:
    """The output embedding, or None."""
    inner = unwrapped(model)
    try:
        return inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    except (AttributeError, NotImplementedError):
        return None


def run(model: Any, **inputs: Any) -> Any:
    """model(**inputs). Another thread that has the model's head replaced, or wants to, waits for its turn, and so does this."""
    with turn(model):
        return model(**inputs)


def turn(model: Any) -> Any:
    """The lock of the model's head, which models that share it have in common; of the model, where it has none."""
    head = head_of(model)
    return _turns.setdefault(unwrapped(model) if head is None else head, threading.RLock())


@contextmanager
def with_forward(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Within it the module's own forward is this one. Another thread that wants another waits for its turn."""
    with _turns.setdefault(module, threading.RLock()):
        own = {name: value for name, value in vars(module).items() if name == "forward"}
        module.forward = forward
        try:
            yield
        finally:
            del module.forward
            vars(module).update(own)


@contextmanager
def as_its_weights_are(model: Any) -> Iterator[None]:
    """No autocast, neither around the call nor put into the model's forward by accelerate: computed in the weights' dtype."""
    inner = unwrapped(model)
    plain = inner.__dict__.get("_original_forward")
    own = with_forward(inner, plain) if plain is not None else nullcontext()
    with own, torch.autocast(next(inner.parameters()).device.type, enabled=False):
        yield


def check_rows(model: Any, encoded: Sequence[Encoded], texts: Sequence[Any] = ()) -> None:
    """ModelError where a token id has no row in the model's input embedding; ArgumentError for a context without a token.
    `texts`: what each item is called in it."""
    if any(not item.context(index) for item in encoded for index in range(len(item.completions))):
        raise ArgumentError("A prompt has no token; expected at least a start token, from which the first token is predicted.")
    size, switch = embedding_size(model), _switch(model)

    def name(number: int, ids: tuple[int, ...]) -> str:
        behind = "a completion of " * (ids in encoded[number].completions)
        return behind + (f"the prompt {texts[number]!r:.80}" if texts else f"row {number + 1}, which begins {list(ids[:6])}")

    for number, item in enumerate(encoded) if switch else ():
        for index, ids in enumerate(item.completions):
            row, first = (*item.context(index), *ids), max(0, len(item.context(index)) - len(switch) + 1)
            if any(row[at : at + len(switch)] == switch for at in range(first, len(row))):
                raise ModelError(
                    f"The tokens that turn the aLoRA adapter on, {list(switch)}, occur in {name(number, ids)}. It works from "
                    "their last place on, so that a later token would change an earlier score. Remove the row."
                )
    if size is None:
        return
    for number, item in enumerate(encoded):
        for ids in (item.prompt_ids, *item.contexts, *item.completions):
            if ids and max(ids) >= size:
                where = name(number, ids)
                raise ModelError(
                    f"Token id {max(ids)} occurs in {where}, and the model's embedding has {size} rows (ids 0 to {size - 1}). "
                    "Expected the tokenizer that belongs to the model. Use that one, or enlarge the model "
                    "(resize_token_embeddings) and train the new rows."
                )


def _switch(model: Any) -> tuple[int, ...]:
    """The tokens behind which an adapter works (activated LoRA) that is on; () for every other."""
    inner = unwrapped(model)
    worn = getattr(inner, "peft_config", {}).get(getattr(inner, "active_adapter", None))
    tokens = getattr(worn, "alora_invocation_tokens", None)
    off = tokens and any(getattr(each, "disable_adapters", None) is True for each in inner.modules())
    return tuple(tokens) if tokens and not off else ()


def embedding_size(model: Any) -> int | None:
    """Rows of the input embedding; None where there is none to be found."""
    try:
        table = unwrapped(model).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    size = getattr(table, "num_embeddings", None)
    weight = getattr(table, "weight", None)
    return int(size) if size is not None else len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else None


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[list[bool]]:
    """Within it passes in their turn; behind it buffers and plain attributes are put back: some models remember the longest row
    they have seen (rotary frequencies that grow), and a score must not depend on what was scored before. A pass that changed
    weights (RWKV's first in evaluation mode, which notes it) leaves all as it is then. Gives a list: whether anything was put
    back."""
    found: list[bool] = []
    with turn(model):
        weights, before = _versions(model), [_held(module) for module in unwrapped(model).modules()]
        try:
            yield found
        finally:  # also where memory ended, and the rows are read again in halves
            if weights == _versions(model):
                found += [_put_back(*each) for each in before]


def _held(module: nn.Module) -> tuple[nn.Module, dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    plain = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN) and name != "training"}
    return module, plain, {name: (value, value.clone()) for name, value in module._buffers.items() if value is not None}


@torch.no_grad()
def _put_back(module: nn.Module, plain: dict[str, Any], buffers: dict[str, tuple[Tensor, Tensor]]) -> bool:
    changed = False
    for name, value in plain.items():
        now = module.__dict__.get(name)
        if now is not value and (isinstance(now, Tensor) or isinstance(value, Tensor) or now != value):
            module.__dict__[name], changed = value, True
    for name, (buffer, content) in buffers.items():
        if module._buffers.get(name) is not buffer or not torch.equal(buffer, content):
            module._buffers[name], changed = (content.clone() if buffer.is_inference() else buffer.copy_(content)), True
    return changed


def _versions(model: nn.Module) -> int:
    """A number that grows with every change of a weight in place."""
    return sum(0 if weight.is_inference() else weight._version for weight in model.parameters())


def takes(model: Any) -> Collection[str]:
    """The names that the forward pass of the model has for its arguments, under wrappers and adapters."""
    inner = unwrapped(model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return inspect.signature(inner.forward).parameters.keys()


def without_extras(names: Collection[str]) -> dict[str, Any]:
    """The argument, of these names, that spares a router's loss: some compute it whether asked or not, where config.json says
    so, and stop at a mask that is no [rows, tokens]."""
    return {"output_router_logits": False} if "output_router_logits" in names else {}


def cache_argument(names: Collection[str], cache: Any) -> dict[str, Any]:
    """The argument that hands a cache to a model that `takes` these names; none for None."""
    return {} if cache is None else {"cache" if "cache" in names else "past_key_values": cache}


def cache_of(output: Any) -> Any:
    """The cache in a model's output, or None."""
    found = output.get("cache")
    return found if found is not None else output.get("past_key_values")
