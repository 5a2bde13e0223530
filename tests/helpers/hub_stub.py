"""A Hub on loopback that knows what an upload needs: repositories are made, files announced, stored and committed."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a" * 34


class Hub(ThreadingHTTPServer):
    """What it was told. `refused` is {part of a path: (status, message)}; `large` says which files go to LFS."""

    daemon_threads = True

    def __init__(self, refused: dict[str, tuple[int, str]], large: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.refused, self.large = refused, large
        self.paths: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _serve(self) -> None:
        hub, path, body = self.server, self.path.partition("?")[0], self._body()
        hub.paths.append(f"{self.command} {path}")
        for part, (status, message) in hub.refused.items():
            if part in path:
                return self._answer(status, {"error": message})
        if self.command == "PUT" and path.startswith("/lfs/"):
            hub.objects[path.removeprefix("/lfs/")] = body
            return self._answer(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        route = {
            "/repos/create": self._create, "/validate-yaml": lambda _: {}, "/preupload/main": self._preupload,
            "/lfs/objects/batch": self._batch, "/commit/main": self._commit,
        }  # fmt: skip
        serve = next((serve for end, serve in route.items() if path.endswith(end) and self.command == "POST"), None)
        return self._answer(404, {"error": "not found"}) if serve is None else self._answer(200, serve(body))

    do_GET = do_POST = do_PUT = _serve

    def _create(self, body: bytes) -> dict[str, Any]:
        asked = json.loads(body)
        self.server.created.append(asked)
        return {"url": f"{self.server.url}/{asked.get('organization', 'me')}/{asked['name']}"}

    def _preupload(self, body: bytes) -> dict[str, Any]:
        def mode(path: str) -> str:
            return "lfs" if self.server.large and path.endswith(self.server.large) else "regular"

        names = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": name, "uploadMode": mode(name), "shouldIgnore": False} for name in names]}

    def _batch(self, body: bytes) -> dict[str, Any]:
        objects = json.loads(body)["objects"]
        return {
            "transfer": "basic",
            "objects": [o | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}} for o in objects],
        }

    def _commit(self, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            else:
                self.server.files[value["path"]] = self.server.objects[value["oid"]]
        return {"success": True, "commitUrl": f"{self.server.url}/me/model/commit/1", "commitOid": "1" * 40}


@contextlib.contextmanager
def hub(refused: dict[str, tuple[int, str]] | None = None, large: str = "") -> Iterator[Hub]:
    """A Hub that is there while the block runs."""
    server = Hub(refused or {}, large)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
