"""Images as points of a plane, for people to look at: those of which a model says the same lie near each other."""

from __future__ import annotations

import torch
from torch import Tensor

POINTS = 400
"""Images at most that are placed."""

SOFTENED = 1.5
"""What logits are divided by: without that all sure answers of a class would lie on one point."""


@torch.no_grad()
def plane(logits: Tensor) -> Tensor:
    """Points `(n, 2)`, float64, each axis from 0 to 1, of the answers float `(n, classes)`.

    The two directions of greatest variance (PCA) of the square roots of the softened probabilities, between which the distance is
    Hellinger's. On images of flowers neighbours are of one class more often so than by the PCA of the features (docs/lab-notes.md), whose
    greatest variance is in brightness and contrast. The same for the same answers, however torch's decomposition chooses the signs: the
    farthest point of each axis lies in the positive direction.
    """
    x = (logits.double() / SOFTENED).softmax(1).sqrt()
    x = x - x.mean(0) if len(x) else x
    points = torch.zeros(len(x), 2, dtype=torch.float64)
    if min(x.shape) == 0:
        return points
    # From the smaller of the two Gram matrices.
    wide = x.shape[1] > x.shape[0]
    squares, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    first, own = vectors[:, -2:].flip(1), squares[-2:].flip(0).clamp_min(0).sqrt()
    found = first * own if wide else x @ first
    points[:, : found.shape[1]] = found
    far = points.gather(0, points.abs().argmax(0, keepdim=True))
    points *= torch.where(far < 0, -1.0, 1.0)
    low, span = points.min(0).values, points.max(0).values - points.min(0).values
    return torch.where(span > 1e-9, (points - low) / span.clamp_min(1e-9), 0.5)
