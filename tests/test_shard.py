"""`bit shard`: what it writes, what reads it, and what becomes of interruptions and damage."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtransfer import cli, runs
from bigtransfer.config import ShardConfig
from bigtransfer.data import ImageSet, open_dataset, writer
from bigtransfer.data.index import Index
from bigtransfer.data.layout import Found, Part, build
from bigtransfer.data.sources import Arrays, TarFiles
from bigtransfer.errors import ConfigError, DataError, RunError, UnreadableImages
from bigtransfer.jobs import shard

from .data_makers import class_folders, pattern, write


def make(source: Path | str, folder: Path, **options) -> None:
    options = {"shard_images": 4, "threads": 2} | options
    assert shard.run(ShardConfig(source=str(source), destination=str(folder), **options)) == 0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    class_folders(tmp_path / "photos" / "train", {"cat": 7, "dog": 6}, ending=".jpg")
    class_folders(tmp_path / "photos" / "test", {"cat": 2, "dog": 1}, seed=50)
    return tmp_path / "photos"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (".lock", "index.json")}


def sources(folder: Path, split: str = "train") -> list[str]:
    return (folder / f"{split}.names.txt").read_text().splitlines()


def test_every_image_is_there_untouched_and_labelled(photos: Path, tmp_path: Path, capsys) -> None:
    make(photos, tmp_path / "shards")
    out = capsys.readouterr().out
    assert f"{tmp_path / 'shards'}: train, 13 images in 4 shards, 0.1 MB\n" in out
    assert out.endswith(f"\nUse them:  bit pretrain {tmp_path / 'shards'}\n") and "Left out" not in out
    data = open_dataset(tmp_path / "shards")
    assert data.test is not None and data.val is None and data.train.class_names == ("cat", "dog")
    for part, split, count in ((data.train, "train", 13), (data.test, "test", 3)):
        names = sources(tmp_path / "shards", split)
        assert len(part) == count and len(set(names)) == count
        for i, name in enumerate(names):
            assert part.data(i) == (photos / name).read_bytes()
            assert part.class_names[part.labels[i]] == name.split("/")[1]
            assert part.size(i) == (12, 16)
    assert data.train.name(5) == "train-000001/000000005" and data.test.name(0) == "test-000000/000000000"
    assert data.train.runs.tolist() == [0, 4, 8, 12, 13] and data.test.runs.tolist() == [0, 3]
    assert not [path for path in (tmp_path / "shards").glob(".*") if path.name != ".lock"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_the_shards_follow_the_convention(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "test-000000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    assert [name for name, _ in members] == [f"{i:09d}.{ending}" for i in range(3) for ending in ("png", "cls")]
    indexed = open_dataset(tmp_path / "shards").test
    scanned = open_dataset(f"{tmp_path}/shards/{{train,test}}-*.tar").test
    assert indexed is not None and scanned is not None
    assert (
        scanned.labels.tolist()
        == indexed.labels.tolist()
        == [int(content) for name, content in members if ".cls" in name]
    )
    assert [scanned.data(i) for i in range(3)] == [indexed.data(i) for i in range(3)]
    assert [scanned.name(i) for i in range(3)] == [indexed.name(i) for i in range(3)]
    webdataset = pytest.importorskip("webdataset")
    samples = (
        webdataset.WebDataset(str(tmp_path / "shards" / "train-000000.tar"), shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg", "cls")
    )
    read = [(np.asarray(image), label) for image, label in samples]
    train = open_dataset(tmp_path / "shards").train
    assert [label for _, label in read] == train.labels[:4].tolist()
    for i, (image, _) in enumerate(read):
        np.testing.assert_array_equal(image, train.read(i))


def test_the_order_is_the_seeds(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "a")
    make(photos, tmp_path / "b", threads=1)
    make(photos, tmp_path / "c", seed=1)
    make(photos, tmp_path / "d", shuffle=False)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert sources(tmp_path / "a") != sources(tmp_path / "c") != sources(tmp_path / "d")
    assert sources(tmp_path / "d") == sorted(sources(tmp_path / "a"))


def test_shards_end_before_they_are_too_large(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards", shard_images=None, shard_mb=0.01)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "shards").glob("train-*.tar"))]
    assert len(sizes) > 1 and max(sizes) <= 10_000 + 10_240 and len(open_dataset(tmp_path / "shards").train) == 13


def test_resize(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a" / "large.png", height=300, width=100)
    write(tmp_path / "in" / "a" / "small.png", height=20, width=64)
    sideways = Image.fromarray(pattern(100, 300))
    exif = sideways.getexif()
    exif[0x0112] = 6
    (tmp_path / "in" / "b").mkdir()
    sideways.save(tmp_path / "in" / "b" / "sideways.jpg", exif=exif)
    make(tmp_path / "in", tmp_path / "out", resize=32, quality=90, shuffle=False)
    train = open_dataset(tmp_path / "out").train
    assert [train.size(i) for i in range(3)] == [(96, 32), (20, 64), (96, 32)]
    assert train.data(1) == (tmp_path / "in" / "a" / "small.png").read_bytes()
    with Image.open(io.BytesIO(train.data(0))) as image:
        assert image.format == "JPEG"
        expected = Image.fromarray(pattern(300, 100)).resize((32, 96), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image, dtype=float) - np.asarray(expected)).mean() < 3
    upright = Image.fromarray(pattern(100, 300)).transpose(Image.Transpose.ROTATE_270).resize((32, 96))
    assert np.abs(train.read(2).astype(float) - np.asarray(upright)).mean() < 5


def several(tmp_path: Path) -> Path:
    for number in range(4):
        write(tmp_path / "img" / f"{number}.png", seed=number)
    with open(tmp_path / "table.csv", "w", newline="") as file:
        rows = [
            ("image", "label"),
            ("img/0.png", "dog|cat|ant"),
            ("img/1.png", "cat"),
            ("img/2.png", "dog|dog"),
            ("img/3.png", "ant"),
        ]
        csv.writer(file).writerows(rows)
    return tmp_path / "table.csv"


def test_several_labels(tmp_path: Path) -> None:
    make(several(tmp_path), tmp_path / "shards", label_separator="|", shuffle=False)
    data = open_dataset(tmp_path / "shards", multi_label=True)
    assert data.train.class_names == ("ant", "cat", "dog")
    assert data.train.labels.tolist() == [[0, 1, 2], [1, -1, -1], [2, -1, -1], [0, -1, -1]]
    assert data.train.class_counts().tolist() == [2, 2, 2]
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        assert json.load(tar.extractfile("000000000.json")) == {"label": [0, 1, 2]}
    scanned = open_dataset(tmp_path / "shards" / "train-000000.tar", multi_label=True).train
    assert scanned.labels.tolist() == data.train.labels.tolist() and scanned.class_names == ("0", "1", "2")
    renumbered = open_dataset(tmp_path / "shards", multi_label=True, class_names=("dog", "cat", "emu", "ant")).train
    assert renumbered.labels.tolist() == [[3, 1, 0], [1, -1, -1], [0, -1, -1], [3, -1, -1]]
    with pytest.raises(DataError, match="several labels each"):
        open_dataset(tmp_path / "shards")
    with pytest.raises(ConfigError, match="--label-separator has no effect"):
        make(tmp_path / "shards", tmp_path / "again", label_separator="|")


def test_a_part_without_labels(tmp_path: Path) -> None:
    class_folders(tmp_path / "photos" / "train", {"cat": 2, "dog": 2})
    write(tmp_path / "photos" / "test" / "x.png")
    make(tmp_path / "photos", tmp_path / "shards")
    data = open_dataset(tmp_path / "shards")
    assert data.test is not None and data.test.labels is None and data.test.class_names == () and len(data.test) == 1


def test_bare_pixels_become_png(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    part = Part()
    part.add_all(range(3), np.array([0, 1, 1]), ["a", "b"])
    found = Found(Arrays([tmp_path / "x.npy"], ["0", "1", "2"]), {"train": part}, "x")
    monkeypatch.setattr("bigtransfer.data.open_dataset", lambda *_, **__: build(found, None, 3))
    make("x", tmp_path / "shards", shuffle=False)
    train = open_dataset(tmp_path / "shards").train
    np.testing.assert_array_equal([train.read(i) for i in range(3)], pixels)


def test_a_model_can_give_the_class_names(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards")
    own = open_dataset(tmp_path / "shards").train
    train = open_dataset(tmp_path / "shards", class_names=["dog", "emu", "cat"]).train
    assert train.class_names == ("dog", "emu", "cat")
    assert train.labels.tolist() == [[2, 0][label] for label in own.labels]
    with pytest.raises(DataError, match="not in the list of classes: cat"):
        open_dataset(tmp_path / "shards", class_names=["dog"])
    with pytest.raises(DataError, match="not in the list of classes: dog"):
        open_dataset(tmp_path / "shards", class_names=["cat"])


# --- Interruptions and damage


@pytest.mark.parametrize("fatal", [0, 5, 9, 12, 15])
def test_an_interrupted_command_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fatal: int
) -> None:
    (photos / "train" / "cat" / "003.jpg").write_bytes(b"broken")
    make(photos, tmp_path / "whole", skip_bad_images=True)
    written, encoded = iter(range(100)), writer._encoded

    def dies(part: ImageSet, i: int, config: ShardConfig) -> tuple[bytes, str]:
        if next(written) == fatal:
            raise MemoryError("out of luck")
        return encoded(part, i, config)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_encoded", dies)
        with pytest.raises(MemoryError):
            make(photos, tmp_path / "cut", skip_bad_images=True, threads=1)
    assert not (tmp_path / "cut" / "index.json").exists()
    with pytest.raises(DataError, match="is unfinished"):
        open_dataset(tmp_path / "cut")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("*.tar")}
    with open(tmp_path / "cut" / ".journal.jsonl", "a") as journal:
        journal.write('{"split": "tra')  # the machine died while it wrote
    make(photos, tmp_path / "cut", skip_bad_images=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert [one["name"] for one in json.loads((tmp_path / "cut" / "unreadable.json").read_text())] == [
        "train/cat/003.jpg"
    ]


def test_unreadable_images(photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "train" / "cat" / "003.jpg").write_bytes(b"broken")
    (photos / "test" / "dog" / "000.png").write_bytes(b"")
    with pytest.raises(UnreadableImages, match=r"train/cat/003\.jpg: .*\n.*--skip-bad-images"):
        make(photos, tmp_path / "shards")
    make(photos, tmp_path / "shards", skip_bad_images=True)
    assert (
        f"\nLeft out: 2 unreadable images, listed in {tmp_path / 'shards' / 'unreadable.json'}\n"
        in capsys.readouterr().out
    )
    data = open_dataset(tmp_path / "shards")
    assert len(data.train) == 12 and data.test is not None and len(data.test) == 2
    assert "train/cat/003.jpg" not in sources(tmp_path / "shards")
    listed = json.loads((tmp_path / "shards" / "unreadable.json").read_text())
    assert [one["name"] for one in listed] == ["train/cat/003.jpg", "test/dog/000.png"]


def test_a_part_without_a_readable_image(photos: Path, tmp_path: Path) -> None:
    for path in (photos / "test").rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="No image of test can be read"):
        make(photos, tmp_path / "shards", skip_bad_images=True)


def test_damage_is_found_and_repaired(photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "train" / "cat" / "003.jpg").write_bytes(b"broken")
    folder = tmp_path / "shards"
    make(photos, folder, skip_bad_images=True)
    whole = files(folder)
    assert cli.main(["shard", str(folder), "--verify"]) == 0
    assert "all 10 files are what the index says" in capsys.readouterr().out
    content = bytearray(whole["train-000001.tar"])
    content[700] ^= 1
    (folder / "train-000001.tar").write_bytes(content)
    (folder / "train-000002.tar").write_bytes(whole["train-000002.tar"][:-1])
    (folder / "test-000000.tar").unlink()
    assert cli.main(["shard", str(folder), "--verify"]) == 1
    out = capsys.readouterr().out
    assert (
        "train-000001.tar has another content" in out and "test-000000.tar is missing" in out and "3 of 10 files" in out
    )
    with pytest.raises(DataError, match=r"lacks test-000000\.tar"):
        open_dataset(folder)
    make(photos, folder, skip_bad_images=True)
    assert files(folder) == whole
    (folder / "train.labels.npy").write_bytes(b"no array")
    (folder / "train.offsets.npy").unlink()
    make(photos, folder, skip_bad_images=True)
    assert files(folder) == whole and cli.main(["shard", str(folder), "--verify"]) == 0


def test_a_shard_that_was_cut_off_is_not_read(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards")
    path = tmp_path / "shards" / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    train = open_dataset(tmp_path / "shards").train
    assert train.read(0).shape == (12, 16, 3)
    with pytest.raises(DataError, match=r"train-000001\.tar has .* bytes, its index says .*--verify"):
        train.read(4)


def test_what_cannot_be_repaired_is_said(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards")
    (tmp_path / "shards" / "train-000000.tar").unlink()
    name = sources(tmp_path / "shards")[0]
    write(photos / name, seed=99)
    with pytest.raises(RunError, match=r"train-000000\.tar is missing, and what is written in its place now differs"):
        make(photos, tmp_path / "shards")


def test_another_command_is_refused(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards")
    for options in ({"seed": 3}, {"resize": 8}, {"shard_images": 5}):
        with pytest.raises(RunError, match=r"shards of another command: --.*then.*now"):
            make(photos, tmp_path / "shards", **options)
    write(photos / "train" / "cat" / "new.jpg")
    with pytest.raises(RunError, match="the images are others"):
        make(photos, tmp_path / "shards")
    with pytest.raises(RunError, match="is not empty"):
        make(photos, photos)
    with runs.Run(tmp_path / "shards").hold(), pytest.raises(RunError, match="Another process"):
        make(photos, tmp_path / "shards")


ARRAYS = {kind: {"name": f"train.{kind}.npy", "bytes": 1, "sha256": ""} for kind in ("offsets", "lengths")}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Shards of 13 and 3 images."""
    root = tmp_path_factory.mktemp("made")
    class_folders(root / "photos" / "train", {"cat": 7, "dog": 6}, ending=".jpg")
    class_folders(root / "photos" / "test", {"cat": 2, "dog": 1}, seed=50)
    make(root / "photos", root / "shards")
    return root / "shards"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "version is 3.*update bigtransfer"),
        ({"version": 0}, "version is 0"),
        (
            {
                "splits": {
                    "train": {"arrays": ARRAYS, "shards": [{"name": "../x", "bytes": 1, "sha256": "", "images": 1}]}
                }
            },
            "not the name of a file",
        ),
        ({"splits": {}}, "no train split"),
        ({"class_names": None}, "not an index.*class_names: expected array, got null"),
        ({"class_names": ["cat", 3]}, r"class_names\[1\]: expected str, got int"),
        ({"version": "1"}, "version: expected int"),
        ({"made": []}, "made: expected object"),
        ({"splits": []}, "splits: expected object"),
        ({"splits": {"extra": {"arrays": {}, "shards": []}}}, "splits.extra: there are only train, val, test"),
    ],
)
def test_a_wrong_index_is_said(shards: Path, change: dict, message: str) -> None:
    path = shards / "index.json"
    found = json.loads(path.read_text()) | change
    path.write_text(json.dumps(found))
    (shards / "train-000000.tar").unlink()
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(shards)
    assert "index.json" in str(caught.value) or "no train split" in message


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("arrays", "offsets"), None, "no offsets"),
        (("arrays", "lengths"), None, "no lengths"),
        (("arrays", "offsets", "name"), 3, "name: expected str"),
        (("shards", 0, "images"), "many", "images: expected int"),
        (("shards", 0, "images"), 1 << 70, "images: "),
        (("shards", 0, "images"), -1, "images: "),
        (("shards", 0, "bytes"), 1.5, "bytes: expected int"),
        (("shards",), [], "has no images"),
        (("shards", 1, "images"), 3, "13 numbers|for 12 images"),
    ],
)
def test_a_wrong_part_of_an_index_is_said(shards: Path, place: tuple, value: object, message: str) -> None:
    path = shards / "index.json"
    found = json.loads(path.read_text())
    inner = found["splits"]["train"]
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(found))
    with pytest.raises(DataError, match=message):
        open_dataset(shards)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"bigtransfer shards"', b'{"format": "bigtransfer shards"', b"\xff" * 40]
)
def test_an_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        open_dataset(tmp_path)
    for text in (content, b'{"format": "other", "version": 1}', b'{"format": 3, "version": 1}'):
        (tmp_path / "index.json").write_bytes(text)
        with pytest.raises(DataError, match=r"index\.json is not an index of shards"):
            Index.read(tmp_path / "index.json", str(tmp_path / "index.json"))


