"""Where images may have several classes: the numbers of every class, and the images with the worst answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.record import LabelRow, LabelsPrediction
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Thumbnail
from bigtransfer.report.sections.classes import LISTED

SHOWN = 24
"""Largest number of pictures."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with wrong labels; names of classes."""

    name: str
    missed: Sequence[str]
    """True, and not given."""
    wrong: Sequence[str]
    """Given, and not true."""
    right: Sequence[str]
    picture: Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class Labels:
    rows: Sequence[LabelRow]
    """Those of the classes that have images, lowest average precision first; the first `classes.LISTED`."""
    total: int
    """How many these classes are."""
    without_images: int
    """Classes that have none."""
    chosen_here: bool
    examples: Sequence[Example]
    """Images whose wrong labels the model was surest of, or whose missed ones it held for least probable; the worst first."""
    wrong_images: int
    """Images that have not exactly their labels."""


def compute(run: Contents) -> Labels | None:
    if run.labels is None:
        return None
    rows = [row for row in run.labels.per_class if row.support]
    wrong = [row for row in run.labels.predictions if set(row.true) != set(row.given)]
    names = run.labels.class_names

    def example(row: LabelsPrediction) -> Example:
        return Example(
            name=row.name,
            missed=[names[c] for c in row.true if c not in row.given],
            wrong=[names[c] for c in row.given if c not in row.true],
            right=[names[c] for c in row.true if c in row.given],
            picture=run.pictures.get(row.name),
        )

    return Labels(
        rows=sorted(rows, key=lambda row: row.average_precision or 0.0)[:LISTED],
        total=len(rows),
        without_images=len(run.labels.per_class) - len(rows),
        chosen_here=run.labels.chosen_here,
        examples=[example(row) for row in sorted(wrong, key=_badness, reverse=True)[:SHOWN]],
        wrong_images=len(wrong),
    )


def _badness(row: LabelsPrediction) -> float:
    """How far the worst of an image's labels is from right, 0 to 1."""
    numbers = [*row.true, *(c for c in row.given if c not in row.true)]
    return max((1 - p if c in row.true else p for c, p in zip(numbers, row.probabilities, strict=True)), default=0.0)
