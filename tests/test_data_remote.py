"""Shards on a web server that drops, truncates and changes files, and in the stores that fsspec opens."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bigtransfer import fetch
from bigtransfer.config import ShardConfig
from bigtransfer.data import ImageSet, Splits, open_dataset, open_images, remote
from bigtransfer.data.remote import Cache, RemoteFile
from bigtransfer.data.sources import Joined
from bigtransfer.errors import ConfigError, DataError, DownloadError
from bigtransfer.jobs import shard

from .data_makers import class_folders
from .file_server import CONTENT, LIES, Handler, Server, limited, read_all, running


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    for name in ("BIT_OFFLINE", "BIT_SHARD_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "BACKOFF", 0.0)
    limited(monkeypatch, stall_seconds=5)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 3 images, 5 of train and 1 of test, of 30 kB each."""
    folder = tmp_path_factory.mktemp("local")
    for split, counts, seed in (("train", {"cat": 8, "dog": 7}, 0), ("test", {"cat": 1, "dog": 2}, 90)):
        class_folders(folder / "photos" / split, counts, seed=seed)
    shard.run(ShardConfig(source=str(folder / "photos"), destination=str(folder / "shards"), shard_images=3, threads=1))
    return folder / "shards"


def serve(server: Server, folder: Path, shards: Callable[[Handler], None] | None = None) -> str:
    """Give the folder's files at the address that is returned; `shards` answers for those of train instead."""

    def answer(handler: Handler) -> None:
        file = folder / handler.path.rpartition("/")[2]
        if shards is not None and file.name.startswith("train-"):
            shards(handler)
        elif file.is_file():
            handler.file({"ETag": f'"{file.name}"'}, content=file.read_bytes())
        else:
            handler.reply(404, b"")

    server.answer = answer
    return f"http://127.0.0.1:{server.server_port}/sets/shards"


def asked(server: Server, ending: str = ".tar") -> list[str]:
    return [path.rpartition("/")[2] for path, _ in server.requests if path.endswith(ending)]


def content(images: ImageSet) -> list[bytes]:
    return [images.data(i) for i in range(len(images))]


def same(one: Splits, other: Splits) -> None:
    assert one.test is not None and other.test is not None
    for mine, yours in ((one.train, other.train), (one.test, other.test)):
        assert content(mine) == content(yours) and mine.labels.tolist() == yours.labels.tolist()
        assert mine.class_names == yours.class_names and mine.name(2) == yours.name(2)


# --- A web server


@pytest.mark.parametrize("ending", ["", "/", "/index.json"])
def test_shards_on_a_web_server(server: Server, local: Path, ending: str) -> None:
    address = serve(server, local) + ending
    data = open_dataset(address)
    assert asked(server) == []  # nothing is fetched before it is read
    assert data.train.read(7).shape == (12, 16, 3) and data.train.read(8).shape == (12, 16, 3)
    assert asked(server) == ["train-000002.tar"]
    same(data, open_dataset(local))
    before = len(asked(server))
    assert before == 6
    again = pickle.loads(pickle.dumps(open_dataset(address)))
    same(again, data)
    assert len(asked(server)) == before and asked(server, "index.json") == ["index.json"] * 2


def test_without_index(server: Server, local: Path) -> None:
    data = open_dataset(serve(server, local) + "/{train-{000000..000004},test-000000}.tar")
    assert data.train.class_names == ("0", "1") and data.train.runs.tolist() == [0, 3, 6, 9, 12, 15]
    assert content(data.train) == content(open_dataset(local).train)
    assert len(asked(server)) == 6
    with pytest.raises(DataError, match=r"404.*|no such file"):
        open_dataset(serve(server, local) + "/train-{000000..000009}.tar")
    with pytest.raises(DataError, match=r"does not list its files.*\{000\.\.009\}"):
        open_dataset(serve(server, local) + "/train-*.tar")
    with pytest.raises(DataError, match="is compressed"):
        open_dataset(serve(server, local) + "/train.tar.gz")


def test_connections_that_drop(server: Server, local: Path) -> None:
    def drop(handler: Handler) -> None:
        whole = (local / handler.path.rpartition("/")[2]).read_bytes()
        handler.file(content=whole, sent=4_000)

    data = open_dataset(serve(server, local, drop))
    assert content(data.train) == content(open_dataset(local).train)
    assert len(asked(server)) >= 5 * 3


