"""Weights in every published form: saved by the other side and read by us, and the reverse; and everything that can be wrong."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import hashlib
import io
import json
import math
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bigtransfer import catalog, model, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.errors import BitError, ConfigError, UnknownModel, WeightsError
from bigtransfer.weights import configs, formats, names
from tests.reference import network as reference

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

TINY = Architecture(units=(1, 1, 1, 1))
DEEPER = Architecture(units=(2, 1, 1, 3))
CLASSES = 5
FOREIGN = ("npz", "big_vision", "torch", "timm", "transformers")


def randomize(network: nn.Module, seed: int = 0) -> nn.Module:
    """Numbers that show every mistake: no norm at identity, no head at zero, kernels with means and scales of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 4 and not name.startswith("head"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05 + 0.02)
            elif parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


def images(channels: int = 3, height: int = 41, width: int = 64) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@functools.cache
def _ours(architecture: Architecture, num_classes: int) -> nn.Module:
    return randomize(model.build(architecture, num_classes))


def ours(architecture: Architecture = TINY, num_classes: int = CLASSES) -> model.ResNetV2:
    """A network of ours, always with the same numbers and the card of `card_of`, that the caller may change."""
    network = copy.deepcopy(_ours(architecture, num_classes))
    assert isinstance(network, model.ResNetV2)
    network.card = card_of(architecture, num_classes)
    return network


def card_of(architecture: Architecture = TINY, num_classes: int = CLASSES, **changes: object) -> ModelCard:
    values = {
        "name": "tiny",
        "input": InputSpec(size=56, mode="aspect", crop_pct=0.875, interpolation="bicubic"),
        "class_names": tuple(f"class {index}" for index in range(num_classes)),
        "licence": "cc0-1.0",
        "metrics": {"val top1": 0.5},
        "recipe": {"steps": 500},
        "source": "a test",
    }
    return ModelCard(architecture=architecture, num_classes=num_classes, **(values | changes))  # pyright: ignore


@torch.no_grad()
def assert_same_logits(first: nn.Module, second: nn.Module, tolerance: float = 1e-4, channels: int = 3) -> None:
    a, b = (getattr(out, "logits", out) for out in (first(images(channels)), second(images(channels))))
    assert a.abs().max() > 0.1
    assert float((a - b).abs().max() / b.abs().max()) < tolerance


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def timm_network(architecture: Architecture = TINY, num_classes: int = CLASSES) -> nn.Module:
    """timm's own class with the settings of its BiT models."""
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        layers=list(architecture.units),
        width_factor=architecture.width,
        num_classes=num_classes,
        in_chans=architecture.in_chans,
        stem_type="fixed",
        conv_layer=functools.partial(StdConv2d, eps=1e-8),
    )


def transformers_network(architecture: Architecture = TINY, num_classes: int = CLASSES) -> nn.Module:
    config = transformers.BitConfig(
        depths=list(architecture.units),
        embedding_size=64 * architecture.width,
        hidden_sizes=[256 * architecture.width * 2**block for block in range(4)],
        num_channels=architecture.in_chans,
        num_labels=num_classes,
    )
    return transformers.BitForImageClassification(config)


def foreign_file(tmp_path: Path, layout: str, state: dict[str, Tensor] | None = None, **renamed: str) -> Path:
    """A file in that layout, made with the table alone, for tests that then break it."""
    state = dict(ours().state_dict()) if state is None else state
    named = {
        names.LAYOUTS[layout].their_name(name): names.LAYOUTS[layout].their_value(name, t) for name, t in state.items()
    }
    path = tmp_path / f"{layout}.npz"
    np.savez(path, **{name: tensor.numpy() for name, tensor in named.items()})
    return path


# --- The other side's files


def test_timm_file_gives_timm_logits(tmp_path: Path) -> None:
    theirs = randomize(timm_network(DEEPER))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    network = weights.load(tmp_path / "model.safetensors")
    card = network.card
    assert (card.architecture, card.num_classes) == (DEEPER, CLASSES)
    assert_same_logits(network, theirs)


def test_timm_training_checkpoint(tmp_path: Path) -> None:
    theirs = randomize(timm_network())
    averaged = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    last = {name: torch.zeros_like(tensor) for name, tensor in averaged.items()}
    args = argparse.Namespace(lr=0.1)
    torch.save({"epoch": 3, "args": args, "state_dict": last, "state_dict_ema": averaged}, tmp_path / "last.pth.tar")
    network = weights.load(tmp_path / "last.pth.tar")
    assert_same_logits(network, theirs)


def test_timm_reads_ours(tmp_path: Path) -> None:
    network = ours(DEEPER)
    for file in ("model.safetensors", "model.bin"):
        weights.export(tmp_path / file, network, "timm")
        theirs = timm_network(DEEPER)
        timm.models.load_checkpoint(theirs, str(tmp_path / file), strict=True)
        assert_same_logits(theirs.eval(), network)
        assert_same_weights(weights.load(tmp_path / file), network)


@pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
def test_transformers_folder_gives_transformers_logits(tmp_path: Path, filename: str) -> None:
    theirs = randomize(transformers_network(DEEPER))
    theirs.save_pretrained(tmp_path)
    if filename == "pytorch_model.bin":  # what google/bit-50 holds
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / filename)
    network = weights.load(tmp_path)
    card = network.card
    assert (card.architecture, card.num_classes, card.class_names) == (DEEPER, CLASSES, None)
    assert_same_logits(network, theirs)


