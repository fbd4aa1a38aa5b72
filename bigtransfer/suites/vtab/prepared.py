"""Data sets that TensorFlow Datasets has prepared, read without it: a folder NAME/[CONFIG/]VERSION of `dataset_info.json` and record files.

The order of the records is TFDS's order of the set (order.py computes the same from names), so that a slice is a run of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from bigtransfer import records
from bigtransfer.data import ImageSet
from bigtransfer.data.sources import Store, Strings, TarFiles
from bigtransfer.errors import DataError
from bigtransfer.suites.stores import Brighter
from bigtransfer.suites.vtab import labels, tfrecord
from bigtransfer.suites.vtab.sources import Following, Pool, Slice, joined, pieces
from bigtransfer.suites.vtab.tfrecord import Example

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A set of TFDS, and what a task takes of its examples."""

    name: str
    major: tuple[int, ...]
    """First numbers of the versions whose order and labels are those of the protocol."""
    config: str = ""
    label: Callable[[Example], int]
    called: str = ""
    """The feature that says how an image is called; "": by its place."""
    bright: int = 1
    """What the stored pixels are multiplied by."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Names under the root of all benchmarks at which it may lie: TFDS's own folder of sets may be linked there, or be the root."""
        return f"tensorflow_datasets/{self.name}", self.name

    def find(self, folder: Path) -> Path | None:
        """The version's folder in or below `folder`; None if that is no set of TFDS. DataError if there is only another version."""
        found: dict[tuple[int, ...], Path] = {}
        for place in dict.fromkeys((folder / self.config, folder)):
            for one in sorted(place.iterdir()) if place.is_dir() else ():
                if re.fullmatch(r"\d{1,6}(\.\d{1,6}){2}", one.name, re.ASCII) and (one / "dataset_info.json").is_file():
                    found.setdefault(tuple(map(int, one.name.split("."))), one)
        if not found:
            return folder if (folder / "dataset_info.json").is_file() else None
        fitting = [version for version in found if version[0] in self.major]
        if not fitting:
            wanted = " or ".join(f"{number}.*" for number in self.major)
            raise DataError(
                f"{folder} holds {', '.join(one.name for one in found.values())} of TensorFlow Datasets' {self.name}; the protocol is that "
                f"of version {wanted}."
            )
        return found[max(fitting)]


class _Split(msgspec.Struct):
    name: str
    shardLengths: list[str]
    filepathTemplate: str = _TEMPLATE


class _Info(msgspec.Struct):
    """The form of dataset_info.json, as far as it matters here."""

    name: str
    version: str
    splits: list[_Split]
    configName: str = ""
    fileFormat: str = "tfrecord"


def read(
    prepared: Prepared,
    pools: Mapping[str, int],
    parts: Mapping[str, Slice],
    classes: int,
    folder: Path,
    needed: Iterable[str],
) -> dict[str, ImageSet]:
    """Those parts ("train1000" is "train800" followed by "val200") of the set in a version's folder. pools: how many images each of its
    splits has. Raises DataError."""
    try:
        info = records.read(folder / "dataset_info.json", _Info, DataError)
        if info.name != prepared.name or (info.configName or "") != prepared.config:
            wanted = "/".join(filter(None, (prepared.name, prepared.config)))
            raise ValueError(f"it is the set {info.name} {info.configName}, not {wanted}")
        if not info.version.partition(".")[0].isdecimal() or int(info.version.partition(".")[0]) not in prepared.major:
            raise ValueError(f"it is version {info.version[:40]}")
        if info.fileFormat != "tfrecord":
            raise ValueError(f"its files are of the form {info.fileFormat[:40]}, not tfrecord")
        found = {}
        for part in needed:
            own = [(one, _pool(prepared, info, folder, pools[one.split], one)) for one in pieces(parts, part)]
            for _, pool in own:
                low, high = int(pool.labels.min()), int(pool.labels.max())
                if low < 0 or high >= classes:
                    raise ValueError(f"its labels are {low} to {high} instead of 0 to {classes - 1}")
            found[part] = joined([(pool, np.arange(len(pool.keys))) for _, pool in own], classes)
        return found
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} does not hold what TensorFlow Datasets makes of {prepared.name}: {error}. Make it anew, or take vtab-1k."
        ) from error


