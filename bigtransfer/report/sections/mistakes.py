"""The mistakes that the model was most sure of, and what in the picture made it think so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Answer

SHOWN = 24
"""Largest number of pictures."""

EXPLAINED = 12
"""Of these, how many are explained at most: the first."""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    explained: Sequence[Answer]
    """Those with an explanation, the most confident first."""
    answers: Sequence[Answer]
    """The others, likewise."""
    shown: int
    total: int
    """Mistakes that there are."""


def compute(run: Contents) -> Mistakes | None:
    if run.evaluation is None:
        return None
    names = run.evaluation.class_names
    wrong = sorted((row for row in run.evaluation.predictions if row.rank), key=lambda row: -row.probability)
    if not wrong:
        return None
    found = [Answer.of(row, names, run.pictures, explained=i < EXPLAINED) for i, row in enumerate(wrong[:SHOWN])]
    return Mistakes(
        explained=[one for one in found if one.explained],
        answers=[one for one in found if not one.explained],
        shown=len(found),
        total=len(wrong),
    )
