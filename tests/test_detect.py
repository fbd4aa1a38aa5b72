"""`bit detect`: the commands, from images with boxes to a detector, its numbers, its report and its answers."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from bigtransfer import cli, model, report, weights
from bigtransfer.catalog import Architecture, ModelCard
from bigtransfer.config import DetectFinetuneConfig
from bigtransfer.data import open_images
from bigtransfer.data.boxes import open_boxes
from bigtransfer.errors import ConfigError, RunError
from bigtransfer.evals import detection
from bigtransfer.hyperrule import detection as detection_rule
from bigtransfer.hyperrule import detection_within
from bigtransfer.jobs import working
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.detect import finetune
from bigtransfer.jobs.working import Finetuned
from tests import box_makers
from tests.box_makers import scenes
from tests.conftest import dying_at_a_checkpoint
from tests.test_tracking import scalars

TINY = Architecture(units=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's file."""
    torch.manual_seed(0)
    network = model.build(TINY, 2)
    network.card = dataclasses.replace(ModelCard.bare(TINY, 2), name="tiny", licence="CC0", upstream="noise")
    path = tmp_path_factory.mktemp("start") / "tiny.safetensors"
    weights.save(path, network)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return box_makers.coco(tmp_path_factory.mktemp("data") / "blocks", {"train": scenes(6, 1), "val": scenes(3, 2)})


Asking = Callable[..., DetectFinetuneConfig]


@pytest.fixture
def asked(start: Path, data: Path, tmp_path: Path) -> Asking:
    def ask(**changes: object) -> DetectFinetuneConfig:
        options = {
            "data": str(data),
            "model": str(start),
            "out": str(tmp_path / "run"),
            "steps": 3,
            "batch_size": 2,
            "size": 64,
            "channels": 64,
            "learning_rate": 0.01,
            "device": "cpu",
            "precision": "fp32",
            "workers": 0,
            "eval_every": 2,
        }
        return DetectFinetuneConfig(**{**options, **changes})  # type: ignore[arg-type]

    return ask


