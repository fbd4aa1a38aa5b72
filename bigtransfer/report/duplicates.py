"""The page of `bit dedup`: pairs of images beside each other, to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.outputs import atomic_write
from bigtransfer.report import page
from bigtransfer.report.pictures import Thumbnail


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One image of a pair."""

    name: str
    part: str
    classes: str
    picture: Thumbnail | None


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
class Duplicates:
    """What the page shows."""

    title: str
    compared: str
    """Which images, in words."""
    finding: str
    """What was found, in a sentence."""
    copies: int
    near: int
    similar: int
    contradictory: int
    same: Sequence[Twins]
    """The doubtful ones first."""
    alike: Sequence[Twins]
    """The likeliest first."""


def write(path: str | os.PathLike[str], shown: Duplicates) -> None:
    """Write the page, atomically."""
    text = page.render(shown.title, {"duplicates": shown})
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
