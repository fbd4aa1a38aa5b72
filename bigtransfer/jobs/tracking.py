"""Copies of a training's numbers for the programs that show and compare runs: TensorBoard, Weights & Biases, MLflow.

What counts is metrics.jsonl: what goes wrong here on the way is said once, and the training goes on. Where the numbers go is those
programs' own business (`WANDB_MODE`, `WANDB_PROJECT`, `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`); no images and no weights do.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bigtransfer import outputs, records
from bigtransfer.catalog import ModelCard
from bigtransfer.errors import ConfigError, RunError

_NAMES = "tracking.json"
"""In the run's folder: what the run is called there, for a resume."""
_PAUSE = 5.0
"""Seconds between two messages to MLflow, whose client waits for each answer."""


@dataclass(frozen=True, kw_only=True)
class _Names:
    wandb: str | None = None
    mlflow: str | None = None


Tell = Callable[[int, Mapping[str, Any]], None]
"""Hands on the numbers of one step, counted from 0; what is no number is left out."""


def silent(step: int, numbers: Mapping[str, Any]) -> None:
    """A `Tell` to nobody."""


class _Writer(Protocol):
    def write(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self, failed: bool) -> None: ...


@contextlib.contextmanager
def writer(program: str | None, folder: Path, asked: Mapping[str, Any]) -> Iterator[Tell]:
    """Within, the function that hands on numbers. Steps come in order; what an earlier process told of the first one and later is replaced.

    program: "tensorboard", "wandb", "mlflow"; None: nowhere. A run that goes on is the same one there. asked: for the table of settings.
    ConfigError if the program cannot be begun with.
    """
    if program is None:
        yield silent
        return
    try:
        target: _Writer = _PROGRAMS[program](folder, asked)
    except ImportError as error:
        raise ConfigError(f"--log {program} needs a package: pip install 'bigtransfer[{program}]'") from error
    except (ConfigError, RunError):
        raise
    except Exception as error:  # each has errors of its own
        raise ConfigError(f"--log {program}: it cannot be begun with: {_short(error)}") from error
    broken = False

    def guarded(work: Callable[[], None]) -> None:
        nonlocal broken
        if broken:
            return
        try:
            work()
        except Exception as error:
            broken = True
            print(
                f"note: --log {program} has failed ({_short(error)}); the training goes on without it. All numbers are in {folder}: "
                "metrics.jsonl and, in the end, evaluation.json.",
                file=sys.stderr,
            )

    def write(step: int, numbers: Mapping[str, Any]) -> None:
        guarded(lambda: target.write(step, {key: v for key, v in numbers.items() if isinstance(v, int | float)}))

    try:
        yield write
    except BaseException:
        guarded(lambda: target.close(True))
        raise
    guarded(lambda: target.close(False))


def final(numbers: Mapping[str, float], card: ModelCard) -> dict[str, float]:
    """What is told once, of the model that is delivered: its measurements, and the temperature that its head was divided by if there is
    one; each under a name that no step's number has ("final/test_top1")."""
    temperature = {} if card.calibrated is None else {"temperature": card.calibrated.temperature}
    return {f"final/{name}": value for name, value in {**numbers, **temperature}.items()}


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class _TensorBoard:
    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._begin = lambda step: SummaryWriter(folder / "tensorboard", purge_step=step)
        self._events: SummaryWriter | None = None

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._events is None:  # it hides what other files hold of this step and later
            self._events = self._begin(step)
        for key, value in numbers.items():
            self._events.add_scalar(key, value, step)

    def close(self, failed: bool) -> None:
        if self._events is not None:
            self._events.close()


class _Wandb:
    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        name = _names(folder).wandb or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bigtransfer"),
            dir=folder,
            id=name,
            name=os.environ.get("WANDB_NAME", folder.name),
            resume="allow",
            config=dict(asked),
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        _remember(folder, wandb=name)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._client, self._metric = MlflowClient(), Metric
        self._waiting: list[Any] = []
        self._told = time.monotonic()
        before = _names(folder).mlflow
        if before is not None:
            try:
                self._client.update_run(before, status="RUNNING")
                self._run = before
                return
            except Exception:  # another server, or removed there
                pass
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "bigtransfer")
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self._run = self._client.create_run(number, run_name=folder.name).info.run_id
        settings = [Param(key, json.dumps(value)[:500]) for key, value in asked.items() if value is not None]
        self._client.log_batch(self._run, params=settings)
        _remember(folder, mlflow=self._run)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._waiting += [self._metric(key, float(value), now, step) for key, value in numbers.items()]
        if time.monotonic() - self._told >= _PAUSE:
            self._tell()

    def _tell(self) -> None:
        for first in range(0, len(self._waiting), 1000):  # as many as the server takes at once
            self._client.log_batch(self._run, metrics=self._waiting[first : first + 1000])
        self._waiting.clear()
        self._told = time.monotonic()

    def close(self, failed: bool) -> None:
        self._tell()
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


_PROGRAMS: dict[str, Callable[[Path, Mapping[str, Any]], _Writer]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}


def _remember(folder: Path, **name: str) -> None:
    """Write down what the run is called in one program; the names that others have for it stay."""
    known = {program: one for program, one in vars(_names(folder)).items() if one is not None}
    outputs.write_json(folder / _NAMES, known | name)


def _names(folder: Path) -> _Names:
    try:
        return records.read(folder / _NAMES, _Names, RunError)
    except FileNotFoundError:
        return _Names()
