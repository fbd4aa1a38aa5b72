"""transformers' own image classifiers as timm's networks: the logits of its own code, and nothing read that would be another function."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import bigtransfer
from bigtransfer import catalog, libraries, weights
from bigtransfer.catalog import Backbone, Built, InputSpec
from bigtransfer.data.images import prepare
from bigtransfer.errors import BitError, WeightsError
from bigtransfer.predictor import Predictor
from bigtransfer.weights import classifiers, configs
from tests.data_makers import class_folders

pytest.importorskip("timm")
transformers: Any = pytest.importorskip("transformers")

CLASSES = ("ant", "bee", "crow")
VIT = {"image_size": 32, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 37}
STAGES = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
SWIN = {"image_size": 64, "depths": [2, 1], "num_heads": [2, 3], "embed_dim": 12, "window_size": 4, "mlp_ratio": 1.5}

BACKBONE = Backbone(
    library="timm",
    name="test_vit",
    version="1",
    taps=("0",),
    stages=(8, 8),
    features=8,
    parameters=100,
    products=100,
    activations=100,
    size=32,
    any_size=False,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    averaged=False,
    batch_norm=False,
    patches=True,
)

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", VIT),
    "vit without bias": ("ViT", {**VIT, "qkv_bias": False, "layer_norm_eps": 1e-3, "patch_size": 8}),
    "deit": ("DeiT", VIT),
    "swin": ("Swin", SWIN),
    "convnext": ("ConvNext", {**STAGES, "layer_norm_eps": 1e-3, "layer_scale_init_value": 0.5}),
    "convnextv2": ("ConvNextV2", STAGES),
    "resnet": ("ResNet", {**STAGES, "embedding_size": 64}),
    "basic resnet": ("ResNet", {**STAGES, "embedding_size": 64, "layer_type": "basic"}),
}


@torch.no_grad()
def theirs(name: str, part: str = "ForImageClassification") -> Any:
    """A network of made-up sizes whose numbers hide nothing: norms and statistics are not those of a beginning."""
    kind, sizes = SMALL[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, id2label=dict(enumerate(CLASSES)))
    network = getattr(transformers, f"{kind}{part}")(config).eval()
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            near = 1.0 if key.endswith(("norm.weight", "normalization.weight", "var")) else 0.0
            tensor.copy_(near + torch.empty_like(tensor).uniform_(-0.3, 0.3))
    return network


def saved(folder: Path, name: str, part: str = "ForImageClassification", **changes: object) -> Path:
    """As its own code saves it; what is changed in config.json, None: left out."""
    theirs(name, part).save_pretrained(folder)
    side = SMALL[name][1].get("image_size", 64)
    transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: one for key, one in written.items() if one is not None}))
    return folder


def rewritten(folder: Path, change: Any) -> Path:
    """With the tensors that `change` makes of them."""
    state = change(safetensors.torch.load_file(folder / "model.safetensors"))
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def images(network: weights.Network) -> Tensor:
    size = network.architecture.fixed_size or 64
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_the_logits_of_their_own_code(name: str, tmp_path: Path) -> None:
    own = weights.load(saved(tmp_path, name))
    assert own.card.class_names == CLASSES and own.card.input.size == SMALL[name][1].get("image_size", 64)
    x = images(own)
    torch.testing.assert_close(own(x), theirs(name)(x).logits, rtol=1e-4, atol=1e-5)
    weights.save(tmp_path / "ours.safetensors", own)
    read = weights.load(tmp_path / "ours.safetensors")
    assert torch.equal(read(x), own(x)) and read.card == own.card
    assert weights.differing(tmp_path / "ours.safetensors", own) == []
    if own.architecture.backbone.built is not None:  # type: ignore[union-attr]
        with pytest.raises(WeightsError, match="by its name otherwise than this network is built"):
            weights.export(tmp_path / "timm.safetensors", own, "timm")
    own, other, x = own.double(), theirs(name).double(), x.double()
    expected = other(x).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(own(x), expected, rtol=1e-10, atol=1e-12)


SMALLEST = {
    "vit": "vit_tiny_patch16_224",
    "swin": "swin_tiny_patch4_window7_224",
    "convnext": "convnext_tiny",
    "convnextv2": "convnextv2_atto",
    "resnet": "resnet18",
}


@torch.no_grad()
@pytest.mark.parametrize(
    "kind", [*SMALLEST, *(pytest.param(f"all of {kind}", marks=pytest.mark.slow) for kind in SMALLEST)]
)
def test_timms_names_stand_for_the_sizes_of_the_table(kind: str) -> None:
    one = classifiers.KINDS[kind.removeprefix("all of ")]
    forms = (
        [one.form(layer_type=layer) for layer in ("basic", "bottleneck")]
        if one.form is classifiers._ResNet
        else [one.form()]
    )
    table = {name: stands_for for form in forms for name, stands_for in one.named(form).items()}
    for name, stands_for in table.items() if kind.startswith("all") else [(SMALLEST[kind], table[SMALLEST[kind]])]:
        told = Built(**{**stands_for, "epsilon": None, "last_epsilon": None})
        assert libraries.shapes("timm", name) == libraries.shapes("timm", name, told), name
        with torch.device("meta"):
            plain: Any = libraries._registered("timm", name)()
        norms = [module for module in plain.modules() if isinstance(module, nn.LayerNorm)]
        heads = [module.num_heads for module in plain.modules() if hasattr(module, "num_heads")]
        assert {norm.eps for norm in norms} <= {stands_for.get("epsilon", stands_for.get("last_epsilon", 1e-5))}
        wanted = stands_for.get("num_heads", ())
        assert set(heads) == ({wanted} if isinstance(wanted, int) else set(wanted)), name


@pytest.mark.parametrize(
    ("config", "name", "built"),
    [
        ({"model_type": "vit"}, "vit_base_patch16_224", Built(epsilon=1e-12)),
        ({"model_type": "vit", "image_size": 384, "layer_norm_eps": 1e-6}, "vit_base_patch16_384", None),
        (
            {"model_type": "vit", "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
            "vit_tiny_patch16_224",
            Built(epsilon=1e-12),
        ),
        ({"model_type": "deit"}, "vit_base_patch16_224", Built(epsilon=1e-12, reg_tokens=1)),
        ({"model_type": "resnet"}, "resnet50", None),
        (
            {
                "model_type": "resnet",
                "layer_type": "basic",
                "depths": [2, 2, 2, 2],
                "hidden_sizes": [64, 128, 256, 512],
            },
            "resnet18",
            None,
        ),
        ({"model_type": "convnext"}, "convnext_tiny", Built(last_epsilon=1e-12)),
        (
            {"model_type": "convnextv2", "depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]},
            "convnextv2_atto",
            Built(last_epsilon=1e-12),
        ),
        ({"model_type": "swin"}, "swin_tiny_patch4_window7_224", None),
        ({"model_type": "swin", "depths": [2, 2, 18, 2]}, "swin_small_patch4_window7_224", None),
    ],
)
def test_published_sizes_have_timms_names(
    config: dict[str, Any], name: str, built: Built | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    described = configs.read(tmp_path)
    assert (described.timm, described.built) == (name, built)


REFUSED = [
    ("vit", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ("vit", {"num_channels": 1}, "num_channels is 1"),
    ("vit", {"image_size": [32, 32]}, "image_size: expected int"),
    ("vit", {"image_size": 1024, "patch_size": 4}, "image_size 1024 is more than 128 patches of 4 px"),
    ("vit", {"image_size": 4096, "patch_size": 64}, "image_size asks for an input size of 4,096 px"),
    ("vit", {"num_hidden_layers": 10**6}, "num_hidden_layers: expected int <= 200"),
    ("vit", {"layer_norm_eps": -1.0}, "layer_norm_eps"),
    ("vit", {"qkv_bias": "yes"}, "qkv_bias"),
    ("vit", {"problem_type": "regression"}, "problem_type"),
    ("vit", {"num_attention_heads": 5}, "timm:vit_base_patch16_224"),
    ("swin", {"use_absolute_embeddings": True}, "use_absolute_embeddings is True"),
    ("swin", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
    ("swin", {"num_heads": [2]}, "depths speaks of 2 stages, and the sizes of 1"),
    ("convnext", {"depths": [1, 1], "hidden_sizes": [8, 16]}, "networks of this kind have 4"),
    ("resnet", {"embedding_size": 32}, "embedding_size is 32"),
    ("resnet", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
    ("resnet", {"downsample_in_first_stage": True}, "downsample_in_first_stage is True"),
    ("resnet", {"layer_type": "other"}, "layer_type"),
    ("resnet", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("resnet", {"hidden_sizes": [8, 16, 24, 34]}, "no multiples of 4"),
    ("vit", {"hidden_size": 8000, "num_attention_heads": 1}, "numbers, and model.safetensors has"),
    ("vit", {"model_type": "vit_mae"}, "of type 'vit_mae'. Read are .*'convnextv2'.*timm:NAME@FILE"),
]


@pytest.mark.parametrize(("name", "changes", "told"), REFUSED, ids=[told for _, _, told in REFUSED])
def test_what_timms_network_would_not_be_is_refused(
    name: str, changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    saved(tmp_path, name, **changes)
    for look in (weights.describe, weights.load):
        with pytest.raises(BitError, match=told) as caught:
            look(tmp_path)
        assert str(tmp_path) in str(caught.value)


FIXED = {
    "swin": ("use_absolute_embeddings", "layer_norm_eps"),
    "resnet": ("embedding_size", "downsample_in_first_stage", "downsample_in_bottleneck"),
}
"""What beside pixels and activation timm's networks of a kind have one value of."""
NUMBERS = (0, -1, 10**9, 10**30, 1.5, "7", True, None, [], {})


