"""`bit pretrain`: a network from random weights on a large labelled set, alone or, under torchrun, as one of many processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bigtransfer import data, files, hyperrule, records, report, runs, weights
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, architecture
from bigtransfer.config import PretrainConfig, command_line, seconds
from bigtransfer.data import ImageSet, splits
from bigtransfer.data.layout import in_short
from bigtransfer.dist import World, join
from bigtransfer.errors import ConfigError, DataError, RunError, WeightsError
from bigtransfer.evals import linear
from bigtransfer.feed.augment import Growth, InceptionCrop
from bigtransfer.feed.loader import TrainLoader, eval_batches
from bigtransfer.jobs import training
from bigtransfer.jobs.plan import Begun, Plan, dtype_name, recall, record, run_folder, same_threads
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
        lines = files.read(path, "table_bytes").decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"--class-names {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--class-names {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    table: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if "\t" in line:
            name, readable = line.split("\t")[:2]
            if table.setdefault(name, readable) != readable:
                raise DataError(
                    f"--class-names {path}, line {number}: {name!r} is {readable!r}, and was {table[name]!r} before. Keep one of them."
                )
    missing = [name for name in folder_names if name not in table]
    if missing:
        raise DataError(
            f"--class-names {path} has no line for {len(missing)} of the {len(folder_names)} classes, such as {', '.join(missing[:5])}."
        )
    names = tuple(table[name] for name in folder_names)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"--class-names {path} gives several classes one name: {', '.join(twice[:5])}.")
    return names


@dataclass(frozen=True, kw_only=True)
class PretrainPlan(Plan):
    """One pre-training."""

    augmentation: InceptionCrop
    weights: str | None
    """The model that it goes on from."""
    processes: int
    """That take part when it begins; the numbers do not depend on it, but for rounding."""

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        del facts["processes"]
        return facts


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a pre-training's plan depends on, besides what was asked."""

    images: int
    classes: int
    processes: int
    device: str
    dtype: str
    fitting: Callable[[int], int]
    """Images of one process -> how many at a time fit into its memory."""


