"""A web server on this machine that can be made to behave badly, and what its clients have in common."""

from __future__ import annotations

import contextlib
import http.server
import multiprocessing
import re
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np

from bigtransfer.data import ImageSet

CONTENT = bytes(range(256)) * 1200
"""300 KiB: several reads of a socket."""
ETAG = '"version-1"'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        """Answer; `sent` bytes only of the body, then hang up."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:sent])
        if sent is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def file(self, headers: dict[str, str] | None = None, sent: int | None = None, content: bytes = CONTENT) -> None:
        """The file as a good server sends it: ranges, If-Range, etag."""
        headers = {"ETag": ETAG, "Accept-Ranges": "bytes"} | (headers or {})
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.headers.get("If-Range") == headers["ETag"]:
            start = int(wanted[1])
            content_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.reply(206, content[start:], headers | {"Content-Range": content_range}, sent)
        else:
            self.reply(200, content, headers, sent)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[Handler], None] = Handler.file

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/folder/weights.npz"

    def in_turn(self, *answers: Callable[[Handler], None]) -> None:
        """Give these answers one after the other, the last for ever."""
        rest = list(answers)
        self.answer = lambda handler: (rest.pop(0) if len(rest) > 1 else rest[0])(handler)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of the tests


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """The server, until the block ends."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def read_all(images: ImageSet, seed: int, results: multiprocessing.Queue) -> None:
    """All images in random order, in a process that has to import little."""
    order = np.random.default_rng(seed).permutation(len(images))
    results.put({int(i): images.data(int(i)) for i in order})
