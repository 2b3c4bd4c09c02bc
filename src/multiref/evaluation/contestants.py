"""Who can be compared beside a policy: the references' token pool, best-of-n of a policy, and the optimum itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from multiref._logspace import weighted_sum
from multiref._progress import tell
from multiref.decoding import sample as sample_optimum
from multiref.decoding.rewarding import Rewarding
from multiref.errors import ArgumentError, EmptyPoolError
from multiref.models import LanguageModel
from multiref.models.draws import bend
from multiref.models.lockstep import Lockstep, at_rest
from multiref.models.sampling import Rollout, as_rollouts, encode_prompts, end_ids, sample
from multiref.models.spec import Generation
from multiref.references.collection import References
from multiref.references.local import local_reference
from multiref.references.rollouts import RolloutScorer
from multiref.regularizers import ReverseKL, check_weights

RewardFunction = Callable[..., Sequence[float]]  # (prompts=…, completions=…) → numbers


@runtime_checkable
class Contestant(Protocol):
    """What draws completions and is no model: `reward` is that of this prompt.

    A rollout's `sampled_logps` add up to log π of each completion (one number where its tokens have none); None: not known.
    """

    def draw(self, prompt: Any, reward: RewardFunction, generation: Generation, group: int, seed: int) -> Rollout:
        """`group` completions of one prompt; the same seed draws the same."""


@dataclass(frozen=True)
class BestOf:
    """The best by the reward of n completions of a policy. Its own log-probabilities are not known."""

    policy: LanguageModel
    n: int = 8

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ArgumentError(f"best of n: expected n of at least 1, found {self.n}.")

    def draw(self, prompt: Any, reward: RewardFunction, generation: Generation, group: int, seed: int) -> Rollout:
        """The best of n each, by the reward; none has a log-probability."""
        generator = torch.Generator().manual_seed(seed)
        model, tokenizer = self.policy.model, self.policy.tokenizer
        (all_of,) = sample(model, tokenizer, [prompt], generation, group=group * self.n, generator=generator)
        best = Rewarding(reward, None)(prompt, all_of.completions).view(group, self.n).argmax(-1)
        return _chosen(all_of, (best + self.n * torch.arange(group)).tolist(), None)


@dataclass(frozen=True)
class Optimum:
    """π* ∝ P_0 e^{r/β} by islands of particles: completions picked by weight, log π* = log P_0 + r/β − log Ẑ."""

    refs: References
    regularizer: ReverseKL
    beta: float
    n: int = 64
    islands: int = 8

    def draw(self, prompt: Any, reward: RewardFunction, generation: Generation, group: int, seed: int) -> Rollout:
        """Completions picked by weight, the same one perhaps twice, each with log π* of the whole."""
        found = sample_optimum(
            [prompt], self.refs, self.regularizer, reward, self.beta, n=self.n, islands=self.islands, seed=seed,
            max_new_tokens=generation.max_new_tokens, min_new_tokens=generation.min_new_tokens,
        )[0]  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        places = torch.multinomial(found.weights, group, replacement=True, generator=generator).tolist()
        tokenizer = local_reference(self.refs.names[0], self.refs.open(self.refs.names[0])).tokenizer
        (context,) = encode_prompts(tokenizer, [prompt])
        picked = _chosen(Rollout(prompt, found.completions, context, found.ids, found.ended), places, None)
        scores = RolloutScorer(self.refs, tokenizer).completions([picked])
        log_pool = weighted_sum(scores, check_weights(self.regularizer.weights, len(scores))[:, None])
        own = log_pool + found.rewards[places] / self.beta - found.log_partition
        return _chosen(picked, range(group), [(value,) for value in own.tolist()])


@dataclass(frozen=True)
class TokenPool:
    """The references renormalised at each token, sampled as `generation` says: another policy than the escort
    (docs/decoding.md)."""

    models: Sequence[LanguageModel]
    weights: Any = None

    def draw(self, prompt: Any, reward: RewardFunction, generation: Generation, group: int, seed: int) -> Rollout:
        """Token by token from the pool, ended rows padded; each token with its log-probability."""
        models, first = [each.model for each in self.models], self.models[0]
        (context,), w = encode_prompts(first.tokenizer, [prompt]), check_weights(self.weights, len(models))
        weighed = [end_ids(one.model, one.tokenizer) for one, weight in zip(self.models, w.tolist()) if weight > 0]
        ends = tuple(dict.fromkeys(end for each in weighed for end in each))
        drawn: list[Tensor] = []
        logps: list[Tensor] = []
        with at_rest(models):
            step = Lockstep(models, context, group, generation.max_new_tokens)
            generator = torch.Generator(step.device).manual_seed(seed)
            end = torch.tensor(ends, dtype=torch.long, device=step.device)
            done = torch.zeros(group, dtype=torch.bool, device=step.device)
            for t in range(generation.max_new_tokens):
                pool = weighted_sum(step.logps(), w.to(step.device)[:, None, None])
                q = bend(pool, generation, end, t).log_softmax(-1)
                if bool(q.isnan().any()):
                    raise EmptyPoolError(
                        f"After {t} tokens of {str(prompt)[:60]!r} some reference forbids each token. "
                        "Leave a reference out, or give it weight 0."
                    )
                token = torch.multinomial(q.exp(), 1, generator=generator)
                drawn.append(token[:, 0].masked_fill(done, -1))
                logps.append(q.gather(1, token)[:, 0])
                done |= torch.isin(token[:, 0], end)
                if t == generation.max_new_tokens - 1 or bool(done.all()):
                    break
                step.read(token[:, 0])
        ids = [tuple(v for v in row if v >= 0) for row in torch.stack(drawn, 1).tolist()]
        rows = [(row, tuple(said[: len(row)])) for row, said in zip(ids, torch.stack(logps, 1).tolist())]
        return as_rollouts(first.tokenizer, [prompt], [context], rows, ends)[0]


def draw_each(
    contestant: "LanguageModel | Contestant",
    prompts: Sequence[Any],
    rewards: Sequence[RewardFunction],
    generation: Generation,
    *,
    group: int,
    seed: int,
) -> list[Rollout]:
    """`group` completions of each prompt, the n-th prompt's from a seed of its own, with its own reward."""
    found = []
    for n, (prompt, reward) in enumerate(zip(prompts, rewards)):
        if isinstance(contestant, LanguageModel):
            own = torch.Generator().manual_seed(seed + 7_919 * n)
            found += sample(contestant.model, contestant.tokenizer, [prompt], generation, group=group, generator=own)
        else:
            found.append(contestant.draw(prompt, reward, generation, group, seed + 7_919 * n))
        tell("sampling", n + 1, len(prompts))
    return found


def _chosen(rollout: Rollout, places: Sequence[int], logps: Sequence[tuple[float, ...]] | None) -> Rollout:
    completions = tuple(rollout.completions[i] for i in places)
    ids, ended = tuple(rollout.completion_ids[i] for i in places), tuple(rollout.ended[i] for i in places)
    return Rollout(rollout.prompt, completions, rollout.prompt_ids, ids, ended, None if logps is None else tuple(logps))
