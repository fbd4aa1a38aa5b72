"""Networks of other libraries as backbones: the same numbers as theirs, what a model file may ask for, and a fine-tuning of each kind."""

import copy
import dataclasses
import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import bigtransfer
from bigtransfer import catalog, cli, libraries, model, weights
from bigtransfer.catalog import Architecture, Backbone, ModelCard, Readout
from bigtransfer.errors import BitError, ConfigError, DownloadError, WeightsError
from bigtransfer.predictor import Predictor
from tests.data_makers import class_folders

timm: Any = pytest.importorskip("timm")

TINY = ("test_resnet", "test_vit", "test_convnext")
"""timm's own networks for tests: BatchNorm; tokens and a size that is fixed; patches, and maps with LayerNorm."""


@torch.no_grad()
def theirs(name: str, seed: int = 0, classes: int = 5) -> nn.Module:
    """A network of timm's whose numbers hide nothing: norms are not at the identity, statistics not those of a beginning."""
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=classes).eval()
    for key, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim == 1 and tensor.is_floating_point():
            low, high = (-0.3, 0.3) if key.endswith(("bias", "mean")) else (0.5, 1.5)
            nn.init.uniform_(tensor, low, high)
    return network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights in timm's own form."""
    folder = tmp_path_factory.mktemp("timm")
    for name in TINY:
        safetensors.torch.save_file(theirs(name).state_dict(), folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in TINY}