@pytest.mark.parametrize("kind", classifiers.KINDS)
def test_every_size_has_its_bounds_and_its_name(kind: str, tmp_path: Path) -> None:
    """None is told by what timm makes of it, or later, or by what it would do to memory."""

    def refused(**said: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **said}))
        with pytest.raises(WeightsError) as caught:
            configs.read(tmp_path)
        return str(caught.value)

    form = classifiers.KINDS[kind].form
    for field in dataclasses.fields(form):
        if field.name == "layer_type":
            continue
        wrong: list[object] = list(NUMBERS)
        if field.type.startswith("bool"):
            wrong = [one for one in NUMBERS if one is not True]
        elif isinstance(field.default, float):
            wrong = [one for one in NUMBERS if one not in (0, 1.5) or (one == 0 and field.name == "mlp_ratio")]
        elif isinstance(field.default, tuple):
            wrong += [[1] * 17, *([*field.default[1:], one] for one in NUMBERS)]
        for one in wrong:
            told = refused(**{field.name: one})
            assert told.startswith(f"{tmp_path}/config.json: {field.name}"), (field.name, one, told)
    for key in ("num_channels", "hidden_act", *FIXED.get(kind, ())):
        assert f"{key} is 'x'; of networks of type '{kind}' only " in refused(**{key: "x"})


