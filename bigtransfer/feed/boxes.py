"""Batches of images with boxes: whatever happens to an image happens to its boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bigtransfer.data import images
from bigtransfer.data.boxes import BoxSet
from bigtransfer.feed.augment import Augmentation, Crops
from bigtransfer.feed.loader import TrainLoader
from bigtransfer.records import Pixels

LEAST_SIDE = 1.0
"""Px of the network's input: what is left of a box must be as wide and as high, ..."""
LEAST_SEEN = 0.25
"""... and this share of it, or the object is not to be found there."""


@dataclass(frozen=True, kw_only=True)
class ScaleJitter(Augmentation):
    """Detection's: the image is resized, its shape kept, so that its longer side is `size` times a random factor; of what is larger than
    `size` x `size` a random part is seen, below and right of what is smaller it is grey; flipped left-right half of the time.

    Source: the code that the paper names, whose range is an option there (docs/decisions/detection.md). A crop is the square window of
    the image that becomes the network's input, px of the image; it may reach beyond the image's right and lower edge.
    """

    size: Pixels
    smallest: float = 0.8
    largest: float = 1.2
    """The factor is drawn evenly between these; both 1: no jitter."""
    flip: bool = True
    interpolation: images.Interpolation = "bilinear"
    antialias: bool = True

    @property
    def side(self) -> int:
        return self.size

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 4))

    def crops(self, sizes: np.ndarray, draws: np.ndarray) -> Crops:
        factor = self.smallest + (self.largest - self.smallest) * draws[:, 0]
        # At least a pixel, at most as small as one: what is left of a strange factor and a tiny image.
        side = np.maximum(1, np.rint(sizes.max(axis=1) / factor)).astype(np.int64)
        room = np.maximum(0, sizes - side[:, None])
        corners = (draws[:, 1:3] * (room + 1)).astype(np.int64)
        return Crops(np.hstack([corners, side[:, None], side[:, None]]), self.flip & (draws[:, 3] < 0.5))

    def cut(self, prepared: np.ndarray, box: np.ndarray, mirrored: bool) -> np.ndarray:
        top, left, side = box[:3].tolist()
        part = prepared[top : top + side, left : left + side]
        rows, columns = seen(prepared.shape[:2], box, self.size)
        image = images.resize(part, rows, columns, self.interpolation, self.antialias)
        return images.padded(image[:, ::-1] if mirrored else image, self.size)

    def moved(self, boxes: np.ndarray, size: tuple[int, int], box: np.ndarray, mirrored: bool) -> np.ndarray:
        """Where the boxes of an image of that height and width are in its crop, float64 (k, 4), cut at its edges; without width where too
        little is left of one."""
        top, left, side = box[:3].tolist()
        rows, columns = seen(size, box, self.size)
        down, across = rows / (min(size[0], top + side) - top), columns / (min(size[1], left + side) - left)
        where = (boxes.astype(np.float64) - [left, top, left, top]) * [across, down, across, down]
        whole = (where[:, 2] - where[:, 0]) * (where[:, 3] - where[:, 1])
        cut = np.clip(where, 0, [columns, rows, columns, rows])
        width, height = cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1]
        gone = (width < LEAST_SIDE) | (height < LEAST_SIDE) | (width * height < LEAST_SEEN * whole)
        if mirrored:
            cut = np.stack([columns - cut[:, 2], cut[:, 1], columns - cut[:, 0], cut[:, 3]], axis=1)
        cut[gone, 2] = cut[gone, 0]
        return cut


def seen(size: tuple[int, ...], box: np.ndarray, side: int) -> tuple[int, int]:
    """Height and width, px of a network's input of `side` px, of the part of an image that a window (`ScaleJitter`) shows."""
    top, left, window = box[:3].tolist()
    height, width = min(size[0], top + window) - top, min(size[1], left + window) - left
    return max(1, round(height * side / window)), max(1, round(width * side / window))


class BoxLoader(TrainLoader):
    """A `TrainLoader` whose labels are float32 `(n, k, 5)`: of each object that is to be learnt its class, left, top, right and bottom in
    px of the network's input; class -1 where an image has fewer than the batch's k. Crowds are left out."""

    augmentation: ScaleJitter

    def __init__(self, boxes: BoxSet, augmentation: ScaleJitter, **options: Any) -> None:
        super().__init__(boxes.images, augmentation, **options)
        self._boxes = boxes

    def _labels(self, step: int, indices: np.ndarray) -> np.ndarray:
        _, _, rows = self._plan(step)
        sizes = self._boxes.sizes[indices]
        crops = self.augmentation.crops(sizes, rows)
        found = []
        for index, size, box, mirrored in zip(indices.tolist(), sizes.tolist(), *crops, strict=True):
            own = self._boxes.of(index)
            where = self.augmentation.moved(self._boxes.boxes[own], tuple(size), box, bool(mirrored))
            kept = (where[:, 2] > where[:, 0]) & ~self._boxes.crowd[own]
            found.append(np.hstack([self._boxes.labels[own][kept, None], where[kept]]))
        labels = np.full((len(indices), max(1, *map(len, found)), 5), -1, dtype=np.float32)
        for row, own in zip(labels, found, strict=True):
            row[: len(own)] = own
        return labels
