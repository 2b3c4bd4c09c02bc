"""`multiref train`: do what a run's file says: preference, reward, online, distill or iterative."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.cli.options import TakeOver, belong
from multiref.cli.voice import say


def command(
    config: Annotated[Path | None, "--config -c", "The run as one YAML file; recipes/ has examples."] = None,
    assignments: Annotated[list[str] | None, "--set -s", "Lay a value over the file: --set training.learning_rate=1e-5"] = None,
    dry_run: Annotated[
        bool, "--dry-run", "Check file, data, models and vocabularies, estimate memory and time; train nothing."
    ] = False,
    take_over: TakeOver = False,
    schema: Annotated[bool, "--schema", "Print the JSON schema of a run's file, for an editor, and stop."] = False,
) -> dict[str, Any] | None:
    """Do what a run's file says: preference, reward, online, distillation or iterative training.

    Writes a run folder: config.yaml (resolved), versions.json, models.json (what each model was), metrics.jsonl, model/
    (safetensors, tokenizer, model card), report.html. Interrupted, the same command goes on exactly where the last checkpoint
    stands. With report_to: tensorboard in the file, the metrics go there too; with push_to_hub: owner/name, model and card go
    to the hub at the end.

    Example: multiref train --config run.yaml --set beta=0.2 --set output=runs/beta-0.2
    """
    from multiref import runs

    if schema:
        print(json.dumps(runs.schema(), indent=1, ensure_ascii=False))
        return None
    if config is None:
        raise typer.BadParameter("expected a run's file, such as --config recipes/two-references.yaml")
    belong("a run that trains", not dry_run, take_over=take_over)
    if dry_run:
        from multiref.runs.dry_run import dry_run as look

        found = look(runs.read_run(config, assignments or ()))
        say("\n".join(found.lines))
        again = " ".join(f"--set {shlex.quote(each)}" for each in assignments or ())
        return {**found.facts, "next": f"multiref train --config {shlex.quote(str(config))} {again}".strip()}
    folder = runs.run(config, assignments or (), say=say, take_over=take_over)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave()
    settings, made = runs.RunFolder(folder).settings(), shlex.quote(str(folder / "model"))
    before = f"--policy before={shlex.quote(str((settings.get('model') or {}).get('path', '…')))}"
    judge = settings.get("task") == "reward"  # what was trained judges policies
    asked = f"--prompts … --reward model={made}" if judge else f"--policy after={made} --prompts … --reward …"
    return {
        "output": str(folder),
        "model": str(folder / "model"),
        "report": str(folder / "report.html"),
        "next": f"multiref evaluate {before} {asked} --out {shlex.quote(str(folder))}-evaluation",
    }


def _leave() -> None:
    """All is written. In one run of twenty gloo's threads abort a process while its interpreter is being taken down."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
