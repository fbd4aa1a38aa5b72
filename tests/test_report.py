from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import random
import re
import shlex
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer import cli, report
from bigtransfer.config import EvaluateConfig, FinetuneConfig, PredictConfig, PretrainConfig, ReportConfig, command_line
from bigtransfer.data import open_dataset
from bigtransfer.errors import ConfigError, DataError, DownloadError, ImageError, RunError
from bigtransfer.evals import Classification, as_record, describe, record, write_record
from bigtransfer.hyperrule import recipe
from bigtransfer.jobs import report as jobs_report
from bigtransfer.report import pictures
from bigtransfer.report.sections import mistakes, uncertain
from tests.html_pages import parse

NASTY = "<script>alert('&')</script>"
LOGITS = np.random.default_rng(1).normal(size=(24, 3)) + np.repeat(np.eye(3), 8, axis=0)
"""The answers of a model that is right more often than not; images come class by class."""


def headings(page):
    return [one.text for one in page.all("h2")]


def pictures_of(page):
    """Those of the galleries."""
    return [one.attributes["src"] for gallery in page.all("div", "gallery") for one in gallery.all("img")]


def said(page):
    """All text, with single blanks."""
    return " ".join(page.text.split())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", NASTY.replace("/", "|")):
        (root / name).mkdir()
        for i in range(8):
            side = 40 if i else 400
            Image.fromarray(rng.integers(256, size=(side, side // 2, 3), dtype=np.uint8)).save(
                root / name / f"{i} <b>.png"
            )
    return open_dataset(root).train


@pytest.fixture(scope="module")
def result(images):
    result = Classification(3)
    labels = torch.from_numpy(images.labels)
    result.update(torch.from_numpy(LOGITS), labels, torch.arange(len(labels)))
    assert 0.3 < result.top1 < 0.9
    return result


@pytest.fixture
def run(tmp_path, images, result):
    rule = recipe(300, 40, 20)
    asked = dataclasses.asdict(FinetuneConfig(data=NASTY, steps=70))
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "command": "finetune",
                "asked": asked,
                "resolved": {"device": "cpu"},
                "recipe": rule.to_dict(),
                "environment": {"torch": "2.11", "argv": ["bit", "demo"]},
                "data": {"train": 300, "classes": 3},
            }
        )
    )
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(70):
            print(json.dumps({"step": step, "loss": 2 / (step + 1), "lr": rule.learning_rate(step)}), file=file)
            if step % 10 == 9:
                print(json.dumps({"step": step, "val/top1": step / 100}), file=file)
    bad = [ImageError("ant/bad.png", "the file is empty (0 bytes)")]
    write_record(
        tmp_path / "evaluation.json",
        as_record(result, images, split="test", model="my-model", data=NASTY, unreadable=bad),
    )
    (tmp_path / "unreadable.json").write_text(json.dumps([{"name": "ant/old.png", "reason": "it is truncated"}]))
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_report_tells_everything_and_is_well_formed(run, images, result):
    path = report.write(run, images)
    assert path == run / "report.html"
    page = parse(path.read_text())
    assert page.all("h1")[0].text == run.name and headings(page) == [
        "What was asked, and what was decided",
        "Training",
        "Class by class",
        "What is confused with what",
        "Most confident mistakes",
        "Most uncertain pictures",
        "If it may say “I don’t know”",
        "Can the probabilities be trusted?",
        "Files that cannot be read (2)",
        "Made with",
        "Next",
    ]
    # By other routes than `result`'s own: from its logits, and the interval as the roots of (p - x)^2 = z^2 x (1 - x) / n.
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    right, sure = probabilities.argmax(1) == images.labels, probabilities.max(1)
    n, z, top1 = 24, 1.959964, right.mean()
    low, high = sorted(np.roots([1 + z**2 / n, -2 * top1 - z**2 / n, top1**2]))
    bins = np.ceil(15 * sure)
    ece = sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).sum() for b in np.unique(bins)) / n
    for words in (
        f"{top1:.1%} of 24 test images of 3 classes",
        f"95% interval {low:.1%} to {high:.1%}",
        f"bit finetune {shlex.quote(NASTY)} --steps 70",  # what was asked, without what is at its default
        "300 training images make this a small task",
        "the file is empty (0 bytes)",
        "ant/old.png",
        "it is truncated",
        f"calibration error (ECE){ece:.2%}",
        "ECE: 15 bins of equal width",
        f"a probability of {sure.mean():.1%} on average and is right in {top1:.1%}",
        f"{(~right).sum()} of {(~right).sum()} mistakes",
        f"bit predict {run}",
    ):
        assert words in said(page), words


