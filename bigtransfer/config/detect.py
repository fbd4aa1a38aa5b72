"""The knobs of `bit detect finetune`, `evaluate` and `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from bigtransfer.config.fields import (
    Batch,
    Config,
    Folder,
    Must,
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

Channels = Annotated[
    int, Must("a multiple of 32 from 64 to 1,024", lambda value: 64 <= value <= 1024 and value % 32 == 0)
]
Scale = Annotated[float, Must("from 0.5 to 16", lambda value: 0.5 <= value <= 16)]
Factor = Annotated[float, Must("from 0.1 to 10", lambda value: 0.1 <= value <= 10)]
Canvas = Annotated[Side, Must("a multiple of 32", lambda value: value % 32 == 0)]


@dataclass(frozen=True, kw_only=True)
class DetectFinetuneConfig(Config):
    """Teach a network to find objects: where they are, and of which kind.

    A RetinaNet on BiT's network, by the recipe of the paper, from images with boxes in the layout of COCO, PASCAL VOC or YOLO. The same
    command again resumes an interrupted run.
    """

    data: Positional[str]
    """Images with boxes: a folder in the layout of COCO (annotations/*.json), VOC (Annotations/*.xml) or YOLO (labels/*.txt), or one COCO
    file."""
    model: str = "bit-t-r26x1"
    """The network to start from: a name from `bit models`, a model file, a run folder, or an architecture (r50x1) together with
    --no-pretrained. Networks of other libraries are not taken."""
    out: Folder | None = None
    """Folder of the run: model, numbers, report. Default: runs/DATA-MODEL-boxes."""

    # --- Data
    val_fraction: Share | None = None
    """Share of the training images to hold out to be measured on; 0 holds out none. Default: 0.1 if the data set has neither a validation
    nor a test part, else 0."""
    skip_bad_boxes: bool = False
    """Leave out boxes that cannot be right (they are listed) instead of stopping before the training."""
    skip_bad_images: bool = False
    """Leave out images that are missing, unreadable or of another size than their annotations say (they are listed)."""

    # --- Recipe (each unset value is the paper's, or follows from the images)
    budget: Span | None = None
    """Time to spend, such as 10m or 2h: a few steps are timed on this machine, and size of the images and steps are chosen to fit. Smaller
    heads, anchors that fit the objects, half a cosine. Default: the paper's recipe, which is made for big GPUs."""
    epochs: Positive | None = None
    """How often all images are seen. Default: 30."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of --epochs."""
    batch_size: Batch | None = None
    """Images per step. Default: 256, of small sets fewer; under --budget 8."""
    learning_rate: Positive | None = None
    """Highest learning rate. Default: 0.08 at a batch of 256, in proportion to the batch; under --budget this project's own."""
    size: Canvas | None = None
    """The longer side of an image is resized to so many pixels, a multiple of 32. Default: 1,024."""
    channels: Channels | None = None
    """Channels of the pyramid and the heads. Default: 256; under --budget 128."""
    anchor_scale: Scale | None = None
    """Side of the smallest anchors of each level, in strides of the level. Default: 4; under --budget what fits most objects."""
    scales: tuple[Factor, ...] = (0.8, 1.2)
    """Least and largest factor by which training images are resized at random; 1 1 for none."""
    flip: bool = True
    """Mirror training images, with their boxes, at random. Turn it off if left and right tell kinds of objects apart."""

    # --- Training
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
    workers: Workers | None = None
    """Processes that read and decode images. Default: as many as the machine has cores to spare."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Keep the decoded images in memory; auto does so where they fit."""

    # --- Progress
    eval_every: PositiveInt | None = None
    """Measure on the validation images after every so many steps. Default: five times per run."""
    checkpoint_every: Span = "5m"
    """Save what a resume needs at least this often, and whenever the run is interrupted."""
    log: Literal["tensorboard", "wandb", "mlflow"] | None = None
    """Show the numbers in this program too: TensorBoard's files go into the run folder, Weights & Biases and MLflow have settings of
    their own (WANDB_MODE, MLFLOW_TRACKING_URI, ...)."""

    def check(self) -> None:
        if len(self.scales) != 2 or self.scales[0] > self.scales[1]:
            raise ConfigError("--scales needs the least and the largest factor, such as --scales 0.8 1.2.")
        if self.budget is not None:
            if seconds(self.budget) == 0:
                raise ConfigError("--budget must be more than 0 seconds.")
            forbid(self, ("steps", "epochs"), "has no effect with --budget, which decides how many steps there are")
        if self.steps is not None:
            forbid(self, ("epochs",), "has no effect with --steps")


@dataclass(frozen=True, kw_only=True)
class DetectEvaluateConfig(Config):
    """Measure a detector on images with boxes, by COCO's average precision.

    Prints AP over the overlaps 0.50 to 0.95, at 0.50 and 0.75, of small, medium and large objects, and class by class; and what is found,
    missed and invented at the threshold at which the detector answers.
    """

    model: Positional[str]
    """A detector's model file or run folder, or its ONNX file of `bit convert`."""
    data: Positional[str]
    """Images with boxes, as `bit detect finetune` takes them."""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """Which part of the data; auto takes the test part, else the validation part, else all images."""
    skip_bad_boxes: bool = False
    """Leave out boxes that cannot be right instead of stopping."""
    skip_bad_images: bool = False
    """Leave out images that are missing, unreadable or of another size than their annotations say."""

    # --- Output
    json: str | None = None
    """File for all numbers as JSON, with every object that was found, missed or invented."""
    coco: str | None = None
    """File for the boxes in COCO's results format (image_id, category_id, bbox, score), numbered as images and classes come here from 1."""
    out: Folder | None = None
    """Folder for the numbers as evaluation.json, and report.html to look at."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    backend: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """What computes the network. auto: onnxruntime for a detector that `bit convert --to onnx` wrote, else torch."""
    batch_size: Batch | None = None
    """Images computed at a time. Default: by their size."""


@dataclass(frozen=True, kw_only=True)
class DetectPredictConfig(Config):
    """Find objects on images.

    Each object is a line: image, class, score, and left, top, right and bottom of its box in pixels. Unreadable images are reported and
    the others go on; the exit status is then 1.
    """

    model: Positional[str]
    """A detector's model file or run folder, or its ONNX file of `bit convert`, which needs no torch."""
    images: Positional[tuple[str, ...]]
    """Image files, folders (all images below them), patterns such as "photos/*.jpg", addresses (https://, file://)."""
    threshold: Share | None = None
    """Least score of an object. Default: the model's own of each class, chosen by its validation images; 0.5 if it has none."""

    # --- Output
    format: Literal["table", "csv", "jsonl"] = "table"
    """A table to read, comma-separated values (a line for each object), or JSON lines (one for each image, with its objects)."""
    out: str | None = None
    """File to write to instead of the terminal."""
    pictures: Folder | None = None
    """Folder for the images with their boxes drawn in, as JPEG."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    backend: Literal["auto", "torch", "onnxruntime", "openvino"] = "auto"
    """What computes the network. auto: onnxruntime for a detector that `bit convert --to onnx` wrote, else torch."""
    batch_size: Batch | None = None
    """Images computed at a time. Default: by their size."""

    def check(self) -> None:
        if not self.images:
            raise ConfigError("No images given.")
