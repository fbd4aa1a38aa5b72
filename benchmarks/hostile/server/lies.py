"""A web server on this machine that answers as a script says: each answer may lie in every part."""

from __future__ import annotations

import contextlib
import functools
import random
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from random import Random

VERSIONS = tuple(random.Random(k).randbytes(60_000 + 1000 * k) for k in range(3))
"""What the file has been, one after another."""


@dataclass
class Answer:
    """One answer. Where nothing is said it is true."""

    version: int = 0
    etag: str | None = None
    """None: of that version; "" for none."""
    status: int | None = None
    """None: 206 where a part was asked for and may be given, else 200."""
    headers: list[tuple[str, str]] = field(default_factory=list)
    """Besides, or instead of, the usual ones; an empty value leaves the header out."""
    sent: int | None = None
    """Bytes of the body that are sent before the connection ends; None: all."""
    ranged: str = "right"
    """What is done with a range that was asked for: right, ignored, whatever (If-Range is not looked at), shifted, none (no
    Content-Range)."""
    pace: str = "at once"
    """at once, drip (a byte now and then), stall (nothing any more after the headers), late (nothing at all), headers (without end)."""
    framing: str = "length"
    """length, none, chunked, broken chunks, endless."""
    raw: bytes | None = None
    """Instead of all that."""

    @property
    def honest(self) -> bool:
        """Whether what it sends can be told from what it says, by whoever reads carefully."""
        own = (None, f'"v{self.version}"')
        return (
            self.etag in own
            and self.ranged in ("right", "ignored", "none", "shifted")
            and self.framing in ("length", "chunked")
        )


