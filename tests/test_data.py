"""Data sets in folders, and what an `ImageSet` promises."""

from __future__ import annotations

import json
import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import ImageSet, native_size, open_dataset, open_images
from bigtransfer.data.layout import in_short, split_in
from bigtransfer.errors import DataError, ImageError

from .data_makers import class_folders, encoded, pattern, write


def names(images: ImageSet) -> list[str]:
    return [images.name(i) for i in range(len(images))]


# --- Folders of class folders


def test_class_folders(tmp_path: Path) -> None:
    class_folders(tmp_path, {"dog": 2, "Zebra": 1, "cat": 3})
    data = open_dataset(tmp_path)
    assert data.val is None and data.test is None and data.notes == ()
    assert data.train.class_names == ("Zebra", "cat", "dog")  # code points: capitals first
    assert data.train.labels.tolist() == [0, 1, 1, 1, 2, 2] and data.train.labels.dtype == np.int64
    assert names(data.train)[:2] == ["Zebra/000.png", "cat/000.png"]
    np.testing.assert_array_equal(data.train.read(0), pattern(12, 16, seed=2))
    assert data.train.size(0) == (12, 16)


def test_nested_folders_and_any_case_of_ending(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "2023" / "may" / "a.PNG")
    write(tmp_path / "cat" / "b.JpEg")
    write(tmp_path / "dog" / "c.tiff")
    data = open_dataset(tmp_path)
    assert names(data.train) == ["cat/2023/may/a.PNG", "cat/b.JpEg", "dog/c.tiff"]
    assert data.train.labels.tolist() == [0, 0, 1]


def test_other_files_are_ignored_and_counted(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    for name in ("cat/.DS_Store", "cat/notes.txt", "README.md", "dog/Thumbs.db", "dog/more.txt", "dog/LICENSE"):
        (tmp_path / name).write_bytes(b"x")
    write(tmp_path / ".cache" / "x.png")
    for folder in ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "cat/@eaDir", "System Volume Information"):
        write(tmp_path / folder / "x.png")
    data = open_dataset(tmp_path)
    assert len(data.train) == 2
    (note,) = data.notes
    assert (
        "not an image" in note
        and "2 .txt" in note
        and "1 .md" in note
        and "1 hidden" in note
        and "1 without ending" in note
    )


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    class_folders(tmp_path / "real", {"cat": 1, "dog": 1})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cat").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "linked" / "puma").symlink_to(tmp_path / "real" / "cat")  # one folder twice is no circle
    (tmp_path / "linked" / "cat" / "up").symlink_to(tmp_path / "linked")
    assert names(open_dataset(tmp_path / "linked").train) == ["cat/000.png", "puma/000.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_devices_and_links_without_end(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "dog" / "self.png").symlink_to("self.png")
    (tmp_path / "dog" / "one").symlink_to("two")
    (tmp_path / "dog" / "two").symlink_to("one")
    (tmp_path / "dog" / "up").symlink_to("..")
    data = open_dataset(tmp_path)
    assert names(data.train) == ["cat/000.png", "dog/000.png"]
    notes = " ".join(data.notes)
    assert "pipes, sockets and devices: cat/pipe.png, cat/zero.png" in notes
    assert "links that lead in circles: dog/one, dog/self.png, dog/two, dog/up" in notes
    assert names(open_images([tmp_path])) == [str(tmp_path / name) for name in names(data.train)]


def test_a_link_to_nothing_is_an_image_that_is_missed(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "dog" / "gone.png").symlink_to("elsewhere.png")
    with pytest.raises(ImageError, match="no such file"):
        open_dataset(tmp_path).train.read(2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000"])
def test_images_without_an_ending(tmp_path: Path, kind: str) -> None:
    class_folders(tmp_path, {"cat": 1})
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "0a1b2c").write_bytes(encoded(pattern(5, 6), kind))
    (tmp_path / "dog" / "README").write_bytes(b"BM and II* are not always what they seem")
    (tmp_path / "dog" / "empty").write_bytes(b"")
    data = open_dataset(tmp_path)
    assert names(data.train) == ["cat/000.png", "dog/0a1b2c"] and data.train.size(1) == (5, 6)
    assert "2 without ending" in data.notes[0]


def test_photos_that_need_something_are_counted_with_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/c.NEF", "dog/d.mp4", "dog/e.svg", "dog/f.xml"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dog" / "g.img_").write_bytes(encoded(pattern(5, 6)))
    monkeypatch.setattr("bigtransfer.data.images.extensions", lambda: frozenset({".png"}))
    notes = open_dataset(tmp_path).notes
    heic, raw, drawing, video, renamed, rest = notes
    assert "2 .heic; to read them: pip install pillow-heif" in heic and "not an image" not in heic
    assert "1 .nef; raw photos" in raw and "1 .svg; convert" in drawing and "1 .mp4; videos" in video
    assert (
        "end with .img_ but hold images" in renamed
        and "not an image" in rest
        and "1 .xml" in rest
        and ".heic" not in rest
    )
    (tmp_path / "cat" / "000.png").unlink()
    with pytest.raises(DataError, match=r"without an image: cat\..*2 \.heic"):
        open_dataset(tmp_path)


