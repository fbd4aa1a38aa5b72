"""Images with boxes: the three layouts, what is wrong with annotations, and boxes that move with their images."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtransfer.catalog import InputSpec
from bigtransfer.data import boxes as box_data
from bigtransfer.data import images as image_ops
from bigtransfer.data.boxes import BoxSet, open_boxes
from bigtransfer.errors import BitError, ConfigError, DataError, UnreadableImages
from bigtransfer.feed.boxes import BoxLoader, ScaleJitter
from tests import box_makers
from tests.box_makers import COLOURS, NAMES, scenes

# --- layouts


@pytest.mark.parametrize("layout", box_makers.LAYOUTS)
def test_all_layouts_say_the_same(layout: str, tmp_path: Path) -> None:
    made = {"train": scenes(4, 1), "val": scenes(2, 2)}
    found = open_boxes(box_makers.LAYOUTS[layout](tmp_path, made))
    assert found.class_names == NAMES and found.notes == () and found.test is None
    for part, scene in made.items():
        boxes = found.parts()[part]
        assert len(boxes) == len(scene) and boxes.sizes.tolist() == [[48, 64]] * len(scene)
        for i, (pixels, objects) in enumerate(scene):
            own = boxes.of(i)
            assert (boxes.images.read(i) == pixels).all()
            assert [NAMES[label] for label in boxes.labels[own]] == [kind for kind, _ in objects]
            np.testing.assert_allclose(boxes.boxes[own], [box for _, box in objects], atol=1e-4)
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for _, box in objects]
            np.testing.assert_allclose(boxes.areas[own], areas, rtol=1e-5)


def test_a_coco_file_alone_and_roboflow_s_parts(tmp_path: Path) -> None:
    made = scenes(2)
    for folder in ("train", "valid"):
        names = box_makers.write_images(tmp_path / folder, made)
        (tmp_path / folder / "_annotations.coco.json").write_text(json.dumps(box_makers.coco_record(names, made)))
    assert {*open_boxes(tmp_path).parts()} == {"train", "val"}
    alone = open_boxes(tmp_path / "valid" / "_annotations.coco.json")
    assert {*alone.parts()} == {"train"} and len(alone.train) == 2


def test_voc_without_lists_and_beside_the_images(tmp_path: Path) -> None:
    made = scenes(3)
    root = box_makers.voc(tmp_path / "whole", {"train": made})
    (root / "ImageSets" / "Main" / "train.txt").unlink()
    assert len(open_boxes(root).train) == 3
    for name, (pixels, objects) in zip(box_makers.write_images(tmp_path / "flat", made), made, strict=True):
        (tmp_path / "flat" / f"{Path(name).stem}.xml").write_text(box_makers.voc_xml(name, pixels, objects))
    assert len(open_boxes(tmp_path / "flat").train) == 3


def test_voc_s_trainval_is_no_second_copy(tmp_path: Path) -> None:
    root = box_makers.voc(tmp_path, {"train": scenes(2), "val": scenes(1), "test": scenes(1)})
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + "\n" + (lists / "val.txt").read_text())
    assert {part: len(own) for part, own in open_boxes(root).parts().items()} == {"train": 2, "val": 1, "test": 1}
    (lists / "val.txt").unlink()
    (lists / "train.txt").unlink()
    assert {part: len(own) for part, own in open_boxes(root).parts().items()} == {"train": 3, "test": 1}


def test_yolo_without_names_outlines_and_background(tmp_path: Path) -> None:
    root = box_makers.yolo(tmp_path, {"train": scenes(3)})
    (root / "data.yaml").unlink()
    (root / "labels" / "train" / "000.txt").unlink()
    (root / "labels" / "train" / "001.txt").write_text("1 0.25 0.25 0.5 0.25 0.5 0.75\n")
    found = open_boxes(root)
    assert found.class_names == ("0", "1") and "their numbers" in found.notes[-1]
    assert np.diff(found.train.starts)[:2].tolist() == [0, 1]
    np.testing.assert_allclose(found.train.boxes[0], [16, 12, 32, 36], atol=1e-4)


def test_yolo_in_folders_of_parts_as_roboflow_writes_it(tmp_path: Path) -> None:
    made = scenes(2)
    box_makers.yolo(tmp_path / "made", {"train": made})
    for part in ("train", "valid"):
        for kind in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / kind).symlink_to(tmp_path / "made" / kind / "train")
    (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: {0: blue, 1: red}\n")
    found = open_boxes(tmp_path)
    assert {part: len(own.boxes) for part, own in found.parts().items()} == dict.fromkeys(
        ("train", "val"), sum(len(objects) for _, objects in made)
    )


def test_a_folder_around_is_passed_through_and_no_layout_is_said(tmp_path: Path) -> None:
    box_makers.voc(tmp_path / "outer" / "inner", {"train": scenes(1)})
    assert len(open_boxes(tmp_path / "outer").train) == 1
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").mkdir()
    for path in (tmp_path / "photos", tmp_path / "nothing"):
        with pytest.raises(DataError, match=r"COCO.*VOC.*YOLO"):
            open_boxes(path)


# --- what is wrong


def one_image(tmp_path: Path, **changes: object) -> Path:
    """A COCO file of one image with one object, which `changes` overrides."""
    names = box_makers.write_images(tmp_path, scenes(1))
    annotation = {"image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0, **changes}
    record = {
        "images": [{"id": 1, "file_name": names[0], "height": 48, "width": 64}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [annotation, {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 0}],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([4, 4, -3, 20], "turned round"),
        ([4, 4, 20, -1], "turned round"),
        ([64, 4, 20, 20], "lies outside of the image of 64 x 48 px"),
        ([-30, 4, 20, 20], "lies outside"),
        ([4, 1e300, 20, 1e300], "lies outside"),
        ([1e308, 4, 1e308, 4], "no finite number"),
    ],
)
def test_boxes_that_cannot_be_right(tmp_path: Path, box: list[float], words: str) -> None:
    path = one_image(tmp_path, bbox=box)
    with pytest.raises(DataError, match=f"object 1 \\(cell\\) .*{words}") as raised:
        open_boxes(path)
    assert "--skip-bad-boxes" in str(raised.value) and "000.png" in str(raised.value)
    found = open_boxes(path, skip_bad_boxes=True)
    assert len(found.train.boxes) == 1 and len(found.left_out) == 1 and words in found.left_out[0].reason


def test_boxes_without_extent_and_over_the_edge(tmp_path: Path) -> None:
    found = open_boxes(one_image(tmp_path, bbox=[4, 4, 0, 20]))
    assert len(found.train.boxes) == 1 and "1 box of train without width or height are left out." in found.notes
    found = open_boxes(one_image(tmp_path, bbox=[50, 40, 20, 20]))
    assert found.train.boxes[0].tolist() == [50, 40, 64, 48] and "cut there" in found.notes[0]
    # Below the resolution of float32, far from 0: nothing is left of it where it is computed with.
    assert len(open_boxes(one_image(tmp_path, bbox=[40, 4, 1e-9, 20])).train.boxes) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bbox": [4, 4, 20]}, "annotations.0..bbox"),
        ({"bbox": [4, 4, 20, "wide"]}, "annotations.0..bbox"),
        ({"bbox": [4, 4, 20, float("nan")]}, "JSON is malformed"),
        ({"bbox": None}, "annotations.0..bbox"),
        ({"category_id": 7}, "category 7, which is not in"),
        ({"image_id": 2}, "image 2, which is not in"),
        ({"iscrowd": 5}, "iscrowd"),
        ({"image_id": 2**70}, "which is not in"),
    ],
)
def test_entries_of_another_form(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words) as raised:
        open_boxes(one_image(tmp_path, **change), skip_bad_boxes=True)
    assert "boxes.json" in str(raised.value)


def test_too_many_objects_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = one_image(tmp_path)
    record = json.loads(path.read_text())
    record["annotations"] *= 1001
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"2,002 objects on one image.*image_boxes"):
        open_boxes(path)
    monkeypatch.setenv("BIT_LIMITS", "image_boxes=2002")
    assert len(open_boxes(path).train.boxes) == 2002


def test_crowds_are_kept_and_marked(tmp_path: Path) -> None:
    found = open_boxes(one_image(tmp_path, iscrowd=1))
    assert found.train.crowd.tolist() == [True, False] and found.train.class_counts().tolist() == [1]
    assert "crowds or difficult" in found.notes[0]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../x.png", "..\\..\\x.png", "", "x\0.png"])
def test_paths_do_not_leave_the_data_set(tmp_path: Path, name: str) -> None:
    path = one_image(tmp_path)
    record = json.loads(path.read_text())
    record["images"][0]["file_name"] = name
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="not below"):
        open_boxes(path)


def test_images_that_are_missing_or_of_another_size(tmp_path: Path) -> None:
    path = one_image(tmp_path)
    record = json.loads(path.read_text())
    record["images"].append({"id": 2, "file_name": "gone.png"})
    record["images"].append({"id": 3, "file_name": "turned.png", "height": 64, "width": 48})
    Image.fromarray(scenes(1)[0][0]).save(tmp_path / "turned.png")
    path.write_text(json.dumps(record))
    with pytest.raises(UnreadableImages) as raised:
        open_boxes(path)
    assert "gone.png" in str(raised.value) and "annotations are for 48 x 64, as it is stored before" in str(
        raised.value
    )
    found = open_boxes(path, skip_bad_images=True)
    assert len(found.train) == 1 and len(found.left_out) == 2


def test_images_and_categories_that_are_there_twice(tmp_path: Path) -> None:
    path = one_image(tmp_path)
    for key in ("images", "categories"):
        record = json.loads(path.read_text())
        record[key].append(record[key][0])
        (tmp_path / "twice.json").write_text(json.dumps(record))
        with pytest.raises(DataError, match=r"twice|more than once"):
            open_boxes(tmp_path / "twice.json")


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<annotation><object><name>a</name></object></annotation>", "no bndbox"),
        ("<annotation><object><bndbox/></object></annotation>", "no name"),
        ("<annotation><object><name>a</name><bndbox><xmin>x</xmin></bndbox></object></annotation>", "not a number"),
        ("<html/>", "no annotation of VOC's form"),
        ("<annotation>", "not XML"),
        ("", "not XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "not XML"),
        ("<!DOCTYPE a [<!ENTITY x 'xxxx'>]><annotation>&x;</annotation>", "document type"),
        ("<annotation><size><width>inf</width><height>9</height></size></annotation>", "inf x 9 px, is none"),
        ("<annotation><size><width>9</width><height>1e99</height></size></annotation>", "9 x 1e.99 px, is none"),
        ("<annotation><size><width>9</width></size></annotation>", "height of size is '', not a number"),
    ],
)
def test_xml_of_another_form(tmp_path: Path, xml: str, words: str) -> None:
    root = box_makers.voc(tmp_path, {"train": scenes(1)})
    (root / "Annotations" / "train_000.xml").write_text(xml)
    with pytest.raises(DataError, match=words) as raised:
        open_boxes(root)
    assert "train_000.xml" in str(raised.value)


def test_a_document_type_in_utf_16_is_refused_too(tmp_path: Path) -> None:
    root = box_makers.voc(tmp_path, {"train": scenes(1)})
    laughs = "<!DOCTYPE a [<!ENTITY x 'ha'><!ENTITY y '&x;&x;'>]><annotation><filename>&y;</filename></annotation>"
    for encoding in ("utf-16", "utf-16-be"):
        (root / "Annotations" / "train_000.xml").write_bytes(laughs.encode(encoding))
        with pytest.raises(DataError, match="not XML in UTF-8"):
            open_boxes(root)


def test_an_image_is_listed_once(tmp_path: Path) -> None:
    root = box_makers.voc(tmp_path / "voc", {"train": scenes(2)})
    (root / "ImageSets" / "Main" / "train.txt").write_text("train_000\ntrain_001\ntrain_000\n")
    with pytest.raises(DataError, match=r"train\.txt, line 3: 'train_000' is there twice"):
        open_boxes(root)
    path = one_image(tmp_path)
    record = json.loads(path.read_text())
    record["images"].append({**record["images"][0], "id": 2, "file_name": "./000.png"})
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"images\[1\], './000.png' .* is there twice"):
        open_boxes(path)


def test_yolo_says_which_images_and_labels_are_alone(tmp_path: Path) -> None:
    root = box_makers.yolo(tmp_path, {"train": scenes(4), "val": scenes(1)})
    (root / "images" / "train" / "002.png").unlink()
    (root / "labels" / "train" / "003.txt").unlink()
    (root / "labels" / "train" / "classes.txt").write_text("blue\nred\n")
    found = open_boxes(root)
    assert len(found.train) == 3 and not len(found.train.boxes[found.train.of(2)])
    assert found.notes == (
        "1 of 3 train images have no file of labels: they count as images without objects.",
        "Files of labels of train that have no image are passed over (1): 'labels/train/002.txt'.",
    )


def test_voc_boxes_that_are_nan_and_lists_that_lead_elsewhere(tmp_path: Path) -> None:
    root = box_makers.voc(tmp_path, {"train": scenes(1)})
    path = root / "Annotations" / "train_000.xml"
    before = path.read_text()
    path.write_text(before.replace("<xmin>", "<xmin>nan</xmin><xmin>", 1))
    with pytest.raises(DataError, match="no finite number"):
        open_boxes(root)
    path.write_text(before)
    (root / "ImageSets" / "Main" / "train.txt").write_text("../../secret")
    with pytest.raises(DataError, match=r"train\.txt, line 1"):
        open_boxes(root)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "there is no class 2: the YAML file names 2"),
        ("-1 0.5 0.5 0.1 0.1", "no number of a class"),
        ("red 0.5 0.5 0.1 0.1", "no number of a class"),
        ("0 0.5 0.5 0.1", "a class and 3 numbers"),
        ("0 0.5 0.5 0.1 wide", "not a class and numbers"),
        ("0 nan 0.5 0.1 0.1", "no finite number"),
        ("0 0.5 0.5 -0.1 0.1", "turned round"),
        ("0 5 0.5 0.1 0.1", "lies outside"),
        ("99999999999999999999 0.5 0.5 0.1 0.1", "no number of a class"),
    ],
)
def test_lines_of_another_form(tmp_path: Path, line: str, words: str) -> None:
    root = box_makers.yolo(tmp_path, {"train": scenes(1)})
    (root / "labels" / "train" / "000.txt").write_text(line)
    with pytest.raises(DataError, match=words) as raised:
        open_boxes(root)
    assert "000.txt" in str(raised.value)


BILLIONS = (
    "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}' if i else 'ha'] * 9)}]\n" for i in range(12)) + "names: *x11\n"
)  # lists of lists, by reference


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("names: [a, a]", "there twice"),
        ("names: {0: a, 2: b}", "without gaps"),
        ("names: a", "must be a list"),
        ("names: [a]\ntrain: 5", "train"),
        ("names: [a\n", "not YAML"),
        ("names: [a, b]\nkpt_shape: [17, 2]", "key points"),
        (
            "x0: &x0 [a, a]\n"
            + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
            + "names: *x11",
            "is a list",
        ),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("names: [a]\n# " + "x" * 2**20, "bytes"),
    ],
)
def test_yaml_of_another_form(tmp_path: Path, yaml: str, words: str) -> None:
    root = box_makers.yolo(tmp_path, {"train": scenes(1)})
    (root / "data.yaml").write_text(yaml)
    with pytest.raises(DataError, match=words):
        open_boxes(root)


@pytest.mark.parametrize("where", ["{other}/images/train", "../other/images/train", "images/../../other/images/train"])
def test_a_yaml_file_does_not_lead_elsewhere(tmp_path: Path, where: str) -> None:
    root = box_makers.yolo(tmp_path / "own", {"train": scenes(1)})
    other = box_makers.yolo(tmp_path / "other", {"train": scenes(3)})
    (root / "data.yaml").write_text(f"train: {where.format(other=other)}\nnames: [blue, red]\n")
    assert len(open_boxes(root).train) == 1


def test_parts_that_the_yaml_file_names_and_that_are_not_there(tmp_path: Path) -> None:
    root = box_makers.yolo(tmp_path, {"train": scenes(1), "val": scenes(1)})
    path = root / "data.yaml"
    before = path.read_text()
    path.write_text(before.replace("train: images/train", "train: images/gone"))
    with pytest.raises(DataError, match="says that train is 'images/gone', and no such folder"):
        open_boxes(root)
    path.write_text(before.replace("val: images/val", "val: val2017.txt"))
    assert open_boxes(root).notes == (
        "Of val: the YAML file says that val is 'val2017.txt', and no such folder is here.",
    )


def test_parts_of_other_categories_are_refused(tmp_path: Path) -> None:
    root = box_makers.coco(tmp_path, {"train": scenes(1), "val": scenes(1)})
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace('"red"', '"green"'))
    with pytest.raises(DataError, match="other categories"):
        open_boxes(root)


def test_a_set_without_objects_or_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    with pytest.raises(DataError, match="no images"):
        open_boxes(tmp_path / "a.json")
    root = box_makers.voc(tmp_path / "voc", {"train": [(scenes(1)[0][0], [])]})
    with pytest.raises(DataError, match="no objects"):
        open_boxes(root)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    boxes = open_boxes(box_makers.voc(tmp_path, {"train": scenes(3)})).train
    turned = box_data.matched(boxes, ("green", "red", "blue"), "here")
    assert [turned.class_names[label] for label in turned.labels] == [NAMES[label] for label in boxes.labels]
    with pytest.raises(DataError, match="'red'"):
        box_data.matched(boxes, ("blue",), "here")


def test_holding_out_and_subsets(tmp_path: Path) -> None:
    boxes = open_boxes(box_makers.voc(tmp_path, {"train": scenes(10)})).train
    train, val = box_data.hold_out(boxes, 0.3, seed=1)
    assert (len(train), len(val)) == (7, 3)
    names = {train.images.name(i) for i in range(7)} | {val.images.name(i) for i in range(3)}
    assert len(names) == 10 and len(train.boxes) + len(val.boxes) == len(boxes.boxes)
    for i in range(3):
        where = [boxes.images.name(j) for j in range(10)].index(val.images.name(i))
        assert (val.boxes[val.of(i)] == boxes.boxes[boxes.of(where)]).all()
    with pytest.raises(DataError):
        box_data.hold_out(boxes.subset([0]), 0.5, 0)
    assert (
        boxes.fingerprint()
        != boxes.subset([*range(9)]).fingerprint()
        == pickle.loads(pickle.dumps(boxes.subset([*range(9)]))).fingerprint()
    )


# --- boxes move with their images


def extent(pixels: np.ndarray, name: str) -> tuple[int, int, int, int] | None:
    """Where the colour is: left, top, right, bottom."""
    far = np.abs(pixels.astype(int) - COLOURS[name]).max(axis=2) < 70
    if not far.any():
        return None
    rows, columns = np.flatnonzero(far.any(axis=1)), np.flatnonzero(far.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.mark.parametrize("size", [(60, 100), (100, 60), (80, 80)])
@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.5, 2.0)])
def test_boxes_are_where_the_objects_are(size: tuple[int, int], factors: tuple[float, float]) -> None:
    """Whatever crop, scale and mirroring: the painted rectangle is found within a pixel of where its box went."""
    jitter = ScaleJitter(size=96, smallest=factors[0], largest=factors[1])
    rng = np.random.default_rng(sum(size))
    draws = jitter.draw(rng, 60)
    mirrored = kept = 0
    for row in draws:
        image = np.full((*size, 3), 128, np.uint8)
        left, top = rng.integers(0, size[1] - 20), rng.integers(0, size[0] - 14)
        box = np.array([[left, top, left + 20, top + 14]])
        image[top : top + 14, left : left + 20] = COLOURS["red"]
        crops = jitter.crops(np.array([size]), row[None])
        seen = jitter.apply(image, row)
        assert seen.shape == (96, 96, 3)
        (moved,) = jitter.moved(box, size, crops.boxes[0], bool(crops.mirrored[0]))
        mirrored += bool(crops.mirrored[0])
        found = extent(seen, "red")
        if moved[2] > moved[0]:
            kept += 1
            assert found is not None
            np.testing.assert_allclose(found, moved, atol=1.5)
    assert kept > 20 and (0 < mirrored < 60)


def test_without_jitter_training_and_evaluation_see_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    plain = ScaleJitter(size=64, smallest=1, largest=1, flip=False)
    spec = InputSpec(size=64, mode="fit", decoder="exact")
    assert (plain.apply(image, np.zeros(4)) == image_ops.prepare(image, spec)).all()
    assert (image_ops.prepare(image, spec)[46:] == image_ops.GREY).all() and image_ops.fitted(50, 70, 64) == (46, 64)


def test_what_is_hardly_seen_is_no_object() -> None:
    jitter = ScaleJitter(size=64, flip=False)
    window = np.array([0, 0, 64, 64])
    boxes = np.array([[60, 0, 90, 30], [50, 0, 70, 30], [0, 0, 0.5, 30]])
    moved = jitter.moved(boxes, (128, 128), window, False)
    assert (moved[:, 2] > moved[:, 0]).tolist() == [False, True, False]


def loader(boxes: BoxSet, **options: object) -> BoxLoader:
    return BoxLoader(boxes, ScaleJitter(size=64), **{"batch_size": 4, "seed": 5, **options})


def test_batches_do_not_depend_on_cache_workers_or_start(tmp_path: Path) -> None:
    boxes = open_boxes(box_makers.voc(tmp_path, {"train": scenes(6)})).train
    whole = [(batch.images, batch.labels) for batch in loader(boxes, cache="memory").batches(0, 4)]
    assert whole[0][1].shape[0] == 4 and whole[0][1].shape[2] == 5 and str(whole[0][1].dtype) == "torch.float32"
    for options in ({"cache": "none"}, {"cache": "none", "workers": 2}):
        for (images, labels), batch in zip(whole[2:], loader(boxes, **options).batches(2, 4), strict=True):
            assert (images == batch.images).all() and (labels == batch.labels).all()


def test_crowds_are_not_learnt(tmp_path: Path) -> None:
    boxes = open_boxes(one_image(tmp_path, iscrowd=1)).train
    labels = next(iter(loader(boxes, batch_size=2).batches(0, 1))).labels
    assert (labels[:, :, 0] >= 0).sum(dim=1).max() <= 1


def test_unreadable_images_have_no_objects(tmp_path: Path) -> None:
    root = box_makers.voc(tmp_path, {"train": scenes(2)})
    boxes = open_boxes(root).train
    path = root / "JPEGImages" / "train_000.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BitError, match="train_000"):
        next(iter(loader(boxes, cache="none").batches(0, 1)))
    batch = next(iter(loader(boxes, cache="none", skip_bad=True).batches(0, 1)))
    assert len(batch.errors) == 2 and batch.readable is not None
    assert (batch.labels[~batch.readable][:, :, 0] == -1).all() and (batch.labels[batch.readable][:, 0, 0] >= 0).all()


def test_yaml_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = box_makers.yolo(tmp_path, {"train": scenes(1)})
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"bigtransfer\[detection\]"):
        open_boxes(root)
