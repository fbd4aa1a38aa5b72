"""PyTorch files: pickles that would run code, that never end, that build tensors out of bounds; state dicts of anything."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from .. import jsons
from ..cases import Case
from ..mutate import blind, cut, le
from ..worker import CANARY
from ..zips import Entry, archive, lie
from .tensors import _shapes


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + le(len(data)) + data


def _call(module: str, name: str, *arguments: bytes) -> bytes:
    """The opcodes of a call."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def _dangerous(rng: Random, canary: str) -> bytes:
    touch = f"touch {canary}"
    calls = (
        lambda: _call("os", "system", _text(touch)),
        lambda: _call("posix", "system", _text(touch)),
        lambda: _call("builtins", "exec", _text(f"open({canary!r}, 'w')")),
        lambda: _call("builtins", "eval", _text(f"open({canary!r}, 'w')")),
        lambda: _call("__builtin__", "open", _text(canary), _text("w")),
        lambda: _call("io", "open", _text(canary), _text("w")),
        lambda: _call("_io", "FileIO", _text(canary), _text("w")),
        lambda: _call("subprocess", "Popen", b"(" + _text("touch") + _text(canary) + b"l"),
        lambda: _call("os", "mkdir", _text(canary)),
        lambda: _call("pathlib", "Path.touch", _call("pathlib", "Path", _text(canary))),
        lambda: _call("torch.utils.collect_env", "run", _text(touch)),
        lambda: _call("torch", "load", _text(canary)),
        lambda: _call("torch.serialization", "load", _text(canary)),
        lambda: _call("numpy", "save", _text(canary), b"K\x01"),
        lambda: _call("numpy.testing._private.utils", "runstring", _text(f"open({canary!r}, 'w')"), b"}"),
        lambda: _call("functools", "partial", b"cos\nsystem\n", _text(touch)) + b")R",
        lambda: b"\x8c\x02os\x8c\x06system\x93" + _text(touch) + b"\x85R",
        lambda: b"(S'" + touch.encode() + b"'\nios\nsystem\n",
        lambda: b"(cos\nsystem\nX" + le(len(touch)) + touch.encode() + b"o",
        lambda: _call("builtins", "getattr", b"cos\nPath\n", _text("system")),
        lambda: _call("torch.jit", "load", _text(canary)),
        lambda: _call("webbrowser", "open", _text("http://192.0.2.1/")),
        lambda: _call("urllib.request", "urlopen", _text("http://192.0.2.1/")),
        lambda: _call("socket", "create_connection", b"(" + _text("192.0.2.1") + b"K\x50t"),
        lambda: _call("ctypes", "CDLL", _text(canary)),
        lambda: _call("torch._dynamo", "guards", _text("x")),
        lambda: _call("argparse", "Namespace") + b"}" + _text("__class__") + b"cos\nsystem\nsb",
        lambda: _call("collections", "OrderedDict", b"cos\nsystem\n"),
    )
    return rng.choice(calls)()


def _endless(rng: Random) -> bytes:
    """Opcodes that ask for more than there is, or build without end."""
    return rng.choice(
        (
            b"]" * 1000 + b"a" * 999,
            b"(" * 100_000,
            b"]q\x00" + b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00tq\x00" * 40,
            b"(" + b"K\x01" * 300_000 + b"l",
            b"\x8b" + le(2**31 - 1) + b"\x01",
            b"\x8a\xff" + b"\x7f" * 255,
            b"\x8d" + le(2**63 - 1, size=8),
            b"\x8e" + le(2**62, size=8),
            b"\x96" + le(2**62, size=8),
            b"X" + le(2**32 - 1),
            b"B" + le(2**32 - 1),
            b"\x95" + le(2**63, size=8),
            b"q\xff",
            b"j" + le(2**32 - 1),
            b"r" + le(2**31),
            b"h\x05",
            b"0" * 100,
            b"1",
            b"I" + b"9" * 10_000 + b"\n",
            b"L" + b"9" * 100_000 + b"L\n",
            b"F1e999999\n",
            b"S'\\x'\n",
            b"S'abc\n",
            b"V\\ud800\n",
            b"}(K\x01",
            b"}]K\x01s",
            b"N}b",
            b"K\x01)R",
            b"\x82\x01",
            b"P1\n",
            b"Q",
            b"K\x01Q",
            b"(tQ",
            b"N(Ktb",
            b"\x97",
            b"\x98",
            b"]K\x01a" * 3 + b"b",
            rng.randbytes(200),
        )
    )


def _storage(rng: Random, key: str = "0") -> bytes:
    """A tensor's storage, as torch.save refers to it."""
    kind = rng.choice(
        (
            "FloatStorage",
            "HalfStorage",
            "DoubleStorage",
            "LongStorage",
            "BFloat16Storage",
            "x",
            "UntypedStorage",
            "QInt8Storage",
        )
    )
    numel = rng.choice(
        (
            b"K\x06",
            b"K\x06",
            b"K\x00",
            b"J" + le(2**31 - 1),
            b"J" + le(-1),
            b"\x8a\x08" + le(2**62, size=8),
            b"N",
            b"G" + bytes(8),
        )
    )
    first = _text(rng.choice(("storage", "storage", "storage", "module", "x")))
    place = _text(rng.choice(("cpu", "cpu", "cpu", "cuda:0", "meta", "x", "mps", "cuda:99")))
    return b"(" + first + b"ctorch\n" + kind.encode() + b"\n" + _text(key) + place + numel + b"tQ"


