"""JPEG: segments, frames, scans, metadata."""

from __future__ import annotations

from pathlib import Path
from random import Random

from ..cases import Case
from ..mutate import be, blind, cut, fields, number, put
from .bases import base, case
from .tiff import ifd_bytes


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, beginning, end) of the segments up to the first scan's header, and of the rest."""
    found, at = [(0xD8, 0, 2)], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], at, at + 2 + length))
        at += 2 + length
        if found[-1][0] == 0xDA:
            break
    return [*found, (0, at, len(data))]


def _base(rng: Random) -> bytes:
    return base(rng, "JPEG", progressive=rng.random() < 0.3, optimize=rng.random() < 0.3)


def _find(data: bytes, *markers: int) -> int | None:
    return next((begin for marker, begin, _ in segments(data) if marker in markers), None)


def frame(rng: Random, folder: Path) -> Case:
    """The frame header: precision, sides, components, sampling."""
    data = _base(rng)
    at = _find(data, 0xC0, 0xC1, 0xC2)
    assert at is not None
    places = [
        (at + 4, 1),
        (at + 5, 2),
        (at + 7, 2),
        (at + 5, 4),
        (at + 9, 1),
        *((at + k, 1) for k in range(10, 19)),
        (at + 2, 2),
    ]
    data = fields(rng, data, places, big=True)
    if rng.random() < 0.2:
        data = put(data, at + 1, bytes([rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xCF))]))
    return case(rng, folder, data, ".jpg")


def tables(rng: Random, folder: Path) -> Case:
    """Huffman and quantization tables, restart intervals, scan headers."""
    data = _base(rng)
    places = [
        (at, 1)
        for marker, begin, end in segments(data)
        if marker in (0xC4, 0xDB, 0xDA)
        for at in range(begin + 2, min(end, begin + 40))
    ]
    data = fields(rng, data, places, big=True, most=6)
    if rng.random() < 0.3:
        data = data[:2] + b"\xff\xdd\0\x04" + be(number(rng, 16), size=2) + data[2:]
    return case(rng, folder, data, ".jpg")


def lengths(rng: Random, folder: Path) -> Case:
    """Wrong lengths, segments missing, repeated or in another order."""
    data = _base(rng)
    parts = [data[begin:end] for _, begin, end in segments(data)]
    match rng.randrange(4):
        case 0:
            data = fields(rng, data, [(begin + 2, 2) for _, begin, _ in segments(data)[1:-1]], big=True)
        case 1:
            del parts[rng.randrange(len(parts))]
            data = b"".join(parts)
        case 2:
            inner = parts[1:]
            rng.shuffle(inner)
            data = b"".join([parts[0], *inner])
        case 3:
            parts.insert(rng.randrange(len(parts)), rng.choice(parts))
            data = b"".join(parts)
    return case(rng, folder, data, ".jpg")


def many(rng: Random, folder: Path) -> Case:
    """Thousands of segments: metadata in pieces, comments, scans that refine nothing."""
    data = _base(rng)
    count = rng.choice((300, 3000, 10_000, 60_000))
    body = rng.choice(
        (
            b"Exif\0\0" + ifd_bytes([]),
            b"http://ns.adobe.com/xap/1.0/\0<x/>",
            b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + be(1 << 30, 0) + b"<x/>",
            b"MPF\0MM\0*\0\0\0\x08" + be(1, size=2) + be(0xB002, 7, size=2) + be(0xFFFFFFFF, 0),
            b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\0",
            b"",
        )
    )
    marker = rng.choice((0xE1, 0xE1, 0xE2, 0xED, 0xFE, 0xE0, 0xEE))
    piece = b"\xff" + bytes([marker]) + be(len(body) + 2, size=2) + body
    if rng.random() < 0.3:  # an ICC profile in 255 parts, repeated
        piece = b"".join(
            b"\xff\xe2" + be(2 + 14 + 100, size=2) + b"ICC_PROFILE\0" + bytes([k % 256, 255]) + bytes(100)
            for k in range(50)
        )
        count //= 50
    if rng.random() < 0.25:
        scan = data[(_find(data, 0xDA) or 0) :].removesuffix(b"\xff\xd9")
        data = data.removesuffix(b"\xff\xd9") + scan * min(count, 2000) + b"\xff\xd9"
    else:
        data = data[:2] + piece * count + data[2:]
    return case(rng, folder, data, ".jpg")


def refined(rng: Random, folder: Path) -> Case:
    """A progressive frame of many pixels with many scans."""
    data = base(rng, "JPEG", progressive=True)
    at = _find(data, 0xC2)
    assert at is not None
    side = rng.choice((2000, 6000, 12_000, 65_500))
    data = put(data, at + 5, be(side, rng.choice((side, 16, 1)), size=2))
    scan = data[(_find(data, 0xDA) or 0) :].removesuffix(b"\xff\xd9")
    return case(rng, folder, data.removesuffix(b"\xff\xd9") + scan * rng.choice((1, 10, 200)) + b"\xff\xd9", ".jpg")


def metadata(rng: Random, folder: Path) -> Case:
    """EXIF, MPF and ICC whose contents are not what they should be."""
    data = _base(rng)
    entries = []
    for _ in range(rng.randint(1, 6)):
        tag = rng.choice(
            (0x0112, 0x0112, 0x0132, 0x8769, 0x8825, 0xA005, 0x010F, 0x0201, 0x927C, 0x02BC, number(rng, 16))
        )
        entries.append((tag, rng.choice((*range(1, 14), number(rng, 16))), number(rng, 32), number(rng, 32)))
    exif = b"Exif\0\0" + ifd_bytes(entries, following=rng.choice((0, 8, number(rng, 32))))
    match rng.randrange(4):
        case 0:
            exif = blind(rng, exif)
        case 1:
            exif = cut(rng, exif)
        case 2:  # a directory that points to itself
            exif = b"Exif\0\0" + ifd_bytes([(0x8769, 4, 1, 8), (0xA005, 4, 1, 8), (0x0112, 3, 1, 6 << 16)], following=8)
    mpf = b"MPF\0" + ifd_bytes(
        [(0xB000, 7, 4, 0x30303130), (0xB001, 4, 1, number(rng, 32)), (0xB002, 7, number(rng, 32), 8)]
    )
    icc = (
        b"ICC_PROFILE\0"
        + bytes([rng.choice((0, 1, 2, 255)), rng.choice((0, 1, 2, 255))])
        + rng.randbytes(rng.choice((0, 128, 4000)))
    )
    adobe = b"Adobe" + be(100, number(rng, 16), 0, size=2) + bytes([rng.randrange(256)])
    for marker, body in rng.sample(
        ((0xE1, exif), (0xE2, mpf), (0xE2, icc), (0xEE, adobe), (0xE0, b"JFIF\0" + rng.randbytes(9))), 2
    ):
        data = data[:2] + b"\xff" + bytes([marker]) + be(len(body) + 2, size=2) + body + data[2:]
    return case(rng, folder, data, ".jpg")


def truncated(rng: Random, folder: Path) -> Case:
    data = _base(rng)
    return case(
        rng, folder, cut(rng, data, [end for _, _, end in segments(data)] if rng.random() < 0.7 else ()), ".jpg"
    )


GENERATORS = {f"jpeg.{one.__name__}": one for one in (frame, tables, lengths, many, refined, metadata, truncated)}
