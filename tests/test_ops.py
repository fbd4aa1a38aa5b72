"""Every form of the two operations against float64 NumPy, forward and backward; and when the fast one steps aside."""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bigtransfer import ops
from bigtransfer.ops import native, plain
from tests.reference import ops as reference
from tests.reference.ops import Array

needs_native = pytest.mark.skipif(
    native.library() is None, reason="no working C compiler here: only the plain forms exist"
)
FORMS = ["plain", pytest.param("native", marks=needs_native)]

# Largest relative error in the Euclidean norm. The plain form rounds the norm's parameters to bfloat16 first, which opens
# and shuts a few ReLUs.
FORWARD = {("plain", torch.float32): 5e-6, ("native", torch.float32): 5e-7}
FORWARD |= {("plain", torch.bfloat16): 6e-3, ("native", torch.bfloat16): 2.5e-3}
BACKWARD = {("plain", torch.float32): 1e-5, ("native", torch.float32): 2e-6}
BACKWARD |= {("plain", torch.bfloat16): 0.2, ("native", torch.bfloat16): 2.5e-3}


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
    gamma, beta = (p.detach().double().numpy() for p in (weight, bias))
    assert error(nhwc(y), reference.group_norm_relu(nhwc(x), gamma, beta)) <= FORWARD[form, dtype]
    dx, dgamma, dbeta = reference.group_norm_relu_backward(nhwc(x), gamma, beta, nhwc(grad))
    assert error(nhwc(x.grad), dx) <= BACKWARD[form, dtype]
    # Sums of many numbers of both signs are small beside their parts; compare with the size of the parts.
    size = np.linalg.norm(nhwc(grad)) / np.linalg.norm(dbeta)
    assert error(weight.grad.double().numpy(), dgamma) <= BACKWARD[form, dtype] * max(1, size)
    assert error(bias.grad.double().numpy(), dbeta) <= BACKWARD[form, dtype] * max(1, size)


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


def test_eps_is_the_released_codes() -> None:
    """A kernel so small that 1e-8, other programs' eps, would be off by a third."""
    kernel = 1e-4 * random((4, 16, 1, 1), 1)
    assert error(hwio(ops.standardize(kernel)), reference.standardize(hwio(kernel))) <= 1e-6
    assert error(hwio(ops.standardize(kernel)), reference.standardize(hwio(kernel), eps=1e-8)) > 0.1


# ---- convolutions ----


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
    bound = 3e-3 if dtype == torch.bfloat16 else 1e-6
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert error(nhwc(y), reference.conv2d(nhwc(x), hwio(kernel), stride, size // 2)) <= bound
    grad = random(tuple(y.shape), 3, dtype)
    for gradient in torch.autograd.grad(y, (x,), grad, retain_graph=True):
        assert gradient.is_contiguous(memory_format=torch.channels_last), "adding it to others would be slow"
    y.backward(grad)
    # The convolution is linear in each argument, so its gradients are its transposes.
    toward_x, toward_kernel = random(tuple(x.shape), 4, torch.float64), random(tuple(kernel.shape), 5, torch.float64)
    along_x = (reference.conv2d(nhwc(toward_x), hwio(kernel), stride, size // 2) * nhwc(grad)).sum()
    along_kernel = (reference.conv2d(nhwc(x), hwio(toward_kernel), stride, size // 2) * nhwc(grad)).sum()
    for leaf, toward, expected in ((x, toward_x, along_x), (kernel, toward_kernel, along_kernel)):
        found = float((leaf.grad.double() * toward).sum())
        assert abs(found - expected) <= 3 * bound * float(leaf.grad.norm() * toward.norm()) / toward.numel() ** 0.5


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


@needs_native
def test_compilers_and_transforms_see_the_plain_form() -> None:
    x, weight, bias, _ = leaves((2, 64, 4, 4), torch.float32)

    def function(x: Tensor) -> Tensor:
        return ops.group_norm_relu(x, 32, weight, bias).sum() + ops.standardize(x).square().sum()

    expected = function(x.detach())
    assert torch.allclose(torch.compile(function, backend="aot_eager", fullgraph=True)(x.detach()), expected, rtol=1e-5)
    assert torch.func.vmap(torch.func.grad(function))(x.detach()[None]).isfinite().all()


@needs_native
def test_second_derivatives_are_refused_not_wrong() -> None:
    x, weight, bias, _ = leaves((1, 64, 2, 2), torch.float32)
    kernels = [channels_last(random((8, 64, size, size), 1)).requires_grad_() for size in (1, 3)]
    results = [
        ops.group_norm_relu(x, 32, weight, bias),
        ops.standardize(x),
        *(ops.conv2d(x, k, 1, k.shape[2] // 2) for k in kernels),
    ]
    for result in results:
        with pytest.raises(RuntimeError, match="BIT_NATIVE=0"):
            torch.autograd.grad(result.sum(), x, create_graph=True)


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
    assert not list((tmp_path / "cache" / "native").iterdir())


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
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of loaded libraries on this system")
def test_no_second_openmp_runtime_comes_in() -> None:
    code = (
        "from bigtransfer.ops import native; import pathlib; assert native.library();"
        "names = {line.split()[-1] for line in pathlib.Path('/proc/self/maps').read_text().splitlines()};"
        "print(sum('libgomp' in name or 'libomp' in name or 'libiomp' in name for name in names))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "1"
