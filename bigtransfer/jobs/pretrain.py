"""`bit pretrain`: a network from random weights on a large labelled set, alone or, under torchrun, as one of many processes."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bigtransfer import data, files, hyperrule, records, report, runs, weights
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, Vocabulary, architecture
from bigtransfer.config import PretrainConfig, command_line, seconds
from bigtransfer.data import ImageSet, exclusions, splits
from bigtransfer.data.layout import in_short
from bigtransfer.dist import World, join
from bigtransfer.errors import ConfigError, DataError, RunError, WeightsError
from bigtransfer.evals import linear
from bigtransfer.feed.augment import Growth, InceptionCrop
from bigtransfer.feed.loader import TrainLoader, eval_batches
from bigtransfer.feed.order import MixedOrder, Order
from bigtransfer.jobs import headspace, tracking, training
from bigtransfer.jobs.plan import Begun, Plan, dtype_name, recall, record, run_folder, same_threads
from bigtransfer.model import Network, ResNetV2, build
from bigtransfer.train import loop, objective, parallel
from bigtransfer.train.teacher import Teacher, open_teacher

PROBE_TEST_IMAGES = 2000
"""The most images that the probe is judged by: its standard error is then at most 1.1 points."""


def readable_names(folder_names: tuple[str, ...], path: str | None) -> tuple[str, ...]:
    """The class names that the tab-separated file `path` gives for the data set's own; the same names without a file."""
    return _readable([path] if path is not None else [], [folder_names])[0]


