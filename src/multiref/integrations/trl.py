"""Several references under TRL's `DPOTrainer`: the pooled log-probabilities as the two columns that it already reads.

    dataset = with_reference_columns(dataset, scores, mr.ReverseKL([0.5, 0.5]))
    trainer = ReferenceColumnsDPOTrainer(model, args=DPOConfig(precompute_ref_log_probs=True, …), train_dataset=dataset, …)

Columns alone cannot do it (TRL 1.16): with `precompute_ref_log_probs=True` TRL computes the columns again and refuses the
duplicates, with `False` it ignores them silently. `ReferenceColumnsDPOTrainer` overrides the method that computes them.
TRL reports the construction of a trainer over the network unless HF_HUB_DISABLE_TELEMETRY=1 is set.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from multiref.errors import ArgumentError
from multiref.integrations.trl_columns import ALPHA, COLUMNS, CONVENTION, DIGESTS, GIVEN, pairs_of
from multiref.references.scores import SequenceScores

if TYPE_CHECKING:
    from multiref.integrations.trl_dpo import ReferenceColumnsDPOTrainer
    from multiref.integrations.trl_rloo import reference_reward, rloo

__all__ = ["ReferenceColumnsDPOTrainer", "reference_reward", "rloo", "with_reference_columns"]


def with_reference_columns(dataset: Any, scores: SequenceScores, regularizer: Any) -> Any:
    r"""A `datasets.Dataset` in TRL's preference format, with log P of both sides: `ref_chosen_logps`, `ref_rejected_logps`.

    P is the regularizer's pool, not normalised: its normaliser depends on the prompt alone and cancels in DPO's margin.

    * `ReverseKL(w)`: TRL's logistic loss is then exactly ours, −log σ(β [Δ log π − Σ_k w_k Δ log π_k]).
    * `PooledKL(w, order=-1)`: MRPO.
    * `ForwardKL(w)`, `AlphaDivergence(w, alpha)`: also needs `f_divergence_type` "forward_kl" or "alpha_divergence" in
      `DPOConfig`. TRL exponentiates ratios of whole completions there: its gradient is zero, infinite or NaN where they differ
      by tens of nats, so with foreign references use `PreferenceTrainer`.

    Args:
        dataset: columns prompt (or implicit), chosen, rejected; strings or conversations.
        scores: `SequenceScores` that cover it, joined by content.
        regularizer: with its weights, in the order of `scores.names`.

    The columns `ref_chosen_digests`, `ref_rejected_digests` and `ref_convention` say which token ids each reference scored, and
    how, so that the trainer does the same; `ref_alpha` says which divergence the pool is of: `DPOConfig` must name it.

    Raises: ArgumentError where the columns are there already, and for texts that a reference cut; StoreError, DataError as
    elsewhere.
    """
    if there := [name for name in COLUMNS if name in (dataset.column_names or ())]:
        raise ArgumentError(f"The dataset already has a column {there[0]!r}; remove it first (dataset.remove_columns).")
    known = {json.dumps(convention, sort_keys=True) for convention in scores.conventions if convention}
    if len(known) > 1:
        raise ArgumentError(
            f"The references were scored by different conventions ({' and '.join(sorted(known))}); give all one."
        )
    pairs = pairs_of(dataset, "row")
    prompts = [pair.prompt for pair in pairs]
    for side, name, digests in zip(("chosen", "rejected"), COLUMNS, DIGESTS):
        at = scores.columns(prompts, [getattr(pair, side) for pair in pairs])
        cut = scores.truncated[:, torch.from_numpy(at)].any(0)
        if bool(cut.any()):
            raise ArgumentError(
                f"{int(cut.sum()):,} of {len(pairs):,} rows are cut in the references' scores, the first is "
                f"{pairs[int(cut.nonzero()[0])].origin}; TRL would train on other tokens. Leave these rows out."
            )
        dataset = dataset.add_column(name, regularizer.pool(scores.logps[:, torch.from_numpy(at)]).tolist())
        dataset = dataset.add_column(digests, list(scores.digests[:, at].T))
    if pairs and isinstance(pairs[0].prompt, str):
        dataset = dataset.add_column(GIVEN, [[pair.prompt, pair.chosen, pair.rejected] for pair in pairs])
    dataset = dataset.add_column(ALPHA, [float(regularizer.alpha)] * len(pairs))
    return dataset.add_column(CONVENTION, [known.pop() if known else "{}"] * len(pairs))


def __getattr__(name: str) -> Any:
    homes = {"ReferenceColumnsDPOTrainer": "trl_dpo", "reference_reward": "trl_rloo", "rloo": "trl_rloo"}
    if name in homes:
        return getattr(import_module(f"multiref.integrations.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
