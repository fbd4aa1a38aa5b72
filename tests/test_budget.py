"""A budget that is kept: trainings whose clock is told the time, on machines that become busier or faster."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bigtransfer import runs
from bigtransfer.catalog import Architecture, InputSpec
from bigtransfer.errors import RunError
from bigtransfer.feed.loader import FeatureLoader
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import best, clock, training
from bigtransfer.jobs.clock import Ahead, Clock
from bigtransfer.jobs.finetune import tuning
from bigtransfer.jobs.plan import Plan
from bigtransfer.train import checkpoint, loop

CLASSES, COUNT, FEATURES = 3, 5, 8
RECIPE = Recipe(steps=40, batch_size=COUNT, resize=32, crop=32, base_learning_rate=0.1, warmup=8, decays=(16, 24, 32))


class HeadPlan(Plan):
    """Of a linear classifier, whose steps take no time that would be worth mentioning."""

    def forward_flops(self, side: int) -> float | None:
        return None


class BalancedPlan(HeadPlan):
    """Of a training in which each class counts the same."""

    @property
    def judged_by(self) -> tuple[str, ...]:
        return ("val/mean_per_class", *super().judged_by)


PLAN = HeadPlan(
    recipe=RECIPE,
    architecture=Architecture(units=(1,)),
    images=30,
    classes=CLASSES,
    input=InputSpec(size=32),
    seed=4,
    eval_every=8,
    device="cpu",
    dtype="float32",
    micro_batch=COUNT,
)


def network(seed: int = 0, classes: int = CLASSES) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Linear(FEATURES, classes)


def new_state(seed: int = 0) -> loop.State:
    return loop.new_state(network(seed), RECIPE, micro_batch=COUNT)  # type: ignore[arg-type]


def loader() -> FeatureLoader:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(PLAN.images, FEATURES, generator=generator)
    labels = torch.randint(0, CLASSES, (PLAN.images,), generator=generator)
    return FeatureLoader(features, labels, batch_size=COUNT, seed=PLAN.seed)


class Machine:
    """A machine on which step number s takes `step(s)` seconds and a validation `validation` seconds."""

    def __init__(self, step: Callable[[int], float], validation: float = 0.0) -> None:
        self.time, self.step, self.validation = 1000.0, step, validation
        self.validated: list[int] = []

    def now(self) -> float:
        return self.time


def run_on(
    machine: Machine,
    folder: Path,
    *,
    seconds: float = 40.0,
    most: int = 80,
    kill_at: int | None = None,
    end: signal.Signals = signal.SIGTERM,
    plan: Plan = PLAN,
    values: Callable[[int], float] = lambda step: step / 1000,
    alike: Callable[[int], float] = lambda step: 0.5,
    watched: int = 0,
    afterwards: int = 0,
    passes: float = 1.0,
    tail: float = 0.0,
    validate: bool = True,
    checkpoint_seconds: float = 1e9,
    seed: int = 0,
) -> tuple[loop.State, training.Outcome]:
    """Train, or go on, in `folder`; the signal `end` comes during step `kill_at`."""
    run = runs.Run(folder)
    state = new_state(seed)
    budget = Clock(folder, seconds, now=machine.now)
    budget.ahead = Ahead(most=most, watched=watched, afterwards=afterwards, passes=passes, tail=tail)
    training.resume(run, state, plan)
    if (outcome := training.ended(run, state, plan, budget)) is not None:
        return state, outcome

    def forward(images: Tensor) -> Tensor:
        machine.time += machine.step(state.step)
        if state.step == kill_at:
            os.kill(os.getpid(), end)
        return state.model(images)

    def measure() -> dict[str, float]:
        machine.time += machine.validation
        machine.validated.append(state.step)
        return {"val/top1": values(state.step), "val/mean_per_class": alike(state.step), "val/nll": 1.0}

    outcome = training.train(
        run,
        state,
        loader(),
        plan,
        forward=forward,
        validate=measure if validate else None,
        checkpoint_seconds=checkpoint_seconds,
        keep_best=True,
        clock=budget,
    )
    return state, outcome


def record(folder: Path) -> dict:
    return json.loads((folder / "budget.json").read_text())


def changes(folder: Path) -> list[tuple[int, int]]:
    return [(one["step"], one["steps"]) for one in record(folder)["replanned"]]


def same_weights(one: loop.State, other: loop.State) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# --- The time


@pytest.mark.parametrize(
    ("step", "steps"),
    [
        (lambda _: 1.0, 40),  # as planned: nothing changes
        (lambda s: 1.0 if s < 10 else 2.0, 25),  # 10 s, then 15 steps of 2 s
        (lambda s: 1.0 if s < 20 else 0.5, 60),
        (lambda s: 3.0 if 6 <= s < 12 else 1.0, 28),  # 6 + 6 x 3 + 16 s
        (lambda s: 1.0 + 0.02 * s, 31),  # slowly busier
    ],
    ids=["as planned", "busier", "faster", "for a while", "slowly"],
)
def test_the_budget_is_kept(tmp_path: Path, step: Callable[[int], float], steps: int) -> None:
    machine = Machine(step)
    state, outcome = run_on(machine, tmp_path, validate=False)
    assert outcome.finished and state.step == pytest.approx(steps, abs=2)
    assert machine.time - 1000 == pytest.approx(40, abs=2)
    assert record(tmp_path)["seconds"] == pytest.approx(machine.time - 1000, abs=1e-3)
    assert bool(changes(tmp_path)) == (steps != 40)


def test_validations_are_counted(tmp_path: Path) -> None:
    machine = Machine(lambda _: 1.0, validation=1.0)
    state, _ = run_on(machine, tmp_path)
    assert machine.time - 1000 == pytest.approx(40, abs=1.5) and state.step == pytest.approx(35, abs=1)
    assert len(machine.validated) == 5, (
        "as many as planned: after 8, 16, 24, 32 of the 40 steps' progress, and at the end"
    )


def test_the_first_validation_is_foreseen(tmp_path: Path) -> None:
    """Three images of a validation cost as much as one of training."""
    machine = Machine(lambda _: 1.0, validation=2.0)
    run_on(machine, tmp_path, plan=dataclasses.replace(PLAN, eval_every=40), watched=6 * COUNT)
    assert machine.time - 1000 == pytest.approx(40, abs=1)
    assert changes(tmp_path)[0][0] < 10


def test_images_to_be_looked_at_afterwards_have_their_time(tmp_path: Path) -> None:
    def trained(folder: str, **more: Any) -> float:
        machine = Machine(lambda _: 1.0, validation=2.0)
        run_on(machine, tmp_path / folder, plan=dataclasses.replace(PLAN, eval_every=20), **more)
        return machine.time - 1000

    # Of 3 images as of one of training; then as the first validation has taken, 2 seconds for 6; never more than a quarter of all.
    assert trained("a", watched=6, afterwards=60, validate=False) == pytest.approx(40 - 60 / 15, abs=1)
    assert trained("b", watched=6, afterwards=15) == pytest.approx(40 - 5, abs=1)
    assert trained("d", watched=6, afterwards=15, passes=4.0) == pytest.approx(40 - 5 - 15 * 3 / 15, abs=1)
    assert trained("c", watched=6, afterwards=10**6) == pytest.approx(30, abs=1)


def test_validations_that_cost_too_much_are_fewer(tmp_path: Path) -> None:
    machine = Machine(lambda _: 1.0, validation=4.0)
    state, _ = run_on(machine, tmp_path, plan=dataclasses.replace(PLAN, eval_every=1))
    assert machine.time - 1000 == pytest.approx(40, abs=4)
    on_the_way = machine.validated[:-1]
    assert machine.validated[-1] == state.step and 4.0 * len(on_the_way) <= clock.VALIDATING * 40 + 4.0
    assert all(one["eval_every"] > 1 for one in record(tmp_path)["replanned"])


def test_never_more_steps_than_the_rule_and_one_at_least(tmp_path: Path) -> None:
    state, _ = run_on(Machine(lambda _: 0.01), tmp_path / "fast", most=50)
    assert state.step == 50 and changes(tmp_path / "fast")[-1][1] == 50
    assert checkpoint.steps(tmp_path / "fast") == [50], "it has ended in order, with all that belongs to a last step"
    state, _ = run_on(Machine(lambda _: 100.0), tmp_path / "slow")
    assert changes(tmp_path / "slow")[-1] == (state.step - 1, state.step) and state.step <= 5


def test_the_rates_follow_the_progress(tmp_path: Path) -> None:
    run_on(Machine(lambda s: 1.0 if s < 10 else 2.0), tmp_path, validate=False)
    rates = [line["lr"] for line in runs.Run(tmp_path).metrics() if "loss" in line]
    assert rates[:8] == [RECIPE.learning_rate(step) for step in range(8)]
    assert rates[-1] == pytest.approx(0.0001), "the last decay is reached although there are fewer steps"
    shares = [sum(rate == pytest.approx(0.1 * 0.1**k) for rate in rates[8:]) for k in range(4)]
    assert min(shares) >= 3, "and each stair gets its part of the time"


def test_what_came_before_and_what_comes_after_the_training_counts(tmp_path: Path) -> None:
    time = {"now": 100.0, "worked": 7.0}
    budget = Clock(tmp_path, 60.0, reserve=2.0, since=80.0, now=lambda: time["now"], worked=lambda: time["worked"])
    assert (budget.spent, budget.left) == (20.0, 38.0)
    # The reserve is longer on a machine that is busy, as far as that can be told: of 10 s the process has had 5, then 2 of 12.
    time.update(now=100.4, worked=7.1)
    assert budget.left == pytest.approx(37.6)
    time.update(now=110.0, worked=12.0)
    assert budget.left == pytest.approx(60 - 30 - 4)
    time.update(now=112.0, worked=9.0)
    assert budget.left == pytest.approx(60 - 32 - 6), "a tenth of all at most"
    time.update(now=112.0, worked=60.0)
    assert budget.left == pytest.approx(60 - 32 - 2), "of several threads"


# --- Interruptions


def test_an_interrupted_run_obeys_what_is_on_record(tmp_path: Path) -> None:
    busy = Machine(lambda s: 1.0 if s < 6 else 2.0 if s < 20 else 0.7)
    run_on(busy, tmp_path / "whole")
    whole = changes(tmp_path / "whole")
    assert len(whole) >= 3
    # Stopped between the first two decisions; the third is then on record as if it had gone on and been killed without a farewell.
    run_on(busy, tmp_path / "run", kill_at=whole[0][0] - 1)
    assert changes(tmp_path / "run") == whole[:1]
    (tmp_path / "run" / "budget.json").write_bytes((tmp_path / "whole" / "budget.json").read_bytes())
    run_on(Machine(lambda _: 0.3), tmp_path / "run", seed=5)  # another machine
    assert changes(tmp_path / "run")[: len(whole)] == whole

    def decided(folder: Path) -> list[tuple[float, float]]:
        lines = [line for line in runs.Run(folder).metrics() if "loss" in line]
        return [(line["loss"], line["lr"]) for line in lines[: whole[-1][0]]]

    assert decided(tmp_path / "run") == decided(tmp_path / "whole")


def test_a_record_is_obeyed_whatever_the_clock(tmp_path: Path) -> None:
    """The same record on machines of any speed, interrupted or not, ends with the same weights, rates and validations."""
    told = [
        {"step": 5, "steps": 30, "eval_every": 8, "seconds": 7.0, "reason": "pace"},
        {"step": 11, "steps": 24, "eval_every": 16, "seconds": 20.0, "reason": "pace"},
        {"step": 17, "steps": 21, "eval_every": 16, "seconds": 30.0, "reason": "pace"},
        {"step": 20, "steps": 20, "eval_every": 16, "seconds": 33.0, "reason": "learnt"},
    ]
    states, logs = [], []
    for name, speeds, kills in (("a", (1.0,), ()), ("b", (3.0, 0.1, 1.0), (8, 17)), ("c", (1.0, 1.0), (19,))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "budget.json").write_text(json.dumps({"seconds": 0.0, "replanned": told}))
        for number, speed in enumerate(speeds):
            kill = kills[number] if number < len(kills) else None
            state, outcome = run_on(Machine(lambda _, speed=speed: speed), folder, kill_at=kill, seed=number)
            assert outcome.finished == (kill is None or kill == 19)
        states.append(state)
        logs.append([{k: v for k, v in line.items() if k not in training.CLOCK} for line in runs.Run(folder).metrics()])
        assert record(folder)["replanned"] == told
    assert [state.step for state in states] == [20, 20, 20]
    assert same_weights(states[0], states[1]) and same_weights(states[0], states[2])
    assert logs[0] == logs[1] == logs[2]
    assert [line["step"] + 1 for line in logs[0] if "val/top1" in line][:1] == [8], (
        "the first beyond 8 of 40: 5 + 3 x 35 / 25"
    )


def test_beyond_the_record_the_clock_decides(tmp_path: Path) -> None:
    tmp_path.joinpath("budget.json").write_text(
        json.dumps(
            {"seconds": 0, "replanned": [{"step": 20, "steps": 40, "eval_every": 8, "seconds": 9, "reason": "pace"}]}
        )
    )
    machine = Machine(lambda _: 1.25)
    state, _ = run_on(machine, tmp_path, validate=False)
    assert [step for step, _ in changes(tmp_path)][:2] == [20, 21]
    assert machine.time - 1000 == pytest.approx(40, abs=2) and state.step == pytest.approx(32, abs=1)


def test_the_time_of_earlier_starts_counts(tmp_path: Path) -> None:
    first = Machine(lambda _: 1.0)
    run_on(first, tmp_path, kill_at=19, validate=False)
    assert record(tmp_path)["seconds"] == 20.0
    second = Machine(lambda _: 2.0)
    second.time = 99_999.0  # the time in which no process was alive does not
    state, _ = run_on(second, tmp_path, validate=False)
    assert second.time - 99_999 == pytest.approx(20, abs=2) and state.step == pytest.approx(30, abs=1)


def step(**changed: object) -> dict:
    return {"step": 5, "steps": 30, "eval_every": 8, "seconds": 7.0, "reason": "pace", **changed}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "expected object, got array"),
        ({"seconds": -1}, "seconds: expected float >= 0"),
        ({"seconds": "1"}, "seconds: expected float, got str"),
        ({"replanned": [step(steps=None)]}, r"replanned\[0\].steps: expected int, got null"),
        ({"replanned": [step(), step(step=0)]}, r"replanned\[1\].step: expected int >= 1"),
        ({"replanned": [step(eval_every=0)]}, r"replanned\[0\].eval_every: expected int >= 1"),
        ({"replanned": [step(reason="<b>")]}, r"replanned\[0\].reason: invalid enum value"),
        ({"replanned": [step(), step()]}, r"replanned\[1\]: \(5, 30\) cannot follow 5 of 30 steps"),
        ({"replanned": [step(steps=4)]}, r"replanned\[0\]: \(5, 4\) cannot follow 0 of 40 steps"),
        ({"replanned": [step(step=40)]}, r"replanned\[0\]: \(40, 30\) cannot follow"),
        ({"replanned": [step(steps=10**9)]}, r"replanned\[0\]: 1,000,000,000 steps are more than the 80"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: object, said: str) -> None:
    (tmp_path / "budget.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RunError, match=f"budget.json.*{said}"):
        run_on(Machine(lambda _: 1.0), tmp_path)


# --- The best step


def test_the_weights_of_the_best_validation_are_kept(tmp_path: Path) -> None:
    scores = {8: 0.5, 16: 0.75, 24: 0.75, 32: 0.625, 40: 0.7}
    state, outcome = run_on(Machine(lambda _: 1.0), tmp_path, values=lambda step: scores[step])
    numbers = {"val/top1": 0.75, "val/mean_per_class": 0.5, "val/nll": 1.0}
    assert outcome.best == best.Best(step=24, numbers=numbers), "of equals the later"
    assert best.read(tmp_path) == outcome.best
    # The same steps without a clock, stopped there.
    other = new_state()
    stream = loader().batches(0, 24)
    for _ in loop.steps(other, stream, RECIPE, seed=4, device=torch.device("cpu"), dtype=torch.float32):
        pass
    expected = other.model.state_dict()
    model = network(seed=3)
    best.load(tmp_path, model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert not same_weights(state, other)
    best.remove(tmp_path)
    assert best.read(tmp_path) is None


def test_a_kill_without_a_farewell_before_the_first_checkpoint(tmp_path: Path) -> None:
    """The steps are taken again, in the time that is left by what is on record; nothing of the first ones stays in the log."""
    program = (
        "import signal, sys; from pathlib import Path; from tests.test_budget import Machine, run_on; "
        "run_on(Machine(lambda _: 1.0), Path(sys.argv[1]), kill_at=25, end=signal.SIGKILL, validate=False)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    taken = record(tmp_path)["seconds"]
    assert 20 <= taken <= 26 and not checkpoint.exists(tmp_path)
    machine = Machine(lambda _: 1.0)
    state, outcome = run_on(machine, tmp_path, validate=False)
    assert outcome.finished and taken + machine.time - 1000 == pytest.approx(40, abs=2)
    assert record(tmp_path)["seconds"] == pytest.approx(taken + machine.time - 1000, abs=1e-3)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == list(range(state.step))


@pytest.mark.parametrize("kill_at", [10, 17, 26, 38])
def test_the_best_survives_an_interruption(tmp_path: Path, kill_at: int) -> None:
    scores = {8: 0.5, 16: 0.75, 24: 0.7, 32: 0.625, 40: 0.7}
    state, whole = run_on(Machine(lambda _: 1.0), tmp_path / "whole", values=lambda step: scores[step])
    folder = tmp_path / "run"
    run_on(Machine(lambda _: 1.0), folder, values=lambda step: scores[step], kill_at=kill_at)
    again, outcome = run_on(Machine(lambda _: 1.0), folder, values=lambda step: scores[step], seed=7)
    assert outcome.best == whole.best and outcome.best is not None and outcome.best.step == 16
    assert (folder / best.FILE).read_bytes() == (tmp_path / "whole" / best.FILE).read_bytes()
    assert same_weights(again, state)


def test_the_best_of_several_labels_is_by_mean_average_precision() -> None:
    named = PLAN.judged_by
    assert clock.goodness({"val/map": 0.5, "val/micro_f1": 0.9, "val/precision_at_1": 0.8}, named) == 0.5
    assert clock.goodness({"val/precision_at_1": 0.8, "val/mean_per_class": 0.9}, named) == 0.8
    assert clock.goodness({"val/top1": math.nan, "probe/top1": 1.0}, named) is None


BALANCED = BalancedPlan(**{field.name: getattr(PLAN, field.name) for field in dataclasses.fields(PLAN)})


@pytest.mark.parametrize("kill_at", [None, 17, 34])
def test_the_best_where_each_class_counts_the_same(tmp_path: Path, kill_at: int | None) -> None:
    """The mean per class decides, not the share of all images, which a large class can raise alone."""
    shares = {8: 0.5, 16: 0.6, 24: 0.7, 32: 0.8, 40: 0.9}
    alike = {8: 0.5, 16: 0.75, 24: 0.7, 32: 0.625, 40: 0.7}
    for kill in [kill_at, None][kill_at is None :]:
        _, outcome = run_on(
            Machine(lambda _: 1.0), tmp_path, plan=BALANCED, values=lambda step: shares[step],
            alike=lambda step: alike[step], kill_at=kill,
        )  # fmt: skip
    assert outcome.finished and outcome.best is not None and outcome.best.step == 16


def test_a_training_that_has_ended_says_so_again(tmp_path: Path) -> None:
    _, outcome = run_on(Machine(lambda s: 1.0 if s < 10 else 2.0), tmp_path)
    state, again = run_on(Machine(lambda _: 0.0), tmp_path, seed=1)
    assert again == outcome and state.step < 40 and checkpoint.steps(tmp_path) == [state.step]


@pytest.mark.parametrize("content", [b"", b"no weights", b'{"a": 1}' * 9])
def test_best_weights_that_cannot_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / best.FILE).write_bytes(content)
    with pytest.raises(RunError, match=r"best.safetensors, cannot be read: .*Remove the file"):
        run_on(Machine(lambda _: 1.0), tmp_path)


def test_best_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    run_on(Machine(lambda _: 1.0), tmp_path)
    other = network(classes=4)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(RunError, match="of another network"):
        best.load(tmp_path, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


# --- Nothing left to learn


@pytest.fixture
def learnt_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training loss counts as one of images that are learnt."""
    monkeypatch.setattr(clock, "LEARNT", 1e9)


