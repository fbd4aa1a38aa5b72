"""Raw records beside decoding on the fly, on one core: images per second at 48, 128 and 224 px.

    python benchmarks/raw.py FOLDER        # writes benchmarks/results/raw_cpu_<date>.md

FOLDER: photographs, of which 300 are taken. Of each size `bit shard --raw` writes a set into a temporary folder; all images are then read
by number in random order, in turns of either kind, and that both give the same bytes is checked. Rates are per second of processor time (of
user and system), which other programs on the machine take nothing of but caches. The files are in the system's cache, as those of a set
that is used often are; from a disk no faster than it gives them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import bigtransfer
from bigtransfer import cli
from bigtransfer.catalog import InputSpec
from bigtransfer.data import ImageSet, open_dataset

SIZES = 48, 128, 224
TAKEN, ROUNDS, SECONDS = 300, 5, 1.0


def rate(images: ImageSet, spec: InputSpec, order: np.ndarray) -> float:
    started, count = time.process_time(), 0
    while True:
        for i in order[:50] if count == 0 else order:
            images.read(int(i), spec)
            count += 1
            if count % 50 == 0 and time.process_time() - started > SECONDS:
                return count / (time.process_time() - started)


def busy() -> tuple[float, float]:
    """Seconds of all cores at work, and in all."""
    words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(words) - words[3] - words[4], sum(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    before, own = busy(), time.process_time()
    with tempfile.TemporaryDirectory() as temporary:
        found = open_dataset(asked.folder).train
        root = Path(temporary) / "images"
        for i in np.random.default_rng(0).permutation(len(found))[:TAKEN]:
            path = root / found.name(int(i))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(found.data(int(i)))
        images = open_dataset(root).train
        order = np.random.default_rng(1).permutation(len(images))
        for size in SIZES:
            spec, place = InputSpec(size=size), Path(temporary) / f"raw-{size}"
            with contextlib.redirect_stdout(io.StringIO()):
                assert cli.main(["shard", str(root), str(place), "--raw", str(size), "--no-shuffle"]) == 0
            raw = open_dataset(place).train
            assert all(np.array_equal(raw.read(i, spec), images.read(i, spec)) for i in range(len(images)))
            rates = [(rate(images, spec, order), rate(raw, spec, order)) for _ in range(ROUNDS)]
            decoded, read = (statistics.median(column) for column in zip(*rates, strict=True))
            best = max(read for _, read in rates)
            ratio = statistics.median(read / decoded for decoded, read in rates)
            megabytes = sum(file.stat().st_size for file in place.glob("*.tar")) / 1e6
            lines.append(f"| {size} | {decoded:,.0f} | {read:,.0f} | {best:,.0f} | {ratio:.0f} | {megabytes:.1f} |")
            print(lines[-1], flush=True)
        kilobytes = sum(len(images.data(i)) for i in range(len(images))) / len(images) / 1e3
        height, width = np.median([images.size(i) for i in range(len(images))], axis=0)
    after, own = busy(), time.process_time() - own
    others = (after[0] - before[0] - own * os.sysconf("SC_CLK_TCK")) / (after[1] - before[1])
    today = datetime.date.today()
    out = Path(__file__).parent / "results" / f"raw_cpu_{today}.md"
    out.write_text(
        f"""# Raw records beside decoding on the fly, {today}

`python benchmarks/raw.py {Path(asked.folder).name}`: {len(images)} photographs (median {width:.0f} x {height:.0f} px, {kilobytes:.0f} kB a
file), one thread, read one by one in random order through `ImageSet.read`, files in the system's cache;
{ROUNDS} alternated rounds of {SECONDS:g} s of processor time, medians; images per second of processor time (user and system). The same
bytes from both (all images compared).

bigtransfer {bigtransfer.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}, {platform.platform()};
{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; other processes had {others:.0%} of the cores meanwhile, and of the caches.

| px | decoded, images/s | raw, images/s | raw, best round | raw / decoded, median of the rounds' ratios | MB of shards |
|---|---|---|---|---|---|
"""
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )
    print(f"written: {out}")


if __name__ == "__main__":
    main()
