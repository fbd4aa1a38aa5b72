"""What a device can do at most, measured: the denominator of every utilisation."""

from __future__ import annotations

import time

import torch


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few large matrix products in `dtype`, with as many CPU threads as the process computes with now.

    Takes about a tenth of a second. A data sheet's figure is higher: no product reaches it.
    """
    side = 8192 if device.type == "cuda" else 1024
    # Of random numbers: products of zeros need less power and run faster on a GPU.
    one, other = torch.randn(2, side, side, device=device).to(dtype)

    def seconds() -> float:
        started = time.perf_counter()
        torch.mm(one, other)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return 2 * side**3 / min(seconds() for _ in range(8))
