"""Where the files of published models are, and downloads that arrive whole or not at all: resumed, verified, shared between
processes, and kept in a cache folder.

The cache (`$BIT_CACHE`, else ~/.cache/bigtransfer) mirrors addresses, so that a file fetched by hand has an obvious place:
https://host/a/b.npz is <cache>/host/a/b.npz. `$BIT_OFFLINE=1` forbids the network. `$HF_ENDPOINT` replaces
https://huggingface.co, as in huggingface_hub. Proxies come from the usual `http_proxy`, `https_proxy`.

What a file is checked against, whichever the server states: its length, the hash of Google's buckets (`x-goog-hash`: MD5, or
CRC-32C where there is no MD5), and that of the Hugging Face hub (`x-linked-etag`: SHA-256; else its etag: git's SHA-1). `download` can
be told length and SHA-256, and also takes the addresses of object stores (`s3://`, `gs://`, ... through fsspec).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import importlib.resources
import json
import os
import re
import shutil
import socket
import ssl
import statistics
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, Literal

import filelock
from tqdm import tqdm

from bigtransfer import __version__, runs, settings
from bigtransfer.catalog import Published
from bigtransfer.errors import DownloadError

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as dropped."""
ATTEMPTS = 5
"""Tries in a row that may bring nothing new before giving up; after each, waiting doubles from `BACKOFF` seconds."""
BACKOFF = 1.0
_CHUNK = 1 << 20


def local(record: Published) -> Path | None:
    """The file of a published model, if it is on this machine."""
    if record.bundled:
        file = importlib.resources.files("bigtransfer") / "pretrained" / record.bundled
        with importlib.resources.as_file(file) as path:
            return path if path.is_file() else None
    return next((path for address in record.addresses if (path := cache_path(address)).is_file()), None)


def location(record: Published) -> Literal["bundled", "cached", "download", "missing"]:
    """Where the weights of a published model are now; "missing" is a bundled one that this installation lacks."""
    if local(record) is None:
        return "missing" if record.bundled else "download"
    return "bundled" if record.bundled else "cached"


def cache_path(address: str) -> Path:
    """The file in the cache that is, or will be, the download of `address`."""
    parts = urllib.parse.urlsplit(address)
    names = [name for name in urllib.parse.unquote(parts.path).split("/") if name not in ("", ".", "..")]
    if parts.query:
        names[-1:] = [f"{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}-{name}" for name in names[-1:]]
    safe = [re.sub(r"[^\w.@+=-]", "_", name) for name in (parts.netloc.rpartition("@")[2], *names)]
    return settings.cache_folder().joinpath(*safe)


