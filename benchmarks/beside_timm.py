"""`bit finetune --budget` beside timm's own `train.py` at equal time: the same images, the same core, the same ImageNet weights at hand.

    python -m benchmarks.beside_timm TRAIN_PY SETS WORK --names trashnet intel [--budget 15m] [--rate 16] [--core 1]

TRAIN_PY is timm's script, from its repository: the package does not hold it. It fine-tunes EfficientNet-Lite0 (`tf_efficientnet_lite0`, the
weights that our installation brings too) at `SIZE` px by AdamW, cosine and label smoothing, for as many epochs as `--rate` images/s fill
the time with; what they took is in the table. `bit finetune SET --budget B` is asked for nothing else. Both are measured on the set's
`test`, timm's after its last epoch. One thread, one core each, one after the other; seconds are the processor's, which other programs
on the core do not lengthen (our budget is the clock's: keep the core free for it). What is done is kept in WORK. Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.cells import Cells, commit, machine
from bigtransfer import data, weights
from bigtransfer.config import seconds

SIZE, BATCH = 128, 32


def alone(command: Sequence[str], core: int, log: Path) -> float:
    """Processor seconds that a command takes on that core; what it prints goes into `log`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(
            ["taskset", "-c", str(core), *command], stdout=file, stderr=subprocess.STDOUT, env=environment, check=True
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def initial(classes: int, work: Path) -> Path:
    """A checkpoint of timm's with the package's weights of EfficientNet-Lite0 and a head of zeros."""
    network = weights.load("efficientnet-lite0")
    state = {
        name.removeprefix("body."): value for name, value in network.state_dict().items() if name.startswith("body.")
    }
    state |= {"classifier.weight": torch.zeros(classes, network.num_features), "classifier.bias": torch.zeros(classes)}
    file = work / f"lite0-{classes}.pth"
    torch.save(state, file)
    return file


def by_timm(script: Path, folder: Path, work: Path, budget: float, rate: float, core: int) -> dict[str, float]:
    """timm's test accuracy after the last epoch, %, and how long it took."""
    parts = data.open_dataset(str(folder))
    assert parts.test is not None
    classes, images, tests = len(parts.train.class_names), len(parts.train), len(parts.test)
    epochs = max(1, round(budget * rate / (images + tests / 3)))  # a forward pass is a third of a step
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), "--data-dir", str(folder), "--train-split", "train", "--val-split", "test"]
    command += ["--model", "tf_efficientnet_lite0", "--num-classes", str(classes)]
    command += ["--initial-checkpoint", str(initial(classes, work))]
    command += ["--img-size", str(SIZE), "--batch-size", str(BATCH), "--scale", "0.35", "1.0", "--smoothing", "0.1"]
    command += ["--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.05", "--clip-grad", "1.0"]
    command += ["--sched", "cosine", "--sched-on-updates", "--warmup-epochs", "1", "--epochs", str(epochs)]
    command += ["--device", "cpu", "--channels-last", "--no-prefetcher", "--workers", "0", "--seed", "0"]
    command += ["--output", str(work), "--experiment", "timm"]
    took = alone(command, core, work / "log")
    found = re.findall(r"Acc@1:\s*[\d.]+ \(\s*([\d.]+)\)", (work / "log").read_text(encoding="utf-8"))
    return {"top1": float(found[-1]), "seconds": took, "epochs": epochs, "images": images, "tests": tests}


def by_us(folder: Path, work: Path, budget: str, core: int) -> dict[str, float]:
    """The same of `bit finetune --budget`."""
    work.mkdir(parents=True, exist_ok=True)
    run = work / "run"
    command = [sys.executable, "-m", "bigtransfer", "finetune", str(folder), "--out", str(run), "--budget", budget]
    took = alone(command, core, work / "log")
    measured = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return {"top1": 100 * measured["top1"], "seconds": took, "tests": measured["images"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="beside_timm.py", description="bit finetune beside timm's train.py, at equal time."
    )
    parser.add_argument("script", type=Path, help="timm's train.py")
    parser.add_argument("sets", type=Path, help="folder of the sets, each with train/ and test/")
    parser.add_argument("work", type=Path, help="folder for what is kept")
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--budget", default="15m")
    parser.add_argument("--rate", type=float, default=16.0, help="images/s of timm's training on this core")
    parser.add_argument("--core", type=int, default=0)
    asked = parser.parse_args(arguments)
    kept, rows = Cells(asked.work), []
    for name in asked.names:
        folder, told = asked.sets / name, {"set": name, "budget": asked.budget}
        timm = kept.once(
            told | {"by": "timm", "rate": asked.rate},
            lambda work, folder=folder: by_timm(
                asked.script, folder, work, seconds(asked.budget), asked.rate, asked.core
            ),
        )
        ours = kept.once(
            told | {"by": "bit"}, lambda work, folder=folder: by_us(folder, work, asked.budget, asked.core)
        )
        if timm is not None and ours is not None:
            rows.append((name, timm, ours))
    print(
        "| set | images to learn from, test images | timm: top-1, seconds, epochs | bit: top-1, seconds, test images seen |"
    )
    print("|---|---|---|---|")
    for name, timm, ours in rows:
        print(
            f"| {name} | {timm['images']:,}, {timm['tests']:,} | {timm['top1']:.1f}, {timm['seconds']:.0f}, {timm['epochs']:.0f} | "
            f"{ours['top1']:.1f}, {ours['seconds']:.0f}, {ours['tests']:,} |"
        )
    print(f"\n- timm {importlib.metadata.version('timm')}; commit {commit()}; {machine()}")


if __name__ == "__main__":
    main()
