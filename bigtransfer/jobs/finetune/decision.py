"""What is decided about a fine-tuning before its first step: `decide`, a pure function of what was asked and the `Facts`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bigtransfer import data, hyperrule
from bigtransfer.catalog import Architecture, InputSpec, ModelCard, Readout
from bigtransfer.config import FinetuneConfig, seconds
from bigtransfer.data import Splits
from bigtransfer.data.images import Interpolation
from bigtransfer.errors import ConfigError
from bigtransfer.evals.candidates import Closed, View
from bigtransfer.feed.augment import SquareCrop
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import training
from bigtransfer.jobs.clock import AFTERWARDS
from bigtransfer.jobs.plan import Plan, dtype_name
from bigtransfer.model import Joined, Network, reading
from bigtransfer.records import NotNegative
from bigtransfer.train import loop
from bigtransfer.train.objective import LeaveOneOut

LOOKED_AT = 500
"""Images by which the penalty of a training for the closed form is chosen, at most."""

BASELINE = 2_000
"""Images that the closed form learns from at most where it is not what was asked for; a short budget allows fewer."""

LOOKS = 4
"""Times that the closed form is solved in the course of a training for it, to be measured on validation images; each is dear."""

WATCHED = 2_000
"""Validation sets of at most this many images are measured during the training too, larger ones only after it; so many choose at most."""

HOPE = 1.5
"""Times the fewest steps that must seem to fit for their speed to be measured, which takes some of the time itself."""

WORTH = 2.5
"""Times the fewest steps that there should be time for, as it seems before the closed form, if that is to go without larger sizes or mirror
images for them: as it takes longer than it seems, what seemed enough for the fewest was often too little in the end, and was given back."""

TIMED, LONGEST = 0.05, 10.0
"""Share of a budget that may go into measuring the machine's speed, which is done at most twice; and seconds of either that are
enough."""


@dataclass(frozen=True, kw_only=True)
class FinetunePlan(Plan):
    """One fine-tuning."""

    start: str = ""
    """The network that was started from, as --model may name it; empty in plans of earlier versions, which obeyed --model."""
    augmentation: SquareCrop
    linear: Literal["none", "closed", "sgd"]
    balance: bool = False
    """Whether each class counts the same, however many images it has."""
    choose: bool = False
    """Whether the norms are trained for the closed form (`hyperrule.tuning`), which is then solved anew, and the best of the two and their
    average is delivered, by the validation images."""
    frozen_stem: bool = False
    """Whether the first layer of the network stays as it is (`hyperrule.of_family`)."""
    native_size: tuple[int, int]
    """Typical height and width of the images, px, which the rule looks at."""
    tail: NotNegative = 0.0
    """What comes after the training of a budget, choice and evaluation, as far as it was measured before: in steps, as the machine's
    pace may change."""
    again: NotNegative = 0.0
    """What the closed form costs that is solved anew, likewise."""

    @property
    def judged_by(self) -> tuple[str, ...]:
        named = super().judged_by
        return ("val/mean_per_class", *named) if self.balance else named

    def facts(self) -> dict[str, Any]:
        everything = super().facts()
        del everything["tail"], everything["again"], everything["start"]
        if not self.frozen_stem:  # which earlier versions did not know of
            del everything["frozen_stem"]
        if self.choose:  # all weights and a head, in earlier versions
            everything["trained"] = "norms"
        return everything

    def forward_flops(self, side: int) -> float | None:
        return super().forward_flops(side) if self.linear == "none" and not self.choose else None


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
    """Size at which the network to start from is at its best for such images, px (`hyperrule.looking_size`)."""
    looks: tuple[tuple[int, ...], ...]
    """Sizes that the closed form may look at (`hyperrule.looking_sizes`)."""
    looks_beside: tuple[tuple[int, ...], ...] = ()
    """The same of the network beside it, if there is one."""
    device: str
    dtype: str
    speed: hyperrule.Speed
    """(crop, batch size) -> images per second of training steps; asked only under a budget."""
    tuning_speed: hyperrule.Speed
    """The same of steps that train the norms for the closed form."""
    norms: bool
    """Whether the network has any."""
    fitting: Callable[[int, int], int]
    """(crop, batch size) -> how many images at a time fit into memory."""
    judges: int = 0
    """Validation images to choose by."""
    closed: Closed | None = None
    """The closed form, if it was solved."""
    look: float = 0.0
    """What a plain forward pass at `trained_at` px costs, s, as the closed form took it, with its share of decoding; 0: not known."""
    evaluated: int = 0
    """Images that the model will be measured on."""
    interpolation: Interpolation = "bilinear"
    """How images are resized: as the network of another library was trained, or BiT's way."""
    left: Callable[[], float] = lambda: math.inf
    """How many seconds of the budget there are when this is asked."""


