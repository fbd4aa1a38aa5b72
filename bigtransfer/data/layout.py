"""The one road from what a data set's files say to `Splits`: every form ends as a `Found`, and `build` checks and numbers it."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtransfer import terminal
from bigtransfer.data.sources import ImageSet, Splits, Store
from bigtransfer.errors import DataError

Label = str | int | None
"""The name of a class; an int where the data number their classes; None: unlabelled."""

_SPLITS = {
    "train": ("train", "training", "trainval", "trn", "entrenamiento", "entrainement", "apprentissage", "treino"),
    "val": ("val", "valid", "validation", "dev", "eval", "evaluation", "validierung", "validacion", "validacao"),
    "test": ("test", "testing", "tst", "prueba", "teste"),
}
_SAYS_NOTHING = (
    *("data", "dataset", "set", "split", "part", "folder", "files?"),
    *("images?", "imgs?", "photos?", "pictures?", "pics?", "jpe?gs?", "pngs?"),
)
"""Words that stand beside those of the splits, and for folders around everything."""
_SPLIT_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_GLUED = re.compile(
    f"(?:{'|'.join(_SAYS_NOTHING)})?({'|'.join(sorted(_SPLIT_WORD, key=len, reverse=True))})(?:{'|'.join(_SAYS_NOTHING)})*"
)


def split_of(word: str) -> str | None:
    """train, val or test for the words people use for them, in any case; None for any other word."""
    return _SPLIT_WORD.get(word.lower())


def split_in(name: str) -> str | None:
    """The split that a name speaks of with one of its words: `training_set`, `TRAIN_IMAGES`, `seg_train`, `val2017`, `testData`; None if it
    speaks of none, or of several."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    spoken = {_SPLIT_WORD[match[1]] for word in words if (match := _GLUED.fullmatch(word.lower()))}
    return spoken.pop() if len(spoken) == 1 else None


def split_of_file(path: Path) -> str:
    """The split a file is named after (`train-00000-of-00002.parquet`, `imagenet-val-3.tar`), or else its folder, or else train."""
    return split_in(path.name.partition(".")[0]) or split_of(path.parent.name) or "train"


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
    hint: str = ""
    """What may be meant if it has one class only, a sentence."""


def build(found: Found, class_names: Sequence[str] | None, channels: int, min_classes: int = 2) -> Splits:
    """Checks the classes of all splits against one another and numbers them.

    The numbers follow `class_names` if given, else the data set's own order, else the names of the training classes, sorted by
    code point as Python sorts strings (but ints by value). Names that differ only in how Unicode encodes them are the same.
    min_classes: DataError if there are fewer, and none were given.
    """
    if "train" not in found.parts:
        have = listed(found.parts)
        raise DataError(f"{found.where} has {have} but no train split. To use one part alone, give that part itself.")
    given = class_names if class_names is not None else found.class_names
    if given is None:
        present = found.parts["train"].values
        numbered = all(isinstance(name, int) for name in present)
        ordered = [_composed(name) for name in sorted(present, key=None if numbered else _composed)]  # pyright: ignore
        names, reference = tuple(dict.fromkeys(ordered)), "train"
        if 0 < len(names) < min_classes:
            raise DataError(
                f"{found.where} has one class only, {names[0]!r}: there is nothing to tell apart. "
                + (found.hint or "Give a folder with one sub-folder, or a table with one label, per class.")
            )
    else:
        names, reference = tuple(given), "the list of classes"
    notes = found.notes
    by_text = {_composed(name): label for label, name in enumerate(names)}
    notes += _alike(found, names)
    number: dict[str, int] = {}
    several = any(part.several for part in found.parts.values())
    sets = {}
    for split, part in found.parts.items():
        number |= {str(name): by_text[text] for name in part.values if (text := _composed(name)) in by_text}
        of_part = {_composed(name) for name in part.values}
        extra, missing = sorted(of_part - by_text.keys()), sorted(by_text.keys() - of_part)
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


def _composed(name: Label) -> str:
    """The text of a class's name in the form of Unicode in which accents are not apart from their letters (NFC): macOS and archives made
    there write the other one."""
    return unicodedata.normalize("NFC", str(name))


