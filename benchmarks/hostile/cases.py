"""What a case and a campaign are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any


@dataclass(frozen=True)
class Case:
    """What a generator left in its folder."""

    path: Path | str
    """The file or folder, or what else the user would name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What goes with it, as keywords of the door."""


Generator = Callable[[Random, Path], Case]
"""(random numbers, an empty folder of its own) -> the case in it; the same for the same numbers."""

Door = tuple[str, Callable[[], object]]
"""What a user does with the case, and its name."""


@dataclass(frozen=True)
class Campaign:
    name: str
    generators: Mapping[str, Generator]
    doors: Callable[[Case, Random, Path], Iterator[Door]]
    """(case, random numbers, scratch folder that outlives the case) -> what is done with it, in order."""
    prepare: Callable[[Path], None] = lambda scratch: None
    """Done once in a worker's scratch folder before its first case: models, and what is imported or compiled at first use."""
    rare: frozenset[str] = frozenset()
    """Generators of costly cases: one case where the others have `RARELY`."""
    allowed: frozenset[str] = frozenset()
    """Audit events of programs that are the campaign's own doing."""


RARELY = 8


def chosen(campaign: Campaign, cases: int, seed: int, only: str = "") -> Iterator[tuple[str, int]]:
    """`cases` pairs of generator and seed, the generators whose names begin with `only` in turn."""
    names = [name for name in campaign.generators if name.startswith(only)]
    found = (
        (name, seed + turn // (RARELY if name in campaign.rare else 1))
        for turn in itertools.count()
        for name in names
        if name not in campaign.rare or turn % RARELY == 0
    )
    return itertools.islice(found, cases)


class Wrong(AssertionError):
    """A door answered, and the answer is wrong."""


def numbers(campaign: str, generator: str, seed: int) -> Random:
    """The random numbers of one case."""
    return Random(f"{campaign}/{generator}/{seed}")


def generators(*parts: Mapping[str, Generator]) -> dict[str, Generator]:
    """All of them; no name may come twice."""
    found: dict[str, Generator] = {}
    for part in parts:
        assert found.keys().isdisjoint(part), found.keys() & part.keys()
        found |= part
    return found
