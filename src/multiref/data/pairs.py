"""A preference pair, and how a row of TRL's preference format becomes one."""

import math
import warnings
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from multiref._json import parse_json
from multiref.data.text import Conversation, Message, Text, as_text, check_json, plain, said, without_nulls, words
from multiref.errors import DataError, MultirefNotice, MultirefWarning

EPSILON = "privacy_epsilon"  # the column of labels that are private already: ε of their randomised response
USED = ("prompt", "chosen", "rejected", "margin", "system", "tools", "chat_template_kwargs", EPSILON)
_USED = frozenset(USED)
# Columns that change what a row says, and that nothing here reads. With something in them a row is refused.
REFUSED = dict.fromkeys(("image", "images", "video", "videos", "audio", "audios", "history"), "write it into the messages") | {
    "documents": "give it as chat_template_kwargs: {documents: …}",
    "functions": "give it as `tools`",
    "system_prompt": "call it `system`",
}
QUESTIONS = ("instruction", "question", "query", "input")  # what others call the prompt


@dataclass(frozen=True)
class Pair:
    """A prompt, the completion that was preferred, and the one that was not.

    All three are strings, or all three are tuples of chat messages; a prompt of messages may be a `Conversation`, which has
    tools and arguments for the chat template too. `origin` ("pairs.jsonl:12", rows counted from 1) is for
    error messages only: nothing is ever joined or cached by it. `margin`: how far a reward model is to put chosen above
    rejected. `epsilon`: of the randomised response that the label went through (`privatise`); None: it is as it was given.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    origin: str = ""
    margin: float = 0.0
    epsilon: float | None = None


def as_pair(row: Mapping[str, object] | Pair, *, origin: str = "") -> Pair:
    """One row of TRL's preference format → `Pair`.

    The row has `chosen` and `rejected`, strings or lists of messages (every field of a message is kept), and usually `prompt`.
    Without one the prompt is what both sides have in common, as TRL's `extract_prompt` takes it: the longest common beginning,
    a space before the first difference going to the completions. A prompt that is a string before sides of messages is a
    message of the user before them, unless what they have in common says it already.
    `system` is the conversation's first message; `tools` and `chat_template_kwargs` go to the chat template with this row.

    Errors: DataError naming `origin` for a side that is missing, empty, no text, or the same as the other, and for a column
    with content that would be lost (`REFUSED`; system, tools or template arguments beside strings, which no template sees).
    """
    if isinstance(row, Pair):
        return row
    where = origin or "row"
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: found {type(row).__name__}, expected an object with prompt, chosen and rejected.")
    row = from_pandas(row)
    _check_lost(row, where)
    chosen, rejected = (_side(row, side, where) for side in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: one of chosen and rejected is a string, the other a list of messages; make both the same.")
    prompt = as_text(row["prompt"], "prompt", where) if row.get("prompt") is not None else None
    if isinstance(prompt, tuple) and isinstance(chosen, str):
        raise DataError(f"{where}: the prompt is a list of messages but the completions are strings; make all three the same.")
    implicit = prompt is None or isinstance(prompt, str) != isinstance(chosen, str)
    if isinstance(prompt, tuple) and not implicit and chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]  # the sides repeat the conversation before them
    if prompt is None or implicit:
        asked = prompt
        prompt, chosen, rejected = _split_common(chosen, rejected)
        if not prompt and asked is None and (other := next((name for name in row if _is_talk(row[name], name)), None)):
            raise DataError(f"{where}: no `prompt`, but a conversation in `{other}`, which would be lost; rename it to prompt.")
        if isinstance(asked, str) and isinstance(prompt, tuple) and asked.strip() and not _says(prompt, asked):
            if any(message["role"] == "user" for message in prompt):
                raise DataError(
                    f"{where}: the string `prompt` is no message of the user in chosen and rejected, which begin with another "
                    "question; remove the column, or give the conversation before the answers as a list of messages."
                )
            first = sum(message["role"] in ("system", "developer") for message in prompt)
            prompt = (*prompt[:first], {"role": "user", "content": asked}, *prompt[first:])
    elif isinstance(prompt, str) and len(prompt.split()) > 2 and all(str(s).startswith(prompt) for s in (chosen, rejected)):
        warnings.warn(
            "chosen and rejected begin with the whole prompt, which then stands there twice. Remove it from them, or remove "
            "the column `prompt`: it is what both sides begin with. (Said once.)",
            MultirefWarning,
            stacklevel=2,
        )
    margin = _number(row, "margin", where, -math.inf, "a finite number, at most 1e38") or 0.0
    epsilon = _number(row, EPSILON, where, 0.0, "the positive ε of private labels")
    pair = Pair(_with_extras(prompt, row, where), chosen, rejected, origin, margin, epsilon)
    _check_sides(pair, where, implicit)
    return pair


def as_prompt(row: Mapping[str, object], *, origin: str = "") -> Text:
    """The prompt of a row that has no completions: with its `system`, `tools` and `chat_template_kwargs`, as `as_pair` has it.
    DataError naming `origin` for what is no text, and for a column with content that would be lost."""
    where, row = origin or "row", from_pandas(row)
    _check_lost(row, where)
    return _with_extras(as_text(row.get("prompt"), "prompt", where), row, where)


def unread_columns(row: object, read: Set[str] = _USED) -> set[str]:
    """The columns of a row that hold something and that nothing here reads: of several prompts `prompt` is read."""
    if not isinstance(row, Mapping):
        return set()
    read = read if row.get("prompt") is None else read - set(QUESTIONS)
    return {str(name) for name in row.keys() - read if row[name] is not None}


def list_unread(columns: Iterable[str], source: str) -> None:
    """One notice that names the columns of `source` that are not read."""
    if names := sorted(columns):
        shown = ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        warnings.warn(
            f"{source}: columns that are not read: {shown}. Read are {', '.join(USED)}.", MultirefNotice, stacklevel=1
        )


def from_pandas(row: Mapping[str, object]) -> Mapping[str, object]:
    """The row without numpy's kinds, and without NaN where a text or list may be missing; names of columns are texts."""
    return {
        str(name): None
        if name != "margin" and isinstance(value, float) and math.isnan(value)
        else plain(value)
        if hasattr(value, "tolist") or isinstance(value, Mapping)
        else value
        for name, value in row.items()
    }


