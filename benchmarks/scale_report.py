"""BiT-L on N nodes: the tables that docs/scale.md quotes, from the models and simulations of `benchmarks.scale`.

python -m benchmarks.scale_report
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import scale
from benchmarks.scale import CLASSES, HOUR, IMAGES, POOR, RICH, STORED, Decoding, Disk, Failures, Gpu, Input, Job, Store
from bigtransfer import hyperrule
from bigtransfer.catalog import ARCHITECTURES, Architecture

DECAYS = (10.0, 23.0, 30.0, 37.0)
"""The paper's BiT-L: 40 epochs, the rate / 10 after these."""
EPOCHS = 40
BATCH = 4096
ARCH = ARCHITECTURES["r152x4"]
NODES = (8, 32, 64, 128, 256)
BUCKET = 200e6
"""The plan's gradient buckets, bytes."""
LANES = 512
"""What `data.order.LaneOrder` chooses for this batch."""
SHARD = 250e6
WORKERS = 8
"""Decoding processes per rank."""
DECODED_AHEAD = 2
"""Steps that are decoded ahead where workers share each batch (`data.background`, as it was at the results' commit)."""
STEPS_AHEAD = 100 + DECODED_AHEAD
"""Steps before its first use that `data.loader` asked for a shard then."""
ENOUGH_AHEAD = 1000
"""The same, proposed."""
SMALL = STORED[1]
RECIPE = hyperrule.upstream(IMAGES, EPOCHS, batch_size=BATCH, decay_epochs=DECAYS)
LIMITS = (0.01, 0.05, 0.2)
HEDGED = Store(hedge=3.0)
DAY, GB = 24 * HOUR, 1e9