def _readable(paths: Sequence[str], sets: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The same for several files, as if they were one, and several sets; one of which no class is there keeps its names, if another has
    some there."""
    if not paths:
        return list(sets)
    table: dict[str, str] = {}
    for path in paths:
        try:
            lines = files.read(path, "table_bytes").decode("utf-8-sig").splitlines()
        except OSError as error:
            raise DataError(f"--class-names {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"--class-names {path} is not UTF-8 text ({error.reason} at byte {error.start})."
            ) from error
        for number, line in enumerate(lines, start=1):
            if "\t" in line:
                name, readable = line.split("\t")[:2]
                if table.setdefault(name, readable) != readable:
                    raise DataError(
                        f"--class-names {path}, line {number}: {name!r} is {readable!r}, and was {table[name]!r} before. Keep one of them."
                    )
    where = " ".join(paths)
    told = [names for names in sets if not table.keys().isdisjoint(names)] or [names for names in sets if names]
    return [_named(names, table, where) if names in told else names for names in sets]


def _named(folder_names: tuple[str, ...], table: Mapping[str, str], path: str) -> tuple[str, ...]:
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


# --- What is learnt: sets, and a teacher


@dataclass(frozen=True, eq=False, kw_only=True)
class _Set:
    """One of the sets that are learnt from."""

    title: str
    train: ImageSet
    """Without labels, if these are not looked at."""
    val: ImageSet | None
    """Labelled."""
    names: tuple[str, ...]
    """Of its classes; () if it is not told apart by them."""


def _without(
    config: PretrainConfig, opened: Sequence[data.Splits], titles: Sequence[str]
) -> tuple[list[data.Splits], dict[str, int]]:
    """The sets without the images that --exclude names, and how many of each part of each set those are."""
    if config.exclude is None:
        return list(opened), {}
    parts = {
        f"{title}/{part}" if len(opened) > 1 else part: images
        for title, found in zip(titles, opened, strict=True)
        for part, images in found.parts().items()
    }
    where = exclusions.find(parts, exclusions.read(config.exclude, "train"), config.exclude)
    kept = []
    for title, found in zip(titles, opened, strict=True):
        own = {part: where[f"{title}/{part}" if len(opened) > 1 else part] for part in found.parts()}
        kept.append(exclusions.dropped(found, own, config.exclude))
    return kept, {part: len(indices) for part, indices in where.items() if len(indices)}


def _open(config: PretrainConfig) -> tuple[list[_Set], dict[str, int]]:
    """The sets, and how many images of each part --exclude leaves out."""
    titles = _titles(config.data)
    opened = [
        data.open_dataset(
            spec,
            channels=_architecture(config).in_chans,
            multi_label=config.multi_label or config.label_separator is not None or not config.label_weight,
            label_separator=config.label_separator,
            min_classes=2 if config.label_weight else 1,
        )
        for spec in config.data
    ]
    opened, excluded = _without(config, opened, titles)
    if not config.label_weight:
        unlabelled = [dataclasses.replace(found.train, labels=None, class_names=()) for found in opened]
        return [
            _Set(title=title, train=images, val=None, names=())
            for title, images in zip(titles, unlabelled, strict=True)
        ], excluded
    bare = [spec for spec, found in zip(config.data, opened, strict=True) if found.train.labels is None]
    if bare and (config.teacher is None or len(bare) == len(opened)):
        also = " Give --label-weight 0 to learn from the teacher alone." if config.teacher is not None else ""
        raise DataError(f"{bare[0]} has no classes. Put the images into one folder per class.{also}")
    named = _readable(config.class_names or (), [found.train.class_names for found in opened])
    sets = []
    for title, found, names in zip(titles, opened, named, strict=True):
        val = found.val or found.test
        val = None if val is None or val.labels is None or not names else val
        sets.append(_Set(title=title, train=found.train, val=val, names=names))
    return sets, excluded


def _titles(specs: Sequence[str]) -> list[str]:
    """A short name for each set, no two alike."""
    titles: list[str] = []
    for spec in specs:
        name = re.split(r"[/\\:]", spec.rstrip("/\\"))[-1] or "data"
        several = sum(re.fullmatch(rf"{re.escape(name)}(-\d+)?", title) is not None for title in titles)
        titles.append(f"{name}-{several + 1}" if several else name)
    return titles


def _distinct(vocabularies: Sequence[tuple[str, Sequence[str]]]) -> tuple[str, ...]:
    """All class names in one list, where those that several vocabularies have begin with the vocabulary's name."""
    holders: dict[str, set[int]] = {}
    for number, (_, names) in enumerate(vocabularies):
        for name in names:
            holders.setdefault(name, set()).add(number)
    taken: set[str] = set()
    result: list[str] = []
    for title, names in vocabularies:
        for name in names:
            plain = f"{title}/{name}" if len(holders[name]) > 1 else name
            unique, count = plain, 1
            while unique in taken:  # such as ImageNet's two cranes
                count += 1
                unique = f"{plain} ({count})"
            taken.add(unique)
            result.append(unique)
    return tuple(result)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the sets that a pre-training learns from, if there are several or a teacher."""

    name: str
    images: records.Natural
    classes: records.Whole
    """0: its labels are not looked at."""
    share: records.Share
    """Of the images drawn."""


@dataclass(frozen=True, kw_only=True)
class Taught:
    """By whom, and how."""

    name: str
    digest: str
    """`Teacher.digest`: a run that goes on must have the same one."""
    classes: records.Natural
    size: records.Pixels
    temperature: records.NotNegative
    weight: records.NotNegative
    label_weight: records.NotNegative


@dataclass(frozen=True, kw_only=True)
class PretrainPlan(Plan):
    """One pre-training."""

    augmentation: InceptionCrop
    weights: str | None
    """The model that it goes on from."""
    processes: int
    """That take part when it begins; the numbers do not depend on it, but for rounding."""
    sets: tuple[Part, ...] | None = None
    """None: one set, and no teacher."""
    teacher: Taught | None = None

    @property
    def aim(self) -> objective.Aim:
        vocabularies = tuple(part.classes for part in self.sets or () if part.classes)
        # Where one set has all classes that the labels are of, nothing is masked.
        vocabularies = vocabularies if len(vocabularies) > 1 else ()
        if self.teacher is None:
            return objective.Aim(self.loss, vocabularies)
        taught = self.teacher
        return objective.Aim(self.loss, vocabularies, taught.label_weight, taught.weight, taught.temperature)

    @property
    def vocabularies(self) -> tuple[Vocabulary, ...] | None:
        """Whose the classes are, in the order of the head; None: of the one set."""
        found = [Vocabulary(name=part.name, classes=part.classes) for part in self.sets or () if part.classes]
        if self.teacher is not None:
            found.append(Vocabulary(name=self.teacher.name, classes=self.teacher.classes))
        return tuple(found) or None

    def order(self, sets: Sequence[ImageSet]) -> Order | None:
        """In which the images of several sets come; None: those of one."""
        if self.sets is None or len(self.sets) == 1:
            return None
        shares = [part.share for part in self.sets]
        return MixedOrder([(len(images), images.runs) for images in sets], shares, self.recipe.batch_size, self.seed)

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        del facts["processes"]
        return facts


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a pre-training's plan depends on, besides what was asked."""

    images: int
    classes: int
    """Of all vocabularies together."""
    processes: int
    device: str
    dtype: str
    sets: tuple[Part, ...] | None = None
    teacher: Taught | None = None
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
        mixup_alpha=config.mixup_alpha,
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
        sets=facts.sets,
        teacher=facts.teacher,
    )


