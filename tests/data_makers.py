"""Small images and data sets for the tests."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def pattern(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth colourful uint8 (height, width, 3) picture without symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def write(path: Path, seed: int = 0, height: int = 12, width: int = 16) -> Path:
    """An image file whose pixels depend on `seed`, in the format its ending names; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(height, width, seed)).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int], ending: str = ".png", seed: int = 0) -> Path:
    """`root/<class>/<number><ending>`, every image another one."""
    for name, count in counts.items():
        for number in range(count):
            write(root / name / f"{number:03d}{ending}", seed=seed)
            seed += 1
    return root


def table(root: Path, text: str, name: str = "table.csv") -> Path:
    """A table beside the images img/0.png .. img/3.png."""
    for number in range(4):
        write(root / "img" / f"{number}.png", seed=number)
    (root / name).write_text(text, encoding="utf-8")
    return root / name
