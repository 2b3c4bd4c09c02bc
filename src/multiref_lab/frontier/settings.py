"""What a sweep is: which rules, which weights, which seeds, on which tasks, trained how. Plain values, as a YAML file holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from multiref.errors import ConfigError
from multiref_lab.demo.authors import WorldSettings

__all__ = ["METHODS", "RULES", "FrontierSettings", "Generated", "Offline", "Online", "Stories", "Task"]

METHODS = ("offline", "online")
RULES = {"offline": ("exact", "mrpo", "multi-dpo"), "online": ("exact", "mrpo", "authors")}


@dataclass(frozen=True)
class Offline:
    """Preference training: `steps` optimizer steps of `pairs_per_step` pairs, AdamW, warm-up of 20 steps, cosine to zero."""

    steps: int = 188
    pairs_per_step: int = 128
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _at_least_one(self, "steps", "pairs_per_step")
        _above_zero(self, "learning_rate")


@dataclass(frozen=True)
class Online:
    """RLOO: `steps` batches of `prompts_per_step` prompts with `group` completions each, out of `prompts` different prompts; the rate falls to zero."""

    steps: int = 150
    prompts: int = 1200
    prompts_per_step: int = 32
    group: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _at_least_one(self, "steps", "prompts", "prompts_per_step")
        _above_zero(self, "learning_rate")
        if self.group < 2:
            raise ConfigError(f"online.group: expected at least 2 completions a prompt, found {self.group}.")


@dataclass(frozen=True)
class Generated:
    """The demo's world: all answers are enumerated, so every number of a policy is exact, on `held_out` prompts.

    betas, pairs: each value of each is swept. scale: reward of a right digit. pairs_per_prompt: of the training set.
    """

    betas: list[float] = field(default_factory=lambda: [2.0])
    pairs: list[int] = field(default_factory=lambda: [24_000])
    pairs_per_prompt: int = 10
    held_out: int = 200
    scale: float = 2.0
    offline: Offline = field(default_factory=Offline)
    online: Online = field(default_factory=Online)
    world: WorldSettings = field(default_factory=WorldSettings)

    def __post_init__(self) -> None:
        _lists(self)
        _at_least_one(self, "pairs_per_prompt", "held_out")
        _above_zero(self, "scale")


@dataclass(frozen=True)
class Stories:
    """Small real language models, a reward from a lexicon, completions of `new_tokens` tokens: everything is estimated from samples.

    policy, references (two), stories, lexicon: paths, relative to the folder of models and data. A prompt is the first `prompt_words` words of a
    story. The untouched policy gives four completions of each training prompt, two pairs, labelled by Bradley–Terry with reward
    scale · Σ valence / √words. A policy is measured on `held_out` prompts, other ones for each seed, with `samples` completions each.
    """

    policy: str
    references: dict[str, str]
    stories: str
    lexicon: str
    betas: list[float] = field(default_factory=lambda: [0.1])
    pairs: list[int] = field(default_factory=lambda: [1_800])
    prompt_words: int = 10
    new_tokens: int = 24
    held_out: int = 64
    samples: int = 16
    scale: float = 2.0
    offline: Offline = field(default_factory=lambda: Offline(56, 32, 3e-4))

    def __post_init__(self) -> None:
        _lists(self)
        _at_least_one(self, "prompt_words", "new_tokens", "held_out", "samples")
        _above_zero(self, "scale")
        if len(self.references) != 2:
            raise ConfigError(f"stories.references: expected two, found {', '.join(self.references) or 'none'}.")


Task = Generated | Stories


@dataclass(frozen=True)
class FrontierSettings:
    """A sweep: rules × weights × seeds on each task that is given. `weights` are α, the weight of the first reference.

    α = 1 and α = 0 are the single references themselves: K = 1 is left, so each is trained once and stands at the end of every curve (but the authors' recipe:
    with one reference it is still another objective, and is trained at its ends too).
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}

    training: str = "offline"
    weights: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    rules: list[str] | None = None
    seeds: int = 5
    generated: Generated | None = None
    stories: Stories | None = None

    def __post_init__(self) -> None:
        if self.training not in METHODS:
            raise ConfigError(f"training: found {self.training!r}, expected offline or online.")
        unknown = [rule for rule in self.rules or () if rule not in RULES[self.training]]
        if unknown:
            raise ConfigError(
                f"rules: found {unknown[0]!r}, expected some of {', '.join(RULES[self.training])} ({self.training} training)."
            )
        if self.rules is not None and "exact" not in self.rules:
            raise ConfigError(f"rules: expected exact among them, against which the others are measured; found {self.rules}.")
        if not self.weights or any(not 0 <= weight <= 1 for weight in self.weights):
            raise ConfigError(f"weights: expected numbers from 0 to 1, found {self.weights}.")
        if len(set(self.weights)) != len(self.weights):
            raise ConfigError(f"weights: found one twice in {self.weights}.")
        _at_least_one(self, "seeds")
        if not self.tasks:
            raise ConfigError(
                "no task: expected `generated:` or `stories:` with their settings (an empty one, {}, is all defaults)."
            )
        if self.stories is not None and self.training == "online":
            raise ConfigError("stories: this task is trained offline only; online runs on `generated`.")

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks that are given, by name."""
        given: dict[str, Task | None] = {"generated": self.generated, "stories": self.stories}
        return {name: task for name, task in given.items() if task is not None}

    @property
    def chosen(self) -> list[str]:
        """The rules, the exact one first."""
        return [rule for rule in RULES[self.training] if self.rules is None or rule in self.rules]


def _lists(task: Task) -> None:
    if not task.betas or any(not beta > 0 for beta in task.betas):
        raise ConfigError(f"betas: expected numbers above zero, found {task.betas}.")
    if not task.pairs or any(pairs < 1 for pairs in task.pairs):
        raise ConfigError(f"pairs: expected whole numbers above zero, found {task.pairs}.")


def _at_least_one(settings: object, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < 1:
            raise ConfigError(f"{name}: expected at least 1, found {getattr(settings, name)}.")


def _above_zero(settings: object, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise ConfigError(f"{name}: expected a number above zero, found {getattr(settings, name)}.")
