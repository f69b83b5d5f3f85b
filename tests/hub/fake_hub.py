"""A hub of this machine: the requests that huggingface_hub makes to create a repository and commit files to it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_plantedTOKENofTheHub"
LARGE = (".safetensors",)


@dataclass
class Hub:
    """What it was asked, and the repositories that it has: ``repos[name]`` is files by path."""

    address: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    licenses: dict[str, str] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Status and content of the answer."""
        self.asked.append(f"{method} {path}")
        for part, refusal in self.refuse.items():
            if part in path:
                return refusal[0], {"error": refusal[1]}
        if path.startswith("/store/"):
            oid = path.removeprefix("/store/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.stored[oid] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": f"Invalid credentials: {token}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        asked = body.decode()
        if path == "/api/repos/create":
            table = json.loads(asked)
            name = f"{table['organization']}/{table['name']}"
            if name in self.repos:
                return 409, {"error": "You already created this repo", "url": f"{self.address}/{name}"}
            self.repos[name] = {}
            self.private[name] = table.get("visibility") == "private" or table.get("private", False)
            return 200, {"url": f"{self.address}/{name}"}
        if path.endswith("/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._object(o) for o in json.loads(asked)["objects"]]}
        if "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": _mode(f["path"])} for f in json.loads(asked)["files"]]
            return 200, {"files": [f | {"shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            return 200, self._commit("/".join(path.split("/")[3:5]), asked)
        name = path.removeprefix("/api/models/")
        if name in self.licenses:
            return 200, {"id": name, "cardData": {"license": self.licenses[name]}}
        return 404, {"error": f"no {path}"}

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted | {"actions": {"upload": {"href": f"{self.address}/store/{wanted['oid']}"}}}

    def _commit(self, name: str, asked: str) -> dict[str, Any]:
        new: dict[str, bytes] = {}
        for line in map(json.loads, asked.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                new[value["path"]] = self.stored[value["oid"]]
        self.repos[name] |= new
        oid = f"{len(self.commits):040x}"
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.address}/{name}/commit/{oid}"}


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LARGE) else "regular"


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers while the context is entered."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = hub.answer(
                self.command, self.path.partition("?")[0], body, self.headers.get("Authorization")
            )
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
