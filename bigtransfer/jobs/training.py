"""What `finetune`, `detect finetune` and `pretrain` share: one run from its first step to its last, with progress, validation,
checkpoints and stops."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch

from bigtransfer import evals, runs
from bigtransfer.bars import tqdm, watched
from bigtransfer.catalog import InputSpec
from bigtransfer.data import ImageSet, checks
from bigtransfer.dist import World
from bigtransfer.errors import DataError, TrainingError
from bigtransfer.evals import multilabel
from bigtransfer.feed.augment import normalize
from bigtransfer.feed.loader import Batch, EvalBatch, FeatureLoader, TrainLoader, eval_batches
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import best as best_weights
from bigtransfer.jobs import tracking
from bigtransfer.jobs.best import Best
from bigtransfer.jobs.clock import Clock, Course, Logged
from bigtransfer.jobs.plan import Plan
from bigtransfer.machine import usable_cores
from bigtransfer.model import Network
from bigtransfer.ops.peak import Utilisation, matmul_flops
from bigtransfer.train import checkpoint, loop, objective, parallel
from bigtransfer.train.teacher import Lesson

if TYPE_CHECKING:  # it loads torchvision's networks, which takes seconds
    from bigtransfer.detector import Detector


def spare_workers() -> int:
    """Decoding processes that leave a core for the training process."""
    return max(1, min(16, usable_cores() - 1))


HELD = 2**28
"""Bytes of validation images that are kept ready in memory rather than decoded for every validation."""

KEPT_PROBABILITIES = 2**27
"""Of images with several labels, the most probabilities (images times classes) that are kept to measure more than the precision at 1:
half a gigabyte."""

CLOCK = ("images_per_second", "data_wait", "mfu")
"""What is logged of the clock. The rest of metrics.jsonl is the same in every repetition of a run."""


class _LeftOut(TypedDict):
    """A line of metrics.jsonl about images that could not be read."""

    left_out: list[Any]


@dataclass(kw_only=True)
class Outcome:
    """How `train` ended."""

    finished: bool
    """False: a signal asked it to stop; the checkpoint is written."""
    signal: int | None = None
    steps: int = 0
    """Optimizer steps taken in all."""
    best: Best | None = None
    """Of the validations; its weights are in the run's folder (`best.load`)."""


def ended(run: runs.Run, state: loop.State, plan: Plan, clock: Clock | None = None) -> Outcome | None:
    """How `train` ended that has taken its last step already, as its checkpoint and its record say; None if there are steps to take."""
    if state.step < Course(plan, state.step, clock).steps:
        return None
    return Outcome(finished=True, steps=state.step, best=best_weights.read(run.folder))


