"""The closed form, what it sees, and the choice between it and a fine-tuned network."""

import dataclasses
import json
import statistics
import types
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bigtransfer import data, model, records, runs, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, Readout
from bigtransfer.data import splits
from bigtransfer.errors import BitError, ConfigError, RunError, WeightsError
from bigtransfer.evals import calibration, linear
from bigtransfer.evals.candidates import Closed, View, Whole
from bigtransfer.feed.augment import normalize
from bigtransfer.feed.loader import eval_batches
from bigtransfer.feed.order import EpisodeOrder
from bigtransfer.jobs.finetune import baseline, choice, closed
from bigtransfer.model import JoinedResNetV2, ResNetV2
from bigtransfer.train.objective import LeaveOneOut, left_out
from tests.data_makers import class_folders

CPU = torch.device("cpu")
SMALL = Architecture(units=(1, 1, 1, 1))


def random_network(seed: int = 0, arch: Architecture = SMALL, classes: int = 0) -> ResNetV2:
    """Norms that are not at identity, so that it matters which of them a map meets."""
    torch.manual_seed(seed)
    network = model.build(arch, classes)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    if classes:
        nn.init.normal_(cast(nn.Linear, network.head).weight)
    return network.eval()


def by_hand(network: ResNetV2, images: Tensor, blocks: tuple[int, ...], maxima: bool = True) -> Tensor:
    """Features in plain torch operations of what `forward_intermediates` gives."""
    maps = network.forward_intermediates(images, [block + 1 for block in range(4)], intermediates_only=True)
    blocks_: Any = network.blocks
    norms = [blocks_[1][0].norm1, blocks_[2][0].norm1, blocks_[3][0].norm1, network.norm]
    found = []
    for block in blocks:
        seen = nn.functional.group_norm(maps[block], 32, norms[block].weight, norms[block].bias, 1e-5).relu()
        found += [seen.mean((2, 3))] + ([seen.flatten(2).max(2).values] if maxima else [])
    return torch.cat(found, 1)


@torch.no_grad()
def test_what_the_head_sees() -> None:
    network, images = random_network(), torch.rand(2, 3, 40, 40) * 2 - 1
    for blocks, maxima in (((0, 1, 2, 3), True), ((1, 3), True), ((3,), False), ((0,), False)):
        seen = model.joined(network, Readout(blocks=blocks, maxima=maxima))
        assert isinstance(seen, JoinedResNetV2)
        expected = by_hand(network, images, blocks, maxima)
        torch.testing.assert_close(seen.features(images), expected, rtol=1e-4, atol=1e-5)
        assert seen.num_features == expected.shape[1] == seen.architecture.num_features
    mirrored = model.joined(network, Readout(blocks=(0, 2), mirrored=True)).features(images)
    both = (by_hand(network, images, (0, 2)) + by_hand(network, images[..., range(39, -1, -1)], (0, 2))) / 2
    torch.testing.assert_close(mirrored, both, rtol=1e-4, atol=1e-5)
    plain = model.joined(network, Readout(blocks=(3,), maxima=False))
    torch.testing.assert_close(plain.features(images), network.features(images))


