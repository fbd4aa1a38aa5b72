"""PASCAL VOC's layout: an XML file for each image, lists of the parts in ImageSets/Main.

Source: the VOC2012 development kit. A box is the pixels from (xmin, ymin) to (xmax, ymax), both included, counted from 1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from bigtransfer import files
from bigtransfer.data import images
from bigtransfer.data.boxes.written import Found, Row, Written, within
from bigtransfer.data.layout import listed, quoted, split_of
from bigtransfer.errors import DataError

LISTS = ("train", "val", "test", "trainval")


def parts(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """The annotation files of VOC's layout in a folder, each with the folder of its image, by split: `Annotations` and `JPEGImages`,
    divided as `ImageSets/Main` says; or XML files beside the images, in a folder for each part or in one; {} if there are none."""
    annotations = root / "Annotations"
    if annotations.is_dir():
        found = {}
        for name in LISTS:
            path = root / "ImageSets" / "Main" / f"{name}.txt"
            if path.is_file():
                found[name] = [(annotations / f"{stem}.xml", root / "JPEGImages") for stem in _stems(path)]
        if not found:
            found["train"] = [(path, root / "JPEGImages") for path in sorted(annotations.glob("*.xml"))]
        whole = found.pop("trainval", None)
        if whole is not None and not ("train" in found and "val" in found):
            found["train"] = whole
        return {split: own for split, own in found.items() if own}
    divided = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = split_of(folder.name)
        own = [(path, folder) for path in sorted(folder.glob("*.xml"))]
        if split is not None and own:
            divided[split] = own
    flat = [(path, root) for path in sorted(root.glob("*.xml"))]
    return divided or ({"train": flat} if flat else {})


def _stems(path: Path) -> Iterator[str]:
    """The images that a list names, one a line; what follows a blank (of lists for one class) is passed over."""
    seen = set[str]()
    for number, line in enumerate(_content(path).decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if "/" in words[0] or "\\" in words[0] or words[0].startswith("."):
            raise DataError(f"{path}, line {number}: {quoted(words[0])} is no name of an image without its ending.")
        if words[0] in seen:
            raise DataError(f"{path}, line {number}: {quoted(words[0])} is there twice.")
        seen.add(words[0])
        yield words[0]


def read(root: Path, found: dict[str, list[tuple[Path, Path]]]) -> Found:
    """The data set of those files. DataError, which names the file, for what is not VOC's form."""
    parsed = {split: [(path, folder, _parsed(path)) for path, folder in own] for split, own in found.items()}
    names: set[str] = set()
    for own in parsed.values():
        for path, _, tree in own:
            for number, one in enumerate(tree.findall("object")):
                name = (one.findtext("name") or "").strip()
                if not name:
                    raise DataError(f"{path}: object {number + 1} has no name.")
                names.add(name)
    class_names = tuple(sorted(names))
    labels = {name: label for label, name in enumerate(class_names)}
    return Found(
        root=root,
        parts={split: [_written(root, *one, labels) for one in own] for split, own in parsed.items()},
        class_names=class_names,
        form="PASCAL VOC",
    )


def _written(root: Path, path: Path, folder: Path, tree: ElementTree.Element, labels: dict[str, int]) -> Written:
    size = tree.find("size")
    stated = None
    if size is not None:
        height, width = (_number(path, size, name, "size") for name in ("height", "width"))
        if not (height < 2**31 and width < 2**31):  # nor is it a number
            raise DataError(f"{path}: its size, {width:g} x {height:g} px, is none of an image.")
        stated = (int(height), int(width)) if height >= 1 and width >= 1 else None  # some tools write 0
    rows = []
    for number, one in enumerate(tree.findall("object")):
        box = one.find("bndbox")
        if box is None:
            raise DataError(f"{path}: object {number + 1} has no bndbox.")
        left, top, right, bottom = (
            _number(path, box, name, f"object {number + 1}") for name in ("xmin", "ymin", "xmax", "ymax")
        )
        # From pixels that are counted from 1, the last one included, to where their edges are.
        rows.append(
            Row(
                (left - 1, top - 1, right, bottom),
                labels[(one.findtext("name") or "").strip()],
                (one.findtext("difficult") or "").strip() == "1",
            )
        )
    name = _image(folder, path.stem, (tree.findtext("filename") or "").strip())
    return Written(within(root, folder, name, str(path)), str(path), rows, stated)


def _image(folder: Path, stem: str, stated: str) -> str:
    """The file of the image: that of the annotation's own name, or the one that the annotation names."""
    likely = [stated] if Path(stated).stem == stem else []
    endings = dict.fromkeys((".jpg", *images.extensions()))
    likely += [f"{stem}{own}" for ending in endings for own in (ending, ending.upper())]
    named = (name for name in likely if "\0" not in name and os.path.isfile(folder / name))
    return next(named, stated or f"{stem}.jpg")


def _number(path: Path, parent: ElementTree.Element, name: str, what: str) -> float:
    text = (parent.findtext(name) or "").strip()
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{path}: {name} of {what} is {quoted(text)}, not a number.") from None


def _parsed(path: Path) -> ElementTree.Element:
    content = _content(path)
    if b"\0" in content:  # of UTF-16, in which the next words would be other bytes
        raise DataError(f"{path} is not XML in UTF-8: it holds zeros.")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(f"{path} declares a document type, which annotations have no use for; it is not read.")
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # an encoding that Python does not know
        raise DataError(f"{path} is not XML: {error}.") from error
    if tree.tag != "annotation":
        raise DataError(f"{path} is no annotation of VOC's form: its outermost element is {quoted(tree.tag)}.")
    return tree


def _content(path: Path) -> bytes:
    try:
        return files.read(path, "record_bytes")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def described(found: dict[str, list[tuple[Path, Path]]]) -> str:
    """How many files of which parts."""
    return listed(f"{len(own)} of {split}" for split, own in found.items())
