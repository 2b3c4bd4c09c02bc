"""An online run from its settings: prompts, rewards, trainer, figures before and after, model. The same call again goes on where a killed one stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from multiref.runs.prompts import rows_of
from multiref.runs.rewards import made_rewards
from multiref.runs.settings_online import OnlineEvaluation, OnlineRun
from multiref.runs.settings import spec_of
from multiref.runs.config import build, nearest
from multiref.runs.folder import RunFolder
from multiref.errors import ConfigError

__all__ = ["execute_online", "is_online"]


def is_online(config: Mapping[str, Any]) -> bool:
    """Whether a run's file is one of these: it names its task."""
    return "task" in config


def execute_online(config: Mapping[str, Any], where: str, *, say: Callable[[str], None] = print) -> Path:
    """Do the run; returns its folder: config.yaml, metrics.jsonl, checkpoints/, evaluation.json, model/."""
    run: OnlineRun = build(OnlineRun, config, where)
    folder = RunFolder(run.output)
    parts, held_out = _parts(run), _held_out(run)  # before the folder is claimed: a mistake leaves nothing behind
    began = folder.claim(run.plain())
    if folder.finished:
        say(f"{folder.path} holds a finished run; nothing to do.")
        return folder.path
    trainer, listen = _trainer(run, parts, folder, say)
    say(trainer.describe())
    figures: dict[str, Any] = _figures(folder)
    floors: dict[str, Any] = {}
    if run.evaluation is not None and "before" not in figures:
        figures["before"] = _evaluated(run, run.evaluation, held_out, trainer, say, "before", floors)
        folder.write("evaluation.json", json.dumps(figures, indent=1))
    if began:
        from multiref.training.checkpoint import last_checkpoint

        checkpoint = last_checkpoint(folder.checkpoints)
        step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        folder.keep_metrics_until(step)
        say(f"Going on from step {step}.")
    trainer.train(folder=folder.checkpoints, resume=began, listener=listen)
    if run.evaluation is not None:
        figures["after"] = _evaluated(run, run.evaluation, held_out, trainer, say, "after", floors)
        folder.write("evaluation.json", json.dumps(figures, indent=1))

    def save(target: Path) -> None:
        trainer.model.save_pretrained(target)
        trainer.tokenizer.save_pretrained(target)

    folder.write_model(save)
    say(f"Model: {folder.model}")
    return folder.path


def _parts(run: OnlineRun) -> dict[str, Any]:
    """The trainer's arguments that need no model."""
    from multiref.training.online import AdaptiveBeta, OnlineArguments

    rows = [row for source in run.prompts for row in rows_of(source, [r.name for r in run.references])]
    return {
        "prompts": rows, "regularizer": _regularizer(run, rows), "args": _made(OnlineArguments, run.training, "training"), "rewards": made_rewards(run.rewards),
        "method": _method(run), "adaptive_beta": _made(AdaptiveBeta, run.adaptive_beta, "adaptive_beta") if run.adaptive_beta else None,
    }  # fmt: skip


