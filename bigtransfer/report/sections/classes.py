"""Precision, recall and F1 of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.record import ClassRow
from bigtransfer.report.contents import Contents

LISTED = 3000
"""Largest number of rows: more would make the page heavy."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    rows: Sequence[ClassRow]
    """`per_class` of the evaluation without the classes that have no image, lowest F1 first; the first `LISTED`."""
    total: int
    """How many these classes are."""
    without_images: int
    """How many these are."""


def compute(run: Contents) -> Classes | None:
    table = run.evaluation.per_class if run.evaluation else []
    rows = sorted((row for row in table if row.support), key=lambda row: row.f1 or 0.0)
    return Classes(rows=rows[:LISTED], total=len(rows), without_images=len(table) - len(rows)) if rows else None
