"""Hostile weight files and the JSON beside them, through `weights.describe`, `weights.load`, `bit info`, and where a model comes out,
`bit predict` and `bit convert`; detectors and exported networks through what opens those, `bit predict` and `bit detect predict`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from bigtransfer import backends, cli, libraries, weights

from ..cases import Campaign, Case, Door, generators
from ..images.bases import encoded
from ..models import tiny
from . import cards, detectors, exported, foreign, npz, pickles, places, tensors


def prepare(scratch: Path) -> None:
    """What is loaded or compiled at first use."""
    (scratch / "picture.png").write_bytes(encoded("PNG", "RGB", 33, 20))
    model = tiny(scratch / "models" / "square.safetensors")
    cli.main(["info", str(model)])
    cli.main(["predict", str(model), str(scratch / "picture.png"), "--device", "cpu"])
    libraries.describe("timm", "test_vit")
    for kind, command in (("float32", ["predict"]), ("detector", ["detect", "predict"])):
        file = scratch / "models" / f"{kind}.onnx"
        file.write_bytes(exported.whole(kind))
        cli.main([*command, str(file), str(scratch / "picture.png"), "--device", "cpu"])


def doors(case: Case, rng: Random, scratch: Path) -> Iterator[Door]:
    path, loaded, image = case.path, [], str(scratch / "picture.png")
    describe = backends.describe if case.options.get("exported") else weights.describe
    yield "describe", lambda: describe(path)
    yield "bit info", lambda: cli.main(["info", str(path)])
    if case.options.get("detector"):
        yield "detector", lambda: loaded.append(backends.opened_detector(path, device="cpu"))
        if loaded and case.options.get("used"):
            kind = rng.choice(("table", "csv", "jsonl"))
            words = ["detect", "predict", str(path), image, "--device", "cpu", "--format", kind, "--threshold", "0.06"]
            yield "bit detect predict", lambda: cli.main(words)
        return
    if case.options.get("exported"):
        yield "opened", lambda: loaded.append(backends.opened(path))
        if loaded and case.options.get("used"):
            yield "bit predict", lambda: cli.main(["predict", str(path), image, "--device", "cpu"])
        return
    yield "load", lambda: loaded.append(weights.load(path, offline=True))
    if loaded and (case.options.get("used") or rng.random() < 0.1):
        kind = rng.choice(("table", "csv", "jsonl"))
        yield "bit predict", lambda: cli.main(["predict", str(path), image, "--device", "cpu", "--format", kind])
    if loaded and rng.random() < 0.2:
        form = rng.choice(("bit", "npz", "torch", "timm", "transformers"))
        target = str(scratch / "case" / rng.choice(("out", "out.safetensors")))
        yield "bit convert", lambda: cli.main(["convert", str(path), target, "--to", form])


CAMPAIGN = Campaign(
    "weights",
    generators(
        *(tensors.GENERATORS, cards.GENERATORS, npz.GENERATORS, pickles.GENERATORS, places.GENERATORS),
        *(foreign.GENERATORS, detectors.GENERATORS, exported.GENERATORS),
    ),
    doors,
    prepare,
    frozenset(("npz.spoiled",)),
)
