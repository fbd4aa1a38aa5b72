"""What a device can do at most, measured: the denominator of every utilisation."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_SECONDS = 0.2
"""How long each form is tried: other programs that take turns on the processor are then mostly out of the way once."""


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of many large matrix products in `dtype`, with as many CPU threads as the process computes with now.

    On a CPU also as 1x1 convolutions, which another library computes: on some processors one is twice as fast as the other. A data
    sheet's figure is higher: no product reaches it. Takes about half a second.
    """
    side = 8192 if device.type == "cuda" else 1024
    # Of random numbers: products of zeros need less power and run faster on a GPU.
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    forms: list[Callable[[], Tensor]] = [lambda: torch.mm(one, other)]
    if device.type == "cpu":
        image = one.view(1, 32, 32, side).permute(0, 3, 1, 2)  # channels_last: each pixel's channels are a row of `one`
        kernel = other.view(side, side, 1, 1)
        forms.append(lambda: F.conv2d(image, kernel))

    def seconds(form: Callable[[], Tensor]) -> float:
        started = time.perf_counter()
        form()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    def best(form: Callable[[], Tensor]) -> float:
        until, times = time.perf_counter() + _SECONDS, [seconds(form)]
        while time.perf_counter() < until:
            times.append(seconds(form))
        return min(times)

    return 2 * side**3 / min(map(best, forms))
