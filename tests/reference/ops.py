"""The network's operations in float64 NumPy, written from the description: images NHWC, kernels HWIO.

Gradients are closed forms derived by hand; `tests/test_ops.py` checks them against finite differences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def conv2d(x: Array, kernel: Array, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of x `(n, h, w, in)` with kernel `(kh, kw, in, out)`, zeros around: patches times kernel."""
    kh, kw, inputs, outputs = kernel.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(1, 2))[:, ::stride, ::stride]
    n, h, w = windows.shape[:3]
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * h * w, kh * kw * inputs)
    return (patches @ kernel.reshape(kh * kw * inputs, outputs)).reshape(n, h, w, outputs)


def max_pool(x: Array, size: int, stride: int) -> Array:
    """Maximum over `size` x `size` windows that lie wholly inside x `(n, h, w, c)`."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return windows.max(axis=(-2, -1))


def standardize(kernel: Array, eps: float = 1e-10) -> Array:
    """Each output channel `kernel[..., o]` at mean 0 and population variance 1."""
    mean = kernel.mean(axis=(0, 1, 2))
    variance = ((kernel - mean) ** 2).mean(axis=(0, 1, 2))
    return (kernel - mean) / np.sqrt(variance + eps)


def standardize_backward(kernel: Array, grad: Array, eps: float = 1e-10) -> Array:
    """Gradient of sum(grad * standardize(kernel)) for the kernel."""
    deviation = np.sqrt(kernel.var(axis=(0, 1, 2)) + eps)
    unit = (kernel - kernel.mean(axis=(0, 1, 2))) / deviation
    return (grad - grad.mean(axis=(0, 1, 2)) - unit * (grad * unit).mean(axis=(0, 1, 2))) / deviation


def _grouped(x: Array, groups: int) -> Array:
    """`(n, h, w, c)` -> `(n, h * w, groups, c / groups)`: neighbouring channels share a group."""
    n, h, w, channels = x.shape
    return x.reshape(n, h * w, groups, channels // groups)


def group_norm(x: Array, gamma: Array, beta: Array, groups: int = 32, eps: float = 1e-5) -> Array:
    """GroupNorm of x `(n, h, w, c)`: statistics per image and group of channels, population variance."""
    grouped = _grouped(x, groups)
    mean = grouped.mean(axis=(1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean(axis=(1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape) * gamma + beta


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def group_norm_relu(x: Array, gamma: Array, beta: Array, groups: int = 32, eps: float = 1e-5) -> Array:
    return relu(group_norm(x, gamma, beta, groups, eps))


def group_norm_relu_backward(
    x: Array, gamma: Array, beta: Array, grad: Array, groups: int = 32, eps: float = 1e-5
) -> tuple[Array, Array, Array]:
    """Gradients of sum(grad * group_norm_relu(x)) for x, gamma and beta (zero slope at zero)."""
    grouped = _grouped(x, groups)
    deviation = np.sqrt(grouped.var(axis=(1, 3), keepdims=True) + eps)
    unit = (grouped - grouped.mean(axis=(1, 3), keepdims=True)) / deviation
    flat = unit.reshape(x.shape)
    grad = np.where(flat * gamma + beta > 0, grad, 0.0)
    inner = _grouped(grad * gamma, groups)
    mean, slope = inner.mean(axis=(1, 3), keepdims=True), (inner * unit).mean(axis=(1, 3), keepdims=True)
    dx = ((inner - mean - unit * slope) / deviation).reshape(x.shape)
    return dx, (grad * flat).sum(axis=(0, 1, 2)), grad.sum(axis=(0, 1, 2))


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    """BatchNorm of x `(n, h, w, c)` with the batch's own statistics (population variance)."""
    mean = x.mean(axis=(0, 1, 2))
    variance = ((x - mean) ** 2).mean(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(variance + eps) * gamma + beta
