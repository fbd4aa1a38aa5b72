"""What timm and transformers keep in JSON beside the tensors (network, classes, preprocessing), from and to our card."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from bigtransfer import records
from bigtransfer.catalog import Architecture, Built, Deviation, InputSpec, Mean, ModelCard
from bigtransfer.errors import WeightsError
from bigtransfer.runs import write_json
from bigtransfer.weights import classifiers

_BILINEAR, _BICUBIC = 2, 3
"""Pillow's numbers for its filters, which transformers stores."""


@dataclass(frozen=True)
class Description:
    """What the JSON files of a folder say about the network in it; None where they say nothing."""

    input: InputSpec | None = None
    class_names: tuple[str, ...] | None = None
    licence: str = ""
    pixels: str = ""
    """How its pixels are scaled, if not to [-1, 1]."""
    timm: str = ""
    """timm's name of a network that is not BiT's; the fields below are of such ones."""
    mean: tuple[Mean, Mean, Mean] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None
    pooling: str = ""
    """How timm pools its last map, in timm's words."""
    built_for: Any = None
    """Side of the images that timm was told to build it for, px; None: the one that goes with its name."""
    kind: classifiers.Kind | None = None
    """Of transformers' own classifiers, which are timm's networks under other names."""
    built: Built | None = None
    """What such a network is built with beside timm's name of it."""
    multi_label: bool = False


def read(folder: Path) -> Description:
    """The description in a timm or transformers folder (an empty one if there is none, as in a run folder).

    Raises WeightsError if the files say that the network in the folder is neither BiT's nor one that timm builds by its name alone, nor
    a classifier of transformers' that timm has as well.
    """
    path = folder / "config.json"
    config = _json(path)
    kind = records.convert(config, _Kind, str(path), WeightsError)
    if (
        kind.architecture
        and kind.model_type in (None, "timm_wrapper")
        and not kind.architecture.startswith("resnetv2_")
    ):
        described = _read_other(path, kind.architecture, config)
    elif kind.model_type is not None:
        described = _read_transformers(folder, kind.model_type, config)
    elif kind.architecture.startswith("resnetv2_"):
        described = _read_timm(path, config)
    else:
        return Description()
    if described.input is not None:
        described.input.within_limits(str(folder), WeightsError)
    return described


@dataclass(frozen=True)
class _Kind:
    model_type: str | None = None
    architecture: str = ""


Side = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Colours = tuple[Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)], ...]
"""One number for each channel."""


# --- transformers


def write_transformers(folder: Path, card: ModelCard) -> None:
    """config.json and preprocessor_config.json for `BitForImageClassification` and `BitImageProcessor`.

    The width goes into `embedding_size` and `hidden_sizes`: transformers applies its own `width_factor` to some of the
    layers only, so that any value but 1 builds a network that cannot run.
    """
    arch, spec = card.architecture, card.input
    labels = card.class_names or [f"LABEL_{index}" for index in range(card.num_classes)]
    config: dict[str, Any] = {
        "architectures": ["BitForImageClassification" if card.num_classes else "BitModel"],
        "model_type": "bit",
        "num_channels": arch.in_chans,
        "embedding_size": 64 * arch.width,
        "hidden_sizes": [256 * arch.width * 2**block for block in range(4)],
        "depths": list(arch.units),
        **_TRANSFORMERS_BIT,
        "torch_dtype": "float32",
    }
    if card.num_classes:
        config["id2label"] = {str(index): label for index, label in enumerate(labels)}
        if card.multi_label:
            config["problem_type"] = "multi_label_classification"
        config["label2id"] = {label: index for index, label in enumerate(labels)}
    short = spec.resized
    square = {"height": spec.size, "width": spec.size}
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": square if spec.mode == "square" else {"shortest_edge": short},
        "resample": _BICUBIC if spec.interpolation == "bicubic" else _BILINEAR,
        "do_center_crop": spec.mode == "aspect",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * arch.in_chans,
        "image_std": [0.5] * arch.in_chans,
        "do_convert_rgb": arch.in_chans == 3,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", processor)


