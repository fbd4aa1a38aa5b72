"""The one road from what a data set's files say to `Splits`: every form ends as a `Found`, and `build` checks and numbers it."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtransfer.data.sources import ImageSet, Splits, Store
from bigtransfer.errors import DataError

Label = str | int | None
"""The name of a class; an int where the data number their classes; None: unlabelled."""

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_of(word: str) -> str | None:
    """train, val or test for the words people use for them, in any case; None for any other word."""
    return next((split for split, words in _SPLITS.items() if word.lower() in words), None)


def split_of_file(path: Path) -> str:
    """The split a file is named after (`train-00000-of-00002.parquet`, `val_3.tar`), or else its folder, or else train."""
    return split_of(re.split(r"[-_.\d]", path.name)[0]) or split_of(path.parent.name) or "train"


class Part:
    """One split: rows of the store and their classes, side by side, in some sixteen bytes an image."""

    def __init__(self) -> None:
        self.values: dict[Label, int] = {}
        """Every class that occurs -> its code."""
        self._rows, self._codes, self._counts = array("q"), array("i"), array("i")
        self.several = False
        """Whether images have lists of classes, though they may be lists of one."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, name: Label | list[Label]) -> None:
        """One image, with its class, or all its classes."""
        self.several |= isinstance(name, list)
        names = [one for one in (name if isinstance(name, list) else [name]) if one is not None]
        self._rows.append(row)
        self._counts.append(len(names))
        self._codes.extend(self.values.setdefault(one, len(self.values)) for one in names)

    def add_all(
        self, rows: range | np.ndarray, codes: np.ndarray, values: Sequence[Label], counts: np.ndarray | None = None
    ) -> None:
        """Many images: `values[codes[j]]` are their classes (code -1: none), one each; or `counts[i]` of them the i-th image's."""
        self.several |= counts is not None
        counts = np.ones(len(rows), np.int32) if counts is None else counts
        known = np.full(len(values) + 1, -1, dtype=np.int32)  # code -1 finds the last
        for code in np.unique(codes[codes >= 0]):
            if (value := values[code]) is not None:
                known[code] = self.values.setdefault(value, len(self.values))
        flat = known[codes]
        owners = np.repeat(np.arange(len(rows)), counts)[flat >= 0]
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows
        self._rows.frombytes(numbers.astype(np.int64).tobytes())
        self._counts.frombytes(np.bincount(owners, minlength=len(rows)).astype(np.int32).tobytes())
        self._codes.frombytes(flat[flat >= 0].tobytes())

    @property
    def rows(self) -> np.ndarray:
        """int64 (n,)."""
        return np.frombuffer(self._rows, np.int64)

    @property
    def unlabelled(self) -> np.ndarray:
        """Positions of the images without a class."""
        return np.flatnonzero(np.frombuffer(self._counts, np.int32) == 0)

    def labels(self, number: Mapping[str, int]) -> np.ndarray:
        """The classes by their numbers: int64 (n,), where every image must have one; or, if `several`, (n, k) in ascending order without
        repetition, then -1."""
        known = np.array([number[str(value)] for value in self.values], dtype=np.int64)
        flat = known[np.frombuffer(self._codes, np.int32)]
        if not self.several:
            return flat
        counts = np.frombuffer(self._counts, np.int32)
        starts = np.cumsum(counts) - counts
        beyond = len(number)
        table = np.full((len(self), max(1, counts.max(initial=0))), beyond, dtype=np.int64)
        table[np.repeat(np.arange(len(self)), counts), np.arange(len(flat)) - np.repeat(starts, counts)] = flat
        table.sort(axis=1)
        table[:, 1:][table[:, 1:] == table[:, :-1]] = beyond
        table.sort(axis=1)
        table[table == beyond] = -1
        return table[:, : max(1, (table >= 0).sum(axis=1).max(initial=0))]


@dataclass
class Found:
    """What a data set's files say, before its classes are numbered."""

    store: Store
    parts: dict[str, Part]
    """By split."""
    where: str
    """The data set in messages."""
    class_names: tuple[str, ...] | None = None
    """The order the data set itself gives its classes, if it does."""
    notes: tuple[str, ...] = ()
    separated: bool = False
    """Whether `--label-separator` divides the labels."""


