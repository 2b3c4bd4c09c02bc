"""Conversations as text: what a chat template writes for a prompt, what it adds for an answer, and where that answer ends.

A template is a program. What it does is found by asking it: it writes a conversation whose words are known, and what stands
around them is its own. Nothing is searched for by an answer's letters.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from multiref.errors import DataError, ModelError, MultirefWarning
from multiref.models.bounded_templates import bound_templates
from multiref.models.spec import Tokenisation

Messages = tuple[dict[str, Any], ...]
T = TypeVar("T")
_MARK = "multiref9here"  # words that no template writes
_PLAIN = {"role", "content"}


def template_of(tokenizer: Any) -> Any:
    """The chat template: a text, or several by name; None where there is none."""
    return getattr(tokenizer, "chat_template", None) or None


def write_conversation(
    tokenizer: Any, prompt: Messages, completions: Sequence[Messages], tokenisation: Tokenisation, *, origin: str = ""
) -> tuple[str, tuple[str, ...]]:
    """What the template writes for the prompt, up to where the model is to answer; and what it adds for each completion.

    An answer begins after the template's generation prompt (a last message of the assistant is resumed instead), and ends with
    the template's own end of turn, which stands there once; without `tokenisation.end`, before it. The prompt's `tools` and
    `chat_template_kwargs` (of a `multiref.data.Conversation`) go to the template, over those of `tokenisation`.

    Errors: ModelError without a template; where it refuses; where it rewrites the prompt once there is an answer, so that
        nothing can be split off; without `end`, where its end of turn cannot be told from the answer.
        DataError for what are no messages, and for two completions that differ in more than spaces and are written the same.
    A field of the row that the template does not read is a warning, once a field.
    """
    if template_of(tokenizer) is None:
        raise ModelError(
            "The data are conversations, and this tokenizer has no chat template. Set tokenizer.chat_template (a file "
            "chat_template.jinja in the model folder), or give prompt and completions as strings."
        )
    chat = Chat.of(tokenizer, prompt, tokenisation)
    options = tuple(getattr(prompt, "chat_template_kwargs", ()))
    prompt, *completions = (chat.readable(messages) for messages in (prompt, *completions))
    resumed = _is_begun(prompt)
    before = chat.write(prompt, add_generation_prompt=not resumed, continue_final_message=resumed) if prompt else ""
    joints = [chat.write(_merged(prompt, completion)) for completion in completions]
    _warn_of_unread(chat, options, [_merged(prompt, each) for each in completions] or [prompt], joints or [before], origin)
    answers = tuple(
        _answer(chat, before, joint, prompt, completion, tokenisation.end) for joint, completion in zip(joints, completions)
    )
    _check_told_apart(completions, answers)
    return before, answers


@dataclass(frozen=True)
class Chat:
    """A tokenizer's template with the arguments of one row."""

    tokenizer: Any
    options: Mapping[str, Any]
    tools: tuple[Any, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any, prompt: Messages, tokenisation: Tokenisation) -> "Chat":
        options = {**tokenisation.chat_template_kwargs, **getattr(prompt, "chat_template_kwargs", {})}
        return cls(tokenizer, options, tuple(getattr(prompt, "tools", ())))

    def write(self, messages: Sequence[Mapping[str, Any]], **opened: bool) -> str:
        """What the template writes. ModelError where it refuses."""
        tools = {"tools": list(self.tools)} if self.tools else {}
        bound_templates()
        try:
            return str(
                self.tokenizer.apply_chat_template(list(messages), tokenize=False, **{**self.options, **tools, **opened})
            )
        except Exception as error:  # a template is somebody else's program: jinja's errors, TypeError, …
            raise ModelError(f"The chat template refuses this conversation: {error}") from error

    def readable(self, messages: Messages) -> Messages:
        """The messages with text parts joined to a string, where the template does not read parts."""
        parts = False
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise DataError(f'Found {message!r:.60} among chat messages; expected {{"role": string, "content": string}}.')
            parts = parts or isinstance(message.get("content"), list | tuple)
        if not parts or self._remembered("parts", self._reads_parts):
            return tuple(messages)
        return tuple({**message, "content": _joined(message.get("content"))} for message in messages)

    def _reads_parts(self) -> bool:
        plain = self.tried([{"role": "user", "content": _MARK}])
        return plain is not None and plain == self.tried([{"role": "user", "content": [{"type": "text", "text": _MARK}]}])

    def tried(self, messages: Sequence[Mapping[str, Any]], **opened: bool) -> str | None:
        """What the template writes; None where it refuses."""
        try:
            return self.write(messages, **opened)
        except ModelError:
            return None

    def ending(self) -> str | None:
        """What the template writes after the words of a plain answer; None where that depends on the words."""
        return self._remembered("ending", lambda: self.after(({"role": "user", "content": "a"}, {"role": "assistant"})))

    def after(self, messages: Messages) -> str | None:
        """What stands after the content of the last of these messages."""
        found = set()
        for mark in (_MARK, f"0 {_MARK}"):
            text = self.tried([*messages[:-1], {**messages[-1], "content": mark}])
            if text is None or mark not in text:
                return None
            found.add(text[text.rindex(mark) + len(mark) :])
        return found.pop() if len(found) == 1 else None

    def ends(self) -> tuple[str, ...]:
        """The tokens that end an answer: the tokenizer's end token, and the special ones in the template's end of turn."""
        return self._remembered("ends", self._find_ends)

    def _find_ends(self) -> tuple[str, ...]:
        after = (self.ending() if template_of(self.tokenizer) is not None else None) or ""
        added = {str(token) for token in getattr(self.tokenizer, "added_tokens_encoder", {})}
        first = max((token for token in added if token.strip() and after.lstrip().startswith(token)), key=len, default=None)
        return tuple(dict.fromkeys(str(token) for token in (self.tokenizer.eos_token, first) if token))

    def _remembered(self, what: str, find: Callable[[], T]) -> T:
        """`find()`, once for a tokenizer with this template and these arguments."""
        known = _remembered.setdefault(self.tokenizer, {})
        template = template_of(self.tokenizer)
        named = template if isinstance(template, str | None) else json.dumps(template, sort_keys=True)
        key = (what, named, json.dumps(dict(self.options), sort_keys=True, default=str), bool(self.tools))
        if key not in known:
            known[key] = find()
        found: T = known[key]
        return found


