"""The door for files that we write: whole or not at all, and never in the place of something that is no file.

Whatever writes a file that a user names, or that another process may read, goes through `atomic_write`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO

from bigtransfer.errors import ConfigError, RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a temporary file; on success it is flushed to disk and renamed onto `path`, on error removed.

    A reader, or a machine that dies, therefore sees the old file or the new one, never half of one. A symbolic link stays, and what it
    points to is replaced; a device, a pipe, or a descriptor such as /dev/stdout gets the finished file's bytes and stays what it is.
    What a process that was killed left of the same file is cleared away.
    RunError if there is no place for a file at `path`, or no room; other errors that writing raises pass through.
    """
    path = Path(path)
    place = _place(path)
    if place is None:
        with tempfile.TemporaryDirectory(prefix="bit-") as folder:
            temporary = Path(folder) / "file"
            temporary.touch()
            yield temporary
            with open(temporary, "rb") as source, _unstructured(path) as target:
                shutil.copyfileobj(source, target)
        return
    with _workshop(path, place) as folder:
        temporary = folder / place.name
        with _told(path):
            temporary.touch()
            mode = stat.S_IMODE((place if place.exists() else temporary).stat().st_mode)
        try:
            yield temporary
        except OSError as error:
            if error.errno in _NO_ROOM and error.filename in (None, os.fspath(temporary)):
                raise _refusal(path, error) from error
            raise
        with _told(path):
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)  # some writers put a private file of their own in its place
            os.replace(temporary, place)
            sync_folder(place.parent)


