"""Does the bundled model transfer? Few images per class, fine-tuned, beside random weights at the same budget and the linear probe.

    python -m benchmarks.transfer --data ../shared/data --work /tmp/transfer --out benchmarks/results/transfer_cpu_DATE.md

Each cell is `bit finetune` as a user would call it, measured on the official test images (CIFAR-10, flowers12) or on a fifth of
the images held out with the seed (trashnet, which has no split). Finished runs in --work are kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import platform
import statistics
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bigtransfer
from bigtransfer.config import FinetuneConfig
from bigtransfer.jobs.finetune import finetune

STARTS: dict[str, dict[str, Any]] = {
    "fine-tuned": {},
    "random weights": {"pretrained": False},
    "linear probe": {"linear": "closed"},
}


@dataclass(frozen=True)
class Task:
    name: str
    archive: str
    folder: str
    examples_per_class: int | None = None
    val_fraction: float | None = None


TASKS = (
    Task("CIFAR-10, 1 per class", "cifar10.tar.xz", "cifar10", 1),
    Task("CIFAR-10, 10 per class", "cifar10.tar.xz", "cifar10", 10),
    Task("CIFAR-10, 100 per class", "cifar10.tar.xz", "cifar10", 100),
    Task("flowers12, all 720", "flowers12.tar", "flowers12"),
    Task("trashnet, 80 %", "trashnet.tar", "trashnet", None, 0.2),
)


def unpacked(archive: Path, work: Path, folder: str) -> Path:
    """The folder of images of an archive, unpacked once below `work`."""
    target = work / "data"
    if not (target / f"{archive.name}.done").is_file():
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        (target / f"{archive.name}.done").touch()
    return target / folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="the table to write")
    parser.add_argument("--model", default="bit-t-r26x1")
    parser.add_argument("--budget", default="45s", help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="run only tasks whose name starts so, and write no table")
    chosen = parser.parse_args()

    results: dict[tuple[str, str], list[float]] = {}
    recipes: dict[tuple[str, str], str] = {}
    for seed in range(chosen.seeds):
        for task in (task for task in TASKS if task.name.startswith(chosen.only)):
            for start, flags in STARTS.items():
                run = (
                    chosen.work / "runs" / f"{task.folder}-{task.examples_per_class or 'all'}-{start.split()[0]}-{seed}"
                )
                config = FinetuneConfig(
                    data=str(unpacked(chosen.data / task.archive, chosen.work, task.folder)),
                    model=chosen.model,
                    out=str(run),
                    examples_per_class=task.examples_per_class,
                    val_fraction=task.val_fraction,
                    seed=seed,
                    budget=None if "linear" in flags else chosen.budget,
                    **flags,
                )
                with contextlib.redirect_stdout(io.StringIO()):
                    done = finetune(config)
                top1 = next(value for key, value in done.metrics.items() if key.endswith("_top1"))
                results.setdefault((task.name, start), []).append(top1)
                if "linear" not in flags:
                    rule = done.recipe
                    recipes[task.name, start] = f"{rule.steps} x {rule.batch_size} at {rule.crop} px"
                print(f"{task.name}, {start}, seed {seed}: {top1:.1%}", flush=True)
    if not chosen.only:
        write(chosen, results, recipes)


def write(
    chosen: argparse.Namespace, results: dict[tuple[str, str], list[float]], recipes: dict[tuple[str, str], str]
) -> None:
    def cell(task: str, start: str) -> str:
        values = [100 * value for value in results[task, start]]
        return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"

    lines = [
        f"# Transfer of {chosen.model}, few images, {chosen.budget} of training",
        "",
        f"Top-1 in %, median (lowest to highest) of {chosen.seeds} seeds; the seed chooses the images too.",
        "",
        f"| task | {' | '.join(STARTS)} | fine-tuned minus random | steps x batch (last seed) |",
        "|---|" + "---|" * (len(STARTS) + 2),
    ]
    for task in TASKS:
        gain = statistics.median(results[task.name, "fine-tuned"]) - statistics.median(
            results[task.name, "random weights"]
        )
        cells = " | ".join(cell(task.name, start) for start in STARTS)
        lines.append(f"| {task.name} | {cells} | {100 * gain:+.1f} | {recipes[task.name, 'fine-tuned']} |")
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    lines += [
        "",
        f"- command: `python -m benchmarks.transfer --data DATA --work WORK --out {chosen.out} --budget {chosen.budget} --seeds "
        f"{chosen.seeds}`",
        f"- {datetime.date.today()}, {cpu or platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__}, bigtransfer "
        f"{bigtransfer.__version__}",
        "- raw numbers: " + json.dumps({f"{task} / {start}": values for (task, start), values in results.items()}),
    ]
    chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
