"""A tokenizer's chat template, asked: what it writes, what it reads, and what it puts around an answer.

A template is a program. What it does is found by asking it: it writes a conversation whose words are known, and what stands
around them is its own. Nothing is searched for by an answer's letters.
"""

import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import import_module
from os.path import commonprefix
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from jinja2 import nodes

from multiref._json import parse_json
from multiref.errors import DataError, ModelError, MultirefWarning
from multiref.models.bounded_templates import bound_templates
from multiref.models.spec import Tokenisation

Messages = tuple[dict[str, Any], ...]
T = TypeVar("T")
_MARK = "multiref9here"  # words that no template writes
_clock = threading.RLock()
# arguments of transformers' call, which no template sees (or ours)
_RESERVED = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages", "padding",
    "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "truncation",
}  # fmt: skip
_GIVEN = {"add_generation_prompt", "loop", "messages", "namespace", "raise_exception", "strftime_now", "tools"}


def template_of(tokenizer: Any) -> Any:
    """The chat template: a text, or several by name; None where there is none."""
    return getattr(tokenizer, "chat_template", None) or None


@dataclass(frozen=True)
class Chat:
    """A tokenizer's template with the arguments of one row."""

    tokenizer: Any
    options: Mapping[str, Any]
    tools: tuple[Any, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any, prompt: Messages, tokenisation: Tokenisation) -> "Chat":
        options = {**tokenisation.chat_template_kwargs, **getattr(prompt, "chat_template_kwargs", {})}
        if odd := sorted(_RESERVED & options.keys()):
            raise DataError(
                f"chat_template_kwargs: {odd[0]!r} is no argument of a chat template, but one of the call that writes with it; "
                "expected names that the template reads (such as enable_thinking)."
            )
        return cls(tokenizer, options, tuple(getattr(prompt, "tools", ())))

    def write(self, messages: Sequence[Mapping[str, Any]], **opened: bool) -> str:
        """What the template writes. Content is handed to it as it reads it: as a string, or in parts; arguments of tool calls
        as objects or as JSON text. ModelError where it refuses."""
        messages = [self._shaped(message) for message in messages]
        for form in ((str, dict), str, dict) if any(map(_arguments, messages)) else ():
            given = [_with_arguments(message, form) for message in messages]
            with suppress(ModelError):
                text = self._apply(given, **opened)
                if not any(odd in text for message in given for odd in _misread(message)):
                    return text
        return self._apply(messages, **opened)

    def _apply(self, messages: Sequence[Mapping[str, Any]], **opened: bool) -> str:
        options = {**self.options, **({"tools": list(self.tools)} if self.tools else {}), **opened}
        bound_templates()
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except Exception as error:  # a template is somebody else's program: jinja's errors, TypeError, …
            raise ModelError(
                f"The chat template refuses this conversation: {error}"
                ". Expected the roles and the order that it was written for; mend the rows, or give another template."
            ) from error

    def _shaped(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message, its content as the template reads that of its role."""
        role = "assistant" if message.get("role") == "assistant" else "user"
        form = self._remembered(f"form of {role}", lambda: self._form(role))
        content = message.get("content")
        if form == ("strings" if isinstance(content, list | tuple) else "parts"):
            return {**message, "content": _joined(content) if form == "strings" else _in_parts(content)}
        return message

    def _form(self, role: str) -> str:
        """ "parts" where the template writes the words of a list of parts alone, "strings" where those of a string alone, else
        "both": the two differ in white space at most."""
        asked = [self._shaped({"role": "user", "content": "a"})] if role != "user" else []

        def written(content: Any) -> str:
            with suppress(ModelError):
                return self._apply([*asked, {"role": role, "content": content}])
            return ""

        plain, parts = written(_MARK), written(_in_parts(_MARK))
        if _bare(plain) == _bare(parts):
            return "both"
        read = _MARK in parts and repr(_in_parts(_MARK)) not in parts  # else the list itself is written
        return "parts" if read and _MARK not in plain else "strings"

    def tried(self, messages: Sequence[Mapping[str, Any]], **opened: bool) -> str | None:
        """What the template writes; None where it refuses."""
        with suppress(ModelError):
            return self.write(messages, **opened)
        return None

    def ending(self) -> str | None:
        """What the template writes after the words of a plain answer; None where that depends on the words."""
        return self._remembered("ending", lambda: self.after(({"role": "user", "content": "a"}, {"role": "assistant"})))

    def after(self, messages: Messages) -> str | None:
        """What stands after the content of the last of these messages; None where that depends on the words."""
        after = self._around(messages, _behind)
        return None if after is None else after.removesuffix(self.reopening())

    def reopening(self) -> str:
        """With what the template begins a new answer behind a finished one, though none was asked for; "" for most."""
        return self._remembered("reopening", self._find_reopening)

    def _find_reopening(self) -> str:
        asked = ({"role": "user", "content": "a"}, {"role": "assistant"})
        bare, after = self.tried(asked[:1]), self._around(asked, _behind)
        more = self.tried([asked[0], {**asked[1], "content": _MARK}, asked[0]])  # what it writes between two turns
        if not (bare and after and more) or _MARK not in more or _bare(bare) != _bare(self.before_words(asked) or ""):
            return ""
        shared = commonprefix([after, _behind(more, _MARK)])  # noqa: RUF071  # texts, not paths
        first = max((token for token in self._added() if shared.lstrip().startswith(token)), key=len, default="")
        ends = [str(self.tokenizer.eos_token or ""), first, "\n"]
        closed = max(shared.rfind(end) + len(end) if end and end in shared else 0 for end in ends)
        rest = after[closed:].lstrip() if shared != after else ""
        return rest if bare.endswith(rest) else ""

    def before_words(self, messages: Messages) -> str | None:
        """What stands before the content of the last of these messages; None where that depends on the words."""
        return self._around(messages, lambda text, mark: text[: text.rindex(mark)])

    def _around(self, messages: Messages, part: Callable[[str, str], str]) -> str | None:
        found = set()
        for mark in (_MARK, f"0 {_MARK}"):
            text = self.tried([*messages[:-1], {**messages[-1], "content": mark}])
            if text is None or mark not in text:
                return None
            found.add(part(text, mark))
        return found.pop() if len(found) == 1 else None

    def closes(self) -> bool:
        """Whether the template writes an end token behind an answer, as far as that can be told."""

        def find() -> bool:
            after, ends = self.ending(), (str(self.tokenizer.eos_token or ""), *self._added())
            return after is None or any(token and token in after for token in ends)

        return self._remembered("closes", find)

    def token_across(self, text: str, rest: str) -> str:
        """What `text` has of a token that ends in `rest`: of a special one, or one in angle brackets; "" for none."""
        known = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        tokens = [str(token) for token in known if token.special or re.fullmatch(r"<.+>", str(token))]
        cuts = ((token[:cut], token[cut:]) for token in tokens for cut in range(len(token) - 1, 0, -1))
        return next((head for head, tail in cuts if text.endswith(head) and rest.startswith(tail)), "")

    def _added(self) -> set[str]:
        return {str(token) for token in getattr(self.tokenizer, "added_tokens_encoder", {}) if str(token).strip()}

    def unended(self, words: str) -> str:
        """The words less the end tokens that they end in."""
        words = words.rstrip()
        while found := next((token for token in self.ends() if words.endswith(token)), None):
            words = words[: -len(found)].rstrip()
        return words

    def arguments(self) -> list[str]:
        """Names that the template reads and that are no variables of its loops: its arguments are among them."""
        source = template_of(self.tokenizer)
        if not isinstance(source, str):
            return []
        bound_templates()
        home: Any = import_module("transformers.utils.chat_template_utils")
        tree = home._compile_jinja_template(source).environment.parse(source)
        turns = nodes.Template([each.target for each in tree.find_all(nodes.For)]).find_all(nodes.Name)
        read = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
        return sorted(read - {name.name for name in turns} - _GIVEN)

    def has_said(self, what: str) -> bool:
        return what in _remembered.setdefault(self.tokenizer, {}).setdefault("said", set())

    def warn(self, what: str, message: str) -> None:
        """A warning, once a tokenizer."""
        if not self.has_said(what):
            _remembered[self.tokenizer]["said"].add(what)
            warnings.warn(message, MultirefWarning, stacklevel=2)

    def ends(self) -> tuple[str, ...]:
        """The tokens that end an answer: the tokenizer's end token, and the special ones in the template's end of turn."""

        def find() -> tuple[str, ...]:
            after = (self.ending() if template_of(self.tokenizer) is not None else None) or ""
            first = max((token for token in self._added() if after.lstrip().startswith(token)), key=len, default=None)
            return tuple(dict.fromkeys(str(token) for token in (self.tokenizer.eos_token, first) if token))

        return self._remembered("ends", find)

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


def _bare(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def _behind(text: str, mark: str) -> str:
    return text[text.rindex(mark) + len(mark) :]


def content_of(message: Mapping[str, Any]) -> str:
    """Its words as one string."""
    content = _joined(message.get("content"))
    return content if isinstance(content, str) else ""


def _joined(content: Any) -> Any:
    """Text parts as one string. DataError for a part that is no text."""
    if not isinstance(content, list | tuple):
        return content
    if odd := next((part for part in content if not isinstance(part, Mapping) or not isinstance(part.get("text"), str)), None):
        raise DataError(f"A message has the part {odd!r:.60}; expected text parts, this chat template reads no others.")
    return "".join(part["text"] for part in content)


def _arguments(message: Mapping[str, Any]) -> list[Any]:
    """Those of its tool calls: objects, or JSON text, as OpenAI's are."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    found = [call.get("arguments") for call in calls if isinstance(call, Mapping)]
    return [each for each in found if _is_object(each)]


def _is_object(given: Any) -> bool:
    return given.lstrip().startswith("{") if isinstance(given, str) else isinstance(given, Mapping) and bool(given)


def _misread(message: Mapping[str, Any]) -> list[str]:
    """Its arguments quoted twice, or as Python prints an object."""
    given = _arguments(message)
    quoted = [json.dumps(each, ensure_ascii=plain) for each in given if isinstance(each, str) for plain in (True, False)]
    return quoted + [str(each) for each in given if not isinstance(each, str)]


def _with_arguments(message: Mapping[str, Any], form: Any) -> Mapping[str, Any]:
    """The message, arguments of its tool calls as objects (dict), as JSON text (str), or as they are (both)."""
    if not _arguments(message):
        return message

    def read(call: Any) -> Any:
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        given: Any = inner.get("arguments") if isinstance(inner, Mapping) else None
        if inner is None or isinstance(given, form) or not _is_object(given):
            return call
        made = parse_json(given, "arguments of a tool call") if form is dict else json.dumps(given, ensure_ascii=False)
        made = {**inner, "arguments": made}
        return {**call, "function": made} if "function" in call else made

    return {**message, "tool_calls": [read(call) for call in message["tool_calls"]]}


def _in_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


# ---- the date, which some templates write ----


def dates_of(tokenizer: Any, tokenisation: Tokenisation, write: Callable[[Tokenisation], Any]) -> str | None:
    """None where what `write` gives is the same on any day; else the argument of the template that fixes the date, "" for
    none."""

    def changes(how: Tokenisation) -> bool:
        with _another_day():
            elsewhen = write(how)
        return bool(elsewhen != write(how))

    if "strftime_now" not in str(template_of(tokenizer)) or not changes(tokenisation):
        return None
    given, names = tokenisation.chat_template_kwargs, Chat(tokenizer, {}).arguments()
    fixed = (replace(tokenisation, chat_template_kwargs={**given, name: "26 Jul 2024"}) for name in names)
    return next((name for name, how in zip(names, fixed) if not changes(how)), "")


@contextmanager
def _another_day() -> Iterator[None]:
    """Within it templates that this thread writes are told that it is the last day of 1999."""
    home: Any = import_module("transformers.utils.chat_template_utils")
    with _clock:
        real, here = home.datetime, threading.get_ident()

        class Then(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                elsewhen = cls(1999, 12, 31, 23, 58, 57, tzinfo=tz)
                return elsewhen if threading.get_ident() == here else real.now(tz)

        home.datetime = Then
        try:
            yield
        finally:
            home.datetime = real
