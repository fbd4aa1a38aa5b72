"""Which parts of an image speak for a class: class activation maps, exact where the head is linear.

BiT's features are means, and in the closed form also maxima, of maps over the image, and the head is linear: a logit is a sum of what each
place of each map gives to it (Zhou et al. 2016, arXiv 1512.04150, for the mean of the last map; here for all that the head sees). Where the
head is not linear its gradient takes the weights' place, which is Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) and exact no more.

What a map cannot say: a place of a map has seen its surroundings too, in the last block the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bigtransfer import ops
from bigtransfer.catalog import InputSpec
from bigtransfer.data.images import part_seen
from bigtransfer.model import Network, PooledMap

GRID = 4
"""Pixels of the network's input for each place of an explanation, in each direction: the finest maps' own."""

BLUR = 1 / 24
"""Standard deviation of the blur of what is drawn, as a share of the side: maxima stand on single places, which say less than their
neighbourhood."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What each place of the image gives to a logit, or to the difference of two."""

    map: np.ndarray
    """float32 `(side, side)`, over the network's input; positive: for the class. Its sum is `logit` if `exact`."""
    logit: float
    """Of the class, or by how much it is above the other's."""
    exact: bool
    """False: the head is not linear, and the map is of its gradient."""
    input: InputSpec
    """How the image became the network's input."""
    label: str
    """The class."""
    against: str | None = None
    """The other class; None: the class by itself."""

    def over(self, height: int, width: int) -> np.ndarray:
        """The map as it is drawn over a picture of that size, float32 `(height, width)`: blurred, -1 to 1, 1 or -1 where it is most.
        Parts that the network did not see, beyond a centre crop, are 0."""
        drawn = _blurred(self.map)
        drawn = drawn / (np.abs(drawn).max() or 1.0)
        top, left, tall, wide = part_seen(height, width, self.input)
        canvas = np.zeros((height, width), np.float32)
        enlarged = Image.fromarray(drawn.astype(np.float32)).resize((wide, tall), Image.Resampling.BILINEAR)
        canvas[top : top + tall, left : left + wide] = np.asarray(enlarged)
        return canvas

    def on(self, picture: np.ndarray) -> np.ndarray:
        """The picture uint8 `(h, w, 3)` or `(h, w, 1)` in grey, with the places that speak for the class in orange and those against it in
        blue: uint8 `(h, w, 3)`."""
        grey = picture.astype(np.float32) @ _LUMA if picture.shape[2] == 3 else picture[:, :, 0].astype(np.float32)
        signed = self.over(*picture.shape[:2])
        strength = (0.85 * np.abs(signed) ** 0.8)[:, :, None]
        colour = np.where(signed[:, :, None] > 0, _FOR, _AGAINST)
        base = (0.75 * grey + 0.25 * 160)[:, :, None]
        return np.rint((1 - strength) * base + strength * colour).clip(0, 255).astype(np.uint8)


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_FOR = np.array([255, 122, 0], np.float32)
_AGAINST = np.array([0, 110, 255], np.float32)
"""Orange and blue: told apart by colour-blind people too."""


def explain(
    network: Network, images: Tensor, classes: Tensor, against: Tensor | None = None
) -> tuple[Tensor, Tensor, bool]:
    """Of each image what its places give to the logit of a class, float32 `(n, side, side)`; that logit, `(n,)`; and whether the former add
    up to the latter. All on the CPU.

    network: in evaluation mode. images: float `(n, channels, size, size)` in [-1, 1], as the network takes them. classes int `(n,)`.
    against int `(n,)`: explain the difference of the class's logit and that class's instead, which is what decides between the two.

    The mean of a map gives each place its share; its maximum all to the place that has it, or in equal parts to all that do. What does not
    depend on the image, the bias, is spread evenly: of a classifier of standardized features that is the mean of its images, so that the
    map says what is more or less than in these. Raises ConfigError for a network whose features are not pooled.
    """
    with torch.no_grad():
        maps = network.pooled_maps(images)
        weights, logits, rest = _weights(network.head, _pooled(maps, network), classes, against)
        side = math.ceil(images.shape[-1] / GRID)
        total = (rest.double() / side**2)[:, None, None].repeat(1, side, side)
        for one in maps:
            given = _given(one, weights)
            total += _spread(given.flip(-1) if one.mirrored else given, side)
    return total.float().cpu(), logits.float().cpu(), isinstance(network.head, nn.Linear)


