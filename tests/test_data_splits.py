"""Validation splits, few images per class, split files, and the checks before training."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import ImageSet, Splits, checks, open_dataset
from bigtransfer.data.checks import Copy, check, contradictory, file_traits, find_copies, leaked
from bigtransfer.data.layout import Part
from bigtransfer.data.sources import Arrays, Files
from bigtransfer.data.splits import hold_out, imbalance, in_turn, load_split, per_class, save_split
from bigtransfer.errors import ConfigError, DataError, UnreadableImages

from .data_makers import class_folders, encoded, pattern, write


def labelled(*counts: int, seed: int = 0) -> ImageSet:
    """A set with that many images of each class, in mixed order; the files do not exist."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    store = Files("nowhere", (f"{i}.png" for i in range(len(labels))))
    return ImageSet(store, np.arange(len(labels)), labels, tuple(f"class{i}" for i in range(len(counts))))


def names(images: ImageSet | None) -> list[str]:
    assert images is not None
    return [images.name(i) for i in range(len(images))]


# --- hold_out


@pytest.mark.parametrize("counts", [(10, 10), (100, 50, 3), (1, 1, 40), (2, 2, 2, 2), (7,) * 30, (1000, 1)])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_hold_out_is_stratified_and_keeps_every_class(counts: tuple[int, ...], fraction: float) -> None:
    images = labelled(*counts)
    train, val = hold_out(images, fraction, seed=1)
    assert sorted(names(train) + names(val)) == sorted(names(images))
    assert (train.class_counts() >= 1).all()
    room = np.maximum(np.array(counts) - 1, 0)
    exact = fraction * np.array(counts)
    if (exact <= room).all():
        small = (np.array(counts) >= 3) & (exact < 1) if max(counts) >= 10 * min(counts) else np.zeros(1)
        assert 0 <= len(val) - max(1, round(fraction * len(images))) <= small.sum()
    assert (np.abs(val.class_counts() - exact)[exact <= room] <= 1).all()
    assert names(val) == [name for name in names(images) if name in set(names(val))]  # the set's order


def test_something_of_each_class_is_held_out_where_they_are_imbalanced() -> None:
    """Else a model that always answers with the large class would be perfect on them."""
    train, val = hold_out(labelled(500, 4, 3, 2, 1), 0.1)
    assert val.class_counts().tolist()[1:] == [1, 1, 0, 0] and train.class_counts().tolist()[1:] == [3, 2, 2, 1]
    assert hold_out(labelled(30, 4), 0.05)[1].class_counts().tolist() == [2, 0]


def test_imbalance() -> None:
    assert imbalance(labelled(39, 4)) is None and imbalance(labelled(5, 5, 0)) is None
    found = imbalance(dataclasses.replace(labelled(7, 3000, 40), class_names=("a", "b", "c")))
    assert str(found) == "3,000 images of 'b', 7 of 'a'"
    images = labelled(40, 4)
    assert images.labels is not None and imbalance(images) is not None
    assert imbalance(dataclasses.replace(images, labels=images.labels[:, None])) is None
    assert imbalance(dataclasses.replace(images, labels=None)) is None


def test_hold_out_depends_on_the_seed_alone() -> None:
    images = labelled(20, 30, 40)
    first, again, other = (hold_out(images, 0.2, seed=seed)[1] for seed in (5, 5, 6))
    assert names(first) == names(again) != names(other)


def test_hold_out_draws_evenly() -> None:
    images = labelled(6, 6)
    drawn = [name for seed in range(300) for name in names(hold_out(images, 1 / 6, seed)[1])]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 12 and counts.sum() == 600 and counts.min() > 25 and counts.max() < 80  # 50 each expected


def test_hold_out_refuses() -> None:
    for fraction in (0, 1, -0.1, 1.5):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            hold_out(labelled(5, 5), fraction)
    with pytest.raises(DataError, match="No class has two images"):
        hold_out(labelled(1, 1), 0.5)
    with pytest.raises(DataError, match="no labels"):
        hold_out(ImageSet(Files(".", ["a"]), np.arange(1), None, ()), 0.5)


# --- per_class


def test_per_class_takes_k_of_each() -> None:
    images = labelled(10, 20, 5)
    some = per_class(images, 5, seed=3)
    assert some.class_counts().tolist() == [5, 5, 5] and some.class_names == images.class_names
    assert len(set(names(some))) == 15
    assert names(some) == names(per_class(images, 5, seed=3)) != names(per_class(images, 5, seed=4))
    assert set(names(per_class(images, 2, seed=3))) < set(names(some))  # a smaller k is part of a larger one


