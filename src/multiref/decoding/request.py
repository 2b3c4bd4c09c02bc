"""What is asked for, checked before any model is read: method, proposal, how many, of what length, at which price."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError
from multiref.models.lockstep import Lockstep, at_rest, cache_bytes
from multiref.models.spec import Generation
from multiref.models.witness import free_memory
from multiref.regularizers import Regularizer, check_beta, check_weights

# method → its proposals, the default first; None: a reference's name
METHODS: dict[str, tuple[str | None, ...]] = {
    "smc": ("flat", "pool", None),
    "importance": ("pool", "flat", "mixture", "sampled_ends", None),
    "rejection": ("pool", "mixture"),
    "token": ("pool",),
}


TRIAL = 256  # particles of the trial that predicts how often rejection accepts
CHUNK = 4096  # rows side by side, of rejection


@dataclass(frozen=True)
class Budget:
    """What a call may spend on all prompts together; None: as much as it needs. tokens: read by all models together.
    seconds: without the reward, from one step that is timed."""

    tokens: float | None = None
    rewards: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and (not isinstance(value, Real) or not float(value) >= 0):
                raise ArgumentError(f"budget: {name}: expected a number of at least 0, or None, found {value!r}.")


@dataclass(frozen=True)
class Request:
    """One call of `sample`, as a value; see there. generation: max_new_tokens and min_new_tokens."""

    regularizer: Regularizer
    reward: Callable[..., Any] | None
    beta: float
    method: str
    proposal: str
    n: int
    islands: int
    generation: Generation
    require_end: bool
    reward_max: float | None
    budget: Budget
    seed: int
    twist: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ArgumentError(f"method: found {self.method!r}; expected one of {', '.join(METHODS)}.")
        if not isinstance(self.budget, Budget):
            raise ArgumentError(f"budget: expected a Budget, found {self.budget!r}.")
        for name, least in (("n", 1), ("islands", 1), ("seed", 0)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), least))
        object.__setattr__(self, "beta", check_strength(self.beta))
        if not isinstance(self.require_end, bool):
            raise ArgumentError(f"require_end: expected True or False, found {self.require_end!r}.")
        if self.reward_max is not None and (not isinstance(self.reward_max, Real) or not math.isfinite(self.reward_max)):
            raise ArgumentError(f"reward_max: expected a finite number, or None, found {self.reward_max!r}.")
        if self.method == "rejection" and self.reward is not None and self.reward_max is None:
            raise ArgumentError("reward_max: rejection accepts with e^{(r − r_max)/β}; give the largest reward that there is.")
        if self.twist is not None and self.method != "smc":
            raise ArgumentError(f"twist: it guides the resampling of method 'smc'; found method {self.method!r}.")
        self._check_pool()

    def _check_pool(self) -> None:
        pool, named = self.regularizer, self.proposal not in METHODS["importance"]
        if self.escort or self.method == "token" or (self.method == "importance" and (named or self.proposal == "mixture")):
            return
        raise ArgumentError(
            f"{pool.name} (pool of order {pool.order:g}) with method {self.method!r} and proposal {self.proposal!r}: only "
            "reverse KL's pool can be followed token by token. Use method='importance' with proposal='mixture' or a "
            "reference's name, whose weights need scores of whole completions alone."
        )

    @property
    def escort(self) -> bool:
        """Whether the pool is the geometric one, whose mass of a completion is a product over its tokens."""
        return self.regularizer.alpha == 1 and self.regularizer.order == 0

    @property
    def rows(self) -> int:
        """How many draws are asked for."""
        return self.n * self.islands

    def component(self, names: Sequence[str], weights: Tensor) -> Tensor:
        """[K] weights of the mixture that is proposed from: the references', or one-hot where one was named."""
        if self.proposal in METHODS[self.method]:
            return weights
        if self.proposal not in names or None not in METHODS[self.method]:
            known = [*filter(None, METHODS[self.method]), *(names if None in METHODS[self.method] else ())]
            raise ArgumentError(
                f"proposal: found {self.proposal!r} with method {self.method!r}; expected one of {', '.join(known)}."
            )
        return torch.tensor([float(name == self.proposal) for name in names], dtype=torch.float64)

    def check_ends(self, ends: Sequence[int]) -> None:
        """ArgumentError where something depends on an end and nothing ends a completion."""
        if not ends and (self.require_end or self.generation.min_new_tokens):
            raise ArgumentError(
                "require_end, min_new_tokens: nothing ends a completion (neither the tokenizer nor the model's generation "
                "settings name an end token). Leave them out: every completion is then cut after max_new_tokens."
            )

    def check_price(
        self, models: Sequence[Any], contexts: Sequence[Sequence[int]], say: Callable[[str], None] | None
    ) -> dict[str, float]:
        """What it takes, as `check_budget` has it, and said. ArgumentError where tokens, rewards or the memory of caches would
        be more than there is. Rejection's proposals are counted once its trial has said how many it takes."""
        check_memory(models, self.rows, max(map(len, contexts)) + self.generation.max_new_tokens)
        rows = self.rows + (TRIAL if self.method == "rejection" else 0)
        needs = self.check_budget(models, contexts, rows, timed=say is not None)
        if say is not None:
            say(
                f"Up to {needs['tokens']:,.0f} tokens read and {needs['rewards']:,.0f} rewards; about "
                f"{needs['seconds']:,.1f} seconds without the reward."
            )
        return needs

    def check_budget(
        self,
        models: Sequence[Any],
        contexts: Sequence[Sequence[int]],
        rows: int,
        *,
        tokens: int = 0,
        rewards: int = 0,
        timed: bool = False,
    ) -> dict[str, float]:
        """{"tokens", "rewards"} at most, and "seconds" without the reward (of one step that is timed) where that is asked for
        or bounded. ArgumentError where so many rows of each prompt, beside what was spent, are more than may be."""
        steps, side = self.generation.max_new_tokens, min(rows, CHUNK)
        needs: dict[str, float] = {
            "tokens": tokens + sum(len(models) * (len(context) + rows * (steps - 1)) for context in contexts),
            "rewards": 0 if self.reward is None else rewards + rows * len(contexts),
        }
        self.check_spent(needs, f"{len(contexts)} prompts, {rows:,} rows each, {steps} new tokens, {len(models)} models")
        if timed or self.budget.seconds is not None:
            needs["seconds"] = rows / side * len(contexts) * _seconds(models, max(contexts, key=len), side, steps)
            self.check_spent(needs, f"without the reward; one step of {side:,} rows was timed")
        return needs

    def check_spent(self, needs: Mapping[str, float], of: str) -> None:
        """ArgumentError where one of these ("tokens", "rewards", "seconds") is more than may be."""
        for name, needed in needs.items():
            allowed = getattr(self.budget, name)
            if allowed is not None and needed > allowed:
                raise ArgumentError(
                    f"budget: this needs {'about' if name == 'seconds' else 'up to'} {needed:,.0f} {name} ({of}), and "
                    f"{allowed:,.0f} are allowed. Lower n, islands or max_new_tokens."
                )


