"""OmniBenchmark: 21 realms, each a set of its own, by a linear probe on frozen features; Zhang et al., ECCV 2022, arXiv 2207.07106.

Layouts, as ZhangYuanhan-AI/OmniBenchmark has them: `<realm>/<realm>.train/record.txt` (also records.txt) with lines `images/<file> <id>` in
the first release, `<realm>/train.txt` with lines `train/images/<file> <id>` in the second; likewise val and test.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bigtransfer import records
from bigtransfer.data import ImageSet
from bigtransfer.errors import DataError, WeightsError
from bigtransfer.evals.metrics import Classification
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol
from bigtransfer.suites.suite import Suite, Task
from bigtransfer.suites.transfer import lines_of, listed_files

LAMBDAS = (1e-5, 1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0)

# --- The sets


def _read(release: int, realm: str, classes: int, folder: Path, needed: Iterable[str]) -> Mapping[str, ImageSet]:
    found = {}
    for part in needed:
        if release == 1:
            base = folder / f"{realm}.{part}"
            lists = [base / "record.txt", base / "records.txt"]
        else:
            base, lists = folder, [folder / f"{part}.txt"]
        path = next((one for one in lists if one.is_file()), None)
        if path is None:
            continue
        paths, labels = _entries(path, classes)
        if part == "test" and len(labels) > 1 and len(set(labels)) == 1:
            raise DataError(
                f"{path} gives every image the label {labels[0]}: the public test lists hold no answers, only the authors' server does. "
                "Measure on the val part (the tasks without /test), or put a list with the true labels in its place."
            )
        found[part] = listed_files(base, paths, labels, tuple(str(number) for number in range(classes)))
    return found


def _entries(path: Path, classes: int) -> tuple[list[str], list[int]]:
    paths, labels = [], []
    for number, line in enumerate(lines_of(path), 1):
        image, _, label = line.strip().rpartition(" ")
        stated = records.whole(label)
        if not image or stated is None or stated >= classes:
            raise DataError(
                f"{path}, line {number}: a path and a number below {classes} were expected, not {line[:80]!r}. Is it of the other release?"
            )
        if image.startswith("/") or ".." in image.split("/"):
            raise DataError(f"{path}, line {number}: {image!r} leads out of the folder.")
        paths.append(image)
        labels.append(stated)
    return paths, labels


def _count(text: str) -> int | None:
    return int(text) if text else None


def _benchmarks(release: int) -> dict[str, Benchmark]:
    text = (importlib.resources.files("bigtransfer.suites") / "files" / "omnibenchmark.csv").read_text(encoding="utf-8")
    found = {}
    for row in csv.DictReader(io.StringIO(text)):
        realm, classes = row["realm"], int(row[f"v{release}_classes"])
        parts = {part: _count(row.get(f"v{release}_{part}") or "") for part in ("train", "val", "test")}
        found[realm] = Benchmark(
            name=f"omnibenchmark-v{release}-{realm}",
            title=f"OmniBenchmark V{release}, {realm}",
            revision=f"V{release}",
            parts=parts,
            classes=classes,
            licence="CC BY-NC-ND 4.0",
            obtain="the images and lists as github.com/ZhangYuanhan-AI/OmniBenchmark tells (a form, then OneDrive or OpenDataLab)",
            gigabytes=None,
            folders=(f"omnibenchmark-v{release}/{realm}", f"omnibenchmark_v{release}/{realm}"),
            read=functools.partial(_read, release, realm, classes),
            trainable=True,
        )
    return found


# --- The probe


RESIZED = Preparation(mode="aspect", size=224, interpolation="bicubic")
"""The shorter side to 224 px, then the centre."""


@dataclass(frozen=True, kw_only=True)
class OmniProbe(Protocol):
    """Logistic regression by L-BFGS on frozen features, one for each lambda; which counts is chosen on held-out training images."""

    name: ClassVar[str] = "omnibenchmark-probe"
    source: ClassVar[str] = (
        "ZhangYuanhan-AI/OmniBenchmark, linear_probe/main.py and its configurations. There lambda and step are those that are best on the "
        "images that are measured (select_on=eval); the default here holds out a tenth of the training images, class by class, to choose "
        "both, and learns from all of them again. The training images stand in the order of their names, there in that of the list."
    )
    trains: ClassVar[bool] = True

    on: Literal["val", "test"] = "val"
    """Part that is measured on. The public lists of test have no labels."""
    select_on: Literal["train", "eval"] = "train"
    held_out: float = 0.1
    """Share of each class."""
    lambdas: tuple[float, ...] = LAMBDAS
    """Factors of the norm (not its square) of the weights, without the bias."""
    steps: int = 1000
    """Calls of torch's L-BFGS, of at most 20 iterations each."""
    every: int = 100
    """Steps between two looks."""
    segments: int = 10
    """Parts of the training images, whose mean losses are added."""
    preparation: Preparation = RESIZED

    def __post_init__(self) -> None:
        if self.select_on == "train" and not 0 < self.held_out < 1:
            raise ValueError(f"held_out: {self.held_out} is not between 0 and 1")
        if not self.lambdas or not all(0 <= factor < math.inf for factor in self.lambdas):
            raise ValueError("lambdas: numbers of 0 or more were expected, one at least")
        if self.every > self.steps:
            raise ValueError(f"every: {self.every:,} is more than all {self.steps:,} steps")

    @property
    def needs(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] (here a field decides)
        return "train", self.on

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        train, shown = bench.parts["train"], bench.parts[self.on]
        classes = len(train.class_names)
        order = torch.from_numpy(_by_name(train))
        features, labels = (one[order].to(bench.device) for one in bench.features(train, self.preparation))
        if len(labels) < self.segments:
            raise DataError(f"{len(labels)} training images are too few for {self.segments} segments.")
        seen, truth = (one.to(bench.device) for one in bench.features(shown, self.preparation))

        def judged(classifier: nn.Linear) -> Classification:
            result = Classification(classes)
            with torch.no_grad():
                result.update(classifier(seen), truth)
            return result

        if self.select_on == "eval":
            every = [
                judged(classifier)
                for factor in self.lambdas
                for _, classifier in self.fitted(features, labels, classes, factor, bench.seed)
            ]
            _check(every)
            top1, per_class = max(one.top1 for one in every), max(one.mean_per_class for one in every)
            best = max(every, key=lambda one: one.top1)
            note = "the best of all lambdas and steps on the very images that are measured, as the released code prints"
            return self._measured(top1, per_class, best, note)

        chosen, left = _held_out(labels.cpu().numpy(), self.held_out, bench.seed)
        if not len(chosen) or not len(left):
            raise DataError(
                f"Of {len(labels)} training images, {len(chosen)} would be held out to choose lambda by, and {len(left)} learnt from."
            )
        looks: list[tuple[float, float, int]] = []
        for factor in self.lambdas:
            for step, classifier in self.fitted(features[left], labels[left], classes, factor, bench.seed):
                with torch.no_grad():
                    right = classifier(features[chosen]).argmax(1) == labels[chosen]
                looks.append((float(right.double().mean()), factor, step))
        _, factor, step = max(
            looks, key=lambda one: one[0]
        )  # the first of equals: the smallest lambda, the earliest step
        results = [
            judged(one) for at, one in self.fitted(features, labels, classes, factor, bench.seed, step) if at == step
        ]
        _check(results)
        note = f"lambda {factor:g} after {step} steps, chosen on {len(chosen):,} held-out training images"
        return self._measured(results[0].top1, results[0].mean_per_class, results[0], note)

    def fitted(
        self, features: Tensor, labels: Tensor, classes: int, factor: float, seed: int, steps: int | None = None
    ) -> Iterator[tuple[int, nn.Linear]]:
        """(step, classifier) every `every` steps; what comes first is changed by what follows. Classifiers whose weights are no numbers any
        more end it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = nn.Linear(features.shape[1], classes)
        classifier.to(features.device)
        # Equal parts, the last with what is left over.
        size = len(labels) // self.segments
        bounds = [*(size * number for number in range(self.segments)), len(labels)]
        parts = [(features[a:b], labels[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        optimizer = torch.optim.LBFGS(classifier.parameters())

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.zeros(())
            for number, (some, wanted) in enumerate(parts):
                loss = nn.functional.cross_entropy(classifier(some), wanted)
                if number == self.segments - 1:
                    loss = loss + factor * torch.linalg.vector_norm(classifier.weight)
                loss.backward()
            return loss  # of the last part alone, by which L-BFGS tells that nothing changes any more

        for step in range(1, (steps or self.steps) + 1):
            optimizer.step(closure)  # pyright: ignore[reportArgumentType] (a tensor is what it wants)
            if not torch.isfinite(classifier.weight).all():
                return
            if step % self.every == 0:
                yield step, classifier

    def _measured(self, top1: float, per_class: float, best: Classification, note: str) -> list[Measurement]:
        return [
            Measurement(metric="top-1", value=top1, images=len(best), interval=best.top1_interval, note=note),
            Measurement(metric="mean-per-class", value=per_class, images=len(best), note=note),
        ]


def _check(results: Sequence[Classification]) -> None:
    if not results:
        raise WeightsError("The linear probe came to no numbers: are the model's features finite?")


def _by_name(images: ImageSet) -> np.ndarray:
    """int64 (n,): the images in the order of their names."""
    return np.asarray(sorted(range(len(images)), key=images.name), dtype=np.int64)


def _held_out(labels: np.ndarray, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """int64: the places that are held out, of each class the same share, rounded; and the rest, in order."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(own[: round(share * len(own))])
    held = np.sort(np.concatenate(chosen))
    if not len(held):
        raise DataError(
            "The classes have too few training images to hold any out; the variant /select-on-eval does not."
        )
    rest = np.setdiff1d(np.arange(len(labels)), held)
    return torch.from_numpy(held), torch.from_numpy(rest)


# --- Suites


def average_top1(realms: Iterable[str]) -> Callable[[Mapping[str, float]], float]:
    """The mean over the realms, each counted alike."""
    names = tuple(realms)
    return lambda values: fmean(values[name] for name in names)


def _suite(release: int, name: str, title: str) -> Suite:
    benchmarks = _benchmarks(release)
    variants = {"select-on-eval": OmniProbe(select_on="eval"), "test": OmniProbe(on="test")}
    return Suite(
        name=name,
        title=title,
        tasks=tuple(Task(name=realm, benchmark=one, protocol=OmniProbe()) for realm, one in benchmarks.items()),
        extra=tuple(
            Task(name=f"{realm}/{variant}", benchmark=one, protocol=protocol)
            for variant, protocol in variants.items()
            for realm, one in benchmarks.items()
        ),
        aggregates={"average_top1": average_top1(benchmarks)},
    )


SUITES = (
    _suite(1, "omnibenchmark", "OmniBenchmark, 21 realms, first release (the published one)"),
    _suite(2, "omnibenchmark-v2", "OmniBenchmark, 21 realms, second release (cleaned)"),
)
