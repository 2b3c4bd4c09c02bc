"""A training run from its settings: data, scores, trainer, model, report. The same call again goes on where a killed one stopped."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from multiref.runs.config import nearest
from multiref.runs.folder import RunFolder
from multiref.runs.running import carry_out
from multiref.errors import ConfigError, MultirefWarning
from multiref.runs.settings import Evaluation, Run, plain, spec_of, tokenisation_of

__all__ = ["execute"]


def execute(run: Run, *, say: Any = print) -> Path:
    """Do the run; returns its folder. Finished already: says so and does nothing."""
    from multiref.runs.objective import checked

    arguments = _arguments(run)
    checked(run)
    return carry_out(
        run.output,
        plain(run),
        arguments,
        prepare=lambda folder, say: _prepare(run, folder, arguments, say),
        finish=lambda folder, trainer, facts, say: _finish(run, folder, trainer, facts, say),
        say=say,
    )


def _prepare(run: Run, folder: RunFolder, arguments: Any, say: Any) -> tuple[Any, dict[str, Any]]:
    """The trainer, and what the card and the report need to know."""
    from multiref.runs.objective import weighting_of
    from multiref.training import PreferenceData, PreferenceTrainer
    from multiref.training.arguments import silence

    train, held_out = _read(run)
    policy, tokenizer, max_length = _policy(run)
    train, held_out = (_fitting(run, pairs, tokenizer, max_length, say) for pairs in (train, held_out))
    with arguments.main_process_first(desc="scoring under the references"):
        scores = _scores(run, folder, [*train, *held_out], max_length, say)
    train, held_out = (_untruncated(run, pairs, scores, say) for pairs in (train, held_out))
    objective, scores = _objective(run, scores, [*train, *held_out], max_length)
    ready = partial(PreferenceData, tokenizer=tokenizer, tokenisation=tokenisation_of(run, max_length))
    data = ready(train, scores)
    evaluation = ready(held_out, scores) if held_out else None
    objective, strategy = weighting_of(run, objective, data, evaluation)
    trainer = PreferenceTrainer(
        policy,
        objective,
        args=arguments,
        train_dataset=data,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        strategy=strategy,
        token_budget=run.token_budget,
        callbacks=[_lines(folder, say)],
    )
    silence(trainer)
    say(f"{len(data):,} pairs, {len(held_out):,} held out; references: {', '.join(scores.names)}.")
    return trainer, {"pairs": len(data), "held_out": len(held_out), "names": scores.names, "objective": objective}


def _arguments(run: Run) -> Any:
    from multiref.training.arguments import argument_names, training_arguments

    known = argument_names()
    for key in run.training:
        if key not in known:
            raise ConfigError(f"training.{key}: unknown key of transformers.TrainingArguments{nearest(str(key), known)}.")
    if "output_dir" in run.training:
        raise ConfigError("training.output_dir: the run's folder is `output`; remove this key.")
    given = run.training if run.evaluation is None else {"eval_strategy": "epoch", **run.training}
    try:
        made = training_arguments(str(Path(run.output) / "checkpoints"), given)
    except (TypeError, ValueError, ImportError) as error:
        raise ConfigError(f"training: {error}") from None
    if made.save_strategy == "steps" and made.logging_strategy == "steps" and made.save_steps % made.logging_steps:
        warnings.warn(
            f"training: save_steps {made.save_steps} is no multiple of logging_steps {made.logging_steps}, so the first line after a restart "
            "averages over fewer steps than an uninterrupted run's.",
            MultirefWarning,
            stacklevel=2,
        )
    return made


def _policy(run: Run) -> tuple[Any, Any, int | None]:
    from multiref.models import load
    from multiref.models.encoding import context_of

    spec: Any = run.model
    loaded = load(spec_of(spec))
    policy = loaded.model
    max_length = tokenisation_of(run, run.max_length).within(context_of(policy.config)).max_length
    if run.lora is not None:
        from multiref.training.arguments import with_lora

        try:
            policy = with_lora(policy, dataclasses.asdict(run.lora))
        except ValueError as error:
            raise ConfigError(f"lora: {error}") from None
    elif spec.adapter is not None:
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_("lora_" in name)
    return policy, loaded.tokenizer, max_length


def _read(run: Run) -> tuple[list[Any], list[Any]]:
    """Pairs to train on, and held out."""
    from multiref.data import read_pairs

    source: Any = run.data
    train = read_pairs(source.path, limit=source.limit)
    evaluation: Evaluation | None = run.evaluation  # type: ignore[assignment]
    held_out: list[Any] = []
    if evaluation is not None:
        if (evaluation.path is None) == (evaluation.fraction is None):
            raise ConfigError("evaluation: expected a path or a fraction, one of them.")
        if evaluation.path is not None:
            held_out = read_pairs(evaluation.path, limit=evaluation.limit)
            _warn_of_overlap(train, held_out)
        else:
            train, held_out = _split(train, evaluation.fraction or 0.0, int(run.training.get("seed", 42)))
    return train, held_out


def _split(pairs: list[Any], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """By prompt, so that no prompt is on both sides."""
    if not 0 < fraction < 1:
        raise ConfigError(f"evaluation.fraction: expected a number between 0 and 1, found {fraction}.")
    from multiref.references.scores import content_key

    groups: dict[bytes, list[Any]] = {}
    for pair in pairs:
        groups.setdefault(content_key(pair.prompt, ""), []).append(pair)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    out = set(order[: max(1, round(fraction * len(order)))])
    sides: tuple[list[Any], list[Any]] = ([], [])
    for number, group in enumerate(groups.values()):
        sides[number in out].extend(group)
    if not sides[0]:
        raise ConfigError(f"evaluation.fraction: {fraction} of {len(groups)} prompts leaves nothing to train on; use a file.")
    return sides


def _warn_of_overlap(train: Sequence[Any], held_out: Sequence[Any]) -> None:
    from multiref.references.scores import content_key

    seen = {content_key(p.prompt, side) for p in train for side in (p.chosen, p.rejected)}
    prompts = {content_key(p.prompt, "") for p in train}
    same = sum(any(content_key(p.prompt, side) in seen for side in (p.chosen, p.rejected)) for p in held_out)
    shared = sum(content_key(p.prompt, "") in prompts for p in held_out)
    if same or shared:
        warnings.warn(
            f"evaluation: {same} of {len(held_out)} held-out pairs have a completion that is trained on, and {shared} a prompt that is. "
            "Their figures do not show generalisation.",
            MultirefWarning,
            stacklevel=2,
        )


def _fitting(run: Run, pairs: list[Any], tokenizer: Any, max_length: int | None, say: Any) -> list[Any]:
    """Pairs that the policy's context holds whole; or as `too_long` says."""
    from multiref.models.encoding import encode_many

    if run.too_long not in ("drop", "error", "keep"):
        raise ConfigError(f"too_long: found {run.too_long!r}, expected drop, error or keep.")
    if not pairs or max_length is None or run.too_long == "keep":
        return pairs
    encoded = encode_many(tokenizer, [(p.prompt, (p.chosen, p.rejected)) for p in pairs], tokenisation_of(run, None))
    fits = [len(e.prompt_ids) + max(map(len, e.completions)) <= max_length for e in encoded]
    return _kept(run, pairs, fits, f"longer than {max_length} tokens", say)


