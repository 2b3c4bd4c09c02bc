"""The completion protocol that vLLM, SGLang and llama.cpp speak after OpenAI's: one request, and the log-probabilities in its
answer."""

import http.client
import json
import math
import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from multiref._files import MIB
from multiref._json import parse_json
from multiref.errors import ArgumentError, DataError, ReferenceUnavailable
from multiref.references.bounded_http import Answered, Refused, check_endpoint, hide, hiding, read_key, send
from multiref.report.shown import excerpt

LIKELIEST = 5  # tokens of a place, as many as OpenAI tells of
# log p = factor · s + more: log-probabilities s in another base, or with something taken off
READINGS = ((1 / 1.1, 0.0), (1 / 1.2, 0.0), (math.log(2), 0.0), (1.0, 0.05), (1.0, 0.1), (1.0, 0.2), (1.0, 0.4))
DELTA = 1e-6  # share of honest servers whose draws would be refused
# All said, for what is not said vLLM takes from the model's generation_config.json;
# and it gives the log-probabilities before any of these, so that π/μ would not tell.
UNCUT = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
WORKS = (
    "What works: vLLM (prompt_logprobs, or echo with logprobs) and SGLang (echo). llama.cpp's server, Ollama and LM Studio "
    "give log-probabilities of generated tokens only; TGI speaks another protocol (/generate)."
)


@dataclass(frozen=True)
class Connection:
    """How a server is asked.

    timeout: seconds that one request may take in all, however slowly an answer comes; attempts: how often it is tried in all;
    pause: seconds before the second attempt, doubled each time, at most 30 (as much as a server's Retry-After may ask for);
    api_key: where the key is, "env:NAME" or "file:PATH"; concurrency: requests at a time, where many completions are scored;
    largest: bytes of an answer.

    Errors: ArgumentError for a value that cannot be meant, and for a key that is written out.
    """

    timeout: float = 60.0
    attempts: int = 5
    pause: float = 0.5
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    largest: int = 64 * MIB

    def __post_init__(self) -> None:
        for name, low, high in (("timeout", 1e-3, 86400), ("attempts", 1, 100), ("pause", 0, 30), ("concurrency", 1, 1024),
                                ("largest", 1, 2**40)):  # fmt: skip
            value, whole = getattr(self, name), name in ("attempts", "concurrency", "largest")
            kind = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                expected = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
                raise ArgumentError(f"{name}: found {value!r:.40} of a server's connection; expected {expected}.")
        read_key(self.api_key)


CONNECTION = Connection()


