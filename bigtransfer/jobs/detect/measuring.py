"""A detector measured on images with boxes."""

from __future__ import annotations

import sys

from bigtransfer.bars import tqdm
from bigtransfer.data.boxes import BoxSet
from bigtransfer.data.sources import LeftOut
from bigtransfer.detections import ObjectFinder
from bigtransfer.evals.detection import Detection, Objects


def answers(
    finder: ObjectFinder, boxes: BoxSet, *, batch_size: int | None = None, title: str = "measuring"
) -> tuple[BoxSet, list[Objects], list[LeftOut]]:
    """What is found on each image; the images that can be read, their answers, and the others with the reasons."""
    found, kept, left_out = [], [], []
    stream = finder.stream(boxes.images, batch_size=batch_size)
    for i, one in enumerate(tqdm(stream, total=len(boxes), desc=title, unit="img", disable=None, leave=False)):
        if one.error is None:
            found.append(one.objects)
            kept.append(i)
        else:
            left_out.append(LeftOut(name=one.name, reason=one.error))
    return (boxes if len(kept) == len(boxes) else boxes.subset(kept)), found, left_out


def described(result: Detection) -> str:
    """The numbers, for the terminal."""
    percent = lambda share: "     –" if share is None else f"{share:6.1%}"  # noqa: E731
    lines = [
        f"AP {percent(result.ap)}   at IoU 0.50 {percent(result.ap50)}   at 0.75 {percent(result.ap75)}   (COCO's average precision)",
        f"small objects {percent(result.ap_small)}   medium {percent(result.ap_medium)}   large {percent(result.ap_large)}   "
        f"recall of 100 boxes {percent(result.recall)}",
        "",
    ]
    width = min(40, max([5, *(len(row.name) for row in result.per_class)]))
    lines.append(f"{'class':<{width}}  objects      AP    AP50  threshold   found  missed  invented")
    shown = [row for row in result.per_class if row.objects or row.invented]
    for row in shown[:_ROWS]:
        lines.append(
            f"{row.name[:width]:<{width}}  {row.objects:7,}  {percent(row.ap)}  {percent(row.ap50)}  {row.threshold:9.2f}  "
            f"{row.found:6,}  {row.missed:6,}  {row.invented:8,}"
        )
    if len(shown) > _ROWS:
        lines.append(f"... and {len(shown) - _ROWS} more; --out FOLDER writes a report with all")
    return "\n".join(lines)


_ROWS = 40


def remarks(result: Detection) -> None:
    """Print the notes, and which images are left out."""
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if result.unreadable:
        print(f"{len(result.unreadable)} images cannot be read and are left out:", file=sys.stderr)
        for one in result.unreadable[:10]:
            print(f"  {one.name}: {one.reason}", file=sys.stderr)
