"""Public data sets by name, on small copies of their layouts; no network."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets
from torchvision.datasets import utils

from bigtransfer.data import named, open_dataset
from bigtransfer.errors import DataError

from .data_makers import pattern, write


def complete(cache: Path, name: str) -> Path:
    """A folder that counts as downloaded."""
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / ".complete").touch()
    return folder


def lines(path: Path, *texts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts))


def agree(cache: Path, name: str, theirs: dict[str, Any]) -> None:
    """Our reading of a small copy of a set is torchvision's: the same images, labels and classes, in the same order."""
    data = open_dataset(name, cache=cache)
    for split, dataset in theirs.items():
        ours = {"train": data.train, "val": data.val, "test": data.test}[split]
        assert ours is not None and len(ours) == len(dataset) > 0
        if hasattr(dataset, "classes"):
            assert ours.class_names == tuple(dataset.classes)
        for i in range(len(ours)):
            picture, label = dataset[i]
            np.testing.assert_array_equal(ours.read(i), np.asarray(picture.convert("RGB")))
            assert ours.labels is not None and ours.labels[i] == label


# --- CIFAR, from its authors' binary form


def cifar_archive(labels_of: dict[str, list[list[int]]], texts: dict[str, str]) -> bytes:
    """A .tar.gz with files of records; pixels are a picture for each running number."""
    content, number = {}, 0
    for name, rows in labels_of.items():
        records = b""
        for labels in rows:
            records += bytes(labels) + pattern(32, 32, seed=number).transpose(2, 0, 1).tobytes()
            number += 1
        content[name] = records
    content |= {name: text.encode() for name, text in texts.items()}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(f"cifar/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def served(monkeypatch):
    """Makes torchvision's downloader find one archive, with its checksum still checked."""

    def serve(archive: bytes) -> list[str]:
        asked = []

        def download_url(url: str, root: Path, filename: str, md5: str) -> None:
            asked.append(url)
            if hashlib.md5(archive).hexdigest() != md5:
                raise RuntimeError("File not found or corrupted.")
            (Path(root) / filename).write_bytes(archive)

        monkeypatch.setattr(utils, "download_url", download_url)
        return asked

    return serve


def test_cifar10(tmp_path: Path, served, monkeypatch) -> None:
    labels = {f"data_batch_{i}.bin": [[i - 1], [2]] for i in range(1, 6)} | {
        "test_batch.bin": [[0], [1], [2], [3], [4]]
    }
    archive = cifar_archive(labels, {"batches.meta.txt": "plane\ncar\nbird\ncat\ndeer\n\n"})
    asked = served(archive)
    with pytest.raises(DataError, match=r"cifar10 is not in .* and cannot be downloaded .*corrupted"):
        open_dataset("cifar10", cache=tmp_path)  # not the authors' file
    with monkeypatch.context() as patch:
        patch.setattr(
            hashlib, "md5", lambda data: type("", (), {"hexdigest": lambda self: "c32a1d4ab5d03f1284b67883e8d87530"})()
        )
        data = open_dataset("cifar10", cache=tmp_path)
    assert data.val is None and data.test is not None
    assert data.train.class_names == ("plane", "car", "bird", "cat", "deer")
    assert data.train.labels.tolist() == [0, 2, 1, 2, 2, 2, 3, 2, 4, 2] and data.test.labels.tolist() == [0, 1, 2, 3, 4]
    for images, i, seed in ((data.train, 7, 7), (data.test, 3, 13)):
        np.testing.assert_array_equal(images.read(i), pattern(32, 32, seed=seed))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(images)).read(i), pattern(32, 32, seed=seed))
    assert len(pickle.dumps(data.train)) < 5_000  # the pixels stay on disk
    assert data.test.name(3) == "test/00003" and data.test.size(3) == (32, 32)
    assert open_dataset("cifar10", cache=tmp_path, channels=1).train.read(0).shape == (32, 32, 1)
    assert len(asked) == 2 and not (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").exists()


def test_cifar100_uses_fine_labels(tmp_path: Path, served, monkeypatch) -> None:
    archive = cifar_archive(
        {"train.bin": [[7, 1], [9, 0]], "test.bin": [[7, 0]]}, {"fine_label_names.txt": "apple\nbear\n"}
    )
    served(archive)
    monkeypatch.setattr(
        hashlib, "md5", lambda data: type("", (), {"hexdigest": lambda self: "03b5dce01913d631647c71ecec9e9cb8"})()
    )
    data = open_dataset("cifar100", cache=tmp_path)
    assert data.train.labels.tolist() == [1, 0] and data.train.class_names == ("apple", "bear")
    np.testing.assert_array_equal(data.train.read(1), pattern(32, 32, seed=1))


# --- Other sets of pixels


def test_stl10_is_stored_column_by_column(tmp_path: Path, monkeypatch) -> None:
    raw = tmp_path / "stl10" / "stl10_binary"
    lines(raw / "class_names.txt", "airplane", "bird")
    for split, seeds in (("train", (0, 1, 2)), ("test", (3, 4))):
        pictures = np.stack([pattern(96, 96, seed) for seed in seeds])
        pictures.transpose(0, 3, 2, 1).tofile(raw / f"{split}_X.bin")
        (np.arange(len(seeds)) % 2 + 1).astype(np.uint8).tofile(raw / f"{split}_y.bin")
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *arguments: True)
    data = open_dataset("stl10", cache=tmp_path)
    assert data.test is not None and data.train.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(data.test.read(1), pattern(96, 96, seed=4))
    agree(tmp_path, "stl10", {split: datasets.STL10(tmp_path / "stl10", split) for split in ("train", "test")})


