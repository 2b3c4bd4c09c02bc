"""`transformers.TrainingArguments` that our trainers would not do what they say with: refused by name."""

import warnings
from typing import Any, NamedTuple

from transformers import TrainingArguments

from multiref.errors import ArgumentError, MultirefWarning


class _Ignored(NamedTuple):
    """The value that changes nothing, and what to do in place of another."""

    neutral: Any
    instead: str


_ONE = "figures of an evaluation are means over its pairs, from the log-probabilities of each"
IGNORED = {
    "label_smoothing_factor": _Ignored(0.0, "it is the objective's: label_smoothing of `losses.bradley_terry` or `robust`"),
    "neftune_noise_alpha": _Ignored(None, "noise in the embeddings is noise in a likelihood; leave it out"),
    "auto_find_batch_size": _Ignored(False, "a step's pairs are what the loss averages over; give a token_budget for memory"),
    "include_num_input_tokens_seen": _Ignored("no", "rows are laid out in the model's pass; num_train_samples counts pairs"),
    "prediction_loss_only": _Ignored(False, _ONE),
    "eval_do_concat_batches": _Ignored(True, _ONE),
    "eval_use_gather_object": _Ignored(False, _ONE),
    "include_for_metrics": _Ignored([], _ONE),
    "batch_eval_metrics": _Ignored(False, _ONE),
    "label_names": _Ignored(None, "pairs have no labels"),
    "length_column_name": _Ignored("length", "pairs of a step are sorted by length anyway"),
    "bf16_full_eval": _Ignored(False, "it would leave the policy in half precision; use bf16 for autocast"),
    "fp16_full_eval": _Ignored(False, "it would leave the policy in half precision; use fp16 for autocast"),
    "parallelism_config": _Ignored(None, "every process trains on pairs of its own; use FSDP or DeepSpeed"),
    "resume_from_checkpoint": _Ignored(None, "transformers ignores it; give it to `train(resume_from_checkpoint=…)`"),
}
_LOWER_IS_BETTER = ("nll", "calibration_error", "reward_gap")


def check_arguments(args: TrainingArguments) -> None:
    """ArgumentError, naming the argument, for one under which a step or a figure would not be what it says.
    What cannot be resumed is said."""
    for name, (neutral, instead) in IGNORED.items():
        found = getattr(args, name, neutral)
        if found is not None and getattr(found, "value", found) != neutral:
            raise ArgumentError(f"{name}: found {found!r}, which would be ignored; {instead}.")
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name, None):
            raise ArgumentError(f"accelerator_config.{name}: found true, which would be ignored; each process reads its pairs.")
    if args.n_gpu > 1:
        raise ArgumentError(
            f"{args.n_gpu} devices are visible to one process, which transformers would train on by replication; expected one "
            "device a process. Start it with `accelerate launch`, or show it one device (CUDA_VISIBLE_DEVICES=0)."
        )
    sampling = getattr(args, "train_sampling_strategy", "random")
    if sampling not in ("random", "sequential"):
        raise ArgumentError(
            f"train_sampling_strategy: expected random or sequential, found {sampling!r}. Pairs of a step are sorted by "
            "length anyway; grouping whole steps by length would weigh a pair by the length of its neighbours."
        )
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if metric in _LOWER_IS_BETTER and args.greater_is_better:
        raise ArgumentError(f"metric_for_best_model: {metric} is better where it is lower; set greater_is_better to false.")
    if args.save_only_model:
        warnings.warn(
            "save_only_model: checkpoints without the optimizer's state: this run cannot be resumed where it stops.",
            MultirefWarning,
            stacklevel=3,
        )