def _architecture(config: PretrainConfig) -> Architecture:
    return dataclasses.replace(
        architecture(config.model), norm=config.norm, weight_standardization=config.weight_standardization
    )


def folder(config: PretrainConfig) -> Path:
    """Where the run lives."""
    sets = list(config.data)
    return run_folder(config.out, sets[0] if len(sets) == 1 else "+".join(_titles(sets)), config.model)


def run(config: PretrainConfig, teacher: Teacher | None = None) -> int:
    """Train, or go on training, and save the model; 0 when done, 128 + signal when stopped by one.

    teacher: in place of the one that `config.teacher` names, by which it is then only called.
    """
    with join(choose_device(config.device)) as (world, device):
        if config.headspace:
            with tempfile.TemporaryDirectory(prefix="bit-") as temporary:  # nothing of it is to be gone on with
                return _run(config, runs.Run(temporary), world, device, teacher)
        return _run(config, runs.Run(folder(config)), world, device, teacher)


def _run(config: PretrainConfig, run: runs.Run, world: World, device: torch.device, teacher: Teacher | None) -> int:
    begun = _recalled(run.folder, config, world)
    if begun is not None:
        same_threads(begun.threads)
    if config.batch_size < world.size:
        raise ConfigError(
            f"--batch-size {config.batch_size} leaves some of the {world.size} processes without an image."
        )
    if config.headspace and world.size > 1:
        raise ConfigError("--headspace measures one process: give it without torchrun.")
    if config.mixup_alpha and world.size > 1:
        raise ConfigError("--mixup-alpha blends images of one process only: leave it out, or start one process.")
    if config.teacher is not None and teacher is None:
        teacher = open_teacher(config.teacher, config.teacher_size)
    sets, excluded = _open(config)
    if not world.is_main:
        return _train(config, run, world, device, begun, sets, teacher, excluded)
    if config.exclude is not None:
        print(exclusions.told(excluded, config.exclude), flush=True)
    with run.hold(runs.RESULTS):
        return _train(config, run, world, device, begun, sets, teacher, excluded)


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
    sets: list[_Set],
    teacher: Teacher | None,
    excluded: Mapping[str, int],
) -> int:
    dtype = loop.compute_dtype(config.precision, device)
    if begun is not None:
        dtype = begun.plan.torch_dtype
    vocabularies = [(one.title, one.names) for one in sets if one.names]
    lesson = taught = None
    if teacher is not None:
        lesson = teacher.ready(device, dtype, compiled=config.compile)
        vocabularies.append(
            (teacher.name, teacher.class_names or tuple(f"{teacher.name} {i}" for i in range(lesson.classes)))
        )
        taught = Taught(
            name=teacher.name,
            digest=teacher.digest(),
            classes=lesson.classes,
            size=lesson.size,
            temperature=config.teacher_temperature,
            weight=config.teacher_weight,
            label_weight=config.label_weight,
        )
    names = _distinct(vocabularies) if len(vocabularies) > 1 or teacher is not None else vocabularies[0][1]
    together = (
        sets[0].train if len(sets) == 1 else data.together([one.train for one in sets], [one.title for one in sets])
    )
    model, known = _network(config, vocabularies, names)
    model = model.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (unknown to torch's stubs)
    parts = _parts(config, sets) if len(sets) > 1 or teacher is not None else None
    if begun is None:
        facts = Facts(
            images=len(together),
            classes=len(names),
            processes=world.size,
            device=str(device),
            dtype=dtype_name(dtype),
            sets=parts,
            teacher=taught,
            fitting=lambda share: loop.fitting_micro_batch(model, config.crop, dtype, device, share),
        )
        # By one for all: how much memory is free differs between processes, and all must split a batch alike.
        decided = dataclasses.asdict(decide(config, facts)) if world.is_main else None
        plan = records.convert(world.collect(decided)[0], PretrainPlan, "the plan", RunError)
        plan = dataclasses.replace(plan, device=str(device))
        if world.is_main:
            validated = sum(len(one.val) for one in sets if one.val is not None)
            counted: dict[str, Any] = {"train": len(together), "val": validated, "classes": len(names)}
            if config.exclude is not None:
                counted["excluded"] = sum(excluded.values())
            record(run, "pretrain", config, plan, counted)
    else:
        plan = dataclasses.replace(begun.plan, device=str(device))
        _same_images(run, plan, config, sets, len(names))
    # Also of the processes of one training, each of which has opened it for itself.
    if plan.teacher != taught:
        raise RunError(
            f"{run.folder} began with another teacher than {config.teacher} is now: the numbers of the network, or how it is shown images, "
            "differ. Bring the earlier one back, or choose another --out."
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
            + (f", from step {state.step}" if resumed else ""),
            *_described(plan, known),
            *([] if plan.sets else [f"classes: {in_short(sets[0].train.class_names)}"]),
            sep="\n",
            flush=True,
        )
    outcome = training.Outcome(finished=True)
    if state.step < recipe.steps:
        loader = TrainLoader(
            together,
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
            order=plan.order([one.train for one in sets]),
            teacher_size=None if lesson is None else lesson.size,
        )
        if config.headspace:
            take = partial(
                loop.steps,
                state,
                recipe=recipe,
                seed=plan.seed,
                device=device,
                dtype=plan.torch_dtype,
                forward=torch.compile(forward) if config.compile else forward,
                aim=plan.aim,
                lesson=lesson,
                ema_decay=plan.ema,
                learning_rate=lambda step: recipe.learning_rate(min(step, recipe.steps - 1)),
            )
            print(headspace.measure(state, loader, take, max(recipe.steps, headspace.STEPS)))
            return 0
        # Crops that grow have few sizes, and code made for one size is faster than code for any.
        compiled = torch.compile(forward, dynamic=False if config.crop_from else None) if config.compile else forward
        tracked = config.log if world.is_main else None
        with tracking.writer(tracked, run.folder, dataclasses.asdict(config)) as tell:
            outcome = training.train(
                run,
                state,
                loader,
                plan,
                forward=compiled,
                validate=_measurements(config, state, sets, plan, world),
                checkpoint_seconds=seconds(config.checkpoint_every),
                tell=tell,
                keep=config.keep_checkpoints,
                max_bad=config.max_bad_images,
                world=world,
                sync=sync,
                lesson=lesson,
            )
    if not outcome.finished:
        if world.is_main:
            print(f"Stopped after step {state.step} of {recipe.steps}; the same command goes on from there.")
        return 128 + (outcome.signal or 0)
    with state.averaged():
        tensors = parallel.whole(model)
    if world.is_main:
        _save(config, run, names, plan, tensors, several=together.several)
    return 0


def _parts(config: PretrainConfig, sets: Sequence[_Set]) -> tuple[Part, ...]:
    weights = config.set_weights or [float(len(one.train)) for one in sets]
    return tuple(
        Part(name=one.title, images=len(one.train), classes=len(one.names), share=weight / sum(weights))
        for one, weight in zip(sets, weights, strict=True)
    )


def _same_images(run: runs.Run, plan: PretrainPlan, config: PretrainConfig, sets: Sequence[_Set], classes: int) -> None:
    """RunError if the data are not those that the run began with."""
    now = _parts(config, sets)
    before = plan.sets
    if before is None and len(now) == 1:
        before = (dataclasses.replace(now[0], images=plan.images, classes=plan.classes),)
    for spec, was, found in zip(config.data, before or (), now, strict=True):
        if (was.images, was.classes) != (found.images, found.classes):
            raise RunError(
                f"{run.folder} began with {was.images:,} images of {was.classes:,} classes; {spec} now has {found.images:,} of "
                f"{found.classes:,}. Choose another --out to train on them, or remove the folder."
            )
    if plan.classes != classes:
        raise RunError(
            f"{run.folder} began with {plan.classes:,} classes in all, and now there are {classes:,}. Choose another --out."
        )


def _described(plan: PretrainPlan, known: Sequence[str]) -> list[str]:
    """Lines about several sets, the teacher, and what the network knew before."""
    lines = [
        f"{part.name}: {part.images:,} images"
        + (f" of {part.classes} classes" if part.classes else "")
        + f", {part.share:.1%} of those drawn"
        for part in plan.sets or ()
    ]
    if (taught := plan.teacher) is not None:
        lines.append(
            f"teacher: {taught.name} at {taught.size} px, {taught.classes} classes; the loss is {taught.label_weight:g} x labels + "
            f"{taught.weight:g} x distance to the teacher"
        )
    if plan.weights is not None:
        lines.append(f"from {plan.weights}, which knows the classes of: {', '.join(known) or 'none of these'}")
    return lines


def _network(
    config: PretrainConfig, vocabularies: Sequence[tuple[str, Sequence[str]]], names: tuple[str, ...]
) -> tuple[ResNetV2, list[str]]:
    """The network as it begins, the same on every process, and the vocabularies of which it knows the classes already."""
    arch = _architecture(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build(arch, len(names))
    assert isinstance(model, ResNetV2) and isinstance(model.head, nn.Linear)
    if config.loss == "sigmoid":
        nn.init.constant_(model.head.bias, objective.SIGMOID_HEAD_BIAS)
    if config.weights is None:
        return model, []
    source = weights.load(config.weights)
    card = source.card
    if card.architecture != arch:
        raise WeightsError(f"--weights {config.weights} is not a {config.model}{_norms(arch)}: its shape is another.")
    tensors = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("head.")}
    model.load_state_dict(tensors, strict=False)
    known, first = [], 0
    for title, plain in vocabularies:
        own = names[first : first + len(plain)]
        rows = _rows(card, tuple(plain), own, alone=len(vocabularies) == 1)
        if rows is not None:
            assert isinstance(source.head, nn.Linear)
            with torch.no_grad():
                model.head.weight[first : first + len(plain)] = source.head.weight[rows]
                model.head.bias[first : first + len(plain)] = source.head.bias[rows]
            known.append(title)
        first += len(plain)
    return model, known


def _norms(arch: Architecture) -> str:
    """What else than its name an architecture must share."""
    return "" if (arch.norm, arch.weight_standardization) == ("gn", True) else " with these norms"


def _rows(card: ModelCard, plain: tuple[str, ...], own: tuple[str, ...], *, alone: bool) -> list[int] | None:
    """Where a model's head has the classes of a vocabulary, which are called `plain` there or, beside others, `own`; None if it does not
    have them all. A model without names has those of the one vocabulary, if as many."""
    if card.class_names is None:
        return [*range(len(plain))] if alone and card.num_classes == len(plain) else None
    if card.class_names in (plain, own):  # whatever names are in it twice
        return [*range(len(plain))]
    places = {name: row for row, name in enumerate(card.class_names)}
    if len(set(own)) == len(own) and places.keys() >= set(own):
        return [places[name] for name in own]
    # Or a vocabulary of the model, whose names begin with its own where others have them too; or all that it has.
    first = 0
    for vocabulary in (*(card.vocabularies or ()), None):
        among = slice(first, first + vocabulary.classes) if vocabulary else slice(None)
        first = among.stop or 0
        title = f"{vocabulary.name}/" if vocabulary else ""
        names = {name.removeprefix(title): row for row, name in [*enumerate(card.class_names)][among]}
        if len(set(plain)) == len(plain) and names.keys() >= set(plain):
            return [names[name] for name in plain]
    return None


def _measurements(
    config: PretrainConfig,
    state: loop.State,
    sets: Sequence[_Set],
    plan: PretrainPlan,
    world: World,
) -> Callable[[], Mapping[str, float]] | None:
    """What is measured now and then: accuracy on the validation images, of several sets on each and their mean, and the probe."""
    parts: list[Callable[[], Mapping[str, float]]] = []
    first = 0
    for one in sets:
        classes = slice(first, first + len(one.names))
        first = classes.stop
        if one.val is not None:
            name = "val" if len(sets) == 1 else f"val/{one.title}"
            place = (plan.input, plan.torch_device, plan.torch_dtype, world)
            parts.append(training.validation(state, one.val, *place, classes=classes, name=name))
    if config.probe is not None:
        parts.append(_probe(config, state, plan))
    if not parts:
        return None

    def measure() -> dict[str, float]:
        found = {name: value for part in parts for name, value in part().items()}
        of_sets = [found[name] for one in sets if (name := f"val/{one.title}/top1") in found]
        return {"val/top1": sum(of_sets) / len(of_sets), **found} if of_sets else found

    return measure


def _probe(config: PretrainConfig, state: loop.State, plan: PretrainPlan) -> Callable[[], Mapping[str, float]]:
    """A function that solves a linear classifier on the network's features of a few images of a second set: "probe/top1" is its
    accuracy on others, by big_vision's few-shot protocol.

    Every process does all of it: with FSDP each forward pass needs all, and otherwise the rest would only wait.
    """
    assert config.probe is not None
    model = state.model
    assert isinstance(model, Network)
    opened = data.open_dataset(config.probe, channels=model.architecture.in_chans)
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
                model, eval_batches(shots, spec, state.micro_batch, skip_bad=True), device, dtype
            )
            classifier = linear.fewshot_lsr(features, labels, len(shots.class_names))
            features, labels = linear.extract_features(
                model, eval_batches(test, spec, state.micro_batch, skip_bad=True), device, dtype
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
        upstream=config.upstream or _upstream(config, plan),
        source=command_line("pretrain", asked),
        recipe=plan.recipe.to_dict(),
        metrics={key: value for key, value in measured.items() if key != "step" and isinstance(value, int | float)},
        multi_label=several and plan.loss == "sigmoid",
        vocabularies=plan.vocabularies,
    )
    file = run.folder / "model.safetensors"
    weights.save(file, model)
    shown = ", ".join(f"{key} {value:.4g}" for key, value in card.metrics.items())
    print(f"Saved {file}" + (f": {shown}" if shown else ""))
    print(f"Report: {report.write(run.folder, [])}")


def _upstream(config: PretrainConfig, plan: PretrainPlan) -> str:
    """What the network learnt from, in words."""
    sets = ", ".join(config.data)
    if plan.teacher is None:
        return sets
    return f"{sets}; taught by {plan.teacher.name}" + ("" if plan.teacher.label_weight else ", without labels")
