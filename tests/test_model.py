"""The torch network against the float64 NumPy network written from the description."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from bigtransfer import catalog, model
from bigtransfer.errors import ConfigError
from bigtransfer.ops import native
from bigtransfer.weights import names
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
    net, reference, x = ours(params, (1, 2, 1, 1)), network.Network(params), tensor_of(images)
    with torch.inference_mode():
        for found, expected in zip(
            net.forward_intermediates(x, 4, intermediates_only=True), reference.maps(images), strict=True
        ):
            assert relative(nhwc(found), expected) <= 1e-5
        assert relative(net.features(x), reference.features(images)) <= 1e-5


def test_without_head_the_result_is_the_features() -> None:
    net = model.ResNetV2(TINY, num_classes=0)
    x = tensor_of(images_of(2, 32, 32))
    with torch.inference_mode():
        assert net(x).shape == (2, net.num_features)
        assert torch.equal(net(x), net.features(x))


@pytest.mark.parametrize(
    ("parameters", "dtype", "bound"),
    # The bounds are one and a quarter times what was seen.
    [
        (torch.float32, torch.bfloat16, 0.025),
        (torch.bfloat16, torch.bfloat16, 0.026),
        (torch.float16, torch.float16, 0.0026),
        (torch.float32, torch.float16, 0.0026),
        (torch.float32, torch.float64, 1e-6),
        (torch.float64, torch.float64, 1e-12),
        (torch.bfloat16, torch.float32, 0.026),
    ],
)
def test_every_dtype(parameters: torch.dtype, dtype: torch.dtype, bound: float) -> None:
    """Of the parameters and of the images: logits and features have the parameters', maps the images'."""
    params = network.random_params()
    images = images_of(4, 64, 64)
    net, x = ours(params).to(parameters), tensor_of(images, dtype)
    logits = net(x)
    assert logits.dtype == net.features(x).dtype == parameters and net.forward_features(x).dtype == dtype
    assert relative(logits, network.logits(params, images)) <= bound
    logits.sum().backward()
    assert all(p.grad.dtype == parameters and p.grad.isfinite().all() for p in net.parameters())


def test_pooled_features_are_not_rounded_to_bfloat16() -> None:
    net, x = ours(network.random_params()), tensor_of(images_of(2, 128, 96), torch.bfloat16)
    with torch.inference_mode():
        expected = net.forward_features(x).double().mean((2, 3)).numpy()
        assert relative(net.features(x), expected) <= 1e-6
        assert relative(net(x), expected @ net.head.weight.double().numpy().T + net.head.bias.double().numpy()) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        net = model.ResNetV2(TINY, num_classes=3)
        net.reset_classifier(4)
        y = net(torch.rand(1, 3, 16, 16))
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == dtype and all(p.dtype == dtype for p in net.parameters())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_at_any_size_and_for_no_image(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    net = ours(network.random_params(classes=3)).to(memory_format=memory_format)
    exact = copy.deepcopy(net).double()
    for n, h, w in ((0, 24, 24), (1, 1, 1), (2, 40, 1), (1, 33, 9)):
        x = tensor_of(images_of(n, h, w)).contiguous(memory_format=memory_format) if n else torch.zeros(0, 3, h, w)
        y = net(x.to(dtype))
        assert y.shape == (n, 3)
        for one, images in ((net, x.to(dtype)), (exact, x.double())):
            one.zero_grad()
            (one(images) * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        grads = [torch.cat([p.grad.double().flatten() for p in one.parameters()]) for one in (net, exact)]
        if n == 0:
            assert not grads[0].any()
        elif min(h, w) > 8 or (dtype == torch.float32 and native.library() and memory_format == torch.channels_last):
            # (At a few pixels, groups of two to four numbers magnify every rounding.)
            assert relative(grads[0], grads[1].numpy()) <= (1e-4 if dtype == torch.float32 else 0.3), (h, w)
        assert grads[0].isfinite().all() and grads[0].norm() <= 3 * grads[1].norm(), (h, w)


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
    assert relative(nhwc(net.forward_intermediates(x, 1, intermediates_only=True)[0]), expected) <= 1e-5
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


@pytest.mark.parametrize(("norm", "standardized"), [("gn", True), ("bn", False)])
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_compilers_and_tracers(norm: str, standardized: bool) -> None:
    net = ours(network.random_params(), norm=norm, weight_standardization=standardized).eval()
    x, other = tensor_of(images_of(2, 40, 33)), tensor_of(images_of(2, 40, 33, seed=2))
    with torch.no_grad():
        expected, last = net(other), net.forward_features(other)
    scale = float(expected.abs().max())
    extractor = create_feature_extractor(net, {"blocks.2": "third", "norm": "last", "head": "logits"})
    compilers = [torch.jit.script(net), torch.fx.symbolic_trace(net), lambda x: extractor(x)["logits"]]
    if norm == "gn":
        compilers += [torch.jit.trace(net, x)]
    for compiled in compilers:
        found = compiled(other)
        assert float((found - expected).detach().abs().max()) <= 1e-4 * scale
    found = extractor(other)
    assert found["third"].shape == (2, 1024, 3, 3)
    assert torch.allclose(found["last"].detach(), last, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_torch_compile_and_export() -> None:
    net = ours(network.random_params()).eval()
    x = tensor_of(images_of(2, 96, 64))
    sizes = {0: torch.export.Dim("n", min=1, max=64), **{i: torch.export.Dim(f"s{i}", min=64, max=512) for i in (2, 3)}}
    exported = torch.export.export(net, (x,), dynamic_shapes={"x": sizes}).module()
    other = tensor_of(images_of(3, 80, 100))
    expected = net(other)
    for found in (exported(other), torch.compile(net, backend="aot_eager", fullgraph=True)(other)):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.detach().abs().max()))
    found.sum().backward()
    assert net.root.weight.grad.any()


def test_traced_networks_learn_too() -> None:
    """With the very gradients."""
    net = ours(network.random_params(classes=3))
    x = tensor_of(images_of(2, 33, 33))
    graph = torch.fx.symbolic_trace(net)
    graph(x).square().sum().backward()
    found = [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    net(x).square().sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(found, net.parameters(), strict=True))


# --- timm's habits


@pytest.fixture
def both() -> tuple[model.ResNetV2, Any]:
    """The same network in our class and in timm's."""
    pytest.importorskip("timm")
    from tests.test_weights import timm_network

    net = model.ResNetV2((1, 2, 1, 1), num_classes=5)
    net.load_state_dict(ours(network.random_params((1, 2, 1, 1), classes=5), (1, 2, 1, 1)).state_dict())
    theirs = timm_network(net.architecture, 5)
    layout = names.LAYOUTS["timm"]
    theirs.load_state_dict({layout.their_name(n): layout.their_value(n, t) for n, t in net.state_dict().items()})
    return net.eval(), theirs.eval()


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Up to the effect of timm's other eps."""
    return found.shape == expected.shape and relative(found, expected.detach().double().numpy()) <= 1e-4


