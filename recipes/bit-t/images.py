"""Unpacks the images that the bundled networks learned from, out of bare clones of the repositories that hold them.

usage: python recipes/bit-t/images.py CLONES OUT

CLONES holds bare clones (`git clone --bare https://github.com/OWNER/NAME CLONES/OWNER+NAME`) of the repositories in SETS; OUT/<set>/
gets `train/<class>/` and `val/<class>/`. Tiny-ImageNet-200 is expected in OUT/tiny by other means. Where a source has no validation
part, one of a fixed seed is held out. Trees are read with git's plumbing, for a checkout of 300,000 files is not wanted. What is not
an image of a class (the unlabelled part of MiniPlaces, notes, notebooks) is left out.
"""

import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Source(NamedTuple):
    """Where a set lies, and what a path of it says: `(part, class, file name)`, or None for what is left out."""

    repository: str
    commit: str
    place: Callable[[PurePosixPath, dict[str, str]], tuple[str, str, str] | None]
    tables: tuple[str, ...] = ()  # files of lines `path number`
    held_out: int = 0  # images per class that become the validation part


def miniplaces(path: PurePosixPath, classes: dict[str, str]) -> tuple[str, str, str] | None:
    """`data/images/train/t/track/outdoor/1.jpg`; those in `val` have their class in a table only."""
    if path.parts[:2] != ("data", "images") or path.parts[2] not in ("train", "val") or path.suffix != ".jpg":
        return None
    key = "/".join(path.parts[2:])
    return (path.parts[2], classes[key].replace("/", "-"), path.name) if key in classes else None


def folders(path: PurePosixPath, classes: dict[str, str]) -> tuple[str, str, str] | None:
    """`train/n01532829/a.jpg`."""
    return (path.parts[0], path.parts[1], path.name) if len(path.parts) == 3 else None


def pets(path: PurePosixPath, classes: dict[str, str]) -> tuple[str, str, str] | None:
    """`PetImages/Cat/7.jpg`; `PetImages/cleaned` holds the same images once more."""
    return ("train", path.parts[1], path.name) if len(path.parts) == 3 and path.parts[1] in ("Cat", "Dog") else None


SETS = {
    "miniplaces": Source(
        "rathull+CTFs",
        "f35c219885f1",
        miniplaces,
        tables=("data/train.txt", "data/val.txt"),
    ),
    "miniimagenet": Source("Deo0330+split_minidataset", "557ebcae0db2", folders),
    "imagenette": Source("thunderInfy+imagenette", "b850f030ff07", folders),
    "catsdogs": Source("karemsaeed21+cat_vs_dog_classification_CNN", "16df905b3e02", pets, held_out=500),
}


def git(clone: Path, *words: str) -> bytes:
    """What git answers."""
    return subprocess.run(["git", f"--git-dir={clone}", *words], check=True, capture_output=True).stdout


def labels(clone: Path, source: Source) -> dict[str, str]:
    """Class of every path in the source's tables: that of the folder whose training images have the same number."""
    lines = [
        line for table in source.tables for line in git(clone, "show", f"{source.commit}:{table}").decode().split("\n")
    ]
    rows = [line.rsplit(maxsplit=1) for line in lines if line]
    names = {number: "/".join(path.split("/")[2:-1]) for path, number in rows if path.startswith("train/")}
    return {path: names[number] for path, number in rows}


def blobs(clone: Path, ids: list[str]) -> Iterator[bytes]:
    """The contents of many files, in order."""
    with subprocess.Popen(
        ["git", f"--git-dir={clone}", "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for identity in ids:
            process.stdin.write(f"{identity}\n".encode())
            process.stdin.flush()
            size = int(process.stdout.readline().split()[2])
            yield process.stdout.read(size + 1)[:-1]
        process.stdin.close()


def unpack(clone: Path, source: Source, out: Path) -> dict[str, int]:
    """Writes one set; returns the number of images of each part."""
    classes = labels(clone, source)
    found: list[tuple[str, str, str, str]] = []
    for line in git(clone, "ls-tree", "-r", "-z", source.commit).decode().split("\0")[:-1]:
        about, path = line.split("\t")
        place = source.place(PurePosixPath(path), classes)
        if place:
            found.append((*place, about.split()[2]))
    found.sort()
    held: set[tuple[str, str, str, str]] = set()
    by_class: dict[str, list[tuple[str, str, str, str]]] = defaultdict(list)
    for image in found:
        by_class[image[1]].append(image)
    for images in by_class.values():
        held.update(random.Random(0).sample(images, source.held_out))
    counts: dict[str, int] = defaultdict(int)
    for image, content in zip(found, blobs(clone, [identity for *_, identity in found]), strict=True):
        part, name, file, _ = image
        part = "val" if image in held else part
        folder = out / part / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
        counts[part] += 1
    return dict(counts)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for key, origin in SETS.items():
        print(key, unpack(Path(sys.argv[1]) / origin.repository, origin, Path(sys.argv[2]) / key), flush=True)
