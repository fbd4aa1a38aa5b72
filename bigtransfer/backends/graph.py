"""A network as an ONNX graph, written node by node: what `bit convert --to onnx` stores, and other backends than torch compute.

The kernels are standardized once and stored as those of plain convolutions. Not by `torch.onnx.export`: that takes 18 seconds of one core
for the bundled network where this takes 0.3, and knows the readout's resizing only as an operator that backends compute in different
ways (docs/decisions/backends.md).
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer import __version__
from bigtransfer.backends import extra, onnx_file
from bigtransfer.catalog import ModelCard, Readout
from bigtransfer.errors import WeightsError
from bigtransfer.model import (
    BatchNormReLU,
    GroupNormReLU,
    JoinedResNetV2,
    Network,
    PreActBottleneck,
    ResNetV2,
    fold,
)

OPSET = 18
"""Version of ONNX's operators: onnxruntime 1.14 and OpenVINO 2023.1, of 2023, know it."""
_IR_VERSION = 8
"""Version of the file's own form, the one of that time."""

Input = Literal["float32", "uint8"]
Dtype = Literal["float32", "float16"]


def onnx_model(network: Network, *, input: Input = "float32", dtype: Dtype = "float32") -> bytes:
    """The network as an ONNX file, its card among the metadata.

    Input `image` `(batch, in_chans, height, width)`: RGB in [-1, 1], or with `input` "uint8" pixels 0 to 255, which the graph scales.
    Batch, height and width are free; where the readout names sizes of its own, height and width are the card's input size. Outputs,
    float32: `logits` and `probabilities` `(batch, classes)`, by softmax or, of a multi-label model, by sigmoid (neither without classes),
    and `features` `(batch, features)`. dtype: in which kernels and the head are stored; they compute in float32.

    Raises WeightsError for networks that the form cannot hold: not of our layers, other pooling than the average, or more than 2 GiB.
    """
    onnx = extra("onnx", "onnx")
    card = network.card
    if not isinstance(network, ResNetV2):
        raise WeightsError(
            f"{card.architecture.name} cannot be exported to ONNX here, where only BiT's own layers are known. If its head sees the "
            "last map only, `bit convert --to timm` writes a file for timm, which has an export of its own."
        )
    if network.global_pool != "avg":
        raise WeightsError(f"Only networks that pool by averaging can be exported, not {network.global_pool!r}.")
    folded = cast(ResNetV2, fold(network))
    if sum(tensor.nbytes for tensor in folded.state_dict().values()) > 2**31 - 2**24:
        raise WeightsError(
            f"{card.name} has {card.num_parameters:,} parameters, 4 bytes each; an ONNX file holds 2 GiB, and several files are not "
            "written here."
        )
    graph = _Graph(onnx, dtype)
    pixels = "image"
    if input == "uint8":
        pixels = graph.add("Cast", [pixels], to=onnx.TensorProto.FLOAT)
        pixels = graph.add("Sub", [pixels, graph.constant("scale.middle", np.float32(127.5))])
        pixels = graph.add("Div", [pixels, graph.constant("scale.half", np.float32(127.5))])
    features = _features(graph, folded, pixels, "", card)
    graph.add("Identity", [features], result="features")
    outputs = [("features", folded.num_features)]
    if card.num_classes:
        head = cast(nn.Linear, folded.head)
        weight, bias = graph.weight("head.weight", head.weight), graph.tensor("head.bias", head.bias)
        graph.add("Gemm", ["features", weight, bias], result="logits", transB=1)
        if card.multi_label:
            graph.add("Sigmoid", ["logits"], result="probabilities")
        else:
            graph.add("Softmax", ["logits"], result="probabilities", axis=1)
        outputs = [("logits", card.num_classes), ("probabilities", card.num_classes), *outputs]
    size = [card.input.size] * 2 if of_one_size(card) else ["height", "width"]
    taken = onnx.TensorProto.UINT8 if input == "uint8" else onnx.TensorProto.FLOAT
    describe = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        graph.nodes,
        "bit",
        [describe("image", taken, ["batch", card.architecture.in_chans, *size])],
        [describe(name, onnx.TensorProto.FLOAT, ["batch", width]) for name, width in outputs],
        graph.constants,
    )
    model = onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="bigtransfer",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, {onnx_file.CARD_KEY: card.to_json()})
    return model.SerializeToString()


def of_one_size(card: ModelCard) -> bool:
    """Whether the network resizes its input, which is then of one size."""
    arch = card.architecture
    return any(one is not None and one.readout is not None and one.readout.sizes for one in (arch, arch.beside))


