"""Who learns and who is asked: validation splits, few images per class, and the file that repeats them.

Every choice depends on the seed, the labels and the order of the set alone.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from bigtransfer import records
from bigtransfer.data.layout import listed, quoted
from bigtransfer.data.sources import ImageSet, Splits
from bigtransfer.errors import ConfigError, DataError
from bigtransfer.runs import write_json

IMBALANCED = 10
"""Classes of which one has at least so many times the images of another are said to be imbalanced."""

SPARED = 3
"""Images of a class from which on one of them can be held out to know anything of the class."""


@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """Classes of very different size, both with images."""

    largest: str
    most: int
    """Images of it."""
    smallest: str
    fewest: int

    def __str__(self) -> str:
        return f"{self.most:,} images of {quoted(self.largest)}, {self.fewest:,} of {quoted(self.smallest)}"


def imbalance(images: ImageSet) -> Imbalance | None:
    """Of a set of one label each, the most and the fewest images of a class, if the classes are imbalanced (`IMBALANCED`)."""
    if images.labels is None or images.several:
        return None
    counts = images.class_counts()
    present = np.flatnonzero(counts)
    largest, smallest = present[counts[present].argmax()], present[counts[present].argmin()]
    if counts[largest] < IMBALANCED * counts[smallest]:
        return None
    return Imbalance(
        largest=images.class_names[largest],
        most=int(counts[largest]),
        smallest=images.class_names[smallest],
        fewest=int(counts[smallest]),
    )


def single(data: Splits) -> Splits:
    """The data set with plain labels if every image's list of labels holds one."""
    labelled = [part for part in data.parts().values() if part.several]
    if not all(part.labels is None or part.labels.shape[1] == 1 for part in labelled):
        return data
    return dataclasses.replace(
        data,
        **{
            name: dataclasses.replace(part, labels=None if part.labels is None else part.labels[:, 0])
            for name, part in data.parts().items()
            if part.several
        },
    )


