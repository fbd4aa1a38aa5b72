"""`bit pretrain --headspace`: how much faster the loader could make a training at most, by training on batches that are kept."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bigtransfer.feed.loader import Batch, TrainLoader
from bigtransfer.train import loop

ROUNDS = 3
"""Turns of either kind, so that a slow minute of the machine hits both."""
KEPT = 8
"""Batches that are replayed."""
_LEAST, _MOST, _SECONDS = 4, 100, 10.0
"""Steps of a turn: as many as this time allows."""

STEPS = 10 * ROUNDS * _MOST
"""More than are taken in all."""

Take = Callable[[Iterator[Batch]], Iterator[loop.Step]]
"""Takes training steps, one for each of the batches."""


@dataclass
class Headspace:
    """What was measured; seconds of whole steps."""

    live: list[float] = field(default_factory=list)
    """Of steps on batches from the loader."""
    waited: list[float] = field(default_factory=list)
    """The part of each of these that was spent waiting for the batch."""
    replayed: list[float] = field(default_factory=list)
    """Of steps on batches that were there already."""
    ratios: list[float] = field(default_factory=list)
    """Of each round: mean live step over mean replayed step."""

    @property
    def wait_share(self) -> float:
        """Share of the steps that is spent waiting for data."""
        return math.fsum(self.waited) / math.fsum(self.live)

    @property
    def factor(self) -> float:
        """How many times faster the training would be if batches came at once; the median of the rounds."""
        return statistics.median(self.ratios)

    def __str__(self) -> str:
        live, replayed = statistics.fmean(self.live), statistics.fmean(self.replayed)
        shown = (
            f"a step takes {live * 1e3:,.1f} ms, and {replayed * 1e3:,.1f} ms on batches that are there already ({len(self.live)} and "
            f"{len(self.replayed)} steps, {ROUNDS} rounds in turns)\n"
            f"waiting for data: {self.wait_share:.1%} of a step\n"
            f"headspace: {self.factor:.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f} in the rounds). "
        )
        if self.factor < 1.03:
            return shown + "The loader is not what this training waits for."
        return shown + (
            f"A loader that costs nothing would make this training {self.factor:.2f} times as fast at most: more --workers, "
            "--cache memory, smaller images (bit shard --resize)."
        )


def measure(
    state: loop.State, loader: TrainLoader, take: Take, last: int, clock: Callable[[], float] = time.monotonic
) -> Headspace:
    """Train for some rounds, with the loader and without, from `state` on; `last`: the first step that the loader cannot make.

    The loader begins anew in each round, with nothing in store, and its first batch, which waits for workers to start, is not counted;
    while batches are replayed it is closed, so that nothing works in the background.
    """
    found = Headspace()
    kept: list[Batch] = []
    for _ in range(ROUNDS):
        with contextlib.closing(loader.batches(state.step, last)) as batches:
            taken = take(_noted(batches, kept))
            next(taken)
            live = list(_for_a_while(taken, clock))
        replayed = list(_for_a_while(take(_replayed(kept, state)), clock))
        found.live += [step.seconds for step in live]
        found.waited += [step.data_seconds for step in live]
        found.replayed += [step.seconds for step in replayed]
        found.ratios.append(
            statistics.fmean(step.seconds for step in live) / statistics.fmean(step.seconds for step in replayed)
        )
    return found


def _for_a_while(steps: Iterator[loop.Step], clock: Callable[[], float]) -> Iterator[loop.Step]:
    started = clock()
    for count, step in enumerate(itertools.islice(steps, _MOST), start=1):
        yield step
        if count >= _LEAST and clock() - started >= _SECONDS:
            return


def _noted(batches: Iterator[Batch], kept: list[Batch]) -> Iterator[Batch]:
    """The batches, of which the first ones are kept."""
    for batch in batches:
        if len(kept) < KEPT:
            kept.append(batch)
        yield batch


def _replayed(kept: list[Batch], state: loop.State) -> Iterator[Batch]:
    """Those batches over and over, as if they were the next ones."""
    for batch in itertools.cycle(kept):
        yield batch._replace(step=state.step)
