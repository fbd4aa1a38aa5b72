"""What stands in an image file around its pixels: formats told apart, metadata left out, and the cost known before anything is decoded.

Pillow sees only what it needs for the pixels. A file whose text, profiles, animation or directories are damaged or without end is thus as
good as its pixels, and no format is opened that starts another program, or that a decoder in pure Python would take minutes for.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, _imaging, features

FORMATS = (
    "AVIF",
    "BMP",
    "GIF",
    "HEIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "PCX",
    "PNG",
    "PPM",
    "PSD",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
"""By the names that Pillow gives them: what is opened, where Pillow can. All others are refused, also inside these."""

ALIASES = ("DIB", "MPO")
"""Formats whose endings also stand for files of these: .dib of BMP, .mpo of JPEG."""

_PLUGINS = (
    "Avif",
    "Bmp",
    "Gif",
    "Ico",
    "Jpeg",
    "Jpeg2K",
    "Mpo",
    "Pcx",
    "Png",
    "Ppm",
    "Psd",
    "Qoi",
    "Sgi",
    "Tga",
    "Tiff",
    "WebP",
)
"""Pillow's modules that have them; HEIF is pillow-heif's."""

_MOST_PARTS = 1 << 18
"""Segments, chunks, blocks or boxes of a file that are looked at: so many have no image of their own accord."""

_MOST_METADATA = 1 << 20
"""Bytes of one piece of metadata that is looked into."""


class Unreadable(Exception):
    """A file that is not decoded; the reason in words."""


@dataclass(frozen=True)
class Encoded:
    """An image file as Pillow gets it."""

    kind: str
    """One of `FORMATS`."""
    data: bytes
    orientation: int | None = None
    """EXIF orientation 1..8 where it was read, and left out of `data`; None: Pillow knows."""
    bytes_per_pixel: float = 0.0
    """What the decoder needs beside the pixels that it makes."""
    passes: int = 1
    """How often the decoder goes over the whole image."""
    slow: bool = False
    """Decoded in Python."""
    canvas: tuple[int, int] | None = None
    """Width and height of what Pillow makes room for already when it opens the file; None: of nothing."""

    def opened(self) -> Image.Image:
        """The image, of which only the header has been read. Whatever a decoder fed with damaged bytes raises."""
        factory, _ = Image.OPEN[self.kind]
        # Not by `Image.open`, which would try all the formats that it knows of.
        return factory(io.BytesIO(self.data), "")

    def cost(self, width: int, height: int, made: tuple[int, int], mode: str) -> tuple[int, float]:
        """Bytes that decoding takes at most, without the file's own, and about how many seconds on a slow core.

        made: the width and height that come of it, where not all pixels do.
        """
        pixels = width * height
        stored = 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4
        overhead, per_megapixel, per_megabyte = _COSTS[self.kind]
        if self.slow:
            per_megapixel, per_megabyte = 0.05, 0.6
        seconds = pixels * per_megapixel + len(self.data) * per_megabyte + (self.passes - 1) * pixels * 0.002
        return int(made[0] * made[1] * stored + pixels * (overhead + self.bytes_per_pixel)), seconds / 10**6


_COSTS = {
    "AVIF": (12.0, 0.03, 0.2),
    "BMP": (0.1, 0.02, 0.0),
    "GIF": (4.0, 0.02, 0.02),
    "HEIF": (8.0, 0.06, 0.4),
    "ICO": (8.0, 0.05, 0.1),
    "JPEG": (0.1, 0.02, 0.04),
    "JPEG2000": (16.0, 0.1, 0.4),
    "PCX": (0.1, 0.03, 0.0),
    "PNG": (0.1, 0.035, 0.01),
    "PPM": (0.1, 0.01, 0.0),
    "PSD": (2.0, 0.02, 0.0),
    "QOI": (7.0, 0.05, 0.7),
    "SGI": (2.0, 0.02, 0.0),
    "TGA": (0.1, 0.02, 0.0),
    "TIFF": (0.1, 0.03, 0.05),
    "WEBP": (12.0, 0.05, 0.2),
}
"""Bytes per pixel beside the image itself, seconds per million pixels, seconds per million bytes of the file; measured with Pillow 13 on
flat images and on noise, on one core that was busy with other things too."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are opened here: `FORMATS` that the installed Pillow decodes, HEIF where pillow-heif is installed."""
    with_heif()
    for module in _PLUGINS:
        # Not `Image.init`, which loads thirty more, at the start of every command.
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{module}ImagePlugin")
    _silence_libtiff()
    missing = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000", "JPEG": "jpg"}
    return tuple(
        kind for kind in FORMATS if kind in Image.OPEN and (kind not in missing or features.check(missing[kind]))
    )


