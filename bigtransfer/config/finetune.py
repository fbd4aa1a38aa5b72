"""The knobs of `bit finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import (
    Batch,
    Config,
    Folder,
    NotNegative,
    Positional,
    Positive,
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

AUTO, BUNDLED = "auto", "bit-t-r26x1"
"""Whatever network suits the images; the one that is in the package."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """Adapt a pre-trained network to your own images.

    Give it a folder with one sub-folder of images per class; the rest is decided by the BiT-HyperRule from the number
    and the size of your images, printed, and saved with the run. The same command again resumes an interrupted run.
    """

    data: Positional[str]
    """Your images: a folder with one sub-folder per class, a folder with train/, val/, test/ parts of that kind, a CSV or
    Parquet table, WebDataset shards, or the name of a public data set (cifar10, flowers102, hf:user/name, ...)."""
    model: str = AUTO
    """The network to start from: a name from `bit models`, a model file, a run folder, timm:NAME or torchvision:NAME (with
    @FILE: its weights, in the library's own form), hf-hub:user/name, an architecture (r50x1) together with --no-pretrained, or two of
    the first three side by side (A+B). auto: bit-t-r26x1; under --budget and --linear closed bit-t-r26x1+efficientnet-lite0 or one
    of them, as your images say."""
    out: Folder | None = None
    """Folder of the run: model, numbers, report. Default: runs/DATA, or runs/DATA-MODEL of a model that is named."""

    # --- Data
    image_column: str | None = None
    """Column of a table that holds the images or their paths. Default: found by its usual names."""
    label_column: str | None = None
    """Column of a table that holds the class. Default: found by its usual names."""
    label_separator: str | None = None
    """What stands between an image's labels in a table of text, such as |; the images may then have several. Each class is then learnt
    by itself (sigmoid loss), as it is where the data set has lists of labels."""
    examples_per_class: PositiveInt | None = None
    """Train on this many images of each class, drawn at random with --seed. Default: all."""
    val_fraction: Share | None = None
    """Share of the training images to hold out for validation, class by class; 0 holds out none. Default: 0.1 if the data set has no
    validation part but needs one: to be measured on if there is no test part either, to choose by under a budget (from ten images per
    class on; 100 images then, if that is no more than a fifth), or to choose the thresholds of several labels by; else 0. Images held
    out by default are learnt from in the end, by the closed form; those of a given share are not."""
    test_fraction: Share | None = None
    """Share of the training images to hold out, class by class, for nothing but the last measurement, where the data set has no test part.
    The same --seed holds out the same ones, whatever the network. Default: none."""
    balance: bool = False
    """Learn each class as if all had as many images: those of small classes are shown more often, and weigh more in the closed form and in
    what is chosen by validation. Mean accuracy per class gains, that on images as they come may lose."""
    split_file: str | None = None
    """Repeat the split of an earlier run: its split.json."""
    exclude: str | None = None
    """Images to leave out: a file with the name of one a line, or findings.csv of `bit check`."""
    skip_bad_images: bool = False
    """Leave unreadable images out (they are listed) instead of stopping before the training."""

    # --- Rule (each unset value is decided by the BiT-HyperRule)
    variant: Literal["code", "paper"] = "code"
    """Which published form of the rule: that of the released code, with which the published weights were measured (480 px,
    warm-up), or that of the paper's text (384 px, no warm-up)."""
    budget: Span | None = None
    """Time to spend, such as 90s, 10m or 2h: the closed form (--linear closed) first, then as many steps as fit, which train the norms of
    the network for it. Delivered is the best of the closed form, that of the network so tuned, and their average on the validation images.
    Where there is not enough time, the closed form is delivered, and some of the test images measure it; what cannot be kept is said.
    Default: the full rule, which is made for a big GPU."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    batch_size: Batch | None = None
    """Images per step."""
    learning_rate: Positive | None = None
    """Highest learning rate of the schedule."""
    resize: Side | None = None
    """Images are resized to this many pixels square before the random crop."""
    crop: Side | None = None
    """Side of the random crop in pixels, and the size at which the model is used afterwards."""
    mixup_alpha: NotNegative | None = None
    """Strength of MixUp, the blending of pairs of training images; 0 turns it off."""
    dropout: Share | None = None
    """Share of the features before the head that is left out at random in training. Default: none."""
    l2_sp: NotNegative | None = None
    """Strength of the decay of all weights but the head's towards the pre-trained ones (L2-SP). Default: none."""
    random_crop: bool = True
    """Crop at random places in training. Turn it off if the place of things decides the class."""
    flip: bool = True
    """Mirror training images at random, and let the closed form see each image mirrored too. Turn it off if left and right decide the
    class."""

    # --- Training
    linear: Literal["none", "closed", "sgd"] = "none"
    """Train only a linear classifier on the frozen network, whose features are computed once: solved exactly, on features of all
    blocks and up to three sizes that leave-one-out chooses (closed), or by the rule's steps on the last (sgd). Either takes little more
    than a look at each image.
    none trains all weights."""
    pretrained: bool = True
    """Start from the pre-trained weights; --no-pretrained starts from random ones, to compare."""
    seed: Seed = 0
    """Decides everything random: the same seed repeats the run."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    micro_batch: Batch | None = None
    """Images computed at a time; the result is the same for any value. Default: what fits into memory."""
    compile: bool = False
    """Compile the network first: minutes of waiting, then faster steps. Worth it on a GPU."""
    workers: Workers | None = None
    """Processes that read and decode images. Default: as many as the machine has cores to spare."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Keep the decoded images in memory; auto does so where they fit."""
    antialias: bool = True
    """Average over the source area when shrinking images, as Pillow does. The original TensorFlow code did not."""
    decoder: Literal["fast", "exact"] = "fast"
    """exact: decode images whole and resize them by Pillow; fast: a hair's difference, in half the time. The model remembers it."""

    # --- Progress
    eval_every: PositiveInt | None = None
    """Validate after every so many steps; less often where that would take too much of a --budget. Default: ten times per run."""
    checkpoint_every: Span = "5m"
    """Save what a resume needs at least this often, and whenever the run is interrupted."""
    log: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Show the numbers in this program too: TensorBoard's files go into the run folder, Weights & Biases and MLflow have settings of
    their own (WANDB_MODE, MLFLOW_TRACKING_URI, ...)."""

    def check(self) -> None:
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ConfigError(f"--crop {self.crop} does not fit into --resize {self.resize}.")
        if self.budget is not None and seconds(self.budget) == 0:
            raise ConfigError("--budget must be more than 0 seconds.")
        if self.split_file is not None:
            forbid(
                self,
                ("examples_per_class", "val_fraction", "test_fraction"),
                "has no effect with --split-file, which fixes the split",
            )
        if self.linear == "closed":
            forbid(
                self,
                ("steps", "batch_size", "learning_rate", "mixup_alpha", "dropout", "eval_every", "log"),
                "has no effect with --linear closed, which solves the classifier without steps",
            )
        if self.linear != "none":
            forbid(
                self,
                (
                    "budget",
                    "resize",
                    "random_crop",
                    "l2_sp",
                    "micro_batch",
                    *(("flip",) if self.linear == "sgd" else ()),
                ),
                "has no effect with --linear, which computes the features of each image once, without augmentation",
            )
        if not self.pretrained:
            forbid(self, ("l2_sp",), "pulls towards the pre-trained weights, which --no-pretrained leaves out")
        if self.compile:
            forbid(self, ("dropout",), "is not for --compile: what is left out changes with every step")
        if self.linear != "none" and not self.pretrained:
            raise ConfigError("--linear needs the pre-trained weights; leave out --no-pretrained.")
