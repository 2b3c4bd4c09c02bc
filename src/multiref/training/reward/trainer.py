"""`RewardTrainer`: a reward model from preference pairs, as a `transformers.Trainer` that overrides documented methods only;
and its pairs made ready: token ids, margins, how much each counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from multiref.errors import ArgumentError
from multiref.losses import bradley_terry, check_epsilon, randomised_response
from multiref.models.encoding import as_tokenizer
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.training.dataset import PairData
from multiref.training.metrics import reward_metrics
from multiref.training.pair_trainer import PairTrainer
from multiref.training.reward.calibration import Calibration, calibration
from multiref.training.reward.model import head_of, mark
from multiref.training.reward.rows import passes, stands_padded


@dataclass(frozen=True)
class RewardBatch:
    """B pairs as 2B rows of token ids, the chosen ones first; margins, shares [B] float64.

    shares: how much each pair counts in the average; 0 for one that only fills a rank's last batch.
    """

    rows: list[tuple[int, ...]]
    margins: Tensor
    shares: Tensor

    @property
    def row_lengths(self) -> list[int]:
        """[2B] tokens of each row."""
        return list(map(len, self.rows))


class RewardData(PairData):
    """P pairs, encoded. Build it once and hand it to several trainers.

    Args:
        pairs: `Pair`s or rows in TRL's preference format; a `margin` of a row is by how much its chosen reward should lead.
        tokenizer: the reward model's, with a padding token.
        tokenisation: with `end`, the end token closes each completion: its state is the one that is scored.
        counts: as of `PairData`.

    Raises: DataError for no pair, or a row that cannot be encoded, named; ArgumentError for counts that do not fit, or a
    tokenizer without padding.
    """

    def __init__(
        self,
        pairs: Sequence[Any],
        tokenizer: Any,
        *,
        tokenisation: Tokenisation = TOKENISATION,
        counts: Sequence[float] | Tensor | None = None,
    ) -> None:
        tokenizer = as_tokenizer(tokenizer)
        if tokenizer.pad_token_id is None:
            raise ArgumentError(
                "tokenizer: found no padding token, expected one; `open_reward_model` chooses one, or set pad_token."
            )
        self.pad = int(tokenizer.pad_token_id)
        super().__init__(pairs, tokenizer, tokenisation, counts)
        self.margins = torch.tensor([pair.margin for pair in self.pairs], dtype=torch.float64)

    @property
    def row_lengths(self) -> list[int]:
        """[P] tokens of each pair's longer row."""
        return [max(map(len, self.rows(i))) for i in range(len(self))]

    def rows(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of prompt and completion: of the chosen, and of the rejected one."""
        item = self.encoded[index]
        chosen, rejected = ((*item.context(k), *item.completions[k]) for k in (0, 1))
        return chosen, rejected

    def batch(self, indices: Sequence[int]) -> RewardBatch:
        """The pairs at `indices`; a negative one, −1 − i, is pair i that fills without counting."""
        at, shares = self.places(indices)
        chosen, rejected = zip(*(self.rows(i) for i in at.tolist()))
        return RewardBatch([*chosen, *rejected], self.margins[at], shares)


class RewardTrainer(PairTrainer):
    r"""Minimises the average over pairs of the Bradley–Terry loss of the rewards' difference, less the pair's margin,
    and keeps rewards centred.

        L = (1/n) Σ_pairs { −(1 − ε) log σ(d) − ε log σ(−d) + c (r(x, y_w) + r(x, y_l))² },
        d = r(x, y_w) − r(x, y_l) − margin

    A pair says nothing about the sum of its two rewards; the last term, `centre` c, puts it near zero.
    It is not free: differences shrink by O(c). Both completions of a pair go through the model in one forward pass.
    The average is over the pairs of an optimizer step, whatever its micro-batches and ranks are.

    Args:
        model: a sequence classification model with one label (`open_reward_model(folder).model`). It trains in evaluation
            mode, without dropout.
        args: `transformers.TrainingArguments`; batch sizes count pairs.
        train_dataset, eval_dataset: pairs (`Pair`, or rows in TRL's preference format, `margin` included), or `RewardData`;
            evaluation also a mapping from names to those.
        processing_class: the tokenizer, with a padding token.
        label_smoothing: ε, the share of labels taken to be wrong.
        privacy: the ε at which `data.privatise` flipped the labels, in the data already; the loss is then
            `losses.randomised_response`. Not together with label_smoothing.
        centre: c ≥ 0; 0 leaves the sums alone.
        tokenisation: as of `RewardData`.

    Evaluation reports the means over pairs of `loss` (what is minimised), `nll` (−log σ of the bare difference),
    `rewards/chosen`, `/rejected`, `/margins`, `/accuracies` (½ at a tie), and `calibration_error`;
    `reliability` holds the points of the last evaluation's reliability diagram.

    Raises: ArgumentError, DataError, ModelError; all at construction.

    Reference: Bradley and Terry, 1952; Ouyang et al., 2022; margin: Touvron et al., 2023; centring: Eisenstein et al., 2023.
    """

    concluded = ("calibration_error",)

    def __init__(
        self,
        model: nn.Module,
        *,
        args: TrainingArguments,
        train_dataset: Sequence[Any] | RewardData,
        processing_class: Any,
        eval_dataset: Sequence[Any] | RewardData | Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        privacy: float | None = None,
        centre: float = 0.0,
        tokenisation: Tokenisation = TOKENISATION,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        if not 0 <= label_smoothing < 0.5:
            raise ArgumentError(f"label_smoothing: found {label_smoothing}, expected at least 0 and below 0.5.")
        if not 0 <= centre < float("inf"):
            raise ArgumentError(f"centre: found {centre}, expected a finite number of at least 0.")
        if privacy is not None and label_smoothing:
            raise ArgumentError("label_smoothing: found it beside privacy; it does not correct flipped labels. Leave it out.")
        head_of(model)
        self.label_smoothing, self.centre = label_smoothing, centre
        self.privacy = None if privacy is None else check_epsilon(privacy)
        self.reliability: Calibration | None = None
        self._padded = True

        def ready(data: Any) -> RewardData:
            if not isinstance(data, RewardData):
                return RewardData(data, processing_class, tokenisation=tokenisation)
            data.check_ids(as_tokenizer(processing_class))
            return data

        train, config = ready(train_dataset), model.config
        if tokenisation not in (TOKENISATION, train.tokenisation):
            raise ArgumentError(
                "tokenisation: found another than that of train_dataset, which is encoded already; leave it out."
            )
        tokenisation = train.tokenisation  # of what is still to be encoded
        config.pad_token_id = train.pad  # type: ignore[union-attr]
        mark(config, train.tokenisation)
        super().__init__(ready, model, args, train, eval_dataset, processing_class, callbacks=callbacks, optimizers=optimizers)
        self.check_privacy(None, self.privacy)

    # ---- the loss ----

    def judge(self, model: nn.Module, pairs: RewardBatch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Of each pair [B]: its loss, differentiable; `nll` and its rewards, by name; how much it counts."""
        chosen, rejected = self._rewards(model, pairs).chunk(2)
        ahead = chosen - pairs.margins.to(chosen)
        if self.privacy is None:
            losses = bradley_terry(ahead, rejected, label_smoothing=self.label_smoothing)
        else:
            losses = randomised_response(ahead, rejected, epsilon=self.privacy)
        losses = losses + self.centre * (chosen + rejected) ** 2
        values = {"nll": bradley_terry(chosen, rejected), **reward_metrics(chosen, rejected)}
        return losses, {name: value.detach() for name, value in values.items()}, pairs.shares.to(losses)

    def settings(self) -> dict[str, Any]:
        """The loss and the margins, too."""
        data: RewardData = self.train_dataset  # type: ignore[assignment]
        loss = {"label_smoothing": self.label_smoothing, "privacy": self.privacy, "centre": self.centre}
        return {**super().settings(), **loss, "margins": float(data.margins.sum())}

    def plain_pass(self, model: nn.Module, pairs: RewardBatch) -> Callable[[], Tensor]:
        return lambda: self._rewards(model, pairs)

    def audit(self, model: nn.Module) -> None:
        """On all rows; every rank asks of the same ones."""
        data: RewardData = self.train_dataset  # type: ignore[assignment]
        self._audit([row for index in range(len(data)) for row in data.rows(index)])

    def _audit(self, rows: Sequence[Sequence[int]]) -> None:
        data: RewardData = self.train_dataset  # type: ignore[assignment]
        together = 2 * max(self.args.per_device_train_batch_size, self.args.per_device_eval_batch_size)
        self._padded = self._padded and stands_padded(self.model, rows, data.pad, batch=together)

    def _rewards(self, model: nn.Module, pairs: RewardBatch) -> Tensor:
        """[2B]: the rewards of the chosen completions, then of the rejected ones."""
        data: RewardData = self.train_dataset  # type: ignore[assignment]
        with self.accelerator.autocast():
            rewards = torch.cat(list(passes(model, pairs.rows, data.pad, len(pairs.rows) if self._padded else 1)))
        return rewards.to(torch.promote_types(rewards.dtype, torch.float32))

    # ---- evaluation and logs ----

    def measure(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Audited, but where ranks would have to agree: there the audit of the training rows must do."""
        if self.args.world_size == 1:
            self._audit(inputs["pairs"].rows)
        return super().measure(model, inputs)

    def conclude(self, means: dict[str, float], pairs: dict[str, Tensor], shares: Tensor) -> dict[str, float]:
        self.reliability = calibration(pairs["rewards/margins"], shares)
        return {"calibration_error": self.reliability.error}
