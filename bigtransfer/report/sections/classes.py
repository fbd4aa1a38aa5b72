"""Precision, recall and F1 of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.record import ClassRow
from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Classes:
    rows: Sequence[ClassRow]
    """`per_class` of the evaluation without the classes that have no image, lowest F1 first."""


def compute(run: Contents) -> Classes | None:
    rows = [row for row in run.evaluation.per_class if row.support] if run.evaluation else []
    return Classes(rows=sorted(rows, key=lambda row: row.f1 or 0.0)) if rows else None