def _trainer(run: OnlineRun, parts: dict[str, Any], folder: RunFolder, say: Callable[[str], None]) -> tuple[Any, Any]:
    from multiref.models import LanguageModel, load
    from multiref.references import References
    from multiref.training.online import OnlineTrainer, Rule

    spec: Any = run.model
    loaded = load(spec_of(spec))
    policy = loaded.model if run.start == "model" else _product(run)
    if run.lora is not None:
        from multiref.training.arguments import with_lora

        policy = with_lora(policy, dataclasses.asdict(run.lora))
    if run.too_long == "drop":
        longest = max(parts["args"].max_new_tokens, (run.warm_up and run.warm_up.max_new_tokens) or 0)
        parts["prompts"] = _fitting(parts["prompts"], loaded, longest, say)
    say(f"{len(parts['prompts']):,} prompts; references: {', '.join(r.name for r in run.references)}.")

    def listen(step: int, line: dict[str, float]) -> None:
        folder.append_metrics(line)
        shown = {
            "reward": "reward",
            "divergence/per_token": "divergence per token",
            "kl": "kl",
            "objective": "objective",
            "ess": "ess",
        }
        say(
            f"step {step}/{trainer.args.steps}  "
            + "  ".join(f"{label} {line[key]:.4g}" for key, label in shown.items() if key in line)
        )

    rule = Rule(
        parts["method"], run.penalty, parts["adaptive_beta"], _sampler(run, parts, folder), _warm_up(run, parts)
    )
    references = References({r.name: r.options() for r in run.references}, dtype=spec.dtype)
    trainer = OnlineTrainer(
        LanguageModel(policy, loaded.tokenizer, spec.path), beta=run.beta, references=references, rule=rule,
        **{key: value for key, value in parts.items() if key not in ("method", "adaptive_beta")},
    )  # fmt: skip
    return trainer, listen


def _product(run: OnlineRun) -> Any:
    from multiref.models import ModelSpec, load, product_of

    spec: Any = run.model
    if any(r.model is None or r.adapter is not None or r.quantization is not None for r in run.references):
        raise ConfigError("start: product needs references that are model folders, without adapters or quantization.")
    weights = [r.weight for r in run.references]
    models = [
        load(
            ModelSpec(str(r.model), dtype=spec.dtype, revision=r.revision, trust_remote_code=bool(r.trust_remote_code))
        ).model
        for r in run.references
    ]
    return product_of(models, None if weights[0] is None else weights)


