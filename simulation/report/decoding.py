"""Section 4: decoding by thousands of workers, simulated."""

from __future__ import annotations

import dataclasses

from simulation.assumptions import SMALL, STORED
from simulation.decoding import Decoding, simulate_decoding
from simulation.report.plan import BATCH, DECODED_AHEAD, NODES, WORKERS, planned_step
from simulation.report.tables import percent, table


def section() -> str:
    steady, pauses = [], []
    for nodes in NODES:
        step, ranks, images = planned_step(nodes), nodes * 8, BATCH / nodes / 8
        for stored in STORED[:2]:
            need = images / stored.decode
            waits = [
                # As many parts of a batch as workers, but none without an image.
                simulate_decoding(Decoding(ranks=ranks * parts, workers=1, seconds=need / parts, step=step))
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
                        simulate_decoding(dataclasses.replace(plan, hiccup=each, hiccup_seconds=pause))
                        for pause in (0.1, 0.5, 2.0, 5.0)
                    ]
                    facts = (nodes, what, plan.workers * plan.ahead * step, each * plan.ranks / step * 3600)
                    pauses.append((*facts, *map(percent, waits)))
    return f"""## 4. Decoding by thousands of workers, simulated

`simulate_decoding`: a rank's workers share each batch, {DECODED_AHEAD} parts ahead of its use (`feed.loader` for shards), 10 %
spread of their time; R152x4, the plan's steps.

{table("nodes | workers | stored | cores a GPU needs | waits with 1 worker | 2 | 4 | 8", steady)}

Workers that stand still now and then (a busy core, a slow disk), {WORKERS} a rank, shorter side 256. They share each batch, or take whole
batches in turn, which keeps {WORKERS} times as many steps in store.

{table("nodes | workers | steps in store, s | pauses an hour, all | waits with pauses of 0.1 s | 0.5 s | 2 s | 5 s", pauses)}"""
