"""The application: a door that every request passes, jobs in threads, answers as JSON or as a stream.

Nothing of a request is written to a log. Errors have OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`.
"""

import asyncio
import hashlib
import hmac
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import torch
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from multiref._files import MIB
from multiref._json import parse_json
from multiref.errors import DataError, MultirefError
from multiref.serving.answered import Answered, as_event
from multiref.serving.asked import Asked, BadRequest, read_request
from multiref.serving.served import Finished, Mistake, Piece, Served, Stopped

LARGEST, DEPTH = 1 * MIB, 16  # of a body
HEAD = 16 * 1024  # bytes of address and headers
AHEAD = 256  # pieces that an answer may be ahead of a client that reads slowly
PATIENCE = 20.0  # seconds that a client may take over what it has to do
_CHAT = {"/v1/completions": False, "/v1/chat/completions": True}  # what is posted: whether it is chat
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ENDING = BadRequest("The server is ending.", status=503)
_TOO_LARGE = BadRequest(f"The body has more than {LARGEST:,} bytes.", status=413)


class Left(Exception):
    """The client has gone."""


class Job:
    """One answer being made, in a thread; what it gives arrives in the loop. None is the end."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Piece | Finished | BaseException | None] = asyncio.Queue()
        self.stop, self._loop = threading.Event(), asyncio.get_running_loop()
        self._told = self._taken = 0  # the queue's own length lags behind where the loop has no time

    def run(self, served: Served, asked: Asked) -> None:
        """In its thread, until the answer ends, the client goes, or an error is told."""
        try:
            with closing(served.answer(asked, self.stop)) as answer:  # what it holds is free at once, however it ends
                for event in answer:
                    self._tell(event)
                    while self._told - self._taken > AHEAD and not self.stop.wait(0.01):
                        pass
                    if self.stop.is_set():
                        break
            if self.stop.is_set():
                raise Stopped
        except BaseException as error:
            self._tell(error)
        self._tell(None)

    def _tell(self, event: Piece | Finished | BaseException | None) -> None:
        self._told += 1
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    async def each(self) -> AsyncIterator[Piece | Finished]:
        """What it gives; raises what ended it."""
        while (event := await self.events.get()) is not None:
            self._taken += 1
            if isinstance(event, BaseException):
                raise event
            yield event


class App:
    """The application (ASGI).

    Args:
        served: what answers, opened. name: what the model is called. key: the bearer token that is asked for; None: none.
        concurrency: requests that are answered at a time; one more is told to come again (429).
        hosts: names that a request may give as its host, where only this machine should ask: a page in a browser cannot make
            another name mean this server. None: any.
    """

    def __init__(
        self,
        served: Served,
        *,
        name: str = "multiref",
        key: str | None = None,
        concurrency: int = 4,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.served, self.name, self.concurrency, self.hosts = served, name, concurrency, hosts
        self.key = None if key is None else hashlib.sha256(f"Bearer {key}".encode()).digest()
        self.jobs: set[Job] = set()
        self.ending = False
        self._threads = ThreadPoolExecutor(concurrency, "multiref-serve")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except (Left, ClientDisconnect):
            return
        except Exception as error:
            response = refusal(error)
        await response(scope, receive, send)

    def end(self) -> None:
        """Every job stops at its next step; no other begins."""
        self.ending = True
        for job in self.jobs:
            job.stop.set()

    def close(self) -> None:
        """Waits for the threads."""
        self.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def _respond(self, request: Request) -> Response:
        path, method = request.scope["path"], request.method
        if len(request.scope["raw_path"]) + sum(len(name) + len(value) for name, value in request.scope["headers"]) > HEAD:
            raise BadRequest(f"Address and headers have more than {HEAD:,} bytes.", status=431)
        self._check_host(request)
        if path == "/health" and method == "GET":
            return JSONResponse({"status": "ending" if self.ending else "ok"}, 503 if self.ending else 200)
        self._check_key(request)
        if path not in (*_CHAT, "/health", "/v1/models", f"/v1/models/{self.name}"):
            raise BadRequest(
                "No such address. There are /v1/completions, /v1/chat/completions, /v1/models and /health.", status=404
            )
        if method != (allowed := "POST" if path in _CHAT else "GET"):
            raise BadRequest(f"{method} is not of this address; {allowed} is.", status=405, allow=allowed)
        if path not in _CHAT:
            return JSONResponse({"object": "list", "data": [self._model]} if path == "/v1/models" else self._model)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise BadRequest("The body must be JSON (Content-Type: application/json).", status=415)
        body = parse_json(await _read_body(request), "The body", error=DataError, depth=DEPTH)
        asked = read_request(body, self.name, chat=_CHAT[path])
        job = self._begin(asked)
        try:
            return await self._answer(request, asked, job)
        except BaseException:
            job.stop.set()
            raise

    @property
    def _model(self) -> dict[str, Any]:
        context = getattr(self.served, "context", None)
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "multiref", "max_model_len": context}

    def _check_host(self, request: Request) -> None:
        host = request.headers.get("host")
        if self.hosts is None or host is None:
            return
        name = host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() not in self.hosts:
            raise BadRequest(
                "This server listens for this machine alone, under its own names. "
                "Ask it as localhost or 127.0.0.1; `--host` lets others ask.",
                status=403,
            )

    def _check_key(self, request: Request) -> None:
        """In constant time: what differs is a digest, of one length."""
        if self.key is None:
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(f"{kind.capitalize()} {token.strip()}".encode("latin-1", "replace")).digest()
        if not hmac.compare_digest(given, self.key):
            raise BadRequest(
                "A bearer token is needed here, and this is none that is known. Send the header Authorization: Bearer TOKEN.",
                status=401,
                code="invalid_api_key",
            )

    def _begin(self, asked: Asked) -> Job:
        if self.ending:
            raise _ENDING
        if len(self.jobs) >= self.concurrency:
            raise BadRequest(f"{len(self.jobs)} requests are being answered, as many as may be; come again.", status=429)
        job = Job()
        self.jobs.add(job)
        done = asyncio.get_running_loop().run_in_executor(self._threads, job.run, self.served, asked)
        done.add_done_callback(lambda _: self.jobs.discard(job))
        return job

    async def _answer(self, request: Request, asked: Asked, job: Job) -> Response:
        """What is wrong before the first piece is a status; later it is an event of the stream."""
        answered, events = Answered(asked, self.name), job.each()
        if not asked.stream:
            gathered = await _unless_left(request, _gather(events))
            return JSONResponse(answered.whole(gathered))
        first = await _unless_left(request, anext(events))
        return _Stream(_streamed(answered, first, events), job)


class _Stream(StreamingResponse):
    """Whatever ends it ends its job: a client that goes away, or one that does not read."""

    def __init__(self, content: AsyncIterator[bytes], job: Job) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self._job.stop.set()


async def _streamed(answered: Answered, first: Piece | Finished, rest: AsyncIterator[Piece | Finished]) -> AsyncIterator[bytes]:
    for content in [*answered.begin(), *answered.event(first)]:
        yield as_event(content)
    try:
        async for event in rest:
            for content in answered.event(event):
                yield as_event(content)
    except Exception as error:
        yield as_event(_described(error)[1])
        return
    yield as_event("[DONE]")


async def _gather(events: AsyncIterator[Piece | Finished]) -> list[Piece | Finished]:
    return [event async for event in events]


async def _unless_left(request: Request, work: Awaitable[Any]) -> Any:
    """The work's result; `Left` where the client goes away before."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leave(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Left
    finally:
        working.cancel()
        leaving.cancel()


