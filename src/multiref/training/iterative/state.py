"""What a run is in the middle of: models, optimisers, labels, random numbers. Saved and resumed exactly, without pickle."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from multiref.errors import ArgumentError, MultirefError, StoreError
from multiref.training.checkpoint import put_back, read_state, save_state
from multiref.training.checks import check_same
from multiref.training.iterative.labels import Labels
from multiref.training.iterative.muon import Muon
from multiref.training.iterative.task import Policy, RewardModel, Task
from multiref.training.lost_updates import all_numbers

_BETAS = (0.9, 0.99)


class Diverged(MultirefError, RuntimeError):
    """A model in training is no number any more; the last good state is kept."""


def _values(model: Policy | RewardModel | None) -> list[torch.Tensor] | None:
    return None if model is None else [p.detach() for p in model.parameters()]


def _optimizer(name: str, policy: Policy, rate: float) -> torch.optim.Optimizer:
    parameters = list(policy.parameters())
    if name == "adam":
        return torch.optim.Adam(parameters, lr=rate, betas=_BETAS)
    matrices = list(getattr(policy, "matrices", list)())
    if not matrices:
        raise ArgumentError(
            f"optimizer: found {name} with {type(policy).__name__}, which has no hidden matrices to orthogonalise; use adam"
        )
    hidden = {id(matrix) for matrix in matrices}
    return Muon(matrices, [p for p in parameters if id(p) not in hidden], lr=rate)


@dataclass
class State:
    """policy and reward model in training, their optimisers, labels, generator; `round` and `labels_used` count what is done.

    middle: the policy that a two-stage method samples from in its second stage.
    moved: room for π_σ, made anew in every outer step, so never saved.
    momentum: the running hyper-gradient of the momentum loop, and the reward parameters that it was taken at.
    information: A of the online Newton step.
    """

    policy: Policy
    start: Policy
    reward: RewardModel | None
    optimizer: torch.optim.Optimizer
    reward_optimizer: torch.optim.Optimizer | None
    generator: torch.Generator
    labels: Labels = field(default_factory=Labels)
    round: int = 0
    labels_used: int = 0
    wall: float = 0.0
    middle: Policy | None = None
    moved: Policy | None = None
    momentum: list[list[torch.Tensor]] = field(default_factory=list)
    information: torch.Tensor | None = None

    @classmethod
    def begin(cls, task: Task, *, seed: int, learning_rate: float, reward_rate: float, optimizer: str = "adam") -> "State":
        """Copies of the task's models, so that the task itself stays as it is; `optimizer` is the policy's: adam or muon.

        Raises:
            ArgumentError: muon for a policy that has no hidden matrices.
        """
        policy = task.policy.copy()
        reward = copy.deepcopy(task.reward_model)
        return cls(
            policy=policy,
            start=task.policy,
            reward=reward,
            optimizer=_optimizer(optimizer, policy, learning_rate),
            reward_optimizer=None if reward is None else torch.optim.Adam(reward.parameters(), lr=reward_rate, betas=_BETAS),
            generator=torch.Generator().manual_seed(seed),
        )

    def learner(self) -> tuple[RewardModel, torch.optim.Optimizer]:
        """The reward model in training and its optimiser.

        Raises:
            ArgumentError: a task without one.
        """
        if self.reward is None or self.reward_optimizer is None:
            raise ArgumentError("reward_model: found none, expected one: this method learns a reward")
        return self.reward, self.reward_optimizer

    def check_finite(self) -> None:
        """Diverged where policy or reward model have weights that are no numbers: after a gradient that was none."""
        for name in ("policy", "reward"):
            if not all_numbers(_values(getattr(self, name)) or ()):
                raise Diverged(f"{name}: its weights are no numbers; the last good state is kept. Lower its learning rate")

    def kept(self) -> dict[str, Any]:
        """Everything that the next round depends on, as plain tensors and numbers, independent of what happens to the state
        afterwards."""
        return copy.deepcopy(
            {
                "policy": _values(self.policy),
                "reward": _values(self.reward),
                "optimizer": self.optimizer.state_dict(),
                "reward_optimizer": None if self.reward_optimizer is None else self.reward_optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "labels": [self.labels.prompts, self.labels.completions, self.labels.latest],
                "counts": [self.round, self.labels_used, self.wall],
                "middle": _values(self.middle),
                "momentum": self.momentum,
                "information": self.information,
            }
        )

    def restore(self, kept: dict[str, Any]) -> None:
        """Back to exactly where `kept` was taken.

        Raises:
            ValueError: parameters of other shapes: what was kept is of another task.
        """
        self.middle = None if kept["middle"] is None else self.middle or self.start.copy()
        models = {"policy": self.policy, "reward": self.reward, "middle": self.middle}
        put_back(
            pair
            for name, model in models.items()
            if model is not None
            for pair in zip(model.parameters(), kept[name], strict=True)
        )
        self.optimizer.load_state_dict(kept["optimizer"])
        if self.reward_optimizer is not None:
            self.reward_optimizer.load_state_dict(kept["reward_optimizer"])
        self.generator.set_state(kept["generator"])
        self.labels = Labels(*kept["labels"])
        self.round, self.labels_used, self.wall = kept["counts"]
        self.momentum, self.information = kept["momentum"], kept["information"]

    def save(self, folder: Path, lines: list[dict[str, Any]], settings: dict[str, Any]) -> None:
        """`folder`/checkpoint-<round>, with the history's lines and the run's settings, put in place in one step; the last two
        stay.

        Raises:
            OutputError: a path that cannot be written.
        """
        save_state(folder, self.round, {"state": self.kept(), "lines": lines, "settings": settings}, keep=2)

    def load(self, checkpoint: Path, settings: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        """Back to exactly where `save` was; the lines. settings: those of this run after so many rounds.

        Raises:
            StoreError: a file that is damaged, of another task, or of other settings.
        """
        try:
            found = read_state(checkpoint)
            check_same(found.get("settings", {}), settings(found["state"]["counts"][0]))
            self.restore(found["state"])
            lines: list[dict[str, Any]] = found["lines"]
            return lines
        except Exception as error:
            raise StoreError(f"{checkpoint}: cannot be resumed ({error}); delete it to start again") from error
