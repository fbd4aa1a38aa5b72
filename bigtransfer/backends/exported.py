"""What computes exported networks has in common, whatever the library: `Session`, and a classifier and a detector on it."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from bigtransfer.backends import Backend, DetectorBackend, Name, Precision, not_finite, probable
from bigtransfer.backends.onnx_file import OnnxFile
from bigtransfer.catalog import ANCHORS, ModelCard
from bigtransfer.errors import ConfigError, WeightsError
from bigtransfer.objects import Objects, anchors, chosen

_ROUNDING = 0.1
"""By which a probability may differ from that of its logits: where they are rounded to bf16, those of some dozens are off by as many
hundredths."""


class Session(ABC):
    """A file that a library computes, of a classifier or a detector. Thread-safe."""

    library: ClassVar[Name]
    """What errors call it."""
    card: ModelCard
    device: str
    precision: str
    _where: str
    """What errors call the file."""
    _file: OnnxFile

    @abstractmethod
    def __init__(self, file: OnnxFile, where: str, device: str | None, precision: Precision) -> None:
        """where: what errors call the file. device: None is the CPU."""

    def outputs(self, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The graph's results of those names on uint8 `(n, channels, size, size)`."""
        if self._file.takes == "float32":
            images = scaled(images)
        try:
            return self._computed(np.ascontiguousarray(images), names)
        except Exception as error:
            raise WeightsError(f"{self._where}: {self.library} cannot compute it ({short(error)}).") from error

    @abstractmethod
    def _computed(self, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The same of what the graph takes."""


class ExportedClassifier(Session, Backend):
    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = {}
        for name, result in self.outputs(images, self._file.results).items():
            width = self.card.architecture.num_features if name == "features" else self.card.num_classes
            found[name] = np.ascontiguousarray(result, np.float32)
            if found[name].shape != (len(images), width):
                raise WeightsError(
                    f"{self._where} gives {found[name].shape} for {len(images)} images, which is not what its card says."
                )
        if not self.card.num_classes:
            return found["features"], found["features"]
        # A file whose results were mixed up, or whose card says otherwise, would answer like any other.
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs(probable(found["logits"], several=self.card.multi_label) - found["probabilities"])
        if (apart > _ROUNDING).any():  # NaN is not, and is told by who asked
            raise WeightsError(
                f"{self._where} is damaged, or not what its card says: its probabilities are not those of its logits. Export it again."
            )
        return found["features"], found["logits"]


class ExportedDetector(Session, DetectorBackend):
    """The objects are read from what the graph gives in NumPy (`objects`)."""

    def run(self, images: np.ndarray, extents: Sequence[tuple[int, int]]) -> list[Objects]:
        logits, offsets = self.computed(images)
        if not (np.isfinite(logits).all() and np.isfinite(offsets).all()):
            raise not_finite(self.card)
        return chosen(logits, offsets, self._anchors, extents)

    @functools.cached_property
    def _anchors(self) -> list[np.ndarray]:
        assert self.card.detector is not None
        return anchors(self.card.detector, self.card.input.size)

    def computed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, anchors, classes) and (n, anchors, 4), as `detector.Outputs` has them."""
        found = self.outputs(images, self._file.results)
        count = sum(map(len, self._anchors)) // ANCHORS
        made = []
        for name, width in (("logits", self.card.num_classes), ("offsets", 4)):
            if found[name].shape != (len(images), ANCHORS * width, count):
                raise WeightsError(
                    f"{self._where} gives {found[name].shape} for {len(images)} images, which is not what its card says."
                )
            own = found[name].reshape(len(images), ANCHORS, width, count)
            made.append(own.transpose(0, 3, 1, 2).reshape(len(images), -1, width))
        return made[0], made[1]


@contextlib.contextmanager
def opening(where: str) -> Iterator[None]:
    """Within, a file is given to a library: whatever it does not like about it is a WeightsError."""
    try:
        yield
    except (ConfigError, MemoryError):
        raise
    except Exception as error:  # of as many kinds as the library has parts
        raise WeightsError(f"{where} is damaged, or not what its card says ({short(error)}).") from error


def refuse_precision(precision: Precision, where: str) -> None:
    """ConfigError for another precision than that of the int8 file `where`."""
    if precision != "auto":
        raise ConfigError(
            f"{where} computes in int8, for which it was calibrated; leave --precision out, or export it in float32."
        )


def scaled(images: np.ndarray) -> np.ndarray:
    """uint8 0 to 255 -> float32 in [-1, 1]: `feed.augment.normalize` without torch."""
    return (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)


def short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