def build(found: Found, class_names: Sequence[str] | None, channels: int) -> Splits:
    """Checks the classes of all splits against one another and numbers them.

    The numbers follow `class_names` if given, else the data set's own order, else the names of the training classes, sorted by
    code point as Python sorts strings (but ints by value).
    """
    if "train" not in found.parts:
        have = listed(found.parts)
        raise DataError(f"{found.where} has {have} but no train split. To use one part alone, give that part itself.")
    given = class_names if class_names is not None else found.class_names
    if given is None:
        present = found.parts["train"].values
        numbered = all(isinstance(name, int) for name in present)
        ordered = [str(name) for name in sorted(present, key=None if numbered else str)]  # pyright: ignore
        if len(ordered) == 1:
            raise DataError(
                f"{found.where} has one class only, {ordered[0]!r}: there is nothing to tell apart. "
                "Give a folder with one sub-folder, or a table with one label, per class."
            )
        names, reference = tuple(ordered), "train"
    else:
        names, reference = tuple(given), "the list of classes"
    notes = found.notes
    number = {name: label for label, name in enumerate(names)}
    several = any(part.several for part in found.parts.values())
    sets = {}
    for split, part in found.parts.items():
        of_part = {str(name) for name in part.values}
        extra, missing = sorted(of_part - set(names)), sorted(set(names) - of_part)
        if extra:
            also = f" and lacks {listed(missing)}" if missing and class_names is None else ""
            raise DataError(
                f"{found.where}: {split} has classes that are not in {reference}: {listed(extra)}{also}. "
                "Every split must have the same class names; correct or remove the odd ones."
            )
        if missing and of_part and class_names is None:
            notes += (f"{split} has no images of {listed(missing)}.",)
        rows, labels, unlabelled = part.rows, None, part.unlabelled
        if not len(unlabelled):
            labels = part.labels(number)
        elif part.several:
            labels = np.delete(part.labels(number), unlabelled, axis=0)
            rows = np.delete(rows, unlabelled)
            notes += (f"{len(unlabelled)} images of {split} have an empty list of labels; they are left out.",)
        elif of_part:
            raise DataError(f"{found.where}: {len(unlabelled)} images of {split} have no label, the others do.")
        if several and labels is not None and labels.ndim == 1:
            labels = labels[:, None]
        sets[split] = ImageSet(found.store, rows, labels, () if labels is None else names, channels)
    if several:
        width = max(images.labels.shape[1] for images in sets.values() if images.labels is not None)
        for split, images in sets.items():
            if images.labels is not None:
                padding = ((0, 0), (0, width - images.labels.shape[1]))
                padded = np.pad(images.labels, padding, constant_values=-1)
                sets[split] = dataclasses.replace(images, labels=padded)
    return Splits(sets["train"], sets.get("val"), sets.get("test"), notes)


def from_paths(
    store: Store, paths: Sequence[str], folders: Collection[str], ignored: Counter[str], where: str
) -> Found:
    """Splits and classes read off relative paths: `[<split>/]<class>/.../<file>`, or bare files.

    `folders`: the top-level folders, with or without images. `ignored`: files passed over, counted by kind.
    """
    notes = ()
    if ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(6))
        notes = (f"Passed over what is not an image in {where}: {kinds}.",)
    if not paths:
        raise DataError(f"There are no images in {where}. {' '.join(notes)}".rstrip())
    tops = {path.partition("/")[0] for path in paths if "/" in path}
    parts: dict[str, Part] = {}
    if _splits_are_on_top(paths, tops, where):
        for row, path in enumerate(paths):
            top, _, rest = path.partition("/")
            parts.setdefault(split_of(top) or "train", Part()).add(row, rest.partition("/")[0] if "/" in rest else None)
    else:
        empty = sorted(set(folders) - tops)
        if empty and tops:
            raise DataError(f"Class folders of {where} without an image: {listed(empty)}. Fill or remove them.")
        parts["train"] = Part()
        for row, path in enumerate(paths):
            parts["train"].add(row, path.partition("/")[0] if "/" in path else None)
    for part in parts.values():
        if part.values and len(part.unlabelled):
            loose = paths[int(part.rows[part.unlabelled[0]])]
            raise DataError(
                f"In {where} images lie beside folders of images, such as {loose}. Put every image into the folder of its class; "
                "if there are no classes, put all images into one folder."
            )
    if len(tops) == 1 and len(parts) == 1 and split_of(*tops) is None and all(path.count("/") > 1 for path in paths):
        raise DataError(f"{where} holds only the folder {next(iter(tops))}. Give that folder instead.")
    return Found(store, parts, where, notes=notes)


def _splits_are_on_top(paths: Sequence[str], tops: set[str], where: str) -> bool:
    """Whether the top-level folders are splits, not classes; DataError if they are a mixture."""
    splits = sorted(top for top in tops if split_of(top))
    others = sorted(tops - set(splits))
    if not splits or (others and not any(path.count("/") > 1 for path in paths if path.partition("/")[0] in splits)):
        return False  # e.g. classes called "train" and "car"
    if others:
        raise DataError(
            f"{where} has the split folders {listed(splits)} beside {listed(others)}. Move the others away; "
            f"or, if all of them are classes, rename {listed(splits)}."
        )
    if len({split_of(top) for top in splits}) < len(splits):
        raise DataError(f"{where} has two folders for one split: {listed(splits)}. Keep one of them.")
    return True


def listed(names: Iterable[str]) -> str:
    """At most ten names, joined for a message."""
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def quoted(value: object, length: int = 60) -> str:
    """A value for a message: blanks and invisible characters can be seen, and no more than `length` characters are shown."""
    if isinstance(value, str):
        # Accents written as characters of their own look like the letters that have them.
        shown = (repr if unicodedata.is_normalized("NFC", value[:length]) else ascii)(value[:length])
        return shown if len(value) <= length else f"{shown}... ({len(value):,} characters)"
    try:
        text = repr(value)
    except Exception:  # numbers too long for Python to write, and what else foreign data hold
        text = f"a value of the type {type(value).__name__}"
    return text if len(text) <= length else f"{text[:length]}..."
