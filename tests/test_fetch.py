"""Downloads against a server on this machine that drops connections, truncates, lies and goes away."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import json
import multiprocessing
import os
import resource
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigtransfer import catalog, fetch, web, weights
from bigtransfer.errors import ConfigError, DownloadError

from .file_server import CONTENT, CUT, ETAG, LIES, OTHER, Handler, Server, limited, running


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    for name in (
        "BIT_OFFLINE",
        "HF_ENDPOINT",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "BACKOFF", 0.0)
    limited(monkeypatch, stall_seconds=5)
    return tmp_path / "cache"


def md5(content: bytes = CONTENT) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


# --- Good servers


def test_download_then_cache(server: Server, cache: Path) -> None:
    path = fetch.fetch(server.address)
    assert path == cache / f"127.0.0.1_{server.server_port}" / "folder" / "weights.npz"
    assert path.read_bytes() == CONTENT
    assert fetch.fetch(server.address) == path
    assert fetch.fetch(server.address, no_network=True) == path
    assert len(server.requests) == 1
    assert server.requests[0][1]["Accept-Encoding"] == "identity"
    assert leftovers(cache) == ["weights.npz"]


@pytest.mark.parametrize("cut", [1, 1000, len(CONTENT) - 1])
def test_dropped_connection_is_resumed(server: Server, cut: int) -> None:
    hashes = {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5()}"}
    server.in_turn(lambda h: h.file(hashes, sent=cut), lambda h: h.file(hashes))
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    _, headers = server.requests[1]
    assert (headers["Range"], headers["If-Range"]) == (f"bytes={cut}-", ETAG)


def test_a_connection_that_drops_all_the_time_arrives(server: Server) -> None:
    """Progress does not use up the attempts."""
    server.answer = lambda h: h.file(sent=30_000)
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert len(server.requests) == 11


def test_a_connection_that_crawls_is_replaced(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = fetch.Pace()
    assert not pace.crawls(10, 1e9, 0)  # nothing to compare with
    for _ in range(5):
        pace.add(100, 1.0)
    assert not pace.crawls(1_000, 29, 0) and pace.crawls(1_000, 31, 0) and not pace.crawls(10, 2.9, 0)
    assert not pace.crawls(1_000, 31, 2) and not pace.crawls(None, 1e9, 0)
    monkeypatch.setattr(fetch.Pace, "_FACTOR", -1.0)  # everything crawls
    fetch.download(server.address, tmp_path / "file", pace=pace)
    assert (tmp_path / "file").read_bytes() == CONTENT
    ranges = [headers.get("Range") for _, headers in server.requests]
    assert ranges[0] is None and len(ranges) == 3
    first, second = (int(str(asked).removeprefix("bytes=").removesuffix("-")) for asked in ranges[1:])
    assert 0 < first < second  # the bytes of the first connection were kept, and those of the second
    assert len(pace._rates) == 6  # the connection that came to the end counts as well


def test_next_process_goes_on(server: Server, cache: Path) -> None:
    server.in_turn(lambda h: h.file(sent=5000), lambda h: h.reply(503, b""))
    with pytest.raises(DownloadError, match=r"503 .*try again to go on"):
        fetch.fetch(server.address)
    assert leftovers(cache) == [".weights.npz.part", ".weights.npz.part.json"]
    server.answer = Handler.file
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert server.requests[-1][1]["Range"] == "bytes=5000-"
    assert leftovers(cache) == ["weights.npz"]


def test_a_part_that_is_the_whole_file_is_not_asked_for(server: Server, cache: Path) -> None:
    """A process that was killed between the last byte and the file's name."""
    server.in_turn(lambda h: h.file({"x-goog-hash": f"md5={md5()}"}, sent=5000), lambda h: h.reply(503, b""))
    with pytest.raises(DownloadError):
        fetch.fetch(server.address)
    (part,) = cache.rglob("*.part")
    part.write_bytes(CONTENT)
    server.requests.clear()
    assert fetch.fetch(server.address).read_bytes() == CONTENT and not server.requests


def test_new_version_meanwhile_is_fetched_whole(server: Server) -> None:
    other = CONTENT[::-1]
    server.in_turn(lambda h: h.file(sent=5000), lambda h: h.file({"ETag": '"version-2"'}, content=other))
    assert fetch.fetch(server.address).read_bytes() == other
    assert len(server.requests) == 2


