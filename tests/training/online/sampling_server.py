"""A test double: a server on loopback that samples as vLLM's /v1/completions does, over a model that it is given, by plain logits of one row at a time."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class SamplingServer(ThreadingHTTPServer):
    """model: what it samples from, to be replaced by whoever pushes. adapters: {name: model}, as load_lora_adapter made them with `opener`."""

    daemon_threads = True

    def __init__(self, model, *, forget="", opener=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.forget, self.opener = model, forget, opener
        self.adapters, self.requests, self.lock = {}, [], threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        """Silence."""

    def do_GET(self):
        self.reply({"data": [{"id": "base"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path.rpartition("/")[2], body))
            if self.path.endswith("/load_lora_adapter"):
                server.adapters[body["lora_name"]] = server.opener(body["lora_path"])
                return self.reply("Success", plain=True)
            if self.path.endswith("/unload_lora_adapter"):
                del server.adapters[body["lora_name"]]
                return self.reply("Success", plain=True)
            self.reply({"choices": [choice(server, body) for _ in range(body["n"])]})

    def reply(self, body, plain=False):
        data = body.encode() if plain else json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@torch.no_grad()
def choice(server, body):
    model = server.adapters.get(body["model"], server.model)
    ids, new, logps = list(body["prompt"]), [], []
    while len(new) < body["max_tokens"] and not (new and new[-1] in body["stop_token_ids"]):
        each = model(input_ids=torch.tensor([ids + new])).logits[0, -1].double().log_softmax(-1)
        new.append(int(torch.multinomial(each.exp(), 1)))
        logps.append(float(each[new[-1]]))
    made = {"text": "…", "logprobs": {"tokens": [f"token_id:{i}" for i in new], "token_logprobs": logps}, "token_ids": new}
    if server.forget == "ids":
        del made["token_ids"]
    elif server.forget == "logprobs":
        del made["logprobs"]
    elif server.forget == "end" and new[-1] in body["stop_token_ids"]:
        made = {**made, "token_ids": new[:-1], "logprobs": {"tokens": [], "token_logprobs": logps[:-1]}}
    return made


@contextmanager
def sampling(model, **options):
    server = SamplingServer(model, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
