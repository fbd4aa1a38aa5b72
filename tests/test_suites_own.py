"""A benchmark of one's own: the example of the documents, run; and what is told of mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import cli, weights
from bigtransfer.catalog import ModelCard, architecture
from bigtransfer.errors import ConfigError, DataError
from bigtransfer.suites import own, registry, results
from bigtransfer.suites.omnibenchmark import OmniProbe
from bigtransfer.suites.protocol import Preparation
from tests import network_makers
from tests.conftest import REPOSITORY

DOCUMENT = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)[0]
BIRDS = ("blackbird", "robin", "wren")


@pytest.fixture
def garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example beside its images: 6 and 3 of each of three classes, each of a colour."""
    monkeypatch.setenv("BIT_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for part, each in {"train": 6, "test": 3}.items():
        for number, name in enumerate(BIRDS):
            folder = tmp_path / "garden-birds" / part / name
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 60, (20, 20, 3), np.uint8)
                pixels[..., number] += 190
                Image.fromarray(pixels).save(folder / f"{part}-{name}-{i}.png")
    (tmp_path / "garden.toml").write_text(EXAMPLE)
    return tmp_path / "garden.toml"


def _model(path: Path, names: tuple[str, ...]) -> str:
    return str(network_makers.saved(path, names, size=16, std=1))


