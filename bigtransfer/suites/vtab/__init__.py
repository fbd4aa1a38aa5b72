"""VTAB-1k: nineteen tasks of a thousand training images each.

    tasks.py       what each task is: classes, groups, what may be flipped and cropped, where its images come from
    order.py       which thousand images those are: TensorFlow Datasets' order, computed from names
    sources.py     the `vtab-1k` folder of others, and the authors' own archives
    prepared.py    what TensorFlow Datasets has prepared; tfrecord.py: its record files
    labels.py      how the structured tasks' labels are made
    protocols.py   the HyperRule and what is beside it; search.py: the search for each task

A suite for each protocol, so that each has its own means; they are never mixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from statistics import fmean

from bigtransfer.suites.protocol import Protocol
from bigtransfer.suites.suite import Suite, Task
from bigtransfer.suites.vtab.protocols import Budget, Closed, HyperRule, Probe, parameters_of
from bigtransfer.suites.vtab.search import SMALL_SPACE, Search
from bigtransfer.suites.vtab.tasks import TASKS, VtabTask

GROUPS = {
    group: tuple(task.name for task in TASKS if task.group == group)
    for group in ("natural", "specialized", "structured")
}
"""Name of each group -> its tasks."""


def mean_19(values: Mapping[str, float]) -> float:
    """BiT's VTAB-1k score: each task counts the same."""
    return fmean(values[task.name] for task in TASKS)


def mean_of_group(group: str) -> Callable[[Mapping[str, float]], float]:
    """The mean of a group's tasks."""
    return lambda values: fmean(values[name] for name in GROUPS[group])


def mean_of_groups(values: Mapping[str, float]) -> float:
    """The average of the literature on parameter-efficient tuning: each group counts the same, however many tasks it has."""
    return fmean(mean_of_group(group)(values) for group in GROUPS)


AGGREGATES = {"mean_19": mean_19, "mean_of_groups": mean_of_groups, **{group: mean_of_group(group) for group in GROUPS}}


def _suite(
    name: str,
    title: str,
    protocol: Callable[[VtabTask], Protocol],
    extra: Mapping[str, Callable[[VtabTask], Protocol]] | None = None,
) -> Suite:
    benchmarks = {task.name: task.benchmark() for task in TASKS}
    return Suite(
        name=name,
        title=title,
        tasks=tuple(Task(name=task.name, benchmark=benchmarks[task.name], protocol=protocol(task)) for task in TASKS),
        extra=tuple(
            Task(name=f"{task.name}/{variant}", benchmark=benchmarks[task.name], protocol=of(task))
            for variant, of in (extra or {}).items()
            for task in TASKS
        ),
        aggregates=AGGREGATES,
    )


def _rule(task: VtabTask) -> HyperRule:
    return HyperRule(**parameters_of(task))


def _search(task: VtabTask) -> Search:
    return Search(flip=task.flip, crop=task.crop)


SUITES = (
    _suite(
        "vtab-1k",
        "VTAB-1k by the BiT-HyperRule",
        _rule,
        {
            "paper-schedule": lambda task: dataclasses.replace(_rule(task), schedule="paper"),
            "code-resolution": lambda task: dataclasses.replace(_rule(task), resolution="code"),
        },
    ),
    _suite(
        "vtab-1k-search",
        "VTAB-1k by a search for each task",
        _search,
        {"50-trials": lambda task: dataclasses.replace(_search(task), trials=50)},
    ),
    _suite(
        "vtab-1k-search-budget",
        "VTAB-1k by a search among small settings (not the paper's)",
        lambda task: dataclasses.replace(_search(task), trials=10, space=SMALL_SPACE, batch_size=32),
    ),
    _suite(
        "vtab-1k-budget",
        "VTAB-1k by a squeezed HyperRule (not the paper's)",
        lambda task: Budget(**parameters_of(task)),
    ),
    _suite("vtab-1k-closed", "VTAB-1k by the closed form (not the paper's)", lambda task: Closed(flip=task.flip)),
    _suite("vtab-1k-probe", "VTAB-1k by a linear probe (not the paper's)", lambda task: Probe()),
)