@dataclass(frozen=True)
class CompletionApi:
    """Requests to one server. A request is tried again after a time-out, a broken connection, 429 or 5xx, ever more slowly.

    endpoint: URL up to and with the version, "http://host:8000/v1". Nothing is sent to another host, wherever it redirects.
    """

    endpoint: str
    connection: Connection = CONNECTION
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)
    _other_names: set[str] = field(default_factory=set, init=False, repr=False, compare=False)  # of the model that was asked

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint)

    def hiding(self) -> AbstractContextManager[None]:
        """No error that leaves shows the API key."""
        return hiding(read_key(self.connection.api_key))

    def models(self) -> list[dict[str, Any]]:
        """What /models lists, at least one."""
        try:
            listed = self._request("models", None).get("data")
        except Refused as error:
            raise ReferenceUnavailable(f"{error}. Expected a list of models; is this an OpenAI-compatible server?") from None
        if (
            not isinstance(listed, list)
            or not listed
            or not all(isinstance(entry, Mapping) and isinstance(entry.get("id"), str) for entry in listed)
        ):
            raise ReferenceUnavailable(
                f"{self.endpoint}/models answered no list of models; is this an OpenAI-compatible server?"
            )
        key = read_key(self.connection.api_key)
        if key is not None and any(hide(entry["id"], key) != entry["id"] for entry in listed):
            raise ReferenceUnavailable(f"{self.endpoint}/models lists a model that is called as the API key; expected a name.")
        return [dict(entry) for entry in listed]

    def complete(self, **body: Any) -> dict[str, Any]:
        """The first choice of a completion."""
        return self.choices(**body)[0]

    def choices(self, **body: Any) -> list[dict[str, Any]]:
        """All choices of a completion (as many as `n` asks for) in their order, at least one.

        Errors: ReferenceUnavailable for an answer without, or with an error beside them; of another model that it serves than
            was asked; after other tokens than were sent.
        """
        answer = self._request("completions", body)
        choices, sent = answer.get("choices"), body.get("prompt")
        if answer.get("error"):
            raise ReferenceUnavailable(f"{self.endpoint} answered with an error: {_excerpt(str(answer['error']).encode())}")
        self._check_model(answer.get("model"), body.get("model"))
        usage = answer.get("usage")
        read = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        if isinstance(sent, list) and isinstance(read, int) and read not in (0, len(sent), len(sent) * body.get("n", 1)):
            raise ReferenceUnavailable(
                f"{self.endpoint} says that it read {read} tokens, and {len(sent)} were sent: it adds a start token of its "
                "own, or cuts. Its log-probabilities are of another text. "
                "Check that `tokenizer` is that of the model that it serves."
            )
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, Mapping) for choice in choices):
            raise ReferenceUnavailable(f"{self.endpoint}/completions answered without choices[0]; expected a completion.")
        for choice in choices:
            if isinstance(sent, list) and choice.get("prompt_token_ids") not in (None, sent):
                raise ReferenceUnavailable(
                    f"{self.endpoint} answered to other tokens than were sent: {choice['prompt_token_ids']!r:.60} …, sent were "
                    f"{sent[:8]} …. Expected a server that takes token ids as they are."
                )
        placed = [each if isinstance(each := choice.get("index"), int) else place for place, choice in enumerate(choices)]
        return [dict(choices[place]) for place in sorted(range(len(choices)), key=placed.__getitem__)]

    def _check_model(self, said: object, asked: object) -> None:
        """A server may call a model by another name than we do, but not by that of another one that it lists."""
        if isinstance(said, str) and said != asked and said not in self._other_names:
            if any(entry["id"] == said for entry in self.models()):
                raise ReferenceUnavailable(
                    f"{self.endpoint} was asked for the model {asked!r:.60} and answered as {said!r:.60}, another that it "
                    "serves."
                )
            self._other_names.add(said)

    def command(self, path: str, **body: Any) -> None:
        """A request whose answer says nothing but that it was done, such as vLLM's load_lora_adapter."""
        self._request(path, body, plain=True)

    def _request(self, path: str, body: Mapping[str, Any] | None, *, plain: bool = False) -> dict[str, Any]:
        with self.hiding():
            return self._ask(f"{self.endpoint.rstrip('/')}/{path}", body, plain)

    def _ask(self, url: str, body: Mapping[str, Any] | None, plain: bool) -> dict[str, Any]:
        trouble, wait, ask = "", 0.0, self.connection
        sent, key = None if body is None else json.dumps(body).encode(), read_key(ask.api_key)
        for attempt in range(ask.attempts):
            if attempt:
                self.sleep(min(30.0, max(wait, ask.pause * 2 ** (attempt - 1))))
            wait = 0.0
            try:
                text = send(url, sent, key=key, seconds=ask.timeout, largest=ask.largest)
            except Answered as error:
                trouble, wait = f"HTTP {error.status}: {_excerpt(error.body)}", error.wait
                if error.status != 429 and error.status < 500:
                    raise Refused(f"{url} answered {trouble}") from None
            except (http.client.HTTPException, OSError, ValueError) as error:  # ValueError: of a length that is no number, …
                said = ascii(str(getattr(error, "reason", None) or error).strip())[1:-1]
                trouble = f"{type(error).__name__}: {said[:300]}"
            else:
                return {} if plain else _as_object(url, text)
        raise ReferenceUnavailable(
            f"{url} gave no answer in {ask.attempts} attempts of at most {ask.timeout:g} s; the last ended in {trouble}. "
            "Is the server up, and the address right? A slow one needs a longer `timeout`."
        )


