"""The beginning: which model, on what, and how good it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.candidates import in_words
from bigtransfer.report.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The final evaluation; shares of 0 to 1."""

    top1: float | None
    """None, as the two below, if there is no image."""
    mean_per_class: float | None
    ece: float | None
    top5: float | None
    """Also None where five guesses are as many as there are classes."""
    top1_interval: tuple[float, float]
    images: int
    classes: int
    seen: int
    """Of the classes, those that the images are of."""
    kind: str
    """Of the images measured on: "test"; empty if they are all that there are."""
    notes: Sequence[str]
    """What was assumed about the classes."""
    trained_on: int
    """How many of these images are among the training images too, byte for byte."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The final evaluation where images may have several classes; shares of 0 to 1, None if there is no image."""

    map: float | None
    micro_f1: float | None
    exact: float | None
    images: int
    classes: int
    kind: str
    notes: Sequence[str]
    trained_on: int


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The last accuracy measured in training."""

    share: float
    what: str
    """The share of, or the (mean) average precision on, the validation images: "top1", "map", "ap"."""
    steps: int
    """Taken until then."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    name: str
    subject: str
    """Model and data, and what was done to it; may be empty."""
    evaluated: Evaluated | None
    labelled: Labelled | None
    validated: Validated | None
    missing: str
    """Why there is no evaluation; empty if that needs no excuse."""
    train_images: int
    """That what is delivered has learnt from; 0: unknown."""
    given_away: str
    """What of the training images' files gives their classes away; empty if nothing does."""


def compute(run: Contents) -> Headline | None:
    if run.detection is not None:  # which has a beginning of its own
        return None
    config, evaluation, labels = run.config, run.evaluation, run.labels
    found = evaluation or labels
    asked, command = (config.asked, config.command) if config else ({}, "")
    data = (found and found.data) or asked.get("data") or ""
    data = data if isinstance(data, str) else ", ".join(data)
    if config and command == "finetune":
        steps = config.recipe.steps if config.recipe else 1
        done = in_words(asked.get("linear") or "none", steps, run.choice.delivered if run.choice else None)
        start = done if asked.get("pretrained", True) else "trained from random weights"
        subject = f"{config.start}, {start} on {data}"
    else:
        subject = " on ".join(filter(None, (run.model, data)))
    evaluated = labelled = validated = None
    missing = ""
    kinds = {"all images": "", "train": "training", "val": "validation"}
    if labels:
        labelled = Labelled(
            map=labels.map,
            micro_f1=labels.micro_f1,
            exact=labels.exact,
            images=labels.images,
            classes=len(labels.class_names),
            kind=kinds.get(labels.split, labels.split),
            notes=labels.notes,
            trained_on=_trained_on(run, labels.split),
        )
    elif evaluation:
        classes = len(evaluation.class_names)
        evaluated = Evaluated(
            top1=evaluation.top1,
            top1_interval=evaluation.top1_interval,
            top5=evaluation.top5 if classes > 5 else None,
            mean_per_class=evaluation.mean_per_class,
            ece=evaluation.ece,
            images=evaluation.images,
            classes=classes,
            seen=sum(row.support > 0 for row in evaluation.per_class),
            kind=kinds.get(evaluation.split, evaluation.split),
            notes=evaluation.notes,
            trained_on=_trained_on(run, evaluation.split),
        )
    else:
        for line in run.metrics:
            for what in ("top1", "map", "ap"):
                if (share := getattr(line, what)) is not None:
                    validated = Validated(share=share, what=what, steps=line.step + 1)
        # Pre-training ends with a model and its last validation, fine-tuning with an evaluation.
        pretrained = command == "pretrain" and run.has("model.safetensors")
        finished = pretrained or run.has("evaluation.json")
        if not (pretrained and validated):
            missing = "the data set has no images to measure it on" if finished else "the run has not finished"
    return Headline(
        name=run.folder.resolve().name,
        subject=subject,
        evaluated=evaluated,
        labelled=labelled,
        validated=validated,
        missing=missing,
        train_images=_learnt_from(run),
        given_away=told if config and isinstance(told := config.data.get("given_away"), str) else "",
    )


def _learnt_from(run: Contents) -> int:
    """How many images the model in the run's folder has learnt from; of an average those that were trained on."""
    recipe = run.config.recipe if run.config else None
    without_steps = recipe is not None and not recipe.steps
    if run.closed is not None and (run.choice.delivered == "closed form" if run.choice else without_steps):
        return run.closed.whole.images if run.closed.whole else run.closed.images
    return run.config.train_images if run.config else 0


def _trained_on(run: Contents, split: str) -> int:
    """How many images of the part that was measured are among the training images too, byte for byte."""
    return sum(
        copy.part == split != "train"
        for copies in run.copies
        if any(copy.part == "train" for copy in copies)
        for copy in copies
    )
