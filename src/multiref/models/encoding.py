"""From text to token ids: where the prompt ends and the completion begins, the end token, truncation, chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from multiref.errors import ArgumentError, DataError, ModelError

__all__ = ["Encoded", "encode"]

Text = Any  # str | tuple of chat messages: `multiref.data.Text`, which this room must not import
Ids = tuple[int, ...]
TRUNCATIONS = ("keep_start", "keep_end", "error")


@dataclass(frozen=True)
class Encoded:
    """A prompt and its completions as token ids of one tokenizer.

    prompt_ids is the context of every completion, start token included; `contexts`, where not empty, holds each completion's
    own context instead (truncation that keeps the end cuts the prompt by as much as this completion needs, for a score must
    not depend on the completion beside it).
    """

    prompt_ids: Ids
    completions: tuple[Ids, ...]
    truncated: tuple[bool, ...]
    contexts: tuple[Ids, ...] = ()

    def context(self, index: int) -> Ids:
        """The token ids before completion `index`."""
        return self.contexts[index] if self.contexts else self.prompt_ids


def encode(
    tokenizer: Any,
    prompt: Text,
    completions: Sequence[Text],
    *,
    end: bool = True,
    max_length: int | None = None,
    truncation: str = "keep_start",
) -> Encoded:
    """Token ids of a prompt and of what follows it.

    The context is always encode(prompt), start token first: what the model is given when it generates. It does not depend on
    the completion. A completion is what encode(prompt + completion) has after it. Where a token of the joint text straddles the
    boundary (so that encode(prompt) does not begin it), the completion is encoded as a continuation instead: without the start token and without
    the space that SentencePiece-like tokenizers put in front. Either way context and completion spell prompt + completion as far as the tokenizer
    can, and different completions of one prompt have comparable scores.

    Args:
        prompt, completions: strings, or tuples of chat messages, which go through the tokenizer's chat template.
        end: score the end token too (string completions: it is appended; conversations: the template's own end of turn).
        max_length: of context and completion together, in tokens. None: no limit.
        truncation: "keep_start" drops the completion's last tokens; "keep_end" drops the prompt's first ones (the start
            token stays); "error" refuses. What is cut is marked in `truncated`.

    Errors: ModelError for a tokenizer that lacks what is needed; DataError where nothing of a completion would be left.
    """
    if truncation not in TRUNCATIONS:
        raise ArgumentError(f"truncation is {truncation!r}; expected one of {', '.join(TRUNCATIONS)}.")
    if isinstance(prompt, str):
        prompt_ids, ids = _encode_strings(tokenizer, prompt, completions, end)
    else:
        prompt_ids, ids = _encode_messages(tokenizer, prompt, completions, end)
    return _fit(tokenizer, prompt_ids, ids, max_length, truncation)


def start_ids(tokenizer: Any) -> Ids:
    """What the tokenizer puts before a text: usually the start token, or nothing."""
    probe = plain_ids(tokenizer, "a")
    full = tuple(tokenizer("a")["input_ids"])
    for skip in range(len(full) - len(probe) + 1):
        if full[skip : skip + len(probe)] == probe:
            return full[:skip]
    return ()


def plain_ids(tokenizer: Any, text: str) -> Ids:
    """Token ids of a text, nothing added."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _encode_strings(tokenizer: Any, prompt: str, completions: Sequence[Text], end: bool) -> tuple[Ids, tuple[Ids, ...]]:
    start = start_ids(tokenizer)
    body = plain_ids(tokenizer, prompt)
    context = start + body
    if not context:
        token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if token is None:
            raise ModelError(
                "An empty prompt needs a start token, and this tokenizer has neither bos_token nor eos_token; set one."
            )
        context = (token,)
    tail = (end_id(tokenizer),) if end else ()
    ids = []
    for completion in completions:
        if not isinstance(completion, str):
            raise DataError("The prompt is a string but a completion is a list of messages; make both the same.")
        ids.append(continuation_ids(tokenizer, prompt, completion, body) + tail)
    return context, tuple(ids)


def end_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError("The end token is to be scored, and this tokenizer has none (eos_token); set one, or use end=False.")
    return int(tokenizer.eos_token_id)


def continuation_ids(tokenizer: Any, prompt: str, completion: str, prompt_ids: Ids) -> Ids:
    """Token ids of `completion` after `prompt`, whose own ids are `prompt_ids`."""
    joint = plain_ids(tokenizer, prompt + completion)
    if joint[: len(prompt_ids)] == prompt_ids:
        return joint[len(prompt_ids) :]
    for anchor in ("\n", ".", "a", "0", ")", "A", "z", "-"):
        before = plain_ids(tokenizer, anchor)
        joint = plain_ids(tokenizer, anchor + completion)
        if before and joint[: len(before)] == before:
            return joint[len(before) :]
    return plain_ids(tokenizer, completion)


def _encode_messages(tokenizer: Any, prompt: Any, completions: Sequence[Text], end: bool) -> tuple[Ids, tuple[Ids, ...]]:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "The data are conversations, and this tokenizer has no chat template. Set tokenizer.chat_template (a file "
            "chat_template.jinja in the model folder), or give prompt and completions as strings."
        )
    resumed = bool(prompt) and prompt[-1]["role"] == "assistant"
    before = _render(tokenizer, prompt, add_generation_prompt=not resumed, continue_final_message=resumed) if prompt else ""
    body = plain_ids(tokenizer, before)
    ids = []
    for completion in completions:
        if isinstance(completion, str):
            raise DataError("The prompt is a list of messages but a completion is a string; make both the same.")
        joint = _render(tokenizer, tuple(prompt) + completion)
        if not joint.startswith(before):
            raise ModelError(
                "This chat template writes the prompt differently once an answer follows, so that no completion can be split off. "
                f"Prompt alone ends in {before[-40:]!r}. Use a template that keeps what it has written."
            )
        rest = joint[len(before) :]
        if not end:
            content = completion[-1]["content"].strip()
            rest = rest[: rest.rindex(content) + len(content)] if content in rest else rest
        ids.append(continuation_ids(tokenizer, before, rest, body))
    return body, tuple(ids)


