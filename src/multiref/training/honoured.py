"""`transformers.TrainingArguments` that our trainers would not do what they say with: refused by name; and those that have no
effect beside others: said."""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.utils.import_utils import is_liger_kernel_available

from multiref.errors import ArgumentError, MultirefWarning
from multiref.models.adapters import refuse_virtual_tokens
from multiref.training.arguments import DEFAULTS
from multiref.training.checks import check_at_least, say_idle

_ONE = "figures of an evaluation are means over its pairs, from the log-probabilities of each"
IGNORED: dict[str, tuple[Any, str]] = {  # argument → the value that changes nothing; what to do in place of another
    "label_smoothing_factor": (0.0, "it is the objective's: label_smoothing of `losses.bradley_terry` or `robust`"),
    "neftune_noise_alpha": (None, "noise in the embeddings is noise in a likelihood; leave it out"),
    "auto_find_batch_size": (False, "a step's pairs are what the loss averages over; give a token_budget for memory"),
    "include_num_input_tokens_seen": ("no", "rows are laid out in the model's pass; num_train_samples counts pairs"),
    "prediction_loss_only": (False, _ONE),
    "eval_do_concat_batches": (True, _ONE),
    "eval_use_gather_object": (False, _ONE),
    "include_for_metrics": ([], _ONE),
    "batch_eval_metrics": (False, _ONE),
    "label_names": (None, "pairs have no labels"),
    "length_column_name": ("length", "pairs of a step are sorted by length anyway"),
    "bf16_full_eval": (False, "it would leave the policy in half precision; use bf16 for autocast"),
    "fp16_full_eval": (False, "it would leave the policy in half precision; use fp16 for autocast"),
    "parallelism_config": (None, "every process trains on pairs of its own; use FSDP or DeepSpeed"),
    "resume_from_checkpoint": (None, "transformers ignores it; give it to `train(resume_from_checkpoint=…)`"),
}
FLOAT16_ON_CPU = "on a CPU all is computed as the weights are (float32); bf16 computes in half precision there"
_LOWER_IS_BETTER = ("nll", "calibration_error", "reward_gap")


def check_arguments(args: TrainingArguments) -> None:
    """ArgumentError, naming the argument, for one under which a step or a figure would not be what it says.
    What cannot be resumed is said."""
    for name, (neutral, instead) in IGNORED.items():
        found = getattr(args, name)
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
    if (sampling := args.train_sampling_strategy) not in ("random", "sequential"):
        raise ArgumentError(
            f"train_sampling_strategy: expected random or sequential, found {sampling!r}. Pairs of a step are sorted by "
            "length anyway; grouping whole steps by length would weigh a pair by the length of its neighbours."
        )
    if args.max_steps == 0 or (args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf):
        raise ArgumentError(
            f"max_steps, num_train_epochs: found {args.max_steps} and {args.num_train_epochs}; expected steps, at least 1, or "
            "epochs, above 0. (Of max_steps 0 transformers makes one step.)"
        )
    check_at_least(args, 1, "per_device_eval_batch_size")
    check_at_least(args, 0, "weight_decay")
    if args.max_grad_norm is not None and not args.max_grad_norm >= 0:
        raise ArgumentError(f"max_grad_norm: expected a number above 0, or 0 for no limit, found {args.max_grad_norm}.")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ArgumentError("use_liger_kernel: the package liger-kernel is not installed; install it, or leave it out.")
    if args.save_strategy == "best" and args.eval_strategy == "no":
        raise ArgumentError("save_strategy: best saves where an evaluation was better, and eval_strategy is no; set that.")
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if args.greater_is_better and any(f"_{metric}".endswith(f"_{name}") for name in _LOWER_IS_BETTER):  # of a named set, too
        raise ArgumentError(f"metric_for_best_model: {metric} is better where it is lower; set greater_is_better to false.")
    say_idle(args, _without_effect(args, _check_optimizer(args)), standing=DEFAULTS)
    if args.save_only_model:
        warnings.warn(
            "save_only_model: checkpoints without the optimizer's state: this run cannot be resumed where it stops.",
            MultirefWarning,
            stacklevel=3,
        )


