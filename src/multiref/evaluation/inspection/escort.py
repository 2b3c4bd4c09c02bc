"""Where the exact optimum of several references would go, before anyone trains it: −log F, and how long its completions are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from multiref.decoding import Draws, sample
from multiref.references.collection import References
from multiref.regularizers import ReverseKL

PARTICLES, ISLANDS = 16, 8
LONGEST = 128  # tokens, unless the data's completions are shorter than half of it


@dataclass(frozen=True)
class Escort:
    """∏_k π_k^{w_k} / F over completions of at most `new_tokens` tokens after some prompts, in nats a completion.

    disagreement: −log F, the least weighted reverse KL of any policy, with its error (NaN: withheld, one draw carries more
        than a tenth of the sum). forced: the same among completions that do not end before `new_tokens`.
    median_length: of the escort, of each reference (`lengths`), of the references renormalised token by token (`token_length`),
        whose KL to the escort is `token_kl`. Medians of `new_tokens` mean that half and more had not ended.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    prompts: int
    new_tokens: int
    disagreement: float
    error: float
    forced: float
    forced_error: float
    median_length: float
    lengths: tuple[float, ...]
    token_length: float
    token_kl: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """What it means for who trains, in words."""
        parts = [f"{name} {weight:.2f}" for name, weight in zip(self.names, self.weights)]
        own = ", ".join(f"{name} {self._tokens(length)}" for name, length in zip(self.names, self.lengths))
        more = max(self.forced - self.disagreement, 0.0)
        rate = more / max(self.new_tokens - self.median_length, 1.0)
        shorter = self.median_length < 0.7 * min(self.lengths)
        return (
            f"Trained to its end without a reward, a policy under {', '.join(parts)} becomes their escort: −log F = "
            f"{self.disagreement:.2f} {_error(self.error)} nats a completion ({self.prompts} prompts, at most "
            f"{self.new_tokens} tokens), median length {self._tokens(self.median_length)}; by themselves: {own}."
            + (
                " It ends early because every token costs disagreement: the optimum of the stated objective, no failure."
                if shorter
                else ""
            ),
            f"Where completions must not end before {self.new_tokens} tokens −log F is {self.forced:.2f} "
            f"{_error(self.forced_error)}: min_new_tokens pays these {more:.1f} nats more, times β, for length. A reward that "
            f"grows by more than about {rate:.3f} β a token makes length worth its price. The per-token pool (method='token', "
            f"penalty per_token_reverse_kl) has median length {self._tokens(self.token_length)} and is another objective: its "
            f"KL to the escort is {self.token_kl:.2f} nats.",
        )

    def _tokens(self, length: float) -> str:
        return f"{length:.0f}" + (" or more" if length >= self.new_tokens else "") + " tokens"


def measure_escort(
    references: References, prompts: Sequence[Any], weights: Sequence[float], *, new_tokens: int, seed: int = 0
) -> Escort:
    """The escort of references on this machine with one vocabulary, by particles that file every end (`decoding.sample`).

    Errors: as of `decoding.sample`.
    """
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "n": PARTICLES, "islands": ISLANDS, "seed": seed}
    rule = ReverseKL(tuple(weights))
    free = sample(prompts, references, rule, **options)
    forced = sample(prompts, references, rule, min_new_tokens=new_tokens, **options)
    alone = [
        sample(prompts, References({name: references.named[name]}), ReverseKL((1.0,)), **options) for name in references.names
    ]
    tokens = sample(prompts, references, rule, method="importance", proposal="sampled_ends", **options)
    disagreements = [-each.log_weights - math.log(len(each.ids)) for each in tokens]  # Σ_t −log F_t of each completion
    kls = [float(each.mean()) + float(log_f) for each, log_f in zip(disagreements, free.log_partition)]
    return Escort(
        references.names,
        tuple(weights),
        len(prompts),
        new_tokens,
        -float(free.log_partition.mean()),
        float(free.error.square().sum().sqrt()) / len(prompts),
        -float(forced.log_partition.mean()),
        float(forced.error.square().sum().sqrt()) / len(prompts),
        _median(free),
        tuple(_median(each) for each in alone),
        float(torch.stack([each.lengths.double().median() for each in tokens]).mean()),
        sum(kls) / len(kls),
    )


def _median(draws: Draws) -> float:
    """The mean over prompts of the median length."""
    return float(sum(each.median_length for each in draws) / len(draws))


def _error(error: float) -> str:
    return "(error withheld: one draw carries more than a tenth)" if math.isnan(error) else f"± {error:.2f}"
