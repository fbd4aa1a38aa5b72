"""Image files as others make them: what stands around the pixels neither costs the image nor more than a limit, and starts nothing."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from bigtransfer.data import containers, images
from bigtransfer.errors import ImageError

from .data_makers import encoded, pattern

PICTURE = pattern(20, 30)


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data) ^ damage)


def png(
    image: np.ndarray = PICTURE, before: bytes = b"", after: bytes = b"", damaged: bytes = b"", pieces: int = 1
) -> bytes:
    """A PNG by the specification: no filter, RGB or grey with alpha; `before` and `after`: chunks around the pixels."""
    height, width, channels = image.shape
    rows = zlib.compress(np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 8, {3: 2, 2: 4, 4: 6}[channels], 0, 0, 0)
    cuts = np.linspace(0, len(rows), pieces + 1).astype(int)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header, damaged == b"IHDR"),
            before,
            *(chunk(b"IDAT", rows[a:b], damaged == b"IDAT") for a, b in zip(cuts, cuts[1:], strict=False)),
            after,
            chunk(b"IEND", b"", damaged == b"IEND"),
        ]
    )


def exif(orientation: int, kind: int = 3, order: str = "<") -> bytes:
    value = struct.pack(order + {1: "B", 3: "H", 4: "I", 9: "i"}[kind], orientation).ljust(4, b"\0")
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value


def jpeg_with(*segments: bytes) -> bytes:
    data = encoded(PICTURE, "JPEG", quality=95)
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


# --- Metadata that would cost the image


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\0" + b"x" * 5_000_000),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(20_000_000))),
        chunk(b"iCCP", b"p\0\7nonsense"),
        chunk(b"tEXt", b"Comment\0x", damage=1),
        chunk(b"gAMA", b"", damage=1) + chunk(b"pHYs", b"\1"),
        chunk(b"tRNS", struct.pack(">HHH", *PICTURE[0, 0]), damage=1),
        chunk(b"eXIf", b"II*\0" + struct.pack("<IH", 8, 65535) + struct.pack("<HHII", 7, 7, 900_000, 8) * 65535),
        chunk(b"tEXt", b"a\0b") * 1000,
        chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + chunk(b"fcTL", b"short"),
    ],
    ids=lambda extra: f"{extra[4:8].decode()}-{len(extra)}",
)
def test_a_png_is_as_good_as_its_pixels(extra: bytes) -> None:
    for data in (png(before=extra), png(after=extra), png(before=extra, damaged=b"IEND"), png(before=extra, pieces=50)):
        np.testing.assert_array_equal(images.decode(data, "x"), PICTURE)
        assert images.size(data, "x") == (20, 30)


def test_a_png_whose_own_parts_are_damaged_says_which() -> None:
    palette = Image.fromarray(PICTURE).quantize(8)
    data = encoded(palette)
    at = data.index(b"PLTE")
    for damaged, reason in (
        (png(damaged=b"IHDR"), "its header does not match its checksum"),
        (data[: at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6 :], "its palette does not match"),
        (png()[:60], "truncated"),
        (png()[:40], "truncated"),
        (png()[:8], "no header"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", b"\0\0\0\0") + png()[8:], "CgBI"),
        (png(before=chunk(b"tEXt", b"") * (1 << 18)), "more than 262,144 chunks"),
    ):
        with pytest.raises(ImageError, match=reason):
            images.decode(damaged, "x")
    broken = bytearray(png())
    broken[broken.index(b"IDAT") + 30] ^= 0xFF
    with pytest.raises(ImageError, match="damaged"):
        images.decode(bytes(broken), "x")


def test_transparency_and_palette_of_a_png_are_kept() -> None:
    grey_alpha = np.stack([np.full((2, 3), 100), np.array([[0, 128, 255]] * 2)], axis=2).astype(np.uint8)
    decoded = images.decode(png(grey_alpha, before=chunk(b"tEXt", b"x\0y")), "x")[0, :, 0].astype(int)
    assert np.abs(decoded - [255, 177, 100]).max() <= 1
    clear = png(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8), before=chunk(b"tRNS", b"\0\1\0\2\0\3"))
    assert images.decode(clear, "x")[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def turned(data: bytes) -> bool:
    """Whether the picture comes out with its sides exchanged, by `decode` and `size` alike."""
    shape = images.decode(data, "x").shape[:2]
    assert images.size(data, "x") == shape
    return shape == (30, 20)


def test_the_orientation_is_found_wherever_it_stands() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    profile = b"\nexif\n      32\n" + exif(6).hex().encode()
    raw = b"Raw profile type exif\0"
    plain, packed = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp, b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    for extra in (
        chunk(b"eXIf", exif(6)),
        chunk(b"eXIf", exif(6, order=">")),
        chunk(b"eXIf", exif(6, kind=4)),
        chunk(b"eXIf", b"Exif\0\0" + exif(6)),
        chunk(b"iTXt", plain),
        chunk(b"iTXt", packed),
        chunk(b"tEXt", raw + profile),
        chunk(b"zTXt", raw + b"\0" + zlib.compress(profile)),
        chunk(b"eXIf", exif(6)) + chunk(b"iTXt", plain.replace(b'"6"', b'"1"')),
    ):
        assert turned(png(before=extra)) and turned(png(after=extra)), extra[:30]
    for ignored in (
        chunk(b"iTXt", plain, damage=1),
        chunk(b"iTXt", plain + b" " * 2**20),
        chunk(b"iTXt", b"x" + plain),
    ):
        assert not turned(png(before=ignored))
    app1 = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    comment = segment(0xFE, b"hello")
    for segments in (
        [segment(0xE1, b"Exif\0\0" + exif(6))],
        [comment, segment(0xE1, b"Exif\0\0" + exif(6)[:20]), segment(0xE1, b"Exif\0\0" + exif(6)[20:])],
        [segment(0xE1, app1)],
        [segment(0xE1, app1.replace(b'"6"', b'"1"')), segment(0xE1, b"Exif\0\0" + exif(6))],
        [b"\xff\xff\xff", segment(0xE1, b"Exif\0\0" + exif(6))],
    ):
        assert turned(jpeg_with(*segments)), segments
    for nothing in (
        b"",
        b"II*\0",
        exif(6)[:-6],
        exif(0),
        exif(9),
        exif(6, kind=9),
        b"XX" + exif(6)[2:],
        exif(6)[:8] + b"\xff\xff",
    ):
        assert not turned(png(before=chunk(b"eXIf", nothing)))
        assert not turned(jpeg_with(segment(0xE1, b"Exif\0\0" + nothing)))
    webp = encoded(PICTURE, "WEBP", lossless=True, exif=exif(6))
    assert turned(webp) and not turned(webp.replace(b"EXIF", b"JUNK"))
    assert turned(encoded(PICTURE, "WEBP", lossless=True, xmp=xmp))


def test_a_jpeg_is_as_good_as_its_pixels() -> None:
    expected = images.decode(jpeg_with(), "x")
    for segments in (
        [segment(0xE1, b"Exif\0\0" + bytes(60_000))] * 3000,
        [segment(0xE2, b"MPF\0II*\0" + b"\xff" * 100)],
        [segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff" * 1000)] * 300,
        [segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0" + b"\xff" * 8)],
        [segment(0xFE, b"x" * 60_000)] * 20,
        [b"\xff" * 1_000_000],
        [segment(0xFE, b""), b"\0junk\xff\0" * 1000],
    ):
        np.testing.assert_array_equal(images.decode(jpeg_with(*segments), "x"), expected)
    for data, reason in (
        (jpeg_with(segment(0xFE, b"") * (1 << 18)), "segments"),
        (jpeg_with()[:100], "truncated"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "truncated|damaged"),
        (jpeg_with(b"\xff\xe2\0\0"), "truncated|damaged"),  # a segment's length counts its own two bytes
        (jpeg_with(b"\xff\xe2\0\1"), "truncated|damaged"),
    ):
        with pytest.raises(ImageError, match=reason):
            images.decode(data, "x")


def test_colours_of_a_jpeg_depend_on_segments_that_are_kept() -> None:
    picture = Image.fromarray(pattern(16, 16)).convert("CMYK")
    for image in (picture, Image.fromarray(PICTURE)):
        data = encoded(image, "JPEG", quality=100)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(images.decode(data, "x"), expected)


def test_a_gif_is_as_good_as_its_first_image() -> None:
    frames = [Image.fromarray(PICTURE).quantize(16), Image.new("P", (30, 20))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=3, loop=0)
    expected = images.decode(data, "x")
    assert (expected == 255).all(axis=2).any(), "what is transparent is white"
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    for extra in (
        b"\x21\xfe" + (b"\xff" + b"a" * 255) * 5000 + b"\0",
        b"\x21\xfe\1a\0" * 20_000,
        b"\x21\xff\x0bNETSCAPE2.0\0",
    ):
        np.testing.assert_array_equal(images.decode(data[:start] + extra + data[start:], "x"), expected)
    plain = encoded(frames[0], "GIF")
    start = 13 + 3 * 2 ** ((plain[10] & 7) + 1)
    for damaged, reason in (
        (plain[:start] + b"\x21\xfe" + b"\1a" * (1 << 19) + b"\0" + plain[start:], "blocks"),
        (plain[:start] + b"\x21\xfe\0" * (1 << 19) + plain[start:], "blocks"),
        (plain[:start] + b"\0" * (1 << 19) + plain[start:], "blocks"),
        (plain[:start] + b"\x3b", "no image"),
        (plain[:start], "truncated"),
    ):
        with pytest.raises(ImageError, match=reason):
            images.decode(damaged, "x")
    large = plain.replace(b"\x2c\0\0\0\0", b"\x2c\xff\xff\xff\xff", 1)
    with pytest.raises(ImageError, match="outside of its canvas"):
        images.decode(large, "x")


TAGS = {
    256: (3, 30),
    257: (3, 20),
    258: (3, 8),
    259: (3, 1),
    262: (3, 1),
    273: (4, 8),
    277: (3, 1),
    278: (3, 20),
    279: (4, 600),
}
"""Of an uncompressed grey TIFF of 30 x 20 px whose pixels stand behind its header."""


def tiff(
    more: list[tuple[int, int, int, int]] | None = None,
    next_page: int = 0,
    tail: bytes = b"",
    big: bool = False,
    **changed: int,
) -> bytes:
    """more: entries (tag, type, count, value or place)."""
    values = {**TAGS, **{int(tag[1:]): (4, value) for tag, value in changed.items()}}
    place = 16 if big else 8
    values[273] = (4, place)
    entries = sorted([(tag, kind, 1, value) for tag, (kind, value) in values.items()] + (more or []))
    pixels = PICTURE[:, :, 0].tobytes()
    if big:
        header = b"II+\0\x08\0\0\0" + struct.pack("<Q", place + 600)
        directory = struct.pack("<Q", len(entries)) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
        return header + pixels + directory + struct.pack("<Q", next_page) + tail
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", place + 600) + pixels + directory + struct.pack("<I", next_page) + tail


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_is_as_good_as_its_first_page(big: bool, capsys: pytest.CaptureFixture[str]) -> None:
    end = len(tiff(big=big))
    page = struct.pack("<HHHII", 1, 256, 3, 1, 10)
    for data in (
        tiff(big=big),
        tiff([(tag, 7, 500, 8) for tag in range(1000, 9000)], big=big),  # 8000 pieces of metadata, all the same bytes
        tiff([(33723, 7, 10**9, 8), (34377, 7, 5, 2**31)], big=big),  # beyond the file
        tiff([(34665, 4, 1, 8), (34853, 4, 1, 8), (330, 4, 1, 616)], big=big),  # directories that are none
        tiff([(700, 1, 100, 8), (305, 2, 1, 65)], big=big),
        tiff(next_page=616 if big else 608, big=big),  # itself
        tiff(next_page=2**31, big=big),
        tiff(
            next_page=end, tail=b"".join(page + struct.pack("<I", end + 18 * (i + 1)) for i in range(50_000)), big=big
        ),
    ):
        np.testing.assert_array_equal(images.decode(data, "x", channels=1), PICTURE[:, :, :1])  # warnings are errors
        assert images.size(data, "x") == (20, 30)
    assert images.decode(tiff([(274, 3, 1, 6), (34665, 4, 1, 8)], big=big), "x").shape == (30, 20, 3)


def test_what_libtiff_thinks_of_a_file_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8), "TIFF", compression="tiff_lzw")
    with pytest.raises(ImageError):
        images.decode(data[:300] + bytes(range(60)) + data[360:], "x")
    assert capfd.readouterr().err == ""


def test_a_tiff_whose_directory_makes_no_sense() -> None:
    for data, reason in (
        (tiff(t256=0), "no extent"),
        (tiff(t322=60_000, t323=60_000, t259=8), "tiles"),
        (tiff()[:500], "truncated"),
        (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**40), "too many entries"),
    ):
        with pytest.raises(ImageError, match=reason):
            images.decode(data, "x")


def test_an_icon_is_its_largest_image() -> None:
    small, large = png(pattern(16, 16)), png(pattern(48, 48), before=chunk(b"tEXt", b"x", damage=1))

    def icon(*parts: tuple[int, bytes]) -> bytes:
        place, directory = 6 + 16 * len(parts), b""
        for side, data in parts:
            directory += struct.pack("<4B2H2I", side, side, 0, 0, 1, 32, len(data), place)
            place += len(data)
        return struct.pack("<3H", 0, 1, len(parts)) + directory + b"".join(data for _, data in parts)

    np.testing.assert_array_equal(images.decode(icon((16, small), (48, large)), "x"), pattern(48, 48))
    np.testing.assert_array_equal(images.decode(icon((48, large), (16, small)), "x"), pattern(48, 48))
    bitmap = encoded(Image.fromarray(pattern(32, 32)), "ICO", bitmap_format="bmp", sizes=[(32, 32)])
    np.testing.assert_array_equal(images.decode(bitmap, "x"), pattern(32, 32))
    huge = struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(100)
    for data, reason in (
        (icon((16, huge)), "no icon's"),
        (icon(), "no image"),
        (icon((16, small))[:30], "truncated|damaged"),
    ):
        with pytest.raises(ImageError, match=reason):
            images.decode(data, "x")


def test_of_an_icon_s_images_that_are_alike_large_it_is_pillow_s() -> None:
    """Their depth decides, stated in bits, as a number of colours, or not at all; then their order."""
    pictures = {
        (number, side): png(np.full((side or 256, side or 256, 3), 10 * number, np.uint8))
        for number in range(4)
        for side in (9, 8, 0)
    }
    rng, chosen = np.random.default_rng(2), set()
    for _ in range(150):
        parts = [(number, int(rng.choice([9, 9, 9, 8, 0]))) for number in range(4)]
        place, directory = 6 + 16 * len(parts), b""
        for part in parts:
            bits, colours = int(rng.choice([0, 0, 1, 4, 5, 8, 24, 32])), int(rng.choice([0, 1, 2, 3, 15, 16, 17, 255]))
            size = len(pictures[part])
            directory += struct.pack("<4B2H2I", part[1], part[1], colours, 0, 1, bits, size, place)
            place += size
        icon = struct.pack("<3H", 0, 1, len(parts)) + directory + b"".join(pictures[part] for part in parts)
        with Image.open(io.BytesIO(icon)) as opened:
            pillow_s = opened.ico.getimage(opened.ico.entry[0].dim)  # type: ignore[attr-defined]
        found = images.decode(icon, "x")
        np.testing.assert_array_equal(found, np.asarray(pillow_s))
        chosen.add(int(found[0, 0, 0]))
    assert chosen == {0, 10, 20, 30}


def test_a_photoshop_file_is_its_finished_picture() -> None:
    planes = PICTURE.transpose(2, 0, 1).tobytes()
    header = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 20, 30, 8, 3)

    def photoshop(resources: bytes, layers: bytes) -> bytes:
        blocks = [struct.pack(">I", len(part)) + part for part in (b"", resources, layers)]
        return header + b"".join(blocks) + b"\0\0" + planes

    for resources, layers in ((b"", b""), ((b"8BIM\0\1\0\0" + bytes(4)) * 100_000, b""), (b"nonsense", b"\xff" * 1000)):
        np.testing.assert_array_equal(images.decode(photoshop(resources, layers), "x"), PICTURE)
    with pytest.raises(ImageError, match="truncated"):
        images.decode(header + b"\0\0\0\0\x7f\xff\xff\xff", "x")


# --- Portable maps, which Pillow decodes in Python unless they are the usual ones


@pytest.mark.parametrize("greatest", [1, 100, 254, 255, 256, 1000, 4095, 65535])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("text", [False, True])
def test_portable_maps_are_what_pillow_decodes(greatest: int, colours: int, text: bool) -> None:
    values = np.random.default_rng(0).integers(0, greatest + 1, (9, 7 * colours))
    kind = (2 if colours == 1 else 3) + (0 if text else 3)
    header = b"P%d # one\n#another\r\n 7\t9 #last\n%d\n" % (kind, greatest)
    if text:
        pixels = b"#no pixel\n" + b"\n".join(b" ".join(b"%d" % value for value in row) for row in values)
    else:
        pixels = values.astype(">u2" if greatest > 255 else np.uint8).tobytes()
    reference = images.from_pillow(Image.open(io.BytesIO(header + pixels)), "x")
    np.testing.assert_array_equal(images.decode(header + pixels, "x"), reference)
    assert images.size(header + pixels, "x") == (9, 7)
    with pytest.raises(ImageError, match="truncated"):
        images.decode(header + pixels[: -8 if text else -2], "x")


def test_bitmaps_as_text() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (9, 11))
    for space in (b"", b" ", b"\n", b" #comment\n"):
        data = b"P1\n11 9\n" + space.join(b"%d" % bit for bit in bits.ravel())
        np.testing.assert_array_equal(images.decode(data, "x", channels=1)[:, :, 0], np.where(bits, 0, 255))
    for data, reason in (
        (b"P1 11 9 " + b"01" * 30, "truncated"),
        (b"P1 2 2 0120", "other pixels"),
        (b"P3 1 1 255 1 2 x", "not whole numbers"),
        (b"P2 1 1 255 -1", "not whole numbers"),
        (b"P2 1 1 255 256", "greater"),
        (b"P2 1 1 255 000255", "not whole numbers"),
        (b"P2 1 1 0 0", "greatest value is 0"),
        (b"P5 1 1 65536 0", "greatest value is 65536"),
        (b"P6 1", "no extent"),
        (b"P6 " + b"#\n" * 100_000 + b"1 1 255 abc", "no extent"),
        (b"P2 1 1 255 " + b" " * (1 << 25), "binary kind"),
    ):
        with pytest.raises(ImageError, match=reason):
            images.decode(data, "x")


@pytest.mark.parametrize("blank", [b"\n", b" "])
def test_long_texts_are_read_piece_by_piece(blank: bytes) -> None:
    values = np.random.default_rng(0).integers(0, 256, (600, 600))
    text = blank.join(b"%d" % value for value in values.ravel())
    assert len(text) > 1 << 20
    found = images.decode(b"P2 600 600 255\n" + text + b"\n", "x", channels=1)
    np.testing.assert_array_equal(found[:, :, 0], values)
    # What follows the pixels is looked at as far as the piece goes in which they end; pieces may hold none.
    behind = b"P2 2 1 255\n7 8\n" + b"#\n" * (1 << 19) + b"nothing"
    assert images.decode(behind, "x", channels=1).tolist() == [[[7], [8]]]
    before = b"P2 2 1 255\n" + b"#\n" * (1 << 20) + b"7 8"
    assert images.decode(before, "x", channels=1).tolist() == [[[7], [8]]]


# --- What it costs, known by the header


def test_a_jpeg_of_several_scans_keeps_its_coefficients() -> None:
    """Two bytes each, of all components until the last scan; one component is not interleaved with the others."""

    def costs(data: bytes) -> tuple[float, int]:
        read = containers.read(data)
        return read.bytes_per_pixel, read.passes

    def written(subsampling: int, mode: str = "RGB", **more: bool) -> bytes:
        return encoded(Image.new(mode, (64, 64)), "JPEG", subsampling=subsampling, **more)

    for subsampling, coefficients in ((0, 6.0), (1, 4.0), (2, 3.0)):
        data = written(subsampling, progressive=True)
        assert costs(data) == (coefficients, data.count(b"\xff\xda"))
        assert costs(written(subsampling)) == (0.0, 1)
    assert costs(written(0, "L", progressive=True))[0] == 2.0
    apart = bytearray(written(2))
    scan = apart.index(b"\xff\xda")
    assert apart[scan + 4] == 3
    apart[scan + 4] = 1
    assert costs(bytes(apart)) == (3.0, 3)


def test_what_decoding_costs_by_hand() -> None:
    jpeg = containers.Encoded("JPEG", bytes(10**6), bytes_per_pixel=3.0, passes=4)
    # Room for a quarter of the pixels, four bytes each, and 3.1 bytes for each of all; 0.02 s, 0.04 s for the bytes, 3 passes more.
    memory, seconds = jpeg.cost(1000, 1000, (500, 500), "RGB")
    assert (memory, seconds) == (4_100_000, pytest.approx(0.02 + 0.04 + 3 * 0.002))
    whole = (1000, 1000)
    memories = {
        mode: containers.Encoded("PNG", b"").cost(*whole, whole, mode)[0] for mode in ("1", "L", "P", "I;16", "RGBA")
    }
    assert memories == {"1": 1_100_000, "L": 1_100_000, "P": 1_100_000, "I;16": 2_100_000, "RGBA": 4_100_000}
    slow = containers.Encoded("BMP", bytes(10**6), slow=True)
    assert slow.cost(*whole, whole, "P")[1] == pytest.approx(0.05 + 0.6)


def large_png(width: int, height: int, bits: int, kind: int) -> bytes:
    """Without its pixels: the refusal comes before they are looked at."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def large_webp() -> bytes:
    frames = [Image.new("RGB", (7, 7), colour) for colour in ("red", "blue")]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = (16_776_960).to_bytes(3, "little") + (6).to_bytes(3, "little")
    return bytes(data)