def test_transformers_backbone_without_classifier(tmp_path: Path) -> None:
    theirs = randomize(transformers_network()).bit
    theirs.save_pretrained(tmp_path)
    network = weights.load(tmp_path)
    card = network.card
    assert card.num_classes == 0
    with torch.no_grad():
        expected = theirs(images()).pooler_output[:, :, 0, 0]
        assert torch.allclose(network(images()), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", [DEEPER, Architecture(units=(1, 1, 1, 1), width=3)], ids=["deeper", "x3"])
def test_transformers_reads_ours(tmp_path: Path, architecture: Architecture) -> None:
    network = ours(architecture)
    weights.export(tmp_path, network, "transformers")
    theirs, report = transformers.BitForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_same_logits(theirs.eval(), network)
    assert theirs.config.id2label[3] == "class 3"
    again = weights.load(tmp_path)
    card = again.card
    assert_same_weights(again, network)
    assert card.class_names == card_of(architecture).class_names


def test_transformers_preprocessing_is_ours(tmp_path: Path) -> None:
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    for spec in (InputSpec(size=64), InputSpec(size=56, mode="aspect", crop_pct=0.875, interpolation="bicubic")):
        network = ours()
        network.card = card_of(input=spec)
        weights.export(tmp_path, network, "transformers")
        assert weights.describe(tmp_path).input == spec
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        pixels = processor(Image.fromarray(image), return_tensors="pt").pixel_values
        assert pixels.shape == (1, 3, spec.size, spec.size)
        assert -1 <= pixels.min() < -0.5 and 0.5 < pixels.max() <= 1


def test_published_architecture_in_both(tmp_path: Path) -> None:
    """R50x1 once, with the builders that users call."""
    network = ours(catalog.architecture("r50x1"), 3)
    card = card_of(catalog.architecture("r50x1"), 3)
    weights.export(tmp_path / "weights.safetensors", network, "timm")
    theirs = timm.create_model(
        "resnetv2_50x1_bit", checkpoint_path=str(tmp_path / "weights.safetensors"), num_classes=3
    )
    assert_same_logits(theirs.eval(), network)

    weights.export(tmp_path / "folder", network, "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    assert_same_logits(theirs.eval(), network)
    data = timm.data.resolve_data_config({}, model=theirs)
    assert (data["crop_pct"], data["interpolation"], list(data["mean"])) == (0.875, "bicubic", [0.5] * 3)
    described = weights.describe(tmp_path / "folder")
    assert (described.input, described.class_names, described.licence) == (card.input, card.class_names, card.licence)

    weights.export(tmp_path / "theirs.npz", network, "npz")
    assert_same_logits(
        timm.create_model("resnetv2_50x1_bit", checkpoint_path=str(tmp_path / "theirs.npz"), num_classes=3).eval(),
        network,
    )


@pytest.mark.parametrize("channels", [3, 1])
def test_timm_folder_of_a_network_that_timm_does_not_know(tmp_path: Path, channels: int) -> None:
    """Its own class builds it from `model_args`, without the standardization, which is done beforehand."""
    architecture = Architecture(units=(1, 2, 1, 1), in_chans=channels)
    network = ours(architecture)
    weights.export(tmp_path / "folder", network, "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    assert theirs.num_classes == CLASSES
    assert_same_logits(theirs, network, 1e-5, channels)
    with torch.no_grad():
        assert torch.allclose(
            theirs.forward_features(images(channels)), network.forward_features(images(channels)), rtol=1e-3, atol=1e-4
        )
    again = weights.load(tmp_path / "folder")
    assert_same_logits(again, network, 1e-5, channels)
    assert (again.card.input, again.card.class_names) == (network.card.input, network.card.class_names)
    assert weights.differing(tmp_path / "folder", network, "timm") == []
    assert len(weights.differing(tmp_path / "folder", network)) == len(
        [n for n in network.state_dict() if "conv" in n or "proj" in n or n == "root.weight"]
    )


def test_timm_file_keeps_the_card(tmp_path: Path) -> None:
    weights.export(tmp_path / "m.safetensors", ours(), "timm")
    assert weights.load(tmp_path / "m.safetensors").card == card_of()
    assert weights.describe(tmp_path / "m.safetensors") == card_of()


# --- The authors' files


@pytest.mark.parametrize("spelling", ["plain", "numbered", "dense"])
def test_authors_npz(tmp_path: Path, spelling: str) -> None:
    params = reference.random_params(units=(1, 2, 1, 1), classes=CLASSES)
    stored = {}
    for number, (name, value) in enumerate(params.items()):
        if spelling == "numbered":
            name = name.replace("standardized_conv2d", f"standardized_conv2d_{number}")
        if spelling == "dense":
            value = value[0, 0] if name.endswith("head/conv2d/kernel") else value
            name = name.replace("head/conv2d", "head/dense")
        stored[name] = value.astype(np.float32)
    np.savez(tmp_path / "weights.npz", **stored)
    network = weights.load(tmp_path / "weights.npz")
    card = network.card
    assert (card.architecture.units, card.num_classes) == ((1, 2, 1, 1), CLASSES)
    expected = reference.logits(params, images().permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        error = np.abs(network(images()).numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-5


def test_npz_written_is_the_authors(tmp_path: Path) -> None:
    network = ours()
    weights.export(tmp_path / "out.npz", network, "npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as stored:
        params = dict(stored)
    assert params.keys() == reference.random_params(classes=CLASSES).keys()
    expected = reference.logits(params, images().permute(0, 2, 3, 1).numpy())
    with torch.no_grad():
        assert np.abs(network(images()).numpy() - expected).max() / np.abs(expected).max() < 1e-5


def test_authors_torch_checkpoint(tmp_path: Path) -> None:
    network = ours()
    weights.export(tmp_path / "bit.pth.tar", network, "torch")
    stored = torch.load(tmp_path / "bit.pth.tar", weights_only=True)
    assert stored.keys() == {"step", "model", "optim"} and stored["step"] == 0
    assert stored["model"]["module.head.conv.weight"].shape == (CLASSES, 2048, 1, 1)
    assert stored["model"]["module.body.block1.unit01.downsample.weight"].shape == (256, 64, 1, 1)
    assert_same_weights(weights.load(tmp_path / "bit.pth.tar"), network)
    # Their train.py resumes as here, with an optimizer over the same parameters; it then sets the rate and steps.
    parameters = [nn.Parameter(tensor.clone()) for tensor in stored["model"].values()]
    optim = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    optim.load_state_dict(stored["optim"])
    assert optim.param_groups[0]["lr"] == 0.003 and optim.param_groups[0]["momentum"] == 0.9
    assert not optim.state and optim.param_groups[0]["params"] == parameters
    parameters[0].grad = torch.ones_like(parameters[0])
    before = parameters[0].detach().clone()
    optim.step()
    assert torch.allclose(parameters[0], before - 0.003)
    # As they really are: with the optimizer's momentum beside the model, in PyTorch's older container too.
    stored["optim"] = optim.state_dict()
    torch.save(stored, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert_same_weights(weights.load(tmp_path / "old.pth.tar"), network)


def test_big_vision_layout_with_training_state(tmp_path: Path) -> None:
    network = ours()
    layout = names.LAYOUTS["big_vision"]
    state = {
        f"params/{layout.their_name(n)}": layout.their_value(n, t).numpy() for n, t in network.state_dict().items()
    }
    assert state["params/block2/unit01/gn3/scale"].shape == (1, 1, 1, 128)
    np.savez(tmp_path / "checkpoint.npz", **state, **{"opt/0/mu": np.zeros(3), "extra/step": np.zeros(())})
    assert_same_weights(weights.load(tmp_path / "checkpoint.npz"), network)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("bfloat16", "V2"), ("float64", "<f8"), ("big-endian", ">f4"), ("half", "<f2")]
)
def test_npz_number_formats(tmp_path: Path, kind: str, dtype: str) -> None:
    network = ours()
    layout = names.LAYOUTS["npz"]
    stored, state = {}, {}
    for name, tensor in network.state_dict().items():
        if kind == "bfloat16":
            tensor = tensor.bfloat16()
            array = layout.their_value(name, tensor).contiguous().view(torch.int16).numpy().view("V2")
        else:
            array = layout.their_value(name, tensor).numpy().astype(dtype)
            tensor = tensor.half() if kind == "half" else tensor
        stored[layout.their_name(name)], state[name] = array, tensor.float()
    np.savez(tmp_path / "a.npz", **stored)
    loaded = weights.load(tmp_path / "a.npz").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["bit-t-r26x1", "efficientnet-lite0"])
def test_networks_know_how_images_of_one_class_differ(name: str, tmp_path: Path) -> None:
    """By their name, with whatever head; what has other layers or comes from a file does not."""
    network = weights.load(name, num_classes=3)
    assert network.scatter is not None and network.scatter.isfinite().all()
    assert network.scatter.shape == (128, 2 * sum(network.architecture.stages))
    # Of standardized features, most of whose variance is within classes: half of it at least is in these directions.
    share = float(network.scatter.double().square().sum()) / network.scatter.shape[1]
    assert 0.3 < share < 0.9, share
    readout = catalog.Readout(blocks=(0, 1, 2, 3), sizes=(32, 64))
    assert copy.deepcopy(network).scatter is not None and model.joined(network, readout).scatter is network.scatter
    weights.save(tmp_path / "a.safetensors", network)
    assert weights.load(tmp_path / "a.safetensors").scatter is None
    assert weights.load(name, pretrained=False).scatter is None
    assert "scatter" not in network.state_dict()


def test_two_names_stand_for_both_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of networks of two libraries, of which the one beside knows constants of its own."""
    name = "bit-t-r26x1+efficientnet-lite0"
    both = weights.load(name, num_classes=3)
    assert both.card.name == name == weights.describe(name).name and both.num_classes == 3
    assert both.card.licence == "apache-2.0" and "; beside it efficientnet-lite0: ImageNet-1k" in both.card.upstream
    assert weights.load(name).num_classes == 0
    assert isinstance(both, model.Joined) and both.beside is not None
    assert both.scatter is not None and both.beside.scatter is not None
    first, second = (weights.load(one, num_classes=0) for one in name.split("+"))
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        seen = both.features(images)
        torch.testing.assert_close(seen, torch.cat([first.features(images), second.features(images)], dim=1))
        nn.init.normal_(cast(nn.Linear, both.head).weight)
        weights.save(tmp_path / "both.safetensors", both)
        torch.testing.assert_close(weights.load(tmp_path / "both.safetensors")(images), both(images))
        torch.testing.assert_close(model.fold(both)(images), both(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(UnknownModel):
        weights.load("bit-t-r26x1+nothing")
    monkeypatch.chdir(tmp_path)
    weights.save(tmp_path / name, second)  # a file of that name goes before
    assert not isinstance(weights.load(name), model.Joined)


def test_a_network_of_other_channels_does_not() -> None:
    assert weights.load("bit-t-r26x1", in_chans=1).scatter is None


def test_published_file_is_known_by_its_name(tmp_path: Path) -> None:
    record = catalog.get("bit-m-r50x1-cifar10")
    network = ours(record.card.architecture, 10)
    weights.export(tmp_path / "BiT-M-R50x1-CIFAR10.npz", network, "npz")
    assert weights.describe(tmp_path / "BiT-M-R50x1-CIFAR10.npz").name == "bit-m-r50x1-cifar10"
    assert weights.describe(tmp_path / "BiT-M-R50x1-CIFAR10.npz").class_names == catalog.class_names("cifar10")
    # A name proves nothing: another network in such a file is not the published model.
    weights.export(tmp_path / "BiT-M-R50x1.npz", network, "npz")
    assert weights.describe(tmp_path / "BiT-M-R50x1.npz").name == "BiT-M-R50x1"


# --- Other people's checkpoints


def nested(prefix: str, *keys: str, **beside: object) -> dict[str, Any]:
    """A network with names that begin with `prefix`, kept under `keys`, one in the other, with `beside` beside each."""
    value: dict[str, Any] = {prefix + name: tensor.clone() for name, tensor in ours().state_dict().items()}
    for key in reversed(keys):
        value = {key: value, **beside}
    return value


@pytest.mark.parametrize(
    "keys", [(), ("net",), ("state_dict",), ("model",), ("checkpoint_is", "unknown"), ("model", "state_dict")]
)
@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "_orig_mod.", "module._orig_mod.", "model.module.backbone."]
)
def test_networks_within_checkpoints(tmp_path: Path, prefix: str, keys: tuple[str, ...]) -> None:
    torch.save(nested(prefix, *keys, epoch=3, **{"pytorch-lightning_version": "2.5"}), tmp_path / "a.ckpt")
    if "unknown" in keys:
        with pytest.raises(WeightsError, match="no state dict"):
            weights.load(tmp_path / "a.ckpt")
    else:
        assert_same_weights(weights.load(tmp_path / "a.ckpt"), ours())


@pytest.mark.parametrize("layout", ["timm", "torch", "transformers"])
def test_wrapped_names_of_every_form(tmp_path: Path, layout: str) -> None:
    form = names.LAYOUTS[layout]  # pyright: ignore
    state = {f"module.net.{form.their_name(n)}": form.their_value(n, t) for n, t in ours().state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    assert_same_weights(weights.load(tmp_path / "a.pt"), ours())


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True), np.float16(1), np.complex64(1j), np.dtype("f4")],
    ids=repr,
)
def test_numpy_numbers_in_a_checkpoint(tmp_path: Path, value: object) -> None:
    torch.save({"metric": value, **nested("", "model")}, tmp_path / "a.pt")
    assert_same_weights(weights.load(tmp_path / "a.pt"), ours())


def test_averages_go_before_the_last_weights(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in ours().state_dict().items()}
    for key in ("state_dict_ema", "model_ema"):
        torch.save({"state_dict": zeros, "model": zeros, "net": zeros, **nested("module.", key)}, tmp_path / "a.pt")
        assert_same_weights(weights.load(tmp_path / "a.pt"), ours())


# --- Our own files


def test_model_file_keeps_everything(tmp_path: Path) -> None:
    network, card = ours(DEEPER), card_of(DEEPER)
    weights.save(tmp_path / "run" / "model.safetensors", network)
    for where in (tmp_path / "run" / "model.safetensors", str(tmp_path / "run")):
        again = weights.load(where)
        assert again.card == card
        assert_same_weights(again, network)
        assert not again.training
    assert weights.describe(tmp_path / "run") == card


@pytest.mark.parametrize(("norm", "weight_standardization"), [("bn", True), ("gn", False), ("bn", False)])
def test_ablation_networks(tmp_path: Path, norm: str, weight_standardization: bool) -> None:
    architecture = Architecture(units=(1, 1, 1, 1), norm=norm, weight_standardization=weight_standardization)  # pyright: ignore
    network = ours(architecture)
    network.train()(images())  # moves BatchNorm's statistics
    weights.save(tmp_path / "m.safetensors", network.eval())
    again = weights.load(tmp_path / "m.safetensors")
    assert_same_weights(again, network)
    assert_same_logits(again, network)
    for form in ("npz", "torch", "timm", "transformers"):
        with pytest.raises(WeightsError, match="BiT's own networks"):
            weights.export(tmp_path / "x.npz", network, form)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_size(tmp_path: Path, dtype: str) -> None:
    network = ours()
    weights.save(tmp_path / "full.safetensors", network)
    weights.save(tmp_path / "half.safetensors", network, dtype=dtype)  # pyright: ignore
    full, half = ((tmp_path / f"{kind}.safetensors").stat().st_size for kind in ("full", "half"))
    assert half < 0.51 * full
    loaded = weights.load(tmp_path / "half.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in loaded.state_dict().values())
    assert_same_logits(loaded, network, 0.1)


def test_differing(tmp_path: Path) -> None:
    network = ours()
    for form, name in (("bit", "m.safetensors"), ("npz", "m.npz")):
        weights.export(tmp_path / name, network, form)  # pyright: ignore
        assert weights.differing(tmp_path / name, network) == []
    with torch.no_grad():
        network.blocks[1][0].conv2.weight[3, 2, 1, 0] *= 1 + 2**-22  # pyright: ignore
    assert weights.differing(tmp_path / "m.npz", network) == ["blocks.1.0.conv2.weight"]
    with pytest.raises(WeightsError, match="another network"):
        weights.differing(tmp_path / "m.npz", ours(DEEPER))


def test_float16_overflow_is_an_error(tmp_path: Path) -> None:
    network = ours()
    with torch.no_grad():
        network.head.bias[0] = 1e6  # pyright: ignore
    with pytest.raises(WeightsError, match=r"head\.bias has numbers that float16"):
        weights.save(tmp_path / "m.safetensors", network, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_networks_that_files_do_not_hold(tmp_path: Path) -> None:
    network = ours()
    network.reset_classifier(CLASSES, "max")
    with pytest.raises(WeightsError, match="global_pool 'max'"):
        weights.save(tmp_path / "m.safetensors", network)
    network.reset_classifier(CLASSES, "avg")
    network.head = nn.Sequential(nn.Linear(2048, 9), nn.ReLU(), nn.Linear(9, CLASSES))
    with pytest.raises(WeightsError, match=r"one linear layer; this one differs in head\.weight"):
        weights.export(tmp_path / "m.npz", network, "npz")
    assert not list(tmp_path.iterdir())


def test_torchs_default_dtype(tmp_path: Path) -> None:
    weights.save(tmp_path / "m.safetensors", ours())
    torch.set_default_dtype(torch.float64)
    try:
        for network in (
            weights.load(tmp_path / "m.safetensors", num_classes=3),
            weights.load(tmp_path / "m.safetensors", pretrained=False),
            weights.load(tmp_path / "m.safetensors", in_chans=1, num_classes=0),
        ):
            assert all(tensor.dtype == torch.float64 for tensor in network.state_dict().values())
    finally:
        torch.set_default_dtype(torch.float32)
    weights.export(tmp_path / "half.npz", ours().bfloat16(), "npz")
    rounded = weights.load(tmp_path / "half.npz").root.weight
    assert torch.equal(rounded, ours().root.weight.bfloat16().float())


def test_card_of_another_network_is_refused() -> None:
    with pytest.raises(WeightsError, match="another network"):
        ours().card = card_of(num_classes=6)
    with pytest.raises(WeightsError, match="another network"):
        ours().card = card_of(DEEPER)


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    weights.save(path, ours())
    before = path.read_bytes()

    def dies(tensors: object, file: Path, metadata: object) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        weights.save(path, ours(DEEPER))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- Other heads and inputs


def test_heads(tmp_path: Path) -> None:
    network, path = ours(), tmp_path / "m.safetensors"
    weights.save(path, network)
    same = weights.load(path, num_classes=CLASSES)
    card = same.card
    assert_same_weights(same, network)
    assert card.class_names is not None

    fresh = weights.load(path, num_classes=7)
    card = fresh.card
    assert (card.num_classes, card.class_names, card.metrics) == (7, None, {})
    assert not fresh.head.weight.any() and fresh.head.weight.shape == (7, 2048)  # pyright: ignore
    assert fresh.head.weight.requires_grad  # pyright: ignore
    with torch.no_grad():
        assert torch.equal(fresh.features(images()), network.features(images()))

    features = weights.load(path, num_classes=0)
    card = features.card
    assert card.num_classes == 0
    with torch.no_grad():
        assert torch.equal(features(images()), network.features(images()))

    weights.save(tmp_path / "headless.safetensors", features)
    weights.export(tmp_path / "headless.npz", features, "npz")
    for file in ("headless.safetensors", "headless.npz"):
        assert weights.load(tmp_path / file).card.num_classes == 0
        assert weights.load(tmp_path / file, num_classes=4)(images()).shape == (2, 4)


def test_input_channels_as_in_timm(tmp_path: Path) -> None:
    from timm.models._manipulate import adapt_input_conv

    network = ours()
    weights.save(tmp_path / "m.safetensors", network)
    for channels in (1, 2, 4, 7):
        adapted = weights.load(tmp_path / "m.safetensors", in_chans=channels)
        card = adapted.card
        assert card.architecture.in_chans == channels
        assert torch.allclose(adapted.root.weight, adapt_input_conv(channels, network.root.weight))
        assert adapted(images(channels)).shape == (2, CLASSES)
    # A grey image through the summed kernel is that image as RGB through the original one, but for the standardization.
    weights.save(tmp_path / "grey.safetensors", weights.load(tmp_path / "m.safetensors", in_chans=1))
    assert weights.load(tmp_path / "grey.safetensors", in_chans=3).card.architecture.in_chans == 3


def test_without_pretraining(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = weights.load("r26x1", num_classes=3, pretrained=False)
    card = network.card
    assert (network.architecture.units, card.num_classes, card.source) == ((2, 2, 2, 2), 3, "")
    weights.save(tmp_path / "m.safetensors", network)
    trained = weights.load(tmp_path / "m.safetensors")
    random = weights.load(tmp_path / "m.safetensors", pretrained=False)
    card = random.card
    assert card.source == "random weights"
    assert not torch.equal(random.root.weight, trained.root.weight)
    with pytest.raises(WeightsError, match=r"is an architecture.*bit-m-r50x1"):
        weights.load("r50x1")
    with pytest.raises(ConfigError, match="num_classes must be 0 or more"):
        weights.load("r26x1", num_classes=-1, pretrained=False)


# --- Strictness


@pytest.mark.parametrize("layout", FOREIGN)
def test_missing_unknown_and_misshapen_tensors(tmp_path: Path, layout: str) -> None:
    state = dict(ours().state_dict())
    name = names.LAYOUTS[layout].their_name
    some = re.escape(name("blocks.2.0.conv2.weight"))

    whole = foreign_file(tmp_path, layout)
    assert_same_weights(weights.load(whole), ours())

    with pytest.raises(WeightsError, match=rf"1 tensor missing: {some}"):
        weights.load(foreign_file(tmp_path, layout, {n: t for n, t in state.items() if n != "blocks.2.0.conv2.weight"}))

    path = foreign_file(tmp_path, layout)
    with zipfile.ZipFile(path, "a") as archive, archive.open("stray/tensor.npy", "w") as file:
        np.lib.format.write_array(file, np.zeros(3))
    with pytest.raises(WeightsError, match="1 tensor that a BiT network has no use for: stray/tensor"):
        weights.load(path)

    kernel = torch.zeros(256, 256, 3, 5)
    with pytest.raises(WeightsError, match=rf"{some} is \(.*5.*\) and should be \(") as caught:
        weights.load(foreign_file(tmp_path, layout, state | {"blocks.2.0.conv2.weight": kernel}))
    assert str(tuple(names.LAYOUTS[layout].their_value("blocks.2.0.conv2.weight", kernel).shape)) in str(caught.value)

    with pytest.raises(WeightsError, match=re.escape(name("head.bias"))):
        weights.load(foreign_file(tmp_path, layout, {n: t for n, t in state.items() if n != "head.bias"}))
    with pytest.raises(WeightsError, match=re.escape(name("head.weight"))):
        weights.load(foreign_file(tmp_path, layout, {n: t for n, t in state.items() if n != "head.weight"}))
    with pytest.raises(WeightsError, match=re.escape(name("blocks.1.0.norm1.weight"))):
        weights.load(foreign_file(tmp_path, layout, {n: t for n, t in state.items() if not n.startswith("blocks.1.")}))


def test_same_tensor_twice_and_mixed_forms(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in ours().state_dict().items()}
    torch.save(state | {"module.norm.weight": state["norm.weight"]}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"norm\.weight and module\.norm\.weight are the same"):
        weights.load(tmp_path / "a.pt")
    torch.save(state | {"stem.conv.weight": state["root.weight"]}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="mixes the names of several forms: bit, timm"):
        weights.load(tmp_path / "a.pt")


def test_other_networks(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"holds no BiT network.*It holds weight, bias"):
        weights.load(tmp_path / "a.pt")
    torch.save({"root.weight": torch.zeros(60, 3, 7, 7)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"\(60, 3, 7, 7\).*64 \* width"):
        weights.load(tmp_path / "a.pt")
    hybrid = transformers.BitForImageClassification(
        transformers.BitConfig(depths=[1, 1, 1, 1], layer_type="bottleneck")
    )
    hybrid.save_pretrained(tmp_path / "hybrid")
    with pytest.raises(WeightsError, match="layer_type is 'bottleneck'"):
        weights.load(tmp_path / "hybrid")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text('{"model_type": "vit_mae"}')
    torch.save({}, tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="type 'vit_mae'"):
        weights.load(tmp_path / "vit")


def test_header_and_tensors_must_agree(tmp_path: Path) -> None:
    state = ours().state_dict()
    for card, message in ((card_of(DEEPER), "missing"), (card_of(num_classes=6), "6 classes, its head has 5")):
        safetensors.torch.save_file(state, tmp_path / "m.safetensors", {"bigtransfer": card.to_json()})
        with pytest.raises(WeightsError, match=message):
            weights.load(tmp_path / "m.safetensors")
    safetensors.torch.save_file(state, tmp_path / "m.safetensors", {"bigtransfer": "{}"})
    with pytest.raises(WeightsError, match=r"m\.safetensors: its card: .* missing required field format"):
        weights.load(tmp_path / "m.safetensors")


# --- Damage


def test_the_network_does_not_change_with_its_file(tmp_path: Path) -> None:
    """The numbers are copies: a file that is rewritten in place must not change a network that came from it."""
    for form, name in (("bit", "m.safetensors"), ("torch", "m.pth"), ("npz", "m.npz")):
        path = tmp_path / name
        weights.export(path, ours(), form)  # pyright: ignore
        network = weights.load(path)
        with open(path, "rb+") as file:
            file.write(b"\x55" * path.stat().st_size)
        assert_same_weights(network, ours())


def test_the_digest_is_of_names_types_shapes_and_bytes_in_whatever_order() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([3], dtype=torch.int64)
    written = b"a torch.float32 (1, 2) " + a.numpy().tobytes() + b"b torch.int64 (1,) " + b.numpy().tobytes()
    assert weights.digest({"b": b, "a": a}) == weights.digest({"a": a, "b": b}) == hashlib.sha256(written).hexdigest()


def test_a_long_list_of_tensors_is_cut_short(tmp_path: Path) -> None:
    state = dict(ours().state_dict())
    for kept, said in (
        (37, r"6 tensors missing: [^,]+(, [^,]+){5}\.$"),
        (35, "8 tensors missing: [^,]+(, [^,]+){5} and 2 more"),
    ):
        torch.save(dict(list(state.items())[:kept]), tmp_path / "a.pt")
        with pytest.raises(WeightsError, match=said):
            weights.load(tmp_path / "a.pt")


def test_the_descriptions_for_timm_and_transformers_in_full(tmp_path: Path) -> None:
    card = card_of(num_classes=2)
    configs.write_timm(tmp_path, card)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described == {
        "architecture": "resnetv2_50",
        "num_classes": 2,
        "num_features": 2048 * TINY.width,
        "model_args": {
            "layers": list(TINY.units), "width_factor": TINY.width, "stem_type": "fixed", "norm_layer": "groupnorm",
        },
        "label_names": ["class 0", "class 1"],
        "pretrained_cfg": {
            "tag": "bigtransfer", "custom_load": False, "input_size": [3, 56, 56], "pool_size": [2, 2],
            "fixed_input_size": False, "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 2, "first_conv": "stem.conv",
            "classifier": "head.fc", "license": "cc0-1.0",
        },
    }  # fmt: skip
    published = card_of(catalog.ARCHITECTURES["r50x1"], 0, input=InputSpec(size=64), class_names=None)
    configs.write_timm(tmp_path, published)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["architecture"] == "resnetv2_50x1_bit" and described["pretrained_cfg"]["crop_mode"] == "squash"
    assert "model_args" not in described and "label_names" not in described

    configs.write_transformers(tmp_path, card)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described == {
        "architectures": ["BitForImageClassification"], "model_type": "bit", "num_channels": 3,
        "embedding_size": 64 * TINY.width, "hidden_sizes": [size * TINY.width for size in (256, 512, 1024, 2048)],
        "depths": list(TINY.units), "layer_type": "preactivation", "hidden_act": "relu", "global_padding": None,
        "num_groups": 32, "embedding_dynamic_padding": False, "output_stride": 32, "width_factor": 1,
        "torch_dtype": "float32", "id2label": {"0": "class 0", "1": "class 1"}, "label2id": {"class 0": 0, "class 1": 1},
    }  # fmt: skip
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == {
        "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 64}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 56, "width": 56}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_convert_rgb": True,
    }  # fmt: skip
    configs.write_transformers(tmp_path, dataclasses.replace(published, multi_label=True))
    described = json.loads((tmp_path / "config.json").read_text())
    assert (
        described["architectures"] == ["BitModel"] and "problem_type" not in described and "id2label" not in described
    )
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (processor["size"], processor["resample"], processor["do_center_crop"]) == (
        {"height": 64, "width": 64},
        2,
        False,
    )
    configs.write_transformers(tmp_path, dataclasses.replace(card, multi_label=True))
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "multi_label_classification"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    for name, kind in ((3, "int"), (("a", 1), "tuple"), (None, "NoneType"), (b"root.weight", "bytes"), (1.5, "float")):
        torch.save(dict(ours().state_dict()) | {name: torch.zeros(3)}, tmp_path / "a.pt")
        with pytest.raises(WeightsError, match=rf"a\.pt: a tensor's name is .*, of type {kind};"):
            weights.load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(2048).to_sparse(), "a sparse_coo tensor"),
        (torch.zeros(2048, device="meta"), "a meta tensor"),
        (torch.zeros(2048, dtype=torch.complex64), "holds torch.complex64"),
        (torch.zeros(2048, dtype=torch.bool), "holds torch.bool"),
    ],
)
def test_tensors_without_plain_numbers(tmp_path: Path, tensor: Tensor, kind: str) -> None:
    torch.save(dict(ours().state_dict()) | {"norm.bias": tensor}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=rf"a\.pt.*({kind}|besides tensors)"):
        weights.load(tmp_path / "a.pt")


def npz_with(path: Path, replaced: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A network's .npz file in which one member's bytes, header and all, are others."""
    layout = names.LAYOUTS["npz"]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, tensor in ours().state_dict().items():
            raw = io.BytesIO()
            np.lib.format.write_array(raw, layout.their_value(name, tensor).contiguous().numpy())
            content = replaced(raw.getvalue()) if name == "norm.weight" else raw.getvalue()
            archive.writestr(f"{layout.their_name(name)}.npy", content)
    return path


def test_npz_written_by_python_2_is_read_without_a_word(tmp_path: Path) -> None:
    weights.load(npz_with(tmp_path / "m.npz", lambda raw: raw.replace(b"(2048,), } ", b"(2048L,), }")))


@pytest.mark.parametrize(
    "replaced",
    [
        lambda raw: raw.replace(b"{'descr': '<f4'", b"{'descr': '<f4"),  # TokenError in NumPy
        lambda raw: raw.replace(b"{'descr'", b"((((((("),
        lambda raw: raw.replace(b"(2048,)", b"(-204,)"),
        lambda raw: raw.replace(b"(2048,)", b"(204.,)"),
        lambda raw: raw.replace(b"'<f4'", b"'<q4'"),
        lambda raw: raw.replace(b"'<f4'", b"'<M8'"),
        lambda raw: raw[:6] + b"\x09" + raw[7:],
        lambda raw: raw[:40],
        lambda raw: b"",
    ],
)
def test_headers_in_npz_that_are_none(tmp_path: Path, replaced: Callable[[bytes], bytes]) -> None:
    with pytest.raises(WeightsError, match=r"m\.npz"):
        weights.load(npz_with(tmp_path / "m.npz", replaced))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_npz_whole_and_with_changed_bytes(tmp_path: Path, compression: int) -> None:
    """zlib.error, LZMAError, OSError, NotImplementedError, struct.error, ...: whatever the libraries raise."""
    np.savez_compressed(
        tmp_path / "small.npz", **{"resnet/root_block/standardized_conv2d/kernel": np.ones((7, 7, 3, 64))}
    )
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", compression) as archive, zipfile.ZipFile(tmp_path / "small.npz") as source:
        for entry in source.namelist():
            archive.writestr(entry, source.read(entry))
    content, rng = path.read_bytes(), np.random.default_rng(compression)
    for _ in range(150):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"m\.npz"):
            weights.load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_with_changed_bytes(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "m.pth"
    torch.save(
        {"model": {"root.weight": torch.zeros(64, 3, 7, 7)}, "step": 3}, path, _use_new_zipfile_serialization=zipped
    )
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(content)
        for place in rng.integers(0, min(len(content), 1500), rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"m\.pth"):
            weights.load(path)


def test_anything_that_a_reader_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.save(tmp_path / "m.safetensors", ours())
    for error in (AssertionError(), struct.error("short"), RecursionError("deep"), NotImplementedError("codec 99")):

        def fails(*arguments: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(formats, "_open_safetensors", fails)
        with pytest.raises(WeightsError, match=r"m\.safetensors is damaged"):
            weights.load(tmp_path / "m.safetensors")
    for error in (KeyboardInterrupt(), MemoryError()):

        def stopped(*arguments: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(formats, "_open_safetensors", stopped)
        with pytest.raises(type(error)):
            weights.load(tmp_path / "m.safetensors")


def test_small_files_of_huge_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed zeros, and a tensor that repeats one number in all its places."""
    shapes = names.shapes(Architecture(units=(1, 1, 1, 1), width=16), 1000)
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, tmp_path / "a.pt")
    claimed = 4 * sum(math.prod(shape) for shape in shapes.values())
    with pytest.raises(
        WeightsError, match=rf"a\.pt has [\d,]+ bytes but claims .* {claimed:,}\..*--limits archive_ratio="
    ):
        weights.load(tmp_path / "a.pt")

    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": (300 * 2**20,)})
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("resnet/group_norm/gamma.npy", raw.getvalue())
        archive.infolist()[0].file_size = len(raw.getvalue()) + 4 * 300 * 2**20  # as the directory at the end then says
    with pytest.raises(WeightsError, match=r"b\.npz has [\d,]+ bytes but claims"):
        weights.load(tmp_path / "b.npz")

    # A small file of an untrained network is no bomb, and who means it may raise the limit.
    np.savez_compressed(
        tmp_path / "zeros.npz",
        **{
            names.LAYOUTS["npz"].their_name(n): names.LAYOUTS["npz"].their_value(n, torch.zeros_like(t)).numpy()
            for n, t in ours().state_dict().items()
        },
    )
    assert not weights.load(tmp_path / "zeros.npz").root.weight.any()
    monkeypatch.setenv("BIT_LIMITS", "archive_ratio=100G")
    with pytest.raises(WeightsError, match=r"damaged|no BiT network"):
        weights.load(tmp_path / "b.npz")


def test_compressed_pytorch_archive(tmp_path: Path) -> None:
    """Its tensors cannot be mapped into memory: they would be read as the compressed bytes."""
    weights.export(tmp_path / "a.pth", ours(), "timm")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for entry in source.namelist():
            archive.writestr(entry, source.read(entry))
    assert_same_weights(weights.load(tmp_path / "b.pth"), ours())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
@pytest.mark.parametrize("form", ["bit", "npz", "torch"])
def test_truncated_files(tmp_path: Path, form: str, share: float) -> None:
    path = tmp_path / {"bit": "m.safetensors", "npz": "m.npz", "torch": "m.pth"}[form]
    weights.export(path, ours(), form)  # pyright: ignore
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"damaged or incomplete|is empty|no weight file"):
        weights.load(path)


def test_flipped_byte_in_npz_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    weights.export(path, ours(), "npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"damaged or incomplete \(Bad CRC"):
        weights.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"\n <?xml version='1.0'?><Error>NoSuchKey</Error>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), r"\.npz file of the same model"),
        (b"", "is empty"),
        (b"hello", "no weight file"),
        (b"PK\x03\x04" + bytes(50), "damaged"),
        (b"\x80\x02" + bytes(50), "damaged|besides tensors"),
        ((1 << 40).to_bytes(8, "little") + b"{", "no weight file"),
        ((50).to_bytes(8, "little") + b"{" + bytes(60), "damaged"),
    ],
)
def test_what_is_no_weight_file(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("m.npz", "m.safetensors", "m.pth.tar"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message) as caught:
            weights.load(tmp_path / name)
        assert name in str(caught.value)


def test_a_header_as_long_as_a_web_page_begins(tmp_path: Path) -> None:
    """safetensors begins with the header's length, whose bytes may be those of "<" and white space before it."""
    file = tmp_path / "m.safetensors"
    weights.save(file, ours())
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for wanted in (0x3C, 0x3C20):
        padding = (wanted - length) % (1 << (8 if wanted < 256 else 16))
        header = content[8 : 8 + length] + b" " * padding
        file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        assert file.read_bytes().lstrip(b" ")[:1] == b"<"
        assert_same_weights(weights.load(file), ours())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('owned', 'w')",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"root.weight": Evil()}}, "evil.pth.tar")
    with pytest.raises(WeightsError, match="Python objects besides tensors"):
        weights.load("evil.pth.tar")
    np.savez("evil.npz", **{"resnet/root_block/standardized_conv2d/kernel": np.array([Evil()], dtype=object)})
    with pytest.raises(WeightsError, match="pickled objects"):
        weights.load("evil.npz")
    assert not Path("owned").exists()


def test_npz_header_cannot_lie_about_size(tmp_path: Path) -> None:
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50,)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("resnet/group_norm/gamma.npy", raw.getvalue())
    with pytest.raises(WeightsError, match="damaged"):
        weights.load(tmp_path / "bomb.npz")


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in ours().state_dict().items()}
    torch.save(state | {"norm.bias": state["norm.bias"].int()}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"norm\.bias holds torch\.int32"):
        weights.load(tmp_path / "a.pt")


# --- Finding things


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no model"):
        weights.load(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(WeightsError, match="has not finished"):
        weights.load(tmp_path)
    weights.export(tmp_path / "only.npz", ours(), "npz")
    assert_same_weights(weights.load(tmp_path), ours())
    weights.save(tmp_path / "other.safetensors", ours())
    with pytest.raises(WeightsError, match="2 weight files"):
        weights.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="split over several files"):
        weights.load(tmp_path)


def test_what_exists_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert weights.describe("google/bit-50").name == "bit-m-r50x1-ilsvrc2012"
    weights.export("google/bit-50", ours(), "transformers")
    assert weights.describe("google/bit-50").num_classes == CLASSES


def test_unknown_names() -> None:
    with pytest.raises(UnknownModel, match="bit-m-r50x1"):
        weights.load("bit-m-r50x")
    with pytest.raises(WeightsError, match=r"no file or folder .*nowhere\.npz"):
        weights.load("nowhere.npz")
    with pytest.raises(WeightsError, match="no file or folder"):
        weights.load("no/where")
    for bad in ("hf-hub:justname", "hf-hub:a/b/c"):
        with pytest.raises(ConfigError, match="user/name"):
            weights.load(bad, offline=True)


def test_foreign_pixels_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights.export(tmp_path, ours(), "transformers")
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.485, 0.456, 0.406]}))
    weights.load(tmp_path)
    assert "always scaled to [-1, 1]" in caplog.text


