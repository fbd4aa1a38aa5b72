"""What was decided about a training before its first step: a frozen `Plan`, made once from facts or read back when the run goes on.

It is printed, recorded in the run's config.json, and obeyed; nothing is decided later. What may be asked differently when a run goes on
(`_NO_EFFECT`) is not in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import torch

import bigtransfer
from bigtransfer import records, runs
from bigtransfer.catalog import Architecture, InputSpec
from bigtransfer.config import Config, fields_of
from bigtransfer.errors import RunError
from bigtransfer.hyperrule import Recipe
from bigtransfer.machine import usable_cores
from bigtransfer.records import Natural, Share
from bigtransfer.train import objective

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One training: what is learnt from how many images, how, and in which numbers."""

    recipe: Recipe
    architecture: Architecture
    images: Natural
    """To learn from."""
    classes: Natural
    input: InputSpec
    """How images are shown to the model in validation and afterwards."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    loss: objective.Loss = "softmax"
    ema: Share | None = None
    """Decay of the moving average of the weights, if one is kept."""
    eval_every: Natural
    """Steps between validations."""
    device: str
    dtype: str
    """Of the computation: "float32", "bfloat16"."""
    micro_batch: Natural
    """Images computed at a time, when the run begins."""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"no number format {self.dtype!r}")
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"no device {self.device!r}") from None

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    @property
    def aim(self) -> objective.Goal:
        """What is minimized."""
        return objective.Aim(self.loss)

    @property
    def judged_by(self) -> tuple[str, ...]:
        """What tells how good a model is, by its names in metrics.jsonl: the first that a validation has; higher is better."""
        return ("val/top1", "val/map", "val/precision_at_1")

    def facts(self) -> dict[str, Any]:
        """What a checkpoint belongs to, as JSON has it: all that decides the numbers of the training. Where it is computed may change,
        and the checkpoint says itself how many images at a time."""
        everything = dataclasses.asdict(self)
        for name in ("device", "micro_batch", "eval_every", "input"):
            del everything[name]
        del everything["recipe"]["notes"]
        for arch in filter(None, (everything["architecture"], everything["architecture"]["beside"])):
            if arch["backbone"] is None:  # which earlier versions did not know of
                del arch["backbone"]
        for name in _LATER:
            # Checkpoints of earlier versions, which knew nothing of them, go on being good.
            if not everything["recipe"][name]:
                del everything["recipe"][name]
        return everything

    def forward_flops(self, side: int) -> float | None:
        """Floating-point operations of the network on one image of `side` x `side` px; None if not all of it is trained."""
        return self.architecture.forward_flops(side, self.classes)


_LATER = ("dropout", "l2_sp")
"""Of a recipe: what earlier versions did not have, and 0 where nothing is asked."""

P = TypeVar("P", bound=Plan)


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


# --- On record


@dataclass(frozen=True, kw_only=True)
class Begun(Generic[P]):
    """A run that began earlier."""

    plan: P
    data: Mapping[str, Any]
    """What was found in the data set then: the names of `record`'s `data`."""
    threads: int | None
    files: Mapping[str, str]
    """SHA-256 of files of its folder that it goes on from, by name; none of runs of earlier versions."""

    def check(self, folder: Path, names: Iterable[str]) -> None:
        """RunError if one of these files of its folder is not as the run left it: what it holds would be delivered, or said, of others."""
        for name in filter(self.files.__contains__, names):
            path = folder / name
            if not path.is_file() or runs.sha256(path) != self.files[name]:
                became = "is not as this run left it" if path.is_file() else "is gone"
                raise RunError(
                    f"{path} {became}, and the run goes on from it. Put it back, or remove {folder} to start anew."
                )


