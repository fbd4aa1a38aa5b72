"""Small files of large pictures, whole or not; thin ones; and any valid file, spoiled blindly."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from ..cases import Case
from ..mutate import be, blind, cut, le
from .bases import COMMON, MODES, READ_ONLY, base, case, ending_of, fits, fits_gzip
from .png import flat, zeros

THIN = (
    (3000, 1),
    (1, 3000),
    (20_000, 1),
    (1, 20_000),
    (300, 7),
    (200_000, 1),
    (1, 1_000_000),
    (10_000_000, 1),
    (1000, 3),
    (65_000, 2),
)
LARGE = (
    (4000, 4000),
    (9000, 9000),
    (13_300, 13_300),
    (13_377, 13_377),
    (20_000, 20_000),
    (30_000, 3000),
    (100_000, 100_000),
    (2**31 - 1, 1),
)


def thin(rng: Random, folder: Path) -> Case:
    """One or a few pixels wide, thousands to millions long."""
    width, height = rng.choice(THIN)
    kind = rng.choice(("PNG", "PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF", "WEBP"))
    if kind in ("JPEG", "GIF", "WEBP"):
        most = 16_000 if kind == "WEBP" else 65_000
        width, height = min(width, most), min(height, most)
    if kind == "PNG":
        depth, colour = rng.choice(((1, 0), (8, 0), (8, 2), (8, 6), (16, 6), (4, 3)))
        data = flat(width, height, depth, colour)
    else:
        data = _thin(kind, width, height)
    return case(rng, folder, data, ending_of(kind))


@functools.lru_cache(maxsize=100)
def _thin(kind: str, width: int, height: int) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(np.zeros((height, width), np.uint8)).convert("RGB" if kind == "WEBP" else "L").save(file, kind)
    return file.getvalue()


def large(rng: Random, folder: Path) -> Case:
    """PNG of hundreds of millions of pixels in some kilobytes, in every depth and colour."""
    width, height = rng.choice(LARGE)
    depth, colour = rng.choice(((1, 0), (8, 0), (8, 2), (8, 4), (8, 6), (16, 0), (16, 2), (16, 6), (1, 3), (8, 3)))
    extra = [(b"tRNS", bytes(range(10)))] if colour == 3 and rng.random() < 0.7 else []
    if width * height > 200e6:  # refused for what it says: what follows need not be there
        head = be(width, height) + bytes([depth, colour, 0, 0, rng.randrange(2)])
        from .png import joined

        return case(rng, folder, joined([(b"IHDR", head), (b"IDAT", zeros(1000)), (b"IEND", b"")]), ".png")
    return case(rng, folder, flat(width, height, depth, colour, *extra), ".png")


def packed(rng: Random, folder: Path) -> Case:
    """Large extents in formats that pack runs or promise pixels: QOI, GIF, TGA, PCX, SGI, FITS, PPM, BMP, FLI, SUN, WebP, DDS, TIFF."""
    side = rng.choice((3000, 9000, 13_300, 16_000, 30_000, 65_535))
    many = rng.choice((0, 1000, 1_000_000))
    data, ending = rng.choice(
        (
            lambda: (b"qoif" + be(side, side) + b"\x03\0" + b"\xfd" * many, ".qoi"),
            lambda: (b"qoif" + be(side, side) + b"\x04\0" + b"\xc1\x40\x80" * many, ".qoi"),
            lambda: (b"\0\0\x0a" + bytes(9) + le(side, side, size=2) + b"\x18\0" + b"\xff\0\0\0" * many, ".tga"),
            lambda: (
                b"\0\x01\x09"
                + le(0, 256, size=2)
                + b"\x18"
                + bytes(4)
                + le(side, side, size=2)
                + b"\x08\0"
                + bytes(768)
                + b"\xff\0" * many,
                ".tga",
            ),
            lambda: (
                b"\x0a\x05\x01\x08"
                + le(0, 0, side - 1, side - 1, 72, 72, size=2)
                + bytes(49)
                + b"\x03"
                + le(side, size=2)
                + bytes(60)
                + b"\xff\0" * many,
                ".pcx",
            ),
            lambda: (b"\x01\xda\x01\x01" + be(3, side, side, 3, size=2) + bytes(500) + bytes(many), ".sgi"),
            lambda: (fits(side, side, rng.choice((8, 16, -32, -64))) + bytes(many), ".fits"),
            lambda: (fits_gzip(side, side, b"x" * 100), ".fits"),
            lambda: (fits_gzip(side, min(side, 13_300), bytes(min(many * 50, 30_000_000))), ".fits"),
            lambda: (f"P6\n{side} {side}\n255\n".encode() + bytes(many), ".ppm"),
            lambda: (f"P3\n{side} {side}\n65535\n".encode() + b"1 " * many, ".ppm"),
            lambda: (f"P1\n{side} {side}\n".encode() + b"0" * many, ".pbm"),
            lambda: (b"BM" + le(0, 0, 54, 40, side, side) + le(1, 24, size=2) + bytes(24) + bytes(many), ".bmp"),
            lambda: (
                b"BM"
                + le(0, 0, 1078, 40, side, side)
                + le(1, 8, size=2)
                + le(1, 0, 0, 0, 0, 0)
                + bytes(1024)
                + b"\xff\x01" * many,
                ".bmp",
            ),
            lambda: (be(0x59A66A95, side, side, 24, side * side * 3, 2, 0, 0) + b"\x80\xff\0" * many, ".ras"),
            lambda: (
                b"DDS " + le(124, 0x1007, side, side) + bytes(60) + le(32, 4) + b"DXT1" + bytes(40) + bytes(many),
                ".dds",
            ),
            lambda: (
                b"RIFF"
                + le(252 - 8)
                + b"WEBPVP8L"
                + le(232)
                + b"\x2f"
                + le((side & 0x3FFF) | (side & 0x3FFF) << 14)
                + bytes(many % 1000),
                ".webp",
            ),
            lambda: (
                b"GIF89a"
                + le(side, side, size=2)
                + b"\xf0\0\0"
                + bytes(6)
                + b","
                + le(0, 0, side, side, size=2)
                + b"\0\x08"
                + (b"\xff" + bytes(255)) * (many // 255)
                + b"\0;",
                ".gif",
            ),
            lambda: (
                f"#define a_width {side}\n#define a_height {side}\nstatic char a_bits[] = {{".encode()
                + b"0x00," * many,
                ".xbm",
            ),
        )
    )()
    return case(rng, folder, data, ending)


def _kind(rng: Random) -> str:
    """Any format, rather one that people have."""
    return rng.choice(COMMON) if rng.random() < 0.75 else rng.choice((*MODES, *READ_ONLY))


def spoiled(rng: Random, folder: Path) -> Case:
    """A valid file of any format, changed or cut anywhere."""
    kind = _kind(rng)
    data = base(rng, kind) if kind in MODES else READ_ONLY[kind]()
    data = cut(rng, data) if rng.random() < 0.25 else blind(rng, data)
    return case(rng, folder, data, ending_of(kind))


def valid(rng: Random, folder: Path) -> Case:
    """As it should be: what is refused here is refused wrongly, or is a format that nothing here reads."""
    kind = _kind(rng)
    data = base(rng, kind) if kind in MODES else READ_ONLY[kind]()
    return case(rng, folder, data + rng.choice((b"", b"", bytes(100))), ending_of(kind))


_STARTS = (
    b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0",
    b"RIFF\0\0\0\0WEBP", b"8BPS", b"qoif", b"DDS ", b"\0\0\x01\0", b"icns", b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51", b"\0\0\0\x20ftypavif", b"\0\0\0\x20ftypheic", b"SIMPLE  =", b"\x1c\x02\x00\x00",
    b"%!PS-Adobe-3.0", b"\x01\xda", b"\x0a\x05", b"P6\n", b"#define", b"/* XPM */", b"\xd7\xcd\xc6\x9a",
    b"\x89HDF\r\n\x1a\n", b"GRIB", b"BUFR", b"\0\0\x01\xba", b"<svg xmlns='x'>", b"<!DOCTYPE html><html>",
    b"version https://git-lfs.github.com/spec/v1\n", b"%PDF-1.4\n", b"PK\x03\x04", b"\x1f\x8b\x08", b"BLP2",
    b"FTEX", b"\0" * 1000, b"", b"\xef\xbb\xbf", b"DanM", b"\x80\xe8\0\0",
)  # fmt: skip
"""Of files of all kinds, not only images."""


def noise(rng: Random, folder: Path) -> Case:
    """The first bytes of some format and anything after them; or nothing; or what is no image at all."""
    start = rng.choice(_STARTS)
    return case(
        rng, folder, start + rng.randbytes(rng.choice((0, 1, 10, 100, 5000))), rng.choice((".jpg", ".png", ".tif"))
    )


GENERATORS = {f"any.{one.__name__}": one for one in (thin, large, packed, spoiled, valid, noise)}
