"""Networks of timm's: transformers' own classifiers, timm's folders, and model files whose card names one."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from bigtransfer import libraries
from bigtransfer.catalog import Architecture, Backbone, InputSpec, ModelCard
from bigtransfer.weights import classifiers, names

from .. import jsons
from ..cases import Case
from ..models import CLASSES
from .tensors import Header, laid_out, write

_STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
_CONFIGS: dict[str, dict[str, Any]] = {
    kind: {"model_type": kind, "num_channels": 3, "id2label": {str(i): name for i, name in enumerate(CLASSES)}, **sizes}
    for kind, sizes in {
        "vit": {
            "image_size": 32,
            "patch_size": 16,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "qkv_bias": True,
            "num_attention_heads": 3,
            "intermediate_size": 37,
            "layer_norm_eps": 1e-12,
            "hidden_act": "gelu",
        },
        "swin": {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 12,
            "depths": [1, 1],
            "num_heads": [2, 3],
            "window_size": 4,
            "mlp_ratio": 1.5,
            "layer_norm_eps": 1e-5,
            "hidden_act": "gelu",
        },
        "convnext": {**_STAGES, "patch_size": 4, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
        "convnextv2": {**_STAGES, "patch_size": 4, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
        "resnet": {**_STAGES, "layer_type": "basic", "embedding_size": 64, "hidden_act": "relu"},
    }.items()
}
_CONFIGS["deit"] = {**_CONFIGS["vit"], "model_type": "deit"}
_SIZES = (0, 1, 2, 3, 5, 7, 31, 33, 64, 127, 200, 201, 224, 1000, 4096, 2**14, 2**16, 2**31, 2**63, 10**30, -1, -16)
_ODD = (None, True, False, "24", "", 1.5, 0.0, 1e-300, 1e300, float("nan"), float("inf"), {}, [], [24], [[1]], [None])
_PROCESSORS = ("ViTImageProcessor", "DeiTFeatureExtractor", "ConvNextImageProcessor", "BitImageProcessor", "", "x")
_TIMM = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_mambaout")
"""Small ones of timm's own, for tests."""


