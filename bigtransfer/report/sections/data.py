"""Your data: what of `bit check` costs nothing more, and where the rest is to be had."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Thumbnail

SHOWN = 24
"""Largest number of pictures."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """An image whose label is likely to be wrong."""

    name: str
    label: str
    likely: str
    own_probability: float
    likely_probability: float
    picture: Thumbnail | None


@dataclass(frozen=True, kw_only=True)
class Data:
    labels: Sequence[Label]
    """The likeliest first."""
    suspects: int
    images: int
    """That were looked at."""
    smallest: str
    largest: str
    """Classes with the fewest and the most of them, with their numbers in words; empty if all have as many."""
    command: str


def compute(run: Contents) -> Data | None:
    if run.suspects is None or run.closed is None:
        return None
    counts = list(run.closed.counted)
    names = [] if run.evaluation is None else list(run.evaluation.class_names)
    smallest = largest = ""
    if counts and len(names) == len(counts) and min(counts) < max(counts):
        smallest, largest = (
            f"{names[i]} has {counts[i]:,}" for i in (counts.index(min(counts)), counts.index(max(counts)))
        )
    asked = run.config.asked.get("data") if run.config else None
    return Data(
        labels=[
            Label(
                name=one.name,
                label=one.label,
                likely=one.likely,
                own_probability=one.own_probability,
                likely_probability=one.likely_probability,
                picture=run.pictures.get(one.name),
            )
            for one in run.suspects[:SHOWN]
        ],
        suspects=len(run.suspects),
        images=run.closed.images,
        smallest=smallest,
        largest=largest,
        command=f"bit check {shlex.quote(asked) if isinstance(asked, str) else 'DATA'}",
    )
