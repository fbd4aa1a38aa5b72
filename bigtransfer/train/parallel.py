"""One model on several processes: DDP, where each holds all of it, and FSDP2, where they divide it among themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigtransfer.dist import World
from bigtransfer.model import PreActBottleneck

Strategy = Literal["ddp", "fsdp"]

Sync = Callable[[bool], AbstractContextManager[Any]]


def distribute(model: nn.Module, world: World, strategy: Strategy) -> tuple[nn.Module, Sync]:
    """`model` with its gradients averaged over the processes, and a switch.

    ddp: every process holds the whole model; the first value is a wrapper to call instead of `model`. fsdp (FSDP2): parameters,
    gradients and optimizer state are divided among the processes, unit by unit; `model` itself is changed, so make the optimizer
    afterwards. `with switch(last):` around the forward and backward pass of each micro-batch averages only after the last one.
    """
    if world.size == 1:
        return model, lambda _last: nullcontext()
    if strategy == "ddp":
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=_bucket_megabytes(model))
        return wrapped, lambda last: nullcontext() if last else wrapped.no_sync()
    from torch.distributed.fsdp import FSDPModule, fully_shard  # a second of imports that only this strategy needs

    model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs); all that FSDP2 takes
    for module in list(model.modules()):
        if isinstance(module, PreActBottleneck):
            fully_shard(module)
    # True for the outermost module too, so that between passes, when we save and average, all parameters are sharded.
    sharded = cast(FSDPModule, fully_shard(model, reshard_after_forward=True))

    @contextlib.contextmanager
    def switch(last: bool) -> Iterator[None]:
        sharded.set_requires_gradient_sync(last)
        yield

    return model, switch


def _bucket_megabytes(model: nn.Module) -> float:
    """Of gradients that DDP sums at a time: a twentieth of them, so that nearly all of it happens during the backward pass, from torch's
    25 MB to 200, because each sum of many processes has a latency that large networks would meet 170 times (docs/scale.md)."""
    return min(max(sum(parameter.nbytes for parameter in model.parameters()) / 20e6, 25.0), 200.0)


def divided(tensors: Iterable[Tensor]) -> bool:
    """Whether they are DTensors, of which each process holds a part."""
    # Not isinstance: importing DTensor takes a second, which only sharded runs have spent already.
    return any(hasattr(tensor, "full_tensor") for tensor in tensors)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's tensors by name, on the CPU, put together again if they are sharded; all processes must call it."""
    tensors: dict[str, Any] = model.state_dict()
    return {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().to("cpu", copy=True)
        for name, tensor in tensors.items()
    }
