"""What is answered by a classifier of the 1,000 classes of ILSVRC-2012: its own validation images, ReaL, V2, A, R, Sketch, and objects out
of context."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from bigtransfer import catalog
from bigtransfer.catalog import ModelCard
from bigtransfer.data import ImageSet
from bigtransfer.data.classes import match
from bigtransfer.data.layout import listed
from bigtransfer.errors import ConfigError, DataError, WeightsError
from bigtransfer.evals.metrics import wilson
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.ilsvrc import CLASSES, ILSVRC2012, IMAGENET_REAL, class_folders, identities, inner, lists
from bigtransfer.suites.out_of_context import OUT_OF_CONTEXT
from bigtransfer.suites.protocol import Bench, Measurement, Preparation, Protocol
from bigtransfer.suites.suite import Suite, Task

# --- What a model says about the 1,000 classes


def outputs_of(card: ModelCard) -> np.ndarray:
    """int64 (1000,): which of the model's outputs each class is; -1 where it has none for it. ConfigError if it is no classifier of these.

    A head of the 21,843 classes of ImageNet-21k lacks one of them, 850 (teddy).
    """
    names, count = card.class_names, card.num_classes
    fits = "a classifier of ImageNet's classes is needed: the 1,000 of ILSVRC-2012, or the 21,843 of ImageNet-21k that hold them"
    if count in _HEADS and (names is None or names in (catalog.class_names(_HEADS[count]), _numbers(count))):
        return _places(catalog.wordnet_ids(_HEADS[count]))
    if names is not None and all(re.fullmatch(r"n\d{8}", name) for name in names):
        found = _places(names)
        if (found >= 0).sum() >= CLASSES - 1:
            return found
    elif names is not None and count == CLASSES:
        try:
            return match(identities(), names, count).numbers
        except DataError as error:
            raise ConfigError(
                f"{card.name} has 1,000 classes, but by their names they are not those of ILSVRC-2012; {fits}."
            ) from error
    raise ConfigError(
        f"{card.name} has {count:,} classes, which are not ImageNet's; {fits}. Fine-tune it on ILSVRC-2012 first."
    )


_HEADS = {1000: "imagenet-1k", 21843: "imagenet-21k"}
"""By the number of their outputs, which no other published head has."""


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _places(names: Sequence[str]) -> np.ndarray:
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(identity, -1) for identity in identities()], dtype=np.int64)


def scores(
    bench: Bench, images: ImageSet, preparation: Preparation
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(logits float32 (n, 1000) by class number, -inf where the model has no such class; labels; indices) as `Bench.logits` gives them.

    ConfigError where the model does not fit; WeightsError where its answers are no numbers, which would pass for right ones.
    """
    chosen = outputs_of(bench.card)
    for logits, labels, indices in bench.logits(images, preparation):
        if not logits.isfinite().all():
            raise WeightsError(
                f"The answers of {bench.card.name} are not finite numbers: its weights are damaged, or its training diverged."
            )
        picked = _numpy(logits)[:, chosen.clip(0)]
        picked[:, chosen < 0] = -np.inf
        yield picked, _numpy(labels), _numpy(indices)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def places_of_best(values: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64 (n,): how many candidates come before the best of the right ones; 0 means that the answer is right.

    values: (n, candidates). right: bool (n, candidates), one or more in each row. Of equal values the first counts as higher.
    """
    assert right.any(axis=1).all()
    best = np.where(right, values, -np.inf).max(axis=1, keepdims=True)
    first = (right & (values == best)).argmax(axis=1)
    before = np.arange(values.shape[1]) < first[:, None]
    return ((values > best) | ((values == best) & before)).sum(axis=1)


class Places:
    """The place of the best right answer for each image of a set, whatever the order, the batches and the processes that bring them, and
    however often one comes."""

    def __init__(self, images: int) -> None:
        self._places = np.full(images, -1, dtype=np.int64)

    def add(self, indices: np.ndarray, places: np.ndarray) -> None:
        self._places[indices] = places

    def within(self, k: int) -> np.ndarray:
        """bool (images,): whether a right answer is among the first `k`."""
        assert (self._places >= 0).all(), "not all images were seen"
        return self._places < k

    def share(self, metric: str, k: int, note: str = "") -> Measurement:
        """Over all images."""
        hits = self.within(k)
        value = int(hits.sum()) / len(hits)
        return Measurement(metric=metric, value=value, images=len(hits), interval=wilson(value, len(hits)), note=note)

    def mean_per_class(self, metric: str, k: int, labels: np.ndarray, note: str = "") -> Measurement:
        """The mean over the classes that occur in `labels` (images,), each counted alike."""
        hits, count = self.within(k), np.bincount(labels)
        shares = np.bincount(labels, weights=hits)[count > 0] / count[count > 0]
        return Measurement(metric=metric, value=float(shares.mean()), images=len(hits), note=note)


def head_note(card: ModelCard) -> str:
    """What a reader must know about how the model's outputs were taken for the classes."""
    missing = np.flatnonzero(outputs_of(card) < 0).tolist()
    notes = [f"the model has no output for class {listed(map(str, missing))}"] if missing else []
    if card.class_names is None:
        notes.append(
            "the model knows no class names: its outputs are taken to be in the order of the WordNet identities"
        )
    return "; ".join(notes)


SQUARE = Preparation(mode="square")


@dataclass(frozen=True, kw_only=True)
class TopK(Protocol):
    """Whether a class of the image has the highest logit, or is among the five highest."""

    name: ClassVar[str] = "imagenet"
    needs: ClassVar[tuple[str, ...]] = ("test",)
    source: ClassVar[str] = (
        "BiT, section 2.2: both sides resized to the input size, no crop. The input size is the model's own unless stated. A, R: as their "
        "authors' code, only the classes of the set compete. Images with several labels (ReaL): right if one of them is answered."
    )

    preparation: Preparation = SQUARE
    among: Literal["all", "own"] = "all"
    """Which logits compete: of all 1,000 classes, or of those that occur in the benchmark."""

    def measure(self, bench: Bench) -> Sequence[Measurement]:
        """top-1 and top-5."""
        images = bench.parts[self.needs[0]]
        assert images.labels is not None and len(images.class_names) == CLASSES
        compete = np.ones(CLASSES, dtype=bool)
        if self.among == "own":
            compete = images.class_counts() > 0
        places = Places(len(images))
        for values, labels, indices in scores(bench, images, self.preparation):
            places.add(indices, places_of_best(values[:, compete], _right(labels)[:, compete]))
        note = head_note(bench.card)
        measured = [places.share("top-1", 1, note), places.share("top-5", 5, note)]
        interval = measured[0].interval
        if interval is not None and interval[0] <= 1 / compete.sum():
            doubt = "no better than chance: are the images numbered in the order of the WordNet identities, and the model's classes too?"
            measured = [replace(one, note="; ".join(filter(None, (note, doubt)))) for one in measured]
        return measured


def _right(labels: np.ndarray) -> np.ndarray:
    """bool (n, 1000) of labels (n,) or (n, k) padded with -1."""
    table = labels.reshape(len(labels), -1)
    right = np.zeros((len(labels), CLASSES + 1), dtype=bool)
    np.put_along_axis(right, np.where(table < 0, CLASSES, table), True, axis=1)
    return right[:, :CLASSES]


@dataclass(frozen=True, kw_only=True)
class ValidationTopK(TopK):
    """On the validation images of ILSVRC-2012."""

    needs: ClassVar[tuple[str, ...]] = ("val",)


# --- Sets of their own


def _read_identities(folder: Path, parts: Iterable[str], which: str | None) -> dict[str, ImageSet]:
    place = inner(folder)
    images = class_folders(place)
    if which is not None:
        present, published = set(np.unique(np.asarray(images.labels)).tolist()), set(lists()[which])
        if present != published:
            odd, lost = sorted(present - published), sorted(published - present)
            raise DataError(
                f"The classes in {place} are not the 200 of the set: "
                + "; ".join(
                    f"{what} {listed(identities()[i] for i in some)}"
                    for what, some in (("also", odd), ("without", lost))
                    if some
                )
            )
    return {"test": images}


def _read_numbers(folder: Path, parts: Iterable[str]) -> dict[str, ImageSet]:
    """Folders called 0 to 999; their order as text (0, 1, 10, 100) is another one."""
    return {"test": class_folders(inner(folder), lambda name: int(name) if re.fullmatch(r"\d{1,3}", name) else -1)}


def _set(
    name: str, title: str, images: int, gigabytes: float, obtain: str, folders: tuple[str, ...], **more: Any
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        parts={"test": images},
        classes=CLASSES,
        gigabytes=gigabytes,
        obtain=obtain,
        folders=folders,
        **{"revision": "1", "licence": "MIT", "read": functools.partial(_read_identities, which=None)} | more,
    )


IMAGENET_A = _set(
    "imagenet-a",
    "ImageNet-A",
    7_500,
    0.7,
    "imagenet-a.tar, linked from github.com/hendrycks/natural-adv-examples",
    ("imagenet-a",),
    read=functools.partial(_read_identities, which="imagenet-a"),
)
IMAGENET_R = _set(
    "imagenet-r",
    "ImageNet-R",
    30_000,
    2.2,
    "imagenet-r.tar, linked from github.com/hendrycks/imagenet-r",
    ("imagenet-r",),
    read=functools.partial(_read_identities, which="imagenet-r"),
)
IMAGENET_SKETCH = _set(
    "imagenet-sketch",
    "ImageNet-Sketch",
    50_889,
    7.6,
    "ImageNet-Sketch.zip, linked from github.com/HaohanWang/ImageNet-Sketch",
    ("imagenet-sketch", "ImageNet-Sketch", "sketch"),
)
IMAGENET_V2 = {
    kind: _set(
        f"imagenet-v2-{kind}",
        f"ImageNet-V2 ({kind})",
        10_000,
        1.2,
        f"imagenetv2-{kind}.tar.gz, linked from github.com/modestyachts/ImageNetV2",
        (
            f"imagenetv2-{kind}-format-val",
            f"imagenetv2/imagenetv2-{kind}-format-val",
            f"imagenet-v2/imagenetv2-{kind}-format-val",
        ),
        read=_read_numbers,
        per_class={"test": 10},
    )
    for kind in ("matched-frequency", "threshold0.7", "top-images")
}


# --- The suite


_PREPARATIONS = {
    "aspect": Preparation(mode="aspect"),
    "card": Preparation(),
    "square-384": Preparation(mode="square", size=384),
    "square-480": Preparation(mode="square", size=480),
}
"""Other than both sides at the model's own size: timm's for these models (the shorter side, then the centre), what the card says, the
paper's sizes for all (384; 480 for R152x4, and in the released code for every model)."""


def _tasks(name: str, benchmark: Benchmark, protocol: TopK) -> tuple[Task, tuple[Task, ...]]:
    extra = tuple(
        Task(name=f"{name}/{variant}", benchmark=benchmark, protocol=replace(protocol, preparation=preparation))
        for variant, preparation in _PREPARATIONS.items()
    )
    return Task(name=name, benchmark=benchmark, protocol=protocol), extra


_ALL = [
    _tasks("ilsvrc-2012", ILSVRC2012, ValidationTopK()),
    _tasks("real", IMAGENET_REAL, ValidationTopK()),
    *(_tasks(f"v2-{kind}", benchmark, TopK()) for kind, benchmark in IMAGENET_V2.items()),
    _tasks("a", IMAGENET_A, TopK(among="own")),
    _tasks("r", IMAGENET_R, TopK(among="own")),
    _tasks("sketch", IMAGENET_SKETCH, TopK()),
    _tasks("out-of-context", OUT_OF_CONTEXT, TopK()),
]
SUITE = Suite(
    name="imagenet",
    title="ImageNet: ILSVRC-2012, ReaL, V2, A, R, Sketch, out of context",
    tasks=tuple(task for task, _ in _ALL),
    extra=tuple(task for _, extra in _ALL for task in extra),
)
