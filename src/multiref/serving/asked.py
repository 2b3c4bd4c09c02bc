"""A request's JSON → `Asked`: every field is understood, has no effect as it stands, or is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiref.errors import MultirefError
from multiref.models.spec import Generation

Ids = tuple[int, ...]
MOST_CHOICES, MOST_STOPS, LONGEST_STOP, MOST_TOP = 128, 16, 256, 20
COLDEST = 1e-3  # below it a division overflows
DEFAULT = 16  # tokens of a completion whose request names no number, as OpenAI has it
# What a field may say because it changes nothing. Anything else in it, and every other field, is refused.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (),
    "frequency_penalty": (0,),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}


class BadRequest(MultirefError):
    """What is asked for cannot be done. status: of HTTP; field: the one to change; code: OpenAI's word for it; allow: what the
    address has instead."""

    def __init__(
        self, message: str, field: str | None = None, *, status: int = 400, code: str | None = None, allow: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.field, self.code, self.allow = status, field, code, allow


@dataclass(frozen=True)
class Asked:
    """One request.

    prompts: strings, token ids, or one conversation (chat). new_tokens: None: as many as the server gives.
    top: likeliest tokens that are told with each token; None: no log-probabilities. as_ids: tokens are called "token_id:N".
    """

    prompts: tuple[Any, ...]
    chat: bool = False
    new_tokens: int | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    stops: tuple[str, ...] = ()
    seed: int | None = None
    top: int | None = None
    echo: bool = False
    as_ids: bool = False
    stream: bool = False
    usage: bool = False

    def generation(self, new_tokens: int) -> Generation:
        """At most so many tokens, drawn as it asks."""
        return Generation(new_tokens, self.temperature, self.top_k, self.top_p, self.min_tokens)


def read_request(body: Any, model: str, *, chat: bool) -> Asked:
    """The body of /v1/completions or /v1/chat/completions. BadRequest, naming the field, for what is not understood."""
    if not isinstance(body, Mapping):
        raise BadRequest(f"The body is {_shown(body)}; expected a JSON object.")
    fields = _Fields({name: value for name, value in body.items() if value is not None})
    named = fields.take("model", str, "")
    if named != model:
        raise BadRequest(
            f"The model {named[:60]!r} is not served here; {model!r} is.", "model", status=404, code="model_not_found"
        )
    new = fields.take("max_tokens", int, None if chat else DEFAULT, 0 if not chat else 1, 2**31)
    if chat:
        completion = fields.take("max_completion_tokens", int, new, 1, 2**31)
        if new is not None and completion != new:
            raise BadRequest(f"max_tokens is {new} and max_completion_tokens {completion}; give one of them.", "max_tokens")
        new = completion
    asked = Asked(
        prompts=(_conversation(fields),) if chat else _prompts(fields),
        chat=chat,
        new_tokens=new,
        n=fields.take("n", int, 1, 1, MOST_CHOICES),
        temperature=float(fields.take("temperature", float, 1.0, 0, 2)),
        top_p=float(fields.take("top_p", float, 1.0, 1e-9, 1)),
        top_k=max(0, fields.take("top_k", int, 0, -1, 2**31)),
        min_tokens=fields.take("min_tokens", int, 0, 0, 2**31),
        stops=_stops(fields),
        seed=fields.take("seed", int, None, -(2**63), 2**63 - 1),
        top=_top(fields, chat),
        echo=False if chat else fields.take("echo", bool, False),
        as_ids=False if chat else fields.take("return_tokens_as_token_ids", bool, False),
        stream=fields.take("stream", bool, False),
        usage=_stream_options(fields),
    )
    fields.refuse_the_rest(asked.n)
    if 0 < asked.temperature < COLDEST:
        raise BadRequest(f"temperature is {asked.temperature:g}; expected 0 or at least {COLDEST:g}.", "temperature")
    if len(asked.prompts) * asked.n > MOST_CHOICES:
        raise BadRequest(f"{len(asked.prompts)} prompts × n {asked.n} are more than {MOST_CHOICES} choices.", "n")
    if new == 0 and not asked.echo:
        raise BadRequest("max_tokens is 0, and without `echo` nothing would be answered.", "max_tokens")
    if asked.min_tokens > (asked.min_tokens if new is None else new):
        raise BadRequest(f"min_tokens is {asked.min_tokens}, more than max_tokens {new}.", "min_tokens")
    return asked


class _Fields:
    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.left = given, dict(given)

    def take(self, name: str, kind: type, default: Any, low: float | None = None, high: float | None = None) -> Any:
        """The field's value, of this kind and within these bounds."""
        value = self.left.pop(name, default)
        if name not in self.given:
            return value
        right = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
        if not right or (low is not None and high is not None and not low <= value <= high):
            words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}[kind]
            bounds = "" if low is None else f" from {low:g} to {high:g}"
            raise BadRequest(f"{name} is {_shown(value)}; expected {words}{bounds}.", name)
        return value

    def refuse_the_rest(self, n: int) -> None:
        """BadRequest for the first field that asks for something."""
        self.take("user", str, "")
        for name, value in self.left.items():
            neutral = [*_NEUTRAL.get(name, ()), *([n] if name == "best_of" else [])]
            if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
                only = f" other than {' or '.join(map(repr, neutral))}" if neutral else ""
                raise BadRequest(f"{name[:60]!r}{only} is not supported by this server; leave it out.", name[:60])


