"""What each section of the report computes and shows, against values worked out by hand from the run folder below."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from bigtransfer import report
from bigtransfer.errors import RunError
from bigtransfer.evals import detection
from bigtransfer.report import charts, page, sections
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Pictures, Thumbnail
from bigtransfer.report.sections import (
    SECTIONS,
    confusion,
    copies,
    data,
    labels,
    landscape,
    mistakes,
    selection,
    uncertain,
)
from tests.conftest import REPOSITORY
from tests.html_pages import Element, parse

# Eight images of three of four classes. By hand: four are right; of what is called an ant 2 of 3 are, of what is called a bee 1 of 3, of
# what is called a cat 1 of 2; F1 is 4/7, 2/5 and 1/2. Mean probability: (0.9 + 4.5) / 8 = 0.675.
EVALUATION: dict[str, Any] = {
    "format": 1,
    "model": "insects",
    "data": "garden",
    "split": "test",
    "images": 8,
    "class_names": ["ant", "bee", "cat", "dog"],
    "top1": 0.5,
    "top1_interval": [0.215, 0.785],
    "top5": None,
    "mean_per_class": 0.51,
    "nll": 1.25,
    "ece": 0.2,
    "per_class": [
        {"class": "ant", "precision": 2 / 3, "recall": 0.5, "f1": 4 / 7, "support": 4},
        {"class": "bee", "precision": 1 / 3, "recall": 0.5, "f1": 0.4, "support": 2},
        {"class": "cat", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        {"class": "dog", "precision": None, "recall": None, "f1": None, "support": 0},
    ],
    "confused": [[0, 1, 2], [1, 2, 1], [2, 0, 1]],
    "calibration": [
        {"from": 0.0, "to": 0.5, "images": 2, "confidence": 0.45, "accuracy": 0.5},
        {"from": 0.5, "to": 1.0, "images": 6, "confidence": 0.75, "accuracy": 0.5},
    ],
    "unreadable": [{"name": "c/9.png", "reason": "it is <empty>"}],
    "positions": [[0, 0.1, 0.2], [1, 0.5, 0.5], [4, 1.0, 0.0], [99, 0.3, 0.3], [5, 0.0, 1.0]],
    "confusion": [[2, 2, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]],
    "predictions": [
        {
            "name": name,
            "index": i,
            "true": true,
            "predicted": said,
            "rank": rank,
            "probability": p,
            "nll": 1.0,
            "entropy": h,
        }
        for i, (name, true, said, rank, p, h) in enumerate(
            [
                ("a/0.png", 0, 0, 0, 0.90, 0.30),
                ("a/1.png", 0, 1, 1, 0.80, 0.50),
                ("a/2.png", 0, 0, 0, 0.60, 0.90),
                ("b/0.png", 1, 1, 0, 0.70, 0.80),
                ("b/1.png", 1, 2, 2, 0.95, 0.20),
                ("c/0.png", 2, 2, 0, 0.50, 1.00),
                ("c/1.png", 2, 0, 1, 0.40, 1.05),
                ("a/3.png", 0, 1, 3, 0.55, 0.85),
            ]
        )
    ],
}
CONFIG: dict[str, Any] = {
    "command": "finetune",
    "asked": {"data": "garden", "model": "bit-t-r26x1", "steps": 4, "flip": False, "pretrained": True},
    "resolved": {"device": "cpu", "eval_every": 2, "native_size": [30, 20], "architecture": {"width": 1}},
    "recipe": {"steps": 4, "batch_size": 16, "resize": 40, "crop": 32, "decays": [2, 3], "notes": ["As told."]},
    "environment": {"torch": "2.11", "threads": 1, "argv": ["bit"]},
    "data": {"name": "garden", "train": 1234, "fingerprint": "f00"},
}
# Five images of three of four classes, of which the second to the fifth have not exactly their labels; the worst of them are wrong by 0.7
# (sea given with 0.7), 0.9 (cat missed with 0.1), 0.65 and 0.55.
LABELS: dict[str, Any] = {
    "multi_label": True,
    "model": "beach",
    "data": "coast",
    "split": "test",
    "images": 5,
    "class_names": ["sun", "sea", "cat", "dog"],
    "map": 0.75,
    "micro_f1": 0.625,
    "macro_f1": 0.5,
    "exact": 0.2,
    "chosen_here": False,
    "per_class": [
        {"class": name, "average_precision": ap, "threshold": t, "precision": p, "recall": r, "f1": f, "support": n}
        for name, ap, t, p, r, f, n in [
            ("sun", 0.9, 0.4, 1.0, 2 / 3, 0.8, 3),
            ("sea", 0.6, 0.5, 2 / 3, 1.0, 0.8, 2),
            ("cat", 0.75, 0.45, 0.0, 0.0, 0.0, 1),
            ("dog", None, 0.5, None, None, None, 0),
        ]
    ],
    "predictions": [
        {"name": name, "true": true, "given": given, "probabilities": chances}
        for name, true, given, chances in [
            ("0.png", [0, 1], [0, 1], [0.9, 0.8]),
            ("1.png", [0], [0, 1], [0.95, 0.7]),
            ("2.png", [1, 2], [1], [0.6, 0.1]),
            ("3.png", [0], [], [0.35]),
            ("d/4.png", [], [2], [0.55]),
        ]
    ],
}
UNREADABLE = [{"name": "a/8.png", "reason": "it is cut off"}, {"name": "c/9.png", "reason": "it is <empty>"}]
METRICS = [
    {"step": 0, "loss": 4.0, "lr": 0.1, "gradient_norm": 7.0},
    {"step": 1, "loss": 2.0, "lr": 0.3, "gradient_norm": 6.0},
    {"step": 1, "val/top1": 0.25, "val/ece": 0.1},
    {"step": 2, "loss": 1.0, "lr": 0.2, "gradient_norm": 5.0},
    {"step": 3, "loss": 0.5, "lr": 0.1, "gradient_norm": 5.5},
    {"step": 3, "val/top1": 0.75},
]
COPIES = [
    [
        {"part": "train", "name": "a/4.png", "classes": ["ant"]},
        {"part": "train", "name": "a/5.png", "classes": ["ant"]},
    ],
    [
        {"part": "train", "name": "a/6.png", "classes": ["ant"]},
        {"part": "train", "name": "b/6.png", "classes": ["bee"]},
    ],
    [
        {"part": "train", "name": "b/7.png", "classes": ["bee"]},
        {"part": "test", "name": "b/0.png", "classes": ["bee"]},
        {"part": "test", "name": "b/1.png", "classes": ["bee"]},
    ],
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "garden run"
    run.mkdir()
    write(run, "config.json", CONFIG)
    write(run, "evaluation.json", EVALUATION)
    write(run, "unreadable.json", UNREADABLE)
    write(run, "copies.json", COPIES)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    (run / "model.safetensors").touch()
    return run


def write(folder: Path, name: str, record: Any) -> None:
    (folder / name).write_text(json.dumps(record))


def counted(record: dict[str, Any]) -> dict[str, Any]:
    """An evaluation whose numbers of images are those of its predictions."""
    rows = record["predictions"]
    several = "map" in record
    right = sum(row["given"] == row["true"] if several else row["rank"] == 0 for row in rows)
    true = [c for row in rows for c in (row["true"] if several else [row["true"]])]
    return record | {
        "images": len(rows),
        "exact" if several else "top1": right / len(rows) if rows else None,
        "per_class": [row | {"support": true.count(c)} for c, row in enumerate(record["per_class"])],
    }


def changed(folder: Path, name: str = "evaluation.json", **values: Any) -> None:
    """Change values of one of the records; an evaluation's numbers of images follow its predictions."""
    record = json.loads((folder / name).read_text()) | values
    write(folder, name, counted(record) if "predictions" in values else record)


def computed(folder: Path, section: str) -> Any:
    return SECTIONS[section](Contents.read(folder, Pictures()))


# --- A page as a browser reads it


def shown(folder: Path) -> Element:
    return parse(report.write(folder).read_text(encoding="utf-8"))


def section(folder: Path, title: str) -> Element:
    (found,) = (one for one in shown(folder).all("section") if one.all("h2")[0].text == title)
    return found


# --- Closed form and fine-tuning


