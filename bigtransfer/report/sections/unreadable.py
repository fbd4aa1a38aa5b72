"""The images that were left out because they cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bigtransfer.report.contents import Contents

SHOWN = 1000
"""Largest number of rows."""


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    files: Sequence[tuple[str, str]]
    """Name and reason, each pair once."""
    total: int


def compute(run: Contents) -> Unreadable | None:
    files = dict.fromkeys((row.name, row.reason) for row in run.unreadable)
    return Unreadable(files=list(files)[:SHOWN], total=len(files)) if files else None
