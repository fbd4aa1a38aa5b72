"""From file bytes to pixels, and to the size of a model's input."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from bigtransfer.catalog import InputSpec
from bigtransfer.data import containers, images
from bigtransfer.errors import ConfigError, ImageError
from bigtransfer.limits import limits

from .data_makers import encoded, pattern

ORIENTATION = 0x0112


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def stored(image: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera held in that orientation stores of the upright picture (EXIF 2.3, tag 0x0112: where row 0 and column 0 are)."""
    return {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.swapaxes(0, 1),
        6: np.rot90(image, 1),  # row 0 is the right-hand side
        7: image[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(image, -1),  # row 0 is the left-hand side
    }[orientation]


# --- Formats and modes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Pillow takes leave of some
def test_formats_that_pillow_writes_are_read_back_or_refused() -> None:
    Image.init()
    checked = set()
    for kind in sorted(set(Image.SAVE) - {"PDF"}):
        for mode in ("RGB", "L", "1", "F"):
            try:
                data = encoded(Image.fromarray(pattern(32, 32)).convert(mode), kind)
            except (OSError, ValueError, KeyError, SystemError):  # this format has no such mode
                continue
            if containers.kind_of(data) in images.formats():
                decoded = images.decode(data, kind)
                assert decoded.dtype == np.uint8 and decoded.shape == (32, 32, 3), kind
                assert images.size(data, kind) == (32, 32), kind
                checked.add(kind)
            else:
                with pytest.raises(ImageError, match=r"PNG first|format that is read here"):
                    images.decode(data, kind)
    assert checked >= {"BMP", "GIF", "ICO", "JPEG", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"}
    assert checked <= {*images.formats(), "MPO", "DIB"}, "MPO is written as JPEG if there is one image"


def test_lossless_formats_give_the_very_pixels() -> None:
    picture = pattern(13, 17)
    for kind, options in (
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ):
        np.testing.assert_array_equal(images.decode(encoded(picture, kind, **options), "x"), picture)


def test_jpeg_is_what_pillow_decodes() -> None:
    data = encoded(pattern(37, 53), "JPEG", quality=80)
    np.testing.assert_array_equal(images.decode(data, "x"), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_and_bilevel() -> None:
    grey = pattern(9, 11)[:, :, 0]
    np.testing.assert_array_equal(images.decode(encoded(grey), "x"), np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(images.decode(encoded(grey), "x", channels=1), grey[:, :, None])
    bits = grey > 128
    for data in (encoded(Image.fromarray(bits)), encoded(Image.fromarray(bits), "TIFF", compression="group4")):
        np.testing.assert_array_equal(images.decode(data, "x", channels=1)[:, :, 0], bits * np.uint8(255))


def test_one_channel_is_luma() -> None:
    picture = pattern(9, 11)
    luma = picture @ np.array([0.299, 0.587, 0.114])
    assert np.abs(images.decode(encoded(picture), "x", channels=1)[:, :, 0] - luma).max() <= 1


def test_transparency_lies_over_white() -> None:
    colour, alpha = np.array([200, 40, 0]), np.array([0, 64, 128, 255])
    rgba = np.concatenate([np.broadcast_to(colour, (1, 4, 3)), alpha[None, :, None]], axis=2).astype(np.uint8)
    expected = np.rint(255 + (colour - 255) * (alpha / 255)[:, None])
    for kind in ("PNG", "TIFF", "TGA"):
        assert np.abs(images.decode(encoded(rgba, kind), "x")[0] - expected).max() <= 1, kind
    grey_alpha = Image.fromarray(np.stack([np.full((1, 4), 200), alpha[None]], axis=2).astype(np.uint8), "LA")
    assert np.abs(images.decode(encoded(grey_alpha), "x")[0, :, 0] - np.rint(255 - 55 * alpha / 255)).max() <= 1


def test_palette_with_and_without_transparency() -> None:
    indices = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    plain = images.decode(encoded(indices), "x")[0].tolist()
    assert plain == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    for transparency in (1, bytes([255, 0, 255])):  # one index, or an alpha value for each
        clear = images.decode(encoded(indices, transparency=transparency), "x")[0].tolist()
        assert clear == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_a_colour_declared_transparent_becomes_white() -> None:
    picture = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)
    assert images.decode(encoded(picture, transparency=(1, 2, 3)), "x")[0].tolist() == [[255, 255, 255], [9, 9, 9]]


def test_cmyk_ycbcr_and_lab_become_rgb() -> None:
    picture = Image.fromarray(pattern(16, 16))
    cmyk = picture.convert("CMYK")
    for kind in ("TIFF", "JPEG"):
        decoded = images.decode(encoded(cmyk, kind), "x").astype(int)
        assert np.abs(decoded - np.asarray(cmyk.convert("RGB"))).mean() < 8, kind
    lab_profile, rgb_profile = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    lab = ImageCms.profileToProfile(picture, rgb_profile, lab_profile, outputMode="LAB")
    assert np.abs(images.decode(encoded(lab, "TIFF"), "x").astype(int) - pattern(16, 16)).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 255, 256, 300, 32768, 65280, 65535]], np.uint16)
    decoded = images.decode(encoded(Image.fromarray(values), kind), "x", channels=1)
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_big_endian_16_bits() -> None:
    values = np.array([[0, 256, 65535]], ">u2")
    header = b"P5 3 1 65535\n"
    assert images.decode(header + values.tobytes(), "x", channels=1)[0, :, 0].tolist() == [0, 1, 255]


