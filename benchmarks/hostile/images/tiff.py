"""TIFF: directories with any entries, that loop, that promise more than there is; strips, tiles, compressions."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from ..cases import Case
from ..mutate import be, blind, cut, number
from .bases import MODES, case, encoded

Entry = tuple[int, int, int, int]
"""(tag, type, count, value or offset)."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


def ifd_bytes(entries: list[Entry], big: bool = True, following: int = 0) -> bytes:
    """A TIFF file that holds one directory, as it also stands in EXIF data."""
    order = ">" if big else "<"
    rows = [struct.pack(f"{order}H", len(entries) & 0xFFFF)]
    for tag, kind, count, value in entries:
        value = value << 16 if big and kind in (3, 8) and count == 1 and value < 65536 else value
        rows.append(struct.pack(f"{order}HHII", tag & 0xFFFF, kind & 0xFFFF, count & 0xFFFFFFFF, value & 0xFFFFFFFF))
    head = b"MM\0*" if big else b"II*\0"
    return head + struct.pack(f"{order}I", 8) + b"".join(rows) + struct.pack(f"{order}I", following & 0xFFFFFFFF)


def _plain(width: int, height: int, bits: int, samples: int, offset: int, size: int) -> dict[int, Entry]:
    facts = {256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 1), 262: (3, 2 if samples >= 3 else 1)}
    facts |= {273: (4, offset), 277: (3, samples), 278: (4, height), 279: (4, size), 284: (3, 1)}
    return {tag: (tag, kind, 1, value) for tag, (kind, value) in facts.items()}


