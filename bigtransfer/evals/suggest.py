"""Which images to label next: those that a model is unsure of, of every kind of picture that there is.

Weighted k-means (Zhdanov 2019, arXiv 1901.05954): the images are clustered by what the model sees of them, each counting by how unsure it
is of it, and of every cluster the image nearest to its middle is taken. Being unsure alone, and gradients (BADGE, Ash et al. 2020), were no
better than drawing at random where few images are labelled (docs/lab-notes.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = 48
"""Of the features, those that images differ in most, by which they are clustered."""

_ROUNDS = 30
_LEAST = 1e-3
"""Weight of images that the model is quite sure of."""


def choose(features: Tensor, probabilities: Tensor, count: int, *, several: bool = False, seed: int = 0) -> list[int]:
    """Numbers of `count` images, or of all if there are not more: those of the most uncertain clusters first.

    features float `(n, d)`, probabilities float `(n, classes)`: what a model sees and says of each; several: an image may have several
    classes, each with a probability of its own. How unsure it is: 1 - (the highest probability - the second), of several classes 1 at a
    half for one of them, 0 at certainty for all. The same arguments give the same images. O(n count) operations in each of at most 30
    rounds.
    """
    n = len(features)
    if several:
        unsure = (1 - (2 * probabilities.double() - 1).abs()).amax(1)
    else:
        top = probabilities.double().topk(min(2, probabilities.shape[1]), dim=1).values
        unsure = 1 - (top[:, 0] - (top[:, 1] if top.shape[1] > 1 else 0))
    if n <= count:
        return (-unsure).argsort(stable=True).tolist()
    weights = unsure.clamp_min(_LEAST)
    generator = torch.Generator().manual_seed(seed)
    x = _directions(features.double(), generator)
    # k-means++: far from what is chosen, in proportion.
    centres = x[torch.multinomial(weights, 1, generator=generator)]
    distance = (x - centres).square().sum(1)
    while len(centres) < count:
        likely = weights * distance
        if float(likely.max()) <= 0:  # nothing but copies is left
            likely = weights
        one = int(torch.multinomial(likely, 1, generator=generator))
        centres = torch.cat([centres, x[one : one + 1]])
        distance = torch.minimum(distance, (x - x[one]).square().sum(1))
    nearest = torch.cdist(x, centres).argmin(1)
    for _ in range(_ROUNDS):
        mass = torch.zeros(count, dtype=x.dtype).index_add(0, nearest, weights)
        moved = torch.zeros_like(centres).index_add(0, nearest, weights[:, None] * x) / mass.clamp_min(1e-12)[:, None]
        centres = torch.where(mass[:, None] > 0, moved, centres)
        before, nearest = nearest, torch.cdist(x, centres).argmin(1)
        if torch.equal(before, nearest):
            break
    mass = torch.zeros(count, dtype=x.dtype).index_add(0, nearest, weights)
    distances = torch.cdist(x, centres)
    chosen: list[int] = []
    for cluster in (-mass).argsort(stable=True).tolist():
        distances[chosen] = torch.inf
        chosen.append(int(distances[:, cluster].argmin()))
    return chosen


def _directions(features: Tensor, generator: torch.Generator) -> Tensor:
    """float64 (n, at most `DIRECTIONS`): standardized features of unit length in the directions in which they differ most, by a randomized
    decomposition (Halko et al. 2011)."""
    mean, deviation = features.mean(0), features.std(0, correction=0)
    scale = deviation.clamp_min(0.1 * float(deviation.square().mean().sqrt()) + 1e-12)
    x = F.normalize((features - mean) / scale, dim=1)
    rank = min(DIRECTIONS, *x.shape)
    sample = torch.randn(x.shape[1], min(rank + 8, *x.shape), generator=generator, dtype=x.dtype)
    centred = x - x.mean(0)
    basis = torch.linalg.qr(centred @ (centred.T @ (centred @ sample))).Q
    directions = torch.linalg.svd(basis.T @ centred, full_matrices=False).Vh[:rank]
    return x @ directions.T
