"""Hostile data sets through `open_dataset` and the reading, sizing and checking of their images, and now and then through
`bit finetune`, `bit evaluate`, `bit shard` and `bit predict`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from bigtransfer import cli, data
from bigtransfer.data import ImageSet, Splits, checks
from bigtransfer.errors import ImageError

from ..cases import Campaign, Case, Door, generators
from ..models import tiny
from . import archives, bases, columns, folders, indexed, text

_FLAGS = {"image_column": "--image-column", "label_column": "--label-column", "label_separator": "--label-separator"}


def prepare(scratch: Path) -> None:
    """What is loaded or compiled at first use, and the set that the index's generators start from."""
    model = tiny(scratch / "models" / "square.safetensors")
    bases.folders(scratch / "good")
    _finetune(scratch, scratch / "good", model)
    indexed._base(scratch)


def _finetune(scratch: Path, path: Any, model: Path, *more: str) -> int:
    """One step, as a user would try a new set."""
    out = str(scratch / "case" / "out-run")
    small = [
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--crop",
        "16",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--precision",
        "fp32",
    ]
    return cli.main(["finetune", str(path), "--model", str(model), "--out", out, *small, *more])


def _look(part: ImageSet) -> None:
    """What every user of a set asks it, of its first images and its last."""
    n = len(part)
    part.class_counts() if part.labels is not None else None
    assert part.runs is None or len(part.runs) >= 1
    for i in sorted({0, 1, 2, n // 2, n - 1} & set(range(n))):
        part.name(i)
        for ask in (part.size, part.read, part.data):
            try:
                ask(i)
            except ImageError as error:
                str(error)


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    path, options = case.path, dict(case.options)
    opened: list[Splits] = []
    yield "open", lambda: opened.append(data.open_dataset(path, **options))
    for splits in opened:
        for name in ("train", "val", "test"):
            if (part := getattr(splits, name)) is not None:
                yield f"look at {name}", lambda part=part: _look(part)
        if len(splits.train) < 1000:
            yield "check", lambda splits=splits: checks.check(splits.train, skip_bad=True)
            yield "native size", lambda splits=splits: data.native_size(splits.train)
    flags = [part for key, value in options.items() if key in _FLAGS for part in (_FLAGS[key], value)]
    model = scratch / "models" / "square.safetensors"
    draw = rng.random()
    if draw < 0.1:
        yield "bit finetune", lambda: _finetune(scratch, path, model, *flags, *rng.choice(((), ("--skip-bad-images",))))
    elif draw < 0.15:
        yield (
            "bit evaluate",
            lambda: cli.main(
                ["evaluate", str(model), str(path), "--device", "cpu", "--out", str(scratch / "case" / "out-eval")]
            ),
        )
    elif draw < 0.25:
        target = str(scratch / "case" / "out-shards")
        yield (
            "bit shard",
            lambda: cli.main(
                [
                    "shard",
                    str(path),
                    target,
                    "--threads",
                    "1",
                    *rng.choice(((), ("--resize", "8"), ("--skip-bad-images",))),
                ]
            ),
        )
    elif draw < 0.3:
        yield "bit predict", lambda: cli.main(["predict", str(model), str(path), "--device", "cpu"])


CAMPAIGN = Campaign(
    "datasets",
    generators(folders.GENERATORS, text.GENERATORS, columns.GENERATORS, archives.GENERATORS, indexed.GENERATORS),
    doors,
    prepare,
    frozenset(("archive.bombs",)),
)
