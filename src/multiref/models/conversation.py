"""Conversations as text: what a chat template writes for a prompt, what it adds for an answer, and where that answer ends."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from os.path import commonprefix
from typing import Any

from multiref.errors import DataError, ModelError
from multiref.models.chat import Chat, Messages, content_of, template_of
from multiref.models.spec import Tokenisation
from multiref.report.shown import excerpt

Answer = tuple[str, str]  # what stands before it, and the answer itself
_PLAIN = {"role", "content"}


def write_conversation(
    tokenizer: Any, prompt: Messages, completions: Sequence[Messages], tokenisation: Tokenisation, *, origin: str = ""
) -> tuple[str, tuple[Answer, ...]]:
    """What the template writes for the prompt, up to where the model is to answer; and for each completion what stands before
    it and what it adds.

    An answer begins after the template's generation prompt (a last message of the assistant is resumed instead), and ends with
    the template's own end of turn, which stands there once; without `tokenisation.end`, before it. Where the generation prompt
    opens a block (`<think>`) with which this answer does not begin as the template writes it, see `_begun`. The prompt's
    `tools` and `chat_template_kwargs` (of a `multiref.data.Conversation`) go to the template, over those of `tokenisation`.

    Errors: ModelError without a template; where it refuses; where it rewrites the prompt once there is an answer, so that
        nothing can be split off; without `end`, where its end of turn cannot be told from the answer.
        DataError for what are no messages, and for two completions that differ in more than spaces and are written the same.
    What of the row the template does not write, and a template that writes no end token, is a warning, once.
    """
    if template_of(tokenizer) is None:
        raise ModelError(
            "The data are conversations, and this tokenizer has no chat template. Set tokenizer.chat_template (a file "
            "chat_template.jinja in the model folder), or give prompt and completions as strings."
        )
    chat = Chat.of(tokenizer, prompt, tokenisation)
    options = tuple(getattr(prompt, "chat_template_kwargs", ()))
    for message in chain(prompt, *completions):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f'Found {message!r:.60} among chat messages; expected {{"role": string, "content": string}}.')
    resumed = _is_begun(prompt)
    before = chat.write(prompt, add_generation_prompt=not resumed, continue_final_message=resumed) if prompt else ""
    joints = [chat.write(_merged(prompt, completion)) for completion in completions]
    _warn_of_unread(chat, options, [_merged(prompt, each) for each in completions] or [prompt], joints or [before], origin)
    if resumed and not content_of(prompt[-1]).strip():  # of an empty beginning a template may cut the line end before it, too
        opened = chat.tried(prompt[:-1], add_generation_prompt=True) or ""
        before = opened if all(joint.startswith(opened) for joint in joints) else before
    if opening := chat.reopening():  # of an answer that nobody asked for
        before += "" if resumed or not prompt or before.endswith(opening) else opening
        joints = [joint.removesuffix(opening) for joint in joints]
    split = [
        (joint[: len(before)], joint[len(before) :])
        if joint.startswith(before) and not _is_asked(prompt, completion)
        else _begun(chat, before, joint, prompt, completion)
        for joint, completion in zip(joints, completions)
    ]
    answers = tuple(
        (context, _ended(chat, rest, prompt, completion, tokenisation.end))
        for (context, rest), completion in zip(split, completions)
    )
    _check_told_apart(completions, answers)
    if completions:
        _warn_of_lost_words(chat, completions, answers, origin)
        if several := next((each for each in completions for one in each[1:] if one["role"] != "assistant"), None):
            chat.warn(
                "turns",
                f"{_where(several, origin)}: a completion holds turns that the model does not write "
                f"({', '.join(one['role'] for one in several)}): they are scored and trained on like its own. Put what stands "
                "before its last answer into the prompt, where that alone is meant. (Said once.)",
            )
        if tokenisation.end and not chat.closes():
            chat.warn(
                "end",
                f"{origin or 'A conversation'}: the chat template writes no end token behind an answer ({chat.ending()!r}): "
                "none is scored, and a policy does not learn to stop. Use a template that writes one; or say that none is "
                "meant: end=False in the tokenisation. (Said once.)",
            )
    return before, answers


def _begun(chat: Chat, before: str, joint: str, prompt: Messages, completion: Messages) -> Answer:
    """Where an answer begins that the template does not write behind its generation prompt, `before`, as that opens a block:

    - The row's answer opens that block itself, or goes on in it, and the template deletes it (DeepSeek-R1): behind `before`.
    - It has no such block: behind what the generation prompt and the template's writing of such an answer have in common.

    ModelError where more than the opened block differs.
    """
    anew = completion and not _is_begun(prompt) and not _is_asked(prompt, completion)
    plain = chat.before_words((*prompt, {"role": "assistant"})) if anew else None
    shared = commonprefix([before, plain or ""])  # noqa: RUF071  # texts, not paths
    for text in (before, plain or ""):  # `<think>` and `</think>` have no half of a token in common
        shared = shared.removesuffix(chat.token_across(shared, text[len(shared) :]))
    bare = chat.write(prompt) if prompt else ""
    if plain is not None and shared.startswith(bare) and shared != bare:
        opened, closed = before[len(shared) :].strip(), plain[len(shared) :].strip()
        words, after = content_of(completion[0]), chat.ending()
        if len(completion) == 1 and not completion[0].get("tool_calls") and after is not None and len(shared) < len(before):
            if opened and words.lstrip().startswith(opened):
                return before, words.lstrip()[len(opened) :].lstrip("\n") + after
            if closed in words if closed else not _holds(joint, words):
                return before, words + after
        if joint.startswith(shared) and len(shared) < len(before):
            if not chat.has_said("opening"):
                opening, answer = before[len(bare) :], joint[len(bare) :][:40]
                chat.warn(
                    "opening",
                    f"The chat template begins a new answer with {opening!r}, and writes this one as {answer!r}: it is scored "
                    f"so, behind what the two begin with. {_remedy(chat, prompt, joint)}(Said once.)",
                )
            return shared, joint[len(shared) :]
    if completion and (role := completion[0]["role"]) != "assistant":
        raise DataError(
            f"An answer begins with a message of role {role!r}, where the chat template opens one of the assistant's. Expected "
            "what was asked in `prompt` (or at the beginning of both sides), and the assistant's answer behind it."
        )
    raise ModelError(
        "This chat template writes the prompt differently once an answer follows, so that the answer cannot be split off: "
        f"alone it ends in {before[-40:]!r}. {_remedy(chat, prompt, joint)}Use a template that keeps what it has written, or "
        "give strings."
    )


def _remedy(chat: Chat, prompt: Messages, joint: str) -> str:
    """An argument of the template under which the generation prompt is what stands before this answer."""
    for name, value in ((name, value) for name in chat.arguments() for value in (False, True)):
        found = Chat(chat.tokenizer, {**chat.options, name: value}, chat.tools).tried(prompt, add_generation_prompt=True)
        if found is not None and joint.startswith(found) and len(found) > len(chat.tried(prompt) or ""):
            return f"With chat_template_kwargs={{{name!r}: {value}}} it does not. "
    return ""


def _ended(chat: Chat, rest: str, prompt: Messages, completion: Messages, end: bool) -> str:
    """What the template adds for the completion: up to its end of turn, or with it once."""
    if not completion:
        return rest
    last = content_of(completion[-1]).rstrip()
    if end and not any(last.endswith(token) for token in chat.ends()):
        return rest
    after = _end_of_turn(chat, rest, prompt, completion)
    if after is None:
        if end:
            return rest
        raise ModelError(
            f"Without the end (end=False) an answer stops before the template's end of turn, which cannot be told from this "
            f"answer: it is written as …{rest[-40:]!r}. Score with the end, or give strings."
        )
    stem = rest.removesuffix(after)
    if not end:
        return stem
    if any(token in after for token in chat.ends()):
        while found := next((token for token in chat.ends() if stem.rstrip().endswith(token)), None):
            stem = stem.rstrip()[: -len(found)]
    return stem + after


def _end_of_turn(chat: Chat, rest: str, prompt: Messages, completion: Messages) -> str | None:
    """The template's end of the completion's last turn, with which `rest` ends; None where it is not known."""
    plain = chat.ending() if completion[-1]["role"] == "assistant" else None
    if plain is not None and rest.endswith(plain):
        return plain
    here = None if completion[-1].get("tool_calls") else chat.after(_merged(prompt, completion))
    return here if here is not None and rest.endswith(here) else None


def _is_asked(prompt: Messages, completion: Messages) -> bool:
    """Whether behind a prompt it begins with what no assistant says."""
    return bool(prompt and completion) and completion[0]["role"] in ("user", "system", "developer", "tool")


def _is_begun(prompt: Messages) -> bool:
    """Whether the prompt ends in an answer that is to go on."""
    return bool(prompt) and prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls")


def _merged(prompt: Messages, completion: Messages) -> Messages:
    """Prompt and completion as one conversation; an answer that the prompt has begun is one message with its rest."""
    if completion and _is_begun(prompt) and completion[0]["role"] == "assistant":
        begun, rest = prompt[-1], completion[0]
        parts = isinstance(begun.get("content"), list) and isinstance(rest.get("content"), list)
        content = [*begun["content"], *rest["content"]] if parts else content_of(begun) + content_of(rest)
        return (*prompt[:-1], {**begun, **rest, "content": content}, *completion[1:])
    return (*prompt, *completion)


def _check_told_apart(completions: Sequence[Messages], answers: Sequence[Answer]) -> None:
    """DataError for completions that say different things and are written the same."""
    if len(set(answers)) == len(answers):
        return
    seen: dict[Answer, str] = {}
    for completion, answer in zip(completions, answers):
        content = "".join(json.dumps([dict(message) for message in completion], sort_keys=True, default=str).split())
        content = content.replace("\\n", "").replace("\\t", "")
        if seen.setdefault(answer, content) != content:
            raise DataError(
                f"Two different completions are written the same by the chat template, {excerpt(answer[1])}: it deletes what "
                "tells them apart (such as reasoning). Use a template that keeps it, or remove the row."
            )


# ---- what the template does not write ----


def _holds(text: str, words: str) -> bool:
    """Whether the text has these words, white space aside."""
    return "".join(words.split()) in "".join(text.split())


def _warn_of_lost_words(chat: Chat, completions: Sequence[Messages], answers: Sequence[Answer], origin: str) -> None:
    """A warning, once, where the template leaves out a part of an answer, such as its reasoning."""
    for completion, (context, answer) in zip(completions, answers) if not chat.has_said("words") else ():
        lost = next((words for m in completion if not _holds(context + answer, words := chat.unended(content_of(m)))), None)
        if lost is not None:
            chat.warn(
                "words",
                f"{_where(completion, origin)}: of the answer {excerpt(lost)} the chat template writes {excerpt(answer)}, and "
                "this is what is scored and trained on. Use a template that keeps all of it. (Said once.)",
            )


def _where(messages: Messages, origin: str) -> str:
    return origin or f"The conversation that begins {excerpt(content_of(messages[0]), 40)}"


def _warn_of_unread(chat: Chat, options: Sequence[str], rows: Sequence[Messages], written: Sequence[str], origin: str) -> None:
    """A warning, once a field, where the template writes a row the same without a field (or argument, or the messages of a
    role) that the row has."""
    fields = sorted({field for row in rows for message in row for field in message.keys() - _PLAIN if message[field]})
    roles = sorted({message["role"] for row in rows for message in row if content_of(message)} - {"user", "assistant"})
    source = str(template_of(chat.tokenizer))
    for field in [*(["tools"] if chat.tools else []), *options, *fields, *roles]:
        if chat.has_said(field):
            continue
        read = field in source if field in options else any(_without(chat, r, field) != text for r, text in zip(rows, written))
        if not read:
            chat.warn(
                field,
                f"{_where(rows[0], origin)}: the row has `{field}`, and this tokenizer's chat template writes the same without "
                "it, so it has no effect on scores and training. Use a template that reads it, or remove it. (Said once a "
                "field.)",
            )


def _without(chat: Chat, row: Messages, field: str) -> str | None:
    less = Chat(chat.tokenizer, chat.options, () if field == "tools" else chat.tools)
    others = [message for message in row if message["role"] != field]
    return less.tried(
        [{name: value for name, value in message.items() if name != field or name in _PLAIN} for message in others]
    )


def warn_of_strings(tokenizer: Any, texts: Iterable[Any]) -> None:
    """One warning a tokenizer: it has a chat template, and a prompt is a string, which is scored as it stands."""
    if template_of(tokenizer) is not None and (prompt := next(iter(texts), None)) is not None:
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        Chat(tokenizer, {}).warn(
            "strings",
            f"{name} has a chat template, and the prompt {excerpt(prompt, 40)} is a string: it is used as it stands, without "
            "the template. Give prompts as lists of messages where the model is a chat model. (Said once.)",
        )
