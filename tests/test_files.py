"""The door for files: whatever bears a file's name is read, or refused at once and in words."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigtransfer import files, records, weights
from bigtransfer.data import images
from bigtransfer.errors import ImageError, RunError, WeightsError
from tests.data_makers import encoded, pattern


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_LIMITS", "image_bytes=4k")


def test_a_regular_file_up_to_the_limit(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "b"
    link.symlink_to(path)
    for size in (0, 1, 3999, 4000):
        path.write_bytes(os.urandom(size))
        assert files.read(path, "image_bytes") == files.read(str(link), "image_bytes") == path.read_bytes()
    for size in (4001, 1 << 40):  # the latter a hole, which would not fit into memory
        os.truncate(path, size)
        with pytest.raises(OSError, match=r"more than 4,000 bytes.*--limits image_bytes=N"):
            files.read(path, "image_bytes")


def test_a_file_is_larger_than_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the system makes up on reading says 0 bytes, as does one that has grown since it was asked."""
    (tmp_path / "a").write_bytes(b"0123456789" * 400)
    true = os.fstat
    monkeypatch.setattr(os, "fstat", lambda file: os.stat_result((*true(file)[:6], 0, *true(file)[7:])))
    assert files.read(tmp_path / "a", "image_bytes") == b"0123456789" * 400
    (tmp_path / "a").write_bytes(bytes(4001))
    with pytest.raises(OSError, match="more than 4,000"):
        files.read(tmp_path / "a", "image_bytes")
    if Path("/proc/self/status").exists():
        assert b"Pid:" in files.read("/proc/self/status", "image_bytes")


@contextlib.contextmanager
def odd(kind: str, path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "terminal":
            path.symlink_to("/dev/tty")
        elif kind == "another's pipe":
            ends = os.pipe()
            stack.callback(lambda: [os.close(end) for end in ends])
            path.symlink_to(f"/dev/fd/{ends[0]}")
        yield


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "terminal", "another's pipe"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with odd(kind, Path("x.jpg")):
        said = f"it is a {kind.split()[-1].replace('terminal', 'device')}, not a regular file"
        for function in (files.opened, lambda path: files.read(path, "image_bytes")):
            with pytest.raises(OSError) as caught:  # noqa: PT011
                function("x.jpg")
            assert caught.value.strerror == said
        for function in (images.decode, images.size):
            with pytest.raises(ImageError) as refused:
                function("x.jpg", "x.jpg")
            assert refused.value.reason == f"the file cannot be read ({said})"
        with pytest.raises(RunError, match=said):
            records.read("x.jpg", dict, RunError)
        with pytest.raises(WeightsError, match=said):
            weights.describe("./x.jpg")


def test_a_file_replaced_by_a_pipe_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened is looked at again, and opened so that even a pipe would not be waited for."""
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda path, **_: os.stat_result((stat.S_IFREG, *[0] * 9)))
    flags, numbers, true = [], [], os.open

    def opened(path: str, how: int) -> int:
        flags.append(how)
        numbers.append(true(path, how | os.O_NONBLOCK))
        return numbers[-1]

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(OSError, match="it is a pipe"):
        files.opened(tmp_path / "pipe")
    assert flags[0] & os.O_NONBLOCK
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(numbers[0])


def test_folders_and_missing_files_have_their_usual_errors(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        files.opened(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none", "image_bytes")
    with pytest.raises(FileNotFoundError):
        files.opened(f"{tmp_path}/a\0b")


def test_a_descriptor_passed_by_name_is_read_to_its_end() -> None:
    """What a shell makes of `bit predict MODEL <(command)`, whose results come when they come."""
    data = encoded(pattern(8, 8))
    for template in ("/dev/fd/{}", "/proc/self/fd/{}"):
        reads, writes = os.pipe()
        slow = threading.Timer(
            0.05, lambda end=writes: [os.write(end, data[:100]), os.write(end, data[100:]), os.close(end)]
        )
        slow.start()
        assert files.read(template.format(reads), "image_bytes") == data
        slow.join()
        os.close(reads)
    reads, writes = os.pipe()
    os.write(writes, bytes(4001))
    with pytest.raises(OSError, match="more than 4,000"):  # though the other end is open still
        files.read(f"/dev/fd/{reads}", "image_bytes")
    os.close(reads)
    os.close(writes)


def test_a_regular_file_by_its_descriptor_is_read_from_its_beginning_each_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    with open(tmp_path / "a", "rb") as file:
        for _ in range(2):
            assert files.read(f"/dev/fd/{file.fileno()}", "image_bytes") == b"content"
