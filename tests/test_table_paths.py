"""Which files the image column of a table means, and which table of a folder says what is on its images."""

from __future__ import annotations

import base64
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import checks, open_dataset
from bigtransfer.data.tables import embedded
from bigtransfer.errors import DataError, ImageError

from .data_makers import encoded, pattern, table, write


def images(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write(root / name, seed=seed)
    return root


def put(root: Path, name: str, *lines: str) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name


def names(part) -> list[str]:
    return [part.name(i) for i in range(len(part))]


# --- One file, however it is written


@pytest.mark.parametrize(
    "other",
    [
        "./img/0.png",
        "img//0.png",
        "img/../img/0.png",
        "img/./0.png",
        "./img/../img//0.png",
        "img\\0.png",
        "img/%30.png",
        " img/0.png ",
    ],
)
def test_one_image_with_two_labels_is_an_error_however_it_is_written(tmp_path: Path, other: str) -> None:
    rows = ["image,label", "img/1.png,b", "img/0.png,a", f"{other},b"]
    with pytest.raises(DataError, match=r"lists 'img/0\.png' twice, with labels 'a' and 'b' \(line 3 and line 4\)"):
        open_dataset(table(tmp_path, "\n".join(rows)))
    with pytest.raises(DataError, match=r"'img/0\.png' twice, with labels 'a' and 'b'"):  # whichever comes first
        open_dataset(table(tmp_path, "\n".join([rows[0], f"{other},a", "img/0.png,b"])))


def test_one_image_in_two_folders_that_are_one(tmp_path: Path) -> None:
    path = table(tmp_path, f"image,label\nimg/0.png,a\n{tmp_path}/img/0.png,b\n")
    with pytest.raises(DataError, match=r"'img/0\.png' twice"):
        open_dataset(path)
    os.symlink(tmp_path / "img", tmp_path / "link")
    with pytest.raises(DataError, match=r"'link/0\.png' twice"):
        open_dataset(table(tmp_path, "image,label\nlink/0.png,a\nimg/0.png,b\n"))


def test_repeated_rows_count_once(tmp_path: Path) -> None:
    rows = "img/0.png,a\nimg/1.png,b\n./img/0.png,a\nimg//1.png,b \nimg/2.png,a\n"
    data = open_dataset(table(tmp_path, f"image,label\n{rows}"))
    assert names(data.train) == ["img/0.png", "img/1.png", "img/2.png"] and data.train.labels.tolist() == [0, 1, 0]
    assert "2 rows repeat an image with the same label; they count once." in data.notes[-1]
    several = open_dataset(
        table(tmp_path, "image,label\nimg/0.png,a|b\nimg/1.png,b\nimg/0.png,b|a\n"),
        label_separator="|",
        multi_label=True,
    )
    assert several.train.labels.tolist() == [[0, 1], [1, -1]]


def test_one_image_in_two_parts_is_an_error(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label,split\nimg/0.png,a,train\nimg/1.png,b,train\n./img/0.png,a,test\n")
    with pytest.raises(DataError, match=r"'img/0\.png' twice, in train and in test \(line 2 and line 4\)"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("written", "note"),
    [
        ("img\\0.png", r"1 paths are written with \\ for /"),
        ("img/a%20b.png", "1 paths are percent-encoded"),
        ("IMG/0.PNG", "1 paths differ from the names of files and folders in upper and lower case"),
        ("img/0.PNG", "1 paths differ from the names of files and folders in upper and lower case"),
        ("img/cafe\u0301.png", "1 paths differ .* in the form of their letters"),
        ("img/0", "1 images are named without their ending"),
        ("img/cut.v2", "1 images are named without their ending"),
    ],
)
def test_files_are_found_under_other_writings_with_a_note(tmp_path: Path, written: str, note: str) -> None:
    found = {"img\\0.png": "img/0.png", "IMG/0.PNG": "img/0.png", "img/0.PNG": "img/0.png", "img/0": "img/0.png"}
    images(tmp_path, "img/a b.png", "img/caf\u00e9.png", "img/cut.v2.jpg")
    expected = {
        **found,
        "img/a%20b.png": "img/a b.png",
        "img/cafe\u0301.png": "img/caf\u00e9.png",
        "img/cut.v2": "img/cut.v2.jpg",
    }
    data = open_dataset(table(tmp_path, f"image,label\n{written},a\nimg/1.png,b\n"))
    assert names(data.train) == [expected[written], "img/1.png"]
    (said,) = data.notes
    assert re.search(note, said)


def test_a_name_as_it_stands_goes_before_what_it_may_mean(tmp_path: Path) -> None:
    images(tmp_path, "img/a%20b.png", "img/a b.png", "img/A.png", "img/a.png", "img\\0.png")
    rows = ["img/a%20b.png,a", "img/A.png,b", "img/a.png,b", "img\\0.png,a"]
    data = open_dataset(table(tmp_path, "\n".join(["image,label", *rows])))
    assert names(data.train) == ["img/a%20b.png", "img/A.png", "img/a.png", "img\\0.png"] and data.notes == ()


@pytest.mark.parametrize(("files", "written"), [(("i/A.png", "i/a.png"), "i/a.PNG"), (("i/7.png", "i/7.jpg"), "i/7")])
def test_what_may_mean_two_files_is_an_error(tmp_path: Path, files: tuple[str, str], written: str) -> None:
    images(tmp_path, *files)
    with pytest.raises(DataError, match=rf"line 3: '{written}' may be any of .*{files[1]}"):
        open_dataset(table(tmp_path, f"image,label\nimg/0.png,b\n{written},a\n"))


def test_file_addresses(tmp_path: Path) -> None:
    images(tmp_path, "a b.png")
    root = tmp_path.as_posix()
    data = open_dataset(
        table(tmp_path, f"image,label\nfile://{root}/a%20b.png,a\nfile://localhost{root}/img/0.png,b\n")
    )
    assert data.train.read(0).shape == (12, 16, 3) and data.train.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("https://x.org/0.png", r"line 3: 'https://x\.org/0\.png' is an address.*download the images first"),
        ("s3://bucket/0.png", "line 3: 's3://bucket/0.png' is an address"),
        ("file://host/0.png", "line 3: file://host/0.png is not the address of a file on this machine"),
        ("file:///a%00.png", "line 3: .*not the address"),
        ("", "1 of 2 rows name no image in the column 'image': line 3"),
        (" ", "1 of 2 rows name no image"),
    ],
)
def test_what_cannot_be_a_file(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(table(tmp_path, f"image,label\nimg/0.png,a\n{value},b\n"))


def test_windows_paths_of_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Windows, computer: write paths relative"):
        open_dataset(table(tmp_path, "image,label\nC:\\data\\0.png,a\nC:\\data\\1.png,b\n"))


def test_missing_images_are_counted_and_left_out_like_unreadable_ones(tmp_path: Path) -> None:
    rows = "img/0.png,a\nimg/7.png,b\nimg/1.png,b\nimg/8.png,a\n"
    data = open_dataset(table(tmp_path, f"image,label\n{rows}"))
    assert (
        "table.csv lists 2 of 4 images that do not exist: 'img/7.png' (line 3), 'img/8.png' (line 5)." in data.notes[0]
    )
    with pytest.raises(ImageError, match="there is no such file"):
        data.train.read(1)
    kept, bad = checks.check(data.train, skip_bad=True)
    assert names(kept) == ["img/0.png", "img/1.png"] and [error.name[-5:] for error in bad] == ["7.png", "8.png"]


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "img" / "x.png").mkdir(parents=True)
    data = open_dataset(table(tmp_path, "image,label\nimg/0.png,a\nimg/1.png,b\nimg/x.png,a\nimg,b\n"))
    assert "2 of 4 images that do not exist" in data.notes[0]


