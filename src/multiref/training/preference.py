"""`PreferenceTrainer`: preference training under several references, as a `transformers.Trainer` that overrides documented
methods only."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from multiref.errors import ArgumentError
from multiref.models.audit import audit_layout
from multiref.models.encoding import as_tokenizer, context_of
from multiref.models.logps import ONE_PASS
from multiref.models.noise import plain_rows
from multiref.models.rows import row_length
from multiref.models.spec import TOKENISATION, Tokenisation
from multiref.references.scores import SequenceScores
from multiref.regularizers import Regularizer, check_weights
from multiref.training.batching import cut_into_microbatches, merge_pairs
from multiref.training.checks import stated
from multiref.training.dataset import PairBatch, PreferenceData
from multiref.training.metrics import pair_metrics
from multiref.training.objectives import Objective, PairLogps, Preference
from multiref.training.pair_trainer import PairTrainer
from multiref.training.start import check_first, check_ids, starts_as
from multiref.training.strategies import WeightStrategy


class PreferenceTrainer(PairTrainer):
    r"""Minimises the average over pairs of an objective: loss(r_chosen, r_rejected), r the implicit reward under K frozen
    references.

        L = (1/n) Σ_pairs loss(r(x, y_w), r(x, y_l)),     r = β f'(π / P),   P the regularizer's pool of the K references

    No reference model is in memory: their log-probabilities of whole completions come as stored scores, joined by content,
    so a step costs the same for every K. Chosen and rejected share their prompt in one row.
    The average is over the pairs of an optimizer step, whatever its micro-batches, passes and ranks are:
    gradient accumulation, a token budget and more processes change nothing but the rounding.

    Args:
        model: the policy, a transformers causal language model (or a PEFT model on one, or `Tabular`).
            It trains in evaluation mode, without dropout, and stays in that mode.
        objective: what is minimised: `Preference.of(regularizer, beta, loss=…)`, or a rival.
        regularizer, beta: in place of an objective: `Preference.of(regularizer, beta)`.
        scores: `SequenceScores` that cover the training and evaluation pairs; their order of names is the order of the weights.
            Not needed where both datasets are `PreferenceData`.
        args: `transformers.TrainingArguments`; `per_device_train_batch_size` counts pairs.
        train_dataset, eval_dataset: pairs (`Pair`, or rows in TRL's preference format), or `PreferenceData`;
            evaluation also a mapping from names to those.
        processing_class: the policy's tokenizer, or a processor that has it.
        strategy: where weights come from while training: a `WeightStrategy`; None keeps the objective's.
        tokenisation: what the scores were made with; `max_length` is at most the policy's context.
        token_budget: rows × longest row of one forward pass; a micro-batch above it is cut into several. None: one pass.
        callbacks, optimizers: as of `transformers.Trainer`.

    Metrics: the names of `metrics.pair_metrics`, averaged over pairs, `eval_` before those of the evaluation set;
    and with an evaluation set `reward_gap`, the last training `rewards/margins` minus that of evaluation:
    the gap that overfitting opens.

    Raises: ArgumentError, WeightsError, StoreError, DataError, ModelError; all at construction.

    Reference: Rafailov et al., 2023; arXiv 2502.01203, appendix F, for several references (losses DERIVED).
    """

    concluded = ("reward_gap",)
    names: tuple[str, ...] = ()  # of the references, in the order of the weights

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        *,
        regularizer: Regularizer | None = None,
        beta: float | None = None,
        args: TrainingArguments,
        train_dataset: Sequence[Any] | PreferenceData,
        processing_class: Any,
        scores: SequenceScores | None = None,
        eval_dataset: Sequence[Any] | PreferenceData | Mapping[str, Any] | None = None,
        strategy: WeightStrategy | None = None,
        tokenisation: Tokenisation = TOKENISATION,
        token_budget: int | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        self.objective: Objective = _resolve(objective, regularizer, beta)
        self.token_budget = token_budget
        limited = tokenisation.within(context_of(getattr(model, "config", None)))
        tokenizer = as_tokenizer(processing_class)

        def ready(data: Any) -> PreferenceData:
            if not isinstance(data, PreferenceData):
                if scores is None:
                    raise ArgumentError(
                        "scores: expected SequenceScores that cover the pairs, found None. Make them: References(...).score(…)."
                    )
                return PreferenceData(data, scores, tokenizer, tokenisation=limited)
            if self.names not in ((), data.names):
                raise ArgumentError(
                    f"eval_dataset: found the references {', '.join(data.names)}, expected those of training in their order: "
                    f"{', '.join(self.names)}. Make the data of the same scores (`SequenceScores.select` sorts them)."
                )
            data.check_ids(tokenizer, limited.max_length)
            return data

        train = ready(train_dataset)
        check_weights(self.objective.weights, len(train.names))
        self.names = train.names
        self._strategy = strategy
        if strategy is not None:
            args.restore_callback_states_from_checkpoint = True
            strategy.start(self.names)
            callbacks = [*(callbacks or []), strategy]
        self._starts_as = starts_as(model, tokenizer, train.identities, train.said)
        check_ids(train, tokenizer, self._starts_as)
        super().__init__(ready, model, args, train, eval_dataset, processing_class, callbacks=callbacks, optimizers=optimizers)
        self.check_privacy(_loss_of(self.objective))

    @property
    def strategy(self) -> WeightStrategy | None:
        """Where weights come from, if they change. A resumed run has another object here than the one that was given:
        the saved one."""
        given = self._strategy
        for callback in self.callback_handler.callbacks if given is not None else ():
            if isinstance(callback, WeightStrategy) and given is not None and callback is not given:
                callback.succeed(given)
                self._strategy = callback
        return self._strategy

    # ---- the loss ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, in as many passes as the token budget asks; every rank makes equally many."""
        groups = self._groups(inputs["pairs"])
        if len(groups) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        losses, last = [], self.accelerator.sync_gradients
        self.accelerator.sync_gradients = False  # DeepSpeed's engine steps within backward, when this is set
        for group in groups[:-1]:
            with self.accelerator.no_sync(model):
                losses.append(super().training_step(model, _part(inputs, group), num_items_in_batch))
        self.accelerator.sync_gradients = last
        losses.append(super().training_step(model, _part(inputs, groups[-1]), num_items_in_batch))
        return torch.stack(losses).sum()

    def judge(self, model: nn.Module, pairs: PairBatch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Of each pair [B]: its loss under the weights in use, differentiable; `pair_metrics`; how much it counts."""
        logps, strategy = self._logps(model, pairs), self.strategy
        shares = pairs.shares.to(logps.policy)
        objective = self.objective if strategy is None else self.objective.reweighted(strategy.weights(logps))
        if self._learning and strategy is not None:
            strategy.observe(logps, objective, shares)
        return objective.losses(logps), pair_metrics(objective, logps, self.names), shares

    def settings(self) -> dict[str, Any]:
        """The objective too, and the references' mean log-probabilities."""
        data: Any = self.train_dataset
        scored = {name: f"{row[data.columns].mean():.4g}" for name, row in zip(self.names, data.scores.logps)}
        return {**super().settings(), "objective": stated(self.objective), "references": scored}

    def plain_pass(self, model: nn.Module, pairs: PairBatch) -> Callable[[], Tensor]:
        return plain_rows(model, pairs.encoded)

    def audit(self, model: nn.Module) -> None:
        """On all rows, in passes of as many pairs as a micro-batch has; ranks of a sharded model bring their parts together."""
        rows, size = self.train_dataset.encoded, self.args.per_device_train_batch_size  # type: ignore[union-attr]
        parts = [merge_pairs(rows[start : start + size])[0] for start in range(0, len(rows), size)]
        cuts = list(itertools.accumulate(map(len, parts)))  # of the rows of all ranks, the same on each
        merged = [row for part in parts for row in part]
        mine = merged[self.args.process_index :: self.args.world_size] if self.is_fsdp_enabled else merged
        audit_layout(model, mine, token_budget=self.token_budget or ONE_PASS, cuts=cuts, always=True)

    @torch.no_grad()
    def check_start(self, model: nn.Module) -> None:
        """On a few pairs, evenly spread: a policy that is a reference, with adapters that change nothing yet, has ratio 1."""
        data: PreferenceData = self.train_dataset  # type: ignore[assignment]
        if self.args.world_size > 1:  # under FSDP the main process alone may hold weights to compare
            agreed = [self._starts_as]
            broadcast_object_list(agreed)
            (self._starts_as,) = agreed
        if not self._starts_as:
            return
        few = min(len(data), self.args.per_device_train_batch_size, 8)
        chosen = torch.linspace(0, len(data) - 1, few).long().unique().tolist()
        pairs = data.batch(chosen)
        alike = [k for k in self._starts_as if bool((pairs.ref_lengths[k] == pairs.lengths).all())]  # else tokenised otherwise
        found = check_first(
            self.model,
            lambda: self._logps(model, pairs).policy.flatten(),
            {self.names[k]: (data.identities[k], pairs.references[k].flatten()) for k in alike},
            pairs.lengths.flatten(),
            autocast=self.accelerator.mixed_precision,
            rows=[data.pairs[i].origin or f"pair {i + 1}" for i in chosen for _ in range(2)],
        )
        self.once_logged |= {f"start/{name}": value for name, value in found.items()}
        self._starts_as = []  # who trains once more begins elsewhere

    def _logps(self, model: nn.Module, pairs: PairBatch) -> PairLogps:
        with self.accelerator.autocast():
            return pairs.logps(model)

    def _groups(self, pairs: PairBatch) -> list[list[int]]:
        """Pairs of each pass, in as many as the token budget asks; every rank makes equally many."""
        rows, members, _ = merge_pairs(pairs.encoded)  # pairs of one prompt stay together
        lengths = [row_length(row, shared=True) for row in rows]
        cuts = cut_into_microbatches(lengths, self.token_budget)
        if self.token_budget is not None and self.args.world_size > 1:
            counts = self.accelerator.gather(torch.tensor([[len(cuts), len(rows)]], device=self.args.device))
            most, fewest = int(counts[:, 0].max()), int(counts[:, 1].min())
            one = most > fewest
            cuts = cut_into_microbatches(lengths, None if one else self.token_budget, at_least=1 if one else most)
        return [[i for row in cut for i in members[row]] for cut in cuts]

    # ---- evaluation and logs ----

    def measure(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """In as many passes as the token budget asks."""
        groups = self._groups(inputs["pairs"])
        parts = [PairTrainer.measure(self, model, _part(inputs, group)) for group in groups]
        back = torch.tensor([i for group in groups for i in group]).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def conclude(self, means: dict[str, float], pairs: dict[str, Tensor], shares: Tensor) -> dict[str, float]:
        trained = [line["rewards/margins"] for line in self.state.log_history if "rewards/margins" in line]
        return {"reward_gap": trained[-1] - means["rewards/margins"]} if trained else {}


def _part(inputs: dict[str, Any], group: list[int]) -> dict[str, Any]:
    return {**inputs, "index": inputs["index"][group], "pairs": inputs["pairs"].take(group)}


def _loss_of(objective: Any) -> Any:
    """Of what changes how rewards are made, and hands the loss on: that loss."""
    while hasattr(objective, "inner"):
        objective = objective.inner
    return getattr(objective, "loss", objective)


def _resolve(objective: Objective | None, regularizer: Regularizer | None, beta: float | None) -> Objective:
    """What is minimised: an objective, or `Preference` of a regularizer and β."""
    if isinstance(objective, Regularizer):
        raise ArgumentError(
            f"objective: found {objective!r}, a regularizer; write regularizer=… and beta=…, or Preference.of(…)."
        )
    if objective is not None:
        if regularizer is not None or beta is not None:
            raise ArgumentError("objective: it brings its own regularizer and β; found one beside it. Leave the others out.")
        return objective
    if regularizer is None or beta is None:
        raise ArgumentError(
            "objective: found none, and not both a regularizer and beta; give an objective, or the two of them."
        )
    return Preference.of(regularizer, beta)
