"""Lists the training images that nearly repeat an image of a set that the networks are measured on.

usage: python recipes/bit-t/duplicates.py IMAGES MEASURED > recipes/bit-t/excluded.txt

IMAGES/<set>/train is compared with every IMAGES/<set>/val (part of what is measured) and with every image under MEASURED/<set>.
An image is 32 x 32 grey values, once of all of it and, if it is not square, once of its central square, without their mean and of
unit length; two images are near-duplicates if the product of these, their correlation, is above CLOSE, and so is (above FINE) that of
what a quarter of their size lacks: horizons and gradients are alike without being the same picture. In classes of the same name less
will do. Images without contrast are left out. Some sets were squashed to squares and others cut (CENTRAL), so the middle of the
former is compared with the latter as well. Candidates are found at half the size.
One line for each: path, its nearest measured image, both correlations. Thumbnails are kept in IMAGES/thumbnails.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

CLOSE, FINE, COARSE = 0.90, 0.65, 0.90
SAME_CLOSE, SAME_FINE = 0.78, 0.55  # of classes of one name
CONTRAST = 6.0  # least standard deviation of the grey values, of 255
CENTRAL = {"tiny", "flowers12"}  # sets of central squares; others were squashed to squares, or left as they were
SQUASHED = ((32, 24), (32, 22), (24, 32))  # rows and columns of the middle of a thumbnail of 4:3, 3:2 and 3:4
SAME_SQUASHED = (*SQUASHED, (22, 32))  # the rare 2:3 in classes of one name only
ENDINGS = {".jpg", ".jpeg", ".png"}


def thumbnails(path: Path) -> list[np.ndarray]:
    """Grey values `[32, 32]` of an image, and of its central square if that is another; none if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.draft("L", (64, 64))  # shrinks while it decodes, to 64 px or more
            grey = image.convert("L")
    except OSError:
        print(f"cannot be read: {path}", file=sys.stderr)
        return []
    width, height = grey.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    boxes = {(0, 0, width, height), (left, top, left + side, top + side)}
    return [
        np.asarray(grey.resize((32, 32), Image.Resampling.BOX, box=box, reducing_gap=None)) for box in sorted(boxes)
    ]


def gathered(folder: Path, cache: Path) -> tuple[list[str], torch.Tensor]:
    """Paths in the folder and thumbnails uint8 `[N, 32, 32]`, of all its images; a path may come twice."""
    if not cache.exists():
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = list(pool.map(thumbnails, paths))
        names = [path.relative_to(folder).as_posix() for path, images in zip(paths, found, strict=True) for _ in images]
        cache.parent.mkdir(exist_ok=True)
        thumbs = np.array([image for images in found for image in images], dtype=np.uint8).reshape(-1, 32, 32)
        np.savez(cache, names=np.array(names, dtype=str), images=thumbs)
    with np.load(cache) as stored:
        return stored["names"].tolist(), torch.from_numpy(stored["images"])


