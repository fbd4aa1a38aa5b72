"""A table before it is known what its columns mean, and the choice of the columns that hold images, labels and splits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.data.layout import listed, quoted
from bigtransfer.data.tables.labels import bare
from bigtransfer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table hold what; None: the first of the usual names that the table has."""

    image: str | None = None
    """Paths, relative to the table's folder or absolute; in Parquet and `datasets` also the images themselves."""
    label: str | None = None
    """Labels; or several columns, separated by commas, one per class, which say 0 or 1."""
    split: str | None = None
    """Rows say train, val or test. None: the column "split" if there is one, else all rows are train."""
    label_separator: str | None = None
    """What stands between the labels of an image in a table of text; None: an image has one label."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows in memory, column by column."""

    path: Path
    names: tuple[str, ...]
    """Of the columns, without blanks around them; they need not differ."""
    columns: Sequence[Sequence[Any]]
    """By number, all of one length."""
    lines: Sequence[int] | None = None
    """The line of the file where each row begins, from 1. None: rows are counted, from 1."""
    header: int | None = None
    """The line that the names stand in, where that might as well be a row of a table without names."""
    split: str | None = None
    """The part of the data set that all rows are, if the file's name or folder says so."""
    features: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What `datasets` says of the columns, by name."""
    classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """The classes by number of the columns that have them declared."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def column(self, name: str) -> Sequence[Any]:
        """DataError if several columns have that name."""
        if self.names.count(name) > 1:
            raise DataError(f"{self.path} has {self.names.count(name)} columns called {name!r}. Rename all but one.")
        return self.columns[self.names.index(name)]

    def place(self, row: int) -> str:
        """Where a row is, as a person finds it."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def places(self, rows: Sequence[int]) -> str:
        """At most ten rows, for a message."""
        return listed(self.place(row) for row in rows)

    def without_header(self) -> Table:
        """The table whose first row was taken for names; its columns are called 1, 2, 3, ..."""
        assert self.header is not None and self.lines is not None
        columns = [(name, *column) for name, column in zip(self.names, self.columns, strict=True)]
        names = tuple(str(number) for number in range(1, len(columns) + 1))
        return dataclasses.replace(self, names=names, columns=columns, lines=[self.header, *self.lines], header=None)


@dataclass(frozen=True)
class Kind:
    """What a column may hold."""

    usual: tuple[str, ...]
    """Names it usually has, the likelier first; case, blanks and hyphens do not count."""
    feature: str
    """Its type in a `datasets` description."""
    flag: str
    """What names another one: a flag of the commands, or where there is none, an argument of `open_dataset`."""


IMAGE = Kind(
    (
        *("image", "img", "path", "image_path", "file", "file_name", "filename", "filepath"),
        *("img_path", "file_path", "image_file", "image_name", "img_name", "photo", "picture"),
    ),
    "Image",
    "--image-column",
)
IDENTIFIERS = ("image_id", "img_id", "id_code", "imageid", "id")
"""Names of columns that may name image files, without ending."""
LABEL = Kind(
    (
        *("label", "class", "class_name", "category", "target", "fine_label"),
        *("labels", "classes", "class_label", "label_name", "category_name", "classname", "cls", "tags"),
        *("class_id", "label_id", "category_id"),
    ),
    "ClassLabel",
    "--label-column",
)
SPLIT = Kind(("split",), "", "split_column")


def pick(asked: str | None, kind: Kind, names: Sequence[str], features: Mapping[str, Any], where: str) -> str | None:
    """The column asked for; else the only one declared to be of that kind; else the first with a usual name; else None.

    DataError if the table has no column of the name asked for."""
    if asked is not None:
        same = [name for name in names if name == asked] or [name for name in names if _alike(name) == _alike(asked)]
        if len(set(same)) == 1:
            return same[0]
        raise missing(kind, names, where, asked)
    declared = [
        name
        for name, feature in features.items()
        if name in names and isinstance(feature, dict) and kind.feature in (feature.get("_type"), _list_of(feature))
    ]
    if len(declared) == 1:
        return declared[0]
    return usual(kind.usual, names)


def usual(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the `wanted` names that is among `names`, as it is written there."""
    alike = {_alike(name): name for name in reversed(names)}
    return next((alike[name] for name in wanted if name in alike), None)


def missing(kind: Kind, names: Sequence[str], where: str, asked: str | None = None, hint: str = "") -> DataError:
    """That a table lacks a column of some kind."""
    what = f"no column {quoted(asked)}" if asked is not None else f"none of the columns {', '.join(kind.usual[:8])}"
    have = listed(name if name and name.isprintable() and len(name) <= 40 else quoted(name, 40) for name in names)
    return DataError(f"{where} has {what}; it has {have}. Name the right one with {kind.flag}.{hint}")


def _alike(name: str) -> str:
    return re.sub(r"[\s-]+", "_", bare(name).casefold())


def _list_of(feature: Mapping[str, Any]) -> str | None:
    """What a list in a `datasets` description is a list of."""
    inner = feature.get("feature")
    return inner.get("_type") if isinstance(inner, dict) else None
