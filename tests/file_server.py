"""A web server on this machine that can be made to behave badly, and what its clients have in common.

    with running() as server:
        server.tell(LIES["endless chunks"])   # or server.answer = any function of a Handler
        ... server.address ...

No lie lasts longer than `Server.patience` seconds or `Server.endless` bytes, should the client not hang up before; after
`Server.most_requests` there is only 410.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import http.server
import itertools
import multiprocessing
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from bigtransfer import limits
from bigtransfer.data import ImageSet

CONTENT = bytes(range(256)) * 1200
"""300 KiB: several reads of a socket."""
ETAG = '"version-1"'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        if len(self.server.requests) > self.server.most_requests:
            self.reply(410, b"")
        else:
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

    # --- Below HTTP

    def raw(self, *pieces: bytes | Iterable[bytes], pause: float = 0.0) -> None:
        """Send bytes as they are, with a pause after each piece, until the client hangs up; then hang up."""
        self.close_connection = True
        begun, count = time.monotonic(), 0
        with contextlib.suppress(OSError):
            for piece in itertools.chain.from_iterable((p,) if isinstance(p, bytes) else p for p in pieces):
                self.wfile.write(piece)
                count += len(piece)
                if count > self.server.endless or time.monotonic() - begun > self.server.patience:
                    return
                if pause and self.server.stopped.wait(pause):
                    return

    def silence(self) -> None:
        """Say nothing (more) for as long as the server's patience lasts."""
        self.close_connection = True
        self.server.stopped.wait(self.server.patience)

    def head(self, *headers: str, status: str = "200 OK") -> bytes:
        return "\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode("latin-1")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answer: Callable[[Handler], None] = Handler.file
        self.stopped = threading.Event()
        self.patience = 20.0
        self.endless = 1 << 28
        self.most_requests = 1000

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/folder/weights.npz"

    def in_turn(self, *answers: Callable[[Handler], None]) -> None:
        """Give these answers one after the other, the last for ever."""
        rest = list(answers)
        self.answer = lambda handler: (rest.pop(0) if len(rest) > 1 else rest[0])(handler)

    def tell(self, lie: Lie) -> None:
        """Answer everything with that lie."""
        self.answer = lie.answer

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of the tests


def limited(monkeypatch: pytest.MonkeyPatch, **changed: float) -> None:
    """Put limits into force for a test, also such as no user could ask for (parts of a second)."""
    monkeypatch.setattr(limits, "_parsed", lambda text: dataclasses.replace(limits.Limits(), **changed))  # pyright: ignore


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """The server, until the block ends."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


def read_all(images: ImageSet, seed: int, results: multiprocessing.Queue) -> None:
    """All images in random order, in a process that has to import little."""
    order = np.random.default_rng(seed).permutation(len(images))
    results.put({int(i): images.data(int(i)) for i in order})


# --- Lies


@dataclass(frozen=True)
class Lie:
    """How a server deceives, or wears out, those who ask it for a file."""

    answer: Callable[[Handler], None]
    slow: bool = False
    """Whether it only ends with the client's patience."""
    harmless: bool = False
    """Odd but allowed: the file must arrive."""


LIES: dict[str, Lie] = {}
"""By name. Whoever believes one gets a wrong file, waits for ever, or is filled without end."""

CUT = 5000
"""Bytes of `CONTENT` after which connections break that shall be resumed."""
OTHER = CONTENT[::-1]
"""Another version of the file, of the same length."""


def _lie(
    name: str, slow: bool = False, harmless: bool = False
) -> Callable[[Callable[[Handler], None]], Callable[[Handler], None]]:
    def register(answer: Callable[[Handler], None]) -> Callable[[Handler], None]:
        LIES[name] = Lie(answer, slow, harmless)
        return answer

    return register


def _says(name: str, *headers: str, body: bytes = CONTENT, status: str = "200 OK", harmless: bool = False) -> None:
    """A lie that is one answer, the same to every question."""
    LIES[name] = Lie(lambda handler: handler.raw(handler.head(*headers, status=status), body), harmless=harmless)


