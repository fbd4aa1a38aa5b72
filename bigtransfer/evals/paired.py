"""Two classifiers on the same images: what tells them apart are the images that only one of them gets right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bigtransfer.evals.metrics import Z95


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How a second classifier compares with a first."""

    images: int
    first_only: int
    """Images that only the first gets right."""
    second_only: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Paired:
        """Of which images each gets right, bool `(n,)`, in the same order."""
        assert first.shape == second.shape
        return cls(images=len(first), first_only=int((first & ~second).sum()), second_only=int((second & ~first).sum()))

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first, -1 to 1; 0 without images."""
        return (self.second_only - self.first_only) / self.images if self.images else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the difference, for paired proportions: Wald's with half an image added to each of the four cells, which keeps
        its promise also for few images (Agresti and Min 2005, Statistics in Medicine 24:729)."""
        n, b, c = self.images + 2, self.first_only + 0.5, self.second_only + 0.5
        centre = (c - b) / n
        half = Z95 * math.sqrt(b + c - (c - b) ** 2 / n) / n
        return max(-1.0, centre - half), min(1.0, centre + half)

    @property
    def p(self) -> float:
        """McNemar's exact test: how often a difference as large or larger comes of chance alone, if both are equally good, 0 to 1."""
        n, k = self.first_only + self.second_only, min(self.first_only, self.second_only)
        tail = sum(
            math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))
            for i in range(k + 1)
        )
        return min(1.0, 2 * tail)
