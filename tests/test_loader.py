"""Batches: which images, how they are cropped, and that neither cache nor worker processes nor the start change a byte."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer.catalog import InputSpec
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.data import images as image_ops
from bigtransfer.errors import ConfigError, DataError, ImageError
from bigtransfer.feed import background
from bigtransfer.feed.augment import Growth, InceptionCrop, SquareCrop, draws, normalize
from bigtransfer.feed.background import in_processes, in_threads
from bigtransfer.feed.loader import Batch, FeatureLoader, TrainLoader, eval_batches
from bigtransfer.feed.order import FullShuffle
from tests.data_makers import class_folders

CROP = InceptionCrop(size=16)


def test_how_many_batches_are_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a quarter of a GiB holds for all workers together; two at least, sixteen at most for each."""
    images = open_dataset(class_folders(tmp_path, {"a": 2, "b": 2})).train
    free = [1 << 40]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free[0]))

    def ahead(batch_size: int, size: int, workers: int, steps: int = 100) -> tuple[int, int]:
        seen = []

        def watched(function: object, items: object, *, processes: int, ahead: int) -> Iterator[object]:
            seen.append((processes, ahead))
            yield from ()

        monkeypatch.setattr("bigtransfer.feed.loader.in_processes", watched)
        crop = InceptionCrop(size=size)
        loader = TrainLoader(images, crop, batch_size=batch_size, seed=0, cache="none", workers=workers)
        with contextlib.suppress(StopIteration, RuntimeError):
            next(loader.batches(0, steps))
        return seen[0]

    assert ahead(4, 16, 2) == (2, 16)
    assert ahead(256, 224, 2) == (2, 3), "2^28 / (2 * 256 * 224 * 224 * 3) = 3.5"
    assert ahead(512, 224, 4) == (4, 2)
    assert ahead(4, 16, 8, steps=3) == (3, 16), "no more workers than batches"
    free[0] = 16 * 5 * 2 * 256 * 64 * 64 * 3
    assert ahead(256, 64, 2) == (2, 5), "a sixteenth of what is free there, where that is less"


# --- Crops


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture whose pixels say where they are: channel 0 the row, channel 1 the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows * 0], axis=2).astype(np.uint8)


def test_square_crop_reaches_every_place_and_flips_half() -> None:
    crop = SquareCrop(resize=20, crop=16)
    prepared = crop.prepare(coordinates(20, 20))  # already of that size: pixels keep their coordinates
    seen, flips = set(), 0
    rows = draws(crop, seed=0, step=0, count=2000)
    for row in rows:
        image = crop.apply(prepared, row)
        assert image.shape == (16, 16, 3)
        flipped = image[0, 0, 1] > image[0, -1, 1]
        flips += int(flipped)
        upright = image[:, ::-1] if flipped else image
        top, left = int(upright[0, 0, 0]), int(upright[0, 0, 1])
        assert (upright == prepared[top : top + 16, left : left + 16]).all()
        seen.add((top, left))
    assert seen == {(top, left) for top in range(5) for left in range(5)}
    assert 900 < flips < 1100  # 4.5 standard deviations
    edge = np.array([np.nextafter(1, 0), np.nextafter(1, 0), 0.9])
    assert crop.apply(prepared, edge)[0, 0].tolist() == [4, 4, 0], "the largest possible draw stays inside"


def test_square_crop_ignores_the_aspect_ratio_as_the_rule_does() -> None:
    prepared = SquareCrop(resize=24, crop=16).prepare(coordinates(12, 60))
    assert prepared.shape == (24, 24, 3)


def test_switches_of_square_crop() -> None:
    picture = coordinates(40, 30)
    still = SquareCrop(resize=20, crop=16, random_crop=False, flip=False)
    expected = image_ops.prepare(picture, InputSpec(size=16))
    for row in draws(still, seed=0, step=0, count=20):
        assert (still.apply(still.prepare(picture), row) == expected).all(), (
            "without them training sees what evaluation sees"
        )
    only_crop = SquareCrop(resize=20, crop=16, flip=False)
    images = [only_crop.apply(only_crop.prepare(picture), row) for row in draws(only_crop, 0, 0, 50)]
    assert all(image[0, 0, 1] < image[0, -1, 1] for image in images)
    aliased = SquareCrop(resize=20, crop=16, antialias=False).prepare(picture)
    assert (aliased == image_ops.resize(picture, 20, 20, "bilinear", False)).all()


