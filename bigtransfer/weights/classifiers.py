"""transformers' own image classifiers as timm's networks of the same layers: one table of kinds, sizes and parameter names.

transformers writes the same networks under other names, the rows of a query, key and value apart, and says in config.json how large they
are. A kind is an entry of `KINDS`: the form of that config, what it must say for timm's network to be the same function, how its sizes
are timm's arguments (`catalog.Built`), and what each of timm's parameters is called there.

Source: transformers' modeling_vit, _deit, _swin, _convnext, _convnextv2 and _resnet, and timm's vision_transformer, swin_transformer,
convnext and resnet.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from bigtransfer import records
from bigtransfer.catalog import Built, InputSpec
from bigtransfer.errors import WeightsError

MOST_PATCHES = 128
"""Patches along a side of what a ViT may look at: it is looked at with one image, and the work grows with the fourth power of the side."""

Side = Annotated[int, msgspec.Meta(ge=1)]
Width = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
Depth = Annotated[int, msgspec.Meta(ge=1, le=200)]
Heads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Epsilon = Annotated[float, msgspec.Meta(ge=0, le=0.1)]
_stages = msgspec.Meta(min_length=1, max_length=16)
Widths = Annotated[tuple[Width, ...], _stages]
Depths = Annotated[tuple[Depth, ...], _stages]

# --- What their config.json says, with what it means where it is silent. Bounds of what has the same name there are those of `Built`.


@dataclass(frozen=True)
class _ViT:
    hidden_size: Width = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    layer_norm_eps: Epsilon = 1e-12
    image_size: Side = 224
    patch_size: Side = 16
    qkv_bias: bool = True


@dataclass(frozen=True)
class _Swin:
    image_size: Side = 224
    patch_size: Side = 4
    embed_dim: Width = 96
    depths: Depths = (2, 2, 6, 2)
    num_heads: Annotated[tuple[Heads, ...], _stages] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True


@dataclass(frozen=True)
class _ConvNeXt:
    hidden_sizes: Widths = (96, 192, 384, 768)
    depths: Depths = (3, 3, 9, 3)
    patch_size: Side = 4
    layer_norm_eps: Epsilon = 1e-12


@dataclass(frozen=True)
class _ResNet:
    hidden_sizes: Widths = (256, 512, 1024, 2048)
    depths: Depths = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"


# --- Sizes: theirs as timm's arguments, and the names that timm has for such sizes

Arguments = Mapping[str, Any]
"""As `Built` names them."""
Named = Mapping[str, Arguments]
"""timm's names, and what each stands for."""


def _share(part: int, whole: int) -> float:
    """The ratio for which `int(whole * ratio)` is `part` again: a rounded quotient can miss it by one."""
    ratio = part / whole
    return ratio if int(whole * ratio) == part else math.nextafter(ratio, math.inf)


def _vit(config: _ViT) -> Arguments:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": _share(config.intermediate_size, config.hidden_size),
        "qkv_bias": config.qkv_bias,
        "reg_tokens": 0,
        "epsilon": config.layer_norm_eps,
    }


def _deit(config: _ViT) -> Arguments:
    # Its token of distillation is one more that the classifier does not see: what timm calls a register.
    return {**_vit(config), "reg_tokens": 1}


def _swin(config: _Swin) -> Arguments:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depths": config.depths,
        "num_heads": config.num_heads,
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
    }


def _convnext(config: _ConvNeXt) -> Arguments:
    return {
        "depths": config.depths,
        "dims": config.hidden_sizes,
        "patch_size": config.patch_size,
        "last_epsilon": config.layer_norm_eps,  # of the others it is always 1e-6
    }


