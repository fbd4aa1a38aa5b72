"""Results on published benchmarks -> one HTML page: beside what was published, with the paper's figures drawn from the records.

The page's parts are templates of `templates/`, as those of a run's report are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigtransfer.report import page
from bigtransfer.report.charts import Label
from bigtransfer.suites import published
from bigtransfer.suites.published import Row
from bigtransfer.suites.registry import SUITES
from bigtransfer.suites.results import Result

COLOURS = 6
"""Classes `s0` to `s5` of the style sheet; more series begin again."""


def tables(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """(comparability key, title) -> the latest results of that key. What is not comparable is never in one table. Single draws, of which
    there is the median, are left to the figures and the CSV file."""
    found: dict[str, list[Result]] = {}
    for result in published.latest(results):
        if "(draw " in result.metric:
            continue
        found.setdefault(result.key, []).append(result)
    titles = {key: f"{members[0].suite}: {members[0].task}, {members[0].metric}" for key, members in found.items()}
    occur = Counter(titles.values())
    for key, title in list(titles.items()):
        if occur[title] > 1:  # the same task, and yet not comparable
            titles[key] = f"{title} (key {key}: other images or another protocol than under that name elsewhere here)"
    return {(key, titles[key]): sorted(members, key=lambda one: -one.value) for key, members in found.items()}


def page_of(rows: Sequence[Row], results: Sequence[Result]) -> str:
    """The HTML page."""
    sections: dict[str, object] = {}
    figures = [*few_shot(results), *groups(results, rows), *objectnet(results)]
    if figures:
        sections["figures"] = Figures(figures=figures)
    if results:
        sections["measured"] = Measured(tables=tables(results))
    # What is measured comes first, and what there is to measure after it.
    shown = sorted(rows, key=lambda row: row.verdict == "not run")
    summary = Summary(rows=len(rows), verdicts=Counter(row.verdict for row in rows))
    sections = {"results": summary, **sections, "comparison": Comparison(rows=shown)}
    return page.render("Results on published benchmarks", sections)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Summary:
    rows: int
    verdicts: Mapping[str, int]
    """How many rows have each."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    tables: Mapping[tuple[str, str], Sequence[Result]]


