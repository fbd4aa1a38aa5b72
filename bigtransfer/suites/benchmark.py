"""A set of images as its authors published it, and whether what lies here is that."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from bigtransfer.data import ImageSet
from bigtransfer.errors import DataError


class MissingData(DataError):
    """A benchmark's images are not here: the message says what to get, where, how large it is, and where to put it."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One published set of labelled images. `open` gives its parts, or says why they are not what was published."""

    name: str
    """As it stands in results: "imagenet-a"."""
    title: str
    revision: str
    """Which edition of the images and lists this is: "1.0", a date, a commit."""
    parts: Mapping[str, int | None]
    """Name of each part ("train", "val", "test", ...) -> images in it, as published; None where that is not known."""
    classes: int
    licence: str
    obtain: str
    """What to get and from where, as one would tell a colleague."""
    gigabytes: float | None
    """Of the download, roughly; None where nobody states it."""
    folders: tuple[str, ...]
    """Names under the root of all benchmarks at which it is looked for; the first is the one that is recommended."""
    read: Callable[[Path, Iterable[str]], Mapping[str, ImageSet]]
    """(folder, parts that are needed) -> those parts, labels numbered as the protocol numbers them. Raises DataError naming the file that
    is not as it should be; a part that is not there at all may be left out."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of parts whose lists are known: `index_digest`. Renamed, moved or relabelled images are noticed by it."""
    published_names: str = ""
    """Regular expression of an image's published name without ending, where copies are in use whose images have others, such as shards with
    running numbers: to those `digests` cannot apply."""
    per_class: Mapping[str, int] = field(default_factory=dict)
    """Of parts of which every class has equally many images: how many."""
    trainable: bool = True
    """Whether its licence allows to train on it."""

    def place(self, root: Path) -> Path | None:
        """Where it lies under `root`, if it does."""
        return next((root / name for name in self.folders if (root / name).exists()), None)

    def missing(self, root: Path) -> MissingData:
        """What to tell someone who has not got it."""
        size = ""
        if self.gigabytes is not None:
            size = f"{self.gigabytes:,.1f} GB; " if self.gigabytes >= 0.1 else f"{self.gigabytes * 1000:,.0f} MB; "
        return MissingData(
            f"{self.title} is not here. Get {self.obtain} ({size}{self.licence}), and put it at {root / self.folders[0]}"
        )

    def open(self, root: Path, needed: Iterable[str] | None = None) -> dict[str, ImageSet]:
        """The parts `needed` (None: all) below `root`.

        Raises MissingData where there is nothing, and DataError naming the numbers where there is something else than was published:
        part of it, other labels, another edition.
        """
        names = list(self.parts if needed is None else needed)
        folder = self.place(root)
        if folder is None:
            raise self.missing(root)
        try:
            found = self.read(folder, names)
        except OSError as error:
            raise DataError(
                f"{self.title} in {folder} cannot be read: {error.filename or folder}: {error.strerror or error}. Get {self.obtain}"
            ) from error
        for name in names:
            if name not in found:
                count = "" if self.parts[name] is None else f" Expected: {self.parts[name]:,} images."
                raise DataError(f"{self.title} in {folder} has no {name} part.{count} Get {self.obtain}")
            images, expected = found[name], self.parts[name]
            if expected is not None and len(images) != expected:
                raise DataError(
                    f"The {name} part of {self.title} in {folder} has {len(images):,} images, but {expected:,} were published: is the "
                    "copy complete, and nothing added?"
                )
            if len(images.class_names) != self.classes:
                raise DataError(
                    f"{self.title} in {folder} has {len(images.class_names):,} classes, but {self.classes:,} were published."
                )
            if name in self.per_class:
                counts, each = images.class_counts(), self.per_class[name]
                for odd in np.flatnonzero(counts != each)[:1].tolist():
                    raise DataError(
                        f"The {name} part of {self.title} in {folder} has {counts[odd]:,} images of the class "
                        f"{images.class_names[odd]}, but {each:,} of each were published: are the labels or folders mixed up?"
                    )
            if name in self.digests and self._as_published(images) and index_digest(images) != self.digests[name]:
                raise DataError(
                    f"The {name} part of {self.title} in {folder} has as many images as were published, but other names or labels: are the "
                    "lists or folders of another edition, or mixed up?"
                )
        return {name: found[name] for name in names}

    def _as_published(self, images: ImageSet) -> bool:
        """Whether images bear their published names; one is enough, as others may have been changed."""
        stems = (PurePosixPath(images.name(i)).stem for i in range(len(images)))
        return not self.published_names or any(re.fullmatch(self.published_names, stem) for stem in stems)


def index_digest(images: ImageSet) -> str:
    """SHA-256 of which images a set holds under which label numbers, whatever their order and folders: file names without folder and ending
    where there are such, each with its labels."""
    assert images.labels is not None
    lines = []
    for i, label in enumerate(np.asarray(images.labels).tolist()):
        stem = PurePosixPath(images.name(i)).stem
        lines.append(f"{stem}\t{label}".encode("utf-8", "surrogateescape"))
    return hashlib.sha256(b"\n".join(sorted(lines))).hexdigest()