def _resnet(config: _ResNet) -> Arguments:
    narrower = 4 if config.layer_type == "bottleneck" else 1
    return {"layers": config.depths, "channels": tuple(size // narrower for size in config.hidden_sizes)}


_VIT_SIZES = {
    "tiny": (192, 12, 3, 4.0),
    "small": (384, 12, 6, 4.0),
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0),
}
_VITS = (
    "base_patch16_224 base_patch16_384 base_patch32_224 base_patch32_384 base_patch8_224 tiny_patch16_224 tiny_patch16_384 "
    "small_patch16_224 small_patch16_384 small_patch32_224 small_patch32_384 small_patch8_224 large_patch16_224 large_patch16_384 "
    "large_patch32_224 large_patch32_384 large_patch14_224 huge_patch14_224"
)
_SWINS = {
    "tiny_patch4_window7_224": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small_patch4_window7_224": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base_patch4_window7_224": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "base_patch4_window12_384": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large_patch4_window7_224": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "large_patch4_window12_384": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
_CONVNEXTS = {
    "convnext": {
        "tiny": ((3, 3, 9, 3), 96),
        "small": ((3, 3, 27, 3), 96),
        "base": ((3, 3, 27, 3), 128),
        "large": ((3, 3, 27, 3), 192),
        "xlarge": ((3, 3, 27, 3), 256),
    },
    "convnextv2": {
        "tiny": ((3, 3, 9, 3), 96),
        "atto": ((2, 2, 6, 2), 40),
        "femto": ((2, 2, 6, 2), 48),
        "pico": ((2, 2, 6, 2), 64),
        "nano": ((2, 2, 8, 2), 80),
        "base": ((3, 3, 27, 3), 128),
        "large": ((3, 3, 27, 3), 192),
        "huge": ((3, 3, 27, 3), 352),
    },
}
_RESNETS = {
    "bottleneck": {"50": (3, 4, 6, 3), "26": (2, 2, 2, 2), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)},
    "basic": {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)},
}


def _named_vits(_: object) -> Named:
    found = {}
    for name in _VITS.split():
        size, patch, image = name.split("_")
        width, depth, heads, ratio = _VIT_SIZES[size]
        found[f"vit_{name}"] = {
            "img_size": int(image),
            "patch_size": int(patch.removeprefix("patch")),
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": ratio,
            "qkv_bias": True,
            "reg_tokens": 0,
            "epsilon": 1e-6,
        }
    return found


def _named_swins(_: object) -> Named:
    found = {}
    for name, (width, depths, heads) in _SWINS.items():
        _, patch, window, image = name.split("_")
        found[f"swin_{name}"] = {
            "img_size": int(image),
            "patch_size": int(patch.removeprefix("patch")),
            "embed_dim": width,
            "depths": depths,
            "num_heads": heads,
            "window_size": int(window.removeprefix("window")),
            "mlp_ratio": 4.0,
            "qkv_bias": True,
        }
    return found


def _named_convnexts(kind: str) -> Callable[[object], Named]:
    return lambda _: {
        f"{kind}_{name}": {
            "depths": depths,
            "dims": tuple(width * 2**stage for stage in range(4)),
            "patch_size": 4,
            "last_epsilon": 1e-6,
        }
        for name, (depths, width) in _CONVNEXTS[kind].items()
    }


def _named_resnets(config: _ResNet) -> Named:
    sizes = _RESNETS[config.layer_type]
    return {f"resnet{name}": {"layers": depths, "channels": (64, 128, 256, 512)} for name, depths in sizes.items()}


# --- Parameters: timm's names -> theirs, without what theirs begin with. {a}, {b}, {c} are numbers, {A}, {B}, {C} the same less one

