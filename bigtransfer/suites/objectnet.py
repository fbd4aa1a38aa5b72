"""ObjectNet (Barbu et al. 2019): objects in unusual poses, places and views, answered by a classifier of ILSVRC-2012. Never to train on.

Which answers compete is told nowhere in BiT's paper, which follows Barbu et al. and Borji (2020): there all 1,000 do ("all-1000"), the
default here. "restricted-125" (imagenet-testbed) leaves only the classes that ObjectNet has, "collapsed-113" the best class of each folder;
both give some ten points more.
"""

from __future__ import annotations

import functools
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np

from bigtransfer import files, records
from bigtransfer.data import ImageSet, open_images
from bigtransfer.data.layout import listed
from bigtransfer.data.sources import Files
from bigtransfer.errors import DataError
from bigtransfer.suites.benchmark import Benchmark, MissingData
from bigtransfer.suites.ilsvrc import CLASSES, packaged
from bigtransfer.suites.imagenet import Places, head_note, places_of_best, scores
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol
from bigtransfer.suites.stores import Cropped
from bigtransfer.suites.suite import Suite, Task

BORDER = 2
"""Red pixels on every side of every image, by which copies on the web can be told; no part of the photograph."""


@dataclass(frozen=True)
class Folder:
    """One of the 113 kinds of objects that ILSVRC-2012 has too."""

    folder: str
    id: int
    """ObjectNet's own number, 0 to 312."""
    imagenet: tuple[int, ...]
    """The classes of ILSVRC-2012 that are right: 125 in all, none in two folders."""


@functools.cache
def folders() -> tuple[Folder, ...]:
    """Sorted by name; a label is the place in here."""
    return tuple(records.decode(packaged("objectnet.json"), list[Folder], "objectnet.json", DataError))


def _memberships() -> np.ndarray:
    """bool (113, 1000): whether a class is right for a folder."""
    table = np.zeros((len(folders()), CLASSES), dtype=bool)
    for row, folder in zip(table, folders(), strict=True):
        row[list(folder.imagenet)] = True
    return table


# --- Protocols


PAPER = Preparation(mode="aspect", size=480, resized=512)
BOXED = Preparation(mode="square", size=480)


@dataclass(frozen=True, kw_only=True)
class ObjectNet(Protocol):
    """Whether a class of the object is answered first, or among the first five."""

    name: ClassVar[str] = "objectnet"
    needs: ClassVar[tuple[str, ...]] = ("test",)
    source: ClassVar[str] = (
        "BiT, appendix B: shorter side to 512 px, the central 480 x 480, after the border is removed. Which classes compete is not stated "
        "there; all 1,000 as in the dataset authors' example and Borji 2020, decided here. Averages over images (the authors) and over "
        "the 113 folders (Borji)."
    )

    preparation: Preparation = PAPER
    rule: Literal["all-1000", "restricted-125", "collapsed-113"] = "all-1000"
    """Which answers compete: all classes, those of ObjectNet, or its folders, each with the highest logit of its classes."""

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        """top-1 and top-5, over images and as the mean over folders."""
        images = bench.parts[self.needs[0]]
        assert images.labels is not None
        member = _memberships()
        compete = member.any(axis=0) if self.rule == "restricted-125" else np.ones(CLASSES, dtype=bool)
        places = Places(len(images))
        for values, labels, indices in scores(bench, images, self.preparation):
            if self.rule == "collapsed-113":
                best = np.stack([values[:, row].max(axis=1) for row in member], axis=1)
                places.add(indices, places_of_best(best, np.arange(len(member)) == labels[:, None]))
            else:
                places.add(indices, places_of_best(values[:, compete], member[labels][:, compete]))
        labels, note = np.asarray(images.labels), head_note(bench.card)
        return [
            places.share("top-1", 1, note),
            places.share("top-5", 5, note),
            places.mean_per_class("mean-per-class", 1, labels, note),
            places.mean_per_class("mean-per-class-top-5", 5, labels, note),
        ]