def test_svhn(tmp_path: Path, monkeypatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    folder = tmp_path / "svhn"
    folder.mkdir()
    for split, seeds, labels in (("train", (0, 1), [10, 3]), ("test", (2, 3), [9, 10])):
        pictures = np.stack([pattern(32, 32, seed) for seed in seeds], axis=3)
        scipy_io.savemat(folder / f"{split}_32x32.mat", {"X": pictures, "y": np.array(labels, np.uint8)[:, None]})
    for module in ("svhn", "utils"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *arguments: True)
    data = open_dataset("svhn", cache=tmp_path)
    assert data.test is not None
    assert (
        data.train.class_names == tuple("0123456789")
        and data.train.labels.tolist() == [0, 3]
        and data.test.labels.tolist() == [9, 0]
    )
    np.testing.assert_array_equal(data.train.read(1), pattern(32, 32, seed=1))
    agree(tmp_path, "svhn", {split: datasets.SVHN(tmp_path / "svhn", split) for split in ("train", "test")})


# --- Sets of files


def test_flowers102(tmp_path: Path, monkeypatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    base = complete(tmp_path, "flowers102") / "flowers-102"
    for i in range(1, 7):
        write(base / "jpg" / f"image_{i:05d}.jpg", seed=i)
    scipy_io.savemat(base / "imagelabels.mat", {"labels": [102, 1, 2, 2, 3, 3]})
    scipy_io.savemat(base / "setid.mat", {"trnid": [2, 1], "valid": [3, 5], "tstid": [4, 6]})
    data = open_dataset("flowers102", cache=tmp_path)
    assert data.val is not None and data.test is not None and len(data.train.class_names) == 102
    assert data.train.class_names[0] == "pink primrose" and data.train.labels.tolist() == [0, 101]
    assert data.test.labels.tolist() == [1, 2] and data.test.name(0) == "flowers-102/jpg/image_00004.jpg"
    assert data.val.read(0).shape == (12, 16, 3)
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *arguments: True)
    theirs = {split: datasets.Flowers102(tmp_path / "flowers102", split) for split in ("train", "val", "test")}
    agree(tmp_path, "flowers102", theirs)


def test_pets_number_their_classes(tmp_path: Path) -> None:
    base = complete(tmp_path, "pets") / "oxford-iiit-pet"
    lines(
        base / "annotations" / "trainval.txt",
        "american_bulldog_100 2 2 1",
        "Abyssinian_1 1 1 1",
        "american_bulldog_2 2 2 1",
    )
    lines(base / "annotations" / "test.txt", "american_bulldog_7 2 2 1", "Abyssinian_8 1 1 1")
    for seed, image in enumerate(
        ("american_bulldog_100", "Abyssinian_1", "american_bulldog_2", "american_bulldog_7", "Abyssinian_8")
    ):
        write(base / "images" / f"{image}.jpg", seed)
    root = tmp_path / "pets"
    agree(
        tmp_path,
        "pets",
        {"train": datasets.OxfordIIITPet(root, "trainval"), "test": datasets.OxfordIIITPet(root, "test")},
    )


def test_food101(tmp_path: Path) -> None:
    base = complete(tmp_path, "food101") / "food-101"
    (base / "meta").mkdir(parents=True)
    (base / "meta" / "train.json").write_text('{"waffles": ["waffles/1"], "apple_pie": ["apple_pie/2", "apple_pie/3"]}')
    (base / "meta" / "test.json").write_text('{"waffles": ["waffles/4"], "apple_pie": ["apple_pie/5"]}')
    for seed, image in enumerate(("waffles/1", "apple_pie/2", "apple_pie/3", "waffles/4", "apple_pie/5")):
        write(base / "images" / f"{image}.jpg", seed)
    agree(tmp_path, "food101", {split: datasets.Food101(tmp_path / "food101", split) for split in ("train", "test")})


def test_dtd(tmp_path: Path) -> None:
    base = complete(tmp_path, "dtd") / "dtd" / "dtd"
    for number, split in enumerate(("train", "val", "test")):
        lines(base / "labels" / f"{split}1.txt", f"woven/w{number}.jpg", f"banded/b{number}.jpg")
        write(base / "images" / "woven" / f"w{number}.jpg", number)
        write(base / "images" / "banded" / f"b{number}.jpg", 3 + number)
    agree(tmp_path, "dtd", {split: datasets.DTD(tmp_path / "dtd", split) for split in ("train", "val", "test")})


def test_aircraft(tmp_path: Path) -> None:
    base = complete(tmp_path, "aircraft") / "fgvc-aircraft-2013b" / "data"
    lines(base / "variants.txt", "Cessna 172", "707-320")
    for number, split in enumerate(("train", "val", "test")):
        lines(base / f"images_variant_{split}.txt", f"100{number} Cessna 172", f"200{number} 707-320")
        write(base / "images" / f"100{number}.jpg", number)
        write(base / "images" / f"200{number}.jpg", 3 + number)
    theirs = {split: datasets.FGVCAircraft(tmp_path / "aircraft", split) for split in ("train", "val", "test")}
    agree(tmp_path, "aircraft", theirs)


def test_eurosat(tmp_path: Path) -> None:
    base = complete(tmp_path, "eurosat") / "eurosat" / "2750"
    for seed, name in enumerate(("River", "Forest", "SeaLake")):
        write(base / name / f"{name}_{seed}.jpg", seed)
    agree(tmp_path, "eurosat", {"train": datasets.EuroSAT(tmp_path / "eurosat")})


def test_caltech101_leaves_out_the_background(tmp_path: Path) -> None:
    base = complete(tmp_path, "caltech101") / "caltech101" / "101_ObjectCategories"
    for name in ("wrench", "BACKGROUND_Google", "ant"):
        write(base / name / "image_0001.jpg")
    data = open_dataset("caltech101", cache=tmp_path)
    assert data.test is None and data.train.class_names == ("ant", "wrench") and len(data.train) == 2


# --- Failures


def test_every_name_has_a_torchvision_class() -> None:
    assert {"cifar10", "cifar100", "flowers102", "pets", "food101", "svhn", "dtd", "stl10", "caltech101"} <= set(
        named.NAMES
    )
    for name in (
        "Flowers102",
        "OxfordIIITPet",
        "Food101",
        "SVHN",
        "DTD",
        "STL10",
        "FGVCAircraft",
        "Caltech101",
        "EuroSAT",
        "Imagenette",
    ):
        assert hasattr(datasets, name)


def test_without_network(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments, **named):
        raise OSError("Name or service not known")

    monkeypatch.setattr(datasets, "OxfordIIITPet", fail)
    with pytest.raises(
        DataError,
        match=r"pets is not in .*pets and cannot be downloaded .*Name or service not known.* Copy that folder",
    ):
        open_dataset("pets", cache=tmp_path)
    assert not (tmp_path / "pets" / ".complete").exists()


@pytest.mark.parametrize("name", named.NAMES)
def test_a_folder_that_lost_its_files(tmp_path: Path, name: str) -> None:
    complete(tmp_path, name)
    with pytest.raises(DataError, match=f"does not hold a whole {name} .*Delete the folder"):
        open_dataset(name, cache=tmp_path)


def test_offline(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BIT_OFFLINE", "1")
    with pytest.raises(DataError, match="unset BIT_OFFLINE"):
        open_dataset("pets", cache=tmp_path)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    from bigtransfer.data import cache_folder

    monkeypatch.setenv("BIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "data"
    complete(tmp_path / "data", "eurosat")
    with pytest.raises(DataError, match=str(tmp_path)):
        open_dataset("eurosat")