def test_server_without_ranges(server: Server) -> None:
    server.in_turn(
        lambda h: h.reply(200, CONTENT, {"ETag": ETAG}, sent=5000), lambda h: h.reply(200, CONTENT, {"ETag": ETAG})
    )
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert "Range" in server.requests[1][1]


def test_nothing_is_resumed_without_a_version(server: Server) -> None:
    """Neither etag nor date (or a weak etag): the rest could be of another file."""
    for headers in ({}, {"ETag": 'W/"1"'}):
        server.requests.clear()
        server.in_turn(*[lambda h, e=headers, n=n: h.reply(200, CONTENT, e, sent=n) for n in (5000, None)])
        path = fetch.fetch(server.address)
        assert path.read_bytes() == CONTENT
        assert "Range" not in server.requests[1][1]
        path.unlink()


def test_date_is_enough_to_resume(server: Server) -> None:
    date = {"ETag": "", "Last-Modified": "Wed, 21 Oct 2020 07:28:00 GMT"}
    server.in_turn(lambda h: h.reply(200, CONTENT, date, sent=5000), lambda h: h.reply(200, CONTENT, date))
    fetch.fetch(server.address)
    assert server.requests[1][1]["If-Range"] == date["Last-Modified"]


def test_chunked_answer_without_length(server: Server) -> None:
    def chunked(handler: Handler, end: bytes = b"0\r\n\r\n") -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(CONTENT), 100_000):
            piece = CONTENT[start : start + 100_000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(end)
        handler.close_connection = True

    server.in_turn(lambda h: chunked(h, b""), chunked)  # the first ends without saying that it ends
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_busy_server(server: Server) -> None:
    server.in_turn(
        lambda h: h.reply(500, b""),
        lambda h: h.reply(429, b"", {"Retry-After": "0"}),
        lambda h: h.reply(503, b""),
        Handler.file,
    )
    assert fetch.fetch(server.address).read_bytes() == CONTENT


def test_silent_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, stall_seconds=0.2)
    done = threading.Event()

    def silent(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        done.wait(5)
        handler.close_connection = True

    server.in_turn(silent, Handler.file)
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    done.set()


def test_a_file_is_on_the_disk_before_it_has_its_name(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fsync

    def recorded(descriptor: int) -> None:
        sync(descriptor)
        synced.append((os.fstat(descriptor).st_size, leftovers(cache)))

    monkeypatch.setattr(os, "fsync", recorded)
    fetch.fetch(server.address)
    assert synced[-1] == (len(CONTENT), [".weights.npz.part", ".weights.npz.part.json"])


def test_empty_file(server: Server) -> None:
    server.answer = lambda h: h.reply(200, b"")
    assert fetch.fetch(server.address).read_bytes() == b""


# --- Integrity


CRC32C = "YMHFQA=="
"""Of `CONTENT`, in Castagnoli's polynomial, which is not that of `zlib.crc32`; by a table written from RFC 3720."""


@pytest.mark.parametrize(
    "headers",
    [
        {"x-goog-hash": f"crc32c=AAAAAA==, md5={md5()}"},
        {"x-goog-hash": f"crc32c={CRC32C}"},
        {"X-Linked-Etag": f'"{hashlib.sha256(CONTENT).hexdigest()}"'},
        {"X-Repo-Commit": "1", "ETag": f'"{hashlib.sha1(b"blob %d" % len(CONTENT) + bytes(1) + CONTENT).hexdigest()}"'},
    ],
    ids=["md5", "crc32c", "sha256", "git"],
)
def test_stated_hashes(server: Server, cache: Path, headers: dict[str, str]) -> None:
    server.answer = lambda h: h.file(headers)
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    fetch.cache_path(server.address).unlink()

    wrong = CONTENT[:-1] + b"x"
    server.requests.clear()
    server.answer = lambda h: h.file(headers, content=wrong)
    with pytest.raises(DownloadError, match=r"twice it arrived damaged.*the server states"):
        fetch.fetch(server.address)
    assert len(server.requests) == 2
    assert leftovers(cache) == []

    server.in_turn(lambda h: h.file(headers, content=wrong), lambda h: h.file(headers))
    assert fetch.fetch(server.address).read_bytes() == CONTENT


def test_crc32c_where_its_c_part_is_missing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """google-crc32c then warns of its slowness, which is not for our users."""
    for name in [name for name in sys.modules if name.startswith("google_crc32c")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "google_crc32c.cext", None)
    server.answer = lambda h: h.file({"x-goog-hash": f"crc32c={CRC32C}"})
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert sys.modules["google_crc32c"].implementation == "python"


def test_hashes_where_the_system_allows_them_for_other_than_security_only(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systems under FIPS 140 do with MD5."""
    allowed = hashlib.new

    def strict(name: str, data: bytes = b"", *, usedforsecurity: bool = True) -> object:
        if usedforsecurity:
            raise ValueError("[digital envelope routines] unsupported")
        return allowed(name, data, usedforsecurity=False)

    monkeypatch.setattr(hashlib, "new", strict)
    server.answer = lambda h: h.file({"x-goog-hash": f"md5={md5()}"})
    assert fetch.fetch(server.address).read_bytes() == CONTENT


def test_several_hash_headers(server: Server) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("x-goog-hash", "crc32c=AAAAAA==")
        handler.send_header("x-goog-hash", f"md5={md5(b'another')}")
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.answer = answer
    with pytest.raises(DownloadError, match="its md5 is"):
        fetch.fetch(server.address)


def test_part_of_another_file_is_noticed(server: Server, cache: Path) -> None:
    """A part that was changed on the disk between two processes."""
    headers = {"x-goog-hash": f"md5={md5()}"}
    server.in_turn(lambda h: h.file(headers, sent=5000), lambda h: h.reply(503, b""))
    with pytest.raises(DownloadError):
        fetch.fetch(server.address)
    (part,) = cache.rglob("*.part")
    part.write_bytes(b"x" * 5000)
    server.answer = lambda h: h.file(headers)
    assert fetch.fetch(server.address).read_bytes() == CONTENT


@pytest.mark.parametrize("damage", ["{", "[]", '{"validator": "x", "unknown": 1}', "null"])
def test_damaged_notes_about_a_part(server: Server, cache: Path, damage: str) -> None:
    server.in_turn(lambda h: h.file(sent=5000), lambda h: h.reply(503, b""))
    with pytest.raises(DownloadError):
        fetch.fetch(server.address)
    (state,) = cache.rglob("*.part.json")
    state.write_text(damage)
    server.answer = Handler.file
    assert fetch.fetch(server.address).read_bytes() == CONTENT


def test_part_longer_than_the_file(server: Server, cache: Path) -> None:
    server.in_turn(lambda h: h.file(sent=5000), lambda h: h.reply(503, b""))
    with pytest.raises(DownloadError):
        fetch.fetch(server.address)
    (part,) = cache.rglob("*.part")
    part.write_bytes(CONTENT * 2)
    server.in_turn(lambda h: h.reply(416, b""), Handler.file)
    assert fetch.fetch(server.address).read_bytes() == CONTENT


def test_range_of_another_place(server: Server) -> None:
    def elsewhere(handler: Handler) -> None:
        """As many bytes as asked for, so that only the header tells."""
        end = len(CONTENT) - 5000 + 7
        handler.reply(206, CONTENT[7:end], {"ETag": ETAG, "Content-Range": f"bytes 7-{end - 1}/{len(CONTENT)}"})

    server.in_turn(lambda h: h.file(sent=5000), elsewhere, Handler.file)
    assert fetch.fetch(server.address).read_bytes() == CONTENT


# --- The hub


def test_redirect_keeps_the_hubs_hash(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub states the hash with its redirect; the storage behind it does not."""
    stated = {"X-Linked-Etag": f'"{hashlib.sha256(CONTENT).hexdigest()}"', "Location": "/storage"}
    sent = [5000, None, None]

    def hub(handler: Handler) -> None:
        if handler.path == "/storage":
            handler.file(sent=sent.pop(0), content=content)
        else:
            assert handler.path == "/timm/some/resolve/main/model.safetensors"
            handler.reply(302, b"", stated)

    content = CONTENT
    server.answer = hub
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    address = "https://huggingface.co/timm/some/resolve/main/model.safetensors"
    assert fetch.fetch(address).read_bytes() == CONTENT
    assert server.requests[-1][1]["Range"] == "bytes=5000-"
    fetch.cache_path(address).unlink()
    content = CONTENT[::-1]
    sent = [None, None]
    with pytest.raises(DownloadError, match="its sha256 is"):
        fetch.fetch(address)


def test_hub_repository_becomes_a_folder(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tests.test_weights import assert_same_weights, card_of, ours

    network = ours()
    weights.export(tmp_path / "repo", network, "transformers")

    def hub(handler: Handler) -> None:
        folder, _, name = handler.path.rpartition("/")
        file = tmp_path / "repo" / name
        known = folder == "/user/net/resolve/v2" and file.exists()
        handler.file(content=file.read_bytes()) if known else handler.reply(404, b"")

    server.answer = hub
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    loaded = weights.load("hf-hub:user/net@v2")
    card = loaded.card
    assert_same_weights(loaded, network)
    assert (card.name, card.class_names) == ("net@v2", card_of().class_names)
    assert card.source.startswith("hf-hub:user/net@v2 ")
    with pytest.raises(DownloadError, match=r"404.*no such file"):
        weights.load("hf-hub:user/other@v2")


def test_a_network_of_timms_from_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whose repository has no preprocessor_config.json: as the hub answers, redirections to the store of large files included."""
    pytest.importorskip("timm")
    import torch

    from tests.test_libraries import as_on_the_hub, theirs

    repo = as_on_the_hub(tmp_path / "repo", theirs("test_resnet"))

    def hub(handler: Handler) -> None:
        name = handler.path.rpartition("/")[2]
        if handler.path == "/lfs/model.safetensors":
            handler.file(content=(repo / name).read_bytes())
        elif handler.path == "/some/net/resolve/main/model.safetensors":
            handler.reply(302, b"", {"Location": "/lfs/model.safetensors"})
        elif handler.path == "/some/net/resolve/main/config.json":
            handler.file(content=(repo / name).read_bytes())
        else:
            handler.reply(404, b"")

    server.answer = hub
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    loaded = weights.load("hf-hub:some/net")
    assert torch.equal(loaded(torch.zeros(1, 3, 160, 160)), weights.load(repo)(torch.zeros(1, 3, 160, 160)))
    assert loaded.card.name == "net" and loaded.card.source == "hf-hub:some/net (timm:test_resnet)"
    assert loaded.card.class_names == tuple("abcde")
    asked = len(server.requests)
    assert weights.describe("hf-hub:some/net") == loaded.card and len(server.requests) == asked, "from the cache"


# --- Clear errors


@pytest.mark.parametrize(
    ("status", "advice"), [(404, "withdrawn"), (403, "not give it to everybody"), (401, "login"), (410, "410")]
)
def test_refusals(server: Server, status: int, advice: str) -> None:
    server.answer = lambda h: h.reply(status, b"<html>no</html>")
    with pytest.raises(DownloadError, match=advice) as caught:
        fetch.fetch(server.address)
    assert server.address in str(caught.value)
    assert str(fetch.cache_path(server.address)) in str(caught.value)
    assert len(server.requests) == 1


def test_login_page_instead_of_the_file(server: Server, cache: Path) -> None:
    server.answer = lambda h: h.reply(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(DownloadError, match="web page instead of the file"):
        fetch.fetch(server.address)
    assert leftovers(cache) == []


def test_unreachable_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=r"connection failed.*refused.*5 attempts"):
        fetch.fetch(f"http://127.0.0.1:{port}/file")

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DownloadError, match=r"nowhere\.invalid cannot be resolved"):
        fetch.fetch("http://nowhere.invalid/file")


def test_only_http(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(DownloadError, match="not an http"):
        fetch.fetch(f"file://{tmp_path}/secret")


def test_redirect_loop(server: Server) -> None:
    server.answer = lambda h: h.reply(302, b"", {"Location": h.path})
    with pytest.raises(DownloadError, match="redirects more than 10 times"):
        fetch.fetch(server.address)


def test_full_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DownloadError, match=r"weights\.npz: the disk is full.*BIT_CACHE"):
        fetch.fetch(server.address)


@pytest.mark.parametrize("resumable", [True, False])
def test_a_disk_that_fills_on_the_way(server: Server, cache: Path, resumable: bool) -> None:
    """The file is named; what nobody could go on from makes room."""
    server.answer = lambda h: h.file() if resumable else h.reply(200, CONTENT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DownloadError, match=r"Cannot keep .* as .*weights\.npz: File too large\. Make room"):
            fetch.fetch(server.address)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert leftovers(cache) == ([".weights.npz.part", ".weights.npz.part.json"] if resumable else [])
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert server.requests[-1][1].get("Range") == ("bytes=100000-" if resumable else None)


def test_cache_that_cannot_be_written(server: Server, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="set BIT_CACHE to another folder"):
        fetch.fetch(server.address)


def test_offline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (True, None):
        monkeypatch.setenv("BIT_OFFLINE", "0" if given else "1")
        with pytest.raises(DownloadError, match=r"switched off .*put it at") as caught:
            fetch.fetch(server.address, no_network=given)
        assert str(fetch.cache_path(server.address)) in str(caught.value)
    assert not server.requests
    fetch.cache_path(server.address).parent.mkdir(parents=True)
    fetch.cache_path(server.address).write_bytes(b"by hand")
    assert fetch.fetch(server.address).read_bytes() == b"by hand"


def test_cache_paths_stay_in_the_cache(cache: Path) -> None:
    for address in (
        "https://host/../../etc/passwd",
        "https://host/%2e%2e/%2e%2e/x",
        "https://host/a//./b",
        "https://h/a?b=/../c",
    ):
        path = fetch.cache_path(address)
        assert path.resolve().is_relative_to(cache.resolve())
        assert ".." not in path.parts
    assert fetch.cache_path("https://h/a?x=1") != fetch.cache_path("https://h/a?x=2")


# --- Lies

SAID = {
    "silence": "no answer within",
    "stops in the middle": "no answer within",
    "slow": r"only \d+ bytes came in",
    "endless continue": "headers, or other things around the file, without end",
    "endless headers": "more than 100 headers",
    "endless header": "headers, or other things around the file, without end",
    "endless trailers": "headers, or other things around the file, without end",
    "endless chunk extension": "headers, or other things around the file, without end",
    "endless redirects": "redirects more than 10 times",
    "redirect to itself": "redirects more than 10 times",
    "redirect to http:///": "redirects more than 10 times",
    "redirect to nowhere": "without saying where",
    "redirect to": "where nothing is fetched from",
    "endless part": r"sends more than the 307200 bytes that it stated",
    "endless": "more than 1000000 bytes",
    "not http": "not one of HTTP",
    "hangs up": "the connection failed",
    "reset": "the connection failed",
    "status 2": "the server answered 20",
    "status 999": "the server answered 999",
    "status 304": "the server answered 304",
    "status 103": "the server answered 103",
    "status": "not one of HTTP",
    "unasked part": "a part of the file, which was not asked for",
    "retry after": "answered 503",
    "escape sequences": "answered 404 Not Found",
    "length of terabytes": "more than 1000000 bytes",
    "length too large": "ended after 307200 of 307201 bytes",
    "length": "length that makes no sense",
    "two lengths": "length that makes no sense",
    "gzip": "compresses it",
    "brotli": "compresses it",
    "unknown transfer": "Transfer-Encoding 'gzip, chunked'",
    "one byte": "ended after 3 of 307200 bytes",
    "chunk": "broke off, or the pieces",
    "login page": "a web page instead of the file",
    "error of a store": "a web page instead of the file",
    "part without a range": "resumed at another place",
    "part of another place": "resumed at another place",
    "part backwards": "resumed at another place",
    "part beyond the end": "resumed at another place",
    "part of an unknown whole": "resumed at another place",
    "part in other letters": "resumed at another place",
    "part of other units": "resumed at another place",
    "part of another length": "resumed at another place",
    "several parts": "resumed at another place",
    "part with too much": "sends more than the 307200 bytes",
    "parts without end": "ended after 5000 of 307200 bytes",
    "part": "resumed another version, or does not say",
    "no part": "less of the file",
}
"""How a lie's name begins, and what is said of it; the first that fits."""


@pytest.mark.parametrize("name", LIES)
def test_lies_end(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With an error that says what it was, after few requests, and without a file; what is odd but allowed arrives."""
    lie = LIES[name]
    limited(
        monkeypatch,
        stall_seconds=0.1 if lie.slow else 5,
        least_rate=10_000,
        download_bytes=1_000_000,
        download_attempts=3,
    )
    server.tell(lie)
    server.most_requests = 20
    if lie.harmless:
        assert fetch.fetch(server.address).read_bytes() == CONTENT
        assert leftovers(cache) == ["weights.npz"]
        return
    with pytest.raises(
        DownloadError, match=next(said for begin, said in SAID.items() if name.startswith(begin))
    ) as caught:
        fetch.fetch(server.address)
    assert "\x1b" not in str(caught.value)
    assert len(server.requests) <= 11 if "redirect" in name else len(server.requests) <= 4
    kept = "try again to go on" in str(caught.value)
    assert leftovers(cache) == ([".weights.npz.part", ".weights.npz.part.json"] if kept else [])


@pytest.mark.parametrize(
    ("tries", "slept"),
    [
        ([(0, 1, 0)] * 9, [1, 2]),  # bytes, seconds, what the server asks to wait
        ([(0, 1, 0), (5000, 1, 0), (0, 1, 0), (0, 1, 0)], [1, 1, 2]),  # new bytes begin the count anew
        ([(0, 1, 0), (0, 1, 7), (0, 1, 0)], [1, 7]),
        ([(0, 1, 0), (0, 1, 1), (0, 1, 0)], [1, 2]),
        ([(0, 1000, 0), (3000, 1, 0), (0, 1, 0), (0, 1, 0)], [1, 1, 2]),  # whose rate is not that of what went before
        ([(5000, 9, 0), (5000, 9, 0), (5000, 9, 0)], [1, 2]),  # too slow to be progress
        ([(5000, 1, 0), (-5000, 0, 0), (5000, 1, 0)], [1, 2]),  # nor are bytes that had been here before
        ([(5000, 1, 0), (-5000, 0, 0), (9000, 1, 0), (0, 1, 0), (0, 1, 0)], [1, 2, 1, 2]),
        ([(1000, 1, 0)], []),  # the file
    ],
)
def test_when_to_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[tuple[int, int, int]], slept: list[int]
) -> None:
    clock, sleeps, rest = [0.0], [], list(tries)
    slow = types.SimpleNamespace(monotonic=lambda: clock[0], sleep=sleeps.append)

    class Scripted(fetch._Download):
        def _attempt(self) -> None:
            count, seconds, wait = rest.pop(0)
            clock[0] += seconds
            self.part.write_bytes(bytes(self._have() + count))
            if len(tries) > 1:
                raise web.Interrupted("why", wait)

    monkeypatch.setattr(fetch, "time", slow)
    monkeypatch.setattr(fetch, "BACKOFF", 1.0)
    limited(monkeypatch, least_rate=1000)
    download = Scripted("http://host/a", tmp_path / "a", False, None, {}, 10**9, None, False)
    if len(tries) == 1:
        download.run(3)
    else:
        with pytest.raises(DownloadError, match=r"why \(3 attempts\)"):
            download.run(3)
    assert sleeps == slept and len(tries) - len(rest) == len(slept) + 1


@pytest.mark.parametrize("name", [name for name in LIES if "part " in name and not LIES[name].harmless])
def test_versions_are_never_joined(server: Server, name: str) -> None:
    """A part of which it is not certain that it continues the first bytes: the file is fetched whole."""
    lie = LIES[name].answer
    server.in_turn(lie, lie, lambda h: h.file({"ETag": '"version-2"'}, content=OTHER))
    assert fetch.fetch(server.address).read_bytes() == OTHER
    assert [headers.get("Range") for _, headers in server.requests][:3] == [None, f"bytes={CUT}-", None]


def test_a_length_that_is_stated_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """First in pieces, without a length; what is then said of the whole counts as if it had been said at once."""

    def part(handler: Handler, total: int, sent: int | None = None) -> None:
        start = int(handler.headers["Range"][6:-1])
        about = {"ETag": ETAG, "Content-Range": f"bytes {start}-{total - 1}/{total}"}
        handler.reply(206, CONTENT[start:total], about, sent)

    def pieces(handler: Handler) -> None:
        handler.raw(handler.head("Transfer-Encoding: chunked", f"ETag: {ETAG}"), b"1388\r\n", CONTENT[:CUT], b"\r\n")

    whole = len(CONTENT)
    server.in_turn(pieces, lambda h: part(h, whole, CUT), lambda h: part(h, whole - 1), Handler.file)
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=5000-", "bytes=10000-", None]
    fetch.cache_path(server.address).unlink()
    limited(monkeypatch, download_bytes=whole - 1)
    server.in_turn(pieces, lambda h: part(h, whole))
    with pytest.raises(DownloadError, match="it has more than 307199 bytes"):
        fetch.fetch(server.address)


def test_a_date_of_the_same_second_is_no_version(server: Server) -> None:
    """RFC 9110, 8.8.2.2: the file may have been changed again within it."""
    stated = {"ETag": "", "Last-Modified": email.utils.formatdate(usegmt=True)}
    server.in_turn(lambda h: h.reply(200, CONTENT, stated, sent=CUT), lambda h: h.reply(200, CONTENT, stated))
    assert fetch.fetch(server.address).read_bytes() == CONTENT
    assert "Range" not in server.requests[1][1]


def test_notes_about_a_part_are_not_trusted(server: Server, cache: Path) -> None:
    """Other programs write into caches too."""
    for notes in (
        {"validator": "x\r\nX-Injected: 1"},
        {"validator": "\u4e00"},
        {"validator": 5},
        {"validator": ETAG, "etag": ETAG, "size": "many"},
        {"validator": ETAG, "etag": ETAG, "size": -1},
        {"validator": ETAG, "etag": ETAG, "size": 7},
        {"validator": ETAG, "etag": ETAG, "digests": {"rot13": "00"}},
        {"validator": ETAG, "etag": ETAG, "digests": {"md5": "00", "sha256": "00"}},
        {"validator": ETAG, "etag": ETAG, "digests": ["md5"]},
    ):
        target = fetch.cache_path(server.address)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_name(".weights.npz.part").write_bytes(b"x" * CUT)
        target.with_name(".weights.npz.part.json").write_text(json.dumps(notes))
        server.requests.clear()
        assert fetch.fetch(server.address).read_bytes() == CONTENT
        assert "Range" not in server.requests[0][1], notes
        target.unlink()


def test_a_known_size_is_held(server: Server, tmp_path: Path) -> None:
    """Also where the server states none."""
    server.tell(LIES["chunks of one byte"])
    for size, said in (
        (len(CONTENT) - 1, "more than the 307199 bytes"),
        (len(CONTENT) + 1, "ended before 307201 bytes"),
    ):
        with pytest.raises(DownloadError, match=said):
            fetch.download(server.address, tmp_path / "file", size=size)
    fetch.download(server.address, tmp_path / "file", size=len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT and sorted(p.name for p in tmp_path.iterdir())[-1] == "file"


def test_digests_that_the_caller_knows(server: Server, tmp_path: Path) -> None:
    fetch.download(server.address, tmp_path / "a", md5=hashlib.md5(CONTENT).hexdigest())
    fetch.download(server.address, tmp_path / "b", sha256=hashlib.sha256(CONTENT).hexdigest().upper())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=r"twice it arrived damaged: its md5 is \w{32}, it should be 00"):
        fetch.download(server.address, tmp_path / "c", md5="00")


def test_a_web_page_that_is_meant(server: Server, tmp_path: Path) -> None:
    page = b"<!doctype html><p>x"
    server.answer = lambda h: h.file(content=page)
    fetch.download(server.address, tmp_path / "a", sha256=hashlib.sha256(page).hexdigest())
    assert (tmp_path / "a").read_bytes() == page


def test_a_digest_of_another_length_is_none(server: Server) -> None:
    server.answer = lambda h: h.file({"x-goog-hash": "md5=AAAA, crc32c=AAA="})
    assert fetch.fetch(server.address).read_bytes() == CONTENT


# --- Addresses and the cache


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1/x.npz",
        "http://.../x.npz",
        "http://host:port/x.npz",
        "http://host:99999/x.npz",
        "http:///x.npz",
        "http://",
        "http://a b/x.npz",
        "http://exa%6dple.org/x.npz",
        f"http://{'a' * 64}.org/x.npz",
        "http://u:secret@127.0.0.1/x.npz",
        "http://\ud800/x",
        "http://127.0.0.1/\ud800",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(
        DownloadError, match=r"Cannot download .*: (this is not an address|addresses with a user's)"
    ) as caught:
        fetch.fetch(address)
    assert "secret" not in str(caught.value)


def test_addresses_as_people_type_them(server: Server, cache: Path) -> None:
    base = server.address.removesuffix("weights.npz")
    for typed, asked in (
        ("\xe4 1.npz?q=\xe9", "%C3%A4%201.npz?q=%C3%A9"),
        ("%C3%A4.npz#part", "%C3%A4.npz"),
        ("\udce4.npz", "%E4.npz"),
    ):
        assert fetch.fetch(base + typed).read_bytes() == CONTENT
        assert server.requests[-1][0] == f"/folder/{asked}"
    assert fetch.fetch(base.replace("http:", "HTTP:") + "%C3%A4.npz").name == "\xe4.npz"  # from the cache
    assert len(server.requests) == 3


def test_two_addresses_never_share_a_file(cache: Path) -> None:
    """`a_b.npz` is not `a b.npz`: the second would be given for the first without a word."""
    paths = "/a/b.npz /a_b.npz /a%20b.npz /a%2Fb.npz /a//b.npz /a/./b.npz /a/b.npz/ /x/../a/b.npz /%61/b.npz / /?a /a%2520b.npz"
    paths += f" /{'n' * 300}1 /{'n' * 300}2 /{'n' * 300}1/{'n' * 300}.npz /a/b.npz?x /a%20b.npz?x /a%20b.npz?y"
    found = [fetch.cache_path(f"https://host{path}") for path in paths.split()]
    assert len(set(found)) == len(found)
    assert found[0] == cache / "host" / "a" / "b.npz"
    assert all(len(name.encode()) < 220 for path in found for name in path.parts)
    assert found[14].name.endswith("n.npz")


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///a/b%20c.npz", "/a/b c.npz"),
        ("FILE://localhost/a/%C3%A4", "/a/\xe4"),
        ("file:/a/\xe4#1?2", "/a/\xe4#1?2"),
        ("file:///%FF", "/\udcff"),
        ("file:///a/%2525", "/a/%25"),
        ("file", "file"),
        ("/a/file:/b%20c", "/a/file:/b%20c"),
        ("https://host/a", "https://host/a"),
    ],
)
def test_file_addresses(address: str, path: str) -> None:
    assert fetch.path_of(address) == path


@pytest.mark.parametrize(
    "address",
    ["file:a.npz", "file://server/a", "file:", "file://", "file:////server/a", "file:///a%00b", "file:///a\0b"],
)
def test_addresses_of_no_file_here(address: str) -> None:
    with pytest.raises(ConfigError, match="not the address of a file on this machine"):
        fetch.path_of(address)


# --- Together


def _fetch_in_process(address: str, results: object) -> None:
    results.put(len(fetch.fetch(address).read_bytes()))  # pyright: ignore


def test_two_processes_download_once(server: Server) -> None:
    slow = threading.Event()

    def answer(handler: Handler) -> None:
        slow.wait(0.5)
        handler.file()

    server.answer = answer
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch_in_process, args=(server.address, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=20) for _ in processes] == [len(CONTENT)] * 3
    for process in processes:
        process.join()
    assert len(server.requests) == 1


def test_published_model_comes_from_the_second_source(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.test_weights import card_of, ours

    network = ours()
    weights.export(tmp_path / "weights.npz", network, "npz")
    base = f"http://127.0.0.1:{server.server_port}"
    record = catalog.Published(
        card=card_of(name="bit-x", class_names=None), addresses=(f"{base}/gone", f"{base}/weights.npz")
    )
    monkeypatch.setattr(catalog, "find", lambda name: record if name == "bit-x" else None)

    def answer(handler: Handler) -> None:
        good = handler.path == "/weights.npz"
        handler.file(content=(tmp_path / "weights.npz").read_bytes()) if good else handler.reply(404, b"")

    server.answer = answer
    assert fetch.location(record) == "download"
    assert weights.describe("bit-x") == record.card
    assert not server.requests
    loaded = weights.load("bit-x")
    assert loaded.card == record.card
    assert loaded.num_classes == 5
    assert fetch.location(record) == "cached"
    fetch.cache_path(record.addresses[1]).unlink()
    server.answer = lambda h: h.reply(404, b"")
    with pytest.raises(DownloadError) as caught:
        weights.load("bit-x")
    assert all(address in str(caught.value) for address in record.addresses)


def test_state_file_is_readable(server: Server, cache: Path) -> None:
    server.in_turn(lambda h: h.file({"x-goog-hash": f"md5={md5()}"}, sent=5), lambda h: h.reply(503, b""))
    with pytest.raises(DownloadError):
        fetch.fetch(server.address)
    (state,) = cache.rglob("*.part.json")
    assert json.loads(state.read_text())["digests"] == {"md5": hashlib.md5(CONTENT).hexdigest()}
