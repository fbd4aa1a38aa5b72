"""Tables that list images by their paths, and tables of text that hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigtransfer.data.layout import Found, Part, listed, quoted, split_in, split_of
from bigtransfer.data.sources import Files, Store
from bigtransfer.data.tables import labels, paths
from bigtransfer.data.tables.columns import IDENTIFIERS, IMAGE, LABEL, SPLIT, Columns, Table, missing, pick, usual
from bigtransfer.data.tables.embedded import EmbeddedImages, is_embedded
from bigtransfer.data.tables.labels import Classes, Encoded, bare
from bigtransfer.errors import DataError


@dataclass(frozen=True, eq=False)
class _Read:
    """What a table says of each row."""

    table: Table
    images: Sequence[str]
    """Paths, or the images as text."""
    embedded: bool
    labels: Encoded
    column: str
    """Where the labels stand, in messages."""
    declared: tuple[str, ...] | None
    """The classes by number, if the table declares them."""
    splits: Sequence[str]
    notes: tuple[str, ...]


def found(tables: Sequence[Table], columns: Columns, where: str, root: Path | None = None) -> Found:
    """The data set that tables of paths list.

    where: how messages call it. root: the folder of the data set, in or below which the tables lie; None: that of the first.
    DataError, which names file, row and column, for all that is missing or contradictory."""
    finder = paths.Finder(tables[0].path.parent if root is None else root)
    read = [_read(table, columns, finder) for table in tables]
    embedded = read[0].embedded
    if any(one.embedded != embedded for one in read):
        raise DataError(f"Some tables of {where} hold images, others their paths. Give one of them.")
    ends = np.cumsum([len(one.images) for one in read])

    def place(row: int) -> str:
        number = int(np.searchsorted(ends, row, side="right"))
        at = read[number].table.place(row - int(ends[number]) + len(read[number].images))
        return at if len(read) == 1 else f"{read[number].table.path.name}, {at}"

    column = read[0].column if len(read) == 1 else f"{where}, labels"
    declared = read[0].declared
    if any(one.declared != declared for one in read):
        raise DataError(f"The tables of {where} declare different classes.")
    separator = columns.label_separator
    classes = labels.classes(labels.join([one.labels for one in read]), column, place, separator, declared)
    images = [image for one in read for image in one.images]
    splits = np.array([split for one in read for split in one.splits])
    _refuse_unlabelled(classes, splits, column, place)
    notes = (*(note for one in read for note in one.notes), *classes.notes)
    kept = np.ones(len(images), dtype=bool)
    store: Store
    if embedded:
        names = [f"{one.table.path.stem}/{row:06d}" for one in read for row in range(len(one.images))]
        store = EmbeddedImages(images, names, where)
    else:
        store = Files(finder.root, images)
        if repeated := _once_each(images, classes, splits, where, place, kept):
            notes += (f"{where}: {repeated} rows repeat an image with the same label; they count once.",)
    return Found(
        store, _parts(classes, splits, kept), where, declared, notes, separated=columns.label_separator is not None
    )


def _read(table: Table, columns: Columns, finder: paths.Finder) -> _Read:
    table = _with_header(table, columns, finder)
    where = str(table.path)
    image, more = _image_column(table, columns, finder)
    notes = table.notes + more
    split = pick(columns.split, SPLIT, table.names, {}, where)
    if len(table) == 0:
        raise DataError(f"{where} has no rows below its header line.")
    values = table.column(image)
    embedded = is_embedded(next((value for value in values if value), None))
    if embedded:
        images, absent = [value if isinstance(value, str) else "" for value in values], []
    else:
        images, absent, more = paths.locate(table, image, finder)
        notes += more
    encoded, column, declared, more = _labels(table, columns, {image, split} - {None})
    notes += more
    if split is not None:
        splits = _splits(table, split)
    else:
        splits = [table.split or "train"] * len(images)
        if table.split is None and not embedded:
            folders = _split_folders(images, set(absent))
            if folders:
                splits = [split_in(path.partition("/")[0]) or "train" for path in images]
                notes += (f"{where}: the folders {listed(folders)} are taken for the parts of the data set.",)
    return _Read(table, images, embedded, encoded, column, declared, splits, notes)


def _split_folders(images: Sequence[str], absent: Collection[int]) -> list[str]:
    """The folders in which all images lie, if these are several and called as splits are; else none."""
    tops: set[str] = set()
    for row, path in enumerate(images):
        top = path.partition("/")[0]
        if top not in tops and row not in absent:
            if split_in(top) is None:
                return []
            tops.add(top)
    return sorted(tops) if len(tops) > 1 else []


def _with_header(table: Table, columns: Columns, finder: paths.Finder) -> Table:
    """The table as it is, or with its first row taken for a row, where that names an image."""
    if table.header is None or usual(IMAGE.usual, table.names) is not None:
        return table
    if {columns.image, columns.label, columns.split} & set(table.names):
        return table
    if any(paths.names_image(name, finder) or is_embedded(name) for name in table.names):
        note = f"{table.path} has no header line; its columns are called 1, 2, ..."
        return dataclasses.replace(table.without_header(), notes=(*table.notes, note))
    return table


def _image_column(table: Table, columns: Columns, finder: paths.Finder) -> tuple[str, tuple[str, ...]]:
    """The column of the images: named, usual, or the only one whose values are files."""
    where = str(table.path)
    name = pick(columns.image, IMAGE, table.names, table.features, where)
    if name is not None:
        return name, ()
    names = [name for name in table.names if table.names.count(name) == 1]
    ids = usual(IDENTIFIERS, names)
    fitting = [name for name in names if any(_is_image(value, table, finder) for value in table.column(name)[:5])]
    if len(fitting) > 1 and ids in fitting:
        fitting = [ids]
    if not fitting and ids is not None:
        return ids, ()
    if len(fitting) != 1:
        raise missing(IMAGE, table.names, where)
    return fitting[0], (f"{where}: the images are taken from the column {fitting[0]!r}.",)


def _is_image(value: Any, table: Table, finder: paths.Finder) -> bool:
    """Whether a cell names an image beside the table or in a folder there, or is one."""
    if is_embedded(value):
        return True
    if isinstance(value, (bool, float)) or not isinstance(value, (str, int)):
        return False
    text = str(value).strip()
    if not text or len(text) > 4096 or "\0" in text:
        return False
    starts = ["", *finder.below(table.split or split_in(table.path.stem) or "train")]
    try:
        return any(finder.find(start + text) is not None for start in starts)
    except (DataError, UnicodeError):
        return True


def _labels(
    table: Table, columns: Columns, taken: Collection[str | None]
) -> tuple[Encoded, str, tuple[str, ...] | None, tuple[str, ...]]:
    """The labels, where they stand, the classes that are declared, and notes.

    The labels are those of the column asked for or usual; else of all others, if they say 0 or 1; else of the only other."""
    where = str(table.path)
    names, asked = table.names, columns.label
    if asked is not None and asked not in names and asked.strip(" ,") and "," in asked:
        several = [pick(name.strip(), LABEL, names, {}, where) for name in asked.split(",") if name.strip()]
        chosen = [(name, table.column(name)) for name in several if name is not None]
        encoded, notes = labels.indicators(chosen, table.place, where)
        return encoded, where, None, notes
    name, notes = pick(asked, LABEL, names, table.features, where), ()
    if name is None:
        others = [name for name in names if name not in taken and name]
        ones = [name for name in others if names.count(name) == 1 and labels.are_indicators(table.column(name))]
        if len(ones) > 1 and len(ones) == len(others):
            encoded, notes = labels.indicators([(name, table.column(name)) for name in ones], table.place, where)
            return encoded, where, None, notes
        if len(others) != 1 or len(set(map(str, table.column(others[0])))) > max(2, len(table) // 2):
            shown = ",".join(ones[:30])
            hint = f" If the columns that say 0 or 1 are the classes: {LABEL.flag} {shown}" if len(ones) > 1 else ""
            raise missing(LABEL, names, where, hint=hint)
        name = others[0]
        notes = (f"{where}: the labels are taken from the column {name!r}.",)
    return (
        labels.encode(table.column(name), lambda row: f"{where}, {table.place(row)}"),
        f"{where}, column {name!r}",
        table.classes.get(name),
        notes,
    )


def _splits(table: Table, name: str) -> list[str]:
    known: dict[Any, str | None] = {}
    result = []
    for row, value in enumerate(table.column(name)):
        key = value if isinstance(value, str) else repr(value)
        if key not in known:
            known[key] = split_of(bare(key))
        part = known[key]
        if part is None:
            raise DataError(
                f"{table.path}, {table.place(row)}: in split {quoted(value)}; only train, val (valid, validation) and test are known. "
                "If the column says something else, give it another name."
            )
        result.append(part)
    return result


def _refuse_unlabelled(classes: Classes, splits: np.ndarray, column: str, place: Callable[[int], str]) -> None:
    """DataError if rows have no label, unless images may have none, or it is those of a whole part that learning does not need."""
    if classes.counts is not None:
        return
    without = classes.codes < 0
    wrong = np.flatnonzero(without & np.isin(splits, ["train", *np.unique(splits[~without])]))
    if len(wrong):
        shown = listed(map(place, wrong.tolist()))
        raise DataError(
            f"{column}: {len(wrong)} of {len(splits)} rows have no label: {shown}. Fill them in, or remove the rows."
        )


def _once_each(
    images: Sequence[str],
    classes: Classes,
    splits: np.ndarray,
    where: str,
    place: Callable[[int], str],
    kept: np.ndarray,
) -> int:
    """Takes repeated rows out of `kept` and counts them; DataError if one image has two labels or is in two splits."""
    if len(set(images)) == len(images):
        return 0
    first: dict[str, int] = {}
    for row, image in enumerate(images):
        if (earlier := first.setdefault(image, row)) == row:
            continue
        places = f"{place(earlier)} and {place(row)}"
        mine, theirs = classes.of(row), classes.of(earlier)
        if mine != theirs:
            raise DataError(
                f"{where} lists {quoted(image, 200)} twice, with labels {_shown(theirs)} and {_shown(mine)} ({places}). Every "
                "image has one row; if it has several labels, write them into one cell, such as dog|cat, with --label-separator '|'."
            )
        if splits[row] != splits[earlier]:
            raise DataError(
                f"{where} lists {quoted(image, 200)} twice, in {splits[earlier]} and in {splits[row]} ({places}). It can be in one "
                "part only."
            )
        kept[row] = False
    return len(images) - len(first)


def _shown(names: Sequence[str]) -> str:
    return listed(map(quoted, names)) or "none"


def _parts(classes: Classes, splits: np.ndarray, kept: np.ndarray) -> dict[str, Part]:
    """The rows that are kept, by split, in the order in which the splits are met."""
    names, firsts = np.unique(splits, return_index=True)
    parts: dict[str, Part] = {}
    for split in names[np.argsort(firsts)].tolist():
        mine = kept & (splits == split)
        counts = classes.counts
        codes = classes.codes[mine if counts is None else np.repeat(mine, counts)]
        parts[split] = Part()
        parts[split].add_all(np.flatnonzero(mine), codes, classes.names, None if counts is None else counts[mine])
    return parts