@functools.cache
def _theirs(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a whole classifier of transformers'."""
    own = classifiers.KINDS[kind]
    name, built = own.network(_CONFIGS[kind], kind)
    backbone, _ = libraries.describe("timm", name, built)
    layout = names.transformers(backbone, own)
    found = {}
    for ours, shape in names.shapes(Architecture(backbone=backbone), len(CLASSES)).items():
        every = layout.their_names(ours)
        for theirs in every:
            grn = ".grn." in ours  # three sides of one there
            found[theirs] = (1, 1, 1, *shape) if grn else (shape[0] // len(every), *shape[1:]) if shape else ()
    return found


@functools.cache
def _timms(name: str) -> tuple[Backbone, InputSpec, dict[str, tuple[int, ...]]]:
    """A network of timm's, how it sees images, and its tensors by timm's names."""
    backbone, known = libraries.describe("timm", name)
    layout = names.of_library(backbone, known.classifier, known.convolution)
    shapes = names.shapes(Architecture(backbone=backbone), len(CLASSES))
    return backbone, known.input, {layout.their_name(ours): shape for ours, shape in shapes.items()}


def _written(rng: Random, folder: Path, shapes: Mapping[str, tuple[int, ...]], files: Mapping[str, bytes]) -> Case:
    """The folder; its tensors are now and then others."""
    target = folder / "model"
    target.mkdir()
    head, size = laid_out(shapes)
    if rng.random() < 0.25:
        _spoil(rng, head)
    write(target / "model.safetensors", head, size)
    for name, content in files.items():
        (target / name).write_bytes(content)
    return Case(target, {"used": rng.random() < 0.2})


def _spoil(rng: Random, head: Header) -> None:
    """A tensor less, under another name, or of another shape of as many numbers."""
    name = rng.choice([one for one in head if one != "__metadata__"])
    entry = head.pop(name)
    match rng.randrange(4):
        case 0:
            head[rng.choice((f"module.{name}", f"vit.{name}", name.partition(".")[2] or "x", *jsons.TEXTS[:8]))] = entry
        case 1:
            head[name] = entry | {"shape": entry["shape"][::-1]}
        case 2:
            head[name] = entry | {"shape": [1, *entry["shape"]]}


def configs(rng: Random, folder: Path) -> Case:
    """config.json and preprocessor_config.json of transformers' classifiers: any field anything, other encodings."""
    kind = rng.choice(list(_CONFIGS))
    size = rng.choice(({"height": 32, "width": 32}, {"shortest_edge": 40}, 32))
    stored = {"image_processor_type": rng.choice(_PROCESSORS), "size": size, "image_mean": [0.4] * 3, "resample": 3}
    files = {}
    for name, record in (("config.json", _CONFIGS[kind]), ("preprocessor_config.json", stored)):
        files[name] = json.dumps(record).encode()
        if rng.random() < 0.7:
            files[name] = jsons.text(rng, jsons.spoiled(rng, record, most=3))
    if rng.random() < 0.2:
        del files["preprocessor_config.json"]
    return _written(rng, folder, _theirs(kind), files)


def sizes(rng: Random, folder: Path) -> Case:
    """Sizes out of bounds, that do not fit together, or of another network than the tensors are of."""
    kind = rng.choice(list(_CONFIGS))
    record = dict(_CONFIGS[kind])
    for _ in range(rng.choice((1, 1, 2, 3))):
        field = rng.choice([one for one in record if one not in ("model_type", "id2label")])
        record[field] = rng.choice(_SIZES) if rng.random() < 0.7 else rng.choice(_ODD)
        if isinstance(_CONFIGS[kind][field], list) and rng.random() < 0.8:
            record[field] = [rng.choice(_SIZES[:14]) for _ in range(rng.choice((0, 1, 2, 4, 4, 16, 17, 1000)))]
    if rng.random() < 0.1:
        record["model_type"] = rng.choice((*_CONFIGS, "bit", "vit_mae", "", None, 3))
    return _written(rng, folder, _theirs(kind), {"config.json": json.dumps(record).encode()})


def timm(rng: Random, folder: Path) -> Case:
    """timm's folders, of a network that is not BiT's: other names, sizes and values of pretrained_cfg."""
    name = rng.choice(_TIMM)
    _, spec, shapes = _timms(name)
    cfg = {
        "input_size": [3, spec.size, spec.size],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "crop_mode": "center",
        "license": "mit",
        "first_conv": "x",
    }
    record: dict[str, Any] = {"architecture": name, "num_classes": 3, "num_features": 64, "global_pool": "avg"}
    record |= {"label_names": list(CLASSES), "pretrained_cfg": cfg, "model_args": {}}
    if rng.random() < 0.3:
        record["architecture"] = rng.choice(
            (
                *_TIMM,
                "resnet50",
                "vit_giant_patch14_dinov2",
                "resnetv2_50x1_bit",
                "../x",
                "",
                "timm",
                "x" * 1000,
                "test_vit.r160_in1k",
            )
        )
    for inner, keys in ((record, list(record)), (cfg, list(cfg))):
        if rng.random() < 0.6:
            inner[rng.choice(keys)] = rng.choice((*_SIZES, *_ODD, [3, 2**14, 2**14], [1, 8, 8], *jsons.TEXTS[:12]))
    if rng.random() < 0.2:
        record["model_args"] = rng.choice(
            ({"img_size": 10**6}, {"depth": 10**6}, {"x": jsons.value(rng)}, 3, "x", {"img_size": 64})
        )
    data = json.dumps(record).encode() if rng.random() < 0.7 else jsons.text(rng, jsons.spoiled(rng, record, most=3))
    return _written(rng, folder, shapes, {"config.json": data})


@functools.cache
def _cards() -> tuple[tuple[ModelCard, dict[str, tuple[int, ...]]], ...]:
    """Cards of networks of other libraries with the tensors that they speak of: by timm's name alone, and with sizes of their own."""
    found = []
    own = [_timms(name)[0] for name in _TIMM[:2]]
    for kind in ("vit", "swin", "resnet"):
        name, built = classifiers.KINDS[kind].network(_CONFIGS[kind], kind)
        own.append(libraries.describe("timm", name, built)[0])
    for backbone in own:
        architecture = Architecture(backbone=backbone)
        card = ModelCard(
            name="x",
            architecture=architecture,
            num_classes=len(CLASSES),
            input=InputSpec(size=backbone.size),
            class_names=CLASSES,
        )
        found.append((card, dict(names.shapes(architecture, len(CLASSES)))))
    return tuple(found)


def cards(rng: Random, folder: Path) -> Case:
    """Model files: what the card says of the backbone, and of the sizes that it is built with, is something else."""
    card, shapes = rng.choice(_cards())
    record = json.loads(card.to_json())
    backbone = record["architecture"]["backbone"]
    for _ in range(rng.choice((1, 1, 2))):
        inner = rng.choice((backbone, backbone, backbone.get("built") or backbone))
        if not isinstance(inner, dict):  # by the turn before
            continue
        field = rng.choice(list(inner))
        if isinstance(inner[field], list) and rng.random() < 0.6:
            entries = (*_SIZES, "layer1", "4", "x", "__class__")
            inner[field] = [rng.choice(entries) for _ in range(rng.choice((0, 1, 4, 20)))]
        else:
            inner[field] = rng.choice((*_SIZES, *_ODD)) if rng.random() < 0.8 else jsons.value(rng)
    if rng.random() < 0.3:
        sizes_ = (
            "img_size",
            "patch_size",
            "depth",
            "depths",
            "embed_dim",
            "num_heads",
            "window_size",
            "reg_tokens",
            "x",
        )
        built = backbone.get("built")
        more = {rng.choice(sizes_): rng.choice((*_SIZES, [1, 200, 200, 200], [200] * 16, "1"))}
        backbone["built"] = {**(built if isinstance(built, dict) else {}), **more}
    if rng.random() < 0.15:
        backbone["name"] = rng.choice(
            ("vit_giant_patch14_dinov2", "resnet50", "os.system", "x" * 200, "../x", "resnetv2_50x1_bit")
        )
    head, size = laid_out(shapes)
    if rng.random() < 0.1:
        _spoil(rng, head)
    head["__metadata__"] = {"bigtransfer": json.dumps(record)}
    return Case(write(folder / "model.safetensors", head, size), {"used": rng.random() < 0.3})


GENERATORS = {f"foreign.{one.__name__}": one for one in (configs, sizes, timm, cards)}
