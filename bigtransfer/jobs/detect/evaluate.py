"""`bit detect evaluate`: a detector measured on images with boxes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bigtransfer import outputs, report, runs
from bigtransfer.config import DetectEvaluateConfig
from bigtransfer.data import boxes as box_data
from bigtransfer.data.boxes import BoxSet, BoxSplits
from bigtransfer.detections import ObjectFinder
from bigtransfer.errors import DataError
from bigtransfer.evals import detection
from bigtransfer.jobs.detect import measuring
from bigtransfer.jobs.evaluate import refuse_run
from bigtransfer.jobs.plan import environment


def run(config: DetectEvaluateConfig) -> int:
    """`bit detect evaluate`. Exit status 1 if images could not be read and that was not expected."""
    written = [("--json", config.json), ("--coco", config.coco)]
    if config.out is not None:
        refuse_run(Path(config.out), "detect evaluate")
        written += [
            ("--out", str(Path(config.out) / name)) for name in ("evaluation.json", "config.json", "report.html")
        ]
    outputs.refuse_replacing(written, (config.model, config.data))
    finder = ObjectFinder.load(config.model, device=config.device, precision=config.precision, backend=config.backend)
    parts = box_data.open_boxes(
        config.data, skip_bad_boxes=config.skip_bad_boxes, skip_bad_images=config.skip_bad_images
    )
    split, boxes = _chosen(parts, config.split, config.data)
    boxes = box_data.matched(boxes, finder.class_names, config.data)
    notes = [*parts.notes, *(f"left out: {one.name}: {one.reason}" for one in parts.left_out[:20])]
    kept, found, unreadable = measuring.answers(finder, boxes, batch_size=config.batch_size)
    result = detection.measured(
        kept,
        found,
        finder.thresholds,
        model=finder.card.name,
        data=config.data,
        split=split,
        notes=notes,
        unreadable=unreadable,
    )
    measuring.remarks(result)
    print(f"{result.model} on {config.data} ({split}): {result.images:,} images, {result.objects:,} objects\n")
    print(measuring.described(result))
    if config.json is not None:
        detection.write_record(config.json, result)
        print(f"\nall numbers: {config.json}")
    if config.coco is not None:
        outputs.write_json(config.coco, detection.coco_results(found))
        print(f"\nboxes: {config.coco}")
    if config.out is not None:
        folder = runs.Run(config.out).folder
        runs.write_json(
            folder / "config.json",
            {
                "command": "detect evaluate",
                "asked": dataclasses.asdict(config),
                "environment": environment(finder.device),
            },
        )
        detection.write_record(folder / "evaluation.json", result)
        print(f"\nreport: {report.write(folder, [boxes.images])}")
    return 1 if result.unreadable and not config.skip_bad_images else 0


def _chosen(parts: BoxSplits, split: str, where: str) -> tuple[str, BoxSet]:
    there = parts.parts()
    if split == "auto":
        name = next(name for name in ("test", "val", "train") if name in there)
        return ("all images" if name == "train" and len(there) == 1 else name), there[name]
    if split not in there:
        raise DataError(f"{where} has no {split} part; it has {', '.join(there)}.")
    return split, there[split]
