"""Elastic restarts: a training whose nodes fail, turn slow and come back."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulation.assumptions import HOUR, Failures


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training that needs `work` seconds with all nodes and no trouble."""

    nodes: int
    work: float
    interval: float
    """Seconds of training from one checkpoint to the next."""
    save: float
    """Seconds that a checkpoint stops the training."""
    restart: Callable[[int], float]
    """Nodes -> seconds from a failure until the training goes on."""
    spares: int = 0
    shrink: bool = True
    """Without spares, go on with fewer nodes (torchrun's --nnodes MIN:MAX); otherwise wait for a repair."""
    speed: Callable[[int], float] | None = None
    """Nodes -> pace relative to all of them; None: in proportion."""


@dataclass(frozen=True)
class JobResult:
    seconds: float
    goodput: float
    """work / seconds."""
    restarts: int
    lost: float
    """Share of the time whose work was lost with a failure."""
    down: float
    """Share of the time in restarts and in waiting for repairs."""


def simulate_job(job: Job, failures: Failures, *, seed: int = 0) -> JobResult:
    """Events: a node or rack fails, a node comes back, a node turns slow or is cured, a checkpoint or the job is finished."""
    rng = np.random.default_rng(seed)
    pace = job.speed or (lambda nodes: nodes / job.nodes)
    now = done = saved = lost = down = 0.0
    nodes, spares, restarts = job.nodes, job.spares, 0
    repairs: list[float] = []  # when lost nodes are back
    cures: list[float] = []  # when slow nodes are found out
    phase: Literal["train", "save", "restart"] = "train"
    left = 0.0  # of a save or restart
    since = 0.0  # seconds of training since the last checkpoint

    def refill() -> None:
        nonlocal nodes, spares, restarts, phase, left
        joined = min(spares, job.nodes - nodes)
        nodes, spares, restarts = nodes + joined, spares - joined, restarts + 1
        phase, left = "restart", job.restart(nodes)

    while True:
        idle = nodes < (1 if job.shrink else job.nodes)
        speed = pace(nodes) / (failures.slow_factor if cures else 1.0) if nodes else 0.0
        to_end = (job.work - done) / speed if speed else math.inf
        if idle:
            own = math.inf
        elif phase == "train":
            own = min(job.interval - since, to_end)
        else:
            own = left
        # The waiting times are exponential, so drawing them anew after each event changes nothing. Waiting nodes do not fail.
        rates = np.array([failures.node, failures.rack / failures.rack_nodes, failures.slow]) * nodes / HOUR
        node_lost, rack_lost, slowed = (
            rng.exponential(1 / rate) if rate > 0 and not idle else math.inf for rate in rates
        )
        repaired = repairs[0] - now if repairs else math.inf
        cured = cures[0] - now if cures else math.inf
        spent = min(own, node_lost, rack_lost, slowed, repaired, cured)
        now += spent
        if idle or phase == "restart":
            down += spent
        if not idle and phase == "train":
            done, since = done + spent * speed, since + spent
        elif not idle:
            left -= spent

        if spent == own:
            if phase == "restart":
                phase = "train"
            elif phase == "save":
                saved, since, phase = done, 0.0, "train"
                if spares and nodes < job.nodes:  # a good moment to grow: nothing is lost
                    refill()
            elif own == to_end:
                now += job.save
                break
            else:
                phase, left = "save", job.save
        elif spent in (node_lost, rack_lost):
            gone = 1 if spent == node_lost else min(nodes, failures.rack_nodes)
            nodes -= gone
            for _ in range(gone):
                heapq.heappush(repairs, now + failures.repair)
            lost += done - saved
            done, since = saved, 0.0
            refill()
        elif spent == slowed:
            heapq.heappush(cures, now + failures.slow_for)
        elif spent == cured:
            heapq.heappop(cures)
        else:
            heapq.heappop(repairs)
            spares += 1
            if idle:
                joined = min(spares, job.nodes - nodes)
                nodes, spares = nodes + joined, spares - joined
    return JobResult(now, job.work / now, restarts, lost / now, down / now)
