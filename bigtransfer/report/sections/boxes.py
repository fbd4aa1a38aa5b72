"""Of a detector: the images on which it missed or invented most, with the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.detection import ImageRow, Seen
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Thumbnail

SHOWN = 16
"""Pictures with most wrong; as many of those with nothing wrong but a few."""
RIGHT = 4


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box in the picture."""

    kind: str
    left: float
    top: float
    width: float
    height: float
    hint: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    name: str
    width: int
    """Of the image itself, px: what the boxes are in."""
    height: int
    picture: Thumbnail
    boxes: Sequence[Box]
    found: int
    missed: int
    invented: int


@dataclass(frozen=True, kw_only=True)
class Boxes:
    worst: Sequence[Picture]
    right: Sequence[Picture]
    wrong: int
    """Images with an object missed or invented."""
    images: int


def compute(run: Contents) -> Boxes | None:
    result = run.detection
    if result is None:
        return None
    wrong = [row for row in result.per_image if any(one.kind != "found" for one in row.objects)]
    ranked = sorted(wrong, key=lambda row: -sum(one.kind != "found" for one in row.objects))
    right = [row for row in result.per_image if row.objects and row not in wrong]
    names = result.class_names
    worst = [shown for row in ranked[: 2 * SHOWN] if (shown := _picture(run, row, names))][:SHOWN]
    good = [shown for row in right[: 2 * RIGHT] if (shown := _picture(run, row, names))][:RIGHT]
    if not worst and not good:
        return None
    return Boxes(worst=worst, right=good, wrong=len(wrong), images=result.images)


def _picture(run: Contents, row: ImageRow, names: Sequence[str]) -> Picture | None:
    picture = run.pictures.large(row.name)
    if picture is None:
        return None
    counts = {kind: sum(one.kind == kind for one in row.objects) for kind in ("found", "missed", "invented")}
    return Picture(
        name=row.name,
        width=row.width,
        height=row.height,
        picture=picture,
        boxes=[_box(one, names) for one in row.objects],
        **counts,
    )


def _box(one: Seen, names: Sequence[str]) -> Box:
    left, top, right, bottom = one.box
    name = names[one.label] if one.label < len(names) else str(one.label)
    hint = f"{one.kind}: {name}"
    if one.score is not None:
        hint += f" {one.score:.2f}"
    if one.rather is not None and one.rather < len(names):
        hint += f", is {names[one.rather]}"
    return Box(
        kind=one.kind, left=left, top=top, width=max(0.0, right - left), height=max(0.0, bottom - top), hint=hint
    )
