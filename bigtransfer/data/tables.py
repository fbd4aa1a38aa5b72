"""Data sets that are tables: CSV and Parquet files, and Hugging Face `datasets`, saved or from the hub."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigtransfer.data.layout import Found, Label, Part, listed, split_of, split_of_file
from bigtransfer.data.sources import ArrowRows, Files, ParquetRows, RowNumbers, arrow_table
from bigtransfer.errors import DataError
from bigtransfer.runs import atomic_write

_USUAL_IMAGE = ("image", "img", "path", "image_path", "file", "file_name", "filename", "filepath")
_USUAL_LABEL = ("label", "class", "class_name", "category", "target", "fine_label")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table hold what; None: the first of the usual names that the table has."""

    image: str | None = None
    """Paths, relative to the table's folder or absolute; in Parquet and `datasets` also the images themselves."""
    label: str | None = None
    split: str | None = None
    """Rows say train, val or test. None: the column "split" if there is one, else all rows are train."""
    label_separator: str | None = None
    """What stands between the labels of an image in a table of text; None: an image has one label."""


def text_table(path: Path, columns: Columns) -> Found:
    """A CSV or TSV file with a header line; the separator is a comma, semicolon or tab, whichever the header has most of."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error
    if len(rows) < 2:
        raise DataError(f"{path} has no rows below its header line.")
    names, rows = rows[0], rows[1:]
    for line, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise DataError(f"{path}, row {line}: {len(row)} values for {len(names)} columns ({listed(names)}).")
    return _of_paths(path, columns, {name: [row[i] for row in rows] for i, name in enumerate(names)})


CONVERT_BELOW = 2 << 30
"""Bytes of Parquet files below which they are converted into a form where any single row can be read."""


def parquet_tables(paths: Sequence[Path], columns: Columns, cache: Path) -> Found:
    """Parquet files of paths, or of the images themselves; files called train-*, validation-*, test-* are those splits.

    Images in less than `CONVERT_BELOW` bytes are converted once, into the cache; more are read where they are, whole row groups at
    a time.
    """
    parquet = _require("pyarrow.parquet", "pyarrow", "bigtransfer[parquet]")
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    try:
        schema = parquet.read_schema(paths[0])
        image = _pick(columns.image, _IMAGE, schema.names, _features(schema), where)
        if str(schema.field(image).type) in ("string", "large_string"):
            if len(paths) > 1:
                raise DataError(f"{where}: several Parquet files of paths; give one, with a split column.")
            return _of_paths(paths[0], columns, parquet.read_table(paths[0]).to_pydict())
        splits = [split_of_file(path) for path in paths]
        if sum(path.stat().st_size for path in paths) >= CONVERT_BELOW:
            label = _pick(columns.label, _LABEL, schema.names, _features(schema), where)
            tables = [parquet.read_table(path, columns=[label]) for path in paths]
            parts, names, class_names = _labelled(tables, splits, label, _features(schema))
            return Found(ParquetRows(paths, image, names, paths[0].parent), parts, where, class_names)
        files = [_as_arrow(path, cache) for path in paths]
    except (OSError, ValueError) as error:
        raise DataError(f"{where} cannot be read as Parquet: {error}") from error
    return _of_images(files, splits, _features(schema), columns, where, paths[0].parent)


def saved_dataset(folder: Path, columns: Columns) -> Found:
    """A folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    _require("pyarrow", "pyarrow", "bigtransfer[parquet]")
    try:
        if (folder / "dataset_dict.json").is_file():
            names = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            parts = {name: folder / name for name in names}
        else:
            parts = {"train": folder}
        files, splits, features = [], [], {}
        for name, part in parts.items():
            features = json.loads((part / "dataset_info.json").read_text())["features"]
            shards = json.loads((part / "state.json").read_text())["_data_files"]
            files += [part / shard["filename"] for shard in shards]
            splits += [_known_split(name, str(folder))] * len(shards)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} looks like a saved Hugging Face data set but cannot be read: {error}") from error
    return _of_images(files, splits, features, columns, str(folder), folder)


