"""Files that lie elsewhere: fetched whole into a folder of bounded size, and read there.

The folder is shared by all processes of a machine. What was opened longest ago makes room for what is fetched next; a file that is
being read while it is removed stays readable to the end where the system allows it (not on Windows, where it is left in place).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import secrets
import shutil
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import filelock

from bigtransfer import fetch, settings, web
from bigtransfer.errors import DataError, DownloadError
from bigtransfer.limits import limits

_pace = fetch.Pace()

_ABANDONED = 3600.0
"""Seconds after which the part of a download that nobody goes on with counts as left behind."""


def is_address(spec: str) -> bool:
    """Whether `spec` is an address (`https://...`, `s3://...`) rather than a path or a name."""
    return "://" in spec


@dataclass(frozen=True)
class Cache:
    """A folder of fetched files with at most about `limit` bytes: downloads under way may exceed it by a file each."""

    folder: Path
    limit: int | None = None
    """None: half of what would be free on that disk without the cache's own files."""

    def make_room(self, size: int, address: str) -> int:
        """Remove what was opened longest ago until `size` more bytes fit. Gives the bytes that the folder may have in all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / ".room.lock"):
            files = sorted(_contents(self.folder))
            used = sum(length for _, length, _ in files)
            limit = (shutil.disk_usage(self.folder).free + used) // 2 if self.limit is None else self.limit
            if size > limit:
                raise DataError(
                    f"{address} has {size / 1e9:.3g} GB, more than the {limit / 1e9:.3g} GB that {self.folder} may take. "
                    "Allow more with BIT_SHARD_CACHE (GB), make room on the disk, or set BIT_CACHE to another one."
                )
            for opened, length, path in files:
                if used + size <= limit:
                    break
                if path.name.startswith(".") and time.time() - opened < _ABANDONED:
                    continue  # a download under way
                with contextlib.suppress(OSError):
                    path.unlink()
                    used -= length
        return limit


def _contents(folder: Path) -> list[tuple[float, int, Path]]:
    """Time of last use, bytes and path of every file with content."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # another process removes files too
                facts = entry.stat()
                if entry.is_file() and facts.st_size:
                    found.append((facts.st_mtime, facts.st_size, Path(entry.path)))
    return found


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address."""

    address: str
    cache: Cache
    size: int | None = None
    """Bytes, where known."""
    sha256: str | None = None
    """Hex, where known. Another hash is another file in the cache, so that a renewed data set is never mixed with its old form."""

    def __str__(self) -> str:
        return self.address

    @property
    def path(self) -> Path:
        """Where it is in the cache, if it is."""
        name = posixpath.basename(urllib.parse.urlsplit(self.address).path) or "file"
        identity = hashlib.sha256(f"{self.address}\0{self.sha256 or ''}".encode()).hexdigest()[:16]
        return self.cache.folder / f"{identity}-{name}"

    def local(self) -> Path:
        """The file in the cache, fetched if it is not there. DataError if it cannot be had."""
        path = self.path
        try:
            if self.size in (None, path.stat().st_size):
                os.utime(path)
                return path
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        if settings.offline():
            raise DataError(f"{self.address} is not in the cache, and BIT_OFFLINE forbids to fetch it.")
        try:
            fetch.download(
                self.address,
                path,
                size=self.size,
                sha256=self.sha256,
                most=self.cache.make_room(self.size or 0, self.address),
                attempts=limits().shard_attempts,
                pace=_pace,
            )
            if self.size is None:
                self.cache.make_room(0, self.address)
        except DownloadError as error:
            raise DataError(str(error)) from error
        except OSError as error:
            raise DataError(
                f"Cannot keep {self.address} in {self.cache.folder}: {error.strerror}. Set BIT_CACHE to another folder."
            ) from error
        return path


def renewed(address: str, target: Path) -> Path:
    """The JSON file at `address` as it is now, at `target`; as it was fetched last where BIT_OFFLINE forbids the network."""
    if not settings.offline():
        arrived = target.with_name(f"{target.name}.{secrets.token_hex(4)}.new")
        try:
            fetch.download(address, arrived, most=limits().record_bytes)
            os.replace(arrived, target)
        except DownloadError as error:
            raise DataError(str(error)) from error
        finally:
            for left in target.parent.glob(f".{arrived.name}.*"):
                left.unlink(missing_ok=True)
    elif not target.is_file():
        raise DataError(f"{address} is not in the cache, and BIT_OFFLINE forbids to fetch it.")
    return target


def expand(address: str) -> list[str]:
    """The addresses of a pattern with `*`, `?` and `[...]`, for which the store lists its files; the address itself without one."""
    if web.is_web(address):
        if "*" in address:
            raise DataError(f"A web server does not list its files: write {address} with {{000..009}} instead of *.")
        return [address]
    if not any(character in address for character in "*?["):
        return [address]
    try:
        import fsspec

        system, path = fsspec.url_to_fs(address)
        found = sorted(system.unstrip_protocol(one) for one in system.glob(path))
    except Exception as error:  # every store's library has its own
        raise DataError(f"{address} cannot be listed: {error}") from error
    if not found:
        raise DataError(f"There is no file {address}.")
    return found