@dataclass(frozen=True, kw_only=True)
class ObjectNetBoxes(ObjectNet):
    """On the object alone, cut out by its box."""

    name: ClassVar[str] = "objectnet-box"
    needs: ClassVar[tuple[str, ...]] = ("boxes",)
    source: ClassVar[str] = (
        "BiT, appendix B, follows Borji 2020: the box is cut out and both sides resized; here to 480 px, which the paper leaves open. "
        "Borji gives means over the 113 folders. What of a box lies on the border is left out."
    )

    preparation: Preparation = BOXED


# --- Images


def _read(folder: Path, parts: Iterable[str]) -> dict[str, ImageSet]:
    plain = _answered(folder) or _in_folders(folder)
    _see_border(plain, folder)
    found = {}
    for part in parts:
        boxes = _boxes_of(plain, folder) if part == "boxes" else None
        found[part] = replace(plain, store=Cropped(plain.store, BORDER, boxes))
    return found


def _in_folders(folder: Path) -> ImageSet:
    """The images in the 113 folders, as they are, whatever other folders there are."""
    known = [one.folder for one in folders()]
    place = next(
        (
            base
            for base in (folder, *(folder / name for name in ("images", "objectnet-1.0/images", "objectnet-1.0")))
            if any((base / name).is_dir() for name in known)
        ),
        None,
    )
    if place is None:
        raise DataError(f"{folder} has no folders of ObjectNet (images/alarm_clock and so on).")
    if lost := [name for name in known if not (place / name).is_dir()]:
        raise DataError(f"{place} lacks folders of ObjectNet: {listed(lost)}. Is the copy complete?")
    paths, labels = [], []
    for label, name in enumerate(known):
        images = sorted(
            path.name
            for path in (place / name).iterdir()
            if path.suffix.lower() == ".png" and not path.name.startswith(".")
        )
        paths += [f"{name}/{image}" for image in images]
        labels += [label] * len(images)
    return ImageSet(Files(place, paths), np.arange(len(paths)), np.array(labels, dtype=np.int64), tuple(known))


def _answered(folder: Path) -> ImageSet | None:
    """Images side by side with their answers, as the authors' challenge has them (file name -> ObjectNet's number); None if it is not so.
    Those of other objects than the 113 are left out."""
    answers = sorted((folder / "answers").glob("*.json"))
    if not answers or not (folder / "images").is_dir():
        return None
    number = {one.id: label for label, one in enumerate(folders())}
    known: dict[str, int] = {}
    for file in answers:
        known |= records.read(file, dict[str, int], DataError)
    images = open_images([folder / "images"])
    names = [PurePosixPath(images.name(i)).name for i in range(len(images))]
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"{folder / 'answers'} does not say what {listed(unknown)} show.")
    kept = [i for i, name in enumerate(names) if known[name] in number]
    labels = np.array([number[known[names[i]]] for i in kept], dtype=np.int64)
    store = Files(folder / "images", names)
    return ImageSet(store, np.array(kept, dtype=np.int64), labels, tuple(one.folder for one in folders()))


def _see_border(images: ImageSet, folder: Path) -> None:
    """DataError if the first image has no border: it was removed, or the images were resized, and every box would be wrong."""
    if not len(images):
        return
    pixels = images.read(0)
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    red = (pixels[~inside] == (255, 0, 0)).all(axis=1)
    if red.mean() < 0.9:
        raise DataError(
            f"{images.name(0)} in {folder} has no red border of {BORDER} px, which every image of ObjectNet has: this is an edited copy. "
            "Take the images as they were published; the border is removed here."
        )


# --- Boxes


_BOXES = ("Annotations.zip", "objectnet_bbox_Annotations.zip")
_PASSWORD = b"objectnet1234"
"""Printed by the annotations' authors beside the archive: it keeps the boxes out of what is gathered on the web, not out of reach."""
_FILE_BYTES = 1 << 20
"""Of one folder's boxes; the largest has some 10 KB."""


