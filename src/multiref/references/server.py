"""A reference behind an OpenAI-compatible completion server (vLLM, SGLang, llama.cpp, …)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch

from multiref.errors import ArgumentError, ModelError, ReferenceUnavailable
from multiref.models.draws import COARSE
from multiref.models.encoding import encode_many
from multiref.models.loading import load_tokenizer
from multiref.models.spec import TOKENISATION, ModelSpec, Tokenisation
from multiref.references.bounded_http import Refused
from multiref.references.completion_api import (
    CONNECTION,
    WORKS,
    CompletionApi,
    Connection,
    check_logps,
    check_repeated,
    match_tokens,
    token_logps_of_prompt,
    tokens_of_echo,
)
from multiref.references.identity import text_identity
from multiref.references.protocol import Item, Scored

MODES = ("auto", "prompt_logprobs", "echo")
LIKELIEST = 5  # tokens of a place, as many as OpenAI tells of


class ServerReference:
    """Scores completions by asking a server for the log-probabilities of a prompt (prompt and completion in one).

    Args:
        endpoint: "http://host:8000/v1".
        model: its name there; None: the first one that /models lists.
        tokenizer: the model's tokenizer (folder, hub id, `ModelSpec`, or the object). With it, token ids are sent, and split
            exactly as for a local reference. Without it text is sent and split where the server's tokens say, if a token ends
            at the boundary; the end token cannot be scored (`Tokenisation(end=False)`) and conversations cannot be written.
        tokenisation: what is scored. `max_length` is at most the context that the server states (vLLM does) less the token it
            always adds.
        mode: "prompt_logprobs" (vLLM, SGLang's vLLM-compatible servers), "echo" (with `logprobs`), or "auto":
            the first if the server does it.
        weights: your own label for what the server serves. Scores are stored under endpoint, model name and this label, for a
            server
            does not tell a fingerprint: change the label when the weights change.
        connection: time-outs, attempts, API key, requests at a time.

    Errors: ReferenceUnavailable for a server that does not answer, or answers what is no score, or another one when it is asked
        again.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        model: str | None = None,
        tokenizer: Any = None,
        tokenisation: Tokenisation = TOKENISATION,
        mode: str = "auto",
        weights: str | None = None,
        connection: Connection = CONNECTION,
    ) -> None:
        if mode not in MODES:
            raise ArgumentError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")
        if tokenisation.end and tokenizer is None:
            raise ArgumentError(
                f"To score the end token under {endpoint}, its tokenizer must be known here: give tokenizer=…, or score "
                f"without it "
                "(Tokenisation(end=False))."
            )
        self.endpoint, self.mode, self.weights, self._asked = endpoint, mode, weights, tokenisation
        self._api = CompletionApi(endpoint, connection)
        self._concurrency, self._tokenizer, self._model = connection.concurrency, tokenizer, model
        self._likeliest_told = False

    def identity(self) -> Mapping[str, Any]:
        """What a stored score depends on: the server's model, its weights as declared, tokenizer and text."""
        served = {"endpoint": self.endpoint, "model": self.model, "weights": self.weights}
        return text_identity("server", self.tokenizer, self.tokenisation) | served

    def score(self, items: Sequence[Item]) -> Scored:
        """As every reference; requests run side by side, results keep the order of the items."""
        with self._api.hiding():
            return self._score_text(items) if self.tokenizer is None else self._score_ids(items)

    def _score_ids(self, items: Sequence[Item]) -> Scored:
        texts = [(item.prompt, item.completions) for item in items]
        encoded = encode_many(self.tokenizer, texts, self.tokenisation, origins=[item.origin for item in items])
        jobs = [(item.context(index), ids) for item in encoded for index, ids in enumerate(item.completions)]
        ask = lambda job: self._token_logps([*job[0], *job[1]])[len(job[0]) :]  # noqa: E731
        found = self._side_by_side(ask, jobs)
        with self._naming():
            check_repeated(jobs, found, ask)
        return Scored.of(torch.tensor(list(map(_sum, found)), dtype=torch.float64), encoded)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the served model as far as it is known here; None where none was given."""
        by_name = isinstance(self._tokenizer, str | os.PathLike | ModelSpec)
        return load_tokenizer(self._tokenizer) if by_name else self._tokenizer

    @property
    def model(self) -> str:
        """The model's name on the server."""
        return self._model or str(self._served["id"])

    @cached_property
    def tokenisation(self) -> Tokenisation:
        """What was asked for, within the context that the server states less the token it always adds."""
        context = self._served.get("max_model_len")
        return self._asked.within(context - 1 if isinstance(context, int) and context > 2 else None)

    @property
    def max_length(self) -> int | None:
        """Tokens of prompt and completion together; None: no limit known."""
        return self.tokenisation.max_length

    @cached_property
    def _served(self) -> dict[str, Any]:
        listed = self._api.models()
        matching = [entry for entry in listed if self._model in (None, entry["id"])]
        if not matching:
            served = ", ".join(entry["id"][:60] for entry in listed[:5])
            raise ReferenceUnavailable(
                f"{self.endpoint} does not serve {self._model!r}; it serves {served}{', …' * (len(listed) > 5)}."
            )
        return matching[0]

    @property
    def _who(self) -> str:
        """The server, and what it says it is: "vllm", "llamacpp", …"""
        owner = self._served.get("owned_by") if "_served" in self.__dict__ else None
        return f"{self.endpoint} ({owner!s:.60})" if owner else self.endpoint

    def _token_logps(self, ids: list[int]) -> list[float | None]:
        if self.mode in ("auto", "prompt_logprobs"):
            choice: dict[str, Any] = {}
            asked = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 1.0}
            try:
                choice = self._complete(asked, "prompt_logprobs", 0)
            except Refused as error:
                if self.mode == "prompt_logprobs":
                    raise ReferenceUnavailable(f"{error}. The server refuses prompt_logprobs.") from None
            if self.mode == "prompt_logprobs" or choice.get("prompt_logprobs") is not None:
                self.mode = "prompt_logprobs"
                return token_logps_of_prompt(choice, ids)
        tokens, logps = tokens_of_echo(self._echo(ids))
        match_tokens(tokens, ids, self.tokenizer)
        self.mode = "echo"
        return check_logps(logps[: len(ids)], "token_logprobs", first=True)

    def _complete(self, body: Mapping[str, Any], option: str, least: int) -> dict[str, Any]:
        """The answer where `option` asks for so many tokens of each place: once for the likeliest, to see what they have
        together, unless the server tells of fewer; then for as few as there may be."""
        if self._likeliest_told:
            return self._api.complete(**body, **{option: least})
        try:
            answer = self._api.complete(**body, **{option: LIKELIEST})
        except Refused as error:
            if "logprobs" not in str(error):
                raise
            answer = self._api.complete(**body, **{option: least})
        self._likeliest_told = True
        return answer

    def _echo(self, prompt: list[int] | str) -> dict[str, Any]:
        asked = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "echo": True}
        as_ids = {"return_tokens_as_token_ids": True}  # of vLLM: no spelling is to be compared
        said = ""
        for body in ({**asked, **as_ids}, asked) if isinstance(prompt, list) else (asked,):
            try:
                return self._complete(body, "logprobs", 1)
            except Refused as error:
                said = str(error)
                if "return_tokens_as_token_ids" not in said:
                    break
        raise ReferenceUnavailable(
            f"{said}. It must support `echo` with `logprobs`, or `prompt_logprobs`, to be a reference. {WORKS}"
        )

    def _score_text(self, items: Sequence[Item]) -> Scored:
        jobs = [(item.prompt, completion) for item in items for completion in item.completions]
        if not all(isinstance(prompt, str) and isinstance(completion, str) for prompt, completion in jobs):
            raise ModelError(
                f"Conversations are written by a chat template: give the tokenizer of {self.endpoint} (tokenizer=…)."
            )
        parts = self._side_by_side(lambda job: self._completion_logps(*job), jobs)
        sums = torch.tensor([_sum(part) for part in parts], dtype=torch.float64)
        return Scored(sums, torch.tensor([len(part) for part in parts]), torch.zeros(len(parts), dtype=torch.bool))

    def _completion_logps(self, prompt: str, completion: str) -> list[float | None]:
        """The log-probabilities of the echoed tokens that spell the completion."""
        tokens, values = tokens_of_echo(self._echo(prompt + completion))
        logps = check_logps([None, *values[1:]], "token_logprobs", first=True)
        if prompt + completion in "".join(tokens[:-1]):
            del tokens[-1]  # the generated one: an end token or half a character is "" and would count as the completion's last
        ends = list(accumulate(map(len, tokens)))
        spelt = "".join(tokens)
        at = spelt.find(prompt + completion)  # a start token may stand before it, a generated one after
        inside = [i for i, stop in enumerate(ends) if at + len(prompt) < stop <= at + len(prompt + completion)]
        clean = at >= 0 and inside and ends[inside[0]] - len(tokens[inside[0]]) == at + len(prompt)
        if not clean or ends[inside[-1]] != at + len(prompt + completion) or inside[0] == 0:
            raise ReferenceUnavailable(
                f"The tokens of {self.endpoint} do not split prompt from completion ({tokens[:4]!r:.200}…); give its tokenizer "
                f"(tokenizer=…)."
            )
        return logps[inside[0] : inside[-1] + 1]

    def _side_by_side(self, work: Any, jobs: list[Any]) -> list[Any]:
        if not jobs:
            return []
        with self._naming():
            first = work(jobs[0])  # alone: finds out what the server can do
            with ThreadPoolExecutor(self._concurrency) as pool:
                found = [first, *pool.map(work, jobs[1:])]  # the first that fails cancels those that have not begun
            if len(jobs) > 1:
                longest = max(range(len(jobs)), key=lambda place: len(found[place]))
                self._check_again(found[longest], work(jobs[longest]))
        return found

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors say which server it is."""
        try:
            yield
        except ReferenceUnavailable as error:
            raise ReferenceUnavailable(f"{self._who}: {error}") from None

    def _check_again(self, before: Sequence[float | None], now: Sequence[float | None]) -> None:
        """The same question after others, when its beginning may come from a cache, has the same answer."""
        gaps = [abs(b - a) for a, b in zip(before, now, strict=False) if a is not None and b is not None]
        most, mean = COARSE
        if len(before) != len(now) or (gaps and (max(gaps) > most or sum(gaps) / len(gaps) > mean)):
            raise ReferenceUnavailable(
                f"It was asked the same twice, and its log-probabilities differ by {max(gaps, default=0.0):.3g} nats at a "
                f"token, where rounding is {most:g}: its cache goes wrong (vLLM: --no-enable-prefix-caching), or it serves "
                "several models under one name."
            )


def _sum(logps: Sequence[float | None]) -> float:
    if any(value is None for value in logps):
        raise ReferenceUnavailable("The server gave null for a token of the completion; expected a log-probability.")
    return sum(value for value in logps if value is not None)