CLOSED: dict[str, Any] = {
    "view": {"size": 96, "readout": {"blocks": [0, 1, 2, 3], "sizes": [48, 96]}},
    "judged": [
        {"view": {"size": 48, "readout": None}, "top1": 0.625, "loss": 1.25},
        {"view": {"size": 96, "readout": {"blocks": [0, 1, 2, 3], "sizes": [48, 96]}}, "top1": 0.75, "loss": 0.5},
    ],
    "images": 1100,
    "seconds": 12.3,
    "top1": 0.7512,
}
CHOICE: dict[str, Any] = {
    "delivered": "average",
    "candidates": [
        {"kind": "closed form", "top1": 0.8, "loss": 0.75},
        {"kind": "fine-tuned", "top1": 0.7, "loss": 0.9},
        {"kind": "average", "top1": 0.85, "loss": 0.625},
    ],
    "images": 120,
}


def rows(table: Element) -> list[list[str]]:
    (body,) = table.all("tbody")
    return [[cell.text for cell in (*row.all("th"), *row.all("td"))] for row in body.all("tr")]


def test_the_candidates_and_which_was_chosen(folder: Path) -> None:
    assert computed(folder, "candidates") is None
    write(folder, "closed.json", CLOSED)
    found = section(folder, "Closed form and fine-tuning")
    text = " ".join(found.text.split())
    assert "in 12 s, from 1,100 images: it sees all blocks at 48 and 96 px, and is right in 75.1% of them" in text
    assert "Delivered" not in text
    (views,) = found.all("table")
    assert rows(views) == [
        ["the last map at 48 px", "62.5%", "1.250"],
        ["all blocks at 48 and 96 px (chosen)", "75.0%", "0.500"],
    ]
    write(folder, "choice.json", CHOICE)
    found = section(folder, "Closed form and fine-tuning")
    assert "Delivered is the average, which does best on 120 validation images" in " ".join(found.text.split())
    assert rows(found.all("table")[0]) == [
        ["closed form", "80.0%", "0.750"],
        ["fine-tuned", "70.0%", "0.900"],
        ["average (delivered)", "85.0%", "0.625"],
    ]
    assert "once more" not in found.text
    changed(folder, "closed.json", whole={"images": 1220, "top1": 0.7654})
    text = " ".join(section(folder, "Closed form and fine-tuning").text.split())
    assert "the closed form in it was solved once more, on all 1,220 images, those held out included: it is" in text
    assert "right in 76.5% of them" in text
    changed(folder, "choice.json", solved_on=1220)
    text = " ".join(section(folder, "Closed form and fine-tuning").text.split())
    assert "both classifiers in it were solved once more, on all 1,220 images" in text
    assert "the closed form is right in 76.5% of them" in text
    changed(folder, "choice.json", delivered="fine-tuned")
    text = " ".join(section(folder, "Closed form and fine-tuning").text.split())
    assert "the classifier of the fine-tuned network was solved once more, on all 1,220 images, those held" in text
    assert "included. This is what" in text, "its leave-one-out, for which it was tuned, says too much"
    assert "which does about as well as the average, in less time for each image, on 120 validation images" in text
    changed(folder, "choice.json", solved_on=None)
    assert "once more" not in section(folder, "Closed form and fine-tuning").text, "it is no part of the model"
    changed(folder, "choice.json", delivered="closed form", solved_on=1220)
    changed(folder, "closed.json", whole={"images": 1220, "top1": None})
    text = " ".join(section(folder, "Closed form and fine-tuning").text.split())
    assert "the closed form was solved once more" in text and "those held out included. This is what" in text
    changed(folder, "closed.json", top1=None, judged=[{**CLOSED["judged"][0], "top1": None, "loss": None}])
    found = section(folder, "Closed form and fine-tuning")
    assert "is right in" not in found.text and rows(found.all("table")[1]) == [["the last map at 48 px", "–", "–"]]


def test_a_closed_form_alone_is_not_said_to_precede_a_training(folder: Path) -> None:
    write(folder, "closed.json", CLOSED)
    changed(folder, "config.json", recipe=CONFIG["recipe"] | {"steps": 0})
    text = " ".join(section(folder, "The closed form").text.split())
    assert "The network was left as it is, and a linear classifier on its features was solved exactly" in text
    write(folder, "choice.json", CHOICE)
    assert "Before any training" in section(folder, "Closed form and fine-tuning").text


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("closed.json", {"seconds": "long"}, "closed.json: seconds"),
        ("closed.json", {"top1": 2}, "closed.json: top1"),
        ("closed.json", {"view": {"size": 4, "readout": {"blocks": [999]}}}, "closed.json: view.readout.blocks"),
        ("choice.json", {"delivered": "<b>"}, "choice.json: delivered"),
        ("choice.json", {"candidates": []}, "choice.json: candidates"),
    ],
)
def test_candidates_of_another_form_are_named(folder: Path, name: str, values: dict[str, Any], said: str) -> None:
    write(folder, "closed.json", CLOSED)
    write(folder, "choice.json", CHOICE)
    changed(folder, name, **values)
    with pytest.raises(RunError, match=re.escape(said)):
        report.write(folder)


# --- The headline


def test_the_headline_of_an_evaluation(folder: Path) -> None:
    (head,) = shown(folder).all("header")
    text = " ".join(head.text.split())
    assert (
        "garden run bit-t-r26x1, fine-tuned on garden 50.0% of 8 test images of 3 of the 4 classes are recognized"
        in text
    )
    assert "95% interval 21.5% to 78.5%" in text
    assert "2 of them are among the training images too, so that the accuracy looks better than it is" in text
    (tiles,) = head.all("div", "tiles")
    assert [(tile.all("b")[0].text, tile.all("span")[0].text) for tile in tiles.all("div")] == [
        ("51.0%", "mean over classes, each counted alike"),
        ("20.0%", "calibration error of the probabilities"),
        ("1,234", "images learnt from"),
    ]


def test_the_headline_counts_what_was_learnt_from(folder: Path) -> None:
    write(folder, "closed.json", CLOSED)
    assert computed(folder, "headline").train_images == 1234, "a network was trained"
    write(folder, "choice.json", {**CHOICE, "delivered": "closed form"})
    assert computed(folder, "headline").train_images == CLOSED["images"] != 1234
    changed(folder, "closed.json", whole={"images": 1999, "top1": 0.7})
    assert computed(folder, "headline").train_images == 1999
    write(folder, "choice.json", {**CHOICE, "delivered": "average"})
    assert computed(folder, "headline").train_images == 1234


@pytest.mark.parametrize("told", ["the size <b>tells</b> it", "", 5, ["a"]])
def test_what_gives_classes_away_is_shown_at_the_top(folder: Path, told: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**config, "data": {**config["data"], "given_away": told}})
    head = shown(folder).all("header")[0].text
    assert ("the size <b>tells</b> it" in head) == (told == "the size <b>tells</b> it")
    assert "given away" not in shown(folder).text


def test_copies_among_other_parts_are_not_trained_on(folder: Path) -> None:
    write(folder, "copies.json", [[{"part": part, "name": "b/0.png", "classes": ["bee"]} for part in ("val", "test")]])
    assert computed(folder, "headline").evaluated.trained_on == 0
    assert computed(folder, "copies").leaked == 1


@pytest.mark.parametrize(("classes", "tile"), [(5, False), (6, True)])
def test_top_5_is_shown_from_six_classes_on(folder: Path, classes: int, tile: bool) -> None:
    names = [f"class {i}" for i in range(classes)]
    empty = {"precision": None, "recall": None, "f1": None, "support": 0}
    table = [*EVALUATION["per_class"][:3], *({"class": name, **empty} for name in names[3:])]
    changed(folder, class_names=names, per_class=table, confusion=None, top5=0.875)
    assert ("87.5%" in shown(folder).text) == tile
    assert computed(folder, "headline").evaluated.top5 == (0.875 if tile else None)


@pytest.mark.parametrize(
    ("split", "images", "said"),
    [
        ("train", 8, "50.0% of 8 training images of 3 of the 4 classes are"),
        ("val", 2000, "50.0% of 2,000 validation images of 3 of the 4 classes are"),
        ("all images", 8, "50.0% of 8 images of 3 of the 4 classes are"),
        ("test", 1, "100.0% of 1 test image of 1 of the 4 classes is"),
    ],
)
def test_what_was_measured_on(folder: Path, split: str, images: int, said: str) -> None:
    changed(folder, split=split, predictions=(EVALUATION["predictions"] * 250)[:images], confused=[])
    text = shown(folder).text
    assert f"{said} recognized correctly" in text
    assert ("among the training images" in text) == (split == "test")  # where the copies are


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"images": 7}, "predictions has 8 entries, images is 7"),
        ({"top1": 0.625}, "top1 is 0.625, and predictions has 4 right of 8"),
        (
            {
                "per_class": [row | {"support": row["support"] + 1} for row in EVALUATION["per_class"][:1]]
                + EVALUATION["per_class"][1:]
            },
            "per_class[0] has a support of 5, and predictions has 4 of the class",
        ),
    ],
)
def test_an_evaluation_that_contradicts_its_rows_is_named(folder: Path, values: dict[str, Any], said: str) -> None:
    changed(folder, **values)
    with pytest.raises(RunError) as caught:
        report.write(folder)
    assert str(caught.value).startswith(f"{folder / 'evaluation.json'}: {said}")


