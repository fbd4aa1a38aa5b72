"""CIFAR-10 and CIFAR-100, Oxford-IIIT Pets and Flowers-102: the paper's transfer to whole training sets, and its few-shot curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from bigtransfer import catalog, files
from bigtransfer.data import ImageSet, cifar, open_dataset, originals
from bigtransfer.data.sources import Files
from bigtransfer.errors import DataError
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.ilsvrc import ILSVRC2012
from bigtransfer.suites.learning import ClosedForm, FewShot, FewshotLsr, HyperRule, Learner, LinearProbe, Transfer
from bigtransfer.suites.suite import Suite, Task

# --- CIFAR


def _cifar(edition: cifar.Edition, labels: str) -> Callable[..., Mapping[str, ImageSet]]:
    names = catalog.class_names(labels)
    assert names is not None

    def read(folder: Path, needed: Iterable[str]) -> Mapping[str, ImageSet]:
        found = cifar.parts(folder, edition, names)
        if not found and (folder / "train").is_dir():
            found = open_dataset(folder).parts()
            if found["train"].class_names != names:
                raise DataError(
                    f"{folder}: the folders of the classes are {_some(found['train'].class_names)}; published are {_some(names)}."
                )
        for part in set(needed) & found.keys():
            _check_even(folder, part, found[part])
        return found

    return read


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


def _check_even(folder: Path, part: str, images: ImageSet) -> None:
    """That every class has as many images as every other."""
    counts = images.class_counts()
    if (counts != counts.max(initial=0)).any():
        few, many = int(counts.argmin()), int(counts.argmax())
        raise DataError(
            f"{folder}: {counts[few]:,} images of {images.class_names[few]} in the {part} part and {counts[many]:,} of "
            f"{images.class_names[many]}, but as many of each class were published. Is the copy complete, and are the labels not mixed up?"
        )


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_RESEARCH = "no licence stated; of Tiny Images, for research"

CIFAR10 = Benchmark(
    name="cifar-10",
    title="CIFAR-10",
    revision="2009",
    parts={"train": 50_000, "test": 10_000},
    classes=10,
    licence=_RESEARCH,
    obtain=f"cifar-10-binary.tar.gz or cifar-10-python.tar.gz from {_TORONTO}/cifar.html and unpack it; the folder in it",
    gigabytes=0.17,
    folders=("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-10", "cifar10"),
    read=_cifar(cifar.CIFAR10, "cifar10"),
)

CIFAR100 = Benchmark(
    name="cifar-100",
    title="CIFAR-100",
    revision="2009",
    parts={"train": 50_000, "test": 10_000},
    classes=100,
    licence=_RESEARCH,
    obtain=f"cifar-100-binary.tar.gz or cifar-100-python.tar.gz from {_TORONTO}/cifar.html and unpack it; the folder in it",
    gigabytes=0.17,
    folders=("cifar-100-binary", "cifar-100-python", "cifar-100", "cifar100"),
    read=_cifar(cifar.CIFAR100, "cifar100"),
)

# --- Oxford-IIIT Pets


def _pets(folder: Path, needed: Iterable[str]) -> Mapping[str, ImageSet]:
    names = catalog.class_names("oxford_iiit_pet")
    assert names is not None
    try:
        lists = {part: folder / "annotations" / file for part, file in originals.PETS_LISTS.items()}
        found = originals.pets(folder, [part for part, path in lists.items() if part in needed and path.exists()])
    except ValueError as error:
        raise DataError(f"{error}.") from error
    for part, listed in found.items():
        for number, (path, label) in enumerate(listed, 1):
            expected = names[label] if 0 <= label < len(names) else "none"
            if originals.breed(path) != expected:
                raise DataError(
                    f"{lists[part]}, line {number}: class {label + 1} is {expected}, not "
                    f"{originals.breed(path)[:40] or '?'}."
                )
    return {part: _listed(folder, listed, names) for part, listed in found.items()}


def _listed(folder: Path, listed: originals.Listed, names: tuple[str, ...]) -> ImageSet:
    return listed_files(folder, [path for path, _ in listed], [label for _, label in listed], names)


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not empty; DataError if it cannot be read."""
    try:
        return [
            line for line in files.read(path, "table_bytes").decode("utf-8", "replace").splitlines() if line.strip()
        ]
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error


def listed_files(folder: Path, paths: list[str], labels: Iterable[int], names: tuple[str, ...]) -> ImageSet:
    """The images of a list, by paths below the folder. DataError with the number of files that are not there."""
    gone = [path for path in paths if not (folder / path).is_file()]
    if gone:
        raise DataError(
            f"{folder}: {len(gone):,} of {len(paths):,} listed images are not there, such as {gone[0]}. Unpack the archive anew."
        )
    return ImageSet(Files(folder, paths), range(len(paths)), np.asarray(list(labels), dtype=np.int64), names)


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"

