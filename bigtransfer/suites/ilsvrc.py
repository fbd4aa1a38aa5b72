"""The images of ILSVRC-2012 in the layouts that people have them in, and the ReaL labels.

A class is always numbered by the place of its WordNet identity among the 1,000 sorted ones (0: n01440764, the tench): the order of all
published heads. The development kit of ILSVRC-2012 has another one; a copy that is labelled with that is noticed.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import io
import json
import lzma
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from bigtransfer import catalog, files, records
from bigtransfer.data import ImageSet, open_dataset, open_images
from bigtransfer.data.archives import ENDINGS
from bigtransfer.data.layout import listed, split_in, split_of
from bigtransfer.errors import DataError
from bigtransfer.suites.benchmark import Benchmark, index_digest
from bigtransfer.suites.stores import Renamed

CLASSES = 1000


@functools.cache
def identities() -> tuple[str, ...]:
    """The WordNet identities of the classes, by number."""
    return catalog.wordnet_ids("imagenet-1k")


@functools.cache
def lists() -> Mapping[str, Any]:
    """`files/imagenet.json` (see SOURCES.md there)."""
    return json.loads(packaged("imagenet.json"))


def packaged(name: str) -> bytes:
    """One of the files that come with the suites."""
    return (importlib.resources.files("bigtransfer") / "suites" / "files" / name).read_bytes()


_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_\d{8}")
_VALIDATION_DIGEST = "72dacaf5b4de59bca8f273f71e4a059d549ba6a57ab49361cc23329f90c75766"
"""`index_digest` of the 50,000 under their own names. Computed from a published list (ILSVRC2012_val_00000001.JPEG is 65, and so on), which
has 50 images of each class and agrees with 90.0 % of the ReaL labels."""
_WORDS_AGREE = 0.9
"""Share of class names that must begin with the same words as ours, if a copy that names its classes numbers them as we do."""


def ilsvrc2012(train: int = 1_281_167, val: int = 50_000, digest: str = _VALIDATION_DIGEST) -> Benchmark:
    """Images: how many there are in a part, and `index_digest` of the validation images."""
    return Benchmark(
        name="ilsvrc-2012",
        title="ILSVRC-2012 (ImageNet-1k)",
        revision="2012",
        parts={"train": train, "val": val},
        classes=CLASSES,
        licence="for non-commercial research and education only",
        obtain=(
            "ILSVRC2012_img_val.tar (and ILSVRC2012_img_train.tar) from image-net.org, where one registers, or the data of Kaggle's "
            "ImageNet Object Localization Challenge; the images as val/<WordNet identity>/*.JPEG, or as Kaggle, Hugging Face (Parquet) "
            "and WebDataset shards have them"
        ),
        gigabytes=6.7,
        folders=("imagenet", "ilsvrc2012", "imagenet2012", "imagenet-1k", "ILSVRC2012", "ILSVRC"),
        read=functools.partial(_read_ilsvrc, digest=digest),
        digests={"val": digest},
        published_names=_VALIDATION_NAME.pattern,
        per_class={"val": val // CLASSES} if val == 50_000 else {},
    )


def _read_ilsvrc(folder: Path, parts: Iterable[str], digest: str) -> dict[str, ImageSet]:
    found = {}
    for part in parts:
        images = _part(inner(folder), part)
        if images is None:
            continue
        if part == "val":
            images = _under_published_names(images)
            _refuse_devkit_order(images, digest, folder)
        found[part] = images
    return found


def inner(folder: Path) -> Path:
    """The folder, or the one that alone is in it, as archives are unpacked."""
    while True:
        inside = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or re.fullmatch(r"n\d{8}|\d+|train|val|images", inside[0].name):
            return folder
        folder = inside[0]


def _part(folder: Path, part: str) -> ImageSet | None:
    """One part in whichever layout it is, labels by class number; None if it is in none."""
    places = [base for base in (folder, folder / "ILSVRC", folder / "data") if base.is_dir()]
    names = (part, "validation", "ILSVRC2012_img_val") if part == "val" else (part, "ILSVRC2012_img_train")
    for base in [*places, folder / "Data" / "CLS-LOC", folder / "ILSVRC" / "Data" / "CLS-LOC"]:
        for place in (base / name for name in names):
            if place.is_dir() and any(place.iterdir()):
                if not packed(place, part, ".parquet", *ENDINGS):
                    return _folder(place, folder, part)
                places.append(place)
    for endings in ((".parquet",), ENDINGS):
        for place in places:
            if found := packed(place, part, *endings):
                return _packed(found, folder, part)
    return None


def packed(place: Path, part: str, *endings: str) -> list[Path]:
    """Files with those endings that are named after the part, or else lie in a folder that is."""
    candidates = [path for path in sorted(place.iterdir()) if path.name.lower().endswith(endings) and path.is_file()]
    said = [split_in(path.name.partition(".")[0]) or split_of(place.name) for path in candidates]
    return [path for path, split in zip(candidates, said, strict=True) if split == part]


def _folder(place: Path, root: Path, part: str) -> ImageSet:
    """A folder of class folders, or of validation images side by side."""
    inside = [entry for entry in place.iterdir() if not entry.name.startswith(".")]
    if any(entry.is_dir() for entry in inside):
        return class_folders(place)
    images = open_images([place])
    return _labelled_by_name(images, root, part, place)


def class_folders(place: Path, meaning: Callable[[str], int] | None = None) -> ImageSet:
    """Images in folders of their classes; meaning: name of a folder -> class number (None: it is a WordNet identity)."""
    images = open_dataset(place, min_classes=1).train
    if images.labels is None:
        raise DataError(f"{place} has no folders of classes.")
    by_identity = {identity: number for number, identity in enumerate(identities())}
    numbers = []
    for name in images.class_names:
        number = by_identity.get(name, -1) if meaning is None else meaning(name)
        if not 0 <= number < CLASSES:
            what = "WordNet identities such as n01440764" if meaning is None else "the numbers 0 to 999"
            raise DataError(f"{place / name} is not a class of ILSVRC-2012, whose folders are called by {what}.")
        numbers.append(number)
    return replace(images, labels=np.array(numbers, dtype=np.int64)[images.labels], class_names=identities())


def _packed(paths: Sequence[Path], root: Path, part: str) -> ImageSet:
    """Parquet files, or archives: WebDataset shards, or the original one of validation images without labels."""
    pattern = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent}/{{{','.join(path.name for path in paths)}}}"
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent}/{paths[0].name} and {len(paths) - 1} more"
    images = open_dataset(pattern, min_classes=1).train
    if images.labels is None:
        return _labelled_by_name(images, root, part, paths[0])
    if images.several:
        raise DataError(f"{where}: images of ILSVRC-2012 have one label each.")
    names = images.class_names
    labels = np.array(_meaning(names, where), dtype=np.int64)[images.labels]
    if (
        paths[0].suffix.lower() == ".parquet"
        and (stored := _parquet_names(paths)) is not None
        and len(stored) == len(images)
    ):
        images = replace(images, store=Renamed(images.store, stored))
    return replace(images, labels=labels, class_names=identities())


def _meaning(names: Sequence[str], where: str) -> list[int]:
    """The class numbers that a copy's class names mean."""
    by_identity = {identity: number for number, identity in enumerate(identities())}
    if all(name in by_identity for name in names):
        return [by_identity[name] for name in names]
    if all(re.fullmatch(r"\d{1,9}", name) for name in names):
        numbers = [int(name) for name in names]
        if max(numbers) < CLASSES:
            return numbers
        raise DataError(
            f"{where} has labels up to {max(numbers):,}; the classes of ILSVRC-2012 are numbered from 0 to 999, in the order of their "
            "WordNet identities. Labels from 1 to 1,000 are mostly those of the development kit, whose order is another one."
        )
    words = catalog.class_names("imagenet-1k")
    assert words is not None
    if len(names) == CLASSES:
        same = [_first(name) == _first(word) for name, word in zip(names, words, strict=True)]
        if sum(same) >= _WORDS_AGREE * CLASSES:
            return list(range(CLASSES))
        wrong = same.index(False)
        raise DataError(
            f"{where} numbers its classes otherwise than by their WordNet identities: its class {wrong} is {names[wrong]!r}, "
            f"not {words[wrong]!r}."
        )
    raise DataError(
        f"{where} has labels that are neither numbers from 0 to 999 nor WordNet identities, such as {listed(names[:3])}."
    )


