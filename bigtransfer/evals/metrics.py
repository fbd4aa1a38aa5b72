"""What a classifier's answers are worth, as a state that adds: any split of the images gives the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigtransfer.data.layout import quoted, shortened
from bigtransfer.dist import World
from bigtransfer.errors import DataError, WeightsError

CALIBRATION_BINS = 15
"""Equal-width bins of the calibration error (the number of Guo et al., arXiv 1706.04599)."""

Z95 = 1.959963984540054
"""97.5% quantile of the normal distribution: half-width of a 95% interval, in standard deviations."""

_RECORD = np.dtype(
    [
        ("index", np.int64),
        ("true", np.int64),
        ("predicted", np.int64),
        ("rank", np.int64),
        ("probability", np.float64),
        ("nll", np.float64),
        ("entropy", np.float64),
    ]
)


@dataclass(frozen=True)
class PerClass:
    """Arrays `(classes,)`. NaN where undefined: precision of a class never predicted, recall of one without images,
    F1 of one with neither."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    """Images of the class, int64."""


@dataclass(frozen=True)
class Calibration:
    """Arrays `(CALIBRATION_BINS,)`; bin b holds the images whose top probability is in (b, b + 1] / CALIBRATION_BINS."""

    count: np.ndarray
    confidence: np.ndarray
    """Mean top probability in the bin; NaN in an empty one."""
    accuracy: np.ndarray
    """Share of correct answers in the bin; NaN in an empty one."""


class Classification:
    """One record for each image seen, from which every number is computed on demand.

    States of disjoint images add with `+`. Sums are exactly rounded (`math.fsum`) and ties are broken by the lower class
    index, so the numbers depend neither on batch sizes nor on the order or the number of states added. Records, not a
    confusion matrix, because the matrix of a 21,843-class head would need 3.8 GB.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._parts: list[np.ndarray] = []
        self.uncalibrated: Classification | None = None
        """The same images before the model's temperature, where there is one; sums and kept states have it, parts of this state do not."""
        self.positions: tuple[tuple[int, float, float], ...] = ()
        """Index and place, 0 to 1, of some of the images on a map (`projection.plane`), where somebody made one."""

    def update(
        self, logits: Tensor, labels: Tensor, indices: Tensor | None = None, *, temperature: float | None = None
    ) -> None:
        """Add images: logits float `(n, classes)`, labels int `(n,)`, indices int `(n,)`: each image's place in its set
        (default: counted on from what is there). temperature: what the logits have been divided by (`catalog.Calibrated`); `uncalibrated`
        then gets them as they would be without. Raises DataError for a label outside the classes, WeightsError for
        logits that are not finite."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise DataError(f"Expected logits of shape (n, {self.num_classes}), got {tuple(logits.shape)}.")
        logits = logits.detach().cpu().double()
        labels = labels.detach().cpu().long()
        if not torch.isfinite(logits).all():
            raise WeightsError("The model's logits are not finite: its weights are damaged or its training diverged.")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.num_classes):
            raise DataError(
                f"Labels {int(labels.min())} to {int(labels.max())} do not fit the model's {self.num_classes} classes."
            )
        log_probability = logits.log_softmax(1)
        own = logits.gather(1, labels[:, None])
        before = torch.arange(self.num_classes) < labels[:, None]
        records = np.empty(len(labels), _RECORD)
        records["index"] = np.arange(len(self), len(self) + len(labels)) if indices is None else indices.cpu().numpy()
        records["true"] = labels.numpy()
        records["rank"] = ((logits > own) | ((logits == own) & before)).sum(1).numpy()
        # NumPy's argmax promises the first of equal values, torch's does not.
        records["predicted"] = logits.numpy().argmax(1)
        records["probability"] = log_probability.amax(1).exp().numpy()
        records["nll"] = -log_probability.gather(1, labels[:, None])[:, 0].numpy()
        records["entropy"] = torch.special.entr(log_probability.exp()).sum(1).numpy()
        self._parts.append(records)
        if temperature is not None:
            if self.uncalibrated is None:
                self.uncalibrated = Classification(self.num_classes)
            self.uncalibrated.update(logits * temperature, labels, indices)

    def __add__(self, other: Classification) -> Classification:
        if self.num_classes != other.num_classes:
            raise DataError(f"States of {self.num_classes} and {other.num_classes} classes do not add.")
        total = Classification(self.num_classes)
        total._parts = self._parts + other._parts
        parts = [one.uncalibrated for one in (self, other) if len(one)]  # of no image there is nothing to know
        if parts and all(one is not None for one in parts):
            total.uncalibrated = Classification(self.num_classes)
            total.uncalibrated._parts = [array for one in parts if one is not None for array in one._parts]
        return total

    def without(self, indices: np.ndarray) -> Classification:
        """The state without the images at those places of their set."""
        rest = Classification(self.num_classes)
        rest._parts = [part[~np.isin(part["index"], indices)] for part in self._parts]
        return rest

    def saved(self) -> dict[str, np.ndarray]:
        """All that the state is made of, as arrays to be kept."""
        before = {} if self.uncalibrated is None else {"uncalibrated": self.uncalibrated.records}
        return {"records": self.records, **before}

    @classmethod
    def restored(cls, num_classes: int, arrays: Mapping[str, np.ndarray]) -> Classification:
        """The inverse of `saved`; ValueError if the arrays are not such."""
        records = arrays.get("records")
        if records is None or records.dtype != _RECORD or records.ndim != 1:
            raise ValueError("they are not records of a classification")
        for key in ("true", "predicted"):
            if len(records) and not 0 <= records[key].min() <= records[key].max() < num_classes:
                raise ValueError(f"they have other classes than 0 to {num_classes - 1}")
        total = cls(num_classes)
        total._parts = [records]
        if "uncalibrated" in arrays:
            total.uncalibrated = cls.restored(num_classes, {"records": arrays["uncalibrated"]})
        return total

    def gathered(self, world: World) -> Classification:
        """The sum of the states of all processes of `world`, on each of them."""
        records = np.ascontiguousarray(self.records)
        rows = torch.from_numpy(records.view(np.uint8).reshape(len(records), _RECORD.itemsize).copy())
        total = Classification(self.num_classes)
        total._parts = [world.gather(rows).numpy().reshape(-1).view(_RECORD)]
        return total

    def _repr_html_(self) -> str:
        """The headline, for notebooks."""
        low, high = self.top1_interval
        rows = {
            "images": f"{len(self):,}",
            "top-1": f"{self.top1:.2%} (95% interval {low:.2%} to {high:.2%})",
            "mean per class": f"{self.mean_per_class:.2%}",
            "calibration error": f"{self.ece:.2%}",
        }
        return (
            "<table>"
            + "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows.items())
            + "</table>"
        )

    def __len__(self) -> int:
        """Images seen."""
        return sum(len(part) for part in self._parts)

    @property
    def records(self) -> np.ndarray:
        """One row per image, ordered by `index`: `index`, `true`, `predicted` (class numbers), `rank` (classes scored
        above the true one: 0 is right), `probability` (of the predicted class), `nll` and `entropy` (nats)."""
        if len(self._parts) != 1:
            self._parts = [np.concatenate(self._parts) if self._parts else np.empty(0, _RECORD)]
        return np.sort(self._parts[0], order="index", kind="stable")

    def _mean(self, values: np.ndarray) -> float:
        return math.fsum(values.tolist()) / len(values) if len(values) else math.nan

    def top(self, k: int) -> float:
        """Share of images whose true class is among the `k` highest scores (NaN without images)."""
        return self._mean(self.records["rank"] < k)

    @property
    def top1(self) -> float:
        return self.top(1)

    @property
    def top5(self) -> float:
        """Top-5 share; NaN for five classes or fewer, where it would be 1 whatever the answers are."""
        return self.top(5) if self.num_classes > 5 else math.nan

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95% interval of top-1 (`wilson`)."""
        return wilson(self.top1, len(self))

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the true class, nats (the cross-entropy loss)."""
        return self._mean(self.records["nll"])

    @property
    def mean_per_class(self) -> float:
        """Mean recall of the classes that have images: every class counts the same, however common."""
        recall = self.per_class().recall
        return self._mean(recall[~np.isnan(recall)])

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over images of |accuracy - mean top probability| of the image's bin, 0 to 1
        (Guo et al., arXiv 1706.04599, equation 3; `CALIBRATION_BINS` bins of equal width, closed on the right)."""
        bins = self.calibration()
        full = bins.count > 0
        if not full.any():
            return math.nan
        gap = bins.count[full] * np.abs(bins.accuracy[full] - bins.confidence[full])
        return math.fsum(gap.tolist()) / len(self)

    def calibration(self) -> Calibration:
        """Accuracy against confidence, bin by bin: what a reliability diagram draws."""
        records = self.records
        place = np.clip(np.ceil(records["probability"] * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        right = records["rank"] == 0
        members = [place == b for b in range(CALIBRATION_BINS)]
        return Calibration(
            count=np.bincount(place, minlength=CALIBRATION_BINS),
            confidence=np.array([self._mean(records["probability"][member]) for member in members]),
            accuracy=np.array([self._mean(right[member]) for member in members]),
        )

    def per_class(self) -> PerClass:
        """Precision, recall, F1 and support of every class."""
        records = self.records
        right = records["true"][records["rank"] == 0]
        hits = np.bincount(right, minlength=self.num_classes)
        support = np.bincount(records["true"], minlength=self.num_classes)
        predicted = np.bincount(records["predicted"], minlength=self.num_classes)
        with np.errstate(invalid="ignore"):
            return PerClass(hits / predicted, hits / support, 2 * hits / (support + predicted), support)

    def confusion(self) -> np.ndarray:
        """int64 `(classes, classes)`: row the true class, column the predicted one. Dense: 8 * classes**2 bytes."""
        records = self.records
        cells = np.bincount(records["true"] * self.num_classes + records["predicted"], minlength=self.num_classes**2)
        return cells.reshape(self.num_classes, self.num_classes)

    def confused(self) -> list[tuple[int, int, int]]:
        """Every confusion that happened, as (true, predicted, images), most frequent first."""
        records = self.records
        wrong = records["rank"] > 0
        pairs, counts = np.unique(
            np.stack([records["true"][wrong], records["predicted"][wrong]], 1), axis=0, return_counts=True
        )
        order = np.argsort(-counts, kind="stable")
        return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order]

    def chance_note(self, class_names: Sequence[str]) -> str | None:
        """See `chance_note`."""
        records = self.records
        right = records["true"][records["rank"] == 0]
        hits, images = (np.bincount(labels, minlength=self.num_classes) for labels in (right, records["true"]))
        return chance_note(hits, images, class_names)

    def named(self, prefix: str) -> dict[str, float]:
        """The headline numbers as `{"<prefix>/top1": ..., ...}`, for `metrics.jsonl` and a model card; without top-5 where there are five
        classes or fewer."""
        names = ["top1", "top5", "mean_per_class", "nll", "ece"]
        if self.num_classes <= 5:
            names.remove("top5")
        return {f"{prefix}/{name}": getattr(self, name) for name in names}


def wilson(share: float, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a share measured on `n` images: the true shares that would not make this result surprising,
    if the images are an independent sample. Good for few images and near 0 or 1, where mean +- 2 sd is not. (0, 1) if n is 0."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def beyond_chance(right: np.ndarray, images: np.ndarray) -> bool | None:
    """Whether answers say anything about the classes: whether more of them are right than if the commonest class were the answer always, or
    more on the mean over classes, each counted alike, than 1 / classes; and by more than chance would do in one case of forty.

    right, images: int `(classes,)`: of each class the correct answers and the images. None if so few images cannot tell whatever the
    answers are, as where there is one class only.
    """
    present = images > 0
    right, images = right[present], images[present]
    total, classes = int(images.sum()), len(images)

    def told(hits: np.ndarray) -> bool:
        share = 1 / classes
        # The standard error of the mean recall of guesses; as in `wilson`, that of the hypothesis and not of the observation.
        error = math.sqrt(share * (1 - share) * float((1 / images).sum())) / classes
        common = wilson(float(hits.sum() / total), total)[0] > images.max() / total
        return bool(common or float((hits / images).mean()) > share + Z95 * error)

    if classes < 2 or not told(images):
        return None
    return told(right)


def chance_note(right: np.ndarray, images: np.ndarray, class_names: Sequence[str] | None) -> str | None:
    """A sentence for answers that are not shown to be better than chance (`beyond_chance`); else None. class_names: None if unknown."""
    if beyond_chance(right, images) is not False:
        return None
    total, commonest = int(images.sum()), int(images.argmax())
    name = "the commonest class" if class_names is None else quoted(class_names[commonest])
    low, high = wilson(float(right.sum() / total), total)
    guessing = images[commonest] / total
    # Answers that know the mean of the others are wrong where there is nothing to know: without an image of its class that class is rarer.
    verdict = "is no better than chance, rather worse" if high < guessing else "cannot be told from chance"
    return (
        f"This {verdict}: {right.sum() / total:.1%} of {total:,} images are right (95% interval {low:.1%} to {high:.1%}), "
        f"and {guessing:.1%} would be if {name} were the answer always. "
        "Are the labels right, and can the classes be told apart in the images?"
    )


SURE = 0.9
"""The probability of the line about answers that are sure."""


def _when_sure(result: Classification) -> str:
    """What the answers of at least `SURE` are worth, as a line."""
    records = result.records
    sure = records[records["probability"] >= SURE]
    share = f"{f'at least {SURE:.0%} sure':<18} {len(sure) / max(1, len(records)):7.2%} of the images"
    if not len(sure):
        return share
    right = float((sure["rank"] == 0).mean())
    low, high = wilson(right, len(sure))
    return f"{share}, {right:.2%} of these right (95% interval {low:.2%} to {high:.2%})"


def evaluate(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    num_classes: int | None = None,
    *,
    temperature: float | None = None,
) -> Classification:
    """Measure `predict` (uint8 images `(n, c, h, w)` -> logits `(n, classes)`) on batches of (images, labels, indices), as
    `feed.loader.eval_batches` gives them. num_classes: None takes it from the logits; then DataError if there is no image.
    temperature: as of `Classification.update`."""
    total = None if num_classes is None else Classification(num_classes)
    for images, labels, indices in batches:
        logits = predict(images)
        if total is None:
            total = Classification(logits.shape[1])
        total.update(logits, labels, indices, temperature=temperature)
    if total is None:
        raise DataError("There is no image to evaluate on.")
    return total


def describe(result: Classification, class_names: Sequence[str], worst: int = 10) -> str:
    """The numbers as text for a terminal: the headline, then a table of all classes if there are at most 30, else of the `worst`
    by F1. Long names of classes are cut; evaluation.json and the report have them whole."""
    class_names = [shortened(name) for name in class_names]
    low, high = result.top1_interval
    lines = [
        f"top-1 accuracy     {result.top1:7.2%}   (95% interval {low:.2%} to {high:.2%}, {len(result)} images)",
        f"mean per class     {result.mean_per_class:7.2%}",
        f"calibration error  {result.ece:7.2%}   (negative log-likelihood {result.nll:.4f})",
    ]
    if result.uncalibrated is not None:
        lines[-1] += f"; before the temperature {result.uncalibrated.ece:.2%} ({result.uncalibrated.nll:.4f})"
    lines.append(_when_sure(result))
    if result.num_classes > 5:
        lines.insert(1, f"top-5 accuracy     {result.top5:7.2%}")
    table = result.per_class()
    seen = [int(c) for c in np.flatnonzero(table.support)]
    title = "class"
    if len(seen) > 30:
        seen = sorted(seen, key=lambda c: (np.nan_to_num(table.f1[c]), -table.support[c]))[:worst]
        title = f"the {len(seen)} worst of {np.count_nonzero(table.support)} classes"
    width = max([len(title), *(len(class_names[c]) for c in seen)])
    lines += ["", f"{title:<{width}}  precision  recall      F1  images"]
    for c in seen:
        precision = "      -" if np.isnan(table.precision[c]) else f"{table.precision[c]:7.2%}"
        lines.append(
            f"{class_names[c]:<{width}}  {precision:>9}  {table.recall[c]:6.1%}  {table.f1[c]:6.1%}  {table.support[c]:6}"
        )
    confused = result.confused()[:5]
    if confused:
        lines += ["", "most often confused:"]
        lines += [
            f"  {count:4} x {class_names[true]} taken for {class_names[guess]}" for true, guess, count in confused
        ]
    return "\n".join(lines)