def test_a_shard_that_is_damaged_on_the_way(server: Server, local: Path, cache: Path) -> None:
    answers = iter([True, False])

    def damage(handler: Handler) -> None:
        whole = (local / handler.path.rpartition("/")[2]).read_bytes()
        handler.file(content=whole[:-1] + b"x" if next(answers, True) else whole)

    data = open_dataset(serve(server, local, damage))
    assert data.train.data(0) == open_dataset(local).train.data(0)  # the second time it arrived whole
    with pytest.raises(DataError, match=r"train-000004\.tar: twice it arrived damaged: its sha256 is"):
        data.train.data(14)
    assert not list((cache / "data" / "shards").glob("*train-000004.tar"))


def test_a_shard_of_another_version(server: Server, local: Path) -> None:
    data = open_dataset(serve(server, local, lambda handler: handler.file(content=b"short")))
    with pytest.raises(
        DataError, match=r"train-000000\.tar: it has 5 bytes, but should have \d+\. Has it been replaced"
    ):
        data.train.data(0)


def test_what_is_not_there(server: Server, local: Path) -> None:
    data = open_dataset(serve(server, local, lambda handler: handler.reply(404, b"")))
    with pytest.raises(DataError, match=r"train-000000\.tar: the server answered 404"):
        data.train.read(0)
    with pytest.raises(DataError, match=r"index\.json: the server answered 404"):
        open_dataset(serve(server, local / "none"))
    server.answer = lambda handler: handler.reply(200, b'{"format": "?"}')
    with pytest.raises(DataError, match=r"index\.json is not an index of shards: its format is '\?'"):
        open_dataset(f"http://127.0.0.1:{server.server_port}/x")
    server.answer = lambda handler: handler.reply(503, b"")
    with pytest.raises(DataError, match=r"503.*5 attempts"):
        open_dataset(f"http://127.0.0.1:{server.server_port}/y")


def test_offline(server: Server, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = serve(server, local)
    with monkeypatch.context() as patch:
        patch.setenv("BIT_OFFLINE", "1")
        with pytest.raises(DataError, match="BIT_OFFLINE forbids"):
            open_dataset(address)
    open_dataset(address).train.data(0)
    server.requests.clear()
    monkeypatch.setenv("BIT_OFFLINE", "1")
    data = open_dataset(address)
    assert data.train.data(0) and not server.requests
    with pytest.raises(DataError, match=r"train-000004\.tar is not in the cache"):
        data.train.data(14)


def test_a_renewed_set_is_not_mixed_with_its_old_form(server: Server, local: Path, tmp_path: Path) -> None:
    address = serve(server, local)
    content(open_dataset(address).train)
    class_folders(tmp_path / "new", {"cat": 3, "dog": 3}, seed=300)
    shard.run(
        ShardConfig(source=str(tmp_path / "new"), destination=str(tmp_path / "shards"), shard_images=3, threads=1)
    )
    serve(server, tmp_path / "shards")
    assert content(open_dataset(address).train) == content(open_dataset(tmp_path / "shards").train)


def test_files_are_fetched_ahead(server: Server, local: Path) -> None:
    data = open_dataset(serve(server, local))
    assert data.train.remote and not open_dataset(local).train.remote

    def finish(images: ImageSet) -> None:
        for store in images.store._stores:
            for thread in store._begun.values():
                thread.join()

    data.train.subset(np.arange(3, 15)).prefetch(np.array([1, 0, 5]))
    finish(data.train)
    assert sorted(asked(server)) == ["train-000001.tar", "train-000002.tar"]
    expected = content(open_dataset(local).train)
    assert [data.train.data(i) for i in range(3, 9)] == expected[3:9]
    assert len(asked(server)) == 2
    serve(server, local, lambda handler: handler.reply(404, b""))
    data.train.prefetch(np.array([0, 3]))
    finish(data.train)
    with pytest.raises(DataError, match="404"):
        data.train.data(0)
    open_dataset(local).train.prefetch(np.arange(15))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_set_of_which_a_part_lies_elsewhere_is_fetched_ahead(
    server: Server, local: Path, order: tuple[int, int]
) -> None:
    stores = [open_dataset(local).train.store, open_dataset(serve(server, local)).train.store]
    assert isinstance(stores[0], Joined) and isinstance(stores[1], Joined)
    parts = [stores[i]._stores[0] for i in order]
    assert Joined(parts).remote and not Joined([stores[0]._stores[0]] * 2).remote


def test_shards_of_two_versions_are_never_joined(server: Server, local: Path) -> None:
    """Without an index nothing is known of a shard but what the server says."""
    old = (local / "train-000000.tar").read_bytes()
    new = (local / "train-000001.tar").read_bytes()
    assert len(old) == len(new)

    def renewed_meanwhile(handler: Handler) -> None:
        if "Range" in handler.headers:  # heeds the range, not the version
            start = int(handler.headers["Range"][6:-1])
            about = {"ETag": '"new"', "Content-Range": f"bytes {start}-{len(new) - 1}/{len(new)}"}
            handler.reply(206, new[start:], about)
        elif len(asked(server)) == 1:
            handler.reply(200, old, {"ETag": '"old"'}, sent=9_000)
        else:
            handler.reply(200, new, {"ETag": '"new"'})

    data = open_dataset(serve(server, local, renewed_meanwhile) + "/train-{000000..000000}.tar")
    assert content(data.train) == content(open_dataset(local / "train-000001.tar").train)
    assert len(asked(server)) == 3


def test_a_shard_without_end(server: Server, local: Path, cache: Path) -> None:
    address = serve(server, local, LIES["endless chunks"].answer) + "/{train-000000,test-000000}.tar"
    with pytest.raises(DataError, match=r"train-000000\.tar: it has more than 1000000 bytes, the most that is fetched"):
        open_dataset(address, shard_cache=1_000_000)
    assert sum(path.stat().st_size for path in (cache / "data" / "shards").iterdir()) == 0


def test_an_index_without_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, record_bytes=1_000)
    server.tell(LIES["endless body"])
    with pytest.raises(DataError, match=r"index\.json: it has more than 1000 bytes"):
        open_dataset(f"http://127.0.0.1:{server.server_port}/set")


