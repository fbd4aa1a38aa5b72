"""One image: from file bytes to pixels, and from pixels to the size a model wants. NumPy and Pillow, and what does the same faster:
simplejpeg, where it is installed, and torch's resizing.

Pixels are uint8, `(height, width, channels)`, channels 3 (sRGB as stored, no colour management) or 1 (luma, ITU-R 601).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from bigtransfer import files
from bigtransfer.catalog import InputSpec
from bigtransfer.data import containers
from bigtransfer.data.containers import Encoded, extensions, formats
from bigtransfer.errors import ConfigError, ImageError
from bigtransfer.limits import limits

try:
    import simplejpeg as _simplejpeg
except ImportError:  # There is none for every platform and version of Python.
    _simplejpeg = None

__all__ = [
    "Interpolation",
    "Pixels",
    "decode",
    "extensions",
    "formats",
    "from_pillow",
    "memory_held",
    "prepare",
    "prepared",
    "resize",
    "size",
    "with_channels",
]

Pixels = np.ndarray
"""uint8 (height, width, channels)."""

Interpolation = Literal["bilinear", "bicubic"]

GREY = 127
"""Of pixels that no image covers: half a level from 0 once they are scaled to [-1, 1]."""

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_LARGE_JPEG = 100_000_000
"""Pixels beyond which a JPEG is decoded at half its height and width: nothing is lost that any input size could show."""

_SPARE = 2
"""How many times the wanted height and width a JPEG that is decoded at a smaller scale has at least, for the filter to do the rest."""

_STRIP = 1 << 20
"""Pixels that are converted at a time."""

_FREE = 1 << 26
"""Bytes that an image may take without asking whether others are being decoded."""


def decode(
    source: bytes | str | os.PathLike[str], name: str, channels: int = 3, at_least: tuple[int, int] | None = None
) -> Pixels:
    """The pixels of an encoded image or of an image file, upright (EXIF orientation applied); of an animation the first frame.

    Everything becomes 8 bits a channel: transparency is laid over white; CMYK, YCbCr, LAB and palettes become RGB; 16-bit
    (and 12-bit TIFF) values lose their low bits, as Pillow does with 16-bit colour PNG. 32-bit integers and floats have no
    range of their own: values within 0..1 (floats only) are scaled by 255, within 0..255 kept, within 0..65535 (integers only)
    taken as 16-bit, and anything else is stretched from its least to its greatest value.

    `at_least=(height, width)` lets JPEG decode at 1/2, 1/4 or 1/8 scale as long as the result is no smaller than that: far
    faster for huge photos, and not the same pixels as a full decode. Without it the result is exact, but for JPEGs of more than
    100 million pixels, which are decoded at half scale.

    Raises ImageError, with `name` and a reason, for whatever cannot be decoded, is in none of `formats()`, or exceeds a limit
    (`limits`: image_bytes, image_pixels, image_side, image_memory, image_seconds), which is known before anything is decoded.
    """
    if channels not in (1, 3):
        raise ConfigError(f"Images are read with 1 or 3 channels, not {channels}.")
    with _opened(source, name) as (image, encoded):
        return _decoded(encoded, image, channels, at_least)


def prepared(
    source: bytes | str | os.PathLike[str], name: str, channels: int = 3, spec: InputSpec | None = None
) -> Pixels:
    """An encoded image or image file as a model sees it: `prepare(decode(source, name, channels), spec)`, but for JPEG files sooner.

    With `spec.decoder` "fast" and antialiasing a JPEG file is decoded at 1/2, 1/4 or 1/8 of its scale where at least twice the height and
    twice the width remain that it is shrunk to. What it is then depends on the file and `spec` alone. Raises as `decode` does.
    """
    with _opened(source, name) as (image, encoded):
        pixels = None if spec is None else _scaled(encoded, image, channels, spec)
        if pixels is not None:
            return pixels
        pixels = _decoded(encoded, image, channels)
    return prepare(pixels, spec)


def _scaled(encoded: Encoded, image: Image.Image, channels: int, spec: InputSpec) -> Pixels | None:
    """What `prepared` gives of a JPEG file that can be decoded at a smaller scale; of any other image None, and nothing is decoded."""
    if encoded.kind != "JPEG" or spec.decoder == "exact" or not spec.antialias:
        return None
    width, height = image.size
    orientation = encoded.orientation or 1
    sideways = orientation >= 5
    rows, columns, top, left = _places(width if sideways else height, height if sideways else width, spec)
    if max(rows, columns) > _LONG * spec.resized:
        return None
    down, across = (columns, rows) if sideways else (rows, columns)
    if min(width // across, height // down) < 2 * _SPARE:
        return None
    drafted = image.draft(None, (_SPARE * across, _SPARE * down))
    if drafted is None:
        return None
    # Where a side is no multiple of 2, 4 or 8 the last of these pixels lie partly beyond the image: what counts is how much it covers.
    _, (_, _, right, bottom) = drafted
    with _memory(_affordable(encoded, (width, height), image.size, image.mode, channels)):
        stored = _loaded(encoded, image, channels)
        small = _antialiased(stored, down, across, spec.interpolation, (bottom, right))
    upright = np.empty((rows, columns, channels), np.uint8)
    _as_stored(upright, orientation)[:] = small
    upright = np.ascontiguousarray(upright[top : top + spec.size, left : left + spec.size])
    return padded(upright, spec.size) if spec.mode == "fit" else upright


def _decoded(encoded: Encoded, image: Image.Image, channels: int, at_least: tuple[int, int] | None = None) -> Pixels:
    """What `decode` gives of an image that is opened."""
    width, height = image.size
    if encoded.kind == "JPEG" and at_least is not None:
        across, down = at_least if (encoded.orientation or 1) >= 5 else at_least[::-1]
        image.draft(None, (across, down))
    elif encoded.kind == "JPEG" and width * height > _LARGE_JPEG:
        image.draft(None, (width // 2, height // 2))
    with _memory(_affordable(encoded, (width, height), image.size, image.mode, channels)):
        if encoded.kind == "JPEG" and (encoded.orientation or 1) == 1:
            return _loaded(encoded, image, channels)
        with _undisturbed(encoded, image):
            image.load()
        # Asked only now where Pillow knows: loading a TIFF or HEIC turns it upright by itself.
        return _pixels(image, channels, encoded.orientation or _orientation(image))


def _loaded(encoded: Encoded, image: Image.Image, channels: int) -> Pixels:
    """The pixels of a JPEG file as stored, at the scale at which the image is to be loaded.

    By simplejpeg, which gives the same bytes as Pillow without its four bytes a pixel and its copies, where it can: it knows all that is
    whole, in colour or in grey. Whatever it objects to Pillow judges.
    """
    scaled = image.decoderconfig[:1] > (1,)  # pyright: ignore[reportAttributeAccessIssue]
    # It is told a size, which three eighths and four of something tiny have in common.
    clear = not scaled or max(image.size) >= 32
    if _simplejpeg is not None and clear and (image.mode == "L" or (image.mode == "RGB" and channels == 3)):
        least = (image.height, image.width) if scaled else (0, 0)
        kind = "RGB" if image.mode == "RGB" else "GRAY"
        with contextlib.suppress(Exception):
            pixels = _simplejpeg.decode_jpeg(encoded.data, kind, min_height=least[0], min_width=least[1])
            if pixels.shape[:2] == image.size[::-1]:
                return with_channels(pixels, channels)
    image.load()
    return _pixels(image, channels, 1)


def from_pillow(image: Image.Image, name: str, channels: int = 3) -> Pixels:
    """The pixels of an image that Pillow has opened or made, by the rules of `decode`. Raises ImageError, with `name` and a reason."""
    try:
        # One that is not loaded yet would be by a decoder of Pillow's, which might start a program.
        if (
            isinstance(image, ImageFile.ImageFile)
            and image.tile
            and image.format not in (*formats(), *containers.ALIASES)
        ):
            raise ImageError(
                name, f"it is in the format {image.format}, which is not decoded here; load() it first if it is meant"
            )
        image.load()
        return _pixels(image, channels, _orientation(image))
    except ImageError:
        raise
    except Exception as error:  # A lazily opened file fails only here, in as many ways as there are decoders.
        raise ImageError(name, _reason(error)) from error


def size(source: bytes | str | os.PathLike[str], name: str) -> tuple[int, int]:
    """Height and width of the upright image in px, from its header: nothing is decoded. Raises ImageError as `decode` does."""
    with _opened(source, name) as (image, encoded):
        width, height = image.size
        if encoded.kind == "TIFF":  # whose `size` is of the upright image in newer Pillow versions only
            width, height = (image.tag_v2[tag] for tag in (256, 257))  # pyright: ignore[reportAttributeAccessIssue]
        sideways = (encoded.orientation or _orientation(image)) >= 5
    return (width, height) if sideways else (height, width)


@contextlib.contextmanager
def _opened(source: bytes | str | os.PathLike[str], name: str) -> Iterator[tuple[Image.Image, Encoded]]:
    """The image opened by Pillow; whatever goes wrong before the block's end becomes an ImageError."""
    try:
        data = source if isinstance(source, bytes) else files.read(source, "image_bytes")
        if not data:
            raise ImageError(name, "the file is empty (0 bytes)")
        encoded = containers.read(data)
        del data
        if encoded.canvas is not None:
            _affordable(encoded, encoded.canvas, encoded.canvas, "RGB", 3)
        # Of a JPEG nothing is left to remark on, and the filters take longer than its header.
        with contextlib.nullcontext() if encoded.kind == "JPEG" else _without_warnings():
            image = encoded.opened()
        with image:
            yield image, encoded
    except (ImageError, ConfigError):
        raise
    except Exception as error:  # A decoder fed with damaged bytes may raise anything.
        raise ImageError(name, _reason(error)) from error


