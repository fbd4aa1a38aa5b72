"""Which backend is soonest on this machine: what `bit benchmark --remember` has measured, kept in the cache folder, and no guess."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from bigtransfer import machine, outputs, records, settings
from bigtransfer.catalog import ModelCard
from bigtransfer.errors import ConfigError, RunError


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one backend makes on this machine's CPU, of pixels in memory."""

    backend: Literal["torch", "onnxruntime", "openvino"]
    precision: Literal["fp32", "bf16"]
    batch: records.Natural
    """Images computed at a time."""
    images_per_second: records.NotNegative


@dataclass(frozen=True, kw_only=True)
class _Record:
    format: Literal["bigtransfer speed"]
    version: Literal[1]
    figures: list[Figure]


def remember(card: ModelCard, figures: Sequence[Figure]) -> Path:
    """Keep them for all models of the form of `card`, in the place of earlier ones of the same backend, precision and batch; the file."""
    file, earlier = _file(card), []
    with contextlib.suppress(FileNotFoundError, RunError):  # a damaged file is replaced
        earlier = records.read(file, _Record, RunError).figures
    kept = {(one.backend, one.precision, one.batch): one for one in (*earlier, *figures)}
    record = _Record(format="bigtransfer speed", version=1, figures=list(kept.values()))
    outputs.write_json(file, {"model": card.name, "measured_with": _circumstances(), **dataclasses.asdict(record)})
    return file


def fastest(card: ModelCard, *, precision: str = "auto", batch: int | None = None, exported: bool = False) -> Figure:
    """The soonest of what was measured for models of that form on this machine with these versions and threads.

    precision: "auto" takes any. batch: images computed at a time; of those measured the nearest by its ratio counts; None takes the most.
    exported: without torch. ConfigError where nothing was measured that would do.
    """
    file = _file(card)
    try:
        found = records.read(file, _Record, RunError).figures
    except RunError as error:
        raise RunError(f"{error} bit benchmark MODEL --remember measures anew, and replaces it.") from error
    except FileNotFoundError:
        raise ConfigError(
            f"Which backend is fastest for {card.name} was not measured on this machine with these versions and this number of threads. "
            "Measure it: bit benchmark MODEL --remember"
        ) from None
    fitting = [
        figure
        for figure in found
        if precision in ("auto", figure.precision) and not (exported and figure.backend == "torch")
    ]
    if not fitting:
        raise ConfigError(
            f"Nothing was measured for {card.name} that fits here (precision {precision}). bit benchmark MODEL --remember measures "
            "all that is installed, or name a --backend."
        )
    measured = {figure.batch for figure in fitting}
    nearest = max(measured) if batch is None else min(sorted(measured), key=lambda one: abs(math.log(one / batch)))
    return max((figure for figure in fitting if figure.batch == nearest), key=lambda figure: figure.images_per_second)


def _file(card: ModelCard) -> Path:
    """Named by all that decides the time; a home folder may be shared by several machines."""
    form = [dataclasses.asdict(card.architecture), card.input.size, card.num_classes]
    key = json.dumps([form, _circumstances()], sort_keys=True)
    return settings.cache_folder() / "speed" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _circumstances() -> dict[str, str | int | None]:
    packages = ("bigtransfer", "torch", "onnxruntime", "openvino")
    return {
        "processor": machine.processor(),
        "threads": machine.threads(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
