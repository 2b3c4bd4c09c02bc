"""What trainers on pairs share: steps of equally many pairs on every rank, averages over the pairs of a step, safe files."""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from multiref import losses as preference_losses
from multiref._files import read_text, write_whole
from multiref._json import parse_json
from multiref.data.privacy import check_marks
from multiref.data.spooled import SpooledPairs
from multiref.errors import ArgumentError, DataError, MultirefWarning, OutputError
from multiref.models.noise import refuse_adapter_dropout, refuse_noise, set_evaluation_mode
from multiref.models.witness import dtype_of
from multiref.training.adapters import complete_folder
from multiref.training.arguments import SumCheckpoints
from multiref.training.batching import StepBatches
from multiref.training.checks import check_same, stated
from multiref.training.dataset import PairData, collate
from multiref.training.honoured import check_arguments, check_metric, check_trainable, word
from multiref.training.lost_updates import LostUpdates, all_numbers, diverged
from multiref.training.metrics import Averages, counted
from multiref.training.start import held_elsewhere
from multiref.training.sums import SUMS, check_pickled, damage, newest_whole

SETTINGS = "settings.json"  # of a checkpoint


class PairTrainer(Trainer):
    """A `transformers.Trainer` on pairs; overrides documented methods only.
    Batches are mappings with "pairs", which has `shares` [B].

    Its datasets are `PairData`: `ready` makes one of what is given, and where evaluation data are a mapping, of each of them.
    """

    concluded: tuple[str, ...] = ()  # the names of `conclude`
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
        check_arguments(args)
        if eval_dataset is None and args.eval_on_start:
            raise ArgumentError("eval_on_start: found True, without evaluation data; give some, or leave it out.")
        refuse_adapter_dropout(model)
        check_trainable(model, options.get("optimizers", (None, None)))
        groups = getattr(options.get("optimizers", (None,))[0], "param_groups", ())
        self._own_optimizer = [{name: stated(value) for name, value in group.items() if name != "params"} for group in groups]
        adapters = set(getattr(model, "peft_config", None) or ()) - {"default"}
        if adapters and args.load_best_model_at_end:
            raise ArgumentError(
                f"load_best_model_at_end: found an adapter called {sorted(adapters)[0]!r}, of which transformers keeps the "
                "last, not the best; expected 'default'. Make it under that name, or leave load_best_model_at_end out."
            )
        args.logging_nan_inf_filter = False  # see `log`
        self._averages = Averages()
        self._learning = self._examined = False
        self.once_logged: dict[str, float] = {}
        self._ready = ready
        train, held_out = ready(train_dataset), self._all_ready(eval_dataset)
        options |= {"data_collator": collate, "compute_metrics": self._averaged, "processing_class": processing_class}
        try:
            super().__init__(model=model, args=args, train_dataset=train, eval_dataset=held_out, **options)
        except (ValueError, ImportError) as error:  # what it asks of its arguments: packages, processes, a quantised model
            raise ArgumentError(f"args: {error}") from error
        self._batches()  # refuses what leaves no step, before anything is scored or trained
        self._sums = SumCheckpoints()
        self.add_callback(_Watch(self))
        self.add_callback(self._sums)  # behind what writes into checkpoints

    def check_privacy(self, loss: Any, epsilon: float | None = None) -> None:
        """DataError where labels are marked as private at another ε than `loss` takes into account: `epsilon`, or what a
        partial of `losses.randomised_response` holds. Of a function that is not ours nobody knows: a MultirefWarning."""
        epsilon = getattr(loss, "keywords", {}).get("epsilon", epsilon)
        held_out: Any = self.eval_dataset
        each = [self.train_dataset, *(held_out.values() if isinstance(held_out, Mapping) else [held_out])]
        for data in each:
            pairs = getattr(data, "pairs", ())
            if not isinstance(pairs, SpooledPairs):  # those of a run file, which are checked where they are read
                name = "train_dataset" if data is each[0] else "eval_dataset"
                try:
                    check_marks(pairs, epsilon, name, all_private=data is each[0])
                except DataError as error:
                    if loss is None or getattr(loss, "func", loss).__module__ == preference_losses.__name__:
                        raise
                    warnings.warn(f"{error} Found a loss that is not ours: does it know of ε?", MultirefWarning, stacklevel=3)

    # ---- no noise in a likelihood ----

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **options: Any) -> Any:
        """As transformers trains, with the model in evaluation mode, in which it stays.
        True: from the newest checkpoint whose sums agree. OutputError for one that changed since it was written;
        ArgumentError for one without the optimizer's state, with which transformers would start anew in silence."""
        at = newest_whole(Path(str(self.args.output_dir)))[0] if resume_from_checkpoint is True else resume_from_checkpoint
        if at is None and resume_from_checkpoint is True:
            raise OutputError(f"{self.args.output_dir} holds no whole checkpoint to go on from; train anew.")
        if at and (Path(at) / SUMS).exists() and (problem := damage(Path(at))):
            raise OutputError(f"{at} is damaged: {problem}; remove it and go on from the one before.")
        if at:
            check_pickled(Path(at))
            self._check_settings(Path(at))
        if at and not any(hit for name in ("optimizer*", "global_step*", "*.distcp") for hit in Path(at).rglob(name)):
            raise ArgumentError(
                f"{at} holds no optimizer's state (save_only_model?), so training cannot go on from there as it was. "
                "Train anew, from the weights in it if those are wanted."
            )
        try:
            with self._sums.in_charge(self.args):
                return super().train(str(at) if at else resume_from_checkpoint, *arguments, **options)
        finally:
            self.model.eval()  # type: ignore[union-attr]

    def settings(self) -> dict[str, Any]:
        """What a run that goes on from a checkpoint must share with the one that wrote it, beside what its optimizer holds and
        the order of its pairs."""
        return {"dtype": str(dtype_of(self.model))}  # type: ignore[arg-type]

    def all_settings(self) -> dict[str, dict[str, Any]]:
        """Those, the arguments that the optimizer of a checkpoint brings with it, what its weights go with, and what decides
        which pairs come when."""
        held = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
        optimizer = {name: getattr(self.args, name) for name in held} | {"optim": word(self.args.optim)}
        optimizer |= held_elsewhere(self.model) | ({"optimizers": self._own_optimizer} if self._own_optimizer else {})
        batches = self._batches()
        order = {name: getattr(batches, name) for name in ("seed", "per_step", "shuffle", "drop_last")}
        order["data"] = self.train_dataset.digest  # type: ignore[union-attr]
        return {"optimizer": optimizer, "order": order, "run": self.settings()}

    def _check_settings(self, checkpoint: Path) -> None:
        """ArgumentError where the checkpoint's optimizer would go on as it was; a MultirefWarning where the steps before were
        another run's."""
        if not (file := checkpoint / SETTINGS).exists():
            return  # of an earlier version
        was = parse_json(read_text(file, "settings of a checkpoint", error=OutputError), str(file), error=OutputError)
        now = self.all_settings()
        check_same(was["optimizer"], now["optimizer"])
        twice = "In the epoch that it stands in, pairs come twice or not at all."
        for part, what in (("order", twice), ("run", "What was trained before was of the other.")):
            try:
                check_same(was.get(part, {}), now[part])
            except ArgumentError as other:
                if self.is_world_process_zero():
                    warnings.warn(f"{other} {what}", MultirefWarning, stacklevel=3)

    def compute_loss_context_manager(self) -> Any:
        """The forward pass of a training step, for which transformers has just put the model into training mode."""
        set_evaluation_mode(self.model)  # type: ignore[arg-type]
        return super().compute_loss_context_manager()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch. Its metrics are of training: the model's mode no longer says so."""
        self._learning = True
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._learning = False

    def examine(self, model: nn.Module) -> None:
        """Once, on real rows and in the mode in which the model is used: what it says must not be random. ModelError."""
        if not self._examined:
            data: PairData = self.train_dataset  # type: ignore[assignment]
            longest = max(range(len(data)), key=data.row_lengths.__getitem__)
            pairs = data.batch(sorted({0, longest}))
            set_evaluation_mode(self.model)  # type: ignore[arg-type]
            refuse_noise(self.model, self.plain_pass(model, pairs), self.anywhere)  # type: ignore[arg-type]
            self.audit(model)
            self._examined = True
            if self.args.metric_for_best_model is not None:
                sets = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else ()
                with torch.no_grad():
                    check_metric(self.args, ["loss", *self.judge(model, pairs)[1], *self.concluded], sets)

    def check_start(self, model: nn.Module) -> None:
        """What must hold before the first step of a fresh run alone."""

    def plain_pass(self, model: nn.Module, pairs: Any) -> Callable[[], Tensor]:
        """A pass of the model over a batch of pairs, as plain as can be."""
        raise NotImplementedError

    def audit(self, model: nn.Module) -> None:
        """How the rows of these data may be laid out, where that is a question."""

    def judge(self, model: nn.Module, pairs: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Of each pair [B]: its loss, differentiable; its metrics by name; how much it counts."""
        raise NotImplementedError

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """`mean_of_step` of the losses; where outputs are asked, with the losses, the metrics and the shares of the pairs."""
        losses, values, shares = self.judge(model, inputs["pairs"])
        if self._learning:
            self._averages.add({name: value for name, value in values.items() if name != "nll"}, shares)
        loss = self.mean_of_step(losses, shares, num_items_in_batch)
        return (loss, {"loss": losses.detach(), **values, "shares": shares}) if return_outputs else loss

    def measure(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """[B] each: the outputs of `compute_loss` for a batch of an evaluation."""
        found: dict[str, Tensor] = self.compute_loss(model, inputs, return_outputs=True)[1]
        return found

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Tensor, Tensor]:
        """(no loss, [B, M] metrics of each pair, [B] how much it counts): averaged over pairs, not over batches,
        by `compute_metrics`."""
        self.examine(model)
        with torch.no_grad():
            found = self.measure(model, inputs)
        shares = found.pop("shares")
        self._measured = list(found)
        return None, torch.stack([value.to(shares) for value in found.values()], dim=-1), shares

    def _averaged(self, prediction: EvalPrediction) -> dict[str, float]:
        """The means over the pairs of an evaluation, each as it counts."""
        table, shares = (torch.as_tensor(x, dtype=torch.float64) for x in (prediction.predictions, prediction.label_ids))
        means = dict(zip(self._measured, (counted(table.T, shares) / shares.sum()).tolist(), strict=True))
        return means | self.conclude(means, dict(zip(self._measured, table.unbind(-1))), shares)

    def conclude(self, means: dict[str, float], pairs: dict[str, Tensor], shares: Tensor) -> dict[str, float]:
        """What an evaluation says beside the means of its pairs."""
        raise NotImplementedError

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations a parameter and token, forward and backward."""
        model: nn.Module = self.model  # type: ignore[assignment]
        return 6 * sum(map(int, inputs["pairs"].row_lengths)) * sum(p.numel() for p in model.parameters())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Steps of equally many pairs, each rank its share, in an order that only the seed and the epoch decide."""
        return _EpochLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self._batches(),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    def _batches(self) -> StepBatches:
        args = self.args
        return StepBatches(
            self.train_dataset.row_lengths,  # type: ignore[union-attr]
            args.per_device_train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            world=args.world_size,
            rank=args.process_index,
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.train_sampling_strategy != "sequential",
            drop_last=args.dataloader_drop_last,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Every pair, whatever `dataloader_drop_last` says of training; and of these data, not of those that were asked for
        first, as transformers has it with workers that persist."""
        self.__dict__.pop("_eval_dataloaders", None)
        kept, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = kept

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The same."""
        return self.get_eval_dataloader(test_dataset)

    def evaluate(self, eval_dataset: Any = None, *arguments: Any, **options: Any) -> dict[str, float]:
        """As transformers evaluates; pairs that are not ready are made so, as those given at construction."""
        data: Any = eval_dataset if isinstance(eval_dataset, str) else self._all_ready(eval_dataset)
        return super().evaluate(data, *arguments, **options)

    def predict(self, test_dataset: Any, *arguments: Any, **options: Any) -> Any:
        """The same for `predict`."""
        return super().predict(self._ready(test_dataset), *arguments, **options)

    def _all_ready(self, data: Any) -> Any:
        """One data set, or several by name."""
        if isinstance(data, Mapping):
            return {name: self._ready(each) for name, each in data.items() if each is not None}
        return None if data is None else self._ready(data)

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
        count = count.clamp_min(torch.finfo(count.dtype).tiny)  # 0 of a step whose pairs count 0
        return (counted(losses, shares) / count * ranks).float()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers saves it, without the pickle of the arguments that it adds and nothing of ours reads; an adapter's
        folder loads from anywhere."""
        if _internal_call:
            self.check_weights()
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            (folder / "training_args.bin").unlink(missing_ok=True)
            complete_folder(folder, self.accelerator.unwrap_model(self.model), checkpoint=_internal_call)

    def check_weights(self) -> None:
        """ModelError for weights that are no numbers: after a gradient that was none, under a loss that still was one."""
        model: nn.Module = self.model  # type: ignore[assignment]
        if self.anywhere(not all_numbers(p for p in model.parameters() if p.requires_grad)):
            raise diverged("weights are no numbers", self.state.global_step)

    def summed(self, totals: Tensor) -> Tensor:
        """Their sum over all ranks."""
        total: Tensor = self.accelerator.reduce(totals, reduction="sum")
        return total

    def anywhere(self, found: bool) -> bool:
        """Whether it is so on some rank."""
        return bool(self.summed(torch.tensor(int(found), device=self.args.device)) > 0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The loss's line also carries the metrics of its pairs, over all ranks. No mean loss of the run: transformers divides
        the losses since it went on by all steps. ModelError for a loss that is no number: transformers would train on, and log
        a mean over the steps that were (logging_nan_inf_filter)."""
        logs.pop("train_loss", None)
        if not math.isfinite(logs.get("loss", 0.0)) and not self.args.fp16:  # which leaves out a step at times
            raise diverged(f"loss is {logs['loss']}", self.state.global_step)
        if "loss" in logs:
            logs.update(self._averages.take(self.summed) | self.once_logged)
            self.once_logged = {}
        super().log(logs, start_time)


class _Watch(TrainerCallback):
    """Before the first step, when the model stands where it will be trained; and around the first steps of a fresh run."""

    def __init__(self, trainer: PairTrainer) -> None:
        self.trainer = trainer
        self.updates: LostUpdates | None = None
        self.evaluated = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.load_best_model_at_end and state.best_global_step:  # of one that is gone transformers would take the last
            best = Path(state.best_model_checkpoint or Path(args.output_dir) / f"checkpoint-{state.best_global_step}")
            if (problem := damage(best)) is not None:
                raise OutputError(
                    f"load_best_model_at_end: the best so far, {best}, is lost: {problem}. Leave it out, or begin anew."
                )
            state.best_model_checkpoint = str(best)
        self.trainer.examine(self.trainer.model_wrapped)
        if state.global_step == 0:
            self.trainer.check_start(self.trainer.model_wrapped)
        self.updates = LostUpdates(self.trainer.model, self.trainer.optimizer) if state.global_step == 0 else None  # type: ignore[arg-type]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.updates is not None:
            share = self.updates.conclude(self.trainer.summed, last=state.global_step >= state.max_steps)
            self.trainer.once_logged |= {} if share is None else {"updates_lost": share}
        if state.global_step >= state.max_steps:
            self.trainer.check_weights()
        # An evaluation at the epoch's end comes before the checkpoint of that step: after it, a kill in between would lose it.
        if control.should_save and args.eval_strategy == "epoch" and state.epoch == int(state.epoch):
            control.should_evaluate, self.evaluated = True, state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_whole(folder / SETTINGS, json.dumps(self.trainer.all_settings(), indent=1))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.evaluated == state.global_step:
            control.should_evaluate = False


class _EpochLoader(DataLoader[Any]):
    """A data loader that tells its batch sampler which epoch it is; already sharded, so it is not to be prepared again."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