def _chunks(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        piece = content[start : start + size]
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


LENGTH = f"Content-Length: {len(CONTENT)}"
CHUNKED = "Transfer-Encoding: chunked"


# Before the body


@_lie("silence", slow=True)
def _(handler: Handler) -> None:
    handler.silence()


@_lie("slow status", slow=True)
def _(handler: Handler) -> None:
    handler.raw((bytes([letter]) for letter in b"HTTP/1.1 200 " + b"O" * 10_000), pause=0.005)


@_lie("slow headers", slow=True)
def _(handler: Handler) -> None:
    handler.raw(handler.head()[:-2], (b"X" for _ in itertools.count()), pause=0.005)


@_lie("endless header")
def _(handler: Handler) -> None:
    handler.raw(handler.head()[:-2], b"X-Long: ", itertools.repeat(b"a" * 1000))


@_lie("endless headers")
def _(handler: Handler) -> None:
    handler.raw(handler.head()[:-2], (b"X-%d: a\r\n" % number for number in itertools.count()))


@_lie("endless continue")
def _(handler: Handler) -> None:
    handler.raw(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"))


@_lie("not http")
def _(handler: Handler) -> None:
    handler.raw(b"SSH-2.0-OpenSSH_9.6\r\n", b"\0" * 100)


@_lie("hangs up")
def _(handler: Handler) -> None:
    handler.close_connection = True


@_lie("reset")
def _(handler: Handler) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


for _status in (
    "\xb2\xb0\xb0 OK",
    "999 Odd",
    "204 No Content",
    "202 Accepted",
    "304 Not Modified",
    "103 Early Hints",
    "-1 x",
):
    _says(f"status {_status}", LENGTH, status=_status)
_says("unasked part", LENGTH, f"Content-Range: bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", status="206 Partial Content")
_says("retry after", "Retry-After: \xb2", "Content-Length: 0", body=b"", status="503 Service Unavailable")
_says("escape sequences", "Content-Length: 0", body=b"", status="404 \x1b[2J\x1b]0;owned\x07")

# Lengths and encodings

_says("length of letters", "Content-Length: \xb2")
_says("length below zero", "Content-Length: -5")
_says("length with underscores", "Content-Length: 3_0")
_says("length of terabytes", "Content-Length: 9000000000000")
_says("length of many digits", f"Content-Length: {'9' * 5000}")
_says("two lengths", LENGTH, "Content-Length: 5")
_says("length too large", f"Content-Length: {len(CONTENT) + 1}")
_says("length too small", f"Content-Length: {len(CONTENT)}", body=CONTENT + b"more", harmless=True)
_says("same length twice", LENGTH, LENGTH, harmless=True)
_says(
    "chunks and a length",
    CHUNKED,
    "Content-Length: 5",
    body=b"".join(_chunks(CONTENT, 70_000)) + b"0\r\n\r\n",
    harmless=True,
)
_says("many headers", LENGTH, *(f"X-{i}: {'a' * 1000}" for i in range(50)), harmless=True)
_says("endless header in ninety lines", LENGTH, *(f"X-{i}: {'a' * 1000}" for i in range(90)))
_says("gzip", "Content-Encoding: gzip", LENGTH)
_says("gzip bomb", "Content-Encoding: gzip", body=gzip.compress(bytes(1 << 24)))
_says("brotli", "Content-Encoding: br", LENGTH)
_says("unknown transfer", "Transfer-Encoding: gzip, chunked", body=b"".join(_chunks(CONTENT, 70_000)))


# The body


@_lie("endless body")
def _(handler: Handler) -> None:
    handler.raw(handler.head(), itertools.repeat(CONTENT))


@_lie("endless chunks")
def _(handler: Handler) -> None:
    handler.raw(handler.head(CHUNKED), itertools.repeat(b"%x\r\n%s\r\n" % (len(CONTENT), CONTENT)))


@_lie("slow body", slow=True)
def _(handler: Handler) -> None:
    handler.raw(handler.head(LENGTH), (CONTENT[i : i + 1] for i in range(len(CONTENT))), pause=0.005)


@_lie("slow resumable body", slow=True)
def _(handler: Handler) -> None:
    start = _start(handler) or 0
    head = _rest(start) if start else handler.head(LENGTH, f"ETag: {ETAG}")
    handler.raw(head, (CONTENT[i : i + 1] for i in range(start, len(CONTENT))), pause=0.005)


@_lie("slow chunks", slow=True)
def _(handler: Handler) -> None:
    handler.raw(handler.head(CHUNKED), (b"1" for _ in itertools.count()), pause=0.005)


@_lie("stops in the middle", slow=True)
def _(handler: Handler) -> None:
    handler.wfile.write(handler.head(LENGTH) + CONTENT[:CUT])
    handler.silence()


@_lie("endless trailers")
def _(handler: Handler) -> None:
    handler.raw(handler.head(CHUNKED), _chunks(CONTENT, 1000), b"0\r\n", itertools.repeat(b"X-T: a\r\n" * 1000))


@_lie("endless chunk extension")
def _(handler: Handler) -> None:
    handler.raw(handler.head(CHUNKED), (b"1;%s\r\nX\r\n" % (b"x" * 60_000) for _ in itertools.count()))


@_lie("one byte and hanging up")
def _(handler: Handler) -> None:
    """Each time a byte more than before, so that there is always progress."""
    start = _start(handler) or 0
    head = _rest(start) if start else handler.head(LENGTH, f"ETag: {ETAG}")
    handler.raw(head, CONTENT[start : start + 1])


for _size in ("-5", "0x5", "\xb2", "", "f" * 40):
    _says(f"chunk of {_size or 'nothing'}", CHUNKED, body=_size.encode("latin-1") + b"\r\n" + CONTENT)
_says("chunks without end", CHUNKED, body=b"".join(_chunks(CONTENT, 1000)))
_TINY = b"".join((*_chunks(CONTENT[:20_000], 1), *_chunks(CONTENT[20_000:], 1 << 20), b"0\r\n\r\n"))
_says("chunks of one byte", CHUNKED, body=_TINY, harmless=True)
_PAGE = b"\n <!DOCTYPE html><html><body>Please log in</body></html>"
_says("login page", "Content-Type: text/html", f"Content-Length: {len(_PAGE)}", body=_PAGE)
_says("login page as a file", "Content-Type: application/octet-stream", f"Content-Length: {len(_PAGE)}", body=_PAGE)
_says("login page in plain words", "Content-Type: text/html; charset=utf-8", body=b"Please log in")
_says("error of a store", body=b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>')

# Redirects


def _redirects(name: str, location: str, harmless: bool = False) -> None:
    def answer(handler: Handler) -> None:
        if handler.path.startswith("/there"):
            handler.file()
        else:
            handler.raw(handler.head(f"Location: {location}", "Content-Length: 0", status="302 Found"))

    LIES[name] = Lie(answer, harmless=harmless)


for _scheme in ("ftp://127.0.0.1/x", "file:///etc/passwd", "javascript:alert(1)", "data:text/plain,x"):
    _redirects(f"redirect to {_scheme.partition(':')[0]}", _scheme)
for _place in (
    "http://[::1/",
    "http://.../",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:x/",
    "http://a b/",
    "http:///",
):
    _redirects(f"redirect to {_place}", _place)
_redirects("redirect to itself", "/folder/weights.npz")
_redirects("redirect in letters", "/there?\xc3\xa4", harmless=True)
_redirects("redirect that is good", "/there", harmless=True)
_says("redirect to nowhere", "Content-Length: 0", body=b"", status="302 Found")


@_lie("endless redirects")
def _(handler: Handler) -> None:
    handler.raw(handler.head(f"Location: {handler.path}1", "Content-Length: 0", status="301 Moved"))


@_lie("redirect with an endless body", harmless=True)
def _(handler: Handler) -> None:
    if handler.path.startswith("/there"):
        handler.file()
    else:
        handler.raw(handler.head("Location: /there", status="302 Found"), itertools.repeat(CONTENT))


# Resuming: the first connection breaks, what is said of the rest is wrong


def _start(handler: Handler) -> int | None:
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    return int(wanted[1]) if wanted else None


def _rest(start: int, *headers: str, content_range: str | None = None, etag: str = ETAG) -> bytes:
    """The head of a right answer about the rest, but for what is given."""
    place = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}" if content_range is None else content_range
    lines = (f"Content-Range: {place}", f"ETag: {etag}", *headers)
    kept = [line for line in lines if not line.endswith(": ")]
    return "\r\n".join(("HTTP/1.1 206 Partial Content", *kept, "", "")).encode("latin-1")


_DATE = "Wed, 21 Oct 2020 07:28:00 GMT"


def _resumes(name: str, answer: Callable[[Handler, int], None], harmless: bool = False, etag: str = ETAG) -> None:
    """A lie about the rest of a file whose connection breaks, each time, after `CUT` bytes."""

    def whole_or_rest(handler: Handler) -> None:
        start = _start(handler)
        if start is not None:
            answer(handler, start)
        else:
            hashes = "x-goog-hash: crc32c=YMHFQA==" if name == "part with another hash" else "X-None: "
            about = (f"ETag: {etag}", f"Last-Modified: {_DATE}", "Date: Thu, 22 Oct 2020 07:28:00 GMT", hashes)
            kept = [line for line in about if not line.endswith(": ")]
            handler.raw(handler.head(LENGTH, *kept), CONTENT[:CUT])

    LIES[name] = Lie(whole_or_rest, harmless=harmless)


def _part(name: str, *headers: str, body: bytes | None = None, version: str | None = None, **stated: str) -> None:
    def answer(handler: Handler, start: int) -> None:
        rest = OTHER[start:] if body is None else body
        fields = {
            key: value.format(start=start, end=len(CONTENT) - 1, size=len(CONTENT)) for key, value in stated.items()
        }
        handler.raw(_rest(start, *headers, **fields), rest)

    _resumes(name, answer, etag=ETAG if version is None else version)


_part("part of another version", etag='"version-2"')
_part("part of another date", f"Last-Modified: {_DATE.replace('2020', '2021')}")
_part("part of a version that was only dated", f"Last-Modified: {_DATE.replace('2020', '2021')}", version="", etag="")
_part("part of another weak version", f"Last-Modified: {_DATE}", version='W/"1"', etag='W/"2"')
_part("part that names no version", etag="")
_part("part of a longer file", content_range="bytes {start}-{end}/9999999")
_part("part with another hash", "x-goog-hash: crc32c=AAAAAA==")
_part("part without a range", content_range="")
_part("part of another place", content_range="bytes 7-{end}/{size}")
_part("part backwards", content_range="bytes {start}-3/{size}")
_part("part beyond the end", content_range="bytes {start}-{size}/{size}")
_part("part of an unknown whole", content_range="bytes {start}-{end}/*")
_part("part in other letters", content_range="bytes \xb2-{end}/{size}")
_part("part of other units", content_range="lines {start}-{end}/{size}")
_part("several parts", "Content-Type: multipart/byteranges; boundary=x", content_range="")
_part("part of another length", "Content-Length: 7")
_part("part with too much", CHUNKED, body=b"".join(_chunks(CONTENT, 70_000)) + b"0\r\n\r\n")
_resumes("endless part", lambda handler, start: handler.raw(_rest(start), itertools.repeat(CONTENT)))
_resumes("parts without end", lambda handler, start: handler.raw(_rest(start)))
_resumes("no part", lambda handler, start: handler.raw(handler.head("Content-Length: 0", status="416 No")))
_resumes("part that is good", lambda handler, start: handler.raw(_rest(start), CONTENT[start:]), harmless=True)
