"""Decoded images of a whole set, kept for as long as training lasts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bigtransfer.bars import tqdm
from bigtransfer.catalog import InputSpec
from bigtransfer.data.sources import ImageSet
from bigtransfer.errors import DataError, ImageError, RunError
from bigtransfer.feed.augment import Augmentation, Crops
from bigtransfer.feed.background import Stopped, in_processes, in_threads
from bigtransfer.machine import available_memory, usable_cores
from bigtransfer.outputs import atomic_write, remove_leftover

CACHE_SHARE = 0.4
"""`auto` keeps the decoded images in memory if they take at most this share of what is free."""

_FIRST = 1 << 24
"""Least growth of the buffer, bytes."""

_WORTH_PROCESSES = 20_000
"""So many images are decoded by processes, of which each core has one, rather than by threads."""

_PIECE = 64
"""Images that such a process hands over at a time."""


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

    def crop(self, indices: np.ndarray, crops: Crops, augmentation: Augmentation) -> Tensor:
        """The images at `indices` (int64 (n,)), each cut as `crops` says: uint8 (n, c, side, side), channels_last; zeros for bad ones."""
        side = augmentation.side
        images = np.zeros((len(indices), side, side, self.channels), dtype=np.uint8)
        for position, (index, box, mirrored) in enumerate(zip(indices.tolist(), *crops, strict=True)):
            if index not in self.errors:
                images[position] = augmentation.cut(self[index], box, mirrored)
        return channels_last(images)


def channels_last(images: np.ndarray) -> Tensor:
    """uint8 (n, h, w, c) -> (n, c, h, w), channels_last without a copy."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def fits(
    images: ImageSet, fixed: InputSpec | None, *, copies: int = 1, folder: Path | None = None, skip_bad: bool
) -> bool:
    """Whether the prepared set, judged by a few images, takes at most CACHE_SHARE of the free memory.

    fixed: the fixed part of the augmentation, as below (`Augmentation.fixed`). copies: processes of which each keeps one. folder: they
    share one in a file there, which also needs room unless it is there already.
    """
    sample = np.random.default_rng(0).choice(len(images), size=min(8, len(images)), replace=False)
    sizes = []
    for i in sample.tolist():
        try:
            sizes.append(images.read(i, fixed).nbytes)
        except ImageError:
            if not skip_bad:
                raise
    needed = float(np.mean(sizes or [0])) * len(images)
    if folder is None:
        return needed * copies <= CACHE_SHARE * available_memory()
    if needed > CACHE_SHARE * available_memory():
        return False
    if _index(folder, images, fixed).is_file():
        return True
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return needed <= 0.9 * shutil.disk_usage(existing).free


def in_memory(images: ImageSet, fixed: InputSpec | None, *, skip_bad: bool, progress: bool) -> DecodedImages:
    """The decoded set in this process's memory. Each image is read once; ImageError if one cannot be and not `skip_bad`."""
    pixels, used = np.empty(0, dtype=np.uint8), 0
    sizes = np.zeros((len(images), 2), dtype=np.int64)
    errors = {}
    for i, image in enumerate(_decoded(images, fixed, skip_bad, progress)):
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


def in_files(
    folder: Path, images: ImageSet, fixed: InputSpec | None, *, skip_bad: bool, progress: bool
) -> DecodedImages:
    """The decoded set in files of `folder`, mapped into memory: all processes of a machine share them, and later ones find them.

    Whichever process comes first decodes while the others wait; if it dies, the next one does. Files of another set, or of one whose
    images have changed, are left alone (their names tell them apart). Raises ImageError as `in_memory` does, DataError if the folder
    has no room.
    """
    import filelock

    index = _index(folder, images, fixed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / ".decoded.lock"):
            found = _mapped(index, images.channels)
            if found is None:
                for leftover in folder.glob(".decoded-*.tmp"):  # of a process that was killed
                    remove_leftover(leftover)
                _write(index, _decoded(images, fixed, skip_bad, progress), len(images))
                found = _mapped(index, images.channels)
    except (OSError, RunError) as error:
        raise DataError(
            f"The decoded images cannot be kept in {folder}: {getattr(error, 'strerror', error)}. Make room there, or choose --cache none."
        ) from error
    assert found is not None
    if found.errors and not skip_bad:
        raise found.errors[min(found.errors)]
    return found


