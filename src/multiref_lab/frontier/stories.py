"""The task on small real language models: pairs sampled from the policy, a lexicon's reward, everything measured on samples."""

import copy
import math
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiref.data import Pair
from multiref.errors import ConfigError, DataError
from multiref.evaluation import Inspection, inspect, sample_each, score_samples
from multiref.models import Generation, Tokenisation, load, sample
from multiref.references import References, SequenceScores, same_vocabulary
from multiref.training import PreferenceData
from multiref.training.online import lexicon_reward
from multiref_lab.demo.training import train_on_pairs
from multiref_lab.frontier.grid import Cell
from multiref_lab.frontier.rules import objective
from multiref_lab.frontier.settings import Stories
from multiref_lab.openings import read_openings

EACH = 2  # pairs of a prompt
WIDE = 256  # completions sampled side by side


class StoriesBench:
    """Policy, two references, openings of stories, the reward."""

    def __init__(self, task: Stories, shared: Path | None) -> None:
        self.task = task
        self.folders = {name: str(_found(path, shared, "stories.references")) for name, path in task.references.items()}
        self.policy = load(str(_found(task.policy, shared, "stories.policy")), device="cpu")
        self.references = {name: load(folder, device="cpu") for name, folder in self.folders.items()}
        every = {"policy": self.policy, **self.references}
        same_vocabulary(list(every), [model.tokenizer.get_vocab() for model in every.values()])
        self.names = tuple(self.references)
        self.lexicon = lexicon_reward(_found(task.lexicon, shared, "stories.lexicon"))
        self.openings = read_openings(
            _found(task.stories, shared, "stories.stories"), task.prompt_words, longer_than=2 * task.prompt_words
        )
        self.shared = lru_cache(maxsize=1)(self._share)  # made once for all rules of a seed
        needed = task.held_out + max(-(-pairs // EACH) for pairs in task.pairs)
        if len(self.openings) < needed:
            raise DataError(
                f"{task.stories}: {len(self.openings)} different openings of {task.prompt_words} words; expected {needed}, "
                f"{task.held_out} held out and one for {EACH} pairs. Take longer openings or fewer pairs."
            )

    def train(self, cell: Cell) -> dict[str, float]:
        """A copy of the policy trained as the cell says → its numbers, from samples."""
        policy = copy.deepcopy(self.policy.model)
        rule, (_, _, data) = objective(cell.rule, cell.weights, cell.beta), self.shared(cell.pairs, cell.seed)
        train_on_pairs(policy, rule, data, self.policy.tokenizer, arguments=self.task.offline.arguments(cell.seed))
        return self.measure(policy, cell.seed)

    def measure(self, policy: Any, seed: int) -> dict[str, float]:
        """Means over this seed's held-out prompts, and `<name>±`, their standard errors over prompts.

        reward: E_π[r]; kl/<reference>: E_π[log π − log π_k] over the first `new_tokens` tokens, nats per completion (k1:
        unbiased, may be negative); entropy: −E_π[log π] of the same; distinct: different completions of a prompt,
        as a share of `samples`; unfinished: the share cut at the limit.
        """
        task, held_out = self.task, self._split(seed)[0]
        model = type(self.policy)(policy, self.policy.tokenizer, "trained")
        rollouts = sample_each(model, held_out, Generation(task.new_tokens), group=task.samples, seed=104_729 * seed)
        draws, items = [rollout.completion_ids for rollout in rollouts], [rollout.encoded() for rollout in rollouts]
        own = score_samples(model, items)
        each: dict[str, Tensor] = {"entropy": -own}
        each |= {f"kl/{name}": own - score_samples(ref, items) for name, ref in self.references.items()}
        each["reward"] = torch.tensor([self._rewards(rollout.completions) for rollout in rollouts])
        end = self.policy.tokenizer.eos_token_id
        each["unfinished"] = torch.tensor([[float(ids[-1] != end) for ids in rows] for rows in draws])
        prompts = {name: values.mean(1) for name, values in each.items()}
        prompts["distinct"] = torch.tensor([len(set(rows)) / task.samples for rows in draws], dtype=torch.float64)
        numbers = {name: float(values.mean()) for name, values in prompts.items()}
        return numbers | {f"{name}±": float(values.std()) / math.sqrt(len(values)) for name, values in prompts.items()}

    def untouched(self) -> dict[str, dict[str, float]]:
        """Models that nobody trained here, on the first seed's prompts."""
        models = {"policy": self.policy, **self.references}
        return {name: self.measure(model.model, 0) for name, model in models.items()}

    def inspection(self, pairs: int) -> Inspection:
        """What `multiref inspect` says of the first seed's pairs."""
        drawn_pairs, scores, _ = self.shared(pairs, 0)
        return inspect(drawn_pairs, scores)

    def pairs(self, number: int, seed: int) -> list[Pair]:
        """Two pairs of completions of the untouched policy for each training prompt, labelled by Bradley–Terry;
        equal texts are left out."""
        prompts = self._split(seed)[1][: -(-number // EACH)]
        chance = random.Random(seed)
        policy, generation = self.policy, Generation(self.task.new_tokens, batch=WIDE)
        generator = torch.Generator().manual_seed(seed)
        rolled = sample(policy.model, policy.tokenizer, prompts, generation, group=2 * EACH, generator=generator)
        found: list[Pair] = []
        for rollout in rolled:
            for a, b in zip(rollout.completions[::2], rollout.completions[1::2], strict=True):
                ra, rb = self._rewards([a, b])
                first = chance.random() < 1 / (1 + math.exp(rb - ra))
                if a.strip() and b.strip() and a != b:
                    found.append(Pair(rollout.prompt, *((a, b) if first else (b, a)), f"stories pair {len(found) + 1}"))
        return found[:number]

    def _share(self, pairs: int, seed: int) -> tuple[list[Pair], SequenceScores, PreferenceData]:
        """(pairs, scores, data) of a seed."""
        found, bare = self.pairs(pairs, seed), Tokenisation(end=False)
        scores = References(self.folders, tokenisation=bare, device="cpu").score(found)
        return found, scores, PreferenceData(found, scores, self.policy.tokenizer, tokenisation=bare)

    def _rewards(self, texts: Sequence[str]) -> list[float]:
        return [self.task.scale * value for value in self.lexicon([""] * len(texts), texts)]

    def _split(self, seed: int) -> tuple[list[str], list[str]]:
        """(held out, training) openings of a seed."""
        order = list(self.openings)
        random.Random(seed).shuffle(order)
        return order[: self.task.held_out], order[self.task.held_out :]


def _found(path: str, shared: Path | None, key: str) -> Path:
    """The path itself, or inside the folder of models and data."""
    for place in (Path(path), *([shared / path] if shared else [])):
        if place.exists():
            return place
    where = f"in {shared}" if shared else "here; name the folder of models and data with --shared"
    raise ConfigError(f"{key}: {path!r} is neither a path nor {where}.")
