"""Where a task's images come from: the folder layout of those who publish the thousand images, or the authors' own archives.

A reader of an archive gives pools: everything that TFDS has in a split, with the keys that decide its order. Nothing is read of the
images before it is known which are needed, and nothing is unpickled.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import re
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from bigtransfer import catalog, files
from bigtransfer.data import ImageSet, cifar, images, originals
from bigtransfer.data.sources import Files, Pixels, Store, Strings, TarFiles
from bigtransfer.errors import DataError, ImageError
from bigtransfer.limits import limits
from bigtransfer.suites.vtab import labels, tfrecord
from bigtransfer.suites.vtab.order import order


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Everything of one split of TFDS."""

    keys: Sequence[str] | Sequence[int]
    """Which decide the order; in the order of `images`."""
    labels: np.ndarray
    """Integers (n,)."""
    images: Callable[[np.ndarray], Store]
    """Places in `keys` -> the images there, in that order."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of the protocol: places `start` to `stop` in the order of a split."""

    split: str
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The authors' own files of a data set, and which of its images the protocol takes."""

    folders: tuple[str, ...]
    """Names under the root of all benchmarks at which they may lie."""
    pools: Mapping[str, int]
    """Split of TFDS -> its images."""
    parts: Mapping[str, Slice]
    """Of "train800", "val200" and "test"."""
    read: Callable[[Path], Mapping[str, Pool]]
    """(folder) -> the pools. Raises OSError, ValueError or KeyError naming what is not as it should be."""
    obtain: str
    gigabytes: float
    licence: str


class Rows:
    """Images in memory, as a store."""

    encoded = False
    runs = None
    remote = False

    def __init__(self, pixels: np.ndarray, names: Iterable[str]) -> None:
        """pixels: uint8 (n, height, width, channels)."""
        self._pixels, self._names = pixels, Strings(names)

    def _at(self, row: int) -> Pixels:
        return np.array(self._pixels[row])

    def name(self, row: int) -> str:
        return self._names[row]

    def read(self, row: int, channels: int, spec: catalog.InputSpec | None = None) -> Pixels:
        return images.prepare(images.with_channels(self._at(row), channels), spec)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self._at(row).shape[:2]
        return height, width

    def data(self, row: int) -> bytes:
        return self._at(row).tobytes()

    def prefetch(self, rows: np.ndarray) -> None:
        pass


class Sprites(Rows):
    """Black and white images of 64 x 64 px, a bit for each pixel."""

    def _at(self, row: int) -> Pixels:
        return (np.unpackbits(self._pixels[row]) * np.uint8(255)).reshape(64, 64, 1)


def from_archive(archive: Archive, classes: int, folder: Path, needed: Iterable[str]) -> dict[str, ImageSet]:
    """Those parts ("train1000" is "train800" followed by "val200") out of the authors' files. Raises DataError."""
    try:
        pools = archive.read(folder)
        for split, count in archive.pools.items():
            if len(pools[split].keys) != count:
                raise DataError(
                    f"{folder} has {len(pools[split].keys):,} images for {split}, but {count:,} were published; which thousand are drawn "
                    "depends on all of them. Is the copy complete, and nothing added?"
                )
            low, high = int(np.min(pools[split].labels)), int(np.max(pools[split].labels))
            if low < 0 or high >= classes:
                raise ValueError(f"the labels for {split} are {low} to {high} instead of 0 to {classes - 1}")
        orders = {split: order(split, pools[split].keys) for split in {one.split for one in archive.parts.values()}}
        found = {}
        for part in needed:
            own = [(pools[one.split], orders[one.split][one.start : one.stop]) for one in pieces(archive.parts, part)]
            found[part] = joined(own, classes)
        return found
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, EOFError, zlib.error, csv.Error) as error:
        raise DataError(
            f"{folder} does not hold what was published: {error or type(error).__name__}. Expected: {archive.obtain}"
        ) from error


