"""What training does to images at random, as pure functions of (seed, step), and how uint8 becomes the network's input.

Nothing here keeps state: a resumed run, another number of workers, or a cache in memory all see the same images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bigtransfer.data import images

# Streams of random numbers that must not share draws.
_ORDER, _AUGMENT = 1, 2


class Order:
    """Which images make up each batch: the set in a fresh random order each epoch, epochs laid end to end.

    A batch may straddle two epochs, and a set smaller than a batch repeats its images evenly within it.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self.num_examples, self.batch_size, self.seed = num_examples, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            self._epochs[epoch] = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(self.num_examples)
        return self._epochs[epoch]

    def indices(self, step: int) -> np.ndarray:
        """Indices of the images of batch `step`, int64 (batch_size,)."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = np.divmod(position, self.num_examples)
        return np.concatenate([self._epoch(epoch)[offsets[epochs == epoch]] for epoch in np.unique(epochs)])


class Augmentation(Protocol):
    """A random transformation of images of one set, split so that its fixed part can be cached."""

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The fixed part, uint8 (h, w, c) -> uint8 (h', w', c)."""
        ...

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random numbers for `count` images, float64 (count, k)."""
        ...

    def apply(self, prepared: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The random part of one image, uint8 (h', w', c) -> uint8 (size, size, c)."""
        ...


def draws(augmentation: Augmentation, seed: int, step: int, count: int) -> np.ndarray:
    """The random numbers of batch `step`."""
    return augmentation.draw(np.random.default_rng((seed, _AUGMENT, step)), count)


@dataclass(frozen=True, kw_only=True)
class SquareCrop:
    """The HyperRule's: resize both sides to `resize`, crop `crop` x `crop` at random, flip left-right half of the time."""

    resize: int
    crop: int
    random_crop: bool = True
    """False (labels that depend on the position): resize straight to `crop`, as evaluation does."""
    flip: bool = True
    interpolation: images.Interpolation = "bilinear"
    antialias: bool = True

    def prepare(self, image: np.ndarray) -> np.ndarray:
        side = self.resize if self.random_crop else self.crop
        return images.resize(image, side, side, self.interpolation, self.antialias)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 3))

    def apply(self, prepared: np.ndarray, draws: np.ndarray) -> np.ndarray:
        room = prepared.shape[0] - self.crop
        top, left = (int(draw * (room + 1)) for draw in draws[:2])
        image = prepared[top : top + self.crop, left : left + self.crop]
        return image[:, ::-1] if self.flip and draws[2] < 0.5 else image


@dataclass(frozen=True, kw_only=True)
class InceptionCrop:
    """Upstream training's: a random part of the image (by area and aspect ratio), resized to `size` x `size`, flipped half of the time."""

    size: int
    min_area: float = 0.05
    """Smallest part of the image's area (Inception: 0.05; torchvision's default: 0.08)."""
    max_ratio: float = 4 / 3
    """Largest aspect ratio of the part, either way."""
    flip: bool = True
    interpolation: images.Interpolation = "bilinear"
    antialias: bool = True

    _ATTEMPTS = 10

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 3 + 2 * self._ATTEMPTS))

    def apply(self, prepared: np.ndarray, draws: np.ndarray) -> np.ndarray:
        height, width = prepared.shape[:2]
        for area_draw, ratio_draw in draws[3:].reshape(-1, 2):
            area = height * width * (self.min_area + (1 - self.min_area) * area_draw)
            ratio = self.max_ratio ** (2 * ratio_draw - 1)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                break
        else:  # nothing fitted: the largest centred part of an allowed ratio
            w, h = min(width, round(height * self.max_ratio)), min(height, round(width * self.max_ratio))
        top, left = int(draws[0] * (height - h + 1)), int(draws[1] * (width - w + 1))
        image = images.resize(
            prepared[top : top + h, left : left + w], self.size, self.size, self.interpolation, self.antialias
        )
        return image[:, ::-1] if self.flip and draws[2] < 0.5 else image


def normalize(batch: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (n, c, h, w) in 0..255 -> `dtype` in [-1, 1], channels_last: (x - 127.5) / 127.5 as in the released code."""
    scaled = (batch.to(torch.float32) - 127.5) / 127.5
    return scaled.to(dtype=dtype, memory_format=torch.channels_last)
