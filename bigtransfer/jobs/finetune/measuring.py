"""How good the model is that a fine-tuning delivers, and what is to be known about that."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bigtransfer import evals, runs
from bigtransfer.bars import tqdm
from bigtransfer.catalog import ModelCard
from bigtransfer.config import FinetuneConfig
from bigtransfer.data import ImageSet, Splits, splits
from bigtransfer.data.layout import in_short
from bigtransfer.evals import calibration
from bigtransfer.evals.candidates import Closed
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.feed.loader import eval_batches
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.evaluate import measure
from bigtransfer.model import Network
from bigtransfer.predictor import Predictor
from bigtransfer.terminal import line

CALIBRATED = 1_000
"""Validation images at most that a temperature is fitted by."""


def finish(config: FinetuneConfig, model: Network, parts: Splits, *, clock: Clock | None = None) -> str:
    """Give a network whose head was trained the temperature at which its probabilities fit the validation images, and of a model that gives
    several labels the probabilities from which on each is best given, chosen by the same; both are on its card then. Why there is no
    temperature, as half a sentence; empty if there is one. clock: of a budget that is to be kept."""
    several = model.card.multi_label
    if parts.val is None:
        return "no images were held out to fit a temperature by"
    if clock is not None and not several and clock.left <= 0:
        return "the budget was used up"
    images = parts.val if several else splits.evenly(parts.val, CALIBRATED, config.seed)
    predictor = Predictor(model, device=config.device, precision=config.precision)
    seen = list(_answers(predictor, images))
    if not seen:
        return "none of the images held out can be read"
    logits, labels = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    counts = (
        1 / torch.bincount(labels.clamp_min(0).flatten())[labels].double() if config.balance and not several else None
    )
    found = calibration.fit(logits, labels, weights=counts)
    temperature = 1.0 if isinstance(found, str) else found.temperature
    calibration.divide(model.head, temperature)
    card = model.card
    if several:
        result = MultiLabel(card.num_classes)
        result.update(logits, labels)
        chosen = tuple(calibration.moved(one, temperature) for one in result.best_thresholds().tolist())
        card = dataclasses.replace(card, thresholds=chosen)
    model.card = dataclasses.replace(card, calibrated=None if isinstance(found, str) else found)
    return found if isinstance(found, str) else ""


def how_sure(card: ModelCard, why_not: str) -> str:
    """A line about the model's temperature, or why there is none."""
    found = card.calibrated
    if found is None:
        why_not = why_not or "too few images to tell what it is worth"
        return f"sure:   no temperature ({why_not}): the probabilities are as the training left them"
    judged = "each judged by the others" if found.by == "leave-one-out" else "held out"
    return (
        f"sure:   temperature {found.temperature:.3g}, by {found.images:,} images {judged}: there the calibration error is "
        f"{found.ece[1]:.1%}, without it {found.ece[0]:.1%}"
        + ("; it is chosen by the loss, which is lower with it" if found.ece[1] > found.ece[0] else "")
    )


