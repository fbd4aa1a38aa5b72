"""Archives that hold images: what is in a tar file, and how compressed and ZIP archives become plain tar files.

The directory of a tar file is read here and not by `tarfile`, which knows of no bounds: every step leads further into the file, sizes
are believed only as far as the file reaches, links are followed inside the archive and nowhere else, and what is not used is counted.
Nothing is ever written to the places that an archive names. Forms: POSIX.1-2017 (pax, ustar), GNU tar's manual (long names, sparse).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from bigtransfer import files, terminal
from bigtransfer.data.tables import fingerprint
from bigtransfer.errors import BitError, DataError
from bigtransfer.limits import limits
from bigtransfer.runs import atomic_write

_BLOCK = tarfile.BLOCKSIZE
_PIECE = 1 << 20
"""Bytes read or written at a time."""
_SEARCHED = 64 << 20
"""Bytes of zeros behind an archive's end in which another archive is looked for, as `cat a.tar b.tar` leaves it."""
_NAME_BYTES = 1 << 20
"""Of a header that holds a long name; no system has paths of a tenth of that."""
_LINKS = 40
"""Links that may follow on one another, as on Linux."""
_FREE = 1 << 30
"""Bytes that any archive may unpack to, whatever its own size."""

ENDINGS = (
    *(".tar", ".zip", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz"),
    *(".tar.zst", ".tar.zstd", ".tzst"),
)
"""What names of archives end with. What they are is decided by their first bytes."""

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"Rar!": "RAR",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"\x04\x22\x4d\x18": "LZ4",
}


class Member(NamedTuple):
    """A regular file in a tar file."""

    name: str
    """With forward slashes, without a leading "./" or "/"."""
    offset: int
    """Where its content begins, bytes."""
    size: int


def kind_of(path: Path) -> str | None:
    """What sort of archive a file is by its first bytes: "tar", "gzip", "xz", "bzip2", "zstd", "zip", or one that cannot be read here
    ("RAR", "7-Zip", "LZ4"); None for anything else. OSError if it cannot be read."""
    with files.opened(path) as file:
        head = file.read(_BLOCK)
    known = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    empty = not any(head) and len(head) == _BLOCK  # an archive of nothing
    return "tar" if known is None and (empty or _header(head) is not None) else known


def plain(path: Path, cache: Path) -> Path:
    """A plain tar file with what is in the archive: itself, or one in `cache`, written the first time. DataError if it is damaged, of a
    kind that cannot be read here, or unpacks to more than the limits allow."""
    shown = terminal.line(str(path))
    try:
        kind = kind_of(path)
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error.strerror}.") from error
    if kind == "tar":
        return path
    if kind is None:
        raise DataError(
            f"{shown} cannot be read as a tar file, compressed or not, or as a ZIP file: its first bytes are of no such file."
        )
    write = _UNPACKED.get(kind)
    if write is None:
        raise DataError(f"{shown} is a {kind} archive, which is not read here. Unpack it, and give the folder.")
    file = cache / "tar" / f"{fingerprint(path)}.tar"
    if not file.exists():
        try:
            with atomic_write(file) as temporary, open(temporary, "wb") as target:
                write(path, target)
        except BitError:
            raise
        except Exception as error:  # Damaged archives fail in as many ways as there are decompressors.
            raise DataError(
                f"{shown} cannot be unpacked: {terminal.line(str(error)) or type(error).__name__}."
            ) from error
    return file