def _affordable(encoded: Encoded, size: tuple[int, int], made: tuple[int, int], mode: str, channels: int) -> int:
    """Bytes that decoding and then resizing takes, without the file's own. Unreadable where that, or another limit, is too much.

    size, made: width and height as stored, and as decoded, which may be at a smaller scale.
    """
    bounds = limits()
    width, height = size
    if max(size) > bounds.image_side:
        raise _over("image_side", f"it is {width:,} x {height:,} px; a side may have {bounds.image_side:,}")
    if width * height > bounds.image_pixels:
        raise _over(
            "image_pixels",
            f"it has too many pixels, {width:,} x {height:,}; {bounds.image_pixels / 1e6:g} million may be",
        )
    needed, seconds = encoded.cost(width, height, made, mode)
    pixels = made[0] * made[1]
    needed = pixels * channels + max(
        needed, pixels * (4 if channels == 3 else 1)
    )  # decoded first, resized by Pillow then
    if len(encoded.data) + needed > bounds.image_memory:
        needed_gb = (len(encoded.data) + needed) / 1e9
        raise _over("image_memory", f"decoding its {width:,} x {height:,} px takes {needed_gb:.1f} GB of memory")
    if seconds > bounds.image_seconds:
        raise _over("image_seconds", f"decoding it would take about {seconds:.0f} seconds")
    return needed


