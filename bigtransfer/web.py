"""One question to a web server, whatever it answers: a server that says nothing, or never stops, is given up.

On the standard library's http.client, whose timeouts begin anew with every byte, and which reads interim answers, headers and
trailers for as long as they come: here every byte passes `_Watched`. Redirects are followed a few times (`limits.redirects`), to
http and https only, never from https to http, and their bodies are not read. Proxies come from the usual `http_proxy`, `https_proxy`.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import string
import time
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from typing import Any, NoReturn

from bigtransfer import __version__
from bigtransfer.limits import limits

_AROUND = 64 * 1024
"""Bytes that may come besides the body: status, headers, what frames the pieces of a chunked body, trailers."""
_FRAMING = 8
"""Bytes that a byte of the body may cost in all: pieces of one byte cost six."""
_PIECE = 1 << 18
_REDIRECTS = (301, 302, 303, 307, 308)
_ADVICE = {
    401: "It needs a login.",
    403: "The server does not give it to everybody; perhaps it was withdrawn.",
    404: "There is no such file; perhaps it was withdrawn, or the name is wrong.",
}


class WebError(Exception):
    """A file cannot be had; `reason` says why, without the address."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Refused(WebError):
    """Asking again would change nothing. `advice`: a sentence or nothing; `status`: of HTTP, if that was it."""

    def __init__(self, reason: str, advice: str = "", status: int | None = None) -> None:
        super().__init__(reason)
        self.advice = advice
        self.status = status


class Interrupted(WebError):
    """Asking again may help, after `wait` seconds."""

    passing = True

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def is_web(address: str) -> bool:
    """Whether an address is one of http or https."""
    return re.match("https?://", address, re.IGNORECASE) is not None


def checked(address: str) -> str:
    """An address as HTTP wants it: blanks and letters that were typed or copied are escaped, and names of hosts are in ASCII.

    Refused if it is no http or https address.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname or "", parts.port
        if ":" not in host:
            host = host.encode("idna").decode("ascii")
        escaped = (
            urllib.parse.quote(part, safe=string.punctuation, errors="surrogateescape")
            for part in (parts.path, parts.query)
        )
        path, query = escaped
    except ValueError as error:
        raise Refused("this is not an address") from error
    if parts.scheme not in ("http", "https"):
        raise Refused(f"only http and https addresses are fetched, not {parts.scheme!a} ones")
    if parts.username is not None:
        raise Refused("addresses with a user's name or password in them are not supported")
    if not re.fullmatch(r"[\w.-]+|[0-9a-f:.]+(%[\w.-]+)?", host, re.ASCII):
        raise Refused("this is not an address")
    place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    return urllib.parse.urlunsplit((parts.scheme, place, path or "/", query, ""))


class Answer:
    """What a server gives: status 200 and the file, or 206 and the part of it that was asked for. A context manager."""

    def __init__(self, response: _Response, linked_etag: str, address: str) -> None:
        self.status = response.status
        self.headers: Message = response.headers
        self.linked_etag = linked_etag
        """`X-Linked-Etag` of the Hugging Face hub, which states it when it sends us to its storage."""
        self._response = response
        coding = self.headers.get("Transfer-Encoding")
        if coding is not None and not response.chunked:
            raise Refused(f"the server encodes it in a way that is not known here (Transfer-Encoding {coding[:40]!a})")
        packed = self.headers.get("Content-Encoding", "identity").strip().lower()
        # Some servers call a .gz file gzip-encoded, and mean the file as it is.
        as_it_is = packed in ("gzip", "x-gzip") and urllib.parse.urlsplit(address).path.endswith((".gz", ".tgz"))
        if packed not in ("", "identity") and not as_it_is:
            raise Refused(f"the server compresses it though asked not to (Content-Encoding {packed[:40]!a})")
        self.size = None if response.chunked else _length(self.headers)
        """Bytes of the body; None if it ends where the server says so."""

    def read(self, count: int = _PIECE) -> bytes:
        """Some bytes of the body, at most `count`; b"" at its end. Interrupted if none come."""
        try:
            data = self._response.read1(count)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Interrupted(reason(error)) from error
        self._response.watched.allowed += _FRAMING * len(data)
        return data

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()


def ask(address: str, headers: dict[str, str] | None = None) -> Answer:
    """What is at `address`. headers: besides the usual ones; a part of the file only comes for a `Range` among them.

    Raises Refused or Interrupted.
    """
    current, linked = checked(address), ""
    headers = {"User-Agent": f"bigtransfer/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
    for _ in range(limits().redirects + 1):
        response = _get(current, headers)
        try:
            linked = response.headers.get("X-Linked-Etag") or linked
            if response.status == 200 or (response.status == 206 and "Range" in headers):
                return Answer(response, linked, current)
            if response.status not in _REDIRECTS:
                _refuse(response)
            current = _redirected(current, response)
        except BaseException:
            response.close()
            raise
        response.close()
    raise Refused(f"it redirects more than {limits().redirects} times")


def read(address: str, most: int) -> bytes:
    """The bytes at `address`, in one try; Refused if they are more than `most`. Raises Refused or Interrupted."""
    with ask(address) as answer:
        pieces, count = [], 0
        while count <= most and (answer.size or 0) <= most and (piece := answer.read()):
            pieces.append(piece)
            count += len(piece)
        if max(count, answer.size or 0) > most:
            raise Refused(f"it is larger than {most / 2**20:.4g} MB")
        if answer.size not in (None, count):
            raise Interrupted(f"the connection broke off after {count} of {answer.size} bytes")
    return b"".join(pieces)


def reason(error: object) -> str:
    """What stopped a connection, in words, none of which are the server's."""
    if isinstance(error, TimeoutError):
        return f"no answer within {limits().stall_seconds:g} seconds"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection failed (it broke off, or the pieces of the file make no sense)"
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
        return "the connection failed (the answer is not one of HTTP)"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"the connection failed ({said.strip() or type(error).__name__})"


