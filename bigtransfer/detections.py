"""Where objects are: a detector ready to be used, beside `predictor` for what images show as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigtransfer import backends
from bigtransfer.backends import Choice, DetectorBackend, Precision
from bigtransfer.data import images as image_ops
from bigtransfer.errors import BitError, ImageError
from bigtransfer.objects import DEFAULT_THRESHOLD, Objects
from bigtransfer.predictor import in_batches, pixels_of

if TYPE_CHECKING:
    from bigtransfer.data.boxes import BoxSet
    from bigtransfer.detector import Detector  # which loads torch

Prepared = tuple[image_ops.Pixels, tuple[int, int]]
"""An image as a detector sees it, uint8 (size, size, 3), and its own height and width, px."""

_BATCH_PIXELS = 2**21
"""Input pixels computed at a time: 8 images of 512 px. The heads' maps take more than a classifier's."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a detector found on one image, or why the image cannot be read."""

    name: str
    """The image's path or given name."""
    class_names: tuple[str, ...]
    objects: Objects
    """All that it has a score for; `given` are those that reach a threshold."""
    thresholds: np.ndarray
    """The detector's own, float64 (classes,)."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the upright image, px."""
    error: str | None = None
    """Why the image cannot be read; None if it can."""

    def given(self, threshold: float | None = None) -> Objects:
        """The objects whose score reaches `threshold`, or that of their class."""
        return self.objects.above(self.thresholds if threshold is None else np.full_like(self.thresholds, threshold))

    def record(self, threshold: float | None = None) -> dict[str, Any]:
        """The answer as JSON says it: "image", and "width", "height" and "objects", or "error"."""
        if self.error is not None:
            return {"image": self.name, "error": self.error}
        own = self.given(threshold)
        return {
            "image": self.name,
            "width": self.size[1],
            "height": self.size[0],
            "objects": [
                {
                    "label": self.class_names[label],
                    "score": round(score, 4),
                    "box": [round(side, 2) for side in box],
                }
                for label, score, box in zip(own.labels.tolist(), own.scores.tolist(), own.boxes.tolist(), strict=True)
            ],
        }


class ObjectFinder:
    """A detector with its input prepared as its card says.

    device: None takes the fastest one present. precision: as of `predictor.Predictor`.
    """

    def __init__(
        self, detector: Detector | DetectorBackend, *, device: str | None = None, precision: Precision = "auto"
    ) -> None:
        """detector: or what computes it already; it has device and precision of its own."""
        if not isinstance(detector, DetectorBackend):
            from bigtransfer.backends.by_torch import TorchDetector

            detector = TorchDetector(detector, device, precision)
        self._backend = detector
        self.card = detector.card
        self.device = detector.device
        self.precision = detector.precision
        self.class_names = self.card.class_names or tuple(map(str, range(self.card.num_classes)))
        self.thresholds = np.full(self.card.num_classes, DEFAULT_THRESHOLD)
        if self.card.thresholds is not None:
            self.thresholds[:] = self.card.thresholds
        self.batch_size = max(1, min(64, _BATCH_PIXELS // self.card.input.size**2))

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | None = None,
        precision: Precision = "auto",
        backend: Choice = "auto",
    ) -> ObjectFinder:
        """`model`: a detector's model file or run folder, or what `bit convert` exported of one. backend: what computes it, as of
        `predictor.Predictor`, but for "fastest". Raises WeightsError and ConfigError."""
        return cls(backends.opened_detector(model, backend, device, precision))

    def find(self, images: Any, *, batch_size: int | None = None) -> list[Found]:
        """What is on each image, in order. images: in any form that `Predictor.predict` takes (arrays as uint8)."""
        return list(self.stream(images, batch_size=batch_size))

    def stream(self, images: Any, *, batch_size: int | None = None) -> Iterator[Found]:
        """`find` for any number of images: yields as it goes, and prepares the next ones meanwhile."""
        for batch in in_batches(images, self.prepare, batch_size or self.batch_size):
            yield from self._found(batch)

    def prepare(self, image: Any, name: str = "image") -> Prepared:
        """One image, ready for `answer` and `found`. ImageError if it cannot be read."""
        try:
            with image_ops.memory_held():
                own = pixels_of(image, name, 3, None)
                return image_ops.prepare(own, self.card.input), (own.shape[0], own.shape[1])
        except BitError:
            raise
        except Exception as error:  # whatever it is, it must not cost the other images their answers
            raise ImageError(name, f"it cannot be prepared ({type(error).__name__}: {error})") from error

    def answer(self, pixels: Sequence[image_ops.Pixels], sizes: Sequence[tuple[int, int]]) -> list[Objects]:
        """The objects on images that `prepare` made, boxes in px of the images themselves. WeightsError if they are not finite numbers."""
        if not len(pixels):
            return []
        extents = [image_ops.fitted(*size, self.card.input.size) for size in sizes]
        found = self._backend.run(np.stack(pixels).transpose(0, 3, 1, 2), extents)
        return [one.scaled(size, extent) for one, size, extent in zip(found, sizes, extents, strict=True)]

    def found(self, prepared: Sequence[Prepared], names: Sequence[str]) -> list[Found]:
        """The same with the images' names, as `find` gives it."""
        sizes = [size for _, size in prepared]
        objects = self.answer([pixels for pixels, _ in prepared], sizes)
        return [
            Found(name, self.class_names, own, self.thresholds, size)
            for name, own, size in zip(names, objects, sizes, strict=True)
        ]

    def unanswered(self, name: str, why: str) -> Found:
        """Of an image that cannot be read."""
        return Found(name, self.class_names, Objects.none(), self.thresholds, error=why)

    def _found(self, batch: list[tuple[str, Future[Prepared]]]) -> Iterator[Found]:
        ready, errors = [], {}
        for i, (name, future) in enumerate(batch):
            try:
                ready.append((name, future.result()))
            except ImageError as error:
                errors[i] = error.reason
        answers = iter(self.found([prepared for _, prepared in ready], [name for name, _ in ready]))
        for i, (name, _) in enumerate(batch):
            yield self.unanswered(name, errors[i]) if i in errors else next(answers)

    def of_set(self, boxes: BoxSet, *, batch_size: int | None = None) -> list[Objects]:
        """What is on each image of a set. ImageError if one cannot be read: a row must not go missing."""
        rows = []
        for found in self.stream(boxes.images, batch_size=batch_size):
            if found.error is not None:
                raise ImageError(found.name, found.error)
            rows.append(found.objects)
        return rows
