"""Whether an exported network answers as the network does: compared on images, before the file counts as written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bigtransfer import runs
from bigtransfer.backends import Precision, onnx_file, probable
from bigtransfer.backends.by_onnxruntime import OnnxDetector, OnnxRuntime
from bigtransfer.backends.by_torch import Torch, TorchDetector
from bigtransfer.backends.exported import ExportedDetector
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.data import ImageSet, open_dataset, open_images
from bigtransfer.data import images as image_ops
from bigtransfer.data.boxes import open_boxes
from bigtransfer.data.sources import readable
from bigtransfer.errors import BitError, DataError, RunError, WeightsError
from bigtransfer.evals import detection
from bigtransfer.model import Network
from bigtransfer.objects import DEFAULT_THRESHOLD, Objects

if TYPE_CHECKING:  # it loads torchvision's networks, which takes seconds
    from bigtransfer.detector import Detector

TOLERANCES = {"float32": 1e-4, "float16": 1e-2}
"""By the form of the stored weights how much probabilities may differ, and logits and features relative to the largest of them. What is
found is about 1e-6 (sums in another order) and 1e-3."""
_COUNT = 64
_AT_A_TIME = 16


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest differences over all images."""

    count: int
    logits: float
    """Relative to the largest logit."""
    probabilities: float
    features: float
    """Relative to the largest feature."""
    same: int
    """Images whose most probable class is the same."""
    doubtful: int
    """Images whose two most probable classes are no further apart than the tolerance: either may come first."""
    allowed: float

    def __str__(self) -> str:
        classes = (
            f"the same class for {self.same} of {self.count}"
            if self.same < self.count
            else f"the same class for all {self.count}"
        )
        return (
            f"largest differences: logits {self.logits:.1e} of the largest, probabilities {self.probabilities:.1e}, features "
            f"{self.features:.1e} of the largest; {classes} (allowed: {self.allowed:g})"
        )

    def check(self) -> None:
        """WeightsError where they are more than rounding explains."""
        worst = max(self.logits, self.probabilities, self.features)
        if not worst <= self.allowed or self.same + self.doubtful < self.count:  # NaN is not
            raise WeightsError(
                f"The exported network does not answer as the model does: they differ by {worst:.1e}, and {self.allowed:g} is allowed. "
                "Nothing was written. Please report this model."
            )


def compare(content: bytes, network: Network, pixels: np.ndarray, allowed: float = TOLERANCES["float32"]) -> Parity:
    """An ONNX file's answers beside those of torch on a CPU in float32. pixels: uint8 `(n, channels, size, size)`. allowed: see
    `TOLERANCES`."""
    several = network.card.multi_label
    plain = Torch(network, "cpu", "fp32")
    exported = OnnxRuntime(onnx_file.parse(content, network.card.name), network.card.name, "cpu", "fp32")
    worst: dict[str, float] = {}
    largest: dict[str, float] = {}
    same = doubtful = 0
    for first in range(0, len(pixels), _AT_A_TIME):
        some = pixels[first : first + _AT_A_TIME]
        features, logits = plain.run(some)
        wanted = {"features": features}
        if network.card.num_classes:
            wanted |= {"logits": logits, "probabilities": probable(logits, several=several)}
        found = exported.outputs(some, [*wanted])
        for name, value in wanted.items():
            worst[name] = max(worst.get(name, 0.0), float(np.abs(found[name] - value).max()))
            largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max()))
        if network.card.num_classes:
            agree = wanted["logits"].argmax(1) == found["logits"].argmax(1)
            ordered = np.sort(wanted["probabilities"], axis=1)
            close = ordered[:, -1] - ordered[:, -2:].min(axis=1) <= allowed
            same, doubtful = same + int(agree.sum()), doubtful + int((~agree & close).sum())
        else:
            same += len(some)
    return Parity(
        count=len(pixels),
        logits=worst.get("logits", 0.0) / (largest.get("logits") or 1.0),
        probabilities=worst.get("probabilities", 0.0),
        features=worst["features"] / (largest["features"] or 1.0),
        same=same,
        doubtful=doubtful,
        allowed=allowed,
    )


@dataclass(frozen=True, kw_only=True)
class BoxParity:
    """The same of a detector."""

    count: int
    logits: float
    """Relative to the largest logit."""
    offsets: float
    """Relative to the largest offset."""
    boxes: int
    """That either gives, at the model's thresholds."""
    same: int
    """Of these those that the other gives too: of the same class, with an overlap of 0.99. Nothing is demanded of it: which of two boxes
    that overlap by a half stays may hang on the last digit."""
    allowed: float

    def __str__(self) -> str:
        return (
            f"largest differences: logits {self.logits:.1e} of the largest, offsets {self.offsets:.1e} of the largest; {self.same:,} of "
            f"{self.boxes:,} boxes the same (allowed: {self.allowed:g})"
        )

    def check(self) -> None:
        """WeightsError where they are more than rounding explains."""
        for worst in (self.logits, self.offsets):
            if not worst <= self.allowed:  # NaN is not
                raise WeightsError(
                    f"The exported detector does not answer as the model does: they differ by {worst:.1e}, and {self.allowed:g} is "
                    "allowed. Nothing was written. Please report this model."
                )