PETS = Benchmark(
    name="oxford-iiit-pet",
    title="Oxford-IIIT Pets",
    revision="2012",
    parts={"train": 3_680, "test": 3_669},
    classes=37,
    licence="CC BY-SA 4.0",
    obtain=f"images.tar.gz and annotations.tar.gz from {_OXFORD}/pets/ and unpack both; the folder that holds images/ and annotations/",
    gigabytes=0.8,
    folders=("oxford-iiit-pet", "oxford_iiit_pet", "pets"),
    read=_pets,
)

# --- Flowers-102


def _flowers(folder: Path, needed: Iterable[str]) -> Mapping[str, ImageSet]:
    names = catalog.class_names("oxford_flowers102")
    assert names is not None
    try:
        listed = originals.flowers(folder)
    except ValueError as error:
        raise DataError(f"{error}. Get it anew.") from error
    stated = [label for own in listed.values() for _, label in own]
    if stated and not (min(stated) >= 0 and max(stated) < len(names)):
        raise DataError(
            f"{folder / 'imagelabels.mat'}: labels {min(stated) + 1} to {max(stated) + 1}, but 1 to {len(names)} were published."
        )
    listed["train+val"] = listed["train"] + listed["val"]
    found = {}
    for part in needed:
        found[part] = _listed(folder, listed[part], names)
        if part != "test":
            _check_even(folder, part, found[part])
    return found


FLOWERS = Benchmark(
    name="flowers-102",
    title="Oxford Flowers-102",
    revision="2008",
    parts={"train": 1_020, "val": 1_020, "test": 6_149, "train+val": 2_040},
    classes=102,
    licence="no licence stated; for research",
    obtain=f"102flowers.tgz, imagelabels.mat and setid.mat from {_OXFORD}/flowers/102/ and unpack the first; the folder with jpg/ and both",
    gigabytes=0.35,
    folders=("flowers-102", "flowers102"),
    read=_flowers,
)

# --- Suites

_SETS = {"cifar-10": CIFAR10, "cifar-100": CIFAR100, "pets": PETS, "flowers-102": FLOWERS}
_VARIANTS = {
    "code": HyperRule(variant="code"),
    "readme": HyperRule(variant="code", batch_size=128, learning_rate=0.001),
}
"""The released code as it is, and with the batch and learning rate that its README measured CIFAR with."""
_CHEAP = (ClosedForm(), LinearProbe(), FewshotLsr())

TRANSFER = Suite(
    name="transfer",
    title="CIFAR-10, CIFAR-100, Pets, Flowers-102: the whole training sets",
    tasks=tuple(Task(name=name, benchmark=one, protocol=Transfer()) for name, one in _SETS.items()),
    extra=(
        *(
            Task(name=f"{name}/{variant}", benchmark=one, protocol=Transfer(learner=learner))
            for variant, learner in _VARIANTS.items()
            for name, one in _SETS.items()
        ),
        Task(name="flowers-102/train+val", benchmark=FLOWERS, protocol=Transfer(train="train+val")),
        *(
            Task(name=f"{name}/{learner.kind}", benchmark=one, protocol=Transfer(learner=learner))
            for learner in _CHEAP
            for name, one in _SETS.items()
        ),
    ),
)

_CURVES = {
    "ilsvrc-2012": (ILSVRC2012, "val", (1, 5, 10, 25, 100)),
    "cifar-10": (CIFAR10, "test", (1, 5, 10, 25, 100)),
    "cifar-100": (CIFAR100, "test", (1, 5, 10, 25, 100)),
    "pets": (PETS, "test", (1, 5, 10, 25)),
    "flowers-102": (FLOWERS, "test", (1, 5)),
}
"""Of each set the part that is measured on, and how many images of each class, besides all: those of figures 1 and 2 that it has. All of
Flowers-102 are 10."""


def _curve(name: str, learner: Learner, ending: str = "") -> tuple[Task, ...]:
    subsets = 3 if isinstance(learner, FewshotLsr) else 5
    benchmark, test, few = _CURVES[name]
    return (
        *(
            Task(
                name=f"{name}/{shots}-shot{ending}",
                benchmark=benchmark,
                protocol=FewShot(learner=learner, shots=shots, subsets=subsets, test=test),
            )
            for shots in few
        ),
        Task(name=f"{name}/full{ending}", benchmark=benchmark, protocol=Transfer(learner=learner, test=test)),
    )


FEW_SHOT = Suite(
    name="few-shot",
    title="1, 5, 10, 25, 100 images of each class, and all: medians of five draws",
    tasks=tuple(task for name in _CURVES for task in _curve(name, HyperRule())),
    extra=tuple(
        task
        for ending, learner in (*_VARIANTS.items(), *((learner.kind, learner) for learner in _CHEAP))
        for name in _CURVES
        for task in _curve(name, learner, f"/{ending}")
    ),
)

SUITES = (TRANSFER, FEW_SHOT)
