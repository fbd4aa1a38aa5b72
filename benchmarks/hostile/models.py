"""Models for the campaigns: the smallest network that our architecture allows, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from bigtransfer import weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.model import ResNetV2

ARCHITECTURE = Architecture(units=(1, 1, 1, 1))
CLASSES = ("ant", "bee", "cat")


def card(mode: Literal["square", "aspect"] = "square", size: int = 16) -> ModelCard:
    spec = InputSpec(size=size, mode=mode, crop_pct=1.0 if mode == "square" else 0.875)
    return ModelCard(
        name="tiny",
        architecture=ARCHITECTURE,
        num_classes=len(CLASSES),
        input=spec,
        class_names=CLASSES,
        upstream="noise",
        licence="CC0-1.0",
        source="a campaign",
        recipe={"steps": 10, "batch_size": 4},
        metrics={"test_top1": 0.5},
    )


def network() -> ResNetV2:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNetV2(ARCHITECTURE.units, 1, len(CLASSES))


def tiny(path: Path, *, mode: Literal["square", "aspect"] = "square", size: int = 16) -> Path:
    """The model file at `path`, made if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = network()
        made.card = card(mode, size)
        weights.save(path, made)
    return path