class _Graph:
    """Nodes and constants as they come, under names of their own."""

    def __init__(self, onnx: Any, dtype: Dtype) -> None:
        self._onnx = onnx
        self._dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[str, np.ndarray] = {}

    def add(self, operation: str, inputs: list[str], *, result: str = "", **attributes: Any) -> str:
        """A node of one result, whose name is returned."""
        assert operation in onnx_file.OPERATIONS  # or our own door would refuse the file
        result = result or f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(self._onnx.helper.make_node(operation, inputs, [result], name=result, **attributes))
        return result

    def constant(self, name: str, value: Any) -> str:
        """The name of a constant, which is stored once."""
        value = np.asarray(value)
        if name not in self._known:
            self._known[name] = value
            self.constants.append(self._onnx.numpy_helper.from_array(value, name))
        assert value is self._known[name] or np.array_equal(value, self._known[name])  # one name, one constant
        return name

    def tensor(self, name: str, value: Tensor | None) -> str:
        assert value is not None
        return self.constant(name, value.detach().float().contiguous().numpy())

    def weight(self, name: str, value: Tensor | None) -> str:
        """The same of a kernel or the head's matrix, which may be stored in fewer bits."""
        if self._dtype == "float32":
            return self.tensor(name, value)
        if name not in self._known:
            assert value is not None
            stored = self.constant(f"{name}.half", value.detach().half().contiguous().numpy())
            self._known[name] = self._known[stored]
            self.add("Cast", [stored], result=name, to=self._onnx.TensorProto.FLOAT)
        return name


def _features(graph: _Graph, network: ResNetV2, image: str, prefix: str, card: ModelCard) -> str:
    """What the head sees, `(n, features)`: `ResNetV2.features`. prefix: of the names of the network's parameters."""
    readout = network.architecture.readout
    if readout is None:
        x = _stem(graph, network, image, prefix)
        for number, block in enumerate(network.blocks):
            x = _block(graph, block, x, f"{prefix}blocks.{number}.")
        seen = _mean(graph, _norm(graph, network.norm, x, f"{prefix}norm"))
    else:
        seen = (
            _mirrored(graph, network, image, prefix, card)
            if readout.mirrored
            else _seen(graph, network, image, prefix, card)
        )
    beside = network.beside if isinstance(network, JoinedResNetV2) else None
    if beside is None:
        return seen
    assert isinstance(beside, ResNetV2)
    return graph.add("Concat", [seen, _features(graph, beside, image, f"{prefix}beside.", card)], axis=1)


def _mirrored(graph: _Graph, network: ResNetV2, image: str, prefix: str, card: ModelCard) -> str:
    """The mean of the features of the images and of their mirror images, which are computed as one batch twice as long."""
    places = [graph.constant(f"mirror.{name}", np.array([value])) for name, value in _BACKWARDS.items()]
    both = graph.add("Concat", [image, graph.add("Slice", [image, *places])], axis=0)
    seen = _seen(graph, network, both, prefix, card)
    width = _width(network)
    halves = graph.add("Reshape", [seen, graph.constant(f"{prefix}mirror.halves", np.array([2, -1, width]))])
    return graph.add("ReduceMean", [halves, graph.constant("mirror.views", np.array([0]))], keepdims=0)


_BACKWARDS = {"start": -1, "end": -(2**31) + 1, "axis": 3, "step": -1}


def _width(network: ResNetV2) -> int:
    """Features of the network without those of the one beside it."""
    arch = network.architecture
    return arch.num_features - (0 if arch.beside is None else arch.beside.num_features)


def _seen(graph: _Graph, network: ResNetV2, image: str, prefix: str, card: ModelCard) -> str:
    readout = cast(Readout, network.architecture.readout)
    pooled: list[str] = []
    for size in readout.sizes or (None,):
        x = _stem(graph, network, image if size is None else _resized(graph, image, card.input.size, size), prefix)
        for number, block in enumerate(network.blocks[: max(readout.blocks) + 1]):
            x = _block(graph, block, x, f"{prefix}blocks.{number}.")
            if number in readout.blocks:
                # The norm that the map meets next in the network, too.
                if number + 1 == len(network.blocks):
                    y = _norm(graph, network.norm, x, f"{prefix}norm")
                else:
                    following = cast(PreActBottleneck, cast(nn.Sequential, network.blocks[number + 1])[0]).norm1
                    y = _norm(graph, following, x, f"{prefix}blocks.{number + 1}.0.norm1")
                pooled.append(_mean(graph, y))
                if readout.maxima:
                    pooled.append(graph.add("ReduceMax", [y, _map_axes(graph)], keepdims=0))
    return pooled[0] if len(pooled) == 1 else graph.add("Concat", pooled, axis=1)


