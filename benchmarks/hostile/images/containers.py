"""GIF, BMP, ICO, WebP, JPEG 2000, AVIF, ICNS: formats made of parts with lengths, offsets and extents of their own."""

from __future__ import annotations

from pathlib import Path
from random import Random

from ..cases import Case
from ..mutate import be, blind, cut, fields, le, number, packed, put
from .bases import base, case, encoded, ending_of
from .png import flat
from .tiff import ifd_bytes


def gif(rng: Random, folder: Path) -> Case:
    """Screens and frames of any extent, many frames, codes of any size, comments without end."""
    width, height = rng.choice(((8, 6), (1, 1), (65535, 65535), (65535, 1), (0, 0), (16_000, 16_000)))
    data = bytearray(b"GIF89a" + le(width, height, size=2))  # grows cheaply
    data += bytes([rng.choice((0x80, 0xF7, 0, 0x91)), rng.randrange(256), 0])
    data += rng.randbytes(3 * 2 ** ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    for _ in range(rng.choice((1, 1, 2, 30, 2000))):
        if rng.random() < 0.5:
            data += b"!\xf9\x04" + bytes([rng.randrange(256)]) + le(0, size=2) + bytes([rng.randrange(256), 0])
        if rng.random() < 0.2:
            data += (
                b"!"
                + rng.choice((b"\xfe", b"\xff\x0bNETSCAPE2.0", b"\x01"))
                + b"\x03abc" * rng.choice((1, 1000))
                + b"\0"
            )
        left, top = (rng.choice((0, 0, 3, 65535)) for _ in range(2))
        w, h = rng.choice(((8, 6), (width, height), (1, 1), (65535, 65535), (0, 5)))
        data += b"," + le(left, top, w, h, size=2) + bytes([rng.choice((0, 0x40, 0x80, 0x87))])
        data += bytes([rng.choice((2, 2, 8, 0, 1, 12, 255))]) + rng.choice(
            (b"\x02L\x01\0", b"\x16" + rng.randbytes(22) + b"\0", b"\0", b"\xff")
        )
    data += rng.choice((b";", b"", b"trailing"))
    return case(rng, folder, bytes(data), ".gif")


def bmp(rng: Random, folder: Path) -> Case:
    """Every field of every version of the header; run lengths that leave the picture."""
    kind = rng.choice(("BMP", "BMP", "DIB"))
    data = base(rng, kind)
    start = 14 if kind == "BMP" else 0
    if rng.random() < 0.3:  # a header of another version
        size = rng.choice((12, 16, 40, 52, 56, 64, 108, 124))
        width, height = rng.choice(((7, 5), (7, 2**32 - 5), (65535, 65535)))
        body = le(width, height, 1, 8, size=2) if size == 12 else le(width, height) + le(1, 8, size=2)
        body = (body + le(rng.choice((0, 1, 2, 3, 4, 6)), 0, 2835, 2835, 0, 0)).ljust(size - 4, b"\0")[: size - 4]
        head = b"BM" + le(1000, 0, 14 + size + 1024) if kind == "BMP" else b""
        data = head + le(size) + body + bytes(1024) + rng.randbytes(200)
    places = [
        (start + at, size)
        for at, size in ((0, 4), (4, 4), (8, 4), (12, 2), (14, 2), (16, 4), (20, 4), (32, 4), (36, 4), (40, 4), (52, 4))
    ]
    data = fields(rng, data, places + ([(10, 4), (2, 4)] if kind == "BMP" else []), big=False)
    if rng.random() < 0.3:
        data += bytes(rng.choice((0, 1, 2, 255)) for _ in range(2000))
    return case(rng, folder, data, ending_of(kind))


def ico(rng: Random, folder: Path) -> Case:
    """Directories of many, overlapping, endless icons; bombs as icons."""
    inside = rng.choice(
        (
            encoded("PNG", "RGBA", 16, 16),
            encoded("DIB", "RGB", 16, 16),
            flat(10_000, 10_000, 8, 6) if rng.random() < 0.3 else flat(1, 1, 8, 0),
            le(40, 16, 2**32 - 32) + le(1, 32, size=2) + bytes(24) + bytes(16 * 32 * 4),
            b"",
        )
    )
    count = rng.choice((1, 1, 2, 65535, 0))
    entries = bytearray()
    for _ in range(min(count, rng.choice((1, 2, 65535)))):
        size = len(inside) if rng.random() < 0.8 else number(rng, 32)
        offset = 6 + 16 * count if rng.random() < 0.8 else number(rng, 32)
        entries += (
            bytes([rng.choice((16, 0, 255)), rng.choice((16, 0, 255)), rng.choice((0, 2)), 0])
            + le(rng.choice((1, 0)), rng.choice((32, 8, 0, 65535)), size=2)
            + le(size, offset)
        )
    cursor = rng.random() < 0.3
    return case(rng, folder, le(0, 2 if cursor else 1, count, size=2) + entries + inside, ".cur" if cursor else ".ico")


def webp(rng: Random, folder: Path) -> Case:
    """Canvases, frames and lengths of any size; the 14-bit extents of lossless pictures."""
    draw = rng.random()
    if draw < 0.35:
        data = encoded(
            "WEBP", rng.choice(("RGB", "RGBA")), *rng.choice(((7, 5), (33, 20))), (("lossless", rng.random() < 0.6),)
        )
        places = [(4, 4), (16, 4), (20, 1), (21, 4), (21, 2), (23, 2), (26, 2), (28, 2)]
        data = fields(rng, data, places, big=False, most=2)
    else:
        width, height = rng.choice(
            ((16_777_216, 1), (16_776_961, 7), (16_384, 16_384), (8, 6), (1, 1), (40_000, 40_000))
        )
        canvas = bytes([rng.choice((0, 2, 0x10, 0x3E, 255)), 0, 0, 0]) + le(width - 1, size=3) + le(height - 1, size=3)
        parts = [(b"VP8X", canvas)]
        picture = encoded("WEBP", "RGBA", 7, 5, (("lossless", True),))[12:]
        for _ in range(rng.choice((0, 1, 2, 2000))):
            x, y = (rng.choice((0, 0, 1, 2**24 - 1)) for _ in range(2))
            w, h = rng.choice(((7, 5), (width, height), (16_384, 16_384)))
            body = le(x, y, w - 1, h - 1, number(rng, 24), size=3) + bytes([rng.randrange(256)])
            parts.append((b"ANMF", body + picture))
        if rng.random() < 0.5:
            parts.insert(1, (b"ANIM", le(0) + le(rng.choice((0, 1, 65535)), size=2)))
        for kind, body in (
            (b"EXIF", ifd_bytes([(0x112, 3, 1, 6)], following=8)),
            (b"ICCP", rng.randbytes(200)),
            (b"XMP ", b"<" * 1000),
            (b"ALPH", bytes(30)),
        ):
            if rng.random() < 0.3:
                parts.append((kind, body))
        if rng.random() < 0.6:
            parts.append((picture[:4], picture[8:]))
        data = b"".join(
            kind + le(len(body) if rng.random() < 0.95 else number(rng, 32)) + body + bytes(len(body) % 2)
            for kind, body in parts
        )
        data = b"RIFF" + le(4 + len(data)) + b"WEBP" + data
    if rng.random() < 0.3:
        data = cut(rng, data) if rng.random() < 0.5 else blind(rng, data)
    return case(rng, folder, data, ".webp")


def boxes(data: bytes) -> list[tuple[bytes, int]]:
    """(kind, beginning) of the boxes at the top and below those that hold others."""
    found: list[tuple[bytes, int]] = []

    def visit(at: int, end: int) -> None:
        while at + 8 <= end:
            size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            found.append((kind, at))
            if kind in (b"jp2h", b"meta", b"iprp", b"ipco", b"moov", b"iinf", b"res ", b"trak"):
                visit(at + 8 + {b"meta": 4, b"iinf": 6}.get(kind, 0), min(end, at + size))
            if size < 8:
                return
            at += size

    visit(0, len(data))
    return found


def boxed(rng: Random, folder: Path) -> Case:
    """JPEG 2000 and AVIF: boxes of other lengths, in another order, within themselves; extents, offsets, counts."""
    kind = rng.choice(("JPEG2000", "AVIF"))
    data = base(rng, kind)
    if not data.startswith(b"\0\0\0"):  # a bare codestream
        return _codestream(rng, folder, data)
    places = boxes(data)
    match rng.randrange(5):
        case 0:
            data = fields(rng, data, [(at, 4) for _, at in places], big=True)
        case 1:
            at = rng.choice(places)[1]
            data = data[:at] + be(rng.choice((0, 1, 8, len(data))), number(rng, 32)) * rng.choice((1, 50)) + data[at:]
        case 2:
            inner = [
                (at + 8 + k, rng.choice((1, 2, 4)))
                for kind_, at in places
                if kind_
                in (
                    b"ihdr",
                    b"ispe",
                    b"iloc",
                    b"pixi",
                    b"colr",
                    b"bpcc",
                    b"pclr",
                    b"cdef",
                    b"iinf",
                    b"infe",
                    b"ipma",
                    b"av1C",
                    b"pitm",
                )
                for k in range(22)
            ]
            data = fields(rng, data, inner or [(0, 4)], big=True)
        case 3:  # boxes within boxes within boxes
            box = b""
            for _ in range(rng.choice((10, 500, 3000))):
                box = be(8 + len(box)) + rng.choice((b"jp2h", b"moov", b"meta")) + box
            data = data[: places[1][1]] + box + data[places[1][1] :]
        case _:
            data = blind(rng, data)
    if rng.random() < 0.3:
        data = cut(rng, data, [at for _, at in boxes(data)])
    return case(rng, folder, data, ending_of(kind))


def _codestream(rng: Random, folder: Path, data: bytes) -> Case:
    at = max(0, data.find(b"\xff\x51"))
    data = fields(
        rng, data, [(at + 6 + 4 * k, 4) for k in range(8)] + [(at + 38, 2), (at + 40, 1), (at + 41, 1)], big=True
    )
    return case(rng, folder, data, ".j2k")


def codestream(rng: Random, folder: Path) -> Case:
    """JPEG 2000 without boxes, or within: sides, tiles and components of any size, levels."""
    data = base(rng, "JPEG2000", no_jp2=rng.random() < 0.5)
    at, style = data.find(b"\xff\x51"), data.find(b"\xff\x52")
    places = [(at + 6 + 4 * k, 4) for k in range(8)] + [(at + 38, 2), (at + 40, 1), (at + 41, 1), (at + 42, 1)]
    places += [(style + k, 1) for k in range(4, 14)]
    data = fields(rng, data, places, big=True)
    if (box := data.find(b"ihdr")) > 0 and rng.random() < 0.5:
        data = put(data, box + 4, be(*(rng.choice((1, 16, 20_000, 60_000, 2**31)) for _ in range(2))))
    return case(rng, folder, data, ".j2k" if data.startswith(b"\xff\x4f") else ".jp2")


def icns(rng: Random, folder: Path) -> Case:
    """Icons of every kind with contents of another, lengths that lie, bombs within."""
    bomb = flat(12_000, 12_000, 8, 6)
    body = bytearray()
    for _ in range(rng.choice((1, 2, 10, 500))):
        kind = rng.choice(
            (
                b"ic07",
                b"ic08",
                b"ic09",
                b"ic10",
                b"icp4",
                b"it32",
                b"t8mk",
                b"il32",
                b"l8mk",
                b"is32",
                b"s8mk",
                b"TOC ",
                b"icnV",
                b"xxxx",
            )
        )
        content = rng.choice(
            (
                encoded("PNG", "RGBA", 16, 16),
                bomb if len(body) < 5_000_000 else b"",
                encoded("JPEG2000", "RGB", 16, 16),
                rng.randbytes(50),
                b"\0\0\0\0" + bytes([255] * 90),
                b"",
            )
        )
        body += kind + be(len(content) + 8 if rng.random() < 0.85 else number(rng, 32)) + content
    data = b"icns" + be(len(body) + 8 if rng.random() < 0.85 else number(rng, 32)) + body
    return case(rng, folder, data, ".icns")


def psd(rng: Random, folder: Path) -> Case:
    """Photoshop: sides, channels and depths, resources and layers of any number and length, run lengths."""
    width, height = rng.choice(((8, 6), (30_000, 30_000), (1, 300_000), (0, 0), (13_000, 13_000)))
    channels, depth, mode = (
        rng.choice((0, 1, 3, 4, 5, 24, 56, 65535)),
        rng.choice((1, 8, 16, 32)),
        rng.choice((0, 1, 2, 3, 4, 7, 8, 9, 99)),
    )
    resources = b"".join(
        b"8BIM" + be(number(rng, 16), size=2) + b"\0\0" + be(rng.choice((4, number(rng, 32)))) + b"abcd"
        for _ in range(rng.choice((0, 1, 5000)))
    )
    layers = b""
    if rng.random() < 0.6:
        count = rng.choice((0, 1, 2, 32767, 65535))
        layers = be(count, size=2)
        for _ in range(min(count, 200)):
            layers += be(0, 0, rng.choice((6, 2**31, 65535)), rng.choice((8, 2**31, 65535))) + be(
                rng.choice((3, 0, 65535)), size=2
            )
            layers += (
                b"".join(be(k, size=2) + be(rng.choice((2, number(rng, 32)))) for k in range(3))
                + b"8BIMnorm"
                + bytes(4)
                + be(rng.choice((0, 12, number(rng, 32))))
            )
    data = b"8BPS" + be(1, size=2) + bytes(6) + be(channels, size=2) + be(height, width) + be(depth, mode, size=2)
    for block in (rng.randbytes(rng.choice((0, 768, 10))), resources, be(len(layers)) + layers if layers else b""):
        data += be(len(block) if rng.random() < 0.9 else number(rng, 32)) + block
    data += be(rng.choice((0, 1, 2, 3, 9)), size=2) + rng.randbytes(rng.choice((0, 144, 5000)))
    return case(rng, folder, data, ".psd")


def dds(rng: Random, folder: Path) -> Case:
    """Textures: sides, masks, block compressions, mipmaps."""
    width, height = rng.choice(((8, 8), (1, 1), (65_536, 65_536), (13_377, 13_377), (5, 3), (0, 7)))
    four = rng.choice(
        (
            b"DXT1",
            b"DXT3",
            b"DXT5",
            b"BC4U",
            b"BC4S",
            b"BC5U",
            b"BC5S",
            b"ATI1",
            b"ATI2",
            b"DX10",
            b"UYVY",
            bytes(4),
            b"????",
        )
    )
    head = le(124, number(rng, 32), height, width, number(rng, 32), 0, rng.choice((0, 1, 2**32 - 1))) + bytes(44)
    head += le(32, rng.choice((4, 0x40, 0x41, 0x20000, 0x20, 0, 2**32 - 1))) + four
    head += le(
        rng.choice((8, 16, 24, 32, 0, 128)),
        *(rng.choice((0, 0xFF, 0xFF00, 0xFF0000, 0xFF000000, number(rng, 32))) for _ in range(4)),
    )
    data = b"DDS " + head.ljust(124, b"\0")
    if four == b"DX10":
        data += le(rng.choice((28, 29, 71, 74, 77, 80, 83, 94, 95, 96, 97, 98, 99, 0, 200)), 3, 0, 1, 0)
    return case(rng, folder, data + rng.randbytes(rng.choice((0, 256, 70_000))), ".dds")


def lines(rng: Random, folder: Path) -> Case:
    """Formats whose headers are text: PPM and its family, XBM, XPM, IM, IMT, FITS, XV thumbnails, PFM."""
    numbers = [
        rng.choice(
            (
                "8",
                "6",
                "0",
                "-1",
                "65535",
                "30000",
                "99999999",
                "2147483648",
                "1e3",
                "٣",
                "1" * 5000,
                "nan",
                "3.5",
                "",
                "0x10",
            )
        )
        for _ in range(6)
    ]
    a, b, c, d, e, f = numbers
    draw = rng.randrange(8)
    tail = rng.randbytes(rng.choice((0, 48, 144, 1000)))
    if draw <= 1:
        kind = rng.choice(("P1", "P2", "P3", "P4", "P5", "P6", "P7", "Pf", "PF", "P0", "P0CMYK", "PyRGBA", "PyP"))
        comment = rng.choice(("", "# c\n", "#" + "x" * 100_000 + "\n", "# c"))
        body = (
            f"WIDTH {a}\nHEIGHT {b}\nDEPTH {c}\nMAXVAL {d}\nTUPLTYPE RGB\nENDHDR\n"
            if kind == "P7"
            else f"{a} {comment}{b}\n{c}\n"
        )
        data = f"{kind}\n{body}".encode() + tail + (b"1 2 3 " * 200 if kind in ("P1", "P2", "P3") else b"")
        ending = ".ppm"
    elif draw == 2:
        data, ending = (
            f"#define x_width {a}\n#define x_height {b}\n#define x_x_hot {c}\nstatic char x_bits[] = {{\n0x00, {d}, 0xff".encode(),
            ".xbm",
        )
    elif draw == 3:
        e, f = rng.choice(("2", e)), rng.choice(("1", f))
        colour = rng.choice(("#F00", "None", "red", "#", "#ggg", "s"))
        rows = "\n".join(f'"{"a" * rng.choice((0, 4, 8, 9000))}",' for _ in range(5))
        data, ending = (
            f'/* XPM */\nstatic char *x[] = {{\n"{a} {b} {e} {f}",\n"a c {colour}",\n{rows}}};'.encode(),
            ".xpm",
        )
    elif draw == 4:
        kind = rng.choice(
            (
                "RGB image",
                "L 16 image",
                "L*32F image",
                "B&W image",
                "YCC image",
                "X 24 image",
                "L 32S image",
                "Greyscale image",
                "x",
            )
        )
        head = f"Image type: {kind}\r\nName: x\r\nImage size (x*y): {a}*{b}\r\n".encode()
        head += f"File size (no of images): {c}\r\nScale (x,y): {d}\r\n".encode()
        data, ending = (
            (head + rng.choice((b"", b"Lut: 1\r\n", b"no colon\r\n"))).ljust(511, b"\0") + b"\x1a" + tail,
            ".im",
        )
    elif draw == 5:
        data, ending = f"*\nwidth {a}\nheight {b}\n* x\n{c}\n".encode() + b"\x0c" + tail, ".imt"
    elif draw == 6:
        facts = [
            ("SIMPLE", "T"),
            ("BITPIX", rng.choice(("8", "16", "-32", "-64", "32", d))),
            ("NAXIS", rng.choice(("2", "1", "3", "0", "999", e))),
            ("NAXIS1", a),
            ("NAXIS2", b),
            ("NAXIS3", c),
            ("BZERO", f),
        ]
        if rng.random() < 0.2:
            facts.pop(rng.randrange(len(facts)))
        text = "".join(f"{key:<8}= {value:>20}"[:80].ljust(80) for key, value in facts) + rng.choice(
            ("END", "", "EN")
        ).ljust(80)
        data, ending = text.encode("latin-1", "replace").ljust(2880) + tail, ".fits"
    else:
        data, ending = f"P7 332\n#IMGINFO:{a}\n#END_OF_COMMENTS\n{b} {c} {d}\n".encode() + tail, ".p7"
    return case(rng, folder, data, ending)


def headers(rng: Random, folder: Path) -> Case:
    """Formats with a short binary header: all of its fields, blindly by size."""
    from .bases import READ_ONLY

    kind = rng.choice(("TGA", "PCX", "SGI", "QOI", "MSP", "SPIDER", "BLP", *READ_ONLY))
    data = READ_ONLY[kind]() if kind in READ_ONLY else base(rng, kind)
    big = kind in ("SGI", "QOI", "SUN", "PSD", "GBR", "MCIDAS") or rng.random() < 0.1
    reach = {"MCIDAS": 256, "PIXAR": 440, "SPIDER": 100, "PCD": 4000, "DCX": 140}.get(kind, 40)
    for _ in range(rng.randint(1, 4)):
        size = rng.choice((1, 2, 4))
        at = rng.randrange(0 if rng.random() < 0.1 else 2, min(reach, max(3, len(data))))
        data = put(data, at, packed(rng, size, big))
    if rng.random() < 0.2:
        data = cut(rng, data)
    return case(rng, folder, data, ending_of(kind))


GENERATORS = {
    f"image.{one.__name__}": one for one in (gif, bmp, ico, webp, boxed, codestream, icns, psd, dds, lines, headers)
}
