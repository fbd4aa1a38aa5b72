"""What came out: one JSON line for each number, and which lines may stand side by side."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from bigtransfer import outputs, records
from bigtransfer.errors import RunError

DEFAULT_FILE = "results.jsonl"
"""Where results go, and are looked for, if nobody says otherwise."""

Value = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One number, and everything it rests on."""

    format: Literal[1] = 1
    suite: str
    task: str
    benchmark: str
    revision: str
    fingerprint: str
    """Of the images and labels it was measured on: `benchmark.index_digest` of each part, joined."""
    protocol: str
    parameters: dict[str, Any]
    """Of the protocol: everything that would change the number."""
    metric: str
    value: Value
    interval: tuple[Value, Value] | None = None
    images: records.Natural
    note: str = ""
    drawn: list[records.Whole] = []
    """Which images of the training part were learnt from, where not all were: their places when all are put in the order of their names."""
    model: str
    weights: str
    """SHA-256 of the model's tensors."""
    architecture: str
    input: dict[str, Any]
    """What the preparation came to for this model: the fields of `InputSpec`."""
    card_input: dict[str, Any] = {}
    """What the model's card says of its input; empty in files of earlier versions."""
    precision: str
    seed: records.Whole
    seconds: records.NotNegative
    environment: dict[str, Any]
    """Versions, hardware, command."""
    date: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
    """UTC, ISO 8601, to the second: of two such texts the later time is the greater."""

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"interval: {self.interval[0]} to {self.interval[1]} is none")

    @property
    def key(self) -> str:
        """Results are comparable if and only if their keys are equal: same benchmark and edition, same images and labels, same protocol
        in every detail, same metric. Computed, never written."""
        content = [self.benchmark, self.revision, self.fingerprint, self.protocol, self.parameters, self.metric]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read(paths: Iterable[str | os.PathLike[str]]) -> list[Result]:
    """The results in these files, in their order. RunError naming file and line where one is not of the form."""
    found = []
    for path in paths:
        lines = records.lines(path, RunError)
        found += [
            records.decode(line, Result, f"{path}, line {number}", RunError)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    return found


def refuse(path: str | os.PathLike[str]) -> None:
    """RunError if results cannot be added to a file, or what is in it are none: before anything is measured for it."""
    outputs.refuse_unwritable(path)
    if Path(path).exists():
        read([path])


def append(path: str | os.PathLike[str], results: Sequence[Result]) -> None:
    """Add results to a file (made if need be): all of them or none, whatever happens meanwhile, and none of other processes' is lost."""
    path = Path(path)
    with outputs.alone(path):
        before = b"\n".join(records.lines(path, RunError)) if path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        with outputs.atomic_write(path) as new:
            new.write_bytes(before + b"".join(msgspec.json.encode(result) + b"\n" for result in results))
