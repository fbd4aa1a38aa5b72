"""`bit pretrain`: a network from random weights on a large labelled set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from bigtransfer import data, hyperrule, runs, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, architecture
from bigtransfer.config import PretrainConfig, seconds
from bigtransfer.data import ImageSet
from bigtransfer.data.augment import InceptionCrop
from bigtransfer.data.loader import TrainLoader
from bigtransfer.errors import DataError
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import training
from bigtransfer.model import build
from bigtransfer.predictor import choose_device
from bigtransfer.train import loop


def readable_names(folder_names: tuple[str, ...], path: str | None) -> tuple[str, ...]:
    """The class names that the tab-separated file `path` gives for the data set's own; the same names without a file."""
    if path is None:
        return folder_names
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"--class-names {path}: {error.strerror}") from error
    table = dict(line.split("\t")[:2] for line in lines if "\t" in line)
    missing = [name for name in folder_names if name not in table]
    if missing:
        raise DataError(
            f"--class-names {path} has no line for {len(missing)} of the {len(folder_names)} classes, such as {', '.join(missing[:5])}."
        )
    return tuple(table[name] for name in folder_names)


def run(config: PretrainConfig) -> int:
    """Train, or go on training, and save the model; 0 when done, 128 + signal when stopped by one."""
    device = choose_device(config.device)
    folder = training.run_folder(config.out, config.data, config.model)
    earlier = training.earlier(folder, "pretrain", config)
    if earlier is not None:
        training.same_threads(earlier)
    arch = dataclasses.replace(
        architecture(config.model), norm=config.norm, weight_standardization=config.weight_standardization
    )
    splits = data.open_dataset(config.data, channels=arch.in_chans)
    train_set, val_set = splits.train, splits.val or splits.test
    if train_set.labels is None:
        raise DataError(f"{config.data} has no classes. Put the images into one folder per class.")
    if val_set is not None and val_set.labels is None:
        val_set = None
    names = readable_names(train_set.class_names, config.class_names)
    record = folder / "unreadable.json"
    if earlier is not None and record.is_file():
        unreadable = json.loads(record.read_text(encoding="utf-8"))
        train_set, val_set = (_without(images, unreadable) for images in (train_set, val_set))
    else:
        train_set, unreadable = training.readable(train_set, config.skip_bad_images)
        if val_set is not None:
            val_set, bad = training.readable(val_set, config.skip_bad_images)
            unreadable += bad
    assert train_set is not None
    recipe = hyperrule.upstream(
        len(train_set),
        config.epochs,
        batch_size=config.batch_size,
        crop=config.crop,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        decay_epochs=config.decay_epochs,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
    )
    facts: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "seed": config.seed,
        "architecture": dataclasses.asdict(arch),
        "images": len(train_set),
        "min_area": config.min_area,
    }
    run = runs.Run(folder)
    with run.hold():
        if earlier is None:
            runs.write_json(record, unreadable)
        return _train(config, run, device, arch, recipe, facts, train_set, val_set, names)


def _without(images: ImageSet | None, unreadable: list[dict[str, str]]) -> ImageSet | None:
    """The set without the images that unreadable.json lists."""
    gone = {row["name"] for row in unreadable}
    if images is None or not gone:
        return images
    return images.subset([i for i in range(len(images)) if images.name(i) not in gone])


def _train(
    config: PretrainConfig,
    run: runs.Run,
    device: torch.device,
    arch: Architecture,
    recipe: Recipe,
    facts: dict[str, Any],
    train_set: ImageSet,
    val_set: ImageSet | None,
    names: tuple[str, ...],
) -> int:
    spec = InputSpec(size=config.eval_size or config.crop)
    dtype = loop.compute_dtype(config.precision, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(arch, len(names))
    model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    fitting = loop.fitting_micro_batch(model, config.crop, dtype, device, recipe.batch_size)
    state = loop.new_state(model, recipe, micro_batch=config.micro_batch or fitting)
    resumed = training.resume(run, state, facts)
    if not (run.folder / "config.json").is_file():
        runs.write_json(
            run.folder / "config.json",
            {
                "command": "pretrain",
                "asked": dataclasses.asdict(config),
                "resolved": {"device": str(device), "dtype": str(dtype), "micro_batch": state.micro_batch, **facts},
                "recipe": recipe.to_dict(),
                "environment": training.environment(device),
                "data": {"train": len(train_set), "val": len(val_set) if val_set else 0, "classes": len(names)},
            },
        )
    print(
        f"{config.model} ({sum(p.numel() for p in model.parameters()):,} parameters) on {len(train_set):,} images of {len(names)} classes: "
        f"{recipe.steps:,} steps of {recipe.batch_size}, {config.crop} px, {str(dtype).removeprefix('torch.')} on {device}"
        + (f", from step {state.step}" if resumed else ""),
        flush=True,
    )
    outcome = training.Outcome(finished=True)
    if state.step < recipe.steps:
        loader = TrainLoader(
            train_set,
            InceptionCrop(size=config.crop, min_area=config.min_area),
            batch_size=recipe.batch_size,
            seed=config.seed,
            cache=config.cache,
            workers=training.spare_workers() if config.workers is None else config.workers,
            progress=True,
        )
        outcome = training.train(
            run,
            state,
            loader,
            recipe,
            facts=facts,
            device=device,
            dtype=dtype,
            forward=torch.compile(model) if config.compile else model,
            validate=None if val_set is None else training.validation(state, val_set, spec, device, dtype),
            eval_every=config.eval_every or max(1, recipe.steps // 10),
            checkpoint_seconds=seconds(config.checkpoint_every),
            tensorboard=config.tensorboard,
        )
    if not outcome.finished:
        print(f"Stopped after step {state.step} of {recipe.steps}; the same command goes on from there.")
        return 128 + (outcome.signal or 0)
    measured = [line for line in run.metrics() if "val/top1" in line]
    card = ModelCard(
        name=config.name or run.folder.name,
        architecture=arch,
        num_classes=len(names),
        input=spec,
        class_names=names,
        upstream=config.upstream or config.data,
        source="bit pretrain",
        recipe=recipe.to_dict(),
        metrics={key: value for key, value in measured[-1].items() if key != "step"} if measured else {},
    )
    weights.save(run.folder / "model.safetensors", model, card)
    print(
        f"Saved {run.folder / 'model.safetensors'}"
        + (f": val top-1 {card.metrics['val/top1']:.2%}" if measured else "")
    )
    return 0
