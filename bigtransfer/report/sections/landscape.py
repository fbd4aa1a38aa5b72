"""A map of the measured pictures: those of which the model thinks the same lie near each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Sheet

COLOURED = 24
"""Classes at most that have a colour of their own; of more only right and wrong are told apart."""

TILE = 56
"""Side of the picture of a point, px."""

WIDTH, HEIGHT, MARGIN = 640, 400, 14
"""Of the drawing."""


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    y: float
    kind: int
    """Number of the true class among those of the legend."""
    right: bool
    text: str
    """What is said of it: name, true class, answer."""


@dataclass(frozen=True, kw_only=True)
class Class:
    name: str
    hue: int
    """Degrees."""


@dataclass(frozen=True, kw_only=True)
class Landscape:
    points: Sequence[Point]
    """Mistakes last, so that they lie on top."""
    classes: Sequence[Class]
    """In the order of `Point.kind`; empty if they are too many for colours."""
    sheet: Sheet | None
    """The points' pictures in their order."""
    images: int
    width: int = WIDTH
    height: int = HEIGHT
    tile: int = TILE


def compute(run: Contents) -> Landscape | None:
    evaluation = run.evaluation
    if evaluation is None or len(evaluation.positions) < 3:
        return None
    rows = {row.index: row for row in evaluation.predictions}
    placed = [(rows[index], x, y) for index, x, y in evaluation.positions if index in rows]
    placed.sort(key=lambda one: one[0].rank > 0)
    kinds = {number: kind for kind, number in enumerate(sorted({row.true for row, _, _ in placed}))}
    coloured = len(kinds) <= COLOURED
    names = evaluation.class_names
    return Landscape(
        points=[
            Point(
                x=round(MARGIN + x * (WIDTH - 2 * MARGIN), 1),
                y=round(MARGIN + (1 - y) * (HEIGHT - 2 * MARGIN), 1),
                kind=kinds[row.true],
                right=row.rank == 0,
                text=_said(row.name, names[row.true], names[row.predicted], row.probability, row.rank == 0),
            )
            for row, x, y in placed
        ],
        # Neighbours in the alphabet far from each other in colour.
        classes=[Class(name=names[number], hue=kind * 137 % 360) for number, kind in kinds.items()] if coloured else [],
        sheet=run.pictures.sheet([row.name for row, _, _ in placed], TILE),
        images=evaluation.images,
    )


def _said(name: str, true: str, answer: str, probability: float, right: bool) -> str:
    told = f"{true}, {probability:.0%} sure" if right else f"taken for {answer} ({probability:.0%}), is {true}"
    return f"{told}\n{name.rpartition('/')[2]}"
