"""`task: preference`: a policy from preference pairs, under stored scores of K references."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from multiref.data import Pair
from multiref.data.spooled import Joined
from multiref.models import context_of, load
from multiref.references import References, SequenceScores
from multiref.references.identity import say_of_templates
from multiref.references.local import LocalReference
from multiref.runs.base import Facts, PooledRun, Say
from multiref.runs.folder import RunFolder
from multiref.runs.objectives import ObjectiveSetting, WeightingSetting, weigh
from multiref.runs.pairs import CURVES, PairsRun, TrainerJob, lines
from multiref.runs.waiting import main_first
from multiref.training.arguments import TrainingArguments, with_lora
from multiref.training.dataset import PreferenceData
from multiref.training.preference import PreferenceTrainer
from multiref.training.renormalised import renormalised_scores


class PreferenceRun(PairsRun, PooledRun):
    """A policy from preference pairs. What a file without `task` asks for.

    objective: preference (the regularizer's implicit reward), multi_dpo, mrpo, renormalised_tokens (the token mixture).
    weighting: a strategy that chooses the weights (otherwise they are the references', or uniform):
    see docs/choose-beta-and-weights.md. store: of scores; by default in the run's folder.
    token_budget: rows × longest row of one forward pass.
    """

    MOVED: ClassVar = {**PairsRun.MOVED, "scores": "it is called store now, as the command line's --store."}

    task: Literal["preference"] = "preference"
    beta: float = Field(gt=0)
    objective: ObjectiveSetting = Field(default="preference", validate_default=True)
    weighting: WeightingSetting | None = None
    store: str | None = None
    token_budget: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.weighting is not None and self.weights is not None:
            raise ValueError(
                f"weighting: {self.weighting.kind} chooses the weights, and references have weights of their own; "
                "remove one or the other."
            )
        self.objective.of(self)
        kind = "uniform" if self.weighting is None else self.weighting.kind
        if self.evaluation is None and kind not in ("uniform", "arwc", "sliding_window"):
            raise ValueError(f"weighting: {kind} looks at held-out pairs; set `evaluation`.")
        if self.objective.kind == "renormalised_tokens" and any(each.tokenisation is not None for each in self.references):
            raise ValueError("references: tokenisation: renormalised_tokens reads all of them under the run's; leave it out.")
        return self

    def job(self, folder: RunFolder, arguments: TrainingArguments, say: Say) -> TrainerJob:
        sides = self.read(folder, say)
        self.say_memory(say)
        loaded = load(self.model)
        tokenisation = self.tokenisation.within(context_of(loaded.model.config))
        policy, words = self.adapted(loaded, with_lora), loaded.tokenizer.get_vocab()
        train, held_out = (self.fitting(pairs, loaded.tokenizer, tokenisation, say) for pairs in sides)
        settled = self.settled(folder, say)
        opened = References({each.name: each.opens() for each in settled}, tokenisation=tokenisation)
        for name, held in zip(opened.names, map(opened.open, opened.names)):  # a prompt that fills a context cannot be scored
            if isinstance(held, LocalReference) and (held.tokenisation, held.vocabulary) != (tokenisation, words):
                sides = train, held_out
                own = (held.tokenizer, held.tokenisation, say, f" under {name}")
                train, held_out = (self.fitting(pairs, *own) for pairs in sides)
        store = Path(self.store) if self.store else folder.path / "scores"
        with main_first(f"scoring {folder.path.resolve()}"):
            number = len(train) + len(held_out)
            say(f"Scoring {number:,} pairs under {self.counted}, or reading what is stored in {store}.")
            scores = opened.score(Joined(train, held_out), store=store)
        tokenizers = {"the policy": loaded.tokenizer} | {n: getattr(opened.open(n), "tokenizer", None) for n in opened.names}
        if (differing := say_of_templates(tokenizers, (pair.prompt for pair in train))) is not None:
            say(differing)
        train, held_out = (self._untruncated(pairs, scores, say) for pairs in (train, held_out))
        if self.objective.kind == "renormalised_tokens":
            models = [load(each.local("renormalised_tokens needs models here")) for each in settled]
            scores = renormalised_scores(models, self.weights, [*train, *held_out], tokenisation=tokenisation)
        data = PreferenceData(train, scores, loaded.tokenizer, tokenisation=tokenisation)
        evaluation = PreferenceData(held_out, scores, loaded.tokenizer, tokenisation=tokenisation) if held_out else None
        objective, strategy = weigh(self.weighting, self.objective.of(self).objective, evaluation)
        trainer = PreferenceTrainer(
            policy,
            objective,
            args=arguments,
            train_dataset=data,
            eval_dataset=evaluation,
            processing_class=loaded.tokenizer,
            strategy=strategy,
            token_budget=self.token_budget,
            callbacks=[lines(folder, say)],
        )
        say(f"{len(data):,} pairs, {len(held_out):,} held out; references: {', '.join(scores.names)}.")
        return TrainerJob(trainer, lambda: self._facts(folder, scores.names, len(data), len(held_out)))

    def _untruncated(self, pairs: Sequence[Pair], scores: SequenceScores, say: Say) -> Sequence[Pair]:
        """Pairs whose texts every reference saw whole."""
        if not pairs or self.too_long == "keep":
            return pairs
        cut = scores.cut[torch.from_numpy(scores.pair_columns(pairs))].any(-1)
        return self.kept(pairs, (~cut).numpy(), "longer than a reference's context", say)

    def _facts(self, folder: RunFolder, scored: tuple[str, ...], pairs: int, held_out: int) -> Facts:
        last = {key: value for line in folder.read_metrics() for key, value in line.items() if key.startswith("weights/")}
        mixture = {name: ("mixture of the references", "") for name in scored if name not in self.names}
        references = {
            each.name: (each.source, f"{last[w]:.4g}" if (w := f"weights/{each.name}") in last else "in the mixture")
            for each in self.references
        }
        _, words, formula = self.objective.of(self)
        return Facts(
            asked=f"{self.model.path} aligned against {self.counted}",
            base=self.model.path,
            objective=words,
            formula=formula,
            data=self.data_words(pairs, held_out, folder),
            held_out=held_out,
            beta=self.beta,
            references=references | mixture,
            curves={**CURVES, "log-ratio to each reference (nats per completion)": ("kl/*",)},
            limits=(
                "kl/<reference> is the average of log π − log π_k on the pairs' completions: "
                "a KL only where these are samples of the policy.",
                "Accuracies are of implicit rewards on pairs, not of generated text.",
            ),
        )
