"""Section 3: the input, simulated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from simulation.assumptions import SMALL, Store
from simulation.reading import Input, simulate_input
from simulation.report.plan import (
    BATCH,
    DECODED_AHEAD,
    ENOUGH_AHEAD,
    GB,
    HEDGED,
    LANES,
    LIMITS,
    NODES,
    SHARD,
    STEPS_AHEAD,
    planned_input,
    planned_step,
)
from simulation.report.tables import crossing, percent, table

_SIZES = (
    "nodes | shard MB | GB/s asked | s per shard and lane | asked ahead, s | a fetch, s | first batch s | settling s | "
    f"waits now | hedged | hedged, {ENOUGH_AHEAD} ahead"
)


def section() -> str:
    sizes = []
    for nodes in (1, *NODES):
        for size in (64e6, SHARD, 1e9):
            plan = planned_input(nodes, shard=size)
            lasts = plan.shard_images * LANES / BATCH * plan.step
            waits = [simulate_input(plan, store).waited for store in (Store(), HEDGED)]
            more = simulate_input(planned_input(nodes, shard=size, steps_ahead=ENOUGH_AHEAD), HEDGED)
            times = (STEPS_AHEAD * plan.step, Store().expected(size), more.first_batch, more.settling)
            facts = (nodes, size / 1e6, plan.demand / GB, lasts, *times)
            sizes.append((*facts, *map(percent, (*waits, more.waited))))
    ahead = []
    for nodes in (8, 32, 256):
        for steps in (DECODED_AHEAD, STEPS_AHEAD, 200, 400, ENOUGH_AHEAD, 2000):
            plan = planned_input(nodes, steps_ahead=steps)
            results = [simulate_input(plan, store) for store in (Store(), HEDGED)]
            waits = (percent(result.waited) for result in results)
            ahead.append((nodes, steps, steps * plan.step, plan.cache_bytes / GB, results[1].settling, *waits))
    together = []
    for nodes in (32, 256):
        for aligned in (False, True):
            for bandwidth in (25e9, 5e9, 2e9):
                plan = planned_input(nodes, aligned=aligned, steps_ahead=ENOUGH_AHEAD)
                result = simulate_input(plan, dataclasses.replace(HEDGED, bandwidth=bandwidth))
                ends = "together" if aligned else "spread"
                facts = (nodes, ends, bandwidth / GB, result.first_batch, result.settling)
                together.append((*facts, percent(result.waited)))
    lanes = []
    for nodes in (32, 256, 1024):
        for count in (64, LANES, 4096):
            for caches in (1, 8):
                plan = planned_input(nodes, lanes=count, caches=caches, steps_ahead=ENOUGH_AHEAD)
                result = simulate_input(plan, HEDGED, blocks=6)
                facts = (
                    plan.readers / count,
                    plan.demand / GB,
                    plan.cache_bytes / GB,
                    result.first_batch,
                    result.settling,
                )
                lanes.append((nodes, count, "node" if caches == 1 else "process", *facts, percent(result.waited)))
    requests = [(nodes, BATCH / planned_step(nodes)) for nodes in (1, 2, 8, 32, 256)]
    return f"""## 3. The input, simulated

`simulate_input`: {LANES} lanes, shards of {SHARD / 1e6:.0f} MB ({SHARD / SMALL.bytes:,.0f} images of {SMALL.bytes / 1e3:.0f} kB)
unless said, one cache per node, the store as in `Store`. The code asks for a shard {STEPS_AHEAD} steps before its first image is
used (`feed.loader`); "{ENOUGH_AHEAD} ahead" is what we propose. "Hedged": a second request when the first takes 3 times the
median. First batch: seconds from a cold start, or from a restart in the middle of an epoch, until every node has the first shard
of each of its lanes. Settling: waits while the lanes use up that shard. Waits: share of the time after that.

{table(_SIZES, sizes)}

How far ahead (now: {STEPS_AHEAD}; {DECODED_AHEAD}: only what is decoded ahead):

{table("nodes | steps ahead | seconds | cache GB/node | settling s | waits | hedged", ahead)}

All lanes at the ends of their shards together, or spread (hedged, {ENOUGH_AHEAD} ahead):

{table("nodes | ends | bucket GB/s | first batch s | settling s | waits", together)}

Lanes, and who shares a cache (hedged, {ENOUGH_AHEAD} ahead; steps of 1,024 nodes as long as of 256). Copies: how often each shard is
fetched in an epoch.

{table("nodes | lanes | cache per | copies | GB/s asked | cache GB/node | first batch s | settling s | waits", lanes)}

Break points: where the waits pass 1, 5 and 20 %, one thing changed at a time ("-": not within the range tried; hedged, unless said).

{table("nodes | steps ahead |  | 1 % | 5 % | 20 %", break_points())}

One request per image instead of whole shards, against the store's limit on requests ({Store().requests:,.0f} a second):

{table("nodes | requests/s | times the limit", [(nodes, rate, rate / Store().requests) for nodes, rate in requests])}"""


def break_points() -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for nodes in (32, 256):
        for steps in (STEPS_AHEAD, ENOUGH_AHEAD):
            plan = planned_input(nodes, steps_ahead=steps)

            def store(field: str, unit: float, base: Store = HEDGED, plan: Input = plan) -> Callable[[float], float]:
                def waited(value: float) -> float:
                    changed = dataclasses.replace(base, **{field: value * unit})  # type: ignore[arg-type]
                    return simulate_input(plan, changed, blocks=8).waited

                return waited

            def shard(megabytes: float, plan: Input = plan) -> float:
                images = max(1, round(megabytes * 1e6 / plan.image_bytes))
                return simulate_input(dataclasses.replace(plan, shard_images=images), HEDGED, blocks=8).waited

            def faster(times: float, plan: Input = plan) -> float:
                return simulate_input(dataclasses.replace(plan, step=plan.step / times), HEDGED, blocks=8).waited

            for what, function, low, high in (
                ("bucket GB/s fall to", store("bandwidth", GB), 0.05, 25.0),
                ("storage Gb/s of a node fall to", store("node_bandwidth", GB / 8), 0.01, 40.0),
                ("MB/s of one connection fall to", store("stream", 1e6), 0.2, 600.0),
                ("1 of 1,000 requests is slower by (not hedged)", store("slowness", 1.0, Store()), 1.0, 1000.0),
                ("share of requests that fail", store("errors", 1.0), 1e-4, 0.9),
                ("shards grow to MB", shard, 16.0, 8000.0),
                ("the network trains faster by", faster, 0.1, 300.0),
            ):
                rows.append((nodes, steps, what, *crossing(function, low, high, LIMITS)))
    return rows