def test_attempts_for_shards(server: Server, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, shard_attempts=2, download_attempts=3)
    data = open_dataset(serve(server, local, lambda handler: handler.reply(503, b"")))
    with pytest.raises(DataError, match=r"503.*2 attempts"):
        data.train.data(0)
    assert len(asked(server)) == 2


# --- The bounded cache


def test_the_cache_is_bounded(server: Server, local: Path, cache: Path) -> None:
    size = (local / "train-000000.tar").stat().st_size
    folder = cache / "data" / "shards"
    data = open_dataset(serve(server, local), shard_cache=2 * size + 100)
    expected = open_dataset(local).train
    for i in range(15):
        assert data.train.data(i) == expected.data(i)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * size + 100
    assert sorted(path.name[17:] for path in folder.glob("*.tar")) == ["train-000003.tar", "train-000004.tar"]
    before = len(asked(server))
    assert data.train.data(0) == expected.data(0)  # removed from the folder, but still open here
    assert len(asked(server)) == before
    other = pickle.loads(pickle.dumps(data.train))
    assert other.data(0) == expected.data(0) and len(asked(server)) == before + 1
    with pytest.raises(DataError, match=r"more than the .* GB that .* may take.*BIT_SHARD_CACHE"):
        open_dataset(serve(server, local), shard_cache=size - 1).train.data(5)


def test_what_was_left_behind_makes_room(server: Server, local: Path, cache: Path) -> None:
    size = (local / "train-000000.tar").stat().st_size
    folder = cache / "data" / "shards"
    folder.mkdir(parents=True)
    for name, age in ((".old.part", 7200), (".new.part", 0)):
        (folder / name).write_bytes(bytes(size))
        os.utime(folder / name, (time.time() - age,) * 2)
    open_dataset(serve(server, local), shard_cache=2 * size + 100).train.data(0)
    assert not (folder / ".old.part").exists() and (folder / ".new.part").exists()


