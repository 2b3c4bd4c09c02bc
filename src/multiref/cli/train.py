"""`multiref train --config run.yaml`: a policy from preference pairs against K references. The same command again resumes."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    config: Annotated[Path, typer.Option("--config", "-c", help="The run as one YAML file; recipes/ has examples.")],
    assignments: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Lay a value over the file: --set training.learning_rate=1e-5")
    ] = None,
) -> None:
    """Train a policy on preference pairs against K references.

    Writes a run folder: config.yaml (resolved), versions.json, metrics.jsonl, model/ (safetensors, tokenizer, model card), report.html.
    Interrupted, the same command goes on exactly where the last checkpoint stands.
    """
    from multiref.runs.config import build, override, read_yaml
    from multiref.runs.execute import execute
    from multiref.runs.execute_online import execute_online, is_online
    from multiref.runs.labelled import execute_labelled, is_labelled
    from multiref.runs.reward import execute_reward, is_reward
    from multiref.runs.settings import Run
    from multiref.training.arguments import quiet

    settings = override(read_yaml(config), assignments or [])
    if is_reward(settings):
        return execute_reward(settings, str(config), say=lambda text: print(text, flush=True))
    if is_labelled(settings):
        execute_labelled(settings, str(config), say=lambda text: print(text, flush=True))
        return
    if is_online(settings):
        quiet()
        execute_online(settings, str(config), say=lambda text: print(text, flush=True))
        return
    run = build(Run, settings, str(config))
    quiet()
    execute(run, say=lambda text: print(text, flush=True))