@pytest.mark.parametrize(
    "asked",
    [
        FinetuneConfig(data="my photos", steps=7, flip=False, pretrained=False, budget="10m"),
        EvaluateConfig(model="m", data="d", subset=True, precision="fp32"),
        PredictConfig(model="m", images=("a b", "c"), top_k=2),
        PretrainConfig(data="d", decay_epochs=(1.0, 2.5)),
        PretrainConfig(data="d"),
    ],
)
def test_shown_command_asks_for_the_same_again(asked):
    command = type(asked).__name__.removesuffix("Config").lower()
    shown = command_line(command, json.loads(json.dumps(dataclasses.asdict(asked))))
    program, *words = shlex.split(shown)
    assert program == "bit" and cli.parse(words[0], words[1:]) == asked


def test_report_is_one_file_that_asks_nobody_and_runs_nothing_foreign(run, images):
    text = report.write(run, images).read_text()
    page = parse(text)
    addresses = [
        one.attributes[key] for one in page for key in ("src", "href", "action", "data") if key in one.attributes
    ]
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert "url(" not in text and "@import" not in text and "http://" not in text and "https://" not in text
    (script,) = page.all("script")  # ours; the one in a class name, the data's name and the file names is text
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    (policy,) = (one.attributes["content"] for one in page.all("meta") if "http-equiv" in one.attributes)
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" == policy
    assert "<b>.png" not in text
    assert NASTY in page.text and NASTY.replace("/", "|") in page.text


def test_pictures_are_those_of_the_most_confident_mistakes(run, images, result):
    page = parse(report.write(run, images).read_text())
    records = result.records
    wrong = records[records["rank"] > 0]
    wrong = wrong[np.argsort(-wrong["probability"], kind="stable")][: mistakes.SHOWN]
    assert len(pictures_of(page)) == len(wrong) + uncertain.SHOWN
    for source, row in zip(pictures_of(page), wrong, strict=False):
        kind, _, data = source.partition(";base64,")
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        original = images.read(int(row["index"]))
        assert max(shown.shape[:2]) == min(pictures.THUMBNAIL, original.shape[0])
        if len(original) == 40:
            assert kind == "data:image/png"
            np.testing.assert_array_equal(shown, original)
    sizes = {len(images.read(int(row["index"]))) for row in wrong}
    assert sizes == {40, 400}


def test_pictures_of_few_pixels_are_shown_as_they_are(tmp_path):
    (tmp_path / "some").mkdir()
    for side in (96, 97, 192, 193, 500):
        Image.fromarray(np.zeros((side, side // 3, 3), dtype=np.uint8)).save(tmp_path / "some" / f"{side}.png")
    (tmp_path / "some" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "other").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "9.png")
    images = open_dataset(tmp_path).train
    shown = pictures.Pictures([images])
    for side, tiny, size in (
        (96, True, (32, 96)),
        (97, False, (32, 97)),
        (192, False, (64, 192)),
        (193, False, (64, 192)),
    ):
        picture = shown.get(f"some/{side}.png")
        kind, _, data = picture.source.partition(";base64,")
        assert picture.tiny == tiny and kind == ("data:image/png" if tiny else "data:image/jpeg")
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == size
    # Where boxes are drawn they are larger, though never larger than the image; none is drawn on pixels that JPEG has blurred.
    for side, tiny, size in ((96, True, (32, 96)), (193, False, (64, 193)), (500, False, (159, 480))):
        picture = shown.large(f"some/{side}.png")
        assert picture.tiny == tiny
        assert Image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2]))).size == size
    for get in (shown.get, shown.large):
        assert get("some/bad.png") is None and get("some/none.png") is None


def test_several_parts_and_none_at_all(run, images):
    halves = [images.subset(range(12)), images.subset(range(12, 24))]
    whole = pictures_of(parse(report.write(run, images).read_text()))
    assert pictures_of(parse(report.write(run, halves).read_text())) == whole
    page = parse(report.write(run).read_text())
    assert pictures_of(page) == [] and "Most confident mistakes" in headings(page)
    # Of the first half only: those of its 12 images that are mistakes or among the 12 of the highest entropy.
    chance = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    entropy = -(chance * np.log(chance)).sum(1)
    expected = (chance.argmax(1) != images.labels)[:12].sum() + (np.argsort(-entropy)[: uncertain.SHOWN] < 12).sum()
    assert len(pictures_of(parse(report.write(run, halves[0]).read_text()))) == expected > 0