def _alike(found: Found, names: Sequence[str]) -> tuple[str, ...]:
    """Remarks on classes that look like one."""
    notes = []
    written: dict[str, set[str]] = {}
    for part in found.parts.values():
        for name in part.values:
            written.setdefault(_composed(name), set()).add(str(name))
    if merged := sorted(text for text, forms in written.items() if len(forms) > 1):
        notes.append(f"Names that differ only in how accents are encoded are taken for one class: {listed(merged)}.")
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(" ".join(name.casefold().split()), []).append(name)
    if alike := [one for same in plain.values() if len(same) > 1 for one in same]:
        notes.append(
            f"Classes that differ only in case or blanks: {listed(map(repr, alike))}. Are they meant to be two?"
        )
    numbers: dict[float, list[str]] = {}
    for name in names:
        if _NUMBER.fullmatch(name):
            numbers.setdefault(float(name), []).append(name)
    if alike := [one for same in numbers.values() if len(same) > 1 for one in same]:
        notes.append(
            f"Classes that are one number written in several ways: {listed(map(repr, alike))}. Are they meant to be two?"
        )
    return tuple(notes)


_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,15})?")


# --- Folders


def from_paths(
    store: Store, paths: Sequence[str], folders: Collection[str], where: str, notes: tuple[str, ...] = ()
) -> Found:
    """Splits and classes read off relative paths: `[<split>/]<class>/.../<file>`, `<class>/<split>/.../<file>`, or bare files.

    `folders`: the top-level folders, with or without images. `notes`: what was passed over.
    """
    if not paths:
        raise DataError(f"There are no images in {where}. {' '.join(notes)}".rstrip())
    tops = {path.partition("/")[0] for path in paths if "/" in path}
    parts: dict[str, Part] = {}
    hint = ""
    if (splits := _splits_on_top(paths, tops, where)) is not None:
        for row, (top, rest) in enumerate(_unwrapped(paths, splits)):
            parts.setdefault(splits.get(top, "train"), Part()).add(row, rest.partition("/")[0] if "/" in rest else None)
        notes += _taken(splits, "are taken for the parts of the data set")
    elif (inside := _splits_inside(paths)) is not None:
        for row, path in enumerate(paths):
            top, second, _ = path.split("/", 2)
            parts.setdefault(inside[second], Part()).add(row, top)
        notes += _taken(inside, "inside the class folders are taken for the parts of the data set", always=True)
    else:
        if (inner := _in_one_folder(paths, tops, where)) is not None:
            outer = next(iter(tops))
            return from_paths(store, inner, (), where, (*notes, f"Everything in {where} lies in the folder {outer}."))
        empty = sorted(set(folders) - tops)
        if empty and tops:
            raise DataError(
                f"Class folders of {where} without an image: {listed(empty)}. Fill or remove them. {' '.join(notes)}".rstrip()
            )
        notes += _same_inside(paths, tops, where)
        parts["train"] = Part()
        for row, path in enumerate(paths):
            parts["train"].add(row, path.partition("/")[0] if "/" in path else None)
        if len(tops) == 1 and all(path.count("/") > 1 for path in paths):
            hint = f"{where} holds only the folder {next(iter(tops))}. Give that folder instead."
    for part in parts.values():
        if part.values and len(part.unlabelled):
            loose = terminal.line(paths[int(part.rows[part.unlabelled[0]])])
            raise DataError(
                f"In {where} images lie beside folders of images, such as {loose}. Put every image into the folder of its class; "
                "if there are no classes, put all images into one folder."
            )
    return Found(store, parts, where, notes=notes, hint=hint)


def _splits_on_top(paths: Sequence[str], tops: set[str], where: str) -> dict[str, str] | None:
    """The top-level folders by split, if that is what they are, and not classes; DataError if they are a mixture.

    A folder that is called by a split's very name is taken for one; a name that only speaks of it (`training_shoes`) needs others like it.
    """
    splits = {top: split for top in sorted(tops) if (split := split_in(top))}
    others = sorted(tops - splits.keys())
    exact = all(split_of(top) for top in splits)
    deep = any(path.count("/") > 1 for path in paths if path.partition("/")[0] in splits)
    kinds = set(splits.values())
    together = len(kinds) > 1 and "train" in kinds
    if not splits or (others and not deep):
        return None  # e.g. classes called "train" and "car"
    if not exact and not together and (others or not deep or len(splits) > 1):
        return None
    if others:
        raise DataError(
            f"{where} has the split folders {listed(splits)} beside {listed(others)}. Move the others away; "
            f"or, if all of them are classes, rename {listed(splits)}."
        )
    if len(kinds) < len(splits):
        raise DataError(f"{where} has two folders for one split: {listed(splits)}. Keep one of them.")
    return splits


