"""Whether the probabilities can be taken at their word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.record import Bin, Uncalibrated
from bigtransfer.report import charts
from bigtransfer.report.contents import Contents

FITS = 0.02
"""Below this difference of mean probability and accuracy the probabilities are called about right."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    chart: charts.Reliability
    confidence: float
    """Mean probability of the answers, or of several labels of every class of every image, 0 to 1."""
    share: float
    """Of the answers that are right, or of the classes that are there."""
    ece: float
    nll: float | None
    bins: int
    verdict: str
    """What the difference of the two says, as half a sentence."""
    several: bool
    """An image may have several labels."""
    before: Uncalibrated | None
    """The same without the model's temperature; None if there is none, or it is not known."""
    chart_before: charts.Reliability | None
    why_not: str
    """Why there is no temperature; may be empty."""


def compute(run: Contents) -> Calibration | None:
    found = run.evaluation or run.labels
    if found is None or found.ece is None:
        return None
    bins = found.calibration
    total = sum(b.images for b in bins)
    if not total:
        return None
    confidence = sum(b.images * (b.confidence or 0.0) for b in bins) / total
    what, share = "images, right", run.evaluation.top1 if run.evaluation else None
    if share is None:
        what, share = "classes of images, there", sum(b.images * (b.accuracy or 0.0) for b in bins) / total
    before = found.uncalibrated
    return Calibration(
        chart=charts.reliability(bins, what),
        confidence=confidence,
        share=share,
        ece=found.ece,
        nll=found.nll,
        bins=len(bins),
        verdict=_verdict(confidence - share),
        several=run.labels is not None,
        before=before,
        chart_before=_drawn(before.calibration, what) if before else None,
        why_not=found.no_temperature,
    )


def _drawn(bins: Sequence[Bin], what: str) -> charts.Reliability | None:
    return charts.reliability(bins, what) if any(b.images for b in bins) else None


def _verdict(gap: float) -> str:
    points = f"{abs(gap) * 100:.1f} percentage points on average"
    if abs(gap) < FITS:
        return "on average its probabilities are about right"
    if gap > 0:
        return f"it is too sure of itself, by {points}"
    return f"it is right more often than it believes, by {points}"
