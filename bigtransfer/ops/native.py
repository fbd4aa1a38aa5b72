"""Fast CPU forms: `native.c`, compiled on first use by the user's own C compiler and called through ctypes.

Nothing is built at installation and nothing needs a compiler: without one, or if anything below fails, `library()` is None,
the reason is logged once at INFO, and the plain torch forms are used. BIT_NATIVE=0 switches the fast forms off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigtransfer import settings
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
        kernels = ctypes.CDLL(str(_compiled()))
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
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.info("Training on this CPU uses the plain torch operations, not the fused ones: %s", str(reason).strip())
        return None
    return kernels


def _compiled() -> Path:
    """The shared library for this source, compiler and processor, from the cache or newly compiled (about a second)."""
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
    key = "\n".join([_SOURCE.read_text(encoding="utf-8"), *compiler, *_FLAGS, version, platform.machine(), processor])
    path = settings.cache_folder() / "native" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        with atomic_write(path) as temporary:
            command = [*compiler, *_FLAGS, "-o", str(temporary), str(_SOURCE), "-lm"]
            subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=300)
    return path


def takes_kernel(kernel: Tensor, dtype: torch.dtype) -> bool:
    """Whether `standardize` takes these: a float32 kernel, each output channel in one piece of memory."""
    return (
        kernel.dtype == torch.float32
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
    """`plain.standardize` with the cast to `dtype`; keeps the kernel's memory format. Differentiable once."""
    return _Standardize.apply(kernel, eps, dtype)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`plain.group_norm_relu`; keeps only `x` and the statistics for the backward pass. Differentiable once."""
    return _GroupNormReLU.apply(x, groups, weight, bias, eps)


def _call(name: str, *arguments: Tensor | float | None) -> None:
    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    getattr(library(), name)(*values, torch.get_num_threads())


def refuse_second_derivatives() -> None:
    """Called in a backward pass: raises if that pass is itself to be differentiated."""
    # Inside a backward pass gradients are recorded only for create_graph=True. (once_differentiable would let a gradient
    # through as a constant where the incoming one is constant.)
    if torch.is_grad_enabled():
        raise RuntimeError("The fast CPU operations have no second derivative; set BIT_NATIVE=0 for create_graph=True.")


class _Standardize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(kernel, dtype=dtype)
        stats = torch.empty(kernel.shape[0], 3)
        length = kernel[0].numel()
        _call("bit_standardize_forward", kernel, out, stats, len(kernel), length, eps, dtype == torch.bfloat16)
        ctx.save_for_backward(kernel, stats)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivatives()
        kernel, stats = ctx.saved_tensors
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
        stats = torch.empty(n, groups, 3)
        sizes = (n, h * w, channels, groups)
        _call("bit_norm_forward", x, out, weight, bias, stats, *sizes, eps, x.dtype == torch.bfloat16)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.groups = groups
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        refuse_second_derivatives()
        x, weight, bias, stats = ctx.saved_tensors
        n, channels, h, w = x.shape
        grad = grad.contiguous(memory_format=torch.channels_last)
        out = torch.empty_like(x, memory_format=torch.channels_last)
        partial = torch.empty(2, n, channels)
        grads = torch.empty(2, channels)
        sizes = (n, h * w, channels, ctx.groups)
        bf16 = x.dtype == torch.bfloat16
        _call("bit_norm_backward", x, grad, out, weight, bias, stats, partial, *grads, *sizes, bf16)
        return out, None, grads[0], grads[1], None
