"""What a certificate is asked about, and what a policy reaches by it: r − β log π/P_0 of completions drawn as served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from multiref._logspace import NEG_INF, weighted_sum
from multiref.decoding.request import check_whole, flat_weights
from multiref.decoding.rewarding import Rewarding
from multiref.decoding.streaming import open_pool
from multiref.errors import ArgumentError, VocabularyMismatch
from multiref.evaluation.samples import sample_each
from multiref.models import LanguageModel
from multiref.models.draws import bend
from multiref.models.lockstep import Lockstep, at_rest
from multiref.models.sampling import Rollout, end_ids
from multiref.models.spec import Generation
from multiref.references.collection import References
from multiref.references.rollouts import RolloutScorer
from multiref.regularizers import ReverseKL

Interval = tuple[float, float]


@dataclass(frozen=True)
class Effort:
    """What is drawn for each prompt: islands of particles for J*, and completions of every policy. seed: of all of it."""

    islands: int = 64
    particles: int = 32
    samples: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("islands", 1), ("particles", 1), ("samples", 2), ("seed", 0)):
            object.__setattr__(self, name, check_whole(f"effort: {name}", getattr(self, name), least))


@dataclass(frozen=True)
class Yardstick:
    """The objective, its prompts, and what is declared of both."""

    refs: References
    regularizer: ReverseKL
    reward: Callable[..., Any]
    beta: float
    prompts: Sequence[Any]
    generation: Generation
    reward_max: float | None
    log_ratio_max: float | None
    effort: Effort

    @property
    def room(self) -> Interval | None:
        """Where r − β log π/P_0 of a completion lies, as declared; None where it is not."""
        if self.log_ratio_max is None or self.reward_max is None:
            return None
        return -self.beta * self.log_ratio_max, self.reward_max + self.beta * self.log_ratio_max

    @property
    def weights(self) -> Tensor:
        """[K] float64."""
        return flat_weights(self.regularizer.weights, len(self.refs.names))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """What ends a completion of the pool, and of which J* therefore is the optimum."""
        with open_pool(self.refs, self.regularizer) as bench:
            return bench.ends

    def rewards(self, rollouts: Sequence[Rollout]) -> Tensor:
        """[P, S], at most reward_max where that is declared; −∞ is a veto."""
        ask = Rewarding(self.reward, self.reward_max)
        return torch.stack([ask(rollout.prompt, rollout.completions) for rollout in rollouts])

    def values(self, policy: LanguageModel, whose: str) -> Tensor:
        r"""[P, S] whose mean is J:  r − β log π/P_0 (k1) where that is declared to be bounded, else with less spread

            r − β Σ_t Σ_v π(v|s_t) log π(v|s_t)/P_0(v|s_t),   KL summed over the vocabulary

        π is the policy as it is sampled: its temperature and its cuts are part of it.
        """
        scorer = RolloutScorer(self.refs, policy.tokenizer)
        if not all(scorer.aligned.values()):
            other = next(name for name, same in scorer.aligned.items() if not same)
            raise VocabularyMismatch(f"{whose} and reference {other!r} have different vocabularies; a certificate needs one.")
        ends = end_ids(policy.model, policy.tokenizer)
        if set(ends) != set(self.ends):
            raise ArgumentError(
                f"{whose} ends completions with the tokens {sorted(ends)}, and the references with {sorted(self.ends)}: J and "
                "J* would be of other completions. Give the models one tokenizer and one generation_config.eos_token_id."
            )
        rollouts = sample_each(policy, self.prompts, self.generation, group=self.effort.samples, seed=self.effort.seed)
        earned = self.rewards(rollouts)
        if bool((earned == NEG_INF).any()):
            raise ArgumentError(f"reward: {whose} draws a completion with reward −∞, so its J is −∞; nothing is to certify.")
        if self.reward_max is not None and float(earned.min()) < 0:
            low = float(earned.min())
            raise ArgumentError(
                f"reward_max declares rewards in [0, {self.reward_max:g}], and {whose} draws one of {low:g}. "
                "Add a constant to the reward, or leave reward_max out (the certificate is then asymptotic)."
            )
        if self.room is None:
            with scorer.models() as models:
                rows = [vocabulary_kl(policy.model, models, self.weights, each, self.generation, ends) for each in rollouts]
            ratio = torch.stack(rows)
        else:
            scores = scorer.completions(rollouts).view(len(self.refs.names), *earned.shape)
            served = [[sum(logps) for logps in each.sampled_logps or ()] for each in rollouts]  # log π as it was drawn
            ratio = torch.tensor(served, dtype=torch.float64) - weighted_sum(scores, self.weights[:, None, None])
        if bool((ratio.abs() == torch.inf).any()):
            raise ArgumentError(f"refs: {whose} gives mass to what some reference forbids, so its J is −∞.")
        if self.room is not None and (found := float(ratio.abs().max())) > (self.log_ratio_max or 0.0):
            raise ArgumentError(
                f"log_ratio_max is {self.log_ratio_max:g}, and {whose} draws one of |log π/P_0| = {found:.4g}. "
                "Declare more, or leave it out (the certificate is then asymptotic)."
            )
        return earned - self.beta * ratio


def vocabulary_kl(
    policy: Any, refs: Sequence[Any], weights: Tensor, rollout: Rollout, generation: Generation, ends: Sequence[int]
) -> Tensor:
    r"""[S]: Σ_t Σ_v π(v|s_t) (log π(v|s_t) − Σ_k w_k log π_k(v|s_t)) on the way of each completion, an unbiased estimate of
    KL(π‖P_0) whose spread is only that of the way."""
    rows, longest = rollout.completion_ids, max(map(len, rollout.completion_ids))
    lengths = torch.tensor([len(ids) for ids in rows])
    padded = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in rows])
    total = torch.zeros(len(rows), dtype=torch.float64)
    with at_rest([policy, *refs]):
        step = Lockstep([policy, *refs], rollout.prompt_ids, len(rows), longest)
        end, w = torch.tensor(list(ends), dtype=torch.long, device=step.device), weights.to(step.device)
        for t in range(longest):
            logps = step.logps()
            own = bend(logps[0], generation, end, t).log_softmax(-1)
            gap = own - weighted_sum(logps[1:], w[:, None, None])
            here = torch.where(own > NEG_INF, own.exp() * gap, 0.0).sum(-1).double().cpu()
            total += torch.where(t < lengths, here, 0.0)
            if t < longest - 1:
                step.read(padded[:, t].to(step.device))
    return total
