"""`bit detect finetune`: from somebody's images with boxes to a detector.

`finetune` reads as the whole story: open the data, load the network, decide, train, choose the thresholds, measure, save, report.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from bigtransfer import detector, hyperrule, machine, report, runs, weights
from bigtransfer.backends.by_torch import choose_device
from bigtransfer.catalog import Detector as Spec
from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.config import DetectFinetuneConfig, seconds
from bigtransfer.data import boxes as box_data
from bigtransfer.data.boxes import BoxSet, BoxSplits
from bigtransfer.data.layout import in_short
from bigtransfer.detections import ObjectFinder
from bigtransfer.detector import BoxGoal, Detector
from bigtransfer.errors import ConfigError, DataError, RunError, UnreadableImages
from bigtransfer.evals import detection
from bigtransfer.feed.boxes import BoxLoader, ScaleJitter
from bigtransfer.hyperrule import Recipe
from bigtransfer.jobs import training, working
from bigtransfer.jobs.clock import Ahead, Clock
from bigtransfer.jobs.detect import measuring
from bigtransfer.jobs.plan import Begun, Plan, dtype_name, recall, run_folder
from bigtransfer.jobs.working import Finetuned, Work
from bigtransfer.train import loop

COMMAND = "detect finetune"

WATCHED = 200
"""Validation images that are looked at on the way, at most."""

TIMED = 0.05
"""Share of a budget in which training steps are timed."""

FINISHING = 2.0
"""Seconds, on a machine that does nothing else, for what comes after the last image."""
ALWAYS = "All images to measure it on are looked at"
"""However little is left of a budget."""

BUDGET_CHANNELS = 128

ANCHOR_SCALES = (4.0, 3.0, 2.0, 1.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class DetectPlan(Plan):
    """What was decided about the training of a detector."""

    detector: Spec
    augmentation: ScaleJitter

    @property
    def aim(self) -> BoxGoal:
        return BoxGoal()

    @property
    def judged_by(self) -> tuple[str, ...]:
        return ("val/ap",)

    def forward_flops(self, side: int) -> None:
        """Not counted."""
        return


def run(config: DetectFinetuneConfig) -> int:
    """`bit detect finetune`; 0 when done, 128 + signal when stopped by one."""
    with working.saying_what_is_kept(_folder(config)):
        done = finetune(config, since=machine.began)
    return done.status("bit detect predict")


def _folder(config: DetectFinetuneConfig) -> Path:
    return run_folder(config.out, config.data, config.model, "-boxes")


def finetune(config: DetectFinetuneConfig, *, since: float | None = None) -> Finetuned:
    """Make a detector as `config` asks, in its run folder; resumes an interrupted run, returns a finished one's result.

    since: when a budget began to run (`time.monotonic`); now unless given. Raises BitError for everything that the user can mend; nothing
    is trained before the data and the model have been checked.
    """
    since = time.monotonic() if since is None else since
    folder = _folder(config)
    begun = recall(folder, COMMAND, config, DetectPlan)
    if begun is not None and working.is_finished(folder):
        return _finished(config, folder, begun)
    parts = _parts(config)
    state_of_data = _state(parts)
    if begun is not None and begun.data.get("fingerprints") != state_of_data:
        raise RunError(
            f"The images or boxes of {config.data} have changed since the run in {folder} began with them. Choose another --out, or remove "
            "the folder."
        )
    device = choose_device(config.device)
    with working.at_work(folder, COMMAND, config, begun, since=since, reserve=FINISHING, always=ALWAYS) as work:
        work.enter("for the plan")
        if begun is None:
            model, start = _model(config, parts, None)
            plan = _decide(config, parts, model, start, device, work.clock)
            runs.write_json(folder / "unreadable.json", msgspec.to_builtins(parts.left_out))
            work.decided(plan, _counted(parts) | {"fingerprints": state_of_data})
        else:
            plan = dataclasses.replace(begun.plan, device=str(device))
        model, start = _model(config, parts, plan)
        _tell(config, start, parts, plan)
        work.enter("to fine-tune")
        work.track()
        outcome = _train(config, work, model, parts, plan)
        if not outcome.finished:
            return work.stopped(plan, outcome)
        work.enter("to measure it")
        taken = hyperrule.as_taken(plan.recipe, outcome.steps)
        trained_on = Path(config.data).name or config.data
        model.card = ModelCard(
            name=folder.resolve().name,
            architecture=model.card.architecture,
            num_classes=plan.classes,
            input=plan.input,
            class_names=parts.class_names,
            upstream=f"{start.upstream}; boxes of {trained_on}" if config.pretrained else f"boxes of {trained_on}",
            licence=start.licence if config.pretrained else "",
            source=f"bit {COMMAND}",
            recipe=taken.to_dict(),
            detector=plan.detector,
        )
        metrics = _measure(config, work, model, parts)
        model.card = work.measured(model.card, taken, metrics, outcome.steps)
        weights.save_detector(work.model, model)
        report.write(folder, [part.images for part in parts.parts().values()])
        return work.ended(plan, metrics)


def _finished(config: DetectFinetuneConfig, folder: Path, begun: Begun[DetectPlan]) -> Finetuned:
    """The result of a finished run; RunError if its images or boxes have changed since."""
    parts, changed = None, ""
    try:
        parts = _parts(config)
    except DataError as error:
        if isinstance(error, UnreadableImages) and len(error.images) < error.total:
            changed = f"{len(error.images)} of {error.total} images cannot be read, such as {error.images[0]}."
        else:  # somebody cleared the images away; the result is as good as it was
            print(f"note: the images are not there any more as the run found them. ({error})", file=sys.stderr)
    if parts is not None and begun.data.get("fingerprints") != _state(parts):
        changed = "images or boxes are others, or have other contents."
    if changed:
        changed = f"{config.data} has changed since: {changed}"
    there = [] if parts is None else [part.images for part in parts.parts().values()]
    return working.finished(folder, begun, changed, there)


def _state(parts: BoxSplits) -> dict[str, str]:
    """By which a run knows its data again."""
    return {part: boxes.fingerprint() for part, boxes in parts.parts().items()}


def _parts(config: DetectFinetuneConfig) -> BoxSplits:
    """The data set, with images held out where there are none to be measured on."""
    parts = box_data.open_boxes(
        config.data, skip_bad_boxes=config.skip_bad_boxes, skip_bad_images=config.skip_bad_images
    )
    fraction = config.val_fraction
    if fraction is None:
        fraction = 0.1 if parts.val is None and parts.test is None and len(parts.train) > 1 else 0.0
    elif fraction and parts.val is not None:
        raise ConfigError(f"{config.data} has a validation part; leave out --val-fraction.")
    if fraction:
        train, val = box_data.hold_out(parts.train, fraction, config.seed)
        parts = dataclasses.replace(parts, train=train, val=val)
    if not parts.train.class_counts().any():
        raise ConfigError(f"The training images of {config.data} have no objects to learn.")
    return parts


def _model(config: DetectFinetuneConfig, parts: BoxSplits, plan: DetectPlan | None) -> tuple[Detector, ModelCard]:
    """The detector before its first step, and the card of the network that it is made of. Without a plan of the shape that is known."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # pyramid and heads, and where asked for the network too
        network = weights.load(config.model, num_classes=0, pretrained=config.pretrained)
        card = network.card
        spec = plan.detector if plan else _spec(config, 4.0)
        model = detector.on(network, spec, len(parts.class_names))
    if plan is not None:
        model.to(plan.torch_device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model, card


def _spec(config: DetectFinetuneConfig, anchor_scale: float) -> Spec:
    channels = config.channels or (BUDGET_CHANNELS if config.budget else 256)
    return Spec(channels=channels, anchor_scale=config.anchor_scale or anchor_scale)


def _decide(
    config: DetectFinetuneConfig,
    parts: BoxSplits,
    model: Detector,
    start: ModelCard,
    device: torch.device,
    clock: Clock | None,
) -> DetectPlan:
    dtype = loop.compute_dtype(config.precision, device)
    recipe = _recipe(config, parts, model, device, dtype, clock)
    scale = 4.0
    if config.anchor_scale is None and config.budget is not None:
        scale, note = fitting_anchors(parts.train, recipe.crop)
        recipe = dataclasses.replace(recipe, notes=(*recipe.notes, note))
    elif note := out_of_reach(parts.train, recipe.crop, config.anchor_scale or scale):
        recipe = dataclasses.replace(recipe, notes=(*recipe.notes, note))
    spec = _spec(config, scale)
    return DetectPlan(
        recipe=recipe,
        architecture=model.card.architecture,
        images=len(parts.train),
        classes=len(parts.class_names),
        input=InputSpec(size=recipe.crop, mode="fit"),
        seed=config.seed,
        eval_every=config.eval_every or max(1, recipe.steps // 5),
        device=str(device),
        dtype=dtype_name(dtype),
        micro_batch=config.micro_batch
        or loop.fitting_micro_batch(model, recipe.crop, dtype, device, recipe.batch_size),
        detector=spec,
        augmentation=ScaleJitter(
            size=recipe.crop, smallest=config.scales[0], largest=config.scales[1], flip=config.flip
        ),
    )


def _recipe(
    config: DetectFinetuneConfig,
    parts: BoxSplits,
    model: Detector,
    device: torch.device,
    dtype: torch.dtype,
    clock: Clock | None,
) -> Recipe:
    """The paper's recipe, or one that fits into the budget, with what the user set."""
    fixed = {name: value for name in ("batch_size", "size") if (value := getattr(config, name)) is not None}
    if config.budget is not None:
        assert clock is not None
        budget = seconds(config.budget)
        # An object of each class an image, which is what a loss costs.
        labels = torch.tensor([[0.0, 8.0, 8.0, 40.0, 40.0]]).repeat(
            fixed.get("batch_size", 512), len(parts.class_names), 1
        )

        def speed(size: int, batch: int) -> float:
            span = TIMED / 2 * budget
            return training.images_per_second(model, size, labels[:batch], 3, device, dtype, span, BoxGoal())

        clear = int(np.median(parts.train.sizes.max(axis=1)))
        timed = speed(
            fixed.get("size", hyperrule.DETECTION_SIZES[0]), fixed.get("batch_size", hyperrule.DETECTION_BUDGET_BATCH)
        )
        known = {fixed.get("size", hyperrule.DETECTION_SIZES[0]): timed}
        measured_on = sum(len(part) for part in (parts.val, parts.test) if part is not None)
        recipe = hyperrule.detection_within(
            len(parts.train),
            budget,
            lambda size, batch: known.get(size) or speed(size, batch),
            left=clock.left - min(0.25 * budget, measured_on / 3 / timed),
            most_size=clear,
            fixed=fixed,
        )
    else:
        recipe = hyperrule.detection(
            len(parts.train),
            epochs=config.epochs or hyperrule.DETECTION_EPOCHS,
            size=config.size or hyperrule.DETECTION_SIZE,
        )
        if config.batch_size is not None:
            steps = max(1, round(recipe.steps * recipe.batch_size / config.batch_size))
            recipe = hyperrule.with_steps(hyperrule.with_batch_size(recipe, config.batch_size), steps)
        if config.steps is not None:
            recipe = hyperrule.with_steps(recipe, config.steps)
    if config.learning_rate is not None:
        recipe = dataclasses.replace(recipe, base_learning_rate=config.learning_rate)
    chosen = [
        f"{name.replace('_', ' ')} {value:,}"
        for name in ("steps", "epochs", "batch_size", "learning_rate", "size", "channels", "anchor_scale")
        if (value := getattr(config, name)) is not None
    ]
    if chosen:
        recipe = dataclasses.replace(recipe, notes=(*recipe.notes, f"Set by you instead: {', '.join(chosen)}."))
    return recipe


def fitting_anchors(boxes: BoxSet, size: int) -> tuple[float, str]:
    """The largest of `ANCHOR_SCALES` with which nearly as many objects as with any are in reach of an anchor, where the images' longer side
    is `size` px; and that in a sentence."""
    shares = _in_reach(boxes, size, ANCHOR_SCALES)
    best = next(i for i, share in enumerate(shares) if share >= max(shares) - 0.01)
    return ANCHOR_SCALES[best], (
        f"Anchors begin with {_strides(ANCHOR_SCALES[best])} of their level, in reach of {shares[best]:.0%} of the objects at {size} px "
        f"(RetinaNet's 4: {shares[0]:.0%})."
    )


def out_of_reach(boxes: BoxSet, size: int, scale: float) -> str:
    """A warning where many objects are out of reach of anchors of that scale, and in reach of those of another; else ""."""
    other, _ = fitting_anchors(boxes, size)
    own, fitting = _in_reach(boxes, size, (scale, other))
    if own >= fitting - 0.05:
        return ""
    return (
        f"Anchors begin with {_strides(scale)} of their level, in reach of only {own:.0%} of the objects at {size} px; "
        f"--anchor-scale {other:g}: {fitting:.0%}."
    )


def _strides(scale: float) -> str:
    return "1 stride" if scale == 1 else f"{scale:g} strides"


def _in_reach(boxes: BoxSet, size: int, scales: Sequence[float]) -> list[float]:
    """Of each scale the share of the objects that an anchor of their own shape, in their middle, overlaps by half: others have their best
    anchor only to be learnt by."""
    scale = size / boxes.sizes.max(axis=1)
    owners = np.repeat(np.arange(len(boxes)), np.diff(boxes.starts))
    own = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]) * scale[owners, None]
    own = own[~boxes.crowd][:100_000]
    shares = []
    for one in scales:
        sides = np.array([one * stride * 2 ** (i / 3) for stride in detector.STRIDES for i in range(3)])
        shapes = np.sqrt(np.array(detector.SHAPES))
        anchors = np.array([(side / shape, side * shape) for side in sides for shape in shapes])
        shared = np.minimum(own[:, None], anchors[None]).prod(axis=2)
        union = own.prod(axis=1)[:, None] + anchors.prod(axis=1)[None] - shared
        shares.append(float((shared / union >= 0.5).any(axis=1).mean()))
    return shares


