"""Tar files: WebDataset shards and packed class folders."""

from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.data import open_dataset, open_images
from bigtransfer.data.layout import split_of_file
from bigtransfer.data.remote import Cache
from bigtransfer.data.shards import expand
from bigtransfer.errors import DataError, ImageError

from .data_makers import class_folders, encoded, pattern, write


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


@pytest.mark.parametrize("pattern", ["{0..99999999}.tar", "{0..999}{0..999}{0..9}.tar", "{1.." + "9" * 5000 + "}.tar"])
def test_patterns_of_names_without_end(pattern: str) -> None:
    with pytest.raises(DataError, match="more than 1,000,000 files"):
        expand(pattern, CACHE)


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
    for part, label in (("val", "a"), ("train", ["a", "b"])):
        tar(tmp_path / "d" / f"{part}.tar", {"0.png": image(0), "0.json": json.dumps({"label": label}).encode()})
    data = open_dataset(tmp_path / "d", multi_label=True)
    assert data.val is not None
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([[0, 1]], [[0, -1]]), "one of several is enough"
    path = tar(tmp_path / "y.tar", {"a.png": image(0), "a.json": b'{"label": ["a", 0.5]}'})
    with pytest.raises(DataError, match="has no label under"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": image(0), "a.cls": b"1", "b.png": image(1)}, r"x\.tar: b\.png has no label"),
        ({"a.png": image(0), "a.json": b"{"}, r"a\.json cannot be read as a label"),
        ({"a.png": image(0), "a.cls": b"1"}, "one class only"),
        ({"a.txt": b"1"}, "no images"),
        ({}, "no images"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(tar(tmp_path / "x.tar", members))


def test_unlabelled_shards_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        tar(tmp_path / f"{i}.tar", {"a.png": image(0)})
    with pytest.raises(DataError, match="not WebDataset shards with labels"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz", "tar.xz", "tar.bz2", "tar.zst", "zip"])
def test_packed_class_folders(tmp_path: Path, ending: str) -> None:
    class_folders(tmp_path / "pets" / "train", {"cat": 2, "dog": 1})
    class_folders(tmp_path / "pets" / "test", {"cat": 1, "dog": 1}, seed=5)
    (tmp_path / "pets" / "LICENSE.txt").write_text("free")
    (tmp_path / "pets" / "train" / "cat" / "._000.png").write_bytes(b"x")
    mode = {"gz": "w:gz", "tgz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}.get(ending.rpartition(".")[2], "w")
    if ending == "zip":
        with zipfile.ZipFile(tmp_path / "pets.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted((tmp_path / "pets").rglob("*")):
                packed.write(path, path.relative_to(tmp_path))
    else:
        with tarfile.open(tmp_path / f"pets.{ending}", mode) as file:
            file.add(tmp_path / "pets", "pets")
    if ending == "tar.zst":
        zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
        path = tmp_path / "pets.tar.zst"
        path.write_bytes(zstd.compress(path.read_bytes()))
    data = open_dataset(tmp_path / f"pets.{ending}", cache=tmp_path / "cache")
    assert data.test is not None and data.train.labels.tolist() == [0, 0, 1] and data.test.labels.tolist() == [0, 1]
    assert data.train.name(2) == "train/dog/000.png"
    np.testing.assert_array_equal(data.test.read(1), pattern(12, 16, seed=6))
    assert "1 hidden" in data.notes[0] and "1 .txt" in data.notes[0]
    assert (tmp_path / "cache").exists() == (ending != "tar")


def test_class_folders_deep_inside(tmp_path: Path) -> None:
    members = {f"download/photos/{name}/1.png": image(i) for i, name in enumerate(("cat", "dog"))}
    data = open_dataset(tar(tmp_path / "x.tar", members))
    assert data.train.class_names == ("cat", "dog") and data.train.name(0) == "cat/1.png"
    assert "everything lies in the folder download/photos" in data.notes[0]


def test_packed_parts_in_archives_of_their_own(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        tar(tmp_path / f"{split}.tar", {f"{name}/{i}.png": image(10 * seed + i) for name in "ba" for i in range(2)})
    data = open_dataset(tmp_path)
    assert data.test is not None and data.test.labels.tolist() == data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.name(3) == "test/b/1.png"
    np.testing.assert_array_equal(data.test.read(2), pattern(12, 16, seed=10))
    np.testing.assert_array_equal(data.train.read(1), pattern(12, 16, seed=1))


# --- Which label is an image's


def labelled(path: Path, members: dict[str, bytes]) -> dict[str, str]:
    """Key -> class of what a tar file holds."""
    data = open_dataset(tar(path, members), min_classes=1)
    return {
        data.train.name(i).partition("/")[2]: data.train.class_names[data.train.labels[i]]
        for i in range(len(data.train))
    }


def test_dots_in_names(tmp_path: Path) -> None:
    """Cameras, dates and versions have dots of their own: every image has the label that shares its whole name."""
    members = {}
    for i, stem in enumerate(("cam.1", "cam.2", "2024.05.31_a", "red.v2.4", "red.v2.5", "plain")):
        members |= {f"x/{stem}.png": image(i), f"x/{stem}.cls": str(i % 2).encode()}
    assert labelled(tmp_path / "x.tar", members) == {
        f"x/{stem}": str(i % 2)
        for i, stem in enumerate(("cam.1", "cam.2", "2024.05.31_a", "red.v2.4", "red.v2.5", "plain"))
    }


def test_a_sample_of_several_members(tmp_path: Path) -> None:
    """WebDataset's rule: the key ends at the first dot, and what stands behind it is the kind."""
    members = {
        "a.image.png": image(0),
        "a.cls": b"x",
        "b.png": image(1),
        "b.label.cls": b"y",
        "c.rgb.jpg": image(2, "JPEG"),
        "c.json": b'"z"',
    }
    assert labelled(tmp_path / "x.tar", members) == {"a": "x", "b": "y", "c": "z"}


def test_the_surest_label_counts(tmp_path: Path) -> None:
    members = {"a.txt": b"caption", "a.json": b'{"label": "no"}', "a.png": image(0), "a.cls": b"yes"}
    members |= {"b.txt": b"caption", "b.json": b'{"label": "maybe"}', "b.png": image(1)}
    assert labelled(tmp_path / "x.tar", members) == {"a": "yes", "b": "maybe"}


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    members = {
        "a.png": image(0),
        "a.seg.png": image(1),
        "a.jpg": image(2, "JPEG"),
        "a.cls": b"x",
        "b.cls": b"y",
        "c.xcf": b"?",
        "c.cls": b"y",
    }
    members |= {"d.png": image(3), "d.cls": b"y", "d.depth.exr": b"?", ".hidden.png": image(4)}
    data = open_dataset(tar(tmp_path / "x.tar", members))
    assert [data.train.name(i) for i in range(2)] == ["x/a", "x/d"] and len(data.train) == 2
    notes = " ".join(data.notes)
    assert (
        "2 others are not: a.seg.png, a.jpg" in notes
        and "2 labels are without an image that can be read: b.cls, c.cls" in notes
    )
    assert "1 .xcf" in notes and "1 .exr" in notes


def test_messages_hold_no_commands_to_the_terminal(tmp_path: Path) -> None:
    esc = "\x1b[2J"
    for members in (
        {f"a{esc}.png": image(0), "b.png": image(1), "b.cls": b"1"},
        {f"a{esc}.png": image(0), f"a{esc}.cls": b"", "b.png": image(1), "b.cls": b"1"},
        {f"a{esc}.png": image(0), "b/c.png": image(1)},
        {f"a{esc}.txt": b"x"},
    ):
        with pytest.raises(DataError) as caught:
            open_dataset(tar(tmp_path / f"{esc}.tar", members))
        assert "\x1b" not in str(caught.value)


def test_a_sample_has_one_label(tmp_path: Path) -> None:
    members = {"b.png": image(0), "b.json": b'"j"', "b.x.png": image(1), "b.y.cls": b"c"}
    data = open_dataset(tar(tmp_path / "x.tar", members), min_classes=1)
    assert data.train.class_names == ("j",) and len(data.train) == 1
    assert "b.x.png" in data.notes[0] and "b.y.cls" in data.notes[1]


def test_one_packed_folder_of_images_is_a_class(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"photos/1.png": image(0), "photos/2.png": image(1)})
    assert open_dataset(path, min_classes=1).train.class_names == ("photos",)


def test_labels_that_are_no_labels(tmp_path: Path) -> None:
    for content, message in ((b"x" * 70_000, "70,000 bytes"), (b"", "is empty"), (b"\xff", "not UTF-8")):
        with pytest.raises(DataError, match=rf"a\.cls cannot be read as a label: .*{message}"):
            open_dataset(tar(tmp_path / "x.tar", {"a.png": image(0), "a.cls": content}))
    assert labelled(tmp_path / "y.tar", {"a.png": image(0), "a.cls": b"9" * 5000}) == {"a": "9" * 5000}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000000.tar", "train"),
        ("imagenet-val-000.tar", "val"),
        ("set_TEST_3.tar.gz", "test"),
        ("val/00.tar", "val"),
        ("00.tar", "train"),
        ("test-00000-of-00002.parquet", "test"),
        ("train_val.tar", "train"),
        ("latest.tar", "train"),
        ("valid/train-1.tar", "train"),
    ],
)
def test_the_split_a_file_is_named_after(name: str, split: str) -> None:
    assert split_of_file(Path(name)) == split


def test_one_part_by_itself(tmp_path: Path) -> None:
    """Whoever asks for the validation shards alone wants just these."""
    for i in range(2):
        tar(
            tmp_path / f"val-{i}.tar",
            {
                f"{j}.{kind}": image(j) if kind == "png" else str(j).encode()
                for j in range(2)
                for kind in ("png", "cls")
            },
        )
    data = open_dataset(f"{tmp_path}/val-*.tar")
    assert len(data.train) == 4 and data.val is None


def test_names_before_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my [1] {a,b} photos?"
    members = {
        f"{i}.{kind}": image(i) if kind == "png" else str(i).encode() for i in range(2) for kind in ("png", "cls")
    }
    for name in ("train-0.tar", "train-1.tar", "one[2].tar"):
        tar(folder / name, members)
    for spec, count in (
        ("train-{0..1}.tar", 4),
        ("train-*.tar", 4),
        ("one[2].tar", 2),
        ("train-[01].tar", 4),
        ("{train-0,one[2]}.tar", 4),
    ):
        assert len(open_dataset(f"{folder}/{spec}").train) == count
    write(folder / "x[3].png")
    assert open_images([f"{folder}/x[3].png", f"{folder}/*.png"]).name(0).endswith("x[3].png")
    assert len(open_images([f"{folder}/*.png"])) == 1
    monkeypatch.chdir(folder)
    assert len(open_dataset("one[2].tar").train) == 2 and len(open_dataset("train-{0..1}.tar").train) == 4


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


def test_images_in_archives_have_the_limit_of_others(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for name, size in (("red/a.png", 60), ("blue/b.png", 61)):
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    images = open_dataset(tmp_path / "some.tar").train
    monkeypatch.setenv("BIT_LIMITS", "image_bytes=60")
    sizes = {images.name(i): i for i in range(2)}
    assert len(images.store.data(int(images.rows[sizes["red/a.png"]]))) == 60
    with pytest.raises(ImageError, match=r"61 bytes, more than the limit.*--limits image_bytes=N"):
        images.store.data(int(images.rows[sizes["blue/b.png"]]))


def test_lists_are_no_labels_in_text(tmp_path):
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for i in range(4):
            for ending, content in (("jpg", b"x"), ("cls", b"[1,0]" if i % 2 else b"[0,1]")):
                member = tarfile.TarInfo(f"{i}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"'\[0,1\]' is a list; lists of labels are written as JSON"):
        open_dataset(tmp_path / "some.tar")
