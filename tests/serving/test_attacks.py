"""Clients that mean harm, or are only slow, absent, too many: bytes on sockets."""

import importlib.util
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from random import Random

import lazy_loader
import pytest
import torch
from typer.testing import CliRunner

import multiref as mr
from multiref.cli import app as cli
from multiref.decoding import request
from multiref.errors import ArgumentError, MultirefWarning
from multiref.models.lockstep import cache_bytes
from multiref.serving import Optimum, TokenPool, running
from multiref.serving import app as application
from multiref.serving.asked import BadRequest, read_request
from multiref.serving.served import Piece
from tests.decoding.worlds import reward
from tests.fuzz.mutations import change
from tests.serving.servers import post, send, serving, tiny_references, until

openai = lazy_loader.load("openai")
KEY = "secret-0123456789abcdef"
BODY = json.dumps({"model": "multiref", "prompt": "the cat", "max_tokens": 2}).encode()
# 30 of its tokens have a text: a stream begins with the first piece, and what goes wrong before is a status
LONG = json.dumps({**json.loads(BODY), "max_tokens": 100, "min_tokens": 100, "seed": 1, "stream": True}).encode()
pytestmark = pytest.mark.filterwarnings("ignore:.*has a chat template")


@pytest.fixture(scope="module")
def guarded():
    with serving(key=KEY, hosts={"localhost", "127.0.0.1"}) as (port, _):
        yield port


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer else 0


AUTH = f"Authorization: Bearer {KEY}"
GET = f"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{AUTH}\r\n\r\n".encode()
FLOOD = [f"X-{i}: {'y' * 200}" for i in range(500)]
WHOLE = {"model": "multiref", "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_tokens": 1, "max_tokens": 3, "seed": 1,
         "stop": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}, "user": "me", "best_of": 2}  # fmt: skip
PLAIN = {**WHOLE, "prompt": ["a", [1, 2]], "logprobs": 2, "echo": True, "return_tokens_as_token_ids": True}
SAID = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
TALK = {**WHOLE, "logprobs": True, "top_logprobs": 2, "messages": SAID}
SLOW = {"silent": b"", "head": b"POST /v1/comp", "body": post("/v1/completions", b"x" * 50)[:-30]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(post("/v1/completions", BODY, AUTH), 200, id="right"),
        pytest.param(post("/v1/completions", BODY, f"authorization: bearer {KEY}"), 200, id="scheme in small letters"),
        pytest.param(post("/v1/completions", BODY), 401, id="no token"),
        pytest.param(post("/v1/completions", BODY, f"Authorization: Bearer {KEY[:-1]}"), 401, id="a letter less"),
        pytest.param(post("/v1/completions", BODY, f"Authorization: Basic {KEY}"), 401, id="another scheme"),
        pytest.param(post("/v1/completions", BODY, "Authorization: Bearer é\x80"), 401, id="no ASCII"),
        pytest.param(post("/nothing", BODY), 401, id="addresses are not told"),
        pytest.param(post("/nothing", BODY, AUTH), 404, id="no such address"),
        pytest.param(post("/v1/../v1/completions", BODY, AUTH), 404, id="dots"),
        pytest.param(post("//v1/completions", BODY, AUTH), 404, id="two slashes"),
        pytest.param(post("/health/../v1/models", b""), 401, id="past the door"),
        pytest.param(post("/v1/models", b"", AUTH), 405, id="another method"),
        pytest.param(GET, 405, id="get"),
        pytest.param(post("/v1/completions", BODY, AUTH).replace(b"localhost", b"evil.example"), 403, id="rebound name"),
        pytest.param(post("/v1/completions", BODY, AUTH).replace(b"application/json", b"text/plain"), 415, id="a form"),
        pytest.param(post("/v1/completions", b"[" * 100_000, AUTH), 400, id="deep"),
        pytest.param(post("/v1/completions", b'{"a":' * 20 + b"1" + b"}" * 20, AUTH), 400, id="objects in objects"),
        pytest.param(post("/v1/completions", b'{"n": 1' + b"0" * 9000 + b"}", AUTH), 400, id="digits"),
        pytest.param(post("/v1/completions", b'{"n": 1, "n": 2}', AUTH), 400, id="a key twice"),
        pytest.param(post("/v1/completions", b'{"n": NaN}', AUTH), 400, id="NaN"),
        pytest.param(post("/v1/completions", b"\xff\xfe\x00", AUTH), 400, id="no text"),
        pytest.param(post("/v1/completions", b'{"model": "multiref", "prompt": "\\ud800"}', AUTH), 400, id="half a character"),
        pytest.param(post("/v1/completions", b"", AUTH), 400, id="empty"),
        pytest.param(post("/v1/completions", b"x" * (2**20 + 1), AUTH), 413, id="large"),
        pytest.param(post("/v1/completions", BODY, AUTH, *FLOOD), 431, id="many headers"),
        pytest.param(post("/v1/completions", BODY, AUTH, "Transfer-Encoding: chunked"), 400, id="two lengths"),
        pytest.param(post("/v1/completions", BODY, AUTH, "Content-Length: 3"), 400, id="lengths that differ"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="not HTTP"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200, id="health"),
    ],
)
def test_what_comes_through_the_door(guarded, content, expected, capfd):
    """One answer, of the protocol's shape where the request is HTTP; nothing is logged, least of all the token."""
    answer = send(guarded, content)
    assert status(answer) == expected, answer[:300]
    if expected not in (200, 400) or b"application/json" in answer:
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert expected == 200 or body["error"]["message"]
    allowed = b"POST" if content is GET else b"GET"
    assert (b"allow: " + allowed + b"\r\n" in answer.replace(b"Allow", b"allow")) == (expected == 405)  # RFC 9110, 15.5.6
    assert KEY.encode() not in answer and b"Traceback" not in answer
    assert capfd.readouterr() == ("", "")
    assert status(send(guarded, post("/v1/completions", BODY, AUTH))) == 200  # and goes on


