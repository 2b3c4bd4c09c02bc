"""Whether what was saved is what was trained: rows scored in memory, and again by the folder as a user loads it.

The rows are texts: they go through the tokenizer and template of each side. The model in memory is asked plainly, one sequence
at a time, without autocast, as the weights are; so is the loaded one. How far rounding alone moves these numbers is measured
on the way, by the same rows in another shape.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ModelError, MultirefWarning
from multiref.models import Encoded, LanguageModel, ModelSpec, Tokenisation, load
from multiref.models.architecture import as_its_weights_are, evaluating
from multiref.models.encoding import context_of
from multiref.models.forward import plain_logps
from multiref.models.sampling import Rollout, decode_behind, encode_prompts
from multiref.models.spec import TOKENISATION
from multiref.models.witness import difference, largest_gap
from multiref.training.dataset import PairData, encode_pairs
from multiref.training.reward.model import open_reward_model, rewards_of

ROWS = 8
SAME_DEVICE, OTHER_DEVICE = 1e-5, 1e-4  # nats a token that pass for rounding in any case


@dataclass(frozen=True)
class Rows:
    """What is scored twice. encoded: as the run has them; encode: tokenizer → the same texts by another;
    rewards: (prompts, completions) where the model is a reward model."""

    encoded: Sequence[Encoded]
    encode: Callable[[Any], Sequence[Encoded]]
    rewards: tuple[list[Any], list[Any]] | None = None

    def remember(self, model: Any, tokenizer: Any) -> "Kept":
        """Their scores under the model in memory. Every rank of a sharded model calls it."""
        values, other = (self.score(model, tokenizer, moved=moved) for moved in (False, True))
        spread = max(largest_gap(a, b) for a, b in zip(values, other))
        return Kept(self, values, spread, next(model.parameters()).device.type)

    def score(self, model: Any, tokenizer: Any, *, moved: bool = False) -> list[Tensor]:
        """Of each completion its token log-probabilities, or its reward [1]; `moved`: in another shape, beside more tokens."""
        with torch.no_grad(), evaluating(model), as_its_weights_are(model):
            if self.rewards is None:
                return _plain_logps(model, self.encoded, more=4 if moved else 0)
            batch = len(self.rewards[0]) if moved else 1
            return list(rewards_of(model, tokenizer, *self.rewards, batch=batch).split(1))


@dataclass(frozen=True)
class Kept:
    """The rows' scores when the model was in memory, and nothing that holds it."""

    rows: Rows
    values: list[Tensor]
    spread: float
    device: str

    def compare(self, spec: ModelSpec) -> str:
        """Loads the folder and scores the rows again; returns a sentence with the numbers.

        Errors: ModelError where the folder cannot be loaded, writes other tokens, or scores otherwise than by rounding.
        """
        reward = self.rows.rewards is not None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MultirefWarning)  # what there is to be said was said when the run began
                encoded, values, device = self._again(open_reward_model if reward else load, spec)
        except Exception as error:  # whatever transformers and the tokenizer provoke: it does not come back
            raise ModelError(f"The saved folder cannot be used: {error}") from error
        for number, (was, now) in enumerate(zip(self.rows.encoded, encoded, strict=True), 1):
            if was != now:
                raise ModelError(
                    f"The saved folder's tokenizer writes other tokens than the one that was trained with: row {number} of "
                    f"{len(encoded)} is {_ids(now)}, was {_ids(was)}. Its chat template or special tokens differ."
                )
        gaps = torch.cat([difference(a, b) for a, b in zip(self.values, values, strict=True)])
        allowed = max(4 * self.spread, SAME_DEVICE if device == self.device else OTHER_DEVICE)
        unit = "reward" if reward else "nats a token"
        sums = [f"{float(each.sum()):.4f}" for each in (torch.cat(self.values), torch.cat(values))]
        options = [f"{name} {getattr(spec, name)}" for name in ("dtype", "quantization", "attention") if getattr(spec, name)]
        found = (
            f"{len(values)} rows scored in memory and from the saved folder ({', '.join([device, *options])}): largest "
            f"difference {float(gaps.max()):.2g} {unit}, where rounding may be {allowed:.2g}; sums {sums[0]} and {sums[1]}."
        )
        if not bool((gaps <= allowed).all()):
            raise ModelError(f"What was saved is not what was trained. {found}")
        return found

    def _again(self, opener: Callable[..., LanguageModel], spec: ModelSpec) -> tuple[Sequence[Encoded], list[Tensor], str]:
        """The rows as the folder writes and scores them, and where: on the accelerator, or where it has no room on the CPU."""
        for options in ({}, {"device": "cpu"}):
            try:
                loaded = opener(spec, **options)
                values = self.rows.score(loaded.model, loaded.tokenizer)
                return self.rows.encode(loaded.tokenizer), values, next(loaded.model.parameters()).device.type
            except Exception as error:
                full = any(isinstance(each, torch.OutOfMemoryError) for each in (error, error.__cause__))
                if options or not full:
                    raise
        raise AssertionError("either of the two returns or raises")


def rows_of_pairs(data: PairData, *, rewards: bool = False) -> Rows:
    """Eight pairs, spread over the data from the first to the last."""
    places = sorted({round(i * (len(data) - 1) / (ROWS - 1)) for i in range(ROWS)})
    pairs, tokenisation = [data.pairs[i] for i in places], data.tokenisation
    texts = [(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    return Rows(
        [data.encoded[i] for i in places],
        lambda tokenizer: encode_pairs(pairs, tokenizer, tokenisation),
        ([prompt for prompt, _ in texts], [side for _, side in texts]) if rewards else None,
    )


def rows_of_rollouts(rollouts: Sequence[Rollout], tokenizer: Any, tokenisation: Tokenisation = TOKENISATION) -> Rows:
    """Sampled completions: prompts as texts, completions as the ids that were drawn, which are to spell the same."""
    prompts = [rollout.prompt for rollout in rollouts]
    drawn = [rollout.completion_ids for rollout in rollouts]
    group = len(drawn[0])

    def spell(other: Any, contexts: Sequence[tuple[int, ...]]) -> list[str]:
        return decode_behind(other, contexts, [ids for each in drawn for ids in each], group)

    encoded = [rollout.encoded() for rollout in rollouts]
    spelt = spell(tokenizer, [each.prompt_ids for each in encoded])

    def encode(other: Any) -> list[Encoded]:
        contexts = encode_prompts(other, prompts, tokenisation)
        if spell(other, contexts) != spelt and contexts == [each.prompt_ids for each in encoded]:
            raise ModelError("its tokenizer spells the sampled ids as other texts.")
        return [Encoded(context, ids, (False,) * len(ids)) for context, ids in zip(contexts, drawn)]

    return Rows(encoded, encode)


def _plain_logps(model: Any, encoded: Sequence[Encoded], *, more: int) -> list[Tensor]:
    """Each completion alone, through the model's own forward; `more` tokens after it change nothing but rounding."""
    context, found = context_of(model.config), []
    for item in encoded:
        for index, ids in enumerate(item.completions):
            before = item.context(index)
            room = more if context is None else max(0, min(more, context - len(before) - len(ids)))
            found.append(plain_logps(model, (*before, *ids, *ids[-1:] * room), ids, len(before) - 1).logps)
    return found


def _ids(item: Encoded) -> str:
    rows = [[*item.context(k), "|", *ids] for k, ids in enumerate(item.completions)]
    return "; ".join(" ".join(map(str, row[:24])) + (" …" if len(row) > 24 else "") for row in rows)
