"""The same network in several programs: random weights that hide nothing, timm's class with ours in it, fast operations or not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from bigtransfer.catalog import Architecture
from bigtransfer.weights import configs, names

WEIGHTS = {"tame": 0.2, "wild": 1.0}
"""Kind of random weights -> scale of the last GroupNorm in each residual branch."""


@torch.no_grad()
def randomize(network: nn.Module, seed: int, branch: float) -> None:
    """Kernels with a mean and a log-normal scale per output channel, norms away from the identity, a head that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4:
            scale = torch.randn(parameter.shape[0], generator=generator).mul(0.5).sub(3).exp()
            parameter.normal_(0.3, 1, generator=generator).mul_(scale[:, None, None, None])
        elif parameter.ndim == 2:
            parameter.normal_(0, 0.02, generator=generator)
        elif name.endswith("weight"):
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(0, 0.3, generator=generator)
        if ".norm3." in name:
            parameter.mul_(branch)


def as_theirs(theirs: nn.Module, ours: nn.Module, layout_name: names.LayoutName) -> nn.Module:
    """A foreign network, built without memory, on our tensors under its own names; strict."""
    layout = names.LAYOUTS[layout_name]
    state = {layout.their_name(name): layout.their_value(name, tensor) for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True, assign=True)
    return theirs.eval()


def timm_network(arch: Architecture, num_classes: int) -> nn.Module:
    """timm's `resnetv2_*_bit`, or its class in the same form where it has no such name; without memory."""
    import timm
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    with torch.device("meta"):
        name = configs.timm_name(arch)
        if name is not None:
            return timm.create_model(name, num_classes=num_classes)
        conv = partial(StdConv2d, eps=1e-8)
        return ResNetV2(
            list(arch.units), width_factor=arch.width, num_classes=num_classes, stem_type="fixed", conv_layer=conv
        )


@contextlib.contextmanager
def fast_operations(wanted: bool) -> Iterator[None]:
    """Within, the operations have their fast forms, or only the plain ones."""
    before = os.environ.get("BIT_NATIVE")
    os.environ["BIT_NATIVE"] = "1" if wanted else "0"
    try:
        yield
    finally:
        os.environ.pop("BIT_NATIVE") if before is None else os.environ.update(BIT_NATIVE=before)
