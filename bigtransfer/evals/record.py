"""evaluation.json: its form, how it is made from a result, written and read. `docs/report.md` describes the keys."""

from __future__ import annotations

import collections
import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from bigtransfer import records
from bigtransfer.catalog import Calibrated
from bigtransfer.data import checks
from bigtransfer.data.sources import ImageSet, LeftOut
from bigtransfer.errors import ImageError, RunError
from bigtransfer.evals.metrics import CALIBRATION_BINS, Calibration, Classification
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.runs import atomic_write

_DENSE_CLASSES = 1000
"""Up to so many classes a written evaluation holds the whole confusion matrix."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]


class ClassRow(msgspec.Struct, frozen=True, kw_only=True, rename={"name": "class"}):
    """The numbers of one class; None where undefined (`PerClass`)."""

    name: str
    precision: Share | None
    recall: Share | None
    f1: Share | None
    support: Count
    """Images of the class."""

    def __post_init__(self) -> None:
        if self.support and self.f1 is None:
            raise ValueError("f1 is null though support is not 0")


class Bin(msgspec.Struct, frozen=True, kw_only=True, rename={"low": "from", "high": "to"}):
    """The images whose answer, or of a multi-label model the classes of all images that, have a probability above `low` up to `high`."""

    low: Share
    high: Share
    images: Count
    confidence: Share | None
    """Mean probability of the answers; None without images."""
    accuracy: Share | None

    def __post_init__(self) -> None:
        if self.images and (self.confidence is None or self.accuracy is None):
            raise ValueError("confidence or accuracy is null though images is not 0")


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said about one image: a row of `Classification.records`."""

    name: str
    index: Count
    true: Count
    predicted: Count
    rank: Count
    probability: Share
    nll: Finite
    entropy: Finite
    content: str = ""
    """What tells the image's bytes from another's of the same name (`checks.contents`); empty where that is not known."""


class Dedup(msgspec.Struct, frozen=True, kw_only=True):
    """The result with and without images that the model may know from its training; numbers that are undefined are None."""

    excluded: Count
    """Images left out."""
    images: Count
    """That are left."""
    full: Share | None
    """Top-1, or of a multi-label model the mean average precision, of all."""
    dedup: Share | None
    """The same of what is left."""
    interval: tuple[Share, Share] | None = None
    """95%, of top-1 of what is left."""
    by: str = ""
    """The file that named the images."""
    metric: str = "top-1"

    def __str__(self) -> str:
        rows = (
            ("Full", self.full, f"of {self.images + self.excluded:,} images"),
            ("Dedup", self.dedup, f"of {self.images:,} images{self._range()}"),
        )
        lines = [f"{name:<7} {self.metric} {_percent(value):>7} {rest}" for name, value, rest in rows]
        return "\n".join([*lines, f"dropped {self.excluded:,}, named by {self.by}"])

    def _range(self) -> str:
        return "" if self.interval is None else f" (95% interval {self.interval[0]:.2%} to {self.interval[1]:.2%})"

    def sentence(self) -> str:
        """The same as a remark."""
        left_out = "image" if self.excluded == 1 else f"{self.excluded:,} images"
        return (
            f"Without the {left_out} that {self.by} names, {self.metric} is {_percent(self.dedup)} of {self.images:,} images"
            f"{self._range()}, and {_percent(self.full)} with them."
        )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def without(result: Classification | MultiLabel, indices: np.ndarray, by: str) -> Dedup:
    """What a result is without the images at those indices of its set; `by`: who says which."""
    rest = result.without(indices)
    if isinstance(result, MultiLabel):
        assert isinstance(rest, MultiLabel)
        full, dedup, interval, metric = result.mean_average_precision, rest.mean_average_precision, None, "mAP"
    else:
        assert isinstance(rest, Classification)
        full, dedup, interval, metric = result.top1, rest.top1, rest.top1_interval if len(rest) else None, "top-1"
    return Dedup(
        excluded=len(result) - len(rest),
        images=len(rest),
        full=_defined(full),
        dedup=_defined(dedup),
        interval=interval,
        by=by,
        metric=metric,
    )


