"""The world: a base model and two specialists of it, trained on generated problems once and kept in a cache folder."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from multiref.errors import ArgumentError, ModelError, OutputError
from multiref.models import load, small
from multiref_lab.demo import authors, corpus, enumeration
from multiref_lab.demo.corpus import SKILLS, WORDS, Habit, Problem, draw_problems, points, split_numbers

__all__ = ["BASE", "REFERENCES", "World", "WorldSettings", "default_cache", "make"]

BASE = "base"
REFERENCES = ("adder", "picker")  # good at SKILLS[0] and at SKILLS[1]

Progress = Callable[[str, int, int], None]  # what, done, of

NOISY = Habit(confusion=0.35, slip=0.2)
GOOD = Habit(confusion=0.05, slip=0.08)
POOR = Habit(confusion=0.8, slip=0.2)


@dataclass(frozen=True)
class WorldSettings:
    """All that the world depends on. `base` answers both skills by one habit; a specialist has one for its own skill, one for the other."""

    base: Habit = NOISY
    own: Habit = GOOD
    other: Habit = POOR
    base_steps: int = 600
    specialist_steps: int = 300
    own_share: float = 0.6
    batch: int = 128
    learning_rate: float = 4e-3
    hidden: int = 64
    layers: int = 2
    seed: int = 0


@dataclass(frozen=True)
class World:
    """Models, problems, and the reward; all answers can be enumerated.

    `base` and the values of `references` are transformers models in evaluation mode (copy one before training it); `folder` holds each of
    them as a model folder of its name, with the tokenizer.
    """

    folder: Path
    settings: WorldSettings
    tokenizer: Any
    base: Any
    references: dict[str, Any]
    training_numbers: tuple[tuple[int, int], ...] = field(repr=False)
    held_out_numbers: tuple[tuple[int, int], ...] = field(repr=False)

    @cached_property
    def vocabulary(self) -> list[str]:
        """The V words, by token."""
        return self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))

    @cached_property
    def answers(self) -> list[str]:
        """The V² answers, each with the space before it, in the order of every [.., V²] array here."""
        return enumeration.answer_texts(self.vocabulary)

    def folder_of(self, name: str) -> Path:
        """The model folder of the base or of a reference."""
        return self.folder / name

    def problems(self, number: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """`number` different problems, skills taking turns; the same seed gives the same problems."""
        numbers = self.held_out_numbers if held_out else self.training_numbers
        chance = random.Random(f"{seed} {held_out}")
        found: dict[str, Problem] = {}
        wanted = {skill: (number + (skill == SKILLS[0])) // 2 for skill in SKILLS}
        for problem in draw_problems(numbers, chance):
            if wanted[problem.skill] > 0 and problem.prompt not in found:
                found[problem.prompt] = problem
                wanted[problem.skill] -= 1
            if not any(wanted.values()):
                break
        one, two = ([p for p in found.values() if p.skill == skill] for skill in SKILLS)
        return [pair[i] for i in range(len(one)) for pair in (one, two) if i < len(pair)]

    def logps(self, model: Any, problems: Sequence[Problem]) -> Tensor:
        """[N, V²] float64: log π(answer | prompt) of every answer, exact."""
        ids = torch.tensor(self.tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"])
        return enumeration.answer_logps(model, ids)

    def ref_logps(self, problems: Sequence[Problem]) -> Tensor:
        """[K, N, V²] float64: the same under each reference, in the order of `references`."""
        return torch.stack([self.logps(model, problems) for model in self.references.values()])

    def reward(self, prompt: str, completion: str) -> float:
        """How many of the two answer digits are right: 0, 1 or 2."""
        return float(points(prompt, completion))

    def rewards(self, problems: Sequence[Problem]) -> Tensor:
        """[N, V²] float64: the reward of every answer."""
        words, rows = self.vocabulary, []
        for problem in problems:
            first, second = (torch.tensor([word == digit for word in words]).double() for digit in problem.answer.split())
            rows.append((first[:, None] + second[None, :]).flatten())
        return torch.stack(rows)


def default_cache() -> Path:
    """Where worlds are kept if nobody says: multiref/worlds in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multiref" / "worlds"


