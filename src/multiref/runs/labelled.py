"""`task: labels` in a run's file: labels are bought as training goes, by a method (bilevel, or an iterative peer), from an oracle, within a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from multiref.runs.settings import Lora, Reference
from multiref.errors import ConfigError, DataError

__all__ = ["LabelledRun", "execute_labelled", "is_labelled"]


@dataclass
class LabelledRun:
    """A run that buys labels.

    `prompts`: a .jsonl with `prompt` or `text` a line, of which the first `prompt_words` words are taken. `oracle`: {kind: lexicon, path, temperature},
    {kind: reward_model, path, temperature} or {kind: exchange, folder, wait}. `method`: {name, options…}, see `multiref.training.iterative.METHODS`. `labels`:
    cumulative counts at the ends of rounds, or {each, rounds} for rounds of equally many. `plan`: what `multiref.training.iterative.Plan` takes besides. `lora`: None trains all parameters.
    """

    task: str
    model: str
    references: list[Reference]
    beta: float
    prompts: str
    oracle: dict
    method: dict
    labels: list | dict
    output: str
    plan: dict = field(default_factory=dict)
    lora: Lora | None = None
    regularizer: str | dict = "ReverseKL"
    prompt_words: int = 12
    limit: int = 64
    max_new_tokens: int = 24
    held_out: int = 128


def is_labelled(config: Mapping[str, Any]) -> bool:
    """Whether a run's file asks for this."""
    return config.get("task") == "labels"


def execute_labelled(config: Mapping[str, Any], where: str, *, say: Callable[[str], None] = print) -> Path:
    """Do the run, or go on with it; returns its folder: config.yaml, state.safetensors, history.jsonl, model/, report.html."""
    from multiref.runs.config import build
    from multiref.runs.folder import RunFolder
    from multiref.runs.labelled_page import write_report
    from multiref.training.arguments import quiet
    from multiref.training.iterative import Plan, method_named, save_policy, train

    run: LabelledRun = build(LabelledRun, config, where)
    quiet()
    run.labels = _counts(run.labels)
    options = dict(run.method)
    method = method_named(str(options.pop("name", "")), **options)
    try:
        plan = Plan(labels=run.labels, **run.plan)
    except TypeError as error:
        raise ConfigError(f"plan: {error}; see multiref.training.iterative.Plan") from None
    task = _task(run, seed=plan.seed)  # before the folder is claimed: a mistake leaves nothing behind
    folder = RunFolder(run.output)
    folder.claim(asdict(run))
    say(f"{method.name}: {run.labels[-1]} labels over {len(run.labels)} rounds, {len(run.references)} references")
    state, history = train(task, method, plan, folder=folder.path, listener=lambda line: say(_progress(line, run.labels[-1])))
    folder.write_model(lambda path: save_policy(state.policy, path))
    write_report(folder.report, history, asdict(run))
    say(f"Report: {folder.report}")
    return folder.path


def _counts(labels: Any) -> list[int]:
    """Cumulative counts at the ends of rounds."""
    if isinstance(labels, list):
        return labels
    each, rounds = labels.get("each"), labels.get("rounds")
    if set(labels) != {"each", "rounds"} or not all(isinstance(n, int) and n > 0 for n in (each, rounds)):
        raise ConfigError(f"labels: found {labels!r}, expected growing cumulative counts, or {{each: 64, rounds: 16}}")
    return [each * (k + 1) for k in range(rounds)]


def _progress(line: Mapping[str, Any], total: int) -> str:
    """One line a round: what was bought, how long it took, what was measured."""
    values = {key: value[0] for key, value in line.items() if isinstance(value, list) and "standard error" not in key}
    said = [f"{key} {value:.3g}" for key, value in values.items()]
    return "  ".join([f"{line['labels']}/{total} labels", f"{line['wall']:.0f} s", *said])


def _task(run: LabelledRun, *, seed: int) -> Any:
    from multiref.runs.objective import regularizer_of, weights_of
    from multiref.models import ModelSpec, load
    from multiref.training.iterative import text_task

    prompts, asked = _prompts(run), cast(Any, run)
    regularizer = regularizer_of(asked, weights_of(asked))
    make_oracle, hidden = _oracle(run)
    return text_task(
        load(run.model),
        {each.name: load(ModelSpec(**_opened(each))) for each in run.references},
        regularizer,
        beta=run.beta,
        prompts=prompts,
        oracle=make_oracle,
        max_new_tokens=run.max_new_tokens,
        lora=None if run.lora is None else asdict(run.lora),
        hidden=hidden,
        held_out=run.held_out,
        seed=seed,
    )


def _opened(reference: Reference) -> dict[str, Any]:
    options = reference.options()
    if "endpoint" in options:
        raise ConfigError(
            f"references: {reference.name!r} is an endpoint; a run that buys labels scores its references here, give a model"
        )
    options.pop("tokenisation", None)
    return {("path" if key == "model" else key): value for key, value in options.items()}


def _prompts(run: LabelledRun) -> list[str]:
    texts: list[str] = []
    try:
        lines = Path(run.prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{run.prompts}: cannot be read ({error}); expected a .jsonl of prompts") from None
    for row, line in enumerate(lines[: run.limit], start=1):
        try:
            value = json.loads(line)
            text = value["prompt"] if "prompt" in value else value["text"]
            words = text.split()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                f"{run.prompts}:{row}: found {line[:60]!r}, expected a JSON object with `prompt` or `text`"
            ) from None
        texts.append(" ".join(words[: run.prompt_words]))
    return texts


def _oracle(run: LabelledRun) -> tuple[Callable[[Any], Any], Any]:
    """What makes the oracle, and the hidden reward where there is one (to be reported, never shown to the method)."""
    from multiref.training.iterative import HumanLabels, RewardOracle

    options = dict(run.oracle)
    kind = options.pop("kind", None)
    known = {"lexicon": {"path", "temperature"}, "reward_model": {"path", "temperature"}, "exchange": {"folder", "wait"}}
    if kind not in known:
        raise ConfigError(f"oracle.kind: found {kind!r}, expected lexicon, reward_model or exchange")
    needed = "folder" if kind == "exchange" else "path"
    if set(options) - known[kind] or needed not in options:
        raise ConfigError(
            f"oracle: found {sorted(options)} for kind {kind}, expected {needed} and at most {sorted(known[kind])}"
        )
    if kind == "exchange":
        return lambda world: HumanLabels(options["folder"], world.decode, wait=float(options.get("wait", 0))), None
    reward: Any
    if kind == "lexicon":
        from multiref.training.online import lexicon_reward

        reward = lexicon_reward(options["path"])
    else:
        from multiref.training.online import RewardModel

        reward = RewardModel(options["path"])
    return lambda world: RewardOracle(reward, world.decode, temperature=float(options.get("temperature", 1.0))), reward
