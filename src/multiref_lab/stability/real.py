"""The world `features`: prompts from a file, completions that two real models sample, the first one's frozen hidden states,
both models' log-probabilities."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from multiref.errors import DataError
from multiref.report import write_whole
from multiref_lab.hidden_states import hidden_state_features
from multiref_lab.openings import read_openings
from multiref_lab.stability.grid import Axis
from multiref_lab.stability.sample import Given


def read_prompts(path: str | Path, count: int, *, words: int = 8) -> list[str]:
    """The first `words` words of `count` different texts of a file.

    Raises:
        DataError: as `read_openings`; fewer texts.
    """
    found = read_openings(path, words)
    if len(found) < count:
        raise DataError(
            f"{path}: found {len(found)} different prompts, expected at least {count}; give a longer file or use fewer samples."
        )
    return found[:count]


def given_by_models(model: str, reference: str, prompts: Sequence[str], *, seed: int) -> Given:
    """P prompts with 8 completions, half of them sampled by each model → features [P, 8, 48] and ref_logps [2, P, 8].

    Features are the first model's last hidden states at a completion's last token, the 48 principal directions.
    The laws over a prompt's Y candidates are the models' log-probabilities of the whole completions,
    divided by one number that gives them standard deviation one: as they are, a law over eight sampled texts is almost all on
    one of them.
    """
    from multiref.models import load
    from multiref.references import References

    opened = [load(path) for path in (model, reference)]
    texts: list[list[str]] = [[] for _ in prompts]
    for k, one in enumerate(opened):
        for own, sampled in zip(texts, _sampled(one, prompts, 4, seed + k), strict=True):
            own += sampled
    states = hidden_state_features(opened[0].model, opened[0].tokenizer, prompts, texts, dimension=48)
    flat = [(prompt, text) for prompt, own in zip(prompts, texts, strict=True) for text in own]
    scores = References({"first": model, "second": reference}).score(flat)
    logps = scores.of([p for p, _ in flat], [c for _, c in flat]).unflatten(-1, (len(prompts), -1)).double()
    spread = (logps - logps.mean(-1, keepdim=True)).square().mean().sqrt()
    return Given(states, (logps / spread).log_softmax(-1))


def _sampled(one: Any, prompts: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """`count` continuations of each prompt at temperature 1, of 10 tokens, 64 prompts side by side."""
    from multiref.models import Generation, sample

    generation = Generation(10, min_new_tokens=10, batch=64 * count)
    generator = torch.Generator().manual_seed(seed)
    drawn = sample(one.model, one.tokenizer, prompts, generation, group=count, generator=generator)
    return [[" " + text.strip() for text in each.completions] for each in drawn]


def prompts_needed(axes: Sequence[Axis]) -> int:
    """The most prompts that a cell of these axes takes: training, spare and fresh ones."""
    settings = [cell.settings for axis in axes for cell in axis.cells]
    return max(int(each.samples + each.replaced + each.fresh) for each in settings)


def kept_given(
    folder: str | Path, model: str, reference: str, prompts: str | Path, count: int, *, seed: int = 0
) -> tuple[Given, str]:
    """`given_by_models` for the first `count` prompts of a file, and its source in words;
    made once, then read from `given.safetensors` in the folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    texts = read_prompts(prompts, count)
    names = [str(Path(path).name) for path in (model, reference, prompts)]
    digest = hashlib.sha256("\0".join([str(model), str(reference), str(seed), *texts]).encode()).hexdigest()[:12]
    source = f"{names[0]} and {names[1]}, {count} prompts of {names[2]}, {digest}"
    path = Path(folder) / f"given-{digest}.safetensors"
    try:
        kept = load_file(path)
        return Given(kept["states"], kept["ref_logps"]), source
    except (OSError, SafetensorError, KeyError):
        made = given_by_models(model, reference, texts, seed=seed)
    write_whole(path, save({"states": made.states.contiguous(), "ref_logps": made.ref_logps.contiguous()}))
    return made, source
