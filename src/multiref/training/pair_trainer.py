"""What trainers on pairs share: steps of equally many pairs on every rank, averages over the pairs of a step, safe files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from multiref.errors import ArgumentError
from multiref.training.adapters import complete_folder
from multiref.training.batching import StepBatches
from multiref.training.dataset import PairData, collate
from multiref.training.metrics import Averages


class PairTrainer(Trainer):
    """A `transformers.Trainer` on pairs; overrides documented methods only.
    Batches are mappings with "pairs", which has `shares` [B].

    Its datasets are `PairData`: `ready` makes one of what is given, and where evaluation data are a mapping, of each of them.
    """

    loss_is_scaled_for_ga = True  # compute_loss divides by the pairs of the whole step

    def __init__(
        self,
        ready: Callable[[Any], PairData],
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        **options: Any,
    ) -> None:
        check_devices(args)
        remove_dropout(model)
        self._averages = Averages()
        mapped = isinstance(eval_dataset, Mapping)
        held_out = {
            name: ready(each) for name, each in (eval_dataset if mapped else {"": eval_dataset}).items() if each is not None
        }
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            train_dataset=ready(train_dataset),
            eval_dataset=held_out if mapped else held_out.get(""),
            data_collator=collate,
            compute_metrics=self._averaged,
            **options,
        )
        self.model_accepts_loss_kwargs = True  # older releases ask this where newer ask `loss_is_scaled_for_ga`

    def _averaged(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of an evaluation, from what `prediction_step` returned for its pairs."""
        raise NotImplementedError

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations a parameter and token, forward and backward."""
        model: nn.Module = self.model  # type: ignore[assignment]
        return 6 * sum(map(int, inputs["pairs"].row_lengths)) * sum(p.numel() for p in model.parameters())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps of equally many pairs, each rank its share, in an order that only the seed and the epoch decide."""
        args = self.args
        data: PairData = self.train_dataset  # type: ignore[assignment]
        batches = StepBatches(
            data.row_lengths,
            args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            world=args.world_size,
            rank=args.process_index,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=getattr(args, "train_sampling_strategy", "random") != "sequential",
            drop_last=args.dataloader_drop_last,
        )
        return _EpochLoader(data, batch_sampler=batches, collate_fn=self.data_collator, num_workers=args.dataloader_num_workers)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Tensor | None]:
        """The micro-batches of one step, and how many pairs they hold over all ranks."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        count = torch.stack([sample["pairs"].shares.sum() for sample in samples]).sum().float().to(device)
        return samples, self.accelerator.reduce(count, reduction="sum")

    def mean_of_step(self, losses: Tensor, shares: Tensor, pairs_of_step: Any) -> Tensor:
        """[B], [B] → Σ losses of these pairs / pairs of the step (None: of these).
        Gradients are averaged over ranks, hence the number of ranks."""
        count = shares.sum() if pairs_of_step is None else pairs_of_step
        ranks = 1 if pairs_of_step is None else self.accelerator.num_processes
        return ((losses * shares).sum() / count * ranks).float()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers saves it, without the pickle of the arguments that it adds and nothing of ours reads; an adapter's
        folder loads from anywhere."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            (folder / "training_args.bin").unlink(missing_ok=True)
            complete_folder(folder, self.accelerator.unwrap_model(self.model))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The loss's line also carries the metrics of its pairs, over all ranks."""
        if "loss" in logs:
            logs.update(self._averages.take(lambda totals: self.accelerator.reduce(totals, reduction="sum")))
        super().log(logs, start_time)


class _EpochLoader(DataLoader[Any]):
    """A data loader that tells its batch sampler which epoch it is; already sharded, so it is not to be prepared again."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


def check_devices(args: TrainingArguments) -> None:
    """Refuse arguments under which a step would not be what it says. ArgumentError."""
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


def remove_dropout(model: nn.Module) -> None:
    """Make the model deterministic: every dropout rate becomes zero."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  # a plain attribute, which mypy takes for a parameter
    config = getattr(model, "config", None)
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout", "dropout"):
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)
