"""Paths that are no plain weight file: pipes, devices, links, folders of other things."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from .. import jsons
from ..cases import Case
from .tensors import header, write


def files(rng: Random, folder: Path) -> Case:
    path = folder / f"model{rng.choice(('.safetensors', '.npz', '.pth', '.bin'))}"
    match rng.randrange(7):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/urandom", "/dev/null", "/dev/full", "/dev/stdin")))
        case 2:
            path.symlink_to(path)
        case 3:
            path.symlink_to("/proc/self/mem")
        case 4:
            with open(path, "wb") as file:
                file.write(rng.choice((b"\x80\x02", b"PK\x03\x04", (99_999_999).to_bytes(8, "little") + b"{", b"")))
                file.truncate(rng.choice((3 << 30, 40 << 30)))
        case 5:
            return Case(
                rng.choice(
                    (
                        "",
                        " ",
                        ".",
                        "/",
                        "~",
                        "-",
                        "\x1b[31m",
                        "a\nb",
                        "x" * 5000,
                        "r50x1",
                        "hf-hub:",
                        "hf-hub:../..",
                        "hf-hub:a/b@c/d",
                        "nothing.safetensors",
                        "bit-m-r50x2",
                    )
                )
            )
        case _:
            head, size = header()
            path = write(
                folder / os.fsdecode(rng.choice((b"\xff.safetensors", b"a\x1b[31m.safetensors", b"a\nb.safetensors"))),
                head,
                size,
            )
    return Case(path)


def folders(rng: Random, folder: Path) -> Case:
    """Folders without a model, with several, with parts of one, with links that loop."""
    target = folder / "run"
    target.mkdir()
    head, size = header()
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(
            (
                "model.safetensors",
                "pytorch_model.bin",
                "a.npz",
                "model.safetensors.index.json",
                "metrics.jsonl",
                "config.json",
                "x.pth",
                "checkpoints",
            )
        )
        place = target / name
        if place.exists() or place.is_symlink():
            continue
        match rng.randrange(6):
            case 0:
                write(place, head, size)
            case 1:
                place.write_bytes(jsons.text(rng, jsons.value(rng)))
            case 2:
                place.mkdir()
            case 3:
                place.symlink_to(place)
            case 4:
                os.mkfifo(place)
            case _:
                place.touch()
    return Case(target)


GENERATORS = {"place.files": files, "place.folders": folders}