def find_facts(config: FinetuneConfig, model: Network, card: ModelCard, parts: Splits, device: torch.device) -> Facts:
    train, arch = parts.train, model.architecture
    if arch.fixed_size is not None and config.crop not in (None, arch.fixed_size):
        raise ConfigError(f"{arch.name} takes images of {arch.fixed_size} px only; leave out --crop {config.crop}.")
    dtype = loop.compute_dtype(config.precision, device)
    timed = min(LONGEST, TIMED / 2 * seconds(config.budget)) if config.budget is not None else 0.0

    @functools.cache
    def speed(crop: int, batch: int) -> float:
        return images_per_second(model, crop, batch, device, dtype, timed)

    trained = reading(model, tuned(arch))

    @functools.cache
    def tuning_speed(crop: int, batch: int) -> float:
        return images_per_second(trained, crop, batch, device, dtype, timed, LeaveOneOut(1.0, 1.0))

    native_size = data.native_size(train)
    other = model.beside if isinstance(model, Joined) else None
    return Facts(
        images=len(train),
        classes=len(train.class_names),
        several=train.several,
        native_size=native_size,
        architecture=model.architecture,
        trained_at=model.architecture.fixed_size or hyperrule.looking_size(card.input.size, *native_size),
        looks=hyperrule.looking_sizes(card.input.size, *native_size),
        looks_beside=() if other is None else hyperrule.looking_sizes(other.card.input.size, *native_size),
        device=str(device),
        dtype=dtype_name(dtype),
        speed=speed,
        tuning_speed=tuning_speed,
        norms=bool(trained.norm_parameters()),
        fitting=lambda crop, batch: loop.fitting_micro_batch(model, crop, dtype, device, batch),
        judges=len(parts.val or ()),
        evaluated=len((parts.test if parts.test is not None else parts.val) or ()),
        interpolation="bilinear" if arch.backbone is None else card.input.interpolation,
    )


