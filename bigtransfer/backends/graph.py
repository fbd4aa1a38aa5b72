"""A network as an ONNX graph, written node by node: what `bit convert --to onnx` stores, and other backends than torch compute.

The kernels are standardized once and stored as those of plain convolutions. Not by `torch.onnx.export`: that takes 18 seconds of one core
for the bundled network where this takes 0.3, and knows the readout's resizing only as an operator that backends compute in different
ways (docs/decisions/backends.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer import __version__
from bigtransfer.backends import extra, onnx_file, traced
from bigtransfer.catalog import ANCHORS, ModelCard, Readout
from bigtransfer.errors import WeightsError
from bigtransfer.model import (
    BatchNormReLU,
    Foreign,
    Joined,
    Network,
    PreActBottleneck,
    ResNetV2,
    fold,
)
from bigtransfer.objects import places

if TYPE_CHECKING:  # torchvision's networks, which take seconds to load
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

    from bigtransfer.detector import Detector

OPSET = 18
"""Version of ONNX's operators: onnxruntime 1.14 and OpenVINO 2023.1, of 2023, know it."""
_IR_VERSION = 8
"""Version of the file's own form, the one of that time."""

Input = Literal["float32", "uint8"]
Dtype = Literal["float32", "float16"]


def onnx_model(network: Network, *, input: Input = "float32", dtype: Dtype = "float32") -> bytes:
    """The network as an ONNX file, its card among the metadata.

    Input `image` `(batch, in_chans, height, width)`: RGB in [-1, 1], or with `input` "uint8" pixels 0 to 255, which the graph scales.
    Batch, height and width are free; where the readout names sizes of its own, and of EfficientNet-Lite, height and width are the card's
    input size. Outputs, float32: `logits` and `probabilities` `(batch, classes)`, by softmax or, of a multi-label model, by sigmoid
    (neither without classes), and `features` `(batch, features)`. dtype: in which kernels and the head are stored; they compute in float32.

    Raises WeightsError for networks that the form cannot hold: of other libraries' layers some (`traced`), of ours with other pooling
    than the average, or more than 2 GiB.
    """
    onnx = extra("onnx", "onnx")
    card = network.card
    if isinstance(network, ResNetV2) and network.global_pool != "avg":
        raise WeightsError(f"Only networks that pool by averaging can be exported, not {network.global_pool!r}.")
    folded = fold(network)
    _check_size(card, folded)
    graph = _Graph(onnx, dtype)
    features = _features(graph, folded, _pixels(graph, input), "", card)
    graph.add("Identity", [features], result="features")
    outputs = [("features", [folded.num_features])]
    if card.num_classes:
        head = cast(nn.Linear, folded.head)
        weight, bias = graph.weight("head.weight", head.weight), graph.tensor("head.bias", head.bias)
        graph.add("Gemm", ["features", weight, bias], result="logits", transB=1)
        if card.multi_label:
            graph.add("Sigmoid", ["logits"], result="probabilities")
        else:
            graph.add("Softmax", ["logits"], result="probabilities", axis=1)
        outputs = [("logits", [card.num_classes]), ("probabilities", [card.num_classes]), *outputs]
    size = [card.input.size] * 2 if of_one_size(card) else ["height", "width"]
    return _file(graph, card, input, size, outputs)


def onnx_detector(detector: Detector, *, input: Input = "float32", dtype: Dtype = "float32") -> bytes:
    """The same of a detector: network, pyramid and heads, for images of its card's size.

    Outputs, float32: `logits` `(batch, 9 * classes, places)` and `offsets` `(batch, 9 * 4, places)`, places those of the maps of P3 to P7
    one after the other, row by row, with 9 anchors each; `objects.chosen` makes boxes of them. Raises WeightsError for more than 2 GiB.
    """
    card = detector.card
    folded = detector.folded(torch.float32)
    _check_size(card, folded)
    graph = _Graph(extra("onnx", "onnx"), dtype)
    maps = _own_maps(graph, folded.body, _pixels(graph, input), "body.", (1, 2, 3))
    levels = _pyramid(graph, folded.backbone.fpn, maps, card.input.size)  # pyright: ignore[reportArgumentType]
    outputs: list[tuple[str, list[int]]] = []
    for name, tower, last, width in (
        ("logits", folded.head.classification_head, "cls_logits", card.num_classes),
        ("offsets", folded.head.regression_head, "bbox_reg", 4),
    ):
        shape = graph.constant(f"{name}.shape", np.array([0, ANCHORS * width, -1]))
        flat = [graph.add("Reshape", [_tower(graph, tower, last, level, f"head.{name}."), shape]) for level in levels]
        graph.add("Concat", flat, result=name, axis=2)
        outputs.append((name, [ANCHORS * width, sum(side**2 for side in places(card.input.size))]))
    return _file(graph, card, input, [card.input.size] * 2, outputs)