# --- Images in the table


@pytest.mark.parametrize("address", ["", "data:image/png;base64,"])
def test_images_as_base64(tmp_path: Path, address: str) -> None:
    cells = [base64.b64encode(encoded(pattern(12, 16, seed=seed))).decode() for seed in range(2)]
    rows = [f'"{address}{cell}",{label}' for cell, label in zip(cells, "ab", strict=True)]
    data = open_dataset(put(tmp_path, "t.csv", "image,label", *rows, '"!!!",a', f'"{address}AAAA",b'))
    assert data.train.labels.tolist() == [0, 1, 0, 1] and names(data.train)[:2] == ["t/000000", "t/000001"]
    other = pickle.loads(pickle.dumps(data.train))
    for part in (data.train, other):
        np.testing.assert_array_equal(part.read(1), pattern(12, 16, seed=1))
        assert part.size(0) == (12, 16)
        with pytest.raises(ImageError, match=r"t\.csv: t/000002: the cell holds no Base64 text"):
            part.read(2)
        with pytest.raises(ImageError, match="t/000003"):
            part.read(3)


def test_text_is_an_image_from_sixty_characters_on() -> None:
    """No image file is smaller, and shorter names of files may look like Base64."""
    smallest = base64.b64encode(b"\xff\xd8\xff" + bytes(42)).decode()
    assert len(smallest) == 60 and embedded.is_embedded(smallest)
    assert not embedded.is_embedded(smallest[:59])