def fetch(address: str, *, no_network: bool | None = None, progress: bool = True) -> Path:
    """The file at `address`, from the cache or downloaded into it.

    no_network: True: only from the cache; None: as `$BIT_OFFLINE` says. progress: a bar on stderr if that is a terminal.
    Raises DownloadError, which names the address and what to do: the file can always be put into the cache by hand.
    """
    if not address.startswith(("https://", "http://")):
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
    attempts: int | None = None,
    pace: Pace | None = None,
    by_hand: bool = False,
    progress: bool = False,
) -> None:
    """Bring the file at `address` to `target`; nothing is done if that exists by the time other processes are through with it.

    address: http, https, or of any file system that fsspec knows (`s3://bucket/key`, `memory://name`). size (bytes), sha256 (hex): what
    the file must have, where that is known. attempts: instead of `ATTEMPTS`. pace: of earlier downloads from
    the same place; a connection that is far slower is given up for a new one. by_hand: whether an error shall advise to put the file
    there oneself. Raises DownloadError.
    """
    kind = _Download if address.startswith(("https://", "http://")) else _StoreDownload
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(target, address, progress):
            if not target.is_file():
                kind(address, target, progress, size, sha256, pace, by_hand).run(attempts or ATTEMPTS)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise DownloadError(
            f"Cannot keep {address} in {target.parent}: {reason}. Make room there or set BIT_CACHE to another folder."
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


class _Retry(Exception):
    """This attempt failed in a way that the next may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass
class _Partial:
    """What is known about the file whose first bytes lie in the .part file."""

    validator: str = ""
    """Etag or date for If-Range: the rest must be of the same version. Without one nothing is resumed."""
    size: int | None = None
    """Of the whole file, bytes."""
    digests: dict[str, str] | None = None
    """Algorithm -> hex digest of the whole file."""


class _Download:
    def __init__(
        self,
        address: str,
        target: Path,
        progress: bool,
        size: int | None,
        sha256: str | None,
        pace: Pace | None,
        by_hand: bool,
    ) -> None:
        self.address = address
        self.pace = pace
        self.renewals = 0
        self.size = size
        self.sha256 = sha256
        self.by_hand = by_hand
        self.target = target
        self.part = target.with_name(f".{target.name}.part")
        self.state = target.with_name(f".{target.name}.part.json")
        self.progress = progress
        self.partial = _Partial()
        self.corrupt = 0

    def run(self, attempts: int) -> None:
        self._recall()
        failures, reason = 0, ""
        while failures < attempts:
            had = self._have()
            try:
                self._attempt()
                self._verify()
                break
            except _Retry as retry:
                reason = str(retry)
                failures = 1 if self._have() > had else failures + 1
                if failures < attempts:
                    time.sleep(max(retry.wait, BACKOFF * 2 ** (failures - 1)))
        else:
            kept = "What has arrived is kept; try again to go on from there." if self._have() else ""
            raise self._error(f"{reason} ({attempts} attempts)", kept)
        os.replace(self.part, self.target)
        self.state.unlink(missing_ok=True)

    # --- One request

    def _attempt(self) -> None:
        """Ask for what is missing and append it to the part file."""
        have = self._have()
        if have and have == self.partial.size:
            return
        if have and not self.partial.validator:
            self._forget()
            have = 0
        headers = {"User-Agent": f"bigtransfer/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": self.partial.validator}
        address = self.address
        if endpoint := os.environ.get("HF_ENDPOINT"):
            address = re.sub(r"^https://huggingface\.co(?=/)", endpoint.rstrip("/"), address)
        redirects = _Redirects()
        opener = urllib.request.build_opener(redirects)
        try:
            response = opener.open(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except urllib.error.URLError as error:
            self._unreachable(error.reason)
        except (TimeoutError, http.client.HTTPException, ConnectionError) as error:
            raise _Retry(_reason(error)) from error
        else:
            with response:
                self._receive(response, redirects, have)

    def _refused(self, error: urllib.error.HTTPError) -> None:
        if error.code == 416:
            self._forget()
            raise _Retry("the server has less of the file than was kept of it")
        if error.code in (408, 425, 429) or error.code >= 500:
            after = error.headers.get("Retry-After", "")
            raise _Retry(
                f"the server answered {error.code} {error.reason}", float(min(int(after), 60)) if after.isdigit() else 0
            )
        advice = {
            401: "It needs a login.",
            403: "The server does not give it to everybody; perhaps it was withdrawn.",
            404: "There is no such file; perhaps it was withdrawn, or the name is wrong.",
        }.get(error.code, "")
        raise self._error(f"the server answered {error.code} {error.reason}", advice) from error

    def _unreachable(self, reason: Any) -> None:
        if isinstance(reason, socket.gaierror):
            host = urllib.parse.urlsplit(self.address).hostname
            raise self._error(
                f"the name {host} cannot be resolved", "Is this machine connected to the internet?"
            ) from reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise self._error(
                f"the server's certificate is not trusted ({reason.verify_message})",
                "Behind a company proxy, set SSL_CERT_FILE to its certificates.",
            ) from reason
        if isinstance(reason, Exception):
            raise _Retry(_reason(reason)) from reason
        raise self._error(str(reason))  # a redirect that was not followed

    def _receive(self, response: Any, redirects: _Redirects, have: int) -> None:
        headers: Message = response.headers
        if response.status == 206:
            start, size = _content_range(headers)
            if start != have or self.partial.size not in (None, size):
                self._forget()
                raise _Retry("the server resumed at another place than asked")
        else:  # the server ignores ranges, or has another version now
            self._forget()
            have, size = 0, _length(headers)
            if "text/html" in headers.get("Content-Type", ""):
                raise self._error("the server sent a web page instead of the file", "Is there a login page in between?")
            self._begin(_Partial(_validator(headers), size, _digests(headers, redirects.linked_etag)))
        self._append(response, have, size)

    def _begin(self, partial: _Partial) -> None:
        """A new part file is about to be written: is it what was expected, and is there room?"""
        if None not in (self.size, partial.size) and self.size != partial.size:
            raise self._error(
                f"it has {partial.size} bytes, but should have {self.size}", "Has it been replaced by another version?"
            )
        self.partial = partial
        self._remember()
        if partial.size is not None and partial.size > shutil.disk_usage(self.part.parent).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _append(self, source: Any, have: int, size: int | None) -> None:
        """Copy what `source` still gives to the part file, which shall have `size` bytes then."""
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
            self._copy(source, file, bar, size)
        if size is not None and self._have() != size:
            if self._have() > size:
                self._forget()
            raise _Retry(f"the connection ended after {self._have()} of {size} bytes")

    def _copy(self, source: Any, file: IO[bytes], bar: Any, size: int | None) -> None:
        start, count = time.monotonic(), 0
        while True:
            try:
                chunk = source.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Retry(_reason(error)) from error
            seconds, count = time.monotonic() - start, count + len(chunk)
            if not chunk:
                if self.pace is not None:
                    self.pace.add(count, seconds)
                return
            file.write(chunk)
            bar.update(len(chunk))
            if self.pace is not None and self.pace.crawls(size, seconds, self.renewals):
                self.renewals += 1
                raise _Retry("the connection was far slower than others")

    # --- Integrity

    def _verify(self) -> None:
        """Compare the complete part file with what is known of it; a wrong one is dropped and fetched once more."""
        wanted = {"sha256": self.sha256} if self.sha256 else self.partial.digests or {}
        for algorithm, found in _hash(self.part, wanted).items():
            if found != wanted[algorithm]:
                self._forget()
                self.corrupt += 1
                says = "it should be" if self.sha256 else "the server states"
                message = f"it arrived damaged: its {algorithm} is {found}, {says} {wanted[algorithm]}"
                if self.corrupt > 1:
                    raise self._error(f"twice {message}", "Something on the way changes it.")
                raise _Retry(message)

    # --- The part file

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _recall(self) -> None:
        """Go on from an earlier process's part, if it can be known that the rest will be of the same file."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.partial = _Partial(**json.loads(self.state.read_text(encoding="utf-8")))
        if not self.partial.validator:
            self._forget()

    def _remember(self) -> None:
        runs.write_json(self.state, vars(self.partial))

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)
        self.partial = _Partial()

    def _error(self, reason: str, advice: str = "") -> DownloadError:
        by_hand = f"You can also get it by hand and put it at {self.target}" if self.by_hand else ""
        return DownloadError(" ".join(filter(None, (f"Cannot download {self.address}: {reason}.", advice, by_hand))))