def train(
    run: runs.Run,
    state: loop.State,
    loader: TrainLoader | FeatureLoader,
    plan: Plan,
    *,
    forward: Callable[[torch.Tensor], Any],
    validate: Callable[[], Mapping[str, float]] | None,
    checkpoint_seconds: float,
    aim: objective.Goal | None = None,
    tell: tracking.Tell = tracking.silent,
    keep: int = 1,
    keep_best: bool = False,
    max_bad: float = 0.0,
    clock: Clock | None = None,
    world: World | None = None,
    sync: parallel.Sync | None = None,
    lesson: Lesson | None = None,
) -> Outcome:
    """Take the steps from `state.step` to the end of the plan's recipe, logging each to `run`, and leave a checkpoint of the last one
    taken.

    clock: if there is one, with what is `ahead` of it, the recipe's schedule is spread over more or fewer steps on the way as the time that
    is left demands, and what is left of the time is given back where nothing is left to learn. Without it the recipe is followed to the
    letter.

    forward: the part of the model that is trained, on a batch's images, or a compiled form of it. aim: what is minimized; the plan's unless
    given. world, sync, lesson: see `loop.steps`; of several processes, all call this, and the main one prints and logs. validate: called
    every `plan.eval_every` steps and after the last one; its numbers are logged. keep: how many checkpoints. keep_best: keep the weights of
    the best validation too. SIGINT and SIGTERM stop after the step at hand.
    tell: who hears of each step's numbers too; the main process's.
    max_bad: share of the images seen, or of an epoch's if that is more, that the loader may leave out; DataError beyond.

    Logged too is the model FLOP utilisation, where the whole network is trained ("mfu": three times the forward pass's operations,
    since the backward pass takes twice as many, over what the devices can do at most, as `Utilisation` has it).
    """
    world = World() if world is None else world
    assert world.size == 1 or not (clock or keep_best), "other processes are not asked"
    outcome = Outcome(finished=True)
    best = best_weights.Keeper(run.folder, plan.judged_by) if keep_best else None
    course = Course(plan, state.step, clock, run.metrics_with("step", Logged) if clock else ())
    recipe, device = plan.recipe, plan.torch_device
    utilisation = None
    if plan.forward_flops(plan.input.size):
        utilisation = Utilisation(lambda: world.size * matmul_flops(device, plan.torch_dtype))
    # Counted by one and told to all, who are to agree on when it is too many.
    left_out = sum(len(line["left_out"]) for line in run.metrics_with("left_out", _LeftOut)) if world.is_main else 0
    left_out = world.collect(left_out)[0]
    with contextlib.ExitStack() as stack:

        def log(step: int, numbers: Mapping[str, Any]) -> None:
            if not world.is_main:
                return
            run.log(step, **numbers)
            tell(step, numbers)

        stop = stack.enter_context(loop.stop_on_signals())
        bar = stack.enter_context(
            tqdm(
                total=course.steps,
                initial=state.step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                mininterval=0.1 if watched() else 10.0,  # a log file need not hold every state of the bar
                disable=not world.is_main,
            )
        )
        # Closed also when an error ends the loop: they hold worker processes and a thread.
        most = clock.ahead.most if clock and clock.ahead else recipe.steps
        batches = stack.enter_context(contextlib.closing(loader.batches(state.step, most)))
        taken = stack.enter_context(
            contextlib.closing(
                loop.steps(
                    state,
                    batches,
                    recipe,
                    seed=plan.seed,
                    device=device,
                    dtype=plan.torch_dtype,
                    forward=forward,
                    aim=plan.aim if aim is None else aim,
                    lesson=lesson,
                    ema_decay=plan.ema,
                    learning_rate=lambda step: course.schedule.learning_rate(step),
                    world=world,
                    sync=sync,
                )
            )
        )
        saved_at = time.monotonic()
        course.go_on()
        for step in _pointing_to_checkpoints(taken, run.folder):
            numbers: dict[str, Any] = {
                "loss": step.loss,
                "lr": step.learning_rate,
                "gradient_norm": step.gradient_norm,
                "images_per_second": round(step.rate, 2),
                "data_wait": round(step.data_seconds / step.seconds, 4),
                **{f"loss/{name}": value for name, value in step.parts.items()},
            }
            if utilisation is not None and (flops := plan.forward_flops(step.side)):
                numbers["mfu"] = round(utilisation.share(3 * flops * step.rate), 4)
            course.stepped(step.loss)
            # What one process knows and all must act on together: a signal to it, torchrun's death, rank 0's clock, an image it could
            # not read.
            due = world.is_main and time.monotonic() - saved_at >= checkpoint_seconds
            asked = torch.tensor(
                [bool(stop) or world.abandoned, due, len(step.errors)], dtype=torch.int64, device=device
            )
            stopping, saving, errors = world.total(asked).tolist()
            if errors:
                rows = world.collect([{"name": error.name, "reason": error.reason} for error in step.errors])
                numbers["left_out"] = [row for of_rank in rows for row in of_rank]
            log(step.number, numbers)
            bar.set_postfix_str(_seen_at_a_glance(numbers), refresh=False)
            bar.update()
            if validate is not None and course.validates(state.step):
                measured = validate()
                course.validated(measured)
                better = best is not None and best.show(state, measured)
                log(step.number, {**measured, "val/best": 1.0} if better else measured)
                if world.is_main:
                    bar.write(
                        f"step {state.step}: " + ", ".join(f"{key} {value:.4g}" for key, value in measured.items()),
                        file=sys.stderr,
                    )
            if (decision := course.decide(state.step)) is not None:
                bar.total = course.steps
                bar.write(_in_words(decision), file=sys.stderr)
            last = state.step == course.steps
            if last or stopping or saving:
                if best is not None:
                    best.write()
                checkpoint.save(run.folder, state, plan.facts(), world=world, keep=keep)
                saved_at = time.monotonic()
                if clock is not None:
                    clock.note()
            if errors:
                left_out += errors
                seen = max(state.step * recipe.batch_size, len(loader.labels))
                if left_out > max_bad * seen:
                    newest = numbers["left_out"][-1]
                    raise DataError(
                        f"{left_out} images could not be read up to step {state.step}, more than --max-bad-images {max_bad:g} allows; "
                        f"the newest: {newest['name']}: {newest['reason']}. {run.folder / 'metrics.jsonl'} lists them under left_out."
                    )
            if stopping and not last:
                outcome.finished, outcome.signal = False, stop.signal or signal.SIGTERM
            if stopping or last:
                break
            course.go_on()
    outcome.steps, outcome.best = state.step, best.best if best else None
    return outcome


