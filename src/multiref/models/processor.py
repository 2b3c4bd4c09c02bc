"""A multimodal processor where a tokenizer is expected: its tokenizer is meant."""

import copy
from typing import Any

from multiref.errors import ModelError


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
    return given
