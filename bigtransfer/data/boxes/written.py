"""What annotation files say of an image, before anything of it is believed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bigtransfer.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """An object."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom: px from the image's corner, or, where `Written.relative`, shares of its width and height."""
    label: int
    """Its class, by its place in the class names."""
    crowd: bool = False
    """It is to be neither learnt nor counted: a crowd of COCO's, a difficult object of VOC's."""
    area: float | None = None
    """Px, if the file says it (COCO: that of the outline)."""


@dataclass(frozen=True, slots=True)
class Written:
    """An image."""

    path: str
    """Relative to the data set's folder, with forward slashes."""
    where: str
    """Its annotations, in messages."""
    rows: Sequence[Row]
    size: tuple[int, int] | None = None
    """Height and width, px, if the file says them."""
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """A data set."""

    root: Path
    parts: Mapping[str, Sequence[Written]]
    """By split: "train", "val", "test"; () of a set that is not divided is "train"."""
    class_names: tuple[str, ...]
    form: str
    """In words."""
    notes: tuple[str, ...] = field(default=())


def within(root: Path, folder: Path, name: str, where: str) -> str:
    """The path relative to `root` of the file that annotations call `name`, in `folder`. DataError where it leads out of `root`."""
    path = os.path.normpath(os.path.join(os.path.relpath(folder, root), name.replace("\\", "/")))
    if not name or "\0" in name or os.path.isabs(path) or path == ".." or path.startswith(".." + os.sep):
        raise DataError(
            f"{where} names the image {name!r}, which is not below {root}. Paths must lead to files of the data set."
        )
    return path.replace(os.sep, "/").removeprefix("./")
