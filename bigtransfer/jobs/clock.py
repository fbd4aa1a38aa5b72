"""A budget that is kept: the time that a run has taken over all its starts, and how many steps the rest of it leaves room for.

What is decided on the way depends on the machine, and therefore goes into the run's budget.json before it is obeyed: a run that is
interrupted and goes on repeats it, and so repeats the numbers of an uninterrupted one that had decided the same.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from bigtransfer import runs
from bigtransfer.errors import RunError
from bigtransfer.hyperrule import Schedule
from bigtransfer.jobs.plan import Plan
from bigtransfer.runs import Replanned

CHECKS = 20
"""How often in a training its pace is compared with the time that is left; validations are further occasions."""

FIRST_CHECK = 10
"""Steps before the first comparison, if that is less than the distance of the others."""

RECENT = 10
"""The pace is the mean of at least so many steps: what a busy machine does in one or two says little."""

TOLERANCE = 0.05
"""Share of the steps to come by which they may miss the time that is left before they are counted anew."""

VALIDATING = 0.15
"""Share of the time left that validations on the way may take; beyond, there are fewer of them. The last one is always made."""

LEARNT = 0.01
"""Nothing is left to learn where the mean training loss is below this share of ignorance's, log(classes), ..."""

PATIENCE = 2
"""... and so many validations in a row have not improved on the best."""

FORWARD = 1 / 3
"""Cost of an image that is only looked at as a share of a training image's, until a validation has been timed."""

AFTERWARDS = 0.25
"""Share of the budget that is kept at most for images to be looked at after the training: there may be any number of them."""

RESERVED = 0.1
"""Share of the budget that is kept at most for what comes after the last image."""

TELLING = 0.5
"""Seconds of processor time from which on they say how busy the machine is."""

SLIGHT, SLIGHT_SHARE = 1.0, 0.05
"""What takes no longer than so many seconds, or than this share of the budget if that is more, is done even where the time is up: to leave
it out would not be worth the words."""

OVER = 1.05
"""Times the budget from which on it is said not to have been kept."""

STARTING = "to start and look through the images"
"""What a run does first, in the account of its time."""

ALARM = 3
"""Steps in a row ..."""

BEHIND = 0.4
"""... at whose pace less than this share of the steps to come would fit: the plan is changed at once, not at the next comparison."""


def goodness(numbers: Mapping[str, object], judged_by: Iterable[str]) -> float | None:
    """The one number of a validation by which models are compared (`Plan.judged_by`), higher is better; None if it has none."""
    values = (numbers.get(name) for name in judged_by)
    return next((value for value in values if isinstance(value, int | float) and math.isfinite(value)), None)


