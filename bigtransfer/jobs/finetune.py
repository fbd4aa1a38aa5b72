"""`bit finetune`: from somebody's images to a classifier.

`finetune` reads as the whole story: open the data, ask the rule, load the network, train, measure, save, report.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigtransfer import data, evals, hyperrule, report, runs, weights
from bigtransfer.catalog import ARCHITECTURES, InputSpec, ModelCard
from bigtransfer.config import FinetuneConfig, seconds
from bigtransfer.data import ImageSet, Splits, checks, splits
from bigtransfer.errors import ConfigError, DataError, DownloadError
from bigtransfer.evals import linear
from bigtransfer.feed.augment import SquareCrop
from bigtransfer.feed.loader import Batch, FeatureLoader, TrainLoader, eval_batches
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import training
from bigtransfer.jobs.evaluate import measure
from bigtransfer.model import ResNetV2
from bigtransfer.predictor import Predictor, choose_device
from bigtransfer.train import checkpoint, loop

OWN_VALIDATION = 0.1
"""Share of the training images held out where the data set brings neither validation nor test images."""

TIMED = 0.05
"""Share of a budget that may go into measuring the machine's speed, which is done at most twice."""

WATCHED = 2_000
"""Validation sets of at most this many images are measured during the training too, larger ones only after it."""


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What a fine-tuning run left behind."""

    folder: Path
    """The run's folder: model.safetensors, report.html, metrics.jsonl, config.json, split.json."""
    recipe: Recipe
    metrics: dict[str, float]
    """`test_top1`, `test_top5`, ... or, without a test part, `val_top1`, ...; empty if the run was stopped or has nothing to be
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


def finetune(config: FinetuneConfig) -> Finetuned:
    """Adapt a model to a data set as `config` asks, in its run folder; resumes an interrupted run, returns a finished one's result.

    Raises BitError for everything the user can mend; nothing is trained before the data and the model have been checked.
    """
    folder = training.run_folder(config.out, config.data, config.model)
    earlier = training.earlier(folder, "finetune", config)
    results = (folder / "evaluation.json", folder / "model.safetensors")
    if earlier is not None and all(path.is_file() for path in results) and not checkpoint.exists(folder):
        print(f"{folder} is finished. Remove it, or choose another --out, to train again.")
        return _finished(folder, earlier)
    if earlier is not None:
        training.same_threads(earlier)
    device = choose_device(config.device)
    dtype = loop.compute_dtype(config.precision, device)
    channels = _channels(config)
    parts, unreadable = _open(config, folder if earlier else None, channels)
    model = _load(config, len(parts.train.class_names), channels)
    card = model.card
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)

    run = runs.Run(folder)
    with run.hold():
        if earlier is None:
            height, width = data.native_size(parts.train)
            recipe = _decide(config, model, card, len(parts.train), height, width, device, dtype)
            micro_batch = config.micro_batch or loop.fitting_micro_batch(
                model, recipe.crop, dtype, device, recipe.batch_size
            )
            resolved = {
                "device": str(device),
                "dtype": str(dtype).removeprefix("torch."),
                "micro_batch": micro_batch,
                "architecture": dataclasses.asdict(model.architecture),
                "native_size": [height, width],
            }
            _record(run, config, parts, unreadable, recipe, resolved, device)
        else:
            recipe, resolved = Recipe.from_dict(earlier["recipe"]), earlier["resolved"]
            dtype = getattr(torch, resolved["dtype"])
        _tell(config, card, parts, recipe, resolved)

        spec = InputSpec(size=recipe.crop, antialias=config.antialias)
        if config.linear == "closed":
            outcome = training.Outcome(finished=True)
            _fit_linear(model, parts.train, spec, device, dtype, resolved["micro_batch"])
        else:
            outcome = _train(config, run, model, parts, recipe, spec, resolved, device, dtype)
        if not outcome.finished:
            return Finetuned(folder=folder, recipe=recipe, metrics={}, stopped_by=outcome.signal)

        trained_on = Path(config.data).name or config.data
        model.card = ModelCard(
            name=folder.resolve().name,
            architecture=model.architecture,
            num_classes=len(parts.train.class_names),
            input=spec,
            class_names=parts.train.class_names,
            upstream="; ".join(filter(None, (card.upstream, f"fine-tuned on {trained_on}")))
            if config.pretrained
            else trained_on,
            licence=card.licence if config.pretrained else "",
            source="bit finetune",
            recipe=recipe.to_dict(),
        )
        measured = _measure(config, folder, model, parts)
        model.card = dataclasses.replace(model.card, metrics=measured)
        weights.save(folder / "model.safetensors", model)
        report.write(folder, [images for images in (parts.test, parts.val) if images is not None])
        checkpoint.remove(folder)
    return Finetuned(folder=folder, recipe=recipe, metrics=measured)


def _record(
    run: runs.Run,
    config: FinetuneConfig,
    parts: Splits,
    unreadable: list[dict[str, str]],
    recipe: Recipe,
    resolved: dict[str, Any],
    device: torch.device,
) -> None:
    """Write down what was asked and decided. config.json comes last: where it is, a resume finds the rest too."""
    splits.save_split(run.folder / "split.json", parts)
    runs.write_json(run.folder / "unreadable.json", unreadable)
    runs.write_json(
        run.folder / "config.json",
        {
            "command": "finetune",
            "asked": dataclasses.asdict(config),
            "resolved": resolved,
            "recipe": recipe.to_dict(),
            "environment": training.environment(device),
            "data": {
                "name": config.data,
                "train": len(parts.train),
                "val": len(parts.val) if parts.val else 0,
                "test": len(parts.test) if parts.test else 0,
                "classes": len(parts.train.class_names),
            },
        },
    )


def _finished(folder: Path, earlier: dict[str, Any]) -> Finetuned:
    card = weights.describe(folder / "model.safetensors")
    return Finetuned(folder=folder, recipe=Recipe.from_dict(earlier["recipe"]), metrics=dict(card.metrics))


def _open(config: FinetuneConfig, resumed: Path | None, channels: int) -> tuple[Splits, list[dict[str, str]]]:
    """The images to train, validate and test on, all of them readable, and names and reasons of the ones that are not."""
    parts = data.open_dataset(
        config.data, image_column=config.image_column, label_column=config.label_column, channels=channels
    )
    if parts.train.labels is None:
        raise DataError(f"{config.data} has no classes. Put the images into one folder per class.")
    for note in parts.notes:
        print(f"note: {note}", file=sys.stderr)
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
        fraction = config.val_fraction
        if fraction is None:
            fraction = OWN_VALIDATION if val is None and test is None and train.class_counts().max() > 1 else 0.0
        elif fraction > 0 and val is not None:
            raise ConfigError("--val-fraction has no effect: the data set has a validation part of its own.")
        if fraction > 0:
            train, val = splits.hold_out(train, fraction, config.seed)
    if len(train.class_names) < 2:
        raise DataError(
            f"{config.data} has one class only ({', '.join(train.class_names)}): there is nothing to tell apart."
        )
    empty = [name for name, count in zip(train.class_names, train.class_counts(), strict=True) if count == 0]
    if empty:
        raise DataError(f"No training image of {', '.join(empty[:10])}. Add some, or remove the class.")
    for other in (val, test):
        twins = checks.find_duplicates(train, other) if other is not None and len(other) <= 50_000 else []
        if twins:
            print(
                f"warning: {len(twins)} images are both in train and in {'val' if other is val else 'test'}, such as {twins[0][0]}; "
                "accuracy will look better than it is",
                file=sys.stderr,
            )
    return Splits(train=train, val=val, test=test, notes=parts.notes), unreadable


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
        # A published head with as many classes as ours was kept, but they are others: the rule starts from zero.
        model.head = nn.Linear(model.num_features, num_classes)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


def _decide(
    config: FinetuneConfig,
    model: ResNetV2,
    card: ModelCard,
    num_examples: int,
    height: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Recipe:
    """The rule's recipe for these facts, with what the user fixed, fitted to the budget if there is one."""
    arch = model.architecture
    known = (name for name, one in ARCHITECTURES.items() if (one.units, one.width) == (arch.units, arch.width))
    recipe = hyperrule.recipe(num_examples, height, width, config.variant, architecture=next(known, ""))
    if config.linear != "none":
        # Frozen features are at their best at the size they were trained at.
        crop = config.crop or card.input.size
        recipe = dataclasses.replace(recipe, resize=crop, crop=crop)
    if config.linear == "closed":
        note = f"No steps: the classifier is solved exactly on features at {recipe.crop} px."
        return dataclasses.replace(recipe, notes=(note,))
    if config.mixup_alpha is not None:
        recipe = dataclasses.replace(recipe, mixup_alpha=config.mixup_alpha)
    crop, resize = config.crop, config.resize
    if crop is not None or resize is not None:
        # One of the two given: the other keeps the rule's proportion.
        crop = crop or max(1, round((resize or 0) * recipe.crop / recipe.resize))
        resize = resize or round(crop * recipe.resize / recipe.crop)
        recipe = dataclasses.replace(recipe, crop=crop, resize=resize)
    if config.steps is not None:
        recipe = hyperrule.with_steps(recipe, config.steps)
    if config.batch_size is not None:
        recipe = hyperrule.with_batch_size(recipe, config.batch_size)
    if config.budget is not None:
        budget = seconds(config.budget)
        fixed = {name for name in ("crop", "steps", "batch_size") if getattr(config, name) is not None}
        if config.resize is not None:  # which decided the crop
            fixed.add("crop")
        recipe = hyperrule.within_budget(
            recipe,
            budget,
            lambda crop, batch: images_per_second(model, crop, batch, device, dtype, TIMED / 2 * budget),
            trained_at=card.input.size if config.pretrained else None,
            fixed=fixed,
        )
    if config.learning_rate is not None:
        recipe = dataclasses.replace(recipe, base_learning_rate=config.learning_rate)
    if not config.random_crop:
        recipe = dataclasses.replace(recipe, resize=recipe.crop)
    chosen = [
        f"{name.replace('_', ' ')} {value:,}"
        for name in ("steps", "batch_size", "learning_rate", "resize", "crop", "mixup_alpha")
        if (value := getattr(config, name)) is not None
    ]
    if chosen:
        recipe = dataclasses.replace(recipe, notes=(*recipe.notes, f"Set by you instead: {', '.join(chosen)}."))
    return recipe


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


