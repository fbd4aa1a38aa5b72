"""The GPU kernels against float64 NumPy: on a CUDA device where there is one, else in Triton's interpreter on CPU tensors.

The interpreter runs the same source with NumPy. What it cannot show: what the compiler makes of it, races, speed.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from bigtransfer import model, ops
from bigtransfer.ops import plain
from tests.reference import ops as reference
from tests.reference.ops import Array

pytest.importorskip("triton", reason="Triton, which torch brings on Linux, is not here")

from bigtransfer.ops import triton as kernels

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
without_gpu = pytest.mark.skipif(CUDA, reason="the kernels are interpreted only where there is no CUDA device")
DTYPES = [torch.float32, torch.bfloat16]

# Largest relative errors in the Euclidean norm: some twice of what was seen in the interpreter, which cuts numbers off to bfloat16 where
# devices round to the nearest (1.7e-3 in the mean); devices' 1 / sqrt is only good to 2e-7. Of the norm's parameters: relative to the
# size of what their gradients are sums of.
BOUND = {torch.float32: 1e-6 if CUDA else 4e-7, torch.bfloat16: 2.2e-3 if CUDA else 4.2e-3}
SUMS = 3e-6


@pytest.fixture(autouse=True)
def exact_convolutions() -> Iterator[None]:
    """Of float32, which cuDNN otherwise rounds to 10 bits."""
    with warnings.catch_warnings(action="ignore"):  # some releases would rather have another name for it
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
    yield
    with warnings.catch_warnings(action="ignore"):
        torch.backends.cudnn.allow_tf32 = before


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def exact(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


def nhwc(x: Tensor | None) -> Array:
    assert x is not None
    return exact(x).transpose(0, 2, 3, 1)


def hwio(kernel: Tensor | None) -> Array:
    assert kernel is not None
    return exact(kernel).transpose(2, 3, 1, 0)


def error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def leaves(shape: tuple[int, ...], dtype: torch.dtype, shift: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias (all wanting gradients) and a gradient for the result."""
    x = channels_last((random(shape, 1) * 1.5 + shift).to(dtype)).requires_grad_()
    weight, bias = (random((shape[1],), seed).requires_grad_() for seed in (2, 3))
    return x, weight, bias, channels_last(random(shape, 4, dtype))


def check(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor, groups: int = 32, bound: float | None = None) -> None:
    """Result and gradients of the kernels against the reference."""
    bound = BOUND[x.dtype] if bound is None else bound
    assert kernels.takes_map(x, groups, weight, bias)
    y = kernels.group_norm_relu(x, groups, weight, bias, 1e-5)
    assert y.dtype == x.dtype and y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)
    y.backward(grad)
    assert x.grad is not None and weight.grad is not None and bias.grad is not None
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    gamma, beta = exact(weight), exact(bias)
    assert error(nhwc(y), reference.group_norm_relu(nhwc(x), gamma, beta, groups)) <= bound
    dx, dgamma, dbeta = reference.group_norm_relu_backward(nhwc(x), gamma, beta, nhwc(grad), groups)
    assert error(nhwc(x.grad), dx) <= bound
    size = np.linalg.norm(exact(grad))
    assert np.linalg.norm(exact(weight.grad) - dgamma) <= SUMS * size
    assert np.linalg.norm(exact(bias.grad) - dbeta) <= SUMS * size


# ---- GroupNorm + ReLU ----