def test_what_this_program_wrote_is_no_class(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    runs = {
        "runs/photos-bit": "finetune",
        "runs/photos-boxes": "detect finetune",
        "out": "evaluate",
        "dog/run": "pretrain",
    }
    for folder, command in runs.items():
        write(tmp_path / folder / "tensorboard" / "x.png")
        (tmp_path / folder / "config.json").write_text(json.dumps({"command": command, "asked": {}, "environment": {}}))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lock").touch()
    (tmp_path / "begun" / "split.json").write_text("{}")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / ".plan.json").write_text("{}")
    data = open_dataset(tmp_path)
    assert names(data.train) == ["cat/000.png", "dog/000.png"]
    assert "what `bit` wrote: begun, dog/run, out, runs/photos-bit, runs/photos-boxes, shards" in " ".join(data.notes)
    (tmp_path / "emu").mkdir()  # still a class without an image
    with pytest.raises(DataError, match="without an image: emu"):
        open_dataset(tmp_path)
    (tmp_path / "emu" / "config.json").write_text('{"command": "serve"}')  # somebody else's
    write(tmp_path / "emu" / "0.png")
    assert open_dataset(tmp_path).train.class_names == ("cat", "dog", "emu")


def test_accents_in_two_encodings(tmp_path: Path) -> None:
    """macOS writes an accent apart from its letter (NFD), others as one sign (NFC)."""
    one, other = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    class_folders(tmp_path / "train", {one: 1, "dog": 1})
    class_folders(tmp_path / "val", {"dog": 1, other: 1}, seed=5)
    data = open_dataset(tmp_path)
    assert data.val is not None and data.train.class_names == data.val.class_names == (one, "dog")
    assert sorted(data.val.labels.tolist()) == [0, 1] and data.val.labels[
        [data.val.name(i)[4] == "c" for i in range(2)]
    ].tolist() == [0]
    assert "how accents are encoded" in data.notes[0]
    class_folders(tmp_path / "train", {other: 1}, seed=9)
    assert open_dataset(tmp_path).train.class_counts().tolist() == [2, 1]
    assert open_dataset(tmp_path / "train", class_names=("dog", other)).train.class_counts().tolist() == [1, 2]


def test_classes_that_look_alike_are_remarked_on(tmp_path: Path) -> None:
    class_folders(tmp_path, {"Cat": 1, "cat": 1, "dog": 1})
    data = open_dataset(tmp_path)
    assert len(data.train.class_names) == 3 and "only in case or blanks: 'Cat', 'cat'" in data.notes[0]


def test_one_class_where_nothing_is_trained(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 2})
    with pytest.raises(DataError, match="one class only"):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, min_classes=1).train.class_names == ("cat",)
    write(tmp_path / "cat" / "2023" / "1.png")
    assert len(open_dataset(tmp_path, min_classes=1).train) == 3