Logged = TypedDict(
    "Logged",
    {"loss": float, "val/mean_per_class": float, "val/top1": float, "val/map": float, "val/precision_at_1": float},
    total=False,
)
"""A line of metrics.jsonl, as far as it tells whether there is something left to learn."""


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What a training that keeps a budget is to leave room for, and when it has had enough."""

    most: int
    """Steps that are never exceeded, however fast the machine."""
    watched: int = 0
    """Images of a validation, each in one forward pass."""
    afterwards: int = 0
    """Images that will be looked at after the training, ..."""
    passes: float = 1.0
    """... each in so many forward passes of the network."""
    tail: float = 0.0
    """What that costs in steps, as far as it was measured before the training; 0: it was not."""
    again: float = 0.0
    """What is done before that and cannot be left out, in steps."""


class Clock:
    """The time that a run may take, counted while its processes live, over all of them."""

    def __init__(
        self,
        folder: Path,
        seconds: float,
        *,
        reserve: float = 0.0,
        always: str = "",
        since: float | None = None,
        now: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.process_time,
    ) -> None:
        """seconds: what the run may take in all. reserve: what comes after its last image, in seconds of a machine that does nothing else.
        always: what is done however little of the time is left, as a sentence begins. since: when this process began with the run, on the
        clock of `now`; this moment unless given. worked: the processor time of this process. RunError if the run's budget.json has not
        its form.
        """
        self._path, self.seconds, self._reserve, self._now, self._worked = (
            folder / runs.BUDGET,
            seconds,
            reserve,
            now,
            worked,
        )
        self._always = always
        self._made = now(), worked()
        self.ahead: Ahead | None = None
        """Of the training, once it is known."""
        self._since = now() if since is None else since
        record = runs.read_budget(folder)
        self._before = record.seconds
        self._stages, self._stage, self._entered = dict(record.stages), STARTING, self._since
        self._overrun: str | None = None
        self.replanned = list(record.replanned)
        """What has been decided, in the order of the steps."""

    def now(self) -> float:
        return self._now()

    @property
    def spent(self) -> float:
        """Seconds that the run has taken so far."""
        return self._before + self._now() - self._since

    def enter(self, stage: str) -> None:
        """What the run does from now on, for the account of where the time went."""
        self._stages, self._stage, self._entered = self.stages, stage, self._now()

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by what the run did in them, over all its starts, in the order in which it began with each."""
        return {**self._stages, self._stage: self._stages.get(self._stage, 0.0) + self._now() - self._entered}

    def overrun(self) -> str:
        """A sentence if more time has been taken than was asked for, and what for; else empty. As it is when first asked for, so that all
        who tell it tell the same."""
        if self._overrun is None:
            self._overrun = self._account() if self.spent > OVER * self.seconds else ""
        return self._overrun

    def _account(self) -> str:
        parts = ", ".join(f"{taken:.1f} s {what}" for what, taken in self.stages.items() if taken >= 0.05)
        why = f"{self._always} whatever the budget, and this machine" if self._always else "This machine"
        return (
            f"The budget of {self.seconds:g} s was not kept: {self.spent:.1f} s were taken until here ({parts}). "
            f"{why}, as busy as it is now, needed that long."
        )

    @property
    def left(self) -> float:
        """Seconds until the last image must have been looked at; negative if too many are gone."""
        return self.seconds - self.spent - min(self._reserve * self._busy, RESERVED * self.seconds)

    @property
    def slight(self) -> float:
        """Seconds that are taken even where the time is up."""
        return max(SLIGHT, SLIGHT_SHARE * self.seconds)

    @property
    def _busy(self) -> float:
        """How many times as long as on a machine of its own this process takes, 1 or more: time passed over processor time."""
        passed, worked = self._now() - self._made[0], self._worked() - self._made[1]
        return max(1.0, passed / worked) if worked > TELLING else 1.0

    def note(self) -> None:
        """Write down what has been spent and decided, so that it counts when the run goes on after an interruption."""
        runs.write_budget(self._path.parent, self.spent, self.replanned, self.stages)

    def schedule(self, plan: Plan) -> Schedule:
        """The plan's schedule with all that is on record; RunError, which names the field, if that cannot be."""
        schedule = Schedule(plan.recipe)
        for number, one in enumerate(self.replanned):
            try:
                schedule = schedule.changed(one.step, one.steps)
                if self.ahead is not None and one.steps > self.ahead.most:
                    raise ValueError(
                        f"{one.steps:,} steps are more than the {self.ahead.most:,} that this run may take"
                    )
            except ValueError as error:
                raise RunError(
                    f"{self._path}: replanned[{number}]: {error}. Choose another --out, or remove the folder to start anew."
                ) from error
        return schedule