# --- One request


class _Watched(io.RawIOBase):
    """What a socket gives, while it keeps up and has something to say."""

    def __init__(self, connection: socket.socket, opened: io.BufferedIOBase) -> None:
        self._connection = connection
        self._opened = opened
        self._waited = 0.0
        self._count = 0
        self.allowed = _AROUND
        """Bytes that may come before more of the body has been read."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self.allowed <= 0:
            raise Refused("the server sends headers, or other things around the file, without end")
        span = limits().stall_seconds
        while True:
            self._connection.settimeout(max(span - self._waited, 1e-3))
            begun = time.monotonic()  # only waiting counts, not what we do between two reads
            try:
                count = self._connection.recv_into(memoryview(buffer)[: self.allowed])
            except TimeoutError:
                count = None
            self._waited += time.monotonic() - begun
            self._count += count or 0
            if self._waited >= span:
                if self._count == 0:
                    raise TimeoutError
                if self._count < span * limits().least_rate:
                    raise Interrupted(f"only {self._count} bytes came in {span:g} seconds")
                self._waited, self._count = 0.0, 0
            if count is not None:
                self.allowed -= count
                return count

    def close(self) -> None:
        self._opened.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.watched = _Watched(sock, self.fp)
        self.fp = io.BufferedReader(self.watched)


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, req)


def _get(address: str, headers: dict[str, str]) -> _Response:
    """The answer to one request, whatever its status."""
    opener = urllib.request.OpenerDirector()  # not `build_opener`, whose handlers also know ftp, files and redirects
    for handler in (urllib.request.ProxyHandler(), _Handler(), _SecureHandler()):
        opener.add_handler(handler)
    request = urllib.request.Request(address, headers=headers)
    try:
        response = opener.open(request, timeout=limits().stall_seconds)
    except urllib.error.URLError as error:
        _unreachable(error.reason, request.host, request.host != urllib.parse.urlsplit(address).netloc)
    except WebError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(reason(error)) from error
    except ValueError as error:  # a number in an answer that is none; a proxy's address that is none
        raise Refused(f"the answer, or the proxy's address, makes no sense ({error})") from error
    return response


def _unreachable(cause: Any, host: str, proxy: bool) -> NoReturn:
    if isinstance(cause, socket.gaierror):
        advice = "Look at http_proxy and https_proxy." if proxy else "Is this machine connected to the internet?"
        name = re.sub(r":\d+$", "", host)
        raise Refused(f"the name {'of the proxy, ' if proxy else ''}{name} cannot be resolved", advice) from cause
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise Refused(
            f"the server's certificate is not trusted ({cause.verify_message})",
            "Behind a company proxy, set SSL_CERT_FILE to its certificates.",
        ) from cause
    raise Interrupted(reason(cause))


def _refuse(response: _Response) -> NoReturn:
    """Raise what a status other than success means."""
    status, after = response.status, response.headers.get("Retry-After", "")
    if status == 206:
        raise Refused("the server sends a part of the file, which was not asked for")
    said = f"the server answered {status} {http.client.responses.get(status, '')}".rstrip()
    if status in (408, 425, 429) or status >= 500:
        raise Interrupted(said, float(min(int(after), 60)) if re.fullmatch("[0-9]{1,9}", after) else 0.0)
    raise Refused(said, _ADVICE.get(status, ""), status)


def _redirected(current: str, response: _Response) -> str:
    location = response.headers.get("Location")
    if location is None:
        raise Refused(f"the server answered {response.status} without saying where the file is")
    try:
        # http.client takes the bytes of a header for Latin-1; what is not ASCII there is UTF-8 in practice.
        new = checked(
            urllib.parse.urljoin(current, location.encode("latin-1", "replace").decode("utf-8", "surrogateescape"))
        )
    except (ValueError, Refused) as error:
        detail = f" ({error.reason})" if isinstance(error, Refused) else ""
        raise Refused(f"it redirects to {location[:200]!a}, where nothing is fetched from{detail}") from error
    if current.startswith("https:") and not new.startswith("https:"):
        raise Refused(f"it redirects to an insecure address, {new[:200]}")
    return new


def _length(headers: Message) -> int | None:
    stated = {part.strip() for value in headers.get_all("Content-Length", []) for part in str(value).split(",")}
    if not stated:
        return None
    if len(stated) > 1 or not re.fullmatch("[0-9]{1,18}", text := stated.pop()):
        raise Refused("the server states a length that makes no sense")
    return int(text)
