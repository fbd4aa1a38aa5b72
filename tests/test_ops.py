"""Every form of the two operations against float64 NumPy, forward and backward; and when the fast one steps aside."""

from __future__ import annotations

import itertools
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from bigtransfer import ops
from bigtransfer.errors import ConfigError
from bigtransfer.ops import convolution, native, peak, plain
from tests.reference import ops as reference
from tests.reference.ops import Array

needs_native = pytest.mark.skipif(
    native.library() is None, reason="no working C compiler here: only the plain forms exist"
)
torch_scripts_itself = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
"""Of torch's own use of TorchScript in forward-mode differentiation."""
FORMS = ["plain", pytest.param("native", marks=needs_native)]

# Largest relative error in the Euclidean norm: one and a half times what was seen. bfloat16 rounds with 1.7e-3 in the mean; the plain
# form's backward pass rounds twice.
FORWARD = {("plain", torch.float32): 2e-6, ("native", torch.float32): 6e-7}
FORWARD |= {("plain", torch.bfloat16): 2.2e-3, ("native", torch.bfloat16): 2.2e-3}
BACKWARD = {("plain", torch.float32): 3e-6, ("native", torch.float32): 1e-6}
BACKWARD |= {("plain", torch.bfloat16): 4e-3, ("native", torch.bfloat16): 2.2e-3}
# Of the norm's parameters, whose gradients the native form gives in float32: relative to the size of what they are sums of.
SUMS = {("plain", torch.float32): 1e-5, ("native", torch.float32): 3e-6}
SUMS |= {("plain", torch.bfloat16): 3e-3, ("native", torch.bfloat16): 3e-6}


def group_norm_relu(form: str) -> Callable[[Tensor, int, Tensor, Tensor, float], Tensor]:
    return plain.group_norm_relu if form == "plain" else native.group_norm_relu


def standardize(form: str, kernel: Tensor, dtype: torch.dtype) -> Tensor:
    return plain.standardize(kernel).to(dtype) if form == "plain" else native.standardize(kernel, 1e-10, dtype)


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def nhwc(x: Tensor) -> Array:
    return x.detach().double().permute(0, 2, 3, 1).numpy()


def hwio(kernel: Tensor) -> Array:
    return kernel.detach().double().permute(2, 3, 1, 0).numpy()


