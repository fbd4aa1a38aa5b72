"""ONNX files: bytes, fields of the graph, and the card among the metadata."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from random import Random
from typing import Any

from bigtransfer.backends import graph

from .. import jsons
from ..cases import Case
from ..models import card, network
from ..mutate import blind, cut
from . import detectors

_NUMBERS = (0, 1, -1, 2, 3, 7, 64, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
_OPERATORS = (
    *(
        "Loop",
        "If",
        "Scan",
        "PythonOp",
        "Conv",
        "Relu",
        "Pad",
        "MaxPool",
        "Reshape",
        "Gemm",
        "Slice",
        "Concat",
        "Shape",
        "Cast",
    ),
    *("QuantizeLinear", "Expand", "", "x" * 1000),
)


@functools.cache
def whole(kind: str) -> bytes:
    """A network, the same that takes uint8, and a detector, as `bit convert` writes them."""
    if kind == "detector":
        return graph.onnx_detector(detectors.made())
    own = network()
    own.card = card()
    return graph.onnx_model(own, input="uint8" if kind == "uint8" else "float32")


def _drawn(rng: Random) -> tuple[str, bytes]:
    kind = rng.choice(("float32", "float32", "uint8", "detector"))
    return kind, whole(kind)


def _saved(rng: Random, folder: Path, kind: str, data: bytes) -> Case:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return Case(path, {"detector": kind == "detector", "exported": True, "used": rng.random() < 0.5})


def bytes_(rng: Random, folder: Path) -> Case:
    """Bits and pieces changed anywhere, or the end left off."""
    kind, data = _drawn(rng)
    draw = rng.random()
    if draw < 0.4:  # near the end are the graph's results, its opset and the card
        data = data[:-4000] + blind(rng, data[-4000:])
    elif draw < 0.8:
        data = blind(rng, data)
    else:
        data = cut(rng, data)
    return _saved(rng, folder, kind, data)


def graphs(rng: Random, folder: Path) -> Case:
    """Nodes, attributes, constants, the inputs and results of the graph: missing, twice, in circles, of other sizes and types."""
    import onnx

    kind, data = _drawn(rng)
    model: Any = onnx.load_from_string(data)
    own = model.graph
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, constant = rng.choice(own.node), rng.choice(own.initializer)
        match rng.randrange(14):
            case 0:
                node.op_type = rng.choice(_OPERATORS)
            case 1:
                node.input[rng.randrange(len(node.input))] = rng.choice(
                    (*node.output, rng.choice(own.node).output[0], "image", "", "x")
                )
            case 2:
                node.output[0] = rng.choice((rng.choice(own.node).output[0], "", "x", "image"))
            case 3 if node.attribute:
                one = rng.choice(node.attribute)
                if one.ints:
                    one.ints[rng.randrange(len(one.ints))] = rng.choice(_NUMBERS)
                one.i, one.f = rng.choice(_NUMBERS), rng.choice((0.0, -1.0, float("nan"), 1e38))
            case 4 if node.attribute:
                one = rng.choice(node.attribute)
                one.name, one.type = rng.choice(("x", one.name)), rng.choice((1, 2, 3, 4, 6, 7, 8))
            case 5:
                own.node.remove(node)
            case 6:
                own.node.append(node)
            case 7:
                constant.dims[:] = rng.choice(
                    ([], [0], [2**40], [2**32, 2**32], [-1], [*constant.dims, 1], list(constant.dims)[::-1])
                )
            case 8:
                constant.raw_data = rng.choice(
                    (b"", constant.raw_data[:-1], constant.raw_data * 2, bytes(len(constant.raw_data)))
                )
            case 9:
                constant.data_type = rng.choice((0, 1, 2, 6, 7, 8, 9, 10, 11, 16, 99))
            case 10:
                constant.name = rng.choice(("x", "", "image", rng.choice(own.initializer).name))
            case 11:
                result = rng.choice((*own.output, *own.input))
                sides = result.type.tensor_type.shape.dim
                if sides:
                    rng.choice(sides).dim_value = rng.choice(_NUMBERS)
                result.type.tensor_type.elem_type = rng.choice((1, 1, 2, 7, 11))
            case 12:
                result = rng.choice((*own.output, *own.input))
                result.name = rng.choice(("x", "", "logits", "features", "image"))
            case _:
                whole = [one for one in own.initializer if one.data_type == 7 and one.raw_data]
                if whole:  # what shapes, slices and paddings are made of
                    rng.choice(whole).raw_data = rng.choice(_NUMBERS).to_bytes(8, "little", signed=True) * rng.choice(
                        (1, 2, 8)
                    )
    if rng.random() < 0.1:
        model.opset_import[0].version = rng.choice(_NUMBERS)
    if rng.random() < 0.1:
        model.ir_version = rng.choice(_NUMBERS)
    return _saved(rng, folder, kind, model.SerializeToString())


def cards(rng: Random, folder: Path) -> Case:
    """The card is something else, there twice, or missing."""
    import onnx

    kind, data = _drawn(rng)
    model: Any = onnx.load_from_string(data)
    record = json.loads(model.metadata_props[0].value)
    if kind == "detector" and rng.random() < 0.3:
        record["detector"] = rng.choice((None, {"channels": 128}, {"anchor_scale": 16.0}, 3))
    elif rng.random() < 0.3:
        record["input"]["size"] = rng.choice((0, 8, 32, 63, 4096, 2**14, 10**9, "16"))
    else:
        record = jsons.spoiled(rng, record)
    text = jsons.text(rng, record) if rng.random() < 0.3 else json.dumps(record).encode("utf-8", "surrogatepass")
    model.metadata_props[0].value = text.decode("utf-8", "replace")
    match rng.randrange(12):
        case 0:
            model.metadata_props.add(key="bigtransfer", value="{}")
        case 1:
            model.metadata_props[0].key = "x"
    return _saved(rng, folder, kind, model.SerializeToString())


GENERATORS = {f"onnx.{one.__name__.rstrip('_')}": one for one in (bytes_, graphs, cards)}
