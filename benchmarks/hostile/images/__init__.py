"""Hostile images, one at a time, through decoding, sizing, prediction and `bit predict`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from bigtransfer import Predictor, cli
from bigtransfer.data import images

from ..cases import Campaign, Case, Door, generators
from ..models import tiny
from . import containers, extents, jpeg, png, tiff, wrapped

_predictors: dict[str, Any] = {}


def prepare(scratch: Path) -> None:
    """Two models, one that squeezes pictures to a square and one that crops them; what is loaded or compiled at first use."""
    for mode in ("square", "aspect"):
        path = tiny(scratch / "models" / f"{mode}.safetensors", mode=mode)
        _predictors[mode] = Predictor.load(path, device="cpu", precision="fp32")
        extents.valid(Random(0), scratch)
        _predictors[mode].predict(str(next(scratch.glob("image*"))))
    images.formats()


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    path = Path(case.path)
    yield "size", lambda: images.size(path, path.name)
    started = time.monotonic()
    yield "decode", lambda: images.decode(path, path.name)
    slow = time.monotonic() - started > 1  # a costly one is not decoded in every way
    for mode in ("aspect", "square")[: 1 if slow else 2]:
        yield f"predict, {mode}", lambda mode=mode: _predictors[mode].predict(path)
    if not slow and not path.is_symlink() and path.is_file() and path.stat().st_size < 1 << 24:
        data = path.read_bytes()
        yield "decode grey, at least 32 px", lambda: images.decode(data, path.name, 1, at_least=(32, 32))
    if (rng.random() < 0.05 and not slow) or not path.is_file():
        model = scratch / "models" / "aspect.safetensors"
        kind = rng.choice(("table", "csv", "jsonl"))
        yield "bit predict", lambda: cli.main(["predict", str(model), str(path), "--device", "cpu", "--format", kind])


CAMPAIGN = Campaign(
    "images",
    generators(
        jpeg.GENERATORS, png.GENERATORS, tiff.GENERATORS, containers.GENERATORS, extents.GENERATORS, wrapped.GENERATORS
    ),
    doors,
    prepare,
    frozenset(("any.large", "any.packed", "png.texts", "tiff.claims")),
)
