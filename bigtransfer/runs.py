"""A run's folder: what was asked, what was decided, on which machine, and every number on the way. No torch here.

<run>/
  config.json      asked and resolved configuration, versions, hardware
  metrics.jsonl    one JSON object a line, {"step": ..., ...}
  split.json       which images went where
  unreadable.json  images left out, with the reason
  copies.json      images that are there more than once
  suspects.json    images that are probably under the wrong class, by the closed form
  closed.json      what the closed form sees, how good it is, and of which images (jobs.finetune.baseline; its weights lie beside it
                   for as long as the run may need them)
  choice.json      under a time budget: closed form, fine-tuned network and their average, and which is delivered
  budget.json      under a time budget: the time spent, and every change of the plan on the way
  checkpoints/     what a resume needs (train.checkpoint); of a fine-tuning gone when it is finished
  best.safetensors the weights of the best validation so far (jobs.best); gone when the run is finished
  evaluation.json
  evaluation-whole.json  of all test images, measured after a budget that left some out (jobs.compare)
  model.safetensors
  report.html
  .lock            held by the process that is at work in the folder

Paths in these files are relative to the data set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, TypeVar

from bigtransfer import files, outputs, records
from bigtransfer.errors import RunError
from bigtransfer.limits import limits
from bigtransfer.outputs import atomic_write, sync_folder, write_json
from bigtransfer.records import Natural, NotNegative

T = TypeVar("T")

__all__ = [
    "BUDGET",
    "Budget",
    "Origin",
    "Replanned",
    "Run",
    "atomic_write",
    "folder_of",
    "origin",
    "read_budget",
    "read_metrics",
    "sync_folder",
    "write_budget",
    "write_json",
]

BUDGET = "budget.json"


@dataclass(frozen=True, kw_only=True)
class Given:
    """Of what a run was asked."""

    data: str | list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run was, of its config.json."""

    command: str
    asked: Given = Given()

    @property
    def data(self) -> str | None:
        """The data set that it was given, as typed; None if there were several, or none."""
        return self.asked.data if isinstance(self.asked.data, str) else None


def origin(folder: Path) -> Origin:
    """What the run in `folder` was. FileNotFoundError if there is no config.json; RunError, naming the field, if it is none of ours."""
    return records.read(folder / "config.json", Origin, RunError)


def sha256(path: Path) -> str:
    """Digest of a file's bytes, in hexadecimal digits. RunError if it cannot be read."""
    try:
        with files.opened(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType] (it has readinto)
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from error


def folder_of(model: str) -> Path:
    """Where the run would be that made a model, given by its file or its folder."""
    return Path(model) if os.path.isdir(model) else Path(model).parent


@dataclass(frozen=True, kw_only=True)
class Replanned:
    """One change of a training's plan on the way."""

    step: Natural
    """Optimizer steps taken when it was decided."""
    steps: Natural
    """In all from then on; as many as taken: the training ended there."""
    eval_every: Natural
    """Distance of validations from then on, in steps of the recipe (`hyperrule.Schedule.position`)."""
    seconds: NotNegative
    """Of the budget that had passed."""
    reason: Literal["pace", "learnt"]
    """pace: the machine had become busier or faster; learnt: nothing was left to learn."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The form of budget.json."""

    seconds: NotNegative = 0.0
    """That the run's processes have taken so far."""
    replanned: tuple[Replanned, ...] = ()
    stages: dict[str, NotNegative] = field(default_factory=dict)
    """The same seconds by what was done in them."""


def read_budget(folder: Path) -> Budget:
    """A run's budget.json; an empty one if it has none. Raises RunError, naming the field, if it has not the form."""
    try:
        return records.read(folder / BUDGET, Budget, RunError)
    except FileNotFoundError:
        return Budget()


def write_budget(
    folder: Path, seconds: float, replanned: Sequence[Replanned], stages: Mapping[str, float] = MappingProxyType({})
) -> None:
    """Write a run's budget.json, atomically; arguments as of `Budget`."""
    record = {
        "seconds": round(seconds, 3),
        "replanned": [asdict(one) for one in replanned],
        "stages": {stage: round(taken, 3) for stage, taken in stages.items()},
    }
    write_json(folder / BUDGET, record)


