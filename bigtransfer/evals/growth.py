"""How many more photos: accuracy by the number of images, measured on parts of the data, and continued by a law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigtransfer.evals import linear

HALVINGS = 4
"""Sizes that accuracy is measured at below that of all images: a half, a quarter, and so on."""

DRAWS = 4
"""Parts of each of these sizes, of which the mean is taken."""

FEWEST = 2
"""Images of a class in the smallest part, in the mean."""

MOST = 2_000
"""Images that the curve is measured with at most."""

INTERVAL = 0.9
"""Share of the cases in which accuracy is to lie within what is foretold."""

_SLOPE, _SLOPE_DEVIATION = 0.3, 0.2
"""What is expected of the law before anything is measured: by how much log(accuracy / error) grows with every doubling of the images."""

_DRIFT = 0.12
"""Standard deviation by which it grows otherwise, per doubling, than the measured slope says. All three are set by the back-test
(benchmarks/growth.py)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Accuracy with so many images."""

    images: int
    accuracy: float
    """Share of all images that are told correctly by a classifier which has not seen them, 0 to 1."""
    recall: tuple[float, ...]
    """The same of each class; NaN of those without images."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Accuracy with more images of the same kind."""

    images: int
    accuracy: float
    low: float
    high: float
    """Between which it lies with probability `INTERVAL`."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What more images would do for one class."""

    label: int
    images: int
    recall: float
    """With all images."""
    doubled: float
    """Expected with twice as many of every class."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A learning curve and where it leads."""

    points: tuple[Point, ...]
    """The fewest images first; the last has all."""
    forecasts: tuple[Forecast, ...]
    """With twice and four times as many."""
    gains: tuple[Gain, ...]
    """The classes that would gain most first, by images that are then told correctly."""

    @property
    def remark(self) -> str:
        """A sentence if more images are foretold to give less than was measured; else empty."""
        if self.forecasts[0].accuracy >= self.points[-1].accuracy:
            return ""
        return (
            "What is foretold follows all points of the curve, and here lies below the last one: more images will hardly make it worse, "
            "but these do not show that they make it better."
        )


def curve(
    features: Tensor, labels: Tensor, num_classes: int, *, groups: Tensor | None = None, seed: int = 0
) -> tuple[Point, ...]:
    """Accuracy with all images, and with nested parts of them, by the closed form; the fewest first.

    features float `(n, d)`, labels int `(n,)`, groups int `(n,)`: images that show the same picture. The parts have the classes in
    proportion; every image is judged by a classifier fitted without it and its group: those of the part by leaving them out
    (`linear.left_out`). So all points are of the same images, and differ by what was learnt from.
    """
    n = len(labels)
    groups = torch.arange(n) if groups is None else groups
    points = [_point(n, _right(features, labels, num_classes, groups, torch.arange(n))[None], labels, num_classes)]
    present = len(labels.unique())
    orders = [_order(labels, seed + draw) for draw in range(DRAWS)]
    for halving in range(1, HALVINGS + 1):
        size = round(n / 2**halving)
        if size < FEWEST * present:
            break
        right = [_right(features, labels, num_classes, groups, order[:size].sort().values) for order in orders]
        points.append(_point(size, torch.stack(right), labels, num_classes))
    return tuple(reversed(points))


def _order(labels: Tensor, seed: int) -> Tensor:
    """int (n,): the images in random order, every beginning of it with the classes in proportion."""
    generator = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels.numpy()):
        rows = generator.permutation(np.flatnonzero(labels.numpy() == label))
        place[rows] = (np.arange(len(rows)) + generator.random()) / len(rows)
    return torch.from_numpy(np.argsort(place, kind="stable"))


def _right(features: Tensor, labels: Tensor, num_classes: int, groups: Tensor, part: Tensor) -> Tensor:
    """bool (n,): whether each image is told correctly by the classifier of those in `part`, int (m,), without it and its group."""
    probe = linear.fit(features[part], labels[part], num_classes)
    scores = torch.empty(len(labels), num_classes, dtype=torch.float64)
    with torch.no_grad():
        scores[:] = probe.head(features.float())
    scores[part] = linear.left_out(features[part], labels[part], num_classes, probe, groups=groups[part])
    # Those that a copy of is in the part would be known by it: as that one is judged without them, so are they.
    known = torch.isin(groups, groups[part])
    known[part] = False
    right = scores.argmax(1) == labels
    if known.any():
        first = {int(group): int(i) for i, group in zip(part.tolist(), groups[part].tolist(), strict=True)}
        for i in known.nonzero()[:, 0].tolist():
            right[i] = int(scores[first[int(groups[i])]].argmax()) == int(labels[i])
    return right


