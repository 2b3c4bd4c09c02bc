"""`OnlineTrainer`: completions, rewards, K-reference scores, loss, step. The loop; what is optimised is `surrogate`'s business."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiref._logspace import check_beta, check_weights
from multiref.errors import ArgumentError
from multiref.references.rollouts import Rollout, RolloutScorer
from multiref.regularizers import ForwardKL, Regularizer
from multiref.training.online.arguments import AdaptiveBeta, OnlineArguments
from multiref.training.online.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from multiref.training.online.methods import RLOO, Method, describe
from multiref.training.online.metrics import rollout_metrics
from multiref.training.online.passes import encoded_group, padded, passes, policy_tokens
from multiref.training.online.penalty import FromReferences, InReward, NoPenalty, Penalty, penalty_named
from multiref.training.online.rewards import as_rewards, total_reward
from multiref.training.online.rollout import prompt_ids, sample
from multiref.training.online.samples import Samples
from multiref.training.online.surrogate import surrogate

__all__ = ["OnlineTrainer"]

Sampler = Callable[[Any, Any, Sequence[Any]], list[Rollout]]


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
        sampler: (model, tokenizer, prompts) → rollouts, to sample elsewhere; they have to be samples of the policy at temperature 1.
        output: folder of checkpoints; None: none.
        listener: called with (step, metrics).
        options: for opening references (dtype, device, …).

    One process or data parallel (gradients are averaged over processes); FSDP and DeepSpeed are for TRL's door. The same seed gives the same run, and a
    resumed run the same as one that was not interrupted, on one machine.
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
        if str(self.accelerator.distributed_type).rpartition(".")[2] not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise ArgumentError(
                f"OnlineTrainer runs in one process or data parallel, found {self.accelerator.distributed_type}. Use integrations.trl.rloo for FSDP and DeepSpeed."
            )
        self.model = model.to(self.accelerator.device)
        self.tokenizer = tokenizer
        self.rewards = as_rewards(rewards)
        self.rows = [row if isinstance(row, Mapping) else {"prompt": row} for row in prompts]
        if not self.rows or any("prompt" not in row for row in self.rows):
            raise ArgumentError(
                "prompts: expected at least one text or mapping with `prompt`, found none."
                if not self.rows
                else "prompts: a row has no `prompt`."
            )
        self.scorer = RolloutScorer(references, tokenizer, **(options or {})) if self._asked(references) else None
        self.names = self.scorer.names if self.scorer else ()
        self.weights = self._checked_weights()
        self.penalty = self._penalty(penalty)
        self.adaptive_beta, self.output, self.listener = adaptive_beta, Path(output) if output else None, listener
        self.sampler = sampler or self._sample
        if self.scorer is not None:
            self.scorer.check_context(prompt_ids(tokenizer, [row["prompt"] for row in self.rows]), args.max_new_tokens)
        self._check_policy_context()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=args.learning_rate,
            betas=args.adam_betas,
            weight_decay=args.weight_decay,
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._lines: list[dict[str, float]] = []
        self._divergence: float | None = None  # Σ_k w_k KL(π_t‖π_{k,t}) over the states of a batch, where it is computed
        self._norm = 0.0

    # ---- what is optimised ----

    def describe(self) -> str:
        """The rule, its optimum, and what is unusual about it."""
        if self.scorer is None:
            return f"{type(self.method).__name__}, group {self.method.group}; no penalty."
        return describe(self.method, self.penalty, self.beta)

    def _asked(self, references: Any) -> bool:
        if self.beta == 0:
            if references:
                warnings.warn("beta is 0: the references are ignored, neither scored nor in the metrics.", stacklevel=3)
            return False
        check_beta(self.beta)
        return True

    def _checked_weights(self) -> Any:
        given = [row.get("weights") for row in self.rows]
        if any(w is not None for w in given) and self.scorer is not None:
            if any(w is None for w in given) or self.regularizer.weights is not None:
                raise ArgumentError(
                    "weights: expected them in every row of prompts and not in the regularizer, or in the regularizer alone."
                )
            return torch.stack([check_weights(w, len(self.names)) for w in given], 1)
        return check_weights(self.regularizer.weights, len(self.names)) if self.scorer else None

    def _penalty(self, penalty: Penalty | str | None) -> Penalty:
        if self.scorer is None:
            return NoPenalty()
        aligned = all(self.scorer.aligned.values())
        if penalty is None:
            if isinstance(self.regularizer, ForwardKL) and aligned and self.weights is not None and self.weights.ndim == 1:
                return FromReferences(self.regularizer)
            return InReward(self.regularizer)
        chosen = penalty_named(penalty, self.regularizer) if isinstance(penalty, str) else penalty
        if chosen.needs != "completions":
            self.scorer.require_aligned()
        return chosen

    # ---- the loop ----

    def train(self, *, resume: bool = False) -> list[dict[str, float]]:
        """Runs to `args.steps`; with `resume`, from the last checkpoint of `output`. Returns the lines of metrics."""
        torch.manual_seed(self.args.seed + self.accelerator.process_index)
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
            if (
                self.output
                and self.args.save_every
                and self.step % self.args.save_every == 0
                and self.accelerator.is_main_process
            ):
                state = {"beta": self.beta, "lines": self._lines}
                save_checkpoint(self.output, self.step, self.model, self.optimizer, state, keep=self.args.keep)
        return self.history

    def _one_step(self) -> dict[str, float]:
        index = self._prompts_of(self.step)
        rows = [self.rows[i] for i in index]
        rollouts = self.sampler(self.model, self.tokenizer, [row["prompt"] for row in rows])
        reward, each = self._rewarded(rows, rollouts)
        refs = self._scored(rollouts)
        own = self._references_own([row["prompt"] for row in rows])
        weights = (
            self.weights[:, index].repeat_interleave(self.method.group, 1)
            if self.weights is not None and self.weights.ndim == 2
            else self.weights
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate(self.step)
        line: dict[str, float] = {}
        old: Tensor | None = None
        for update in range(self.method.updates):
            logps, clipped = self._update(rollouts, reward, refs, weights, old, own)
            if update == 0:
                old = logps
                line = self._metrics(rollouts, logps, refs, reward, each, weights)
        line |= {
            "clip_fraction": clipped,
            "learning_rate": self.args.rate(self.step),
            "beta": self.beta,
            "grad_norm": self._norm,
        }
        if self.adaptive_beta is not None and "kl" in line:
            self.beta = self.adaptive_beta.next(self.beta, line["kl"])
        return line

    def _update(
        self,
        rollouts: list[Rollout],
        reward: Tensor,
        refs: dict[str, Tensor],
        weights: Any,
        old: Tensor | None,
        own: list[tuple[float, Rollout]],
    ) -> tuple[Tensor, float]:
        """One optimizer step. Returns the policy's token log-probabilities [N, T] before it, and the share of clipped ratios."""
        group, n = self.method.group, len(reward)
        width = max(len(ids) for rollout in rollouts for ids in rollout.completion_ids)
        seen = torch.zeros(n, width, dtype=torch.float64)
        clipped = 0.0
        self._divergence = None
        self.optimizer.zero_grad()
        for part in passes(rollouts, self.args.token_budget):
            index = torch.tensor([i * group + j for i in part for j in range(group)])
            batch = [rollouts[i] for i in part]
            with self.accelerator.autocast():
                samples = self._samples(batch, index, refs, weights, None if old is None else old[index], width)
                result = surrogate(
                    samples, reward[index].to(self.accelerator.device), method=self.method, penalty=self.penalty, beta=self.beta,
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

    def _samples(
        self, batch: list[Rollout], index: Tensor, refs: dict[str, Tensor], weights: Any, old: Tensor | None, width: int
    ) -> Samples:
        device = self.accelerator.device
        divergences = disagreements = None
        if self.penalty.needs == "vocabulary":
            assert self.scorer is not None
            tokens, mask, divergences, disagreements = self._whole_vocabulary(batch, weights, index)
        else:
            tokens, mask = policy_tokens(self.model, batch)
        tokens, mask = padded(tokens, width), padded(mask, width)
        divergences, disagreements = (None if x is None else padded(x, width) for x in (divergences, disagreements))
        w = weights[:, index] if isinstance(weights, Tensor) and weights.ndim == 2 else weights
        whole = refs["completions"][:, index].to(device) if "completions" in refs else torch.zeros(0, len(index), device=device)
        each = refs["tokens"][:, index].to(device) if "tokens" in refs else None
        return Samples(
            tokens, mask, whole, w, None if old is None else old.to(tokens), None if each is None else padded(each, width).to(tokens), disagreements, divergences
        )  # fmt: skip

    def _whole_vocabulary(self, batch: list[Rollout], weights: Any, index: Tensor) -> tuple[Tensor, ...]:
        from multiref.training.online.vocabulary import vocabulary_terms

        w = weights[:, index] if isinstance(weights, Tensor) and weights.ndim == 2 else weights
        assert self.scorer is not None
        with self.scorer.models() as models:
            terms = vocabulary_terms(self.model, models, [encoded_group(rollout) for rollout in batch], w)
        lengths = [len(ids) for rollout in batch for ids in rollout.completion_ids]
        rows = [torch.nn.utils.rnn.pad_sequence(list(term.split(lengths)), batch_first=True) for term in terms]
        mask = torch.arange(max(lengths), device=rows[0].device)[None] < torch.tensor(lengths, device=rows[0].device)[:, None]
        return rows[0], mask, rows[1], rows[2].detach()

    def _reduced_norm(self) -> float:
        """Gradients averaged over processes, then clipped."""
        parameters = [p for p in self.model.parameters() if p.requires_grad and p.grad is not None]
        if self.accelerator.num_processes > 1:
            for p in parameters:
                p.grad = self.accelerator.reduce(p.grad, reduction="mean")
        limit = self.args.max_grad_norm
        return float(torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))

    # ---- the parts of a step ----

    def _prompts_of(self, step: int) -> list[int]:
        """A permutation of the prompts per epoch, from the seed; each process its share of every step."""
        size, world = self.args.prompts_per_step, self.accelerator.num_processes
        first = (step * world + self.accelerator.process_index) * size
        order: list[int] = []
        for place in range(first, first + size):
            epoch, at = divmod(place, len(self.rows))
            if not order or at == 0:
                permutation = torch.randperm(
                    len(self.rows), generator=torch.Generator().manual_seed(self.args.seed * 1_000_003 + epoch)
                ).tolist()
            order.append(permutation[at])
        return order

    def _sample(self, model: Any, tokenizer: Any, prompts: Sequence[Any]) -> list[Rollout]:
        a = self.args
        return sample(
            model,
            tokenizer,
            prompts,
            group=self.method.group,
            max_new_tokens=a.max_new_tokens,
            batch=a.generation_batch,
            cache=a.cache,
        )

    def _rewarded(self, rows: Sequence[Mapping[str, Any]], rollouts: list[Rollout]) -> tuple[Tensor, dict[str, Tensor]]:
        group = self.method.group
        prompts = [rollout.prompt for rollout in rollouts for _ in rollout.completions]
        completions = [completion for rollout in rollouts for completion in rollout.completions]
        if len(completions) != len(rows) * group or any(not ids for rollout in rollouts for ids in rollout.completion_ids):
            raise ArgumentError(
                f"The sampler gave {len(completions)} completions for {len(rows)} prompts, some of no token perhaps; expected {group} each of at least one token."
            )
        names = {name for row in rows for name in row} - {"prompt", "weights"}
        columns = {name: [row.get(name) for row in rows for _ in range(group)] for name in sorted(names)}
        if not any(_words(completion) for completion in completions) and completions[0] != "":
            warnings.warn(
                "Every completion of this step is empty text: the policy ends at once. Look at its prompts and chat template.",
                stacklevel=2,
            )
        if (
            not any(end for rollout in rollouts for end in rollout.ended)
            and self.tokenizer.eos_token_id is not None
            and self.step == 0
        ):
            warnings.warn(
                f"Every completion of the first step was cut at max_new_tokens = {self.args.max_new_tokens}: none ended. They count as they are, cut; "
                "raise max_new_tokens if answers should be whole.",
                stacklevel=2,
            )
        return total_reward(self.rewards, prompts, completions, columns)

    def _scored(self, rollouts: list[Rollout]) -> dict[str, Tensor]:
        """Log-probabilities under the references, one reference after the other over the whole batch."""
        if self.scorer is None:
            return {}
        if all(self.scorer.aligned.values()):
            tokens = self.scorer.tokens(rollouts)
            return {"tokens": tokens, "completions": tokens.double().sum(-1)}
        return {"completions": self.scorer.completions(rollouts)}

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
    ) -> dict[str, float]:
        lengths = torch.tensor([len(ids) for rollout in rollouts for ids in rollout.completion_ids], dtype=torch.float64)
        ended = torch.tensor([end for rollout in rollouts for end in rollout.ended], dtype=torch.float64)
        whole = refs.get("completions", torch.zeros(0, len(reward)))
        line = rollout_metrics(
            token_logps.sum(-1),
            whole,
            reward,
            regularizer=self.regularizer,
            weights=weights,
            beta=self.beta,
            group=self.method.group,
            names=self.names,
        )
        line |= {f"rewards/{name}/mean": float(values.mean()) for name, values in each.items()}
        line["completions/mean_length"] = float(lengths.mean())
        line["completions/clipped_ratio"] = float(1 - ended.mean())
        line["logps/per_token"] = float(token_logps.sum() / lengths.sum())
        if self._divergence is not None:
            line["divergence/per_token"] = self._divergence / float(lengths.sum())
        return line

    def _log(self) -> None:
        """The average of the lines since the last one, over processes."""
        names = sorted(self._lines[0])
        values = torch.tensor([[line[name] for name in names] for line in self._lines], dtype=torch.float64).mean(0)
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values.float(), reduction="mean").double()
        line = {"step": float(self.step), **dict(zip(names, values.tolist()))}
        self.history.append(line)
        self._lines = []
        if self.listener is not None and self.accelerator.is_main_process:
            self.listener(self.step, line)

    def _check_policy_context(self) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, prompt_ids(self.tokenizer, [row["prompt"] for row in self.rows]))) + self.args.max_new_tokens
        if limit is not None and limit < longest:
            raise ArgumentError(
                f"max_new_tokens: the policy holds {limit} tokens, the longest prompt and completion may have {longest}. Shorten one of them."
            )


def _words(completion: Any) -> str:
    return (completion if isinstance(completion, str) else " ".join(message["content"] for message in completion)).strip()
