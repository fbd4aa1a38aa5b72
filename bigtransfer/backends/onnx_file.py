"""The door for ONNX files: what is in one, read without the library that will run it, and nothing but what `bit convert` writes let in.

An ONNX file is a program in a small language, as Protocol Buffers. Others might read files that lie beside it ("external data"), contain
loops, functions or operators of plug-ins; those are refused here before anything else looks at the file. What is left are the operators
of a convolutional network and its constants. How much memory and time these take for one image is not judged: as with any model, run
those of people you trust.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bigtransfer import files
from bigtransfer.catalog import ANCHORS, ModelCard
from bigtransfer.errors import WeightsError
from bigtransfer.objects import places

CARD_KEY = "bigtransfer"
"""Key of the model card among the file's metadata."""

_OURS = """
Add BatchNormalization Cast Clip Concat Conv DequantizeLinear Div Gemm Identity InstanceNormalization MatMul MaxPool Mul Pad
QuantizeLinear ReduceMax ReduceMean Relu Reshape Shape Sigmoid Slice Softmax Sub
"""
"""The operators of the graphs that we write ourselves (`graph`, `int8.quantized`)."""

_OTHERS = """
AveragePool Ceil ConstantOfShape Cos Einsum Equal Erf Exp Expand Flatten Floor Gather GlobalAveragePool HardSigmoid HardSwish
LayerNormalization LeakyRelu Mod Neg Not Pow Range Reciprocal ReduceL2 ReduceSum Resize ScatterND Sin Split Sqrt Squeeze Tanh Tile
Transpose Unsqueeze Where
"""
"""Further ones of other libraries' layers (`traced`)."""

OPERATIONS = frozenset((*_OURS.split(), *_OTHERS.split()))
"""All that are let in: each computes numbers from numbers. None runs a graph inside, or reads a file."""


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A file that may be run."""

    content: bytes
    card: ModelCard
    takes: Literal["uint8", "float32"]
    """Type of the graph's input `image`, (batch, channels, height, width): pixels from 0 to 255, or from -1 to 1."""
    results: tuple[str, ...]
    """Names of what the graph gives that is asked for: features and, with classes, logits and probabilities; of a detector logits and
    offsets."""
    quantized: bool = False
    """Whether its convolutions compute in int8 (`int8.quantized`)."""


def read(path: str | os.PathLike[str]) -> OnnxFile:
    """The ONNX file at `path`, checked. WeightsError where it is none, or none that `bit convert` wrote."""
    where = os.fspath(path)
    try:
        content = files.read(path, "exported_bytes")
    except FileNotFoundError as error:
        raise WeightsError(f"There is no file {where}.") from error
    except OSError as error:
        raise WeightsError(f"{where} cannot be read: {error.strerror}.") from error
    return parse(content, where)


def parse(content: bytes, where: str) -> OnnxFile:
    """The same of a file's bytes; errors begin with `where`."""
    if not content:
        raise WeightsError(f"{where} is empty. Write or download it again.")
    found = _Found()
    try:
        _walk(memoryview(content), "model", found)
    except _Malformed as error:
        raise WeightsError(f"{where} is damaged, or no ONNX file.") from error
    if found.refused:
        raise WeightsError(f"{where} {found.refused}, which an exported BiT network has not. It is not run.")
    if odd := sorted(set(found.operations) - OPERATIONS):
        raise WeightsError(
            f"{where} has operators that an exported BiT network has not: {', '.join(odd[:5])[:200]}. It is not run."
        )
    texts = [value for key, value in found.metadata if key == CARD_KEY.encode()]
    if len(texts) > 1:
        raise WeightsError(
            f"{where} carries {len(texts)} model cards, and one of them at most can be right. `bit convert --to onnx` writes it anew."
        )
    if not texts:
        raise WeightsError(
            f"{where} carries no model card: `bit convert --to onnx` did not write it, and what its input and its classes mean is unknown."
        )
    try:
        text = texts[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise WeightsError(f"{where}: its card is not UTF-8 text.") from error
    card = ModelCard.from_json(text, f"{where}: its card")
    try:
        takes, results = _taken(found.inputs, card), _results(found.outputs, card)
    except _Unlike as error:
        raise WeightsError(f"{where} is damaged, or not what its card says ({error}).") from error
    return OnnxFile(content, card, takes, results, "QuantizeLinear" in found.operations)


@dataclass(frozen=True)
class _Declared:
    """What a graph says of one of its inputs or outputs."""

    name: str
    type: int
    """TensorProto.DataType."""
    lengths: list[int]
    """0: free, or not stated."""


class _Unlike(Exception):
    """A graph that is not of a network of its card."""


def _taken(inputs: list[_Declared], card: ModelCard) -> Literal["uint8", "float32"]:
    side = card.input.size
    free, fixed = ([0, card.architecture.in_chans, *sides] for sides in ([0, 0], [side, side]))
    told = ", ".join(f"{one.name} {one.lengths}" for one in inputs)[:200]
    if len(inputs) != 1 or inputs[0].name != "image" or inputs[0].lengths not in (free, fixed):
        raise _Unlike(f"its input is {told}")
    types: Mapping[int, Literal["uint8", "float32"]] = {_UINT8: "uint8", _FLOAT32: "float32"}
    if inputs[0].type not in types:
        raise _Unlike(f"its input is {told} of type {inputs[0].type}")
    return types[inputs[0].type]


def _results(outputs: list[_Declared], card: ModelCard) -> tuple[str, ...]:
    wanted = {"features": [card.architecture.num_features]}
    if card.detector is not None:
        count = sum(one**2 for one in places(card.input.size))
        wanted = {"logits": [ANCHORS * card.num_classes, count], "offsets": [ANCHORS * 4, count]}
    elif card.num_classes:
        wanted |= {"logits": [card.num_classes], "probabilities": [card.num_classes]}
    given = {one.name: one.lengths[1:] for one in outputs if one.type == _FLOAT32}
    for name, lengths in wanted.items():
        if given.get(name) != lengths:
            raise _Unlike(f"its result {name} has the shape {given.get(name)} an image, not {lengths}")
    return tuple(wanted)


# --- Protocol Buffers

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 14: "entry", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 11: "input", 12: "output", 15: "sparse"},
    "node": {4: "operator", 5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 6: "subgraph", 10: "tensor", 11: "subgraph", 22: "sparse", 23: "sparse"},
    "tensor": {2: "type", 4: "floats", 5: "whole", 9: "bytes", 13: "external", 14: "location"},
    "opset": {1: "domain"},
    "entry": {1: "key", 2: "value"},
}
"""onnx.proto: message -> number of a field -> what is in it. Fields that are not named are passed over."""