def _point(images: int, right: Tensor, labels: Tensor, num_classes: int) -> Point:
    share = right.double().mean(0)
    counts = torch.bincount(labels, minlength=num_classes)
    recall = torch.bincount(labels, share, num_classes) / counts
    return Point(images=images, accuracy=float(share.mean()), recall=tuple(recall.tolist()))


def foretell(points: Sequence[Point], judged: int, images: Sequence[int]) -> list[Forecast]:
    """Accuracy with so many images, from points of which the last has all; judged: images that each point was measured on.

    The law: log(accuracy / error) is a line in the logarithm of the number of images (accuracy saturates at both ends). The line is fitted
    by Bayesian least squares, its slope expected to be `_SLOPE`; what is foretold is off by what the line is, by what the measured
    accuracy is, and by `_DRIFT` for every doubling.
    """
    line = _line([point.images for point in points], [point.accuracy for point in points], judged)
    found = []
    for count in images:
        middle, deviation = line.at(float(np.log2(count / points[-1].images)))
        low, accuracy, high = (_share(middle + times * deviation) for times in (-_TIMES, 0.0, _TIMES))
        found.append(Forecast(images=count, accuracy=accuracy, low=low, high=high))
    return found


_TIMES = 1.645
"""Standard deviations on either side that hold `INTERVAL` of a normal distribution."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Line:
    """log(accuracy / error) by doublings of the images, 0 for all of them."""

    level: float
    slope: float
    covariance: np.ndarray
    """float64 (2, 2): of level and slope."""

    def at(self, doublings: float) -> tuple[float, float]:
        """Mean and standard deviation."""
        row = np.array([1.0, doublings])
        variance = float(row @ self.covariance @ row) + (_DRIFT * doublings) ** 2
        return self.level + self.slope * doublings, float(np.sqrt(variance))


def _line(
    images: Sequence[int],
    shares: Sequence[float],
    judged: int,
    slope: float = _SLOPE,
    slope_deviation: float = _SLOPE_DEVIATION,
) -> _Line:
    """The line through shares of `judged` images that were right with so many images each, the last with all. Half a success and half a
    failure are added to each."""
    smooth = (np.asarray(shares) * judged + 0.5) / (judged + 1)
    precision = judged * smooth * (1 - smooth)  # of the logarithm of the odds
    rows = np.stack([np.ones(len(smooth)), np.log2(np.asarray(images) / images[-1])], 1)
    information = rows.T @ (precision[:, None] * rows)
    information[1, 1] += slope_deviation**-2
    moment = rows.T @ (precision * np.log(smooth / (1 - smooth)))
    moment[1] += slope / slope_deviation**2
    covariance = np.linalg.inv(information)
    # All points are of the same images: more points make the slope surer, but not the level.
    covariance[0, 0] = max(covariance[0, 0], 1 / precision[-1])
    level, found = np.linalg.solve(information, moment)
    return _Line(level=float(level), slope=float(found), covariance=covariance)


def _share(odds: float) -> float:
    return float(1 / (1 + np.exp(-odds)))


def grow(features: Tensor, labels: Tensor, num_classes: int, *, groups: Tensor | None = None) -> Growth | None:
    """The learning curve of images, what twice and four times as many would give, and which classes would gain most. Arguments as of
    `curve`. None if there are too few images for three points."""
    points = curve(features, labels, num_classes, groups=groups)
    if len(points) < 3:
        return None
    n = len(labels)
    whole = _line([point.images for point in points], [point.accuracy for point in points], n)
    gains = []
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    for label, count in enumerate(counts):
        if not count:
            continue
        recalls = [point.recall[label] for point in points]
        # Of a class alone there is little to go by: its slope is expected to be that of all.
        own = _line([point.images for point in points], recalls, count, whole.slope, _DRIFT)
        gain = _share(own.at(1)[0]) - _share(own.level)
        doubled = min(1.0, recalls[-1] + max(0.0, gain))
        gains.append(Gain(label=label, images=count, recall=recalls[-1], doubled=doubled))
    gains.sort(key=lambda gain: -(gain.doubled - gain.recall) * gain.images)
    return Growth(points=points, forecasts=tuple(foretell(points, n, (2 * n, 4 * n))), gains=tuple(gains))