def test_notes_of_an_evaluation_stand_below_the_number(folder: Path) -> None:
    changed(folder, notes=["the labels were taken for numbers", "no <tag>"])
    notes = [one.text for one in shown(folder).all("header")[0].all("p", "soft")]
    assert notes[-2:] == ["the labels were taken for numbers", "no <tag>"]


def test_the_headline_before_the_evaluation(folder: Path) -> None:
    (folder / "evaluation.json").unlink()
    text = shown(folder).all("header")[0].text
    assert "75.0% of the validation images are recognized correctly after step 4." in text
    assert "There is no final evaluation: the run has not finished." in text
    write(folder, "evaluation.json", {})
    assert "no final evaluation: the data set has no images to measure it on." in shown(folder).text
    changed(folder, "config.json", command="pretrain", asked={"data": "garden"})
    assert "no final evaluation" not in shown(folder).text  # the last validation is what pre-training ends with


def test_the_headline_before_the_evaluation_with_several_labels(folder: Path) -> None:
    (folder / "evaluation.json").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 4, "val/map": 0.5}\n{"step": 9, "val/map": 0.625}\n')
    text = shown(folder).all("header")[0].text
    assert "62.5% mean average precision on the validation images after step 10." in text


def test_other_ways_to_a_model(folder: Path) -> None:
    changed(folder, "config.json", asked=CONFIG["asked"] | {"pretrained": False})
    assert computed(folder, "headline").subject == "bit-t-r26x1, trained from random weights on garden"
    changed(folder, "config.json", command="evaluate", asked={"data": "elsewhere", "model": "x"})
    assert computed(folder, "headline").subject == "insects on garden"
    (folder / "config.json").unlink()
    changed(folder, data="", model="")
    assert computed(folder, "headline").subject == ""


# --- What was asked and decided


def test_what_was_asked_and_decided(folder: Path) -> None:
    found = section(folder, "What was asked, and what was decided")
    assert found.all("pre")[0].text == "bit finetune garden --model bit-t-r26x1 --steps 4 --no-flip"
    assert [one.text for one in found.all("li")] == ["As told."]
    decided, machine = found.all("dl")
    assert decided.pairs() == {
        "steps": "4",
        "batch size": "16",
        "resize": "40",
        "crop": "32",
        "mixup alpha": "0",
        "base learning rate": "0.003",
        "warmup": "0",
        "decays": "2, 3",
        "schedule": "staircase",
        "momentum": "0.9",
        "weight decay": "0",
        "variant": "code",
    }
    assert machine.pairs() == {
        "name": "garden",
        "train": "1,234",
        "device": "cpu",
        "eval every": "2",
        "native size": "30, 20",
    }


def test_values_are_written_for_people(folder: Path) -> None:
    """Without switches that are off, and without what only the program knows to read."""
    values = {"a": True, "b": False, "c": 0.00012345, "d": 12_000, "e": [1, 2.5], "f": "text", "g": 0}
    changed(
        folder,
        "config.json",
        resolved=values | {"none": None, "empty": "", "list": [], "deep": [[1]], "dict": {}, "tail": 1.0, "again": 0.0},
        data={},
    )
    _, machine = section(folder, "What was asked, and what was decided").all("dl")
    shown = {"a": "yes", "c": "0.00012345", "d": "12,000", "e": "1, 2.5", "f": "text", "g": "0"}
    assert machine.pairs() == shown
    assert [page.counted(n, "class", "classes") for n in (0, 1, 2000)] == ["0 classes", "1 class", "2,000 classes"]


def test_a_classifier_without_steps_lists_none(folder: Path) -> None:
    changed(
        folder, "config.json", recipe={"steps": 0, "batch_size": 0, "resize": 48, "crop": 48, "notes": ["No steps."]}
    )
    decided, machine = section(folder, "What was asked, and what was decided").all("dl")
    assert decided.pairs() == {"resize": "48", "crop": "48"} and "eval every" not in machine.pairs()


def test_versions_and_machine(folder: Path) -> None:
    assert section(folder, "Made with").pairs() == {"torch": "2.11", "threads": "1"}


# --- Curves


def curve_of(found: Element, title: str) -> Element:
    (figure,) = (one for one in found.all("figure") if one.all("figcaption")[0].text.startswith(title))
    return figure


def test_curves_are_drawn_at_the_steps_taken(folder: Path) -> None:
    found = section(folder, "Training")
    captions = [one.text for one in found.all("figcaption")]
    assert captions == [
        "Training loss 0.5",
        "Learning rate, at most 0.3",
        "Length of the gradient 5.5",
        "Validation accuracy 75%",
    ]
    # 356 px for the steps 0 to 4, 186 px for 0 to 4 * 1.06; the first loss belongs to the end of step 1.
    loss = curve_of(found, "Training loss")
    faint, line = loss.all("polyline")
    assert faint.attributes["class"] == "faint" and line.attributes["class"] == "line"
    assert faint.attributes["points"] == line.attributes["points"] == "139.0,24.5 228.0,112.3 317.0,156.1 406.0,178.1"
    levels, steps = loss.all("text")[:5], loss.all("text")[5:]
    assert [(one.text, *one.numbers("y")) for one in levels] == [
        ("0", 204.0),
        ("1", pytest.approx(160.1)),
        ("2", pytest.approx(116.3)),
        ("3", pytest.approx(72.4)),
        ("4", pytest.approx(28.5)),
    ]
    assert [(one.text, *one.numbers("x")) for one in steps] == [
        ("0", 50),
        ("1", 139),
        ("2", 228),
        ("3", 317),
        ("4", 406),
    ]
    assert [one.numbers("y1", "y2") for one in loss.all("line", "grid")][-1] == (24.5, 24.5)
    accuracy = curve_of(found, "Validation accuracy")
    assert [one.all("title")[0].text for one in accuracy.all("circle")] == ["after step 2: 25%", "after step 4: 75%"]
    assert [one.numbers("cx") for one in accuracy.all("circle")] == [(228.0,), (406.0,)]
    assert accuracy.all("circle")[1].numbers("cy") < accuracy.all("circle")[0].numbers("cy")


