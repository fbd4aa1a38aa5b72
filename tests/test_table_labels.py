"""What the values of a label column mean: one class or two, a number, nothing, several labels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import open_dataset
from bigtransfer.data.tables import labels
from bigtransfer.errors import DataError

from .data_makers import table


def of(tmp_path: Path, values: list[str], **arguments):
    """A CSV whose first rows have these labels."""
    text = "".join(f'img/{i}.png,"{value}"\n' for i, value in enumerate(values))
    return open_dataset(table(tmp_path, f"image,label\n{text}"), **arguments)


@pytest.mark.parametrize(
    ("values", "names", "numbers", "note"),
    [
        (["blue", "blue ", " blue", "red"], ("blue", "red"), [0, 0, 0, 1], r"'blue' = 'blue ' = ' blue'\.$"),
        (
            ["blue", "blue\u00a0", "\u200bblue", "\ufeffred"],
            ("blue", "red"),
            [0, 0, 0, 1],
            r"'blue' = 'blue\\xa0' = '\\u200bblue'",
        ),
        (["b\u200blue", "blue", "blue", "red"], ("blue", "red"), [0, 0, 0, 1], r"'b\\u200blue' = 'blue'"),
        (["light blue", "light\u00a0blue", "light  blue", "red"], ("light blue", "red"), [0, 0, 0, 1], "light"),
        (["caf\u00e9", "cafe\u0301", "red", "red"], ("caf\u00e9", "red"), [0, 0, 1, 1], r"'caf\u00e9' = 'cafe\\u0301'"),
    ],
)
def test_labels_that_look_the_same_are_one_class(
    tmp_path: Path, values: list[str], names: tuple[str, ...], numbers: list[int], note: str
) -> None:
    data = of(tmp_path, values)
    assert data.train.class_names == names and data.train.labels.tolist() == numbers
    (said,) = data.notes
    assert "column 'label': labels that look the same are taken for one class" in said
    assert re.search(note, said)


def test_of_names_that_look_the_same_the_most_frequent_is_taken(tmp_path: Path) -> None:
    assert of(tmp_path, ["a\u00a0b", "a b", "a\u00a0b", "c"]).train.class_names == ("a\u00a0b", "c")
    assert of(tmp_path, ["a\u00a0b", "a b", "a b", "c"]).train.class_names == ("a b", "c")


def test_names_that_differ_in_case_are_two_classes_with_a_note(tmp_path: Path) -> None:
    data = of(tmp_path, ["Blue", "blue", "dark-blue", "dark blue"])
    assert data.train.class_names == ("Blue", "blue", "dark blue", "dark-blue")
    assert "kept apart: 'Blue' and 'blue', 'dark-blue' and 'dark blue'" in data.notes[0]
    assert of(tmp_path, ["blue", "red", "blue", "red"]).notes == ()


@pytest.mark.parametrize("empty", ["", "  ", "nan", "NaN", "<NA>", "#N/A", "\u200b"])
def test_nothing_is_no_class(tmp_path: Path, empty: str) -> None:
    with pytest.raises(DataError, match=r"table\.csv, column 'label': 2 of 4 rows have no label: line 3, line 5"):
        of(tmp_path, ["a", empty, "b", empty])


def test_words_that_may_mean_nothing_are_names_with_a_note(tmp_path: Path) -> None:
    data = of(tmp_path, ["None", "a", "NA", "a"])
    assert data.train.class_names == ("NA", "None", "a") and "'NA', 'None' is taken for the name" in data.notes[0]


def test_only_a_part_that_is_not_learned_from_may_be_without_labels(tmp_path: Path) -> None:
    text = "image,label,split\nimg/0.png,a,train\nimg/1.png,b,train\nimg/2.png,,{0}\nimg/3.png,{1},{0}\n"
    data = open_dataset(table(tmp_path, text.format("test", "")))
    assert data.test is not None and len(data.test) == 2 and data.test.labels is None
    with pytest.raises(DataError, match="1 of 4 rows have no label: line 4"):
        open_dataset(table(tmp_path, text.format("test", "a")))
    with pytest.raises(DataError, match="2 of 2 rows have no label: line 2, line 3"):
        open_dataset(table(tmp_path, "image,label\nimg/0.png,\nimg/1.png,\n"))
    with pytest.raises(DataError, match="2 of 4 rows have no label: line 4, line 5"):
        open_dataset(table(tmp_path, text.format("train", "")))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["10", "9", "100", "-1"], ("-1", "9", "10", "100")),
        (["1.0", "2.0", "10.0", "2"], ("1", "2", "10")),
        (["007", "7", "10", "7"], ("007", "10", "7")),
        (["-0", "1", "0", "2"], ("-0", "0", "1", "2")),
        (["1.5", "x", "10", "9"], ("1.5", "10", "9", "x")),
        (["1" * 19, "2", "3", "3"], ("1" * 19, "2", "3")),
        (["123456789012345678", "9", "9", "9"], ("9", "123456789012345678")),
        (["\u0661", "2", "10", "2"], ("10", "2", "\u0661")),
        (["True", "False", "True", "False"], ("False", "True")),
    ],
)
def test_whole_numbers_are_classes_in_their_order(tmp_path: Path, values: list[str], names: tuple[str, ...]) -> None:
    assert of(tmp_path, values).train.class_names == names


@pytest.mark.parametrize("value", ["0.37", "1e-3", ".5", "inf", "-1.25"])
def test_quantities_are_no_classes(tmp_path: Path, value: str) -> None:
    with pytest.raises(DataError, match=rf"line 3: the label '{value}' is a number with a fraction.*--label-column"):
        of(tmp_path, ["1", value, "2", "0.25"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["a|b", "a", "c", "c"],
            r"such as 'a\|b' are several labels in one cell \('a', 'b'\).*--label-separator '\|'.*without \|",
        ),
        (["a|b", "a|c", "d|b", "d|c"], r"'a\|b' are several"),
        (["a;b", "a", "c", "c"], "--label-separator ';'"),
        (["a, b", "a", "b", "b, a"], r"'a, b' are several.*\('a', 'b'\)"),
        (["ants small", "ants", "small", "small ants"], "--label-separator ' '.*without blanks"),
        (["ants/small", "ants", "small", "small/ants"], "--label-separator '/'"),
        (["ants & small", "ants", "small", "small & ants"], "--label-separator '&'"),
        (["ants+small", "ants", "small", "small+ants"], r"--label-separator '\+'"),
        (["16 0", "0", "25", "7"], "'16 0' are several"),
        (["16,0", "0", "16,25", "0"], "'16,0' are several"),
        (["['a', 'b']", "['a']", "[]", "['b']"], "are lists in brackets.*--label-separator"),
    ],
)
def test_combined_classes_are_refused(tmp_path: Path, values: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        of(tmp_path, values)


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        (["cherry", "tomato", "cherry tomato", "plum"], "'cherry tomato'"),
        (["ants", "bees", "ants small", "bees small"], "'ants small'"),
        (["ants big", "ants small", "bees big", "bees small"], "'ants big'"),
        (["brown bear", "polar bear", "bear", "cat"], None),
        (["Quercus alba", "Quercus rubra", "Acer rubrum", "Acer alpinum"], None),
        (["tench, Tinca tinca", "goldfish, Carassius auratus", "crane", "crane, machine"], None),
        (["a|b", "c", "d", "e"], None),
        (["a b", "b a", "c d", "e f"], "'a b'"),
    ],
)
def test_what_may_be_combined_is_asked_about(tmp_path: Path, values: list[str], asked: str | None) -> None:
    data = of(tmp_path, values)
    assert data.train.class_names == tuple(sorted(values))
    assert len(data.notes) == (asked is not None)
    assert asked is None or f"does {asked} stand for several labels" in data.notes[0]


def test_a_few_names_made_of_other_names_are_no_error(tmp_path: Path) -> None:
    """As among many thousand classes: apple, tree, apple tree."""
    names = ["fig", "apple", "tree", "fig tree", "apple tree", *(f"kind{i} thing{i}" for i in range(3))]
    column = labels.Encoded(names, np.arange(len(names)))
    assert labels.classes(column, "t", str, None, None).names == names
    with pytest.raises(DataError, match="several labels"):
        labels.classes(labels.Encoded(names[:-2], np.arange(6)), "t", str, None, None)


def test_labels_are_separated_and_cleaned(tmp_path: Path) -> None:
    data = of(tmp_path, ["b; a", "a ;;nan", "c\u00a0", ""], label_separator=";", multi_label=True)
    assert data.train.class_names == ("a", "b", "c")
    assert data.train.labels.tolist() == [[0, 1], [0, -1], [2, -1]]
    assert data.notes == ("1 images of train have an empty list of labels; they are left out.",)
    data = of(tmp_path, ["10 9", "9", "9  2", "2"], label_separator=" ", multi_label=True)
    assert data.train.class_names == ("2", "9", "10") and data.train.labels.tolist() == [
        [1, 2],
        [1, -1],
        [0, 1],
        [0, -1],
    ]


def test_a_name_has_an_end(tmp_path: Path) -> None:
    assert of(tmp_path, ["x" * 500, "b"]).train.class_names == ("b", "x" * 500)
    with pytest.raises(DataError, match=r"line 2: the label 'x{60}'\.\.\. \(501 characters\) is too long"):
        of(tmp_path, ["x" * 501, "b"])


# --- One column per class


def test_columns_of_0_and_1_are_the_classes(tmp_path: Path) -> None:
    data = open_dataset(table(tmp_path, "image,rust,scab\nimg/0.png,1,0\nimg/1.png,0,1\nimg/2.png,1.0,false\n"))
    assert data.train.class_names == ("rust", "scab") and data.train.labels.tolist() == [0, 1, 0]
    assert "columns rust, scab say 0 or 1; they are taken for the classes, of which each image has one" in data.notes[0]


def test_columns_of_0_and_1_with_several_or_none(tmp_path: Path) -> None:
    path = table(tmp_path, "image,rust,scab\nimg/0.png,1,1\nimg/1.png,0,1\nimg/2.png,0,0\n")
    data = open_dataset(path, multi_label=True)
    assert data.train.class_names == ("rust", "scab") and data.train.labels.tolist() == [[0, 1], [1, -1]]
    assert data.notes[-1] == "1 images of train have an empty list of labels; they are left out."
    with pytest.raises(DataError, match="several labels each"):
        open_dataset(path)


def test_two_names_of_many_that_share_their_words_are_no_sign_of_several_labels() -> None:
    names = ["a b", "b a", "c d", "e f", "g h"]
    assert labels.classes(labels.Encoded(names, np.arange(5)), "t", str, None, None).notes == ()


@pytest.mark.parametrize(
    ("rows", "numbers"), [(("1,1", "0,1"), [[0, 1], [1, -1]]), (("1,0", "0,1", "0,0"), [[0], [1]])]
)
def test_one_row_with_two_classes_or_none_makes_them_several(
    tmp_path: Path, rows: tuple[str, ...], numbers: list
) -> None:
    text = "".join(f"img/{i}.png,{row}\n" for i, row in enumerate(rows))
    assert open_dataset(table(tmp_path, f"image,rust,scab\n{text}"), multi_label=True).train.labels.tolist() == numbers


def test_columns_of_0_and_1_are_chosen(tmp_path: Path) -> None:
    path = table(tmp_path, "image,id,rust,scab\nimg/0.png,x,1,0\nimg/1.png,y,0,1\nimg/2.png,z,1,0\n")
    with pytest.raises(
        DataError, match=r"none of the columns label.*say 0 or 1 are the classes: --label-column rust,scab"
    ):
        open_dataset(path)
    assert open_dataset(path, label_column="scab, rust").train.labels.tolist() == [0, 1, 0]
    with pytest.raises(DataError, match=r"line 2: the column 'id' says 'x'; a column for one class says 0 or 1"):
        open_dataset(path, label_column="id,rust")
    with pytest.raises(DataError, match="no column 'none'"):
        open_dataset(path, label_column="none,rust")


def test_a_column_without_an_image_of_its_class(tmp_path: Path) -> None:
    data = open_dataset(table(tmp_path, "image,a,b,c\nimg/0.png,1,0,0\nimg/1.png,0,0,1\n"))
    assert data.train.class_names == ("a", "c") and data.train.labels.tolist() == [0, 1]


# --- JSON lines


def test_json_lines(tmp_path: Path) -> None:
    text = '{"file_name": "img/0.png", "label": 1}\n\n{"label": 0.0, "file_name": "img/1.png", "more": {"x": []}}\n'
    data = open_dataset(table(tmp_path, text, "t.jsonl"))
    assert data.train.class_names == ("0", "1") and data.train.labels.tolist() == [1, 0]


def test_json_lines_with_several_labels(tmp_path: Path) -> None:
    text = (
        '{"image": "img/0.png", "label": ["b ", "a"]}\n{"image": "img/1.png", "label": ["b"]}\n{"image": "img/2.png"}\n'
    )
    data = open_dataset(table(tmp_path, text, "t.jsonl"), multi_label=True)
    assert data.train.class_names == ("a", "b") and data.train.labels.tolist() == [[0, 1], [1, -1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "img/0.png", "label": "a"}\n{"image": \n', r"t\.jsonl, line 2 is not JSON"),
        ('{"image": "img/0.png", "label": "a"}\n[1]\n', r"line 2: \[1\] where an object is needed"),
        ('{"image": "img/0.png", "label": {"a": 1}}\n', r"line 1: the label {'a': 1} is neither a word nor a number"),
        (
            '{"image": "img/0.png", "label": []}\n{"image": "img/1.png", "label": [0.5, 1]}\n',
            r"line 2: the label 0\.5 is a number",
        ),
        ('{"image": "img/0.png", "label": [["a"]]}\n', r"line 1: the label \['a'\] is neither"),
        (
            '{"image": "img/0.png", "label": "a"}\n{"image": "img/1.png", "label": NaN}\n',
            "1 of 2 rows have no label: line 2",
        ),
        ('{"image": "img/0.png", "label": "\\ud800"}\n', r"line 1: the label '\\ud800' is not UTF-8"),
        ('{"image": "img/0.png", "label": "a\\u0000"}\n', "line 1: .*NUL"),
        ('{"image": "img/0\\u0000.png", "label": "a"}\n', r"line 1: 'img/0\\x00.png' cannot be the name of a file"),
        ('{"image": ["x"], "label": "a"}\n', r"line 1: the image \['x'\] is neither a path nor a number"),
        ('{"image": null, "label": "a"}\n', "1 of 1 rows name no image in the column 'image': line 1"),
        ("\n", "no rows"),
        ("[" * 100_000, "line 1 is nested too deeply"),
    ],
)
def test_json_lines_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(table(tmp_path, text, "t.jsonl"))
