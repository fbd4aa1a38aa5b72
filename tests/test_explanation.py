"""Explanation maps: they add up to the logit, stand where the class is, and are of this network's weights."""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bigtransfer import evals, ops, report
from bigtransfer.catalog import Architecture, InputSpec, Readout
from bigtransfer.data import images as image_ops
from bigtransfer.data import open_dataset
from bigtransfer.errors import ConfigError, ImageError
from bigtransfer.evals import linear, projection
from bigtransfer.evals.explanation import Explanation, explain
from bigtransfer.jobs import evaluate as evaluate_job
from bigtransfer.model import PooledMap, ResNetV2, build, joined
from bigtransfer.predictor import Predictor
from tests.data_makers import encoded, pattern
from tests.html_pages import parse

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


def test_a_maximum_that_several_places_have_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("the last map", 2)
    seen = torch.zeros(1, 2048, 2, 2)
    seen[0, 5] = torch.tensor([[3.0, 1.0], [0.0, 3.0]])
    monkeypatch.setattr(network, "pooled_maps", lambda _: [PooledMap(seen, "max", 0)])
    with torch.no_grad():
        network.head.weight.zero_()[1, 5] = 2
        network.head.bias.zero_()
    maps, logits, _ = explain(network, torch.zeros(1, 3, 8, 8), torch.tensor([1]))
    assert logits.item() == 6
    torch.testing.assert_close(maps[0], torch.tensor([[3.0, 0.0], [0.0, 3.0]]))


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
    # Where nothing speaks for or against it, three quarters of the grey and a quarter of 160.
    assert (painted[:, :19] == 136).all() and (shown.on(np.zeros_like(picture))[:, :19] == 40).all()
    assert Image.fromarray(painted).size == (80, 40)


def test_a_plane_of_answers() -> None:
    """Answers that are alike are neighbours; the same points, whatever the order, and for any shift of an image's logits."""
    labels = torch.arange(60) % 3
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.nn.functional.one_hot(labels, 3) + torch.randn(60, 3, generator=generator)
    points = projection.plane(logits)
    assert points.shape == (60, 2) and points.min() == 0 and points.max() == 1
    centres = torch.stack([points[labels == c].mean(0) for c in range(3)])
    assert (torch.cdist(points, centres).argmin(1) == labels).float().mean() > 0.9
    order = torch.randperm(60, generator=generator)
    torch.testing.assert_close(projection.plane(logits[order] + 7), points[order], atol=1e-6, rtol=0)
    wide = torch.cat([logits, torch.full((60, 80), -30.0)], dim=1)  # from the other Gram matrix
    torch.testing.assert_close(projection.plane(wide), points, atol=1e-4, rtol=0)
    assert projection.plane(torch.zeros(5, 3)).tolist() == [[0.5, 0.5]] * 5
    assert projection.plane(torch.zeros(0, 3)).shape == (0, 2) and projection.plane(torch.zeros(1, 1)).shape == (1, 2)
    two = projection.plane(torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 1.0]]))
    assert sorted(two[:, 0].tolist())[1] == pytest.approx(0.5, abs=0.05)


def test_a_report_explains_mistakes_and_shows_both_classes(
    discs: tuple[Predictor, list[np.ndarray], list[tuple[int, int]]], tmp_path: Path
) -> None:
    predictor, pictures, _ = discs
    for i, picture in enumerate(pictures):
        # Every sixth lies among the others' images.
        name = ("red", "blue")[i % 2 if i % 6 else 1 - i % 2]
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / name / f"{i}.png")
    splits = open_dataset(tmp_path / "photos")
    images, _ = evaluate_job.match_classes(splits.train, predictor.class_names, 2)
    result, _ = evaluate_job.measure(predictor, images)
    assert len(result.positions) == 24 and not isinstance(result, evals.multilabel.MultiLabel)
    record = evals.as_record(result, images, split="test")
    wrong = [row for row in record.predictions if row.rank]
    assert 3 <= len(wrong) <= 8
    run = tmp_path / "run"
    run.mkdir()
    evals.write_record(run / "evaluation.json", record)
    page = parse(report.write(run, images, predictor).read_text())
    (gallery,) = page.all("div", "explained")
    assert len(gallery.all("figure")) == len(wrong) and len(gallery.all("img")) == 2 * len(wrong)
    assert "speaks for its answer" in page.text
    drawn = Image.open(io.BytesIO(base64.b64decode((gallery.all("img")[1].attributes["src"] or "").partition(",")[2])))
    assert drawn.size == (192, 192)
    strips = page.all("div", "strip")
    assert strips and all(0 < len(one.all("img")) <= 3 for one in strips)
    assert page.all("i")[0].attributes["style"].startswith("background-image:url(data:image/jpeg;base64,")
    # Where there is no time: the page without them. Where there is another model: no explanation by it.
    hurried = parse(report.write(run, images, predictor, lambda: True).read_text())
    assert not hurried.all("div", "explained") and not hurried.all("div", "strip") and not hurried.all("i")
    assert len(hurried.all("div", "gallery")[0].all("img")) == len(wrong)
    other = dataclasses.replace(predictor.card, num_classes=3, class_names=("a", "b", "c"))
    kept, predictor.card = predictor.card, other
    try:
        assert not parse(report.write(run, images, predictor).read_text()).all("div", "explained")
    finally:
        predictor.card = kept
