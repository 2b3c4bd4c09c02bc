"""A step's completions, and what policy, references and rewards said of them;
from it the `Samples` of each pass, and the log's figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from multiref.divergences import k1
from multiref.errors import VocabularyMismatch
from multiref.models import Encoded, Generation, Rollout, Tokenisation, sampling, token_logps
from multiref.models.spec import TOKENISATION
from multiref.references.rollouts import RolloutScorer
from multiref.regularizers import FDivergence, Regularizer
from multiref.training.batching import cut_into_microbatches
from multiref.training.online.penalty import Penalty, Samples
from multiref.training.online.vocabulary import vocabulary_terms

SHARED_LIMIT = 1024  # attention grows with the square of a row: longer groups are scored one completion a row


@dataclass(frozen=True)
class Batch:
    """N completions, `group` of each prompt together, at most T tokens long.

    Attributes:
        reward: [N], summed over the rewards; each: [N] of each of them, NaN where it does not apply.
        refs: of `reference_scores`; weights: [K], or [K, N] where prompts are routed; None without references.
        old: [N, T] token log-probabilities under whoever sampled; None: the policy as it is.
    """

    rollouts: Sequence[Rollout]
    group: int
    reward: Tensor
    each: dict[str, Tensor]
    refs: dict[str, Tensor]
    weights: Tensor | None
    old: Tensor | None

    @property
    def lengths(self) -> Tensor:
        """[N]: tokens of each completion."""
        return torch.tensor([len(ids) for rollout in self.rollouts for ids in rollout.completion_ids])

    @property
    def width(self) -> int:
        """T."""
        return int(self.lengths.max())

    def passes(self, token_budget: int) -> list[list[int]]:
        """Places of prompts that go through the model together, groups whole; routed ones with those of the same references,
        so that no reference runs on what it has no part in."""
        sizes = [len(r.completion_ids) * (len(r.prompt_ids) + max(map(len, r.completion_ids))) for r in self.rollouts]
        w = self.weights
        routes = None if w is None or w.ndim == 1 else [tuple(row) for row in (w[:, :: self.group] > 0).T.tolist()]
        return cut_into_microbatches(sizes, token_budget, routes=routes)

    def places(self, prompts: Sequence[int]) -> Tensor:
        """[n]: where the completions of these prompts are among the N."""
        return torch.tensor([i * self.group + j for i in prompts for j in range(self.group)])

    def samples(self, model: nn.Module, scorer: RolloutScorer | None, penalty: Penalty, prompts: Sequence[int]) -> Samples:
        """The completions of these prompts with everything that `penalty` looks at; one pass of the policy, differentiable."""
        rollouts, index = [self.rollouts[i] for i in prompts], self.places(prompts)
        weights = self.weights[:, index] if self.weights is not None and self.weights.ndim == 2 else self.weights
        divergences = disagreements = None
        if penalty.needs == "vocabulary":
            if scorer is None:
                raise VocabularyMismatch(f"{penalty!r} sums over the references' vocabulary; found no references.")
            encoded = [rollout.encoded() for rollout in rollouts]
            with scorer.models() as models:
                terms = vocabulary_terms(model, models, encoded, weights, divergence=type(penalty).at_state)
            lengths = [len(ids) for rollout in rollouts for ids in rollout.completion_ids]
            (tokens, mask), (divergences, _), (disagreements, _) = (_rows(term.split(lengths)) for term in terms)
            divergences, disagreements = _padded(divergences, self.width), _padded(disagreements.detach(), self.width)
        else:
            tokens, mask = policy_tokens(model, rollouts)
        tokens, mask = _padded(tokens, self.width), _padded(mask, self.width)
        whole, each = self.refs.get("completions"), self.refs.get("tokens")
        return Samples(
            tokens,
            mask,
            tokens.new_zeros(0, len(index)) if whole is None else whole[:, index].to(tokens.device),
            weights,
            old_token_logps=None if self.old is None else self.old[index].to(tokens),
            ref_token_logps=None if each is None else _padded(each[:, index], self.width).to(tokens),
            disagreements=disagreements,
            divergences=divergences,
        )


def sample(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Any],
    generation: Generation,
    *,
    group: int,
    tokenisation: Tokenisation = TOKENISATION,
    scored: bool = False,
) -> list[Rollout]:
    """`group` completions of each prompt; `scored`: with the sampler's log-probabilities, which are the policy's while it does
    not move. An update has its own from the pass that it takes the gradient of."""
    drawn = sampling.sample(
        model, tokenizer, prompts, generation, group=group, generator=torch.default_generator, tokenisation=tokenisation
    )
    return drawn if scored else [replace(rollout, sampled_logps=None) for rollout in drawn]


def rows_to_come(contexts: Sequence[tuple[int, ...]], rollouts: Sequence[Rollout], new_tokens: int) -> list[Encoded]:
    """Rows for an audit that covers a whole job: a group behind the longest prompt, with completions as long as they may get,
    and one behind the shortest, of one token each. Their tokens are those that were drawn first, repeated or cut."""
    drawn = rollouts[0].completion_ids
    ends = (max(contexts, key=len), new_tokens), (min(contexts, key=len), 1)
    return [Encoded(context, tuple((ids * count)[:count] for ids in drawn), (False,) * len(drawn)) for context, count in ends]


def reference_scores(scorer: RolloutScorer | None, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """{"completions": [K, N], "tokens": [K, N, T] where vocabularies agree}: one reference after the other over the whole
    step."""
    if scorer is None:
        return {}
    if all(scorer.aligned.values()):
        tokens = scorer.tokens(rollouts)
        return {"tokens": tokens, "completions": tokens.double().sum(-1)}
    return {"completions": scorer.completions(rollouts)}


def behaviour_logps(rollouts: Sequence[Rollout]) -> Tensor | None:
    """[N, T] token log-probabilities under whoever sampled, where every rollout has them; None:
    the policy as it is sampled them."""
    rows = [row for rollout in rollouts for row in rollout.sampled_logps or ()]
    if len(rows) < sum(len(rollout.completion_ids) for rollout in rollouts):
        return None
    return pad_sequence([torch.tensor(row, dtype=torch.float64) for row in rows], batch_first=True)


def policy_tokens(model: nn.Module, batch: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
    """(token log-probabilities [N, T], differentiable, zero where padded; mask [N, T])."""
    row = max(len(r.prompt_ids) + sum(map(len, r.completion_ids)) for r in batch)
    saved = max(len(r.prompt_ids) * (len(r.completion_ids) - 1) for r in batch)
    share = row <= SHARED_LIMIT and saved > 0.1 * row
    return _rows(token_logps(model, [rollout.encoded() for rollout in batch], share=share))


def _rows(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths → [N, T], zero where padded, and the mask [N, T] of what is not."""
    lengths = torch.tensor([len(part) for part in parts], device=parts[0].device)
    rows = pad_sequence(list(parts), batch_first=True)
    return rows, torch.arange(rows.shape[1], device=rows.device)[None] < lengths[:, None]


