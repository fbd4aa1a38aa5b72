"""OmniBenchmark: both releases' layouts, lists without answers, and the linear probe as its authors describe it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bigtransfer.errors import DataError
from bigtransfer.suites import registry
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.omnibenchmark import OmniProbe
from bigtransfer.suites.protocol import Measurement
from tests.transfer_makers import PixelBench, rearranged

REALM, CLASSES = "amphibian", 20
EACH = {"train": 6, "val": 2, "test": 1}


def _make(root: Path, release: int, answers: bool = False) -> Benchmark:
    """A realm in its layout, with a red that tells the class, and the benchmark with its counts."""
    folder = root / f"omnibenchmark-v{release}" / REALM
    rng = np.random.default_rng(release)
    for part, each in EACH.items():
        base = folder / (f"{REALM}.{part}" if release == 1 else part)
        (base / "images").mkdir(parents=True)
        lines = []
        for label in rng.permutation(np.repeat(np.arange(CLASSES), each)):
            name = f"{part}{len(lines)}.jpg"
            Image.new("RGB", (3, 3), (int(label), 0, 0)).save(base / "images" / name, format="PNG")
            shown = label if part != "test" or answers else 0
            lines.append(f"{'' if release == 1 else part + '/'}images/{name} {shown}")
        file = base / ("record.txt" if part != "val" else "records.txt") if release == 1 else folder / f"{part}.txt"
        file.write_text("\n".join(lines) + "\n")
    suite = registry.find("omnibenchmark" if release == 1 else "omnibenchmark-v2")
    counts = {part: CLASSES * each for part, each in EACH.items()}
    return dataclasses.replace(suite.task(REALM).benchmark, parts=counts)


@pytest.mark.parametrize("release", [1, 2])
def test_both_layouts_are_read_with_their_labels(release: int, tmp_path: Path) -> None:
    parts = _make(tmp_path, release, answers=True).open(tmp_path)
    for part, images in parts.items():
        assert len(images) == CLASSES * EACH[part]
        assert images.labels is not None
        assert [int(images.read(i)[0, 0, 0]) for i in range(len(images))] == np.asarray(images.labels).tolist()


@pytest.mark.parametrize("release", [1, 2])
def test_test_lists_without_answers_are_refused_and_the_others_serve(release: int, tmp_path: Path) -> None:
    benchmark = _make(tmp_path, release)
    benchmark.open(tmp_path, ["train", "val"])
    with pytest.raises(DataError, match="gives every image the label 0: the public test lists hold no answers"):
        benchmark.open(tmp_path, ["test"])


def test_lists_of_the_other_release_and_paths_that_lead_away_are_refused(tmp_path: Path) -> None:
    benchmark = _make(tmp_path, 2)
    file = tmp_path / "omnibenchmark-v2" / REALM / "val.txt"
    lines = file.read_text().splitlines()
    for wrong in (
        f"{lines[0].split()[0]} 20",
        lines[0].split()[0],
        "../../secret.jpg 3",
        "/etc/passwd 3",
        f"a.jpg {'9' * 5000}",
    ):
        file.write_text("\n".join([wrong, *lines[1:]]))
        with pytest.raises(DataError, match=r"val.txt, line 1"):
            benchmark.open(tmp_path, ["val"])
    file.write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="39 images, but 40 were published"):
        benchmark.open(tmp_path, ["val"])


def test_there_are_21_realms_in_both_releases_and_their_mean_counts_each_alike() -> None:
    for name, total in (("omnibenchmark", 6621), ("omnibenchmark-v2", 5725)):
        suite = registry.find(name)
        assert len(suite.tasks) == 21
        assert sum(task.benchmark.classes for task in suite.tasks) == total
        values = {task.name: number / 20 for number, task in enumerate(suite.tasks)}
        assert suite.aggregates["average_top1"](values) == pytest.approx(0.5)
        assert all(
            task.benchmark.gigabytes is None and "CC BY-NC-ND" in str(task.benchmark.missing(Path()))
            for task in suite.tasks
        )


QUICK = OmniProbe(steps=4, every=2, lambdas=(1e-4, 1e-1), held_out=0.2)


def _features(n: int = 200, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    return torch.randn(n, 6, generator=generator) + 1.5 * nn.functional.one_hot(labels, 6), labels


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_the_loss_is_the_sum_of_ten_means_and_the_norm_of_the_weights(factor: float) -> None:
    features, labels = _features()
    *_, (_, classifier) = OmniProbe(steps=25, every=25).fitted(features, labels, 4, factor, seed=0)
    weight, bias = (one.detach().double().requires_grad_() for one in (classifier.weight, classifier.bias))
    loss = 10 * nn.functional.cross_entropy(features.double() @ weight.T + bias, labels)
    pull, free = torch.autograd.grad(loss, (weight, bias))
    assert torch.allclose(pull, (-factor * weight / weight.norm()).detach(), atol=0.01)
    assert free.abs().max() < 0.01
    assert pull.norm() == pytest.approx(factor, rel=0.05)


def test_what_is_left_over_goes_into_the_last_part() -> None:
    features, labels = _features(n=25)
    assert [step for step, _ in QUICK.fitted(features, labels, 4, 0.1, seed=0)] == [2, 4]
    last = features.clone()
    last[24] += 5
    one, other = (next(iter(QUICK.fitted(f, labels, 4, 0.1, 0)))[1].weight.detach().clone() for f in (features, last))
    assert not torch.equal(one, other)


@pytest.fixture
def parts(tmp_path: Path) -> dict:
    return dict(_make(tmp_path, 2, answers=True).open(tmp_path))


def test_the_probe_tells_the_classes_and_what_it_chose(parts: dict) -> None:
    top1, per_class = QUICK.measure(PixelBench(parts))
    assert (top1.metric, per_class.metric) == ("top-1", "mean-per-class")
    assert top1.value == per_class.value == 1.0
    assert top1.images == 40
    assert "chosen on 20 held-out training images" in top1.note


def test_numbers_do_not_depend_on_the_order_of_images(parts: dict) -> None:
    first = QUICK.measure(PixelBench(parts, noise=0.5))
    mixed = {name: rearranged(images, 2) for name, images in parts.items()}
    second = QUICK.measure(PixelBench(mixed, noise=0.5))
    assert first == second
    assert 0.2 < first[0].value < 1


def test_choosing_on_what_is_measured_is_never_worse_and_says_so(parts: dict) -> None:
    fair = QUICK.measure(PixelBench(parts, noise=0.5))
    best = dataclasses.replace(QUICK, select_on="eval", held_out=0.0).measure(PixelBench(parts, noise=0.5))
    looks = dataclasses.replace(QUICK, select_on="eval", lambdas=(0.1,), steps=2).measure(PixelBench(parts, noise=0.5))
    assert best[0].value >= max(fair[0].value, looks[0].value)
    assert "on the very images" in best[0].note


def test_the_best_of_each_number_is_taken_where_it_is_chosen_on_what_is_measured(parts: dict) -> None:
    """Of both, whatever lambda and step the other has its best with; the interval is that of the best top-1."""
    uneven = {**parts, "val": parts["val"].subset([*range(40), *range(7)])}

    def measured(lambdas: tuple[float, ...], steps: int, every: int) -> list[Measurement]:
        probe = OmniProbe(steps=steps, every=every, lambdas=lambdas, select_on="eval", held_out=0.0)
        return list(probe.measure(PixelBench(uneven, noise=0.5)))

    single = [measured((factor,), step, step) for factor in (1e-4, 10.0) for step in (1, 2)]
    top1, per_class = ([one[number].value for one in single] for number in (0, 1))
    assert min(top1) < max(top1) and min(per_class) < max(per_class)
    best = measured((1e-4, 10.0), 2, 1)
    assert [one.value for one in best] == [max(top1), max(per_class)]
    assert best[0].interval == single[top1.index(max(top1))][0].interval


def test_the_choice_never_sees_what_is_measured(parts: dict) -> None:
    """The note tells lambda and step: they stay whatever the measured images are."""
    first = QUICK.measure(PixelBench(parts, noise=0.5))
    other = QUICK.measure(PixelBench({**parts, "val": parts["val"].subset(range(5))}, noise=0.5))
    assert first[0].note == other[0].note


def test_too_few_images(parts: dict) -> None:
    with pytest.raises(DataError, match="too few for 10 segments"):
        QUICK.measure(PixelBench({**parts, "train": parts["train"].subset(range(9))}))
    with pytest.raises(DataError, match="too few training images to hold any out"):
        dataclasses.replace(QUICK, held_out=0.01).measure(PixelBench(parts))