def test_an_empty_cell_before_the_images(tmp_path: Path) -> None:
    cell = base64.b64encode(encoded(pattern(12, 16))).decode()
    data = open_dataset(put(tmp_path, "t.csv", "image,label", ",a", f"{cell},b"))
    assert data.train.read(1).shape == (12, 16, 3)
    with pytest.raises(ImageError, match="t/000000: the cell holds no Base64 text"):
        data.train.read(0)


def test_base64_as_jpeg_of_the_other_alphabet_without_padding(tmp_path: Path) -> None:
    cells = [base64.urlsafe_b64encode(encoded(pattern(12, 16, seed), "JPEG")).decode().rstrip("=") for seed in range(2)]
    data = open_dataset(
        put(tmp_path, "t.csv", "picture,kind,more", f"{cells[0]},a,x", f"{cells[1]},b,y"), label_column="kind"
    )
    assert data.train.read(1).shape == (12, 16, 3)


def test_a_picture_in_a_cell_is_never_shown_whole(tmp_path: Path) -> None:
    cell = base64.b64encode(encoded(pattern(12, 16))).decode()
    for header in ("image,label", "label,image"):
        with pytest.raises(DataError) as caught:
            open_dataset(put(tmp_path, "t.csv", header, f"{cell},x", "a.png,y", f"{cell},z,extra"))
        assert len(str(caught.value)) < 500 + len(str(tmp_path))
    path = put(tmp_path, "t.csv", "path,x", f"no{cell},a")
    with pytest.raises(DataError) as caught:
        open_dataset(path)
    assert cell not in str(caught.value)


# --- Where the images lie


@pytest.mark.parametrize("folder", ["train", "images", "train_images", "jpeg/train", "whatever"])
@pytest.mark.parametrize("ending", ["", ".png"])
def test_images_in_a_folder_beside_the_table(tmp_path: Path, folder: str, ending: str) -> None:
    images(tmp_path, *(f"{folder}/{i}.png" for i in range(3)), "test/0.png", "test/5.png", "valid_images/1.png")
    path = put(tmp_path, "train.csv", "id,label", *(f"{i}{ending},{'ab'[i % 2]}" for i in range(3)))
    for spec in (path, tmp_path):
        data = open_dataset(spec)
        assert names(data.train) == [f"{folder}/{i}.png" for i in range(3)] and data.train.labels.tolist() == [0, 1, 0]
        assert any(f"looked for in {folder}/." in note for note in data.notes)
        assert any("3 images are named without their ending" in note for note in data.notes) == (not ending)
    assert any("3 images in" in note and "left out, such as test/0.png" in note for note in data.notes)


