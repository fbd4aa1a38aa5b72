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
    rows = sorted(run.evaluation.get("predictions", []), key=lambda row: -row["entropy"])[:SHOWN]
    if not rows:
        return None
    names = run.evaluation["class_names"]
    return Uncertain(answers=[Answer.of(row, names, run.pictures) for row in rows])
