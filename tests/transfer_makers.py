"""Miniature copies of CIFAR, Pets and Flowers-102 in their true layouts, with pixels that tell the class, and a bench that reads them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigtransfer import catalog
from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.data import ImageSet, cifar
from bigtransfer.suites.protocol import Bench, Preparation


def cifar_arrays(classes: int, each: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 32, 32, 3), whose pixel at row 1, column 2 is (class, 7, 9); labels; in a mixed order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), each))
    pixels = rng.integers(0, 255, (len(labels), 32, 32, 3), np.uint8)
    pixels[:, 1, 2] = np.stack([labels, np.full_like(labels, 7), np.full_like(labels, 9)], 1)
    return pixels, labels


def _split(edition: cifar.Edition, each: Mapping[str, int], form: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(file, rows of 3,072 bytes, labels)."""
    classes = 10 if edition is cifar.CIFAR10 else 100
    for number, (part, names) in enumerate(getattr(edition, form).items()):
        pixels, labels = cifar_arrays(classes, each[part], number)
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
        yield from zip(names, np.array_split(rows, len(names)), np.array_split(labels, len(names)), strict=True)


def _names(edition: cifar.Edition) -> tuple[str, ...]:
    names = catalog.class_names("cifar10" if edition is cifar.CIFAR10 else "cifar100")
    assert names is not None
    return names


def make_cifar_binary(folder: Path, edition: cifar.Edition, each: Mapping[str, int]) -> None:
    folder.mkdir(parents=True)
    for file, rows, labels in _split(edition, each, "binary"):
        coarse = np.full((len(labels), edition.label_bytes - 1), 3)
        (folder / file).write_bytes(np.hstack([coarse, labels[:, None], rows]).astype(np.uint8).tobytes())
    (folder / edition.binary_names).write_text("\n".join(_names(edition)) + "\n\n")


def make_cifar_pickled(folder: Path, edition: cifar.Edition, each: Mapping[str, int], protocol: int = 2) -> None:
    folder.mkdir(parents=True)
    for file, rows, labels in _split(edition, each, "pickled"):
        content = {
            b"data": rows,
            edition.labels.encode(): labels.tolist(),
            b"batch_label": b"one",
            b"filenames": [b"a.png"],
        }
        (folder / file).write_bytes(pickle.dumps(content, protocol=protocol))
    file, key = edition.pickled_names
    (folder / file).write_bytes(pickle.dumps({key.encode(): [n.encode() for n in _names(edition)]}, protocol=protocol))


def make_pets(folder: Path, each: Mapping[str, int]) -> None:
    """Names as the set has them: cats with a capital; the pixels hold the label."""
    names = catalog.class_names("oxford_iiit_pet")
    assert names is not None
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    number = 0
    for part, file in (("train", "trainval.txt"), ("test", "test.txt")):
        lines = []
        for label, name in enumerate(names):
            stem = name.replace(" ", "_")
            stem = stem if label % 3 == 0 else stem.lower()
            for _ in range(each[part]):
                number += 1
                Image.new("RGB", (6, 5), (label, 0, 0)).save(folder / "images" / f"{stem}_{number}.jpg", format="PNG")
                lines.append(f"{stem}_{number} {label + 1} 1 {label + 1}")
        (folder / "annotations" / file).write_text("\n".join(lines) + "\n")


def make_flowers(folder: Path, each: Mapping[str, int]) -> None:
    """Images numbered across the parts, as in the set."""
    from scipy.io import savemat

    (folder / "jpg").mkdir(parents=True)
    classes = 102
    counts = {"trnid": each["train"], "valid": each["val"], "tstid": each["test"]}
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1, classes + 1), sum(counts.values())))
    numbers: dict[str, list[int]] = {key: [] for key in counts}
    for label in range(1, classes + 1):
        own = (np.flatnonzero(labels == label) + 1).tolist()
        for key, count in counts.items():
            numbers[key] += [own.pop() for _ in range(count)]
    for number, label in enumerate(labels, 1):
        Image.new("RGB", (4, 4), (int(label) - 1, 0, 0)).save(folder / "jpg" / f"image_{number:05d}.jpg", format="PNG")
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    savemat(folder / "setid.mat", {key: np.asarray(value)[None] for key, value in numbers.items()})


class PixelBench(Bench):
    """A model that sees the red of one pixel: its features are the one-hot code with some noise; fine-tuned, it knows what it was shown."""

    def __init__(
        self, parts: Mapping[str, ImageSet], at: tuple[int, int] = (0, 0), noise: float = 0.0, seed: int = 0
    ) -> None:
        self.parts, self.at, self.noise, self.seed = parts, at, noise, seed
        self.device = torch.device("cpu")
        architecture = Architecture(units=(1, 1, 1, 1), width=1)
        self.card = ModelCard(name="pixel", architecture=architecture, num_classes=2, input=InputSpec(size=32))
        self.calls: list[Any] = []
        self.known: list[int] | None = None

    def _codes(self, images: ImageSet) -> np.ndarray:
        return np.array([int(images.read(i)[self.at][0]) for i in range(len(images))])

    def features(self, images: ImageSet, preparation: Preparation) -> tuple[Tensor, Tensor]:
        self.calls.append(("features", len(images), preparation))
        codes = self._codes(images)
        noise = np.stack(
            [np.random.default_rng(list(images.name(i).encode())).normal(size=20) for i in range(len(images))]
        )
        features = np.eye(20)[codes] + self.noise * noise
        assert images.labels is not None
        return torch.from_numpy(features).float(), torch.from_numpy(np.asarray(images.labels))

    def logits(self, images: ImageSet, preparation: Preparation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        assert self.known is not None
        assert images.labels is not None
        codes = self._codes(images)
        answers = np.where(np.isin(codes, self.known), codes, 0)
        rows = np.arange(len(images))
        for some in np.array_split(rows, 3):
            yield (
                torch.eye(len(images.class_names))[answers[some]],
                torch.from_numpy(np.asarray(images.labels)[some]),
                torch.from_numpy(some),
            )

    def finetuned(self, train: ImageSet, **settings: Any) -> Bench:
        self.calls.append(("finetuned", sorted(train.name(i) for i in range(len(train))), settings))
        other = PixelBench({}, self.at)
        assert train.labels is not None
        other.known = np.unique(train.labels).tolist()
        return other


def rearranged(images: ImageSet, seed: int = 0) -> ImageSet:
    """The same images in another order."""
    return images.subset(np.random.default_rng(seed).permutation(len(images)))


def names_at(images: ImageSet, places: Sequence[int]) -> list[str]:
    """The images at those places in the order of the names: how results record what was drawn."""
    ordered = sorted(images.name(i) for i in range(len(images)))
    return [ordered[place] for place in places]
