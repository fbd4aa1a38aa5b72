"""Whether something that has nothing to do with what pictures show tells their classes: size, shape, file type, brightness.

A network learns such shortcuts (Geirhos et al. 2020), and fails where they no longer hold: all photos of one class from one camera.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5
BINS = 16
"""Ranges that numbers are sorted into, with as many training images in each as can be."""

TELLING = 0.25
"""Share of the way from guessing to knowing that the lower end of the interval must have reached for a shortcut to be told of."""


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """How well one trait alone tells the classes, on images that it was not fitted to."""

    trait: str
    recall: float
    """Mean over classes of the share of their images that are told correctly, 0 to 1."""
    low: float
    high: float
    """Its 95% interval."""
    chance: float
    """What guessing gives."""
    images: int

    @property
    def telling(self) -> bool:
        """Whether it says so much that a network would learn it."""
        return self.low > self.chance + TELLING * (1 - self.chance)


def judge(
    trait: str,
    values: Sequence[Hashable] | np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> Shortcut | None:
    """How well a trait tells the classes; None if fewer than two classes have `FOLDS` images each, or all images are alike in it.

    values: of each image, a number (float array, sorted into `BINS` ranges) or a word. labels: int (n,). groups: int (n,), images of one
    number show the same picture: they are in one part together, and count as one image where it matters how many there are.

    An image is of the class in whose training images its value is most frequent; cross-validated in `FOLDS` parts drawn class by class. The
    interval is the normal one of a mean of independent shares, each with a success and a failure added.
    """
    labels = np.asarray(labels)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    names, counts = np.unique(np.unique(np.stack([labels, groups]), axis=1)[0], return_counts=True)
    kept = np.isin(labels, names[counts >= FOLDS])
    names, label = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        return None
    numbers = isinstance(values, np.ndarray) and values.dtype.kind in "fiu"
    if numbers:
        value = np.asarray(values, dtype=np.float64)[kept]
    else:
        _, value = np.unique([str(one) for one, keep in zip(values, kept, strict=True) if keep], return_inverse=True)
    if len(np.unique(value)) < 2:
        return None
    fold = _folds(label, len(names), seed)
    _, first, group = np.unique(groups[kept], return_index=True, return_inverse=True)
    fold = fold[first][group]
    hit = np.zeros(len(label), bool)
    for number in range(FOLDS):
        test = fold == number
        # Of words each has its own place.
        edges = (
            np.quantile(value[~test], np.linspace(0, 1, BINS + 1)[1:-1]) if numbers else np.arange(1, value.max() + 1)
        )
        sorted_in = np.searchsorted(np.unique(edges), value, side="right")
        table = np.zeros((len(names), int(sorted_in.max()) + 1))
        np.add.at(table, (label[~test], sorted_in[~test]), 1)
        table /= np.maximum(table.sum(1, keepdims=True), 1)
        # What no training image has tells nothing: a guess, which of many classes is the same one always.
        hit[test] = table.argmax(0)[sorted_in[test]] == label[test]
    n = np.bincount(label)
    right = np.bincount(label, hit)
    recall = float((right / n).mean())
    pictures = counts[counts >= FOLDS]
    smooth = (right / n * pictures + 1) / (pictures + 2)
    half = 1.96 * math.sqrt(float((smooth * (1 - smooth) / pictures).sum())) / len(n)
    return Shortcut(
        trait=trait,
        recall=recall,
        low=max(0.0, recall - half),
        high=min(1.0, recall + half),
        chance=1 / len(names),
        images=len(label),
    )


def judge_all(
    traits: Mapping[str, Sequence[Hashable] | np.ndarray], labels: np.ndarray, groups: np.ndarray | None = None
) -> list[Shortcut]:
    """All traits that can be judged, the most telling first; arguments as of `judge`."""
    found = [
        one for trait, values in traits.items() if (one := judge(trait, values, labels, groups=groups)) is not None
    ]
    return sorted(found, key=lambda one: -(one.recall - one.chance))


def _folds(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """int (n,): the part that each image is in, as many of each class in each as can be."""
    generator = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.int64)
    for label in range(classes):
        rows = generator.permutation(np.flatnonzero(labels == label))
        fold[rows] = (np.arange(len(rows)) + label) % FOLDS
    return fold