_remembered: "WeakKeyDictionary[Any, dict[Any, Any]]" = WeakKeyDictionary()


def _answer(chat: Chat, before: str, joint: str, prompt: Messages, completion: Messages, end: bool) -> str:
    """What the template adds for the completion: up to its end of turn, or with it once."""
    if not joint.startswith(before):
        raise ModelError(
            "This chat template writes the prompt differently once an answer follows, so that the answer cannot be split off: "
            f"alone it ends in {before[-40:]!r}. Use a template that keeps what it has written, or give strings."
        )
    rest = joint[len(before) :]
    if not completion:
        return rest
    last = _content(completion[-1]).rstrip()
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


def _is_begun(prompt: Messages) -> bool:
    """Whether the prompt ends in an answer that is to go on."""
    return bool(prompt) and prompt[-1]["role"] == "assistant" and not prompt[-1].get("tool_calls")


def _merged(prompt: Messages, completion: Messages) -> Messages:
    """Prompt and completion as one conversation; an answer that the prompt has begun is one message with its rest."""
    if completion and _is_begun(prompt) and completion[0]["role"] == "assistant":
        begun, rest = prompt[-1], completion[0]
        parts = isinstance(begun.get("content"), list) and isinstance(rest.get("content"), list)
        content = [*begun["content"], *rest["content"]] if parts else _content(begun) + _content(rest)
        return (*prompt[:-1], {**begun, **rest, "content": content}, *completion[1:])
    return (*prompt, *completion)


def _content(message: Mapping[str, Any]) -> str:
    content = _joined(message.get("content"))
    return content if isinstance(content, str) else ""


def _joined(content: Any) -> Any:
    """Text parts as one string. DataError for a part that is no text."""
    if not isinstance(content, list | tuple):
        return content
    if odd := next((part for part in content if not isinstance(part, Mapping) or not isinstance(part.get("text"), str)), None):
        raise DataError(f"A message has the part {odd!r:.60}; expected text parts, this chat template reads no others.")
    return "".join(part["text"] for part in content)


