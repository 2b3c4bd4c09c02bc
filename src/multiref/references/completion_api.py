"""The completion protocol that vLLM, SGLang and llama.cpp speak after OpenAI's: one request, and the log-probabilities in its
answer."""

import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from multiref.errors import ReferenceUnavailable


class Refused(Exception):
    """The server answered that it will not do this (4xx): asking again is no use, asking otherwise may be."""


@dataclass(frozen=True)
class Connection:
    """How a server is asked.

    timeout: seconds that one request may take; attempts: how often it is tried in all; pause: seconds before the second
    attempt, doubled each time, at most 30; concurrency: requests at a time, where many completions are scored.
    """

    timeout: float = 60.0
    attempts: int = 5
    pause: float = 0.5
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8


CONNECTION = Connection()


@dataclass(frozen=True)
class CompletionApi:
    """Requests to one server. A request is tried again after a time-out, a broken connection, 429 or 5xx, ever more slowly.

    endpoint: URL up to and with the version, "http://host:8000/v1".
    """

    endpoint: str
    connection: Connection = CONNECTION
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)

    def models(self) -> list[dict[str, Any]]:
        """What /models lists."""
        listed = self._request("models", None).get("data")
        if not isinstance(listed, list) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("id"), str) for entry in listed
        ):
            raise ReferenceUnavailable(
                f"{self.endpoint}/models answered no list of models; is this an OpenAI-compatible server?"
            )
        return [dict(entry) for entry in listed]

    def complete(self, **body: Any) -> dict[str, Any]:
        """The first choice of a completion."""
        return self.choices(**body)[0]

    def choices(self, **body: Any) -> list[dict[str, Any]]:
        """All choices of a completion (as many as `n` asks for), at least one."""
        choices = self._request("completions", body).get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, Mapping) for choice in choices):
            raise ReferenceUnavailable(f"{self.endpoint}/completions answered without choices[0]; expected a completion.")
        return [dict(choice) for choice in choices]

    def command(self, path: str, **body: Any) -> None:
        """A request whose answer says nothing but that it was done, such as vLLM's load_lora_adapter."""
        self._request(path, body, plain=True)

    def _request(self, path: str, body: Mapping[str, Any] | None, *, plain: bool = False) -> dict[str, Any]:
        url = f"{self.endpoint.rstrip('/')}/{path}"
        trouble, ask = "", self.connection
        for attempt in range(ask.attempts):
            if attempt:
                self.sleep(min(30.0, ask.pause * 2 ** (attempt - 1)))
            try:
                text = self._open(url, body)
            except urllib.error.HTTPError as error:
                trouble = f"HTTP {error.code}: {_excerpt(error.read())}"
                if error.code != 429 and error.code < 500:
                    raise Refused(f"{url} answered {trouble}") from None
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                trouble = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"
            else:
                return {} if plain else _as_object(url, text)
        raise ReferenceUnavailable(
            f"{url} gave no answer in {ask.attempts} attempts of at most {ask.timeout:g} s; the last ended in {trouble}. "
            "Is the server up, and the address right? A slow one needs a longer `timeout`."
        )

    def _open(self, url: str, body: Mapping[str, Any] | None) -> bytes:
        key = self.connection.api_key
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")  # never by way of a proxy
        opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
        with opener.open(urllib.request.Request(url, data=data, headers=headers), timeout=self.connection.timeout) as response:
            answer: bytes = response.read()
            return answer


def token_logps_of_prompt(choice: Mapping[str, Any], ids: Sequence[int]) -> list[float | None]:
    """`prompt_logprobs` (vLLM): a list with, for each prompt token, {id: {"logprob": …}}; the first is null."""
    listed = choice.get("prompt_logprobs")
    if not isinstance(listed, list) or len(listed) != len(ids):
        found = f"{len(listed)} entries" if isinstance(listed, list) else type(listed).__name__
        raise ReferenceUnavailable(f"The server's prompt_logprobs are {found}; expected one for each of {len(ids)} tokens.")
    logps: list[float | None] = []
    for position, (entry, token) in enumerate(zip(listed, ids)):
        if entry is None:
            logps.append(None)
            continue
        known = entry.get(str(token), entry.get(token)) if isinstance(entry, Mapping) else None
        value = known.get("logprob") if isinstance(known, Mapping) else known
        logps.append(_sound(value, f"prompt_logprobs[{position}] for token {token}"))
    return logps


def token_logps_of_echo(choice: Mapping[str, Any]) -> tuple[list[str], list[float | None]]:
    """`echo` with `logprobs` (OpenAI): the tokens as text, and their log-probabilities; the first is null."""
    block = choice.get("logprobs")
    tokens, values = (block.get(key) if isinstance(block, Mapping) else None for key in ("tokens", "token_logprobs"))
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        raise ReferenceUnavailable(
            "The server echoed no logprobs (logprobs.tokens and logprobs.token_logprobs of one length); it must support `echo` "
            "with "
            "`logprobs`, or `prompt_logprobs`, to be a reference."
        )
    return [str(token) for token in tokens], [
        None if value is None else _sound(value, f"token_logprobs[{position}]") for position, value in enumerate(values)
    ]


def _sound(value: Any, where: str) -> float:
    """A log-probability: a number, not NaN, not above 0 (but for rounding)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise ReferenceUnavailable(f"The server's {where} is {value!r}; expected a log-probability, at most 0.")
    return float(value)


def _as_object(url: str, text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ReferenceUnavailable(
            f"{url} answered {_excerpt(text)}; expected a JSON object. Is this an OpenAI-compatible server?"
        )
    return answer


def _excerpt(text: bytes) -> str:
    shown = text.decode("utf-8", "replace").strip() or "nothing"
    return repr(shown if len(shown) <= 300 else shown[:297] + "...")
