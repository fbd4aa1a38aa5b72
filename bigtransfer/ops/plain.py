"""Plain torch forms: the meaning of each operation, which every faster form is tested against.

They also work in TorchScript, under every compiler and function transform, and may be differentiated any number of times.
"""

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
    kernel = kernel.to(torch.promote_types(kernel.dtype, torch.float32))
    variance, mean = torch.var_mean(kernel, dim=(1, 2, 3), keepdim=True, correction=0)
    return (kernel - mean) * torch.rsqrt(variance + eps)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """GroupNorm, then ReLU.

    x: (n, channels, h, w), `channels` divisible by `groups`; weight, bias: (channels,). Statistics per image and group over
    (channels / groups, h, w) with population variance, accumulated in at least float32; the result has `x`'s dtype.
    Source: BiT released code: 32 groups at every width, eps 1e-5.
    """
    if not torch.jit.is_tracing() and x.shape[0] == 0:  # which torch's own does not take
        weight, bias = weight.to(x.dtype).view(1, -1, 1, 1), bias.to(x.dtype).view(1, -1, 1, 1)
        return F.relu(x * weight + bias)
    return F.relu(F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps), inplace=True)


def conv2d(x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """`F.conv2d(x, kernel, None, stride, padding)`, with right gradients for maps of one column too.

    There, on a CPU and with a stride, oneDNN's gradient of a bfloat16 kernel is garbage, up to NaN (seen in oneDNN 3.12: input width
    1, kernels 3x3 and 7x7, any height). Columns of zeros beside the map keep it away from them: the padding is zeros anyway.
    """
    columns = (x.shape[3] + 2 * padding - kernel.shape[3]) // stride + 1
    if not (columns == 1 and stride > 1 and kernel.shape[3] > 1 and x.is_cpu and kernel.requires_grad):
        return F.conv2d(x, kernel, None, stride, padding)
    last = x.is_contiguous(memory_format=torch.channels_last)
    y = F.conv2d(F.pad(x, (0, 2 * stride)), kernel, None, stride, padding)[..., :1]
    return y.contiguous(memory_format=torch.channels_last) if last else y.contiguous()


def pool(x: Tensor, kind: str) -> Tensor:
    """All pixels of x `(n, channels, h, w)` as one: "avg", "max", "avgmax" (half of each) or "catavgmax" (one after the other:
    `(n, 2 * channels)`), computed and returned in at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if kind == "avg":
        return x.mean(dim=(2, 3), dtype=wide)
    most = x.amax(dim=(2, 3)).to(wide)
    if kind == "max":
        return most
    mean = x.mean(dim=(2, 3), dtype=wide)
    return 0.5 * (mean + most) if kind == "avgmax" else torch.cat([mean, most], dim=1)
