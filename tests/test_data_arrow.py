"""Parquet files and Hugging Face `datasets`."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import socket
import urllib.request
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import open_dataset
from bigtransfer.data.sources import ParquetRows
from bigtransfer.data.tables import arrow as arrow_tables
from bigtransfer.errors import DataError, ImageError

from .data_makers import class_folders, encoded, pattern, table, write

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


def test_files_that_hold_images_in_different_forms(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = image_rows(6)
    parquet.write_table(arrow.table({"image": rows[:3], "label": [0, 1, 0]}), tmp_path / "train-0.parquet")
    plain = [row["bytes"] for row in rows[3:]]
    parquet.write_table(arrow.table({"image": plain, "label": [1, 0, 1]}), tmp_path / "train-1.parquet")
    train = open_dataset(tmp_path).train
    assert [train.data(i) for i in range(6)] == [row["bytes"] for row in rows]


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
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: [])
    with pytest.raises(DataError, match="no network"):
        open_dataset("hf:owner/name:plain@v2")
    assert asked == {"arguments": ("owner/name", "plain"), "revision": "v2", "cache_dir": None}
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'bigtransfer\[datasets\]'"):
        open_dataset("hf:owner/name")


def test_without_network_the_hub_is_not_tried_for_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def load_dataset(path: str, *arguments: object, **named: object) -> None:
        asked.append(path)
        raise ConnectionError("tried")

    def getaddrinfo(*arguments: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # ../x is then no folder that happens to be there
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(DataError, match=r"cannot be found \(Name or service not known\).*HF_HUB_OFFLINE=1"):
        open_dataset("hf:owner/name")
    for name in ("hf:a/b/c", "hf:../x", "hf:owner/na me", f"hf:{'x' * 97}"):
        with pytest.raises(DataError, match="no folder here, nor owner/name"):
            open_dataset(name)
    assert not asked
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    with pytest.raises(DataError, match="tried"):
        open_dataset("hf:owner/name")
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="tried"):
        open_dataset("hf:owner/name")
    assert asked == ["owner/name", "owner/name"]


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


# --- What foreign files hold


@pytest.fixture(params=["converted", "in place"])
def parquet_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """A function that writes a Parquet file of such columns, and images unless they are among them, and opens it."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if request.param == "in place":
        monkeypatch.setattr(arrow_tables, "CONVERT_BELOW", 0)

    def made(columns: dict, metadata: bytes | None = None, **arguments):
        length = len(next(iter(columns.values())))
        if "image" not in columns:
            columns = {"image": [encoded(pattern(12, 16, seed=i)) for i in range(length)], **columns}
        rows = arrow.table(columns)
        if metadata is not None:
            rows = rows.replace_schema_metadata({b"huggingface": metadata})
        parquet.write_table(rows, tmp_path / "t.parquet")
        return open_dataset(tmp_path / "t.parquet", cache=tmp_path / "cache", **arguments)

    return made