def resized(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Grey values `[N, rows, columns]` as floats, averaged over areas."""
    return F.interpolate(images[:, None].float(), size=(rows, columns), mode="area")[:, 0]


def central(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Grey values `[N, rows, columns]` out of the middle."""
    top, left = (images.shape[1] - rows) // 2, (images.shape[2] - columns) // 2
    return images[:, top : top + rows, left : left + columns]


def unit(values: torch.Tensor) -> torch.Tensor:
    """Rows without their mean, of length 1; rows of nothing stay 0."""
    values = values.flatten(1).float()
    return F.normalize(values - values.mean(1, keepdim=True), dim=1, eps=1e-3)


def fine(images: torch.Tensor) -> torch.Tensor:
    """What the images `[N, H, W]` hold beside their form of a quarter of the size."""
    height, width = images.shape[1:]
    coarse = resized(images, height // 4, width // 4)
    return images.float() - F.interpolate(coarse[:, None], size=(height, width), mode="bilinear")[:, 0]


def matches(train: torch.Tensor, measured: torch.Tensor) -> Iterator[tuple[int, int, float, float]]:
    """Pairs `(train, measured, correlation, fine correlation)` above the thresholds, of images `[N, H, W]`."""
    half = (train.shape[1] // 2, train.shape[2] // 2)
    coarse = unit(resized(measured, *half))
    coarse[measured.float().flatten(1).std(1) < CONTRAST] = 0
    coarse = coarse.bfloat16()  # twice as fast, and 0.001 off
    for start in range(0, len(train), 512):  # blocks that a core's cache holds
        block = train[start : start + 512]
        rows = unit(resized(block, *half)).bfloat16()
        for other in range(0, len(measured), 2048):
            near = rows @ coarse[other : other + 2048].T
            if near.max() <= COARSE:
                continue
            i, j = (near > COARSE).nonzero(as_tuple=True)
            j = j + other
            close = (unit(block[i]) * unit(measured[j])).sum(1)
            detail = (unit(fine(block[i])) * unit(fine(measured[j]))).sum(1)
            keep = (close > CLOSE) & (detail > FINE)
            found = ((i + start)[keep], j[keep], close[keep], detail[keep])
            yield from zip(*(values.tolist() for values in found), strict=True)


def middle(images: torch.Tensor, shape: tuple[int, int], square: bool) -> torch.Tensor:
    """The part of thumbnails `[N, 32, 32]` that a central square shows of them, or such squares in the form of that part."""
    return resized(images, *shape).round().byte() if square else central(images, *shape)


def same_class(train: torch.Tensor, measured: torch.Tensor) -> Iterator[tuple[int, int, float, float]]:
    """As `matches`, with the lower thresholds, every pair of few images."""
    close, detail = unit(train) @ unit(measured).T, unit(fine(train)) @ unit(fine(measured)).T
    i, j = ((close > SAME_CLOSE) & (detail > SAME_FINE)).nonzero(as_tuple=True)
    yield from zip(i.tolist(), j.tolist(), close[i, j].tolist(), detail[i, j].tolist(), strict=True)


def by_class(paths: list[str]) -> dict[str, torch.Tensor]:
    """Numbers of the images of each class, which is the folder that they lie in."""
    found: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        found.setdefault(Path(path).parent.name, []).append(number)
    return {name: torch.tensor(numbers) for name, numbers in found.items()}


def compared(
    train: tuple[list[str], torch.Tensor], measured: tuple[list[str], torch.Tensor], squares: tuple[bool, bool]
) -> Iterator[tuple[int, int, float, float]]:
    """`matches` of two sets of paths and thumbnails, where one was squashed and the other cut (`squares`) too; a pair may come twice."""
    classes = by_class(train[0]), by_class(measured[0])
    for shape in ((32, 32), *(SAME_SQUASHED if squares[0] != squares[1] else ())):
        some, others = middle(train[1], shape, squares[0]), middle(measured[1], shape, squares[1])
        if shape not in SAME_SQUASHED[len(SQUASHED) :]:
            yield from matches(some, others)
        for name in classes[0].keys() & classes[1].keys():
            at, to = classes[0][name], classes[1][name]
            for i, j, close, detail in same_class(some[at], others[to]):
                yield int(at[i]), int(to[j]), close, detail


def main(images: Path, evaluated: Path) -> None:
    cache = images / "thumbnails"
    sets = sorted(folder for folder in images.iterdir() if (folder / "train").is_dir())
    measured = {f"{folder.name}/val": folder / "val" for folder in sets}
    measured |= {folder.name: folder for folder in sorted(evaluated.iterdir()) if folder.is_dir()}
    others = {name: gathered(folder, cache / f"{name.replace('/', '-')}.npz") for name, folder in measured.items()}
    for folder in sets:
        train = gathered(folder / "train", cache / f"{folder.name}-train.npz")
        best: dict[str, tuple[float, float, str]] = {}
        for name, other in others.items():
            squares = (folder.name in CENTRAL, name.split("/")[0] in CENTRAL)
            for i, j, close, detail in compared(train, other, squares):
                path = train[0][i]
                best[path] = max(best.get(path, (0.0, 0.0, "")), (close, detail, f"{name}/{other[0][j]}"))
        for path, (close, detail, name) in sorted(best.items()):
            print(f"{folder.name}/train/{path}\t{name}\t{close:.3f}\t{detail:.3f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
