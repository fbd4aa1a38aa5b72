"""`bit pretrain` as it is typed, alone and as two processes under torchrun."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bigtransfer
from bigtransfer import cli
from bigtransfer.jobs import training
from bigtransfer.train import checkpoint
from tests.conftest import dying_at_a_checkpoint

COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def write_images(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours with a validation part."""
    root = tmp_path_factory.mktemp("data") / "colours"
    write_images(root / "train", 5, 0)
    write_images(root / "val", 3, 1)
    return root


def flags(data: Path, out: Path, *more: object) -> list[str]:
    """Three steps on 15 images, with a checkpoint after each."""
    given = ["pretrain", data, "--model", "r26x1", "--out", out, "--batch-size", 5, "--epochs", 1, "--crop", 32]
    given += ["--warmup", 1, "--schedule", "cosine", "--device", "cpu", "--precision", "fp32", "--workers", 0]
    return [str(one) for one in [*given, "--checkpoint-every", "0s", *more]]


def bit(arguments: list[str]) -> int:
    """The command in this process."""
    return cli.main(arguments)


def log(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in training.CLOCK} for line in lines]


def digest(run: Path) -> str:
    """Of the final weights alone."""
    network = bigtransfer.load_model(run)
    parts = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        parts.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return parts.hexdigest()


def test_a_run_and_its_resumption(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With everything that has a state: moving averages, growing crops, an image that cannot be read."""
    more = ["--ema", "0.9", "--crop-from", "16", "--max-bad-images", "0.1", "--probe", str(data), "--eval-every", "1"]
    bad = data / "train" / "red" / "bad.png"
    bad.write_bytes(b"x")
    try:
        assert bit(flags(data, tmp_path / "whole", *more)) == 0
        with dying_at_a_checkpoint():
            bit(flags(data, tmp_path / "run", *more))
        capsys.readouterr()
        assert bit(flags(data, tmp_path / "run", *more, "--name", "better")) == 0
    finally:
        bad.unlink()
    told = capsys.readouterr().out
    assert "from step 1" in told
    saved, report = told.splitlines()[-2:]
    assert saved.startswith(f"Saved {tmp_path / 'run' / 'model.safetensors'}: ") and "val/top1 " in saved
    assert report == f"Report: {tmp_path / 'run' / 'report.html'}" and (tmp_path / "run" / "report.html").is_file()
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    steps = [line for line in log(tmp_path / "run") if "loss" in line]
    (left_out,) = [row for line in steps for row in line.get("left_out", ())]
    assert left_out["name"].endswith("bad.png") and left_out["reason"]
    measured = [line for line in log(tmp_path / "run") if "loss" not in line]
    assert [line["step"] for line in measured] == [0, 1, 2]
    assert all({"val/top1", "probe/top1"} <= line.keys() for line in measured)
    network = bigtransfer.load_model(tmp_path / "run")
    card = network.card
    assert card.name == "better" and card.class_names == tuple(COLOURS) and network.num_classes == 3
    assert card.source.startswith("bit pretrain ") and card.metrics["val/top1"] == measured[-1]["val/top1"]
    assert bit(flags(data, tmp_path / "run", *more, "--min-area", "0.5")) == 2
    assert "holds another run (--min-area was 0.05, is now 0.5)" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "last"), [((), [2, 3]), (("--keep-checkpoints", 3), [1, 2, 3])])
def test_as_many_checkpoints_are_kept_as_were_asked_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], last: list[int]
) -> None:
    there, save = [], training.checkpoint.save

    def watched(folder: Path, *given: Any, **options: Any) -> Path:
        path = save(folder, *given, **options)
        there.append(training.checkpoint.steps(folder))
        return path

    monkeypatch.setattr(training.checkpoint, "save", watched)
    assert bit(flags(data, tmp_path / "run", *more)) == 0
    assert there == [[1], [1, 2], last]


def test_a_run_whose_images_have_changed_does_not_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bit(flags(data, tmp_path / "run")) == 0
    more = data / "train" / "red" / "more.png"
    more.write_bytes((data / "train" / "red" / "0.png").read_bytes())
    try:
        assert bit(flags(data, tmp_path / "run")) == 2
    finally:
        more.unlink()
    assert "began with 15 images of 3 classes" in (said := capsys.readouterr().err) and "now has 16 of 3" in said


def test_too_many_unreadable_images_stop_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = data / "train" / "red" / "bad.png"
    bad.write_bytes(b"x")
    try:
        assert bit(flags(data, tmp_path / "run", "--epochs", "4")) == 2
    finally:
        bad.unlink()
    error = capsys.readouterr().err
    assert "1 images could not be read" in error and "--max-bad-images 0.001" in error and "bad.png" in error
    assert checkpoint.exists(tmp_path / "run")


def test_a_share_of_unreadable_images_is_of_all_that_were_seen(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of 16 in each of three epochs: of a whole one in the first, however early it comes, and of all of them later."""
    bad = data / "train" / "red" / "bad.png"
    bad.write_bytes(b"x")
    try:
        assert bit(flags(data, tmp_path / "run", "--epochs", "3", "--max-bad-images", "0.1")) == 0
    finally:
        bad.unlink()
    left_out = [entry for line in log(tmp_path / "run") for entry in line.get("left_out", ())]
    assert [entry["name"].rpartition("/")[2] for entry in left_out] == ["bad.png"] * len(left_out) and len(left_out) > 1
    capsys.readouterr()


def test_several_labels_per_image(data: Path, tmp_path: Path) -> None:
    """Sigmoid loss, from a table; the head's biases start where thousands of absent classes cost nothing."""
    table = tmp_path / "table.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for split in ("train", "val"):
            for name in COLOURS:
                for path in sorted((data / split / name).iterdir()):
                    writer.writerow([path, f"{name}|{'warm' if name == 'red' else 'cold'}", split])
    more = ["--label-separator", "|", "--loss", "sigmoid"]
    assert bit(flags(table, tmp_path / "run", *more)) == 0
    lines = log(tmp_path / "run")
    # Each class that is there costs 10 nats at first, the others hardly anything.
    assert lines[0]["loss"] == pytest.approx(20, rel=0.01)
    measured = lines[-1]
    predictor = bigtransfer.Predictor.load(tmp_path / "run", device="cpu", precision="fp32")
    assert predictor.card.multi_label
    images = sorted((data / "val").rglob("*.png"))
    answers = predictor.predict(images)
    true = [{path.parent.name, "warm" if path.parent.name == "red" else "cold"} for path in images]
    right = [answer.label in labels for answer, labels in zip(answers, true, strict=True)]
    assert measured["val/precision_at_1"] == pytest.approx(np.mean(right))
    # Average precision from its definition: of each image of the class, the share of it among those at least as probable.
    precisions = []
    for c, name in enumerate(predictor.class_names):
        own = np.array([name in labels for labels in true])
        p = np.array([answer.probabilities[c] for answer in answers])  # type: ignore[index]
        precisions.append(np.mean([own[p >= p[i]].mean() for i in np.flatnonzero(own)]))
    assert measured["val/map"] == pytest.approx(np.mean(precisions), abs=0.02)
    card = bigtransfer.load_model(tmp_path / "run").card
    assert card.class_names == ("blue", "cold", "green", "red", "warm")


def test_going_on_from_other_weights(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bit(flags(data, tmp_path / "first")) == 0
    going_on = ["--weights", str(tmp_path / "first"), "--learning-rate", "1e-30", "--weight-decay", "0"]
    assert bit(flags(data, tmp_path / "second", *going_on)) == 0
    first, second = (bigtransfer.load_model(tmp_path / run).state_dict() for run in ("first", "second"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-20)
    capsys.readouterr()
    going_on[1] = "bit-t-r26x1"  # of other classes: a new head on its features
    assert bit(flags(data, tmp_path / "third", *going_on)) == 0
    assert "from bit-t-r26x1, which knows the classes of: none of these" in capsys.readouterr().out
    third, bundled = (bigtransfer.load_model(each).state_dict() for each in (tmp_path / "third", "bit-t-r26x1"))
    torch.testing.assert_close(third["blocks.3.1.conv2.weight"], bundled["blocks.3.1.conv2.weight"], rtol=0, atol=1e-20)
    assert third["head.weight"].abs().max() < 1e-20
    assert bit([*flags(data, tmp_path / "fourth", "--weights", "bit-t-r26x1"), "--norm", "bn"]) == 2
    assert "--weights bit-t-r26x1 is not a r26x1 with these norms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--crop-from", "64"], "--crop-from 64 is larger than --crop 32"),
        (["--crop-from", "20"], "both must be multiples of 8 px"),
        (["--crop-ramp", "0.1", "0.2"], "--crop-ramp has no effect without --crop-from"),
        (["--probe-examples", "3"], "--probe-examples has no effect without --probe"),
    ],
)
def test_contradictions(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], message: str
) -> None:
    assert bit(flags(data, tmp_path / "run", *asked)) == 2
    assert message in capsys.readouterr().err


