"""`bit predict`: what is on images."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

import bigtransfer
from bigtransfer import web
from bigtransfer.bars import tqdm
from bigtransfer.config import PredictConfig, command_line
from bigtransfer.data import containers
from bigtransfer.data.forms import open_anything, open_images
from bigtransfer.errors import ConfigError, DataError, ImageError
from bigtransfer.limits import limits
from bigtransfer.outputs import atomic_write, refuse_replacing, text_output, write_json
from bigtransfer.predictor import Prediction, Predictor, fetch, told_apart
from bigtransfer.terminal import cell, json_line, line, utf8


def run(config: PredictConfig) -> int:
    """Predict and write in the format asked for. Exit status 1 if some image could not be read, but 0 under torchrun, which would end the
    others."""
    if config.into_folder:
        return _in_parts(config)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError("Several processes write into a folder: --out answers/")
    predictor = Predictor.load(
        config.model,
        device=config.device,
        precision=config.precision,
        decoder=config.decoder,
        backend=config.backend,
        batch=config.batch_size or (1 if len(config.images) == 1 and Path(config.images[0]).is_file() else None),
    )
    if config.features is None:
        predictor.with_classes()
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
        wanted = config.features is not None or config.suggest is not None
        predictions = predictor.stream(sources, features=wanted, batch_size=config.batch_size)
        # A progress bar would tear up rows that scroll by.
        predictions = tqdm(
            predictions,
            total=len(sources),
            unit="img",
            disable=True if shown and config.suggest is None else None,
            leave=False,
        )
        for prediction in predictions if config.suggest is None else _suggested(config, predictor, predictions):
            write(prediction)
            errors += prediction.error is not None
            if config.features is not None and prediction.features is not None:
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


def _in_parts(config: PredictConfig) -> int:
    """The answers on all images into a folder, by all processes of the world."""
    from bigtransfer import dist
    from bigtransfer.jobs import parts

    assert config.out is not None
    form = config.format or "parquet"
    if form == "parquet":
        _parquet()
    with dist.join(parts.device_of(config)) as (world, device):
        predictor, digest = parts.opened(config, device)
        if "features" not in config.vectors:
            predictor.with_classes()
        if "-" in config.images:
            raise ConfigError("Into a folder go images from files: instead of - give a folder, a pattern or a table.")
        images = open_anything(config.images, predictor.card.architecture.in_chans)
        batch = config.batch_size or predictor.batch_size
        vectors = [kind for kind in ("features", "logits") if kind in config.vectors]
        plan = parts.plan(predictor, digest, images, batch)
        plan |= {"top_k": config.top_k, "probabilities": config.probabilities, "vectors": vectors}
        endings = [form] if form == "parquet" else [form, *(f"{kind}.npy" for kind in vectors)]
        work = parts.Parts(
            Path(config.out), plan, len(images), parts.size_of(predictor, batch, config.part_images), endings
        )
        mine = work.begin(world)
    total = sum(len(work.range_of(part)) for part in mine)
    if world.is_main and total < len(images) and world.size == 1 and total:
        print(f"{config.out}: {len(images) - total:,} of {len(images):,} images are done; going on", file=sys.stderr)
    with tqdm(total=total, unit="img", disable=None if world.is_main else True, leave=False) as bar:
        asked = {"features": "features" in vectors, "logits": "logits" in vectors}
        for part, found in parts.answers(predictor, images, work, mine, world, batch=batch, **asked):
            unreadable = sum(prediction.error is not None for prediction in found)
            if form == "parquet":
                writers = [functools.partial(_write_parquet, config, vectors, predictor, found)]
            else:
                writers = [functools.partial(_write_text, config, form, predictor, found)]
                widths = {"features": predictor.card.architecture.num_features, "logits": predictor.card.num_classes}
                writers += [functools.partial(_write_vectors, kind, widths[kind], found) for kind in vectors]
            work.write(part, unreadable, writers)
            bar.update(len(found))

    def conclude(finished: list[parts.Part]) -> None:
        manifest = {
            "format": "bigtransfer predictions",
            "version": 1,
            "complete": True,
            "images": len(images),
            "unreadable": sum(part.unreadable for part in finished),
            "by": f"bigtransfer {bigtransfer.__version__}",
            "asked": command_line("predict", dataclasses.asdict(config)),
            "plan": work.plan,
            "class_names": list(predictor.class_names),
            "parts": [dataclasses.asdict(part) for part in finished],
        }
        write_json(work.folder / parts.MANIFEST, manifest)

    finished = work.finish(conclude)
    if finished is None:
        if world.size == 1:
            print(f"{config.out} is complete already: {len(images):,} images in {work.count:,} parts")
        return 0
    unreadable = sum(part.unreadable for part in finished)
    print(f"{config.out}: {len(images):,} images in {work.count:,} parts, {parts.MANIFEST} says what is in them")
    if unreadable:
        print(f"{unreadable} of {len(images)} images cannot be read", file=sys.stderr)
    return 1 if unreadable and world.size == 1 else 0


def _write_text(
    config: PredictConfig, form: str, predictor: Predictor, found: Sequence[Prediction], path: Path
) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        chosen = dataclasses.replace(config, format=form)
        write = _writer(chosen, stream, False, predictor.class_names, (), predictor.thresholds is not None)
        for prediction in found:
            write(prediction)


def _write_vectors(kind: str, width: int, found: Sequence[Prediction], path: Path) -> None:
    """float32 `(images, width)`, a row for each image of the part; NaN where it cannot be read."""
    rows = [getattr(prediction, kind) for prediction in found]
    with open(path, "wb") as file:
        np.save(file, np.stack([np.full(width, np.nan, np.float32) if row is None else row for row in rows]))


def _parquet() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'bigtransfer[parquet]'. Or take --format csv or jsonl."
        ) from error
    return pyarrow


def _write_parquet(
    config: PredictConfig, vectors: Sequence[str], predictor: Predictor, found: Sequence[Prediction], path: Path
) -> None:
    """The columns of the CSV form, with lists where several numbers belong together."""
    arrow = _parquet()
    top_k = min(config.top_k, len(predictor.class_names))
    tops = [prediction.top(top_k) for prediction in found]
    columns: dict[str, Any] = {"image": arrow.array([utf8(one.name) for one in found], arrow.string())}
    if predictor.thresholds is not None:
        given = [None if one.error is not None else [*map(utf8, one.labels)] for one in found]
        columns["labels"] = arrow.array(given, arrow.list_(arrow.string()))
    for k in range(top_k):
        ending = "" if k == 0 else f"_{k + 1}"
        names = [utf8(top[k][0]) if top else None for top in tops]
        columns[f"label{ending}"] = arrow.array(names, arrow.string())
        columns[f"probability{ending}"] = arrow.array([top[k][1] if top else None for top in tops], arrow.float32())
    for kind in [*(["probabilities"] if config.probabilities else []), *vectors]:
        columns[kind] = _lists(arrow, [getattr(one, kind) for one in found])
    columns["error"] = arrow.array([None if one.error is None else utf8(one.error) for one in found], arrow.string())
    arrow.parquet.write_table(arrow.table(columns), path)


def _lists(arrow: Any, rows: Sequence[np.ndarray | None]) -> Any:
    """A column of lists of float32; null where there is none."""
    ends = np.cumsum([0, *(0 if row is None else len(row) for row in rows)], dtype=np.int32)
    there = [row for row in rows if row is not None]
    values = arrow.array(np.concatenate(there) if there else np.empty(0, np.float32))
    missing = arrow.array([row is None for row in rows])
    return arrow.ListArray.from_arrays(arrow.array(ends), values, mask=missing)


def _suggested(config: PredictConfig, predictor: Predictor, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Of all predictions those of the images to label next, in that order, and then those of what cannot be read; the images are copied
    where `config` says."""
    import torch  # which exported models do without

    from bigtransfer.evals import suggest

    assert config.suggest is not None
    readable, unreadable = [], []
    for prediction in predictions:
        (readable if prediction.error is None else unreadable).append(prediction)
    if readable:
        features = np.stack([prediction.features for prediction in readable])
        probabilities = np.stack([prediction.probabilities for prediction in readable])
        several = predictor.thresholds is not None
        chosen = suggest.choose(
            torch.from_numpy(features), torch.from_numpy(probabilities), config.suggest, several=several
        )
        readable = [readable[i] for i in chosen]
    if config.suggest_to is not None:
        os.makedirs(config.suggest_to, exist_ok=True)
        for number, prediction in enumerate(readable, 1):
            name = f"{number:0{len(str(len(readable)))}d}-{os.path.basename(prediction.name)}"
            with atomic_write(os.path.join(config.suggest_to, name)) as path:
                shutil.copyfile(prediction.name, path)
    yield from readable
    yield from unreadable