def _number(rng: Random) -> bytes:
    return rng.choice(
        (
            b"K\x00",
            b"K\x01",
            b"K\x02",
            b"K\x03",
            b"J" + le(-1),
            b"J" + le(2**31 - 1),
            b"\x8a\x08" + le(2**62, size=8),
            b"N",
            _text("3"),
            b"\x88",
        )
    )


def _tensor(rng: Random) -> bytes:
    """A tensor built from a storage: offsets, sides and strides of any size."""
    sides = b"(" + b"".join(_number(rng) for _ in range(rng.choice((0, 1, 2, 4)))) + b"t"
    strides = b"(" + b"".join(_number(rng) for _ in range(rng.choice((0, 1, 2, 4)))) + b"t"
    function = rng.choice(
        (
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v2",
            "_rebuild_tensor",
            "_rebuild_parameter",
            "_rebuild_sparse_tensor",
            "_rebuild_qtensor",
            "_rebuild_meta_tensor_no_storage",
            "_rebuild_tensor_v3",
            "_rebuild_wrapper_subclass",
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_nested_tensor",
        )
    )
    rest = b"\x89ccollections\nOrderedDict\n)R" if function.endswith("v2") else b""
    return (
        b"ctorch._utils\n" + function.encode() + b"\n(" + _storage(rng) + _number(rng) + sides + strides + rest + b"tR"
    )


def _zip(rng: Random, body: bytes) -> bytes:
    """A file as torch.save writes it, around a pickle."""
    root = rng.choice((b"archive/", b"archive/", b"model/", b"", b"a/b/", b"\xff/"))
    entries = [
        Entry(root + b"data.pkl", body),
        Entry(root + b"version", rng.choice((b"3\n", b"3\n", b"x", b"", b"999999"))),
        Entry(root + b"data/0", bytes(24)),
    ]
    if rng.random() < 0.7:
        entries.append(Entry(root + b"byteorder", rng.choice((b"little", b"little", b"big", b"x", b""))))
    if rng.random() < 0.2:
        entries.append(
            Entry(
                root
                + rng.choice(
                    (
                        b"constants.pkl",
                        b"code/__torch__.py",
                        b"data/1",
                        b"data.pkl",
                        b".data/serialization_id",
                        b".format_version",
                    )
                ),
                b"\x80\x02N.",
            )
        )
    if rng.random() < 0.25:
        lie(rng, rng.choice(entries))
    if rng.random() < 0.1:
        del entries[rng.randrange(len(entries))]
    return archive(entries)


