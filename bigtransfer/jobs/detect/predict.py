"""`bit detect predict`: where objects are on images."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from bigtransfer import outputs
from bigtransfer.bars import tqdm
from bigtransfer.config import DetectPredictConfig
from bigtransfer.data.forms import open_images
from bigtransfer.detections import Found, ObjectFinder
from bigtransfer.errors import ImageError
from bigtransfer.predictor import pixels_of
from bigtransfer.terminal import cell, json_line, line, utf8


def run(config: DetectPredictConfig) -> int:
    """Find and write in the format asked for. Exit status 1 if some image could not be read."""
    finder = ObjectFinder.load(config.model, device=config.device, precision=config.precision, backend=config.backend)
    addresses = [one for one in config.images if "://" in one]
    local = (
        open_images([one for one in config.images if "://" not in one]) if len(addresses) < len(config.images) else None
    )
    sources = [*addresses, *([] if local is None else [local.name(i) for i in range(len(local))])]
    outputs.refuse_replacing([("--out", config.out)], (config.model, *sources))
    errors = objects = 0
    with contextlib.ExitStack() as stack:
        stream: TextIO = sys.stdout if config.out is None else stack.enter_context(outputs.text_output(config.out))
        write = _WRITERS[config.format](config, stream)
        found = finder.stream(sources, batch_size=config.batch_size)
        for number, one in enumerate(tqdm(found, total=len(sources), unit="img", disable=None, leave=False)):
            write(one)
            errors += one.error is not None
            objects += len(one.given(config.threshold).labels)
            if config.pictures is not None and one.error is None:
                _draw(config, Path(config.pictures), number, one)
    if config.out is not None or config.pictures is not None:
        read = len(sources) - errors
        what = f"{objects:,} {'object' if objects == 1 else 'objects'}"
        print(f"{what} on {read:,} {'image' if read == 1 else 'images'}", file=sys.stderr)
    if errors:
        print(f"{errors} of {len(sources)} images cannot be read", file=sys.stderr)
    return 1 if errors else 0


def _draw(config: DetectPredictConfig, folder: Path, number: int, found: Found) -> None:
    """The picture with its boxes, under its own name and its number, as several folders may hold the same names."""
    from bigtransfer.report.drawing import drawn  # the report's room loads torch

    try:
        pixels = pixels_of(found.name, found.name, 3, None)
    except ImageError:  # it has gone since
        return
    own = found.given(config.threshold)
    texts = [
        f"{found.class_names[label]} {score:.2f}"
        for label, score in zip(own.labels.tolist(), own.scores.tolist(), strict=True)
    ]
    stem = os.path.splitext(os.path.basename(found.name.rstrip("/")))[0][:80] or "image"
    folder.mkdir(parents=True, exist_ok=True)
    with outputs.atomic_write(folder / f"{number:05d}-{stem}.jpg") as path:
        drawn(pixels, own.boxes, texts, own.labels.tolist()).save(path, "JPEG", quality=90)


def _csv(config: DetectPredictConfig, stream: TextIO) -> Callable[[Found], None]:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "score", "left", "top", "right", "bottom", "error"])

    def write(found: Found) -> None:
        name = utf8(cell(found.name))
        if found.error is not None:
            writer.writerow([name, "", "", "", "", "", "", utf8(cell(found.error))])
        own = found.given(config.threshold)
        for label, score, box in zip(own.labels.tolist(), own.scores.tolist(), own.boxes.tolist(), strict=True):
            label_name = utf8(cell(found.class_names[label]))
            writer.writerow([name, label_name, f"{score:.4f}", *(f"{side:.2f}" for side in box), ""])

    return write


def _jsonl(config: DetectPredictConfig, stream: TextIO) -> Callable[[Found], None]:
    def write(found: Found) -> None:
        print(json_line(found.record(config.threshold), stream), file=stream)

    return write


def _table(config: DetectPredictConfig, stream: TextIO) -> Callable[[Found], None]:
    def write(found: Found) -> None:
        if found.error is not None:
            print(f"{line(found.name)}: error: {line(found.error)}", file=stream)
            return
        own = found.given(config.threshold)
        print(
            f"{line(found.name)}: {len(own.labels) or 'no'} {'object' if len(own.labels) == 1 else 'objects'}",
            file=stream,
        )
        for label, score, box in zip(own.labels.tolist(), own.scores.tolist(), own.boxes.tolist(), strict=True):
            sides = " ".join(f"{side:7.1f}" for side in box)
            print(f"  {score:5.1%}  {sides}  {line(found.class_names[label])}", file=stream)

    return write


_WRITERS = {"csv": _csv, "jsonl": _jsonl, "table": _table}
