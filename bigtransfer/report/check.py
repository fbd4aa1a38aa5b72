"""The page of `bit check`: what is wrong with a data set, with the pictures to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.evals.growth import Growth
from bigtransfer.evals.shortcuts import Shortcut
from bigtransfer.outputs import atomic_write
from bigtransfer.report import page
from bigtransfer.report.pictures import Thumbnail


@dataclass(frozen=True, kw_only=True)
class Topic:
    """A kind of thing that was found."""

    section: str
    """Of the page: "same", "labels", "shortcuts", "unreadable", "classes", "flaws", "outliers"."""
    text: str
    """In a sentence."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image."""

    name: str
    part: str
    classes: str
    picture: Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class Label:
    """An image whose label is likely to be wrong."""

    image: Shown
    likely: str
    own_probability: float
    likely_probability: float


@dataclass(frozen=True, kw_only=True)
class Twins:
    """A pair."""

    images: tuple[Shown, Shown]
    verdict: str
    correlation: float
    detail: float
    cosine: float | None
    hash: int
    mirrored: bool
    contradictory: bool
    """Under classes of which only one can be right."""


@dataclass(frozen=True, kw_only=True)
class Flaw:
    """Pictures with one flaw."""

    flaw: str
    meaning: str
    images: int
    shown: Sequence[Shown]
    """The worst first."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class and how many images it has in each part."""

    name: str
    counts: Sequence[int]
    suspects: int
    """Images of it whose label is likely to be wrong."""


@dataclass(frozen=True, kw_only=True)
class More:
    """What more images would do."""

    growth: Growth
    class_names: Sequence[str]
    share: float
    """In which the accuracy is to lie within the interval."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page shows. Of pictures there may be more than are shown."""

    title: str
    images: str
    """Which images, in words."""
    total: int
    topics: Sequence[Topic]
    """The gravest first."""
    nothing: Sequence[str]
    """What was looked for and not found, in sentences."""
    labels: Sequence[Label]
    suspects: int
    agreement: float | None
    copies: int
    near: int
    similar: int
    contradictory: int
    same: Sequence[Twins]
    """Those of two parts first, then those of two classes; then the doubtful ones."""
    alike: Sequence[Twins]
    """The likeliest first."""
    shortcuts: Sequence[Shortcut]
    growth: More | None
    flaws: Sequence[Flaw]
    outliers: Sequence[Shown]
    all_outliers: int
    parts: Sequence[str]
    classes: Sequence[ClassRow]
    unreadable: Sequence[tuple[str, str]]
    """Names and reasons."""


def write(path: str | os.PathLike[str], shown: Page) -> None:
    """Write the page, atomically."""
    text = page.render(shown.title, {"check": shown})
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
