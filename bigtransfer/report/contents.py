"""What a run folder holds, as the sections of its report read it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.errors import RunError
from bigtransfer.report.pictures import Pictures
from bigtransfer.runs import read_metrics


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The files of one run; what is not there is empty."""

    folder: Path
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    unreadable: Sequence[Mapping[str, Any]]
    """Images left out of the training, then those left out of the evaluation."""
    metrics: Sequence[Mapping[str, Any]]
    pictures: Pictures

    @classmethod
    def read(cls, folder: str | os.PathLike[str], pictures: Pictures) -> Contents:
        """Raises RunError if there is no such folder or one of its files is damaged."""
        folder = Path(folder)
        if not folder.is_dir():
            raise RunError(f"There is no run folder {folder}.")
        evaluation = read_json(folder / "evaluation.json", dict)
        return cls(
            folder=folder,
            config=read_json(folder / "config.json", dict),
            evaluation=evaluation,
            unreadable=read_json(folder / "unreadable.json", list) + evaluation.get("unreadable", []),
            metrics=read_metrics(folder / "metrics.jsonl"),
            pictures=pictures,
        )

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of this name."""
        return (self.folder / name).is_file()


def read_json(path: Path, kind: type[dict] | type[list]) -> Any:
    """The JSON object or list in a file of a run, or an empty one if the file is not there. Raises RunError if it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}. Remove it to write the report without it.") from error
    if not isinstance(value, kind):
        raise RunError(f"{path} should hold a JSON {'object' if kind is dict else 'list'}. Is it of another program?")
    return value