_PIECES = {"train1000": ("train800", "val200")}


def pieces(parts: Mapping[str, Slice], part: str) -> list[Slice]:
    """The slices that a part of the protocol consists of."""
    return [parts[name] for name in _PIECES.get(part, (part,))]


def joined(own: Sequence[tuple[Pool, np.ndarray]], classes: int) -> ImageSet:
    """The images at these places of pools, one pool after the other."""
    sets = [
        ImageSet(
            pool.images(places),
            range(len(places)),
            np.asarray(pool.labels, np.int64)[places],
            tuple(map(str, range(classes))),
        )
        for pool, places in own
    ]
    if len(sets) == 1:
        return sets[0]
    labelled = np.concatenate([np.asarray(one.labels) for one in sets])
    return ImageSet(Following(sets), range(len(labelled)), labelled, sets[0].class_names)


class Following:
    """Image sets one after the other, as a store; their names stay."""

    runs = None
    remote = False

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self._sets, self._starts = tuple(sets), np.cumsum([0, *map(len, sets)])
        self.encoded = all(one.store.encoded for one in sets)

    def _at(self, row: int) -> tuple[ImageSet, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._sets[number], row - int(self._starts[number])

    def name(self, row: int) -> str:
        images, row = self._at(row)
        return images.name(row)

    def read(self, row: int, channels: int, spec: catalog.InputSpec | None = None) -> Pixels:
        images, row = self._at(row)
        return images.store.read(int(images.rows[row]), channels, spec)

    def size(self, row: int) -> tuple[int, int]:
        images, row = self._at(row)
        return images.size(row)

    def data(self, row: int) -> bytes:
        images, row = self._at(row)
        return images.data(row)

    def prefetch(self, rows: np.ndarray) -> None:
        pass


# --- The thousand images as folders (the repositories NOAH, SSF, PETL-ViT)

_LISTS = {"train800": "train800.txt", "val200": "val200.txt", "test": "test.txt", "train1000": "train800val200.txt"}


def from_folder(classes: int, folder: Path, needed: Iterable[str]) -> dict[str, ImageSet]:
    """Those of the parts whose lists are in the folder of a task: lines of a path and a label, divided by a space. "train1000" may be its
    own list, or those of its two parts. Raises DataError naming the line that is not so."""
    found: dict[str, ImageSet] = {}
    for part in needed:
        names = [_LISTS[part]]
        if not (folder / names[0]).is_file() and part in _PIECES:
            names = [_LISTS[piece] for piece in _PIECES[part]]
        if not all((folder / name).is_file() for name in names):
            continue
        rows = [row for name in names for row in _listed(folder / name, classes)]
        found[part] = ImageSet(
            Files(folder, [path for path, _ in rows]),
            range(len(rows)),
            np.array([label for _, label in rows], np.int64),
            tuple(map(str, range(classes))),
        )
    return found


def _listed(file: Path, classes: int) -> Iterator[tuple[str, int]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, _, label = line.rstrip().rpartition(" ")
        if not path or not re.fullmatch(r"\d{1,6}", label, re.ASCII):
            raise DataError(f"{file}, line {number}: expected a path, a space and a label, not {line[:200]!r}.")
        if int(label) >= classes:
            raise DataError(
                f"{file}, line {number}: the label {label} is not one of 0 to {classes - 1}. Is it the list of another task?"
            )
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise DataError(f"{file}, line {number}: {path[:200]!r} is not a path inside this folder.")
        yield path, int(label)


# --- Archives of arrays


def _named(folder: Path, split: str) -> Pool | None:
    """What `bit finetune NAME` keeps of a set (data/named.py)."""
    if not (folder / f"{split}.npy").is_file():
        return None
    pixels = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    return _array_pool(split, pixels, np.load(folder / f"{split}-labels.npy", allow_pickle=False))


def _array_pool(split: str, pixels: np.ndarray, labelled: np.ndarray) -> Pool:
    """A pool whose keys are the places in an array."""
    if len(pixels) != len(labelled):
        raise ValueError(f"{len(pixels):,} images of {split} have {len(labelled):,} labels")

    def store(places: np.ndarray) -> Store:
        # In the array's order, which a file is read fastest in.
        ascending, back = np.unique(places, return_inverse=True)
        return Rows(np.asarray(pixels[ascending])[back], [f"{split}/{place:05d}" for place in places.tolist()])

    return Pool(keys=range(len(labelled)), labels=labelled, images=store)


def cifar100(folder: Path) -> dict[str, Pool]:
    """The binary form, or the pickles (data/cifar.py); fine labels."""
    if (pool := _named(folder, "train")) is not None:
        other = _named(folder, "test")
        return {"train": pool} if other is None else {"train": pool, "test": other}
    names = catalog.class_names("cifar100")
    assert names is not None
    return {
        split: Pool(
            keys=range(len(images)),
            labels=np.asarray(images.labels),
            images=lambda places, images=images: Following([images.subset(places)]),
        )
        for split, images in cifar.parts(folder, cifar.CIFAR100, names).items()
    }


def svhn(folder: Path) -> dict[str, Pool]:
    """`train_32x32.mat` and `test_32x32.mat`; the part "extra" is not used."""
    found = {}
    for split in ("train", "test"):
        pool = _named(folder, split)
        if pool is None:
            pool = _array_pool(split, *originals.svhn(folder / f"{split}_32x32.mat"))
        found[split] = pool
    return found


def _norb_array(folder: Path, stem: str) -> np.ndarray:
    """An array of the format of NORB's authors (binary, named .mat all the same), packed with gzip or not: magic number, number of sizes,
    sizes (three at least), values."""
    file = folder / f"{stem}.mat"
    opener: Any = open
    if not file.is_file():
        file, opener = folder / f"{stem}.mat.gz", gzip.open
    with opener(file, "rb") as content:
        magic, count = np.frombuffer(content.read(8), "<i4").tolist()
        kinds = {0x1E3D4C55: "u1", 0x1E3D4C54: "<i4"}
        if magic not in kinds or not 1 <= count <= 6:
            raise ValueError(f"{file.name} is not in the format of NORB's files")
        sizes = np.frombuffer(content.read(4 * max(3, count)), "<i4").tolist()[:count]
        expected = math.prod(sizes) * np.dtype(kinds[magic]).itemsize
        if not 0 < expected <= 1 << 31:
            raise ValueError(f"{file.name} states sizes that it cannot have: {sizes}")
        values = content.read(expected)
    if len(values) != expected:
        raise ValueError(f"{file.name} is cut short")
    return np.frombuffer(values, kinds[magic]).reshape(sizes)


_NORB = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}


def smallnorb(label: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], dict[str, Pool]]:
    """`...-dat.mat` and `...-info.mat`, as they come or unpacked; of the two cameras only the first."""

    def read(folder: Path) -> dict[str, Pool]:
        found = {}
        for split, stem in _NORB.items():
            pixels, info = _norb_array(folder, f"{stem}-dat"), _norb_array(folder, f"{stem}-info")
            if pixels.ndim != 4 or pixels.shape[1] != 2 or info.ndim != 2 or info.shape[1] != 4:
                raise ValueError(f"{stem} holds other arrays than smallNORB's")
            found[split] = _array_pool(split, pixels[:, 0, :, :, None], label(info))
        return found

    return read


DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"


def dsprites(label: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], dict[str, Pool]]:
    """The `.npz` file, whose three gigabytes of pixels are read through once and kept as bits where they are needed."""

    def read(folder: Path) -> dict[str, Pool]:
        file = folder / DSPRITES
        with zipfile.ZipFile(file) as packed, packed.open("imgs.npy") as member:
            count, *shape = _npy_header(member)
        if shape != [64, 64]:
            raise ValueError(f"its images have the sizes {shape} instead of 64 x 64")
        with zipfile.ZipFile(file) as packed:
            if "latents_classes.npy" in packed.namelist():
                with packed.open("latents_classes.npy") as member:
                    stated = np.lib.format.read_array(member, allow_pickle=False)[:, 1:]
                factors = np.stack([*labels.dsprites_factors(np.arange(count)).values()], 1)
                if not np.array_equal(stated, factors):
                    raise ValueError("its images are in another order than the published ones, by latents_classes")
        return {
            "train": Pool(
                keys=range(count),
                labels=label(np.arange(count)),
                images=lambda places: Sprites(_bits(file, places), [f"train/{place}" for place in places.tolist()]),
            )
        }

    return read


def _npy_header(member: IO[bytes]) -> tuple[int, ...]:
    """The sizes of the uint8 array that begins here."""
    version = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, dtype = reader(member)
    if by_column or dtype != np.uint8 or len(shape) != 3:
        raise ValueError("its imgs are not an array of bytes, row by row")
    return shape


