"""The knobs of `bit evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import Batch, Config, Folder, Positional, PositiveInt, Seed, Threads, forbid
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Measure a model on labelled images.

    Prints accuracy with its 95% interval, precision and recall of the classes, what is confused with what, and how far the
    model's probabilities can be trusted. Images and model are matched by the names of their classes.
    With --suite: by the exact protocol of a published benchmark, each number one line of a results file.
    """

    model: Positional[str]
    """A model file, a run folder, a file that `bit convert` exported, or a name from `bit models`."""
    data: Positional[str | None] = None
    """Labelled images in any form that `bit finetune` reads; not with --suite."""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """Which part of the data; auto takes the test part, else the validation part, else all images."""
    split_file: str | None = None
    """Divide the data as a run did: its split.json."""
    subset: bool = False
    """Accept images of only some of the model's classes. The model still chooses among all it knows."""
    class_names: str | None = None
    """Tab-separated file of the data's name of a class (its folder's) and the model's, one class a line. Default: they are the same."""
    exclude: str | None = None
    """Images that the model may know from its training, to be measured without them as well: a file with the name of one a line, or
    findings.csv of `bit check`."""
    skip_bad_images: bool = False
    """Take unreadable images as a matter of course; otherwise they are left out as well, but the exit status is 1."""
    image_column: str | None = None
    """Column of a table that holds the images or their paths. Default: found by its usual names."""
    label_column: str | None = None
    """Column of a table that holds the class. Default: found by its usual names."""
    label_separator: str | None = None
    """What stands between an image's labels in a table of text, such as |; the images may then have several."""

    # --- Benchmarks
    suite: tuple[str, ...] = ()
    """Published benchmarks by name, each by its exact protocol; `bit results` lists them and shows what came out. Or the TOML file of a
    benchmark of one's own."""
    task: tuple[str, ...] = ()
    """Only these tasks of the suites; * and ? stand for any text. Variants of a protocol run only if they are named so."""
    root: str | None = None
    """Folder that holds the benchmarks' images. Default: $BIT_BENCHMARKS, else a folder of the cache."""
    results: str | None = None
    """File to which results are added, a JSON line each. Default: results.jsonl."""
    seed: Seed | None = None
    """Of what a protocol draws at random: few-shot subsets, batches. Default: 0."""

    # --- Output
    json: str | None = None
    """File for all numbers as JSON: with the confusion matrix and the prediction for each image."""
    out: Folder | None = None
    """Folder for the same as evaluation.json, and report.html to look at. With it the same command goes on after a kill, and several
    processes under torchrun share the work."""
    part_images: PositiveInt | None = None
    """With --out, images of which the answers are kept at a time: a multiple of the batch size. Default: about 4,096."""

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
    workers: Threads | None = None
    """Threads that read and decode images. Default: one for each core."""

    def check(self) -> None:
        if self.suite:
            forbid(self, _OF_IMAGES, "is for images of your own, not for --suite")
        else:
            forbid(self, _OF_SUITES, "is for --suite")
            if self.out is None:
                forbid(self, ("part_images",), "needs --out FOLDER, where the parts are kept")
            if self.data is None:
                raise ConfigError(
                    "Name the images to measure on (bit evaluate MODEL DATA), or a benchmark with --suite."
                )


_OF_IMAGES = (
    "data",
    "split",
    "split_file",
    "subset",
    "class_names",
    "exclude",
    "skip_bad_images",
    "image_column",
    "label_column",
    "label_separator",
    "json",
    "out",
    "backend",
    "part_images",
)
_OF_SUITES = ("task", "root", "results", "seed")
