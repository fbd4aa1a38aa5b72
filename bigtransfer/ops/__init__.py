"""The two operations BiT adds to a ResNet: weight standardization, and GroupNorm followed by ReLU.

Each has a plain torch form (`plain`: the meaning, and what compilers, GPUs, float64 and everything unusual get) and a fast
form for training on a CPU (`native`), taken where it applies. Under torch.compile the plain forms are used: the compiler
fuses them itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigtransfer.ops import native, plain

__all__ = ["group_norm_relu", "standardize"]


def standardize(kernel: Tensor, eps: float = 1e-10, *, dtype: torch.dtype | None = None) -> Tensor:
    """Each output channel of `kernel` `(out, in, kh, kw)` at mean 0 and variance 1, computed in at least float32.

    dtype: of the result; None means float32 (float64 for a float64 kernel). See `plain.standardize`.
    """
    dtype = dtype or torch.promote_types(kernel.dtype, torch.float32)
    if not torch.compiler.is_compiling() and native.can_standardize(kernel, dtype):
        return native.standardize(kernel, eps, dtype)
    return plain.standardize(kernel, eps).to(dtype)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """GroupNorm, then ReLU, of x `(n, channels, h, w)`, in `x`'s dtype. See `plain.group_norm_relu`."""
    if not torch.compiler.is_compiling() and native.can_group_norm_relu(x, groups, weight, bias):
        return native.group_norm_relu(x, groups, weight, bias, eps)
    return plain.group_norm_relu(x, groups, weight, bias, eps)
