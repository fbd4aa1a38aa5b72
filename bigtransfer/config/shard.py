"""The knobs of `bit shard`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from bigtransfer.config.fields import Config, Must, Positional, Positive, PositiveInt, Seed, Threads, fields_of, forbid
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ShardConfig(Config):
    """Turn a data set into tar shards that can be read at any scale.

    Writes WebDataset shards (DESTINATION/train-000000.tar, ...) with an index of all images, classes and checksums, so that a set of any
    size opens at once, from this machine, a web server or an object store. Every image is decoded once on the way. The same command
    again goes on with an interrupted one, and repairs damaged shards.
    """

    source: Positional[str]
    """Images in any form that `bit finetune` reads; with --verify, the folder of shards to check."""
    destination: Positional[str | None] = None
    """New folder for the shards."""
    verify: bool = False
    """Check the shards in SOURCE against their checksums, and name the damaged ones."""

    # --- Data
    image_column: str | None = None
    """Column of a table that holds the images or their paths. Default: found by its usual names."""
    label_column: str | None = None
    """Column of a table that holds the class. Default: found by its usual names."""
    label_separator: str | None = None
    """What stands between the labels of an image in a CSV table, such as "|". Default: an image has one label."""
    skip_bad_images: bool = False
    """Leave unreadable images out (they are listed in unreadable.json) instead of stopping."""

    # --- Shards
    shard_mb: Positive | None = None
    """Size of a shard, megabytes. Default: 256."""
    shard_images: PositiveInt | None = None
    """Images in a shard, instead of a size."""
    shuffle: bool = True
    """Write the images in random order, so that each shard has images of all classes."""
    seed: Seed = 0
    """Decides the random order."""
    resize: (
        Annotated[int, Must("1 to 65,535, the largest side of a JPEG", lambda value: 1 <= value <= 65_535)] | None
    ) = None
    """Shrink larger images until their shorter side has this many pixels, and store them as JPEG. Default: all images are copied as they
    are."""
    quality: Annotated[int, Must("1 to 100", lambda value: 1 <= value <= 100)] = 95
    """Of these JPEGs, 1 to 100."""
    raw: str | None = None
    """Store pixels as a model takes them instead of image files, for sets that are used often: read without decoding, larger on the disk.
    A model (file, run folder, name), whose input is meant, or a side in px, which both sides are resized to."""

    # --- Machine
    threads: Threads | None = None
    """Threads that decode and encode. Default: one for each core."""

    def check(self) -> None:
        if self.verify:
            chosen = tuple(field.name for field in fields_of(type(self)))
            others = tuple(name for name in chosen if name not in ("source", "verify", "threads"))
            forbid(self, others, "has no effect with --verify")
        elif self.destination is None:
            raise ConfigError("Where shall the shards go? bit shard SOURCE DESTINATION")
        if self.raw is not None:
            forbid(self, ("resize", "quality"), "has no effect with --raw")
        if self.resize is None:
            forbid(self, ("quality",), "has no effect without --resize")
        if self.shard_mb is not None and self.shard_images is not None:
            raise ConfigError("--shard-mb and --shard-images both decide where a shard ends; give one of them.")
        if not self.shuffle:
            forbid(self, ("seed",), "has no effect with --no-shuffle")
