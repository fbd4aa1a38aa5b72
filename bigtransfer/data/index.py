"""Shards with an index, as `bit shard` writes them: opened at once however many images they hold, here or elsewhere.

<folder>/
  train-000000.tar ...     WebDataset shards: 000000000.jpg and 000000000.cls (or .json, if images have several labels), and so on
  train.offsets.npy        int64 (n,): where each image begins in its shard, bytes
  train.lengths.npy        uint32 (n,): its bytes
  train.labels.npy         int32 (n,), or (n, k) padded with -1; absent if unlabelled
  train.names.txt          one line per image: what it was called where it came from; not needed to read the shards
  index.json               version, class names, and the files above with bytes and SHA-256; written last
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigtransfer import runs
from bigtransfer.data import remote
from bigtransfer.data.layout import listed
from bigtransfer.data.remote import Cache, RemoteFile
from bigtransfer.data.sources import ImageSet, Joined, RowNumbers, Splits, TarFiles, mapped
from bigtransfer.errors import DataError

FORMAT = "bigtransfer shards"
VERSION = 1
SPLITS = ("train", "val", "test")
PLAN = ".plan.json"
"""There as long as `bit shard` has not finished."""
KEY_DIGITS = 9
"""Of the running number of an image in its split, which is its key."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A file of the folder, as the index states it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard(Stated):
    images: int


