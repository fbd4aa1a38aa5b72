"""What a fine-tuning does around its own story, be it of a classifier or of a detector: it takes its folder, keeps its budget, ends, and is
known again when it is finished.

What comes between, from the data to the numbers, is told where it is done: `finetune` and `detect.finetune`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bigtransfer import report, runs, weights
from bigtransfer.catalog import ModelCard
from bigtransfer.config import DetectFinetuneConfig, FinetuneConfig, seconds
from bigtransfer.data import ImageSet
from bigtransfer.errors import RunError
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import best, tracking, training
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.plan import Begun, P, Plan, record, same_threads
from bigtransfer.train import checkpoint

Asked = FinetuneConfig | DetectFinetuneConfig

MODEL = "model.safetensors"
_REPORT = "report.html"


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What a fine-tuning run left behind."""

    folder: Path
    """The run's folder: model.safetensors, report.html, metrics.jsonl, config.json, evaluation.json, of a classifier split.json."""
    recipe: Recipe
    metrics: dict[str, float]
    """`test_top1`, `test_ece`, ..., of a detector `test_ap`, `test_ap50`, ..., or, without a test part, `val_top1`, ...; empty if the run
    was stopped or has nothing to be measured on."""
    stopped_by: int | None = None
    """The signal that interrupted the run; the same call goes on from its checkpoint."""

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / MODEL

    def status(self, following: str) -> int:
        """Tell how it ended, and which command uses the model. The command's exit status: 0, or 128 + signal when stopped by one."""
        if self.stopped_by is not None:
            print("\nStopped; everything so far is saved. The same command goes on from here.")
            return 128 + self.stopped_by
        print(f"\nmodel:  {self.model}\nreport: {self.folder / _REPORT}")
        print(f"next:   {following} {self.folder} IMAGES")
        return 0


@contextlib.contextmanager
def saying_what_is_kept(folder: Path, results: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """Within, a KeyboardInterrupt says what the run's folder keeps of it, and what the same command would do. results: files that hold
    something of worth before the training, and what that is called."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(_kept(folder, results)) from error


def _kept(folder: Path, results: Mapping[str, str]) -> str:
    saved = checkpoint.steps(folder)
    if saved:
        return f"the training up to step {saved[-1]:,} is kept in {folder}; the same command goes on from there"
    if (folder / MODEL).is_file():
        return f"the model is finished, in {folder}; the same command writes what is missing of its report"
    if not (folder / "config.json").is_file():
        return "nothing is kept so early; the same command begins anew"
    solved = "".join(f"{what} and " for file, what in results.items() if (folder / file).is_file())
    return f"{solved}all that was decided is kept in {folder}; the same command goes on from there"


# --- A run at work


@dataclass(kw_only=True, eq=False)
class Work:
    """A run that this process is at work on."""

    run: runs.Run
    command: str
    config: Asked
    clock: Clock | None
    """Of its budget, if it has one."""
    until_the_end: contextlib.ExitStack
    tell: tracking.Tell = tracking.silent
    """Who hears of the numbers besides metrics.jsonl."""

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def model(self) -> Path:
        """Where the model file comes."""
        return self.folder / MODEL

    @property
    def kept(self) -> Clock | None:
        """The clock, if the training obeys it: steps that the user set are taken, however long it takes."""
        return self.clock if self.config.steps is None else None

    @property
    def overrun(self) -> str:
        """A sentence if the budget was not kept (`Clock.overrun`), whoever decided that; else empty."""
        return "" if self.clock is None else self.clock.overrun()

    def enter(self, stage: str) -> None:
        """What is done from now on, for the account of where a budget's time went."""
        if self.clock is not None:
            self.clock.enter(stage)

    def decided(self, plan: Plan, data: Mapping[str, Any], files: Iterable[str] = ()) -> None:
        """All that comes before the first step is in the folder: write down what was asked and decided, what was found in the data, and
        which `files` of the folder a resume goes on from."""
        if self.clock is not None:
            self.clock.note()
        record(self.run, self.command, self.config, plan, data, files)

    def track(self) -> None:
        """The steps come: the program of --log hears of the numbers from now on."""
        asked = dataclasses.asdict(self.config)
        self.tell = self.until_the_end.enter_context(tracking.writer(self.config.log, self.folder, asked))

    def stopped(self, plan: Plan, outcome: training.Outcome) -> Finetuned:
        """What is left behind where a signal ended the training."""
        return Finetuned(folder=self.folder, recipe=plan.recipe, metrics={}, stopped_by=outcome.signal)

    def measured(self, card: ModelCard, taken: Recipe, metrics: dict[str, float], steps: int) -> ModelCard:
        """The card, with the recipe as it was taken and the numbers, which those hear of who heard of the `steps` before."""
        recipe = taken.to_dict()
        if self.overrun:
            recipe["notes"] = (*taken.notes, self.overrun)
        card = dataclasses.replace(card, metrics=metrics, recipe=recipe)
        self.tell(steps, tracking.final(metrics, card))
        return card

    def ended(self, plan: Plan, metrics: dict[str, float]) -> Finetuned:
        """Model and report are written: clear away what a resume would have needed."""
        if self.clock is not None:
            self.clock.note()
            print(f"budget: {self.clock.spent:.1f} s of {self.clock.seconds:g} s taken")
        checkpoint.remove(self.folder)
        best.remove(self.folder)
        return Finetuned(folder=self.folder, recipe=plan.recipe, metrics=metrics)


@contextlib.contextmanager
def at_work(
    folder: Path, command: str, config: Asked, begun: Begun[Any] | None, *, since: float, reserve: float, always: str
) -> Iterator[Work]:
    """Hold the folder for a run that is to `begin`, or has `begun` earlier. since, reserve, always: see `Clock`."""
    if begun is not None:
        same_threads(begun.threads)
    run = runs.Run(folder)
    with run.hold(runs.RESULTS), contextlib.ExitStack() as until_the_end:
        made = clock(config, folder, since=since, reserve=reserve, always=always)
        yield Work(run=run, command=command, config=config, clock=made, until_the_end=until_the_end)


def clock(config: Asked, folder: Path, *, since: float, reserve: float, always: str) -> Clock | None:
    """What keeps the budget of the run in `folder`, if it has one."""
    if config.budget is None:
        return None
    return Clock(folder, seconds(config.budget), since=since, reserve=reserve, always=always)


# --- A run that is finished


def is_finished(folder: Path) -> bool:
    """Whether the run there has left all that it was for; its report may be missing."""
    results = (folder / "evaluation.json", folder / MODEL)
    return all(path.is_file() for path in results) and not checkpoint.exists(folder)


def finished(folder: Path, begun: Begun[P], changed: str, images: Sequence[ImageSet] | None) -> Finetuned:
    """What the finished run there left behind. changed: what became of its data since, in words; RunError if it is anything: what is new
    in them would be left out. images: for a report that is not there yet; None: there is to be none."""
    if changed:
        raise RunError(
            f"{folder} is finished, but {changed} Choose another --out to train on what is there now, or remove the folder."
        )
    print(f"{folder} is finished. Remove it, or choose another --out, to train again.")
    if images is not None and not (folder / _REPORT).is_file():  # the process died between the model and its report
        report.write(folder, images)
    metrics = dict(weights.describe(folder / MODEL).metrics)
    return Finetuned(folder=folder, recipe=begun.plan.recipe, metrics=metrics)
