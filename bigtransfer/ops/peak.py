"""What a device can do at most, measured: the denominator of every utilisation."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_SECONDS = 0.2
"""How long each form is tried: other programs that take turns on the processor are then mostly out of the way once."""
_AGAIN = 5
"""How often a peak is measured again that something was faster than."""


class Utilisation:
    """What share of a device's peak a training reaches, the peak being the best of what was measured so far."""

    def __init__(self, measure: Callable[[], float]) -> None:
        """measure: FLOP/s at most, such as `matmul_flops`; called now, and again where a share is above 1: others were in its way."""
        self._measure, self._again = measure, _AGAIN
        self.peak = measure()

    def share(self, flops: float) -> float:
        """Of so many FLOP/s. Above 1 only if every measurement was disturbed."""
        while flops > self.peak and self._again:
            self._again -= 1
            self.peak = max(self.peak, self._measure())
        return flops / self.peak


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of many large matrix products in `dtype`, with as many CPU threads as the process computes with now.

    On a CPU also as 1x1 convolutions, which another library computes: on some processors one is twice as fast as the other. A data
    sheet's figure is higher: no product reaches it. Takes about half a second.

    With one thread it is that thread's own time that counts, and what other programs take of the core is not in it. Several threads wait
    for each other, so that theirs is the clock's, and on a busy machine the figure is too low.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    side = 8192 if device.type == "cuda" else 1024
    # Of random numbers: products of zeros need less power and run faster on a GPU.
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    forms: list[Callable[[], Tensor]] = [lambda: torch.mm(one, other)]
    if device.type == "cpu":
        image = one.view(1, 32, 32, side).permute(0, 3, 1, 2)  # channels_last: each pixel's channels are a row of `one`
        kernel = other.view(side, side, 1, 1)
        forms.append(lambda: F.conv2d(image, kernel))

    def seconds(form: Callable[[], Tensor]) -> float:
        started = clock()
        form()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - started

    def best(form: Callable[[], Tensor]) -> float:
        until, times = clock() + _SECONDS, [seconds(form)]
        while clock() < until:
            times.append(seconds(form))
        return min(times)

    return 2 * side**3 / min(map(best, forms))
