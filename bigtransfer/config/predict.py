"""The knobs of `bit predict`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import Batch, Config, Folder, Positional, PositiveInt, forbid
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """Say what is on images.

    Unreadable images are reported and the others go on; the exit status is then 1.
    Into a folder (--out answers/) for any number of images: in parts, under torchrun by several processes, each image once; the same
    command goes on after a kill.
    """

    model: Positional[str]
    """A model file, a run folder, a file that `bit convert` exported, or a name from `bit models`."""
    images: Positional[tuple[str, ...]]
    """Image files, folders (all images below them), patterns such as "photos/*.jpg", addresses (https://, file://), or - for
    an image on standard input, or a list of these there, one a line. Into a folder also data sets as `bit finetune` takes them: shards,
    archives, tables."""

    # --- Output
    top_k: PositiveInt = 5
    """How many classes to give for each image, the most probable first."""
    format: Literal["table", "csv", "jsonl", "parquet"] | None = None
    """A table to read, comma-separated values, one JSON object a line, or Parquet into a folder. Default: the table, the Parquet. In CSV
    a name that a spreadsheet would take for a formula (=1+1) has an apostrophe before it; JSON lines and Parquet have it as it is."""
    out: str | None = None
    """File to write to instead of the terminal; or a folder: one that is there, or a name that ends with /."""
    probabilities: bool = False
    """Also give the probability of every class (CSV: a column for each; JSONL: an object)."""
    suggest: PositiveInt | None = None
    """Give only the N images that are worth most if somebody says what is on them: the model is unsure of them, and they are unlike each
    other."""
    suggest_to: Folder | None = None
    """Folder that those images are copied to, numbered in that order."""
    features: str | None = None
    """File (.npz) for the pooled features: arrays `names` and `features`, float32 (images, features), of the readable images."""

    # --- Into a folder
    vectors: tuple[Literal["features", "logits"], ...] = ()
    """Also give these of each image, float32: in Parquet as columns, otherwise in .npy files beside each part."""
    part_images: PositiveInt | None = None
    """Images of a part: a multiple of the batch size. Default: about 4,096, fewer where there are many classes."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    backend: Literal["auto", "fastest", "torch", "onnxruntime", "openvino"] = "auto"
    """What computes the network. auto: onnxruntime for a model that `bit convert --to onnx` wrote, else torch. fastest: what
    `bit benchmark MODEL --remember` has found soonest on this machine."""
    batch_size: Batch | None = None
    """Images computed at a time. Default: by their size."""
    decoder: Literal["fast", "exact"] | None = None
    """exact: decode images whole and resize them by Pillow; fast: a hair's difference, in half the time. Default: as the model learnt."""

    @property
    def into_folder(self) -> bool:
        """Whether the answers go into a folder, in parts."""
        return self.out is not None and (self.out.endswith(("/", os.sep)) or os.path.isdir(self.out))

    def check(self) -> None:
        if self.into_folder:
            forbid(self, ("features",), "is a single file; with a folder it is --vectors features")
            forbid(self, ("suggest", "suggest_to"), "looks at all images together; give --out a file")
            if self.format == "table":
                raise ConfigError("--format table is to be read at once; into a folder go parquet, csv or jsonl.")
        else:
            forbid(self, ("vectors", "part_images"), "needs a folder: --out answers/")
            if self.format == "parquet":
                raise ConfigError("--format parquet needs a folder: --out answers/")
            if self.probabilities and self.format in (None, "table"):
                raise ConfigError("--probabilities needs --format csv or jsonl.")
        if self.features is not None and not self.features.endswith(".npz"):
            raise ConfigError(f"--features writes NumPy's .npz; give a name that ends so, not {self.features!r}.")
        if self.suggest_to is not None and self.suggest is None:
            raise ConfigError("--suggest-to needs --suggest N.")
        if self.suggest is not None and self.features is not None:
            raise ConfigError("--features is of all images; leave it out, or --suggest.")
        if not self.images:
            raise ConfigError("No images given.")
