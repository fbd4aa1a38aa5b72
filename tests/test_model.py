"""The torch network against the float64 NumPy network written from the description."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bigtransfer import catalog, model
from bigtransfer.ops import native
from tests.reference import network
from tests.reference.ops import Array

TINY = (1, 1, 1, 1)


def state_of(params: network.Params) -> dict[str, torch.Tensor]:
    """Our parameter names for the authors' ones (independent of `bigtransfer.weights.names`)."""
    state = {}
    for name, value in params.items():
        parts = name.removeprefix("resnet/").split("/")
        array = torch.from_numpy(value).float()
        if parts[0] == "root_block":
            state["root.weight"] = array.permute(3, 2, 0, 1)
        elif parts[0] == "head":
            state[f"head.{'weight' if parts[-1] == 'kernel' else 'bias'}"] = array[0, 0].T if array.ndim == 4 else array
        elif parts[0] == "group_norm":
            state[f"norm.{'weight' if parts[-1] == 'gamma' else 'bias'}"] = array
        else:
            prefix = f"blocks.{int(parts[0][5:]) - 1}.{int(parts[1][4:]) - 1}"
            which = "abc".index(parts[2]) + 1
            if parts[-1] == "kernel":
                layer = "proj" if parts[3] == "proj" else f"conv{which}"
                state[f"{prefix}.{layer}.weight"] = array.permute(3, 2, 0, 1)
            else:
                state[f"{prefix}.norm{which}.{'weight' if parts[-1] == 'gamma' else 'bias'}"] = array
    return state


def ours(params: network.Params, units: tuple[int, ...] = TINY, **options: object) -> model.ResNetV2:
    classes = len(params["resnet/head/conv2d/bias"])
    net = model.ResNetV2(units, num_classes=classes, **options)  # type: ignore[arg-type]
    missing, unexpected = net.load_state_dict(state_of(params), strict=False)
    # BatchNorm's running statistics are not parameters of the reference; nothing else may be left over.
    assert not unexpected and all("running" in name or "tracked" in name for name in missing)
    return net.to(memory_format=torch.channels_last)


def images_of(n: int, h: int, w: int, channels: int = 3, seed: int = 1) -> Array:
    """Smooth random pictures in [-1, 1] plus noise, exact in float32."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, h)[:, None, None] * rng.normal(size=(n, 1, 1, channels)) + np.linspace(0, 1, w)[:, None]
    return np.clip(0.6 * ramp + 0.3 * rng.normal(size=(n, h, w, channels)), -1, 1).astype(np.float32).astype(np.float64)


def tensor_of(images: Array, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    nchw = torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2)
    return nchw.contiguous(memory_format=torch.channels_last)


def relative(found: torch.Tensor, expected: Array) -> float:
    """|found - expected| / |expected| in the Euclidean norm over all elements."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found.detach().double().numpy() - expected) / np.linalg.norm(expected))


def nhwc(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8), (31, 31), (32, 32), (64, 64), (97, 65)])
def test_logits_at_any_size(size: tuple[int, int]) -> None:
    # At 1 to 6 pixels, groups of two to four numbers are normalized, which can amplify a rounding error a thousandfold.
    # Our own kernels bear it; torch's group_norm does not, so without a compiler only float64 tells right from wrong.
    bound = 1e-5 if native.library() or min(size) > 2 else 1e-2
    params = network.random_params()
    images = images_of(1, *size)
    expected = network.logits(params, images)
    net = ours(params)
    with torch.inference_mode():
        assert relative(net(tensor_of(images)), expected) <= bound
        found = net.double()(tensor_of(images, torch.float64))
    assert found.dtype == torch.float64
    assert relative(found, expected) <= 1e-10


@pytest.mark.parametrize(("units", "width"), [((1, 1, 1, 1), 2), ((2, 2, 2, 2), 1), ((1, 2, 3, 1), 1)])
def test_logits_of_other_architectures(units: tuple[int, ...], width: int) -> None:
    params = network.random_params(units, width)
    images = images_of(1, 33, 40)
    with torch.inference_mode():
        assert relative(ours(params, units, width=width)(tensor_of(images)), network.logits(params, images)) <= 1e-5


