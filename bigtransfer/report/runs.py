"""Several runs that were measured on the same images, on one page: how they differ, on which images, and what each costs."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np

from bigtransfer import terminal
from bigtransfer.config import command_line
from bigtransfer.data import ImageSet
from bigtransfer.errors import RunError
from bigtransfer.evals.metrics import wilson
from bigtransfer.evals.paired import Paired
from bigtransfer.evals.record import Evaluation, Prediction, read_record
from bigtransfer.outputs import atomic_write
from bigtransfer.report import charts, page
from bigtransfer.report.charts import Label
from bigtransfer.report.comparison import COLOURS, Dot, Figure, Figures
from bigtransfer.report.contents import Contents
from bigtransfer.report.pictures import Answer, Pictures

WHOLE = "evaluation-whole.json"
"""In a run's folder: the evaluation on all test images, where its budget left some of them out of evaluation.json."""

SHOWN, SHOWN_OF_MANY = 12, 4
"""Pictures that only one of two runs gets right, at most; of several pairs the smaller number."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What using a run's model takes."""

    per_image: float
    """Seconds, of the network alone."""
    sizes: tuple[int, ...]
    """Sides at which it looks at an image, px."""
    parameters: int
    bytes: int | None
    """Of the model file; None if it has none of its own."""
    licence: str
    """Empty if it is not known."""
    network: str
    """Name of the architecture."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One of the runs."""

    name: str
    evaluation: Evaluation
    """On all of its images."""
    right: float
    """Share that is right of the images that all were measured on, 0 to 1."""
    interval: tuple[float, float]
    """95% interval of that."""
    done: str
    """How the model came about, in a few words; empty if that is not known."""
    seconds: float | None
    """That this took; None if it is not on record."""
    cost: Cost | None
    start: str
    """The network that it began with, as it was asked for; its own name if that is not known."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """A run beside the first."""

    name: str
    paired: Paired
    verdict: str
    lost: Sequence[Answer]
    """What it says of images that only the first gets right, the surest first."""
    gained: Sequence[Answer]
    """What the first says of images that only this one gets right, likewise."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What the page shows."""

    rows: Sequence[Row]
    against: Sequence[Against]
    images: int
    """That all were measured on."""
    summary: Sequence[str]
    """Of more than two runs: which of them is to be taken, in sentences."""
    notes: Sequence[str]

    @property
    def title(self) -> str:
        names = [row.name for row in self.rows]
        return f"Comparison of {', '.join(names[:-1])} and {names[-1]}"


def compare(
    folders: Sequence[str | os.PathLike[str]],
    images: Sequence[ImageSet] = (),
    measure: Callable[[], tuple[Sequence[Cost | None], Sequence[str]]] | None = None,
) -> Runs:
    """The runs in those folders, the first beside each of the others, on the images that all were measured on (by name).

    measure: asked what each costs, where that is known, and what there is to say of it; not before it is clear that they can be compared.

    Raises RunError for a folder without an evaluation or with one of several labels, where there is no such image, or where the runs
    contradict each other about an image's class.
    """
    pictures = Pictures(images)
    read = [_measured(folder) for folder in folders]
    found = [one for _, one in read]
    names = _told_apart([Path(folder) for folder in folders])
    common = set.intersection(*({row.name for row in one.predictions} for one in found))
    if not common:
        raise RunError(f"{names[0]} and the others were measured on different images; there is nothing to compare.")
    tables = [{row.name: row for row in one.predictions if row.name in common} for one in found]
    order = sorted(common)
    notes: list[str] = []
    for name, one, table in zip(names, found, tables, strict=True):
        if len(table) != sum(row.name in common for row in one.predictions):
            raise RunError(f"{name} has several images of one name; it cannot be told which is which.")
        for image in order:
            theirs, ours = one.class_names[table[image].true], found[0].class_names[tables[0][image].true]
            if theirs != ours:
                raise RunError(
                    f"{image} is of class {ours!r} in {names[0]} and of {theirs!r} in {name}: they were measured on different data."
                )
            contents = table[image].content, tables[0][image].content
            if all(contents) and contents[0] != contents[1]:
                raise RunError(
                    f"{image} is another picture in {name} than in {names[0]}: they were measured on different data. Measure one of them "
                    "again on the other's, by bit evaluate."
                )
        if len(one.predictions) > len(common):
            more = len(one.predictions) - len(common)
            what = f"1 further image of {name} is" if more == 1 else f"{more:,} further images of {name} are"
            notes.append(f"{what} not in every run, and left out of the comparison.")
    for name, one in zip(names, found, strict=True):
        notes += [f"{name}: {note}" for note in one.notes]
    if len({one.data for one in found}) > 1:
        known = all(table[image].content for table in tables for image in order)
        why = "the pictures are the same" if known else "taken for the same images, as names and classes are the same"
        notes.append(f"Measured on {', '.join(sorted({one.data for one in found}))}; {why}.")
    right = [np.array([table[image].rank == 0 for image in order]) for table in tables]
    costs, said = ([None] * len(names), []) if measure is None else measure()
    rows = [
        Row(
            name=name,
            evaluation=one,
            right=float(which.mean()),
            interval=wilson(float(which.mean()), len(which)),
            done=_done(contents),
            seconds=_seconds(contents),
            cost=cost,
            start=_start(contents) or name,
        )
        for name, (contents, one), which, cost in zip(names, read, right, costs, strict=True)
    ]
    most = SHOWN if len(rows) == 2 else SHOWN_OF_MANY
    return Runs(
        rows=rows,
        against=[
            _against(
                names[0],
                name,
                found[0],
                one,
                [tables[0][image] for image in order],
                [table[image] for image in order],
                pictures,
                most,
            )
            for name, one, table in zip(names[1:], found[1:], tables[1:], strict=True)
        ],
        images=len(order),
        summary=_summary(rows, right) if len(rows) > 2 else [],
        notes=[*said, *notes],
    )