def _resized(graph: _Graph, image: str, side: int, size: int) -> str:
    """Square images of `side` px at `size` px, as torch resizes them: rows, then columns, as products with its own weights. Backends know
    an operator for it, each with a filter of its own."""
    if side == size:
        return image
    weights = F.interpolate(torch.eye(side)[None, None], (size, side), mode="bilinear", antialias=True)[0, 0]
    rows = graph.add("MatMul", [graph.tensor(f"resize.{size}.rows", weights), image])
    return graph.add("MatMul", [rows, graph.tensor(f"resize.{size}.columns", weights.T)])


def _stem(graph: _Graph, network: ResNetV2, image: str, prefix: str) -> str:
    x = graph.add(
        "Conv", [image, graph.weight(f"{prefix}root.weight", network.root.weight)], **_convolution(network.root)
    )
    # Zeros around the map, which may be negative: not the padding of ONNX's own maximum.
    # And not quite zeros: onnxruntime (1.30, also in browsers) takes padding by zeros and the maximum for one operator, which pads by
    # minus infinity.
    edges = graph.constant("stem.edges", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    nought = graph.constant("stem.nought", np.finfo(np.float32).tiny)
    return graph.add("MaxPool", [graph.add("Pad", [x, edges, nought])], kernel_shape=[3, 3], strides=[2, 2])


def _convolution(conv: nn.Conv2d) -> dict[str, Any]:
    padding = int(conv.padding[0])
    return {"kernel_shape": list(conv.kernel_size), "strides": list(conv.stride), "pads": [padding] * 4}


def _block(graph: _Graph, block: nn.Module, x: str, prefix: str) -> str:
    for number, unit in enumerate(block.children()):
        x = _unit(graph, cast(PreActBottleneck, unit), x, f"{prefix}{number}.")
    return x


def _unit(graph: _Graph, unit: PreActBottleneck, x: str, prefix: str) -> str:
    def conv(name: str, y: str) -> str:
        module = cast(nn.Conv2d, getattr(unit, name))
        return graph.add("Conv", [y, graph.weight(f"{prefix}{name}.weight", module.weight)], **_convolution(module))

    y = _norm(graph, unit.norm1, x, f"{prefix}norm1")
    shortcut = x if unit.proj is None else conv("proj", y)
    y = _norm(graph, unit.norm2, conv("conv1", y), f"{prefix}norm2")
    y = _norm(graph, unit.norm3, conv("conv2", y), f"{prefix}norm3")
    return graph.add("Add", [conv("conv3", y), shortcut])


def _norm(graph: _Graph, norm: nn.Module, x: str, name: str) -> str:
    """The norm and its ReLU."""
    if isinstance(norm, BatchNormReLU):
        stored = {"weight": norm.weight, "bias": norm.bias, "mean": norm.running_mean, "variance": norm.running_var}
        inputs = [graph.tensor(f"{name}.{part}", value) for part, value in stored.items()]
        return graph.add("Relu", [graph.add("BatchNormalization", [x, *inputs], epsilon=norm.eps)])
    if not isinstance(norm, GroupNormReLU):
        raise WeightsError(f"{name} is a {type(norm).__name__}, which cannot be exported.")
    # Each group as one channel whose map has all its numbers: ONNX's own GroupNormalization is taken apart by onnxruntime into forms
    # that lose digits, and came later.
    groups, channels = norm.num_groups, norm.num_channels
    shape = graph.add("Shape", [x])
    grouped = graph.add("Reshape", [x, graph.constant(f"groups.{groups}", np.array([0, groups, -1]))])
    one = graph.constant(f"ones.{groups}", np.ones(groups, np.float32))
    zero = graph.constant(f"zeros.{groups}", np.zeros(groups, np.float32))
    y = graph.add("InstanceNormalization", [grouped, one, zero], epsilon=norm.eps)
    y = graph.add("Reshape", [y, shape])
    y = graph.add("Mul", [y, graph.tensor(f"{name}.weight", norm.weight.view(channels, 1, 1))])
    return graph.add("Relu", [graph.add("Add", [y, graph.tensor(f"{name}.bias", norm.bias.view(channels, 1, 1))])])


def _mean(graph: _Graph, x: str) -> str:
    return graph.add("ReduceMean", [x, _map_axes(graph)], keepdims=0)


def _map_axes(graph: _Graph) -> str:
    return graph.constant("map.axes", np.array([2, 3]))
