"""One image: from file bytes to pixels, and from pixels to the size a model wants. NumPy and Pillow only.

Pixels are uint8, `(height, width, channels)`, channels 3 (sRGB as stored, no colour management) or 1 (luma, ITU-R 601).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError, _imaging

from bigtransfer import files
from bigtransfer.catalog import InputSpec
from bigtransfer.errors import ConfigError, ImageError

Pixels = np.ndarray
"""uint8 (height, width, channels)."""

Interpolation = Literal["bilinear", "bicubic"]

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_UNTRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image stored under this EXIF orientation upright."""


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that `decode` opens: all that the installed Pillow reads, and HEIC where pillow-heif is installed.

    EPS is left out, as Pillow runs an external PostScript interpreter on it; so are the formats that Pillow names but cannot decode.
    """
    with contextlib.suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    Image.init()
    _silence_libtiff()
    return tuple(sorted(set(Image.OPEN) - {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}))


def _silence_libtiff() -> None:
    """Keep libtiff from writing its remarks on damaged files to standard error by itself; the reason is in Pillow's exception."""
    with contextlib.suppress(OSError, AttributeError):  # a Pillow without it, or that hides it
        library = ctypes.CDLL(_imaging.__file__)  # finds what that is linked with, too
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            function = getattr(library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
            function(None)


@functools.cache
def extensions() -> frozenset[str]:
    """Lower-case file name endings, with their dot, that are taken for images."""
    known = formats()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in known)


def decode(
    source: bytes | str | os.PathLike[str], name: str, channels: int = 3, at_least: tuple[int, int] | None = None
) -> Pixels:
    """The pixels of an encoded image or of an image file, upright (EXIF orientation applied); of an animation the first frame.

    Everything becomes 8 bits a channel: transparency is laid over white; CMYK, YCbCr, LAB and palettes become RGB; 16-bit
    (and 12-bit TIFF) values lose their low bits, as Pillow does with 16-bit colour PNG. 32-bit integers and floats have no
    range of their own: values within 0..1 (floats only) are scaled by 255, within 0..255 kept, within 0..65535 (integers only)
    taken as 16-bit, and anything else is stretched from its least to its greatest value.

    `at_least=(height, width)` lets JPEG decode at 1/2, 1/4 or 1/8 scale as long as the result is no smaller than that: far
    faster for huge photos, and not the same pixels as a full decode. Without it the result is exact.

    Raises ImageError, with `name` and a reason, for whatever cannot be decoded, also for images of more pixels than twice
    `PIL.Image.MAX_IMAGE_PIXELS` (179 million unless changed).
    """
    if channels not in (1, 3):
        raise ConfigError(f"Images are read with 1 or 3 channels, not {channels}.")
    with _opened(source, name) as image:
        if at_least is not None and image.format in ("JPEG", "MPO"):
            height, width = at_least[::-1] if _orientation(image) >= 5 else at_least
            image.draft(None, (width, height))
        return from_pillow(image, channels)


def from_pillow(image: Image.Image, channels: int = 3) -> Pixels:
    """The pixels of an image that Pillow has opened or made, by the rules of `decode`; Pillow's own errors where it is damaged."""
    image.load()
    # Asked only now: loading a TIFF or HEIC turns it upright by itself, and a PNG may hold its EXIF data behind its pixels.
    upright = _UNTRANSPOSE.get(_orientation(image))
    flat = _to_8_bits(image, channels)
    if upright is not None:
        flat = flat.transpose(upright)
    pixels = np.asarray(flat)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, None])


def size(source: bytes | str | os.PathLike[str], name: str) -> tuple[int, int]:
    """Height and width of the upright image in px, from its header: nothing is decoded. Raises ImageError as `decode` does."""
    with _opened(source, name) as image:
        width, height = image.size
        if image.format == "TIFF":  # whose `size` is of the upright image in newer Pillow versions only
            width, height = (image.tag_v2[tag] for tag in (256, 257))  # pyright: ignore[reportAttributeAccessIssue]
        # Asking Pillow for the EXIF data of a PNG that shows none up to here would decode the whole of it.
        sideways = (image.format != "PNG" or "exif" in image.info) and _orientation(image) >= 5
    return (width, height) if sideways else (height, width)


@contextlib.contextmanager
def _opened(source: bytes | str | os.PathLike[str], name: str) -> Iterator[Image.Image]:
    """The image opened by Pillow; whatever goes wrong before the block's end becomes an ImageError."""
    data = b""
    try:
        data = source if isinstance(source, bytes) else files.read(source, "image_bytes")
        if not data:
            raise ImageError(name, "the file is empty (0 bytes)")
        with _without_warnings():
            image = Image.open(io.BytesIO(data), formats=formats())
        with image:
            yield image
    except (ImageError, ConfigError):
        raise
    except Exception as error:  # A decoder fed with damaged bytes may raise anything.
        raise ImageError(name, _reason(error, data)) from error