def test_images_of_another_part_are_not_taken(tmp_path: Path) -> None:
    images(tmp_path, "train/0.png", "train/1.png", "test/2.png", ".thumbs/2.png")
    data = open_dataset(put(tmp_path, "train.csv", "id,label", "0,a", "1,b", "2,a"))
    assert "1 of 3 images that do not exist: '2' (line 4)" in data.notes[-1]


def test_images_in_several_folders_beside_the_table(tmp_path: Path) -> None:
    images(tmp_path, "part_1/a.jpg", "part_1/b.jpg", "part_2/c.jpg")
    path = put(tmp_path, "labels.csv", "image_id,dx", "a,x", "b,y", "c,x", "c,x")
    for spec in (path, tmp_path):
        data = open_dataset(spec, label_column="dx")
        assert names(data.train) == ["part_1/a.jpg", "part_1/b.jpg", "part_2/c.jpg"]
    images(tmp_path, "part_2/a.jpg")
    with pytest.raises(DataError, match=r"line 2: 'a' may be any of part_1/a\.jpg, part_2/a\.jpg"):
        open_dataset(path, label_column="dx")


def test_the_tables_own_folder_goes_first(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png", "train/0.png", "train/1.png", "train/2.png")
    assert names(open_dataset(put(tmp_path, "train.csv", "image,label", "0.png,a", "1.png,b")).train) == [
        "0.png",
        "1.png",
    ]


def test_the_tables_own_folder_goes_first_though_it_lacks_some(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "train/0.png", "train/1.png")
    data = open_dataset(put(tmp_path, "train.csv", "image,label", "0.png,a", "1.png,b"))
    assert data.train.name(0) == "0.png" and "1 of 2 images that do not exist" in data.notes[0]


def test_absolute_paths_are_not_looked_for_elsewhere(tmp_path: Path) -> None:
    images(tmp_path, "train/no-such-0.png", "train/no-such-1.png")
    with pytest.raises(DataError, match=r"there is no file /no-such-0\.png"):
        open_dataset(put(tmp_path, "train.csv", "image,label", "/no-such-0.png,a", "/no-such-1.png,b"))


def test_other_files_of_an_images_name(tmp_path: Path) -> None:
    images(tmp_path, "img/5.png", "img/6.png")
    put(tmp_path, "img/5.txt", "words")
    (tmp_path / "img" / "a.png").mkdir()
    data = open_dataset(table(tmp_path, "image,label\nimg/5,a\nimg/6,b\nimg/5.png/x.png,a\nimg/a,b\n"))
    assert names(data.train)[:2] == ["img/5.png", "img/6.png"] and "2 of 4 images that do not exist" in data.notes[-1]


def test_names_of_numbers_in_json(tmp_path: Path) -> None:
    images(tmp_path, "train/0.png", "train/1.png")
    data = open_dataset(put(tmp_path, "t.jsonl", '{"id": 0, "label": "a"}', '{"id": 1.0, "label": "b"}'))
    assert names(data.train) == ["train/0.png", "train/1.png"]


# --- Which columns


def test_columns_are_found_by_what_they_hold(tmp_path: Path) -> None:
    data = open_dataset(table(tmp_path, "which,what\nimg/0.png,a\nimg/1.png,b\nimg/2.png,a\nimg/3.png,a\n"))
    assert data.train.labels.tolist() == [0, 1, 0, 0]
    assert (
        "images are taken from the column 'which'" in data.notes[0]
        and "labels are taken from the column 'what'" in data.notes[1]
    )


@pytest.mark.parametrize(
    "header", ["image, label", " Image ,LABEL", "\u200bimage,\u00a0label\ufeff", "File-Name,Class Name"]
)
def test_names_of_columns_are_understood_in_any_writing(tmp_path: Path, header: str) -> None:
    data = open_dataset(table(tmp_path, f"more,{header}\n,img/0.png,a\n,img/1.png,b\n"))
    assert data.train.labels.tolist() == [0, 1] and data.notes == ()


def test_of_several_usual_names_the_likelier_is_taken(tmp_path: Path) -> None:
    path = table(tmp_path, "category,tags,label,file,image\np,x,a,none,img/0.png\nq,y,b,none,img/1.png\n")
    data = open_dataset(path)
    assert data.train.class_names == ("a", "b") and data.train.name(0) == "img/0.png"
    path = table(tmp_path, "image,Label,label\nimg/0.png,x,a\nimg/1.png,y,b\n")
    assert open_dataset(path).train.class_names == ("x", "y")


def test_a_column_that_is_asked_for_may_be_written_loosely(tmp_path: Path) -> None:
    path = table(tmp_path, "image,Kind ,kind of\nimg/0.png,a,x\nimg/1.png,b,y\n")
    assert open_dataset(path, label_column="kind").train.class_names == ("a", "b")
    assert open_dataset(path, label_column="KIND-OF").train.class_names == ("x", "y")
    path = table(tmp_path, "image,Kind,kind\nimg/0.png,a,x\nimg/1.png,b,y\n")
    assert open_dataset(path, label_column="kind").train.class_names == ("x", "y")
    with pytest.raises(DataError, match="no column 'KIND'"):
        open_dataset(path, label_column="KIND")


def test_a_column_whose_values_repeat_is_taken_for_labels(tmp_path: Path) -> None:
    images(tmp_path, *(f"img/{i}.png" for i in range(6)))
    rows = [f"img/{i}.png,{'abc'[i % 3]}" for i in range(6)]
    assert open_dataset(put(tmp_path, "t.csv", "image,what", *rows)).train.class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="none of the columns label"):
        open_dataset(put(tmp_path, "t.csv", "image,what", *rows[:5]))