@pytest.mark.usefixtures("learnt_at_once")
@pytest.mark.parametrize("kill_at", [None, 11, 18])
def test_where_nothing_is_left_to_learn_the_rest_is_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kill_at: int | None
) -> None:
    scores = {8: 0.75, 16: 0.75, 24: 0.5, 32: 0.9, 40: 0.9}
    machine = Machine(lambda _: 1.0)
    if kill_at is not None:
        run_on(machine, tmp_path, values=lambda step: scores[step], kill_at=kill_at)
    state, outcome = run_on(machine, tmp_path, values=lambda step: scores[step])
    assert state.step == 24 and outcome.finished and outcome.best is not None and outcome.best.step == 16
    (decision,) = record(tmp_path)["replanned"]
    assert (decision["step"], decision["steps"], decision["reason"]) == (24, 24, "learnt")
    assert "step 24: nothing is left to learn" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path) == [24]


@pytest.mark.usefixtures("learnt_at_once")
def test_as_long_as_validations_improve_it_goes_on(tmp_path: Path) -> None:
    scores = {8: 0.5, 16: 0.5, 24: 0.6, 32: 0.6, 40: 0.5}
    state, _ = run_on(Machine(lambda _: 1.0), tmp_path, values=lambda step: scores[step])
    assert state.step == 40


