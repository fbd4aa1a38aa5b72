"""Unpacks the images that the bundled networks learned from, out of bare clones of the repositories that hold them.

usage: python recipes/bit-t/images.py CLONES OUT [SET ...]

CLONES holds bare clones (`git clone --bare https://github.com/OWNER/NAME CLONES/OWNER+NAME`) of the repositories in SETS and
PHOTOGRAPHS; OUT/<set>/ gets `train/<class>/` and `val/<class>/`. Tiny-ImageNet-200 is expected in OUT/tiny by other means. Where one
of the first four sources has no validation part, one of a fixed seed is held out; all others are for training alone. Trees are read
with git's plumbing, for a checkout of 300,000 files is not wanted. What is not an image of a class (the unlabelled part of MiniPlaces,
notes, notebooks) is left out, and what a clone lacks.
"""

import hashlib
import io
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

LEAST, LONGEST = 48, 3.0  # pixels of the shorter side; ratio of the sides
PIXELS, CONTRAST = 112, 6.0  # of the central square, and the standard deviation of its grey values, of 255
ENDINGS = {".jpg", ".jpeg", ".png"}
Place = Callable[[PurePosixPath, dict[str, str]], tuple[str, str, str] | None]


class Source(NamedTuple):
    """Where a set lies, and what a path of it says: `(part, class, file name)`, or None for what is left out."""

    repository: str
    commit: str
    place: Place
    tables: tuple[str, ...] = ()  # files of lines `path number`
    held_out: int = 0  # images per class that become the validation part
    most: int | None = None  # images per class that are taken, by a fixed seed; all of them if None
    sifted: bool = False  # whether `unfit` images and repeated files are left out


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


def taken(start: str, name: str | None = None) -> Place:
    """Images below a folder, for training: their class is the folders between, or `name` if all are of one."""

    def place(path: PurePosixPath, classes: dict[str, str]) -> tuple[str, str, str] | None:
        if path.suffix.lower() not in ENDINGS or not path.is_relative_to(start):
            return None
        return "train", name or "-".join(path.relative_to(start).parts[:-1]), path.name

    return place


def rooms(path: PurePosixPath, classes: dict[str, str]) -> tuple[str, str, str] | None:
    """`Houses Dataset/12_kitchen.jpg`."""
    return ("train", path.stem.split("_")[1], path.name) if path.suffix == ".jpg" else None


def photographs(repository: str, commit: str, start: str, name: str | None = None, most: int | None = None) -> Source:
    """A set for training only, of which what `unfit` finds is left out."""
    return Source(repository, commit, taken(start, name), most=most, sifted=True)


PHOTOGRAPHS = {  # without labels: each is one class of OUT/photographs
    "objects": photographs("eric100789+CSE_DIP_Project", "8e2f4502daf0", "train", "objects"),
    "styles": photographs("ZhaoyueCheng+Image-Style-Recognition", "f51978eadce4", "train", "styles"),
    "bengal": photographs("mzahid36+Image-captioning-dataset-BCG-", "d7c1c771bb7a", "Images", "bengal"),
    "street": photographs("ruixuejianfei+SYSU-Scene", "8df23ad24851", "images", "street"),
    "web": photographs("xcreateadmin+cc_sbu_data", "02b4eddbb23f", "image", "web"),
    "nature": photographs("prasadpol0555+Image-search-case-study", "6726443de696", "data/images", "nature"),
    "packages": photographs("allpreegroup+products", "59397b036e88", "images", "packages", 2000),
    "clothing": photographs("alexeygrigorev+clothing-dataset", "7ed86a9cc567", "images", "clothing", 2500),
    "fashion": photographs("GaneshNeupane01+Fashion-Recommendation-System", "7cf263426a1a", "images", "fashion", 2000),
    "runway": photographs("thenorthwes+fodadataset", "39ed3b9d98a4", "JPEGImages", "runway", 1000),
}

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
    "food101": photographs("Gandolier+genai_food101_repo", "1ed9ca6f2856", "data/train", most=110),
    "imagewoof": photographs("thunderInfy+imagewoof", "6338aeea0989", "train", most=300),
    "monkeys": photographs("nikhildutta333+Monkey-Species-Classification", "cb62130b1822", "training"),
    "grocery": photographs("marcusklasson+GroceryStoreDataset", "fc80ba90f803", "dataset/train"),
    "vehicles": photographs("arnavagrawal2701+CNN_From_Scratch", "8696babf651c", "Car-Bike-Dataset", most=1200),
    "rooms": Source("emanhamed+Houses-dataset", "5e1482195005", rooms, most=300, sifted=True),
    "seedlings": photographs("sergeyvilov+plant_seedings", "fcbfafe3630f", "train_validation", most=120),
    "aerial": photographs("palewithout+RSSCN7", "6d77849df87d", ".", most=200),
    "chests": photographs("lecuong1502+BTL_Machine_Learning", "19a2d6171e2b", "train", most=250),
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
    """The contents of many files, in order; nothing for one that the clone lacks."""
    with subprocess.Popen(
        ["git", f"--git-dir={clone}", "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for identity in ids:
            process.stdin.write(f"{identity}\n".encode())
            process.stdin.flush()
            header = process.stdout.readline().split()
            yield b"" if header[1] == b"missing" else process.stdout.read(int(header[2]) + 1)[:-1]
        process.stdin.close()


def unfit(content: bytes) -> bool:
    """Whether a file is no image that can be read, a small or narrow one, or one of nearly one colour."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (2 * PIXELS, 2 * PIXELS))
            if image.mode in ("P", "PA", "LA", "RGBA"):
                clear = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            whole = image.convert("RGB")
    except (OSError, SyntaxError):  # the latter of broken PNG files
        return True
    side = min(whole.size)
    if side < LEAST or max(whole.size) > LONGEST * side:
        return True
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    box, size = (left, top, left + side, top + side), (min(PIXELS, side), min(PIXELS, side))
    square = whole.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return bool(np.asarray(square.convert("L")).std() < CONTRAST)


def excluded() -> set[str]:
    """The images, by their paths below IMAGES or SMALLER, that are near copies of those that networks are measured on."""
    lists = [Path(__file__).with_name(name) for name in ("excluded.txt", "excluded-further.txt")]
    return {row.split("\t")[0] for file in lists for row in file.read_text(encoding="utf-8").splitlines()}


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
        if source.most is not None and len(images) > source.most:
            images[:] = random.Random(0).sample(images, source.most)
        held.update(random.Random(0).sample(images, source.held_out))
    found = sorted(image for images in by_class.values() for image in images)
    counts: dict[str, int] = defaultdict(int)
    seen: set[bytes] = set()
    for image, content in zip(found, blobs(clone, [identity for *_, identity in found]), strict=True):
        if not content:
            continue
        if source.sifted:
            digest = hashlib.sha1(content).digest()
            if digest in seen or unfit(content):
                continue
            seen.add(digest)
        part, name, file, _ = image
        part = "val" if image in held else part
        folder = out / part / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
        counts[part] += 1
    return dict(counts)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not (SETS | PHOTOGRAPHS).keys() >= set(sys.argv[3:]):
        sys.exit(f"{__doc__}\nsets: {', '.join(SETS | PHOTOGRAPHS)}")
    for key in sys.argv[3:] or (SETS | PHOTOGRAPHS):
        origin = (SETS | PHOTOGRAPHS)[key]
        folder = "photographs" if key in PHOTOGRAPHS else key
        print(key, unpack(Path(sys.argv[1]) / origin.repository, origin, Path(sys.argv[2]) / folder), flush=True)