def error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def leaves(shape: tuple[int, ...], dtype: torch.dtype, shift: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias (all wanting gradients) and a gradient for the result."""
    x = channels_last((random(shape, 1) * 1.5 + shift).to(dtype)).requires_grad_()
    weight, bias = (random((shape[1],), seed).requires_grad_() for seed in (2, 3))
    return x, weight, bias, channels_last(random(shape, 4, dtype))


# ---- the reference itself ----


def test_reference_gradients_by_finite_differences() -> None:
    rng = np.random.default_rng(0)

    def slope(function: Callable[[Array], Array], at: Array, direction: Array) -> float:
        return float((function(at + 1e-6 * direction) - function(at - 1e-6 * direction)) / 2e-6)

    kernel, grad, direction = rng.normal(size=(3, 3, 3, 5, 4))
    expected = slope(lambda k: (reference.standardize(k) * grad).sum(), kernel, direction)
    assert np.isclose((reference.standardize_backward(kernel, grad) * direction).sum(), expected, rtol=1e-6)

    x, grad, direction = rng.normal(size=(3, 2, 3, 2, 12))
    gamma, beta, toward = rng.normal(size=(3, 12))
    found = reference.group_norm_relu_backward(x, gamma, beta, grad, groups=4)
    for position, along in enumerate((direction, toward, toward)):

        def loss(value: Array, position: int = position) -> Array:
            arguments = [x, gamma, beta]
            arguments[position] = value
            return (reference.group_norm_relu(*arguments, groups=4) * grad).sum()

        assert np.isclose((found[position] * along).sum(), slope(loss, [x, gamma, beta][position], along), rtol=1e-6)


# ---- GroupNorm + ReLU ----

SHAPES = [
    (2, 32, 5, 3),  # one channel a group
    (1, 96, 1, 1),  # three numbers a group
    (3, 256, 7, 7),
    (4, 2048, 2, 2),
    (1, 8192, 3, 3),  # R152x4's last norm
    (2, 64, 33, 31),
    (1, 64, 130, 127),  # an image larger than the cache
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_group_norm_relu(form: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, bias, grad = leaves(shape, dtype)
    y = group_norm_relu(form)(x, 32, weight, bias, 1e-5)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    y.backward(grad)
    # The plain form rounds the norm's parameters to bfloat16 first, as torch's own networks in bfloat16 do.
    parameters = (p.detach().to(dtype if form == "plain" else torch.float32) for p in (weight, bias))
    gamma, beta = (p.double().numpy() for p in parameters)
    assert error(nhwc(y), reference.group_norm_relu(nhwc(x), gamma, beta)) <= FORWARD[form, dtype]
    dx, dgamma, dbeta = reference.group_norm_relu_backward(nhwc(x), gamma, beta, nhwc(grad))
    assert error(nhwc(x.grad), dx) <= BACKWARD[form, dtype]
    size = np.linalg.norm(nhwc(grad))
    assert np.linalg.norm(weight.grad.double().numpy() - dgamma) <= SUMS[form, dtype] * size
    assert np.linalg.norm(bias.grad.double().numpy() - dbeta) <= SUMS[form, dtype] * size


@needs_native
@pytest.mark.parametrize(("channels", "groups"), [(48, 3), (7, 7), (30, 10), (512, 1), (1030, 2), (60, 32)])
def test_other_widths_and_groups(channels: int, groups: int) -> None:
    """Widths that fill no vector register, and groups too wide for the kernels (those take the plain form)."""
    x, weight, bias, grad = leaves((2, channels, 3, 5), torch.float32)
    if channels % groups:
        assert not native.takes_map(x, groups, weight, bias)
        return
    assert native.takes_map(x, groups, weight, bias) == (channels // groups <= 512)
    ops.group_norm_relu(x, groups, weight, bias).backward(grad)
    gamma, beta = (p.detach().double().numpy() for p in (weight, bias))
    assert error(nhwc(x.grad), reference.group_norm_relu_backward(nhwc(x), gamma, beta, nhwc(grad), groups)[0]) <= 1e-5


@needs_native
def test_a_large_mean_does_not_drown_a_small_spread() -> None:
    x, weight, bias, grad = leaves((2, 64, 9, 9), torch.float32, shift=0)
    x = channels_last(x.detach() * 0.1 + 1000 * random((2, 32, 1, 1), 9).repeat_interleave(2, 1)).requires_grad_()
    native.group_norm_relu(x, 32, weight, bias, 1e-5).backward(grad)
    gamma, beta = (p.detach().double().numpy() for p in (weight, bias))
    y = native.group_norm_relu(x, 32, weight, bias, 1e-5)
    assert error(nhwc(y), reference.group_norm_relu(nhwc(x), gamma, beta)) <= 1e-6
    expected = reference.group_norm_relu_backward(nhwc(x), gamma, beta, nhwc(grad))
    assert error(nhwc(x.grad), expected[0]) <= 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_constant_input(form: str) -> None:
    """Variance zero: eps decides, the result is ReLU(bias) and no gradient is infinite."""
    x = channels_last(torch.full((1, 64, 4, 4), 3.0)).requires_grad_()
    weight, bias = random((64,), 2), random((64,), 3)
    y = group_norm_relu(form)(x, 32, weight, bias, 1e-5)
    y.backward(channels_last(random((1, 64, 4, 4), 4)))
    # torch's one-pass statistics leave a residue that 1 / sqrt(eps) magnifies.
    assert torch.allclose(y, bias.relu()[None, :, None, None].expand_as(y), atol=1e-2 if form == "plain" else 1e-6)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@needs_native
def test_nan_goes_where_torch_lets_it_go(bad: float, dtype: torch.dtype) -> None:
    x, weight, bias, grad = leaves((2, 64, 3, 3), dtype)
    with torch.no_grad():
        x[1, 10, 2, 0] = bad
    results = []
    for form in ("plain", "native"):
        x.grad = None
        y = group_norm_relu(form)(x, 32, weight, bias, 1e-5)
        y.backward(grad)
        results.append((y.isnan(), x.grad.isnan()))
    assert results[0][0].any() and not results[0][0][0].any()  # one group of one image
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- norms computed again for the gradients ----


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_computed_again_is_the_same(dtype: torch.dtype) -> None:
    """A norm's result kept by two convolutions; gradients, also gradients of gradients, and a graph used twice."""
    x, weight, bias, _ = leaves((2, 64, 8, 6), dtype)
    kernels = [random((32, 64, size, size), size, dtype).requires_grad_() for size in (1, 3)]
    arguments = (x, weight, bias, *kernels)

    def result() -> Tensor:
        y = ops.group_norm_relu(x, 32, weight, bias)
        return ops.conv2d(y, kernels[0]) + ops.conv2d(y, kernels[1], 1, 1)

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y.square().sum(), arguments, retain_graph=True)

    def of_gradients(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().sum(), arguments, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), arguments)  # pyright: ignore

    with ops.norms_recomputed():
        y = result()
    expected = gradients(result())
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(gradients(y), expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(of_gradients(y), of_gradients(result()), strict=True))


