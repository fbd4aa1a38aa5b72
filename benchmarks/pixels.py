"""Photographs decoded and shrunk on one core: the fast decoder beside the exact one, Pillow's `draft` and torchvision, and what it changes.

    python benchmarks/pixels.py FOLDER --labelled FOLDER     # writes benchmarks/results/pixels_cpu_<date>.md

FOLDER: photographs of at least 400 px. Of each a JPEG file is made whose shorter side has 400 px (and of some one of 12
megapixels), so that the figures are of one kind of image. All competitors take the files from memory and turns, 20 images
at a time, so that a slow minute of the machine hits all of them; ratios are medians of each round's own ratio.
--labelled: photographs as they are, in folders of their classes; a linear classifier on the bundled network's features,
solved in closed form, learns half of them, by each decoder, and is asked about the other half, by each decoder.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

import bigtransfer
from bigtransfer.catalog import InputSpec
from bigtransfer.data import images, open_dataset
from bigtransfer.evals import linear
from bigtransfer.feed.loader import eval_batches

SIZES = 48, 128, 224
SIDE, QUALITY = 400, 75
LARGE = 3000
_AT_A_TIME = 20
Way = Callable[[bytes, int], np.ndarray]


def fast(data: bytes, size: int) -> np.ndarray:
    return images.prepared(data, "", 3, InputSpec(size=size))


def fast_by_pillow(data: bytes, size: int) -> np.ndarray:
    with mock.patch.object(images, "_simplejpeg", None):
        return fast(data, size)


def exact(data: bytes, size: int) -> np.ndarray:
    return images.prepared(data, "", 3, InputSpec(size=size, decoder="exact"))


def exact_by_pillow(data: bytes, size: int) -> np.ndarray:
    """What the package did before it had the fast decoder."""
    with mock.patch.object(images, "_simplejpeg", None):
        return exact(data, size)


def draft(data: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (size, size))
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def by_torchvision(data: bytes, size: int) -> np.ndarray:
    pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return resize(pixels, [size, size], antialias=True).permute(1, 2, 0).contiguous().numpy()


WAYS: dict[str, Way] = {
    "exact by Pillow (as before)": exact_by_pillow,
    "exact": exact,
    "fast": fast,
    "fast without simplejpeg": fast_by_pillow,
    "torchvision, decoded whole": by_torchvision,
    "Pillow, draft to the size itself": draft,
}


def photographs(folder: Path, count: int, side: int) -> list[bytes]:
    """JPEG files whose shorter side has `side` px, of photographs in the folder that are at least `SIDE` px."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    found = []
    for i in np.random.default_rng(0).permutation(len(paths)).tolist():
        with Image.open(paths[i]) as image:
            if min(image.size) < SIDE or image.mode != "RGB":
                continue
            scale = side / min(image.size)
            small = image.resize([round(extent * scale) for extent in image.size], Image.Resampling.BICUBIC)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=QUALITY)
        found.append(file.getvalue())
        if len(found) == count:
            return found
    raise SystemExit(f"{folder} has {len(found)} photographs of at least {SIDE} px; {count} are needed.")


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((found.astype(np.float64) - expected) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def speed(files: Sequence[bytes], size: int, rounds: int) -> list[str]:
    """The table's rows: each way's images/s, ratio to the first, and distance to it."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        sums = dict.fromkeys(WAYS, 0.0)
        for first in range(0, len(files), _AT_A_TIME):
            for name, way in WAYS.items():
                start = time.process_time()
                for data in files[first : first + _AT_A_TIME]:
                    way(data, size)
                sums[name] += time.process_time() - start
        for name, total in sums.items():
            seconds[name].append(total / len(files))
    rows = []
    before, *_ = seconds.values()
    for name, way in WAYS.items():
        ratio = statistics.median(old / new for old, new in zip(before, seconds[name], strict=True))
        distances = [psnr(way(data, size), exact_by_pillow(data, size)) for data in files]
        finite = sorted(distances)
        shown = "same" if finite[0] == float("inf") else f"{statistics.median(finite):.1f} dB ({finite[0]:.1f})"
        rows.append(f"| {name} | {1 / statistics.median(seconds[name]):,.0f} | {ratio:.2f}x | {shown} |")
    return rows


def profile(files: Sequence[bytes], size: int, rounds: int) -> list[str]:
    """Microseconds an image for each part of the fast way, where nothing can be decoded at a smaller scale."""
    from bigtransfer.data import containers

    spec = InputSpec(size=size)
    wholes = [images.decode(data, "") for data in files]
    read = [containers.read(data) for data in files]
    opened = [encoded.opened() for encoded in read]
    parts: dict[str, Callable[[int], object]] = {
        "file taken apart (`containers.read`)": lambda i: containers.read(files[i]),
        "header by Pillow": lambda i: read[i].opened(),
        "decoding": lambda i: images._loaded(read[i], opened[i], 3),
        "shrinking": lambda i: images.prepare(wholes[i], spec),
        "all of it": lambda i: images.prepared(files[i], "", 3, spec),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            start = time.process_time()
            for i in range(len(files)):
                part(i)
            taken[name].append((time.process_time() - start) / len(files) * 1e6)
    return [f"| {name} | {statistics.median(each):,.0f} |" for name, each in taken.items()]


def answers(folder: Path) -> list[str]:
    """Top-1 on half of the photographs of a classifier that learnt from the other half, by decoder of training and of evaluation."""
    data = open_dataset(str(folder)).train
    network = bigtransfer.load_model("bit-t-r26x1")
    features = {}
    for decoder in ("exact", "fast"):
        spec = dataclasses.replace(network.card.input, decoder=decoder)
        features[decoder], labels = linear.extract_features(network, eval_batches(data, spec, 64, workers=1), "cpu")
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(data)))
    learnt, asked = order[::2], order[1::2]
    rows, right = [], {}
    for training in features:
        head = linear.fit(features[training][learnt], labels[learnt], len(data.class_names)).head
        for evaluation in features:
            with torch.no_grad():
                hits = head(features[evaluation][asked]).argmax(1) == labels[asked]
            right[training, evaluation] = hits
            changed = int((hits != right["exact", "exact"]).sum())
            rows.append(f"| {training} | {evaluation} | {hits.double().mean():.2%} | {changed} |")
    pixels = [
        psnr(data.read(i, network.card.input), data.read(i, dataclasses.replace(network.card.input, decoder="exact")))
        for i in order[:200].tolist()
    ]
    finite = [min(one, 99.0) for one in pixels]
    return [
        f"{len(learnt):,} photographs to learn from, {len(asked):,} to be asked about; {len(data.class_names)} classes. Fast to exact at "
        f"{network.card.input.size} px, 200 of them: {statistics.median(finite):.1f} dB ({min(finite):.1f}).",
        "",
        "| decoder of training | of evaluation | top-1 | other answers right or wrong than in the first row |",
        "|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labelled", type=Path, nargs="*", default=[])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    today = datetime.datetime.now(datetime.UTC)
    files = photographs(args.folder, args.count, SIDE)
    large = photographs(args.folder, 5, LARGE)
    lines = [
        f"# Photographs decoded and shrunk, {today:%Y-%m-%d %H:%M} UTC",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores of which one was used, load average at the start {os.getloadavg()[0]:.1f};"
        f" Python {platform.python_version()}, Pillow {PIL.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__},"
        f" simplejpeg {getattr(images._simplejpeg, '__version__', 'not installed')}; {args.rounds} alternated rounds, time of the process.",
        "",
        f"{len(files)} photographs with {SIDE} px on the shorter side, {np.mean([len(data) for data in files]) / 1e3:.0f} kB each, and "
        f"{len(large)} of about 12 megapixels. Distance: PSNR to the first row, median (least). Written by `python benchmarks/pixels.py`.",
    ]
    for title, some, rounds in ((f"{SIDE} px", files, args.rounds), ("12 megapixels", large, 2)):
        for size in SIZES:
            lines += ["", f"## {title} to {size} px", "", "| | images/s | speed | distance |", "|---|---|---|---|"]
            lines += speed(some, size, rounds)
    lines += ["", f"## Where the time goes: {SIDE} px to {SIZES[-1]} px, fast", "", "| | us an image |", "|---|---|"]
    lines += profile(files, SIZES[-1], args.rounds)
    for folder in args.labelled:
        lines += ["", f"## A linear classifier on the bundled network's features: {folder.name}", "", *answers(folder)]
    out = args.out or Path(__file__).parent / "results" / f"pixels_cpu_{today:%Y-%m-%d}.md"
    out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