def decide(config: PretrainConfig, facts: Facts) -> PretrainPlan:
    """All that is decided about a pre-training, from what was asked and what was found; nothing is looked up here."""
    recipe = hyperrule.upstream(
        facts.images,
        config.epochs,
        batch_size=config.batch_size,
        crop=config.crop,
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        decay_epochs=config.decay_epochs,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
    )
    growth = None
    if config.crop_from is not None:
        begin, end = config.crop_ramp
        growth = Growth(start=config.crop_from, steps=recipe.steps, begin=begin, end=end)
    # Of the largest part, so that it is the same on all: a restart takes what the checkpoint says, and must split as before.
    share = -(-recipe.batch_size // facts.processes)
    return PretrainPlan(
        recipe=recipe,
        architecture=_architecture(config),
        images=facts.images,
        classes=facts.classes,
        input=InputSpec(size=config.eval_size or config.crop),
        seed=config.seed,
        loss=config.loss,
        ema=config.ema,
        eval_every=config.eval_every or max(1, recipe.steps // 10),
        device=facts.device,
        dtype=facts.dtype,
        micro_batch=config.micro_batch or facts.fitting(share),
        augmentation=InceptionCrop(size=config.crop, min_area=config.min_area, style=config.crop_style, growth=growth),
        weights=config.weights,
        processes=facts.processes,
    )


def _architecture(config: PretrainConfig) -> Architecture:
    return dataclasses.replace(
        architecture(config.model), norm=config.norm, weight_standardization=config.weight_standardization
    )


def run(config: PretrainConfig) -> int:
    """Train, or go on training, and save the model; 0 when done, 128 + signal when stopped by one."""
    with join(choose_device(config.device)) as (world, device):
        folder = run_folder(config.out, config.data, config.model)
        begun = _recalled(folder, config, world)
        if begun is not None:
            same_threads(begun.threads)
        if config.batch_size < world.size:
            raise ConfigError(
                f"--batch-size {config.batch_size} leaves some of the {world.size} processes without an image."
            )
        opened = data.open_dataset(
            config.data,
            channels=_architecture(config).in_chans,
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
            return _train(config, run, world, device, begun, train_set, val_set)
        with run.hold():
            return _train(config, run, world, device, begun, train_set, val_set)


def _recalled(folder: Path, config: PretrainConfig, world: World) -> Begun[PretrainPlan] | None:
    """The run that the folder holds, on every process; only rank 0 looks into the folder: it is the one that writes there."""
    begun = recall(folder, "pretrain", config, PretrainPlan) if world.is_main else None
    (record, *_) = world.collect(None if begun is None else dataclasses.asdict(begun))
    return None if record is None else records.convert(record, Begun[PretrainPlan], str(folder), RunError)


def _train(
    config: PretrainConfig,
    run: runs.Run,
    world: World,
    device: torch.device,
    begun: Begun[PretrainPlan] | None,
    train_set: ImageSet,
    val_set: ImageSet | None,
) -> int:
    names = readable_names(train_set.class_names, config.class_names)
    model = _network(config, names).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    if begun is None:
        dtype = loop.compute_dtype(config.precision, device)
        facts = Facts(
            images=len(train_set),
            classes=len(names),
            processes=world.size,
            device=str(device),
            dtype=dtype_name(dtype),
            fitting=lambda share: loop.fitting_micro_batch(model, config.crop, dtype, device, share),
        )
        # By one for all: how much memory is free differs between processes, and all must split a batch alike.
        decided = dataclasses.asdict(decide(config, facts)) if world.is_main else None
        plan = records.convert(world.collect(decided)[0], PretrainPlan, "the plan", RunError)
        plan = dataclasses.replace(plan, device=str(device))
        if world.is_main:
            found = {"train": len(train_set), "val": len(val_set) if val_set else 0, "classes": len(names)}
            record(run, "pretrain", config, plan, found)
    else:
        plan = dataclasses.replace(begun.plan, device=str(device))
        if (plan.images, plan.classes) != (len(train_set), len(names)):
            raise RunError(
                f"{run.folder} began with {plan.images:,} images of {plan.classes:,} classes; {config.data} now has {len(train_set):,} of "
                f"{len(names):,}. Choose another --out to train on them, or remove the folder."
            )
    forward, sync = parallel.distribute(model, world, config.strategy)
    recipe = plan.recipe
    state = loop.new_state(model, recipe, micro_batch=plan.micro_batch)
    if plan.ema is not None:
        loop.track_average(state)
    resumed = training.resume(run, state, plan, world)
    if world.is_main:
        among = f", {world.size} processes ({config.strategy})" if world.size > 1 else ""
        print(
            f"{config.model} ({plan.architecture.num_parameters(plan.classes):,} parameters) on {plan.images:,} images of "
            f"{plan.classes} classes: {recipe.steps:,} steps of {recipe.batch_size}, {recipe.crop} px, {plan.dtype} on {device}{among}"
            + (f", from step {state.step}" if resumed else "")
            + f"\nclasses: {in_short(train_set.class_names)}",
            flush=True,
        )
    outcome = training.Outcome(finished=True)
    if state.step < recipe.steps:
        loader = TrainLoader(
            train_set,
            plan.augmentation,
            batch_size=recipe.batch_size,
            seed=plan.seed,
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
            plan,
            forward=torch.compile(forward) if config.compile else forward,
            validate=_measurements(config, state, val_set, plan, world),
            checkpoint_seconds=seconds(config.checkpoint_every),
            tensorboard=config.tensorboard,
            keep=config.keep_checkpoints,
            max_bad=config.max_bad_images,
            world=world,
            sync=sync,
        )
    if not outcome.finished:
        if world.is_main:
            print(f"Stopped after step {state.step} of {recipe.steps}; the same command goes on from there.")
        return 128 + (outcome.signal or 0)
    with state.averaged():
        tensors = parallel.whole(model)
    if world.is_main:
        _save(config, run, names, plan, tensors, several=train_set.several)
    return 0


def _network(config: PretrainConfig, names: tuple[str, ...]) -> ResNetV2:
    """The network as it begins: the same on every process."""
    arch = _architecture(config)
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
    plan: PretrainPlan,
    world: World,
) -> Callable[[], Mapping[str, float]] | None:
    """What is measured now and then: accuracy on the validation images, and the probe."""
    parts: list[Callable[[], Mapping[str, float]]] = []
    if val_set is not None:
        parts.append(training.validation(state, val_set, plan.input, plan.torch_device, plan.torch_dtype, world))
    if config.probe is not None:
        parts.append(_probe(config, state, plan))
    if not parts:
        return None
    return lambda: {name: value for part in parts for name, value in part().items()}


def _probe(config: PretrainConfig, state: loop.State, plan: PretrainPlan) -> Callable[[], Mapping[str, float]]:
    """A function that solves a linear classifier on the network's features of a few images of a second set: "probe/top1" is its
    accuracy on others, by big_vision's few-shot protocol.

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
    spec, device, dtype = plan.input, plan.torch_device, plan.torch_dtype

    def measure() -> Mapping[str, float]:
        with state.averaged():
            features, labels = linear.extract_features(
                state.model, eval_batches(shots, spec, state.micro_batch, skip_bad=True), device, dtype
            )
            classifier = linear.fewshot_lsr(features, labels, len(shots.class_names))
            features, labels = linear.extract_features(
                state.model, eval_batches(test, spec, state.micro_batch, skip_bad=True), device, dtype
            )
        with torch.inference_mode():
            right = (classifier(features).argmax(1) == labels).float().mean()
        return {"probe/top1": right.item()}

    return measure


def _save(
    config: PretrainConfig,
    run: runs.Run,
    names: tuple[str, ...],
    plan: PretrainPlan,
    tensors: dict[str, torch.Tensor],
    *,
    several: bool,
) -> None:
    """The finished model, from its tensors, as one file that explains itself."""
    measured = next((line for line in reversed(run.metrics()) if "loss" not in line), {})
    asked = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("out",)}
    model = build(plan.architecture, plan.classes)
    model.load_state_dict(tensors)
    model.card = card = ModelCard(
        name=config.name or run.folder.name,
        architecture=plan.architecture,
        num_classes=plan.classes,
        input=plan.input,
        class_names=names,
        upstream=config.upstream or config.data,
        source=command_line("pretrain", asked),
        recipe=plan.recipe.to_dict(),
        metrics={key: value for key, value in measured.items() if key != "step" and isinstance(value, int | float)},
        multi_label=several and plan.loss == "sigmoid",
    )
    file = run.folder / "model.safetensors"
    weights.save(file, model)
    shown = ", ".join(f"{key} {value:.4g}" for key, value in card.metrics.items())
    print(f"Saved {file}" + (f": {shown}" if shown else ""))
    print(f"Report: {report.write(run.folder, [])}")
