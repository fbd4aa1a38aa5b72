"""The input: decoding by many workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Each rank's workers take turns in making its part of the batches, a bounded number ahead (torch's DataLoader).

    Workers that share each batch instead (`feed.loader` for shards) are as many ranks of one worker.
    """

    ranks: int
    workers: int
    """Per rank."""
    ahead: int = 2
    """Parts of batches that a worker may have made before they are used."""
    seconds: float = 0.1
    """Mean of one part's decoding by one worker."""
    spread: float = 0.1
    """Standard deviation of a part's time, relative; 1: exponential."""
    hiccup: float = 0.0
    """Share of parts during which the worker stands still..."""
    hiccup_seconds: float = 0.0
    """... for so long."""
    step: float = 0.05


def simulate_decoding(plan: Decoding, *, steps: int = 3000, seed: int = 0) -> float:
    """Share of the time that the synchronous step waits for the slowest rank's part of the batch; the first tenth is not counted."""
    rng = np.random.default_rng(seed)
    shape = 1 / plan.spread**2 if plan.spread else 0.0
    done = np.zeros((plan.workers, plan.ranks))  # when each worker finished its last part
    depth = plan.workers * plan.ahead
    used = np.zeros(steps + 1)  # when the step began that used a part
    now, waited, began = 0.0, 0.0, 0.0
    for number in range(steps):
        took = np.full(plan.ranks, plan.seconds)
        if shape:
            took *= rng.gamma(shape, 1 / shape, plan.ranks)
        if plan.hiccup:
            took += plan.hiccup_seconds * (rng.random(plan.ranks) < plan.hiccup)
        worker = number % plan.workers
        # A worker begins once it is free and the part `depth` steps before has been taken away.
        room = used[number - depth] if number >= depth else 0.0
        done[worker] = np.maximum(done[worker], room) + took
        ready = float(done[worker].max())
        if number == steps // 10:
            waited, began = 0.0, now
        waited += max(0.0, ready - now)
        used[number] = max(now, ready)
        now = used[number] + plan.step
    return waited / (now - began)