def _check_size(card: ModelCard, folded: nn.Module) -> None:
    if sum(tensor.nbytes for tensor in folded.state_dict().values()) > 2**31 - 2**24:
        raise WeightsError(
            f"{card.name} has {card.num_parameters:,} parameters, 4 bytes each; an ONNX file holds 2 GiB, and several files are not "
            "written here."
        )


def _file(
    graph: _Graph, card: ModelCard, input: Input, size: Sequence[int | str], outputs: Sequence[tuple[str, list[int]]]
) -> bytes:
    """The graph with its card. size: of its images; outputs: with their lengths but the batch's."""
    onnx = graph.onnx
    taken = onnx.TensorProto.UINT8 if input == "uint8" else onnx.TensorProto.FLOAT
    describe = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        graph.nodes,
        "bit",
        [describe("image", taken, ["batch", card.architecture.in_chans, *size])],
        [describe(name, onnx.TensorProto.FLOAT, ["batch", *lengths]) for name, lengths in outputs],
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
    """Whether the network resizes its input, which is then of one size, or pads its maps by their size."""
    every = [one for one in (card.architecture, card.architecture.beside) if one is not None]
    return any(one.backbone is not None or (one.readout is not None and one.readout.sizes) for one in every)


class _Graph:
    """Nodes and constants as they come, under names of their own."""

    def __init__(self, onnx: Any, dtype: Dtype) -> None:
        self.onnx = onnx
        self._dtype = dtype
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._known: dict[str, np.ndarray] = {}

    def add(self, operation: str, inputs: list[str], *, result: str = "", **attributes: Any) -> str:
        """A node of one result, whose name is returned."""
        assert operation in onnx_file.OPERATIONS  # or our own door would refuse the file
        result = result or f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operation, inputs, [result], name=result, **attributes))
        return result

    def constant(self, name: str, value: Any) -> str:
        """The name of a constant, which is stored once."""
        value = np.asarray(value)
        if name not in self._known:
            self._known[name] = value
            self.constants.append(self.onnx.numpy_helper.from_array(value, name))
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
            self.add("Cast", [stored], result=name, to=self.onnx.TensorProto.FLOAT)
        return name


def _pixels(graph: _Graph, input: Input) -> str:
    """The images in [-1, 1]."""
    if input == "float32":
        return "image"
    whole = graph.add("Cast", ["image"], to=graph.onnx.TensorProto.FLOAT)
    centred = graph.add("Sub", [whole, graph.constant("scale.middle", np.float32(127.5))])
    return graph.add("Div", [centred, graph.constant("scale.half", np.float32(127.5))])


def _features(graph: _Graph, network: Network, image: str, prefix: str, card: ModelCard) -> str:
    """What the head sees, `(n, features)`: `Network.features`. prefix: of the names of the network's parameters."""
    readout = network.architecture.readout
    mirrored = readout is not None and readout.mirrored
    seen = (_mirrored if mirrored else _seen)(graph, network, image, prefix, card)
    beside = network.beside if isinstance(network, Joined) else None
    if beside is None:
        return seen
    return graph.add("Concat", [seen, _features(graph, beside, image, f"{prefix}beside.", card)], axis=1)


def _mirrored(graph: _Graph, network: Network, image: str, prefix: str, card: ModelCard) -> str:
    """The mean of the features of the images and of their mirror images, which are computed as one batch twice as long."""
    places = [graph.constant(f"mirror.{name}", np.array([value])) for name, value in _BACKWARDS.items()]
    both = graph.add("Concat", [image, graph.add("Slice", [image, *places])], axis=0)
    seen = _seen(graph, network, both, prefix, card)
    width = _width(network)
    halves = graph.add("Reshape", [seen, graph.constant(f"{prefix}mirror.halves", np.array([2, -1, width]))])
    return graph.add("ReduceMean", [halves, graph.constant("mirror.views", np.array([0]))], keepdims=0)


_BACKWARDS = {"start": -1, "end": -(2**31) + 1, "axis": 3, "step": -1}


def _width(network: Network) -> int:
    """Features of the network without those of the one beside it."""
    arch = network.architecture
    return arch.num_features - (0 if arch.beside is None else arch.beside.num_features)


