"""The one road from what a data set's files say to `Splits`: every form ends as a `Found`, and `build` checks and numbers it."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
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


@dataclass
class Part:
    """One split: rows of the store and their classes, side by side."""

    rows: list[int] = dataclasses.field(default_factory=list)
    classes: list[Label] = dataclasses.field(default_factory=list)

    def add(self, row: int, name: Label) -> None:
        self.rows.append(row)
        self.classes.append(name)


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


def build(found: Found, class_names: Sequence[str] | None, channels: int) -> Splits:
    """Checks the classes of all splits against one another and numbers them.

    The numbers follow `class_names` if given, else the data set's own order, else the names of the training classes, sorted by
    code point as Python sorts strings (but ints by value).
    """
    if "train" not in found.parts:
        have = listed(found.parts)
        raise DataError(f"{found.where} has {have} but no train split. To use one part alone, give that part itself.")
    present = {split: {name for name in part.classes if name is not None} for split, part in found.parts.items()}
    given = class_names if class_names is not None else found.class_names
    if given is None:
        numbered = all(isinstance(name, int) for name in present["train"])
        ordered = [str(name) for name in sorted(present["train"], key=None if numbered else str)]
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
    sets = {}
    for split, part in found.parts.items():
        of_part = {str(name) for name in present[split]}
        extra, missing = sorted(of_part - set(names)), sorted(set(names) - of_part)
        if extra:
            also = f" and lacks {listed(missing)}" if missing and class_names is None else ""
            raise DataError(
                f"{found.where}: {split} has classes that are not in {reference}: {listed(extra)}{also}. "
                "Every split must have the same class names; correct or remove the odd ones."
            )
        if missing and of_part and class_names is None:
            notes += (f"{split} has no images of {listed(missing)}.",)
        labels = None
        if None not in part.classes:
            labels = np.array([number[str(name)] for name in part.classes], dtype=np.int64)
        elif of_part:
            raise DataError(
                f"{found.where}: {part.classes.count(None)} images of {split} have no label, the others do."
            )
        rows = np.array(part.rows, dtype=np.int64)
        sets[split] = ImageSet(found.store, rows, labels, () if labels is None else names, channels)
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
        parts["train"] = Part(
            list(range(len(paths))), [path.partition("/")[0] if "/" in path else None for path in paths]
        )
    for part in parts.values():
        if None in part.classes and any(part.classes):
            loose = paths[part.rows[part.classes.index(None)]]
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
