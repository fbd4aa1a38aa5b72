"""Section 6: elastic restarts, simulated."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from simulation.assumptions import HOUR, Disk, Failures
from simulation.checkpoints import best_interval, checkpoint
from simulation.report.plan import ARCH, DAY, NODES, RECIPE, planned_step
from simulation.report.tables import percent, table
from simulation.restarts import Job, simulate_job


def section(runs: int) -> str:
    disk, base = Disk(), Failures()

    def trial(
        nodes: int, failures: Failures, *, spares: int = 0, shrink: bool = True, minutes: float = 0, load: float = 0
    ) -> tuple[object, ...]:
        save = checkpoint(ARCH, nodes, disk, sharded=True).save

        @functools.cache
        def restart(now: int) -> float:
            taken = load or checkpoint(ARCH, now, disk, sharded=True).load
            return failures.restart(now, load=taken, pipeline=15, full=now == nodes)

        job = Job(
            nodes=nodes,
            work=RECIPE.steps * planned_step(nodes),
            interval=60 * minutes or best_interval(save, HOUR / (nodes * failures.node)),
            save=save,
            restart=restart,
            spares=spares,
            shrink=shrink,
            speed=lambda now: planned_step(nodes) / planned_step(now),
        )
        results = [simulate_job(job, failures, seed=seed) for seed in range(runs)]

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