def hold_out(images: ImageSet, fraction: float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """(train, val): `fraction` of the images, drawn class by class in proportion, are held out for validation.

    `val` has `round(fraction * len(images))` images (at least 1), but never the last of a class: every class stays in `train`. Where the
    classes are imbalanced it has one at least of each class of `SPARED` images: a model that never answers with a small class would look
    perfect otherwise. The set must be labelled.

    Of images with several labels they are drawn without regard to class, and at least one stays in `train`.
    ConfigError if `fraction` is not within (0, 1); DataError if no class has two images.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The validation share must lie between 0 and 1, not {fraction}.")
    generator = np.random.default_rng(seed)
    if images.labels is not None and images.labels.ndim > 1 and len(images) > 1:
        drawn = generator.permutation(len(images))
        count = min(len(images) - 1, max(1, round(fraction * len(images))))
        return images.subset(np.sort(drawn[count:])), images.subset(np.sort(drawn[:count]))
    members = _members(images, generator)
    counts = np.array([len(rows) for rows in members])
    if counts.max(initial=0) < 2:
        raise DataError(
            "No class has two images, so none can be held out for validation. Add images, or turn validation off."
        )
    room = np.maximum(counts - 1, 0)
    exact = fraction * counts
    take = np.minimum(np.floor(exact).astype(np.int64), room)
    # What the rounding down left over goes, one each, to the classes that lost most by it; equal ones in random order.
    wanted = max(1, round(fraction * len(images)))
    order = generator.permutation(len(counts))
    order = order[np.argsort(-(exact - take)[order], kind="stable")]
    open_classes = order[take[order] < room[order]]
    take[open_classes[: max(0, wanted - int(take.sum()))]] += 1
    if imbalance(images) is not None:
        take[(take == 0) & (counts >= SPARED)] = 1
    chosen = np.concatenate([rows[:count] for rows, count in zip(members, take, strict=True)])
    rest = np.setdiff1d(np.arange(len(images)), chosen)
    return images.subset(rest), images.subset(np.sort(chosen))


def per_class(images: ImageSet, k: int, seed: int = 0, allow_fewer: bool = False) -> ImageSet:
    """`k` images of every class, drawn without replacement; those of a smaller `k` with the same seed are among them.

    A class with fewer than `k` images gives all it has if `allow_fewer`, else DataError names it. The set must be labelled.
    """
    if k < 1:
        raise ConfigError(f"At least 1 image per class is needed, not {k}.")
    members = _members(images, np.random.default_rng(seed))
    short = [f"{name} ({len(rows)})" for name, rows in zip(images.class_names, members, strict=True) if len(rows) < k]
    if short and not allow_fewer:
        raise DataError(
            f"Not every class has {k} training images: {listed(short)}. Ask for fewer per class, or add images."
        )
    return images.subset(np.sort(np.concatenate([rows[:k] for rows in members])))


def evenly(images: ImageSet, count: int, seed: int) -> ImageSet:
    """`count` of the images at random, or all if there are not more, as many of each class as there are to be had; in their order."""
    if len(images) <= count:
        return images
    members = _members(images, np.random.default_rng(seed))
    # The first of each class, then the second of each, ...
    turns = np.concatenate([np.arange(len(rows)) for rows in members])
    chosen = np.concatenate(members)[np.argsort(turns, kind="stable")][:count]
    return images.subset(np.sort(chosen))


def in_turn(images: ImageSet, seed: int) -> np.ndarray:
    """All indices of the images, in an order of which every beginning is a fair sample: first one image of each class, in random order,
    then all classes at the pace that leaves each with its share. Of images with several labels or none: at random."""
    generator = np.random.default_rng(seed)
    if images.labels is None or images.labels.ndim > 1:
        return generator.permutation(len(images))
    members = [rows for rows in _members(images, generator) if len(rows)]
    # Where in a sequence from 0 to 1 an image stands that is number r of the n of its class; the first ones of all before.
    places = [(np.arange(len(rows)) + generator.random()) / len(rows) for rows in members]
    for place, first in zip(places, generator.permutation(len(places)), strict=True):
        place[0] = first - len(places)
    return np.concatenate(members)[np.argsort(np.concatenate(places), kind="stable")] if members else np.arange(0)


def _members(images: ImageSet, generator: np.random.Generator) -> list[np.ndarray]:
    """The indices of each class in random order; classes in label order."""
    if images.labels is None:
        raise DataError(
            "These images have no labels, so they cannot be split by class. Put them into one folder per class."
        )
    if images.labels.ndim > 1:
        raise DataError("These images have several labels each, so they cannot be drawn class by class.")
    return [generator.permutation(np.flatnonzero(images.labels == label)) for label in range(len(images.class_names))]


def save_split(path: str | os.PathLike[str], splits: Splits) -> None:
    """Writes which images are in which split as JSON, `{"train": [name, ...], "val": ..., "test": ...}`, atomically."""
    write_json(path, {part: _names(images) for part, images in splits.parts().items()})


@dataclass(frozen=True, kw_only=True)
class _SplitFile:
    """The form of a split file: names of images."""

    train: Annotated[list[str], msgspec.Meta(min_length=1)]
    val: list[str] | None = None
    test: list[str] | None = None


def load_split(path: str | os.PathLike[str], data: Splits) -> Splits:
    """The splits that `save_split` wrote, out of the images of all splits of `data` (as `open_dataset` gives them).

    Images that the file does not name are left out. Raises DataError if the file is not readable, or names images that are gone.
    """
    try:
        wanted = records.read(path, _SplitFile, DataError)
    except FileNotFoundError as error:
        raise DataError(f"There is no split file {path}.") from error
    except DataError as error:
        raise DataError(f"{error} It is not a split file as a run writes it (split.json).") from error
    parts = {
        part: names for part, names in (("train", wanted.train), ("val", wanted.val), ("test", wanted.test)) if names
    }
    sets = list(data.parts().values())
    # All splits of a data set share its store, so one set can hold them all for a moment; -1 stands for "unlabelled".
    several = () if data.train.labels is None else data.train.labels.shape[1:]
    labels = [np.full((len(images), *several), -1) if images.labels is None else images.labels for images in sets]
    rows = np.concatenate([images.rows for images in sets])
    pool = dataclasses.replace(data.train, rows=rows, labels=np.concatenate(labels))
    index = {name: i for i, name in enumerate(_names(pool))}
    chosen: dict[str, ImageSet] = {}
    for part, names in parts.items():
        gone = [name for name in names if name not in index]
        if gone:
            raise DataError(f"{path} names images that the data set does not have: {listed(gone)}.")
        images = pool.subset([index[name] for name in names])
        assert images.labels is not None
        unlabelled = (images.labels.reshape(len(images), -1)[:, 0] < 0).any()
        chosen[part] = dataclasses.replace(images, labels=None, class_names=()) if unlabelled else images
    twice = set(parts["train"]) & {name for part, names in parts.items() if part != "train" for name in names}
    if twice:
        raise DataError(f"{path} has images in train and in another split: {listed(sorted(twice))}.")
    return Splits(**chosen, notes=data.notes)


def _names(images: ImageSet) -> list[str]:
    return [images.name(i) for i in range(len(images))]
