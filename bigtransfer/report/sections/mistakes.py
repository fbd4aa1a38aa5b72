"""The mistakes that the model was most sure of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Answer

SHOWN = 24
"""Largest number of pictures."""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    answers: Sequence[Answer]
    """The most confident first."""
    total: int
    """Mistakes that there are."""


def compute(run: Contents) -> Mistakes | None:
    if run.evaluation is None:
        return None
    names = run.evaluation.class_names
    wrong = sorted((row for row in run.evaluation.predictions if row.rank), key=lambda row: -row.probability)
    if not wrong:
        return None
    return Mistakes(answers=[Answer.of(row, names, run.pictures) for row in wrong[:SHOWN]], total=len(wrong))