_AT_A_TIME = 4096
"""Images of dSprites unpacked at a time."""


def _bits(file: Path, places: np.ndarray) -> np.ndarray:
    """uint8 (n, 512): the images at those places, a bit for each pixel."""
    ascending = np.sort(places)
    found = np.empty((len(places), 512), np.uint8)
    with zipfile.ZipFile(file) as packed, packed.open("imgs.npy") as member:
        count = _npy_header(member)[0]
        for start in range(0, count, _AT_A_TIME):
            rows = min(_AT_A_TIME, count - start)
            content = member.read(rows * 4096)
            if len(content) != rows * 4096:
                raise ValueError(f"{file.name} is cut short")
            low, high = np.searchsorted(ascending, (start, start + rows))
            if low < high:
                block = np.frombuffer(content, np.uint8).reshape(rows, 4096)
                chosen = block[ascending[low:high] - start]
                if chosen.max(initial=0) > 1:
                    raise ValueError("its pixels are not 0 and 1")
                found[low:high] = np.packbits(chosen, axis=1)
    return found[np.searchsorted(ascending, places)]


class _Hdf5(Rows):
    """Images in an HDF5 file, read where they are."""

    def __init__(self, file: Path, places: np.ndarray, names: Iterable[str]) -> None:
        self._file, self._places, self._names = file, places, Strings(names)
        self._open: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_lock": threading.Lock()}

    def _at(self, row: int) -> Pixels:
        with self._lock:
            if self._open is None:
                self._open = _hdf5().File(self._file, "r")["x"]
            try:
                return np.asarray(self._open[int(self._places[row])], np.uint8)
            except OSError as error:
                raise ImageError(self.name(row), f"{self._file} cannot be read there ({error})") from error


def _hdf5() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise DataError("This data set comes as HDF5 files, which need the package h5py: pip install h5py") from error
    return h5py


def patch_camelyon(folder: Path) -> dict[str, Pool]:
    """`camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`, unpacked."""
    found = {}
    for split, name in {"train": "train", "validation": "valid", "test": "test"}.items():
        stem = f"camelyonpatch_level_2_split_{name}"
        for file in (folder / f"{stem}_x.h5", folder / f"{stem}_y.h5"):
            if not file.is_file():
                raise FileNotFoundError(f"there is no {file.name}")
        with _hdf5().File(folder / f"{stem}_y.h5", "r") as file:
            labelled = np.asarray(file["y"]).reshape(-1)
        with _hdf5().File(folder / f"{stem}_x.h5", "r") as file:
            if file["x"].shape[0] != len(labelled):
                raise ValueError(f"{stem} has {file['x'].shape[0]:,} images and {len(labelled):,} labels")
        found[split] = Pool(
            keys=[f"{name}_{i}" for i in range(len(labelled))],
            labels=labelled,
            images=lambda places, file=folder / f"{stem}_x.h5", name=name: _Hdf5(
                file, places, [f"{name}_{place}" for place in places.tolist()]
            ),
        )
    return found


