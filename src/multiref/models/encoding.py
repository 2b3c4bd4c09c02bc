"""From text to token ids: where the prompt ends and the completion begins, the end token, truncation, chat templates."""

import copy
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

from multiref.errors import DataError, ModelError
from multiref.models.chat import Chat
from multiref.models.conversation import warn_of_strings, write_conversation
from multiref.models.spec import TOKENISATION, Tokenisation

Text = Any  # str | tuple of chat messages: `multiref.data.Text`, which this room must not import
Ids = tuple[int, ...]
ANCHORS = ("\n", ".", "a", "0", ")", "A", "z", "-", "|")


@dataclass(frozen=True)
class Encoded:
    """A prompt and its completions as token ids of one tokenizer.

    prompt_ids is the context of every completion, start token included; `contexts`, where not empty, holds each completion's
    own context instead (truncation that keeps the end cuts the prompt by as much as this completion needs; a chat template may
    open a block with which one answer begins and another does not), for a score must not depend on the completion beside it.
    """

    prompt_ids: Ids
    completions: tuple[Ids, ...]
    truncated: tuple[bool, ...]
    contexts: tuple[Ids, ...] = ()

    def context(self, index: int) -> Ids:
        """The token ids before completion `index`."""
        return self.contexts[index] if self.contexts else self.prompt_ids

    def digest(self, index: int) -> int:
        """64 bits that name what is scored of completion `index`: blake2b of the boundary's place, the context's ids and the
        completion's ids, each as int64. Never 0, which stands for "unknown" where digests are stored."""
        context = self.context(index)
        ids = array("q", (len(context), *context, *self.completions[index]))
        if sys.byteorder == "big":
            ids.byteswap()
        return int.from_bytes(blake2b(ids.tobytes(), digest_size=8).digest(), "little") or 1


def as_tokenizer(given: Any) -> Any:
    """The tokenizer itself; of a processor its tokenizer, with the processor's chat template where that has none of its own.
    ModelError for what is neither."""
    if hasattr(given, "tokenizer") and not hasattr(given, "eos_token_id"):
        inner, template = given.tokenizer, getattr(given, "chat_template", None)
        if template is not None and getattr(inner, "chat_template", None) is None:
            inner = copy.copy(inner)
            inner.chat_template = template
        return as_tokenizer(inner)
    if not callable(given) or not hasattr(given, "eos_token_id"):
        raise ModelError(
            f"Found {type(given).__name__} where a tokenizer is expected; give transformers' tokenizer of the model "
            "(of a processor: processor.tokenizer)."
        )
    rules = getattr(getattr(given, "backend_tokenizer", None), "model", None)
    if getattr(rules, "dropout", None) or (getattr(given, "sp_model_kwargs", None) or {}).get("enable_sampling"):
        raise ModelError(
            "This tokenizer cuts words at random, another way each time (dropout in tokenizer.json, or SentencePiece's "
            "sampling), and scores would be of other tokens each time. Set dropout to null, or enable_sampling to false."
        )
    return given


