"""Precision, recall and F1 of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Classes:
    rows: Sequence[Mapping[str, Any]]
    """`per_class` of the evaluation without the classes that have no image, lowest F1 first."""


def compute(run: Contents) -> Classes | None:
    rows = [row for row in run.evaluation.get("per_class", []) if row["support"]]
    return Classes(rows=sorted(rows, key=lambda row: row["f1"])) if rows else None
