"""`bit report`: a run's report.html, written anew."""

from __future__ import annotations

import sys
from pathlib import Path

from bigtransfer import report
from bigtransfer.config import ReportConfig
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.errors import BitError, RunError
from bigtransfer.report import contents


def run(config: ReportConfig) -> None:
    """Write the report, with pictures if the data set can be opened."""
    folder = Path(config.run)
    if not folder.is_dir():
        raise RunError(f"There is no run folder {folder}.")
    if not any((folder / name).is_file() for name in ("config.json", "evaluation.json")):
        raise RunError(f"{folder} is no run folder: it holds neither a config.json nor an evaluation.json.")
    print(report.write(folder, _images(folder, config.data)))


def _images(folder: Path, data: str | None) -> list[ImageSet]:
    """All parts of the run's data set, or of the one at `data`."""
    config = contents.read_config(folder)
    asked = config.asked if config else {}
    where = data or asked.get("data")
    if isinstance(where, list):  # of `bit pretrain`, which shows no single images
        where = where[0] if len(where) == 1 else None
    if where is None:
        return []
    columns = {key: asked[key] for key in ("image_column", "label_column", "label_separator") if asked.get(key)}
    try:
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