@dataclass(frozen=True, kw_only=True)
class IndexedSplit:
    shards: tuple[Shard, ...]
    arrays: Mapping[str, Stated]
    """"offsets", "lengths", and "labels" unless unlabelled."""

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Index:
    class_names: tuple[str, ...]
    splits: Mapping[str, IndexedSplit]
    made: Mapping[str, Any]
    """By what, from what and with which settings."""

    @classmethod
    def read(cls, path: Path, shown: str) -> Index:
        """`index.json` from a file; DataError, which calls the file `shown`, if it is no index or a newer one."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                raise ValueError(f"its format is {found['format']!r}, not {FORMAT!r}")
            if found["version"] != VERSION:
                raise ValueError(f"its version is {found['version']}, this program reads {VERSION}; update bigtransfer")
            splits = {
                split: IndexedSplit(
                    shards=tuple(Shard(**shard) for shard in part["shards"]),
                    arrays={kind: Stated(**array) for kind, array in part["arrays"].items()},
                )
                for split, part in found["splits"].items()
            }
            for part in splits.values():
                for file in (*part.shards, *part.arrays.values()):
                    if not re.fullmatch(r"[\w-][\w.-]*", file.name):
                        raise ValueError(f"{file.name!r} is not the name of a file beside it")
            return cls(class_names=tuple(found["class_names"]), splits=splits, made=found["made"])
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{shown} is not an index of shards: {reason}.") from error

    def write(self, path: Path) -> None:
        """`index.json` to a file, atomically."""
        runs.write_json(path, {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)})

    def files(self) -> list[Stated]:
        """Every file but the index itself."""
        return [file for part in self.splits.values() for file in (*part.arrays.values(), *part.shards)]


def is_indexed(folder: Path) -> bool:
    """Whether `folder` holds shards with an index. DataError if it will, once `bit shard` has finished."""
    if (folder / PLAN).is_file() and not (folder / "index.json").is_file():
        raise DataError(f"{folder} is unfinished: the same `bit shard` command again goes on.")
    try:
        with open(folder / "index.json", encoding="utf-8") as file:
            return FORMAT in file.read(200)
    except (OSError, ValueError):
        return False


def open_folder(folder: Path, class_names: Sequence[str] | None, channels: int) -> Splits:
    """The shards in a folder of this machine."""
    index = Index.read(folder / "index.json", str(folder / "index.json"))
    present = {path.name for path in folder.iterdir()}
    if missing := [file.name for file in index.files() if file.name not in present]:
        raise DataError(f"{folder} lacks {listed(missing)}, which its index.json lists. Was it copied completely?")
    return _splits(index, str(folder), {file.name: folder / file.name for file in index.files()}, class_names, channels)


def open_address(address: str, cache: Path, shards: Cache, class_names: Sequence[str] | None, channels: int) -> Splits:
    """The shards in a folder at `address`. The index is kept under `cache`; shards are fetched into `shards` when they are read."""
    base = address.removesuffix("index.json").rstrip("/")
    place = cache / "indexes" / hashlib.sha256(base.encode()).hexdigest()[:16]
    try:
        path = remote.renewed(f"{base}/index.json", place / "index.json")
    except DataError as error:
        raise DataError(f"{base} cannot be opened as a folder that `bit shard` wrote. {error}") from error
    index = Index.read(path, f"{base}/index.json")
    kept = Cache(
        place, 1 << 62
    )  # nothing is removed: small beside the shards, and mapped into memory while the set is in use
    files: dict[str, Path | RemoteFile] = {}
    for part in index.splits.values():
        for array in part.arrays.values():
            files[array.name] = RemoteFile(f"{base}/{array.name}", kept, array.bytes, array.sha256).local()
        for shard in part.shards:
            files[shard.name] = RemoteFile(f"{base}/{shard.name}", shards, shard.bytes, shard.sha256)
    return _splits(index, base, files, class_names, channels)


def _splits(
    index: Index,
    where: str,
    files: Mapping[str, Path | RemoteFile],
    class_names: Sequence[str] | None,
    channels: int,
) -> Splits:
    stores: list[TarFiles] = []
    sets: dict[str, tuple[range, np.ndarray | None]] = {}
    row = 0
    for split, part in index.splits.items():
        arrays = {kind: _array(files[array.name], part.images) for kind, array in part.arrays.items()}
        ends = np.cumsum([0, *(shard.images for shard in part.shards)], dtype=np.int64)
        names = RowNumbers(
            (f"{shard.name.removesuffix('.tar')}/" for shard in part.shards), ends[:-1], ends, KEY_DIGITS
        )
        tars = [files[shard.name] for shard in part.shards]
        sizes = [shard.bytes for shard in part.shards]
        stores.append(TarFiles(tars, ends, arrays["offsets"], arrays["lengths"], names, sizes))
        sets[split] = (range(row, row + part.images), arrays.get("labels"))
        row += part.images
    store = Joined(stores)
    given = index.class_names if class_names is None else tuple(class_names)
    opened = {}
    for split, (rows, labels) in sets.items():
        if labels is not None and given != index.class_names:
            labels = _renumbered(labels, index.class_names, given, f"{where}: {split}")
        opened[split] = ImageSet(store, rows, labels, () if labels is None else given, channels)
    if "train" not in opened:
        raise DataError(f"{where} has {listed(opened)} but no train split.")
    return Splits(opened["train"], opened.get("val"), opened.get("test"))


def _array(file: Path | RemoteFile, images: int) -> np.ndarray:
    assert isinstance(file, Path)
    try:
        array = mapped(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is damaged: {error}") from error
    if len(array) != images or array.dtype.kind not in "iu":
        raise DataError(f"{file} has {len(array)} numbers of type {array.dtype} for {images} images: it is damaged.")
    return array


def _renumbered(labels: np.ndarray, names: tuple[str, ...], given: tuple[str, ...], where: str) -> np.ndarray:
    """The labels as numbers in another list of classes, which must have all that occur."""
    number = {name: label for label, name in enumerate(given)}
    used = np.unique(labels)
    if extra := [names[label] for label in used if label >= 0 and names[label] not in number]:
        raise DataError(f"{where} has classes that are not in the list of classes: {listed(extra)}.")
    known = np.array([*(number.get(name, -1) for name in names), -1], dtype=np.int32)  # -1 finds the last
    return known[np.asarray(labels)]
