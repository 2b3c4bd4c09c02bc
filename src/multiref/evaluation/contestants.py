"""Who can be compared beside a policy: the references' token pool, best-of-n of a policy, and the optimum itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch

from multiref._progress import tell
from multiref.decoding import sample as sample_optimum
from multiref.decoding.draws import CHOOSING, chooser
from multiref.decoding.request import check_whole
from multiref.decoding.rewarding import Rewarding
from multiref.decoding.streaming import Drawn, draw_tokens, open_pool
from multiref.models import LanguageModel
from multiref.models.sampling import Rollout, as_rollouts, encode_prompts, sample
from multiref.models.spec import Generation
from multiref.references.collection import References
from multiref.references.rollouts import RolloutScorer
from multiref.regularizers import ReverseKL

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
        check_whole("best of n: n", self.n, 1)

    def draw(self, prompt: Any, reward: RewardFunction, generation: Generation, group: int, seed: int) -> Rollout:
        """The best of n each, by the reward; none has a log-probability. Not of the very completions that the policy draws from
        this seed, which they are compared with."""
        generator = chooser(seed)
        model, tokenizer = self.policy.model, self.policy.tokenizer
        (all_of,) = sample(model, tokenizer, [prompt], generation, group=group * self.n, generator=generator)
        best = Rewarding(reward, None)(prompt, all_of.completions).view(group, self.n).argmax(-1)
        return _chosen(all_of, (best + self.n * torch.arange(group)).tolist())


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
        places = torch.multinomial(found.weights, group, replacement=True, generator=chooser(seed)).tolist()
        tokenizer = self.refs.local()[0].tokenizer
        (context,) = encode_prompts(tokenizer, [prompt])
        picked = _chosen(Rollout(prompt, found.completions, context, found.ids, found.ended), places)
        log_pool = self.regularizer.pool(RolloutScorer(self.refs, tokenizer).completions([picked]))
        own = log_pool + found.rewards[places] / self.beta - found.log_partition
        return replace(picked, sampled_logps=tuple((value,) for value in own.tolist()))


@dataclass(frozen=True)
class TokenPool:
    """The references renormalised at each token, sampled as `generation` says: another policy than the escort
    (docs/decoding.md)."""

    models: Sequence[LanguageModel]
    weights: Any = None

    def draw(self, prompt: Any, reward: RewardFunction, generation: Generation, group: int, seed: int) -> Rollout:
        """Token by token from the pool; each token with its log-probability as it was drawn."""
        rows: list[list[Drawn]] = [[] for _ in range(group)]
        with open_pool({str(k): each for k, each in enumerate(self.models)}, ReverseKL(self.weights)) as bench:
            (context,) = encode_prompts(bench.tokenizer, [prompt])
            for step in draw_tokens(bench, context, generation, rows=group, generator=bench.generator(seed + CHOOSING)):
                for each in step:
                    rows[each.row].append(each)
            said = [(tuple(each.token for each in row), tuple(each.log_q for each in row)) for row in rows]
            return as_rollouts(bench.tokenizer, [prompt], [context], said, bench.ends)[0]


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


def _chosen(rollout: Rollout, places: Sequence[int]) -> Rollout:
    completions = tuple(rollout.completions[i] for i in places)
    ids, ended = tuple(rollout.completion_ids[i] for i in places), tuple(rollout.ended[i] for i in places)
    return Rollout(rollout.prompt, completions, rollout.prompt_ids, ids, ended)
