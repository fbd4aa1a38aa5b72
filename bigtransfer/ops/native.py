"""Fast CPU forms: `native.c`, compiled on first use by the user's own C compiler and called through ctypes.

Nothing is built at installation and nothing needs a compiler: without one, or if anything below fails, `library()` is None,
the reason is logged once at INFO, and the plain torch forms are used. Without a cache to write to, each process compiles anew.
BIT_NATIVE=0 switches the fast forms off.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtransfer import settings
from bigtransfer.errors import BitError
from bigtransfer.ops import plain
from bigtransfer.runs import atomic_write

_log = logging.getLogger(__name__)
_SOURCE = Path(__file__).with_name("native.c")
# No -ffast-math: NaNs must stay NaNs. -fopenmp-simd reads the `simd` pragmas and links no OpenMP runtime.
_FLAGS = (
    "-std=c11",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
)
_WIDEST_GROUP = 512
"""`LANES` of native.c."""

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
_SIGNATURES = {
    "bit_threads": [_pointer] * 3,
    "bit_norm_forward": [_pointer] * 5 + [_long] * 4 + [ctypes.c_double, _int, _int],
    "bit_norm_backward": [_pointer] * 9 + [_long] * 4 + [_int, _int],
    "bit_standardize_forward": [_pointer] * 3 + [_long] * 2 + [ctypes.c_double, _int, _int],
    "bit_standardize_backward": [_pointer] * 4 + [_long] * 2 + [_int, _int],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, ready to call, or None where they cannot be had."""
    try:
        kernels = _loaded()
        for name, arguments in _SIGNATURES.items():
            function = getattr(kernels, name)
            function.argtypes, function.restype = arguments, None
        # Symbols are looked up from torch's own library on, so this is the OpenMP runtime that torch uses, whatever its
        # name and however many others are loaded. (Intel's and LLVM's have the GNU entry point as well.)
        runtime = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        kernels.bit_threads(
            *(
                ctypes.cast(getattr(runtime, name), ctypes.c_void_p)
                for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            )
        )
    except Exception as error:  # Whatever is wrong with compiler, cache or machine, the plain forms do.
        reason = getattr(error, "stderr", None) or error
        _log.info("Training on this CPU uses the plain torch operations, not the fused ones: %s", str(reason).strip())
        return None
    return kernels


