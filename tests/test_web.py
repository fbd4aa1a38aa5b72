"""One question to a web server, at the level where nothing is kept: images at addresses go this way."""

from __future__ import annotations

import email.message
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


@pytest.mark.parametrize("name", [name for name in LIES if "part" not in name])
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


def test_at_most(server: Server) -> None:
    assert web.read(server.address, len(CONTENT)) == CONTENT
    server.requests.clear()
    for lie in ("endless body", "same length twice"):  # with and without a length
        server.tell(LIES[lie])
        with pytest.raises(web.Refused, match=r"it is larger than 0\.293 MB"):
            web.read(server.address, len(CONTENT) - 1)


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


@pytest.mark.parametrize(("after", "wait"), [("7", 7), ("3600", 60), ("\xb2", 0), ("-1", 0), ("soon", 0), ("", 0)])
def test_waiting_as_the_server_asks(server: Server, after: str, wait: int) -> None:
    server.answer = lambda h: h.reply(503, b"", {"Retry-After": after})
    with pytest.raises(web.Interrupted, match="answered 503 Service Unavailable") as caught:
        web.ask(server.address)
    assert caught.value.wait == wait


def test_through_a_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert web.read("http://nowhere.invalid/file", 1_000_000) == CONTENT
    assert server.requests[0][0] == "http://nowhere.invalid/file"
    for proxy in ("ftp://127.0.0.1:1", "http://[", "http://127.0.0.1:x"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(web.WebError):
            web.read("http://nowhere.invalid/file", 1_000_000)


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
    for address in ("ftp://host/a", "file:///a", "data:,a", "host/a", ""):
        with pytest.raises(web.Refused, match="only http and https"):
            web.checked(address)
        assert not web.is_web(address)