def _legacy(body: bytes, keys: bytes = b"\x80\x02].") -> bytes:
    """A file as torch.save wrote it before version 1.6."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    system = pickle.dumps(
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}, 2
    )
    return magic + system + body + keys


def _file(rng: Random, folder: Path, body: bytes) -> Case:
    """A pickle in one of the forms that torch.load knows."""
    body = b"\x80" + bytes([rng.choice((2, 2, 2, 3, 4, 5, 0, 99))]) + body + rng.choice((b".", b".", b".", b""))
    form = rng.random()
    data = _zip(rng, body) if form < 0.65 else _legacy(body) if form < 0.85 else body
    path = folder / f"model{rng.choice(('.pth', '.pth', '.bin', '.pt', '.pth.tar', '.npz', '.safetensors', ''))}"
    path.write_bytes(data)
    return Case(path)


def dangerous(rng: Random, folder: Path) -> Case:
    """Calls of functions that do something."""
    call = _dangerous(rng, str(folder.parent / CANARY))
    wrapped = rng.choice(
        (
            call,
            b"}(" + _text("model") + call + b"u",
            b"}(" + _text("w") + call + _text("x") + _tensor(rng) + b"u",
            b"]" + call + b"a",
        )
    )
    return _file(rng, folder, wrapped)


def opcodes(rng: Random, folder: Path) -> Case:
    """Pickles that ask for more than there is, or leave the stack in disorder."""
    body = _endless(rng)
    if rng.random() < 0.3:
        body = b"}(" + _text("a") + body + b"u"
    return _file(rng, folder, body)


def built(rng: Random, folder: Path) -> Case:
    """Tensors whose parts do not fit together."""
    pairs = b"".join(_text(f"t{k}") + _tensor(rng) for k in range(rng.choice((1, 3))))
    return _file(rng, folder, b"}(" + pairs + b"u")


class _Odd:
    """Values that real checkpoints hold beside tensors."""

    @staticmethod
    def value(rng: Random, depth: int = 0) -> Any:
        tensor = torch.zeros(3)
        kinds = [
            lambda: tensor,
            lambda: torch.zeros(()),
            lambda: torch.zeros(0, 4),
            lambda: torch.zeros(
                3,
                dtype=rng.choice(
                    (torch.int64, torch.bool, torch.complex64, torch.float64, torch.uint8, torch.bfloat16)
                ),
            ),
            lambda: torch.zeros(3, 3).to_sparse(),
            lambda: torch.empty(3, device="meta"),
            lambda: torch.nn.Parameter(tensor),
            lambda: torch.full((3,), float("nan")),
            lambda: torch.zeros(1).expand(10**9),
            lambda: np.float64(3.0),
            lambda: np.zeros(3),
            lambda: np.int64(2),
            lambda: rng.choice((None, 1, 2.5, "x", b"y", True, jsons.ESCAPES, 2**70)),
            lambda: torch.Size([3]),
            lambda: torch.device("cpu"),
            lambda: torch.float32,
            lambda: {1, 2},
            lambda: 1j,
        ]
        if depth < 2:
            kinds += [
                lambda: [_Odd.value(rng, depth + 1) for _ in range(3)],
                lambda: {_Odd.key(rng): _Odd.value(rng, depth + 1) for _ in range(2)},
            ]
        return rng.choice(kinds)()

    @staticmethod
    def key(rng: Random) -> Any:
        return rng.choice(
            (
                "a",
                0,
                -1,
                (1, 2),
                None,
                b"x",
                1.5,
                True,
                "",
                jsons.ESCAPES,
                "x" * 10_000,
                "root.weight",
                "head.weight",
                "fc.weight",
                "\ud800",
            )
        )


def states(rng: Random, folder: Path) -> Case:
    """State dicts under any key, with keys and values of any type, with prefixes and shapes of others."""
    shapes = _shapes(rng.choice(("bit", "timm", "npz", "torch")))
    state: dict[Any, Any] = {name: torch.zeros(1, dtype=torch.float16).expand(shape) for name, shape in shapes.items()}
    prefix = rng.choice(("", "", "module.", "model.", "backbone.", "net.", "module.model.", "_orig_mod.", "encoder."))
    state = {f"{prefix}{name}": value for name, value in state.items()}
    for _ in range(rng.choice((0, 1, 2, 5))):
        name = rng.choice(list(state))
        match rng.randrange(5):
            case 0:
                state[name] = _Odd.value(rng)
            case 1:
                state[_Odd.key(rng)] = _Odd.value(rng)
            case 2:
                del state[name]
            case 3:
                state[_Odd.key(rng)] = state.pop(name)
            case _:
                state[name] = torch.zeros(1).expand(
                    rng.choice(((3,), (1, 1), (0,), (7, 7, 3, 64), (1, 1, 1, 1, 1), (2**20, 2**20)))
                )
    where = rng.choice(
        ("", "", "state_dict", "model", "net", "ema", "model_ema", "state_dict_ema", "model_state_dict", "x")
    )
    record: Any = {where: state} if where else state
    if where:
        for _ in range(rng.randint(0, 3)):
            record[rng.choice(("epoch", "args", "optimizer", "metric", "model", "state_dict", "step"))] = _Odd.value(
                rng
            )
    if rng.random() < 0.1:
        record = rng.choice(
            ([record], (record,), None, torch.zeros(3), {}, {"model": None}, 5, "x", {"model": {"model": record}})
        )
    file = io.BytesIO()
    torch.save(record, file, _use_new_zipfile_serialization=rng.random() < 0.8)
    data = file.getvalue()
    if rng.random() < 0.1:
        data = cut(rng, data) if rng.random() < 0.5 else blind(rng, data)
    path = folder / f"model{rng.choice(('.pth', '.pt', '.bin'))}"
    path.write_bytes(data)
    return Case(path)


_STARTS = (
    b"\x89HDF\r\n\x1a\n", b"GGUF", b"\x08\x07\x12\x07pytorch", b"<!DOCTYPE html>", b"\xef\xbb\xbf<html>",
    b"version https://git-lfs.github.com/spec/v1\n", b"\x1f\x8b\x08", b"BZh9", b"", b"\0" * 300, b"PK\x03\x04",
    b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\0", b"\x80\x02", b"\x80\x04\x95", b"{}", b"ustar",
    struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 0), b"{", b"\x80",
)  # fmt: skip
"""Of files that people take for weights."""


def other(rng: Random, folder: Path) -> Case:
    """What is no weight file, by its first bytes: HDF5, GGUF, ONNX, web pages, tar and gzip files, nothing."""
    start = rng.choice(_STARTS)
    path = folder / f"model{rng.choice(('.pth', '.safetensors', '.npz', '.bin', '.h5', '.tar', '.pt'))}"
    path.write_bytes(start + rng.randbytes(rng.choice((0, 1, 20, 3000))))
    return Case(path)


GENERATORS = {f"torch.{one.__name__}": one for one in (dangerous, opcodes, built, states, other)}