SHAPES = [
    (2, 32, 5, 3),  # one channel a group
    (1, 96, 1, 1),  # three numbers a group
    (3, 64, 9, 7),
    (2, 192, 7, 9),  # the x3 networks' groups of 6, 24 and 192 channels
    (1, 768, 3, 3),
    (1, 6144, 1, 2),
    (3, 256, 7, 7),
    (5, 2048, 2, 2),
    (1, 8192, 3, 3),  # R152x4's last norm
    (2, 64, 33, 31),  # a program in one piece
    (1, 64, 47, 53),  # in parts
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_group_norm_relu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(*leaves(shape, dtype))


@pytest.fixture
def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every map is too large for one program, so that the kernels for large maps can be tried with small ones."""
    for name in ("_WHOLE_FORWARD", "_WHOLE_BACKWARD"):
        monkeypatch.setattr(kernels, name, 0)
    monkeypatch.setattr(kernels, "_TILE", 512)
    kernels._plan.cache_clear()
    yield
    kernels._plan.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 32, 5, 3), (2, 64, 9, 7), (1, 192, 5, 3), (1, 96, 1, 1), (1, 512, 3, 3)])
@pytest.mark.usefixtures("in_small_parts")
def test_maps_in_parts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert kernels._plan(shape[2] * shape[3], shape[1], 32, 0).parts > 0
    check(*leaves(shape, dtype))


@pytest.mark.parametrize(("tiles", "parts"), [(1, 8), (3, 3), (5, 2), (100, 1)])
@pytest.mark.usefixtures("in_small_parts")
def test_any_number_of_parts(tiles: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as tiles, a last one with fewer pixels than the others, and one program that goes round."""
    monkeypatch.setattr(kernels, "_TILES", tiles)
    assert kernels._plan(63, 64, 32, 0).parts == parts
    check(*leaves((2, 64, 9, 7), torch.float32))


@pytest.mark.parametrize("whole", [kernels._WHOLE_FORWARD, kernels._WHOLE_BACKWARD])
def test_maps_of_any_size_are_cut_within_bounds(whole: int) -> None:
    """All channels and pixels are covered, by tiles that registers hold; sums of parts are few."""
    for channels in (32, 64, 96, 192, 256, 768, 2048, 6144, 8192, 32 * 2048):
        for pixels in (1, 2, 4, 9, 49, 196, 225, 784, 3136, 12544, 14400, 10**6):
            plan = kernels._plan(pixels, channels, 32, whole)
            assert plan.lanes >= plan.at_once * plan.width and plan.blocks * plan.at_once >= 32
            if plan.parts:
                assert (plan.parts - 1) * plan.chunk < pixels <= plan.parts * plan.chunk
                assert plan.chunk % plan.rows == 0 and plan.rows * plan.lanes <= 4096
                assert plan.parts <= 64 and plan.parts * plan.lanes <= 8192
            else:
                assert plan.rows >= pixels and plan.rows * plan.lanes <= whole


@pytest.mark.parametrize(("channels", "groups"), [(48, 3), (7, 7), (30, 10), (512, 1), (1030, 2), (60, 20), (5, 1)])
@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_other_widths_and_groups(channels: int, groups: int, size: tuple[int, int]) -> None:
    if channels == groups and size == (1, 1):  # every group is one number: nothing is left to normalize
        return
    check(*leaves((2, channels, *size), torch.float32), groups=groups)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_a_large_mean_does_not_drown_a_small_spread(spread: float, whole: bool, request: pytest.FixtureRequest) -> None:
    """1000 plus or minus 1: mean squares would differ by the last bit of a float32. (bfloat16 has no such numbers.)"""
    if not whole:
        request.getfixturevalue("in_small_parts")
    _, weight, bias, grad = leaves((2, 64, 9, 9), torch.float32)
    x = channels_last(1000 + spread * random((2, 64, 9, 9), 1)).requires_grad_()
    check(x, weight, bias, grad, bound=1e-6)
    with torch.no_grad():  # groups far apart
        x += channels_last(1000 * random((2, 32, 1, 1), 9).repeat_interleave(2, 1))
    x.grad = weight.grad = bias.grad = None
    check(x, weight, bias, grad, bound=1e-6)


@pytest.mark.parametrize("whole", [True, False])
def test_one_number_far_from_all_others(whole: bool, request: pytest.FixtureRequest) -> None:
    """The first, which the others are taken relative to."""
    if not whole:
        request.getfixturevalue("in_small_parts")
    x, weight, bias, grad = leaves((1, 64, 9, 9), torch.float32)
    with torch.no_grad():
        x[:, ::2, 0, 0] = 1000.0
    check(x, weight, bias, grad, bound=1e-5)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", [0.0, 3.0, -1000.0])
def test_constant_input(number: float, dtype: torch.dtype, whole: bool, request: pytest.FixtureRequest) -> None:
    """Variance zero: eps decides, the result is ReLU(bias) and no gradient is infinite."""
    if not whole:
        request.getfixturevalue("in_small_parts")
    _, weight, bias, grad = leaves((1, 64, 4, 4), dtype)
    x = channels_last(torch.full((1, 64, 4, 4), number, device=DEVICE, dtype=dtype)).requires_grad_()
    y = kernels.group_norm_relu(x, 32, weight, bias, 1e-5)
    y.backward(grad)
    expected = bias.detach().relu()[None, :, None, None].expand_as(y)
    assert torch.allclose(y.float(), expected, rtol=8e-3 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    assert x.grad is not None and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter's NumPy
def test_nan_goes_where_torch_lets_it_go(
    bad: float, dtype: torch.dtype, whole: bool, request: pytest.FixtureRequest
) -> None:
    if not whole:
        request.getfixturevalue("in_small_parts")
    x, weight, bias, grad = leaves((2, 64, 3, 3), dtype)
    with torch.no_grad():
        x[1, 10, 2, 0] = bad
    results = []
    for form in (plain.group_norm_relu, kernels.group_norm_relu):
        x.grad = None
        y = form(x, 32, weight, bias, 1e-5)
        y.backward(grad)
        results.append((y.isnan(), x.grad.isnan()))  # pyright: ignore
    assert results[0][0].any() and not results[0][0][0].any()  # one group of one image
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_gradients_in_other_memory_formats() -> None:
    """NCHW, every second row of a larger map, and expanded from one number."""
    x, weight, bias, grad = leaves((2, 64, 4, 4), torch.float32)

    def gradients(grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(kernels.group_norm_relu(x, 32, weight, bias, 1e-5), (x, weight, bias), grad)

    expected = gradients(grad)
    larger = torch.zeros(2, 64, 8, 4, device=DEVICE)
    larger[:, :, ::2] = grad
    for same in (grad.contiguous(), larger[:, :, ::2]):
        assert all(torch.equal(a, b) for a, b in zip(gradients(same), expected, strict=True))
    one = torch.ones((), device=DEVICE).expand(2, 64, 4, 4)
    for a, b in zip(gradients(one), gradients(channels_last(one.contiguous())), strict=True):
        assert torch.equal(a, b)


def test_gradients_of_some_arguments_alone() -> None:
    x, weight, bias, grad = leaves((2, 64, 4, 4), torch.float32)
    together = torch.autograd.grad(kernels.group_norm_relu(x, 32, weight, bias, 1e-5), (x, weight, bias), grad)
    for i in range(3):
        arguments = [each if j == i else each.detach() for j, each in enumerate((x, weight, bias))]
        y = kernels.group_norm_relu(arguments[0], 32, arguments[1], arguments[2], 1e-5)
        (alone,) = torch.autograd.grad(y, arguments[i], grad)
        assert torch.equal(alone, together[i])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: torch.dtype, whole: bool, request: pytest.FixtureRequest) -> None:
    if not whole:
        request.getfixturevalue("in_small_parts")
    x, weight, bias, grad = leaves((2, 64, 9, 7), dtype)
    kernel = random((16, 40, 3, 3), 1).requires_grad_()

    def everything() -> list[Tensor]:
        y = kernels.group_norm_relu(x, 32, weight, bias, 1e-5)
        k = kernels.standardize(kernel, 1e-10, dtype)
        of_norm = torch.autograd.grad(y, (x, weight, bias), grad)
        of_kernel = torch.autograd.grad(k, kernel, random((16, 40, 3, 3), 2, dtype))
        return [y.detach(), k.detach(), *of_norm, *of_kernel]

    first = everything()
    for _ in range(20 if CUDA else 1):
        assert all(torch.equal(a, b) for a, b in zip(first, everything(), strict=True))


@pytest.mark.parametrize("whole", [True, False])
def test_each_image_is_normalized_as_if_alone(whole: bool, request: pytest.FixtureRequest) -> None:
    """Bit for bit, also where an image is divided among programs."""
    if not whole:
        request.getfixturevalue("in_small_parts")
    x, weight, bias, _ = leaves((5, 64, 7, 7), torch.float32)
    together = kernels.group_norm_relu(x, 32, weight, bias, 1e-5)
    for i in range(5):
        assert torch.equal(kernels.group_norm_relu(x[i : i + 1], 32, weight, bias, 1e-5), together[i : i + 1])


def test_nothing_but_the_input_and_the_statistics_is_kept() -> None:
    kept = []
    x, weight, bias, _ = leaves((2, 64, 8, 8), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        kernels.group_norm_relu(x, 32, weight, bias, 1e-5)
    others = [t for t in kept if t.data_ptr() != x.data_ptr()]
    assert len(others) < len(kept) and max(t.numel() for t in others) <= 2 * 32 * 3


# ---- weight standardization ----


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (16, 1, 1, 1), (1, 64, 1, 1), (34, 37, 3, 3), (3, 2048, 3, 3)])
def test_standardize(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    scale = random((shape[0], 1, 1, 1), 3).exp() * 0.02
    kernel = ((random(shape, 1) + 2) * scale).contiguous(memory_format=memory_format).requires_grad_()
    grad = random(shape, 2, dtype)
    assert kernels.takes_kernel(kernel, dtype)
    out = kernels.standardize(kernel, 1e-10, dtype)
    assert out.dtype == dtype and out.is_contiguous(memory_format=memory_format)
    out.backward(grad)
    expected = reference.standardize(hwio(kernel))
    slope = reference.standardize_backward(hwio(kernel), hwio(grad))
    if kernel[0].numel() == 1:  # one number is its own mean: nothing is left
        assert not out.any() and np.allclose(hwio(kernel.grad), 0, atol=1e-6 * 1e5)
        return
    assert error(hwio(out), expected) <= BOUND[dtype]
    assert error(hwio(kernel.grad), slope) <= BOUND[torch.float32]


def test_standardize_far_from_zero() -> None:
    kernel = 100 + 0.01 * random((4, 64, 3, 3), 1)
    assert error(hwio(kernels.standardize(kernel, 1e-10, torch.float32)), reference.standardize(hwio(kernel))) <= 1e-5


MANY = [(16, 8, 1, 1), (5, 3, 7, 7), (8, 16, 3, 3), (4, 300, 3, 3), (1, 1, 1, 1)]


def many(memory_format: torch.memory_format = torch.channels_last, shapes: Sequence[Any] = MANY) -> list[Tensor]:
    return [
        (0.05 + 0.02 * random(shape, seed)).contiguous(memory_format=memory_format).requires_grad_()
        for seed, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [MANY, [(16, 32, 1, 1), (32, 16, 3, 3)]])  # the latter in pieces of 16 numbers
def test_many_kernels_in_one_launch(
    shapes: Sequence[Any], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Bit for bit as one by one, and so are the gradients, whichever are wanted and however they come."""
    together = many(memory_format, shapes)
    assert kernels.takes_kernels(together, dtype)
    results = kernels.standardize_all(together, 1e-10, dtype)
    alone = [kernels.standardize(kernel, 1e-10, dtype) for kernel in together]
    for one, other, kernel in zip(results, alone, together, strict=True):
        assert torch.equal(one, other) and one.dtype == dtype and one.is_contiguous(memory_format=memory_format)
        assert one.shape == kernel.shape
    grads = [random(tuple(kernel.shape), 9, dtype).contiguous() for kernel in together]
    expected = torch.autograd.grad(alone, together, grads)
    found = torch.autograd.grad(results, together, grads, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(found.stride() == kernel.stride() for found, kernel in zip(found, together, strict=True))
    (second,) = torch.autograd.grad(results[1], together[1], grads[1], retain_graph=True)  # no gradients of the others
    assert torch.equal(second, expected[1])
    assert torch.autograd.grad(results[1], together[0], grads[1], allow_unused=True) == (None,)


def test_many_kernels_some_of_them_frozen() -> None:
    together = many()
    together[0].requires_grad_(False)
    results = kernels.standardize_all(together, 1e-10, torch.float32)
    sum(result.square().sum() for result in results).backward()  # pyright: ignore
    assert together[0].grad is None and all(kernel.grad is not None for kernel in together[1:])


def test_second_derivatives_of_many_kernels() -> None:
    """Against float64, where torch does all of it."""
    found = []
    for dtype in (torch.float32, torch.float64):
        together = [kernel.detach().to(dtype).requires_grad_() for kernel in many()[:3]]
        if dtype == torch.float32:
            results = kernels.standardize_all(together, 1e-10, dtype)
        else:
            results = tuple(plain.standardize(kernel) for kernel in together)
        first = torch.autograd.grad(sum(r.pow(3).sum() for r in results), together, create_graph=True)  # pyright: ignore
        found.append([*first, *torch.autograd.grad(sum(g.square().mean() for g in first), together)])  # pyright: ignore
    for one, other in zip(*found, strict=True):
        assert error(exact(one), exact(other)) <= 2e-5


def test_where_kernels_lie_is_looked_up_anew_when_they_move() -> None:
    """The addresses of a network's kernels are kept between its calls."""
    for seed in range(4):
        together = [random(shape, 10 * seed + i) for i, shape in enumerate(MANY[:3])]
        for kernel, found in zip(together, kernels.standardize_all(together, 1e-10, torch.float32), strict=True):
            assert error(hwio(found), reference.standardize(hwio(kernel))) <= BOUND[torch.float32]


@pytest.mark.usefixtures("through_the_door")
def test_standardized_ahead() -> None:
    """For these kernels, this dtype and this eps only, and only within."""
    together = many()[:3]
    other = random((4, 4, 3, 3), 7)
    with ops.standardized_ahead(together, torch.float32):
        for kernel in together:
            assert "_StandardizeAll" in str(ops.standardize(kernel).grad_fn)
            assert ops.standardize(kernel) is ops.standardize(kernel, dtype=torch.float32)
            assert error(hwio(ops.standardize(kernel)), reference.standardize(hwio(kernel))) <= BOUND[torch.float32]
            coarse = ops.standardize(kernel, 1e-2)
            assert error(hwio(coarse), reference.standardize(hwio(kernel), eps=1e-2)) <= BOUND[torch.float32]
            assert ops.standardize(kernel, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert error(hwio(ops.standardize(other)), reference.standardize(hwio(other))) <= BOUND[torch.float32]
        with ops.standardized_ahead([other], torch.float32):
            assert ops.standardize(other) is ops.standardize(other)
            assert ops.standardize(together[0]) is ops.standardize(together[0])
    assert "_StandardizeAll" not in str(ops.standardize(together[0]).grad_fn)
    with ops.standardized_ahead([], torch.float32), ops.standardized_ahead([other.double()], torch.float64):
        assert ops.standardize(other.double()).dtype == torch.float64


def test_eps_reaches_the_kernels() -> None:
    """A kernel so small that 1e-8, other programs' eps, would be off by a third."""
    kernel = 1e-4 * random((4, 16, 1, 1), 1)
    for eps in (1e-10, 1e-8):
        found = kernels.standardize(kernel, eps, torch.float32)
        assert error(hwio(found), reference.standardize(hwio(kernel), eps=eps)) <= 1e-6
    x, weight, bias, _ = leaves((1, 64, 3, 3), torch.float32)
    y = kernels.group_norm_relu(x, 32, weight, bias, 0.5)
    assert error(nhwc(y), reference.group_norm_relu(nhwc(x), exact(weight), exact(bias), eps=0.5)) <= 1e-6


# ---- the door ----


@pytest.fixture
def through_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ops` takes these kernels: on a CUDA device of itself, elsewhere for CPU tensors."""
    if not CUDA:
        monkeypatch.setattr(ops, "_kernels", lambda *tensors: kernels if ops._eager("cpu", *tensors) else None)


def everything(x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """All operations in a row, each parameter twice."""
    y = ops.conv2d(x, ops.standardize(kernel, dtype=x.dtype), 1, 1)
    y = ops.group_norm_relu(y, 32, weight, bias)
    y = ops.conv2d(y, ops.standardize(kernel, dtype=x.dtype), 2, 1)
    return ops.pool(ops.group_norm_relu(y, 32, weight, bias))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, kernel = channels_last(random((3, 64, 4, 4), 1)), channels_last(random((64, 64, 3, 3), 2))
    x, kernel, weight, bias = (t.to(dtype) for t in (x, kernel, 1 + 0.1 * random((64,), 3), random((64,), 4)))
    return x, kernel, weight, bias


def names(y: Tensor) -> set[str]:
    """Of all nodes of the graph behind it."""
    found, todo = set(), [y.grad_fn]
    while todo:
        if (node := todo.pop()) is not None:
            found.add(node.name())
            todo += [each for each, _ in node.next_functions]
    return found


@pytest.mark.usefixtures("through_the_door")
def test_the_door_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"_GroupNormReLUBackward", "_StandardizeBackward"}
    x, *rest = (leaf.requires_grad_() for leaf in inputs())
    assert taken <= names(everything(x, *rest))
    # float64, NCHW maps and what is switched off are torch's own.
    assert not taken & names(everything(*(leaf.requires_grad_() for leaf in inputs(torch.float64))))
    assert "_GroupNormReLUBackward" not in names(ops.group_norm_relu(x.contiguous(), 32, rest[1], rest[2]))
    monkeypatch.setenv("BIT_NATIVE", "0")
    assert not taken & names(everything(x, *rest))


@pytest.mark.usefixtures("through_the_door")
def test_what_the_kernels_leave_to_torch() -> None:
    x, weight, bias, _ = leaves((2, 64, 4, 4), torch.float32)
    assert kernels.takes_map(x, 32, weight, bias)
    assert not kernels.takes_map(x.half(), 32, weight, bias)
    assert not kernels.takes_map(x.bfloat16(), 32, weight.bfloat16(), bias.bfloat16())
    assert not kernels.takes_map(x.contiguous(), 32, weight, bias)
    assert not kernels.takes_map(x[:, :, ::2], 32, weight, bias)
    assert not kernels.takes_map(x, 3, weight, bias)
    assert not kernels.takes_map(x, 32, weight.to("meta"), bias)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert not kernels.takes_map(x, 32, weight, bias)
    kernel = random((4, 64, 3, 3), 1)
    assert not kernels.takes_kernel(kernel, torch.float16)
    assert not kernels.takes_kernel(kernel[:, ::2], torch.float32)
    nothing = channels_last(torch.zeros(0, 64, 4, 4, device=DEVICE)).requires_grad_()
    y = ops.group_norm_relu(nothing, 32, weight, bias)
    assert y.shape == nothing.shape
    y.sum().backward()
    assert nothing.grad is not None and weight.grad is not None and not weight.grad.any()


@pytest.mark.usefixtures("through_the_door")
def test_second_derivatives() -> None:
    """A penalty on the size of a gradient, its gradient in every argument, against float64 (where torch does all of it)."""
    results = []
    for dtype in (torch.float32, torch.float64):
        arguments = [leaf.requires_grad_() for leaf in inputs(dtype)]
        first = torch.autograd.grad(everything(*arguments).square().sum(), arguments, create_graph=True)
        second = torch.autograd.grad(sum(g.square().mean() for g in first), arguments)  # pyright: ignore
        results.append([*first, *second])
    for found, expected in zip(*results, strict=True):
        assert error(exact(found), exact(expected)) <= 2e-5


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # of torch's own
@pytest.mark.usefixtures("through_the_door")
def test_forward_mode_and_transforms_see_the_plain_form() -> None:
    x, *rest = (leaf[:1] if leaf.dim() == 4 and len(leaf) == 3 else leaf for leaf in inputs())
    wide = [each.double() for each in rest]
    expected = torch.autograd.functional.jacobian(lambda x: everything(x, *wide)[0, :2], x.double()).float()
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        assert torch.allclose(jacobian(lambda x: everything(x, *rest)[0, :2])(x), expected, rtol=1e-3, atol=1e-5)
    each = torch.func.vmap(lambda x: everything(x[None], *rest)[0])(x)
    assert torch.allclose(each, everything(x, *rest), rtol=1e-4, atol=1e-5)
    with forward_ad.dual_level():
        moved = forward_ad.make_dual(x, random((1, 64, 4, 4), 9))
        assert forward_ad.unpack_dual(everything(moved, *rest)).tangent is not None


@pytest.mark.usefixtures("through_the_door")
def test_a_residual_unit_and_its_gradients() -> None:
    """In float32 against float64, where torch does all of it."""
    torch.manual_seed(0)
    unit = model.PreActBottleneck(model.StdConv2d, model.GroupNormReLU, 32, 128, 2)
    unit = unit.to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore
    x = channels_last(random((2, 32, 9, 7), 1))
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        unit.to(dtype).zero_grad()
        y = unit(leaf)
        y.square().sum().backward()
        results.append([exact(y), exact(leaf.grad), *(exact(p.grad) for p in unit.parameters())])  # pyright: ignore
    for found, expected in zip(*results, strict=True):
        assert error(found, expected) <= 1e-5


def test_without_triton_the_plain_forms_do(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    ops._triton.cache_clear()
    monkeypatch.setitem(sys.modules, "bigtransfer.ops.triton", None)
    monkeypatch.delattr(ops, "triton", raising=False)
    with caplog.at_level(logging.INFO, logger="bigtransfer.ops"):
        assert ops._triton() is None and ops._triton() is None
    ops._triton.cache_clear()
    assert [record.levelname for record in caplog.records] == ["INFO"]


@without_gpu
def test_without_a_device_the_kernels_say_that_they_do_not_work(caplog: pytest.LogCaptureFixture) -> None:
    kernels.works.cache_clear()
    with caplog.at_level(logging.INFO, logger="bigtransfer.ops.triton"):
        assert not kernels.works() and not kernels.works()
    assert [record.levelname for record in caplog.records] == ["INFO"]


@without_gpu
def test_kernels_that_compute_nonsense_are_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them are tried, here with CPU tensors in place of the device's."""
    tensor, ones = torch.tensor, torch.ones
    monkeypatch.setattr(kernels.torch, "tensor", lambda data, device, **options: tensor(data, **options))
    monkeypatch.setattr(kernels.torch, "ones", lambda size, device, **options: ones(size, **options))
    caplog.set_level(logging.INFO, logger="bigtransfer.ops.triton")
    kernels.works.cache_clear()
    assert kernels.works()

    def doubled(right: Callable[..., Any], *given: Any) -> Any:
        result = right(*given)
        return tuple(2 * each for each in result) if isinstance(result, tuple) else 2 * result

    for name in ("standardize", "standardize_all", "group_norm_relu"):
        kernels.works.cache_clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, name, functools.partial(doubled, getattr(kernels, name)))
            assert not kernels.works() and "result is wrong" in caplog.text
        caplog.clear()
    kernels.works.cache_clear()


def test_nothing_is_imported_before_a_cuda_tensor_comes() -> None:
    code = (
        "import sys, torch; from bigtransfer import ops; before = 'triton' in sys.modules;"
        "x = torch.randn(1, 64, 2, 2).to(memory_format=torch.channels_last);"
        "ops.group_norm_relu(x, 32, torch.ones(64), torch.zeros(64)); ops.standardize(torch.randn(4, 4, 1, 1));"
        "print('triton' in sys.modules, before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after, before = run.stdout.split()
    assert after == before


# ---- on a device only ----


@pytest.mark.gpu
@needs_gpu
def test_the_kernels_work_here() -> None:
    assert kernels.works()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [(3, 64, 112, 112), (2, 256, 56, 56), (3, 512, 28, 28), (3, 192, 57, 55), (2, 6144, 12, 12), (300, 64, 3, 3)],
)
def test_maps_of_real_networks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(*leaves(shape, dtype))


@pytest.mark.gpu
@needs_gpu
def test_more_numbers_than_32_bits_count() -> None:
    """An image past the 2^31st number is normalized as it is alone."""
    x = torch.empty(2**31 // (64 * 512 * 512) + 2, 64, 512, 512, dtype=torch.bfloat16, device=DEVICE)
    x = channels_last(x).normal_()
    weight, bias = random((64,), 2), random((64,), 3)
    y = kernels.group_norm_relu(x, 32, weight, bias, 1e-5)
    for i in (0, len(x) - 1):
        alone = plain.group_norm_relu(x[i : i + 1].float(), 32, weight, bias, 1e-5)
        assert error(exact(y[i : i + 1]), exact(alone)) <= BOUND[torch.bfloat16]


@pytest.mark.gpu
@needs_gpu
def test_a_network_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64, where torch does all of it, no further off in the mean than torch's own float32 (twice, since ReLUs near zero make
    it chance); all maps stay in channels_last."""
    torch.manual_seed(0)
    network = model.build("r50x1", 10)
    torch.nn.init.normal_(network.head.weight)  # pyright: ignore
    network = network.to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore

    def stays(module: torch.nn.Module, arguments: Any, y: Tensor) -> None:
        assert y.is_contiguous(memory_format=torch.channels_last)

    convolution, taken = network.blocks[2][1].conv2, set()  # pyright: ignore
    convolution.register_forward_hook(lambda module, given, y: taken.update(names(y)))  # pyright: ignore
    norms = [module for module in network.modules() if isinstance(module, model.GroupNormReLU)]
    hooks = [norm.register_forward_hook(stays) for norm in norms]
    images = channels_last(random((2, 3, 160, 128), 1))
    results = {}
    for form, dtype in (("1", torch.float32), ("0", torch.float32), ("exact", torch.float64)):
        monkeypatch.setenv("BIT_NATIVE", form)
        network.to(dtype).zero_grad()
        logits = network(images.to(dtype))
        logits.square().sum().backward()
        results[form] = [exact(logits), *(exact(p.grad) for p in network.parameters())]  # pyright: ignore
        for hook in hooks:  # torch's own norms do not stay
            hook.remove()
    assert "_StandardizeAllBackward" in taken
    ours, others = (
        np.mean([error(found, expected) for found, expected in zip(results[form], results["exact"], strict=True)])
        for form in ("1", "0")
    )
    assert ours <= 2 * others + 1e-6


@pytest.mark.gpu
@needs_gpu
def test_norms_computed_again_take_less_memory_and_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = model.build("r50x1", 10).to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore
    torch.nn.init.normal_(network.head.weight)  # pyright: ignore
    images = channels_last(random((32, 3, 128, 128), 1, torch.bfloat16))

    def kept() -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        y = network(images)
        after = torch.cuda.memory_allocated()
        y.square().sum().backward()
        return after - before

    def gradients() -> list[Tensor]:
        network.zero_grad()
        network(images).square().sum().backward()
        return [p.grad for p in network.parameters()]  # pyright: ignore

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    usual, bytes_usual = gradients(), kept()
    network.set_grad_checkpointing(norms_only=True)
    again, bytes_again = gradients(), kept()
    assert all(torch.equal(a, b) for a, b in zip(usual, again, strict=True))
    assert bytes_again < 0.7 * bytes_usual


@pytest.mark.gpu
@needs_gpu
def test_in_a_cuda_graph() -> None:
    def run() -> Tensor:
        return ops.group_norm_relu(x, 32, weight, bias)

    x, weight, bias, _ = leaves((2, 64, 56, 56), torch.bfloat16)
    with torch.no_grad():
        expected = run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = run()
        x.copy_(x.roll(1, 0))
        graph.replay()
    assert torch.equal(y, expected.roll(1, 0))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.skipif(CUDA and torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_on_another_device_than_the_present_one() -> None:
    x, weight, bias, _ = leaves((2, 64, 9, 9), torch.float32)
    there: Callable[[Tensor], Tensor] = lambda t: t.detach().to("cuda:1")  # noqa: E731
    found = kernels.group_norm_relu(channels_last(there(x)), 32, there(weight), there(bias), 1e-5)
    assert torch.equal(found.cpu(), kernels.group_norm_relu(x, 32, weight, bias, 1e-5).cpu())