# --- Archives of image files


def _file_pool(root: Path, listed: Sequence[tuple[str, str, int]]) -> Pool:
    """Of (key, path below `root`, label)."""
    return Pool(
        keys=[key for key, _, _ in listed],
        labels=np.array([label for _, _, label in listed], np.int64),
        images=lambda places: Files(root, [listed[place][1] for place in places.tolist()]),
    )


def _inside(folder: Path, *ways: str, holds: str) -> Path:
    """The folder, or the one of those below it, in which there is `holds`."""
    for way in ("", *ways):
        if (folder / way / holds).exists():
            return folder / way
    raise FileNotFoundError(f"there is no {holds}")


def flowers102(folder: Path) -> dict[str, Pool]:
    """`jpg/image_%05d.jpg`, `imagelabels.mat` and `setid.mat`."""
    base = _inside(folder, "flowers-102", holds="setid.mat")
    found = originals.flowers(base)
    splits = {"train": "train", "validation": "val", "test": "test"}
    return {split: _listed_pool(base, found[part]) for split, part in splits.items()}


def _listed_pool(base: Path, listed: originals.Listed) -> Pool:
    """A pool whose keys are the names of the files."""
    return _file_pool(base, [(PurePosixPath(path).name, path, label) for path, label in listed])


def pets(folder: Path) -> dict[str, Pool]:
    """`images/NAME.jpg`, and `annotations/{trainval,test}.txt` of rows "NAME class species breed"."""
    base = _inside(folder, "oxford-iiit-pet", holds="annotations/trainval.txt")
    return {split: _listed_pool(base, listed) for split, listed in originals.pets(base).items()}


def dtd(folder: Path) -> dict[str, Pool]:
    """`images/CLASS/FILE.jpg`, and the lists of the first fold, `labels/{train1,val1,test1}.txt`."""
    base = _inside(folder, "dtd", "dtd/dtd", holds="labels/train1.txt")
    lists = {
        split: (base / f"labels/{name}1.txt").read_text(encoding="utf-8").split()
        for split, name in {"train": "train", "validation": "val", "test": "test"}.items()
    }
    classes = sorted({line.partition("/")[0] for lines in lists.values() for line in lines})
    return {
        split: _file_pool(base, [(line, f"images/{line}", classes.index(line.partition("/")[0])) for line in lines])
        for split, lines in lists.items()
    }


def caltech101(folder: Path) -> dict[str, Pool]:
    """`101_ObjectCategories/CLASS/image_%04d.jpg`. The draw of its two parts goes by folders and files as they are sorted; TFDS took them
    as its file system gave them, so its thousand images, and its test part, are others."""
    base = _inside(folder, "caltech101", "caltech-101", holds="101_ObjectCategories") / "101_ObjectCategories"
    folders = sorted(one for one in base.iterdir() if one.is_dir())
    classes = sorted(one.name.lower() for one in folders)
    parts = labels.caltech_split([(one.name, sorted(file.name for file in one.iterdir())) for one in folders])
    return {
        split: _file_pool(base, [(key, key, classes.index(key.partition("/")[0].lower())) for key in keys])
        for split, keys in zip(("train", "test"), parts, strict=True)
    }


def class_folders(*ways: str, marker: str) -> Callable[[Path], dict[str, Pool]]:
    """One split, of `CLASS/FILE`, for EuroSAT and RESISC45. marker: one of the classes."""

    def read(folder: Path) -> dict[str, Pool]:
        base = _inside(folder, *ways, holds=marker)
        classes = sorted(one.name for one in base.iterdir() if one.is_dir())
        listed = [
            (f"{name}_{file.name}", f"{name}/{file.name}", label)
            for label, name in enumerate(classes)
            for file in sorted((base / name).iterdir())
            if file.suffix.lower() in (".jpg", ".jpeg", ".png")
        ]
        return {"train": _file_pool(base, listed)}

    return read


