"""`OnlineTrainer`: completions, rewards, K-reference scores, loss, step.
The loop; what is optimised is `surrogate`'s business."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import reduce

from multiref._files import as_path
from multiref._progress import tell
from multiref.errors import ArgumentError, MultirefNotice
from multiref.models import LanguageModel
from multiref.models.audit import audit_layout
from multiref.models.logps import ONE_PASS
from multiref.models.noise import plain_rows, refuse_adapter_dropout, refuse_noise, set_evaluation_mode
from multiref.models.sampling import check_policy_context, encode_prompts
from multiref.references import References
from multiref.references.local import LocalReference
from multiref.references.rollouts import Rollout, RolloutScorer
from multiref.regularizers import Regularizer
from multiref.training.checkpoint import load_checkpoint, save_checkpoint
from multiref.training.checks import digest_of, stated
from multiref.training.honoured import FLOAT16_ON_CPU, check_trainable
from multiref.training.lost_updates import LostUpdates, diverged
from multiref.training.online import batch as batches
from multiref.training.online import checks
from multiref.training.online.arguments import OnlineArguments
from multiref.training.online.batch import Batch, rollout_metrics, sample
from multiref.training.online.checks import as_rows, asked, resolve_penalty, resolve_weights
from multiref.training.online.distill import TextStates
from multiref.training.online.penalties import FromReferences
from multiref.training.online.penalty import Penalty
from multiref.training.online.rewards import as_rewards, columns_of, judged_by, reward_rollouts, warn_of_odd_completions
from multiref.training.online.rule import Rule, compute_surrogate, describe, normalised
from multiref.training.start import check_first, held_elsewhere, identity_of, refuse_the_policy, starts_as
from multiref.training.strategies import over_ranks
from multiref.training.sums import newest_whole

Listener = Callable[[int, dict[str, float]], None]


class OnlineTrainer:
    r"""Policy-gradient training of E_π[r] − β Σ_k w_k D(π‖π_k) on completions that the policy samples.

    Args:
        policy: model and tokenizer (`models.load`; any transformers causal language model, PEFT included, or `Tabular`).
            It trains in evaluation mode, without dropout, and stays in that mode.
        regularizer: `ReverseKL`, `ForwardKL`, `AlphaDivergence`, `PooledKL`.
            Weights per prompt (routing): a column "weights" in `prompts`.
        beta: strength. 0: the references are ignored, and that is said.
        references: `References`, or what they are made of: {name: folder, hub id or object}.
            Those with the policy's vocabulary score the sampled ids, others the text.
        prompts: texts, or mappings with "prompt"; other columns go to the reward functions.
        args: how long, how fast, how much at once.
        rewards: functions, `Reward`s, {name: function}; none is reward zero: distillation.
        rule: from which completions, and by which estimator, the policy is updated.

    One process or data parallel (gradients are averaged over processes, each of which takes `prompts_per_step` prompts);
    FSDP and DeepSpeed are for TRL's door. The same seed gives the same run, and a resumed run the same as one that was not
    interrupted, on one machine: every step seeds torch's generator from (seed, step, process).
    """

    def __init__(
        self,
        policy: LanguageModel,
        regularizer: Regularizer,
        *,
        beta: float,
        references: References | Mapping[str, Any],
        prompts: Sequence[Any],
        args: OnlineArguments,
        rewards: Any = (),
        rule: Rule | None = None,
    ) -> None:
        self.args, self.regularizer, self.beta, self.rule = args, regularizer, float(beta), rule or Rule()
        self._asked_beta = self.beta  # which an adaptive one leaves
        self.method, self.tokenizer = self.rule.method, policy.tokenizer
        device = next(policy.model.parameters()).device
        self.accelerator = _accelerator(args.autocast(device), cpu=device.type == "cpu")
        refuse_adapter_dropout(policy.model)
        check_trainable(policy.model)
        self.model = policy.model.to(self.accelerator.device).eval()
        self.rewards, self.rows = as_rewards(rewards), as_rows(prompts)
        for reward in self.rewards:
            if (check := getattr(reward.function, "check_method", None)) is not None:  # `WinRate` fits some methods only
                check(self.method)
        self._open(references)
        self.sampler = self.rule.sampler or self._sample
        if isinstance(self.sampler, TextStates):
            self.sampler.check(self.penalty, self.rewards)
        opened = self.scorer.opened if self.scorer is not None else {}
        known = [identity_of(each) if isinstance(each, LocalReference) else {} for each in opened.values()]
        self._starts_as = {k: known[k] for k in starts_as(policy.model, self.tokenizer, known)}
        checks.check_options(self.rows, args.chat_template_kwargs)
        self._contexts = contexts = encode_prompts(self.tokenizer, [row["prompt"] for row in self.rows], args.tokenisation)
        others = self.rule.sampler, self.warm_up and self.warm_up.sampler
        self._longest = max(args.max_new_tokens, *(getattr(each, "max_new_tokens", 0) for each in others))
        if self.scorer is not None:
            self.scorer.check_context(contexts, self._longest)
        check_policy_context(self.model, contexts, self._longest)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = decay_groups(trained, args.weight_decay)
        adam = torch.optim.AdamW(groups, lr=args.learning_rate, betas=args.adam_betas)
        self.optimizer = self.accelerator.prepare_optimizer(adam, device_placement=False)  # fp16: unscales, leaves out a step
        self.step = 0
        self._examined = False
        self._seconds: dict[str, float] = {}
        self._updates: LostUpdates | None = None
        self.history: list[dict[str, float]] = []
        self._lines: list[dict[str, float]] = []

    def _open(self, references: References | Mapping[str, Any]) -> None:
        """The references, their weights, and the penalties that they are in."""
        self.scorer = None
        if checks.references_matter(self.beta, references):
            opened = references if isinstance(references, References) else References(references)
            self.scorer = RolloutScorer(opened, self.tokenizer)
            checks.say_of_tokenisation(self.scorer)
        self.names = self.scorer.names if self.scorer else ()
        self.weights = resolve_weights(self.rows, self.regularizer, self.names)
        self.penalty = resolve_penalty(self.rule.penalty, self.regularizer, self.scorer, self.weights)
        self.penalty.check_strength(self.beta, moves=self.rule.adaptive_beta is not None)
        self.warm_up = self.rule.warm_up
        if self.warm_up is not None:
            if self.rewards or self.scorer is None:
                raise ArgumentError(
                    "warm_up: completions that the policy did not sample are for distillation: no rewards, and β > 0."
                )
            self._warm_penalty = resolve_penalty(self.warm_up.penalty, self.regularizer, self.scorer, self.weights)
        if self.scorer is None and (not self.rewards or self.rule.adaptive_beta is not None):
            idle = "a reward" if not self.rewards else "no adaptive_beta, which would not move"
            raise ArgumentError(f"beta: found 0, at which there is no penalty; expected {idle}, or a β above 0.")

    def describe(self) -> str:
        """The rule, its optimum, and what is unusual about it."""
        if self.scorer is None:
            return f"{type(self.method).__name__}, group {self.method.group}; no penalty."
        said = describe(self.method, self.penalty, self.regularizer, self.beta)
        return said if self.warm_up is None else f"{said}\n{self.warm_up.describe(self.args.steps)}"

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What a run that goes on from a checkpoint must share with the one that wrote it."""
        choices = {"regularizer": self.regularizer, "method": self.method, "penalty": self.penalty}
        choices |= {"adaptive_beta": self.rule.adaptive_beta, "warm_up": self.warm_up}
        names = "seed", "max_new_tokens", "adam_betas", "weight_decay"
        return {
            "beta": self._asked_beta,
            **{name: stated(choice) for name, choice in choices.items()},
            "references": list(self.names),
            **held_elsewhere(self.model, self.scorer.opened if self.scorer else {}),
            "rewards": [reward.weight for reward in self.rewards],
            "reward models and judges": [judged_by(reward.function) for reward in self.rewards],
            "columns": digest_of(stated(column) for column in columns_of(self.rows, 1).items()),
            "sampler": stated(self.sampler) if isinstance(self.sampler, TextStates) else None,
            "prompts": digest_of([self.weights, *self._contexts]),
            **{name: getattr(self.args, name) for name in names},
            "prompts_per_step": self.args.prompts_per_step * self.accelerator.num_processes,  # of all of them
            "dtype": str(next(p.dtype for p in self.model.parameters() if p.requires_grad)),
        }

    # ---- the loop ----

    def train(
        self, *, folder: str | Path | None = None, resume: bool | Path = False, listener: Listener | None = None
    ) -> list[dict[str, float]]:
        """Runs to `args.steps` and returns the lines of metrics.

        Args:
            folder: of checkpoints; None: none.
            resume: from this checkpoint; True: from the folder's newest whole one, where there is one.
                ArgumentError where it was written under another objective, other prompts, or settings that its optimizer holds.
            listener: called with (step, line) on the main process.
        """
        if self.scorer is not None:
            opened = {name: getattr(each, "in_memory", None) for name, each in self.scorer.opened.items()}
            refuse_the_policy((p for p in self.model.parameters() if p.requires_grad), opened)
        where = None if folder is None else as_path(folder)
        path = resume if isinstance(resume, Path) else newest_whole(where)[0] if resume and where is not None else None
        if path is not None:
            state = load_checkpoint(path, self.model, self.optimizer, self._settings)
            self.step, self.beta, self._lines = state["step"], state["beta"], state["lines"]
            if self.accelerator.scaler is not None and "scaler" in state:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        self._updates = LostUpdates(self.model, self.optimizer) if self.step == 0 else None
        while self.step < self.args.steps:
            tell("training", self.step, self.args.steps)
            self._lines.append(self._one_step())  # the same on every process, as a checkpoint keeps it
            self.step += 1
            if self.step % self.args.log_every == 0 or self.step == self.args.steps:
                self._log(listener)
            due = self.args.save_every and self.step % self.args.save_every == 0
            if where is not None and due and self.accelerator.is_main_process:
                scaler = self.accelerator.scaler
                state = {"beta": self.beta, "lines": self._lines, "settings": self._settings}
                state |= {"scaler": scaler.state_dict()} if scaler else {}
                save_checkpoint(where, self.step, self.model, self.optimizer, state, keep=self.args.keep)
        tell("training", self.step, self.args.steps)
        return self.history

    def _one_step(self) -> dict[str, float]:
        began = time.perf_counter()
        size, world, rank = self.args.prompts_per_step, self.accelerator.num_processes, self.accelerator.process_index
        torch.manual_seed((self.args.seed * 1_000_003 + self.step) * world + rank)
        index = prompts_of((self.step * world + rank) * size, size, len(self.rows), self.args.seed)
        warming = self.warm_up if self.warm_up is not None and self.warm_up.covers(self.step, self.args.steps) else None
        batch = self._batch(index, self.sampler if warming is None else warming.sampler, warming is not None)
        penalty = self.penalty if warming is None else self._warm_penalty
        own = self._references_own([self.rows[i]["prompt"] for i in index])
        set_evaluation_mode(self.model)
        if not self._examined:
            refuse_noise(self.model, plain_rows(self.model, [batch.rollouts[0].encoded()]))
            to_come = batches.rows_to_come(self._contexts, batch.rollouts, self._longest)
            audit_layout(self.model, to_come, token_budget=ONE_PASS, always=True)
            self._examined = True
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate(self.step)
        if self.step == 0 and warming is None:
            self._check_start(batch)
        line: dict[str, float] = {}
        for update in range(self.method.updates):
            logps, figures = self._update(batch, penalty, own)
            if update == 0:
                line = figures | rollout_metrics(batch, logps, self.regularizer, beta=self.beta, names=self.names)
                batch = replace(batch, old=logps) if batch.old is None else batch
        self.model.eval()  # also where activations were recomputed: who samples next keeps a cache
        line |= {name: figures[name] for name in ("clip_fraction", "grad_norm")}  # of the last update
        line |= {"learning_rate": self.args.rate(self.step), "beta": self.beta}
        if self._updates is not None:
            lost = self._updates.conclude(
                lambda counts: self.accelerator.reduce(counts, reduction="sum"), last=self.step + 1 == self.args.steps
            )
            line |= {} if lost is None else {"updates_lost": lost}
        whole = time.perf_counter() - began
        line |= self._seconds | {"seconds/update": whole - sum(self._seconds.values())}
        line["tokens_per_second"] = float(batch.lengths.sum()) / whole
        line = _mean_over_ranks(line)
        if self.rule.adaptive_beta is not None and "kl" in line:
            self.beta = self.rule.adaptive_beta.next(self.beta, line["kl"])
        return line

    def _batch(self, index: Sequence[int], sampler: Callable[..., list[Rollout]], warming: bool) -> Batch:
        """The step's completions, with what rewards and references say of them."""
        rows = [self.rows[i] for i in index]
        began = time.perf_counter()
        prompts = [row["prompt"] for row in rows]
        drawn = sampler(self.model, self.tokenizer, asked(prompts, self.args.chat_template_kwargs))
        rollouts = [replace(rollout, prompt=prompt) for rollout, prompt in zip(drawn, prompts)]
        sampled = time.perf_counter()
        ends = self.tokenizer.eos_token_id is not None
        warn_of_odd_completions(rollouts, ends=ends and not warming, first=self.step == 0, limit=self.args.max_new_tokens)
        if self.scorer is not None and not self._examined and not warming:
            self.scorer.audit(batches.rows_to_come(self._contexts, rollouts, self._longest))
        group, weights = self.method.group, self.weights
        reward, each = reward_rollouts(self.rewards, rows, rollouts, group)
        refs = {} if warming else batches.reference_scores(self.scorer, rollouts)
        self._seconds = {"seconds/sampling": sampled - began, "seconds/scoring": time.perf_counter() - sampled}
        if weights is not None and weights.ndim == 2:
            weights = weights[:, index].repeat_interleave(group, 1)
        return Batch(rollouts, group, reward, each, refs, weights, batches.behaviour_logps(rollouts))

    @torch.no_grad()
    def _check_start(self, batch: Batch) -> None:
        """A policy that is a reference, with new adapters or none, has log-ratio 0 to it before its first step: on the
        completions of the first prompts."""
        few = batch.rollouts[: max(1, 8 // batch.group)]
        size = len(few) * batch.group

        def score() -> torch.Tensor:
            with self.accelerator.autocast():
                return batches.policy_tokens(self.model, few)[0].double().sum(-1)

        known = {self.names[k]: (each, batch.refs["completions"][k][:size]) for k, each in self._starts_as.items()}
        check_first(self.model, score, known, batch.lengths[:size], autocast=self.accelerator.mixed_precision)

    def _update(
        self, batch: Batch, penalty: Penalty, own: Sequence[tuple[float, Rollout]]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """One optimizer step. Returns the policy's token log-probabilities [N, T] before it, and figures of the step."""
        n, lengths = len(batch.reward), self.accelerator.gather(batch.lengths.to(self.accelerator.device))
        seen = torch.zeros(n, batch.width, dtype=torch.float64)
        clipped = divergence = 0.0
        own_figures: dict[str, float] = {}
        self.optimizer.zero_grad()
        for prompts in batch.passes(self.args.token_budget):
            index = batch.places(prompts)
            with self.accelerator.autocast():
                samples = batch.samples(self.model, self.scorer, penalty, prompts)
                reward = batch.reward[index].to(self.accelerator.device)
                result = compute_surrogate(
                    samples,
                    reward,
                    self.regularizer,
                    method=self.method,
                    penalty=penalty,
                    beta=self.beta,
                    longest=self.args.max_new_tokens,
                    lengths=lengths,
                )
            self.accelerator.backward(result.losses.sum() / n)
            seen[index] = samples.token_logps.detach().double().cpu()
            if samples.divergences is not None:
                divergence += float(samples.divergences.detach().sum())
            clipped += float(result.clipped.sum()) / n
            for name, values in penalty.figures(samples, self.regularizer).items():
                own_figures[name] = own_figures.get(name, 0.0) + float(values.sum()) / n
        for share, rollout in own:
            tokens, mask = batches.policy_tokens(self.model, [rollout])
            total, longest = tokens.sum(-1), self.args.max_new_tokens
            total = normalised(total, mask.sum(-1), self.method, longest=longest, lengths=lengths)
            self.accelerator.backward(-self.beta * share * total.sum())
        figures = {"clip_fraction": clipped, "grad_norm": self._reduced_norm(), **own_figures}
        if not math.isfinite(figures["grad_norm"]) and self.accelerator.scaler is None:  # which leaves out such a step
            raise diverged(f"gradient's norm is {figures['grad_norm']}", self.step + 1)
        if penalty.needs == "vocabulary":
            figures["divergence/per_token"] = divergence / float(batch.lengths.sum())
        self.optimizer.step()
        return seen, figures

    def _reduced_norm(self) -> float:
        """Gradients averaged over processes, then clipped."""
        parameters = average_gradients([p for p in self.model.parameters() if p.requires_grad])
        limit = self.args.max_grad_norm
        return float(self.accelerator.clip_grad_norm_(parameters, float("inf") if limit is None else limit))

    # ---- the parts of a step ----

    def _sample(self, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[Rollout]:
        args = self.args
        return sample(model, tokenizer, prompts, args.generation, group=self.method.group, tokenisation=args.tokenisation)

    def _references_own(self, prompts: Sequence[Any]) -> list[tuple[float, Rollout]]:
        """For `FromReferences`: completions of each reference, and how much each group counts: w_k / (prompts · group)."""
        if not isinstance(self.penalty, FromReferences) or self.scorer is None or self.weights is None:
            return []
        made: list[tuple[float, Rollout]] = []
        with self.scorer.models() as models:
            for weight, model in zip(self.weights.tolist(), models):
                if weight > 0:
                    share = weight / (len(prompts) * self.method.group)
                    made += [(share, rollout) for rollout in self._sample(model, self.tokenizer, prompts)]
        return made

    def _log(self, listener: Listener | None) -> None:
        """The average of the lines since the last one."""
        line = {"step": float(self.step)}
        for name in sorted(set().union(*self._lines)):
            values = [each[name] for each in self._lines if not math.isnan(each.get(name, math.nan))]
            line[name] = sum(values) / len(values) if values else math.nan
        self.history.append(line)
        self._lines = []
        if listener is not None and self.accelerator.is_main_process:
            listener(self.step, line)


def _mean_over_ranks(line: Mapping[str, float]) -> dict[str, float]:
    """Each figure's mean over the processes that have a number for it."""
    known = {name: not math.isnan(value) for name, value in line.items()}
    sums = over_ranks([value if known[name] else 0.0 for name, value in line.items()], "sum")
    counts = over_ranks(list(map(float, known.values())), "sum")
    return {name: total / count if count else math.nan for name, total, count in zip(line, sums, counts)}


def average_gradients(parameters: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Those that some process used, with the mean over processes: 0 from one that did not (an expert that no token reached)."""
    used = over_ranks([float(p.grad is not None) for p in parameters], "sum")
    found = [p for p, ranks in zip(parameters, used) if ranks]
    for p in found if PartialState().num_processes > 1 else ():
        p.grad = reduce(torch.zeros_like(p) if p.grad is None else p.grad, reduction="mean")
    return found


def _accelerator(precision: str, *, cpu: bool) -> Accelerator:
    """Of this precision, whatever an earlier run of the process was computed in; one process, or data parallel."""
    if precision == "fp16" and cpu:
        warnings.warn(f"mixed_precision: 'fp16' has no effect: {FLOAT16_ON_CPU}.", MultirefNotice, stacklevel=3)
    try:
        made = Accelerator(mixed_precision=precision, cpu=cpu)
    except ValueError:  # "already initialized"; transformers' arguments, too, begin with this
        AcceleratorState._reset_state()
        made = Accelerator(mixed_precision=precision, cpu=cpu)
    if str(made.distributed_type).rpartition(".")[2] not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ArgumentError(
            f"OnlineTrainer runs in one process or data parallel, found {made.distributed_type}. Use "
            "integrations.trl.rloo for FSDP and DeepSpeed."
        )
    return made


def decay_groups(parameters: Sequence[torch.nn.Parameter], decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer: matrices decay, biases and norms do not, as in transformers' trainers."""
    split = ([p for p in parameters if p.ndim > 1], decay), ([p for p in parameters if p.ndim <= 1], 0.0)
    return [{"params": some, "weight_decay": rate} for some, rate in (split if decay else [(list(parameters), 0.0)]) if some]


def prompts_of(first: int, size: int, count: int, seed: int) -> list[int]:
    """Places first … first + size − 1 of an endless sequence of permutations of 0 … count − 1, one per epoch:
    from the seed alone, so that a resumed run and several processes take the right ones."""
    order: list[int] = []
    permutation: list[int] = []
    for place in range(first, first + size):
        epoch, at = divmod(place, count)
        if not permutation or at == 0:
            permutation = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        order.append(permutation[at])
    return order