def compare_boxes(
    content: bytes,
    detector: Detector,
    pixels: np.ndarray,
    allowed: float = TOLERANCES["float32"],
    *,
    by: type[ExportedDetector] = OnnxDetector,
    precision: Precision = "fp32",
) -> BoxParity:
    """An exported detector's answers beside those of torch on a CPU in float32. pixels: uint8 `(n, 3, size, size)`. by, precision: what
    computes the file, and how."""
    card = detector.card
    plain = TorchDetector(detector, "cpu", "fp32")
    exported = by(onnx_file.parse(content, card.name), card.name, "cpu", precision)
    worst, largest = np.zeros(2), np.zeros(2)
    boxes = same = 0
    thresholds = np.array(card.thresholds or [DEFAULT_THRESHOLD] * card.num_classes)
    for first in range(0, len(pixels), _AT_A_TIME):
        some = pixels[first : first + _AT_A_TIME]
        outputs = plain.outputs(some)
        for i, (theirs, found) in enumerate(
            zip((outputs.logits, outputs.offsets), exported.computed(some), strict=True)
        ):
            wanted = theirs.detach().numpy()
            worst[i] = np.fmax(worst[i], np.abs(found - wanted).max()) if np.isfinite(found).all() else np.nan
            largest[i] = max(largest[i], np.abs(wanted).max())
        extents = [(card.input.size, card.input.size)] * len(some)
        for one, other in zip(plain.run(some, extents), exported.run(some, extents), strict=True):
            one, other = one.above(thresholds), other.above(thresholds)
            boxes += len(one.labels) + len(other.labels)
            same += _found_too(one, other) + _found_too(other, one)
    return BoxParity(
        count=len(pixels),
        logits=float(worst[0] / (largest[0] or 1.0)),
        offsets=float(worst[1] / (largest[1] or 1.0)),
        boxes=boxes,
        same=same,
        allowed=allowed,
    )


def _found_too(one: Objects, other: Objects) -> int:
    """How many of the one are among the other."""
    overlap, _ = detection.overlaps(one.boxes, other.boxes)
    overlap = overlap * (one.labels[:, None] == other.labels[None])
    return int((overlap.max(axis=1, initial=0.0) >= 0.99).sum())


def images(asked: str | None, source: str, card: ModelCard) -> tuple[np.ndarray, str]:
    """Up to 64 images, uint8 `(n, channels, size, size)`, and in words what they are: those of `asked`, else of the data that the run in
    the folder `source` was given, else made-up ones. Raises DataError where those asked for cannot be had."""
    spec, channels = card.input, card.architecture.in_chans
    if asked is not None:
        return _read(_opened(asked, card), spec, asked), asked
    data = _of_run(source)
    if data is not None:
        try:
            return _read(_opened(data, card), spec, data), data
        except BitError:  # moved since
            pass
    return _made_up(channels, spec.size), "made-up pictures (--images names real ones)"


def _opened(data: str, card: ModelCard) -> ImageSet:
    if card.detector is not None:
        try:
            parts = open_boxes(data, skip_bad_boxes=True, skip_bad_images=True).parts()
            return parts.get("test", parts.get("val", parts["train"])).images
        except DataError:
            return open_images([data])  # without boxes
    try:
        splits = open_dataset(data, multi_label=card.multi_label, channels=card.architecture.in_chans, min_classes=1)
    except DataError:
        return open_images([data])  # without labels
    return next(part for part in (splits.test, splits.val, splits.train) if part is not None)


def _read(images: ImageSet, spec: InputSpec, name: str) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(images) - 1, _COUNT).round().astype(int)).tolist()
    found = [pixels for _, pixels in readable(images, spec, rows)]
    if not found:
        raise DataError(f"None of the images of {name} can be read.")
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2))


def _made_up(channels: int, size: int) -> np.ndarray:
    """Soft patches of colour, coarse to fine: nothing to recognise, but sums of the usual sizes."""
    rng = np.random.default_rng(0)
    pictures = []
    for grain in (2, 3, 5, 8, 13, 21, 34, 55) * 2:
        patches = rng.integers(0, 256, (grain, grain, channels), dtype=np.uint8)
        pictures.append(
            image_ops.resize(patches, size, size) if channels in (1, 3) else np.resize(patches, (size, size, channels))
        )
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def _of_run(source: str) -> str | None:
    try:
        return runs.origin(runs.folder_of(source)).data
    except (FileNotFoundError, RunError):
        return None