def table(header: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table with that first line; floats with three significant digits, "-" for NaN."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        if not math.isfinite(value):
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def crossing(function: Callable[[float], float], low: float, high: float, limits: Sequence[float]) -> list[float]:
    """Where between `low` and `high` (> 0) `function`, which rises or falls throughout, passes each limit, within 10 %; NaN: nowhere."""
    function = functools.cache(function)
    rising = function(high) > function(low)
    found = []
    for limit in limits:
        least, most = low, high
        if not min(function(low), function(high)) <= limit <= max(function(low), function(high)):
            found.append(math.nan)
            continue
        while most > 1.1 * least:
            middle = math.sqrt(least * most)
            least, most = (least, middle) if (function(middle) > limit) == rising else (middle, most)
        found.append(math.sqrt(least * most))
    return found


@functools.cache
def planned_step(nodes: int, arch: Architecture = ARCH, batch: int = BATCH) -> float:
    """Seconds of a step of the plan: rich network, float32 gradients, large buckets."""
    return scale.step_time(arch, batch, nodes, bucket=BUCKET).seconds


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


def compute_section() -> str:
    collected = (
        ("r50x1", 224, 512, 1000, 8.18, 11_099.0),
        ("r101x3", 224, 256, 21_843, 139.0, 1_108.0),
        ("r152x4", 224, 256, 21_843, 366.0, 448.0),
        ("r152x4", 480, 256, 21_843, 1_679.0, 98.0),
    )
    floors = []
    for name, px, images, classes, flops, rate in collected:
        arch = ARCHITECTURES[name]
        ours = images / scale.compute(arch, px, images, classes).total
        floors.append((name, px, scale.forward_flops(arch, px) / 1e9, flops, ours, rate, ours / rate))
    forward = scale.forward_flops(ARCH, 224)
    best = scale.compute(ARCH, 224, 256).total / 256
    few = []
    for images in (256, 128, 64, 32, 16, 8, 4, 2):
        took = scale.compute(ARCH, 224, images)
        rate = images / took.total
        few.append((images, took.total * 1e3, took.update * 1e3, rate, percent(rate * 3 * forward / Gpu().flops)))
    text = f"""## 1. The work

- R152x4 with {CLASSES:,} classes: {ARCH.num_parameters(CLASSES) / 1e6:,.0f} M parameters,
  {forward / 1e9:.0f} GFLOP an image forward at 224 px.
- The paper's BiT-L schedule (`hyperrule.upstream`): {RECIPE.steps:,} steps of {RECIPE.batch_size}, {RECIPE.warmup:,} of them warm-up,
  base rate {RECIPE.base_learning_rate}, tenths after steps {", ".join(f"{step:,}" for step in RECIPE.decays)}.
- {EPOCHS} epochs are {3 * forward * IMAGES * EPOCHS:.3g} FLOP (3 x forward): {IMAGES * EPOCHS * best / DAY:,.0f} GPU-days at the estimated
  {1 / best:.0f} images/s of one GPU with 256 images at a time.

FLOPs and training speed of one GPU, computed here / collected before (estimates both; the check of the model):

{table("network | px | GFLOP | collected | images/s | collected | ratio", floors)}

One GPU with few images, R152x4 224 px (tiles left empty, kernels too short, and {sum(Gpu().parameter_bytes)} bytes of traffic for each
parameter and step whatever the batch):

{table("images | ms | of it SGD, ms | images/s | of the 790 TFLOP/s", few)}

A step of {BATCH:,} images by nodes of 8 GPUs. Exposed: the network's time that the backward pass does not hide.
"""
    header = "nodes | images/GPU | compute ms | network ms | exposed ms | step ms | images/s | days | efficiency"
    for links, size, bucket, note in (
        (RICH, 4, 25e6, "DDP's default, what the code does now"),
        (RICH, 4, BUCKET, "the plan"),
        (RICH, 2, BUCKET, "gradients in bfloat16 on the wire"),
        (POOR, 4, BUCKET, "a cheap network"),
        (POOR, 2, BUCKET, "a cheap network, gradients in bfloat16"),
    ):
        rows = []
        for nodes in (1, *NODES):
            one = scale.step_time(ARCH, BATCH, nodes, links, gradient_bytes=size, bucket=bucket)
            each = BATCH / nodes / 8
            times = [1e3 * value for value in (one.compute, one.network, one.exposed, one.seconds)]
            days = RECIPE.steps * one.seconds / DAY
            rows.append((nodes, each, *times, BATCH / one.seconds, days, percent(best * each / one.seconds)))
        title = f"{links.name}, {size} bytes a gradient, buckets of {bucket / 1e6:.0f} MB ({note})"
        text += f"\n**{title}**\n\n{table(header, rows)}\n"
    parameters = ARCH.num_parameters(CLASSES)
    traffic = [
        (what, values * parameters / 8 / GB, 12 * parameters / shards / GB)
        for what, values, shards in (
            ("DDP, float32 gradients", 8, 1),
            ("DDP, bfloat16 gradients", 4, 1),
            ("FSDP over all nodes, bfloat16 gathered twice, float32 scattered", 8, 256),
            ("FSDP inside each node, float32 summed between nodes", 8, 8),
        )
    ]
    batches = []
    for batch in (4096, 8192, 16_384, 32_768):
        recipe = hyperrule.upstream(IMAGES, EPOCHS, batch_size=batch, decay_epochs=DECAYS)
        for nodes in (32, 64, 128, 256):
            seconds, each = planned_step(nodes, batch=batch), batch / nodes / 8
            facts = (f"{batch:,}", f"{recipe.steps:,}", recipe.base_learning_rate, nodes, each)
            batches.append((*facts, recipe.steps * seconds / DAY, percent(best * each / seconds)))
    return f"""{text}
Traffic between many nodes, and memory of weights, gradients and momentum (FSDP over all: 256 GPUs):

{table(" | GB per GPU and step, each way | GB held per GPU", traffic)}

Larger batches (the plan's network), the rate in proportion, epochs kept. Not the paper's recipe, and not tried by us:

{table("batch | steps | base rate | nodes | images/GPU | days | efficiency", batches)}"""


def storage_section() -> str:
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


def input_section() -> str:
    sizes = []
    for nodes in (1, *NODES):
        for size in (64e6, SHARD, 1e9):
            plan = planned_input(nodes, shard=size)
            lasts = plan.shard_images * LANES / BATCH * plan.step
            waits = [scale.simulate_input(plan, store).waited for store in (Store(), HEDGED)]
            more = scale.simulate_input(planned_input(nodes, shard=size, steps_ahead=ENOUGH_AHEAD), HEDGED)
            times = (STEPS_AHEAD * plan.step, Store().expected(size), more.first_batch, more.settling)
            facts = (nodes, size / 1e6, plan.demand / GB, lasts, *times)
            sizes.append((*facts, *map(percent, (*waits, more.waited))))
    ahead = []
    for nodes in (8, 32, 256):
        for steps in (DECODED_AHEAD, STEPS_AHEAD, 200, 400, ENOUGH_AHEAD, 2000):
            plan = planned_input(nodes, steps_ahead=steps)
            results = [scale.simulate_input(plan, store) for store in (Store(), HEDGED)]
            waits = (percent(result.waited) for result in results)
            ahead.append((nodes, steps, steps * plan.step, plan.cache_bytes / GB, results[1].settling, *waits))
    together = []
    for nodes in (32, 256):
        for aligned in (False, True):
            for bandwidth in (25e9, 5e9, 2e9):
                plan = planned_input(nodes, aligned=aligned, steps_ahead=ENOUGH_AHEAD)
                result = scale.simulate_input(plan, dataclasses.replace(HEDGED, bandwidth=bandwidth))
                ends = "together" if aligned else "spread"
                facts = (nodes, ends, bandwidth / GB, result.first_batch, result.settling)
                together.append((*facts, percent(result.waited)))
    lanes = []
    for nodes in (32, 256, 1024):
        for count in (64, LANES, 4096):
            for caches in (1, 8):
                plan = planned_input(nodes, lanes=count, caches=caches, steps_ahead=ENOUGH_AHEAD)
                result = scale.simulate_input(plan, HEDGED, blocks=6)
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
used (`data.loader`); "{ENOUGH_AHEAD} ahead" is what we propose. "Hedged": a second request when the first takes 3 times the
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


_SIZES = (
    "nodes | shard MB | GB/s asked | s per shard and lane | asked ahead, s | a fetch, s | first batch s | settling s | "
    f"waits now | hedged | hedged, {ENOUGH_AHEAD} ahead"
)


def break_points() -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for nodes in (32, 256):
        for steps in (STEPS_AHEAD, ENOUGH_AHEAD):
            plan = planned_input(nodes, steps_ahead=steps)

            def store(field: str, unit: float, base: Store = HEDGED, plan: Input = plan) -> Callable[[float], float]:
                def waited(value: float) -> float:
                    changed = dataclasses.replace(base, **{field: value * unit})  # type: ignore[arg-type]
                    return scale.simulate_input(plan, changed, blocks=8).waited

                return waited

            def shard(megabytes: float, plan: Input = plan) -> float:
                images = max(1, round(megabytes * 1e6 / plan.image_bytes))
                return scale.simulate_input(dataclasses.replace(plan, shard_images=images), HEDGED, blocks=8).waited

            def faster(times: float, plan: Input = plan) -> float:
                return scale.simulate_input(dataclasses.replace(plan, step=plan.step / times), HEDGED, blocks=8).waited

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


def decoding_section() -> str:
    steady, pauses = [], []
    for nodes in NODES:
        step, ranks, images = planned_step(nodes), nodes * 8, BATCH / nodes / 8
        for stored in STORED[:2]:
            need = images / stored.decode
            waits = [
                # As many parts of a batch as workers, but none without an image.
                scale.simulate_decoding(Decoding(ranks=ranks * parts, workers=1, seconds=need / parts, step=step))
                for parts in (min(count, int(images)) for count in (1, 2, 4, 8))
            ]
            steady.append((nodes, ranks * WORKERS, stored.name, need / step, *map(percent, waits)))
        parts = min(WORKERS, int(images))
        whole = Decoding(ranks=ranks, workers=WORKERS, seconds=images / SMALL.decode, step=step)
        shared = dataclasses.replace(whole, ranks=ranks * parts, workers=1, seconds=whole.seconds / parts)
        if nodes in (8, 32, 256):
            for what, plan in (("share each batch (now)", shared), ("take batches in turn", whole)):
                # As many pauses in all: a worker that makes all of a batch decodes for longer.
                for share in (1e-6, 1e-5):
                    each = share * plan.seconds / shared.seconds
                    waits = [
                        scale.simulate_decoding(dataclasses.replace(plan, hiccup=each, hiccup_seconds=pause))
                        for pause in (0.1, 0.5, 2.0, 5.0)
                    ]
                    facts = (nodes, what, plan.workers * plan.ahead * step, each * plan.ranks / step * 3600)
                    pauses.append((*facts, *map(percent, waits)))
    return f"""## 4. Decoding by thousands of workers, simulated

`simulate_decoding`: a rank's workers share each batch, {DECODED_AHEAD} parts ahead of its use (`data.loader` for shards), 10 %
spread of their time; R152x4, the plan's steps.

{table("nodes | workers | stored | cores a GPU needs | waits with 1 worker | 2 | 4 | 8", steady)}

Workers that stand still now and then (a busy core, a slow disk), {WORKERS} a rank, shorter side 256. They share each batch, or take whole
batches in turn, which keeps {WORKERS} times as many steps in store.

{table("nodes | workers | steps in store, s | pauses an hour, all | waits with pauses of 0.1 s | 0.5 s | 2 s | 5 s", pauses)}"""


def failures_section() -> str:
    failures, disk = Failures(), Disk()
    rows, breaks = [], []
    for nodes in NODES:
        seconds = HOUR / (nodes * (failures.node + failures.rack / failures.rack_nodes))
        plan = planned_input(nodes, steps_ahead=ENOUGH_AHEAD)
        cold = scale.simulate_input(plan, HEDGED).first_batch
        days = RECIPE.steps * plan.step / DAY
        for sharded in (False, True):
            one = scale.checkpoint(ARCH, nodes, disk, sharded=sharded)
            restart = failures.restart(nodes, load=one.load, pipeline=cold)
            interval = scale.best_interval(one.save, seconds)
            good = percent(1 / scale.daly(interval, one.save, restart, seconds))
            facts = (one.files, one.save, one.load, restart, seconds / HOUR, interval / 60)
            rows.append((nodes, "FSDP" if sharded else "DDP", *facts, days, days * DAY / seconds, good))
        one = scale.checkpoint(ARCH, nodes, disk, sharded=True)
        for what, load in (("as now", one.load), ("loads in 10 s", 10.0)):
            restart = failures.restart(nodes, load=load, pipeline=cold)

            def goodput(times: float, nodes: int = nodes, save: float = one.save, restart: float = restart) -> float:
                between = HOUR / (nodes * failures.node * times)
                return 1 / scale.daly(scale.best_interval(save, between), save, restart, between)

            breaks.append((nodes, what, restart, *crossing(goodput, 0.1, 2e3, (0.95, 0.8, 0.5))))
    meetings = []
    for nodes in (32, 256, 1024, 4096):
        ranks = nodes * 8
        gloo = 60 * (ranks / 8192) ** 2
        store = (nodes * failures.rendezvous, 373 * (nodes / 4000) ** 2)
        meetings.append((nodes, ranks, *store, ranks * failures.communicators, 20 * gloo, 46 * gloo))
    return f"""## 5. Checkpoints and failures, in closed form

One checkpoint (weights and momentum, float32) has {8 * ARCH.num_parameters(CLASSES) / GB:.2f} GB. A node fails every
{1 / failures.node:,.0f} h (Llama 3's rate). Save and load as `train.checkpoint` does them now: rank 0 makes the files durable one
after another; every rank opens every file to read its header, and with DDP reads all of it. Interval: Daly's
optimum. Goodput: work / time, of the steps of section 1.

{table("nodes |  | files | save s | load s | restart s | h between failures | interval min | days | failures | goodput", rows)}

How many times Llama 3's failure rate until goodput falls below 95, 80, 50 % (the best interval each time; FSDP):

{table("nodes |  | restart s | 95 % | 80 % | 50 %", breaks)}

Seconds until all have met again: the published points, and what they come to elsewhere (linear; quadratic for gloo and the old
torchrun). torchrun: pytorch PR 124982, 10 s, and 373 s before it, at 4,000 hosts. gloo: its PR 407, 20 min, and 46 min before it, at 8k
ranks.

{table("nodes | ranks | torchrun | torchrun before | NCCL [A] | a gloo group | a gloo group before", meetings)}"""


def elastic_section(runs: int) -> str:
    disk, base = Disk(), Failures()

    def trial(
        nodes: int, failures: Failures, *, spares: int = 0, shrink: bool = True, minutes: float = 0, load: float = 0
    ) -> tuple[object, ...]:
        save = scale.checkpoint(ARCH, nodes, disk, sharded=True).save

        @functools.cache
        def restart(now: int) -> float:
            taken = load or scale.checkpoint(ARCH, now, disk, sharded=True).load
            return failures.restart(now, load=taken, pipeline=15, full=now == nodes)

        job = Job(
            nodes=nodes,
            work=RECIPE.steps * planned_step(nodes),
            interval=60 * minutes or scale.best_interval(save, HOUR / (nodes * failures.node)),
            save=save,
            restart=restart,
            spares=spares,
            shrink=shrink,
            speed=lambda now: planned_step(nodes) / planned_step(now),
        )
        results = [scale.simulate_job(job, failures, seed=seed) for seed in range(runs)]

        def mean(field: str) -> float:
            return float(np.mean([getattr(result, field) for result in results]))

        worst = float(np.quantile([result.goodput for result in results], 0.05))
        shares = (percent(share) for share in (mean("lost"), mean("down"), mean("goodput"), worst))
        return (job.work / DAY, mean("seconds") / DAY, mean("restarts"), *shares)

    def times(factor: float) -> Failures:
        return dataclasses.replace(base, node=base.node * factor, rack=base.rack * factor)

    often = times(10)
    hanging = dataclasses.replace(often, detect=0.9 * often.detect + 0.1 * 1800)
    prompt = dataclasses.replace(often, slow_for=600.0)
    sizes = [(nodes, factor, *trial(nodes, times(factor))) for nodes in NODES for factor in (1, 10, 100)]
    remedies = [
        ("wait for repairs (torchrun --nnodes 64)", *trial(64, often, shrink=False)),
        ("fewer nodes (--nnodes MIN:64)", *trial(64, often)),
        ("2 spares", *trial(64, often, spares=2)),
        ("8 spares", *trial(64, often, spares=8)),
        ("8 spares, a checkpoint every 5 min", *trial(64, often, spares=8, minutes=5)),
        ("8 spares, every 10 min (recipes/bit-l.sh)", *trial(64, often, spares=8, minutes=10)),
        ("8 spares, every 30 min", *trial(64, often, spares=8, minutes=30)),
        ("8 spares, every 2 h", *trial(64, often, spares=8, minutes=120)),
        ("8 spares, loads in 10 s", *trial(64, often, spares=8, load=10)),
        ("8 spares, 1 of 10 failures hangs until the time-out of 30 min (mean)", *trial(64, hanging, spares=8)),
        ("8 spares, slow nodes found in 10 min", *trial(64, prompt, spares=8)),
    ]
    slow = []
    for nodes in NODES:
        shares = [-math.expm1(-nodes * base.slow * minutes / 60) for minutes in (120, 10)]
        slow.append((nodes, *map(percent, shares), *(1 + share * (base.slow_factor - 1) for share in shares)))
    rng = np.random.default_rng(0)
    jitter = [(nodes, rng.standard_normal((2000, nodes * 8)).max(axis=1).mean()) for nodes in NODES]
    head = "days, no trouble | days | restarts | lost | down | goodput | its 5 % quantile"
    return f"""## 6. Elastic restarts, simulated

`simulate_job`, {runs} runs each: nodes and racks of {base.rack_nodes} fail, come back after {base.repair / HOUR:.0f} h, turn
slow; restarts and checkpoints as in section 5, FSDP. Lost: work done again. Down: restarting or waiting. The rest is checkpoints,
fewer nodes, slow nodes.

By size and failure rate (1: Llama 3's), no spares, going on with fewer nodes, Daly's interval, the code as now:

{table(f"nodes | rate | {head}", sizes)}

What to do about it, 64 nodes, 10 times Llama 3's rate:

{table(f" | {head}", remedies)}

One slow node slows all. Share of the time that at least one is slow ({base.slow_factor} times; {base.slow:.0e} a node and
hour), and the mean step, in closed form:

{table("nodes | found after 2 h | after 10 min | step, after 2 h | step, after 10 min", slow)}

The step is the slowest GPU's: its mean length if each one's varies by 1 or 3 % (normal, independent):

{table("nodes | 1 % | 3 %", [(nodes, 1 + 0.01 * float(most), 1 + 0.03 * float(most)) for nodes, most in jitter])}"""


def own_section(photographs: Path) -> str:
    from bigtransfer.data.order import LaneOrder

    images, run = BATCH * 300, 205
    runs = np.unique(np.append(np.arange(0, images, run), images))
    order = LaneOrder(runs, BATCH, 0)
    replayed = scale.replay(
        lambda: LaneOrder(runs, BATCH, 0), images, BATCH, epochs=3, mean_steps=3, keep=4, ranks=4096
    )
    readers = [
        (parts, scale.readers_per_run(order, runs, BATCH, parts)) for parts in (8, 32, 64, 256, 512, 1024, 2048, 4096)
    ]
    seconds, lanes = scale.measure_order()
    rows = [
        (
            "the order of one batch of 4,096, on every rank",
            f"{seconds * 1e3:.2g} ms",
            "the same, made ahead of the step",
        ),
    ]
    for what, indexed in (("plain tar shards", False), ("shards of `bit shard`", True)):
        cost = scale.measure_index(10_000, indexed=indexed)
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
            for what, size, rate in scale.measure_decoding(photographs)
        ]
    return f"""## 7. Our own code, run

**Exactly once** (`data.order.LaneOrder`, `dist.World.part`): {images:,} images in {len(runs) - 1:,} runs, batch {BATCH},
{replayed.epochs} epochs, {replayed.restarts} restarts at random moments with {replayed.worlds[0]} to {replayed.worlds[1]} ranks,
{replayed.repeated_steps} steps taken again: **{replayed.wrong}** images of an epoch missed or repeated.

Ranks (a cache for each) or nodes (a shared cache) that read an average run of this set, {lanes} lanes:

{table("ranks or nodes | readers per run", readers)}

Measured on one core shared with other work ({platform.machine()}; processor seconds), and what it comes to for {IMAGES:,} images:

{table(" | measured | at 300 million", rows)}"""