def test_classes_in_short() -> None:
    assert in_short(("cat", "two\nlines\x1b[2J")) == "cat, two\\nlines\\x1b[2J"
    assert in_short([str(i) for i in range(1000)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more"
    assert in_short(["x" * 41, "y" * 40]) == f"{'x' * 37}..., {'y' * 40}"


def test_many_classes_of_one_image(tmp_path: Path) -> None:
    content = encoded(pattern(4, 4))
    for number in range(500):
        (tmp_path / f"{number:03d}").mkdir()
        (tmp_path / f"{number:03d}" / "x.png").write_bytes(content)
    train = open_dataset(tmp_path).train
    assert len(train.class_names) == 500 and train.labels.tolist() == list(range(500))


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    for number, split in enumerate(("train", val, "test")):
        class_folders(tmp_path / split, {"cat": 2, "dog": 1}, seed=10 * number)
    data = open_dataset(tmp_path)
    assert data.val is not None and data.test is not None
    assert [len(part) for part in (data.train, data.val, data.test)] == [3, 3, 3]
    assert data.val.class_names == data.train.class_names == ("cat", "dog")
    assert names(data.val)[0] == f"{val}/cat/000.png"
    np.testing.assert_array_equal(data.test.read(2), pattern(12, 16, seed=22))


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("training_set", "test_set"), ("train", "test")),
        (("images_train", "images_test"), ("train", "test")),
        (("seg_train", "seg_test"), ("train", "test")),
        (("Train", "TEST"), ("train", "test")),
        (("TRAIN_IMAGES", "VAL_IMAGES"), ("train", "val")),
        (("train_data", "valid_data", "test_data"), ("train", "val", "test")),
        (("trainData", "testData"), ("train", "test")),
        (("TrainSet", "DevSet"), ("train", "val")),
        (("trainset", "testset"), ("train", "test")),
        (("train2017", "val2017"), ("train", "val")),
        (("ILSVRC2012_img_train", "ILSVRC2012_img_val"), ("train", "val")),
        (("1-training", "2-validation"), ("train", "val")),
        (("cats vs dogs train", "cats vs dogs test"), ("train", "test")),
        (("trainval", "test"), ("train", "test")),
        (("my_training_images",), ("train",)),
    ],
)
@pytest.mark.parametrize("wrapped", ["", "same", "images", "outer"])
def test_folders_that_speak_of_splits(
    tmp_path: Path, folders: tuple[str, ...], splits: tuple[str, ...], wrapped: str
) -> None:
    for number, folder in enumerate(folders):
        inner = {"": "", "outer": "", "same": folder, "images": "images"}[wrapped]
        class_folders(
            tmp_path / ("dataset" if wrapped == "outer" else "") / folder / inner,
            {"ants": 2, "bees": 1},
            seed=9 * number,
        )
    if wrapped == "outer" and len(folders) == 1:
        return
    data = open_dataset(tmp_path)
    for number, split in enumerate(splits):
        part = getattr(data, split)
        assert part.class_names == ("ants", "bees") and part.labels.tolist() == [0, 0, 1], split
        np.testing.assert_array_equal(part.read(2), pattern(12, 16, seed=9 * number + 2))
    assert {split for split in ("train", "val", "test") if getattr(data, split) is not None} == set(splits)
    if not {*folders} <= {"Train", "TEST"} and "trainval" not in folders:
        assert any(folders[0] in note and splits[0] in note for note in data.notes)