def _loaded() -> ctypes.CDLL:
    """The library for this source, compiler and processor, from the cache or newly compiled (about a second)."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, errors="replace", check=True, timeout=60
    ).stdout
    try:
        # A home folder may be shared by machines with different instruction sets.
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
        processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        processor = platform.processor()
    source = _SOURCE.read_text(encoding="utf-8")
    key = _digest("\n".join([source, *compiler, *_FLAGS, version, platform.machine(), processor]).encode())
    folder = settings.cache_folder() / "native"
    # To run a file that was cut short ends the process (SIGBUS), so that its name says what it must hold.
    for path in folder.glob(f"{key}-*.so"):
        with contextlib.suppress(OSError):
            if path.stem == f"{key}-{_digest(path.read_bytes())}":
                return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        built = Path(temporary) / "native.so"
        command = [*compiler, *_FLAGS, "-o", str(built), str(_SOURCE), "-lm"]
        subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=300)
        content = built.read_bytes()
        kept = folder / f"{key}-{_digest(content)}.so"
        try:
            with atomic_write(kept) as file:
                file.write_bytes(content)
        except (BitError, OSError) as error:
            _log.warning("What was compiled for this processor is not kept, and compiled again each time: %s", error)
            return ctypes.CDLL(str(built))
    return ctypes.CDLL(str(kept))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def takes_kernel(kernel: Tensor, dtype: torch.dtype) -> bool:
    """Whether `standardize` takes these: a float32 kernel, each output channel in one piece of memory."""
    return (
        kernel.dtype == torch.float32
        and kernel.numel() > 0
        and dtype in (torch.float32, torch.bfloat16)
        and (kernel.is_contiguous() or kernel.is_contiguous(memory_format=torch.channels_last))
        and library() is not None
    )


def takes_map(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> bool:
    """Whether `group_norm_relu` takes these: channels_last bfloat16 or float32, float32 parameters."""
    return (
        x.dtype in (torch.bfloat16, torch.float32)
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.dtype == bias.dtype == torch.float32
        and weight.shape == bias.shape == x.shape[1:2]
        and weight.is_cpu
        and bias.is_cpu
        and weight.is_contiguous()
        and bias.is_contiguous()
        and x.shape[1] % groups == 0
        and x.shape[1] // groups <= _WIDEST_GROUP
        and x.numel() > 0
        and library() is not None
    )


def standardize(kernel: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """`plain.standardize` with the cast to `dtype`; keeps the kernel's memory format."""
    return _Standardize.apply(kernel, eps, dtype)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`plain.group_norm_relu`; keeps only `x` and the statistics for the backward pass."""
    return _GroupNormReLU.apply(x, groups, weight, bias, eps)


def _call(name: str, *arguments: Tensor | float | None) -> None:
    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    getattr(library(), name)(*values, torch.get_num_threads())


def differentiated(grad: Tensor) -> bool:
    """Called in a backward pass: whether that pass is itself to be differentiated (create_graph=True) or goes over many gradients at
    once (is_grads_batched=True), neither of which can see into the fast forms."""
    # Inside a backward pass gradients are recorded only for create_graph=True.
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(grad)  # pyright: ignore[reportAttributeAccessIssue]


def by_plain_form(
    form: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of `form(*inputs)` for those inputs that need one, as torch computes them, differentiable in their turn."""
    with torch.enable_grad():
        # Aliases, so that the gradients end here: one input may depend on another, where parameters are shared.
        aliases = [x.view_as(x) for x in inputs]
        result = form(*aliases)
    wanted = [x for x, need in zip(aliases, needed, strict=True) if need]
    found = iter(torch.autograd.grad(result, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if need else None for need in needed]


def standardized_by_plain_form(kernel: Tensor, eps: float, dtype: torch.dtype, grad: Tensor) -> Tensor | None:
    """The gradient of `standardize` for its kernel, differentiable in its turn."""

    def form(kernel: Tensor) -> Tensor:
        return plain.standardize(kernel, eps).to(dtype)

    return by_plain_form(form, (kernel,), (True,), grad)[0]


def norm_by_plain_form(
    ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor
) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
    """The gradients of `group_norm_relu` for its arguments (`ctx`: which of them need one), differentiable in their turn."""

    def form(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return plain.group_norm_relu(x, ctx.groups, weight, bias, ctx.eps)

    need_x, _, need_weight, need_bias, _ = ctx.needs_input_grad
    found = by_plain_form(form, (x, weight, bias), (need_x, need_weight, need_bias), grad)
    return found[0], None, found[1], found[2], None


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(kernel, dtype=dtype)
        stats = kernel.new_empty(kernel.shape[0], 3)
        length = kernel[0].numel()
        _call("bit_standardize_forward", kernel, out, stats, len(kernel), length, eps, dtype == torch.bfloat16)
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
        _call("bit_standardize_backward", kernel, grad, out, stats, len(kernel), length, grad.dtype == torch.bfloat16)
        return out, None, None


class _GroupNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        n, channels, h, w = x.shape
        out = torch.empty_like(x, memory_format=torch.channels_last)
        stats = weight.new_empty(n, groups, 3)
        sizes = (n, h * w, channels, groups)
        _call("bit_norm_forward", x, out, weight, bias, stats, *sizes, eps, x.dtype == torch.bfloat16)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.groups, ctx.eps = groups, eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        x, weight, bias, stats = ctx.saved_tensors
        if differentiated(grad):
            return norm_by_plain_form(ctx, x, weight, bias, grad)
        n, channels, h, w = x.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        partial = weight.new_empty(2, n, channels)
        grads = weight.new_empty(2, channels)
        sizes = (n, h * w, channels, ctx.groups)
        bf16 = x.dtype == torch.bfloat16
        _call("bit_norm_backward", x, grad, out, weight, bias, stats, partial, *grads, *sizes, bf16)
        return out, None, grads[0], grads[1], None
