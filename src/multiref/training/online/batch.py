"""From rollouts to `Samples`: one differentiable pass of the policy over a part of a step, beside what the references said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.references.rollouts import Rollout, RolloutScorer
from multiref.training.online.microbatches import encoded_group, padded, policy_tokens
from multiref.training.online.penalty import FullVocabulary, Penalty
from multiref.training.online.samples import Samples
from multiref.training.online.vocabulary import vocabulary_terms

__all__ = ["behaviour_logps", "reference_scores", "samples_of", "weights_at"]


def reference_scores(scorer: RolloutScorer | None, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """{"completions": [K, N], "tokens": [K, N, T] where vocabularies agree}: one reference after the other over the whole step."""
    if scorer is None:
        return {}
    if all(scorer.aligned.values()):
        tokens = scorer.tokens(rollouts)
        return {"tokens": tokens, "completions": tokens.double().sum(-1)}
    return {"completions": scorer.completions(rollouts)}


def behaviour_logps(rollouts: Sequence[Rollout], width: int) -> Tensor | None:
    """[N, width] token log-probabilities under whoever sampled, where every rollout has them; None: the policy as it is sampled them."""
    rows = [row for rollout in rollouts for row in rollout.sampled_logps or (None,) * len(rollout.completion_ids)]
    if not rows or any(row is None for row in rows):
        return None
    parts = [torch.tensor(row, dtype=torch.float64) for row in rows]
    return padded(torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), width)


def weights_at(weights: Any, index: Tensor) -> Any:
    """[K] stays; of [K, N] the columns at `index`."""
    return weights[:, index] if isinstance(weights, Tensor) and weights.ndim == 2 else weights


def samples_of(
    model: Any,
    scorer: RolloutScorer | None,
    penalty: Penalty,
    batch: Sequence[Rollout],
    index: Tensor,
    refs: dict[str, Tensor],
    weights: Any,
    old: Tensor | None,
    width: int,
) -> Samples:
    """The completions of `batch`, at places `index` of the step, with everything that `penalty` looks at.

    Args:
        refs: of `reference_scores`; weights: [K] or [K, N]; old: [N, width] or None. All of the whole step.
    """
    device = next(model.parameters()).device
    divergences = disagreements = None
    w = weights_at(weights, index)
    if penalty.needs == "vocabulary":
        assert scorer is not None
        tokens, mask, divergences, disagreements = _whole_vocabulary(model, scorer, penalty, batch, w)
        divergences, disagreements = padded(divergences, width), padded(disagreements, width)
    else:
        tokens, mask = policy_tokens(model, batch)
    tokens, mask = padded(tokens, width), padded(mask, width)
    whole = refs["completions"][:, index].to(device) if "completions" in refs else torch.zeros(0, len(index), device=device)
    each = padded(refs["tokens"][:, index].to(device), width).to(tokens) if "tokens" in refs else None
    return Samples(tokens, mask, whole, w, None if old is None else old[index].to(tokens), each, disagreements, divergences)


def _whole_vocabulary(
    model: Any, scorer: RolloutScorer, penalty: Penalty, batch: Sequence[Rollout], weights: Any
) -> tuple[Tensor, ...]:
    """(token log-probabilities, mask, D_t, −log F_t), [n, T] each."""
    divergence = getattr(penalty, "at_state", FullVocabulary.at_state)
    with scorer.models() as models:
        terms = vocabulary_terms(model, models, [encoded_group(r) for r in batch], weights, divergence=divergence)
    lengths = [len(ids) for rollout in batch for ids in rollout.completion_ids]
    rows = [torch.nn.utils.rnn.pad_sequence(list(term.split(lengths)), batch_first=True) for term in terms]
    mask = torch.arange(max(lengths), device=rows[0].device)[None] < torch.tensor(lengths, device=rows[0].device)[:, None]
    return rows[0], mask, rows[1], rows[2].detach()
