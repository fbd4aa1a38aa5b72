"""`bit finetune`: from somebody's images to a classifier.

`finetune` reads as the whole story: open the data, load the network, solve the closed form, decide, train, choose, measure, save, report.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bigtransfer import data, evals, hyperrule, records, report, runs, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, Readout
from bigtransfer.config import FinetuneConfig, seconds
from bigtransfer.data import ImageSet, Splits, checks, exclusions, splits
from bigtransfer.data.layout import in_short
from bigtransfer.errors import ConfigError, DataError, DownloadError, RunError
from bigtransfer.evals import linear
from bigtransfer.evals.candidates import Closed, View
from bigtransfer.evals.multilabel import MultiLabel
from bigtransfer.feed.augment import SquareCrop
from bigtransfer.feed.loader import Batch, FeatureLoader, TrainLoader, eval_batches
from bigtransfer.feed.order import BalancedOrder
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import best, choice, closed, training
from bigtransfer.jobs.clock import Clock
from bigtransfer.jobs.evaluate import measure
from bigtransfer.jobs.plan import Begun, Plan, dtype_name, recall, record, run_folder, same_threads
from bigtransfer.model import ResNetV2, joined
from bigtransfer.predictor import Predictor, choose_device
from bigtransfer.terminal import line
from bigtransfer.train import checkpoint, loop

OWN_VALIDATION = 0.1
"""Share of the training images held out where the data set brings neither validation nor test images."""

TIMED = 0.05
"""Share of a budget that may go into measuring the machine's speed, which is done at most twice."""

COMPARED = 50_000
"""Validation and test sets of at most this many images are searched for copies of training images."""

WATCHED = 2_000
"""Validation sets of at most this many images are measured during the training too, larger ones only after it."""

BASELINE = 2_000
"""Images that the closed form learns from at most where it is not what was asked for; a short budget allows fewer."""

OPERATIONS = 1e14
"""Floating-point operations for the closed form's features without a budget: a quarter of an hour of one CPU core at most. GPUs are allowed
a hundred times as many."""

CLOSED = 0.2
"""Share of a budget that may go into computing the closed form's features."""

FINISHING = 2.0
"""Seconds of a budget for what comes after the last image: model, report, the end of the process; a tenth of it at most."""

JUDGING = 10
"""Training images per class from which on some are held out to choose the best of several classifiers by. Fewer cannot be spared, and
would not tell them apart."""

JUDGES, MOST_JUDGES = 100, 0.2
"""So many images are held out for that at least, but no larger share than this."""


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What a fine-tuning run left behind."""

    folder: Path
    """The run's folder: model.safetensors, report.html, metrics.jsonl, config.json, split.json."""
    recipe: Recipe
    metrics: dict[str, float]
    """`test_top1`, `test_ece`, ... or, without a test part, `val_top1`, ...; empty if the run was stopped or has nothing to be
    measured on."""
    stopped_by: int | None = None
    """The signal that interrupted the run; the same call goes on from its checkpoint."""

    @property
    def model(self) -> Path:
        """The model file."""
        return self.folder / "model.safetensors"


def run(config: FinetuneConfig) -> int:
    """`bit finetune`; 0 when done, 128 + signal when stopped by one."""
    done = finetune(config)
    if done.stopped_by is not None:
        print("\nStopped; everything so far is saved. The same command goes on from here.")
        return 128 + done.stopped_by
    print(f"\nmodel:  {done.model}\nreport: {done.folder / 'report.html'}")
    print(f"next:   bit predict {done.folder} IMAGES")
    return 0


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(Plan):
    """One fine-tuning."""

    augmentation: SquareCrop
    linear: Literal["none", "closed", "sgd"]
    balance: bool = False
    """Whether each class counts the same, however many images it has."""
    choose: bool = False
    """Whether the training starts from the closed form, and the best of that, the fine-tuned network and their average is delivered, by the
    validation images."""
    native_size: tuple[int, int]
    """Typical height and width of the images, px, which the rule looks at."""

    def forward_flops(self, side: int) -> float | None:
        return super().forward_flops(side) if self.linear == "none" else None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a fine-tuning's plan depends on, besides what was asked."""

    images: int
    """To learn from."""
    classes: int
    several: bool
    """Whether an image may have several of the classes."""
    native_size: tuple[int, int]
    """Typical height and width, px."""
    architecture: Architecture
    trained_at: int
    """Size of the images that the network to start from takes, px."""
    device: str
    dtype: str
    speed: hyperrule.Speed
    """(crop, batch size) -> images per second of training steps; asked only under a budget."""
    fitting: Callable[[int, int], int]
    """(crop, batch size) -> how many images at a time fit into memory."""
    judges: int = 0
    """Validation images to choose by."""
    closed: Closed | None = None
    """The closed form, if it was solved."""