def kept(folder: Path, names: str, size: int = 100) -> Path:
    """Files of that size, of which the first was opened longest ago, all more than an hour ago."""
    folder.mkdir(parents=True, exist_ok=True)
    for age, name in enumerate(reversed(names.split())):
        (folder / name).write_bytes(bytes(size))
        os.utime(folder / name, (time.time() - 4000 - age,) * 2)
    return folder


def there(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".room.lock"}


def test_room_is_made_for_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept(tmp_path / "cache", "a b c d")
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    assert Cache(folder).make_room(300, "x") == 700 and there(folder) == set(
        "abcd"
    )  # half of 1000 and the 400 of its own
    with pytest.raises(DataError, match="more than the 7e-07 GB"):
        Cache(folder).make_room(701, "x")
    assert Cache(folder, 500).make_room(101, "x") == 500 and there(folder) == set("bcd")
    assert Cache(folder, 300).make_room(0, "x") == 300 and there(folder) == set("bcd")
    Cache(folder, 300).make_room(201, "x")
    assert there(folder) == set()


def test_what_is_no_file_takes_no_room(tmp_path: Path) -> None:
    folder = kept(tmp_path / "cache", "a")
    (folder / "folder").mkdir()
    Cache(folder, 110).make_room(10, "x")
    assert there(folder) == {"a", "folder"}


def test_downloads_under_way_are_left(tmp_path: Path) -> None:
    folder = kept(tmp_path / "cache", ".a.part b")
    (folder / ".c.part").write_bytes(bytes(100))
    Cache(folder, 150).make_room(100, "x")
    assert there(folder) == {".c.part"}  # of those left behind nothing


def test_what_was_opened_last_stays_longest(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 200)
    one, other = (RemoteFile(f"http://127.0.0.1:1/{name}", cache, 100) for name in "ab")
    kept(cache.folder, f"{one.path.name} {other.path.name}")
    assert one.local() == one.path
    cache.make_room(100, "x")
    assert there(cache.folder) == {one.path.name}


def test_a_file_of_another_size_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10**6)
    file = RemoteFile(server.address, cache, len(CONTENT))
    kept(cache.folder, file.path.name)
    assert file.local().read_bytes() == CONTENT and len(server.requests) == 1
    assert file.local().read_bytes() == CONTENT and len(server.requests) == 1


