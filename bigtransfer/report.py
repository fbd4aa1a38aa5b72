"""A run folder -> `report.html`: one file that opens offline, with its pictures, curves and styles inside.

Reads what is there of config.json, metrics.jsonl, evaluation.json (`evals.save_evaluation`) and unreadable.json, and leaves out
the sections of what is not. `docs/report.md` says what each section means.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from bigtransfer import config as configs
from bigtransfer.data import ImageSet
from bigtransfer.errors import ImageError, RunError
from bigtransfer.runs import atomic_write, read_metrics

MATRIX_CLASSES = 50
"""Largest number of classes for which the confusion matrix is drawn."""

MISTAKES = 24
UNCERTAIN = 12
"""Pictures shown."""

THUMBNAIL = 192
"""Longest side of a picture, px."""


def write(run_folder: str | os.PathLike[str], images: ImageSet | Sequence[ImageSet] | None = None) -> Path:
    """Write `report.html` into a run's folder and return its path.

    images: where the evaluated images can be read again, for the pictures; matched by name. None: no pictures.
    Raises RunError if there is no such folder or one of its files is damaged.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise RunError(f"There is no run folder {folder}.")
    config = read_json(folder / "config.json", dict)
    evaluation = read_json(folder / "evaluation.json", dict)
    unreadable = read_json(folder / "unreadable.json", list) + evaluation.get("unreadable", [])
    metrics = read_metrics(folder / "metrics.jsonl")
    pictures = _Pictures([] if images is None else [images] if isinstance(images, ImageSet) else images)

    sections = [
        _headline(folder, config, evaluation, metrics),
        _decisions(config),
        _curves(metrics),
        _classes(evaluation),
        _confusion(evaluation),
        _mistakes(evaluation, pictures),
        _uncertain(evaluation, pictures),
        _calibration(evaluation),
        _unreadable(unreadable),
        _environment(config),
        _next(folder, evaluation),
    ]
    title = f"{evaluation.get('model') or folder.name}: report"
    page = _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(filter(None, sections)), script=_SCRIPT)
    path = folder / "report.html"
    with atomic_write(path) as temporary:
        # A file name that is not UTF-8 holds lone surrogates, which cannot be encoded.
        temporary.write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
    return path


def read_json(path: Path, kind: type[dict] | type[list]) -> Any:
    """The JSON object or list in a file of a run, or an empty one if the file is not there. Raises RunError if it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}. Remove it to write the report without it.") from error
    if not isinstance(value, kind):
        raise RunError(f"{path} should hold a JSON {'object' if kind is dict else 'list'}. Is it of another program?")
    return value


# --- Small pieces of HTML


def _text(value: object) -> str:
    return html.escape(str(value))


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _number(value: object) -> str:
    """A value of a configuration, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_number, value))
    return str(value)