def test_broken_json_beside_weights(tmp_path: Path) -> None:
    weights.export(tmp_path, ours(), "transformers")
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BitError, match=r"config\.json"):
            weights.load(tmp_path)


def test_header_is_read_without_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.save(tmp_path / "m.safetensors", ours())
    with formats.open_weights(tmp_path / "m.safetensors") as contents:
        assert contents.card == card_of()
        assert contents.shapes["head.weight"] == (CLASSES, 2048)
        assert torch.equal(contents.read("head.weight"), ours().head.weight)  # pyright: ignore


# --- What timm and transformers say, where somebody else wrote it

BAD_SIZES = (0, -1, "224", 1.5, [224], {"shortest_edge": "x"}, {"height": -1, "width": 3}, 10**9)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("pretrained_cfg", value) for value in (3, [1], "x")),
        *(
            (f"pretrained_cfg.{key}", value)
            for key in ("interpolation", "crop_mode", "license")
            for value in (3, [], {})
        ),
        *(
            ("pretrained_cfg.input_size", value)
            for value in (3, "x", [], [3, 224, 0], [3, 224, "224"], [1] * 4, [3, 3, 10**9])
        ),
        *(("pretrained_cfg.crop_pct", value) for value in (0, -1, 1e-9, "1", math.nan, 1e9)),
        *(
            (f"pretrained_cfg.{key}", value)
            for key in ("mean", "std")
            for value in (0.5, "x", ["x"], [None], [math.nan])
        ),
        *(("label_names", value) for value in ("ab", [1, 2], [None], [["a"]], 3)),
        *(("pretrained_cfg.labels", value) for value in ("ab", [1, 2], 3)),
        *(("architecture", value) for value in (3, None, [])),
    ],
)
def test_a_timm_folder_of_another_form_is_refused(tmp_path: Path, field: str, value: object) -> None:
    config: dict[str, Any] = {"architecture": "resnetv2_50x1_bit", "pretrained_cfg": {"input_size": [3, 64, 64]}}
    outer, _, inner = field.partition(".")
    (config[outer] if inner else config)[inner or outer] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=rf"^{tmp_path}(/config\.json: {field}| asks for an input size of)"):
        configs.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        *(("config", "id2label", value) for value in (3, ["a"], {"0": ["a"]}, {"0": None})),
        *(("config", "model_type", value) for value in (3, [], {})),
        *(("preprocessor_config", key, value) for key in ("size", "crop_size") for value in BAD_SIZES),
        *(("preprocessor_config", "do_center_crop", value) for value in (1, "x", [])),
        *(("preprocessor_config", "resample", value) for value in ("x", 1.5, [])),
        *(
            ("preprocessor_config", key, value)
            for key in ("image_mean", "image_std")
            for value in (0.5, ["x"], [math.nan])
        ),
    ],
)
def test_a_transformers_folder_of_another_form_is_refused(tmp_path: Path, file: str, field: str, value: object) -> None:
    files: dict[str, dict[str, Any]] = {
        "config": {"model_type": "bit"},
        "preprocessor_config": {"size": {"shortest_edge": 64}, "crop_size": 56},
    }
    files[file][field] = value
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=rf"^{tmp_path}(/{file}\.json: {field}| asks for an input size of)"):
        configs.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 100_000, '{"model_type": "\\ud800"}'])
