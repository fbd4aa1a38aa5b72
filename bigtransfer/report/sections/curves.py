"""Loss, learning rate and validation over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report import charts
from bigtransfer.report.contents import Contents
from bigtransfer.report.page import percent
from bigtransfer.runs import Replanned

MEASURED = {
    "top1": "Validation accuracy",
    "map": "Validation, mean average precision",
    "precision_at_1": "Validation, precision at 1",
    "ap": "Validation, average precision",
    "ap50": "Validation, average precision at an overlap of 0.50",
    "probe": "Accuracy of the probe, on its own set",
}
"""Shares that are measured now and then, by their names in `Logged`."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    charts: Sequence[charts.Curve]
    validated: bool
    """Whether the loss on the validation images is drawn too."""
    replanned: int
    """How many changes of the plan are marked."""
    best: int | None
    """After how many steps the weights that were kept were measured; None if the last are."""


def compute(run: Contents) -> Curves | None:
    def points(name: str) -> list[charts.Point]:
        found = ((line.step + 1, getattr(line, name)) for line in run.metrics)
        return [(float(x), y) for x, y in found if y is not None and math.isfinite(y)]

    drawn = []
    best = max((line.step + 1 for line in run.metrics if line.best), default=None)
    moments = [charts.Moment(x=one.step, kind="replanned", hint=_in_words(one)) for one in run.replanned]
    if best is not None:
        moments.append(charts.Moment(x=best, kind="best", hint=f"after step {best:,}: the weights that were kept"))
    loss, held_out = points("loss"), points("nll")
    if len(loss) > 1:
        drawn.append(_with_smoothed("Training loss", loss, moments, held_out))
    rate = points("lr")
    if len(rate) > 1:
        drawn.append(
            charts.curve("Learning rate, at most", [("line", rate)], _short, max(y for _, y in rate), moments=moments)
        )
    norm = points("gradient_norm")
    if len(norm) > 1:
        drawn.append(_with_smoothed("Length of the gradient", norm, moments))
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
                    marks=("line",),
                    moments=moments,
                )
            )
    if not drawn:
        return None
    return Curves(charts=drawn, validated=len(loss) > 1 and bool(held_out), replanned=len(run.replanned), best=best)


def _with_smoothed(
    title: str,
    points: Sequence[charts.Point],
    moments: Sequence[charts.Moment],
    held_out: Sequence[charts.Point] = (),
) -> charts.Curve:
    smooth = charts.smoothed(points)
    series = [("faint", points), ("line", smooth), *([("second", held_out)] if held_out else [])]
    return charts.curve(title, series, _short, smooth[-1][1], marks=("second",), moments=moments)


def _in_words(one: Replanned) -> str:
    if one.reason == "learnt":
        return f"after step {one.step:,}: nothing was left to learn"
    return f"after step {one.step:,}: {one.steps:,} steps in all, to keep the budget"


def _short(y: float, more: int) -> str:
    return f"{y:.{3 + more}g}"