def progressive(scans: int) -> bytes:
    data = encoded(Image.new("L", (512, 512)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def run_length_bitmap(width: int, height: int, behind: int) -> bytes:
    """Which Pillow decodes in Python; with so many bytes behind its end."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    rows = (bytes([30, 7]) + b"\0\0") * 20 + b"\0\1"
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + header + bytes(1024) + rows + bytes(behind)


def large_gif() -> bytes:
    place = struct.pack("<4HB", 0, 0, 16_000, 15_000, 0)
    return b"GIF89a" + struct.pack("<HH", 16_000, 15_000) + b"\0\0\0\x2c" + place + b"\2\0;"


EXPENSIVE = {
    "png-rgba": (large_png(16_000, 15_000, 8, 6), "image_memory"),
    "png-16-bit": (large_png(16_000, 15_600, 16, 2), "image_memory"),
    "png-pixels": (large_png(16_000, 15_700, 1, 0), "image_pixels"),
    "png-side": (large_png(1, 1_000_001, 8, 2), "image_side"),
    "webp": (large_webp(), "16,383"),
    "jpeg-scans": (progressive(50_000), "image_seconds"),
    "qoi": (b"qoif" + struct.pack(">IIBB", 3000, 3000, 3, 0) + bytes(28_000_000), "image_seconds"),
    "bmp-rle": (run_length_bitmap(9000, 9000, 27_000_000), "image_seconds"),
    "gif-canvas": (large_gif(), "image_memory"),
    "pgm": (b"P5 15000 15000 255\n", "image_memory"),
    "tiff-strip": (tiff(t256=13_000, t257=13_000, t259=8, t258=16, t262=2, t277=3, t278=13_000), "image_memory"),
}


@pytest.mark.parametrize("name", EXPENSIVE)
def test_what_would_cost_too_much_is_refused_by_its_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, said = EXPENSIVE[name]
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # nothing is decoded
    with pytest.raises(ImageError, match=said):
        images.decode(data, "x")
    if name in ("gif-canvas", "webp"):  # Pillow makes room for these as soon as it opens them
        monkeypatch.setattr(containers.Encoded, "opened", None)
        with pytest.raises(ImageError, match=said):
            images.size(data, "x")


def test_what_phones_and_scanners_make_is_not() -> None:
    """By the headers alone: 200 megapixels from a phone, 100 from a scanner, in colour, with alpha and in 16 bits."""

    def affordable(data: bytes) -> bool:
        read = containers.read(data)
        image = read.opened()
        width, height = image.size
        if read.kind == "JPEG" and width * height > 100_000_000:
            image.draft(None, (width // 2, height // 2))
        return images._affordable(read, (width, height), image.size, image.mode, 3) > 0

    jpeg = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 12_240, 16_320)
    assert affordable(bytes(jpeg))
    for bits, kind in ((8, 2), (8, 6), (16, 2), (16, 6), (8, 0), (16, 0), (1, 0)):
        assert affordable(large_png(12_000, 9_000, bits, kind))


def test_limits_can_be_raised_and_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("image_pixels", "image_side", "image_memory", "image_seconds"):
        monkeypatch.setenv("BIT_LIMITS", f"{limit}=1")
        large = encoded(pattern(30, 20)) if limit != "image_seconds" else run_length_bitmap(30, 20, 2_000_000)
        with pytest.raises(ImageError, match=f"--limits {limit}=N"):
            images.decode(large, "x")
        monkeypatch.setenv("BIT_LIMITS", "")
        assert images.decode(large, "x").ndim == 3
    monkeypatch.setenv("BIT_LIMITS", "image_side=2M")
    assert images.size(large_png(1, 1_000_001, 8, 2), "x") == (1_000_001, 1)


# --- Nothing else is started, read or reached


CANARY = """
import io, os, sys
from PIL import Image
from bigtransfer.data import images
from bigtransfer.errors import ImageError

seen = []
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.connect", "socket.getaddrinfo",
             "webbrowser.", "urllib.", "ctypes.dlopen")

def hook(event, arguments):
    if event.startswith(FORBIDDEN) or (event == "open" and armed and not str(arguments[0]).endswith((".py", ".pyc", ".so"))):
        seen.append((event, str(arguments)[:200]))

armed = False
images.formats()
Image.preinit()
Image.init()
sys.addaudithook(hook)
armed = True
for name in sys.argv[1:]:
    armed = False
    data = open(name, "rb").read()
    armed = True
    try:
        images.decode(data, name)
    except ImageError as error:
        pass
armed = False
assert not seen, seen
print("read", len(sys.argv) - 1)
"""


def iptc(content: bytes) -> bytes:
    """An IPTC record that holds an image of another format."""

    def field(record: int, number: int, value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value

    size = [
        field(3, 60, b"\1\0"),
        field(3, 20, b"\0\x40"),
        field(3, 30, b"\0\x40"),
        field(3, 65, b"\0"),
        field(3, 120, b"\1"),
    ]
    return b"".join([*size, field(8, 10, content[:60_000])])


def wrapped(content: bytes) -> dict[str, bytes]:
    """Files of many formats that hold that content where they have other images, previews or data."""
    place = 22
    return {
        "bare": content,
        "iptc": iptc(content),
        "ico": struct.pack("<3H4B2H2I", 0, 1, 1, 64, 64, 0, 0, 1, 32, len(content), place) + content,
        "cur": struct.pack("<3H4B2H2I", 0, 2, 1, 64, 64, 0, 0, 1, 32, len(content), place) + content,
        "icns": b"icns" + struct.pack(">I4sI", 16 + len(content), b"ic07", 8 + len(content)) + content,
        "dcx": b"\xb1\x68\xde\x3a" + struct.pack("<II", 12, 0) + content,
        "mic": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + content,
        "bmp": b"BM"
        + struct.pack("<IHHI", 0, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 24, 4, 0, 0, 0, 0, 0)
        + content,
        "blp": b"BLP1" + struct.pack("<5I", 0, 0, 64, 64, 5) + content,
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(18) + b"\1\0\x09\0\0\3" + content,
        "fits": b"SIMPLE  =                    T".ljust(2880) + content,
        "tiff": tiff([(34377, 7, len(content), 650), (347, 7, len(content), 650)], t259=7) + content,
        "psd": b"8BPS\0\1"
        + bytes(6)
        + struct.pack(">HIIHH", 3, 8, 8, 8, 3)
        + bytes(4)
        + struct.pack(">I", len(content))
        + content,
        "jpeg": jpeg_with(
            segment(0xE1, b"Exif\0\0" + content[:60_000]), segment(0xED, b"Photoshop 3.0\0" + content[:60_000])
        ),
        "png": png(before=chunk(b"iCCP", content) + chunk(b"eXIf", content)),
        "eps preview": b"\xc5\xd0\xd3\xc6"
        + struct.pack("<6IH", 32, len(content), 0, 0, 0, 0, 0xFFFF)
        + b"\0\0"
        + content,
    }


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n%%EOF\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_file_starts_a_program_or_reaches_anything(tmp_path: Path) -> None:
    """With a Ghostscript on the path that tells on itself, and an audit hook that notes what is started, opened or connected to."""
    told = tmp_path / "started"
    for name in ("gs", "gswin64c", "djpeg", "convert", "xv", "grabc"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {told}\n")
        (tmp_path / name).chmod(stat.S_IRWXU)
    files = []
    Image.init()
    contents = {"eps": POSTSCRIPT, "web": b"<svg xmlns:xlink='x'><image xlink:href='http://localhost:9/x.png'/></svg>"}
    for kind in sorted(set(Image.SAVE) - {"PDF"}):
        with contextlib.suppress(OSError, ValueError, KeyError, SystemError):
            contents[kind] = encoded(Image.fromarray(pattern(64, 64)), kind)
    for outer, content in contents.items():
        for inner, data in wrapped(content).items():
            files.append(tmp_path / f"{inner} of {outer}.jpg")
            files[-1].write_bytes(data)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        [sys.executable, "-c", CANARY, *map(str, files)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"read {len(files)}\n" and len(files) > 300
    assert not told.exists(), told.read_text()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (POSTSCRIPT, "PostScript"),
        (iptc(POSTSCRIPT), "not in an image format"),
        (b"SIMPLE  =                    T".ljust(2880), "FITS"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\3\4" + bytes(100), "archive"),
        (struct.pack("<3H4B2H2I", 0, 2, 1, 64, 64, 0, 0, 1, 32, 100_000, 22) + bytes(100_000), "mouse pointer"),
        (b"\0\0\0\x18ftypqt  " + bytes(100), "video"),
        (bytes(range(256)) * 4, "not in an image format"),
    ],
)
def test_other_files_are_called_by_their_names(data: bytes, said: str) -> None:
    for function in (images.decode, images.size):
        with pytest.raises(ImageError, match=said):
            function(data, "x")


def test_what_is_opened_is_loaded_and_the_rest_is_not() -> None:
    """The same endings and formats as if Pillow had loaded all it has, thirty modules more at the start of each command."""
    code = """
import sys
from bigtransfer.data import containers
endings, formats = containers.extensions(), containers.formats()
assert "PIL.PdfImagePlugin" not in sys.modules
from PIL import Image
Image.init()
known = {*containers.FORMATS, *containers.ALIASES}
assert endings == {ending for ending, kind in Image.EXTENSION.items() if kind in known}
assert formats == tuple(kind for kind in containers.FORMATS if kind in Image.OPEN), formats
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
