"""Small networks for the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bigtransfer import weights
from bigtransfer.catalog import InputSpec
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
