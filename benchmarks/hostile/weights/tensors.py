"""safetensors: headers by hand before tensors that need no room on the disk."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from bigtransfer.weights import names

from .. import jsons
from ..cases import Case
from ..models import ARCHITECTURE, CLASSES, card
from ..mutate import blind, cut, le

Header = dict[str, Any]


@functools.cache
def _shapes(form: str) -> dict[str, tuple[int, ...]]:
    ours = names.shapes(ARCHITECTURE, len(CLASSES))
    if form == "bit":
        return dict(ours)
    theirs = names.export(ARCHITECTURE, len(CLASSES), form)  # type: ignore[arg-type]
    layout = names.LAYOUTS[form]
    import torch

    return {
        theirs[name]: tuple(layout.their_value(name, torch.empty(shape, device="meta")).shape)
        for name, shape in ours.items()
    }


def header(form: str = "bit", dtype: str = "F16", with_card: bool = True) -> tuple[Header, int]:
    """The header of a whole network in a form of ours, timm's or transformers', and the bytes of its tensors."""
    found, size = laid_out(_shapes(form), dtype)
    if with_card:
        found = {"__metadata__": {"bigtransfer": card().to_json()}, **found}
    return found, size


def laid_out(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16") -> tuple[Header, int]:
    """The header of tensors of these shapes one after the other, and their bytes."""
    size = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I8": 1}[dtype]
    found: Header = {}
    at = 0
    for name, shape in shapes.items():
        count = size * math.prod(shape)
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + count]}
        at += count
    return found, at


def write(path: Path, head: Header | bytes, size: int, length: int | None = None, data: bytes = b"") -> Path:
    """The file; its tensors are zeros that lie nowhere. length: what the first bytes say of the header."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(le(len(text) if length is None else length, size=8) + text + data)
        file.truncate(max(8 + len(text) + size, 0))
    return path


def _name(rng: Random) -> str:
    return f"model{rng.choice(('.safetensors', '.safetensors', '.safetensors', '.bin', '.pth', '.npz', ''))}"


def entries(rng: Random, folder: Path) -> Case:
    """Offsets that overlap, are negative, lie beyond the file; shapes and types that do not fit; tensors missing or too many."""
    head, size = header(rng.choice(("bit", "timm", "transformers")), rng.choice(("F16", "BF16", "F32")))
    tensors = [name for name in head if name != "__metadata__"]
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(tensors)
        entry = head.get(name)
        if not isinstance(entry, dict) or not isinstance(entry.get("data_offsets"), list):
            continue
        begin, end, *_ = (*entry["data_offsets"], 0, 0)
        shape = entry["shape"] if isinstance(entry.get("shape"), list) else []
        match rng.randrange(9):
            case 0:
                entry["data_offsets"] = rng.choice(
                    (
                        [end, begin],
                        [begin, end + 1],
                        [-8, end],
                        [0, size],
                        [begin],
                        [begin, end, 0],
                        [2**62, 2**63],
                        [begin, begin],
                        "x",
                        None,
                    )
                )
            case 1:
                entry["shape"] = rng.choice(
                    (
                        [],
                        [0],
                        [-1, 5],
                        [2**32, 2**32],
                        [2**63],
                        shape[::-1],
                        [*shape, 1],
                        ["3"],
                        5,
                        None,
                        [1.5],
                        [True],
                    )
                )
            case 2:
                entry["dtype"] = rng.choice(
                    (
                        "F32",
                        "F64",
                        "I64",
                        "I8",
                        "BOOL",
                        "F8_E4M3",
                        "U16",
                        "C64",
                        "F4",
                        "x",
                        "",
                        None,
                        3,
                        "U64",
                        "F8_E5M2",
                    )
                )
            case 3:
                del head[name]
            case 4:
                head[rng.choice(jsons.TEXTS)] = entry
            case 5:
                head[rng.choice(("module.", "model.", "backbone.", "_orig_mod.", "a" * 5000)) + name] = head.pop(name)
            case 6:
                entry[rng.choice(jsons.TEXTS)] = jsons.value(rng)
            case 7:
                head[name] = jsons.value(rng)
            case _:
                head[name] = jsons.spoiled(rng, entry)
    return Case(write(folder / _name(rng), head, size + rng.choice((0, 0, 0, -1, 1, 1000))))


def headers(rng: Random, folder: Path) -> Case:
    """Header lengths and texts that are not what they say."""
    head, size = header()
    text = json.dumps(head).encode()
    match rng.randrange(7):
        case 0:
            return Case(
                write(
                    folder / _name(rng),
                    text,
                    size,
                    rng.choice(
                        (0, 1, 7, len(text) - 1, len(text) + 9, 99_999_999, 100_000_001, 2**31, 2**63, 2**64 - 1)
                    ),
                )
            )
        case 1:
            text = blind(rng, text)
        case 2:
            text = cut(rng, text)
        case 3:
            text = jsons.text(rng, jsons.spoiled(rng, {key: head[key] for key in list(head)[:5]}))
        case 4:
            text = b"{" + b" " * rng.choice((10_000, 50_000_000)) + text[1:]
        case 5:  # a million tensors of nothing
            text = json.dumps(
                {
                    f"t{k}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                    for k in range(rng.choice((1000, 50_000)))
                }
            ).encode()
            size = 0
        case _:
            text = b'{"a": ' + b"[" * rng.choice((100, 100_000)) + b"]" * 100
    return Case(write(folder / _name(rng), text, size, None))


def metadata(rng: Random, folder: Path) -> Case:
    """The place of the card in the header: not text, not JSON, other keys."""
    head, size = header()
    record = json.loads(head["__metadata__"]["bigtransfer"])
    stated = jsons.text(rng, jsons.spoiled(rng, record)).decode("utf-8", "replace")
    head["__metadata__"] = rng.choice(
        (
            {"bigtransfer": stated},
            {"bigtransfer": rng.choice(jsons.TEXTS)},
            {"bigtransfer": jsons.value(rng)},
            jsons.value(rng),
            {str(k): "x" for k in range(rng.choice((10, 50_000)))},
        )
    )
    return Case(write(folder / _name(rng), head, size))


GENERATORS = {f"safetensors.{one.__name__}": one for one in (entries, headers, metadata)}
