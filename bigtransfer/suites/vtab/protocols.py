"""How a model is measured on a task: fine-tuned by the HyperRule, by less than that, or not at all.

The metric is always the share of the whole test part whose most probable class is right (arXiv 1912.11370, section 3.2), also where
others report the mean per class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bigtransfer import hyperrule
from bigtransfer.evals import linear, wilson
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol


def top1(answers: Iterable[tuple[Tensor, Tensor]], note: str = "") -> Measurement:
    """Of (logits `(n, classes)`, labels `(n,)`)."""
    right = total = 0
    for logits, labels in answers:
        right += int((logits.argmax(1) == labels).sum())
        total += len(labels)
    return Measurement(
        metric="top-1", value=right / total, images=total, interval=wilson(right / total, total), note=note
    )


def _tested(bench: Bench, tuned: Bench, preparation: Preparation, note: str = "") -> Measurement:
    return top1(((logits, labels) for logits, labels, _ in tuned.logits(bench.parts["test"], preparation)), note)


@dataclass(frozen=True, kw_only=True)
class HyperRule(Protocol):
    """All weights fine-tuned on the thousand images by the one rule for all tasks; the last step counts."""

    name: ClassVar[str] = "bit-hyperrule"
    needs: ClassVar[tuple[str, ...]] = ("train1000", "test")
    source: ClassVar[str] = (
        "arXiv 1912.11370, sections 3.2 and 3.3, appendix F; google-research/big_transfer, bit_hyperrule.py. Decided here: without "
        "random crops images are resized straight to the size of the crop, and the released code's schedule, with which the published "
        "weights were measured, goes with the paper's resolutions."
    )
    trains: ClassVar[bool] = True

    flip: bool
    crop: bool
    small: bool
    """Whether the task's images have fewer than 96 * 96 pixels."""
    schedule: Literal["code", "paper"] = "code"
    """code: 100 steps of warm-up, a tenth after 200, 300 and 400 steps; paper: no warm-up, a tenth after 150, 300 and 450."""
    resolution: Literal["paper", "code"] = "paper"
    """Of images that are not small: 448 -> 384 px, for R152x4 512 -> 480 (paper); 512 -> 480 px for all (code)."""
    steps: int = 500
    batch_size: int = hyperrule.BATCH_SIZE
    learning_rate: float = hyperrule.BASE_LEARNING_RATE

    def sizes(self, architecture: str) -> tuple[int, int]:
        """(resize, crop) in px for a network of that name ("r152x4")."""
        side = 1 if self.small else 1000  # only on which side of the border matters
        return hyperrule.resolution(side, side, self.resolution, architecture)

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        resize, crop = self.sizes(bench.card.architecture.name)
        return _finetuned(self, bench, resize, crop)


def _finetuned(rule: HyperRule, bench: Bench, resize: int, crop: int) -> Sequence[Measurement]:
    tuned = bench.finetuned(
        bench.parts["train1000"],
        variant=rule.schedule,
        steps=rule.steps,
        batch_size=rule.batch_size,
        learning_rate=rule.learning_rate,
        resize=resize,
        crop=crop,
        flip=rule.flip,
        random_crop=rule.crop,
    )
    return [_tested(bench, tuned, Preparation(mode="square", size=crop))]


@dataclass(frozen=True, kw_only=True)
class Budget(HyperRule):
    """The rule with fewer steps of fewer and smaller images, for machines that cannot afford it. Not the paper's."""

    name: ClassVar[str] = "hyperrule-budget"
    source: ClassVar[str] = (
        "This project's: the HyperRule squeezed to 100 steps of 32 images of 64 px, at the highest learning rate that a time budget of "
        "`bit finetune` takes. What it gives is not what the rule gives."
    )

    steps: int = 100
    batch_size: int = 32
    learning_rate: float = hyperrule.HIGHEST_LEARNING_RATE
    resize_to: int = 72
    crop_to: int = 64

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        return _finetuned(self, bench, self.resize_to, self.crop_to)


@dataclass(frozen=True, kw_only=True)
class Closed(Protocol):
    """A linear classifier of the frozen network's features of several blocks and sizes, which leave-one-out chooses: `--linear closed`."""

    name: ClassVar[str] = "closed-form"
    needs: ClassVar[tuple[str, ...]] = ("train1000", "test")
    source: ClassVar[str] = "This project's: `bit finetune --linear closed`."
    trains: ClassVar[bool] = True

    flip: bool
    """Whether images are also seen mirrored."""

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        tuned = bench.finetuned(bench.parts["train1000"], linear="closed", flip=self.flip)
        return [_tested(bench, tuned, Preparation(), note=f"features of images of {tuned.card.input.size} px")]


@dataclass(frozen=True, kw_only=True)
class Probe(Protocol):
    """A linear classifier of the features that the network's own head sees: ridge regression whose penalty leave-one-out chooses.

    `learning.Transfer` with its linear probe does the same, and `Closed` is its closed form; they stay protocols of their own, as their
    names and parameters are part of what makes results comparable, and those that were measured would no longer be.
    """

    name: ClassVar[str] = "linear-probe"
    needs: ClassVar[tuple[str, ...]] = ("train1000", "test")
    source: ClassVar[str] = (
        "This project's: ridge regression of one-hot targets on standardized features (`evals.linear.fit`)."
    )
    trains: ClassVar[bool] = True

    size: int | None = None
    """px; None: as the model's card says."""

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        preparation = Preparation(mode="square", size=self.size)
        train, test = bench.parts["train1000"], bench.parts["test"]
        features, labels = bench.features(train, preparation)
        probe = linear.fit(features, labels, len(train.class_names))
        with torch.inference_mode():
            return [top1((probe.head(seen), wanted) for seen, wanted in _pieces(*bench.features(test, preparation)))]


def _pieces(features: Tensor, labels: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(features.split(4096), labels.split(4096), strict=True)


def parameters_of(task: Any) -> dict[str, Any]:
    """What the rule's protocols must know of a task (`tasks.VtabTask`)."""
    height, width = task.native
    return {
        "flip": task.flip,
        "crop": task.crop,
        "small": 0 < height * width < hyperrule.LOW_RESOLUTION_AREA,
    }