def _silence_libtiff() -> None:
    """Keep libtiff from writing its remarks on damaged files to standard error by itself; the reason is in Pillow's exception."""
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without it, or that hides it
        library = ctypes.CDLL(_imaging.__file__)  # finds what that is linked with, too
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)


@functools.cache
def with_heif() -> bool:
    """Whether HEIC photos are read, which takes the package pillow-heif."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@functools.cache
def extensions() -> frozenset[str]:
    """Lower-case file name endings, with their dot, that are taken for images."""
    known = {*formats(), *ALIASES}  # which has loaded what registers them
    return frozenset(ending for ending, kind in Image.EXTENSION.items() if kind in known)


def kind_of(data: bytes) -> str | None:
    """Which of `FORMATS` the file is in by its first bytes, whether or not it is whole; None: in none of them."""
    for kind, pattern in _MAGIC:
        if pattern.match(data):
            return kind
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 512)]
        if re.search(rb"avi[fs]", brands):
            return "AVIF"
        return "HEIF" if re.search(rb"hei[cxms]|hev[cxms]|mif1|msf1", brands) else None
    return "TGA" if _is_tga(data) else None


_MAGIC = [
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in (
        ("JPEG", rb"\xff\xd8\xff"),
        ("PNG", rb"\x89PNG\r\n\x1a\n"),
        ("GIF", rb"GIF8[79]a"),
        ("BMP", rb"BM"),
        ("TIFF", rb"II[*+]\0|MM\0[*+]"),
        ("WEBP", rb"RIFF....WEBP"),
        ("ICO", rb"\x00\x00\x01\x00"),
        ("JPEG2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
        ("PPM", rb"P[1-6][\s#]|Pf\s"),
        ("PSD", rb"8BPS"),
        ("QOI", rb"qoif"),
        ("SGI", rb"\x01\xda"),
        ("PCX", rb"\x0a[\x00\x02\x03\x05][\x00\x01][\x01\x02\x04\x08]"),
    )
]


def _is_tga(data: bytes) -> bool:
    """By the header, as the format begins with no mark of its own: one that fits the file's length."""
    if len(data) < 18:
        return False
    if data.startswith(b"\0\0\2\0") and data[4:6] != b"\0\0":
        return False  # a mouse pointer
    name, palette, kind, _, entries, entry_bits, _, _, width, height, bits, flags = struct.unpack(
        "<BBBHHBHHHHBB", data[:18]
    )
    if (
        palette > 1
        or kind not in (1, 2, 3, 9, 10, 11)
        or bits not in (1, 8, 16, 24, 32)
        or not width
        or not height
        or flags & 0xC0
    ):
        return False
    before = 18 + name + palette * entries * entry_bits // 8
    shortest = width * height * bits // 8 if kind < 9 else width * height * (1 + bits // 8) // 128
    # A file cut short is still one, if it is named so at its end or has at least half of its pixels.
    return len(data) >= before + shortest // 2


def read(data: bytes) -> Encoded:
    """The file as Pillow shall see it. Unreadable if it is in no format that is opened here, or hopeless."""
    kind = kind_of(data)
    if kind is None or kind not in formats():
        raise Unreadable(_other(kind, data))
    try:
        return _READERS.get(kind, functools.partial(Encoded, kind))(data)
    except (struct.error, IndexError):
        raise Unreadable("it is truncated: the file ends before the image does") from None


