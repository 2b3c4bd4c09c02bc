"""A request's JSON → `Asked`: every field is understood, has no effect as it stands, or is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from multiref.errors import MultirefError
from multiref.models.spec import Generation

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

    def length(self, usual: int, most: int) -> int:
        """How many tokens it may have: what it names, else the usual number. BadRequest for more than a server gives, and for
        fewer than it must have."""
        new = usual if self.new_tokens is None else self.new_tokens
        if new > most:
            raise BadRequest(f"max_tokens is {new}; this server gives at most {most}.", "max_tokens")
        if self.min_tokens > new:
            raise BadRequest(f"min_tokens is {self.min_tokens}, more than the {new} that there may be.", "min_tokens")
        return new

    def generation(self, new_tokens: int) -> Generation:
        """At most so many tokens, drawn as it asks."""
        return Generation(new_tokens, self.temperature, self.top_k, self.top_p, self.min_tokens)


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: Any = None


class _Fields(BaseModel):
    """What both kinds of a request may say beside what is to be answered; any other field is in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow")
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=1e-9, le=1)
    top_k: int = Field(0, ge=-1, le=2**31)
    min_tokens: int = Field(0, ge=0, le=2**31)
    stop: list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]] = Field([], max_length=MOST_STOPS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    user: str = ""


class _Completion(_Fields):
    max_tokens: int = Field(DEFAULT, ge=0, le=2**31)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    echo: bool = False
    return_tokens_as_token_ids: bool = False


class _Chat(_Fields):
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP)


def read_request(body: Any, model: str, *, chat: bool) -> Asked:
    """The body of /v1/completions or /v1/chat/completions. BadRequest, naming the field, for what is not understood."""
    if not isinstance(body, Mapping):
        raise BadRequest(f"The body is {_shown(body)}; expected a JSON object.")
    given = {name: value for name, value in body.items() if value is not None}
    if (named := given.pop("model", "")) != model:
        raise BadRequest(
            f"The model {str(named)[:60]!r} is not served here; {model!r} is.", "model", status=404, code="model_not_found"
        )
    prompts = (_conversation(given.pop("messages", None)),) if chat else _prompts(given.pop("prompt", None))
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    try:
        said: _Chat | _Completion = _Chat.model_validate(given) if chat else _Completion.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str((wrong["loc"] or (wrong["input"],))[0])[:60]  # a key that is no text has no place
        raise BadRequest(f"{name}: found {_shown(wrong['input'])}. {wrong['msg']}.", name) from None
    _refuse_the_rest(said.model_extra or {}, said.n)
    new, top = said.max_tokens, said.logprobs
    echo, as_ids = (bool(getattr(said, name, False)) for name in ("echo", "return_tokens_as_token_ids"))
    if isinstance(said, _Chat):
        new = said.max_tokens if said.max_completion_tokens is None else said.max_completion_tokens
        if said.max_tokens not in (None, new):
            raise BadRequest(f"max_tokens is {said.max_tokens} and max_completion_tokens {new}; give one.", "max_tokens")
        if said.top_logprobs and not said.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true.", "top_logprobs")
        top = said.top_logprobs if said.logprobs else None
    if given.get("stream_options") and not said.stream:
        raise BadRequest("stream_options: expected of a request with stream: true only.", "stream_options")
    if 0 < said.temperature < COLDEST:
        raise BadRequest(f"temperature is {said.temperature:g}; expected 0 or at least {COLDEST:g}.", "temperature")
    if len(prompts) * said.n > MOST_CHOICES:
        raise BadRequest(f"{len(prompts)} prompts × n {said.n} are more than {MOST_CHOICES} choices.", "n")
    if new == 0 and not echo:
        raise BadRequest("max_tokens is 0, and without `echo` nothing would be answered.", "max_tokens")
    return Asked(
        prompts, chat, new, said.n, said.temperature, said.top_p, max(0, said.top_k), said.min_tokens, tuple(said.stop),
        said.seed, top, echo, as_ids, said.stream, bool(said.stream_options.include_usage),
    )  # fmt: skip


def _refuse_the_rest(left: Mapping[str, Any], n: int) -> None:
    """BadRequest for the first field that asks for something."""
    for name, value in left.items():
        neutral = [*_NEUTRAL.get(name, ()), *([n] if name == "best_of" else [])]
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
            only = f" other than {' or '.join(map(repr, neutral))}" if neutral else ""
            raise BadRequest(f"{name[:60]!r}{only} is not supported by this server; leave it out.", name[:60])


def _prompts(found: Any) -> tuple[Any, ...]:
    """A string, a list of strings, token ids, or a list of lists of them."""
    listed = found if isinstance(found, list) and found and not _is_id(found[0]) else [found]
    if len(listed) > MOST_CHOICES:
        raise BadRequest(f"prompt: found {len(listed):,} prompts; expected at most {MOST_CHOICES}.", "prompt")
    for each in listed:
        if not isinstance(each, str) and not (isinstance(each, list) and each and all(map(_is_id, each))):
            raise BadRequest(f"prompt: found {_shown(each)}; expected a string, token ids, or a list of either.", "prompt")
    return tuple(each if isinstance(each, str) else tuple(each) for each in listed)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _conversation(found: Any) -> tuple[dict[str, Any], ...]:
    """Messages with a role and text; what else a message may have must be empty."""
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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