def write(path: str | os.PathLike[str], shown: Runs) -> None:
    """Write the page, atomically."""
    sections: dict[str, object] = {"runs": shown}
    if any(row.cost is not None for row in shown.rows):
        sections["figures"] = Figures(figures=[pareto(shown.rows)])
    text = page.render(shown.title, {**sections, "against": shown})
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def place(path: Path, shown: Runs) -> Path:
    """Where the page is to be written: `path` or, where another comparison's is, the first free place (name-2.html)."""
    own = f"<title>{markupsafe.escape(terminal.visible(shown.title))}</title>".encode()
    for number in itertools.count(1):
        found = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not found.exists():
            return found
        if found.is_file():
            with open(found, "rb") as file:
                if own in file.read(1 << 16):
                    return found
    raise AssertionError


def record(shown: Runs) -> dict[str, Any]:
    """All numbers, as JSON."""
    rows = []
    for row in shown.rows:
        one = row.evaluation
        rows.append(
            {
                "name": row.name,
                "model": one.model,
                "done": row.done,
                "seconds": row.seconds,
                "right": row.right,
                "interval": row.interval,
                "images": one.images,
                "top1": one.top1,
                "mean_per_class": one.mean_per_class,
                "nll": one.nll,
                "ece": one.ece,
                "cost": None if row.cost is None else asdict(row.cost),
            }
        )
    pairs = [
        {
            "first": shown.rows[0].name,
            "second": one.name,
            "first_only": one.paired.first_only,
            "second_only": one.paired.second_only,
            "difference": one.paired.difference,
            "interval": one.paired.interval,
            "p": one.paired.p,
        }
        for one in shown.against
    ]
    return {
        "format": "bigtransfer comparison",
        "version": 1,
        "images": shown.images,
        "rows": rows,
        "against": pairs,
        "summary": shown.summary,
        "notes": shown.notes,
    }


def table(shown: Runs) -> list[str]:
    """The rows as text, for a terminal."""
    width = max(len(terminal.line(row.name)) for row in shown.rows)
    found = [f"{'run':<{width}}  right  95% interval   ms/image  images/s  M params        licence  by"]
    for row in shown.rows:
        cost = row.cost
        spent = ["–"] * 4
        if cost is not None:
            numbers = 1e3 * cost.per_image, 1 / cost.per_image, cost.parameters / 1e6
            spent = [*map(page.rounded, numbers), cost.licence or "–"]
        used = "  ".join(text.rjust(width) for text, width in zip(spent, (8, 8, 8, 12), strict=True))
        found.append(
            f"{terminal.line(row.name):<{width}}  {row.right:>5.1%}  {row.interval[0]:>5.1%} – {row.interval[1]:<5.1%}  {used}  {row.done}"
            + (f", {row.seconds:.0f} s" if row.seconds is not None else "")
        )
    return found


