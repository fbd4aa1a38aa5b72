"""Loss, learning rate and validation over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report import charts
from bigtransfer.report.contents import Contents
from bigtransfer.report.page import percent

MEASURED = {
    "top1": "Validation accuracy",
    "map": "Validation, mean average precision",
    "precision_at_1": "Validation, precision at 1",
    "probe": "Accuracy of the probe, on its own set",
}
"""Shares that are measured now and then, by their names in `Logged`."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    charts: Sequence[charts.Curve]


def compute(run: Contents) -> Curves | None:
    def points(name: str) -> list[charts.Point]:
        found = ((line.step + 1, getattr(line, name)) for line in run.metrics)
        return [(float(x), y) for x, y in found if y is not None and math.isfinite(y)]

    drawn = []
    loss = points("loss")
    if len(loss) > 1:
        drawn.append(_with_smoothed("Training loss", loss))
    rate = points("lr")
    if len(rate) > 1:
        drawn.append(charts.curve("Learning rate, at most", [("line", rate)], _short, max(y for _, y in rate)))
    norm = points("gradient_norm")
    if len(norm) > 1:
        drawn.append(_with_smoothed("Length of the gradient", norm))
    for name, title in MEASURED.items():
        share = points(name)
        if share:
            near = max(y for _, y in share) - min(y for _, y in share) < 0.05
            drawn.append(
                charts.curve(
                    title,
                    [("line", share)],
                    lambda y, more, digits=1 if near else 0: percent(y, digits + more),
                    share[-1][1],
                    marks=True,
                )
            )
    return Curves(charts=drawn) if drawn else None


def _with_smoothed(title: str, points: Sequence[charts.Point]) -> charts.Curve:
    smooth = charts.smoothed(points)
    return charts.curve(title, [("faint", points), ("line", smooth)], _short, smooth[-1][1])


def _short(y: float, more: int) -> str:
    return f"{y:.{3 + more}g}"