@pytest.mark.parametrize("good", [PLAIN, TALK], ids=["completion", "chat"])
def test_nearly_right_requests_are_understood_or_refused(good):
    """A few values, keys or levels changed: never another exception. `make fuzz` tries more of them."""
    random, understood = Random(0), 0
    for _ in range(int(os.environ.get("FUZZ", "300"))):
        try:
            asked = read_request(change(good, random), "multiref", chat=good is TALK)
            understood += 1
            asked.generation(max(1, asked.new_tokens or 0, asked.min_tokens))
        except BadRequest as refused:
            assert refused.field is not None or "JSON object" in str(refused)
    assert understood > 10


def test_a_chunked_body_is_bounded_as_well(guarded):
    head = post("/v1/completions", b"", AUTH, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    assert status(send(guarded, head + 17 * chunk + b"0\r\n\r\n")) == 413


@pytest.mark.parametrize("begin", list(SLOW.values()), ids=list(SLOW))
def test_a_slow_client_is_not_waited_for(begin, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 0.15)
    monkeypatch.setattr(application, "PATIENCE", 0.15)
    with serving() as (port, _):
        opened = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(begin)
            with pytest.raises((ConnectionError, StopIteration)):
                while True:  # a byte now and then does not help
                    time.sleep(0.02)
                    connection.sendall(b"x")
        assert time.monotonic() - opened < 3
        assert status(send(port, post("/v1/completions", BODY))) == 200


class Endless:
    """What is served has no end, and is large."""

    about, made = "x", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def answer(self, asked, stop):
        while True:
            self.made += 1
            yield Piece(0, "x" * 50_000)


def test_a_client_that_does_not_read_is_not_waited_for(monkeypatch):
    """Nor is more made for it than a few hundred pieces."""
    monkeypatch.setattr(running, "PATIENCE", 0.25)
    monkeypatch.setattr(application, "AHEAD", 16)
    with serving(Endless()) as (port, app), socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(post("/v1/completions", LONG))
        until(lambda: app.jobs)
        until(lambda: not app.jobs)
        assert 1 < app.served.made < 400


def test_connections_that_say_nothing_make_room(monkeypatch):
    monkeypatch.setattr(running, "MOST", 5)
    with serving() as (port, _):
        idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(12)]
        until(lambda: sum(each.setblocking(False) or _closed(each) for each in idle) >= 6)
        assert status(send(port, post("/v1/completions", BODY))) == 200
        for each in idle:
            each.close()


def _closed(connection):
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class Gate:
    """A model's steps, counted, each let through by hand, or failing."""

    def __init__(self, app, model=None, fail_at=None):
        self.steps, self.open, self.fail_at = 0, threading.Semaphore(0), fail_at
        self.hook = (model or app.served.bench.models[0]).register_forward_pre_hook(self)

    def __call__(self, *_):
        self.steps += 1
        if self.steps == self.fail_at:
            raise RuntimeError("a fault")
        assert self.open.acquire(timeout=10)