_OTHERS = [
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing (EPS)"),
    (rb"%PDF", "a PDF document"),
    (rb"SIMPLE  =", "a FITS file"),
    (rb"DDS ", "a DDS texture"),
    (rb"gimp xcf", "a GIMP file"),
    (rb"\x1f\x8b|PK\x03\x04|7z\xbc\xaf|Rar!", "an archive"),
    (rb"RIFF....AVI |....ftyp(?:mp4|isom|qt)", "a video"),
    (rb"icns", "an Apple icon"),
    (rb"\x00\x00\x02\x00", "a mouse pointer"),
    (rb"FORM|\x59\xa6\x6a\x95|SDPX|XPDS|v/1\x01", "an image in a format that is not read here"),
]


def _other(kind: str | None, data: bytes) -> str:
    """What a file that is not opened is instead, as far as its first bytes tell."""
    head = data[:512].lstrip()
    if kind == "HEIF":
        return "it is a HEIC photo; install the package pillow-heif to read it: pip install pillow-heif"
    if kind is not None:
        return f"it is in the format {kind}, which the installed Pillow was built without"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the image; fetch the images with `git lfs pull`"
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "it is an SVG drawing; convert it to PNG first"
    if head[:1] == b"<" and (b"<html" in head.lower() or b"<!doctype" in head.lower()):
        return "it is a web page, not an image"
    for pattern, name in _OTHERS:
        if re.match(pattern, data, re.DOTALL):
            return f"it is {name}; convert it to PNG first"
    if not data.strip(b"\0"):
        return f"its {len(data)} bytes are all zero"
    return "it is not in an image format that is read here"


# --- Format by format


def _too_many(what: str) -> Unreadable:
    return Unreadable(f"it has more than {_MOST_PARTS:,} {what}")


_SEGMENT = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")
"""The start of a JPEG segment; bytes before it are passed over, as by the decoder."""


def _jpeg(data: bytes) -> Encoded:
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    view, position, exif, xmp = memoryview(data), 2, b"", b""
    frame: bytes | memoryview = b""
    progressive = complete = False
    for _ in range(_MOST_PARTS):
        found = _SEGMENT.search(data, position)
        if found is None or found[1] == b"\xd9":
            break
        marker, start = found[1][0], found.end()
        if marker == 0xDA:
            kept.append(view[found.end() - 2 :])
            complete = True
            break
        position = start + int.from_bytes(data[start : start + 2], "big")
        body = view[start + 2 : position]
        if position < start + 2 or position > len(data):
            break
        if marker == 0xE1:
            if body[:6] == b"Exif\0\0" and len(exif) < _MOST_METADATA:
                exif += bytes(body[6:])
            elif bytes(body[:29]) == b"http://ns.adobe.com/xap/1.0/\0":
                xmp = bytes(body[29:])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or bytes(body[:5]) in (b"JFIF\0", b"Adobe"):
            kept.append(view[found.end() - 2 : position])
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                frame, progressive = body, marker & 3 == 2
    else:
        raise _too_many("segments before its pixels")
    if not complete:
        raise Unreadable("it is truncated: the file ends before its pixels begin" if position >= 2 else "it is damaged")
    scans = 1
    coefficients = 0.0
    if progressive:
        scans = data.count(b"\xff\xda", len(data) - len(kept[-1]))
    if progressive or (
        len(frame) > 6 and len(kept[-1]) > 5 and kept[-1][4] < frame[5]
    ):  # several scans: all are kept until the last
        sampling = [(value >> 4, value & 15) for value in frame[7::3]]
        widest, tallest = (max([1, *extents]) for extents in zip(*sampling, strict=True)) if sampling else (1, 1)
        coefficients = 2.0 * sum(across * down for across, down in sampling) / (widest * tallest)
        scans = max(scans, len(sampling))
    return Encoded("JPEG", b"".join(kept), _orientation(exif, xmp), coefficients, scans)


