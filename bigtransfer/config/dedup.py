"""The knobs of `bit dedup`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import Batch, Config, Positional, Threads, forbid
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DedupConfig(Config):
    """Find images that show the same picture, between two sets or within one.

    What is in the training and the test images too makes a model look better than it is. Found are copies, re-encoded, resized, brightened
    and mirrored images, and other crops, by perceptual hashes and a network's features, and confirmed by their correlation where they fit
    best. Writes a table, a page to look at, and lists that --exclude of `bit pretrain`, `finetune` and `evaluate` takes.
    """

    data: Positional[str]
    """The training images, in any form that `bit finetune` reads; without TEST, images whose parts are compared with each other and with
    themselves."""
    test: Positional[str | None] = None
    """The test images, likewise."""
    out: str | None = None
    """Folder for duplicates.csv, duplicates.html and the lists. Default: runs/DATA-dedup."""
    split: str | None = None
    """File for a corrected split: NAME.json for `bit finetune DATA --split-file` (without TEST), or NAME.jsonl, a table of the images that
    every command reads."""
    drop: Literal["train", "test"] = "train"
    """Which side of a pair the corrected split leaves out."""
    image_column: str | None = None
    """Column of a table that holds the images or their paths. Default: found by its usual names."""
    label_column: str | None = None
    """Column of a table that holds the class. Default: found by its usual names."""
    label_separator: str | None = None
    """What stands between an image's labels in a table of text, such as |; the images may then have several."""
    skip_bad_images: bool = False
    """Take unreadable images as a matter of course; otherwise they are left out as well, but the exit status is 1."""

    # --- Method
    model: str = "bit-t-r26x1"
    """The network whose features are compared: a name from `bit models`, a model file or a run folder."""
    features: bool = True
    """Compare features too; --no-features looks at hashes alone, several times as fast, and misses more of other crops."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the network's computation; auto takes bf16 where it pays."""
    batch_size: Batch | None = None
    """Images computed at a time. Default: by their size."""
    workers: Threads | None = None
    """Threads that read and decode images. Default: one for each core."""

    def check(self) -> None:
        if not self.features:
            forbid(self, ("model", "device", "precision"), "has no effect with --no-features")
        if self.split is None:
            forbid(self, ("drop",), "has no effect without --split")
        elif not self.split.endswith((".json", ".jsonl")):
            raise ConfigError(
                f"--split {self.split}: give a name that ends in .json (a split file) or .jsonl (a table of the images)."
            )
        elif self.split.endswith(".json") and self.test is not None:
            raise ConfigError(
                "--split NAME.json is for one data set with its parts; of two write a table: --split NAME.jsonl."
            )