def test_a_ratio_gives_its_width_again() -> None:
    """timm takes the hidden width of a ViT as a ratio, and cuts off what is no whole number."""
    rng = np.random.default_rng(0)
    wholes, parts = rng.integers(1, 2**16, 20_000).tolist(), rng.integers(1, 2**16, 20_000).tolist()
    rounded = 0
    for part, whole in zip(parts, wholes, strict=True):
        ratio = classifiers._share(part, whole)
        assert int(whole * ratio) == part and math.isclose(ratio, part / whole)
        rounded += int(whole * (part / whole)) != part
    assert rounded > 100


def test_a_parameter_without_a_name_of_theirs_is_missed_by_timms() -> None:
    assert classifiers.KINDS["vit"].their_names("fc_norm.weight") == ("timm's fc_norm.weight",)


KEY = "vit.encoder.layer.1.attention.attention.key.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: {name: one for name, one in state.items() if name != KEY}, f"1 tensor missing: {KEY}"),
        (lambda state: state | {"vit.encoder.layer.1.more": torch.zeros(1)}, "no use for: vit.encoder.layer.1.more"),
        (lambda state: state | {KEY: torch.zeros(72, 24)}, rf"{KEY} is \(72, 24\) and should be \(24, 24\)"),
        (lambda state: state | {KEY.removeprefix("vit."): torch.zeros(24, 24)}, "are the same tensor"),
        (lambda state: state | {"vit.embeddings.mask_token": torch.zeros(24)}, "no use for: vit.embeddings.mask_token"),
    ],
)
def test_every_tensor_is_used_once(change: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=told) as caught:
        weights.load(rewritten(saved(tmp_path, "vit"), change))
    assert "model.safetensors" in str(caught.value)