def _png(data: bytes) -> Encoded:
    view, position = memoryview(data), 8
    chunks: dict[bytes, memoryview] = {}
    pixels: list[memoryview] = []
    exif = xmp = b""
    for _ in range(_MOST_PARTS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        body = view[position + 8 : position + 8 + length]
        whole = position + 12 + length <= len(data)
        if kind == b"IDAT":
            pixels.append(body)
        elif kind == b"IEND":
            break
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"iTXt", b"zTXt", b"tEXt") and kind not in chunks and whole:
            checksum = int.from_bytes(view[position + 8 + length : position + 12 + length], "big")
            sound = zlib.crc32(view[position + 4 : position + 8 + length]) == checksum
            if kind in (b"IHDR", b"PLTE") and not sound:
                raise Unreadable(
                    f"it is damaged: its {'header' if kind == b'IHDR' else 'palette'} does not match its checksum"
                )
            if kind in (b"iTXt", b"zTXt", b"tEXt"):
                if sound and length <= _MOST_METADATA:
                    exif, xmp = _png_text(kind, bytes(body), exif, xmp)
            elif sound:
                chunks[kind] = body
        elif kind == b"CgBI" and not chunks:
            raise Unreadable(
                "it is a PNG as Apple's tools rewrite them for apps (CgBI); convert it to a usual PNG first"
            )
        position += 12 + length
    else:
        raise _too_many("chunks")
    if b"IHDR" not in chunks:
        raise Unreadable("it is damaged: it has no header")
    if not pixels:
        raise Unreadable("it is truncated: the file ends before its pixels begin")
    if b"eXIf" in chunks and len(chunks[b"eXIf"]) <= _MOST_METADATA:
        exif = bytes(chunks[b"eXIf"])
    parts: list[bytes | memoryview] = [b"\x89PNG\r\n\x1a\n"]
    for kind in (b"IHDR", b"PLTE", b"tRNS"):
        if kind in chunks:
            parts += _chunk(kind, [chunks[kind]])
    parts += [*_chunk(b"IDAT", pixels), *_chunk(b"IEND", [])]
    return Encoded("PNG", b"".join(parts), _orientation(exif, xmp))


def _chunk(kind: bytes, pieces: list[memoryview]) -> Iterator[bytes | memoryview]:
    yield struct.pack(">I4s", sum(map(len, pieces)), kind)
    yield from pieces
    checksum = zlib.crc32(kind)
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    yield struct.pack(">I", checksum)


def _png_text(kind: bytes, body: bytes, exif: bytes, xmp: bytes) -> tuple[bytes, bytes]:
    """EXIF and XMP data, with those that a PNG's chunk of text may hold."""
    key, _, text = body.partition(b"\0")
    if kind == b"iTXt" and key == b"XML:com.adobe.xmp":
        compressed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
        return exif, _inflated(text) if compressed else text
    if kind != b"iTXt" and key == b"Raw profile type exif":  # as ImageMagick writes it: in hexadecimal digits
        try:
            return bytes.fromhex(
                "".join((_inflated(text[1:]) if kind == b"zTXt" else text).decode("ascii").split("\n")[3:])
            ), xmp
        except ValueError:
            pass
    return exif, xmp


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_METADATA)
    except zlib.error:
        return b""


