"""`bit results`: what was measured on published benchmarks, beside what was published."""

from __future__ import annotations

import csv
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bigtransfer import outputs, settings
from bigtransfer.config import ResultsConfig
from bigtransfer.report import comparison
from bigtransfer.suites import published, registry, results
from bigtransfer.suites.published import Row
from bigtransfer.suites.results import DEFAULT_FILE, Result
from bigtransfer.suites.suite import Suite
from bigtransfer.terminal import cell, fitted, line


def run(config: ResultsConfig) -> None:
    """Print the rows, and write them where that is asked for."""
    suites = [registry.find(name) for name in config.suite]
    root = settings.benchmarks_folder() if config.root is None else Path(config.root)
    files = config.files or ((DEFAULT_FILE,) if Path(DEFAULT_FILE).exists() else ())
    outputs.refuse_replacing(
        [("--out", config.out), ("--csv", config.csv)],
        [*files, *(name for name in config.suite if name.endswith(".toml"))],
    )
    found = results.read(files)
    if suites:
        found = [result for result in found if result.suite in {suite.name for suite in suites}]
    # Before rows are made, so that a name is the same in all of them; those of published models are short.
    shown = [msgspec.structs.replace(one, model=fitted(one.model), precision=fitted(one.precision)) for one in found]
    rows = published.rows(shown, chosen(suites, config.all), root)
    listed = _suites(suites or list(registry.SUITES.values()), root, bool(suites)) if suites or not found else []
    for text in [
        *_comparison(rows),
        *_own(shown),
        *listed,
    ]:
        print(text)
    if suites or not found:
        print("\nbit evaluate MODEL --suite NAME measures; bit results FILE shows it here.")
    if config.csv is not None:
        _write_csv(config.csv, rows, found)
    if config.out is not None:
        with outputs.text_output(config.out) as stream:
            stream.write(comparison.page_of(rows, shown))
        print(f"\npage: {config.out}")


def chosen(suites: Sequence[Suite], everything: bool) -> list[published.Published]:
    """The published numbers to show: the best known ones or all, of these suites only if there are any."""
    names = {suite.name for suite in suites}
    return [
        one
        for one in published.published()
        if (everything or published.headline(one))
        and (not names or (one.target is not None and one.target.suite in names))
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}"


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2%} to {interval[1]:.2%}"


def _comparison(rows: Sequence[Row]) -> list[str]:
    titles = ("model", "task", "published", "ours", "difference", "95 %", "verdict")
    table = [
        (
            row.published.model,
            f"{row.published.task}, {row.published.metric}",
            row.published.text,
            _percent(row.value),
            _points(row.difference),
            _between(row.interval),
            row.verdict,
        )
        for row in rows
    ]
    width = max(40, shutil.get_terminal_size().columns - 6)
    lines = _aligned([titles, *table], right={2, 3, 4})
    found = ["Published and ours, % (difference in points)", "", lines[0]]
    for text, row in zip(lines[1:], rows, strict=True):
        found.append(text)
        found += [f"      {part}" for part in textwrap.wrap(line(row.remark), width, break_on_hyphens=False)]
    counts = {
        verdict: sum(row.verdict == verdict for row in rows) for verdict in dict.fromkeys(row.verdict for row in rows)
    }
    return [*found, "", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())]


def _own(found: Sequence[Result]) -> list[str]:
    """A table for each key: what stands in one is comparable."""
    texts = []
    for (_, title), members in comparison.tables(found).items():
        table = [
            (
                one.model,
                _percent(one.value),
                _between(one.interval),
                f"{one.images:,} images",
                f"seed {one.seed}",
                one.date[:10],
                "" if one.precision == "float32" else one.precision,
                line("; ".join(filter(None, (published.apart(one, members[:number]), one.note)))),
            )
            for number, one in enumerate(members)
        ]
        texts += ["", line(title), *(f"  {text}" for text in _aligned(table, right={1, 3}))]
    return texts


def _suites(suites: Sequence[Suite], root: Path, whole: bool) -> list[str]:
    texts = ["", "Suites"]
    for suite in suites:
        texts.append(f"  {suite.name}: {suite.title}")
        if not whole:
            texts += textwrap.wrap(
                ", ".join(task.name for task in suite.tasks),
                shutil.get_terminal_size().columns,
                initial_indent="      ",
                subsequent_indent="      ",
                break_on_hyphens=False,
            )
            continue
        told = set[str]()
        for task in suite.tasks:
            where = task.benchmark.place(root)
            state = f"images at {where}" if where is not None else str(task.benchmark.missing(root))
            texts.append(f"      {task.name}: {'as above' if state in told else state}")
            told.add(state)
        if suite.extra:
            texts.append(f"      only by --task: {', '.join(task.name for task in suite.extra)}")
    return texts


def _aligned(table: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    shown = [[line(text) for text in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if number in right else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]


_COLUMNS: tuple[str, ...] = (
    "kind", "key", "suite", "benchmark", "protocol", "metric", "model", "published model", "published task", "published metric",
    "published", "source", "value", "low", "high", "images", "difference", "verdict", "remark", "seed", "weights", "date",
)  # fmt: skip
"""kind: "published" for a row of the comparison, "ours" for a result by itself. key: ours are comparable where it is the same."""


def _write_csv(path: str, rows: Sequence[Row], found: Sequence[Result]) -> None:
    """Shares of 0 to 1, the published number as printed (percent)."""
    with outputs.text_output(path) as stream:
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            one, interval = row.published, row.interval or (None, None)
            target = one.target
            writer.writerow(
                _cells(
                    {
                        "kind": "published",
                        "suite": target.suite if target else "",
                        "published model": one.model,
                        "published task": one.task,
                        "published metric": one.metric,
                        "published": one.text,
                        "source": one.source + ("" if one.verified else " (not seen there)"),
                        "model": one.weights,
                        "value": row.value,
                        "low": interval[0],
                        "high": interval[1],
                        "images": row.images,
                        "difference": row.difference,
                        "verdict": row.verdict,
                        "remark": row.remark,
                        "date": row.date,
                    }
                )
            )
        for result in published.latest(found):
            low, high = result.interval or (None, None)
            writer.writerow(
                _cells(
                    {
                        "kind": "ours",
                        "key": result.key,
                        "suite": result.suite,
                        "benchmark": result.benchmark,
                        "protocol": result.protocol,
                        "metric": result.metric,
                        "model": result.model,
                        "value": result.value,
                        "low": low,
                        "high": high,
                        "images": result.images,
                        "remark": result.note,
                        "seed": result.seed,
                        "weights": result.weights,
                        "date": result.date,
                    }
                )
            )


def _cells(values: dict[str, object]) -> dict[str, object]:
    """What spreadsheets take as text stays text."""
    return {name: cell(value) if isinstance(value, str) else value for name, value in values.items()}
