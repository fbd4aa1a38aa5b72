"""VTAB-1k's protocols: what is asked of a fine-tuning, what is measured, and that an interrupted one goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bigtransfer import cli, weights
from bigtransfer.catalog import ARCHITECTURES, InputSpec, ModelCard
from bigtransfer.data import ImageSet
from bigtransfer.jobs import suite as suite_job
from bigtransfer.jobs import training
from bigtransfer.jobs.suite import Workbench
from bigtransfer.model import ResNetV2
from bigtransfer.predictor import Predictor
from bigtransfer.suites import registry, results, vtab
from bigtransfer.suites.protocol import Bench, Preparation
from bigtransfer.suites.suite import Suite, Task
from bigtransfer.suites.vtab.protocols import Budget, Closed, HyperRule, Probe
from bigtransfer.suites.vtab.sources import from_folder
from bigtransfer.suites.vtab.tasks import TASKS

BY_NAME = {task.name: task for task in TASKS}
COUNTS = {"train1000": 12, "test": 8}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """SVHN's folder in miniature: two of the ten digits occur, dark and bright."""
    rng = np.random.default_rng(0)
    for part, count in (("train800val200", 12), ("test", 8)):
        lines = []
        for number in range(count):
            label = 7 * (number % 2)
            file = tmp_path / "root" / "vtab-1k" / "svhn" / "images" / part / f"{number:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 80, (16, 16, 3), np.uint8) + np.uint8(150 * (label > 0))).save(file)
            lines.append(f"images/{part}/{file.name} {label}")
        (tmp_path / "root" / "vtab-1k" / "svhn" / f"{part}.txt").write_text("\n".join(lines))
    return tmp_path / "root"


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 3)
    network.card = ModelCard(
        name="tiny",
        architecture=network.architecture,
        num_classes=3,
        class_names=("a", "b", "c"),
        input=InputSpec(size=16),
    )
    weights.save(tmp_path / "tiny.safetensors", network)
    return str(tmp_path / "tiny.safetensors")


@pytest.fixture(autouse=True)
def _suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(training, "spare_workers", lambda: 0)
    benchmark = dataclasses.replace(BY_NAME["svhn"].benchmark(), parts=COUNTS)
    rule = Budget(**vtab.parameters_of(BY_NAME["svhn"]), steps=3, batch_size=4, resize_to=28, crop_to=24)
    protocols = {"budget": rule, "closed": Closed(flip=True), "probe": Probe()}
    tasks = tuple(Task(name=name, benchmark=benchmark, protocol=one) for name, one in protocols.items())
    monkeypatch.setitem(registry.SUITES, "mini", Suite(name="mini", title="Mini", tasks=tasks))


