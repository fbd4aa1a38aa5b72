"""Shards with an index, as `bit shard` writes them: opened at once however many images they hold, here or elsewhere.

<folder>/
  train-000000.tar ...     WebDataset shards: 000000000.jpg and 000000000.cls (or .json, if images have several labels), and so on
  train.offsets.npy        int64 (n,): where each image begins in its shard, bytes
  train.lengths.npy        uint32 (n,): its bytes
  train.labels.npy         int32 (n,), or (n, k) padded with -1; absent if unlabelled
  train.names.txt          one line per image: what it was called where it came from; not needed to read the shards
  index.json               version, class names, and the files above with bytes and SHA-256; written last

Of `bit shard --raw` (version 2) the members are 000000000.rgb or .grey, the pixels of an image as a model takes it, uint8 in the order of
rows, columns, channels; index.json says under `raw` for which input, and there are two more arrays:
  train.heights.npy        uint32 (n,): px of the image that the record was made of
  train.widths.npy         uint32 (n,)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from bigtransfer import files, records, runs
from bigtransfer.catalog import InputSpec
from bigtransfer.data import remote
from bigtransfer.data.images import Pixels
from bigtransfer.data.layout import listed
from bigtransfer.data.remote import Cache, RemoteFile
from bigtransfer.data.sources import ImageSet, Joined, RowNumbers, Splits, TarFiles, mapped
from bigtransfer.errors import DataError, ImageError
from bigtransfer.limits import limits

FORMAT = "bigtransfer shards"
VERSION, RAW_VERSION = 1, 2
"""Of indexes of image files and of raw records, which earlier programs cannot read."""
SPLITS = ("train", "val", "test")
PLAN = ".plan.json"
"""There as long as `bit shard` has not finished."""
KEY_DIGITS = 9
"""Of the running number of an image in its split, which is its key."""


NotNegative = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
CHECKED = 1 << 24
"""Images whose numbers are all looked at when a split is opened; of more, as many in pieces here and there, so that opening stays fast."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """A file of the folder, as the index states it."""

    name: str
    bytes: NotNegative
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard(Stated):
    images: NotNegative


@dataclass(frozen=True, kw_only=True)
class IndexedSplit:
    shards: tuple[Shard, ...]
    arrays: Mapping[str, Stated]
    """"offsets", "lengths", and "labels" unless unlabelled."""

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Raw:
    """The form of raw records."""

    input: InputSpec
    """As what a model of this input sees they were made; its decoder too."""
    channels: Literal[1, 3]

    @property
    def bytes(self) -> int:
        """Of a record."""
        return self.input.size**2 * self.channels

    @property
    def ending(self) -> str:
        return "rgb" if self.channels == 3 else "grey"

    def said(self) -> str:
        """The input in words."""
        return _in_words(self.input, self.channels)


def _in_words(spec: InputSpec, channels: int) -> str:
    crop = "" if spec.mode == "square" else f" cut from {spec.resized} px"
    filter_ = f"{spec.interpolation}{'' if spec.antialias else ', not antialiased'}"
    return f"{spec.size} x {spec.size} px{crop}, {channels} channel{'s' if channels > 1 else ''}, {filter_}, decoder {spec.decoder}"


class RawRecords(TarFiles):
    """Pixels of images that were prepared for one kind of input."""

    encoded = False

    def __init__(self, *given: Any, form: Raw, heights: np.ndarray, widths: np.ndarray) -> None:
        super().__init__(*given)
        self._form, self._heights, self._widths = form, heights, widths

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> Pixels:
        """The pixels as they are stored. DataError if they are wanted for another input than they were made for."""
        form = self._form
        if channels != form.channels or (spec is not None and spec != form.input):
            wanted = f"images of {channels} channels" if spec is None else _in_words(spec, channels)
            raise DataError(
                f"{self.tars[self._tar(row)]} holds raw pixels for an input of {form.said()}; wanted is {wanted}. Write other shards with "
                "`bit shard --raw`, or give the images themselves."
            )
        data = self.data(row)
        if len(data) != form.bytes:
            raise ImageError(self._place(row), f"the record has {len(data):,} bytes instead of {form.bytes:,}")
        return np.frombuffer(data, np.uint8).reshape(form.input.size, form.input.size, channels).copy()

    def size(self, row: int) -> tuple[int, int]:
        return int(self._heights[row]), int(self._widths[row])


@dataclass
class _Head:
    format: str
    version: int = 0


@dataclass(frozen=True, kw_only=True)
class Index:
    class_names: tuple[str, ...]
    splits: Mapping[str, IndexedSplit]
    made: Mapping[str, Any]
    """By what, from what and with which settings."""
    raw: Raw | None = None
    """Of raw records; None: the shards hold image files."""

    @classmethod
    def read(cls, path: Path, shown: str) -> Index:
        """`index.json` from a file; DataError, which calls the file `shown`, if it is no index or a newer one."""
        try:
            content = files.read(path, "record_bytes")
        except OSError as error:
            raise DataError(f"{shown} is not an index of shards: {error.strerror}.") from error
        where = f"{shown} is not an index of shards"
        found = records.parse(content, where, DataError)
        head = records.convert(found, _Head, where, DataError)
        if head.format != FORMAT:
            raise DataError(f"{where}: its format is {head.format!r}, not {FORMAT!r}.")
        if head.version not in (VERSION, RAW_VERSION):
            raise DataError(
                f"{where} for this program: its version is {head.version}, this program reads {VERSION} and {RAW_VERSION}; update "
                "bigtransfer."
            )
        index = records.convert(found, cls, where, DataError)
        if (index.raw is not None) != (head.version == RAW_VERSION):
            raise DataError(
                f"{where}: version {head.version} {'lacks' if index.raw is None else 'has no'} raw records."
            )
        if index.raw is not None:
            index.raw.input.within_limits(where, DataError)
        needed = ("offsets", "lengths") if index.raw is None else ("offsets", "lengths", "heights", "widths")
        for split, part in index.splits.items():
            if split not in SPLITS:
                raise DataError(f"{where}: splits.{split}: there are only {listed(SPLITS)}.")
            if missing := [kind for kind in needed if kind not in part.arrays]:
                raise DataError(f"{where}: splits.{split}.arrays has no {listed(missing)}.")
            if not part.images:
                raise DataError(f"{where}: splits.{split} has no images.")
            for file in (*part.shards, *part.arrays.values()):
                if not re.fullmatch(r"[\w-][\w.-]*", file.name):
                    raise DataError(f"{where}: {file.name!r} is not the name of a file beside it.")
        return index

    def write(self, path: Path) -> None:
        """`index.json` to a file, atomically."""
        record = {"format": FORMAT, "version": VERSION if self.raw is None else RAW_VERSION, **dataclasses.asdict(self)}
        if self.raw is None:
            del record["raw"]
        runs.write_json(path, record)

    def files(self) -> list[Stated]:
        """Every file but the index itself."""
        return [file for part in self.splits.values() for file in (*part.arrays.values(), *part.shards)]


def is_indexed(folder: Path) -> bool:
    """Whether `folder` holds shards with an index. DataError if it will, once `bit shard` has finished."""
    if (folder / PLAN).is_file() and not (folder / "index.json").is_file():
        raise DataError(f"{folder} is unfinished: the same `bit shard` command again goes on.")
    with contextlib.suppress(OSError), files.opened(folder / "index.json") as file:
        return FORMAT.encode() in file.read(200)
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
        arrays = {kind: _array(files[array.name], part.images, kind) for kind, array in part.arrays.items()}
        ends = np.cumsum([0, *(shard.images for shard in part.shards)], dtype=np.int64)
        names = RowNumbers(
            (f"{shard.name.removesuffix('.tar')}/" for shard in part.shards), ends[:-1], ends, KEY_DIGITS
        )
        _check(part, arrays, ends, len(index.class_names), index.raw, f"{where}: {split}")
        tars = [files[shard.name] for shard in part.shards]
        sizes = [shard.bytes for shard in part.shards]
        given = (tars, ends, arrays["offsets"], arrays["lengths"], names, sizes)
        if index.raw is None:
            stores.append(TarFiles(*given))
        else:
            form, heights, widths = index.raw, arrays["heights"], arrays["widths"]
            stores.append(RawRecords(*given, form=form, heights=heights, widths=widths))
        sets[split] = (range(row, row + part.images), arrays.get("labels"))
        row += part.images
    store = Joined(stores)
    known = index.class_names if class_names is None else tuple(class_names)
    opened = {}
    for split, (rows, labels) in sets.items():
        if labels is not None and known != index.class_names:
            labels = _renumbered(labels, index.class_names, known, f"{where}: {split}")
        opened[split] = ImageSet(store, rows, labels, () if labels is None else known, channels)
    if "train" not in opened:
        raise DataError(f"{where} has {listed(opened)} but no train split.")
    return Splits(opened["train"], opened.get("val"), opened.get("test"))


def _array(file: Path | RemoteFile, images: int, kind: str) -> np.ndarray:
    assert isinstance(file, Path)
    try:
        array = mapped(file)
    except (OSError, ValueError, EOFError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise DataError(f"{file} is damaged: {error}") from error
    if array.ndim == 0 or len(array) != images or array.dtype.kind not in "iu":
        count = len(array) if array.ndim else "no row of"
        raise DataError(f"{file} has {count} numbers of type {array.dtype} for {images} images: it is damaged.")
    if array.ndim > (2 if kind == "labels" else 1) or 0 in array.shape:
        raise DataError(f"{file} has numbers of shape {array.shape} for {images} images: it is damaged.")
    return array


def _check(
    part: IndexedSplit,
    arrays: Mapping[str, np.ndarray],
    ends: np.ndarray,
    classes: int,
    raw: Raw | None,
    where: str,
) -> None:
    """DataError if labels are no classes, images do not lie inside their shards, or raw records have not their length."""
    images = part.images
    pieces = 16 if images > CHECKED else 1
    length = max(1, min(images, CHECKED) // pieces)
    sizes = np.array([shard.bytes for shard in part.shards], dtype=np.int64)
    for start in np.linspace(0, images - length, pieces).astype(np.int64).tolist():
        rows = slice(start, start + length)
        begin, size = arrays["offsets"][rows].astype(np.int64), arrays["lengths"][rows].astype(np.int64)
        shard = np.searchsorted(ends, np.arange(start, start + length), side="right") - 1
        wrong = (begin < 0) | (size < 0) | (begin > sizes[shard] - size)
        if wrong.any():
            i = int(np.argmax(wrong))
            raise DataError(
                f"{where}: image {start + i} would lie at byte {begin[i]:,} of {part.shards[shard[i]].name}, {size[i]:,} bytes long, "
                "outside of it: the index is damaged. `bit shard FOLDER --verify` checks all."
            )
        if raw is not None:
            if (size != raw.bytes).any():
                i = int(np.argmax(size != raw.bytes))
                raise DataError(
                    f"{where}: record {start + i} has {size[i]:,} bytes, and those of {raw.said()} have {raw.bytes:,}: the index is "
                    "damaged."
                )
            for kind in ("heights", "widths"):
                if not 1 <= arrays[kind][rows].min() <= arrays[kind][rows].max() <= limits().image_side:
                    raise DataError(
                        f"{where}: {kind} are not within 1 to {limits().image_side:,} px: the index is damaged."
                    )
        if (labels := arrays.get("labels")) is None:
            continue
        some = np.asarray(labels[rows])
        least = 0 if some.ndim == 1 else -1
        if some.min() < least or some.max() >= classes:
            odd = int(some.min()) if some.min() < least else int(some.max())
            raise DataError(
                f"{where} has the label {odd}, but the index lists {classes} classes, 0 to {classes - 1}: it is damaged."
            )


def _renumbered(labels: np.ndarray, names: tuple[str, ...], given: tuple[str, ...], where: str) -> np.ndarray:
    """The labels as numbers in another list of classes, which must have all that occur."""
    number = {name: label for label, name in enumerate(given)}
    used = np.unique(labels)
    if extra := [names[label] for label in used if label >= 0 and names[label] not in number]:
        raise DataError(f"{where} has classes that are not in the list of classes: {listed(extra)}.")
    known = np.array([*(number.get(name, -1) for name in names), -1], dtype=np.int32)  # -1 finds the last
    return known[np.asarray(labels)]
