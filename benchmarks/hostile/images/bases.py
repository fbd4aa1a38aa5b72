"""Valid image files, small, of every format that Pillow writes and of some that it only reads."""

from __future__ import annotations

import functools
import gzip
import io
import struct
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from ..cases import Case
from ..mutate import be, le

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "GIF": ("P", "L", "1"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "DIB": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
    "AVIF": ("L", "RGB", "RGBA"),
    "ICO": ("RGBA", "RGB", "P"),
    "ICNS": ("RGBA", "RGB"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "PCX": ("1", "L", "P", "RGB"),
    "SGI": ("L", "RGB", "RGBA"),
    "DDS": ("L", "LA", "RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "BLP": ("P",),
    "IM": ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "LA"),
    "MSP": ("1",),
    "SPIDER": ("F",),
    "XBM": ("1",),
    "MPO": ("RGB",),
    "EPS": ("L", "RGB", "CMYK"),
}
"""Format -> modes that it is written in."""

COMMON = (
    "PNG",
    "JPEG",
    "TIFF",
    "GIF",
    "BMP",
    "WEBP",
    "JPEG2000",
    "AVIF",
    "ICO",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "QOI",
    "PSD",
    "MPO",
)
"""Formats in which people have images."""

ENDINGS = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "SPIDER": ".spi", "IM": ".im"}