def token_logps_of_prompt(choice: Mapping[str, Any], ids: Sequence[int]) -> list[float | None]:
    """`prompt_logprobs` (vLLM): a list with, for each prompt token, {id: {"logprob": …}}; the first is null."""
    listed = choice.get("prompt_logprobs")
    if not isinstance(listed, list) or len(listed) != len(ids):
        found = f"{len(listed)} entries" if isinstance(listed, list) else type(listed).__name__
        raise ReferenceUnavailable(f"The server's prompt_logprobs are {found}; expected one for each of {len(ids)} tokens.")
    values: list[Any] = []
    for entry, token in zip(listed, ids):
        if not isinstance(entry, Mapping | None):
            raise ReferenceUnavailable(
                f"The server's prompt_logprobs are {entry!r:.60} at place {len(values)}, which names no token; expected "
                f'{{"{token}": {{"logprob": …}}}}. {WORKS}'
            )
        known = None if entry is None else entry.get(str(token), entry.get(token))
        if known is None and entry is not None:
            raise ReferenceUnavailable(
                f"The server's prompt_logprobs have no token {token} at place {len(values)}, where it was sent, but "
                f"{list(entry)[:3]!r:.200}: it adds a start token of its own, leaves one out, or has another vocabulary."
            )
        values.append(known.get("logprob") if isinstance(known, Mapping) else known)
    return check_logps(values, "prompt_logprobs", first=True)


