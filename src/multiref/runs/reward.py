"""`task: reward`: a reward model from preference pairs, checked for calibration on held-out ones."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from multiref.models import context_of
from multiref.report import Prose, Table
from multiref.runs.base import Facts, Say
from multiref.runs.folder import RunFolder
from multiref.runs.pairs import CURVES, PairsRun, TrainerJob, lines
from multiref.training.arguments import TrainingArguments
from multiref.training.reward import RewardData, RewardTrainer, open_reward_model
from multiref.training.reward.model import with_lora


class RewardRun(PairsRun):
    """A reward model from preference pairs.

    model: a causal language model (its head is replaced by one number) or a reward model to go on with.
    data: pairs; a `margin` column is used.
    label_smoothing: share of labels taken to be wrong. centre: c of c (r_w + r_l)², which keeps rewards around zero.
    lora: train an adapter, merged into the model at the end.
    """

    task: Literal["reward"]
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    centre: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.privacy is not None and self.label_smoothing:
            raise ValueError("privacy: found label_smoothing beside it, which does not correct flipped labels; leave it out.")
        for name in ("adapter", "quantization"):
            if getattr(self.model, name) or (name == "adapter" and (Path(self.model.path) / "adapter_config.json").is_file()):
                raise ValueError(
                    f"model: {name}: a reward model is made from whole weights; merge the adapter first, or leave {name} out."
                )
        return self

    def job(self, folder: RunFolder, arguments: TrainingArguments, say: Say) -> TrainerJob:
        self.say_memory(say)
        loaded = open_reward_model(self.model)
        tokenisation = self.tokenisation.within(context_of(loaded.model.config))
        train, held_out = (self.fitting(pairs, loaded.tokenizer, tokenisation, say) for pairs in self.read(folder, say))
        ready = partial(RewardData, tokenizer=loaded.tokenizer, tokenisation=tokenisation)
        trainer = RewardTrainer(
            self.adapted(loaded, with_lora),
            args=arguments,
            train_dataset=ready(train),
            eval_dataset=ready(held_out) if held_out else None,
            processing_class=loaded.tokenizer,
            label_smoothing=self.label_smoothing,
            privacy=None if self.privacy is None else self.privacy.epsilon,
            centre=self.centre,
            callbacks=[lines(folder, say)],
        )
        say(f"{len(train):,} pairs, {len(held_out):,} held out.")
        return RewardJob(trainer, lambda: self._facts(folder, trainer, len(train), len(held_out)), merge=self.lora is not None)

    def _facts(self, folder: RunFolder, trainer: Any, pairs: int, held_out: int) -> Facts:
        found = trainer.reliability
        facts = Facts(
            asked=f"Reward model from {self.model.path}",
            base=self.model.path,
            objective="Bradley–Terry maximum likelihood of a scalar reward at the last token",
            formula="−log(α σ(d) + (1 − α) σ(−d)) + c (r_w + r_l)²,  d = r(x, y_w) − r(x, y_l) − margin"
            if self.privacy is not None
            else "−(1 − ε) log σ(d) − ε log σ(−d) + c (r_w + r_l)²,  d = r(x, y_w) − r(x, y_l) − margin",
            data=self.data_words(pairs, held_out, folder),
            held_out=held_out,
            curves=CURVES,
            limits=(
                "A reward is defined up to a constant for each prompt: compare completions of one prompt, not prompts.",
                "Accuracy and calibration are of the pairs' labels, on pairs like these; "
                "a policy trained on the reward leaves their distribution.",
            ),
        )
        if found is not None:
            folder.write("calibration.json", json.dumps(asdict(found), indent=1))
            rows = [[f"{b.confidence:.3f}", f"{b.accuracy:.3f}", f"{b.count:g}"] for b in found.bins]
            facts.tables += [
                Prose(f"Expected calibration error on held-out pairs: {found.error:.4f}."),
                Table(("confidence", "share right", "pairs"), rows),
            ]
            facts.notes = f"## Calibration on held-out pairs\n\n```\n{found}\n```\n"
        return facts


class RewardJob(TrainerJob):
    """With an adapter merged into what is written, and an evaluation of that at the end."""

    rewards = True

    def __init__(self, trainer: Any, facts: Callable[[], Facts], *, merge: bool) -> None:
        super().__init__(trainer, facts)
        self.merge = merge

    def conclude(self) -> None:
        if self.merge:  # first: in half precision what is merged, and written, is another model
            self.trainer.model_wrapped = self.trainer.model = self.model.merge_and_unload()
        if self.trainer.eval_dataset is not None:
            self.trainer.evaluate()
