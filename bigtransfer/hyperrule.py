"""The BiT-HyperRule: facts about a task in, a complete training recipe out. Pure functions, no torch.

Source: arXiv 1912.11370 section 3.3 and the released code (google-research/big_transfer, `bit_hyperrule.py`). The two disagree in
three places, so there are two variants:

                         paper (text)                       code (released; what the published numbers were made with)
    warm-up              none mentioned: none               100 steps (small), 500 (medium, large)
    learning rate / 10   after 30, 60, 90 % of the steps    small after steps 200, 300, 400 (40, 60, 80 %); else 30, 60, 90 %
    images >= 96 x 96    448 -> 384; R152x4 512 -> 480      512 -> 480 for every network
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from bigtransfer.errors import ConfigError
from bigtransfer.records import NotNegative, Pixels, Share, Whole

Variant = Literal["paper", "code"]
Speed = Callable[[int, int], float]
"""(crop, batch size) -> images per second of training steps."""

BASE_LEARNING_RATE = 0.003
BATCH_SIZE = 512
MOMENTUM = 0.9
SMALL_BELOW = 20_000
"""Tasks with fewer training images are small: 500 steps, no MixUp."""
MEDIUM_BELOW = 500_000
"""Tasks with fewer training images are medium: 10,000 steps; the others large: 20,000 steps."""
LOW_RESOLUTION_AREA = 96 * 96
"""Images with fewer pixels than this are resized to 160 and cropped to 128."""

# Size class -> (steps, warm-up, steps after which the learning rate falls tenfold): the released code's "supports".
_CODE_SCHEDULE = {
    "small": (500, 100, (200, 300, 400)),
    "medium": (10_000, 500, (3_000, 6_000, 9_000)),
    "large": (20_000, 500, (6_000, 12_000, 18_000)),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything the training loop needs to know; made by `recipe` (transfer) or `upstream` (pre-training)."""

    steps: Whole
    """Optimizer steps; 0: the classifier is solved in closed form (`without_steps`)."""
    batch_size: Whole
    """Images per optimizer step, 1 or more; smaller sets repeat their images within a batch. 0 without steps."""
    resize: Pixels
    """Both sides are resized to this, px, ignoring the aspect ratio."""
    crop: Pixels
    """Side of the random square crop that the network sees in training, px; evaluation resizes straight to it."""
    mixup_alpha: NotNegative = 0.0
    """MixUp draws one lambda ~ Beta(alpha, alpha) per step; 0: no MixUp."""
    base_learning_rate: NotNegative = BASE_LEARNING_RATE
    warmup: Whole = 0
    """Steps of linear warm-up from 0."""
    decays: tuple[Whole, ...] = ()
    """The learning rate is divided by 10 on every step number greater than each of these."""
    schedule: Literal["staircase", "cosine"] = "staircase"
    """cosine (pre-training, and `tuning`): half a cosine from the base rate to 0 over the steps after the warm-up."""
    momentum: Share = MOMENTUM
    weight_decay: NotNegative = 0.0
    """L2 penalty on kernels and the head's weights, added to their gradients; biases and norms have none."""
    dropout: Share = 0.0
    """Share of the features before the head that are left out at random, image by image; the others make up for it."""
    l2_sp: NotNegative = 0.0
    """Decay of all weights but the head's towards those that the training starts from (L2-SP, arXiv 1802.01483): this much of the
    difference is added to the gradient. The head has no such weights."""
    variant: str = "code"
    size_class: str = ""
    notes: tuple[str, ...] = ()
    """What was decided and why, and what a time budget gave up; sentences for people."""

    def __post_init__(self) -> None:
        if self.steps and not self.batch_size:
            raise ValueError("batch_size is 0 though steps is not")

    def learning_rate(self, step: float) -> float:
        """The learning rate of optimizer step `step`, counted from 0 as in the released code: step 0 of a warm-up has rate 0, and
        the step whose number equals a decay mark still has the higher rate. Between two steps (see `Schedule`) a warm-up and a cosine
        are in between too. ValueError outside 0 <= step < steps."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is outside 0..{self.steps - 1}")
        if step < self.warmup:
            return self.base_learning_rate * step / self.warmup
        if self.schedule == "cosine":
            progress = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.base_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        return self.base_learning_rate * 0.1 ** sum(mark < step for mark in self.decays)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


@dataclass(frozen=True)
class Schedule:
    """A recipe whose number of steps is changed on the way, because the time turns out to be enough for fewer or for more.

    What is left of warm-up, decays or cosine at such a change is spread evenly over the steps that are left, so that the rate goes on
    from where it is and still ends where it should. Until the first change the recipe's own steps and rates, bit for bit.
    """

    recipe: Recipe
    changes: tuple[tuple[int, int], ...] = ()
    """(steps taken until then, steps in all from then on), ascending; as many in all as taken ends the training."""

    def __post_init__(self) -> None:
        taken, steps = 0, self.recipe.steps
        for change in self.changes:
            if not taken < change[0] < steps or change[1] < change[0]:
                raise ValueError(f"{change} cannot follow {taken} of {steps} steps")
            taken, steps = change

    @property
    def steps(self) -> int:
        """Optimizer steps in all, as far as is known."""
        return self.changes[-1][1] if self.changes else self.recipe.steps

    def changed(self, taken: int, steps: int) -> Schedule:
        """With `steps` in all, decided after `taken`. ValueError unless the last change < taken < the steps of now, and taken <= steps."""
        return Schedule(self.recipe, (*self.changes, (taken, steps)))

    def position(self, step: int) -> float:
        """Where in the recipe step `step` is, in the recipe's steps: 0 at first, the recipe's last after all."""
        position, begin, end = 0.0, 0, self.recipe.steps
        for taken, steps in self.changes:
            if step <= taken:
                break
            position += (taken - begin) * (self.recipe.steps - position) / (end - begin)
            begin, end = taken, steps
        return position + (step - begin) * (self.recipe.steps - position) / max(1, end - begin)

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`. ValueError outside 0 <= step < steps."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is outside 0..{self.steps - 1}")
        return self.recipe.learning_rate(self.position(step))


def size_class(num_examples: int) -> Literal["small", "medium", "large"]:
    """The HyperRule's size of a task by its number of training images."""
    return "small" if num_examples < SMALL_BELOW else "medium" if num_examples < MEDIUM_BELOW else "large"


