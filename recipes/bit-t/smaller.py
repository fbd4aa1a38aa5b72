"""Smaller copies of the upstream images, as WebP: what part 4 of the training saw, small enough to carry to a GPU machine.

    python recipes/bit-t/smaller.py IMAGES OUT

IMAGES is what `images.py` unpacked, less what `excluded.txt` names. OUT gets the five sets under their names (squares of the sides in
SIDES, all of the image squashed into one), `more` (the further sets that have classes, as one: "food101-pizza", ...) and `loose` (the
photographs of sources without classes, in one folder). The last two are central squares of at most 112 px.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

SIDES = {"tiny": 64, "miniplaces": 112, "miniimagenet": 84, "imagenette": 144, "catsdogs": 112}
QUALITY = {"tiny": 75, "miniplaces": 66, "miniimagenet": 72, "imagenette": 72, "catsdogs": 66, "food101": 75}
"""Of the WebP files; 66 of others."""
CUT = 112


def squashed(image: Image.Image, side: int) -> Image.Image:
    """All of the image in a square."""
    same = image.size == (side, side)
    return image if same else image.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)


def cut(image: Image.Image) -> Image.Image:
    """The image's central square, shrunk to CUT px if it is larger."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return squashed(square, CUT) if short > CUT else square


def main(images: Path, out: Path) -> None:
    for folder in sorted(path for path in images.glob("*/*/*") if path.is_dir()):
        name, part, label = folder.relative_to(images).parts
        for path in sorted(folder.iterdir()):
            if name in SIDES:
                place = out / name / part / label / path.stem
            elif name == "photographs":
                place = out / "loose" / f"{label}-{path.stem}"
            else:
                place = out / "more" / part / f"{name}-{label}" / f"{name}-{path.stem}"
            with Image.open(path) as image:
                pixels = image.convert("RGB")
            place.parent.mkdir(parents=True, exist_ok=True)
            smaller = squashed(pixels, SIDES[name]) if name in SIDES else cut(pixels)
            smaller.save(f"{place}.webp", quality=QUALITY.get(name, 66), method=4)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