def test_a_folder_whose_description_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=rf"^{tmp_path}"):
        configs.read(tmp_path)


def test_what_a_foreign_description_may_leave_out_or_say_more(tmp_path: Path) -> None:
    for config, size, class_names in (
        ({"architecture": "resnetv2_50x1_bit", "input_size": [3, 64, 64], "label_names": ["a", "b"]}, 64, ("a", "b")),
        ({"architecture": "resnetv2_50x1_bit", "pretrained_cfg": {"crop_pct": None, "labels": {"0": "a"}}}, None, None),
        (
            {"architecture": "resnetv2_50x1_bit", "pretrained_cfg": {"input_size": [3, 64, 72], "crop_pct": 1.2}},
            72,
            None,
        ),
        ({"model_type": "bit", "id2label": {"0": "a", "1": 7}, "x": [1]}, None, ("a", "7")),
        ({"architecture": "vit"}, None, None),
        ({}, None, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        read = configs.read(tmp_path)
        assert ((read.input.size if read.input else None), read.class_names) == (size, class_names)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"crop_pct": 0.95, "interpolation": "bilinear"}, InputSpec(size=64, mode="aspect", crop_pct=0.95)),
        ({"crop_pct": 1.0}, InputSpec(size=64, mode="aspect", crop_pct=1.0, interpolation="bicubic")),
        ({"crop_pct": 1.2}, InputSpec(size=64, mode="aspect", crop_pct=1.0, interpolation="bicubic")),
        ({}, InputSpec(size=64, mode="aspect", crop_pct=0.875, interpolation="bicubic")),
        ({"crop_mode": "squash", "crop_pct": 0.5}, InputSpec(size=64, interpolation="bicubic")),
        ({"crop_mode": "center"}, InputSpec(size=64, mode="aspect", crop_pct=0.875, interpolation="bicubic")),
    ],
)
def test_the_input_that_timm_describes(tmp_path: Path, config: dict[str, Any], expected: InputSpec) -> None:
    """timm: no crop_pct is 0.875, squash resizes both sides to the size, and an image is never enlarged past the crop."""
    described = {"architecture": "resnetv2_50x1_bit", "pretrained_cfg": {"input_size": [3, 64, 64], **config}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert configs.read(tmp_path).input == expected


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\0b"])
def test_names_that_no_file_can_have(name: str) -> None:
    assert catalog.meant(name) is None
    with pytest.raises(WeightsError):
        weights.load(name)
