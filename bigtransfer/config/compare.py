"""The knobs of `bit compare`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import (
    Config,
    Folder,
    Positional,
    PositiveInt,
    Seed,
    Share,
    Side,
    Span,
    Workers,
    forbid,
    seconds,
)
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Config):
    """Compare networks on your images, or runs that are finished: accuracy, time per image, size, licence, on one page.

    With --models, each is taken to your images by `bit finetune`: at first all by the closed form, then, with --budget, each in the same
    time, and all are measured on the same images, from which none has learnt. The same command goes on after an interruption. Every run
    stays, as a folder like any other's.

    Without, the folders of runs that were measured on the same images are compared, the first with each of the others.
    """

    what: Positional[tuple[str, ...]]
    """With --models your images, in any form that `bit finetune` takes; else the folders of finished runs."""
    models: str | None = None
    """The networks, with commas between: names from `bit models`, model files, run folders, timm:NAME@FILE, torchvision:NAME, ..."""
    budget: Span | None = None
    """Time for each network to be fine-tuned in, such as 10m, its closed form included; what is best of it is compared. Default: none,
    and the closed forms alone are compared, which take seconds or minutes each."""
    out: Folder | None = None
    """With --models the folder for the runs and comparison.html, else the file of the page. Default: runs/DATA-compare; or
    comparison.html in the first run's folder. Pages of other comparisons there are kept."""
    json: str | None = None
    """File for all numbers."""
    data: str | None = None
    """Of finished runs: where the images are now, for the pictures. Default: where the first run found them."""

    # --- Data (with --models)
    image_column: str | None = None
    """Column of a table that holds the images or their paths. Default: found by its usual names."""
    label_column: str | None = None
    """Column of a table that holds the class. Default: found by its usual names."""
    examples_per_class: PositiveInt | None = None
    """Learn from this many images of each class, drawn at random with --seed. Default: all."""
    test_fraction: Share = 0.2
    """Share of the images, class by class, that all are measured on and none learns from, where the data set has no test part."""
    balance: bool = False
    """As of `bit finetune`: each class counts as if all had as many images."""
    exclude: str | None = None
    """Images to leave out: a file with the name of one a line, or findings.csv of `bit check`."""
    skip_bad_images: bool = False
    """Leave unreadable images out instead of stopping."""

    # --- Training (with --models)
    crop: Side | None = None
    """Side at which all of them see the images, px. Default: each its own."""
    seed: Seed = 0
    """Decides everything random, also which images are held out."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    workers: Workers | None = None
    """Processes that read and decode images. Default: as many as the machine has cores to spare."""

    # --- Progress (with --budget)
    checkpoint_every: Span = "5m"
    """Save what a resume needs at least this often, and whenever the comparison is interrupted."""

    @property
    def networks(self) -> tuple[str, ...]:
        """Those that `models` names, in their order."""
        return tuple(filter(None, (one.strip() for one in (self.models or "").split(","))))

    def check(self) -> None:
        if not self.what:
            raise ConfigError("Name the folders of finished runs; or your images, and the networks with --models.")
        if self.models is None:
            forbid(self, _OF_MODELS, "is for --models, with which networks are taken to your images")
            if len(self.what) == 1 and not os.path.exists(self.what[0]):
                raise ConfigError(f"There is no folder {self.what[0]}, and one run alone could not be compared.")
            if len(self.what) == 1:
                raise ConfigError(
                    f"One run alone cannot be compared. Name another; or, if {self.what[0]} are your images, the networks with --models."
                )
            if len({os.path.realpath(one) for one in self.what}) < len(self.what):
                raise ConfigError("A run is named twice; it cannot be compared with itself.")
            return
        forbid(self, ("data",), "is for finished runs; the images for --models are named by themselves")
        if len(self.what) > 1:
            raise ConfigError(f"--models takes one data set, not {len(self.what)}.")
        if len(self.networks) < 2 and self.budget is None:
            raise ConfigError("--models needs two networks at least, with a comma between, or a --budget.")
        if not self.networks or len(set(self.networks)) < len(self.networks):
            raise ConfigError("--models needs different networks, with commas between.")
        if self.budget is not None and seconds(self.budget) == 0:
            raise ConfigError("--budget must be more than 0 seconds.")
        if self.test_fraction == 0:
            raise ConfigError(
                "--test-fraction must be more than 0: images from which none has learnt are to compare by."
            )


_OF_MODELS = (
    "budget",
    "image_column",
    "label_column",
    "examples_per_class",
    "test_fraction",
    "balance",
    "exclude",
    "skip_bad_images",
    "crop",
    "seed",
    "workers",
    "checkpoint_every",
)
