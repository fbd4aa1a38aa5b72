"""Activations of norms that are computed again in the backward pass instead of being kept.

A convolution keeps its input for the gradient of its kernel. Where that is the result of a GroupNorm and ReLU, whose own input is kept
for their gradient anyway, it can be had again from there: half of what a network of pre-activation units keeps is such results.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class _Result:
    """What a norm gave: known while it lives, made again by `again` where it was to be kept."""

    def __init__(self, tensor: Tensor, again: Callable[[], Tensor]) -> None:
        self._seen = weakref.ref(tensor)
        self._shape, self._version = tensor.shape, tensor._version
        self._again = again
        self._kept = self._asked = 0
        self._made: Tensor | None = None

    def is_of(self, tensor: Tensor) -> bool:
        """Whether this is it, unchanged; `tensor` lies where it lay, which another may do after its end."""
        return self._seen() is not None and tensor.shape == self._shape and tensor._version == self._version

    def keep(self) -> _Result:
        self._kept += 1
        return self

    def get(self) -> Tensor:
        """Made once for all that keep it (a unit's first convolution and its projection), if they ask in turn."""
        if self._made is None:
            with torch.no_grad():
                self._made = self._again()
        made = self._made
        self._asked += 1
        if self._asked % self._kept == 0:
            self._made = None
        return made


_here = threading.local()


@contextlib.contextmanager
def norms_recomputed() -> Iterator[None]:
    """Within, what the fast forms of `group_norm_relu` give is not kept by the operations that follow: they get it made again when their
    gradients are computed, from the norm's input, bit for bit the same."""
    results: dict[int, _Result] = {}

    def pack(tensor: Tensor) -> Tensor | _Result:
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            return tensor
        result = results.get(tensor.data_ptr())
        return result.keep() if result is not None and result.is_of(tensor) else tensor

    def unpack(kept: Tensor | _Result) -> Tensor:
        return kept.get() if isinstance(kept, _Result) else kept

    outer = getattr(_here, "results", None)
    _here.results = results
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _here.results = outer
        results.clear()  # which autograd may hold for as long as the graph lives


def remembered(form: Callable[..., Tensor], *arguments: Tensor | float) -> Tensor:
    """`form(*arguments)`, of which those that keep it within `norms_recomputed` keep only how it is made."""
    result = form(*arguments)
    results = getattr(_here, "results", None)
    if results is not None:
        own = (each.detach() if isinstance(each, Tensor) else each for each in arguments)
        results[result.data_ptr()] = _Result(result, functools.partial(form, *own))
    return result
