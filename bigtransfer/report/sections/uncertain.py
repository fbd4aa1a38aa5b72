"""The pictures on which the model was least decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Answer

SHOWN = 12
"""Largest number of pictures."""


@dataclass(frozen=True, kw_only=True)
class Uncertain:
    answers: Sequence[Answer]
    """Those of the highest entropy first."""


def compute(run: Contents) -> Uncertain | None:
    if run.evaluation is None or not run.evaluation.predictions:
        return None
    rows = sorted(run.evaluation.predictions, key=lambda row: -row.entropy)[:SHOWN]
    return Uncertain(answers=[Answer.of(row, run.evaluation.class_names, run.pictures) for row in rows])