def assumptions() -> str:
    def short(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = []
    for value in (Gpu(), RICH, POOR, Store(), Disk(), Failures(), *STORED):
        fields = ", ".join(f"{key} {short(one)}" for key, one in dataclasses.asdict(value).items())
        lines.append(f"- `{type(value).__name__}`: {fields}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="simulated trainings per row of section 6 (default 20)")
    parser.add_argument(
        "--photographs", type=Path, default=Path("../shared/data/flowers12.tar"), help="JPEGs to time decoding with"
    )
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    date = datetime.datetime.now(datetime.UTC)
    sections = []
    for section in (
        compute_section,
        storage_section,
        input_section,
        decoding_section,
        failures_section,
        functools.partial(elastic_section, options.runs),
        functools.partial(own_section, options.photographs),
    ):
        sections.append(section())
        print(f"section {len(sections)} after {time.process_time():.0f} processor seconds", flush=True)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    text = f"""# BiT-L on N nodes: arithmetic and simulations, {date:%Y-%m-%d}

- Command: `python -m benchmarks.scale_report --runs {options.runs}`; {time.process_time():.0f} processor seconds on one core
- Versions: commit {git.stdout.strip() or "unknown"} and what was being written then,
  Python {platform.python_version()}, NumPy {np.__version__}
- **No GPU, network or object store was measured.** Sections 1 to 6 are computed or simulated from the assumptions below, whose
  sources stand beside them in `benchmarks/scale.py`; section 7 is our own code, run. All times of GPUs are estimates.

{assumptions()}

{(chr(10) * 2).join(sections)}
"""
    out = options.out or Path(__file__).with_name("results") / f"scale_simulation_{date:%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