def _section(title: str, *parts: str, name: str = "") -> str:
    anchor = f' id="{name}"' if name else ""
    return f"<section{anchor}>\n<h2>{_text(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    """A two-column list of names and values."""
    cells = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in rows)
    return f"<dl>{cells}</dl>" if cells else ""


def _scalars(values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if value not in (None, "", [], ()) and not isinstance(value, dict):
            yield key.replace("_", " "), _number(value)


# --- Sections


def _headline(
    folder: Path, config: Mapping[str, Any], evaluation: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]
) -> str:
    asked = config.get("asked", {})
    data = evaluation.get("data") or asked.get("data", "")
    if config.get("command") == "finetune":
        start = "fine-tuned" if asked.get("pretrained", True) else "trained from random weights"
        what = f"{asked.get('model')}, {start} on {data}"
    else:
        what = " on ".join(filter(None, (evaluation.get("model"), data)))
    parts = [f"<header><h1>{_text(folder.resolve().name)}</h1>", f'<p class="soft">{_text(what)}</p>' if what else ""]
    tiles: list[tuple[str, str]] = []
    if evaluation:
        low, high = evaluation["top1_interval"]
        classes = len(evaluation["class_names"])
        split = evaluation["split"]
        shown = {"all images": "images", "train": "training images", "val": "validation images"}.get(
            split, f"{split} images"
        )
        parts.append(
            f'<p class="hero"><strong>{_percent(evaluation["top1"])}</strong> of {evaluation["images"]:,} {_text(shown)} of '
            f"{classes:,} classes are recognized correctly.</p>"
            f'<p class="soft">95% interval {_percent(low)} to {_percent(high)}: where the accuracy on other images of the same '
            "kind is likely to be.</p>"
        )
        if classes > 5:
            tiles.append((_percent(evaluation["top5"]), "right class among the first five"))
        tiles.append((_percent(evaluation["mean_per_class"]), "mean over classes, each counted alike"))
        tiles.append((_percent(evaluation["ece"]), "calibration error of the probabilities"))
    else:
        measured = [line for line in metrics if line.get("val/top1") is not None]
        if measured:
            parts.append(
                f'<p class="hero"><strong>{_percent(measured[-1]["val/top1"])}</strong> of the validation images are recognized '
                f"correctly after step {measured[-1]['step'] + 1:,}.</p>"
            )
        # Pre-training ends with a model and its last validation, fine-tuning with an evaluation.
        pretrained = config.get("command") == "pretrain" and (folder / "model.safetensors").is_file()
        finished = pretrained or (folder / "evaluation.json").is_file()
        reason = "the data set has no images to measure it on" if finished else "the run has not finished"
        if not (pretrained and measured):
            parts.append(f'<p class="soft">There is no final evaluation: {reason}.</p>')
    facts = config.get("data", {})
    if facts.get("train"):
        tiles.append((f"{facts['train']:,}", "training images"))
    if tiles:
        cards = "".join(f"<div><b>{value}</b><span>{_text(label)}</span></div>" for value, label in tiles)
        parts.append(f'<div class="tiles">{cards}</div>')
    return "\n".join(filter(None, parts)) + "\n</header>"


def _decisions(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    parts = []
    command, asked = config.get("command", ""), config.get("asked", {})
    if command and asked:
        parts.append(f"<pre>{_text(configs.command_line(command, asked))}</pre>")
    recipe = config.get("recipe", {})
    if recipe.get("notes"):
        parts.append("<ul>" + "".join(f"<li>{_text(note)}</li>" for note in recipe["notes"]) + "</ul>")
    columns = []
    for title, rows in (
        ("Decided", list(_scalars({key: value for key, value in recipe.items() if key != "notes"}))),
        ("Data and machine", list(_scalars({**config.get("data", {}), **config.get("resolved", {})}))),
    ):
        if rows:
            columns.append(f"<div><h3>{title}</h3>{_pairs(rows)}</div>")
    parts.append(f'<div class="columns">{"".join(columns)}</div>')
    return _section("What was asked, and what was decided", *parts)


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    def points(key: str) -> list[tuple[float, float]]:
        found = ((line["step"] + 1, line[key]) for line in metrics if isinstance(line.get(key), (int, float)))
        return [(float(x), float(y)) for x, y in found if math.isfinite(y)]

    charts = []
    loss = points("loss")
    if len(loss) > 1:
        smooth = _smoothed(loss)
        charts.append(_chart("Training loss", [("faint", loss), ("line", smooth)], lambda y: f"{y:.3g}", smooth[-1][1]))
    rate = points("lr")
    if len(rate) > 1:
        charts.append(_chart("Learning rate, at most", [("line", rate)], lambda y: f"{y:.3g}", max(y for _, y in rate)))
    norm = points("gradient_norm")
    if len(norm) > 1:
        smooth = _smoothed(norm)
        charts.append(
            _chart("Length of the gradient", [("faint", norm), ("line", smooth)], lambda y: f"{y:.3g}", smooth[-1][1])
        )
    for key, title in (
        ("val/top1", "Validation accuracy"),
        ("val/precision_at_1", "Validation, precision at 1"),
        ("probe/top1", "Accuracy of the probe, on its own set"),
    ):
        accuracy = points(key)
        if accuracy:
            near = max(y for _, y in accuracy) - min(y for _, y in accuracy) < 0.05
            digits = 1 if near else 0
            charts.append(
                _chart(
                    title,
                    [("line", accuracy)],
                    lambda y, digits=digits: _percent(y, digits),
                    accuracy[-1][1],
                    marks=True,
                )
            )
    if not charts:
        return ""
    note = '<p class="soft">Over optimizer steps. The loss is drawn as it was (thin) and smoothed.</p>'
    return _section("Training", f'<div class="charts">{"".join(charts)}</div>', note)


def _classes(evaluation: Mapping[str, Any]) -> str:
    table = [row for row in evaluation.get("per_class", []) if row["support"]]
    if not table:
        return ""
    table.sort(key=lambda row: row["f1"])
    titles = (("Class", "text"), ("Images", ""), ("Precision", ""), ("Recall", ""), ("F1", ""))
    head = "".join(f'<th scope="col" class="{kind}"><button>{title}</button></th>' for title, kind in titles)
    rows = []
    for row in table:
        cells = [
            f'<th scope="row">{_text(row["class"])}</th>',
            f'<td data-v="{row["support"]}">{row["support"]:,}</td>',
        ]
        for key in ("precision", "recall", "f1"):
            value = row[key]
            bar = f' style="--share:{value:.3f}"' if value is not None else ""
            cells.append(f'<td class="bar" data-v="{-1 if value is None else value}"{bar}>{_percent(value)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = (
        f'<p class="soft">{len(table):,} classes. Precision: of the images the model gives this class, how many are of it. '
        "Recall: of the images of this class, how many the model finds. F1: their harmonic mean; the lowest first. Click a title "
        "to sort.</p>"
    )
    body = f'<div class="scroll tall"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("Class by class", body, note)


def _confusion(evaluation: Mapping[str, Any]) -> str:
    confused = evaluation.get("confused", [])
    names = evaluation.get("class_names", [])
    if not evaluation or not confused:
        return ""
    parts = []
    matrix = evaluation.get("confusion")
    small = 1 < len(names) <= MATRIX_CLASSES
    if matrix is not None and small:
        note = (
            '<p class="soft">Each row is a true class, each column what the model said; the shade is the share of the row\'s '
            'images, <span class="key good">right</span>, <span class="key bad">wrong</span>.</p>'
        )
        parts.append(f'<div><div class="scroll">{_matrix(matrix, names)}</div>{note}</div>')
    support = [row["support"] for row in evaluation["per_class"]]
    rows = "".join(
        f'<tr><th scope="row">{_text(names[true])}</th><td class="text">{_text(names[guess])}</td><td>{count:,}</td>'
        f"<td>{_percent(count / support[true], 0)}</td></tr>"
        for true, guess, count in confused[: 8 if small else 25]
    )
    parts.append(
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">True class</th><th scope="col" class="text">Taken for</th>'
        f'<th scope="col">Images</th><th scope="col">Of the class</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    return _section("What is confused with what", f'<div class="beside">{"".join(parts)}</div>')


def _mistakes(evaluation: Mapping[str, Any], pictures: _Pictures) -> str:
    wrong = [row for row in evaluation.get("predictions", []) if row["rank"]]
    if not wrong:
        return ""
    wrong.sort(key=lambda row: -row["probability"])
    shown = wrong[:MISTAKES]
    note = (
        f'<p class="soft">{len(shown)} of {len(wrong):,} mistakes, those the model was most sure of. Often the label is wrong, or the '
        "picture shows both.</p>"
    )
    return _section("Most confident mistakes", note, _gallery(shown, evaluation["class_names"], pictures))


def _uncertain(evaluation: Mapping[str, Any], pictures: _Pictures) -> str:
    rows = sorted(evaluation.get("predictions", []), key=lambda row: -row["entropy"])[:UNCERTAIN]
    if not rows:
        return ""
    note = '<p class="soft">The pictures on which the model was least decided (highest entropy): more like these would teach it most.</p>'
    return _section("Most uncertain pictures", note, _gallery(rows, evaluation["class_names"], pictures))


def _gallery(rows: Iterable[Mapping[str, Any]], names: Sequence[str], pictures: _Pictures) -> str:
    figures = []
    for row in rows:
        true, guess = _text(names[row["true"]]), _text(names[row["predicted"]])
        sure = _percent(row["probability"], 0)
        if row["rank"]:
            answer = f'<b class="wrong">{guess}</b> {sure}<br>is <b>{true}</b>'
        else:
            answer = f"<b>{guess}</b> {sure}<br>right"
        name = f'<small title="{_text(row["name"])}">{_text(row["name"].rpartition("/")[2])}</small>'
        caption = f"<figcaption>{answer}{name}</figcaption>"
        figures.append(f"<figure>{pictures.tag(row['name'])}{caption}</figure>")
    return f'<div class="gallery">{"".join(figures)}</div>'


def _calibration(evaluation: Mapping[str, Any]) -> str:
    bins = evaluation.get("calibration", [])
    total = sum(b["images"] for b in bins)
    if not total:
        return ""
    sure = sum(b["images"] * b["confidence"] for b in bins if b["images"]) / total
    gap = sure - evaluation["top1"]
    points = f"{abs(gap) * 100:.1f} percentage points on average"
    if abs(gap) < 0.02:
        verdict = "on average its probabilities are about right"
    elif gap > 0:
        verdict = f"it is too sure of itself, by {points}"
    else:
        verdict = f"it is right more often than it believes, by {points}"
    note = (
        f"<p>The model gives its answers a probability of {_percent(sure)} on average and is right in {_percent(evaluation['top1'])}: "
        f"{verdict}.</p>"
        '<p class="soft">Bars: how often the model is right among the images where it is as sure as the axis says. On the dashed '
        f"line its probabilities can be taken at their word. Calibration error (ECE, {len(bins)} bins): {_percent(evaluation['ece'])}. "
        "Below: how many images there are.</p>"
    )
    return _section(
        "Can the probabilities be trusted?", f'<div class="side">{_reliability(bins)}<div>{note}</div></div>'
    )


def _unreadable(unreadable: Sequence[Mapping[str, Any]]) -> str:
    unique = {(row.get("name", ""), row.get("reason", "")): None for row in unreadable}
    if not unique:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td class="text">{_text(reason)}</td></tr>' for name, reason in unique
    )
    table = f'<div class="scroll tall"><table><tbody>{rows}</tbody></table></div>'
    return _section(f"Files that cannot be read ({len(unique):,})", table)


def _environment(config: Mapping[str, Any]) -> str:
    environment = {key: value for key, value in config.get("environment", {}).items() if key != "argv"}
    return _section("Made with", _pairs((key, str(value)) for key, value in environment.items())) if environment else ""


def _next(folder: Path, evaluation: Mapping[str, Any]) -> str:
    model = str(folder) if (folder / "model.safetensors").is_file() else evaluation.get("model", "")
    if not model:
        return ""
    quoted = shlex.quote(model)
    commands = (
        (
            "Say what is on new images, with a table for a spreadsheet:",
            f"bit predict {quoted} photos/ --format csv --out labels.csv",
        ),
        ("Measure it on other labelled images:", f"bit evaluate {quoted} other-images/ --out evaluation/"),
        (
            "Use it from Python:",
            f'from bigtransfer import Predictor\n\npredictor = Predictor.load({model!r})\nprint(predictor.predict("photo.jpg"))',
        ),
    )
    return _section("Next", *(f"<p>{_text(why)}</p><pre>{_text(command)}</pre>" for why, command in commands))


# --- Pictures


class _Pictures:
    """Thumbnails by image name."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self._places = {images.name(i): (images, i) for images in sets for i in range(len(images))}

    def tag(self, name: str) -> str:
        """An <img> with the picture inside, or "" if it cannot be had."""
        if name not in self._places:
            return ""
        images, i = self._places[name]
        try:
            pixels = images.read(i)
        except ImageError:
            return ""
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        # Few pixels are shown as they are; JPEG and smooth enlargement would blur them beyond recognition.
        tiny = max(picture.size) <= THUMBNAIL // 2
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        data = io.BytesIO()
        picture.save(data, "PNG" if tiny else "JPEG", quality=80)
        kind = "png" if tiny else "jpeg"
        encoded = base64.b64encode(data.getvalue()).decode("ascii")
        return f'<img class="{"tiny" if tiny else ""}" alt="" src="data:image/{kind};base64,{encoded}">'


