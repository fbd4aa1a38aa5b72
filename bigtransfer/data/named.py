"""Public data sets by name, in their official splits.

The archives come from where their authors put them, are compared with the MD5 that torchvision states for them (Aircraft: its edition
for R), and are read here, so that images stay encoded on disk and nothing that came over the network is unpickled (CIFAR is therefore
fetched in its authors' binary form). Layouts: the sets' own documents.
"""

from __future__ import annotations

import json
import posixpath
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from bigtransfer import fetch, settings
from bigtransfer.data import originals
from bigtransfer.data.archives import unpack
from bigtransfer.data.layout import Found, Part
from bigtransfer.data.sources import Arrays, Files
from bigtransfer.errors import BitError, DataError
from bigtransfer.outputs import atomic_write


@dataclass(frozen=True)
class _Source:
    """A file that belongs to a set; an archive is unpacked, and then removed."""

    address: str
    md5: str
    folder: str = ""
    """Where it goes, below the set's own."""

    @property
    def path(self) -> str:
        return posixpath.join(self.folder, posixpath.basename(urllib.parse.urlsplit(self.address).path))

    @property
    def packed(self) -> bool:
        return self.path.endswith((".tar.gz", ".tgz", ".zip"))


@dataclass(frozen=True)
class _Named:
    sources: Sequence[_Source]
    read: Callable[[Path], Found]
    arrange: Callable[[Path], None] = lambda folder: None
    """From what was fetched to what `read` expects."""


def open_named(name: str, cache: Path) -> Found:
    """The set of that name (see `NAMES`), downloaded into `cache/<name>` unless it is there. Raises DataError."""
    folder = cache / name
    complete = folder / ".complete"
    if not complete.exists():
        if settings.offline():
            raise DataError(
                f"The data set {name} is not in {folder}, and downloads are switched off (offline). Switch them on (unset BIT_OFFLINE), "
                "or copy that folder from another machine."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / ".lock"):  # others would read what is unpacked twice, half written
                if not complete.exists():
                    _bring(_SETS[name], folder)
                    complete.touch()
        except (BitError, OSError, NotImplementedError, KeyError, ValueError, IndexError, StopIteration) as error:
            raise DataError(
                f"The data set {name} is not in {folder} and cannot be downloaded ({error or type(error).__name__}). "
                f"Copy that folder from a machine where it could, or give a folder of your own."
            ) from error
    try:
        return _SETS[name].read(folder)
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(
            f"{folder} does not hold a whole {name} ({error}). Delete the folder to have it downloaded again."
        ) from error


def _bring(named: _Named, folder: Path) -> None:
    """Everything into the folder; harmless if some of it is there."""
    for source in named.sources:
        file = folder / source.path
        if file.is_file() and fetch.hash_of(file, "md5") != source.md5:
            file.unlink()  # not what is unpacked below
        fetch.download(source.address, file, md5=source.md5, progress=True)
        if source.packed:
            unpack(file, file.parent)
    named.arrange(folder)
    for source in named.sources:
        if source.packed:
            (folder / source.path).unlink()
    shutil.rmtree(folder / _RAW, ignore_errors=True)


_RAW = "raw"
"""Sub-folder of what is not needed once it is arranged."""


# --- Sets of pixels: brought into `<split>.npy` once, which can be mapped into memory


