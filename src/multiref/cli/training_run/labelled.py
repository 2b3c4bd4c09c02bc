"""A run whose labels are bought as it goes: a method (bilevel, or an iterative peer), an oracle, a budget. `method:` in the file is the sign."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from multiref.cli.training_run.folder import RunFolder
from multiref.cli.training_run.settings import Lora, Reference
from multiref.errors import ConfigError, DataError

__all__ = ["LabelledRun", "execute_labelled"]


@dataclass
class LabelledRun:
    """prompts: a .jsonl with `prompt` or `text` a line, `prompt_words` first words of each; oracle: {kind: lexicon, path, temperature},
    {kind: exchange, folder, wait} or {kind: reward_model, path, temperature}; method: {name, options…}; labels: cumulative counts at the ends of rounds;
    plan: what `multiref.training.bilevel.Plan` takes besides."""

    model: str
    references: list[Reference]
    beta: float
    prompts: str
    oracle: dict
    method: dict
    labels: list
    output: str
    plan: dict = field(default_factory=dict)
    lora: Lora | None = None
    regularizer: str = "ReverseKL"
    prompt_words: int = 12
    limit: int = 64
    max_new_tokens: int = 24
    held_out: int = 128


def execute_labelled(run: LabelledRun, *, say: Callable[[str], None]) -> Path:
    """Do the run, or go on with it; returns its folder."""
    from multiref.training.bilevel import Plan, method_named, train

    folder = RunFolder(run.output)
    folder.claim(asdict(run))
    options = dict(run.method)
    method = method_named(str(options.pop("name", "")), **options)
    try:
        plan = Plan(labels=run.labels, **run.plan)
    except TypeError as error:
        raise ConfigError(f"plan: {error}; see multiref.training.bilevel.Plan") from None
    task, judge = _task(run)
    say(f"{method.name}: {run.labels[-1]} labels over {len(run.labels)} rounds, {len(run.references)} references")
    state, history = train(task, method, plan, folder=folder.path)
    model: Any = state.policy.model  # type: ignore[attr-defined]
    if run.lora is not None:
        model.set_adapter(state.policy.adapter)  # type: ignore[attr-defined]
        model.save_pretrained(folder.model, selected_adapters=[state.policy.adapter])  # type: ignore[attr-defined]
    else:
        model.save_pretrained(folder.model)
    task.policy.world.tokenizer.save_pretrained(folder.model)  # type: ignore[attr-defined]
    _report(run, folder, history, judge)
    say(f"Report: {folder.report}")
    return folder.path


def _prompts(run: LabelledRun) -> list[str]:
    texts = []
    for row, line in enumerate(Path(run.prompts).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            value = json.loads(line)
            text = value.get("prompt") or value["text"]
        except (ValueError, KeyError, AttributeError):
            raise DataError(f"{run.prompts}:{row}: expected a JSON object with `prompt` or `text`") from None
        texts.append(" ".join(text.split()[: run.prompt_words]))
        if len(texts) == run.limit:
            break
    return texts


def _oracle(run: LabelledRun, world: Any) -> tuple[Any, Any]:
    """The oracle, and the hidden reward where there is one (to be reported, never shown to the method)."""
    from multiref.training.bilevel import Exchange, RewardOracle
    from multiref.training.bilevel.lexicon import lexicon_reward

    kind = run.oracle.get("kind")
    if kind == "exchange":
        return Exchange(run.oracle["folder"], world.decode, wait=float(run.oracle.get("wait", 0))), None
    if kind == "lexicon":
        reward: Any = lexicon_reward(run.oracle["path"])
    elif kind == "reward_model":
        from multiref.training.online.rewards import RewardModel

        reward = RewardModel(run.oracle["path"])
    else:
        raise ConfigError(f"oracle.kind: found {kind!r}, expected lexicon, reward_model or exchange")
    return RewardOracle(reward, world.decode, temperature=float(run.oracle.get("temperature", 1.0))), reward


def _task(run: LabelledRun) -> tuple[Any, Any]:
    import copy

    import torch

    import multiref
    from multiref.models import load
    from multiref.training.bilevel.task import Task
    from multiref.training.bilevel.text import TextPolicy, TextReward, TextWorld, references

    base = load(run.model)
    world = TextWorld(_prompts(run), base.tokenizer, max_new_tokens=run.max_new_tokens)
    frozen = [load(**{("path_or_id" if k == "model" else k): v for k, v in each.options().items()}) for each in run.references]
    weights = [each.weight for each in run.references]
    regularizer = getattr(multiref, run.regularizer)(None if None in weights else tuple(weights))
    if run.lora is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(base.model, LoraConfig(task_type="CAUSAL_LM", **asdict(run.lora)), adapter_name="start")
        policy = TextPolicy(world, model, adapter="start")
    else:
        policy = TextPolicy(world, base.model)
    ref_logps = references(world, [each.model for each in frozen], [each.tokenizer for each in frozen])
    everyone = torch.arange(len(world.prompts))
    calibration = (everyone, policy.sample(everyone, 2, torch.Generator().manual_seed(0)))
    reward_model = TextReward(world, copy.deepcopy(frozen[0].model), calibration)
    oracle, hidden = _oracle(run, world)
    return Task(
        len(world.prompts),
        policy,
        ref_logps,
        regularizer,
        run.beta,
        oracle,
        reward_model,
        _measure(run, world, ref_logps, hidden, everyone),
    ), hidden


def _measure(run: LabelledRun, world: Any, ref_logps: Any, hidden: Any, everyone: Any) -> Any:
    """Estimates on fresh rollouts: the KL to each reference, and where the reward is known its mean and the true objective."""
    import torch

    def measure(state: Any) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        n = max(1, run.held_out // len(everyone))
        y = state.policy.sample(everyone, n, generator)
        with torch.no_grad():
            logps, refs = state.policy.logps(everyone, y), ref_logps(everyone, y)
        names = [each.name for each in run.references]
        found = {f"kl/{name}": (logps - ref).mean() for name, ref in zip(names, refs)}
        if hidden is not None:
            prompts, texts = world.decode(everyone.repeat_interleave(n), y.flatten(0, 1))
            found["hidden reward"] = torch.tensor(hidden(prompts, texts)).mean()
            weights = [each.weight if each.weight is not None else 1 / len(names) for each in run.references]
            found["true objective"] = found["hidden reward"] - run.beta * sum(
                w * found[f"kl/{name}"] for w, name in zip(weights, names)
            )
        return found

    return measure


def _report(run: LabelledRun, folder: RunFolder, history: Any, hidden: Any) -> None:
    from multiref.report import Picture, Prose, Section, Settings, write_page
    from multiref.report.figures import Series, curves, svg

    names = [name for name, value in history.lines[-1].items() if isinstance(value, list)] + [
        "upper loss",
        "loss",
        "reward loss",
        "hypergradient norm",
    ]
    pictures = []
    for name in names:
        labels, values = history.series(name)
        if labels:
            shown = [value if isinstance(value, list) else [value] for value in values]
            figure = curves([Series(history.method, labels, shown)], x="labels", y=name)
            pictures.append(Picture(svg(figure), alt=f"{name} over labels", caption=name))
    last = history.lines[-1]
    write_page(
        folder.report,
        f"{history.method}: {last['labels']} labels",
        Section(
            "What was asked",
            [
                Prose(
                    f"{history.method} at β = {run.beta:g} against {len(run.references)} references; {last['wall']:.0f} s of training."
                )
            ],
        ),
        Section("What came out", pictures),
        Section("Settings", [Settings(asdict(run))]),
    )