def resolution(height: int, width: int, variant: Variant = "code", architecture: str = "") -> tuple[int, int]:
    """(resize, crop) in px for images of this native size; `architecture` ("r152x4") matters to the paper's variant only."""
    if height * width < LOW_RESOLUTION_AREA:
        return 160, 128
    if variant == "paper" and architecture != "r152x4":
        return 448, 384
    return 512, 480


LARGEST_LOOK = 448
"""Pixels beyond which images are not enlarged to see more of them: the published networks' largest size of training."""


def looking_size(trained_at: int, height: int, width: int) -> int:
    """The size, px, at which frozen features of a network pre-trained on images of `trained_at` px are looked at first, and then at
    twice as much, for images of this typical native size: `trained_at`, or two thirds of it (a multiple of 16 px) where the images
    have fewer pixels than a square of four thirds of it.

    This project's; the paper's resolutions for small and large images are likewise below and above the 224 px of its pre-training. Pixels
    that an image does not have cost time and help nothing (benchmarks/results/starts_cpu_2026-11-26.md).
    """
    if 9 * height * width >= 16 * trained_at**2:
        return trained_at
    return _two_thirds(trained_at)


def looking_sizes(trained_at: int, height: int, width: int) -> tuple[tuple[int, ...], ...]:
    """Sizes, px, at each of which frozen features of a network pre-trained on images of `trained_at` px are worth looking at together, for
    images of this typical native size; the most accurate choice first, each costing less than the one before.

    First two thirds of `trained_at`, twice and four times as much: things are seen at three scales. Not where images have fewer pixels than
    an eighth of the largest square, for the third scale shows nothing then. Second `looking_size` and twice as much, then two thirds of
    `trained_at` and twice as much where that is less, last `looking_size` alone. None is above `LARGEST_LOOK`. This project's
    (benchmarks/results/three-sizes_cpu_2026-11-27.md).
    """
    small, usual = _two_thirds(trained_at), looking_size(trained_at, height, width)
    three = ((small, 2 * small, 4 * small),) if 8 * height * width >= (4 * small) ** 2 else ()
    found: tuple[tuple[int, ...], ...] = (*three, (usual, 2 * usual))
    if small < usual:
        found += ((small, 2 * small),)
    return (*(sizes for sizes in found if sizes[-1] <= LARGEST_LOOK), (usual,))


