"""Parquet files and Hugging Face `datasets`."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import open_dataset
from bigtransfer.data.sources import ParquetRows
from bigtransfer.data.tables import arrow as arrow_tables
from bigtransfer.errors import DataError, ImageError

from .data_makers import class_folders, encoded, pattern, table

# --- Parquet


def image_rows(count: int, offset: int = 0) -> list[dict[str, object]]:
    return [{"bytes": encoded(pattern(12, 16, seed=offset + i)), "path": f"{i}.png"} for i in range(count)]


def test_parquet_of_paths(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table(tmp_path, "")
    columns = {
        "path": ["img/0.png", "img/1.png", "img/2.png"],
        "label": [3, 20, 3],
        "split": ["train", "train", "test"],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    data = open_dataset(tmp_path / "t.parquet")
    assert data.train.class_names == ("3", "20") and data.train.labels.tolist() == [0, 1]
    assert data.test is not None and data.test.labels.tolist() == [0]


@pytest.mark.parametrize("plain_bytes", [False, True])
def test_parquet_of_images(tmp_path: Path, plain_bytes: bool) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for file, offset in (("train-00000-of-00002", 0), ("train-00001-of-00002", 3), ("validation-00000-of-00001", 6)):
        rows = image_rows(3, offset)
        images = [row["bytes"] for row in rows] if plain_bytes else rows
        (tmp_path / "data").mkdir(exist_ok=True)
        parquet.write_table(
            arrow.table({"img": images, "label": ["b", "a", "b"]}), tmp_path / "data" / f"{file}.parquet"
        )
    for spec in (tmp_path, tmp_path / "data", f"{tmp_path}/data/*.parquet"):
        data = open_dataset(spec, cache=tmp_path / "cache")
        assert data.val is not None and len(data.train) == 6 and len(data.val) == 3
        assert data.train.labels.tolist() == [1, 0, 1] * 2
        assert [data.train.name(i) for i in (0, 5)] == ["train/000000", "train/000005"] and data.val.name(
            0
        ) == "val/000000"
        np.testing.assert_array_equal(data.train.read(4), pattern(12, 16, seed=4))
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(data.val)).read(1), pattern(12, 16, seed=7))
    assert len(list((tmp_path / "cache" / "arrow").iterdir())) == 3  # converted once


def test_parquet_with_a_description_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "pixels": datasets.Image(),
            "fine": datasets.ClassLabel(names=["zebra", "ant"]),
            "coarse": datasets.ClassLabel(names=["x", "y"]),
        }
    )
    made = datasets.Dataset.from_dict(
        {"pixels": image_rows(3), "fine": [0, 1, 0], "coarse": [1, 1, 0]}, features=features
    )
    made.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"has none of the columns label.*it has pixels, fine, coarse.*--label-column"):
        open_dataset(tmp_path / "t.parquet", cache=tmp_path / "cache")
    data = open_dataset(tmp_path / "t.parquet", label_column="fine", cache=tmp_path / "cache")
    assert data.train.class_names == ("zebra", "ant") and data.train.labels.tolist() == [0, 1, 0]


def test_damaged_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_dataset(tmp_path / "t.parquet")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'bigtransfer\[parquet\]'"):
        open_dataset(tmp_path / "t.parquet")


# --- Hugging Face datasets


def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    parts = {
        name: datasets.Dataset.from_dict({"image": image_rows(4, offset), "label": labels}, features=features)
        for name, offset, labels in (("train", 0, [0, 1, 1, 0]), ("validation", 4, [1, 0, 1, 0]), ("test", 8, [-1] * 4))
    }
    parts["train"] = parts["train"].select([3, 2, 1, 0])  # a view, which saving writes out
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "dict", num_shards={"train": 2, "validation": 1, "test": 1})
    data = open_dataset(tmp_path / "dict")
    assert data.val is not None and data.test is not None and data.test.labels is None
    assert data.train.class_names == ("zebra", "ant") and data.train.labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(data.train.read(0), pattern(12, 16, seed=3))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data.val)).read(3), pattern(12, 16, seed=7))
    assert data.test.size(1) == (12, 16) and data.test.name(1) == "test/000001"

    parts["validation"].save_to_disk(tmp_path / "single")
    assert open_dataset(tmp_path / "single").train.labels.tolist() == [1, 0, 1, 0]


def test_a_row_without_image_is_an_image_error(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})
    rows = [None, {"bytes": b"", "path": None}, *image_rows(1)]
    datasets.Dataset.from_dict({"image": rows, "label": [0, 1, 1]}, features=features).save_to_disk(tmp_path / "d")
    images = open_dataset(tmp_path / "d").train
    with pytest.raises(ImageError, match="no image"):
        images.read(0)
    with pytest.raises(ImageError, match="empty"):
        images.read(1)
    assert images.read(2).shape == (12, 16, 3)


def test_damaged_saved_dataset(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(DataError, match="looks like a saved Hugging Face data set"):
        open_dataset(tmp_path)


def test_through_the_datasets_library(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        class_folders(tmp_path / "local" / split, {"cat": 2, "dog": 2})
    data = open_dataset(f"hf:{tmp_path / 'local'}", cache=tmp_path / "cache")
    assert data.test is not None and data.train.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(data.train.read(3), pattern(12, 16, seed=3))


def test_hub_errors_are_ours(tmp_path: Path, monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"Hugging Face data set .* cannot be loaded"):
        open_dataset(f"hf:{tmp_path / 'none'}", cache=tmp_path)
    asked = {}

    def load_dataset(*arguments, **named):
        asked.update(arguments=arguments, **named)
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="no network"):
        open_dataset("hf:owner/name:plain@v2")
    assert asked == {"arguments": ("owner/name", "plain"), "revision": "v2", "cache_dir": None}
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'bigtransfer\[datasets\]'"):
        open_dataset("hf:owner/name")


# --- Parquet that is read where it is


@pytest.fixture
def large_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Parquet files that counts as too large to be converted, with row groups of 2 (the last of 1)."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(arrow_tables, "CONVERT_BELOW", 0)
    for file, offset, count in (("train-0", 0, 5), ("train-1", 5, 4), ("test-0", 9, 3)):
        rows = arrow.table({"image": image_rows(count, offset), "label": [["b", "a"][i % 2] for i in range(count)]})
        parquet.write_table(rows, tmp_path / f"{file}.parquet", row_group_size=2)
    return tmp_path


def test_large_parquet_is_read_in_place(large_parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(large_parquet, cache=large_parquet / "cache")
    assert not (large_parquet / "cache").exists()
    assert data.test is not None and data.train.class_names == ("a", "b")
    assert data.train.labels.tolist() == [1, 0, 1, 0, 1, 1, 0, 1, 0] and data.test.labels.tolist() == [1, 0, 1]
    assert data.train.runs.tolist() == [0, 2, 4, 5, 7, 9] and data.test.runs.tolist() == [0, 2, 3]
    assert [data.train.name(i) for i in (0, 8)] == ["train/000000", "train/000008"] and data.test.name(
        1
    ) == "test/000001"
    seeds = {"train": range(9), "test": range(9, 12)}
    other = pickle.loads(pickle.dumps(data.train))
    monkeypatch.setattr(ParquetRows, "_KEPT", 1)  # every row group is dropped for the next one
    for images, split in ((data.train, "train"), (data.test, "test"), (other, "train")):
        for i in np.random.default_rng(0).permutation(len(images)):
            np.testing.assert_array_equal(images.read(i), pattern(12, 16, seed=seeds[split][i]))
    assert len(data.train.store._kept) == 1


def test_a_row_group_is_read_once_for_all_its_rows(large_parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    train = open_dataset(large_parquet).train
    read, asked = parquet.ParquetFile.read_row_group, []
    monkeypatch.setattr(
        parquet.ParquetFile,
        "read_row_group",
        lambda self, group, **named: asked.append(group) or read(self, group, **named),
    )
    for i in range(9):
        train.data(i)
    assert asked == [0, 1, 2, 0, 1]


def test_large_parquet_that_is_damaged(large_parquet: Path) -> None:
    train = open_dataset(large_parquet).train
    (large_parquet / "train-1.parquet").write_bytes(b"PAR1 no more PAR1")
    assert train.read(0).shape == (12, 16, 3)
    with pytest.raises(DataError, match=r"train-1\.parquet is damaged, or was changed"):
        train.read(5)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_dataset(large_parquet)


# --- Several labels per image


@pytest.mark.parametrize("large", [False, True])
def test_parquet_with_several_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if large:
        monkeypatch.setattr(arrow_tables, "CONVERT_BELOW", 0)
    labels = [["dog", "cat"], ["cat"], [], None, ["ant", "dog", "ant"]]
    parquet.write_table(
        arrow.table({"image": image_rows(5), "label": labels}), tmp_path / "t.parquet", row_group_size=2
    )
    data = open_dataset(tmp_path / "t.parquet", multi_label=True, cache=tmp_path / "cache")
    assert data.train.class_names == ("ant", "cat", "dog")
    assert data.train.labels.tolist() == [[1, 2], [1, -1], [0, 2]]
    assert "2 images of train have an empty list" in data.notes[0]
    for i, seed in enumerate((0, 1, 4)):
        np.testing.assert_array_equal(data.train.read(i), pattern(12, 16, seed=seed))
    with pytest.raises(DataError, match="several labels each"):
        open_dataset(tmp_path / "t.parquet", cache=tmp_path / "cache")


def test_parquet_of_paths_with_several_labels(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table(tmp_path, "")
    columns = {"path": ["img/0.png", "img/1.png"], "label": [[20, 3], [3]]}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    data = open_dataset(tmp_path / "t.parquet", multi_label=True)
    assert data.train.class_names == ("3", "20") and data.train.labels.tolist() == [[0, 1], [0, -1]]


def test_datasets_with_several_labels(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    several = datasets.Sequence(datasets.ClassLabel(names=["zebra", "ant", "bee"]))
    features = datasets.Features({"image": datasets.Image(), "kinds": several})
    rows = {"image": image_rows(3), "kinds": [[2, 0], [1], [0, 1, 2]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "d")
    data = open_dataset(tmp_path / "d", multi_label=True)
    assert data.train.class_names == ("zebra", "ant", "bee")
    assert data.train.labels.tolist() == [[0, 2, -1], [1, -1, -1], [0, 1, 2]]
