"""What is wrong with a picture itself, whatever it shows: blurred, dark, bright, empty, tiny, oddly shaped.

Everything is judged at `LOOKED_AT` px at most, more than networks of this kind see: a large photo that is a little soft at its full size is
not blurred for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.data import images
from bigtransfer.data.images import Pixels

Flaw = Literal["blurred", "dark", "bright", "uniform", "tiny", "odd shape"]

LOOKED_AT = 256
"""Longer side at which pictures are judged, px."""

UNIFORM = 6.0
"""Standard deviation of 255 below which every channel has to be: nothing can be seen."""

DARK, BRIGHT = 60.0, 225.0
"""Of 255: nothing but a fiftieth of a dark picture is brighter, of a bright one nothing but a fiftieth darker."""

SOFT = 0.38
"""Sharpness (`sharpness`) below which a picture is blurred: between the softest real ones and those blurred by a hundredth of their longer
side (docs/data.md)."""

SMALLEST = 40
"""Sides of pictures that are too small to judge their sharpness by, px."""

TINY, TINY_SIDE = 0.25, 32
"""Height and width (their geometric mean) below this share of what is usual in the set; and a shorter side, px, where the usual is twice
that."""

ODD = 2.5
"""How many times as long for its width as is usual in the set."""

MEANINGS: Mapping[Flaw, str] = {
    "blurred": "even its sharpest parts have no fine detail",
    "dark": "hardly anything in it is brighter than a quarter of white",
    "bright": "hardly anything in it is darker than nine tenths of white",
    "uniform": "it has one colour",
    "tiny": "far fewer pixels than is usual in this set",
    "odd shape": "much longer for its width than is usual in this set",
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was measured of a picture."""

    height: int
    width: int
    low: float
    """Grey value, 0 to 255, that a fiftieth of it is darker than."""
    high: float
    """Grey value that a fiftieth of it is brighter than."""
    mean: float
    contrast: float
    """Standard deviation of the channel where it is largest."""
    sharpness: float
    """See `sharpness`; NaN where it cannot be judged."""

    @property
    def side(self) -> float:
        """Geometric mean of height and width, px."""
        return float(np.sqrt(self.height * self.width))

    @property
    def elongation(self) -> float:
        """Longer side by shorter side."""
        return max(self.height, self.width) / min(self.height, self.width)


def look(pixels: Pixels) -> Look:
    """The measures of an image."""
    height, width = pixels.shape[:2]
    if max(height, width) > LOOKED_AT:
        scale = LOOKED_AT / max(height, width)
        pixels = images.resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
    grey = images.with_channels(pixels, 1)[:, :, 0]
    low, high = np.quantile(grey, (0.02, 0.98))
    contrast = float(pixels.reshape(-1, pixels.shape[2]).std(0, dtype=np.float64).max())
    return Look(
        height=height,
        width=width,
        low=float(low),
        high=float(high),
        mean=float(grey.mean()),
        contrast=contrast,
        sharpness=sharpness(grey) if contrast >= UNIFORM else float("nan"),
    )


_TILES = 6
_SHARPEST = _TILES * _TILES // 6
"""Of the tiles, those that sharpness is judged by: what is in focus before a soft background."""


def sharpness(grey: np.ndarray) -> float:
    """How much of the detail that there is at half the size there is at full size too: root mean squares of what halving loses, at full
    size by half size, in the sixth of the picture's tiles with most of it. About 0.8 of sharp pictures, 0.2 of blurred ones, whatever they
    show; NaN of those under `SMALLEST` px. grey: uint8 (height, width)."""
    if min(grey.shape) < SMALLEST:
        return float("nan")
    whole = torch.from_numpy(grey.astype(np.float32))[None, None]
    half = F.avg_pool2d(whole, 2)
    fine, coarse = (F.adaptive_avg_pool2d(_lost(x).square(), _TILES).sqrt().flatten() for x in (whole, half))
    sharpest = fine.topk(_SHARPEST).indices
    return float(fine[sharpest].mean() / (coarse[sharpest].mean() + 1))  # 1 of 255: rounding is no detail


def _lost(x: Tensor) -> Tensor:
    """What is lost of pictures (1, 1, h, w) when they are halved and doubled again."""
    half = F.avg_pool2d(x, 2)
    return x[..., : 2 * half.shape[-2], : 2 * half.shape[-1]] - F.interpolate(half, scale_factor=2, mode="bilinear")


@dataclass(frozen=True, kw_only=True)
class Flawed:
    """A flaw of one picture."""

    image: int
    """Its place among those that were looked at."""
    flaw: Flaw
    score: float
    """How bad, from 1 on: how many times the measure is beyond its bound, or a distance from it that grows likewise."""


def flaws(looks: Sequence[Look | None]) -> list[Flawed]:
    """The flaws of pictures, in the order of the pictures; several of one if need be. None: one that cannot be read."""
    seen = [one for one in looks if one is not None]
    if not seen:
        return []
    side = float(np.median([one.side for one in seen]))
    elongation = float(np.median([one.elongation for one in seen]))
    found = []
    for i, one in enumerate(looks):
        if one is None:
            continue
        for flaw, score in _judged(one, side, elongation).items():
            if score > 1:
                found.append(Flawed(image=i, flaw=flaw, score=score))
    return found


def _judged(one: Look, side: float, elongation: float) -> dict[Flaw, float]:
    """How bad each flaw is; 1 is the bound. side, elongation: what is usual."""
    tiny = TINY * side / one.side
    if side >= 2 * TINY_SIDE:
        tiny = max(tiny, TINY_SIDE / min(one.height, one.width))
    found: dict[Flaw, float] = {"tiny": tiny, "odd shape": one.elongation / elongation / ODD}
    found["dark"] = DARK / max(one.high, 1)
    found["bright"] = (255 - BRIGHT) / max(255 - one.low, 1)
    # Of what is nearly black or white it is no further news that it has one colour and no detail.
    if max(found["dark"], found["bright"]) <= 1:
        if one.contrast < UNIFORM:
            found["uniform"] = UNIFORM / max(one.contrast, 0.1)
        elif not math.isnan(one.sharpness):
            found["blurred"] = SOFT / max(one.sharpness, 0.01)
    return found