def test_r50x1() -> None:
    units = catalog.architecture("r50x1").units
    params = network.random_params(units, classes=1000)
    assert sum(value.size for value in params.values()) == 25_549_352  # published count
    images = images_of(1, 64, 64)
    bound = 1e-5 if native.library() else 2e-5  # torch's own GroupNorm rounds twice as much
    with torch.inference_mode():
        assert relative(ours(params, units)(tensor_of(images)), network.logits(params, images)) <= bound


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts(channels: int) -> None:
    params = network.random_params(channels=channels)
    images = images_of(2, 32, 32, channels)
    with torch.inference_mode():
        found = ours(params, in_chans=channels)(tensor_of(images))
    assert relative(found, network.logits(params, images)) <= 1e-5


def test_memory_format_of_the_input_does_not_matter() -> None:
    params = network.random_params()
    images = images_of(2, 40, 24)
    with torch.inference_mode():
        found = ours(params)(tensor_of(images).contiguous())
    assert relative(found, network.logits(params, images)) <= 1e-5


def test_features_and_maps() -> None:
    params = network.random_params((1, 2, 1, 1))
    images = images_of(2, 45, 64)
    net, reference = ours(params, (1, 2, 1, 1)), network.Network(params)
    with torch.inference_mode():
        for found, expected in zip(net.maps(tensor_of(images)), reference.maps(images), strict=True):
            assert relative(nhwc(found), expected) <= 1e-5
        assert relative(net.features(tensor_of(images)), reference.features(images)) <= 1e-5


def test_without_head_the_result_is_the_features() -> None:
    net = model.ResNetV2(TINY, num_classes=0)
    x = tensor_of(images_of(2, 32, 32))
    with torch.inference_mode():
        assert net(x).shape == (2, net.num_features)
        assert torch.equal(net(x), net.features(x))


def test_bfloat16_is_close() -> None:
    params = network.random_params()
    images = images_of(4, 64, 64)
    with torch.inference_mode():
        found = ours(params)(tensor_of(images, torch.bfloat16))
    assert found.dtype == torch.float32
    assert relative(found, network.logits(params, images)) <= 0.03


def test_pool_pads_with_zeros() -> None:
    """Where all real inputs of a border window are negative, the zeros win; max_pool2d's own padding would not."""
    params = network.random_params()
    images = images_of(2, 32, 32)
    net, x = ours(params), tensor_of(images)
    with torch.inference_mode():
        root = net.root(x)
        wrong = F.max_pool2d(root, 3, stride=2, padding=1)
        for block in net.blocks:
            wrong = block(wrong)
    expected = network.Network(params).maps(images)[-1]
    assert relative(nhwc(net.maps(x)[-1]), expected) <= 1e-5
    assert relative(nhwc(wrong), expected) > 1e-2


def test_projection_starts_from_the_pre_activated_input() -> None:
    params = network.random_params()
    images = images_of(2, 32, 32)
    reference = network.Network(params)
    x = torch.from_numpy(reference._root(images)).float().permute(0, 3, 1, 2)
    unit = ours(params).blocks[0][0]
    with torch.inference_mode():
        wrong = unit(x) - unit.proj(unit.norm1(x)) + unit.proj(x)
        assert relative(nhwc(unit(x)), reference.maps(images)[0]) <= 1e-5
        assert relative(nhwc(wrong), reference.maps(images)[0]) > 1e-1


@pytest.mark.parametrize(("norm", "standardized"), [("gn", False), ("bn", True), ("bn", False)])
def test_ablations(norm: str, standardized: bool) -> None:
    params = network.random_params()
    images = images_of(6, 33, 32)
    net = ours(params, norm=norm, weight_standardization=standardized).train()
    expected = network.Network(params, norm=norm, standardized=standardized)  # type: ignore[arg-type]
    with torch.no_grad():
        assert relative(net(tensor_of(images)), expected.logits(images)) <= 1e-5


