"""The run folder: the log, one process at a time, and which run may go on."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest

from bigtransfer import runs
from bigtransfer.config import FinetuneConfig, PretrainConfig
from bigtransfer.errors import BitError, RunError
from bigtransfer.jobs import training


def test_the_log_survives_a_torn_line_and_can_be_rewound(tmp_path: Path) -> None:
    run = runs.Run(tmp_path / "run")
    for step in range(4):
        run.log(step, loss=float(step))
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in run.metrics()] == [0, 1, 2, 3]
    run.rewind(1)
    run.log(2, loss=9.0)
    assert [line["loss"] for line in run.metrics()] == [0.0, 1.0, 9.0]
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "lo')  # would pass for one to keep
    run.rewind(2)
    assert [line["step"] for line in run.metrics()] == [0, 1, 2]
    run.rewind(-1)
    assert run.metrics() == []
    run.rewind(-1)


class Step(TypedDict):
    step: int


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", "object missing required field step"),
        ("[1, 2]", "expected object, got array"),
        ("7", "expected object, got int"),
        ('{"step": 1.5}', "step: expected int, got float"),
        ('{"step": "1"}', "step: expected int, got str"),
        ('{"step": null}', "step: expected int, got null"),
    ],
)
def test_a_line_that_is_not_of_the_log(line: str, said: str, tmp_path: Path) -> None:
    run = runs.Run(tmp_path / "run")
    for step in range(2):
        run.log(step, loss=1.0)
    path = tmp_path / "run" / "metrics.jsonl"
    with open(path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError) as caught:
        runs.read_metrics(path, Step)
    assert str(caught.value) == f"{path}, line 3: {said}."
    run.rewind(1)  # a resume drops it
    assert [line["step"] for line in runs.read_metrics(path, Step)] == [0, 1]


def test_a_log_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RunError, match=r"Cannot read .*metrics\.jsonl"):
        runs.read_metrics(tmp_path / "metrics.jsonl")
    assert runs.read_metrics(tmp_path / "none.jsonl") == []


def test_lines_with_a_key(tmp_path: Path) -> None:
    run = runs.Run(tmp_path / "run")
    assert list(run.metrics_with("left_out")) == []
    for step in range(4):
        run.log(step, loss=1.0, **({"left_out": [step]} if step % 2 else {}))
    assert [line["left_out"] for line in run.metrics_with("left_out")] == [[1], [3]]
    run.log(4, left_out=5)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 5: left_out: expected array, got int"):
        list(run.metrics_with("left_out", training._LeftOut))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="Choose another with --out"):
            runs.Run(path)


def test_only_one_process_works_in_a_folder_and_a_dead_one_leaves_it_free(tmp_path: Path) -> None:
    hold = (
        "import sys\nfrom bigtransfer import runs\n"
        f"with runs.Run({str(tmp_path)!r}).hold():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="Another process is at work"), runs.Run(tmp_path).hold():
            pass
        other.kill()
    (tmp_path / ".model.safetensors.0a1b.tmp").write_text("half written")
    (tmp_path / ".checkpoints.0a1b.tmp" / "step-00000001").mkdir(parents=True)
    with runs.Run(tmp_path).hold():
        assert not list(tmp_path.glob(".*.tmp")), "what a killed process left is cleared away"
    with pytest.raises(ZeroDivisionError), runs.Run(tmp_path).hold():
        raise ZeroDivisionError
    with runs.Run(tmp_path).hold():
        pass


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()  # root may write anywhere, but not into a folder as if it were a file
    with pytest.raises(RunError, match="Cannot write into the run folder"), runs.Run(tmp_path).hold():
        pass


# --- Which run may go on


def started(folder: Path, config: FinetuneConfig | PretrainConfig, command: str = "finetune") -> None:
    runs.write_json(folder / "config.json", {"command": command, "asked": dataclasses.asdict(config)})


ASKED = FinetuneConfig(data="photos", out="run", steps=7, budget="10m")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"out": "elsewhere/run", "workers": 3, "cache": "none", "tensorboard": True, "checkpoint_every": "1m"},
        {"data": "photos/"},
        {"data": "./photos"},
    ],
)
def test_the_same_run_goes_on(tmp_path: Path, changes: dict[str, object]) -> None:
    started(tmp_path, ASKED)
    assert training.earlier(tmp_path, "finetune", dataclasses.replace(ASKED, **changes)) is not None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 8}, "--steps was 7, is now 8"),
        ({"data": "others", "flip": False}, "DATA was 'photos', is now 'others'; --flip was True, is now False"),
        ({"precision": "fp32"}, "--precision was 'auto', is now 'fp32'"),
        ({"device": "cpu"}, "--device was None, is now 'cpu'"),
        ({"micro_batch": 4}, "--micro-batch was None, is now 4"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    started(tmp_path, ASKED)
    with pytest.raises(RunError) as caught:
        training.earlier(tmp_path, "finetune", dataclasses.replace(ASKED, **changes))
    assert told in str(caught.value) and "--out" in str(caught.value)


def test_what_another_command_made_is_refused(tmp_path: Path) -> None:
    assert training.earlier(tmp_path / "new", "finetune", ASKED) is None
    started(tmp_path, ASKED)
    with pytest.raises(RunError, match="holds the result of `bit finetune`"):
        training.earlier(tmp_path, "pretrain", PretrainConfig(data="photos"))
    for content in ("{", "[]", "{}", '{"asked": 3, "command": "finetune"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BitError, match="--out"):
            training.earlier(tmp_path, "finetune", ASKED)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(RunError, match="holds a model that is not from `bit finetune`"):
        training.earlier(tmp_path, "finetune", ASKED)


def test_where_a_run_lives_by_default() -> None:
    folder = training.run_folder
    assert folder("here", "photos", "m") == Path("here")
    assert folder(None, "a/photos/", "bit-t-r26x1") == Path("runs/photos-bit-t-r26x1")
    assert folder(None, "hf:user/name", "runs/first/model.safetensors") == Path("runs/name-model")
    assert folder(None, "shards/train-{000..009}.tar", "r50x1").name == "train--000..009-.tar-r50x1"