def _measured(folder: str | os.PathLike[str]) -> tuple[Contents, Evaluation]:
    contents = Contents.read(folder, Pictures())
    with contextlib.suppress(FileNotFoundError):
        whole = read_record(contents.folder / WHOLE)
        if isinstance(whole, Evaluation):
            return contents, whole
    if contents.labels is not None:
        raise RunError(
            f"{folder}: images may have several labels there; only runs with one label for each image are compared."
        )
    config = contents.config
    if contents.evaluation is None and config is not None and config.command == "finetune":
        raise RunError(
            f"{folder} is not finished. Its command goes on from what is there: {command_line('finetune', config.asked)}"
        )
    if contents.evaluation is None or not contents.evaluation.predictions:
        raise RunError(f"{folder} holds no evaluation. `bit evaluate MODEL DATA --out FOLDER` makes one.")
    return contents, contents.evaluation


def _done(contents: Contents) -> str:
    config = contents.config
    if config is None or config.command != "finetune":
        return ""
    budget = config.asked.get("budget")
    how = "fine-tuned"
    if config.asked.get("linear") == "sgd":
        how = "linear, trained"
    elif contents.choice is not None:
        how = "average of both" if contents.choice.delivered == "average" else contents.choice.delivered
    elif contents.closed is not None and config.recipe is not None and not config.recipe.steps:
        how = "closed form"
    return how if budget is None else f"{budget}: {how}"


def _start(contents: Contents) -> str:
    config = contents.config
    return config.start if config is not None and config.command == "finetune" else ""


def _seconds(contents: Contents) -> float | None:
    if contents.budget is not None:
        return contents.budget.seconds
    return contents.closed.seconds if contents.closed is not None and _done(contents) == "closed form" else None


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or as they were typed where two have the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _against(
    first_name: str,
    name: str,
    first: Evaluation,
    second: Evaluation,
    ours: Sequence[Prediction],
    theirs: Sequence[Prediction],
    pictures: Pictures,
    most: int,
) -> Against:
    right = np.array([row.rank == 0 for row in ours]), np.array([row.rank == 0 for row in theirs])
    paired = Paired.of(*right)

    def shown(rows: Sequence[Prediction], which: np.ndarray, names: Sequence[str]) -> list[Answer]:
        chosen = sorted((rows[i] for i in np.flatnonzero(which).tolist()), key=lambda row: -row.probability)
        return [Answer.of(row, names, pictures) for row in chosen[:most]]

    return Against(
        name=name,
        paired=paired,
        verdict=_verdict(first_name, name, paired),
        lost=shown(theirs, right[0] & ~right[1], second.class_names),
        gained=shown(ours, right[1] & ~right[0], first.class_names),
    )


def _verdict(first: str, second: str, paired: Paired) -> str:
    difference, (low, high) = paired.difference, paired.interval
    better, worse = second, first
    if difference < 0:
        difference, low, high, better, worse = -difference, -high, -low, first, second
    interval = f"(95% interval {100 * low:+.1f} to {100 * high:+.1f})"
    points = f"{difference * 100:.1f} percentage points {interval}"
    if _beyond_chance(paired):
        return f"{better} is better than {worse} by {points}"
    ahead = f"{better} is ahead by {points}" if difference else f"both get as many right {interval}"
    return f"{first} and {second} cannot be told apart by these images: {ahead}"


def _beyond_chance(paired: Paired) -> bool:
    """Whether the images show which is better: by the interval, and by the exact test, which knows how few may be told differently."""
    low, high = paired.interval
    return (low > 0 or high < 0) and paired.p < 0.05