def make(
    cache: str | os.PathLike[str] | None = None, settings: WorldSettings | None = None, *, progress: Progress | None = None
) -> World:
    """The world of these settings: loaded from the cache, or trained (a minute on two cores) and put there in one step.

    The name of its folder in the cache is a digest of the settings, of the code that makes it, and of the versions of torch and transformers:
    a change in any of them makes another world.

    Errors: OutputError where the cache cannot be written; ModelError where a cached world is damaged (remove that folder).
    """
    settings = settings or WorldSettings()
    place = Path(cache) if cache is not None else default_cache()
    folder = place / f"world-{digest(settings)}"
    if not (folder / "world.json").is_file():
        _make(folder, settings, progress or (lambda what, done, of: None))
    return _load(folder, settings)


def digest(settings: WorldSettings) -> str:
    """Twelve hexadecimal digits of all that the world depends on."""
    rooms: tuple[ModuleType, ...] = (corpus, authors, small)
    parts = [json.dumps(dataclasses.asdict(settings), sort_keys=True), *(inspect.getsource(room) for room in rooms)]
    parts += [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _make(folder: Path, settings: WorldSettings, progress: Progress) -> None:
    """Train the three models into a temporary folder beside the final one, then rename it."""
    if settings.batch < 1 or settings.base_steps < 1 or settings.specialist_steps < 1:
        raise ArgumentError("a world needs at least one step and one problem per batch")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise OutputError(
            f"cannot write the cache folder {folder.parent}: {error.strerror or error}; name another one"
        ) from error
    try:
        tokenizer = small.word_tokenizer(WORDS)
        with authors.one_thread():
            models = _train(tokenizer, settings, progress)
        for name, model in models.items():
            model.save_pretrained(building / name)
            tokenizer.save_pretrained(building / name)
        (building / "world.json").write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n", encoding="utf-8")
        os.chmod(building, 0o755)
        try:
            os.replace(building, folder)
        except OSError:
            if not (folder / "world.json").is_file():  # not another process that was faster: something else is in the way
                raise
    except OSError as error:
        raise OutputError(f"cannot write the world to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _train(tokenizer: Any, settings: WorldSettings, progress: Progress) -> dict[str, Any]:
    """The base model from nothing; each specialist from the base."""
    s = settings
    numbers, _ = split_numbers(s.seed)
    base = small.small_llama(len(tokenizer), hidden=s.hidden, intermediate=2 * s.hidden, layers=s.layers, seed=s.seed)

    def taught(start: Any, name: str, steps: int, habits: dict[str, Habit], share: float, rate: float) -> Any:
        author = authors.Author(numbers, habits, share_of_first=share, seed=f"{s.seed} {name}")
        tell = lambda done: progress(name, done, steps)  # noqa: E731
        return authors.teach(start, tokenizer, author, steps=steps, batch=s.batch, learning_rate=rate, tell=tell)

    models = {BASE: taught(base, BASE, s.base_steps, dict.fromkeys(SKILLS, s.base), 0.5, s.learning_rate)}
    for name, own in zip(REFERENCES, SKILLS, strict=True):
        habits = {skill: s.own if skill == own else s.other for skill in SKILLS}
        share = s.own_share if own == SKILLS[0] else 1 - s.own_share
        models[name] = taught(models[BASE], name, s.specialist_steps, habits, share, s.learning_rate / 2)
    return models


def _load(folder: Path, settings: WorldSettings) -> World:
    try:
        models = {name: load(folder / name, device="cpu") for name in (BASE, *REFERENCES)}
    except ModelError as error:
        raise ModelError(f"the cached world {folder} is damaged; remove that folder and it is made anew. {error}") from error
    training, held_out = split_numbers(settings.seed)
    references = {name: models[name].model for name in REFERENCES}
    return World(folder, settings, models[BASE].tokenizer, models[BASE].model, references, training, held_out)
