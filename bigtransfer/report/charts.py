"""Where the lines, bars and labels of the report's drawings go, in the units of their SVG.

Colours and fonts are the style sheet's, so that they follow light and dark; `templates/charts.html` draws what is placed here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from bigtransfer import terminal
from bigtransfer.evals.record import Bin

Point = tuple[float, float]

# --- Curves


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text at a place on an axis."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point drawn on a curve."""

    x: float
    y: float
    hint: str
    """What is shown under the pointer."""
    kind: str = ""
    """CSS class of its curve; empty for the one that the chart is about."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Something that happened after a step: a line from the top to the bottom of a chart."""

    x: float
    """As asked for, steps; as placed, the units of the drawing."""
    kind: str
    """CSS class."""
    hint: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A chart of lines over optimizer steps."""

    title: str
    headline: str
    """The value beside the title."""
    levels: Sequence[Label]
    """Values of the vertical axis, `at` their height."""
    steps: Sequence[Label]
    """Values of the horizontal axis, `at` the middle of the text."""
    lines: Sequence[tuple[str, Sequence[Point]]]
    """CSS class and points."""
    marks: Sequence[Mark]
    moments: Sequence[Moment] = ()
    width: int = 420
    height: int = 230
    left: int = 50
    """Or more, where the values of the vertical axis are long."""
    right: int = 14
    top: int = 14
    bottom: int = 30


def curve(
    title: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    label: Callable[[float, int], str],
    headline: float,
    *,
    marks: Collection[str] = (),
    moments: Sequence[Moment] = (),
) -> Curve:
    """Place a line chart: series of (CSS class, points); `headline` is the value beside the title, `marks` the classes whose points are
    drawn too. moments: those beyond the steps drawn are left out.

    Steps are 1 or more, values finite. label: a value as text, with so many digits more than usual.
    """
    series = [(kind, [(x, _drawable(y)) for x, y in points]) for kind, points in series]
    xs = [x for _, points in series for x, _ in points]
    ys = sorted(y for _, points in series for _, y in points)
    x0, x1 = 0.0, max(xs)
    # A few wild first losses must not press the rest flat.
    y0, y1 = ys[0], max(ys[int(0.98 * (len(ys) - 1))], *(points[-1][1] for kind, points in series if kind != "faint"))
    y0 = 0.0 if y0 >= 0 and y0 < 0.5 * y1 else y0
    flat = y1 - y0 <= 1e-6 * abs(y1)
    pad = (0.05 * abs(y1) or 1.0) if flat else 0.06 * (y1 - y0)
    y1 += pad
    y0 = y0 if y0 == 0 else y0 - pad

    levels = ticks(y0, y1)
    texts = distinct(levels, label)
    left = max(Curve.left, *(round(6 + sum({".": 3.8, "%": 11.4}.get(c, 7.6) for c in text)) for text in texts))

    def place(x: float, y: float) -> Point:
        across = left + (x - x0) / (x1 - x0) * (Curve.width - left - Curve.right)
        up = Curve.top + (1 - (min(y, y1) - y0) / (y1 - y0)) * (Curve.height - Curve.top - Curve.bottom)
        return round(across, 1), round(up, 1)

    steps = []
    for x in filter(float.is_integer, ticks(x0, x1)):
        text = f"{x:,.6g}"
        # At the right end a long one would be cut off.
        steps.append(Label(at=min(place(x, y0)[0], Curve.width - 4 * len(text)), text=text))
    return Curve(
        title=title,
        headline=label(headline, 0),
        left=left,
        levels=[Label(at=place(x0, y)[1], text=text) for y, text in zip(levels, texts, strict=True)],
        steps=steps,
        lines=[(kind, [place(*point) for point in thinned(points)]) for kind, points in series],
        marks=[
            Mark(
                x=place(x, y)[0],
                y=place(x, y)[1],
                hint=f"after step {x:,.0f}: {label(y, 0)}",
                kind="" if kind == "line" else kind,
            )
            for kind, points in series
            for x, y in (thinned(points) if kind in marks else ())
        ],
        moments=[dataclasses.replace(one, x=place(one.x, y0)[0]) for one in moments if x0 < one.x <= x1],
    )


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about six."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def distinct(values: Sequence[float], label: Callable[[float, int], str]) -> list[str]:
    """The labels of evenly spaced values, with as many digits as it takes to read the values off them."""
    space = min((b - a for a, b in itertools.pairwise(values)), default=math.inf)
    texts = []
    for more in range(12):
        texts = [label(value, more) for value in values]
        read = (float(text.rstrip("%")) / (100 if text.endswith("%") else 1) for text in texts)
        if all(abs(one - value) <= 0.05 * space for one, value in zip(read, values, strict=True)):
            break
    return texts


def _drawable(value: float) -> float:
    """The value, or the nearest with which one can calculate."""
    return 0.0 if abs(value) < 1e-100 else max(-1e100, min(1e100, value))


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Mean over a window of about a thirtieth of the points, centred, so that the curve does not lag; narrower at the ends."""
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    half = len(points) // 60
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


_MOST_POINTS = 400


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `_MOST_POINTS`; each stretch keeps its lowest and highest, so that no peak is lost."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [points[0], *kept, points[-1]]


