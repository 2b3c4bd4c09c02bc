"""Whatever a server does, a request ends in time and little memory, in one error, without the key."""

import base64
import gzip
import json
import resource
import socket
import ssl
import time
import traceback
from contextlib import ExitStack
from functools import partial
from urllib.parse import quote

import pytest

from multiref.errors import ArgumentError, MultirefError, ReferenceUnavailable
from multiref.models.spec import Tokenisation
from multiref.references.bounded_http import Refused, hide, send
from multiref.references.completion_api import CompletionApi, Connection
from multiref.references.protocol import Item
from multiref.references.resolve import Opener
from multiref.references.server import ServerReference
from tests.references.rude_server import BOMB, CHUNKED, KEY, MODELS, answer, drip, flood, rude, says

DEEP = b'{"choices": ' + b"[" * 10**5
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"
WAYS = {
    "drips a body": (partial(drip, answer(b"", length=10**6), b"x"), "timed out"),
    "drips its headers": (partial(drip, b"HTTP/1.1 200 OK\r\n", b"x"), "timed out"),
    "drips its first line": (partial(drip, b"", b"H"), "timed out|BadStatusLine"),
    "drips chunks": (partial(drip, CHUNKED, b"1\r\nx\r\n"), "timed out"),
    "drips a chunk's length": (partial(drip, CHUNKED, b"0"), "timed out"),
    "says 100 for ever": (partial(drip, b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "timed out"),
    "says nothing": (partial(drip, b"", b""), "timed out"),
    "hangs up": (b"", "RemoteDisconnected|ConnectionReset"),
    "floods": (partial(flood, ENDLESS, b" " * 2**16), r"more than 1,000,000 bytes \(largest=1000000\)"),
    "floods in chunks": (partial(flood, CHUNKED, b"10000\r\n" + b" " * 2**16 + b"\r\n"), "more than 1,000,000 bytes"),
    "floods headers": (partial(flood, b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"), "more than 100 headers"),
    "floods one header": (partial(flood, b"HTTP/1.1 200 OK\r\na: ", b"b" * 2**16), "LineTooLong"),
    "floods an error": (partial(flood, b"HTTP/1.1 400 Bad\r\n\r\n", b"e" * 2**16), "HTTP 400: 'eee"),
    "ends early": (answer(b"{", length=100), "IncompleteRead"),
    "sends a bomb": (answer(gzip.compress(b" " * 10**6), "Content-Encoding: gzip"), "packed .'gzip'"),
    "sends a deflated bomb": (answer(BOMB, "Content-Encoding: deflate"), "packed .'deflate'"),
    "speaks no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "BadStatusLine"),
    "has a length that is none": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "attempts"),
    "is deep": (says(DEEP), "more than 64 deep"),
    "has a number of 5000 digits": (says(b'{"choices": ' + b"9" * 5000 + b"}"), "5,000 digits"),
    "is a number beyond floats": (says(b'{"choices": [1e999]}'), "beyond a float"),
    "is no UTF-8": (says(b'{"choices": "\xff"}'), "not UTF-8"),
    "is UTF-16": (says('{"choices": []}'.encode("utf-16")), "not UTF-8"),
    "has a key twice": (says(b'{"choices": [], "choices": []}'), "stands twice"),
    "has half a character": (says(rb'{"choices": "\ud800"}'), "half of a character"),
    "is a list": (says([]), "expected a JSON object"),
    "is empty": (says(b""), "expected a JSON object"),
}


@pytest.mark.parametrize("way", WAYS)
def test_one_error_in_time_and_in_little_memory(way):
    bytes_or_more, words = WAYS[way]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with rude(bytes_or_more) as endpoint, pytest.raises((ReferenceUnavailable, Refused), match=words) as caught:
        seconds = 0.1 if "timed out" in words else 5
        CompletionApi(endpoint, Connection(timeout=seconds, attempts=1, largest=10**6)).choices(prompt="a")
    assert len(str(caught.value)) < 1500 and "\n" not in str(caught.value)
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


ODD = [None, True, 0, -1, 1e300, -(10**290), "x", [], {}, [None], [[]], {"data": 3}]
SHAPES = [
    *({"choices": value} for value in ODD),
    *({"choices": [value]} for value in ODD),
    *({"choices": [{"logprobs": value}]} for value in ODD),
    *({"choices": [{"logprobs": {"tokens": value, "token_logprobs": value}}]} for value in ODD),
    *(
        {"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, value]}}]}
        for value in ODD
        if value not in (0, -1)
    ),
    *({"choices": [{"logprobs": {"tokens": ["a", value], "token_logprobs": [None, -1.0]}}]} for value in ODD),
    *({"choices": [], "usage": value} for value in ODD),
]


@pytest.mark.parametrize("way", ["connects never", "never reads"])
def test_connecting_and_sending_count_too(way, monkeypatch):
    """A name of four addresses of which none answers, and a server that takes nothing of a long request: one time in all."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as held:
        port = server.getsockname()[1]
        if way == "connects never":
            place = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
            queued = [held.enter_context(socket.socket()) for _ in range(3)]  # they fill its queue
            for each in queued:
                each.setblocking(False)
                each.connect_ex(("127.0.0.1", port))
            monkeypatch.setattr("socket.getaddrinfo", lambda *_: [place] * 4)
        began = time.monotonic()
        with pytest.raises(OSError, match="timed out"):
            send(f"http://127.0.0.1:{port}/v1", b" " * 2**26, key=None, seconds=0.2, largest=100)
        assert 0.15 < time.monotonic() - began < 2


def test_answers_of_other_shapes_are_no_scores():
    for shape in SHAPES:
        with rude(says(shape)) as endpoint, pytest.raises(ReferenceUnavailable):
            ServerReference(endpoint, model="m", tokenisation=Tokenisation(end=False)).score([Item("a", ("b",))])


def test_other_hosts_are_not_asked():
    """The other host sees neither the request nor the key, of models or of a completion; the same host is followed."""
    seen: list[bytes] = []
    with rude(says(MODELS), kept=seen) as other:
        for status in ("301", "302", "303", "307", "308"):
            with rude(answer(b"", f"Location: {other}/models", status=f"{status} Moved")) as endpoint:
                api = CompletionApi(endpoint, Connection(attempts=1))
                for ask in (api.models, lambda: api.choices(prompt="a")):  # noqa: B023
                    with pytest.raises(ReferenceUnavailable, match="redirects to another host"):
                        ask()
    assert not seen
    back = answer(b"", "Location: /v1/elsewhere", status="307 Moved")
    with rude(back, says(MODELS), back, says({"choices": [{"text": "b"}]}), kept=seen) as endpoint:
        assert CompletionApi(endpoint).models()[0]["id"] == "tiny"
        assert CompletionApi(endpoint).complete(prompt="a") == {"text": "b"}
    assert seen[3].startswith(b"POST /v1/elsewhere") and b'{"prompt": "a"}' in seen[3]
    with rude(answer(b"", "Location: /v1/models", status="302 Found")) as endpoint, pytest.raises(MultirefError):
        CompletionApi(endpoint, Connection(attempts=1)).models()


def test_retry_after_is_heeded_up_to_half_a_minute():
    pauses: list[float] = []
    late = [answer(b"", f"Retry-After: {wait}", status="429 Slow") for wait in ("7", "86400", "soon", "-1")]
    with rude(*late, says(MODELS)) as endpoint:
        CompletionApi(endpoint, Connection(pause=0.5), sleep=pauses.append).models()
    assert pauses == [7.0, 30.0, 2.0, 4.0]


def test_the_key_comes_from_the_environment_or_a_file_and_goes_to_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", KEY)
    (tmp_path / "key").write_text(KEY + "\n")
    seen: list[bytes] = []
    with rude(says(MODELS), kept=seen) as endpoint:
        for source in ("env:A_KEY", f"file:{tmp_path / 'key'}"):
            connection = Connection(api_key=source)
            CompletionApi(endpoint, connection).models()
            assert f"Authorization: Bearer {KEY}".encode() in seen.pop()
            assert KEY not in repr(connection) + str(vars(connection))
    (tmp_path / "bad").write_text("two\nlines")
    for source in (KEY, "", "env:", "env:NOT_THERE", "file:nowhere", f"file:{tmp_path}", f"file:{tmp_path / 'bad'}", 3, ["x"]):
        with pytest.raises(ArgumentError) as caught:
            Opener({"endpoint": "http://127.0.0.1:1/v1", "api_key": source})()
        assert KEY not in str(caught.value) and "lines" not in str(caught.value)


SPLIT = f"{KEY[:9]}\r\n {KEY[9:]}"
ECHOES = {
    "in a body": lambda: answer(f"wrong key {KEY}".encode(), status="401 No"),
    "url-encoded": lambda: answer(f"?key={quote(KEY, safe='')}".encode(), status="401 No"),
    "url-encoded twice": lambda: answer(quote(quote(KEY, safe="")).encode(), status="401 No"),
    "every letter url-encoded": lambda: answer("".join(f"%{ord(c):02x}" for c in KEY).encode(), status="401 No"),
    "in JSON's escapes": lambda: answer("".join(f"\\u{ord(c):04x}" for c in KEY).encode(), status="401 No"),
    "in HTML's": lambda: answer("".join(f"&#{ord(c)};" for c in KEY).encode(), status="401 No"),
    "in base64": lambda: answer(base64.b64encode(f"Bearer {KEY}".encode()), status="401 No"),
    "in hex": lambda: answer(KEY.encode().hex().encode(), status="401 No"),
    "in base32": lambda: answer(base64.b32encode(KEY.encode()), status="401 No"),
    "in base85": lambda: answer(base64.b85encode(KEY.encode()), status="401 No"),
    "in base64 twice": lambda: answer(base64.b64encode(base64.b64encode(KEY.encode())), status="401 No"),
    "in octal": lambda: answer("".join(f"\\{ord(c):03o}" for c in KEY).encode(), status="401 No"),
    "backwards": lambda: answer(KEY[::-1].encode(), status="401 No"),
    "in UTF-16": lambda: answer(KEY.encode("utf-16-le"), status="401 No"),
    "in wide letters": lambda: answer("".join(chr(ord(c) + 0xFEE0) for c in KEY).encode(), status="401 No"),
    "with nothing between": lambda: answer("\u200b".join(KEY).encode(), status="401 No"),
    "in capitals": lambda: answer(KEY.upper().encode(), status="401 No"),
    "in pieces": lambda: answer(" - ".join(KEY).encode(), status="401 No"),
    "cut": lambda: answer(b"x" * 285 + KEY.encode(), status="401 No"),
    "in the status": lambda: f"HTTP/1.1 4x1 {KEY}\r\n\r\n".encode(),
    "in a header": lambda: answer(b"", f"Location: http://{KEY[:3]}.example/{KEY}", status="302 Found"),
    "split over a header": lambda: answer(b"", f"Location: http://a.example/{SPLIT}", status="302 Found"),
    "in an encoding": lambda: answer(b"", f"Content-Encoding: {KEY}"),
    "as a model": lambda: says({"data": [{"id": KEY}]}),
    "as no model": lambda: says({"data": [{"id": f"not m {KEY}"}]}),
    "in JSON that is none": lambda: says(f'{{"{KEY}": 1, "{KEY}": 2}}'.encode()),
    "as a token": lambda: says({"choices": [{"logprobs": {"tokens": [KEY], "token_logprobs": [None]}}], **MODELS}),
    "as a number": lambda: says({"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, KEY]}}], **MODELS}),
}


@pytest.mark.parametrize("where", ECHOES)
def test_the_key_is_never_shown(where, monkeypatch):
    """Not in the message and not in the traceback that a program prints; nor in what is stored."""
    monkeypatch.setenv("A_KEY", KEY)
    with rude(ECHOES[where]()) as endpoint:
        reference = ServerReference(
            endpoint, tokenisation=Tokenisation(end=False), connection=Connection(api_key="env:A_KEY", attempts=1)
        )
        with pytest.raises(ReferenceUnavailable) as caught:
            reference.score([Item("a", ("b",))])
    shown = "".join(traceback.format_exception(caught.value))
    letters = "".join(filter(str.isalnum, KEY)).lower()
    assert not any(letters[i : i + 8] in "".join(filter(str.isalnum, shown)).lower() for i in range(len(letters) - 7))
    assert hide(shown, KEY) == shown


def test_a_message_without_the_key_stays():
    for key in (KEY, "EMPTY", "x"):
        assert hide("http://host:8000/v1 answered HTTP 500: 'busy'", key) == "http://host:8000/v1 answered HTTP 500: 'busy'"
    assert hide(f"wrong key {KEY}.", KEY) == "wrong key [API key]."


@pytest.mark.parametrize(
    "url",
    ["", "host:80/v1", "file:///etc/passwd", "ftp://host/v1", "http:///v1", "http://host:port/v1", "http://h/v1?key=secretsecret",
     "http://me:secretsecret@host/v1", "http://h/v1#a", "http://h /v1", "http://h/\r\nX: y", "http://[::1/v1", None, 3],
    ids=str,
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_secret(url):
    with pytest.raises(ArgumentError, match="endpoint") as caught:
        CompletionApi(url)
    assert "secretsecret" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"timeout": 0}, {"timeout": "1"}, {"timeout": float("nan")}, {"attempts": 0}, {"attempts": 10**9}, {"pause": -1},
              {"concurrency": 0}, {"largest": True}, {"attempts": 1.5}], ids=str)  # fmt: skip
def test_settings_that_cannot_be_meant(given):
    with pytest.raises(ArgumentError, match=next(iter(given))):
        Connection(**given)


def test_a_certificate_that_nobody_signed_is_refused(tmp_path):
    """Once, without another try, before anything is sent."""
    import subprocess

    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    asked = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "1", "-subj"]
    if subprocess.run([*asked, "/CN=127.0.0.1"], capture_output=True, check=False).returncode:
        pytest.skip("no openssl")
    import socket
    import threading

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    tries = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            tries.append(peer)
            with pytest.raises(OSError):
                context.wrap_socket(peer, server_side=True).recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ReferenceUnavailable, match="its certificate does not hold"):
            CompletionApi(f"https://127.0.0.1:{listener.getsockname()[1]}/v1").models()
        thread.join()
    assert len(tries) == 1


def test_json_of_a_whole_answer_is_read():
    body = {"choices": [{"logprobs": {"tokens": ["a", "b"], "token_logprobs": [None, -1.5]}}], **MODELS}
    with rude(answer(json.dumps(body).encode(), "Content-Encoding: identity")) as endpoint:
        found = ServerReference(endpoint, tokenisation=Tokenisation(end=False)).score([Item("a", ("b",))])
    assert found.logps.tolist() == [-1.5]
