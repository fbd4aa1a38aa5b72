"""Small networks for the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigtransfer import catalog, detector, model, weights
from bigtransfer.catalog import Architecture, InputSpec
from bigtransfer.detector import Detector
from bigtransfer.model import ResNetV2


def tiny(
    names: Sequence[str], *, size: int = 32, seed: int = 0, std: float = 0.05, channels: int = 3, **card: Any
) -> ResNetV2:
    """A network of one block a stage with those classes, whose answers depend on the image; std: of its classifier's weights."""
    torch.manual_seed(seed)
    network = ResNetV2((1, 1, 1, 1), 1, len(names), in_chans=channels)
    torch.nn.init.normal_(network.head.weight, std=std)  # pyright: ignore[reportArgumentType]
    about = {"name": "tiny", "input": InputSpec(size=size), "class_names": tuple(names), **card}
    network.card = dataclasses.replace(network.card, **about)
    return network


def saved(path: Path, names: Sequence[str], **how: Any) -> Path:
    """The same in a file; how: as of `tiny`."""
    weights.save(path, tiny(names, **how))
    return path


def tiny_detector(classes: int = 2, *, likely: bool = True, seed: int = 0, size: int = 64) -> Detector:
    """A detector with random weights; likely: scores are not near 0, so that there are boxes."""
    torch.manual_seed(seed)
    network = model.build(Architecture(units=(1, 1, 1, 1)), 0)
    made = detector.on(network, catalog.Detector(channels=64, anchor_scale=2), classes)
    if likely:
        nn.init.normal_(made.head.classification_head.cls_logits.weight, std=0.1)
        nn.init.constant_(made.head.classification_head.cls_logits.bias, -1)
        nn.init.normal_(made.head.regression_head.bbox_reg.weight, std=0.05)
    made.card = dataclasses.replace(
        made.card, name="tiny", class_names=tuple("abcdefgh"[:classes]), input=InputSpec(size=size, mode="fit")
    )
    return made.eval()
