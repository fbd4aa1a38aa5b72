"""Convolutions on a CPU, as matrix products where oneDNN's own kernels are slow: on small maps.

A network for 64 px images ends in maps of 4x4 and 2x2 pixels, where oneDNN's convolutions fall to a third of the speed of a
matrix product (docs/decisions/cpu-operations.md has the measurements). All forms compute what `F.conv2d` computes, up to
the order of the sums, and `plain.conv2d` means.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.ops import plain
from bigtransfer.ops.native import by_plain_form, differentiated

SMALL = 16
"""Pixels of the largest output map that matrix products are used for."""


def conv2d(x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """`plain.conv2d(x, kernel, stride, padding)` for square kernels and what `takes` accepts."""
    size = kernel.shape[2]
    if size == 1 and stride > 1 and padding == 0:
        # oneDNN would go through all of x, and its gradient too.
        x, stride = _EveryNth.apply(x, stride), 1
    h, w = x.shape[2:]
    if size == 3 and padding == 1 and h <= 2 and w <= 2:
        return _AllToAll.apply(x, kernel, stride)
    if ((h + 2 * padding - size) // stride + 1) * ((w + 2 * padding - size) // stride + 1) <= SMALL:
        return _ByPatches.apply(x, kernel, stride, padding)
    return plain.conv2d(x, kernel, stride, padding)


def takes(x: Tensor, kernel: Tensor) -> bool:
    """Whether `conv2d` takes these: channels_last bfloat16 or float32 on the CPU, without autocast; at least one image."""
    return (
        x.numel() > 0
        and x.dtype == kernel.dtype
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
    )


def _rows(x: Tensor) -> Tensor:
    """`(n, c, h, w)` as `(n * h * w, c)`: a view if `x` is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _map(rows: Tensor, n: int, h: int, w: int) -> Tensor:
    return rows.view(n, h, w, -1).permute(0, 3, 1, 2)


def _patches(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Each output pixel's inputs as a row, ordered (kernel row, kernel column, channel)."""
    if size == 1 and stride == 1 and padding == 0:
        return _rows(x)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding)).contiguous()
    n, h, w, channels = padded.shape
    image, row, pixel, _ = padded.stride()
    # Neighbouring pixels of a row lie side by side, so a row of the kernel is one run of memory.
    windows = padded.as_strided(
        (n, (h - size) // stride + 1, (w - size) // stride + 1, size, size * channels),
        (image, stride * row, stride * pixel, row, 1),
    )
    return windows.reshape(-1, size * size * channels)


class _EveryNth(torch.autograd.Function):
    """`x[:, :, ::n, ::n]`, with a gradient in channels_last: torch's own is not, and adding it to another that is takes ten times as
    long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        ctx.shape, ctx.n = x.shape, n
        return x[:, :, ::n, ::n].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if differentiated(grad):
            n, channels, h, w = ctx.shape
            rows = torch.ops.aten.slice_backward(grad, [n, channels, h, grad.shape[3]], 2, 0, h, ctx.n)
            return torch.ops.aten.slice_backward(rows, [n, channels, h, w], 3, 0, w, ctx.n), None
        like = {"dtype": grad.dtype, "device": grad.device, "memory_format": torch.channels_last}
        x_grad = torch.empty(ctx.shape, **like).zero_()
        x_grad[:, :, :: ctx.n, :: ctx.n] = grad
        return x_grad, None


class _ByPatches(torch.autograd.Function):
    """The kernel's gradient as one product of patches; 1x1 convolutions in bfloat16 wholly as products.

    (In float32 the product is MKL's, which on some processors is slower than oneDNN's convolution.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.stride, ctx.padding = stride, padding
        ctx.product = kernel.shape[2] == stride == 1 and padding == 0 and x.dtype == torch.bfloat16
        if ctx.product:
            return _map(_rows(x) @ kernel.flatten(1).t(), x.shape[0], *x.shape[2:])
        return F.conv2d(x, kernel, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, kernel = ctx.saved_tensors
        if differentiated(grad):
            form = functools.partial(plain.conv2d, stride=ctx.stride, padding=ctx.padding)
            x_grad, kernel_grad = by_plain_form(form, (x, kernel), ctx.needs_input_grad[:2], grad)
            return x_grad, kernel_grad, None, None
        rows, x_grad, kernel_grad = _rows(grad), None, None
        if ctx.needs_input_grad[0]:
            if ctx.product:
                x_grad = _map(rows @ kernel.flatten(1), x.shape[0], *x.shape[2:])
            else:
                stride, padding = [ctx.stride] * 2, [ctx.padding] * 2
                x_grad, _, _ = torch.ops.aten.convolution_backward(
                    grad, x, kernel, None, stride, padding, [1, 1], False, [0, 0], 1, [True, False, False]
                )
        if ctx.needs_input_grad[1]:
            size = kernel.shape[2]
            product = rows.t() @ _patches(x, size, ctx.stride, ctx.padding)
            kernel_grad = product.view(len(kernel), size, size, -1).permute(0, 3, 1, 2)
        return x_grad, kernel_grad, None, None


class _AllToAll(torch.autograd.Function):
    """A 3x3 convolution with padding 1 on a map of at most 2x2 pixels, where every output pixel sees every input pixel.

    As one dense layer from whole maps to whole maps it multiplies only the taps that meet the map: at 2x2, 4 of 9.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.stride = stride
        n, _, h, w = x.shape
        matrix = torch.cat([taps.reshape(len(kernel), -1) for taps in _AllToAll._taps(kernel, x, stride)])
        product = x.permute(0, 2, 3, 1).reshape(n, -1) @ matrix.t()
        return _map(product, n, -(-h // stride), -(-w // stride))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, kernel = ctx.saved_tensors
        if differentiated(grad):
            form = functools.partial(plain.conv2d, stride=ctx.stride, padding=1)
            x_grad, kernel_grad = by_plain_form(form, (x, kernel), ctx.needs_input_grad[:2], grad)
            return x_grad, kernel_grad, None
        n, channels, h, w = x.shape
        rows, x_grad, kernel_grad = grad.permute(0, 2, 3, 1).reshape(n, -1), None, None
        if ctx.needs_input_grad[0]:
            matrix = torch.cat([taps.reshape(len(kernel), -1) for taps in _AllToAll._taps(kernel, x, ctx.stride)])
            x_grad = _map(rows @ matrix, n, h, w)
        if ctx.needs_input_grad[1]:
            product = rows.t() @ x.permute(0, 2, 3, 1).reshape(n, -1)
            kernel_grad = torch.zeros_like(kernel, dtype=torch.float32)
            parts = product.view(-1, len(kernel), h, w, channels)
            for taps, part in zip(_AllToAll._taps(kernel_grad, x, ctx.stride), parts, strict=True):
                taps += part
            kernel_grad = kernel_grad.to(kernel.dtype)
        return x_grad, kernel_grad, None

    @staticmethod
    def _taps(kernel: Tensor, x: Tensor, stride: int) -> list[Tensor]:
        """For each output pixel, the view `(out, h, w, in)` of `kernel` that multiplies the input pixels."""
        h, w = x.shape[2:]
        taps = kernel.permute(0, 2, 3, 1)
        return [
            taps[:, 1 - top : 1 - top + h, 1 - left : 1 - left + w]
            for top in range(0, h, stride)
            for left in range(0, w, stride)
        ]
