"""`bit finetune` as it is typed: what it writes, what it refuses, and interruptions at any moment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import types
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import bigtransfer
from bigtransfer import cli, evals, hyperrule, machine, outputs, weights
from bigtransfer.catalog import ARCHITECTURES, InputSpec, ModelCard, Readout
from bigtransfer.config import FinetuneConfig
from bigtransfer.data import open_dataset, splits
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import Closed, View, Whole
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import evaluate, finetune, plan, training, working
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.finetune import closed, dataset
from bigtransfer.model import ResNetV2, joined
from bigtransfer.train import checkpoint, loop
from tests.conftest import dying_at_a_checkpoint
from tests.test_tracking import scalars

CLASSES = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
STEPS = 10


def write_images(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (24, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours with a test part."""
    root = tmp_path_factory.mktemp("data") / "colours"
    write_images(root / "train", 5, 0)
    write_images(root / "test", 4, 1)
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pre-trained model, with as many classes as the data, but others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ResNetV2((1, 1, 1, 1), 1, len(CLASSES))
        torch.nn.init.normal_(network.head.weight)
    network.card = ModelCard(
        name="tiny",
        architecture=network.architecture,
        num_classes=len(CLASSES),
        input=InputSpec(size=32),
        class_names=("ant", "bee", "cat"),
        upstream="noise",
        licence="CC0-1.0",
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    weights.save(path, network)
    return path


def flags(data: Path, tiny: Path, out: Path, *more: object) -> list[str]:
    """A short run that saves a checkpoint after every step."""
    given = ["finetune", data, "--model", tiny, "--out", out, "--steps", STEPS, "--batch-size", 6, "--crop", 32]
    given += ["--device", "cpu", "--precision", "fp32", "--workers", 0, "--checkpoint-every", "0s", *more]
    return [str(one) for one in given]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "bigtransfer", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def interrupt(arguments: list[str], run: Path, step: int, number: int) -> tuple[int, str, str]:
    """Send the signal once `step` steps are logged; exit status, stdout, stderr."""
    process = start(arguments)
    deadline = time.monotonic() + 60
    log = run / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and sum('"loss"' in line for line in log.read_text().splitlines()) >= step:
            break
        time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def numbers(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in training.CLOCK} for line in lines]


def digest(run: Path) -> str:
    """Of the weights alone: the card in the header may name another folder."""
    network = weights.load(run)
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in network.state_dict().values())).hexdigest()


def in_process(arguments: list[str]) -> int:
    return cli.main(arguments)


@pytest.fixture(scope="module")
def finished(data: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run with validation on the way, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    process = start(flags(data, tiny, out, "--val-fraction", "0.2", "--eval-every", 4))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors and "100%" in errors
    return out, output


# --- What it writes


def test_the_files_of_a_run(finished: tuple[Path, str], data: Path) -> None:
    run, output = finished
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "closed.json",
        "config.json",
        "copies.json",
        "evaluation.json",
        "metrics.jsonl",
        "model.safetensors",
        "report.html",
        "split.json",
        "suspects.json",
        "unreadable.json",
    }, "no checkpoint is left of a finished run"
    config = json.loads((run / "config.json").read_text())
    assert config["asked"]["steps"] == STEPS and config["asked"]["learning_rate"] is None
    recipe = Recipe.from_dict(config["recipe"])
    assert (recipe.steps, recipe.batch_size, recipe.crop, recipe.size_class) == (STEPS, 6, 32, "small")
    assert recipe.base_learning_rate == pytest.approx(0.003 * 6 / 512)
    assert config["resolved"]["dtype"] == "float32" and config["resolved"]["native_size"] == [24, 20]
    found = config["data"]
    assert len(found.pop("fingerprint")) == 64
    assert found == {"name": str(data), "train": 12, "val": 3, "test": 12, "classes": 3, "found": 27}
    split = json.loads((run / "split.json").read_text())
    assert {part: len(names) for part, names in split.items()} == {"train": 12, "val": 3, "test": 12}
    assert all(name.startswith("train/") for name in split["train"] + split["val"])
    assert json.loads((run / "unreadable.json").read_text()) == json.loads((run / "copies.json").read_text()) == []
    assert (
        f"data:   {data}: 12 train, 3 val, 12 test images of 3 classes\nclasses: blue, green, red\n"
        "looks:  at 12 images, all blocks at 32 px, mirrored too\nmodel:  tiny\n" in output
    )
    assert "rule:   10 steps of 6 images, 40 -> 32 px, learning rate 3.52e-05, no MixUp, float32 on cpu\n" in output
    ending = f"\nmodel:  {run}/model.safetensors\nreport: {run}/report.html\nnext:   bit predict {run} IMAGES\n"
    assert output.endswith(ending)


def test_what_is_held_out_and_drawn_is_the_seeds(data: Path, tiny: Path, tmp_path: Path) -> None:
    arguments = [
        "finetune",
        data / "train",
        "--model",
        tiny,
        "--linear",
        "closed",
        "--crop",
        32,
        "--device",
        "cpu",
        "--seed",
        3,
    ]
    train = open_dataset(data / "train").train
    expected = splits.hold_out(train, 0.2, 3)[1], splits.per_class(train, 4, 3)
    assert in_process([str(one) for one in (*arguments, "--out", tmp_path / "a", "--val-fraction", 0.2)]) == 0
    assert (
        in_process(
            [str(one) for one in (*arguments, "--out", tmp_path / "b", "--val-fraction", 0, "--examples-per-class", 4)]
        )
        == 0
    )
    for run, part, images in (("a", "val", expected[0]), ("b", "train", expected[1])):
        names = json.loads((tmp_path / run / "split.json").read_text())[part]
        assert names == [images.name(i) for i in range(len(images))]
    other = splits.hold_out(train, 0.2, 0)[1], splits.per_class(train, 4, 0)
    assert all(a.rows.tolist() != b.rows.tolist() for a, b in zip(expected, other, strict=True))


