"""Explanation maps: they add up to the logit, stand where the class is, and are of this network's weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bigtransfer import ops
from bigtransfer.catalog import Architecture, InputSpec, Readout
from bigtransfer.data import images as image_ops
from bigtransfer.errors import ConfigError, ImageError
from bigtransfer.evals import linear
from bigtransfer.evals.explanation import Explanation, explain
from bigtransfer.model import ResNetV2, build, joined
from bigtransfer.predictor import Predictor
from tests.data_makers import encoded, pattern

UNITS = (1, 1, 1, 1)
ALL = Readout(blocks=(0, 1, 2, 3))
SHAPES = {
    "the last map": Architecture(units=UNITS),
    "its mean alone": Architecture(units=UNITS, readout=Readout(blocks=(3,), maxima=False)),
    "all blocks": Architecture(units=UNITS, readout=ALL),
    "two sizes, mirrored": Architecture(units=UNITS, readout=dataclasses.replace(ALL, sizes=(24, 40), mirrored=True)),
    "two networks": Architecture(
        units=UNITS,
        readout=Readout(blocks=(1, 3), sizes=(40,)),
        beside=Architecture(units=UNITS, readout=Readout(blocks=(0, 3), sizes=(24,), mirrored=True)),
    ),
    "beside the last map": Architecture(units=UNITS, beside=Architecture(units=UNITS)),
}


def network_of(shape: str, classes: int = 4) -> ResNetV2:
    torch.manual_seed(0)
    network = build(SHAPES[shape], classes)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        network.head.weight.normal_(std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.stack([torch.tensor(pattern(40, 40, seed)) for seed in range(3)]).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_pooled_maps_are_what_the_features_are_made_of(shape: str, images: torch.Tensor) -> None:
    network = network_of(shape)
    with torch.no_grad():
        features = torch.zeros(len(images), network.num_features)
        for one in network.pooled_maps(images):
            pooled = one.share * ops.pool(one.map, one.pooling)
            features[:, one.start : one.start + pooled.shape[1]] += pooled
        torch.testing.assert_close(features, network.features(images))


@pytest.mark.parametrize("against", [None, (3, 0, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_map_adds_up_to_the_logit(shape: str, against: tuple[int, ...] | None, images: torch.Tensor) -> None:
    network, classes = network_of(shape), torch.tensor([0, 1, 2])
    other = None if against is None else torch.tensor(against)
    maps, logits, exact = explain(network, images, classes, other)
    with torch.no_grad():
        all_logits = network(images)
    rows = torch.arange(3)
    wanted = all_logits[rows, classes] - (0 if other is None else all_logits[rows, other])
    assert exact and maps.shape == (3, 10, 10)
    torch.testing.assert_close(logits, wanted)
    torch.testing.assert_close(maps.double().sum((1, 2)).float(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax", "catavgmax"])
def test_other_poolings_add_up_too(pooling: str, images: torch.Tensor) -> None:
    network = network_of("the last map")
    network.reset_classifier(4, pooling)
    with torch.no_grad():
        network.head.weight.normal_(std=0.1)
        wanted = network(images)[:, 1]
    maps, _, exact = explain(network, images, torch.tensor([1, 1, 1]))
    assert exact
    torch.testing.assert_close(maps.double().sum((1, 2)).float(), wanted, rtol=1e-4, atol=1e-4)


def test_without_pooling_there_is_no_map(images: torch.Tensor) -> None:
    network = network_of("the last map")
    network.reset_classifier(4, "")
    with pytest.raises(ConfigError, match="Without pooling"):
        explain(network, images, torch.tensor([0, 0, 0]))


def test_a_head_that_is_not_linear_gets_the_gradients_map(images: torch.Tensor) -> None:
    """Of a linear head in disguise that is the same map but for the bias, whose place it cannot know."""
    network = network_of("the last map")
    classes = torch.tensor([0, 1, 2])
    exact, _, _ = explain(network, images, classes)
    bias = network.head.bias.detach()[classes]
    network.head = nn.Sequential(nn.Identity(), network.head)
    maps, logits, told = explain(network, images, classes)
    assert not told
    torch.testing.assert_close(maps, exact - (bias / 100)[:, None, None])
    torch.testing.assert_close(logits, network(images)[torch.arange(3), classes].detach())


@pytest.fixture(scope="module")
def discs() -> tuple[Predictor, list[np.ndarray], list[tuple[int, int]]]:
    """A closed form that tells noise with a red disc somewhere from noise with a blue one; and such images, with the discs' middles."""
    rng = np.random.default_rng(0)

    def image(colour: int, middle: tuple[int, int]) -> np.ndarray:
        pixels = rng.integers(90, 160, (64, 64, 3)).astype(np.uint8)
        y, x = np.mgrid[:64, :64]
        pixels[(y - middle[0]) ** 2 + (x - middle[1]) ** 2 < 64] = [(230, 30, 30), (30, 30, 230)][colour]
        return pixels

    middles = [tuple(int(v) for v in rng.integers(10, 54, 2)) for _ in range(24)]
    pictures = [image(i % 2, middle) for i, middle in enumerate(middles)]
    torch.manual_seed(0)
    network = joined(build(Architecture(units=UNITS), 0).eval(), ALL)
    batch = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        probe = linear.fit(network.features(batch), torch.arange(24) % 2, 2)
    network.reset_classifier(2)
    network.head = probe.head
    network.card = dataclasses.replace(network.card, input=InputSpec(size=64), class_names=("red", "blue"))
    return Predictor(network, device="cpu", precision="fp32"), pictures, middles


