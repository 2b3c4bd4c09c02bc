"""A server on loopback that misbehaves below HTTP: each way is what it writes on the socket, one word each."""

import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

KEY = "sk-Zq7+9/fK2=mB4xW1pLd8"
MODELS = {"data": [{"id": "tiny", "owned_by": "doubles"}]}


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def says(text: object, **options: object) -> bytes:
    return answer(text if isinstance(text, bytes) else json.dumps(text).encode(), **options)  # type: ignore[arg-type]


def drip(first: bytes, part: bytes) -> Iterator[bytes]:
    """Never silent for long, and never done."""
    yield first
    while True:
        time.sleep(0.02)
        yield part


def flood(first: bytes, part: bytes) -> Iterator[bytes]:
    yield first
    while True:
        yield part


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BOMB = zlib.compress(b" " * 2**27, 9)


@contextmanager
def rude(*ways: object, kept: list[bytes] | None = None) -> Iterator[str]:
    """An endpoint; the n-th request is answered in the n-th way (the last one again and again): bytes, or an iterator's."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop, left = threading.Event(), list(ways)

    def serve(peer: socket.socket, way: object) -> None:
        with suppress(OSError), peer:
            peer.settimeout(5)
            request = peer.recv(2**16)
            if length := re.search(rb"Content-Length: (\d+)", request):
                while len(request.partition(b"\r\n\r\n")[2]) < int(length[1]):
                    request += peer.recv(2**16)
            if kept is not None:
                kept.append(request)
            for part in (way,) if isinstance(way, bytes) else way():  # type: ignore[operator]
                if stop.is_set():
                    return
                peer.sendall(part)
            peer.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while not stop.is_set():
            with suppress(OSError):
                peer, _ = listener.accept()
                way = left.pop(0) if len(left) > 1 else left[0]
                threading.Thread(target=serve, args=(peer, way), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        stop.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
