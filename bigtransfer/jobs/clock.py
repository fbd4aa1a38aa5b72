"""A budget that is kept: the time that a run has taken over all its starts, and how many steps the rest of it leaves room for.

What is decided on the way depends on the machine, and therefore goes into the run's budget.json before it is obeyed: a run that is
interrupted and goes on repeats it, and so repeats the numbers of an uninterrupted one that had decided the same.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
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


class Clock:
    """The time that a run may take, counted while its processes live, over all of them."""

    def __init__(
        self,
        folder: Path,
        seconds: float,
        *,
        most: int,
        reserve: float = 0.0,
        watched: int = 0,
        afterwards: int = 0,
        passes: float = 1.0,
        since: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """seconds: what the run may take in all, with what came before the training and, `reserve`, what will come after it. most: the
        steps that are never exceeded, however fast the machine. watched: images of a validation. afterwards: images that will be looked
        at after the training, each in `passes` forward passes of the network. since: when this process began with the run, on the clock
        of `now`; this moment unless given. RunError if the run's budget.json has not its form.
        """
        self._path, self.seconds, self._now = folder / runs.BUDGET, seconds - reserve, now
        self.most, self.watched, self.afterwards, self.passes = most, watched, afterwards, passes
        self._since = now() if since is None else since
        record = runs.read_budget(folder)
        self._before = record.seconds
        self.replanned = list(record.replanned)
        """What has been decided, in the order of the steps."""

    def now(self) -> float:
        return self._now()

    @property
    def spent(self) -> float:
        """Seconds that the run has taken so far."""
        return self._before + self._now() - self._since

    @property
    def left(self) -> float:
        """Seconds that the training may still take; negative if too many are gone."""
        return self.seconds - self.spent

    def note(self) -> None:
        """Write down what has been spent and decided, so that it counts when the run goes on after an interruption."""
        runs.write_budget(self._path.parent, self.spent, self.replanned)

    def schedule(self, plan: Plan) -> Schedule:
        """The plan's schedule with all that is on record; RunError, which names the field, if that cannot be."""
        schedule = Schedule(plan.recipe)
        for number, one in enumerate(self.replanned):
            try:
                schedule = schedule.changed(one.step, one.steps)
                if one.steps > self.most:
                    raise ValueError(f"{one.steps:,} steps are more than the {self.most:,} that this run may take")
            except ValueError as error:
                raise RunError(
                    f"{self._path}: replanned[{number}]: {error}. Choose another --out, or remove the folder to start anew."
                ) from error
        return schedule


class Course:
    """Where a training stands between its steps: how many there are, when to validate, and, by a clock, whether that is to change."""

    def __init__(self, plan: Plan, step: int, clock: Clock | None = None, log: Iterable[Logged] = ()) -> None:
        """step: optimizer steps taken. log: the lines that they left in metrics.jsonl."""
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
        elif self._validated or step >= self._check:
            self._check = step + self._distance
            steps, every = self._affordable(clock, step)
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

    def _nothing_left(self) -> bool:
        """Whether the training images are learnt, and the validation images have not gained by it lately."""
        if len(self._values) <= PATIENCE or self._mean_loss >= LEARNT * math.log(max(2, self._plan.classes)):
            return False
        return max(self._values[-PATIENCE:]) <= max(self._values[:-PATIENCE])

    def _affordable(self, clock: Clock, step: int) -> tuple[int, int]:
        """How many steps in all the time that is left has room for, and how far apart validations are then, in steps of the recipe."""
        pace, recipe, plan_every = self._pace(), self._plan.recipe, self._plan.eval_every
        look, decode = FORWARD / recipe.batch_size, 0.0  # costs of an image, in steps
        if self._validation is not None and self._first is not None and clock.watched:
            # The first validation has decoded its images as well, which are held in memory since.
            look = min(look, self._validation / clock.watched)
            decode = self._first / clock.watched - look
        validation = look * clock.watched if self._validation is None else self._validation
        afterwards = clock.afterwards * (decode + look * clock.passes)
        left = clock.left - min(AFTERWARDS * clock.seconds, afterwards * pace)
        cost, every, position = validation * pace, self.eval_every, self.schedule.position(step)

        def on_the_way() -> int:
            return math.ceil(recipe.steps / every) - 1 - math.floor(position / every)

        while on_the_way() * cost > VALIDATING * left and every < recipe.steps:
            every += plan_every
        room = int((left - (on_the_way() + 1) * cost) / pace)
        return min(clock.most, step + max(1, room)), every
