"""The image sets of the main job, out of clones of the public repositories that hold them.

    python -m benchmarks.sets CLONES SETS [--names NAME ...]

CLONES holds bare clones (`git clone --bare https://github.com/OWNER/NAME CLONES/OWNER+NAME`); SETS/<set>/ gets train/ and test/ and in
these a folder per class, as `benchmarks.main_job` wants them. Sets that are there are left alone. What a repository has divided stays so,
but for training images that are byte for byte among the test images; of the others a fifth of each class is for the test. Of large sets
a part is drawn. Random is only `random.Random(0)`, over classes and files in the order of their names.

The terms are those of the originals. Of CIFAR-10 the results of 2026-11-26 have other training images, 100 per class likewise; what is
drawn of the test images is the same.
"""

from __future__ import annotations

import argparse
import io
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ENDINGS = (".jpg", ".jpeg", ".png")

Images = dict[str, dict[str, bytes]]
"""Class -> file name -> content, both in order."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a set lies. The class of an image is the folder below these folders that it is in."""

    repository: str
    commit: str
    train: str
    """Folder of the training images, or of all."""
    test: str | None = None
    archive: str | None = None
    """A tar file of the repository that has the folders in it."""
    endings: tuple[str, ...] = ENDINGS
    without: str = ""
    """A class that is left out."""
    labels: str | None = None
    """A table instead of folders: lines of path, probability of a defect and type; only what is certain is taken."""
    most: tuple[int, int] | None = None
    """Training and test images of a class, at most."""


PACS = ("MachineLearning2020+Homework3-PACS", "d586a6cf3d")

SETS = {
    "ants-bees": Source(
        repository="zhangtao7750+syn", commit="f050309148", train="hymenoptera_data/train", test="hymenoptera_data/val"
    ),
    "brain-tumour": Source(
        repository="SartajBhuvaji+Brain-Tumor-Classification-DataSet",
        commit="3ea9f4eae5",
        train="Training",
        test="Testing",
    ),
    "caltech101": Source(
        repository="MachineLearning2020+Homework2-Caltech101",
        commit="836044dd00",
        train="101_ObjectCategories",
        without="BACKGROUND_Google",
        most=(30, 20),
    ),
    "cifar10": Source(
        repository="cyizhuo+CIFAR-10-dataset", commit="a828d74fc", train="train", test="test", most=(100, 200)
    ),
    "cifar100": Source(
        repository="cyizhuo+CIFAR-100-dataset", commit="b105b30e79", train="train", test="test", most=(30, 20)
    ),
    "dtd10": Source(repository="pan8915+DeepTexture", commit="522f46f683", train="images"),
    "flowers12": Source(
        repository="daniele-gilio+Machine-Learning-Class",
        commit="35496a143",
        train="lab3/flowers/train",
        test="lab3/flowers/test",
    ),
    "flowers5": Source(repository="martinwestin+flower_classification", commit="c169e7e403", train="flowers"),
    "fruits60": Source(
        repository="Horea94+fruit_shapes", commit="1e2f904ec7", train="Training", test="Validation", most=(30, 20)
    ),
    "hand-digits": Source(repository="ardamavi+Sign-Language-Digits-Dataset", commit="4b09433ef9", train="Dataset"),
    "intel": Source(
        repository="afroozsheikh+Intel-Image-Classifier",
        commit="268f8fc38f",
        train="train",
        test="test",
        most=(150, 200),
    ),
    "magnetic-tiles": Source(  # the .png beside the pictures are masks
        repository="abin24+Magnetic-tile-defect-datasets.", commit="cc4eb530b5", train=".", endings=(".jpg",)
    ),
    "pacs-art": Source(repository=PACS[0], commit=PACS[1], train="PACS/art_painting"),
    "pacs-cartoon": Source(repository=PACS[0], commit=PACS[1], train="PACS/cartoon"),
    "pacs-photo": Source(repository=PACS[0], commit=PACS[1], train="PACS/photo"),
    "pacs-sketch": Source(repository=PACS[0], commit=PACS[1], train="PACS/sketch"),
    "solar-cells": Source(
        repository="zae-bayern+elpv-dataset",
        commit="411fd729da",
        train="src/elpv_dataset/data/images",
        labels="src/elpv_dataset/data/labels.csv",
    ),
    "trashnet": Source(
        repository="lightb0x+trashnet-resize",
        commit="18c97a7ea",
        train="dataset-resized-rgb-112",
        archive="dataset-resized-rgb-112.tar.gz",
    ),
}


def git(clone: Path, *words: str) -> bytes:
    """What git answers."""
    return subprocess.run(["git", f"--git-dir={clone}", *words], check=True, stdout=subprocess.PIPE).stdout