OF_EVALUATION = {
    "Class by class",
    "What is confused with what",
    "Most confident mistakes",
    "Most uncertain pictures",
    "If it may say “I don’t know”",
    "Can the probabilities be trusted?",
}


@pytest.mark.parametrize(
    ("missing", "gone", "instead"),
    [
        ("config.json", {"What was asked, and what was decided", "Made with"}, set()),
        ("metrics.jsonl", {"Training"}, set()),
        ("evaluation.json", OF_EVALUATION | {"Files that cannot be read (2)"}, {"Files that cannot be read (1)"}),
        ("unreadable.json", {"Files that cannot be read (2)"}, {"Files that cannot be read (1)"}),
        ("model.safetensors", set(), set()),
    ],
)
def test_what_is_missing_is_left_out(run, images, missing, gone, instead):
    whole = set(headings(parse(report.write(run, images).read_text())))
    (run / missing).unlink()
    page = parse(report.write(run, images).read_text())
    assert set(headings(page)) == whole - gone | instead
    assert ("bit predict my-model" in page.text) == (missing == "model.safetensors")
    assert ("69.0% of the validation images" in page.text) == (missing == "evaluation.json")
    assert ("the run has not finished" in page.text) == (missing == "evaluation.json")
    assert ("ant/old.png" in page.text) == (missing != "unreadable.json")
    assert ("ant/bad.png" in page.text) == (missing != "evaluation.json")


def test_an_empty_folder_and_a_few_steps(tmp_path):
    assert "the run has not finished" in parse(report.write(tmp_path).read_text()).text
    (tmp_path / "evaluation.json").write_text("{}")
    assert "no images to measure it on" in parse(report.write(tmp_path).read_text()).text
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "loss": 1.0, "lr": 0.0}\n{"step": 1, "loss": NaN, "lr": 0.0}\n{"step": 2, "lo'
    )
    assert "Learning rate" in parse(report.write(tmp_path).read_text()).text
    with pytest.raises(RunError, match="no run folder"):
        report.write(tmp_path / "nowhere")


def test_what_a_check_found_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"command": "check", "asked": {}, "resolved": {}}')
    (tmp_path / "check.html").write_text("")
    with pytest.raises(RunError, match="its page is"):
        jobs_report.run(ReportConfig(run=str(tmp_path)))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "evaluation.json").write_text('{"top1": ')
    with pytest.raises(RunError, match=r"evaluation\.json is not JSON"):
        report.write(tmp_path)
    (tmp_path / "evaluation.json").unlink()
    os.mkfifo(tmp_path / "evaluation.json")
    with pytest.raises(RunError, match=r"Cannot read .*evaluation\.json.* remove it to have the report without it"):
        report.write(tmp_path)


@pytest.mark.parametrize("error", [DataError("gone"), DownloadError("no network"), ConfigError("no package")])
def test_images_that_are_not_there_any_more_cost_the_pictures_only(run, images, monkeypatch, capsys, error):
    def gone(*_arguments, **_options):
        raise error

    report.write(run, images)
    record = json.loads((run / "config.json").read_text())
    record["asked"]["data"] = str(run)
    (run / "config.json").write_text(json.dumps(record))
    monkeypatch.setattr("bigtransfer.jobs.report.open_dataset", gone)
    assert cli.main(["report", str(run)]) == 0
    assert (
        f"note: no pictures, for the images are not there any more; --data tells where they are. ({error})"
        in capsys.readouterr().err
    )
    page = parse((run / "report.html").read_text())
    assert pictures_of(page) == [] and "Most confident mistakes" in headings(page)
    assert cli.main(["report", str(run), "--data", "elsewhere"]) == 2  # what was asked for must be there


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/shards", "cifar10", "hf:user/name", "/nowhere"])
def test_nothing_is_fetched_because_a_folder_says_so(run, monkeypatch, capsys, where):
    """Somebody else may have written it."""
    asked = json.loads((run / "config.json").read_text())

    def says(command, **changes):
        (run / "config.json").write_text(json.dumps(asked | {"command": command, "asked": asked["asked"] | changes}))

    says("finetune", data=where)
    monkeypatch.setattr("bigtransfer.jobs.report.open_dataset", lambda *_a, **_o: pytest.fail("went there"))
    assert cli.main(["report", str(run)]) == 0
    assert f"note: no pictures, for {where} is no file or folder here; --data tells" in capsys.readouterr().err
    elsewhere = ("hf-hub:user/name", "hf-hub:user/name@.", "http://127.0.0.1:9/x@.", "http://127.0.0.1:9/x.safetensors")
    for model in (*elsewhere, "bit-m-r50x1", "timm:resnet18", "timm:resnet18@nowhere"):
        monkeypatch.setenv("BIT_CACHE", str(run / "no-cache"))
        says("evaluate", model=model)
        assert jobs_report.model_of(run) is None, model
    says("evaluate", model="bit-t-r26x1")
    assert jobs_report.model_of(run) == "bit-t-r26x1"