def test_negative_variances_are_refused(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of which the answers would be no numbers, or, where they are small, numbers like any others."""
    network = weights.load(f"timm:test_resnet@{files['test_resnet']}")
    name = next(name for name in network.state_dict() if name.endswith("running_var"))
    network.state_dict()[name][0] = -1e-6
    weights.save(file := tmp_path / "m.safetensors", network)
    for command in (["info", str(file)], ["convert", str(file), str(tmp_path / "other.onnx"), "--to", "onnx"]):
        assert cli.main(command) == 2
        assert f"{file} holds negative variances, in {name}: it is damaged." in capsys.readouterr().err


def normalized(pixels: Tensor, name: str) -> Tensor:
    """What timm gives its network of pixels from 0 to 255."""
    config = timm.data.resolve_data_config({}, model=timm.create_model(name))
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (pixels / 255 - mean) / std


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_the_same_numbers_as_the_librarys(name: str, files: dict[str, Path]) -> None:
    own, other = weights.load(f"timm:{name}@{files[name]}"), cast(Any, theirs(name))
    size = own.card.input.size
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(1)).float()
    x, y = pixels / 127.5 - 1, normalized(pixels, name)
    expected = other(y)
    assert expected.std() > 0.05, "the answers differ"
    torch.testing.assert_close(own(x), expected, rtol=1e-4, atol=1e-5)
    last, maps = other.forward_intermediates(y)
    torch.testing.assert_close(own.features(x), other.forward_head(last, pre_logits=True), rtol=1e-4, atol=1e-5)
    stages = own.architecture.stages
    backbone = cast(Backbone, own.architecture.backbone)
    every = Readout(blocks=tuple(range(len(stages))))
    seen = model.joined(own, every).features(x)
    by_hand = []
    for tap in backbone.taps:
        by_hand += [maps[int(tap)].mean((2, 3)), maps[int(tap)].amax((2, 3))]
    end = last[:, other.num_prefix_tokens :].transpose(1, 2) if last.ndim == 3 else last.flatten(2)
    by_hand += [other.forward_head(last, pre_logits=True), end.amax(2)]
    torch.testing.assert_close(seen, torch.cat(by_hand, 1), rtol=1e-4, atol=1e-5)
    assert seen.shape[1] == dataclasses.replace(own.architecture, readout=every).num_features
    mirrored = model.joined(own, dataclasses.replace(every, mirrored=True)).features(x)
    both = (seen + model.joined(own, every).features(x.flip(-1))) / 2
    torch.testing.assert_close(mirrored, both, rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in own.parameters()) == own.card.num_parameters


@torch.no_grad()
def test_images_are_prepared_as_the_library_would(files: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    name = "test_resnet"
    smooth = np.linspace(0, 255, 200 * 260 * 3).reshape(200, 260, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "image.png")
    network = theirs(name)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))
    expected = network(transform(Image.open(tmp_path / "image.png")).unsqueeze(0)).softmax(1)[0]
    predictor = Predictor.load(f"timm:{name}@{files[name]}", precision="fp32", decoder="exact")
    (found,) = predictor.predict([tmp_path / "image.png"])
    torch.testing.assert_close(torch.from_numpy(found.probabilities), expected, rtol=0.02, atol=0.005)


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_a_model_file_says_what_rebuilds_it(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    network = weights.load(f"timm:{name}@{files[name]}")
    second = weights.load(f"timm:{name}@{files[name]}")
    beside = model.joined(second, Readout(blocks=(0, 1)))
    joined = model.joined(network, Readout(blocks=(len(network.architecture.stages) - 1,), maxima=False), beside)
    joined.reset_classifier(3)
    nn.init.normal_(cast(nn.Linear, joined.head).weight)
    weights.save(tmp_path / "model.safetensors", joined)
    read = weights.load(tmp_path / "model.safetensors")
    size = network.card.input.size
    x = torch.rand(2, 3, size, size) * 2 - 1
    assert torch.equal(read(x), joined(x)) and read.card == joined.card and not read.training
    assert weights.differing(tmp_path / "model.safetensors", joined) == []
    assert torch.equal(copy.deepcopy(read)(x), joined(x))
    folded = model.fold(read)(x)
    torch.testing.assert_close(folded, joined(x), rtol=1e-4, atol=1e-3)
    assert torch.equal(model.fold(joined)(x), folded)
    assert weights.load(tmp_path / "model.safetensors", num_classes=0)(x).shape == (2, joined.num_features)
    with pytest.raises(WeightsError, match="last map only"):
        weights.export(tmp_path / "timm.safetensors", joined, "timm")


@torch.no_grad()
def test_to_timm_and_back(files: dict[str, Path], tmp_path: Path) -> None:
    network = weights.load(f"timm:test_vit@{files['test_vit']}")
    weights.export(tmp_path / "timm.safetensors", network, "timm")
    assert weights.differing(tmp_path / "timm.safetensors", network, "timm") == []
    other = timm.create_model("test_vit", num_classes=5, checkpoint_path=str(tmp_path / "timm.safetensors")).eval()
    original = theirs("test_vit").state_dict()
    assert other.state_dict().keys() == original.keys()
    assert all(torch.equal(tensor, original[key]) for key, tensor in other.state_dict().items())
    for form, path in (("npz", "other.npz"), ("transformers", "folder"), ("torch", "other.pth.tar")):
        with pytest.raises(WeightsError, match="BiT's networks; this is timm:test_vit"):
            weights.export(tmp_path / path, network, cast(Any, form))


def _card(change: dict[str, Any]) -> str:
    backbone, _ = libraries.describe("timm", "test_resnet")
    card = json.loads(ModelCard.bare(Architecture(backbone=backbone), 0).to_json())
    card["architecture"]["backbone"] |= change
    return json.dumps(card)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "hf-hub:somebody/model"}, "architecture.backbone.name"),
        ({"name": "local-dir:/tmp"}, "architecture.backbone.name"),
        ({"name": "../../x"}, "architecture.backbone.name"),
        ({"name": "no_such_network"}, "has no model"),
        ({"name": "resnet50"}, "not a whole timm:resnet50 network"),
        ({"library": "os"}, "architecture.backbone.library"),
        ({"taps": ["a;b"]}, "architecture.backbone.taps"),
        ({"taps": ["0", "1", "2", "3", "99"]}, "cannot be looked at as the model says"),
        ({"std": [0.0, 1.0, 1.0]}, r"architecture.backbone.std"),
        ({"mean": [0.5, 0.5, 1.5]}, r"architecture.backbone.mean"),
        ({"stages": [1] * 5}, "another network here than where"),
    ],
)
def test_a_model_file_asks_for_no_more_than_a_registered_name(
    change: dict[str, Any], told: str, tmp_path: Path, files: dict[str, Path]
) -> None:
    state = weights.load(f"timm:test_resnet@{files['test_resnet']}", num_classes=0).state_dict()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"bigtransfer": _card(change)})

    def use() -> None:
        network = weights.load(tmp_path / "model.safetensors")
        every = Readout(blocks=tuple(range(len(network.architecture.stages))))
        model.joined(model.fold(network), every).features(torch.zeros(1, 3, 64, 64))

    with pytest.raises(BitError, match=told) as caught:
        use()
    if told not in (
        "cannot be looked at as the model says",
        "another network here than where",
    ):  # which only its use shows
        assert "model.safetensors" in str(caught.value)


def test_what_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnt50'"):
        weights.load("timm:resnt50")
    with pytest.raises(ConfigError, match="has no classifier 'fasterrcnn_resnet50_fpn'"):
        weights.load("torchvision:fasterrcnn_resnet50_fpn")
    with pytest.raises(ConfigError, match="no model 'hf-hub:a/b'"):
        weights.load("timm:hf-hub:a/b")
    with pytest.raises(DownloadError, match=r"timm:test_vit@FILE"):
        weights.load("timm:test_vit", offline=True)
    with pytest.raises(WeightsError, match="no file or folder"):
        weights.load("timm:test_vit@nowhere.safetensors")
    with pytest.raises(ConfigError, match="3 channels, not of 1"):
        weights.load("timm:test_vit", in_chans=1, pretrained=False)
    assert weights.describe("timm:test_vit").num_classes == 1000, "without its weights"


def test_a_classifier_with_layers_of_its_own_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads whose mean is the answer, as of distilled networks: what is below them is taken, and that is said."""
    name = "deit_tiny_distilled_patch16_224"
    build = functools.partial(timm.create_model, "vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=1)

    def made(*_: Any, **__: Any) -> nn.Module:
        network = build()
        network.head, network.head_dist = None, nn.Linear(24, 5)
        network.head = nn.Linear(24, 5)

        def reset(classes: int) -> None:
            network.head = network.head_dist = nn.Identity()

        network.get_classifier = lambda: (network.head, network.head_dist)
        network.reset_classifier = reset
        return network

    monkeypatch.setattr(libraries, "_registered", lambda *_: made)
    libraries.describe.cache_clear()
    libraries.shapes.cache_clear()
    try:
        torch.manual_seed(0)
        whole = made()
        safetensors.torch.save_file(whole.state_dict(), tmp_path / "theirs.safetensors")
        network = weights.load(f"timm:{name}@{tmp_path / 'theirs.safetensors'}", num_classes=0)
        assert "without its classifier" in weights.describe(f"timm:{name}").source
        assert weights.describe(f"timm:{name}@{tmp_path / 'theirs.safetensors'}").num_classes == 0
        x = torch.rand(1, 3, 224, 224)
        theirs_ = (x - torch.tensor(network.architecture.backbone.mean).view(1, 3, 1, 1)) / torch.tensor(  # type: ignore[union-attr]
            network.architecture.backbone.std  # type: ignore[union-attr]
        ).view(1, 3, 1, 1)
        with torch.no_grad():
            pooled = whole.eval().forward_head(whole.forward_features(theirs_), pre_logits=True)  # type: ignore[operator]
            assert torch.allclose(network.features(x * 2 - 1), pooled, atol=1e-5)
    finally:
        libraries.describe.cache_clear()
        libraries.shapes.cache_clear()


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def as_on_the_hub(folder: Path, network: Any, **changes: Any) -> Path:
    """The folder as timm's own code writes it for the hub, and what is changed in its config.json."""
    save_for_hf = importlib.import_module("timm.models").save_for_hf
    config = {"label_names": list("abcde"), "license": "cc0-1.0"}
    network.pretrained_cfg = {**network.pretrained_cfg, "mean": MEAN, "std": STD, "license": "cc0-1.0"}
    save_for_hf(network, folder, model_config=config, safe_serialization=True)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | changes))
    return folder


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_a_folder_as_timm_writes_it_for_the_hub(name: str, tmp_path: Path) -> None:
    whole = theirs(name)
    folder = as_on_the_hub(tmp_path / "repo", whole)
    network = weights.load(folder)
    size = network.card.input.size
    pixels = torch.rand(2, 3, size, size)
    y = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.allclose(network(pixels * 2 - 1), whole(y), atol=1e-5)
    assert network.card.class_names == tuple("abcde") and network.card.licence == "cc0-1.0"
    assert network.card.name == "repo" and f"timm:{name}" in network.card.source
    # As transformers' wrapper saves the same: the tensors' names begin otherwise, and the kind stands in model_type.
    state = {f"timm_model.{key}": value for key, value in whole.state_dict().items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | {"model_type": "timm_wrapper"}))
    assert torch.equal(weights.load(folder)(pixels * 2 - 1), network(pixels * 2 - 1))
    weights.save(tmp_path / "ours.safetensors", network)
    assert torch.equal(weights.load(tmp_path / "ours.safetensors")(pixels * 2 - 1), network(pixels * 2 - 1))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"architecture": "no_such_net"}, r"config.json: timm .* has no model 'no_such_net'"),
        ({"architecture": "hf-hub:a/b"}, r"config.json: timm .* has no model"),
        ({"model_args": {"embed_dim": 32}}, r"config.json: .*arguments of its own \(embed_dim\)"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5, 7]}}, r"config.json.*mean"),
        ({"pretrained_cfg": {"std": [0.5, 0.5, 0]}}, r"config.json.*std"),
        ({"pretrained_cfg": {"mean": [0.5]}}, r"config.json.*mean"),
        ({"pretrained_cfg": {"input_size": [3, 160, 96]}}, "only square ones"),
        ({"pretrained_cfg": {"input_size": [3, 96, 96]}}, "96 px; timm:test_vit_relpos takes images of 160 px alone"),
        ({"model_args": {"img_size": [96, 96]}}, r"96 px; timm:test_vit_relpos takes images of 160 px alone"),
        ({"model_args": {"img_size": "large"}}, r"large px; timm:test_vit_relpos takes images of 160 px alone"),
        ({"global_pool": "max"}, "global_pool 'max'"),
        ({"model_type": "bert"}, r"of type 'bert'.*timm_wrapper"),
        ({"architecture": "test_resnet"}, "not a whole timm:test_resnet network"),
    ],
)
def test_a_folder_that_says_something_else_is_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    name = "test_vit_relpos" if "px alone" in told else "test_vit"  # which takes one size only
    folder = as_on_the_hub(tmp_path / "repo", theirs(name), **changes)
    with pytest.raises(BitError, match=told) as caught:
        weights.load(folder)
    assert "repo" in str(caught.value)


