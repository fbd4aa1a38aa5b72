"""Which labels are likely to be wrong, and which images are like no others: by what is said of each image by the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bigtransfer.evals import linear
from bigtransfer.records import Share

TIMES = 10.0
"""How many times as probable as its own class another one must be for an image's label to be suspected."""

FEWEST = 4
"""Images of a class below which nothing is said of its labels."""

NEIGHBOURS = 5
"""Nearest images by whose mean distance an image is an outlier or not."""

FAR = 5.0
"""Median absolute deviations from the median, of the logarithms of those distances, from which on an image is an outlier."""

MOST = 20_000
"""Images among which labels and outliers are looked for; of more, as many of each class as can be."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image whose label is likely to be wrong."""

    image: int
    label: int
    """The class it has."""
    likely: int
    """The class that the other images say it is of."""
    own_probability: float
    likely_probability: float
    """Of either class, 0 to 1, by a classifier that has not seen the image."""

    @property
    def times(self) -> float:
        """How many times as probable the likely class is."""
        return self.likely_probability / max(self.own_probability, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Suspected:
    """A suspect as suspects.json of a run has it: by names."""

    name: str
    label: str
    likely: str
    own_probability: Share
    likely_probability: Share


def wrong_labels(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    groups: Tensor | None = None,
    probe: linear.Probe | None = None,
) -> tuple[list[Suspect], float | None]:
    """The images whose label is likely to be wrong, the likeliest first; and how many of all are told apart correctly by the others.

    features float `(n, d)`, labels int `(n,)` in 0..num_classes-1. groups int `(n,)`: images of one number show the same picture, and say
    nothing of each other. probe: of these images, whose penalty and temperature are taken; None: it is solved first. Each image is judged
    by the closed-form classifier of the other images (`linear.left_out`), whose probabilities are calibrated by the same means; it is a
    suspect if these hold another class for `TIMES` times as probable as its own. None are found where fewer than two classes have `FEWEST`
    images, and the second value is None then.

    It shares its idea with confident learning (Northcutt et al. 2021): probabilities of images that were not learnt from. That puts the
    bound at the mean probability of each class; benchmarks/results/check_cpu_2026-11-26.md has both.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    known = counts[labels] >= FEWEST
    if int((counts >= FEWEST).sum()) < 2:
        return [], None
    rows = known.nonzero()[:, 0]
    probe = probe or linear.fit(features[rows], labels[rows], num_classes)
    own_groups = None if groups is None else groups[rows]
    scores = linear.left_out(features[rows], labels[rows], num_classes, probe, groups=own_groups)
    scores[:, counts < FEWEST] = -torch.inf
    return suspected(scores, labels[rows], rows)


def suspected(scores: Tensor, labels: Tensor, rows: Tensor) -> tuple[list[Suspect], float]:
    """The same of what a classifier that has not seen them says of images: logits float `(n, classes)`, labels and numbers of the images
    int `(n,)`."""
    probabilities = scores.double().softmax(1)
    own = probabilities.gather(1, labels[:, None])[:, 0]
    others = probabilities.scatter(1, labels[:, None], -1.0)
    best, likely = others.max(1)
    found = [
        Suspect(
            image=int(rows[i]),
            label=int(labels[i]),
            likely=int(likely[i]),
            own_probability=float(own[i]),
            likely_probability=float(best[i]),
        )
        for i in (best >= TIMES * own).nonzero()[:, 0].tolist()
    ]
    found.sort(key=lambda suspect: (-suspect.times, suspect.image))
    return found, float((own >= best).double().mean())


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """An image that is like no other."""

    image: int
    score: float
    """Median absolute deviations by which its distance from the nearest images is above the median."""


def outliers(features: Tensor, groups: Tensor | None = None) -> list[Outlier]:
    """The images that are far from all others, the farthest first. features float `(n, d)`; groups int `(n,)`: see `wrong_labels`.

    Distance: 1 - cosine of standardized features, the mean of the `NEIGHBOURS` nearest of other groups; compared on a logarithmic scale
    with the median of all. None of fewer than ten times as many images.
    """
    n = len(features)
    if n < 10 * NEIGHBOURS:
        return []
    mean, scale = linear.standardization(features)
    unit = F.normalize(((features.double() - mean) * scale).float(), dim=1)
    rows = []
    for start in range(0, n, 1024):
        cosine = unit[start : start + 1024] @ unit.T
        if groups is None:
            cosine[torch.arange(len(cosine)), torch.arange(len(cosine)) + start] = -2.0
        else:
            cosine[groups[start : start + 1024, None] == groups[None, :]] = -2.0
        rows.append(1 - cosine.topk(NEIGHBOURS, dim=1).values.mean(1))
    distance = torch.cat(rows).double().clamp_min(1e-9).log().numpy()
    middle = float(np.median(distance))
    spread = max(float(np.median(np.abs(distance - middle))), 1e-3)
    scores = (distance - middle) / spread
    order = np.argsort(-scores, kind="stable")
    return [Outlier(image=int(i), score=float(scores[i])) for i in order if scores[i] > FAR]
