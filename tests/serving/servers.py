"""A server of two tiny models on a thread, and bytes on a socket."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager, suppress

import multiref as mr
from multiref.models import LanguageModel
from multiref.serving import TokenPool, make_app
from multiref.serving.running import listen, make_server, run
from tests.conftest import make_llama, make_tokenizer

W = (0.3, 0.7)


def tiny_references(chat=True):
    tokenizer = make_tokenizer(chat=chat)
    models = [make_llama(len(tokenizer), seed=seed, std=0.2) for seed in (0, 1)]
    return mr.References({name: LanguageModel(model, tokenizer, name) for name, model in zip("ab", models)})


@contextmanager
def serving(served=None, **options):
    """(port, app) of a server on a thread; the end is asked for as a signal would."""
    with served or TokenPool(tiny_references(), mr.ReverseKL(W)) as opened:
        app, listening = make_app(opened, **options), listen("127.0.0.1", 0)
        server = make_server(app)
        thread = threading.Thread(target=lambda: asyncio.run(run(server, app, listening)), daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield listening.getsockname()[1], app
        finally:
            server.should_exit = True
            thread.join(20)
            app.close()
            assert not thread.is_alive()


def until(true, seconds=10.0):
    """Waits for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def post(path, body, *headers):
    """A request as bytes."""
    given = ["Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return f"POST {path} HTTP/1.1\r\n".encode() + "\r\n".join(given).encode() + b"\r\n\r\n" + body


def send(port, content, seconds=10.0):
    """What the server answers until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        found = b""
        with suppress(ConnectionError):  # it may close before everything was sent
            connection.sendall(content)
            while part := connection.recv(65536):
                found += part
        return found