_TRANSFORMERS_BIT = {
    "layer_type": "preactivation",
    "hidden_act": "relu",
    "global_padding": None,
    "num_groups": 32,
    "embedding_dynamic_padding": False,
    "output_stride": 32,
    "width_factor": 1,
}


@dataclass(frozen=True)
class _Labels:
    """What is read of every config.json of transformers."""

    id2label: Mapping[str, str | int] | None = None
    problem_type: Literal["single_label_classification", "multi_label_classification"] | None = None

    def class_names(self) -> tuple[str, ...] | None:
        """None where there are none, or those that stand for none."""
        if self.id2label is None or any(str(index) not in self.id2label for index in range(len(self.id2label))):
            return None
        found = tuple(str(self.id2label[str(index)]) for index in range(len(self.id2label)))
        return None if found == tuple(f"LABEL_{index}" for index in range(len(found))) else found


@dataclass(frozen=True)
class _Edges:
    shortest_edge: Side | None = None
    height: Side | None = None
    width: Side | None = None


@dataclass(frozen=True)
class _Processor:
    """What is read of preprocessor_config.json."""

    size: Side | _Edges | None = None
    crop_size: Side | _Edges | None = None
    do_center_crop: bool | None = None
    resample: int | None = None
    image_mean: Colours | None = None
    image_std: Colours | None = None


def _read_transformers(folder: Path, model_type: str, config: Mapping[str, Any]) -> Description:
    where = f"{folder}/config.json"
    kind = classifiers.KINDS.get(model_type)
    if kind is None and model_type != "bit":
        raise WeightsError(
            f"{folder} holds a transformers model of type {model_type!r}. Read are BiT's ('bit'), timm's ('timm_wrapper') and "
            f"{', '.join(map(repr, classifiers.KINDS))}. timm has most of the others too: take a repository of timm's weights, or its file "
            "as timm:NAME@FILE."
        )
    labels = records.convert(config, _Labels, where, WeightsError)
    said = Description(
        class_names=labels.class_names(), multi_label=labels.problem_type == "multi_label_classification"
    )
    path = folder / "preprocessor_config.json"
    stored = _json(path)
    if kind is not None:
        name, built = kind.network(config, where)
        said = dataclasses.replace(said, timm=name, built=built, kind=kind)
        return _prepared(said, stored, str(path)) if stored else said
    for key, ours in _TRANSFORMERS_BIT.items():
        if config.get(key, ours) != ours:
            raise WeightsError(f"{where}: {key} is {config[key]!r}; a BiT network has {ours!r}.")
    if not stored:
        return said
    processor = records.convert(stored, _Processor, str(path), WeightsError)
    return dataclasses.replace(
        said,
        input=_cropped(processor, "bicubic" if processor.resample in (None, _BICUBIC) else "bilinear"),
        pixels=_pixels(processor.image_mean, processor.image_std),
    )


def _cropped(processor: _Processor, interpolation: Literal["bilinear", "bicubic"]) -> InputSpec | None:
    size, crop = _sides(processor.size), _sides(processor.crop_size)
    if size and crop and processor.do_center_crop is not False:
        return InputSpec(size=crop, mode="aspect", crop_pct=_share(crop, size), interpolation=interpolation)
    return InputSpec(size=size, mode="square", interpolation=interpolation) if size else None


@dataclass(frozen=True)
class _OwnProcessor(_Processor):
    """What is read of that of another network than BiT's, whose input is not scaled to [-1, 1] whatever it says."""

    image_processor_type: str = ""
    feature_extractor_type: str = ""
    """What older files call the same."""
    resample: Literal[2, 3] = _BILINEAR
    crop_pct: Annotated[float, msgspec.Meta(ge=0.1, le=1)] | None = None
    do_normalize: bool = True
    do_rescale: Literal[True] = True
    do_resize: Literal[True] = True
    rescale_factor: Annotated[float, msgspec.Meta(ge=0.0039, le=0.00393)] = 1 / 255
    image_mean: tuple[Mean, Mean, Mean] = (0.5, 0.5, 0.5)
    image_std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)


