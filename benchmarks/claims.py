"""The paper's claims about pre-training, at a scale that one CPU core reaches: each a table of small networks, with the spread over seeds.

    OMP_NUM_THREADS=1 python -m benchmarks.claims normalization --upstream TINY_IMAGENET --data SETS --work WORK --out FILE.md

CLAIM is one of normalization (BatchNorm or GroupNorm, with and without Weight Standardization; small batches), schedule (longer
training, higher weight decay) and size (a larger network against a smaller one). The fourth claim, pre-trained against from scratch
over 1 to 100 images per class, is benchmarks.transfer.

Every network is trained from random weights on 250 images of each of 40 classes of Tiny-ImageNet (the classes and images are drawn with
seed 0), at 32 px, and measured on these classes' validation images; then all its weights are fine-tuned on CIFAR-10 (100 images per
class, measured on 2,000 test images, 200 of each class) and on flowers12 (60 per class, 240 test images). TINY_IMAGENET holds train/
and val/, SETS holds cifar10 and flowers12. Finished rows in --work are kept and shared by the claims; several processes with
the same command share the work. The table is written once all rows are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from benchmarks import cells
from bigtransfer import catalog, data
from bigtransfer.catalog import Architecture
from bigtransfer.config import FinetuneConfig, PretrainConfig
from bigtransfer.data import ImageSet, splits
from bigtransfer.jobs import pretrain
from bigtransfer.runs import Run

CLASSES, PER_CLASS = 40, 250
CROP = 32
BATCH = 64
TRANSFER: dict[str, Any] = {"steps": 60, "batch_size": 32, "learning_rate": 0.01, "crop": CROP}
TASKS: dict[str, int | None] = {"cifar10": 200, "flowers12": None}
"""Downstream set -> test images of each class, None: all."""

# One residual unit in each block: too small a network to have a name of its own.
cast(dict[str, Architecture], catalog.ARCHITECTURES)["r14x1"] = Architecture(units=(1, 1, 1, 1))


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """One way to pre-train."""

    model: str = "r14x1"
    norm: Literal["gn", "bn"] = "gn"
    weight_standardization: bool = True
    micro_batch: int = BATCH
    epochs: float = 3.0
    """0: not at all, the tasks are learned from random weights."""
    weight_decay: float = 1e-4
    learning_rate: float = 0.03


NORMALIZATION = {
    f"{norm.upper()}, {'WS' if ws else 'plain'}": Upstream(norm=norm, weight_standardization=ws)
    for norm in ("bn", "gn")
    for ws in (False, True)
}
CLAIMS: dict[str, dict[str, Upstream]] = {
    "normalization": {
        **NORMALIZATION,
        "BN, plain, statistics of 4 images": Upstream(norm="bn", weight_standardization=False, micro_batch=4),
    },
    "schedule": {
        f"{epochs:g} epochs, weight decay {decay:g}": Upstream(epochs=epochs, weight_decay=decay)
        for epochs, decay in ((1.5, 1e-4), (3.0, 1e-4), (6.0, 1e-4), (6.0, 1e-2))
    },
    "size": {
        "R14x1": Upstream(),
        "R26x1": Upstream(model="r26x1"),
        "R14x1, not pre-trained": Upstream(epochs=0.0),
        "R26x1, not pre-trained": Upstream(model="r26x1", epochs=0.0),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("--upstream", type=Path, required=True, help="folder of Tiny-ImageNet")
    parser.add_argument("--data", type=Path, required=True, help="folder of the downstream sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the finished rows")
    parser.add_argument("--out", type=Path, required=True, help="the table to write")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    bench = Bench(chosen)
    rows = {
        (label, seed): bench.row(upstream, seed)
        for seed in range(chosen.seeds)
        for label, upstream in CLAIMS[chosen.claim].items()
    }
    missing = [f"{label}, seed {seed}" for (label, seed), row in rows.items() if row is None]
    if missing:
        print(f"still missing: {'; '.join(missing)}")
    else:
        write(chosen, bench, cast(dict[tuple[str, int], dict[str, Any]], rows))


class Bench:
    """The cells of the tables: each is measured once."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.work: Path = chosen.work
        self.cells = cells.Cells(chosen.work / "cells")
        self.upstream = _upstream_subset(chosen.upstream, chosen.work / "data" / "tiny-imagenet-subset")
        self.tasks = {
            name: cells.prepared(chosen.data / name, chosen.work, test_per_class=count) for name, count in TASKS.items()
        }

    def row(self, upstream: Upstream, seed: int) -> dict[str, Any] | None:
        """The network's upstream numbers and its top-1 on each task; None if another process is at it."""
        asked = {**dataclasses.asdict(upstream), "batch_size": BATCH, "crop": CROP, "seed": seed, "transfer": TRANSFER}
        return self.cells.once(asked, lambda folder: self._measure(upstream, seed, folder))

    def _measure(self, upstream: Upstream, seed: int, folder: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        start: dict[str, Any] = {"model": upstream.model, "pretrained": False}
        if upstream.epochs:
            found = self._pretrain(upstream, seed, folder / "upstream")
            start = {"model": str(folder / "upstream" / "model.safetensors")}
        for name, task in self.tasks.items():
            found[name] = cells.top1(
                FinetuneConfig(data=str(task), out=str(folder / name), seed=seed, workers=0, **start, **TRANSFER)
            )
        return found

    def _pretrain(self, upstream: Upstream, seed: int, folder: Path) -> dict[str, Any]:
        stopped = pretrain.run(
            PretrainConfig(
                data=str(self.upstream),
                out=str(folder),
                batch_size=BATCH,
                crop=CROP,
                min_area=0.25,
                warmup=100,
                schedule="cosine",
                seed=seed,
                workers=0,
                cache="memory",
                **dataclasses.asdict(upstream),
            )
        )
        if stopped:
            raise SystemExit(stopped)
        metrics = list(Run(folder).metrics())
        curve = [line["val/top1"] for line in metrics if "val/top1" in line]
        losses = [line["loss"] for line in metrics if "loss" in line]
        return {"upstream": curve[-1], "curve": curve, "loss": statistics.mean(losses[-50:])}


def _upstream_subset(source: Path, target: Path) -> Path:
    """Links to PER_CLASS training images and all validation images of CLASSES classes, drawn with seed 0."""
    if not (target / "done").is_file():
        parts = data.open_dataset(str(source))
        assert parts.val is not None
        chosen = np.sort(np.random.default_rng(0).choice(len(parts.train.class_names), CLASSES, replace=False))
        cells.link_subset(splits.per_class(_of(parts.train, chosen), PER_CLASS, 0), source, target / "train")
        cells.link_subset(_of(parts.val, chosen), source, target / "val")
        (target / "done").touch()
    return target


def _of(images: ImageSet, classes: np.ndarray) -> ImageSet:
    """The images of some classes; classes: their labels, rising."""
    part = images.subset(np.flatnonzero(np.isin(cast(np.ndarray, images.labels), classes)))
    return dataclasses.replace(
        part,
        labels=np.searchsorted(classes, cast(np.ndarray, part.labels)),
        class_names=tuple(images.class_names[label] for label in classes),
    )


def write(chosen: argparse.Namespace, bench: Bench, rows: dict[tuple[str, int], dict[str, Any]]) -> None:
    lines = [
        f"# The paper's claims at this scale: {chosen.claim}",
        "",
        f"Top-1 in %, median (lowest to highest) of {chosen.seeds} seeds. Upstream: {CLASSES} classes of Tiny-ImageNet, {PER_CLASS} images",
        f"each, {CROP} px, batch {BATCH}. What a row does not say is as in {Upstream()}.",
        f"cifar10 and flowers12: all weights fine-tuned with {TRANSFER}.",
        "",
        "| upstream training | upstream top-1 | cifar10 | flowers12 | training loss at the end |",
        "|---|---|---|---|---|",
    ]
    for label in CLAIMS[chosen.claim]:
        of_seeds = [rows[label, seed] for seed in range(chosen.seeds)]
        upstream, loss = "", ""
        if "upstream" in of_seeds[0]:
            upstream = cells.spread(row["upstream"] for row in of_seeds)
            loss = f"{statistics.median(row['loss'] for row in of_seeds):.2f}"
        tasks = " | ".join(cells.spread(row[name] for row in of_seeds) for name in TASKS)
        lines.append(f"| {label} | {upstream} | {tasks} | {loss} |")
    raw = {f"{label}, seed {seed}": row for (label, seed), row in rows.items()}
    lines += [
        "",
        f"- command: `python -m benchmarks.claims {chosen.claim} --upstream TINY_IMAGENET --data SETS --work WORK --out {chosen.out} "
        f"--seeds {chosen.seeds}`",
        f"- {cells.machine()}; commits of the package: {', '.join(bench.cells.commits())}",
        f"- raw numbers (curve: upstream top-1 at each tenth of the training): {json.dumps(raw)}",
    ]
    chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
