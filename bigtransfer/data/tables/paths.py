"""From what a table writes for an image to the file that is meant."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from bigtransfer import fetch
from bigtransfer.data import images
from bigtransfer.data.layout import listed, quoted, split_in
from bigtransfer.data.tables.columns import Table
from bigtransfer.errors import ConfigError, DataError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|file:/", re.IGNORECASE)
_SAMPLE = 50
"""Rows by which the folder of a table's images is found."""
_FOLDERS = 200
"""Folders that are searched for them."""


class _Folder:
    """The files of a folder, by their names, and by what people take for their names."""

    def __init__(self, path: str, name: str) -> None:
        """name: the folder relative to the data set's, "" or ending with a slash."""
        self.path, self.name = path, name
        try:
            with os.scandir(path) as entries:
                self.files: frozenset[str] | None = frozenset(entry.name for entry in entries if entry.is_file())
        except OSError:  # It may be allowed to open its files but not to list them.
            self.files = None
        self._stems: dict[str, list[str]] | None = None
        self._loose: dict[str, list[str]] = {}

    def has(self, name: str) -> bool:
        if self.files is None:
            return os.path.isfile(os.path.join(self.path, name))
        return name in self.files

    def called(self, stem: str) -> Sequence[str]:
        """The images whose name without its ending is `stem`."""
        self._index()
        assert self._stems is not None
        return self._stems.get(stem, ())

    def nearly(self, name: str) -> Sequence[str]:
        """The files whose name differs in case, or in Unicode's form, only."""
        self._index()
        return self._loose.get(_loose(name), ())

    def _index(self) -> None:
        if self._stems is None:
            self._stems, endings = {}, images.extensions()
            for file in sorted(self.files or ()):
                stem, ending = os.path.splitext(file)
                self._loose.setdefault(_loose(file), []).append(file)
                if ending.lower() in endings:
                    self._stems.setdefault(stem, []).append(file)


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class Finder:
    """Finds the files of a table's images: each file under one name, however it is written."""

    def __init__(self, root: Path) -> None:
        """root: the folder to which paths are relative."""
        self.root = root
        self.differences: Counter[str] = Counter()
        """How often a file was found under a name that differs in some way from what the table says."""
        self._folders: dict[str, _Folder | None] = {}
        self._first: dict[tuple[int, int], _Folder] = {}

    def find(self, text: str) -> str | None:
        """The path of the file, relative to the root or absolute; None if there is none.

        DataError, with the reason only, if two files may be meant."""
        head, slash, name = text.rpartition("/")
        folder = self._folder(head + slash)
        if folder is not None and folder.files is not None and name in folder.files:
            return folder.name + name
        for writing, how in _writings(text):
            head, slash, name = writing.rpartition("/")
            folder = self._folder(head + slash)
            if folder is None or not name:
                continue
            if folder.has(name):
                return self._differs(how, folder.name + name)
            without_ending = os.path.splitext(name)[1].lower() not in images.extensions()
            for found, difference in (
                (folder.called(name) if without_ending else (), "ending"),
                (folder.nearly(name), "case"),
            ):
                if len(found) > 1:
                    raise DataError(f"{quoted(text)} may be any of {listed(folder.name + file for file in found)}.")
                if found:
                    return self._differs(difference, folder.name + found[0])
        return None

    def _differs(self, how: str, path: str) -> str:
        if how:
            self.differences[how] += 1
        return path

    def _folder(self, name: str) -> _Folder | None:
        if name not in self._folders:
            self._folders[name] = self._open(name)
        return self._folders[name]

    def _open(self, name: str) -> _Folder | None:
        path = os.path.join(self.root, name)
        try:
            facts = os.stat(path)
        except (OSError, ValueError):
            return self._nearly(name)
        identity = (facts.st_dev, facts.st_ino)
        if identity not in self._first:
            plain = os.path.normpath(name)
            shown = "" if plain == "." else plain.rstrip("/") + "/"
            self._first[identity] = _Folder(path, shown)
        return self._first[identity]

    def _nearly(self, name: str) -> _Folder | None:
        """The folder whose path differs in case, or in Unicode's form, only."""
        head, slash, last = name.rstrip("/").rpartition("/")
        above = self._folder(head + slash) if last else None
        if above is None:
            return None
        try:
            with os.scandir(above.path) as entries:
                near = [entry.name for entry in entries if _loose(entry.name) == _loose(last) and entry.is_dir()]
        except OSError:
            return None
        if len(near) != 1:
            return None
        self.differences["case"] += 1
        return self._folder(f"{above.name}{near[0]}/")

    def below(self, split: str) -> list[str]:
        """Folders in the root, and in these, that may hold the images of a split: none that is called after another split."""
        found: list[str] = []
        for depth in (1, 2):
            for top in [""] if depth == 1 else list(found):
                try:
                    with os.scandir(os.path.join(self.root, top)) as entries:
                        names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
                except OSError:
                    continue
                found += [f"{top}{name}/" for name in names if split_in(name) in (None, split)]
        return found[:_FOLDERS]


def _writings(text: str) -> Iterator[tuple[str, str]]:
    """What a path may mean, as it stands first, each with how that differs."""
    yield text, ""
    if "\\" in text:
        yield text.replace("\\", "/"), "backslash"
    if "%" in text:
        yield unquote(text), "percent"