def _gif(data: bytes) -> Encoded:
    """Without what stands before the first image, but for what says which colour is transparent."""
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    position, control, blocks = start, b"", 0
    while data[position] != 0x3B:
        if data[position] == 0x2C:
            # Pillow would enlarge the canvas to where its image ends.
            left, top, width, height = struct.unpack_from("<4H", data, position + 1)
            across, down = struct.unpack_from("<2H", data, 6)
            if left + width > 2 * across + 4096 or top + height > 2 * down + 4096:
                raise Unreadable("it is damaged: its image lies outside of its canvas")
            parts = (data[:start], control, memoryview(data)[position:])
            canvas = max(across, left + width), max(down, top + height)
            return Encoded("GIF", data if position == start else b"".join(parts), canvas=canvas)
        begin = position
        if data[position] == 0x21:
            position += 2
            while data[position]:
                position += 1 + data[position]
                blocks += 1
                if blocks > _MOST_PARTS:
                    raise _too_many("blocks before its image")
            if data[begin + 1] == 0xF9:
                control = data[begin : position + 1]
        position += 1
        blocks += 1
        if blocks > _MOST_PARTS:
            raise _too_many("blocks before its image")
    raise Unreadable("it has no image")


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value, by the number of its type."""

_TIFF_TAGS = frozenset(
    {
        254,
        255,
        256,
        257,
        258,
        259,
        262,
        263,
        266,
        273,
        274,
        277,
        278,
        279,
        280,
        281,
        284,
        292,
        293,
        296,
        301,
        317,
        318,
        319,
        320,
    }
    | {322, 323, 324, 325, 332, 334, 336, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532}
)
"""What the pixels depend on."""


def _tiff(data: bytes) -> Encoded:
    """Where there are more pages, further directories or much metadata: with a directory of its own for the first page's pixels only."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    counter, entry, pointer = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    (count,) = struct.unpack_from(order + counter, data, at)
    first, step, inline = at + struct.calcsize(order + counter), struct.calcsize(order + entry), 8 if big else 4
    if count > 65535:
        raise Unreadable("it is damaged: its directory has too many entries")
    kept, values, dropped, metadata = {}, {}, False, 0
    for number in range(count):
        tag, kind, amount, value = struct.unpack_from(order + entry, data, first + number * step)
        total = amount * _TIFF_SIZES.get(kind, 1)
        where = value if total <= inline else None
        if where is None:
            (offset,) = struct.unpack(order + pointer, value)
            if offset + total > len(data):
                dropped = True
                continue
            where = data[offset : offset + min(total, 8)]
        if tag not in _TIFF_TAGS or tag in kept:
            metadata += total
            dropped |= tag in (330, 34665, 34853, 40965) or tag in kept
            continue
        kept[tag] = struct.pack(order + entry, tag, kind, amount, value)
        code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
        if code is not None and amount:
            (values[tag],) = struct.unpack_from(order + code, where)
    end = first + count * step
    if dropped or metadata > _MOST_METADATA or data[end : end + inline].strip(b"\0"):
        place = len(data) + len(data) % 2
        directory = [struct.pack(order + counter, len(kept)), *(kept[tag] for tag in sorted(kept)), bytes(inline)]
        header = (
            data[:8] + struct.pack(order + pointer, place) if big else data[:4] + struct.pack(order + pointer, place)
        )
        data = b"".join([header, memoryview(data)[len(header) :], bytes(len(data) % 2), *directory])
    width, height, samples = values.get(256, 0), values.get(257, 0), values.get(277, 1)
    if not width or not height:
        raise Unreadable("it is damaged: its directory has no extent")
    row = width * samples * values.get(258, 1) / 8
    buffer = 0.0 if values.get(259, 1) == 1 else row * min(values.get(278, height), height)
    if 322 in values and 323 in values:
        across, down = values[322], values[323]
        if across > 2 * width + 4096 or down > 2 * height + 4096:
            raise Unreadable("it is damaged: its tiles are far larger than the image")
        buffer = across * down * samples * values.get(258, 1) / 8
    turned = 4.0 if 2 <= values.get(274, 1) <= 8 else 0.0
    return Encoded("TIFF", data, None, buffer / (width * height) + turned)