def test_classes_with_too_few_images() -> None:
    images = labelled(10, 3, 1)
    with pytest.raises(DataError, match=r"class1 \(3\), class2 \(1\)"):
        per_class(images, 5)
    assert per_class(images, 5, allow_fewer=True).class_counts().tolist() == [5, 3, 1]
    with pytest.raises(ConfigError, match="At least 1"):
        per_class(images, 0)


# --- Split files


def test_a_split_file_repeats_the_split(tmp_path: Path) -> None:
    class_folders(tmp_path / "d" / "train", {"cat": 6, "dog": 6})
    class_folders(tmp_path / "d" / "test", {"cat": 1, "dog": 2})
    data = open_dataset(tmp_path / "d")
    train, val = hold_out(data.train, 0.25)
    save_split(tmp_path / "run" / "split.json", Splits(per_class(train, 2), val, data.test))
    assert set(json.loads((tmp_path / "run" / "split.json").read_text())) == {"train", "val", "test"}

    class_folders(tmp_path / "d" / "train", {"ant": 1, "cat": 9})  # a new class and new images move every index
    loaded = load_split(tmp_path / "run" / "split.json", open_dataset(tmp_path / "d"))
    assert (
        names(loaded.train) == names(per_class(train, 2))
        and names(loaded.val) == names(val)
        and names(loaded.test) == names(data.test)
    )
    assert loaded.train.class_names == ("ant", "cat", "dog") and loaded.train.labels.tolist() == [1, 1, 2, 2]

    (tmp_path / "d" / "test" / "dog" / "001.png").unlink()
    with pytest.raises(DataError, match=r"names images that the data set does not have: test/dog/001\.png"):
        load_split(tmp_path / "run" / "split.json", open_dataset(tmp_path / "d"))


def test_a_split_file_with_an_unlabelled_test_part(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 2, "dog": 2})
    write(tmp_path / "test" / "1.png")
    data = open_dataset(tmp_path)
    save_split(tmp_path / "split.json", data)
    loaded = load_split(tmp_path / "split.json", data)
    assert loaded.test is not None and loaded.test.labels is None and names(loaded.test) == ["test/1.png"]
    assert loaded.train.labels is not None and loaded.val is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", " is not JSON"),
        ("[" * 100_000, " is nested too deeply"),
        ("[]", ": expected object, got array"),
        ("{}", ": object missing required field train"),
        ('{"train": 3}', ": train: expected array, got int"),
        ('{"train": "abc"}', ": train: expected array, got str"),
        ('{"train": ["a", 1]}', ": train[1]: expected str, got int"),
        ('{"val": ["a"]}', ": object missing required field train"),
        ('{"train": []}', ": train: expected array of length >= 1"),
        ('{"train": ["a"], "test": {"a": 1}}', ": test: expected array | null, got object"),
    ],
)
def test_files_that_are_no_split_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(DataError, match="It is not a split file as a run writes it") as caught:
        load_split(path, Splits(labelled(2, 2)))
    assert str(caught.value).startswith(f"{path}{said}")


def test_a_split_file_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no split file .*none\.json"):
        load_split(tmp_path / "none.json", Splits(labelled(2, 2)))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"Cannot read .*pipe\.json"):
        load_split(tmp_path / "pipe.json", Splits(labelled(2, 2)))


def test_a_split_file_must_not_mix_train_and_test(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"train": ["0.png", "1.png"], "test": ["1.png"]}')
    with pytest.raises(DataError, match=r"in train and in another split: 1\.png"):
        load_split(tmp_path / "split.json", Splits(labelled(2, 2)))


# --- Checks


def damaged(root: Path) -> ImageSet:
    class_folders(root, {"cat": 4, "dog": 3})
    (root / "cat" / "001.png").write_bytes(b"")
    (root / "cat" / "003.png").write_bytes(encoded(pattern(64, 64))[:500])
    (root / "dog" / "002.png").write_bytes(b"<html></html>")
    return open_dataset(root).train


def test_every_bad_image_is_found_with_its_reason(tmp_path: Path) -> None:
    _, errors = check(damaged(tmp_path), skip_bad=True)
    reasons = {"cat/001.png": "empty", "cat/003.png": "truncated", "dog/002.png": "web page"}
    assert [error.name for error in errors] == [str(tmp_path / name) for name in reasons]
    assert [reason in error.reason for error, reason in zip(errors, reasons.values(), strict=True)] == [True] * 3


