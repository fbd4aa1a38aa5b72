"""What a run folder holds, as the sections of its report read it.

Somebody else may have written the folder: every file is checked here, once, so that the sections can trust what they find.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from bigtransfer import config as configs
from bigtransfer import records, runs
from bigtransfer.data.checks import Copy
from bigtransfer.data.sources import LeftOut
from bigtransfer.errors import RunError
from bigtransfer.evals import detection
from bigtransfer.evals.candidates import Choice, Closed
from bigtransfer.evals.detection import Detection
from bigtransfer.evals.record import Count, Evaluation, LabelsEvaluation
from bigtransfer.evals.suspects import Suspected
from bigtransfer.hyperrule import Recipe
from bigtransfer.report.pictures import Pictures

T = TypeVar("T")


class RunConfig(msgspec.Struct, frozen=True, kw_only=True):
    """config.json: what was asked, decided and found. The values of `resolved`, `environment` and `data` are anything."""

    command: Literal["finetune", "pretrain", "evaluate", "detect finetune", "detect evaluate"]
    asked: dict[str, Any]
    """Of the types that the command's configuration states."""
    resolved: dict[str, Any] = {}
    recipe: Recipe | None = None
    environment: dict[str, Any] = {}
    data: dict[str, Any] = {}

    @property
    def detects(self) -> bool:
        """Whether the command is one of detectors."""
        return self.command.startswith("detect ")

    @property
    def start(self) -> str:
        """The network that a fine-tuning began with: the one that was taken, where that was left to the images; "" if unknown."""
        return str(self.resolved.get("start") or self.asked.get("model", ""))

    @property
    def train_images(self) -> int:
        """0 if unknown."""
        return self.data.get("train", 0)


_KEYS = {
    "nll": "val/nll",
    "best": "val/best",
    "top1": "val/top1",
    "map": "val/map",
    "precision_at_1": "val/precision_at_1",
    "probe": "probe/top1",
    "ap": "val/ap",
    "ap50": "val/ap50",
}


class Logged(msgspec.Struct, frozen=True, kw_only=True, rename=_KEYS):
    """A line of metrics.jsonl: the step it belongs to, from 0, and those of its numbers that the report shows."""

    step: Count
    loss: float | None = None
    lr: float | None = None
    gradient_norm: float | None = None
    nll: float | None = None
    best: float | None = None
    """There if the validation was the best so far, of a training that keeps the weights of the best."""
    top1: float | None = None
    map: float | None = None
    precision_at_1: float | None = None
    probe: float | None = None
    ap: float | None = None
    ap50: float | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The files of one run; what is not there is None or empty."""

    folder: Path
    config: RunConfig | None
    evaluation: Evaluation | None
    labels: LabelsEvaluation | None
    """The evaluation of a model whose images may have several classes, in place of the other."""
    detection: Detection | None
    """The evaluation of a detector, in place of the others."""
    unreadable: Sequence[LeftOut]
    """Images left out of the training, then those left out of the evaluation."""
    copies: Sequence[Sequence[Copy]]
    """Images that are the same byte for byte, as `data.checks.find_copies` found them before the training."""
    metrics: Sequence[Logged]
    budget: runs.Budget | None
    """What was spent of a time budget, and what that changed on the way; None if there was none."""
    closed: Closed | None
    """The closed form that a fine-tuning began with."""
    suspects: Sequence[Suspected] | None
    """Training images whose label is likely to be wrong by the closed form; None: not looked for."""
    choice: Choice | None
    """How it was chosen what a fine-tuning delivers; None if there was no choice."""
    pictures: Pictures

    @classmethod
    def read(cls, folder: str | os.PathLike[str], pictures: Pictures) -> Contents:
        """Raises RunError if there is no such folder, or one of its files, which it names with the field, has not the form it should."""
        folder = Path(folder)
        if not folder.is_dir():
            raise RunError(f"There is no run folder {folder}.")
        evaluation = _read(folder / "evaluation.json", detection.read_any)
        left_out = _read(folder / "unreadable.json", lambda path: records.read(path, list[LeftOut], RunError)) or []
        return cls(
            folder=folder,
            config=read_config(folder),
            evaluation=evaluation if isinstance(evaluation, Evaluation) else None,
            labels=evaluation if isinstance(evaluation, LabelsEvaluation) else None,
            detection=evaluation if isinstance(evaluation, Detection) else None,
            unreadable=[*left_out, *(evaluation.unreadable if evaluation else ())],
            copies=_read(folder / "copies.json", lambda path: records.read(path, list[list[Copy]], RunError)) or [],
            metrics=_read(folder / "metrics.jsonl", lambda path: runs.read_metrics(path, Logged)) or [],
            budget=_read(folder / runs.BUDGET, lambda path: runs.read_budget(path.parent))
            if (folder / runs.BUDGET).is_file()
            else None,
            closed=_read(folder / "closed.json", lambda path: records.read(path, Closed, RunError)),
            suspects=_read(folder / "suspects.json", lambda path: records.read(path, list[Suspected], RunError)),
            choice=_read(folder / "choice.json", lambda path: records.read(path, Choice, RunError)),
            pictures=pictures,
        )

    @property
    def model(self) -> str:
        """Name of the model that was measured; empty if none was."""
        found = self.evaluation or self.labels or self.detection
        return found.model if found else ""

    @property
    def replanned(self) -> Sequence[runs.Replanned]:
        """Changes of the training's plan on the way, to keep a budget."""
        return () if self.budget is None else self.budget.replanned

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of this name."""
        return (self.folder / name).is_file()


def read_config(folder: Path) -> RunConfig | None:
    """A run's config.json; None if there is none. Raises RunError, naming the field, if it has not the form it should."""

    def checked(path: Path) -> RunConfig:
        config = records.read(path, RunConfig, RunError)
        for field in configs.fields_of(configs.of_command(config.command)):
            # Where several are taken, earlier versions may have written one.
            form: Any = list[field.type] | field.type if field.several else field.type  # type: ignore[name-defined]
            if config.asked.get(field.name) is not None:
                records.convert(config.asked[field.name], form, f"{path}: asked.{field.name}", RunError)
        count: Any = Count
        records.convert(config.train_images, count, f"{path}: data.train", RunError)
        return config

    return _read(folder / "config.json", checked)


def _read(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` makes of a file; None if it is not there."""
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except RunError as error:
        raise RunError(f"{error} Repair the file, or remove it to have the report without it.") from error
