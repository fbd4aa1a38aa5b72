"""Where objects are: a detector ready to be used, beside `predictor` for what images show as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bigtransfer import weights
from bigtransfer.backends import Precision
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.data import images as image_ops
from bigtransfer.data.boxes import BoxSet
from bigtransfer.detector import Detector
from bigtransfer.errors import BitError, ImageError, TrainingError, WeightsError
from bigtransfer.evals.detection import DEFAULT_THRESHOLD, Objects
from bigtransfer.feed.augment import normalize
from bigtransfer.predictor import in_batches, pixels_of
from bigtransfer.train.loop import compute_dtype

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

    def __init__(self, detector: Detector, *, device: str | None = None, precision: Precision = "auto") -> None:
        self.card = detector.card
        self.device = choose_device(device)
        self.dtype = compute_dtype(precision, self.device)
        self._detector = detector.folded(self.dtype).to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.class_names = self.card.class_names or tuple(map(str, range(self.card.num_classes)))
        self.thresholds = np.full(self.card.num_classes, DEFAULT_THRESHOLD)
        if self.card.thresholds is not None:
            self.thresholds[:] = self.card.thresholds
        self.batch_size = max(1, min(64, _BATCH_PIXELS // self.card.input.size**2))

    @classmethod
    def load(
        cls, model: str | os.PathLike[str], *, device: str | None = None, precision: Precision = "auto"
    ) -> ObjectFinder:
        """`model`: a detector's model file or run folder. Raises WeightsError."""
        return cls(weights.load_detector(model), device=device, precision=precision)

    def find(self, images: Any, *, batch_size: int | None = None) -> list[Found]:
        """What is on each image, in order. images: in any form that `Predictor.predict` takes (arrays as uint8)."""
        return list(self.stream(images, batch_size=batch_size))

    def stream(self, images: Any, *, batch_size: int | None = None) -> Iterator[Found]:
        """`find` for any number of images: yields as it goes, and prepares the next ones meanwhile."""
        for batch in in_batches(images, self.prepare, batch_size or self.batch_size):
            yield from self._found(batch)

    def prepare(self, image: Any, name: str = "image") -> tuple[image_ops.Pixels, tuple[int, int]]:
        """One image as the network sees it, uint8 (size, size, 3), and its own height and width, px. ImageError if it cannot be read."""
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
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        side = self.card.input.size
        extents = [image_ops.fitted(*size, side) for size in sizes]
        try:
            with torch.inference_mode():
                outputs = self._detector(normalize(batch.to(self.device), self.dtype))
                if not (outputs.logits.isfinite().all() and outputs.offsets.isfinite().all()):
                    raise WeightsError(
                        f"The answers of {self.card.name} are not finite numbers: its weights are damaged, or its training diverged."
                    )
                found = outputs.boxes(extents)
        except torch.OutOfMemoryError as error:
            if len(pixels) > 1:
                half = len(pixels) // 2
                del error
                return self.answer(pixels[:half], sizes[:half]) + self.answer(pixels[half:], sizes[half:])
            raise TrainingError(f"Not enough memory on {self.device} for a single image of {side} px.") from error
        objects = []
        for one, size, extent in zip(found, sizes, extents, strict=True):
            scale = np.array([size[1] / extent[1], size[0] / extent[0]] * 2, dtype=np.float64)
            boxes = (one["boxes"].cpu().numpy().astype(np.float64) * scale).astype(np.float32)
            # What was found in the grey beside the image is cut down to nothing at its edge.
            real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            objects.append(Objects(boxes[real], one["scores"].cpu().numpy()[real], one["labels"].cpu().numpy()[real]))
        return objects

    def _found(self, batch: list[tuple[str, Future[tuple[image_ops.Pixels, tuple[int, int]]]]]) -> Iterator[Found]:
        ready, errors = [], {}
        for i, (_, future) in enumerate(batch):
            try:
                ready.append(future.result())
            except ImageError as error:
                errors[i] = error.reason
        answers = iter(zip(self.answer([one for one, _ in ready], [size for _, size in ready]), ready, strict=True))
        for i, (name, _) in enumerate(batch):
            if i in errors:
                yield Found(name, self.class_names, Objects.none(), self.thresholds, error=errors[i])
            else:
                objects, (_, size) = next(answers)
                yield Found(name, self.class_names, objects, self.thresholds, size)

    def of_set(self, boxes: BoxSet, *, batch_size: int | None = None) -> list[Objects]:
        """What is on each image of a set. ImageError if one cannot be read: a row must not go missing."""
        rows = []
        for found in self.stream(boxes.images, batch_size=batch_size):
            if found.error is not None:
                raise ImageError(found.name, found.error)
            rows.append(found.objects)
        return rows