def test_forward_features_and_head_as_in_timm(both: tuple[model.ResNetV2, Any]) -> None:
    net, theirs = both
    x = tensor_of(images_of(2, 45, 64))
    with torch.no_grad():
        last = net.forward_features(x)
        assert same(last, theirs.forward_features(x))
        assert same(net.forward_head(last), theirs.forward_head(last))
        assert same(net.forward_head(last, pre_logits=True), theirs.forward_head(last, pre_logits=True))
        assert same(net(x), theirs(x))
    assert net.num_features == theirs.num_features and net.num_classes == theirs.num_classes
    assert net.get_classifier() is net.head


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("indices", [None, 1, 3, 5, [0], [1, 3], [-1], [-2, 0], (4, 2), [3, 3]])
def test_forward_intermediates_as_in_timm(
    both: tuple[model.ResNetV2, Any], indices: Any, stop_early: bool, norm: bool
) -> None:
    net, theirs = both
    x = tensor_of(images_of(1, 40, 33))
    with torch.no_grad():
        last, maps = net.forward_intermediates(x, indices, norm, stop_early)
        last_, maps_ = theirs.forward_intermediates(x, indices, norm, stop_early)
        alone = net.forward_intermediates(x, indices, norm, stop_early, intermediates_only=True)
    assert same(last, last_)
    assert len(maps) == len(maps_) == len(alone)
    assert all(same(a, b) and torch.equal(a, c) for a, b, c in zip(maps, maps_, alone, strict=True))


def test_intermediates_that_there_are_not(both: tuple[model.ResNetV2, Any]) -> None:
    net, theirs = both
    x = torch.zeros(1, 3, 8, 8)
    for indices in (0, 6, -1, [5], [-6], []):
        with pytest.raises(ConfigError, match="maps 0 to 4"):
            net.forward_intermediates(x, indices)
    with pytest.raises(ConfigError, match="NCHW"):
        net.forward_intermediates(x, output_fmt="NLC")
    info = [(each["num_chs"], each["reduction"]) for each in net.feature_info]
    assert info == [(each["num_chs"], each["reduction"]) for each in theirs.feature_info]
    modules = dict(net.named_modules())
    assert [type(modules[each["module"]]).__name__ for each in net.feature_info] == ["StdConv2d"] + 4 * ["Sequential"]
    assert [each["num_chs"] for each in model.ResNetV2(TINY, 2).feature_info] == [128, 512, 1024, 2048, 4096]


