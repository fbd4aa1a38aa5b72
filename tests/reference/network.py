"""BiT's ResNet-v2 in float64 NumPy, written from the description alone: the yardstick for every faster form.

Parameters are a dictionary in the authors' `.npz` naming and layout (kernels HWIO). Source: arXiv 1912.11370, and the
facts of the released code listed in each function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from tests.reference import ops
from tests.reference.ops import Array

Params = Mapping[str, Array]


class Network:
    """The network of `params`; `norm` "bn" (batch statistics) and `standardized` False are the paper's ablations."""

    def __init__(self, params: Params, *, norm: Literal["gn", "bn"] = "gn", standardized: bool = True) -> None:
        self.params = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
        self.norm = norm
        self.standardized = standardized

    def _conv(self, x: Array, scope: str, stride: int = 1, padding: int = 0) -> Array:
        kernel = self.params[f"{scope}/standardized_conv2d/kernel"]
        return ops.conv2d(x, ops.standardize(kernel) if self.standardized else kernel, stride, padding)

    def _norm_relu(self, x: Array, scope: str) -> Array:
        gamma, beta = self.params[f"{scope}/group_norm/gamma"], self.params[f"{scope}/group_norm/beta"]
        return ops.relu(ops.group_norm(x, gamma, beta) if self.norm == "gn" else ops.batch_norm(x, gamma, beta))

    def _root(self, x: Array) -> Array:
        """7x7 convolution with stride 2, a border of real zeros, then a 3x3 max-pool with stride 2 that adds none."""
        x = self._conv(x, "resnet/root_block", stride=2, padding=3)
        return ops.max_pool(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)

    def _unit(self, x: Array, scope: str, stride: int) -> Array:
        """Three times norm, ReLU, convolution; stride on the 3x3; the projection reads the pre-activated input."""
        shortcut = x
        x = self._norm_relu(x, f"{scope}/a")
        if f"{scope}/a/proj/standardized_conv2d/kernel" in self.params:
            shortcut = self._conv(x, f"{scope}/a/proj", stride=stride)
        x = self._conv(x, f"{scope}/a")
        x = self._conv(self._norm_relu(x, f"{scope}/b"), f"{scope}/b", stride=stride, padding=1)
        x = self._conv(self._norm_relu(x, f"{scope}/c"), f"{scope}/c")
        return x + shortcut

    def maps(self, images: Array) -> list[Array]:
        """The four blocks' outputs, each `(n, h, w, c)`, for images `(n, h, w, channels)` in [-1, 1]."""
        x = self._root(np.asarray(images, dtype=np.float64))
        maps = []
        for block in range(1, 5):
            unit = 1
            while f"resnet/block{block}/unit{unit:02d}/a/standardized_conv2d/kernel" in self.params:
                stride = 2 if block > 1 and unit == 1 else 1
                x = self._unit(x, f"resnet/block{block}/unit{unit:02d}", stride)
                unit += 1
            maps.append(x)
        return maps

    def features(self, images: Array) -> Array:
        """`(n, channels)`: norm, ReLU, mean over the map."""
        return self._norm_relu(self.maps(images)[-1], "resnet").mean(axis=(1, 2))

    def logits(self, images: Array) -> Array:
        """`(n, classes)`; the head is a plain 1x1 convolution with bias, not standardized."""
        head = self.params["resnet/head/conv2d/kernel"]
        return self.features(images) @ head[0, 0] + self.params["resnet/head/conv2d/bias"]


def logits(params: Params, images: Array) -> Array:
    """Logits `(n, classes)` of the published network for images `(n, h, w, channels)` in [-1, 1]."""
    return Network(params).logits(images)


def random_params(
    units: Sequence[int] = (1, 1, 1, 1), width: int = 1, classes: int = 5, channels: int = 3, seed: int = 0
) -> dict[str, Array]:
    """Random parameters, float32 values (so that nothing is lost on the way to another program) held in float64.

    Kernels have means and scales far from the standardized ones, norms are far from the identity, the head is not zero.
    """
    rng = np.random.default_rng(seed)
    params: dict[str, Array] = {}

    def conv(scope: str, size: int, inputs: int, outputs: int) -> None:
        scale = np.exp(rng.normal(-3, 0.5, outputs))
        params[f"{scope}/standardized_conv2d/kernel"] = rng.normal(0.3, 1, (size, size, inputs, outputs)) * scale

    def norm(scope: str, count: int) -> None:
        params[f"{scope}/group_norm/gamma"] = rng.uniform(0.5, 1.5, count)
        params[f"{scope}/group_norm/beta"] = rng.normal(0, 0.3, count)

    count = 64 * width
    conv("resnet/root_block", 7, channels, count)
    for block, depth in enumerate(units, start=1):
        outputs = 128 * width * 2**block
        middle = outputs // 4
        for unit in range(1, depth + 1):
            scope = f"resnet/block{block}/unit{unit:02d}"
            norm(f"{scope}/a", count)
            conv(f"{scope}/a", 1, count, middle)
            norm(f"{scope}/b", middle)
            conv(f"{scope}/b", 3, middle, middle)
            norm(f"{scope}/c", middle)
            conv(f"{scope}/c", 1, middle, outputs)
            if unit == 1:
                conv(f"{scope}/a/proj", 1, count, outputs)
            count = outputs
    norm("resnet", count)
    params["resnet/head/conv2d/kernel"] = rng.normal(0, 0.02, (1, 1, count, classes))
    params["resnet/head/conv2d/bias"] = rng.normal(0, 0.1, classes)
    return {name: value.astype(np.float32).astype(np.float64) for name, value in params.items()}
