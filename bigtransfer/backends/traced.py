"""Networks of other libraries in a graph of ours: their layers as torch's own exporter writes them.

Of our layers, and of EfficientNet-Lite's, `graph` writes the nodes itself. Of the hundreds of others what the head sees of images of one
size is traced with a batch of two and stored with the batch free. Networks whose layers need operators that our own door does not let in
(`onnx_file.OPERATIONS`), or that torch cannot export, cannot be stored so.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigtransfer import libraries, ops
from bigtransfer.backends import onnx_file
from bigtransfer.catalog import Readout
from bigtransfer.errors import WeightsError
from bigtransfer.model import Foreign


@dataclass(frozen=True, kw_only=True, eq=False)
class Traced:
    """A piece of a graph, under names of its own."""

    nodes: list[Any]
    """Of onnx, in an order in which they can be computed."""
    constants: dict[str, np.ndarray]
    image: str
    """What it takes: float32 `(batch, channels, side, side)` in [-1, 1]."""
    seen: str
    """What it gives: float32 `(batch, features)`."""


class _Seen(nn.Module):
    """Means, and maxima if the readout has them, of the maps of its blocks, at the size of the images."""

    def __init__(self, network: Foreign, readout: Readout) -> None:
        super().__init__()
        self.network, self.readout = network, readout

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([ops.pool(y, how) for y, how in self.network.stage_maps(images, self.readout)], dim=1)


def traced(network: Foreign, readout: Readout, side: int, *, onnx: Any, opset: int) -> Traced:
    """What the readout's blocks show of images of `side` px. WeightsError for a network that cannot be written so."""
    name, example = network.architecture.name, torch.zeros(2, network.architecture.in_chans, side, side)
    with tempfile.TemporaryDirectory(prefix="bit-") as folder:
        file = Path(folder) / "traced.onnx"
        try:
            with _quietly(), torch.no_grad():
                torch.onnx.export(
                    _Seen(network, readout).eval(),
                    (example,),
                    file,
                    dynamo=False,  # the other exporter needs a further package
                    opset_version=opset,
                    input_names=["image"],
                    output_names=["seen"],
                    dynamic_axes={"image": {0: "batch"}, "seen": {0: "batch"}},
                )
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise WeightsError(f"{name} cannot be exported to ONNX by torch: {libraries.first_line(error)}") from error
        made = onnx.load(file).graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in made.initializer}
    nodes = []
    for node in made.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        else:
            nodes.append(node)
    if odd := sorted({node.op_type for node in nodes} - onnx_file.OPERATIONS):
        raise WeightsError(
            f"{name} cannot be exported to ONNX here: what reads such a file again does not run {', '.join(odd)}."
        )
    return Traced(nodes=nodes, constants=constants, image=made.input[0].name, seen=made.output[0].name)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's remarks on exporting, and without what it prints where that fails: whole graphs. Attention is computed by layers
    that can be exported, not at one go."""
    fast = torch.backends.mha.get_fastpath_enabled()
    getattr(torch._C, "_jit_set_onnx_log_enabled", lambda on: None)(False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the sides of images are taken for constant, which they are
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
