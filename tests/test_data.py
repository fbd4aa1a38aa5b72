"""Data sets in folders, and what an `ImageSet` promises."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import ImageSet, native_size, open_dataset, open_images
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
    write(tmp_path / "__MACOSX" / "x.png")
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
    with pytest.raises(DataError, match="unpack it"):
        open_dataset(tmp_path / "a.zip")
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
    assert native_size(images, sample=2) == native_size(images, sample=2)


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