@pytest.mark.parametrize("classes", [7, 0])
@pytest.mark.parametrize("pooling", [None, "avg", "max", "avgmax", "catavgmax", ""])
def test_reset_classifier_as_in_timm(both: tuple[model.ResNetV2, Any], pooling: str | None, classes: int) -> None:
    net, theirs = both
    net.card = dataclasses.replace(net.card, class_names=tuple("abcde"))
    x = tensor_of(images_of(2, 64, 96))
    for each in both:
        each.reset_classifier(classes, pooling)
    head = net.get_classifier()
    assert not head.training and net.num_classes == classes and net.card.class_names is None
    if classes:
        assert not head.weight.any() and not head.bias.any() and head.weight.requires_grad
        with torch.no_grad():
            head.weight.normal_()
            head.bias.normal_()
            theirs.get_classifier().weight.copy_(head.weight.reshape(theirs.get_classifier().weight.shape))
            theirs.get_classifier().bias.copy_(head.bias)
    with torch.no_grad():
        assert same(net(x), theirs(x))
        assert same(
            net.forward_head(net.forward_features(x), pre_logits=True),
            theirs.forward_head(theirs.forward_features(x), pre_logits=True),
        )
        assert torch.equal(model.fold(net)(x), net(x))
    with pytest.raises(ConfigError, match="'sum'"):
        net.reset_classifier(3, "sum")
    with pytest.raises(ConfigError, match="0 or more"):
        net.reset_classifier(-1)
    net.reset_classifier(2)
    assert net.global_pool == (pooling or ("avg" if pooling is None else ""))
    net.reset_classifier(2)
    net.card = dataclasses.replace(net.card, class_names=("a", "b"), metrics={"top1": 1.0})
    net.train().reset_classifier(2)
    assert net.card.class_names is None and not net.card.metrics and net.head.training


def test_gradient_checkpointing() -> None:
    net = ours(network.random_params((1, 2, 1, 1), classes=3), (1, 2, 1, 1))
    x = tensor_of(images_of(2, 33, 32))

    def gradients() -> tuple[list[torch.Tensor], int]:
        net.zero_grad()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            y = net(x).square().sum()
        memory = sum(kept)
        y.backward()
        return [parameter.grad.clone() for parameter in net.parameters()], memory

    plain, memory = gradients()
    net.set_grad_checkpointing()
    again, less = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert less < memory / 2
    maps = net.forward_intermediates(x, intermediates_only=True)
    net.set_grad_checkpointing(False)
    assert gradients()[1] == memory
    assert all(
        torch.equal(a, b) for a, b in zip(maps, net.forward_intermediates(x, intermediates_only=True), strict=True)
    )
    with pytest.raises(ConfigError, match="BatchNorm"):
        model.ResNetV2(TINY, norm="bn").set_grad_checkpointing()


@pytest.mark.skipif(native.library() is None, reason="no working C compiler here, and so no fast form")
def test_norms_can_be_computed_again_for_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the same gradients, and no norm's result is kept."""
    net = ours(network.random_params((1, 2, 1, 1), classes=3), (1, 2, 1, 1))
    x = tensor_of(images_of(2, 33, 32))
    hooks = torch.autograd.graph.saved_tensors_hooks
    kept: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []  # held, so that nothing else comes to lie where they lie

    class Watched(hooks):
        """What stays after the hooks that it replaces have had their say."""

        def __init__(self, pack: Callable[..., Any], unpack: Callable[..., Any]) -> None:
            def watched(tensor: torch.Tensor) -> Any:
                packed = pack(tensor)
                if isinstance(packed, torch.Tensor):
                    kept.append(packed)
                return packed

            super().__init__(watched, unpack)

    def gradients() -> tuple[list[torch.Tensor], int]:
        """And how many norms' results were kept for them."""
        net.zero_grad()
        kept.clear()
        norms.clear()
        with Watched(lambda t: t, lambda t: t):
            y = net(x).square().sum()
        results = len({t.data_ptr() for t in norms} & {t.data_ptr() for t in kept})
        y.backward()
        return [parameter.grad.clone() for parameter in net.parameters()], results

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", Watched)
    units = [module for module in net.modules() if isinstance(module, model.PreActBottleneck)]
    for norm in (norm for unit in units for norm in (unit.norm1, unit.norm2, unit.norm3)):
        norm.register_forward_hook(lambda module, given, y: norms.append(y))
    plain, results = gradients()
    assert results == 3 * len(units)
    net.set_grad_checkpointing(norms_only=True)
    again, results = gradients()
    assert not results
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    for off in ({}, {"norms_only": True}):
        net.set_grad_checkpointing(False, **off)
        assert gradients()[1] == 3 * len(units)


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
