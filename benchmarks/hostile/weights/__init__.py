"""Hostile weight files and the JSON beside them, through `weights.describe`, `weights.load`, `bit info`, and where a model comes out,
`bit predict` and `bit convert`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from bigtransfer import cli, weights

from ..cases import Campaign, Case, Door, generators
from ..images.bases import encoded
from ..models import tiny
from . import cards, npz, pickles, places, tensors


def prepare(scratch: Path) -> None:
    """What is loaded or compiled at first use."""
    (scratch / "picture.png").write_bytes(encoded("PNG", "RGB", 33, 20))
    model = tiny(scratch / "models" / "square.safetensors")
    cli.main(["info", str(model)])
    cli.main(["predict", str(model), str(scratch / "picture.png"), "--device", "cpu"])


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    path = case.path
    yield "describe", lambda: weights.describe(path)
    yield "bit info", lambda: cli.main(["info", str(path)])
    loaded = []
    yield "load", lambda: loaded.append(weights.load(path, offline=True))
    if loaded and (case.options.get("used") or rng.random() < 0.1):
        kind, image = rng.choice(("table", "csv", "jsonl")), str(scratch / "picture.png")
        yield "bit predict", lambda: cli.main(["predict", str(path), image, "--device", "cpu", "--format", kind])
    if loaded and rng.random() < 0.2:
        form = rng.choice(("bit", "npz", "torch", "timm", "transformers"))
        target = str(scratch / "case" / rng.choice(("out", "out.safetensors")))
        yield "bit convert", lambda: cli.main(["convert", str(path), target, "--to", form])


CAMPAIGN = Campaign(
    "weights",
    generators(tensors.GENERATORS, cards.GENERATORS, npz.GENERATORS, pickles.GENERATORS, places.GENERATORS),
    doors,
    prepare,
    frozenset(("npz.spoiled",)),
)
