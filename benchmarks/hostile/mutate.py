"""Ways to spoil bytes: blindly, and field by field."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    12,
    15,
    16,
    24,
    31,
    32,
    64,
    127,
    128,
    255,
    256,
    257,
    1000,
    4096,
    16383,
    16384,
    32767,
    32768,
    65535,
)
LARGE = (65536, 100_000, 0xFFFFFF, 2**24, 2**28, 2**30, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
HUGE = (2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def number(rng: Random, bits: int) -> int:
    """An unsigned number of that many bits, rather one that programs stumble over."""
    draw = rng.random()
    if draw < 0.7:
        return rng.choice([value for value in (*NUMBERS, *LARGE, *HUGE) if value < 1 << bits])
    return rng.getrandbits(bits) if draw < 0.85 else (1 << bits) - 1 - rng.randrange(min(1 << bits, 40))


def packed(rng: Random, size: int, big: bool) -> bytes:
    return number(rng, 8 * size).to_bytes(size, "big" if big else "little")


def put(data: bytes, at: int, piece: bytes) -> bytes:
    """`data` with `piece` written over what stood there."""
    return data[:at] + piece + data[at + len(piece) :]


def fields(rng: Random, data: bytes, places: Sequence[tuple[int, int]], big: bool, most: int = 3) -> bytes:
    """Some of the fields at those places, (offset, bytes), set to other numbers."""
    for _ in range(rng.randint(1, most)):
        at, size = rng.choice(places)
        if at + size <= len(data):
            data = put(data, at, packed(rng, size, big))
    return data


def blind(rng: Random, data: bytes) -> bytes:
    """Some bits, bytes or pieces changed, anywhere, rather near the beginning."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not spoiled:
            break
        reach = len(spoiled) if rng.random() < 0.5 else min(len(spoiled), 64)
        at = rng.randrange(reach)
        match rng.randrange(7):
            case 0:
                spoiled[at] ^= 1 << rng.randrange(8)
            case 1:
                spoiled[at] = rng.choice((0, 1, 127, 128, 255))
            case 2:
                size = rng.choice((2, 4, 8))
                spoiled[at : at + size] = packed(rng, size, rng.random() < 0.5)
            case 3:
                del spoiled[at : at + rng.choice((1, 2, 4, 16, 256))]
            case 4:
                spoiled[at:at] = bytes(spoiled[at : at + rng.choice((1, 4, 64, 1024))])
            case 5:
                spoiled[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
            case 6:
                other = rng.randrange(len(spoiled))
                spoiled[at : at + 4], spoiled[other : other + 4] = spoiled[other : other + 4], spoiled[at : at + 4]
    return bytes(spoiled)


def cut(rng: Random, data: bytes, boundaries: Sequence[int] = ()) -> bytes:
    """The beginning, up to or around a boundary if there are any."""
    at = rng.choice(boundaries) + rng.choice((-1, 0, 0, 1, 2)) if boundaries else rng.randrange(len(data) + 1)
    return data[: max(0, min(at, len(data)))]


def be(*numbers_: int, size: int = 4) -> bytes:
    return b"".join((value & ((1 << 8 * size) - 1)).to_bytes(size, "big") for value in numbers_)


def le(*numbers_: int, size: int = 4) -> bytes:
    return b"".join((value & ((1 << 8 * size) - 1)).to_bytes(size, "little") for value in numbers_)


def float32(rng: Random) -> bytes:
    return struct.pack("<f", rng.choice((0.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"), 255.0)))
