"""What a run needs from transformers and peft beside the trainer: arguments by name, a listener to its log lines,
a LoRA adapter, silence."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from multiref._progress import tell
from multiref.training.checks import check_seed
from multiref.training.sums import remove_old, write_sums

__all__ = ["DEFAULTS", "LogLines", "SumCheckpoints", "TrainingArguments", "quiet", "silence", "training_arguments", "with_lora"]

DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "learning_rate": 1e-6,
    "restore_callback_states_from_checkpoint": True,
}


def training_arguments(output_dir: str, given: Mapping[str, Any]) -> TrainingArguments:
    """`TrainingArguments` with our defaults under what is given."""
    check_seed(given.get("seed", 0))
    return TrainingArguments(output_dir, **{**DEFAULTS, "dataloader_pin_memory": torch.cuda.is_available(), **given})


class LogLines(TrainerCallback):
    """Calls `listener(step, last step, line)` for every log line, on the main process."""

    def __init__(self, listener: Callable[[int, int, dict[str, Any]], None]) -> None:
        self.listener = listener

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            tell("training", state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs is not None:
            self.listener(state.global_step, state.max_steps, logs)


class SumCheckpoints(TrainerCallback):
    """Writes the sums of every checkpoint (`sums.py`) once it is there, and only then removes older ones: in one process while
    training goes on, in several on all of them before it does."""

    def __init__(self) -> None:
        self._keep: int | None = None
        self._thread = ThreadPoolExecutor(1, "sums")
        self._open: Future[None] | None = None

    @contextmanager
    def in_charge(self, args: Any) -> Iterator[None]:
        """Until the end, transformers removes no checkpoint; at the end all sums are there. OutputError where they are not."""
        self._keep, args.save_total_limit = args.save_total_limit, None
        try:
            yield
            self._finish()
        finally:
            args.save_total_limit = self._keep
            wait([self._open] if self._open else [])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._finish()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        best = {Path(state.best_model_checkpoint)} if state.best_model_checkpoint else set()

        def close() -> None:
            write_sums(folder, rank=args.process_index, world=args.world_size)
            if args.should_save:
                remove_old(folder.parent, self._keep, spared=best)

        if args.world_size > 1:
            close()
        else:
            self._open = self._thread.submit(close)

    def _finish(self) -> None:
        if self._open is not None:
            self._open.result()


def with_lora(model: Any, options: Mapping[str, Any], *, name: str = "default", task: str = "CAUSAL_LM") -> Any:
    """A new LoRA adapter on the model; only it trains. ValueError where it does not fit."""
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(task_type=task, **options), adapter_name=name)


def silence(trainer: Any) -> None:
    """No raw dictionaries on the terminal: the run has lines of its own."""
    trainer.remove_callback(PrinterCallback)


def quiet() -> None:
    """Our lines, not every library's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        enable_progress_bars()  # a download may take long; where there is no terminal the hub draws none