class Asked(Bench):
    """A bench that writes down what is asked of it, and answers with class 7 for every image."""

    device, seed = torch.device("cpu"), 0

    def __init__(self, root: Path, architecture: str = "r50x1") -> None:
        self.card = ModelCard.bare(ARCHITECTURES[architecture], 10)
        self.parts = from_folder(10, root / "vtab-1k" / "svhn", ["train1000", "test"])
        self.settings: dict[str, Any] = {}
        self.trained: ImageSet | None = None
        self.seen: list[Preparation] = []

    def finetuned(self, train: ImageSet, **settings: Any) -> Bench:
        self.settings, self.trained = settings, train
        return self

    def logits(self, images: ImageSet, preparation: Preparation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self.seen.append(preparation)
        answers = torch.zeros(len(images), 10)
        answers[:, 7] = 1
        yield answers, torch.from_numpy(np.asarray(images.labels)), torch.arange(len(images))


@pytest.mark.parametrize(
    ("task", "architecture", "sizes", "flip", "crop"),
    [
        ("cifar100", "r50x1", (160, 128), True, True),
        ("cifar100", "r152x4", (160, 128), True, True),
        ("patch_camelyon", "r50x1", (448, 384), True, True),
        ("smallnorb_azimuth", "r101x3", (448, 384), False, True),
        ("caltech101", "r50x1", (448, 384), True, True),
        ("caltech101", "r152x4", (512, 480), True, True),
        ("clevr_count", "r50x1", (448, 384), True, False),
        ("dsprites_location", "r50x1", (160, 128), False, False),
        ("dsprites_orientation", "r50x1", (160, 128), False, True),
    ],
)
def test_what_the_rule_asks_for(
    root: Path, task: str, architecture: str, sizes: tuple[int, int], flip: bool, crop: bool
) -> None:
    bench = Asked(root, architecture)
    (found,) = registry.find("vtab-1k").task(task).protocol.measure(bench)
    assert bench.settings == {
        "variant": "code",
        "steps": 500,
        "batch_size": 512,
        "learning_rate": 0.003,
        "resize": sizes[0],
        "crop": sizes[1],
        "flip": flip,
        "random_crop": crop,
    }
    assert bench.trained is bench.parts["train1000"]
    assert bench.seen == [Preparation(mode="square", size=sizes[1])]
    # Of all test images, of which half are of class 7.
    assert (found.metric, found.value, found.images) == ("top-1", 0.5, 8)
    assert found.interval is not None and found.interval[0] < 0.5 < found.interval[1]


def test_variants_of_the_rule(root: Path) -> None:
    suite = registry.find("vtab-1k")
    bench = Asked(root)
    suite.task("caltech101/paper-schedule").protocol.measure(bench)
    assert (bench.settings["variant"], bench.settings["crop"]) == ("paper", 384)
    suite.task("caltech101/code-resolution").protocol.measure(bench)
    assert (bench.settings["variant"], bench.settings["resize"], bench.settings["crop"]) == ("code", 512, 480)


def test_no_variant_can_be_taken_for_another() -> None:
    seen = set()
    for suite in vtab.SUITES:
        for task in (*suite.tasks, *suite.extra):
            if task.benchmark.name == "vtab-cifar100":
                seen.add((task.protocol.name, repr(sorted(task.protocol.parameters().items()))))
    assert len(seen) == sum(len(suite.tasks) + len(suite.extra) for suite in vtab.SUITES) // 19


def evaluate(root: Path, model: str, *tasks: str, more: tuple[str, ...] = ()) -> int:
    arguments = ["evaluate", model, "--suite", "mini", "--root", str(root), "--results", str(root.parent / "out.jsonl")]
    return cli.main([*arguments, *(("--task", *tasks) if tasks else ()), "--workers", "1", "--device", "cpu", *more])


def test_the_protocols_run_on_a_model(root: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(root, model) == 0
    output = capsys.readouterr().out
    assert "mini: budget: top-1" in output and "training" not in output and "rule:" not in output
    found = {one.task: one for one in results.read([root.parent / "out.jsonl"])}
    assert set(found) == {"budget", "closed", "probe"}
    assert len({one.key for one in found.values()}) == 3
    assert found["closed"].value == found["probe"].value == 1.0
    assert found["closed"].note == "features of images of 16 px"
    assert all(one.images == 8 and one.model == "tiny" for one in found.values())
    # How the images were seen by what was measured in the end, not by what it began with.
    assert found["budget"].input["size"] == 24 and found["budget"].input["mode"] == "square"
    assert found["budget"].parameters["steps"] == 3


def test_what_a_fine_tuning_is_given_and_leaves(root: Path, model: str) -> None:
    assert evaluate(root, model, "budget") == 0
    (run,) = (root.parent / "out.runs" / "mini" / "budget").glob("*/*")
    assert (run / "model.safetensors").is_file() and not (run / "report.html").exists()
    card = weights.describe(run / "model.safetensors")
    assert card.recipe is not None and (card.num_classes, card.recipe["steps"]) == (10, 3)
    assert (card.recipe["resize"], card.recipe["crop"]) == (28, 24)
    kept = (run / "model.safetensors").stat().st_mtime_ns
    (root.parent / "out.jsonl").rename(root.parent / "before.jsonl")
    assert evaluate(root, model, "budget") == 0  # measured, but not trained again
    assert (run / "model.safetensors").stat().st_mtime_ns == kept
    one, other = results.read([root.parent / "before.jsonl", root.parent / "out.jsonl"])
    assert (one.value, one.key) == (other.value, other.key)
    assert evaluate(root, model, "budget", more=("--seed", "1")) == 0
    assert len([*(root.parent / "out.runs" / "mini" / "budget").glob("*/*")]) == 2


def test_an_interrupted_fine_tuning_goes_on_and_ends_as_the_whole(
    root: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = dataclasses.replace(BY_NAME["svhn"].benchmark(), parts=COUNTS).open(root)
    settings = {"steps": 4, "batch_size": 4, "resize": 20, "crop": 16}

    def bench(place: str) -> Workbench:
        return Workbench(
            Predictor.load(model), parts, model=model, name="svhn", place=tmp_path / place, seed=0, workers=0
        )

    whole = bench("whole").finetuned(parts["train1000"], **settings)
    original = suite_job.finetune

    def stopped(config: Any, images: Any) -> Any:
        from bigtransfer.train import loop

        usual = loop.StopRequest.__bool__
        with monkeypatch.context() as patch:
            asked = iter([False, True])
            patch.setattr(loop.StopRequest, "__bool__", lambda self: next(asked, usual(self)))
            return original(config, images)

    monkeypatch.setattr(suite_job, "finetune", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench("part").finetuned(parts["train1000"], **settings)
    monkeypatch.setattr(suite_job, "finetune", original)
    resumed = bench("part").finetuned(parts["train1000"], **settings)
    for one, other in zip(_tensors(whole), _tensors(resumed), strict=True):
        assert torch.equal(one, other)


def _tensors(bench: Bench) -> list[Tensor]:
    assert isinstance(bench, Workbench)
    return [*bench.predictor.state_dict().values()]


def test_hyper_rule_is_the_default_suite() -> None:
    assert [type(task.protocol) for task in registry.find("vtab-1k").tasks] == [HyperRule] * 19
