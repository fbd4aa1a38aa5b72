"""`bit evaluate`: a model measured on labelled images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigtransfer import dist, evals, outputs, records, report, runs
from bigtransfer.bars import tqdm
from bigtransfer.config import EvaluateConfig
from bigtransfer.data import ImageSet, Splits, classes, exclusions, open_dataset
from bigtransfer.data.classes import Match
from bigtransfer.data.layout import in_short
from bigtransfer.data.splits import in_turn, load_split
from bigtransfer.dist import World
from bigtransfer.errors import ConfigError, DataError, ImageError, RunError
from bigtransfer.evals import multilabel, projection
from bigtransfer.evals.candidates import Closed
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.feed.loader import EvalBatch, eval_batches
from bigtransfer.jobs import parts
from bigtransfer.jobs.plan import environment
from bigtransfer.jobs.pretrain import readable_names
from bigtransfer.predictor import Predictor
from bigtransfer.terminal import line

_BETWEEN = 32
"""Images at most between two looks at the clock."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A finished measurement."""

    result: evals.Classification | MultiLabel
    images: ImageSet
    """What was measured on; its labels and class names are numbered as the model's."""
    split: str
    """Which part of the data that is: "train", "val", "test" or "all images"."""
    unreadable: list[ImageError]
    """Images that are left out of the result because they cannot be read."""
    model: str
    """The model's name."""
    dedup: evals.Dedup | None
    """The same without the images that --exclude names."""
    thresholds: np.ndarray | None
    """Of a multi-label model: the probabilities from which on its classes are given."""
    notes: tuple[str, ...]
    """Remarks on the data set, and what its classes were matched with the model's by where that is an assumption."""


def run(config: EvaluateConfig) -> int:
    """`bit evaluate`. Exit status 1 if images could not be read and that was not expected, or a benchmark's are not here."""
    if config.suite:
        from bigtransfer.jobs import suite  # which fine-tunes, and that measures by this module

        return suite.evaluate(config)
    with dist.join(parts.device_of(config)) as (world, device):
        if world.size > 1 and config.out is None:
            raise ConfigError("Several processes need a folder to share the work in: --out FOLDER")
        done = measured(config, world, device, progress=world.is_main)
    if done is None:  # the process that finishes last shows what came out
        return 0
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{done.model} on {config.data} ({done.split}): {len(done.images)} images of {len(done.images.class_names)} classes"
    )
    print(f"\n{_described(done)}")
    if done.dedup is not None:
        print(f"\n{done.dedup}")
    if done.unreadable:
        print(f"\n{len(done.unreadable)} images cannot be read and are left out:")
        print("\n".join(f"  {line(str(error))}" for error in done.unreadable[:10]))
        if len(done.unreadable) > 10:
            print(f"  ... and {len(done.unreadable) - 10} more")
    if config.json is not None:
        print(f"\nall numbers: {config.json}")
    if config.out is not None:
        print(f"\nreport: {Path(config.out) / 'report.html'}")
    return 1 if done.unreadable and not config.skip_bad_images and world.size == 1 else 0


def evaluate(config: EvaluateConfig, *, progress: bool = False) -> Evaluated:
    """Measure as `config` asks, and write the files it asks for. Images that cannot be read are left out and listed."""
    done = measured(config, World(), parts.device_of(config), progress=progress)
    if done is None:
        raise RunError(f"Another process has just finished the same measurement: see {config.out}.")
    return done