def _seen(graph: _Graph, network: Network, image: str, prefix: str, card: ModelCard) -> str:
    readout = network.architecture.readout or network.architecture.last_map
    unknown = isinstance(network, Foreign) and not _known(network)
    pooled: list[str] = []
    for side in readout.sizes or (card.input.size,):
        seen = _resized(graph, image, card.input.size, side)
        if unknown:
            pooled.append(_traced(graph, cast(Foreign, network), seen, prefix, readout, side))
            continue
        for y in _maps(graph, network, seen, prefix, readout.blocks, side):
            pooled.append(_mean(graph, y))
            if readout.maxima:
                pooled.append(graph.add("ReduceMax", [y, _map_axes(graph)], keepdims=0))
    return pooled[0] if len(pooled) == 1 else graph.add("Concat", pooled, axis=1)


def _traced(graph: _Graph, network: Foreign, image: str, prefix: str, readout: Readout, side: int) -> str:
    """The same at one size, of a network whose layers are not written here."""
    piece = traced.traced(network, readout, side, onnx=graph.onnx, opset=OPSET)
    own = {piece.image: image, "": ""}  # without a name: left out
    for name, value in piece.constants.items():
        # At several sizes the same ones, and many are alike.
        called = f"{prefix}{hashlib.sha256(f'{value.shape} {value.dtype}'.encode() + value.tobytes()).hexdigest()[:16]}"
        if value.dtype == np.float32 and value.ndim > 1:
            own[name] = graph.weight(called, torch.from_numpy(value.copy()))
        else:
            own[name] = graph.constant(called, value)
    for node in piece.nodes:
        for result in node.output:
            own[result] = f"{prefix}{side}.{result}" if result else ""
        taken, given = ([own[name] for name in names] for names in (node.input, node.output))
        del node.input[:], node.output[:]
        node.input.extend(taken)
        node.output.extend(given)
        node.name = f"{prefix}{side}.{node.name}"
        graph.nodes.append(node)
    return own[piece.seen]


def _maps(graph: _Graph, network: Network, image: str, prefix: str, blocks: Sequence[int], side: int) -> Iterator[str]:
    """The maps that those blocks end with, of images of `side` px: `Network.stage_maps`."""
    if isinstance(network, Foreign):
        return _lite_maps(graph, network, image, prefix, blocks, side)
    return _own_maps(graph, cast(ResNetV2, network), image, prefix, blocks)


def _own_maps(graph: _Graph, network: ResNetV2, image: str, prefix: str, blocks: Sequence[int]) -> Iterator[str]:
    """Each after the norm that it meets next in the network."""
    x = _stem(graph, network, image, prefix)
    for number, block in enumerate(network.blocks[: max(blocks) + 1]):
        x = _block(graph, block, x, f"{prefix}blocks.{number}.")
        if number not in blocks:
            continue
        if number + 1 == len(network.blocks):
            yield _norm(graph, network.norm, x, f"{prefix}norm")
        else:
            following = cast(PreActBottleneck, cast(nn.Sequential, network.blocks[number + 1])[0]).norm1
            yield _norm(graph, following, x, f"{prefix}blocks.{number + 1}.0.norm1")


# --- EfficientNet-Lite, as timm has it


def _known(network: Foreign) -> bool:
    """Whether it is made of what is known here: convolutions with frozen BatchNorm and ReLU6 (or without), nothing that looks at all of a
    map at once, and a last map that is averaged."""
    backbone = network.architecture.backbone
    assert backbone is not None
    if type(network.body).__name__ != "EfficientNet" or not backbone.averaged:
        return False
    known = ("Conv2d", "Conv2dSame", "BatchNormAct2d", "ReLU6", "Identity", "SelectAdaptivePool2d", "Flatten")
    holds = ("EfficientNet", "Sequential", "DepthwiseSeparableConv", "InvertedResidual", "AdaptiveAvgPool2d")
    return all(type(module).__name__ in (*known, *holds) for module in network.body.modules())


