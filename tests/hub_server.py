"""A hub on this machine: what `hf upload` and those who download need of the Hugging Face hub's protocol, in memory.

    with running() as hub:
        ... HF_ENDPOINT=hub.address hf upload user/name folder ...
        hub.repositories["user/name"]["config.json"]

As on the hub large files take another way than small ones (LFS: to and from a store, under their SHA-256), and answers state the commit,
the git hash of small files and the SHA-256 of large ones. Without Xet, the hub's newer way for large files, and with one revision only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_nobody"
SMALL = 1 << 14
"""Bytes from which on a file goes to the store."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/store/"):
            self._send(200, self.server.store[path.removeprefix("/store/")])
            return
        if path == "/api/whoami-v2":
            self._json({"name": "user", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
            return
        if path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").partition("/revision/")[0]
            self._json({"id": name, "modelId": name, "sha": COMMIT, "siblings": [], "tags": [], "private": False})
            return
        name, _, rest = path.strip("/").partition("/resolve/")
        content = self.server.repositories.get(name, {}).get(rest.partition("/")[2])
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif len(content) >= SMALL:
            digest = self._store(content)
            stated = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": COMMIT}
            self._send(302, b"", {"Location": f"{self.server.elsewhere}/store/{digest}", **stated})
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"")
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.address}/{name}", "name": name})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= SMALL else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self._json({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.server.elsewhere}/store/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        else:
            self._commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == f"/store/{self._store(content)}"
        self._send(200, b"")

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                repository[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                repository[value["path"]] = self.server.store[value["oid"]]
        self._json({"commitUrl": f"{self.server.address}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _store(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.server.store[digest] = content
        return digest

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        """Name -> path of a file -> its content."""
        self.store: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def elsewhere(self) -> str:
        """The store's, of another name: a redirection to the same would count as the hub's own, of a repository that was renamed."""
        return f"http://localhost:{self.server_port}"


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """The hub, until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