class Uncalibrated(msgspec.Struct, frozen=True, kw_only=True):
    """The same images before the model's temperature, and where that comes from (`catalog.Calibrated`)."""

    temperature: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    by: Literal["leave-one-out", "held-out images"]
    images: Count
    """That chose it."""
    held_out_nll: tuple[Finite, Finite]
    """On those, before and after."""
    held_out_ece: tuple[Share, Share]
    nll: Finite | None
    """On the images of this evaluation, before."""
    ece: Share | None
    calibration: list[Bin]


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an evaluation; numbers that are undefined are None."""

    format: Literal[1] = 1
    model: str = ""
    data: str = ""
    split: str
    images: Count
    class_names: list[str]
    top1: Share | None
    top1_interval: tuple[Share, Share]
    top5: Share | None = None
    mean_per_class: Share | None
    nll: Finite | None = None
    ece: Share | None
    per_class: list[ClassRow]
    confused: list[tuple[Count, Count, Count]]
    """(true class, answer, images)."""
    calibration: list[Bin]
    uncalibrated: Uncalibrated | None = None
    """None: no temperature was fitted for the model, or an earlier version measured it."""
    no_temperature: str = ""
    """Why there is none, as half a sentence, where that is known."""
    unreadable: list[LeftOut] = []
    notes: list[str] = []
    """What the numbers rest on and a reader should know, such as how classes were matched."""
    dedup: Dedup | None = None
    positions: list[tuple[Count, Share, Share]] = []
    """Of some of the images (index in their set) the place on a map of what the model says (`projection.plane`)."""
    confusion: list[list[Count]] | None = None
    """Row the true class, column the answer; None beyond `_DENSE_CLASSES` classes."""
    predictions: list[Prediction]

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if len(self.per_class) != classes:
            raise ValueError(f"per_class has {len(self.per_class)} entries, class_names {classes}")
        if self.confusion is not None and [len(row) for row in self.confusion] != [classes] * classes:
            raise ValueError(f"confusion is not a matrix of {classes} x {classes} classes")
        for i, (true, answer, _) in enumerate(self.confused):
            if max(true, answer) >= classes or not self.per_class[true].support:
                raise ValueError(f"confused[{i}] names a class that is not there or has no images")
        for i, row in enumerate(self.predictions):
            if max(row.true, row.predicted) >= classes:
                raise ValueError(f"predictions[{i}] names class {max(row.true, row.predicted)} of {classes}")
            if (row.rank == 0) != (row.true == row.predicted):
                raise ValueError(
                    f"predictions[{i}] has rank {row.rank} for class {row.true}, and predicts {row.predicted}"
                )
        right = [row.rank == 0 for row in self.predictions]
        _agreeing(self.images, "top1", self.top1, right, self.per_class, [[row.true] for row in self.predictions])


class LabelRow(msgspec.Struct, frozen=True, kw_only=True, rename={"name": "class"}):
    """The numbers of one class of a multi-label model; None where undefined (`multilabel.LabelScores`)."""

    name: str
    average_precision: Share | None
    threshold: Share
    precision: Share | None
    recall: Share | None
    f1: Share | None
    support: Count
    """Images of the class."""


class LabelsPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a multi-label model said about one image; numbers of classes."""

    name: str
    true: list[Count]
    given: list[Count]
    """Those that reach their thresholds."""
    probabilities: list[Share]
    """Of `true`, then of the classes given that are not true."""


class LabelsEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an evaluation of a multi-label model; numbers that are undefined are None."""

    format: Literal[1] = 1
    multi_label: Literal[True] = True
    model: str = ""
    data: str = ""
    split: str
    images: Count
    class_names: list[str]
    map: Share | None
    """Mean average precision."""
    micro_f1: Share | None
    macro_f1: Share | None
    exact: Share | None
    """Share of images that get all of their labels and no other."""
    nll: Finite | None = None
    """Mean binary cross-entropy of a class of an image, nats."""
    ece: Share | None = None
    calibration: list[Bin] = []
    """Of every class of every image (`MultiLabel.reliability`); empty if an earlier version measured."""
    uncalibrated: Uncalibrated | None = None
    no_temperature: str = ""
    chosen_here: bool
    """The thresholds were chosen by these very images, so that F1 and `exact` look better than they are."""
    per_class: list[LabelRow]
    unreadable: list[LeftOut] = []
    notes: list[str] = []
    dedup: Dedup | None = None
    predictions: list[LabelsPrediction]

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if len(self.per_class) != classes:
            raise ValueError(f"per_class has {len(self.per_class)} entries, class_names {classes}")
        for i, row in enumerate(self.predictions):
            numbers = {*row.true, *row.given}
            if numbers and max(numbers) >= classes:
                raise ValueError(f"predictions[{i}] names class {max(numbers)} of {classes}")
            if len(row.probabilities) != len(numbers):
                raise ValueError(
                    f"predictions[{i}] has {len(row.probabilities)} probabilities of {len(numbers)} classes"
                )
        right = [{*row.true} == {*row.given} for row in self.predictions]
        _agreeing(self.images, "exact", self.exact, right, self.per_class, [row.true for row in self.predictions])


def _agreeing(
    images: int,
    name: str,
    share: float | None,
    right: Sequence[bool],
    per_class: Sequence[ClassRow | LabelRow],
    true: Sequence[Sequence[int]],
) -> None:
    """Raises ValueError where what is said of all images is not what the rows of the single images say: how many there are, the share
    called `name` of those told right, and how many there are of each class (`true`: each image's)."""
    if len(right) != images:
        raise ValueError(f"predictions has {len(right)} entries, images is {images}")
    if share is not None and abs(share * images - sum(right)) > 0.01:
        raise ValueError(f"{name} is {share}, and predictions has {sum(right)} right of {images}")
    found = collections.Counter(number for numbers in true for number in {*numbers})
    for c, row in enumerate(per_class):
        if row.support != found[c]:
            raise ValueError(
                f"per_class[{c}] has a support of {row.support}, and predictions has {found[c]} of the class"
            )


def labels_record(
    result: MultiLabel,
    images: ImageSet,
    thresholds: np.ndarray,
    *,
    split: str,
    chosen_here: bool,
    model: str = "",
    data: str = "",
    unreadable: Iterable[ImageError] = (),
    notes: Iterable[str] = (),
    dedup: Dedup | None = None,
    calibrated: Calibrated | None = None,
    no_temperature: str = "",
) -> LabelsEvaluation:
    """Everything about an evaluation of a multi-label model on `images`, with these thresholds `(classes,)`. calibrated: the model's."""
    scores, precision, support = result.at(thresholds), result.average_precision(), result.support
    rows = [
        LabelRow(
            name=name,
            average_precision=_defined(precision[c]),
            threshold=float(thresholds[c]),
            precision=_defined(scores.precision[c]),
            recall=_defined(scores.recall[c]),
            f1=_defined(scores.f1[c]),
            support=int(support[c]),
        )
        for c, name in enumerate(images.class_names)
    ]
    predictions = []
    for index, probabilities, labels in zip(result.indices, result.probabilities, result.labels, strict=True):
        true, given = (np.flatnonzero(which).tolist() for which in (labels, probabilities >= thresholds))
        shown = [*true, *(c for c in given if c not in true)]
        predictions.append(
            LabelsPrediction(
                name=images.name(int(index)),
                true=true,
                given=given,
                probabilities=[float(probabilities[c]) for c in shown],
            )
        )
    return LabelsEvaluation(
        model=model,
        data=data,
        split=split,
        images=len(result),
        class_names=list(images.class_names),
        map=_defined(result.mean_average_precision),
        micro_f1=_defined(scores.micro_f1),
        macro_f1=_defined(scores.macro_f1),
        exact=_defined(scores.exact),
        nll=_defined(result.nll),
        ece=_defined(result.ece),
        calibration=_bins(result.reliability()),
        uncalibrated=None if calibrated is None else _before(calibrated, result.heated(calibrated.temperature)),
        no_temperature=no_temperature,
        chosen_here=chosen_here,
        per_class=rows,
        unreadable=[LeftOut(name=error.name, reason=error.reason) for error in unreadable],
        notes=list(notes),
        dedup=dedup,
        predictions=predictions,
    )


def as_record(
    result: Classification,
    images: ImageSet,
    *,
    split: str,
    model: str = "",
    data: str = "",
    unreadable: Iterable[ImageError] = (),
    notes: Iterable[str] = (),
    dedup: Dedup | None = None,
    calibrated: Calibrated | None = None,
    no_temperature: str = "",
) -> Evaluation:
    """Everything about an evaluation.

    `images` is the set that `result` was measured on: its names and class names go into the record. split: which part of
    the data that is, such as "test". calibrated: the model's.
    """
    table, before, rows = result.per_class(), result.uncalibrated, result.records
    return Evaluation(
        model=model,
        data=data,
        split=split,
        notes=list(notes),
        dedup=dedup,
        images=len(result),
        class_names=list(images.class_names),
        top1=_defined(result.top1),
        top1_interval=result.top1_interval,
        top5=_defined(result.top5),
        mean_per_class=_defined(result.mean_per_class),
        nll=_defined(result.nll),
        ece=_defined(result.ece),
        per_class=[
            ClassRow(
                name=name,
                precision=_defined(table.precision[c]),
                recall=_defined(table.recall[c]),
                f1=_defined(table.f1[c]),
                support=int(table.support[c]),
            )
            for c, name in enumerate(images.class_names)
        ],
        confused=result.confused(),
        calibration=_bins(result.calibration()),
        uncalibrated=None if calibrated is None or before is None else _before(calibrated, before),
        no_temperature=no_temperature,
        unreadable=[LeftOut(name=error.name, reason=error.reason) for error in unreadable],
        positions=[*result.positions],
        confusion=result.confusion().tolist() if result.num_classes <= _DENSE_CLASSES else None,
        predictions=[
            Prediction(
                name=images.name(int(row["index"])),
                **{name: row[name].item() for name in rows.dtype.names or ()},
                content=content,
            )
            for row, content in zip(rows, checks.contents(images.subset(rows["index"])), strict=True)
        ],
    )


def _bins(bins: Calibration) -> list[Bin]:
    return [
        Bin(
            low=b / CALIBRATION_BINS,
            high=(b + 1) / CALIBRATION_BINS,
            images=int(bins.count[b]),
            confidence=_defined(bins.confidence[b]),
            accuracy=_defined(bins.accuracy[b]),
        )
        for b in range(CALIBRATION_BINS)
    ]


def _before(calibrated: Calibrated, result: Classification | MultiLabel) -> Uncalibrated:
    """result: of the same images, without the temperature."""
    return Uncalibrated(
        temperature=calibrated.temperature,
        by=calibrated.by,
        images=calibrated.images,
        held_out_nll=calibrated.loss,
        held_out_ece=calibrated.ece,
        nll=_defined(result.nll),
        ece=_defined(result.ece),
        calibration=_bins(result.reliability() if isinstance(result, MultiLabel) else result.calibration()),
    )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_record(path: str | os.PathLike[str], record: Evaluation | LabelsEvaluation) -> None:
    """Write an evaluation as JSON, atomically: one line for each key, and for each item of the long lists."""
    parts = []
    fields: dict[str, Any] = msgspec.to_builtins(record)
    if isinstance(record, Evaluation) and record.confusion is None:
        del fields["confusion"]
    for name in ("dedup", "uncalibrated"):
        if fields[name] is None:
            del fields[name]
    for key, value in fields.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
            text = "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
        parts.append(f" {json.dumps(key)}: {text}")
    with atomic_write(path) as temporary:
        # A file name that is not UTF-8 holds lone surrogates, which this writes as JSON's own escapes.
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8", errors="backslashreplace")


def read_record(path: str | os.PathLike[str]) -> Evaluation | LabelsEvaluation | None:
    """The evaluation in a file that `write_record` wrote; None if it holds `{}`, as of a run that had nothing to measure on.

    Raises FileNotFoundError where there is no such file, and RunError, naming the file and the field, for one of another form.
    """
    found = records.read(path, dict[str, Any], RunError)
    if not found:
        return None
    form = LabelsEvaluation if found.get("multi_label") else Evaluation
    return records.convert(found, form, str(path), RunError)