def test_array_whose_header_no_parser_ends(shards: Path) -> None:
    path = shards / "train.offsets.npy"
    data = path.read_bytes()
    path.write_bytes(data[:10] + b"{'descr': (" + data[21:])  # NumPy raises what Python's tokenizer does
    with pytest.raises(DataError, match="damaged"):
        open_dataset(shards)


def test_a_full_disk_is_named_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as the system says it, without a name

    command = ["shard", str(photos), str(tmp_path / "shards"), "--shard-images", "4", "--threads", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(np.lib.format, "open_memmap", full)
        assert cli.main(command) == 2
    assert f"shards into {tmp_path / 'shards'}: No space left on device. Make room" in capsys.readouterr().err
    assert cli.main(command) == 0
    make(photos, tmp_path / "undisturbed", threads=1)
    assert files(tmp_path / "shards") == files(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("labels", lambda labels: np.full_like(labels, 9), "label 9, but the index lists 2 classes, 0 to 1"),
        ("labels", lambda labels: labels - 5, "label -5"),
        ("labels", lambda labels: np.where(np.arange(13) == 12, 2, labels), "label 2"),
        ("labels", lambda labels: np.where(np.arange(13) == 0, -1, labels), "label -1"),
        ("labels", lambda labels: labels[:, None, None], r"shape \(13, 1, 1\)"),
        ("labels", lambda labels: np.zeros((13, 0), np.int32), r"shape \(13, 0\)"),
        ("labels", lambda labels: labels.astype(np.float32), "type float32"),
        ("labels", lambda labels: np.int32(3), "type int32"),
        ("offsets", lambda offsets: np.stack([offsets, offsets], 1), r"shape \(13, 2\)"),
        ("offsets", lambda offsets: offsets - 1_000, "image 0 would lie at byte -488"),
        (
            "offsets",
            lambda offsets: np.where(np.arange(13) == 7, 1 << 62, offsets),
            r"image 7 would lie .* of train-000001\.tar",
        ),
        (
            "lengths",
            lambda lengths: np.where(np.arange(13) == 12, 4_000_000_000, lengths).astype(np.uint32),
            "image 12 .*4,000,000,000 bytes long",
        ),
        ("lengths", lambda lengths: lengths.astype(np.int64) - 100_000, "image 0 would lie"),
        ("lengths", lambda lengths: np.full(13, (1 << 64) - 1, np.uint64), "image 0 would lie"),
    ],
)
def test_numbers_that_cannot_be(shards: Path, kind: str, change, message: str) -> None:
    path = shards / f"train.{kind}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(DataError, match=message):
        open_dataset(shards)


