"""Tables in Arrow's forms: Parquet files, of paths or of the images themselves, and what `datasets` writes into them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bigtransfer import records
from bigtransfer.data.layout import Found, Part, listed, quoted, split_of_file
from bigtransfer.data.sources import ArrowRows, ParquetRows, RowNumbers, Store, arrow_table
from bigtransfer.data.tables import labels, listing
from bigtransfer.data.tables.columns import IMAGE, LABEL, Columns, Table, missing, pick
from bigtransfer.data.tables.labels import Encoded
from bigtransfer.errors import DataError
from bigtransfer.runs import atomic_write

CONVERT_BELOW = 2 << 30
"""Bytes of Parquet files below which they are converted into a form where any single row can be read."""


@contextlib.contextmanager
def reading(where: str, what: str = "as Parquet") -> Iterator[None]:
    """Whatever pyarrow raises on foreign files, as a DataError: its own kinds, and those of Python that they are made of."""
    pyarrow = require("pyarrow", "pyarrow", "bigtransfer[parquet]")
    try:
        yield
    except (pyarrow.ArrowException, OSError, ArithmeticError, LookupError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{where} cannot be read {what}: {str(error)[:500] or type(error).__name__}") from error
    except NotImplementedError as error:
        raise DataError(f"{where} cannot be read {what}: {error}") from error


def parquet_tables(paths: Sequence[Path], columns: Columns, cache: Path) -> Found:
    """Parquet files of paths, or of the images themselves; files called train-*, validation-*, test-* are those splits.

    Images in less than `CONVERT_BELOW` bytes are converted once, into the cache; more are read where they are, whole row groups at
    a time.
    """
    parquet = require("pyarrow.parquet", "pyarrow", "bigtransfer[parquet]")
    where = str(paths[0] if len(paths) == 1 else paths[0].parent)
    with reading(where):
        schema = parquet.read_schema(paths[0])
        features = _features(schema, where)
        image = _image_column(columns, schema, features, where)
        if image is None or _is_text(schema.field(image).type):
            return _paths(paths, columns, where)
        splits = [split_of_file(path) for path in paths]
        _check_images([parquet.read_schema(path) for path in paths], paths, image)
        if sum(path.stat().st_size for path in paths) < CONVERT_BELOW:
            files = [_as_arrow(path, cache) for path in paths]
            return of_images(files, splits, features, columns, where, paths[0].parent)
        label, root = _label_column(columns, schema, features, where), paths[0].parent
        tables = [parquet.read_table(path, columns=[label]) for path in paths]
        return _labelled(
            tables, splits, label, features, columns, where, lambda names: ParquetRows(paths, image, names, root)
        )


class _Column(Sequence[Any]):
    """A column of a Parquet file, read when its first value is asked for."""

    def __init__(self, path: Path, name: str, rows: int) -> None:
        self._path, self._name, self._rows = path, name, rows

    @functools.cached_property
    def _values(self) -> list[Any]:
        parquet = require("pyarrow.parquet", "pyarrow", "bigtransfer[parquet]")
        with reading(f"{self._path}, column {self._name!r},"):
            return parquet.read_table(self._path, columns=[self._name]).column(0).to_pylist()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, i: Any) -> Any:
        return self._values[i]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)


def table_of_paths(path: Path, split: str | None = None) -> Table:
    """A Parquet file that lists images by their paths."""
    parquet = require("pyarrow.parquet", "pyarrow", "bigtransfer[parquet]")
    with reading(str(path)):
        schema = parquet.read_schema(path)
        rows = parquet.read_metadata(path).num_rows
    features = _features(schema, str(path))
    classes = {name: _class_names(feature, f"{path}, column {name!r}") for name, feature in features.items()}
    return Table(
        path=path,
        names=tuple(schema.names),
        columns=[_Column(path, name, rows) for name in schema.names],
        split=split,
        features=features,
        classes={name: found for name, found in classes.items() if found is not None},
    )


def _paths(paths: Sequence[Path], columns: Columns, where: str) -> Found:
    if len({path.parent for path in paths}) > 1:
        raise DataError(f"{where}: Parquet files of paths in several folders. Give those of one folder.")
    tables = [table_of_paths(path, split_of_file(path) if len(paths) > 1 else None) for path in paths]
    return listing.found(tables, columns, where)


def of_images(
    files: Sequence[Path],
    splits: Sequence[str | None],
    features: Mapping[str, Any],
    columns: Columns,
    where: str,
    root: Path,
) -> Found:
    """Arrow files that hold the images themselves; `features` is the `datasets` description of the columns, {} if there is none."""
    tables = [arrow_table(file) for file in files]
    for table in tables:
        table.validate(full=True)  # offsets beyond the file would end this process, and those of the workers
    schema = tables[0].schema
    image = _image_column(columns, schema, features, where)
    if image is None:
        raise missing(IMAGE, schema.names, where)
    _check_images([table.schema for table in tables], files, image)
    label = _label_column(columns, schema, features, where)
    return _labelled(
        tables, splits, label, features, columns, where, lambda names: ArrowRows(files, image, names, root)
    )


def _image_column(columns: Columns, schema: Any, features: Mapping[str, Any], where: str) -> str | None:
    """The column of images: named, declared or usual, else the only one that can hold encoded images; None if there is none."""
    name = pick(columns.image, IMAGE, schema.names, features, where)
    if name is None:
        bulky = [field.name for field in schema if _is_encoded(field.type)]
        name = bulky[0] if len(bulky) == 1 else None
    if name is not None and schema.names.count(name) > 1:
        raise DataError(f"{where} has several columns called {name!r}. Rename all but one.")
    return name


def _label_column(columns: Columns, schema: Any, features: Mapping[str, Any], where: str) -> str:
    name = pick(columns.label, LABEL, schema.names, features, where)
    if name is None:
        raise missing(LABEL, schema.names, where)
    if schema.names.count(name) > 1:
        raise DataError(f"{where} has several columns called {name!r}. Rename all but one.")
    return name


def _check_images(schemas: Sequence[Any], files: Sequence[Path], image: str) -> None:
    for schema, file in zip(schemas, files, strict=True):
        if image not in schema.names:
            raise DataError(
                f"{file} has no column {image!r}, which other files of the set have; it has {listed(schema.names)}."
            )
        kind = schema.field(image).type
        if not _is_encoded(kind):
            raise DataError(
                f"{file}: the column {image!r} is of the type {str(kind)[:80]}; images are read from encoded bytes, or from Hugging "
                "Face's form {bytes, path}. Another column: --image-column."
            )


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view" or types.is_integer(kind)


def _is_encoded(kind: Any) -> bool:
    """Whether a column of that type can hold encoded images."""
    import pyarrow.types as types

    if types.is_struct(kind):
        names = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return ("bytes" in names and _is_bytes(names["bytes"])) or (
            "path" in names and _is_text(names["path"]) and not types.is_integer(names["path"])
        )
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or str(kind) == "binary_view"
        or types.is_null(kind)
    )


def _labelled(
    tables: Sequence[Any],
    splits: Sequence[str | None],
    label: str,
    features: Mapping[str, Any],
    columns: Columns,
    where: str,
    store: Callable[[RowNumbers], Store],
) -> Found:
    """The data set of tables that lie one after another, labelled by their column `label`; `store` makes its images from their names."""
    column = f"{where}, column {label!r}"
    class_names = _class_names(features.get(label, {}), column)
    for table in tables:
        if label not in table.schema.names:
            raise DataError(f"A file of {where} has no column {label!r}; it has {listed(table.schema.names)}.")
    ends = np.cumsum([0, *(table.num_rows for table in tables)], dtype=np.int64)
    if ends[-1] == 0:
        raise DataError(f"{where} has no rows.")
    encoded = labels.join([_encoded(table.column(label), column) for table in tables])
    separator = columns.label_separator
    found = labels.classes(encoded, column, lambda row: f"row {row + 1}", separator, class_names)
    parts: dict[str, Part] = {}
    firsts, starts = [], []
    for start, end, split in zip(ends[:-1].tolist(), ends[1:].tolist(), splits, strict=True):
        part = parts.setdefault(split or "train", Part())
        firsts.append(f"{split or 'train'}/")
        starts.append(len(part))
        codes = found.codes[found.ends[start] : found.ends[end]]
        part.add_all(range(start, end), codes, found.names, None if found.counts is None else found.counts[start:end])
    for split, part in parts.items():
        if len(part.unlabelled) and not part.several and part.values:
            shown = listed(f"row {row + 1}" for row in part.rows[part.unlabelled].tolist())
            raise DataError(
                f"{column}: {len(part.unlabelled)} of {len(part)} rows of {split} have no label: {shown}. Fill them in, or remove the rows."
            )
    names = RowNumbers(firsts, np.array(starts), ends)
    return Found(store(names), parts, where, class_names, found.notes, separated=separator is not None)


def _encoded(column: Any, where: str) -> Encoded:
    """A label column, of single values or lists, by its distinct values."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.types as types

    compute: Any = pyarrow.compute
    counts = None
    kind = column.type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        counts = compute.fill_null(compute.list_value_length(column), 0).to_numpy()
        column = compute.list_flatten(column)
        kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_nested(kind) or types.is_temporal(kind):
        raise DataError(f"{where} is of the type {str(kind)[:80]}: its values are neither words nor numbers.")
    if types.is_null(kind):
        return Encoded((), np.full(len(column), -1, dtype=np.int64), counts)
    if types.is_float16(kind):
        column = column.cast(pyarrow.float32())  # older versions have no dictionaries of the other
    coded = column.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pyarrow.ChunkedArray) else coded
    codes = compute.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)
    return Encoded(coded.dictionary.to_pylist(), codes.astype(np.int64), counts)


