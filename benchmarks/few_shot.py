"""Few-shot curves of a model on CIFAR-10 and CIFAR-100 beside those of random weights of the same network, by protocols that a CPU can do.

python -m benchmarks.few_shot random.safetensors bit-t-r26x1     writes the same network with random weights
for model in bit-t-r26x1 random.safetensors; do
  bit evaluate $model --suite few-shot --task 'cifar-10*/linear-probe' --root IMAGES --results few-shot.jsonl
done
bit results few-shot.jsonl --out few-shot.html
"""

from __future__ import annotations

import dataclasses
import sys

import torch

from bigtransfer import weights
from bigtransfer.model import ResNetV2


def main(path: str, name: str) -> None:
    """Write to `path` the network of that name with weights drawn anew (seed 0)."""
    card = weights.load(name).card
    torch.manual_seed(0)
    a = card.architecture
    network = ResNetV2(a.units, a.width, card.num_classes)
    network.card = dataclasses.replace(
        card, name=f"{a.name}-random", metrics={}, recipe=None, upstream="nothing: random weights", source="seed 0"
    )
    weights.save(path, network)


if __name__ == "__main__":
    main(*sys.argv[1:])
