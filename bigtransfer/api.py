"""The Python side of the commands: the functions behind `bigtransfer.create_model`, `load_model`, `finetune` and `evaluate`."""

from __future__ import annotations

import os

from bigtransfer import weights
from bigtransfer.catalog import ModelCard
from bigtransfer.model import ResNetV2


def create_model(
    name: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    pretrained: bool = True,
    in_chans: int | None = None,
) -> ResNetV2:
    """A network to build on: a torch module from float images `(n, in_chans, h, w)` in [-1, 1] to logits `(n, num_classes)`.

    name: one of `list_models()`, a model file, a run folder or, with pretrained=False, an architecture such as "r50x1".
    num_classes: None keeps the published head; another number than the published one gives a new head, zero-initialised as
    BiT does it; 0 leaves the head out: the result is the pooled features. pretrained=False: random weights, no download.
    in_chans: None keeps the published 3; another number adapts the first convolution.

    Raises UnknownModel, DownloadError, WeightsError.
    """
    network, _ = weights.load(name, num_classes=num_classes, in_chans=in_chans, pretrained=pretrained)
    return network


def load_model(name_or_file: str | os.PathLike[str]) -> tuple[ResNetV2, ModelCard]:
    """A network exactly as it was saved or published, and its card: class names, input size, where it comes from.

    name_or_file: one of `list_models()`, a model file of any published form, or a run folder. For predictions use
    `Predictor`, which prepares images as the card says. Raises UnknownModel, DownloadError, WeightsError.
    """
    return weights.load(name_or_file)
