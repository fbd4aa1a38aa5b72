"""Data sets of coloured rectangles, in every layout that is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "blue": (30, 40, 220)}
NAMES = tuple(sorted(COLOURS))  # blue, red

Objects = Sequence[tuple[str, tuple[int, int, int, int]]]


def scenes(count: int, seed: int = 0, size: tuple[int, int] = (48, 64)) -> list[tuple[np.ndarray, Objects]]:
    """Grey images, uint8 `size`, with one to three rectangles: kind, and left, top, right, bottom in whole px."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        pixels = rng.integers(110, 140, (*size, 3), dtype=np.uint8)
        objects = []
        for _ in range(rng.integers(1, 4)):
            name = str(rng.choice(NAMES))
            width, height = rng.integers(10, 28, 2).tolist()
            left, top = int(rng.integers(0, size[1] - width)), int(rng.integers(0, size[0] - height))
            pixels[top : top + height, left : left + width] = COLOURS[name]
            objects.append((name, (left, top, left + width, top + height)))
        made.append((pixels, objects))
    return made


def write_images(folder: Path, made: Sequence[tuple[np.ndarray, Objects]], prefix: str = "") -> list[str]:
    """As PNG files; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}{number:03d}.png" for number in range(len(made))]
    for name, (pixels, _) in zip(names, made, strict=True):
        Image.fromarray(pixels).save(folder / name)
    return names


def coco_record(names: Sequence[str], made: Sequence[tuple[np.ndarray, Objects]]) -> dict[str, Any]:
    """What COCO's file says; category ids with a gap, as COCO's have."""
    ids = {name: 3 + 4 * label for label, name in enumerate(NAMES)}
    record: dict[str, Any] = {
        "categories": [{"id": ids[name], "name": name} for name in NAMES],
        "images": [],
        "annotations": [],
    }
    for number, (name, (pixels, objects)) in enumerate(zip(names, made, strict=True)):
        record["images"].append(
            {"id": 100 + number, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1]}
        )
        for kind, (left, top, right, bottom) in objects:
            record["annotations"].append(
                {
                    "id": len(record["annotations"]) + 1,
                    "image_id": 100 + number,
                    "category_id": ids[kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "segmentation": [[0, 0, 1, 1, 2, 2]],
                }
            )
    return record


def coco(root: Path, parts: dict[str, Sequence[tuple[np.ndarray, Objects]]]) -> Path:
    """annotations/instances_PART2017.json and PART2017/."""
    for part, made in parts.items():
        names = write_images(root / f"{part}2017", made)
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        record = coco_record(names, made)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(record))
    return root


def voc_xml(name: str, pixels: np.ndarray, objects: Objects) -> str:
    """One annotation of VOC's."""
    rows = "".join(
        f"<object><name>{kind}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for kind, (left, top, right, bottom) in objects
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{pixels.shape[1]}</width><height>{pixels.shape[0]}</height>"
        f"<depth>3</depth></size>{rows}</annotation>"
    )


def voc(root: Path, parts: dict[str, Sequence[tuple[np.ndarray, Objects]]]) -> Path:
    """Annotations/, JPEGImages/ and ImageSets/Main/."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for part, made in parts.items():
        names = write_images(root / "JPEGImages", made, f"{part}_")
        for name, (pixels, objects) in zip(names, made, strict=True):
            (root / "Annotations" / f"{Path(name).stem}.xml").write_text(voc_xml(name, pixels, objects))
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(Path(name).stem for name in names))
    return root


def yolo(root: Path, parts: dict[str, Sequence[tuple[np.ndarray, Objects]]]) -> Path:
    """images/PART, labels/PART and data.yaml."""
    for part, made in parts.items():
        names = write_images(root / "images" / part, made)
        (root / "labels" / part).mkdir(parents=True, exist_ok=True)
        for name, (pixels, objects) in zip(names, made, strict=True):
            height, width = pixels.shape[:2]
            lines = [
                f"{NAMES.index(kind)} {(left + right) / 2 / width!r} {(top + bottom) / 2 / height!r} {(right - left) / width!r} "
                f"{(bottom - top) / height!r}"
                for kind, (left, top, right, bottom) in objects
            ]
            (root / "labels" / part / f"{Path(name).stem}.txt").write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames: {list(NAMES)}\n")
    return root


LAYOUTS = {"coco": coco, "voc": voc, "yolo": yolo}