def test_a_run_its_report_and_what_follows(
    asked: Asking, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = finetune.finetune(asked(log="tensorboard"))
    assert {path.name for path in done.folder.iterdir()} >= {
        *("config.json", "metrics.jsonl", "evaluation.json", "model.safetensors", "report.html", "unreadable.json")
    }
    assert not (done.folder / "checkpoints").exists()
    card = weights.describe(done.model)
    assert card.class_names == ("blue", "red") and card.input.mode == "fit" and card.licence == "CC0"
    assert card.thresholds is not None and card.metrics.keys() <= {f"val_{name}" for name in detection.SUMMARY}
    assert card.upstream == "noise; boxes of blocks" and done.metrics.keys() == card.metrics.keys()
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [0, 1, 2]
    assert all(
        line["loss"] == pytest.approx(line["loss/classes"] + line["loss/boxes"], rel=1e-5)
        for line in lines
        if "loss" in line
    )
    assert [line["step"] for line in lines if "val/ap" in line] == [1, 2]
    final = {name: told for name, told in scalars(done.folder).items() if name.startswith("final/")}
    assert final == {f"final/{name}": [(3, pytest.approx(value))] for name, value in done.metrics.items()}
    record = detection.read_record(done.folder / "evaluation.json")
    assert record.split == "val" and record.images == 3 and "chosen by the same images" in record.notes[-1]
    told = capsys.readouterr().out
    assert "6 train images" in told and "COCO's average precision" in told

    # The same call again gives the finished run; other data is another run.
    assert finetune.finetune(asked()).metrics == done.metrics
    capsys.readouterr()
    assert finetune.run(asked()) == 0
    told = capsys.readouterr().out
    assert "is finished" in told
    assert told.splitlines()[-3:] == [
        f"model:  {done.folder / 'model.safetensors'}",
        f"report: {done.folder / 'report.html'}",
        f"next:   bit detect predict {done.folder} IMAGES",
    ]
    with pytest.raises(RunError, match="another run"):
        finetune.finetune(asked(size=96))

    # What it was measured on in the end, by the command.
    out = tmp_path / "measured"
    where = ["--device", "cpu", "--precision", "fp32"]
    assert (
        cli.main(
            [
                "detect",
                "evaluate",
                str(done.folder),
                str(data),
                "--out",
                str(out),
                "--coco",
                str(tmp_path / "c.json"),
                *where,
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert f"on {data} (val): 3 images, {record.objects} objects\n" in told
    assert told.endswith(f"\nboxes: {tmp_path / 'c.json'}\n\nreport: {out / 'report.html'}\n")
    again = detection.read_record(out / "evaluation.json")
    assert (again.named(), again.per_class, again.per_image) == (record.named(), record.per_class, record.per_image)
    page_of_run = (done.folder / "report.html").read_text()
    for folder in (done.folder, out):
        page = (folder / "report.html").read_text()
        assert "average precision" in page and "Class by class" in page
        assert "<rect" in page and "<image href" in page
        # What is said of a classifier is not said of it.
        following = page[page.index("<h2>Next</h2>") :]
        assert "bit detect predict " in following and "ObjectFinder" in following and "bit predict" not in following
        assert "<dt>mixup alpha</dt>" not in page and "<dt>loss</dt>" not in page
    assert "<dt>channels</dt><dd>64</dd>" in page_of_run
    assert cli.main(["report", str(done.folder)]) == 0 and (done.folder / "report.html").read_text() == page_of_run
    for row in json.loads((tmp_path / "c.json").read_text()):
        assert row.keys() == {"image_id", "category_id", "bbox", "score"}

    # And its answers.
    capsys.readouterr()
    photos = tmp_path / "photos"
    box_makers.write_images(photos, scenes(2, 3))
    (photos / "bad.png").write_bytes(b"no")
    table = tmp_path / "found.csv"
    command = ["detect", "predict", str(done.folder), str(photos), "--threshold", "0.05", *where]
    assert cli.main([*command, "--format", "csv", "--out", str(table), "--pictures", str(tmp_path / "drawn")]) == 1
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [Path(row["image"]).name for row in rows if row["error"]] == ["bad.png"]
    assert sorted(path.suffix for path in (tmp_path / "drawn").iterdir()) == [".jpg", ".jpg"]
    with Image.open(next((tmp_path / "drawn").iterdir())) as drawn:
        assert drawn.size == (64, 48)
    capsys.readouterr()
    assert cli.main([*command, "--format", "jsonl"]) == 1
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [one for answer in objects if "objects" in answer for one in answer["objects"]]
    assert len(found) == len(rows) - 1 and all(
        one["label"] in ("blue", "red") and len(one["box"]) == 4 for one in found
    )
    assert cli.main(command) == 1
    assert "object" in capsys.readouterr().out


def test_whatever_others_wrote_is_text_in_a_detector_s_report(tmp_path: Path) -> None:
    """Names and notes of an evaluation that somebody else may have written, on the page."""
    names = [str(tmp_path / "images" / name) for name in box_makers.write_images(tmp_path / "images", scenes(2, 1))]
    odd = "<script>alert(1)</script>\u202e"
    seen = [
        detection.Seen(kind=kind, label=7 if kind == "missed" else 0, box=(1, 2, 3, 4), score=0.5, rather=9)
        for kind in ("found", "missed", "invented")
    ]
    row = detection.ClassRow(name=odd, objects=1, ap=None, ap50=0.5, threshold=0.5, found=1, missed=0, invented=0)
    result = detection.Detection(
        model=odd,
        data=odd,
        split=odd,
        images=2,
        objects=3,
        class_names=(odd,),
        notes=(odd,),  # type: ignore[arg-type]
        **dict.fromkeys(detection.SUMMARY),  # type: ignore[arg-type]
        per_class=(row,),
        per_image=tuple(detection.ImageRow(name=name, height=48, width=64, objects=tuple(seen)) for name in names),
    )
    run = tmp_path / "run"
    run.mkdir()
    detection.write_record(run / "evaluation.json", result)
    page = report.write(run, open_images([str(tmp_path / "images")])).read_text(encoding="utf-8")
    assert "alert(1)" in page and "<script>alert" not in page and "\u202e" not in page
    assert "Missed and invented (2 of 2 images)" in page and page.count("<image href") == 2


def test_a_resume_repeats_the_uninterrupted_run_bit_for_bit(asked: Asking, tmp_path: Path) -> None:
    whole = finetune.finetune(asked(out=str(tmp_path / "whole")))
    for _ in range(3):
        config = asked(out=str(tmp_path / "torn"), checkpoint_every="0s")
        with dying_at_a_checkpoint():
            finetune.finetune(config)
    torn = finetune.finetune(config)
    assert whole.metrics == torn.metrics
    one, other = (weights.load_detector(run.model).state_dict() for run in (whole, torn))
    assert all(torch.equal(one[name], other[name]) for name in one)

    def logged(run: Finetuned) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in lines]

    assert logged(whole) == logged(torn)


def test_data_that_changed_is_another_run(asked: Asking, tmp_path: Path) -> None:
    root = box_makers.voc(tmp_path / "voc", {"train": scenes(3), "val": scenes(1)})
    finetune.finetune(asked(data=str(root), steps=1))
    path = root / "Annotations" / "train_000.xml"
    path.write_text(
        path.read_text().replace("<xmax>", "<xmax>0.5</xmax><xmax>", 1).replace("<xmin>", "<xmin>0.25</xmin><xmin>", 1)
    )
    with pytest.raises(RunError, match=r"is finished, but .* has changed since"):
        finetune.finetune(asked(data=str(root), steps=1))


def test_a_finished_run_says_what_became_of_its_data(
    asked: Asking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a finished fine-tuning of a classifier: images that vanished are said, and a data set that was cleared away costs nothing."""
    root = box_makers.voc(tmp_path / "voc", {"train": scenes(3), "val": scenes(1)})
    done = finetune.finetune(asked(data=str(root), steps=1))
    (done.folder / "report.html").unlink()
    (root / "JPEGImages" / "train_001.png").rename(tmp_path / "away.png")
    with pytest.raises(RunError, match=r"is finished, but .* 1 of 3 images cannot be read, such as .*train_001.png"):
        finetune.finetune(asked(data=str(root), steps=1))
    shutil.rmtree(root)
    capsys.readouterr()
    assert finetune.finetune(asked(data=str(root), steps=1)).metrics == done.metrics
    told = capsys.readouterr()
    assert "is finished" in told.out and "does not exist" in told.err
    assert (done.folder / "report.html").is_file()


def test_images_are_held_out_where_there_are_none_to_measure_on(asked: Asking, tmp_path: Path) -> None:
    root = box_makers.voc(tmp_path / "voc", {"train": scenes(10)})
    done = finetune.finetune(asked(data=str(root), steps=1))
    assert detection.read_record(done.folder / "evaluation.json").images == 1
    done = finetune.finetune(asked(data=str(root), steps=1, out=str(tmp_path / "none"), val_fraction=0))
    assert done.metrics == {} and (done.folder / "evaluation.json").read_text().strip() == "{}"
    assert (done.folder / "report.html").is_file()


@pytest.mark.slow
def test_a_budget_decides_and_is_kept_on_record(
    asked: Asking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = finetune.finetune(
        asked(budget="4s", steps=None, eval_every=None, learning_rate=None, size=None, channels=None, batch_size=None)
    )
    record = json.loads((done.folder / "config.json").read_text())
    assert record["recipe"]["variant"] == "budget" and record["resolved"]["detector"]["channels"] == 128
    assert record["recipe"]["crop"] == 128 and any("Anchors begin" in note for note in record["recipe"]["notes"])
    assert json.loads((done.folder / "budget.json").read_text())["seconds"] > 0
    assert "budget:" in capsys.readouterr().out


def test_a_budget_that_was_not_kept_is_said(
    asked: Asking, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of four seconds has passed when the images have been found."""

    def clock(_: object, folder: Path, *, since: float, always: str, **__: object) -> Clock:
        return Clock(folder, 4.0, since=since - 3600, always=always)

    monkeypatch.setattr(working, "clock", clock)
    done = finetune.finetune(asked(budget="4s", steps=None, eval_every=None))
    over = detection.read_record(done.folder / "evaluation.json").notes[-1]
    assert over.startswith("The budget of 4 s was not kept: 36") and "All images to measure it on are looked at" in over
    assert weights.describe(done.model).recipe["notes"][-1] == over
    assert over in (done.folder / "report.html").read_text()
    told = capsys.readouterr()
    assert over in told.err and "s of 4 s taken" in told.out
    assert list(json.loads((done.folder / "budget.json").read_text())["stages"])[1:] == [
        *("for the plan", "to fine-tune", "to measure it")
    ]


def test_ctrl_c_says_what_is_kept(
    data: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ["detect", "finetune", str(data), "--model", str(start), "--out", str(tmp_path / "run")]
    command += ["--steps", "1", "--size", "64", "--channels", "64", "--batch-size", "2", "--device", "cpu"]
    for where, told in ((finetune.box_data, "nothing is kept so early"), (finetune.training, "all that was decided")):
        with monkeypatch.context() as patch:
            patch.setattr(where, "open_boxes" if where is finetune.box_data else "train", interrupted)
            assert cli.main(command) == 130
        assert told in capsys.readouterr().err


def test_anchors_that_fit_the_objects(data: Path) -> None:
    train = open_boxes(data).train
    scale, note = finetune.fitting_anchors(train, 64)
    assert scale < 4 and "in reach of" in note
    assert finetune.fitting_anchors(train, 256)[0] == 4
    told = finetune.out_of_reach(train, 64, 4.0)
    assert f"--anchor-scale {scale:g}: 100%" in told and "in reach of only" in told
    assert finetune.out_of_reach(train, 64, scale) == finetune.out_of_reach(train, 256, 4.0) == ""


def test_the_paper_s_recipe() -> None:
    coco = detection_rule(118_287)
    assert (coco.batch_size, coco.base_learning_rate, coco.crop, coco.weight_decay) == (256, 0.08, 1024, 1e-4)
    assert coco.steps == round(30 * 118_287 / 256) == 13_862
    assert [mark / coco.steps * 30 for mark in coco.decays] == pytest.approx([16, 22], abs=0.01)
    assert coco.warmup == round(118_287 / 256) and len(coco.notes) == 1
    small = detection_rule(205)
    assert small.batch_size == 16 and small.base_learning_rate == pytest.approx(0.08 / 16) and small.steps == 384
    assert detection_rule(1).steps == 2


def test_a_budget_s_recipe_takes_the_size_that_leaves_enough_passes() -> None:
    def speed(size: int, batch: int) -> float:
        return 64.0 * (128 / size) ** 2

    long = detection_within(200, 600, speed, left=600, most_size=640)
    assert long.crop == 640 and long.steps * long.batch_size >= 6 * 200 * 0.9
    short = detection_within(200, 60, speed, left=60, most_size=640)
    assert short.crop == 192 and short.schedule == "cosine"
    assert detection_within(200, 60, speed, left=60, most_size=100).crop == 128
    assert detection_within(200, 60, speed, left=60, most_size=640, fixed={"size": 320}).crop == 320
    assert detection_within(200, 6e6, speed, left=6e6, most_size=640).steps == 100 * 200 / 8
    assert detection_within(203, 6e6, speed, left=6e6, most_size=640).steps == 2538, (
        "100 * 203 / 8, and what is left of an epoch"
    )
    # Where even the smallest size leaves too few passes, it is said what would be enough: 1,200 images at 64 a second, and 30 s besides.
    poor = detection_within(200, 40, speed, left=10, most_size=640)
    assert poor.crop == 128 and "6 of them would fit into 1 min here" in poor.notes[-1]
    assert detection_within(200, 61, speed, left=18.8, most_size=640).notes[-1] == short.notes[-1]


@pytest.mark.parametrize(
    "flags",
    [
        "--scales 1.2 0.8",
        "--scales 1",
        "--size 100",
        "--channels 100",
        "--channels 32",
        "--budget 1m --steps 5",
        "--steps 5 --epochs 2",
        "--budget 0s",
        "--anchor-scale 0.1",
    ],
)
def test_flags_that_make_no_sense(flags: str) -> None:
    with pytest.raises(ConfigError, match=flags.split()[0].lstrip("-")[:4]):
        cli.parse("detect finetune", ["data", *flags.split()])


def test_a_word_after_detect_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["detect"]) == 2
    assert "detect finetune, detect evaluate, detect predict" in capsys.readouterr().err
    assert cli.main(["detect", "--help"]) == 0
    assert "detect evaluate" in capsys.readouterr().out
    assert cli.main(["detect", "find"]) == 2


def test_a_classifier_s_commands_refuse_a_detector_and_the_reverse(
    asked: Asking, start: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finetune.finetune(asked(steps=1)).folder
    capsys.readouterr()
    image = str(data / "val2017" / "000.png")
    assert cli.main(["predict", str(folder), image]) == 2
    assert "bit detect predict" in capsys.readouterr().err
    assert cli.main(["detect", "predict", str(start), image]) == 2
    assert "is no detector" in capsys.readouterr().err
    for wrong in (["compare", str(folder), str(folder.parent)], ["evaluate", str(folder), str(data)]):
        folder.parent.joinpath("config.json").write_text("{}")
        assert cli.main(wrong) == 2
        assert "detector" in capsys.readouterr().err
    assert cli.main(["info", str(folder)]) == 0
    assert "detector" in capsys.readouterr().out
