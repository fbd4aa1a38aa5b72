"""What is done with a model and a benchmark, and what that gives.

A protocol is a frozen dataclass: its fields are everything that would change the numbers, and stand in the results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from bigtransfer.catalog import InputSpec, ModelCard
from bigtransfer.data import ImageSet
from bigtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image becomes the input, as a protocol states it; what it leaves open the model's card decides."""

    mode: Literal["card", "square", "aspect"] = "card"
    """square: both sides to `size`. aspect: the shorter side to `resized`, then the central `size` x `size`. card: as the card says."""
    size: int | None = None
    """px; None: the card's."""
    resized: int | None = None
    """The shorter side before the crop, px; None: as `size`."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """None: the card's."""

    def __post_init__(self) -> None:
        if self.resized is None:
            return
        if self.mode != "aspect" or self.size is None:
            raise ValueError('resized: only with mode "aspect" and a size')
        if not self.size <= self.resized <= 100 * self.size:
            raise ValueError(
                f"resized: {self.resized:,} px is not from {self.size:,} px, which are cut out of it, to a hundred times that"
            )

    def spec(self, card: ModelCard) -> InputSpec:
        """What that means for a model; ConfigError if that is more than the limit `input_side`."""
        changes: dict[str, Any] = {}
        if self.mode != "card":
            changes |= {"mode": self.mode, "crop_pct": 1.0}
        if self.size is not None:
            changes["size"] = self.size
        if self.interpolation is not None:
            changes["interpolation"] = self.interpolation
        spec = dataclasses.replace(card.input, **changes)
        if self.resized is not None:
            share = spec.size / self.resized
            spec = dataclasses.replace(spec, crop_pct=share)
            if spec.resized != self.resized:  # the quotient was rounded up, and what it stands for down
                spec = dataclasses.replace(spec, crop_pct=math.nextafter(share, 0))
        return spec.within_limits("The protocol", ConfigError)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of a protocol."""

    metric: str
    """ "top-1", "top-5", "mean-per-class", ..."""
    value: float
    """0 to 1."""
    images: int
    """That it was measured on."""
    interval: tuple[float, float] | None = None
    """95 %, of the choice of images (Wilson's, for shares)."""
    note: str = ""
    """What a reader must know beside the number."""
    drawn: tuple[int, ...] = ()
    """Which images of the training part were learnt from, where not all were: their places when all are put in the order of their names."""


class Bench:
    """What a protocol may use: the model, and a way to have it look, learn and remember. `jobs/suite.py` provides it."""

    card: ModelCard
    device: torch.device
    seed: int
    parts: Mapping[str, ImageSet]
    """Of the benchmark: those that the protocol named."""

    def logits(self, images: ImageSet, preparation: Preparation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(logits float32 `(n, classes)`, labels `(n,)` or `(n, k)`, indices `(n,)` into `images`), on the CPU, in the order of `images`.
        Raises UnreadableImages where images cannot be read: a benchmark has no image too many."""
        raise NotImplementedError

    def features(self, images: ImageSet, preparation: Preparation) -> tuple[Tensor, Tensor]:
        """Pooled features float32 `(n, d)` and labels `(n,)`, on the CPU, in the order of `images`; kept in the cache under the weights,
        the preparation and the images."""
        raise NotImplementedError

    def finetuned(self, train: ImageSet, **settings: Any) -> Bench:
        """A bench whose model was fine-tuned by the rule on all of `train`, with these flags of `bit finetune` (by their field names;
        "seed" among them, if it is to be another than this bench's). An interrupted training goes on at the next call, and a finished one
        is not repeated."""
        raise NotImplementedError

    def forget(self) -> None:
        """Remove what the fine-tuning that made this bench's model has left on the disk; the next call would repeat it."""
        raise NotImplementedError

    def folder(self) -> Path:
        """Where this measurement may keep what it needs to go on after an interruption: its own by suite, task, seed and weights."""
        raise NotImplementedError


class Protocol:
    """Base of the protocols; each is a frozen dataclass with these two."""

    name: ClassVar[str]
    """As it stands in results: "restricted-125"."""
    needs: ClassVar[tuple[str, ...]]
    """Names of the benchmark's parts that `measure` looks at."""
    source: ClassVar[str]
    """Where the protocol is described: paper and section, or whose code; and what is not stated there and was decided here."""
    trains: ClassVar[bool] = False
    """Whether the model learns from the benchmark's images (linear probes included)."""

    def parameters(self) -> dict[str, Any]:
        """Everything that would change the numbers, by name: the fields, nested as they are."""
        return dataclasses.asdict(self)  # pyright: ignore[reportArgumentType] (every protocol is a dataclass)

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        """The numbers. Raises ConfigError where the model does not fit the protocol (such as: other classes)."""
        raise NotImplementedError