def test_the_loss_on_validation_images_and_what_happened_on_the_way(folder: Path) -> None:
    lines = [*METRICS[:2], {"step": 1, "val/top1": 0.75, "val/nll": 1.5, "val/best": 1.0}, *METRICS[3:5]]
    lines.append({"step": 3, "val/top1": 0.5, "val/nll": 3.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = [{"step": 1, "steps": 9, "eval_every": 2, "seconds": 1.0, "reason": "pace"}]
    changes.append({"step": 4, "steps": 4, "eval_every": 2, "seconds": 2.0, "reason": "learnt"})
    changes.append({"step": 5, "steps": 6, "eval_every": 2, "seconds": 2.0, "reason": "pace"})  # further than the log
    write(folder, "budget.json", {"seconds": 9.0, "replanned": changes})
    found = section(folder, "Training")
    loss = curve_of(found, "Training loss")
    assert [one.attributes["class"] for one in loss.all("polyline")] == ["faint", "line", "second"]
    # At the height of 186 px for 0 to 4.24 nats.
    assert loss.all("polyline")[2].attributes["points"] == "228.0,134.2 406.0,68.4"
    assert [one.all("title")[0].text for one in loss.all("circle")] == ["after step 2: 1.5", "after step 4: 3"]
    assert {one.attributes["class"] for one in loss.all("circle")} == {"dot second"}
    for title in ("Training loss", "Learning rate", "Length of the gradient", "Validation accuracy"):
        chart = curve_of(found, title)
        marked = [one for one in chart.all("line") if one.attributes["class"] != "grid"]
        assert [(one.attributes["class"], *one.numbers("x1", "x2", "y1", "y2")) for one in marked] == [
            ("replanned", 139, 139, 14, 200),
            ("replanned", 406, 406, 14, 200),
            ("best", 228, 228, 14, 200),
        ]
        assert [one.all("title")[0].text for one in marked] == [
            "after step 1: 9 steps in all, to keep the budget",
            "after step 4: nothing was left to learn",
            "after step 2: the weights that were kept",
        ]
    assert "step 2, whose weights are kept" in found.text and "Dashed" in found.text
    assert "on the validation images" in found.text
    (folder / "budget.json").unlink()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    plain = section(folder, "Training")
    assert "upright" not in plain.text and "Dashed" not in plain.text and "validation images" not in plain.text
    assert not [one for one in plain.all("line") if one.attributes["class"] != "grid"]


def test_a_damaged_budget_is_named(folder: Path) -> None:
    write(folder, "budget.json", {"seconds": "long"})
    with pytest.raises(RunError, match=r"budget\.json: seconds.*Repair the file"):
        Contents.read(folder, Pictures())


@pytest.mark.parametrize(
    ("asked", "steps", "delivered", "said"),
    [
        ({}, 4, None, "bit-t-r26x1, fine-tuned on garden"),
        ({"linear": "sgd"}, 4, None, "bit-t-r26x1, with a linear classifier trained on garden"),
        ({"linear": "closed"}, 0, None, "bit-t-r26x1, with a linear classifier solved on garden"),
        ({"budget": "1m"}, 0, None, "bit-t-r26x1, with a linear classifier solved on garden"),
        ({"budget": "1m"}, 4, "fine-tuned", "bit-t-r26x1, fine-tuned on garden"),
        ({"budget": "1m"}, 4, "closed form", "bit-t-r26x1, with a linear classifier solved on garden"),
        (
            {"budget": "1m"},
            4,
            "average",
            "bit-t-r26x1, fine-tuned and averaged with a linear classifier solved on garden",
        ),
        ({"pretrained": False}, 4, None, "bit-t-r26x1, trained from random weights on garden"),
    ],
)
def test_the_subject_is_what_was_delivered(
    folder: Path, asked: dict, steps: int, delivered: str | None, said: str
) -> None:
    changed(folder, "config.json", asked=CONFIG["asked"] | asked, recipe=CONFIG["recipe"] | {"steps": steps})
    if delivered:
        write(folder, "choice.json", CHOICE | {"delivered": delivered})
    assert computed(folder, "headline").subject == said


def test_steps_are_whole_numbers(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"step": 0, "val/top1": 0.5}\n')
    (figure,) = section(folder, "Training").all("figure")
    assert [one.text for one in figure.all("text") if one.attributes["text-anchor"] == "middle"] == ["0", "1"]


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("val/map", "Validation, mean average precision 66.7%"),
        ("val/precision_at_1", "Validation, precision at 1 66.7%"),
        ("probe/top1", "Accuracy of the probe, on its own set 66.7%"),
    ],
)
def test_other_measurements(folder: Path, key: str, title: str) -> None:
    lines = [{"step": 9, key: 0.6543}, {"step": 19, key: 2 / 3}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (figure,) = section(folder, "Training").all("figure")
    assert figure.all("figcaption")[0].text == title  # closer together than 5 points: a digit more
    assert [one.all("title")[0].text for one in figure.all("circle")] == [
        "after step 10: 65.4%",
        "after step 20: 66.7%",
    ]


def test_what_cannot_be_drawn_is_left_out(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(
        '{"step": 0, "loss": 1.0}\n{"step": 1, "loss": NaN}\n{"step": 2, "lr": 0.1}\n'
    )
    assert computed(folder, "curves") is None  # a point is no curve


@pytest.mark.parametrize(
    "values", [(-1e308, 1e308), (0.0, 5e-324), (1e-320, 2e-320), (0.1, 0.1 + 2e-17), (3.0, 3.0), (0.0, 0.0)]
)
def test_extreme_values_are_drawn_within_the_frame(values: tuple[float, float]) -> None:
    points = list(enumerate(values, start=1))
    drawn = charts.curve("x", [("line", points)], lambda y, more: f"{y:.{3 + more}g}", values[-1], marks=("line",))
    for x, y in drawn.lines[0][1]:
        assert 50 <= x <= 406 and 14 <= y <= 200
    assert len(drawn.levels) >= 2 and len({level.text for level in drawn.levels}) == len(drawn.levels)


def test_long_values_beside_a_curve_have_room() -> None:
    def label(y: float, more: int) -> str:
        return f"{y:.{3 + more}g}"

    wide = charts.curve("x", [("line", [(1.0, 1.7917), (2.0, 1.79171)])], label, 1.79)
    longest = max((level.text for level in wide.levels), key=len)
    assert len(longest) > 7 and wide.left == round(6 + 7.6 * (len(longest) - 1) + 3.8)
    assert wide.lines[0][1][-1][0] == 406 and wide.steps[0].at == wide.left
    shares = charts.curve("x", [("line", [(1.0, 0.833), (2.0, 0.834)])], lambda y, more: f"{y:.{1 + more}%}", 0.834)
    longest = max((level.text for level in shares.levels), key=len)
    assert longest.endswith("%") and shares.left == round(6 + 7.6 * (len(longest) - 2) + 3.8 + 11.4) > 50
    assert charts.curve("x", [("line", [(1.0, 0.1), (2.0, 0.15)])], label, 0.15).left == 50


def test_a_flat_curve_has_a_twentieth_of_room_above_and_below() -> None:
    def levels(value: float) -> list[str]:
        drawn = charts.curve("x", [("line", [(1.0, value), (2.0, value)])], lambda y, more: f"{y:.{1 + more}f}", value)
        return [level.text for level in drawn.levels]

    assert levels(2.0) == ["1.90", "1.95", "2.00", "2.05", "2.10"]
    assert levels(0.0) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_a_wild_first_value_does_not_press_the_rest_flat() -> None:
    points = [(float(i + 1), 1e6 if i == 0 else 1.0 + 0.5 * (i % 2)) for i in range(100)]
    (_, placed) = charts.curve("x", [("line", points)], lambda y, more: f"{y:.{3 + more}g}", 1.0).lines[0]
    assert placed[0][1] == 14.0  # above the frame's top, so on it
    assert abs(placed[1][1] - placed[2][1]) > 100


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 4.24, [0, 1, 2, 3, 4]),
        (0.823, 0.837, [0.825, 0.83, 0.835]),
        (0, 12, [0, 2.5, 5, 7.5, 10]),
        (-3, 7, [-2, 0, 2, 4, 6]),
        (0, 30_000, [0, 10_000, 20_000, 30_000]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_labels_have_the_digits_that_tell_them_apart() -> None:
    def share(y: float, more: int) -> str:
        return f"{y:.{more}%}"

    assert charts.distinct([0.825, 0.83, 0.835], share) == ["82.5%", "83.0%", "83.5%"]
    assert charts.distinct([0.0, 0.25, 0.5], share) == ["0%", "25%", "50%"]
    assert charts.distinct([0.0, 0.025, 0.05], share) == ["0.0%", "2.5%", "5.0%"]
    assert charts.distinct([1.7917, 1.7918], lambda y, more: f"{y:.{3 + more}g}") == ["1.7917", "1.7918"]


def test_the_smoothed_curve_does_not_lag() -> None:
    smooth = charts.smoothed([(float(i), float(i * i)) for i in range(120)])  # a window of 5
    assert smooth[0] == (0.0, 0.0) and smooth[1] == (1.0, pytest.approx(5 / 3))
    for i in range(2, 118):
        assert smooth[i] == (float(i), pytest.approx(i * i + 2))
    assert smooth[119] == (119.0, pytest.approx(119**2))
    assert charts.smoothed([(1.0, 4.0), (2.0, 2.0)]) == [(1.0, 4.0), (2.0, 2.0)]


def test_no_peak_is_lost_in_a_long_curve() -> None:
    points = [(float(i), math.sin(i / 50)) for i in range(5000)]
    points[1234], points[4321] = (1234.0, 9.0), (4321.0, -9.0)
    kept = charts.thinned(points)
    assert len(kept) <= 402 and (1234.0, 9.0) in kept and (4321.0, -9.0) in kept
    assert kept[0] == points[0] and kept[-1] == points[-1] and [x for x, _ in kept] == sorted(x for x, _ in kept)
    assert charts.thinned(points[:400]) == points[:400]


# --- Classes and confusions


def test_classes_the_worst_first(folder: Path) -> None:
    found = section(folder, "Class by class")
    assert found.rows() == [
        ["Class", "Images", "Precision", "Recall", "F1"],
        ["bee", "2", "33.3%", "50.0%", "40.0%"],
        ["cat", "2", "50.0%", "50.0%", "50.0%"],
        ["ant", "4", "66.7%", "50.0%", "57.1%"],
    ]
    assert "3 classes (1 other has no image here)." in found.text
    first = found.all("tr")[1]
    assert [cell.attributes["data-v"] for cell in first.all("td")] == [
        "2",
        str(1 / 3),
        "0.5",
        "0.4",
    ]  # what a click sorts by
    assert [cell.attributes.get("style") for cell in first.all("td")] == [
        None,
        "--share:0.333",
        "--share:0.500",
        "--share:0.400",
    ]


def test_a_class_that_is_never_predicted(folder: Path) -> None:
    table = copy.deepcopy(EVALUATION["per_class"])
    table[1] |= {"precision": None, "recall": 0.0, "f1": 0.0}
    changed(folder, per_class=table)
    found = section(folder, "Class by class")
    assert found.rows()[1] == ["bee", "2", "–", "0.0%", "0.0%"]
    assert found.all("tr")[1].all("td")[1].attributes == {"class": "bar", "data-v": "-1"}


def test_what_is_confused_with_what(folder: Path) -> None:
    found = section(folder, "What is confused with what")
    assert found.rows()[1:] == [["ant", "bee", "2", "50%"], ["bee", "cat", "1", "50%"], ["cat", "ant", "1", "50%"]]
    (drawing,) = found.all("svg")
    # Names of 3 letters at 13 px: 35 px beside the matrix; 46 px a cell.
    cells = [
        (one.attributes["class"], *one.numbers("x", "y", "fill-opacity"), one.all("title")[0].text)
        for one in drawing.all("rect")[:-1]
    ]
    half = round(math.sqrt(0.5), 2)
    assert cells == [
        ("good", 35, 35, half, "ant right: 2 of 4 (50%)"),
        ("bad", 81, 35, half, "ant taken for bee: 2 of 4 (50%)"),
        ("good", 81, 81, half, "bee right: 1 of 2 (50%)"),
        ("bad", 127, 81, half, "bee taken for cat: 1 of 2 (50%)"),
        ("bad", 35, 127, half, "cat taken for ant: 1 of 2 (50%)"),
        ("good", 127, 127, half, "cat right: 1 of 2 (50%)"),
    ]
    frame = drawing.all("rect", "frame")[0]
    assert frame.numbers("x", "y", "width", "height") == (34.5, 34.5, 184, 184)
    numbers = [(one.text, one.attributes["class"]) for one in drawing.all("text", "count")]
    assert numbers == [("2", "count on")] * 2 + [("1", "count on")] * 4
    names = [one for one in drawing.all("text") if "class" not in one.attributes]
    assert [one.text for one in names] == [
        name for name in ("ant", "bee", "cat", "dog") for _ in range(2)
    ]  # rows and columns
    assert names[2].numbers("x", "y") == (29, pytest.approx(35 + 1.5 * 46 + 0.35 * 13, abs=0.06))
    assert names[3].attributes["transform"] == f"translate({names[2].attributes['y']} 29) rotate(-90)"


class Drawn(Pictures):
    """A picture of every name, which it shows in its address."""

    def get(self, name: str) -> Thumbnail | None:
        return Thumbnail(source=name, tiny=False)

    large = get


def test_what_is_confused_is_shown_by_the_surest_answers(folder: Path) -> None:
    predictions = [
        {"name": f"{true}{said} {p}", "index": i, "true": true, "predicted": said, "rank": int(true != said)}
        | {"probability": p, "nll": 1.0, "entropy": 0.5}
        for i, (true, said, p) in enumerate(
            (true, said, p) for true in (0, 1) for said in (0, 1) for p in (0.5, 0.9, 0.6, 0.8)
        )
    ]
    changed(folder, predictions=predictions, confused=[[0, 1, 4], [1, 0, 4]])
    (pair,) = SECTIONS["confusion"](Contents.read(folder, Drawn())).beside
    assert (pair.true, pair.answer) == ("ant", "bee")
    assert [one.source for one in pair.wrong] == ["01 0.9", "01 0.8", "01 0.6"]
    assert [(name, [one.source for one in shown]) for name, shown in pair.rights] == [
        ("ant", ["00 0.9", "00 0.8", "00 0.6"]),
        ("bee", ["11 0.9", "11 0.8", "11 0.6"]),
    ]


@pytest.mark.parametrize(
    ("classes", "cell", "font"),
    [(2, 46, 13), (8, 46, 13), (9, 40, 13), (12, 40, 13), (13, 30, 11), (25, 30, 11), (26, 17, 11)],
)
def test_the_matrix_shrinks_with_the_number_of_classes(classes: int, cell: int, font: int) -> None:
    placed = charts.matrix((1000 * np.eye(classes, dtype=int)).tolist(), ["x" * 10] * classes)
    assert (placed.cell, placed.font, placed.side) == (cell, font, classes * cell)
    assert placed.margin == round(12 + 10 * 0.6 * font)
    assert [one.numbered for one in placed.cells] == [cell >= 40] * classes  # four digits need 36 px
    assert charts.matrix([[1]], ["\x1b\n" * 20]).names == ["\\x1b\\n" * 3 + "\\…"]
    assert all(one.right and one.shade == 1 and one.dark for one in placed.cells)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x" * 20, "x" * 20), ("x" * 21, "x" * 19 + "…"), ("猫" * 12, "猫" * 12), ("猫" * 13, "猫" * 11 + "…"), ("", "")],
)
def test_names_beside_the_matrix_are_cut_off_where_they_are_too_wide(name: str, expected: str) -> None:
    assert charts.shortened(name) == expected


def test_many_pairs_are_listed_where_there_is_no_matrix(folder: Path) -> None:
    names = [f"class {i}" for i in range(confusion.MATRIX_CLASSES + 1)]
    table = [{"class": name, "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1} for name in names]
    pairs = [[i, i + 1, 1] for i in range(40)]
    for classes, drawn, listed in ((51, False, 25), (50, True, 8)):
        counts = [[0] * classes for _ in range(classes)]
        rows = [EVALUATION["predictions"][0] | {"true": c, "predicted": c} for c in range(classes)]
        numbers = {"class_names": names[:classes], "per_class": table[:classes], "predictions": rows}
        changed(folder, **numbers, confused=pairs, confusion=counts)
        found = computed(folder, "confusion")
        assert (found.chart is not None) == drawn and len(found.pairs) == listed
        assert [pair.true for pair in found.pairs] == names[:listed]


# --- Several classes per image


@pytest.fixture
def coast(folder: Path) -> Path:
    write(folder, "evaluation.json", LABELS)
    return folder


def test_the_headline_of_an_evaluation_with_several_labels(coast: Path) -> None:
    (head,) = shown(coast).all("header")
    text = " ".join(head.text.split())
    assert "75.0% mean average precision on 5 test images, of which each may have several of 4 classes." in text
    assert "2 of them are among the training images too" in text
    tiles = [(tile.all("b")[0].text, tile.all("span")[0].text) for tile in head.all("div", "tiles")[0].all("div")]
    assert tiles[:2] == [("62.5%", "F1 of all labels together"), ("20.0%", "images with all labels right")]
    changed(coast, split="val", predictions=LABELS["predictions"][:1], notes=["a note"])
    text = " ".join(shown(coast).all("header")[0].text.split())
    assert "on 1 validation image, of which" in text and "a note" in text and "among the training images" not in text


def test_labels_the_worst_classes_and_images_first(coast: Path) -> None:
    found = section(coast, "Class by class")
    assert found.rows() == [
        ["Class", "Images", "Average precision", "Threshold", "Precision", "Recall", "F1"],
        ["sea", "2", "60.0%", "50.0%", "66.7%", "100.0%", "80.0%"],
        ["cat", "1", "75.0%", "45.0%", "0.0%", "0.0%", "0.0%"],
        ["sun", "3", "90.0%", "40.0%", "100.0%", "66.7%", "80.0%"],
    ]
    assert "3 classes (1 other has no image here)" in found.text and "chosen by these very images" not in found.text
    assert "4 of 4 images without exactly the right labels" in found.text
    captions = [" ".join(one.text.split()) for one in found.all("figcaption")]
    assert captions == ["missed catright sea2.png", "not searight sun1.png", "missed sun3.png", "not cat4.png"]
    assert [one.attributes["title"] for one in found.all("small")] == ["2.png", "1.png", "3.png", "d/4.png"]
    titles = [one.all("h2")[0].text for one in shown(coast).all("section")]
    assert titles[2:4] == [
        "Class by class",
        "Pictures that are there more than once (3)",
    ]  # none of the other evaluation's


def test_a_label_that_is_never_found_comes_first(coast: Path) -> None:
    rows = [row | {"average_precision": 0.0} if row["class"] == "sun" else row for row in LABELS["per_class"]]
    changed(coast, per_class=rows)
    assert [row[0] for row in section(coast, "Class by class").rows()[1:]] == ["sun", "sea", "cat"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"map": 1.5}, "map: expected float <= 1.0"),
        ({"class_names": ["sun"]}, "per_class has 4 entries, class_names 1"),
        ({"predictions": [LABELS["predictions"][0] | {"true": [4]}]}, "predictions[0] names class 4 of 4"),
        ({"predictions": [LABELS["predictions"][0] | {"given": [0, 9]}]}, "predictions[0] names class 9 of 4"),
        (
            {"predictions": [LABELS["predictions"][1] | {"probabilities": [0.5]}]},
            "predictions[0] has 1 probabilities of 2",
        ),
        ({"images": 6}, "predictions has 5 entries, images is 6"),
        ({"exact": 0.4}, "exact is 0.4, and predictions has 1 right of 5"),
        (
            {"per_class": [row | {"support": 2} for row in LABELS["per_class"]]},
            "per_class[0] has a support of 2, and predictions has 3 of the class",
        ),
        ({"multi_label": "yes"}, "multi_label: "),
        ({"chosen_here": None}, "chosen_here: expected bool, got null"),
    ],
)
def test_labels_of_another_form_are_named(coast: Path, values: dict[str, Any], said: str) -> None:
    changed(coast, **values)
    with pytest.raises(RunError) as caught:
        report.write(coast)
    assert str(caught.value).startswith(f"{coast / 'evaluation.json'}: {said}")


