"""Whether policy, references, prompts, weights and penalty fit together: settled before the first step, each misfit with one message."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from multiref._logspace import check_beta, check_weights
from multiref.errors import ArgumentError, MultirefWarning
from multiref.regularizers import ForwardKL, Regularizer, ReverseKL
from multiref.training.online.penalty import FromReferences, NoPenalty, Penalty, PenaltyInReward, penalty_named
from multiref.training.online.rollout import prompt_ids

__all__ = ["agreed_penalty", "agreed_weights", "as_rows", "check_policy_context", "check_processes", "references_matter"]


def as_rows(prompts: Sequence[Any]) -> list[Mapping[str, Any]]:
    """Texts or mappings with `prompt` → mappings. ArgumentError for none, or one without."""
    rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in prompts]
    if not rows:
        raise ArgumentError("prompts: expected at least one text or mapping with `prompt`, found none.")
    if any("prompt" not in row for row in rows):
        raise ArgumentError("prompts: a row has no `prompt`.")
    return rows


def references_matter(beta: float, references: Any) -> bool:
    """Whether there is a penalty at all; β = 0 with references given is said."""
    if beta == 0:
        if references:
            warnings.warn(
                "beta is 0: the references are ignored, neither scored nor in the metrics.", MultirefWarning, stacklevel=3
            )
        return False
    check_beta(beta)
    return True


def agreed_weights(rows: Sequence[Mapping[str, Any]], regularizer: Regularizer, names: Sequence[str]) -> Any:
    """[K], or [K, prompts] where every row has its own; None without references."""
    if not names:
        return None
    given = [row.get("weights") for row in rows]
    if not any(w is not None for w in given):
        return check_weights(regularizer.weights, len(names))
    if any(w is None for w in given) or regularizer.weights is not None:
        raise ArgumentError(
            "weights: expected them in every row of prompts and not in the regularizer, or in the regularizer alone."
        )
    return torch.stack([check_weights(w, len(names)) for w in given], 1)


def agreed_penalty(penalty: Penalty | str | None, regularizer: Regularizer, scorer: Any, weights: Any) -> Penalty:
    """The penalty named, or the exact one of the regularizer. VocabularyMismatch where it needs tokens that a reference does not have."""
    if scorer is None:
        return NoPenalty()
    if penalty is None:
        own_samples = isinstance(regularizer, ForwardKL) and all(scorer.aligned.values()) and weights.ndim == 1
        return FromReferences(regularizer) if own_samples else PenaltyInReward(regularizer)
    chosen = penalty_named(penalty, regularizer) if isinstance(penalty, str) else penalty
    if repr(chosen.regularizer) == repr(ReverseKL()) and isinstance(regularizer, ReverseKL):
        chosen = replace(chosen, regularizer=regularizer)  # made without one: the run's
    if repr(chosen.regularizer) != repr(regularizer):
        raise ArgumentError(
            f"penalty: {type(chosen).__name__} was made for {chosen.regularizer!r}, but the run is under {regularizer!r}, whose weights and metrics are used. "
            "Give both the same regularizer, or the penalty by name."
        )
    if chosen.needs != "completions":
        scorer.require_aligned()
    return chosen


def check_policy_context(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], new_tokens: int) -> None:
    """ArgumentError where the policy's context cannot hold the longest prompt and completion."""
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prompt_ids(tokenizer, [row["prompt"] for row in rows]))) + new_tokens
    if limit is not None and limit < longest:
        raise ArgumentError(
            f"max_new_tokens: the policy holds {limit} tokens, the longest prompt and completion may have {longest}. Shorten one of them."
        )


def check_processes(accelerator: Any) -> None:
    """One process, or data parallel. ArgumentError for others."""
    if str(accelerator.distributed_type).rpartition(".")[2] not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ArgumentError(
            f"OnlineTrainer runs in one process or data parallel, found {accelerator.distributed_type}. Use integrations.trl.rloo for FSDP and DeepSpeed."
        )
