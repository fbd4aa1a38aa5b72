"""COCO's layout: one JSON file for each part, with `images`, `annotations` and `categories`.

Source: cocodataset.org/#format-data. `bbox` is left, top, width, height, px; category ids may have gaps; `iscrowd` marks a crowd.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from bigtransfer import records
from bigtransfer.data.boxes.written import Found, Row, Written, within
from bigtransfer.data.layout import listed, split_in, split_of
from bigtransfer.errors import DataError


class _Image(msgspec.Struct, frozen=True, gc=False):
    id: int
    file_name: str
    height: Annotated[int, msgspec.Meta(ge=1)] | None = None
    width: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Annotation(msgspec.Struct, frozen=True, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] | bool = 0
    area: float | None = None


class _Category(msgspec.Struct, frozen=True, gc=False):
    id: int
    name: str


class _File(msgspec.Struct, frozen=True, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def files(root: Path) -> dict[str, Path]:
    """The annotation files of COCO's layout, or of what Roboflow exports, in a folder, by split; {} if there are none. DataError if it is
    not clear which they are."""
    found: dict[str, list[Path]] = {}
    inner = [path for path in root.glob("annotations/*.json") if not path.stem.startswith(_OTHERS)]
    for path in sorted(inner):
        found.setdefault(split_in(path.stem) or "train", []).append(path)
    if not found:
        for path in sorted(root.glob("*/_annotations.coco.json")):
            if (split := split_of(path.parent.name)) is not None:
                found.setdefault(split, []).append(path)
    for split, paths in found.items():
        if len(paths) > 1:
            raise DataError(
                f"{root} has several COCO files for {split}: {listed(str(path.relative_to(root)) for path in paths)}. Name the one that is "
                "meant, or leave one of each part in the folder."
            )
    return {split: paths[0] for split, paths in found.items()}


_OTHERS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")
"""COCO's own files of other tasks, which lie in the same folder."""


def read(root: Path, paths: dict[str, Path]) -> Found:
    """The data set whose parts' annotations those files are. DataError, which names file and entry, for what is not COCO's form."""
    read = {split: records.decoded(path, _File, DataError) for split, path in paths.items()}
    names: dict[str, tuple[tuple[int, str], ...]] = {
        split: tuple(sorted((one.id, one.name) for one in file.categories)) for split, file in read.items()
    }
    first = next(iter(names))
    for split, own in names.items():
        if own != names[first]:
            raise DataError(
                f"{paths[split]} has other categories than {paths[first]}: {listed(name for _, name in own)}; there "
                f"{listed(name for _, name in names[first])}. All parts must have the same ids and names."
            )
        for what, values in (("id", [str(number) for number, _ in own]), ("name", [name for _, name in own])):
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise DataError(f"{paths[split]}: the category {what} {listed(twice)} is there more than once.")
    labels = {number: label for label, (number, _) in enumerate(names[first])}
    parts = {split: _written(root, paths[split], file, labels) for split, file in read.items()}
    return Found(root=root, parts=parts, class_names=tuple(name for _, name in names[first]), form="COCO")


def _written(root: Path, path: Path, file: _File, labels: dict[int, int]) -> list[Written]:
    by_image: dict[int, list[Row]] = {}
    seen: set[str] = set()
    for number, one in enumerate(file.images):
        name = os.path.normpath(one.file_name)
        if one.id in by_image or name in seen:
            raise DataError(f"{path}: images[{number}], {one.file_name!r} with the id {one.id}, is there twice.")
        by_image[one.id] = []
        seen.add(name)
    for number, one in enumerate(file.annotations):
        if one.image_id not in by_image:
            raise DataError(f"{path}: annotations[{number}] is of the image {one.image_id}, which is not in `images`.")
        if one.category_id not in labels:
            raise DataError(
                f"{path}: annotations[{number}] is of the category {one.category_id}, which is not in `categories` "
                f"({listed(map(str, labels))})."
            )
        left, top, width, height = one.bbox
        by_image[one.image_id].append(
            Row((left, top, left + width, top + height), labels[one.category_id], bool(one.iscrowd), one.area)
        )
    folder = _folder(root, path, [one.file_name for one in file.images])
    return [
        Written(
            within(root, folder, one.file_name, f"{path}: images[{number}]"),
            f"{path}, image {one.file_name!r}",
            by_image[one.id],
            None if one.height is None or one.width is None else (one.height, one.width),
        )
        for number, one in enumerate(file.images)
    ]


def _folder(root: Path, path: Path, names: Sequence[str]) -> Path:
    """Where the images of an annotation file are: in the folder of its part's name (`instances_train2017.json`: train2017/ or
    images/train2017/), in images/, or beside the file; the first that holds one of the first images."""
    part = path.stem.partition("_")[2] or path.stem
    places = [path.parent] if path.name == "_annotations.coco.json" else []
    places += [
        root / part,
        root / "images" / part,
        *(root / (split_in(part) or part),),
        root / "images",
        path.parent,
        root,
    ]
    for place in places:
        if any(os.path.isfile(place / name) for name in names[:20] if name and "\0" not in name):
            return place
    return next((place for place in places if place.is_dir()), root)
