"""Public data sets by name, in their official splits.

torchvision downloads and verifies the archives; their files are read here, so that images stay encoded on disk and nothing that
came over the network is unpickled (CIFAR is therefore fetched in its authors' binary form). Layouts: the sets' own documents.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigtransfer import settings
from bigtransfer.data.layout import Found, Part
from bigtransfer.data.sources import Arrays, Files
from bigtransfer.errors import BitError, DataError
from bigtransfer.runs import atomic_write


@dataclass(frozen=True)
class _Named:
    fetch: Callable[[Path], None]
    """Brings everything into a folder; harmless if some of it is there."""
    read: Callable[[Path], Found]


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
            _SETS[name].fetch(folder)
            complete.touch()
        except BitError:
            raise
        except Exception as error:  # The network, the archive and the disk fail in many ways.
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


def _torchvision(name: str, **arguments: Any) -> Callable[[Path], None]:
    def fetch(folder: Path) -> None:
        import torchvision

        getattr(torchvision.datasets, name)(folder, download=True, **arguments)

    return fetch


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


def _cifar(
    archive: str, md5: str, train: Sequence[str], test: Sequence[str], names: str, label_bytes: int
) -> Callable[[Path], None]:
    """Records of `label_bytes` labels (the last one counts) and 3 x 32 x 32 pixels, channel by channel."""

    def fetch(folder: Path) -> None:
        from torchvision.datasets.utils import download_url

        download_url(f"https://www.cs.toronto.edu/~kriz/{archive}", folder, archive, md5)
        with tarfile.open(folder / archive) as tar:
            content = {Path(member.name).name: member for member in tar if member.isfile()}

            def read(file: str) -> bytes:
                source = tar.extractfile(content[file])
                assert source is not None  # only regular files are in `content`
                return source.read()

            for split, files in (("train", train), ("test", test)):
                records = np.frombuffer(b"".join(map(read, files)), np.uint8).reshape(-1, label_bytes + 3072)
                pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                _save(folder, split, pixels, records[:, label_bytes - 1].astype(np.int64))
            _save_class_names(folder, read(names).decode().split())
        (folder / archive).unlink()

    return fetch


def _stl10(folder: Path) -> None:
    _torchvision("STL10", split="train")(folder)
    raw = folder / "stl10_binary"
    for split in ("train", "test"):
        pixels = (
            np.fromfile(raw / f"{split}_X.bin", np.uint8).reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        )  # stored column by column
        _save(folder, split, pixels, np.fromfile(raw / f"{split}_y.bin", np.uint8).astype(np.int64) - 1)
    _save_class_names(folder, (raw / "class_names.txt").read_text().split())


def _svhn(folder: Path) -> None:
    for split in ("train", "test"):
        _torchvision("SVHN", split=split)(folder)
        content = _matlab(folder / f"{split}_32x32.mat")
        _save(
            folder, split, content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1).astype(np.int64) % 10
        )  # 10 means 0
    _save_class_names(folder, map(str, range(10)))


def _matlab(file: Path) -> dict[str, np.ndarray]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            "This data set comes as a Matlab file, which needs the package scipy: pip install scipy"
        ) from error
    return loadmat(file)


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

    base = folder / "flowers-102"
    labels = _matlab(base / "imagelabels.mat")["labels"].reshape(-1)
    splits = _matlab(base / "setid.mat")
    # The class names are an addition of newer torchvision versions; the set itself only has numbers.
    names: list[str] = getattr(torchvision.datasets.Flowers102, "classes", None) or [
        str(number) for number in range(1, 103)
    ]
    listed = {
        split: [(f"flowers-102/jpg/image_{i:05d}.jpg", names[labels[i - 1] - 1]) for i in splits[key].reshape(-1)]
        for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
    }
    return _files(folder, listed, names)


def _pets(folder: Path) -> Found:
    names: dict[int, str] = {}
    listed = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        rows = [line.split() for line in (folder / "oxford-iiit-pet/annotations" / file).read_text().splitlines()]
        for image, number, *_ in rows:
            names[int(number)] = image.rpartition("_")[0].replace("_", " ").title()
        listed[split] = [(f"oxford-iiit-pet/images/{image}.jpg", names[int(number)]) for image, number, *_ in rows]
    return _files(folder, listed, [names[number] for number in sorted(names)])


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


_SETS: dict[str, _Named] = {
    "cifar10": _Named(
        _cifar(
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            [f"data_batch_{i}.bin" for i in range(1, 6)],
            ["test_batch.bin"],
            "batches.meta.txt",
            1,
        ),
        _arrays,
    ),
    "cifar100": _Named(
        _cifar(
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            ["train.bin"],
            ["test.bin"],
            "fine_label_names.txt",
            2,
        ),
        _arrays,
    ),
    "flowers102": _Named(_torchvision("Flowers102"), _flowers),
    "pets": _Named(_torchvision("OxfordIIITPet"), _pets),
    "food101": _Named(_torchvision("Food101"), _food),
    "svhn": _Named(_svhn, _arrays),
    "dtd": _Named(_torchvision("DTD"), _dtd),
    "stl10": _Named(_stl10, _arrays),
    "aircraft": _Named(_torchvision("FGVCAircraft"), _aircraft),
    "caltech101": _Named(
        _torchvision("Caltech101"),
        _class_folders("caltech101/101_ObjectCategories", {"train": ""}, "BACKGROUND_Google"),
    ),
    "eurosat": _Named(_torchvision("EuroSAT"), _class_folders("eurosat/2750", {"train": ""})),
    "imagenette": _Named(_torchvision("Imagenette"), _class_folders("imagenette2", {"train": "train", "val": "val"})),
}

NAMES = tuple(_SETS)
"""The names `open_named` knows."""
