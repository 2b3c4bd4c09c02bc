"""`multiref train --config run.yaml`: what a run's file says. The same command again resumes."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from multiref.cli.options import TakeOver


def command(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The run as one YAML file; recipes/ has examples.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Lay a value over the file: --set training.learning_rate=1e-5")
    ] = None,
    take_over: TakeOver = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a run's file, for an editor, and stop.")
    ] = False,
) -> None:
    """Do what a run's file says: preference, reward, online, distillation or iterative training.

    Writes a run folder: config.yaml (resolved), versions.json, metrics.jsonl, model/ (safetensors, tokenizer, model card),
    report.html. Interrupted, the same command goes on exactly where the last checkpoint stands.
    """
    from multiref import runs

    if schema:
        print(json.dumps(runs.schema(), indent=1, ensure_ascii=False))
        return
    if config is None:
        raise typer.BadParameter("expected a run's file, such as --config recipes/two-references.yaml")
    runs.run(config, assignments or (), say=lambda text: print(text, flush=True), take_over=take_over)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _leave()


def _leave() -> None:
    """All is written. In one run of twenty gloo's threads abort a process while its interpreter is being taken down."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
