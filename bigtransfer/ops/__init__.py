"""The operations of a BiT network: weight standardization, convolution, and GroupNorm followed by ReLU.

Each has a plain torch form (`plain`: the meaning, and what compilers, GPUs, float64 and everything unusual get) and a fast
form for training on a CPU (`native`, `convolution`), taken where it applies. Under torch.compile the plain forms are used:
the compiler fuses them itself. BIT_NATIVE=0 in the environment switches the fast forms off.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.ops import convolution, native, plain

__all__ = ["conv2d", "group_norm_relu", "standardize"]


def _eager_cpu(x: Tensor) -> bool:
    """An ordinary CPU tensor, outside every compiler, tracer and function transform: those cannot see into fast forms."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and os.environ.get("BIT_NATIVE") != "0"
    )


def standardize(kernel: Tensor, eps: float = 1e-10, *, dtype: torch.dtype | None = None) -> Tensor:
    """Each output channel of `kernel` `(out, in, kh, kw)` at mean 0 and variance 1, computed in at least float32.

    dtype: of the result; None means float32 (float64 for a float64 kernel). See `plain.standardize`.
    """
    dtype = dtype or torch.promote_types(kernel.dtype, torch.float32)
    if _eager_cpu(kernel) and native.takes_kernel(kernel, dtype):
        return native.standardize(kernel, eps, dtype)
    return plain.standardize(kernel, eps).to(dtype)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """GroupNorm, then ReLU, of x `(n, channels, h, w)`, in `x`'s dtype. See `plain.group_norm_relu`."""
    if _eager_cpu(x) and native.takes_map(x, groups, weight, bias):
        return native.group_norm_relu(x, groups, weight, bias, eps)
    return plain.group_norm_relu(x, groups, weight, bias, eps)


def conv2d(x: Tensor, kernel: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Bias-free convolution of x `(n, in, h, w)` with a square kernel `(out, in, k, k)` of the same dtype."""
    if _eager_cpu(x) and convolution.takes(x, kernel):
        return convolution.conv2d(x, kernel, stride, padding)
    return F.conv2d(x, kernel, None, stride, padding)
