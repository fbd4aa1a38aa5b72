"""Plain torch forms: the meaning of each operation, which every faster form is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def standardize(kernel: Tensor, eps: float = 1e-10) -> Tensor:
    """Shift and scale each output channel of `kernel` to mean 0, variance 1.

    kernel: (out, in, kh, kw), any float dtype; computed and returned in float32 (float64 stays float64).
    Source: BiT (arXiv 1912.11370), released code; eps is 1e-10 there, 1e-8 in timm and transformers.
    Trap: population variance (divide by n); torch's default divides by n - 1.
    Trap: eps 1e-10 is zero in float16, so the float32 here is not optional.
    """
    if kernel.dtype in (torch.bfloat16, torch.float16):
        kernel = kernel.float()
    variance, mean = torch.var_mean(kernel, dim=(1, 2, 3), keepdim=True, correction=0)
    return (kernel - mean) * torch.rsqrt(variance + eps)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """GroupNorm, then ReLU.

    x: (n, channels, h, w), `channels` divisible by `groups`; weight, bias: (channels,). Statistics per image and group over
    (channels / groups, h, w) with population variance, accumulated in at least float32; the result has `x`'s dtype.
    Source: BiT released code: 32 groups at every width, eps 1e-5.
    """
    return F.relu(F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps), inplace=True)