def directory(rng: Random, folder: Path) -> Case:
    """A directory of plausible entries, some of them anything."""
    width, height = rng.choice(((4, 3), (16, 16), (64, 1)))
    bits, samples = rng.choice((1, 2, 4, 8, 12, 16, 24, 32, 64)), rng.choice((1, 2, 3, 4, 5, 8))
    size = width * height * samples * max(1, bits // 8)
    pixels = rng.randbytes(size)
    entries = _plain(width, height, bits, samples, 4096, size)
    for tag, values in {
        259: (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32809, 32946, 34676, 34712, 34925, 50000, 50001, 50002, 9, 65535),
        262: (0, 1, 2, 3, 4, 5, 6, 8, 9, 32803, 34892, 65535),
        339: (0, 1, 2, 3, 4, 5, 6),
        317: (1, 2, 3, 4),
        284: (0, 1, 2, 3),
        338: (0, 1, 2, 3, 999),
        274: (*range(10), 65535),
        266: (0, 1, 2),
        530: (0, 1, 2, 3, 4),
        322: (0, 1, 16, 65536),
        323: (0, 1, 16, 65536),
        324: (0, 8, 4096),
        325: (0, 64, 1 << 30),
    }.items():
        if rng.random() < 0.25:
            entries[tag] = (tag, rng.choice((3, 3, 4)), 1, rng.choice(values))
    for _ in range(rng.randint(0, 3)):
        tag = rng.choice(
            (*entries, 320, 330, 347, 700, 33723, 34377, 34665, 34675, 34853, 50838, 50839, number(rng, 16))
        )
        known = entries.get(tag, (tag, 4, 1, 0))
        entries[tag] = (
            tag,
            rng.choice((known[1], known[1], number(rng, 16), *range(1, 14), 16)),
            rng.choice((known[2], known[2], number(rng, 32), 0, 2, 3)),
            rng.choice((known[3], number(rng, 32), 8, 4096)),
        )
    order = sorted(entries.values()) if rng.random() < 0.9 else rng.sample(list(entries.values()), len(entries))
    following = rng.choice((0, 0, 0, 8, 4096, number(rng, 32)))
    data = ifd_bytes(order, rng.random() < 0.5, following)
    return case(rng, folder, data.ljust(4096, b"\0") + pixels + bytes(4096), ".tif")


def claims(rng: Random, folder: Path) -> Case:
    """A few bytes that claim many pixels, many strips or values without end."""
    width, height = rng.choice(
        (
            (65535, 65535),
            (20_000, 20_000),
            (1, 2**31 - 1),
            (2**31 - 1, 1),
            (12_000, 12_000),
            (13_377, 13_377),
            (400_000, 7),
            (2**32 - 1, 2**32 - 1),
        )
    )
    bits, samples = rng.choice(((1, 1), (8, 1), (8, 3), (8, 4), (16, 1), (16, 3), (32, 1), (32, 3), (64, 1)))
    entries = _plain(width, height, bits, samples, 4096, rng.choice((64, 1 << 30, 2**32 - 1)))
    entries[259] = (259, 3, 1, rng.choice((1, 5, 8, 32773, 7, 34925, 50000)))
    if rng.random() < 0.5:
        entries[339] = (339, 3, 1, rng.choice((1, 2, 3)))
    if rng.random() < 0.5:
        entries[278] = (278, 4, 1, rng.choice((1, 8, 0, 2**32 - 1)))
    if rng.random() < 0.3:
        for tag in (273, 279):
            entries[tag] = (tag, 4, rng.choice((height & 0xFFFFFFFF, 2**28, 2**20)), 2048)
    if rng.random() < 0.3:
        side = rng.choice((16, 64, 1 << 16, 1 << 30))
        entries |= {322: (322, 4, 1, side), 323: (323, 4, 1, side), 324: (324, 4, 1, 4096), 325: (325, 4, 1, 64)}
    data = ifd_bytes(sorted(entries.values()), rng.random() < 0.5)
    return case(rng, folder, data.ljust(4096, b"\0") + bytes(rng.choice((64, 4096, 1 << 16))), ".tif")


def loops(rng: Random, folder: Path) -> Case:
    """Chains of directories: to themselves, very many, EXIF in EXIF."""
    entries = list(_plain(4, 3, 8, 1, 4000, 12).values())
    match rng.randrange(4):
        case 0:
            data = ifd_bytes([*entries, (330, 4, 1, 8), (34665, 4, 1, 8), (34853, 4, 1, 8)], following=8)
        case 1:  # thousands of directories
            count, size = rng.choice((100, 5000, 50_000)), 2 + 12 * len(entries) + 4
            chain = [ifd_bytes(entries)[8:-4] + be(8 + size * (k + 1)) for k in range(count - 1)]
            data = b"MM\0*\0\0\0\x08" + b"".join(chain) + ifd_bytes(entries, following=rng.choice((0, 8)))[8:]
        case 2:
            data = ifd_bytes(
                [
                    *entries,
                    *((k, 2, number(rng, 32), 8) for k in range(40_000, 40_000 + rng.choice((10, 3000, 20_000)))),
                ]
            )
        case _:
            data = ifd_bytes(
                [
                    *entries,
                    (
                        rng.choice((700, 34675, 33723, 34377)),
                        rng.choice((1, 7)),
                        rng.choice((2**28, 2**31, 2**32 - 1)),
                        8,
                    ),
                ]
            )
    return case(rng, folder, data + bytes(5000), ".tif")


def bigtiff(rng: Random, folder: Path) -> Case:
    """64-bit offsets and counts."""
    rows = []
    for tag, kind, _, value in sorted(_plain(4, 3, 8, 1, 1000, 12).values()):
        count = 1 if rng.random() < 0.85 else number(rng, 64)
        value = value if rng.random() < 0.85 else number(rng, 64)
        kind = kind if rng.random() < 0.9 else rng.choice((16, 17, 18, 13, 12))
        rows.append(struct.pack("<HHQQ", tag, kind, count, value))
    count = len(rows) if rng.random() < 0.8 else number(rng, 64)
    head = b"II\x2b\0" + struct.pack(
        "<HHQ", rng.choice((8, 8, 8, 0, 4, 65535)), 0, rng.choice((16, 16, 16, number(rng, 64)))
    )
    return case(rng, folder, (head + struct.pack("<Q", count) + b"".join(rows)).ljust(1000, b"\0") + bytes(100), ".tif")


def spoiled(rng: Random, folder: Path) -> Case:
    """Files that Pillow wrote, in all its compressions, spoiled or cut."""
    options = {}
    mode = rng.choice(MODES["TIFF"])
    kinds = [None, "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"]
    if mode == "1":
        kinds += ["group3", "group4", "tiff_ccitt"]
    if mode in ("L", "RGB"):
        kinds += ["jpeg"]
    if (kind := rng.choice(kinds)) is not None:
        options["compression"] = kind
    data = encoded("TIFF", mode, *rng.choice(((7, 5), (33, 20), (64, 48))), tuple(options.items()))
    return case(rng, folder, cut(rng, data) if rng.random() < 0.3 else blind(rng, data), ".tif")


GENERATORS = {f"tiff.{one.__name__}": one for one in (directory, claims, loops, bigtiff, spoiled)}
