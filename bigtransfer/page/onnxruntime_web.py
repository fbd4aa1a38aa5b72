"""onnxruntime-web, the WebAssembly form of ONNX Runtime, which `bit convert --to web` puts into its file: brought by npm once, or given.

It is a program that others will run: whoever gives it, nothing but the package of that version is taken, by its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bigtransfer import files, settings
from bigtransfer.errors import ConfigError, DownloadError

VERSION = "1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
_PACKAGE = f"onnxruntime-web-{VERSION}.tgz"
_BY_HAND = f"npm pack onnxruntime-web@{VERSION}, and then --runtime {_PACKAGE}"
_LIBRARY, _BINARY = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"


@dataclass(frozen=True, eq=False)
class Runtime:
    """What a browser needs of it."""

    library: bytes
    """JavaScript, a module."""
    binary: bytes
    """WebAssembly."""


def cached() -> Path:
    """Where the package is kept, once it is there."""
    return settings.cache_folder() / "npm" / _PACKAGE


def runtime(path: str | os.PathLike[str] | None = None, *, no_network: bool | None = None) -> Runtime:
    """Of the package at `path`, as `npm pack onnxruntime-web@VERSION` brings it; None: from the cache, or brought into it by npm, which
    knows where packages are to be had here.

    no_network: as for `fetch.fetch`. Raises ConfigError for another file, DownloadError where there is none.
    """
    if path is None:
        path = cached()
        if not path.is_file():
            if settings.offline() if no_network is None else no_network:
                raise DownloadError(
                    f"The page needs onnxruntime-web, which is not in the cache, and downloads are switched off (offline). Get it on a "
                    f"machine with a network ({_BY_HAND}), or put it at {path}"
                )
            _bring(path)
    try:
        content = _checked(path)
    except OSError as error:
        raise ConfigError(f"--runtime {os.fspath(path)} cannot be read: {error.strerror}.") from error
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        library, binary = (archive.extractfile(name) for name in (_LIBRARY, _BINARY))
        assert library is not None and binary is not None  # by its hash
        return Runtime(library.read(), binary.read())


def _checked(path: str | os.PathLike[str]) -> bytes:
    """The package's content. ConfigError if it is another file."""
    content = files.read(path, "download_bytes")
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ConfigError(
            f"{os.fspath(path)} is not the package onnxruntime-web {VERSION} (its SHA-256 differs), and no other is put into a page. "
            f"Get it by {_BY_HAND}."
        )
    return content


def _bring(path: Path) -> None:
    """Let npm bring the package to `path`."""
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError(
            f"The page needs onnxruntime-web, which npm brings, and there is no npm here. On a machine that has it: {_BY_HAND}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [
            npm,
            "pack",
            "--silent",
            "--ignore-scripts",
            f"onnxruntime-web@{VERSION}",
            "--pack-destination",
            folder,
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        made = Path(folder, _PACKAGE)
        if ended.returncode or not made.is_file():
            said = ended.stderr.strip().splitlines()
            raise DownloadError(
                f"npm did not bring onnxruntime-web {VERSION}{f': {said[-1]}' if said else ''}. Is the network there? By hand: {_BY_HAND}."
            )
        _checked(made)
        made.replace(path)