def clevr(label: Callable[[Any], int]) -> Callable[[Path], dict[str, Pool]]:
    """`images/{train,val}/FILE.png` and `scenes/CLEVR_{train,val}_scenes.json` of CLEVR v1.0. label: of a scene's "objects"."""

    def read(folder: Path) -> dict[str, Pool]:
        base = _inside(folder, "CLEVR_v1.0", holds="scenes")
        found = {}
        for split, name in {"train": "train", "validation": "val"}.items():
            scenes = json.loads((base / f"scenes/CLEVR_{name}_scenes.json").read_bytes())["scenes"]
            found[split] = _file_pool(
                base,
                [
                    (scene["image_filename"], f"images/{name}/{scene['image_filename']}", label(scene["objects"]))
                    for scene in scenes
                ],
            )
        return found

    return read


def clevr_objects(objects: Any) -> int:
    """Label of a scene by the number of its objects."""
    return int(labels.clevr_count(np.array([len(objects)]))[0])


def clevr_depth(objects: Any) -> int:
    """Label of a scene by the depth of its closest object."""
    # In the precision in which TFDS holds it.
    return labels.clevr_distance(float(np.float32(one["pixel_coords"][2])) for one in objects)


def kitti(folder: Path) -> dict[str, Pool]:
    """`training/{image_2/000123.png,label_2/000123.txt}` and the development kit's `mapping/{train_rand,train_mapping}.txt`."""
    base = _inside(folder, "training", "data_object_image_2/training", holds="image_2")
    words = _inside(folder, "training", "data_object_label_2/training", holds="label_2")
    kit = _inside(folder, "devkit", "devkit_object", holds="mapping/train_rand.txt") / "mapping"
    lines = (kit / "train_mapping.txt").read_text(encoding="utf-8").splitlines()
    drives = [lines[int(number) - 1].split()[1] for number in (kit / "train_rand.txt").read_text().split(",")]
    parts = labels.kitti_splits(drives)
    listed: dict[str, list[tuple[str, str, int]]] = {"train": [], "validation": [], "test": []}
    for number, part in enumerate(parts.tolist()):
        rows = [line.split() for line in (words / f"label_2/{number:06d}.txt").read_text(encoding="utf-8").splitlines()]
        label = labels.kitti_distance((row[0], float(row[13])) for row in rows if row and row[0] != "DontCare")
        listed[part].append((f"{number:06d}.png", f"image_2/{number:06d}.png", label))
    return {split: _file_pool(base, rows) for split, rows in listed.items()}


# --- Archives whose images are others in TFDS than in the archive


class Remade(Files):
    """Image files of which another image is made whenever one is read."""

    encoded = False  # pyright: ignore[reportAssignmentType]

    def __init__(self, root: Path, paths: Sequence[str], make: Callable[[Pixels], Pixels]) -> None:
        """make: uint8 RGB (height, width, 3) -> the same of any size."""
        super().__init__(root, paths)
        self._make = make

    def _made(self, row: int) -> Pixels:
        try:
            return self._make(super().read(row, 3))
        except (ValueError, _opencv().error) as error:
            raise ImageError(self.name(row), f"OpenCV cannot make the protocol's image of it ({error})") from error

    def read(self, row: int, channels: int, spec: catalog.InputSpec | None = None) -> Pixels:
        return images.prepare(images.with_channels(self._made(row), channels), spec)

    def size(self, row: int) -> tuple[int, int]:
        height, width = self._made(row).shape[:2]
        return height, width

    def data(self, row: int) -> bytes:
        return self._made(row).tobytes()


