"""ObjectNet: the border, the 113 folders, which answers compete, averages, and boxes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtransfer.data.images import prepare
from bigtransfer.errors import DataError, ImageError
from bigtransfer.suites import objectnet, registry
from bigtransfer.suites.benchmark import MissingData
from bigtransfer.suites.objectnet import BORDER, ObjectNet, ObjectNetBoxes, folders
from bigtransfer.suites.protocol import Measurement, Preparation
from bigtransfer.suites.stores import Cropped
from tests.imagenet_makers import CodedBench, bordered, coded, encrypted_zip

NAMES = [one.folder for one in folders()]
SMALL = Preparation(mode="aspect", size=30, resized=32)
CLASSES_OF = {one.folder: one.imagenet for one in folders()}
OUTSIDE = next(i for i in range(1000) if all(i not in one.imagenet for one in folders()))


def values(measured: Sequence[Measurement]) -> dict[str, float]:
    return {one.metric: one.value for one in measured}


def copy(root: Path, more: dict[str, list[np.ndarray]] | None = None) -> Path:
    """Each of the 113 folders with an image of its own, beside the folder of another object; more: further images."""
    place = root / "objectnet" / "objectnet-1.0" / "images"
    (place / "air_freshener").mkdir(parents=True)
    (place / "air_freshener" / "0123456789abcde.png").write_bytes(bordered(coded(0)))
    for name in NAMES:
        (place / name).mkdir()
        pictures = [coded(CLASSES_OF[name][-1]), *(more or {}).get(name, [])]
        for i, picture in enumerate(pictures):
            (place / name / f"{NAMES.index(name):013x}{i:02x}.png").write_bytes(bordered(picture))
    return place


def benchmark(images: int = 113):
    return dataclasses.replace(objectnet.OBJECTNET, parts={"test": images, "boxes": images})


def test_113_folders_are_125_classes() -> None:
    classes = [i for one in folders() for i in one.imagenet]
    assert (len(folders()), len(classes), len(set(classes))) == (113, 125, 125)
    assert sorted(NAMES) == NAMES
    assert CLASSES_OF["alarm_clock"] == (409, 530) and CLASSES_OF["chair"] == (423, 559, 765)
    assert next(one.id for one in folders() if one.folder == "full_sized_towel") == 9


def test_the_113_folders_are_picked_and_the_border_is_no_part_of_the_images(tmp_path: Path) -> None:
    copy(tmp_path)
    bench = CodedBench(benchmark().open(tmp_path, ["test"]))
    images = bench.parts["test"]
    assert images.read(0).shape == (24, 24, 3) and images.size(0) == (24, 24)
    measured = ObjectNet(preparation=SMALL).measure(bench)
    assert values(measured) == dict.fromkeys(("top-1", "top-5", "mean-per-class", "mean-per-class-top-5"), 1.0)
    assert all((seen == seen[0, 0]).all() for seen in bench.seen)


def test_the_shorter_side_is_resized_before_the_centre_is_cut_out() -> None:
    task = registry.SUITES["objectnet"].task("objectnet")
    assert task.protocol.parameters()["preparation"] == {
        "mode": "aspect",
        "size": 480,
        "resized": 512,
        "interpolation": None,
    }
    spec = objectnet.PAPER.spec(CodedBench({}).card)
    picture = np.zeros((1024, 2048, 3), np.uint8)
    picture[32:-32, 544:-544] = 255  # of 512 x 1024 the central 480
    assert (prepare(picture, spec)[2:-2, 2:-2] == 255).all()
    assert prepare(picture, spec)[0, 0, 0] > 100
    picture[32:48, 544:-544] = 0
    assert (prepare(picture, spec)[:6] == 0).all()


def test_which_answers_compete(tmp_path: Path) -> None:
    """Images of chairs (423, 559, 765): the answers above the right one are of no folder, or of others."""
    neighbour = next(
        i for i in range(999) if i + 1 not in sum(CLASSES_OF.values(), ()) and any(i in c for c in CLASSES_OF.values())
    )
    name = next(name for name, classes in CLASSES_OF.items() if neighbour in classes)
    copy(tmp_path, {name: [coded(neighbour, 1)]})  # above it is a class of no folder
    bench = CodedBench(benchmark(114).open(tmp_path, ["test"]))
    top1 = {
        rule: values(ObjectNet(preparation=SMALL, rule=rule).measure(bench))["top-1"]  # type: ignore[arg-type]
        for rule in ("all-1000", "restricted-125", "collapsed-113")
    }
    assert top1 == {"all-1000": 113 / 114, "restricted-125": 1.0, "collapsed-113": 1.0}


def test_top_5_of_folders_and_of_classes_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six classes of three folders are above the right one: five guesses of classes are spent on them, of folders only three."""
    copy(tmp_path)
    above = [*CLASSES_OF["chair"], *CLASSES_OF["pen"][:2], CLASSES_OF["skirt"][0]]
    row = np.zeros(1000, np.float32)
    row[above] = 2
    row[CLASSES_OF["banana"][0]] = 1
    row[OUTSIDE] = 3
    monkeypatch.setattr(CodedBench, "_answer", lambda *_: row)
    bench = CodedBench({"test": benchmark().open(tmp_path, ["test"])["test"].subset([NAMES.index("banana")])})
    top5 = {
        rule: values(ObjectNet(preparation=SMALL, rule=rule).measure(bench))["top-5"]  # type: ignore[arg-type]
        for rule in ("all-1000", "restricted-125", "collapsed-113")
    }
    assert top5 == {"all-1000": 0.0, "restricted-125": 0.0, "collapsed-113": 1.0}


