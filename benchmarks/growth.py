"""How well `bit check` foretells accuracy with more photos: from 100 images what 400 give, on many sets and draws.

usage: [DRAWS=5] python -m benchmarks.growth WORK SET...

SET/train/<class>/. Of each set at most 560 images and 10 classes are looked at (their features are kept in WORK); of each draw 100 of them
foretell the accuracy with 400, which is then measured on all of them, each left out if it is among the 400. Prints Markdown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import cells
from bigtransfer import weights
from bigtransfer.config import CheckConfig
from bigtransfer.data import open_dataset, splits
from bigtransfer.evals import growth
from bigtransfer.jobs.check import looking
from bigtransfer.jobs.check.looking import Parts

DRAWS = int(os.environ.get("DRAWS", "5"))
FROM, TO, LOOKED_AT, CLASSES = 100, 400, 560, 10


def features(source: Path, work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    kept = work / f"{source.name}.npz"
    if not kept.is_file():
        images = open_dataset(str(source)).train
        assert images.labels is not None
        images = images.subset(np.flatnonzero(np.asarray(images.labels) < CLASSES))
        images = splits.evenly(images, LOOKED_AT, 0)
        config = CheckConfig(data=str(source))
        eye = looking.open_eye(config, weights.load(config.model), len(images))
        looked = looking.look(Parts({"train": images}), eye, config)
        readable = looked.sketches.readable
        labels = np.unique(np.asarray(images.labels)[readable], return_inverse=True)[1]
        np.savez(kept, f=looked.features[readable], l=labels)
    table = np.load(kept)
    return torch.from_numpy(table["f"].astype(np.float32)), torch.from_numpy(table["l"].astype(np.int64))


def main(arguments: Sequence[str]) -> None:
    work, *sets = arguments
    Path(work).mkdir(parents=True, exist_ok=True)
    print(
        f"{cells.machine()}; commit of the package {cells.commit()}\n\n"
        f"`DRAWS={DRAWS} python -m benchmarks.growth {' '.join(arguments)}`\n"
    )
    print(
        f"| set | classes | with {FROM} | foretold with {TO} | interval | measured | inside | no law: as with {FROM} |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    inside, off, still = [], [], []
    for source in map(Path, sets):
        seen, labels = features(source, Path(work))
        classes = int(labels.max()) + 1
        start = min(FROM, len(labels) // 5)
        goal = 4 * start
        for draw in range(DRAWS):
            order = growth._order(labels, 1000 + draw)
            few = order[:start]
            points = growth.curve(seen[few], labels[few], classes, seed=draw)
            if len(points) < 3:
                continue
            (forecast,) = growth.foretell(points, start, [goal])
            many = order[:goal].sort().values
            right = growth._right(seen, labels, classes, torch.arange(len(labels)), many)
            measured = float(right.double().mean())
            inside.append(forecast.low <= measured <= forecast.high)
            off.append(forecast.accuracy - measured)
            still.append(points[-1].accuracy - measured)
            print(
                f"| {source.name}{'' if start == FROM else f' ({start} to {goal})'} | {classes} | {points[-1].accuracy:.1%} | "
                f"{forecast.accuracy:.1%} | {forecast.low:.1%} – {forecast.high:.1%} | {measured:.1%} | "
                f"{'yes' if inside[-1] else 'no'} | {abs(still[-1]):.1%} off |",
                flush=True,
            )
    print(
        f"\n{len(inside)} forecasts: {np.mean(inside):.1%} inside the interval of {growth.INTERVAL:.0%}; off by {np.mean(np.abs(off)):.1%} "
        f"in the mean ({np.mean(off):+.1%} with its sign); without a law, by {np.mean(np.abs(still)):.1%}."
    )


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1:])
