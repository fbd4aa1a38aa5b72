"""The upstream's near-duplicates: what recipes/bit-t/duplicates.py finds, on pictures made here."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "recipes" / "bit-t" / "duplicates.py"))


def picture(seed: int, contrast: float = 40) -> Image.Image:
    """Patches of random colours over a horizon that all of them share."""
    patches = np.random.default_rng(seed).normal(0, contrast, (12, 12, 3))
    horizon = np.linspace(60, 190, 12)[:, None, None]
    values = (patches + horizon).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).resize((96, 96), Image.Resampling.BICUBIC)


def test_near_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = tmp_path / "images" / "a" / "train" / "x", tmp_path / "images" / "a" / "val" / "x"
    measured = tmp_path / "measured" / "m"
    for folder in (train, val, measured):
        folder.mkdir(parents=True)
    for seed in range(4):
        picture(seed).save(train / f"{seed}.png")
    picture(10, contrast=4).save(train / "horizon.png")
    Image.new("RGB", (96, 96), (200, 200, 200)).save(train / "flat.png")
    (train / "broken.png").write_bytes(b"no image")

    picture(0).resize((40, 40)).save(val / "0.jpg", quality=60)  # smaller and compressed
    wide = Image.new("RGB", (192, 96))
    wide.paste(picture(1), (48, 0))
    wide.save(measured / "1.png")  # its central square
    picture(11, contrast=4).save(measured / "horizon.png")  # the horizon alone is the same
    Image.new("RGB", (96, 96), (90, 90, 90)).save(measured / "flat.png")
    picture(2).convert("L").save(measured / "grey.png")

    picture(60).save(train / "faint.png")
    grey = Image.new("RGB", (96, 96), (120, 120, 120))
    Image.blend(picture(60), grey, 0.95).save(measured / "faint.png")  # too faint to compare
    for name, other in (
        ("same", val),
        ("other", measured),
    ):  # alike, not the same: enough in a class of the same name only
        seed = {"same": 36, "other": 32}[name]
        picture(seed).save(train / f"{name}.png")
        Image.blend(picture(seed), picture(seed + 1), 0.55).save(other / f"{name}.png")
    cut, its_val = tmp_path / "images" / "tiny" / "train" / "y", tmp_path / "images" / "tiny" / "val" / "y"
    for folder in (cut, its_val):
        folder.mkdir(parents=True)
    picture(50).save(its_val / "50.png")
    picture(40).resize((128, 96)).crop((16, 0, 112, 96)).save(cut / "40.png")  # Tiny-ImageNet cuts what others squash
    picture(40).save(val / "40.png")

    SCRIPT["main"](tmp_path / "images", tmp_path / "measured")
    told = capsys.readouterr()
    lines = [line.split("\t") for line in told.out.splitlines()]
    assert [line[:2] for line in lines] == [
        ["a/train/x/0.png", "a/val/x/0.jpg"],
        ["a/train/x/1.png", "m/1.png"],
        ["a/train/x/2.png", "m/grey.png"],
        ["a/train/x/same.png", "a/val/x/same.png"],
        ["tiny/train/y/40.png", "a/val/x/40.png"],
    ]
    assert all(float(close) > 0.9 and float(fine) > 0.65 for path, _, close, fine in lines if "same" not in path)
    assert "broken.png" in told.err
