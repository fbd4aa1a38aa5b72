"""One frozen keyword-only dataclass per job: every knob, its default, its help and its check in one place. No torch here.

The command line (`cli`) and the Python API (`bigtransfer.finetune(...)`) are both made from these classes:

    field name           `learning_rate` is the flag `--learning-rate`; a `Positional` field is an argument
    annotation           str, int, float, bool (`--flag` / `--no-flag`), Literal (choices), `X | None` (None: not given),
                         tuple[X, ...] (several values), and the checked types below, such as `PositiveInt`
    string below it      the help text
    `# --- Title` above  starts a group of flags in the help
    `check(self)`        what must hold between fields; raises ConfigError naming the flags
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shlex
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from bigtransfer.errors import ConfigError

T = TypeVar("T")

_POSITIONAL = "positional"
Positional = Annotated[T, _POSITIONAL]
"""A field that is given by its place on the command line instead of by a flag."""


@dataclass(frozen=True)
class Must:
    """A check that travels with a type: the sentence "must be {be}", its test, and how the value is shown in the help."""

    be: str
    test: Callable[[Any], bool]
    metavar: str | None = None


def seconds(text: str) -> float:
    """Seconds in a span of time such as "90s", "10m", "1.5h" or "1h30m"; ConfigError if `text` is no such span."""
    if not re.fullmatch(_SPAN, text.strip()):
        raise ConfigError(f"{text!r} is not a span of time. Write it like 90s, 10m, 1.5h or 1h30m.")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = r"(\d+(\.\d+)?[smhd])+"

PositiveInt = Annotated[int, Must("1 or more", lambda value: value >= 1)]
Count = Annotated[int, Must("0 or more", lambda value: value >= 0)]
Positive = Annotated[float, Must("more than 0", lambda value: 0 < value < float("inf"))]
NotNegative = Annotated[float, Must("0 or more", lambda value: 0 <= value < float("inf"))]
Share = Annotated[float, Must("0 or more and less than 1", lambda value: 0 <= value < 1)]
Span = Annotated[
    str,
    Must("a span of time such as 90s, 10m or 1h30m", lambda value: bool(re.fullmatch(_SPAN, value.strip())), "TIME"),
]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One knob of a job, as the command line needs it."""

    name: str
    type: Callable[[str], Any]
    """str, int, float or bool: of the value, or of each value if `several`."""
    default: Any
    """`dataclasses.MISSING` if the value must be given."""
    help: str
    group: str | None
    positional: bool
    several: bool
    optional: bool
    """None is a legal value: nothing was asked."""
    choices: tuple[Any, ...] | None
    must: Must | None

    @property
    def flag(self) -> str:
        """What a user types: "--learning-rate", or "DATA" for a positional."""
        return self.name.upper() if self.positional else "--" + self.name.replace("_", "-")

    def accept(self, value: Any) -> Any:
        """`value` in the field's type (paths become str, lists tuples, int float); ConfigError if it does not fit."""
        if value is None and self.optional:
            return None
        if not self.several:
            return self._accept_one(value)
        if not isinstance(value, (tuple, list)):
            value = (value,)
        return tuple(self._accept_one(one) for one in value)

    def _accept_one(self, value: Any) -> Any:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if self.choices is not None:
            if value not in self.choices:
                raise ConfigError(f"{self.flag} must be one of {', '.join(map(str, self.choices))}, not {value!r}.")
        elif type(value) is not self.type:
            raise ConfigError(f"{self.flag} must be {_NAMES[self.type]}, not {value!r}.")
        if self.must is not None and not self.must.test(value):
            raise ConfigError(f"{self.flag} must be {self.must.be}, not {value!r}.")
        return value