def texts(table: Table, name: str) -> list[str]:
    """What a table's column says for the images, as text; DataError names the rows that say nothing, or an address."""
    result = []
    nothing = []
    for row, value in enumerate(table.column(name)):
        text = value if isinstance(value, str) else _as_text(value)
        if text is None:
            raise DataError(
                f"{table.path}, {table.place(row)}: the image {quoted(value)} is neither a path nor a number."
            )
        text = text.strip() if text.isascii() else text.strip().strip("\u200b\u2060\ufeff")
        if not text or (not isinstance(value, str) and text == "nan"):
            nothing.append(row)
        if ":" in text and _ADDRESS.match(text):
            text = _local(text, table, row)
        elif "\0" in text or not (text.isascii() or _encodable(text)):
            raise DataError(f"{table.path}, {table.place(row)}: {quoted(text)} cannot be the name of a file.")
        result.append(text)
    if nothing:
        raise DataError(
            f"{table.path}: {len(nothing)} of {len(result)} rows name no image in the column {name!r}: {table.places(nothing)}."
        )
    return result


def _as_text(value: Any) -> str | None:
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _local(text: str, table: Table, row: int) -> str:
    """The path in a file: address; DataError for any other address."""
    try:
        path = fetch.path_of(text)
    except ConfigError as error:
        raise DataError(f"{table.path}, {table.place(row)}: {error}") from error
    if path == text:
        raise DataError(
            f"{table.path}, {table.place(row)}: {quoted(text)} is an address. A table names image files of this machine: download the "
            "images first."
        )
    return path


def locate(table: Table, column: str, finder: Finder) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The path of each row's image; the rows whose image is missing, their paths as the table says; and notes.

    Where the paths lead nowhere as they stand, folders beside the table are searched, and names without ending are completed.
    DataError if not one image is there."""
    names = texts(table, column)
    if table.path.parent != finder.root:
        folder = table.path.parent.relative_to(finder.root).as_posix()
        names = [os.path.join(folder, name) for name in names]
    where = str(table.path)
    starts = _starts(names, finder, table.split or split_in(table.path.stem) or "train")
    finder.differences.clear()
    paths, absent = [], []
    for row, name in enumerate(names):
        try:
            path = finder.find(name) if starts == [""] else _in_one_of(starts, name, finder)
        except DataError as error:
            raise DataError(f"{where}, {table.place(row)}: {error}") from error
        if path is None:
            absent.append(row)
        paths.append(name if path is None else path)
    if len(absent) == len(paths):
        raise DataError(_none_there(table, names, finder))
    notes: tuple[str, ...] = ()
    if starts != [""]:
        notes += (f"{where}: the images are looked for in {listed(starts)}.",)
    for how, count in finder.differences.items():
        notes += (f"{where}: {count} {_DIFFERENCES[how]}.",)
    if absent:
        shown = listed(f"{quoted(names[row])} ({table.place(row)})" for row in absent)
        notes += (f"{where} lists {len(absent)} of {len(paths)} images that do not exist: {shown}.",)
    return paths, absent, notes


def _in_one_of(starts: Sequence[str], name: str, finder: Finder) -> str | None:
    """As `Finder.find`, in several folders."""
    found = {path for start in starts if (path := finder.find(start + name)) is not None}
    if len(found) > 1:
        raise DataError(f"{quoted(name)} may be any of {listed(sorted(found))}.")
    return next(iter(found), None)


_DIFFERENCES = {
    "ending": "images are named without their ending",
    "case": "paths differ from the names of files and folders in upper and lower case or in the form of their letters",
    "backslash": "paths are written with \\ for /",
    "percent": "paths are percent-encoded",
}


def _starts(names: Sequence[str], finder: Finder, split: str) -> list[str]:
    """The folders in which the images are: "" for the table's own, if it has most; else the one that has most, or all that have some."""
    sample = [names[len(names) * i // min(_SAMPLE, len(names))] for i in range(min(_SAMPLE, len(names)))]

    def count(start: str) -> int:
        hits = 0
        for name in sample:
            try:
                hits += finder.find(start + name) is not None
            except DataError:
                hits += 1
        return hits

    own = count("")
    if 2 * own >= len(sample) or any(os.path.isabs(name) for name in sample):
        return [""]
    found = {start: hits for start in finder.below(split) if (hits := count(start))}
    if not found or max(found.values()) <= own:
        return [""]
    best = max(found, key=lambda start: found[start])
    return [best] if found[best] == len(sample) else ([""] if own else []) + list(found)


def names_image(cell: str, finder: Finder) -> bool:
    """Whether a cell of what should be a header is the name of an image."""
    if not cell or "\0" in cell or not _encodable(cell):
        return False
    if os.path.splitext(cell)[1].lower() in images.extensions():
        return True
    try:
        return finder.find(cell) is not None
    except DataError:
        return True


def _none_there(table: Table, names: Sequence[str], finder: Finder) -> str:
    first = names[0]
    path = finder.root / first
    hint = ""
    if re.match(r"[A-Za-z]:[\\/]", first):
        hint = " It is a path of another, Windows, computer: write paths relative to the table."
    elif os.path.splitext(first)[1].lower() not in images.extensions():
        hint = " Names without ending are looked for in that folder and in those below it."
    return (
        f"{table.path} lists {quoted(first, 200)}, but there is no file {path if len(str(path)) < 300 else 'of that name'}, nor one for "
        f"any other of its {len(names)} rows. Paths are relative to the table's own folder.{hint}"
    )