def test_a_full_disk_is_told_with_the_file(run, monkeypatch):
    report.write(run)
    before = (run / "report.html").read_text()

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"report\.html.*No space left on device"):
        report.write(run)
    monkeypatch.undo()
    assert (run / "report.html").read_text() == before


def changed(record, path, value):
    """The record with another value at a path of keys, such as "predictions 0 true"; ...: without it."""
    *above, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    inner = record
    for key in above:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value


@pytest.mark.parametrize("absent", ["confidence", "accuracy"])
def test_bins_with_images_have_both_of_their_numbers(absent):
    numbers = {"low": 0.0, "high": 0.1, "confidence": 0.05, "accuracy": 0.5, absent: None}
    record.Bin(**numbers, images=0)
    with pytest.raises(ValueError, match="confidence or accuracy is null"):
        record.Bin(**numbers, images=3)


@pytest.mark.parametrize(
    ("file", "path", "value", "said"),
    [
        ("config.json", "environment", None, "environment: expected object, got null"),
        ("config.json", "resolved", [1], "resolved: expected object, got array"),
        ("config.json", "recipe", [1], "recipe: expected object | null, got array"),
        ("config.json", "recipe/steps", 3.5, "recipe.steps: expected int, got float"),
        ("config.json", "recipe/batch_size", 0, "recipe: batch_size is 0 though steps is not"),
        ("config.json", "recipe/notes", "none", "recipe.notes: expected array, got str"),
        ("config.json", "asked/steps", "many", "asked.steps: expected int, got str"),
        ("config.json", "asked/data", {"a": 1}, "asked.data: expected str, got object"),
        ("config.json", "asked/flip", "yes", "asked.flip: expected bool, got str"),
        ("config.json", "asked", [], "asked: expected object, got array"),
        ("config.json", "command", "config", "command: invalid enum value 'config'"),
        ("config.json", "command", ..., "object missing required field command"),
        ("config.json", "data/train", -1, "data.train: expected int >= 0"),
        ("evaluation.json", "format", 2, "format: invalid enum value 2"),
        ("evaluation.json", "top1", 1.5, "top1: expected float <= 1.0"),
        ("evaluation.json", "top1_interval", [0.5], "top1_interval: expected array of length 2, got 1"),
        ("evaluation.json", "class_names/0", None, "class_names[0]: expected str, got null"),
        ("evaluation.json", "class_names", ["a"], "per_class has 3 entries, class_names 1"),
        ("evaluation.json", "confusion/1", [0], "confusion is not a matrix of 3 x 3 classes"),
        ("evaluation.json", "confused/0", [0, 3, 1], "confused[0] names a class that is not there or has no images"),
        ("evaluation.json", "confused/0", [-1, 1, 1], "confused[0][0]: expected int >= 0"),
        ("evaluation.json", "per_class/2/f1", None, "per_class[2]: f1 is null though support is not 0"),
        ("evaluation.json", "calibration/14/images", "2", "calibration[14].images: expected int, got str"),
        (
            "evaluation.json",
            "calibration/0/images",
            1,
            "calibration[0]: confidence or accuracy is null though images is not 0",
        ),
        ("evaluation.json", "predictions/3/true", 3, "predictions[3] names class 3 of 3"),
        ("evaluation.json", "predictions/3/predicted", 9, "predictions[3] names class 9 of 3"),
        ("evaluation.json", "predictions/3/rank", 3, "predictions[3] has rank 3 for class"),
        ("evaluation.json", "predictions/3/entropy", float("nan"), "predictions[3].entropy: expected float"),
        ("evaluation.json", "predictions/3/name", "\udcff", None),
        ("unreadable.json", "0", "ant/old.png", "[0]: expected object, got str"),
        ("unreadable.json", "0/reason", ..., "[0]: object missing required field reason"),
    ],
)
def test_a_record_of_another_form_is_named_with_its_field(run, file, path, value, said):
    record = json.loads((run / file).read_text())
    changed(record, path, value)
    (run / file).write_text(json.dumps(record))
    if said is None:
        report.write(run)
        return
    with pytest.raises(RunError) as caught:
        report.write(run)
    assert str(caught.value).startswith(f"{run / file}: {said}"), caught.value


