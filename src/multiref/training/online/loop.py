"""`OnlineTrainer`: completions, rewards, K-reference scores, loss, step. The loop; what is optimised is `surrogate`'s business."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError
from multiref.references import References
from multiref.references.rollouts import Rollout, RolloutScorer
from multiref.regularizers import Regularizer
from multiref.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from multiref.training.online.arguments import AdaptiveBeta, OnlineArguments
from multiref.training.online.batch import behaviour_logps, reference_scores, samples_of, weights_at
from multiref.training.online.checks import (
    agreed_penalty,
    agreed_weights,
    as_rows,
    check_policy_context,
    check_processes,
    references_matter,
)
from multiref.training.online.methods import RLOO, Method, describe
from multiref.training.online.metrics import rollout_metrics
from multiref.training.online.microbatches import passes, policy_tokens
from multiref.training.online.order import prompts_of
from multiref.training.online.penalty import FromReferences, Penalty
from multiref.training.online.rewarding import rewarded, warn_of_odd_completions
from multiref.training.online.rewards import as_rewards
from multiref.training.online.rollout import prompt_ids, sample
from multiref.training.online.surrogate import surrogate
from multiref.training.online.warm_up import Sampler, WarmUp

__all__ = ["OnlineTrainer"]


class OnlineTrainer:
    r"""Policy-gradient training of E_π[r] − β Σ_k w_k D(π‖π_k) on completions that the policy samples.

    Args:
        model, tokenizer: the policy (a transformers causal language model, PEFT included, or `Tabular`).
        regularizer: `ReverseKL`, `ForwardKL`, `AlphaDivergence`, `PooledKL`. Weights per prompt (routing): a column "weights" in `prompts`.
        beta: strength. 0: the references are ignored, and that is said.
        references: {name: folder, hub id or object}, as `References`; those with the policy's vocabulary score the sampled ids, others the text.
        prompts: texts, or mappings with "prompt"; other columns go to the reward functions.
        rewards: functions, `Reward`s, {name: function}; none is reward zero: distillation.
        method: `RLOO(group=4)`, `Reinforce()`, `GRPO(…)`.
        penalty: a `Penalty`, its name, or None for an exact rule: "reference_samples" for forward KL where all vocabularies agree, else "reward",
            whose noise vanishes at the optimum, where all returns of a prompt are equal ("reward_to_go" has less early on, and keeps it).
        adaptive_beta: an `AdaptiveBeta`.
        sampler: (model, tokenizer, prompts) → rollouts, to sample elsewhere, such as a `ServerSampler`; they have to be samples of the policy at temperature 1,
            or to carry the log-probabilities they were sampled with (`Rollout.sampled_logps`), by whose ratio they are then weighted.
        warm_up: a `WarmUp`: the first steps under another penalty, at states of given texts. Without a reward only.
        output: folder of checkpoints; None: none.
        listener: called with (step, metrics).
        options: for opening references (dtype, device, …).

    One process or data parallel (gradients are averaged over processes, each of which takes `prompts_per_step` prompts); FSDP and DeepSpeed are for TRL's
    door. The same seed gives the same run, and a resumed run the same as one that was not interrupted, on one machine: every step seeds
    torch's generator from (seed, step, process).
    """

    def __init__(
        self,
        model: nn.Module,
        regularizer: Regularizer,
        *,
        beta: float,
        references: Any,
        prompts: Sequence[Any],
        tokenizer: Any,
        args: OnlineArguments,
        rewards: Any = (),
        method: Method | None = None,
        penalty: Penalty | str | None = None,
        adaptive_beta: AdaptiveBeta | None = None,
        sampler: Sampler | None = None,
        warm_up: WarmUp | None = None,
        output: str | Path | None = None,
        listener: Callable[[int, dict[str, float]], None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        from accelerate import Accelerator

        self.args, self.regularizer, self.beta = args, regularizer, float(beta)
        self.method = method or RLOO()
        self.accelerator = Accelerator(
            mixed_precision="no" if args.mixed_precision == "none" else args.mixed_precision,
            cpu=next(model.parameters()).device.type == "cpu",
        )
        check_processes(self.accelerator)
        self.model = model.to(self.accelerator.device)
        self.tokenizer = tokenizer
        self.rewards, self.rows = as_rewards(rewards), as_rows(prompts)
        self.scorer = (
            RolloutScorer(_collected(references, options or {}), tokenizer)
            if references_matter(self.beta, references)
            else None
        )
        self.names = self.scorer.names if self.scorer else ()
        self.weights = agreed_weights(self.rows, regularizer, self.names)
        self.penalty = agreed_penalty(penalty, regularizer, self.scorer, self.weights)
        self.adaptive_beta, self.output, self.listener = adaptive_beta, Path(output) if output else None, listener
        self.sampler = sampler or self._sample
        self.warm_up = warm_up
        if warm_up is not None:
            if self.rewards or self.scorer is None:
                raise ArgumentError(
                    "warm_up: completions that the policy did not sample are for distillation: no rewards, and β > 0."
                )
            agreed_penalty(warm_up.penalty_of(regularizer), regularizer, self.scorer, self.weights)
        if self.scorer is not None:
            self.scorer.check_context(prompt_ids(tokenizer, [row["prompt"] for row in self.rows]), args.max_new_tokens)
        check_policy_context(self.model, tokenizer, self.rows, args.max_new_tokens)
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=args.learning_rate,
            betas=args.adam_betas,
            weight_decay=args.weight_decay,
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._lines: list[dict[str, float]] = []
        self._divergence: float | None = (
            None  # Σ over the states of a step of what the penalty sums over the vocabulary, where it does
        )
        self._norm = 0.0

    def describe(self) -> str:
        """The rule, its optimum, and what is unusual about it."""
        if self.scorer is None:
            return f"{type(self.method).__name__}, group {self.method.group}; no penalty."
        said = describe(self.method, self.penalty, self.beta)
        return said if self.warm_up is None else f"{said}\n{self.warm_up.describe(self.args.steps)}"

    # ---- the loop ----

    def train(self, *, resume: bool = False) -> list[dict[str, float]]:
        """Runs to `args.steps`; with `resume`, from the last checkpoint of `output`. Returns the lines of metrics."""
        path = last_checkpoint(self.output) if resume and self.output else None
        if path is not None:
            state = load_checkpoint(path, self.model, self.optimizer)
            self.step, self.beta = state["step"], state["beta"]
            self._lines = state["lines"]
        while self.step < self.args.steps:
            self._lines.append(self._one_step())
            self.step += 1
            if self.step % self.args.log_every == 0 or self.step == self.args.steps:
                self._log()
            due = self.output and self.args.save_every and self.step % self.args.save_every == 0
            if due and self.accelerator.is_main_process:
                assert self.output is not None
                state = {"beta": self.beta, "lines": self._lines}
                save_checkpoint(self.output, self.step, self.model, self.optimizer, state, keep=self.args.keep)
        return self.history

    def _one_step(self) -> dict[str, float]:
        size, world, rank = self.args.prompts_per_step, self.accelerator.num_processes, self.accelerator.process_index
        torch.manual_seed((self.args.seed * 1_000_003 + self.step) * world + rank)
        index = prompts_of((self.step * world + rank) * size, size, len(self.rows), self.args.seed)
        rows = [self.rows[i] for i in index]
        warming = self.warm_up is not None and self.warm_up.covers(self.step, self.args.steps)
        sampler = self.warm_up.sampler if self.warm_up is not None and warming else self.sampler
        rollouts = sampler(self.model, self.tokenizer, [row["prompt"] for row in rows])
        ends = self.tokenizer.eos_token_id is not None
        warn_of_odd_completions(rollouts, ends=ends and not warming, first=self.step == 0, limit=self.args.max_new_tokens)
        reward, each = rewarded(self.rewards, rows, rollouts, self.method.group)
        refs = {} if warming else reference_scores(self.scorer, rollouts)
        own = self._references_own([row["prompt"] for row in rows])
        weights = self.weights
        if isinstance(weights, Tensor) and weights.ndim == 2:
            weights = weights[:, index].repeat_interleave(self.method.group, 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate(self.step)
        line: dict[str, float] = {}
        old = behaviour_logps(rollouts, _width(rollouts))
        for update in range(self.method.updates):
            logps, clipped = self._update(rollouts, reward, refs, weights, old, own, warming)
            if update == 0:
                line = self._metrics(rollouts, logps, refs, reward, each, weights, old)
                old = logps if old is None else old
        line |= {
            "clip_fraction": clipped,
            "learning_rate": self.args.rate(self.step),
            "beta": self.beta,
            "grad_norm": self._norm,
        }
        if self.adaptive_beta is not None and "kl" in line:
            self.beta = self.adaptive_beta.next(self.beta, self._over_processes([line["kl"]])[0])
        return line

    def _update(
        self,
        rollouts: list[Rollout],
        reward: Tensor,
        refs: dict[str, Tensor],
        weights: Any,
        old: Tensor | None,
        own: list[tuple[float, Rollout]],
        warming: bool,
    ) -> tuple[Tensor, float]:
        """One optimizer step. Returns the policy's token log-probabilities [N, T] before it, and the share of clipped ratios."""
        group, n, width = self.method.group, len(reward), _width(rollouts)
        penalty = self.warm_up.penalty_of(self.regularizer) if self.warm_up is not None and warming else self.penalty
        seen = torch.zeros(n, width, dtype=torch.float64)
        clipped = 0.0
        self._divergence = None
        self.optimizer.zero_grad()
        for part in passes(
            rollouts, self.args.token_budget, None if weights is None else weights_at(weights, torch.arange(0, n, group))
        ):
            index = torch.tensor([i * group + j for i in part for j in range(group)])
            batch = [rollouts[i] for i in part]
            with self.accelerator.autocast():
                samples = samples_of(self.model, self.scorer, penalty, batch, index, refs, weights, old, width)
                result = surrogate(
                    samples, reward[index].to(self.accelerator.device), method=self.method, penalty=penalty, beta=self.beta,
                    longest=self.args.max_new_tokens,
                )  # fmt: skip
            self.accelerator.backward(result.losses.sum() / n)
            seen[index] = samples.token_logps.detach().double().cpu()
            if samples.divergences is not None:
                self._divergence = (self._divergence or 0.0) + float(samples.divergences.detach().sum())
            clipped += float(result.clipped.sum()) / n
        for share, rollout in own:
            tokens, _ = policy_tokens(self.model, [rollout])
            self.accelerator.backward(-self.beta * share * tokens.sum())
        self._norm = self._reduced_norm()
        self.optimizer.step()
        return seen, clipped

    def _reduced_norm(self) -> float:
        """Gradients averaged over processes, then clipped."""
        parameters = [p for p in self.model.parameters() if p.requires_grad and p.grad is not None]
        if self.accelerator.num_processes > 1:
            for p in parameters:
                p.grad = self.accelerator.reduce(p.grad, reduction="mean")
        limit = self.args.max_grad_norm
        return float(torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))

    # ---- the parts of a step ----

    def _sample(self, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[Rollout]:
        a = self.args
        return sample(
            model, tokenizer, prompts, group=self.method.group, max_new_tokens=a.max_new_tokens, batch=a.generation_batch, cache=a.cache
        )  # fmt: skip

    def _references_own(self, prompts: Sequence[Any]) -> list[tuple[float, Rollout]]:
        """For `FromReferences`: completions of each reference, and how much each group counts: w_k / (prompts · group)."""
        if not isinstance(self.penalty, FromReferences) or self.scorer is None:
            return []
        made: list[tuple[float, Rollout]] = []
        with self.scorer.models() as models:
            for weight, model in zip(self.weights.tolist(), models):
                if weight > 0:
                    share = weight / (len(prompts) * self.method.group)
                    made += [(share, rollout) for rollout in self._sample(model, self.tokenizer, prompts)]
        return made

    def _metrics(
        self,
        rollouts: list[Rollout],
        token_logps: Tensor,
        refs: dict[str, Tensor],
        reward: Tensor,
        each: dict[str, Tensor],
        weights: Any,
        old: Tensor | None,
    ) -> dict[str, float]:
        lengths = torch.tensor([len(ids) for rollout in rollouts for ids in rollout.completion_ids], dtype=torch.float64)
        ended = torch.tensor([end for rollout in rollouts for end in rollout.ended], dtype=torch.float64)
        line = rollout_metrics(
            token_logps.sum(-1), refs.get("completions", torch.zeros(0, len(reward))), reward, regularizer=self.regularizer, weights=weights,
            beta=self.beta, group=self.method.group, names=self.names,
        )  # fmt: skip
        line |= {f"rewards/{name}/mean": float(values.mean()) for name, values in each.items()}
        line["completions/mean_length"] = float(lengths.mean())
        line["completions/clipped_ratio"] = float(1 - ended.mean())
        line["logps/per_token"] = float(token_logps.sum() / lengths.sum())
        if old is not None:
            line["sampling_ratio"] = float((token_logps - old).sum(-1).exp().mean())
        if self._divergence is not None:
            line["divergence/per_token"] = self._divergence / float(lengths.sum())
        return line

    def _log(self) -> None:
        """The average of the lines since the last one, over processes."""
        names = sorted(set().union(*self._lines))
        each = [[line[name] for line in self._lines if name in line] for name in names]
        means = self._over_processes([sum(values) / len(values) for values in each])
        line = {"step": float(self.step), **dict(zip(names, means))}
        self.history.append(line)
        self._lines = []
        if self.listener is not None and self.accelerator.is_main_process:
            self.listener(self.step, line)

    def _over_processes(self, values: Sequence[float]) -> list[float]:
        """The mean over processes of each."""
        if self.accelerator.num_processes == 1:
            return list(values)
        return self.accelerator.reduce(torch.tensor(values, dtype=torch.float64), reduction="mean").tolist()


def _width(rollouts: Sequence[Rollout]) -> int:
    return max(len(ids) for rollout in rollouts for ids in rollout.completion_ids)


def _collected(references: Any, options: Mapping[str, Any]) -> References:
    return references if isinstance(references, References) else References(references, **options)