def check_trainable(model: nn.Module, optimizers: tuple[Any, Any] = (None, None)) -> None:
    """ArgumentError where no weight of the model trains, or none by an optimizer (of this model, and of the schedule) that was
    given. What an adapter's settings promise and nobody does is said."""
    refuse_virtual_tokens(model)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not trained:
        raise ArgumentError("model: no weight of it requires a gradient, so nothing would be trained. Unfreeze what should be.")
    if isinstance(active := getattr(model, "active_adapters", None), list) and len(active) > 1:
        raise ArgumentError(
            f"model: the adapters {', '.join(map(repr, active))} are active together; a folder comes back with one of them. "
            "Merge the others into the base, and train one."
        )
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        if config.peft_type == "ADALORA":
            said = f"adapter {name!r}: AdaLoRA's rank stays init_r = {config.init_r}; nothing moves it to target_r. Use LoRA."
            warnings.warn(said, MultirefWarning, stacklevel=3)
        if str(begins := getattr(config, "init_lora_weights", None)).startswith("pissa_niter"):
            raise ArgumentError(
                f"adapter {name!r}: init_lora_weights={begins!r} takes a part out of the base that is drawn at random, another "
                "at each load, and that neither a checkpoint nor the saved folder holds. Use 'pissa', which draws nothing."
            )
    optimizer, schedule = optimizers
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(f"optimizers: expected an optimizer on the model's weights, found {optimizer!r:.80}.")
    if optimizer is not None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not trained & held:
            raise ArgumentError("optimizers: the optimizer holds no weight of the model, and would train another.")
    if schedule is not None and getattr(schedule, "optimizer", optimizer) is not optimizer:
        raise ArgumentError("optimizers: the schedule is of another optimizer; give the two that belong together.")


def check_metric(args: TrainingArguments, known: Iterable[str], sets: Iterable[str]) -> None:
    """ArgumentError where the metric of the best model is none that an evaluation (of these sets, by name) reports."""
    wanted = args.metric_for_best_model
    if wanted is None or args.eval_strategy == "no":
        return
    names = [f"{prefix}{name}" for prefix in ([f"{each}_" for each in sets] or [""]) for name in known]
    if wanted.removeprefix("eval_") not in names:
        raise ArgumentError(f"metric_for_best_model: found {wanted!r}, expected one of {', '.join(names)}.")


def _check_optimizer(args: TrainingArguments) -> dict[str, Any]:
    """What the optimizer is made with. ArgumentError where it, or the schedule, cannot be: before anything is scored."""
    try:
        kind, given = Trainer.get_optimizer_cls_and_kwargs(args)
        if args.optim_target_modules is None:  # else it takes parameters of the model by name
            optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **given)
            more: Any = args.lr_scheduler_kwargs or {}
            get_scheduler(args.lr_scheduler_type, optimizer, 0, 1, dict(more))
    except (ValueError, TypeError, ImportError, AssertionError) as error:
        raise ArgumentError(f"optimizer or schedule ({word(args.optim)}, {word(args.lr_scheduler_type)}): {error}") from error
    return dict(given)


def word(value: object) -> str:
    """Of an enumeration's member what it is written as."""
    return str(getattr(value, "value", value))


def _without_effect(args: TrainingArguments, given: dict[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """(argument, whether another switches it off, why)."""
    plain = args.optim in ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "adafactor")
    yield from (
        ("num_train_epochs", args.max_steps > 0, "max_steps decides how long a run is"),
        ("eval_steps", args.eval_strategy != "steps", "eval_strategy is not steps"),
        *((name, args.eval_strategy == "no", "eval_strategy is no") for name in ("eval_delay", "metric_for_best_model")),
        ("data_seed", args.train_sampling_strategy == "sequential", "sequential pairs are in the order of the data"),
        ("liger_kernel_config", not args.use_liger_kernel, "use_liger_kernel is off"),
        ("fp16", args.device.type == "cpu", FLOAT16_ON_CPU),
        ("save_steps", args.save_strategy != "steps", "save_strategy is not steps"),
        ("logging_steps", args.logging_strategy != "steps", "logging_strategy is not steps"),
        ("warmup_steps", args.lr_scheduler_type == "constant", "a constant schedule has no warm-up; constant_with_warmup has"),
        ("lr_scheduler_kwargs", args.lr_scheduler_type == "constant", "a constant schedule takes none"),
        ("gradient_checkpointing_kwargs", not args.gradient_checkpointing, "gradient_checkpointing is off"),
        *((name, plain, f"{word(args.optim)} does not read it") for name in ("optim_args", "optim_target_modules")),
        *((name, "betas" not in given, f"{word(args.optim)} takes none") for name in ("adam_beta1", "adam_beta2")),
        ("adam_epsilon", "eps" not in given, f"{word(args.optim)} takes none"),
    )