def _check_told_apart(completions: Sequence[Messages], answers: Sequence[str]) -> None:
    """DataError for completions that say different things and are written the same."""
    if len(set(answers)) == len(answers):
        return
    seen: dict[str, str] = {}
    for completion, answer in zip(completions, answers):
        content = "".join(json.dumps([dict(message) for message in completion], sort_keys=True, default=str).split())
        content = content.replace("\\n", "").replace("\\t", "")
        if seen.setdefault(answer, content) != content:
            raise DataError(
                f"Two different completions are written the same by the chat template, {answer[:60]!r}: it deletes what tells "
                "them apart (such as reasoning). Use a template that keeps it, or remove the row."
            )


# ---- the date, which some templates write ----


def dates_of(tokenizer: Any, tokenisation: Tokenisation, write: Callable[[], Any]) -> str | None:
    """None where `write()` is the same on any day; else the argument of the template that fixes the date, "" for none."""
    source = str(template_of(tokenizer))
    if "strftime_now" not in source:
        return None
    with _another_day():
        elsewhen = write()
    if elsewhen == write():
        return None
    names: list[str] = re.findall(r"(\w+)\s+is\s+(?:not\s+)?defined", source)
    for name in dict.fromkeys(names):
        if name in ("strftime_now", "tools", "messages"):
            continue
        fixed = Chat(tokenizer, {**tokenisation.chat_template_kwargs, name: "26 Jul 2024"})
        asked: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
        with _another_day():
            then = fixed.tried(asked)
        if then is not None and then == fixed.tried(asked):
            return name
    return ""


@contextmanager
def _another_day() -> Iterator[None]:
    """Within it templates are told that it is the last day of 1999."""
    home: Any = import_module("transformers.utils.chat_template_utils")
    real = home.datetime

    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Then":
            return cls(1999, 12, 31, 23, 58, 57, tzinfo=tz)

    home.datetime = Then
    try:
        yield
    finally:
        home.datetime = real


# ---- fields that the template does not read ----


def _warn_of_unread(chat: Chat, options: Sequence[str], rows: Sequence[Messages], written: Sequence[str], origin: str) -> None:
    """A warning, once a field, where the template writes a row the same without a field (or argument) that the row has."""
    fields = sorted({field for row in rows for message in row for field in message.keys() - _PLAIN if message[field]})
    if not fields and not options and not chat.tools:
        return
    source = str(template_of(chat.tokenizer))
    warned = _remembered.setdefault(chat.tokenizer, {}).setdefault("unread", set())
    for field in [*(["tools"] if chat.tools else []), *options, *fields]:
        if field in warned:
            continue
        read = field in source if field in options else any(_without(chat, r, field) != text for r, text in zip(rows, written))
        if not read:
            warned.add(field)
            warnings.warn(
                f"{origin or f'The conversation that begins {_content(rows[0][0])[:40]!r}'}: the row has `{field}`, and this "
                "tokenizer's chat template writes the same without it, so it has no effect on scores and training. Use a "
                "template that reads it, or remove it. (Said once a field.)",
                MultirefWarning,
                stacklevel=2,
            )


def _without(chat: Chat, row: Messages, field: str) -> str | None:
    less = Chat(chat.tokenizer, chat.options, () if field == "tools" else chat.tools)
    messages = [{name: value for name, value in message.items() if name != field or name in _PLAIN} for message in row]
    return less.tried(messages)


def warn_of_strings(tokenizer: Any, texts: Iterable[Any]) -> None:
    """One warning a tokenizer: it has a chat template, and a prompt is a string, which is scored as it stands."""
    known = _remembered.setdefault(tokenizer, {})
    if "strings" not in known and template_of(tokenizer) is not None and (prompt := next(iter(texts), None)) is not None:
        known["strings"] = True
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        warnings.warn(
            f"{name} has a chat template, and the prompt {prompt[:40]!r} is a string: it is used as it stands, without the "
            "template. Give prompts as lists of messages where the model is a chat model. (Said once.)",
            MultirefWarning,
            stacklevel=2,
        )