def tokens_of_echo(choice: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """`echo` with `logprobs` (OpenAI): the tokens as text, and what is said of each, not yet checked."""
    block = choice.get("logprobs")
    tokens, values = (block.get(key) if isinstance(block, Mapping) else None for key in ("tokens", "token_logprobs"))
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        other = isinstance(block, Mapping) and block.get("content")
        found = "logprobs.content, which is of generated tokens only" if other else f"logprobs {_excerpt(str(block).encode())}"
        raise ReferenceUnavailable(
            "The server echoed no logprobs (logprobs.tokens and logprobs.token_logprobs of one length); it must support `echo` "
            f"with `logprobs`, or `prompt_logprobs`, to be a reference. Found {found}. {WORKS}"
        )
    return [str(token) for token in tokens], values


def _numbers(entry: object) -> list[float]:
    """What is told of one place, the likeliest first."""
    told = list(entry.values()) if isinstance(entry, Mapping) else []
    numbers = (each.get("logprob") if isinstance(each, Mapping) else each for each in told)
    return sorted((each for each in numbers if isinstance(each, int | float) and -1000 < each < 1), reverse=True)


def ids_of(choice: Mapping[str, Any]) -> Any:
    """The ids of what was generated: `token_ids` (vLLM), or those by which the tokens are called; None where nothing says."""
    block = choice.get("logprobs")
    tokens = block.get("tokens") if isinstance(block, Mapping) else None
    if isinstance(tokens, list) and all(re.fullmatch(r"token_id:\d{1,9}", str(token)) for token in tokens):
        return choice.get("token_ids") or [int(token.partition(":")[2]) for token in tokens]
    return choice.get("token_ids")


def check_drawn(choices: Sequence[Mapping[str, Any]]) -> None:
    r"""ReferenceUnavailable where the likeliest tokens that a server tells of have more than 1.1 together, as in base 10; and
    where what it draws says that its log-probabilities s are in base 2, or lowered throughout.

        r(s) > s: another reading;    S, R: what the tokens likelier than the fifth of a place have together, told and so read
        under honest numbers  Π_t e^{r(s_t) − s_t} (a likely token), (1 − R)/(1 − S) (any other)  has mean 1, so  P(≥ 1/δ) ≤ δ

    A reading that gives the tokens of some place more than 1 together is none. So draws that something sharpens refuse nobody:
    honest numbers are somewhere as large as they may be.
    """
    evidence, seen = [0.0] * len(READINGS), 0
    for block in (choice.get("logprobs") for choice in choices):
        drawn, listed = (block.get(key) if isinstance(block, Mapping) else None for key in ("token_logprobs", "top_logprobs"))
        for logp, entry in zip(drawn, listed) if isinstance(drawn, list) and isinstance(listed, list) else ():
            told = _numbers(entry)
            if (whole := sum(map(math.exp, told))) > 1.1:
                raise ReferenceUnavailable(
                    f"The server's top_logprobs give {len(told)} tokens the probability {whole:.3g} together; expected natural "
                    "logarithms, by which they have at most 1."
                )
            if len(told) < LIKELIEST or not isinstance(logp, int | float) or any(not key or "\ufffd" in key for key in entry):
                continue  # two half characters are spelt alike, and one of them is lost
            likely, seen = [each for each in told if each > told[LIKELIEST - 1]], seen + 1
            rest = max(1e-9, 1 - sum(map(math.exp, likely)))
            for i, (factor, more) in enumerate(READINGS):
                if sum(math.exp(factor * each + more) for each in told) > 1.001:
                    evidence[i] = -math.inf
                elif logp > told[LIKELIEST - 1]:
                    evidence[i] += factor * logp + more - logp
                else:
                    evidence[i] += math.log(max(1e-9, 1 - sum(math.exp(factor * each + more) for each in likely)) / rest)
    found = max(evidence) - math.log(len(READINGS))
    if found >= -math.log(DELTA):
        raise ReferenceUnavailable(
            f"The server draws likely tokens more often than it says that they come: {seen} tokens look like these with "
            f"probability at most {math.exp(-found):.1g}. Its log-probabilities are lowered, or in base 2; expected natural "
            "logarithms of the probabilities at temperature 1."
        )


def match_tokens(tokens: Sequence[str], ids: Sequence[int], tokenizer: Any) -> None:
    """ReferenceUnavailable unless the echoed tokens are those that were sent, and at most one generated after them.

    Spelt as "token_id:…", or as text: with or without the space in front, a special token also as nothing, half a character
    (which each server spells in its own way) as anything.
    """
    if not len(ids) <= len(tokens) <= len(ids) + 1:
        raise ReferenceUnavailable(
            f"The server echoed {len(tokens)} tokens of {len(ids)} that were sent, beginning {list(tokens[:4])!r:.200}; "
            f"expected these and one that it generated. {WORKS}"
        )
    special = set(tokenizer.all_special_ids)
    for place, (token, index) in enumerate(zip(tokens, ids)):
        text, piece = tokenizer.decode([index]), str(tokenizer.convert_ids_to_tokens(index))
        known = {_bare(text), _bare(piece), *([""] if index in special else [])}
        if token.startswith("token_id:"):
            same = token == f"token_id:{index}"
        else:
            same = "\ufffd" in text or token.startswith("bytes:") or _bare(token) in known
        if not same:
            raise ReferenceUnavailable(
                f"The server echoed {token!r:.60} at place {place}, where token {index} ({piece!r}) was sent: it adds a start "
                "token of its own, leaves one out, or has another tokenizer. Its log-probabilities are of another text. Check "
                "that `tokenizer` is that of the model that it serves."
            )


def check_logps(values: Sequence[Any], name: str, *, first: bool = False) -> list[float | None]:
    """The values as log-probabilities, null as None.

    Args:
        name: of the list, for messages. first: they begin with the first token, before which nothing was sent.

    Errors: ReferenceUnavailable for what is none: no number, NaN, above 0 (but for rounding), a number that stands for none
        (−∞, −9999, −100); one of the first token. Of more than three tokens: one value for all, values of one digit behind the
        point, or a floor below which the server tells none.
    """
    before = values[0] if first and values else None
    if isinstance(before, int | float) and before < 0 and not _stands_for_none(before):
        raise ReferenceUnavailable(
            f"The server gave {before!r:.60} for the first token, before which nothing was sent: it puts a start token of its "
            "own in front, or its list is shifted by one."
        )
    found: list[float | None] = [
        None if value is None or (first and place == 0) else _sound(value, f"{name}[{place}]")
        for place, value in enumerate(values)
    ]
    if first:
        _check_together([value for value in found if value is not None])
    return found


def _check_together(values: Sequence[float]) -> None:
    if len(values) <= 3:
        return
    least = min(values)
    if len(set(values)) == 1:
        raise ReferenceUnavailable(
            f"The server gave {least:g} for every token: it computes no log-probabilities of a prompt. {WORKS}"
        )
    if all(round(value, 1) == value for value in values):
        raise ReferenceUnavailable(f"The server rounds its log-probabilities ({values[:4]} …); expected them as they are.")
    half = (
        struct.unpack("<I", struct.pack("<f", least))[0] & 0xFFFF == 0
        or struct.unpack("<e", struct.pack("<e", least))[0] == least
    )
    if values.count(least) > max(3, len(values) // 10) and not half:  # in half precision tokens may share a value
        raise ReferenceUnavailable(
            f"The server gave {least:g} for {values.count(least)} of {len(values)} tokens, and nothing below: it writes that "
            "for all that is less likely. No sum can be made of it."
        )


def _sound(value: Any, where: str) -> float:
    """A log-probability: a number, not NaN, not above 0 (but for rounding), and meant."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise ReferenceUnavailable(f"The server's {where} is {value!r:.60}; expected a log-probability, at most 0.")
    if _stands_for_none(value):
        raise ReferenceUnavailable(
            f"The server's {where} is {value!r:.60}, which stands for a probability that it does not tell (vLLM writes −9999 "
            "for −∞); no sum can be made of it. Leave this row out, or score it with the model on this machine."
        )
    return float(value)


def check_repeated(
    jobs: Sequence[tuple[Sequence[int], Sequence[int]]],
    found: Sequence[Sequence[float | None]],
    ask: Callable[[tuple[Sequence[int], Sequence[int]]], Sequence[float | None]],
) -> None:
    """A number that many places share is that of their tokens, and no filler.

    Certain tokens round to 0, and in half precision tokens share values; so where 0 stands, or one number behind more than
    three different texts, another token is put there and asked about. Behind one text two tokens have p + q ≤ 1, and seldom
    the very same log-probability.

    Args:
        jobs: (context, completion), as token ids; found: of each completion's tokens; ask: `found` of another job.

    Errors: ReferenceUnavailable where the other token has the same number at each of three places, or p + q > 1.1.
    """
    counts = Counter(value for values in found for value in values if value is not None)
    for value, count in dict([*counts.most_common(4), (0.0, counts[0.0])]).items():
        few = 3 if value else 0
        if count <= few:
            continue
        places = {
            (*context, *ids[: at + 1]): (job, at)
            for job, ((context, ids), values) in enumerate(zip(jobs, found))
            for at, each in enumerate(values)
            if each == value
        }
        some = list(places.values())
        if len(some) <= few:
            continue
        gaps = []
        for job, at in (some[0], some[len(some) // 2], some[-1]):
            context, ids = jobs[job]
            other = next((token for token in (*context, *ids) if token != ids[at]), ids[at] - 1 if ids[at] else 1)
            instead = ask((context, (*ids[:at], other, *ids[at + 1 :])))[at]
            if instead is None or math.exp(value) + math.exp(instead) > 1.1:
                gaps = [0.0]
                break
            gaps.append(abs(instead - value))
        if not any(gaps):
            raise ReferenceUnavailable(
                f"The server gave {value:g} for {count} tokens, and for another token put in such a place: it computes no "
                f"log-probabilities there. {WORKS}"
            )


def _stands_for_none(value: float) -> bool:
    return value <= -999 or value == -100


def _bare(token: str) -> str:
    """Without the space in front, however a tokenizer marks it."""
    return token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n").lstrip(" ")


def _as_object(url: str, text: bytes) -> dict[str, Any]:
    why = ""
    try:
        answer = parse_json(text, "it", constants=True)
    except DataError as error:
        answer, why = None, f" ({str(error)[:200]})"
    if not isinstance(answer, dict):
        raise ReferenceUnavailable(
            f"{url} answered {_excerpt(text)}; expected a JSON object{why}. Is this an OpenAI-compatible server?"
        )
    return answer


def _excerpt(text: bytes) -> str:
    return excerpt(text[:4096].decode("utf-8", "replace").strip() or "nothing", 300)
