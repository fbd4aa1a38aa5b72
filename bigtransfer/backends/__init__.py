"""What computes a network: torch, onnxruntime or OpenVINO, behind one door, on which `Predictor` is built. Torch is loaded by need only."""

from __future__ import annotations

import hashlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from bigtransfer import fetch, files, web
from bigtransfer.backends import onnx_file, remembered
from bigtransfer.catalog import EXPORTED, ModelCard
from bigtransfer.errors import BitError, ConfigError, WeightsError
from bigtransfer.objects import Objects

if TYPE_CHECKING:
    from bigtransfer.model import Network

Name = Literal["torch", "onnxruntime", "openvino"]
Choice = Literal["auto", "fastest", "torch", "onnxruntime", "openvino"]
Precision = Literal["auto", "fp32", "bf16"]


class Backend(ABC):
    """A network ready to compute, on one device. Thread-safe."""

    name: ClassVar[Name]
    card: ModelCard
    device: str
    """As torch calls devices."""
    precision: str
    """Of the computation: "fp32" or "bf16", or of a file that was exported so "int8"."""

    @abstractmethod
    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 `(n, channels, size, size)`, n at least 1, strides as they come -> features `(n, features)` and logits `(n, classes)`,
        float32 and contiguous. Without classes the logits are the features."""


class DetectorBackend(ABC):
    """A detector ready to compute, on one device. Thread-safe."""

    card: ModelCard
    device: str
    """As torch calls devices."""
    precision: str
    """Of the computation: "fp32" or "bf16"."""

    @abstractmethod
    def run(self, images: np.ndarray, extents: Sequence[tuple[int, int]]) -> list[Objects]:
        """uint8 `(n, 3, size, size)`, n at least 1, strides as they come -> the objects on each, px of the input, cut at its extent: height
        and width of the part of the input that the image covers. WeightsError if what is computed is not finite."""


def probable(logits: np.ndarray, *, several: bool) -> np.ndarray:
    """float32 `(n, classes)`: softmax, or with `several` the sigmoid of each."""
    if several:
        return np.exp(-np.logaddexp(np.float32(0), -logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)


def not_finite(card: ModelCard) -> WeightsError:
    """The error of a model whose answers are no numbers."""
    return WeightsError(
        f"The answers of {card.name} are not finite numbers: its weights are damaged, or its training diverged."
    )


def opened_detector(
    model: str | os.PathLike[str],
    backend: Choice = "auto",
    device: str | None = None,
    precision: Precision = "auto",
) -> DetectorBackend:
    """`model`: a detector's model file or run folder, or its exported file. backend: as of `opened`, but for "fastest": nothing is
    remembered of detectors. Raises as `opened` and `weights.load_detector`."""
    if backend == "fastest":
        raise ConfigError(
            f"{model} is a detector, of which `bit benchmark` measures nothing; name torch, onnxruntime or openvino as --backend."
        )
    if is_exported(model):
        _not_by_torch(model, backend)
        path = _located(model)
        file = onnx_file.read(path)
        if file.card.detector is None:
            raise WeightsError(
                f"{path} is no detector: it says what is on images as a whole. `bit predict`, `bit evaluate` and `bit serve` take it."
            )
        return _of_detector_file(file, path, backend, device, precision)
    from bigtransfer import weights  # loads torch

    detector = weights.load_detector(model)
    if backend in ("auto", "torch"):
        from bigtransfer.backends.by_torch import TorchDetector

        return TorchDetector(detector, device, precision)
    from bigtransfer.backends import graph

    name = detector.card.name
    file = onnx_file.parse(graph.onnx_detector(detector, input="uint8"), name)
    return _of_detector_file(file, name, backend, device, precision)


def _of_detector_file(
    file: onnx_file.OnnxFile, where: str, backend: Choice, device: str | None, precision: Precision
) -> DetectorBackend:
    if backend == "openvino":
        from bigtransfer.backends.by_openvino import OpenVinoDetector

        return OpenVinoDetector(file, where, device, precision)
    from bigtransfer.backends.by_onnxruntime import OnnxDetector

    return OnnxDetector(file, where, device, precision)


def _not_by_torch(model: str | os.PathLike[str], backend: Choice) -> None:
    """ConfigError where torch is asked to compute an exported network."""
    if backend == "torch":
        raise ConfigError(
            f"{model} is an exported network, which torch does not compute. Give the model file it was made from."
        )


def is_detector(model: str | os.PathLike[str]) -> bool:
    """Whether a file or run folder on this machine holds a detector, as it is or exported."""
    if not is_exported(model):
        from bigtransfer import weights  # loads torch

        return weights.is_detector(model)
    try:
        return not web.is_web(os.fspath(model)) and describe(model).detector is not None
    except BitError:  # whoever loads it says what is wrong
        return False


def opened(
    model: str | os.PathLike[str],
    backend: Choice = "auto",
    device: str | None = None,
    precision: Precision = "auto",
    batch: int | None = None,
) -> Backend:
    """`model`: a file of an exported network, or whatever `weights.load` takes.

    backend "auto" follows the form: onnxruntime for an ONNX file, else torch. Named, onnxruntime and openvino compute model files too: they
    are exported first, in memory. "fastest" is what `bit benchmark --remember` has found soonest on this machine's CPU for `batch` images
    at a time (None: many), and torch on a GPU. Raises ConfigError for a backend that is not installed, cannot compute the file, or has not
    that device or precision, and where nothing is remembered; else as `weights.load`.
    """
    if not is_exported(model):
        from bigtransfer import weights  # loads torch

        return of_network(weights.load(model), backend, device, precision, batch)
    _not_by_torch(model, backend)
    path = _located(model)
    file = onnx_file.read(path)
    if backend == "fastest":
        if file.quantized:
            raise ConfigError(
                f"{model} computes in int8, of which nothing is measured; name onnxruntime or openvino as --backend."
            )
        if device not in (None, "cpu"):
            raise ConfigError("--backend fastest is for the CPU, where several can compute; leave --device out.")
        found = remembered.fastest(file.card, precision=precision, batch=batch, exported=True)
        backend, precision = found.backend, found.precision
    return _of_file(file, path, backend, device, precision)


def of_network(
    network: Network,
    backend: Choice = "auto",
    device: str | None = None,
    precision: Precision = "auto",
    batch: int | None = None,
) -> Backend:
    """The same of a network in memory."""
    if backend == "fastest":
        from bigtransfer.backends.by_torch import choose_device

        if (where := choose_device(device)).type == "cpu":
            found = remembered.fastest(network.card, precision=precision, batch=batch)
            backend, precision, device = found.backend, found.precision, "cpu"
        else:
            backend, device = "torch", str(where)
    if backend in ("auto", "torch"):
        from bigtransfer.backends.by_torch import Torch

        return Torch(network, device, precision)
    from bigtransfer.backends import graph

    name = network.card.name
    return _of_file(onnx_file.parse(graph.onnx_model(network, input="uint8"), name), name, backend, device, precision)


def _of_file(
    file: onnx_file.OnnxFile, where: str, backend: Choice, device: str | None, precision: Precision
) -> Backend:
    file.card.of_classifier(where)
    if backend == "openvino":
        from bigtransfer.backends.by_openvino import OpenVino

        return OpenVino(file, where, device, precision)
    from bigtransfer.backends.by_onnxruntime import OnnxRuntime

    return OnnxRuntime(file, where, device, precision)


def describe(model: str | os.PathLike[str]) -> ModelCard:
    """The card of an exported network. Raises WeightsError."""
    return onnx_file.read(_located(model)).card


def digest(model: str | os.PathLike[str]) -> str:
    """SHA-256 of the file of an exported network."""
    found = hashlib.sha256()
    with files.opened(_located(model)) as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def is_exported(model: str | os.PathLike[str]) -> bool:
    """Whether that is the file of an exported network, by its name."""
    return os.fspath(model).lower().endswith(EXPORTED)


def _located(model: str | os.PathLike[str]) -> str:
    """The file, fetched if need be."""
    text = os.fspath(model)
    if web.is_web(text):
        return os.fspath(fetch.fetch(text))
    return os.path.expanduser(fetch.path_of(text))


def extra(module: str, name: str) -> Any:
    """The module of an optional package; ConfigError, naming the extra that brings it, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"This needs the package {package}, which is not installed here ({error}). Install it: pip install 'bigtransfer[{name}]'."
        ) from error
