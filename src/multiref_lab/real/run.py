"""The stages, from a model to the evaluation, each kept on disk and not done again; what came out as `Findings`."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from multiref.data import read_pairs
from multiref.errors import DataError, OutputError
from multiref.evaluation import Inspection, inspect, read_rollouts, sample_rewards
from multiref.evaluation.inspection import write_page
from multiref.models import Generation, LanguageModel, ModelSpec, load, load_tokenizer
from multiref.references import References
from multiref.report import write_whole
from multiref.runs import run as do_run
from multiref.training import quiet
from multiref.training.online import Reward
from multiref_lab.cached import made_beside
from multiref_lab.experiment import Experiment, Listener, read_kept, write_kept
from multiref_lab.real.measuring import Measured, grade, load_merged, measure_kls
from multiref_lab.real.model import smollm2
from multiref_lab.real.problems import KINDS, REWARD, Problem, correct, draw_problems, pair_up, text_of
from multiref_lab.real.settings import BASE, EXACT, ONLINE, REFERENCES, RULES, SINGLE, SPECIALISTS, RealSettings
from multiref_lab.real.teaching import LORA, teach

REWARDS = [Reward(correct, "correctness")]
_NOBODY: Any = SimpleNamespace(phase=lambda sentence: None, progress=lambda what, done, of: None)  # a worker's listener


@dataclass(frozen=True)
class Trial:
    """One policy that was trained: under which rule, β and seed."""

    rule: str
    beta: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.rule.replace(' ', '-').replace(chr(39), '')}-beta{self.beta:g}-seed{self.seed}"


@dataclass(frozen=True)
class Findings:
    """All that the page shows. `pairs`: how many, by seed; `given`: base and specialists, which are the same for all seeds."""

    settings: RealSettings
    model: str
    pairs: dict[int, int]
    inspections: dict[int, Inspection]
    given: dict[str, Measured]
    trained: dict[Trial, Measured]
    seconds: dict[str, float]


def run(
    settings: RealSettings, output: Path, model: str | None, cache: Path | None, told: Listener, *, workers: int = 1
) -> Findings:
    """Everything from a model's name to `Findings`; finished stages in `output` are reused, an unfinished one goes on.

    workers: processes that train and judge the policies, each on one thread.
    Errors: OutputError for a folder of other settings, or that cannot be written; ModelError, DataError as of the stages.
    """
    quiet()
    return _Stages(settings, output.resolve(), model, told, cache, workers).all()


@dataclass(frozen=True)
class MadePolicy:
    """A trial → the seconds of training and of evaluation. What it leaves is in the run's folder."""

    settings: RealSettings
    output: Path
    model: str
    told: Listener | None

    def __call__(self, trial: Trial) -> dict[str, float]:
        quiet()
        stages = _Stages(self.settings, self.output, self.model, self.told or _NOBODY)
        began = time.perf_counter()
        stages.train(trial)
        trained = time.perf_counter()
        stages.judge(trial)
        return {"seconds/train": round(trained - began, 1), "seconds/evaluate": round(time.perf_counter() - trained, 1)}


