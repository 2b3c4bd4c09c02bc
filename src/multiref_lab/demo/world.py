"""The world: a base model and two specialists of it, trained on generated problems once and kept in a cache folder."""

import dataclasses
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multiref.data import Pair
from multiref.errors import ArgumentError, ModelError
from multiref.models import Generation, Reader, Tokenisation, load, word_tokenizer
from multiref.references import References, SequenceScores
from multiref.training import PreferenceData
from multiref_lab.cached import cache_folder, made_beside
from multiref_lab.demo.authors import BASE, REFERENCES, WorldSettings, train_models
from multiref_lab.demo.corpus import SKILLS, WORDS, Problem, draw_problems, points, split_numbers
from multiref_lab.experiment import digest, one_thread

BARE = Tokenisation(end=False)  # an answer is two words, nothing after them
Progress = Callable[[str, int, int], None]  # what, done, of


@dataclass(frozen=True)
class World:
    """Models, problems, and the reward; all answers can be enumerated.

    `base` and the values of `references` are transformers models in evaluation mode (copy one before training it);
    `folder` holds each of them as a model folder of its name, with the tokenizer.
    """

    folder: Path
    settings: WorldSettings
    tokenizer: PreTrainedTokenizerBase
    base: PreTrainedModel
    references: dict[str, PreTrainedModel]

    @cached_property
    def vocabulary(self) -> list[str]:
        """The V words, by token."""
        return list(self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer)))))

    @cached_property
    def answers(self) -> list[str]:
        """The V² answers, each with the space before it, in the order of every [.., V²] array here."""
        return [f" {first} {second}" for first in self.vocabulary for second in self.vocabulary]

    @property
    def reference_folders(self) -> dict[str, str]:
        """Each reference as a model folder."""
        return {name: str(self.folder / name) for name in self.references}

    def problems(self, number: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """`number` different problems, skills taking turns; the same seed gives the same problems."""
        numbers = split_numbers(self.settings.seed)[held_out]
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

    def logps(self, model: PreTrainedModel, problems: Sequence[Problem]) -> Tensor:
        """[N, V²] float64: log π(answer | prompt) of every answer, exact."""
        ids = torch.tensor(self.tokenizer([p.prompt for p in problems], add_special_tokens=False)["input_ids"])
        return answer_logps(model, ids)

    def ref_logps(self, problems: Sequence[Problem]) -> Tensor:
        """[K, N, V²] float64: the same under each reference, in the order of `references`."""
        return torch.stack([self.logps(model, problems) for model in self.references.values()])

    def reward(self, prompt: str, completion: str) -> float:
        """How many of the two answer digits are right: 0, 1 or 2."""
        return float(points(prompt, completion))

    def rewards(self, problems: Sequence[Problem]) -> Tensor:
        """[N, V²] float64: the reward of every answer."""
        digits = [problem.answer.split() for problem in problems]
        right = torch.tensor([[[word == digit for word in self.vocabulary] for digit in each] for each in digits]).double()
        return torch.flatten(right[:, 0, :, None] + right[:, 1, None, :], 1)

    def data(self, pairs: Sequence[Pair], store: Path | None = None) -> tuple[SequenceScores, PreferenceData]:
        """The pairs with their scores under every reference, for training."""
        scores = References(self.reference_folders, tokenisation=BARE, device="cpu").score(pairs, store=store)
        return scores, PreferenceData(pairs, scores, self.tokenizer, tokenisation=BARE)


def folder_of(settings: WorldSettings, cache: str | os.PathLike[str] | None = None) -> Path:
    """Where a world is kept: named by the settings, by the code that makes its models, and by the versions below.
    A change in any makes another world. Without a cache: multiref/worlds in the user's cache folder."""
    named = digest(dataclasses.asdict(settings), "multiref_lab.demo.authors")
    return (cache_folder("worlds") if cache is None else Path(cache)) / f"world-{named}"


def make(
    cache: str | os.PathLike[str] | None = None,
    settings: WorldSettings | None = None,
    *,
    progress: Progress = lambda what, done, of: None,
) -> World:
    """The world of these settings: loaded from the cache, or trained (a minute on two cores) and put there in one step.

    Errors: OutputError where the cache cannot be written; ModelError where a cached world is damaged (remove that folder).
    """
    settings = settings or WorldSettings()
    folder = folder_of(settings, cache)
    if (folder / "world.json").is_file():
        return _load(folder, settings)
    if settings.batch < 1 or settings.base_steps < 1 or settings.specialist_steps < 1:
        raise ArgumentError("a world needs at least one step and one problem per batch")
    with made_beside(folder) as building, one_thread():
        tokenizer = word_tokenizer(WORDS)
        for each, model in train_models(tokenizer, settings, progress).items():
            model.save_pretrained(building / each)
            tokenizer.save_pretrained(building / each)
        (building / "world.json").write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n", encoding="utf-8")
    return _load(folder, settings)


def _load(folder: Path, settings: WorldSettings) -> World:
    try:
        models = {name: load(folder / name, device="cpu") for name in (BASE, *REFERENCES)}
    except ModelError as error:
        raise ModelError(f"the cached world {folder} is damaged; remove that folder and it is made anew. {error}") from error
    references = {name: models[name].model for name in REFERENCES}
    return World(folder, settings, models[BASE].tokenizer, models[BASE].model, references)


@torch.no_grad()
def answer_logps(model: Any, prompt_ids: Tensor) -> Tensor:
    r"""[N, T] prompts of one length → [N, V²] float64: log π(y₁ y₂ | x) of every answer of two tokens, the second of which
    runs fastest.

        log π(y₁ y₂ | x) = log π(y₁ | x) + log π(y₂ | x, y₁)

    The prompt is read once, then each of the V first tokens after it; log-softmax in float64, so that the V² probabilities sum
    to one to rounding.
    """
    training = model.training
    model.eval()
    try:
        return torch.cat([_block(model, block) for block in prompt_ids.split(128)])
    finally:
        model.train(training)


def _block(model: Any, prompt_ids: Tensor) -> Tensor:
    size = model.config.vocab_size
    reader = Reader(model, prompt_ids.tolist(), size, Generation(2), 0)
    first = reader.read_prompts()[::size].double().log_softmax(-1)
    tokens = torch.arange(size, device=prompt_ids.device).repeat(len(first))
    second = reader.read(tokens).double().log_softmax(-1)
    return torch.flatten(first[:, :, None] + second.view(len(first), size, size), 1)