@contextlib.contextmanager
def text_output(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A UTF-8 text stream into what `path` names: as `atomic_write`, except that a device or pipe gets each line as it is written."""
    if _place(Path(path)) is None:
        with _unstructured(Path(path), text=True) as stream:
            yield stream  # pyright: ignore[reportReturnType]
        return
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        yield stream


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """RunError if `atomic_write` could not put a file at `path`, or if what is there is no file: before work is done for it. Makes the
    folders above it."""
    path = Path(path)
    place = _place(path)
    if place is None:
        raise RunError(f"{path} is not a regular file, and what is added to must be one. Choose another place.")
    with _workshop(path, place):
        pass


def refuse_replacing(
    written: Iterable[tuple[str, str | os.PathLike[str] | None]], read: Iterable[str | os.PathLike[str] | None]
) -> None:
    """ConfigError if a file that is to be written is one that is read, or one that is to be written too.

    written: (flag, path); read: files, or whatever else was named as an input. None, and what is no regular file, such as a pipe, is passed
    over.
    """
    read = [other for other in read if other is not None]
    before: list[tuple[str, str | os.PathLike[str]]] = []
    for flag, path in written:
        if path is None:
            continue
        there = os.path.isfile(path)
        for other in read if there else ():
            if os.path.isfile(other) and os.path.samefile(path, other):
                raise ConfigError(f"{flag} {path} would replace {other}, which is read. Choose another file.")
        for first, other in before:
            if os.path.realpath(path) == os.path.realpath(other) and (there or not os.path.exists(path)):
                raise ConfigError(f"{flag} {path} would replace what {first} writes. Choose another file.")
        before.append((flag, path))


@contextlib.contextmanager
def alone(path: str | os.PathLike[str]) -> Iterator[None]:
    """Wait until no other process is within `alone` for the same file, made if need be, and then keep others out: for a file that is read
    and replaced by `atomic_write`. Where the system has no such locks, nothing is waited for."""
    path = Path(path)
    if fcntl is None:
        yield
        return
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                with contextlib.suppress(OSError):  # file systems without locks
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(lock)):
                    break
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)  # whoever held it has put a new file there
    try:
        yield
    finally:
        os.close(lock)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    # A file name that is not UTF-8 holds lone surrogates, which this writes as JSON's own escapes.
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Wait until the names in `folder` are on the disk: what was renamed stays so if the machine dies next."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and need not be
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


# --- What a path means


def _place(path: Path) -> Path | None:
    """Where the regular file is, or is to be, that `path` means through all symbolic links; None if it means something that is to be
    written into as it is, such as a pipe. RunError if it cannot be written."""
    with _told(path):
        if _descriptor(path) is not None:
            return None
        place = path
        if path.is_symlink():
            place = Path(os.path.realpath(path))
            if place.is_symlink():  # only a circle leaves one
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if place.is_dir():
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return place if place.is_file() or not place.exists() else None


def _descriptor(path: Path) -> int | None:
    """The number of this process's descriptor that `path` means, as /dev/stdout and a shell's `>(command)` do."""
    for _ in range(40):  # as many links as Linux follows
        parent, name = os.path.realpath(path.parent), path.name
        if name.isdecimal() and parent in ("/dev/fd", f"/proc/{os.getpid()}/fd"):
            return int(name)
        try:
            path = Path(parent) / os.readlink(path)
        except (OSError, ValueError):  # no link
            return None
    return None


@contextlib.contextmanager
def _unstructured(path: Path, *, text: bool = False) -> Iterator[IO[Any]]:
    """A stream into the device, pipe or descriptor at `path`."""
    with _told(path):
        number = _descriptor(path)
        if number is None:
            number = os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0))
        else:
            # Goes on where the descriptor is; opening its name would begin again, and overwrite a redirection's file.
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            number = os.dup(number)
    with _told(path):
        if text:
            with open(number, "w", encoding="utf-8", newline="", buffering=1) as stream:
                yield stream
        else:
            with open(number, "wb") as stream:
                yield stream


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _refusal(path: Path, error: OSError) -> RunError:
    advice = "Make room, or choose another place." if error.errno in _NO_ROOM else "Choose another place."
    return RunError(f"Cannot write {path}: {error.strerror or error}. {advice}")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns the system's refusals, which often name no file or a temporary one, into RunErrors that name `path`."""
    try:
        yield
    except BrokenPipeError:  # a reader that has seen enough
        raise
    except OSError as error:
        raise _refusal(path, error) from error


# --- Temporary folders and what the dead leave of them


@contextlib.contextmanager
def _workshop(path: Path, place: Path) -> Iterator[Path]:
    """A temporary folder beside `place` for what is to become it, locked so that others can tell whether its maker lives.

    The lock is on the folder because some writers replace the file in it.
    """
    with _told(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(place)
        while True:
            folder = place.with_name(f".{_short(place.name)}.{_machine()}.{secrets.token_hex(4)}.tmp")
            folder.mkdir()
            lock = _lock(folder)
            if folder.is_dir():
                break
            _unlock(lock)  # another process took it for abandoned before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _short(name: str) -> str:
    """What a temporary folder's name takes over of a file's: systems end names at 255 bytes."""
    return name.encode("utf-8", "surrogateescape")[:180].decode("utf-8", "ignore")


def _clear_leftovers(place: Path) -> None:
    """Remove the temporary folders for `place` whose makers have died."""
    start = f".{_short(place.name)}."
    with os.scandir(place.parent) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(start) and entry.name.endswith(".tmp")]
    for each in found:
        if _FORM.fullmatch(os.path.basename(each).removeprefix(start)):
            remove_leftover(Path(each))


_FORM = re.compile(r"([0-9a-f]{8}-[0-9a-f]{8})\.[0-9a-f]{8}\.tmp")


def remove_leftover(path: Path) -> None:
    """Remove a temporary folder that `atomic_write` made, if its maker, on this machine, has died; whatever else has such an ending may be
    somebody's own."""
    made = re.search(rf"\.{_FORM.pattern}$", path.name)
    if made is not None and _ours(made[1]) and (lock := _lock(path)) is not None:
        shutil.rmtree(path, ignore_errors=True)
        _unlock(lock)


@functools.cache
def _machine() -> str:
    """Eight digits for this machine's last start, eight for its name: the locks of other machines may not be seen on a shared disk."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return "-".join(hashlib.sha256(text.encode()).hexdigest()[:8] for text in (boot, platform.node()))


def _ours(machine: str) -> bool:
    """Whether that is this machine: its name changes from container to container, its start whenever it starts."""
    return any(one == other for one, other in zip(machine.split("-"), _machine().split("-"), strict=True))


def _lock(folder: Path) -> int | None:
    """A descriptor that holds `folder` until it is closed; None if another process holds it, or the system has no such locks."""
    if fcntl is None:
        return None
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        return None
    return opened


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