def files(clone: Path, source: Source, folder: str) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Path below the folder and content, of all images in it."""
    if source.archive is None:
        packed = git(clone, "archive", source.commit, "--", folder)
    else:
        packed = git(clone, "show", f"{source.commit}:{source.archive}")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            file = archive.extractfile(member) if path.suffix.lower() in source.endings else None
            if file is not None and path.is_relative_to(folder):
                yield path.relative_to(folder), file.read()


def certain(clone: Path, source: Source) -> dict[str, str]:
    """Classes of the images in the source's table, by file name."""
    rows = (line.split() for line in git(clone, "show", f"{source.commit}:{source.labels}").decode().splitlines())
    return {
        PurePosixPath(row[0]).name: "defect" if float(row[1]) else "whole"
        for row in rows
        if len(row) == 3 and float(row[1]) in (0, 1)
    }


def images(clone: Path, source: Source, folder: str) -> Images:
    table = certain(clone, source) if source.labels else None
    found: Images = {}
    for path, content in files(clone, source, folder):
        label = path.parts[0] if table is None else table.get(path.name)
        if label in (None, source.without) or (table is None and len(path.parts) == 1):
            continue
        found.setdefault(label, {})[path.name] = content
    return {label: dict(sorted(found[label].items())) for label in sorted(found)}


def divided(every: Images) -> tuple[Images, Images]:
    """(train, test): of each class a fifth of what differs is for the test; images that are the same byte for byte are on one side."""
    chance = random.Random(0)
    groups: dict[bytes, list[tuple[str, str]]] = {}
    for label, some in every.items():
        for name, content in some.items():
            groups.setdefault(content, []).append((label, name))
    drawn: set[tuple[str, str]] = set()
    for label in every:
        own = [group for group in groups.values() if group[0][0] == label]
        chance.shuffle(own)
        drawn.update(one for group in own[: round(0.2 * len(own))] for one in group)
    train, test = (
        {
            label: {name: some[name] for name in some if ((label, name) in drawn) is wanted}
            for label, some in every.items()
        }
        for wanted in (False, True)
    )
    return train, test


def some(every: Images, most: int) -> Images:
    """At most so many of each class."""
    chance = random.Random(0)
    return {
        label: {name: own[name] for name in sorted(chance.sample(list(own), min(most, len(own))))}
        for label, own in every.items()
    }


def of_each(every: Images, train: int, test: int) -> tuple[Images, Images]:
    """(train, test): at most so many of each class; of a class that has too few a fifth is for the test."""
    chance = random.Random(0)
    parts: tuple[Images, Images] = ({}, {})
    for label, own in every.items():
        names = list(own)
        chance.shuffle(names)
        tested = test if len(names) >= train + test else min(test, round(0.2 * len(names)))
        for part, chosen in zip(parts, (names[tested : tested + train], names[:tested]), strict=True):
            part[label] = {name: own[name] for name in sorted(chosen)}
    return parts


def parted(clone: Path, source: Source) -> tuple[Images, Images]:
    """(train, test) of this source."""
    train = images(clone, source, source.train)
    if source.test is None:
        return divided(train) if source.most is None else of_each(train, *source.most)
    test = images(clone, source, source.test)
    seen = {content for own in test.values() for content in own.values()}
    train = {label: {name: one for name, one in own.items() if one not in seen} for label, own in train.items()}
    return (train, test) if source.most is None else (some(train, source.most[0]), some(test, source.most[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clones", type=Path, help="folder of the clones")
    parser.add_argument("sets", type=Path, help="folder for the sets")
    parser.add_argument("--names", nargs="+", choices=SETS, default=list(SETS), help="of the sets; default: all")
    chosen = parser.parse_args()
    for name in chosen.names:
        if (chosen.sets / name).exists():
            continue
        source = SETS[name]
        clone = chosen.clones / source.repository
        if not clone.is_dir():
            address = f"https://github.com/{source.repository.replace('+', '/', 1)}"
            sys.exit(f"There is no clone {clone}. Make one: git clone --bare {address} {clone}")
        parts = dict(zip(("train", "test"), parted(clone, source), strict=True))
        chosen.sets.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=chosen.sets) as folder:
            for part, classes in parts.items():
                for label, own in classes.items():
                    place = Path(folder, name, part, label)
                    place.mkdir(parents=True)
                    for file, content in own.items():
                        (place / file).write_bytes(content)
            Path(folder, name).rename(chosen.sets / name)
        counts = (sum(map(len, classes.values())) for classes in parts.values())
        print(f"{name}: {len(parts['train'])} classes, {' / '.join(map(str, counts))} images", flush=True)


if __name__ == "__main__":
    main()