def _summary(rows: Sequence[Row], right: Sequence[np.ndarray]) -> list[str]:
    """Which is best, which cannot be told apart from it, and which of those is the fastest. right: of which images each is."""
    best = max(range(len(rows)), key=lambda i: (right[i].sum(), -_time(rows[i])))
    alike = [i for i in range(len(rows)) if i != best and not _beyond_chance(Paired.of(right[i], right[best]))]
    said = [f"{rows[best].name} gets most right: {rows[best].right:.1%} of {len(right[best]):,} images"]
    if not alike:
        said[0] += ", more than any other beyond chance"
    else:
        said.append(f"By these images it cannot be told apart from {' and '.join(rows[i].name for i in alike)}")
    timed = [i for i in (best, *alike) if rows[i].cost is not None]
    if len(timed) > 1:
        fast = min(timed, key=lambda i: _time(rows[i]))
        said.append(f"The fastest of these is {rows[fast].name}: {page.rounded(1e3 * _time(rows[fast]))} ms an image")
        if fast != best:
            said[-1] += f", {_time(rows[best]) / _time(rows[fast]):.2g} times as fast"
    return [f"{sentence}." for sentence in said]


def _time(row: Row) -> float:
    return math.inf if row.cost is None else row.cost.per_image


# --- The figure


def front(rows: Sequence[Row]) -> list[int]:
    """Which of the rows no other one surpasses, the fastest first: none is as fast and right as often, and one of the two more so."""

    def surpassed(one: Row) -> bool:
        return any(
            other.right >= one.right
            and _time(other) <= _time(one)
            and (other.right > one.right or _time(other) < _time(one))
            for other in rows
        )

    timed = [i for i, row in enumerate(rows) if row.cost is not None and not surpassed(row)]
    return sorted(timed, key=lambda i: (_time(rows[i]), -rows[i].right))


def pareto(rows: Sequence[Row]) -> Figure:
    """Accuracy against time per image, of the rows whose time is known (one at least)."""
    timed = [i for i, row in enumerate(rows) if row.cost is not None]
    times = [math.log10(_time(rows[i])) for i in timed]
    low, high = min(times) - 0.12, max(times) + 0.12
    bottom = min(rows[i].interval[0] for i in timed)
    top = max(rows[i].interval[1] for i in timed)
    bottom, top = max(0.0, bottom - 0.02), min(1.0, top + 0.02)
    wide, tall = Figure.width - Figure.left - Figure.right, Figure.height - Figure.top - Figure.bottom

    def across(seconds: float) -> float:
        return round(Figure.left + (math.log10(seconds) - low) / (high - low) * wide, 1)

    def up(share: float) -> float:
        return round(Figure.top + (top - share) / (top - bottom) * tall, 1)

    starts = list(dict.fromkeys(rows[i].start for i in timed))
    dots, lines = [], []
    for i in timed:
        row, colour = rows[i], starts.index(rows[i].start) % COLOURS
        x = across(_time(row))
        hint = f"{row.name}: {row.right:.1%} ({row.interval[0]:.1%} to {row.interval[1]:.1%}), {page.rounded(1e3 * _time(row))} ms an image"
        dots.append(
            Dot(x=x, y=up(row.right), colour=colour, hint=hint, text=str(i + 1), hollow=row.done == "closed form")
        )
        lines.append((colour, [(x, up(row.interval[0])), (x, up(row.interval[1]))]))
    best = [(across(_time(rows[i])), up(rows[i].right)) for i in front(rows)]
    levels = charts.ticks(bottom, top)
    texts = charts.distinct(levels, lambda share, more: f"{share:.{more}%}")
    note = "Upwards: right answers, with their 95% interval; to the right: ms an image. Further up and to the left is better."
    if len(best) > 1:
        note += " Dashed: those that no other surpasses in both; a lead within the intervals may be chance."
    if any(dot.hollow for dot in dots):
        note += " Outlined: closed form."
    return Figure(
        title="Accuracy against time per image",
        note=note,
        levels=[Label(at=up(level), text=text) for level, text in zip(levels, texts, strict=True)],
        places=[Label(at=across(seconds), text=page.rounded(1e3 * seconds)) for seconds in _decades(10**low, 10**high)],
        lines=lines,
        dots=dots,
        stairs=[point for one, other in itertools.pairwise(best) for point in (one, (other[0], one[1]))] + best[-1:]
        if len(best) > 1
        else [],
        names=[
            (starts.index(rows[i].start) % COLOURS, f"{i + 1} {rows[i].name}", rows[i].done != "closed form")
            for i in timed
        ],
    )


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from low to high; where that is fewer than two, closer ones."""
    for factors in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(1 + k / 10 for k in range(90))):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) > 1:
            break
    return found