_NAMES: dict[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


class Config:
    """Base of the configurations: on creation every value is brought to its field's type and checked."""

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            object.__setattr__(self, field.name, field.accept(getattr(self, field.name)))
        self.check()

    def check(self) -> None:
        """Raise ConfigError, naming the flags, where fields contradict each other."""


def fields_of(config_class: type) -> list[Field]:
    """The fields of a configuration class in the order of its source, with help texts and groups read from there."""
    notes = _notes(config_class)
    hints = typing.get_type_hints(config_class, include_extras=True)
    return [
        Field(name=field.name, default=field.default, **_unfold(hints[field.name]), **notes[field.name])
        for field in dataclasses.fields(config_class)
    ]


def command_line(command: str, values: Mapping[str, Any]) -> str:
    """What to type for these values of a command's fields, by name: "bit finetune photos/ --steps 70"; defaults are left out."""
    arguments, flags = [], []
    for field in fields_of(globals()[f"{command.capitalize()}Config"]):
        value = values.get(field.name, field.default)
        value = tuple(value) if isinstance(value, list) else value  # as JSON gives it back
        if value == field.default or value is None:
            continue
        if field.type is bool:
            flags.append(field.flag if value else "--no-" + field.flag.removeprefix("--"))
            continue
        given = [str(one) for one in value] if field.several else [str(value)]
        if field.positional:
            arguments += given
        else:
            flags += [field.flag, *given]
    return shlex.join(["bit", command, *arguments, *flags])


def _unfold(hint: Any) -> dict[str, Any]:
    """What an annotation says: its parts Positional, Must, None, tuple and Literal, from the outside in."""
    found: dict[str, Any] = {"positional": False, "several": False, "optional": False, "choices": None, "must": None}
    while True:
        origin = typing.get_origin(hint)
        if origin is Annotated:
            for extra in hint.__metadata__:
                if extra == _POSITIONAL:
                    found["positional"] = True
                elif isinstance(extra, Must):
                    found["must"] = extra
            hint = hint.__origin__
        elif origin in (typing.Union, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
            found["optional"] = True
        elif origin is tuple:
            hint = typing.get_args(hint)[0]
            found["several"] = True
        elif origin is Literal:
            found["choices"] = typing.get_args(hint)
            hint = type(found["choices"][0])
        else:
            return {**found, "type": hint}


def _notes(config_class: type) -> dict[str, dict[str, Any]]:
    """Field name -> its help (the string below it) and group (the nearest `# --- Title` above it)."""
    notes: dict[str, dict[str, Any]] = {}
    for owner in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        lines = source.splitlines()
        body = typing.cast(ast.ClassDef, ast.parse(source).body[0]).body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = inspect.cleandoc(str(following.value.value))
            titles = (re.fullmatch(r"\s*# --- (.+)", line) for line in reversed(lines[: statement.lineno]))
            group = next((title.group(1) for title in titles if title), None)
            notes[statement.target.id] = {"help": text, "group": group}
    return notes


def _forbid(config: Any, names: tuple[str, ...], why: str) -> None:
    """ConfigError if any of the fields `names` was given another value than its default."""
    for field in fields_of(type(config)):
        if field.name in names and getattr(config, field.name) != field.default:
            raise ConfigError(f"{field.flag} {why}.")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Config):
    """Adapt a pre-trained network to your own images.

    Give it a folder with one sub-folder of images per class; the rest is decided by the BiT-HyperRule from the number
    and the size of your images, printed, and saved with the run. The same command again resumes an interrupted run.
    """

    data: Positional[str]
    """Your images: a folder with one sub-folder per class, a folder with train/, val/, test/ parts of that kind, a CSV or
    Parquet table, WebDataset shards, or the name of a public data set (cifar10, flowers102, hf:user/name, ...)."""
    model: str = "bit-t-r26x1"
    """The network to start from: a name from `bit models`, a model file, a run folder, or an architecture (r50x1) together
    with --no-pretrained."""
    out: str | None = None
    """Folder of the run: model, numbers, report. Default: runs/DATA-MODEL."""

    # --- Data
    image_column: str | None = None
    """Column of a table that holds the images or their paths. Default: found by its usual names."""
    label_column: str | None = None
    """Column of a table that holds the class. Default: found by its usual names."""
    examples_per_class: PositiveInt | None = None
    """Train on this many images of each class, drawn at random with --seed. Default: all."""
    val_fraction: Share | None = None
    """Share of the training images to hold out for validation, class by class; 0 holds out none. Default: 0.1 if the data
    set has neither a validation nor a test part, else 0."""
    split_file: str | None = None
    """Repeat the split of an earlier run: its split.json."""
    skip_bad_images: bool = False
    """Leave unreadable images out (they are listed) instead of stopping before the training."""

    # --- Rule (each unset value is decided by the BiT-HyperRule)
    variant: Literal["code", "paper"] = "code"
    """Which published form of the rule: that of the released code, with which the published weights were measured (480 px,
    warm-up), or that of the paper's text (384 px, no warm-up)."""
    budget: Span | None = None
    """Time to spend on training, such as 90s, 10m or 2h: a few steps are timed on this machine, and steps, batch and
    resolution are chosen to fit. Default: the full rule, which is made for a big GPU."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    batch_size: PositiveInt | None = None
    """Images per step."""
    learning_rate: Positive | None = None
    """Highest learning rate of the schedule."""
    resize: PositiveInt | None = None
    """Images are resized to this many pixels square before the random crop."""
    crop: PositiveInt | None = None
    """Side of the random crop in pixels, and the size at which the model is used afterwards."""
    mixup_alpha: NotNegative | None = None
    """Strength of MixUp, the blending of pairs of training images; 0 turns it off."""
    random_crop: bool = True
    """Crop at random places in training. Turn it off if the place of things decides the class."""
    flip: bool = True
    """Mirror training images at random. Turn it off if left and right decide the class."""

    # --- Training
    linear: Literal["none", "closed", "sgd"] = "none"
    """Train only a linear classifier on the frozen network, whose features are computed once: solved exactly (closed), or by the
    rule's steps (sgd). Either takes seconds. none trains all weights, which is usually more accurate."""
    pretrained: bool = True
    """Start from the pre-trained weights; --no-pretrained starts from random ones, to compare."""
    seed: Count = 0
    """Decides everything random: the same seed repeats the run."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    micro_batch: PositiveInt | None = None
    """Images computed at a time; the result is the same for any value. Default: what fits into memory."""
    compile: bool = False
    """Compile the network first: minutes of waiting, then faster steps. Worth it on a GPU."""
    workers: Count | None = None
    """Processes that read and decode images. Default: as many as the machine has cores to spare."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """Keep the decoded images in memory; auto does so where they fit."""
    antialias: bool = True
    """Average over the source area when shrinking images, as Pillow does. The original TensorFlow code did not."""

    # --- Progress
    eval_every: PositiveInt | None = None
    """Validate after every so many steps. Default: ten times per run."""
    checkpoint_every: Span = "5m"
    """Save what a resume needs at least this often, and whenever the run is interrupted."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder too."""

    def check(self) -> None:
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ConfigError(f"--crop {self.crop} does not fit into --resize {self.resize}.")
        if self.split_file is not None:
            _forbid(
                self, ("examples_per_class", "val_fraction"), "has no effect with --split-file, which fixes the split"
            )
        if self.linear == "closed":
            _forbid(
                self,
                ("steps", "batch_size", "learning_rate", "mixup_alpha", "eval_every"),
                "has no effect with --linear closed, which solves the classifier without steps",
            )
        if self.linear != "none":
            _forbid(
                self,
                ("budget", "resize", "random_crop", "flip", "micro_batch"),
                "has no effect with --linear, which computes the features of each image once, without augmentation",
            )
        if self.linear != "none" and not self.pretrained:
            raise ConfigError("--linear needs the pre-trained weights; leave out --no-pretrained.")


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """See it work: the bundled network learns handwritten digits, offline, within minutes.

    Writes scikit-learn's digits as image files, fine-tunes the bundled pre-trained network on a few of each, and compares it,
    on digits that none has seen, with the same network from random weights and with a linear classifier on the pixels.
    """

    out: str = "demo"
    """Folder for the images and the runs."""
    budget: Span = "60s"
    """Time to train each of the two networks."""
    examples_per_class: PositiveInt = 10
    """Images of each digit to learn from."""
    seed: Count = 0
    """Decides which images are learnt from, and everything else that is random."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Train a network on a large labelled set, on one machine or many, to be fine-tuned later.

    The recipe is the paper's (SGD, 0.03 x batch / 256, weight decay 1e-4, random-area crops). The same command again resumes an
    interrupted run. On several GPUs or machines start it with torchrun: `torchrun --nproc-per-node 8 --max-restarts 100 -m
    bigtransfer pretrain ...`; the batch size is that of all together.
    """

    data: Positional[str]
    """The upstream images, in any form that `bit finetune` reads, or written by `bit shard`, here or at an address; a val/ part is
    measured on the way."""
    model: str = "r50x1"
    """Architecture: r26x1, r50x1, r50x3, r101x1, r101x3, r152x2, r152x4."""
    weights: str | None = None
    """Go on from this model (a file or a name) instead of from random weights; its classes must be those of the data."""
    name: str | None = None
    """Name of the resulting model, written into its file. Default: the run folder's."""
    out: str | None = None
    """Folder of the run; of several machines, one that all see. Default: runs/DATA-MODEL."""
    class_names: str | None = None
    """Tab-separated file of folder name and readable class name, one class a line."""
    upstream: str | None = None
    """What the images are, in words, for the model's card. Default: the data set's name."""
    multi_label: bool = False
    """Images may have several labels each, as lists."""
    label_separator: str | None = None
    """What stands between an image's labels in a CSV table, such as |; the images may then have several."""
    max_bad_images: Share = 0.001
    """Share of unreadable images up to which training goes on without them (they are listed in metrics.jsonl); 0: stop at the
    first."""

    # --- Recipe
    epochs: Positive = 90.0
    """Passes over the images."""
    batch_size: PositiveInt = 4096
    """Images per step, of all processes together."""
    learning_rate: Positive | None = None
    """Highest learning rate. Default: 0.03 x batch size / 256."""
    warmup: Count = 5000
    """Steps of linear warm-up."""
    schedule: Literal["staircase", "cosine"] = "staircase"
    """How the learning rate falls: a tenth at each of --decay-epochs, or half a cosine to 0."""
    decay_epochs: tuple[float, ...] = (30.0, 60.0, 80.0)
    """Epochs after which the staircase falls."""
    weight_decay: NotNegative = 1e-4
    """L2 penalty on kernels and the head's matrix (not on biases and norms)."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross-entropy over all classes, or for each class by itself, with the head's biases starting at -10."""
    ema: Share | None = None
    """Decay of a moving average of the weights, such as 0.9999, which is then what is validated and saved. Default: none."""
    crop: PositiveInt = 224
    """Side of the training crops, px."""
    crop_from: PositiveInt | None = None
    """Start with crops of this side and let them grow, which saves time. Default: --crop from the start."""
    crop_ramp: tuple[float, ...] = (0.4, 0.8)
    """Shares of the training between which the crops grow from --crop-from to --crop."""
    eval_size: PositiveInt | None = None
    """Side at which images are shown for validation and afterwards, px. Default: --crop."""
    min_area: Share = 0.05
    """Smallest part of an image's area that a random crop takes."""
    norm: Literal["gn", "bn"] = "gn"
    """Normalization: GroupNorm, or BatchNorm for the paper's ablation."""
    weight_standardization: bool = True
    """Standardize kernels; off for the paper's ablation."""
    seed: Count = 0
    """Decides everything random: the same seed repeats the run."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present; under torchrun each process takes its own GPU."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the whole network, or (FSDP2) they divide parameters, gradients and momentum, for the wide
    ones."""
    micro_batch: PositiveInt | None = None
    """Images that a process computes at a time. Default: what fits into memory."""
    compile: bool = False
    """Compile the network first. Worth it on a GPU."""
    workers: Count | None = None
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
    tensorboard: bool = False
    """Write TensorBoard files into the run folder too."""

    def check(self) -> None:
        if self.schedule == "cosine":
            _forbid(self, ("decay_epochs",), "has no effect with --schedule cosine")
        if self.crop_from is None:
            _forbid(self, ("crop_ramp",), "has no effect without --crop-from")
        elif self.crop_from > self.crop:
            raise ConfigError(f"--crop-from {self.crop_from} is larger than --crop {self.crop}.")
        if len(self.crop_ramp) != 2 or not 0 <= self.crop_ramp[0] < self.crop_ramp[1] <= 1:
            raise ConfigError("--crop-ramp takes two shares of the training, the first smaller, such as 0.4 0.8.")
        if self.probe is None:
            _forbid(self, ("probe_examples",), "has no effect without --probe")


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
    seed: Count = 0
    """Decides the random order."""
    resize: PositiveInt | None = None
    """Shrink larger images until their shorter side has this many pixels, and store them as JPEG. Default: all images are copied as they
    are."""
    quality: Annotated[int, Must("1 to 100", lambda value: 1 <= value <= 100)] = 95
    """Of these JPEGs, 1 to 100."""

    # --- Machine
    threads: PositiveInt | None = None
    """Threads that decode and encode. Default: one for each core."""

    def check(self) -> None:
        if self.verify:
            chosen = tuple(field.name for field in fields_of(type(self)))
            others = tuple(name for name in chosen if name not in ("source", "verify", "threads"))
            _forbid(self, others, "has no effect with --verify")
        elif self.destination is None:
            raise ConfigError("Where shall the shards go? bit shard SOURCE DESTINATION")
        if self.resize is None:
            _forbid(self, ("quality",), "has no effect without --resize")
        if self.shard_mb is not None and self.shard_images is not None:
            raise ConfigError("--shard-mb and --shard-images both decide where a shard ends; give one of them.")
        if not self.shuffle:
            _forbid(self, ("seed",), "has no effect with --no-shuffle")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Measure a model on labelled images.

    Prints accuracy with its 95% interval, precision and recall of the classes, what is confused with what, and how far the
    model's probabilities can be trusted. Images and model are matched by the names of their classes.
    """

    model: Positional[str]
    """A model file, a run folder, or a name from `bit models`."""
    data: Positional[str]
    """Labelled images in any form that `bit finetune` reads."""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """Which part of the data; auto takes the test part, else the validation part, else all images."""
    subset: bool = False
    """Accept images of only some of the model's classes. The model still chooses among all it knows."""
    class_names: str | None = None
    """Tab-separated file of the data's name of a class (its folder's) and the model's, one class a line. Default: they are the same."""
    skip_bad_images: bool = False
    """Take unreadable images as a matter of course; otherwise they are left out as well, but the exit status is 1."""
    image_column: str | None = None
    """Column of a table that holds the images or their paths. Default: found by its usual names."""
    label_column: str | None = None
    """Column of a table that holds the class. Default: found by its usual names."""

    # --- Output
    json: str | None = None
    """File for all numbers as JSON: with the confusion matrix and the prediction for each image."""
    out: str | None = None
    """Folder for the same as evaluation.json, and report.html to look at."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    batch_size: PositiveInt | None = None
    """Images computed at a time. Default: by their size."""
    workers: PositiveInt | None = None
    """Threads that read and decode images. Default: one for each core."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Config):
    """Say what is on images.

    Unreadable images are reported and the others go on; the exit status is then 1.
    """

    model: Positional[str]
    """A model file, a run folder, or a name from `bit models`."""
    images: Positional[tuple[str, ...]]
    """Image files, folders (all images below them), patterns such as "photos/*.jpg", addresses (http://, https://), or - for
    a list of these on standard input, one a line."""

    # --- Output
    top_k: PositiveInt = 5
    """How many classes to give for each image, the most probable first."""
    format: Literal["table", "csv", "jsonl"] = "table"
    """A table to read, comma-separated values, or one JSON object a line."""
    out: str | None = None
    """File to write to instead of the terminal."""
    probabilities: bool = False
    """Also give the probability of every class (CSV: a column for each; JSONL: an object)."""
    features: str | None = None
    """File (.npz) for the pooled features: arrays `names` and `features`, float32 (images, features), of the readable images."""

    # --- Machine
    device: str | None = None
    """cpu, cuda, cuda:1, mps. Default: the fastest one present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto takes bf16 where it pays."""
    batch_size: PositiveInt | None = None
    """Images computed at a time. Default: by their size."""

    def check(self) -> None:
        if self.probabilities and self.format == "table":
            raise ConfigError("--probabilities needs --format csv or jsonl.")
        if self.features is not None and not self.features.endswith(".npz"):
            raise ConfigError(f"--features writes NumPy's .npz; give a name that ends so, not {self.features!r}.")
        if not self.images:
            raise ConfigError("No images given.")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Config):
    """Write a run's report.html anew.

    For a run that was interrupted, or after an update. The pictures are read from the data set where it still is.
    """

    run: Positional[str]
    """Folder of the run."""
    data: str | None = None
    """Where the images are now. Default: where the run found them."""


