"""The suites `transfer`, `few-shot` and `omnibenchmark` from end to end on few real images in the layout of their authors.

    python -m benchmarks.small_suites IMAGES FLOWERS --model bit-t-r26x1 --results small.jsonl

IMAGES: pictures of CIFAR-10, FLOWERS: any pictures, both as {train,test}/CLASS/*; as many of each class as are there, and as many of each.
They are written as CIFAR-10's binary batches and as a realm of OmniBenchmark V1, and read, learnt from and measured by the code of the
suites; only the numbers of images and classes are others, so that nothing here can be compared with what was published.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bigtransfer.config import EvaluateConfig
from bigtransfer.jobs.suite import described, measured
from bigtransfer.suites import omnibenchmark, registry, transfer
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.suite import Suite, Task

LAMBDAS = (1e-4, 1e-3, 1e-2)


def _classes(images: Path) -> list[str]:
    return sorted(one.name for one in (images / "train").iterdir() if one.is_dir())


def _files(images: Path, part: str, name: str) -> list[Path]:
    return sorted((images / part / name).iterdir())


def cifar(images: Path, root: Path) -> Benchmark:
    """CIFAR-10's binary form: records of a label and 3 x 32 x 32 pixels, in five batches and one of test images."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(_classes(images)) + "\n")
    counts = {}
    for part in ("train", "test"):
        rows = []
        for label, name in enumerate(_classes(images)):
            for file in _files(images, part, name):
                pixels = np.asarray(Image.open(file).convert("RGB"))
                rows.append(bytes([label]) + pixels.transpose(2, 0, 1).tobytes())
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        counts[part] = len(rows)
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] if part == "train" else ["test_batch.bin"]
        for number, name in enumerate(names):
            (folder / name).write_bytes(b"".join(rows[number :: len(names)]))
    return dataclasses.replace(transfer.CIFAR10, revision="few of 2009", parts=counts)


def realm(images: Path, root: Path) -> Benchmark:
    """A realm of OmniBenchmark V1: `REALM.PART/record.txt` with a line for each image, a path and a number."""
    classes = _classes(images)
    folder = root / "omnibenchmark-v1" / "few"
    counts = {}
    for part, source in (("train", "train"), ("val", "test")):
        base = folder / f"few.{part}"
        lines = []
        for label, name in enumerate(classes):
            for file in _files(images, source, name):
                (base / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, base / name / file.name)
                lines.append(f"{name}/{file.name} {label}")
        (base / "record.txt").write_text("\n".join(lines) + "\n")
        counts[part] = len(lines)
    return Benchmark(
        name="omnibenchmark-v1-few",
        title="A realm of few images",
        revision="V1's layout",
        parts=counts,
        classes=len(classes),
        licence="of the images",
        obtain="see the source",
        gigabytes=None,
        folders=("omnibenchmark-v1/few",),
        read=functools.partial(omnibenchmark._read, 1, "few", len(classes)),
    )


def suite(few: Benchmark, one: Benchmark, shots: Sequence[int]) -> Suite:
    """Those tasks of the suites that a CPU can do."""
    probe = omnibenchmark.OmniProbe(steps=20, every=4, lambdas=LAMBDAS)
    curves = registry.find("few-shot")
    tasks = [
        curves.task(f"cifar-10/{name}/{way}")
        for way in ("linear-probe", "closed-form")
        for name in ([f"{count}-shot" for count in shots] if way == "linear-probe" else []) + ["full"]
    ]
    return Suite(
        name="small",
        title="Suites from end to end on few images (not comparable with anything)",
        tasks=(
            *(dataclasses.replace(task, benchmark=few) for task in tasks),
            Task(name="omnibenchmark/few", benchmark=one, protocol=probe),
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("flowers", type=Path)
    parser.add_argument("--model", default="bit-t-r26x1")
    parser.add_argument("--results", default="small.jsonl")
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 5, 10, 25])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bit-") as folder:
        root = Path(folder)
        made = suite(cifar(given.images, root), realm(given.flowers, root), given.shots)
        registry.SUITES[made.name] = made
        config = EvaluateConfig(model=given.model, suite=(made.name,), root=str(root), results=given.results)
        for outcome in measured(config):
            shown = [described(one) for one in outcome.results if "(draw" not in one.metric]
            print(outcome, *shown, outcome.error or "", sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
