"""What detectors find, and how it is read from what a RetinaNet computes, in NumPy: for who computes without torch.

Source: RetinaNet (arXiv 1708.02002) as torchvision has it, with which `anchors` and `chosen` are compared in the tests. Boxes are left,
top, right, bottom, px.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigtransfer import catalog

STRIDES = (8, 16, 32, 64, 128)
"""Of the levels P3 to P7."""
SHAPES = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""
SCORE_THRESHOLD, NMS_IOU, MOST_BOXES, CANDIDATES = 0.05, 0.5, 100, 1000
"""Boxes below this score are none; of two that overlap more, of one class, the better one stays; so many are left of an image at most,
chosen among so many of each level."""
DEFAULT_THRESHOLD = 0.5
"""Score from which on an object is given, where no images were left to choose better ones by."""

_MOST_GROWTH = math.log(1000 / 16)
"""Of the logarithm of a side over its anchor's."""


@dataclass(frozen=True, eq=False)
class Objects:
    """What a detector found on one image, the best first."""

    boxes: np.ndarray
    """float32 (k, 4)."""
    scores: np.ndarray
    """float32 (k,), 0 to 1."""
    labels: np.ndarray
    """int64 (k,)."""

    @classmethod
    def none(cls) -> Objects:
        return cls(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))

    def above(self, thresholds: np.ndarray) -> Objects:
        """Those whose score reaches the threshold of their class. thresholds: (classes,)."""
        return self._at(self.scores >= thresholds[self.labels])

    def scaled(self, size: tuple[int, int], extent: tuple[int, int]) -> Objects:
        """Those on an image of `size`, height and width, that a network saw as `extent`, in px of the image."""
        scale = np.array([size[1] / extent[1], size[0] / extent[0]] * 2, dtype=np.float64)
        boxes = (self.boxes.astype(np.float64) * scale).astype(np.float32)
        # What was found in the grey is cut down to nothing at its edge.
        real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Objects(boxes, self.scores, self.labels)._at(real)

    def _at(self, places: np.ndarray) -> Objects:
        return Objects(self.boxes[places], self.scores[places], self.labels[places])


def places(size: int) -> list[int]:
    """Sides of the five levels' maps of an input of `size` px, a multiple of 32."""
    found = [size // stride for stride in STRIDES[:3]]
    for _ in STRIDES[3:]:
        found.append(-(-found[-1] // 2))
    return found


def anchors(spec: catalog.Detector, size: int) -> list[np.ndarray]:
    """Of each level float32 (places * ANCHORS, 4), px of an input of `size` px."""
    shapes = np.sqrt(np.array(SHAPES, np.float32))
    found = []
    for stride, side in zip(STRIDES, places(size), strict=True):
        sides = np.array([spec.anchor_scale * stride * 2 ** (i / 3) for i in range(3)], np.float32)
        widths, heights = ((1 / shapes)[:, None] * sides).ravel(), (shapes[:, None] * sides).ravel()
        own = np.round(np.stack([-widths, -heights, widths, heights], axis=1) / 2)
        steps = np.arange(side, dtype=np.float32) * np.float32(size // side)
        down, across = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
        found.append((np.stack([across, down] * 2, axis=1)[:, None] + own).reshape(-1, 4))
    return found


def chosen(
    logits: np.ndarray, offsets: np.ndarray, levels: Sequence[np.ndarray], extents: Sequence[tuple[int, int]]
) -> list[Objects]:
    """The objects on each image. logits: float32 (n, anchors, classes); offsets: float32 (n, anchors, 4); levels: of `anchors`; extents:
    height and width of the part of the input that each image covers, at which boxes are cut."""
    starts = np.cumsum([0, *map(len, levels)])
    return [
        _best(
            [
                _candidates(own[first:last], moves[first:last], level, extent)
                for level, first, last in zip(levels, starts, starts[1:], strict=False)
            ]
        )
        for own, moves, extent in zip(logits, offsets, extents, strict=True)
    ]


def _candidates(logits: np.ndarray, offsets: np.ndarray, level: np.ndarray, extent: tuple[int, int]) -> Objects:
    """Of one level, the best first."""
    scores = np.exp(-np.logaddexp(np.float32(0), -logits.ravel()))
    kept = np.flatnonzero(scores > SCORE_THRESHOLD)
    kept = kept[np.argsort(-scores[kept], kind="stable")[:CANDIDATES]]
    owner, labels = np.divmod(kept, logits.shape[1])
    base, moves = level[owner], offsets[owner]
    sides = base[:, 2:] - base[:, :2]
    middles = base[:, :2] + np.float32(0.5) * sides + moves[:, :2] * sides
    half = np.float32(0.5) * sides * np.exp(np.minimum(moves[:, 2:], np.float32(_MOST_GROWTH)))
    boxes = np.concatenate([middles - half, middles + half], axis=1)
    limit = np.array([extent[1], extent[0]] * 2, np.float32)
    return Objects(np.clip(boxes, 0, limit), scores[kept], labels.astype(np.int64))


def _best(levels: Sequence[Objects]) -> Objects:
    """Those of all levels without what overlaps a better one of its class."""
    boxes, scores, labels = (
        np.concatenate([getattr(one, name) for one in levels]) for name in ("boxes", "scores", "labels")
    )
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    waiting, kept = np.argsort(-scores, kind="stable"), []
    while len(waiting) and len(kept) < MOST_BOXES:
        first, waiting = waiting[0], waiting[1:]
        kept.append(first)
        shared = np.minimum(boxes[waiting, 2:], boxes[first, 2:]) - np.maximum(boxes[waiting, :2], boxes[first, :2])
        both = shared.clip(0).prod(axis=1)
        covered = both > NMS_IOU * (areas[waiting] + areas[first] - both)
        waiting = waiting[~(covered & (labels[waiting] == labels[first]))]
    return Objects(boxes, scores, labels)._at(np.array(kept, dtype=np.int64))
