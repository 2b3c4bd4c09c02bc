"""A reference behind an OpenAI-compatible completion server (vLLM, SGLang, llama.cpp, …)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
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
    LIKELIEST,
    UNCUT,
    WORKS,
    CompletionApi,
    Connection,
    check_drawn,
    check_logps,
    check_repeated,
    ids_of,
    match_tokens,
    token_logps_of_prompt,
    tokens_of_echo,
)
from multiref.references.identity import text_identity
from multiref.references.protocol import Item, Scored

MODES = ("auto", "prompt_logprobs", "echo")
AS_IDS = {"return_tokens_as_token_ids": True}  # of vLLM: no spelling is to be compared
DRAWN, LONG = 4, 64  # completions that are drawn once, and their tokens


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
        self._drew = False

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
            self._check_drawn(jobs)
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

    def _token_logps(self, ids: list[int]) -> list[float | None]:
        if self.mode in ("auto", "prompt_logprobs"):
            choice: dict[str, Any] = {}
            asked = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
            try:
                choice = self._api.complete(**asked)
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

    def _echo(self, prompt: list[int] | str) -> dict[str, Any]:
        asked = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 1}
        try:
            return _tried(self._api, *([{**asked, **AS_IDS}] if isinstance(prompt, list) else []), asked)[0]
        except Refused as error:
            raise ReferenceUnavailable(
                f"{error}. It must support `echo` with `logprobs`, or `prompt_logprobs`, to be a reference. {WORKS}"
            ) from None

    def _score_text(self, items: Sequence[Item]) -> Scored:
        jobs = [(item.prompt, completion) for item in items for completion in item.completions]
        if not all(isinstance(prompt, str) and isinstance(completion, str) for prompt, completion in jobs):
            raise ModelError(
                f"Conversations are written by a chat template: give the tokenizer of {self.endpoint} (tokenizer=…)."
            )
        parts = self._side_by_side(lambda job: self._completion_logps(*job), jobs)
        with self._naming():
            self._check_drawn(jobs)
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
        """Errors say which server it is, and what it says it is: "vllm", "llamacpp", …"""
        try:
            yield
        except ReferenceUnavailable as error:
            owner = vars(self).get("_served", {}).get("owned_by")
            raise ReferenceUnavailable(f"{self.endpoint}{f' ({owner!s:.60})' if owner else ''}: {error}") from None

    def _check_drawn(self, jobs: Sequence[tuple[Any, Any]]) -> None:
        """Once: what it draws after a prompt comes as often as it says, and it says the same of it when it is sent. A server
        that does not draw, or says nothing of the likeliest tokens, is let be."""
        if self._drew or not jobs:
            return
        self._drew, prompt = True, jobs[0][0] or jobs[0][1]
        sent = prompt if isinstance(prompt, str) else list(prompt)
        longest = LONG if isinstance(sent, str) or self.max_length is None else min(LONG, self.max_length - len(sent))
        plain = {"model": self.model, "prompt": sent, "n": DRAWN, "max_tokens": longest, "logprobs": LIKELIEST}
        uncut, standard = plain | UNCUT, plain | {"temperature": 1.0, "top_p": 1.0}
        once = replace(self._api, connection=replace(self._api.connection, attempts=1))  # a slow one is not waited for
        choices: list[dict[str, Any]] = []
        with suppress(Refused, ReferenceUnavailable):
            choices = _tried(once, uncut | AS_IDS, uncut, standard)
        check_drawn(choices)
        first = choices[0] if choices else {}
        ids, block = ids_of(first), first.get("logprobs")
        stated = block.get("token_logprobs") if isinstance(block, Mapping) else None
        if isinstance(sent, list) and isinstance(ids, list) and isinstance(stated, list):
            known = check_logps(stated[: longest - 1], "token_logprobs")
            self._check_again(known, self._token_logps([*sent, *ids[: longest - 1]])[len(sent) :])

    def _check_again(self, before: Sequence[float | None], now: Sequence[float | None]) -> None:
        """The same question after others, when its beginning may come from a cache, has the same answer."""
        gaps = [abs(b - a) for a, b in zip(before, now, strict=False) if a is not None and b is not None]
        most, mean = COARSE
        if len(before) != len(now) or (gaps and (max(gaps) > most or sum(gaps) / len(gaps) > mean)):
            raise ReferenceUnavailable(
                f"It was asked the same twice, and its log-probabilities differ by {max(gaps, default=0.0):.3g} nats at a "
                f"token, where rounding is {most:g}: its cache goes wrong (vLLM: --no-enable-prefix-caching), it serves "
                "several models under one name, or says other numbers of what it draws than of what it is sent."
            )


def _tried(api: CompletionApi, *bodies: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of the first that is not refused."""
    for body in bodies[:-1]:
        with suppress(Refused):
            return api.choices(**body)
    return api.choices(**bodies[-1])


def _sum(logps: Sequence[float | None]) -> float:
    if any(value is None for value in logps):
        raise ReferenceUnavailable("The server gave null for a token of the completion; expected a log-probability.")
    return sum(value for value in logps if value is not None)
