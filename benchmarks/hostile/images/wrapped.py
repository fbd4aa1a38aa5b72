"""Programs and other files inside images: PostScript in wrappers, several formats in one file; and what is no plain file at all."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from random import Random

from ..cases import Case
from ..mutate import be, le
from .bases import base, case, encoded, psd
from .png import MAGIC, chunks, joined

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(%pipe%touch sprung) (w) file\nshowpage\n%%EOF\n"


def _postscript(rng: Random) -> bytes:
    plain = _EPS.replace(b"10 10", f"{rng.choice((10, 0, -5, 100_000))} {rng.choice((10, 99_999_999))}".encode())
    if rng.random() < 0.3:  # as Windows programs wrap it
        return b"\xc5\xd0\xd3\xc6" + le(32, len(plain), 0, 0, 0, 0) + le(65535, 0, size=2) + plain
    if rng.random() < 0.3:
        return base(rng, "EPS")
    return plain.replace(b"\n", rng.choice((b"\n", b"\r", b"\r\n")))


def _iptc_field(record: int, number: int, body: bytes) -> bytes:
    if len(body) > 32767:
        return bytes([0x1C, record, number]) + be(0x8004, size=2) + be(len(body)) + body
    return bytes([0x1C, record, number]) + be(len(body), size=2) + body


def iptc(rng: Random, folder: Path) -> Case:
    """IPTC files whose picture is another file: Pillow opens it as whatever it is."""
    inside = rng.choice(
        (
            _postscript(rng),
            encoded("JPEG", "RGB", 7, 5),
            b"\xd7\xcd\xc6\x9a" + bytes(60),
            psd(),
            b"GRIB" + bytes(50),
            rng.randbytes(60),
        )
    )
    data = bytearray()
    data += _iptc_field(3, 20, be(rng.choice((10, 0, 60_000, 2**31)), size=4)) + _iptc_field(
        3, 30, be(rng.choice((10, 0, 60_000)), size=4)
    )
    data += _iptc_field(3, 60, bytes([rng.choice((0, 1, 3, 4, 9)), rng.choice((0, 1, 2))])) + _iptc_field(
        3, 65, bytes([rng.randrange(4)])
    )
    data += _iptc_field(3, 120, bytes([rng.choice((1, 5, 5, 5, 2))]))
    for _ in range(rng.choice((0, 0, 3, 3000))):
        data += _iptc_field(rng.randint(0, 9), rng.randrange(256), rng.randbytes(rng.choice((0, 3, 300))))
    for start in range(0, len(inside), rng.choice((len(inside) or 1, 100))):
        data += _iptc_field(8, 10, inside[start : start + 100] if start else inside)
    return case(rng, folder, bytes(data), rng.choice((".jpg", ".iim", ".png")))


def postscript(rng: Random, folder: Path) -> Case:
    """PostScript under the name of a photo, alone or behind something."""
    data = _postscript(rng)
    if rng.random() < 0.3:
        data = rng.choice((b"\n", b"\xef\xbb\xbf", b"\x04", bytes(10))) + data
    path = folder / f"image{rng.choice(('.jpg', '.png', '.eps', '.ps', '.tif'))}"
    path.write_bytes(data)
    return Case(path)


def both(rng: Random, folder: Path) -> Case:
    """Two formats in one file: one after the other, or one inside the other's metadata."""
    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "EPS", "ICO", "PPM", "QOI", "TGA")
    one, other = base(rng, rng.choice(kinds)), base(rng, rng.choice(kinds))
    match rng.randrange(4):
        case 0:
            data = one + other
        case 1:
            data = one[: len(one) // 2] + other
        case 2:
            parts = chunks(base(rng, "PNG"))
            parts.insert(1, (rng.choice((b"tEXt", b"eXIf", b"iCCP")), other))
            data = joined(parts)
        case _:
            comment = other[:65000]
            data = base(rng, "JPEG")
            data = data[:2] + b"\xff\xe1" + be(len(comment) + 2, size=2) + comment + data[2:]
    return case(rng, folder, data, rng.choice((".jpg", ".png", ".gif")))


def places(rng: Random, folder: Path) -> Case:
    """What is no plain file: pipes, devices, links, sockets, folders, files of three gigabytes of nothing."""
    path = folder / f"image{rng.choice(('.jpg', '.png', '.webp', '.fits'))}"
    match rng.randrange(10):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(
                rng.choice(("/dev/zero", "/dev/urandom", "/dev/full", "/dev/null", "/dev/stdin", "/dev/tty"))
            )
        case 2:
            path.symlink_to(path)
        case 3:
            path.symlink_to(folder / "nothing")
        case 4:
            path.mkdir()
        case 5:
            with socket.socket(socket.AF_UNIX) as made:
                here = os.getcwd()
                os.chdir(folder)
                try:
                    made.bind(path.name)
                finally:
                    os.chdir(here)
        case 6:
            with open(path, "wb") as file:
                file.write(rng.choice((MAGIC, b"\xff\xd8\xff\xe0", b"BM", b"SIMPLE  =", b"II*\0\x08\0\0\0", b"")))
                file.truncate(rng.choice((3 << 30, 40 << 30)))
        case 7:
            path.symlink_to(
                rng.choice(
                    ("/proc/self/mem", "/proc/self/environ", "/proc/kmsg", "/proc/self/pagemap", "/sys/kernel/notes")
                )
            )
        case 8:
            path.touch()
        case _:
            name = rng.choice(
                (
                    "a\nb.png",
                    "a\x1b[31mred.png",
                    "x" * 250 + ".png",
                    "\u202egnp.exe.png",
                    "=cmd|' '!A0.png",
                    "-rf.png",
                    " .png",
                    "a\tb.png",
                    "\x9b31m.png",
                )
            )
            path = folder / name
            path.write_bytes(rng.choice((encoded("PNG", "RGB", 7, 5), b"spoiled")))
    return Case(path)


def names(rng: Random, folder: Path) -> Case:
    """Names that are no text."""
    name = os.fsdecode(rng.choice((b"\xff\xfe.png", b"caf\xe9.jpg", b"\xed\xa0\x80.png", b"a\x80\x9b31m.png")))
    path = folder / name
    path.write_bytes(rng.choice((encoded("PNG", "RGB", 7, 5), b"spoiled", b"")))
    return Case(path)


GENERATORS = {f"place.{one.__name__}": one for one in (iptc, postscript, both, places, names)}
