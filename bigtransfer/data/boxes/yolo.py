"""YOLO's layout: a text file for each image, with a line `class x y width height` for each object, in shares of the image's sides.

Source: docs.ultralytics.com/datasets/detect. Images are below a folder `images`, their lines in the same place below `labels`; a YAML
file names the classes and may say where the parts are. A line of more numbers is an outline, whose extent is the box.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigtransfer import files, records
from bigtransfer.data import images
from bigtransfer.data.boxes.written import Found, Row, Written
from bigtransfer.data.layout import listed, quoted, split_in, split_of
from bigtransfer.errors import ConfigError, DataError

_YAML_BYTES = 2**20
"""Of a data.yaml; its reader takes seconds for a megabyte."""


def parts(root: Path) -> dict[str, list[Path]]:
    """The folders of images of YOLO's layout, by split: images/train with labels/train, train/images with train/labels, or images with
    labels; {} if it is none."""
    found: dict[str, list[Path]] = {}
    described = _yaml(root)
    for split in ("train", "val", "test"):
        places = described.get(split) if described else None
        if places is None:
            continue
        for place in [places] if isinstance(places, str) else places:
            folder = _place(root, described.get("path"), place)
            if folder is not None:
                found.setdefault(split, []).append(folder)
    if found:
        if "train" not in found and described.get("train"):  # or another part would be learnt from in its place
            raise DataError(f"{root}: {_not_there(described, 'train')}.")
        return found
    if (root / "labels").is_dir() and (root / "images").is_dir():
        for folder in sorted(path for path in (root / "images").iterdir() if path.is_dir()):
            if (split := split_in(folder.name)) is not None:
                found.setdefault(split, []).append(folder)
        return found or {"train": [root / "images"]}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = split_of(folder.name)
        if split is not None and (folder / "labels").is_dir() and (folder / "images").is_dir():
            found.setdefault(split, []).append(folder / "images")
    return found


def _not_there(described: dict[str, Any], split: str) -> str:
    return f"the YAML file says that {split} is {quoted(str(described[split])[:80])}, and no such folder is here"


def _place(root: Path, base: str | None, place: str) -> Path | None:
    """The folder that a YAML file means, if it is below `root`: relative to its `path` or to the file, however many `../` are before it."""
    bare = place.replace("\\", "/")
    while bare.startswith(("../", "./", "/")):
        bare = bare.partition("/")[2]
    tails = [bare, os.path.join(os.path.basename((base or "").rstrip("/")), bare)]
    for tail in tails:
        folder = Path(os.path.normpath(root / tail))
        if folder.is_relative_to(root) and folder.is_dir():
            inner = folder / "images"
            return inner if inner.is_dir() and "images" not in folder.relative_to(root).parts else folder
    return None


def read(root: Path, found: dict[str, list[Path]]) -> Found:
    """The data set of those folders. DataError, which names file and line, for what is not YOLO's form."""
    described = _yaml(root)
    names = _names(root, described.get("names")) if described else None
    parts, most = {}, -1
    notes = [
        f"Of {split}: {_not_there(described, split)}."
        for split in ("val", "test")
        if described.get(split) and split not in found
    ]
    for split, folders in found.items():
        own, known, empty = [], set[Path](), 0
        for path in (path for folder in folders for path in _images(folder)):
            lines = _lines_of(root, path)
            rows = _rows(lines, None if names is None else len(names))
            empty += rows is None
            most = max(most, max((row.label for row in rows or ()), default=-1))
            own.append(Written(path.relative_to(root).as_posix(), str(lines), rows or [], relative=True))
            known.add(lines)
        parts[split] = own
        if empty and empty < len(own):
            notes.append(
                f"{empty:,} of {len(own):,} {split} images have no file of labels: they count as images without objects."
            )
        below = {_lines_of(root, folder / "x").parent for folder in folders}
        alone = sorted(
            path for place in below for path in place.rglob("*.txt") if path not in known and path.name != "classes.txt"
        )
        if alone:
            shown = listed(quoted(path.relative_to(root).as_posix()) for path in alone[:5])
            more = ", ..." if alone[5:] else ""
            notes.append(
                f"Files of labels of {split} that have no image are passed over ({len(alone):,}): {shown}{more}."
            )
    if names is None:
        names = tuple(map(str, range(most + 1)))
        notes.append(f"{root} has no YAML file with the names of the classes; they are called by their numbers.")
    return Found(root=root, parts=parts, class_names=names, form="YOLO", notes=tuple(notes))


