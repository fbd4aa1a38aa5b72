"""The classifiers that a fine-tuning had to choose from, as its run folder has them: closed.json and choice.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from bigtransfer.catalog import Readout
from bigtransfer.records import Natural, NotNegative, Pixels, Share


@dataclass(frozen=True, kw_only=True)
class View:
    """What a linear classifier may be given to see."""

    size: Pixels
    """Side of the network's input, px."""
    readout: Readout | None
    """None: the mean of the last map, as in the paper's linear evaluations."""

    @property
    def sees_all_of_one_size(self) -> bool:
        return self.readout is not None and self.readout.maxima and len(self.readout.sizes) < 2

    def passes(self, size: int) -> float:
        """The cost of looking at an image so, in forward passes at `size` px: a convolution's cost goes with the image's area."""
        sizes, mirrored = (self.readout.sizes, self.readout.mirrored) if self.readout else ((), False)
        return (1 + mirrored) * sum((one / size) ** 2 for one in sizes or (self.size,))

    def __str__(self) -> str:
        if self.readout is None:
            return f"the last map at {self.size} px"
        what = "the last map" if len(self.readout.blocks) == 1 else "all blocks"
        sizes = " and ".join(map(str, self.readout.sizes or (self.size,)))
        return f"{what} at {sizes} px{', mirrored too' if self.readout.mirrored else ''}"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How good a view is for the task, by leave-one-out on some of the images."""

    view: View
    top1: Share | None
    """None where no class has two images."""
    loss: NotNegative | None
    """Negative log-likelihood, nats, as `linear.Probe.leave_one_out_loss`."""


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


Kind = Literal["closed form", "fine-tuned", "average"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the three, on the validation images."""

    kind: Kind
    top1: Share
    loss: NotNegative
    """Cross-entropy at its best temperature, nats, with targets smoothed as `linear.best_temperature` does."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """choice.json: the candidates and which of them is delivered."""

    delivered: Kind
    candidates: Annotated[tuple[Candidate, ...], msgspec.Meta(min_length=1, max_length=3)]
    images: Natural
    """Validation images that they were compared on."""
