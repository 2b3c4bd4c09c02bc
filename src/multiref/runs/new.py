"""A run file for somebody who has none: commented, and valid before it is written."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from multiref.errors import ConfigError
from multiref.runs.document import Document
from multiref.runs.tasks import Run
from multiref.runs.yaml_values import parse

Task: TypeAlias = Literal["preference", "reward", "online", "distill", "iterative"]
TASKS: tuple[Task, ...] = get_args(Task)
WITH_PAIRS: tuple[Task, ...] = ("preference", "reward")
SCHEMA = "run.schema.json"
_ORACLES = {"lexicon": "lexicon", "model": "reward_model"}  # a reward → the oracle that judges two completions by it

_TRAINING = {
    "pairs": """\
# arguments of transformers' TrainingArguments
training:
  num_train_epochs: 1
  per_device_train_batch_size: 8
  learning_rate: 5.0e-7
  logging_steps: 10
  save_steps: 100
""",
    "prompts": """\
# temperature is always 1: completions are the policy's own
training:
  steps: 200
  prompts_per_step: 8
  max_new_tokens: 128
  learning_rate: 1.0e-6
""",
    "iterative": """\
# labels are asked for in rounds of `each`; the oracle gives them
method: {name: iterative}
labels: {each: 128, rounds: 8}
plan: {steps: 16, prompts: 16, rollouts: 4}
max_new_tokens: 64
""",
}


def new_run(
    task: Task,
    *,
    model: str,
    references: Mapping[str, str],
    data: Mapping[str, object],
    output: str,
    beta: float | None = None,
    reward: Sequence[Mapping[str, object]] = (),
    store: str | None = None,
) -> str:
    """The file's text. What is given beyond what the task reads is an error of the file's, as in any other.

    Args:
        references: name → model; none for a reward model, nor β (0.1). data: keys of `data`, or of one of the `prompts`.
            reward: of online runs the rewards, of iterative ones the oracle. store: of scores that `multiref score` keeps, for
            preference runs.

    Raises: ConfigError for what is missing or cannot be meant.
    """
    _refuse(task, references, reward)
    parts = [f"# yaml-language-server: $schema={SCHEMA}", "# Check it: multiref train --config FILE --dry-run", f"task: {task}"]
    parts += ["", "# what is trained: a folder or a hub id; {path: …, dtype: bfloat16} says more", f"model: {_flow(model)}", ""]
    parts += _held_to(references, 0.1 if beta is None and task != "reward" else beta)
    parts += _data(task, data)
    if store is not None:
        parts += [
            "# where scores of the references are kept: what stands there is not scored again",
            f"store: {_flow(store)}",
            "",
        ]
    if reward and task != "iterative":
        parts += ["rewards:", *(f"  - {_flow(each)}" for each in reward), "method: {name: rloo, group: 4}", ""]
    if reward and task == "iterative":
        parts += [f"oracle: {_flow({**reward[0], 'kind': _ORACLES[str(reward[0]['kind'])], 'temperature': 1.0})}", ""]
    training = "pairs" if task in WITH_PAIRS else "iterative" if task == "iterative" else "prompts"
    parts += [_TRAINING[training].rstrip(), ""]
    parts += ["# train an adapter instead of all weights: remove the mark", "# lora: {r: 8, lora_alpha: 16}"]
    parts += ["", "# the run's folder; the same command goes on where it was interrupted", f"output: {_flow(output)}"]
    text = "\n".join(parts) + "\n"
    values, lines = parse(text, "the new file")
    assert isinstance(values, dict)
    Document(values, "the new file", lines).validate(Run)  # type: ignore[type-abstract]
    return text


def _refuse(task: Task, references: Mapping[str, str], reward: Sequence[Mapping[str, object]]) -> None:
    if task != "reward" and not references:
        raise ConfigError("a run needs at least one reference: --reference NAME=MODEL, once per reference.")
    if task in ("online", "iterative") and not reward:
        raise ConfigError(
            f"task {task} needs a reward: --reward lexicon=FILE or model=FOLDER; or, online, length=WORDS, python=FILE:NAME."
        )
    kinds = [str(each["kind"]) for each in reward]
    if task == "iterative" and (len(kinds) > 1 or kinds[0] not in _ORACLES):
        raise ConfigError(
            f"--reward: found {', '.join(kinds)}; task iterative has one oracle, expected lexicon=FILE or model=FOLDER. A "
            "judge of two completions of your own is written into the file: oracle: {kind: python, path: FILE, name: FUNCTION}."
        )


def _held_to(references: Mapping[str, str], beta: float | None) -> list[str]:
    held = [
        "# what it is held to; give all of them a weight (they sum to one), or none: then they weigh the same",
        "references:",
        *(f"  - {{name: {_flow(name)}, model: {_flow(where)}}}" for name, where in references.items()),
        "",
        "# the divergence: ReverseKL, ForwardKL, {kind: AlphaDivergence, alpha: 0.5}",
        "regularizer: ReverseKL",
    ]
    strength = ["# the strength: small follows the reward, large stays with the references", f"beta: {beta}", ""]
    return (held if references else []) + ([] if beta is None else strength)


def _data(task: Task, data: Mapping[str, object]) -> list[str]:
    if task in WITH_PAIRS:
        held_out = ["# held-out pairs: a share of the prompts, or a path", "evaluation: {fraction: 0.05}"]
        return ["# preference pairs: a file, a folder, a URL or a hub id", f"data: {_flow(data)}", *held_out, ""]
    what = f"[{_flow(data)}]" if task != "iterative" else _flow(data["path"] if len(data) == 1 else data)
    return ["# prompts: rows with `prompt` or `text`, or a .txt", f"prompts: {what}", ""]


def _flow(value: Any) -> str:
    """As YAML in one line: text is quoted where it could be read as anything else."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./-]*", value) and parse(value, "")[0] == value:
        return value
    return json.dumps(value, ensure_ascii=False)
