"""What a classifier is worth whose images may have several labels each, or none: mean average precision, and F1 at thresholds.

As in `metrics`, the state adds: any split of the images gives the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigtransfer.catalog import DEFAULT_THRESHOLD
from bigtransfer.dist import World
from bigtransfer.errors import DataError, WeightsError
from bigtransfer.evals.metrics import CALIBRATION_BINS, Calibration
from bigtransfer.feed.labels import multi_hot


@dataclass(frozen=True)
class LabelScores:
    """What thresholds make of the probabilities: arrays `(classes,)`, NaN where undefined (as `metrics.PerClass`), and their sums."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    micro_f1: float
    """F1 of all labels together, each given or true label counted once."""
    macro_f1: float
    """Mean F1 of the classes that have images."""
    exact: float
    """Share of images that get all of their labels and no other."""


class MultiLabel:
    """The probabilities and the labels of each image seen. States of disjoint images add with `+`."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor | None = None) -> None:
        """Add images: logits float `(n, classes)`; labels int `(n, k)`, the classes of each image, then -1, or `(n,)`; indices int `(n,)`,
        each image's place in its set (default: counted on). Raises DataError for a label outside the classes, WeightsError for logits
        that are not finite."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise DataError(f"Expected logits of shape (n, {self.num_classes}), got {tuple(logits.shape)}.")
        if not torch.isfinite(logits).all():
            raise WeightsError("The model's logits are not finite: its weights are damaged or its training diverged.")
        labels = labels.detach().cpu().long().reshape(len(labels), -1)
        if labels.numel() and int(labels.max()) >= self.num_classes:
            raise DataError(f"Label {int(labels.max())} does not fit the model's {self.num_classes} classes.")
        places = np.arange(len(self), len(self) + len(labels)) if indices is None else indices.cpu().numpy()
        probabilities = logits.detach().cpu().double().sigmoid().float().numpy()
        self._parts.append((places, probabilities, multi_hot(labels, self.num_classes).bool().numpy()))

    def __add__(self, other: MultiLabel) -> MultiLabel:
        if self.num_classes != other.num_classes:
            raise DataError(f"States of {self.num_classes} and {other.num_classes} classes do not add.")
        total = MultiLabel(self.num_classes)
        total._parts = self._parts + other._parts
        return total

    def without(self, indices: np.ndarray) -> MultiLabel:
        """The state without the images at those places of their set."""
        rest = MultiLabel(self.num_classes)
        for places, probabilities, labels in self._parts:
            kept = ~np.isin(places, indices)
            rest._parts.append((places[kept], probabilities[kept], labels[kept]))
        return rest

    def saved(self) -> dict[str, np.ndarray]:
        """All that the state is made of, as arrays to be kept."""
        return dict(zip(("places", "probabilities", "labels"), self._arrays(), strict=True))

    @classmethod
    def restored(cls, num_classes: int, arrays: Mapping[str, np.ndarray]) -> MultiLabel:
        """The inverse of `saved`; ValueError if the arrays are not such."""
        try:
            places, probabilities, labels = (arrays[key] for key in ("places", "probabilities", "labels"))
        except KeyError as error:
            raise ValueError(f"they lack {error}") from error
        wanted = (len(places), num_classes)
        types = (places.dtype, probabilities.dtype, labels.dtype)
        if (
            places.ndim != 1
            or probabilities.shape != wanted
            or labels.shape != wanted
            or types != (np.int64, np.float32, np.bool_)
        ):
            raise ValueError(f"they are not labels of {num_classes} classes")
        total = cls(num_classes)
        total._parts = [(places, probabilities, labels)]
        return total

    def gathered(self, world: World) -> MultiLabel:
        """The sum of the states of all processes of `world`, on each of them."""
        parts = [world.gather(torch.from_numpy(np.ascontiguousarray(array))).numpy() for array in self._arrays()]
        total = MultiLabel(self.num_classes)
        total._parts = [(parts[0], parts[1], parts[2])]
        return total

    def __len__(self) -> int:
        """Images seen."""
        return sum(len(places) for places, _, _ in self._parts)

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places, probabilities and labels in the order of the places."""
        if not self._parts:
            empty = np.empty((0, self.num_classes))
            return np.empty(0, np.int64), empty.astype(np.float32), empty.astype(bool)
        if len(self._parts) > 1:
            places, probabilities, labels = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
            self._parts = [(places, probabilities, labels)]
        places, probabilities, labels = self._parts[0]
        order = np.argsort(places, kind="stable")
        return places[order], probabilities[order], labels[order]

    @property
    def indices(self) -> np.ndarray:
        """int64 `(n,)`: the images' places in their set, ascending: the order of the rows below."""
        return self._arrays()[0]

    @property
    def probabilities(self) -> np.ndarray:
        """float32 `(n, classes)`, each class by itself: 0 to 1."""
        return self._arrays()[1]

    @property
    def labels(self) -> np.ndarray:
        """bool `(n, classes)`: which are true."""
        return self._arrays()[2]

    @property
    def support(self) -> np.ndarray:
        """int64 `(classes,)`: images of each class."""
        return self.labels.sum(0)

    def average_precision(self) -> np.ndarray:
        """float64 `(classes,)`: the sum over the ranked images of precision times the gain in recall, equal probabilities taken as one step
        (no interpolation: the form of scikit-learn, TREC and, since 2010, Pascal VOC up to its interpolation). NaN without images."""
        return np.array(
            [_average_precision(p, t) for p, t in zip(self.probabilities.T, self.labels.T, strict=True)], dtype=float
        ).reshape(self.num_classes)

    @property
    def mean_average_precision(self) -> float:
        """Mean of `average_precision` over the classes that have images (mAP); NaN if none has."""
        return _mean(self.average_precision())

    @property
    def precision_at_1(self) -> float:
        """Share of images whose most probable class is one of theirs (NaN without images; the measure of ImageNet-21k and JFT)."""
        if not len(self):
            return math.nan
        _, probabilities, labels = self._arrays()
        return float(labels[np.arange(len(self)), probabilities.argmax(1)].mean())

    def heated(self, temperature: float) -> MultiLabel:
        """The state if the logits were so many times as large: before a temperature that they have been divided by."""
        other = MultiLabel(self.num_classes)
        for places, probabilities, labels in self._parts:
            probable = torch.from_numpy(probabilities).double()
            other._parts.append((places, (probable.logit() * temperature).sigmoid().float().numpy(), labels))
        return other

    def reliability(self) -> Calibration:
        """How often a class is there against how probable it is said to be, of every class of every image, bin by bin; bins as of
        `Classification.calibration`."""
        probable, there = self.probabilities.ravel().astype(np.float64), self.labels.ravel()
        place = np.clip(np.ceil(probable * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        count = np.bincount(place, minlength=CALIBRATION_BINS)
        with np.errstate(invalid="ignore"):
            confidence, accuracy = (
                np.bincount(place, values, CALIBRATION_BINS) / count for values in (probable, there.astype(np.float64))
            )
        return Calibration(count=count, confidence=confidence, accuracy=accuracy)

    @property
    def ece(self) -> float:
        """Expected calibration error of the classes' probabilities: mean over every class of every image of |share that is there - mean
        probability| of its bin, 0 to 1. Where an image has few of many classes it is small whatever the model says."""
        bins = self.reliability()
        full = bins.count > 0
        if not full.any():
            return math.nan
        gap = bins.count[full] * np.abs(bins.accuracy[full] - bins.confidence[full])
        return float(gap.sum() / bins.count.sum())

    @property
    def nll(self) -> float:
        """Mean binary cross-entropy of a class of an image, nats; the probabilities, which are float32, at least 1e-7 from 0 and 1."""
        if not len(self):
            return math.nan
        probable = self.probabilities.astype(np.float64).clip(1e-7, 1 - 1e-7)
        return float(-np.log(np.where(self.labels, probable, 1 - probable)).mean())

    def best_thresholds(self) -> np.ndarray:
        """float32 `(classes,)`: the probability from which on giving the class maximizes its F1 on these images. Halfway between the
        neighbours' probabilities, so that the images' own are not cut by rounding; of equally good ones that nearest to a half;
        `DEFAULT_THRESHOLD` for a class without images."""
        return np.array(
            [_best_threshold(p, t) for p, t in zip(self.probabilities.T, self.labels.T, strict=True)], dtype=np.float32
        ).reshape(self.num_classes)

    def at(self, thresholds: np.ndarray | float) -> LabelScores:
        """Precision, recall and F1 if every class is given from its threshold on: `(classes,)`, or one for all."""
        given, labels = self.probabilities >= np.asarray(thresholds, dtype=np.float32), self.labels
        hits, support, answers = (given & labels).sum(0), labels.sum(0), given.sum(0)
        with np.errstate(invalid="ignore"):
            f1 = 2 * hits / (support + answers)
            return LabelScores(
                precision=hits / answers,
                recall=hits / support,
                f1=f1,
                micro_f1=float(2 * hits.sum() / (support.sum() + answers.sum())),
                macro_f1=_mean(f1[support > 0]),
                exact=float((given == labels).all(1).mean()) if len(self) else math.nan,
            )

    def named(self, prefix: str, thresholds: np.ndarray | float = DEFAULT_THRESHOLD) -> dict[str, float]:
        """The headline numbers as `{"<prefix>/map": ..., ...}`, for `metrics.jsonl` and a model card; undefined ones are left out."""
        scores = self.at(thresholds)
        numbers = {
            "map": self.mean_average_precision,
            "micro_f1": scores.micro_f1,
            "macro_f1": scores.macro_f1,
            "exact": scores.exact,
            "precision_at_1": self.precision_at_1,
        }
        return {f"{prefix}/{name}": value for name, value in numbers.items() if math.isfinite(value)}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return math.fsum(known.tolist()) / len(known) if len(known) else math.nan


def _average_precision(probabilities: np.ndarray, true: np.ndarray) -> float:
    if not true.any():
        return math.nan
    order = np.argsort(-probabilities, kind="stable")
    hits = np.cumsum(true[order])
    last = np.append(np.diff(probabilities[order]) != 0, True)  # of each group of equal probabilities
    hits, ranks = hits[last], np.flatnonzero(last) + 1
    gained = np.diff(hits, prepend=0)
    return math.fsum((gained * hits / ranks).tolist()) / int(true.sum())


def _best_threshold(probabilities: np.ndarray, true: np.ndarray) -> float:
    if not true.any():
        return DEFAULT_THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order].astype(np.float64)
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    f1 = 2 * np.cumsum(true[order])[last] / (true.sum() + last + 1)
    # Below the last image's own probability lies none: halfway to 0.
    following = np.append(ranked, 0.0)[last + 1]
    thresholds = ((ranked[last] + following) / 2)[f1 >= f1.max() - 1e-12]
    return float(thresholds[np.argmin(np.abs(thresholds - 0.5))])


def evaluate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor, Tensor]], num_classes: int
) -> MultiLabel:
    """Measure `predict` (uint8 images `(n, c, h, w)` -> logits `(n, classes)`) on batches of (images, labels `(n, k)`, indices)."""
    total = MultiLabel(num_classes)
    for images, labels, indices in batches:
        total.update(predict(images), labels, indices)
    return total