def check_strength(beta: object) -> float:
    """β of one call. ArgumentError for what is not one positive, finite number."""
    try:
        found = float(check_beta(beta))  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"beta: expected one positive, finite number, found {beta!r}.") from None
    return found


def flat_weights(weights: Any, references: int) -> Tensor:
    """[K] float64. ArgumentError for weights per example, which what follows a prompt cannot have."""
    found = check_weights(weights, references).detach()
    if found.ndim != 1:
        raise ArgumentError(f"weights: expected one number a reference here, found shape {tuple(found.shape)}.")
    return found


def check_whole(name: str, value: object, least: int) -> int:
    """The number. ArgumentError for what is no whole number, or less than that, or more than generators take."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) < 2**62:
        raise ArgumentError(f"{name}: expected a whole number of at least {least}, found {value!r}.")
    return int(value)


def check_memory(models: Sequence[Any], rows: int, length: int, *, more: int = 0) -> None:
    """ArgumentError where the caches of so many rows of so many tokens, and `more` bytes, are more than the device has free."""
    needed = cache_bytes(models, rows, length) + more
    free = free_memory(next(models[0].parameters()).device)
    if needed > free:
        raise ArgumentError(
            f"n, islands: {rows:,} rows of {length:,} tokens need {needed:,} bytes (caches and logits), and {free:,} are free. "
            "Lower n, islands or max_new_tokens, or call several times with different seeds."
        )


def _seconds(models: Sequence[Any], context: Sequence[int], rows: int, steps: int) -> float:
    """Of one prompt: its prompt read and one step timed, the step times as many as there are."""
    begin = time.perf_counter()
    with at_rest(models):
        step = Lockstep(models, tuple(context), rows, steps)
        read = time.perf_counter()
        step.read(torch.zeros(rows, dtype=torch.long, device=step.device))
        float(step.logps()[0, 0, 0])  # waits for an accelerator
    return read - begin + (steps - 1) * (time.perf_counter() - read)