def _over(limit: str, what: str) -> containers.Unreadable:
    return containers.Unreadable(f"{what}; shrink it first or, if it is meant, raise the limit: --limits {limit}=N")


# --- Shared by threads

_quiet = threading.Lock()
_room = threading.Condition()
_taken = 0
_scope = threading.local()


def _renew_locks() -> None:
    """A process forked while another thread held a lock would wait for it forever."""
    global _quiet, _room, _taken
    _quiet, _room, _taken = threading.Lock(), threading.Condition(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow's remarks on odd metadata and on large images are of no use here. One thread at a time, as filters are global.

    Nor is its own limit on pixels, which it looks up in a global, too: `limits` has another.
    """
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _undisturbed(encoded: Encoded, image: Image.Image) -> contextlib.AbstractContextManager[None]:
    """While a TIFF is decoded that is larger than Pillow likes: it asks for the size again then."""
    large = encoded.kind == "TIFF" and image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf)
    return _without_warnings() if large else contextlib.nullcontext()


@contextlib.contextmanager
def _memory(needed: int) -> Iterator[None]:
    """Waits until the large images that other threads decode leave that many bytes of the limit on memory."""
    _give_back()
    if needed > _FREE:
        _take(needed)
    try:
        yield
    finally:
        if not getattr(_scope, "kept", False):
            _give_back()


@contextlib.contextmanager
def memory_held() -> Iterator[None]:
    """Around the decoding of one image and what is done with its pixels at once: other threads' large images wait until its end."""
    _scope.kept = True
    try:
        yield
    finally:
        _scope.kept = False
        _give_back()


def _take(needed: int) -> None:
    global _taken
    with _room:
        _room.wait_for(lambda: not _taken or _taken + needed <= limits().image_memory)
        _taken += needed
        _scope.bytes = needed


def _give_back() -> None:
    global _taken
    held, _scope.bytes = getattr(_scope, "bytes", 0), 0
    if held:
        with _room:
            _taken = max(0, _taken - held)
            _room.notify_all()


def _reason(error: Exception) -> str:
    """Why an image cannot be decoded, in words its owner understands."""
    if isinstance(error, containers.Unreadable):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the file cannot be read ({error.strerror})"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, UnidentifiedImageError):
        return "it is damaged (its header makes no sense)"
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "it is truncated: the file ends before the image does"
    return f"it is damaged ({text or type(error).__name__})"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 as Pillow knows it; 1 (upright) also where the EXIF data are damaged."""
    try:
        if image.format in ("AVIF", "HEIF"):
            value = containers.exif_orientation(image.info.get("exif") or b"")
        else:
            with _without_warnings():
                value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Damaged metadata must not cost the image.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# --- Pixels


def _pixels(image: Image.Image, channels: int, orientation: int) -> Pixels:
    """The loaded image, which is stored in that orientation, upright and in 8 bits; strip by strip, so that no copy of it is made."""
    width, height = image.size
    upright = np.empty((width, height, channels) if orientation >= 5 else (height, width, channels), np.uint8)
    stored = _as_stored(upright, orientation)
    flatten = _flattener(image, channels)
    for top, strip in _strips(image):
        pixels = flatten(strip)
        stored[top : top + strip.height] = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return upright


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Some rows at a time, with the number of the first."""
    rows = max(1, _STRIP // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the upright picture whose row 0 and column 0 are those of a file in that orientation (EXIF 2.3, tag 0x0112)."""
    turned = upright.swapaxes(0, 1) if orientation >= 5 else upright
    flipped_rows, flipped_columns = orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)
    return turned[:: -1 if flipped_rows else 1, :: -1 if flipped_columns else 1]


def _flattener(image: Image.Image, channels: int) -> Callable[[Image.Image], np.ndarray]:
    """What makes a strip of the image uint8 (h, w) or (h, w, 3)."""
    mode = "RGB" if channels == 3 else "L"
    if image.mode.startswith("I") or image.mode == "F":
        to_grey = _number_rule(image)
        return lambda strip: np.repeat(to_grey(np.asarray(strip))[:, :, None], channels, axis=2)
    if image.mode == "LAB":
        return lambda strip: np.asarray(_lab_to_rgb(strip).convert(mode))
    if image.has_transparency_data:
        return lambda strip: np.asarray(_over_white(strip).convert(mode))
    if image.mode not in ("1", "L", "RGB"):
        return lambda strip: np.asarray(strip.convert("RGB").convert(mode))
    return lambda strip: np.asarray(strip if strip.mode == mode else strip.convert(mode))


def _over_white(image: Image.Image) -> Image.Image:
    front = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), front).convert("RGB")