@torch.no_grad()
@pytest.mark.slow
def test_a_folder_as_transformers_writes_it(tmp_path: Path) -> None:
    """Its wrapper around timm's networks, by its own code."""
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=5)
    wrapped = transformers.TimmWrapperForImageClassification(config).eval()
    wrapped.save_pretrained(tmp_path / "repo")
    network = weights.load(tmp_path / "repo")
    size = network.card.input.size
    pixels = torch.rand(2, 3, size, size)
    backbone = network.architecture.backbone
    assert backbone is not None
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (backbone.mean, backbone.std))
    assert torch.allclose(network(pixels * 2 - 1), wrapped((pixels - mean) / std).logits, atol=1e-5)


def test_timms_own_linear_layer_is_a_classifier() -> None:
    from timm.layers import Linear

    class Other(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return -super().forward(input)

    assert libraries._linear(nn.Linear(2, 2)) and libraries._linear(Linear(2, 2)) and not libraries._linear(Other(2, 2))


def test_weights_of_another_network(files: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match=r"not a whole timm:test_vit network.*missing.*has no use for"):
        weights.load(f"timm:test_vit@{files['test_resnet']}")


def test_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ImportError('not here')")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from bigtransfer import weights; weights.load('timm:resnet50')"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "ConfigError: timm:resnet50 needs the package timm: pip install timm" in done.stderr


def test_layers_stay_in_evaluation_mode(files: dict[str, Path]) -> None:
    network = weights.load(f"timm:test_resnet@{files['test_resnet']}").train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert network.training and norms and not any(module.training for module in norms)
    x = torch.rand(4, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)
    assert len(network.stem_parameters()) == 1 and network.stem_parameters()[0].shape[1] == 3


@pytest.mark.parametrize("name", TINY)
def test_a_fine_tuning_of_each_kind(
    name: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    class_folders(images, {"a": 8, "b": 8})
    source = f"timm:{name}@{files[name]}"
    size = 64
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "precision": "fp32", "val_fraction": 0.25, "crop": 64}
    done = bigtransfer.finetune(images, model=source, out=tmp_path / "run", learning_rate=0.1, **options)
    before, after = weights.load(source, num_classes=0), weights.load(done.model)
    told = capsys.readouterr().out
    backbone = cast(Backbone, before.architecture.backbone)
    assert after.card.input.size == size and f"{size} px" in told
    same = {
        name
        for name, tensor in before.state_dict().items()
        if torch.equal(tensor, after.state_dict()[name]) and "num_batches" not in name
    }
    stem = {name for name, one in after.named_parameters() if any(one is each for each in after.stem_parameters())}
    buffers = {name for name, _ in before.named_buffers() if name.startswith("body.") and "num_batches" not in name}
    assert buffers <= same, "the statistics stay"
    assert ("BatchNorm keeps the statistics" in told) == backbone.batch_norm
    assert stem and (stem <= same) == backbone.patches == ("not trained" in told)
    changed = {name for name, _ in before.named_parameters()} - same
    assert len(changed) > 0.8 * len([*before.parameters()])
    assert done.recipe.steps == 2


def test_the_closed_form_sees_all_stages(files: dict[str, Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    class_folders(images, {"a": 8, "b": 8})
    done = bigtransfer.finetune(
        images, model=f"timm:test_convnext@{files['test_convnext']}", out=tmp_path / "run", linear="closed", crop=64
    )
    found = json.loads((done.folder / "closed.json").read_text())
    assert [judged["view"]["readout"]["blocks"] for judged in found["judged"]] == [[3], [0, 1, 2, 3]]


def test_a_network_that_takes_one_size_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, file = tmp_path / "images", tmp_path / "theirs.safetensors"
    class_folders(images, {"a": 4, "b": 4})
    safetensors.torch.save_file(theirs("test_vit_relpos").state_dict(), file)
    source = f"timm:test_vit_relpos@{file}"
    with pytest.raises(ConfigError, match="takes images of 160 px only; leave out --crop 64"):
        bigtransfer.finetune(images, model=source, out=tmp_path / "other", linear="closed", crop=64)
    done = bigtransfer.finetune(images, model=source, out=tmp_path / "run", linear="closed", val_fraction=0.0)
    assert {one["view"]["size"] for one in json.loads((done.folder / "closed.json").read_text())["judged"]} == {160}
    done = bigtransfer.finetune(images, model=source, out=tmp_path / "sgd", steps=1, batch_size=2, val_fraction=0.0)
    assert "takes images of 160 px only: resized to 200, cropped to 160 px" in capsys.readouterr().out
    assert weights.describe(done.model).input.size == 160


def test_what_the_catalogue_says_of_efficientnet_lite() -> None:
    backbone = catalog.get("lite0").card.architecture.backbone
    assert backbone is not None
    found, known = libraries.describe("timm", backbone.name)
    for field in dataclasses.fields(Backbone):
        if field.name not in ("mean", "std", "version"):
            assert getattr(found, field.name) == getattr(backbone, field.name), field.name
    assert known.input.crop_pct == catalog.get("lite0").card.input.crop_pct


@torch.no_grad()
def test_a_network_that_computes_while_it_is_made(tmp_path: Path) -> None:
    from torchvision.models import regnet_y_400mf

    torch.manual_seed(0)
    other = regnet_y_400mf(num_classes=4).eval()
    torch.save(other.state_dict(), tmp_path / "theirs.pth")
    own = weights.load(f"torchvision:regnet_y_400mf@{tmp_path / 'theirs.pth'}")
    images = torch.rand(2, 3, 64, 64)
    assert own.architecture.backbone is not None
    mean, std = (
        torch.tensor(one).view(1, 3, 1, 1) for one in (own.architecture.backbone.mean, own.architecture.backbone.std)
    )
    torch.testing.assert_close(own(images * 2 - 1), other((images - mean) / std), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_network_of_torchvision(tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    other = shufflenet_v2_x0_5(num_classes=4).eval()
    nn.init.normal_(other.fc.bias)
    torch.save(other.state_dict(), tmp_path / "theirs.pth")
    own = weights.load(f"torchvision:shufflenet_v2_x0_5@{tmp_path / 'theirs.pth'}")
    x = torch.rand(2, 3, 96, 96) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    y = ((x + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(own(x), other(y), rtol=1e-4, atol=1e-5)
    seen = model.joined(own, Readout(blocks=(0, 1, 2, 3), maxima=True))
    first = other.stage2(other.maxpool(other.conv1(y)))
    torch.testing.assert_close(seen.features(x)[:, :48], first.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.features(x)[:, 48:96], first.amax((2, 3)), rtol=1e-4, atol=1e-5)
    assert seen.features(x).shape[1] == 2 * (48 + 96 + 192 + 1024)
    weights.save(tmp_path / "model.safetensors", own)
    assert torch.equal(weights.load(tmp_path / "model.safetensors")(x), own(x))


@pytest.mark.parametrize("name", TINY)
def test_explanations_add_up(name: str, files: dict[str, Path]) -> None:
    from bigtransfer.evals.explanation import explain

    network = weights.load(f"timm:{name}@{files[name]}")
    every = Readout(blocks=tuple(range(len(network.architecture.stages))), mirrored=True)
    joined = model.joined(network, every)
    joined.reset_classifier(3)
    nn.init.normal_(cast(nn.Linear, joined.head).weight)
    size = network.card.input.size
    x = torch.rand(2, 3, size, size) * 2 - 1
    for one in (network, joined):
        given, logits, exact = explain(one, x, torch.tensor([0, 2]))
        assert exact and given.shape == (2, size // 4, size // 4)
        torch.testing.assert_close(given.sum((1, 2)), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_efficientnet", "test_nfnet", "test_vit", "tf_efficientnet_lite0"]
)
def test_a_folded_network_is_the_same_function(name: str, tmp_path: Path) -> None:
    """NFNet's kernels are standardized at each call, ViT has no BatchNorm: nothing there may be folded."""
    safetensors.torch.save_file(theirs(name, classes=1000).state_dict(), tmp_path / "weights.safetensors")
    network = weights.load(f"timm:{name}@{tmp_path / 'weights.safetensors'}")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = model.fold(network)
    size = network.card.input.size
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-4)

    def norms(one: nn.Module) -> int:
        return sum(isinstance(module, nn.BatchNorm2d) for module in one.modules())

    assert norms(folded) == 0
    assert (norms(network) > 0) == (name not in ("test_nfnet", "test_vit"))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Crossing(nn.Module):
    """Convolutions before BatchNorms of which only the first and the last can be folded: the second's map is seen by the sum as well, the
    third is called twice, the fourth standardizes its kernel, the fifth feeds two norms."""

    class Standardized(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return self._conv_forward(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.conv4, self.conv5 = self.Standardized(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False)
        self.conv6 = nn.Conv2d(4, 4, 3, groups=2, bias=False)
        for number in range(1, 8):
            setattr(self, f"bn{number}", nn.BatchNorm2d(4, affine=number != 6))

    def forward(self, x: Tensor) -> Tensor:
        other: Any = self
        x = other.bn1(self.conv1(x)).relu()
        y = self.conv2(x)
        x = y + other.bn2(y)
        x = self.conv3(other.bn3(self.conv3(x)))
        x = other.bn4(self.conv4(x))
        y = self.conv5(x)
        x = other.bn5(y) + other.bn7(y)
        return other.bn6(self.conv6(x)).mean((2, 3))


@torch.no_grad()
def test_only_maps_that_nothing_else_sees_are_folded() -> None:
    torch.manual_seed(0)
    network = Crossing().eval()
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.4, 1.4)
    x = torch.randn(2, 3, 32, 32)
    wanted = network(x)
    lite = weights.load("efficientnet-lite0").architecture.backbone
    assert lite is not None
    body = libraries.Body(network, lambda module, images, stages: (module(images), {}))
    libraries.fold_norms(body, lite)
    left = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left == {"bn2", "bn3", "bn4", "bn5", "bn7"}
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_norms_are_folded_of_networks_that_take_no_small_images() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 70), nn.BatchNorm2d(4)).eval()
    nn.init.uniform_(network[1].running_mean)  # type: ignore[arg-type]
    x = torch.randn(2, 3, 80, 80)
    wanted = network(x)
    lite = weights.load("efficientnet-lite0").architecture.backbone
    assert lite is not None and lite.any_size and lite.size == 224
    body = libraries.Body(network, lambda module, images, stages: (module(images), {}))
    libraries.fold_norms(body, lite)
    assert not isinstance(network[1], nn.BatchNorm2d) and not isinstance(network[3], nn.BatchNorm2d)
    torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)
    # Of one that takes none at all nothing is folded, and nothing raised: whoever shows it an image hears why.
    never = nn.Sequential(nn.Conv2d(3, 4, 300), nn.BatchNorm2d(4)).eval()
    libraries.fold_norms(libraries.Body(never, body.run), lite)
    assert isinstance(never[1], nn.BatchNorm2d)


@torch.no_grad()
def test_images_too_small_for_a_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = weights.load("timm:inception_v3", pretrained=False, num_classes=2)
    assert network(torch.zeros(1, 3, 75, 75)).shape == (1, 2)
    with pytest.raises(
        ConfigError, match=r"inception_v3 was made for 299 px and does not take images of 64 x 70: .*Kernel.*--crop"
    ):
        network(torch.zeros(1, 3, 64, 70))

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(network, "_run", full)
    with pytest.raises(torch.OutOfMemoryError):  # which is divided into smaller batches where it is caught
        network(torch.zeros(1, 3, 64, 64))
    monkeypatch.setattr(network, "_run", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match=r"^something else$"):
        network(torch.zeros(1, 3, 299, 299))