def finetune(config: FinetuneConfig, images: Splits | None = None) -> Finetuned:
    """Adapt a model to a data set as `config` asks, in its run folder; resumes an interrupted run, returns a finished one's result.

    images: instead of what lies at `config.data`, which is then only what they are called: a set that is used as it is. Nothing is held
    out of it unless asked for, classes may be without images, no closed form is solved that was not asked for, and there is no report.

    Raises BitError for everything the user can mend; nothing is trained before the data and the model have been checked.
    """
    since = time.monotonic()
    folder = run_folder(config.out, config.data, config.model)
    begun = recall(folder, "finetune", config, FinetunePlan)
    results = (folder / "evaluation.json", folder / "model.safetensors")
    if begun is not None and all(path.is_file() for path in results) and not checkpoint.exists(folder):
        return _finished(config, folder, begun, images)
    if begun is not None:
        same_threads(begun.threads)
    device = choose_device(config.device)
    channels = _channels(config)
    opened, excluded = _without(config, _opened(config, channels) if images is None else images)
    if config.exclude is not None:
        print(exclusions.told(excluded, config.exclude), flush=True)
    parts, unreadable = _open(config, opened, folder if begun else None, as_it_is=images is not None)
    model = _load(config, len(parts.train.class_names), channels)
    card = model.card
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)

    run = runs.Run(folder)
    with run.hold():
        if begun is None:
            facts = _facts(config, model, card, parts, device)
            wanted = images is None or config.linear == "closed" or config.budget is not None
            baseline = _solve(config, run, model, parts, facts) if wanted else None
            plan = decide(config, dataclasses.replace(facts, closed=baseline))
            splits.save_split(run.folder / "split.json", parts)
            runs.write_json(run.folder / "unreadable.json", unreadable)
            found = _copies(parts) if images is None else []
            copies = [[dataclasses.asdict(one) for one in group] for group in found]
            runs.write_json(run.folder / "copies.json", copies)
            counted = _counted(config, parts) | _state_of(opened)
            if config.exclude is not None:
                counted["excluded"] = sum(excluded.values())
            record(run, "finetune", config, plan, counted)
        else:
            plan = dataclasses.replace(begun.plan, device=str(device))
            baseline = _solved(run)
            if _changed(opened, begun.data):
                print(f"note: the images of {config.data} have changed since this run began with them", file=sys.stderr)
        _tell(config, card, parts, plan, baseline)
        model = _as_planned(model, plan)

        if plan.recipe.steps:
            outcome = _train(config, run, model, parts, plan, baseline, since)
            if not outcome.finished:
                return Finetuned(folder=folder, recipe=plan.recipe, metrics={}, stopped_by=outcome.signal)
            if outcome.best is not None:
                best.load(folder, model)
                print(f"best:   the weights after step {outcome.best.step}, by the validation images")
            if plan.choose:
                model = _choose(run, model, parts, plan)
            else:
                model.card = dataclasses.replace(model.card, input=plan.input)
        else:
            model = weights.load(folder / CLOSED_MODEL)
        trained_on = Path(config.data).name or config.data
        model.card = ModelCard(
            name=folder.resolve().name,
            architecture=model.architecture,
            num_classes=plan.classes,
            input=model.card.input,
            class_names=parts.train.class_names,
            upstream="; ".join(filter(None, (card.upstream, f"fine-tuned on {trained_on}")))
            if config.pretrained
            else trained_on,
            licence=card.licence if config.pretrained else "",
            source="bit finetune",
            recipe=plan.recipe.to_dict(),
            multi_label=parts.train.several,
        )
        if parts.train.several:
            model.card = dataclasses.replace(model.card, thresholds=_thresholds(config, model, parts))
        measured = _measure(config, folder, model, parts, baseline if plan.choose or not plan.recipe.steps else None)
        model.card = dataclasses.replace(model.card, metrics=measured)
        weights.save(folder / "model.safetensors", model)
        if images is None:
            report.write(folder, [part for part in (parts.test, parts.val) if part is not None])
        checkpoint.remove(folder)
        best.remove(folder)
        (folder / CLOSED_MODEL).unlink(missing_ok=True)
    return Finetuned(folder=folder, recipe=plan.recipe, metrics=measured)


# --- The data


def _opened(config: FinetuneConfig, channels: int) -> Splits:
    """The data set as it lies there; lists of labels that all hold one are labels."""
    opened = data.open_dataset(
        config.data,
        multi_label=True,
        image_column=config.image_column,
        label_column=config.label_column,
        label_separator=config.label_separator,
        channels=channels,
    )
    labelled = [part for part in opened.parts().values() if part.several]
    if config.label_separator is None and all(part.labels is None or part.labels.shape[1] == 1 for part in labelled):
        single = {
            name: dataclasses.replace(part, labels=None if part.labels is None else part.labels[:, 0])
            for name, part in opened.parts().items()
            if part.several
        }
        opened = dataclasses.replace(opened, **single)
    return opened