def test_names_that_are_not_utf8(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no text come back from every file of the run as they were."""
    one, other = os.fsdecode(b"caf\xe9"), "gr\u00fcn"
    write_images(tmp_path / "data", 3, 0)
    (tmp_path / "data" / "blue").rename(tmp_path / "data" / one)
    (tmp_path / "data" / "green").rename(tmp_path / "data" / other)
    (tmp_path / "data" / one / "0.png").rename(tmp_path / "data" / one / os.fsdecode(b"\xff.png"))
    run = tmp_path / "run"
    arguments = [
        "finetune",
        tmp_path / "data",
        "--model",
        tiny,
        "--linear",
        "closed",
        "--crop",
        32,
        "--device",
        "cpu",
        "--out",
        run,
    ]
    assert in_process([str(one) for one in (*arguments, "--val-fraction", 0.4)]) == 0
    split = json.loads((run / "split.json").read_text(encoding="utf-8"))
    assert {name for names in split.values() for name in names} == {
        path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.png")
    }
    assert weights.describe(run).class_names == (one, other, "red")
    capsys.readouterr()
    assert (
        in_process(
            ["evaluate", str(run), str(tmp_path / "data"), "--json", str(tmp_path / "e.json"), "--device", "cpu"]
        )
        == 0
    )
    assert "caf\\udce9" in capsys.readouterr().out
    record = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert record["class_names"] == [one, other, "red"] and any(
        os.fsdecode(b"\xff.png") in row["name"] for row in record["predictions"]
    )
    assert in_process(["predict", str(run), str(tmp_path / "data" / one), "--device", "cpu"]) == 0


def test_the_log_is_complete(finished: tuple[Path, str]) -> None:
    run, _ = finished
    recipe = Recipe.from_dict(json.loads((run / "config.json").read_text())["recipe"])
    lines = numbers(run)
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == list(range(STEPS))
    assert [line["lr"] for line in losses] == [recipe.learning_rate(step) for step in range(STEPS)]
    # The head starts at zero although the file's own head has as many classes.
    assert losses[0]["loss"] == pytest.approx(np.log(3), rel=1e-5)
    measured = [line for line in lines if "val/top1" in line]
    assert [line["step"] for line in measured] == [3, 7, 9]


def test_the_model_file_describes_itself(finished: tuple[Path, str], data: Path) -> None:
    run, output = finished
    card = weights.describe(run / "model.safetensors")
    assert card.class_names == tuple(CLASSES) and card.num_classes == 3
    assert card.input.size == 32 and card.source == "bit finetune" and card.licence == "CC0-1.0"
    assert card.upstream == "noise; fine-tuned on colours"
    assert card.recipe is not None
    assert Recipe.from_dict(dict(card.recipe)) == Recipe.from_dict(
        json.loads((run / "config.json").read_text())["recipe"]
    )
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert card.metrics["test_top1"] == evaluation["top1"] and evaluation["split"] == "test"
    assert f"top-1 {evaluation['top1']:.1%} of 12 images" in output


def test_evaluate_and_predict_agree_with_it(
    finished: tuple[Path, str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    reported = json.loads((run / "evaluation.json").read_text())
    common = ["--device", "cpu", "--precision", "fp32"]
    assert in_process(["evaluate", str(run), str(data), "--json", str(tmp_path / "e.json"), *common]) == 0
    measured = json.loads((tmp_path / "e.json").read_text())
    assert measured["top1"] == reported["top1"]
    for row, other in zip(measured["predictions"], reported["predictions"], strict=True):
        assert [row[key] for key in ("name", "predicted", "rank")] == [
            other[key] for key in ("name", "predicted", "rank")
        ]
        assert row["probability"] == other["probability"], "delivered numbers are repeatable, to the last bit"
    answers = bigtransfer.Predictor.load(run, device="cpu", precision="fp32").predict(
        [data / row["name"] for row in reported["predictions"]]
    )
    assert [answer.label for answer in answers] == [
        reported["class_names"][row["predicted"]] for row in reported["predictions"]
    ]
    capsys.readouterr()
    assert in_process(["predict", str(run), str(data / "test" / "red" / "0.png"), *common]) == 0
    assert "0.png" in capsys.readouterr().out
    assert in_process(["evaluate", str(run), str(data), "--out", str(run), *common]) == 2
    assert "whose own results would be replaced" in capsys.readouterr().err
    assert json.loads((run / "evaluation.json").read_text()) == reported


def test_a_finished_run_is_not_trained_again(
    finished: tuple[Path, str], data: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    same = flags(data, tiny, run, "--val-fraction", "0.2", "--eval-every", 4)
    assert in_process(same) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before
    page = (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()  # as if it had been killed between the model and its report
    assert in_process(same) == 0
    again = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/" in page and again.count("data:image/") == page.count("data:image/")
    capsys.readouterr()
    assert in_process([*same, "--seed", "1"]) == 2
    assert "holds another run (--seed was 0, is now 1)" in capsys.readouterr().err
    done = bigtransfer.finetune(
        f"{data}/", model=tiny, out=run, steps=STEPS, batch_size=6, crop=32, device="cpu", precision="fp32",
        val_fraction=0.2, eval_every=4,
    )  # fmt: skip
    assert isinstance(done, working.Finetuned) and done.model == run / "model.safetensors"
    assert done.metrics["test_top1"] == json.loads((run / "evaluation.json").read_text())["top1"]
    assert done.recipe.steps == STEPS and done.stopped_by is None


def test_a_finished_run_whose_images_have_changed_is_not_passed_off_as_theirs(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "some"
    write_images(root, 3, 0)
    short[1] = str(root)
    same = [*short, "--linear", "closed", "--val-fraction", "0"]
    same = [one for one in same if one not in ("--batch-size", "6")]
    assert in_process(same) == 0
    kept = (root / "red" / "0.png").read_bytes()

    def refused() -> bool:
        capsys.readouterr()
        status = in_process(same)
        captured = capsys.readouterr()
        assert ("have changed since" in captured.err and "Choose another --out" in captured.err) == (status == 2)
        assert ("is finished. Remove it" in captured.out) == (status == 0)
        return status == 2

    assert not refused()
    (root / "red" / "new.png").write_bytes(kept)
    assert refused()  # one more
    (root / "red" / "new.png").rename(root / "blue" / "new.png")
    (root / "blue" / "0.png").rename(tmp_path / "aside.png")
    assert refused()  # as many, another one
    (root / "blue" / "new.png").unlink()
    (tmp_path / "aside.png").rename(root / "blue" / "0.png")
    assert not refused()
    (root / "red" / "0.png").write_bytes(kept[:-1] + b" ")
    assert refused()  # the same name and size, other contents
    (root / "red" / "0.png").rename(root / "blue" / "3.png")
    (root / "blue" / "3.png").write_bytes(kept)
    assert refused()  # another class
    for image in root.rglob("*.png"):
        image.unlink()
    assert not refused()  # gone altogether: the result is as good as it was


# --- Interruptions


def test_interrupted_runs_end_with_the_very_same_weights(
    finished: tuple[Path, str], data: Path, tiny: Path, tmp_path: Path
) -> None:
    """One run stopped by SIGTERM and by SIGKILL, at random steps; `benchmarks/interruptions.py` does it many times."""
    run, whole = tmp_path / "run", finished[0]
    same = flags(data, tiny, run, "--val-fraction", "0.2", "--eval-every", 4)
    steps = sorted(random.Random(0).sample(range(1, STEPS - 1), 2))
    for step, number in zip(steps, (signal.SIGTERM, signal.SIGKILL), strict=True):
        status, output, errors = interrupt(same, run, step, number)
        assert status == (128 + number if number == signal.SIGTERM else -number), errors
        assert not (run / "model.safetensors").exists() and checkpoint.exists(run)
        assert ("everything so far is saved" in output) == (number == signal.SIGTERM)
    process = start(same)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "resumed after step" in output
    assert digest(run) == digest(whole) and numbers(run) == numbers(whole)
    for name in ("split.json", "report.html", "evaluation.json"):
        assert (run / name).is_file()
    assert weights.describe(run).metrics == weights.describe(whole).metrics


def test_a_resume_computes_with_the_threads_that_the_run_began_with() -> None:
    """Sums over another number of threads are rounded otherwise: the weights would not be the same bit for bit."""
    now = torch.get_num_threads()
    try:
        plan.same_threads(now + 1)
        assert torch.get_num_threads() == now + 1
        plan.same_threads(None)  # written before threads were recorded
        assert torch.get_num_threads() == now + 1
    finally:
        torch.set_num_threads(now)


def test_a_resume_computes_in_the_numbers_that_the_run_began_with(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On whatever machine it goes on, and although another would choose others."""
    seen: list[torch.dtype] = []

    def train(*given: Any, **_: Any) -> None:
        seen.append(given[3].torch_dtype)
        raise SystemExit(9)

    monkeypatch.setattr(training, "train", train)
    same = flags(data, tiny, tmp_path / "run")
    with pytest.raises(SystemExit):
        in_process(same)
    file = tmp_path / "run" / "config.json"
    record = json.loads(file.read_text())
    record["resolved"]["dtype"] = "bfloat16"
    file.write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        in_process(same)
    assert seen == [torch.float32, torch.bfloat16]


def test_ctrl_c_saves_and_says_so(data: Path, tiny: Path, tmp_path: Path) -> None:
    more = ("--checkpoint-every", "1h", "--cache", "none", "--workers", 1)
    status, output, errors = interrupt(flags(data, tiny, tmp_path / "run", *more), tmp_path / "run", 2, signal.SIGINT)
    assert status == 130
    assert "Stopped; everything so far is saved. The same command goes on from here." in output
    assert "Traceback" not in errors and checkpoint.exists(tmp_path / "run")


@pytest.mark.parametrize("moment", ["decoding", "closed form", "training", "choice", "test"])
def test_ctrl_c_at_any_moment_says_what_is_kept(
    short: list[str],
    enough: Path,
    tmp_path: Path,
    moment: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finetune.decision, "images_per_second", lambda *_: 1000.0)
    short[1] = str(enough)
    same = [*short, "--steps", "2", "--budget", "1h"]
    where, name = {
        "decoding": (training.checks, "check"),
        "closed form": (finetune.baseline.closed, "solve"),
        "training": (training, "train"),
        "choice": (finetune.choice, "choose"),
        "test": (finetune.measuring, "measure"),
    }[moment]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, interrupted)
        assert in_process(same) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    run = tmp_path / "run"
    if moment in ("decoding", "closed form"):
        assert told == "interrupted: nothing is kept so early; the same command begins anew"
        return
    kept = "the training up to step 2" if moment != "training" else "the closed form and all that was decided"
    assert told == f"interrupted: {kept} is kept in {run}; the same command goes on from there"
    if moment == "test":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finetune.baseline, "solve", None)
            patch.setattr(finetune.tuning, "TrainLoader", None)
            assert in_process(same) == 0


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    finished: tuple[Path, str], data: Path, tiny: Path, tmp_path: Path
) -> None:
    """As the folder is after each of the files of the beginning, and after some steps without a checkpoint."""
    whole = finished[0]
    same = flags(data, tiny, tmp_path / "run", "--val-fraction", "0.2", "--eval-every", 4)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.json").write_text(
        '{"train": ["gone.png"]}'
    )  # of a run that did not get to its config.json
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "loss": 3}\n{"step": 1, "lo')
    (tmp_path / "run" / ".lock").touch()
    left_behind = tmp_path / "run" / f".config.json.{outputs._machine()}.01234567.tmp"
    left_behind.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", lambda *_a, **_k: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            in_process(same)
    assert not left_behind.exists()
    assert (tmp_path / "run" / "config.json").is_file() and not checkpoint.exists(tmp_path / "run")
    assert in_process(same) == 0
    assert digest(tmp_path / "run") == digest(whole) and numbers(tmp_path / "run") == numbers(whole)


def test_a_run_killed_after_its_last_step_only_measures(
    finished: tuple[Path, str], data: Path, tiny: Path, tmp_path: Path
) -> None:
    same = flags(data, tiny, tmp_path / "run", "--val-fraction", "0.2", "--eval-every", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.measuring, "measure", lambda *_a, **_k: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            in_process(same)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.tuning, "TrainLoader", None)  # no image is decoded for training any more
        assert in_process(same) == 0
    assert digest(tmp_path / "run") == digest(finished[0]) and numbers(tmp_path / "run") == numbers(finished[0])


# --- Variants


@pytest.fixture
def short(data: Path, tiny: Path, tmp_path: Path) -> list[str]:
    """Two steps."""
    given = ["finetune", data, "--model", tiny, "--out", tmp_path / "run", "--device", "cpu", "--precision", "fp32"]
    return [*map(str, given), "--crop", "32", "--batch-size", "6", "--workers", "0"]


def config_of(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def card_and_config(run: Path) -> tuple[ModelCard, dict]:
    return weights.describe(run / "model.safetensors"), config_of(run)


def test_linear_closed(short: list[str], data: Path, tiny: Path, tmp_path: Path) -> None:
    short = [one for one in short if one not in ("--batch-size", "6")]
    assert in_process([*short, "--linear", "closed", "--no-flip"]) == 0
    network = weights.load(tmp_path / "run")
    card = network.card
    source = weights.load(tiny)
    assert torch.equal(network.root.weight, source.root.weight) and card.input.size == 32
    train = bigtransfer.data.open_dataset(data).train
    predictor = bigtransfer.Predictor.load(tiny, device="cpu", precision="fp32")
    features = predictor.features([train.read(i) for i in range(len(train))])
    expected = linear.fit(torch.from_numpy(features), torch.from_numpy(train.labels), 3, discriminant=True).head
    torch.testing.assert_close(network.head.weight, expected.weight, rtol=1e-3, atol=1e-5)
    assert card.metrics["test_top1"] == 1.0, "colours can be told apart by any features"
    # Neither on record nor shown is anything of steps that are not taken.
    for recipe in (card.recipe, json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]):
        assert (recipe["steps"], recipe["batch_size"], recipe["warmup"], recipe["base_learning_rate"]) == (0, 0, 0, 0.0)
    shown = (tmp_path / "run" / "report.html").read_text()
    assert "No steps" in shown and "<dt>crop</dt><dd>32</dd>" in shown
    for name in (
        "steps",
        "batch size",
        "warmup",
        "decays",
        "base learning rate",
        "momentum",
        "eval every",
        "size class",
    ):
        assert f"<dt>{name}</dt>" not in shown, name


def test_linear_sgd(short: list[str], tiny: Path, tmp_path: Path) -> None:
    assert in_process([*short, "--linear", "sgd", "--steps", "20", "--learning-rate", "0.5"]) == 0
    network = weights.load(tmp_path / "run")
    source = weights.load(tiny)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]) != name.startswith("head.")
    lines = numbers(tmp_path / "run")
    assert lines[-1]["loss"] < lines[0]["loss"]
    notes = card_and_config(tmp_path / "run")[1]["recipe"]["notes"]
    assert notes[
        1
    ] == "The network stays as it is: its features are taken of images at 32 px." and "cropped" not in str(notes)


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten to twenty images of one colour for each of the others."""
    root = tmp_path_factory.mktemp("lopsided")
    write_images(root / "train", 20, 0)
    write_images(root / "test", 2, 1)
    for name, left in (("blue", 1), ("green", 2)):
        for path in sorted((root / "train" / name).iterdir())[left:]:
            path.unlink()
    return root


def test_balance(short: list[str], lopsided: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every class counts the same in the closed form and is shown as often in training, of the head or of the whole network."""
    short[1] = str(lopsided)
    images = bigtransfer.data.open_dataset(lopsided).train
    loaders = []

    def train(_run: Any, _state: Any, loader: Any, *_: Any, **__: Any) -> None:
        loaders.append(loader)
        raise SystemExit

    monkeypatch.setattr(training, "train", train)
    for name, more in (("head", ["--linear", "sgd", "--balance"]), ("all", ["--balance"]), ("plain", [])):
        short[short.index("--out") + 1] = str(tmp_path / name)
        with pytest.raises(SystemExit):
            in_process([*short, "--steps", "3", *more])
        assert config_of(tmp_path / name)["resolved"]["balance"] == bool(more)
    counts = [torch.bincount(torch.cat([batch.labels for batch in each.batches(0, 3)])).tolist() for each in loaders]
    assert min(counts[0]) >= 5 and counts[1] == counts[0] and counts[2][2] >= 14
    short = [one for one in short if one not in ("--batch-size", "6")]
    short[short.index("--out") + 1] = str(tmp_path / "closed")
    monkeypatch.setattr(finetune.baseline.closed, "views", lambda *_, **__: (View(size=32, readout=None),))
    assert in_process([*short, "--linear", "closed", "--balance"]) == 0
    predictor = bigtransfer.Predictor.load(tiny, device="cpu", precision="fp32")
    features = torch.from_numpy(predictor.features([images.read(i) for i in range(len(images))]))
    expected = linear.fit(features, torch.from_numpy(images.labels), 3, balanced=True, discriminant=True).head
    torch.testing.assert_close(weights.load(tmp_path / "closed").head.weight, expected.weight, rtol=1e-3, atol=1e-5)


