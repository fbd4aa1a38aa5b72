"""How often the model is right where it is sure: accuracy against the share of images that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigtransfer import evals
from bigtransfer.report import charts
from bigtransfer.report.contents import Contents

ASKED = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Probabilities of the answer from which on the table lets the model answer."""

FEWEST = 10
"""Images below which the curve is not drawn, nor a line of the table read out: single images decide there."""

TOLD = 0.9
"""The probability of the sentence."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What becomes of the images if the model answers only from a probability on."""

    least: float
    """The probability, 0 to 1."""
    answered: int
    """Images that are answered."""
    share: float
    """Of all images; its 95% interval."""
    share_interval: tuple[float, float]
    right: float | None
    """Of the answered ones; None if there are none."""
    right_interval: tuple[float, float]

    @property
    def mistakes(self) -> int:
        return 0 if self.right is None else round((1 - self.right) * self.answered)


@dataclass(frozen=True, kw_only=True)
class Selection:
    images: int
    limits: Sequence[Limit]
    told: Limit
    """The one of the sentence."""
    chart: charts.Coverage | None


def compute(run: Contents) -> Selection | None:
    if run.evaluation is None or not run.evaluation.predictions:
        return None
    rows = run.evaluation.predictions
    probable = np.array([row.probability for row in rows])
    right = np.array([row.rank == 0 for row in rows])
    limits = [limit(probable, right, least) for least in ASKED]
    return Selection(
        images=len(rows),
        limits=limits,
        told=next(one for one in limits if one.least == TOLD),
        chart=charts.coverage(*curve(probable, right)) if len(rows) >= 2 * FEWEST else None,
    )


def limit(probable: np.ndarray, right: np.ndarray, least: float) -> Limit:
    """What answering only from this probability on makes of answers with these probabilities `(n,)`, right or not, bool `(n,)`."""
    chosen = probable >= least
    answered, n = int(chosen.sum()), len(probable)
    share = float(right[chosen].mean()) if answered else None
    return Limit(
        least=least,
        answered=answered,
        share=answered / n,
        share_interval=evals.wilson(answered / n, n),
        right=share,
        right_interval=evals.wilson(share or 0.0, answered),
    )


def curve(
    probable: np.ndarray, right: np.ndarray
) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """(share answered, share of these that is right) as fewer and fewer images are left out, the surest first, from `FEWEST` on; and
    (share answered, low, high) of the 95% interval of the latter. Images of equal probability are answered together."""
    order = np.argsort(-probable, kind="stable")
    hits, ranked = np.cumsum(right[order]), probable[order]
    last = np.append(np.diff(ranked) != 0, True)
    counts = np.flatnonzero(last) + 1
    counts = counts[counts >= min(FEWEST, len(ranked))]
    points = [(float(n / len(ranked)), float(hits[n - 1] / n)) for n in counts]
    band = [(share, *evals.wilson(accuracy, int(n))) for (share, accuracy), n in zip(points, counts, strict=True)]
    return points, band