def unpack(path: Path, folder: Path) -> None:
    """Write every file of the archive below `folder`, links as copies of what they stand for in it.

    DataError if it is damaged, unpacks to more than the limits or the disk allow, or holds a path that leads out of the folder: then
    nothing of it was written. On the way it is kept there as a plain tar file too.
    """
    scratch = folder / ".unpacking"
    try:
        tar = plain(path, scratch)
        found, _ = members(tar, str(path))
        for member in found:
            if not _is_below(member.name):
                raise DataError(
                    f"{path} holds {member.name!a}, which would lie outside of {folder}: it is not what it should be."
                )
        needed, room = sum(member.size for member in found), shutil.disk_usage(folder).free
        if needed > min(room, limits().archive_bytes):
            raise DataError(
                f"{path} unpacks to {needed:,} bytes, more than fit on the disk of {folder} ({room:,}) or than "
                "--limits archive_bytes=N allows."
            )
        with files.opened(tar) as source:
            for member in found:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    _copy(source, member, file)
    except (OSError, ValueError) as error:  # names too long, or with a zero; the disk
        raise DataError(f"{path} cannot be unpacked: {error}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_below(name: str) -> bool:
    odd = os.path.isabs(name) or os.path.splitdrive(name)[0] or name.startswith("/")
    return not odd and ".." not in name.replace(os.sep, "/").split("/")


def _copy(source: BinaryIO, member: Member, target: IO[bytes]) -> None:
    source.seek(member.offset)
    left = member.size
    while left and (piece := source.read(min(left, _PIECE))):
        target.write(piece)
        left -= len(piece)


# --- The directory of a tar file


def members(path: Path, shown: str) -> tuple[list[Member], list[str]]:
    """The regular files in a plain tar file, in its order, with links followed to what they stand for; and remarks on what is not among
    them. Of members of one name the last counts, as for `tar -x`. DataError, which calls the file `shown`, if it is damaged."""
    found: dict[str, Member] = {}
    links: dict[str, str] = {}
    passed: Counter[str] = Counter()
    try:
        with files.opened(path) as file:
            for member in _walk(file, shown, passed):
                name = cleaned(member.name)
                if name in found or name in links:
                    passed["entries are replaced by later ones of the same name"] += 1
                    found.pop(name, None)
                    links.pop(name, None)
                if member.isfile():
                    found[name] = Member(name, member.offset_data, member.size)
                elif member.islnk():
                    links[name] = cleaned(member.linkname)
                elif member.issym():
                    links[name] = _target(name, member.linkname)
                elif not member.isdir():
                    passed["entries are neither files nor links and left out"] += 1
    except OSError as error:
        raise DataError(f"{shown} cannot be read: {error.strerror}.") from error
    if links:
        _follow(found, links, passed)
    return list(found.values()), [f"{shown}: {count} {what}." for what, count in passed.items()]


def cleaned(name: str) -> str:
    """A member's name without what says nothing: "./a//b/" is "a/b"."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _target(name: str, link: str) -> str:
    """What a symbolic link `name` means inside the archive; "" if it leads out of it."""
    if link.startswith("/"):
        return ""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    return "" if target.startswith("..") else cleaned(target) or "."


def _walk(file: BinaryIO, shown: str, passed: Counter[str]) -> Iterator[tarfile.TarInfo]:
    """The entries of a tar file with their own names and the places of their contents."""
    end = file.seek(0, 2)
    at = count = 0
    everywhere: Mapping[str, str] = {}  # what a global pax header says of all entries
    own: dict[str, str] = {}  # what the headers just before an entry say of it
    while at + _BLOCK <= end:
        file.seek(at)
        block = file.read(_BLOCK)
        if not any(block):
            beyond = _beyond(file, at, end)
            if beyond is None or _header(_at(file, beyond, _BLOCK)) is None:
                if beyond is not None:
                    passed["bytes behind its end are not read"] += end - beyond
                return
            at, own, everywhere = beyond, {}, {}
            continue
        member = _header(block)
        if member is None:
            if at == 0:
                raise DataError(f"{shown} cannot be read as a tar file: it does not begin with a header.")
            raise DataError(f"{shown} cannot be read as a tar file: it is damaged at byte {at:,}.")
        count += 1
        if count > limits().archive_members:
            raise DataError(
                f"{shown} has more than {limits().archive_members:,} entries; if it is meant, raise the limit: --limits archive_members=N."
            )
        kind, at = member.type, at + _BLOCK
        if kind in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        ):
            if not 0 <= member.size <= min(_NAME_BYTES, end - at):
                raise DataError(
                    f"{shown} cannot be read as a tar file: a header of {member.size:,} bytes at byte {at:,}."
                )
            content = _at(file, at, member.size)
            at += _padded(member.size)
            if kind == tarfile.GNUTYPE_LONGNAME:
                own["path"] = _text(content)
            elif kind == tarfile.GNUTYPE_LONGLINK:
                own["linkpath"] = _text(content)
            elif kind == tarfile.XGLTYPE:
                everywhere = {**everywhere, **_records(content, shown, at)}
            else:
                own |= _records(content, shown, at)
            continue
        said = {**everywhere, **own}
        own = {}
        member.name = said.get("path", member.name)
        member.linkname = said.get("linkpath", member.linkname)
        if "size" in said:
            member.size = _number(said["size"], shown, at)
        holds = member.isreg() or kind not in tarfile.SUPPORTED_TYPES
        sparse = kind == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in said)
        extended = kind == tarfile.GNUTYPE_SPARSE and block[482]
        while extended and at + _BLOCK <= end:  # more of the map of what is stored
            extended = _at(file, at, _BLOCK)[504]
            at += _BLOCK
        length = member.size if holds else 0
        if not 0 <= length <= end - at:
            what = f"{terminal.line(cleaned(member.name))} of {length:,} bytes at byte {at:,}"
            raise DataError(
                f"{shown} has {end:,} bytes, which do not hold {what}: it is damaged, or was not copied completely."
            )
        member.offset_data = at
        at += _padded(length)
        if sparse:
            passed["files are stored with holes (sparse) and left out; pack them without"] += 1
        else:
            yield member
    if at != end:
        passed["bytes are at its end that are no whole entry; it may have been cut off"] += end - at


def _header(block: bytes) -> tarfile.TarInfo | None:
    """What a block of 512 bytes says of an entry; None if it is no header."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError):
        return None


def _beyond(file: BinaryIO, at: int, end: int) -> int | None:
    """Where the next block begins that is not all zeros; None if there is none, within reason."""
    stop = min(end, at + _SEARCHED)
    while at < stop:
        piece = _at(file, at, min(_PIECE, end - at))
        if not piece:
            return None
        if any(piece):
            first = next(i for i in range(0, len(piece), _BLOCK) if any(piece[i : i + _BLOCK]))
            return at + first
        at += len(piece)
    return None


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _text(content: bytes) -> str:
    return content.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(content: bytes, shown: str, at: int) -> dict[str, str]:
    """The records of a pax header: "30 path=the/name\n" and so on."""
    records = {}
    rest = content.rstrip(b"\0")
    while rest:
        length, _, _ = rest.partition(b" ")
        count = _number(_text(length), shown, at)
        key, separator, value = rest[len(length) + 1 : count].partition(b"=")
        if not len(length) < count <= len(rest) or not separator:
            raise DataError(f"{shown} cannot be read as a tar file: a damaged header before byte {at:,}.")
        records[_text(key)] = value.removesuffix(b"\n").decode("utf-8", "surrogateescape")
        rest = rest[count:]
    return records


def _number(text: str, shown: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise DataError(f"{shown} cannot be read as a tar file: {text[:20]!r} is no number, before byte {at:,}.")
    return int(text)


def _follow(found: dict[str, Member], links: Mapping[str, str], passed: Counter[str]) -> None:
    """Add to `found` what links stand for: a file, or all files of a folder."""
    names = sorted(found)
    room = 10 * len(names) + 10_000  # links to folders, each within the other, could name any number of files
    added: dict[str, Member] = {}
    for link in links:
        target = _resolved(link, found, links)
        if target is None:
            passed["links lead to nothing in it and are left out"] += 1
        elif target in found:
            added[link] = found[target]._replace(name=link)
        elif f"{link}/".startswith("" if target == "." else f"{target}/"):
            passed["links lead back to a folder above them and are left out"] += 1
        else:
            start = f"{target}/"
            inside = names[bisect_left(names, start) : bisect_left(names, f"{target}0")]  # "0" comes next to "/"
            if len(inside) + len(added) > room:
                passed["links to folders are left out: they stand for too many files"] += 1
                continue
            if not inside:
                passed["links lead to nothing in it and are left out"] += 1
            for name in inside:
                added.setdefault(f"{link}/{name.removeprefix(start)}", found[name])
    for name, member in added.items():
        found.setdefault(name, member._replace(name=name))


def _resolved(name: str, found: Mapping[str, Member], links: Mapping[str, str]) -> str | None:
    """The file or folder that a link stands for; None if there is none, or only further links without end."""
    for _ in range(_LINKS):
        if name in found:
            return name
        part = name
        while part and part not in links:
            part = part.rpartition("/")[0]
        if not part:
            return name or None
        if not links[part]:
            return None
        rest = name[len(part) :]
        name = cleaned(posixpath.normpath(links[part] + rest)) or "."
    return None


# --- Unpacking


def _zstd(path: Path) -> Any:
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports] (Python 3.14)
    except ImportError:
        try:
            from backports import zstd
        except ImportError as error:
            raise DataError(
                f"{path} is compressed with zstd, which needs a package: pip install 'bigtransfer[zstd]'"
            ) from error
    return zstd.open(path, "rb")


def _decompress(open_compressed: Callable[[Path], Any]) -> Callable[[Path, IO[bytes]], None]:
    def write(path: Path, target: IO[bytes]) -> None:
        room = _Room(path)
        with open_compressed(path) as source:
            while piece := source.read(_PIECE):
                room.take(len(piece))
                target.write(piece)

    return write


class _Room:
    """How far an archive may unpack."""

    def __init__(self, path: Path) -> None:
        self._path, self._size, self._taken = path, path.stat().st_size, 0

    def take(self, length: int) -> None:
        """DataError if these bytes are too many."""
        self._taken += length
        if self._taken > limits().archive_bytes:
            raise DataError(
                f"{self._path} unpacks to more than {limits().archive_bytes:,} bytes; if it is meant, raise the limit: "
                "--limits archive_bytes=N."
            )
        if self._taken > max(_FREE, limits().archive_ratio * self._size):
            raise DataError(
                f"{self._path} unpacks to more than {limits().archive_ratio} times its size, which images hardly do; if it is meant, "
                "raise the limit: --limits archive_ratio=N."
            )


def _unzip(path: Path, target: IO[bytes]) -> None:
    """The members of a ZIP archive as those of a tar file."""
    room = _Room(path)
    with zipfile.ZipFile(path) as source, tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entries = source.infolist()
        if len(entries) > limits().archive_members:
            raise DataError(
                f"{path} has more than {limits().archive_members:,} entries; if it is meant, raise the limit: --limits archive_members=N."
            )
        windows = not any("/" in entry.filename for entry in entries)
        for entry in entries:
            name = _zip_name(entry)
            name = name.replace("\\", "/") if windows else name
            if entry.is_dir() or name.endswith("/"):
                continue
            if entry.flag_bits & 1:
                raise DataError(f"{path} is encrypted. Unpack it, and give the folder.")
            member = tarfile.TarInfo(name)
            with source.open(entry) as content:
                if stat.S_ISLNK(entry.external_attr >> 16):
                    member.type = tarfile.SYMTYPE
                    member.linkname = content.read(_NAME_BYTES).decode("utf-8", "surrogateescape")
                    tar.addfile(member)
                    continue
                room.take(entry.file_size)
                member.size = entry.file_size
                tar.addfile(member, content)


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The name as it was meant: some programs write UTF-8 without the mark that says so, which is then taken for a code page."""
    if not entry.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return entry.filename.encode("cp437").decode("utf-8")
    return entry.filename


_UNPACKED: Mapping[str, Callable[[Path, IO[bytes]], None]] = {
    "gzip": _decompress(gzip.open),
    "xz": _decompress(lzma.open),
    "bzip2": _decompress(bz2.open),
    "zstd": _decompress(_zstd),
    "zip": _unzip,
}
