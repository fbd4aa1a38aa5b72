"""Images to leave out, by name: the tables that `bit check` writes, or a list of one's own."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import numpy as np

from bigtransfer import files
from bigtransfer.data.layout import listed
from bigtransfer.data.sources import ImageSet, Splits
from bigtransfer.errors import DataError
from bigtransfer.terminal import cell, line, uncell

COLUMNS = (
    "test",
    "train",
    "test_part",
    "train_part",
    "hash",
    "cosine",
    "correlation",
    "detail",
    "mirrored",
    "verdict",
)
"""Of duplicates.csv of `bit check`: names of two images, the parts they are in, how alike they are."""

FINDINGS = ("image", "part", "class", "finding", "score", "likely", "other", "exclude")
"""Of findings.csv of `bit check`: an image, what was found, how bad it is, the class that is likelier, another image that shows the same,
and who leaves it out."""

EXCLUDE = ("", "train", "test", "all")
"""In the last column of `FINDINGS`: nobody, the commands that train, those that measure, both."""

SAME = ("copy", "near")
"""Verdicts of images that show the same picture; the others are only listed."""

Side = Literal["train", "test"]

_SEPARATORS = (",", ";", "\t")
"""Of cells: ours, and those with which spreadsheet programs save a table again."""


def read(path: str | os.PathLike[str], side: Side) -> list[str]:
    """The names in a file: one image a line; of a table with `FINDINGS` those that its last column has this side leave out; of one with
    `COLUMNS` those that are the same picture as another one.

    side: whose images are left out. "test": what is in another part too, of the part that is measured on. "train": what is in a part to
    be measured on too, and what repeats an earlier training image. DataError if the file cannot be read, or is empty.
    """
    try:
        text = files.read(path, "table_bytes").decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"--exclude {path}: {error.strerror}.") from error
    except ValueError as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"--exclude {path} is not UTF-8 text ({reason}).") from error
    first = text.partition("\n")[0].rstrip("\r")
    for separator in _SEPARATORS:
        titles = [title.strip('"') for title in first.split(separator)[:2]]
        if titles == list(COLUMNS[:2]):
            return _of_table(path, text, separator, side)
        if titles == list(FINDINGS[:2]):
            return _of_findings(path, text, separator, side)
    names = list(dict.fromkeys(name for row in text.split("\n") if (name := row.rstrip("\r")).strip()))
    if not names:  # a table of nothing found has its titles
        raise DataError(f"--exclude {path} is empty. Without --exclude all images are taken.")
    return names


def _of_table(path: str | os.PathLike[str], text: str, separator: str, side: Side) -> list[str]:
    names: dict[str, None] = {}
    for number, row in _rows(path, text, separator, COLUMNS):
        if row["verdict"] not in (*SAME, "similar") or not row["test"] or not row["train"]:
            raise DataError(
                f"--exclude {path}, line {number}: not a row of two images and a verdict ({', '.join(SAME)}, similar)."
            )
        across = row["test_part"] != row["train_part"]
        if row["verdict"] in SAME and (across or (side == "train" and row["train_part"] == "train")):
            names[uncell(str(row[side]))] = None
    return list(names)


def _of_findings(path: str | os.PathLike[str], text: str, separator: str, side: Side) -> list[str]:
    names: dict[str, None] = {}
    for number, row in _rows(path, text, separator, ("image", "exclude")):
        wanted = (row["exclude"] or "").strip()
        if wanted not in EXCLUDE or not row["image"]:
            raise DataError(
                f"--exclude {path}, line {number}: not a row of an image and who leaves it out (train, test, all or nothing)."
            )
        if wanted in (side, "all"):
            names[uncell(str(row["image"]))] = None
    return list(names)


def _rows(
    path: str | os.PathLike[str], text: str, separator: str, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Line number and cells of each row of a table, which must have these columns."""
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    missing = [name for name in columns if name not in (rows.fieldnames or ())]
    if missing:
        raise DataError(f"--exclude {path} lacks the column {missing[0]} of a table of `bit check`.")
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise DataError(f"--exclude {path}, line {rows.line_num}: {error}.") from error


def find(parts: Mapping[str, ImageSet], names: Collection[str], path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Where the named images are: of each part their indices, int64. A name may be written as tables and lists show it, with escapes for
    what cannot be seen. DataError if a name is in no part."""
    wanted = set(names)
    found: dict[str, list[int]] = {part: [] for part in parts}
    left = set(wanted)
    for shown in ((), (line, cell)):
        if not left:
            break
        seen: set[str] = set()
        for part, images in parts.items():
            for i in range(len(images)):
                name = images.name(i)
                written = [form(name) for form in shown] or [name]
                known = left.intersection(written)
                if known:
                    found[part].append(i)
                    seen |= known
        left -= seen
    if left:
        gone = listed(name for name in names if name in left)
        raise DataError(
            f"--exclude {path} names images that the data set does not have: {gone}. Names are relative to the data set's folder, as "
            "`bit check` writes them for the same data set."
        )
    return {part: np.unique(np.array(indices, dtype=np.int64)) for part, indices in found.items()}


def without(splits: Splits, path: str | os.PathLike[str], side: Side = "train") -> tuple[Splits, dict[str, int]]:
    """The data set without the images that a file names, and how many of each part those are.

    DataError if a name is in no part, or nothing is left of a part.
    """
    parts = splits.parts()
    found = find(parts, read(path, side), path)
    return dropped(splits, found, path), {part: len(indices) for part, indices in found.items() if len(indices)}


def dropped(splits: Splits, found: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> Splits:
    """The data set without the images at those indices of its parts."""
    kept: dict[str, ImageSet] = {}
    for part, images in splits.parts().items():
        if not len(found[part]):
            kept[part] = images
            continue
        rest = np.setdiff1d(np.arange(len(images)), found[part])
        if not len(rest):
            raise DataError(f"--exclude {path} leaves no image of the {part} part.")
        kept[part] = images.subset(rest)
    return Splits(**kept, notes=splits.notes)


def told(counts: Mapping[str, int], path: str | os.PathLike[str]) -> str:
    """What was left out, in words: "excluded: 12 images (11 of train, 1 of test), by dups.csv"."""
    total = sum(counts.values())
    which = f" ({', '.join(f'{count:,} of {part}' for part, count in counts.items())})" if counts else ""
    return f"excluded: {total:,} image{'' if total == 1 else 's'}{which}, by {path}"