# --- The confusion matrix


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the confusion matrix that has images."""

    x: float
    y: float
    right: bool
    """On the diagonal."""
    shade: float
    """Square root of the share of the row's images, which keeps single mistakes visible; 0 to 1."""
    dark: bool
    """So full that the number stands in the background's colour."""
    count: int
    numbered: bool
    """There is room for the number."""
    hint: str


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A confusion matrix: rows are true classes, columns answers."""

    names: Sequence[str]
    """Of the classes, shortened."""
    cells: Sequence[Cell]
    cell: int
    """Side of a cell, px."""
    font: int
    """Size of the letters, px."""
    margin: int
    """Left of the matrix, and above it, for the names."""

    @property
    def side(self) -> int:
        return len(self.names) * self.cell


LONGEST = 12.2
"""Width of the longest name beside the matrix, as a multiple of the size of the letters."""


def width(text: str) -> float:
    """About how wide `text` is in a sans-serif font, rather too much than too little, as a multiple of its size."""

    def of(c: str) -> float:
        if unicodedata.east_asian_width(c) in "WF":
            return 1.0
        return 0.4 if c in "fijlrtI.,:;!|'()[] " else 0.98 if c in "mwMW@%" else 0.7 if c.isupper() else 0.6

    return sum(map(of, text))


def shortened(name: str) -> str:
    """A name that is too long to stand beside the matrix, cut off."""
    if width(name) <= LONGEST:
        return name
    while width(name) > LONGEST - 0.7:
        name = name[:-1]
    return name + "…"


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Matrix:
    """Place the confusion matrix `counts` of (true, answered) classes."""
    n = len(names)
    cell = 46 if n <= 8 else 40 if n <= 12 else 30 if n <= 25 else 17
    font = 13 if n <= 12 else 11
    short = [shortened(terminal.line(name)) for name in names]
    margin = round(12 + font * max(map(width, short)))
    cells = []
    for i, row in enumerate(counts):
        total = sum(row)
        for j, count in enumerate(row):
            if not count:
                continue
            share = count / total
            what = f"{names[i]} taken for {names[j]}" if i != j else f"{names[i]} right"
            cells.append(
                Cell(
                    x=margin + j * cell,
                    y=margin + i * cell,
                    right=i == j,
                    shade=math.sqrt(share),
                    dark=share > 0.35,
                    count=count,
                    numbered=cell >= 30 and len(str(count)) <= cell // 9,
                    hint=f"{what}: {count:,} of {total:,} ({share:.0%})",
                )
            )
    return Matrix(names=short, cells=cells, cell=cell, font=font, margin=margin)


# --- The reliability diagram


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bin of the reliability diagram that has images."""

    x: float
    width: float
    accuracy: float
    """Height of the bar, px."""
    images: float
    """Height of the bar below the diagram, px."""
    hint: str


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram, and how many images each bin has below it."""

    bars: Sequence[Bar]
    axis: Sequence[tuple[float, float, str]]
    """Of each label of both axes: place across, place up, text."""
    side: int = 250
    left: int = 44
    top: int = 12
    below: int = 54
    """Height of the part below the diagram."""


def reliability(bins: Sequence[Bin], what: str = "images, right") -> Reliability:
    """Place the reliability diagram of an evaluation's `calibration`, of which at least one bin has images. what: the hints count."""
    side = Reliability.side

    def across(p: float) -> float:
        return round(Reliability.left + p * side, 1)

    def up(p: float) -> float:
        return round(Reliability.top + (1 - p) * side, 1)

    most = max(b.images for b in bins)
    bars = [
        Bar(
            x=across(b.low) + 0.5,
            width=round((b.high - b.low) * side - 1, 1),
            accuracy=round(b.accuracy * side, 1),
            images=max(1.0, round(b.images / most * (Reliability.below - 14), 1)),
            hint=f"{b.low:.0%} to {b.high:.0%} sure: {b.images:,} {what} in {b.accuracy:.0%}, "
            f"mean probability {b.confidence:.0%}",
        )
        for b in bins
        if b.images and b.accuracy is not None
    ]
    return Reliability(bars=bars, axis=[(across(p), up(p), f"{p:.0%}") for p in (0, 0.25, 0.5, 0.75, 1)])


# --- Accuracy against the share answered


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of what is answered is right, against how much is answered."""

    line: Sequence[Point]
    band: Sequence[Point]
    """The outline of the 95% interval."""
    across: Sequence[Label]
    """Shares answered."""
    up: Sequence[Label]
    """Shares of these that are right."""
    width: int = 330
    height: int = 250
    left: int = 48
    right: int = 22
    top: int = 12
    bottom: int = 46


def coverage(points: Sequence[Point], band: Sequence[tuple[float, float, float]]) -> Coverage:
    """Place the curve (share answered, share of these that is right) and the interval (share answered, low, high); at least one of each."""
    low = max(0.0, math.floor(10 * min(y for _, y, _ in band)) / 10)
    low = min(low, 0.9)

    def place(x: float, y: float) -> Point:
        across = Coverage.left + x * (Coverage.width - Coverage.left - Coverage.right)
        up = Coverage.top + (1 - (y - low) / (1 - low)) * (Coverage.height - Coverage.top - Coverage.bottom)
        return round(across, 1), round(up, 1)

    shown = thinned(points)
    kept = {x for x, _ in shown}
    edges = [one for one in band if one[0] in kept]
    return Coverage(
        line=[place(*point) for point in shown],
        band=[
            *(place(x, most) for x, _, most in edges),
            *(place(x, least) for x, least, _ in reversed(edges)),
        ],
        across=[Label(at=place(x, low)[0], text=f"{x:.0%}") for x in (0, 0.25, 0.5, 0.75, 1)],
        up=[Label(at=place(0, y)[1], text=f"{y:.0%}") for y in ticks(low, 1.0)],
    )