def test_beyond_concurrency_it_is_429_and_a_stream_that_is_left_stops_within_a_step():
    """Of 100 tokens that were asked for, no more than one step is taken after the client has gone; then there is room again."""
    with serving(concurrency=1) as (port, app):
        gate = Gate(app)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.sendall(post("/v1/completions", LONG))
        gate.open.release(8)
        until(lambda: gate.steps == 9)
        with pytest.raises(openai.RateLimitError) as busy:
            client.completions.create(model="multiref", prompt="a", max_tokens=1)
        assert busy.value.response.headers["retry-after"] == "1" and busy.value.type == "rate_limit_error"
        (job,) = app.jobs
        connection.close()
        until(job.stop.is_set)
        gate.open.release(100)
        until(lambda: not app.jobs)
        assert gate.steps <= 10
        gate.hook.remove()
        assert client.completions.create(model="multiref", prompt="a", max_tokens=1).choices


def test_a_client_that_leaves_before_the_answer_stops_it_too():
    with serving(concurrency=1) as (port, app):
        gate = Gate(app)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(post("/v1/completions", LONG.replace(b', "stream": true', b"")))
            gate.open.release(3)
            until(lambda: gate.steps == 4)
            (job,) = app.jobs
        until(job.stop.is_set)
        gate.open.release(100)
        until(lambda: not app.jobs)
        assert gate.steps <= 5


def test_an_error_in_the_middle_of_a_stream_is_an_event(capfd):
    """And the next request is answered. What happened is for whoever runs the server, not for the client."""
    with serving() as (port, app):
        gate = Gate(app, fail_at=30)
        gate.open.release(100)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        parts = client.completions.create(**json.loads(LONG.replace(b'"min_tokens": 100, ', b"")))
        with pytest.raises(openai.APIError, match="mistake of the server"):
            for _ in parts:
                pass
        answer = send(port, post("/v1/completions", BODY))
        assert status(answer) == 200 and "a fault" in capfd.readouterr().err
        gate.fail_at = gate.steps + 1
        assert status(send(port, post("/v1/completions", BODY))) == 500
        assert "a fault" in capfd.readouterr().err


def test_answers_side_by_side_do_not_take_the_same_memory(monkeypatch):
    """There is room for one answer and a half: the second is refused with the bytes, until the first is gone."""
    with TokenPool(tiny_references(), mr.ReverseKL((0.3, 0.7))) as pool:
        asked = read_request({**json.loads(LONG), "logprobs": 0}, "multiref", chat=False)
        one = cache_bytes(pool.bench.models, 1, 103)
        monkeypatch.setattr(request, "free_memory", lambda device: int(1.5 * one))
        first, second, third = (pool.answer(asked, threading.Event()) for _ in range(3))
        next(first)
        with pytest.raises(ArgumentError, match=f"need {2 * one:,} bytes"):
            next(second)
        first.close()
        assert next(third).choice == 0


@pytest.mark.parametrize("said", ["raises", "nan", "above"])
def test_a_reward_that_fails_is_a_mistake_of_the_server(said, capfd):
    """Whoever asks learns only that there is one, and the server's own screen what it is."""

    def odd(prompts, completions):
        return [{"nan": math.nan, "above": 2.0}[said]] * len(completions)

    served = Optimum(tiny_references(), mr.ReverseKL((0.3, 0.7)), odd, 0.5, reward_max=1.0, most=4, n=4, islands=1)
    with serving(served) as (port, _):
        answer = send(port, post("/v1/completions", BODY))
        assert status(answer) == 500 and b"mistake of the server" in answer and b"reward" not in answer
        assert "Mistake: reward" in capfd.readouterr().err


@pytest.mark.parametrize("optimum", [False, True])
def test_models_that_fail_are_a_mistake_of_the_server(optimum, capfd):
    """Logits that are NaN, while it answers: no fault of who asks, who is told 500 and not to change the request (400)."""
    refs = tiny_references()
    served = Optimum(refs, mr.ReverseKL((0.3, 0.7)), most=4, n=4, islands=1) if optimum else None
    with serving(served) as (port, app):
        (models,) = [app.served.models] if optimum else [app.served.bench.models]
        with torch.no_grad():
            models[0].lm_head.weight.fill_(math.nan)
        answer = send(port, post("/v1/completions", BODY))
        assert status(answer) == 500 and b"mistake of the server" in answer and b"NaN" not in answer
        assert "logits are NaN" in capfd.readouterr().err


