from __future__ import annotations

import dataclasses
import hashlib
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

import bigtransfer
from bigtransfer import cli, weights
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.data import open_dataset
from bigtransfer.data.splits import in_turn
from bigtransfer.errors import DataError
from bigtransfer.evals import linear
from bigtransfer.jobs import evaluate
from bigtransfer.jobs.pretrain import readable_names
from bigtransfer.model import ResNetV2
from bigtransfer.predictor import Predictor

from .network_makers import tiny

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0), "white": (255, 255, 255)}


def write_images(folder, names, count, seed):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-40, 40, size=(24, 20, 3))
            pixels = np.clip(np.array(COLOURS[name]) * 0.7 + 40 + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    write_images(root / "train", COLOURS, 6, 0)
    write_images(root / "test", COLOURS, 5, 1)
    return root


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    """A model file that tells the colours apart, its classes in another order than the folders'."""
    names = tuple(reversed(COLOURS))
    network = tiny(names, name="colours")
    train, _ = evaluate.match_classes(open_dataset(data).train, names, len(names))
    features = torch.from_numpy(Predictor(network).features([train.read(i) for i in range(len(train))]))
    network.head = linear.fit(features, torch.from_numpy(train.labels), len(names)).head
    path = tmp_path_factory.mktemp("model") / "colours.safetensors"
    weights.save(path, network)
    return path


def bit(*arguments):
    return cli.main(["evaluate", *map(str, arguments), "--device", "cpu"])


def test_evaluate_measures_the_test_part_and_matches_classes_by_name(model, data, tmp_path, capsys):
    assert bit(model, data, "--json", tmp_path / "all.json") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("classes: blue, green, red, white\n") and "(test): 20 images of 4 classes" in printed
    assert "100.00%   (95% interval 83.89% to 100.00%, 20 images)" in printed
    assert printed.endswith(f"\nall numbers: {tmp_path / 'all.json'}\n") and "report:" not in printed
    record = json.loads((tmp_path / "all.json").read_text())
    assert record["top1"] == 1 and record["class_names"] == ["white", "red", "green", "blue"]
    assert (record["model"], record["data"], record["split"]) == ("colours", str(data), "test")
    assert record["confusion"] == (5 * np.eye(4, dtype=int)).tolist()
    for row in record["predictions"]:
        assert row["name"].startswith(f"test/{record['class_names'][row['true']]}/")
        digest = hashlib.blake2b((data / row["name"]).read_bytes(), digest_size=16)
        assert row["content"] == digest.hexdigest()[:16]


def test_evaluate_agrees_with_predict(model, data, tmp_path):
    bit(model, data, "--json", tmp_path / "all.json", "--precision", "fp32", "--batch-size", 7)
    rows = json.loads((tmp_path / "all.json").read_text())["predictions"]
    predictor = Predictor.load(model, device="cpu", precision="fp32")
    for row, prediction in zip(rows, predictor.predict([data / row["name"] for row in rows]), strict=True):
        assert prediction.class_names[row["predicted"]] == prediction.label
        assert row["probability"] == pytest.approx(prediction.probability, rel=1e-4)


def test_evaluate_writes_a_report_with_pictures(model, data, tmp_path, capsys):
    assert bit(model, data, "--split", "train", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "(train): 24 images" in printed and printed.endswith(f"\nreport: {tmp_path / 'out' / 'report.html'}\n")
    report = (tmp_path / "out" / "report.html").read_text()
    assert "100.0%" in report and report.count("data:image/png") == 12
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["split"] == "train"
    (tmp_path / "out" / "report.html").unlink()
    assert cli.main(["report", str(tmp_path / "out")]) == 0
    again = (tmp_path / "out" / "report.html").read_text()
    assert again == report
    assert cli.main(["report", str(tmp_path / "out"), "--data", str(tmp_path / "nowhere")]) == 2
    capsys.readouterr()
    for name in ("config.json", "evaluation.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes((tmp_path / "out" / name).read_bytes())
        cli.main(["report", str(tmp_path / name)])
        assert "is no run folder" not in capsys.readouterr().err, "one of both is enough"
    (tmp_path / "none").mkdir()
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_the_whole_set_is_taken_where_there_are_no_parts(model, data, capsys):
    assert bit(model, data / "train") == 0
    assert "(all images): 24 images" in capsys.readouterr().out
    assert bit(model, data / "train", "--split", "test") == 2
    assert "has no test part, only train" in capsys.readouterr().err


def test_unreadable_images_are_left_out_and_told(model, tmp_path, capsys):
    write_images(tmp_path, COLOURS, 2, 0)
    (tmp_path / "red" / "0.png").write_bytes(b"")
    assert bit(model, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "1 images cannot be read" in printed and "the file is empty" in printed and "7 images)" in printed
    assert bit(model, tmp_path, "--skip-bad-images", "--json", tmp_path / "all.json") == 0
    record = json.loads((tmp_path / "all.json").read_text())
    assert len(record["unreadable"]) == 1 and record["images"] == 7
    for name, i in [(name, i) for name in COLOURS for i in range(1, 4)][2:]:
        (tmp_path / name / f"{i}.png").write_bytes(b"")
    capsys.readouterr()
    assert bit(model, tmp_path) == 1
    printed = capsys.readouterr().out
    assert "11 images cannot be read" in printed and "  ... and 1 more\n" in printed
    assert printed.count("the file is empty") == 10
    (tmp_path / "red" / "1.png").unlink()
    assert bit(model, tmp_path) == 1
    printed = capsys.readouterr().out
    assert printed.count("the file is empty") == 10 and "more" not in printed


def test_a_model_that_may_give_several_classes_on_images_of_one_says_what_counts(model, data, tmp_path, capsys):
    network = weights.load(model)
    network.card = dataclasses.replace(network.card, multi_label=True, thresholds=(0.5,) * 4)
    weights.save(tmp_path / "several.safetensors", network)
    assert bit(tmp_path / "several.safetensors", data) == 0
    assert "these images have one each: what else it gives counts as wrong" in capsys.readouterr().err
    rows = [f"{data}/test/{name}/0.png,{name}|white" for name in COLOURS]
    (tmp_path / "table.csv").write_text("\n".join(["image,label", *rows]))
    assert bit(tmp_path / "several.safetensors", tmp_path / "table.csv", "--label-separator", "|") == 0
    assert "have one each" not in capsys.readouterr().err


def test_classes_that_differ_are_listed(model, tmp_path, capsys):
    write_images(tmp_path / "some", ["red", "blue"], 1, 0)
    assert bit(model, tmp_path / "some") == 2
    error = capsys.readouterr().err
    assert "only in the model: white, green" in error and "--subset" in error and "only in the data" not in error
    assert bit(model, tmp_path / "some", "--subset") == 0
    assert "2 images of 4 classes" in capsys.readouterr().out
    (tmp_path / "some" / "red").rename(tmp_path / "some" / "pink")
    assert bit(model, tmp_path / "some", "--subset") == 2
    assert "only in the data: pink" in capsys.readouterr().err


def test_names_of_folders_can_be_translated(model, tmp_path, capsys):
    write_images(tmp_path / "data", COLOURS, 2, 0)
    for i, name in enumerate(COLOURS):
        (tmp_path / "data" / name).rename(tmp_path / "data" / f"n{i}")
    table = tmp_path / "names.tsv"
    table.write_text("".join(f"n{i}\t{name}\n" for i, name in enumerate(COLOURS)))
    assert bit(model, tmp_path / "data", "--class-names", table) == 0
    assert "100.00%" in capsys.readouterr().out
    table.write_text("n0\tblue\n")
    assert bit(model, tmp_path / "data", "--class-names", table) == 2
    assert "no line for 3 of the" in capsys.readouterr().err


def test_labels_are_renumbered_and_classes_named(data):
    images = open_dataset(data).train
    renumbered, matched = evaluate.match_classes(images, ("white", "red", "green", "blue"), 4)
    assert renumbered.labels.tolist() == (3 - images.labels).tolist() and matched.assumption is None
    assert renumbered.class_names == ("white", "red", "green", "blue")
    several = dataclasses.replace(images, labels=np.array([[0, 1], [3, -1]]), rows=images.rows[:2])
    renumbered, _ = evaluate.match_classes(several, ("white", "red", "green", "blue"), 4)
    assert renumbered.labels.tolist() == [[3, 2], [0, -1]]
    assert evaluate.match_classes(images, None, 4)[0].class_names == ("blue", "green", "red", "white")
    numbered = dataclasses.replace(images, class_names=("5", "0", "3", "1"))
    renumbered, _ = evaluate.match_classes(numbered, None, 6, subset=True)
    assert renumbered.class_names == ("0", "1", "2", "3", "4", "5")
    assert renumbered.labels.tolist() == np.array([5, 0, 3, 1])[images.labels].tolist()


@pytest.fixture(scope="module")
def nameless(tmp_path_factory):
    """A model that knows twelve shades of grey by number, the darkest as 0, and folders of such images."""
    root = tmp_path_factory.mktemp("shades")
    for shade in range(12):
        (root / "data" / str(shade)).mkdir(parents=True)
        for i in range(2):
            grey = np.full((20, 20, 3), 20 + 20 * shade, np.uint8)
            grey[: i + 1, 0] = 0
            Image.fromarray(grey).save(root / "data" / str(shade) / f"{i}.png")
    torch.manual_seed(0)
    network = ResNetV2((1, 1, 1, 1), 1, 12)
    network.card = ModelCard(name="shades", architecture=network.architecture, num_classes=12, input=InputSpec(size=32))
    images = open_dataset(root / "data").train
    numbers = torch.tensor([int(images.name(i).split("/")[0]) for i in range(len(images))])
    features = torch.from_numpy(Predictor(network).features([images.read(i) for i in range(len(images))]))
    network.head = linear.fit(features, numbers, 12).head
    weights.save(root / "shades.safetensors", network)
    return root


def test_a_model_without_class_names_is_measured_by_number(nameless, tmp_path, capsys):
    model, data = nameless / "shades.safetensors", nameless / "data"
    assert bit(model, data, "--json", tmp_path / "all.json") == 0
    printed = capsys.readouterr()
    assert "100.00%" in printed.out and "numbers are taken for its class numbers, 0 = 0, 1 = 1, 10 = 10" in printed.err
    assert "class numbers" in json.loads((tmp_path / "all.json").read_text())["notes"][0]
    for shade in (3, 7):
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / "some" / str(shade)).symlink_to(data / str(shade))
    assert bit(model, tmp_path / "some", "--subset") == 0
    assert "100.00%" in capsys.readouterr().out
    table = "".join(f"{data / str(shade)}/{i}.png,{shade}\n" for shade in (3, 7) for i in range(2))
    (tmp_path / "some.csv").write_text(f"image,label\n{table}")
    assert bit(model, tmp_path / "some.csv", "--subset") == 0
    assert "100.00%" in capsys.readouterr().out
    assert bit(model, tmp_path / "some") == 2
    assert "only in the model: 0, 1, 2, 4" in capsys.readouterr().err


def test_a_model_that_was_numbered_as_text_is_noticed(nameless, tmp_path, capsys):
    """torchvision's ImageFolder sorts 10 before 2; the answers then fit that order."""
    as_text = sorted(map(str, range(12)))
    for place, name in enumerate(as_text):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(nameless / "data" / str(place))
    assert bit(nameless / "shades.safetensors", tmp_path / "data") == 0
    error = capsys.readouterr().err
    assert "as torchvision's ImageFolder does better: top-1 would be 100.0% instead of 16.7%" in error
    table = tmp_path / "numbers.tsv"
    table.write_text("".join(f"{name}\t{place}\n" for place, name in enumerate(as_text)))
    assert bit(nameless / "shades.safetensors", tmp_path / "data", "--class-names", table) == 0
    assert "100.00%" in capsys.readouterr().out


def test_one_class_is_enough_to_be_measured_on(model, data, capsys, tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "red").symlink_to(data / "test" / "red")
    assert bit(model, tmp_path / "some", "--subset") == 0
    assert "5 images of 4 classes" in capsys.readouterr().out
    assert bit(model, tmp_path / "some") == 2
    assert "--subset" in capsys.readouterr().err


def test_images_without_labels_are_for_predict(model, data, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert bit(model, tmp_path) == 2
    assert "bit predict" in capsys.readouterr().err


def test_a_set_without_a_readable_image(model, tmp_path, capsys):
    for name in COLOURS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"x")
    assert bit(model, tmp_path) == 2
    assert "no image to evaluate on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"0\tant\n0\tbee\n1\tcat\n", r"line 2: '0' is 'bee', and was 'ant' before"),
        (b"0\tant\n1\tant\n", "gives several classes one name: ant"),
        (b"\xff\xfe0", "is not UTF-8 text"),
        (b"0\tant\n", "has no line for 1 of the 2 classes, such as 1"),
    ],
)
def test_files_of_class_names_that_are_wrong(tmp_path, content, said):
    (tmp_path / "names.tsv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        readable_names(("0", "1"), str(tmp_path / "names.tsv"))


def test_files_that_are_read_are_not_written(model, data, tmp_path, capsys):
    """Nor is one written twice: the record of a measurement would be lost."""
    out = tmp_path / "out"
    assert bit(model, data, "--out", out) == 0
    before = {file: file.read_bytes() for file in out.iterdir() if file.is_file()}
    (tmp_path / "names").symlink_to(out / "evaluation.json")
    capsys.readouterr()
    for flags, said in (
        (["--json", out / "config.json"], "would replace what --out writes"),
        (["--json", out / "new" / ".." / "evaluation.json"], "would replace what --out writes"),
        (["--class-names", out / "config.json"], "would replace"),
        (["--exclude", tmp_path / "names"], "would replace"),
    ):
        (out / "new").mkdir(exist_ok=True)
        assert bit(model, data, "--out", out, *flags) == 2
        assert said in capsys.readouterr().err
    assert bit(model, data, "--json", model) == 2
    assert {file: file.read_bytes() for file in before} == before
    assert bit(model, data, "--out", tmp_path / "none", "--json", tmp_path / "none" / "config.json") == 2
    assert not (tmp_path / "none").exists()


def test_a_file_of_class_names(tmp_path):
    (tmp_path / "names.tsv").write_bytes("\ufeff1\tb\u00e4r\tmore\n0\tant\n0\tant\n".encode())
    assert readable_names(("0", "1"), str(tmp_path / "names.tsv")) == ("ant", "b\u00e4r")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe"):
        readable_names(("0",), str(tmp_path / "pipe"))


def test_images_that_the_model_was_trained_on_are_said(data, model, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(model.read_bytes())
    (run / "config.json").write_text(json.dumps({"command": "finetune", "asked": {"data": str(data)}}))
    train, test = (open_dataset(data).parts()[part] for part in ("train", "test"))
    learnt = [train.name(i) for i in range(len(train))]
    (run / "split.json").write_text(json.dumps({"train": learnt[1:], "test": [test.name(0)]}))

    def said(*arguments):
        assert cli.main(["evaluate", *map(str, arguments)]) == 0
        return capsys.readouterr().err

    for named in (run, run / "model.safetensors"):
        assert f"{len(learnt) - 1} of these {len(learnt)} images are those that" in said(
            named, data, "--split", "train"
        )
    assert "trained on" not in said(run, data)
    assert "trained on" not in said(model, data, "--split", "train")
    # However they are named.
    assert f"{len(learnt) - 1} of these {len(learnt)} images are those that" in said(run, f"{data}/./train/")
    # Those that were held out too, where the model was solved once more with them.
    (run / "split.json").write_text(json.dumps({"train": learnt[2:], "val": learnt[:2]}))
    assert f"{len(learnt) - 2} of these" in said(run, data, "--split", "train")
    closed = {"view": {"size": 16, "readout": None}, "judged": [], "images": 3, "seconds": 1.0, "top1": 0.5}
    for whole, count in (({"images": 5, "top1": 0.5}, 0), (None, 2)):
        (run / "closed.json").write_text(json.dumps(closed | {"whole": whole}))
        assert f"{len(learnt) - count} of these" in said(run, data, "--split", "train")
    (run / "split.json").write_text("<html>")
    assert "Whether the model was trained on some of these images is not known" in said(run, data, "--split", "train")
    (run / "split.json").write_text(json.dumps({"train": learnt[1:]}))
    (run / "config.json").write_text(json.dumps({"command": "finetune", "asked": {"data": str(tmp_path)}}))
    assert "trained on" not in said(run, data, "--split", "train")


def test_as_far_as_the_time_goes_a_fair_sample_is_measured(model, data, tmp_path, monkeypatch):
    """Of every class its share, and no others; with time enough the same as without a clock."""
    monkeypatch.setattr(evaluate, "_BETWEEN", 3)
    predictor = Predictor.load(model, device="cpu", precision="fp32")
    write_images(tmp_path / "some", COLOURS, 20, 7)
    images, _ = evaluate.match_classes(open_dataset(tmp_path / "some").train, predictor.card.class_names, 4)
    asked = []
    whole, unreadable = evaluate.measure(predictor, images)
    same, none = evaluate.measure(predictor, images, late=lambda rest: bool(asked.append(rest)))
    assert unreadable == none == [] and asked == [*range(77, 0, -3), 0]
    for name in ("index", "true", "predicted", "rank"):
        assert np.array_equal(whole.records[name], same.records[name])
    np.testing.assert_allclose(whole.records["nll"], same.records["nll"], rtol=1e-4, atol=1e-5)
    asked.clear()
    part, none = evaluate.measure(predictor, images, late=lambda rest: len(asked) >= 10 or bool(asked.append(rest)))
    assert len(part) == 33 and none == []
    kept = part.records["index"]
    assert len(set(kept)) == 33 and sorted(np.bincount(part.records["true"])) == [8, 8, 8, 9]
    for name in ("true", "predicted", "rank"):
        assert np.array_equal(part.records[name], whole.records[name][kept])
    assert len(evaluate.measure(predictor, images, late=lambda rest: True)[0]) == 3, "a batch at least"


def test_the_command_shows_how_far_it_is_and_the_function_does_not(model, data, monkeypatch):
    asked, measure = [], evaluate.measure
    monkeypatch.setattr(
        evaluate, "measure", lambda *args, **options: asked.append(options["progress"]) or measure(*args, **options)
    )
    assert bit(model, data) == 0
    bigtransfer.evaluate(model, data, device="cpu")
    assert asked == [True, False]


def test_unreadable_images_that_were_not_reached_are_not_listed(model, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_BETWEEN", 4)
    predictor = Predictor.load(model, device="cpu", precision="fp32")
    write_images(tmp_path / "some", COLOURS, 5, 7)
    images, _ = evaluate.match_classes(open_dataset(tmp_path / "some").train, predictor.card.class_names, 4)
    order = in_turn(images, seed=0)
    for place in (1, 5, 9, 10):
        (tmp_path / "some" / images.name(int(order[place]))).write_bytes(b"no picture")
    names = [images.name(int(order[place])) for place in (1, 5, 9, 10)]
    for batches, reached in ((1, 1), (2, 2), (3, 4), (9, 4)):
        asked = []
        late = lambda rest, asked=asked, batches=batches: bool(asked.append(0)) or len(asked) >= batches  # noqa: E731
        result, unreadable = evaluate.measure(predictor, images, late=late)
        assert sorted(error.name for error in unreadable) == sorted(names[:reached])
        assert len(result) == min(4 * batches, 20) - reached