def _first(words: str) -> str:
    """The first of several names of a class."""
    return words.partition(",")[0].casefold()


def _parquet_names(paths: Sequence[Path]) -> list[str] | None:
    """The names of the image files that Parquet files of the form {bytes, path} hold; None if there are none."""
    import pyarrow
    import pyarrow.parquet

    names: list[str] = []
    for path in paths:
        try:
            schema = pyarrow.parquet.read_schema(path)
            column = next(
                (f.name for f in schema if pyarrow.types.is_struct(f.type) and f.type.get_field_index("path") >= 0),
                None,
            )
            if column is None:
                return None
            table = pyarrow.parquet.read_table(path, columns=[f"{column}.path"]).flatten()
            names += [PurePosixPath(name or "").name for name in table.column(0).to_pylist()]
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return names if all(names) else None


def _under_published_names(images: ImageSet) -> ImageSet:
    """The images called as they were published, where their names say so: ILSVRC2012_val_00000293_n02093754.JPEG is
    ILSVRC2012_val_00000293.JPEG."""
    names = [images.name(i) for i in range(len(images))]
    found = [_VALIDATION_NAME.search(name) for name in names]
    if (
        not names
        or not all(found)
        or all(PurePosixPath(name).stem == m[0] for name, m in zip(names, found, strict=True) if m)
    ):
        return images
    return _renamed(images, [f"{match[0]}.JPEG" for match in found if match])


