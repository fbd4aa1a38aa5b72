"""Near-duplicates: images of two sets, or of one, that show the same picture.

Three stages, each on fewer pairs than the one before:

candidates    64-bit perceptual and difference hashes at most `HAMMING` bits apart, of the whole image, mirrored or not, and of the parts
              of it that other framings show (`FRAMES`); and the nearest neighbours by the pooled features of a network
registration  of each candidate pair: one image is slid over the other in every framing, mirrored or not, to where they correlate best
verdict       by the correlation there, of the grey values and of what is finer than a quarter of their size

Sources: pHash (DCT of 32 x 32 grey values, sign against the median) as in imagededup; the pairs of ciFAIR (Barz & Denzler 2020) are what
it is measured by. Horizons and gradients are alike without being the same picture: hence the fine part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.bars import tqdm
from bigtransfer.data import images
from bigtransfer.data.images import Pixels

SIDE = 32
"""Height and width of the thumbnails that hashes and correlations are computed from, px."""

BITS = 64

HAMMING = 10
"""Largest distance of two hashes that makes a pair a candidate, bits."""

NEIGHBOURS = 8
"""Nearest images by features that become candidates, for each image."""

MOST = 16
"""Candidates of an image by its hashes at most, the nearest first."""

CONTRAST = 6.0
"""Least standard deviation of an image's grey values, of 255, for it to be compared by anything but equality."""

CLOSE, FINE = 0.90, 0.65
"""Least correlation of the grey values, and of their fine part, of near-duplicates."""

LOOSE, LIKE = 0.80, 0.95
"""Correlation, or cosine of the features, from which on a candidate is listed as similar, for somebody to look at."""

FRAMES = ((29, 29), (32, 24), (32, 21), (24, 32), (21, 32))
"""Rows and columns of the middle of a thumbnail that other framings of the same picture show: a tenth less, and the central square of a
picture of 4:3, 3:2, 3:4 or 2:3 that was squashed to a square."""

_WINDOWS = (
    *((rows, columns) for rows in range(32, 25, -1) for columns in range(32, 25, -1) if abs(rows - columns) <= 2),
    *(window for side in (28, 26, 24, 22, 21) for window in ((32, side), (side, 32))),
)
"""Rows and columns of the part of one picture that the other one is held to be."""

Verdict = Literal["copy", "near", "similar"]
"""Equal pixel for pixel; the same picture; only alike."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sketches:
    """What is compared of the images of a set, by their order."""

    thumbnails: np.ndarray
    """uint8 (n, SIDE, SIDE): grey values, whatever the image's shape."""
    digests: np.ndarray
    """uint8 (n, 16): of the pixels."""
    features: np.ndarray
    """float16 (n, d), of unit length; d may be 0: not looked at."""
    readable: np.ndarray
    """bool (n,): of the others nothing is known, and they have no duplicates."""

    def __len__(self) -> int:
        return len(self.thumbnails)

    def subset(self, which: slice) -> Sketches:
        """Those of some of the images."""
        return Sketches(
            thumbnails=self.thumbnails[which],
            digests=self.digests[which],
            features=self.features[which],
            readable=self.readable[which],
        )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images and how alike they are."""

    first: int
    """Of the first set; within one set the earlier."""
    second: int
    hash: int
    """Bits in which their perceptual hashes differ, in the framing where these are the fewest."""
    cosine: float
    """Of their features; NaN if there are none."""
    correlation: float
    """Of their grey values where they fit best, -1 to 1."""
    detail: float
    """The same of what is finer than a quarter of the size."""
    mirrored: bool
    verdict: Verdict


def shrunk(image: Pixels, level: int | None) -> Pixels:
    """The image at no more than `level` px square, whatever its shape: what a set of that resolution would have kept of it."""
    if level is None or max(image.shape[:2]) <= level:
        return image
    return images.resize(image, level, level)


def thumbnail(image: Pixels) -> np.ndarray:
    """Grey values uint8 (SIDE, SIDE) of an image."""
    return images.with_channels(images.resize(image, SIDE, SIDE), 1)[:, :, 0]


def digest(image: Pixels) -> np.ndarray:
    """uint8 (16,), the same for the same pixels only."""
    made = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    made.update(image.tobytes())
    return np.frombuffer(made.digest(), np.uint8)


# --- Hashes


def _dct() -> Tensor:
    """The first eight rows of the DCT-II of SIDE values."""
    k, x = torch.arange(8)[:, None], torch.arange(SIDE)[None, :]
    return torch.cos(math.pi / SIDE * (x + 0.5) * k)


_MIRROR = torch.tensor([1.0, -1.0]).repeat(4)
"""What mirroring does to the columns of DCT coefficients."""


def hashes(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Perceptual hashes of grey values float (n, SIDE, SIDE) and of their mirror images: -1 or 1 each, float (n, BITS); of images without
    contrast 0. Half the difference of 64 and the product of two is their Hamming distance."""
    dct = _dct()
    coefficients = dct @ grey @ dct.T
    seen = grey.flatten(1).std(1) >= CONTRAST

    def signs(values: Tensor) -> Tensor:
        flat = values.flatten(1)
        median = flat[:, 1:].median(1, keepdim=True).values  # the first is the mean, which says nothing of the picture
        return torch.where(flat > median, 1.0, -1.0) * seen[:, None]

    return signs(coefficients), signs(coefficients * _MIRROR)


