"""One HTTP request that ends: it has a time in all, an answer has a size, and the API key goes to one host and is never shown.

urllib, for httpx has no time in all either, and no name that every version of the hub's client brings.
"""

import base64
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from threading import Thread
from typing import Any
from unicodedata import normalize
from urllib.parse import quote, unquote, urlsplit

from multiref._files import read_text
from multiref.errors import ArgumentError, MultirefError, ReferenceUnavailable

_PART = 64 * 1024


class Answered(Exception):
    """The server answered with a status that is no success."""

    def __init__(self, status: int, body: bytes, wait: float) -> None:
        self.status, self.body, self.wait = status, body, wait
        super().__init__(f"HTTP {status}")


class Refused(Exception):
    """The server answered that it will not do this (4xx): asking again is no use, asking otherwise may be."""


def send(url: str, body: bytes | None, *, key: str | None, seconds: float, largest: int) -> bytes:
    """The answer's body.

    Args:
        body: of a POST; None: GET. seconds: for all of it, however slowly the bytes come. largest: bytes of the answer.

    Errors: Answered; OSError and http.client.HTTPException for trouble on the way, which another try may not meet;
        ReferenceUnavailable for an answer that is too large or packed, for a redirect to another host, and for a certificate
        that does not hold.
    """
    answer: Future[bytes] = Future()

    def ask() -> None:
        try:
            answer.set_result(_answer(url, body, key, seconds, largest))
        except BaseException as error:  # for whoever waits
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()  # a server that is never silent for long is left behind
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError("timed out") from None


def _answer(url: str, body: bytes | None, key: str | None, seconds: float, largest: int) -> bytes:
    """The same, where `seconds` are those of each wait on the socket."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")  # never by way of a proxy
    proxies = [urllib.request.ProxyHandler({})] if local else []
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_context()), _SameHost(), *proxies)
    try:
        with opener.open(urllib.request.Request(url, data=body, headers=headers), timeout=seconds) as response:
            return _read(response, url, largest)
    except urllib.error.HTTPError as error:
        wait = error.headers.get("Retry-After", "")
        raise Answered(error.code, error.read(_PART), float(wait) if re.fullmatch(r"\d{1,6}", wait) else 0.0) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise ReferenceUnavailable(
                f"{url}: its certificate does not hold ({error.reason.verify_message}). Nothing was sent. Name the authority "
                "that signed it in SSL_CERT_FILE, or correct the address."
            ) from None
        raise


def _read(response: http.client.HTTPResponse, url: str, largest: int) -> bytes:
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise ReferenceUnavailable(f"{url} answered packed ({packed[:20]!r}), which was not asked for; expected plain JSON.")
    content = bytearray()
    while part := response.read(_PART):
        content += part
        if len(content) > largest:
            raise ReferenceUnavailable(
                f"{url} answered with more than {largest:,} bytes (largest={largest}); the rest was not read. Is this a "
                "completion server? Ask for fewer completions at a time, or raise the limit."
            )
    if response.length:  # it said that there is more
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(content)


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to the same scheme, host and port; a POST stays one."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if _origin(req.full_url) != _origin(newurl):
            raise ReferenceUnavailable(
                f"{req.full_url} redirects to another host ({newurl[:80]!r}); nothing is sent there. If you trust it, give "
                "that address as endpoint."
            )
        if req.data is not None and code in (307, 308):
            return urllib.request.Request(newurl, data=req.data, headers=req.headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _origin(url: str) -> tuple[str, str | None, int | None] | None:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None


def check_endpoint(url: str) -> None:
    """ArgumentError for what is no plain address of a server: it is stored beside scores, so it has no key in it."""
    parts = urlsplit(url) if isinstance(url, str) and _origin(url) and url.isprintable() and " " not in url else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(f"endpoint: found {str(url)[:60]!r}; expected an address such as http://host:8000/v1.")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ArgumentError(
            f"endpoint: the address of {parts.hostname!r} has a name, a password, a query or a fragment in it, which would be "
            "stored; expected http://host:port/path, and a key by api_key=env:NAME or file:PATH."
        )


# ---- the key ----


def read_key(source: str | None) -> str | None:
    """The API key that "env:NAME" or "file:PATH" holds. ArgumentError, which never shows it, for anything else."""
    if source is None:
        return None
    kind, _, place = source.partition(":") if isinstance(source, str) else ("", "", "")
    if kind == "env" and place:
        if place not in os.environ:
            raise ArgumentError(f"api_key: the environment has no variable {place[:60]!r}; set it to the key.")
        found = os.environ[place]
    elif kind == "file" and place:
        found = read_text(os.path.expanduser(place), "a file with the API key", largest=_PART, error=ArgumentError)
    else:
        raise ArgumentError(
            "api_key: a key that is written out ends in histories and stored settings (it is not shown here); expected where "
            "it is: env:NAME of an environment variable, or file:PATH."
        )
    found = found.strip()
    if not found or not found.isascii() or not found.isprintable() or " " in found:
        raise ArgumentError(f"api_key: what {source!r:.80} holds is no key: expected one line of printable ASCII.")
    return found


@contextmanager
def hiding(key: str | None) -> Iterator[None]:
    """No error that leaves shows the key, however the server has spelt it."""
    try:
        yield
    except (MultirefError, Refused) as error:
        if key is None or (said := hide(str(error), key)) == str(error):
            raise
        raise type(error)(said) from None


def hide(text: str, key: str) -> str:
    """The text without the key. One that has it in pieces, quoted or coded is not shown at all."""
    for spelt in {key, quote(key, safe=""), quote(key)}:
        text = text.replace(spelt, "[API key]")
    letters, raw = _letters(key), key.encode()
    quartets = [base64.b64encode(raw[start:]) for start in range(3)]
    others = [code(raw) for code in (base64.b32encode, base64.b85encode, base64.a85encode)]
    coded = [*quartets, base64.b64encode(quartets[0]), *others]
    forms = [letters, letters[::-1], raw.hex(), "".join(map(str, raw)), "".join(f"{byte:03o}" for byte in raw)]
    forms += [_letters(each.decode()) for each in coded]
    size = min(8, len(letters))
    told = {form[i : i + size] for form in forms for i in range(len(form) - size + 1)} if size >= 6 else set()
    escapes = r"\\[rntx]|\\u00|&#x?", r"\\x00|\\u200.|\\ufeff"
    seen = [text, unquote(unquote(text)), normalize("NFKC", text), *(re.sub(escape, "", text) for escape in escapes)]
    if any(part in form for part in told for form in map(_letters, seen)):
        return "The server's answer repeats the API key and is not shown. Expected a server that keeps it to itself."
    return text


def _letters(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", text.lower())