def _in_words(decision: runs.Replanned) -> str:
    """A change of the plan, for the terminal."""
    if decision.reason == "learnt":
        return f"step {decision.step}: nothing is left to learn; the rest of the budget is given back"
    return f"step {decision.step}: {decision.steps:,} steps in all now, to keep the budget"


def _seen_at_a_glance(numbers: Mapping[str, Any]) -> str:
    """A step's numbers beside the progress bar."""
    rate = numbers["images_per_second"]
    shown = f"loss {numbers['loss']:.3f}, lr {numbers['lr']:.2g}, {rate:{'.0f' if rate >= 10 else '.2g'}} img/s"
    if "mfu" in numbers:
        shown += f", MFU {numbers['mfu']:.0%}"
        if numbers["mfu"] > 1:
            shown += " of a peak measured on a busy machine"
    if numbers["data_wait"] >= 0.05:
        shown += f", waiting for data {numbers['data_wait']:.0%}"
    return shown


def _pointing_to_checkpoints(steps: Iterator[loop.Step], folder: Path) -> Iterator[loop.Step]:
    """The steps; if the training cannot go on, the error also says what is left."""
    try:
        yield from steps
    except TrainingError as error:
        saved = checkpoint.steps(folder)
        left = (
            f"The newest checkpoint, of step {saved[-1]}, is in {folder}." if saved else "There is no checkpoint yet."
        )
        raise TrainingError(f"{error} {left}") from error


