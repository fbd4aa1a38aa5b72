"""The training that all tables are about: the paper's BiT-L, and how we would run it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from bigtransfer import hyperrule
from bigtransfer.catalog import ARCHITECTURES, Architecture
from simulation.assumptions import HOUR, IMAGES, SMALL, Store
from simulation.compute import step_time
from simulation.reading import Input

DECAYS = (10.0, 23.0, 30.0, 37.0)
"""The paper's BiT-L: 40 epochs, the rate / 10 after these."""
EPOCHS = 40
BATCH = 4096
ARCH = ARCHITECTURES["r152x4"]
NODES = (8, 32, 64, 128, 256)
BUCKET = 200e6
"""The plan's gradient buckets, bytes."""
LANES = 512
"""What `feed.order.LaneOrder` chooses for this batch."""
SHARD = 250e6
WORKERS = 8
"""Decoding processes per rank."""
DECODED_AHEAD = 2
"""Steps that are decoded ahead where workers share each batch (`feed.background`, as it was at the results' commit)."""
STEPS_AHEAD = 100 + DECODED_AHEAD
"""Steps before its first use that `feed.loader` asked for a shard then."""
ENOUGH_AHEAD = 1000
"""The same, proposed."""
RECIPE = hyperrule.upstream(IMAGES, EPOCHS, batch_size=BATCH, decay_epochs=DECAYS)
LIMITS = (0.01, 0.05, 0.2)
HEDGED = Store(hedge=3.0)
DAY, GB = 24 * HOUR, 1e9


@functools.cache
def planned_step(nodes: int, arch: Architecture = ARCH, batch: int = BATCH) -> float:
    """Seconds of a step of the plan: rich network, float32 gradients, large buckets."""
    return step_time(arch, batch, nodes, bucket=BUCKET).seconds


def planned_input(
    nodes: int, *, lanes: int = LANES, shard: float = SHARD, steps_ahead: float = STEPS_AHEAD, **changes: Any
) -> Input:
    plan = Input(
        nodes=nodes,
        lanes=lanes,
        batch=BATCH,
        step=planned_step(min(nodes, NODES[-1])),
        shard_images=max(1, round(shard / SMALL.bytes)),
        image_bytes=SMALL.bytes,
        prefetch=0,
        ahead=steps_ahead * BATCH / lanes,
    )
    return dataclasses.replace(plan, **changes)