def lie(rng: Random, version: int | None = None) -> Answer:
    """Any answer."""
    answer = Answer(version=rng.choice((0, 0, 0, 1, 2)) if version is None else version)
    size = len(VERSIONS[answer.version])
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        match rng.randrange(9):
            case 0:
                answer.sent = rng.choice((0, 1, 100, size // 2, size - 1))
            case 1:
                answer.etag = rng.choice(("", 'W/"v0"', '"v0"', '"other"', "v0", '"' + "x" * 5000 + '"', '"é"', '""'))
            case 2:
                answer.ranged = rng.choice(("ignored", "whatever", "shifted", "none"))
            case 3:
                answer.pace = rng.choice(("drip", "stall", "late", "headers"))
            case 4:
                answer.framing = rng.choice(("none", "chunked", "broken chunks", "endless"))
            case 5:
                answer.status = rng.choice(
                    (
                        200,
                        206,
                        204,
                        301,
                        302,
                        303,
                        304,
                        307,
                        308,
                        400,
                        401,
                        403,
                        404,
                        408,
                        416,
                        429,
                        500,
                        502,
                        503,
                        999,
                        100,
                    )
                )
                answer.headers.append(("Location", _place(rng)))
            case 6:
                answer.headers.append(_header(rng, size))
            case 7:
                answer.headers += [_header(rng, size) for _ in range(rng.choice((2, 3)))]
            case _:
                if rng.random() < 0.4:
                    answer.raw = rng.choice(
                        (
                            b"",
                            b"\0" * 100,
                            b"HTTP/1.1",
                            b"HTTP/9.9 200 OK\r\n\r\n",
                            b"HTTP/1.1 abc\r\n\r\n",
                            b"ICY 200 OK\r\n\r\nx",
                            b"<html>",
                            b"HTTP/1.1 200 OK\r\n" + b"A" * 100_000,
                            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\nx",
                            b"HTTP/1.1 100 Continue\r\n\r\n" * 3000,
                            b"\x16\x03\x01\x02",
                            b"HTTP/1.1 200 \xff\xfe\r\nContent-Length: 3\r\n\r\nabc",
                            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
                        )
                    )
    return answer


def _place(rng: Random) -> str:
    """Where a redirect leads."""
    return rng.choice(
        (
            "/file",
            "/other",
            "file",
            "",
            "http://[::1/",
            "http://127.0.0.1:1/",
            "ftp://127.0.0.1/x",
            "file:///etc/passwd",
            "//127.0.0.1:1/x",
            "http://",
            "http:///x",
            "javascript:1",
            "/é ü",
            "http://127.0.0.1:99999/",
            "?x",
            "#x",
            "/" + "x" * 9000,
            "/a\tb",
            "data:,x",
            "https://127.0.0.1:1/",
            "http://127.0.0.1:port/",
            "http://a@127.0.0.1/",
            "http://127.0.0.1:\u0661/",
        )
    )


def _header(rng: Random, size: int) -> tuple[str, str]:
    name = rng.choice(
        (
            "Content-Length",
            "Content-Length",
            "Content-Range",
            "Content-Type",
            "Content-Encoding",
            "Transfer-Encoding",
            "Last-Modified",
            "Date",
            "x-goog-hash",
            "X-Linked-Etag",
            "X-Repo-Commit",
            "Accept-Ranges",
            "Retry-After",
            "Content-Disposition",
            "Connection",
        )
    )
    values = {
        "Content-Length": (
            "",
            str(size + 1),
            str(size - 1),
            "0",
            "-1",
            "²",
            "1e5",
            "99999999999999999999",
            f"{size}, {size}",
            "+5",
            " 5",
            "0x10",
            "1" * 5000,
            "५",
        ),
        "Content-Range": (
            "",
            f"bytes 0-{size - 1}/{size}",
            "bytes */5",
            "bytes 5-4/3",
            "bytes -1-5/9",
            "bytes 0-0/*",
            "bytes a-b/c",
            f"bytes 100-{size - 1}/{size + 5}",
            "items 0-1/2",
            f"bytes 0-{10**30}/{10**31}",
            f"bytes=0-{size - 1}/{size}",
        ),
        "Content-Type": ("text/html", "", "text/html; charset=é", "application/json"),
        "Content-Encoding": ("gzip", "br", "deflate", "identity", "x" * 3000),
        "Transfer-Encoding": ("gzip", "chunked", "chunked, chunked", "identity"),
        "Last-Modified": ("Thu, 01 Jan 1970 00:00:00 GMT", "never", "", "Thu, 99 Foo 99999 00:00:00 GMT", "x" * 5000),
        "Date": ("never", "Thu, 01 Jan 1970 00:00:00 GMT", ""),
        "x-goog-hash": (
            "md5=AAAAAAAAAAAAAAAAAAAAAA==",
            "crc32c=AAAAAA==",
            "md5=x",
            "crc32c=é",
            "md5",
            "=",
            "sha9=AAAA",
            "crc32c=" + "A" * 9000,
        ),
        "X-Linked-Etag": ('"' + "0" * 64 + '"', "é", "x"),
        "X-Repo-Commit": ("0" * 40, "x"),
        "Accept-Ranges": ("none", "bytes", "x"),
        "Retry-After": ("99999999", "0", "-5", "soon", "Thu, 01 Jan 2099 00:00:00 GMT", "1e9"),
        "Content-Disposition": ("attachment; filename=../../evil", "x"),
        "Connection": ("close", "keep-alive", "upgrade"),
    }
    return name, rng.choice(values[name])


class Server:
    """Answers one connection at a time in a thread of its own; the last answer of the script for ever."""

    def __init__(self) -> None:
        self.script: list[Answer] = [Answer()]
        self.files: dict[str, bytes] = {}
        """Path -> contents; other paths are `VERSIONS`. An answer's version then only names the etag."""
        self.lying: str = ""
        """If not empty, only paths that hold it are answered by the script, the others truly."""
        self.asked = 0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError), connection:
            connection.settimeout(10)
            request = b""
            while b"\r\n\r\n" not in request and len(request) < 100_000:
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            path = request.split(b" ")[1].decode("latin-1")
            wanted = re.search(rb"\r\nRange: *bytes=(\d+)-", request, re.I)
            condition = re.search(rb"\r\nIf-Range: *([^\r]*)", request, re.I)
            answer = Answer()
            if self.lying in path:
                answer = self.script[min(self.asked, len(self.script) - 1)]
                self.asked += 1
            self._say(
                connection,
                answer,
                path,
                int(wanted[1]) if wanted else None,
                condition[1].decode("latin-1") if condition else None,
            )

    def _say(
        self, connection: socket.socket, answer: Answer, path: str, start: int | None, condition: str | None
    ) -> None:
        if answer.raw is not None:
            connection.sendall(answer.raw)
            return
        if answer.pace == "late":
            time.sleep(4)
            return
        whole = self.files.get(path)
        if whole is None:
            if self.files and not path.startswith("/file"):
                answer = Answer(status=404) if answer.status is None else answer
            whole = VERSIONS[answer.version]
        etag = f'"v{answer.version}"' if answer.etag is None else answer.etag
        status, body, headers = (
            200,
            whole,
            {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"},
        )
        if start is not None and answer.ranged != "ignored" and (condition == etag or answer.ranged != "right"):
            shift = 7 if answer.ranged == "shifted" else 0
            status, body = 206, whole[start + shift :]
            if answer.ranged != "none":
                headers["Content-Range"] = f"bytes {start + shift}-{len(whole) - 1}/{len(whole)}"
        status = answer.status or status
        headers |= {"length": {"Content-Length": str(len(body))}, "none": {"Connection": "close"}}.get(
            answer.framing, {"Transfer-Encoding": "chunked"}
        )
        if answer.framing in ("none", "endless"):
            headers.pop("Transfer-Encoding", None)
        lines = [f"HTTP/1.1 {status} Word"] + [
            f"{name}: {value}"
            for name, value in [*headers.items(), *answer.headers]
            if value and (name not in dict(answer.headers) or (name, value) in answer.headers)
        ]
        connection.sendall(("\r\n".join(lines) + "\r\n").replace("port", str(self.port)).encode("utf-8"))
        if answer.pace == "headers":
            for _ in range(20_000):
                connection.sendall(b"X-More: " + b"x" * 500 + b"\r\n")
        connection.sendall(b"\r\n")
        if answer.pace == "stall":
            connection.sendall(body[:100])
            time.sleep(4)
            return
        body = body if answer.sent is None else body[: answer.sent]
        if answer.pace == "drip":
            for k in range(40):
                connection.sendall(body[k : k + 1])
                time.sleep(0.1)
            return
        if answer.framing == "chunked":
            for k in range(0, len(body), 9000):
                piece = body[k : k + 9000]
                connection.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
            if answer.sent is None:
                connection.sendall(b"0\r\n\r\n")
        elif answer.framing == "broken chunks":
            connection.sendall(b"zz\r\nabc\r\n" if answer.version else b"ffffffffffffffffff\r\nabc\r\n-5\r\n")
        elif answer.framing == "endless":
            for _ in range(3000):
                connection.sendall(bytes(100_000))
        else:
            connection.sendall(body)
        if answer.sent is not None and answer.sent % 2:  # not closed but reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@functools.cache
def server() -> Server:
    return Server()