def test_the_average_over_folders_counts_each_alike(tmp_path: Path) -> None:
    copy(tmp_path, {"banana": [coded(OUTSIDE)] * 3})
    measured = ObjectNet(preparation=SMALL).measure(CodedBench(benchmark(116).open(tmp_path, ["test"])))
    found = values(measured)
    assert found["top-1"] == 113 / 116
    assert found["mean-per-class"] == pytest.approx((112 + 0.25) / 113)
    assert [one.interval is None for one in measured] == [False, False, True, True]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", ["all-1000", "restricted-125", "collapsed-113"])
def test_numbers_do_not_depend_on_batches_order_or_images_that_come_twice(tmp_path: Path, seed: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    copy(tmp_path, {name: [coded(int(rng.choice(CLASSES_OF[name])), int(rng.integers(7)))] for name in NAMES[::9]})
    parts = {"test": benchmark(113 + len(NAMES[::9])).open(tmp_path, ["test"])["test"].subset(np.arange(0, 120, 4))}
    protocol = ObjectNet(preparation=SMALL, rule=rule)  # type: ignore[arg-type]
    reference = list(protocol.measure(CodedBench(parts, batch=1)))
    order = [*rng.permutation(30).tolist(), *rng.integers(30, size=5).tolist()]
    assert list(protocol.measure(CodedBench(parts, batch=7, order=order))) == reference


def test_an_incomplete_or_edited_copy_is_refused(tmp_path: Path) -> None:
    place = copy(tmp_path)
    with pytest.raises(DataError, match="has 113 images, but 18,574 were published"):
        objectnet.OBJECTNET.open(tmp_path, ["test"])
    first = next((place / NAMES[0]).iterdir())
    published = first.read_bytes()
    Image.fromarray(coded(409)).save(first)
    with pytest.raises(DataError, match="no red border of 2 px"):
        benchmark().open(tmp_path, ["test"])
    first.write_bytes(published)
    shutil.rmtree(place / "tie")
    with pytest.raises(DataError, match="lacks folders of ObjectNet: tie"):
        benchmark().open(tmp_path, ["test"])
    shutil.rmtree(place)
    with pytest.raises(DataError, match="has no folders of ObjectNet"):
        benchmark().open(tmp_path, ["test"])


def test_an_image_that_is_all_border_is_named(tmp_path: Path) -> None:
    place = copy(tmp_path)
    last = next((place / NAMES[-1]).iterdir())
    Image.new("RGB", (4, 30), "red").save(last)
    with pytest.raises(ImageError, match="no larger than its border"):
        benchmark().open(tmp_path, ["test"])["test"].read(112)


def test_it_is_never_trained_on_and_the_edition_is_named() -> None:
    suite = registry.SUITES["objectnet"]
    tasks = {task.name: task for task in (*suite.tasks, *suite.extra)}
    assert not any(task.benchmark.trainable or task.protocol.trains for task in tasks.values())
    assert tasks["objectnet"].benchmark.parts["test"] == 18_574
    assert tasks["objectnet/testbed-beta"].benchmark.parts == {"test": 18_514}
    assert tasks["objectnet/testbed-beta"].benchmark.revision == "beta"


def test_the_form_of_the_challenge_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "objectnet"
    (folder / "images").mkdir(parents=True)
    (folder / "answers").mkdir()
    by_name = {one.folder: one.id for one in folders()}
    shown = {"a.png": "tie", "b.png": "banana", "c.png": None}
    for name, kind in shown.items():
        (folder / "images" / name).write_bytes(bordered(coded(0 if kind is None else CLASSES_OF[kind][0])))
    answers = {name: 0 if kind is None else by_name[kind] for name, kind in shown.items()}
    (folder / "answers" / "answers-test.json").write_text(json.dumps(answers))
    bench = CodedBench(benchmark(2).open(tmp_path, ["test"]))
    assert values(ObjectNet(preparation=SMALL).measure(bench))["top-1"] == 1.0
    (folder / "answers" / "answers-test.json").write_text(json.dumps({"a.png": 1}))
    with pytest.raises(DataError, match=r"does not say what b\.png, c\.png show"):
        benchmark(2).open(tmp_path, ["test"])
    (folder / "images").rename(folder / "elsewhere")
    with pytest.raises(DataError, match="has no folders of ObjectNet"):
        benchmark(2).open(tmp_path, ["test"])
    (folder / "elsewhere").rename(folder / "images")
    (folder / "answers" / "answers-test.json").unlink()
    with pytest.raises(DataError, match="has no folders of ObjectNet"):
        benchmark(2).open(tmp_path, ["test"])


# --- Boxes


PASSWORD = b"objectnet1234"


def archive(root: Path, boxes: dict[str, str], password: bytes = PASSWORD) -> Path:
    """boxes: folder -> its file. The others have a box of everything within the border."""
    members = {"Annotations/tt.txt": b"junk", "Annotations/air_freshener.txt": b"more junk"}
    for name in NAMES:
        every = "".join(f"{NAMES.index(name):013x}00.png 2 2 26 26\n")
        members[f"Annotations/{name}.txt"] = boxes.get(name, every).encode()
    encrypted_zip(root / "objectnet" / "Annotations.zip", members, password)
    return root / "objectnet" / "Annotations.zip"


def _name(folder: str) -> str:
    return f"{NAMES.index(folder):013x}00.png"


def test_boxes_are_cut_out_of_the_images_with_their_border(tmp_path: Path) -> None:
    place = copy(tmp_path)
    picture = coded(OUTSIDE, height=40, width=60)
    picture[10:20, 30:45] = coded(CLASSES_OF["tie"][0], height=10, width=15)
    (place / "tie" / _name("tie")).write_bytes(bordered(picture))
    archive(tmp_path, {"tie": f"{_name('tie')}   32  12   47 22\n"})
    bench = CodedBench(benchmark().open(tmp_path, ["boxes"]))
    assert bench.parts["boxes"].read(NAMES.index("tie")).shape == (10, 15, 3)
    assert bench.parts["boxes"].size(NAMES.index("tie")) == (10, 15)
    measured = ObjectNetBoxes(preparation=Preparation(mode="square", size=16)).measure(bench)
    assert values(measured)["top-1"] == 1.0


def test_boxes_without_width_or_over_the_border_keep_a_part_of_the_photograph(tmp_path: Path) -> None:
    copy(tmp_path)
    archive(
        tmp_path,
        {
            "computer_mouse": f"{_name('computer_mouse')} 20 10 20 14\n",
            "tray": f"{_name('tray')} 28 28 28 28\n",
            "tie": f"{_name('tie')} 0 0 90 90\n",
        },
    )
    images = benchmark().open(tmp_path, ["boxes"])["boxes"]
    shapes = {name: images.read(NAMES.index(name)) for name in ("computer_mouse", "tray", "tie")}
    assert {name: one.shape[:2] for name, one in shapes.items()} == {
        "computer_mouse": (4, 1),
        "tray": (1, 1),
        "tie": (24, 24),
    }
    assert not any((one == (255, 0, 0)).all(axis=2).any() for one in shapes.values())


def test_without_the_archive_it_is_told_where_it_is_to_be_had(tmp_path: Path) -> None:
    copy(tmp_path)
    with pytest.raises(MissingData, match=r"Annotations\.zip from github\.com/aliborji"):
        benchmark().open(tmp_path, ["boxes"])
    benchmark().open(tmp_path, ["test"])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ({"tie": ""}, r"no box for 1 of 113 images, such as tie/"),
        ({"tie": "x.png 1 2 3\n"}, "line 1: an image and four numbers"),
        ({"tie": "x.png 9 2 3 4\n"}, "ends before it begins"),
    ],
)
def test_annotations_of_another_form_are_refused(tmp_path: Path, boxes: dict[str, str], message: str) -> None:
    copy(tmp_path)
    archive(tmp_path, boxes)
    with pytest.raises(DataError, match=message):
        benchmark().open(tmp_path, ["boxes"])


@pytest.mark.parametrize("spoil", ["password", "truncated", "text"])
def test_an_archive_that_cannot_be_read_is_a_message(tmp_path: Path, spoil: str) -> None:
    copy(tmp_path)
    file = archive(tmp_path, {}, b"another" if spoil == "password" else PASSWORD)
    if spoil != "password":
        file.write_bytes(file.read_bytes()[:2000] if spoil == "truncated" else b"boxes")
    with pytest.raises(DataError, match="cannot be read as the archive of ObjectNet's boxes"):
        benchmark().open(tmp_path, ["boxes"])


def test_a_box_is_a_part_of_the_stored_image() -> None:
    class Store:
        runs = None
        remote = False
        encoded = True

        def size(self, row: int) -> tuple[int, int]:
            return 100, 200

        def name(self, row: int) -> str:
            return "x"

    cropped = Cropped(Store(), BORDER, np.array([[10, 20, 30, 60], [150, 90, 199, 99]]))  # type: ignore[arg-type]
    assert cropped.size(0) == (40, 20)
    assert cropped.size(1) == (8, 48)
    assert Cropped(Store(), BORDER).size(0) == (96, 196)  # type: ignore[arg-type]
