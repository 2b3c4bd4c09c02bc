"""A hub on this machine: it takes what huggingface_hub uploads, as far as a model's folder needs it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Hub:
    """What was uploaded (path → bytes), what was asked (method and path), which tokens came; refuse: answer everything 403."""

    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    created: list[dict[str, object]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuse: bool = False


@contextmanager
def hub_double() -> Iterator[Hub]:
    hub = Hub()

    class Answers(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return None

        def _answer(self, found: object, status: int = 200) -> None:
            said = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def do_PUT(self) -> None:
            hub.blobs[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer({})

        def do_POST(self) -> None:
            given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.asked.append(self.path)
            hub.tokens.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
            if hub.refuse:
                self._answer({"error": f"no right to write with {self.headers.get('Authorization')}"}, 403)
            elif self.path == "/api/repos/create":
                asked = json.loads(given)
                hub.created.append(asked)
                name = f"{asked.get('organization', 'me')}/{asked['name']}"
                self._answer({"url": f"{hub.endpoint}/{name}", "name": name})
            elif "/preupload/" in self.path:
                kinds = {each["path"]: "lfs" if each["path"].endswith(".safetensors") else "regular"
                         for each in json.loads(given)["files"]}  # fmt: skip
                self._answer({"files": [{"path": path, "uploadMode": kind, "shouldIgnore": False}
                                        for path, kind in kinds.items()]})  # fmt: skip
            elif self.path.endswith("/objects/batch"):
                objects = [{**each, "actions": {"upload": {"href": f"{hub.endpoint}/blob/{each['oid']}"}}}
                           for each in json.loads(given)["objects"]]  # fmt: skip
                self._answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                for line in given.splitlines():
                    part = json.loads(line)
                    if part["key"] == "file":
                        hub.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
                    elif part["key"] == "lfsFile":
                        hub.files[part["value"]["path"]] = hub.blobs[part["value"]["oid"]]
                self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.endpoint}/me/made/commit/{'0' * 40}"})
            else:
                self._answer({})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