class Together(NamedTuple):
    """How two networks side by side look at images."""

    sizes: tuple[int, ...]
    """px, of the first."""
    beside: tuple[int, ...]
    """px, of the other."""
    mirrored: bool
    """Whether at the mirror images too."""


def looking_together(
    looks: Sequence[tuple[int, ...]], beside: Sequence[tuple[int, ...]], *, flip: bool = True
) -> tuple[Together, ...]:
    """What two networks side by side are worth looking at together, the most accurate choice first, each costing less than the one before.
    looks, beside: `looking_sizes` of either. flip: whether mirror images may be looked at.

    Measured with the bundled network and EfficientNet-Lite0: both at the smallest size of each tell images apart as well as the first alone
    at three, for a fifth of the time. Then the larger images of the other are worth most for what they cost, then a second size of the
    first, then mirror images, and last its third size. This project's (benchmarks/results/pair-sizes_cpu_2026-11-28.md).
    """
    every, other = looks[0], next((sizes for sizes in beside if len(sizes) > 1), beside[-1])
    one, two, least = every[:1], every[:2], other[:1]
    found = [Together(every, other, flip), Together(two, other, flip), Together(two, other, False)]
    found += [Together(one, other, False), Together(two, least, False), Together(one, least, False)]
    return tuple(dict.fromkeys(found))


def _two_thirds(size: int) -> int:
    """A multiple of 16 px."""
    return max(16, round(size / 24) * 16)