def _number_rule(image: Image.Image) -> Callable[[np.ndarray], np.ndarray]:
    """What makes integers of 16 or 32 bits or floats 8-bit grey, by the ranges in `decode`."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        return lambda values: (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    low, high, unknown = math.inf, -math.inf, [False, False, False]
    for _, strip in _strips(image):
        values = np.asarray(strip)
        known = values if image.mode != "F" else values[np.isfinite(values)]
        if len(known):
            low, high = min(low, float(known.min())), max(high, float(known.max()))
        if known.size < values.size:
            present = np.isnan(values).any(), np.isposinf(values).any(), np.isneginf(values).any()
            unknown = [bool(before or now) for before, now in zip(unknown, present, strict=True)]
    if low > high:
        raise containers.Unreadable("none of its values is a finite number")
    # What is no number counts as 0, infinity as the greatest or least number that there is.
    top, bottom = max(high, 0.0), min(low, 0.0)
    replaced = [value for value, present in zip((0.0, top, bottom), unknown, strict=True) if present]
    low, high = min([low, *replaced]), max([high, *replaced])

    def rule(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        if replaced:
            values = np.nan_to_num(values, nan=0.0, posinf=top, neginf=bottom)
        if image.mode == "F" and low >= 0 and high <= 1:
            values = values * 255
        elif image.mode == "I" and low >= 0 and high <= 65535 and (high > 255 or image.format == "PPM"):
            values = np.floor(values / 256)
        elif low < 0 or high > 255:
            values = (values - low) * (255 / (high - low or 1))
        return np.rint(values).astype(np.uint8)

    return rule


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, rgb = _profiles()
    result = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")  # pyright: ignore[reportArgumentType]
    assert result is not None  # only in-place conversion returns nothing
    return result


@functools.cache
def _profiles() -> tuple[object, object]:
    return ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")


def with_channels(image: Pixels, channels: int) -> Pixels:
    """The image with 3 channels (grey repeated) or 1 (luma)."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]


