"""What a sweep is: which rules, which weights, which seeds, on which tasks, trained how.
Plain values, as a YAML file holds them."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from multiref.errors import ConfigError
from multiref_lab.demo import WorldSettings

RULES = {"offline": ("exact", "mrpo", "multi-dpo"), "online": ("exact", "mrpo", "authors")}

STRICT = ConfigDict(strict=True, extra="forbid")
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Several = Annotated[int, Field(ge=2)]
Weight = Annotated[float, Field(ge=0, le=1)]
Betas = Annotated[list[Positive], Field(min_length=1)]
Sizes = Annotated[list[Count], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class Offline:
    """Preference training: `steps` optimizer steps of `pairs_per_step` pairs, AdamW, warm-up of 20 steps, cosine to zero."""

    steps: Count = 188
    pairs_per_step: Count = 128
    learning_rate: Positive = 1e-3

    def arguments(self, seed: int) -> dict[str, Any]:
        """For `TrainingArguments`."""
        length = {"max_steps": self.steps, "warmup_steps": min(20, self.steps // 4)}
        return length | {"per_device_train_batch_size": self.pairs_per_step, "learning_rate": self.learning_rate, "seed": seed}


@dataclass(frozen=True, config=STRICT)
class Online:
    """RLOO: `steps` batches of `prompts_per_step` prompts with `group` completions each, out of `prompts` different prompts;
    the rate falls to zero."""

    steps: Count = 150
    prompts: Count = 1200
    prompts_per_step: Count = 32
    group: Several = 8
    learning_rate: Positive = 1e-3


@dataclass(frozen=True, config=STRICT)
class Generated:
    """The demo's world: all answers are enumerated, so every number of a policy is exact, on `held_out` prompts.

    betas, pairs: each value of each is swept. scale: reward of a right digit. pairs_per_prompt: of the training set.
    """

    betas: Betas = field(default_factory=lambda: [2.0])
    pairs: Sizes = field(default_factory=lambda: [24_000])
    pairs_per_prompt: Count = 10
    held_out: Count = 200
    scale: Positive = 2.0
    offline: Offline = field(default_factory=Offline)
    online: Online = field(default_factory=Online)
    world: WorldSettings = field(default_factory=WorldSettings)


@dataclass(frozen=True, config=STRICT)
class Stories:
    """Small real language models, a reward from a lexicon, completions of `new_tokens` tokens:
    everything is estimated from samples.

    policy, references (two), stories, lexicon: paths, relative to the folder of models and data.
    A prompt is the first `prompt_words` words of a story. The untouched policy gives four completions of each training prompt,
    two pairs, labelled by Bradley–Terry with reward scale · Σ valence / √words.
    A policy is measured on `held_out` prompts, other ones for each seed, with `samples` completions each.
    """

    policy: str
    references: Annotated[dict[str, str], Field(min_length=2, max_length=2)]
    stories: str
    lexicon: str
    betas: Betas = field(default_factory=lambda: [0.1])
    pairs: Sizes = field(default_factory=lambda: [1_800])
    prompt_words: Count = 10
    new_tokens: Count = 24
    held_out: Count = 64
    samples: Count = 16
    scale: Positive = 2.0
    offline: Offline = field(default_factory=lambda: Offline(56, 32, 3e-4))


Task = Generated | Stories


@dataclass(frozen=True, config=STRICT)
class FrontierSettings:
    """A sweep: rules × weights × seeds on each task that is given. `weights` are those of the first reference (α on the page).

    At 1 and 0 are the single references themselves: K = 1 is left, so each is trained once and stands at the end of every curve
    (but the authors' recipe: with one reference it is still another objective, and is trained at its ends too).
    """

    training: Literal["offline", "online"] = "offline"
    weights: Annotated[list[Weight], Field(min_length=1)] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    rules: list[str] | None = None
    seeds: Count = 5
    generated: Generated | None = None
    stories: Stories | None = None

    def __post_init__(self) -> None:
        known = RULES[self.training]
        unknown = [rule for rule in self.rules or () if rule not in known]
        if unknown:
            raise ConfigError(f"rules: found {unknown[0]!r}, expected some of {', '.join(known)} ({self.training} training).")
        if self.rules is not None and "exact" not in self.rules:
            raise ConfigError(f"rules: expected exact among them, against which the others are measured; found {self.rules}.")
        if len(set(self.weights)) != len(self.weights):
            raise ConfigError(f"weights: found one twice in {self.weights}.")
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

    def sizes(self, task: Task) -> list[int]:
        """Numbers of pairs; 0 for online training, which has none."""
        return task.pairs if self.training == "offline" else [0]
