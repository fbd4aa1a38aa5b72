"""Decoded images of a whole set, kept for as long as training lasts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigtransfer.data.background import in_threads, usable_cores
from bigtransfer.data.sources import ImageSet
from bigtransfer.errors import ImageError

CACHE_SHARE = 0.4
"""`auto` keeps the decoded images in memory if they take at most this share of what is free."""

Prepare = Callable[[np.ndarray], np.ndarray]
"""The fixed part of an augmentation, uint8 (h, w, c) -> uint8 (h', w', c)."""

_CONTAINER_LIMITS = (
    # Control groups, version 2 and 1: limit, use, and the use's details with the line for pages of files not used lately.
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def available_memory(groups: Path = Path("/sys/fs/cgroup"), machine: Path = Path("/proc/meminfo")) -> int:
    """Bytes of memory that new allocations can have: what the machine has free, or the container's limit where that is lower.

    Where the system does not say how much is free (macOS, Windows), half of the machine's memory, or 4 GiB if even that is unknown.
    """
    free = 4 << 30
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no sysconf, no such name
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with contextlib.suppress(OSError, StopIteration):
        lines = machine.read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for limit, used, details, cached in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            left = int((groups / limit).read_text()) - int((groups / used).read_text())
            # A group's use counts the cached pages of files it has read, which make room for others.
            stat = dict(line.split() for line in (groups / details).read_text().splitlines())
            free = min(free, left + int(stat.get(cached, 0)))
    return max(free, 0)


_FIRST = 1 << 24
"""Least growth of the buffer, bytes."""


class DecodedImages:
    """The prepared images of a set, end to end in one buffer; image i is `cache[i]`, uint8 (h, w, c), a view of it."""

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray, channels: int, errors: dict[int, ImageError]) -> None:
        """pixels: uint8 (bytes,). sizes: int64 (n, 2), height and width, px. errors: the images that cannot be decoded; 0 x 0 px."""
        self.pixels, self.sizes, self.channels, self.errors = pixels, sizes, channels, errors
        self.offsets = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * channels)])
        """int64 (n + 1,): where each image begins, bytes."""

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.pixels[self.offsets[i] : self.offsets[i + 1]].reshape(*self.sizes[i], self.channels)


def fits(images: ImageSet, prepare: Prepare, copies: int, skip_bad: bool) -> bool:
    """Whether `copies` of the prepared set take at most CACHE_SHARE of the free memory, judged by a few images."""
    sample = np.random.default_rng(0).choice(len(images), size=min(8, len(images)), replace=False)
    sizes = []
    for i in sample.tolist():
        try:
            sizes.append(prepare(images.read(i)).nbytes)
        except ImageError:
            if not skip_bad:
                raise
    return bool(np.mean(sizes or [0]) * len(images) * copies <= CACHE_SHARE * available_memory())


def in_memory(images: ImageSet, prepare: Prepare, *, skip_bad: bool, progress: bool) -> DecodedImages:
    """The decoded set in this process's memory. Each image is read once; ImageError if one cannot be and not `skip_bad`."""
    pixels, used = np.empty(0, dtype=np.uint8), 0
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    errors = {}
    for i, image in enumerate(_decoded(images, prepare, skip_bad, progress)):
        if isinstance(image, ImageError):
            errors[i] = image
            continue
        sizes[i] = image.shape[:2]
        if used + image.nbytes > len(pixels):
            # A large block grows by moving its pages, not its bytes.
            pixels.resize(used + max(image.nbytes, used // 16, _FIRST), refcheck=False)
        pixels[used : used + image.nbytes] = image.reshape(-1)
        used += image.nbytes
    pixels.resize(used, refcheck=False)
    return DecodedImages(pixels, sizes, images.channels, errors)


def _decoded(images: ImageSet, prepare: Prepare, skip_bad: bool, progress: bool) -> Iterator[np.ndarray | ImageError]:
    """Every prepared image, or why it cannot be read, in order."""

    def one(index: int, _stopped: object) -> np.ndarray | ImageError:
        try:
            return np.ascontiguousarray(prepare(images.read(index)))
        except ImageError as error:
            if not skip_bad:
                raise
            return ImageError(error.name, error.reason)  # without its traceback, which keeps the file's bytes

    # Pillow releases the GIL while it decodes and resizes, so threads are enough here.
    threads = usable_cores()
    with contextlib.closing(in_threads(one, range(len(images)), threads=threads, ahead=4 * threads)) as decoded:
        yield from tqdm(
            decoded,
            total=len(images),
            desc="decoding",
            unit="img",
            disable=None if progress else True,  # none in a log file
            leave=False,
        )
