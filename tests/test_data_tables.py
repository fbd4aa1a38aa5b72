"""Tables of paths and labels: CSV, TSV, JSON lines."""

from __future__ import annotations

import csv
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
        ("image,label\nimg/0.png,x\n", {"split_column": "part"}, "no column 'part'.* with split_column"),
        ("image,label\nimg/0.png,x\nimg/1.png,y,z\n", {}, "line 3: 3 values for 2 columns"),
        ("image,label\nimg/0.png,x\nimg/1.png\n", {}, "line 3: 1 values for 2 columns"),
        (
            "image,label\nimg/0.png,x\nimg/0.png,y\n",
            {},
            "'img/0.png' twice, with labels 'x' and 'y' .line 2 and line 3",
        ),
        ("image,label\nimg/0.png,x\nimg/1.png,\n", {}, "1 of 2 rows have no label: line 3"),
        ("image,label,split\nimg/0.png,x,foo\n", {}, "in split 'foo'; only .* give it another name"),
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


# --- Text as programs write it


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nimage;label\nimg/0.png;a\nimg/1.png;b\n",
        '"sep=;"\r\nimage;label\r\nimg/0.png;a\r\nimg/1.png;b\r\n',
        "sep=,\nimage,label\nimg/0.png,a\nimg/1.png,b",
        "# by hand\n\n# again\nimage,label\nimg/0.png,a\nimg/1.png,b\n",
        "# image,label\nimg/0.png,a\nimg/1.png,b\n",
        "image,label,\nimg/0.png,a,\nimg/1.png,b,\n",
        "image,label,,\nimg/0.png,a\nimg/1.png,b,\n",
        "image,label\nimg/0.png,a,,\nimg/1.png,b, \n",
        "image,label\rimg/0.png,a\rimg/1.png,b\r",
        "image,label\rimg/0.png,a\nimg/1.png,b\r\n",
        "\n\nimage,label\n\nimg/0.png,a\n\n\nimg/1.png,b\n\n",
        'image, label\nimg/0.png, "a"\n"img/1.png", b\n',
        "image|label\nimg/0.png|a\nimg/1.png|b\n",
        '"a;b;c;d",image,label\nx,img/0.png,a\ny,img/1.png,b\n',
        "image\tlabel\nimg/0.png\ta\nimg/1.png\tb\n",
        ",image,label\n0,img/0.png,a\n1,img/1.png,b\n",
        "\ufeffimage,label\nimg/0.png,a\nimg/1.png,b\n",
        "\ufeffsep=;\nimage;label\nimg/0.png;a\nimg/1.png;b\n",
    ],
)
def test_text_in_many_writings(tmp_path: Path, text: str) -> None:
    data = open_dataset(table(tmp_path, text))
    assert data.train.class_names == ("a", "b") and data.train.labels.tolist() == [0, 1] and data.notes == ()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_encodings_with_their_mark(tmp_path: Path, encoding: str) -> None:
    path = table(tmp_path, "")
    path.write_bytes("image\tlabel\nimg/0.png\tå\nimg/1.png\tb\n".encode(encoding))
    assert open_dataset(path).train.class_names == ("b", "å")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\nimg/0.png,\xe9\n".encode("latin-1"), r"not UTF-8 text .*line 2.*CSV UTF-8"),
        ("image,label\nimg/0.png,a\n".encode("utf-16-le"), "line 1: a NUL character"),
        (b"\xff\xfei", "not UTF-8 text"),
        (b"image,label\nimg/0.png,a\nimg/1\0.png,b\n", "line 3: a NUL character"),
        (b'image,label\n"img/0.png,a\nimg/1.png,b\n', r"line 2: a quotation mark opens there and has no partner"),
        (b'image,label\nimg/0.png,a\n\nimg/1.png,"b', r"line 4: a quotation mark opens there"),
        (
            b'image,label\nimg/0.png,"a\nimg/1.png,b"\nimg/2.png,c\n',
            r"line 2: the label 'a\\nimg/1\.png,b' has a line break",
        ),
        (b'# x\nimage,label\nimg/0.png,"x\ny"\nimg/1.png\n', r"line 5: 1 values for 2 columns \('image', 'label'\)"),
        (b"image,label\nimg/0.png,a\n# no more\n", "line 3: 1 values for 2 columns"),
        (b"image,\xc2\xa0la\xe2\x80\x8bbel\nimg/0.png,a\nimg/1.png\n", r"\('image', 'la\\u200bbel'\)"),
        (b"PK\x03\x04 and more", "Excel workbook.*CSV UTF-8"),
        (b"", "has no rows"),
        (b"# nothing\n", "has no rows"),
        (b"image,label\n", "no rows below its header"),
    ],
)
def test_text_that_is_wrong(tmp_path: Path, content: bytes, message: str) -> None:
    path = table(tmp_path, "")
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)table\.csv.*{message}"):
        open_dataset(path)


def test_large_cells_and_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    data = open_dataset(table(tmp_path, f"image,label,text\nimg/0.png,a,{'x' * 300_000}\nimg/1.png,b,y\n"))
    assert data.train.labels.tolist() == [0, 1] and csv.field_size_limit() == before
    with pytest.raises(DataError):
        open_dataset(table(tmp_path, 'image,label\nimg/0.png,"a\n'))
    assert csv.field_size_limit() == before


def test_a_table_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, "image,label\nimg/0.png,a\nimg/1.png,b\n")
    monkeypatch.setenv("BIT_LIMITS", f"table_bytes={path.stat().st_size}")
    assert len(open_dataset(path).train) == 2
    monkeypatch.setenv("BIT_LIMITS", f"table_bytes={path.stat().st_size - 1}")
    with pytest.raises(DataError, match="--limits table_bytes=N"):
        open_dataset(path)


@pytest.mark.parametrize("ending", ["xlsx", "XLS", "ods"])
def test_a_workbook_is_to_be_saved_as_text(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"t.{ending}").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"workbook.*CSV UTF-8, beside the images"):
        open_dataset(tmp_path / f"t.{ending}")


def test_a_separator_needs_labels_of_text(tmp_path: Path) -> None:
    for kind in "ab":
        write(tmp_path / "folder" / kind / "0.png")
    with pytest.raises(ConfigError, match="--label-separator has no effect"):
        open_dataset(tmp_path / "folder", label_separator="|")
    path = table(tmp_path, '{"image": "img/0.png", "label": ["a", "b"]}\n', "t.jsonl")
    with pytest.raises(DataError, match=r"holds lists .*--label-separator"):
        open_dataset(path, label_separator="|", multi_label=True)
    path = table(tmp_path, '{"image": "img/0.png", "label": "a|b"}\n{"image": "img/1.png", "label": "b"}\n', "t.jsonl")
    assert open_dataset(path, label_separator="|", multi_label=True).train.labels.tolist() == [[0, 1], [1, -1]]


def test_splits_are_named_in_many_ways(tmp_path: Path) -> None:
    rows = "img/0.png,a,Train \nimg/1.png,b,training\nimg/2.png,a, DEV\nimg/3.png,b,testing\n"
    data = open_dataset(table(tmp_path, f"image,label,Split \n{rows}"))
    assert (len(data.train), len(data.val), len(data.test)) == (2, 1, 1)
    with pytest.raises(DataError, match=r"line 6: in split ''; only train"):
        open_dataset(table(tmp_path, f"image,label,split\n{rows}img/4.png,a,\n"))
