"""Whether `bit predict --suggest` is better than drawing at random: paired, on many sets and draws.

usage: [FIRST=0 DRAWS=6] python -m benchmarks.suggest WORK SET...

SET/train/<class>/; features of at most 560 images and ten classes are kept in WORK (those of `benchmarks.growth`). Of each draw a third
of the images is for measuring, four of each class are labelled; as many again (a third of the rest at most) are labelled next: suggested,
most uncertain, or at random (two draws, their mean). What counts is the accuracy of the closed form then. Prints Markdown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import cells
from benchmarks.growth import features
from bigtransfer.evals import growth, linear, suggest

FIRST, DRAWS = int(os.environ.get("FIRST", "0")), int(os.environ.get("DRAWS", "6"))
EACH = 4
"""Images of a class that are labelled at first."""


def measured(seen: torch.Tensor, labels: torch.Tensor, draw: int) -> tuple[int, list[float]]:
    """How many are labelled next, and the accuracies: before, at random, most uncertain, suggested."""
    classes = int(labels.max()) + 1
    order = growth._order(labels, 2000 + draw)
    test, rest = order[: len(order) // 3], order[len(order) // 3 :]
    start, pool = rest[: EACH * classes], rest[EACH * classes :]
    count = min(EACH * classes, len(pool) // 3)

    def accuracy(rows: torch.Tensor) -> tuple[linear.Probe, float]:
        probe = linear.fit(seen[rows], labels[rows], classes)
        with torch.no_grad():
            return probe, float((probe.head(seen[test]).argmax(1) == labels[test]).double().mean())

    probe, before = accuracy(start)
    with torch.no_grad():
        said = probe.head(seen[pool]).softmax(1)
    generator = np.random.default_rng(draw)
    top = said.topk(2, dim=1).values
    chosen = {
        "random": generator.permutation(len(pool))[:count],
        "again": generator.permutation(len(pool))[:count],
        "uncertain": (top[:, 0] - top[:, 1]).argsort(stable=True)[:count].numpy(),
        "suggested": np.array(suggest.choose(seen[pool], said, count, seed=draw)),
    }
    found = {name: accuracy(torch.cat([start, pool[torch.from_numpy(rows)]]))[1] for name, rows in chosen.items()}
    return count, [before, (found["random"] + found["again"]) / 2, found["uncertain"], found["suggested"]]


def main(arguments: Sequence[str]) -> None:
    work, *sets = arguments
    Path(work).mkdir(parents=True, exist_ok=True)
    print(
        f"{cells.machine()}; commit of the package {cells.commit()}\n\n"
        f"`FIRST={FIRST} DRAWS={DRAWS} python -m benchmarks.suggest {' '.join(arguments)}`\n"
    )
    print("| set | labelled next | before | at random | most uncertain | suggested | suggested - random |")
    print("|---|---|---|---|---|---|---|", flush=True)
    gains, others = [], []
    for source in map(Path, sets):
        seen, labels = features(source, Path(work))
        counts, rows = zip(*(measured(seen, labels, draw) for draw in range(FIRST, FIRST + DRAWS)), strict=True)
        table = np.array(rows)
        own = table[:, 3] - table[:, 1]
        gains += own.tolist()
        others += (table[:, 2] - table[:, 1]).tolist()
        shown = " | ".join(f"{value:.1%}" for value in table.mean(0))
        print(f"| {source.name} | {counts[0]} | {shown} | {own.mean() * 100:+.1f} points |", flush=True)
    for name, differences in (("suggested", gains), ("most uncertain", others)):
        error = np.std(differences, ddof=1) / np.sqrt(len(differences))
        print(
            f"\n{name} - random: {np.mean(differences) * 100:+.2f} ± {196 * error:.2f} points (95%) in {len(differences)} pairs."
        )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