@dataclass(frozen=True, kw_only=True)
class _Environment:
    threads: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The form of config.json, as far as a resume needs it."""

    command: str
    asked: dict[str, Any]
    resolved: dict[str, Any]
    recipe: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    environment: _Environment = field(default_factory=_Environment)


def record(
    run: runs.Run, command: str, config: Config, plan: Plan, data: Mapping[str, Any], files: Iterable[str] = ()
) -> None:
    """Write config.json: what was asked, what was decided, on which machine, from which data. It comes last of what a run writes before
    its first step: where it is, a resume finds the rest too, `files` of its folder as they are now (`Begun.check`)."""
    digests = {name: runs.sha256(run.folder / name) for name in files if (run.folder / name).is_file()}
    resolved = dataclasses.asdict(plan)
    runs.write_json(
        run.folder / "config.json",
        {
            "command": command,
            "asked": dataclasses.asdict(config),  # type: ignore[call-overload]
            "recipe": resolved.pop("recipe"),
            "resolved": resolved,
            "environment": environment(plan.torch_device),
            "data": dict(data),
            "files": digests,
        },
    )


def recall(folder: Path, command: str, config: Config, kind: type[P]) -> Begun[P] | None:
    """The run of `command` that `folder` already holds; None if it holds none.

    RunError if that run was asked for something else, or `folder` holds something else.
    """
    path = folder / "config.json"
    try:
        found = records.read(path, _Record, RunError)
    except FileNotFoundError:
        if (folder / "model.safetensors").exists():
            raise RunError(
                f"{folder} holds a model without the config.json of a run of `bit {command}`. Choose another folder with --out."
            ) from None
        return None
    except RunError as error:
        raise RunError(f"{error} Choose another folder with --out.") from error
    if found.command != command:
        raise RunError(f"{folder} holds the result of `bit {found.command}`. Choose another folder with --out.")
    _same(folder, found.asked, config)
    try:
        plan = records.convert({**found.resolved, "recipe": found.recipe}, kind, str(path), RunError)
    except RunError as error:
        raise RunError(f"{error} Choose another folder with --out; perhaps an earlier version wrote it.") from error
    return Begun(plan=plan, data=found.data, threads=found.environment.threads, files=found.files)


_NO_EFFECT = (
    "out",
    "workers",
    "cache",
    "log",
    "checkpoint_every",
    "keep_checkpoints",
    "name",
    "upstream",
    "class_names",
    "max_bad_images",
)
"""What a resumed run may be asked differently: it changes neither the training nor what is measured."""


def _same(folder: Path, before: Mapping[str, Any], config: Config) -> None:
    """RunError if what was asked `before` is not what `config` asks now."""
    now = json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]
    fields = fields_of(type(config))
    # What an earlier version did not ask was as it is now by default.
    defaults = {one.name: one.default for one in fields if one.default is not dataclasses.MISSING}
    before = {**json.loads(json.dumps(defaults)), **before}
    changes = [
        f"{one.flag} was {before.get(one.name)!r}, is now {now[one.name]!r}"
        for one in fields
        if one.name not in _NO_EFFECT and not _equal(one.name, before.get(one.name), now[one.name])
    ]
    if changes:
        raise RunError(
            f"{folder} holds another run ({'; '.join(changes)}). Choose another folder with --out, or remove it."
        )


def _equal(name: str, one: Any, other: Any) -> bool:
    if isinstance(other, list):
        one = [one] if isinstance(one, str) else one  # as earlier versions wrote the one set of `bit pretrain`
        if name == "data" and isinstance(one, list) and len(one) == len(other):
            return all(_equal(name, *pair) for pair in zip(one, other, strict=True))
        return one == other
    if name in ("data", "model") and isinstance(one, str) and isinstance(other, str):
        # photos, photos/ and its absolute path are one folder.
        return os.path.normpath(one) == os.path.normpath(other) or (
            os.path.exists(one) and os.path.realpath(one) == os.path.realpath(other)
        )
    return one == other


def environment(device: torch.device | str) -> dict[str, Any]:
    """Versions and hardware, for the record."""
    device = torch.device(device)
    return {
        "bigtransfer": bigtransfer.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {usable_cores()} cores",
        "threads": torch.get_num_threads(),
        "argv": sys.argv,
    }


def same_threads(threads: int | None) -> None:
    """Compute with as many CPU threads as the run began with: sums over threads are rounded otherwise, and a resume is to repeat the
    uninterrupted run bit for bit even where fewer cores are free by then. None: not known."""
    if threads is not None and threads >= 1 and threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def run_folder(out: str | None, data: str, model: str, ending: str = "") -> Path:
    """Where a run lives unless --out says otherwise: runs/DATA-MODEL, or runs/DATA where no model is named, and the ending."""
    if out is not None:
        return Path(out)
    name = Path(data.rstrip("/")).name or Path(data or ".").resolve().name or "data"
    stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
    named = Path(model).stem if Path(model).suffix else Path(model).name
    return Path("runs") / f"{stem}{'-' if named else ''}{named}{ending}"