_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"size": 224, "resample": _BILINEAR},
    "DeiT": {"size": 256, "crop_size": 224, "resample": _BICUBIC},
    "ConvNext": {"size": 384, "resample": _BICUBIC},
}
"""What transformers' image processors do where a file is silent; by the beginnings of their names."""


def _prepared(said: Description, stored: Mapping[str, Any], where: str) -> Description:
    """With what preprocessor_config.json says of the images."""
    own = {key: value for key, value in stored.items() if value is not None}
    called = str(own.get("image_processor_type") or own.get("feature_extractor_type") or "")
    kind = next((name for name in _DEFAULTS if called.startswith(name)), "")
    processor = records.convert({**_DEFAULTS.get(kind, {}), **own}, _OwnProcessor, where, WeightsError)
    interpolation = "bicubic" if processor.resample == _BICUBIC else "bilinear"
    spec, size = _cropped(processor, interpolation), _sides(processor.size)
    if kind == "ViT" and size:  # it never crops
        spec = InputSpec(size=size, mode="square", interpolation=interpolation)
    if kind == "ConvNext" and size:  # what is smaller than 384 px is cropped, the rest resized to a square
        spec = InputSpec(size=size, mode="square", interpolation=interpolation)
        if size < 384:
            resized = int(size / (processor.crop_pct or 224 / 256))
            spec = dataclasses.replace(spec, mode="aspect", crop_pct=_share(size, resized))
    black, whole = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return dataclasses.replace(
        said,
        input=spec,
        mean=processor.image_mean if processor.do_normalize else black,
        std=processor.image_std if processor.do_normalize else whole,
    )


def _share(crop: int, size: int) -> float:
    """The crop_pct for which `floor(crop / crop_pct)` is `size` again: a rounded quotient can miss it by one."""
    share = min(1.0, max(0.01, crop / size))
    return share if math.floor(crop / share) == size else math.nextafter(share, 0)


def _sides(size: int | _Edges | None) -> int | None:
    """Shorter side in one of the ways in which transformers has written it over the years."""
    if not isinstance(size, _Edges):
        return size
    return size.shortest_edge or min(size.height or 0, size.width or 0) or None


# --- timm


def timm_name(architecture: Architecture) -> str | None:
    """timm's name of a published architecture, such as "resnetv2_50x1_bit"; None for others."""
    name = architecture.name
    return f"resnetv2_{name[1:]}_bit" if name not in ("", "r26x1") else None


def write_timm(folder: Path, card: ModelCard) -> None:
    """config.json for `timm.create_model("local-dir:FOLDER")` and for timm's folders on the hub."""
    arch, spec = card.architecture, card.input
    name, arguments = timm_name(arch), {}
    if name is None:
        # Of timm's names for published networks none takes other units, but one for plain convolutions does.
        name = "resnetv2_50"
        arguments = {
            "layers": list(arch.units),
            "width_factor": arch.width,
            "stem_type": "fixed",
            "norm_layer": "groupnorm",
        }
    if arch.in_chans != 3:
        arguments["in_chans"] = arch.in_chans
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": card.num_classes,
        "num_features": arch.num_features,
        "pretrained_cfg": {
            "tag": "bigtransfer",
            "custom_load": False,
            "input_size": [arch.in_chans, spec.size, spec.size],
            "pool_size": [math.ceil(spec.size / 32)] * 2,
            "fixed_input_size": False,
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "crop_mode": "squash" if spec.mode == "square" else "center",
            "mean": [0.5] * arch.in_chans,
            "std": [0.5] * arch.in_chans,
            "num_classes": card.num_classes,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "license": card.licence,
        },
    }
    if arguments:
        config["model_args"] = arguments
    if card.class_names:
        config["label_names"] = list(card.class_names)
    write_json(folder / "config.json", config)


