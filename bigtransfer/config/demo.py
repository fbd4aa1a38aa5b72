"""The knobs of `bit demo`."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config.fields import Config, PositiveInt, Seed, Span


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """See it work: the bundled network learns handwritten digits, offline, within minutes.

    Writes scikit-learn's digits as image files, fine-tunes the bundled pre-trained network on a few of each, and compares it,
    on digits that none has seen, with the same network from random weights and with a linear classifier on the pixels.
    """

    out: str = "demo"
    """Folder for the images and the runs."""
    budget: Span = "60s"
    """Time to train each of the two networks."""
    examples_per_class: PositiveInt = 10
    """Images of each digit to learn from."""
    seed: Seed = 0
    """Decides which images are learnt from, and everything else that is random."""