def _boxes_of(images: ImageSet, folder: Path) -> np.ndarray:
    """int64 (rows, 4), as `Cropped` takes them."""
    archive = next(
        (base / name for base in (folder, folder.parent) for name in _BOXES if (base / name).is_file()), None
    )
    if archive is None:
        raise MissingData(
            "The boxes of ObjectNet are not here. Get Annotations.zip from github.com/aliborji/ObjectNetReanalysis (0.6 MB), and put it, "
            f"as it is, at {folder / _BOXES[0]}"
        )
    boxes = read_boxes(archive)
    table = np.zeros((int(np.asarray(images.rows).max(initial=-1)) + 1, 4), dtype=np.int64)
    lost = []
    for i, row in enumerate(np.asarray(images.rows).tolist()):
        name = PurePosixPath(images.name(i)).name
        if name in boxes:
            table[row] = boxes[name]
        else:
            lost.append(images.name(i))
    if lost:
        raise DataError(
            f"{archive} has no box for {len(lost):,} of {len(images):,} images, such as {listed(lost[:3])}."
        )
    return table


def read_boxes(archive: Path) -> Mapping[str, tuple[int, int, int, int]]:
    """File name of an image -> x1, y1, x2, y2 in px of the image with its border, of the 113 folders. DataError if it is no such archive.

    A box without width or height, of which there are two, is kept as it is: `Cropped` leaves a row or column of it.
    """
    found: dict[str, tuple[int, int, int, int]] = {}
    wanted = {f"{one.folder}.txt" for one in folders()}
    try:
        with files.opened(archive) as file, zipfile.ZipFile(file) as packed:
            for entry in packed.infolist():
                if PurePosixPath(entry.filename).name not in wanted or "__MACOSX" in entry.filename:
                    continue
                if entry.file_size > _FILE_BYTES:
                    raise DataError(f"{archive}: {entry.filename} has {entry.file_size:,} bytes, too many for boxes.")
                for number, line in enumerate(packed.read(entry, _PASSWORD).decode("utf-8").splitlines(), 1):
                    if not line.strip():
                        continue
                    match = re.fullmatch(r"\s*(\S+\.png)" + r"\s+(\d{1,6})" * 4 + r"\s*", line)
                    if match is None:
                        raise DataError(
                            f"{archive}: {entry.filename}, line {number}: an image and four numbers were expected, not {line[:60]!r}."
                        )
                    x1, y1, x2, y2 = map(int, match.groups()[1:])
                    if x2 < x1 or y2 < y1:
                        raise DataError(f"{archive}: {entry.filename}, line {number}: the box ends before it begins.")
                    found[match[1]] = (x1, y1, x2, y2)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{archive} cannot be read as the archive of ObjectNet's boxes: {error}.") from error
    return found


# --- The suite


OBJECTNET = Benchmark(
    name="objectnet",
    title="ObjectNet",
    revision="1.0",
    parts={"test": 18_574, "boxes": 18_574},
    classes=113,
    licence="its own: for testing only, no parameter of a model may be changed by its images",
    obtain="objectnet-1.0.zip from objectnet.dev (or a copy of the 113 folders that ILSVRC-2012 has too)",
    gigabytes=190,
    folders=("objectnet", "objectnet-1.0"),
    read=_read,
    trainable=False,
)
OBJECTNET_BETA = replace(
    OBJECTNET,
    revision="beta",
    title="ObjectNet (beta edition)",
    parts={"test": 18_514},
    folders=("objectnet-beta",),
)
"""As imagenet-testbed distributed it, and measured its table on."""


def _task(name: str, benchmark: Benchmark = OBJECTNET, boxes: bool = False, **settings: Any) -> Task:
    protocol = ObjectNetBoxes(**settings) if boxes else ObjectNet(**settings)
    return Task(name=name, benchmark=benchmark, protocol=protocol)


_TESTBED = {"preparation": BOXED, "rule": "restricted-125"}
SUITE = Suite(
    name="objectnet",
    title="ObjectNet",
    tasks=(_task("objectnet"), _task("objectnet-box", boxes=True)),
    extra=(
        _task("objectnet/restricted-125", rule="restricted-125"),
        _task("objectnet/collapsed-113", rule="collapsed-113"),
        _task("objectnet/card", preparation=Preparation()),
        _task("objectnet/testbed", **_TESTBED),
        _task("objectnet/testbed-beta", OBJECTNET_BETA, **_TESTBED),
        _task("objectnet-box/restricted-125", boxes=True, rule="restricted-125"),
        _task("objectnet-box/collapsed-113", boxes=True, rule="collapsed-113"),
        _task("objectnet-box/own-size", boxes=True, preparation=Preparation(mode="square")),
    ),
)
