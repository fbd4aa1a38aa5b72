"""The one inference path: `bit predict`, `bit evaluate`, the report and the Python API all go through `Predictor`."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigtransfer import weights
from bigtransfer.data import images as image_ops
from bigtransfer.errors import ConfigError, ImageError, TrainingError
from bigtransfer.evals.multilabel import DEFAULT_THRESHOLD
from bigtransfer.feed.augment import normalize
from bigtransfer.model import ResNetV2, fold
from bigtransfer.train.loop import Precision, compute_dtype

_BATCH_PIXELS = 2**23
"""Input pixels computed at a time by default: 36 images of 480 px."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says about one image, or why the image cannot be read."""

    name: str
    """The image's path or given name; else "image 3" for the fourth."""
    class_names: tuple[str, ...]
    probabilities: np.ndarray | None
    """float32 `(classes,)`, sum 1, but of a multi-label model each by itself; None if the image cannot be read."""
    features: np.ndarray | None = None
    """float32 `(features,)`: the pooled features, if asked for."""
    error: str | None = None
    """Why the image cannot be read; None if it can."""
    thresholds: np.ndarray | None = None
    """Of a multi-label model, float32 `(classes,)`: the probabilities from which on the classes are given; None of others."""

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most probable classes (or all, if fewer) with their probabilities; [] if the image cannot be read."""
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.class_names[i], float(self.probabilities[i])) for i in order]

    @property
    def label(self) -> str | None:
        """The most probable class."""
        return next((label for label, _ in self.top(1)), None)

    @property
    def labels(self) -> list[str]:
        """All classes given: the most probable one; of a multi-label model those that reach their thresholds, the most probable first,
        which may be none."""
        if self.probabilities is None or self.thresholds is None:
            return [label for label, _ in self.top(1)]
        given = np.flatnonzero(self.probabilities >= self.thresholds)
        return [self.class_names[i] for i in given[np.argsort(-self.probabilities[given], kind="stable")]]

    @property
    def probability(self) -> float | None:
        """Its probability."""
        return next((probability for _, probability in self.top(1)), None)

    def __repr__(self) -> str:
        answer = f"error={self.error!r}" if self.error else f"label={self.label!r}, probability={self.probability:.3f}"
        return f"Prediction(name={self.name!r}, {answer})"


class Predictor:
    """A model ready to be used: eval mode, kernels standardized once, the input prepared as the model's card says.

    device: "cpu", "cuda", "cuda:1", "mps"; None takes the fastest one present. precision: "fp32", "bf16", or "auto": bfloat16
    where the hardware multiplies it natively, else float32.
    """

    def __init__(self, model: ResNetV2, *, device: str | None = None, precision: Precision = "auto") -> None:
        self.card = card = model.card
        self.device = choose_device(device)
        self.dtype = compute_dtype(precision, self.device)
        self.class_names = card.class_names or tuple(map(str, range(card.num_classes)))
        """By class number; the numbers themselves if the model knows no names."""
        self.batch_size = max(1, min(256, _BATCH_PIXELS // card.input.size**2))
        """Images computed at a time unless the caller says otherwise."""
        self.thresholds: np.ndarray | None = None
        """Of a multi-label model: see `Prediction.thresholds`."""
        if card.multi_label:
            self.thresholds = np.full(card.num_classes, DEFAULT_THRESHOLD, np.float32)
            if card.thresholds is not None:
                self.thresholds[:] = card.thresholds
        self._model = fold(model, self.dtype).to(self.device).to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls, model: str | os.PathLike[str], *, device: str | None = None, precision: Precision = "auto"
    ) -> Predictor:
        """`model`: whatever `weights.load` takes: a model file, a run folder, a name from `bit models` (downloaded if need be)."""
        return cls(weights.load(model), device=device, precision=precision)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 `(n, channels, size, size)` -> float32 `(n, classes)` on the CPU."""
        return self._forward(images)[1]

    def features(self, images: Any, *, batch_size: int | None = None) -> np.ndarray:
        """Pooled features float32 `(n, features)` of images in any form that `predict` takes. Unlike there, an image that
        cannot be read raises ImageError, for a row must not go missing."""
        rows = []
        for prediction in self.stream(images, features=True, batch_size=batch_size):
            if prediction.error is not None:
                raise ImageError(prediction.name, prediction.error)
            rows.append(prediction.features)
        return np.stack(rows) if rows else np.empty((0, self._model.num_features), np.float32)

    def predict(self, images: Any, *, batch_size: int | None = None) -> list[Prediction]:
        """One prediction per image, in order.

        images: one image or an iterable of them, each a path, the bytes of a file, a Pillow image, a uint8 array `(h, w)` or
        `(h, w, channels)`, a uint8 tensor `(channels, h, w)`, or a function that returns one of these (called from a thread).
        A pair (name, image) names it. One that cannot be read gives a `Prediction` with an `error`; the others go on.
        """
        return list(self.stream(images, batch_size=batch_size))

    def stream(self, images: Any, *, features: bool = False, batch_size: int | None = None) -> Iterator[Prediction]:
        """`predict` for any number of images: yields as it goes, and decodes the next batch while one is computed.

        features: also fill in `Prediction.features`.
        """
        size = batch_size or self.batch_size
        sources = iter(enumerate(_as_iterable(images)))
        with ThreadPoolExecutor(os.cpu_count()) as pool:

            def submit() -> list[tuple[str, Future[np.ndarray]]]:
                chunk = [_named(source, i) for i, source in itertools.islice(sources, size)]
                return [(name, pool.submit(self._prepare, source, name)) for name, source in chunk]

            waiting = deque([submit(), submit()])
            while current := waiting.popleft():
                yield from self._predict_batch(current, features)
                waiting.append(submit())

    def _prepare(self, source: Any, name: str) -> np.ndarray:
        return image_ops.prepare(_pixels(source, name, self.card.architecture.in_chans), self.card.input)

    def _predict_batch(self, batch: list[tuple[str, Future[np.ndarray]]], features: bool) -> Iterator[Prediction]:
        ready: list[np.ndarray] = []
        errors: dict[int, str] = {}
        for i, (_, future) in enumerate(batch):
            try:
                ready.append(future.result())
            except ImageError as error:
                errors[i] = error.reason
        if ready:
            pooled, logits = self._forward(torch.from_numpy(np.stack(ready)).permute(0, 3, 1, 2))
            probable = logits.softmax(1) if self.thresholds is None else logits.sigmoid()
            rows = zip(probable.numpy(), pooled.numpy(), strict=True)
        else:
            rows = iter(())
        for i, (name, _) in enumerate(batch):
            if i in errors:
                yield Prediction(name, self.class_names, None, error=errors[i])
            else:
                probabilities, row = next(rows)
                shown = row if features else None
                yield Prediction(name, self.class_names, probabilities, shown, thresholds=self.thresholds)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 `(n, channels, size, size)` -> pooled features and logits, float32 on the CPU. Where a GPU's memory does not
        suffice the batch is computed in halves, down to single images."""
        try:
            with torch.inference_mode():
                pooled = self._model.features(normalize(images.to(self.device, non_blocking=True), self.dtype))
                logits = self._model.head(pooled)
            # Cloned outside: tensors made in inference mode could not be used with autograd.
            return pooled.float().cpu().clone(), logits.float().cpu().clone()
        except torch.OutOfMemoryError:
            pass  # outside the handler the traceback no longer keeps the batch's memory
        if len(images) == 1:
            raise TrainingError(
                f"Not enough memory on {self.device} for a single image of {images.shape[-1]} px. Use --device cpu."
            )
        halves = [self._forward(half) for half in images.tensor_split(2)]
        return torch.cat([pooled for pooled, _ in halves]), torch.cat([logits for _, logits in halves])


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the fastest one present if None; ConfigError if it is not there."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    with contextlib.suppress(RuntimeError):  # torch: not a device's name
        device = torch.device(name)
        count = {
            "cpu": 1,
            "cuda": torch.cuda.device_count(),
            "mps": int(torch.backends.mps.is_available()),
        }.get(device.type, 0)
        if (device.index or 0) < count:
            return device
        if device.type in ("cuda", "mps"):
            raise ConfigError(
                f"There is no device {name} here: torch sees {count} of that kind. --device cpu always works."
            )
    raise ConfigError(f"{name!r} is no device that is supported; choose cpu, cuda, cuda:N or mps.")


def _as_iterable(images: Any) -> Iterable[Any]:
    """The images one by one, whether one was given or many."""
    if isinstance(images, Tensor):
        return (images,) if images.ndim == 3 else images
    if isinstance(images, np.ndarray):
        return (images,) if images.ndim == 2 or (images.ndim == 3 and images.shape[2] <= 4) else images
    if isinstance(images, (str, os.PathLike, bytes, bytearray, Image.Image)) or callable(images):
        return (images,)
    return images


def _named(source: Any, position: int) -> tuple[str, Any]:
    """The name of an image and the image."""
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], str):
        return source
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source), source
    return getattr(source, "filename", "") or f"image {position}", source


def _pixels(source: Any, name: str, channels: int) -> image_ops.Pixels:
    """uint8 `(h, w, channels)` of an image in any of the forms that `Predictor.predict` takes."""
    if callable(source):
        source = source()
    if isinstance(source, (str, os.PathLike)):
        return image_ops.decode(source, name, channels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return image_ops.decode(bytes(source), name, channels)
    if isinstance(source, Tensor):
        if source.ndim == 3:
            source = source.permute(1, 2, 0)
        source = source.cpu().numpy()
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or 0 in source.shape:
            raise ConfigError(
                f"{name}: expected uint8 pixels, as an array (h, w) or (h, w, channels) or a tensor (channels, h, w), got "
                f"{source.dtype} of shape {source.shape}."
            )
        if source.ndim == 3 and source.shape[2] == channels:
            return np.ascontiguousarray(source)
        if source.ndim == 3 and source.shape[2] == 1:
            source = source[:, :, 0]
        try:
            source = Image.fromarray(source)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}: {source.shape[2]} channels; the model takes {channels}.") from error
    if isinstance(source, Image.Image):
        try:
            return image_ops.from_pillow(source, channels)
        except Exception as error:  # A lazily opened file fails only here, in as many ways as there are decoders.
            raise ImageError(name, f"it is damaged ({error})") from error
    raise ConfigError(
        f"{name}: {type(source).__name__} is no image; give a path, bytes, a Pillow image, an array or a tensor."
    )