def _without(config: FinetuneConfig, opened: Splits) -> tuple[Splits, dict[str, int]]:
    """The data set without what --exclude names, and how many of each part that is."""
    return (opened, {}) if config.exclude is None else exclusions.without(opened, config.exclude)


def _counted(config: FinetuneConfig, parts: Splits) -> dict[str, Any]:
    """What of the data is used, for the record."""
    return {
        "name": config.data,
        "train": len(parts.train),
        "val": len(parts.val) if parts.val else 0,
        "test": len(parts.test) if parts.test else 0,
        "classes": len(parts.train.class_names),
    }


def _state_of(opened: Splits) -> dict[str, Any]:
    """What is in the data set, for the record: to notice when that changes."""
    return {"found": sum(map(len, opened.parts().values())), "fingerprint": checks.fingerprint(opened)}


def _changed(opened: Splits, then: Mapping[str, Any]) -> bool:
    """Whether the data set holds other images, or other classes of them, than on the record of an earlier start."""
    return "fingerprint" in then and checks.fingerprint(opened) != then["fingerprint"]


def _finished(
    config: FinetuneConfig, folder: Path, begun: Begun[FinetunePlan], images: Splits | None = None
) -> Finetuned:
    """The result of a finished run; RunError if its images have changed since, which it would leave out."""
    card = weights.describe(folder / "model.safetensors")
    try:
        opened, _ = _without(config, _opened(config, card.architecture.in_chans) if images is None else images)
    except DataError:
        opened = None  # somebody cleared the images away; the result is as good as it was
    if opened is not None and _changed(opened, begun.data):
        now, then = sum(map(len, opened.parts().values())), begun.data.get("found")
        raise RunError(
            f"{folder} is finished, but the images of {config.data} have changed since: {now:,} are there now, {then:,} then, or some have "
            "other contents or classes. Choose another --out to train on them as they are now, or remove the folder."
        )
    print(f"{folder} is finished. Remove it, or choose another --out, to train again.")
    if images is None and not (folder / "report.html").is_file():  # the process died between the model and its report
        report.write(folder, [] if opened is None else list(opened.parts().values()))
    return Finetuned(folder=folder, recipe=begun.plan.recipe, metrics=dict(card.metrics))


def _open(
    config: FinetuneConfig, parts: Splits, resumed: Path | None, *, as_it_is: bool = False
) -> tuple[Splits, list[dict[str, str]]]:
    """The images to train, validate and test on, all of them readable, and names and reasons of the ones that are not. as_it_is: nothing
    is held out unless asked for, and classes may be without images."""
    if parts.train.labels is None:
        raise DataError(f"{config.data} has no classes. Put the images into one folder per class.")
    for note in parts.notes:
        print(f"note: {note}", file=sys.stderr)
    if parts.train.several and config.linear == "closed":
        raise ConfigError(
            f"--linear closed solves for one class per image; those of {config.data} have several. Use --linear sgd, or none."
        )
    if parts.train.several and config.balance:
        raise ConfigError(
            f"--balance is for one class per image; those of {config.data} have several, each learnt by itself."
        )
    split_file = resumed / "split.json" if resumed else config.split_file
    if split_file is not None:
        # What the split names was readable when it was made, so that resuming does not decode everything again.
        parts = splits.load_split(split_file, parts)
        if resumed:
            return parts, []
    unreadable: list[dict[str, str]] = []

    def readable(images: ImageSet | None) -> ImageSet | None:
        if images is None:
            return None
        if images.labels is None:
            print(
                f"note: {len(images)} images for validation or test have no classes; they are not used", file=sys.stderr
            )
            return None
        kept, bad = training.readable(images, config.skip_bad_images)
        unreadable.extend(bad)
        return kept

    train = parts.train
    if config.examples_per_class is not None:
        # Drawn before the check: thousands of images need not be decoded to train on ten.
        train = splits.per_class(train, config.examples_per_class, config.seed)
    train, val, test = readable(train), readable(parts.val), readable(parts.test)
    assert train is not None
    if unreadable:
        print(f"note: {len(unreadable)} unreadable images are left out; the report lists them", file=sys.stderr)
    if split_file is None:
        fraction = 0.0 if as_it_is and config.val_fraction is None else config.val_fraction
        if fraction is None:
            judged = config.budget is not None and config.pretrained and len(train) >= JUDGING * len(train.class_names)
            wanted = val is None and (test is None or train.several or judged)
            fraction = OWN_VALIDATION if wanted and train.class_counts().max() > 1 else 0.0
            if fraction and judged:
                fraction = min(MOST_JUDGES, max(fraction, JUDGES / len(train)))
        elif fraction > 0 and val is not None:
            raise ConfigError("--val-fraction has no effect: the data set has a validation part of its own.")
        if fraction > 0:
            train, val = splits.hold_out(train, fraction, config.seed)
    counts = train.class_counts()
    if not as_it_is and config.examples_per_class is None and counts.max() == 1 and len(counts) > 10:
        print(
            f"warning: each of the {len(train):,} training images is a class of its own; is what was taken for the classes something else, "
            "such as a number or a caption?",
            file=sys.stderr,
        )
    if len(train.class_names) < 2:
        raise DataError(
            f"{config.data} has one class only ({', '.join(train.class_names)}): there is nothing to tell apart."
        )
    empty = [name for name, count in zip(train.class_names, train.class_counts(), strict=True) if count == 0]
    if empty and not as_it_is:
        raise DataError(f"No training image of {', '.join(empty[:10])}. Add some, or remove the class.")
    return Splits(train=train, val=val, test=test, notes=parts.notes), unreadable