def resize(
    image: Pixels, height: int, width: int, interpolation: Interpolation = "bilinear", antialias: bool = True
) -> Pixels:
    """The image at `height` x `width` px; pixel centres at half-integers, edges repeated, cubic with a = -0.5.

    antialias True: Pillow's resize, whose filter widens when it shrinks (fixed point, rounded to 8 bits after each of its two
    passes). antialias False: the plain filter of `tf.image.resize`, in float32, rounded once to the nearest 8-bit value.
    """
    if image.shape[:2] == (height, width):
        return image
    if antialias:
        return _by_pillow(image, height, width, interpolation, None)
    return _plain(image, (height, 0, height), (width, 0, width), interpolation)


def prepare(image: Pixels, spec: InputSpec | None) -> Pixels:
    """The image as a model sees it at evaluation: uint8 `(spec.size, spec.size, channels)`; as it is without `spec`.

    Of an image that is more than `_LONG` times as long as wide only the part is resized that the centre crop keeps; antialiased, that may
    differ by one level here and there from resizing it whole (bicubic: by a few, where it overshoots). With `spec.decoder` "fast" torch
    resizes what is antialiased, by weights of 15 bits where Pillow's have 22: one level here and there (bicubic: two).
    """
    if spec is None:
        return image
    height, width, top, left = _places(image.shape[0], image.shape[1], spec)
    if max(height, width) > _LONG * spec.resized:
        return _window(image, (height, top), (width, left), spec)
    if image.shape[:2] != (height, width):
        if spec.antialias and spec.decoder == "fast":
            image = _antialiased(image, height, width, spec.interpolation, image.shape[:2])
        else:
            image = resize(image, height, width, spec.interpolation, spec.antialias)
    image = np.ascontiguousarray(image[top : top + spec.size, left : left + spec.size])
    return padded(image, spec.size) if spec.mode == "fit" else image


def _places(height: int, width: int, spec: InputSpec) -> tuple[int, int, int, int]:
    """To what height and width an image is resized, and where the part of it that is kept begins: top and left."""
    short = spec.resized
    if spec.mode == "square":
        return short, short, 0, 0
    if spec.mode == "fit":
        return (*fitted(height, width, short), 0, 0)
    if height <= width:
        height, width = short, int(short * width / height)
    else:
        height, width = int(short * height / width), short
    return height, width, round((height - spec.size) / 2), round((width - spec.size) / 2)


def fitted(height: int, width: int, size: int) -> tuple[int, int]:
    """To what height and width an image is resized whose longer side is to be `size` px."""
    longest = max(height, width)
    return max(1, round(height * size / longest)), max(1, round(width * size / longest))


