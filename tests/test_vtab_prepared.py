"""VTAB-1k's images where TensorFlow Datasets makes other files of them than their authors published: its own folders, SUN397, retinas.

The records are written by TensorBoard and protobuf, which know nothing of our reader.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter

from bigtransfer.data import ImageSet
from bigtransfer.errors import DataError, ImageError
from bigtransfer.suites.vtab import prepared, sources, tfrecord
from bigtransfer.suites.vtab.sources import Slice
from bigtransfer.suites.vtab.tasks import TASKS, VtabTask
from tests.data_makers import encoded

BY_NAME = {task.name: task for task in TASKS}


def _example_class() -> Any:
    """tf.train.Example, from its definition in tensorflow/core/example/*.proto."""
    label = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="mini", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> Any:
        one = file.message_type.add(name=name)
        for called, number, kind, repeated, of in fields:
            field = one.field.add(name=called, number=number, type=kind)  # pyright: ignore[reportArgumentType]
            field.label = label.LABEL_REPEATED if repeated else label.LABEL_OPTIONAL
            if of:
                field.type_name = f".mini.{of}"
        return one

    message("BytesList", ("value", 1, label.TYPE_BYTES, True, ""))
    message("FloatList", ("value", 1, label.TYPE_FLOAT, True, ""))
    message("Int64List", ("value", 1, label.TYPE_INT64, True, ""))
    lists = (("bytes_list", 1, "BytesList"), ("float_list", 2, "FloatList"), ("int64_list", 3, "Int64List"))
    feature = message("Feature", *((name, number, label.TYPE_MESSAGE, False, of) for name, number, of in lists))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = message("Features", ("feature", 1, label.TYPE_MESSAGE, True, "Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=label.TYPE_STRING, label=label.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=label.TYPE_MESSAGE, label=label.LABEL_OPTIONAL, type_name=".mini.Feature"
    )
    message("Example", ("features", 1, label.TYPE_MESSAGE, False, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # pyright: ignore[reportAttributeAccessIssue]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mini.Example"))


EXAMPLE = _example_class()


def serialized(features: Mapping[str, Any]) -> bytes:
    example = EXAMPLE()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        elif np.asarray(value).dtype.kind == "f":
            feature.float_list.SetInParent()
            feature.float_list.value.extend(np.asarray(value).reshape(-1).tolist())
        else:
            feature.int64_list.SetInParent()
            feature.int64_list.value.extend(value)
    return example.SerializeToString()


def write(file: Path, examples: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        writer = RecordWriter(stream)
        for one in examples:
            writer.write(serialized(one))


MARK = 16
"""Side of the pictures, whose pixels say their place."""
LENGTHS = {"train": (5, 3, 4), "validation": (3, 2), "test": (4, 2)}
SLICES = {
    "train800": Slice(split="train", start=0, stop=7),
    "val200": Slice(split="validation", start=1, stop=4),
    "test": Slice(split="test", start=1),
}
PARTS = {"train1000": 10, "train800": 7, "val200": 3, "test": 5}
BASE = {"train": 0, "validation": 100, "test": 200}


def picture(mark: int) -> bytes:
    return encoded(np.full((MARK, MARK, 3), mark, np.uint8), "PNG")


def make(
    root: Path, task: VtabTask, features: Callable[[int], Mapping[str, Any]], *, folder_version: str = "", **info: Any
) -> VtabTask:
    """The set of a task as TFDS keeps it, in miniature. features: of the image with that mark, besides the image."""
    own = task.prepared
    version = folder_version or f"{own.major[0]}.0.1"
    folder = root / own.folders[0] / own.config / version
    for split, lengths in LENGTHS.items():
        marks = iter(range(BASE[split], BASE[split] + sum(lengths)))
        for number, length in enumerate(lengths):
            file = folder / f"{own.name}-{split}.tfrecord-{number:05d}-of-{len(lengths):05d}"
            write(file, [{"image": picture(mark), **features(mark)} for mark in itertools.islice(marks, length)])
    splits = [
        {"name": name, "numBytes": "1", "shardLengths": list(map(str, lengths))} for name, lengths in LENGTHS.items()
    ]
    content = {"name": own.name, "configName": own.config, "version": version, "splits": splits, **info}
    (folder / "dataset_info.json").write_text(json.dumps(content))
    pools = {split: sum(lengths) for split, lengths in LENGTHS.items()}
    return dataclasses.replace(task, archive=dataclasses.replace(task.archive, pools=pools, parts=SLICES))


def opened(root: Path, task: VtabTask) -> dict[str, ImageSet]:
    return dataclasses.replace(task.benchmark(), parts=PARTS).open(root)


def _marks(images: ImageSet) -> list[int]:
    return [int(images.read(i)[0, 0, 0]) for i in range(len(images))]


THOUSAND = [*range(7), 101, 102, 103]
TEST = [201, 202, 203, 204, 205]


def _clevr(mark: int) -> dict[str, Any]:
    depths = [8.2 + 0.5 * (mark % 5), *[20.0] * (2 + mark % 3)]
    coordinates = [value for depth in depths for value in (1.0, 2.0, depth)]
    return {
        "file_name": f"{mark}.png".encode(),
        "objects/shape": [0] * len(depths),
        "objects/pixel_coords": coordinates,
    }


def _kitti(mark: int) -> dict[str, Any]:
    """A pedestrian, who is near and does not count, and a vehicle in most images; in every fourth there is nothing at all."""
    kinds = np.array([] if mark % 4 == 3 else [3, mark % 3], np.int64)
    places = (
        np.array([[0, 0, 1.0], [0, 0, (5.0, 15.0, 50.0)[mark % 4]]], np.float32)
        if len(kinds)
        else np.empty((0, 3), np.float32)
    )
    return {"image/file_name": f"{mark:06d}.png".encode(), "objects/type": kinds, "objects/location": places}


CASES: dict[str, tuple[Callable[[int], Mapping[str, Any]], Callable[[int], int]]] = {
    "svhn": (lambda mark: {"label": mark % 10}, lambda mark: mark % 10),
    "cifar100": (
        lambda mark: {"id": f"train_{mark}".encode(), "label": mark % 7, "coarse_label": 99},
        lambda mark: mark % 7,
    ),
    "sun397": (lambda mark: {"file_name": f"/a/{mark}.jpg".encode(), "label": mark}, lambda mark: mark),
    "eurosat": (lambda mark: {"filename": f"{mark}.jpg".encode(), "label": mark % 10}, lambda mark: mark % 10),
    "diabetic_retinopathy": (lambda mark: {"name": f"{mark}_left".encode(), "label": mark % 5}, lambda mark: mark % 5),
    "clevr_count": (_clevr, lambda mark: mark % 3),
    "clevr_distance": (_clevr, lambda mark: (1, 2, 3, 4, 5)[mark % 5]),
    "kitti_distance": (_kitti, lambda mark: mark % 4),
    "smallnorb_azimuth": (lambda mark: {"label_azimuth": mark % 18, "label_elevation": 9}, lambda mark: mark % 18),
    "smallnorb_elevation": (lambda mark: {"label_elevation": mark % 9, "label_azimuth": 99}, lambda mark: mark % 9),
}


@pytest.mark.parametrize("name", CASES)
def test_what_tfds_prepared_is_read(name: str, tmp_path: Path) -> None:
    features, label = CASES[name]
    parts = opened(tmp_path, make(tmp_path, BY_NAME[name], features))
    for part, marks in {"train1000": THOUSAND, "train800": THOUSAND[:7], "val200": THOUSAND[7:], "test": TEST}.items():
        images = parts[part]
        assert images.labels is not None
        assert (_marks(images), images.labels.tolist()) == (marks, [label(mark) for mark in marks]), part
        assert len(images.class_names) == BY_NAME[name].classes
        assert len({images.name(i) for i in range(len(images))}) == len(images)
    if BY_NAME[name].prepared.called:
        assert "3" in parts["test"].name(2)
    assert len(pickle.dumps(parts["test"])) < 6_000


@pytest.mark.parametrize(
    ("name", "feature", "label"),
    [
        ("dsprites_location", "label_x_position", lambda x: x // 2),
        ("dsprites_orientation", "label_orientation", lambda turn: int(turn / 2.5)),
    ],
)
def test_dsprites_are_black_and_white(name: str, feature: str, label: Callable[[int], int], tmp_path: Path) -> None:
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 1
    sprite = encoded(half, "PNG")
    task = make(tmp_path, BY_NAME[name], lambda mark: {feature: mark % 32, "image": sprite})
    images = opened(tmp_path, task)["train1000"]
    assert set(np.unique(images.read(3))) == {0, 255} and images.read(3)[:, 32:].min() == 255
    assert images.labels is not None and images.labels.tolist() == [label(mark % 32) for mark in THOUSAND]
    grey = make(tmp_path, BY_NAME[name], lambda mark: {feature: mark % 32, "image": encoded(half * 2, "PNG")})
    with pytest.raises(ImageError, match="more than 1"):
        opened(tmp_path, grey)["test"].read(0)


def _svhn(root: Path, **info: Any) -> VtabTask:
    return make(root, BY_NAME["svhn"], lambda mark: {"label": mark % 10}, **info)


def test_of_several_versions_the_latest_that_fits_is_taken(tmp_path: Path) -> None:
    for version in ("3.0.0", "3.10.0", "3.9.0", "4.0.0"):
        task = make(tmp_path, BY_NAME["svhn"], lambda mark: {"label": mark % 10}, folder_version=version)
    found = task.prepared.find(tmp_path / task.prepared.folders[0])
    assert found is not None and found.name == "3.10.0"
    assert task.prepared.find(found) == found
    assert task.prepared.find(tmp_path) is None
    for version in ("3.0.0", "3.10.0", "3.9.0"):
        (tmp_path / task.prepared.folders[0] / version / "dataset_info.json").unlink()
    with pytest.raises(
        DataError, match=r"holds 4.0.0 of TensorFlow Datasets' svhn_cropped; the protocol is that of version 3\.\*"
    ):
        opened(tmp_path, task)


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"name": "svhn"}, "it is the set svhn"),
        ({"configName": "other"}, "svhn_cropped other, not svhn_cropped"),
        ({"fileFormat": "array_record"}, "form array_record"),
        ({"version": "2.0.0"}, "it is version 2.0.0"),
        ({"splits": []}, "no split train"),
        ({"splits": [{"name": "train", "shardLengths": ["5", "3"]}]}, "train has 8 images, but 12 were published"),
        ({"splits": [{"name": "train", "shardLengths": ["5", "x", "4"]}]}, "no numbers"),
        ({"splits": [{"name": "train", "shardLengths": ["4", "4", "4"]}]}, "has 5 records and not 4"),
        ({"splits": [{"name": "train", "shardLengths": ["6", "3", "3"]}]}, "has 5 records and not 6"),
        ({"splits": [{"name": "train", "shardLengths": ["12"], "filepathTemplate": "../x"}]}, "named in another way"),
        ({"splits": [{"name": "train", "shardLengths": ["6", "6"]}]}, "No such file"),
        ({"splits": 3}, "splits"),
    ],
)
def test_what_is_not_the_protocols_set_is_refused(info: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        opened(tmp_path, _svhn(tmp_path, **info))


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"label": 10}, "labels are 0 to 10 instead of 0 to 9"),
        ({"label": -1}, "labels are -1 to"),
        ({"label": 2.0}, "label holds no numbers of 64 bits"),
        ({"label": b"2"}, "label holds no numbers"),
        ({"image": 3, "label": 1}, "image holds no text"),
    ],
)
def test_examples_of_another_kind_are_refused(example: Mapping[str, Any], said: str, tmp_path: Path) -> None:
    task = make(tmp_path, BY_NAME["svhn"], lambda mark: {"label": mark % 10, **(example if mark == 6 else {})})
    with pytest.raises(DataError, match=said):
        opened(tmp_path, task)


@pytest.mark.parametrize("damage", ["content", "length", "sum", "cut", "beyond"])
def test_damage_is_noticed_where_it_matters(damage: str, tmp_path: Path) -> None:
    """Of records that the protocol does not take only the lengths are read."""
    task = _svhn(tmp_path)
    file = next(tmp_path.rglob("svhn_cropped-train.tfrecord-00001-of-00003"))
    content = bytearray(file.read_bytes())
    starts = [start for start, _ in tfrecord.records(file)]
    if damage == "cut":
        content = content[:-1]
    else:  # the third of its records is the eighth of the split, and the seven before it are taken
        content[
            {"content": starts[1], "length": starts[2] - 12, "sum": starts[2] - 6, "beyond": starts[2]}[damage] + 3
        ] ^= 1
    file.write_bytes(content)
    if damage == "beyond":
        assert _marks(opened(tmp_path, task)["train800"]) == THOUSAND[:7]
        return
    with pytest.raises(DataError, match=r"damaged|cut short"):
        opened(tmp_path, task)


def test_a_record_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = _svhn(tmp_path)
    monkeypatch.setenv("BIT_LIMITS", "image_bytes=50")
    with pytest.raises(DataError, match="more than the limit; if it is meant: --limits image_bytes=N"):
        opened(tmp_path, task)


def test_an_example_as_protocol_buffers_have_it() -> None:
    one = tfrecord.example(
        serialized(
            {
                "a": [1, -2, 2**62],
                "b": [0.5, -0.25],
                "c": b"text",
                "none": np.empty(0, np.int64),
                "nil": np.empty(0, np.float32),
            }
        )
    )
    assert one.numbers("a").tolist() == [1, -2, 2**62] and one.numbers("b", kind=np.float32).tolist() == [0.5, -0.25]
    assert one.text("c") == "text" and len(one.numbers("none")) == len(one.numbers("absent")) == 0
    assert len(one.numbers("nil", kind=np.float32)) == 0
    twice = serialized({"a": 1}) + serialized({"a": 2})
    assert (
        tfrecord.example(twice).numbers("a").tolist()
        == EXAMPLE.FromString(twice).features.feature["a"].int64_list.value
        == [2]
    )
    # Numbers that are not packed, as old writers had them: field 1, kind 0 (5 for those with a fraction).
    feature = EXAMPLE().features.feature["x"].__class__
    for content, name, kind, wanted in (
        (b"\x08\x05\x08\x07", "int64_list", np.int64, [5, 7]),
        (b"\x0d\x00\x00\x80\x3f", "float_list", np.float32, [1.0]),
    ):
        example = EXAMPLE()
        example.features.feature["x"].CopyFrom(feature(**{name: type(getattr(feature(), name)).FromString(content)}))
        assert tfrecord.example(example.SerializeToString()).numbers("x", kind=kind).tolist() == wanted
    with pytest.raises(ValueError, match="three numbers for each object"):
        prepared.clevr_distance(tfrecord.example(serialized({"objects/pixel_coords": [1.0, 2.0, 3.0, 4.0]})))
    with pytest.raises(ValueError, match="types of objects"):
        prepared.kitti_distance(tfrecord.example(serialized({"objects/type": [0], "objects/location": np.empty(0)})))


# --- SUN397 and the retinas: other images than their archives hold


OPENCV = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs opencv")


def test_sun397_in_the_parts_of_tfds() -> None:
    parts = sources.sun_parts()
    assert len(parts) == 108_753 and {code: parts.count(code) for code in b"012"} == {
        48: 76_128,
        49: 10_875,
        50: 21_750,
    }


def _sun(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[VtabTask, dict[str, int]]:
    """20 images of "/a/abbey" and "/b/bar/inner", whose first pixel is their mark; every fourth is of validation or test."""
    names = sorted(f"/{'a/abbey' if mark % 2 else 'b/bar/inner'}/sun_{mark:016d}.jpg" for mark in range(20))
    for name in [*names, sources._SUN_IGNORED]:
        path = root / "SUN397" / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (10 * int(name[-6:-4]) if name in names else 0,) * 3).save(path, "PNG")
    parts = bytes(b"0012"[place % 4] for place in range(20))
    monkeypatch.setattr(sources, "sun_parts", lambda: parts)
    monkeypatch.setattr(sources, "SUN_NAMES", hashlib.sha256("\n".join(names).encode()).hexdigest())
    task = BY_NAME["sun397"]
    slices = {
        "train800": Slice(split="train", stop=6),
        "val200": Slice(split="validation", stop=3),
        "test": Slice(split="test"),
    }
    archive = dataclasses.replace(task.archive, pools={"train": 10, "validation": 5, "test": 5}, parts=slices)
    return dataclasses.replace(task, archive=archive, classes=2), dict(zip(names, parts, strict=True))


@OPENCV
def test_sun397(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, parts = _sun(tmp_path, monkeypatch)
    benchmark = dataclasses.replace(task.benchmark(), parts={"train1000": 9, "test": 5})
    found = benchmark.open(tmp_path)

    def drawn(split: str, code: int, stop: int | None) -> list[str]:
        own = [name for name, part in parts.items() if part == code]
        return sorted(own, key=lambda name: hashlib.md5(f"{split}{name}".encode()).hexdigest())[:stop]

    wanted = {
        "train1000": drawn("train", ord("0"), 6) + drawn("validation", ord("1"), 3),
        "test": drawn("test", ord("2"), None),
    }
    for part, names in wanted.items():
        images = found[part]
        assert ["/" + images.name(i) for i in range(len(images))] == names
        assert images.labels is not None and images.labels.tolist() == [int("/b/" in name) for name in names]
        assert all(abs(mark - 10 * int(name[-6:-4])) <= 1 for mark, name in zip(_marks(images), names, strict=True))
    next((tmp_path / "SUN397" / "a" / "abbey").iterdir()).rename(tmp_path / "SUN397" / "a" / "abbey" / "sun_other.jpg")
    with pytest.raises(DataError, match="it holds 20 images, and those that were published are 20 of other names"):
        benchmark.open(tmp_path)


@OPENCV
def test_images_of_sun397_have_at_most_so_many_pixels() -> None:
    ramp = np.zeros((600, 900, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 2] = np.linspace(0, 255, 900), np.linspace(255, 0, 600)[:, None]
    small = sources.sun_image(ramp)
    assert small.shape == (283, 424, 3)
    wanted = np.asarray(Image.fromarray(ramp).resize((424, 283), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(small.astype(int) - wanted).mean() < 2, "and its channels stay where they are"
    assert sources.sun_image(ramp[:300, :400]).shape == (300, 400, 3)


def _eye(radius: int, level: int = 120) -> np.ndarray:
    rows, columns = np.mgrid[: 2 * radius + 40, : 2 * radius + 200]
    within = (rows - radius - 20) ** 2 + (columns - radius - 100) ** 2 < radius**2
    eye = np.zeros((*within.shape, 3), np.uint8)
    eye[within] = (level, level // 2, level // 4)
    spot = (rows - radius - 20) ** 2 + (columns - radius - 100 - radius // 2) ** 2 < (radius / 20) ** 2
    eye[spot] = (level + 40, level // 2, level // 4)
    return eye


@OPENCV
def test_an_eye_as_the_winner_saw_it() -> None:
    for radius in (120, 450):
        made = sources.retina_image(_eye(radius)).astype(int)
        assert made.shape == (540, 540, 3), "0.9 of a radius of 300 px to each side"
        assert np.abs(made[[0, 0, -1, -1], [0, -1, 0, -1]] - 128).max() <= 3, "grey beyond it"
        assert np.abs(made[270, 270] - 128).max() <= 3, "what is even is grey"
        right, left = made[270, 270 + 150], made[270, 270 - 150]
        assert right[0] - left[0] > 40, "and what stands out stands out, in its own channel"
        assert abs(right[2] - left[2]) < 40
    line = np.zeros((400, 30_000, 3), np.uint8)
    line[200, :4] = 255
    with pytest.raises(ValueError, match="would be enlarged beyond the limit"):
        sources.retina_image(line)


@OPENCV
def test_retinopathy(tmp_path: Path) -> None:
    folder = tmp_path / "diabetic-retinopathy-detection"
    levels = {f"{number}_{side}": (number + (side == "left")) % 5 for number in range(6) for side in ("left", "right")}
    usage = {name: ("Public", "Private")[place % 2] for place, name in enumerate(levels)}
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for number, name in enumerate(levels):
            Image.fromarray(_eye(60, 60 + 10 * number)).save(folder / part / f"{name}.jpeg", quality=95)

    def table(file: str, rows: Sequence[Sequence[object]]) -> None:
        stream = io.StringIO()
        csv.writer(stream).writerows(rows)
        (folder / file).write_text(stream.getvalue())

    rows = [("image", "level"), *levels.items()]
    table("trainLabels.csv", rows)
    table(
        "retinopathy_solution.csv",
        [("image", "level", "Usage"), *((name, 4 - level, usage[name]) for name, level in levels.items())],
    )
    task = BY_NAME["diabetic_retinopathy"]
    slices = {
        "train800": Slice(split="train", stop=6),
        "val200": Slice(split="validation", stop=2),
        "test": Slice(split="test"),
    }
    archive = dataclasses.replace(task.archive, pools={"train": 12, "validation": 6, "test": 6}, parts=slices)
    task = dataclasses.replace(task, archive=archive)
    benchmark = dataclasses.replace(task.benchmark(), parts={"train1000": 8, "test": 6})
    found = benchmark.open(tmp_path)

    def drawn(split: str, names: Sequence[str], stop: int | None) -> list[str]:
        return sorted(names, key=lambda name: hashlib.md5(f"{split}{name}".encode()).hexdigest())[:stop]

    public, private = ([name for name in levels if usage[name] == kind] for kind in ("Public", "Private"))
    thousand = [*drawn("train", list(levels), 6), *drawn("validation", public, 2)]
    images = found["train1000"]
    assert [images.name(i) for i in range(8)] == [f"{name}.jpeg" for name in thousand]
    assert images.labels is not None
    assert images.labels.tolist() == [levels[name] for name in thousand[:6]] + [
        4 - levels[name] for name in thousand[6:]
    ]
    assert images.read(0).shape == (540, 540, 3) and images.size(0) == (540, 540)
    test = found["test"]
    assert [test.name(i) for i in range(6)] == [f"{name}.jpeg" for name in drawn("test", private, None)]
    table("trainLabels.csv", [*rows[:-1], ("../x", 1)])
    with pytest.raises(DataError, match=r"'\.\./x'"):
        benchmark.open(tmp_path)
    table("trainLabels.csv", [*rows[:-1], ("5_right", 5)])
    with pytest.raises(DataError, match="the level '5'"):
        benchmark.open(tmp_path)
