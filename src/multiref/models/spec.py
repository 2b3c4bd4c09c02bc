"""Which model, how text becomes tokens, and what is sampled: three small values, the same in Python and in a run's file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Literal

from multiref._files import unusable_name
from multiref.errors import ArgumentError

DTYPES = ("float32", "bfloat16", "float16", "float64")
_FROM_FILES = {"extra": "forbid", "strict": True}  # how pydantic reads one of these from a file


@dataclass(frozen=True)
class ModelSpec:
    """A model to load.

    path: a folder, an adapter's folder (its base is loaded too), or a hub id.
    dtype: of the weights, one of `DTYPES`; None: float32, and for a reference what its collection says; "auto", for a
        reference: bfloat16 on an accelerator, and on a processor where it is measurably faster (`choose_precision`).
    revision: of a hub id: branch, tag or commit; None: the newest.
    adapter: a PEFT adapter to put on the model: folder or hub id.
    quantization: "int8" (torch's dynamic int8 on the CPU, for scoring only; bitsandbytes on CUDA) or "int4" (bitsandbytes, NF4,
        on either).
    attention: transformers' `attn_implementation` ("sdpa", "eager", "flash_attention_2", …); None: the model's own choice.
    trust_remote_code: run the code that comes with the model.
    allow_keys: patterns (as of file names: "vision_tower.*") of weights that the checkpoint may lack, or have without a place
        in the model. Every other one is an error, for the model would not be the one that was saved.

    Errors: ArgumentError for a value that is none of these.
    """

    __pydantic_config__ = _FROM_FILES

    path: str
    dtype: str | None = None
    revision: str | None = None
    adapter: str | None = None
    quantization: str | None = None
    attention: str | None = None
    trust_remote_code: bool = False
    allow_keys: Sequence[str] = ()

    @classmethod
    def of(cls, what: "str | os.PathLike[str] | ModelSpec") -> "ModelSpec":
        """The spec itself, or that of a path alone."""
        return what if isinstance(what, ModelSpec) else cls(os.fspath(what))

    def __post_init__(self) -> None:
        for name in ("path", "adapter"):  # paths from Python, and from the home folder
            if isinstance(value := getattr(self, name), str | os.PathLike):
                object.__setattr__(self, name, os.path.expanduser(os.fspath(value)))
        if not isinstance(self.path, str) or not self.path:
            raise ArgumentError(f"path: found {self.path!r}; expected a model's folder or a hub id.")
        for name in ("path", "adapter"):
            if problem := unusable_name(getattr(self, name) or ""):
                raise ArgumentError(f"{name}: {getattr(self, name)[:60]!r} {problem}; expected a model's folder or a hub id.")
        if isinstance(self.allow_keys, str) or not all(isinstance(each, str) for each in self.allow_keys):
            raise ArgumentError(f"allow_keys: found {self.allow_keys!r}; expected a list of patterns.")
        object.__setattr__(self, "allow_keys", tuple(self.allow_keys))
        _check("dtype", self.dtype, (None, "auto", *DTYPES))
        _check("quantization", self.quantization, (None, "int8", "int4"))


@dataclass(frozen=True)
class Tokenisation:
    """How prompt and completion become token ids; what scores and training depend on, so it is one value that travels with
    both.

    start: put the tokenizer's start token before a plain prompt. (What a chat template writes is its own affair.)
    end: score the end token too: appended to a plain completion; in a conversation the template's own end of turn.
    join: "text": the completion's tokens are those that follow the prompt's in encode(prompt + completion); "tokens":
        prompt and completion are encoded apart.
    max_length: tokens of prompt and completion together; None: the model's context.
    truncation: of what is longer: "keep_start" drops the completion's last tokens, "keep_end" the prompt's first ones, "error"
        refuses.
    chat_template_kwargs: passed to the tokenizer's `apply_chat_template`, such as {"enable_thinking": false}.
    """

    __pydantic_config__ = _FROM_FILES

    start: bool = True
    end: bool = True
    join: Literal["text", "tokens"] = "text"
    max_length: int | None = None
    truncation: Literal["keep_start", "keep_end", "error"] = "keep_start"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check("join", self.join, ("text", "tokens"))
        _check("truncation", self.truncation, ("keep_start", "keep_end", "error"))
        if self.max_length is not None and self.max_length < 2:
            raise ArgumentError(f"max_length is {self.max_length}; expected at least 2 tokens, one to see and one to score.")

    def within(self, context: int | None) -> "Tokenisation":
        """The same, for a model that holds so many tokens (None: not known)."""
        limits = [limit for limit in (self.max_length, context) if limit]
        return replace(self, max_length=min(limits) if limits else None)

    def identity(self) -> dict[str, Any]:
        """All of it, for a reference's identity."""
        return {**vars(self), "chat_template_kwargs": dict(self.chat_template_kwargs)}


@dataclass(frozen=True)
class Generation:
    """What is sampled, and how: the distribution is softmax(logits / temperature), cut by top_k and then top_p, and by nothing
    else.

    max_new_tokens: a completion that has not ended by then is cut, and is an outcome of its own.
    temperature: 0 takes the likeliest token.
    top_k: so many likeliest tokens; 0: all. top_p: the fewest likeliest tokens that have this mass; 1: all.
    min_new_tokens: a completion cannot end before it has so many.
    cache: transformers' kind of cache, "dynamic" or "static" (of fixed size: compiles well); None:
        dynamic, or none where the model has none.
    batch: completions sampled side by side; None: all.
    """

    __pydantic_config__ = _FROM_FILES

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_new_tokens: int = 0
    cache: Literal["dynamic", "static"] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        _check("cache", self.cache, (None, "dynamic", "static"))
        for name, least in (("max_new_tokens", 1), ("top_k", 0), ("min_new_tokens", 0), ("batch", 1)):
            value = getattr(self, name)
            absent = value is None and name == "batch"
            if not absent and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
                raise ArgumentError(f"{name} is {value!r}; expected a whole number, at least {least}.")
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise ArgumentError(
                f"Found temperature {self.temperature} and top_p {self.top_p}; expected a finite temperature of at least 0, "
                "and top_p above 0 and at most 1."
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ArgumentError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens {self.max_new_tokens}. "
                "Expected at most that."
            )


def _check(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        raise ArgumentError(f"{name} is {value!r}; expected one of {', '.join(map(str, known))}.")


TOKENISATION = Tokenisation()  # the default of whatever takes one