def test_numbers_of_large_sets_are_looked_at_in_pieces(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigtransfer.data.index.CHECKED", 12)
    path = shards / "train.labels.npy"
    labels = np.load(path)
    open_dataset(shards)
    for row in (0, 12):  # the first and the last are always among them
        np.save(path, np.where(np.arange(13) == row, 9, labels))
        with pytest.raises(DataError, match="label 9"):
            open_dataset(shards)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["train.labels.npy", "train.offsets.npy"])
def test_pipes_in_place_of_files(shards: Path, name: str) -> None:
    (shards / name).unlink()
    os.mkfifo(shards / name)
    with pytest.raises(DataError):
        open_dataset(shards)


def test_reading_never_asks_for_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIT_LIMITS", f"image_bytes={1 << 49}")
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    store = TarFiles(
        [tmp_path / "x.tar"], np.array([0, 3]), np.array([2, 20, 9]), np.array([1 << 49, 5, 0]), ["a", "b", "c"]
    )
    assert [store.data(i) for i in range(3)] == [b"23456789", b"", b""]


@pytest.mark.parametrize("file", [".plan.json", ".journal.jsonl", "index.json"])
@pytest.mark.parametrize(
    "content", ["{}", "[1, 2]", '{"split": "train", "shard": {"name": 3}, "skipped": []}', '"x"', "{", "null"]
)
def test_what_an_earlier_command_left_may_be_anything(photos: Path, tmp_path: Path, file: str, content: str) -> None:
    (photos / "train" / "cat" / "000.jpg").write_bytes(b"broken")
    with pytest.raises(UnreadableImages):
        make(photos, tmp_path / "shards", shuffle=False)
    assert (tmp_path / "shards" / ".plan.json").is_file()
    (tmp_path / "shards" / file).write_text(content)
    if file == ".journal.jsonl" and content == "{":
        with pytest.raises(UnreadableImages):  # a line that was cut off
            make(photos, tmp_path / "shards", shuffle=False)
        return
    with pytest.raises((RunError, DataError), match=str(tmp_path / "shards")):
        make(photos, tmp_path / "shards", shuffle=False)