class _StoreDownload(_Download):
    """From whatever fsspec opens: object stores, other machines' disks."""

    def _attempt(self) -> None:
        import fsspec  # a second; not for those who only use http

        try:
            system, path = fsspec.url_to_fs(self.address)
            info = system.info(path)
            partial = _Partial(system.ukey(path), info.get("size"))
            if self._have() and self.partial != partial:
                self._forget()
            have = self._have()
            if not have:
                self._begin(partial)
            if have == 0 or have != partial.size:
                with system.open(path, "rb") as source:
                    source.seek(have)
                    self._append(source, have, partial.size)
        except (_Retry, DownloadError):
            raise
        except FileNotFoundError as error:
            raise self._error("there is no such file") from error
        except PermissionError as error:
            raise self._error(f"the store does not give it ({error})", "Are the credentials in place?") from error
        except (ImportError, ValueError) as error:  # a package for this kind of store, an unknown kind
            raise self._error(str(error)) from error
        except Exception as error:  # every store's library has its own
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise _Retry(_reason(error)) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, keeping what the hub says about the file before it sends us to its storage."""

    linked_etag = ""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        self.linked_etag = headers.get("X-Linked-Etag") or self.linked_etag
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"it redirects to an insecure address, {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:g} seconds"
    return f"the connection failed ({error or type(error).__name__})"


def _validator(headers: Message) -> str:
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")  # weak etags do not count


def _length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", "").strip())
    return (int(found[1]), int(found[2])) if found else (None, None)


def _digests(headers: Message, linked_etag: str) -> dict[str, str]:
    """Algorithm -> hex digest that the server states; {} if it states none."""
    stated = {}
    for header in headers.get_all("x-goog-hash", []):
        for item in header.split(","):
            algorithm, _, value = item.strip().partition("=")
            with contextlib.suppress(ValueError):
                stated[algorithm] = base64.b64decode(value, validate=True).hex()
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


def _hash(path: Path, algorithms: dict[str, str]) -> dict[str, str]:
    """Algorithm -> hex digest of the file."""
    if not algorithms:
        return {}
    (algorithm,) = algorithms
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
    return {algorithm: digest.digest().hex()}
