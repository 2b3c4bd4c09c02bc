"""A test double: a server on loopback that speaks the completion protocol over a small model, and misbehaves on request.

It is no product. `multiref serve` is; this one exists so that a client can be tested against bytes on a socket:
it computes with plain logits, one prompt at a time, and shares no code with the client.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


class CompletionServer(ThreadingHTTPServer):
    """supports: of "prompt_logprobs" and "echo", what it does. script: misbehaviour of the next requests, one word each."""

    daemon_threads = True

    def __init__(self, model: Any, tokenizer: Any, supports: tuple[str, ...], context: int | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer, self.supports, self.context = model, tokenizer, supports, context
        self.names, self.script = ["tiny"], list[str]()
        self.requests: list[dict[str, Any]] = []
        self.sharpness, self.dice = 1.0, torch.Generator().manual_seed(0)
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is part of the test."""


class Handler(BaseHTTPRequestHandler):
    server: CompletionServer

    def log_message(self, *args: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        listed = [{"id": name, "owned_by": "doubles", "max_model_len": self.server.context} for name in self.server.names]
        self.answer(200, {"data": listed})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            mischief = self.server.script.pop(0) if self.server.script else ""
            reply = None if mischief else completion(self.server, body)
        if reply is not None:
            self.answer(400 if "error" in reply else 200, reply)
        elif mischief == "nothing":
            self.close_connection = True
        elif mischief == "slow":
            time.sleep(1.0)
            self.answer(200, {})
        elif mischief.isdigit():
            self.answer(int(mischief), {"error": "as asked"})
        else:
            self.write(200, mischief.encode())

    def answer(self, status: int, body: Any) -> None:
        self.write(status, json.dumps(body).encode())

    def write(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def completion(server: CompletionServer, body: dict[str, Any]) -> dict[str, Any]:
    """One choice: the prompt's log-probabilities in the form that was asked for, and one greedy token after it; or several that
    are drawn."""
    ids = body["prompt"] if isinstance(body["prompt"], list) else server.tokenizer(body["prompt"])["input_ids"]
    if "prompt_logprobs" in body and "prompt_logprobs" not in server.supports and "strict" in server.supports:
        return {"error": "unknown field prompt_logprobs"}
    if "return_tokens_as_token_ids" in body and "openai" in server.supports:
        return {"error": "Unrecognized request argument supplied: return_tokens_as_token_ids"}
    if body.get("echo") and "echo" not in server.supports:
        return {"error": "echo is not supported"}
    if server.context is not None and len(ids) >= server.context:  # vLLM 0.32.0: a token is always generated, and has to fit
        return {"error": {"message": "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "code": 400}}
    if "n" in body:
        return {"choices": [{"index": i, "text": "…", "logprobs": drawn(server, ids, body)} for i in range(body["n"])]}
    with torch.inference_mode():
        logps = server.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    values = [None] + [logps[t, token].item() for t, token in enumerate(ids[1:])]
    choice: dict[str, Any] = {"text": "…"}
    if "prompt_logprobs" in body and "prompt_logprobs" in server.supports:
        likeliest = [None, *logps.topk(body["prompt_logprobs"], -1).indices.tolist()]
        choice["prompt_logprobs"] = [
            None
            if value is None
            else {str(i): {"logprob": logps[t - 1, i].item(), "rank": 1, "decoded_token": "…"} for i in {token, *likeliest[t]}}
            for t, (token, value) in enumerate(zip(ids, values))
        ]
    if body.get("echo"):
        ids, values = [*ids, int(logps[-1].argmax())], [*values, logps[-1].max().item()]
        # each alone, as vLLM spells them; half a character is ""
        tokens = [server.tokenizer.decode([token]).rstrip("�") for token in ids]
        best = logps.topk(body["logprobs"], -1).indices.tolist()
        tops = [{f"token_id:{i}": logps[t, i].item() for i in {token, *best[t]}} for t, token in enumerate(ids[1:])]
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": values, "top_logprobs": [None, *tops]}
    return {"choices": [choice]}


@torch.inference_mode()
def drawn(server: CompletionServer, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
    """What `sharpness` makes of the model is drawn; what is said of it is what the model says."""
    ids, first, values, tops = list(ids), len(ids), [], []
    while len(ids) < first + body["max_tokens"]:
        logps = server.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(torch.multinomial((server.sharpness * logps).softmax(-1), 1, generator=server.dice)))
        values.append(logps[ids[-1]].item())
        tops.append({f"token_id:{i}": logps[i].item() for i in {ids[-1], *logps.topk(body["logprobs"]).indices.tolist()}})
        if ids[-1] == server.tokenizer.eos_token_id:
            break
    return {"tokens": [f"token_id:{i}" for i in ids[first:]], "token_logprobs": values, "top_logprobs": tops}


@contextmanager
def serving(
    model: Any, tokenizer: Any, *, supports: tuple[str, ...] = ("prompt_logprobs", "echo"), context: int | None = None
) -> Iterator[CompletionServer]:
    with running(CompletionServer(model, tokenizer, supports, context)) as server:
        yield server


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """An HTTP server on a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