_LOCK = ".lock"

RESULTS = (
    *("metrics.jsonl", "evaluation.json", "model.safetensors", "report.html", "split.json", "unreadable.json"),
    *("copies.json", "suspects.json", "closed.json", "choice.json", BUDGET),
)
"""What a training leaves in its folder beside config.json; some of it before that."""


def refuse_others(folder: Path, writes: Collection[str]) -> None:
    """RunError if `folder` holds files of these names, which are to be written there, and no run: they are somebody's own."""
    if any(os.path.lexists(folder / name) for name in (_LOCK, "config.json", ".work")):
        return
    own = sorted(name for name in writes if os.path.lexists(folder / name))
    if own:
        raise RunError(
            f"{folder} holds {', '.join(own)}, which is of no run of this program and would be replaced. Choose another folder with --out."
        )


class Run:
    """An open run folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"Cannot create the run folder {self.folder}: {error.strerror}. Choose another with --out."
            ) from error
        self._metrics = self.folder / "metrics.jsonl"

    @contextlib.contextmanager
    def hold(self, writes: Collection[str] = ()) -> Iterator[None]:
        """Keep the folder for this process, and clear away what one that was killed left half written.

        writes: see `refuse_others`. RunError too if another process is at work in it (the system frees the lock of one that died), or if it
        cannot be written to.
        """
        import filelock  # here, so that what only reads a run needs nothing but the standard library

        refuse_others(self.folder, writes)
        lock = filelock.FileLock(self.folder / _LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise RunError(
                f"Another process is at work in {self.folder}. Wait until it has finished, or choose another folder with --out."
            ) from error
        except OSError as error:
            raise RunError(
                f"Cannot write into the run folder {self.folder}: {error.strerror}. Choose another with --out."
            ) from error
        try:
            for leftover in self.folder.glob(".*.tmp"):
                outputs.remove_leftover(leftover)
            yield
        finally:
            lock.release()

    def log(self, step: int, **numbers: Any) -> None:
        """Append one line to metrics.jsonl; a number that is logged once stays even if the process dies next."""
        try:
            with open(self._metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError as error:
            raise RunError(
                f"Cannot write {self._metrics}: {error.strerror}. The same command goes on later."
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged line, oldest first; a torn last line (the machine died in the middle of it) is left out."""
        return read_metrics(self._metrics)

    def metrics_with(self, key: str, form: type[T] = dict[str, Any]) -> Iterator[T]:
        """The logged lines that have `key`, oldest first; the others, which may be millions, are not parsed. form: as in `read_metrics`."""
        marker = f'"{key}":'.encode()
        return _lines(self._metrics, form, lambda line: marker in line)

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run will log it again. Reads from the end, however long the log is."""
        if not self._metrics.is_file() or not self._metrics.stat().st_size:
            self._metrics.touch()
            return
        with open(self._metrics, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = _line_start(file, end)
                # A line that was cut off, or is not of ours, goes too.
                with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
                    line = _piece(file, start, end) if end - start <= limits().record_bytes else b""
                    if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                        break
                end = start
            file.truncate(end)


def _line_start(file: BinaryIO, end: int) -> int:
    """Where the line begins that ends at byte `end`; read backwards in pieces, as what no newline ends may be of any length."""
    at = end - 1
    while at > 0:
        begin = max(0, at - (1 << 16))
        newline = _piece(file, begin, at).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        at = begin
    return 0


def _piece(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def read_metrics(path: str | os.PathLike[str], form: type[T] = dict[str, Any]) -> list[T]:
    """The lines of a metrics.jsonl file, each as a `form` (see `records`), without what is no JSON, as a torn last line; [] if the file is
    not there. Raises RunError, naming file, line and field, if a line has another form or the file cannot be read."""
    return list(_lines(Path(path), form, lambda line: True))


def _lines(path: Path, form: type[T], wanted: Callable[[bytes], bool]) -> Iterator[T]:
    try:
        with files.opened(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(limits().record_bytes + 1), b""), start=1):
                if not wanted(line):
                    continue
                where = f"{path}, line {number}"
                try:
                    value = records.parse(line, where, RunError)
                except RunError:
                    continue
                yield records.convert(value, form, where, RunError)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from error
