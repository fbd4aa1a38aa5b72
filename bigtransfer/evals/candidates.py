"""The classifiers that a fine-tuning had to choose from, as its run folder has them: closed.json and choice.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np

from bigtransfer.catalog import Architecture, Calibrated, Readout
from bigtransfer.evals.metrics import chance_note
from bigtransfer.evals.record import Count
from bigtransfer.records import Natural, NotNegative, Pixels, Share


@dataclass(frozen=True, kw_only=True)
class View:
    """What a linear classifier may be given to see."""

    size: Pixels
    """Side of the network's input, px."""
    readout: Readout | None
    """None: the mean of the last map, as in the paper's linear evaluations."""
    beside: Readout | None = None
    """The same of the network beside it, if there is one."""

    @classmethod
    def of(cls, architecture: Architecture, size: int) -> View:
        """What the head of such a network sees of images of `size` px."""
        beside = None if architecture.beside is None else architecture.beside.readout
        return cls(size=size, readout=architecture.readout, beside=beside)

    def on(self, architecture: Architecture) -> Architecture:
        """That of a network of these layers whose head sees it."""
        return architecture.seen(self.readout, self.beside)

    def apart(self) -> tuple[View, View]:
        """What is seen of the network itself, and of the one beside it."""
        return dataclasses.replace(self, beside=None), View(size=self.size, readout=self.beside)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those at which the network sees an image, px, ascending; the one beside it has its own."""
        return (self.readout.sizes if self.readout else ()) or (self.size,)

    @property
    def sees_all_of_one_size(self) -> bool:
        return self.readout is not None and self.readout.maxima and len(self.readout.sizes) < 2

    def passes(self, architecture: Architecture, size: int) -> float:
        """The cost of looking at an image so with a network of this architecture, in plain forward passes of it at `size` px."""
        return self.on(architecture).forward_flops(self.size, 0) / architecture.seen(None).forward_flops(size, 0)

    def __str__(self) -> str:
        if self.readout is None:
            return f"the last map at {self.size} px"
        what = "the last map" if len(self.readout.blocks) == 1 else "all blocks"
        seen = f"at {_listed(self.sizes)}"
        if self.beside is not None:
            what += " of both networks,"
            seen = f"the first {seen}, the second at {_listed(self.beside.sizes or (self.size,))}"
        return f"{what} {seen} px{', mirrored too' if self.readout.mirrored else ''}"


def _listed(sizes: tuple[int, ...]) -> str:
    *others, largest = map(str, sizes)
    return f"{', '.join(others)} and {largest}" if others else largest


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How good a view is for the task, by leave-one-out on some of the images."""

    view: View
    top1: Share | None
    """None where no class has two images."""
    loss: NotNegative | None
    """Negative log-likelihood, nats, as `linear.Probe.leave_one_out_loss`."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The closed form solved again, on the images that had been held out as well, once nothing is to be chosen by them any more."""

    images: Natural
    """That it was solved on."""
    top1: Share | None
    """Accuracy on them when each is judged by the others, as `Closed.top1`."""
    calibrated: Calibrated | None = None
    """As `Closed.calibrated`."""


@dataclass(frozen=True, kw_only=True)
class Closed:
    """closed.json: the closed form."""

    view: View
    judged: tuple[Judged, ...]
    """The views that there were to choose from; empty if there was one only."""
    images: Natural
    """That it was solved on."""
    seconds: NotNegative
    """From the first image to the solution."""
    top1: Share | None
    """Accuracy on its own images when each is judged by the classifier fitted without it; None where no class has two images."""
    right: tuple[Count, ...] = ()
    """Of each class, how many images were judged correctly so; empty if an earlier version did not count them."""
    counted: tuple[Count, ...] = ()
    """Of each class, how many were judged."""
    calibrated: Calibrated | None = None
    """What its temperature is worth; None for images too few to tell, and from earlier versions."""
    whole: Whole | None = None
    """What takes its place in the model that is delivered; None if no images were held out, or they were to stay unseen."""

    def __post_init__(self) -> None:
        if any(right > counted for right, counted in zip(self.right, self.counted, strict=False)):
            raise ValueError("of a class more images are right than were counted")
        counted = sum(self.counted)
        if self.top1 is not None and self.right and abs(self.top1 * counted - sum(self.right)) > 0.01:
            raise ValueError(f"top1 is {self.top1}, and {sum(self.right)} of {counted} images are right")

    def chance_note(self, class_names: Sequence[str] | None) -> str | None:
        """A sentence if that is not shown to be better than chance. class_names: None if they are not known."""
        if len(self.right) != len(self.counted) or (class_names is not None and len(class_names) != len(self.counted)):
            return None
        return chance_note(np.array(self.right), np.array(self.counted), class_names)

    def unjudged(self, class_names: Sequence[str]) -> list[str]:
        """The classes of which one image alone was learnt from, which no other can judge."""
        if len(class_names) != len(self.counted) or self.images > sum(self.counted) + len(class_names):
            return []  # not counted, or a sample of the images was judged
        return [name for name, count in zip(class_names, self.counted, strict=True) if not count]

    @property
    def mean_per_class(self) -> float | None:
        """Mean share of the classes that is judged correctly, each counted alike."""
        shares = [right / count for right, count in zip(self.right, self.counted, strict=False) if count]
        return sum(shares) / len(shares) if shares else None


Kind = Literal["closed form", "fine-tuned", "average"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the three, on the validation images."""

    kind: Kind
    top1: Share
    loss: NotNegative
    """Cross-entropy at its best temperature, nats, with targets smoothed as `linear.best_temperature` does; with --balance the mean over
    classes, each counted alike."""
    mean_per_class: Share | None = None
    """Mean share of the classes that is right, each counted alike; None if an earlier version did not measure it."""


def in_words(linear: str, steps: int, delivered: Kind | None = None) -> str:
    """What was done to a pre-trained network, to be followed by "on" and the data. linear: as `bit finetune --linear`; steps: that its
    recipe has; delivered: what was chosen, if there was a choice."""
    if linear == "sgd":
        return "with a linear classifier trained"
    if not steps or delivered == "closed form":
        return "with a linear classifier solved"
    return "fine-tuned and averaged with a linear classifier solved" if delivered == "average" else "fine-tuned"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """choice.json: the candidates and which of them is delivered."""

    delivered: Kind
    candidates: Annotated[tuple[Candidate, ...], msgspec.Meta(min_length=1, max_length=3)]
    images: Natural
    """Validation images that they were compared on."""
    solved_on: Natural | None = None
    """Images that the classifier of the fine-tuned network was solved on once more, those held out included; None if it was not. Its
    leave-one-out is not on record: the network was tuned for that to be good."""
    calibrated: Calibrated | None = None
    """What the temperature is worth that these images gave to what is delivered; None as of `Closed`."""