@needs_native
def test_what_is_not_a_norms_result_any_more_is_kept() -> None:
    """A result that was changed, and another tensor of its shape where it lay."""
    x, weight, bias, grad = leaves((2, 64, 8, 6), torch.float32)
    other = random((2, 64, 8, 6), 7).requires_grad_()
    with ops.norms_recomputed():
        y = ops.group_norm_relu(x, 32, weight, bias)
        with torch.no_grad():
            y.detach().add_(1.0)
        (found,) = torch.autograd.grad(y * other, other, grad)
    assert torch.equal(found, y * grad)
    places = set()
    for _ in range(8):  # the allocator gives the same place again and again
        with ops.norms_recomputed():
            y = ops.group_norm_relu(x.detach(), 32, weight.detach(), bias.detach())
            places.add(y.data_ptr())
            del y
            z = torch.full((2, 64, 8, 6), 3.0).contiguous(memory_format=torch.channels_last)
            places.add(z.data_ptr())
            (found,) = torch.autograd.grad((z * other).sum(), other)
        assert torch.equal(found, z)
    assert len(places) < 16, "nothing ever lay where a result had been: this test shows nothing"


# ---- weight standardization ----


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (16, 1, 1, 1), (1, 64, 1, 1), (128, 37, 3, 3), (8, 2048, 3, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_standardize(form: str, shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    scale = random((shape[0], 1, 1, 1), 3).exp() * 0.02
    kernel = ((random(shape, 1) + 2) * scale).contiguous(memory_format=memory_format).requires_grad_()
    grad = random(shape, 2, dtype)
    out = standardize(form, kernel, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=memory_format)
    out.backward(grad)
    expected = reference.standardize(hwio(kernel))
    slope = reference.standardize_backward(hwio(kernel), hwio(grad))
    if kernel[0].numel() == 1:  # one number is its own mean: nothing is left
        assert not out.any() and np.allclose(hwio(kernel.grad), 0, atol=1e-6 * 1e5)
        return
    assert error(hwio(out), expected) <= (2e-3 if dtype == torch.bfloat16 else 1e-6)
    assert error(hwio(kernel.grad), slope) <= 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_standardize_far_from_zero(form: str) -> None:
    kernel = 100 + 0.01 * random((4, 64, 3, 3), 1)
    found = error(hwio(standardize(form, kernel, torch.float32)), reference.standardize(hwio(kernel)))
    assert found <= (1e-3 if form == "plain" else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_standardizing_other_kernels(dtype: torch.dtype) -> None:
    """In at least float32: in float16 the eps, and the squares of kernels as small as these, would be zero."""
    kernel = (1e-3 * random((4, 64, 3, 3), 1)).to(dtype)
    found = ops.standardize(kernel)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert error(hwio(found), reference.standardize(hwio(kernel))) <= 1e-6
    assert ops.standardize(kernel, dtype=torch.float16).dtype == torch.float16
    assert error(hwio(ops.standardize(kernel, 1e-3)), reference.standardize(hwio(kernel), eps=1e-3)) <= 1e-6


def test_eps_is_the_released_codes() -> None:
    """A kernel so small that 1e-8, other programs' eps, would be off by a third."""
    kernel = 1e-4 * random((4, 16, 1, 1), 1)
    assert error(hwio(ops.standardize(kernel)), reference.standardize(hwio(kernel))) <= 1e-6
    assert error(hwio(ops.standardize(kernel)), reference.standardize(hwio(kernel), eps=1e-8)) > 0.1


# ---- convolutions ----


def exact_gradients(x: Tensor, kernel: Tensor, stride: int, padding: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of `F.conv2d`'s two arguments, in float64, which torch computes without oneDNN."""
    leaves = [leaf.detach().double().contiguous().requires_grad_() for leaf in (x, kernel)]
    y = torch.nn.functional.conv2d(*leaves, None, stride, padding)
    return torch.autograd.grad(y, leaves, grad.double())  # pyright: ignore


def distance(found: Tensor, expected: Tensor) -> float:
    return error(found.detach().double().numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "stride", "h", "w"),
    [(1, 1, 2, 2), (1, 1, 9, 9), (1, 2, 5, 4), (1, 2, 16, 9), (7, 2, 4, 4), (3, 1, 9, 9), (3, 1, 4, 3), (3, 2, 7, 8)]
    + [(3, stride, h, w) for stride in (1, 2) for h in (1, 2) for w in (1, 2)],
)
def test_conv2d(size: int, stride: int, h: int, w: int, dtype: torch.dtype) -> None:
    x = channels_last(random((3, 24, h, w), 1, dtype)).requires_grad_()
    kernel = channels_last(random((40, 24, size, size), 2, dtype)).requires_grad_()
    y = ops.conv2d(x, kernel, stride, size // 2)
    # A few sums in bfloat16 are sums of rounded parts: the bound is for at most two roundings.
    bound = 5e-3 if dtype == torch.bfloat16 else 1e-6  # 4.1e-3 seen without AVX-512: one rounding to bfloat16 is 3.9e-3
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert error(nhwc(y), reference.conv2d(nhwc(x), hwio(kernel), stride, size // 2)) <= bound
    grad = random(tuple(y.shape), 3, dtype)
    gradients = torch.autograd.grad(y, (x, kernel), grad)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last), "adding it to others would be slow"
    for found, expected in zip(gradients, exact_gradients(x, kernel, stride, size // 2, grad), strict=True):
        assert found.dtype == dtype and distance(found, expected) <= bound
    # Where a gradient has no use it is not computed, and the other one is the same.
    for i, leaf in enumerate((x, kernel)):
        arguments = [each if each is leaf else each.detach() for each in (x, kernel)]
        (alone,) = torch.autograd.grad(ops.conv2d(*arguments, stride, size // 2), leaf, grad)
        assert torch.equal(alone, gradients[i])


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_conv2d_of_any_geometry(size: int, stride: int, padding: int) -> None:
    """Also those that the network has no use for."""
    for h, w in ((5, 6), (1, 1), (2, 1), (9, 11)):
        if min(h, w) + 2 * padding < size:
            continue
        x = channels_last(random((2, 4, h, w), 1)).requires_grad_()
        kernel = channels_last(random((6, 4, size, size), 2)).requires_grad_()
        y = ops.conv2d(x, kernel, stride, padding)
        assert error(nhwc(y), reference.conv2d(nhwc(x), hwio(kernel), stride, padding)) <= 1e-6
        grad = random(tuple(y.shape), 3)
        gradients = torch.autograd.grad(y, (x, kernel), grad)
        for found, expected in zip(gradients, exact_gradients(x, kernel, stride, padding, grad), strict=True):
            assert distance(found, expected) <= 1e-6


@pytest.mark.parametrize("fast", ["0", "1"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_narrow_maps(
    dtype: torch.dtype, memory_format: torch.memory_format, fast: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One column and a stride: there oneDNN's own gradient of a bfloat16 kernel is anything, NaN too, depending on the height."""
    monkeypatch.setenv("BIT_NATIVE", fast)
    for size, stride, channels in ((3, 2, 16), (7, 2, 3), (3, 3, 16)):
        for h in (1, 2, 3, 4, 5, 6, 15, 20, 50):
            for w in (1, 2):
                x = random((2, channels, h, w), 1, dtype).contiguous(memory_format=memory_format).requires_grad_()
                kernel = random((64, channels, size, size), 2, dtype).contiguous(memory_format=memory_format)
                kernel.requires_grad_()
                y = ops.conv2d(x, kernel, stride, size // 2)
                assert y.is_contiguous(memory_format=memory_format)
                grad = random(tuple(y.shape), 3, dtype).contiguous(memory_format=memory_format)
                gradients = torch.autograd.grad(y, (x, kernel), grad)
                for found, expected in zip(gradients, exact_gradients(x, kernel, stride, size // 2, grad), strict=True):
                    assert distance(found, expected) <= (1e-6 if dtype == torch.float32 else 5e-3), (size, stride, h, w)


def test_gradients_of_narrow_maps_under_autocast() -> None:
    x, kernel = random((2, 16, 20, 1), 1).requires_grad_(), random((16, 16, 3, 3), 2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d(x, kernel, 2, 1)
    grad = random(tuple(y.shape), 3, torch.bfloat16)
    found = torch.autograd.grad(y, (x, kernel), grad)
    for one, other in zip(found, exact_gradients(x, kernel, 2, 1, grad), strict=True):
        assert distance(one, other) <= 1e-2


def test_whole_numbers_are_no_images() -> None:
    with pytest.raises(ConfigError, match=r"not torch\.uint8: \(images\.float\(\) - 127\.5\)"):
        ops.conv2d(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), random((4, 3, 3, 3), 1), 1, 1)


def test_conv2d_under_autocast() -> None:
    x = channels_last(random((2, 8, 2, 2), 1)).requires_grad_()
    kernel = channels_last(random((8, 8, 3, 3), 2)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d(x, kernel, 1, 1)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


# ---- repeatability, and where the plain form takes over ----


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    x, weight, bias, grad = leaves((5, 128, 9, 7), dtype)
    kernel = random((96, 40, 3, 3), 1).requires_grad_()
    before = torch.get_num_threads()

    def everything() -> list[Tensor]:
        for leaf in (x, weight, bias, kernel):
            leaf.grad = None
        y, k = native.group_norm_relu(x, 32, weight, bias, 1e-5), native.standardize(kernel, 1e-10, dtype)
        y.backward(grad)
        k.backward(random(tuple(kernel.shape), 2, dtype))
        return [y.detach(), k.detach(), *(leaf.grad for leaf in (x, weight, bias, kernel))]

    try:
        first = everything()
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))
    finally:
        torch.set_num_threads(before)


@needs_native
def test_what_the_kernels_leave_to_torch() -> None:
    x, weight, bias, _ = leaves((2, 64, 4, 4), torch.float32)
    assert native.takes_map(x, 32, weight, bias)
    assert not native.takes_map(x.double(), 32, weight.double(), bias.double())
    assert not native.takes_map(x.half(), 32, weight, bias)
    assert not native.takes_map(x.bfloat16(), 32, weight.bfloat16(), bias.bfloat16())
    assert not native.takes_map(x.contiguous(), 32, weight, bias)
    assert not native.takes_map(x[:, :, ::2], 32, weight, bias)
    assert ops.group_norm_relu(x.to("meta"), 32, weight.to("meta"), bias.to("meta")).is_meta
    kernel = random((4, 64, 3, 3), 1)
    assert native.takes_kernel(kernel, torch.bfloat16)
    assert not native.takes_kernel(kernel, torch.float16)
    assert not native.takes_kernel(kernel.double(), torch.float64)
    assert not native.takes_kernel(kernel[:, ::2], torch.float32)
    assert ops.standardize(kernel.double()).dtype == torch.float64


def everything(x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """All operations in a row, on channels_last maps of 4x4 and 2x2 pixels: every fast form, each parameter twice."""
    y = ops.conv2d(x, ops.standardize(kernel, dtype=x.dtype), 1, 1)
    y = ops.group_norm_relu(y, 32, weight, bias)
    y = ops.conv2d(y, ops.standardize(kernel[:, :, 1:2, 1:2].contiguous(), dtype=x.dtype), 2, 0)
    y = ops.conv2d(y, ops.standardize(kernel, dtype=x.dtype), 1, 1)
    return ops.pool(ops.group_norm_relu(y, 32, weight, bias))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, kernel = channels_last(random((3, 64, 4, 4), 1)), channels_last(random((64, 64, 3, 3), 2))
    x, kernel, weight, bias = (t.to(dtype) for t in (x, kernel, 1 + 0.1 * random((64,), 3), random((64,), 4)))
    return x, kernel, weight, bias


def test_second_derivatives() -> None:
    """A penalty on the size of a gradient, its gradient in every argument, against float64 (where torch does all of it)."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [leaf.requires_grad_() for leaf in inputs(dtype)]
        first = torch.autograd.grad(everything(*leaves).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().mean() for g in first), leaves)  # pyright: ignore
        results.append([*first, *second])
    for found, expected in zip(*results, strict=True):
        assert distance(found, expected.detach()) <= 2e-5


@torch_scripts_itself
def test_directional_derivatives_in_one_forward_pass() -> None:
    """In turn of each argument alone: all of them must be looked at."""
    for moved in range(4):
        tangents = []
        for dtype in (torch.float32, torch.float64):
            with forward_ad.dual_level():
                arguments = list(inputs(dtype))
                direction = random(tuple(arguments[moved].shape), 9).to(dtype)
                arguments[moved] = forward_ad.make_dual(arguments[moved], direction)
                tangent = forward_ad.unpack_dual(everything(*arguments)).tangent
                assert tangent is not None
                tangents.append(tangent)
        assert distance(tangents[0], tangents[1]) <= 1e-5


@torch_scripts_itself
def test_function_transforms() -> None:
    x, *rest = inputs()
    expected = torch.autograd.functional.jacobian(lambda x: everything(x, *rest)[0], x)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.allclose(jacobian(lambda x: everything(x, *rest)[0])(x), expected, rtol=1e-3, atol=1e-5)
    at_once = torch.autograd.functional.jacobian(lambda x: everything(x, *rest)[0], x, vectorize=True)
    assert torch.allclose(at_once, expected, rtol=1e-3, atol=1e-5)
    each = torch.func.vmap(lambda x: everything(x[None], *rest)[0])(x)
    assert torch.allclose(each, everything(x, *rest), rtol=1e-4, atol=1e-5)


def test_tracers_see_every_operation() -> None:
    """What a tracer cannot see it would take for a constant: the traced function must follow another input."""
    x, *rest = inputs()
    other = channels_last(random(tuple(x.shape), 7))
    expected = everything(other, *rest)
    for traced in (
        make_fx(lambda x: everything(x, *rest))(x),
        torch.compile(lambda x: everything(x, *rest), backend="aot_eager", fullgraph=True),
    ):
        assert torch.allclose(traced(other), expected, rtol=1e-4, atol=1e-5)
    with FlopCounterMode(display=False) as counter:
        everything(x, *rest)
    assert counter.get_total_flops() == 2 * 3 * 64 * 64 * (9 * 16 + 4 + 9 * 4)


@needs_native
def test_other_defaults_than_torchs_change_nothing() -> None:
    def results() -> list[Tensor]:
        leaves = [leaf.requires_grad_() for leaf in arguments]
        y = everything(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad)]

    arguments, grad = inputs(), random((3, 64), 5)
    expected = results()
    try:
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            torch.set_default_dtype(dtype)
            assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_no_image_at_all(memory_format: torch.memory_format) -> None:
    _, *leaves = [leaf.requires_grad_() for leaf in inputs()]
    x = torch.zeros(0, 64, 4, 4).contiguous(memory_format=memory_format).requires_grad_()
    y = everything(x, *leaves)
    assert y.shape == (0, 64) and y.dtype == torch.float32
    y.sum().backward()
    assert x.grad.shape == x.shape and not any(leaf.grad.any() for leaf in leaves)


# ---- pooling ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pool(dtype: torch.dtype) -> None:
    x = random((2, 5, 37, 3), 1, dtype)
    exact = x.double()
    mean, most = exact.mean((2, 3)), exact.amax((2, 3))
    for kind, expected in {
        "avg": mean,
        "max": most,
        "avgmax": (mean + most) / 2,
        "catavgmax": torch.cat([mean, most], 1),
    }.items():
        found = ops.pool(x, kind)
        # Not rounded to the map's dtype, which would be off by a thousand times as much.
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-7)


@needs_native
def test_unusual_gradients() -> None:
    """Gradients that arrive in another memory format, or expanded from one number."""
    x, weight, bias, grad = leaves((2, 64, 4, 4), torch.float32)
    native.group_norm_relu(x, 32, weight, bias, 1e-5).backward(grad)
    expected, x.grad = x.grad, None
    native.group_norm_relu(x, 32, weight, bias, 1e-5).backward(grad.contiguous())
    assert torch.equal(x.grad, expected)
    x.grad = None
    native.group_norm_relu(x, 32, weight, bias, 1e-5).sum().backward()
    expanded, x.grad = x.grad, None
    native.group_norm_relu(x, 32, weight, bias, 1e-5).backward(torch.ones_like(x))
    assert torch.equal(x.grad, expanded)


# ---- memory ----


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_is_kept() -> None:
    """Page faults of 64 MB tensors allocated, filled and freed over and over, in a process of their own."""
    code = (
        "import resource, sys, torch; from bigtransfer.ops.memory import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "for _ in range(16): torch.ones(2**24)\n"  # the heap grows up to five times before a block fits, seen in trials
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(8): torch.ones(2**24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = [
        int(subprocess.run([sys.executable, "-c", code, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("keep", "default")
    ]
    assert faults[0] < 1000 and faults[0] * 10 < faults[1]


# ---- getting the library ----


@pytest.fixture
def fresh_library() -> Any:
    native.library.cache_clear()
    yield
    native.library.cache_clear()


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler whose work is done already."""
    kernels = native.library()
    assert kernels is not None
    shim = tmp_path / "cc"
    shim.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 0\nwhile [ "$1" != -o ]; do shift; done\ncp "{kernels._name}" "$2"\n'
    )
    shim.chmod(0o755)
    monkeypatch.setenv("CC", str(shim))
    native.library.cache_clear()


def test_without_a_compiler_the_plain_forms_do(
    fresh_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("BIT_CACHE", str(tmp_path))
    x, weight, bias, _ = leaves((2, 64, 4, 4), torch.float32)
    with caplog.at_level(logging.INFO, logger="bigtransfer.ops.native"):
        for _ in range(2):
            assert torch.equal(ops.group_norm_relu(x, 32, weight, bias), plain.group_norm_relu(x, 32, weight, bias))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "no-such-compiler" in caplog.text


def test_a_compiler_that_fails_leaves_nothing_behind(
    fresh_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such flag" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO, logger="bigtransfer.ops.native"):
        assert native.library() is None
    assert "no such flag" in caplog.text
    assert not list(tmp_path.rglob("*.so"))


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_NATIVE", "0")
    x, weight, bias, _ = leaves((2, 64, 2, 2), torch.float32)
    assert "NativeGroupNorm" in str(ops.group_norm_relu(x, 32, weight, bias).grad_fn.next_functions)
    assert "Convolution" in str(ops.conv2d(x, random((8, 64, 3, 3), 1), 1, 1).grad_fn)
    assert "_Standardize" not in str(ops.standardize(random((8, 64, 3, 3), 1).requires_grad_()).grad_fn)


@needs_native
def test_compiled_once(fresh_library: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path))
    times = []
    for _ in range(2):
        native.library.cache_clear()
        assert native.library()
        (built,) = (tmp_path / "native").iterdir()
        times.append(built.stat().st_mtime_ns)
    assert times[0] == times[1]


@needs_native
@pytest.mark.usefixtures("fresh_library", "quick_compiler")
def test_a_damaged_library_is_never_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cut short, empty, or with other bytes: to run it could end the process. In its place comes a new one."""
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    assert native.library()
    (built,) = (tmp_path / "cache" / "native").iterdir()
    good = built.read_bytes()
    opened = []
    real = native.ctypes.CDLL

    def spied(name: str | None) -> object:
        opened.append(Path(name).read_bytes() if name and str(name).endswith(".so") else b"")
        return real(name)

    monkeypatch.setattr(native.ctypes, "CDLL", spied)
    for damaged in (good[: len(good) // 2], b"", good[:-1] + bytes([good[-1] ^ 1])):
        built.unlink()  # or this process, which has it loaded, would see the new bytes
        built.write_bytes(damaged)
        native.library.cache_clear()
        assert native.library()
        assert damaged not in opened[:1] and good in opened
        assert built.read_bytes() == good
        opened.clear()


@needs_native
@pytest.mark.parametrize("where", ["/proc/x", "a-file/folder", "read-only"])
@pytest.mark.usefixtures("fresh_library", "quick_compiler")
def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / where))
    if where == "read-only":  # which a superuser would not notice
        monkeypatch.setattr(native, "atomic_write", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
    with caplog.at_level(logging.INFO, logger="bigtransfer.ops.native"):
        for _ in range(2):
            assert native.library() is not None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    kernel = random((4, 64, 3, 3), 1)
    assert error(hwio(ops.standardize(kernel)), reference.standardize(hwio(kernel))) <= 1e-6


@pytest.mark.parametrize("compiler", ["gcc 'x", " ", "/dev/null", "false", "true", "sh -c 'exit 3'"])
def test_a_bad_compiler_leaves_the_plain_forms(
    fresh_library: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    compiler: str,
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("BIT_CACHE", str(tmp_path))
    x, weight, bias, _ = leaves((2, 64, 4, 4), torch.float32)
    with caplog.at_level(logging.INFO, logger="bigtransfer.ops.native"):
        for _ in range(2):
            assert torch.equal(ops.group_norm_relu(x, 32, weight, bias), plain.group_norm_relu(x, 32, weight, bias))
    assert len(caplog.records) == 1


def test_without_a_home_the_plain_forms_do(fresh_library: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.settings, "cache_folder", lambda: Path("~nobody-of-that-name").expanduser())
    assert native.library() is None
    assert ops.standardize(random((4, 8, 3, 3), 1)).shape == (4, 8, 3, 3)


@needs_native
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of loaded libraries on this system")
def test_no_second_openmp_runtime_comes_in() -> None:
    code = (
        "from bigtransfer.ops import native; import pathlib; assert native.library();"
        "names = {line.split()[-1] for line in pathlib.Path('/proc/self/maps').read_text().splitlines()};"
        "print(sum('libgomp' in name or 'libomp' in name or 'libiomp' in name for name in names))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"


def test_the_pixels_of_a_small_map_are_summed_up_in_float32() -> None:
    """256 + 1 + 1 + 1: in bfloat16, whose numbers above 256 are 2 apart, each single 1 would be lost."""
    x = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    kernel = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    convolution._AllToAll.apply(x, kernel, 1).backward(
        torch.tensor([[[[256.0, 1.0], [1.0, 1.0]]]], dtype=torch.bfloat16)
    )
    assert kernel.grad is not None and kernel.grad[0, 0, 1, 1].item() == 260


# --- What a device can do at most


def test_a_peak_that_a_training_was_faster_than_is_measured_again() -> None:
    measured = iter([100.0, 80.0, 150.0, 90.0])
    found = peak.Utilisation(lambda: next(measured))
    assert found.share(50.0) == 0.5 and found.peak == 100
    assert found.share(120.0) == 0.8, "the first was better than the second, and the third than both"
    assert found.share(120.0) == 0.8 and next(measured) == 90


def test_a_peak_that_stays_too_low_is_not_measured_for_ever() -> None:
    calls: list[int] = []
    found = peak.Utilisation(lambda: calls.append(0) or 100.0)
    assert [found.share(120.0) for _ in range(9)] == [1.2] * 9 and len(calls) == 1 + peak._AGAIN


@pytest.mark.parametrize(
    ("threads", "its", "other"), [(1, "thread_time", "perf_counter"), (2, "perf_counter", "thread_time")]
)
def test_by_which_clock_a_peak_is_measured(threads: int, its: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time of the one thread, which other programs are not in; by a clock where several wait for each other."""
    ticks = itertools.count()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(time, its, lambda: 0.02 * next(ticks))
    monkeypatch.setattr(time, other, lambda: pytest.fail(other))
    assert peak.matmul_flops(torch.device("cpu"), torch.float32) == pytest.approx(2 * 1024**3 / 0.02)
