"""Tables of paths and labels: CSV, TSV, JSON lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import open_dataset
from bigtransfer.errors import ConfigError, DataError

from .data_makers import pattern, table, write

# --- CSV


def test_csv_with_usual_names(tmp_path: Path) -> None:
    data = open_dataset(table(tmp_path, "image,label\nimg/2.png,dog\nimg/0.png,cat\nimg/1.png,dog\n"))
    assert data.val is None and data.train.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert [data.train.name(i) for i in range(3)] == ["img/2.png", "img/0.png", "img/1.png"]
    np.testing.assert_array_equal(data.train.read(0), pattern(12, 16, seed=2))


@pytest.mark.parametrize("header", ["file_name;class", "path\tcategory", "filename,target"])
def test_separators_and_other_usual_names(tmp_path: Path, header: str) -> None:
    separator = next(character for character in ";\t," if character in header)
    text = f"{header}\n" + "".join(f"img/{i}.png{separator}{'ab'[i % 2]}\n" for i in range(4))
    data = open_dataset(table(tmp_path, text, "table.tsv" if separator == "\t" else "table.csv"))
    assert data.train.labels.tolist() == [0, 1, 0, 1]


def test_named_columns_splits_quotes_bom_and_windows_lines(tmp_path: Path) -> None:
    text = '\ufefffoto,"wo, genau",art,part\r\n' + "".join(
        f'img/{i}.png,"x, y",{kind},{part}\r\n'
        for i, (kind, part) in enumerate(zip("abba", ("train", "Valid", "TRAIN", "test"), strict=True))
    )
    data = open_dataset(table(tmp_path, text), image_column="foto", label_column="art", split_column="part")
    assert data.val is not None and data.test is not None
    assert data.train.labels.tolist() == [0, 1] and data.val.labels.tolist() == [1] and data.test.labels.tolist() == [0]
    assert data.test.name(0) == "img/3.png"


def test_a_column_called_split_is_used(tmp_path: Path) -> None:
    text = "image,label,split\nimg/0.png,a,train\nimg/1.png,b,train\nimg/2.png,a,validation\n"
    data = open_dataset(table(tmp_path, text))
    assert data.val is not None and len(data.val) == 1 and data.notes == ("val has no images of b.",)


def test_numbers_as_labels_sort_by_value(tmp_path: Path) -> None:
    data = open_dataset(table(tmp_path, "image,label\nimg/0.png,10\nimg/1.png,9\nimg/2.png,100\n"))
    assert data.train.class_names == ("9", "10", "100")
    data = open_dataset(table(tmp_path, "image,label\nimg/0.png,10\nimg/1.png,9\nimg/2.png,x\n"))
    assert data.train.class_names == ("10", "9", "x")


def test_absolute_paths(tmp_path: Path) -> None:
    where = write(tmp_path / "elsewhere" / "x.png")
    data = open_dataset(table(tmp_path / "t", f"image,label\n{where},a\nimg/1.png,b\n"))
    assert data.train.name(0) == str(where) and data.train.read(0).shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("image,label\n", {}, "no rows"),
        ("", {}, "no rows"),
        ("a,b\nno/0.png,x\n", {}, "none of the columns image, .*it has a, b.*--image-column"),
        ("image,b,c\nimg/0.png,x,y\n", {}, "none of the columns label, .*it has image, b, c.*--label-column"),
        ("image,label\nimg/0.png,x\n", {"label_column": "kind"}, "no column 'kind'.*--label-column"),
        ("image,label\nimg/0.png,x\n", {"split_column": "part"}, "no column 'part'.*--split-column"),
        ("image,label\nimg/0.png,x\nimg/1.png,y,z\n", {}, "line 3: 3 values for 2 columns"),
        ("image,label\nimg/0.png,x\nimg/1.png\n", {}, "line 3: 1 values for 2 columns"),
        (
            "image,label\nimg/0.png,x\nimg/0.png,y\n",
            {},
            "'img/0.png' twice, with labels 'x' and 'y' .line 2 and line 3",
        ),
        ("image,label\nimg/0.png,x\nimg/1.png,\n", {}, "1 of 2 rows have no label: line 3"),
        ("image,label,split\nimg/0.png,x,foo\n", {}, "in split 'foo'"),
        (
            "image,label\nno/7.png,x\n8.png,y\n",
            {},
            "'no/7.png', but there is no file .*relative to the table's own folder",
        ),
        ("image,label\nimg/0.png,x\nimg/1.png,x\n", {}, "one class only, 'x'"),
        ("image,label,split\nimg/0.png,x,val\nimg/1.png,y,val\n", {}, "no train split"),
        (
            "image,label,split\nimg/0.png,x,train\nimg/1.png,y,train\nimg/2.png,z,test\n",
            {},
            "test has classes that are not in train: z",
        ),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, text: str, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(table(tmp_path, text), **arguments)
    assert "table.csv" in str(caught.value)


def test_a_table_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,label\n\xff\xfe\n")
    with pytest.raises(DataError, match="not UTF-8"):
        open_dataset(tmp_path / "t.csv")


# --- Several labels per image


def test_csv_with_several_labels(tmp_path: Path) -> None:
    path = table(
        tmp_path, "image,label,split\nimg/0.png,10|9 | 9,train\nimg/1.png,9,train\nimg/2.png,,train\nimg/3.png,10,val\n"
    )
    data = open_dataset(path, label_separator="|", multi_label=True)
    assert data.train.class_names == ("9", "10") and data.train.labels.tolist() == [[0, 1], [0, -1]]
    assert data.val is not None and data.val.labels.tolist() == [[1, -1]]
    assert data.notes == (
        "1 images of train have an empty list of labels; they are left out.",
        "val has no images of 9.",
    )
    assert [data.train.name(i) for i in range(2)] == ["img/0.png", "img/1.png"]
    assert data.train.subset([1]).labels.tolist() == [[0, -1]]
    with pytest.raises(DataError, match="several labels each"):
        open_dataset(path, label_separator="|")
    with pytest.raises(ConfigError, match="--label-separator ''"):
        open_dataset(path, label_separator="")