def _prompts(fields: _Fields) -> tuple[Any, ...]:
    """A string, a list of strings, token ids, or a list of lists of them."""
    found = fields.left.pop("prompt", None)
    listed = found if isinstance(found, list) and found and not _is_id(found[0]) else [found]
    if len(listed) > MOST_CHOICES:
        raise BadRequest(f"prompt: found {len(listed):,} prompts; expected at most {MOST_CHOICES}.", "prompt")
    for each in listed:
        if not isinstance(each, str) and not (isinstance(each, list) and each and all(map(_is_id, each))):
            raise BadRequest(f"prompt: found {_shown(each)}; expected a string, token ids, or a list of either.", "prompt")
    return tuple(each if isinstance(each, str) else tuple(each) for each in listed)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _conversation(fields: _Fields) -> tuple[dict[str, Any], ...]:
    """Messages with a role and text; what else a message may have must be empty."""
    found = fields.left.pop("messages", None)
    if not isinstance(found, list) or not found:
        raise BadRequest(f"messages: found {_shown(found)}; expected a list of at least one message.", "messages")
    messages = []
    for place, each in enumerate(found):
        where = f"messages[{place}]"
        if not isinstance(each, Mapping) or not isinstance(each.get("role"), str):
            raise BadRequest(f'{where}: found {_shown(each)}; expected {{"role": string, "content": string}}.', "messages")
        for name, value in each.items():
            if name not in ("role", "content") and value not in (None, []):
                raise BadRequest(f"{where}.{name[:60]} is not supported by this server; leave it out.", "messages")
        content = each.get("content")
        parts: list[Any] = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            plain = isinstance(part, Mapping) and part.keys() == {"type", "text"} and part["type"] == "text"
            if not plain or not isinstance(part["text"], str):
                raise BadRequest(f"{where}.content: found {_shown(part)}; expected a string or text parts.", "messages")
        messages.append({"role": each["role"], "content": "".join(part["text"] for part in parts)})
    return tuple(messages)


def _stops(fields: _Fields) -> tuple[str, ...]:
    found = fields.left.pop("stop", [])
    listed = [found] if isinstance(found, str) else found
    sound = isinstance(listed, list) and len(listed) <= MOST_STOPS
    if not sound or not all(isinstance(each, str) and 0 < len(each) <= LONGEST_STOP for each in listed):
        raise BadRequest(
            f"stop: found {_shown(found)}; expected at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters.", "stop"
        )
    return tuple(listed)


def _top(fields: _Fields, chat: bool) -> int | None:
    """Chat says `logprobs` and `top_logprobs`; a completion says the number in `logprobs`."""
    if not chat:
        found: int | None = fields.take("logprobs", int, None, 0, MOST_TOP)
        return found
    told, number = fields.take("logprobs", bool, False), fields.take("top_logprobs", int, 0, 0, MOST_TOP)
    if number and not told:
        raise BadRequest("top_logprobs needs logprobs: true.", "top_logprobs")
    return number if told else None


def _stream_options(fields: _Fields) -> bool:
    options = fields.left.pop("stream_options", {})
    if not isinstance(options, Mapping) or (options and not fields.given.get("stream")):
        raise BadRequest("stream_options: expected an object, of a request with stream: true.", "stream_options")
    inner = _Fields({name: value for name, value in options.items() if value is not None})
    told: bool = inner.take("include_usage", bool, False)
    inner.left.pop("include_obfuscation", None)
    if inner.left:
        raise BadRequest(f"stream_options.{next(iter(inner.left))[:60]} is not supported.", "stream_options")
    return told


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