@dataclass(frozen=True)
class _Timm:
    """What is read of timm's settings, which stand in `pretrained_cfg` or, in older files, beside it."""

    input_size: Annotated[tuple[Side, ...], msgspec.Meta(min_length=1, max_length=3)] | None = None
    interpolation: str | None = None
    crop_pct: Annotated[float, msgspec.Meta(ge=0.01, le=4)] | None = None
    crop_mode: str | None = None
    mean: Colours | None = None
    std: Colours | None = None
    license: str | None = None
    label_names: tuple[str, ...] | None = None
    labels: tuple[str, ...] | Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _TimmConfig(_Timm):
    pretrained_cfg: _Timm | None = None


def _read_timm(path: Path, config: Mapping[str, Any]) -> Description:
    whole = records.convert(config, _TimmConfig, str(path), WeightsError)
    pretrained = whole.pretrained_cfg or whole
    labels = whole.label_names or pretrained.label_names or pretrained.labels
    squash = pretrained.crop_mode == "squash"
    return Description(
        input=InputSpec(
            size=pretrained.input_size[-1],
            mode="square" if squash else "aspect",
            crop_pct=1.0 if squash else min(1.0, pretrained.crop_pct or 0.875),
            interpolation="bilinear" if pretrained.interpolation == "bilinear" else "bicubic",
        )
        if pretrained.input_size
        else None,
        class_names=labels if isinstance(labels, tuple) else None,
        licence=pretrained.license or "",
        pixels=_pixels(pretrained.mean, pretrained.std),
    )


@dataclass(frozen=True)
class _Pixels:
    mean: tuple[Mean, Mean, Mean] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None


@dataclass(frozen=True)
class _Built:
    """How timm built the network."""

    model_args: Mapping[str, Any] | None = None
    global_pool: str | None = None
    pretrained_cfg: Mapping[str, Any] | None = None


def _read_other(path: Path, name: str, config: Mapping[str, Any]) -> Description:
    """Of a network of timm's that is not BiT's."""
    built = records.convert(config, _Built, str(path), WeightsError)
    given = built.model_args or {}
    neutral = ("num_classes", "global_pool", "img_size")
    own = [key for key, value in given.items() if key not in neutral and (key, value) != ("in_chans", 3)]
    if own:
        raise WeightsError(
            f"{path}: timm:{name} was built with arguments of its own ({', '.join(sorted(own))[:200]}), and here "
            "timm is given its name alone."
        )
    described = _read_timm(path, config)
    settings = built.pretrained_cfg if built.pretrained_cfg is not None else config
    sides, built_for = settings.get("input_size") or (), given.get("img_size")
    if isinstance(built_for, list) and len(set(built_for)) == 1:
        built_for = built_for[0]
    if len(sides) > 1 and sides[-1] != sides[-2]:
        raise WeightsError(
            f"{path}: timm:{name} takes images of {list(sides)}; only square ones of 3 channels are possible."
        )
    pixels = records.convert(settings, _Pixels, str(path), WeightsError)
    return dataclasses.replace(
        described,
        pixels="",
        timm=name,
        mean=pixels.mean,
        std=pixels.std,
        pooling=built.global_pool or str(given.get("global_pool") or ""),
        built_for=built_for,
    )


# --- Both


def _pixels(mean: Colours | None, std: Colours | None) -> str:
    if any(abs(number - 0.5) > 1e-6 for number in (*(mean or ()), *(std or ()))):
        return f"mean {list(mean or ())}, std {list(std or ())}"
    return ""


def _json(path: Path) -> dict[str, Any]:
    """The object in that file; {} if there is no file."""
    try:
        return records.read(path, dict[str, Any], WeightsError)
    except FileNotFoundError:
        return {}
