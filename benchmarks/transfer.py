"""Does the bundled model transfer? 1 to 100 images per class, fine-tuned, beside random weights at the same budget and the linear probe.

    OMP_NUM_THREADS=1 python -m benchmarks.transfer --data SETS --work WORK --out benchmarks/results/transfer_cpu_DATE.md

SETS holds one folder of images per set: cifar10 (train/, test/: the official test set), flowers12 (train/, test/), trashnet and pacs-art (a
folder per class). The last is `PACS/art_painting` of github.com/MachineLearning2020/Homework3-PACS; the other sources are in
benchmarks/results. A quarter of trashnet and two fifths of pacs-art are held out, the same images in all runs.

The training is a number of steps, the same for both starts, so that the speed of the machine does not change the result: what `bit
finetune --budget 8s` would choose at 160 images/s, and for two rows `--budget 40s`. Finished cells in --work are kept: the same command
goes on, and several processes with the same command share the work. The table is written once all cells are there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import cells
from bigtransfer import data, weights
from bigtransfer.config import FinetuneConfig
from bigtransfer.data import splits
from bigtransfer.evals import linear
from bigtransfer.feed.loader import eval_batches

PREPARED: dict[str, dict[str, Any]] = {
    "flowers12": {},
    "trashnet": {"held_out": 0.25},
    "pacs-art": {"held_out": 0.4},
    "cifar10": {"test_per_class": 200},
}
STARTS = ("random weights", "fine-tuned", "linear probe")
SHORT: dict[str, Any] = {"steps": 40, "batch_size": 32, "learning_rate": 0.01, "crop": 48}
LONG = {**SHORT, "steps": 200, "learning_rate": 0.0075}


@dataclass(frozen=True, eq=False)
class Section:
    """Rows of the table: one set, one training, several numbers of images."""

    name: str
    images: str
    counts: tuple[int, ...]
    """Of training images per class."""
    training: dict[str, Any] = field(default_factory=lambda: SHORT)


SECTIONS = (
    Section("flowers12", "240 official test images, 60 to train on in each of 12 classes", (1, 5, 10, 25, 60)),
    Section("trashnet", "632 held-out images, 6 classes", (1, 5, 10, 25, 100)),
    Section("pacs-art", "819 held-out paintings, 7 classes", (1, 5, 10, 25, 100)),
    Section("cifar10", "2,000 of the official test images, 200 of each of 10 classes", (1, 5, 10, 25, 100)),
    Section("cifar10", "the same test images, five times the training", (10, 100), LONG),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the finished cells")
    parser.add_argument("--out", type=Path, required=True, help="the table to write")
    parser.add_argument("--model", default="bit-t-r26x1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS, help="without all of them, no table")
    chosen = parser.parse_args()

    bench = Bench(chosen.model, chosen.data, chosen.work, cells.Cells(chosen.work / "cells"))
    results: dict[tuple[Section, int, str], list[float]] = {}
    missing = 0
    for start in chosen.starts:
        for seed in range(chosen.seeds):
            for section in SECTIONS:
                for k in section.counts:
                    top1 = bench.top1(section, k, start, seed)
                    missing += top1 is None
                    if top1 is not None:
                        results.setdefault((section, k, start), []).append(top1)
    if missing:
        print(f"{missing} cells are still missing")
    elif set(chosen.starts) == set(STARTS):
        write(chosen, bench, results)


class Bench:
    """The cells of the table: each is measured once."""

    def __init__(self, model: str, sets: Path, work: Path, finished: cells.Cells) -> None:
        self.model = model
        self.sets = sets
        self.work = work
        self.cells = finished
        network = weights.load(model)
        self.units = network.architecture.units
        digest = hashlib.sha256()
        for tensor in network.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        self.sha256 = digest.hexdigest()[:16]
        """Of the model's tensors."""

    def top1(self, section: Section, k: int, start: str, seed: int) -> float | None:
        """On the set's test images, after training on k images of each class; None while another process measures it."""
        asked: dict[str, Any] = {"set": section.name, "per class": k, "start": start, "seed": seed}
        if start == "linear probe":
            asked |= {"model": self.sha256}
            cell = self.cells.once(asked, lambda _: {"top1": self._probe(section.name, k, seed)})
        else:
            pretrained = start == "fine-tuned"
            asked |= {**section.training, **({"model": self.sha256} if pretrained else {"units": self.units})}
            cell = self.cells.once(asked, lambda run: {"top1": self._finetune(section, k, seed, pretrained, run)})
        return None if cell is None else cell["top1"]

    def _folder(self, name: str) -> Path:
        return cells.prepared(self.sets / name, self.work, **PREPARED[name])

    def _finetune(self, section: Section, k: int, seed: int, pretrained: bool, run: Path) -> float:
        return cells.top1(
            FinetuneConfig(
                data=str(self._folder(section.name)),
                model=self.model,
                out=str(run),
                examples_per_class=k,
                pretrained=pretrained,
                seed=seed,
                workers=0,
                **section.training,
            )
        )

    def _probe(self, name: str, k: int, seed: int) -> float:
        train, labels, test, truth, few = self._features(name)
        rows = few(k, seed)
        probe = linear.fit(train[rows], labels[rows], int(labels.max()) + 1)
        with torch.no_grad():
            return float((probe.head(test).argmax(1) == truth).double().mean())

    @functools.cache  # noqa: B019 (one object, as long as the process)
    def _features(self, name: str):
        parts = data.open_dataset(str(self._folder(name)))
        assert parts.test is not None
        model = weights.load(self.model)
        model.to(memory_format=torch.channels_last)
        found = [
            linear.extract_features(model, eval_batches(images, model.card.input, 64), "cpu", torch.bfloat16)
            for images in (parts.train, parts.test)
        ]
        position = {int(row): i for i, row in enumerate(parts.train.rows)}

        def few(k: int, seed: int) -> list[int]:
            """Which training images `finetune` would draw."""
            return [position[int(row)] for row in splits.per_class(parts.train, k, seed).rows]

        return (*found[0], *found[1], few)


