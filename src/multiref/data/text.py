"""What a text is: a string, chat messages, or chat messages with what else a row hands to the chat template."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

from multiref.errors import DataError

Message: TypeAlias = dict[str, Any]  # {"role": …, "content": …}, and whatever else the row says: tool_calls, name, …
Text: TypeAlias = str | tuple[Message, ...]


class Conversation(tuple[Message, ...]):
    """Chat messages of a prompt, with the tools and the template's arguments that its row names.

    A tuple of messages in everything else, so it stands wherever one does. Without tools and arguments it equals that tuple.
    """

    tools: tuple[Any, ...]
    chat_template_kwargs: dict[str, Any]

    def __new__(
        cls,
        messages: Iterable[Message] = (),
        *,
        tools: Sequence[Any] = (),
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        made = super().__new__(cls, messages)
        made.tools, made.chat_template_kwargs = tuple(tools), dict(chat_template_kwargs or {})
        return made

    def __eq__(self, other: object) -> bool:
        extras = (getattr(other, "tools", ()), getattr(other, "chat_template_kwargs", {}))
        return super().__eq__(other) and (self.tools, self.chat_template_kwargs) == extras

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Conversation({super().__repr__()}, tools={self.tools!r}, chat_template_kwargs={self.chat_template_kwargs!r})"


def as_text(value: object, name: str, where: str) -> Text:
    """A string, or a list of messages as a tuple of them, every field kept. DataError naming `where` for anything else."""
    if isinstance(value, str):
        return _whole(value, name, where)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        messages = tuple(as_message(message, f"{name}[{index}]", where) for index, message in enumerate(value))
        if isinstance(value, Conversation):
            return Conversation(messages, tools=value.tools, chat_template_kwargs=value.chat_template_kwargs)
        return messages
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    raise DataError(f"{where}: `{name}` is {shown} ({type(value).__name__}), expected a string or a list of chat messages.")


def as_message(value: object, name: str, where: str) -> Message:
    """A message with every field that it has a value for. Its content is a string, text parts, or nothing beside tool calls."""
    found = without_nulls(value)
    message: Message = found if isinstance(found, dict) else {}
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        message["content"] = content = ""
    if not isinstance(message.get("role"), str) or not isinstance(content, str | list | tuple):
        raise DataError(f'{where}: `{name}` is no chat message; expected {{"role": string, "content": string}}.')
    if not isinstance(content, str):
        message["content"] = [_part(part, f"{name}.content[{index}]", where) for index, part in enumerate(content)]
    _whole(said(message), name, where)
    if message.keys() - {"role", "content"}:
        check_json(message, name, where)
    return message


def _whole(text: str, name: str, where: str) -> str:
    """DataError for half of a character, which no file can hold and no tokenizer reads."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: `{name}` has half of a character in it (a lone \\ud800 to \\udfff). "
                "Expected whole characters: write the text again without it."
            ) from None
    return text


def without_nulls(value: Any) -> Any:
    """Without fields that are null, at any depth: columnar files have one for each field that another row has. Arrow's maps,
    which are lists of pairs, are objects."""
    if isinstance(value, list) and value and all(isinstance(part, tuple) and len(part) == 2 for part in value):
        value = dict(value)
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list | tuple) else value


def plain(value: Any) -> Any:
    """numpy's arrays and numbers, as pandas has them in its rows, as lists and numbers, at any depth."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple) and not isinstance(value, Conversation):
        return (tuple if isinstance(value, tuple) else list)(map(plain, value))
    return plain(value.tolist()) if hasattr(value, "tolist") and not isinstance(value, str) else value


def said(message: Mapping[str, Any]) -> str:
    """The words of a message: its content as one string, parts one after the other."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)


def words(text: Text) -> str:
    """The words of a text: itself, or what its messages say, one after the other."""
    return text if isinstance(text, str) else "".join(map(said, text))


def check_json(value: object, name: str, where: str) -> None:
    """DataError unless JSON can hold it: what is scored is filed under its JSON."""
    try:
        json.dumps(value, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where}: `{name}` holds what JSON cannot ({error}); expected text, numbers, lists, objects."
        ) from None


def _part(part: object, name: str, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise DataError(
            f'{where}: `{name}` is of kind {kind!r}; expected {{"type": "text", "text": string}}: text is all we read.'
        )
    return {key: value for key, value in part.items() if value is not None}
