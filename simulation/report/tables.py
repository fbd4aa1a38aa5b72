"""Markdown tables, and where a function passes a limit."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence


def table(header: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table with that first line; floats with three significant digits, "-" for NaN."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        if not math.isfinite(value):
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def crossing(function: Callable[[float], float], low: float, high: float, limits: Sequence[float]) -> list[float]:
    """Where between `low` and `high` (> 0) `function`, which rises or falls throughout, passes each limit, within 10 %; NaN: nowhere."""
    function = functools.cache(function)
    rising = function(high) > function(low)
    found = []
    for limit in limits:
        least, most = low, high
        if not min(function(low), function(high)) <= limit <= max(function(low), function(high)):
            found.append(math.nan)
            continue
        while most > 1.1 * least:
            middle = math.sqrt(least * most)
            least, most = (least, middle) if (function(middle) > limit) == rising else (middle, most)
        found.append(math.sqrt(least * most))
    return found