@pytest.mark.parametrize(
    "names",
    [
        ("training_shoes", "running_shoes"),
        ("passenger_train", "freight_train"),
        ("dev_board", "test_strip", "car"),
        ("trainer", "tester", "validator"),
        ("contest", "strain"),
        ("evaluation board", "resistor"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_classes_that_speak_of_splits(tmp_path: Path, names: tuple[str, ...], deep: bool) -> None:
    for number, name in enumerate(names):
        for year in (f"{2019 + number}", "more")[: 1 + deep]:
            write(tmp_path / name / (year if deep else "") / f"{number}{year}.png")
    assert open_dataset(tmp_path).train.class_names == tuple(sorted(names))


def test_splits_inside_of_class_folders(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        class_folders(tmp_path / name, {"train": 2, "test": 1}, seed=5 * number)
    data = open_dataset(tmp_path)
    assert (
        data.test is not None
        and data.train.class_names == ("cat", "dog")
        and data.train.labels.tolist() == [0, 0, 1, 1]
    )
    assert names(data.test) == ["cat/test/000.png", "dog/test/000.png"]
    assert "inside the class folders" in data.notes[0]


def test_a_name_that_speaks_of_two_splits_decides_nothing() -> None:
    assert split_in("train_and_test") is None and split_in("photos") is None and split_in("val-2017") == "val"


def test_split_words_inside_of_some_classes_only(tmp_path: Path) -> None:
    for folder in ("cat/train", "cat/test", "dog/indoors"):
        write(tmp_path / folder / "1.png")
    data = open_dataset(tmp_path)
    assert data.train.labels.tolist() == [0, 0, 1] and data.test is None


@pytest.mark.parametrize("outer", [("fold1", "fold2", "fold3"), ("A", "B"), ("photo", "sketch"), ("holdout", "rest")])
def test_the_same_folders_in_every_class_are_suspicious(tmp_path: Path, outer: tuple[str, ...]) -> None:
    for number, name in enumerate(outer):
        class_folders(tmp_path / name, {"ants": 1, "bees": 1} | ({"wasps": 1} if number else {}), seed=3 * number)
    with pytest.raises(DataError, match=rf"folders {', '.join(outer)} of .* hold the same sub-folders: ants, bees"):
        open_dataset(tmp_path)


def test_years_in_every_class_are_remarked_on(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        class_folders(tmp_path / name, {"2023": 1, "2024-05": 1})
    data = open_dataset(tmp_path)
    assert data.train.class_names == ("cat", "dog")
    assert "The outer ones are taken for the classes" in data.notes[0]
    write(tmp_path / "dog" / "loose.png")  # an image beside them: they are no classes
    assert open_dataset(tmp_path).notes == ()


def test_two_folders_for_a_split_by_their_words(tmp_path: Path) -> None:
    for name in ("trainA", "trainB", "testA", "testB"):
        write(tmp_path / name / "1.png")
    with pytest.raises(DataError, match="two folders for one split: testA, testB, trainA, trainB"):
        open_dataset(tmp_path)


def test_an_unlabelled_test_part_in_a_folder_of_its_own(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 1, "dog": 1})
    write(tmp_path / "test" / "test" / "1.png")
    data = open_dataset(tmp_path)
    assert data.test is not None and data.test.labels is None and names(data.test) == ["test/test/1.png"]


def test_classes_called_like_splits(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train": 2, "car": 1, "plane": 1})
    assert open_dataset(tmp_path).train.class_names == ("car", "plane", "train")


def test_unlabelled_images(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.png")
    data = open_dataset(tmp_path)
    assert data.train.labels is None and data.train.class_names == () and len(data.train) == 3
    assert data.train.subset([2]).labels is None


def test_an_unlabelled_test_part_is_fine(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 1, "dog": 1})
    write(tmp_path / "test" / "1.png")
    data = open_dataset(tmp_path)
    assert data.test is not None and data.test.labels is None and data.train.labels is not None


def test_given_class_names_number_the_labels(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    data = open_dataset(tmp_path, class_names=("emu", "dog", "cat"))
    assert data.train.class_names == ("emu", "dog", "cat") and data.train.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match="not in the list of classes: cat"):
        open_dataset(tmp_path, class_names=("emu", "dog"))
    class_folders(tmp_path / "only", {"cat": 2})
    assert open_dataset(tmp_path / "only", class_names=("cat", "dog")).train.labels.tolist() == [0, 0]


def test_classes_that_are_one_number_are_remarked_on(tmp_path: Path) -> None:
    class_folders(tmp_path, {"1": 1, "01": 1, "1.0": 1, "2": 1, "x1": 1})
    (note,) = open_dataset(tmp_path).notes
    assert "one number written in several ways" in note and all(repr(name) in note for name in ("1", "01", "1.0"))
    assert "2" not in note and "x1" not in note


def test_grey(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    assert open_dataset(tmp_path, channels=1).train.read(0).shape == (12, 16, 1)


def test_a_class_missing_in_a_split_is_noted(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 1, "dog": 1, "emu": 1})
    class_folders(tmp_path / "val", {"cat": 1})
    data = open_dataset(tmp_path)
    assert data.val is not None and data.val.class_names == ("cat", "dog", "emu")
    assert data.notes == ("val has no images of dog, emu.",)


# --- Folders that cannot be understood


def test_no_such_data_set_suggests_names() -> None:
    with pytest.raises(DataError, match="Did you mean cifar10"):
        open_dataset("cifra10")
    with pytest.raises(DataError, match="no file or folder no/such/place"):
        open_dataset("no/such/place")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 5000, "a\0b", "lo/op"])
def test_paths_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "lo").symlink_to("lo")
    for opened in (open_dataset, lambda path: open_images([path])):
        with pytest.raises(DataError, match=r"Cannot look at|There is no") as caught:
            opened(f"{tmp_path}/{name}")
        assert len(str(caught.value)) < 1000


def test_messages_hold_no_commands_to_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_dataset(f"{tmp_path}/\x1b[2J")
    assert "\x1b" not in str(caught.value)
    class_folders(tmp_path, {"a\x1b[2J\n": 1, "b": 1})
    (tmp_path / "c\x1b[2J").mkdir()
    with pytest.raises(DataError, match="without an image") as caught:
        open_dataset(tmp_path)
    assert "\x1b" not in str(caught.value) and r"c\x1b[2J" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no images"),
        (lambda root: (root / "cat").mkdir(), "no images"),
        (lambda root: (root / "a.txt").write_text("x"), "no images.*1 .txt"),
        (lambda root: class_folders(root, {"cat": 3}), "one class only, 'cat'"),
        (lambda root: (class_folders(root, {"cat": 1, "dog": 1}), (root / "emu").mkdir()), "without an image: emu"),
        (lambda root: (class_folders(root, {"cat": 1, "dog": 1}), write(root / "x.png")), "lie beside folders"),
        (
            lambda root: (class_folders(root / "train", {"a": 1, "b": 1}), write(root / "train" / "x.png")),
            "lie beside folders",
        ),
        (
            lambda root: (class_folders(root / "train", {"a": 1, "b": 1}), class_folders(root / "rest", {"a": 1})),
            "beside rest",
        ),
        (
            lambda root: [class_folders(root / s, {"a": 1, "b": 1}) for s in ("train", "val", "valid")],
            "two folders for one split",
        ),
        (lambda root: class_folders(root / "test", {"a": 1, "b": 1}), "no train split"),
        (lambda root: class_folders(root / "photos", {"a": 1, "b": 1}), "holds only the folder photos"),
        (
            lambda root: (
                class_folders(root / "train", {"a": 1, "b": 1}),
                class_folders(root / "val", {"a": 1, "B": 1}),
            ),
            "not in train: B and lacks b",
        ),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_files_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="single image"):
        open_dataset(write(tmp_path / "a.png"))
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="its first bytes are of no such file"):
        open_dataset(tmp_path / "a.zip")
    (tmp_path / "a.rar").write_bytes(b"Rar!\x1a\7\0")
    with pytest.raises(DataError, match=r"is a RAR archive.*Unpack it"):
        open_dataset(tmp_path / "a.rar")
    (tmp_path / "a.xyz").write_bytes(b"?")
    with pytest.raises(DataError, match="not a kind of data set"):
        open_dataset(tmp_path / "a.xyz")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "dog").chmod(0)
    try:
        with pytest.raises(DataError, match="Cannot read the folder"):
            open_dataset(tmp_path)
    finally:
        (tmp_path / "dog").chmod(0o700)


