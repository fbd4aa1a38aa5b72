"""Where the files of published models are, and downloads that arrive whole or not at all: resumed, verified, shared between
processes, and kept in a cache folder.

The cache (`$BIT_CACHE`, else ~/.cache/bigtransfer) mirrors addresses, so that a file fetched by hand has an obvious place:
https://host/a/b.npz is <cache>/host/a/b.npz. `$BIT_OFFLINE=1` forbids the network. `$HF_ENDPOINT` replaces
https://huggingface.co, as in huggingface_hub. What servers may do at most is stated in `limits` and held in `web`.

What a file is checked against, whichever the server states: its length, the hash of Google's buckets (`x-goog-hash`: MD5, or
CRC-32C where there is no MD5), and that of the Hugging Face hub (`x-linked-etag`: SHA-256; else its etag: git's SHA-1). `download` can
be told length and SHA-256, and also takes the addresses of object stores (`s3://`, `gs://`, ... through fsspec). A download that broke
off goes on only if the server says that the rest is of the same version; what it says of the rest is compared with what it said first.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import errno
import hashlib
import importlib.resources
import importlib.util
import os
import re
import shutil
import statistics
import time
import urllib.parse
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NoReturn

import filelock
import msgspec

from bigtransfer import records, runs, settings, web
from bigtransfer.bars import tqdm
from bigtransfer.catalog import Published
from bigtransfer.errors import ConfigError, DownloadError, RunError
from bigtransfer.limits import limits

BACKOFF = 1.0
"""Seconds before the second try; they double with every try that brings nothing."""
_CHUNK = 1 << 18


def local(record: Published) -> Path | None:
    """The file of a published model, if it is on this machine."""
    if record.bundled:
        return bundled(record.bundled)
    if record.package:
        found = importlib.util.find_spec(record.package)
        places = [] if found is None else found.submodule_search_locations or []
        return next((path for place in places for path in sorted(Path(place).glob("models/*.pth"))), None)
    return next((path for address in record.addresses if (path := cache_path(address)).is_file()), None)


def bundled(name: str) -> Path | None:
    """The file of this name in bigtransfer/pretrained, if it is there."""
    with importlib.resources.as_file(importlib.resources.files("bigtransfer") / "pretrained" / name) as path:
        return path if path.is_file() else None


def location(record: Published) -> Literal["bundled", "package", "cached", "download", "missing"]:
    """Where the weights of a published model are now; "missing" is one that this installation, or the package that has it, lacks."""
    if local(record) is None:
        return "missing" if record.bundled or record.package else "download"
    return "bundled" if record.bundled else "package" if record.package else "cached"


def cache_path(address: str) -> Path:
    """The file in the cache that is, or will be, the download of `address`: its own, whatever letters that has. DownloadError if it
    is no address of http or https."""
    try:
        parts = urllib.parse.urlsplit(web.checked(address))
    except web.Refused as error:
        raise DownloadError(f"Cannot download {_shown(address)}: {error.reason}.") from error
    names = [name for name in urllib.parse.unquote(parts.path).split("/") if name not in ("", ".", "..")]
    # File systems take 255 bytes, of which our own additions need some; the end of a name says what the file is.
    names = [name.encode()[-_LONGEST:].decode(errors="ignore") for name in (parts.netloc, *names)]
    safe = [re.sub(r"[^\w.@+=-]", "_", name) for name in names]
    plain = len(safe) > 1 and "/" + urllib.parse.quote("/".join(safe[1:]), safe="/@+=") == parts.path
    if parts.query or not plain:  # otherwise two addresses could share a file
        differing = parts.query if plain else f"{parts.path}?{parts.query}"
        safe[-1] = f"{hashlib.sha256(differing.encode()).hexdigest()[:12]}-{safe[-1]}"
    return settings.cache_folder().joinpath(*safe)


def path_of(address: str) -> str:
    """The path that a `file:` address stands for (RFC 8089; %20 and the like are bytes of the path); other text as it is.

    ConfigError if the address is of another machine, or relative.
    """
    if not re.match("file:", address, re.IGNORECASE):
        return address
    found = re.fullmatch(r"file:(?://(?:localhost)?)?(/(?!/).*)", address, re.IGNORECASE | re.DOTALL)
    path = urllib.parse.unquote_to_bytes(os.fsencode(found[1])) if found else b"\0"
    if b"\0" in path:
        raise ConfigError(f"{address} is not the address of a file on this machine; such are file:///folder/file.")
    if os.name == "nt":
        from urllib.request import url2pathname

        return url2pathname(found[1]) if found else ""
    return os.fsdecode(path)


def fetch(address: str, *, no_network: bool | None = None, progress: bool = True) -> Path:
    """The file at `address`, from the cache or downloaded into it.

    no_network: True: only from the cache; None: as `$BIT_OFFLINE` says. progress: a bar on stderr if that is a terminal.
    Raises DownloadError, which names the address and what to do: the file can always be put into the cache by hand.
    """
    if not web.is_web(address):
        raise DownloadError(f"{address} is not an http or https address.")
    target = cache_path(address)
    if target.is_file():
        return target
    if settings.offline() if no_network is None else no_network:
        raise DownloadError(
            f"{address} is not in the cache, and downloads are switched off (offline). Switch them on (unset BIT_OFFLINE), "
            f"or download it elsewhere and put it at {target}"
        )
    download(address, target, by_hand=True, progress=progress)
    return target


def download(
    address: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    most: int | None = None,
    attempts: int | None = None,
    pace: Pace | None = None,
    by_hand: bool = False,
    progress: bool = False,
) -> None:
    """Bring the file at `address` to `target`; nothing is done if that exists by the time other processes are through with it.

    address: http, https, or of any file system that fsspec knows (`s3://bucket/key`, `memory://name`). size (bytes), sha256, md5 (hex):
    what the file must have, where that is known. most: bytes it may have where its size is not known (default:
    `limits.download_bytes`). attempts: tries in a row that may bring nothing (default: `limits.download_attempts`). pace: of
    earlier downloads from the same place; a connection that is far slower is given up for a new one. by_hand: whether an error shall
    advise to put the file there oneself. Raises DownloadError.
    """
    kind = _Download if web.is_web(address) else _StoreDownload
    wanted = {name: digest for name, digest in (("sha256", sha256), ("md5", md5)) if digest is not None}
    if most is None:
        most = limits().download_bytes
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target, address, progress):
            if not target.is_file():
                kind(address, target, progress, size, wanted, most, pace, by_hand).run(
                    attempts or limits().download_attempts
                )
    except RunError as error:  # of the notes about a part
        raise DownloadError(f"Cannot keep {_shown(address)}: {error}") from error
    except (OSError, NotImplementedError) as error:  # the latter: a file system that cannot lock
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else (getattr(error, "strerror", None) or str(error))
        raise DownloadError(
            f"Cannot keep {_shown(address)} as {target}: {reason}. Make room there or set BIT_CACHE to another folder."
        ) from error


@contextlib.contextmanager
def _only_one(target: Path, address: str, progress: bool) -> Iterator[None]:
    """One process downloads; others wait for it, and then find the file."""
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        shown = f"Waiting for another process to download {address}"
        with tqdm(desc=shown, bar_format="{desc}", disable=None if progress else True):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Pace:
    """How fast the latest downloads of this process were. Stores answer one request in a thousand many times slower than the others, and
    training in step on many machines waits for the slowest."""

    _KNOWN = 5
    """Downloads that make a median."""
    _FACTOR = 3.0
    _MOST = 2
    """New connections for one file."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=32)

    def add(self, count: int, seconds: float) -> None:
        """A connection brought `count` bytes."""
        self._rates.append(count / max(seconds, 1e-3))

    def crawls(self, size: int | None, seconds: float, renewals: int) -> bool:
        """Whether a connection that has been at a file of `size` bytes for so long should be replaced by another."""
        if size is None or len(self._rates) < self._KNOWN or renewals >= self._MOST:
            return False
        return seconds > self._FACTOR * max(1.0, size / statistics.median(self._rates))