async def _leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read_body(request: Request) -> bytes:
    """At most LARGEST bytes within PATIENCE. What is too large is read a little further, so that the refusal is heard."""
    if {"content-length", "transfer-encoding"} <= set(request.headers.keys()):
        raise BadRequest("Content-Length and Transfer-Encoding contradict each other; give one of them.")
    content, size = bytearray(), 0
    with suppress(ValueError):
        size = int(request.headers.get("content-length", "0")[:20])
    if size > LARGEST and "expect" in request.headers:
        raise _TOO_LARGE
    try:
        async with asyncio.timeout(PATIENCE):
            size = 0
            async for part in request.stream():
                size += len(part)
                content += part if size <= LARGEST else b""
                if size > 16 * LARGEST:
                    break
    except TimeoutError:
        raise BadRequest(f"The body did not come within {PATIENCE:g} seconds.", status=408) from None
    if size > LARGEST:
        raise _TOO_LARGE
    return bytes(content)


def refusal(error: Exception) -> JSONResponse:
    """The answer to a request that failed. The connection closes, for the body may not have been read."""
    status, body = _described(error)
    more = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status, {})
    more |= {"Allow": allow} if (allow := getattr(error, "allow", None)) else {}
    return JSONResponse(body, status, {"Connection": "close", **more})


def _described(error: Exception) -> tuple[int, dict[str, Any]]:
    if isinstance(error, Stopped):
        error = _ENDING
    if isinstance(error, torch.OutOfMemoryError):
        error = BadRequest("There is no memory for this; ask for less.", status=503)
    if not isinstance(error, MultirefError) or isinstance(error, Mistake):
        traceback.print_exception(error, file=sys.stderr)
        error = BadRequest("A mistake of the server; whoever runs it sees what happened.", status=500)
    status = error.status if isinstance(error, BadRequest) else 400
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    known = error if isinstance(error, BadRequest) else BadRequest(str(error))
    return status, {"error": {"message": str(known), "type": kind, "param": known.field, "code": known.code}}


make_app = App