# --- ImageSet


def test_subset_keeps_order_labels_and_names(tmp_path: Path) -> None:
    images = open_dataset(class_folders(tmp_path, {"cat": 3, "dog": 3})).train
    some = images.subset([5, 0, 2])
    assert (
        len(some) == 3
        and some.labels.tolist() == [1, 0, 0]
        and names(some) == ["dog/002.png", "cat/000.png", "cat/002.png"]
    )
    assert names(some.subset(np.array([1]))) == ["cat/000.png"]
    assert len(images.subset([])) == 0
    np.testing.assert_array_equal(some.read(0), images.read(5))
    assert images.class_counts().tolist() == [3, 3] and some.class_counts().tolist() == [2, 1]


def test_it_pickles(tmp_path: Path) -> None:
    images = open_dataset(class_folders(tmp_path, {"cat": 3, "dog": 3})).train
    copy = pickle.loads(pickle.dumps(images))
    assert names(copy) == names(images) and copy.labels.tolist() == images.labels.tolist()
    np.testing.assert_array_equal(copy.read(4), images.read(4))


def test_errors_name_the_file(tmp_path: Path) -> None:
    images = open_dataset(class_folders(tmp_path, {"cat": 1, "dog": 1})).train
    (tmp_path / "dog" / "000.png").write_bytes(b"")
    (tmp_path / "cat" / "000.png").unlink()
    for i, reason in ((0, "no such file"), (1, "empty")):
        for function in (images.read, images.size):
            with pytest.raises(ImageError, match=reason) as caught:
                function(i)
            assert caught.value.name == str(tmp_path / images.name(i))