@torch.no_grad()
def test_several_sizes_and_a_second_network() -> None:
    network, other, images = random_network(), random_network(1), torch.rand(2, 3, 40, 40) * 2 - 1
    beside = model.joined(other, Readout(blocks=(2, 3), sizes=(20, 32)))
    seen = model.joined(network, Readout(blocks=(0, 3), sizes=(24, 40)), beside)

    def at(size: int) -> Tensor:
        return nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)

    expected = [by_hand(network, at(24), (0, 3)), by_hand(network, images, (0, 3))]
    expected += [by_hand(other, at(size), (2, 3)) for size in (20, 32)]
    torch.testing.assert_close(seen.features(images), torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    assert seen.features(images.bfloat16()).dtype == torch.float32
    assert seen.features(at(56)).shape == seen.features(images).shape, "images of any size"
    only = model.joined(network, None, beside)
    torch.testing.assert_close(only.features(images), torch.cat([network.features(images), beside.features(images)], 1))
    torch.testing.assert_close(model.fold(seen).features(images), seen.features(images))


@torch.no_grad()
def test_such_a_network_is_stored_and_counted(tmp_path: Path) -> None:
    beside = model.joined(random_network(1), Readout(blocks=(0, 1, 2, 3), sizes=(16, 32)))
    network = model.joined(random_network(), Readout(blocks=(3,), sizes=(24,), maxima=False), beside)
    network.reset_classifier(5)
    nn.init.normal_(cast(nn.Linear, network.head).weight)
    assert network.card.num_parameters == sum(parameter.numel() for parameter in network.parameters())
    weights.save(tmp_path / "model.safetensors", network)
    read: Any = weights.load(tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(read(images), network(images)) and read.card == network.card
    assert not torch.equal(read.beside.root.weight, read.root.weight)
    for form in ("npz", "timm", "transformers", "torch"):
        with pytest.raises(WeightsError, match="last map only"):
            weights.export(tmp_path / "other.npz", network, form)
    replaced = weights.load(tmp_path / "model.safetensors", num_classes=2)
    assert replaced.head.weight.shape == (2, network.num_features)
    assert weights.load(tmp_path / "model.safetensors", num_classes=0)(images).shape == (2, network.num_features)


@pytest.mark.parametrize(
    ("readout", "complaint"),
    [
        ({"blocks": [3, 0]}, "not ascending"),
        ({"blocks": []}, "architecture.readout.blocks"),
        ({"blocks": [4]}, "names block 5 of a network that has 4"),
        ({"blocks": [16]}, "architecture.readout.blocks"),
        ({"blocks": [0], "sizes": [64, 64]}, "not ascending"),
        ({"blocks": [0], "sizes": [0]}, "architecture.readout.sizes"),
        ({"blocks": [0], "sizes": [20_000]}, "--limits input_side"),
    ],
)
def test_a_card_with_a_readout_that_cannot_be(readout: dict, complaint: str) -> None:
    card = json.loads(dataclasses.replace(ModelCard.bare(SMALL, 2)).to_json())
    card["architecture"]["readout"] = readout
    with pytest.raises(WeightsError, match=complaint):
        ModelCard.from_json(json.dumps(card))
    card["architecture"] |= {"readout": None, "beside": card["architecture"] | {"readout": readout}}
    with pytest.raises(WeightsError, match=complaint.replace("architecture.readout", "architecture.beside.readout")):
        ModelCard.from_json(json.dumps(card))


def test_a_network_beside_has_none_beside_it() -> None:
    inner = dataclasses.replace(SMALL, beside=SMALL)
    with pytest.raises(ValueError, match="beside"):
        dataclasses.replace(SMALL, beside=inner)
    with pytest.raises(ValueError, match="other images"):
        dataclasses.replace(SMALL, beside=dataclasses.replace(SMALL, in_chans=1))


def test_a_readout_of_a_block_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="names block 3 of a network that has 2"):
        Architecture(units=(1, 1), readout=Readout(blocks=(2,)))
    network = model.build(dataclasses.replace(SMALL, readout=Readout(blocks=(1,))), 2)
    with pytest.raises(ConfigError, match="states how it pools"):
        network.reset_classifier(2, "max")


def test_what_a_view_costs() -> None:
    """In plain passes, whatever the network reads out itself: at 32 px 4 times those at 16 px, but for rounded sides of the last maps."""
    arch = dataclasses.replace(SMALL, readout=Readout(blocks=(0, 3), sizes=(500,), mirrored=True))
    assert View(size=32, readout=None).passes(arch, 32) == 1
    large = View(size=64, readout=None).passes(arch, 32)
    assert large == pytest.approx(4, rel=0.01) == pytest.approx(SMALL.forward_flops(64, 0) / SMALL.forward_flops(32, 0))
    both = View(size=64, readout=Readout(blocks=(0, 3), sizes=(32, 64), mirrored=True))
    assert both.passes(arch, 32) == pytest.approx(2 * (1 + large))


def test_the_operations_of_a_readout_are_counted() -> None:
    once, twice = (dataclasses.replace(SMALL, readout=Readout(blocks=(3,), sizes=s)) for s in ((32,), (32, 64)))
    alone = SMALL.forward_flops(32, 0)
    assert once.forward_flops(500, 0) == alone, "whatever the input's size"
    mirrored = dataclasses.replace(SMALL, readout=Readout(blocks=(3,), sizes=(32,), mirrored=True))
    assert mirrored.forward_flops(500, 0) == 2 * alone
    assert twice.forward_flops(500, 0) == alone + SMALL.forward_flops(64, 0)
    assert dataclasses.replace(once, beside=twice).forward_flops(500, 0) == 2 * alone + SMALL.forward_flops(64, 0)


def test_what_there_is_to_choose_from() -> None:
    network = random_network()
    found = closed.views(network, (48, 96))
    every = (0, 1, 2, 3)
    assert found == (
        View(size=48, readout=None),
        View(size=48, readout=Readout(blocks=every)),
        View(size=96, readout=Readout(blocks=every)),
        View(size=96, readout=Readout(blocks=every, sizes=(48, 96))),
    )
    assert list(map(str, found)) == [
        "the last map at 48 px",
        "all blocks at 48 px",
        "all blocks at 96 px",
        "all blocks at 48 and 96 px",
    ]
    mirrored = closed.views(network, (48, 96), mirrored=True)
    assert mirrored[0] == View(size=48, readout=Readout(blocks=(3,), maxima=False, mirrored=True))
    assert mirrored[3] == View(size=96, readout=Readout(blocks=every, sizes=(48, 96), mirrored=True))
    assert str(mirrored[0]) == "the last map at 48 px, mirrored too"
    assert [view.sees_all_of_one_size for view in found] == [False, True, True, False]
    assert [view.sees_all_of_one_size for view in mirrored] == [False, True, True, False]
    assert closed.views(network, (40,)) == (View(size=40, readout=None), View(size=40, readout=Readout(blocks=every)))
    three = closed.views(network, (48, 96, 192))
    assert three == (*found, View(size=192, readout=Readout(blocks=every, sizes=(48, 96, 192))))
    assert str(three[-1]) == "all blocks at 48, 96 and 192 px"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> data.ImageSet:
    folder = tmp_path_factory.mktemp("pictures")
    class_folders(folder, {"a": 6, "b": 5, "c": 4})
    return data.open_dataset(folder).train


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("wanted", range(4))
def test_the_columns_of_each_view_are_its_features(wanted: int, mirrored: bool) -> None:
    network, images = random_network(), torch.rand(2, 3, 32, 32) * 2 - 1
    choices = closed.views(network, (16, 32), mirrored=mirrored)
    with torch.no_grad():
        every = model.joined(network, choices[-1].readout).features(images)
        view = choices[wanted]
        small = nn.functional.interpolate(images, (view.size,) * 2, mode="bilinear", antialias=True)
        alone = model.joined(network, view.readout).features(small)
    columns = closed.columns(choices[-1], view, SMALL)
    torch.testing.assert_close(every[:, columns], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_scatter_is_for_the_features_of_each_view(mirrored: bool) -> None:
    """Every entry is the number of its feature: at each size the same, in rows of its own."""
    network = random_network()
    every = network.architecture.stages
    width = 2 * sum(every)
    assert closed.scatter(network, View(size=16, readout=None)) is None
    network.scatter = torch.arange(2.0 * width).reshape(2, width) / 64
    last, small, large, both = closed.views(network, (16, 32), mirrored=mirrored)
    means = slice(width - 2 * every[-1], width - every[-1])
    for view, part, sizes in (
        (last, network.scatter[:, means], 1),
        (small, network.scatter, 1),
        (large, network.scatter, 1),
        (both, network.scatter, 2),
    ):
        found = closed.scatter(network, view)
        assert found is not None and found.shape == (2 * sizes, sizes * part.shape[1])
        expected = part * (closed.TRUST / part.shape[1]) ** 0.5
        for i in range(sizes):
            rows = found[2 * i : 2 * i + 2].split(part.shape[1], dim=1)
            torch.testing.assert_close(rows[i], expected)
            assert all(not row.any() for j, row in enumerate(rows) if j != i)


def pair() -> model.Network:
    return model.side_by_side(random_network(), random_network(1, Architecture(units=(1, 1))))


def test_two_networks_are_seen_side_by_side() -> None:
    """Each at sizes of its own, all of them of images that are read at the largest."""
    both, other = pair(), Architecture(units=(1, 1))
    choices = closed.views(both, (16, 24), mirrored=True, beside=(24, 32))
    assert [str(view) for view in choices] == [
        "all blocks of both networks, the first at 16, the second at 24 px, mirrored too",
        "all blocks of both networks, the first at 16 and 24, the second at 24 and 32 px, mirrored too",
    ]
    assert {view.size for view in choices} == {32}
    longer = closed.views(both, (16, 24, 32), beside=(24,))
    assert [view.sizes for view in longer] == [(16,), (16, 24), (16, 24, 32)]
    assert all(view.beside is not None and view.beside.sizes == (24,) for view in longer)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        small, every = (model.reading(both, view.on(both.architecture)).features(images) for view in choices)
        alone = [
            model.joined(network, readout).features(images)
            for network, readout in zip(
                (random_network(), random_network(1, Architecture(units=(1, 1)))),
                (choices[1].readout, choices[1].beside),
                strict=True,
            )
        ]
    torch.testing.assert_close(every, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)
    columns = closed.columns(choices[1], choices[0], both.architecture)
    torch.testing.assert_close(every[:, columns], small, rtol=1e-4, atol=1e-5)
    # In plain forward passes of both at 16 px: of each, twice over, at its sizes.
    at = {(arch, size): arch.forward_flops(size, 0) for arch in (SMALL, other) for size in (16, 24, 32)}
    looked = at[SMALL, 16] + at[SMALL, 24] + at[other, 24] + at[other, 32]
    expected = 2 * looked / (at[SMALL, 16] + at[other, 16])
    assert choices[1].passes(both.architecture, 16) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("known", [(True, True), (True, False), (False, True), (False, False)])
def test_each_of_two_networks_has_its_own_scatter(known: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the classifier of both, and in that of either alone."""
    both = pair()
    assert isinstance(both, model.Joined) and both.beside is not None
    view = closed.views(both, (16, 24), beside=(24, 32))[-1]
    widths = [2 * sum(arch.stages) for arch in (SMALL, Architecture(units=(1, 1)))]
    found = []
    for network, width, given in zip((both, both.beside), widths, known, strict=True):
        network.scatter = torch.randn(3, width) if given else None
        part = torch.zeros(0, width) if network.scatter is None else network.scatter * (closed.TRUST / width) ** 0.5
        found.append(torch.block_diag(part, part))
    scatter = closed.scatter(both, view)
    if not any(known):
        assert scatter is None
    else:
        assert scatter is not None
        torch.testing.assert_close(scatter, torch.block_diag(*found))
    asked: dict[str, Any] = {}
    monkeypatch.setattr(closed.linear, "fit", lambda *_, **given: asked.update(given))
    closed.fit(both, view, torch.zeros(0), torch.zeros(0), 3)
    assert asked["scatter"] is None or torch.equal(asked["scatter"], torch.block_diag(*found))
    first = 0
    for part, expected, width, given in zip(asked["parts"], found, widths, known, strict=True):
        assert part.columns.tolist() == list(range(first, first := first + 2 * width))
        assert torch.equal(part.scatter, expected) if given else part.scatter is None


def test_a_classifier_of_two_networks_is_that_of_what_both_make_of_the_images(
    pictures: data.ImageSet, tmp_path: Path
) -> None:
    """The mean of those of both together and of either alone, each with what is known of its scatter."""
    both = pair()
    assert isinstance(both, model.Joined) and both.beside is not None
    generator = torch.Generator().manual_seed(0)
    for network, arch in ((both, SMALL), (both.beside, Architecture(units=(1, 1)))):
        network.scatter = torch.randn(3, 2 * sum(arch.stages), generator=generator)
    choices = closed.views(both, (16, 24), beside=(24, 32))
    found = solved(pictures, choices, both, held_out=pictures)
    labels = torch.from_numpy(np.asarray(pictures.labels))
    images = torch.stack([torch.from_numpy(pictures.read(i, InputSpec(size=32)).copy()) for i in range(len(pictures))])
    images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        seen = model.reading(both, found.view.on(both.architecture)).features(images)
        own, theirs = found.view.apart()
        columns = torch.arange(seen.shape[1]).split(
            [own.on(SMALL).num_features, theirs.on(Architecture(units=(1, 1))).num_features]
        )
        alone = [closed.scatter(both.beside, theirs), closed.scatter(both, found.view)]
        assert alone[0] is not None and alone[1] is not None
        first = alone[1][: -len(alone[0]), : len(columns[0])]
        parts = [linear.Part(columns[0], first), linear.Part(columns[1], alone[0])]
        expected = linear.fit(seen, labels, 3, discriminant=True, scatter=alone[1], parts=parts)
        torch.testing.assert_close(found.model(images), expected.head(seen), rtol=1e-3, atol=1e-3)
        weights.save(tmp_path / "both.safetensors", found.model)
        again = weights.load(tmp_path / "both.safetensors")
        torch.testing.assert_close(again(images), found.model(images))
        alike = model.reading(again, again.architecture)
        torch.testing.assert_close(alike.features(images), again.features(images))


def test_three_networks_do_not_stand_side_by_side() -> None:
    with pytest.raises(ConfigError, match="cannot stand side by side"):
        model.side_by_side(pair(), random_network())


def test_what_is_known_of_the_scatter_is_heeded(pictures: data.ImageSet) -> None:
    """By all that is solved: to choose, to learn, and again with the images that were held out."""
    network = random_network()
    choices = closed.views(network, (16, 32))
    for views in (choices, choices[-1:]):
        network.scatter = None
        plain = solved(pictures, views, network, held_out=pictures)
        network.scatter = torch.randn(3, 2 * sum(SMALL.stages), generator=torch.Generator().manual_seed(0))
        known = solved(pictures, views, network, held_out=pictures)
        for before, after in zip(plain.judged, known.judged, strict=True):
            assert before.loss != after.loss
        expected = closed.scatter(network, known.view)
        for probe in (known.probe, known.whole):
            assert probe is not None and probe.scatter is not None and expected is not None
            torch.testing.assert_close(probe.scatter, expected)


def solved(
    images: data.ImageSet, choices: tuple[View, ...], network: model.Network | None = None, **options: Any
) -> closed.Solved:
    return closed.solve(
        random_network() if network is None else network,
        images,
        choices,
        spec=InputSpec(size=16),
        device=CPU,
        dtype=torch.float32,
        batch_size=4,
        seed=0,
        **options,
    )


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes for every three images that are looked at."""
    now, original = [0.0], closed.features

    def features(network: ResNetV2, some: data.ImageSet, view: View, **options: Any) -> tuple[Tensor, Tensor]:
        now[0] += len(some) / 3
        return original(network, some, view, **options)

    monkeypatch.setattr(closed, "features", features)
    monkeypatch.setattr(closed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(closed, "_PIECE", 3)


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(
    ("within", "at_least", "images"),
    [(100.0, 0, 15), (4.9, 0, 15), (3.9, 0, 12), (1.5, 0, 6), (0.5, 0, 3), (0.5, 7, 9)],
)
def test_in_time_it_learns_from_as_many_of_each_class_as_can_be(
    pictures: data.ImageSet, within: float, at_least: int, images: int
) -> None:
    held_out = pictures.subset([0, 7, 14])
    for part in ([closed.views(random_network(), (16, 32))[0]], closed.views(random_network(), (16, 32))[:2]):
        found = solved(pictures, tuple(part), within=within, at_least=at_least, held_out=held_out)
        if len(part) == 1 or found.view == part[-1]:
            assert found.images == images
            spread = splits.evenly(pictures, images, 0).class_counts()
            assert found.probe.judged == tuple(count if count > 1 else 0 for count in spread)
        assert (found.whole is None) == (found.images < 15 or within < 5)


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(("solving", "whole"), [(None, False), (5.9, False), (6.1, True)])
def test_what_is_left_after_looking_is_for_solving(pictures: data.ImageSet, solving: float | None, whole: bool) -> None:
    """The 15 images take 5 s, the three held out one more."""
    choices, held_out = closed.views(random_network(), (16, 32))[:1], pictures.subset([0, 7, 14])
    found = solved(pictures, choices, within=4.9, solving=solving, held_out=held_out)
    assert found.images == 15 and (found.whole is not None) == whole and (found.answers is not None) == whole
    assert (found.suspects is not None) == (solving is not None)


@pytest.mark.usefixtures("ticking")
def test_what_looking_cost_is_told(pictures: data.ImageSet) -> None:
    """In plain passes, of all images that were looked at: those held out too, and those for the choice."""
    network = random_network()
    choices, held_out = closed.views(network, (16, 32)), pictures.subset([0, 7, 14])
    assert solved(pictures, choices[:1], network, held_out=held_out).look == pytest.approx(1 / 3)
    wide = choices[-1].passes(network.architecture, 16)
    assert solved(pictures, choices[-1:], network).look == pytest.approx(1 / 3 / wide)


@pytest.mark.usefixtures("ticking")
def test_time_that_runs_out_between_the_choice_and_the_rest(
    pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed, "CHOSEN_BY", 9)
    choices = closed.views(random_network(), (16, 32))[1:2] * 2
    assert solved(pictures, choices, within=2.5).images == 9
    assert solved(pictures, choices, within=3.5).images == 12
    assert solved(pictures, choices).images == 15


@pytest.mark.usefixtures("ticking")
@pytest.mark.parametrize(("within", "wanted", "images"), [(100.0, 0, 15), (6.5, 0, 6), (6.3, 2, 15), (4.9, 2, 15)])
def test_features_of_another_size_are_chosen_only_where_there_is_time_for_them(
    pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch, within: float, wanted: int, images: int
) -> None:
    """Which they have to be computed for. Else the best of those that have been, of all images: none is thrown away."""
    network = random_network()
    choices = closed.views(network, (16, 32))
    losses = dict(zip(choices, (0.1, 0.9, 0.4, 0.8), strict=True))
    real = closed.judge

    def judge(*given: Any, **more: Any) -> dict[View, linear.Probe]:
        return {
            view: dataclasses.replace(probe, leave_one_out_loss=losses[view])
            for view, probe in real(*given, **more).items()
        }

    monkeypatch.setattr(closed, "judge", judge)
    # To look at the 15 at both sizes takes 5 s here, and it is to be expected that the smaller one alone takes 1.4.
    cost = 5 * choices[0].passes(network.architecture, 16) / choices[-1].passes(network.architecture, 16)
    assert cost == pytest.approx(1.4, abs=0.01)
    found = solved(pictures, choices, network, within=within)
    assert (choices.index(found.view), found.images) == (wanted, images)
    expected = linear.fit(*features_of(splits.evenly(pictures, images, 0), found.view, network), 3, discriminant=True)
    torch.testing.assert_close(found.probe.head.weight, expected.head.weight, rtol=1e-3, atol=1e-4)


def test_what_has_been_seen_is_not_looked_at_again(pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the size that all views are judged at, one that sees a part of it."""
    network, looked = random_network(), []
    original = closed.features

    def features(network: ResNetV2, some: data.ImageSet, view: View, **options: Any) -> tuple[Tensor, Tensor]:
        looked.append((view, len(some)))
        return original(network, some, view, **options)

    monkeypatch.setattr(closed, "features", features)
    monkeypatch.setattr(closed, "CHOSEN_BY", 9)
    choices = closed.views(network, (16, 32))
    for wanted in range(4):
        looked.clear()
        monkeypatch.setattr(closed, "best", lambda *_, wanted=wanted, **__: choices[wanted])
        found = solved(pictures, choices, network)
        rest = 6 if wanted >= 2 else 15
        assert found.view == choices[wanted] and looked == [(choices[-1], 9), (choices[wanted], rest)]
        expected = linear.fit(*features_of(pictures, choices[wanted], network), 3, discriminant=True)
        torch.testing.assert_close(found.probe.head.weight, expected.head.weight, rtol=1e-3, atol=1e-4)


def test_what_it_says_of_the_images_held_out(pictures: data.ImageSet) -> None:
    """It, and not the classifier that has learnt from them as well."""
    held_out, rest = pictures.subset([0, 7, 14]), pictures.subset([1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13])
    found = solved(rest, closed.views(random_network(), (16, 32))[:2], held_out=held_out)
    assert found.answers is not None and found.whole is not None
    seen, _ = features_of(held_out, found.view, random_network())
    with torch.no_grad():
        torch.testing.assert_close(found.answers, found.model.head(seen), rtol=1e-3, atol=1e-6)
        assert not torch.allclose(found.answers, found.whole.head(seen), rtol=0.1, atol=1e-6)
    assert solved(rest, closed.views(random_network(), (16, 32))[:2]).answers is None


@pytest.mark.parametrize(
    ("of", "span", "once", "counts"),
    [
        (40, 20.0, 7.0, [2, 2, 16, 16]),
        (40, 8.9, 7.0, [2, 2, 8, 8]),
        (40, 7.9, 7.0, [2]),
        (40, 2.9, 0.0, [2, 2]),
        (40, 3.0, 0.0, [2, 2, 3, 3]),
        (5, 9.0, 7.0, [2, 2, 5, 5]),
        (1, 9.0, 7.0, [1, 1]),
    ],
)
def test_what_it_costs_to_look_at_an_image(
    pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch, of: int, span: float, once: float, counts: list[int]
) -> None:
    """Half a second, beside what is done once for every number of images; of as many as may be looked at twice in the time."""
    now, looked = [0.0], []

    def features(network: ResNetV2, some: data.ImageSet, view: View, **options: Any) -> None:
        now[0] += 0.5 * len(some) + (0.0 if len(some) in looked else once)
        looked.append(len(some))

    monkeypatch.setattr(closed, "features", features)
    monkeypatch.setattr(closed.time, "perf_counter", lambda: now[0])
    images = pictures.subset(np.resize(np.arange(15), of))
    options: dict[str, Any] = {"spec": InputSpec(size=16), "device": CPU, "dtype": torch.float32, "batch_size": 4}
    view = closed.views(random_network(), (16, 32))[-1]
    found = closed.seconds_per_image(random_network(), images, view, span, **options)
    assert looked == counts and found == (4.0 if counts == [2] else 0.5)


def features_of(images: data.ImageSet, view: View, network: ResNetV2) -> tuple[Tensor, Tensor]:
    seen = model.joined(network, view.readout)
    return linear.extract_features(seen, eval_batches(images, InputSpec(size=view.size), 15), CPU)


@pytest.mark.parametrize("part", [1000, 9])
def test_the_best_view_by_leave_one_out_is_solved(
    pictures: data.ImageSet, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where not all images have a say in the choice."""
    monkeypatch.setattr(closed, "CHOSEN_BY", part)
    network, choices = random_network(), closed.views(random_network(), (16, 32))
    found = solved(pictures, choices, network)
    sample = splits.evenly(pictures, part, 0)
    labels = torch.from_numpy(sample.labels)
    every = features_of(sample, choices[-1], network)[0]
    losses = []
    for one, view in zip(found.judged, choices, strict=True):
        expected = linear.fit(every[:, closed.columns(choices[-1], view, SMALL)], labels, 3, discriminant=True)
        assert one.view == view and one.loss == pytest.approx(expected.leave_one_out_loss, rel=1e-3)
        assert one.top1 == pytest.approx(expected.leave_one_out_top1)
        losses.append(one.loss)
    assert found.view == next(v for v, loss in zip(choices, losses, strict=True) if loss <= min(losses) + closed.TIE)
    features, labels = features_of(pictures, found.view, network)
    expected = linear.fit(features, labels, 3, discriminant=True)
    with torch.no_grad():
        batch = next(iter(eval_batches(pictures, InputSpec(size=found.view.size), 15)))
        logits = found.model(normalize(batch.images, torch.float32))
        torch.testing.assert_close(logits, expected.head(features), rtol=1e-3, atol=1e-3)
    assert found.images == 15 and found.probe.leave_one_out_top1 == pytest.approx(expected.leave_one_out_top1)


def test_every_image_counts_whichever_view_is_chosen(pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest view's features of the sample are kept; only the others are computed then."""
    choices = closed.views(random_network(), (16, 32))
    for losses in ([0.3, 0.2, 0.1, 0.0], [0.0, 0.1, 0.2, 0.3], [0.005, 0.3, 0.0, 0.3]):
        fits = []

        def fit(
            features: Tensor,
            labels: Tensor,
            classes: int,
            *,
            balanced: bool,
            discriminant: bool,
            scatter: Tensor | None,
            parts: list[linear.Part],
            fits=fits,
            losses=losses,
        ) -> linear.Probe:
            fits.append((features, labels))
            head = nn.Linear(features.shape[1], classes)
            return linear.Probe(head, 1.0, 1.0, None, 0.5, losses[min(len(fits), 4) - 1])

        monkeypatch.setattr(closed.linear, "fit", fit)
        monkeypatch.setattr(closed, "CHOSEN_BY", 9)
        found = solved(pictures, choices)
        assert found.view == choices[{0.3: 3, 0.0: 0, 0.005: 0}[losses[0]]], "the cheaper of two that are as good"
        features, labels = fits[-1]
        expected, truth = features_of(pictures, found.view, random_network())
        order, theirs = features.sum(1).argsort(), expected.sum(1).argsort()
        torch.testing.assert_close(features[order], expected[theirs], rtol=1e-3, atol=1e-3)
        assert torch.equal(labels[order], truth[theirs]) and len(labels) == 15


def test_one_image_of_each_class(pictures: data.ImageSet) -> None:
    """Nothing can be judged: the view that sees most is taken."""
    one = splits.per_class(pictures, 1, 0)
    found = solved(one, closed.views(random_network(), (16, 32)))
    assert found.view.readout == Readout(blocks=(0, 1, 2, 3), sizes=(16, 32))
    assert [(judged.top1, judged.loss) for judged in found.judged] == [(None, None)] * 4


def test_more_right_than_counted_is_no_record(tmp_path: Path) -> None:
    found = Closed(
        view=View(size=16, readout=None), judged=(), images=9, seconds=1.0, top1=0.8, right=(4,), counted=(5,)
    )
    record = dataclasses.asdict(found)
    assert records.convert(record, Closed, "closed.json", RunError) == found
    with pytest.raises(RunError, match=r"closed\.json: of a class more images are right than were counted"):
        records.convert(record | {"right": [6]}, Closed, "closed.json", RunError)
    with pytest.raises(RunError, match=r"closed\.json: top1 is 0\.9, and 4 of 5 images are right"):
        records.convert(record | {"top1": 0.9}, Closed, "closed.json", RunError)


def test_as_many_of_each_class_as_there_are(pictures: data.ImageSet) -> None:
    def counts(wanted: int) -> list[int]:
        return splits.evenly(pictures, wanted, 1).class_counts().tolist()

    assert counts(15) == counts(99) == [6, 5, 4]
    assert counts(9) == [3, 3, 3] and counts(14) == [5, 5, 4] and sorted(counts(4)) == [1, 1, 2]
    assert np.array_equal(splits.evenly(pictures, 9, 1).rows, np.sort(splits.evenly(pictures, 9, 1).rows))
    assert not np.array_equal(splits.evenly(pictures, 9, 1).rows, splits.evenly(pictures, 9, 2).rows)


# --- The choice


def classifier(seed: int, size: int, readout: Readout | None = None) -> ResNetV2:
    network = random_network(seed, dataclasses.replace(SMALL, readout=readout), 3)
    head = cast(nn.Linear, network.head)
    head.weight.data *= 0.1
    nn.init.normal_(head.bias)
    network.card = dataclasses.replace(network.card, input=InputSpec(size=size))
    return network


@pytest.mark.parametrize("readout", [None, Readout(blocks=(1, 3)), Readout(blocks=(3,), sizes=(8, 16))])
@torch.no_grad()
def test_the_average_of_two_networks(readout: Readout | None) -> None:
    frozen, tuned = classifier(1, 16, readout), classifier(2, 24)
    both = choice.average(frozen, tuned, 3.0, 0.5)
    images = torch.rand(4, 3, 24, 24) * 2 - 1
    small = nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    if readout is not None and readout.sizes:
        small = images  # resized inside
    torch.testing.assert_close(both(images), frozen(small) / 3 + tuned(images) / 0.5, rtol=1e-4, atol=1e-4)
    assert both.card.input.size == 24
    assert choice.average(tuned, frozen, 1.0, 1.0).card.input.size == 24 if readout is None else True


def made(labels: Tensor, right: Tensor, sure: float) -> Tensor:
    """Logits of a classifier that is right where `right` says so."""
    return sure * nn.functional.one_hot(torch.where(right, labels, (labels + 1) % 3), 3).double()


def test_the_best_of_three(pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its loss at its own best temperature: a network that is often wrong and always sure is not taken for a good one."""
    labels, places = torch.from_numpy(pictures.labels), torch.arange(15)
    cases = {
        "closed form": (places > 1, places > 7),
        "fine-tuned": (places > 7, places > 1),
        "average": (places % 2 > 0, places % 3 > 0),
    }
    logits: dict[str, Tensor] = {}
    for wanted, (right, other) in cases.items():
        logits = {"a": made(labels, right, 1.0), "b": made(labels, other, 50.0)}
        if wanted == "average":
            # Wrong where they are unsure, each: together they know more.
            for name, few in (("a", places < 7), ("b", places > 7)):
                logits[name] = torch.where(few[:, None], 0.1, 3.0) * made(labels, ~few, 1.0)
        frozen, tuned = classifier(1, 16), classifier(2, 16)
        before = [cast(nn.Linear, network.head).weight.clone() for network in (frozen, tuned)]
        given = iter(logits.values())
        with monkeypatch.context() as patch:
            patch.setattr(choice, "_logits", lambda *_, given=given: next(given))
            found = choice.choose(frozen, tuned, pictures, device=CPU, dtype=torch.float32, batch_size=8)
        network, chosen = found.network(frozen, tuned), found.choice
        assert torch.equal(frozen.head.weight, before[0]) and torch.equal(tuned.head.weight, before[1])
        assert chosen.delivered == wanted and chosen.images == 15
        scores = {"closed form": logits["a"], "fine-tuned": logits["b"]}
        for candidate in chosen.candidates[:2]:
            _, loss = linear.best_temperature(scores[candidate.kind], labels)
            assert candidate.loss == pytest.approx(loss)
            temperature = calibration.of_solved(scores[candidate.kind], labels)
            assert candidate.top1 == pytest.approx((scores[candidate.kind].argmax(1) == labels).double().mean())
            if candidate.kind == wanted:
                kept = before[list(cases).index(wanted)]
                torch.testing.assert_close(network.head.weight, kept / temperature)
                assert chosen.calibrated is None, "15 images are too few to say what it is worth"
        if wanted == "average":
            assert network.card.architecture.beside is not None
            assert chosen.candidates[2].loss < min(one.loss for one in chosen.candidates[:2]) - closed.TIE


def test_the_best_where_each_class_counts_the_same(pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network knows the large class only, the other the small ones and half of the large one."""
    images = pictures.subset([0, 1, 2, 3, 4, 5, 6, 11])
    labels = torch.from_numpy(images.labels)
    assert torch.bincount(labels).tolist() == [6, 1, 1]
    places = torch.arange(8)
    logits = [made(labels, right, 2.0) for right in (places < 6, places > 2)]
    for balanced, wanted in ((False, "closed form"), (True, "fine-tuned")):
        given = iter(logits)
        with monkeypatch.context() as patch:
            patch.setattr(choice, "_logits", lambda *_, given=given: next(given))
            patch.setattr(closed, "TIE", 9.0)
            found = choice.choose(
                classifier(1, 16), classifier(2, 16), images,
                device=CPU, dtype=torch.float32, batch_size=8, balanced=balanced,
            )  # fmt: skip
        assert found.choice.delivered == wanted
        one, other = found.choice.candidates[:2]
        assert (one.top1, other.top1) == (0.75, 0.625)
        assert (one.mean_per_class, other.mean_per_class) == (pytest.approx(1 / 3), pytest.approx(2.5 / 3))


def test_the_heads_of_a_run_folder(tmp_path: Path) -> None:
    """That which was judged, and that which had those images as well; what else there may be is named."""
    network, other = classifier(1, 16), classifier(2, 16)
    weights.save(tmp_path / baseline.MODEL, network)
    found = Closed(view=View(size=16, readout=None), judged=(), images=9, seconds=1.0, top1=None)
    judged, delivered = baseline.load(tmp_path, found, CPU)
    assert judged is delivered and torch.equal(judged.head.weight, network.head.weight)
    found = dataclasses.replace(found, whole=Whole(images=12, top1=None))
    with pytest.raises(BitError, match=r"There is no file .*closed-whole"):
        baseline.load(tmp_path, found, CPU)
    safetensors.torch.save_file(other.head.state_dict(), tmp_path / baseline.WHOLE)
    judged, delivered = baseline.load(tmp_path, found, CPU)
    assert torch.equal(judged.head.weight, network.head.weight) and delivered.card == judged.card
    assert torch.equal(delivered.head.weight, other.head.weight) and delivered.root is judged.root
    kept = (tmp_path / baseline.WHOLE).read_bytes()
    (tmp_path / baseline.WHOLE).write_bytes(kept[:100])
    with pytest.raises(BitError, match=r"closed-whole\.safetensors is damaged or incomplete"):
        baseline.load(tmp_path, found, CPU)
    safetensors.torch.save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, tmp_path / baseline.WHOLE)
    with pytest.raises(RunError, match="is not the head of this run's closed form"):
        baseline.load(tmp_path, found, CPU)
    baseline.remove(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_closed_form_said_is_known(
    tmp_path: Path, pictures: data.ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are read from the run's folder, and compared as if they had been computed; what else there may be is named."""
    found = Closed(view=View(size=16, readout=None), judged=(), images=9, seconds=1.0, top1=None)
    whole = dataclasses.replace(found, whole=Whole(images=12, top1=None))
    assert baseline.answers(tmp_path, whole, pictures) is None, "an earlier version's run"
    solved, tuned, options = (
        classifier(1, 16),
        classifier(2, 16),
        {"device": CPU, "dtype": torch.float32, "batch_size": 8},
    )
    said = choice._logits(solved, pictures, CPU, torch.float32, 4).float()
    safetensors.torch.save_file({"logits": said}, tmp_path / baseline.ANSWERS)
    assert baseline.answers(tmp_path, found, pictures) is None and baseline.answers(tmp_path, None, pictures) is None
    answers = baseline.answers(tmp_path, whole, pictures)
    assert answers is not None and torch.equal(answers, said)
    looked: list[ResNetV2] = []
    real = choice._logits
    monkeypatch.setattr(choice, "_logits", lambda network, *rest: (looked.append(network), real(network, *rest))[1])
    known = choice.choose(solved, tuned, pictures, answers=answers, **options)  # type: ignore[arg-type]
    assert looked == [tuned]
    both = choice.choose(solved, tuned, pictures, answers=answers, tuned_answers=said, **options)  # type: ignore[arg-type]
    assert looked == [tuned] and both.choice.candidates[0].loss == both.choice.candidates[1].loss
    computed = choice.choose(solved, tuned, pictures, **options)  # type: ignore[arg-type]
    assert looked == [tuned, solved, tuned] and known.choice.delivered == computed.choice.delivered
    for one, other in zip(known.choice.candidates, computed.choice.candidates, strict=True):
        assert (one.kind, one.top1) == (other.kind, other.top1) and one.loss == pytest.approx(other.loss, rel=1e-4)
    with pytest.raises(RunError, match=r"closed-answers\.safetensors is not of this run's closed form and images"):
        baseline.answers(tmp_path, whole, pictures.subset([0, 1]))


def test_the_logits_compared_are_those_of_the_networks(pictures: data.ImageSet) -> None:
    network = classifier(1, 16)
    logits = choice._logits(network, pictures, CPU, torch.float32, 4)
    batch = next(iter(eval_batches(pictures, InputSpec(size=16), 15)))
    with torch.no_grad():
        expected = network(normalize(batch.images, torch.float32))
    torch.testing.assert_close(logits, expected.double(), rtol=1e-4, atol=1e-4)


# --- Training for the closed form


def test_the_penalty_of_a_training_is_the_one_that_judges_batches_best() -> None:
    """Two classes that a tenth of the features tell apart, with noise: neither the least nor the largest penalty is the best."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(80) % 2
    features = 5 * torch.randn(80, 40, generator=generator) + 7
    features[:, :4] += 6.0 * labels[:, None]
    head = closed.LeftOutHead.of(features, labels, 24, 0)
    mean, scale = linear.standardization(features)
    standardized = ((features - mean) * scale).float()
    torch.testing.assert_close(head(features), standardized, rtol=1e-4, atol=1e-5)
    unit = float(standardized.square().sum()) / 80
    tried = [unit * float(one) for one in closed._PENALTIES]
    assert [one for one in tried if one == pytest.approx(float(head.penalty))] and head.aim.penalty == head.penalty

    def loss(penalty: float) -> float:
        found = []
        for number in range(closed._EPISODES):
            rows = torch.from_numpy(EpisodeOrder(labels.numpy(), 24, 0).indices(number))
            scores = left_out(standardized[rows], nn.functional.one_hot(labels[rows]).float(), penalty)
            found.append(linear.best_temperature(scores, labels[rows])[1])
        return statistics.fmean(found)

    assert loss(head.aim.penalty) == min(map(loss, tried)) < min(loss(tried[0]), loss(tried[-1]))
    assert 0.01 < head.aim.temperature < 1


def test_images_that_cannot_judge_one_another_leave_conventions() -> None:
    head = closed.LeftOutHead.of(torch.zeros(2, 3), torch.tensor([0, 1]), 2, 0)
    assert head.aim == LeaveOneOut(1.0, 1.0)


def test_a_run_whose_closed_form_has_no_record_any_more(tmp_path: Path, pictures: data.ImageSet) -> None:
    parts = splits.Splits(train=pictures, val=pictures, test=None)
    with pytest.raises(RunError, match=r"has no closed\.json any more"):
        choice.deliver(runs.Run(tmp_path), classifier(1, 16), parts, None, None, None, None)  # type: ignore[arg-type]


class _Labelled(list[int]):
    """What is asked of a set whose images nobody looks at."""

    @property
    def labels(self) -> np.ndarray:
        return np.array(self)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_candidates_that_are_always_right(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images of each class: added up as thirds they were right in more than all."""
    labels = torch.arange(classes + 1)[torch.arange(classes + 1) != 1].repeat_interleave(3)  # and none of one class
    logits = 9.0 * torch.nn.functional.one_hot(labels, classes + 1).double()
    monkeypatch.setattr(choice, "_logits", lambda *_: logits)
    images = _Labelled(labels.tolist())
    options: Any = {"device": CPU, "dtype": torch.float32, "batch_size": 8}
    network: Any = types.SimpleNamespace(architecture=SMALL)
    found = choice.choose(network, network, images, **options).choice
    assert [(one.top1, one.mean_per_class) for one in found.candidates] == [(1.0, 1.0)] * 3
    logits[:3] = logits[3:4]  # one class is taken for another
    found = choice.choose(network, network, images, **options).choice
    assert found.candidates[0].mean_per_class == pytest.approx((classes - 1) / classes)
