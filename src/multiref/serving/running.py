"""The application on a port, until a signal ends it: connections that wait for their client are closed after a while."""

import asyncio
import ipaddress
import socket
import time
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

from multiref.errors import ArgumentError, MultirefWarning
from multiref.serving.app import PATIENCE, App, make_app
from multiref.serving.served import Served

GRACE = 3.0  # seconds for answers to be sent once the end is asked for
MOST = 256  # connections
_LOOK = 0.1  # seconds between looks


def serve(
    served: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str = "multiref",
    key: str | None = None,
    concurrency: int = 4,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Answers until SIGINT or SIGTERM, which end this call as they do any other, once open answers have heard of it.

    Args:
        host: an address of this machine; but for a loopback one others can ask too. key: the bearer token to ask for.
        say: told one line once it listens.

    Errors: ArgumentError where it cannot listen.
    """
    listening = listen(host, port)
    with listening, served:
        address, chosen = listening.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        if not local and key is None:
            warnings.warn(
                f"Everybody who reaches {host}:{chosen} may ask this server, without a token. Give --api-key, or listen on "
                "127.0.0.1.", MultirefWarning, stacklevel=2,
            )  # fmt: skip
        hosts = {"localhost", "127.0.0.1", "::1", host.lower()} if local else None
        app = make_app(served, name=name, key=key, concurrency=concurrency, hosts=hosts)
        shown = f"[{address}]" if ":" in address else address
        say(f"Serving {name!r}, {served.about}, at http://{shown}:{chosen}/v1")
        with warnings.catch_warnings():  # what a request makes us warn of is not for whoever runs this
            warnings.simplefilter("ignore", MultirefWarning)
            try:
                asyncio.run(run(make_server(app), app, listening))
            finally:
                app.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. ArgumentError where that cannot be."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family, backlog=128)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ArgumentError(f"host {host!r}, port {port}: cannot listen there ({error}).") from None


def make_server(app: App) -> uvicorn.Server:
    """h11, which bounds what comes before a body; no other protocol, no log, nothing believed of proxies."""
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", loop="asyncio", interface="asgi3", log_config=None, log_level="critical",
        access_log=False, proxy_headers=False, server_header=False, date_header=False, h11_max_incomplete_event_size=16_384,
        timeout_keep_alive=int(PATIENCE), timeout_graceful_shutdown=int(GRACE),
    )  # fmt: skip
    return uvicorn.Server(config)


async def run(server: uvicorn.Server, app: App, listening: socket.socket) -> None:
    """Until the server is told to end."""
    looking = asyncio.create_task(_look_after(server, app))
    try:
        await server.serve(sockets=[listening])
    finally:
        looking.cancel()


async def _look_after(server: uvicorn.Server, app: App) -> None:
    """Closes connections whose client has been waited for too long, and the longest waiting where there are too many; tells the
    jobs of the end."""
    since: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
    while True:
        await asyncio.sleep(_LOOK)
        if server.should_exit:
            app.end()
        now, waiting = time.monotonic(), []
        for connection in list(server.server_state.connections):
            if _waits_for_client(connection):
                waiting.append((since.setdefault(connection, now), connection))
            else:
                since.pop(connection, None)
        waiting.sort(key=lambda pair: pair[0])
        many = len(server.server_state.connections) - MOST
        for place, (begin, connection) in enumerate(waiting):
            if place < many or now - begin > PATIENCE:
                connection.transport.abort()


def _waits_for_client(connection: Any) -> bool:
    """Whether the next thing to happen is the client's: to ask, to send the rest of its body, or to read."""
    cycle = connection.cycle
    return cycle is None or cycle.response_complete or cycle.more_body or connection.flow.write_paused
