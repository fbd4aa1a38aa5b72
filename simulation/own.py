"""What our own Python costs, measured."""

from __future__ import annotations

import contextlib
import io
import math
import tarfile
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulation.assumptions import IMAGES


@dataclass(frozen=True)
class IndexCost:
    """Opening a data set of tar shards with one core, for each further image."""

    seconds: float
    kept: float
    """Bytes on the heap afterwards, in every process. Arrays that are mapped into memory, which processes share, do not count."""
    peak: float
    """Bytes on the heap at most."""


def measure_index(images: int, *, indexed: bool) -> IndexCost:
    """Open shards of `images` and of twice as many images (of one pixel, which are not decoded), and compare.

    indexed: as `bit shard` writes them; otherwise plain WebDataset, whose tar headers are read.
    """
    costs = []
    for count in (images, 2 * images):
        with tempfile.TemporaryDirectory() as folder:
            costs.append(_opening(Path(folder), count, indexed))
    return IndexCost(*((more - less) / images for less, more in zip(*costs, strict=True)))


def _opening(folder: Path, images: int, indexed: bool) -> tuple[float, float, float]:
    """(seconds of the processor, bytes kept, bytes at the peak) to open a set of so many images."""
    from PIL import Image

    from bigtransfer.config import ShardConfig
    from bigtransfer.data import open_dataset
    from bigtransfer.jobs import shard

    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "JPEG")
    source = str(folder / "train-000000.tar")
    with tarfile.open(source, "w") as tar:
        for number in range(images):
            for ending, content in (("jpg", pixel.getvalue()), ("cls", str(number % 1000).encode())):
                member = tarfile.TarInfo(f"{number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    if indexed:
        with contextlib.redirect_stdout(io.StringIO()):
            shard.run(ShardConfig(source=source, destination=str(folder / "shards"), threads=1))
        source = str(folder / "shards")
    open_dataset(source)
    started = time.process_time()
    opened = open_dataset(source)
    seconds = time.process_time() - started
    del opened
    tracemalloc.start()
    opened = open_dataset(source)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(opened.train) == images
    return seconds, kept, peak


def measure_decoding(archive: Path, count: int = 60) -> list[tuple[str, float, float]]:
    """(what, bytes per image, images per second and core) of our decoder and Inception crop to 224 px.

    For photographs of a tar file as they are and enlarged to a shorter side of 256 px, JPEG q90. Seconds of the processor, best of 3,
    so that other work does not count.
    """
    from PIL import Image

    from bigtransfer.data import images
    from bigtransfer.feed.augment import InceptionCrop, draws

    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.lower().endswith(".jpg")][:count]
        files = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    larger = []
    for file in files:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        share = 256 / min(image.size)
        output = io.BytesIO()
        image.resize((round(image.width * share), round(image.height * share))).save(output, "JPEG", quality=90)
        larger.append(output.getvalue())
    crop = InceptionCrop(size=224)
    rows = draws(crop, 0, 0, count)
    found = []
    for what, encoded in ((f"{archive.stem}, as it is", files), (f"{archive.stem}, shorter side 256, q90", larger)):
        best = math.inf
        for _ in range(3):
            started = time.process_time()
            for file, row in zip(encoded, rows, strict=True):
                crop.apply(crop.prepare(images.decode(file, what)), row)
            best = min(best, time.process_time() - started)
        found.append((what, sum(map(len, encoded)) / count, count / best))
    return found


def measure_order(batch: int = 4096, run: int = 12_500, steps: int = 20) -> tuple[float, int]:
    """Seconds of the processor for the order of one batch of all 300 million images in runs of `run`, and the order's number of lanes."""
    from bigtransfer.feed.order import LaneOrder

    order = LaneOrder(np.arange(0, IMAGES + 1, run), batch, 0)
    order.indices(0)
    started = time.process_time()
    for step in range(1, 1 + steps):
        order.indices(step * 997)
    return (time.process_time() - started) / steps, order.lanes