def _copies(parts: Splits) -> list[list[checks.Copy]]:
    """Images that are there more than once, told and returned."""
    compared = {part: images for part, images in parts.parts().items() if part == "train" or len(images) <= COMPARED}
    if len(compared) == 1 and len(parts.train) > COMPARED:
        return []
    copies = checks.find_copies(compared)
    kinds = {
        "are in several parts of the data; accuracy will look better than it is": list(filter(checks.leaked, copies)),
        "stand under different classes, of which only one can be right": list(filter(checks.contradictory, copies)),
    }
    for what, groups in kinds.items():
        if groups:
            shown = "; ".join(" = ".join(one.name for one in group[:3]) for group in groups[:5])
            more = f"; and {len(groups) - 5:,} more" if len(groups) > 5 else ""
            print(f"warning: {len(groups):,} pictures {what}: {shown}{more}. The report lists them.", file=sys.stderr)
    repeated = sum(not checks.leaked(group) and not checks.contradictory(group) for group in copies)
    if repeated:
        print(f"note: {repeated:,} pictures are there more than once; the report lists them", file=sys.stderr)
    return copies


def _channels(config: FinetuneConfig) -> int:
    """Channels of the images that the model takes; 3 if it has still to be downloaded, which comes after the data are checked."""
    if config.pretrained:
        with contextlib.suppress(DownloadError):
            return weights.describe(config.model).architecture.in_chans
    return 3


def _load(config: FinetuneConfig, num_classes: int, channels: int) -> ResNetV2:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # random weights, where there are any
        model = weights.load(config.model, num_classes=num_classes, in_chans=channels, pretrained=config.pretrained)
        # What the head saw of the network was chosen for other images, and so is a head of as many classes, which was kept: the rule
        # starts from the last map and zero.
        if model.architecture.readout is not None or model.architecture.beside is not None:
            model = joined(model, None)
        model.reset_classifier(num_classes)
    return model


# --- The plan


def _facts(config: FinetuneConfig, model: ResNetV2, card: ModelCard, parts: Splits, device: torch.device) -> Facts:
    train = parts.train
    dtype = loop.compute_dtype(config.precision, device)
    timed = TIMED / 2 * seconds(config.budget) if config.budget is not None else 0.0

    @functools.cache
    def speed(crop: int, batch: int) -> float:
        return images_per_second(model, crop, batch, device, dtype, timed)

    return Facts(
        images=len(train),
        classes=len(train.class_names),
        several=train.several,
        native_size=data.native_size(train),
        architecture=model.architecture,
        trained_at=card.input.size,
        device=str(device),
        dtype=dtype_name(dtype),
        speed=speed,
        fitting=lambda crop, batch: loop.fitting_micro_batch(model, crop, dtype, device, batch),
        judges=len(parts.val or ()),
    )