def describe(result: MultiLabel, class_names: Sequence[str], thresholds: np.ndarray | float, worst: int = 10) -> str:
    """The numbers as text for a terminal: the headline, then a table of all classes if there are at most 30, else of the `worst` by average
    precision."""
    scores, precision = result.at(thresholds), result.average_precision()
    limits = np.broadcast_to(np.asarray(thresholds, np.float32), (result.num_classes,))
    lines = [
        f"mean average precision  {result.mean_average_precision:7.2%}   ({len(result)} images, {int(result.support.sum())} labels)",
        f"F1 of all labels        {scores.micro_f1:7.2%}   (mean over classes {scores.macro_f1:.2%})",
        f"all labels right        {scores.exact:7.2%}",
    ]
    seen = [int(c) for c in np.flatnonzero(result.support)]
    title = "class"
    if len(seen) > 30:
        title = f"the {worst} worst of {len(seen)} classes"
        seen = sorted(seen, key=lambda c: (precision[c], -result.support[c]))[:worst]
    width = max([len(title), *(len(class_names[c]) for c in seen)])
    lines += ["", f"{title:<{width}}  average precision  threshold  precision  recall      F1  images"]
    for c in seen:
        given = "      -" if np.isnan(scores.precision[c]) else f"{scores.precision[c]:7.2%}"
        lines.append(
            f"{class_names[c]:<{width}}  {precision[c]:17.2%}  {limits[c]:9.3f}  {given:>9}  {scores.recall[c]:6.1%}  "
            f"{scores.f1[c]:6.1%}  {result.support[c]:6}"
        )
    return "\n".join(lines)
