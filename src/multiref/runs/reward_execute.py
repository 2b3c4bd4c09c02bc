"""A reward model's run from its settings: data, trainer, model, card, report. The same call again goes on where a killed one stopped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from multiref.runs.execute import _arguments, _fitting, _lines, _read
from multiref.runs.folder import RunFolder
from multiref.runs.page import _final
from multiref.runs.reward_settings import RewardRun
from multiref.runs.running import carry_out
from multiref.runs.settings import spec_of, tokenisation_of
from multiref.errors import ConfigError

__all__ = ["run_reward"]

FORMULA = "−(1 − ε) log σ(d) − ε log σ(−d) + c (r_w + r_l)²,  d = r(x, y_w) − r(x, y_l) − margin"
LIMITS = (
    "A reward is defined up to a constant for each prompt: compare completions of one prompt, not prompts.",
    "Accuracy and calibration are of the pairs' labels, on pairs like these; a policy trained on the reward leaves their distribution.",
)


def run_reward(run: RewardRun, *, say: Callable[[str], None] = print) -> Path:
    """Do the run; returns its folder. Finished already: says so and does nothing."""
    arguments = _arguments(run)  # type: ignore[arg-type]
    return carry_out(
        run.output,
        run.plain(),
        arguments,
        prepare=lambda folder, say: (_trainer(run, folder, arguments, say), None),
        finish=lambda folder, trainer, _, say: _finish(run, folder, trainer, say),
        say=say,
    )


def _trainer(run: RewardRun, folder: RunFolder, arguments: Any, say: Callable[[str], None]) -> Any:
    from multiref.training.arguments import silence
    from multiref.training.reward import RewardData, RewardTrainer, open_reward_model

    spec: Any = run.model
    train, held_out = _read(run)  # type: ignore[arg-type]
    loaded = open_reward_model(spec_of(spec))
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    limits = [limit for limit in (run.max_length, context) if limit is not None]
    max_length = min(limits) if limits else None
    model = loaded.model if run.lora is None else _with_lora(loaded.model, run.lora)
    sides = [_fitting(run, pairs, loaded.tokenizer, max_length, say) for pairs in (train, held_out)]  # type: ignore[arg-type]
    ready = [
        RewardData(pairs, loaded.tokenizer, tokenisation=tokenisation_of(run, max_length)) if pairs else None
        for pairs in sides
    ]
    trainer = RewardTrainer(
        model,
        args=arguments,
        train_dataset=ready[0],  # type: ignore[arg-type]
        eval_dataset=ready[1],
        processing_class=loaded.tokenizer,
        label_smoothing=run.label_smoothing,
        centre=run.centre,
        callbacks=[_lines(folder, say)],
    )
    silence(trainer)
    say(f"{len(sides[0]):,} pairs, {len(sides[1]):,} held out.")
    return trainer


def _with_lora(model: Any, lora: Any) -> Any:
    from multiref.training.reward.model import with_lora

    try:
        return with_lora(model, dataclasses.asdict(lora))
    except ValueError as error:
        raise ConfigError(f"lora: {error}") from None


def _finish(run: RewardRun, folder: RunFolder, trainer: Any, say: Callable[[str], None]) -> None:
    """The last evaluation, the model, its card, and the report."""
    held_out = trainer.eval_dataset is not None
    if held_out:
        trainer.evaluate()
    trainer.accelerator.wait_for_everyone()
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.args.world_size > 1 else None
    if trainer.args.process_index != 0:
        return
    lines = folder.read_metrics()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if run.lora is not None:
        model = model.merge_and_unload()

    def save(target: Path) -> None:
        model.save_pretrained(target, state_dict=state if run.lora is None else None)
        trainer.processing_class.save_pretrained(target)
        (target / "README.md").write_text(_card(run, len(trainer.train_dataset), lines, trainer.reliability), encoding="utf-8")

    if held_out:
        folder.write("calibration.json", json.dumps(dataclasses.asdict(trainer.reliability), indent=1))
    _report(run, folder, lines, trainer.reliability)
    folder.write_model(save)
    say(f"Reward model: {folder.model}\nReport: {folder.report}")


def _card(run: RewardRun, pairs: int, lines: Sequence[dict[str, Any]], reliability: Any) -> str:
    from multiref.report import ModelCard

    spec: Any = run.model
    data: Any = run.data
    text = ModelCard(
        title=run.title or f"Reward model from {spec.path}",
        base_model=str(spec.path),
        objective="Bradley–Terry maximum likelihood of a scalar reward at the last token",
        formula=FORMULA,
        references={},
        beta=None,
        data=f"{data.path} ({pairs:,} pairs)",
        metrics=_final(lines),
        settings=run.plain(),
        limits=LIMITS,
    ).markdown()
    return text if reliability is None else f"{text}\n## Calibration on held-out pairs\n\n```\n{reliability}\n```\n"


def _report(run: RewardRun, folder: RunFolder, lines: Sequence[dict[str, Any]], reliability: Any) -> None:
    from multiref.report import Formula, Note, Prose, Section, Settings, Table, versions, write_page

    spec: Any = run.model
    data: Any = run.data
    outcome: list[Any] = [Table(("metric", "last value"), [[name, f"{value:.4g}"] for name, value in _final(lines).items()])]
    if reliability is not None:
        rows = [[f"{b.confidence:.3f}", f"{b.accuracy:.3f}", f"{b.count:g}"] for b in reliability.bins]
        outcome += [
            Prose(f"Expected calibration error on held-out pairs: {reliability.error:.4f}."),
            Table(("confidence", "share right", "pairs"), rows),
        ]
    write_page(
        folder.report,
        run.title or "A reward model",
        Section("What was asked", [Prose(f"A reward model from {spec.path} on {data.path}."), Formula(FORMULA)]),
        Section("What came out", [*outcome, Note(*LIMITS)]),
        Section("Settings", [Settings(run.plain())]),
        Section("Versions", [Settings(versions())]),
    )