_WEIGHT_SUFFIXES: dict[str, tuple[str, ...]] = {
    "bit": (".safetensors",),
    "npz": (".npz",),
    "torch": (".tar", ".pth", ".pt"),
    "timm": (".safetensors", ".bin", ".pth", ".pt", ".tar"),
    "transformers": (),
}
"""Form -> how its file is called; timm may also be a folder, transformers always is one."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Config):
    """Write a model in the form that other software reads, or read any published form into a model file.

    What is written is read back and compared before the command says that it is done.
    """

    source: Positional[str]
    """The model: a name from `bit models`, a run folder, a file of the authors (.npz, bit.pth.tar), of timm or of bigtransfer,
    a transformers or timm folder, or hf-hub:user/name."""
    destination: Positional[str]
    """File or folder to write. transformers: a folder; timm: a file (.safetensors, .pth) or a folder; npz: a .npz file; torch:
    a .pth.tar file; bit: a .safetensors file."""
    to: Literal["bit", "timm", "transformers", "npz", "torch"] = "bit"
    """Form: bit is bigtransfer's own, npz and torch are those of the authors' code."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the stored weights; the 16-bit ones halve the size and lose digits."""
    overwrite: bool = False
    """Replace what is at the destination."""
    offline: bool = False
    """Never download (also BIT_OFFLINE=1)."""

    def check(self) -> None:
        known = {suffix for suffixes in _WEIGHT_SUFFIXES.values() for suffix in suffixes}
        suffix = os.path.splitext(self.destination)[1]
        fitting = _WEIGHT_SUFFIXES[self.to]
        is_file = suffix in known
        if (is_file and suffix not in fitting) or (not is_file and self.to in ("bit", "npz", "torch")):
            wanted = f"should end in {' or '.join(fitting)}" if fitting else "should be a folder"
            raise ConfigError(f"{self.destination} {wanted} with --to {self.to}.")
        if self.to in ("npz", "torch"):
            _forbid(self, ("dtype",), f"has no effect with --to {self.to}, which stores float32")


@dataclass(frozen=True, kw_only=True)
class ModelsConfig(Config):
    """List the models that can be used by name.

    Without a pattern, the many models fine-tuned on VTAB-1k are shown as one line per architecture.
    """

    pattern: Positional[str] = ""
    """Only names that contain this text, or match this shell pattern ("bit-m-*x3")."""
    json: bool = False
    """Print JSON with all that is known about each."""


@dataclass(frozen=True, kw_only=True)
class InfoConfig(Config):
    """All that is known about one model; nothing is downloaded."""

    model: Positional[str]
    """A name from `bit models`, a model file of any form, or a run folder."""
    json: bool = False
    """Print JSON."""