@pytest.mark.parametrize(
    "line", ["{}", "[1,2]", '{"step": 1.5, "loss": 1}', '{"step": 1, "loss": "low"}', '{"step": -1}']
)
def test_a_line_of_the_log_of_another_form_is_named(run, line, capsys):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 78: "):
        report.write(run)
    assert cli.main(["report", str(run)]) == 2
    assert "metrics.jsonl, line 78: " in capsys.readouterr().err


def test_whatever_stands_in_a_field_is_shown_or_named(run):
    """A value of another kind in every place of every record, one at a time, drawn at random."""

    def places(record, path=()):
        yield path
        inner = (
            record.items() if isinstance(record, dict) else enumerate(record[:1]) if isinstance(record, list) else ()
        )
        for key, value in inner:
            yield from places(value, (*path, key))

    values = [
        None,
        True,
        -1,
        0,
        2**70,
        float("inf"),
        float("nan"),
        1e308,
        5e-324,
        "",
        "x\udcff",
        [],
        {},
        [[1]],
        [{}],
        {"a": [1]},
    ]
    rng = random.Random(0)
    for file in ("config.json", "evaluation.json", "unreadable.json"):
        whole = (run / file).read_text()
        everywhere = [path for path in places(json.loads(whole)) if path]
        for path in rng.sample(everywhere, min(len(everywhere), 40)):
            record = json.loads(whole)
            changed(record, "/".join(map(str, path)), rng.choice(values))
            (run / file).write_text(json.dumps(record))
            with contextlib.suppress(RunError):  # any other error is a failure
                report.write(run)
        (run / file).write_text(whole)


def test_many_classes_get_the_confused_pairs_instead_of_a_matrix(tmp_path, images):
    names = tuple(f"class {i}" for i in range(60))
    many = dataclasses.replace(images, labels=np.arange(24), class_names=names)
    result = Classification(60)
    result.update(torch.randn(24, 60, generator=torch.Generator().manual_seed(0)), torch.arange(24))
    write_record(tmp_path / "evaluation.json", as_record(result, many, split="val"))
    page = parse(report.write(tmp_path, many).read_text())
    tables = {one.all("h2")[0].text: one for one in page.all("section")}
    assert not page.all("svg", "matrix") and "Taken for" in page.text
    assert len(tables["Class by class"].rows()) == 1 + 24
    assert len(tables["What is confused with what"].rows()) == 1 + min(25, len(result.confused()))


def test_a_perfect_result_has_no_mistakes(tmp_path, images):
    result = Classification(3)
    labels = torch.from_numpy(images.labels)
    result.update(20.0 * torch.nn.functional.one_hot(labels, 3), labels)
    write_record(tmp_path / "evaluation.json", as_record(result, images, split="all images"))
    page = parse(report.write(tmp_path, images).read_text())
    assert "100.0% of 24 images of 3 classes" in said(page)
    assert "Most confident mistakes" not in headings(page) and "What is confused with what" not in headings(page)


def test_file_names_that_are_not_utf8(tmp_path, images, result):
    class Odd(type(images)):
        def name(self, i):
            return f"\udcff{i}.png"

    odd = Odd(**{field.name: getattr(images, field.name) for field in dataclasses.fields(images)})
    write_record(tmp_path / "evaluation.json", as_record(result, odd, split="test"))
    assert json.loads((tmp_path / "evaluation.json").read_text())["predictions"][3]["name"] == "\udcff3.png"
    report.write(tmp_path, odd).read_text(encoding="utf-8")


