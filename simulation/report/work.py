"""Section 1: the work of one step, and of all."""

from __future__ import annotations

from bigtransfer import hyperrule
from bigtransfer.catalog import ARCHITECTURES
from simulation.assumptions import CLASSES, IMAGES, POOR, RICH, Gpu
from simulation.compute import compute, forward_flops, step_time
from simulation.report.plan import ARCH, BATCH, BUCKET, DAY, DECAYS, EPOCHS, GB, NODES, RECIPE, planned_step
from simulation.report.tables import percent, table


def section() -> str:
    collected = (
        ("r50x1", 224, 512, 1000, 8.18, 11_099.0),
        ("r101x3", 224, 256, 21_843, 139.0, 1_108.0),
        ("r152x4", 224, 256, 21_843, 366.0, 448.0),
        ("r152x4", 480, 256, 21_843, 1_679.0, 98.0),
    )
    floors = []
    for name, px, images, classes, flops, rate in collected:
        arch = ARCHITECTURES[name]
        ours = images / compute(arch, px, images, classes).total
        floors.append((name, px, forward_flops(arch, px) / 1e9, flops, ours, rate, ours / rate))
    forward = forward_flops(ARCH, 224)
    best = compute(ARCH, 224, 256).total / 256
    few = []
    for images in (256, 128, 64, 32, 16, 8, 4, 2):
        took = compute(ARCH, 224, images)
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
            one = step_time(ARCH, BATCH, nodes, links, gradient_bytes=size, bucket=bucket)
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
