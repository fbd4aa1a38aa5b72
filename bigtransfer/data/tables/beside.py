"""Tables that lie in a folder of images and say what is on them: `metadata.csv`, Kaggle's `train.csv`, `labels.csv`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigtransfer.data.layout import Found, listed, split_in
from bigtransfer.data.tables import arrow, listing, text
from bigtransfer.data.tables.columns import LABEL, Columns, Table, usual
from bigtransfer.errors import DataError

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""As Hugging Face's imagefolder has them, in the folder or in those of its splits."""
_LABELS = ("train", "training", "label", "labels", "metadata")
"""Words in the names of tables that are taken even if the images lie in several folders, as classes do."""


def beside(root: Path, images: Sequence[str], columns: Columns) -> Found | None:
    """The data set that tables in `root` describe; None if there is no such table, or the folders of the images are the classes.

    images: the paths of all images below `root`. DataError if there are tables for the images, but they cannot be understood or
    contradict one another.
    """
    folders = _class_folders(images)
    good: dict[Path, tuple[Table, Found]] = {}
    refused: dict[Path, DataError] = {}
    unlabelled: set[Path] = set()
    candidates = _candidates(root)
    for path, split in candidates.items():
        table = None
        try:
            table = arrow.table_of_paths(path, split) if path.suffix == ".parquet" else text.read(path, split)
            if folders and columns.label is None and usual(LABEL.usual, table.names) is None:
                continue  # captions, say: then the folders are the classes
            found = listing.found([table], columns, str(path), root)
        except DataError as error:
            refused[path] = error
            if table is not None and columns.label not in table.names and usual(LABEL.usual, table.names) is None:
                unlabelled.add(path)
            continue
        words = re.split(r"[-_.\s\d]+", path.stem.lower())
        if not folders or (any(word in _LABELS for word in words) and not _says_folders(found)):
            good[path] = table, found
    chosen = _chosen(root, good, candidates)
    if not chosen:
        if folders or not refused:
            return None
        likely = [path for path in refused if candidates[path] == "train" or path.name in _METADATA] or list(refused)
        if len(likely) == 1:
            raise refused[likely[0]]
        return None
    notes: tuple[str, ...] = ()
    for path, error in refused.items():
        if candidates[path] in ("val", "test"):
            if path not in unlabelled:
                raise error
            notes += (f"{path.name} is not used: {str(error).replace(str(path), 'it')[:200]}",)
    if len(chosen) == 1:
        found = good[chosen[0]][1]
    else:
        found = listing.found([good[path][0] for path in chosen], columns, str(root), root)
    listed_images = {found.store.name(int(row)) for part in found.parts.values() for row in part.rows}
    left = [path for path in images if path not in listed_images]
    notes = (f"The labels come from {listed(path.relative_to(root).as_posix() for path in chosen)}.", *notes)
    if left:
        notes += (f"{len(left)} images in {root} are in no table and are left out, such as {left[0]}.",)
    return dataclasses.replace(found, notes=(*notes, *found.notes))


def _candidates(root: Path) -> dict[Path, str | None]:
    """The tables that may say what is on the images, each with the part of the data set that its name or folder says."""
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise DataError(f"Cannot read the folder {root}: {error.strerror}.") from error
    parts = [(root, None), *((root / name, split) for name in names if (split := split_in(name)) is not None)]
    metadata = {folder / name: split for folder, split in parts for name in _METADATA if (folder / name).is_file()}
    if metadata:
        return metadata
    tables = [root / name for name in names if name.lower().endswith(text.ENDINGS) and not name.startswith(".")]
    return {path: split_in(path.stem) for path in tables if "submission" not in path.stem.lower() and path.is_file()}


def _chosen(root: Path, good: Mapping[Path, object], candidates: Mapping[Path, str | None]) -> list[Path]:
    """The tables to use, at most one for each part: those called after a part, or else the only other one."""
    by_split: dict[str | None, list[Path]] = {}
    for path in good:
        by_split.setdefault(candidates[path], []).append(path)
    first = by_split["train"] if "train" in by_split else by_split.get(None, [])
    chosen = []
    for same in (first, by_split.get("val", []), by_split.get("test", [])) if first else ():
        if len(same) > 1:
            raise DataError(
                f"{root} has several tables of labels: {listed(path.name for path in same)}. Give one of them."
            )
        chosen += same
    return chosen


def _class_folders(images: Sequence[str]) -> bool:
    """Whether the images lie in several folders that may be classes, apart from those of splits."""
    tops = {path.partition("/")[0] for path in images if "/" in path}
    if tops and all(split_in(top) is not None for top in tops):
        tops = {path.split("/")[1] for path in images if path.count("/") > 1}
    return len(tops) > 1


def _says_folders(found: Found) -> bool:
    """Whether the labels of a table are only what the images' folders say: one label a folder, one folder a label."""
    pairs: set[tuple[str, int]] = set()
    number: dict[str, int] = {}
    for part in found.parts.values():
        for value in part.values:
            number.setdefault(str(value), len(number))
        if part.several or len(part.unlabelled):
            return False
        folders = [os.path.dirname(found.store.name(int(row))).rpartition("/")[2] for row in part.rows]
        pairs.update(zip(folders, part.labels(number).tolist(), strict=True))
    return len(pairs) == len({folder for folder, _ in pairs}) == len(number)
