"""Section 5: checkpoints and failures, in closed form."""

from __future__ import annotations

from simulation.assumptions import CLASSES, HOUR, Disk, Failures
from simulation.checkpoints import best_interval, checkpoint, daly
from simulation.reading import simulate_input
from simulation.report.plan import ARCH, DAY, ENOUGH_AHEAD, GB, HEDGED, NODES, RECIPE, planned_input
from simulation.report.tables import crossing, percent, table


def section() -> str:
    failures, disk = Failures(), Disk()
    rows, breaks = [], []
    for nodes in NODES:
        seconds = HOUR / (nodes * (failures.node + failures.rack / failures.rack_nodes))
        plan = planned_input(nodes, steps_ahead=ENOUGH_AHEAD)
        cold = simulate_input(plan, HEDGED).first_batch
        days = RECIPE.steps * plan.step / DAY
        for sharded in (False, True):
            one = checkpoint(ARCH, nodes, disk, sharded=sharded)
            restart = failures.restart(nodes, load=one.load, pipeline=cold)
            interval = best_interval(one.save, seconds)
            good = percent(1 / daly(interval, one.save, restart, seconds))
            facts = (one.files, one.save, one.load, restart, seconds / HOUR, interval / 60)
            rows.append((nodes, "FSDP" if sharded else "DDP", *facts, days, days * DAY / seconds, good))
        one = checkpoint(ARCH, nodes, disk, sharded=True)
        for what, load in (("as now", one.load), ("loads in 10 s", 10.0)):
            restart = failures.restart(nodes, load=load, pipeline=cold)

            def goodput(times: float, nodes: int = nodes, save: float = one.save, restart: float = restart) -> float:
                between = HOUR / (nodes * failures.node * times)
                return 1 / daly(best_interval(save, between), save, restart, between)

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
