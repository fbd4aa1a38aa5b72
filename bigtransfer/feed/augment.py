"""What training does to images at random, as pure functions of (seed, step), and how uint8 becomes the network's input.

Nothing here keeps state: a resumed run, another number of workers, or a cache in memory all see the same images.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigtransfer.catalog import Decoder, InputSpec
from bigtransfer.data import images
from bigtransfer.errors import ConfigError
from bigtransfer.records import Pixels, Share

_STREAM = 2
"""Stream of random numbers; `feed.order` and `train.objective` have the others."""


class Crops(NamedTuple):
    """What the draws mean for images of known sizes."""

    boxes: np.ndarray
    """int64 (n, 4): top, left, height and width of the part of each image that is kept, px."""
    mirrored: np.ndarray
    """bool (n,): to be flipped left-right."""


class Augmentation(ABC):
    """A random transformation of images of one set: a fixed part that can be cached, then a random crop, resized and mirrored."""

    interpolation: images.Interpolation
    antialias: bool

    @property
    @abstractmethod
    def side(self) -> int:
        """Height and width of the results, px."""

    def at(self, step: int) -> Augmentation:
        """The augmentation of batch `step`. It has the same fixed part and the same draws at any step."""
        return self

    @property
    def fixed(self) -> InputSpec | None:
        """The fixed part, as what a model of that input sees; None: there is none."""
        return None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The fixed part, uint8 (h, w, c) -> uint8 (h', w', c)."""
        return images.prepare(image, self.fixed)

    @abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random numbers for `count` images, float64 (count, k)."""

    @abstractmethod
    def crops(self, sizes: np.ndarray, draws: np.ndarray) -> Crops:
        """The crops of prepared images of `sizes` (int64 (n, 2): height, width) by their draws (n, k)."""

    def cut(self, prepared: np.ndarray, box: np.ndarray, mirrored: bool) -> np.ndarray:
        """One image's crop, uint8 (h', w', c) -> uint8 (side, side, c)."""
        top, left, height, width = box.tolist()
        part = prepared[top : top + height, left : left + width]
        image = images.resize(part, self.side, self.side, self.interpolation, self.antialias)
        return image[:, ::-1] if mirrored else image

    def apply(self, prepared: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The random part of one image, uint8 (h', w', c) and its draws (k,) -> uint8 (side, side, c)."""
        boxes, mirrored = self.crops(np.array([prepared.shape[:2]]), draws[None])
        return self.cut(prepared, boxes[0], bool(mirrored[0]))


def draws(augmentation: Augmentation, seed: int, step: int, count: int) -> np.ndarray:
    """The random numbers of batch `step`."""
    return augmentation.draw(np.random.default_rng((seed, _STREAM, step)), count)


@dataclass(frozen=True, kw_only=True)
class SquareCrop(Augmentation):
    """The HyperRule's: resize both sides to `resize`, crop `crop` x `crop` at random, flip left-right half of the time."""

    resize: Pixels
    crop: Pixels
    random_crop: bool = True
    """False (labels that depend on the position): resize straight to `crop`, as evaluation does."""
    flip: bool = True
    interpolation: images.Interpolation = "bilinear"
    antialias: bool = True
    decoder: Decoder = "fast"
    """As in `InputSpec`."""

    @property
    def side(self) -> int:
        return self.crop

    @property
    def fixed(self) -> InputSpec:
        side = self.resize if self.random_crop else self.crop
        return InputSpec(size=side, interpolation=self.interpolation, antialias=self.antialias, decoder=self.decoder)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 3))

    def crops(self, sizes: np.ndarray, draws: np.ndarray) -> Crops:
        corners = (draws[:, :2] * (sizes - self.crop + 1)).astype(np.int64)
        return Crops(np.hstack([corners, np.full_like(corners, self.crop)]), self.flip & (draws[:, 2] < 0.5))


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Progressive resizing: crops begin with a side of `start` px and grow between two points of a training of `steps` steps.

    Sides in between are rounded to multiples of 8 px, of 32 px for crops that end with 128 px or more.
    """

    start: int
    steps: int
    begin: float = 0.4
    end: float = 0.8
    """`begin` and `end`: shares of the training between which the side grows evenly, 0 <= begin < end."""

    def side(self, size: int, step: int) -> int:
        """Side of the crops of batch `step`, px, where the last ones are `size` px."""
        share = min(max((step / self.steps - self.begin) / (self.end - self.begin), 0.0), 1.0)
        grain = _grain(size)
        return int((self.start + share * (size - self.start)) / grain + 0.5) * grain


def _grain(size: int) -> int:
    return 8 if size < 128 else 32


CropStyle = Literal["torchvision", "tensorflow"]

_ATTEMPTS: dict[CropStyle, int] = {"torchvision": 10, "tensorflow": 100}

_TENSORFLOW_RATIOS = 0.75, 1.33


@dataclass(frozen=True, kw_only=True)
class InceptionCrop(Augmentation):
    """Upstream training's: a random part of the image (by area and aspect ratio), resized to `size` x `size`, flipped half of the time.

    style "torchvision": the area uniform from `min_area` to 1, the logarithm of the aspect ratio uniform up to `max_ratio` either way; up
    to 10 attempts, then the largest part of an allowed ratio (mean area of square images: 0.46). "tensorflow": as
    `tf.image.sample_distorted_bounding_box` draws without boxes, and with it the authors of BiT: the ratio of width to height uniform from
    0.75 to 1.33, the height uniform between those of the least and the largest area, up to 100 attempts, then the whole image (0.38).
    With `growth`, `at(step)` gives smaller crops early in the training. ConfigError where the sides are not multiples of its grain.
    """

    size: Pixels
    min_area: Share = 0.05
    """Smallest part of the image's area (Inception: 0.05; torchvision's default: 0.08)."""
    max_ratio: float = 4 / 3
    """Largest aspect ratio of the part, either way; of the style "torchvision"."""
    style: CropStyle = "torchvision"
    flip: bool = True
    interpolation: images.Interpolation = "bilinear"
    antialias: bool = True
    growth: Growth | None = None

    def __post_init__(self) -> None:
        grain = _grain(self.size)
        if self.growth is not None and (self.size % grain or self.growth.start % grain):
            raise ConfigError(
                f"Crops cannot grow from {self.growth.start} to {self.size} px: both must be multiples of {grain} px."
            )

    @property
    def side(self) -> int:
        return self.size

    def at(self, step: int) -> InceptionCrop:
        if self.growth is None:
            return self
        return dataclasses.replace(self, size=self.growth.side(self.size, step), growth=None)

    def seen_at(self, size: int) -> InceptionCrop:
        """The same crops resized to `size` px, whatever the step: what a teacher sees beside the student."""
        return dataclasses.replace(self, size=size, growth=None)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.random((count, 3 + 2 * _ATTEMPTS[self.style]))

    def crops(self, sizes: np.ndarray, draws: np.ndarray) -> Crops:
        height, width = sizes.T[..., None]  # (n, 1), against (n, attempts) in what follows
        one, other = draws[:, 3::2], draws[:, 4::2]
        if self.style == "tensorflow":
            h, w, fits = self._by_height(height, width, one, other)
            room = sizes  # to the end, exclusive: the last place is never drawn
        else:
            h, w, fits = self._by_area(height, width, one, other)
            room = sizes + 1
        # The last column is what is taken of images that no attempt fits.
        first = np.argmax(np.hstack([fits, np.ones_like(fits[:, :1])]), axis=1)
        extent = np.stack([h, w], axis=2)[np.arange(len(first)), first]
        corners = draws[:, :2] * (room - extent)
        return Crops(np.hstack([corners, extent]).astype(np.int64), self.flip & (draws[:, 2] < 0.5))

    def _by_area(
        self, height: np.ndarray, width: np.ndarray, area: np.ndarray, ratio: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Heights and widths of each attempt, and of what is taken if none fits, (n, attempts + 1); which fit, (n, attempts)."""
        area = height * width * (self.min_area + (1 - self.min_area) * area)
        ratio = self.max_ratio ** (2 * ratio - 1)
        w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        widest, tallest = np.rint(height * self.max_ratio), np.rint(width * self.max_ratio)
        return np.hstack([h, np.minimum(height, tallest)]), np.hstack([w, np.minimum(width, widest)]), fits

    def _by_height(
        self, height: np.ndarray, width: np.ndarray, ratio: np.ndarray, place: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same by TensorFlow's rule (core/kernels/image/sample_distorted_bounding_box_op.cc), in float64."""
        narrowest, broadest = _TENSORFLOW_RATIOS
        ratio = narrowest + (broadest - narrowest) * ratio
        most = height * width
        least = self.min_area * most
        lowest, highest = np.rint(np.sqrt(least / ratio)), np.rint(np.sqrt(most / ratio))
        # The largest height whose width is not more than there is.
        allowed = np.floor((width + 0.5 - 1e-7) / ratio)
        highest = np.minimum(np.where(np.rint(highest * ratio) > width, allowed, highest), height)
        lowest = np.minimum(lowest, highest)
        h = lowest + np.floor(place * (highest - lowest + 1))
        # Rounding must not take an area out of its range: a row more or less mends it.
        h += np.rint(h * ratio) * h < least
        h -= np.rint(h * ratio) * h > most
        w = np.rint(h * ratio)
        fits = (w * h >= least) & (w * h <= most) & (w > 0) & (w <= width) & (h > 0) & (h <= height)
        return np.hstack([h, height]), np.hstack([w, width]), fits


def normalize(batch: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (n, c, h, w) in 0..255 -> `dtype` in [-1, 1], channels_last: (x - 127.5) / 127.5 as in the released code."""
    scaled = (batch.to(torch.float32) - 127.5) / 127.5
    return scaled.to(dtype=dtype, memory_format=torch.channels_last)
