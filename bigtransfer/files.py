"""The door for files that somebody else put there: regular files only, and never more bytes than a limit allows.

A pipe, a socket or a device that bears the name of a file would be waited for without end, or read until memory ends. Everything here
raises OSError whose `strerror` says in words what is wrong, to be shown as any other reason for which a file cannot be read.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import BinaryIO

from bigtransfer.limits import limits


def opened(path: str | os.PathLike[str]) -> BinaryIO:
    """The regular file `path` (or one that it links to), open for reading bytes. OSError where it is anything else."""
    if "\0" in os.fsdecode(path):  # Python raises ValueError for these
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    _check(os.stat(path).st_mode)  # before it is opened, which alone can wait, or have an effect on a device
    return os.fdopen(_opened_without_waiting(path), "rb")


def _opened_without_waiting(path: str | os.PathLike[str]) -> int:
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
    descriptor = os.open(path, os.O_RDONLY | sum(flags))
    try:
        _check(os.fstat(descriptor).st_mode)  # it may have been replaced since
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read(path: str | os.PathLike[str], limit: str) -> bytes:
    """The bytes of the regular file `path`; OSError where it is anything else, or larger than the limit of that name (see `limits`).

    The names of this process's own descriptors (/dev/stdin, /dev/fd/63: what a shell makes of `<(command)`) are read whatever lies
    behind them: who passes one means it.
    """
    at_most = getattr(limits(), limit)
    with _own_descriptor(path) or opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        pieces = [_piece(file, size + 1)] if size <= at_most else []
        total = len(pieces[0]) if pieces else size
        # Files that grow, and those that the system makes up, have more than their size says.
        while pieces[-1:] and pieces[-1] and size < total <= at_most:
            pieces.append(_piece(file, min(at_most + 1 - total, 1 << 20)))
            total += len(pieces[-1])
    if total > at_most:
        raise OSError(
            errno.EFBIG, f"it has more than {at_most:,} bytes; if it is meant, raise the limit: --limits {limit}=N"
        )
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _piece(file: BinaryIO, length: int) -> bytes:
    data: bytes | None = file.read(length)
    if data is None:
        raise OSError(errno.EAGAIN, "it has nothing to read and would be waited for")
    return data


_OWN = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/(\d{1,9})")


def _own_descriptor(path: str | os.PathLike[str]) -> BinaryIO | None:
    found = _OWN.fullmatch(os.fsdecode(path))
    if found is None or stat.S_ISREG(os.stat(path).st_mode):
        return None
    return os.fdopen(os.dup(int(found[1] or 0)), "rb")  # a socket could not be opened by its name


def _check(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    raise OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(mode), 'something else')}, not a regular file")
