"""What a network knows of how images of one class differ (`Network.scatter`), out of the images that the bundled one learnt from.

    python recipes/bit-t/scatter.py IMAGES SMALLER NETWORK OUT.safetensors [--sizes 64 128]

IMAGES is what `images.py` unpacked, SMALLER/finer what `further.py` did, NETWORK what `bit finetune --model` takes. Of each set 30 classes
at most, of each class 16 images, at each of the sizes (px): features of all blocks, standardized within the set, less the mean of their
class. The file holds the first 128 directions of their scatter, longer the more images differ so. Ten minutes of one core.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from images import excluded
from torch import Tensor

from bigtransfer import data, weights
from bigtransfer.data import ImageSet
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import View
from bigtransfer.jobs.finetune import closed
from bigtransfer.model import Network, Readout
from bigtransfer.weights import formats

CLASSES, IMAGES, LEAST = 30, 16, 12
DIRECTIONS = 128
SETS = ("tiny", "miniplaces", "miniimagenet", "food101", "monkeys", "grocery", "rooms", "seedlings", "aerial")
FINER = ("sports", "butterflies", "music", "cars")  # how the names of its classes begin


def drawn(images: ImageSet, start: str, copies: set[str], rng: np.random.Generator) -> list[np.ndarray]:
    """Of some classes whose names begin so, the places of some images."""
    assert images.labels is not None
    known = np.array([images.name(i) not in copies for i in range(len(images))])
    found = []
    for label in rng.permutation([i for i, name in enumerate(images.class_names) if name.startswith(start)]):
        places = rng.permutation(np.flatnonzero((images.labels == label) & known))[:IMAGES]
        if len(places) >= LEAST and len(found) < CLASSES:
            found.append(places)
    return found


def differences(network: Network, images: ImageSet, classes: list[np.ndarray], size: int) -> Tensor:
    """Of each image, by how much it differs from the mean of its class, (n, d), the variance of each feature in all of them 1."""
    view = View(size=size, readout=Readout(blocks=tuple(range(len(network.architecture.stages)))))
    seen, _ = closed.features(
        network,
        images.subset(np.concatenate(classes)),
        view,
        spec=network.card.input,
        device=torch.device("cpu"),
        dtype=torch.float32,
        batch_size=32,
    )
    mean, scale = linear.standardization(seen)
    seen = ((seen - mean) * scale).float()
    parts = seen.split([len(places) for places in classes])
    return torch.cat([(part - part.mean(0)) * math.sqrt(len(part) / (len(part) - 1)) for part in parts])


def main(images: Path, smaller: Path, network: str, out: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    near = excluded()
    rng, model, found = np.random.default_rng(0), weights.load(network), []
    for base, folder, start in [(images, name, "") for name in SETS] + [(smaller, "finer", name) for name in FINER]:
        some = data.open_dataset(base / folder / "train").train
        classes = drawn(some, start, {name.removeprefix(f"{folder}/train/") for name in near}, rng)
        found += [differences(model, some, classes, size) for size in sizes]
        print(f"{folder} {start}: {sum(map(len, classes))} images of {len(classes)} classes", flush=True)
    rows = torch.cat(found)
    _, lengths, directions = torch.svd_lowrank(rows, q=DIRECTIONS + 40, niter=4)
    scatter = (directions * lengths).T[:DIRECTIONS] / math.sqrt(len(rows))
    share = float(scatter.square().sum() / rows.square().sum() * len(rows))
    formats.write_safetensors(out, {"scatter": scatter.half().contiguous()}, {})
    print(f"{out}: {len(rows)} rows, {share:.1%} of their scatter in {DIRECTIONS} directions")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("smaller", type=Path)
    parser.add_argument("network")
    parser.add_argument("out")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    main(**vars(parser.parse_args()))