def test_inception_crop_takes_allowed_parts_only() -> None:
    height, width, least = 200, 150, 0.3
    crop = InceptionCrop(size=32, min_area=least, flip=True)
    picture = coordinates(height, width)
    areas, flips, corners = [], 0, []
    for row in draws(crop, seed=1, step=0, count=600):
        image = crop.apply(picture, row)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        flipped = image[0, 0, 1] > image[0, -1, 1]
        flips += int(flipped)
        upright = (image[:, ::-1] if flipped else image).astype(float)
        # Coordinates are linear in the crop, and half a resized pixel is missing at either end.
        h = (upright[-2, 16, 0] - upright[1, 16, 0]) / 29 * 32
        w = (upright[16, -2, 1] - upright[16, 1, 1]) / 29 * 32
        areas.append(h * w / (height * width))
        assert 0.72 < w / h < 1.38
        corners.append((upright[0, 0, 0], upright[0, 0, 1]))
    assert min(areas) > least - 0.03 and max(areas) < 1.05
    assert min(areas) < least + 0.05 and max(areas) > 0.85, "the whole range of areas occurs"
    assert 240 < flips < 360
    assert min(corner[0] for corner in corners) < 5 and max(corner[0] for corner in corners) > 60


@pytest.mark.parametrize(("height", "width"), [(1, 300), (300, 1), (1, 1), (2, 3)])
def test_inception_crop_of_extreme_shapes(height: int, width: int) -> None:
    crop = InceptionCrop(size=8, min_area=0.9)
    for row in draws(crop, seed=0, step=0, count=50):
        assert crop.apply(coordinates(height, width), row).shape == (8, 8, 3)


def one_box(crop: InceptionCrop, height: int, width: int, row: np.ndarray) -> tuple[int, int, int, int]:
    """What Inception's rule says, one attempt after the other."""
    for area_draw, ratio_draw in row[3:].reshape(-1, 2).tolist():
        area = height * width * (crop.min_area + (1 - crop.min_area) * area_draw)
        ratio = crop.max_ratio ** (2 * ratio_draw - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = min(width, round(height * crop.max_ratio)), min(height, round(width * crop.max_ratio))
    return int(row[0] * (height - h + 1)), int(row[1] * (width - w + 1)), h, w


@pytest.mark.parametrize(("least", "largest"), [(0.05, 500), (0.25, 64), (0.99, 12)])
def test_crops_of_many_images_are_those_of_each(least: float, largest: int) -> None:
    crop = InceptionCrop(size=8, min_area=least)
    rows = draws(crop, seed=3, step=0, count=1000)
    sizes = np.random.default_rng(0).integers(1, largest, (1000, 2))
    boxes, mirrored = crop.crops(sizes, rows)
    expected = [one_box(crop, height, width, row) for (height, width), row in zip(sizes.tolist(), rows, strict=True)]
    assert boxes.tolist() == [list(box) for box in expected] and mirrored.tolist() == (rows[:, 2] < 0.5).tolist()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= sizes).all() and (boxes[:, 2:] > 0).all()


def sampled_box(rng: np.random.Generator, height: int, width: int, least: float) -> tuple[int, int, int, int]:
    """Top, left, height and width by the documentation of `tf.image.sample_distorted_bounding_box` (area_range (least, 1),
    aspect_ratio_range (0.75, 1.33), max_attempts 100, use_image_if_no_bounding_boxes) and its kernel: one attempt after the other, in
    float32, every number drawn when it is asked for."""
    f = np.float32
    for _ in range(100):
        ratio = f(rng.random()) * (f(1.33) - f(0.75)) + f(0.75)
        smallest, largest = f(least) * f(width) * f(height), f(width) * f(height)
        h, most = (int(np.rint(np.sqrt(area / ratio))) for area in (smallest, largest))
        if np.rint(f(most) * ratio) > width:
            most = int((width + 0.5 - 1e-7) / ratio)
            while np.rint(f(most) * ratio) > width:
                most -= 1
        most = min(most, height)
        h = min(h, most)
        h = int(rng.integers(h, most, endpoint=True))
        w = int(np.rint(f(h) * ratio))
        if w * h < smallest:
            h += 1
            w = int(np.rint(f(h) * ratio))
        if w * h > largest:
            h -= 1
            w = int(np.rint(f(h) * ratio))
        if smallest <= w * h <= largest and 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h)) if h < height else 0
            left = int(rng.integers(width - w)) if w < width else 0
            return top, left, h, w
    return 0, 0, height, width


