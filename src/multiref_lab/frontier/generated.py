"""The task whose every answer is enumerated: train a cell in the demo's world, measure its policy exactly."""

import copy
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from multiref.data import Pair
from multiref.divergences import expectation
from multiref.evaluation import Inspection, inspect
from multiref.models import LanguageModel
from multiref.references import References
from multiref.training import PairLogps
from multiref.training.online import RLOO, OnlineArguments, OnlineTrainer, Rule
from multiref_lab.demo import Answers, PairLaw, draw_pairs, make
from multiref_lab.demo.corpus import Problem
from multiref_lab.demo.training import train_on_pairs
from multiref_lab.demo.world import World
from multiref_lab.frontier.grid import Cell
from multiref_lab.frontier.rules import objective, penalty, regularizer
from multiref_lab.frontier.settings import Generated

DRAWS = 8  # of "distinct answers"
OTHER = 1_000_003  # between the seed of the training pairs and that of the test pairs
TEST_PROMPTS, TEST_EACH = 500, 4


class GeneratedBench:
    """The world, the held-out prompts with all their answers, and what one seed's runs share."""

    def __init__(self, task: Generated, cache: Path | None) -> None:
        self.task = task
        self.world: World = make(cache, task.world)
        self.problems = self.world.problems(task.held_out, 0, held_out=True)
        self.answers = Answers.of(self.world, self.problems, scale=task.scale)
        self.names = self.answers.names
        self.shared = lru_cache(maxsize=1)(partial(SharedPairs, self))  # (pairs, seed): made once for all rules of a seed

    def train(self, cell: Cell) -> dict[str, float]:
        """A copy of the base model trained as the cell says → its numbers."""
        policy = copy.deepcopy(self.world.base)
        if cell.training == "online":
            self._online(policy, cell)
            return self._measure(policy)
        shared = self.shared(cell.pairs, cell.seed)
        rule = objective(cell.rule, cell.weights, cell.beta)
        train_on_pairs(policy, rule, shared.data, self.world.tokenizer, arguments=self.task.offline.arguments(cell.seed))
        return self._measure(policy) | shared.train.measure(policy, cell, "train") | shared.test.measure(policy, cell, "test")

    def untouched(self) -> dict[str, dict[str, float]]:
        """Models that nobody trained here, by the same measure."""
        return {name: self._measure(model) for name, model in {"base": self.world.base, **self.world.references}.items()}

    def inspection(self, pairs: int) -> Inspection:
        """What `multiref inspect` says of the first seed's pairs."""
        shared = self.shared(pairs, 0)
        return inspect(shared.pairs, shared.scores)

    def _measure(self, policy: PreTrainedModel) -> dict[str, float]:
        return self.measure(self.world.logps(policy, self.problems))

    def measure(self, log_policy: Tensor) -> dict[str, float]:
        """[N, Y] → the numbers of `Answers.measure` (from them J follows for every weight, as it is linear in it), and:

        entropy: −E_π[log π]; distinct: expected number of different answers among `DRAWS`, Σ_y 1 − (1 − π(y))^DRAWS.
        """
        distinct = (1 - (1 - log_policy.exp()) ** DRAWS).sum(1)
        entropy = -expectation(log_policy, log_policy)
        return self.answers.measure(log_policy) | {"entropy": float(entropy.mean()), "distinct": float(distinct.mean())}

    def _online(self, policy: PreTrainedModel, cell: Cell) -> None:
        how, scale = self.task.online, self.task.scale

        def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
            return [scale * self.world.reward(prompt, said) for prompt, said in zip(prompts, completions, strict=True)]

        args = OnlineArguments(
            steps=how.steps,
            prompts_per_step=how.prompts_per_step,
            max_new_tokens=2,
            learning_rate=how.learning_rate,
            warmup=0.05,
            log_every=how.steps,
            seed=cell.seed,
        )
        trainer = OnlineTrainer(
            LanguageModel(policy, self.world.tokenizer, "policy"),
            regularizer(cell.rule, cell.weights),
            beta=cell.beta,
            references=References(self.world.reference_folders, device="cpu"),
            prompts=[problem.prompt for problem in self.world.problems(how.prompts, cell.seed)],
            args=args,
            rewards=reward,
            rule=Rule(RLOO(group=how.group), penalty(cell.rule)),
        )
        trainer.train()
        policy.eval()


class SharedPairs:
    """Training pairs with their scores, and test pairs of the same law on other prompts."""

    def __init__(self, bench: GeneratedBench, pairs: int, seed: int) -> None:
        task, world = bench.task, bench.world
        each = min(task.pairs_per_prompt, pairs)
        law = PairLaw(prompts=-(-pairs // each), pairs_per_prompt=each, scale=task.scale)
        other = PairLaw(prompts=TEST_PROMPTS, pairs_per_prompt=TEST_EACH, scale=task.scale)
        self.pairs = draw_pairs(world, law, seed)[:pairs]
        self.scores, self.data = world.data(self.pairs)
        self.train = PairSet(world, world.problems(law.prompts, seed), self.pairs[: TEST_PROMPTS * TEST_EACH])
        self.test = PairSet(world, world.problems(TEST_PROMPTS, seed + OTHER), draw_pairs(world, other, seed + OTHER))


class PairSet:
    """Labelled pairs whose answers are enumerated: the loss of a policy on them needs one pass over their prompts."""

    def __init__(self, world: World, problems: Sequence[Problem], pairs: Sequence[Pair]) -> None:
        self.world = world
        used = {problem.prompt: problem for problem in problems}
        self.problems = [used[str(prompt)] for prompt in dict.fromkeys(pair.prompt for pair in pairs)]
        row = {problem.prompt: i for i, problem in enumerate(self.problems)}
        column = {answer: i for i, answer in enumerate(world.answers)}
        self.rows = torch.tensor([row[str(pair.prompt)] for pair in pairs])
        self.sides = torch.tensor([[column[str(pair.chosen)], column[str(pair.rejected)]] for pair in pairs])

    @cached_property
    def references(self) -> Tensor:
        """[K, B, 2]"""
        return torch.stack([self._of(model) for model in self.world.references.values()])

    def measure(self, policy: PreTrainedModel, cell: Cell, name: str) -> dict[str, float]:
        """The mean loss of the cell's own objective (nats per pair), the share of pairs its reward ranks as labelled,
        its mean margin."""
        rule = objective(cell.rule, cell.weights, cell.beta)
        lengths = torch.full((len(self.rows), 2), 2)
        seen = PairLogps(self._of(policy), self.references, lengths, lengths.expand(2, -1, -1))
        rewards = rule.rewards(seen)
        margin = rewards[:, 0] - rewards[:, 1]
        return {
            f"loss/{name}": float(rule.losses(seen).mean()),
            f"ranked/{name}": float((margin > 0).double().mean()),
            f"margin/{name}": float(margin.mean()),
        }

    def _of(self, model: PreTrainedModel) -> Tensor:
        """[B, 2] log-probabilities of both sides."""
        return self.world.logps(model, self.problems)[self.rows[:, None], self.sides]