def _fitting(rows: list[dict[str, Any]], loaded: Any, new_tokens: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    from multiref.training.online.rollout import prompt_ids

    context = getattr(loaded.model.config, "max_position_embeddings", None)
    if context is None:
        return rows
    fits = [len(ids) + new_tokens <= context for ids in prompt_ids(loaded.tokenizer, [row["prompt"] for row in rows])]
    if not any(fits):
        raise ConfigError(
            f"max_new_tokens: no prompt leaves room for {new_tokens} new tokens in a context of {context}. Make it smaller."
        )
    if not all(fits):
        say(
            f"Left out {fits.count(False):,} of {len(fits):,} prompts that leave no room for {new_tokens} new tokens in a context of {context}."
        )
    return [row for row, fit in zip(rows, fits) if fit]


def _sampler(run: OnlineRun, parts: dict[str, Any], folder: RunFolder) -> Any:
    if run.server is not None:
        from multiref.training.online import AdapterPush, ServerSampler

        s = run.server
        return ServerSampler(
            s.endpoint, group=parts["method"].group, max_new_tokens=parts["args"].max_new_tokens, push=AdapterPush(folder.path.resolve() / "served"), every=s.every,
            concurrency=s.concurrency, timeout=s.timeout,
        )  # fmt: skip
    return _states(parts, run.text_share, None) if run.text_share else None


def _warm_up(run: OnlineRun, parts: dict[str, Any]) -> Any:
    if run.warm_up is None:
        return None
    from multiref.training.online import WarmUp

    return WarmUp(run.warm_up.share, _states(parts, run.warm_up.text_share, run.warm_up.max_new_tokens), run.warm_up.penalty)


def _states(parts: dict[str, Any], share: float, limit: int | None) -> Any:
    """States along the texts of the prompts, for a share of them."""
    from multiref.training.online import TextStates

    texts: dict[Any, list[str]] = {}
    for row in parts["prompts"]:
        if row.get("text") and isinstance(row["prompt"], str):
            texts.setdefault(row["prompt"], []).append(row["text"])
    if not texts:
        raise ConfigError(
            "prompts: warm_up and text_share need texts that follow the prompts: kind gsm8k with style plain, or `words`."
        )
    unfinished = {row["prompt"] for row in parts["prompts"] if row.get("unfinished")}
    return TextStates(texts, share=share, max_new_tokens=limit or parts["args"].max_new_tokens, unfinished=unfinished)


def _regularizer(run: OnlineRun, rows: list[dict[str, Any]]) -> Any:
    import multiref as mr

    options = dict(run.regularizer)  # type: ignore[arg-type]
    kind = str(options.pop("kind", "ReverseKL"))
    kinds: dict[str, type[mr.Regularizer]] = {
        "ReverseKL": mr.ReverseKL, "ForwardKL": mr.ForwardKL, "AlphaDivergence": mr.AlphaDivergence, "PooledKL": mr.PooledKL,
    }  # fmt: skip
    if kind not in kinds:
        raise ConfigError(f"regularizer.kind: found {kind!r}{nearest(kind, kinds)}.")
    given = [reference.weight for reference in run.references]
    if any(w is not None for w in given) and any(w is None for w in given):
        raise ConfigError("references: weights for all of them or for none.")
    routed = any("weights" in row for row in rows)
    if routed and given[0] is not None:
        raise ConfigError("prompts.weights: expected weights of the references or of the prompts, found both.")
    return _made(
        kinds[kind],
        {**options, "weights": None if given[0] is None else [float(w) for w in given if w is not None]},
        "regularizer",
    )


def _method(run: OnlineRun) -> Any:
    from multiref.training.online import GRPO, RLOO, Reinforce

    options = dict(run.method)
    name = str(options.pop("name", "rloo")).lower()
    kinds: dict[str, Any] = {"rloo": RLOO, "grpo": GRPO, "reinforce": Reinforce}
    if name not in kinds:
        raise ConfigError(f"method.name: found {name!r}{nearest(name, kinds)}.")
    return _made(kinds[name], options, "method")


def _made(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    known = {field.name for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key}: unknown key{nearest(str(key), known)}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}.") from None


def _figures(folder: RunFolder) -> dict[str, Any]:
    path = folder.path / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _held_out(run: OnlineRun) -> dict[str, list[dict[str, Any]]]:
    """The rows of each source of the evaluation, by its file's name, a second file of the same name as name-2; in distillation those that a text follows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for source in run.evaluation.prompts if run.evaluation is not None else ():
        rows = rows_of(source, [reference.name for reference in run.references])
        rows = [row for row in rows if run.task != "distill" or row.get("text")]
        stem = Path(source.path).stem
        name, number = stem, 1
        while name in found:  # a-2.jsonl, a.jsonl and another a.jsonl are three
            number += 1
            name = f"{stem}-{number}"
        found[name] = rows
        if not rows:
            raise ConfigError(f"evaluation: {source.path} has no text that follows a prompt; set words: to split its texts.")
    return found


def _evaluated(
    run: OnlineRun,
    setting: OnlineEvaluation,
    held_out: Mapping[str, list[dict[str, Any]]],
    trainer: Any,
    say: Callable[[str], None],
    when: str,
    known: dict[str, Any],
) -> dict[str, Any]:
    """The figures; `known`: the floors of each source, which the first call fills in and a second one finds."""
    from multiref.training.online.evaluate import evaluate_online, floor_figures, floors, text_losses

    figures: dict[str, Any] = {}
    if run.task == "distill":
        for name, rows in held_out.items():
            found = text_losses(trainer, rows)
            if setting.floor:
                few = rows[: setting.floor]
                if name not in known:
                    known[name] = floors(trainer, few, particles=setting.particles)
                found |= floor_figures(trainer, few, known[name], samples=setting.samples)
            figures |= {f"{name}/{figure}": value for figure, value in found.items()}
    else:
        rows = [row for each in held_out.values() for row in each]
        figures = evaluate_online(trainer, rows, samples=setting.samples, ks=setting.k)
    say(f"{when}: " + "  ".join(f"{name} {value[0]:.4g} [{value[1]:.4g}, {value[2]:.4g}]" for name, value in figures.items()))
    return figures