def test_written_evaluation_holds_every_number(run, images, result):
    """By other routes than `Classification`'s: NumPy on the logits, class by class and bin by bin."""
    record = json.loads((run / "evaluation.json").read_text())
    labels, n = images.labels, 24
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    said, sure = p.argmax(1), p.max(1)
    right = said == labels
    assert (record["format"], record["model"], record["data"], record["split"]) == (1, "my-model", NASTY, "test")
    assert record["images"] == n and record["class_names"] == list(images.class_names) and record["top5"] is None
    assert record["top1"] == right.mean() and record["nll"] == pytest.approx(-np.log(p[range(n), labels]).mean())
    assert record["mean_per_class"] == pytest.approx(np.mean([right[labels == c].mean() for c in range(3)]))
    low, high = record["top1_interval"]
    assert 0 < low < record["top1"] < high < 1
    for c, row in enumerate(record["per_class"]):
        hits, called, support = (right & (labels == c)).sum(), (said == c).sum(), (labels == c).sum()
        assert row["class"] == images.class_names[c] and row["support"] == support == 8
        assert (row["precision"], row["recall"]) == (pytest.approx(hits / called), pytest.approx(hits / support))
        assert row["f1"] == pytest.approx(2 / (called / hits + support / hits))
    counts = [[int(((labels == true) & (said == answer)).sum()) for answer in range(3)] for true in range(3)]
    assert record["confusion"] == counts
    pairs = {(true, answer): counts[true][answer] for true in range(3) for answer in range(3) if true != answer}
    assert {(true, answer): count for true, answer, count in record["confused"]} == {
        k: v for k, v in pairs.items() if v
    }
    assert [count for *_, count in record["confused"]] == sorted(filter(None, pairs.values()), reverse=True)
    ece = 0.0
    assert len(record["calibration"]) == 15
    for b, found in enumerate(record["calibration"]):
        inside = (sure > b / 15) & (sure <= (b + 1) / 15)
        assert (found["from"], found["to"]) == (pytest.approx(b / 15), pytest.approx((b + 1) / 15))
        assert found["images"] == inside.sum()
        if inside.any():
            confidence, accuracy = sure[inside].mean(), right[inside].mean()
            assert (found["confidence"], found["accuracy"]) == (pytest.approx(confidence), pytest.approx(accuracy))
            ece += inside.sum() / n * abs(confidence - accuracy)
        else:
            assert found["confidence"] is found["accuracy"] is None
    assert record["ece"] == pytest.approx(ece)
    for i, row in enumerate(record["predictions"]):
        assert (row["name"], row["index"], row["true"], row["predicted"]) == (images.name(i), i, labels[i], said[i])
        assert row["rank"] == (LOGITS[i] > LOGITS[i, labels[i]]).sum()
        assert row["probability"] == pytest.approx(sure[i]) and row["nll"] == pytest.approx(-np.log(p[i, labels[i]]))
        assert row["entropy"] == pytest.approx(-(p[i] * np.log(p[i])).sum())
    assert len(record["predictions"]) == n
    assert record["unreadable"] == [{"name": "ant/bad.png", "reason": "the file is empty (0 bytes)"}]
    empty = as_record(Classification(3), images, split="test")
    assert empty.top1 is None and json.dumps(msgspec.to_builtins(empty), allow_nan=False)


@pytest.mark.parametrize(("classes", "dense"), [(6, True), (1000, True), (1001, False)])
def test_a_matrix_of_many_classes_is_not_written(tmp_path, images, classes, dense):
    many = dataclasses.replace(images, labels=np.zeros(1, np.int64), class_names=tuple(map(str, range(classes))))
    result = Classification(classes)
    result.update(torch.nn.functional.one_hot(torch.tensor([1]), classes).double(), torch.tensor([0]))
    record = as_record(result, many, split="test")
    assert (record.confusion is not None) == dense and record.top5 == 1.0
    if not dense:
        write_record(tmp_path / "evaluation.json", as_record(result, many, split="test"))
        assert "confusion" not in json.loads((tmp_path / "evaluation.json").read_text())


def test_description_for_a_terminal(images, result):
    text = describe(result, images.class_names)
    assert f"{result.top1:.2%}" in text and re.search(r"^ant +\d", text, re.M)
    assert "top-5" not in text
    many = Classification(40)
    many.update(torch.eye(40).roll(1, 0)[:35], torch.arange(35))
    text = describe(many, [f"class {i}" for i in range(40)])
    assert "the 10 worst of 35 classes" in text and len(re.findall(r"^class \d", text, re.M)) == 10