@pytest.mark.usefixtures("learnt_at_once")
@pytest.mark.parametrize("kill_at", [None, 20])
def test_it_ends_where_the_mean_per_class_does_not_improve(tmp_path: Path, kill_at: int | None) -> None:
    """With --balance; and goes on where that alone does. Also where the validations are of an earlier start."""
    for name, falling, steps in (("a", True, 24), ("b", False, 40)):
        folder = tmp_path / name
        for kill in [kill_at, None][kill_at is None :]:
            state, _ = run_on(
                Machine(lambda _: 1.0), folder, plan=BALANCED, kill_at=kill,
                values=lambda step, falling=falling: step / 100 if falling else 0.5,
                alike=lambda step, falling=falling: 0.5 if falling else step / 100,
            )  # fmt: skip
        assert state.step == steps


def test_what_a_training_leaves_room_for_is_what_was_measured(tmp_path: Path) -> None:
    """By the plan, and by the images that will be looked at: those of the test, where there are none the ones held out."""
    held = [types.SimpleNamespace(test=test, val=range(7)) for test in (range(40), None)]
    recipe = types.SimpleNamespace(steps=30, batch_size=8)
    plan: Any = types.SimpleNamespace(choose=True, images=100, recipe=recipe, tail=2.5, again=1.5)
    found = [tuning._ahead(cast(Any, parts), plan, None, 5, Architecture(units=(1, 1)), "code") for parts in held]
    assert found[0].most > 30
    assert found == [
        Ahead(most=found[0].most, watched=5, afterwards=count, passes=1.0, tail=2.5, again=1.5) for count in (40, 7)
    ]


def test_as_long_as_there_is_something_to_learn_it_goes_on(tmp_path: Path) -> None:
    state, _ = run_on(Machine(lambda _: 1.0), tmp_path, values=lambda _: 0.5)
    assert state.step == 40


def test_what_counts_as_learnt() -> None:
    for loss, ends in ((0.9, True), (1.1, False)):  # in hundredths of log(classes)
        course = clock.Course(PLAN, 0)
        course._losses = [0.01 * loss * math.log(CLASSES)] * 4
        for _ in range(3):
            course._losses = course._losses or [0.01 * loss * math.log(CLASSES)] * 4
            course._learnt_by({"val/top1": 0.5})
        assert course._nothing_left() is ends