def _pool(prepared: Prepared, info: _Info, folder: Path, count: int, wanted: Slice) -> Pool:
    """The images of a slice, in the order of their records."""
    split = next((one for one in info.splits if one.name == wanted.split), None)
    if split is None:
        raise ValueError(f"it has no split {wanted.split}")
    if split.filepathTemplate not in (_TEMPLATE, ""):
        raise ValueError(f"its files are named in another way than TFDS names them: {split.filepathTemplate[:80]}")
    if not all(re.fullmatch(r"\d{1,12}", one, re.ASCII) for one in split.shardLengths):
        raise ValueError(f"the lengths of the files of {wanted.split} are no numbers")
    lengths = [int(one) for one in split.shardLengths]
    if sum(lengths) != count:
        raise ValueError(f"{wanted.split} has {sum(lengths):,} images, but {count:,} were published")
    stop = count if wanted.stop is None else wanted.stop
    files: list[Path] = []
    names: list[str] = []
    labelled: list[int] = []
    offsets: list[int] = []
    sizes: list[int] = []
    runs, begin = [0], 0
    for number, length in enumerate(lengths):
        own = range(max(wanted.start - begin, 0), min(stop - begin, length))
        if own:
            file = folder / f"{prepared.name}-{wanted.split}.tfrecord-{number:05d}-of-{len(lengths):05d}"
            for place, (start, record) in zip(own, tfrecord.records(file, own, length), strict=True):
                image, label, name = _image(prepared, file, record)
                names.append(name or f"{wanted.split}/{begin + place:06d}")
                labelled.append(label)
                offsets.append(start + image.start)
                sizes.append(image.stop - image.start)
            files.append(file)
            runs.append(len(names))
        begin += length
    inner: Store = TarFiles(files, np.array(runs), np.array(offsets), np.array(sizes), Strings(names))
    store = inner if prepared.bright == 1 else Brighter(inner, prepared.bright)
    whole = ImageSet(store, range(len(names)), np.array(labelled), ())
    return Pool(
        keys=range(len(names)),
        labels=np.array(labelled, np.int64),
        images=lambda places: Following([whole.subset(places)]),
    )


def _image(prepared: Prepared, file: Path, record: bytes) -> tuple[slice, int, str]:
    """Where the image is in a record, its label and its name."""
    try:
        one = tfrecord.example(record)
        return one.texts("image", 1)[0], prepared.label(one), one.text(prepared.called) if prepared.called else ""
    except ValueError as error:
        raise ValueError(f"{file.name} has an example that is none of this set: {error}") from None


# --- Labels of what is no classification in TFDS

_KITTI_TYPES = ("Car", "Van", "Truck")
"""Of an object's types the first."""


def clevr_count(one: Example) -> int:
    """By the number of objects."""
    return int(labels.clevr_count(np.array([len(one.numbers("objects/shape"))]))[0])


def clevr_distance(one: Example) -> int:
    """By the depth of the closest object."""
    return labels.clevr_distance(_third(one, "objects/pixel_coords", 1).tolist())


def kitti_distance(one: Example) -> int:
    """By the distance of the closest vehicle."""
    kinds, distances = one.numbers("objects/type"), _third(one, "objects/location")
    if len(kinds) != len(distances):
        raise ValueError(f"it has {len(kinds)} types of objects and {len(distances)} places")
    named = [_KITTI_TYPES[kind] if 0 <= kind < len(_KITTI_TYPES) else "" for kind in kinds.tolist()]
    return labels.kitti_distance(zip(named, distances.tolist(), strict=True))


def _third(one: Example, name: str, least: int = 0) -> np.ndarray:
    """The last of the three coordinates of each object."""
    values = one.numbers(name, 3 * least, np.float32)
    if len(values) % 3:
        raise ValueError(f"{name} is not three numbers for each object")
    return values[2::3]


def number(name: str, of: Callable[[int], int] = int) -> Callable[[Example], int]:
    """The label that is made of a feature's only number."""
    return lambda one: of(int(one.numbers(name, 1)[0]))