def test_a_picture_too_long_for_jpeg(tmp_path: Path) -> None:
    for name, height in (("a", 80_000), ("b", 70_000)):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("L", (9, height), 77).save(tmp_path / "in" / name / "0.png")
    make(tmp_path / "in", tmp_path / "out", resize=8, shuffle=False)
    train = open_dataset(tmp_path / "out").train
    assert [train.size(i) for i in range(2)] == [(71_111, 8), (62_222, 8)]
    assert [train.data(i)[:4] for i in range(2)] == [b"\x89PNG", b"\xff\xd8\xff\xe0"]


def test_arrays_that_do_not_fit(shards: Path) -> None:
    np.save(shards / "train.labels.npy", np.zeros(5, np.int32))
    with pytest.raises(DataError, match=r"train\.labels\.npy has 5 numbers of type int32 for 13 images"):
        open_dataset(shards)
    np.save(shards / "train.labels.npy", np.array([{}] * 13), allow_pickle=True)
    with pytest.raises(DataError, match=r"train\.labels\.npy is damaged"):
        open_dataset(shards)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"destination": None}, "Where shall the shards go"),
        ({"quality": 80}, "without --resize"),
        ({"shard_mb": 3.0, "shard_images": 3}, "give one of them"),
        ({"verify": True}, "DESTINATION has no effect with --verify"),
        ({"shuffle": False, "seed": 3}, "no effect with --no-shuffle"),
        ({"resize": 3, "quality": 101}, "1 to 100"),
    ],
)
def test_contradictions(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ShardConfig(**{"source": "a", "destination": "b"} | options)


def test_verify_needs_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no index"):
        shard.run(ShardConfig(source=str(tmp_path), verify=True))


# --- Large sets


def test_a_set_pickles_small_and_is_mapped(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards")
    folder = tmp_path / "shards"
    count = 300_000
    for kind, dtype in (("offsets", np.int64), ("lengths", np.uint32), ("labels", np.int32)):
        np.save(folder / f"train.{kind}.npy", np.resize(np.load(folder / f"train.{kind}.npy")[:4], count).astype(dtype))
    found = json.loads((folder / "index.json").read_text())
    found["splits"]["train"]["shards"] = [found["splits"]["train"]["shards"][0] | {"images": count}]
    (folder / "index.json").write_text(json.dumps(found))
    train = open_dataset(folder).train
    assert len(train) == count and isinstance(train.labels.base, np.memmap)
    content = pickle.dumps(train)
    assert len(content) < 5_000
    other = pickle.loads(content)
    assert (
        other.data(299_999) == train.data(299_999)
        and other.labels[7] == train.labels[7]
        and other.runs.tolist() == [0, count]
    )
    few = train.subset([5, 3])
    assert few.labels.tolist() == train.labels[[5, 3]].tolist() and len(pickle.dumps(few)) < 6_000


def test_runs_of_subsets(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "shards")
    train = open_dataset(tmp_path / "shards").train
    assert train.subset([0, 1, 5, 6, 7, 12]).runs.tolist() == [0, 2, 5, 6]
    assert train.subset(range(8, 13)).runs.tolist() == [0, 4, 5]
    assert train.subset([0, 4, 1, 5, 2, 6, 3, 7]).runs is None
    assert train.subset([]).runs is None
    assert train.subset([9, 8]).subset([1, 0]).name(0) == train.name(8)
    assert open_dataset(photos).train.runs is None


def test_shards_can_be_sharded_again(photos: Path, tmp_path: Path) -> None:
    make(photos, tmp_path / "a")
    make(tmp_path / "a", tmp_path / "b", shard_images=100)
    one, other = open_dataset(tmp_path / "a").train, open_dataset(tmp_path / "b").train
    assert sorted(one.data(i) for i in range(13)) == sorted(other.data(i) for i in range(13))


@pytest.mark.parametrize("spare", [0, 512, 1024, 4096])
def test_an_archive_ends_with_two_empty_blocks_in_a_whole_record(spare: int) -> None:
    """However much room its last member leaves in the record of 10,240 bytes (POSIX, pax)."""
    file = io.BytesIO()
    archive = writer._Tar(file)
    archive.add("a.bin", b"\1" * (tarfile.RECORDSIZE - 512 - spare))
    archive.close()
    content = file.getvalue()
    assert len(content) % tarfile.RECORDSIZE == 0
    assert content.endswith(bytes(1024)) and len(content) == archive.size
    with tarfile.open(fileobj=io.BytesIO(content)) as read:
        assert [member.size for member in read] == [tarfile.RECORDSIZE - 512 - spare]
