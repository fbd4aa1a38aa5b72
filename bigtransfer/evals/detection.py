"""How good a detector is: COCO's average precision, and what it found, missed and invented.

Boxes are left, top, right, bottom, px of the upright image.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from bigtransfer import records
from bigtransfer.data.boxes import BoxSet
from bigtransfer.data.sources import LeftOut
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.evals import record
from bigtransfer.objects import DEFAULT_THRESHOLD, Objects
from bigtransfer.outputs import write_json
from bigtransfer.records import Whole

OVERLAP = 0.5
"""Intersection over union from which on a box is that of an object."""

Share = float | None
"""0 to 1; None where there is nothing to measure."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class in an evaluation."""

    name: str
    objects: Whole
    """Without crowds."""
    ap: Share
    ap50: Share
    threshold: float
    """Score from which on its objects are given."""
    found: Whole
    missed: Whole
    invented: Whole


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An object on an image, or what was taken for one."""

    kind: Literal["found", "missed", "invented"]
    label: Whole
    box: tuple[float, float, float, float]
    """That of the answer; of what was missed its own."""
    score: float | None = None
    """None of what was missed."""
    rather: Whole | None = None
    """Of what was invented: the class of the missed object there, if there is one."""


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """An image in an evaluation."""

    name: str
    height: Whole
    width: Whole
    objects: tuple[Seen, ...]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """The form of a detector's evaluation.json. Averages over overlaps, classes and recall are COCO's: 101 points of recall, IoU 0.50 to
    0.95 by 0.05, at most 100 boxes an image; small below 32 x 32 px, large from 96 x 96 px on."""

    task: Literal["detection"] = "detection"
    model: str
    data: str
    split: str
    images: Whole
    objects: Whole
    class_names: tuple[str, ...]
    ap: Share
    ap50: Share
    ap75: Share
    ap_small: Share
    ap_medium: Share
    ap_large: Share
    recall: Share
    """Mean over classes and overlaps of the largest recall, at most 100 boxes an image."""
    per_class: tuple[ClassRow, ...]
    per_image: tuple[ImageRow, ...]
    notes: tuple[str, ...] = ()
    unreadable: tuple[LeftOut, ...] = ()

    def named(self) -> dict[str, float]:
        """The numbers that there are, by name."""
        values = {name: getattr(self, name) for name in SUMMARY}
        return {name: value for name, value in values.items() if value is not None}

    def counts(self) -> tuple[int, int, int]:
        """Objects found, missed and invented."""
        rows = self.per_class
        return sum(row.found for row in rows), sum(row.missed for row in rows), sum(row.invented for row in rows)


SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall")


def write_record(path: str | os.PathLike[str], result: Detection) -> None:
    """Write an evaluation as JSON, atomically."""
    write_json(path, msgspec.to_builtins(result))


def read_record(path: str | os.PathLike[str]) -> Detection:
    """The evaluation that `write_record` wrote. Raises FileNotFoundError, and RunError, naming file and field, for one of another form."""
    return records.read(path, Detection, RunError)


def read_any(path: str | os.PathLike[str]) -> Detection | record.Evaluation | record.LabelsEvaluation | None:
    """The evaluation in a file, of a detector or of a classifier; otherwise as `record.read_record`."""
    found = records.read(path, dict[str, Any], RunError)
    if found.get("task") != "detection":
        return record.read_record(path)
    return records.convert(found, Detection, str(path), RunError)


@dataclass(frozen=True)
class Precision:
    """COCO's averages; see `Detection`."""

    summary: dict[str, Share]
    per_class: np.ndarray
    """(classes, 2): AP and AP at 0.50, NaN of classes without objects."""