def test_batch_norm_evaluates_with_running_statistics() -> None:
    net = ours(network.random_params(), norm="bn").eval()
    x = tensor_of(images_of(4, 32, 32))
    with torch.inference_mode():
        assert torch.allclose(net(x)[:1], net(x[:1]), rtol=1e-4, atol=1e-5)  # images do not see each other
        assert not torch.allclose(net(x), net.train()(x), rtol=1e-2)


def test_a_new_head_gives_exactly_zero() -> None:
    with torch.inference_mode():
        assert not model.build("r26x1", 7).forward(tensor_of(images_of(1, 32, 32))).any()


def test_gradients() -> None:
    """Float64 gradients against central differences of the reference, float32 gradients against the float64 ones."""
    params = network.random_params(classes=3)
    images = images_of(2, 32, 32)
    weights = np.random.default_rng(5).normal(size=(2, 3))

    def gradients(dtype: torch.dtype) -> dict[str, Array]:
        net = ours(params).to(dtype)
        (net(tensor_of(images, dtype)) * torch.from_numpy(weights).to(dtype)).sum().backward()
        return {name: parameter.grad.double().numpy() for name, parameter in net.named_parameters()}

    exact, single = gradients(torch.float64), gradients(torch.float32)
    for name, grad in exact.items():
        assert np.linalg.norm(single[name] - grad) <= 2e-5 * np.linalg.norm(grad), name

    rng = np.random.default_rng(6)
    for name, our_name in {
        "resnet/root_block/standardized_conv2d/kernel": "root.weight",
        "resnet/block2/unit01/a/proj/standardized_conv2d/kernel": "blocks.1.0.proj.weight",
        "resnet/block4/unit01/b/standardized_conv2d/kernel": "blocks.3.0.conv2.weight",
    }.items():
        direction = rng.normal(size=params[name].shape)
        # Far fewer than one of the network's ReLUs and maxima may flip within the step, or the slope is not one number.
        step = 1e-7 * np.linalg.norm(params[name]) / np.linalg.norm(direction)
        up, down = (
            (network.logits({**params, name: params[name] + sign * step * direction}, images) * weights).sum()
            for sign in (1, -1)
        )
        slope = float((exact[our_name].transpose(2, 3, 1, 0) * direction).sum())
        assert abs(slope - (up - down) / (2 * step)) <= 1e-5 * abs(slope), name


def test_backbone_parameters_are_all_but_the_head() -> None:
    net = model.ResNetV2(TINY, num_classes=3)
    names = {
        name for name, parameter in net.named_parameters() if any(parameter is p for p in net.backbone_parameters())
    }
    assert {name for name, _ in net.named_parameters()} - names == {"head.weight", "head.bias"}


def test_the_network_knows_its_card() -> None:
    net = model.build("r26x1", 3)
    assert (net.card.name, net.card.num_classes, net.card.class_names) == ("r26x1", 3, None)
    assert model.ResNetV2(TINY).card.name == "bit"
    card = dataclasses.replace(net.card, name="mine", class_names=("a", "b", "c"), metrics={"top1": 0.5})
    before = net.state_dict().keys()
    net.card = card
    assert net.card is card and net.state_dict().keys() == before
    assert copy.deepcopy(net).card == card and copy.copy(net).card == card
    assert pickle.loads(pickle.dumps(net)).card == card
    folded = model.fold(net).card
    assert folded == dataclasses.replace(card, architecture=model.fold(net).architecture)


def test_the_head_decides_how_many_classes_there_are() -> None:
    net = model.build("r26x1", 3)
    net.card = dataclasses.replace(net.card, name="mine", class_names=("a", "b", "c"), metrics={"top1": 0.5})
    old = net.card
    for head, classes in (
        (torch.nn.Linear(2048, 7), 7),
        (torch.nn.Sequential(torch.nn.Linear(2048, 9), torch.nn.ReLU(), torch.nn.Linear(9, 2), torch.nn.Flatten()), 2),
        (torch.nn.Identity(), 0),
    ):
        net.head = head
        assert net.num_classes == classes
        assert net.card == dataclasses.replace(old, num_classes=classes, class_names=None, metrics={})
    net.head = torch.nn.Linear(2048, 3)
    assert net.card is old
