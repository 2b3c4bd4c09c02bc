"""Rollouts: completions sampled from a model at temperature 1, with nothing cut from its distribution, as ids and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiref.models.architecture import layout_of
from multiref.models.encoding import encode_many
from multiref.models.logps import forward_logps
from multiref.models.spec import Tokenisation
from multiref.references.rollouts import Rollout

__all__ = ["end_ids", "prompt_ids", "sample", "texts_of"]


def prompt_ids(tokenizer: Any, prompts: Sequence[Any]) -> list[tuple[int, ...]]:
    """The context of each prompt: start token first, conversations through the template with the turn of the assistant opened."""
    return [
        encoded.prompt_ids for encoded in encode_many(tokenizer, [(prompt, ()) for prompt in prompts], Tokenisation(end=False))
    ]


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """What ends a completion: the tokenizer's end token, and every other that the model's generation settings name."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tuple(dict.fromkeys(own + declared))


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    group: int,
    max_new_tokens: int,
    batch: int | None = None,
    cache: str | None = None,
    temperature: float = 1.0,
) -> list[Rollout]:
    """`group` completions of each prompt from softmax(logits), ancestral: no top-k, no top-p, no penalties, whatever the model's settings say.

    Args:
        prompts: strings or tuples of messages.
        max_new_tokens: a completion without an end token is cut here, and is then an outcome of its own: its log-probability is that of its tokens.
        batch: completions sampled side by side; None: all.
        cache: transformers' cache implementation ("static" compiles well); None: the model's own.
        temperature: of softmax(logits/temperature); 0: the likeliest token. For evaluation; training samples at 1.
    """
    contexts = prompt_ids(tokenizer, prompts)
    ends = end_ids(model, tokenizer)
    training = model.training
    model.eval()
    try:
        rows: list[tuple[int, ...]] = []
        step = max(1, (batch or group * len(prompts)) // group)
        for start in range(0, len(prompts), step):
            rows += _generated(
                model, tokenizer, contexts[start : start + step], group, max_new_tokens, ends, cache, temperature
            )
    finally:
        model.train(training)
    texts = texts_of(tokenizer, contexts, rows, group)
    rollouts = []
    for i, prompt in enumerate(prompts):
        part = slice(i * group, (i + 1) * group)
        said = tuple(text if isinstance(prompt, str) else ({"role": "assistant", "content": text},) for text in texts[part])
        rollouts.append(Rollout(prompt, said, contexts[i], tuple(rows[part]), tuple(ids[-1] in ends for ids in rows[part])))
    return rollouts


def _generated(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[tuple[int, ...]],
    group: int,
    new: int,
    ends: tuple[int, ...],
    cache: str | None,
    temperature: float,
) -> list[tuple[int, ...]]:
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    width = max(map(len, contexts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    ids = torch.tensor([[pad] * (width - len(context)) + list(context) for context in contexts], device=device)
    mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in contexts], device=device)
    caching = bool(getattr(model.config, "use_cache", True))
    read = _prompts_once(model, ids, mask, group) if caching and cache is None and temperature > 0 else {}
    if read:
        ids, mask = ids.repeat_interleave(group, 0), mask.repeat_interleave(group, 0)
    config = GenerationConfig(
        **_drawing(temperature, 1 if read else group), max_new_tokens=new, pad_token_id=pad,
        eos_token_id=list(ends) or None, bos_token_id=tokenizer.bos_token_id, cache_implementation=cache,
        use_cache=caching,
    )  # fmt: skip
    out: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **read)[:, width:]
    rows = [_until_end(row, ends) for row in out.tolist()]
    return rows if temperature > 0 else [row for row in rows for _ in range(group)]


def _prompts_once(model: Any, ids: Tensor, mask: Tensor, group: int) -> dict[str, Any]:
    """What `generate` needs to go on after prompts that were read once each, not once a completion: their cache, repeated. Nothing for models that cannot."""
    if group == 1 or ids.shape[1] == 1 or not layout_of(model, forward_logps).shared_prompt:
        return {}
    seen = mask[:, :-1]  # the last token is `generate`'s to read
    positions = (seen.cumsum(-1) - 1).clamp_min(0)
    out = model(input_ids=ids[:, :-1], attention_mask=seen, position_ids=positions, use_cache=True)
    past: Any = getattr(out, "past_key_values", None)
    if not hasattr(past, "batch_repeat_interleave"):
        return {}
    past.batch_repeat_interleave(group)
    return {"past_key_values": past}


def _drawing(temperature: float, group: int) -> dict[str, Any]:
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0, "num_return_sequences": group}


def _until_end(ids: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    """Up to the first end token, that included; what stands after it is padding."""
    for place, index in enumerate(ids):
        if index in ends:
            return tuple(ids[: place + 1])
    return tuple(ids)


def texts_of(tokenizer: Any, contexts: Sequence[tuple[int, ...]], rows: Sequence[tuple[int, ...]], group: int) -> list[str]:
    """What each completion adds to its prompt's text: decoded behind the prompt, for tokenizers that drop a leading space."""
    before = tokenizer.batch_decode([list(context) for context in contexts], skip_special_tokens=True)
    joint = tokenizer.batch_decode([[*contexts[i // group], *row] for i, row in enumerate(rows)], skip_special_tokens=True)
    alone = tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
    return [
        text[len(before[i // group]) :] if text.startswith(before[i // group]) else alone[i] for i, text in enumerate(joint)
    ]