def decide(config: FinetuneConfig, facts: Facts) -> FinetunePlan:
    """All that is decided about a fine-tuning, from what was asked and what was found; nothing is looked up here."""
    recipe = _recipe(config, facts)
    return FinetunePlan(
        recipe=recipe,
        architecture=_architecture(config, facts) if recipe.steps else facts.architecture,
        images=facts.images,
        classes=facts.classes,
        input=_input(config, recipe.crop),
        seed=config.seed,
        loss="sigmoid" if facts.several else "softmax",
        eval_every=config.eval_every or max(1, recipe.steps // 10),
        device=facts.device,
        dtype=facts.dtype,
        micro_batch=config.micro_batch or facts.fitting(recipe.crop, recipe.batch_size or hyperrule.BATCH_SIZE),
        augmentation=SquareCrop(
            resize=recipe.resize,
            crop=recipe.crop,
            random_crop=config.random_crop,
            flip=config.flip,
            antialias=config.antialias,
        ),
        linear=config.linear,
        balance=config.balance,
        choose=_chooses(config, facts) and recipe.steps > 0,
        native_size=facts.native_size,
    )


def _input(config: FinetuneConfig, size: int) -> InputSpec:
    return InputSpec(size=size, antialias=config.antialias)


def _architecture(config: FinetuneConfig, facts: Facts) -> Architecture:
    """Of the network that is trained: one that starts from the closed form reads out all blocks."""
    if not _chooses(config, facts):
        return facts.architecture
    every = tuple(range(len(facts.architecture.units)))
    return dataclasses.replace(facts.architecture, readout=Readout(blocks=every))


def _as_planned(model: ResNetV2, plan: FinetunePlan) -> ResNetV2:
    """The network, with the head that the plan's is to have."""
    if not plan.choose:
        return model
    planned = joined(model, plan.architecture.readout)
    planned.reset_classifier(plan.classes)
    return planned


def _chooses(config: FinetuneConfig, facts: Facts) -> bool:
    """Whether the best of several classifiers is to be delivered instead of the one that was asked for."""
    return config.budget is not None and facts.closed is not None and config.linear == "none"


def _recipe(config: FinetuneConfig, facts: Facts) -> Recipe:
    """The rule's recipe for these facts, with what the user fixed, fitted to the budget if there is one."""
    if facts.closed is not None and (config.linear == "closed" or (_chooses(config, facts) and not facts.judges)):
        recipe = hyperrule.without_steps(facts.closed.view.size)
        if config.linear == "closed":
            return recipe
        note = (
            f"{facts.images} images of {facts.classes} classes are too few to hold some out that could tell whether fine-tuning helps. "
            "With --steps instead of --budget the network is fine-tuned all the same."
        )
        return dataclasses.replace(recipe, notes=(*recipe.notes, note))
    name = facts.architecture.name
    recipe = hyperrule.recipe(facts.images, *facts.native_size, config.variant, architecture=name)
    if config.linear != "none":
        # Frozen features are at their best at the size they were trained at.
        crop = config.crop or facts.trained_at
        note = f"The network stays as it is: its features are taken of images at {crop} px."
        recipe = dataclasses.replace(recipe, resize=crop, crop=crop, notes=(recipe.notes[0], note))
    if _chooses(config, facts):
        recipe = _tuning(config, facts)
    if config.mixup_alpha is not None:
        recipe = dataclasses.replace(recipe, mixup_alpha=config.mixup_alpha)
    recipe = dataclasses.replace(recipe, dropout=config.dropout or 0.0, l2_sp=config.l2_sp or 0.0)
    crop, resize = config.crop, config.resize
    if crop is not None or resize is not None:
        # One of the two given: the other keeps the rule's proportion.
        crop = crop or max(1, round((resize or 0) * recipe.crop / recipe.resize))
        resize = resize or round(crop * recipe.resize / recipe.crop)
        recipe = dataclasses.replace(recipe, crop=crop, resize=resize)
    if config.steps is not None and not _chooses(config, facts):
        recipe = hyperrule.with_steps(recipe, config.steps)
    if config.batch_size is not None and not _chooses(config, facts):
        recipe = hyperrule.with_batch_size(recipe, config.batch_size)
    if config.budget is not None and not _chooses(config, facts):
        fixed = {name for name in ("crop", "steps", "batch_size") if getattr(config, name) is not None}
        if config.resize is not None:  # which decided the crop
            fixed.add("crop")
        recipe = hyperrule.within_budget(
            recipe,
            seconds(config.budget),
            facts.speed,
            trained_at=facts.trained_at if config.pretrained else None,
            fixed=fixed,
        )
    if config.learning_rate is not None:
        recipe = dataclasses.replace(recipe, base_learning_rate=config.learning_rate)
    if not config.random_crop:
        recipe = dataclasses.replace(recipe, resize=recipe.crop)
    chosen = [
        f"{name.replace('_', ' ')} {value:,}"
        for name in ("steps", "batch_size", "learning_rate", "resize", "crop", "mixup_alpha", "dropout", "l2_sp")
        if (value := getattr(config, name)) is not None
    ]
    if not config.random_crop:
        chosen.append(f"no random crop, so that images are resized to {recipe.crop} px")
    if chosen:
        recipe = dataclasses.replace(recipe, notes=(*recipe.notes, f"Set by you instead: {', '.join(chosen)}."))
    return recipe


def _tuning(config: FinetuneConfig, facts: Facts) -> Recipe:
    """The recipe of a training that starts from the closed form, within a budget."""
    assert config.budget is not None and facts.closed is not None
    small = facts.trained_at
    crops = [small]
    losses = {
        judged.view.size: judged.loss
        for judged in facts.closed.judged
        if judged.view.sees_all_of_one_size and judged.loss is not None
    }
    if len(losses) > 1 and losses[2 * small] < losses[small]:
        # Half as large again in area, and four times as large, where the closed form saw more of larger images.
        crops += [round(small * 4 / 3 / 16) * 16, 2 * small]
    fixed = {name: value for name in ("steps", "batch_size", "crop") if (value := getattr(config, name)) is not None}
    if config.resize is not None and config.crop is None:
        fixed["crop"] = max(1, round(config.resize / hyperrule.TUNING_RATIO))
    return hyperrule.tuning(
        facts.images, seconds(config.budget), facts.speed, crops, spent=facts.closed.seconds, fixed=fixed
    )


def images_per_second(
    model: ResNetV2, crop: int, batch: int, device: torch.device, dtype: torch.dtype, span: float
) -> float:
    """The speed of training steps at this size on this machine: the mean of at least three steps, and of `span` seconds, of a copy of
    the network on random pixels."""
    trial = copy.deepcopy(model)
    micro = loop.fitting_micro_batch(model, crop, dtype, device, batch)
    count = min(batch, micro)
    recipe = Recipe(steps=1000, batch_size=count, resize=crop, crop=crop)
    pixels = torch.randint(0, 256, (count, crop, crop, model.architecture.in_chans), dtype=torch.uint8).permute(
        0, 3, 1, 2
    )
    labels = torch.randint(0, model.num_classes, (count,))
    state = loop.new_state(trial, recipe, micro_batch=micro)
    batches = (Batch(step, pixels, labels) for step in range(recipe.steps))
    steps, taken = loop.steps(state, batches, recipe, seed=0, device=device, dtype=dtype), 0.0
    next(steps)  # allocates
    for timed, step in enumerate(steps, start=1):
        taken += step.seconds
        if timed >= 3 and taken >= span:
            return count * timed / taken
    return count * (recipe.steps - 1) / taken


def _tell(config: FinetuneConfig, card: ModelCard, parts: Splits, plan: FinetunePlan, found: Closed | None) -> None:
    """Print what will be done and why."""
    recipe = plan.recipe
    sizes = [
        f"{len(images):,} {part}"
        for part, images in (("train", parts.train), ("val", parts.val), ("test", parts.test))
        if images
    ]
    print(f"data:   {config.data}: {', '.join(sizes)} images of {len(parts.train.class_names)} classes")
    print(f"classes: {in_short(parts.train.class_names)}")
    if parts.train.several:
        print("        an image may have several of them: each class is learnt by itself (sigmoid loss)")
    if uneven := splits.imbalance(parts.train):
        print(f"        imbalanced: {uneven}; what counts is the mean per class, not the share of all images")
        if config.balance:
            print("        --balance: each class counts the same in all that is learnt and chosen")
        else:
            print("        with --balance each class counts the same in all that is learnt and chosen")
    print(f"model:  {card.name}" + ("" if config.pretrained else " from random weights"))
    if found is not None:
        solved = (
            f"closed: a linear classifier on {found.view} of {found.images:,} images, solved in {found.seconds:.0f} s"
        )
        if found.top1 is not None:  # no image is left to judge by where a class has only one
            solved += f"; each image judged by the others: {found.top1:.1%} correct"
            if uneven and found.mean_per_class is not None:
                solved += f", {found.mean_per_class:.1%} mean per class"
        print(solved)
        if note := found.chance_note(parts.train.class_names):
            print(f"warning: {note}", file=sys.stderr)
    if not recipe.steps:
        for note in recipe.notes:
            print(f"        {note}")
        return
    print(
        f"rule:   {recipe.steps:,} steps of {recipe.batch_size} images, {recipe.resize} -> {recipe.crop} px, learning rate "
        f"{recipe.base_learning_rate:.3g}, {'MixUp ' + str(recipe.mixup_alpha) if recipe.mixup_alpha else 'no MixUp'}, "
        f"{plan.dtype} on {plan.device}"
    )
    for note in recipe.notes:
        print(f"        {note}")
    sys.stdout.flush()


# --- The work


def _train(
    config: FinetuneConfig,
    run: runs.Run,
    model: ResNetV2,
    parts: Splits,
    plan: FinetunePlan,
    baseline: Closed | None,
    since: float,
) -> training.Outcome:
    """The steps of the recipe, resumed from a checkpoint where there is one. since: when this process began (`time.monotonic`)."""
    if plan.choose:
        _start(run, model, parts.train, plan)
    linear_only = plan.linear == "sgd"
    trained = model.head if linear_only else model
    recipe, device, dtype = plan.recipe, plan.torch_device, plan.torch_dtype
    state = loop.new_state(model, recipe, micro_batch=plan.micro_batch, parameters=trained.parameters())
    watched = parts.val if config.eval_every is not None or len(parts.val or ()) <= WATCHED else None
    clock = _clock(config, run, parts, plan, baseline, len(watched or ()), since)
    if training.resume(run, state, plan):
        print(f"        resumed after step {state.step}", flush=True)
        outcome = training.ended(run, state, plan, clock)
        if outcome is not None:  # stopped between its last step and its end
            return outcome
    order = None
    if plan.balance:
        assert parts.train.labels is not None
        order = BalancedOrder(parts.train.labels, recipe.batch_size, plan.seed)
    loader: TrainLoader | FeatureLoader
    if linear_only:
        features, labels = linear.extract_features(
            model, eval_batches(parts.train, plan.input, state.micro_batch), device, dtype
        )
        loader = FeatureLoader(features, labels, batch_size=recipe.batch_size, seed=plan.seed, order=order)
    else:
        loader = TrainLoader(
            parts.train,
            plan.augmentation,
            batch_size=recipe.batch_size,
            seed=plan.seed,
            cache=config.cache,
            workers=training.spare_workers() if config.workers is None else config.workers,
            progress=True,
            order=order,
        )
    return training.train(
        run,
        state,
        loader,
        plan,
        forward=torch.compile(trained) if config.compile else trained,
        validate=training.validation(state, watched, plan.input, device, dtype) if watched else None,
        checkpoint_seconds=seconds(config.checkpoint_every),
        tensorboard=config.tensorboard,
        keep_best=clock is not None,
        clock=clock,
    )


def _clock(
    config: FinetuneConfig,
    run: runs.Run,
    parts: Splits,
    plan: FinetunePlan,
    baseline: Closed | None,
    watched: int,
    since: float,
) -> Clock | None:
    """What keeps the budget; None where there is none, or the steps are set by the user."""
    if config.budget is None or config.steps is not None:
        return None
    budget = seconds(config.budget)
    afterwards, passes = len((parts.test if parts.test is not None else parts.val) or ()), 1.0
    if plan.choose:
        most = hyperrule.most_tuning_steps(plan.images, plan.recipe.batch_size)
        afterwards += min(len(parts.val or ()), WATCHED)
        # By the closed form and the fine-tuned network: what is measured in the end may be both.
        tuned = Readout(blocks=(0,), mirrored=plan.augmentation.flip)
        views = [View(size=plan.input.size, readout=tuned), *([baseline.view] if baseline else [])]
        passes = sum(view.passes(plan.input.size) for view in views)
    else:
        most = hyperrule.recipe(plan.images, *plan.native_size, config.variant).steps
    return Clock(
        run.folder,
        budget,
        most=max(most, plan.recipe.steps),
        reserve=min(FINISHING, 0.1 * budget),
        watched=watched,
        afterwards=afterwards,
        passes=passes,
        since=since,
    )


CLOSED_MODEL = "closed.safetensors"
"""In the run's folder: the closed form, for as long as the run may still need it."""


def _solve(config: FinetuneConfig, run: runs.Run, model: ResNetV2, parts: Splits, facts: Facts) -> Closed | None:
    """The closed form, on record in the run's folder; None where there is none: several labels, random weights, another classifier
    asked for."""
    if parts.train.several or not config.pretrained or config.linear == "sgd":
        return None
    device, dtype = torch.device(facts.device), loop.compute_dtype(config.precision, torch.device(facts.device))
    count, views = _seen(config, facts, model)
    images = splits.evenly(parts.train, count, config.seed)
    solved = closed.solve(
        model,
        images,
        views,
        spec=_input(config, facts.trained_at),
        device=device,
        dtype=dtype,
        batch_size=facts.fitting(views[-1].size, hyperrule.BATCH_SIZE),
        seed=config.seed,
        balanced=config.balance,
    )
    network = solved.model
    network.card = dataclasses.replace(
        network.card, input=_input(config, solved.view.size), class_names=parts.train.class_names
    )
    weights.save(run.folder / CLOSED_MODEL, network)
    found = solved.record()
    runs.write_json(run.folder / "closed.json", dataclasses.asdict(found))
    return found


def _seen(config: FinetuneConfig, facts: Facts, network: ResNetV2) -> tuple[int, tuple[View, ...]]:
    """How many images the closed form learns from, and the views it may choose from: the more of them the less they cost."""
    ways = [closed.views(network, facts.trained_at, config.crop, mirrored=config.flip)]
    ways.append(closed.views(network, facts.trained_at, config.crop or facts.trained_at, mirrored=config.flip))
    ways.append(closed.views(network, facts.trained_at, config.crop or facts.trained_at))
    most = facts.images if config.linear == "closed" else min(facts.images, BASELINE)
    least = most if config.linear == "closed" else min(most, JUDGING * facts.classes)
    for way in ways:
        images = min(most, _affordable(config, facts, way[-1]))
        if images >= least:
            return images, way
    return least, ways[-1]


def _affordable(config: FinetuneConfig, facts: Facts, widest: View) -> int:
    """Images whose features can be computed in `CLOSED` of the budget, or without one with `OPERATIONS`."""
    arch = dataclasses.replace(facts.architecture, readout=widest.readout)
    operations = arch.forward_flops(widest.size, 0)
    if config.budget is None:
        return int(OPERATIONS * (1 if facts.device == "cpu" else 100) / operations)
    # A forward pass costs a third of a training step.
    speed = 3 * facts.speed(facts.trained_at, hyperrule.SMALLEST_BATCH)
    passes = operations / facts.architecture.forward_flops(facts.trained_at, 0)
    return int(CLOSED * seconds(config.budget) * speed / passes)


def _solved(run: runs.Run) -> Closed | None:
    """The closed form on record."""
    try:
        return records.read(run.folder / "closed.json", Closed, RunError)
    except FileNotFoundError:
        return None


def _start(run: runs.Run, model: ResNetV2, train: ImageSet, plan: FinetunePlan) -> None:
    """Give the network, which reads out all blocks already, the closed form's head. Of a run that goes on from a checkpoint the numbers do
    not matter."""
    view = View(size=plan.input.size, readout=model.architecture.readout)
    seen = torch.zeros(1, model.num_features), torch.zeros(1, dtype=torch.int64)
    if not checkpoint.exists(run.folder):
        seen = closed.features(
            model,
            splits.evenly(train, BASELINE, plan.seed),
            view,
            spec=plan.input,
            device=plan.torch_device,
            dtype=plan.torch_dtype,
            batch_size=plan.micro_batch,
        )
    probe = linear.fit(*seen, plan.classes, balanced=plan.balance)
    head = closed.trainable_head(probe.head, seen[0], plan.recipe.base_learning_rate)
    model.head = head.to(plan.torch_device)


def _choose(run: runs.Run, model: ResNetV2, parts: Splits, plan: FinetunePlan) -> ResNetV2:
    """The best of the closed form, the fine-tuned network and their average, on record in the run's folder."""
    assert parts.val is not None
    baseline = weights.load(run.folder / CLOSED_MODEL).to(plan.torch_device)
    readout = model.architecture.readout
    assert readout is not None
    tuned = joined(model, dataclasses.replace(readout, mirrored=plan.augmentation.flip))
    tuned.head = closed.plain_head(model.head)
    tuned.card = dataclasses.replace(tuned.card, input=plan.input)
    network, chosen = choice.choose(
        baseline,
        tuned,
        splits.evenly(parts.val, WATCHED, plan.seed),
        device=plan.torch_device,
        dtype=plan.torch_dtype,
        batch_size=plan.micro_batch,
        balanced=plan.balance,
    )
    runs.write_json(run.folder / "choice.json", dataclasses.asdict(chosen))
    shown = ", ".join(f"{one.kind} {one.top1:.1%}" for one in chosen.candidates)
    print(f"chosen: {chosen.delivered}, by {chosen.images:,} validation images ({shown})")
    return network


def _thresholds(config: FinetuneConfig, model: ResNetV2, parts: Splits) -> tuple[float, ...] | None:
    """The probability from which on each class is best given, chosen by the validation images; None if there are none."""
    if parts.val is None:
        return None
    predictor = Predictor(model, device=config.device, precision=config.precision)
    result, _ = measure(predictor, parts.val, progress=True)
    assert isinstance(result, MultiLabel)
    return tuple(result.best_thresholds().tolist())


def _remarks(
    config: FinetuneConfig, parts: Splits, split: str, result: evals.Classification, expected: Closed | None
) -> tuple[str, ...]:
    """What is to be known about a measurement. expected: the closed form, if the model is at least as good."""
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
    missing = [name for name, count in zip(names, result.per_class().support, strict=True) if not count]
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


def _measure(
    config: FinetuneConfig, folder: Path, model: ResNetV2, parts: Splits, expected: Closed | None
) -> dict[str, float]:
    """The model as it will be used, on the test part, else the validation part; writes evaluation.json."""
    split, images = ("test", parts.test) if parts.test is not None else ("val", parts.val)
    if images is None:
        runs.write_json(folder / "evaluation.json", {})
        return {}
    predictor = Predictor(model, device=config.device, precision=config.precision)
    result, unreadable = measure(predictor, images, progress=True)
    about = {"split": split, "model": model.card.name, "data": config.data, "unreadable": unreadable}
    if isinstance(result, MultiLabel):
        assert predictor.thresholds is not None
        chosen_here = images is parts.val and model.card.thresholds is not None
        evaluation = evals.labels_record(result, images, predictor.thresholds, chosen_here=chosen_here, **about)
        numbers = result.named(split, predictor.thresholds)
        shown = f"mean average precision {result.mean_average_precision:.1%}, F1 {numbers.get(f'{split}/micro_f1', math.nan):.1%}"
        print(f"{split}:   {shown} of {len(images):,} images" + (" that chose the thresholds" if chosen_here else ""))
    else:
        notes = _remarks(config, parts, split, result, expected)
        evaluation, numbers = evals.as_record(result, images, notes=notes, **about), result.named(split)
        low, high = result.top1_interval
        shown = "1 image" if len(images) == 1 else f"{len(images):,} images"
        print(f"{split}:   top-1 {result.top1:.1%} of {shown} (95% interval {low:.1%} to {high:.1%})")
        for note in notes:
            print(f"note: {line(note)}", file=sys.stderr)
    evals.write_record(folder / "evaluation.json", evaluation)
    return {key.replace("/", "_"): value for key, value in numbers.items()}