def test_the_example_of_the_documents_runs(garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _model(tmp_path / "tiny.safetensors", ("wren", "owl", "robin", "blackbird"))
    file = tmp_path / "r.jsonl"
    command = ["evaluate", model, "--suite", str(garden), "--root", str(tmp_path / "elsewhere"), "--results", str(file)]
    assert cli.main(command) == 0
    found = {(one.task, one.metric): one for one in results.read([file])}
    assert {task for task, _ in found} == {"as-it-is", "3-shot", "all"}
    assert found["all", "top-1"].value == 1.0
    assert found["all", "top-1"].input["size"] == 32
    assert found["3-shot", "top-1 (median)"].value > 0.6
    assert len(found["3-shot", "top-1 (draw 0)"].drawn) == 9
    assert {one.benchmark for one in found.values()} == {"garden-birds"}
    capsys.readouterr()
    assert cli.main(["results", str(file), "--suite", str(garden)]) == 0
    shown = capsys.readouterr().out
    assert "garden-birds: all, top-1" in shown
    assert "0 not run" not in shown


def test_classes_are_matched_by_their_names(garden: Path, tmp_path: Path) -> None:
    """A model with the same classes in another order answers the same."""
    from bigtransfer.jobs.suite import Workbench
    from bigtransfer.predictor import Predictor

    parts = own.read(garden).task("as-it-is").benchmark.open(tmp_path, ["test"])
    found = []
    for number, order in enumerate(((0, 1, 2), (2, 0, 1))):
        path = tmp_path / f"{number}.safetensors"
        _model(path, BIRDS)
        network = weights.load(path)
        with torch.no_grad():
            head = network.head
            head.weight.copy_(head.weight[list(order)])  # pyright: ignore
        import dataclasses

        network.card = dataclasses.replace(network.card, class_names=tuple(BIRDS[i] for i in order))
        weights.save(path, network)
        found.append(own.Classify().measure(Workbench(Predictor.load(str(path)), parts, seed=0))[0])
    assert found[0] == found[1]
    _model(tmp_path / "x.safetensors", ("owl", "robin", "wren"))
    bench = Workbench(Predictor.load(str(tmp_path / "x.safetensors")), parts, seed=0)
    with pytest.raises(ConfigError, match="does not know 1 of the 3 classes, such as 'blackbird'"):
        own.Classify().measure(bench)


def test_other_counts_are_refused_and_missing_images_told(
    garden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = own.read(garden)
    assert suite.name == "garden-birds"
    benchmark = suite.tasks[0].benchmark
    (tmp_path / "garden-birds" / "test" / "wren" / "test-wren-0.png").unlink()
    with pytest.raises(DataError, match="has 8 images, but 9 were published"):
        benchmark.open(tmp_path)
    (tmp_path / "garden-birds").rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"Birds of our garden is not here. Get garden-birds.zip .* \(CC BY 4.0\)"):
        benchmark.open(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "garden-birds"', 'name = "Garden Birds"', "name: expected str matching"),
        ('name = "garden-birds"', "", "missing required field name"),
        ('name = "garden-birds"', 'name = "cifar"\ncolour = 1', "colour"),
        ("classes = 3", 'classes = "three"', "classes: expected int, got str"),
        ("classes = 3", "classes = 0", "classes: expected int >= 1"),
        ("train = 18", "train = -1", r"parts\[...\]: expected int >= 1"),
        (
            'protocol = "classify"',
            'protocol = "guess"',
            r"task 1 \(as-it-is\): protocol: 'guess' is none of classify, transfer",
        ),
        ('protocol = "classify"', "", r"task 1 \(as-it-is\): protocol is missing"),
        (
            'protocol = "classify"',
            'protocol = "classify"\npart = "val"',
            "task 1 .*: it needs the part 'val', but parts are train, test",
        ),
        ("shots = 3", "shots = 0", r"task 2 \(3-shot\): shots: expected int >= 1"),
        ("shots = 3", 'shots = "3"', r"task 2 \(3-shot\): shots: expected int, got str"),
        ("shots = 3", "", r"task 2 \(3-shot\): it needs shots"),
        (
            "shots = 3",
            "shots = 3\nshot = 4",
            "shot: there is no such parameter. There are learner, train, test, shots, subsets",
        ),
        ('learner = "linear-probe"  ', 'learner = "probe"  ', "learner: 'probe' is none of hyperrule, closed-form"),
        ('mode = "square"', 'mode = "round"', r"task 3 \(all\): learner: preparation: mode: invalid enum value"),
        ('name = "all"', 'name = "3-shot"', "task 3: there is a task '3-shot' before it"),
        ("classes = 3", "classes = 3\ntrainable = false", "task 2 .*: protocol few-shot learns from the images"),
        ("classes = 3", 'classes = 3\ndigests = { val = "0" }', "digests.val: there is no such part"),
        (
            "shots = 3",
            'shots = 3\ntest = "train"',
            r"task 2 \(3-shot\): test: what is learnt from, 'train', cannot be measured",
        ),
        ("size = 32", "resized = 32", "learner: preparation: resized: only with mode"),
        ('mode = "square", size = 32', 'mode = "aspect", size = 32, resized = 31', "resized: 31 px is not from 32 px"),
        (
            'learner = "linear-probe"  ',
            'learner = { kind = "fewshot-lsr", penalty = nan }  ',
            "penalty: nan is not a finite number",
        ),
        ("[[task]]", "[[task", "is not TOML"),
        ("classes = 3", f"classes = {'9' * 5000}", "is not TOML of this kind"),
        ('name = "garden-birds"', 'name = "cifar-10"', "'cifar-10' is a published benchmark"),
        ('name = "garden-birds"', 'name = "vtab-dtd"', "'vtab-dtd' is a published benchmark"),
        ('name = "garden-birds"', 'name = "transfer"', "'transfer' is a published suite"),
    ],
)
def test_mistakes_are_told_with_file_and_field(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in EXAMPLE
    file = tmp_path / "mine.toml"
    file.write_text(EXAMPLE.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        registry.find(str(file))
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": 0.0}, "held_out"), ({"held_out": float("nan")}, "held_out"), ({"lambdas": ()}, "lambdas"),
        ({"lambdas": (float("nan"),)}, "lambdas"), ({"lambdas": (-1.0,)}, "lambdas"), ({"every": 11, "steps": 10}, "every"),
    ],
)  # fmt: skip
def test_a_probe_that_could_choose_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OmniProbe(**changes)


def test_any_size_before_the_crop_is_met_and_a_side_beyond_the_limit_is_not() -> None:
    card = ModelCard.bare(architecture("r26x1"), 3)
    for size, resized in ((128, 186), (224, 256), (1, 93), (29, 49)):
        assert Preparation(mode="aspect", size=size, resized=resized).spec(card).resized == resized
    with pytest.raises(ConfigError, match="--limits input_side"):
        Preparation(mode="square", size=10**9).spec(card)


def test_a_mark_of_utf_8_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xef\xbb\xbf" + EXAMPLE.encode())
    assert registry.find(str(tmp_path / "b.toml")).name == "garden-birds"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read .*none.toml"):
        registry.find(str(tmp_path / "none.toml"))
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        registry.find(str(tmp_path / "b.toml"))