def test_file_names_beyond_ascii(tmp_path: Path) -> None:
    write(tmp_path / "Grün & weiß" / "日本.png")
    write(tmp_path / "b" / os.fsdecode(b"\xff\xfe.png"))
    images = open_dataset(tmp_path).train
    assert images.class_names == ("Grün & weiß", "b")
    assert images.read(0).shape == images.read(1).shape == (12, 16, 3)


# --- Native size


def test_native_size_is_the_median(tmp_path: Path) -> None:
    for number, (height, width) in enumerate([(10, 40), (20, 30), (30, 20), (31, 21), (90, 90)]):
        write(tmp_path / f"{number}.png", height=height, width=width)
    images = open_dataset(tmp_path).train
    assert native_size(images) == (30, 30)


def test_of_many_images_64_are_looked_at_and_always_the_same(tmp_path: Path) -> None:
    for number in range(70):
        write(tmp_path / f"{number:02}.png", height=1 + number, width=101 - number)
    images = open_dataset(tmp_path).train
    looked = np.sort(np.random.default_rng(0).permutation(70)[:64])
    assert native_size(images) == (int(np.median(1 + looked)), int(np.median(101 - looked)))
    assert native_size(images) != native_size(images.subset(range(64)))


def test_native_size_passes_over_bad_images(tmp_path: Path) -> None:
    write(tmp_path / "0.png", height=10, width=40)
    (tmp_path / "1.png").write_bytes(b"")
    images = open_dataset(tmp_path).train
    assert native_size(images) == (10, 40)
    with pytest.raises(DataError, match=r"1.png: the file is empty"):
        native_size(images.subset([1]))


# --- Images to predict


def test_open_images_takes_files_folders_and_patterns(tmp_path: Path, monkeypatch) -> None:
    class_folders(tmp_path / "photos", {"one": 2})
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    (tmp_path / "noending").write_bytes(encoded(pattern(5, 6)))
    monkeypatch.chdir(tmp_path)
    images = open_images(["noending", "photos", "*.png", "a.png"])
    assert names(images) == ["noending", "photos/one/000.png", "photos/one/001.png", "a.png", "b.png"]
    assert images.labels is None and images.read(0).shape == (5, 6, 3)
    monkeypatch.chdir("/")
    assert images.read(4).shape == (12, 16, 3)  # the set remembers where it was opened
    assert open_images([tmp_path / "a.png"]).name(0) == str(tmp_path / "a.png")


def test_open_images_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image, folder or match for .*none"):
        open_images([tmp_path / "none*"])
    with pytest.raises(DataError, match="no images in"):
        open_images([tmp_path])


# --- Real images


def test_trashnet_packed_and_unpacked(shared_data: Path, tmp_path: Path) -> None:
    import tarfile

    packed = open_dataset(shared_data / "trashnet.tar")
    with tarfile.open(shared_data / "trashnet.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = open_dataset(tmp_path / "trashnet")
    assert len(packed.train) == 2527
    assert packed.train.class_names == ("cardboard", "glass", "metal", "paper", "plastic", "trash")
    assert names(packed.train) == names(unpacked.train)
    assert packed.train.labels.tolist() == unpacked.train.labels.tolist()
    assert native_size(packed.train) == native_size(unpacked.train) == (84, 112)
    for i in range(0, 2527, 500):
        np.testing.assert_array_equal(packed.train.read(i), unpacked.train.read(i))


def test_flowers_have_their_splits(shared_data: Path) -> None:
    data = open_dataset(shared_data / "flowers12.tar")
    assert data.test is not None and data.val is None
    assert data.train.class_counts().tolist() == [60] * 12 and data.test.class_counts().tolist() == [20] * 12
    assert native_size(data.train) == (224, 224)