def _render(tokenizer: Any, messages: Any, **options: Any) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    except Exception as error:  # a template is a program of somebody else's: jinja errors, TypeErrors
        raise ModelError(f"The chat template refuses this conversation: {error}") from error


def _fit(tokenizer: Any, context: Ids, completions: tuple[Ids, ...], max_length: int | None, truncation: str) -> Encoded:
    """`completions` cut to `max_length` tokens with their context, and marked."""
    over = [max_length is not None and len(context) + len(ids) > max_length for ids in completions]
    if max_length is None or not any(over):
        return Encoded(context, completions, tuple(over))
    if truncation == "error":
        longest = len(context) + max(map(len, completions))
        raise DataError(
            f"Prompt and completion have {longest} tokens, more than max_length {max_length}, and truncation is 'error'."
        )
    if truncation == "keep_start":
        if len(context) >= max_length:
            raise DataError(
                f"The prompt has {len(context)} tokens and fills the context of {max_length}: nothing of the completion is left to "
                "score. Use truncation='keep_end', or remove the row."
            )
        cut = tuple(ids[: max_length - len(context)] for ids in completions)
        return Encoded(context, cut, tuple(over))
    start = len(start_ids(tokenizer)) if context[: len(start_ids(tokenizer))] == start_ids(tokenizer) else 0
    contexts = []
    for ids in completions:
        room = max_length - len(ids)
        if room < max(start, 1):
            raise DataError(
                f"A completion has {len(ids)} tokens, longer than the context of {max_length} with at least one token before it. "
                "Use truncation='keep_start', or remove the row."
            )
        keep = room - start
        contexts.append(context if len(context) <= room else context[:start] + context[len(context) - keep :])
    return Encoded(context, completions, tuple(over), tuple(contexts))