def noise(folder: Path, counts: dict[str, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (24, 20, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")


def test_labels_that_say_nothing_and_classes_of_very_different_size_are_told(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [one for one in short if one not in ("--batch-size", "6")] + ["--linear", "closed"]
    noise(tmp_path / "noise" / "train", {"dog": 30, "cat": 3}, 0)
    noise(tmp_path / "noise" / "test", {"dog": 12, "cat": 12}, 1)
    short[1] = str(tmp_path / "noise")
    assert in_process(short) == 0
    shown = capsys.readouterr()
    assert "imbalanced: 30 images of 'dog', 3 of 'cat'; what counts is the mean per class" in shown.out
    assert "% mean per class" in shown.out and "with --balance each class counts the same" in shown.out
    assert "warning: This cannot be told from chance: " in shown.err and "if 'dog' were the answer always" in shown.err
    notes = json.loads((tmp_path / "run" / "evaluation.json").read_text())["notes"]
    assert len(notes) == 2 and all(f"note: {note}" in shown.err for note in notes)
    assert "The classes are imbalanced" in notes[0] and "With --balance" in notes[0]
    assert notes[1].startswith("This cannot be told from chance: ") and "of 24 images" in notes[1]
    assert json.loads((tmp_path / "run" / "closed.json").read_text())["counted"] == [3, 30]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("This cannot be told from chance") == 2, "of the evaluation, and of the closed form"


def test_a_class_of_one_image_that_no_other_can_judge_is_named(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [one for one in short if one not in ("--batch-size", "6")] + ["--linear", "closed"]
    noise(tmp_path / "noise" / "train", {"dog": 12, "cat": 1}, 0)
    noise(tmp_path / "noise" / "test", {"dog": 2, "cat": 2}, 1)
    short[1] = str(tmp_path / "noise")
    assert in_process(short) == 0
    assert "(of cat nothing is known: a class of one image has no others)" in capsys.readouterr().out


def test_test_images_of_another_kind_are_told(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [one for one in short if one not in ("--batch-size", "6")] + ["--linear", "closed"]
    root = tmp_path / "moved"
    write_images(root / "train", 12, 0)
    write_images(root / "test", 12, 1)
    shutil.rmtree(root / "test" / "red")
    for path in (root / "test" / "green").iterdir():
        Image.open(path).convert("L").save(path)
    short[1] = str(root)
    assert in_process([*short]) == 0
    told = capsys.readouterr().err
    assert "note: There is no test image of red: nothing is known of what the model makes of such." in told
    assert "each judged by the others, 100.0% are right, of the test images " in told and "another kind" in told
    assert "imbalanced" not in told and "chance" not in told


def test_from_random_weights(short: list[str], tiny: Path, tmp_path: Path) -> None:
    short[short.index("--model") + 1] = "r26x1"
    assert in_process([*short, "--no-pretrained", "--steps", "1", "--no-random-crop", "--no-flip"]) == 0
    card, config = card_and_config(tmp_path / "run")
    assert card.upstream == "colours" and card.licence == "" and card.architecture.units == (2, 2, 2, 2)
    assert config["recipe"]["resize"] == config["recipe"]["crop"] == 32
    assert config["recipe"]["notes"][-1].endswith("crop 32, no random crop, so that images are resized to 32 px.")
    assert config["asked"]["flip"] is False and config["asked"]["random_crop"] is False


def test_few_images_and_the_same_again(short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process([*short, "--steps", "1", "--examples-per-class", "2", "--seed", "3"]) == 0
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(split["train"]) == 6 and len(split["test"]) == 12
    short[short.index("--out") + 1] = str(tmp_path / "again")
    assert in_process([*short, "--steps", "1", "--split-file", str(tmp_path / "run" / "split.json")]) == 0
    assert json.loads((tmp_path / "again" / "split.json").read_text()) == split
    short[short.index("--out") + 1] = str(tmp_path / "third")
    assert in_process([*short, "--examples-per-class", "6"]) == 2
    assert "Not every class has 6 training images" in capsys.readouterr().err
    assert not (tmp_path / "third").exists(), "a mistake leaves nothing behind"


def test_a_budget(short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = [one for one in short if one not in ("--batch-size", "6", "--crop", "32")]
    started = time.monotonic()
    assert in_process([*short, "--budget", "2s", "--val-fraction", "0.2"]) == 0
    assert time.monotonic() - started < 300
    card, config = card_and_config(tmp_path / "run")
    assert card.recipe is not None and config["recipe"]["steps"] < 500
    taken = Recipe.from_dict(dict(card.recipe))
    steps = config["recipe"]["steps"] > 0  # a machine may be too busy for any
    logged = [line for line in numbers(tmp_path / "run") if "loss" in line] if steps else []
    assert (
        bool(logged) == steps
        and taken.steps in (0, len(logged))
        and bool(taken.steps) == ("fine-tuned" in card.upstream)
    )
    told = "to fit into 2 s at the" if steps else "Nothing is fine-tuned: "
    assert any(told in note for note in config["recipe"]["notes"]) and told in capsys.readouterr().out


def test_a_budget_that_is_used_up_says_what_was_not_done(
    short: list[str], enough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour has passed when the images have been found: no step is taken, and some of the test images measure the model."""
    monkeypatch.setattr(working, "clock", lambda _, folder, *, since, **__: Clock(folder, 60.0, since=since - 3600))
    monkeypatch.setattr(evaluate, "_BETWEEN", 5)
    monkeypatch.setattr(Clock, "slight", 0.0)
    monkeypatch.setattr(hyperrule, "enough_to_tune", lambda _: True)  # so that some are held out
    short[1] = str(enough)
    asked = [one for one in short if one not in ("--batch-size", "6", "--crop", "32")]
    assert in_process([*asked, "--budget", "60s"]) == 0
    run = tmp_path / "run"
    card, config = card_and_config(run)
    assert config["recipe"]["steps"] == 0 and "with a linear classifier solved" in card.upstream
    record = json.loads((run / "closed.json").read_text())
    assert record["images"] == 29 and record["whole"] is None, "a piece of 64 at most, and no more"
    assert json.loads((run / "budget.json").read_text())["seconds"] >= 3600
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["images"] == 5 == len(evaluation["predictions"]) and card.metrics["test_images"] == 5
    images = bigtransfer.data.open_dataset(enough).test
    assert images is not None
    for row in evaluation["predictions"]:
        assert row["name"] == images.name(row["index"]) and row["true"] == images.labels[row["index"]]
    note = (
        f"The budget was used up: these numbers are of 5 of the 12 test images, of all 3 classes, each with its share of them. "
        f"All of them are measured by: bit evaluate {run} {enough}"
    )
    shown = capsys.readouterr()
    assert evaluation["notes"][0] == note and note in shown.err and "of 5 of the 12 images" in shown.out
    assert "for the 7 images held out there was no time: not learnt from" in shown.out
    assert {row["true"] for row in evaluation["predictions"]} == {0, 1, 2}
    # Nor is it hidden that the hour was more than the minute asked for, and where it went.
    over = evaluation["notes"][1]
    assert over.startswith("The budget of 60 s was not kept: 36") and "s to start and look through the images" in over
    assert over in shown.err and over in (run / "report.html").read_text() and card.recipe["notes"][-1] == over
    assert re.search(r"^budget: 36\d\d\.\d s of 60 s taken$", shown.out, re.MULTILINE)
    told = json.loads((run / "budget.json").read_text())
    assert list(told["stages"]) == [
        "to start and look through the images",
        "for the closed form and the plan",
        "to measure it",
    ]
    assert sum(told["stages"].values()) == pytest.approx(told["seconds"], abs=0.01)
    assert not any("no test image" in one for one in evaluation["notes"])
    assert "5 of the 12 test images" in (run / "report.html").read_text()
    assert cli.main(["evaluate", str(run), str(enough), "--device", "cpu"]) == 0
    assert "(test): 12 images" in capsys.readouterr().out


def test_what_takes_a_moment_is_done_though_the_time_is_up(
    short: list[str], enough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images are learnt from, those held out too, and all test images are measured; one count of them everywhere."""
    monkeypatch.setattr(working, "clock", lambda _, folder, *, since, **__: Clock(folder, 60.0, since=since - 3600))
    monkeypatch.setattr(Clock, "slight", 600.0)
    monkeypatch.setattr(evaluate, "_BETWEEN", 5)
    monkeypatch.setattr(finetune.baseline.closed, "_PIECE", 5)
    monkeypatch.setattr(hyperrule, "enough_to_tune", lambda _: True)  # so that some are held out
    short[1] = str(enough)
    assert (
        in_process([*(one for one in short if one not in ("--batch-size", "6", "--crop", "32")), "--budget", "60s"])
        == 0
    )
    run = tmp_path / "run"
    record = json.loads((run / "closed.json").read_text())
    assert record["images"] == 29 and record["whole"]["images"] == 36
    assert json.loads((run / "evaluation.json").read_text())["images"] == 12
    shown = capsys.readouterr()
    assert "29 train, 7 val, 12 test images" in shown.out and " of 29 images, solved" in shown.out
    assert "with those held out, on all 36: what of it is delivered" in shown.out and "no time" not in shown.out
    page = (run / "report.html").read_text()
    assert "<b>36</b><span>images learnt from</span>" in page and "<b>29</b><span>" not in page


def test_no_batch_is_begun_that_would_end_too_late(tmp_path: Path) -> None:
    now = [0.0]

    def asked(left: float, *calls: tuple[float, int, bool]) -> None:
        now[0] = 100.0 - left
        late = finetune.measuring._late(Clock(tmp_path, 100.0, since=0.0, now=lambda: now[0]), 10_000)
        for passed, rest, expected in calls:
            now[0] = 100.0 - left + passed
            assert late(rest) is expected, (passed, rest)

    # Batches of 10 each.
    asked(
        10.0, (3.0, 9990, False), (6.5, 9980, False), (7.0, 9970, False), (8.9, 9960, True), (9.0, 9950, False), (10.1, 9940, True)
    )  # fmt: skip
    # The first one starts what reads images: that it takes longer than what is left says nothing of the second.
    asked(10.0, (9.0, 9990, False), (9.3, 9980, False), (9.9, 9970, True))
    asked(10.0, (10.5, 9990, True))
    # What all the rest takes is within a slight overrun, five seconds.
    asked(-50.0, (0.01, 9990, True))
    asked(-50.0, (0.01, 4990, False), (4.8, 100, False), (5.2, 10, True))
    asked(1.0, (0.5, 5000, False), (0.9, 1000, False))


def test_something_is_kept_for_the_end_of_the_command(tmp_path: Path) -> None:
    for budget, left in (("60s", 59.0), ("5s", 4.5)):
        asked = FinetuneConfig(data="d", budget=budget)
        clock = working.clock(asked, tmp_path, since=time.monotonic(), reserve=finetune.FINISHING, always="")
        assert clock is not None and clock.left == pytest.approx(left, abs=0.3)
    assert working.clock(FinetuneConfig(data="d"), tmp_path, since=0.0, reserve=1.0, always="") is None


def test_what_was_spent_before_the_first_step_counts_when_the_run_goes_on(
    short: list[str], enough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which was killed there."""
    monkeypatch.setattr(working, "clock", lambda _, folder, *, since, **__: Clock(folder, 1e6, since=since - 100))
    monkeypatch.setattr(training, "train", lambda *_a, **_k: (_ for _ in ()).throw(SystemExit(9)))
    monkeypatch.setattr(finetune.decision, "images_per_second", lambda *_: 1000.0)
    monkeypatch.setattr(finetune.decision.hyperrule, "TUNING_BATCH", 8)  # there are so few images
    short[1] = str(enough)
    asked = [one for one in short if one not in ("--batch-size", "6", "--crop", "32")]
    with pytest.raises(SystemExit):
        in_process([*asked, "--budget", "1h"])
    assert 100 <= json.loads((tmp_path / "run" / "budget.json").read_text())["seconds"] < 200


def test_steps_that_were_asked_for_know_no_clock(
    short: list[str], enough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are taken however late it is, and that it is late is said. No speed is measured for them."""
    monkeypatch.setattr(
        working,
        "clock",
        lambda _, folder, *, since, always, **__: Clock(folder, 60.0, since=since - 3600, always=always),
    )
    monkeypatch.setattr(finetune.decision, "images_per_second", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(evaluate, "_BETWEEN", 5)
    short[1] = str(enough)
    assert in_process([*short, "--budget", "60s", "--steps", "2"]) == 0
    run = tmp_path / "run"
    assert len([line for line in numbers(run) if "loss" in line]) == 2
    evaluation, budget = (json.loads((run / name).read_text()) for name in ("evaluation.json", "budget.json"))
    assert evaluation["images"] == 12 and budget["seconds"] > 3600 and budget["replanned"] == []
    shown = capsys.readouterr()
    assert "as many steps as were asked for" in shown.out and re.search(
        r"budget: 36\d\d\.\d s of 60 s taken", shown.out
    )
    recipe = card_and_config(run)[0].recipe
    assert recipe is not None
    for told in (shown.err, " ".join(evaluation["notes"]), " ".join(recipe["notes"])):
        assert "The budget of 60 s was not kept" in told and "As many steps as --steps says are taken" in told


def test_a_budget_counts_from_the_beginning_of_the_command(
    short: list[str], enough: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the time in which Python and torch are loaded."""
    short[1] = str(enough)
    asked = [one for one in short if one not in ("--batch-size", "6", "--crop", "32")]
    seen: list[float] = []
    real = working.clock

    def clock(config: FinetuneConfig, folder: Path, **how: Any) -> Clock | None:
        made = real(config, folder, **how)
        assert made is not None
        seen.append(made.spent)
        return made

    monkeypatch.setattr(working, "clock", clock)
    monkeypatch.setattr(machine, "began", time.monotonic() - 3600)
    assert in_process([*asked, "--budget", "60s"]) == 0
    assert 3600 <= seen[0] < 3660 and card_and_config(tmp_path / "run")[1]["recipe"]["steps"] == 0
    finetune.finetune(FinetuneConfig(data=str(enough), model=asked[3], out=str(tmp_path / "b"), budget="60s"))
    assert seen[1] < 60, "from the call, where there is no command"
    told = "import sys, time; t = time.monotonic(); from bigtransfer import cli, machine; sys.argv = ['bit', '-V']\n"
    told += "try: cli.console()\nfinally: print(t <= machine.began <= time.monotonic(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert "True False" in done.stdout


def test_within_a_budget_the_best_is_delivered(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the choice, it is on record, in the report, and what the model file holds."""
    wanted: list[str] = []
    real = finetune.choice.choose

    def choose(closed: ResNetV2, tuned: ResNetV2, *rest: Any, **more: Any) -> Any:
        found = real(closed, tuned, *rest, **more)
        return dataclasses.replace(found, choice=dataclasses.replace(found.choice, delivered=wanted[0]))

    monkeypatch.setattr(finetune.choice, "choose", choose)
    monkeypatch.setattr(finetune.decision, "images_per_second", lambda *_: 1000.0)
    for kind, out in (("closed form", "a"), ("fine-tuned", "b"), ("average", "c")):
        wanted[:] = [kind]
        run = tmp_path / out
        same = [run if one == str(tmp_path / "run") else one for one in short]
        assert in_process([*map(str, same), "--steps", "2", "--budget", "1h", "--val-fraction", "0.2"]) == 0
        network = weights.load(run)
        arch = network.card.architecture
        every = Readout(blocks=(0, 1, 2, 3), mirrored=True)
        last = Readout(blocks=(3,), maxima=False, mirrored=True)
        expected = {
            "closed form": arch.readout in (last, every) and arch.beside is None,
            "fine-tuned": arch.readout in (last, every) and arch.beside is None,
            "average": arch.readout in [dataclasses.replace(one, sizes=(32,)) for one in (last, every)]
            and arch.beside is not None,
        }[kind]
        assert expected and network.card.class_names == tuple(sorted(CLASSES))
        words = {
            "closed form": "with a linear classifier solved",
            "fine-tuned": "fine-tuned",
            "average": "fine-tuned and averaged with a linear classifier solved",
        }[kind]
        assert network.card.upstream == f"noise; {words} on colours" and network.card.recipe is not None
        assert network.card.recipe["steps"] == (0 if kind == "closed form" else 2)
        assert f"tiny.safetensors, {words} on " in (run / "report.html").read_text()
        record = json.loads((run / "choice.json").read_text())
        assert record["delivered"] == kind and [one["kind"] for one in record["candidates"]] == [
            "closed form",
            "fine-tuned",
            "average",
        ]
        assert record["images"] == 3 and not (run / finetune.baseline.MODEL).exists()
        assert f"chosen: {kind}, by the loss on 3 validation images" in capsys.readouterr().out
        assert kind.removesuffix(" form") in (run / "report.html").read_text()


# --- Images that were held out, learnt from in the end


def head_of(tiny: Path, *parts: bigtransfer.data.ImageSet) -> tuple[linear.Probe, torch.nn.Linear]:
    """The classifier of these images on the last map, and its head."""
    predictor = bigtransfer.Predictor.load(tiny, device="cpu", precision="fp32")
    features = [torch.from_numpy(predictor.features([one.read(i) for i in range(len(one))])) for one in parts]
    labels = [torch.from_numpy(np.asarray(one.labels)) for one in parts]
    probe = linear.fit(torch.cat(features), torch.cat(labels), len(CLASSES), discriminant=True)
    return probe, probe.head


def closed_form_of(network: Any, parts: splits.Splits, temperature: float) -> tuple[torch.Tensor, int]:
    """The weights of a classifier of all images of training and validation on the last map of the network's own layers, divided by the
    temperature, and how many images they are."""
    plain = joined(network, None)
    features, labels = [], []
    for part in (parts.train, parts.val):
        assert part is not None
        view = View(size=32, readout=None)
        spec = InputSpec(size=32)
        seen = closed.features(
            plain, part, view, spec=spec, device=torch.device("cpu"), dtype=torch.float32, batch_size=8
        )
        features.append(seen[0])
        labels.append(seen[1])
    probe = linear.fit(torch.cat(features), torch.cat(labels), len(CLASSES), discriminant=True)
    return probe.head.weight / temperature, len(torch.cat(labels))


@pytest.fixture
def last_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """The closed form has no choice of features."""
    monkeypatch.setattr(finetune.baseline.closed, "views", lambda *_, **__: (View(size=32, readout=None),))


@pytest.fixture(scope="module")
def enough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images a class: as many as it takes to hold some out under a budget."""
    root = tmp_path_factory.mktemp("enough") / "colours"
    write_images(root / "train", 12, 0)
    write_images(root / "test", 4, 1)
    return root


@pytest.mark.usefixtures("last_map")
def test_the_closed_form_learns_from_the_images_that_measured_it(
    short: list[str], data: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [one for one in short if one not in ("--batch-size", "6")] + ["--linear", "closed"]
    short[1] = str(data / "train")
    assert in_process(short) == 0
    run = tmp_path / "run"
    parts = splits.load_split(run / "split.json", bigtransfer.data.open_dataset(data / "train"))
    assert parts.val is not None and (len(parts.train), len(parts.val)) == (13, 2)
    probe, head = head_of(tiny, parts.train, parts.val)
    torch.testing.assert_close(weights.load(run).head.weight, head.weight, rtol=1e-3, atol=1e-5)
    record = json.loads((run / "closed.json").read_text())
    assert record["images"] == 13 and record["whole"] == {
        "images": 15,
        "top1": probe.leave_one_out_top1,
        "calibrated": None,
    }
    # What was measured is the one that had not seen them.
    evaluation = json.loads((run / "evaluation.json").read_text())
    predictor = bigtransfer.Predictor.load(tiny, device="cpu", precision="fp32")
    seen = torch.from_numpy(predictor.features([parts.val.read(i) for i in range(2)]))
    with torch.no_grad():
        before, after = (
            torch.nn.functional.cross_entropy(one(seen), torch.from_numpy(parts.val.labels)).item()
            for one in (head_of(tiny, parts.train)[1], head)
        )
    assert evaluation["nll"] == pytest.approx(before, rel=1e-2) != pytest.approx(after, rel=2e-2)
    assert (
        evaluation["notes"][0].startswith("Measured on validation images before")
        and "15 images" in evaluation["notes"][0]
    )
    assert evaluation["notes"][0] in capsys.readouterr().err
    assert "solved once more, on all <b>15</b> images" in (run / "report.html").read_text()
    assert not list(run.glob("closed*.safetensors"))


@pytest.mark.usefixtures("last_map")
@pytest.mark.parametrize("why", ["a share", "a part", "a split", "fine-tuning", "others"])
def test_images_that_are_to_stay_unseen_do(
    short: list[str], data: Path, tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that somebody wants to be held out, and where the closed form is not what is delivered, or left other images out."""
    closed = [*(one for one in short if one not in ("--batch-size", "6")), "--linear", "closed"]
    closed[1] = str(data / "train")
    if why == "a share":
        closed += ["--val-fraction", "0.2"]
    elif why == "a part":
        shutil.copytree(data / "train", tmp_path / "parts" / "train")
        shutil.copytree(data / "test", tmp_path / "parts" / "val")
        closed[1] = str(tmp_path / "parts")
    elif why == "a split":
        parts = bigtransfer.data.open_dataset(data / "train")
        train, val = splits.hold_out(parts.train, 0.2, 0)
        splits.save_split(tmp_path / "split.json", splits.Splits(train=train, val=val, test=None))
        closed += ["--split-file", str(tmp_path / "split.json")]
    elif why == "others":
        monkeypatch.setattr(
            finetune.baseline,
            "_best_way",
            lambda *_, **__: finetune.baseline._Way(10, (View(size=32, readout=None),), math.inf, math.inf, []),
        )
    else:
        closed = [*short, "--steps", "1"]
        closed[1] = str(data / "train")
    assert in_process(closed) == 0
    record = json.loads((tmp_path / "run" / "closed.json").read_text())
    assert record["whole"] is None and config_of(tmp_path / "run")["data"]["val"] > 0
    assert "Measured before" not in (tmp_path / "run" / "report.html").read_text()


def test_what_an_interrupted_run_goes_on_from_is_as_it_left_it(
    short: list[str], enough: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head whose classes have moved by one, or other images held out, would be delivered, and measured, like any other."""
    short[1], run = str(enough / "train"), tmp_path / "run"
    same = [one for one in [*short, "--linear", "closed"] if one not in ("--batch-size", "6")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.measuring, "measure", lambda *_a, **_k: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            in_process(same)
    head = safetensors.torch.load_file(run / "closed-whole.safetensors")
    moved = {name: tensor.roll(1, 0) for name, tensor in head.items()}
    split = json.loads((run / "split.json").read_text())
    solved = json.loads((run / "closed.json").read_text())
    others = {
        "closed-whole.safetensors": safetensors.torch.save(moved),
        "split.json": json.dumps(
            split | {"train": split["train"][:-1], "val": [*split["val"], split["train"][-1]]}
        ).encode(),
        "closed.json": json.dumps(solved | {"whole": None}).encode(),
        "closed.safetensors": None,
        "closed-answers.safetensors": b"",
    }
    for name, content in others.items():
        kept = (run / name).read_bytes()
        (run / name).unlink()
        if content is not None:
            (run / name).write_bytes(content)
        capsys.readouterr()
        assert in_process(same) == 2
        became = "is gone" if content is None else "is not as this run left it"
        assert (
            f"{run / name} {became}, and the run goes on from it. Put it back, or remove {run}"
            in capsys.readouterr().err
        )
        (run / name).write_bytes(kept)
    assert in_process(same) == 0 and in_process(same) == 0
    (run / "evaluation.json").unlink()  # of what went on, what it went on from is gone
    assert in_process(same) == 2
    assert "is gone, and the run goes on from it" in capsys.readouterr().err


@pytest.mark.usefixtures("last_map")
@pytest.mark.parametrize("kind", ["closed form", "average", "fine-tuned"])
def test_what_is_delivered_learns_from_the_images_that_chose_it(
    short: list[str], enough: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The closed form in it, that is; the same bit for bit if the run was killed on the way."""
    made: list[Any] = []
    real = finetune.choice.choose

    def choose(*given: Any, **more: Any) -> Any:
        found = real(*given, **more)
        # What is known of the images held out is what the network says of them.
        logits = finetune.choice._logits(given[1], given[2], more["device"], more["dtype"], more["batch_size"])
        torch.testing.assert_close(more["tuned_answers"].double(), logits, rtol=1e-3, atol=1e-4)
        made.append(dataclasses.replace(found, choice=dataclasses.replace(found.choice, delivered=kind)))
        return made[-1]

    monkeypatch.setattr(finetune.choice, "choose", choose)
    monkeypatch.setattr(finetune.decision, "images_per_second", lambda *_: 1000.0)
    short[1] = str(enough)
    same = [*short, "--steps", "2", "--budget", "1h"]
    assert in_process(same) == 0
    run = tmp_path / "run"
    parts = splits.load_split(run / "split.json", bigtransfer.data.open_dataset(enough))
    assert parts.val is not None and len(parts.train) + len(parts.val) == 36
    network = weights.load(run)
    # The scales and shifts of the norms have been trained, nothing else of the network.
    before = dict(weights.load(tiny).named_parameters())
    changed = {
        name
        for name, parameter in network.named_parameters()
        if name in before and not name.startswith("head") and not torch.equal(parameter, before[name])
    }
    norms = {name for name in before if "norm" in name}
    assert changed == (norms if kind != "closed form" else set())
    again, images = closed_form_of(network, parts, made[0].by_tuned)
    if kind == "fine-tuned":
        torch.testing.assert_close(network.head.weight, again, rtol=1e-3, atol=1e-5)
    elif kind == "average":
        torch.testing.assert_close(network.head.weight[:, :2048], again, rtol=1e-3, atol=1e-5)
    assert images == 36
    head = head_of(tiny, parts.train, parts.val)[1].weight / made[0].by_solved
    if kind != "fine-tuned":
        torch.testing.assert_close(network.head.weight[:, -2048:], head, rtol=1e-3, atol=1e-5)
    # The test images measure what is delivered.
    again = bigtransfer.evaluate(run, str(enough / "test"), device="cpu", precision="fp32")
    assert json.loads((run / "evaluation.json").read_text())["nll"] == pytest.approx(again.nll, rel=1e-3)
    page = (run / "report.html").read_text()
    assert "solved once more" in page and "Measured before" not in page
    assert json.loads((run / "choice.json").read_text())["solved_on"] == 36
    if kind == "fine-tuned":  # The training was watched by closed forms of its own, the last of them of this network.
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        looks = [line for line in lines if "val/nll" in line]
        assert [line["step"] for line in looks] == [0, 1] and not any("val/best" in line for line in lines)
        (seen, labels), (held_out, truth) = (
            closed.features(
                joined(network, None),
                part,
                View(size=32, readout=Readout(blocks=(0, 1, 2, 3))),
                spec=InputSpec(size=32),
                device=torch.device("cpu"),
                dtype=torch.float32,
                batch_size=8,
            )
            for part in (parts.train, parts.val)
        )
        with torch.no_grad():
            logits = linear.fit(seen, labels, len(CLASSES), discriminant=True).head(held_out)
        assert looks[-1]["val/nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), rel=1e-3)

    if kind != "average":
        return
    same[same.index("--out") + 1] = str(tmp_path / "again")
    same += ["--checkpoint-every", "0s"]
    with dying_at_a_checkpoint():
        in_process(same)
    assert (tmp_path / "again" / "closed-whole.safetensors").is_file()
    assert in_process(same) == 0
    assert digest(tmp_path / "again") == digest(run)
    assert not list((tmp_path / "again").glob("closed*.safetensors"))


def test_too_few_images_to_choose_by(short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The closed form is delivered, and the user told why."""
    short = [one for one in short if one not in ("--batch-size", "6")]
    assert in_process([*short, "--budget", "60s"]) == 0
    card, config = card_and_config(tmp_path / "run")
    assert config["recipe"]["steps"] == 0 and config["data"]["val"] == 0
    assert "too few to hold some out" in capsys.readouterr().out
    assert card.recipe is not None and "too few" in (tmp_path / "run" / "report.html").read_text()


def test_no_image_is_held_out_where_no_training_is_to_be_judged(short: list[str], enough: Path, tmp_path: Path) -> None:
    """36 images are enough to hold some out, and too few to be fine-tuned on: the closed form learns from all of them."""
    short[1] = str(enough)
    short = [one for one in short if one not in ("--batch-size", "6")]
    assert in_process([*short, "--budget", "60s"]) == 0
    _, config = card_and_config(tmp_path / "run")
    assert config["recipe"]["steps"] == 0 and (config["data"]["train"], config["data"]["val"]) == (36, 0)


def test_what_the_closed_form_costs(tiny: Path) -> None:
    """The widest views where there is time for two thirds of the images, else cheaper ones."""
    network = weights.load(tiny)

    rooms: list[float] = []
    limits: list[float] = []

    def seen(
        images: int = 10_000,
        device: str = "cpu",
        held_out: int = 0,
        test: int = 0,
        pyramid: tuple[int, ...] | None = None,
        **asked: Any,
    ) -> tuple[int, tuple[str, ...]]:
        facts: Any = types.SimpleNamespace(
            images=images,
            classes=3,
            trained_at=32,
            architecture=network.architecture,
            device=device,
            evaluated=test,
            looks=((32, 64), (32,)) if pyramid is None else (pyramid, (32, 64), (32,)),
            looks_beside=(),
        )
        times = {name: asked.pop(name) for name in ("left", "look", "slight") if name in asked}
        config = FinetuneConfig(data="d", **{"flip": False, **asked})
        way = finetune.baseline._best_way(config, facts, network, held_out=held_out, **times)
        rooms.append(way.room)
        limits.append(way.solving)
        return way.images, tuple(map(str, way.views))

    def passes(*sizes: int) -> float:
        """What the images at these sizes cost, in forward passes at the network's own."""
        return sum(network.architecture.forward_flops(side, 0) for side in sizes) / network.architecture.forward_flops(
            32, 0
        )

    every, wide = ("the last map at 32 px", "all blocks at 32 px"), passes(32, 64)
    # 400 s are left, of which a quarter may be taken, as 50 steps of 96 images, two passes each, would fit; the clock decides how many
    # images that is.
    for share in (1.01, 0.98):
        count, choice = seen(1000, left=400.0, look=100 / (share * 1000 * wide))
        assert count == 1000 and len(choice) == 4 and rooms[-1] == 100
    for share in (0.7, 0.67):
        count, choice = seen(1000, left=400.0, look=100 / (share * 1000 * wide), steps=9)
        assert count == 1000 and len(choice) == 4 and rooms[-1] == 100
    assert seen(1000, left=400.0, look=100 / (660 * wide), steps=9) == (1000, every)
    # With the mirror images first, which is twice as much, then without.
    both = "all blocks at 32 and 64 px"
    assert seen(1000, left=400.0, look=100 / (910 * 2 * wide), flip=True, steps=9)[1][-1] == f"{both}, mirrored too"
    assert seen(1000, left=400.0, look=100 / (890 * 2 * wide), flip=True, steps=9)[1][-1] == both
    three = passes(24, 48, 96)
    assert len(seen(1000, left=400.0, look=100 / (700 * three), pyramid=(24, 48, 96), steps=9)[1]) == 5
    assert len(seen(1000, left=400.0, look=100 / (660 * three), pyramid=(24, 48, 96), steps=9)[1]) == 4
    # It is given up where a training at the second size, 40 steps of 96, would fit without it only.
    fast = 400 / (300 * 2 * three + 192 * 40 * (48 / 32) ** 2)
    assert len(seen(300, left=400.0, look=0.99 * fast, pyramid=(24, 48, 96))[1]) == 5
    assert len(seen(300, left=400.0, look=1.01 * fast, pyramid=(24, 48, 96))[1]) == 4
    assert len(seen(300, left=400.0, look=1.01 * fast, pyramid=(24, 48, 96), steps=9)[1]) == 5
    # A third size is given up where its answers to the test images would leave no time for steps; a second one is not.
    look = 150 / (30 * 192 * (24 / 32) ** 2)
    few: dict[str, Any] = {"left": 400.0, "look": look, "test": int(60 / (2 * three * look)), "pyramid": (24, 48, 96)}
    assert len(seen(240, **few)[1]) == 4 and len(seen(240, **few, steps=9)[1]) == 5
    assert len(seen(95, **few)[1]) == 5, "so few images are not fine-tuned on"
    # The images held out are looked at as well.
    assert len(seen(1000, left=400.0, look=100 / (840 * wide), held_out=250, steps=9)[1]) == 4
    assert seen(1000, left=400.0, look=100 / (830 * wide), held_out=250, steps=9) == (1000, every)
    # Steps cannot follow: three fifths of the time but that for the test images may be taken.
    look = 400 / (2 * 2200 + 50 * 192)  # for images at 32 px, twice, and the steps
    assert seen(2000, held_out=200, left=400.0, look=1.01 * look)[0] == 2000 and rooms[-1] == pytest.approx(240)
    assert limits[-1] == pytest.approx(400), "for the solutions all of it"
    # A quarter where steps can follow, if no larger size is to be had for what may be taken without.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune.baseline, "ALONE", 0.5)
        for more, room in (({}, 100), ({"crop": 40}, 200), ({"batch_size": 128}, 200), ({"test": 100}, 200)):
            seen(2000, held_out=200, left=400.0, look=0.99 * look, **more)  # type: ignore[arg-type]
            assert rooms[-1] == pytest.approx(room, abs=3)
            assert limits[-1] == pytest.approx(100 if room == 100 else 400, abs=5)
    assert seen(2000, held_out=200, left=400.0, look=1.01 * look, steps=9) and rooms[-1] == 100, (
        "whoever sets the steps gets them"
    )
    assert (
        seen(1000, left=400.0, look=0.4, test=200) == (1000, every)
        and rooms[-1] == pytest.approx(0.6 * 320)
        and limits[-1] == pytest.approx(320)
    )
    assert seen(1000, left=400.0, look=0.4, test=10**6) and rooms[-1] == pytest.approx(0.6 * 300), "a quarter at most"
    assert seen(1000, left=-1.0, look=0.001) == (1000, every) and rooms[-1] == 0
    assert seen(1000, left=-1.0, look=0.001, slight=3.0) == (1000, every) and rooms[-1] == 3.0
    assert seen(left=1e9, look=0.001)[0] == finetune.decision.BASELINE and seen(200, left=1e9, look=0.001)[0] == 200
    # Without a budget the operations count.
    assert seen()[0] == finetune.decision.BASELINE and len(seen()[1]) == 4
    most = int(finetune.baseline.OPERATIONS / network.architecture.forward_flops(32, 0) / wide)
    assert seen(most, linear="closed")[0] == most and len(seen(most, linear="closed")[1]) == 4
    assert seen(most + 1, linear="closed") == (most + 1, every)
    assert len(seen(most + 1, linear="closed", device="cuda")[1]) == 4
    assert seen(100 * most, linear="closed") == (100 * most, every)
    assert seen(linear="closed", crop=40)[1] == ("the last map at 40 px", "all blocks at 40 px")
    assert seen(most // 2, linear="closed", flip=True)[1][-1] == f"{both}, mirrored too"
    assert seen(most // 2 + 2, linear="closed", flip=True)[1][-1] == both


def planned(
    left: Callable[[], float] | float,
    look: float = 0.001,
    speed: float = 100.0,
    test: int = 0,
    judges: int = 10,
    whole: bool = False,
    norms: bool = True,
    images: int = 600,
    said: list[str] | None = None,
    **asked: Any,
) -> finetune.FinetunePlan:
    """What is decided in a minute of which so much is left after the closed form."""
    view = View(size=32, readout=Readout(blocks=(0, 1, 2, 3), mirrored=True))
    solved = Closed(
        view=view, judged=(), images=600, seconds=9.0, top1=0.9,
        whole=Whole(images=610, top1=0.9) if whole else None,
    )  # fmt: skip

    def measured(crop: int, batch: int) -> float:
        if said is not None:
            said.append("speed")
        return speed

    facts = finetune.decision.Facts(
        images=images, classes=3, several=False, native_size=(40, 40), architecture=ARCHITECTURES["r26x1"],
        trained_at=32, looks=((32, 64), (32,)), device="cpu", dtype="float32", speed=measured, tuning_speed=measured, norms=norms,
        fitting=lambda crop, batch: 16, judges=judges, closed=solved, look=look, evaluated=test,
        left=left if callable(left) else lambda: left,
    )  # fmt: skip
    return finetune.decision.decide(FinetuneConfig(data="d", budget="60s", **asked), facts)


def test_what_comes_after_the_training_is_planned_with() -> None:
    plan = planned(40.0, test=100)
    # 10 images are judged by both, 100 perhaps measured by both: two passes each, of a millisecond; a step is 0.96 s. 600 images are looked
    # at anew, and 500 before.
    assert plan.tail == pytest.approx(110 * 4 * 0.001 / 0.96) and plan.choose
    assert plan.again == pytest.approx(600 * 2 * 0.001 / 0.96)
    assert plan.recipe.steps == int((40 - 0.5 - 1.2 - 0.44) / 0.96) and plan.recipe.crop == 32
    solved = planned(40.0, test=100, whole=True)
    assert solved.tail == pytest.approx(100 * 4 * 0.001 / 0.96), "what they say of those held out is known"
    assert solved.again == pytest.approx(610 * 2 * 0.001 / 0.96)
    # Of any number of images a quarter of the budget at most.
    assert planned(40.0, test=10**6).recipe.steps == int((40 - 0.5 - 1.2 - 15) / 0.96)
    assert planned(1e9).recipe.steps == int((60 - 0.5 - 1.2 - 0.04) / 0.96), "of a clock that no one asked for"
    assert planned(40.0, look=0.0).tail == planned(40.0, look=0.0).again == 0.0, "nothing was measured"
    assert not {"tail", "again"} & plan.facts().keys(), "a checkpoint does not depend on them"


def test_the_time_in_which_the_speed_is_measured_is_gone() -> None:
    times = iter([40.0, 30.0, 30.0])
    assert planned(lambda: next(times)).recipe.steps == int((30 - 0.5 - 1.2 - 0.04) / 0.96)


def test_where_there_is_no_time_for_steps_none_are_planned() -> None:
    said: list[str] = []
    # 20 steps at 0.96 s, and 1.74 s for what comes before and after.
    enough = planned(1.74 + 20.1 * 0.96, said=said)
    assert enough.recipe.steps == 20 and enough.choose and said
    late = planned(1.74 + 19.9 * 0.96)
    assert late.recipe.steps == 0 and not late.choose and late.tail == 0.0
    assert late.recipe.notes[-1] == (
        "Nothing is fine-tuned: 19 s of the 60s are left for steps, too little to find out how long one takes here and to take 20, and "
        "fewer would not help. The closed form is delivered, and what is left of the time given back. About --budget 2m would leave time "
        "for steps."
    )
    # Two passes of 96 images are 0.192 s: not even 1.5 times twenty steps of these, and no speed is measured.
    said.clear()
    assert planned(1.74 + 29.9 * 0.192, speed=1e9, said=said).recipe.steps == 0 and not said
    assert planned(1.74 + 30.1 * 0.192, speed=1e9, said=said).recipe.steps > 0 and said
    assert planned(1.74 + 30.1 * 0.192, speed=1e9, crop=64).recipe.steps == 0, "of larger images fewer fit"
    gone = planned(-9.0).recipe
    assert gone.steps == 0 and "nothing of the 60s is left" in gone.notes[-1] and "given back" not in gone.notes[-1]
    # 69 s are gone; 96 looks come before, 1,200 and 15 s after, and 50 steps of two passes of 96 images between.
    note = planned(-9.0, look=1.0, images=96).recipe.notes[-1]
    assert note.endswith(f" About --budget {(69 + 96 + 1200 + 15 + 50 * 192) // 60}m would leave time for steps.")
    slow = planned(1.74 + 19 * 6, speed=16.0).recipe
    assert slow.steps == 0 and "About --budget 4m would" in slow.notes[-1]
    assert planned(-9.0, steps=5).recipe.steps == 5, "whoever sets the steps gets them"


def test_a_network_without_norms_is_not_fine_tuned_within_a_budget() -> None:
    recipe = planned(40.0, norms=False).recipe
    assert recipe.steps == 0 and "this network has none" in recipe.notes[-1]


def test_fewer_images_than_judge_one_another_are_not_fine_tuned_on_within_a_budget() -> None:
    assert planned(40.0, images=96).recipe.steps > 0 and planned(40.0, images=95, steps=3).recipe.steps == 3
    recipe = planned(40.0, images=95).recipe
    assert recipe.steps == 0 and "95 images are too few" in recipe.notes[-1]


def test_the_speed_of_the_machine_is_the_mean_of_several_steps(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [9.0, 1.0, 3.0, 2.0, 2.0, 2.0, 50.0]
    monkeypatch.setattr(loop, "steps", lambda *_a, **_k: (types.SimpleNamespace(seconds=taken) for taken in seconds))
    network = weights.load(tiny)

    def measured(span: float) -> float:
        return finetune.decision.images_per_second(network, 32, 4, torch.device("cpu"), torch.float32, span)

    assert measured(0.1) == 4 * 3 / 6  # at least three after the first
    assert measured(9) == 4 * 5 / 10


def test_measuring_the_speed_does_not_train_the_network(tiny: Path) -> None:
    network = weights.load(tiny)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert finetune.decision.images_per_second(network, 32, 4, torch.device("cpu"), torch.float32, 0.0) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_run_goes_on_in_the_numbers_that_it_began_with(
    short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where another machine would choose another number format."""
    same = [one for one in short if one not in ("--precision", "fp32")] + ["--steps", "2", "--seed", "5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compute_dtype", lambda *_: torch.bfloat16)
        patch.setattr(training, "train", lambda *_a, **_k: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            in_process(same)
    used = []
    steps = loop.steps
    monkeypatch.setattr(loop, "compute_dtype", lambda *_: torch.float32)
    monkeypatch.setattr(loop, "steps", lambda *a, **k: (used.append((k["dtype"], k["seed"])), steps(*a, **k))[1])
    capsys.readouterr()
    assert in_process(same) == 0
    assert used == [(torch.bfloat16, 5)] and "bfloat16 on cpu" in capsys.readouterr().out


def test_the_seed_decides_what_is_held_out(short: list[str], data: Path, tmp_path: Path) -> None:
    held: list[set[str]] = []
    short = [one for one in short if one not in ("--batch-size", "6")]
    for seed in (0, 1, 0):
        short[short.index("--out") + 1] = str(tmp_path / f"{len(held)}")
        assert in_process([*short, "--linear", "closed", "--val-fraction", "0.4", "--seed", str(seed)]) == 0
        held.append(set(json.loads((tmp_path / f"{len(held)}" / "split.json").read_text())["val"]))
    assert len(held[0]) == len(held[1]) == 6 and held[0] != held[1] and held[0] == held[2]


def test_packed_images_that_have_changed_are_noticed_too(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "some"
    write_images(root, 3, 0)

    def packed() -> None:
        with tarfile.open(tmp_path / "some.tar", "w") as tar:
            tar.add(root, ".")

    packed()
    short[1] = str(tmp_path / "some.tar")
    same = [one for one in [*short, "--linear", "closed", "--val-fraction", "0"] if one not in ("--batch-size", "6")]
    assert in_process(same) == 0 and in_process(same) == 0
    picture = (root / "red" / "0.png").read_bytes()
    (root / "red" / "0.png").write_bytes(picture[:-1] + b" ")
    packed()
    assert in_process(same) == 2
    assert "have changed since" in capsys.readouterr().err


def test_images_that_are_each_a_class_of_their_own_are_asked_about(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["image,label"]
    for i in range(12):
        Image.new("RGB", (9, 9), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,number {i}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    short[1] = str(tmp_path / "t.csv")
    same = [one for one in [*short, "--linear", "closed"] if one not in ("--batch-size", "6")]
    assert in_process(same) == 0
    assert "each of the 12 training images is a class of its own" in capsys.readouterr().err


def test_linear_closed_with_another_default_dtype(short: list[str]) -> None:
    same = [one for one in [*short, "--linear", "closed"] if one not in ("--batch-size", "6")]
    torch.set_default_dtype(torch.float64)
    try:
        assert in_process(same) == 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_image_a_class_leaves_none_to_judge_by(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [one for one in short if one not in ("--batch-size", "6")]
    assert in_process([*short, "--linear", "closed", "--examples-per-class", "1"]) == 0
    assert "nan" not in capsys.readouterr().out
    assert card_and_config(tmp_path / "run")[0].upstream.endswith("noise; with a linear classifier solved on colours")


def test_unreadable_images_stop_or_are_left_out(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "some"
    write_images(root, 4, 0)
    (root / "red" / "1.png").write_bytes(b"")
    short[1] = str(root)
    assert in_process([*short, "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert "1 of 12 images cannot be read" in error and "--skip-bad-images" in error
    both = tmp_path / "both"
    shutil.copytree(root, both / "train")
    write_images(both / "test", 2, 0)
    for name in ("blue/0.png", "green/1.png"):
        (both / "test" / name).write_bytes(b"")
    assert in_process([short[0], str(both), *short[2:], "--steps", "2"]) == 2
    error = capsys.readouterr().err
    assert "3 of 18 images cannot be read" in error, "of all parts at once"
    assert all(name in error for name in ("train/red/1.png", "test/blue/0.png", "test/green/1.png"))
    assert not (tmp_path / "run").exists()
    with pytest.MonkeyPatch.context() as patch:  # and a resume does not ask again
        patch.setattr(finetune.measuring, "measure", lambda *_a, **_k: (_ for _ in ()).throw(SystemExit(9)))
        with pytest.raises(SystemExit):
            in_process([*short, "--steps", "2", "--skip-bad-images"])
    assert in_process([*short, "--steps", "2", "--skip-bad-images"]) == 0
    assert capsys.readouterr().err.count("note: 1 unreadable image is left out; the report lists it\n") == 1
    assert json.loads((tmp_path / "run" / "unreadable.json").read_text()) == [
        {"name": "red/1.png", "reason": "the file is empty (0 bytes)"}
    ]
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(split["train"]) + len(split["val"]) == 11 and "red/1.png" not in split["train"] + split["val"]
    assert "red/1.png" in (tmp_path / "run" / "report.html").read_text()


def test_files_that_give_the_classes_away_are_told_and_shown(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "sizes"
    write_images(root, 8, 0)
    for path in (root / "red").iterdir():
        Image.open(path).resize((40, 30)).save(path)
    short[1] = str(root)
    assert in_process([*(one for one in short if one not in ("--batch-size", "6")), "--linear", "closed"]) == 0
    told = (
        "By the height and width alone the class of 67% of the training images is told (mean per class; guessing: 33%)"
    )
    assert f"warning: {told}" in capsys.readouterr().err
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count(told) == 1 and "given away" not in page


def test_copies_of_images_are_told_kept_and_shown(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "some"
    write_images(root / "train", 5, 0)
    write_images(root / "test", 4, 1)
    for copy, original in (
        ("test/red/0.png", "train/red/4.png"),
        ("test/red/1.png", "train/red/3.png"),
        ("train/blue/1.png", "train/green/2.png"),
        ("train/blue/4.png", "train/blue/0.png"),
    ):
        (root / copy).write_bytes((root / original).read_bytes())
    short[1] = str(root)
    assert in_process([*short, "--steps", "1"]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "warning: 2 pictures are in several parts of the data; accuracy will look better than it is: "
        "train/red/4.png = test/red/0.png; train/red/3.png = test/red/1.png. The report lists them." in told
    )
    assert (
        "warning: 1 picture stands under different classes, of which only one can be right: "
        "train/blue/1.png = train/green/2.png." in told
    )
    assert "note: 1 picture is there more than once" in told
    groups = json.loads((tmp_path / "run" / "copies.json").read_text())
    assert sorted([one["name"] for one in group] for group in groups) == [
        ["train/blue/0.png", "train/blue/4.png"],
        ["train/blue/1.png", "train/green/2.png"],
        ["train/red/3.png", "test/red/1.png"],
        ["train/red/4.png", "test/red/0.png"],
    ]
    assert groups[0][0].keys() == {"part", "name", "classes"}
    shown = (tmp_path / "run" / "report.html").read_text()
    assert "2 of them are among the training images too" in shown
    for name in ("test/red/0.png", "train/red/4.png", "test/red/1.png", "train/green/2.png", "train/blue/4.png"):
        assert name in shown

    # Large test sets are not searched; and nothing is where there is nothing else to compare with.
    monkeypatch.setattr(dataset, "COMPARED", 11)
    short[short.index("--out") + 1] = str(tmp_path / "again")
    assert in_process([*short, "--steps", "1"]) == 0
    assert json.loads((tmp_path / "again" / "copies.json").read_text()) == []


def test_test_images_without_classes_are_told_and_not_used(
    short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "some" / "train", 4, 0)
    (tmp_path / "some" / "test").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "some" / "test" / "a.png")
    short[1] = str(tmp_path / "some")
    assert in_process([*short, "--steps", "1"]) == 0
    assert "1 images for validation or test have no classes; they are not used" in capsys.readouterr().err
    card, config = card_and_config(tmp_path / "run")
    assert config["data"]["test"] == 0 and config["data"]["val"] == 1 and "val_top1" in card.metrics


def test_tensorboard(short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(evals.calibration, "FEWEST", 2)
    # Killed before it was measured: the process that goes on has no step to take, and tells the rest.
    short += ["--val-fraction", "0.4", "--steps", "2", "--log", "tensorboard"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.measuring, "evaluate", lambda *given, **more: sys.exit(9))
        with pytest.raises(SystemExit):
            in_process(short)
    assert not any(name.startswith("final/") for name in scalars(tmp_path / "run"))
    assert in_process(short) == 0
    card, _ = card_and_config(tmp_path / "run")
    assert card.calibrated is not None and "test_top1" in card.metrics
    shown = scalars(tmp_path / "run")
    assert [step for step, _ in shown["loss"]] == [0, 1]
    final = {name.removeprefix("final/"): told for name, told in shown.items() if name.startswith("final/")}
    assert final == {
        name: [(2, pytest.approx(value))]
        for name, value in {**card.metrics, "temperature": card.calibrated.temperature}.items()
    }


# --- Mistakes


def test_mistakes_are_told_in_a_sentence(short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "one", 1, 0)
    for name in ("red", "green"):
        (tmp_path / "one" / name / "0.png").unlink()
        (tmp_path / "one" / name).rmdir()
    write_images(tmp_path / "empty", 2, 0)
    for image in (tmp_path / "empty" / "red").iterdir():
        image.unlink()
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "flat" / "a.png")
    (tmp_path / "file").write_text("")

    def told(**changes: str) -> str:
        changed = list(short)
        for flag, value in changes.items():
            changed[1 if flag == "data" else changed.index(f"--{flag}") + 1] = value
        assert in_process(changed) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    assert "There is no file or folder" in told(data=str(tmp_path / "nowhere"))
    assert "one class only" in told(data=str(tmp_path / "one"))
    assert "red" in told(data=str(tmp_path / "empty"))
    assert "no classes" in told(data=str(tmp_path / "flat"))
    assert "'abacus' is no device" in told(device="abacus")
    assert "--device cpu always works" in told(device="cuda:99")
    assert "No model or file named 'bit-m-r51x1'" in told(model="bit-m-r51x1")
    assert "Choose another with --out" in told(out=str(tmp_path / "file"))
    assert not (tmp_path / "run").exists()


# --- Several labels per image


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of colours and of light: images that are red, blue or both halves, some of them dark."""
    root = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    lines = ["image,labels,split"]
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for i in range(count):
            labels = (["red"], ["blue"], ["red", "blue"])[i % 3] + ["dark"] * (i % 2)
            pixels = np.full((24, 24, 3), 60)
            pixels[:, :12, 0] += 120 * ("red" in labels)
            pixels[:, 12:, 2] += 120 * ("blue" in labels)
            pixels = (pixels + rng.integers(-10, 10, pixels.shape)) // (1 + 2 * ("dark" in labels))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{split}{i}.png")
            lines.append(f"{split}{i}.png,{'+'.join(labels)},{split}")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root / "table.csv"


def test_several_labels_per_image(
    several: Path, short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the table to the report: sigmoid loss, mean average precision, thresholds chosen by the validation images."""
    short[1] = str(several)
    same = [*short, "--label-separator", "+"]
    closed = [one for one in same if one not in ("--batch-size", "6")]
    assert in_process([*closed, "--linear", "closed"]) == 2
    assert "--linear closed solves for one class per image" in capsys.readouterr().err
    assert in_process([*same, "--linear", "sgd", "--steps", "60", "--learning-rate", "0.5", "--eval-every", "60"]) == 0
    output = capsys.readouterr().out
    assert "an image may have several of them" in output and "mean average precision" in output
    run = tmp_path / "run"
    card, config = card_and_config(run)
    assert card.multi_label and card.class_names == ("blue", "dark", "red") and config["resolved"]["loss"] == "sigmoid"
    lines = numbers(run)
    assert lines[0]["loss"] == pytest.approx(3 * np.log(2), rel=1e-5), "three classes, each undecided at first"
    assert lines[-1]["val/map"] == pytest.approx(card_map(run, several, "val", capsys), abs=1e-6)

    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["multi_label"] and evaluation["split"] == "test" and not evaluation["chosen_here"]
    assert card.metrics["test_map"] == evaluation["map"] and evaluation["images"] == 6
    assert [row["support"] for row in evaluation["per_class"]] == [4, 3, 4]
    assert card.thresholds is not None and len(card.thresholds) == 3
    assert [row["threshold"] for row in evaluation["per_class"]] == pytest.approx(card.thresholds)
    assert card_map(run, several, "test", capsys) == pytest.approx(evaluation["map"], abs=1e-6)
    assert "missed" in (page := (run / "report.html").read_text()) or "exactly their labels" not in page
    assert "mean average precision" in page and "Average precision" in page

    predictor = bigtransfer.Predictor.load(run, device="cpu", precision="fp32")
    answers = predictor.predict([several.parent / row["name"] for row in evaluation["predictions"]])
    for answer, row in zip(answers, evaluation["predictions"], strict=True):
        assert answer.probabilities is not None and answer.thresholds is not None
        given = {c for c in range(3) if answer.probabilities[c] >= np.float32(card.thresholds[c])}
        assert given == set(row["given"]) and {answer.class_names[c] for c in given} == set(answer.labels)
    assert max(float(answer.probabilities.sum()) for answer in answers if answer.probabilities is not None) > 1.1

    picture = [str(several.parent / "test2.png"), "--device", "cpu", "--precision", "fp32"]
    given = "|".join(predictor.predict([picture[0]])[0].labels)
    for form, expected in (
        ("table", f"  {given.replace('|', ', ') or '(none)'}"),
        ("csv", f"test2.png,{given},"),
        ("jsonl", f'"labels": {json.dumps(given.split("|") if given else [])}'),
    ):
        assert in_process(["predict", str(run), *picture, "--format", form]) == 0
        assert expected in capsys.readouterr().out
    assert in_process(["info", str(run)]) == 0
    assert "3: blue; dark; red (an image may have several)" in capsys.readouterr().out


def card_map(run: Path, table: Path, split: str, capsys: pytest.CaptureFixture[str]) -> float:
    """What `bit evaluate` measures."""
    asked = [
        "evaluate",
        str(run),
        str(table),
        "--label-separator",
        "+",
        "--split",
        split,
        "--json",
        str(run / "e.json"),
    ]
    assert in_process([*asked, "--device", "cpu", "--precision", "fp32"]) == 0
    capsys.readouterr()
    return json.loads((run / "e.json").read_text())["map"]


def test_thresholds_that_the_measured_images_chose_are_said_to_be_so(
    several: Path, short: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = several.parent / "without_test.csv"
    table.write_text("".join(line for line in several.read_text().splitlines(True) if not line.endswith("test\n")))
    short[1] = str(table)
    assert in_process([*short, "--label-separator", "+", "--linear", "sgd", "--steps", "1"]) == 0
    assert "that chose the thresholds" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["chosen_here"]
    assert "were chosen by these very images" in (tmp_path / "run" / "report.html").read_text()


def test_fine_tuning_a_network_that_was_chosen_for_other_images(short: list[str], tmp_path: Path) -> None:
    """What its head saw is forgotten: the rule starts from the last map."""
    closed = [one for one in short if one not in ("--batch-size", "6")]
    assert in_process([*closed, "--linear", "closed"]) == 0
    chosen = weights.load(tmp_path / "run")
    both = finetune.choice.average(chosen, deepcopy(chosen), 1.0, 1.0)
    both.card = dataclasses.replace(both.card, class_names=chosen.card.class_names)
    weights.save(tmp_path / "both.safetensors", both)
    short[short.index("--model") + 1] = str(tmp_path / "both.safetensors")
    short[short.index("--out") + 1] = str(tmp_path / "again")
    assert in_process([*short, "--steps", "1"]) == 0
    again = weights.load(tmp_path / "again")
    assert again.card.architecture == dataclasses.replace(chosen.card.architecture, readout=None)
    assert again.num_features == 2048


def test_no_command_measures_images_held_out_alone() -> None:
    """They lie among those that were learnt from, on which a model looks better than it is."""
    seen = evals.Classification(3)
    seen.update(torch.eye(3).repeat(11, 1)[:32], torch.arange(32) % 2)
    tested = finetune.measuring._partly(seen, 1166, "test", "bit evaluate run data")
    assert tested == (
        "The budget was used up: these numbers are of 32 of the 1,166 test images, of 2 of the 3 classes, each with its share of them. All "
        "of them are measured by: bit evaluate run data"
    )
    seen.update(torch.eye(3), torch.tensor([0, 1, 2]))
    judged = finetune.measuring._partly(seen, 166, "val", "bit evaluate run data")
    assert judged.endswith(
        "these numbers are of 35 of the 166 val images, of all 3 classes, each with its share of them."
    )