def _answers(predictor: Predictor, images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits float32 `(n, classes)` and labels, batch by batch, of those that can be read."""
    with tqdm(total=len(images), unit="img", disable=None, leave=False) as bar:
        for batch in eval_batches(images, predictor.card.input, predictor.batch_size, skip_bad=True):
            yield predictor.logits(batch.images), batch.labels
            bar.update(len(batch.labels))


def evaluate(
    config: FinetuneConfig,
    folder: Path,
    model: Network,
    parts: Splits,
    expected: Closed | None,
    *,
    surpassed: bool = False,
    clock: Clock | None = None,
    why_not: str = "",
) -> dict[str, float]:
    """The model as it will be used, on the test part, else the validation part; writes evaluation.json. expected: the closed form, if the
    model is at least as good. surpassed: what is delivered is this model after it has learnt from the validation images as well.
    clock: of a budget; where it is used up, the images not yet looked at are left out, unless the user set the steps, and that is said.
    why_not: the model has no temperature."""
    split, images = ("test", parts.test) if parts.test is not None else ("val", parts.val)
    if images is None:
        print("test:   not measured, for all images were learnt from: give a test part, or --test-fraction")
        runs.write_json(folder / "evaluation.json", {})
        return {}
    predictor = Predictor(model, device=config.device, precision=config.precision)
    result, unreadable = measure(
        predictor,
        images,
        progress=True,
        late=None if clock is None or config.steps is not None else _late(clock, len(images)),
    )
    rest = len(images) - len(result) - len(unreadable)
    over = "" if clock is None else clock.overrun()
    partly = (over,) if over else ()
    if rest:
        command = f"bit evaluate {line(str(folder))} {line(config.data)}"
        if config.test_fraction:
            command += f" --split test --split-file {line(str(folder / 'split.json'))}"
        partly = (_partly(result, len(images), split, command), *partly)
    about = {
        "split": split,
        "model": model.card.name,
        "data": config.data,
        "unreadable": unreadable,
        "calibrated": model.card.calibrated,
        "no_temperature": why_not,
    }
    if isinstance(result, MultiLabel):
        assert predictor.thresholds is not None
        chosen_here = images is parts.val and model.card.thresholds is not None
        evaluation = evals.labels_record(
            result, images, predictor.thresholds, chosen_here=chosen_here, notes=partly, **about
        )
        numbers = result.named(split, predictor.thresholds)
        shown = f"mean average precision {result.mean_average_precision:.1%}, F1 {numbers.get(f'{split}/micro_f1', math.nan):.1%}"
        print(f"{split}:   {shown} of {len(result):,} images" + (" that chose the thresholds" if chosen_here else ""))
    else:
        notes = (*partly, *_remarks(config, parts, split, images, result, expected))
        if surpassed and images is parts.val:
            notes = (
                f"Measured on validation images before they were learnt from as well: the model that is delivered is solved on all "
                f"{len(parts.train) + len(images):,} images, which rarely makes it worse.",
                *notes,
            )
        evaluation, numbers = evals.as_record(result, images, notes=notes, **about), result.named(split)
        low, high = result.top1_interval
        shown = "1 image" if len(result) == 1 else f"{len(result):,} images"
        if rest:
            shown = f"{len(result):,} of the {len(images):,} images"
        print(f"{split}:   top-1 {result.top1:.1%} of {shown} (95% interval {low:.1%} to {high:.1%})")
        for note in notes:
            print(f"note: {line(note)}", file=sys.stderr)
    evals.write_record(folder / "evaluation.json", evaluation)
    if rest:
        numbers[f"{split}/images"] = len(result)
    return {key.replace("/", "_"): value for key, value in numbers.items()}


def _partly(seen: evals.Classification | MultiLabel, images: int, split: str, command: str) -> str:
    """What is said where the time was not enough for all images. The command measures all of a test part; images that were held out for
    validation lie among those that were learnt from, and no command measures them alone."""
    note = f"The budget was used up: these numbers are of {len(seen):,} of the {images:,} {split} images"
    if isinstance(seen, evals.Classification):
        reached = int((seen.per_class().support > 0).sum())
        of = f"all {seen.num_classes:,}" if reached == seen.num_classes else f"{reached:,} of the {seen.num_classes:,}"
        note += f", of {of} classes, each with its share of them."
    else:
        note += ", drawn at random."
    return f"{note} All of them are measured by: {command}" if split == "test" else note


def _late(clock: Clock, images: int) -> Callable[[int], bool]:
    """Whether the time is up, or will be with another batch like the last one; asked after each with how many of the images are left. What
    can be finished within a slight overrun is finished."""
    at_first = before = clock.left
    last = images

    def late(rest: int) -> bool:
        nonlocal before, last
        now, first = clock.left, last == images
        taken, done = before - now, last - rest
        before, last = now, rest
        if rest * taken <= done * (max(at_first, 0.0) + clock.slight - (at_first - now)):
            return False
        # The first batch takes longer than others: what reads the images is started with it.
        return now < (0.0 if first else taken)

    return late


def _remarks(
    config: FinetuneConfig,
    parts: Splits,
    split: str,
    images: ImageSet,
    result: evals.Classification,
    expected: Closed | None,
) -> tuple[str, ...]:
    """What is to be known about a measurement on (some of) the images. expected: the closed form, if the model is at least as good."""
    names = parts.train.class_names
    notes = []
    if uneven := splits.imbalance(parts.train):
        notes.append(
            f"The classes are imbalanced (for training, {uneven}): what counts is the mean per class, {result.mean_per_class:.1%}, in "
            + (
                "which each counts the same, as it does with --balance in all that is learnt and chosen."
                if config.balance
                else "which each counts the same. With --balance it does so in all that is learnt and chosen."
            )
        )
    missing = [name for name, count in zip(names, images.class_counts(), strict=True) if not count]
    if missing:
        notes.append(
            f"There is no {split} image of {in_short(missing)}: nothing is known of what the model makes of such."
        )
    # Where the classes are imbalanced, another mix of them would be seen as another kind of images.
    known = expected is not None and uneven is None and expected.chance_note(names) is None
    if expected is not None and known and result.top1_interval[1] < _least(expected):
        notes.append(
            f"Of the training images, each judged by the others, {sum(expected.right) / sum(expected.counted):.1%} are right, of the "
            f"{split} images {result.top1:.1%} only: these are of another kind, or there are near-copies among the training images."
        )
    elif chance := result.chance_note(names):
        notes.append(chance)
    return tuple(notes)


def _least(found: Closed) -> float:
    """The lower end of the 95% interval of the closed form's accuracy on its own images, each judged by the others; 0 if none was."""
    count = sum(found.counted)
    return evals.wilson(sum(found.right) / count if count else 0.0, count)[0]