def _lite_maps(
    graph: _Graph, network: Foreign, image: str, prefix: str, blocks: Sequence[int], side: int
) -> Iterator[str]:
    """Of a folded network: each norm's numbers are the convolution's before it, and what is left of the norm is what it does after."""
    body: Any = network.body
    backbone = network.architecture.backbone
    assert backbone is not None
    try:
        ends = [body.stage_ends[int(tap)] for tap in backbone.taps]
    except IndexError as error:
        raise WeightsError(
            f"{network.architecture.name} cannot be looked at as the model says: it has {len(body.stage_ends)} stages here."
        ) from error

    def layer(x: str, conv: Any, norm: Any, name: str) -> str:
        nonlocal side
        (kernel, _), (stride, _) = conv.kernel_size, conv.stride
        whole = max(0, (-(-side // stride) - 1) * stride + kernel - side)
        # TensorFlow's padding, which depends on the size and has its odd pixel at the end; where it is fixed, it is as much on either side.
        first, last = (whole // 2, whole - whole // 2) if type(conv).__name__ == "Conv2dSame" else conv.padding
        side = (side + first + last - kernel) // stride + 1
        inputs = [x, graph.weight(f"{name}.weight", conv.weight), graph.tensor(f"{name}.bias", conv.bias)]
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [first, first, last, last]}
        y = graph.add("Conv", inputs, group=conv.groups, **shape)
        if type(norm.act).__name__ == "Identity":
            return y
        return graph.add("Clip", [y, graph.constant("zero", np.float32(0)), graph.constant("six", np.float32(6))])

    prefix = f"{prefix}body."
    scale, shift = (getattr(network, name).view(1, 3, 1, 1) for name in ("scale", "shift"))
    x = graph.add("Mul", [image, graph.tensor(f"{prefix}scale", scale)])
    x = graph.add("Add", [x, graph.tensor(f"{prefix}shift", shift)])
    x = layer(x, body.conv_stem, body.bn1, f"{prefix}stem")
    found: dict[int, str] = {0: x}
    for number, stage in enumerate(body.blocks, 1):
        for place, block in enumerate(stage):
            y, name = x, f"{prefix}blocks.{number}.{place}"
            separable = type(block).__name__ == "DepthwiseSeparableConv"
            names = ("conv_dw", "conv_pw") if separable else ("conv_pw", "conv_dw", "conv_pwl")
            for which, conv in enumerate(names, 1):
                y = layer(y, getattr(block, conv), getattr(block, f"bn{which}"), f"{name}.{conv}")
            x = graph.add("Add", [y, x]) if block.has_skip else y
        found[number] = x
    if len(ends) in blocks:
        x = layer(x, body.conv_head, body.bn2, f"{prefix}head")
    for block in blocks:
        yield x if block == len(ends) else found[ends[block]]


# --- Detectors


def _pyramid(graph: _Graph, fpn: FeaturePyramidNetwork, maps: Iterator[str], size: int) -> list[str]:
    """P3 to P7 of C3 to C5, of images of `size` px: torchvision's `FeaturePyramidNetwork`, P6 made of P5."""

    def layer(x: str, module: nn.Module, name: str) -> str:
        return _biased(graph, x, cast(nn.Conv2d, module), f"fpn.{name}")

    inner = [
        layer(x, cast(nn.Sequential, module)[0], f"inner.{i}")
        for i, (x, module) in enumerate(zip(maps, fpn.inner_blocks, strict=True))
    ]
    sides = places(size)
    for i in (1, 0):
        inner[i] = graph.add("Add", [inner[i], _doubled(graph, inner[i + 1], sides[i])])
    found = [
        layer(x, cast(nn.Sequential, module)[0], f"layer.{i}")
        for i, (x, module) in enumerate(zip(inner, fpn.layer_blocks, strict=True))
    ]
    last = cast("LastLevelP6P7", fpn.extra_blocks)
    found.append(layer(found[-1], last.p6, "p6"))
    return [*found, layer(graph.add("Relu", [found[-1]]), last.p7, "p7")]


def _doubled(graph: _Graph, x: str, side: int) -> str:
    """A map at twice its size, which is then `side`, each number four times: columns, then rows."""
    columns = graph.add("Reshape", [x, graph.constant("twice.columns", np.array([0, 0, 0, -1, 1]))])
    columns = graph.add("Concat", [columns, columns], axis=4)
    rows = graph.add("Reshape", [columns, graph.constant(f"twice.rows.{side}", np.array([0, 0, 0, 1, side]))])
    rows = graph.add("Concat", [rows, rows], axis=3)
    return graph.add("Reshape", [rows, graph.constant(f"twice.{side}", np.array([0, 0, side, side]))])


def _tower(graph: _Graph, head: nn.Module, last: str, x: str, prefix: str) -> str:
    """One of the two heads on one level."""
    for number, module in enumerate(cast(nn.Sequential, head.conv)):
        first, norm, _ = cast(nn.Sequential, module)  # the third is its ReLU
        convolution = cast(nn.Conv2d, first)
        weight = graph.weight(f"{prefix}{number}.weight", convolution.weight)
        x = graph.add("Conv", [x, weight], **_convolution(convolution))
        x = _norm(graph, norm, x, f"{prefix}{number}.norm")
    return _biased(graph, x, getattr(head, last), f"{prefix}{last}")


def _biased(graph: _Graph, x: str, conv: nn.Conv2d, name: str) -> str:
    inputs = [x, graph.weight(f"{name}.weight", conv.weight), graph.tensor(f"{name}.bias", conv.bias)]
    return graph.add("Conv", inputs, **_convolution(conv))


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
    if not isinstance(norm, nn.GroupNorm):  # the network's own, or a head's with the ReLU that follows it
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