def _tell(config: FinetuneConfig, card: ModelCard, parts: Splits, recipe: Recipe, resolved: dict[str, Any]) -> None:
    """Print what will be done and why."""
    sizes = [
        f"{len(images):,} {part}"
        for part, images in (("train", parts.train), ("val", parts.val), ("test", parts.test))
        if images
    ]
    print(f"data:   {config.data}: {', '.join(sizes)} images of {len(parts.train.class_names)} classes")
    print(f"model:  {card.name}" + ("" if config.pretrained else " from random weights"))
    if config.linear == "closed":
        print(f"rule:   a linear classifier on the frozen network, solved exactly; images at {recipe.crop} px")
        return
    print(
        f"rule:   {recipe.steps:,} steps of {recipe.batch_size} images, {recipe.resize} -> {recipe.crop} px, learning rate "
        f"{recipe.base_learning_rate:.3g}, {'MixUp ' + str(recipe.mixup_alpha) if recipe.mixup_alpha else 'no MixUp'}, "
        f"{resolved['dtype']} on {resolved['device']}"
    )
    for note in recipe.notes:
        print(f"        {note}")
    sys.stdout.flush()


def _train(
    config: FinetuneConfig,
    run: runs.Run,
    model: ResNetV2,
    parts: Splits,
    recipe: Recipe,
    spec: InputSpec,
    resolved: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> training.Outcome:
    """The steps of the recipe, resumed from a checkpoint where there is one."""
    linear_only = config.linear == "sgd"
    trained = model.head if linear_only else model
    state = loop.new_state(model, recipe, micro_batch=resolved["micro_batch"], parameters=trained.parameters())
    facts = {
        "recipe": {key: value for key, value in recipe.to_dict().items() if key != "notes"},
        "seed": config.seed,
        "architecture": resolved["architecture"],
        "images": len(parts.train),
        "classes": len(parts.train.class_names),
        "linear": config.linear,
        "flip": config.flip,
        "random_crop": config.random_crop,
        "antialias": config.antialias,
        "dtype": resolved["dtype"],
    }
    if training.resume(run, state, facts):
        print(f"        resumed after step {state.step}", flush=True)
        if state.step == recipe.steps:  # stopped between its last step and its end
            return training.Outcome(finished=True)
    workers = training.spare_workers() if config.workers is None else config.workers
    loader: TrainLoader | FeatureLoader
    if linear_only:
        features, labels = linear.extract_features(
            model, eval_batches(parts.train, spec, state.micro_batch), device, dtype
        )
        loader = FeatureLoader(features, labels, batch_size=recipe.batch_size, seed=config.seed)
    else:
        augmentation = SquareCrop(
            resize=recipe.resize,
            crop=recipe.crop,
            random_crop=config.random_crop,
            flip=config.flip,
            antialias=config.antialias,
        )
        loader = TrainLoader(
            parts.train,
            augmentation,
            batch_size=recipe.batch_size,
            seed=config.seed,
            cache=config.cache,
            workers=workers,
            progress=True,
        )
    watched = parts.val if config.eval_every is not None or len(parts.val or ()) <= WATCHED else None
    return training.train(
        run,
        state,
        loader,
        recipe,
        facts=facts,
        device=device,
        dtype=dtype,
        forward=torch.compile(trained) if config.compile else trained,
        validate=training.validation(state, watched, spec, device, dtype) if watched else None,
        eval_every=config.eval_every or max(1, recipe.steps // 10),
        checkpoint_seconds=seconds(config.checkpoint_every),
        tensorboard=config.tensorboard,
        forward_flops=None if linear_only else lambda side: model.architecture.forward_flops(side, model.num_classes),
    )


def _fit_linear(
    model: ResNetV2, train: ImageSet, spec: InputSpec, device: torch.device, dtype: torch.dtype, batch_size: int
) -> None:
    """Put the closed-form linear classifier in place of the head."""
    started = time.perf_counter()
    features, labels = linear.extract_features(model, eval_batches(train, spec, batch_size), device, dtype)
    probe = linear.fit(features, labels, len(train.class_names))
    model.head = probe.head.to(device)
    solved = f"        solved in {time.perf_counter() - started:.1f} s"
    if math.isfinite(probe.leave_one_out_top1):  # no image is left to judge by where a class has only one
        solved += f"; each training image judged by the others: {probe.leave_one_out_top1:.1%} correct"
    print(solved)


def _measure(config: FinetuneConfig, folder: Path, model: ResNetV2, parts: Splits) -> dict[str, float]:
    """The model as it will be used, on the test part, else the validation part; writes evaluation.json."""
    split, images = ("test", parts.test) if parts.test is not None else ("val", parts.val)
    if images is None:
        runs.write_json(folder / "evaluation.json", {})
        return {}
    predictor = Predictor(model, device=config.device, precision=config.precision)
    result, unreadable = measure(predictor, images, progress=True)
    evals.save_evaluation(
        folder, result, images, split=split, model=model.card.name, data=config.data, unreadable=unreadable
    )
    low, high = result.top1_interval
    print(f"{split}:   top-1 {result.top1:.1%} of {len(images):,} images (95% interval {low:.1%} to {high:.1%})")
    return {key.replace("/", "_"): value for key, value in result.named(split).items()}