def _opencv() -> Any:
    """TFDS makes these images by OpenCV, whose results no other library repeats to the bit."""
    try:
        import cv2
    except ImportError as error:
        raise DataError(
            "TensorFlow Datasets makes these images by OpenCV: pip install 'bigtransfer[opencv]'. Or take the folder vtab-1k."
        ) from error
    cv2.setNumThreads(0)  # images are made by several threads already
    return cv2


def _through_jpeg(cv2: Any, bgr: np.ndarray, quality: int) -> Pixels:
    done, packed = cv2.imencode(".jpg", bgr, [int(cv2.IMWRITE_JPEG_QUALITY), quality])
    assert done
    return np.ascontiguousarray(cv2.imdecode(packed, cv2.IMREAD_COLOR)[:, :, ::-1])


SUN_PIXELS = 120_000
"""Of an image of SUN397 at most."""


def sun_image(image: Pixels) -> Pixels:
    """An image of SUN397 as TFDS holds it: of at most `SUN_PIXELS`, through JPEG of OpenCV's own quality, 95."""
    cv2 = _opencv()
    bgr = image[:, :, ::-1]
    pixels = bgr.shape[0] * bgr.shape[1]
    if pixels > SUN_PIXELS:
        share = math.sqrt(SUN_PIXELS / pixels)
        bgr = cv2.resize(bgr, dsize=None, fx=share, fy=share)
    return _through_jpeg(cv2, np.ascontiguousarray(bgr), 95)


SUN_NAMES = "d9d39607a6703ae49dc79967ad56738c420c73d7f03ec5704d9160ba767ba957"
"""SHA-256 of the names of SUN397's images as TFDS takes them, sorted, a line break between two."""
_SUN_IGNORED = "/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"
"""Which decoders do not agree about."""


def sun_parts() -> bytes:
    """Of each image of SUN397 in the order of names, which part TFDS drew it for: b"0" train, b"1" validation, b"2" test."""
    return lzma.decompress((resources.files("bigtransfer.suites") / "files" / "sun397-splits.txt.xz").read_bytes())


def sun397(folder: Path) -> dict[str, Pool]:
    """`SUN397/a/abbey/sun_....jpg`, classes of one or two folders below the letter; the parts that TFDS drew
    (`sun_parts`)."""
    _opencv()
    base = _inside(folder, "SUN397", holds="a/abbey")
    found = ("/" + path.relative_to(base).as_posix() for path in base.rglob("sun_*.jpg"))
    names = sorted(name for name in found if name != _SUN_IGNORED)
    parts = sun_parts()
    if (
        len(names) != len(parts)
        or hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest() != SUN_NAMES
    ):
        raise ValueError(
            f"it holds {len(names):,} images, and those that were published are {len(parts):,} of other names. Is the copy complete, and "
            "nothing added or renamed?"
        )
    classes = sorted({name.rpartition("/")[0] for name in names})
    numbers = {name: number for number, name in enumerate(classes)}
    pools = {}
    for code, split in zip(b"012", ("train", "validation", "test"), strict=True):
        own = [name for name, part in zip(names, parts, strict=True) if part == code]
        labelled = np.array([numbers[name.rpartition("/")[0]] for name in own], np.int64)
        pools[split] = Pool(
            keys=own,
            labels=labelled,
            images=lambda places, own=own: Remade(base, [own[place][1:] for place in places.tolist()], sun_image),
        )
    return pools


RADIUS = 300
"""Of an eye, px."""