def hub_dataset(name: str, columns: Columns, cache: Path | None) -> Found:
    """`<owner>/<name>[:<configuration>][@<revision>]` from the Hugging Face hub, or a local folder `datasets` understands."""
    datasets = _require("datasets", "datasets", "bigtransfer[datasets]")
    match = re.fullmatch(r"(?P<path>[^@:]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?", name)
    if match is None:
        raise DataError(f"hf:{name} is not of the form hf:<owner>/<name>[:<configuration>][@<revision>].")
    try:
        loaded = datasets.load_dataset(
            match["path"], match["config"], revision=match["revision"], cache_dir=None if cache is None else str(cache)
        )
    except Exception as error:  # The library raises dozens of kinds, from the network's to the parsers'.
        raise DataError(f"The Hugging Face data set {name!r} cannot be loaded: {error}") from error
    files, splits = [], []
    for split, part in loaded.items():
        if split_of(str(split)) is None:
            continue  # e.g. "unsupervised"
        shards = [Path(file["filename"]) for file in part.cache_files]
        files += shards
        splits += [split_of(str(split))] * len(shards)
    if not files:
        raise DataError(f"hf:{name} has no train, validation or test split; it has {listed(map(str, loaded))}.")
    features = next(iter(loaded.values())).features.to_dict()
    return _of_images(files, splits, features, columns, f"hf:{name}", files[0].parent)


def _of_paths(path: Path, columns: Columns, table: dict[str, list[Any]]) -> Found:
    """A table of paths."""
    image_column = _pick(columns.image, _IMAGE, list(table), {}, str(path))
    label_column = _pick(columns.label, _LABEL, list(table), {}, str(path))
    split_column = columns.split or ("split" if "split" in table else None)
    images = [str(value) for value in table[image_column]]
    labels: list[Label | list[Label]] = list(table[label_column])
    if columns.label_separator is not None:
        labels = [_separated(label, columns.label_separator) for label in labels]
    splits = ["train"] * len(images)
    if split_column is not None:
        splits = table[_pick(split_column, _SPLIT, list(table), {}, str(path))]
    labels = _numbers(labels)
    seen: dict[str, Label | list[Label]] = {}
    parts: dict[str, Part] = {}
    for row, (image, label, split) in enumerate(zip(images, labels, splits, strict=True)):
        if image in seen:
            raise DataError(
                f"{path} lists {image} twice, with labels {seen[image]!r} and {label!r}. Every image has one row."
            )
        seen[image] = label
        if label == "" or label is None:
            raise DataError(f"{path} gives {image} no label.")
        part = split_of(str(split).strip())
        if part is None:
            raise DataError(
                f"{path}: {image} is in split {split!r}; only train, val (valid, validation) and test are known."
            )
        parts.setdefault(part, Part()).add(row, label)
    first = path.parent / images[0]
    if not first.is_file():
        raise DataError(
            f"{path} lists {images[0]}, but there is no file {first}. Paths are relative to the table's own folder."
        )
    return Found(Files(path.parent, images), parts, str(path))


def _of_images(
    files: Sequence[Path],
    splits: Sequence[str | None],
    features: dict[str, Any],
    columns: Columns,
    where: str,
    root: Path,
) -> Found:
    """Arrow files that hold the images themselves; `features` is the `datasets` description of the columns, {} if there is none."""
    tables = [arrow_table(file) for file in files]
    schema = tables[0].schema
    image = _pick(columns.image, _IMAGE, schema.names, features, where)
    label = _pick(columns.label, _LABEL, schema.names, features, where)
    parts, names, class_names = _labelled(tables, splits, label, features)
    return Found(ArrowRows(files, image, names, root), parts, where, class_names)