def average_precision(boxes: BoxSet, found: Sequence[Objects]) -> Precision:
    """By pycocotools, of the answers to each image of the set. ConfigError if it is not installed."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ConfigError(
            "Average precision needs the package pycocotools: pip install 'bigtransfer[detection]'"
        ) from error
    assert len(boxes) == len(found)
    classes = len(boxes.class_names)
    images = [{"id": i + 1} for i in range(len(boxes))]
    owners = np.repeat(np.arange(len(boxes)), np.diff(boxes.starts))
    truths = _annotations(owners, boxes.boxes, boxes.labels, boxes.areas)
    for one, crowd in zip(truths, boxes.crowd.tolist(), strict=True):
        one["iscrowd"] = int(crowd)
    every = found or [Objects.none()]
    answers = coco_results(every)
    for number, one in enumerate(answers, start=1):
        one |= {"id": number, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}

    def of(annotations: list[dict[str, Any]]) -> Any:
        made: Any = COCO()
        made.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label + 1} for label in range(classes)],
        }
        made.createIndex()
        return made

    with contextlib.redirect_stdout(io.StringIO()):  # it tells its story
        run = COCOeval(of(truths), of(answers), "bbox")
        run.evaluate()
        run.accumulate()
    # (overlaps, recalls, classes, areas, most boxes); -1 where there are no objects.
    precision, recall = run.eval["precision"], run.eval["recall"]

    def mean(values: np.ndarray) -> Share:
        there = values[values > -1]
        return float(there.mean()) if there.size else None

    summary = {
        "ap": mean(precision[:, :, :, 0, -1]),
        "ap50": mean(precision[0, :, :, 0, -1]),
        "ap75": mean(precision[5, :, :, 0, -1]),
        "ap_small": mean(precision[:, :, :, 1, -1]),
        "ap_medium": mean(precision[:, :, :, 2, -1]),
        "ap_large": mean(precision[:, :, :, 3, -1]),
        "recall": mean(recall[:, :, 0, -1]),
    }
    rows = [[mean(precision[:, :, label, 0, -1]), mean(precision[0, :, label, 0, -1])] for label in range(classes)]
    return Precision(summary, np.array(rows, dtype=np.float64).reshape(classes, 2))


def coco_results(found: Sequence[Objects]) -> list[dict[str, Any]]:
    """The answers as COCO's results format has them, images and classes numbered from 1."""
    owners = np.repeat(np.arange(len(found)), [len(one.labels) for one in found])
    boxes = np.concatenate([np.empty((0, 4), np.float32), *(one.boxes for one in found)])
    labels = np.concatenate([np.empty(0, np.int64), *(one.labels for one in found)])
    scores = np.concatenate([np.empty(0, np.float32), *(one.scores for one in found)])
    rows = _annotations(owners, boxes, labels, None)
    for row, score in zip(rows, scores.tolist(), strict=True):
        row["score"] = score
        del row["id"]
    return rows


def _annotations(
    owners: np.ndarray, boxes: np.ndarray, labels: np.ndarray, areas: np.ndarray | None
) -> list[dict[str, Any]]:
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    rows: list[dict[str, Any]] = [
        {"id": number, "image_id": owner + 1, "category_id": label + 1, "bbox": box}
        for number, (owner, label, box) in enumerate(
            zip(owners.tolist(), labels.tolist(), wide.tolist(), strict=True), start=1
        )
    ]
    if areas is not None:
        for row, area in zip(rows, areas.tolist(), strict=True):
            row["area"] = area
    return rows


def best_thresholds(boxes: BoxSet, found: Sequence[Objects]) -> np.ndarray:
    """Of each class the score from which on its objects are best given: that of the greatest F1 on these images, `DEFAULT_THRESHOLD` of
    classes that are not on them or never found. float64 (classes,)."""
    thresholds = np.full(len(boxes.class_names), DEFAULT_THRESHOLD)
    # At any threshold the boxes above it are matched the same way: the better ones come first.
    scores, labels, right = [], [], []
    for i, own in enumerate(found):
        matched = _matched(boxes, i, own)
        counted = matched != _CROWD
        scores.append(own.scores[counted])
        labels.append(own.labels[counted])
        right.append(matched[counted] >= 0)
    all_scores, all_labels, all_right = (np.concatenate([np.empty(0), *one]) for one in (scores, labels, right))
    counts = boxes.class_counts()
    for label in range(len(thresholds)):
        mine = all_labels == label
        if not counts[label] or not all_right[mine].any():
            continue
        order = np.argsort(-all_scores[mine], kind="stable")
        hits = np.cumsum(all_right[mine][order])
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + counts[label])
        thresholds[label] = all_scores[mine][order][int(np.argmax(f1))]
    return thresholds


_CROWD = -2