def decide(config: FinetuneConfig, facts: Facts, why: str = "") -> FinetunePlan:
    """All that is decided about a fine-tuning, from what was asked and what was found; nothing is looked up here. why: this network, a
    sentence, if it was chosen."""
    recipe = _recipe(config, facts)
    if why:
        recipe = dataclasses.replace(recipe, notes=(why, *recipe.notes))
    chooses = _chooses(config, facts) and recipe.steps > 0
    tail = again = 0.0
    if chooses and facts.look and config.steps is None:  # of steps that are asked for nothing depends on the time
        pace = facts.tuning_speed(recipe.crop, recipe.batch_size) / recipe.batch_size
        tail, again = _afterwards(facts) * pace, _again(facts) * pace
    return FinetunePlan(
        start=config.model,
        recipe=recipe,
        architecture=_architecture(config, facts) if recipe.steps else facts.architecture,
        images=facts.images,
        classes=facts.classes,
        input=input_spec(config, facts, recipe.crop),
        seed=config.seed,
        loss="sigmoid" if facts.several else "softmax",
        eval_every=config.eval_every or max(1, math.ceil(recipe.steps / LOOKS) if chooses else recipe.steps // 10),
        device=facts.device,
        dtype=facts.dtype,
        micro_batch=config.micro_batch or facts.fitting(recipe.crop, recipe.batch_size or hyperrule.BATCH_SIZE),
        augmentation=SquareCrop(
            resize=recipe.resize,
            crop=recipe.crop,
            random_crop=config.random_crop,
            flip=config.flip,
            interpolation=facts.interpolation,
            antialias=config.antialias,
            decoder=config.decoder,
        ),
        linear=config.linear,
        balance=config.balance,
        choose=chooses,
        frozen_stem=config.linear == "none"
        and facts.architecture.backbone is not None
        and facts.architecture.backbone.patches,
        native_size=facts.native_size,
        tail=tail,
        again=again,
    )


def input_spec(config: FinetuneConfig, facts: Facts, size: int) -> InputSpec:
    return InputSpec(size=size, interpolation=facts.interpolation, antialias=config.antialias, decoder=config.decoder)


def _architecture(config: FinetuneConfig, facts: Facts) -> Architecture:
    """Of the network that is trained."""
    return tuned(facts.architecture) if _chooses(config, facts) else facts.architecture


def tuned(architecture: Architecture) -> Architecture:
    """Of the network that is trained for the closed form: seen by all of its blocks, at the size of its input, once. Of two side by side it
    is the first, as if it were alone: in the time in which both take one step it takes several (docs/lab-notes.md). Then the closed form
    is solved anew, of what it has become and of the other as it was."""
    alone = dataclasses.replace(architecture, beside=None)
    return alone.seen(Readout(blocks=tuple(range(len(alone.stages)))))


def _chooses(config: FinetuneConfig, facts: Facts) -> bool:
    """Whether the best of several classifiers is to be delivered instead of the one that was asked for."""
    return config.budget is not None and facts.closed is not None and config.linear == "none"


def _recipe(config: FinetuneConfig, facts: Facts) -> Recipe:
    """The rule's recipe for these facts, with what the user fixed, fitted to the budget if there is one."""
    if facts.closed is not None and (config.linear == "closed" or (_chooses(config, facts) and not facts.judges)):
        if config.linear == "closed":
            return hyperrule.without_steps(facts.closed.view.size)
        return hyperrule.without_steps(
            facts.closed.view.size,
            f"{facts.images} images of {facts.classes} classes are too few to hold some out that could tell whether fine-tuning helps. "
            "With --steps instead of --budget the network is fine-tuned all the same.",
        )
    name = facts.architecture.name
    recipe = hyperrule.recipe(facts.images, *facts.native_size, config.variant, architecture=name)
    fixed_size = facts.architecture.fixed_size
    if fixed_size is not None:
        recipe = hyperrule.at_size(recipe, fixed_size)
    if config.linear != "none":
        # Frozen features are at their best at the size they were trained at.
        crop = config.crop or facts.trained_at
        note = f"The network stays as it is: its features are taken of images at {crop} px."
        recipe = dataclasses.replace(recipe, resize=crop, crop=crop, notes=(recipe.notes[0], note))
    if _chooses(config, facts):
        recipe = _tuning(config, facts)
        if not recipe.steps:
            return recipe
    if config.mixup_alpha is not None:
        recipe = dataclasses.replace(recipe, mixup_alpha=config.mixup_alpha)
    recipe = dataclasses.replace(recipe, dropout=config.dropout or 0.0, l2_sp=config.l2_sp or 0.0)
    crop, resize = config.crop, config.resize
    if crop is not None or resize is not None:
        # One of the two given: the other keeps the rule's proportion.
        crop = crop or fixed_size or max(1, round((resize or 0) * recipe.crop / recipe.resize))
        resize = resize or round(crop * recipe.resize / recipe.crop)
        recipe = dataclasses.replace(recipe, crop=crop, resize=resize)
    if config.steps is not None and not _chooses(config, facts):
        recipe = hyperrule.with_steps(recipe, config.steps)
    if config.batch_size is not None and not _chooses(config, facts):
        recipe = hyperrule.with_batch_size(recipe, config.batch_size)
    if config.budget is not None and not _chooses(config, facts):
        fixed = {name for name in ("crop", "steps", "batch_size") if getattr(config, name) is not None}
        if config.resize is not None or fixed_size is not None:  # which decided the crop
            fixed.add("crop")
        recipe = hyperrule.within_budget(
            recipe,
            seconds(config.budget),
            facts.speed,
            trained_at=facts.trained_at if config.pretrained else None,
            fixed=fixed,
        )
    if facts.architecture.backbone is not None and config.linear == "none" and not _chooses(config, facts):
        own = facts.architecture.backbone
        recipe = hyperrule.of_family(recipe, batch_norm=own.batch_norm, patches=own.patches)
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


def _again(facts: Facts) -> float:
    """Seconds for the closed form that is solved anew after a training: for looking at the images that it has learnt from, and at those
    that were held out."""
    assert facts.closed is not None
    learnt = facts.closed.whole.images if facts.closed.whole else facts.closed.images
    return facts.look * learnt * facts.closed.view.passes(facts.architecture, facts.trained_at)


def _afterwards(facts: Facts) -> float:
    """Seconds for what comes after that: the choice, and the evaluation of what is perhaps both networks."""
    assert facts.closed is not None
    # What either says of the images that it has been solved once more with is known by then.
    judged = 0 if facts.closed.whole else min(facts.judges, WATCHED)
    passes = 2 * facts.closed.view.passes(facts.architecture, facts.trained_at)
    return facts.look * passes * (judged + facts.evaluated)


def _before(facts: Facts, crop: int) -> float:
    """Seconds for what comes before its first step: the features that its penalty is chosen by."""
    return facts.look * _share(facts) * min(facts.images, LOOKED_AT) * (crop / facts.trained_at) ** 2


def _share(facts: Facts) -> float:
    """Of the network that is trained, of all there is."""
    return share_of(tuned(facts.architecture), facts.architecture, facts.trained_at)


def share_of(part: Architecture, whole: Architecture, size: int) -> float:
    """What a plain forward pass of the one costs at this size, px, of what one of the other does."""
    return part.seen(None).forward_flops(size, 0) / whole.seen(None).forward_flops(size, 0)


def quickest(config: FinetuneConfig, facts: Facts, look: float, crop: int | None = None) -> float:
    """Seconds that a step of such a training takes at least, if a plain forward pass takes `look`: two of them for each image, for no
    gradient of kernels is computed. crop: px, of its images; the smallest unless given."""
    crop = crop or config.crop or _smallest(facts)
    return 2 * look * _share(facts) * _batch(config, facts) * (crop / facts.trained_at) ** 2


def hopes(config: FinetuneConfig, facts: Facts, look: float, view: View) -> tuple[float, float, float]:
    """Seconds that such a training should have beside a closed form with this view: for enough steps at the larger of its sizes (infinity
    where it has one only), for enough at the smaller, for the fewest that are worth going without something else."""
    enough = hyperrule.enough_tuning_steps(facts.images, _batch(config, facts))
    larger, step = _larger(config, facts, view), quickest(config, facts, look)
    most = math.inf if larger is None else quickest(config, facts, look, larger) * enough
    return most, step * enough, step * WORTH * hyperrule.FEWEST_STEPS


def _batch(config: FinetuneConfig, facts: Facts) -> int:
    return min(facts.images, config.batch_size or hyperrule.TUNING_BATCH)


def _smallest(facts: Facts) -> int:
    """The smallest size at which such a training sees images, px: what the closed form looks at, too."""
    return facts.architecture.fixed_size or min(map(min, facts.looks))


def _larger(config: FinetuneConfig, facts: Facts, view: View) -> int | None:
    """The next size, px, at which such a training sees images where there is time for it: twice the smallest, if what the closed form
    looks at is about as large or larger and the user has fixed none. A classifier gains more by a training at 128 px than at 64
    (docs/lab-notes.md)."""
    if config.crop is not None or config.resize is not None or facts.architecture.fixed_size is not None:
        return None
    smallest = _smallest(facts)
    larger = min(2 * smallest, max(view.sizes))
    return larger if larger >= 1.5 * smallest else None


def _room(config: FinetuneConfig, facts: Facts, crop: int) -> float:
    """Seconds that are left for the steps of such a training, and what is measured before."""
    assert config.budget is not None
    budget = seconds(config.budget)
    afterwards = min(AFTERWARDS * budget, _afterwards(facts))
    return min(facts.left(), budget) - _before(facts, crop) - _again(facts) - afterwards


def _tuning(config: FinetuneConfig, facts: Facts) -> Recipe:
    """The recipe of a training for the closed form, within a budget; without steps if there is no room for any that could help."""
    assert config.budget is not None and facts.closed is not None
    if not facts.norms:
        return hyperrule.without_norms(facts.closed.view.size)
    if config.steps is None and not hyperrule.enough_to_tune(facts.images):
        return hyperrule.too_few_to_tune(facts.closed.view.size, facts.images)
    fixed = {name: value for name in ("steps", "batch_size") if (value := getattr(config, name)) is not None}
    crop, batch = config.crop or _smallest(facts), _batch(config, facts)
    if config.resize is not None and config.crop is None and facts.architecture.fixed_size is None:
        crop = max(1, round(config.resize / hyperrule.TUNING_RATIO))
    if "steps" not in fixed:
        # Asked first, because the speed takes some seconds to be measured.
        step = quickest(config, facts, facts.look)
        room, enough_for_each = _room(config, facts, crop), WORTH * step
        fitting = room / step if step else math.inf
        if fitting >= HOPE * hyperrule.FEWEST_STEPS:
            speed = facts.tuning_speed(crop, batch)
            room, enough_for_each = _room(config, facts, crop), max(enough_for_each, HOPE * batch / speed)
            fitting = room * speed / batch
            larger = _larger(config, facts, facts.closed.view)
            enough = hyperrule.enough_tuning_steps(facts.images, batch)
            if larger is not None and fitting * (crop / larger) ** 2 >= enough:  # before that is measured too
                room = _room(config, facts, larger)
                if room * facts.tuning_speed(larger, batch) / batch >= enough:
                    crop = larger
        else:
            fitting = 0.0
        if fitting < hyperrule.FEWEST_STEPS:
            would_do = seconds(config.budget) - room + hyperrule.FEWEST_STEPS * enough_for_each
            return hyperrule.without_time(facts.closed.view.size, config.budget, room, would_do)
    left = _room(config, facts, crop)
    recipe = hyperrule.tuning(facts.images, seconds(config.budget), facts.tuning_speed, crop, left=left, fixed=fixed)
    if facts.architecture.beside is None:
        return recipe
    note = "Of the two networks the first is trained; the classifier sees what it has become beside the other, which stays as it is."
    return dataclasses.replace(recipe, notes=(*recipe.notes, note))


def images_per_second(
    model: Network,
    crop: int,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    span: float,
    aim: LeaveOneOut | None = None,
) -> float:
    """The speed of training steps at this size on this machine, as `training.images_per_second` finds it. aim: of a network without a head,
    whose norms are trained; None: all of the model is, for the softmax loss."""
    labels = torch.randint(0, 2 if aim else model.num_classes, (batch,))
    chosen = Network.norm_parameters if aim else None
    return training.images_per_second(
        model, crop, labels, model.architecture.in_chans, device, dtype, span, aim, chosen
    )
