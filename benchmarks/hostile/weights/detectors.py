"""Detectors' files: the card, the pyramid's and the heads' tensors."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

import torch

from bigtransfer import catalog
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.detector import Detector
from bigtransfer.model import build

from .. import jsons
from ..cases import Case
from ..models import ARCHITECTURE, CLASSES
from .tensors import laid_out, write

SIZE = 64


def card() -> ModelCard:
    return ModelCard(
        name="tiny",
        architecture=ARCHITECTURE,
        num_classes=len(CLASSES),
        input=InputSpec(size=SIZE, mode="fit"),
        class_names=CLASSES,
        detector=catalog.Detector(channels=64),
        thresholds=(0.1, 0.2, 0.3),
    )


def made() -> Detector:
    """The smallest one, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = Detector(build(ARCHITECTURE, 0), catalog.Detector(channels=64), len(CLASSES)).eval()
    found.card = card()
    return found


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in made().state_dict().items()}


def cards(rng: Random, folder: Path) -> Case:
    """What the card says of the detector, its input, its classes and thresholds is something else."""
    record: dict[str, Any] = json.loads(card().to_json())
    numbers = (
        0,
        1,
        2,
        4,
        -1,
        31,
        32,
        63,
        65,
        96,
        100,
        2**14,
        2**31,
        10**30,
        0.5,
        1e300,
        float("nan"),
        None,
        True,
        "64",
        [],
        {},
    )
    match rng.randrange(7):
        case 0:
            record["detector"][rng.choice(("channels", "anchor_scale", "x"))] = rng.choice(numbers)
        case 1:
            record["detector"] = rng.choice((None, [], {}, 3, "x", {"channels": 64}, {"anchor_scale": 16.0}))
        case 2:
            record["input"][rng.choice(("size", "mode", "crop_pct"))] = rng.choice(
                (*numbers, "fit", "square", "aspect")
            )
        case 3:
            record["thresholds"] = rng.choice(
                ([0.1], [0.1] * 4, [], [1, 2, 3], [-1, 0, 2], ["a"] * 3, [float("nan")] * 3, 0.5, None)
            )
        case 4:
            record["num_classes"] = rng.choice(numbers)
        case 5:
            record["architecture"][rng.choice(("units", "width", "in_chans", "norm"))] = rng.choice(
                (*numbers, [1, 1], [1] * 4, "bn")
            )
        case _:
            record = jsons.spoiled(rng, record)
    return _saved(rng, folder, record, spoiled=0.05)


def tensors(rng: Random, folder: Path) -> Case:
    """The card is whole; tensors are missing, of other shapes or types, or too many."""
    return _saved(rng, folder, json.loads(card().to_json()), spoiled=1.0)


def _saved(rng: Random, folder: Path, record: Any, spoiled: float) -> Case:
    head, size = laid_out(_shapes(), rng.choice(("F16", "F32", "F32")))
    if rng.random() < spoiled:
        name = rng.choice(list(head))
        entry = head.pop(name)
        shape = entry["shape"]
        match rng.randrange(6):
            case 0:
                head[rng.choice((f"body.{name}", name[1:], "x", ""))] = entry
            case 1:
                head[name] = entry | {"shape": rng.choice((shape[::-1], [1, *shape], [*shape, 1], [-1]))}
            case 2:
                head[name] = entry | {
                    "dtype": rng.choice(("I16" if entry["dtype"] == "F16" else "I32", "BOOL", "F64", "C64", "x"))
                }
            case 3:
                head |= {name: entry, "more": entry}
            case 4:
                head[name] = entry | {"data_offsets": rng.choice(([0, 2], [0, size], [size, 2 * size], [-4, 0]))}
    head["__metadata__"] = {"bigtransfer": json.dumps(record)}
    return Case(write(folder / "model.safetensors", head, size), {"detector": True, "used": rng.random() < 0.2})


GENERATORS = {f"detector.{one.__name__}": one for one in (cards, tensors)}
