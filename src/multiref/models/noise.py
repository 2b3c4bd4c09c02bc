"""No noise in a likelihood: a policy trains in evaluation mode, and what draws random numbers even there is refused by name.

Noise in log π is noise in every ratio log π / π_k: at the first step, where policy and reference are one, it already shows as
a KL that is not there.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers.modeling_layers import GradientCheckpointingLayer

from multiref.errors import ArgumentError, ModelError
from multiref.models.architecture import turn
from multiref.models.encoding import Encoded
from multiref.models.forward import plain_logps
from multiref.models.witness import largest_gap

# Under the first six the first uniform number is near 0 and near 1, in torch, numpy and Python: what is decided once a pass (a
# layer that is dropped with a small probability) must show, though under most seeds it is decided alike.
SEEDS = (1042, 2469, 1146, 1989, 1514, 2172, *range(2, 12))


def set_evaluation_mode(model: nn.Module) -> None:
    """Turn off whatever hides behind `self.training`: dropout in modules, attributes and functions, jitter, dropped layers.

    Modules that recompute their activations ask `self.training` too, so those alone say that they train; inside, they do not.
    """
    model.eval()
    asked = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    layers = [module for module in asked if isinstance(module, GradientCheckpointingLayer)]
    for module in layers or asked:  # before layers had a class, the module around them asked
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is not None:
            if not isinstance(function, _EvaluatedInside):
                inside = _EvaluatedInside(module, function)
                setattr(module, "_gradient_checkpointing_func", inside)  # noqa: B010
                module.register_forward_pre_hook(inside.enter)
                module.register_forward_hook(inside.leave, always_call=True)
            module.training = True


@dataclass
class _EvaluatedInside:
    """A checkpointing function that runs its layer in evaluation mode, forward and again in the backward pass.

    Without gradients nothing is recomputed, so a layer may not ask for this function (transformers 5.24): it evaluates then.
    """

    layer: nn.Module
    checkpoint: Callable[..., Any]
    resting: bool = False

    def enter(self, *_: Any) -> None:
        self.resting = self.layer.training and not torch.is_grad_enabled()
        self.layer.training = self.layer.training and not self.resting

    def leave(self, *_: Any) -> None:
        self.layer.training = self.layer.training or self.resting

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self.checkpoint(partial(self._run, function), *args, **options)

    def _run(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        was, self.layer.training = self.layer.training, False
        try:
            return function(*args, **options)
        finally:
            self.layer.training = was


def refuse_adapter_dropout(model: nn.Module) -> None:
    """ArgumentError for an adapter that was made with dropout: it would be ignored. (One that was loaded, not made, may have
    been trained so.)"""
    configs: Any = getattr(model, "peft_config", None) or {}
    for name, config in configs.items():
        for option, value in vars(config).items():
            if "dropout" in option and isinstance(value, float) and value > 0 and not config.inference_mode:
                raise ArgumentError(
                    f"adapter {name!r}: {option}: found {value}, expected 0. Dropout is noise in log π and so in every ratio "
                    "log π / π_k, from the second step on (the first hides it behind a zero matrix); policies train without."
                )


def plain_rows(model: nn.Module, items: Sequence[Encoded]) -> Callable[[], Tensor]:
    """A pass over these rows for `refuse_noise`: one plain sequence at a time, [tokens of all completions]."""
    rows = [(item.context(k), ids) for item in items for k, ids in enumerate(item.completions)]
    return lambda: torch.cat([plain_logps(model, (*before, *ids), ids, len(before) - 1).logps for before, ids in rows])


@torch.no_grad()
def refuse_noise(model: nn.Module, forward: Callable[[], Tensor], agreed: Callable[[bool], bool] = bool) -> None:
    """ModelError, naming the first module, where `forward` (of real rows, in the mode in which the model trains) is random.

    One pass has to leave every generator where it was. Where one moved, others decide whether that matters: under one of
    several seeds the values have to differ by more than under the same, with trainable zeros (LoRA's B, a new head) moved for
    the time, for behind them nothing shows. Generators and weights are left as they were found.

    Args:
        agreed: whether it is so on any of the processes that call this together.
    """
    sources = _sources(model)
    before = [source.state() for source in sources]
    try:
        forward()
        if not agreed(_moved(sources, before)):
            return
        with zeros_moved(model):
            first, again = (_watched(model, forward, sources, 1) for _ in range(2))
            rounding = 4 * largest_gap(first.values, again.values) + 1e-5 * float(first.values.abs().max())
            for seed in SEEDS:
                other = _watched(model, forward, sources, seed)
                if agreed(largest_gap(first.values, other.values) > rounding):
                    break
            else:
                return  # drawn, and nothing depends on it: a layer that is dropped with probability 0
    finally:
        for source, state in zip(sources, before):
            source.put_back(state)
    matter = [name for (name, a), (_, b) in zip(first.movers, other.movers) if a != b]
    name = next(iter([*matter, *(name for name, _ in first.movers), ""]))
    mode = "training" if model.training else "evaluation"
    kind = type(dict(model.named_modules()).get(name, model)).__name__
    raise ModelError(
        f"{name or type(model).__name__} ({kind}) draws random numbers in {mode} mode, and the model's "
        f"log-probabilities differ by {largest_gap(first.values, other.values):.2g} from pass to pass; expected a likelihood "
        "without noise. Set its dropout or jitter to zero, or remove what adds the noise."
    )


@contextmanager
def refusing_noise(model: nn.Module, item: Encoded) -> Iterator[None]:
    """`refuse_noise` on this row where a generator moves inside: what is drawn seldom shows in no two passes of a few."""
    sources = _sources(model)
    before = [source.state() for source in sources]
    yield
    if _moved(sources, before):
        refuse_noise(model, plain_rows(model, [item]))


class _Source(NamedTuple):
    """A generator of random numbers: its state, how to put that back, how to seed it."""

    state: Callable[[], Any]
    put_back: Callable[[Any], Any]
    seed: Callable[[int], Any]


def _sources(model: nn.Module) -> list[_Source]:
    """Every generator that a module might draw from: torch's of each device, numpy's, Python's, and those that modules hold."""
    found = [
        _Source(torch.get_rng_state, torch.set_rng_state, torch.manual_seed),
        _Source(np.random.get_state, np.random.set_state, np.random.seed),
        _Source(random.getstate, random.setstate, random.seed),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found.append(_Source(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, torch.cuda.manual_seed_all))
    if torch.backends.mps.is_available():
        found.append(_Source(torch.mps.get_rng_state, torch.mps.set_rng_state, torch.mps.manual_seed))
    held = {id(value): value for module in model.modules() for value in vars(module).values()}
    for own in held.values():
        if isinstance(own, torch.Generator):
            found.append(_Source(own.get_state, own.set_state, own.manual_seed))
        elif isinstance(own, np.random.RandomState):
            found.append(_Source(own.get_state, own.set_state, own.seed))
        elif isinstance(own, random.Random):
            found.append(_Source(own.getstate, own.setstate, own.seed))
        elif isinstance(own, np.random.Generator):
            bits: Any = own.bit_generator
            anew = lambda number, bits=bits: setattr(bits, "state", type(bits)(number).state)  # noqa: E731
            found.append(_Source(partial(getattr, bits, "state"), partial(setattr, bits, "state"), anew))
    return found


def _moved(sources: list[_Source], before: list[Any]) -> bool:
    return any(_plain(source.state()) != _plain(state) for source, state in zip(sources, before))


def _plain(state: Any) -> Any:
    """A state that `==` can compare."""
    if isinstance(state, (Tensor, np.ndarray)):
        return bytes(state.cpu().numpy() if isinstance(state, Tensor) else state)
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return [_plain(each) for each in state] if isinstance(state, (tuple, list)) else state


@contextmanager
def zeros_moved(model: nn.Module) -> Iterator[None]:
    """Trainable entries that are exactly zero get small values of both signs; other threads' passes wait."""
    kept = []
    with turn(model):
        for parameter in model.parameters():
            here: Any = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # this rank's part
            if parameter.requires_grad and bool((zero := here == 0).any()):
                kept.append((here, zero, here[zero]))
                here[zero] = (0.02 * torch.arange(len(kept[-1][2]), device=here.device).cos()).to(here)
        try:
            yield
        finally:
            for here, zero, values in kept:
                here[zero] = values


@dataclass
class _Seen:
    """What one pass gave, and the modules in which a generator moved, innermost first, with what each of them gave."""

    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    movers: list[tuple[str, list[float]]] = field(default_factory=list)


def _watched(model: nn.Module, forward: Callable[[], Tensor], sources: list[_Source], seed: int) -> _Seen:
    seen, entered = _Seen(), []
    for source in sources:
        source.seed(seed)

    def enter(*_: Any) -> None:
        entered.append([source.state() for source in sources])

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if _moved(sources, entered.pop()):
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            seen.movers.append((name, [float(tensor.double().sum()) for tensor in tensors]))

    handles = []
    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(partial(leave, name))]
    try:
        seen.values = forward().detach().double().cpu().nan_to_num()
    finally:
        for handle in handles:
            handle.remove()
    return seen
