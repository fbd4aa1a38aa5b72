"""`bit predict`: what is on images."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TextIO

import numpy as np
from tqdm import tqdm

from bigtransfer import web
from bigtransfer.config import PredictConfig
from bigtransfer.data import containers
from bigtransfer.data.forms import open_images
from bigtransfer.errors import DataError, ImageError
from bigtransfer.limits import limits
from bigtransfer.outputs import atomic_write, refuse_replacing, text_output
from bigtransfer.predictor import Prediction, Predictor, fetch, told_apart
from bigtransfer.terminal import cell, json_line, line


def run(config: PredictConfig) -> int:
    """Predict and write in the format asked for. Exit status 1 if some image could not be read."""
    predictor = Predictor.load(
        config.model,
        device=config.device,
        precision=config.precision,
        decoder=config.decoder,
        backend=config.backend,
    )
    sources = list(_sources(config.images))
    if len(sources) > _MANY:
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401 - with which images are resized sooner, to the same bytes
    _refuse_inputs(config, sources)
    names: list[str] = []
    features: list[np.ndarray] = []
    errors = 0
    with contextlib.ExitStack() as stack:
        if config.out is None:
            stream, shown = sys.stdout, sys.stdout.isatty()
        else:
            stream, shown = stack.enter_context(text_output(config.out)), False
        names_of = [source if isinstance(source, str) else source[0] for source in sources]
        write = _writer(config, stream, shown, predictor.class_names, names_of, predictor.thresholds is not None)
        predictions = predictor.stream(sources, features=config.features is not None, batch_size=config.batch_size)
        # A progress bar would tear up rows that scroll by.
        for prediction in tqdm(
            predictions, total=len(sources), unit="img", disable=True if shown else None, leave=False
        ):
            write(prediction)
            errors += prediction.error is not None
            if prediction.features is not None:
                names.append(prediction.name)
                features.append(prediction.features)
    if config.features is not None:
        width = predictor.card.architecture.num_features
        stacked = np.stack(features) if features else np.empty((0, width), np.float32)
        with atomic_write(config.features) as path, open(path, "wb") as file:
            np.savez(file, names=np.array(names, dtype=np.str_), features=stacked)
    if errors:
        print(f"{errors} of {len(sources)} images cannot be read", file=sys.stderr)
    return 1 if errors else 0


def _refuse_inputs(config: PredictConfig, sources: Sequence[Any]) -> None:
    """ConfigError if an output would replace the model or one of the images."""
    model = os.path.join(config.model, "model.safetensors") if os.path.isdir(config.model) else config.model
    images = (source for source in sources if isinstance(source, str))
    refuse_replacing([("--out", config.out), ("--features", config.features)], (model, *images))


def _sources(asked: Sequence[str]) -> Iterator[str | tuple[str, Callable[[], bytes]]]:
    """Every image asked for: paths, and addresses with the function that fetches them. Raises DataError for what is not there."""
    for item in asked:
        if item == "-":
            yield from _from_standard_input()
        elif web.is_web(item):
            yield item, functools.partial(fetch, item)
        else:
            images = open_images([item])
            yield from (images.name(i) for i in range(len(images)))


def _from_standard_input() -> Iterator[str | tuple[str, Callable[[], bytes]]]:
    """One image, if that is what comes in; else the images on a list, one a line: names of files in whatever encoding those are."""
    if sys.stdin is None:
        raise DataError("Standard input is closed; `-` reads an image or names of images from it.")
    lines: IO[Any] = getattr(sys.stdin, "buffer", sys.stdin)
    read = lines.readline(_LONGEST)
    start = os.fsencode(read)
    if start[:1] in (b"\x89", b"\0"):
        start = read = start + os.fsencode(
            lines.read(64)
        )  # PNG and JPEG 2000 have the end of a line among their first bytes
    if b"\0" in start and containers.kind_of(start) is not None:
        data = start + os.fsencode(lines.read(limits().image_bytes + 1 - len(start)))
        if len(data) > limits().image_bytes:
            raise ImageError(
                "-", f"it has more than {limits().image_bytes:,} bytes; if it is meant: --limits image_bytes=N"
            )
        yield "-", lambda: data
        return
    names = []
    while read:
        text = os.fsdecode(read)
        if len(read) >= _LONGEST or "\0" in text:
            raise DataError(
                "Standard input holds neither an image nor a list of names, one a line, which is what `-` reads. An image is given by its "
                "name: bit predict MODEL a.jpg"
            )
        names.append(text.strip())
        read = lines.readline(_LONGEST)
    for name in names:
        if name in ("", "-"):
            continue
        try:
            found = list(_sources([name]))
        except DataError as error:  # the others on the list go on
            found = [(name, functools.partial(_missing, ImageError(name, str(error))))]
        yield from found


def _missing(error: ImageError) -> bytes:
    raise error


_MANY = 500
"""Images whose resizing without torch takes about as long as loading it."""

_LONGEST = 1 << 16
"""Bytes of a line, with its end, of a list of names: longer ones are no names."""


def _writer(
    config: PredictConfig,
    stream: TextIO,
    shown: bool,
    class_names: tuple[str, ...],
    names: Sequence[str],
    several: bool,
) -> Callable[[Prediction], None]:
    """The function that writes one prediction. shown: to somebody who looks on, and has only so much room in a line. several: an image
    may be given several classes."""
    top_k = min(config.top_k, len(class_names))
    if config.format == "jsonl":
        return functools.partial(_write_json, stream, config.probabilities, top_k)
    if config.format == "csv":
        rows = csv.writer(stream, lineterminator="\n")
        header = ["image", *(["labels"] if several else []), "label", "probability"]
        header += [f"{title}_{k}" for k in range(2, top_k + 1) for title in ("label", "probability")]
        rows.writerow([*header, *map(cell, told_apart(class_names) if config.probabilities else ()), "error"])
        columns = len(class_names) if config.probabilities else 0
        return functools.partial(_write_row, rows, columns, top_k, several)
    widths = [max([5, *(len(line(name)) for name in column)]) for column in (names, class_names)]
    if several:
        widths[1] = min(40, sum(len(line(name)) + 2 for name in class_names))
    image_width, label_width = (min(60, widths[0]), min(40, widths[1])) if shown else widths
    if several:
        print(f"{'image':<{image_width}}  {'classes':<{label_width}}  probabilities", file=stream)
        return functools.partial(_write_several, stream, image_width, label_width, top_k)
    print(f"{'image':<{image_width}}  {'class':<{label_width}}  probability", file=stream)
    return functools.partial(_write_line, stream, image_width, label_width, top_k)


def _write_json(stream: TextIO, probabilities: bool, top_k: int, prediction: Prediction) -> None:
    print(json_line(prediction.record(top_k, probabilities=probabilities), stream), file=stream)


def _write_row(rows: Any, columns: int, top_k: int, several: bool, prediction: Prediction) -> None:
    if prediction.probabilities is None:
        rows.writerow([cell(prediction.name), *[""] * (several + 2 * top_k + columns), cell(prediction.error or "")])
        return
    values = [value for label, p in prediction.top(top_k) for value in (cell(label), f"{p:.6g}")]
    values += [f"{p:.6g}" for p in prediction.probabilities[:columns]]
    given = [cell("|".join(prediction.labels))] if several else []
    rows.writerow([cell(prediction.name), *given, *values, ""])


def _write_several(stream: TextIO, image_width: int, label_width: int, top_k: int, prediction: Prediction) -> None:
    name = _shortened(line(prediction.name), image_width)
    if prediction.error is not None:
        print(f"{name:<{image_width}}  cannot be read: {line(prediction.error)}", file=stream)
        return
    given = ", ".join(map(line, prediction.labels)) or "(none)"
    rest = ", ".join(f"{line(label)} {p:.1%}" for label, p in prediction.top(top_k))
    print(f"{name:<{image_width}}  {given:<{label_width}}  {rest}", file=stream)


def _shortened(name: str, width: int) -> str:
    return name if len(name) <= width else "..." + name[3 - width :]


def _write_line(stream: TextIO, image_width: int, label_width: int, top_k: int, prediction: Prediction) -> None:
    name = _shortened(line(prediction.name), image_width)
    if prediction.error is not None:
        print(f"{name:<{image_width}}  cannot be read: {line(prediction.error)}", file=stream)
        return
    (label, probability), *others = ((line(label), p) for label, p in prediction.top(top_k))
    if len(label) > label_width:
        label = label[: label_width - 3] + "..."
    rest = ", ".join(f"{other} {p:.1%}" for other, p in others if p >= 0.0005)
    row = f"{name:<{image_width}}  {label:<{label_width}}  {probability:11.1%}"
    print(f"{row}   {rest}".rstrip(), file=stream)