def _webp(data: bytes) -> Encoded:
    position, exif, xmp, canvas = 12, b"", b"", None
    for _ in range(_MOST_PARTS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind in (b"EXIF", b"XMP ") and length <= _MOST_METADATA:
            body = data[position + 8 : position + 8 + length]
            exif, xmp = (body or exif, xmp) if kind == b"EXIF" else (exif, body or xmp)
        elif kind == b"VP8X":
            canvas = _triplet(data, position + 12), _triplet(data, position + 15)
            if max(canvas) >= 16384:
                raise Unreadable("it is damaged: a WebP image has at most 16,383 pixels a side")
        position += 8 + length + length % 2
    else:
        raise _too_many("chunks")
    return Encoded("WEBP", data, _orientation(exif, xmp), canvas=canvas)


def _triplet(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little") + 1


def _ico(data: bytes) -> Encoded:
    """The largest image of the icon: a PNG, or a bitmap of a sort of its own."""
    (count,) = struct.unpack_from("<H", data, 4)
    entries = []
    for number in range(count):
        width, height, colours, _, _, bits, length, offset = struct.unpack_from("<4B2H2I", data, 6 + 16 * number)
        depth = bits or (colours and (colours - 1).bit_length()) or 256
        entries.append(((width or 256) * (height or 256), -depth, -number, length, offset))
    if not entries:
        raise Unreadable("it has no image")
    *_, length, offset = max(entries)
    part = data[offset : offset + length]
    if part.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(part)
    size, width, height = struct.unpack_from("<Iii", data, offset)
    if size < 40 or not 0 < width <= 1024 or not 0 < height <= 2048 or len(part) < 40:
        raise Unreadable("it is damaged: its bitmap is no icon's")
    if struct.unpack_from("<I", data, offset + 16)[0] not in (0, 3):
        raise Unreadable("its bitmap is compressed in a way that no icon's is")
    return Encoded("ICO", data)


def _jpeg_2000(data: bytes) -> Encoded:
    position = 0
    for _ in range(_MOST_PARTS >> 4):
        if data[:4] == b"\xff\x4f\xff\x51" or position + 8 > len(data):
            return Encoded("JPEG2000", data)
        length, kind = struct.unpack_from(">I4s", data, position)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
        if kind == b"jp2h":
            position += 8  # its boxes count too
            continue
        if length == 0 or kind == b"jp2c":
            return Encoded("JPEG2000", data)
        position += max(length, 8)
    raise _too_many("boxes")


_PPM_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*+[\r\n])*+(\d{1,9})")
_LONGEST_HEADER = 1 << 16
_LONGEST_TEXT = 1 << 25


def _ppm(data: bytes) -> Encoded:
    """As the binary kind with 255 or 65,535 as its greatest value: all else Pillow decodes in Python, for seconds a megapixel."""
    if data.startswith(b"Pf"):
        if re.match(rb"Pf\s+\d{1,9}\s+\d{1,9}\s+[-+.\deE]{1,32}\s", data) is None:
            raise Unreadable("it is damaged: its header has no extent")
        return Encoded("PPM", data)
    numbers: list[int] = []
    kind, position = data[1] - 48, 2
    header = data[:_LONGEST_HEADER]
    for _ in range(2 if kind in (1, 4) else 3):
        found = _PPM_NUMBER.match(header, position)
        if found is None:
            raise Unreadable("it is damaged: its header has no extent")
        numbers.append(int(found[1]))
        position = found.end()
    width, height, greatest = (*numbers, 1)[:3]
    if not 0 < greatest < 65536:
        raise Unreadable(f"it is damaged: its greatest value is {greatest}")
    if kind < 4 and len(data) > _LONGEST_TEXT:
        raise Unreadable(
            f"it is written as text of more than {_LONGEST_TEXT // 10**6} MB; convert it to the binary kind first"
        )
    position += 1  # the one blank
    colours = 3 if kind in (3, 6) else 1
    header = b"P%d %d %d " % ((kind - 1) % 3 + 4, width, height)
    if kind == 4 or (kind > 4 and greatest in (255, 65535 if kind == 5 else 255)):
        ending = b"" if kind == 4 else b"%d " % greatest
        return Encoded("PPM", b"".join([header, ending, memoryview(data)[position:]]))
    wanted = width * height * colours
    if kind == 1:
        bits = re.sub(rb"#[^\r\n]*|\s+", b"", data[position - 1 :])[:wanted]
        if bits.strip(b"01"):
            raise Unreadable("it is damaged: it has other pixels than 0 and 1")
        rows = np.frombuffer(_filled(bits, wanted), np.uint8).reshape(height, width) & 1
        return Encoded("PPM", header + np.packbits(rows, axis=1).tobytes())
    if kind < 4:
        values = _plain_numbers(data, position - 1, wanted)
    else:
        values = np.frombuffer(
            data,
            ">u2" if greatest > 255 else np.uint8,
            offset=position,
            count=-1 if greatest < 256 else (len(data) - position) // 2,
        )
    values = values[:wanted]
    if len(values) < wanted:
        raise Unreadable("it is truncated: the file ends before the image does")
    if kind < 4 and len(values) and int(values.max()) > greatest:
        raise Unreadable("it is damaged: a value is greater than its greatest value")
    top = 65535 if greatest > 255 and colours == 1 else 255
    table = np.array([min(top, round(value / greatest * top)) for value in range(65536 if greatest > 255 else 256)])
    scaled = table.astype(">u2" if top > 255 else np.uint8)[values]
    return Encoded("PPM", b"".join([header, b"%d " % top, scaled.data if top == 255 else scaled.tobytes()]))


def _filled(bits: bytes, wanted: int) -> bytes:
    if len(bits) < wanted:
        raise Unreadable("it is truncated: the file ends before the image does")
    return bits


_BLANK_OR_END = re.compile(rb"\s|$")


def _plain_numbers(data: bytes, position: int, wanted: int) -> np.ndarray:
    """The first numbers written out in a text, int64."""
    found: list[np.ndarray] = []
    count = 0
    while position < len(data) and count < wanted:
        end = data.find(b"\n", position + (1 << 20))
        if end < 0 or end > position + (1 << 22):
            space = _BLANK_OR_END.search(data, position + (1 << 20))
            assert space is not None
            end = space.start()
        words = re.sub(rb"#[^\r\n]*", b"", data[position : end + 1]).split()
        if any(len(word) > 5 or not word.isdigit() for word in words):
            raise Unreadable("it is damaged: its pixels are not whole numbers up to 65,535")
        found.append(np.array(words).astype(np.int64) if words else np.empty(0, np.int64))
        count += len(words)
        position = end + 1
    return np.concatenate([np.empty(0, np.int64), *found])


def _bmp(data: bytes) -> Encoded:
    size, compression = struct.unpack_from("<I", data, 14)[0], 0
    if size >= 40:
        (compression,) = struct.unpack_from("<I", data, 30)
    return Encoded("BMP", data, slow=compression in (1, 2), bytes_per_pixel=2.0 if compression in (1, 2) else 0.0)


def _psd(data: bytes) -> Encoded:
    """Without the resources and the layers: only the finished picture behind them is looked at."""
    position = 26
    (length,) = struct.unpack_from(">I", data, position)
    colours = data[position : position + 4 + length]
    position += 4 + length
    for _ in range(2):
        (length,) = struct.unpack_from(">I", data, position)
        position += 4 + length
    if position >= len(data):
        raise Unreadable("it is truncated: the file ends before its pixels begin")
    return Encoded("PSD", b"".join([data[:26], colours, bytes(8), memoryview(data)[position:]]))


def _heif(data: bytes) -> Encoded:
    return Encoded("HEIF", data)


_READERS: dict[str, Any] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "TIFF": _tiff,
    "WEBP": _webp,
    "ICO": _ico,
    "JPEG2000": _jpeg_2000,
    "PPM": _ppm,
    "BMP": _bmp,
    "PSD": _psd,
}


# --- Orientation


def _orientation(exif: bytes, xmp: bytes) -> int:
    """EXIF orientation 1..8, from the EXIF data or else from the XMP; 1 (upright) where neither says, or they are damaged."""
    value = exif_orientation(exif)
    if value is None:
        found = re.search(rb"tiff:Orientation(?:=\"|>)([0-9])", xmp)
        value = int(found[1]) if found else 1
    return value if 1 <= value <= 8 else 1


def exif_orientation(exif: bytes) -> int | None:
    """What the EXIF data (as in a JPEG, or without the "Exif" before them) say of the orientation, any number; None: nothing."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, at)
        for number in range(count):
            tag, kind, amount = struct.unpack_from(order + "HHI", exif, at + 2 + 12 * number)
            if tag == 0x0112:
                code = {1: "B", 3: "H", 4: "I"}.get(kind)
                return (
                    struct.unpack_from(order + code, exif, at + 10 + 12 * number)[0] if code and amount == 1 else None
                )
    except struct.error:
        pass
    return None