def write(chosen: argparse.Namespace, bench: Bench, results: dict[tuple[Section, int, str], list[float]]) -> None:
    lines = [
        f"# Transfer of {chosen.model}: 1 to 100 images per class",
        "",
        f"Top-1 in %, median (lowest to highest) of {chosen.seeds} seeds; the seed draws the training images and all else that is random.",
        "Fine-tuned, and from random weights with the same training: all weights are trained. Linear probe: `--linear closed`.",
    ]
    for section in SECTIONS:
        training = section.training
        lines += [
            "",
            f"## {section.name}: {section.images}",
            "",
            f"{training['steps']} steps of {training['batch_size']} images at {training['crop']} px, highest learning rate "
            f"{training['learning_rate']}, otherwise the BiT-HyperRule.",
            "",
            f"| images per class | {' | '.join(STARTS)} | fine-tuned minus random | of the seeds, fine-tuned better |",
            "|---|" + "---|" * (len(STARTS) + 2),
        ]
        for k in section.counts:
            tuned, random = results[section, k, "fine-tuned"], results[section, k, "random weights"]
            better = sum(one > other for one, other in zip(tuned, random, strict=True))
            lines.append(
                f"| {k} | {' | '.join(cells.spread(results[section, k, start]) for start in STARTS)} "
                f"| {100 * (statistics.median(tuned) - statistics.median(random)):+.1f} | {better} of {len(tuned)} |"
            )
    raw = {
        f"{section.name}, {section.training['steps']} steps, {k}, {start}": values
        for (section, k, start), values in results.items()
    }
    lines += [
        "",
        f"- command: `python -m benchmarks.transfer --data SETS --work WORK --out {chosen.out} --model {chosen.model}`",
        f"- {cells.machine()}; commits of the package: {', '.join(bench.cells.commits())}; model's tensors sha256 {bench.sha256}",
        f"- raw numbers: {json.dumps(raw)}",
    ]
    chosen.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
