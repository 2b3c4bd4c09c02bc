"""A test double: a server on loopback that samples as vLLM's /v1/completions does, over a model that it is given,
by plain logits of one row at a time.

Answers and refusals are those of vLLM 0.32.0, word for word where a test reads them.
"""

import json
import math
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from tests.references.completion_server import running


class SamplingServer(ThreadingHTTPServer):
    """model: what it samples from, to be replaced by whoever pushes. adapters: {name:
    model}, as load_lora_adapter made them with `opener`.

    defaults: what the model's generation_config.json says (top_k, temperature, max_new_tokens), for requests that do not.
    context: max_model_len. hidden: settings that no request overrides.
    """

    daemon_threads = True

    def __init__(self, model, *, forget="", opener=None, defaults=None, context=4096, hidden=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.forget, self.opener, self.defaults, self.context = model, forget, opener, defaults or {}, context
        self.hidden = hidden or {}
        self.adapters, self.requests, self.lock = {}, [], threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        """Silence."""

    def do_GET(self):
        adapters = [{"id": name, "object": "model", "parent": "base"} for name in self.server.adapters]
        self.reply(
            {"object": "list", "data": [{"id": "base", "object": "model", "max_model_len": self.server.context}, *adapters]}
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, path = self.server, self.path.rpartition("/")[2]
        with server.lock:
            server.requests.append((path, body))
            if path == "load_lora_adapter":
                return self.load(body["lora_name"], body["lora_path"])
            if path == "unload_lora_adapter":
                del server.adapters[body["lora_name"]]
                return self.reply(f"Success: LoRA adapter '{body['lora_name']}' removed successfully.", plain=True)
            if body["max_tokens"] > server.context:
                return self.refuse(
                    400,
                    f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={server.context}. "
                    "Please request fewer output tokens.",
                )
            room = server.context - len(body["prompt"])
            limit = min(room, body["max_tokens"], server.defaults.get("max_new_tokens", room))
            if limit < 1:
                return self.refuse(400, f"max_tokens must be at least 1, got {limit}. (parameter=max_tokens, value={limit})")
            self.reply(
                {
                    "object": "text_completion",
                    "model": body["model"],
                    "choices": [choice(server, body, limit) | {"index": i} for i in range(body["n"])],
                }
            )

    def load(self, name, path):
        try:
            self.server.adapters[name] = self.server.opener(path)
        except Exception as error:
            return self.refuse(
                500,
                f"Call to add_lora method failed: Worker failed with error '{error}', please check the stack trace above for "
                "the root cause",
            )
        return self.reply(f"Success: LoRA adapter '{name}' added successfully.", plain=True)

    def refuse(self, status, message):
        kind = "BadRequestError" if status == 400 else "InternalServerError"
        self.reply({"error": {"message": message, "type": kind, "param": None, "code": status}}, status=status)

    def reply(self, body, plain=False, status=200):
        data = body.encode() if plain else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@torch.no_grad()
def choice(server, body, limit):
    """The log-probabilities are those of the plain logits, whatever is drawn from:
    vLLM's --logprobs-mode raw_logprobs, its default."""
    model = server.adapters.get(body["model"], server.model)
    said = {"temperature": 1.0, "top_k": 0, "min_p": 0.0, **server.defaults, **body, **server.hidden}
    ids, new, logps = list(body["prompt"]), [], []
    while len(new) < limit and not (new and new[-1] in body["stop_token_ids"]):
        each = model(input_ids=torch.tensor([ids + new])).logits[0, -1].double().log_softmax(-1)
        drawn_from = each / said["temperature"]
        if said["top_k"] > 0:
            drawn_from = drawn_from.masked_fill(drawn_from < drawn_from.topk(said["top_k"]).values[-1], -torch.inf)
        drawn_from = drawn_from.masked_fill(drawn_from < drawn_from.max() + math.log(said["min_p"] or 1e-300), -torch.inf)
        new.append(int(torch.multinomial(drawn_from.softmax(-1), 1)))
        logps.append(float(each[new[-1]]))
    names = [f"token_id:{i}" for i in new]
    block = {
        "text_offset": [0] * len(new),
        "token_logprobs": logps,
        "tokens": names,
        "top_logprobs": [{n: v} for n, v in zip(names, logps)],
    }
    ended = new[-1] in body["stop_token_ids"]
    made = {
        "text": "…",
        "logprobs": block,
        "finish_reason": "stop" if ended else "length",
        "stop_reason": None,
        "token_ids": new,
        "prompt_logprobs": None,
        "prompt_token_ids": ids,
        "routed_experts": None,
    }
    if server.forget == "ids":
        del made["token_ids"]
    elif server.forget == "logprobs":
        made["logprobs"] = None
    elif server.forget == "prompt":
        made["prompt_token_ids"] = [1, *ids]
    elif server.forget == "null":
        block["token_logprobs"] = [None, *logps[1:]]
    elif server.forget == "clamp":
        block["token_logprobs"] = [-9999.0, *logps[1:]]
    elif server.forget == "limit":
        made |= {"token_ids": [*new[:1], *new], "logprobs": {**block, "token_logprobs": [*logps[:1], *logps]}}
    elif server.forget == "ends":
        end = body["stop_token_ids"][0]
        made |= {"token_ids": [end, *new[1:]]}
    elif server.forget == "vocabulary" and len(new) > 1:
        made["token_ids"] = [10**6, *new[1:]]
    elif server.forget == "end" and ended:
        made |= {"token_ids": new[:-1], "logprobs": {"tokens": [], "token_logprobs": logps[:-1]}}
    return made


@contextmanager
def sampling(model, **options):
    with running(SamplingServer(model, **options)) as server:
        yield server
