"""The bundled network out of a part of its training: the classes of Tiny-ImageNet alone, and a card that says what it is.

    python recipes/bit-t/bundle.py PART.safetensors bigtransfer/pretrained/bit-t-r26x1.safetensors IMAGES/tiny/val

The last are the labelled images by which the card's numbers are measured, all 10,000 of them. The heads of the other sets and of the
teacher, 6 MB, are left out: what the network is for is being fine-tuned.
"""

from __future__ import annotations

import dataclasses
import sys

import torch

import bigtransfer
from bigtransfer import weights
from bigtransfer.catalog import ModelCard
from bigtransfer.evals.metrics import Classification
from bigtransfer.model import ResNetV2

SET = "tiny"
UPSTREAM = (
    "Tiny-ImageNet-200, MiniPlaces, mini-ImageNet, Imagenette, cats and dogs, and 166,000 photographs of 49 sets "
    "(436,000 images, 64 and 96 px); taught by EfficientNet-Lite0 (ImageNet-1k)"
)


def main(part: str, bundled: str, validation: str) -> None:
    network = weights.load(part)
    if network.card.vocabularies is None:  # a bundled one whose norms `episodes.py` trained
        network.card = dataclasses.replace(network.card, metrics={})
    else:
        assert isinstance(network, ResNetV2)
        keep_head(network)
    weights.export(bundled, network, "bit", dtype="float16")
    measured = bigtransfer.evaluate(bundled, validation)
    assert isinstance(measured, Classification)
    network.card = dataclasses.replace(network.card, metrics=measured.named("val"))
    weights.export(bundled, network, "bit", dtype="float16")
    assert weights.load(bundled).card == network.card
    print(f"{bundled}: {network.card.num_classes} classes, {network.card.input.size} px, {network.card.metrics}")


def keep_head(network: ResNetV2) -> None:
    """Leave of the heads that of Tiny-ImageNet, with a card of its own."""
    card = network.card
    assert card.class_names is not None and card.vocabularies is not None
    sizes = {one.name: one.classes for one in card.vocabularies}
    first = sum(list(sizes.values())[: list(sizes).index(SET)])
    rows = slice(first, first + sizes[SET])
    head = network.get_classifier()
    assert isinstance(head, torch.nn.Linear)
    weight, bias = head.weight.detach()[rows].clone(), head.bias.detach()[rows].clone()
    network.reset_classifier(sizes[SET])
    own = network.get_classifier()
    assert isinstance(own, torch.nn.Linear)
    with torch.no_grad():
        own.weight.copy_(weight)
        own.bias.copy_(bias)
    network.card = ModelCard(
        name="bit-t-r26x1",
        architecture=card.architecture,
        num_classes=sizes[SET],
        class_names=tuple(name.removeprefix(f"{SET}/") for name in card.class_names[rows]),
        input=card.input,
        recipe=card.recipe,
        upstream=UPSTREAM,
        licence="apache-2.0",
        source="recipes/bit-t/README.md",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
