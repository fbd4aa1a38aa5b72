"""Tar files: WebDataset shards and packed class folders."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import open_dataset
from bigtransfer.data.remote import Cache
from bigtransfer.data.shards import expand
from bigtransfer.errors import DataError, ImageError

from .data_makers import class_folders, encoded, pattern


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def image(seed: int, kind: str = "PNG") -> bytes:
    return encoded(pattern(12, 16, seed), kind)


CACHE = Cache(Path("unused"), limit=1)


def test_expand(tmp_path: Path) -> None:
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b-1.tar", "c-1.tar"):
        (tmp_path / name).touch()

    def names(pattern: str) -> list[str]:
        return [Path(str(path)).name for path in expand(f"{tmp_path}/{pattern}", CACHE)]

    assert names("a-{008..010}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert names("{b,c}-1.tar") == ["b-1.tar", "c-1.tar"]
    assert names("a-{008..009}.{tar,tar}") == ["a-008.tar", "a-009.tar"]
    assert names("a-*.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    with pytest.raises(DataError, match=r"no file .*a-011\.tar"):
        expand(f"{tmp_path}/a-{{008..011}}.tar", CACHE)


def test_shards_with_numbers(tmp_path: Path) -> None:
    for shard in range(2):
        members = {}
        for i in range(3):
            members |= {f"{shard}{i}.png": image(10 * shard + i), f"{shard}{i}.cls": str([2, 10, 2][i]).encode()}
        tar(tmp_path / f"train-{shard:03d}.tar", members)
    data = open_dataset(f"{tmp_path}/train-{{000..001}}.tar")
    assert data.val is None and data.train.class_names == ("2", "10") and data.train.labels.tolist() == [0, 1, 0] * 2
    assert [data.train.name(i) for i in (0, 5)] == ["train-000/00", "train-001/12"]
    order = np.random.default_rng(0).permutation(6)
    for i in order:  # random access
        np.testing.assert_array_equal(data.train.read(i), pattern(12, 16, seed=10 * (i // 3) + i % 3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data.train)).read(4), pattern(12, 16, seed=11))
    assert data.train.size(0) == (12, 16)


def test_shards_in_splits_with_text_and_json_labels(tmp_path: Path) -> None:
    tar(
        tmp_path / "train-0.tar",
        {"x/1.jpg": image(1, "JPEG"), "x/1.txt": b"dog\n", "x/2.jpg": image(2, "JPEG"), "x/2.txt": b"cat"},
    )
    tar(
        tmp_path / "val-0.tar",
        {"x/1.json": json.dumps({"label": "cat", "id": 7}).encode(), "x/1.webp": image(3, "WEBP")},
    )
    tar(tmp_path / "test" / "00.tar", {"1.png": image(3), "1.json": json.dumps({"cls": "dog"}).encode()})
    for spec in (tmp_path, f"{tmp_path}/{{train-0,val-0,test/00}}.tar"):
        data = open_dataset(spec)
        assert data.val is not None and data.test is not None
        assert data.train.class_names == ("cat", "dog") and data.train.labels.tolist() == [1, 0]
        assert data.val.labels.tolist() == [0] and data.test.labels.tolist() == [1]
        assert data.val.name(0) == "val-0/x/1" and data.test.name(0) == "test/00/1"


def test_the_key_of_json_labels_can_be_named(tmp_path: Path) -> None:
    members = {}
    for i in range(2):
        members |= {f"{i}.png": image(i), f"{i}.json": json.dumps({"species": "ab"[i]}).encode()}
    path = tar(tmp_path / "x.tar", members)
    assert open_dataset(path, label_column="species").train.class_names == ("a", "b")
    with pytest.raises(DataError, match=r"0\.json has no label under 'label'.*--label-column"):
        open_dataset(path)


def test_json_with_several_labels(tmp_path: Path) -> None:
    members = {}
    for i, label in enumerate((["b", "a"], "b", [])):
        members |= {f"{i}.png": image(i), f"{i}.json": json.dumps({"label": label}).encode()}
    data = open_dataset(tar(tmp_path / "x.tar", members), multi_label=True)
    assert data.train.class_names == ("a", "b") and data.train.labels.tolist() == [[0, 1], [1, -1]]
    with pytest.raises(DataError, match="several labels each"):
        open_dataset(tmp_path / "x.tar")
    path = tar(tmp_path / "y.tar", {"a.png": image(0), "a.json": b'{"label": ["a", 0.5]}'})
    with pytest.raises(DataError, match="has no label under"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": image(0), "a.cls": b"1", "b.png": image(1)}, "x.tar: b has no label"),
        ({"a.png": image(0), "a.json": b"{"}, r"a\.json cannot be read as a label"),
        ({"a.png": image(0), "a.cls": b"1"}, "one class only"),
        ({"a.txt": b"1"}, "no images"),
        ({}, "no images"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(tar(tmp_path / "x.tar", members))


def test_not_a_tar_file(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(DataError, match="cannot be read as a tar file"):
        open_dataset(tmp_path / "x.tar")
    (tmp_path / "x.tar.gz").write_bytes(b"no gzip" * 500)
    with pytest.raises(DataError, match="cannot be unpacked"):
        open_dataset(tmp_path / "x.tar.gz", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "tar").iterdir())


def test_unlabelled_shards_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        tar(tmp_path / f"{i}.tar", {"a.png": image(0)})
    with pytest.raises(DataError, match="not WebDataset shards with labels"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.xz", "tar.bz2"])
def test_packed_class_folders(tmp_path: Path, ending: str) -> None:
    class_folders(tmp_path / "pets" / "train", {"cat": 2, "dog": 1})
    class_folders(tmp_path / "pets" / "test", {"cat": 1, "dog": 1}, seed=5)
    (tmp_path / "pets" / "LICENSE.txt").write_text("free")
    (tmp_path / "pets" / "train" / "cat" / "._000.png").write_bytes(b"x")
    mode = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}.get(ending.rpartition(".")[2], "w")
    with tarfile.open(tmp_path / f"pets.{ending}", mode) as file:
        file.add(tmp_path / "pets", "pets")
    data = open_dataset(tmp_path / f"pets.{ending}", cache=tmp_path / "cache")
    assert data.test is not None and data.train.labels.tolist() == [0, 0, 1] and data.test.labels.tolist() == [0, 1]
    assert data.train.name(2) == "train/dog/000.png"
    np.testing.assert_array_equal(data.test.read(1), pattern(12, 16, seed=6))
    assert "1 hidden" in data.notes[0] and "1 .txt" in data.notes[0]
    assert (tmp_path / "cache").exists() == (ending != "tar")


def test_a_tar_file_that_goes_away(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a/1.png": image(0), "b/1.png": image(1)[:60]})
    images = open_dataset(path).train
    with pytest.raises(ImageError, match=r"x\.tar: b/1\.png: "):
        images.read(1)
    other = open_dataset(path).train
    path.unlink()
    assert images.read(0).shape == (12, 16, 3)  # it had been opened
    with pytest.raises(ImageError, match="cannot be read"):
        other.read(0)


def test_shards_written_by_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "train-000.tar")) as sink:
        for i in range(4):
            sink.write({"__key__": f"sample{i:05d}", "png": image(i), "cls": i % 2})
    data = open_dataset(tmp_path / "train-000.tar")
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(data.train.read(3), pattern(12, 16, seed=3))