@pytest.mark.parametrize(
    ("height", "width", "least"),
    [(240, 240, 0.05), (300, 400, 0.05), (500, 333, 0.3), (100, 30, 0.05), (100, 30, 0.38), (12, 9, 0.5)],
)
def test_crops_in_tensorflows_style_are_distributed_as_its_boxes(height: int, width: int, least: float) -> None:
    count = 8000
    crop = InceptionCrop(size=8, min_area=least, style="tensorflow")
    boxes, _ = crop.crops(np.full((count, 2), (height, width)), draws(crop, seed=1, step=0, count=count))
    rng = np.random.default_rng(2)
    theirs = np.array([sampled_box(rng, height, width, least) for _ in range(count)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= (height, width)).all()

    def measures(found: np.ndarray) -> np.ndarray:
        top, left, h, w = found.T.astype(float)
        # Where there is room, the place in it.
        across, down = left / np.maximum(width - w, 1), top / np.maximum(height - h, 1)
        return np.stack([h * w / (height * width), np.log(w / h), h / height, w / width, across, down])

    for ours, reference in zip(measures(boxes), measures(theirs), strict=True):
        # Kolmogorov-Smirnov: 1.95 x sqrt(2 / n) is exceeded by chance in one of 1,000 comparisons.
        points = np.sort(np.concatenate([ours, reference]))
        shares = [np.searchsorted(np.sort(sample), points, side="right") / count for sample in (ours, reference)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(2 / count)
        spread = math.hypot(ours.std(), reference.std()) / math.sqrt(count)
        assert abs(ours.mean() - reference.mean()) < 4 * spread + 1e-12


def test_the_styles_of_crops_have_the_areas_that_they_are_known_for() -> None:
    for style, area in (("tensorflow", 0.376), ("torchvision", 0.46)):
        crop = InceptionCrop(size=8, style=style)
        sizes = np.full((20_000, 2), 500)
        boxes, _ = crop.crops(sizes, draws(crop, seed=0, step=0, count=len(sizes)))
        areas = boxes[:, 2:].prod(axis=1) / 250_000
        assert abs(areas.mean() - area) < 0.008, style
        assert areas.min() >= 0.049 and areas.max() <= 1
        ratios = boxes[:, 3] / boxes[:, 2]
        assert (ratios.min(), ratios.max()) == pytest.approx((0.75, 1.33), abs=0.03)


def test_tensorflows_style_one_box_by_hand() -> None:
    """100 x 200 px, at least 0.25 of them: ratio 0.75 + 0.5 x 0.58 = 1.04, heights from rint(sqrt(5000 / 1.04)) = 69 to 100."""
    crop = InceptionCrop(size=8, min_area=0.25, style="tensorflow")
    row = np.full(203, 0.5)
    row[:5] = 0.25, 0.75, 0.4, 0.5, 0.5
    boxes, mirrored = crop.crops(np.array([[100, 200]]), row[None])
    # 69 + floor(0.5 x 32) = 85 rows of rint(88.4) px, a quarter of 15 px down and three quarters of 112 px to the right.
    assert boxes.tolist() == [[3, 84, 85, 88]] and mirrored.tolist() == [True]
    # No part of 1000 x 1 px has a quarter of them and such a ratio: the whole image.
    assert crop.crops(np.array([[1000, 1], [1, 1]]), np.stack([row, row])).boxes.tolist() == [
        [0, 0, 1000, 1],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("least", [0.05, 0.5, 0.99])
def test_tensorflows_style_of_many_images_is_that_of_each(least: float) -> None:
    crop = InceptionCrop(size=8, min_area=least, style="tensorflow")
    rows = draws(crop, seed=3, step=7, count=500)
    sizes = np.random.default_rng(0).integers(1, 90, (500, 2))
    boxes, mirrored = crop.crops(sizes, rows)
    for size, row, box, flipped in zip(sizes, rows, boxes, mirrored, strict=True):
        alone, turned = crop.crops(size[None], row[None])
        assert alone[0].tolist() == box.tolist() and turned[0] == flipped == (row[2] < 0.5)
    areas = boxes[:, 2:].prod(axis=1) / sizes.prod(axis=1)
    assert (areas >= least).all() and (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


@pytest.mark.parametrize(
    "augmentation",
    [SquareCrop(resize=20, crop=16), InceptionCrop(size=16), InceptionCrop(size=16, style="tensorflow")],
)
def test_draws_differ_by_step_and_seed(augmentation) -> None:
    """And are those of a generator made of (seed, 2, step), whatever was drawn before."""
    first = draws(augmentation, 3, 5, 4)
    expected = np.random.default_rng((3, 2, 5)).random(first.shape)
    np.testing.assert_array_equal(first, expected)
    assert (draws(augmentation, 3, 6, 4) != first).all() and (draws(augmentation, 4, 5, 4) != first).all()


def test_without_flip_nothing_is_mirrored() -> None:
    crop = InceptionCrop(size=16, flip=False)
    picture = coordinates(100, 100)
    images = [crop.apply(picture, row) for row in draws(crop, 0, 0, 50)]
    assert all(image[8, 0, 1] < image[8, -1, 1] for image in images)


def test_normalize_is_exact_at_the_ends() -> None:
    batch = torch.tensor([0, 255, 127, 128], dtype=torch.uint8).reshape(1, 1, 2, 2).expand(2, 3, 2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        result = normalize(batch, dtype)
        assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
        assert result[0, 0, 0, 0] == -1 and result[0, 0, 0, 1] == 1
    middle = normalize(batch)[0, 0, 1]
    assert middle.tolist() == pytest.approx([-1 / 255, 1 / 255], rel=1e-6)


# --- Loaders


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_dataset(class_folders(tmp_path_factory.mktemp("pictures"), {"a": 5, "b": 4, "c": 2})).train


# Python warns of every fork beside threads (pytest's, torch's); the workers touch neither.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def bytes_of(batches) -> list[tuple[int, bytes, list[int], tuple[int, ...]]]:
    return [(b.step, b.images.numpy().tobytes(), b.labels.tolist(), b.images.stride()) for b in batches]


def _digests(pictures: ImageSet, options: dict, pipe) -> None:
    loader = TrainLoader(pictures, CROP, batch_size=8, seed=5, **options)
    pipe.send([batch.images.numpy().tobytes() for batch in loader.batches(3, 7)])


@forks
def test_a_process_that_may_have_no_children_makes_the_same_batches_in_threads(pictures: ImageSet) -> None:
    """A daemonic one, such as a worker of a pool: Python forbids it to start processes."""
    context = multiprocessing.get_context("fork")
    pipe, far_end = context.Pipe()
    child = context.Process(target=_digests, args=(pictures, {"cache": "none", "workers": 2}, far_end), daemon=True)
    child.start()
    far_end.close()
    assert pipe.poll(60)
    found = pipe.recv()
    child.join()
    expected = TrainLoader(pictures, CROP, batch_size=8, seed=5, cache="none", workers=0).batches(3, 7)
    assert found == [batch.images.numpy().tobytes() for batch in expected] and child.exitcode == 0


@forks
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on a single core
@pytest.mark.parametrize(
    "augmentation",
    [SquareCrop(resize=20, crop=16), InceptionCrop(size=16), InceptionCrop(size=16, style="tensorflow")],
)
def test_cache_workers_and_start_change_no_byte(pictures: ImageSet, augmentation) -> None:
    def loader(**options) -> TrainLoader:
        return TrainLoader(pictures, augmentation, batch_size=8, seed=5, **options)

    cached = loader(cache="memory")
    assert cached.cached
    expected = bytes_of(cached.batches(0, 6))
    assert [step for step, *_ in expected] == list(range(6))
    plain = loader(cache="none")
    assert not plain.cached
    assert bytes_of(plain.batches(0, 6)) == expected
    assert bytes_of(loader(cache="none", workers=2).batches(0, 6)) == expected
    assert loader(cache="auto").cached
    for start in (1, 4):
        assert bytes_of(plain.batches(start, 6)) == expected[start:]
        assert bytes_of(cached.batches(start, 6)) == expected[start:]
    assert bytes_of(loader(cache="none", workers=1).batches(3, 6)) == expected[3:]
    assert bytes_of(cached.batches(6, 6)) == []
    other = TrainLoader(pictures, augmentation, batch_size=8, seed=6, cache="memory")
    assert bytes_of(other.batches(0, 6)) != expected


def test_batches_hold_the_images_that_the_order_names(pictures: ImageSet) -> None:
    loader = TrainLoader(pictures, SquareCrop(resize=16, crop=16, flip=False), batch_size=8, seed=5, cache="memory")
    for batch in loader.batches(0, 3):
        assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for i, index in enumerate(FullShuffle(len(pictures), 8, 5).indices(batch.step)):
            expected = image_ops.resize(pictures.read(index), 16, 16, "bilinear", True)
            assert (batch.images[i].permute(1, 2, 0).numpy() == expected).all()
            assert batch.labels[i] == pictures.labels[index]


def test_large_sets_are_not_cached(pictures: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigtransfer.feed.cache.available_memory", lambda: 11 * 20 * 20 * 3 * 2.4)
    assert not TrainLoader(pictures, SquareCrop(resize=20, crop=16), batch_size=8, seed=5).cached
    monkeypatch.setattr("bigtransfer.feed.cache.available_memory", lambda: 11 * 20 * 20 * 3 * 2.6)
    assert TrainLoader(pictures, SquareCrop(resize=20, crop=16), batch_size=8, seed=5).cached


@forks
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path: Path, workers: int) -> None:
    images = open_dataset(class_folders(tmp_path, {"a": 2, "b": 2})).train
    loader = TrainLoader(images, SquareCrop(resize=16, crop=16), batch_size=4, seed=0, cache="none", workers=workers)
    (tmp_path / "b" / "001.png").write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        list(loader.batches(0, 3))
    assert caught.value.name == str(tmp_path / "b" / "001.png") and "001.png" in str(caught.value)


# --- Parts of batches, images left out, growing crops


@pytest.mark.parametrize("ranks", [2, 3, 8, 11])
def test_the_ranks_share_each_batch(pictures: ImageSet, ranks: int) -> None:
    """Also where they do not divide it, and where some get nothing."""

    def batches(**place) -> list[Batch]:
        loader = TrainLoader(pictures, InceptionCrop(size=16), batch_size=8, seed=5, cache="memory", **place)
        return list(loader.batches(2, 5))

    parts = [batches(rank=rank, ranks=ranks) for rank in range(ranks)]
    assert {len(batch.labels) for part in parts for batch in part} == {-(-8 // ranks), 8 // ranks}
    for number, whole in enumerate(batches()):
        assert torch.equal(torch.cat([part[number].images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part[number].labels for part in parts]), whole.labels)
        assert all(part[number].images.shape[1:] == (3, 16, 16) for part in parts)


@dataclasses.dataclass
class Counting:
    """A store of random pictures that counts what is read of it."""

    count: int
    reads: Counter[int] = dataclasses.field(default_factory=Counter)

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> np.ndarray:
        self.reads[row] += 1
        return image_ops.prepare(np.full((20, 20, channels), row % 256, dtype=np.uint8), spec)

    def name(self, row: int) -> str:
        return f"{row}.png"

    runs = None
    remote = False

    def as_set(self, labels: np.ndarray | None = None) -> ImageSet:
        return ImageSet(self, np.arange(self.count), np.arange(self.count) if labels is None else labels, ("a",))  # pyright: ignore


def test_a_rank_reads_only_its_part() -> None:
    store = Counting(12)
    loader = TrainLoader(
        store.as_set(), SquareCrop(resize=16, crop=16), batch_size=12, seed=0, cache="none", rank=1, ranks=3
    )
    (batch,) = loader.batches(4, 5)
    assert sorted(store.reads.elements()) == sorted(batch.labels.tolist()) and len(batch.labels) == 4


@dataclasses.dataclass
class Files(Counting):
    """Pictures in files of 10, every seventh of them bad; notes which process read them in which order."""

    log: Path = Path()

    @property
    def runs(self) -> np.ndarray:
        return np.arange(0, self.count + 1, 10)

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> np.ndarray:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {row // 10}\n")
        if row % 7 == 0:
            raise ImageError(self.name(row), "it is bad")
        return super().read(row, channels, spec)


@forks
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_file_is_read_by_one_process(tmp_path: Path, ranks: int) -> None:
    images = Files(480, log=tmp_path / "log").as_set()
    epoch = range(2 * 480 // 24, 3 * 480 // 24)
    readers = set()
    for rank in range(ranks):

        def loader(rank: int = rank, **options) -> TrainLoader:
            place = {"rank": rank, "ranks": ranks}
            return TrainLoader(images, CROP, batch_size=24, seed=0, cache="none", skip_bad=True, **place, **options)

        expected = list(loader().batches(epoch.start, epoch.stop))
        (tmp_path / "log").write_text("")
        found = list(loader(workers=3).batches(epoch.start, epoch.stop))
        assert bytes_of(found) == bytes_of(expected)
        errors = [[error.name for error in batch.errors] for batch in found]
        assert errors == [[error.name for error in batch.errors] for batch in expected]
        assert sum(map(len, errors)) > 20
        readers |= set((tmp_path / "log").read_text().splitlines())
    assert len({line.split()[0] for line in readers}) == 3 * ranks
    assert 48 <= len(readers) <= 48 + 3 * ranks  # (process, file): twice only the files that a border cuts


@forks
@pytest.mark.parametrize("wide", [False, True])
def test_bad_images_are_left_out_if_asked(tmp_path: Path, wide: bool) -> None:
    images = open_dataset(class_folders(tmp_path, {"a": 3, "b": 3})).train
    if wide:  # several labels an image
        images = dataclasses.replace(images, labels=np.stack([images.labels, np.full(6, -1)], axis=1))
    bad = ("a/001.png", "b/002.png")
    augmentation = InceptionCrop(size=16)

    def loader(**options) -> TrainLoader:
        return TrainLoader(images, augmentation, batch_size=4, seed=0, **options)

    good = list(loader(cache="none").batches(0, 6))
    for name in bad:
        (tmp_path / name).write_bytes(b"no image")
    ways = ({"cache": "none"}, {"cache": "none", "workers": 2}, {"cache": "memory"}, {"cache": "auto"})
    for options in ways:
        for batch, whole in zip(loader(skip_bad=True, **options).batches(0, 6), good, strict=True):
            indices = FullShuffle(6, 4, 0).indices(batch.step).tolist()
            gone = torch.tensor([images.name(i) in bad for i in indices])
            assert [Path(error.name) for error in batch.errors] == [
                tmp_path / images.name(i) for i in indices if images.name(i) in bad
            ]
            assert all("image format" in error.reason for error in batch.errors)
            assert (batch.labels[gone] == -1).all() and torch.equal(batch.labels[~gone], whole.labels[~gone])
            assert not batch.images[gone].any() and torch.equal(batch.images[~gone], whole.images[~gone])
    for options in ways:
        with pytest.raises(ImageError, match=r"001\.png|002\.png"):
            list(loader(**options).batches(0, 6))


@forks
@pytest.mark.parametrize("options", [{"cache": "memory"}, {"cache": "none"}, {"cache": "none", "workers": 2}])
def test_crops_grow_during_training(pictures: ImageSet, options) -> None:
    growth = Growth(start=16, steps=20, begin=0.2, end=0.7)
    growing = InceptionCrop(size=48, growth=growth)
    loader = TrainLoader(pictures, growing, batch_size=4, seed=5, **options)
    sides = {batch.step: batch.images.shape[-1] for batch in loader.batches(0, 20)}
    assert list(sides.values()) == sorted(sides.values()) and set(sides.values()) == {16, 24, 32, 40, 48}
    assert sides[4] == 16 and sides[6] == 24 and sides[9] == 32 and sides[13] == 48
    for step in (4, 8, 19):  # the same crops, at another scale
        fixed = TrainLoader(pictures, InceptionCrop(size=sides[step]), batch_size=4, seed=5, **options)
        assert bytes_of(fixed.batches(step, step + 1)) == bytes_of(loader.batches(step, step + 1))


def test_large_crops_grow_in_steps_that_suit_the_network() -> None:
    crop = InceptionCrop(size=224, growth=Growth(start=128, steps=100))
    assert [crop.at(step).side for step in (0, 39, 50, 60, 70, 80, 99)] == [128, 128, 160, 192, 192, 224, 224]
    assert SquareCrop(resize=20, crop=16).at(7).side == 16
    with pytest.raises(ConfigError, match="from 100 to 224 px: both must be multiples of 32"):
        InceptionCrop(size=224, growth=Growth(start=100, steps=10))


# --- Work in the background


def eventually(condition) -> bool:
    """Whether it becomes true within a few seconds."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@forks
def test_closing_ends_the_workers_and_signals_do_not(pictures: ImageSet) -> None:
    loader = TrainLoader(pictures, SquareCrop(resize=16, crop=16), batch_size=4, seed=0, cache="none", workers=2)
    batches = loader.batches(0, 1000)
    first = next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
        ):  # as a terminal and schedulers send them to all processes of a job
            os.kill(worker.pid, number)
    following = [next(batches).step for _ in range(12)]  # more than what was made ahead
    assert [first.step, *following] == list(range(13)) and all(worker.is_alive() for worker in workers)
    batches.close()
    assert not multiprocessing.active_children()


@forks
def test_signals_do_not_end_workers_that_have_only_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = background._serve

    def slow_to_start(*args: Any) -> None:
        time.sleep(0.2)
        serve(*args)

    def items() -> Iterator[int]:
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
        yield from range(4)

    monkeypatch.setattr(background, "_serve", slow_to_start)
    assert list(in_processes(lambda item, _: item + 1, items(), processes=2)) == [1, 2, 3, 4]


def test_loaders_can_be_sent_to_processes_that_are_not_forked(pictures: ImageSet) -> None:
    loader = TrainLoader(pictures, InceptionCrop(size=16), batch_size=8, seed=5, cache="none", rank=1, ranks=2)
    copy = pickle.loads(pickle.dumps(loader))
    assert bytes_of(copy.batches(3, 5)) == bytes_of(loader.batches(3, 5))


class Slow(Counting):
    """Takes its time for each image."""

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> np.ndarray:
        time.sleep(0.1)
        return super().read(row, channels, spec)


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_closing_does_not_wait_for_batches_under_way(workers: int) -> None:
    loader = TrainLoader(Slow(20).as_set(), CROP, batch_size=20, seed=0, cache="none", workers=workers)
    threads = threading.active_count()

    def consume() -> None:
        nonlocal started
        with contextlib.closing(loader.batches(0, 100)) as batches:
            assert next(batches).step == 0
            started = time.monotonic()
            raise ZeroDivisionError

    started = 0.0
    with pytest.raises(ZeroDivisionError):
        consume()
    assert time.monotonic() - started < 1.5, "a batch takes 2 s"
    assert threading.active_count() == threads and not multiprocessing.active_children()


@forks
def test_a_killed_worker_is_reported_and_the_others_end(pictures: ImageSet) -> None:
    loader = TrainLoader(pictures, CROP, batch_size=4, seed=0, cache="none", workers=3)
    batches = loader.batches(0, 1000)
    next(batches)
    victim = multiprocessing.active_children()[1]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"was killed by SIGKILL\. If memory ran out, lower --workers"):
        list(batches)
    assert not multiprocessing.active_children()


def broken(item: int, _stopped) -> int:
    return 12 // item


@forks
def test_a_mistake_in_a_worker_is_shown_with_its_place() -> None:
    results = in_processes(broken, [4, 3, 0, 1], processes=2)
    assert [next(results), next(results)] == [3, 4]
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process.*in broken.*ZeroDivisionError"):
        next(results)
    assert not multiprocessing.active_children()


def test_threads_work_ahead_and_no_further() -> None:
    done = []
    results = in_threads(lambda item, _: done.append(item) or item, range(100), threads=2, ahead=3)
    assert next(results) == 0 and eventually(lambda: sorted(done) == [0, 1, 2, 3])
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5] and eventually(lambda: len(done) == 9)
    results.close()
    assert len(done) == 9
    with pytest.raises(ZeroDivisionError):
        list(in_threads(broken, [1, 0, 2], threads=1, ahead=1))


def noted(item: int, _stopped) -> int:
    with contextlib.suppress(ValueError):
        DONE.release()
    return item


DONE = multiprocessing.Semaphore(0)


@forks
@pytest.mark.parametrize("ahead", [1, 2, 16])
def test_processes_work_ahead_and_no_further(ahead: int) -> None:
    while DONE.acquire(block=False):
        pass
    results = in_processes(noted, range(1000), processes=2, ahead=ahead)
    for taken in range(1, 4):
        assert next(results) == taken - 1
        for _ in range(2 * ahead if taken == 1 else 1):
            assert DONE.acquire(timeout=20)
    assert not DONE.acquire(timeout=0.2), "nothing more is begun until a result is taken"
    assert list(results) == list(range(3, 1000))


AFTER_THREADS = """
import multiprocessing
import torch
from bigtransfer.feed.background import in_processes
def work(item, stopped):
    return torch.full((1 << 22,), item).clone()
multiprocessing.set_start_method("fork")
torch.set_num_threads(4)
torch.ones(1 << 22).add_(1)
print(*[int(result[0]) for result in in_processes(work, range(4), processes=2)])
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_workers_do_not_wait_for_threads_that_the_main_process_had() -> None:
    """OpenMP's are not there after a fork, and an operation that wants them never ends."""
    done = subprocess.run(
        [sys.executable, "-c", AFTER_THREADS], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["0", "1", "2", "3"]


UNCLOSED = """
import multiprocessing, os, sys, time
from bigtransfer.feed.background import in_processes
def work(item, stopped):
    return os.getpid()
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    results = in_processes(work, range(10**6), processes=2)
    print(*{next(results) for _ in range(4)}, flush=True)
    if sys.argv[2] == "wait":
        time.sleep(60)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks at processes through /proc")
@pytest.mark.parametrize(("method", "end"), [("fork", "exit"), ("fork", "wait"), ("spawn", "wait")])
def test_workers_end_with_the_main_process(tmp_path: Path, method: str, end: str) -> None:
    """With one that ends without having closed the generator, and with one that is killed; also where workers are not forked."""
    script = tmp_path / "unclosed.py"
    script.write_text(UNCLOSED)
    with subprocess.Popen([sys.executable, script, method, end], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        if end == "wait":
            process.kill()
        assert process.wait(timeout=20) == (-signal.SIGKILL if end == "wait" else 0)
    assert eventually(lambda: all(map(gone, pids)))


def test_feature_batches_follow_the_same_order() -> None:
    features, labels = torch.arange(10.0)[:, None].repeat(1, 3), torch.arange(10) % 2
    loader = FeatureLoader(features, labels, batch_size=4, seed=5)
    for batch in loader.batches(2, 5):
        indices = FullShuffle(10, 4, 5).indices(batch.step)
        assert batch.images[:, 0].tolist() == indices.tolist() and batch.labels.tolist() == (indices % 2).tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_evaluation_sees_everything_once_in_order(pictures: ImageSet, batch_size: int) -> None:
    spec = InputSpec(size=16)
    batches = list(eval_batches(pictures, spec, batch_size, workers=2))
    assert [len(batch.labels) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(11))
    assert torch.cat([batch.labels for batch in batches]).tolist() == pictures.labels.tolist()
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).numpy()
    assert all((images[i] == image_ops.prepare(pictures.read(i), spec)).all() for i in range(11))


@pytest.mark.parametrize("decoder", ["fast", "exact"])
def test_photographs_are_the_same_pixels_in_training_and_evaluation(tmp_path: Path, decoder) -> None:
    """And of the fast decoder others than of the exact one, so that it is known to have been at work."""
    for i in range(3):
        picture = np.random.default_rng(i).integers(0, 256, (90, 60 + 41 * i, 3), dtype=np.uint8)
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "ab"[i % 2] / f"{i}.jpg")
    photographs = open_dataset(tmp_path).train
    spec = InputSpec(size=10, decoder=decoder)
    (batch,) = eval_batches(photographs, spec, 3)
    expected = batch.images
    for i in range(3):
        seen = image_ops.prepared(tmp_path / photographs.name(i), "x", 3, spec)
        assert (expected[i].permute(1, 2, 0).numpy() == seen).all()
        other = dataclasses.replace(spec, decoder="exact" if decoder == "fast" else "fast")
        assert (photographs.read(i, other) != seen).any()
    crop = SquareCrop(resize=12, crop=10, random_crop=False, flip=False, decoder=decoder)
    for cache, workers in (("memory", 0), ("none", 0), ("none", 2)):
        loader = TrainLoader(photographs, crop, batch_size=3, seed=0, cache=cache, workers=workers)
        (batch,) = loader.batches(0, 1)
        order = FullShuffle(3, 3, 0).indices(0)
        assert (batch.images == expected[torch.from_numpy(order)]).all(), (cache, workers)


def test_evaluation_leaves_out_bad_images_only_if_asked(tmp_path: Path) -> None:
    images = open_dataset(class_folders(tmp_path, {"a": 3, "b": 3})).train
    for name in ("a/001.png", "b/000.png", "b/001.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ImageError, match=r"001\.png"):
        list(eval_batches(images, InputSpec(size=16), 2))
    batches = list(eval_batches(images, InputSpec(size=16), 2, skip_bad=True))
    assert [batch.indices.tolist() for batch in batches] == [[0], [2], [5]]
    assert [batch.labels.tolist() for batch in batches] == [[0], [0], [1]]


def test_images_without_labels_can_be_evaluated_on(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2})
    images = open_dataset(tmp_path / "a").train
    (batch,) = eval_batches(images, InputSpec(size=8), 4)
    assert images.labels is None and batch.labels.tolist() == [-1, -1]