def test_a_column_of_captions_is_not_taken_for_labels(tmp_path: Path) -> None:
    rows = [f"img/{i}.png,caption {i}" for i in range(4)]
    with pytest.raises(DataError, match="none of the columns label"):
        open_dataset(table(tmp_path, "\n".join(["image,text", *rows])))


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = table(tmp_path, "image,label,label ,x,x\nimg/0.png,a,b,1,2\nimg/1.png,b,a,1,2\n")
    with pytest.raises(DataError, match=r"table\.csv has 2 columns called 'label'\. Rename all but one"):
        open_dataset(path)
    with pytest.raises(DataError, match="2 columns called 'x'"):
        open_dataset(path, label_column="x")


@pytest.mark.parametrize("first", ["img/0.png", "img/9.png", "no/0.jpeg"])
def test_a_table_without_header(tmp_path: Path, first: str) -> None:
    data = open_dataset(table(tmp_path, f"{first},a\nimg/1.png,b\nimg/2.png,a\nimg/3.png,a\n"))
    assert len(data.train) == 4 and data.train.labels.tolist() == [0, 1, 0, 0]
    assert "no header line; its columns are called 1, 2, ..." in data.notes[0]
    path = table(tmp_path, f"{first},a,x\nimg/1.png,b,y\n")
    with pytest.raises(DataError, match="it has 1, 2, 3"):
        open_dataset(path)
    assert open_dataset(path, label_column="3").train.class_names == ("x", "y")
    with pytest.raises(DataError, match="1 of 2 rows have no label: line 1"):
        open_dataset(table(tmp_path, f"{first},\nimg/1.png,b\n"))
    with pytest.raises(DataError, match="1 of 2 rows have no label: line 3"):
        open_dataset(table(tmp_path, f"# by hand\n\n{first},\nimg/1.png,b\n"))


def test_a_header_is_a_header_though_a_file_has_its_name(tmp_path: Path) -> None:
    images(tmp_path, "image.png", "label.png")
    assert len(open_dataset(table(tmp_path, "image,label\nimg/0.png,a\nimg/1.png,b\n")).train) == 2


