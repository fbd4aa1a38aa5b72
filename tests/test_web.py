"""One question to a web server, at the level where nothing is kept: images at addresses go this way."""

from __future__ import annotations

import email.message
import io
import socket
import ssl
import types
from collections.abc import Iterator

import pytest

from bigtransfer import web

from .file_server import CONTENT, LIES, Handler, Server, limited, running


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    limited(monkeypatch, stall_seconds=5, least_rate=10_000)
    with running() as server:
        yield server


@pytest.mark.parametrize("name", [name for name in LIES if "part" not in name or name == "unasked part"])
def test_lies_end(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    lie = LIES[name]
    limited(monkeypatch, stall_seconds=0.1 if lie.slow else 5, least_rate=10_000)
    server.tell(lie)
    if lie.harmless or "login page" in name or name == "error of a store":  # whoever looks at the bytes knows better
        assert web.read(server.address, 1_000_000) in (CONTENT, *lie_bodies(name))
        return
    with pytest.raises(web.WebError) as caught:
        web.read(server.address, 1_000_000)
    assert caught.value.reason and "\x1b" not in caught.value.reason


def lie_bodies(name: str) -> Iterator[bytes]:
    if "login" in name:
        yield b"Please log in"
        yield b"\n <!DOCTYPE html><html><body>Please log in</body></html>"
    if name == "error of a store":
        yield b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'


def test_at_most(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert web.read(server.address, len(CONTENT)) == CONTENT
    with web.ask(server.address) as answer:
        assert answer.read(10) == CONTENT[:10]
    given, read = [], web.Answer.read
    monkeypatch.setattr(web.Answer, "read", lambda self: given.append(read(self)) or given[-1])
    for lie in ("endless body", "same length twice"):  # with and without a length
        server.tell(LIES[lie])
        with pytest.raises(web.Refused, match=r"it is larger than 0\.293 MB"):
            web.read(server.address, len(CONTENT) - 1)
    assert sum(map(len, given)) < 2 * len(
        CONTENT
    )  # no more is read than tells that it is too much, of a stated length nothing


def test_a_connection_that_keeps_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each span of waiting it must bring the least rate; what is done between two reads does not count."""
    clock, timeouts, due = [0.0], [], []

    def receive(buffer: memoryview) -> int:
        seconds, count = due.pop(0)
        clock[0] += seconds
        if count is None:
            raise TimeoutError
        return count

    connection = types.SimpleNamespace(settimeout=timeouts.append, recv_into=receive)
    monkeypatch.setattr(web, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    limited(monkeypatch, stall_seconds=10, least_rate=100)

    def reads(*steps: tuple[float, int | None]) -> int:
        """How many succeed."""
        due[:], timeouts[:] = steps, []
        watched = web._Watched(connection, io.BytesIO())  # pyright: ignore
        for number in range(len(steps)):
            clock[0] += 1000  # our own work
            try:
                watched.readinto(bytearray(5000))
            except (web.Interrupted, TimeoutError):
                return number
        return len(steps)

    assert reads(*[(1, 150)] * 10, *[(1, 50)] * 10, (1, 5000)) == 19
    assert timeouts[:11] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 10]
    assert reads((10, 1000), (10, 999)) == 1
    assert (
        reads((1, 2000), (9, None), (5, 1), (5, None), (1, 1)) == 2
    )  # a pause may last for the rest of a span, and one more
    assert reads((10, None), (0, 1)) == 0


def test_what_is_asked(server: Server) -> None:
    web.ask(server.address + "#fragment", {"X-Own": "1"}).__exit__()
    path, headers = server.requests[0]
    assert path == "/folder/weights.npz"
    assert headers["X-Own"] == "1" and headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("bigtransfer/") and headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("first", "then"), [("https", "http"), ("https", "https"), ("http", "https"), ("http", "http")]
)
def test_redirects_never_become_insecure(monkeypatch: pytest.MonkeyPatch, first: str, then: str) -> None:
    asked = []

    def get(address: str, headers: dict[str, str]) -> object:
        asked.append(address)
        said = email.message.Message()
        if len(asked) == 1:
            said["Location"] = f"{then}://other/b"
        return types.SimpleNamespace(
            status=301 if len(asked) == 1 else 200, headers=said, chunked=False, close=lambda: None
        )

    monkeypatch.setattr(web, "_get", get)
    if (first, then) == ("https", "http"):
        with pytest.raises(web.Refused, match="redirects to an insecure address, http://other/b"):
            web.ask("https://host/a")
        assert asked == ["https://host/a"]
    else:
        web.ask(f"{first}://host/a")
        assert asked == [f"{first}://host/a", f"{then}://other/b"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect(server: Server, status: int) -> None:
    def answer(handler: Handler) -> None:
        if handler.path == "/folder/there":
            handler.file()
        else:
            handler.reply(status, b"moved", {"Location": "there"})  # relative to the folder

    server.answer = answer
    assert web.read(server.address, 1_000_000) == CONTENT


@pytest.mark.parametrize("allowed", [1, 3])
def test_number_of_redirects(server: Server, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    limited(monkeypatch, redirects=allowed)
    server.tell(LIES["endless redirects"])
    with pytest.raises(web.Refused, match=f"more than {allowed} times"):
        web.read(server.address, 1)
    assert len(server.requests) == allowed + 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 410, 425, 429, 451, 500, 503, 599])
def test_whether_to_ask_again(server: Server, status: int) -> None:
    server.answer = lambda h: h.reply(status, b"")
    with pytest.raises(web.WebError, match=f"answered {status}") as caught:
        web.ask(server.address)
    assert isinstance(caught.value, web.Interrupted if status in (408, 425, 429, 500, 503, 599) else web.Refused)


def test_a_certificate_that_is_not_trusted() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    with pytest.raises(web.Refused, match=r"certificate is not trusted \(self-signed certificate\)") as caught:
        web._unreachable(error, "host", False)
    assert "SSL_CERT_FILE" in caught.value.advice


def test_headers_that_are_none(server: Server) -> None:
    with pytest.raises(web.Refused, match="makes no sense"):
        web.ask(server.address, {"X-Own": "a\r\nX-Other: b"})


def test_gzip_that_is_the_file(server: Server) -> None:
    """Some servers call a .tar.gz gzip-encoded, and mean it as it is."""
    server.answer = lambda h: h.reply(200, b"packed", {"Content-Encoding": "x-gzip"})
    for name in ("a.tar.gz", "a.tgz", "a.tar.gz?x=1"):
        assert web.read(server.address.replace("weights.npz", name), 100) == b"packed"
    with pytest.raises(web.Refused, match="compresses it"):
        web.read(server.address, 100)


@pytest.mark.parametrize(("after", "wait"), [("7", 7), ("3600", 60), ("\xb2", 0), ("-1", 0), ("soon", 0), ("", 0)])
def test_waiting_as_the_server_asks(server: Server, after: str, wait: int) -> None:
    server.answer = lambda h: h.reply(503, b"", {"Retry-After": after})
    with pytest.raises(web.Interrupted, match="answered 503 Service Unavailable") as caught:
        web.ask(server.address)
    assert caught.value.wait == wait


def test_through_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = socket.getaddrinfo

    def resolve(host: str, *arguments: object, **named: object) -> object:  # without the network
        if host != "127.0.0.1":
            raise socket.gaierror(-2, "Name or service not known")
        return resolved(host, *arguments, **named)  # pyright: ignore

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert web.read("http://nowhere.invalid/file", 1_000_000) == CONTENT
    assert server.requests[0][0] == "http://nowhere.invalid/file"
    for proxy in ("http://[", "http://127.0.0.1:x", "http://nowhere.invalid:80"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(web.WebError, match=r"the name of the proxy, .* cannot be resolved|nonnumeric port"):
            web.read(server.address, 1_000_000)
    monkeypatch.delenv("http_proxy")
    with pytest.raises(web.Refused, match=r"the name nowhere\.invalid cannot be resolved"):
        web.read("http://nowhere.invalid:80/file", 1_000_000)


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("http://host", "http://host/"),
        ("HTTP://Host:80/a b?c d#e", "http://host:80/a%20b?c%20d"),
        ("https://b\xfccher.example/\xe4", "https://xn--bcher-kva.example/%C3%A4"),
        ("http://[::1]:8080/%20", "http://[::1]:8080/%20"),
        ("http://a_b.c/(1)", "http://a_b.c/(1)"),
    ],
)
def test_addresses(typed: str, asked: str) -> None:
    assert web.checked(typed) == asked == web.checked(asked)


def test_only_http_and_https() -> None:
    assert web.is_web("HTTP://host/") and web.is_web("https://host")
    with pytest.raises(web.Refused, match="a user's name or password"):
        web.checked("http://me:secret@host/")
    for address in ("ftp://host/a", "file:///a", "data:,a", "host/a", ""):
        with pytest.raises(web.Refused, match="only http and https"):
            web.checked(address)
        assert not web.is_web(address)