def _images(folder: Path) -> list[Path]:
    endings = set(images.extensions())
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)


def _lines_of(root: Path, image: Path) -> Path:
    """The file with the objects of an image: in `labels` where the image is in `images`."""
    parts = list(image.relative_to(root).parts[:-1])
    places = [number for number, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return root.joinpath(*parts, image.stem + ".txt")


def _rows(path: Path, classes: int | None) -> list[Row] | None:
    """The objects of an image; None where there is no file, which YOLO takes for an image without objects."""
    try:
        text = files.read(path, "record_bytes").decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        label = records.whole(words[0])
        if label is None:
            raise DataError(f"{where}: {quoted(words[0])} is no number of a class.")
        if label >= (1 << 16 if classes is None else classes):
            known = "65,536 at most" if classes is None else f"the YAML file names {classes}"
            raise DataError(f"{where}: there is no class {label}: {known}.")
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            raise DataError(f"{where}: {quoted(line)} is not a class and numbers.") from None
        if len(values) == 4:
            x, y, width, height = values
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        elif len(values) >= 6 and len(values) % 2 == 0:  # an outline
            box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        else:
            raise DataError(
                f"{where}: a class and {len(values)} numbers; a box has 4 (x, y, width, height), an outline an even number from 6 on."
            )
        rows.append(Row(box, label))
    return rows


def _yaml(root: Path) -> dict[str, Any]:
    """What the YAML file of a folder says of classes and parts; {} without one. DataError if it cannot be understood, ConfigError where
    PyYAML is not installed."""
    paths = [path for path in sorted(root.glob("*.y*ml")) if path.suffix in (".yaml", ".yml")]
    for path in sorted(paths, key=lambda path: path.stem not in ("data", "dataset")):
        try:
            import yaml
        except ImportError as error:
            raise ConfigError(f"{path} needs the package pyyaml: pip install 'bigtransfer[detection]'") from error
        try:
            content = files.read(path, "record_bytes")
            if len(content) > _YAML_BYTES:
                raise DataError(f"{path} has {len(content):,} bytes; a list of classes has less than {_YAML_BYTES:,}.")
            found = yaml.safe_load(content)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, ValueError, RecursionError, TypeError, KeyError, OverflowError) as error:
            raise DataError(f"{path} is not YAML: {str(error).splitlines()[0] if str(error) else error!r}.") from error
        if not isinstance(found, dict) or "names" not in found:
            continue
        if found.get("kpt_shape") is not None:
            raise DataError(
                f"{path} is of key points (kpt_shape), whose lines would be taken for outlines; boxes are what is read here."
            )
        known = {key: found[key] for key in ("path", "train", "val", "test", "names") if found.get(key) is not None}
        if "valid" in found and "val" not in known:
            known["val"] = found["valid"]
        for key in ("train", "val", "test", "path"):
            form: Any = str if key == "path" else str | list[str]
            if key in known:
                records.convert(known[key], form, f"{path}: {key}", DataError)
        return known
    return {}


def _names(root: Path, names: Any) -> tuple[str, ...]:
    """The classes in the order of their numbers, of a list or of a mapping of these."""
    where = f"{root}: names in the YAML file"
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{where} must be numbered from 0 without gaps.")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise DataError(f"{where} must be a list, or numbers with names.")
    for name in names:
        if not isinstance(name, str | int | float):  # lists of lists by YAML's references may have billions of entries
            raise DataError(f"{where}: a name is a {type(name).__name__}, not text.")
    found = tuple(map(str, names))
    if len(set(found)) < len(found):
        raise DataError(f"{where}: a name is there twice.")
    return found
