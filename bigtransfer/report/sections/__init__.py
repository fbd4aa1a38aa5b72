"""The sections of the report, each from what a run folder holds to what there is to show, or None if there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bigtransfer.report.contents import Contents
from bigtransfer.report.sections import (
    boxes,
    calibration,
    candidates,
    classes,
    confusion,
    copies,
    curves,
    data,
    decisions,
    environment,
    following,
    headline,
    labels,
    landscape,
    mistakes,
    objects,
    selection,
    uncertain,
    unreadable,
)

SECTIONS: Mapping[str, Callable[[Contents], object | None]] = {
    "headline": headline.compute,
    "objects": objects.compute,
    "boxes": boxes.compute,
    "candidates": candidates.compute,
    "decisions": decisions.compute,
    "curves": curves.compute,
    "labels": labels.compute,
    "classes": classes.compute,
    "confusion": confusion.compute,
    "mistakes": mistakes.compute,
    "landscape": landscape.compute,
    "uncertain": uncertain.compute,
    "selection": selection.compute,
    "calibration": calibration.compute,
    "data": data.compute,
    "copies": copies.compute,
    "unreadable": unreadable.compute,
    "environment": environment.compute,
    "following": following.compute,
}
"""In the order of the page. The name is also its template's; what the function returns has the template's variables as attributes."""
