"""Public data sets by name, on small copies of their layouts; no network."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import io
import pickle
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from bigtransfer import fetch
from bigtransfer.data import named, open_dataset
from bigtransfer.errors import DataError

from .data_makers import pattern, write
from .file_server import Server, running


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


def tar_gz(folder: Path) -> bytes:
    """What lies in a folder, packed."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return file.getvalue()


@pytest.fixture
def served(monkeypatch) -> Iterator[Callable[[str, dict[str, bytes]], Server]]:
    """Makes a set come from a server on this machine: its files by the names that their addresses end in, with their MD5."""
    monkeypatch.setattr(fetch, "BACKOFF", 0.0)
    for name in ("BIT_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with running() as server:

        def serve(name: str, files: dict[str, bytes]) -> Server:
            sources = []
            for source in named._SETS[name].sources:
                file = source.path.rpartition("/")[2]
                address = f"http://127.0.0.1:{server.server_port}/{file}"
                sources.append(dataclasses.replace(source, address=address, md5=hashlib.md5(files[file]).hexdigest()))
            monkeypatch.setitem(named._SETS, name, dataclasses.replace(named._SETS[name], sources=sources))
            server.answer = lambda handler: handler.file(content=files[handler.path[1:]])
            return server

        yield serve


def test_cifar10(tmp_path: Path, served) -> None:
    labels = {f"data_batch_{i}.bin": [[i - 1], [2]] for i in range(1, 6)} | {
        "test_batch.bin": [[0], [1], [2], [3], [4]]
    }
    archive = cifar_archive(labels, {"batches.meta.txt": "plane\ncar\nbird\ncat\ndeer\n\n"})
    server = served("cifar10", {"cifar-10-binary.tar.gz": archive})
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
    assert len(server.requests) == 1
    left = {path.name for path in (tmp_path / "cifar10").rglob("*") if not path.name.endswith("lock")}
    assert left == {".complete", "classes.json", *(f"{s}{k}.npy" for s in ("train", "test") for k in ("", "-labels"))}


def test_not_the_authors_file(tmp_path: Path, served) -> None:
    """Also where it was there before."""
    archive = cifar_archive({"train.bin": [[7, 1]], "test.bin": [[7, 0]]}, {"fine_label_names.txt": "apple\nbear\n"})
    server = served("cifar100", {"cifar-100-binary.tar.gz": archive})
    right, server.answer = server.answer, lambda handler: handler.file(content=archive[::-1])
    with pytest.raises(
        DataError, match=r"cifar100 is not in .* and cannot be downloaded .*twice it arrived damaged: its md5"
    ):
        open_dataset("cifar100", cache=tmp_path)
    assert not (tmp_path / "cifar100" / ".complete").exists()
    server.answer = right
    there = tmp_path / "cifar100" / "raw" / "cifar-100-binary.tar.gz"
    there.write_bytes(archive[::-1])
    assert open_dataset("cifar100", cache=tmp_path).train.labels.tolist() == [1]


def test_a_file_that_was_brought_by_hand(tmp_path: Path, served) -> None:
    archive = cifar_archive({"train.bin": [[7, 1]], "test.bin": [[7, 0]]}, {"fine_label_names.txt": "apple\nbear\n"})
    server = served("cifar100", {"cifar-100-binary.tar.gz": archive})
    there = tmp_path / "cifar100" / "raw" / "cifar-100-binary.tar.gz"
    there.parent.mkdir(parents=True)
    there.write_bytes(archive)
    assert open_dataset("cifar100", cache=tmp_path).train.labels.tolist() == [1]
    assert not server.requests


def test_two_at_once_bring_it_once(tmp_path: Path, served) -> None:
    archive = cifar_archive({"train.bin": [[7, 1]], "test.bin": [[7, 0]]}, {"fine_label_names.txt": "apple\nbear\n"})
    server = served("cifar100", {"cifar-100-binary.tar.gz": archive})
    with ThreadPoolExecutor(3) as pool:
        opened = list(pool.map(lambda _: open_dataset("cifar100", cache=tmp_path), range(3)))
    assert [data.train.labels.tolist() for data in opened] == [[1]] * 3
    assert len(server.requests) == 1


def test_cifar100_uses_fine_labels(tmp_path: Path, served) -> None:
    archive = cifar_archive(
        {"train.bin": [[7, 1], [9, 0]], "test.bin": [[7, 0]]}, {"fine_label_names.txt": "apple\nbear\n"}
    )
    served("cifar100", {"cifar-100-binary.tar.gz": archive})
    data = open_dataset("cifar100", cache=tmp_path)
    assert data.train.labels.tolist() == [1, 0] and data.train.class_names == ("apple", "bear")
    np.testing.assert_array_equal(data.train.read(1), pattern(32, 32, seed=1))


# --- Other sets of pixels


def test_stl10_is_stored_column_by_column(tmp_path: Path, served, monkeypatch) -> None:
    raw = tmp_path / "raw" / "stl10_binary"
    lines(raw / "class_names.txt", "airplane", "bird")
    for split, seeds in (("train", (0, 1, 2)), ("test", (3, 4))):
        pictures = np.stack([pattern(96, 96, seed) for seed in seeds])
        pictures.transpose(0, 3, 2, 1).tofile(raw / f"{split}_X.bin")
        (np.arange(len(seeds)) % 2 + 1).astype(np.uint8).tofile(raw / f"{split}_y.bin")
    served("stl10", {"stl10_binary.tar.gz": tar_gz(raw.parent)})
    data = open_dataset("stl10", cache=tmp_path)
    assert data.test is not None and data.train.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(data.test.read(1), pattern(96, 96, seed=4))
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda *arguments: True)
    agree(tmp_path, "stl10", {split: datasets.STL10(tmp_path / "raw", split) for split in ("train", "test")})