def _refuse_inputs(config: PredictConfig, sources: Sequence[Any]) -> None:
    """ConfigError if an output would replace the model or one of the images."""
    model = os.path.join(config.model, "model.safetensors") if os.path.isdir(config.model) else config.model
    images = (source for source in sources if isinstance(source, str))
    refuse_replacing([("--out", config.out), ("--features", config.features)], (model, *images))
    if config.suggest_to is not None:
        for source in sources:
            if not isinstance(source, str) or not os.path.isfile(source):
                name = source if isinstance(source, str) else source[0]
                raise ConfigError(f"--suggest-to copies image files, and {name} is none; leave it out.")
        if os.path.isdir(config.suggest_to) and os.listdir(config.suggest_to):
            raise ConfigError(f"--suggest-to {config.suggest_to} is a folder with something in it. Choose another one.")


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
    top_k = min(config.top_k, max(1, len(class_names)))
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
    if not prediction.class_names:  # whose features were asked for
        rows.writerow([cell(prediction.name), "", "", ""])
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
    if not prediction.class_names:
        print(name, file=stream)
        return
    (label, probability), *others = ((line(label), p) for label, p in prediction.top(top_k))
    if len(label) > label_width:
        label = label[: label_width - 3] + "..."
    rest = ", ".join(f"{other} {p:.1%}" for other, p in others if p >= 0.0005)
    row = f"{name:<{image_width}}  {label:<{label_width}}  {probability:11.1%}"
    print(f"{row}   {rest}".rstrip(), file=stream)
