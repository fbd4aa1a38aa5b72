"""`bit pretrain`: a network from random weights on a large labelled set, alone or, under torchrun, as one of many processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bigtransfer import data, hyperrule, report, runs, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, architecture
from bigtransfer.config import PretrainConfig, command_line, seconds
from bigtransfer.data import ImageSet, splits
from bigtransfer.dist import World, join
from bigtransfer.errors import ConfigError, DataError, WeightsError
from bigtransfer.evals import linear
from bigtransfer.feed.augment import Growth, InceptionCrop
from bigtransfer.feed.loader import TrainLoader, eval_batches
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import training
from bigtransfer.model import ResNetV2, build
from bigtransfer.predictor import choose_device
from bigtransfer.train import loop, objective, parallel

PROBE_TEST_IMAGES = 2000
"""The most images that the probe is judged by: its standard error is then at most 1.1 points."""


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
    with join(choose_device(config.device)) as (world, device):
        folder = training.run_folder(config.out, config.data, config.model)
        # Only rank 0 looks into the folder: it is the one that writes there.
        found = training.earlier(folder, "pretrain", config) if world.is_main else None
        earlier = world.collect(found)[0]
        if earlier is not None:
            training.same_threads(earlier)
        arch = dataclasses.replace(
            architecture(config.model), norm=config.norm, weight_standardization=config.weight_standardization
        )
        if config.batch_size < world.size:
            raise ConfigError(
                f"--batch-size {config.batch_size} leaves some of the {world.size} processes without an image."
            )
        opened = data.open_dataset(
            config.data,
            channels=arch.in_chans,
            multi_label=config.multi_label or config.label_separator is not None,
            label_separator=config.label_separator,
        )
        train_set, val_set = opened.train, opened.val or opened.test
        if train_set.labels is None:
            raise DataError(f"{config.data} has no classes. Put the images into one folder per class.")
        if val_set is not None and val_set.labels is None:
            val_set = None
        run = runs.Run(folder)
        if not world.is_main:
            return _train(config, run, world, device, arch, train_set, val_set)
        with run.hold():
            return _train(config, run, world, device, arch, train_set, val_set)


def _train(
    config: PretrainConfig,
    run: runs.Run,
    world: World,
    device: torch.device,
    arch: Architecture,
    train_set: ImageSet,
    val_set: ImageSet | None,
) -> int:
    names = readable_names(train_set.class_names, config.class_names)
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
        "weights": config.weights,
        "images": len(train_set),
        "min_area": config.min_area,
        "crop_from": config.crop_from,
        "crop_ramp": config.crop_ramp,
        "loss": config.loss,
        "ema": config.ema,
    }
    spec = InputSpec(size=config.eval_size or config.crop)
    dtype = loop.compute_dtype(config.precision, device)
    model = _network(config, arch, names).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    # Of the largest part, so that it is the same on all: a restart takes what the checkpoint says, and must split as before.
    share = -(-recipe.batch_size // world.size)
    micro_batch = config.micro_batch or loop.fitting_micro_batch(model, config.crop, dtype, device, share)
    forward, sync = parallel.distribute(model, world, config.strategy)
    state = loop.new_state(model, recipe, micro_batch=micro_batch)
    if config.ema is not None:
        loop.track_average(state)
    resumed = training.resume(run, state, facts, world)
    if world.is_main and not (run.folder / "config.json").is_file():
        runs.write_json(
            run.folder / "config.json",
            {
                "command": "pretrain",
                "asked": dataclasses.asdict(config),
                "resolved": {
                    "device": str(device),
                    "dtype": str(dtype),
                    "micro_batch": state.micro_batch,
                    "processes": world.size,
                    **facts,
                },
                "recipe": recipe.to_dict(),
                "environment": training.environment(device),
                "data": {"train": len(train_set), "val": len(val_set) if val_set else 0, "classes": len(names)},
            },
        )
    if world.is_main:
        among = f", {world.size} processes ({config.strategy})" if world.size > 1 else ""
        print(
            f"{config.model} ({arch.num_parameters(len(names)):,} parameters) on {len(train_set):,} images of {len(names)} classes: "
            f"{recipe.steps:,} steps of {recipe.batch_size}, {config.crop} px, {str(dtype).removeprefix('torch.')} on {device}{among}"
            + (f", from step {state.step}" if resumed else ""),
            flush=True,
        )
    outcome = training.Outcome(finished=True)
    if state.step < recipe.steps:
        growth = None
        if config.crop_from is not None:
            begin, end = config.crop_ramp
            growth = Growth(start=config.crop_from, steps=recipe.steps, begin=begin, end=end)
        loader = TrainLoader(
            train_set,
            InceptionCrop(size=config.crop, min_area=config.min_area, growth=growth),
            batch_size=recipe.batch_size,
            seed=config.seed,
            cache=config.cache,
            workers=training.spare_workers() if config.workers is None else config.workers,
            progress=world.is_main,
            skip_bad=config.max_bad_images > 0,
            rank=world.rank,
            ranks=world.size,
            cache_folder=data.cache_folder() / "decoded" if world.local_size > 1 else None,
            device=device,
        )
        outcome = training.train(
            run,
            state,
            loader,
            recipe,
            facts=facts,
            device=device,
            dtype=dtype,
            forward=torch.compile(forward) if config.compile else forward,
            validate=_measurements(config, state, val_set, spec, device, dtype, world),
            eval_every=config.eval_every or max(1, recipe.steps // 10),
            checkpoint_seconds=seconds(config.checkpoint_every),
            tensorboard=config.tensorboard,
            keep=config.keep_checkpoints,
            loss=config.loss,
            ema_decay=config.ema,
            world=world,
            sync=sync,
            max_bad=config.max_bad_images,
            forward_flops=lambda side: arch.forward_flops(side, len(names)),
        )
    if not outcome.finished:
        if world.is_main:
            print(f"Stopped after step {state.step} of {recipe.steps}; the same command goes on from there.")
        return 128 + (outcome.signal or 0)
    with state.averaged():
        tensors = parallel.whole(model)
    if world.is_main:
        _save(config, run, arch, names, spec, recipe, tensors)
    return 0


def _network(config: PretrainConfig, arch: Architecture, names: tuple[str, ...]) -> ResNetV2:
    """The network as it begins: the same on every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(arch, len(names))
    if config.loss == "sigmoid":
        assert isinstance(model.head, nn.Linear)
        nn.init.constant_(model.head.bias, objective.SIGMOID_HEAD_BIAS)
    if config.weights is not None:
        source = weights.load(config.weights)
        card = source.card
        if card.architecture != arch or card.num_classes != len(names):
            raise WeightsError(
                f"--weights {config.weights} is not a {config.model} with the {len(names)} classes of {config.data}."
            )
        if card.class_names is not None and card.class_names != names:
            raise WeightsError(f"--weights {config.weights} has other classes than {config.data}, or in another order.")
        model.load_state_dict(source.state_dict())
    return model