def _save(folder: Path, split: str, pixels: np.ndarray, labels: np.ndarray) -> None:
    for name, array in ((split, pixels), (f"{split}-labels", labels)):
        with atomic_write(folder / f"{name}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def _arrays(folder: Path) -> Found:
    class_names = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
    parts: dict[str, Part] = {}
    names: list[str] = []
    for split in ("train", "test"):
        labels = np.load(folder / f"{split}-labels.npy", allow_pickle=False)
        parts[split] = Part()
        parts[split].add_all(range(len(names), len(names) + len(labels)), labels, class_names)
        names += (f"{split}/{row:05d}" for row in range(len(labels)))
    return Found(Arrays([folder / "train.npy", folder / "test.npy"], names), parts, folder.name, class_names)


def _save_class_names(folder: Path, names: Iterable[str]) -> None:
    with atomic_write(folder / "classes.json") as temporary:
        temporary.write_text(json.dumps(list(names)), encoding="utf-8")


def _cifar(train: Sequence[str], test: Sequence[str], names: str, label_bytes: int) -> Callable[[Path], None]:
    """Records of `label_bytes` labels (the last one counts) and 3 x 32 x 32 pixels, channel by channel."""

    def arrange(folder: Path) -> None:
        def read(file: str) -> bytes:
            return next((folder / _RAW).rglob(file)).read_bytes()

        for split, members in (("train", train), ("test", test)):
            records = np.frombuffer(b"".join(map(read, members)), np.uint8).reshape(-1, label_bytes + 3072)
            pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            _save(folder, split, pixels, records[:, label_bytes - 1].astype(np.int64))
        _save_class_names(folder, read(names).decode().split())

    return arrange


def _stl10(folder: Path) -> None:
    raw = folder / _RAW / "stl10_binary"
    for split in ("train", "test"):
        # stored column by column
        pixels = np.fromfile(raw / f"{split}_X.bin", np.uint8).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        _save(folder, split, pixels, np.fromfile(raw / f"{split}_y.bin", np.uint8).astype(np.int64) - 1)
    _save_class_names(folder, (raw / "class_names.txt").read_text().split())


def _svhn(folder: Path) -> None:
    for split in ("train", "test"):
        _save(folder, split, *originals.svhn(folder / _RAW / f"{split}_32x32.mat"))
    _save_class_names(folder, map(str, range(10)))


# --- Sets of image files


def _files(folder: Path, listed: Mapping[str, Sequence[tuple[str, str]]], class_names: Iterable[str]) -> Found:
    """From `{split: (path below the folder, class name) of every image}`."""
    paths: list[str] = []
    parts = {split: Part() for split in listed}
    for split, images in listed.items():
        for path, name in images:
            parts[split].add(len(paths), name)
            paths.append(path)
    return Found(Files(folder, paths), parts, folder.name, tuple(class_names))


def _flowers(folder: Path) -> Found:
    import torchvision

    # The class names are an addition of newer torchvision versions; the set itself only has numbers.
    names: list[str] = getattr(torchvision.datasets.Flowers102, "classes", None) or [
        str(number) for number in range(1, 103)
    ]
    found = originals.flowers(folder / "flowers-102")
    return _files(
        folder,
        {part: [(f"flowers-102/{path}", names[label]) for path, label in own] for part, own in found.items()},
        names,
    )


def _pets(folder: Path) -> Found:
    found = originals.pets(folder / "oxford-iiit-pet")
    names = dict(sorted((label, originals.breed(path)) for own in found.values() for path, label in own))
    listed = {part: [(f"oxford-iiit-pet/{path}", names[label]) for path, label in own] for part, own in found.items()}
    return _files(folder, listed, names.values())


def _food(folder: Path) -> Found:
    listed = {}
    for split in ("train", "test"):
        by_class = json.loads((folder / f"food-101/meta/{split}.json").read_text(encoding="utf-8"))
        listed[split] = [
            (f"food-101/images/{image}.jpg", name) for name, images in by_class.items() for image in images
        ]
    return _files(folder, listed, sorted({name for _, name in listed["train"]}))


def _dtd(folder: Path) -> Found:
    listed = {}
    for split in ("train", "val", "test"):
        images = (folder / f"dtd/dtd/labels/{split}1.txt").read_text().split()
        listed[split] = [(f"dtd/dtd/images/{image}", image.partition("/")[0]) for image in images]
    return _files(folder, listed, sorted({name for _, name in listed["train"]}))


def _aircraft(folder: Path) -> Found:
    data = "fgvc-aircraft-2013b/data"
    listed = {}
    for split in ("train", "val", "test"):
        lines = (folder / data / f"images_variant_{split}.txt").read_text().splitlines()
        rows = [line.split(" ", 1) for line in lines]
        listed[split] = [(f"{data}/images/{image}.jpg", name.strip()) for image, name in rows]
    return _files(folder, listed, [line.strip() for line in (folder / data / "variants.txt").read_text().splitlines()])


def _class_folders(inner: str, splits: dict[str, str], leave_out: str = "") -> Callable[[Path], Found]:
    """`<inner>/<folder of the split>/<class>/<image>`."""

    def read(folder: Path) -> Found:
        listed = {
            split: [
                (str(image.relative_to(folder)), image.parent.name)
                for image in sorted((folder / inner / sub).glob("*/*"))
                if image.parent.name != leave_out
            ]
            for split, sub in splits.items()
        }
        if not all(listed.values()):
            raise FileNotFoundError(f"no images in {inner}")
        return _files(folder, listed, sorted({name for _, name in listed["train"]}))

    return read


def _caltech101(folder: Path) -> None:
    inner = folder / "caltech101" / "caltech-101"
    unpack(inner / "101_ObjectCategories.tar.gz", inner.parent)
    shutil.rmtree(inner)


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_SETS: dict[str, _Named] = {
    "cifar10": _Named(
        [_Source(f"{_TORONTO}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", _RAW)],
        _arrays,
        _cifar([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], "batches.meta.txt", 1),
    ),
    "cifar100": _Named(
        [_Source(f"{_TORONTO}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", _RAW)],
        _arrays,
        _cifar(["train.bin"], ["test.bin"], "fine_label_names.txt", 2),
    ),
    "flowers102": _Named(
        [
            _Source(f"{_OXFORD}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "flowers-102"),
            _Source(f"{_OXFORD}/flowers/102/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d", "flowers-102"),
            _Source(f"{_OXFORD}/flowers/102/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c", "flowers-102"),
        ],
        _flowers,
    ),
    "pets": _Named(
        [
            _Source(f"{_OXFORD}/pets/data/images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c", "oxford-iiit-pet"),
            _Source(f"{_OXFORD}/pets/data/annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f", "oxford-iiit-pet"),
        ],
        _pets,
    ),
    "food101": _Named(
        [_Source("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", "85eeb15f3717b99a5da872d97d918f87")], _food
    ),
    "svhn": _Named(
        [
            _Source(f"{_SVHN}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", _RAW),
            _Source(f"{_SVHN}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", _RAW),
        ],
        _arrays,
        _svhn,
    ),
    "dtd": _Named(
        [_Source(f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz", "fff73e5086ae6bdbea199a49dfb8a4c1", "dtd")], _dtd
    ),
    "stl10": _Named(
        [
            _Source(
                "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", _RAW
            )
        ],
        _arrays,
        _stl10,
    ),
    "aircraft": _Named(
        [_Source(f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", "d4acdd33327262359767eeaa97a4f732")],
        _aircraft,
    ),
    "caltech101": _Named(
        [
            _Source(
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                "3138e1922a9193bfa496528edbbc45d0",
                "caltech101",
            )
        ],
        _class_folders("caltech101/101_ObjectCategories", {"train": ""}, "BACKGROUND_Google"),
        _caltech101,
    ),
    "eurosat": _Named(
        [
            _Source(
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                "c8fa014336c82ac7804f0398fcb19387",
                "eurosat",
            )
        ],
        _class_folders("eurosat/2750", {"train": ""}),
    ),
    "imagenette": _Named(
        [_Source("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz", "fe2fc210e6bb7c5664d602c3cd71e612")],
        _class_folders("imagenette2", {"train": "train", "val": "val"}),
    ),
}

NAMES = tuple(_SETS)
"""The names `open_named` knows."""
