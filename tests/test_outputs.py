"""Files that are whole or not there, through links and into pipes, and what killed processes leave of them."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from bigtransfer import outputs, runs
from bigtransfer.errors import RunError
from bigtransfer.outputs import atomic_write, text_output, write_json
from tests.conftest import REPOSITORY


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "first" and os.listdir(path.parent) == ["file.txt"]


def test_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path, said in (
        (tmp_path / "file" / "below.txt", "below.txt: (File exists|Not a directory)"),
        (tmp_path, ": Is a directory"),
        (tmp_path / "circle", "circle: Too many levels of symbolic links"),
    ):
        with pytest.raises(RunError, match=rf"^Cannot write .*{said}\. Choose another place"):
            write_json(path, {})
    assert sorted(os.listdir(tmp_path)) == ["circle", "file"]


def test_files_get_the_mode_of_any_new_file_and_keep_that_of_an_old_one(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {"ä": 1})
        (tmp_path / "old").touch(0o600)
        for name in ("b", "old"):
            with atomic_write(tmp_path / name) as temporary:
                temporary.unlink()
                os.close(os.open(temporary, os.O_CREAT, 0o604))  # some writers put a file of their own in its place
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b", "old")]
    assert modes == [0o640, 0o640, 0o600]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ä": 1}


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the name, the name before anything that follows."""
    done: list[object] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(number: int) -> None:
        done.append(os.fstat(number).st_ino)
        sync(number)

    def noted_replace(old: Path, new: Path) -> None:
        done.append(Path(new).name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert done == [(tmp_path / "file").stat().st_ino, "file", tmp_path.stat().st_ino]


# --- What is no file


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target.json").write_text("old")
    (tmp_path / "near").symlink_to(Path("far") / "second")
    (tmp_path / "far" / "second").symlink_to("target.json")
    write_json(tmp_path / "near", 1)
    assert (tmp_path / "near").is_symlink() and (tmp_path / "far" / "second").is_symlink()
    assert (tmp_path / "far" / "target.json").read_text() == "1\n"
    (tmp_path / "far" / "target.json").unlink()
    write_json(tmp_path / "near", 2)  # a link that points to nothing yet
    assert (tmp_path / "near").is_symlink() and (tmp_path / "far" / "target.json").read_text() == "2\n"
    assert sorted(os.listdir(tmp_path)) == ["far", "near"] and len(os.listdir(tmp_path / "far")) == 2


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got: list[str] = []
    for write in (lambda: write_json(path, [1]), lambda: _lines(path)):
        reader = threading.Thread(target=lambda: got.append(path.read_text()), daemon=True)
        reader.start()
        write()
        reader.join(10)
    assert got == ["[\n 1\n]\n", "one\ntwo\n"] and stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def _lines(path: Path) -> None:
    with text_output(path) as stream:
        print("one", file=stream)
        print("two", file=stream)


def test_a_pipe_gets_each_line_as_it_is_written() -> None:
    reading, writing = os.pipe()
    with text_output(f"/dev/fd/{writing}") as stream:
        print("one", file=stream)
        assert os.read(reading, 99) == b"one\n"
    os.close(writing)
    os.close(reading)


def test_a_device_stays_a_device(tmp_path: Path) -> None:
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    before = os.stat("/dev/null")
    write_json(null, {})
    _lines(null)
    with atomic_write("/dev/null") as temporary, open(temporary, "wb") as file:
        np.savez(file, a=np.zeros(3))
    after = os.stat("/dev/null")
    assert (after.st_ino, stat.S_ISCHR(after.st_mode)) == (before.st_ino, True) and null.is_symlink()
    for write in (write_json, lambda path, _: _lines(path)):
        with pytest.raises(RunError, match=r"Cannot write /dev/full: No space left on device\. Make room"):
            write("/dev/full", {})


WRITES = """
import sys
from bigtransfer.outputs import text_output, write_json
print("before", flush=True)
write_json(sys.argv[1], 3)
with text_output(sys.argv[1]) as stream:
    print("line", file=stream)
print("after")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_descriptor_goes_on_where_it_is(tmp_path: Path, name: str) -> None:
    """`--out /dev/stdout > file` would otherwise replace the file under the shell's hands, or begin it again."""
    (tmp_path / "link").symlink_to(name)
    for path in (name, tmp_path / "link"):
        with open(tmp_path / "file", "wb") as file:
            file.write(b"shell\n")
            file.flush()
            subprocess.run([sys.executable, "-c", WRITES, path], stdout=file, cwd=REPOSITORY, check=True)
        assert (tmp_path / "file").read_text() == "shell\nbefore\n3\nline\nafter\n"
        done = subprocess.run(
            [sys.executable, "-c", WRITES, path], capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        assert done.stdout == "before\n3\nline\nafter\n"


# --- No room


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"^Cannot write .*/file: No space left on device\. Make room"),
        atomic_write(tmp_path / "file"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="elsewhere"), atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "elsewhere")
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"^Cannot write .*/file: File too large\. Make room"):
            write_json(tmp_path / "file", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(tmp_path) == []


# --- What the dead leave

DIES = """
import os, signal, sys
from bigtransfer.outputs import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_dead_writer_left_is_cleared_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with subprocess.Popen(
        [sys.executable, "-c", DIES, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as writer:
        assert writer.stdout is not None and writer.stdin is not None and writer.stdout.readline() == b"writing\n"
        write_json(path, 1)
        with runs.Run(tmp_path).hold():
            pass
        (at_work,) = tmp_path.glob(".*.tmp")
        assert (at_work / path.name).read_text() == "half"
        writer.stdin.close()
        assert writer.wait() == -signal.SIGKILL
    assert at_work.exists()
    write_json(tmp_path / "model", 1)
    write_json(tmp_path / "other.json", 1)
    assert at_work.exists(), "another file's"
    write_json(path, 2)
    assert not list(tmp_path.glob(".*.tmp")) and path.read_text() == "2\n"


def test_what_only_ends_like_a_leftover_is_somebodys_own(tmp_path: Path) -> None:
    (tmp_path / ".important.tmp").mkdir()
    for name in (".important.tmp/diary.txt", ".notes.tmp", ".photo.01234567.tmp"):
        (tmp_path / name).write_text("mine")
    with runs.Run(tmp_path).hold():
        pass
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert kept == {".lock", ".important.tmp/diary.txt", ".notes.tmp", ".photo.01234567.tmp"}


def test_what_another_machine_is_writing_is_left_alone(tmp_path: Path) -> None:
    """Its locks may not be seen here."""
    boot, name = outputs._machine().split("-")
    ours = [f"{boot}-00000000", f"00000000-{name}", f"{boot}-{name}"]
    for machine in (*ours, "00000000-00000000"):
        (tmp_path / f".a.{machine}.01234567.tmp").mkdir()
    (tmp_path / ".a.tmp").mkdir()
    write_json(tmp_path / "a", 1)
    assert sorted(os.listdir(tmp_path)) == [".a.00000000-00000000.01234567.tmp", ".a.tmp", "a"]


def test_a_name_as_long_as_the_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 127):
        write_json(tmp_path / name, 1)
        assert (tmp_path / name).read_text() == "1\n"