def padded(image: Pixels, size: int) -> Pixels:
    """The image in the upper left corner of `size` x `size` px, the rest `GREY`."""
    if image.shape[:2] == (size, size):
        return image
    canvas = np.full((size, size, image.shape[2]), GREY, dtype=np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def part_seen(height: int, width: int, spec: InputSpec) -> tuple[int, int, int, int]:
    """The part of an image of this size that the network's input holds: top, left, height and width in the image's own pixels."""
    tall, wide, top, left = _places(height, width, spec)
    first, start = round(top * height / tall), round(left * width / wide)
    below, beyond = round((top + spec.size) * height / tall), round((left + spec.size) * width / wide)
    return first, start, max(1, below - first), max(1, beyond - start)


_LONG = 16


def _window(image: Pixels, rows: tuple[int, int], columns: tuple[int, int], spec: InputSpec) -> Pixels:
    """`spec.size` rows and columns of the image resized; rows, columns: of how many, and the first."""
    if not spec.antialias:
        return _plain(image, (*rows, spec.size), (*columns, spec.size), spec.interpolation)
    places = []
    for n, (length, first) in zip(image.shape, (rows, columns), strict=False):
        scale = n / length
        begin, end = first * scale, (first + spec.size) * scale
        # What the filter reaches at most, and a pixel more.
        reach = 2 * max(scale, 1.0) + 1
        low, high = max(0, math.floor(begin - reach)), min(n, math.ceil(end + reach))
        places.append((low, high, begin - low, end - low))
    (top, bottom, y0, y1), (left, right, x0, x1) = places
    return _by_pillow(image[top:bottom, left:right], spec.size, spec.size, spec.interpolation, (x0, y0, x1, y1))


def _by_pillow(
    image: Pixels, height: int, width: int, interpolation: Interpolation, box: tuple[float, float, float, float] | None
) -> Pixels:
    grey = image.shape[2] == 1
    method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    picture = Image.fromarray(image[:, :, 0] if grey else image)
    result = np.asarray(picture.resize((width, height), method, box))
    return result[:, :, None] if grey else result


def _antialiased(
    image: Pixels, height: int, width: int, interpolation: Interpolation, extent: tuple[float, float]
) -> Pixels:
    """The image, or its first `extent` (rows, columns; parts of them, too), antialiased at `height` x `width` px, as torch does it.

    Torch is not loaded for that, which would take seconds: where nobody has loaded it NumPy gives the same bytes.
    """
    resize = _by_torch if "torch" in sys.modules else _as_torch
    return resize(image, height, width, interpolation, extent)


def _as_torch(
    image: Pixels, height: int, width: int, interpolation: Interpolation, extent: tuple[float, float]
) -> Pixels:
    """`_by_torch` without torch, bit for bit (ATen/native/cpu/UpSampleKernel.cpp, of uint8): weights as whole numbers of 16 bits, columns
    first, and what comes of them rounded to 8 bits."""
    rows, columns, channels = image.shape
    if columns != width:
        halfway = np.empty((rows, width, channels), np.uint8)
        bands = list(_bands(columns, width, extent[1], interpolation))
        step = max(1, _STRIP // columns)
        for top in range(0, rows, step):
            strip = image[top : top + step].transpose(0, 2, 1).astype(np.float64)
            for first, low, weights in bands:
                made = _rounded(strip[:, :, low : low + weights.shape[1]] @ weights.T)
                halfway[top : top + step, first : first + len(weights)] = made.transpose(0, 2, 1)
        image = halfway
    if rows == height:
        return image
    result = np.empty((height, width, channels), np.uint8)
    for first, low, weights in _bands(rows, height, extent[0], interpolation):
        part = image[low : low + weights.shape[1]].reshape(weights.shape[1], -1).astype(np.float64)
        result[first : first + len(weights)] = _rounded(weights @ part).reshape(len(weights), width, channels)
    return result


def _rounded(sums: np.ndarray) -> np.ndarray:
    return np.floor(sums + 0.5).clip(0, 255).astype(np.uint8)


def _bands(n: int, length: int, extent: float, interpolation: Interpolation) -> Iterator[tuple[int, int, np.ndarray]]:
    """Of `n` samples, whose first `extent` become `length`: for some results at a time the first of them, the first sample that they are
    made of, and the weights float64 (results, samples), whole numbers divided by a power of two, so that sums of pixels are exact."""
    scale = 1 / (length / extent)
    wide = max(scale, 1.0)
    support = (1 if interpolation == "bilinear" else 2) * wide
    centre = scale * (np.arange(length) + 0.5)
    low = (centre - support + 0.5).astype(np.int64).clip(0)
    high = (centre + support + 0.5).astype(np.int64).clip(None, n)
    places = low[:, None] + np.arange((high - low).max())
    distance = np.abs((places - centre[:, None] + 0.5) * (1 / wide))
    weights = np.where(distance < (1 if interpolation == "bilinear" else 2), _kernel(distance, interpolation), 0)
    weights = np.where(places < high[:, None], weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    # As many bits as the largest leaves room for.
    bits = next((bits for bits in range(22) if int(0.5 + weights.max() * 2 ** (bits + 1)) >= 2**15), 22)
    weights = np.trunc(weights * 2**bits + np.copysign(0.5, weights)) / 2**bits
    for first in range(0, length, _BAND):
        some = slice(first, first + _BAND)
        begin, end = int(low[some].min()), int(high[some].max())
        dense = np.zeros((len(low[some]), end - begin))
        for row, start, values in zip(dense, low[some] - begin, weights[some], strict=True):
            row[start : start + len(values)] = values[: len(row) - start]
        yield first, begin, dense


_BAND = 8
"""Results that are computed at a time: products with matrices that are mostly not zero."""


def _by_torch(
    image: Pixels, height: int, width: int, interpolation: Interpolation, extent: tuple[float, float]
) -> Pixels:
    import torch

    # Not `torch.nn.functional.interpolate`, which takes a size or how much is resized, but not both, and gives plane after plane.
    operations = torch.ops.aten
    operation = operations._upsample_bilinear2d_aa if interpolation == "bilinear" else operations._upsample_bicubic2d_aa
    result = np.empty((height, width, image.shape[2]), np.uint8)
    given, wanted = (
        torch.from_numpy(pixels).permute(2, 0, 1)[None]
        for pixels in (np.require(image, requirements=["C", "W"]), result)
    )
    operation.out(given, [height, width], False, height / extent[0], width / extent[1], out=wanted)
    return result


def _plain(
    image: Pixels, rows: tuple[int, int, int], columns: tuple[int, int, int], interpolation: Interpolation
) -> Pixels:
    """The image resampled without antialiasing; rows, columns: to how many, the first that is kept, and how many are."""
    places, weights = _taps(image.shape[1], *columns, interpolation)
    # Rows first, and of them only the columns that will be looked at.
    needed = np.unique(places)
    if len(needed) < image.shape[1]:
        image, places = image[:, needed], np.searchsorted(needed, places)
    halfway = _weighted(image, *_taps(image.shape[0], *rows, interpolation))
    both = _weighted(halfway.swapaxes(0, 1), places, weights).swapaxes(0, 1)
    return np.ascontiguousarray(np.rint(both).clip(0, 255).astype(np.uint8))


def _taps(n: int, length: int, first: int, count: int, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray]:
    """Of `n` samples resampled to `length`: which ones make up those from `first` on, int64 (taps, count), and by what weights, float32."""
    at = (np.arange(first, first + count) + 0.5) * (n / length) - 0.5
    nearest = np.floor(at).astype(np.int64)
    taps = (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2)
    weights = np.stack([_kernel(np.abs(at - (nearest + tap)), interpolation) for tap in taps])
    places = np.stack([nearest + tap for tap in taps])
    if interpolation == "bicubic":
        # TensorFlow drops the taps beyond the edge and scales the others up; for bilinear that is the same as repeating the edge.
        inside = (places >= 0) & (places < n)
        weights = weights * inside / (weights * inside).sum(axis=0)
    return places.clip(0, n - 1), weights.astype(np.float32)


def _weighted(image: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of rows of `(n, m, c)` at `places` by their weights, both (taps, count): float32 (count, m, c)."""
    result = np.zeros((places.shape[1], *image.shape[1:]), np.float32)
    for place, weight in zip(places, weights, strict=True):
        result += weight[:, None, None] * image[place]
    return result


def _kernel(distance: np.ndarray, interpolation: Interpolation) -> np.ndarray:
    if interpolation == "bilinear":
        return 1 - distance
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
