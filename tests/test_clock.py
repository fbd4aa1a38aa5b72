"""When a clock changes a training's plan, and by how much: courses that are driven without a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.catalog import Architecture, InputSpec
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs.clock import Ahead, Clock, Course, goodness
from bigtransfer.jobs.plan import Plan


def plan(steps: int, eval_every: int | None = None) -> Plan:
    return Plan(
        recipe=Recipe(steps=steps, batch_size=6, resize=32, crop=32),
        architecture=Architecture(units=(1,)),
        images=30,
        classes=3,
        input=InputSpec(size=32),
        seed=0,
        eval_every=eval_every or 10 * steps,
        device="cpu",
        dtype="float32",
        micro_batch=6,
    )


def driven(
    folder: Path,
    steps: int,
    step: Callable[[int], float],
    *,
    budget: float | None = None,
    eval_every: int | None = None,
    validation: Callable[[int], float] = lambda _: 0.0,
    values: Callable[[int], float] | None = None,
    losses: Callable[[int], float] = lambda _: 1.0,
    start: int = 0,
    log: Any = (),
    **options: Any,
) -> tuple[int, list[tuple[int, int]], float, list[int]]:
    """A training of which step s (from 1) takes `step(s)` seconds: steps taken, changes of the plan, seconds, steps of validations."""
    time = [0.0]
    clock = Clock(folder, budget or float(steps), now=lambda: time[0])
    clock.ahead = Ahead(**{"most": 10 * steps, **options})
    course = Course(plan(steps, eval_every), start, clock, log)
    taken, validated = start, []
    while True:
        taken += 1
        time[0] += step(taken)
        course.stepped(losses(taken))
        if eval_every and course.validates(taken):
            time[0] += validation(taken)
            validated.append(taken)
            course.validated({"val/top1": taken / 1000 if values is None else values(taken)})
        course.decide(taken)
        time[0] += 0.0
        if taken == course.steps:
            return taken, [(one.step, one.steps) for one in clock.replanned], time[0], validated
        assert taken < 20 * steps
        course.go_on()


@pytest.mark.parametrize(("steps", "first"), [(40, 3), (100, 5), (400, 10)])
def test_the_first_comparison_comes_early(tmp_path: Path, steps: int, first: int) -> None:
    _, changes, _, _ = driven(tmp_path, steps, lambda _: 2.0)
    assert changes[0] == (first, first + (steps - 2 * first) // 2)


def test_comparisons_come_at_their_distance(tmp_path: Path) -> None:
    """After 10, 30, 50, 70 of 400 steps: of those since step 51 the comparison after 70 learns, at the mean pace of the last 20."""
    _, changes, _, _ = driven(tmp_path, 400, lambda s: 1.0 if s <= 50 else 2.0)
    assert changes[0] == (70, 70 + (400 - 50 - 40) // 2)


def test_small_misses_change_nothing(tmp_path: Path) -> None:
    """Of less than a twentieth of the steps to come: 16 are more than that from the comparison after 90 steps on, 30 at once."""
    assert driven(tmp_path / "a", 400, lambda _: 1.04)[1][0] == (90, 384)
    assert driven(tmp_path / "b", 400, lambda _: 1.08)[1][0] == (10, 370)
    assert driven(tmp_path / "c", 12, lambda _: 1.08, budget=12.0)[1] == [], "a single step of few"


def test_what_is_spent_is_on_record_also_where_nothing_changes(tmp_path: Path) -> None:
    tmp_path.joinpath("budget.json").write_text(json.dumps({"seconds": 0.5}))
    driven(tmp_path, 40, lambda _: 1.0, budget=40.5)
    found = json.loads((tmp_path / "budget.json").read_text())
    assert (found["seconds"], found["replanned"]) == (39.5, []), "at the last comparison, after 39 steps"


def test_the_first_step_of_a_process_says_nothing_of_the_pace(tmp_path: Path) -> None:
    assert driven(tmp_path, 40, lambda s: 5.0 if s == 1 else 1.0)[1][0] == (3, 36)
    clock = Clock(tmp_path, 40.0, now=lambda: 0.0)
    clock.ahead = Ahead(most=99)
    course = Course(plan(40, 1), 9, clock)
    course.stepped(1.0)
    course.validated({})  # a validation after the only step there is yet


@pytest.mark.parametrize(("steps", "count"), [(40, 10), (400, 20)])
def test_the_pace_is_that_of_the_last_steps(tmp_path: Path, steps: int, count: int) -> None:
    """Of ten at least, of all between two comparisons where those are more; of no earlier ones."""
    wild, check = (60, 70) if steps == 400 else (15, 15)
    changes = driven(tmp_path, steps, lambda s: 10.0 if s == wild else 1.0)[1]
    assert changes[0] == (check, check + int((steps - (check - 1 + 10)) / ((count - 1 + 10) / count)))


@pytest.mark.parametrize("slow", [3.0, 10.0, 30.0])
def test_a_machine_that_becomes_much_busier_is_not_waited_for(tmp_path: Path, slow: float) -> None:
    """The third slow step of three changes the plan; the next comparison would come 18 steps later."""
    _, changes, time, _ = driven(tmp_path, 400, lambda s: 1.0 if s <= 91 else slow)
    assert changes[0] == (94, 94 + int((400 - 91 - 3 * slow) / slow))
    assert time == pytest.approx(400, abs=slow)
    assert [step for step, _ in changes][1:2] != [95], "nor at every step from then on"


def test_two_slow_steps_are_no_alarm_nor_are_three_that_are_not_very_slow(tmp_path: Path) -> None:
    assert driven(tmp_path / "a", 400, lambda s: 20.0 if s in (62, 63, 65, 66) else 1.0)[1][0][0] == 70
    assert driven(tmp_path / "b", 400, lambda s: 2.0 if s > 60 else 1.0)[1][0][0] == 70
    assert driven(tmp_path / "c", 400, lambda s: 3.0 if s > 60 else 1.0)[1][0][0] == 63


def test_the_first_step_of_a_process_is_no_alarm(tmp_path: Path) -> None:
    """It may compile; with the two after it there are three."""
    assert driven(tmp_path / "a", 400, lambda s: 60.0 if s == 1 else 4.0 if s <= 3 else 1.0)[1][0][0] == 10


def test_what_comes_afterwards_as_it_was_measured_before(tmp_path: Path) -> None:
    """At the pace of now; until a validation says more, and never more than a quarter of all."""

    def trained(name: str, step: float = 1.0, **options: Any) -> float:
        return driven(tmp_path / name, 100, lambda _: step, budget=100.0, **options)[2]

    assert trained("a") == 100
    assert trained("b", tail=10.0) == pytest.approx(90, abs=1)
    assert trained("c", tail=10.0, step=2.0) == pytest.approx(80, abs=2)
    assert trained("d", tail=80.0) == pytest.approx(75, abs=1)
    # 60 images, each a third of one of the six of a step; as measured, half of that.
    more = {"watched": 6, "afterwards": 60}
    assert trained("e", **more) == pytest.approx(100 - 60 / 18, abs=1)
    assert trained("f", tail=8.0, **more) == pytest.approx(92, abs=1) == trained("g", tail=8.0)
    cost = {"eval_every": 20, "validation": lambda _: 1.0}  # a sixth of a step each
    assert trained("h", tail=8.0, **more, **cost) == pytest.approx(90, abs=1)
    assert trained("i", tail=15.0, **more, **cost) == pytest.approx(85, abs=1)


def test_steps_that_take_no_time(tmp_path: Path) -> None:
    assert driven(tmp_path, 40, lambda _: 0.0, most=70)[0] == 70


def test_after_the_last_step_nothing_is_decided(tmp_path: Path) -> None:
    """However long it took."""
    clock = Clock(tmp_path, 40.0, now=lambda: 0.0)
    clock.ahead = Ahead(most=99)
    course = Course(plan(40), 39, clock)
    course.stepped(1.0)
    assert course.decide(40) is None and clock.replanned == []


def test_a_budget_that_is_gone_ends_the_training(tmp_path: Path) -> None:
    """With its last validation, however much of the time that takes."""
    taken, changes, _, validated = driven(
        tmp_path, 40, lambda _: 30.0, eval_every=1, validation=lambda _: 50.0, watched=6, afterwards=50
    )
    assert taken <= 3 and changes[-1][1] == taken == validated[-1]


def test_a_validation_is_an_occasion_to_compare_and_no_more_than_one(tmp_path: Path) -> None:
    """After step 12 of 400 that are slower from the next on: not before the comparison after 32."""
    _, changes, _, _ = driven(tmp_path, 400, lambda s: 1.0 if s <= 12 else 2.0, eval_every=12)
    assert changes[0][0] == 24, "the next validation"
    _, changes, _, validated = driven(tmp_path / "b", 400, lambda s: 1.0 if s <= 50 else 2.0, eval_every=50)
    assert validated[0] == 50 and changes[0][0] == 70


def test_time_of_a_validation_is_not_that_of_a_step(tmp_path: Path) -> None:
    """After 40 steps and 20 s: 340 s are left, of which validations on the way may take 51, so two of them; with the last one 60."""
    _, changes, time, validated = driven(
        tmp_path, 400, lambda _: 1.0, eval_every=40, validation=lambda _: 20.0, budget=400.0
    )
    assert changes[0] == (40, 40 + 340 - 60) and 60 not in [step for step, _ in changes]
    assert time == pytest.approx(400, abs=10) and len(validated) < 10


def test_what_is_learnt_is_judged_by_the_losses_since_the_last_validation(tmp_path: Path) -> None:
    same = {"eval_every": 10, "values": lambda _: 0.5}
    assert driven(tmp_path / "a", 100, lambda _: 1.0, losses=lambda s: 5.0 if s <= 10 else 0.0, **same)[0] == 30
    assert driven(tmp_path / "b", 100, lambda _: 1.0, losses=lambda s: 1.0, **same)[0] == 100
    assert driven(tmp_path / "c", 100, lambda _: 1.0, losses=lambda s: 0.0, values=lambda s: s, eval_every=10)[0] == 100


def test_validations_improve_where_one_of_the_last_two_is_the_best_yet(tmp_path: Path) -> None:
    def ended(*values: float) -> int:
        shown = {10 * (number + 1): value for number, value in enumerate(values)}
        place = tmp_path / "-".join(map(str, values))
        return driven(
            place, 60, lambda _: 1.0, losses=lambda _: 0.0, eval_every=10, values=lambda s: shown.get(s, 0.0)
        )[0]

    assert ended(0.5, 0.6, 0.4, 0.4) == 40
    assert ended(0.3, 0.6, 0.5, 0.5) == 40
    assert ended(0.5, 0.5, 0.5) == 30


def test_a_run_that_goes_on_remembers_losses_and_validations(tmp_path: Path) -> None:
    def after(name: str, *log: dict[str, float]) -> int:
        return driven(
            tmp_path / name, 100, lambda _: 1.0, budget=85.0, start=15, log=log, eval_every=10,
            values=lambda _: 0.5, losses=lambda _: 0.0,
        )[0]  # fmt: skip

    assert after("a", {"loss": 0.0}, {"val/top1": 0.5}) == 30
    assert after("b", {"loss": 0.0}) == 40, "three validations of its own"
    assert after("c", {"loss": 0.0}, {"val/top1": 0.5}, {"val/top1": 0.5}) == 20
    assert after("d", {"val/top1": 0.5}, {"val/top1": 0.5}, {"loss": 9.0}) == 30, "the loss of before counts until 20"


def test_a_record_is_obeyed_whole(tmp_path: Path) -> None:
    told = [
        {"step": 3, "steps": 30, "eval_every": 5, "seconds": 1, "reason": "pace"},
        {"step": 5, "steps": 20, "eval_every": 20, "seconds": 2, "reason": "pace"},
    ]
    (tmp_path / "budget.json").write_text(json.dumps({"seconds": 3.0, "replanned": told}))
    clock = Clock(tmp_path, 1000.0, now=lambda: 0.0)
    clock.ahead = Ahead(most=99)
    course = Course(plan(40, 10), 7, clock)
    assert (course.steps, course.eval_every) == (20, 20)
    assert [step for step in range(8, 21) if course.validates(step)][-1] == 20
    course = Course(plan(40, 10), 2, clock)
    assert (course.steps, course.eval_every) == (40, 10)
    assert course.decide(3) is not None and (course.steps, course.eval_every) == (30, 5)
    assert clock.spent == 3.0


def test_seconds_are_on_record_to_the_millisecond(tmp_path: Path) -> None:
    driven(tmp_path, 40, lambda _: 2.00014)
    found = json.loads((tmp_path / "budget.json").read_text())
    assert found["replanned"][0]["seconds"] == 6.0 and found["seconds"] == 36.003


def test_what_is_no_number_judges_nothing() -> None:
    named = ("val/top1", "val/map")
    assert goodness({"val/top1": float("nan"), "val/map": 0.5}, named) == 0.5
    assert goodness({"val/top1": float("inf")}, named) is None and goodness({"val/map": "0.5"}, named) is None


def test_where_the_time_went_is_told_where_there_was_too_little(tmp_path: Path) -> None:
    time = [0.0]

    def begun(since: float) -> Clock:
        return Clock(tmp_path, 10.0, since=since, now=lambda: time[0])

    clock = begun(-3.0)
    time[0] = 1.0
    clock.enter("for the closed form")
    time[0] = 3.0
    assert clock.stages == {"to start and look through the images": 4.0, "for the closed form": 2.0}
    clock.note()
    time[0] = 100.0
    clock = begun(99.5)
    clock.enter("to measure it")
    time[0] = 103.9
    assert clock.spent == pytest.approx(10.4)
    clock.note()
    assert begun(103.9).overrun() == "", "not worth the words"
    time[0] = 106.0
    assert clock.stages == pytest.approx(
        {"to start and look through the images": 4.5, "for the closed form": 2.0, "to measure it": 6.0}
    )
    told = clock.overrun()
    assert told.startswith("The budget of 10 s was not kept: 12.5 s were taken until here")
    assert "(4.5 s to start and look through the images, 2.0 s for the closed form, 6.0 s to measure it)" in told
    time[0] = 107.0
    assert clock.overrun() == told, "the same for all who tell it"
    assert Clock(tmp_path, 60.0).slight == 3.0 and begun(0).slight == 1.0