def picture(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without symmetry."""
    random = np.random.default_rng(seed)
    if mode in ("I", "F", "I;16"):
        values = random.integers(0, 60000, (height, width))
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray(values.astype(kind))
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@functools.lru_cache(maxsize=4096)
def encoded(kind: str, mode: str, width: int, height: int, options: tuple[tuple[str, object], ...] = ()) -> bytes:
    file = io.BytesIO()
    picture(mode, width, height).save(file, kind, **dict(options))
    return file.getvalue()


def base(rng: Random, kind: str, **options: object) -> bytes:
    """A valid file of that format, of one of its modes and a few sizes."""
    width, height = rng.choice(((1, 1), (7, 5), (16, 16), (33, 20), (64, 48)))
    if kind in ("ICO", "ICNS"):
        width = height = rng.choice((16, 32))
    return encoded(kind, rng.choice(MODES[kind]), width, height, tuple(sorted(options.items())))


def case(rng: Random, folder: Path, data: bytes, ending: str) -> Case:
    """The file of a case; now and then with another format's ending, as people rename files."""
    if rng.random() < 0.1:
        ending = rng.choice((".jpg", ".png", ".tif", ".gif", ".webp", ".eps", ".fits", ".ico", ".qoi", ".bmp", ""))
    path = folder / f"image{ending}"
    path.write_bytes(data)
    return Case(path)


def ending_of(kind: str) -> str:
    return ENDINGS.get(kind, f".{kind.lower()}")


# --- What Pillow only reads


def fits(width: int = 8, height: int = 6, bitpix: int = 8, **cards: object) -> bytes:
    facts = {"SIMPLE": "T", "BITPIX": bitpix, "NAXIS": 2, "NAXIS1": width, "NAXIS2": height} | cards
    lines = "".join(f"{key:<8}= {value!s:>20}".ljust(80) for key, value in facts.items()) + "END".ljust(80)
    head = lines.encode("latin-1")
    return head.ljust(-(-len(head) // 2880) * 2880) + bytes(range(48)) * (abs(bitpix) // 8) + bytes(2880)


def fits_gzip(width: int, height: int, payload: bytes) -> bytes:
    """A table of compressed tiles, as Pillow reads it."""
    first = fits(0, 0, 8, NAXIS=0)[:2880]
    table = {
        "XTENSION": "'BINTABLE'",
        "BITPIX": 8,
        "NAXIS": 2,
        "NAXIS1": 8,
        "NAXIS2": 1,
        "PCOUNT": len(payload),
        "GCOUNT": 1,
        "ZIMAGE": "T",
        "ZBITPIX": 16,
        "ZNAXIS": 2,
        "ZNAXIS1": width,
        "ZNAXIS2": height,
        "ZCMPTYPE": "'GZIP_1  '",
    }
    lines = "".join(f"{key:<8}= {value!s:>20}".ljust(80) for key, value in table.items()) + "END".ljust(80)
    head = lines.encode()
    return first + head.ljust(-(-len(head) // 2880) * 2880) + be(len(payload), 0) + gzip.compress(payload, 1)


def sun(width: int = 8, height: int = 6, depth: int = 24, kind: int = 1, colours: int = 0) -> bytes:
    return be(0x59A66A95, width, height, depth, width * height * depth // 8, kind, int(colours > 0), colours) + bytes(
        range(200)
    )


def psd(
    width: int = 8, height: int = 6, channels: int = 3, depth: int = 8, mode: int = 3, compression: int = 0
) -> bytes:
    head = b"8BPS" + be(1, size=2) + bytes(6) + be(channels, size=2) + be(height, width) + be(depth, mode, size=2)
    return head + be(0) + be(0) + be(0) + be(compression, size=2) + bytes(width * height * channels)


def fli(width: int = 8, height: int = 6, frames: int = 1) -> bytes:
    head = le(128 + 16 + 6 + 48, size=4) + le(0xAF12, frames, width, height, 8, 3, size=2) + le(10)
    head = head.ljust(128, b"\0")
    frame = le(16 + 6 + 48) + le(0xF1FA, 1, size=2) + bytes(8)
    return head + frame + le(6 + 48) + le(16, size=2) + bytes(width * height)


def gbr(width: int = 8, height: int = 6, depth: int = 1) -> bytes:
    return be(28 + 5, 2, width, height, depth) + b"GIMP" + be(10) + b"name\0" + bytes(width * height * depth)


def ftex(width: int = 8, height: int = 8, kind: int = 1) -> bytes:
    return b"FTEX" + le(0x100, width, height, 1, 1, kind, 32) + le(width * height * 3) + bytes(width * height * 3)


def mcidas(width: int = 8, height: int = 6) -> bytes:
    words = [0] * 64
    words[1], words[8], words[9], words[10], words[13], words[33], words[14] = 4, height, width, 1, 1, 256, 0
    return be(*words) + bytes(width * height)


def pixar(width: int = 8, height: int = 6) -> bytes:
    head = bytearray(1024)
    head[:4] = b"\200\350\000\000"
    head[416:420] = le(height, width, size=2)
    head[424:428] = le(14, 2, size=2)
    return bytes(head) + bytes(width * height * 3)


def pcd() -> bytes:
    return bytes(2048) + b"PCD_".ljust(1538, b"\0") + bytes(96 * 2048 - 2048 - 1538) + bytes(768 * 512 * 3 // 2)


def imt(width: int = 8, height: int = 6) -> bytes:
    return f"*\nwidth {width}\nheight {height}\n".encode() + b"\x0c" + bytes(width * height)


def xpm(width: int = 4, height: int = 3, colours: int = 2, letters: int = 1) -> bytes:
    rows = ",\n".join('"' + "ab"[i % 2] * width * letters + '"' for i in range(height))
    return (
        f'/* XPM */\nstatic char *x[] = {{\n"{width} {height} {colours} {letters}",\n"a c #FF0000",\n"b c None",\n{rows}\n}};\n'
    ).encode()


def xvthumb(width: int = 8, height: int = 6) -> bytes:
    return b"P7 332\n#END_OF_COMMENTS\n" + f"{width} {height} 255\n".encode() + bytes(width * height)


def dcx(pages: int = 1) -> bytes:
    page = encoded("PCX", "L", 7, 5)
    table = le(987654321, *(4 * (pages + 2) for _ in range(pages)), 0)
    return table + page


def pfm(width: int = 4, height: int = 3, scale: str = "-1.0") -> bytes:
    return f"Pf\n{width} {height}\n{scale}\n".encode() + struct.pack("<12f", *range(12))


def blp1(width: int = 8, height: int = 8) -> bytes:
    return b"BLP1" + le(1, 0, width, height, 5, 1) + le(*([156 + 1024] * 16)) + le(*([64] * 16)) + bytes(1024 + 128)


def wmf() -> bytes:
    return b"\xd7\xcd\xc6\x9a\0\0" + le(0, 0, 100, 100, 1440, size=2) + bytes(6) + b"\x01\0\x09\0" + bytes(40)


READ_ONLY = {
    "FITS": fits,
    "SUN": sun,
    "PSD": psd,
    "FLI": fli,
    "GBR": gbr,
    "FTEX": ftex,
    "MCIDAS": mcidas,
    "PIXAR": pixar,
    "PCD": pcd,
    "IMT": imt,
    "XPM": xpm,
    "XVTHUMB": xvthumb,
    "DCX": dcx,
    "PFM": pfm,
    "BLP1": blp1,
    "WMF": wmf,
}
