"""What one file, image or download may cost at most: every limit with its default, in one place.

Nothing that a user meets by accident comes near them; files made to exhaust memory, disk or patience do. Who needs more raises a limit by
name, for every command with `--limits pixels=500M,download_bytes=20G`, for Python and worker processes with the same in `$BIT_LIMITS`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from dataclasses import dataclass

from bigtransfer.errors import ConfigError

VARIABLE = "BIT_LIMITS"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Whole numbers, 1 or more; each says what it bounds."""

    record_bytes: int = 256 * 2**20
    """Of one JSON file: a model's card, an index, a run's configuration."""
    table_bytes: int = 2**30
    """Of one table of text: CSV, TSV, JSON lines."""
    exported_bytes: int = 2**31
    """Of one exported network: an ONNX file, or the weights of OpenVINO's."""
    input_side: int = 2048
    """Pixels of the height and width of a network's input, as a model's card or a flag asks for."""
    image_bytes: int = 512 * 2**20
    """Of one image file, as it is stored."""
    image_pixels: int = 250 * 10**6
    """Of one image: height times width."""
    image_side: int = 10**6
    """Height or width of one image, px."""
    image_memory: int = 1400 * 10**6
    """Bytes that decoding one image may take, and all that a process decodes at a time together."""
    image_seconds: int = 20
    """That decoding one image may take on a slow core, as estimated from its format, its pixels and its bytes."""
    image_boxes: int = 2000
    """Objects that the annotations of one image may hold."""
    request_bytes: int = 64 * 2**20
    """Of one request to `bit serve`, with all its images."""
    requests_bytes: int = 2**30
    """Of all requests to `bit serve` that are under way."""
    download_bytes: int = 32 * 10**9
    """Of one downloaded file whose size is not known beforehand. Shards: `$BIT_SHARD_CACHE`."""
    image_download_bytes: int = 64 * 2**20
    """Of one image at an address."""
    stall_seconds: int = 30
    """A connection is given up that brings nothing for so long, or less than `least_rate` in that time."""
    least_rate: int = 1000
    """Bytes a second."""
    redirects: int = 10
    """From one address to the next."""
    download_attempts: int = 5
    """To get a file, in a row, that bring nothing new of it."""
    shard_attempts: int = 9
    """The same for a file of a data set: four minutes, as a store's bad moment should not end weeks of training."""
    archive_members: int = 20_000_000
    """Entries of one tar or ZIP file."""
    archive_bytes: int = 2**40
    """What one compressed archive may unpack to, in the cache."""
    archive_ratio: int = 200
    """How many times its size a compressed archive may unpack to, beyond the first gigabyte."""


def names() -> list[str]:
    """Every limit, as `--limits` calls it."""
    return [field.name for field in dataclasses.fields(Limits)]


def parse(text: str) -> Limits:
    """The limits with those changed that `text` names, as in "pixels=500M,record_bytes=1G" (k, M, G: thousands, millions, billions).

    ConfigError names what is wrong.
    """
    changed = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in names():
            raise ConfigError(f"There is no limit {name!r}; there are {', '.join(names())}.")
        match = re.fullmatch(r"(\d{1,15})([kMG]?)", value)
        if match is None or int(match[1]) < 1:
            raise ConfigError(f"The limit {name} must be a whole number, such as 20000, 500M or 2G, not {value!r}.")
        changed[name] = int(match[1]) * {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]]
    return Limits(**changed)


def limits() -> Limits:
    """The limits in force: the defaults, and what `$BIT_LIMITS` changes. ConfigError if it cannot be understood."""
    return _parsed(os.environ.get(VARIABLE, ""))


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> Limits:
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from error