def differences(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Difference hashes in the same form: whether the grey values of 8 x 9 areas rise to the right."""
    small = F.interpolate(grey[:, None], size=(8, 9), mode="area")[:, 0]
    rises = small[:, :, 1:] - small[:, :, :-1]
    seen = (grey.flatten(1).std(1) >= CONTRAST)[:, None]
    return tuple(torch.where(r > 0, 1.0, -1.0).flatten(1) * seen for r in (rises, -rises.flip(2)))  # pyright: ignore


def framed(grey: Tensor, rows: int, columns: int) -> Tensor:
    """The middle of grey values (n, SIDE, SIDE), enlarged to as many."""
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    return F.interpolate(grey[:, None, top : top + rows, left : left + columns], size=(SIDE, SIDE), mode="bilinear")[
        :, 0
    ]


# --- Candidates

_ROWS, _COLUMNS = 1024, 8192
"""Images of the two sides that are compared at a time."""


def _near(first: Tensor, second: Tensor, least: float, within: bool) -> Iterator[np.ndarray]:
    """Rows (i, j, product) with a product of at least `least`, for some i after another; at most `MOST` of an i from a block. within: of
    i < j only."""
    for i in range(0, len(first), _ROWS):
        block = first[i : i + _ROWS]
        for j in range(i // _COLUMNS * _COLUMNS if within else 0, len(second), _COLUMNS):
            product = block @ second[j : j + _COLUMNS].T
            if within:
                rows, columns = torch.arange(product.shape[0])[:, None], torch.arange(product.shape[1])[None, :]
                product.masked_fill_(columns + j <= rows + i, -BITS)
            if float(product.max()) < least:
                continue
            if int((product >= least).sum()) > MOST * len(block):
                values, columns = product.topk(min(MOST, product.shape[1]), dim=1)
                rows = torch.arange(len(block))[:, None].expand_as(columns)
                kept = values >= least
                found = torch.stack([rows[kept] + i, columns[kept] + j, values[kept].long()], 1)
            else:
                rows, columns = (product >= least).nonzero(as_tuple=True)
                found = torch.stack([rows + i, columns + j, product[rows, columns].long()], 1)
            yield found.numpy()


def _by_hash(first: Tensor, second: Tensor, within: bool) -> np.ndarray:
    """Candidates int64 (pairs, 3): (i, j, Hamming distance of the perceptual hashes or more than `HAMMING` if others are alike)."""
    whole = hashes(first)
    views = [(whole, hashes(second)[:1])]
    views += [(whole, hashes(framed(second, *frame))[:1]) for frame in FRAMES]
    views += [(hashes(framed(first, *frame)), hashes(second)[:1]) for frame in FRAMES]
    found = [np.empty((0, 3), np.int64)]
    for asked, (other,) in views:
        for side in asked:
            for rows in _near(side, other, BITS - 2 * HAMMING, within):
                rows[:, 2] = (BITS - rows[:, 2]) // 2
                found.append(rows)
    (plain, mirrored), (other, _) = differences(first), differences(second)
    for side in (plain, mirrored):
        for rows in _near(side, other, BITS - 2 * HAMMING, within):
            rows[:, 2] = (BITS - rows[:, 2]) // 2 + BITS  # after all of the others
            found.append(rows)
    pairs = np.concatenate(found)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 2], pairs[:, 0]))]
    rank = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])
    return pairs[rank < 4 * MOST]


EXACT = 2 * 10**11
"""Pairs of images up to which nearest neighbours are found by comparing all with all."""


def _by_features(first: np.ndarray, second: np.ndarray, within: bool) -> np.ndarray:
    """Candidates int64 (pairs, 2): of each image of the first side the nearest of the second."""
    count = min(NEIGHBOURS + within, len(second))
    if not first.shape[1] or not count:
        return np.empty((0, 2), np.int64)
    if len(first) * len(second) > EXACT and (search := _index(second)) is not None:
        near = np.concatenate([search(first[i : i + _ROWS], count) for i in range(0, len(first), _ROWS)])
    else:
        found = []
        for i in range(0, len(first), _ROWS):
            block = torch.from_numpy(first[i : i + _ROWS]).float()
            best = torch.empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
            for j in range(0, len(second), _COLUMNS):
                product = block @ torch.from_numpy(second[j : j + _COLUMNS]).float().T
                values, columns = product.topk(min(count, product.shape[1]), dim=1)
                values, columns = torch.cat([best[0], values], 1), torch.cat([best[1], columns + j], 1)
                values, order = values.topk(min(count, values.shape[1]), dim=1)
                best = values, columns.gather(1, order)
            found.append(best[1].numpy())
        near = np.concatenate(found)
    pairs = np.stack([np.repeat(np.arange(len(near)), near.shape[1]), near.reshape(-1)], 1)
    if within:
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return pairs


def _index(features: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """A search (queries, count) -> numbers of the nearest in an approximate index, always the same one; None without `usearch`."""
    try:
        from usearch.index import Index  # pyright: ignore
    except ImportError:
        return None
    index = Index(ndim=features.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(len(features)), features, threads=1)
    return lambda queries, count: index.search(queries, count, threads=1).keys.astype(np.int64)


# --- Registration


def _fine(grey: Tensor) -> Tensor:
    """What grey values (n, SIDE, SIDE) hold beside their form of a quarter of the size."""
    coarse = F.interpolate(grey[:, None], size=(SIDE // 4, SIDE // 4), mode="area")
    return grey - F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[:, 0]


def _correlations(whole: Tensor, part: Tensor, rows: int, columns: int, margin: int = 0) -> Tensor:
    """Correlation (n, positions) of `part`, shrunk to rows x columns, with every such window of `whole`, both (n, SIDE, SIDE); without a
    margin of both, px."""
    template = F.interpolate(part[:, None], size=(rows, columns), mode="bilinear", antialias=True)
    inner = slice(margin, -margin or None)
    template, whole = template[:, :, inner, inner].flatten(1), whole[:, inner, inner]
    rows, columns = rows - 2 * margin, columns - 2 * margin
    template = template - template.mean(1, keepdim=True)
    size = rows * columns
    moments = F.avg_pool2d(torch.stack([whole, whole.square()], 1), (rows, columns), stride=1).flatten(2)
    energy = (moments[:, 1] - moments[:, 0].square()).clamp(min=0) * size
    product = (template[:, None] @ F.unfold(whole[:, None], (rows, columns)))[:, 0]
    # A flat window or template must not become a likeness by division through nearly nothing: as if deviating by 1 more.
    return product / ((energy + size).sqrt() * (template.square().sum(1, keepdim=True) + size).sqrt())


_COARSE = 16
SCREEN = 0.70
"""Correlation at `_COARSE` px, in the best of a few windows, below which a pair is not looked at more closely."""


def _views() -> tuple[Tensor, Tensor]:
    """Two maps (views, _COARSE, _COARSE), of rows and of columns, that make of `_COARSE` px square what a window of it shows."""
    rows, columns = [], []
    for height, width in ((32, 32), (30, 30), (28, 28), (26, 26), (32, 24), (32, 21), (24, 32), (21, 32)):
        shares = [(0.5, 0.5)] if (height, width) == (32, 32) else [(y, x) for y in (0, 0.5, 1) for x in (0, 0.5, 1)]
        for y, x in dict.fromkeys((y if height < 32 else 0.5, x if width < 32 else 0.5) for y, x in shares):
            rows.append(_window(height / 32, y))
            columns.append(_window(width / 32, x))
    return torch.stack(rows), torch.stack(columns)


def _window(share: float, place: float) -> Tensor:
    """(_COARSE, _COARSE): the linear map to a part of `share` of an axis, which lies from 0, at its beginning, to 1, at its end."""
    at = (torch.arange(_COARSE) + 0.5) * share + place * (1 - share) * _COARSE - 0.5
    return (1 - (at[:, None] - torch.arange(_COARSE)[None, :]).abs()).clamp(min=0)


_ROW_MAPS, _COLUMN_MAPS = _views()


def screened(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """A quick estimate of the correlation that `registered` finds, float (n,), and how it comes about, int (n,): 0 the second is part of
    the first, 1 the first of the second; 2 and 3 the same with the second mirrored."""

    def unit(values: Tensor) -> Tensor:
        values = values - values.mean(-1, keepdim=True)
        return values / (values.square().sum(-1, keepdim=True) + _COARSE**2).sqrt()  # as `_correlations`: 1 at least

    one, other = (F.interpolate(side[:, None], size=(_COARSE, _COARSE), mode="area")[:, 0] for side in (first, second))
    ways = []
    for turned in (other, other.flip(2)):
        for whole, part in ((one, turned), (turned, one)):
            views = unit((_ROW_MAPS @ whole[:, None] @ _COLUMN_MAPS.transpose(1, 2)).flatten(2))
            ways.append((views @ unit(part.flatten(1))[:, :, None])[:, :, 0].amax(1))
    best, way = torch.stack(ways).max(0)
    return best, way


_MARGIN = SIDE // 8
"""Of a window, px: details are not compared so near to its edge, where the coarse form holds what lies beyond, such as a border."""


def registered(first: Tensor, second: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """For pairs of grey values float (n, SIDE, SIDE), and which of them is part of which (`screened`): correlation and fine correlation,
    float (n,), where the two fit best."""
    second = torch.where((way >= 2)[:, None, None], second.flip(2), second)
    swapped = (way % 2 == 1)[:, None, None]
    whole, part = torch.where(swapped, second, first), torch.where(swapped, first, second)
    whole, part = (side - side.flatten(1).mean(1)[:, None, None] for side in (whole, part))
    fine_whole, fine_part = _fine(whole), _fine(part)
    best = torch.full((len(first),), -2.0)
    found = torch.zeros(2, len(first))
    for rows, columns in _WINDOWS:
        close = _correlations(whole, part, rows, columns)
        detail = _correlations(fine_whole, fine_part, rows, columns, _MARGIN)
        total, at = (close + detail).max(1)
        values = torch.stack([values.gather(1, at[:, None])[:, 0] for values in (close, detail)])
        found = torch.where(total > best, values, found)
        best = torch.maximum(best, total)
    return found[0], found[1]


# --- All together


def search(first: Sketches, second: Sketches | None = None, *, progress: bool = False) -> list[Pair]:
    """The pairs of images that are copies, near-duplicates or similar, of a set with another one, or within a set (`second` None); in the
    order of the first set, then the best first. Of an image's similar pairs only the best is given."""
    within = second is None
    second = first if second is None else second
    one, other = (torch.from_numpy(side.thumbnails).float() for side in (first, second))
    hashed, near = _by_hash(one, other, within), _by_features(first.features, second.features, within)
    equal = _equal(first, second, within)
    pairs = np.unique(np.concatenate([hashed[:, :2], near, equal]), axis=0)
    pairs = pairs[first.readable[pairs[:, 0]] & second.readable[pairs[:, 1]]]
    found: list[Pair] = []
    blocks = range(0, len(pairs), 256)
    for start in tqdm(blocks, desc="candidates", disable=None if progress else True, leave=False):
        found += _judged(first, second, one, other, pairs[start : start + 256])
    found.sort(key=lambda pair: (pair.first, _ORDER[pair.verdict], -pair.correlation, pair.second))
    alike: set[int] = set()
    kept = []
    for pair in found:
        if pair.verdict != "similar" or pair.first not in alike:
            kept.append(pair)
        alike.add(pair.first)
    return kept


_ORDER = {"copy": 0, "near": 1, "similar": 2}


def _equal(first: Sketches, second: Sketches, within: bool) -> np.ndarray:
    """Pairs int64 (n, 2) of images with the same pixels; of an image with very many the first ones."""
    places: dict[bytes, list[int]] = {}
    for j, row in enumerate(second.digests):
        if second.readable[j]:
            places.setdefault(row.tobytes(), []).append(j)
    found = []
    for i, row in enumerate(first.digests):
        others = places.get(row.tobytes(), []) if first.readable[i] else []
        others = [j for j in others[: 4 * MOST] if j > i] if within else others[:MOST]
        # Within a set each is told of with the first of them too, so that a long chain of copies has no gap.
        if within and (places.get(row.tobytes()) or [i])[0] < i and first.readable[i]:
            found.append((places[row.tobytes()][0], i))
        found += [(i, j) for j in others]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def _judged(first: Sketches, second: Sketches, one: Tensor, other: Tensor, pairs: np.ndarray) -> Iterator[Pair]:
    i, j = torch.from_numpy(pairs[:, 0]), torch.from_numpy(pairs[:, 1])
    equal = torch.from_numpy((first.digests[pairs[:, 0]] == second.digests[pairs[:, 1]]).all(1))
    correlation, detail = torch.ones(len(pairs)), torch.ones(len(pairs))
    distance, mirrored = torch.zeros(len(pairs), dtype=torch.int64), torch.zeros(len(pairs), dtype=torch.bool)
    others = (~equal).nonzero()[:, 0]
    if len(others):
        correlation[others], way = screened(one[i[others]], other[j[others]])
        detail[others], mirrored[others] = 0.0, way >= 2
        distance[others] = _distances(one[i[others]], other[j[others]])
        close = correlation[others] >= SCREEN
        alike = others[close]
        if len(alike):
            correlation[alike], detail[alike] = registered(one[i[alike]], other[j[alike]], way[close])
    if first.features.shape[1]:
        rows = first.features[pairs[:, 0]].astype(np.float32), second.features[pairs[:, 1]].astype(np.float32)
        cosine = (rows[0] * rows[1]).sum(1)
    else:
        cosine = np.full(len(pairs), math.nan)
    for n, (a, b) in enumerate(pairs.tolist()):
        close, fine, like = float(correlation[n]), float(detail[n]), float(cosine[n])
        verdict: Verdict
        if equal[n]:
            verdict = "copy"
        elif close >= CLOSE and fine >= FINE:
            verdict = "near"
        elif close >= LOOSE or like >= LIKE:
            verdict = "similar"
        else:
            continue
        yield Pair(
            first=a,
            second=b,
            hash=int(distance[n]),
            cosine=like,
            correlation=close,
            detail=fine,
            mirrored=bool(mirrored[n]),
            verdict=verdict,
        )


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Hamming distance of the perceptual hashes of pairs, in the framing where it is least, int (n,)."""
    best = torch.full((len(first),), BITS)
    for frame in ((SIDE, SIDE), *FRAMES):
        for one, other in ((first, framed(second, *frame)), (framed(first, *frame), second)):
            (plain, mirrored), (hashed, _) = hashes(one), hashes(other)
            for side in (plain, mirrored):
                best = torch.minimum(best, ((BITS - (side * hashed).sum(1)) / 2).long())
    return best