class _ClassLabel(msgspec.Struct):
    names: list[str] | None


def _class_names(feature: Any, where: str) -> tuple[str, ...] | None:
    """The classes that `datasets` declares for a column: a ClassLabel, or a list of those in any of the forms that its versions write."""
    while isinstance(feature, (dict, list)):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif "names" in feature:
            names = tuple(records.convert(feature, _ClassLabel, where, DataError).names or ())
            if len(set(names)) < len(names):
                twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
                raise DataError(f"{where} declares several classes of the same name: {listed(map(quoted, twice))}.")
            return names or None
        else:
            feature = feature.get("feature")
    return None


class _Info(msgspec.Struct):
    features: dict[str, Any] = {}


class _HuggingFace(msgspec.Struct):
    info: _Info = msgspec.field(default_factory=_Info)


def _features(schema: Any, where: str) -> dict[str, Any]:
    """What `datasets` writes into a Parquet file about its columns, {} if nothing."""
    text = (schema.metadata or {}).get(b"huggingface")
    return (
        {}
        if text is None
        else records.decode(text, _HuggingFace, f"{where}, metadata huggingface", DataError).info.features
    )


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


def require(module: str, package: str, extra: str) -> Any:
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise DataError(f"This kind of data set needs the package {package}: pip install '{extra}'") from error
