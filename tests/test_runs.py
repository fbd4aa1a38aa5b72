"""The run folder: the log, one process at a time, and which run may go on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import pytest
import torch

from bigtransfer import cli, outputs, runs
from bigtransfer.catalog import ARCHITECTURES, InputSpec, Readout
from bigtransfer.config import FinetuneConfig, PretrainConfig
from bigtransfer.dist import World
from bigtransfer.errors import BitError, RunError
from bigtransfer.evals.candidates import Closed, Judged, View
from bigtransfer.feed.augment import Growth, InceptionCrop
from bigtransfer.jobs import training
from bigtransfer.jobs.finetune.decision import Facts, FinetunePlan, decide
from bigtransfer.jobs.plan import recall, record, run_folder, same_threads
from bigtransfer.jobs.pretrain import Facts as PretrainFacts
from bigtransfer.jobs.pretrain import PretrainPlan
from bigtransfer.jobs.pretrain import decide as decide_pretraining


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


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_a_log_is_rewound_over_a_line_of_any_length(tmp_path: Path, ending: bytes) -> None:
    run = runs.Run(tmp_path / "run")
    run.log(0, loss=1.0)
    run.log(1, loss=2.0, note="x" * 70_000)  # longer than what is read at a time
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.truncate(300 << 20)  # zeros, which take no room
        file.seek(0, os.SEEK_END)
        file.write(ending)
    tracemalloc.start()
    try:
        run.rewind(1)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert [line["step"] for line in run.metrics()] == [0, 1]


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
    (tmp_path / f".model.safetensors.{outputs._machine()}.01234567.tmp").mkdir()
    with runs.Run(tmp_path).hold():
        assert not list(tmp_path.glob(".*.tmp")), "what a killed process left is cleared away"
    with pytest.raises(ZeroDivisionError), runs.Run(tmp_path).hold():
        raise ZeroDivisionError
    with runs.Run(tmp_path).hold():
        pass


def test_files_of_no_run_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    told = r"holds report\.html, which is of no run of this program"
    with pytest.raises(RunError, match=told), runs.Run(tmp_path).hold(runs.RESULTS):
        pass
    with runs.Run(tmp_path).hold():
        pass
    with runs.Run(tmp_path).hold(runs.RESULTS):  # one that was stopped before it had a config.json
        pass
    (tmp_path / ".lock").unlink()
    (tmp_path / "config.json").write_text("{}")  # of a run that was copied from elsewhere
    runs.refuse_others(tmp_path, runs.RESULTS)
    (tmp_path / "config.json").unlink()
    for out, command in (("--out", "check"), ("--out", "evaluate")):
        asked = {"check": [str(tmp_path)], "evaluate": ["bit-t-r26x1", str(tmp_path)]}[command]
        assert cli.main([command, *asked, out, str(tmp_path)]) == 2
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()  # root may write anywhere, but not into a folder as if it were a file
    with pytest.raises(RunError, match="Cannot write into the run folder"), runs.Run(tmp_path).hold():
        pass


# --- Which run may go on


ASKED = FinetuneConfig(data="photos", out="run", steps=7, budget="10m")
FACTS = Facts(
    images=30,
    classes=3,
    several=False,
    native_size=(40, 50),
    architecture=ARCHITECTURES["r26x1"],
    trained_at=48,
    looks=((48, 96), (48,)),
    device="cpu",
    dtype="float32",
    speed=lambda crop, batch: 100.0,
    tuning_speed=lambda crop, batch: 100.0,
    norms=True,
    fitting=lambda crop, batch: 16,
)


def started(folder: Path, config: FinetuneConfig) -> FinetunePlan:
    plan = decide(config, FACTS)
    record(runs.Run(folder), "finetune", config, plan, {"found": 30})
    return plan


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"out": "elsewhere/run", "workers": 3, "cache": "none", "log": "wandb", "checkpoint_every": "1m"},
        {"data": "photos/"},
        {"data": "./photos"},
    ],
)
def test_the_same_run_goes_on(tmp_path: Path, changes: dict[str, object]) -> None:
    plan = started(tmp_path, ASKED)
    begun = recall(tmp_path, "finetune", dataclasses.replace(ASKED, **changes), FinetunePlan)
    assert begun is not None and begun.plan == plan and begun.plan.facts() == plan.facts()
    assert begun.data == {"found": 30} and begun.threads == torch.get_num_threads()


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
        recall(tmp_path, "finetune", dataclasses.replace(ASKED, **changes), FinetunePlan)
    assert told in str(caught.value) and "--out" in str(caught.value)


def test_what_another_command_made_is_refused(tmp_path: Path) -> None:
    assert recall(tmp_path / "new", "finetune", ASKED, FinetunePlan) is None
    started(tmp_path, ASKED)
    with pytest.raises(RunError, match="holds the result of `bit finetune`"):
        recall(tmp_path, "pretrain", PretrainConfig(data="photos"), PretrainPlan)
    for content in ("{", "[]", "{}", '{"asked": 3, "command": "finetune"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(BitError, match="--out"):
            recall(tmp_path, "finetune", ASKED, FinetunePlan)
    (tmp_path / "config.json").unlink()
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(RunError, match=r"holds a model without the config\.json of a run of `bit finetune`"):
        recall(tmp_path, "finetune", ASKED, FinetunePlan)


def test_where_a_run_lives_by_default() -> None:
    folder = run_folder
    assert folder("here", "photos", "m") == Path("here")
    assert folder(None, "a/photos/", "bit-t-r26x1") == Path("runs/photos-bit-t-r26x1")
    assert folder(None, "hf:user/name", "runs/first/model.safetensors") == Path("runs/name-model")
    assert folder(None, "shards/train-{000..009}.tar", "r50x1").name == "train--000..009-.tar-r50x1"


@pytest.mark.parametrize("world", [None, World(), World(rank=1, size=2)])
def test_only_the_first_process_forgets_what_was_logged_after_the_checkpoint(
    world: World | None, tmp_path: Path
) -> None:
    run = runs.Run(tmp_path / "run")
    for step in range(4):
        run.log(step, loss=float(step))
    state: Any = SimpleNamespace(step=2)
    assert training.resume(run, state, decide(ASKED, FACTS), world) is False
    left = [line["step"] for line in runs.Run(tmp_path / "run").metrics()]
    assert left == ([0, 1] if world is None or world.rank == 0 else [0, 1, 2, 3])


def test_a_resume_computes_with_the_threads_of_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    for threads in (None, 0, 2, 1, 3):
        same_threads(threads)
    assert asked == [1, 3]


# --- What is decided


def test_a_plan_is_made_from_facts_alone() -> None:
    asked: list[tuple[int, int]] = []

    def fitting(crop: int, batch: int) -> int:
        asked.append((crop, batch))
        return 16

    config = FinetuneConfig(
        data="photos", crop=64, batch_size=128, steps=50, seed=3, flip=False, antialias=False, decoder="exact"
    )
    facts = dataclasses.replace(FACTS, fitting=fitting, speed=lambda crop, batch: pytest.fail("there is no budget"))
    plan = decide(config, facts)
    assert (plan.recipe.steps, plan.recipe.batch_size, plan.recipe.resize, plan.recipe.crop) == (50, 128, 80, 64)
    assert (plan.augmentation.resize, plan.augmentation.crop, plan.augmentation.flip) == (80, 64, False)
    assert plan.input == InputSpec(size=64, antialias=False, decoder="exact") and plan.augmentation.antialias is False
    assert plan.augmentation.fixed == InputSpec(size=plan.augmentation.resize, antialias=False, decoder="exact")
    assert (plan.seed, plan.eval_every, plan.images, plan.classes, plan.native_size) == (3, 5, 30, 3, (40, 50))
    assert plan.micro_batch == 16 and asked == [(64, 128)]
    own = dataclasses.replace(config, eval_every=7, micro_batch=4, steps=5)
    assert (decide(own, facts).eval_every, decide(own, facts).micro_batch) == (7, 4) and len(asked) == 1
    assert decide(dataclasses.replace(config, steps=5), facts).eval_every == 1


EVERY = Readout(blocks=(0, 1, 2, 3), mirrored=True)


def solved(*losses: float) -> Closed:
    """The closed form at 48 px, and what was judged at 48 px and twice that."""
    judged = tuple(
        Judged(view=View(size=size, readout=EVERY), top1=0.5, loss=loss)
        for size, loss in zip((48, 96), losses, strict=False)
    )
    return Closed(view=View(size=48, readout=EVERY), judged=judged, images=1000, seconds=1.0, top1=0.5)


def begun(closed: Closed, judges: int = 10, left: float = 99.0, **asked: Any) -> FinetunePlan:
    """The plan of a budget of which so much is left; 100 images a second at 48 px, and as many pixels at other sizes."""
    facts = dataclasses.replace(
        FACTS,
        images=1000,
        closed=closed,
        judges=judges,
        left=lambda: left,
        speed=lambda crop, batch: pytest.fail("that of all weights"),
        tuning_speed=lambda crop, batch: 100.0 * (48 / crop) ** 2,
    )
    return decide(FinetuneConfig(data="photos", **({"budget": "200s"} | asked)), facts)


def test_a_training_for_the_closed_form_is_of_the_smallest_size_of_a_look() -> None:
    # 99 s hold 9,900 images at 48 px, 103 batches of 96; 30 passes would be 313.
    for closed in (solved(1.0, 0.8), solved(0.8, 1.0), solved()):
        plan = begun(closed)
        assert (plan.recipe.crop, plan.recipe.resize, plan.recipe.steps, plan.recipe.batch_size) == (48, 64, 103, 96)
        assert plan.choose and plan.architecture.readout == Readout(blocks=(0, 1, 2, 3)) and plan.eval_every == 26
    assert begun(solved(), left=1e9, budget="9h").recipe.steps == 313
    own = begun(solved(1.0, 0.8), resize=90).recipe
    assert (own.crop, own.resize, own.steps) == (67, 90, 51), "a given size is taken whatever was seen"
    own = begun(solved(1.0, 0.8), steps=7, batch_size=20, crop=32).recipe
    assert (own.crop, own.resize, own.steps, own.batch_size) == (32, 43, 7, 20)


def test_with_enough_time_a_training_for_the_closed_form_takes_the_next_size() -> None:
    """42 steps of 96 are four passes over the 1,000 images; a step at 96 px takes four times as long as at 48."""
    both = Readout(blocks=(0, 1, 2, 3), sizes=(48, 96), mirrored=True)
    wide = dataclasses.replace(solved(1.0, 0.8), view=View(size=96, readout=both))
    for closed, left, asked, crop, steps in (
        (wide, 164.0, {}, 96, 42),
        (wide, 160.0, {}, 48, 166),
        (dataclasses.replace(wide, view=View(size=96, readout=EVERY)), 164.0, {}, 96, 42),
        (solved(1.0, 0.8), 164.0, {}, 48, 170),
        (wide, 164.0, {"crop": 48}, 48, 170),
        (wide, 164.0, {"resize": 64}, 48, 170),
        (wide, 164.0, {"steps": 9}, 48, 9),
        (wide, 1e6, {"budget": "9h"}, 96, 313),
    ):
        recipe = begun(closed, left=left, **asked).recipe
        assert (recipe.crop, recipe.steps) == (crop, steps), (left, asked)


def test_where_nothing_can_be_judged_the_closed_form_is_delivered() -> None:
    plan = begun(solved(1.0, 0.8), judges=0)
    assert (plan.recipe.steps, plan.recipe.crop, plan.choose) == (0, 48, False)
    assert plan.architecture == FACTS.architecture
    assert plan.recipe.notes[-1].startswith("1000 images of 3 classes are too few to hold some out")
    closed = begun(solved(1.0, 0.8), linear="closed", budget=None)
    assert (closed.recipe.steps, closed.recipe.crop, closed.choose) == (0, 48, False)
    assert not any("too few" in note for note in closed.recipe.notes)


def test_a_budget_does_not_shrink_the_crop_below_what_the_model_was_trained_at() -> None:
    """Unless it starts from random weights, for which there is no such size; a linear classifier takes exactly that."""
    slow = dataclasses.replace(FACTS, native_size=(300, 300), speed=lambda crop, batch: 0.01, trained_at=96)
    asked = FinetuneConfig(data="photos", budget="10s")
    assert decide(asked, slow).recipe.crop == 96
    assert decide(dataclasses.replace(asked, pretrained=False), slow).recipe.crop == 48
    assert decide(FinetuneConfig(data="photos", linear="closed"), slow).recipe.crop == 96


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 8}, {"batch_size": 4}, {"learning_rate": 0.1}, {"crop": 32, "resize": 40}, {"mixup_alpha": 0.3},
        {"dropout": 0.3}, {"l2_sp": 0.3},
        {"seed": 1}, {"flip": False}, {"random_crop": False}, {"antialias": False}, {"linear": "sgd"},
    ],
)  # fmt: skip
def test_whatever_decides_the_numbers_is_among_the_facts_of_a_checkpoint(change: dict[str, Any]) -> None:
    base = FinetuneConfig(data="photos", steps=7)
    assert decide(dataclasses.replace(base, **change), FACTS).facts() != decide(base, FACTS).facts()


def test_validation_judges_by_the_mean_per_class_where_each_class_counts_the_same() -> None:
    plain, balanced = (decide(FinetuneConfig(data="photos", balance=balance), FACTS) for balance in (False, True))
    assert plain.judged_by == ("val/top1", "val/map", "val/precision_at_1")
    assert balanced.judged_by == ("val/mean_per_class", *plain.judged_by)
    assert balanced.facts() != plain.facts()


def test_where_it_is_computed_is_not_among_the_facts_of_a_checkpoint() -> None:
    plan = decide(FinetuneConfig(data="photos", steps=7), FACTS)
    # What earlier versions knew nothing of: their checkpoints go on being good.
    assert not {"dropout", "l2_sp"} & set(plan.facts()["recipe"])
    moved = dataclasses.replace(plan, device="cuda:1", micro_batch=2, eval_every=3)
    assert moved.facts() == plan.facts()
    for changed in ({"images": 31}, {"classes": 4}, {"dtype": "bfloat16"}, {"loss": "sigmoid"}, {"ema": 0.9}):
        assert dataclasses.replace(plan, **changed).facts() != plan.facts()


def test_a_plan_of_a_pretraining() -> None:
    config = PretrainConfig(
        data="photos", model="r26x1", batch_size=10, epochs=2, crop=48, crop_from=32, crop_ramp=(0.2, 0.6), eval_size=56,
        min_area=0.3, crop_style="tensorflow", norm="bn", weight_standardization=False, ema=0.5, loss="sigmoid", seed=5,
    )  # fmt: skip
    facts = PretrainFacts(
        images=100, classes=3, processes=4, device="cpu", dtype="float32", fitting=lambda share: share * 100
    )
    plan = decide_pretraining(config, facts)
    assert plan.recipe.steps == 20 and plan.eval_every == 2 and plan.input.size == 56
    assert plan.architecture == dataclasses.replace(ARCHITECTURES["r26x1"], norm="bn", weight_standardization=False)
    assert plan.micro_batch == 300, "3 of 10 images is the largest part of four processes"
    assert plan.augmentation == InceptionCrop(
        size=48, min_area=0.3, style="tensorflow", growth=Growth(start=32, steps=20, begin=0.2, end=0.6)
    )
    assert (plan.ema, plan.loss, plan.seed) == (0.5, "sigmoid", 5)
    assert dataclasses.replace(plan, processes=1).facts() == plan.facts()
    assert dataclasses.replace(plan, weights="x").facts() != plan.facts()


@pytest.mark.parametrize(
    ("section", "content", "told"),
    [
        ("resolved", {"dtype": "complex64"}, "no number format 'complex64'"),
        ("resolved", {"micro_batch": "4"}, "micro_batch: expected int, got str"),
        ("resolved", {"architecture": None}, "architecture: expected object, got null"),
        ("recipe", {"steps": 3.5}, "recipe.steps: expected int, got float"),
        ("recipe", {"schedule": "sawtooth"}, "recipe.schedule: invalid enum value 'sawtooth'"),
        ("resolved", {"micro_batch": 0}, "micro_batch: expected int >= 1"),
        ("resolved", {"eval_every": 0}, "eval_every: expected int >= 1"),
        ("resolved", {"images": -1}, "images: expected int >= 1"),
        ("resolved", {"classes": 0}, "classes: expected int >= 1"),
        ("resolved", {"seed": 2**64}, "seed: expected int"),
        ("resolved", {"ema": 1.5}, "ema: expected float <= 1"),
        ("resolved", {"device": "toaster"}, "no device 'toaster'"),
        ("resolved", {"input": {"size": 0}}, "input.size: expected int >= 1"),
        ("resolved", {"augmentation": {"resize": 0, "crop": 1}}, "augmentation.resize: expected int >= 1"),
        ("recipe", {"steps": -1}, "recipe.steps: expected int >= 0"),
        ("recipe", {"batch_size": 0}, "recipe: batch_size is 0 though steps is not"),
        ("recipe", {"crop": 10**9}, "recipe.crop: expected int <= 65536"),
        ("recipe", {"resize": 0}, "recipe.resize: expected int >= 1"),
        ("recipe", {"mixup_alpha": -1}, "recipe.mixup_alpha: expected float >= 0"),
        ("recipe", {"base_learning_rate": math.nan}, "recipe.base_learning_rate: expected float"),
        ("recipe", {"weight_decay": math.inf}, "recipe.weight_decay: expected float <= 1"),
        ("recipe", {"momentum": 2}, "recipe.momentum: expected float <= 1"),
        ("recipe", {"warmup": -1}, "recipe.warmup: expected int >= 0"),
        ("recipe", {"decays": [-1]}, "recipe.decays[0]: expected int >= 0"),
        ("environment", {"threads": 10**6}, "environment.threads: expected int <= 4096"),
        ("environment", {"threads": "two"}, "environment.threads: expected int | null, got str"),
    ],
)
def test_a_record_of_another_form_is_refused(tmp_path: Path, section: str, content: dict[str, Any], told: str) -> None:
    started(tmp_path, ASKED)
    found = json.loads((tmp_path / "config.json").read_text())
    found[section] |= content
    (tmp_path / "config.json").write_text(json.dumps(found))
    with pytest.raises(RunError) as caught:
        recall(tmp_path, "finetune", ASKED, FinetunePlan)
    assert told in str(caught.value) and "config.json" in str(caught.value) and "--out" in str(caught.value)


def test_a_budget_does_not_go_below_what_the_network_was_trained_at() -> None:
    slow = dataclasses.replace(FACTS, trained_at=96, speed=lambda crop, batch: 1e-3)
    config = FinetuneConfig(data="photos", budget="10s")
    assert decide(config, slow).recipe.crop == 96
    # Random weights were trained at no size.
    assert decide(dataclasses.replace(config, pretrained=False), slow).recipe.crop == 48
    closed = decide(FinetuneConfig(data="photos", linear="closed"), slow)
    assert closed.recipe.crop == closed.input.size == 96, "frozen features are best at the size they were trained at"