def _padded(rows: Tensor, width: int) -> Tensor:
    """[*, T] → [*, width], zero (False) behind."""
    return nn.functional.pad(rows, (0, width - rows.shape[-1])) if rows.shape[-1] < width else rows


def rollout_metrics(
    batch: Batch, token_logps: Tensor, regularizer: Regularizer, *, beta: float, names: Sequence[str]
) -> dict[str, float]:
    r"""Of N = P · G completions of the policy, whole-completion quantities, in nats:

        reward, reward_std    of the task's reward, without the penalty
        kl/<name>             log π − log π_k: unbiased for KL(π‖π_k)
        kl                    Σ_k w_k of these
        objective             r − β log π/P, P the pool: unbiased for J(π)
        disagreement          −log of the group's mean of e^{−ℓ}, ℓ = log π − Σ_k w_k log π_k:
                              consistent for −log F, too large on average for small groups
        ess                   effective sample size, as a share of the group, of the completions as samples of the optimum
                              (weights P e^{r/β}/π): 1 at the optimum
        regret                β (log mean − mean log) of those weights, a consistent estimate of J* − J(π),
                              too small on average for small groups
        sampling_ratio        mean of π/μ, μ whoever sampled, where that is not the policy as it is: 1 but for noise
        logps/per_token       log π, of a token

    `objective`, `ess` and `regret` for reverse KL to references or a pool (α = 1) only.

    Args:
        token_logps: [N, T] of the policy before the update; names: of the K references.
    """
    reward, logps, lengths = batch.reward, token_logps.sum(-1), batch.lengths.double()
    ended = [end for rollout in batch.rollouts for end in rollout.ended]
    values = {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std(unbiased=False)),
        **{f"rewards/{name}/mean": float(each.nanmean()) for name, each in batch.each.items()},
        "completions/mean_length": float(lengths.mean()),
        "completions/clipped_ratio": 1 - sum(ended) / len(ended),
        "logps/per_token": float(token_logps.sum() / lengths.sum()),
    }
    if batch.old is not None:
        values["sampling_ratio"] = float((token_logps - batch.old).sum(-1).exp().mean())
    if "completions" not in batch.refs:
        return values
    ref_logps = batch.refs["completions"].double()
    log_ratio = k1(logps, ref_logps, batch.weights)
    values["kl"] = float(log_ratio.mean())
    values |= {f"kl/{name}": float((logps - theirs).mean()) for name, theirs in zip(names, ref_logps)}
    group = batch.group
    values["disagreement"] = float(-(torch.logsumexp(-log_ratio.reshape(-1, group), 1) - math.log(group)).mean())
    if beta > 0 and not isinstance(regularizer, FDivergence) and regularizer.alpha == 1:
        pool = regularizer.with_weights(batch.weights).pool(ref_logps)
        values["objective"] = float((reward - beta * (logps - pool)).mean())
        log_weight = (reward / beta + pool - logps).reshape(-1, group)
        total = torch.logsumexp(log_weight, 1)
        values["ess"] = float((2 * total - torch.logsumexp(2 * log_weight, 1)).exp().mean() / group)
        values["regret"] = float(beta * (total - math.log(group) - log_weight.mean(1)).mean())
    return values