@torch.no_grad()
def test_networks_without_a_linear_classifier(tmp_path: Path) -> None:
    """Below a pooler or two heads: what a classifier of our own sees is the class token."""
    for name, part in (("vit", "Model"), ("deit", "ForImageClassificationWithTeacher")):
        own = weights.load(saved(tmp_path / name, name, part))
        x, other = images(own), theirs(name, part)
        body = other if part == "Model" else other.deit
        torch.testing.assert_close(own.features(x), body(x).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
        assert own.num_classes == 0 and ("without its classifier" in own.card.source) == (name == "deit")
    with pytest.raises(WeightsError, match="distillation_classifier"):
        weights.load(rewritten(tmp_path / "deit", lambda s: s | {"distillation_classifier.x.weight": torch.zeros(1)}))


@torch.no_grad()
def test_a_buffer_that_older_files_hold(tmp_path: Path) -> None:
    index = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    folder = rewritten(saved(tmp_path, "swin"), lambda state: state | {index: torch.zeros(16, 16, dtype=torch.int64)})
    own = weights.load(folder)
    torch.testing.assert_close(own(images(own)), theirs("swin")(images(own)).logits, rtol=1e-4, atol=1e-5)


def test_what_config_says_of_the_classes(tmp_path: Path) -> None:
    folder = saved(tmp_path, "resnet", id2label=None, problem_type="multi_label_classification")
    card = weights.describe(folder)
    assert card.class_names is None and card.multi_label and card.num_classes == 3
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"id2label": {"0": "a", "1": "b"}}))
    assert weights.describe(folder).class_names is None, "two names of three classes"


PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 48, "width": 48}}, InputSpec(size=48)),
    (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 48}, "crop_pct": 0.75},
        InputSpec(size=48, mode="aspect", crop_pct=0.75, interpolation="bicubic"),
    ),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, InputSpec(size=384, interpolation="bicubic")),
    (
        "ViTImageProcessor",
        {"size": {"height": 40, "width": 40}, "resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.2] * 3},
        InputSpec(size=40, interpolation="bicubic"),
    ),
    ("ViTImageProcessor", {"size": {"height": 40, "width": 40}, "do_normalize": False}, InputSpec(size=40)),
]


@pytest.mark.parametrize(("kind", "settings", "expected"), PROCESSORS)
def test_images_are_prepared_as_theirs(
    kind: str, settings: dict[str, Any], expected: InputSpec, tmp_path: Path
) -> None:
    from PIL import Image

    processor = getattr(transformers, f"{kind}Pil")(**settings)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | {"image_processor_type": kind}))
    described = configs.read(tmp_path)
    spec = described.input
    assert spec is not None and (spec.size, spec.mode, spec.interpolation) == (
        expected.size,
        expected.mode,
        expected.interpolation,
    )
    assert math.isclose(spec.crop_pct, expected.crop_pct) and spec.resized == expected.resized
    image = Image.fromarray(np.linspace(0, 255, 70 * 100 * 3).reshape(70, 100, 3).astype(np.uint8))
    (pixels,) = processor(image, return_tensors="np")["pixel_values"]
    ours = (
        np.asarray(prepare(np.asarray(image), dataclasses.replace(spec, decoder="exact")), dtype=np.float64).transpose(
            2, 0, 1
        )
        / 255
    )
    mean, std = (np.array(one).reshape(3, 1, 1) for one in (described.mean, described.std))
    level = 0 if spec.mode == "square" else 1 / 255 / std.min()  # the part that is cut out is resized by itself
    assert np.abs((ours - mean) / std - pixels).max() < level + 1e-5


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, InputSpec(size=224)),
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3, "crop_pct": None},
            InputSpec(size=224, mode="aspect", crop_pct=0.875, interpolation="bicubic"),
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "resample": 3},
            InputSpec(size=224, mode="aspect", crop_pct=0.875, interpolation="bicubic"),
        ),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, InputSpec(size=224)),
        ({"image_processor_type": "DeiTImageProcessor"}, InputSpec(size=224, mode="aspect", crop_pct=0.875, interpolation="bicubic")),
    ],
)  # fmt: skip
def test_files_of_older_versions(stored: dict[str, Any], expected: InputSpec, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    assert configs.read(tmp_path).input == expected


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"resample": 0}, "resample"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 0.5}, "rescale_factor"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
        ({"crop_pct": 2.0}, "crop_pct"),
        ({"size": "224"}, "size"),
    ],
)
def test_images_that_cannot_be_prepared_so(stored: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 224, **stored}))
    with pytest.raises(WeightsError, match=rf"^{tmp_path}/preprocessor_config\.json: {told}"):
        configs.read(tmp_path)