def _index(folder: Path, images: ImageSet, fixed: InputSpec | None) -> Path:
    """The file that says where each image of the set lies in the file of pixels beside it.

    Named after the images' names and, to notice other contents, another decoder and another fixed part, 16 prepared images.
    """
    digest = hashlib.blake2b(digest_size=12)
    for i in range(len(images)):
        digest.update(images.name(i).encode(errors="surrogateescape") + b"\0")
    for i in np.linspace(0, len(images) - 1, 16).astype(np.int64).tolist():
        try:
            image = images.read(i, fixed)
            digest.update(np.array(image.shape, dtype="<i8").tobytes() + image.tobytes())
        except ImageError as error:
            digest.update(error.reason.encode())
    return folder / f"decoded-{digest.hexdigest()}.npz"


def _write(index: Path, decoded: Iterator[np.ndarray | ImageError], count: int) -> None:
    sizes = np.zeros((count, 2), dtype=np.int64)
    errors = []
    with atomic_write(index.with_suffix(".pixels")) as temporary, open(temporary, "wb") as file:
        for i, image in enumerate(decoded):
            if isinstance(image, ImageError):
                errors.append([i, image.name, image.reason])
            else:
                sizes[i] = image.shape[:2]
                file.write(image.data)
    # Last: where this file is, the pixels are complete.
    with atomic_write(index) as temporary, open(temporary, "wb") as file:
        np.savez(file, sizes=sizes, errors=np.frombuffer(json.dumps(errors).encode(), dtype=np.uint8))


def _mapped(index: Path, channels: int) -> DecodedImages | None:
    """The images that `_write` wrote; None where they are not, or not whole."""
    try:
        with open(index, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            sizes, errors = arrays["sizes"], json.loads(arrays["errors"].tobytes())
        path = index.with_suffix(".pixels")
        pixels = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, dtype=np.uint8)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    cache = DecodedImages(pixels, sizes, channels, {i: ImageError(name, reason) for i, name, reason in errors})
    return cache if cache.offsets[-1] == len(pixels) else None


def _decoded(
    images: ImageSet, fixed: InputSpec | None, skip_bad: bool, progress: bool
) -> Iterator[np.ndarray | ImageError]:
    """Every prepared image, or why it cannot be read, in order."""
    cores = usable_cores()
    if cores > 2 and len(images) >= _WORTH_PROCESSES:
        decoded = _in_pieces(images, fixed, skip_bad, cores)
    else:

        def one(index: int, _stopped: Stopped) -> np.ndarray | ImageError:
            return _one(images, fixed, skip_bad, index)

        # Pillow releases the GIL while it decodes and resizes, so threads are enough for few images.
        decoded = in_threads(one, range(len(images)), threads=cores, ahead=4 * cores)
    with contextlib.closing(decoded):
        yield from tqdm(
            decoded,
            total=len(images),
            desc="decoding",
            unit="img",
            disable=None if progress else True,  # none in a log file
            leave=False,
        )


def _one(images: ImageSet, fixed: InputSpec | None, skip_bad: bool, index: int) -> np.ndarray | ImageError:
    try:
        return np.ascontiguousarray(images.read(index, fixed))
    except ImageError as error:
        if not skip_bad:
            raise
        return ImageError(error.name, error.reason)  # without its traceback, which keeps the file's bytes


def _in_pieces(
    images: ImageSet, fixed: InputSpec | None, skip_bad: bool, processes: int
) -> Generator[np.ndarray | ImageError, None, None]:
    """The same by worker processes, which hand over the pixels of many images at a time: of small images, what Python does for each
    takes as long as the decoding, and only one thread at a time can do it."""
    piece = functools.partial(_piece, images, fixed, skip_bad)
    with contextlib.closing(in_processes(piece, range(0, len(images), _PIECE), processes=processes)) as pieces:
        for pixels, shapes in pieces:
            rest = pixels.numpy()
            for shape in shapes:
                if isinstance(shape, ImageError):
                    yield shape
                    continue
                size = math.prod(shape)
                yield rest[:size].reshape(shape)
                rest = rest[size:]


def _piece(
    images: ImageSet, fixed: InputSpec | None, skip_bad: bool, start: int, stopped: Stopped
) -> tuple[Tensor, list[tuple[int, ...] | ImageError]]:
    """The images from `start`: their pixels end to end, uint8 (bytes,), and the shape of each, or why it cannot be read."""
    found: list[np.ndarray | ImageError] = []
    for index in range(start, min(start + _PIECE, len(images))):
        if stopped():
            break
        found.append(_one(images, fixed, skip_bad, index))
    pixels = [image.reshape(-1) for image in found if not isinstance(image, ImageError)]
    together = torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *pixels]))
    return together, [image if isinstance(image, ImageError) else image.shape for image in found]