class Course:
    """Where a training stands between its steps: how many there are, when to validate, and, by a clock, whether that is to change."""

    def __init__(self, plan: Plan, step: int, clock: Clock | None = None, log: Iterable[Logged] = ()) -> None:
        """step: optimizer steps taken. clock: with what is `Clock.ahead`. log: the lines that the steps left in metrics.jsonl."""
        self.schedule, self.eval_every = Schedule(plan.recipe), plan.eval_every
        self._plan, self._clock = plan, clock
        self._ahead: deque[Replanned] = deque(clock.replanned if clock else ())
        if clock is not None:
            clock.schedule(plan)  # refuses what cannot be before anything of it is obeyed
        self._obey(step)
        self._check = step + min(FIRST_CHECK, max(3, self._distance))
        self._paces: list[float] = []  # seconds of each step
        self._validation: float | None = None  # cost of the newest, in steps
        self._first: float | None = None  # of this process's first, which also decodes the images
        self._validated = False  # after the step at hand
        self._losses: list[float] = []  # since the last validation
        self._mean_loss = math.inf  # before it
        self._values: list[float] = []
        for line in log:
            if "loss" in line:
                self._losses.append(line["loss"])
            else:
                self._learnt_by(line)
        self.go_on()

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.schedule.steps

    @property
    def _distance(self) -> int:
        return max(1, self.steps // CHECKS)

    def validates(self, step: int) -> bool:
        """Whether a validation is due after `step` steps: at the end, and on the way wherever the plan has one, by how far the training
        is, so that there are as many of them however many steps it takes."""
        before, now = (self.schedule.position(each) // self.eval_every for each in (step - 1, step))
        return step == self.steps or before < now

    def go_on(self) -> None:
        """The next step begins."""
        self._mark = self._clock.now() if self._clock else 0.0

    def stepped(self, loss: float) -> None:
        """A step has been taken; what comes until `go_on` is not a part of it."""
        if self._clock is not None:
            self._paces.append(self._clock.now() - self._mark)
            self._mark = self._clock.now()
            self._losses.append(loss)
            self._validated = False

    def validated(self, numbers: Mapping[str, float]) -> None:
        """A validation has been made since the step was taken."""
        if self._clock is not None:
            self._validation = (self._clock.now() - self._mark) / self._pace()
            self._first = self._first or self._validation
            self._validated = True
            self._learnt_by(numbers)

    def _learnt_by(self, numbers: Mapping[str, object]) -> None:
        value = goodness(numbers, self._plan.judged_by)
        if value is not None:
            self._values.append(value)
            self._mean_loss = sum(self._losses) / len(self._losses) if self._losses else math.inf
            self._losses = []

    def decide(self, step: int) -> Replanned | None:
        """What changes after `step` steps, if anything does; on record by then. What an earlier start of the run decided is obeyed."""
        clock = self._clock
        if clock is None:
            return None
        if self._ahead:
            return self._obey(step)
        if step >= self.steps:
            return None
        if self._validated and self._nothing_left():
            steps, every, reason = step, self.eval_every, "learnt"
        elif self._validated or step >= self._check or self._falls_behind(clock, step):
            pace = self._pace() if self._validated or step >= self._check else self._newest()
            self._check = step + self._distance
            steps, every = self._affordable(clock, step, pace)
            reason = "pace"
            missed = abs(steps - self.steps)
            if every == self.eval_every and missed <= max(1, TOLERANCE * (self.steps - step)):
                clock.note()
                return None
        else:
            return None
        decision = Replanned(step=step, steps=steps, eval_every=every, seconds=round(clock.spent, 3), reason=reason)
        clock.replanned.append(decision)
        clock.note()
        self._apply(decision)
        return decision

    def _obey(self, step: int) -> Replanned | None:
        decision = None
        while self._ahead and self._ahead[0].step <= step:
            decision = self._ahead.popleft()
            self._apply(decision)
        return decision

    def _apply(self, decision: Replanned) -> None:
        self.schedule = self.schedule.changed(decision.step, decision.steps)
        self.eval_every = decision.eval_every

    def _pace(self) -> float:
        """Seconds of a step, lately. The first one of a process, which allocates and may compile, counts only while it is the only one."""
        recent = (self._paces[1:] or self._paces)[-max(RECENT, self._distance) :]
        return max(sum(recent) / len(recent), 1e-9)

    def _newest(self) -> float:
        """Seconds of a step at least, of the last few only."""
        return max(min(self._paces[-ALARM:]), 1e-9)

    def _falls_behind(self, clock: Clock, step: int) -> bool:
        """Whether all of the last few steps were so slow that it would be late to find out at the next comparison."""
        if len(self._paces) <= ALARM:  # with the first, which says nothing
            return False
        return self._affordable(clock, step, self._newest())[0] - step < BEHIND * (self.steps - step)

    def _nothing_left(self) -> bool:
        """Whether the training images are learnt, and the validation images have not gained by it lately."""
        if len(self._values) <= PATIENCE or self._mean_loss >= LEARNT * math.log(max(2, self._plan.classes)):
            return False
        return max(self._values[-PATIENCE:]) <= max(self._values[:-PATIENCE])

    def _affordable(self, clock: Clock, step: int, pace: float) -> tuple[int, int]:
        """How many steps in all the time that is left has room for if one takes `pace` seconds, and how far apart validations are then, in
        steps of the recipe."""
        ahead = clock.ahead
        assert ahead is not None
        recipe, plan_every = self._plan.recipe, self._plan.eval_every
        look, decode = FORWARD / recipe.batch_size, 0.0  # costs of an image, in steps
        tail = ahead.tail or ahead.afterwards * look * ahead.passes
        if self._validation is not None and self._first is not None and ahead.watched:
            # The first validation has decoded its images as well, which are held in memory since.
            look = min(look, self._validation / ahead.watched)
            decode = self._first / ahead.watched - look
            # Two measurements, each perhaps of a moment in which the machine was less busy: the dearer one counts.
            tail = max(ahead.tail, ahead.afterwards * (decode + look * ahead.passes))
        validation = look * ahead.watched if self._validation is None else self._validation
        left = clock.left - ahead.again * pace - min(AFTERWARDS * clock.seconds, tail * pace)
        cost, every, position = validation * pace, self.eval_every, self.schedule.position(step)

        def on_the_way() -> int:
            return math.ceil(recipe.steps / every) - 1 - math.floor(position / every)

        while on_the_way() * cost > VALIDATING * left and every < recipe.steps:
            every += plan_every
        room = int((left - (on_the_way() + 1) * cost) / pace)
        return min(ahead.most, step + max(1, room)), every
