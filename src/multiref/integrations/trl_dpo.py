"""The one-method subclass of TRL's `DPOTrainer` that takes reference log-probabilities from the dataset.
Tested with TRL 1.16.0."""

from typing import Any

from trl.trainer.dpo_trainer import DPOTrainer

from multiref.errors import ArgumentError


class ReferenceColumnsDPOTrainer(DPOTrainer):
    """`DPOTrainer` on a dataset that `with_reference_columns` filled. Set `precompute_ref_log_probs=True`;
    no reference model is loaded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        config = options.get("args") or (args[2] if len(args) > 2 else None)
        if config is None or not config.precompute_ref_log_probs:
            raise ArgumentError(
                "precompute_ref_log_probs: expected True, found False; TRL would ignore the columns and use its own reference. "
                "Pass args=DPOConfig(precompute_ref_log_probs=True, …)."
            )
        super().__init__(*args, **options)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        missing = [column for column in ("ref_chosen_logps", "ref_rejected_logps") if column not in dataset.column_names]
        if missing:
            raise ArgumentError(f"The {name} dataset has no column {missing[0]!r}; fill it with with_reference_columns first.")
        return dataset