def validation(
    state: loop.State,
    images: ImageSet,
    spec: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    world: World | None = None,
    *,
    classes: slice = slice(None),
    name: str = "val",
) -> Callable[[], dict[str, float]]:
    """A function that measures the model as it is now, with its averaged weights if it keeps such, on a labelled set: "val/top1" and its
    like, of images with several labels "val/map" and its like, or as `name` says. Each process of `world` looks at a part of the images;
    all get the numbers of the whole. classes: those of the model that are the set's; it chooses among them."""
    world = World() if world is None else world
    places = world.part(len(images))
    part = images.subset(places)
    # As many forward passes on every process: with FSDP each is a joint effort.
    passes = math.ceil(math.ceil(len(images) / world.size) / state.micro_batch)

    @torch.inference_mode()
    def logits(batch: torch.Tensor) -> torch.Tensor:
        return state.model(normalize(batch.to(device), dtype))[:, classes].cpu()

    hold = world.size == 1 and len(part) * images.channels * spec.size**2 <= HELD
    held: dict[int, list[EvalBatch]] = {}  # by their size

    def prepared() -> Iterable[EvalBatch]:
        # What fits with its activations for the backward pass fits without.
        size = state.micro_batch
        if not hold:
            return eval_batches(part, spec, size)
        if size not in held:
            held.clear()
            held[size] = list(eval_batches(part, spec, size))
        return held[size]

    def batches() -> Iterator[EvalBatch]:
        done = 0
        for batch in prepared():
            done += 1
            yield batch._replace(indices=batch.indices + places.start)
        for _ in range(passes - done):
            logits(torch.zeros(1, images.channels, spec.size, spec.size, dtype=torch.uint8))

    def one_label() -> dict[str, float]:
        return evals.evaluate(logits, batches(), len(images.class_names)).gathered(world).named(name)

    def several_labels() -> dict[str, float]:
        if len(images) * len(images.class_names) <= KEPT_PROBABILITIES:
            return multilabel.evaluate(logits, batches(), len(images.class_names)).gathered(world).named(name)
        right = 0
        for batch in batches():
            right += int((batch.labels == logits(batch.images).argmax(1, keepdim=True)).any(1).sum())
        return {f"{name}/precision_at_1": world.total(torch.tensor(right, device=device)).item() / len(images)}

    def measure() -> dict[str, float]:
        state.model.eval()
        with state.averaged():
            measured = one_label() if images.labels is None or images.labels.ndim == 1 else several_labels()
        state.model.train()
        return measured

    return measure


def images_per_second(
    model: Network | Detector,
    size: int,
    labels: torch.Tensor,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
    span: float,
    aim: objective.Goal | None = None,
    parameters: Callable[[Any], Iterable[torch.nn.Parameter]] | None = None,
) -> float:
    """The speed of training steps on images of `size` px on this machine: the mean of at least three steps, and of `span` seconds, of a
    copy of the model on random pixels with these labels, a batch's. parameters: model -> those that are trained; all unless given."""
    trial = copy.deepcopy(model)
    micro = loop.fitting_micro_batch(model, size, dtype, device, len(labels))
    count = min(len(labels), micro)
    recipe = Recipe(steps=1000, batch_size=count, resize=size, crop=size)
    pixels = torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    state = loop.new_state(trial, recipe, micro_batch=micro, parameters=parameters and parameters(trial))
    batches = (Batch(step, pixels, labels[:count]) for step in range(recipe.steps))
    steps, taken = loop.steps(state, batches, recipe, seed=0, device=device, dtype=dtype, aim=aim), 0.0
    next(steps)  # allocates
    for timed, step in enumerate(steps, start=1):
        taken += step.seconds
        if timed >= 3 and taken >= span:
            return count * timed / taken
    return count * (recipe.steps - 1) / taken


def resume(run: runs.Run, state: loop.State, plan: Plan, world: World | None = None) -> bool:
    """Continue from the run's checkpoint if it has one: restore `state`, forget later log lines. True if there was one."""
    found = checkpoint.exists(run.folder)
    if found:
        checkpoint.restore(run.folder, state, plan.facts(), world=world)
    if world is None or world.is_main:
        run.rewind(state.step - 1)
    return found


def readable(images: ImageSet, skip_bad: bool) -> tuple[ImageSet, list[dict[str, str]]]:
    """The images that can be decoded, and for unreadable.json the names and reasons of the others.

    UnreadableImages if there are any and not `skip_bad`.
    """
    kept, errors = checks.check(images, skip_bad=skip_bad, progress=True)
    gone = np.flatnonzero(~np.isin(images.rows, kept.rows))
    return kept, [{"name": images.name(int(i)), "reason": error.reason} for i, error in zip(gone, errors, strict=True)]
