"""Decoded images kept in memory, in files that processes share, and on the device: always the pixels that decoding gives."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
import torch

from bigtransfer import outputs
from bigtransfer.catalog import InputSpec
from bigtransfer.data import ImageSet, open_dataset
from bigtransfer.errors import ConfigError, DataError, ImageError
from bigtransfer.feed import cache
from bigtransfer.feed.augment import Augmentation, Growth, InceptionCrop, SquareCrop, draws
from bigtransfer.feed.cache import DecodedImages, fits, in_files, in_memory
from bigtransfer.feed.device import DeviceImages
from bigtransfer.feed.loader import TrainLoader
from bigtransfer.machine import available_memory
from tests.data_makers import write

CROP = InceptionCrop(size=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several sizes."""
    for i in range(9):
        write(tmp_path / "set" / "ab"[i % 2] / f"{i:03d}.png", seed=i, height=10 + 3 * i, width=40 - 2 * i)
    return tmp_path / "set"


@pytest.fixture
def images(folder: Path) -> ImageSet:
    return open_dataset(folder).train


def same_as_decoded(found: DecodedImages, images: ImageSet, fixed: InputSpec | None = None) -> bool:
    return len(found) == len(images) and all(
        np.array_equal(found[i], images.read(i, fixed)) for i in range(len(images)) if i not in found.errors
    )


class Reads:
    """A store that notes in a file, which processes share, how often it is read."""

    def __init__(self, inner, log: Path, seconds: float = 0.0) -> None:
        self.inner, self.log, self.seconds = inner, log, seconds

    def read(self, row: int, channels: int, spec: InputSpec | None = None) -> np.ndarray:
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{row}\n")
        return self.inner.read(row, channels, spec)

    def __getattr__(self, name: str):
        return getattr(self.__dict__["inner"], name)


def counted(images: ImageSet, log: Path, seconds: float = 0.0) -> ImageSet:
    return dataclasses.replace(images, store=Reads(images.store, log, seconds))  # pyright: ignore[reportArgumentType]


# --- In memory


@pytest.mark.parametrize("channels", [1, 3])
def test_the_buffer_grows_as_images_come(
    images: ImageSet, channels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache, "_FIRST", 1)
    images = dataclasses.replace(images, channels=channels)
    found = in_memory(counted(images, tmp_path / "log"), None, skip_bad=False, progress=False)
    assert same_as_decoded(found, images)
    assert found.pixels.nbytes == sum(images.read(i).nbytes for i in range(len(images)))
    assert sorted((tmp_path / "log").read_text().split()) == [str(i) for i in range(9)], "each is read once"