def test_12_bit_tiff_uses_its_own_range() -> None:
    # Two 12-bit values in three bytes: 0x000 and 0xFFF; a minimal little-endian TIFF around them.
    import struct

    entries = [
        (256, 3, 1, 2),
        (257, 3, 1, 1),
        (258, 3, 1, 12),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 3, 1, 1),
        (279, 4, 1, 3),
    ]
    ifd = (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack("<I", 0)
    )
    data = b"II*\0" + struct.pack("<I", 12) + b"\x00\x0f\xff\0" + ifd
    assert images.decode(data, "x", channels=1)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([0.0, float("inf"), 1.0], [0, 255, 255]),
        ([-1.0, float("-inf"), 1.0], [0, 0, 255]),
        ([1.0, float("-inf"), 255.0], [1, 0, 255]),
        ([3.0, 3.0, 3.0], [3, 3, 3]),
    ],
)
def test_float_tiff(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert images.decode(data, "x", channels=1)[0, :, 0].tolist() == expected


def test_an_image_without_a_number_is_none() -> None:
    data = encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    with pytest.raises(ImageError, match="none of its values is a finite number"):
        images.decode(data, "x", channels=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 7, 255], [0, 7, 255]),
        ([0, 256, 65535], [0, 1, 255]),
        ([-5, 0, 5], [0, 128, 255]),
        ([0, 0, 10**9], [0, 0, 255]),
    ],
)
def test_32_bit_integers(values: list[int], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert images.decode(data, "x", channels=1)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert images.decode(data, "x")[0, 0].tolist() == [255, 0, 0]


# --- Orientation


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    upright = pattern(24, 40)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(np.ascontiguousarray(stored(upright, orientation)), kind, exif=exif(orientation), **options)
    decoded = images.decode(data, "x")
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= (6 if kind == "JPEG" else 0)
    assert images.size(data, "x") == (24, 40)


def test_heic_where_pillow_heif_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    upright = pattern(64, 96)
    data = encoded(np.ascontiguousarray(stored(upright, 6)), "HEIF", quality=100, exif=exif(6))
    assert np.abs(images.decode(data, "x").astype(int) - upright).mean() < 4
    assert images.size(data, "x") == (64, 96) and ".heic" in images.extensions()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_nonsense_orientation_is_ignored(orientation: int) -> None:
    picture = pattern(6, 9)
    np.testing.assert_array_equal(images.decode(encoded(picture, exif=exif(orientation)), "x"), picture)


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(pattern(6, 9), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert images.decode(data, "x").shape == (6, 9, 3)
    assert images.size(data, "x") == (6, 9)


# --- What cannot be read


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (bytes(1000), "all zero"),
        (b"hello, world", "not in an image format"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif|damaged|not in an image format"),
        (b"\x89PNG\r\n\x1a\n", "truncated|damaged|not in an image format"),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    for function in (images.decode, images.size):
        with pytest.raises(ImageError, match=reason) as caught:
            function(data, "cat.jpg")
        assert caught.value.name == "cat.jpg"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated_files_say_so(kind: str) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    with pytest.raises(ImageError, match=r"truncated|damaged|not in an image format"):
        images.decode(data[: len(data) // 2], "x")
    if kind in ("JPEG", "PNG", "BMP"):
        with pytest.raises(ImageError, match="truncated"):
            images.decode(data[: len(data) // 2], "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO"])
def test_any_damage_gives_an_image_or_an_image_error(kind: str) -> None:
    generator = np.random.default_rng(0)
    data = np.frombuffer(encoded(pattern(20, 20), kind), np.uint8)
    for _ in range(40):
        damaged = data.copy()
        damaged[generator.integers(0, len(data), 3)] = generator.integers(0, 256, 3)
        with contextlib.suppress(ImageError):  # any other exception fails the test
            assert images.decode(damaged.tobytes(), "x").dtype == np.uint8


def test_missing_file_and_folder(tmp_path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        images.decode(tmp_path / "none.png", "none.png")
    with pytest.raises(ImageError, match="cannot be read"):
        images.decode(tmp_path, "folder")


@pytest.mark.parametrize(
    ("limit", "shape"), [("image_pixels=150", (10, 15)), ("image_side=15", (15, 10)), ("image_memory=10000", (10, 15))]
)
def test_what_exceeds_a_limit_is_refused_by_its_header(limit: str, shape, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_LIMITS", limit)
    monkeypatch.setattr(Image.core, "new", None)  # nothing is decoded
    name = limit.partition("=")[0]
    larger = {"image_pixels": (11, 15), "image_side": (16, 10), "image_memory": (100, 80)}[name]
    with pytest.raises(ImageError, match=rf"shrink it first.*--limits {name}=N"):
        images.decode(encoded(pattern(*larger)), "x")
    monkeypatch.undo()
    monkeypatch.setenv("BIT_LIMITS", limit)
    assert images.decode(encoded(pattern(*shape)), "x").shape == (*shape, 3)


def test_pillows_own_limit_on_pixels_is_neither_asked_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"):  # warnings are errors
        for options in ({}, {"compression": "tiff_lzw"} if kind == "TIFF" else {}):
            assert images.decode(encoded(pattern(20, 30), kind, **options), "x").shape == (20, 30, 3)
            assert images.size(encoded(pattern(20, 30), kind, **options), "x") == (20, 30)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_one_pixel() -> None:
    picture = np.array([[[1, 2, 3]]], np.uint8)
    decoded = images.decode(encoded(picture), "x")
    np.testing.assert_array_equal(decoded, picture)
    for mode in ("square", "aspect"):
        prepared = images.prepare(decoded, InputSpec(size=8, mode=mode, crop_pct=0.875))
        assert prepared.shape == (8, 8, 3) and (prepared == picture).all()


def test_100_megapixels_whole_and_reduced() -> None:
    picture = Image.new("L", (12_500, 8_000), 77)
    data = encoded(picture, "JPEG")
    assert images.size(data, "x") == (8_000, 12_500)
    assert images.decode(data, "x", channels=1).shape == (8_000, 12_500, 1)
    small = images.decode(data, "x", channels=1, at_least=(448, 448))
    assert small.shape == (1_000, 1_563, 1)
    assert np.abs(small.astype(int) - 77).max() <= 1


def test_at_least_follows_the_orientation_and_changes_nothing_else() -> None:
    upright = pattern(80, 400)
    data = encoded(np.ascontiguousarray(stored(upright, 6)), "JPEG", quality=95, exif=exif(6))
    reduced = images.decode(data, "x", at_least=(20, 100))
    assert reduced.shape == (20, 100, 3)
    assert np.abs(reduced.astype(int) - images.resize(upright, 20, 100)).mean() < 8
    assert images.decode(data, "x", at_least=(81, 400)).shape == (80, 400, 3)
    png = encoded(upright)
    np.testing.assert_array_equal(images.decode(png, "x", at_least=(1, 1)), upright)


def test_other_channel_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 or 3"):
        images.decode(encoded(pattern(2, 2)), "x", channels=4)


def test_extensions() -> None:
    assert {
        ".jpg",
        ".jpeg",
        ".png",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".tga",
        ".mpo",
    } <= images.extensions()
    assert images.extensions().isdisjoint({".pdf", ".eps", ".txt", ".mp4", ".h5", ".iim", ".fits", ".wmf"})


# --- Resizing


def kernel(x: float, interpolation: str) -> float:
    x = abs(x)
    if interpolation == "bilinear":
        return max(0.0, 1 - x)
    if x < 1:  # Keys' cubic with a = -0.5
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def matrix(n: int, length: int, interpolation: str, antialias: bool) -> np.ndarray:
    """float64 (length, n): rows of filter weights; half-pixel centres; taps outside are dropped and the rest scaled to sum 1."""
    scale = max(n / length, 1.0) if antialias else 1.0
    rows = [
        [kernel((j + 0.5 - (i + 0.5) * n / length) / scale, interpolation) for j in range(n)] for i in range(length)
    ]
    weights = np.array(rows)
    return weights / weights.sum(axis=1, keepdims=True)


SIZES = [
    (20, 30, 7, 11),
    (7, 11, 20, 30),
    (32, 32, 160, 128),
    (40, 25, 13, 60),
    (5, 5, 5, 9),
    (1, 1, 4, 3),
    (1, 9, 6, 2),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_resize_against_float64(interpolation, antialias: bool, sizes: tuple[int, int, int, int]) -> None:
    h, w, height, width = sizes
    picture = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    rows, columns = matrix(h, height, interpolation, antialias), matrix(w, width, interpolation, antialias)
    expected = np.einsum("ia,jb,abc->ijc", rows, columns, picture.astype(np.float64)).clip(0, 255)
    resized = images.resize(picture, height, width, interpolation, antialias)
    assert resized.dtype == np.uint8 and resized.shape == (height, width, 3)
    difference = np.abs(resized - expected).max()
    # Pillow rounds after each of its two passes (and clips in between, which bicubic overshoot feels); without antialias: once.
    bound = 0.501 if not antialias else 1.01 if interpolation == "bilinear" else 40
    assert difference <= bound
    if antialias and interpolation == "bicubic":
        assert np.abs(resized - expected).mean() < 2


def test_known_values_without_antialias() -> None:
    # Half-pixel centres: 4 -> 2 samples between pixels 0|1 and 2|3; 2 -> 4 repeats the edges.
    row = np.array([0, 100, 200, 60], np.uint8)[None, :, None]
    assert images.resize(row, 1, 2, "bilinear", False)[0, :, 0].tolist() == [50, 130]
    assert images.resize(row[:, :2], 1, 4, "bilinear", False)[0, :, 0].tolist() == [0, 25, 75, 100]
    # 8 -> 2 looks at two pixels each, and misses the bright ones that antialias would average in.
    sparse = np.array([255, 0, 0, 255, 255, 0, 0, 255], np.uint8)[None, :, None]
    assert images.resize(sparse, 1, 2, "bilinear", False)[0, :, 0].tolist() == [0, 0]
    assert images.resize(sparse, 1, 2, "bilinear", True)[0, :, 0].min() > 80


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_channels_and_an_equal_size(channels: int) -> None:
    picture = pattern(10, 12)[:, :, :channels]
    for antialias in (True, False):
        np.testing.assert_array_equal(images.resize(picture, 10, 12, "bicubic", antialias), picture)
        assert images.resize(picture, 5, 6, "bilinear", antialias).shape == (5, 6, channels)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_antialias_is_pillow(interpolation) -> None:
    picture = Image.fromarray(pattern(61, 47, seed=3))
    expected = np.asarray(picture.resize((20, 33), getattr(Image.Resampling, interpolation.upper())))
    np.testing.assert_array_equal(images.resize(np.asarray(picture), 33, 20, interpolation, True), expected)


# --- Evaluation input


@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.875])
@pytest.mark.parametrize("size", [24, 33])
@pytest.mark.parametrize("native", [(40, 60), (60, 40), (33, 33), (7, 90), (91, 64), (16, 17)])
def test_aspect_is_torchvisions_resize_and_centre_crop(native: tuple[int, int], size: int, crop_pct: float) -> None:
    from torchvision import transforms

    picture = pattern(*native)
    for interpolation in ("bilinear", "bicubic"):
        theirs = transforms.Compose(
            [
                transforms.Resize(
                    math.floor(size / crop_pct), getattr(transforms.InterpolationMode, interpolation.upper())
                ),
                transforms.CenterCrop(size),
            ]
        )(Image.fromarray(picture))
        spec = InputSpec(size=size, mode="aspect", crop_pct=crop_pct, interpolation=interpolation, decoder="exact")
        np.testing.assert_array_equal(images.prepare(picture, spec), np.asarray(theirs))
        assert_near(
            images.prepare(picture, dataclasses.replace(spec, decoder="fast")),
            np.asarray(theirs),
            1 if interpolation == "bilinear" else 3,
        )


def test_square_ignores_the_aspect_ratio() -> None:
    from torchvision import transforms

    picture = pattern(30, 50)
    theirs = np.asarray(transforms.Resize((24, 24))(Image.fromarray(picture)))
    np.testing.assert_array_equal(images.prepare(picture, InputSpec(size=24, decoder="exact")), theirs)
    assert_near(images.prepare(picture, InputSpec(size=24)), theirs, 1)
    plain = images.prepare(picture, InputSpec(size=24, antialias=False))
    np.testing.assert_array_equal(plain, images.resize(picture, 24, 24, "bilinear", False))


# --- The fast way beside the exact one


def assert_near(found: np.ndarray, expected: np.ndarray, levels: int) -> None:
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= levels


def both(data: bytes, channels: int = 3, **spec: Any) -> tuple[np.ndarray, np.ndarray]:
    """An image file as a model sees it, by the fast decoder and by the exact one."""
    fast, exact = (images.prepared(data, "x", channels, InputSpec(**spec, decoder=way)) for way in ("fast", "exact"))
    whole = images.decode(data, "x", channels)
    np.testing.assert_array_equal(exact, images.prepare(whole, InputSpec(**spec, decoder="exact")))
    return fast, exact


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The heights and widths at which JPEG files are decoded."""
    shapes = []
    inner = images._loaded

    def noted(*args: Any) -> np.ndarray:
        pixels = inner(*args)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(images, "_loaded", noted)
    return shapes


JPEGS = {
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("mode", ["square", "aspect"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("native", [(400, 711), (397, 333)])
@pytest.mark.parametrize("kind", [*JPEGS, "grey", "CMYK"])
def test_fast_decoding_is_near_the_exact_one(loaded, kind: str, native, interpolation, mode) -> None:
    picture = Image.fromarray(pattern(*native))
    picture = picture.convert({"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB"))
    data = encoded(picture, "JPEG", quality=90, **JPEGS.get(kind, {}))
    for channels in (3, 1):
        del loaded[:]
        fast, exact = both(data, channels, size=48, mode=mode, crop_pct=0.9, interpolation=interpolation)
        assert_near(fast, exact, 4)
        assert np.abs(fast.astype(int) - exact).mean() < 0.7
        height, width = loaded[0]
        assert 96 <= min(height, width) < min(native) / 1.9, "decoded at a smaller scale, and not too small"


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_decoding_turns_images_upright(orientation: int, scaled: bool) -> None:
    upright = pattern(250, 333)
    content = np.ascontiguousarray(stored(upright, orientation))
    data = encoded(content, "JPEG", quality=95, exif=exif(orientation))
    for mode in ("square", "aspect"):
        fast, exact = both(data, size=30 if scaled else 100, mode=mode, crop_pct=0.8)
        assert_near(fast, exact, 3)
        assert_near(fast, images.prepare(upright, InputSpec(size=30 if scaled else 100, mode=mode, crop_pct=0.8)), 12)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("extra", range(8))
def test_what_lies_beyond_the_edge_of_a_smaller_scale_does_not_stretch_the_image(extra: int, orientation: int) -> None:
    """65 px are 16.25 px at a quarter, of which 17 are decoded: taken for 17, the far edge would be a whole pixel of the result off."""
    side = 64 + extra
    ramp = np.repeat(np.linspace(0, 255, side).round().astype(np.uint8)[None], side, axis=0)
    data = encoded(np.ascontiguousarray(stored(ramp, orientation)), "JPEG", quality=100, exif=exif(orientation))
    fast, exact = both(data, size=8)
    assert_near(fast, exact, 2)


def test_little_shrinking_takes_all_pixels(loaded) -> None:
    data = encoded(pattern(99, 160), "JPEG")
    fast, exact = both(data, size=25)  # 100 px would do
    assert loaded[0] == (99, 160)
    assert_near(fast, exact, 1)
    np.testing.assert_array_equal(fast, images.prepare(images.decode(data, "x"), InputSpec(size=25)))


@pytest.mark.parametrize("spec", [InputSpec(size=8, antialias=False), InputSpec(size=8, decoder="exact")])
def test_decoded_whole_if_asked_or_without_antialiasing(loaded, spec: InputSpec) -> None:
    data = encoded(pattern(400, 300), "JPEG")
    found = images.prepared(data, "x", 3, spec)
    assert loaded == [(400, 300)]
    np.testing.assert_array_equal(found, images.resize(images.decode(data, "x"), 8, 8, "bilinear", spec.antialias))


def test_other_formats_and_thin_images_are_near_too() -> None:
    for kind in ("PNG", "WEBP", "TIFF"):
        fast, exact = both(encoded(pattern(300, 200), kind), size=24)
        assert_near(fast, exact, 1)
    for native in ((3, 900), (900, 3), (1, 1), (5, 4), (30, 500)):
        fast, exact = both(encoded(pattern(*native), "JPEG"), size=24, mode="aspect", crop_pct=0.9)
        assert_near(fast, exact, 1)


@pytest.mark.skipif(images._simplejpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("kind", [*JPEGS, "grey"])
@pytest.mark.parametrize("native", [(1, 1), (3, 3), (5, 9), (63, 64), (250, 333)])
def test_simplejpeg_and_pillow_give_the_same_bytes(kind: str, native, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(4).integers(0, 256, (*native, 3), dtype=np.uint8) // 2 + pattern(*native) // 2
    data = encoded(Image.fromarray(picture).convert("L" if kind == "grey" else "RGB"), "JPEG", **JPEGS.get(kind, {}))

    def decoded() -> list[np.ndarray]:
        sizes = [None, *((max(native[0] // k, 1), max(native[1] // k, 1)) for k in (1, 2, 3, 4, 8))]
        return [images.decode(data, "x", channels, size) for size in sizes for channels in (1, 3)]

    ours = decoded()
    monkeypatch.setattr(images, "_simplejpeg", None)
    for found, expected in zip(ours, decoded(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(images._simplejpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_no_more_of_a_jpeg_is_decoded_than_was_counted(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the scale that memory was asked for, once; the same bytes by a whole decoding thrown away would cost up to 64 times as much."""
    made = []

    class Watched:
        @staticmethod
        def decode_jpeg(*arguments: Any, **options: Any) -> np.ndarray:
            made.append(images_by(*arguments, **options))
            return made[-1]

    images_by = images._simplejpeg.decode_jpeg  # type: ignore[union-attr]
    monkeypatch.setattr(images, "_simplejpeg", Watched)
    found = images.decode(encoded(pattern(256, 320), "JPEG"), "x", 3, (256 // scale, 320 // scale))
    assert [one.shape for one in made] == [found.shape] == [(256 // scale, 320 // scale, 3)]


@pytest.mark.skipif(images._simplejpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("size", [8, 40])
def test_damage_is_judged_as_by_pillow_alone(options: dict[str, Any], size: int) -> None:
    generator = np.random.default_rng(1)
    data = np.frombuffer(encoded(pattern(70, 50), "JPEG", **options), np.uint8)

    def outcome(content: bytes) -> list[int] | str:
        try:
            return images.prepared(content, "x", 3, InputSpec(size=size)).ravel().tolist()
        except ImageError as error:
            return error.reason

    kinds = set()
    for number in range(150):
        damaged = data.copy()
        damaged[generator.integers(0, len(data), 1 + number % 3)] = generator.integers(0, 256, 1 + number % 3)
        content = damaged.tobytes()[: len(data) if number % 4 else generator.integers(20, len(data))]
        ours = outcome(content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images, "_simplejpeg", None)
            assert outcome(content) == ours
        kinds.add(type(ours))
    assert kinds == {list, str}


@pytest.mark.parametrize("decoder", ["fast", "exact"])
def test_limits_and_reasons_are_those_of_decode(decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = InputSpec(size=8, decoder=decoder)
    data = encoded(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        images.prepared(data[: len(data) // 2], "x", 3, spec)
    with pytest.raises(ImageError, match="no such file"):
        images.prepared("none.jpg", "x", 3, spec)
    for limit, value in (("image_pixels", 59_999), ("image_side", 299), ("image_memory", 1000), ("image_seconds", 0)):
        monkeypatch.setattr(images, "limits", lambda one={limit: value}: dataclasses.replace(limits(), **one))
        with pytest.raises(ImageError, match=limit):
            images.prepared(data, "x", 3, spec)


def test_memory_is_waited_for_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(images, "_take", taken.append)
    monkeypatch.setattr(images, "_FREE", 0)
    images.prepared(encoded(pattern(400, 800), "JPEG"), "x", 3, InputSpec(size=32))
    # At 1/4, where 100 px are left of the shorter side: as decoded first, and what Pillow or torch adds.
    assert len(taken) == 1 and 100 * 200 * 7 <= taken[0] <= 100 * 200 * 7 + 400 * 800 * 0.1


def test_libtiff_writes_nothing_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    """It would write its remarks to standard error, past everything that is in charge of that."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "TIFF", compression="tiff_lzw")
    data = bytearray(stream.getvalue())
    data[200:400] = b"\xff" * 200
    with pytest.raises(ImageError):
        images.decode(bytes(data), "a.tif")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("native", [(3, 200), (200, 3), (1, 60), (60, 1), (41, 2000), (2000, 41), (30, 500)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_thin_images_are_prepared_as_if_resized_whole(native, interpolation, antialias: bool, crop_pct: float) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*native, 3), dtype=np.uint8)
    spec = InputSpec(size=24, mode="aspect", crop_pct=crop_pct, interpolation=interpolation, antialias=antialias)
    short = math.floor(24 / crop_pct)
    height, width = (int(short * max(side / min(native), 1)) for side in native)
    assert max(height, width) > 16 * short
    top, left = round((height - 24) / 2), round((width - 24) / 2)
    whole = images.resize(picture, height, width, interpolation, antialias)[top : top + 24, left : left + 24]
    found = images.prepare(picture, spec)
    assert found.shape == (24, 24, 3) and found.dtype == np.uint8
    difference = np.abs(found.astype(int) - whole)
    # Pillow clips what bicubic overshoots after its first pass, which may be along the other side then: in noise a few pixels feel it.
    assert difference.max() <= (0 if not antialias else 1 if interpolation == "bilinear" else 10)
    assert difference.mean() < 0.5


@pytest.mark.parametrize("shape", [(1, 10_000_000), (10_000_000, 1), (1, 20_000), (2, 3_000), (5000, 20)])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["aspect", "square"])
def test_thin_images_take_no_more_memory_than_others(shape, antialias: bool, mode) -> None:
    """Resized to 224 px high, 10,000,000 x 1 px would have two thousand million million columns."""
    picture = np.broadcast_to(np.array([7, 8, 9], np.uint8), (*shape, 3))
    spec = InputSpec(size=224, mode=mode, crop_pct=0.875 if mode == "aspect" else 1.0, antialias=antialias)
    if mode == "square" and antialias:
        picture = picture[:100_000, :100_000]  # which Pillow copies, and weighs all of
    tracemalloc.start()
    prepared = images.prepare(picture, spec)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert prepared.shape == (224, 224, 3) and (prepared == [7, 8, 9]).all()
    assert peak < 60 * 224 * 224 + 4 * 100_000


# --- Threads


def test_large_images_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads decode small images side by side, and large ones only as far as the limit on memory has room for all of them."""
    monkeypatch.setattr(images, "_FREE", 5_000)
    monkeypatch.setenv("BIT_LIMITS", "image_memory=100k")
    large, small = (
        encoded(Image.new("RGB", (80, 80))),
        encoded(Image.new("RGB", (16, 16))),
    )  # 45 and 1.8 kB by their headers
    decoding, most, lock = Counter(), Counter(), threading.Lock()
    true = images._pixels

    def slowly(image: Image.Image, *rest):
        with lock:
            decoding[image.width] += 1
            most[image.width] = max(most[image.width], decoding[image.width])
        time.sleep(0.02)
        with lock:
            decoding[image.width] -= 1
        return true(image, *rest)

    monkeypatch.setattr(images, "_pixels", slowly)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda data: images.decode(data, "x"), [large] * 12))) == 12
        assert most[80] == 2
        assert len(list(pool.map(lambda data: images.decode(data, "x"), [small] * 16))) == 16
        assert most[16] > 2
    assert images._taken == 0


def test_memory_is_held_until_the_pixels_are_used_and_given_back_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "_FREE", 0)
    data = encoded(pattern(80, 80))
    with images.memory_held():
        images.decode(data, "x")
        once = images._taken
        assert once >= 80 * 80 * 7
        images.decode(data, "x")
        assert images._taken == once, "one image at a time"
    assert images._taken == 0
    images.decode(data, "x")
    assert images._taken == 0
    broken = data[: len(data) // 2]
    for scope in (contextlib.nullcontext(), images.memory_held()):
        with scope, contextlib.suppress(ImageError):
            images.decode(broken, "x")
        assert images._taken == 0


def test_a_forked_process_has_all_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_taken", 10**12)
    images._renew_locks()
    assert images._taken == 0
    assert len(images.decode(encoded(pattern(80, 80)), "x")) == 80


def test_huge_jpegs_are_decoded_at_half_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_LARGE_JPEG", 5_000)
    upright = pattern(64, 80)  # 5,120 pixels
    for orientation in (1, 6):
        data = encoded(np.ascontiguousarray(stored(upright, orientation)), "JPEG", quality=95, exif=exif(orientation))
        assert images.size(data, "x") == (64, 80)
        found = images.decode(data, "x")
        assert found.shape == (32, 40, 3)
        assert np.abs(found.astype(int) - images.resize(upright, 32, 40)).mean() < 4
    assert images.decode(encoded(pattern(50, 100), "JPEG"), "x").shape == (50, 100, 3)


def test_large_images_are_converted_strip_by_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of them, whatever the strips: the pixels are the same as those of one strip."""
    rgba = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    numbers = rgba[:, :, 0].astype(np.float32) - 100
    numbers[3, 4], numbers[36, 22], numbers[20, 0] = np.nan, np.inf, -np.inf
    kinds = {
        "RGBA": Image.fromarray(rgba),
        "palette": Image.fromarray(rgba[:, :, :3]).quantize(20),
        "CMYK": Image.fromarray(rgba, "CMYK"),
        "grey and alpha": Image.fromarray(rgba).convert("LA"),
        "premultiplied": Image.fromarray(rgba).convert("LA").convert("La"),
        "bits": Image.fromarray(rgba[:, :, 0] > 99),
        "16 bits": Image.fromarray(rgba[:, :, 0].astype(np.uint16) * 250),
        "integers": Image.fromarray(rgba[:, :, 0].astype(np.int32) * 1000 - 7),
        "floats": Image.fromarray(numbers),
    }
    whole = {name: images.from_pillow(image, name) for name, image in kinds.items()}
    for pixels in (1, 23 * 5, 23 * 36):
        monkeypatch.setattr(images, "_STRIP", pixels)
        for name, image in kinds.items():
            np.testing.assert_array_equal(images.from_pillow(image, name), whole[name], err_msg=name)
            assert images.from_pillow(image, name, 1).shape == (37, 23, 1)
    la = rgba[:, :, :3] @ np.array([0.299, 0.587, 0.114])
    laid = 255 + (la - 255) * (rgba[:, :, 3] / 255)
    assert np.abs(whole["grey and alpha"][:, :, 0] - laid).max() <= 2
    assert np.abs(whole["premultiplied"][:, :, 0].astype(int) - whole["grey and alpha"][:, :, 0]).max() <= 3


def test_resizing_without_torch_gives_the_same_bytes() -> None:
    """Where torch is loaded images are resized by it, elsewhere by NumPy: a model's answers must not depend on that."""
    rng = np.random.default_rng(0)
    for case in range(40):
        height, width = (int(n) for n in rng.integers(1, 300, 2))
        size = [int(n) for n in rng.integers(1, 120, 2)]
        image = rng.integers(0, 256, (height, width, (1, 3)[case % 2]), dtype=np.uint8)
        if case % 3 == 0:  # where bicubic overshoots
            image = (image > 127).astype(np.uint8) * np.uint8(255)
        extent = (height - min(0.9, height / 2) * rng.random(), width - min(0.9, width / 2) * rng.random())
        for given in ((height, width), extent):
            for interpolation in ("bilinear", "bicubic"):
                wanted = images._by_torch(image, *size, interpolation, given)
                np.testing.assert_array_equal(images._as_torch(image, *size, interpolation, given), wanted)