def _matched(boxes: BoxSet, i: int, found: Objects) -> np.ndarray:
    """Of each box found on image `i` the object that it is, by its number on the image; -1 of none, `_CROWD` where it lies on a crowd.
    Each object goes to the best box of its class that overlaps it enough, and most of what is left."""
    own = boxes.of(i)
    there, kinds, crowd = boxes.boxes[own], boxes.labels[own], boxes.crowd[own]
    matched = np.full(len(found.labels), -1, dtype=np.int64)
    if not len(there):
        return matched
    union, inside = overlaps(found.boxes, there)
    free = ~crowd
    for k in np.argsort(-found.scores, kind="stable").tolist():
        alike = kinds == found.labels[k]
        fits = np.where(free & alike, union[k], 0.0)
        best = int(fits.argmax())
        if fits[best] >= OVERLAP:
            matched[k] = best
            free[best] = False
        elif (crowd & alike & (inside[k] >= OVERLAP)).any():
            matched[k] = _CROWD
    return matched


def overlaps(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union, and over the area of the first, of each pair: float64 (n, m). Boxes (n, 4) and (m, 4)."""
    one, other = one.astype(np.float64)[:, None], other.astype(np.float64)[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=2)
    areas = [(each[..., 2:] - each[..., :2]).prod(axis=2) for each in (one, other)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9), shared / np.maximum(areas[0], 1e-9)


def measured(
    boxes: BoxSet,
    found: Sequence[Objects],
    thresholds: np.ndarray,
    *,
    model: str,
    data: str,
    split: str,
    notes: Iterable[str] = (),
    unreadable: Iterable[LeftOut] = (),
) -> Detection:
    """The evaluation of the answers to each image of the set. thresholds: (classes,), from which on objects are given."""
    precision = average_precision(boxes, found)
    classes = len(boxes.class_names)
    tally = {kind: np.zeros(classes, dtype=np.int64) for kind in ("found", "missed", "invented")}
    images = []
    for i, all_of in enumerate(found):
        given = all_of.above(thresholds)
        matched = _matched(boxes, i, given)
        own = boxes.of(i)
        there, kinds, crowd = boxes.boxes[own], boxes.labels[own], boxes.crowd[own]
        missed = np.setdiff1d(np.flatnonzero(~crowd), matched)
        union = overlaps(given.boxes, there)[0] if len(there) else np.zeros((len(given.labels), 0))
        seen = []
        for k, match in enumerate(matched.tolist()):
            if match == _CROWD:
                continue
            rather = None
            if match < 0:
                # Of another class: one of its own that is still free it would be.
                others = [int(j) for j in missed if union[k, j] >= OVERLAP]
                rather = int(kinds[max(others, key=lambda j: union[k, j])]) if others else None
            seen.append(
                Seen(
                    kind="found" if match >= 0 else "invented",
                    label=int(given.labels[k]),
                    box=_rounded(given.boxes[k]),
                    score=round(float(given.scores[k]), 4),
                    rather=rather,
                )
            )
        seen += [Seen(kind="missed", label=int(kinds[j]), box=_rounded(there[j])) for j in missed.tolist()]
        for one in seen:
            tally[one.kind][one.label] += 1
        height, width = boxes.sizes[i].tolist()
        images.append(ImageRow(name=boxes.images.name(i), height=height, width=width, objects=tuple(seen)))
    counts = boxes.class_counts()
    rows = [
        ClassRow(
            name=name,
            objects=int(counts[label]),
            ap=_share(precision.per_class[label, 0]),
            ap50=_share(precision.per_class[label, 1]),
            threshold=float(thresholds[label]),
            **{kind: int(of_class[label]) for kind, of_class in tally.items()},
        )
        for label, name in enumerate(boxes.class_names)
    ]
    return Detection(
        model=model,
        data=str(Path(data)),
        split=split,
        images=len(boxes),
        objects=int(counts.sum()),
        class_names=boxes.class_names,
        **precision.summary,  # pyright: ignore[reportArgumentType] (`SUMMARY`)
        per_class=tuple(rows),
        per_image=tuple(images),
        notes=tuple(notes),
        unreadable=tuple(unreadable),
    )


def _rounded(box: np.ndarray) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(float(value), 2) for value in box)
    return left, top, right, bottom


def _share(value: float) -> Share:
    return None if np.isnan(value) else float(value)
