"""The order of images: our own code, replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bigtransfer.dist import World


class _Order(Protocol):
    def indices(self, step: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Replay:
    """What the steps that counted in the end have shown."""

    epochs: int
    restarts: int
    worlds: tuple[int, int]
    """Fewest and most ranks."""
    repeated_steps: int
    """Taken again after a restart."""
    wrong: int
    """Images of an epoch not seen, or seen more than once."""


def replay(
    make: Callable[[], _Order],
    images: int,
    batch: int,
    *,
    epochs: int,
    mean_steps: float,
    keep: int,
    ranks: int,
    seed: int = 0,
) -> Replay:
    """Train without a network: every rank of a world of random size (1..ranks) takes its part of each batch (`dist.World.part`), until
    a failure after about `mean_steps` steps; a new world goes on from the last checkpoint (one every `keep` steps) with a new order.

    `batch` divides `images`, so that epochs end with batches.
    """
    assert images % batch == 0
    rng = np.random.default_rng(seed)
    total = epochs * images // batch
    seen: list[np.ndarray] = []  # by step, what all ranks together read
    sizes, restarts, repeated = [], 0, 0
    while len(seen) < total:
        size = int(rng.integers(1, ranks + 1))
        sizes.append(size)
        worlds = [World(rank=rank, size=size) for rank in range(size)]
        order = make()
        for _ in range(1 + int(rng.exponential(mean_steps))):
            if len(seen) < total:
                chosen = order.indices(len(seen))
                seen.append(np.concatenate([chosen[list(world.part(batch))] for world in worlds]))
        if len(seen) < total:
            restarts += 1
            lost = len(seen) % keep
            repeated += lost
            del seen[len(seen) - lost :]
    wrong = 0
    for epoch in range(epochs):
        read = np.concatenate(seen[epoch * images // batch : (epoch + 1) * images // batch])
        wrong += int((np.bincount(read, minlength=images) != 1).sum())
    return Replay(epochs, restarts, (min(sizes), max(sizes)), repeated, wrong)


def readers_per_run(order: _Order, runs: np.ndarray, batch: int, parts: int) -> float:
    """How many of `parts` equal, contiguous parts of every batch (ranks, or nodes) meet an average run in the first epoch."""
    part_of = np.empty(batch, dtype=np.int64)
    for part in range(parts):
        part_of[list(World(rank=part, size=parts).part(batch))] = part
    pairs = [
        np.unique(part_of * len(runs) + np.searchsorted(runs, order.indices(step), side="right") - 1)
        for step in range(int(runs[-1]) // batch)
    ]
    return len(np.unique(np.concatenate(pairs))) / (len(runs) - 1)