def retina_image(image: Pixels) -> Pixels:
    """A photograph of an eye as TFDS's `btgraham-300` holds it, which is how the winner of Kaggle's competition of 2015 saw it: scaled to a
    radius of 300 px, less its local average, grey beyond 0.9 of the radius and cut there; through JPEG of quality 72."""
    cv2 = _opencv()
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    middle = bgr[bgr.shape[0] // 2].sum(axis=1)
    radius = float((middle > middle.mean() / 10.0).sum()) / 2.0
    if radius < 1.0:  # a black line across it: as high as the image
        radius = bgr.shape[0] / 2.0
    scale = RADIUS / radius
    if scale * scale * bgr.shape[0] * bgr.shape[1] > limits().image_pixels:
        raise ValueError(
            f"it is dark but for {2 * radius:.0f} px of its middle row, and would be enlarged beyond the limit image_pixels"
        )
    bgr = cv2.resize(bgr, dsize=None, fx=scale, fy=scale)
    bgr = cv2.addWeighted(bgr, 4, cv2.GaussianBlur(bgr, (0, 0), RADIUS / 30), -4, 128)
    height, width = bgr.shape[:2]
    within = np.zeros(bgr.shape)
    kept = int(RADIUS * 0.9)
    cv2.circle(within, center=(width // 2, height // 2), radius=kept, color=(1, 1, 1), thickness=-1)
    bgr = (bgr * within + (1 - within) * 128).astype(np.uint8)
    rows = slice(max(height // 2 - kept, 0), min(height // 2 + kept, height))
    columns = slice(max(width // 2 - kept, 0), min(width // 2 + kept, width))
    return _through_jpeg(cv2, np.ascontiguousarray(bgr[rows, columns]), 72)


def retinopathy(folder: Path) -> dict[str, Pool]:
    """`train/NAME.jpeg`, `test/NAME.jpeg`, `trainLabels.csv` (image, level), and `retinopathy_solution.csv` (image, level, Usage), in which
    "Public" is the validation part and "Private" the test part."""
    _opencv()
    found = {}
    for split, file, below, usage in (
        ("train", "trainLabels.csv", "train", None),
        ("validation", "retinopathy_solution.csv", "test", "Public"),
        ("test", "retinopathy_solution.csv", "test", "Private"),
    ):
        text = files.read(folder / file, "table_bytes").decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        own = [row for row in rows if usage is None or row.get("Usage") == usage]
        named = [(row["image"], row["level"]) for row in own]
        for name, level in named:
            if not re.fullmatch(r"\d{1,6}_(left|right)", name or "", re.ASCII) or not re.fullmatch(
                "[0-4]", level or ""
            ):
                raise ValueError(f"{file} has a row of the image {name!r} and the level {level!r}")
        pool = Pool(
            keys=[name for name, _ in named],
            labels=np.array([int(level) for _, level in named], np.int64),
            images=lambda places, named=named, below=below: Remade(
                folder / below, [f"{named[place][0]}.jpeg" for place in places.tolist()], retina_image
            ),
        )
        found[split] = pool
    return found


# --- TensorFlow's own form


def dmlab(folder: Path) -> dict[str, Pool]:
    """`dmlab-{train,validation,test}.tfrecord*`: examples of "image" (a JPEG), "filename" and "label", read where they are."""
    found = {}
    for split in ("train", "validation", "test"):
        for base in (folder, folder / "dmlab"):
            if shards := sorted(base.glob(f"dmlab-{split}.tfrecord*")):
                break
        else:
            raise FileNotFoundError(f"there is no dmlab-{split}.tfrecord")
        names, labelled, offsets, lengths, runs = [], [], [], [], [0]
        for file in shards:
            for start, record in tfrecord.records(file):
                example = tfrecord.example(record)
                try:
                    image, label = example.texts("image", 1)[0], example.numbers("label", 1)[0]
                    names.append(example.text("filename"))
                except ValueError as error:
                    raise ValueError(f"{file.name} has an example that is none of DMLab's: {error}") from None
                labelled.append(int(label))
                offsets.append(start + image.start)
                lengths.append(image.stop - image.start)
            runs.append(len(names))
        store = TarFiles(shards, np.array(runs), np.array(offsets), np.array(lengths), Strings(names))
        everything = ImageSet(store, range(len(names)), np.array(labelled), ())
        found[split] = Pool(
            keys=names,
            labels=np.array(labelled),
            images=lambda places, everything=everything: Following([everything.subset(places)]),
        )
    return found