def _check_lost(row: Mapping[str, object], where: str) -> None:
    """DataError for a column with content that changes what a row says, and that is not read."""
    for name, advice in REFUSED.items():
        value = row.get(name)
        if any(part is not None for part in value) if isinstance(value, list | tuple) else value not in (None, "", {}):
            raise DataError(
                f"{where}: the column `{name}` is not read, and this row says something there; {advice}, or remove it."
            )
    texts = {name: text for name in QUESTIONS if isinstance(text := row.get(name), str) and text.strip()}
    if row.get("prompt") is None and (other := next(iter(texts), None)):
        raise DataError(f"{where}: no `prompt`, but `{other}`, which would be lost; rename the column to prompt, or remove it.")


def _is_talk(value: object, name: str) -> bool:
    """Whether a column that is not read holds messages."""
    if name in _USED or not isinstance(value, list | tuple):
        return False
    return bool(value) and all(isinstance(each, Mapping) and ("content" in each or "value" in each) for each in value)


def _says(prompt: tuple[dict[str, object], ...], asked: str) -> bool:
    """Whether a message of the user in these says what was asked."""
    return any(message["role"] == "user" and said(message).split() == asked.split() for message in prompt)


def _with_extras(prompt: Text, row: Mapping[str, object], where: str) -> Text:
    """The prompt with the row's system message, tools and arguments of the template."""
    system, tools = row.get("system"), _column(row, "tools", where) or getattr(prompt, "tools", ())
    options = {**getattr(prompt, "chat_template_kwargs", {}), **_column(row, "chat_template_kwargs", where)}
    given = [name for name, value in (("system", system), ("tools", tools), ("chat_template_kwargs", options)) if value]
    if not given:
        return prompt
    if isinstance(prompt, str):
        raise DataError(
            f"{where}: the row has `{given[0]}`, which only a chat template can write, and its texts are strings, which are "
            "scored as they are. Give prompt, chosen and rejected as lists of messages, or remove the column."
        )
    if system:
        if not isinstance(system, str):
            raise DataError(f"{where}: `system` is a {type(system).__name__}, expected a string.")
        if not prompt or prompt[0]["role"] != "system":
            prompt = ({"role": "system", "content": system}, *prompt)
        elif said(prompt[0]).strip() != system.strip():
            raise DataError(f"{where}: `system` and the prompt's own system message differ; keep one of them.")
    return Conversation(prompt, tools=tools, chat_template_kwargs=options) if tools or options else prompt


def _column(row: Mapping[str, object], name: str, where: str) -> Any:
    """The list of tools, or the object of arguments; or its JSON, as TRL has them."""
    value, kind = row.get(name), list if name == "tools" else dict
    if isinstance(value, str):
        value = parse_json(value, f"{where}: `{name}`") if value.strip() else None
    if value is None:
        return kind()
    value = without_nulls(value)
    if not isinstance(value, kind):
        raise DataError(f"{where}: `{name}` is {type(value).__name__}, expected {kind.__name__} or its JSON.")
    check_json(value, name, where)
    return value


def _side(row: Mapping[str, object], name: str, where: str) -> Text:
    if row.get(name) is None:
        known = ", ".join([str(key) for key, value in row.items() if value is not None][:8]) or "nothing"
        raise DataError(
            f"{where}: no `{name}`; found {known}. A preference row needs chosen and rejected (and usually prompt)."
        )
    return as_text(row[name], name, where)


def _number(row: Mapping[str, object], name: str, where: str, above: float, expected: str) -> float | None:
    """The finite number above `above` in a column; None where there is none."""
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, Decimal):  # of a Parquet file
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= 1e38:
        raise DataError(f"{where}: `{name}` is {value!r:.40}, expected {expected}, or no such column.")
    return float(value)


def _split_common(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """What both sides begin with, and the rest of each."""
    length = 0
    while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
        length += 1
    if isinstance(chosen, str) and length > 0 and chosen[length - 1] == " ":
        length -= 1
    return chosen[:length], chosen[length:], rejected[length:]


def _check_sides(pair: Pair, where: str, implicit: bool) -> None:
    if pair.chosen == pair.rejected:
        raise DataError(f"{where}: chosen and rejected are the same; such a row says nothing about preference, remove it.")
    talk = () if isinstance(pair.prompt, str) else pair.prompt
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        calls = not isinstance(side, str) and any(message.get("tool_calls") for message in side)
        empty = not calls and not words(side).strip()
        if empty:
            after, advice = (" after the part that both sides share", ", or give a `prompt` column") if implicit else ("", "")
            raise DataError(f"{where}: `{name}` is empty{after}; expected a completion. Remove the row{advice}.")
        begins: Message = {} if isinstance(side, str) else side[0]
        if implicit and begins.get("role") in ("system", "user") and all(turn["role"] != "user" for turn in talk):
            raise DataError(
                f"{where}: chosen and rejected begin with different questions, which would be scored as if they were answers; "
                "expected two answers to one question. Mend the row, or remove it."
            )
        if begins.get("role") == "assistant" and talk[-1:] == (begins,):
            raise DataError(
                f"{where}: the prompt ends in `{name}` itself, which would be read twice. Remove it from the prompt."
            )