def measured(config: EvaluateConfig, world: World, device: torch.device, *, progress: bool = False) -> Evaluated | None:
    """The same by several processes, on `device` each: the result for the one that finishes last, None for the others."""
    assert config.data is not None
    if config.out is not None:
        refuse_run(Path(config.out))
    outputs.refuse_replacing(
        [*_written("--out", config.out, ("evaluation.json", "config.json", "report.html")), ("--json", config.json)],
        (config.model, config.data, config.class_names, config.exclude, config.split_file),
    )
    predictor, digest = parts.opened(config, device)
    card = predictor.card
    splits = open_dataset(
        config.data,
        multi_label=card.multi_label,
        image_column=config.image_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        channels=card.architecture.in_chans,
        min_classes=1,
    )
    if config.split_file is not None:
        splits = load_split(config.split_file, splits)
    split, images = choose_split(splits, config.split)
    known = None if config.exclude is None else _known(splits, images, config.exclude)
    images = dataclasses.replace(images, class_names=readable_names(images.class_names, config.class_names))
    if progress:
        print(f"classes: {in_short(images.class_names)}", flush=True)
    several = images.several
    seen = trained_on(config.model, config.data, images)
    images, matched = match_classes(images, card.class_names, card.num_classes, config.subset)

    def conclude(result: evals.Classification | MultiLabel, unreadable: list[ImageError]) -> Evaluated:
        if isinstance(result, MultiLabel):
            thresholds, notes = predictor.thresholds, splits.notes
            if not several:
                notes += (
                    "The model may give an image several classes, and these images have one each: what else it gives counts as wrong.",
                )
        else:
            chance = result.chance_note(images.class_names)
            thresholds, notes = None, (*splits.notes, *doubts(matched, result), *((chance,) if chance else ()))
        if seen is not None:
            notes += (seen,)
        dedup = None
        if known is not None:
            assert config.exclude is not None
            dedup = evals.without(result, known, config.exclude)
            notes += (dedup.sentence(),)
        if config.json is not None or config.out is not None:
            about: dict[str, Any] = {
                "split": split,
                "model": card.name,
                "data": config.data,
                "unreadable": unreadable,
                "notes": notes,
                "dedup": dedup,
                "calibrated": card.calibrated,
            }
            if isinstance(result, MultiLabel):
                assert thresholds is not None
                record = evals.labels_record(result, images, thresholds, chosen_here=False, **about)
            else:
                record = evals.as_record(result, images, **about)
            if config.json is not None:
                evals.write_record(config.json, record)
            if config.out is not None:
                folder = Path(config.out)
                asked, machine = dataclasses.asdict(config), environment(predictor.device)
                runs.write_json(folder / "config.json", {"command": "evaluate", "asked": asked, "environment": machine})
                evals.write_record(folder / "evaluation.json", record)
                report.write(folder, images, predictor)
        return Evaluated(
            result=result,
            images=images,
            split=split,
            unreadable=unreadable,
            model=card.name,
            dedup=dedup,
            thresholds=thresholds,
            notes=notes,
        )

    if config.out is None:
        measurement = measure(
            predictor,
            images,
            batch_size=config.batch_size,
            workers=config.workers,
            progress=progress,
            mapped=config.json is not None,
        )
        return conclude(*measurement)
    return _in_parts(config, digest, predictor, images, split, world, conclude, progress=progress)


@dataclass(frozen=True)
class _Unreadable:
    name: str
    reason: str


def _in_parts(
    config: EvaluateConfig,
    digest: str,
    predictor: Predictor,
    images: ImageSet,
    split: str,
    world: World,
    conclude: Callable[[evals.Classification | MultiLabel, list[ImageError]], Evaluated],
    *,
    progress: bool,
) -> Evaluated | None:
    """The measurement by all processes of the world, kept part by part in the folder until it is whole."""
    assert config.out is not None and images.labels is not None
    batch = config.batch_size or predictor.batch_size
    plan = {**parts.plan(predictor, digest, images, batch), "split": split}
    folder, size = Path(config.out) / _WORK, parts.size_of(predictor, batch, config.part_images)
    work = parts.Parts(folder, plan, len(images), size, ("npz", "json"))
    mine = work.begin(world, replace=True)
    total = sum(len(work.range_of(part)) for part in mine)
    if progress and 0 < total < len(images) and world.size == 1:
        print(f"{len(images) - total:,} of {len(images):,} images are done; going on", flush=True)
    state = MultiLabel if predictor.card.multi_label else evals.Classification
    with tqdm(total=total, unit="img", disable=None if progress else True, leave=False) as bar:
        found = parts.answers(predictor, images, work, mine, world, batch=batch, workers=config.workers, logits=True)
        for part, predictions in found:
            some = state(predictor.card.num_classes)
            read = np.array([one.logits is not None for one in predictions], dtype=bool)
            if read.any():
                places = np.flatnonzero(read) + work.range_of(part).start
                logits = np.stack([one.logits for one in predictions if one.logits is not None])
                labels = np.asarray(images.labels[places]).astype(np.int64)
                answers = torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(places)
                if isinstance(some, evals.Classification):
                    calibrated = predictor.card.calibrated
                    some.update(*answers, temperature=calibrated and calibrated.temperature)
                else:
                    some.update(*answers)
            bad = [{"name": one.name, "reason": one.error} for one in predictions if one.error is not None]
            arrays = functools.partial(_write_arrays, some.saved())
            work.write(part, len(bad), (arrays, functools.partial(_write_text, json.dumps(bad))))
            bar.update(len(predictions))
    measured: list[Evaluated] = []

    def finish(finished: list[parts.Part]) -> None:
        total = state(predictor.card.num_classes)
        unreadable: list[ImageError] = []
        for part in range(len(finished)):
            arrays, lines = work.files_of(part)
            total += _restored(arrays, state, predictor.card.num_classes)
            unreadable += [ImageError(one.name, one.reason) for one in records.read(lines, list[_Unreadable], RunError)]
        if not len(total):
            raise DataError("There is no image to evaluate on.")
        measured.append(conclude(total, unreadable))
        runs.write_json(folder / parts.MANIFEST, {"images": len(images)})

    if work.finish(finish) is None:
        return None
    work.clear()
    return measured[0]