_REFUSED = {
    "training": "has a graph for training",
    "function": "has functions of its own",
    "subgraph": "has loops or branches",
    "sparse": "has sparse constants",
    "external": "reads constants from other files",
    "odd": "has constants of other kinds of numbers",
    "not finite": "has weights that are not finite numbers",
}
_LENGTH, _VARINT, _SINGLE, _FIXED = 2, 0, 5, {1: 8, 5: 4}
_FLOAT32, _UINT8 = 1, 2
_NUMBERS: dict[int, str] = {_FLOAT32: "<f4", _UINT8: "", 3: "", 6: "", 7: "", 10: "<f2"}
"""TensorProto.DataType: float32, uint8, int8, int32, int64, float16; of those that may be infinite how they lie in the file."""


class _Malformed(Exception):
    """Not what it should be."""


@dataclass
class _Found:
    operations: list[str] = field(default_factory=list)
    inputs: list[_Declared] = field(default_factory=list)
    outputs: list[_Declared] = field(default_factory=list)
    metadata: list[tuple[bytes, bytes]] = field(default_factory=list)
    refused: str = ""


def _walk(message: memoryview, kind: str, found: _Found) -> None:
    entry = {"key": b"", "value": b""}
    stored = ""
    whole, numbers = False, []
    for number, wire, value in _fields(message):
        what = _MESSAGES[kind].get(number)
        if what is None:
            continue
        if what == "location":
            if wire != _VARINT or value != 0:
                found.refused = _REFUSED["external"]
            continue
        if what == "type":
            stored = _NUMBERS.get(value, "") if isinstance(value, int) else ""
            if value not in _NUMBERS:
                found.refused = _REFUSED["odd"]
            continue
        if what == "whole":
            whole = True
            continue
        if what == "floats" and wire == _SINGLE and isinstance(value, memoryview):
            numbers.append(value)
            continue
        if wire != _LENGTH or not isinstance(value, memoryview):
            raise _Malformed
        if what in ("floats", "bytes"):
            numbers.append(value)
        elif what in _REFUSED:
            found.refused = _REFUSED[what]
        elif what in entry:
            entry[what] = bytes(value)
        elif what == "input":
            found.inputs.append(_declared(value))
        elif what == "output":
            found.outputs.append(_declared(value))
        elif what == "operator":
            found.operations.append(bytes(value).decode("utf-8", "replace"))
        elif what == "domain":
            if bytes(value) not in (b"", b"ai.onnx"):
                found.refused = "has operators of others than ONNX"
        else:
            _walk(value, what, found)
    # A network computes on with them, and some of those who run it pass over them: the answers look like any others.
    if stored and whole:  # float16 as whole numbers, a second way
        raise _Malformed
    if stored and not all(_finite(one, stored) for one in numbers):
        found.refused = _REFUSED["not finite"]
    if kind == "entry":
        found.metadata.append((entry["key"], entry["value"]))


def _declared(message: memoryview) -> _Declared:
    """Of a ValueInfoProto: name 1, type 2; in that tensor_type 1; in that elem_type 1, shape 2; in that dim 1; in that dim_value 1."""
    tensors = [tensor for kind in _parts(message, 2) for tensor in _parts(kind, 1)]
    dims = [dim for tensor in tensors for shape in _parts(tensor, 2) for dim in _parts(shape, 1)]
    name = b"".join(map(bytes, _parts(message, 1))).decode("utf-8", "replace")
    types = [value for tensor in tensors for value in _numbers(tensor, 1)]
    return _Declared(name, types[-1] if types else 0, [sum(_numbers(dim, 1)) for dim in dims])


def _parts(message: memoryview, wanted: int) -> list[memoryview]:
    """The fields of that number that hold messages or text."""
    return [value for number, _, value in _fields(message) if number == wanted and isinstance(value, memoryview)]


def _numbers(message: memoryview, wanted: int) -> list[int]:
    return [value for number, _, value in _fields(message) if number == wanted and isinstance(value, int)]


def _finite(content: memoryview, kind: str) -> bool:
    if len(content) % np.dtype(kind).itemsize:
        raise _Malformed
    return bool(np.isfinite(np.frombuffer(content, kind)).all())


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Number, wire type and value of a message's fields, in their order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, wire, value
            continue
        if wire == _LENGTH:
            length, at = _varint(message, at)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise _Malformed
        if number == 0 or length > len(message) - at:
            raise _Malformed
        yield number, wire, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _Malformed
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise _Malformed