def test_check_stops_or_skips(tmp_path: Path, capsys, monkeypatch) -> None:
    images = damaged(tmp_path)
    with pytest.raises(UnreadableImages, match="3 of 7 images cannot be read") as caught:
        check(images)
    assert len(caught.value.images) == 3 and "--skip-bad-images" in str(caught.value)
    check(images, skip_bad=True, progress=True)
    assert capsys.readouterr().err == ""  # a file is no place for a bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    kept, errors = check(images, skip_bad=True, progress=True)
    assert names(kept) == ["cat/000.png", "cat/002.png", "dog/000.png", "dog/001.png"] and len(errors) == 3
    assert kept.labels.tolist() == [0, 0, 1, 1]
    assert "Checking images" in capsys.readouterr().err
    assert check(kept) == (kept, [])
    unlabelled = dataclasses.replace(images, labels=None, class_names=())
    kept, errors = check(unlabelled, skip_bad=True)
    assert names(kept) == ["cat/000.png", "cat/002.png", "dog/000.png", "dog/001.png"] and len(errors) == 3
    with pytest.raises(DataError, match="No image can be read"):
        check(unlabelled.subset([1]), skip_bad=True)


def test_a_class_must_not_vanish(tmp_path: Path) -> None:
    images = open_dataset(class_folders(tmp_path, {"cat": 2, "dog": 1})).train
    (tmp_path / "dog" / "000.png").write_bytes(b"")
    with pytest.raises(DataError, match="No image of dog can be read"):
        check(images, skip_bad=True)


def test_copies(tmp_path: Path) -> None:
    images = open_dataset(class_folders(tmp_path, {"cat": 3, "dog": 3})).train
    (tmp_path / "dog" / "001.png").write_bytes((tmp_path / "cat" / "002.png").read_bytes())
    (tmp_path / "dog" / "002.png").unlink()
    cats, dogs = images.subset([0, 1, 2]), images.subset([3, 4, 5])
    (tmp_path / "dog" / "000.png").write_bytes((tmp_path / "cat" / "000.png").read_bytes())
    first = (
        Copy(part="train", name="cat/000.png", classes=("cat",)),
        Copy(part="test", name="dog/000.png", classes=("dog",)),
    )
    second = (
        Copy(part="train", name="cat/002.png", classes=("cat",)),
        Copy(part="test", name="dog/001.png", classes=("dog",)),
    )
    assert find_copies({"train": cats, "test": dogs}) == [[*first], [*second]]
    assert leaked(first) and contradictory(first)
    ((one, other),) = find_copies({"train": cats, "val": cats.subset([1])})
    assert (one.part, one.name, other.part, other.name) == ("train", "cat/001.png", "val", "cat/001.png")
    assert leaked([one, other]) and not contradictory([one, other])
    within = find_copies({"train": images.subset([4, 3, 1, 0, 2])})
    assert [[copy.name for copy in group] for group in within] == [
        ["dog/000.png", "cat/000.png"],
        ["dog/001.png", "cat/002.png"],
    ]
    assert not any(map(leaked, within)) and all(map(contradictory, within))
    assert find_copies({"train": cats}) == []
    unlabelled = dataclasses.replace(dogs, labels=None, class_names=())
    ((_, other), _) = find_copies({"train": cats, "test": unlabelled})
    assert other.classes == () and not contradictory([first[0], other])
    (tmp_path / "cat" / "001.png").unlink()  # the second that cannot be read: nothing is known of either
    assert len(find_copies({"train": images})) == 2


def test_what_tells_the_bytes_of_images_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_dataset(class_folders(tmp_path / "photos", {"cat": 2, "dog": 2})).train
    (tmp_path / "photos" / "dog" / "000.png").write_bytes((tmp_path / "photos" / "cat" / "000.png").read_bytes())
    (tmp_path / "photos" / "dog" / "001.png").unlink()
    first, second, copied, gone = checks.contents(images)
    assert first == copied != second and gone == "" and {len(first), len(second)} == {16}
    monkeypatch.setattr(checks, "_COMPARED", 3)
    assert checks.contents(images) == [""] * 4
    assert checks.contents(images.subset([1, 0, 2])) == [second, first, copied]
    np.save(tmp_path / "pixels.npy", np.zeros((2, 4, 4, 3), dtype=np.uint8))
    decoded = ImageSet(Arrays([tmp_path / "pixels.npy"], ["a", "b"]), np.arange(2), np.arange(2), ("x", "y"))
    assert checks.contents(decoded) == ["", ""], "what their files were is not known"