@pytest.mark.parametrize("asked", ["image_column", "label_column", "split_column"])
def test_a_header_that_has_a_column_asked_for_is_a_header(tmp_path: Path, asked: str) -> None:
    images(tmp_path, "which.png")
    columns = {"image_column": "which", "label_column": "what", "split_column": "where"}
    path = table(tmp_path, "which,what,where\nimg/0.png,a,train\nimg/1.png,b,train\n")
    assert len(open_dataset(path, **columns).train) == 2
    header = {"image_column": "which,label", "label_column": "which,what", "split_column": "which,label,where"}[asked]
    rows = "".join(f"img/{i}.png,{'ab'[i]}{',train' if 'where' in header else ''}\n" for i in range(2))
    assert len(open_dataset(table(tmp_path, f"{header}\n{rows}"), **{asked: columns[asked]}).train) == 2


def test_parts_from_the_folders_of_the_paths(tmp_path: Path) -> None:
    images(tmp_path, "train/0.png", "train/1.png", "valid/2.png", "test/3.png")
    rows = ["train/0.png,a", "valid/2.png,a", "train/1.png,b", "test/3.png,b"]
    data = open_dataset(put(tmp_path, "list.csv", "image,label", *rows))
    assert [names(part) for part in (data.train, data.val, data.test)] == [
        ["train/0.png", "train/1.png"],
        ["valid/2.png"],
        ["test/3.png"],
    ]
    assert any("folders test, train, valid are taken for the parts" in note for note in data.notes)
    images(tmp_path, "img/4.png")
    assert open_dataset(put(tmp_path, "list.csv", "image,label", *rows, "img/4.png,a")).val is None


def test_images_that_do_not_exist_say_nothing_of_parts(tmp_path: Path) -> None:
    images(tmp_path, "train/0.png", "train/1.png", "valid/2.png")
    rows = ["train/0.png,a", "train/1.png,b", "valid/2.png,a"]
    # Neither is a folder without images of the data set, so that its other folders are none of parts,
    data = open_dataset(put(tmp_path, "list.csv", "image,label", *rows, "img/4.png,b"))
    assert data.val is not None and names(data.val) == ["valid/2.png"]
    # nor is a part one without images.
    data = open_dataset(put(tmp_path, "list.csv", "image,label", "train/0.png,a", "train/1.png,b", "valid/4.png,a"))
    assert data.val is None and not any("taken for the parts" in note for note in data.notes)


# --- A folder with its tables


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_beside_images(tmp_path: Path, name: str) -> None:
    images(tmp_path, "0.png", "1.png", "2.png", "extra.png")
    rows = [("0.png", "b"), ("1.png", "a"), ("2.png", "b")]
    if name.endswith("csv"):
        put(tmp_path, name, "file_name,label", *(f"{file},{label}" for file, label in rows))
    else:
        put(tmp_path, name, *(f'{{"file_name": "{file}", "label": "{label}"}}' for file, label in rows))
    data = open_dataset(tmp_path)
    assert names(data.train) == ["0.png", "1.png", "2.png"] and data.train.labels.tolist() == [1, 0, 1]
    assert data.notes == (
        f"The labels come from {name}.",
        f"1 images in {tmp_path} are in no table and are left out, such as extra.png.",
    )