# fmt: off
_VIT_NAMES = {
    "cls_token":             "embeddings.cls_token",
    "reg_token":             "embeddings.distillation_token",
    "pos_embed":             "embeddings.position_embeddings",
    "patch_embed.proj":      "embeddings.patch_embeddings.projection",
    "blocks.{a}.norm1":      "encoder.layer.{a}.layernorm_before",
    "blocks.{a}.attn.qkv":  ("encoder.layer.{a}.attention.attention.query",
                             "encoder.layer.{a}.attention.attention.key",
                             "encoder.layer.{a}.attention.attention.value"),
    "blocks.{a}.attn.proj":  "encoder.layer.{a}.attention.output.dense",
    "blocks.{a}.norm2":      "encoder.layer.{a}.layernorm_after",
    "blocks.{a}.mlp.fc1":    "encoder.layer.{a}.intermediate.dense",
    "blocks.{a}.mlp.fc2":    "encoder.layer.{a}.output.dense",
    "norm":                  "layernorm",
}
_SWIN_NAMES = {
    "patch_embed.proj":      "embeddings.patch_embeddings.projection",
    "patch_embed.norm":      "embeddings.norm",
    "layers.{a}.blocks.{b}.norm1":      "encoder.layers.{a}.blocks.{b}.layernorm_before",
    "layers.{a}.blocks.{b}.attn.qkv":  ("encoder.layers.{a}.blocks.{b}.attention.self.query",
                                        "encoder.layers.{a}.blocks.{b}.attention.self.key",
                                        "encoder.layers.{a}.blocks.{b}.attention.self.value"),
    "layers.{a}.blocks.{b}.attn.relative_position_bias_table":
        "encoder.layers.{a}.blocks.{b}.attention.self.relative_position_bias_table",
    "layers.{a}.blocks.{b}.attn.proj":  "encoder.layers.{a}.blocks.{b}.attention.output.dense",
    "layers.{a}.blocks.{b}.norm2":      "encoder.layers.{a}.blocks.{b}.layernorm_after",
    "layers.{a}.blocks.{b}.mlp.fc1":    "encoder.layers.{a}.blocks.{b}.intermediate.dense",
    "layers.{a}.blocks.{b}.mlp.fc2":    "encoder.layers.{a}.blocks.{b}.output.dense",
    # timm's stages begin with what theirs end with.
    "layers.{a}.downsample.norm":       "encoder.layers.{A}.downsample.norm",
    "layers.{a}.downsample.reduction":  "encoder.layers.{A}.downsample.reduction",
    "norm":                  "layernorm",
}
_CONVNEXT_NAMES = {
    "stem.0":                "embeddings.patch_embeddings",
    "stem.1":                "embeddings.layernorm",
    "stages.{a}.downsample.{b}":        "encoder.stages.{a}.downsampling_layer.{b}",
    "stages.{a}.blocks.{b}.conv_dw":    "encoder.stages.{a}.layers.{b}.dwconv",
    "stages.{a}.blocks.{b}.norm":       "encoder.stages.{a}.layers.{b}.layernorm",
    "stages.{a}.blocks.{b}.mlp.fc1":    "encoder.stages.{a}.layers.{b}.pwconv1",
    "stages.{a}.blocks.{b}.mlp.grn":    "encoder.stages.{a}.layers.{b}.grn",
    "stages.{a}.blocks.{b}.mlp.fc2":    "encoder.stages.{a}.layers.{b}.pwconv2",
    "stages.{a}.blocks.{b}.gamma":      "encoder.stages.{a}.layers.{b}.layer_scale_parameter",
    "head.norm":             "layernorm",
}
_RESNET_NAMES = {
    "conv1":                 "embedder.embedder.convolution",
    "bn1":                   "embedder.embedder.normalization",
    "layer{a}.{b}.conv{c}":  "encoder.stages.{A}.layers.{b}.layer.{C}.convolution",
    "layer{a}.{b}.bn{c}":    "encoder.stages.{A}.layers.{b}.layer.{C}.normalization",
    "layer{a}.{b}.downsample.0": "encoder.stages.{A}.layers.{b}.shortcut.convolution",
    "layer{a}.{b}.downsample.1": "encoder.stages.{A}.layers.{b}.shortcut.normalization",
}
# fmt: on