def _untruncated(run: Run, pairs: list[Any], scores: Any, say: Any) -> list[Any]:
    """Pairs whose texts every reference saw whole."""
    if not pairs or run.too_long == "keep":
        return pairs
    prompts = [pair.prompt for pair in pairs]
    cut = torch.zeros(len(pairs), dtype=torch.bool)
    for side in ("chosen", "rejected"):
        columns = scores.columns(prompts, [getattr(pair, side) for pair in pairs])
        cut |= scores.truncated[:, torch.from_numpy(columns)].any(0)
    return _kept(run, pairs, (~cut).tolist(), "longer than a reference's context", say)


def _kept(run: Run, pairs: list[Any], fits: list[bool], why: str, say: Any) -> list[Any]:
    if all(fits):
        return pairs
    first = pairs[fits.index(False)].origin
    if run.too_long == "error" or not any(fits):
        raise ConfigError(
            f"max_length: {fits.count(False)} of {len(pairs)} pairs are {why}, the first {first}. Raise max_length, use a model with a longer "
            "context, or set too_long to drop."
        )
    say(f"Left out {fits.count(False):,} of {len(pairs):,} pairs that are {why} (the first: {first}).")
    return [pair for pair, fit in zip(pairs, fits) if fit]


def _scores(run: Run, folder: RunFolder, pairs: list[Any], max_length: int | None, say: Any) -> Any:
    from multiref.references import References

    references = References(
        {reference.name: _opened_with(reference.options()) for reference in run.references},
        tokenisation=tokenisation_of(run, max_length),
    )
    store = Path(run.scores) if run.scores else folder.path / "scores"
    say(f"Scoring {len(pairs):,} pairs under {len(references.names)} references, or reading what is stored in {store}.")
    return references.score(pairs, store=store)


def _opened_with(options: dict[str, Any]) -> Any:
    return options["model"] if set(options) == {"model"} else options


def _objective(run: Run, scores: Any, pairs: list[Any], max_length: int | None) -> tuple[Any, Any]:
    from multiref.runs.objective import objective_of, renormalised

    if run.objective.kind == "renormalised_tokens":  # type: ignore[union-attr]
        return renormalised(run, pairs, max_length)
    return objective_of(run), scores


def _lines(folder: RunFolder, say: Any) -> Any:
    """Every log line into metrics.jsonl, and a short one to the terminal."""
    from multiref.training.arguments import LogLines

    def listen(step: int, last: int, line: dict[str, Any]) -> None:
        folder.append_metrics({"step": step, **line})
        side = "eval_" if any(key.startswith("eval_") for key in line) else ""
        shown = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
        parts = [f"{label} {line[side + key]:.4g}" for key, label in shown.items() if side + key in line]
        if parts:
            say(f"step {step}/{last}  {'held out  ' if side else ''}{'  '.join(parts)}")

    return LogLines(listen)


def _finish(run: Run, folder: RunFolder, trainer: Any, facts: dict[str, Any], say: Any) -> None:
    """The model, its card, and the report."""
    from multiref.runs.page import card, write_report

    trainer.accelerator.wait_for_everyone()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.args.world_size > 1 else None
    if trainer.args.process_index != 0:
        return
    lines = folder.read_metrics()
    model = trainer.accelerator.unwrap_model(trainer.model)

    def save(target: Path) -> None:
        model.save_pretrained(target, state_dict=state)
        trainer.processing_class.save_pretrained(target)
        (target / "README.md").write_text(card(run, facts, lines), encoding="utf-8")

    write_report(run, folder, facts, lines)
    folder.write_model(save)
    say(f"Model: {folder.model}\nReport: {folder.report}")
