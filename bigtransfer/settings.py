"""What environment variables decide for every command: `$BIT_CACHE`, `$BIT_BENCHMARKS`, `$BIT_SHARD_CACHE` and `$BIT_OFFLINE`."""

from __future__ import annotations

import os
from pathlib import Path

from bigtransfer.errors import ConfigError


def cache_folder() -> Path:
    """Where downloads, conversions and compiled code are kept: `$BIT_CACHE`, else ~/.cache/bigtransfer; it need not exist yet.

    ConfigError where there is no such home folder.
    """
    return _folder("BIT_CACHE", "~/.cache/bigtransfer")


def benchmarks_folder() -> Path:
    """Where the images of benchmarks are looked for: `$BIT_BENCHMARKS`, else "benchmarks" in the cache folder; it need not exist.

    ConfigError where there is no such home folder.
    """
    return _folder("BIT_BENCHMARKS", None) if os.environ.get("BIT_BENCHMARKS") else cache_folder() / "benchmarks"


def _folder(variable: str, default: str | None) -> Path:
    folder = os.environ.get(variable) or default
    assert folder is not None
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{folder} cannot be found: there is no such home folder. Set {variable} to a folder."
        ) from error


def shard_cache() -> int | None:
    """Bytes that fetched shards may take on this machine: `$BIT_SHARD_CACHE`, in GB (10^9); None if it is not set."""
    text = os.environ.get("BIT_SHARD_CACHE", "")
    if not text:
        return None
    try:
        size = float(text)
        if not 0 < size < float("inf"):
            raise ValueError
    except ValueError as error:
        raise ConfigError(f"BIT_SHARD_CACHE is a number of GB, such as 200, not {text!r}.") from error
    return int(size * 1e9)


def offline() -> bool:
    """Whether `$BIT_OFFLINE` forbids the network."""
    return os.environ.get("BIT_OFFLINE", "").lower() not in ("", "0", "false", "no")