def _pooled(maps: Sequence[PooledMap], network: Network) -> Tensor:
    """The features `(n, features)` of the maps, as `Network.features` gives them."""
    parts: dict[int, Tensor] = {}
    for one in maps:
        pooled = one.share * ops.pool(one.map, one.pooling)
        parts[one.start] = parts[one.start] + pooled if one.start in parts else pooled
    return torch.cat([parts[start] for start in sorted(parts)], dim=1).to(network.dtype)


def _weights(
    head: nn.Module, features: Tensor, classes: Tensor, against: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image by how much each feature moves what is explained, `(n, features)`; what is explained, `(n,)`; and the part of it in
    which no feature has a share."""
    rows = torch.arange(len(features), device=features.device)

    def difference(values: Tensor) -> Tensor:
        """Of values by image and class."""
        return values[rows, classes] if against is None else values[rows, classes] - values[rows, against]

    if isinstance(head, nn.Linear):
        with torch.no_grad():
            weights = head.weight[classes] if against is None else head.weight[classes] - head.weight[against]
            bias = (
                torch.zeros_like(features[:, 0])
                if head.bias is None
                else difference(head.bias.expand(len(features), -1))
            )
            return weights, difference(head(features)), bias
    with torch.inference_mode(False), torch.enable_grad():
        seen = features.clone().requires_grad_()
        logits = difference(head(seen))
        (weights,) = torch.autograd.grad(logits.sum(), seen)
    return weights, logits.detach(), torch.zeros_like(logits)


def _given(one: PooledMap, weights: Tensor) -> Tensor:
    """What each place of a map gives to what is explained, float32 `(n, h, w)`."""
    channels = one.map.shape[1]
    both = one.pooling == "catavgmax"
    own = one.share * (0.5 if one.pooling == "avgmax" else 1.0) * weights[:, one.start :].float()
    values = one.map.float()
    given = torch.zeros_like(values[:, 0])
    if one.pooling != "max":
        given += torch.einsum("nk,nkhw->nhw", own[:, :channels], values) / given[0].numel()
    if one.pooling != "avg":
        most = values.amax((2, 3), keepdim=True)
        there = (values == most).float()
        shares = own[:, channels:][:, :channels] if both else own[:, :channels]
        given += torch.einsum("nk,nkhw->nhw", shares * most[:, :, 0, 0] / there.sum((2, 3)), there)
    return given


def _spread(given: Tensor, side: int) -> Tensor:
    """`(n, h, w)` on `side` x `side` places, smoothly: what each place has is shared out, and nothing of it is lost."""

    def matrix(length: int) -> Tensor:
        eye = torch.eye(length, dtype=torch.float64, device=given.device)[None, None]
        shares = F.interpolate(eye, (side, length), mode="bilinear", antialias=True)[0, 0]
        return shares / shares.sum(0)

    return matrix(given.shape[1]) @ given.double() @ matrix(given.shape[2]).T


def _blurred(values: np.ndarray) -> np.ndarray:
    """`(side, side)` blurred by `BLUR`, reflected at the edges."""
    sigma = BLUR * len(values)
    reach = min(len(values) - 1, math.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for _ in range(2):
        padded = np.pad(values, ((reach, reach), (0, 0)), mode="reflect")
        values = np.stack([np.convolve(column, kernel, "valid") for column in padded.T])
    return values