def test_a_draw_of_the_optimum_that_is_left_stops_too():
    """In the middle of its particles, within a step; then there is room again."""
    served = Optimum(tiny_references(), mr.ReverseKL((0.3, 0.7)), most=100, n=4, islands=1)
    with serving(served, concurrency=1) as (port, app):
        gate = Gate(app, app.served.models[0])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(post("/v1/completions", LONG))
            gate.open.release(3)
            until(lambda: gate.steps == 4)
            (job,) = app.jobs
        until(job.stop.is_set)
        gate.open.release(100)
        until(lambda: not app.jobs)
        assert gate.steps <= 5
        gate.hook.remove()
        said = {"model": "multiref", "messages": [{"role": "user", "content": "is it?"}], "max_tokens": 3, "stop": "zz"}
        answer = send(port, post("/v1/chat/completions", json.dumps(said).encode()))
        assert status(answer) == 200 and b'"role":"assistant","content":' in answer


def _in_front():
    """A process that a shell starts in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_the_verb_until_a_signal(tiny_folder, number, code):
    """As anybody would start it: it answers who has the token, ends as our processes do, and never writes the token."""
    command = [sys.executable, "-m", "multiref.cli", "serve", "-r", f"a={tiny_folder}", "-r", f"b={tiny_folder}", "--port", "0"]
    options = ["--api-key", "env:SERVE_KEY", "--device", "cpu", "--max-new-tokens", "100"]
    environment = {**os.environ, "SERVE_KEY": KEY, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen([*command, *options], env=environment, preexec_fn=_in_front, **pipes)
    try:
        line = started.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)[1])
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
        parts = client.completions.create(model="multiref", prompt="the", max_tokens=2)
        assert parts.choices
        started.send_signal(number)
        begun = time.monotonic()
        out, err = started.communicate(timeout=20)
        assert started.returncode == code and time.monotonic() - begun < 5
        assert KEY not in line + out + err and "Traceback" not in err and "Serving is over" in err
    finally:
        started.kill()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "uvicorn" else found(name, *_))
    told = CliRunner().invoke(cli, ["serve", "-r", "a=x"])
    assert told.exit_code == 2 and "pip install 'multiref[serve]'" in told.stderr and told.stderr.count("\n") == 1


def test_an_optimum_that_cannot_be_drawn_is_refused_before_it_listens():
    refs, rule = tiny_references(), mr.ReverseKL((0.3, 0.7))
    for options, reason in (
        ({"method": "best"}, "expected one of"),
        ({"reward": reward}, "needs its strength"),
        ({"reward": reward, "beta": 1.0, "method": "rejection"}, "reward_max"),
        ({"method": "importance", "proposal": "c"}, "proposal"),
    ):
        with pytest.raises(ArgumentError, match=reason), Optimum(refs, rule, **options):
            pass


def test_only_this_machine_unless_asked(monkeypatch):
    """By default a loopback address and its own names; elsewhere without a token it warns. A port in use is one message."""
    seen = []

    async def no_run(server, app, listening):
        seen.append((listening.getsockname()[0], app.hosts))

    monkeypatch.setattr(running, "run", no_run)
    refs, rule = tiny_references(), mr.ReverseKL((0.3, 0.7))
    running.serve(TokenPool(refs, rule), port=0)
    assert seen[0][0] == "127.0.0.1" and {"localhost", "127.0.0.1"} <= set(seen[0][1])
    with pytest.warns(MultirefWarning, match="Everybody who reaches"):
        running.serve(TokenPool(refs, rule), host="0.0.0.0", port=0)
    running.serve(TokenPool(refs, rule), host="0.0.0.0", port=0, key=KEY)
    assert seen[1] == seen[2] == ("0.0.0.0", None)
    with running.listen("127.0.0.1", 0) as taken, pytest.raises(ArgumentError, match="cannot listen"):
        running.listen("127.0.0.1", taken.getsockname()[1])


def test_the_end_is_heard_in_a_stream():
    with serving() as (port, app):
        gate = Gate(app)
        gate.open.release(30)
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        connection.sendall(post("/v1/completions", LONG))
        until(lambda: gate.steps == 31)
        app.end()
        gate.open.release(100)
        found = b""
        while part := connection.recv(65536):
            found += part
        assert b'{"error": {"message": "The server is ending.' in found and b"[DONE]" not in found
        assert status(send(port, post("/v1/completions", BODY))) == 503
