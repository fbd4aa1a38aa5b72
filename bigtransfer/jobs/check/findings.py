"""From what was seen of the images to what is wrong with the data set."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bigtransfer.data import exclusions, splits
from bigtransfer.data.splits import Imbalance
from bigtransfer.errors import ImageError
from bigtransfer.evals import duplicates, growth, quality, shortcuts, suspects
from bigtransfer.evals.duplicates import Pair
from bigtransfer.evals.growth import Growth
from bigtransfer.evals.quality import Flawed
from bigtransfer.evals.shortcuts import Shortcut
from bigtransfer.evals.suspects import Outlier, Suspect
from bigtransfer.jobs.check.looking import Looked, Parts


@dataclass(frozen=True, eq=False, kw_only=True)
class Labelled:
    """Images of one label each and of the same classes."""

    rows: np.ndarray
    """int64 (n,): which images they are."""
    labels: np.ndarray
    """int64 (n,)."""
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Judged:
    """What the images of one set of classes say of each other."""

    of: Labelled
    suspects: list[Suspect]
    """Their images count among all that are checked."""
    agreement: float | None
    """Share of the images that the others would have given the class they have; None: not known."""
    shortcuts: list[Shortcut]
    growth: Growth | None
    """What more images would do; None: not known."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Checked:
    """What was found. Images are numbered through all parts."""

    seen: Parts
    within: bool
    """One data set, whose images are also compared with those of the same part; else two, and only with those of the other."""
    pairs: list[Pair]
    unreadable: dict[int, ImageError]
    judged: list[Judged]
    outliers: list[Outlier]
    flaws: list[Flawed]
    classes: Mapping[str, Mapping[str, int]]
    """Of each part the images of each class."""
    imbalance: Imbalance | None
    """Of the training images."""
    folder: Path
    seconds: float
    """That looking and finding took."""

    def part(self, pair: Pair) -> tuple[str, str]:
        """The parts that its images are in."""
        return self.seen.part(pair.first), self.seen.part(pair.second)

    @property
    def same(self) -> list[Pair]:
        """The pairs of the same picture."""
        return [pair for pair in self.pairs if pair.verdict in exclusions.SAME]

    @property
    def leaks(self) -> list[Pair]:
        """Those of two parts."""
        return [pair for pair in self.same if len(set(self.part(pair))) > 1]

    @property
    def suspects(self) -> list[Suspect]:
        """Of all sets of classes."""
        return [one for judged in self.judged for one in judged.suspects]

    def contradictory(self, pair: Pair) -> bool:
        """Whether its images are the same and have classes of which only one can be right."""
        one, other = set(self.seen.classes(pair.first)), set(self.seen.classes(pair.second))
        return pair.verdict in exclusions.SAME and bool(one and other) and one != other

    def repeated(self) -> dict[int, str]:
        """The images that show what another one shows, and who leaves them out (`exclusions.EXCLUDE`): those that another part has too; and
        within the training images what repeats an earlier one, or all of it where the classes contradict each other."""
        found: dict[int, str] = {}
        for pair in self.same:
            one, other = self.part(pair)
            if one != other:
                found[pair.first] = _side(one)
            if one != other or other == "train":
                found[pair.second] = _side(other)
            if one == other == "train" and self.contradictory(pair):
                found[pair.first] = "train"
        return found


def _side(part: str) -> str:
    return "train" if part == "train" else "test"


def find(seen: Parts, looked: Looked, *, within: bool, folder: Path, began: float, progress: bool = False) -> Checked:
    """Everything that is found. within: all are one data set; else the last part is compared with the one before it. began: when looking
    did (`time.perf_counter`)."""
    sketches = looked.sketches
    if within:
        pairs = duplicates.search(sketches, progress=progress)
    else:
        cut = len(next(iter(seen.parts.values())))
        first, second = sketches.subset(slice(cut)), sketches.subset(slice(cut, None))
        pairs = duplicates.search(first, second, progress=progress)
        pairs = [dataclasses.replace(pair, second=pair.second + cut) for pair in pairs]
    groups = _groups(len(seen), pairs)
    judged = [_judge(labelled, looked, groups) for labelled in labelled_sets(seen, sketches.readable)]
    outliers: list[Outlier] = []
    if sketches.features.shape[1]:
        start = 0
        for images in seen.parts.values() if not within else [range(len(seen))]:
            rows = np.arange(start, start + len(images))
            rows = _few(rows[sketches.readable[rows]])
            features = torch.from_numpy(sketches.features[rows].astype(np.float32))
            found = suspects.outliers(features, torch.from_numpy(groups[rows]))
            outliers += [dataclasses.replace(one, image=int(rows[one.image])) for one in found]
            start += len(images)
    train = seen.parts.get("train")
    return Checked(
        seen=seen,
        within=within,
        pairs=pairs,
        unreadable=looked.unreadable,
        judged=judged,
        outliers=outliers,
        flaws=quality.flaws(looked.looks),
        classes={
            part: dict(zip(images.class_names, images.class_counts().tolist(), strict=True))
            for part, images in seen.parts.items()
            if images.labels is not None
        },
        imbalance=None if train is None else splits.imbalance(train),
        folder=folder,
        seconds=time.perf_counter() - began,
    )


