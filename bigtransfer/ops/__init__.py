"""The operations of a BiT network: weight standardization, convolution, GroupNorm followed by ReLU, and pooling.

Each has a plain torch form (`plain`: the meaning, and what compilers, float64 and everything unusual get), and those that a training
spends its time in have fast forms, for CPUs (`native`, `convolution`) and for CUDA GPUs (`triton`), taken where they apply. Under
torch.compile the plain forms are used: the compiler fuses them itself. BIT_NATIVE=0 in the environment switches the fast forms off.

To torch.fx each operation is one node; TorchScript sees the plain forms.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
import torch.fx
from torch import Tensor
from torch.autograd import forward_ad

from bigtransfer.errors import ConfigError
from bigtransfer.ops import convolution, native, plain
from bigtransfer.ops.recompute import norms_recomputed, remembered

__all__ = ["conv2d", "group_norm_relu", "norms_recomputed", "pool", "standardize", "standardized_ahead"]

_log = logging.getLogger(__name__)
_here = threading.local()


def _eager(device: str, *tensors: Tensor) -> bool:
    """Ordinary tensors of a device ("cpu", "cuda"), outside every compiler, tracer and function transform: those cannot see into fast
    forms."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0  # make_fx, FlopCounterMode, ...
        and os.environ.get("BIT_NATIVE") != "0"
        and all(
            type(x) in (Tensor, torch.nn.Parameter)
            and x.device.type == device
            and x.layout == torch.strided
            and not x.is_neg()
            and forward_ad.unpack_dual(x).tangent is None
            for x in tensors
        )
    )


def _kernels(*tensors: Tensor) -> ModuleType | None:
    """The fast forms of the norm and of the standardization for these tensors, if there are any on their device."""
    if tensors[0].is_cuda:
        return _triton() if _eager("cuda", *tensors) else None
    return native if _eager("cpu", *tensors) else None


@functools.cache
def _triton() -> ModuleType | None:
    """Imported on the first CUDA tensor only, and not everywhere to be had."""
    try:
        from bigtransfer.ops import triton
    except ImportError as error:
        _log.info("This GPU uses the plain torch operations, not the fused ones: %s", error)
        return None
    return triton if triton.works() else None


@torch.fx.wrap
def standardize(kernel: Tensor, eps: float = 1e-10, dtype: torch.dtype | None = None) -> Tensor:
    """Each output channel of `kernel` `(out, in, kh, kw)` at mean 0 and variance 1, computed in at least float32.

    dtype: of the result; None means float32 (float64 for a float64 kernel). See `plain.standardize`.
    """
    if dtype is None:
        dtype = torch.promote_types(kernel.dtype, torch.float32)
    if not torch.jit.is_scripting():
        kernels = _kernels(kernel)
        if kernels is not None and kernels.takes_kernel(kernel, dtype):
            known = getattr(_here, "standardized", {}).get(id(kernel))
            if known is not None and known[0] is kernel and known[1:3] == (eps, dtype):
                return known[3]
            return kernels.standardize(kernel, eps, dtype)
    return plain.standardize(kernel, eps).to(dtype)


@contextlib.contextmanager
def standardized_ahead(kernels: Sequence[Tensor], dtype: torch.dtype, eps: float = 1e-10) -> Iterator[None]:
    """Within, `standardize` of these kernels to `dtype` is done already, on a GPU, where one launch does all of them; elsewhere this does
    nothing. Bit for bit the same. The kernels must not change within."""
    fast = _kernels(*kernels) if kernels else None
    if fast is None or fast is native or not fast.takes_kernels(kernels, dtype):
        yield
        return
    outer = getattr(_here, "standardized", {})
    found = zip(kernels, fast.standardize_all(kernels, eps, dtype), strict=True)
    _here.standardized = outer | {id(kernel): (kernel, eps, dtype, result) for kernel, result in found}
    try:
        yield
    finally:
        _here.standardized = outer


@torch.fx.wrap
def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """GroupNorm, then ReLU, of x `(n, channels, h, w)`, in `x`'s dtype. See `plain.group_norm_relu`."""
    if not torch.jit.is_scripting():
        kernels = _kernels(x, weight, bias)
        if kernels is not None and kernels.takes_map(x, groups, weight, bias):
            return remembered(kernels.group_norm_relu, x, groups, weight, bias, eps)
    return plain.group_norm_relu(x, groups, weight, bias, eps)


@torch.fx.wrap
def conv2d(x: Tensor, kernel: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Bias-free convolution of x `(n, in, h, w)` with a square kernel `(out, in, k, k)` of the same dtype. See `plain.conv2d`.

    Raises ConfigError for whole numbers, such as pixels that nobody scaled.
    """
    if not torch.jit.is_scripting():
        if not x.is_floating_point():
            raise ConfigError(
                f"The network takes floating-point images in [-1, 1], not {x.dtype}: (images.float() - 127.5) / 127.5 for pixels."
            )
        if _eager("cpu", x, kernel) and convolution.takes(x, kernel):
            return convolution.conv2d(x, kernel, stride, padding)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            # What `plain` adds is for gradients only, and would tie the exported program to the widths of its example.
            return torch.nn.functional.conv2d(x, kernel, None, stride, padding)
    return plain.conv2d(x, kernel, stride, padding)


@torch.fx.wrap
def pool(x: Tensor, kind: str = "avg") -> Tensor:
    """All pixels of x `(n, channels, h, w)` as one, `(n, channels)`, in at least float32. See `plain.pool`."""
    return plain.pool(x, kind)
