"""Section 2: storage and decoding."""

from __future__ import annotations

import math

from bigtransfer.catalog import ARCHITECTURES
from simulation.assumptions import IMAGES, STORED
from simulation.report.plan import BATCH, GB, SHARD, planned_step
from simulation.report.tables import table


def section() -> str:
    stored = [
        (
            one.name,
            one.bytes / 1e3,
            one.decode,
            IMAGES * one.bytes / 1e12,
            *(f"{math.ceil(IMAGES * one.bytes / shard):,}" for shard in (64e6, SHARD, 1e9)),
        )
        for one in STORED
    ]
    rows = []
    for name in ("r152x4", "r101x3", "r50x1"):
        for nodes in (8, 32, 64):
            rate = BATCH / planned_step(nodes, ARCHITECTURES[name])
            for one in STORED:
                flows = (rate, rate * one.bytes / GB, rate / nodes * one.bytes * 8 / 1e9, rate / nodes / one.decode)
                rows.append((name, nodes, one.name, *flows))
    return f"""## 2. Storage and decoding

{table("stored | kB/image | decoded images/s and core | TB | shards of 64 MB | of 250 MB | of 1 GB", stored)}

What the GPUs ask for (steps of {BATCH:,}, the plan's network):

{table("network | nodes | stored | images/s | GB/s, all | Gb/s per node | cores per node", rows)}"""
