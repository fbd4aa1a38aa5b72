"""Of a detector: how good it is, class by class."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.evals.detection import Detection
from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Objects:
    name: str
    subject: str
    result: Detection
    found: int
    missed: int
    invented: int
    kind: str
    """Of the images measured on: "test"; empty if they are all that there are."""
    train_images: int


def compute(run: Contents) -> Objects | None:
    if run.detection is None:
        return None
    found, missed, invented = run.detection.counts()
    kinds = {"all images": "", "train": "training", "val": "validation"}
    asked = run.config.asked if run.config else {}
    start = asked.get("model") if run.config and run.config.command == "detect finetune" else None
    subject = (
        f"RetinaNet on {start}{'' if asked.get('pretrained', True) else ' from random weights'}, " if start else ""
    )
    return Objects(
        name=run.folder.resolve().name,
        subject=f"{subject}{run.detection.model} on {run.detection.data}",
        result=run.detection,
        found=found,
        missed=missed,
        invented=invented,
        kind=kinds.get(run.detection.split, run.detection.split),
        train_images=run.config.train_images if run.config else 0,
    )
