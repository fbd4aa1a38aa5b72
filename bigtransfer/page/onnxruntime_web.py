"""onnxruntime-web, the WebAssembly form of ONNX Runtime, which `bit convert --to web` puts into its file: downloaded once, or given.

It is a program that others will run: whoever gives it, nothing but the package of that version is taken, by its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass

from bigtransfer import fetch, files, settings
from bigtransfer.errors import ConfigError, DownloadError

VERSION = "1.30.0"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
SIZE = 33_106_585
"""Bytes."""
_LIBRARY, _BINARY = "package/dist/ort.wasm.bundle.min.mjs", "package/dist/ort-wasm-simd-threaded.wasm"


@dataclass(frozen=True, eq=False)
class Runtime:
    """What a browser needs of it."""

    library: bytes
    """JavaScript, a module."""
    binary: bytes
    """WebAssembly."""


def runtime(path: str | os.PathLike[str] | None = None, *, no_network: bool | None = None) -> Runtime:
    """Of the package at `path`, as `npm pack onnxruntime-web@VERSION` brings it; None: from the cache, or downloaded into it.

    no_network: as for `fetch.fetch`. Raises ConfigError for another file, DownloadError where there is none.
    """
    by_hand = f"npm pack onnxruntime-web@{VERSION}, and then --runtime onnxruntime-web-{VERSION}.tgz"
    if path is None:
        path = fetch.cache_path(ADDRESS)
        if not path.is_file():
            if settings.offline() if no_network is None else no_network:
                raise DownloadError(
                    f"The page needs onnxruntime-web, which is not in the cache, and downloads are switched off (offline). Get it on a "
                    f"machine with a network ({by_hand}), or put {ADDRESS} at {path}"
                )
            fetch.download(ADDRESS, path, size=SIZE, sha256=SHA256, by_hand=True, progress=True)
    try:
        content = files.read(path, "download_bytes")
    except OSError as error:
        raise ConfigError(f"--runtime {os.fspath(path)} cannot be read: {error.strerror}.") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ConfigError(
            f"{os.fspath(path)} is not the package onnxruntime-web {VERSION} (its SHA-256 differs), and no other is put into a page. "
            f"Get it by {by_hand}."
        )
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        library, binary = (archive.extractfile(name) for name in (_LIBRARY, _BINARY))
        assert library is not None and binary is not None  # by its hash
        return Runtime(library.read(), binary.read())