def share_on_discs(predictor: Predictor, pictures: list[np.ndarray], middles: list[tuple[int, int]]) -> float:
    """Of what speaks for the class, the share that lies on the disc or beside it."""
    shares = []
    for i, (picture, (row, column)) in enumerate(zip(pictures, middles, strict=True)):
        drawn = predictor.explain(picture, ("red", "blue")[i % 2]).over(64, 64).clip(0)
        y, x = np.mgrid[:64, :64]
        near = (y - row) ** 2 + (x - column) ** 2 < 14**2
        shares.append(float(drawn[near].sum() / max(drawn.sum(), 1e-9)))
    return float(np.mean(shares))


def test_what_speaks_for_a_class_is_where_it_is_and_random_weights_destroy_that(
    discs: tuple[Predictor, list[np.ndarray], list[tuple[int, int]]],
) -> None:
    """Sanity check of Adebayo et al. 2018 (arXiv 1810.03292): a map that stays the same with other weights explains the image alone."""
    predictor, pictures, middles = discs
    assert share_on_discs(predictor, pictures, middles) > 0.33  # the places near are a seventh of all
    before = [predictor.explain(picture, "red").map for picture in pictures]
    head = predictor._model.head
    kept = head.weight.clone()
    try:
        torch.manual_seed(1)
        head.weight.copy_(torch.randn_like(head.weight) * kept.std())
        assert share_on_discs(predictor, pictures, middles) < 0.28
        after = [predictor.explain(picture, "red").map for picture in pictures]
    finally:
        head.weight.copy_(kept)
    alike = [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(before, after, strict=True)]
    assert abs(float(np.mean(alike))) < 0.3


def test_one_image_in_any_form(discs: tuple[Predictor, list[np.ndarray], list[tuple[int, int]]]) -> None:
    predictor, pictures, _ = discs
    explained = predictor.explain(encoded(pictures[1]))
    assert (explained.label, explained.against, explained.exact) == ("blue", None, True)
    both = predictor.explain(pictures[1], "blue", "red")
    np.testing.assert_allclose(both.map, explained.map - predictor.explain(pictures[1], "red").map, atol=1e-4)
    with pytest.raises(ConfigError, match="no class 'green'"):
        predictor.explain(pictures[0], "green")
    with pytest.raises(ConfigError, match="not several"):
        predictor.explain(pictures)
    with pytest.raises(ImageError):
        predictor.explain(b"no image")


@pytest.mark.parametrize(
    ("spec", "height", "width", "part"),
    [
        (InputSpec(size=8), 20, 40, (0, 0, 20, 40)),
        (InputSpec(size=8, mode="aspect"), 20, 40, (0, 10, 20, 20)),
        (InputSpec(size=8, mode="aspect", crop_pct=0.8), 40, 20, (12, 2, 16, 16)),
    ],
)
def test_the_part_that_the_network_saw(spec: InputSpec, height: int, width: int, part: tuple[int, ...]) -> None:
    assert image_ops.part_seen(height, width, spec) == part
    ramp = np.zeros((height, width, 1), np.uint8)
    ramp[part[0] : part[0] + part[2], part[1] : part[1] + part[3]] = 200
    assert image_ops.prepare(ramp, spec).min() > 150  # nothing but that part is in the input


def test_a_map_lies_over_the_picture_as_the_network_saw_it() -> None:
    corner = np.zeros((8, 8), np.float32)
    corner[1, 6], corner[6, 1] = 2, -1
    shown = Explanation(map=corner, logit=1.0, exact=True, label="a", input=InputSpec(size=32, mode="aspect"))
    drawn = shown.over(40, 80)
    assert np.unravel_index(drawn.argmax(), drawn.shape)[1] > 40 and drawn.max() <= 1
    assert not drawn[:, :19].any() and not drawn[:, 61:].any()
    picture = np.full((40, 80, 3), 128, np.uint8)
    painted = shown.on(picture)
    assert painted.shape == picture.shape
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert painted[row, column, 0] > painted[row, column, 2] + 50
    row, column = np.unravel_index(drawn.argmin(), drawn.shape)
    assert painted[row, column, 2] > painted[row, column, 0] + 20
    np.testing.assert_array_equal(shown.on(picture[:, :, :1]), painted)
    assert Image.fromarray(painted).size == (80, 40)
