"""The upstream's images: what recipes/bit-t/images.py takes and duplicates.py finds, on pictures made here."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY

SCRIPT = runpy.run_path(str(REPOSITORY / "recipes" / "bit-t" / "duplicates.py"))
IMAGES = runpy.run_path(str(REPOSITORY / "recipes" / "bit-t" / "images.py"))


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


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout


def committed(folder: Path) -> str:
    """Commits all files of the folder; the commit's name."""
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "images")
    return git(folder, "rev-parse", "HEAD").strip()


def unpacked(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_unfit_and_repeated_images_are_left_out(tmp_path: Path) -> None:
    clone, out = tmp_path / "clone", tmp_path / "out"
    train = clone / "data" / "fruit" / "red apple"
    train.mkdir(parents=True)
    picture(0).save(train / "a.png")
    (train / "again.png").write_bytes((train / "a.png").read_bytes())
    picture(1).resize((60, 47)).save(train / "small.png")
    picture(1).resize((200, 60)).save(train / "narrow.png")
    picture(1).resize((180, 60)).save(train / "wide.png")
    Image.new("RGB", (96, 96), (200, 200, 200)).save(train / "flat.png")
    hidden = picture(2).convert("RGBA")
    hidden.putalpha(0)
    hidden.save(train / "hidden.png")  # all of it transparent: white
    picture(3).save(train / "cut.jpg")
    (train / "cut.jpg").write_bytes((train / "cut.jpg").read_bytes()[:900])
    (train / "broken.jpg").write_bytes(b"no image")
    picture(4).save(clone / "data" / "elsewhere.png")
    (train / "notes.txt").write_text("no image")
    commit = committed(clone)

    taken = IMAGES["photographs"]("", commit, "data/fruit")
    assert IMAGES["unpack"](clone / ".git", taken, out) == {"train": 2}
    assert unpacked(out) == ["train/red apple/a.png", "train/red apple/wide.png"]
    assert (out / "train" / "red apple" / "a.png").read_bytes() == (train / "a.png").read_bytes()
    everything = taken._replace(sifted=False)
    assert IMAGES["unpack"](clone / ".git", everything, tmp_path / "all") == {"train": 9}


def test_most_images_of_a_class_and_what_a_clone_lacks(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for kind, number in (("few", 3), ("many", 8)):
        (clone / kind).mkdir(parents=True)
        for seed in range(number):
            picture(seed + 10 * number).save(clone / kind / f"{seed}.png")
    commit = committed(clone)
    source = IMAGES["photographs"]("", commit, ".", most=4)
    assert IMAGES["unpack"](clone / ".git", source, tmp_path / "out") == {"train": 7}
    assert IMAGES["unpack"](clone / ".git", source, tmp_path / "again") == {"train": 7}
    assert unpacked(tmp_path / "out") == unpacked(tmp_path / "again")

    gone = git(clone, "rev-parse", f"{commit}:few/1.png").strip()
    (clone / ".git" / "objects" / gone[:2] / gone[2:]).unlink()
    assert IMAGES["unpack"](clone / ".git", source, tmp_path / "less") == {"train": 6}
    assert set(unpacked(tmp_path / "out")) - set(unpacked(tmp_path / "less")) == {"train/few/1.png"}
    one = IMAGES["photographs"]("", commit, "many", "number", most=4)
    assert IMAGES["unpack"](clone / ".git", one, tmp_path / "one") == {"train": 4}
    assert {Path(path).parent.as_posix() for path in unpacked(tmp_path / "one")} == {"train/number"}
