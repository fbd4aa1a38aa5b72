"""Images that are there more than once, which can make the result look better than it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.data import checks
from bigtransfer.report.contents import Contents

SHOWN = 200
"""Largest number of rows."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Images that are the same byte for byte."""

    names: Sequence[str]
    where: str
    """The parts of the data set that they are in: "train, test"."""
    leaked: bool
    classes: Sequence[str]
    """Under which they stand, if these contradict each other; else empty."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    groups: Sequence[Group]
    """First those in several parts, then those under several classes."""
    total: int
    leaked: int
    contradictory: int


def compute(run: Contents) -> Copies | None:
    groups = [
        Group(
            names=[copy.name for copy in copies],
            where=", ".join(dict.fromkeys(copy.part for copy in copies)),
            leaked=checks.leaked(copies),
            classes=list(dict.fromkeys(" + ".join(copy.classes) for copy in copies if copy.classes))
            if checks.contradictory(copies)
            else [],
        )
        for copies in run.copies
    ]
    if not groups:
        return None
    groups.sort(key=lambda group: (not group.leaked, not group.classes))
    return Copies(
        groups=groups[:SHOWN],
        total=len(groups),
        leaked=sum(group.leaked for group in groups),
        contradictory=sum(bool(group.classes) for group in groups),
    )