def test_metadata_in_the_folders_of_the_parts(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        images(tmp_path, f"{part}/0.png", f"{part}/x/1.png")
        put(tmp_path, f"{part}/metadata.csv", "file_name,label", "0.png,b", "x/1.png,a")
    data = open_dataset(tmp_path)
    assert names(data.train) == ["train/0.png", "train/x/1.png"] and names(data.val) == [
        "validation/0.png",
        "validation/x/1.png",
    ]
    assert data.val.labels.tolist() == [1, 0] and data.notes == (
        "The labels come from train/metadata.csv, validation/metadata.csv.",
    )


def test_kaggle_folder(tmp_path: Path) -> None:
    images(tmp_path, "train/0a.jpg", "train/1b.jpg", "train/2c.jpg", "test/9z.jpg")
    put(tmp_path, "train.csv", "id,label", "0a,x", "1b,y", "2c,x")
    put(tmp_path, "test.csv", "id", "9z")
    put(tmp_path, "sample_submission.csv", "id,label", "9z,x")
    data = open_dataset(tmp_path)
    assert data.val is data.test is None and data.train.labels.tolist() == [0, 1, 0]
    assert data.notes[0] == "The labels come from train.csv." and data.notes[1].startswith(
        "test.csv is not used: it has none of"
    )


@pytest.mark.parametrize("name", ["cell_labels.csv", "labels.csv", "metadata-2.csv"])
def test_a_table_that_calls_itself_one_of_labels_goes_before_folders(name: str, tmp_path: Path) -> None:
    images(tmp_path, "one/0.png", "one/1.png", "two/2.png")
    put(tmp_path, name, "image,label", "one/0.png,x", "one/1.png,y", "two/2.png,y")
    assert open_dataset(tmp_path).train.class_names == ("x", "y")
    (tmp_path / name).rename(tmp_path / "cells.csv")
    assert open_dataset(tmp_path).train.class_names == ("one", "two")


def test_a_table_for_each_part(tmp_path: Path) -> None:
    images(tmp_path, *(f"images/{i}.png" for i in range(6)))
    for part, (one, other) in {"train": (0, 1), "val": (2, 3), "test": (4, 5)}.items():
        put(
            tmp_path,
            f"{part}_labels.csv",
            "image,label",
            f"{one}.png,7",
            f"{other}.png,{8 if part == 'train' else '8.0'}",
        )
    data = open_dataset(tmp_path)
    assert [names(part) for part in (data.train, data.val, data.test)] == [
        [f"images/{i}.png", f"images/{i + 1}.png"] for i in (0, 2, 4)
    ]
    assert data.train.class_names == ("7", "8") and data.test.labels.tolist() == [0, 1]
    put(tmp_path, "val_labels.csv", "image,label", "2.png,7", "1.png,8")
    with pytest.raises(
        DataError,
        match=r"'images/1\.png' twice, in train and in val \(train_labels\.csv, line 3 and val_labels\.csv, line 3\)",
    ):
        open_dataset(tmp_path)
    put(tmp_path, "val_labels.csv", "image,label", "2.png,7", "3.png,")
    data = open_dataset(put(tmp_path, "train_more.csv", "image,label", "0.png,7", "1.png,8").parent / "train_more.csv")
    assert len(data.train) == 2
    with pytest.raises(DataError, match=r"several tables of labels: train_labels\.csv, train_more\.csv\. Give one"):
        open_dataset(tmp_path)


def test_a_table_of_words_beside_one_of_lists(tmp_path: Path) -> None:
    images(tmp_path, *(f"images/{i}.png" for i in range(4)))
    put(tmp_path, "train.jsonl", '{"image": "0.png", "label": "b"}', '{"image": "1.png", "label": "a"}')
    put(tmp_path, "val.jsonl", '{"image": "2.png", "label": ["a", "b"]}', '{"image": "3.png", "label": ["b"]}')
    data = open_dataset(tmp_path, multi_label=True)
    assert data.train.labels.tolist() == [[1, -1], [0, -1]] and data.val.labels.tolist() == [[0, 1], [1, -1]]
    put(tmp_path, "val.jsonl", '{"image": "2.png", "label": 0.5}', '{"image": "3.png", "label": 1}')
    put(tmp_path, "train.jsonl", '{"image": "0.png", "label": 1}', '{"image": "1.png", "label": 2}')
    with pytest.raises(DataError, match=r"val\.jsonl, column 'label', line 1: the label 0\.5 is a number"):
        open_dataset(tmp_path)


def test_tables_of_images_beside_tables_of_paths(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png")
    cell = base64.b64encode(encoded(pattern(12, 16))).decode()
    put(tmp_path, "train.csv", "image,label", "0.png,a", "1.png,b")
    put(tmp_path, "val.csv", "image,label", f"{cell},a", f"{cell},b")
    with pytest.raises(DataError, match="hold images, others their paths"):
        open_dataset(tmp_path)


def test_labels_of_all_parts_are_understood_together(tmp_path: Path) -> None:
    images(tmp_path, *(f"images/{i}.png" for i in range(4)))
    put(tmp_path, "train.csv", "image,label", "0.png,a\u00a0b", "1.png,c")
    put(tmp_path, "test.csv", "image,label", "2.png,a b", "3.png,c")
    data = open_dataset(tmp_path)
    assert data.train.class_names == ("a\u00a0b", "c") and data.test.labels.tolist() == [0, 1]
    put(tmp_path, "train.csv", "image,label", "0.png,1", "1.png,x")
    put(tmp_path, "test.csv", "image,label", "2.png,1", "3.png,01")
    with pytest.raises(DataError, match="test has classes that are not in train: 01"):
        open_dataset(tmp_path)
    put(tmp_path, "test.csv", "image,label", "2.png,1|x", "3.png,y")
    with pytest.raises(DataError, match=r"labels: classes such as '1\|x' are several labels"):
        open_dataset(tmp_path)


def test_folders_of_classes_go_before_tables(tmp_path: Path) -> None:
    images(tmp_path, "boots/0.png", "boots/1.png", "sandals/0.png", "sandals/1.png")
    put(
        tmp_path,
        "labels.csv",
        "image,label",
        *(f"{kind}/{i}.png,{kind}" for kind in ("boots", "sandals") for i in range(2)),
    )
    put(
        tmp_path,
        "prices.csv",
        "image,label",
        *(f"{kind}/{i}.png,{i}" for kind in ("boots", "sandals") for i in range(2)),
    )
    put(
        tmp_path,
        "train.csv",
        "image,text",
        *(f"{kind}/{i}.png,nice" for kind in ("boots", "sandals") for i in range(2)),
    )
    put(tmp_path, "train_bad.csv", "image,label", "gone.png,x")
    data = open_dataset(tmp_path)
    assert data.train.class_names == ("boots", "sandals") and len(data.train) == 4
    assert not any("labels come from" in note for note in data.notes)
    put(
        tmp_path,
        "labels.csv",
        "image,label",
        *(f"{kind}/{i}.png,{i}" for kind in ("boots", "sandals") for i in range(2)),
    )
    assert open_dataset(tmp_path).train.class_names == ("0", "1")  # the table says something else than the folders


def test_a_folder_whose_only_table_is_wrong(tmp_path: Path) -> None:
    images(tmp_path, "train/0.png", "train/1.png")
    put(tmp_path, "train.csv", "id,label", "0,a", "1,")
    with pytest.raises(DataError, match=r"train\.csv, column 'label': 1 of 2 rows have no label: line 3"):
        open_dataset(tmp_path)
    put(tmp_path, "other.csv", "id,label", "0,a", "1,")
    with pytest.raises(DataError, match=r"train\.csv, column 'label'"):
        open_dataset(tmp_path)


def test_a_folder_of_images_with_a_table_of_something_else(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png")
    put(tmp_path, "sample_submission.csv", "id,label", "0,a", "1,b")
    assert open_dataset(tmp_path).train.labels is None
    put(tmp_path, ".labels.csv", "id,label", "0,a", "1,b")
    assert open_dataset(tmp_path).train.labels is None
    put(tmp_path, "one.csv", "id,label", "0,a", "1,b")
    put(tmp_path, "two.csv", "id,label", "0,a", "1,b")
    with pytest.raises(DataError, match=r"several tables of labels: one\.csv, two\.csv"):
        open_dataset(tmp_path)
