"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report import charts
from bigtransfer.report.contents import Contents

MATRIX_CLASSES = 50
"""Largest number of classes for which the matrix is drawn."""

BESIDE, ALONE = 8, 25
"""How many pairs are listed beside a matrix, and without one."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    true: str
    answer: str
    images: int
    share: float
    """Of the true class's images."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    chart: charts.Matrix | None
    pairs: Sequence[Pair]
    """Most frequent first."""


def compute(run: Contents) -> Confusion | None:
    evaluation = run.evaluation
    if evaluation is None or not evaluation.confused:
        return None
    names, counts = evaluation.class_names, evaluation.confusion
    small = 1 < len(names) <= MATRIX_CLASSES
    support = [row.support for row in evaluation.per_class]
    return Confusion(
        chart=charts.matrix(counts, names) if counts is not None and small else None,
        pairs=[
            Pair(true=names[true], answer=names[answer], images=images, share=images / support[true])
            for true, answer, images in evaluation.confused[: BESIDE if small else ALONE]
        ],
    )