@dataclass
class _Partial:
    """What the server said of the file whose first bytes lie in the .part file."""

    validator: str = ""
    """Etag or date for If-Range: the rest must be of the same version. Without one nothing is resumed."""
    etag: str = ""
    modified: str = ""
    size: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Of the whole file, bytes."""
    digests: Annotated[
        dict[Annotated[str, msgspec.Meta(pattern="^(md5|crc32c|sha256|git-sha1)$")], str], msgspec.Meta(max_length=1)
    ] = field(default_factory=dict)
    """Algorithm -> hex digest of the whole file; one at most."""

    @classmethod
    def stated(cls, answer: web.Answer, size: int | None) -> _Partial:
        headers = answer.headers
        return cls(
            _validator(headers),
            headers.get("ETag", ""),
            headers.get("Last-Modified", ""),
            size,
            _digests(headers, answer.linked_etag),
        )

    def continued_by(self, rest: _Partial) -> bool:
        """Whether what was said of the rest fits: the version is named as before, and nothing else that was said differs."""
        if self.validator not in (rest.etag, rest.modified):
            return False
        pairs = ((getattr(self, name), getattr(rest, name)) for name in ("etag", "modified", "size", "digests"))
        return all(before == now or not before or not now for before, now in pairs)


class _Download:
    def __init__(
        self,
        address: str,
        target: Path,
        progress: bool,
        size: int | None,
        wanted: dict[str, str],
        most: int,
        pace: Pace | None,
        by_hand: bool,
    ) -> None:
        self.address = address
        self.pace = pace
        self.renewals = 0
        self.size = size
        self.wanted = wanted
        self.most = most if size is None else size
        self.by_hand = by_hand
        self.target = target
        self.part = target.with_name(f".{target.name}.part")
        self.state = target.with_name(f".{target.name}.part.json")
        self.progress = progress
        self.partial = _Partial()
        self.wrong = ""
        """What the server said of a part that could not be right: from then on the whole file is asked for."""
        self.corrupt = 0

    def run(self, attempts: int) -> None:
        self._recall()
        try:
            self._try(attempts)
            with open(self.part, "rb+") as file:
                os.fsync(file.fileno())  # a machine that dies next shall not leave an empty file under the name
            os.replace(self.part, self.target)
        finally:
            if not self._resumable():  # of no use to anybody
                self._forget()

    def _try(self, attempts: int) -> None:
        """Until the part file is the whole file, or `attempts` in a row brought nothing new."""
        failures, farthest, begun = 0, self._have(), time.monotonic()
        while True:
            try:
                self._attempt()
                self._verify()
                return
            except web.Interrupted as failure:
                # Bytes that had been here before are no progress, nor is a byte now and then: neither would ever end.
                gained, now = self._have() - farthest, time.monotonic()
                progress = gained > 0 and gained >= limits().least_rate * (now - begun)
                farthest, begun = max(farthest, self._have()), now
                failures = 1 if progress else failures + 1
                if failures >= attempts:
                    why = "; ".join(filter(None, (f"{failure.reason} ({attempts} attempts)", self.wrong)))
                    kept = "What has arrived is kept; try again to go on from there." if self._resumable() else ""
                    raise self._error(why, kept) from failure
                time.sleep(max(failure.wait, BACKOFF * 2 ** (failures - 1)))

    # --- One request

    def _attempt(self) -> None:
        """Ask for what is missing and append it to the part file."""
        if not self._resumable():
            self._forget()
        have = self._have()
        if have and have == self.partial.size:
            return
        headers = {"Range": f"bytes={have}-", "If-Range": self.partial.validator} if have else {}
        address = self.address
        if endpoint := os.environ.get("HF_ENDPOINT"):
            address = re.sub(r"^https://huggingface\.co(?=/)", endpoint.rstrip("/"), address)
        try:
            with web.ask(address, headers) as answer:
                self._receive(answer, have)
        except web.Refused as refusal:
            if refusal.status == 416:
                self._wrong_part("the server has less of the file than was kept of it")
            raise self._error(refusal.reason, refusal.advice) from refusal

    def _receive(self, answer: web.Answer, have: int) -> None:
        if answer.status == 206:
            start, end, size = _content_range(answer.headers)
            if start != have or answer.size not in (None, end - start):
                self._wrong_part("the server resumed at another place than asked")
            stated = _Partial.stated(answer, size)
            if not self.partial.continued_by(stated):
                self._wrong_part("the server resumed another version, or does not say of which version the rest is")
            self.partial.size = size
        else:  # the server ignores ranges, or has another version now
            have, size = 0, answer.size
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise self._web_page()
            self._begin(_Partial.stated(answer, size))
        self._append(answer.read, have, size)

    def _wrong_part(self, why: str) -> NoReturn:
        """Begin again; from now on the whole file is asked for."""
        self.wrong = why
        raise web.Interrupted(why)

    def _begin(self, partial: _Partial) -> None:
        """A new part file is about to be written: is it what was expected, and is there room?"""
        if None not in (self.size, partial.size) and self.size != partial.size:
            raise self._error(
                f"it has {partial.size} bytes, but should have {self.size}", "Has it been replaced by another version?"
            )
        if (partial.size or 0) > self.most:
            raise self._too_large()
        self.partial = partial
        self._remember()
        if partial.size is not None and partial.size > shutil.disk_usage(self.part.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _append(self, read: Callable[[int], bytes], have: int, size: int | None) -> None:
        """Copy what `read` still gives to the part file, which shall have `size` bytes then."""
        with (
            open(self.part, "ab" if have else "wb") as file,
            tqdm(
                desc=self.target.name,
                total=size,
                initial=have,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=None if self.progress else True,
            ) as bar,
        ):
            self._copy(read, file, bar, have, size)
        if size is not None and self._have() != size:
            raise web.Interrupted(f"the connection ended after {self._have()} of {size} bytes")

    def _copy(self, read: Callable[[int], bytes], file: IO[bytes], bar: Any, have: int, size: int | None) -> None:
        start, count = time.monotonic(), 0
        while chunk := read(_CHUNK):
            count += len(chunk)
            if size is not None and have + count > size:
                self._wrong_part(f"the server sends more than the {size} bytes that it stated")
            if have + count > self.most:
                self._forget()
                raise self._too_large()
            file.write(chunk)
            bar.update(len(chunk))
            if self.pace is not None and self.pace.crawls(size, time.monotonic() - start, self.renewals):
                self.renewals += 1
                raise web.Interrupted("the connection was far slower than others")
        if self.pace is not None:
            self.pace.add(count, time.monotonic() - start)

    # --- Integrity

    def _verify(self) -> None:
        """Compare the complete part file with what is known of it; a wrong one is dropped and fetched once more."""
        if self.size not in (None, self._have()):
            self._forget()
            raise self._error(f"it ended before {self.size} bytes", "Has it been replaced by another version?")
        wanted = self.wanted or self.partial.digests
        for algorithm, digest in wanted.items():
            found = hash_of(self.part, algorithm)
            if found != digest.lower():
                self._forget()
                self.corrupt += 1
                says = "it should be" if self.wanted else "the server states"
                message = f"it arrived damaged: its {algorithm} is {found}, {says} {digest}"
                if self.corrupt > 1:
                    raise self._error(f"twice {message}", "Something on the way changes it.")
                raise web.Interrupted(message)
        with open(self.part, "rb") as file:
            page = not self.wanted and _PAGE.match(file.read(512))
        if page:  # under a type that does not say so
            self._forget()
            raise self._web_page()

    # --- The part file

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _resumable(self) -> bool:
        return bool(self._have() and self.partial.validator and not self.wrong)

    def _recall(self) -> None:
        """Go on from an earlier process's part, if it can be known that the rest will be of the same file."""
        with contextlib.suppress(FileNotFoundError, DownloadError):
            self.partial = records.read(self.state, _Partial, DownloadError)
        if not re.fullmatch(r"[\x20-\x7e\xa0-\xff]+", self.partial.validator) or (
            self.partial.size is not None and self._have() > self.partial.size
        ):
            self._forget()

    def _remember(self) -> None:
        runs.write_json(self.state, asdict(self.partial))

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)
        self.partial = _Partial()

    # --- What ends it

    def _error(self, reason: str, advice: str = "") -> DownloadError:
        by_hand = f"You can also get it by hand and put it at {self.target}" if self.by_hand else ""
        begin = f"Cannot download {_shown(self.address)}: {reason}."
        return DownloadError(" ".join(filter(None, (begin, advice, by_hand))))

    def _web_page(self) -> DownloadError:
        return self._error("the server sent a web page instead of the file", "Is there a login page in between?")

    def _too_large(self) -> DownloadError:
        if self.size is not None:
            return self._error(f"it has more than the {self.size} bytes it should have", "Has it been replaced?")
        return self._error(
            f"it has more than {self.most} bytes, the most that is fetched here",
            "docs/limits.md says how to allow more.",
        )