def test_copies_with_several_labels(tmp_path: Path) -> None:
    for name in ("0.png", "1.png", "2.png", "3.png"):
        write(tmp_path / name, seed=0)
    (tmp_path / "t.csv").write_text("image,label\n0.png,a|b\n1.png,b|a\n2.png,b\n3.png,b\n")
    images = open_dataset(tmp_path / "t.csv", label_separator="|", multi_label=True).train
    (group,) = find_copies({"train": images})
    assert [copy.classes for copy in group] == [("a", "b"), ("a", "b"), ("b",), ("b",)]
    turned = dataclasses.replace(group[0], classes=("b", "a"))
    assert not contradictory([group[0], turned])  # in whatever order
    assert not contradictory(group[:2]) and contradictory(group[1:3]) and not contradictory(group[2:])


def test_trashnet_is_whole(shared_data: Path) -> None:
    images = open_dataset(shared_data / "trashnet.tar").train
    train, val = hold_out(images, 0.1)
    assert len(val) == 253
    assert check(val) == (val, [])
    few = per_class(train, 10)
    assert few.class_counts().tolist() == [10] * 6
    assert find_copies({"train": few, "val": val}) == []


# --- Several labels per image


def test_several_labels(tmp_path: Path) -> None:
    lines = [f"{write(tmp_path / f'{i}.png', seed=i).name},{'ab'[i % 2]}|c" for i in range(10)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *lines]))
    data = open_dataset(tmp_path / "t.csv", label_separator="|", multi_label=True)
    train, val = hold_out(data.train, 0.3, seed=1)
    assert len(train) == 7 and len(val) == 3 and not set(names(train)) & set(names(val))
    with pytest.raises(DataError, match="several labels each"):
        per_class(data.train, 1)
    save_split(tmp_path / "split.json", Splits(train, val))
    again = load_split(tmp_path / "split.json", data)
    assert again.val is not None and again.val.labels.tolist() == val.labels.tolist()
    kept, bad = check(data.train)
    assert len(kept) == 10 and not bad


def test_labels_named_twice_count_once() -> None:
    part = Part()
    for row, names in enumerate((["b", "c", "c"], ["c", "a", "c", "a"], ["b"])):
        part.add(row, list(names))
    assert part.labels({"a": 0, "b": 1, "c": 2}).tolist() == [[1, 2], [0, 2], [1, -1]]


# --- in_turn


def test_every_beginning_is_a_fair_sample() -> None:
    images = labelled(60, 20, 1, 20, 0)
    order = in_turn(images, seed=3)
    assert sorted(order) == list(range(101))
    assert images.labels is not None
    seen = images.labels[order]
    assert set(seen[:4]) == {0, 1, 2, 3}, "each class once at first, as far as there are images of it"
    for count in range(4, 102):
        counts = np.bincount(seen[:count], minlength=5)
        assert np.abs(counts - np.array([60, 20, 1, 20, 0]) * count / 101).max() <= 3, count
    assert np.array_equal(order, in_turn(images, seed=3)) and not np.array_equal(order, in_turn(images, seed=4))
    even = labelled(*(30,) * 9)
    assert even.labels is not None
    counts = np.bincount(even.labels[in_turn(even, seed=0)[:32]], minlength=9)
    assert sorted(counts) == [3] * 4 + [4] * 5, "of classes of one size as many of each as can be"
    assert sorted(in_turn(dataclasses.replace(even, labels=None), seed=0)) == list(range(270))


# --- Traits of files


def test_what_files_say_without_being_decoded(tmp_path: Path) -> None:
    for number, (name, size, kind) in enumerate(
        [("a", (20, 30), "PNG"), ("b", (30, 20), "JPEG"), ("b", (8, 4), "PNG")]
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        # All named alike: what counts is what the file is.
        (tmp_path / name / f"{number}.jpg").write_bytes(encoded(pattern(*size), kind))
    (tmp_path / "b" / "9.jpg").write_bytes(b"none")
    traits, labels = file_traits(open_dataset(tmp_path).train)
    assert list(labels) == [0, 1, 1]
    assert {name: list(values) for name, values in traits.items()} == {
        "height and width": ["20 x 30", "30 x 20", "8 x 4"],
        "number of pixels": [600, 600, 32],
        "shape (width by height)": [1.5, pytest.approx(2 / 3), 0.5],
        "file type": ["PNG", "JPEG", "PNG"],
    }
