""".npz: archives and array headers of which every field can lie."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from random import Random

from ..cases import Case
from ..mutate import blind, cut, le
from ..zips import Entry, archive, lie
from .tensors import _shapes

_HEADERS = (
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': ('3',), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': 3, }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }",
    "{'descr': '<f4', 'fortran_order': 3, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
    "{'descr': '<f4', 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'extra': 1}",
    "{'descr': [('a', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': [('a', '<f4', (1000000, 1000000))], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '|V2', 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (6,), }",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '|S1000000000', 'fortran_order': False, 'shape': (0,), }",
    "{'descr': '<U5', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<M8', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<c8', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '>f4', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f16', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '|b1', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 60 + "3), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 4000 + "3), }",
    "{'descr': 'x', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': None, 'fortran_order': False, 'shape': (3,), }",
    "{'descr': ('<f4', (3,)), 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4,<f4', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': {'names': ['a'], 'formats': ['<f4'], 'offsets': [99999999999]}, 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3L,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), ",
    "(" * 3000,
    "[" * 90 + "]" * 90,
    "{'descr': __import__('os').system('touch sprung'), 'fortran_order': False, 'shape': (3,), }",
    "lambda: 0",
    "'''",
    "{'a': \x00}",
    "\ud83d",
    "{" + "'x': 1, " * 20_000 + "}",
    "1" * 9000,
    "-" * 5000 + "1",
    "{**{}}",
    "{'descr': '<f4'\n\t 'fortran_order'",
    "",
)


def npy(head: str, data: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    text = head.encode("utf-8" if version[0] == 3 else "latin-1", "replace")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = 2 if version[0] == 1 else 4
    return b"\x93NUMPY" + bytes(version) + le(len(text) if length is None else length, size=size) + text + data


def array(shape: tuple[int, ...], descr: str = "<f2", size: int = 2) -> bytes:
    return npy(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}", bytes(size * math.prod(shape)))


@functools.cache
def _zeros(name: str, shape: tuple[int, ...]) -> bytes:
    return array(shape)


def _network(keep: int | None = None) -> list[Entry]:
    """The entries of a whole network in the authors' names, or the first few."""
    shapes = list(_shapes("npz").items())[:keep]
    return [Entry(f"{name}.npy".encode(), _zeros(name, shape), 8) for name, shape in shapes]


def headers(rng: Random, folder: Path) -> Case:
    """An array's header that is none, that asks for terabytes, that would run code if it were evaluated."""
    entries = _network(2)
    text = rng.choice(_HEADERS)
    version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (0, 0), (9, 9), (1, 1)))
    length = None if rng.random() < 0.85 else rng.choice((0, 1, 65535, 2**31, 2**32 - 1))
    data = npy(text, rng.randbytes(rng.choice((0, 12, 24, 100))), version, length)
    if rng.random() < 0.15:
        data = blind(rng, data)
    entries.insert(
        rng.randrange(3), Entry(rng.choice((b"x.npy", b"head/conv2d/kernel.npy", b"x")), data, rng.choice((0, 8)))
    )
    return _saved(rng, folder, archive(entries))


def archives(rng: Random, folder: Path) -> Case:
    """Entries that overlap, are locked, packed by methods nobody knows, named twice, larger than they say; bombs."""
    entries = _network(rng.choice((2, 5)))
    for _ in range(rng.randint(1, 3)):
        lie(rng, rng.choice(entries))
    match rng.randrange(5):
        case 0:
            entries.append(entries[0])
        case 1:
            entries.append(
                Entry(
                    b"bomb.npy",
                    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (100000000,), }", bytes(100_000_000)),
                    8,
                )
            )
        case 2:
            entries += [Entry(f"{k}.npy".encode(), b"", 0) for k in range(rng.choice((1000, 20_000)))]
    data = archive(
        entries,
        count=rng.choice((None, None, 0, 65535)),
        start=rng.choice((None, None, None, 0, 2**32 - 1)),
        comment=rng.choice((b"", b"PK\x05\x06" * 10)),
    )
    return _saved(rng, folder, data)


def spoiled(rng: Random, folder: Path) -> Case:
    """A whole network, spoiled or cut anywhere."""
    data = _whole()
    match rng.randrange(4):
        case 0:
            data = blind(rng, data)
        case 1:
            data = cut(rng, data)
        case 2:
            at = len(data) - rng.randrange(1, 4000)
            data = data[:at] + blind(rng, data[at:])
    return _saved(rng, folder, data)


@functools.cache
def _whole() -> bytes:
    return archive(_network())


def _saved(rng: Random, folder: Path, data: bytes) -> Case:
    path = folder / f"model{rng.choice(('.npz', '.npz', '.npz', '.pth', '.safetensors', ''))}"
    path.write_bytes(data)
    return Case(path)


GENERATORS = {f"npz.{one.__name__}": one for one in (headers, archives, spoiled)}