def torchrun(arguments: list[str], restarts: int) -> subprocess.Popen[str]:
    """The command as two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "--max-restarts", str(restarts), "-m", "bigtransfer", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(process: int) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return sorted(int(child) for child in found)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes through /proc")
def test_a_killed_process_changes_nothing(data: Path, tmp_path: Path) -> None:
    """One of two processes dies; torchrun starts both again; the weights are those of an undisturbed run of two, bit for bit, and
    those of one process up to the order of sums."""
    undisturbed = torchrun(flags(data, tmp_path / "whole"), 0)
    output, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, output
    killed = torchrun(flags(data, tmp_path / "run"), 1)
    deadline = time.monotonic() + 120
    while not checkpoint.exists(tmp_path / "run") and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.005)
    os.kill(children(killed.pid)[1], signal.SIGKILL)
    output, _ = killed.communicate(timeout=300)
    assert killed.returncode == 0, output
    assert re.search(r"from step [12]\b", output)
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert bit(flags(data, tmp_path / "alone")) == 0
    for one, two in zip(log(tmp_path / "alone"), log(tmp_path / "whole"), strict=True):
        assert one["step"] == two["step"]
        if "loss" in one:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    alone, whole = (bigtransfer.load_model(tmp_path / run).state_dict() for run in ("alone", "whole"))
    for name, tensor in alone.items():
        # Three steps in float32; see test_distributed.py for float64.
        torch.testing.assert_close(whole[name], tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()))