class _StoreDownload(_Download):
    """From whatever fsspec opens: object stores, other machines' disks."""

    def _attempt(self) -> None:
        import fsspec  # a second; not for those who only use http

        try:
            system, path = fsspec.url_to_fs(self.address)
            info = system.info(path)
            size = info.get("size")
            partial = _Partial(system.ukey(path), size=size if isinstance(size, int) and size >= 0 else None)
            if not self._resumable() or self.partial != partial:
                self._forget()
            have = self._have()
            if not have:
                self._begin(partial)
            if have == 0 or have != partial.size:
                with system.open(path, "rb") as source:
                    source.seek(have)
                    self._append(source.read, have, partial.size)
        except (web.Interrupted, DownloadError):
            raise
        except FileNotFoundError as error:
            raise self._error("there is no such file") from error
        except PermissionError as error:
            raise self._error(f"the store does not give it ({error})", "Are the credentials in place?") from error
        except (ImportError, ValueError) as error:  # a package for this kind of store, an unknown kind
            raise self._error(str(error)) from error
        except Exception as error:  # every store's library has its own
            if isinstance(error, OSError) and error.errno in _OUR_DISK:
                raise
            raise web.Interrupted(web.reason(error)) from error


_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body|\?xml|error)\b", re.IGNORECASE)
"""How web pages and stores' error messages begin, and no file that is downloaded here."""
_LONGEST = 160
"""Bytes of a name in the cache."""
_OUR_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def _shown(address: str) -> str:
    """An address without the password that may be in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


def _validator(headers: Message) -> str:
    """What If-Range may name (RFC 9110, 13.1.5): an etag that is not weak, or a date that no later version can share."""
    etag = headers.get("ETag", "")
    if re.fullmatch(r'"[\x21\x23-\x7e\xa0-\xff]*"', etag):
        return etag
    modified = headers.get("Last-Modified", "")
    try:
        age = email.utils.parsedate_to_datetime(headers.get("Date", "")) - email.utils.parsedate_to_datetime(modified)
    except (ValueError, TypeError, OverflowError):
        return ""
    return modified if age.total_seconds() >= 1 else ""


def _content_range(headers: Message) -> tuple[int, int, int]:
    """First byte, the one after the last, and bytes of the whole file that a part is of; (-1, -1, -1) if that is not stated."""
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", headers.get("Content-Range", "").strip())
    first, last, size = map(int, found.groups()) if found else (-1, -1, -1)
    return (first, last + 1, size) if first <= last < size else (-1, -1, -1)


def _digests(headers: Message, linked_etag: str) -> dict[str, str]:
    """Algorithm -> hex digest that the server states; {} if it states none."""
    stated = {}
    for header in headers.get_all("x-goog-hash", []):
        for item in header.split(","):
            algorithm, _, value = item.strip().partition("=")
            with contextlib.suppress(ValueError):
                digest = base64.b64decode(value, validate=True)
                if len(digest) == {"md5": 16, "crc32c": 4}.get(algorithm):
                    stated[algorithm] = digest.hex()
    if "md5" in stated:
        return {"md5": stated["md5"]}
    if "crc32c" in stated:
        return {"crc32c": stated["crc32c"]}
    etag = (linked_etag or headers.get("X-Linked-Etag") or "").strip('"').lower()
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return {"sha256": etag}
    etag = headers.get("ETag", "").strip('"').lower()
    if headers.get("X-Repo-Commit") and re.fullmatch(r"[0-9a-f]{40}", etag):
        return {"git-sha1": etag}
    return {}


def hash_of(path: Path, algorithm: str) -> str:
    """The hex digest of a file: of hashlib's algorithms, "crc32c" or "git-sha1"."""
    if algorithm == "crc32c":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where its C part is missing: 7 MB a second, but right
            import google_crc32c
        digest = google_crc32c.Checksum()
    else:
        digest = hashlib.new("sha1" if algorithm == "git-sha1" else algorithm, usedforsecurity=False)
    if algorithm == "git-sha1":
        digest.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while chunk := file.read(4 * _CHUNK):
            digest.update(chunk)
    return digest.digest().hex()
