"""Networks computed by torch: on a CPU by this package's own operations, on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bigtransfer.backends import Backend, DetectorBackend, Precision, not_finite
from bigtransfer.catalog import ModelCard
from bigtransfer.errors import ConfigError, TrainingError
from bigtransfer.feed.augment import normalize
from bigtransfer.model import Network, fold
from bigtransfer.objects import Objects
from bigtransfer.ops.memory import keep_freed_memory
from bigtransfer.train.loop import compute_dtype

if TYPE_CHECKING:  # it loads torchvision's networks, which takes seconds
    from bigtransfer.detector import Detector, Outputs


class _Placed:
    """Where torch computes, and in which number format, of a classifier or a detector."""

    def __init__(self, card: ModelCard, device: str | None, precision: Precision) -> None:
        """device: None takes the fastest one present."""
        self.card = card
        self._device = choose_device(device)
        if self._device.type == "cpu":
            keep_freed_memory()
        self.device = str(self._device)
        self._dtype = compute_dtype(precision, self._device)
        self.precision = "bf16" if self._dtype == torch.bfloat16 else "fp32"


class Torch(_Placed, Backend):
    """The network with its kernels standardized once."""

    name = "torch"

    def __init__(self, network: Network, device: str | None, precision: Precision) -> None:
        super().__init__(network.card, device, precision)
        self.network = fold(network, self._dtype).to(self._device).to(memory_format=torch.channels_last)

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pooled, logits = self._forward(torch.from_numpy(images))
        return pooled.numpy(), logits.numpy()

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 `(n, channels, size, size)` -> pooled features and logits, float32 on the CPU. Where a GPU's memory does not
        suffice the batch is computed in halves, down to single images."""
        try:
            with torch.inference_mode():
                pooled = self.network.features(normalize(images.to(self._device, non_blocking=True), self._dtype))
                logits = self.network.head(pooled)
            # Cloned outside: tensors made in inference mode could not be used with autograd.
            return pooled.float().cpu().clone(), logits.float().cpu().clone()
        except torch.OutOfMemoryError:
            pass  # outside the handler the traceback no longer keeps the batch's memory
        if len(images) == 1:
            raise TrainingError(
                f"Not enough memory on {self._device} for a single image of {images.shape[-1]} px. Use --device cpu."
            )
        halves = [self._forward(half) for half in images.tensor_split(2)]
        return torch.cat([pooled for pooled, _ in halves]), torch.cat([logits for _, logits in halves])


class TorchDetector(_Placed, DetectorBackend):
    """A detector with its network's kernels standardized once."""

    def __init__(self, detector: Detector, device: str | None, precision: Precision) -> None:
        super().__init__(detector.card, device, precision)
        self._detector = detector.folded(self._dtype).to(self._device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def run(self, images: np.ndarray, extents: Sequence[tuple[int, int]]) -> list[Objects]:
        try:
            with torch.inference_mode():
                outputs = self.outputs(images)
                if not (outputs.logits.isfinite().all() and outputs.offsets.isfinite().all()):
                    raise not_finite(self.card)
                found = outputs.boxes(extents)
        except torch.OutOfMemoryError:
            pass  # outside the handler the traceback no longer keeps the batch's memory
        else:
            return [Objects(*(one[name].cpu().numpy() for name in ("boxes", "scores", "labels"))) for one in found]
        if len(images) == 1:
            raise TrainingError(f"Not enough memory on {self._device} for a single image of {images.shape[-1]} px.")
        half = len(images) // 2
        return self.run(images[:half], extents[:half]) + self.run(images[half:], extents[half:])

    def outputs(self, images: np.ndarray) -> Outputs:
        """What it computes of uint8 `(n, 3, size, size)`, on its device."""
        return self._detector(normalize(torch.from_numpy(images).to(self._device), self._dtype))


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
