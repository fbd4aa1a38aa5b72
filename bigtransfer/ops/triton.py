"""Fast forms for CUDA GPUs, in Triton: GroupNorm followed by ReLU on channels_last maps, and weight standardization.

torch's own GroupNorm on CUDA knows only NCHW memory: it copies a channels_last map there and leaves its result there, and the next
convolution copies it back. These kernels stay in channels_last, read and write device memory as rarely as they can, and keep only the
input and three numbers per group for the backward pass, where the norm's result and the ReLU's mask are computed again.

Statistics are float32: the mean, then squared distances from it, where all of it fits in registers; elsewhere updated number by number
(Welford 1962) and put together with their counts (Chan, Golub and LeVeque 1983); never a difference of mean squares. A mean is two floats.
Each sum has one owner and a fixed order, without atomics, so that the same input gives the same bits each time.

Torch brings Triton on Linux. Where it cannot be imported, or cannot build or run a kernel, `works()` says so and logs the reason once, and
the plain torch forms are used. With TRITON_INTERPRET=1 in the environment when this module is first imported, the same kernels run in
Triton's interpreter on CPU tensors: slow, for tests.
"""

# A kernel's constants are annotated as what it sees of them, not as what it is called with.
# pyright: reportArgumentType=false
from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bigtransfer.ops.native import differentiated, norm_by_plain_form, standardized_by_plain_form

_log = logging.getLogger(__name__)

_WIDEST_GROUP = 2048
"""Channels of a group; BiT's have 2 to 256."""
_WHOLE_FORWARD = 32768
_WHOLE_BACKWARD = 16384
"""Numbers of a map that one program keeps in registers, of two maps in the backward pass."""
_LANES, _LEAST_LANES = 64, 16
"""Neighbouring channels that a program takes, where there are as many, and at least: 32 bytes of bfloat16, what memory gives at once."""
_TILE, _LEAST_TILE = 4096, 2048
"""Numbers that a program takes at a time where it goes through a longer stretch, and at least where there is less."""
_COLUMNS = 1024
"""The same of a kernel's output channel."""
_MOST_SUMS = 8192
"""Numbers that a program adds up for the parts of an image."""
_TILES = 4
"""Tiles of such a stretch, unless an image has more than fill `_MOST_PARTS` stretches."""
_MOST_PARTS = 64
"""Into which an image is divided."""


@functools.cache
def works() -> bool:
    """Whether kernels can be built and run on the present CUDA device; if not, the reason is logged once at INFO."""
    try:
        with torch.no_grad():
            x = torch.tensor([1.0, 3.0], dtype=torch.float32, device="cuda").view(1, 2, 1, 1)
            one = torch.ones(2, dtype=torch.float32, device="cuda")
            found = [standardize(x, 0.0, x.dtype), *standardize_all([x], 0.0, x.dtype)]
            found.append(group_norm_relu(x, 1, one, one, 0.0) - 1)
        if not all(each.flatten().tolist() == [-1.0, 1.0] for each in found):
            raise RuntimeError("a kernel's result is wrong")
    except Exception as error:  # Whatever is wrong with compiler, driver or machine, the plain forms do.
        _log.info("This GPU uses the plain torch operations, not the fused ones: %s", str(error).strip())
        return False
    return True


def takes_kernel(kernel: Tensor, dtype: torch.dtype) -> bool:
    """Whether `standardize` takes these: a float32 kernel, each output channel in one piece of memory."""
    return (
        kernel.dtype == torch.float32
        and 0 < kernel.numel() < 2**31
        and dtype in (torch.float32, torch.bfloat16)
        and (kernel.is_contiguous() or kernel.is_contiguous(memory_format=torch.channels_last))
    )