@pytest.mark.parametrize(
    ("built", "told"),
    [
        ({"depth": 10**6}, r"built\.depth"),
        ({"embed_dim": 10**9}, r"built\.embed_dim"),
        ({"depth": "2"}, r"built\.depth"),
        ({"depth": 3}, "tensors missing"),
        ({"layers": [1, 1, 1, 1]}, "layers"),
        ({"epsilon": 2.0}, r"built\.epsilon"),
    ],
)
def test_a_model_file_asks_for_sizes_alone(built: dict[str, Any], told: str, tmp_path: Path) -> None:
    network = weights.load(saved(tmp_path / "theirs", "vit"))
    card = json.loads(network.card.to_json())
    card["architecture"]["backbone"]["built"] |= built
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"bigtransfer": json.dumps(card)})
    with pytest.raises(BitError, match=told) as caught:
        weights.load(tmp_path / "model.safetensors")
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("field", [one.name for one in dataclasses.fields(Built)])
def test_every_size_of_a_model_file_has_bounds(field: str) -> None:
    """Above what a network could be, at or below nothing, and of another type: told by the field's name, before anything is built."""
    card = catalog.ModelCard.bare(catalog.Architecture(backbone=BACKBONE), 3)
    record = json.loads(card.to_json())
    several = field in ("depths", "dims", "layers", "channels")
    wrong: list[object] = [10**9, 10**30, -1, "2", {}, 0, 1.5]
    if field in ("reg_tokens", "epsilon", "last_epsilon"):
        wrong.remove(0)  # none is some
    if field == "mlp_ratio":
        wrong.remove(1.5)
    if several or field == "num_heads":
        wrong += [[], [1] * 17, *([1, one] for one in wrong)]
    wrong += [] if field == "qkv_bias" else [True]
    for one in wrong:
        record["architecture"]["backbone"]["built"] = {field: one}
        with pytest.raises(WeightsError, match=rf"^card: architecture\.backbone\.built\.{field}"):
            catalog.ModelCard.from_json(json.dumps(record), "card")
    record["architecture"]["backbone"]["built"] = {"pretrained": True}
    assert catalog.ModelCard.from_json(json.dumps(record), "card").architecture.backbone.built == Built()  # type: ignore[union-attr]


def test_a_fine_tuning(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    class_folders(folder, {"a": 8, "b": 8})
    theirs_ = saved(tmp_path / "theirs", "convnext")
    done = bigtransfer.finetune(folder, model=str(theirs_), out=tmp_path / "run", steps=2, batch_size=4, crop=32)
    after = weights.load(done.model)
    assert cast(Backbone, after.architecture.backbone).built == Built(
        depths=(1, 2, 1, 1), dims=(8, 16, 24, 32), last_epsilon=1e-3
    )
    assert after.card.class_names == ("a", "b")
    (found,) = Predictor.load(done.model).predict([next(folder.rglob("*.*"))])
    assert found.top(1)[0][0] in ("a", "b")
