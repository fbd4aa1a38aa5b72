"""Section 7: our own code, run."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np

from bigtransfer.feed.order import LaneOrder
from simulation.assumptions import HOUR, IMAGES
from simulation.order import readers_per_run, replay
from simulation.own import measure_decoding, measure_index, measure_order
from simulation.report.plan import BATCH, GB
from simulation.report.tables import table


def section(photographs: Path) -> str:
    images, run = BATCH * 300, 205
    runs = np.unique(np.append(np.arange(0, images, run), images))
    order = LaneOrder(runs, BATCH, 0)
    replayed = replay(lambda: LaneOrder(runs, BATCH, 0), images, BATCH, epochs=3, mean_steps=3, keep=4, ranks=4096)
    readers = [(parts, readers_per_run(order, runs, BATCH, parts)) for parts in (8, 32, 64, 256, 512, 1024, 2048, 4096)]
    seconds, lanes = measure_order()
    rows = [
        (
            "the order of one batch of 4,096, on every rank",
            f"{seconds * 1e3:.2g} ms",
            "the same, made ahead of the step",
        ),
    ]
    for what, indexed in (("plain tar shards", False), ("shards of `bit shard`", True)):
        cost = measure_index(10_000, indexed=indexed)
        # The difference of two openings: what does not grow with the images can come out a little below 0.
        opening, kept, most = (max(0.0, value) for value in (cost.seconds, cost.kept, cost.peak))
        whole = kept * IMAGES / GB
        rows += [
            (f"{what}: opening", f"{opening * 1e6:.1f} us an image", f"{opening * IMAGES / HOUR:.1f} h"),
            (
                f"{what}: open, heap",
                f"{kept:,.0f} bytes an image",
                f"{whole:,.1f} GB a process, {8 * whole:,.0f} GB for 8 ranks",
            ),
            (f"{what}: heap while opening", f"{most:,.0f} bytes an image", f"{most * IMAGES / GB:,.0f} GB a process"),
        ]
    mapped = 8 + 4 + 4  # offsets, lengths and labels of `data.index`
    rows.append(
        (
            "shards of `bit shard`: mapped files, shared",
            f"{mapped} bytes an image",
            f"{mapped * IMAGES / GB:.1f} GB a node",
        )
    )
    if photographs.is_file():
        rows += [
            (
                f"decode and crop, {what}",
                f"{size / 1e3:.1f} kB, {rate:.0f} images/s",
                f"{IMAGES / rate / HOUR:.0f} core-hours",
            )
            for what, size, rate in measure_decoding(photographs)
        ]
    return f"""## 7. Our own code, run

**Exactly once** (`feed.order.LaneOrder`, `dist.World.part`): {images:,} images in {len(runs) - 1:,} runs, batch {BATCH},
{replayed.epochs} epochs, {replayed.restarts} restarts at random moments with {replayed.worlds[0]} to {replayed.worlds[1]} ranks,
{replayed.repeated_steps} steps taken again: **{replayed.wrong}** images of an epoch missed or repeated.

Ranks (a cache for each) or nodes (a shared cache) that read an average run of this set, {lanes} lanes:

{table("ranks or nodes | readers per run", readers)}

Measured on one core shared with other work ({platform.machine()}; processor seconds), and what it comes to for {IMAGES:,} images:

{table(" | measured | at 300 million", rows)}"""
