"""The knobs of `bit check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import Batch, Config, Positional, Threads, forbid
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Config):
    """Find what is wrong with a data set: duplicates, leaks, wrong labels, bad pictures.

    Looks at every image once and finds copies and near-duplicates (within a class, under contradicting classes, between parts), labels that
    are likely to be wrong, outliers, blurred, dark, bright, empty, tiny and oddly shaped pictures, classes of very different size, and
    traits such as the size that give the class away. Writes a page to look at, and a table that --exclude of `bit finetune`, `evaluate`
    and `pretrain` takes. With TEST, what shows the same picture is looked for between the two sets only.
    """

    data: Positional[str]
    """The images, in any form that `bit finetune` reads; with TEST the training images."""
    test: Positional[str | None] = None
    """The test images, likewise, where they are a data set of their own."""
    out: str | None = None
    """Folder for check.html, findings.csv and duplicates.csv. Default: runs/DATA-check."""
    split: str | None = None
    """File for a split without leaks: NAME.json for `bit finetune DATA --split-file` (without TEST), or NAME.jsonl, a table of the images
    that every command reads. Default: split.json in the folder, if there are leaks and no TEST."""
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
    """The network that looks: a name from `bit models`, a model file or a run folder."""
    features: bool = True
    """Look with the network too; --no-features is several times as fast, misses more of other crops, and finds no wrong labels
    and outliers."""

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
            if self.test is not None:
                forbid(self, ("drop",), "has no effect without --split")
        elif not self.split.endswith((".json", ".jsonl")):
            raise ConfigError(
                f"--split {self.split}: give a name that ends in .json (a split file) or .jsonl (a table of the images)."
            )
        elif self.split.endswith(".json") and self.test is not None:
            raise ConfigError(
                "--split NAME.json is for one data set with its parts; of two write a table: --split NAME.jsonl."
            )