def labelled_sets(seen: Parts, readable: np.ndarray) -> list[Labelled]:
    """The readable images that have one label each, those of the same classes together."""
    by_names: dict[tuple[str, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    start = 0
    for images in seen.parts.values():
        rows = np.arange(start, start + len(images))
        start += len(images)
        if images.labels is None or images.several:
            continue
        kept = readable[rows]
        by_names.setdefault(images.class_names, []).append((rows[kept], np.asarray(images.labels)[kept]))
    return [
        Labelled(
            rows=np.concatenate([rows for rows, _ in found]),
            labels=np.concatenate([labels for _, labels in found]).astype(np.int64),
            class_names=names,
        )
        for names, found in by_names.items()
        if len(names) > 1
    ]


def _judge(labelled: Labelled, looked: Looked, groups: np.ndarray) -> Judged:
    rows, labels = labelled.rows, labelled.labels
    found: list[Suspect] = []
    agreement = None
    if looked.features.shape[1]:
        some = _few(np.arange(len(rows)), labels)
        found, agreement = suspects.wrong_labels(
            torch.from_numpy(looked.features[rows[some]].astype(np.float32)),
            torch.from_numpy(labels[some]),
            len(labelled.class_names),
            groups=torch.from_numpy(groups[rows[some]]),
        )
        found = [dataclasses.replace(one, image=int(rows[some[one.image]])) for one in found]
    grown = None
    if looked.features.shape[1]:
        some = _few(np.arange(len(rows)), labels, growth.MOST)
        grown = growth.grow(
            torch.from_numpy(looked.features[rows[some]].astype(np.float32)),
            torch.from_numpy(labels[some]),
            len(labelled.class_names),
            groups=torch.from_numpy(groups[rows[some]]),
        )
    looks = [look for row in rows if (look := looked.looks[row]) is not None]
    traits: dict[str, Sequence[str] | np.ndarray] = {
        "height and width": [f"{look.height} x {look.width}" for look in looks],
        "number of pixels": np.array([look.side for look in looks]),
        "shape (width by height)": np.array([look.width / look.height for look in looks]),
        "file type": [looked.kinds[row] for row in rows],
        "brightness": np.array([look.mean for look in looks]),
    }
    if not np.isnan(looked.bytes_per_pixel[rows]).any():
        traits["file size per pixel"] = looked.bytes_per_pixel[rows]
    return Judged(
        of=labelled,
        suspects=found,
        agreement=agreement,
        shortcuts=shortcuts.judge_all(traits, labels, groups[rows]),
        growth=grown,
    )


def _few(rows: np.ndarray, labels: np.ndarray | None = None, most: int = suspects.MOST) -> np.ndarray:
    """At most so many of them, drawn at random, the same ones each time, in their order; of each label in proportion."""
    if len(rows) <= most:
        return rows
    order = np.random.default_rng(0).permutation(len(rows))
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
        order = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    return rows[np.sort(order[:most])]


def groups_of(checked: Checked) -> np.ndarray:
    """int64 (n,): one number for all images that show the same picture."""
    return _groups(len(checked.seen), checked.pairs)


def _groups(count: int, pairs: Sequence[Pair]) -> np.ndarray:
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for pair in pairs:
        if pair.verdict in exclusions.SAME:
            one, other = sorted((root(pair.first), root(pair.second)))
            parent[other] = one
    return np.array([root(i) for i in range(count)], dtype=np.int64)


# --- As a table


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found of one image."""

    image: int
    finding: str
    score: float | None
    likely: str = ""
    """The class that it is likelier of."""
    other: int | None = None
    """An image that shows the same."""
    exclude: str = ""
    """One of `exclusions.EXCLUDE`."""


def findings(checked: Checked) -> list[Finding]:
    """What was found image by image, the gravest kind first, and of each kind the worst."""
    found = [
        Finding(
            image=i, finding="unreadable", score=None, exclude="all" if checked.within else _side(checked.seen.part(i))
        )
        for i in checked.unreadable
    ]
    leave_out = checked.repeated()
    kinds: dict[str, dict[int, Finding]] = {"leak": {}, "contradiction": {}, "repeat": {}}
    for pair in checked.same:
        one, other = checked.part(pair)
        if one != other:
            kind, both = "leak", True
        elif checked.contradictory(pair):
            kind, both = "contradiction", True
        else:
            kind, both = "repeat", False
        for image, twin in ((pair.second, pair.first), (pair.first, pair.second))[: 1 + both]:
            row = Finding(
                image=image, finding=kind, score=pair.correlation, other=twin, exclude=leave_out.get(image, "")
            )
            kinds[kind].setdefault(image, row)
    for kind in ("leak", "contradiction"):
        found += kinds[kind].values()
    for judged in checked.judged:
        found += [
            Finding(
                image=one.image,
                finding="label",
                score=one.times,
                likely=judged.of.class_names[one.likely],
                # Images to be measured on are not left out because a model disagrees with them: that would flatter every model like it.
                exclude="train" if checked.seen.part(one.image) == "train" else "",
            )
            for one in judged.suspects
        ]
    found += kinds["repeat"].values()
    for flaw in quality.MEANINGS:
        rows = [one for one in checked.flaws if one.flaw == flaw]
        found += [
            Finding(image=one.image, finding=flaw, score=one.score) for one in sorted(rows, key=lambda one: -one.score)
        ]
    found += [Finding(image=one.image, finding="outlier", score=one.score) for one in checked.outliers]
    return found