def test_only_so_many_images_with_wrong_labels(coast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "SHOWN", 2)
    changed(coast, chosen_here=True)
    found = section(coast, "Class by class")
    assert "2 of 4 images without" in found.text and "chosen by these very images" in found.text
    assert [one.attributes["title"] for one in found.all("small")] == ["2.png", "1.png"]
    changed(coast, predictions=LABELS["predictions"][:1])
    assert "without exactly" not in section(coast, "Class by class").text


# --- Objects


def test_the_images_with_most_wrong_come_first(tmp_path: Path) -> None:
    """Image k has k objects missed or invented, and one that was found; ten have nothing wrong, and one has nothing on it."""

    def seen(kind: Literal["found", "missed", "invented"], **more: Any) -> detection.Seen:
        return detection.Seen(kind=kind, label=0, box=(10.0, 20.0, 40.0, 25.0), **more)

    def image(name: str, *objects: detection.Seen) -> detection.ImageRow:
        return detection.ImageRow(name=name, height=48, width=64, objects=objects)

    found, invented = seen("found", score=0.9), seen("invented", score=0.625, rather=1)
    rows = [image(f"{k} wrong", found, *[seen("missed")] * (k // 2), *[invented] * (k - k // 2)) for k in range(1, 21)]
    rows += [image(f"right {k}", found) for k in range(10)]
    result = detection.Detection(
        model="m",
        data="d",
        split="val",
        images=31,
        objects=130,
        class_names=("ant", "bee"),
        **dict.fromkeys(detection.SUMMARY),  # type: ignore[arg-type]
        per_class=(),
        per_image=(*rows, image("empty")),
    )
    detection.write_record(tmp_path / "evaluation.json", result)
    shown = SECTIONS["boxes"](Contents.read(tmp_path, Drawn()))
    assert (shown.wrong, shown.images) == (20, 31)
    assert [one.name for one in shown.worst] == [f"{k} wrong" for k in range(20, 4, -1)]
    assert [one.name for one in shown.right] == [f"right {k}" for k in range(4)]
    first = shown.worst[0]
    assert (first.width, first.height, first.found, first.missed, first.invented) == (64, 48, 1, 10, 10)
    boxes = {one.kind: one for one in first.boxes}
    assert all((one.left, one.top, one.width, one.height) == (10, 20, 30, 5) for one in first.boxes)
    hints = {"found": "found: ant 0.90", "missed": "missed: ant", "invented": "invented: ant 0.62, is bee"}
    assert {kind: one.hint for kind, one in boxes.items()} == hints
    assert SECTIONS["boxes"](Contents.read(tmp_path, Pictures())) is None
    changed(tmp_path, per_image=json.loads((tmp_path / "evaluation.json").read_text())["per_image"][20:])
    flawless = SECTIONS["boxes"](Contents.read(tmp_path, Drawn()))
    assert (len(flawless.worst), len(flawless.right), flawless.wrong) == (0, 4, 0)


# --- Pictures


def test_the_most_confident_mistakes(folder: Path) -> None:
    found = section(folder, "Most confident mistakes")
    captions = [" ".join(one.text.split()) for one in found.all("figcaption")]
    assert captions == ["cat 95%is bee1.png", "bee 80%is ant1.png", "bee 55%is ant3.png", "ant 40%is cat1.png"]
    assert [one.attributes["title"] for one in found.all("small")] == ["b/1.png", "a/1.png", "a/3.png", "c/1.png"]
    assert [one.all("b", "wrong")[0].text for one in found.all("figcaption")] == ["cat", "bee", "bee", "ant"]
    assert found.all("p")[0].text.startswith("4 of 4 mistakes, those the model was most sure of.")


def test_the_most_uncertain_pictures(folder: Path) -> None:
    found = section(folder, "Most uncertain pictures")
    names = [one.attributes["title"] for one in found.all("small")]
    assert names == ["c/1.png", "c/0.png", "a/2.png", "a/3.png", "b/0.png", "a/1.png", "a/0.png", "b/1.png"]
    captions = [" ".join(one.text.split()) for one in found.all("figcaption")]
    assert captions[:2] == ["ant 40%is cat1.png", "cat 50%right0.png"]


def test_only_so_many_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(folder, predictions=EVALUATION["predictions"] * 8)  # 32 mistakes
    assert [len(computed(folder, name).answers) for name in ("mistakes", "uncertain")] == [24, 12]
    changed(folder, predictions=EVALUATION["predictions"])
    monkeypatch.setattr(mistakes, "SHOWN", 2)
    monkeypatch.setattr(uncertain, "SHOWN", 3)
    assert [one.name for one in computed(folder, "mistakes").answers] == ["b/1.png", "a/1.png"]
    assert "2 of 4 mistakes" in section(folder, "Most confident mistakes").text
    assert [one.name for one in computed(folder, "uncertain").answers] == ["c/1.png", "c/0.png", "a/2.png"]


# --- Calibration


@pytest.mark.parametrize(
    ("top1", "verdict"),
    [
        (0.5, "it is too sure of itself, by 17.5 percentage points on average"),
        (0.654, "it is too sure of itself, by 2.1 percentage points on average"),
        (0.66, "on average its probabilities are about right"),
        (0.69, "on average its probabilities are about right"),
        (0.7, "it is right more often than it believes, by 2.5 percentage points on average"),
        (1.0, "it is right more often than it believes, by 32.5 percentage points on average"),
    ],
)
def test_the_verdict_on_the_probabilities(folder: Path, top1: float, verdict: str) -> None:
    right, wrong = (EVALUATION["predictions"][i] | {"probability": 0.675} for i in (0, 1))
    changed(folder, predictions=[right if i < 1000 * top1 else wrong for i in range(1000)], confused=[])
    found = section(folder, "Can the probabilities be trusted?")
    text = found.text
    assert f"a probability of 67.5% on average and is right in {top1:.1%}: {verdict}." in text
    assert ["calibration error (ECE)", "20.00%"] in found.rows() and "ECE: 2 bins of equal width" in text


def test_the_reliability_diagram(folder: Path) -> None:
    (drawing,) = section(folder, "Can the probabilities be trusted?").all("svg")
    # 250 px a side, from (44, 12); 40 px for the fullest bin below, on the line at 316.
    assert [one.numbers("x", "y", "width", "height") for one in drawing.all("rect", "fill")] == [
        (44.5, 137, 124, 125),
        (169.5, 137, 124, 125),
    ]
    assert [one.numbers("x", "y", "width", "height") for one in drawing.all("rect", "quiet")] == [
        (44.5, 302.7, 124, 13.3),
        (169.5, 276, 124, 40),
    ]
    assert (
        drawing.all("rect", "fill")[1].all("title")[0].text
        == "50% to 100% sure: 6 images, right in 50%, mean probability 75%"
    )
    assert drawing.all("line", "dash")[0].numbers("x1", "y1", "x2", "y2") == (44, 262, 294, 12)
    axis = [(one.text, *one.numbers("x", "y")) for one in drawing.all("text")]
    assert axis[2:4] == [("25%", 38, 203.5), ("25%", 106.5, 332)]


def test_a_bin_of_few_images_can_be_seen(folder: Path) -> None:
    bins = copy.deepcopy(EVALUATION["calibration"])
    bins[1]["images"] = 100_000
    changed(folder, calibration=bins)
    few, many = section(folder, "Can the probabilities be trusted?").all("rect", "quiet")
    assert few.numbers("y", "height") == (315, 1) and many.numbers("y", "height") == (276, 40)


def test_an_evaluation_of_no_image_has_no_diagram(folder: Path) -> None:
    changed(folder, ece=None, mean_per_class=None, predictions=[], confused=[])
    assert computed(folder, "calibration") is None and computed(folder, "uncertain") is None
    assert "– of 0 test images" in shown(folder).text


BEFORE: dict[str, Any] = {
    "temperature": 0.125,
    "by": "leave-one-out",
    "images": 90,
    "held_out_nll": [1.5, 0.75],
    "held_out_ece": [0.25, 0.0375],
    "nll": 1.75,
    "ece": 0.3,
    "calibration": [
        {"from": 0.0, "to": 0.5, "images": 8, "confidence": 0.25, "accuracy": 0.5},
        {"from": 0.5, "to": 1.0, "images": 0, "confidence": None, "accuracy": None},
    ],
}


def test_before_and_after_the_temperature(folder: Path) -> None:
    changed(folder, uncalibrated=BEFORE)
    found = section(folder, "Can the probabilities be trusted?")
    before, after = found.all("svg")
    assert [one.text for one in found.all("figcaption")] == ["before", "as the model is"]
    assert len(before.all("rect", "fill")) == 1 and len(after.all("rect", "fill")) == 2
    assert found.rows() == [
        ["", "before", "as it is"],
        ["calibration error (ECE)", "30.00%", "20.00%"],
        ["log loss, nats", "1.75", "1.25"],
        ["ECE where it was chosen", "25.00%", "3.75%"],
        ["log loss there", "1.5", "0.75"],
    ]
    assert "Temperature 0.125, chosen by 90 images, each as the classifier without it judges it" in found.text
    changed(folder, uncalibrated=BEFORE | {"by": "held-out images", "images": 1, "calibration": []})
    found = section(folder, "Can the probabilities be trusted?")
    assert len(found.all("svg")) == 1 and "chosen by 1 image, none of which was trained on" in found.text
    changed(folder, uncalibrated=None, no_temperature="the dog ate it")
    found = section(folder, "Can the probabilities be trusted?")
    assert "They are as the training left them: the dog ate it." in found.text


def test_the_probabilities_of_several_labels(coast: Path) -> None:
    """Of 40 classes of images, 10 are there; the model says so of 3 + 8 on average."""
    bins = [
        {"from": 0.0, "to": 0.5, "images": 30, "confidence": 0.1, "accuracy": 0.1},
        {"from": 0.5, "to": 1.0, "images": 10, "confidence": 0.8, "accuracy": 0.7},
    ]
    changed(coast, ece=0.025, nll=0.3, calibration=bins, uncalibrated=BEFORE | {"by": "held-out images"})
    found = section(coast, "Can the probabilities be trusted?")
    assert (
        "a class a probability of 27.5% on average, and 25.0% of them are there: it is too sure of itself" in found.text
    )
    assert found.all("svg")[1].all("title")[0].text == (
        "0% to 50% sure: 30 classes of images, there in 10%, mean probability 10%"
    )


def test_how_often_it_is_right_where_it_is_sure(folder: Path) -> None:
    found = computed(folder, "selection")
    # Of 0.95 wrong, 0.9 right, 0.8 wrong, 0.7 right, 0.6 right, 0.55 wrong, 0.5 right, 0.4 wrong.
    assert [(one.least, one.answered, one.right, one.mistakes) for one in found.limits] == [
        (0.5, 7, 4 / 7, 3),
        (0.7, 4, 0.5, 2),
        (0.8, 3, 1 / 3, 2),
        (0.9, 2, 0.5, 1),
        (0.95, 1, 0.0, 1),
        (0.99, 0, None, 0),
    ]
    assert found.told.share_interval == pytest.approx((0.0715, 0.5907), abs=1e-3)  # 2 of 8
    assert found.told.right_interval == pytest.approx((0.0945, 0.9055), abs=1e-3)  # 1 of 2
    text = section(folder, "If it may say “I don’t know”").text
    assert (
        "at least 90% sure, it answers 25% of the images, and is right on 50% of those (95% interval 9% to 91%)."
        in text
    )
    assert found.chart is None  # of eight images
    changed(folder, predictions=[row | {"probability": 0.3} for row in EVALUATION["predictions"]])
    assert "90% sure of none of the 8 images" in section(folder, "If it may say “I don’t know”").text


def test_the_curve_of_what_is_answered() -> None:
    probable = np.array([0.9] * 10 + [0.8] * 4 + [0.5] * 6)
    right = np.array([True] * 9 + [False] + [True, True, False, False] + [False] * 6)
    for order in (np.arange(20), np.random.default_rng(0).permutation(20)):
        points, band = selection.curve(probable[order], right[order])
        assert points == [(0.5, 0.9), (0.7, 11 / 14), (1.0, 0.55)]  # equal ones together
        assert [x for x, _, _ in band] == [0.5, 0.7, 1.0]
        assert all(low < y < high for (_, y), (_, low, high) in zip(points, band, strict=True))
    drawn = charts.coverage(points, band)
    assert drawn.up[-1].text == "100%" and len(drawn.band) == 6
    heights = [y for _, y in drawn.line]
    assert heights == sorted(heights)  # the less it is answered, the more is right
    assert all(drawn.top <= y <= drawn.height - drawn.bottom for _, y in drawn.band)


# --- The map


def test_a_map_of_the_pictures(folder: Path) -> None:
    found = section(folder, "A map of the pictures")
    spots = found.all("circle")
    assert [one.attributes["data-said"] for one in spots] == [
        "ant, 90% sure\n0.png",
        "cat, 50% sure\n0.png",
        "taken for bee (80%), is ant\n1.png",  # mistakes on top
        "taken for cat (95%), is bee\n1.png",
    ]
    assert [one.numbers("cx", "cy") for one in spots] == [(75.2, 311.6), (14, 14), (320, 200), (626, 386)]
    assert ["miss" in (one.attributes["class"] or "") for one in spots] == [False, False, True, True]
    assert [one.text for one in found.all("button")] == ["ant", "bee", "cat"]
    assert [one.attributes["data-kind"] for one in spots] == ["0", "2", "0", "1"]
    assert "one of 4 of the 8 measured pictures" in " ".join(found.text.split())
    changed(folder, positions=EVALUATION["positions"][:2])
    assert computed(folder, "landscape") is None


def test_many_classes_have_no_colours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape, "COLOURED", 2)
    found = section(folder, "A map of the pictures")
    assert not found.all("button") and all("style" not in one.attributes for one in found.all("circle"))


# --- A page that stays light


def test_a_page_of_very_many_images_classes_and_files_stays_light(tmp_path: Path) -> None:
    """50,000 images of 21,843 classes, all wrong, with pictures of noise, which no format makes small: less than 15 MB."""
    images, classes, reads = 50_000, 21_843, 0
    rng = np.random.default_rng(0)
    row = EVALUATION["predictions"][1]
    changes = [
        {"name": f"{i % classes}/photo {i:05d}.jpg", "index": i, "true": i % classes, "predicted": (i + 1) % classes}
        for i in range(images)
    ]
    names = [f"a class with a rather long name, number {c}" for c in range(classes)]
    record = EVALUATION | {
        "images": images,
        "top1": 0.0,
        "class_names": names,
        "per_class": [
            {"class": name, "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2 + (c < images - 2 * classes)}
            for c, name in enumerate(names)
        ],
        "confused": [[c, (c + 1) % classes, 2] for c in range(classes)],
        "confusion": None,
        "unreadable": [{"name": f"{i}.jpg", "reason": "it is cut off"} for i in range(30_000)],
        "positions": [[i * 125, 0.5, 0.5] for i in range(400)],
        "predictions": [row | change for change in changes],
    }
    write(tmp_path, "evaluation.json", record)

    class Noise:
        channels = 3

        def __len__(self) -> int:
            return images

        def name(self, i: int) -> str:
            return changes[i]["name"]

        def read(self, i: int, spec: Any = None) -> np.ndarray:
            nonlocal reads
            reads += 1
            return rng.integers(0, 256, (192, 192, 3) if spec is None else (spec.size, spec.size, 3), dtype=np.uint8)

    path = report.write(tmp_path, [Noise()])  # pyright: ignore[reportArgumentType]
    assert reads < 600  # what takes time: not one for each image
    assert 2e6 < path.stat().st_size < 15e6
    page = parse(path.read_text(encoding="utf-8"))
    assert "of which 3,000 are listed" in page.text and "The first 1,000." in page.text
    assert len(page.all("circle")) == 400


# --- The data


def test_files_that_cannot_be_read_are_listed_once(folder: Path) -> None:
    assert section(folder, "Files that cannot be read (2)").rows() == [
        ["a/8.png", "it is cut off"],
        ["c/9.png", "it is <empty>"],
    ]


def test_copies_the_worst_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = section(folder, "Pictures that are there more than once (3)")
    assert found.rows()[1:] == [
        ["b/7.pngb/0.pngb/1.png", "train, test", ""],
        ["a/6.pngb/6.png", "train", "ant, bee"],
        ["a/4.pnga/5.png", "train", ""],
    ]
    assert "1 in several parts of the data" in found.text and "1 under different classes" in found.text
    assert [one.text for one in found.all("b", "wrong")] == ["train, test"]
    monkeypatch.setattr(copies, "SHOWN", 1)
    found = section(folder, "Pictures that are there more than once (3)")
    assert len(found.rows()) == 2 and "The first 1 are listed." in found.text
    write(folder, "copies.json", COPIES[:1])
    text = section(folder, "Pictures that are there more than once (1)").text
    assert "several parts" not in text and "under different classes" not in text
    assert "among the training images" not in shown(folder).text


# --- Your data


SUSPECTS = [
    {"name": "a/4.png", "label": "ant", "likely": "bee", "own_probability": 0.01, "likely_probability": 0.9},
    {"name": "c/5.png", "label": "cat", "likely": "ant", "own_probability": 0.02, "likely_probability": 0.5},
]


def test_labels_that_the_closed_form_suspects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "suspects.json", SUSPECTS)
    assert computed(folder, "data") is None, "no closed form is on record"
    write(folder, "closed.json", {**CLOSED, "counted": [300, 500, 200, 300]})
    text = " ".join(section(folder, "Your data").text.split())
    assert "2 labels are likely to be wrong of 1,100 training images" in text
    assert "Of these images bee has 500, cat has 200." in text
    assert text.index("is ant 1%rather bee 90%4.png") < text.index("is cat 2%rather ant 50%5.png")
    assert "bit check " in text
    monkeypatch.setattr(data, "SHOWN", 1)
    assert len(section(folder, "Your data").all("figure")) == 1
    write(folder, "suspects.json", [])
    assert "None of 1,100 labels of training images" in " ".join(section(folder, "Your data").text.split())
    write(folder, "suspects.json", [{**SUSPECTS[0], "likely_probability": 2}])
    with pytest.raises(RunError, match="likely_probability"):
        shown(folder)


# --- What to do next


def test_commands_to_go_on_with_can_be_typed(folder: Path) -> None:
    predict, evaluate, python = (one.text for one in section(folder, "Next").all("pre"))
    assert shlex.split(predict)[:3] == ["bit", "predict", str(folder)]
    assert shlex.split(evaluate)[:3] == ["bit", "evaluate", str(folder)]
    assert f"Predictor.load({str(folder)!r})" in python
    compile(python, "example", "exec")
    (folder / "model.safetensors").unlink()
    assert computed(folder, "following").quoted == "insects"
    assert shown(folder).all("title")[0].text == "insects: report"
    write(folder, "evaluation.json", LABELS)
    assert computed(folder, "following").quoted == "beach" and computed(folder, "headline").subject.endswith("on coast")
    (folder / "evaluation.json").unlink()
    assert computed(folder, "following") is None and shown(folder).all("title")[0].text == "garden run: report"


# --- The page as a whole

EVIL = '<x-evil onload="steal()">&amp;{{ 7 * 7 }}\x1b[31m\u202e'
SEEN = '<x-evil onload="steal()">&amp;{{ 7 * 7 }}\\x1b[31m\\u202e'


def poisoned(record: Any, keep: tuple[str, ...] = ("command", "schedule", "part", "split")) -> Any:
    """The record with every text in it replaced, and the keys of what is shown by name."""
    if isinstance(record, dict):
        return {key: value if key in keep else poisoned(value, keep) for key, value in record.items()}
    if isinstance(record, list):
        return [poisoned(one, keep) for one in record]
    return EVIL if isinstance(record, str) else record


@pytest.mark.parametrize("evaluation", [EVALUATION, LABELS], ids=["one label", "several labels"])
def test_whatever_others_wrote_is_text_in_every_section(folder: Path, evaluation: dict[str, Any]) -> None:
    write(folder, "evaluation.json", evaluation)
    sections = {name for name in SECTIONS if computed(folder, name) is not None}
    assert sections == set(SECTIONS) - {"objects", "boxes"} - (  # a detector's, in test_detect
        {"labels", "candidates", "data"}
        if evaluation is EVALUATION
        else {
            "classes",
            "confusion",
            "mistakes",
            "landscape",
            "uncertain",
            "selection",
            "calibration",
            "candidates",
            "data",
        }
    )
    for name in ("config.json", "evaluation.json", "unreadable.json", "copies.json"):
        write(folder, name, poisoned(json.loads((folder / name).read_text())))
    changed(folder, notes=[EVIL], split=EVIL)
    changed(folder, "config.json", environment={EVIL: EVIL}, resolved={EVIL: [EVIL]})
    (folder / "model.safetensors").unlink()
    page = shown(folder)
    # No element and no attribute but those of the templates.
    allowed = "aria-label charset class colspan content cx cy data-v fill-opacity height http-equiv id lang name points r role scope src "
    allowed += (
        "style text-anchor title transform viewbox width x x1 x2 y y1 y2 alt data-tile data-kind data-said hidden type"
    )
    for one in page:
        assert not one.tag.startswith("x-") and set(one.attributes) <= set(allowed.split()), one.attributes
    assert len(page.all("script")) == 1
    headings = [one.all("h2")[0].text for one in page.all("section")]
    assert len(headings) == len(sections) - 1  # the headline is none
    for one in page.all("section") + page.all("header"):
        if not any(
            words in one.text for words in ("Training", "probabilities be trusted", "I don’t know")
        ):  # numbers only
            assert SEEN in one.text, one.text
    assert SEEN in page.all("title")[0].text
    assert {one.attributes["title"] for one in page.all("small")} == {SEEN}
    text = report.write(folder).read_text()
    assert "\x1b" not in text and "\u202e" not in text and "49" not in page.all("header")[0].text


def test_every_section_has_its_template_and_every_template_its_use() -> None:
    templates = {path.stem for path in (REPOSITORY / "bigtransfer/report/templates").iterdir()}
    of_other_pages = {"against", "check", "comparison", "figures", "measured", "results", "runs"}
    assert templates == {*SECTIONS, *of_other_pages, "page", "section", "pairs", "tables", "charts", "gallery"}
    modules = {path.stem for path in (REPOSITORY / "bigtransfer/report/sections").glob("[!_]*.py")}
    assert modules == set(SECTIONS)
    assert all(compute is getattr(sections, name).compute for name, compute in SECTIONS.items())


def test_the_wheel_holds_templates_style_and_script() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    packed = {one.distribution_path for one in wheel.WheelBuilder(str(REPOSITORY)).recurse_included_files()}
    folder = REPOSITORY / "bigtransfer" / "report"
    ours = {
        path.relative_to(REPOSITORY).as_posix()
        for path in folder.rglob("*")
        if path.suffix in (".html", ".css", ".js", ".py")
    }
    assert len(ours) > 30 and ours <= packed
