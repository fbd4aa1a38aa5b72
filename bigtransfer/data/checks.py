"""Finding what is wrong with the images of a data set before hours of training depend on them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from bigtransfer.bars import tqdm
from bigtransfer.data import containers, splits
from bigtransfer.data import images as image_ops
from bigtransfer.data.layout import listed
from bigtransfer.data.sources import Files, ImageSet, Splits
from bigtransfer.errors import DataError, ImageError, UnreadableImages

T = TypeVar("T")


def check(images: ImageSet, *, skip_bad: bool = False, progress: bool = False) -> tuple[ImageSet, list[ImageError]]:
    """The set without the images that cannot be decoded, and the reason for each of those.

    Raises UnreadableImages, which lists all of them, if there are any and not `skip_bad`; DataError if a class loses its last image.
    Every image is decoded once, in a thread per core (Pillow decodes outside of Python's lock). progress: show a bar on stderr.
    """
    found = _for_each(images, _decode_error, "Checking images" if progress else None)
    bad = {i: error for i, error in enumerate(found) if error is not None}
    errors = list(bad.values())
    if not bad:
        return images, errors
    if not skip_bad:
        raise UnreadableImages(errors, len(images))
    kept = images.subset(np.setdiff1d(np.arange(len(images)), list(bad)))
    labelled = images.labels is not None
    lost = np.flatnonzero((images.class_counts() > 0) & (kept.class_counts() == 0)) if labelled else ()
    if len(lost) or not len(kept):
        what = f"no image of {listed(images.class_names[label] for label in lost)}" if len(lost) else "no image"
        raise DataError(f"{what[0].upper()}{what[1:]} can be read. {UnreadableImages(errors, len(images))}")
    return kept, errors


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One of several images that are the same byte for byte."""

    part: str
    """Of the data set: "train", "val", "test"."""
    name: str
    classes: tuple[str, ...]
    """Names of its classes; empty if it has no labels."""


def find_copies(parts: Mapping[str, ImageSet]) -> list[list[Copy]]:
    """Images that are the same byte for byte, within a part or between parts: all that are alike together, in the order of the parts.

    Images that cannot be read are passed over.
    """
    seen: dict[bytes, tuple[str, int]] = {}
    alike: dict[bytes, list[tuple[str, int]]] = {}
    for part, images in parts.items():
        for i, digest in enumerate(_for_each(images, _digest)):
            if digest is None:
                continue
            first = seen.setdefault(digest, (part, i))
            if first != (part, i):
                alike.setdefault(digest, [first]).append((part, i))
    return [
        [Copy(part=part, name=parts[part].name(i), classes=_classes(parts[part], i)) for part, i in group]
        for group in alike.values()
    ]


_ASKED = 5_000
"""Images of which the files' traits are looked at, at most."""


def file_traits(images: ImageSet) -> tuple[dict[str, Sequence[str] | np.ndarray], np.ndarray]:
    """What the files of (a part of) these images say without a look at their pixels, by the names of the traits, and the labels
    int64 `(n,)`.

    Nothing is decoded; images that cannot be opened are passed over. images: of one label each.
    """
    some = splits.evenly(images, _ASKED, seed=0)
    assert some.labels is not None
    seen = [(fact, label) for fact, label in zip(_for_each(some, _file_facts), some.labels, strict=True) if fact]
    facts, labels = [fact for fact, _ in seen], np.array([label for _, label in seen], dtype=np.int64)
    height, width = (np.array([fact[place] for fact in facts], dtype=np.float64) for place in (0, 1))
    traits = {
        "height and width": [f"{fact[0]} x {fact[1]}" for fact in facts],
        "number of pixels": height * width,
        "shape (width by height)": width / height,
        "file type": [fact[2] for fact in facts],
    }
    return traits, labels


def _file_facts(images: ImageSet, i: int) -> tuple[int, int, str] | None:
    """Height, width and type."""
    try:
        if not images.store.encoded:
            return (*images.size(i), "")
        data = images.data(i)
        return (*image_ops.size(data, images.name(i)), containers.kind_of(data) or "")
    except ImageError:
        return None


_COMPARED = 50_000
"""The most images whose contents a fingerprint takes in: their bytes are read each time it is asked for."""


def fingerprint(data: Splits) -> str:
    """A digest of which images a data set holds, in which parts, with which classes; and of the contents of at most `_COMPARED` images that
    lie here as files, loose or packed, of more the sizes of loose ones."""
    digest = hashlib.sha256()
    few = sum(map(len, data.parts().values())) <= _COMPARED
    for part, images in data.parts().items():
        digest.update(json.dumps([part, *images.class_names]).encode())
        if images.labels is not None:
            digest.update(np.ascontiguousarray(images.labels, dtype="<i8").tobytes())
        for i in range(len(images)):
            digest.update(images.name(i).encode("utf-8", "surrogateescape") + b"\0")
        # Of what is gone or not to be looked at the name counts.
        if images.store.encoded and not images.store.remote and few:
            digest.update(b"".join(content or b"\0" for content in _for_each(images, _digest)))
        elif isinstance(images.store, Files):
            for row in map(int, images.rows):
                with contextlib.suppress(OSError):
                    digest.update(b"%d\0" % images.store.path(row).stat().st_size)
    return digest.hexdigest()


def contents(images: ImageSet) -> list[str]:
    """Of each image 16 hexadecimal digits that tell its bytes from others'; empty for one that cannot be read, lies elsewhere or is stored
    decoded, and where there are more than `_COMPARED`."""
    if not images.store.encoded or images.store.remote or len(images) > _COMPARED:
        return [""] * len(images)
    return ["" if digest is None else digest.hex()[:16] for digest in _for_each(images, _digest)]


def leaked(copies: Sequence[Copy]) -> bool:
    """Whether they are in several parts: what is trained on and measured on too makes the result look better than it is."""
    return len({copy.part for copy in copies}) > 1


def contradictory(copies: Sequence[Copy]) -> bool:
    """Whether one picture stands under different classes, of which only one can be right."""
    return len({frozenset(copy.classes) for copy in copies if copy.classes}) > 1


def _classes(images: ImageSet, i: int) -> tuple[str, ...]:
    if images.labels is None:
        return ()
    return tuple(images.class_names[label] for label in np.atleast_1d(images.labels[i]) if label >= 0)


def _decode_error(images: ImageSet, i: int) -> ImageError | None:
    try:
        images.read(i)
    except ImageError as error:
        return ImageError(
            error.name, error.reason
        )  # without its traceback, which would keep the image's bytes in memory
    return None


def _digest(images: ImageSet, i: int) -> bytes | None:
    try:
        return hashlib.blake2b(images.data(i), digest_size=16).digest()
    except ImageError:
        return None


def _for_each(images: ImageSet, job: Callable[[ImageSet, int], T], title: str | None = None) -> list[T]:
    """The results of `job(images, i)` for every image, in order, worked out in threads; with a bar if it has a title."""
    blocks = [range(start, min(start + 32, len(images))) for start in range(0, len(images), 32)]
    results: list[T] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(images), desc=title, unit="img", disable=None if title else True, leave=False) as bar,
    ):
        for block in pool.map(lambda block: [job(images, i) for i in block], blocks):
            results += block
            bar.update(len(block))
    return results