def _unwrapped(paths: Sequence[str], splits: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each path as its top-level folder and the rest, without folders around everything in a split that say nothing: `train/train/cat`,
    `train/images/cat`."""
    rests = [(top, rest) for top, _, rest in (path.partition("/") for path in paths)]
    for split_top, split in splits.items():
        while inside := {rest.partition("/")[0] if "/" in rest else "" for top, rest in rests if top == split_top}:
            folder = inside.pop()
            if inside or not folder or not (folder == split_top or split_in(folder) == split or _says_nothing(folder)):
                break
            rests = [(top, rest.partition("/")[2] if top == split_top else rest) for top, rest in rests]
    return rests


def _says_nothing(folder: str) -> bool:
    return re.fullmatch("|".join(_SAYS_NOTHING), folder.lower()) is not None


def _splits_inside(paths: Sequence[str]) -> dict[str, str] | None:
    """The folders inside of class folders by split, if that is what all of them are: `cat/train/1.jpg`."""
    if not all(path.count("/") > 1 for path in paths) or len({path.partition("/")[0] for path in paths}) < 2:
        return None
    splits = {second: split_in(second) for second in {path.split("/", 2)[1] for path in paths}}
    known = {second: split for second, split in splits.items() if split is not None}
    kinds = set(known.values())
    return known if len(known) == len(splits) == len(kinds) > 1 and "train" in kinds else None


def _in_one_folder(paths: Sequence[str], tops: set[str], where: str) -> list[str] | None:
    """The paths below the only folder, if split folders are in it."""
    if len(tops) != 1 or not all(path.count("/") > 1 for path in paths):
        return None
    inner = [path.partition("/")[2] for path in paths]
    below = {path.partition("/")[0] for path in inner}
    return inner if len(below) > 1 and _splits_on_top(inner, below, where) is not None else None


def _taken(splits: Mapping[str, str], what: str, always: bool = False) -> tuple[str, ...]:
    """A remark on folders whose names are not plainly those of splits."""
    if not always and all(split_of(folder) for folder in splits):
        return ()
    return (f"The folders {', '.join(f'{folder} ({split})' for folder, split in splits.items())} {what}.",)


def _same_inside(paths: Sequence[str], tops: set[str], where: str) -> tuple[str, ...]:
    """DataError, or a remark, if folders that are taken for classes look like parts of a data set: each with the same sub-folders."""
    inside: dict[str, set[str]] = {top: set() for top in tops}
    for path in paths:
        if path.count("/") < 2:
            return ()
        top, second, _ = path.split("/", 2)
        inside[top].add(second)
    every = set.union(*inside.values()) if inside else set()
    alike = all(2 * len(seconds) >= len(every) for seconds in inside.values())
    if len(tops) < 2 or not alike or len(set.intersection(*inside.values())) < 2:
        return ()
    what = f"The folders {listed(sorted(tops))} of {where} hold the same sub-folders: {listed(sorted(every))}."
    if not any(re.search(r"[^\W\d_]", second) for second in every):  # years, dates, numbers
        return (f"{what} The outer ones are taken for the classes.",)
    raise DataError(
        f"{what} If these are the classes and the outer folders are parts of the data set, call those train, val and test, or put all "
        "images of a class into one folder. If the outer folders are the classes, rename the inner ones so that they differ, or give "
        "a table."
    )


def listed(names: Iterable[str]) -> str:
    """At most ten names, joined for a message; what a terminal would obey, or would break the line, as escapes."""
    names = [terminal.line(str(name)) for name in names]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def in_short(class_names: Sequence[str]) -> str:
    """The classes of a data set on one line: at most ten of them, and of each at most 40 characters."""
    return listed(map(shortened, class_names))


def shortened(class_name: str) -> str:
    """The name of a class as a `terminal.line` of at most 40 characters."""
    name = terminal.line(class_name)
    return name if len(name) <= 40 else f"{name[:37]}..."


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
