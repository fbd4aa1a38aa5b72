"""Whether the probabilities can be taken at their word."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.report import charts
from bigtransfer.report.contents import Contents

FITS = 0.02
"""Below this difference of mean probability and accuracy the probabilities are called about right."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    chart: charts.Reliability
    confidence: float
    """Mean probability of the answers, 0 to 1."""
    top1: float
    ece: float
    bins: int
    verdict: str
    """What the difference of the two says, as half a sentence."""


def compute(run: Contents) -> Calibration | None:
    evaluation = run.evaluation
    if evaluation is None or evaluation.top1 is None or evaluation.ece is None:
        return None
    bins = evaluation.calibration
    total = sum(b.images for b in bins)
    if not total:
        return None
    confidence = sum(b.images * (b.confidence or 0.0) for b in bins) / total
    return Calibration(
        chart=charts.reliability(bins),
        confidence=confidence,
        top1=evaluation.top1,
        ece=evaluation.ece,
        bins=len(bins),
        verdict=_verdict(confidence - evaluation.top1),
    )


def _verdict(gap: float) -> str:
    points = f"{abs(gap) * 100:.1f} percentage points on average"
    if abs(gap) < FITS:
        return "on average its probabilities are about right"
    if gap > 0:
        return f"it is too sure of itself, by {points}"
    return f"it is right more often than it believes, by {points}"