@pytest.mark.parametrize("skip_bad", [False, True])
def test_processes_decode_many_images(
    folder: Path, skip_bad: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache, "_WORTH_PROCESSES", 9)
    monkeypatch.setattr(cache, "_PIECE", 2)
    monkeypatch.setattr(cache, "usable_cores", lambda: 3)
    images = open_dataset(folder).train
    (folder / "b" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\nnot one")
    if not skip_bad:
        with pytest.raises(ImageError, match=r"003\.png"):
            in_memory(images, None, skip_bad=False, progress=False)
        (folder / "b" / "003.png").unlink()
        images = open_dataset(folder).train
        monkeypatch.setattr(cache, "_WORTH_PROCESSES", 8)
    monkeypatch.setattr(cache, "in_threads", None)  # whatever wants it would fail
    log = tmp_path / "log"
    found = in_memory(counted(images, log), None, skip_bad=skip_bad, progress=False)
    assert same_as_decoded(found, images)
    assert sorted(map(int, log.read_text().split())) == sorted(images.rows.tolist()), "each is read once"
    wrong = [images.name(i) for i in found.errors]
    assert wrong == ([name for name in map(images.name, range(len(images))) if "003" in name] if skip_bad else [])
    assert all("003.png" in error.name and error.reason for error in found.errors.values())


def test_what_fits(images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fixed = SquareCrop(resize=20, crop=16).fixed
    needed = 9 * 20 * 20 * 3
    monkeypatch.setattr(cache, "available_memory", lambda: needed * 2.6)
    assert fits(images, fixed, skip_bad=False)
    assert not fits(images, fixed, copies=2, skip_bad=False)
    assert fits(images, fixed, copies=2, folder=tmp_path / "new" / "place", skip_bad=False), "one for all"
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert not fits(images, fixed, folder=tmp_path / "new", skip_bad=False)
    in_files(tmp_path / "new", images, fixed, skip_bad=False, progress=False)
    assert fits(images, fixed, folder=tmp_path / "new", skip_bad=False), "it is there already"
    monkeypatch.setattr(cache, "available_memory", lambda: needed * 2.4)
    assert not fits(images, fixed, skip_bad=False) and not fits(images, fixed, folder=tmp_path, skip_bad=False)


# --- In files


def test_files_are_read_once_and_found_again(images: ImageSet, tmp_path: Path) -> None:
    log, place = tmp_path / "log", tmp_path / "cache"
    found = in_files(place, counted(images, log), None, skip_bad=False, progress=False)
    assert same_as_decoded(found, images) and not found.pixels.flags.writeable
    looked_at = len(log.read_text().split())
    assert looked_at == 9 + 16  # 16 looks tell whether the set has changed
    again = in_files(place, counted(images, log), None, skip_bad=False, progress=False)
    assert same_as_decoded(again, images) and len(log.read_text().split()) == looked_at + 16
    assert len(list(place.glob("decoded-*"))) == 2


def test_another_set_has_files_of_its_own(images: ImageSet, folder: Path, tmp_path: Path) -> None:
    def kept(images: ImageSet, fixed: InputSpec | None = None) -> bool:
        found = in_files(tmp_path / "cache", images, fixed, skip_bad=False, progress=False)
        return same_as_decoded(found, images, fixed)

    assert kept(images)
    for number, (other, fixed) in enumerate(
        [
            (images.subset(np.arange(8)), None),
            (images.subset(np.arange(9)[::-1]), None),
            (dataclasses.replace(images, channels=1), None),
            (images, SquareCrop(resize=20, crop=16).fixed),
        ]
    ):
        assert kept(other, fixed)
        assert len(list((tmp_path / "cache").glob("decoded-*.npz"))) == number + 2
    write(folder / "a" / "004.png", seed=99)  # another picture of that name
    assert kept(images)


@pytest.mark.parametrize("damage", ["no index", "torn index", "empty index", "short pixels", "no pixels"])
def test_half_written_files_are_written_again(images: ImageSet, tmp_path: Path, damage: str) -> None:
    place = tmp_path / "cache"
    in_files(place, images, None, skip_bad=False, progress=False)
    (index,), (pixels,) = place.glob("*.npz"), place.glob("*.pixels")
    if damage == "no index":
        index.unlink()
        pixels.write_bytes(b"x")
    elif damage == "torn index":
        index.write_bytes(index.read_bytes()[:100])
    elif damage == "empty index":
        index.write_bytes(b"")
    elif damage == "short pixels":
        os.truncate(pixels, 1000)
    else:
        pixels.unlink()
    (place / f".decoded-1234.pixels.{outputs._machine()}.01234567.tmp").mkdir()  # left by a process that was killed
    assert same_as_decoded(in_files(place, images, None, skip_bad=False, progress=False), images)
    assert not list(place.glob(".*.tmp"))


def test_bad_images_are_known_again(images: ImageSet, folder: Path, tmp_path: Path) -> None:
    (folder / "b" / "003.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"003\.png"):
        in_files(tmp_path / "cache", images, None, skip_bad=False, progress=False)
    assert not list((tmp_path / "cache").glob("decoded-*")), "nothing is left of the attempt"
    for _ in range(2):
        found = in_files(tmp_path / "cache", images, None, skip_bad=True, progress=False)
        (number,) = found.errors
        assert images.name(number) == "b/003.png" and "empty" in found.errors[number].reason
        assert same_as_decoded(found, images)
    with pytest.raises(ImageError, match=r"003\.png"):
        in_files(tmp_path / "cache", images, None, skip_bad=False, progress=False)


def test_a_set_without_one_good_image(images: ImageSet, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"")
    for way in ({}, {"cache_folder": tmp_path / "cache"}, {"cache": "device", "device": torch.device("cpu")}):
        loader = TrainLoader(images, CROP, batch_size=4, seed=0, skip_bad=True, **{"cache": "memory", **way})
        (batch,) = loader.batches(0, 1)
        assert len(batch.errors) == 4 and (batch.labels == -1).all() and not batch.images.any()
        assert batch.images.shape == (4, 3, 16, 16)


def test_no_room(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file.*--cache none"):
        in_files(tmp_path / "file", images, None, skip_bad=False, progress=False)


def _fill(images: ImageSet, place: Path) -> None:
    assert same_as_decoded(in_files(place, images, None, skip_bad=False, progress=False), images)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_processes_share_one_and_go_on_if_the_first_dies(images: ImageSet, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    place, log = tmp_path / "cache", tmp_path / "log"
    first = context.Process(target=_fill, args=(counted(images, tmp_path / "first", seconds=0.05), place))
    first.start()
    while first.is_alive() and not list(place.glob(".decoded-*.tmp")):
        time.sleep(0.01)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)  # in the middle of its work, however slow this machine is
    others = [context.Process(target=_fill, args=(counted(images, log, seconds=0.05), place)) for _ in range(3)]
    for process in others:
        process.start()
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, *others):
        process.join()
    assert [process.exitcode for process in (first, *others)] == [-signal.SIGKILL, 0, 0, 0]
    # Each looked at 16 images, one decoded all 9, and each compared them.
    assert len(log.read_text().split()) == 3 * 16 + 9 + 3 * 9
    assert len(list(place.glob("decoded-*"))) == 2 and not list(place.glob(".*.tmp"))


# --- On the device


def noise(sizes: np.ndarray, channels: int) -> DecodedImages:
    """The hardest pixels there are for a filter, of those sizes."""
    pixels = np.random.default_rng(0).integers(0, 256, sizes.prod(axis=1).sum() * channels, dtype=np.uint8)
    return DecodedImages(pixels, sizes.astype(np.int64), channels, {})


def random_sizes(low: int, high: int, count: int = 150) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, (count, 2))


def one_size(height: int, width: int, count: int = 60) -> np.ndarray:
    return np.full((count, 2), (height, width))


exact = int(PIL.__version__.split(".")[0]) >= 13


@pytest.mark.parametrize(
    ("sizes", "augmentation"),
    [
        (one_size(64, 64), InceptionCrop(size=48, min_area=0.25)),
        (one_size(41, 67), InceptionCrop(size=32, flip=False)),
        (one_size(9, 13), InceptionCrop(size=47)),
        (random_sizes(1, 12), InceptionCrop(size=16)),
        (random_sizes(20, 90), InceptionCrop(size=37)),
        (random_sizes(20, 90), InceptionCrop(size=37, style="tensorflow")),
        (random_sizes(100, 300, 20), InceptionCrop(size=21)),
        (one_size(40, 40), SquareCrop(resize=40, crop=32, antialias=False)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_device_gives_what_pillow_gives(sizes: np.ndarray, augmentation: Augmentation, channels: int) -> None:
    decoded = noise(sizes, channels)
    indices = np.random.default_rng(2).permutation(len(sizes))
    crops = augmentation.crops(sizes[indices], draws(augmentation, 0, 0, len(indices)))
    expected = decoded.crop(indices, crops, augmentation)
    found = DeviceImages(decoded, torch.device("cpu")).crop(indices, crops, augmentation)
    assert found.shape == expected.shape and found.dtype == torch.uint8 and found.stride() == expected.stride()
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= (0 if exact else 2) and (difference == 0).float().mean() > 0.8


def test_large_windows_are_done_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = noise(random_sizes(1, 60), 3)
    indices = np.arange(len(decoded))
    crops = CROP.crops(decoded.sizes, draws(CROP, 0, 0, len(indices)))
    images = DeviceImages(decoded, torch.device("cpu"))
    whole = images.crop(indices, crops, CROP)
    monkeypatch.setattr("bigtransfer.feed.device._PIXELS_AT_ONCE", 4000)
    groups = [len(group) for group in images._groups(indices, crops.boxes)]
    assert len(groups) > 10 and sum(groups) == len(indices) and groups[0] > groups[-1]
    assert torch.equal(images.crop(indices, crops, CROP), whole)


@pytest.mark.skipif(not exact, reason="older Pillow resizes some images in another order")
@pytest.mark.parametrize(
    "augmentation", [CROP, InceptionCrop(size=48, growth=Growth(start=16, steps=6, begin=0, end=1))]
)
def test_batches_from_the_device_are_the_same(images: ImageSet, folder: Path, augmentation: Augmentation) -> None:
    (folder / "b" / "003.png").write_bytes(b"")

    def batches(**options) -> list:
        loader = TrainLoader(images, augmentation, batch_size=8, seed=0, skip_bad=True, **options)
        return list(loader.batches(0, 6))

    for one, other in zip(batches(cache="memory"), batches(cache="device", device=torch.device("cpu")), strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert [str(error) for error in one.errors] == [str(error) for error in other.errors]
    third = batches(cache="device", device=torch.device("cpu"), rank=1, ranks=3)
    assert torch.equal(third[5].images, other.images[2:5])


def test_devices_without_float64(images: ImageSet) -> None:
    with pytest.raises(ConfigError, match="Apple's GPUs lack"):
        TrainLoader(images, CROP, batch_size=4, seed=0, cache="device", device=torch.device("mps"))


def test_too_many_for_the_device(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("bigtransfer.feed.device.torch.zeros", full)
    with pytest.raises(ConfigError, match=r"--cache device: the decoded images, 0\.0 GB, do not fit.*--cache memory"):
        TrainLoader(images, CROP, batch_size=4, seed=0, cache="device", device=torch.device("cpu"))


# --- Memory


def test_available_memory_is_that_of_the_machine_or_the_container(tmp_path: Path) -> None:
    assert 2**20 < available_memory() < 2**45
    machine, groups = tmp_path / "meminfo", tmp_path / "groups"
    machine.write_text("MemTotal: 99 kB\nMemAvailable:    2000 kB\nCached: 5 kB\n")
    assert available_memory(groups, machine) == 2_048_000
    groups.mkdir()
    (groups / "memory.max").write_text("max\n")
    (groups / "memory.current").write_text("1000\n")
    (groups / "memory.stat").write_text("anon 1\ninactive_file 300\n")
    assert available_memory(groups, machine) == 2_048_000
    (groups / "memory.max").write_text("1500\n")
    assert available_memory(groups, machine) == 800
    (groups / "memory.max").write_text("500\n")
    (groups / "memory.stat").write_text("anon 1\n")
    assert available_memory(groups, machine) == 0


def test_available_memory_where_the_system_does_not_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = available_memory(tmp_path, tmp_path / "none")
    assert half == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    monkeypatch.delattr(os, "sysconf")
    assert available_memory(tmp_path, tmp_path / "none") == 4 << 30
