"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.record import Evaluation
from bigtransfer.report import charts
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Thumbnail

MATRIX_CLASSES = 50
"""Largest number of classes for which the matrix is drawn."""

BESIDE, ALONE = 8, 25
"""How many pairs are listed beside a matrix, and without one."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    true: str
    answer: str
    images: int
    share: float
    """Of the true class's images."""


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Pictures of two classes that are confused, side by side."""

    true: str
    answer: str
    images: int
    """Of the class that were taken for the other."""
    wrong: Sequence[Thumbnail]
    """Of these, the surest mistakes first."""
    rights: Sequence[tuple[str, Sequence[Thumbnail]]]
    """Of both classes, by name, pictures that are recognized, the surest first."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    chart: charts.Matrix | None
    pairs: Sequence[Pair]
    """Most frequent first."""
    beside: Sequence[Beside]


PICTURED, PICTURES = 4, 3
"""How many pairs of classes are shown side by side, by how many pictures each."""


def compute(run: Contents) -> Confusion | None:
    evaluation = run.evaluation
    if evaluation is None or not evaluation.confused:
        return None
    names, counts = evaluation.class_names, evaluation.confusion
    small = 1 < len(names) <= MATRIX_CLASSES
    support = [row.support for row in evaluation.per_class]
    return Confusion(
        chart=charts.matrix(counts, names) if counts is not None and small else None,
        pairs=[
            Pair(true=names[true], answer=names[answer], images=images, share=images / support[true])
            for true, answer, images in evaluation.confused[: BESIDE if small else ALONE]
        ],
        beside=_beside(run, evaluation),
    )


def _beside(run: Contents, evaluation: Evaluation) -> list[Beside]:
    """The most frequent confusions in pictures, each two classes once, as far as there are pictures and time."""
    names, found, seen = evaluation.class_names, list[Beside](), set[frozenset[int]]()
    rows = sorted(evaluation.predictions, key=lambda row: -row.probability)

    def shown(true: int, answer: int) -> list[Thumbnail]:
        chosen = [row.name for row in rows if row.true == true and row.predicted == answer][:PICTURES]
        return [picture for name in chosen if not run.pictures.late() and (picture := run.pictures.get(name))]

    for true, answer, images in evaluation.confused:
        if len(found) == PICTURED or run.pictures.late():
            break
        if frozenset((true, answer)) in seen:
            continue
        seen.add(frozenset((true, answer)))
        if wrong := shown(true, answer):
            rights = [(names[c], pictures) for c in (true, answer) if (pictures := shown(c, c))]
            found.append(Beside(true=names[true], answer=names[answer], images=images, wrong=wrong, rights=rights))
        elif len(seen) == 2 * PICTURED:  # there are no pictures
            break
    return found
