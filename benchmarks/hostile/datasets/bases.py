"""Small valid data sets, which the generators spoil."""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

from ..images.bases import encoded

CLASSES = ("ant", "bee", "cat")


@functools.cache
def png(number: int) -> bytes:
    """A small picture, another one for each number."""
    return encoded("PNG", "RGB", 8 + number % 5, 8 + number // 5)


def folders(root: Path, classes: tuple[str, ...] = CLASSES, each: int = 3, first: int = 0) -> Path:
    """`root/<class>/<number>.png`."""
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            (root / name / f"{i:03d}.png").write_bytes(png(first + k * each + i))
    return root


def flat(root: Path, count: int = 6) -> list[str]:
    """`root/<number>.png`, and their names."""
    root.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.png" for i in range(count)]
    for i, name in enumerate(names):
        (root / name).write_bytes(png(i))
    return names


def unreadable(rng: Random) -> bytes:
    return rng.choice(
        (b"", b"\0" * 100, png(0)[:40], b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"\xff\xd8\xff\xe0")
    )
