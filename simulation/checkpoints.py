"""Checkpoints and failures, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bigtransfer.catalog import Architecture
from simulation.assumptions import CLASSES, Disk
from simulation.compute import convolutions


def daly(interval: float, save: float, restart: float, between_failures: float) -> float:
    """Expected wall-clock seconds per second of work, with exponential failures that also strike saves and restarts (Daly 2006)."""
    m = between_failures
    return m * math.exp(restart / m) * math.expm1((interval + save) / m) / interval


def best_interval(save: float, between_failures: float) -> float:
    """The interval, s of work, that makes `daly` least (the restart has no influence on it); Young's sqrt(2 save M) where save << M."""
    low, high = 1e-3, 100 * between_failures + 1.0
    for _ in range(60):  # the cost has one valley
        a, b = low * (high / low) ** 0.382, low * (high / low) ** 0.618
        worse = _cost(a, save, between_failures) > _cost(b, save, between_failures)
        low, high = (a, high) if worse else (low, b)
    return low


def _cost(interval: float, save: float, between_failures: float) -> float:
    ratio = (interval + save) / between_failures
    return math.inf if ratio > 500 else math.expm1(ratio) / interval


@dataclass(frozen=True)
class Checkpoint:
    """What `train.checkpoint` does with one checkpoint on that many ranks: the ranks write and read together."""

    bytes: float
    files: int
    save: float
    """Seconds that training stands still: written side by side, then rank 0 makes every file durable, one after another."""
    load: float
    """Seconds until all have read what they need: every rank opens every file for its header, then reads."""


def checkpoint(arch: Architecture, nodes: int, disk: Disk, *, sharded: bool = False, gpus: int = 8) -> Checkpoint:
    """Weights and momentum in float32. sharded (FSDP): a rank reads its part; otherwise (DDP) each rank reads all, and the tensors are
    divided among at most as many writers as there are tensors."""
    ranks = nodes * gpus
    size = 8.0 * arch.num_parameters(CLASSES)
    tensors = 2 * (len(convolutions(arch, 224)) + 2 * (3 * sum(arch.units) + 1) + 2)
    files = ranks if sharded else min(ranks, tensors)
    writers = min(nodes, math.ceil(files / gpus))
    rate = min(disk.whole, writers * disk.node)
    read = size if sharded else size * ranks
    load = ranks * files / disk.operations + read / min(disk.whole, nodes * disk.node)
    return Checkpoint(size, files, size / rate + files * disk.sync, load)
