"""PNG: chunks with any contents, wrong sums, bombs in their texts, animations, extents far beyond the file."""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from random import Random

from ..cases import Case
from ..mutate import be, blind, cut, fields, number
from .bases import base, case
from .tiff import ifd_bytes

MAGIC = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    return be(len(body)) + kind + body + be(zlib.crc32(kind + body) if crc is None else crc)


def chunks(data: bytes) -> list[Chunk]:
    found, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def joined(parts: list[Chunk]) -> bytes:
    return MAGIC + b"".join(chunk(kind, body) for kind, body in parts)


@functools.lru_cache(maxsize=64)
def zeros(count: int) -> bytes:
    """`count` zero bytes as a zlib stream, made at once: one block of a megabyte, repeated."""
    block = 1 << 20
    packer = zlib.compressobj(9, wbits=-15)
    first = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, wbits=-15)
    last = rest.compress(bytes(count % block)) + rest.flush()
    return b"\x78\x9c" + first * (count // block) + last + be((count % 65521) << 16 | 1)


def flat(width: int, height: int, depth: int, colour: int, *extra: Chunk, interlace: int = 0) -> bytes:
    """A black picture of any extent in few bytes."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    raw = height * (1 + -(-width * depth * samples // 8))
    parts = [(b"IHDR", be(width, height) + bytes([depth, colour, 0, 0, interlace]))]
    if colour == 3:
        parts.append((b"PLTE", bytes(range(30))))
    return joined([*parts, *extra, (b"IDAT", zeros(raw)), (b"IEND", b"")])


def header(rng: Random, folder: Path) -> Case:
    data = base(rng, "PNG")
    parts = chunks(data)
    width_height = parts[0][1]
    body = fields(rng, width_height, [(0, 4), (4, 4), (0, 8), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)], big=True)
    parts[0] = (b"IHDR", body if rng.random() < 0.9 else cut(rng, body))
    return case(rng, folder, joined(parts), ".png")


def sums(rng: Random, folder: Path) -> Case:
    """Chunks with wrong checksums: in the pixels, or at the side where they do not matter."""
    parts = chunks(base(rng, "PNG"))
    for kind in rng.sample((b"tEXt", b"gAMA", b"pHYs", b"tIME", b"iCCP", b"eXIf", b"oFFs", b"prVt"), rng.randint(0, 3)):
        parts.insert(rng.randint(1, len(parts) - 1), (kind, rng.randbytes(rng.choice((0, 4, 9, 20)))))
    wrong = {rng.randrange(len(parts)) for _ in range(rng.randint(1, 2))}
    body = b"".join(
        chunk(kind, part, rng.getrandbits(32) if k in wrong else None) for k, (kind, part) in enumerate(parts)
    )
    return case(rng, folder, MAGIC + body, ".png")


def texts(rng: Random, folder: Path) -> Case:
    """Texts and profiles: large, packed a thousandfold, cut, of other kinds."""
    parts = chunks(base(rng, "PNG"))
    size = rng.choice((0, 100, 70_000, 1_200_000, 5_000_000, 80_000_000, 400_000_000))
    plain = bytes(min(size, 5_000_000))
    key = rng.choice((b"Comment", b"XML:com.adobe.xmp", b"", b"x" * 80, b"Raw profile type exif", b"k\xff\x80"))
    packed = zeros(size)
    body = {
        b"tEXt": key + b"\0" + plain,
        b"zTXt": key + b"\0" + bytes([rng.choice((0, 0, 0, 1))]) + packed,
        b"iTXt": key + b"\0" + bytes([rng.choice((0, 1, 1)), 0]) + b"en\0key\0" + packed,
        b"iCCP": key + b"\0\0" + packed,
    }
    kind = rng.choice(list(body))
    piece = body[kind] if rng.random() < 0.8 else cut(rng, body[kind][:4096])
    for _ in range(rng.choice((1, 1, 1, 3, 300)) if len(piece) < 10_000 else 1):
        parts.insert(rng.randint(1, len(parts)), (kind, piece))
    return case(rng, folder, joined(parts), ".png")


def side(rng: Random, folder: Path) -> Case:
    """Palettes, transparency, gamma, EXIF, animation: wrong lengths and contents, wrong order, missing parts."""
    parts = chunks(base(rng, "PNG"))
    for _ in range(rng.randint(1, 4)):
        kind = rng.choice(
            (
                b"PLTE",
                b"tRNS",
                b"gAMA",
                b"cHRM",
                b"sRGB",
                b"pHYs",
                b"eXIf",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"bKGD",
                b"IDAT",
                b"IHDR",
                b"IEND",
                b"CgBI",
            )
        )
        body = rng.randbytes(rng.choice((0, 1, 3, 4, 6, 8, 26, 32, 256, 768, 1000)))
        if kind == b"eXIf":
            body = ifd_bytes(
                [(0x0112, rng.choice((2, 3, 4, 12)), number(rng, 32), number(rng, 32))], following=rng.choice((0, 8))
            )
        if kind == b"acTL":
            body = be(rng.choice((0, 1, 2, 2**31)), number(rng, 32))
        if kind == b"fcTL":
            body = be(number(rng, 4), *(number(rng, 32) for _ in range(4))) + rng.randbytes(6)
        parts.insert(rng.randint(0, len(parts)), (kind, body))
    if rng.random() < 0.4:
        del parts[rng.randrange(len(parts))]
    return case(rng, folder, joined(parts), ".png")


def pixels(rng: Random, folder: Path) -> Case:
    """The stream of pixels: too short, too long, bombs, filters that do not exist, many pieces."""
    parts = chunks(base(rng, "PNG"))
    at = next(k for k, (kind, _) in enumerate(parts) if kind == b"IDAT")
    body = parts[at][1]
    match rng.randrange(6):
        case 0:
            body = zeros(rng.choice((0, 1, 1000, 10_000_000, 500_000_000)))
        case 1:
            body = zlib.compress(rng.randbytes(5000))
        case 2:
            body = blind(rng, body)
        case 3:
            body = cut(rng, body)
        case 4:
            parts[at : at + 1] = [(b"IDAT", body[k : k + 1]) for k in range(len(body))]
            body = b""
        case 5:
            parts[at : at + 1] = [(b"IDAT", b"")] * rng.choice((10, 1000, 50_000)) + [(b"IDAT", body)]
            body = b""
    if body:
        parts[at] = (b"IDAT", body)
    return case(rng, folder, joined(parts), ".png")


def lengths(rng: Random, folder: Path) -> Case:
    data = base(rng, "PNG")
    begins, at = [], 8
    for _, body in chunks(data):
        begins.append(at)
        at += 12 + len(body)
    if rng.random() < 0.5:
        return case(rng, folder, fields(rng, data, [(begin, 4) for begin in begins], big=True), ".png")
    return case(rng, folder, cut(rng, data, [begin + k for begin in begins for k in (0, 4, 8)]), ".png")


GENERATORS = {f"png.{one.__name__}": one for one in (header, sums, texts, side, pixels, lengths)}
