"""From what the user typed to `Splits`: recognises each form of data set and reads its layout. `docs/data.md` shows every form."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bigtransfer.data import images
from bigtransfer.data.sources import Files, ImageSet, Splits, Store
from bigtransfer.errors import DataError

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def open_dataset(
    spec: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    channels: int = 3,
) -> Splits:
    """The data set that `spec` names, in its own splits; see `docs/data.md` for all forms.

    `class_names`: number the labels by this list (say, a model's classes) instead of by the sorted names found; the data may then
    hold fewer classes, but none that is not listed. `channels`: 3 (RGB) or 1 (grey).
    Class names are sorted by code point, as Python sorts strings. Nothing is decoded here. Raises DataError.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder(path, class_names, channels)
    raise DataError(f"There is no data set {str(spec)!r}: no such folder.")


def _folder(root: Path, class_names: Sequence[str] | None, channels: int) -> Splits:
    paths, folders, ignored = _walk(root)
    return _from_paths(paths, folders, ignored, Files(root, paths), str(root), class_names, channels)


def _walk(root: Path) -> tuple[list[str], list[str], Counter[str]]:
    """Image paths below `root` (relative, forward slashes, sorted), its direct sub-folders, and how many other files of each ending."""
    endings = images.extensions()
    paths: list[str] = []
    ignored: Counter[str] = Counter()
    seen = set()

    def visit(folder: str, prefix: str) -> None:
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:  # a symbolic link back up: would never end
            return
        seen.add((identity.st_dev, identity.st_ino))
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                if not entry.is_dir():
                    ignored["hidden"] += 1
            elif entry.is_dir():
                visit(entry.path, f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in endings:
                paths.append(prefix + entry.name)
            else:
                ignored[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1

    try:
        visit(str(root), "")
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"Cannot read the folder {error.filename}: {error.strerror}.") from error
    return paths, [name for name in folders if name != "__MACOSX"], ignored


def _from_paths(
    paths: Sequence[str],
    folders: Sequence[str],
    ignored: Counter[str],
    store: Store,
    where: str,
    class_names: Sequence[str] | None,
    channels: int,
) -> Splits:
    """Splits and labels read off relative paths: `[<split>/]<class>/.../<file>` or bare files."""
    notes = ()
    if ignored:
        found = ", ".join(f"{count} {ending}" for ending, count in ignored.most_common(6))
        notes = (f"Ignored {sum(ignored.values())} files in {where} that are not images ({found}).",)
    if not paths:
        raise DataError(f"{where} holds no images. {' '.join(notes)}".rstrip())
    parts: dict[str, dict[int, str | None]] = {}
    """split -> row -> class name."""
    tops = {top for top, slash, _ in (path.partition("/") for path in paths) if slash}
    if _is_split_layout(paths, tops, where):
        for row, path in enumerate(paths):
            top, _, rest = path.partition("/")
            parts.setdefault(_SPLIT_NAMES[top.lower()], {})[row] = rest.partition("/")[0] if "/" in rest else None
        folders = []
    else:
        parts["train"] = {row: path.partition("/")[0] if "/" in path else None for row, path in enumerate(paths)}
    for split, rows in parts.items():
        loose = [row for row, name in rows.items() if name is None]
        if loose and len(loose) < len(rows):
            raise DataError(
                f"In {where}{'' if len(parts) == 1 else f' ({split})'} images lie beside folders of images, such as {paths[loose[0]]}. "
                "Put every image into the folder of its class, or give a folder of images without sub-folders if there are no classes."
            )
    empty = sorted(set(folders) - tops)
    if empty and tops:
        raise DataError(f"Class folders without an image in {where}: {_listed(empty)}. Fill or remove them.")
    return build(store, parts, where, class_names, channels, notes)


def _is_split_layout(paths: Sequence[str], tops: set[str], where: str) -> bool:
    splits = sorted(top for top in tops if top.lower() in _SPLIT_NAMES)
    others = sorted(tops - set(splits))
    has_classes = any(path.partition("/")[0] in splits and path.count("/") >= 2 for path in paths)
    if not splits or (others and not has_classes):
        return False  # e.g. classes called "train" and "car"
    meant = [_SPLIT_NAMES[top.lower()] for top in splits]
    if others:
        raise DataError(
            f"{where} has the split folders {_listed(splits)} beside {_listed(others)}. Move the others away, "
            f"or, if all of them are classes, rename {_listed(splits)}."
        )
    if len(set(meant)) < len(meant):
        raise DataError(f"{where} has two folders for one split: {_listed(splits)}. Keep one of them.")
    if "train" not in meant:
        raise DataError(
            f"{where} has {_listed(splits)} but no train folder. Give the folder {where}/{splits[0]} itself to use it alone."
        )
    return True


def build(
    store: Store,
    parts: dict[str, dict[int, str | None]],
    where: str,
    class_names: Sequence[str] | None,
    channels: int,
    notes: tuple[str, ...] = (),
) -> Splits:
    """Splits from `{split: {row of the store: class name, or None for unlabelled}}`; checks the class names."""
    found = {split: {name for name in rows.values() if name is not None} for split, rows in parts.items()}
    if class_names is None:
        names = tuple(sorted(found["train"]))
        if len(names) == 1:
            raise DataError(
                f"{where} has one class only, {names[0]!r}: there is nothing to tell apart. Give a folder with one sub-folder per class."
            )
    else:
        names = tuple(class_names)
        found = {"the given class names": set(names), **found}
    (reference, known), *others = found.items()
    for split, some in others:
        extra = sorted(some - known)
        if extra:
            missing = sorted(known - some)
            also = f" It lacks {_listed(missing)}." if missing and class_names is None else ""
            raise DataError(
                f"{where}: {split} has classes that {reference} does not have: {_listed(extra)}.{also} Make the names agree."
            )
        missing = sorted(known - some)
        if missing and some and class_names is None:
            notes += (f"No images of {_listed(missing)} in {split}.",)
    number = {name: label for label, name in enumerate(names)}
    sets = {}
    for split, rows in parts.items():
        labelled = [name for name in rows.values() if name is not None]
        labels = np.array([number[name] for name in labelled], dtype=np.int64) if len(labelled) == len(rows) else None
        sets[split] = ImageSet(
            store, np.fromiter(rows, np.int64, len(rows)), labels, names if labels is not None else (), channels
        )
    return Splits(sets["train"], sets.get("val"), sets.get("test"), notes)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