def context_of(config: Any) -> int | None:
    """Tokens of the context that a model's configuration names; None where it names none, or writes "no limit" as 0 or −1."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(text, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def encode(tokenizer: Any, prompt: Text, completions: Sequence[Text], tokenisation: Tokenisation = TOKENISATION) -> Encoded:
    """Token ids of a prompt and of what follows it.

    The context is always encode(prompt), start token first: what the model is given when it generates. It does not depend on
    the completion. The completion's tokens are those that follow the context in encode(prompt + completion).
    Where a token of the joint text straddles the boundary (so that encode(prompt) does not begin it), the completion is encoded
    as a continuation instead, without the start token and without the space that SentencePiece-like tokenizers put in front.
    Either way context and completion spell prompt + completion as far as the tokenizer can, and different completions of one
    prompt have comparable scores. A start token that the text writes itself is not put there again, and an end token with
    which it ends is not added again.

    Args:
        prompt, completions: strings, or tuples of chat messages, which go through the tokenizer's chat template.
        tokenisation: start and end tokens, the rule above or another, truncation. What is cut is marked in `truncated`;
            the start token is not cut.

    Errors: ModelError for a tokenizer that lacks what is needed; DataError where nothing of a completion would be left.
    """
    return encode_many(tokenizer, [(prompt, completions)], tokenisation)[0]


def encode_many(
    tokenizer: Any,
    items: Sequence[tuple[Text, Sequence[Text]]],
    tokenisation: Tokenisation = TOKENISATION,
    *,
    origins: Sequence[str] = (),
) -> list[Encoded]:
    """`encode` of many (prompt, completions) at once: the same ids, several times as fast.

    origins: what each item is called in errors and warnings ("pairs.jsonl:12"); none: by how its prompt begins.
    """
    tokenizer = as_tokenizer(tokenizer)
    names = origins or [""] * len(items)
    warn_of_strings(tokenizer, (prompt for prompt, _ in items if isinstance(prompt, str)))
    rows: list[_Row] = []
    order: list[list[int]] = []  # of each item: which of its rows each completion is in
    for (prompt, completions), name in zip(items, names):
        with _named(name, prompt):
            text, answers = _write(tokenizer, prompt, completions, tokenisation, name)
        contexts = list(dict.fromkeys(context for context, _ in answers)) or [text]
        plain = isinstance(prompt, str)
        rows += [_Row(each, tuple(rest for context, rest in answers if context == each), name, plain) for each in contexts]
        order.append([contexts.index(context) for context, _ in answers] or [0])
    encoded = iter(_encode_rows(tokenizer, rows, tokenisation))
    return [_joined([next(encoded) for _ in range(max(places) + 1)], places) for places in order]


class _Row(NamedTuple):
    """What stands before some completions, and the completions as texts."""

    text: str
    rests: tuple[str, ...]
    name: str
    plain: bool


def _encode_rows(tokenizer: Any, rows: Sequence[_Row], tokenisation: Tokenisation) -> list[Encoded]:
    apart = tokenisation.join == "tokens"
    bodies = _plain_ids(tokenizer, [row.text for row in rows], [row.name for row in rows])
    texts = [rest if apart else row.text + rest for row in rows for rest in row.rests]
    joints = iter(_plain_ids(tokenizer, texts, [row.name for row in rows for _ in row.rests]))
    start = start_ids(tokenizer) if tokenisation.start else ()
    closes = tokenisation.end and any(row.plain for row in rows)
    ends = Chat.of(tokenizer, (), tokenisation).ends() if closes else ()
    encoded = []
    for (text, rests, name, plain), body in zip(rows, bodies):
        with _named(name, text):
            ids = tuple(next(joints) if apart else _continuation(tokenizer, next(joints), text, rest, body) for rest in rests)
            if plain and tokenisation.end:
                ids = tuple(_ended(tokenizer, ends, each, rest) for each, rest in zip(ids, rests))
            context = start + body if plain and body[: len(start)] != start else body
            context = context or _start_token(tokenizer, tokenisation)
            if not body:  # the texts may bring the start token with them; alone, where one token is both, it is the end
                ids = tuple(each[len(context) :] if each[: len(context)] == context != each else each for each in ids)
            encoded.append(_fit(context, ids, start, tokenisation))
    return encoded


def _joined(parts: Sequence[Encoded], places: Sequence[int]) -> Encoded:
    """One item of several, whose completions have not all one context. places: in which part each completion is."""
    if len(parts) == 1:
        return parts[0]
    found = [(places[:n].count(place), parts[place]) for n, place in enumerate(places)]
    columns = zip(*((part.completions[i], part.truncated[i], part.context(i)) for i, part in found))
    return Encoded(parts[0].prompt_ids, *columns)


def check_one_prompt(item: Encoded, origin: str) -> None:
    """DataError where the sides of a pair stand behind different contexts, though nothing was cut."""
    if len(set(item.contexts)) > 1 and not any(item.truncated):
        raise DataError(
            f"{origin}: the chat template opens a block (such as <think>) before an answer, and of chosen and rejected one "
            "begins with it and the other does not: they answer different prompts. Give both sides the block, or neither."
        )


@contextmanager
def _named(name: str, prompt: Text) -> Iterator[None]:
    """Errors name the row, or how its prompt begins."""
    try:
        yield
    except (DataError, ModelError) as error:
        said = f"{name}: {error}" if name else f"{error} The prompt begins {str(prompt)[:50]!r}."
        raise type(error)(said) from error.__cause__


def _write(
    tokenizer: Any, prompt: Text, completions: Sequence[Text], tokenisation: Tokenisation, name: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """An item as strings, each completion with its context: conversations through the template, which writes start and end."""
    if any(isinstance(completion, str) != isinstance(prompt, str) for completion in completions):
        raise DataError(
            "A prompt and its completion are not of one kind: one is a string, the other a list of chat messages. "
            "Give both as strings, or both as messages."
        )
    if isinstance(prompt, str):
        return prompt, tuple((prompt, completion) for completion in completions)
    return write_conversation(tokenizer, prompt, completions, tokenisation, origin=name)


def _ended(tokenizer: Any, ends: tuple[str, ...], ids: Ids, text: str) -> Ids:
    """The completion's ids, the end token last, unless one of these ends its text already. ModelError for a tokenizer that has
    none."""
    words = text.rstrip()
    behind = len(text.encode()) - len(words.encode())
    last = ids[-1 - (behind and behind + 1) :]  # a token of the end, what spaces the text has behind it, and a prefix space
    if words.endswith(ends) and any(tokenizer.convert_tokens_to_ids(token) in last for token in ends):
        return ids
    if (end := tokenizer.eos_token_id) is None:
        raise ModelError("The end token is to be scored, and this tokenizer has none (eos_token); set one, or use end=False.")
    return (*ids, int(end))


def start_ids(tokenizer: Any) -> Ids:
    """What the tokenizer puts before a text: usually the start token, or nothing."""
    tokens = (tokenizer.decode([index]) for index in range(len(tokenizer)) if index not in tokenizer.all_special_ids)
    for text in chain(("a", *ANCHORS), tokens):  # not every vocabulary has an "a"
        try:
            (probe,) = _plain_ids(tokenizer, [text])
        except DataError:
            continue
        if probe:
            full = tuple(tokenizer(text)["input_ids"])
            places = range(len(full) - len(probe) + 1)
            return next((full[:place] for place in places if full[place : place + len(probe)] == probe), ())
    return ()


def _start_token(tokenizer: Any, tokenisation: Tokenisation) -> Ids:
    """The context of an empty prompt."""
    if not tokenisation.start:
        raise DataError("A prompt has no token, and start=False leaves the start token out; nothing predicts the first token.")
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if token is None:
        raise ModelError(
            "An empty prompt needs a start token, and this tokenizer has neither bos_token nor eos_token; set one."
        )
    return (int(token),)


def _plain_ids(tokenizer: Any, texts: list[str], names: Sequence[str] = ()) -> list[Ids]:
    """Token ids of texts, nothing added. DataError naming the text that is no text (half of a surrogate pair has no bytes), or
    that the tokenizer refuses (a vocabulary of words without an unknown one)."""
    if not texts:
        return []
    try:
        found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    except Exception as error:
        for text, name in zip(texts, names or [""] * len(texts)):
            named = name or f"The text {text[:40]!a}"
            if (bad := re.search("[\ud800-\udfff]", text)) is not None:
                raise DataError(
                    f"{named}: character {bad.start() + 1}, {bad[0]!a}, is half of a surrogate pair and no text; repair "
                    "the row or remove it."
                ) from None
            if len(texts) > 1:
                _plain_ids(tokenizer, [text], [named])
        if len(texts) > 1:
            raise
        raise DataError(f"{named}: the tokenizer refuses it: {error}. Give a tokenizer that has an unknown token.") from error
    return [tuple(ids) for ids in found]


def _continuation(tokenizer: Any, joint: Ids, text: str, rest: str, body: Ids) -> Ids:
    """Token ids of `rest` after the prompt `text` with ids `body`, where `joint` are those of both written together."""
    if joint[: len(body)] == body:
        return joint[len(body) :]
    if head := Chat(tokenizer, {}).token_across(text, rest):
        raise DataError(
            f"A special token stands across the end of the prompt, which ends in {head!r}, and the answer begins with "
            f"{rest[:20]!r}. Give the prompt in a column of its own; without one it is what both sides begin with."
        )
    # A token straddles the boundary. Put something in front that no token joins to the text, and take it off again.
    for anchor in ANCHORS:
        before, after = _plain_ids(tokenizer, [anchor, anchor + rest])
        if before and after[: len(before)] == before:
            return after[len(before) :]
    return _plain_ids(tokenizer, [rest])[0]


def _fit(context: Ids, completions: tuple[Ids, ...], start: Ids, tokenisation: Tokenisation) -> Encoded:
    """`completions` cut to `max_length` tokens with their context, and marked."""
    max_length, truncation = tokenisation.max_length, tokenisation.truncation
    over = tuple(max_length is not None and len(context) + len(ids) > max_length for ids in completions)
    if max_length is None or not any(over):
        return Encoded(context, completions, over)
    if truncation == "error":
        longest = len(context) + max(map(len, completions))
        raise DataError(
            f"Prompt and completion have {longest} tokens, more than {max_length}, and truncation is 'error'. "
            "Raise max_length, shorten the text, or let keep_start or keep_end cut it."
        )
    if truncation == "keep_start":
        if len(context) >= max_length:
            raise DataError(
                f"The prompt has {len(context)} tokens and fills the context of {max_length}: nothing of the completion is "
                "left to score. Use truncation='keep_end', or remove the row."
            )
        return Encoded(context, tuple(ids[: max_length - len(context)] for ids in completions), over)
    kept = len(start) if start and context[: len(start)] == start else 0
    contexts = []
    for ids in completions:
        room = max_length - len(ids)
        if room < max(kept, 1):
            raise DataError(
                f"A completion has {len(ids)} tokens, which with one before it is more than the context of {max_length}. "
                "Use truncation='keep_start', or remove the row."
            )
        contexts.append(context if len(context) <= room else context[:kept] + context[len(context) - room + kept :])
    return Encoded(context, completions, over, tuple(contexts))