@dataclass(frozen=True)
class Kind:
    """One kind of networks of transformers, by the `model_type` of their config.json."""

    model_type: str
    form: type
    """What is read of config.json."""
    fixed: Mapping[str, Any]
    """What else it must say where it says it."""
    arguments: Callable[[Any], Arguments]
    named: Callable[[Any], Named]
    names: Mapping[str, str | tuple[str, ...]]
    classifier: str = "classifier"
    left_out: str = r"pooler\.dense\.\w+"
    """Tensors that the classifier does not need, as a pattern."""

    def network(self, config: Mapping[str, Any], where: str) -> tuple[str, Built | None]:
        """timm's name of the network that this config.json speaks of, and what it is built with beside that (None: nothing).

        Of the names that timm has for such networks the one that leaves least to say. WeightsError, which begins with `where`, the file,
        and names the field, where timm's network would be another function.
        """
        for key, wanted in self.fixed.items():
            if config.get(key, wanted) != wanted:
                raise WeightsError(
                    f"{where}: {key} is {config[key]!r}; of networks of type {self.model_type!r} only {wanted!r} can be read."
                )
        asked = records.convert(config, self.form, where, WeightsError)
        self._possible(asked, where)
        wanted = self.arguments(asked)
        others = {
            name: {key: value for key, value in wanted.items() if value != stands_for[key]}
            for name, stands_for in self.named(asked).items()
        }
        name = min(others, key=lambda one: len(others[one]))
        return name, records.convert(others[name], Built, where, WeightsError) if others[name] else None

    def _possible(self, asked: Any, where: str) -> None:
        """Whether sizes fit together, as far as timm would not say so by their own names."""
        depths, widths = getattr(asked, "depths", ()), getattr(asked, "hidden_sizes", getattr(asked, "num_heads", ()))
        if len(depths) != len(widths):
            raise WeightsError(f"{where}: depths speaks of {len(depths)} stages, and the sizes of {len(widths)}.")
        if widths and self.model_type != "swin" and len(widths) != 4:
            raise WeightsError(f"{where}: depths speaks of {len(depths)} stages; timm's networks of this kind have 4.")
        if getattr(asked, "layer_type", "") == "bottleneck" and any(width % 4 for width in widths):
            raise WeightsError(f"{where}: hidden_sizes {list(widths)} are no multiples of 4.")
        if hasattr(asked, "image_size"):
            InputSpec(size=asked.image_size).within_limits(f"{where}: image_size", WeightsError)
            if asked.image_size > asked.patch_size * MOST_PATCHES:
                raise WeightsError(
                    f"{where}: image_size {asked.image_size} is more than {MOST_PATCHES} patches of {asked.patch_size} px (patch_size)."
                )

    def their_names(self, timm: str) -> tuple[str, ...]:
        """What the network's parameter of this name is called there."""
        for pattern, theirs in self.names.items():
            found = _pattern(pattern).fullmatch(timm)
            if found is not None:
                numbers = {key: int(value) for key, value in found.groupdict().items() if key in "abc"}
                numbers |= {key.upper(): value - 1 for key, value in numbers.items()}
                every = (theirs,) if isinstance(theirs, str) else theirs
                return tuple(f"{self.model_type}.{one.format(**numbers)}{found['part'] or ''}" for one in every)
        return (f"timm's {timm}",)  # which no file has

    def canonical(self, name: str) -> str:
        """A name as a file spells it -> as `their_names` does: a network that was saved without a classifier has nothing before them."""
        own = (f"{self.model_type}.", "classifier.", "cls_classifier.", "distillation_classifier.")
        return name if name.startswith(own) else f"{self.model_type}.{name}"

    def needs(self, name: str) -> bool:
        """Whether this tensor, by its canonical name, is one that the network is made of."""
        return re.fullmatch(rf"{self.model_type}\.({self.left_out})|{_TWO_HEADS}", name) is None


_TWO_HEADS = r"(cls|distillation)_classifier\.\w+"


def two_heads(names: Iterable[str]) -> bool:
    """Whether these tensors hold DeiT's two classifiers, whose mean is the answer: not one linear layer."""
    return any(re.fullmatch(_TWO_HEADS, name) for name in names)


@functools.lru_cache
def _pattern(template: str) -> re.Pattern[str]:
    whole = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template))
    return re.compile(rf"{whole}(?P<part>\.(weight|bias|running_mean|running_var|num_batches_tracked))?")


_IMAGES = {"num_channels": 3}
_GELU = {**_IMAGES, "hidden_act": "gelu"}
_KINDS: Sequence[Kind] = (
    Kind("vit", _ViT, _GELU, _vit, _named_vits, _VIT_NAMES),
    Kind("deit", _ViT, _GELU, _deit, _named_vits, _VIT_NAMES),
    Kind(
        "swin",
        _Swin,
        {**_GELU, "use_absolute_embeddings": False, "layer_norm_eps": 1e-5},
        _swin,
        _named_swins,
        _SWIN_NAMES,
        left_out=r".*\.relative_position_index",
    ),
    Kind("convnext", _ConvNeXt, _GELU, _convnext, _named_convnexts("convnext"), _CONVNEXT_NAMES),
    Kind("convnextv2", _ConvNeXt, _GELU, _convnext, _named_convnexts("convnextv2"), _CONVNEXT_NAMES),
    Kind(
        "resnet",
        _ResNet,
        {
            **_IMAGES,
            "hidden_act": "relu",
            "embedding_size": 64,
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        },
        _resnet,
        _named_resnets,
        _RESNET_NAMES,
        classifier="classifier.1",
    ),
)
KINDS: Mapping[str, Kind] = {kind.model_type: kind for kind in _KINDS}