def _labelled(
    tables: Sequence[Any], splits: Sequence[str | None], label: str, features: dict[str, Any]
) -> tuple[dict[str, Part], RowNumbers, tuple[str, ...] | None]:
    """The splits of tables that lie one after another, the names of their rows, and the classes in the data's own order, if it has one."""
    pyarrow: Any = _require("pyarrow", "pyarrow", "bigtransfer[parquet]")
    compute: Any = _require("pyarrow.compute", "pyarrow", "bigtransfer[parquet]")
    class_names = _class_names(features.get(label, {}))
    parts: dict[str, Part] = {}
    firsts, starts, row = [], [], 0
    for table, split in zip(tables, splits, strict=True):
        part = parts.setdefault(split or "train", Part())
        firsts.append(f"{split or 'train'}/")
        starts.append(len(part))
        column, counts = table.column(label), None
        if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
            counts = compute.fill_null(compute.list_value_length(column), 0).to_numpy()
            column = compute.list_flatten(column)
        coded = column.combine_chunks().dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pyarrow.ChunkedArray) else coded
        values = coded.dictionary.to_pylist()
        if class_names is not None:  # -1 is how `datasets` marks a withheld label
            values = [None if value is None or value == -1 else class_names[value] for value in values]
        else:
            values = [None if value == -1 else value for value in values]
        codes = compute.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
        part.add_all(range(row, row + table.num_rows), codes, values, counts)
        row += table.num_rows
    ends = np.cumsum([0, *(table.num_rows for table in tables)], dtype=np.int64)
    return parts, RowNumbers(firsts, np.array(starts), ends), class_names


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The classes that `datasets` declares for a column: a ClassLabel, or a list of those in any of the forms that its versions write."""
    while isinstance(feature, (dict, list)):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif "names" in feature:
            return tuple(feature["names"]) if feature["names"] else None
        else:
            feature = feature.get("feature")
    return None


def _separated(text: Any, separator: str) -> list[Label]:
    return [part.strip() for part in str(text).split(separator) if part.strip()] if text is not None else []


def _numbers(labels: list[Label | list[Label]]) -> list[Label | list[Label]]:
    """The labels as numbers, if all of them are written as such."""
    flat = [one for label in labels for one in (label if isinstance(label, list) else [label])]
    if not all(isinstance(one, str) and re.fullmatch(r"0|[1-9]\d*", one) for one in flat):
        return labels
    return [[int(str(one)) for one in label] if isinstance(label, list) else int(str(label)) for label in labels]


@dataclass(frozen=True)
class _Kind:
    usual: tuple[str, ...]
    feature: str
    """Its type in a `datasets` description."""
    flag: str


_IMAGE = _Kind(_USUAL_IMAGE, "Image", "--image-column")
_LABEL = _Kind(_USUAL_LABEL, "ClassLabel", "--label-column")
_SPLIT = _Kind((), "", "--split-column")


def _list_of(feature: dict[str, Any]) -> str | None:
    """What a list in a `datasets` description is a list of."""
    inner = feature.get("feature")
    return inner.get("_type") if isinstance(inner, dict) else None


def _pick(asked: str | None, kind: _Kind, names: Sequence[str], features: dict[str, Any], where: str) -> str:
    """The column asked for; else the only one declared to be of that kind; else the first with a usual name. DataError if none."""
    if asked is None:
        declared = [
            name
            for name, feature in features.items()
            if isinstance(feature, dict) and kind.feature in (feature.get("_type"), _list_of(feature))
        ]
        usual = [name for name in kind.usual if name in names]
        if len(declared) == 1 or usual:
            return declared[0] if len(declared) == 1 else usual[0]
    elif asked in names:
        return asked
    what = f"no column {asked!r}" if asked else f"none of the columns {', '.join(kind.usual)}"
    raise DataError(f"{where} has {what}; it has {listed(names)}. Name the right one with {kind.flag}.")


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` writes into a Parquet file about its columns, {} if nothing."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError):
        return {}


def _known_split(name: str, where: str) -> str:
    split = split_of(name)
    if split is None:
        raise DataError(f"{where} has a split called {name!r}; only train, validation and test are known.")
    return split


def _as_arrow(path: Path, cache: Path) -> Path:
    """The Parquet file as an Arrow stream in the cache, where single rows can be read; written the first time only."""
    import pyarrow
    import pyarrow.parquet

    file = cache / "arrow" / f"{fingerprint(path)}.arrow"
    if not file.exists():
        with (
            atomic_write(file) as temporary,
            pyarrow.parquet.ParquetFile(path) as source,
            pyarrow.OSFile(str(temporary), "wb") as sink,
            pyarrow.ipc.new_stream(sink, source.schema_arrow) as stream,
        ):
            for batch in source.iter_batches(batch_size=256):
                stream.write_batch(batch)
    return file


def fingerprint(path: Path) -> str:
    """Changes whenever the file is another one: its place, size and time of change."""
    facts = path.stat()
    key = f"{os.path.realpath(path)}\0{facts.st_size}\0{facts.st_mtime_ns}"
    return hashlib.sha256(os.fsencode(key)).hexdigest()[:32]


def _require(module: str, package: str, extra: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise DataError(f"This kind of data set needs the package {package}: pip install '{extra}'") from error