def _renamed(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """The images under other names, in their order."""
    rows = np.asarray(images.rows)
    by_row = [""] * (int(rows.max(initial=-1)) + 1)
    for row, name in zip(rows.tolist(), names, strict=True):
        by_row[row] = name
    return replace(images, store=Renamed(images.store, by_row))


def _refuse_devkit_order(images: ImageSet, digest: str, folder: Path) -> None:
    """DataError if the labels are right but for being the development kit's numbers, from 0 or from 1."""
    assert images.labels is not None
    by_devkit = np.argsort(lists()["devkit"])
    for labels in (by_devkit[images.labels], by_devkit[images.labels - 1]):
        if index_digest(replace(images, labels=labels)) == digest:
            raise DataError(
                f"The labels of {folder} are the numbers of the development kit of ILSVRC-2012, whose order is not that of the WordNet "
                "identities, by which every published model numbers the classes. Put the images into folders named by identity, or use "
                "the development kit's own file, ILSVRC2012_validation_ground_truth.txt, which is read as it is meant."
            )


# --- Labels of validation images that lie side by side


_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT = "ILSVRC2012_devkit_t12"
_SOLUTION = "LOC_val_solution.csv"


def _labelled_by_name(images: ImageSet, root: Path, part: str, place: Path) -> ImageSet:
    truth = _truth(root) if part == "val" else None
    if truth is None:
        raise DataError(
            f"{place} holds images without folders of classes. Put beside it what says their classes: Kaggle's {_SOLUTION}, or the "
            f"development kit ({_DEVKIT}.tar.gz, or {_GROUND_TRUTH} of it), in {root}; or sort the images into folders named by WordNet "
            "identity."
        )
    where, known = truth
    labels = []
    for i in range(len(images)):
        stem = PurePosixPath(images.name(i)).stem
        if stem not in known:
            raise DataError(f"{where} says nothing about {images.name(i)}.")
        labels.append(known[stem])
    renamed = _renamed(images, [PurePosixPath(images.name(i)).name for i in range(len(images))])
    return replace(renamed, labels=np.array(labels, dtype=np.int64), class_names=identities())


def _truth(root: Path) -> tuple[Path, dict[str, int]] | None:
    """The file that says the classes of the validation images, and what it says: name of an image without ending -> class number."""
    for base in (root, root / "ILSVRC", root.parent):
        if (base / _SOLUTION).is_file():
            return base / _SOLUTION, _solution(base / _SOLUTION)
    for base in (
        root,
        root / "data",
        root / _DEVKIT / "data",
        root / "devkit" / "data",
        root / "ILSVRC" / "devkit" / "data",
    ):
        if (base / _GROUND_TRUTH).is_file():
            return base / _GROUND_TRUTH, _ground_truth(_text(base / _GROUND_TRUTH), base / _GROUND_TRUTH)
    archive = root / f"{_DEVKIT}.tar.gz"
    if archive.is_file():
        return archive, _ground_truth(_from_devkit(archive), archive)
    return None


def _text(path: Path) -> str:
    try:
        return files.read(path, "table_bytes").decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {error}.") from error


def _solution(path: Path) -> dict[str, int]:
    """Kaggle's table: ImageId, and PredictionString, which begins with the WordNet identity."""
    number = {identity: i for i, identity in enumerate(identities())}
    known = {}
    rows = csv.DictReader(io.StringIO(_text(path)))
    for row in rows:
        identity = (row.get("PredictionString") or "").split(" ")[0]
        if not row.get("ImageId") or identity not in number:
            raise DataError(
                f"{path}, line {rows.line_num}: an ImageId and a WordNet identity were expected, not {identity!r}."
            )
        known[row["ImageId"]] = number[identity]
    return known


def _ground_truth(text: str, path: Path) -> dict[str, int]:
    """The development kit's file: a line for each image in the order of the names, of the kit's own class numbers, 1 to 1000."""
    number = {devkit: i for i, devkit in enumerate(lists()["devkit"])}
    known = {}
    for line, value in enumerate(text.split(), 1):
        stated = records.whole(value)
        if stated is None or stated not in number:
            raise DataError(f"{path}, line {line}: a number from 1 to 1,000 was expected, not {value[:40]!r}.")
        known[f"ILSVRC2012_val_{line:08d}"] = number[stated]
    return known


def _from_devkit(archive: Path) -> str:
    try:
        with files.opened(archive) as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
            for member in tar:
                if member.isfile() and PurePosixPath(member.name).name == _GROUND_TRUTH and member.size < 1 << 20:
                    content = tar.extractfile(member)
                    assert content is not None
                    return content.read().decode("ascii")
    except (OSError, EOFError, tarfile.TarError, UnicodeDecodeError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{archive} cannot be read: {error or type(error).__name__}.") from error
    raise DataError(f"{archive} does not hold {_GROUND_TRUTH}.")


# --- ReaL


@functools.cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """The classes that each validation image shows, in the order of the file names; () for those that were found to show none."""
    text = lzma.decompress(packaged("imagenet-real.txt.xz")).decode()
    return tuple(tuple(map(int, line.split())) for line in text.split("\n"))


def _read_real(folder: Path, parts: Iterable[str], digest: str) -> dict[str, ImageSet]:
    found = _read_ilsvrc(folder, parts, digest)
    if "val" not in found:
        return {}
    images = found["val"]
    kept, labels = [], []
    for i in range(len(images)):
        name = _VALIDATION_NAME.search(images.name(i))
        if name is None or not 1 <= int(name[0][-8:]) <= len(real_labels()):
            raise DataError(
                f"The ReaL labels go by the names of the images (ILSVRC2012_val_00000001.JPEG), but in {folder} there is {images.name(i)}. "
                "Use a copy that has kept the names."
            )
        if classes := real_labels()[int(name[0][-8:]) - 1]:
            kept.append(i)
            labels.append(classes)
    table = np.full((len(labels), max(map(len, labels), default=1)), -1, dtype=np.int64)
    for row, classes in zip(table, labels, strict=True):
        row[: len(classes)] = classes
    return {"val": replace(images.subset(kept), labels=table)}


def imagenet_real(val: int = 46_837, digest: str = _VALIDATION_DIGEST) -> Benchmark:
    """val: images that show one of the classes. digest: see `ilsvrc2012`."""
    original = ilsvrc2012()
    return replace(
        original,
        name="imagenet-real",
        title="ImageNet-ReaL (the validation images of ILSVRC-2012)",
        revision="2020",
        parts={"val": val},
        read=functools.partial(_read_real, digest=digest),
        digests={},
        per_class={},
    )


ILSVRC2012, IMAGENET_REAL = ilsvrc2012(), imagenet_real()