_quiet = threading.Lock()


def _renew_lock() -> None:
    """A process forked while another thread held the lock would wait for it forever."""
    global _quiet
    _quiet = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow's remarks on odd metadata and on large images are of no use here. One thread at a time, as filters are global."""
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception, data: bytes) -> str:
    """Why an image cannot be decoded, in words its owner understands."""
    head = data[:512].lstrip()
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the file cannot be read ({error.strerror})"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it has too many pixels (more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million); shrink it first"
        )
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, UnidentifiedImageError):
        if head.startswith(b"version https://git-lfs"):
            return "it is a Git LFS pointer, not the image; fetch the images with `git lfs pull`"
        if head[:1] == b"<" and (b"<html" in head.lower() or b"<!doctype" in head.lower()):
            return "it is a web page, not an image"
        if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
            return "it is an SVG drawing; convert it to PNG first"
        if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc") and "HEIF" not in formats():
            return "it is a HEIC photo; install the package pillow-heif to read it"
        if not any(data):
            return f"its {len(data)} bytes are all zero"
        return "it is not in an image format that Pillow reads"
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "it is truncated: the file ends before the image does"
    return f"it is damaged ({text or type(error).__name__})"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) also where the EXIF data are damaged."""
    try:
        with _without_warnings():
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Damaged metadata must not cost the image.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_8_bits(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode RGB (channels 3) or L (1)."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _numbers_to_grey(image)
    elif image.mode == "LAB":
        image = _lab_to_rgb(image)
    elif image.has_transparency_data:
        front = image.convert("RGBA")
        back = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(back, front).convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _numbers_to_grey(image: Image.Image) -> Image.Image:
    """Integers of 16 or 32 bits and floats as 8-bit grey, by the ranges in `decode`."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        return Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        known = values[np.isfinite(values)]
        values = np.nan_to_num(values, nan=0.0, posinf=known.max(initial=0.0), neginf=known.min(initial=0.0))
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif image.mode == "I" and low >= 0 and high <= 65535 and (high > 255 or image.format == "PPM"):
        values = np.floor(values / 256)
    elif low < 0 or high > 255:
        values = (values - low) * (255 / (high - low or 1))
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    result = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")  # pyright: ignore[reportArgumentType]
    assert result is not None  # only in-place conversion returns nothing
    return result


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
        grey = image.shape[2] == 1
        method = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
        result = np.asarray(Image.fromarray(image[:, :, 0] if grey else image).resize((width, height), method))
        return result[:, :, None] if grey else result
    rows = _along_rows(image.astype(np.float32), height, interpolation)
    both = _along_rows(rows.swapaxes(0, 1), width, interpolation).swapaxes(0, 1)
    return np.ascontiguousarray(np.rint(both).clip(0, 255).astype(np.uint8))


def _along_rows(image: np.ndarray, length: int, interpolation: Interpolation) -> np.ndarray:
    """The first axis of float32 `(n, m, c)` resampled to `length` without antialiasing."""
    n = len(image)
    at = (np.arange(length) + 0.5) * (n / length) - 0.5
    first = np.floor(at).astype(np.int64)
    taps = (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2)
    weights = np.stack([_kernel(np.abs(at - (first + tap)), interpolation) for tap in taps])
    if interpolation == "bicubic":
        # TensorFlow drops the taps beyond the edge and scales the others up; for bilinear that is the same as repeating the edge.
        inside = np.stack([(first + tap >= 0) & (first + tap < n) for tap in taps])
        weights = weights * inside / (weights * inside).sum(axis=0)
    result = np.zeros((length, *image.shape[1:]), np.float32)
    for tap, weight in zip(taps, weights.astype(np.float32), strict=True):
        result += weight[:, None, None] * image[(first + tap).clip(0, n - 1)]
    return result


def _kernel(distance: np.ndarray, interpolation: Interpolation) -> np.ndarray:
    if interpolation == "bilinear":
        return 1 - distance
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def prepare(image: Pixels, spec: InputSpec) -> Pixels:
    """The image as a model sees it at evaluation: uint8 `(spec.size, spec.size, channels)`."""
    if spec.mode == "square":
        return resize(image, spec.size, spec.size, spec.interpolation, spec.antialias)
    height, width = image.shape[:2]
    short = spec.resized
    if height <= width:
        height, width = short, int(short * width / height)
    else:
        height, width = int(short * height / width), short
    image = resize(image, height, width, spec.interpolation, spec.antialias)
    top, left = round((height - spec.size) / 2), round((width - spec.size) / 2)
    return np.ascontiguousarray(image[top : top + spec.size, left : left + spec.size])
