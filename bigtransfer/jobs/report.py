"""`bit report`: a run's report.html, written anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bigtransfer import catalog, fetch, report
from bigtransfer.config import ReportConfig
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.data.boxes import open_boxes
from bigtransfer.errors import BitError, RunError
from bigtransfer.predictor import Predictor
from bigtransfer.report import contents
from bigtransfer.terminal import line


def run(config: ReportConfig) -> None:
    """Write the report, with pictures if the data set can be opened."""
    folder = checked(config.run)
    print(report.write(folder, images(folder, config.data), _predictor(folder)))


def checked(run: str) -> Path:
    """The folder; RunError if it is none of a run."""
    folder = Path(run)
    if not folder.is_dir():
        raise RunError(f"There is no run folder {folder}.")
    if (folder / "check.html").is_file() and not (folder / "evaluation.json").is_file():
        raise RunError(f"{folder} holds what `bit check` found, not a run; its page is {folder / 'check.html'}.")
    if not any((folder / name).is_file() for name in ("config.json", "evaluation.json")):
        raise RunError(f"{folder} is no run folder: it holds neither a config.json nor an evaluation.json.")
    return folder


OF_DETECTORS = ("detect finetune", "detect evaluate")
"""Commands whose folders are of a detector."""


def model_of(folder: Path) -> str | Path | None:
    """The model that was measured; None if it is not there any more, or is not known."""
    config = contents.read_config(folder)
    if config is None or config.command in ("pretrain", *OF_DETECTORS):
        return None
    if config.command != "evaluate":
        return file if (file := folder / "model.safetensors").is_file() else None
    model = str(config.asked.get("model"))
    return model if _is_here(model) else None


def _is_here(model: str) -> bool:
    """Whether nothing has to be downloaded for it: nothing is because a folder that somebody sent says so."""
    from bigtransfer import libraries  # loads torch

    if (record := catalog.meant(model)) is not None:
        return fetch.local(record) is not None
    if (asked := libraries.asked(model)) is not None:
        return asked[2] is not None and os.path.exists(asked[2])
    return os.path.exists(model)


def _predictor(folder: Path) -> Predictor | None:
    """The model that was measured, to explain its mistakes; None if it is not there any more."""
    model = model_of(folder)
    try:
        return None if model is None else Predictor.load(model)
    except BitError as error:
        print(f"note: no explanations of mistakes, for the model cannot be read. ({error})", file=sys.stderr)
        return None


def images(folder: Path, data: str | None) -> list[ImageSet]:
    """All parts of the run's data set, or of the one at `data`."""
    config = contents.read_config(folder)
    asked = config.asked if config else {}
    where = data or asked.get("data")
    if isinstance(where, list):  # of `bit pretrain`, which shows no single images
        where = where[0] if len(where) == 1 else None
    if where is None:
        return []
    if data is None and not os.path.exists(where):
        # An address, or the name of a public set, is not gone to because a folder that somebody sent says so.
        print(
            f"note: no pictures, for {line(where)} is no file or folder here; --data tells where they are.",
            file=sys.stderr,
        )
        return []
    columns = {key: asked[key] for key in ("image_column", "label_column", "label_separator") if asked.get(key)}
    try:
        if config is not None and config.command in OF_DETECTORS:
            found = open_boxes(where, skip_bad_boxes=True, skip_bad_images=True)
            return [part.images for part in found.parts().values()]
        splits = open_dataset(where, min_classes=1, **columns)
    except BitError as error:
        if data is not None:
            raise
        print(
            f"note: no pictures, for the images are not there any more; --data tells where they are. ({error})",
            file=sys.stderr,
        )
        return []
    return [part for part in (splits.train, splits.val, splits.test) if part is not None]