def test_svhn(tmp_path: Path, served, monkeypatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, seeds, labels in (("train", (0, 1), [10, 3]), ("test", (2, 3), [9, 10])):
        pictures = np.stack([pattern(32, 32, seed) for seed in seeds], axis=3)
        scipy_io.savemat(folder / f"{split}_32x32.mat", {"X": pictures, "y": np.array(labels, np.uint8)[:, None]})
    served("svhn", {path.name: path.read_bytes() for path in folder.iterdir()})
    data = open_dataset("svhn", cache=tmp_path)
    assert data.test is not None
    assert (
        data.train.class_names == tuple("0123456789")
        and data.train.labels.tolist() == [0, 3]
        and data.test.labels.tolist() == [9, 0]
    )
    np.testing.assert_array_equal(data.train.read(1), pattern(32, 32, seed=1))
    for module in ("svhn", "utils"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *arguments: True)
    agree(tmp_path, "svhn", {split: datasets.SVHN(folder, split) for split in ("train", "test")})


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


def test_a_damaged_matlab_file(tmp_path: Path) -> None:
    pytest.importorskip("scipy.io")
    base = complete(tmp_path, "flowers102") / "flowers-102"
    base.mkdir()
    for content in (b"", b"\x01" * 200, b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"\xff" * 100):
        (base / "imagelabels.mat").write_bytes(content)
        with pytest.raises(DataError, match=r"does not hold a whole flowers102 .*imagelabels\.mat is damaged"):
            open_dataset("flowers102", cache=tmp_path)


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


def test_eurosat(tmp_path: Path, served) -> None:
    base = tmp_path / "raw" / "2750"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for seed, name in enumerate(("River", "Forest", "SeaLake")):
            file.write(write(base / name / f"{name}_{seed}.jpg", seed), f"2750/{name}/{name}_{seed}.jpg")
    served("eurosat", {"EuroSAT.zip": packed.getvalue()})
    open_dataset("eurosat", cache=tmp_path)
    agree(tmp_path, "eurosat", {"train": datasets.EuroSAT(tmp_path / "eurosat")})
    assert not (tmp_path / "eurosat" / "eurosat" / "EuroSAT.zip").exists()


def test_caltech101_is_packed_twice(tmp_path: Path, served) -> None:
    write(tmp_path / "raw" / "101_ObjectCategories" / "ant" / "image_0001.jpg", 3)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("caltech-101/101_ObjectCategories.tar.gz", tar_gz(tmp_path / "raw"))
        file.writestr("caltech-101/show_annotation.m", "% not needed")
    served("caltech101", {"caltech-101.zip": packed.getvalue()})
    data = open_dataset("caltech101", cache=tmp_path)
    assert data.train.class_names == ("ant",) and data.train.read(0).shape == (12, 16, 3)
    left = [path.name for path in (tmp_path / "caltech101" / "caltech101").iterdir() if not path.name.endswith("lock")]
    assert left == ["101_ObjectCategories"]


def test_caltech101_leaves_out_the_background(tmp_path: Path) -> None:
    base = complete(tmp_path, "caltech101") / "caltech101" / "101_ObjectCategories"
    for name in ("wrench", "BACKGROUND_Google", "ant"):
        write(base / name / "image_0001.jpg")
    data = open_dataset("caltech101", cache=tmp_path)
    assert data.test is None and data.train.class_names == ("ant", "wrench") and len(data.train) == 2


# --- Failures


def test_every_archive_is_torchvisions() -> None:
    """The same file with the same MD5."""
    modules = {
        "flowers102": "flowers102",
        "pets": "oxford_iiit_pet",
        "food101": "food101",
        "svhn": "svhn",
        "dtd": "dtd",
        "stl10": "stl10",
        "caltech101": "caltech",
        "eurosat": "eurosat",
        "imagenette": "imagenette",
    }
    assert {*named.NAMES} == {
        *modules,
        "cifar10",
        "cifar100",
        "aircraft",
    }  # its CIFAR is pickled, its Aircraft unchecked
    for name, module in modules.items():
        theirs = inspect.getsource(importlib.import_module(f"torchvision.datasets.{module}"))
        for source in named._SETS[name].sources:
            assert source.md5 in theirs and source.path.rpartition("/")[2] in theirs
            assert source.address.rpartition("/")[0] in theirs or name in ("flowers102", "svhn")
    assert named._SETS["aircraft"].sources[0].address == datasets.FGVCAircraft._URL
    assert [named._SETS[name].sources[0].md5 for name in ("cifar10", "cifar100", "aircraft")] == [
        "c32a1d4ab5d03f1284b67883e8d87530",  # both: the set's own page
        "03b5dce01913d631647c71ecec9e9cb8",
        "d4acdd33327262359767eeaa97a4f732",  # torchvision for R
    ]


def test_without_network(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments, **named):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(
        DataError,
        match=r"pets is not in .*pets and cannot be downloaded .*cannot be resolved.* Copy that folder",
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