def _train(
    config: DetectFinetuneConfig, work: Work, model: Detector, parts: BoxSplits, plan: DetectPlan
) -> training.Outcome:
    """The steps of the recipe, resumed from a checkpoint where there is one."""
    state = loop.new_state(model, plan.recipe, micro_batch=plan.micro_batch)
    watched = parts.val
    if watched is not None and len(watched) > WATCHED:
        watched = watched.subset(np.linspace(0, len(watched) - 1, WATCHED).astype(np.int64))
    clock = work.kept
    if clock is not None:
        measured = sum(len(part) for part in (parts.val, parts.test) if part is not None)
        most = max(plan.recipe.steps, hyperrule.MOST_DETECTION_EPOCHS * plan.images // plan.recipe.batch_size)
        clock.ahead = Ahead(most=most, watched=len(watched or ()), afterwards=measured)
    if training.resume(work.run, state, plan):
        print(f"        resumed after step {state.step}", flush=True)
        if (outcome := training.ended(work.run, state, plan, clock)) is not None:
            return outcome
    loader = BoxLoader(
        parts.train,
        plan.augmentation,
        batch_size=plan.recipe.batch_size,
        seed=plan.seed,
        cache=config.cache,
        workers=training.spare_workers() if config.workers is None else config.workers,
        progress=True,
        skip_bad=config.skip_bad_images,
    )
    return training.train(
        work.run,
        state,
        loader,
        plan,
        forward=model,
        validate=None if watched is None else _validation(model, watched, plan),
        checkpoint_seconds=seconds(config.checkpoint_every),
        tell=work.tell,
        max_bad=1.0 if config.skip_bad_images else 0.0,
        clock=clock,
    )


def _validation(model: Detector, watched: BoxSet, plan: DetectPlan) -> Callable[[], Mapping[str, float]]:
    def validate() -> dict[str, float]:
        model.card = dataclasses.replace(model.card, input=plan.input)
        kept, found, _ = measuring.answers(_finder(model, plan.device, plan.dtype), watched, title="validation")
        summary = detection.average_precision(kept, found).summary
        return {f"val/{name}": value for name in ("ap", "ap50") if (value := summary[name]) is not None}

    return validate


def _finder(model: Detector, device: str, dtype: str) -> ObjectFinder:
    return ObjectFinder(model, device=device, precision="bf16" if dtype == "bfloat16" else "fp32")


def _measure(config: DetectFinetuneConfig, work: Work, model: Detector, parts: BoxSplits) -> dict[str, float]:
    """Choose the thresholds by the validation images, measure, and write evaluation.json. The numbers for the card."""
    device = next(model.parameters()).device
    finder = ObjectFinder(model, device=str(device), precision=config.precision)
    notes = list(parts.notes)
    thresholds = finder.thresholds
    answered = None
    if parts.val is not None:
        answered = measuring.answers(finder, parts.val, title="thresholds")
        thresholds = detection.best_thresholds(*answered[:2])
        model.card = dataclasses.replace(model.card, thresholds=tuple(map(float, thresholds)))
    split = "test" if parts.test is not None else "val"
    boxes = parts.parts().get(split)
    if boxes is None:
        runs.write_json(work.folder / "evaluation.json", {})
        print("There are no images to measure it on: give a val or a test part, or --val-fraction.")
        return {}
    if split == "val":
        notes.append(
            "The thresholds were chosen by the same images: what is found, missed and invented looks a little better than on others."
        )
    if answered is None or split == "test":
        answered = measuring.answers(finder, boxes)
    kept, found, unreadable = answered
    if work.overrun:
        notes.append(work.overrun)
    measured = detection.measured(
        kept,
        found,
        thresholds,
        model=model.card.name,
        data=config.data,
        split=split,
        notes=notes,
        unreadable=unreadable,
    )
    detection.write_record(work.folder / "evaluation.json", measured)
    measuring.remarks(measured)
    print(f"\n{split}: {measured.images:,} images, {measured.objects:,} objects\n{measuring.described(measured)}")
    return {f"{split}_{name}": value for name, value in measured.named().items()}


def _counted(parts: BoxSplits) -> dict[str, Any]:
    counted: dict[str, Any] = {"form": parts.form}
    for part, boxes in parts.parts().items():
        counted[part] = len(boxes)
        counted[f"{part}_objects"] = int(boxes.class_counts().sum())
    return counted


def _tell(config: DetectFinetuneConfig, start: ModelCard, parts: BoxSplits, plan: DetectPlan) -> None:
    """Print what will be done and why."""
    sizes = [
        f"{len(boxes):,} {part} images with {int(boxes.class_counts().sum()):,} objects"
        for part, boxes in parts.parts().items()
    ]
    print(f"data:   {config.data} ({parts.form}): {', '.join(sizes)}")
    print(f"classes: {len(parts.class_names)}: {in_short(parts.class_names)}")
    for note in parts.notes:
        print(f"        {note}")
    if parts.left_out:
        print(f"        {len(parts.left_out)} images or boxes are left out; unreadable.json lists them")
    print(f"model:  RetinaNet on {start.name}" + ("" if config.pretrained else " from random weights"))
    recipe = plan.recipe
    print(
        f"recipe: {recipe.steps:,} steps of {recipe.batch_size} images, {recipe.crop} px, learning rate {recipe.base_learning_rate:.3g}, "
        f"{plan.detector.channels} channels, {plan.dtype} on {plan.device}"
    )
    for note in recipe.notes:
        print(f"        {note}")
    sys.stdout.flush()
