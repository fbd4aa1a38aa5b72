"""Protocols in which the model learns from the training part, all of it or k images of each class, and is measured on the test part.

How it learns is a `Learner`: the rule of the paper, or a linear classifier on the frozen network, which takes minutes on a CPU.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bigtransfer.data import ImageSet
from bigtransfer.errors import DataError
from bigtransfer.evals import linear
from bigtransfer.evals.metrics import Classification
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol

AS_THE_CARD_SAYS = Preparation()
BIG_VISION = Preparation(mode="aspect", resized=256, size=224, interpolation="bilinear")
"""`resize_small(256)|central_crop(224)` of big_vision's few-shot evaluation."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Learns from labelled images of a benchmark, and answers for others."""

    kind: ClassVar[str]
    """As it stands in results and in the names of tasks."""
    source: ClassVar[str]

    def parameters(self) -> dict[str, Any]:
        return {"kind": self.kind} | {name: _plain(value) for name, value in vars(self).items()}

    def learnt(
        self, bench: Bench, train: ImageSet, test: ImageSet, draws: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> Iterator[Classification]:
        """For each draw (indices into `train`) the answers for all of `test` after learning from it alone. seeds: of what else is drawn."""
        raise NotImplementedError


def _plain(value: Any) -> Any:
    return vars(value) if isinstance(value, Preparation) else value


class _FineTuned(Learner):
    """What `bit finetune` makes of the model."""

    def settings(self) -> dict[str, Any]:
        """Its flags, by the names of their fields."""
        raise NotImplementedError

    def learnt(
        self, bench: Bench, train: ImageSet, test: ImageSet, draws: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> Iterator[Classification]:
        for rows, seed in zip(draws, seeds, strict=True):
            tuned = bench.finetuned(train.subset(rows), **self.settings(), seed=seed)
            result = Classification(len(train.class_names))
            for logits, labels, indices in tuned.logits(test, AS_THE_CARD_SAYS):
                result.update(logits, labels, indices)
            yield result


@dataclass(frozen=True, kw_only=True)
class HyperRule(_FineTuned):
    """All weights, by the BiT-HyperRule: steps, resolution and MixUp follow from how many images there are and how large they are."""

    kind: ClassVar[str] = "hyperrule"
    source: ClassVar[str] = (
        "Kolesnikov et al., arXiv 1912.11370v3, section 3.3. Variant `code` is that of the released code, which warms up and sees images "
        "at 512/480 px instead of 448/384."
    )

    variant: Literal["paper", "code"] = "paper"
    batch_size: int | None = None
    """None: the rule's, 512."""
    learning_rate: float | None = None
    """None: the rule's, 0.003."""

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ClosedForm(_FineTuned):
    """`bit finetune --linear closed`: a linear classifier on frozen features of all blocks and several sizes, solved exactly."""

    kind: ClassVar[str] = "closed-form"
    source: ClassVar[str] = "this package; no published protocol, far cheaper than the rule"

    def settings(self) -> dict[str, Any]:
        return {"linear": "closed"}


@dataclass(frozen=True, kw_only=True)
class OnFeatures(Learner):
    """A linear classifier on the frozen network's last, pooled features."""

    preparation: Preparation = AS_THE_CARD_SAYS

    def fit(self, features: Tensor, labels: Tensor, classes: int) -> torch.nn.Module:
        """From features `(n, d)` and labels `(n,)` to what gives scores of features."""
        raise NotImplementedError

    def learnt(
        self, bench: Bench, train: ImageSet, test: ImageSet, draws: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> Iterator[Classification]:
        used = np.unique(np.concatenate(draws))
        if 2 * len(used) > len(train):  # all of them serve the other tasks too
            used = np.arange(len(train))
        seen, labels = bench.features(train.subset(used), self.preparation)
        shown, truth = bench.features(test, self.preparation)
        for rows in draws:
            at = torch.from_numpy(np.searchsorted(used, rows))
            classifier = self.fit(seen[at], labels[at], len(train.class_names))
            result = Classification(len(train.class_names))
            with torch.no_grad():
                for start in range(0, len(shown), 8192):  # whatever the number of classes, little memory
                    span = slice(start, start + 8192)
                    result.update(classifier(shown[span]), truth[span])
            yield result


@dataclass(frozen=True, kw_only=True)
class LinearProbe(OnFeatures):
    """Ridge regression, its penalty chosen by leave-one-out on the training images."""

    kind: ClassVar[str] = "linear-probe"
    source: ClassVar[str] = (
        "this package (`evals.linear.fit`); no published protocol: a check of the features that takes minutes"
    )

    def fit(self, features: Tensor, labels: Tensor, classes: int) -> torch.nn.Module:
        return linear.fit(features, labels, classes).head


@dataclass(frozen=True, kw_only=True)
class FewshotLsr(OnFeatures):
    """big_vision's `fewshot_lsr`."""

    kind: ClassVar[str] = "fewshot-lsr"
    source: ClassVar[str] = (
        "google-research/big_vision, evaluators/fewshot_lsr.py, and the configurations for BiT and ViT. Which images stand in which place "
        "of the training set, TFDS decides there and the names of the images here: the drawn images differ, their number and way do not."
    )

    preparation: Preparation = BIG_VISION
    penalty: float = linear.FEWSHOT_PENALTY

    def __post_init__(self) -> None:
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"penalty: {self.penalty} is not a finite number above 0")

    def fit(self, features: Tensor, labels: Tensor, classes: int) -> torch.nn.Module:
        return linear.fewshot_lsr(features, labels, classes, penalty=self.penalty)


LEARNERS: dict[str, type[Learner]] = {one.kind: one for one in (HyperRule, ClosedForm, LinearProbe, FewshotLsr)}
"""By name."""


@dataclass(frozen=True, kw_only=True)
class _Learning(Protocol):
    trains: ClassVar[bool] = True

    learner: Learner = field(default_factory=HyperRule)
    train: str = "train"
    """Part that is learnt from."""
    test: str = "test"

    def __post_init__(self) -> None:
        if self.train == self.test:
            raise ValueError(f"test: what is learnt from, {self.train!r}, cannot be measured on too")

    @property
    def needs(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] (here the fields decide)
        return self.train, self.test

    @property
    def source(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.learner.source

    def parameters(self) -> dict[str, Any]:
        return vars(self) | {"learner": self.learner.parameters()}


@dataclass(frozen=True, kw_only=True)
class Transfer(_Learning):
    """Learn from the whole training part, answer for the whole test part."""

    name: ClassVar[str] = "transfer"

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        train, test = bench.parts[self.train], bench.parts[self.test]
        (result,) = self.learner.learnt(bench, train, test, [np.arange(len(train))], [bench.seed])
        return [
            Measurement(metric="top-1", value=result.top1, images=len(result), interval=result.top1_interval),
            Measurement(metric="mean-per-class", value=result.mean_per_class, images=len(result)),
        ]


@dataclass(frozen=True, kw_only=True)
class FewShot(_Learning):
    """Learn from `shots` images of each class, several times from others; the median of the accuracies on the whole test part."""

    name: ClassVar[str] = "few-shot"

    shots: int
    subsets: int = 5

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        train, test = bench.parts[self.train], bench.parts[self.test]
        seeds = [bench.seed * self.subsets + number for number in range(self.subsets)]
        draws = [drawn(train, self.shots, seed) for seed in seeds]
        results = list(self.learner.learnt(bench, train, test, draws, seeds))
        place = _places(train)
        return [
            Measurement(
                metric="top-1 (median)",
                value=statistics.median(result.top1 for result in results),
                images=len(test),
                note=f"of {self.subsets} draws of {self.shots} images of each class",
            ),
            *(
                Measurement(
                    metric=f"top-1 (draw {number})",
                    value=result.top1,
                    images=len(result),
                    interval=result.top1_interval,
                    drawn=tuple(place[rows].tolist()),
                )
                for number, (result, rows) in enumerate(zip(results, draws, strict=True))
            ),
        ]


def drawn(images: ImageSet, shots: int, seed: int) -> np.ndarray:
    """Indices into `images` of `shots` of each class, class after class; those of fewer shots are among those of more.

    Drawn as big_vision does: of each class, in the order of the labels, the first of a permutation of its images, all from one
    `numpy.random.default_rng(seed)`. The images of a class stand in the order of their names, so that the order in which they were listed
    does not matter. DataError where a class has fewer images than that.
    """
    assert images.labels is not None
    order = _order(images)
    labels = np.asarray(images.labels)[order]
    rng = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(images.class_names):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) < shots:
            raise DataError(f"{shots} images of each class are asked for, but there are {len(own)} of {name}.")
        rows.append(order[own[:shots]])
    return np.concatenate(rows)


def _order(images: ImageSet) -> np.ndarray:
    """int64 (n,): the images by their names."""
    names = [images.name(i) for i in range(len(images))]
    return np.asarray(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)


def _places(images: ImageSet) -> np.ndarray:
    """int64 (n,): of each image, which one it is when all are put in the order of their names."""
    order = _order(images)
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places