@dataclass(eq=False)
class _Stages:
    settings: RealSettings
    output: Path
    asked: str | None
    told: Listener
    cache: Path | None = None
    workers: int = 1

    def all(self) -> Findings:
        self._claim()
        s, stage = self.settings, self._stage
        stage("model", getattr, self, "start")
        stage("warm up", self._teach, BASE, self.start, [s.warm] * len(KINDS))
        for name in SPECIALISTS:
            stage(f"teach {name}", self._teach, name, str(self.output / BASE), s.lesson(name))
        given = {name: stage(f"evaluate {name}", self._evaluate, name, self._spec(name)) for name in REFERENCES}
        pairs: dict[int, int] = {}
        inspections: dict[int, Inspection] = {}
        for seed in s.seeds:
            stage(f"draw pairs, seed {seed}", self._draw_pairs, seed)
            pairs[seed] = len(read_pairs(self._pairs(seed)))
            inspections[seed] = stage(f"score and inspect, seed {seed}", self._inspect, seed)
        trials: list[Trial] = []
        for rule, beta, seed in product(s.rules, s.betas, s.seeds):  # the first rule on every seed comes first
            single = next((step.name for step in inspections[seed].steps), BASE)  # too few pairs to tell: the base
            trials.append(Trial(single if rule == SINGLE else rule, beta, seed))
        make = MadePolicy(s, self.output, self.start, self.told if self.workers == 1 else None)
        found = Experiment(self.output / "policies", trials, make, given=lambda trial: dataclasses.asdict(s))
        seconds = {trial: made.found for trial, made in found.run(self.told, workers=self.workers, what="policies").items()}
        taken = {
            f"{what.removeprefix('seconds/')} {trial.name}": each
            for trial, parts in seconds.items()
            for what, each in parts.items()
        }
        trained = {trial: self.judge(trial) for trial in trials}
        return Findings(
            s, self.start, pairs, inspections, given, trained, (read_kept(self.output / "stages.json") or {}) | taken
        )

    # ---- the stages ----

    def _teach(self, name: str, start: str, counts: Sequence[int]) -> None:
        """The base: a whole model, the adapter merged; a specialist: an adapter on the base."""
        s = self.settings
        if (self.output / name / "tokenizer_config.json").exists():
            return
        loaded = load(start)
        problems = draw_problems(counts, f"taught {name}", chat=self.chat, without=self.held_out)
        tell = partial(self.told.progress, f"teaching {name}")
        made = teach(loaded, problems, batch=4, learning_rate=s.sft_rate, seed=0, tell=tell)
        made = made.merge_and_unload() if name == BASE else made
        with made_beside(self.output / name) as building:
            made.save_pretrained(building)
            loaded.tokenizer.save_pretrained(building)

    def _draw_pairs(self, seed: int) -> None:
        s, problems = self.settings, self._training(seed)
        if self._pairs(seed).exists():
            return
        store = self.output / "draws" / f"training-seed{seed}.jsonl"
        self._sample(load(self._spec(BASE)), problems, store, samples=s.draws, temperature=1.0, seed=seed)
        said = [[(text_of(text), ended) for text, ended in zip(each.completions, each.ended)] for each in read_rollouts(store)]
        pairs = pair_up(problems, said, most=s.most)
        if len(pairs) < 2:
            raise DataError(
                f"The base's {len(problems) * s.draws} answers to {len(problems)} questions make {len(pairs)} pairs of a right "
                "and a wrong one; expected at least 2. It is right on all or on none of them: give another --model."
            )
        rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
        write_whole(self._pairs(seed), "".join(json.dumps(row) + "\n" for row in rows))

    def _inspect(self, seed: int) -> Inspection:
        pairs = read_pairs(self._pairs(seed))
        scores = References(self._references()).score(pairs, store=self.output / "scores")
        found = inspect(pairs, scores, seed=seed)
        write_page(self.output / f"inspect-seed{seed}.html", found, data=self._pairs(seed).name, store="scores")
        return found

    def judge(self, trial: Trial) -> Measured:
        """A policy that was trained, on its share of the questions."""
        return self._evaluate(trial.name, ModelSpec(str(self.output / "runs" / trial.name / "model")), trial)

    def train(self, trial: Trial) -> None:
        """`multiref train` on a file, which is kept beside the runs."""
        alone = trial.rule if trial.rule in REFERENCES else None
        settings = {
            "model": str(self.output / BASE),
            "lora": LORA,
            "references": [
                {"name": name, "model": dataclasses.asdict(spec) | {"allow_keys": []}}
                for name, spec in self._references().items()
                if alone in (None, name)
            ],
            "regularizer": RULES[EXACT if alone else trial.rule],
            "beta": trial.beta,
            "output": str(self.output / "runs" / trial.name),
            "title": trial.name,
            **(self._online(trial.seed) if trial.rule == ONLINE else self._offline(trial.seed)),
        }
        file = self.output / "runs" / f"{trial.name}.yaml"
        write_whole(file, yaml.safe_dump(settings, sort_keys=False))
        do_run(file, say=lambda text: self.told.phase(f"  {text}"))

    def _offline(self, seed: int) -> dict[str, Any]:
        s = self.settings
        training = {
            "per_device_train_batch_size": s.pairs_per_step,
            "num_train_epochs": s.epochs,
            "learning_rate": s.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,
            "logging_steps": 1,
            "save_steps": 10,
            "seed": seed,
        }
        return {"data": str(self._pairs(seed)), "store": str(self.output / "scores"), "training": training}

    def _online(self, seed: int) -> dict[str, Any]:
        """The same questions, and our own code as the reward."""
        s, prompts = self.settings, self.output / f"questions-seed{seed}.jsonl"
        rows = [json.dumps({"prompt": problem.prompt}) for problem in self._training(seed)]
        write_whole(prompts, "".join(f"{row}\n" for row in rows))
        training = {
            "steps": s.steps,
            "prompts_per_step": s.prompts_per_step,
            "max_new_tokens": s.max_new_tokens,
            "learning_rate": s.online_rate,
            "schedule": "cosine",
            "warmup": 0.1,
            "save_every": 2,
            "seed": seed,
        }
        return {
            "task": "online",
            "prompts": [str(prompts)],
            "rewards": [REWARD],
            "method": {"name": "rloo", "group": s.group},
            "training": training,
        }

    def _evaluate(self, name: str, spec: ModelSpec, trial: Trial | None = None) -> Measured:
        """Sampled answers: of the base one for each seed, of a specialist to a few questions. Greedy ones where asked for."""
        s, alone = self.settings, name in SPECIALISTS
        asked = s.few if alone else s.held_out if trial is None or trial.rule == EXACT else s.compared
        places, priced = s.places(asked), s.places(s.few)
        problems = [self.held_out[place] for place in places]
        greedy, sampled = (self.output / "draws" / f"{name}-{how}.jsonl" for how in ("greedy", "sampled"))
        kept = self.output / "draws" / f"{name}-kl.json"
        if not kept.exists():
            policy = load_merged(spec)
            samples = len(s.seeds) if name == BASE else 1
            seed = 1000 if trial is None else 1001 + trial.seed
            self._sample(policy, problems, sampled, samples=samples, temperature=1.0, seed=seed)
            if s.greedy and not alone:
                self._sample(policy, problems, greedy, temperature=0.0, seed=0)
            some = [rollout for place, rollout in zip(places, read_rollouts(sampled)) if place in priced]
            others = {each: partial(load_merged, under) for each, under in self._references().items() if each != name}
            kls = measure_kls(policy, others, some)
            write_whole(kept, json.dumps({each: kl.tolist() for each, kl in kls.items()}))
        rollouts, kls = read_rollouts(sampled), json.loads(kept.read_text(encoding="utf-8"))
        return Measured(
            torch.tensor(places),
            tuple(problem.kind for problem in problems),
            grade(problems, read_rollouts(greedy)) if s.greedy and not alone else None,
            grade(problems, rollouts),
            torch.tensor([sum(each.ended) / len(each.ended) for each in rollouts], dtype=torch.float64),
            torch.tensor([sum(map(len, r.completion_ids)) / len(r.ended) for r in rollouts], dtype=torch.float64),
            {each: torch.tensor(kls.get(each, [0.0] * len(priced)), dtype=torch.float64) for each in REFERENCES},
        )

    # ---- what they share ----

    @cached_property
    def start(self) -> str:
        """The model that everything begins with."""
        return self.asked or str(smollm2(self.cache, at_once=self.workers))

    @cached_property
    def chat(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.start)

    @cached_property
    def held_out(self) -> list[Problem]:
        each = self.settings.held_out // len(KINDS)
        return draw_problems([each] * len(KINDS), "held out", chat=self.chat)

    def _training(self, seed: int) -> list[Problem]:
        each = self.settings.questions // len(KINDS)
        return draw_problems([each] * len(KINDS), f"training {seed}", chat=self.chat, without=self.held_out)

    def _sample(
        self,
        policy: LanguageModel,
        problems: Sequence[Problem],
        store: Path,
        *,
        temperature: float,
        seed: int,
        samples: int = 1,
    ) -> None:
        """Answers to the problems into the store. What it holds is not drawn again."""
        sample_rewards(
            policy,
            [{"prompt": problem.prompt} for problem in problems],
            REWARDS,
            Generation(self.settings.max_new_tokens, temperature=temperature),
            samples=samples,
            seed=seed,
            block=max(1, 64 // samples),
            store=store,
            say=lambda text: self.told.progress(store.stem, int(text.split("/")[0]), len(problems)),
        )

    def _references(self) -> dict[str, ModelSpec]:
        return {name: self._spec(name) for name in REFERENCES}

    def _spec(self, name: str) -> ModelSpec:
        base = str(self.output / BASE)
        return ModelSpec(base, adapter=None if name == BASE else str(self.output / name))

    def _pairs(self, seed: int) -> Path:
        return self.output / f"pairs-seed{seed}.jsonl"

    def _claim(self) -> None:
        """The folder is this run's own, or of one with the same settings. OutputError for another."""
        told = json.dumps({"model": self.asked, **dataclasses.asdict(self.settings)}, indent=1)
        place = self.output / "settings.json"
        if place.exists() and place.read_text(encoding="utf-8", errors="replace") != told:
            raise OutputError(f"{self.output} holds a run with other settings; choose another --output, or remove it.")
        write_whole(place, told)

    def _stage(self, name: str, make: Callable[..., Any], *given: Any) -> Any:
        """Do it, and add its seconds to those of earlier calls."""
        began = time.perf_counter()
        try:
            return make(*given)
        finally:
            seconds = read_kept(self.output / "stages.json") or {}
            seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - began, 1)
            write_kept(self.output / "stages.json", seconds)
            self.told.phase(f"{name}: {seconds[name]:.0f} s")