def test_files_of_unknown_size_make_room_afterwards(server: Server, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", len(CONTENT) + 50)
    kept(cache.folder, "old")
    file = RemoteFile(server.address, cache)
    assert file.local().read_bytes() == CONTENT
    assert {name for name in there(cache.folder) if not name.endswith(".lock")} == {file.path.name}


def test_nothing_stays_of_an_index_that_did_not_come(server: Server, tmp_path: Path) -> None:
    server.in_turn(lambda handler: handler.file(sent=5000), lambda handler: handler.reply(404, b""))
    (tmp_path / "index.json").write_bytes(b"old")
    with pytest.raises(DataError, match="404"):
        remote.renewed(server.address, tmp_path / "index.json")
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert (tmp_path / "index.json").read_bytes() == b"old"


def test_shards_of_a_store_come_in_order(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = MemoryFileSystem.glob
    monkeypatch.setattr(MemoryFileSystem, "glob", lambda self, path: listed(self, path)[::-1])
    found = remote.expand("memory://bucket/shards/train-*.tar")
    assert found == [f"memory:///bucket/shards/train-{i:06d}.tar" for i in range(5)]


def test_the_limit_from_the_environment(server: Server, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_SHARD_CACHE", "0.00001")
    data = open_dataset(serve(server, local))
    with pytest.raises(DataError, match="BIT_SHARD_CACHE"):
        data.train.data(0)
    monkeypatch.setenv("BIT_SHARD_CACHE", "lots")
    with pytest.raises(ConfigError, match="number of GB"):
        open_dataset(serve(server, local))


def test_threads_share_a_cache_that_is_too_small(server: Server, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (local / "train-000000.tar").stat().st_size
    data = open_dataset(serve(server, local), shard_cache=2 * size)
    monkeypatch.setattr(type(data.train.store._stores[0]), "_OPEN", 1)
    expected = content(open_dataset(local).train)
    order = np.random.default_rng(0).integers(0, 15, 60)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(data.train.data, map(int, order))) == [expected[i] for i in order]


def test_processes_share_the_cache(server: Server, local: Path) -> None:
    size = (local / "train-000000.tar").stat().st_size
    data = open_dataset(serve(server, local), shard_cache=3 * size)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=read_all, args=(data.train, seed, results)) for seed in range(2)]
    for worker in workers:
        worker.start()
    read = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    expected = dict(enumerate(content(open_dataset(local).train)))
    assert read == [expected, expected]


# --- This machine


def test_file_addresses(local: Path, tmp_path: Path) -> None:
    """Read where they are, not fetched."""
    same(open_dataset(f"file://{local}"), open_dataset(local))
    same(open_dataset(f"FILE://localhost{local}/"), open_dataset(local))
    train = open_dataset(f"file://{local}/train-{{000000..000001}}.tar").train
    assert content(train) == content(open_dataset(local).train)[:6]
    photos = class_folders(tmp_path / "my \xe4 photos", {"cat": 2, "dog": 1})
    data = open_dataset(photos.as_uri())  # my%20%C3%A4%20photos
    assert data.train.class_names == ("cat", "dog") and len(data.train) == 3
    found = open_images([photos.as_uri(), f"file:{photos}/dog/*.png"])
    assert [found.name(i) for i in range(len(found))] == [
        str(photos / name) for name in ("cat/000.png", "cat/001.png", "dog/000.png")
    ]
    with pytest.raises(DataError, match="There is no file or folder /nowhere/x y"):
        open_dataset("file:///nowhere/x%20y")
    with pytest.raises(ConfigError, match=r"file://server/set is not the address of a file on this machine"):
        open_dataset("file://server/set")
    with pytest.raises(ConfigError, match="file:photos is not the address"):
        open_images(["file:photos"])


# --- Stores


@pytest.fixture
def memory(local: Path) -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    for path in local.iterdir():
        system.pipe(f"/bucket/shards/{path.name}", path.read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def test_shards_in_a_store(memory: MemoryFileSystem, local: Path) -> None:
    same(open_dataset("memory://bucket/shards"), open_dataset(local))
    data = open_dataset("memory://bucket/shards/train-*.tar")
    assert len(data.train) == 15 and content(data.train) == content(open_dataset(local).train)
    assert len(open_dataset("memory://bucket/shards/train-{000000..000002}.tar").train) == 9
    with pytest.raises(DataError, match=r"There is no file memory://bucket/none-\*\.tar"):
        open_dataset("memory://bucket/none-*.tar")
    with pytest.raises(DataError, match="there is no such file"):
        open_dataset("memory://bucket/none")
    with pytest.raises(DataError, match="rotocol not known"):
        open_dataset("nowhere://bucket/none")


def test_a_store_that_fails_now_and_then(
    memory: MemoryFileSystem, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset("memory://bucket/shards")
    opened, positions = MemoryFileSystem._open, []

    class Failing:
        def __init__(self, file) -> None:
            self.file, self.given = file, 0

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def seek(self, place: int) -> None:
            positions.append(place)
            self.file.seek(place)

        def read(self, count: int) -> bytes:
            if self.given:
                raise RuntimeError("the store's own kind of error")
            self.given = 1
            return self.file.read(9_000)

    monkeypatch.setattr(
        MemoryFileSystem, "open", lambda self, *arguments, **named: Failing(opened(self, *arguments, **named))
    )
    assert data.train.data(0) == open_dataset(local).train.data(0)
    assert positions[:2] == [0, 9_000]  # it went on where it had stopped
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *_, **__: 1 / 0)
    with pytest.raises(
        DataError, match=r"Cannot download memory://bucket/shards/train-000004\.tar: .*division.*9 attempts"
    ):
        data.train.data(14)
    monkeypatch.undo()


def test_a_store_that_gives_more_than_it_states(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/bucket/file", b"x" * 1000)
    told = MemoryFileSystem.info

    def tell(size: object) -> None:
        monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path: told(self, path) | {"size": size})

    monkeypatch.setattr(fetch, "_CHUNK", 333)
    tell(999)
    with pytest.raises(DownloadError, match=r"sends more than the 999 bytes that it stated \(2 attempts\)"):
        fetch.download("memory://bucket/file", tmp_path / "file", attempts=2)
    assert not list(tmp_path.glob("*file*part*")) and not (tmp_path / "file").exists()
    for size in (None, -1, "999"):
        tell(size)
        fetch.download("memory://bucket/file", tmp_path / f"file {size}")
        assert (tmp_path / f"file {size}").read_bytes() == b"x" * 1000
    with pytest.raises(DownloadError, match="it has more than 998 bytes"):
        fetch.download("memory://bucket/file", tmp_path / "other", most=998)


def test_versions_in_a_store_are_never_joined(
    memory: MemoryFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/bucket/file", b"1" * 1000)
    opened, reads = MemoryFileSystem._open, []

    def read_once(file, count: int) -> bytes:
        reads.append(count)
        if len(reads) == 2:
            memory.pipe("/bucket/file", b"2" * 1000)
            raise ConnectionError("lost")
        return type(file).read(file, count)

    def replaced(self, *arguments, **named):
        file = opened(self, *arguments, **named)
        return contextlib.nullcontext(types.SimpleNamespace(seek=file.seek, read=lambda count: read_once(file, count)))

    monkeypatch.setattr(fetch, "_CHUNK", 400)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "open", replaced)
        fetch.download("memory://bucket/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"2" * 1000 and len(reads) > 3


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match="nstall s3fs"):
        open_dataset("s3://bucket/shards")


def test_training_batches_are_fetched_ahead(server: Server, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bigtransfer.feed.augment import SquareCrop
    from bigtransfer.feed.loader import TrainLoader
    from bigtransfer.feed.order import LaneOrder

    def batches(images: ImageSet) -> list[list[int]]:
        loader = TrainLoader(images, SquareCrop(resize=8, crop=8), batch_size=5, seed=0, cache="none")
        return [[int(batch.images.sum()), *batch.labels.tolist()] for batch in loader.batches(0, 6)]

    data = open_dataset(serve(server, local))
    ahead, prefetch = [], type(data.train).prefetch
    monkeypatch.setattr(
        type(data.train), "prefetch", lambda self, indices: ahead.append(indices) or prefetch(self, indices)
    )
    assert batches(data.train) == batches(open_dataset(local).train)
    # Nothing comes after step 5, and all the others are near enough to be asked for at the first.
    assert [index for indices in ahead for index in indices] == [
        index for step in range(1, 6) for index in LaneOrder(data.train.runs, 5, seed=0).indices(step)
    ]
    assert sorted(asked(server)) == [f"train-{i:06d}.tar" for i in range(5)]


@pytest.mark.parametrize(("seconds", "distance"), [(0.05, 1200), (0.2, 300), (5.0, 100), (0.001, 2000)])
def test_how_far_ahead(seconds: float, distance: int) -> None:
    """A minute of training, between bounds, whatever a step takes; every batch once; none after the last."""
    from bigtransfer.feed.loader import FetchAhead

    ahead, stop = FetchAhead(stop=6000), 6000
    asked: list[int] = []
    for step in range(10, stop):
        due = ahead.due(step, now=step * seconds)
        assert not len(due) or due[0] > step
        assert len(due) <= 64, "a step must not wait for so many"
        asked += due
        if step == 200:
            assert asked[-1] == step + distance
    assert asked == list(range(11, stop))


def test_how_far_ahead_by_hand() -> None:
    """64 at a time, until it is a minute of the pace, of which the newest step makes up a twentieth."""
    from bigtransfer.feed.loader import FetchAhead

    ahead, time, due = FetchAhead(stop=10_000), 0.0, []
    for step, seconds in enumerate((0.0, 0.1, 2.0, 0.195, 0.195, 0.195)):
        time += seconds
        due.append(ahead.due(step, now=time))
    # The pace: 0.1 s, then 0.95 * 0.1 + 0.05 * 2.0 = 0.195 s, of which a minute holds 307.
    assert due == [range(1, 65), range(65, 129), range(129, 193), range(193, 257), range(257, 312), range(312, 313)]
    assert ahead.due(3, now=time) == range(313, 313), "out of order: the distance of the beginning"
    short = FetchAhead(stop=5)
    assert [short.due(step, now=float(step)) for step in (0, 1, 7)] == [range(1, 5), range(5, 5), range(8, 8)]
