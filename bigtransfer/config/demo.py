"""The knobs of `bit demo`."""

from __future__ import annotations

from dataclasses import dataclass

from bigtransfer.config.fields import Config, Folder, PositiveInt, Seed, Span


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """See it work: the bundled network learns to tell kinds of things apart from a few pictures of each, offline, within minutes.

    Writes emoji into one folder per kind, learns them by the closed form, which takes seconds, and compares it, on pictures that it has
    not seen, with the same network trained from random weights and with a linear classifier on the pixels.
    """

    out: Folder = "demo"
    """Folder for the pictures and the runs."""
    budget: Span = "45s"
    """Time to train the network from random weights."""
    examples_per_class: PositiveInt = 15
    """Pictures of each kind to learn from."""
    seed: Seed = 0
    """Decides which pictures are learnt from, and everything else that is random."""
