"""Pieces of choices → OpenAI's JSON: one object, or one an event of a stream."""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

from multiref.serving.asked import Asked
from multiref.serving.served import Finished, Piece, Told


class Answered:
    """The words around one answer: its id, its time, the model's name."""

    def __init__(self, asked: Asked, model: str) -> None:
        self.asked = asked
        kind = "chat.completion" if asked.chat else "text_completion"
        streamed = f"{kind}.chunk" if asked.chat and asked.stream else kind
        name = f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.head: dict[str, Any] = {"id": name, "object": streamed, "created": int(time.time()), "model": model}
        if asked.usage:  # null in every chunk but the last
            self.head["usage"] = None

    def whole(self, events: Iterable[Piece | Finished]) -> dict[str, Any]:
        """One object with every choice."""
        count = len(self.asked.prompts) * self.asked.n
        pieces: list[list[Piece]] = [[] for _ in range(count)]
        usage: dict[str, Any] = {}
        for event in events:
            if isinstance(event, Finished):
                usage = _usage(event)
            else:
                pieces[event.choice].append(event)
        choices = []
        for index, own in enumerate(pieces):
            text, tokens = "".join(each.text for each in own), [token for each in own for token in each.tokens]
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.asked.chat else {"text": text}
            finish = next((each.finish for each in own if each.finish), None)
            choices.append({"index": index, **said, "logprobs": self._logprobs(tokens), "finish_reason": finish})
        return {**self.head, "choices": choices, **usage}

    def begin(self) -> list[dict[str, Any]]:
        """What a stream of chat begins with: who speaks."""
        if not self.asked.chat:
            return []
        return [self._chunk(i, {"role": "assistant", "content": ""}, (), None) for i in range(self.asked.n)]

    def event(self, event: Piece | Finished) -> list[dict[str, Any]]:
        """The objects of a stream that say this."""
        if isinstance(event, Finished):
            return [{**self.head, "choices": [], **_usage(event)}] if self.asked.usage else []
        if not self.asked.chat:
            logprobs = self._logprobs(event.tokens)
            choice = {"index": event.choice, "text": event.text, "logprobs": logprobs, "finish_reason": event.finish}
            return [{**self.head, "choices": [choice]}]
        said = {"content": event.text} if event.text else {}
        found = [self._chunk(event.choice, said, event.tokens, None)] if said or event.tokens else []
        return [*found, self._chunk(event.choice, {}, (), event.finish)] if event.finish else found

    def _chunk(self, index: int, delta: dict[str, str], tokens: Sequence[Told], finish: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        return {**self.head, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}

    def _logprobs(self, tokens: Sequence[Told]) -> dict[str, Any] | None:
        if self.asked.top is None:
            return None
        if self.asked.chat:
            named = [{**_named(t.token, t.logp), "top_logprobs": [_named(*each) for each in t.top.items()]} for t in tokens]
            return {"content": named, "refusal": None}
        return {
            "tokens": [each.token for each in tokens],
            "token_logprobs": [each.logp for each in tokens],
            "top_logprobs": [dict(each.top) if each.logp is not None else None for each in tokens] if self.asked.top else None,
            "text_offset": [each.offset for each in tokens],
        }


def _named(token: str, logp: float | None) -> dict[str, Any]:
    """bytes are null where a token is a part of a character."""
    return {"token": token, "logprob": logp, "bytes": None if "�" in token else list(token.encode())}


def _usage(event: Finished) -> dict[str, Any]:
    read, written = event.prompt_tokens, event.completion_tokens
    counts = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return {"usage": counts, "multiref": dict(event.notes)}


def as_event(content: dict[str, Any] | str) -> bytes:
    """One event of a stream."""
    text = content if isinstance(content, str) else json.dumps(content, allow_nan=False)
    return f"data: {text}\n\n".encode()
