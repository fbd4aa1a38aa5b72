"""The weights of the best validation of a training, in RUN/best.safetensors until the run is finished.

They are kept in memory and written whenever a checkpoint is (just before it): what a killed process had not written belongs to steps
that are taken again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from bigtransfer import files, records
from bigtransfer.errors import RunError
from bigtransfer.jobs.clock import goodness
from bigtransfer.records import Natural
from bigtransfer.train import loop
from bigtransfer.weights import formats

FILE = "best.safetensors"
_KEY = "bigtransfer.best"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation of a training; of equally good ones the last."""

    step: Natural
    """Optimizer steps taken until then."""
    numbers: dict[str, float]
    """What was measured: "val/top1" and its like."""


class Keeper:
    """Keeps the weights of the best of the validations that it is shown, and goes on from those of an earlier start of the run."""

    def __init__(self, folder: Path, judged_by: Sequence[str]) -> None:
        """judged_by: see `Plan.judged_by`. RunError if the folder holds such a file that cannot be read."""
        self._path, self._judged_by = folder / FILE, judged_by
        self.best = read(folder)
        self._unwritten: dict[str, Tensor] | None = None

    def show(self, state: loop.State, numbers: Mapping[str, float]) -> bool:
        """A validation of the weights of now gave these numbers; whether they are the best so far, and kept."""
        value = goodness(numbers, self._judged_by)
        before = goodness(self.best.numbers, self._judged_by) if self.best else None
        if value is None or (before is not None and value < before):
            return False
        self.best = Best(step=state.step, numbers=dict(numbers))
        with torch.no_grad(), state.averaged():
            self._unwritten = {
                name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
                for name, tensor in state.model.state_dict().items()
            }
        return True

    def write(self) -> None:
        """Write them, if they have changed."""
        if self._unwritten is not None and self.best is not None:
            record = {"step": self.best.step, "numbers": self.best.numbers}
            formats.write_safetensors(self._path, self._unwritten, {_KEY: json.dumps(record)})
            self._unwritten = None


def read(folder: Path) -> Best | None:
    """What the run `folder` keeps as the best; None if nothing. RunError if it cannot be read."""
    path = folder / FILE
    if not path.exists():
        return None
    with _opened(path) as file:
        return records.decode((file.metadata() or {}).get(_KEY, ""), Best, f"{path}: its header", RunError)


def load(folder: Path, model: nn.Module) -> None:
    """Put the weights that the run `folder` keeps as the best into `model`. RunError if there are none, or of another network."""
    with _opened(folder / FILE) as file:
        wanted = model.state_dict()
        if set(file.keys()) != wanted.keys():
            raise ValueError("it is of another network")
        tensors = {name: file.get_tensor(name) for name in wanted}
        if any(tensor.shape != wanted[name].shape for name, tensor in tensors.items()):
            raise ValueError("it is of another network")
        with torch.no_grad():
            for name, tensor in tensors.items():
                wanted[name].copy_(tensor)


def remove(folder: Path) -> None:
    """Remove them: the run is finished."""
    (folder / FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        files.opened(path).close()  # a pipe of that name would be waited for
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError, ValueError, RunError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RunError(
            f"The best weights so far, {path}, cannot be read: {reason}. Remove the file to go on with those that are to come."
        ) from error