def takes_map(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> bool:
    """Whether `group_norm_relu` takes these: channels_last bfloat16 or float32, float32 parameters, all on one device; no autocast,
    under which torch's own gives float32."""
    return (
        x.dtype in (torch.bfloat16, torch.float32)
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.dtype == bias.dtype == torch.float32
        and weight.shape == bias.shape == x.shape[1:2]
        and weight.device == bias.device == x.device
        and weight.is_contiguous()
        and bias.is_contiguous()
        and x.shape[1] % groups == 0
        and x.shape[1] // groups <= _WIDEST_GROUP
        and x.numel() > 0
        and x[0].numel() < 2**31
        and not torch.is_autocast_enabled(x.device.type)
    )


def standardize(kernel: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`plain.standardize` with the cast to `dtype`; keeps the kernel's memory format."""
    return _Standardize.apply(kernel, eps, dtype)


def takes_kernels(kernels: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether `standardize_all` takes these: what `standardize` takes, on one device."""
    return all(
        takes_kernel(kernel, dtype)
        and kernel.device == kernels[0].device
        and kernel.stride(0) * kernel.shape[0] == kernel.numel()
        for kernel in kernels
    )


def standardize_all(kernels: Sequence[Tensor], eps: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`standardize` of each, in one launch: what a launch costs the host is more than the work on one kernel."""
    return _StandardizeAll.apply(eps, dtype, *kernels)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`plain.group_norm_relu`; keeps only `x` and the statistics for the backward pass."""
    return _GroupNormReLU.apply(x, groups, weight, bias, eps)


# ---- GroupNorm + ReLU: the kernels ----
#
# A tile is ROWS pixels times LANES channels: AT_ONCE groups of WIDTH channels, then lanes that are masked, since Triton's sizes are powers
# of two. `member` says which lane belongs to which group. Statistics are (shift, mean, rstd) of each image and group: shift + mean is the
# mean, of which shift is near the numbers.


@triton.jit
def _sums(lanes, member):
    """Of lanes `(LANES,)`, for each group `(AT_ONCE,)`."""
    return tl.sum(tl.where(member, lanes[None, :], 0.0), axis=1)


@triton.jit
def _each(groups, member):
    """The number of its group for each lane."""
    return tl.sum(tl.where(member, groups[:, None], 0.0), axis=0)


@triton.jit
def _channels(block, channels, WIDTH: tl.constexpr, AT_ONCE: tl.constexpr, LANES: tl.constexpr):
    """The lanes' channels, which of them there are, and `member`."""
    lane = tl.arange(0, LANES)
    channel = block * AT_ONCE * WIDTH + lane
    inside = (lane < AT_ONCE * WIDTH) & (channel < channels)
    member = ((lane // WIDTH)[None, :] == tl.arange(0, AT_ONCE)[:, None]) & inside[None, :]
    return channel, inside, member


@triton.jit
def _relu(value):
    """Not the maximum of it and zero, in which a NaN would be lost."""
    return tl.where(value <= 0, 0.0, value)


@triton.jit
def _norm_whole(
    x,
    weight,
    bias,
    out,
    stats,
    pixels,
    channels,
    groups,
    count,
    eps,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """All pixels of some groups of an image, read once and written once."""
    blocks = tl.cdiv(groups, AT_ONCE)
    image, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    channel, inside, member = _channels(block, channels, WIDTH, AT_ONCE, LANES)
    row = tl.arange(0, ROWS)
    here = (row < pixels)[:, None] & inside[None, :]
    at = image * pixels * channels + (row[:, None] * channels + channel[None, :])
    value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)

    shift = _sums(tl.sum(value, axis=0), member) / count
    value = tl.where(here, value - _each(shift, member)[None, :], 0.0)
    mean = _sums(tl.sum(value, axis=0), member) / count
    value = tl.where(here, value - _each(mean, member)[None, :], 0.0)
    rstd = tl.rsqrt(_sums(tl.sum(value * value, axis=0), member) / count + eps)
    group = block * AT_ONCE + tl.arange(0, AT_ONCE)
    into = stats + (image * groups + group) * 3
    tl.store(into, shift, mask=group < groups)
    tl.store(into + 1, mean, mask=group < groups)
    tl.store(into + 2, rstd, mask=group < groups)

    scale = tl.load(weight + channel, mask=inside, other=0.0)
    offset = tl.load(bias + channel, mask=inside, other=0.0)
    result = _relu(value * _each(rstd, member)[None, :] * scale[None, :] + offset[None, :])
    tl.store(out + at, result.to(out.dtype.element_ty), mask=here)


@triton.jit
def _norm_statistics(
    x,
    partial,
    pixels,
    channels,
    groups,
    parts,
    chunk,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Mean, less the group's first number, and sum of squared distances from it of `chunk` pixels: `partial` (images, parts, groups, 2)."""
    blocks = tl.cdiv(groups, AT_ONCE)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks % parts
    image = (tl.program_id(0) // blocks // parts).to(tl.int64)
    channel, inside, member = _channels(block, channels, WIDTH, AT_ONCE, LANES)
    x += image * pixels * channels
    shift = tl.load(x + channel // WIDTH * WIDTH, mask=inside, other=0.0).to(tl.float32)
    begin = part * chunk
    end = tl.minimum(begin + chunk, pixels)
    mean = tl.zeros([ROWS, LANES], tl.float32)
    squares = tl.zeros([ROWS, LANES], tl.float32)
    number = 0.0
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < end)[:, None] & inside[None, :]
        at = row[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=here, other=0.0).to(tl.float32) - shift[None, :]
        number += 1.0
        distance = tl.where(here, value - mean, 0.0)
        mean += distance * (1.0 / number)
        squares += distance * (value - mean)
    # What each place of the tile has seen, put together.
    seen = (tl.maximum(end - begin - tl.arange(0, ROWS) + ROWS - 1, 0) // ROWS).to(tl.float32)
    seen = tl.where(inside[None, :], seen[:, None], 0.0)
    total = _sums(tl.sum(seen, axis=0), member)
    mean_of_group = _sums(tl.sum(mean * seen, axis=0), member) / total  # pyright: ignore[reportOperatorIssue]
    distance = mean - _each(mean_of_group, member)[None, :]
    squares_of_group = _sums(tl.sum(squares + seen * distance * distance, axis=0), member)
    group = block * AT_ONCE + tl.arange(0, AT_ONCE)
    into = partial + ((image * parts + part) * groups + group) * 2
    tl.store(into, mean_of_group, mask=group < groups)
    tl.store(into + 1, squares_of_group, mask=group < groups)


@triton.jit
def _norm_apply(
    x,
    weight,
    bias,
    out,
    stats,
    partial,
    pixels,
    channels,
    groups,
    parts,
    chunk,
    count,
    eps,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """`chunk` pixels with the statistics of the whole image, which the program of its first pixels writes to `stats`."""
    blocks = tl.cdiv(groups, AT_ONCE)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks % parts
    # From the last image to the first: the last ones that the kernel before has read may still lie in the cache.
    image = ((tl.num_programs(0) - 1 - tl.program_id(0)) // blocks // parts).to(tl.int64)
    channel, inside, member = _channels(block, channels, WIDTH, AT_ONCE, LANES)
    x += image * pixels * channels
    out += image * pixels * channels

    each, group = tl.arange(0, PARTS), block * AT_ONCE + tl.arange(0, AT_ONCE)
    there = (each < parts)[:, None] & (group < groups)[None, :]
    taken = partial + ((image * parts + each[:, None]) * groups + group[None, :]) * 2
    means = tl.load(taken, mask=there, other=0.0)
    squares = tl.load(taken + 1, mask=there, other=0.0)
    seen = tl.maximum(tl.minimum(pixels - each * chunk, chunk), 0).to(tl.float32)[:, None] * WIDTH
    mean = tl.sum(means * seen, axis=0) / count
    distance = tl.where(there, means - mean[None, :], 0.0)
    rstd = tl.rsqrt(tl.sum(squares + seen * distance * distance, axis=0) / count + eps)
    if part == 0:
        shift = tl.load(x + group * WIDTH, mask=group < groups, other=0.0).to(tl.float32)
        into = stats + (image * groups + group) * 3
        tl.store(into, shift, mask=group < groups)
        tl.store(into + 1, mean, mask=group < groups)
        tl.store(into + 2, rstd, mask=group < groups)

    shift = tl.load(x + channel // WIDTH * WIDTH, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + channel, mask=inside, other=0.0)
    offset = tl.load(bias + channel, mask=inside, other=0.0)
    mean, rstd = _each(mean, member), _each(rstd, member)
    end = tl.minimum((part + 1) * chunk, pixels)
    for start in range(part * chunk, end, ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < end)[:, None] & inside[None, :]
        at = row[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        unit = ((value - shift[None, :]) - mean[None, :]) * rstd[None, :]
        result = _relu(unit * scale[None, :] + offset[None, :])
        tl.store(out + at, result.to(out.dtype.element_ty), mask=here)


@triton.jit
def _norm_lanes(weight, bias, stats, image, channel, inside, groups, WIDTH: tl.constexpr):
    """What the backward kernels know of each lane: shift, mean, rstd, weight and bias."""
    taken = stats + (image * groups + channel // WIDTH) * 3
    shift = tl.load(taken, mask=inside, other=0.0)
    mean = tl.load(taken + 1, mask=inside, other=0.0)
    rstd = tl.load(taken + 2, mask=inside, other=0.0)
    return (
        shift,
        mean,
        rstd,
        tl.load(weight + channel, mask=inside, other=0.0),
        tl.load(bias + channel, mask=inside, other=0.0),
    )


@triton.jit
def _recomputed(x, grad, at, here, shift, mean, rstd, scale, offset):
    """The normalized numbers, and the gradient where the ReLU let the result through."""
    value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
    slope = tl.load(grad + at, mask=here, other=0.0).to(tl.float32)
    unit = ((value - shift[None, :]) - mean[None, :]) * rstd[None, :]
    return unit, tl.where(unit * scale[None, :] + offset[None, :] <= 0, 0.0, slope)


@triton.jit
def _norm_whole_backward(
    x,
    grad,
    weight,
    bias,
    stats,
    x_grad,
    sums,
    pixels,
    channels,
    groups,
    count,
    images,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The gradient of some groups of an image, and the image's part of the parameters' gradients: `sums` (2, images, channels)."""
    blocks = tl.cdiv(groups, AT_ONCE)
    image, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    channel, inside, member = _channels(block, channels, WIDTH, AT_ONCE, LANES)
    shift, mean, rstd, scale, offset = _norm_lanes(weight, bias, stats, image, channel, inside, groups, WIDTH)
    row = tl.arange(0, ROWS)
    here = (row < pixels)[:, None] & inside[None, :]
    at = image * pixels * channels + (row[:, None] * channels + channel[None, :])
    unit, slope = _recomputed(x, grad, at, here, shift, mean, rstd, scale, offset)
    of_weight, of_bias = tl.sum(slope * unit, axis=0), tl.sum(slope, axis=0)
    tl.store(sums + image * channels + channel, of_weight, mask=inside)
    tl.store(sums + (images + image) * channels + channel, of_bias, mask=inside)
    along = _each(_sums(of_weight * scale, member) / count, member)
    level = _each(_sums(of_bias * scale, member) / count, member)
    result = (slope * scale[None, :] - level[None, :] - unit * along[None, :]) * rstd[None, :]
    tl.store(x_grad + at, result.to(x_grad.dtype.element_ty), mask=here)


@triton.jit
def _norm_sums(
    x,
    grad,
    weight,
    bias,
    stats,
    sums,
    pixels,
    channels,
    groups,
    images,
    parts,
    chunk,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The part of `chunk` pixels in the parameters' gradients: `sums` (2, images, parts, channels)."""
    blocks = tl.cdiv(groups, AT_ONCE)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks % parts
    image = (tl.program_id(0) // blocks // parts).to(tl.int64)
    channel, inside, _ = _channels(block, channels, WIDTH, AT_ONCE, LANES)
    shift, mean, rstd, scale, offset = _norm_lanes(weight, bias, stats, image, channel, inside, groups, WIDTH)
    x += image * pixels * channels
    grad += image * pixels * channels
    of_weight = tl.zeros([ROWS, LANES], tl.float32)
    of_bias = tl.zeros([ROWS, LANES], tl.float32)
    end = tl.minimum((part + 1) * chunk, pixels)
    for start in range(part * chunk, end, ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < end)[:, None] & inside[None, :]
        at = row[:, None] * channels + channel[None, :]
        unit, slope = _recomputed(x, grad, at, here, shift, mean, rstd, scale, offset)
        of_weight += slope * unit
        of_bias += slope
    into = sums + (image * parts + part) * channels + channel
    tl.store(into, tl.sum(of_weight, axis=0), mask=inside)
    tl.store(into + images * parts * channels, tl.sum(of_bias, axis=0), mask=inside)


@triton.jit
def _norm_apply_backward(
    x,
    grad,
    weight,
    bias,
    stats,
    x_grad,
    sums,
    pixels,
    channels,
    groups,
    count,
    images,
    parts,
    chunk,
    WIDTH: tl.constexpr,
    AT_ONCE: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The gradient of `chunk` pixels, with the sums of the whole image."""
    blocks = tl.cdiv(groups, AT_ONCE)
    block, part = tl.program_id(0) % blocks, tl.program_id(0) // blocks % parts
    image = ((tl.num_programs(0) - 1 - tl.program_id(0)) // blocks // parts).to(tl.int64)  # as in _norm_apply
    channel, inside, member = _channels(block, channels, WIDTH, AT_ONCE, LANES)
    shift, mean, rstd, scale, offset = _norm_lanes(weight, bias, stats, image, channel, inside, groups, WIDTH)
    each = tl.arange(0, PARTS)[:, None]
    there = (each < parts) & inside[None, :]
    taken = sums + (image * parts + each) * channels + channel[None, :]
    of_weight = tl.sum(tl.load(taken, mask=there, other=0.0), axis=0)
    of_bias = tl.sum(tl.load(taken + images * parts * channels, mask=there, other=0.0), axis=0)
    along = _each(_sums(of_weight * scale, member) / count, member)
    level = _each(_sums(of_bias * scale, member) / count, member)
    x += image * pixels * channels
    grad += image * pixels * channels
    x_grad += image * pixels * channels
    end = tl.minimum((part + 1) * chunk, pixels)
    for start in range(part * chunk, end, ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < end)[:, None] & inside[None, :]
        at = row[:, None] * channels + channel[None, :]
        unit, slope = _recomputed(x, grad, at, here, shift, mean, rstd, scale, offset)
        result = (slope * scale[None, :] - level[None, :] - unit * along[None, :]) * rstd[None, :]
        tl.store(x_grad + at, result.to(x_grad.dtype.element_ty), mask=here)


# ---- weight standardization: the kernels ----
#
# A program has one output channel, a row of `length` numbers, of one kernel or of one of many (`table`: for each its address, its place in
# the buffer of all, its first row and its length; `owner`: of each row). Statistics are (shift, mean, rstd) again; the shift is the row's
# first number.


@triton.jit
def _find(table, owner, row, ALIGNED: tl.constexpr):
    """A row's first number, its place in the buffer of all kernels, and its length."""
    entry = table + tl.load(owner + row) * 4
    kernel = tl.load(entry).to(tl.pointer_type(tl.float32))
    place, first, length = tl.load(entry + 1), tl.load(entry + 2), tl.load(entry + 3).to(tl.int32)
    if ALIGNED:
        kernel, place, length = tl.multiple_of(kernel, 16), tl.multiple_of(place, 16), tl.multiple_of(length, 16)
    within = (row - first) * length
    return kernel + within, place + within, length


@triton.jit
def _row(kernel, out, stats, length, eps, COLUMNS: tl.constexpr):
    """Standardized."""
    shift = tl.load(kernel)
    mean = tl.zeros([COLUMNS], tl.float32)
    squares = tl.zeros([COLUMNS], tl.float32)
    number = 0.0
    for start in range(0, length, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = tl.load(kernel + column, mask=column < length, other=0.0) - shift
        number += 1.0
        distance = tl.where(column < length, value - mean, 0.0)
        mean += distance * (1.0 / number)
        squares += distance * (value - mean)
    count = length * 1.0
    seen = (tl.maximum(length - tl.arange(0, COLUMNS) + COLUMNS - 1, 0) // COLUMNS).to(tl.float32)
    level = tl.sum(mean * seen) / count
    distance = mean - level
    rstd = tl.rsqrt(tl.sum(squares + seen * distance * distance) / count + eps)
    tl.store(stats, shift)
    tl.store(stats + 1, level)
    tl.store(stats + 2, rstd)
    for start in range(0, length, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = tl.load(kernel + column, mask=column < length, other=0.0)
        result = ((value - shift) - level) * rstd
        tl.store(out + column, result.to(out.dtype.element_ty), mask=column < length)


@triton.jit
def _row_backward(kernel, grad, stats, out, length, COLUMNS: tl.constexpr):
    shift, level, rstd = tl.load(stats), tl.load(stats + 1), tl.load(stats + 2)
    along = tl.zeros([COLUMNS], tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, length, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = tl.load(kernel + column, mask=column < length, other=0.0)
        slope = tl.load(grad + column, mask=column < length, other=0.0).to(tl.float32)
        along += slope * (((value - shift) - level) * rstd)
        total += slope
    count = length * 1.0
    mean_along, mean_slope = tl.sum(along) / count, tl.sum(total) / count
    for start in range(0, length, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        value = tl.load(kernel + column, mask=column < length, other=0.0)
        slope = tl.load(grad + column, mask=column < length, other=0.0).to(tl.float32)
        unit = ((value - shift) - level) * rstd
        tl.store(out + column, (slope - mean_slope - unit * mean_along) * rstd, mask=column < length)


@triton.jit
def _standardize(kernel, out, stats, length, eps, COLUMNS: tl.constexpr):
    row = tl.program_id(0)
    _row(kernel + row * length, out + row * length, stats + row * 3, length, eps, COLUMNS)


@triton.jit
def _standardize_backward(kernel, grad, stats, out, length, COLUMNS: tl.constexpr):
    row = tl.program_id(0)
    at = row * length
    _row_backward(kernel + at, grad + at, stats + row * 3, out + at, length, COLUMNS)


@triton.jit
def _standardize_all(table, owner, out, stats, eps, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr):
    row = tl.program_id(0)
    kernel, place, length = _find(table, owner, row, ALIGNED)
    _row(kernel, out + place, stats + row * 3, length, eps, COLUMNS)


@triton.jit
def _standardize_all_backward(table, owner, grad, stats, out, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr):
    row = tl.program_id(0)
    kernel, place, length = _find(table, owner, row, ALIGNED)
    _row_backward(kernel, grad + place, stats + row * 3, out + place, length, COLUMNS)


# ---- what autograd sees ----


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a map is cut: tiles of `rows` pixels and `lanes` channels, `at_once` groups; an image in `parts` of `chunk` pixels, or 0 where a
    program takes all pixels of its groups at once."""

    width: int
    at_once: int
    lanes: int
    rows: int
    blocks: int
    parts: int
    chunk: int
    warps: int

    def sizes(self) -> dict[str, int]:
        sizes = {"WIDTH": self.width, "AT_ONCE": self.at_once, "LANES": self.lanes, "ROWS": self.rows}
        if self.parts:
            sizes["PARTS"] = triton.next_power_of_2(self.parts)
        return sizes | {"num_warps": self.warps}


@functools.cache
def _plan(pixels: int, channels: int, groups: int, whole: int) -> _Plan:
    """whole: how many numbers a program may take at once. Neither the number of images nor the device has a say: an image comes out the
    same in any batch."""
    width = channels // groups
    most = triton.next_power_of_2(groups)

    def lanes(at_once: int) -> int:
        return triton.next_power_of_2(at_once * width)

    at_once = 1
    while lanes(at_once) < _LANES and at_once < most:
        at_once *= 2
    rows = triton.next_power_of_2(pixels)
    fewer = at_once
    while rows * lanes(fewer) > whole and fewer > 1 and lanes(fewer // 2) >= _LEAST_LANES:
        fewer //= 2
    if rows * lanes(fewer) <= whole:
        while rows * lanes(fewer) < _LEAST_TILE and fewer < most:
            fewer *= 2
        warps = max(1, min(16, rows * lanes(fewer) // 1024))
        return _Plan(width, fewer, lanes(fewer), rows, -(-groups // fewer), 0, 0, warps)
    rows = max(1, _TILE // lanes(at_once))
    most = max(1, min(_MOST_PARTS, _MOST_SUMS // lanes(at_once)))
    chunk = rows * max(_TILES, -(-pixels // (most * rows)))
    return _Plan(width, at_once, lanes(at_once), rows, -(-groups // at_once), -(-pixels // chunk), chunk, 4)


def _on(x: Tensor) -> Any:
    """Kernels are launched on the present device, which must be the tensors'."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


class _GroupNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        n, channels, h, w = x.shape
        pixels = h * w
        count = float(pixels * (channels // groups))
        out = torch.empty_like(x, memory_format=torch.channels_last)
        stats = weight.new_empty(n, groups, 3)
        plan = _plan(pixels, channels, groups, _WHOLE_FORWARD)
        sizes = plan.sizes()
        with _on(x):
            if not plan.parts:
                _norm_whole[(n * plan.blocks,)](
                    x, weight, bias, out, stats, pixels, channels, groups, count, eps, **sizes
                )
            else:
                grid = (n * plan.parts * plan.blocks,)
                partial = weight.new_empty(n, plan.parts, groups, 2)
                every = (pixels, channels, groups, plan.parts, plan.chunk)
                parts = sizes.pop("PARTS")
                _norm_statistics[grid](x, partial, *every, **sizes)
                _norm_apply[grid](x, weight, bias, out, stats, partial, *every, count, eps, PARTS=parts, **sizes)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.groups, ctx.eps, ctx.count = groups, eps, count
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        x, weight, bias, stats = ctx.saved_tensors
        if differentiated(grad):
            return norm_by_plain_form(ctx, x, weight, bias, grad)
        n, channels, h, w = x.shape
        pixels, groups = h * w, ctx.groups
        grad = grad.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        plan = _plan(pixels, channels, groups, _WHOLE_BACKWARD)
        sizes = plan.sizes()
        sums = weight.new_empty(2, n * max(plan.parts, 1), channels)
        taken = (x, grad, weight, bias, stats)
        with _on(x):
            if not plan.parts:
                _norm_whole_backward[(n * plan.blocks,)](
                    *taken, out, sums, pixels, channels, groups, ctx.count, n, **sizes
                )
            else:
                grid = (n * plan.parts * plan.blocks,)
                parts = sizes.pop("PARTS")
                divided = (n, plan.parts, plan.chunk)
                _norm_sums[grid](*taken, sums, pixels, channels, groups, *divided, **sizes)
                _norm_apply_backward[grid](
                    *taken, out, sums, pixels, channels, groups, ctx.count, *divided, PARTS=parts, **sizes
                )
        _, _, need_weight, need_bias, _ = ctx.needs_input_grad
        of_weight, of_bias = sums.sum(1) if need_weight or need_bias else (None, None)
        return out, None, of_weight, of_bias, None


def _tile_of_row(length: int) -> dict[str, int]:
    columns = min(triton.next_power_of_2(length), _COLUMNS)
    return {"COLUMNS": columns, "num_warps": max(1, min(4, columns // 256))}


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(kernel, dtype=dtype)
        stats = kernel.new_empty(kernel.shape[0], 3)
        length = kernel[0].numel()
        with _on(kernel):
            _standardize[(len(kernel),)](kernel, out, stats, length, eps, **_tile_of_row(length))
        ctx.save_for_backward(kernel, stats)
        ctx.eps, ctx.dtype = eps, dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        kernel, stats = ctx.saved_tensors
        if differentiated(grad):
            return standardized_by_plain_form(kernel, ctx.eps, ctx.dtype, grad), None, None
        contiguous = kernel.is_contiguous()
        grad = grad.contiguous(memory_format=torch.contiguous_format if contiguous else torch.channels_last)
        out = torch.empty_like(kernel)
        length = kernel[0].numel()
        with _on(kernel):
            _standardize_backward[(len(kernel),)](kernel, grad, stats, out, length, **_tile_of_row(length))
        return out, None, None


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """Where many kernels lie, for the device, and where each begins in a buffer of `numel` numbers for all."""

    table: Tensor
    owner: Tensor
    places: tuple[int, ...]
    numel: int
    tile: dict[str, int]


@functools.lru_cache(maxsize=256)
def _places(device: torch.device, kernels: tuple[tuple[int, int, int], ...]) -> _Kernels:
    """kernels: address, rows and length of each. Kept, as a network's parameters stay where they are; it says nothing but what it is
    asked by."""
    table, places, place, row = [], [], 0, 0
    for address, rows, length in kernels:
        table.append([address, place, row, length])
        places.append(place)
        place += rows * length
        row += rows
    rows = torch.tensor([rows for _, rows, _ in kernels], device="cpu")
    owner = torch.repeat_interleave(torch.arange(len(kernels), dtype=torch.int32, device="cpu"), rows)
    aligned = all(address % 16 == 0 and length % 16 == 0 for address, _, length in kernels)
    tile = _tile_of_row(max(length for *_, length in kernels)) | {"ALIGNED": aligned}
    entries = torch.tensor(table, dtype=torch.int64, device="cpu")
    return _Kernels(entries.to(device), owner.to(device), tuple(places), place, tile)


class _StandardizeAll(torch.autograd.Function):
    """One launch for many kernels, with as many results, which are parts of one buffer."""

    @staticmethod
    def forward(ctx: Any, eps: float, dtype: torch.dtype, *kernels: Tensor) -> tuple[Tensor, ...]:
        where = _StandardizeAll._where(kernels)
        out = kernels[0].new_empty(where.numel, dtype=dtype)
        stats = kernels[0].new_empty(len(where.owner), 3)
        with _on(out):
            _standardize_all[(len(where.owner),)](where.table, where.owner, out, stats, eps, **where.tile)
        ctx.save_for_backward(stats, *kernels)
        ctx.eps, ctx.dtype = eps, dtype
        ctx.set_materialize_grads(False)
        return _StandardizeAll._parts(out, where, kernels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        stats, *kernels = ctx.saved_tensors
        if any(grad is not None and differentiated(grad) for grad in grads):
            found = [
                None if grad is None or not needed else standardized_by_plain_form(kernel, ctx.eps, ctx.dtype, grad)
                for kernel, grad, needed in zip(kernels, grads, ctx.needs_input_grad[2:], strict=True)
            ]
            return None, None, *found
        where = _StandardizeAll._where(kernels)
        rows = []
        for kernel, grad in zip(kernels, grads, strict=True):
            if grad is None:
                grad = torch.zeros_like(kernel, dtype=ctx.dtype)
            elif grad.stride() != kernel.stride():
                grad = torch.empty_like(kernel, dtype=ctx.dtype).copy_(grad)
            rows.append(grad.as_strided((grad.numel(),), (1,)))
        out = stats.new_empty(where.numel)
        with _on(out):
            _standardize_all_backward[(len(where.owner),)](
                where.table, where.owner, torch.cat(rows), stats, out, **where.tile
            )
        found = zip(_StandardizeAll._parts(out, where, kernels), grads, strict=True)
        return None, None, *(part if grad is not None else None for part, grad in found)

    @staticmethod
    def _where(kernels: Sequence[Tensor]) -> _Kernels:
        # `stride(0)` is a row's length, as `takes_kernels` has made sure.
        return _places(kernels[0].device, tuple((k.data_ptr(), k.shape[0], k.stride(0)) for k in kernels))

    @staticmethod
    def _parts(out: Tensor, where: _Kernels, kernels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        places = zip(kernels, where.places, strict=True)
        return tuple(out.as_strided(kernel.shape, kernel.stride(), place) for kernel, place in places)