def float16(values: list[float]) -> np.ndarray:
    return np.array(values, np.float16)


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        ([-1, 1, 1, -1], ("-1", "1"), [0, 1, 1, 0]),
        ([0.0, 2.0, 10.0, 0.0], ("0", "2", "10"), [0, 1, 2, 0]),
        (float16([0.0, 2.0, 10.0, 0.0]), ("0", "2", "10"), [0, 1, 2, 0]),
        ([Decimal("1.00"), Decimal("2.00"), Decimal("1.00"), Decimal("1.00")], ("1", "2"), [0, 1, 0, 0]),
        ([True, False, True, True], ("False", "True"), [1, 0, 1, 1]),
        ([b"b", b"a", b"b", b"b"], ("a", "b"), [1, 0, 1, 1]),
        (["blue", "blue ", "red\u200b", "red"], ("blue", "red"), [0, 0, 1, 1]),
        (["1.0", "2", "10", "1"], ("1", "2", "10"), [0, 1, 2, 0]),
        (np.array([2**64 - 1, 7, 7, 7], np.uint64), ("7", "18446744073709551615"), [1, 0, 0, 0]),
    ],
)
def test_parquet_labels(parquet_of, values: list, names: tuple[str, ...], numbers: list[int]) -> None:
    train = parquet_of({"label": values}).train
    assert train.class_names == names
    assert train.labels.tolist() == numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 1.0, float("nan"), 2.0], r"t\.parquet, column 'label': 1 of 4 rows of train have no label: row 3\."),
        (["a", None, "b", ""], "2 of 4 rows of train have no label: row 2, row 4"),
        ([0.0, 1.5, 10.0, 2.0], "row 2: the label 1.5 is a number with a fraction"),
        ([0.0, 1.0, float("inf"), 2.0], "row 3: the label inf is a number with a fraction"),
        ([{"a": 1}] * 4, "column 'label' is of the type struct"),
        ([[[1]], [[2]], [[1]], [[2]]], "column 'label' is of the type list"),
        ([datetime.date(2020, 1, 1)] * 4, "column 'label' is of the type date32"),
        ([b"a", b"\xff", b"a", b"b"], r"row 2: the label b'\\xff' is not UTF-8"),
        (["a|b", "a", "b", "c"], r"'a\|b' are several labels"),
        ([], "has no rows"),
    ],
)
def test_parquet_labels_that_are_none(parquet_of, values: list, message: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    images = {} if values else {"image": arrow.array([], arrow.binary())}
    with pytest.raises(DataError, match=message):
        parquet_of({**images, "label": values or arrow.array([], arrow.string())})


def test_parquet_labels_by_dictionary(parquet_of) -> None:
    arrow = pytest.importorskip("pyarrow")
    assert parquet_of({"label": arrow.array(["b", "a", "b"]).dictionary_encode()}).train.labels.tolist() == [1, 0, 1]
    lists = arrow.ListArray.from_arrays([0, 2, 2, 3], arrow.array(["b", "a", "b"]).dictionary_encode())
    assert parquet_of({"label": lists}, multi_label=True).train.labels.tolist() == [[0, 1], [1, -1]]
    fixed = arrow.array([[1, 2], [2, 3], [1, 1]], arrow.list_(arrow.int64(), 2))
    assert parquet_of({"label": fixed}, multi_label=True).train.labels.tolist() == [[0, 1], [1, 2], [0, -1]]


def test_parquet_labels_that_are_separated(parquet_of) -> None:
    data = parquet_of({"label": ["a|b", "b", "", "c |a"]}, label_separator="|", multi_label=True)
    assert data.train.labels.tolist() == [[0, 1], [1, -1], [0, 2]]


def declared(features: object) -> bytes:
    return json.dumps({"info": {"features": features}}).encode()


_XY = {"label": {"names": ["y", "x"], "_type": "ClassLabel"}}


def test_declared_classes(parquet_of) -> None:
    data = parquet_of({"label": [0, 1, 0, 1]}, declared(_XY))
    assert data.train.class_names == ("y", "x") and data.train.labels.tolist() == [0, 1, 0, 1]
    assert parquet_of({"label": ["x", "y"]}, declared(_XY)).train.labels.tolist() == [1, 0]
    assert parquet_of({"label": [-1, -1]}, declared(_XY)).train.labels is None
    with pytest.raises(DataError, match="--label-separator cannot separate"):
        parquet_of({"label": [0, 1]}, declared(_XY), label_separator="|", multi_label=True)
    with pytest.raises(DataError, match="1 of 3 rows of train have no label: row 2"):
        parquet_of({"label": [0, -1, 1]}, declared(_XY))


@pytest.mark.parametrize(
    ("values", "features", "message"),
    [
        (
            [0, 1, 2, 0],
            _XY,
            r"column 'label', row 3: the label 2 is none of the 2 classes that the data declare \(y, x\)",
        ),
        ([0, 1, -2, 0], _XY, "row 3: the label -2 is none"),
        ([0.5, 1.0], _XY, "row 1: the label 0.5 is none"),
        (["x", "1"], _XY, "row 2: the label '1' is none"),
        ([0, 1], {"label": {"names": ["a", "a"]}}, "declares several classes of the same name: 'a'"),
        ([0, 1], {"label": {"names": 3}}, "column 'label': names: expected array"),
        ([0, 1], {"label": {"names": [1, 2]}}, r"column 'label': names\[0\]: expected str, got int"),
        ([0, 1], [], r"metadata huggingface: info\.features: expected object, got array"),
        ([0, 1], None, r"metadata huggingface: info\.features: expected object, got null"),
    ],
)
def test_declared_classes_that_are_wrong(parquet_of, values: list, features: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parquet_of({"label": values}, declared(features))


@pytest.mark.parametrize("metadata", [b"{", b"[1]", b"\xff", b'{"info": 3}', b"[" * 100_000])
def test_descriptions_that_are_wrong(parquet_of, metadata: bytes) -> None:
    with pytest.raises(DataError, match=r"t\.parquet, metadata huggingface"):
        parquet_of({"label": [0, 1]}, metadata)


def test_descriptions_that_say_nothing(parquet_of) -> None:
    for features in ({"label": 3, "image": None}, {"other": {"_type": "Image"}}, {"label": {"feature": {"_type": 3}}}):
        assert parquet_of({"label": [0, 1]}, declared(features)).train.class_names == ("0", "1")


def test_a_declared_column_goes_before_a_usual_name(parquet_of) -> None:
    columns = {"label": ["p", "q"], "kind": [0, 1]}
    assert parquet_of(columns, declared({"kind": _XY["label"]})).train.class_names == ("y", "x")
    both = {"label": _XY["label"] | {"names": ["p", "q"]}, "kind": _XY["label"]}
    assert parquet_of({"label": [0, 1], "kind": [1, 0]}, declared(both)).train.class_names == ("p", "q")
    assert parquet_of(columns, declared({"kind": _XY["label"]}), label_column="label").train.class_names == ("p", "q")


@pytest.mark.parametrize("values", [[1.5, 2.5], [[1, 2], [3, 4]], [{"x": 1}] * 2, [{"bytes": 1, "path": 2}] * 2])
def test_columns_that_hold_no_images(parquet_of, values: list) -> None:
    with pytest.raises(DataError, match=r"t\.parquet: the column 'image' is of the type .*--image-column"):
        parquet_of({"image": values, "label": ["a", "b"]})


def test_the_only_column_of_bytes_is_that_of_the_images(parquet_of, tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = {"jpg": [encoded(pattern(12, 16, seed=i)) for i in range(2)], "label": ["a", "b"]}
    parquet.write_table(arrow.table(rows), tmp_path / "u.parquet")
    train = open_dataset(tmp_path / "u.parquet", cache=tmp_path / "cache").train
    np.testing.assert_array_equal(train.read(1), pattern(12, 16, seed=1))


def test_paths_inside_an_image_column(parquet_of, tmp_path: Path) -> None:
    write(tmp_path / "0.png", seed=3)
    os.mkfifo(tmp_path / "pipe.png")
    rows = [{"bytes": None, "path": path} for path in ("0.png", "0\0.png", "no.png", "pipe.png")]
    train = parquet_of({"image": rows, "label": list("abab")}).train
    np.testing.assert_array_equal(train.read(0), pattern(12, 16, seed=3))
    for row, reason in (
        (1, r"'0\\x00\.png' cannot be read"),
        (2, r"'no.png' cannot be read \(No such file"),
        (3, "it is a pipe"),
    ):
        with pytest.raises(ImageError, match=reason):
            train.read(row)


def test_parquet_of_paths_by_dictionary_with_declared_classes(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table(tmp_path, "")
    rows = arrow.table({"image": arrow.array(["img/0.png", "img/1.png"]).dictionary_encode(), "label": [0, 1]})
    parquet.write_table(rows.replace_schema_metadata({b"huggingface": declared(_XY)}), tmp_path / "t.parquet")
    train = open_dataset(tmp_path / "t.parquet").train
    assert train.class_names == ("y", "x") and train.labels.tolist() == [0, 1] and train.name(1) == "img/1.png"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": ["img/0.png\0", "img/1.png"], "label": ["a", "b"]},
            r"t\.parquet, row 1: 'img/0\.png\\x00' cannot be",
        ),
        ({"image": ["img/0.png", None], "label": ["a", "b"]}, "1 of 2 rows name no image in the column 'image': row 2"),
        ({"image": ["img/0.png", "img/1.png"], "label": [1.0, float("nan")]}, "1 of 2 rows have no label: row 2"),
        ({"image": ["img/0.png", "img/1.png"], "label": [{"a": 1}] * 2}, "row 1: the label {'a': 1} is neither"),
        ({"image": ["img/0.png", "img/1.png"], "label": [datetime.date(2020, 1, 1)] * 2}, "row 1: .*type date"),
        ({"image": ["img/0.png", "img/0.png"], "label": ["a", "b"]}, r"twice, .*\(row 1 and row 2\)"),
    ],
)
def test_parquet_of_paths_that_is_wrong(tmp_path: Path, columns: dict, message: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table(tmp_path, "")
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "t.parquet")


def test_parquet_files_of_paths_are_parts(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table(tmp_path / "x", "")
    for name, numbers in (("train", (0, 1)), ("test", (2, 3))):
        rows = {"image": [f"img/{i}.png" for i in numbers], "label": ["a", "b "]}
        parquet.write_table(arrow.table(rows), tmp_path / "x" / f"{name}.parquet")
    data = open_dataset(f"{tmp_path}/x/*.parquet")
    assert [data.test.name(i) for i in range(2)] == ["img/2.png", "img/3.png"] and data.test.labels.tolist() == [0, 1]


def test_parquet_files_of_paths_that_declare_different_classes(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table(tmp_path / "x", "")
    for name, numbers, classes in (("train", (0, 1), ["a", "b"]), ("test", (2, 3), ["b", "a"])):
        rows = arrow.table({"image": [f"img/{i}.png" for i in numbers], "label": [0, 1]})
        described = rows.replace_schema_metadata({b"huggingface": declared({"label": {"names": classes}})})
        parquet.write_table(described, tmp_path / "x" / f"{name}.parquet")
    with pytest.raises(DataError, match="declare different classes"):
        open_dataset(f"{tmp_path}/x/*.parquet")


def test_files_of_a_set_that_differ(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [encoded(pattern(12, 16, seed=i)) for i in range(2)]

    def opened(second: dict):
        parquet.write_table(arrow.table({"image": images, "label": ["1", "x"]}), tmp_path / "train-0.parquet")
        parquet.write_table(arrow.table(second), tmp_path / "train-1.parquet")
        return open_dataset(tmp_path, cache=tmp_path / "cache")

    train = opened({"image": images, "label": [1, 2]}).train
    assert train.class_names == ("1", "2", "x") and train.labels.tolist() == [0, 2, 0, 1]
    with pytest.raises(DataError, match=r"train-1\.parquet has no column 'image'"):
        opened({"img": images, "label": ["a", "b"]})
    with pytest.raises(DataError, match="no column 'label'; it has image, class"):
        opened({"image": images, "class": ["a", "b"]})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("dataset_dict.json", '{"splits": 3}', r"dataset_dict\.json: splits: expected array"),
        ("dataset_dict.json", '{"splits": []}', "names no split"),
        ("dataset_dict.json", '{"splits": ["../x"]}', "'../x' is not the name of a file beside it"),
        ("dataset_dict.json", "[", r"dataset_dict\.json is not JSON"),
        ("train/dataset_info.json", '{"features": []}', r"dataset_info\.json: features: expected object"),
        ("train/state.json", '{"_data_files": []}', r"state\.json: _data_files"),
        (
            "train/state.json",
            '{"_data_files": [{"filename": 3}]}',
            r"state\.json: _data_files\[0\]\.filename: expected str",
        ),
        ("train/state.json", '{"_data_files": [{"filename": "a\\u0000"}]}', r"'a\\x00' is not the name"),
        ("train/state.json", '{"_data_files": [{"filename": "none.arrow"}]}', "none.arrow"),
        ("train/data.arrow", "no arrow", "cannot be read as a saved data set"),
    ],
)
def test_saved_datasets_that_are_wrong(tmp_path: Path, file: str, content: str, message: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    (tmp_path / "train").mkdir()
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "train" / "dataset_info.json").write_text('{"features": {}}')
    (tmp_path / "train" / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    rows = arrow.table({"image": [encoded(pattern(12, 16, seed=i)) for i in range(2)], "label": ["a", "b"]})
    with (
        arrow.OSFile(str(tmp_path / "train" / "data.arrow"), "wb") as sink,
        arrow.ipc.new_stream(sink, rows.schema) as out,
    ):
        out.write_table(rows)
    assert open_dataset(tmp_path).train.labels.tolist() == [0, 1]
    (tmp_path / file).write_text(content)
    with pytest.raises(DataError, match=f"looks like a saved Hugging Face data set but cannot be read: .*{message}"):
        open_dataset(tmp_path)


def test_metadata_parquet_beside_images(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number in range(2):
        write(tmp_path / f"{number}.png", seed=number)
    parquet.write_table(
        arrow.table({"file_name": ["0.png", "1.png"], "label": ["b", "a"]}), tmp_path / "metadata.parquet"
    )
    assert open_dataset(tmp_path).train.labels.tolist() == [1, 0]


def test_an_arrow_file_whose_values_reach_beyond_their_bytes(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    (tmp_path / "dataset_info.json").write_text('{"features": {}}')
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    images = [encoded(pattern(12, 16, seed=i)) for i in range(2)]
    rows = arrow.table({"image": images, "label": ["a", "b"]})
    with arrow.OSFile(str(tmp_path / "data.arrow"), "wb") as sink, arrow.ipc.new_stream(sink, rows.schema) as out:
        out.write_table(rows)
    assert len(open_dataset(tmp_path).train) == 2
    ends = np.cumsum([0, *map(len, images)], dtype="<i4")
    content = (tmp_path / "data.arrow").read_bytes()
    assert content.count(ends.tobytes()) == 1
    beyond = ends.copy()
    beyond[-1] += 40
    (tmp_path / "data.arrow").write_bytes(content.replace(ends.tobytes(), beyond.tobytes()))
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        open_dataset(tmp_path)