@dataclass(frozen=True, kw_only=True)
class Dot:
    x: float
    y: float
    colour: int
    hint: str
    text: str = ""
    """Beside it."""
    hollow: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Lines with dots, or bars, over named places. Sizes in the units of the SVG."""

    title: str
    note: str
    levels: Sequence[Label]
    places: Sequence[Label]
    lines: Sequence[tuple[int, Sequence[tuple[float, float]]]] = ()
    """(colour, points)."""
    dots: Sequence[Dot] = ()
    bars: Sequence[tuple[Dot, float, bool]] = ()
    """(top left corner, width, whether it is ours); down to the floor."""
    stairs: Sequence[tuple[float, float]] = ()
    """Points that a dashed line joins."""
    names: Sequence[tuple[int, str, bool]] = ()
    """Of the series: colour, name, whether it is filled, as ours are."""
    width: int = 460
    height: int = 260
    left: int = 48
    right: int = 12
    top: int = 12
    bottom: int = 28

    @property
    def floor(self) -> int:
        return self.height - self.bottom


@dataclass(frozen=True, kw_only=True)
class Figures:
    figures: Sequence[Figure]


def _up(share: float) -> float:
    return round(Figure.top + (1 - share) * (Figure.height - Figure.top - Figure.bottom), 1)


def _levels() -> list[Label]:
    return [Label(at=_up(share), text=f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]


# --- Few-shot curves


def few_shot(results: Sequence[Result]) -> list[Figure]:
    """A figure for each set and way of learning: accuracy over images of each class, medians joined, each draw a dot."""
    suite = SUITES["few-shot"]
    curves: dict[tuple[str, str], dict[str, dict[str, list[Result]]]] = {}
    for result in published.latest(results):
        match = re.fullmatch(r"(.+?)/(\d+-shot|full)(?:/(.+))?", result.task)
        if result.suite != suite.name or match is None or not result.metric.startswith("top-1"):
            continue
        name = f"{result.model}" + (f", seed {result.seed}" if result.seed else "")
        of_model = curves.setdefault((match[1], match[3] or "hyperrule"), {}).setdefault(name, {})
        of_model.setdefault(match[2], []).append(result)
    return [_curve(name, way, models) for (name, way), models in curves.items()]


def _curve(name: str, way: str, models: Mapping[str, Mapping[str, Sequence[Result]]]) -> Figure:
    shots = sorted({shot for of_model in models.values() for shot in of_model}, key=_count)
    step = (Figure.width - Figure.left - Figure.right) / len(shots)
    across = {shot: round(Figure.left + (number + 0.5) * step, 1) for number, shot in enumerate(shots)}
    lines, dots, mixed = [], [], False
    for colour, (model, of_model) in enumerate(models.items()):
        points = []
        for shot in shots:
            for one in of_model.get(shot, ()):
                hint = f"{model}, {shot}, {one.metric}: {one.value:.2%}"
                if "draw" in one.metric:
                    dots.append(Dot(x=across[shot], y=_up(one.value), colour=colour % COLOURS, hint=hint))
                else:
                    points.append((across[shot], _up(one.value)))
                    dots.append(Dot(x=across[shot], y=_up(one.value), colour=colour % COLOURS, hint=hint))
            mixed |= len({one.weights for one in of_model.get(shot, ())}) > 1
        lines.append((colour % COLOURS, points))
    keys: dict[tuple[str, str], set[str]] = {}
    for of_model in models.values():
        for shot, members in of_model.items():
            for one in members:
                keys.setdefault((shot, one.metric), set()).add(one.key)
    note = "Line: the median of the draws, and all images at the end; dots: single draws."
    if mixed or any(len(found) > 1 for found in keys.values()):
        note += " Not all points are comparable: some are of other images, weights or protocols of the same name; see the tables."
    return Figure(
        title=f"{name}, {way}: top-1 over images of each class",
        note=note,
        levels=_levels(),
        places=[Label(at=across[shot], text=shot.removesuffix("-shot")) for shot in shots],
        lines=lines,
        dots=dots,
        names=[(number % COLOURS, model, True) for number, model in enumerate(models)],
    )


def _count(shot: str) -> float:
    return math.inf if shot == "full" else int(shot.removesuffix("-shot"))


# --- Bars


def groups(results: Sequence[Result], rows: Sequence[Row]) -> list[Figure]:
    """VTAB-1k by groups: ours of each suite whose tasks all were measured, beside the published means where the protocol is theirs."""
    figures = []
    for name, suite in SUITES.items():
        if not {"natural", "specialized", "structured", "mean_19"} <= suite.aggregates.keys():
            continue
        series: dict[str, tuple[dict[str, float], bool]] = {}
        for values, one in published.complete(suite, results):
            label = _name(one)
            if label in series:
                label = _in_full(one)
            series[label] = ({place: suite.aggregates[place](values) for place in _GROUPS}, True)
        if not series:
            continue
        if name == "vtab-1k":
            series |= _published(name, _GROUPS)
        figures.append(_bars(f"{suite.title}: means of the groups", series, list(_GROUPS.values()), list(_GROUPS)))
    return figures


def _name(one: Result) -> str:
    return one.model + (f", seed {one.seed}" if one.seed else "")


def _in_full(one: Result) -> str:
    """Where there is another of that name."""
    return f"{_name(one)}, weights {one.weights[:8]}, {one.precision}"


_GROUPS = {"natural": "natural", "specialized": "specialized", "structured": "structured", "mean_19": "all 19"}


def _published(suite: str, places: Mapping[str, str]) -> dict[str, tuple[dict[str, float], bool]]:
    found: dict[str, tuple[dict[str, float], bool]] = {}
    for one in published.published():
        if one.target is not None and one.target.suite == suite and one.target.task in places and one.value is not None:
            found.setdefault(f"{one.model} ({one.source})", ({}, False))[0][one.target.task] = one.value
    return {name: own for name, own in found.items() if len(own[0]) > 1}


def objectnet(results: Sequence[Result]) -> list[Figure]:
    """ObjectNet, whole images and boxes, top-1 and top-5: ours by the paper's protocol beside the paper's, of each network that was
    measured; the paper's R152x4 if none of them is in it."""
    suite = SUITES.get("objectnet")
    if suite is None:
        return []
    places = {
        (task.name, metric): f"{_OBJECTNET[task.name]} {metric}"
        for task in suite.tasks
        for metric in ("top-1", "top-5")
    }
    series: dict[str, tuple[dict[tuple[str, str], float], bool]] = {}
    whose: dict[str, str] = {}
    models = set[str]()
    for result in published.latest(results):
        for task in suite.tasks:
            comparable = result.benchmark == task.benchmark.name and not published.differences(result, task)
            if comparable and (task.name, result.metric) in places:
                full = _in_full(result)
                label = _name(result) if whose.setdefault(_name(result), full) == full else full
                series.setdefault(label, ({}, True))[0][task.name, result.metric] = result.value
                models.add(result.model)
    if not series:
        return []
    theirs: dict[str, tuple[dict[tuple[str, str], float], bool]] = {}
    for one in published.published():
        target = one.target
        if target is None or (target.task, target.metric) not in places or "Table 6" not in one.source:
            continue
        if one.weights in models or one.model.endswith("R152x4"):
            assert one.value is not None
            theirs.setdefault(f"{one.model} (paper)", ({}, False))[0][target.task, target.metric] = one.value
    return [_bars("ObjectNet", series | theirs, list(places.values()), list(places))]


_OBJECTNET = {"objectnet": "whole", "objectnet-box": "box"}


def _bars(
    title: str,
    series: Mapping[str, tuple[Mapping[Any, float], bool]],
    texts: Sequence[str],
    places: Sequence[object],
) -> Figure:
    step = (Figure.width - Figure.left - Figure.right) / len(places)
    wide = step * 0.8 / len(series)
    bars = []
    for number, (name, (values, ours)) in enumerate(series.items()):
        for at, place in enumerate(places):
            if place in values:
                x = round(Figure.left + (at + 0.1) * step + number * wide, 1)
                hint = f"{name}, {texts[at]}: {values[place]:.2%}"
                dot = Dot(x=x, y=_up(values[place]), colour=number % COLOURS, hint=hint)
                bars.append((dot, round(max(wide - 1, 0.5), 1), ours))
    return Figure(
        title=title,
        note="Filled: ours. Outlined: as published.",
        levels=_levels(),
        places=[Label(at=round(Figure.left + (at + 0.5) * step, 1), text=text) for at, text in enumerate(texts)],
        bars=bars,
        names=[(number % COLOURS, name, ours) for number, (name, (_, ours)) in enumerate(series.items())],
    )