_WORK = ".work"
"""In the folder of an evaluation: the answers so far."""


def _write_arrays(arrays: dict[str, np.ndarray], path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _restored(path: Path, state: Any, num_classes: int) -> Any:
    try:
        with np.load(path, allow_pickle=False) as file:
            return state.restored(num_classes, dict(file))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is damaged: {error}. Remove {path.parent} and begin anew.") from error


def _written(flag: str, folder: str | None, files: Sequence[str]) -> list[tuple[str, Path]]:
    """What a command writes into a folder."""
    return [] if folder is None else [(flag, Path(folder) / file) for file in files]


@dataclass(frozen=True)
class _Learnt:
    train: list[str]
    val: list[str] = dataclasses.field(default_factory=list)


def _lent(folder: Path) -> bool:
    """Whether the run's model was solved once more in the end, with the images that had been held out. RunError if its records are
    damaged."""
    try:
        return records.read(folder / "closed.json", Closed, RunError).whole is not None
    except FileNotFoundError:
        return False


def _place(data: str, name: str) -> str:
    """Where the image is that has this name in a data set; of one in a file of many it is only one and the same for the same."""
    return os.path.normpath(os.path.join(os.path.realpath(data), name))


def trained_on(model: str, data: str, images: ImageSet) -> str | None:
    """A remark if the model's run learnt from some of these images: what it makes of them says little about others.

    model, data: as they were typed; known only of a model in its run's folder, and of images where the run's were, however that is typed.
    """
    folder = runs.folder_of(model)
    try:
        given = runs.origin(folder).data
        split = records.read(folder / "split.json", _Learnt, RunError)
        names = [*split.train, *(split.val if _lent(folder) else ())]
    except FileNotFoundError:
        return None
    except RunError as error:
        return f"Whether the model was trained on some of these images is not known: {error}"
    if given is None:
        return None
    learnt = {_place(given, name) for name in names}
    count = sum(_place(data, images.name(i)) in learnt for i in range(len(images)))
    if not count:
        return None
    return (
        f"{count:,} of these {len(images):,} images are those that the model was trained on: it does better on them than on new ones. "
        "Measure on others."
    )


def refuse_run(folder: Path, command: str = "evaluate") -> None:
    """RunError if `folder` is a run of another command than `command`, whose own results would be lost, or holds such files of no run."""
    runs.refuse_others(folder, ("evaluation.json", "report.html"))
    with contextlib.suppress(FileNotFoundError):
        try:
            before = runs.origin(folder).command
        except RunError as error:
            raise RunError(f"{error} Choose another folder with --out.") from error
        if before != command:
            raise RunError(
                f"--out {folder} is the folder of a run of `bit {before}`, whose own results would be replaced. "
                "Choose another folder."
            )


def _known(splits: Splits, images: ImageSet, path: str) -> np.ndarray:
    """Indices among `images`, one of the parts, of those that the file at `path` names."""
    found = exclusions.find(splits.parts(), exclusions.read(path, "test"), path)
    part = next(part for part, candidate in splits.parts().items() if candidate is images)
    return found[part]


def _described(done: Evaluated) -> str:
    if isinstance(done.result, MultiLabel):
        assert done.thresholds is not None
        return multilabel.describe(done.result, done.images.class_names, done.thresholds)
    return evals.describe(done.result, done.images.class_names)


def choose_part(splits: Splits, asked: str) -> tuple[str, ImageSet]:
    """The part of the data that is asked for, or of "auto" the one to measure on, and what to call it; DataError if it is not there."""
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    if asked == "auto":
        name = next((name for name in ("test", "val") if parts[name] is not None), "train")
        shown = name if name != "train" else "all images"
    else:
        name = shown = asked
    chosen = parts[name]
    if chosen is None:
        present = ", ".join(part for part, images in parts.items() if images is not None)
        raise DataError(f"The data set has no {name} part, only {present}. Choose with --split.")
    return shown, chosen


def choose_split(splits: Splits, asked: str) -> tuple[str, ImageSet]:
    """The same, of images to be measured on; DataError also if they have no labels."""
    shown, chosen = choose_part(splits, asked)
    if chosen.labels is None:
        raise DataError(
            "These images have no labels to compare with. To see what the model says: bit predict MODEL IMAGES"
        )
    return shown, chosen


def match_classes(
    images: ImageSet, class_names: Sequence[str] | None, num_classes: int, subset: bool = False
) -> tuple[ImageSet, Match]:
    """The set with its labels renumbered as the model's classes, and what they were matched by (see `data.classes.match`).

    class_names: the model's; None if it knows none. subset: the set may lack some of the model's classes. Raises DataError listing the
    differences, or saying that the evidence does not decide.
    """
    assert images.labels is not None
    matched = classes.match(images.class_names, class_names, num_classes, subset)
    if class_names is None:
        names = list(map(str, range(num_classes)))
        for name, number in zip(images.class_names, matched.numbers.tolist(), strict=True):
            names[number] = name
        class_names = names
    renumbered = np.append(matched.numbers, -1)[np.asarray(images.labels)]  # -1, "no more labels", finds the last
    return dataclasses.replace(images, labels=renumbered, class_names=tuple(class_names)), matched


def doubts(matched: Match, result: evals.Classification) -> list[str]:
    """What the classes were matched by, if it is an assumption, and whether the model's answers fit another one better.

    result: the model's answers on images that `match_classes` numbered.
    """
    found = [] if matched.assumption is None else [matched.assumption]
    answers = result.records
    for reading, numbers in matched.other_readings.items():
        other = np.arange(result.num_classes)
        other[matched.numbers] = numbers
        top1 = float((other[answers["true"]] == answers["predicted"]).mean())
        if top1 > result.top1_interval[1]:
            found.append(
                f"The model's answers fit classes {reading} better: top-1 would be {top1:.1%} instead of {result.top1:.1%}. "
                "If it was trained so, say it with --class-names FILE: one line per class, the data's name, a tab, and the model's number."
            )
    return found


def measure(
    predictor: Predictor,
    images: ImageSet,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    progress: bool = False,
    late: Callable[[int], bool] | None = None,
    mapped: bool = True,
) -> tuple[evals.Classification | MultiLabel, list[ImageError]]:
    """The predictor's answers on a labelled set, and the images that cannot be read (they are left out). A multi-label model's are
    measured as such; the images may then have one label each.

    late: asked between two batches, with the number of images that are left, whether no more can be looked at. They are taken in an order
    then of which every beginning is a fair sample (`splits.in_turn`), and so are those that were looked at, a batch at least; the others
    are neither in the result nor among the unreadable. mapped: some of the answers of a single-label model are placed on a map, for a
    report.

    Raises DataError if none can be read."""
    seen = np.zeros(len(images), dtype=bool)
    order = np.arange(len(images)) if late is None else in_turn(images, seed=0)
    reached = 0
    # These are placed on the map: evenly over the set, which mostly lies class by class.
    shown = np.zeros(len(images), dtype=bool)
    if mapped:
        shown[np.linspace(0, len(images) - 1, min(len(images), projection.POINTS)).round().astype(int)] = True
    at, placed = np.empty(0, int), list[tuple[np.ndarray, torch.Tensor]]()

    def logits(batch: torch.Tensor) -> torch.Tensor:
        answers = predictor.logits(batch)
        if mapped:
            placed.append((at[shown[at]], answers[torch.from_numpy(shown[at])]))
        return answers

    def batches() -> Iterator[EvalBatch]:
        nonlocal reached, at
        size = batch_size or (predictor.batch_size if late is None else min(predictor.batch_size, _BETWEEN))
        some = images if late is None else images.subset(order)
        with tqdm(total=len(images), unit="img", disable=None if progress else True, leave=False) as bar:
            for batch in eval_batches(some, predictor.card.input, size, workers=workers, skip_bad=True):
                places = at = order[batch.indices.numpy()]
                reached = int(batch.indices[-1]) + 1
                seen[places] = True
                yield batch._replace(indices=torch.from_numpy(places))
                bar.update(len(batch.labels))
                if late is not None and late(len(images) - reached):
                    return
        reached = len(images)

    if predictor.card.multi_label:
        result = multilabel.evaluate(predictor.logits, batches(), predictor.card.num_classes)
        if not len(result):
            raise DataError("There is no image to evaluate on.")
    else:
        calibrated = predictor.card.calibrated
        result = evals.evaluate(logits, batches(), temperature=calibrated and calibrated.temperature)
        if placed:
            places, answers = zip(*placed, strict=True)
            points = projection.plane(torch.cat(answers)).tolist()
            found = sorted(zip(np.concatenate(places).tolist(), points, strict=True))
            result.positions = tuple((place, x, y) for place, (x, y) in found)
    return result, _reasons(images, np.sort(order[:reached][~seen[order[:reached]]]))


def _reasons(images: ImageSet, indices: np.ndarray) -> list[ImageError]:
    """Why those images cannot be read: the loader only leaves them out."""
    reasons = []
    for i in indices:
        try:
            images.read(int(i))
        except ImageError as error:
            reasons.append(ImageError(images.name(int(i)), error.reason))  # named as the predictions are
    return reasons