def _measurements(
    config: PretrainConfig,
    state: loop.State,
    val_set: ImageSet | None,
    spec: InputSpec,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
) -> Callable[[], Mapping[str, float]] | None:
    """What is measured now and then: accuracy on the validation images, and the probe."""
    parts: list[Callable[[], Mapping[str, float]]] = []
    if val_set is not None:
        parts.append(training.validation(state, val_set, spec, device, dtype, world))
    if config.probe is not None:
        parts.append(_probe(config, state, spec, device, dtype))
    if not parts:
        return None
    return lambda: {name: value for part in parts for name, value in part().items()}


def _probe(
    config: PretrainConfig, state: loop.State, spec: InputSpec, device: torch.device, dtype: torch.dtype
) -> Callable[[], Mapping[str, float]]:
    """A function that solves a linear classifier on the network's features of a few images of a second set: "probe/top1" is its
    accuracy on others, with the fixed penalty of big_vision's few-shot evaluation.

    Every process does all of it: with FSDP each forward pass needs all, and otherwise the rest would only wait.
    """
    assert config.probe is not None
    opened = data.open_dataset(config.probe, channels=state.model.architecture.in_chans)
    held_out = opened.test or opened.val
    if opened.train.labels is None or held_out is None or held_out.labels is None:
        raise DataError(f"--probe {config.probe}: the probe needs labelled images to learn from and others to test on.")
    shots = splits.per_class(opened.train, config.probe_examples, config.seed, allow_fewer=True)
    drawn = np.random.default_rng(config.seed).permutation(len(held_out))[:PROBE_TEST_IMAGES]
    test = held_out.subset(np.sort(drawn))

    def measure() -> Mapping[str, float]:
        with state.averaged():
            features, labels = linear.extract_features(
                state.model, eval_batches(shots, spec, state.micro_batch, skip_bad=True), device, dtype
            )
            probe = linear.fit(features, labels, len(shots.class_names), penalty=linear.FEWSHOT_PENALTY)
            features, labels = linear.extract_features(
                state.model, eval_batches(test, spec, state.micro_batch, skip_bad=True), device, dtype
            )
        with torch.inference_mode():
            right = (probe.head(features).argmax(1) == labels).float().mean()
        return {"probe/top1": right.item()}

    return measure


def _save(
    config: PretrainConfig,
    run: runs.Run,
    arch: Architecture,
    names: tuple[str, ...],
    spec: InputSpec,
    recipe: Recipe,
    tensors: dict[str, torch.Tensor],
) -> None:
    """The finished model, from its tensors, as one file that explains itself."""
    measured = next((line for line in reversed(run.metrics()) if "loss" not in line), {})
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("out",)}
    model = build(arch, len(names))
    model.load_state_dict(tensors)
    model.card = card = ModelCard(
        name=config.name or run.folder.name,
        architecture=arch,
        num_classes=len(names),
        input=spec,
        class_names=names,
        upstream=config.upstream or config.data,
        source=command_line("pretrain", asked),
        recipe=recipe.to_dict(),
        metrics={key: value for key, value in measured.items() if key != "step"},
    )
    file = run.folder / "model.safetensors"
    weights.save(file, model)
    shown = ", ".join(f"{key} {value:.4g}" for key, value in card.metrics.items())
    print(f"Saved {file}" + (f": {shown}" if shown else ""))
    print(f"Report: {report.write(run.folder, [])}")
