"""What environment variables decide for every command: `$BIT_CACHE` and `$BIT_OFFLINE`."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads, conversions and compiled code are kept: `$BIT_CACHE`, else ~/.cache/bigtransfer; it need not exist yet."""
    return Path(os.environ.get("BIT_CACHE") or "~/.cache/bigtransfer").expanduser()


def offline() -> bool:
    """Whether `$BIT_OFFLINE` forbids the network."""
    return os.environ.get("BIT_OFFLINE", "").lower() not in ("", "0", "false", "no")