# --- Drawings (SVG). Colours come from the style sheet, so that they follow light and dark.

_W, _H = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 14, 30


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over a window of about a thirtieth of the points, centred, so that the curve does not lag; narrower at the ends."""
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    half = len(points) // 60
    result = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def _thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most about `most` points; each stretch keeps its lowest and highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return [points[0], *kept, points[-1]]


def _chart(
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    label: Callable[[float], str],
    headline: float,
    *,
    marks: bool = False,
) -> str:
    """A line chart: series of (CSS class, points); `headline` is the value beside the title, `marks` draws the points."""
    xs = [x for _, points in series for x, _ in points]
    ys = sorted(y for _, points in series for _, y in points)
    x0, x1 = 0.0, max(xs)
    # A few wild first losses must not press the rest flat.
    y0, y1 = ys[0], max(ys[int(0.98 * (len(ys) - 1))], series[-1][1][-1][1])
    y0 = 0.0 if y0 >= 0 and y0 < 0.5 * y1 else y0
    pad = 0.06 * (y1 - y0) or 0.05 * abs(y1) or 1.0
    y1 += pad
    y0 = y0 if y0 == 0 else y0 - pad

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - x0) / (x1 - x0) * (_W - _LEFT - _RIGHT)
        up = _TOP + (1 - (min(y, y1) - y0) / (y1 - y0)) * (_H - _TOP - _BOTTOM)
        return round(across, 1), round(up, 1)

    parts = []
    for y in _ticks(y0, y1):
        _, up = place(x0, y)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{up}" y2="{up}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up + 4}" text-anchor="end">{_text(label(y))}</text>')
    for x in _ticks(x0, x1):
        across, _ = place(x, y0)
        number = f"{x:,.6g}"
        inside = min(across, _W - 4 * len(number))  # at the right end a long one would be cut off
        parts.append(f'<text x="{inside}" y="{_H - 10}" text-anchor="middle">{number}</text>')
    for kind, points in series:
        placed = [place(*point) for point in _thinned(points)]
        parts.append(f'<polyline class="{kind}" points="{" ".join(f"{x},{y}" for x, y in placed)}"/>')
        for x, y in points if marks else ():
            across, up = place(x, y)
            hint = f"<title>after step {x:,.0f}: {_text(label(y))}</title>"
            parts.append(f'<circle class="dot" cx="{across}" cy="{up}" r="3.5">{hint}</circle>')
    drawing = f'<svg viewBox="0 0 {_W} {_H}" role="img" aria-label="{_text(title)}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{_text(title)} <b>{_text(label(headline))}</b></figcaption>{drawing}</figure>'


def _matrix(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    n = len(names)
    cell = 46 if n <= 8 else 40 if n <= 12 else 30 if n <= 25 else 17
    size = 13 if n <= 12 else 11
    short = [name if len(name) <= 20 else name[:19] + "…" for name in names]
    left = round(12 + size * 0.56 * max(map(len, short)))
    top = left
    parts = []
    for i, row in enumerate(matrix):
        middle = top + (i + 0.5) * cell
        parts.append(f'<text x="{left - 6}" y="{middle + size * 0.35:.1f}" text-anchor="end">{_text(short[i])}</text>')
        across = left + (i + 0.5) * cell + size * 0.35
        parts.append(f'<text transform="translate({across:.1f} {top - 6}) rotate(-90)">{_text(short[i])}</text>')
        total = sum(row)
        for j, count in enumerate(row):
            if not count:
                continue
            share = count / total
            x, y = left + j * cell, top + i * cell
            what = f"{names[i]} taken for {names[j]}" if i != j else f"{names[i]} right"
            # The square root keeps single mistakes visible.
            parts.append(
                f'<rect class="{"good" if i == j else "bad"}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{math.sqrt(share):.2f}"><title>{_text(what)}: {count:,} of {total:,} ({share:.0%})</title></rect>'
            )
            if cell >= 30 and len(str(count)) <= cell // 9:
                kind = "count on" if share > 0.35 else "count"
                down = f"{y + cell / 2 + size * 0.35:.1f}"
                parts.append(
                    f'<text class="{kind}" x="{x + cell / 2 - 0.5}" y="{down}" text-anchor="middle">{count}</text>'
                )
    side = n * cell
    frame = f'<rect class="frame" x="{left - 0.5}" y="{top - 0.5}" width="{side}" height="{side}"/>'
    width, height = left + side + 2, top + side + 2
    return (
        f'<svg class="matrix" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" aria-label="Confusion matrix" '
        f'style="font-size:{size}px">{"".join(parts)}{frame}</svg>'
    )


def _reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    side, left, top, below = 250, 44, 12, 54

    def across(p: float) -> float:
        return round(left + p * side, 1)

    def up(p: float) -> float:
        return round(top + (1 - p) * side, 1)

    parts = []
    for p in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line class="grid" x1="{left}" x2="{left + side}" y1="{up(p)}" y2="{up(p)}"/>')
        parts.append(f'<text x="{left - 6}" y="{up(p) + 4}" text-anchor="end">{p:.0%}</text>')
        parts.append(f'<text x="{across(p)}" y="{top + side + below + 16}" text-anchor="middle">{p:.0%}</text>')
    most = max(b["images"] for b in bins)
    floor = top + side + below
    for b in bins:
        if not b["images"]:
            continue
        x, width = across(b["from"]) + 0.5, round((b["to"] - b["from"]) * side - 1, 1)
        hint = (
            f"<title>{b['from']:.0%} to {b['to']:.0%} sure: {b['images']:,} images, right in {b['accuracy']:.0%}, "
            f"mean probability {b['confidence']:.0%}</title>"
        )
        tall = round(b["accuracy"] * side, 1)
        parts.append(
            f'<rect class="fill" x="{x}" y="{top + side - tall}" width="{width}" height="{tall}">{hint}</rect>'
        )
        tall = max(1.0, round(b["images"] / most * (below - 14), 1))
        parts.append(
            f'<rect class="quiet" x="{x}" y="{round(floor - tall, 1)}" width="{width}" height="{tall}">{hint}</rect>'
        )
    parts.append(f'<line class="dash" x1="{across(0)}" y1="{up(0)}" x2="{across(1)}" y2="{up(1)}"/>')
    parts.append(f'<line class="grid" x1="{left}" x2="{left + side}" y1="{floor}" y2="{floor}"/>')
    width, height = left + side + 20, floor + 40
    parts.append(f'<text x="{left + side / 2}" y="{floor + 33}" text-anchor="middle">probability of the answer</text>')
    return f'<svg class="square" viewBox="0 0 {width} {height}" role="img" aria-label="Reliability diagram">{"".join(parts)}</svg>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root { --bg: #fff; --panel: #f5f6f8; --ink: #1b1f24; --soft: #5b6570; --line: #dde1e6; --blue: #2366b5; --red: #c4420f;
  --faint: #2366b540; --on: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #14171a; --panel: #1e2226; --ink: #e6e9ec; --soft: #9da7b1; --line: #343b42; --blue: #6fabec; --red: #f2834f;
    --faint: #6fabec4d; --on: #0d1013; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 12px; }
h3 { font-size: .8rem; font-weight: 600; color: var(--soft); margin: 0 0 6px; text-transform: uppercase; letter-spacing: .04em; }
p { margin: 0 0 10px; max-width: 72ch; }
section { margin-top: 44px; padding-top: 20px; border-top: 1px solid var(--line); }
.soft, small { color: var(--soft); }
.soft { font-size: .9rem; overflow-wrap: anywhere; }
.hero { font-size: 1.25rem; margin: 22px 0 4px; line-height: 1.35; }
.hero strong { font-size: 2.6rem; color: var(--blue); font-weight: 650; letter-spacing: -.02em; margin-right: .1em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-top: 20px; }
.tiles div { background: var(--panel); border-radius: 8px; padding: 12px 14px; }
.tiles b { display: block; font-size: 1.3rem; font-weight: 600; }
.tiles span { color: var(--soft); font-size: .85rem; line-height: 1.3; display: block; }
pre { background: var(--panel); border-radius: 8px; padding: 12px 14px; font-size: .88rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 16px; }
ul { margin: 0 0 18px; padding-left: 20px; max-width: 80ch; }
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 260px), 1fr)); gap: 24px 36px; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 16px; margin: 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 20px; margin-bottom: 10px; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); }
.chart figcaption { font-size: .9rem; color: var(--soft); margin-bottom: 2px; }
.chart b { color: var(--ink); font-weight: 600; margin-left: 4px; }
.grid { stroke: var(--line); stroke-width: 1; }
.line { fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; }
.faint { fill: none; stroke: var(--faint); stroke-width: 1; }
.dot { fill: var(--blue); stroke: var(--bg); stroke-width: 1.5; }
.dash { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 4; }
.fill { fill: var(--blue); fill-opacity: .75; }
.quiet { fill: var(--soft); fill-opacity: .5; }
.scroll { overflow: auto; margin-bottom: 14px; }
.tall { max-height: 640px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
tbody th, .text { text-align: left; }
tbody th { font-weight: 400; }
td.text { color: var(--soft); }
thead th { position: sticky; top: 0; background: var(--bg); font-weight: 600; color: var(--soft); z-index: 1; }
thead button { all: unset; cursor: pointer; }
thead button:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
th[aria-sort] button { color: var(--ink); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.sortable { width: 100%; max-width: 860px; }
.bar { background: linear-gradient(var(--faint) 0 0) 1rem / calc((100% - 6rem) * var(--share, 0)) 60% no-repeat; min-width: 8.5rem; }
.matrix { width: auto; max-width: none; }
.matrix text { font-size: inherit; }
.good { fill: var(--blue); }
.bad { fill: var(--red); }
.matrix .count { fill: var(--ink); }
.matrix .count.on { fill: var(--on); }
.frame { fill: none; stroke: var(--line); }
.key { white-space: nowrap; }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; }
.key.good::before { background: var(--blue); }
.key.bad::before { background: var(--red); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); gap: 18px 14px; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--panel); border-radius: 6px; }
.gallery .tiny { image-rendering: pixelated; }
.gallery figcaption { font-size: .9rem; line-height: 1.35; margin-top: 6px; overflow-wrap: anywhere; }
.gallery b { font-weight: 600; }
.gallery small { display: block; font-size: .75rem; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.wrong { color: var(--red); }
.side { display: grid; grid-template-columns: minmax(0, 330px) minmax(0, 1fr); gap: 28px; align-items: start; }
.square { max-width: 330px; }
.beside { display: flex; flex-wrap: wrap; gap: 20px 40px; align-items: flex-start; }
.beside > * { max-width: 100%; }
.beside > div:first-child:not(:only-child) { width: min-content; min-width: min(100%, 400px); }
@media (max-width: 640px) {
  main { padding: 16px 14px 48px; }
  .hero strong { display: block; line-height: 1.1; }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); }
  .side { grid-template-columns: 1fr; }
  th, td { padding-right: 10px; }
  .bar { background: none; min-width: 0; }
}
@media print { .tall { max-height: none; } section { break-inside: avoid-page; } }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, i) => row.cells[i].dataset.v === undefined ? row.cells[i].textContent : Number(row.cells[i].dataset.v);
  heads.forEach((head, i) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a, i), y = key(b, i);
      return (typeof x === "string" ? x.localeCompare(y, undefined, {numeric: true}) : x - y) * (up ? 1 : -1);
    });
    body.append(...rows);
  }));
}
"""
