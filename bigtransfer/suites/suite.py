"""Tasks and suites: which benchmark is measured by which protocol, and what is computed from all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.protocol import Protocol


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark measured by a protocol."""

    name: str
    """Unique in its suite: "objectnet" or "objectnet/box"."""
    benchmark: Benchmark
    protocol: Protocol


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are reported together."""

    name: str
    title: str
    tasks: tuple[Task, ...]
    extra: tuple[Task, ...] = ()
    """Variants that are measured only when asked for by name: other readings of a doubtful protocol."""
    aggregates: Mapping[str, Callable[[Mapping[str, float]], float]] = field(default_factory=dict)
    """Name ("mean_19") -> the number made of the metric `averaged` of every task of `tasks`, by name; only given where all were run."""
    averaged: str = "top-1"

    def task(self, name: str) -> Task:
        """KeyError if there is none."""
        return {task.name: task for task in (*self.tasks, *self.extra)}[name]