def recipe(num_examples: int, height: int, width: int, variant: Variant = "code", *, architecture: str = "") -> Recipe:
    """The BiT-HyperRule for a task with `num_examples` training images of `height` x `width` px (the typical native size).

    variant: "paper" or "code", see the module's table. architecture: "r152x4" has its own resolution in the paper.
    ConfigError on counts below 1 or an unknown variant.
    """
    if num_examples < 1 or height < 1 or width < 1:
        raise ConfigError(
            f"The HyperRule needs at least one image of at least 1 x 1 px, not {num_examples} of {height} x {width}."
        )
    if variant not in ("paper", "code"):
        raise ConfigError(f"Unknown HyperRule variant {variant!r}: choose 'paper' or 'code'.")
    size = size_class(num_examples)
    steps, warmup, decays = _CODE_SCHEDULE[size]
    if variant == "paper":
        warmup, decays = 0, (steps * 3 // 10, steps * 6 // 10, steps * 9 // 10)
    resize, crop = resolution(height, width, variant, architecture)
    mixup = 0.0 if size == "small" else 0.1
    return Recipe(
        steps=steps,
        batch_size=BATCH_SIZE,
        resize=resize,
        crop=crop,
        mixup_alpha=mixup,
        warmup=warmup,
        decays=decays,
        variant=variant,
        size_class=size,
        notes=(
            f"{num_examples:,} training images make this a {size} task: {steps:,} steps, {'no MixUp' if not mixup else 'MixUp 0.1'}.",
            f"Images of about {width} x {height} px are "
            + ("small" if height * width < LOW_RESOLUTION_AREA else "large")
            + f": resized to {resize}, cropped to {crop} px.",
        ),
    )


def at_size(recipe: Recipe, size: int) -> Recipe:
    """The same recipe for a network that takes images of `size` px only: resize and crop keep their proportion."""
    note = f"The network takes images of {size} px only: resized to {round(size * recipe.resize / recipe.crop)}, cropped to {size} px."
    resize = round(size * recipe.resize / recipe.crop)
    return dataclasses.replace(recipe, resize=resize, crop=size, notes=(recipe.notes[0], note))


def of_family(recipe: Recipe, *, batch_norm: bool, patches: bool) -> Recipe:
    """The same recipe for a network of another library, with what is known to be different for its family in the notes.

    batch_norm: its statistics stay those of the pre-training (`model.Foreign`). patches: the first layer, which embeds patches of the
    image, is not trained: with it frozen, SGD with momentum does as well as AdamW on ViT, Swin and ConvNeXt (Kumar et al. 2022,
    arXiv 2211.09359, where the gradients of that layer are found to be far larger than those of the others). Neither was measured by this
    project on pre-trained networks of that kind, none of which it could have.
    """
    notes = ["BiT's rule, made for BiT's networks, is taken for this one as it is."]
    if batch_norm:
        notes.append(
            "BatchNorm keeps the statistics of the pre-training: its own of each batch would depend on how many images fit into memory."
        )
    if patches:
        notes.append(
            "The layer that embeds patches of the image is not trained: without it SGD does as well as AdamW on such networks "
            "(arXiv 2211.09359; as published, not measured here)."
        )
    return dataclasses.replace(recipe, notes=(*recipe.notes, *notes))


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The same schedule stretched or squeezed to `steps`: warm-up and decays keep their places in proportion."""
    share = steps / recipe.steps
    return dataclasses.replace(
        recipe,
        steps=steps,
        warmup=round(recipe.warmup * share),
        decays=tuple(round(mark * share) for mark in recipe.decays),
    )


def as_taken(recipe: Recipe, steps: int, best: int | None = None) -> Recipe:
    """What a training made of the recipe, for the record. steps: that were taken, fewer or more where a budget demanded it. best: after how
    many of them the weights were best, which are those that count; None: the last."""
    notes = []
    if steps != recipe.steps:
        notes.append(f"Planned were {recipe.steps:,} steps; {steps:,} were taken in the time there was.")
    if best is not None and best != steps:
        notes.append(f"The weights are those after step {best:,} of {steps:,}, the best by the validation images.")
    taken = recipe if steps == recipe.steps else with_steps(recipe, steps)
    return dataclasses.replace(taken, notes=(*recipe.notes, *notes))


def with_batch_size(recipe: Recipe, batch_size: int) -> Recipe:
    """The same recipe with another batch size; the learning rate is scaled in proportion."""
    return dataclasses.replace(
        recipe,
        batch_size=batch_size,
        base_learning_rate=recipe.base_learning_rate * batch_size / recipe.batch_size,
    )


def without_steps(crop: int, *why: str) -> Recipe:
    """The recipe of a classifier that is solved in closed form on features of images of `crop` px: there is nothing else to decide. why:
    further notes, where steps had been asked for."""
    return Recipe(
        steps=0,
        batch_size=0,
        resize=crop,
        crop=crop,
        base_learning_rate=0.0,
        momentum=0.0,
        variant="",
        notes=("No steps: the classifier is solved exactly.", *why),
    )


def without_time(crop: int, budget: str, left: float, enough: float) -> Recipe:
    """The same where so many seconds are left for steps of a budget, as it was asked for, which is too little. enough: seconds that would
    do, as it seems."""
    note = f"Nothing is fine-tuned: nothing of the {budget} is left for steps. The closed form is delivered."
    if left >= 0.5:
        note = (
            f"Nothing is fine-tuned: {left:.0f} s of the {budget} are left for steps, too little to find out how long one takes here and "
            f"to take {FEWEST_STEPS}, and fewer would not help. The closed form is delivered, and what is left of the time given back."
        )
    return without_steps(crop, f"{note} About --budget {math.ceil(enough / 60)}m would leave time for steps.")


def without_norms(crop: int) -> Recipe:
    """The same for a network that has no norms, which alone are fine-tuned within a budget."""
    return without_steps(
        crop,
        "Nothing is fine-tuned: within a budget the scales and shifts of norms are, and this network has none. --steps trains all of it.",
    )


def too_few_to_tune(crop: int, num_examples: int) -> Recipe:
    """The same for fewer images than judge one another in a step: on 50 of them the closed form lost by it
    (benchmarks/results/norms_cpu_2026-11-27.md)."""
    return without_steps(
        crop,
        f"Nothing is fine-tuned: {num_examples} images are too few for it to help; from {TUNING_BATCH} on it is tried.",
    )


def in_effect(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe on record the training obeyed, to be shown: everything that is set, without the notes and what is no part of the
    published rule unless it is used; of one without steps (`without_steps`) the size of the images alone."""
    unset = (None, "", [], ())
    beyond = {key for key in ("dropout", "l2_sp") if not recipe.get(key)}
    obeyed = recipe if recipe.get("steps") != 0 else {key: recipe[key] for key in ("resize", "crop") if key in recipe}
    return {key: value for key, value in obeyed.items() if key not in {"notes", *beyond} and value not in unset}


TUNING_BATCH = 96
"""Images that judge one another in a step; all of a set that has fewer."""
TUNING_RATE = 0.3
"""Of the norms' scales and shifts, for a closed form that is judged by leave-one-out (docs/lab-notes.md). Of few parameters, it is a
hundred times the rate that kernels bear."""
TUNING_WARMUP = 0.05
"""Share of the steps."""
TUNING_RATIO = 4 / 3
"""Of the side that images are resized to over that of the crop."""
TUNING_STEPS, TUNING_EPOCHS = 40, 4
"""Steps, and passes over the images, that a fine-tuning for the closed form must have time for before it takes larger images."""
MOST_EPOCHS = 30
"""A fine-tuning for the closed form passes over the images at most so often: what is left of a budget is given back."""


def enough_to_tune(num_examples: int) -> bool:
    """Whether so many images can judge one another in a step (`too_few_to_tune`)."""
    return num_examples >= TUNING_BATCH


def most_tuning_steps(num_examples: int, batch_size: int) -> int:
    """Steps of a training for the closed form which no budget exceeds."""
    return max(FEWEST_STEPS, math.ceil(MOST_EPOCHS * num_examples / batch_size))


def enough_tuning_steps(num_examples: int, batch_size: int) -> int:
    """Steps after which a training for the closed form gains more by larger images than by more of them."""
    wanted = max(TUNING_STEPS, math.ceil(TUNING_EPOCHS * num_examples / batch_size))
    return min(wanted, most_tuning_steps(num_examples, batch_size))


def tuning(
    num_examples: int,
    seconds: float,
    images_per_second: Speed,
    crop: int,
    *,
    left: float | None = None,
    fixed: Mapping[str, int] = MappingProxyType({}),
) -> Recipe:
    """The project's own recipe for `num_examples` training images, to make a network better under a classifier solved in closed form
    (`train.objective.LeaveOneOut`), to fit into `seconds` of which so many are `left` for its steps (None: all).

    images_per_second: (crop, batch) -> measured speed of training steps, called once, unless the steps are fixed. crop: of the images, px.
    fixed: values that the user chose, of "steps" and "batch_size".

    Only the norms' scales and shifts are trained, and no head. Unlike the HyperRule's, the rate does not depend on the steps, and half a
    cosine leads it to 0. Measured on sets of 150 to 2,000 images (docs/lab-notes.md).
    """
    batch = min(num_examples, fixed.get("batch_size", TUNING_BATCH))
    if "steps" in fixed:
        steps, why = fixed["steps"], "as many steps as were asked for, however long they take."
    else:
        left, speed = seconds if left is None else max(left, 0.0), images_per_second(crop, batch)
        steps = min(most_tuning_steps(num_examples, batch), max(FEWEST_STEPS, int(left * speed / batch)))
        why = f"to fit into {_span(seconds)} at the {speed:.0f} images/s just measured."
    return Recipe(
        steps=steps,
        batch_size=batch,
        resize=round(crop * TUNING_RATIO),
        crop=crop,
        base_learning_rate=TUNING_RATE,
        warmup=round(TUNING_WARMUP * steps),
        schedule="cosine",
        variant="budget",
        notes=(
            f"{steps * batch / num_examples:.2g} passes over the {num_examples:,} images, {why}",
            "Trained are the scales and shifts of the norms alone, for a classifier solved in closed form to tell what each image "
            "of a batch shows by the others: the project's own recipe. Without --budget the HyperRule is obeyed as published.",
        ),
    )


SMALLEST_BATCH = 32
"""A budget does not shrink the batch further: below, the rate of single steps, not of images, limits most machines."""
FEWEST_STEPS = 20
HIGHEST_LEARNING_RATE = 0.01
"""A budget does not raise the rate above this: a few times more and the network forgets what it knew (docs/lab-notes.md)."""
SMALLEST_CROP = 48
_CROPS = (480, 384, 320, 256, 224, 192, 160, 128, 96, 64, 48)


def within_budget(
    rule: Recipe,
    seconds: float,
    images_per_second: Speed,
    *,
    trained_at: int | None = None,
    fixed: Collection[str] = (),
) -> Recipe:
    """What can be kept of `rule` in `seconds` of training on a machine with this speed; `rule` itself if all of it fits.

    images_per_second: (crop, batch) -> measured speed of training steps, called at most twice. trained_at: size of the images that the
    network was pre-trained on, px: the resolution is not lowered below it. fixed: names of fields of `rule` that the user chose
    ("crop", "steps", "batch_size"); they stay.

    The order of giving up is the project's own; the paper knows no budget (docs/lab-notes.md).
    1. The batch, from 512 to no less than 32, with the learning rate in proportion (the authors report equal accuracy at 128).
    2. The resolution, with resize : crop kept.
    3. The steps, with the staircase's proportions kept.
    The area under the learning rate's curve is kept too, up to `HIGHEST_LEARNING_RATE`: a quarter of the images is seen at four times
    the rate. Otherwise a short training would not move the weights anywhere.
    """
    smallest = rule.crop if "crop" in fixed else min(rule.crop, max(SMALLEST_CROP, trained_at or 0))
    crops = [rule.crop, *(crop for crop in _CROPS if smallest <= crop < rule.crop)]
    if crops[-1] > smallest:
        crops.append(smallest)
    least_batch = rule.batch_size if "batch_size" in fixed else min(SMALLEST_BATCH, rule.batch_size)
    least = rule.steps * least_batch
    speed = images_per_second(smallest, least_batch)
    # A convolution's cost goes with the image's area.
    crop = next((crop for crop in crops if seconds * speed * (smallest / crop) ** 2 >= least), smallest)
    if crop != smallest:
        speed = images_per_second(crop, least_batch)
    affordable = seconds * speed
    batch = min(rule.batch_size, max(least_batch, int(affordable / rule.steps) // 8 * 8))
    steps = rule.steps if "steps" in fixed else min(rule.steps, max(FEWEST_STEPS, int(affordable / batch)))
    recipe = with_steps(with_batch_size(rule, batch), steps)
    boost = (rule.steps * rule.batch_size) / (steps * batch)
    boost = max(1.0, min(boost, HIGHEST_LEARNING_RATE / recipe.base_learning_rate))
    resize = round(rule.resize * crop / rule.crop)
    given_up = [
        f"{what}: {now:,} instead of {before:,}"
        for what, now, before in (
            ("batch", batch, rule.batch_size),
            ("resolution", crop, rule.crop),
            ("steps", steps, rule.steps),
        )
        if now != before
    ]
    note = (
        f"The full rule fits into {_span(seconds)} at the {speed:.0f} images/s just measured."
        if not given_up
        else f"To fit into {_span(seconds)} at the {speed:.0f} images/s just measured, given up: "
        + ", ".join(given_up)
        + f". The learning rate is {boost:.3g} times what the batch alone would ask for, to make up for fewer images."
    )
    return dataclasses.replace(
        recipe,
        crop=crop,
        resize=resize,
        base_learning_rate=recipe.base_learning_rate * boost,
        notes=(*rule.notes, note),
    )


def _span(seconds: float) -> str:
    """90 -> "90 s", 600 -> "10 min"."""
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.3g} min"


DETECTION_BATCH = 256
DETECTION_RATE = 0.08
DETECTION_EPOCHS = 30
DETECTION_DECAYS = (16, 22)
DETECTION_SIZE = 1024
FEWEST_DETECTION_STEPS = 500
"""A batch of 256 is not for sets on which 30 epochs of it would be fewer steps than this, ..."""
LEAST_DETECTION_BATCH = 16
"""... which get smaller ones, down to this."""
DETECTION_BUDGET_BATCH = 8
DETECTION_BUDGET_RATE = 0.01
DETECTION_SIZES = (128, 192, 256, 384, 512, 640, 768, 1024)
"""Longer sides of the images that a budget chooses from, px."""
FEWEST_DETECTION_EPOCHS = 6
"""The next smaller size is taken where one allows fewer passes over the images than this."""
MOST_DETECTION_EPOCHS = 100


def detection(num_examples: int, *, epochs: float = DETECTION_EPOCHS, size: int = DETECTION_SIZE) -> Recipe:
    """The paper's recipe for a RetinaNet (section 3.7): 30 epochs of batches of 256, rate 0.08, a tenth after 16 and 22 epochs, weight
    decay 1e-4, images of 1,024 px; an epoch of warm-up, as the code that it names has it. The HyperRule is not for detection.

    The paper's set has 118,000 images. Of small ones the batch is smaller, the rate in proportion: this project's.
    """
    batch = DETECTION_BATCH
    while batch > LEAST_DETECTION_BATCH and epochs * num_examples < FEWEST_DETECTION_STEPS * batch:
        batch //= 2
    per_epoch = num_examples / batch
    scale = epochs / DETECTION_EPOCHS
    notes = [
        f"The paper's recipe: {epochs:g} epochs of the {num_examples:,} images, rate {DETECTION_RATE} at a batch of {DETECTION_BATCH}, a "
        f"tenth after {' and '.join(f'{scale * mark:.3g}' for mark in DETECTION_DECAYS)} epochs."
    ]
    if batch < DETECTION_BATCH:
        notes.append(
            f"So few images would be too few steps of {DETECTION_BATCH}: batches of {batch}, the rate in proportion."
        )
    return Recipe(
        steps=max(1, round(epochs * per_epoch)),
        batch_size=batch,
        resize=size,
        crop=size,
        base_learning_rate=DETECTION_RATE * batch / DETECTION_BATCH,
        warmup=max(1, round(min(1.0, epochs / 10) * per_epoch)),
        decays=tuple(round(scale * mark * per_epoch) for mark in DETECTION_DECAYS),
        weight_decay=1e-4,
        variant="paper",
        notes=tuple(notes),
    )


def detection_within(
    num_examples: int,
    seconds: float,
    images_per_second: Speed,
    *,
    left: float,
    most_size: int,
    fixed: Mapping[str, int] = MappingProxyType({}),
) -> Recipe:
    """The project's own recipe for a detector, to fit into `seconds` of which so many are `left` for its steps.

    images_per_second: (size, batch) -> measured speed of training steps, called at most twice. most_size: of the images, px; none is
    enlarged beyond it. fixed: what the user chose of "batch_size" and "size".
    """
    batch = fixed.get("batch_size", DETECTION_BUDGET_BATCH)
    sizes = [size for size in DETECTION_SIZES if size <= max(most_size, DETECTION_SIZES[0])]
    sizes = [fixed["size"]] if "size" in fixed else sizes
    speed = images_per_second(sizes[0], batch)
    enough = FEWEST_DETECTION_EPOCHS * num_examples
    size = max((size for size in sizes if left * speed * (sizes[0] / size) ** 2 >= enough), default=sizes[0])
    if size != sizes[0]:
        speed = images_per_second(size, batch)
    most = math.ceil(MOST_DETECTION_EPOCHS * num_examples / batch)
    steps = min(most, max(FEWEST_STEPS, int(left * speed / batch)))
    notes = [
        f"{steps * batch / num_examples:.2g} passes over the {num_examples:,} images, their longer side {size} px, to fit into "
        f"{_span(seconds)} at the {speed:.2g} images/s just measured.",
        "Batch, rate and schedule are the project's own; without --budget the paper's recipe is obeyed.",
    ]
    if steps * batch < enough:
        longer = math.ceil((seconds + enough / speed - left) / 60)
        notes.append(
            f"A detector learns little in so few passes: {FEWEST_DETECTION_EPOCHS} of them would fit into {longer} min here."
        )
    return Recipe(
        steps=steps,
        batch_size=batch,
        resize=size,
        crop=size,
        base_learning_rate=DETECTION_BUDGET_RATE * batch / DETECTION_BUDGET_BATCH,
        warmup=round(TUNING_WARMUP * steps),
        schedule="cosine",
        weight_decay=1e-4,
        variant="budget",
        notes=tuple(notes),
    )


def upstream(
    num_examples: int,
    epochs: float,
    *,
    batch_size: int = 4096,
    crop: int = 224,
    learning_rate: float | None = None,
    warmup: int = 5_000,
    decay_epochs: tuple[float, ...] = (30, 60, 80),
    schedule: Literal["staircase", "cosine"] = "staircase",
    weight_decay: float = 1e-4,
    mixup_alpha: float = 0.0,
) -> Recipe:
    """The paper's pre-training recipe (section 3.3): rate 0.03 x batch / 256 unless given, 5,000 steps of warm-up, a tenth after 30, 60
    and 80 of 90 epochs, weight decay 1e-4, no MixUp unless asked for. `decay_epochs` has no effect on the cosine schedule."""
    per_epoch = num_examples / batch_size
    return Recipe(
        steps=max(1, round(epochs * per_epoch)),
        batch_size=batch_size,
        resize=crop,
        crop=crop,
        base_learning_rate=0.03 * batch_size / 256 if learning_rate is None else learning_rate,
        warmup=warmup,
        decays=tuple(round(epoch * per_epoch) for epoch in decay_epochs) if schedule == "staircase" else (),
        schedule=schedule,
        weight_decay=weight_decay,
        mixup_alpha=mixup_alpha,
        variant="upstream",
    )
