"""Several runs that were measured on the same images, on one page: how they differ, and on which images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtransfer.data import ImageSet
from bigtransfer.errors import RunError
from bigtransfer.evals.paired import Paired
from bigtransfer.evals.record import Evaluation, Prediction
from bigtransfer.outputs import atomic_write
from bigtransfer.report import page
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Answer, Pictures

SHOWN = 12
"""Pictures that only one of two runs gets right, at most."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """A run beside the first."""

    name: str
    paired: Paired
    verdict: str
    lost: Sequence[Answer]
    """What it says of images that only the first gets right, the surest first."""
    gained: Sequence[Answer]
    """What the first says of images that only this one gets right, likewise."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What the page shows."""

    rows: Sequence[tuple[str, Evaluation]]
    """Name and numbers of each, on all of its images."""
    against: Sequence[Against]
    images: int
    """That all were measured on."""
    notes: Sequence[str]


def compare(folders: Sequence[str | os.PathLike[str]], images: Sequence[ImageSet] = ()) -> Runs:
    """The runs in those folders, the first beside each of the others, on the images that all were measured on (by name).

    Raises RunError for a folder without an evaluation or with one of several labels, where there is no such image, or where the runs
    contradict each other about an image's class.
    """
    pictures = Pictures(images)
    found = [_measured(folder) for folder in folders]
    names = _told_apart([Path(folder) for folder in folders])
    common = set.intersection(*({row.name for row in one.predictions} for one in found))
    if not common:
        raise RunError(f"{names[0]} and the others were measured on different images; there is nothing to compare.")
    tables = [{row.name: row for row in one.predictions if row.name in common} for one in found]
    order = sorted(common)
    notes = []
    for name, one, table in zip(names, found, tables, strict=True):
        if len(table) != sum(row.name in common for row in one.predictions):
            raise RunError(f"{name} has several images of one name; it cannot be told which is which.")
        for image in order:
            theirs, ours = one.class_names[table[image].true], found[0].class_names[tables[0][image].true]
            if theirs != ours:
                raise RunError(
                    f"{image} is of class {ours!r} in {names[0]} and of {theirs!r} in {name}: they were measured on different data."
                )
        if len(one.predictions) > len(common):
            more = len(one.predictions) - len(common)
            what = f"1 further image of {name} is" if more == 1 else f"{more:,} further images of {name} are"
            notes.append(f"{what} not in every run, and left out of the comparison.")
    if len({one.data for one in found}) > 1:
        notes.append(
            f"Measured on {', '.join(sorted({one.data for one in found}))}; taken for the same images, as names and classes are the same."
        )
    return Runs(
        rows=list(zip(names, found, strict=True)),
        against=[
            _against(
                names[0],
                name,
                found[0],
                one,
                [tables[0][image] for image in order],
                [table[image] for image in order],
                pictures,
            )
            for name, one, table in zip(names[1:], found[1:], tables[1:], strict=True)
        ],
        images=len(order),
        notes=notes,
    )


def write(path: str | os.PathLike[str], shown: Runs) -> None:
    """Write the page, atomically."""
    text = page.render(f"Comparison of {len(shown.rows)} runs", {"runs": shown})
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _measured(folder: str | os.PathLike[str]) -> Evaluation:
    contents = Contents.read(folder, Pictures())
    if contents.labels is not None:
        raise RunError(
            f"{folder}: images may have several labels there; only runs with one label for each image are compared."
        )
    if contents.evaluation is None or not contents.evaluation.predictions:
        raise RunError(f"{folder} holds no evaluation. `bit evaluate MODEL DATA --out FOLDER` makes one.")
    return contents.evaluation


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or as they were typed where two have the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _against(
    first_name: str,
    name: str,
    first: Evaluation,
    second: Evaluation,
    ours: Sequence[Prediction],
    theirs: Sequence[Prediction],
    pictures: Pictures,
) -> Against:
    right = np.array([row.rank == 0 for row in ours]), np.array([row.rank == 0 for row in theirs])
    paired = Paired.of(*right)

    def shown(rows: Sequence[Prediction], which: np.ndarray, names: Sequence[str]) -> list[Answer]:
        chosen = sorted((rows[i] for i in np.flatnonzero(which).tolist()), key=lambda row: -row.probability)
        return [Answer.of(row, names, pictures) for row in chosen[:SHOWN]]

    return Against(
        name=name,
        paired=paired,
        verdict=_verdict(first_name, name, paired),
        lost=shown(theirs, right[0] & ~right[1], second.class_names),
        gained=shown(ours, right[1] & ~right[0], first.class_names),
    )


def _verdict(first: str, second: str, paired: Paired) -> str:
    difference, (low, high) = paired.difference, paired.interval
    better, worse = second, first
    if difference < 0:
        difference, low, high, better, worse = -difference, -high, -low, first, second
    interval = f"(95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    points = f"{difference * 100:.1f} percentage points {interval}"
    if low > 0:
        return f"{better} is better than {worse} by {points}"
    ahead = f"{better} is ahead by {points}" if difference else f"both get as many right {interval}"
    return f"{first} and {second} cannot be told apart by these images: {ahead}"
